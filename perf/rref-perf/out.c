/* SPDX-License-Identifier: Apache-2.0 */
/* The results: a table for people, JSON lines for programs, a plot by gnuplot. */
#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/util.h"
#include "pf.h"

static const struct pf_ratio left_out = { -1, -1, -1 };

void pf_row_init(struct pf_row *row, const char *op, const char *device, size_t bytes)
{
	*row = (struct pf_row){ .op = op,
				.bytes = bytes,
				.raw_p50 = -1,
				.raw_p99 = -1,
				.raw_p999 = -1,
				.ratio = left_out,
				.of_p99 = left_out,
				.of_p999 = left_out,
				.of_one = left_out,
				.of_two = left_out,
				.raw_of_one = left_out,
				.frees = -1,
				.calls = -1,
				.sessions = -1,
				.bandwidth = -1,
				.raw_bandwidth = -1,
				.raw_rate = -1,
				.registrations = -1,
				.bytes_each = -1,
				.live = -1,
				.cpu_share = -1 };
	snprintf(row->device, sizeof(row->device), "%s", device);
}

/* ---- table ---- */

/* "172 ns", "51.3 us", "1.20 ms" */
static const char *duration(double ns, char buf[16])
{
	if (ns < 0)
		return "-";
	if (ns < 1000)
		snprintf(buf, 16, ns < 100 ? "%.1f ns" : "%.0f ns", ns);
	else if (ns < 1e6)
		snprintf(buf, 16, "%.2f us", ns / 1e3);
	else
		snprintf(buf, 16, "%.2f ms", ns / 1e6);
	return buf;
}

static const char *quantity(double v, const char *unit, char buf[16])
{
	static const char prefix[] = " kMGT";
	unsigned i = 0;

	if (v < 0)
		return "-";
	for (; v >= 1000 && prefix[i + 1]; i++)
		v /= 1000;
	snprintf(buf, 16, "%.3g %c%s", v, prefix[i], unit);
	return buf;
}

static void say_ratio(const char *what, const struct pf_ratio *r, const char *of)
{
	if (r->median >= 0)
		printf("          %s: %.2f (%.2f-%.2f) of %s\n", what, r->median, r->low, r->high,
		       of);
}

/* Tells the figures that only some operations have. */
static void more(const struct pf_row *r)
{
	say_ratio("p99", &r->of_p99, "the raw p99");
	say_ratio("p99.9", &r->of_p999, "the raw p99.9");
	if (r->frees >= 0)
		printf("          meanwhile %.0f values freed, %.0f calls, %.0f sessions ended\n",
		       r->frees, r->calls, r->sessions);
	if (!r->threads)
		return;
	printf("          %u threads, %s\n", r->threads, r->way);
	say_ratio("rate", &r->of_one, "that of one thread");
	say_ratio("rate", &r->of_two, "that of two threads");
	say_ratio("raw rate", &r->raw_of_one, "that of one thread");
}

static void table(const struct pf_row *r)
{
	char a[9][16], size[16], ratio[40] = "-";

	if (r->ratio.median >= 0)
		snprintf(ratio, sizeof(ratio), "%.2f (%.2f-%.2f)", r->ratio.median, r->ratio.low,
			 r->ratio.high);
	snprintf(size, sizeof(size), "%zu", r->bytes);
	printf("%-9s %-5s %9s %10s %10s %10s %10s %-10s %-18s %10s %10s %9s\n", r->op, r->device,
	       size, duration(r->p50, a[0]), duration(r->p99, a[1]), duration(r->p999, a[2]),
	       duration(r->raw_p50, a[3]), r->raw_p50 < 0 ? "-" : r->raw, ratio,
	       quantity(r->bandwidth, "B/s", a[4]), quantity(r->rate, "/s", a[5]),
	       duration(r->cpu, a[6]));
	if (r->bytes_each >= 0)
		printf("        %.0f bytes of bookkeeping for each of %.0f live references\n",
		       r->bytes_each, r->live);
	if (r->cpu_share >= 0)
		printf("        %.3f %% of a core while idle\n", r->cpu_share * 100);
	if (r->registrations >= 0)
		printf("        %.0f registrations meanwhile\n", r->registrations);
	more(r);
	fflush(stdout);
}

