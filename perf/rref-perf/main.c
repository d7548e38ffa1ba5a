/* SPDX-License-Identifier: Apache-2.0 */
/* rref-perf OPERATION [OPTIONS]: see usage(). */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

static const size_t lat_sizes[] = { 8, 64, 512, 4096, 65536, 1 << 20, 16 << 20, 0 };
static const size_t bw_sizes[] = { 4096, 65536, 1 << 20, 16 << 20, 0 };
static const size_t small[] = { 8, 0 };
static const size_t alloc_sizes[] = { 128, 4096, 65536, 0 };
static const size_t batch_sizes[] = { 64, 0 };

const struct pf_op pf_ops[] = {
	{ "lat", "to_here, one after the other, beside a raw read of the same bytes", 2,
	  RREF_PROGRESS_AUTO, lat_sizes, pf_lat },
	{ "bw", "to_here with a window in flight, beside raw reads with the same window", 2,
	  RREF_PROGRESS_AUTO, bw_sizes, pf_flow },
	{ "rate", "small reads per second, a window in flight, beside raw reads", 2,
	  RREF_PROGRESS_AUTO, small, pf_flow },
	{ "batch", "to_here_batch of references of one owner, beside the same one by one", 2,
	  RREF_PROGRESS_AUTO, batch_sizes, pf_batch },
	{ "call",
	  "an empty call of an inline handler, both sides spinning, beside a cache line's way to "
	  "and fro",
	  2, RREF_PROGRESS_MANUAL, NULL, pf_call },
	{ "share",
	  "a reference from user to user until its owner has confirmed, beside an empty call, all "
	  "spinning",
	  3, RREF_PROGRESS_MANUAL, NULL, pf_share },
	{ "create", "create on a peer, to_here, release, beside an empty call", 2,
	  RREF_PROGRESS_MANUAL, NULL, pf_create },
	{ "alloc",
	  "a value's memory, got and given back in an arena, beside plain mallocx and dallocx", 1,
	  RREF_PROGRESS_MANUAL, alloc_sizes, pf_alloc },
	{ "burst", "the same, 16 got and then given back", 1, RREF_PROGRESS_MANUAL, alloc_sizes,
	  pf_burst },
	{ "live",
	  "a value made and released by an owner of 10^6, any of them replaced, beside the same "
	  "among 1000; bytes for each",
	  1, RREF_PROGRESS_MANUAL, NULL, pf_live },
	{ "idle", "the processor time of idle workers, and the first call after a rest", 2,
	  RREF_PROGRESS_AUTO, NULL, pf_idle },
	{ 0 },
};

static void usage(FILE *to)
{
	fprintf(to,
		"usage: rref-perf OPERATION [OPTIONS]\n"
		"Measures librref between processes that it starts itself, beside the raw "
		"operation of the same device,\n"
		"in short stretches of each in turn. OPERATION is one of these, or all:\n");
	for (const struct pf_op *op = pf_ops; op->name; op++)
		fprintf(to, "  %-8s %s\n", op->name, op->what);
	fprintf(to,
		"options:\n"
		"  --device D     shm (default), ibv, ibv:<device>[:port[:gid-index]]\n"
		"  --sizes A,B    bytes; k, m, g are 1024 and its powers (default: each "
		"operation's own)\n"
		"  --seconds S    for each operation and size, both sides together (default 2)\n"
		"  --rounds N     the ratio is the median of so many (default 5)\n"
		"  --window N     reads in flight, for bw and rate (default 16)\n"
		"  --batch N      references in a batch (default 1000)\n"
		"  --mode M       auto, poll or manual (default: auto; manual, all spinning, for "
		"call, share and create)\n"
		"  --headed       over ibv: raw READs bring a header more, as the library's do\n"
		"  --json         one JSON object a line instead of the table; times in ns\n"
		"  --plot FILE    an SVG of the sweep, by gnuplot; its rows go to FILE.jsonl\n"
		"  --help, --version\n"
		"A sample of an operation shorter than 2 us is the mean of a group of them "
		"(\"group\" in the JSON).\n"
		"Over two hosts: start it on each with RREF_RANK, RREF_WORLD_SIZE, RREF_RENDEZVOUS "
		"and a key (RREF_KEY_FILE) set;\n"
		"the highest rank measures. One operation at a time then.\n");
}

static int bad(const char *what, const char *value)
{
	fprintf(stderr, "rref-perf: %s: '%s' (see --help)\n", what, value);
	return 2;
}

