/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations beside a noise of the same worker. call+bulk and read+bulk: another thread keeps large
 * reads of the same peer in flight. read+busy: other threads free large values and serve calls, and
 * workers come and go (visitors.c).
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

/* ---- a stream of large reads ---- */

struct stream {
	struct rref *ref;
	unsigned window;
	struct rref_future **f;
	pthread_t thread;
	sem_t full; /* the first window is in flight, or it failed */
	atomic_bool over;
	int err;
};

static int start_read(struct stream *s, unsigned i)
{
	int err = rref_to_here_async(s->ref, RREF_DEFAULT, &s->f[i % s->window]);

	return err ? pf_say(err, "rref_to_here_async") : 0;
}

static void *streams(void *arg)
{
	struct stream *s = arg;
	unsigned started = 0, taken = 0;

	while (!s->err && started < s->window) {
		s->err = start_read(s, started);
		started += !s->err;
	}
	sem_post(&s->full);
	while (taken < started) {
		int err = pf_take(s->f[taken++ % s->window]);

		s->err = s->err ? s->err : err;
		if (s->err || atomic_load(&s->over))
			continue;
		s->err = start_read(s, started);
		started += !s->err;
	}
	return NULL;
}

static int stream_begins(void *arg)
{
	struct stream *s = arg;

	s->err = 0;
	atomic_store(&s->over, false);
	sem_init(&s->full, 0, 0);
	if (pthread_create(&s->thread, NULL, streams, s))
		return pf_say(-EAGAIN, "a thread");
	while (sem_wait(&s->full))
		;
	return 0;
}

static int stream_ends(void *arg)
{
	struct stream *s = arg;

	atomic_store(&s->over, true);
	pthread_join(s->thread, NULL);
	sem_destroy(&s->full);
	return s->err;
}

/* Measures an operation of the owner beside a stream of its values: window of so many bytes. */
static int beside_stream(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op,
			 const struct pf_side *side, size_t bytes, unsigned window, size_t large)
{
	struct stream s = { .window = window, .f = calloc(window, sizeof(*s.f)) };
	struct pf_noise noise = { stream_begins, stream_ends, &s };
	struct pf_row row;
	int err = s.f ? pf_value(ctx, large, &s.ref) : pf_say(-ENOMEM, "futures");

	pf_row_init(&row, op->name, pf_reached_by(ctx, 0), bytes);
	row.raw = "idle";
	row.window = window;
	if (!err)
		err = pf_tails(cfg, side, &noise, &row);
	if (!err)
		pf_out(cfg, &row);
	rref_release(s.ref);
	free(s.f);
	return err;
}

static int empty_call(void *arg, unsigned n)
{
	while (n--) {
		int err = rref_rpc_sync(arg, 0, "perf.nothing", NULL, RREF_DEFAULT, NULL);

		if (err)
			return pf_say(err, "rref_rpc_sync");
	}
	return 0;
}

int pf_call_bulk(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct pf_side side = { empty_call, ctx, 1 };

	return beside_stream(cfg, ctx, op, &side, 0, 64, 256 << 10);
}

static int small_reads(void *arg, unsigned n)
{
	return pf_reads(arg, n);
}

int pf_read_bulk(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct rref *ref = NULL;
	struct pf_side side = { small_reads, NULL, 1 };
	int err = pf_value(ctx, 8, &ref);

	side.arg = ref;
	if (!err)
		err = beside_stream(cfg, ctx, op, &side, 8, 16, 1 << 20);
	rref_release(ref);
	return err;
}

/* ---- everything else that a worker may have to do ---- */

#define LOST_NS (30 * NSEC_PER_SEC)

struct busy {
	struct rref_ctx *ctx;
	size_t freed; /* bytes of each value that comes and goes */
	pthread_t thread;
	atomic_bool over;
	atomic_uint frees;
	struct rref_future *calls;
	int err;
};

/* Calls of the owner that this worker has served. */
static atomic_uint served;

