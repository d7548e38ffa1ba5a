/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures the library's own ceiling over ibv: reads of 8 B over fake devices, whose READs take no
 * time. All workers are contexts of this process. See say_usage().
 *
 * threads: 1, 2, 4 and 8 threads of one worker read values of their own, or one value. The raw rows
 * are threads that post and poll by hand, each on a queue pair of its own. They tell the share of
 * the fake device itself. The rows take turns in each round.
 *
 * busy: the tail of reads beside everything else that a worker may have to do (fake_busy.c).
 */
#include <pthread.h>

#include "base/atomic.h"
#include "fake.h"

#define ROUND_NS (200 * NSEC_PER_MSEC)
#define ROUNDS_MAX 100
#define THREADS_MAX 8

enum way { OWN,
	   SAME,
	   RAW,
	   NR_WAYS };

static const char *names[NR_WAYS] = { "own values", "one value", "raw" };
static const unsigned counts[] = { 1, 2, 4, THREADS_MAX };
#define NR_COUNTS array_size(counts)

static struct fg g;
static struct rref *refs[THREADS_MAX];
static struct fr_pair raw[THREADS_MAX];
static _Atomic bool over;

int pf_say(int err, const char *what)
{
	if (err)
		fprintf(stderr, "rref-fake: %s: %s\n", what, rref_strerror(err));
	return err;
}

struct member {
	cache_aligned pthread_t thread;
	enum way way;
	unsigned index;
	uint64_t reads;
};

static void read_lib(struct member *m)
{
	struct rref *ref = refs[m->way == SAME ? 0 : m->index];

	for (m->reads = 0; !over; m->reads++) {
		struct rref_view *v;

		TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
		rref_view_free(v);
	}
}

static void read_raw(struct member *m)
{
	struct fr_pair *p = &raw[m->index];

	for (m->reads = 0; !over; m->reads++) {
		struct ibv_wc wc;

		TG_IS(fr_read(&p->a, &p->b, m->reads, 0, 8), 0);
		while (!ibv_poll_cq(p->a.cq, 1, &wc))
			;
		TG_IS(wc.status, 0);
	}
}

static void *read_beside(void *arg)
{
	struct member *m = arg;

	if (m->way == RAW)
		read_raw(m);
	else
		read_lib(m);
	return NULL;
}

/* Returns reads a second of one row in one round. */
static double measure_row(enum way way, unsigned n)
{
	struct member m[THREADS_MAX];
	int64_t start = now_ns();
	uint64_t sum = 0;

	over = false;
	for (unsigned i = 0; i < n; i++) {
		m[i] = (struct member){ .way = way, .index = i };
		TG_IS(pthread_create(&m[i].thread, NULL, read_beside, &m[i]), 0);
	}
	usleep((useconds_t)(ROUND_NS / NSEC_PER_USEC));
	over = true;
	for (unsigned i = 0; i < n; i++) {
		pthread_join(m[i].thread, NULL);
		sum += m[i].reads;
	}
	return (double)sum * (double)NSEC_PER_SEC / (double)(now_ns() - start);
}

typedef double rates[NR_WAYS][NR_COUNTS][ROUNDS_MAX];

/* Returns the ratio of two rates, round by round. NULL: 1e9. */
static struct pf_ratio ratio_of(const double *a, const double *b, unsigned rounds)
{
	double ratios[ROUNDS_MAX];

	for (unsigned k = 0; k < rounds; k++)
		ratios[k] = (a ? a[k] : 1e9) / b[k];
	return pf_ratio(ratios, rounds);
}