static bool number(const char *text, unsigned low, unsigned high, unsigned *out)
{
	char *end;
	errno = 0;
	unsigned long v = strtoul(text, &end, 10);

	if (errno || *end || end == text || *text == '-' || v < low || v > high)
		return false;
	*out = (unsigned)v;
	return true;
}

static bool sizes(const char *text, struct pf_config *cfg)
{
	for (cfg->nr_sizes = 0; *text; cfg->nr_sizes++) {
		char *end;
		errno = 0;
		unsigned long long v = strtoull(text, &end, 10);
		unsigned shift = *end == 'k' ? 10 : *end == 'm' ? 20 : *end == 'g' ? 30 : 0;

		if (errno || end == text || *text == '-' || !v || v > (ULLONG_MAX >> 31) ||
		    cfg->nr_sizes == PF_SIZES_MAX)
			return false;
		end += shift != 0;
		if (*end && *end != ',')
			return false;
		cfg->sizes[cfg->nr_sizes] = (size_t)v << shift;
		text = *end ? end + 1 : end;
	}
	return cfg->nr_sizes > 0;
}

int main(int argc, char **argv)
{
	enum {
		DEVICE = 256,
		SIZES,
		SECONDS,
		ROUNDS,
		WINDOW,
		BATCH,
		MODE,
		HEADED,
		JSON,
		PLOT,
		HELP,
		VERSION
	};
	static const struct option options[] = {
		{ "device", required_argument, NULL, DEVICE },
		{ "sizes", required_argument, NULL, SIZES },
		{ "seconds", required_argument, NULL, SECONDS },
		{ "rounds", required_argument, NULL, ROUNDS },
		{ "window", required_argument, NULL, WINDOW },
		{ "batch", required_argument, NULL, BATCH },
		{ "mode", required_argument, NULL, MODE }, { "headed", no_argument, NULL, HEADED },
		{ "json", no_argument, NULL, JSON },
		{ "plot", required_argument, NULL, PLOT }, { "help", no_argument, NULL, HELP },
		{ "version", no_argument, NULL, VERSION }, { 0 },
	};
	static const char *const modes[] = { "auto", "poll", "manual" };
	struct pf_config cfg = { .device = "shm",
				 .rounds = 5,
				 .seconds = 2,
				 .window = 16,
				 .batch = 1000,
				 .mode = -1,
				 .launched = getenv("RREF_RANK") != NULL };
	int c, failed = 0, found = 0;
	char *end;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case DEVICE:
			cfg.device = optarg;
			break;
		case SIZES:
			if (!sizes(optarg, &cfg))
				return bad("--sizes wants 1 to 32 positive sizes", optarg);
			break;
		case SECONDS:
			cfg.seconds = strtod(optarg, &end);
			if (*end || end == optarg || !(cfg.seconds > 0 && cfg.seconds <= 3600))
				return bad("--seconds wants a number above 0, at most 3600",
					   optarg);
			break;
		case ROUNDS:
			if (!number(optarg, 1, 1000, &cfg.rounds))
				return bad("--rounds wants 1 to 1000", optarg);
			break;
		case WINDOW:
			if (!number(optarg, 1, 4096, &cfg.window))
				return bad("--window wants 1 to 4096", optarg);
			break;
		case BATCH:
			if (!number(optarg, 1, 100000, &cfg.batch))
				return bad("--batch wants 1 to 100000", optarg);
			break;
		case MODE:
			for (cfg.mode = 2; cfg.mode >= 0 && strcmp(optarg, modes[cfg.mode]);
			     cfg.mode--)
				;
			if (cfg.mode < 0)
				return bad("--mode wants auto, poll or manual", optarg);
			break;
		case HEADED:
			cfg.headed = true;
			break;
		case JSON:
			cfg.json = true;
			break;
		case PLOT:
			cfg.plot = optarg;
			break;
		case 'h':
		case HELP:
			usage(stdout);
			return 0;
		case VERSION:
			printf("rref-perf %s\n", rref_version());
			return 0;
		default:
			return 2;
		}
	}
	if (optind != argc - 1) {
		usage(stderr);
		return 2;
	}
	bool all = strcmp(argv[optind], "all") == 0;

	if (all && cfg.launched)
		return bad("launched on several hosts, one operation at a time", "all");
	for (const struct pf_op *op = pf_ops; op->name; op++)
		found += all || strcmp(op->name, argv[optind]) == 0;
	if (!found)
		return bad("no such operation", argv[optind]);
	if (pf_out_begin(&cfg))
		return 1;
	for (const struct pf_op *op = pf_ops; op->name; op++)
		if (all || strcmp(op->name, argv[optind]) == 0)
			failed |= pf_group(&cfg, op);
	return failed | pf_out_end(&cfg);
}
