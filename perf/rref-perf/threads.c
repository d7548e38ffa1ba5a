/* SPDX-License-Identifier: Apache-2.0 */
/*
 * threads: 1, 2, 4 and 8 threads that read at once, each a value of its own (--same: one value).
 * They read by to_here, by to_here_async with a window in flight, and raw. A raw thread has a queue
 * pair of its own. The stretches of all these come in turn.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

enum way {
	ONE_BY_ONE,
	IN_FLIGHT,
	RAW,
	NR_WAYS,
	LEAVE = NR_WAYS,
};

static const unsigned counts[] = { 1, 2, 4, PF_THREADS_MAX };
#define NR_COUNTS array_size(counts)

struct crew;

struct member {
	_Alignas(128) struct crew *crew;
	unsigned index;
	pthread_t thread;
	struct pf_reader reader;
	struct rref *own; /* the value that is its own, where it reads that of all */
	uint64_t done; /* reads of this turn */
	int err;
};

/* The stretches of one way with so many threads. */
struct tally {
	double *rate; /* reads per second in each round */
	uint64_t reads;
	int64_t cpu;
};

/* The threads and their turns: guarded by the mutex, but for stop. */
struct crew {
	pthread_mutex_t mutex;
	pthread_cond_t called, idle;
	unsigned turn, wanted, running;
	enum way way;
	_Alignas(128) atomic_bool stop;
	struct member member[PF_THREADS_MAX];
	unsigned nr; /* threads that were made */
	unsigned rounds;
	struct rref *same; /* the value of all, or NULL */
	struct tally tally[NR_WAYS][NR_COUNTS];
	double *scratch; /* a number for each round */
};

/* Reads until it is told to stop, a few times at least. */
static void reads(struct member *m, enum way way)
{
	struct pf_reader *r = &m->reader;
	unsigned step = way == IN_FLIGHT ? 4 * r->window : 8;

	m->done = 0;
	do {
		if (way == ONE_BY_ONE)
			m->err = pf_reads(r->ref, step);
		else if (way == IN_FLIGHT)
			m->err = pf_in_flight(r, step);
		else
			m->err = pf_raw_read(r->raw, step);
		m->done += step;
	} while (!m->err && !atomic_load_explicit(&m->crew->stop, memory_order_relaxed));
}

static void *works(void *arg)
{
	struct member *m = arg;
	struct crew *c = m->crew;

	for (unsigned turn = 0;;) {
		pthread_mutex_lock(&c->mutex);
		while (c->turn == turn)
			pthread_cond_wait(&c->called, &c->mutex);
		turn = c->turn;
		enum way way = c->way;
		bool wanted = m->index < c->wanted;

		pthread_mutex_unlock(&c->mutex);
		if (way == LEAVE)
			return NULL;
		if (!wanted)
			continue;
		reads(m, way);
		pthread_mutex_lock(&c->mutex);
		if (--c->running == 0)
			pthread_cond_signal(&c->idle);
		pthread_mutex_unlock(&c->mutex);
	}
}

static void call_crew(struct crew *c, enum way way, unsigned wanted)
{
	pthread_mutex_lock(&c->mutex);
	atomic_store(&c->stop, false);
	c->way = way;
	c->wanted = c->running = wanted;
	c->turn++;
	pthread_cond_broadcast(&c->called);
	pthread_mutex_unlock(&c->mutex);
}

/* Lets so many threads read for a while. Adds up in t, with the rate of all in this round. */
static int crew_reads(struct crew *c, enum way way, unsigned wanted, int64_t ns, unsigned round,
		      struct tally *t)
{
	struct timespec pause = { .tv_sec = ns / NSEC_PER_SEC, .tv_nsec = ns % NSEC_PER_SEC };
	int64_t begin = now_ns(), cpu = pf_cpu_ns();
	uint64_t done = 0;
	int err = 0;

	call_crew(c, way, wanted);
	nanosleep(&pause, NULL);
	atomic_store(&c->stop, true);
	pthread_mutex_lock(&c->mutex);
	while (c->running)
		pthread_cond_wait(&c->idle, &c->mutex);
	pthread_mutex_unlock(&c->mutex);
	for (unsigned i = 0; i < wanted; i++) {
		done += c->member[i].done;
		err = err ? err : c->member[i].err;
	}
	t->rate[round] = (double)done / ((double)(now_ns() - begin) * 1e-9);
	t->reads += done;
	t->cpu += pf_cpu_ns() - cpu;
	return err;
}

static int member_open(const struct pf_config *cfg, struct rref_ctx *ctx, size_t bytes,
		       struct crew *c)
{
	struct member *m = &c->member[c->nr];

	m->crew = c;
	m->index = c->nr;
	int err = pf_reader_open(cfg, ctx, bytes, m->index, &m->reader);

	if (!err && c->same) {
		m->own = m->reader.ref;
		m->reader.ref = c->same;
	}
	if (!err)
		err = pf_say(-pthread_create(&m->thread, NULL, works, m), "a thread");
	if (err)
		pf_reader_close(&m->reader);
	else
		c->nr++;
	return err;
}

