/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tails of single operations: p99 and p99.9 beside a noise, and without it. Quiet and noisy
 * stretches come in turn, and the ratios are taken inside each round, as in measure.c. Each
 * operation is timed alone, so a reading of the clock is part of each.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "pf.h"

/* Steps of a bucket's width in each power of two: 1.6 % are told apart. */
#define STEPS_SHIFT 6
#define STEPS (1u << STEPS_SHIFT)
#define BUCKETS (STEPS * 36u)
/* A stretch with fewer operations takes longer, but at most so many times as long. */
#define FEWEST 100
#define LONGEST 5

struct tails {
	uint64_t nr[BUCKETS], all;
	double sum;
};

static unsigned bucket(uint64_t ns)
{
	if (ns < STEPS)
		return (unsigned)ns;
	unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - STEPS_SHIFT;
	uint64_t i = STEPS * (shift + 1) + ((ns >> shift) - STEPS);

	return (unsigned)min_of(i, (uint64_t)BUCKETS - 1);
}

/* Returns the middle of a bucket. */
static double middle(unsigned i)
{
	if (i < STEPS)
		return i;
	unsigned shift = i / STEPS - 1;

	return ((double)(i % STEPS + STEPS) + 0.5) * (double)(UINT64_C(1) << shift);
}

static double share_below(const struct tails *t, double p)
{
	uint64_t seen = 0, rank = (uint64_t)(p * (double)t->all);

	for (unsigned i = 0; i < BUCKETS; i++) {
		seen += t->nr[i];
		if (seen > rank)
			return middle(i);
	}
	return -1;
}

static void add_up(struct tails *to, const struct tails *from)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		to->nr[i] += from->nr[i];
	to->all += from->all;
	to->sum += from->sum;
}

/* Does the operation for so long. Each reading of the clock ends one and begins the next. */
static int timed_stretch(const struct pf_side *side, struct tails *t, int64_t ns)
{
	int64_t begin = now_ns(), before = begin, after;

	*t = (struct tails){ 0 };
	do {
		int err = side->run(side->arg, 1);

		if (err)
			return err;
		after = now_ns();
		t->nr[bucket((uint64_t)(after - before))]++;
		t->all++;
		before = after;
	} while (after - begin < ns || (t->all < FEWEST && after - begin < ns * LONGEST));
	t->sum = (double)(after - begin);
	return 0;
}

static int noisy_stretch(const struct pf_side *side, const struct pf_noise *noise, struct tails *t,
			 int64_t ns)
{
	int err = noise->begin(noise->arg);

	if (err)
		return err;
	err = timed_stretch(side, t, ns);
	int over = noise->end(noise->arg);

	return err ? err : over;
}

static void fill_row(struct pf_row *row, const struct tails *noisy, const struct tails *quiet)
{
	row->iters = noisy->all;
	row->group = 1;
	row->p50 = share_below(noisy, 0.5);
	row->p99 = share_below(noisy, 0.99);
	row->p999 = share_below(noisy, 0.999);
	row->rate = (double)noisy->all / (noisy->sum * 1e-9);
	row->raw_p50 = share_below(quiet, 0.5);
	row->raw_p99 = share_below(quiet, 0.99);
	row->raw_p999 = share_below(quiet, 0.999);
	row->raw_rate = (double)quiet->all / (quiet->sum * 1e-9);
}

/* The ratios of each round: of p50, p99 and p99.9. */
static const double of[] = { 0.5, 0.99, 0.999 };

int pf_tails(const struct pf_config *cfg, const struct pf_side *side, const struct pf_noise *noise,
	     struct pf_row *row)
{
	int64_t ns = (int64_t)(cfg->seconds * 1e9 / cfg->rounds / 2), cpu = 0;
	struct tails *t = calloc(4, sizeof(*t)), *quiet = t, *noisy = t + 1;
	double *ratios = calloc(array_size(of) * cfg->rounds, sizeof(*ratios));
	int err = t && ratios ? 0 : pf_say(-ENOMEM, "a histogram");

	if (!err)
		err = timed_stretch(side, quiet, ns / 10);
	for (unsigned r = 0; !err && r < cfg->rounds; r++) {
		err = timed_stretch(side, quiet, ns);
		int64_t before = pf_cpu_ns();

		if (!err)
			err = noisy_stretch(side, noise, noisy, ns);
		cpu += pf_cpu_ns() - before;
		for (unsigned i = 0; !err && i < array_size(of); i++)
			ratios[i * cfg->rounds + r] =
				share_below(noisy, of[i]) / share_below(quiet, of[i]);
		add_up(&t[2], quiet);
		add_up(&t[3], noisy);
	}
	if (!err) {
		fill_row(row, &t[3], &t[2]);
		row->rounds = cfg->rounds;
		row->cpu = (double)cpu / (double)row->iters;
		row->ratio = pf_ratio(ratios, cfg->rounds);
		row->of_p99 = pf_ratio(ratios + cfg->rounds, cfg->rounds);
		row->of_p999 = pf_ratio(ratios + 2 * cfg->rounds, cfg->rounds);
	}
	free(t);
	free(ratios);
	return err;
}
