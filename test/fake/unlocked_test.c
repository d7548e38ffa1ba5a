/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READs that end while another thread has the progress lock and stands still. Each way to read ends
 * all the same: the future, its waiter and its callback. A layer between provider and core keeps
 * the completions back until the lock is taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "test/proc/value/lent.h"
#include "test/roce/read/hold.h"
#include "core/base/lock.h"
#include "fg.h"

#define BATCH 40u /* more than one doorbell takes */

static struct lent lent;

static int give_a_wrap(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *r;
	int err;

	(void)arg;
	lend(ctx, &lent, 100 * KIB, true, 100 * KIB);
	r = wrap(&lent, 0, 100 * KIB);
	err = rref_call_reply(call, &(struct rref_args){ .refs = &r, .nr_refs = 1 });
	rref_release(r);
	return err;
}

static int give_many(struct rref_call *call, void *arg)
{
	(void)arg;
	return fg_give_small(call, BATCH);
}

static void ask_for(struct rref_ctx *ctx, const char *function, struct rref **r, unsigned nr)
{
	struct rref_future *f;

	TG_OK(rref_rpc_sync(ctx, 1, function, NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_wait(f, RREF_FOREVER));
	for (unsigned i = 0; i < nr; i++)
		TG_OK(rref_future_ref(f, i, &r[i]));
	rref_future_free(f);
}

static struct rref *value_of(struct fg *g, size_t length)
{
	struct rref *r = fg_value(g, 1, 0, length, (unsigned)length);

	fg_read(r, length, (unsigned)length);
	return r;
}

static void check_view(struct rref_view *v, size_t length)
{
	fg_check(v, length, (unsigned)length);
}

/* ---- the thread that stands still with the lock ---- */

static atomic_int has_lock, may_go;

static void *stand_still(void *arg)
{
	struct rref_ctx *ctx = arg;

	rc_lock(ctx);
	atomic_store(&has_lock, 1);
	while (!atomic_load(&may_go))
		tg_pause();
	rc_unlock(ctx);
	return NULL;
}

/* ---- the ways to read ---- */

struct way {
	struct rref_ctx *ctx;
	struct rref *one, *large, *wrapped, *many[BATCH];
	atomic_int over; /* threads of the synchronous ways that are through */
};

static void *take_one(void *arg)
{
	struct way *w = arg;
	struct rref_view *v;

	TG_OK(rref_to_here(w->one, RREF_FOREVER, &v));
	check_view(v, 5000);
	atomic_fetch_add(&w->over, 1);
	return NULL;
}

static void *take_range(void *arg)
{
	struct way *w = arg;
	unsigned char buf[300];
	size_t got;

	TG_OK(rref_to_here_into(w->one, buf, 1000, sizeof(buf), RREF_FOREVER, &got));
	TG_IS(got, sizeof(buf));
	TG_CHECK(tg_filled(buf, sizeof(buf), 1000, 5000));
	atomic_fetch_add(&w->over, 1);
	return NULL;
}

static void *take_batch(void *arg)
{
	struct way *w = arg;
	struct rref_view *v[BATCH];
	int status[BATCH];

	TG_IS(rref_to_here_batch(w->many, BATCH, RREF_FOREVER, v, status), (int)BATCH);
	for (unsigned i = 0; i < BATCH; i++)
		check_view(v[i], 64);
	atomic_fetch_add(&w->over, 1);
	return NULL;
}

static void *take_into_batch(void *arg)
{
	struct way *w = arg;
	struct rref_into into[BATCH];
	char buf[BATCH][64];

	for (unsigned i = 0; i < BATCH; i++)
		into[i] = (struct rref_into){ .ref = w->many[i], .buf = buf[i], .length = 64 };
	TG_IS(rref_to_here_into_batch(into, BATCH, RREF_FOREVER), (int)BATCH);
	for (unsigned i = 0; i < BATCH; i++)
		TG_CHECK(tg_filled(buf[i], 64, 0, 64));
	atomic_fetch_add(&w->over, 1);
	return NULL;
}

static void *(*const synchronous[])(void *) = { take_one, take_range, take_batch,
						take_into_batch };

static atomic_int continued;

static void count_on(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	atomic_fetch_add(&continued, 1);
}

/* Returns whether all READs were made, *arg of them at least, and came. */
static bool all_wait(struct rref_ctx *ctx, void *arg)
{
	unsigned n = atomic_load(&nr_held);

	(void)ctx;
	/* No more came while this thread slept. */
	tg_pause();
	return n >= *(unsigned *)arg && n == atomic_load(&nr_held);
}

/* Waits for f in the way that its number chooses. */
static void wait_some_way(struct rref_future *f, int i)
{
	switch (i % 3) {
	case 0:
		TG_OK(rref_future_wait(f, 30 * NSEC_PER_SEC));
		break;
	case 1:
		TG_IS(rref_wait_any(&f, 1, 30 * NSEC_PER_SEC), 0);
		break;
	default:
		TG_OK(rref_wait_all(&f, 1, 30 * NSEC_PER_SEC));
		break;
	}
}

/* Reads in all ways. late: the waiters sleep by the time at which the completions come. */
static void all_ways(struct way *w, bool late)
{
	const int ways = (int)array_size(synchronous);
	struct rref *refs[] = { w->one, w->large, w->wrapped };
	const size_t lengths[] = { 5000, MIB, 100 * KIB };
	pthread_t still, thread[array_size(synchronous)];
	struct rref_future *f[array_size(refs)];
	/* pieces, a payload with its header, and at least a READ of each of the others */
	unsigned asynchronous = 1 + 5 + 2, least = asynchronous + 1 + 2 + 2 + 2;
	struct rref_view *v;

	atomic_store(&has_lock, 0);
	atomic_store(&may_go, 0);
	atomic_store(&continued, 0);
	atomic_store(&w->over, 0);
	hold(w->ctx, MAX_HELD);
	for (unsigned i = 0; i < array_size(refs); i++) {
		TG_OK(rref_to_here_async(refs[i], RREF_FOREVER, &f[i]));
		TG_OK(rref_future_then(f[i], count_on, NULL));
	}
	TG_CHECK(tg_eventually(all_wait, w->ctx, &asynchronous));
	/* Begins one after the other: each has begun before the lock is taken. */
	for (int i = 0; i < ways; i++) {
		unsigned one_more = atomic_load(&nr_held) + 1;

		TG_IS(pthread_create(&thread[i], NULL, synchronous[i], w), 0);
		TG_CHECK(tg_eventually(all_wait, w->ctx, &one_more));
	}
	TG_CHECK(tg_eventually(all_wait, w->ctx, &least));
	if (late)
		usleep(50000);
	TG_IS(pthread_create(&still, NULL, stand_still, w->ctx), 0);
	while (!atomic_load(&has_lock))
		tg_pause();
	release(w->ctx);
	for (unsigned i = 0; i < array_size(refs); i++) {
		wait_some_way(f[i], (int)i);
		TG_OK(rref_future_view(f[i], &v));
		check_view(v, lengths[i]);
		rref_future_free(f[i]);
	}
	for (int i = 0; i < ways; i++)
		TG_IS(pthread_join(thread[i], NULL), 0);
	TG_IS(atomic_load(&w->over), ways);
	for (int64_t end = tg_deadline(); atomic_load(&continued) < (int)array_size(refs);
	     tg_pause())
		TG_CHECK(now_ns() < end);
	/* All of it went on while that thread had the lock. */
	TG_CHECK(at_load(&w->ctx->lock.word) != RC_UNLOCKED && !atomic_load(&may_go));
	atomic_store(&may_go, 1);
	TG_IS(pthread_join(still, NULL), 0);
}

static bool all_over(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	rref_progress(ctx);
	return !s.quarantined && !s.ops_in_flight && !s.landing_bytes && !s.waiting_reads;
}

static void lock__taken_by_a_thread_that_stands_still(void **state)
{
	struct fg g = { .world = 2 };
	struct way w = { 0 };

	(void)state;
	fg_join(&g);
	tg_add(g.ctx[1], "give_wrapped", give_a_wrap, 0);
	tg_add(g.ctx[1], "give_many", give_many, 0);
	w.ctx = g.ctx[0];
	ask_for(w.ctx, "give_wrapped", &w.wrapped, 1);
	ask_for(w.ctx, "give_many", w.many, BATCH);
	w.large = value_of(&g, MIB);
	w.one = value_of(&g, 5000);
	for (int round = 0; round < 6; round++)
		all_ways(&w, round % 2);
	TG_CHECK(tg_eventually(all_over, w.ctx, NULL));
	rref_release(w.one);
	rref_release(w.large);
	rref_release(w.wrapped);
	for (unsigned i = 0; i < BATCH; i++)
		rref_release(w.many[i]);
	until_back(g.ctx[1], &lent);
	give_up(&lent);
	fg_leave(&g);
}

/* ---- a callback that waits for a READ ---- */

static atomic_int in_callback;

/* Reads when another thread has the lock, for longer than a wait spins. */
static void then_read(struct rref_future *f, void *arg)
{
	(void)f;
	atomic_store(&in_callback, 1);
	while (!atomic_load(&has_lock))
		tg_pause();
	take_one(arg);
	atomic_fetch_add(&continued, 1);
}

/* Has another hand take the poller's place, which takes the READ in. */
static void callback__reads_while_the_lock_is_taken(void **state)
{
	struct fg g = { .world = 2, .mode = RREF_PROGRESS_AUTO };
	struct rref *unset;
	struct rref_future *f;
	struct way w = { 0 };
	unsigned one = 1;
	pthread_t still;
	void *data;

	(void)state;
	fg_join(&g);
	w.ctx = g.ctx[0];
	w.one = value_of(&g, 5000);
	for (int round = 0; round < 3; round++) {
		atomic_store(&has_lock, 0);
		atomic_store(&may_go, 0);
		atomic_store(&in_callback, 0);
		atomic_store(&continued, 0);
		TG_OK(rref_alloc(w.ctx, 8, &unset, &data));
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
		TG_OK(rref_future_then(f, then_read, &w));
		hold(w.ctx, MAX_HELD);
		TG_OK(rref_set(unset));
		for (int64_t end = tg_deadline(); !atomic_load(&in_callback); tg_pause())
			TG_CHECK(now_ns() < end);
		TG_IS(pthread_create(&still, NULL, stand_still, w.ctx), 0);
		TG_CHECK(tg_eventually(all_wait, w.ctx, &one));
		usleep(50000);
		release(w.ctx);
		for (int64_t end = tg_deadline(); !atomic_load(&continued); tg_pause())
			TG_CHECK(now_ns() < end);
		TG_CHECK(at_load(&w.ctx->lock.word) != RC_UNLOCKED && !atomic_load(&may_go));
		atomic_store(&may_go, 1);
		TG_IS(pthread_join(still, NULL), 0);
		rref_future_free(f);
		rref_release(unset);
	}
	TG_CHECK(tg_eventually(all_over, w.ctx, NULL));
	rref_release(w.one);
	fg_leave(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(callback__reads_while_the_lock_is_taken),
		cmocka_unit_test(lock__taken_by_a_thread_that_stands_still),
	};

	return cmocka_run_group_tests_name("unlocked", tests, NULL, NULL);
}