/* Tries gnuplot and the files of the plot, before minutes of measuring. */
static int prepare_plot(const char *plot)
{
	char path[4096];
	FILE *f;

	if (system("command -v gnuplot >/dev/null 2>&1")) {
		fprintf(stderr,
			"rref-perf: --plot needs gnuplot, which is not in PATH (Debian package "
			"gnuplot-nox)\n");
		return -1;
	}
	for (int rows = 0; rows < 2; rows++) {
		snprintf(path, sizeof(path), "%s%s", plot, rows ? ".jsonl" : "");
		f = fopen(path, "w");
		if (!f) {
			fprintf(stderr, "rref-perf: --plot: %s: %s\n", path, strerror(errno));
			return -1;
		}
		fclose(f);
	}
	return 0;
}

static void legend(void)
{
	puts("Times are of one operation. p50, p99 and p99.9: librref's. raw p50: the plain "
	     "operation that column \"raw\" names,\n"
	     "measured in turn with it: it moves the same bytes, and knows no references, owners "
	     "or checks (memcpy of 8 bytes is\n"
	     "one instruction). p50 / raw: the median of the rounds, in brackets the lowest and "
	     "highest; 1.00 is as fast as raw.\n"
	     "cpu/op: processor time of the worker that measures. rref-perf --help says what each "
	     "op does.\n");
}

int pf_out_begin(const struct pf_config *cfg)
{
	if (cfg->plot && prepare_plot(cfg->plot))
		return -1;
	if (!cfg->json)
		legend();
	if (!cfg->json)
		printf("%-9s %-5s %9s %10s %10s %10s %10s %-10s %-18s %10s %10s %9s\n", "op",
		       "over", "bytes", "p50", "p99", "p99.9", "raw p50", "raw", "p50 / raw",
		       "bandwidth", "rate", "cpu/op");
	fflush(stdout);
	return 0;
}

/* ---- JSON ---- */

static void number(json_object *o, const char *key, double v)
{
	char text[40];

	/* A reader of JSON knows no "inf". */
	if (!(v >= 0 && isfinite(v)))
		return;
	snprintf(text, sizeof(text), "%.10g", v);
	json_object_object_add(o, key, json_object_new_double_s(v, text));
}

static void ratios(json_object *o, const char *key, const struct pf_ratio *r)
{
	char text[40];

	number(o, key, r->median);
	snprintf(text, sizeof(text), "%s_low", key);
	number(o, text, r->low);
	snprintf(text, sizeof(text), "%s_high", key);
	number(o, text, r->high);
}

static json_object *object(const struct pf_row *r)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "op", json_object_new_string(r->op));
	json_object_object_add(o, "device", json_object_new_string(r->device));
	json_object_object_add(o, "bytes", json_object_new_int64((int64_t)r->bytes));
	json_object_object_add(o, "iters", json_object_new_int64((int64_t)r->iters));
	json_object_object_add(o, "rounds", json_object_new_int((int)r->rounds));
	json_object_object_add(o, "group", json_object_new_int((int)r->group));
	number(o, "p50_ns", r->p50);
	number(o, "p99_ns", r->p99);
	number(o, "p999_ns", r->p999);
	if (r->raw_p50 >= 0)
		json_object_object_add(o, "raw", json_object_new_string(r->raw));
	number(o, "raw_p50_ns", r->raw_p50);
	number(o, "raw_p99_ns", r->raw_p99);
	number(o, "raw_p999_ns", r->raw_p999);
	ratios(o, "ratio_p50", &r->ratio);
	ratios(o, "ratio_p99", &r->of_p99);
	ratios(o, "ratio_p999", &r->of_p999);
	number(o, "cpu_ns_per_op", r->cpu);
	number(o, "bytes_per_s", r->bandwidth);
	number(o, "raw_bytes_per_s", r->raw_bandwidth);
	number(o, "ops_per_s", r->rate);
	number(o, "raw_ops_per_s", r->raw_rate);
	number(o, "reads_per_op", r->reads);
	number(o, "doorbells_per_op", r->doorbells);
	number(o, "registrations", r->registrations);
	number(o, "live", r->live);
	number(o, "bytes_per_reference", r->bytes_each);
	number(o, "cpu_share", r->cpu_share);
	number(o, "frees", r->frees);
	number(o, "calls", r->calls);
	number(o, "sessions", r->sessions);
	number(o, "window", r->window ? r->window : -1.0);
	if (r->way)
		json_object_object_add(o, "way", json_object_new_string(r->way));
	number(o, "threads", r->threads ? r->threads : -1.0);
	ratios(o, "of_one_thread", &r->of_one);
	ratios(o, "of_two_threads", &r->of_two);
	ratios(o, "raw_of_one_thread", &r->raw_of_one);
	return o;
}

