/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moments that rarely meet, made to meet: an end comes between two steps of another thread. White
 * box, over shm with every device under test.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "tg.h"

static _Atomic int ran;

static bool ran_enough(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&ran) >= *(int *)arg;
}

static bool nothing_in_flight(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	return s.ops_in_flight == 0 && s.landing_bytes == 0 && s.quarantined == 0;
}

static struct rref_ctx *join(int rank, const struct rref_function *fns, size_t nr)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.device = "shm";
	o.functions = fns ? fns : tg_functions;
	o.nr_functions = fns ? nr : tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

/* ---- the worker pool ---- */

static _Atomic int inside;

/* Ends when `arg` handlers are inside at once. */
static int meet(struct rref_call *call, void *arg)
{
	int64_t end = now_ns() + 5 * NSEC_PER_SEC;

	(void)call;
	atomic_fetch_add(&inside, 1);
	while (atomic_load(&inside) < *(int *)arg) {
		if (now_ns() > end)
			return -ETIMEDOUT;
		usleep(200);
	}
	return 0;
}

static int nothing(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return 0;
}

TG_TEST(handlers__run_side_by_side_when_they_come_at_once, 1)
{
	int all = 4;
	struct rref_function fns[] = { { .name = "meet", .handler = meet, .arg = &all },
				       { .name = "nothing", .handler = nothing } };
	struct rref_ctx *ctx = join(rank, fns, array_size(fns));
	struct rref_future *f[4];

	/* The pool has one idle thread now. */
	TG_OK(rref_rpc_sync(ctx, 0, "nothing", NULL, RREF_DEFAULT, NULL));
	usleep(20000);
	for (int i = 0; i < all; i++)
		TG_OK(rref_rpc_async(ctx, 0, "meet", NULL, RREF_DEFAULT, &f[i]));
	for (int i = 0; i < all; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- callbacks ---- */

static _Atomic int other_ran;

static void wait_for_the_other(struct rref_future *f, void *arg)
{
	struct rref_ctx *ctx = arg;
	int64_t end = now_ns() + 5 * NSEC_PER_SEC;

	(void)f;
	if (atomic_fetch_add(&other_ran, 1) == 0)
		while (atomic_load(&other_ran) < 2 && now_ns() < end)
			rref_rpc_sync(ctx, 0, "nothing", NULL, RREF_DEFAULT, NULL);
	if (atomic_load(&other_ran) >= 2)
		atomic_fetch_add(&ran, 1);
}

/* Both end under one hold of the lock: the first one may need the result of the other. */
TG_TEST(callback__waits_and_others_run, 1)
{
	struct rref_function fns[] = { { .name = "nothing", .handler = nothing } };
	struct rref_ctx *ctx = join(rank, fns, array_size(fns));
	struct rref_future *f[2];
	struct rref *r[2];
	void *data;

	for (int i = 0; i < 2; i++) {
		TG_OK(rref_alloc(ctx, 8, &r[i], &data));
		TG_OK(rref_to_here_async(r[i], RREF_DEFAULT, &f[i]));
		TG_OK(rref_future_then(f[i], wait_for_the_other, ctx));
	}
	rc_lock(ctx);
	for (int i = 0; i < 2; i++)
		rc_op_end(ctx, f[i], -ECANCELED, "cancelled");
	rc_unlock(ctx);
	TG_CHECK(tg_eventually(ran_enough, ctx, &(int){ 2 }));
	for (int i = 0; i < 2; i++) {
		rref_future_free(f[i]);
		TG_OK(rref_set(r[i]));
		rref_release(r[i]);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- sleeping ---- */

static bool nobody_kicks(struct rref_ctx *ctx, void *arg)
{
	struct pollfd p = { .fd = ctx->sleep.kickfd, .events = POLLIN };

	(void)arg;
	return poll(&p, 1, 0) == 0;
}

/* A kick is announced first, and written later. If the sleeper wakes before the write, nothing
 * tells of the kick any more. */
TG_TEST(kick__written_late_lets_the_poller_sleep, 1)
{
	struct rref_ctx *ctx = join(rank, NULL, 0);
	uint64_t one = 1;

	TG_IS(write(ctx->sleep.kickfd, &one, sizeof(one)), sizeof(one));
	if (ctx->turns.mode == RREF_PROGRESS_AUTO)
		TG_CHECK(tg_eventually(nobody_kicks, ctx, NULL));
	if (ctx->turns.mode == RREF_PROGRESS_MANUAL) {
		while (rref_ctx_arm(ctx))
			rref_progress(ctx);
		rref_progress(ctx);
		TG_CHECK(nobody_kicks(ctx, NULL));
	}
	tg_finish(ctx);
	return 0;
}

static void *call_often(void *ctx)
{
	for (int i = 0; i < 100; i++)
		TG_OK(rref_rpc_sync(ctx, 1, "slow", NULL, RREF_DEFAULT, NULL));
	return NULL;
}

static int slow(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	usleep(300); /* longer than a waiter spins */
	return 0;
}

/* A waiter sleeps on the devices when there is no poller. Another
 * takes over when its call has ended. */
TG_TEST(waiters__without_a_poller_take_turns, 2)
{
	struct rref_function fns[] = { { .name = "slow", .handler = slow } };
	struct rref_options o;
	struct rref_ctx *ctx;
	pthread_t t[4];

	tg_options(&o, rank);
	o.device = "shm";
	o.mode = rank ? o.mode : RREF_PROGRESS_MANUAL;
	o.functions = fns;
	o.nr_functions = array_size(fns);
	TG_OK(rref_init(&o, &ctx));
	if (rank == 0) {
		for (int i = 0; i < 4; i++)
			TG_IS(pthread_create(&t[i], NULL, call_often, ctx), 0);
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
	}
	tg_finish(ctx);
	return 0;
}

static void *read_thrice(void *ref)
{
	struct rref_view *v;

	for (int i = 0; i < 3; i++) {
		TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), 8);
		rref_view_free(v);
	}
	return NULL;
}

/* Some threads wait for the value, some find it ready. One publishes
 * it, and the others read without the lock. */
TG_TEST(set__while_threads_begin_to_read, 1)
{
	struct rref_ctx *ctx = join(rank, NULL, 0);

	for (int round = 0; round < 100; round++) {
		pthread_t t[3];
		struct rref *r;
		void *data;

		TG_OK(rref_alloc(ctx, 8, &r, &data));
		for (int i = 0; i < 3; i++)
			TG_IS(pthread_create(&t[i], NULL, read_thrice, r), 0);
		usleep((unsigned)round * 3);
		TG_OK(rref_set(r));
		for (int i = 0; i < 3; i++)
			pthread_join(t[i], NULL);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- leaving while others begin ---- */

struct begun {
	struct rref_ctx *ctx;
	struct rref *ref;
	int what, result;
	_Atomic int started;
};

static void *begin(void *arg)
{
	struct begun *b = arg;
	struct rref_future *f = NULL;
	struct rref_view *v = NULL;
	struct rref *r = NULL;

	atomic_store(&b->started, 1);
	switch (b->what) {
	case 0:
		b->result = rref_rpc_sync(b->ctx, 0, "tg.echo", NULL, RREF_FOREVER, NULL);
		break;
	case 1:
		b->result = rref_remote(b->ctx, 0, "tg.echo", NULL, RREF_FOREVER, &r);
		break;
	case 2:
		b->result = rref_to_here(b->ref, RREF_FOREVER, &v);
		break;
	case 3:
		b->result = rref_rpc_sync(b->ctx, 1, "tg.echo", NULL, RREF_FOREVER, NULL);
		break;
	case 4:
		b->result = rref_remote(b->ctx, 1, "tg.echo", NULL, RREF_FOREVER, &r);
		break;
	case 5:
		b->result = rref_new(b->ctx, "x", 1, &r);
		break;
	case 6:
		b->result = rref_to_here_async(b->ref, RREF_FOREVER, &f);
		if (!b->result)
			b->result = rref_future_wait(f, RREF_FOREVER);
		break;
	}
	rref_future_free(f);
	rref_view_free(v);
	rref_release(r);
	return NULL;
}

/* A thread comes past the first look, then close_down ends everything. The thread finds that state
 * when it gets the lock. */
TG_TEST(begin__after_everything_was_ended, 2)
{
	struct rref_ctx *ctx = join(rank, NULL, 0);

	if (rank == 0) {
		struct rref *unset;
		void *data;

		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		for (int what = 0; what < 7; what++) {
			struct begun b = { .ctx = ctx, .ref = unset, .what = what, .result = 1 };
			pthread_t t;

			rc_lock(ctx);
			TG_IS(pthread_create(&t, NULL, begin, &b), 0);
			/* The thread is past the first look, and waits for the lock. */
			while (!atomic_load(&b.started))
				usleep(100);
			usleep(20000);
			at_store_rel(&ctx->state, RC_CTX_CLOSING);
			rc_unlock(ctx);
			pthread_join(t, NULL);
			TG_IS(b.result, -ESHUTDOWN);
			at_store_rel(&ctx->state, RC_CTX_RUNNING);
		}
		TG_OK(rref_set(unset));
		rref_release(unset);
		TG_CHECK(tg_eventually(nothing_in_flight, ctx, NULL));
	}
	tg_finish(ctx);
	return 0;
}

static void *read_own(void *arg)
{
	struct rref *r = arg;
	struct rref_view *v;

	while (!rref_to_here(r, RREF_DEFAULT, &v)) {
		TG_CHECK(tg_filled(rref_view_data(v), 64, 0, 3));
		rref_view_free(v);
	}
	return NULL;
}

/* A thread is anywhere in a read of its own value when the context goes. */
TG_TEST(shutdown__while_own_values_are_read, 1)
{
	for (int round = 0; round < 10; round++) {
		struct rref_ctx *ctx = join(rank, NULL, 0);
		unsigned char bytes[64];
		struct rref *r[2];
		pthread_t t[2];

		tg_fill(bytes, sizeof(bytes), 3);
		for (int i = 0; i < 2; i++) {
			TG_OK(rref_new(ctx, bytes, sizeof(bytes), &r[i]));
			TG_IS(pthread_create(&t[i], NULL, read_own, r[i]), 0);
		}
		usleep(1000);
		/* A value lives as long as its handle: a thread may be about to alias it. */
		struct rc_value *v = r[0]->value;

		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		TG_IS(v->view.length, 64);
		for (int i = 0; i < 2; i++) {
			pthread_join(t[i], NULL);
			rref_release(r[i]);
		}
		rref_free_ctx(ctx);
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(handlers__run_side_by_side_when_they_come_at_once),
		cmocka_unit_test(callback__waits_and_others_run),
		cmocka_unit_test(kick__written_late_lets_the_poller_sleep),
		cmocka_unit_test(waiters__without_a_poller_take_turns),
		cmocka_unit_test(set__while_threads_begin_to_read),
		cmocka_unit_test(begin__after_everything_was_ended),
		cmocka_unit_test(shutdown__while_own_values_are_read),
	};

	return cmocka_run_group_tests_name("moments", tests, NULL, NULL);
}