int pf_serve_count(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	atomic_fetch_add_explicit(&served, 1, memory_order_relaxed);
	return 0;
}

static atomic_bool calls_over;

/* Calls worker {rank} until perf.quiet comes. */
int pf_serve_calls(struct rref_call *call, void *arg)
{
	int32_t rank;

	(void)arg;
	if (rref_call_length(call) != sizeof(rank))
		return -EINVAL;
	memcpy(&rank, rref_call_data(call), sizeof(rank));
	atomic_store(&calls_over, false);
	while (!atomic_load(&calls_over)) {
		int err = rref_rpc_sync(rref_call_context(call), rank, "perf.count", NULL,
					RREF_DEFAULT, NULL);

		if (err)
			return rref_call_error(call, err, "%s", rref_last_error());
	}
	return 0;
}

int pf_serve_quiet(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	atomic_store(&calls_over, true);
	return 0;
}

static void *frees(void *arg)
{
	struct busy *b = arg;

	while (!b->err && !atomic_load(&b->over)) {
		struct rref *ref;
		void *data;

		b->err = pf_say(rref_alloc(b->ctx, b->freed, &ref, &data), "rref_alloc");
		if (b->err)
			break;
		b->err = pf_say(rref_set(ref), "rref_set");
		rref_release(ref);
		atomic_fetch_add(&b->frees, 1);
	}
	return NULL;
}

/* Waits until each kind of noise was heard once. */
static int noise_heard(const struct busy *b, unsigned frees_before, unsigned served_before)
{
	int64_t end = now_ns() + LOST_NS;

	while (atomic_load(&b->frees) == frees_before || atomic_load(&served) == served_before ||
	       !pf_visited()) {
		if (now_ns() > end || rref_future_test(b->calls))
			return pf_say(-ETIMEDOUT, "a free, a call or a visit that was to come");
		usleep(1000);
	}
	return 0;
}

static int busy_ends(void *arg)
{
	struct busy *b = arg;

	pf_visits(false);
	atomic_store(&b->over, true);
	pthread_join(b->thread, NULL);
	int err = pf_ask(b->ctx, 0, "perf.quiet", NULL, 0, NULL, 0);

	if (!err)
		err = pf_say(rref_future_wait(b->calls, RREF_DEFAULT), "perf.calls");
	rref_future_free(b->calls);
	return b->err ? b->err : err;
}

static int busy_begins(void *arg)
{
	struct busy *b = arg;
	unsigned frees_before = atomic_load(&b->frees), served_before = atomic_load(&served);
	int32_t me = rref_rank(b->ctx);
	struct rref_args a = { .data = &me, .length = sizeof(me) };
	int err = pf_say(rref_rpc_async(b->ctx, 0, "perf.calls", &a, RREF_FOREVER, &b->calls),
			 "perf.calls");

	if (err)
		return err;
	atomic_store(&b->over, false);
	if (pthread_create(&b->thread, NULL, frees, b))
		return pf_say(-EAGAIN, "a thread");
	pf_visits(true);
	err = noise_heard(b, frees_before, served_before);
	if (err)
		busy_ends(b);
	return err;
}

int pf_read_busy(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct busy b = { .ctx = ctx, .freed = cfg->freed };
	struct pf_noise noise = { busy_begins, busy_ends, &b };
	struct pf_side side = { small_reads, NULL, 1 };
	struct rref *ref = NULL;
	struct pf_row row;
	int err = pf_value(ctx, 8, &ref);

	side.arg = ref;
	pf_row_init(&row, op->name, pf_reached_by(ctx, 0), 8);
	row.raw = "idle";
	if (!err)
		err = pf_tails(cfg, &side, &noise, &row);
	row.frees = atomic_load(&b.frees);
	row.calls = atomic_load(&served);
	row.sessions = pf_visit_count();
	if (!err)
		pf_out(cfg, &row);
	rref_release(ref);
	return err;
}