static int crew_open(const struct pf_config *cfg, struct rref_ctx *ctx, size_t bytes,
		     struct crew *c)
{
	pthread_mutex_init(&c->mutex, NULL);
	pthread_cond_init(&c->called, NULL);
	pthread_cond_init(&c->idle, NULL);
	c->rounds = cfg->rounds;
	c->scratch = calloc(cfg->rounds, sizeof(double));
	int err = c->scratch ? 0 : pf_say(-ENOMEM, "rates");

	for (unsigned i = 0; i < NR_WAYS * NR_COUNTS; i++) {
		struct tally *t = &c->tally[i / NR_COUNTS][i % NR_COUNTS];

		t->rate = calloc(cfg->rounds, sizeof(double));
		if (!t->rate)
			err = pf_say(-ENOMEM, "rates");
	}
	if (!err && cfg->same)
		err = pf_value(ctx, bytes, &c->same);
	while (!err && c->nr < PF_THREADS_MAX)
		err = member_open(cfg, ctx, bytes, c);
	return err;
}

static void crew_close(struct crew *c)
{
	call_crew(c, LEAVE, 0);
	for (unsigned i = 0; i < c->nr; i++) {
		struct member *m = &c->member[i];

		pthread_join(m->thread, NULL);
		if (c->same)
			m->reader.ref = m->own;
		pf_reader_close(&m->reader);
	}
	for (unsigned i = 0; i < NR_WAYS * NR_COUNTS; i++)
		free(c->tally[i / NR_COUNTS][i % NR_COUNTS].rate);
	rref_release(c->same);
	free(c->scratch);
}

/* Returns the ratio of two rates, round by round. */
static struct pf_ratio of(struct crew *c, const struct tally *a, const struct tally *b)
{
	for (unsigned r = 0; r < c->rounds; r++)
		c->scratch[r] = a->rate[r] / b->rate[r];
	return pf_ratio(c->scratch, c->rounds);
}

static struct pf_ratio ns_each(struct crew *c, const struct tally *t)
{
	for (unsigned r = 0; r < c->rounds; r++)
		c->scratch[r] = 1e9 / t->rate[r];
	return pf_ratio(c->scratch, c->rounds);
}

/* Tells one way with counts[k] threads. A time is that of one read among those of all threads. */
static void tell_crew(const struct pf_config *cfg, struct crew *c, enum way way, unsigned k,
		      struct pf_row *row)
{
	const struct tally *t = c->tally[way], *raw = c->tally[RAW];
	struct pf_ratio ns = ns_each(c, &t[k]), raw_ns = ns_each(c, &raw[k]);

	row->way = way == ONE_BY_ONE ? "to_here" : "to_here_async";
	row->window = way == IN_FLIGHT ? cfg->window : 0;
	row->raw = pf_raw_name(c->member[0].reader.raw);
	row->threads = counts[k];
	row->iters = t[k].reads;
	row->rounds = c->rounds;
	row->group = 1;
	row->cpu = (double)t[k].cpu / (double)t[k].reads;
	row->p50 = ns.median;
	row->p99 = row->p999 = ns.high;
	row->rate = 1e9 / ns.median;
	row->raw_p50 = raw_ns.median;
	row->raw_p99 = row->raw_p999 = raw_ns.high;
	row->raw_rate = 1e9 / raw_ns.median;
	row->ratio = of(c, &raw[k], &t[k]);
	row->of_one = of(c, &t[k], &t[0]);
	row->of_two = of(c, &t[k], &t[1]);
	row->raw_of_one = of(c, &raw[k], &raw[0]);
	pf_out(cfg, row);
}

static int measure_crew(const struct pf_config *cfg, struct crew *c)
{
	int64_t ns = (int64_t)(cfg->seconds * 1e9 / cfg->rounds / (NR_WAYS * NR_COUNTS));
	double unused;
	int err = 0;

	/* Warms up: the first reads connect, and fill caches. */
	for (unsigned way = 0; !err && way < NR_WAYS; way++)
		err = crew_reads(c, way, PF_THREADS_MAX, ns, 0, &(struct tally){ .rate = &unused });
	for (unsigned r = 0; r < cfg->rounds; r++)
		for (unsigned way = 0; way < NR_WAYS; way++)
			for (unsigned k = 0; !err && k < NR_COUNTS; k++)
				err = crew_reads(c, way, counts[k], ns, r, &c->tally[way][k]);
	return err;
}

int pf_threads(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	int err = 0;
	size_t bytes;

	for (unsigned i = 0; !err && (bytes = pf_size(cfg, op, i)); i++) {
		struct crew *c = aligned_alloc(_Alignof(struct crew), sizeof(*c));
		struct pf_row row;

		if (!c)
			return pf_say(-ENOMEM, "threads");
		memset(c, 0, sizeof(*c));
		err = crew_open(cfg, ctx, bytes, c);
		if (!err)
			err = measure_crew(cfg, c);
		for (unsigned j = 0; !err && j < RAW * NR_COUNTS; j++) {
			pf_row_init(&row, op->name, pf_reached_by(ctx, 0), bytes);
			tell_crew(cfg, c, j / NR_COUNTS, j % NR_COUNTS, &row);
		}
		crew_close(c);
		free(c);
	}
	return err;
}
