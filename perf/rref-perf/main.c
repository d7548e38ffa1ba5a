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
static const size_t view_sizes[] = { 65536, 16 << 20, 1 << 30, 0 };
static const size_t batch_sizes[] = { 64, 0 };

#define VISITORS 24

const struct pf_op pf_ops[] = {
	{ .name = "lat",
	  .what = "to_here, one after the other, beside a raw read of the same bytes",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = lat_sizes,
	  .run = pf_lat },
	{ .name = "bw",
	  .what = "to_here with a window in flight, beside raw reads with the same window",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = bw_sizes,
	  .run = pf_flow },
	{ .name = "rate",
	  .what = "small reads per second, a window in flight, beside raw reads",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = small,
	  .run = pf_flow },
	{ .name = "batch",
	  .what = "to_here_batch of references of one owner, beside the same one by one",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = batch_sizes,
	  .run = pf_batch },
	{ .name = "async",
	  .what = "to_here_async, its wait and its free, one after the other, beside to_here",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = small,
	  .run = pf_async },
	{ .name = "view",
	  .what = "to_here of large values without a copy, where they lie, beside to_here of 8 "
		  "bytes",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = view_sizes,
	  .looks = true,
	  .run = pf_view },
	{ .name = "threads",
	  .what = "reads by 1, 2, 4 and 8 threads at once: to_here, to_here_async with a "
		  "window, raw",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .sizes = small,
	  .run = pf_threads },
	{ .name = "call+bulk",
	  .what = "an empty call while 64 reads of 256k of the same peer are in flight, beside "
		  "idle",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .run = pf_call_bulk },
	{ .name = "read+bulk",
	  .what = "a read of 8 bytes beside 16 of 1m of the same peer in flight, beside idle",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .run = pf_read_bulk },
	{ .name = "read+busy",
	  .what = "a read of 8 bytes while other threads free values of 1g and are called, and "
		  "workers come and go, beside idle",
	  .world = 2 + VISITORS,
	  .mode = RREF_PROGRESS_AUTO,
	  .visitors = VISITORS,
	  .run = pf_read_busy },
	{ .name = "call",
	  .what = "an empty call of an inline handler, both sides spinning, beside a cache "
		  "line's way to and fro",
	  .world = 2,
	  .mode = RREF_PROGRESS_MANUAL,
	  .run = pf_call },
	{ .name = "share",
	  .what = "a reference from user to user until its owner has confirmed, beside an empty "
		  "call, all spinning",
	  .world = 3,
	  .mode = RREF_PROGRESS_MANUAL,
	  .run = pf_share },
	{ .name = "create",
	  .what = "create on a peer, to_here, release, beside an empty call",
	  .world = 2,
	  .mode = RREF_PROGRESS_MANUAL,
	  .run = pf_create },
	{ .name = "alloc",
	  .what = "a value's memory, got and given back in an arena, beside plain mallocx and "
		  "dallocx",
	  .world = 1,
	  .mode = RREF_PROGRESS_MANUAL,
	  .sizes = alloc_sizes,
	  .run = pf_alloc },
	{ .name = "burst",
	  .what = "the same, 16 got and then given back",
	  .world = 1,
	  .mode = RREF_PROGRESS_MANUAL,
	  .sizes = alloc_sizes,
	  .run = pf_burst },
	{ .name = "live",
	  .what = "a value made and released by an owner of 10^6, any of them replaced, beside "
		  "the same among 1000; bytes for each",
	  .world = 1,
	  .mode = RREF_PROGRESS_MANUAL,
	  .run = pf_live },
	{ .name = "idle",
	  .what = "the processor time of idle workers, and the first call after a rest",
	  .world = 2,
	  .mode = RREF_PROGRESS_AUTO,
	  .run = pf_idle },
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
		fprintf(to, "  %-9s %s\n", op->name, op->what);
	fprintf(to,
		"options:\n"
		"  --device D     shm (default), ibv, ibv:<device>[:port[:gid-index]]\n"
		"  --sizes A,B    bytes; k, m, g are 1024 and its powers (default: each "
		"operation's own)\n"
		"  --seconds S    for each operation and size, both sides together (default 2)\n"
		"  --rounds N     the ratio is the median of so many (default 5)\n"
		"  --window N     reads in flight, for bw, rate and threads (default 16)\n"
		"  --batch N      references in a batch (default 1000)\n"
		"  --mode M       auto, poll or manual (default: auto; manual, all spinning, for "
		"call, share and create)\n"
		"  --same         all threads of threads read one value, not one each\n"
		"  --freed B      bytes of the values that read+busy frees (default 1g)\n"
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

/* Takes a size from the text, up to its end or a comma. */
static bool size(const char **text, size_t *out)
{
	char *end;
	errno = 0;
	unsigned long long v = strtoull(*text, &end, 10);
	unsigned shift = *end == 'k' ? 10 : *end == 'm' ? 20 : *end == 'g' ? 30 : 0;

	if (errno || end == *text || **text == '-' || !v || v > (ULLONG_MAX >> 31))
		return false;
	end += shift != 0;
	if (*end && *end != ',')
		return false;
	*out = (size_t)v << shift;
	*text = *end ? end + 1 : end;
	return true;
}

static bool sizes(const char *text, struct pf_config *cfg)
{
	for (cfg->nr_sizes = 0; *text; cfg->nr_sizes++)
		if (cfg->nr_sizes == PF_SIZES_MAX || !size(&text, &cfg->sizes[cfg->nr_sizes]))
			return false;
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
		SAME,
		FREED,
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
		{ "same", no_argument, NULL, SAME }, { "freed", required_argument, NULL, FREED },
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
				 .freed = 1 << 30,
				 .launched = getenv("RREF_RANK") != NULL };
	int c, failed = 0, found = 0;
	const char *text;
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
		case SAME:
			cfg.same = true;
			break;
		case FREED:
			text = optarg;
			if (!size(&text, &cfg.freed) || *text)
				return bad("--freed wants a size", optarg);
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