/* ---- plot ---- */

/*
 * Adds a row for the plot to <plot>.jsonl, a file of JSON lines that stays beside the picture. The
 * measuring worker is another process than the one that draws.
 */
static void remember(const struct pf_config *cfg, const struct pf_row *r)
{
	char path[4096];
	json_object *o = object(r);
	FILE *f;

	snprintf(path, sizeof(path), "%s.jsonl", cfg->plot);
	f = fopen(path, "a");
	if (f) {
		fprintf(f, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
		fclose(f);
	} else {
		fprintf(stderr, "rref-perf: %s: %s\n", path, strerror(errno));
	}
	json_object_put(o);
}

void pf_out(const struct pf_config *cfg, const struct pf_row *r)
{
	if (cfg->json) {
		json_object *o = object(r);

		printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
		fflush(stdout);
		json_object_put(o);
	} else {
		table(r);
	}
	if (cfg->plot)
		remember(cfg, r);
}

static double field(json_object *o, const char *key)
{
	json_object *v;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_double(v) : -1;
}

/* Writes one data block for gnuplot: bytes and a column of every line
 * of `op`. Returns the number of points. */
static int block(FILE *gp, FILE *rows, const char *name, const char *op, const char *key,
		 double scale)
{
	char line[4096];
	int nr = 0;

	rewind(rows);
	fprintf(gp, "$%s << EOD\n", name);
	while (fgets(line, sizeof(line), rows)) {
		json_object *o = json_tokener_parse(line), *v;
		double y = o ? field(o, key) : -1;

		if (o && json_object_object_get_ex(o, "op", &v) &&
		    !strcmp(json_object_get_string(v), op) && y >= 0) {
			fprintf(gp, "%.0f %.10g\n", field(o, "bytes"), y * scale);
			nr++;
		}
		json_object_put(o);
	}
	fprintf(gp, "EOD\n");
	return nr;
}

int pf_out_end(const struct pf_config *cfg)
{
	static const struct {
		const char *op, *key, *raw_key, *label;
		double scale;
	} kinds[] = {
		{ "lat", "p50_ns", "raw_p50_ns", "p50, microseconds", 1e-3 },
		{ "bw", "bytes_per_s", "raw_bytes_per_s", "GB/s", 1e-9 },
		{ "rate", "ops_per_s", "raw_ops_per_s", "million reads per second", 1e-6 },
	};
	char path[4096];
	FILE *rows, *gp;
	int err = 0;

	if (!cfg->plot)
		return 0;
	snprintf(path, sizeof(path), "%s.jsonl", cfg->plot);
	rows = fopen(path, "r");
	if (!rows) {
		fprintf(stderr, "rref-perf: nothing to draw: %s: %s\n", path, strerror(errno));
		return 1;
	}
	gp = popen("gnuplot", "w");
	if (!gp) {
		fprintf(stderr, "rref-perf: gnuplot: %s\n", strerror(errno));
		fclose(rows);
		return 1;
	}
	fprintf(gp,
		"set terminal svg size 900,520 font 'sans,14' background rgb 'white'\nset output "
		"'%s'\nset logscale x 2\n"
		"set logscale y\nset format x '%%.0b %%BB'\nset grid\nset key left top\nset xlabel "
		"'bytes'\n",
		cfg->plot);
	for (unsigned i = 0; i < array_size(kinds); i++) {
		int lib = block(gp, rows, "lib", kinds[i].op, kinds[i].key, kinds[i].scale);
		int raw = block(gp, rows, "raw", kinds[i].op, kinds[i].raw_key, kinds[i].scale);

		if (!lib)
			continue;
		fprintf(gp,
			"set ylabel '%s'\nset title 'rref-perf %s'\nplot $lib with linespoints lw "
			"2 title 'librref'%s\n",
			kinds[i].label, kinds[i].op,
			raw ? ", $raw with linespoints lw 2 title 'raw'" : "");
		break; /* a picture holds one kind: the first measured */
	}
	fclose(rows);
	err = pclose(gp);
	if (err)
		fprintf(stderr, "rref-perf: gnuplot failed (%s %d)\n",
			WIFSIGNALED(err) ? "signal" : "exit status",
			WIFSIGNALED(err) ? WTERMSIG(err) : WEXITSTATUS(err));
	return err != 0;
}
