/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures two things so that they can be compared on a noisy machine. Short stretches of the one
 * and of the other come in turn, over several rounds. The ratio is taken inside each round, and the
 * median of the rounds is the result.
 *
 * An operation of a few nanoseconds is less than a clock reading (some 20 ns). So a group of them
 * that takes GROUP_NS is made between two readings, and one sample is their mean.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "pf.h"

#define GROUP_NS 2000
#define STRETCH_NS 2000000 /* length of one side's turn */
#define SAMPLES_MAX 1000000u /* samples of one side, all rounds */

struct samples {
	double *v;
	size_t nr, first; /* first: of this round */
	double sum;
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Returns a percentile of a sorted array; the nearest rank. */
static double percentile(const double *v, size_t nr, double p)
{
	size_t i = (size_t)(p * (double)nr);

	return nr ? v[i < nr ? i : nr - 1] : -1;
}

static double median_of(double *v, size_t nr)
{
	qsort(v, nr, sizeof(*v), compare);
	return percentile(v, nr, 0.5);
}

int64_t pf_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

struct pf_ratio pf_ratio(double *ratios, unsigned nr)
{
	double median = median_of(ratios, nr);

	return (struct pf_ratio){ median, ratios[0], ratios[nr - 1] };
}

/* Warms up, and finds the number of runs that fills GROUP_NS; *took = ns per run, about. The first
 * run connects, and caches are cold. */
static int calibrate(struct pf_side *side, unsigned *group, double *took)
{
	int64_t end = now_ns() + STRETCH_NS;

	do {
		int err = side->run(side->arg, 1);

		if (err)
			return err;
	} while (now_ns() < end);
	for (unsigned n = 1;; n *= 2) {
		int64_t start = now_ns();
		int err = side->run(side->arg, n);
		int64_t ns = now_ns() - start;

		if (err)
			return err;
		if (ns >= GROUP_NS * 4 || n >= 1u << 20) {
			*took = (double)ns / n;
			*group = *took >= GROUP_NS
				? 1
				: (unsigned)(GROUP_NS / (*took > 0.01 ? *took : 0.01)) + 1;
			return 0;
		}
	}
}

static int stretch(struct pf_side *side, struct samples *s, unsigned group, unsigned nr, size_t max)
{
	double per = (double)group * (side->per_run ? side->per_run : 1);

	for (unsigned i = 0; i < nr && s->nr < max; i++) {
		int64_t start = now_ns();
		int err = side->run(side->arg, group);
		double ns = (double)(now_ns() - start) / per;

		if (err)
			return err;
		s->v[s->nr++] = ns;
		s->sum += ns * per;
	}
	return 0;
}

static double round_median(const struct samples *s, double *scratch)
{
	size_t nr = s->nr - s->first;

	memcpy(scratch, s->v + s->first, nr * sizeof(*scratch));
	return median_of(scratch, nr);
}

static void counters(struct rref_ctx *ctx, struct rref_stats *out)
{
	*out = (struct rref_stats){ .size = sizeof(*out) };
	rref_get_stats(ctx, out);
}

int pf_measure(const struct pf_config *cfg, struct rref_ctx *ctx, struct pf_side *lib,
	       struct pf_side *raw, struct pf_row *row)
{
	struct pf_side *side[2] = { lib, raw };
	struct samples s[2] = { 0 };
	double took[2] = { 0 }, *scratch = malloc(SAMPLES_MAX * sizeof(double)),
	       *ratios = calloc(cfg->rounds, sizeof(double));
	unsigned nr_sides = raw ? 2 : 1, group[2], per = lib->per_run ? lib->per_run : 1;
	int64_t cpu = 0, round_ns = (int64_t)(cfg->seconds * 1e9 / cfg->rounds);
	struct rref_stats before = { 0 }, after = { 0 };
	double reads = 0, doorbells = 0;
	int err = -ENOMEM;

	for (unsigned k = 0; k < nr_sides; k++)
		s[k].v = malloc(SAMPLES_MAX * sizeof(double));
	if (!scratch || !ratios || !s[0].v || (raw && !s[1].v))
		goto out;
	for (unsigned k = 0; k < nr_sides; k++) {
		err = calibrate(side[k], &group[k], &took[k]);
		if (err)
			goto out;
	}
	for (unsigned r = 0; r < cfg->rounds; r++) {
		int64_t end = now_ns() + round_ns;
		size_t most = SAMPLES_MAX / cfg->rounds * (r + 1);

		for (unsigned k = 0; k < nr_sides; k++)
			s[k].first = s[k].nr;
		do {
			for (unsigned k = 0; k < nr_sides && !err; k++) {
				double many = STRETCH_NS / (took[k] * group[k]);
				int64_t c = pf_cpu_ns();

				if (k == 0)
					counters(ctx, &before);
				err = stretch(side[k], &s[k], group[k],
					      many < 2 ? 2 : (unsigned)many, most);
				if (k == 0) {
					cpu += pf_cpu_ns() - c;
					counters(ctx, &after);
					reads += (double)(after.reads - before.reads);
					doorbells += (double)(after.doorbells - before.doorbells);
				}
			}
			if (err)
				goto out;
		} while (now_ns() < end && max_of(s[0].nr, s[1].nr) < most);
		if (raw)
			ratios[r] = round_median(&s[0], scratch) / round_median(&s[1], scratch);
	}
	double done = (double)s[0].nr * group[0] * per;

	row->iters = (uint64_t)done;
	row->rounds = cfg->rounds;
	row->group = group[0] * per;
	row->cpu = (double)cpu / done;
	row->rate = done / (s[0].sum * 1e-9);
	row->bandwidth = row->bytes ? row->rate * (double)row->bytes : -1;
	row->reads = reads / done;
	row->doorbells = doorbells / done;
	qsort(s[0].v, s[0].nr, sizeof(double), compare);
	row->p50 = percentile(s[0].v, s[0].nr, 0.5);
	row->p99 = percentile(s[0].v, s[0].nr, 0.99);
	row->p999 = percentile(s[0].v, s[0].nr, 0.999);
	if (raw) {
		double raw_done = (double)s[1].nr * group[1] * (raw->per_run ? raw->per_run : 1);

		row->raw_rate = raw_done / (s[1].sum * 1e-9);
		row->raw_bandwidth = row->bytes ? row->raw_rate * (double)row->bytes : -1;
		qsort(s[1].v, s[1].nr, sizeof(double), compare);
		row->raw_p50 = percentile(s[1].v, s[1].nr, 0.5);
		row->raw_p99 = percentile(s[1].v, s[1].nr, 0.99);
		row->raw_p999 = percentile(s[1].v, s[1].nr, 0.999);
		row->ratio = pf_ratio(ratios, cfg->rounds);
	}
out:
	free(scratch);
	free(ratios);
	free(s[0].v);
	free(s[1].v);
	return err;
}