/* Tells a row. A time is that of one read among those of all threads. */
static void tell_row(const struct pf_config *cfg, rates r, enum way way, unsigned k)
{
	struct pf_ratio ns = ratio_of(NULL, r[way][k], cfg->rounds);
	struct pf_ratio raw_ns = ratio_of(NULL, r[RAW][k], cfg->rounds);
	struct pf_row row;

	pf_row_init(&row, "threads", "fake", 8);
	row.way = names[way];
	row.raw = names[RAW];
	row.threads = counts[k];
	row.rounds = cfg->rounds;
	row.iters = (uint64_t)(1e9 / ns.median);
	row.group = 1;
	row.p50 = ns.median;
	row.p99 = row.p999 = ns.high;
	row.rate = 1e9 / ns.median;
	row.raw_p50 = raw_ns.median;
	row.raw_p99 = row.raw_p999 = raw_ns.high;
	row.raw_rate = 1e9 / raw_ns.median;
	row.ratio = ratio_of(r[RAW][k], r[way][k], cfg->rounds);
	row.of_one = ratio_of(r[way][k], r[way][0], cfg->rounds);
	row.of_two = ratio_of(r[way][k], r[way][1], cfg->rounds);
	row.raw_of_one = ratio_of(r[RAW][k], r[RAW][0], cfg->rounds);
	if (cfg->json)
		pf_out(cfg, &row);
	else
		printf("  %-28s %u thread%c %10.0f reads/s, %5.2f of one thread, %5.2f of two "
		       "(%.2f to %.2f), raw %5.2f of one\n",
		       row.way, row.threads, row.threads > 1 ? 's' : ' ', row.rate,
		       row.of_one.median, row.of_two.median, row.of_two.low, row.of_two.high,
		       row.raw_of_one.median);
}

/* Joins the group, makes the values, connects the raw pairs. */
static void make_all(int owners)
{
	g.world = owners + 1;
	fg_join(&g);
	for (int i = 0; i < THREADS_MAX; i++) {
		refs[i] = fg_value(&g, 1 + i % owners, 0, 8, (unsigned)i);
		fr_pair_up(&raw[i], false,
			   (struct fr_times){ .timeout = 14, .retry = 6, .rnr_retry = 7 });
	}
}

static void unmake_all(void)
{
	for (int i = 0; i < THREADS_MAX; i++) {
		fr_pair_down(&raw[i]);
		rref_release(refs[i]);
	}
	fg_leave(&g);
}

static void measure_threads(const struct pf_config *cfg, int owners)
{
	static rates r;

	if (owners > 1)
		names[OWN] = "own values of several owners";
	make_all(owners);
	for (unsigned round = 0; round < cfg->rounds; round++)
		for (unsigned way = 0; way < NR_WAYS; way++)
			for (unsigned k = 0; k < NR_COUNTS; k++)
				r[way][k][round] = measure_row(way, counts[k]);
	if (!cfg->json)
		printf("8 B reads, fake devices without delay, owners: %d, medians of %u rounds\n",
		       owners, cfg->rounds);
	for (unsigned way = 0; way < RAW; way++)
		for (unsigned k = 0; k < NR_COUNTS; k++)
			tell_row(cfg, r, way, k);
	unmake_all();
}

static int say_usage(void)
{
	fprintf(stderr, "rref-fake [--json] [threads [OWNERS 1 to 7 [ROUNDS 1 to %d]]]\n"
			"rref-fake [--json] busy [SECONDS]\n",
		ROUNDS_MAX);
	return 2;
}

int main(int argc, char **argv)
{
	struct pf_config cfg = { .rounds = 5, .seconds = 10, .freed = 1 << 30 };
	int owners = 1;

	if (argc > 1 && !strcmp(argv[1], "--json")) {
		cfg.json = true;
		argc--;
		argv++;
	}
	for (unsigned i = 0; i < FV_DEVICES; i++)
		fv_knobs(i)->delay_ns = 0;
	if (argc > 1 && !strcmp(argv[1], "busy")) {
		cfg.seconds = argc > 2 ? atof(argv[2]) : cfg.seconds;
		return cfg.seconds > 0 && argc < 4 ? fake_busy(&cfg) : say_usage();
	}
	if (argc > 1 && strcmp(argv[1], "threads"))
		return say_usage();
	owners = argc > 2 ? atoi(argv[2]) : owners;
	cfg.rounds = argc > 3 ? (unsigned)atoi(argv[3]) : cfg.rounds;
	if (owners < 1 || owners > 7 || !cfg.rounds || cfg.rounds > ROUNDS_MAX || argc > 4)
		return say_usage();
	measure_threads(&cfg, owners);
	return 0;
}
