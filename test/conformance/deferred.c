/* SPDX-License-Identifier: Apache-2.0 */
/* Replies that come later, and continuations of a future that completes. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

static _Atomic int ran;

static void count(struct rref_future *f, void *arg)
{
	TG_IS(rref_future_test(f), 1);
	atomic_fetch_add((_Atomic int *)arg, 1);
}

static void count_and_free(struct rref_future *f, void *arg)
{
	atomic_fetch_add((_Atomic int *)arg, 1);
	rref_future_free(f);
}

static bool ran_enough(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&ran) >= *(int *)arg;
}

/* ---- continuations ---- */

TG_TEST(c092_093_a_function_runs_once, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *f = tg_start(ctx, 1, "tg.hold", "x", 1);
		int want = 1;

		TG_OK(rref_future_then(f, count, &ran));
		TG_IS(rref_future_then(f, count, &ran), -EBUSY);
		tg_until_held(ctx, 1, 1);
		TG_IS(atomic_load(&ran), 0);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		TG_IS(rref_future_then(f, count, &ran), -EBUSY);
		usleep(5000);
		rref_future_free(f);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		TG_IS(atomic_load(&ran), 1);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c092_093_of_a_complete_future, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = tg_start(ctx, 1 - rank, "tg.echo", "x", 1);

	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	TG_OK(rref_future_then(f, count, &ran));
	TG_IS(atomic_load(&ran), 1);
	rref_future_free(f);
	TG_IS(atomic_load(&ran), 1);
	tg_finish(ctx);
	return 0;
}

/* No thread waits: the poller alone, or rref_progress in the manual mode, has to run it. */
TG_TEST(c092_093_many_without_a_waiter, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int want = 10;
	struct rref *r;

	if (rank == 0) {
		for (int i = 0; i < 4; i++)
			TG_OK(rref_future_then(tg_start(ctx, i % 2, "tg.echo", "x", 1),
					       count_and_free, &ran));
		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "v", .length = 1 }, RREF_DEFAULT,
				  &r));
		for (int i = 0; i < 6; i++) {
			struct rref_future *f;

			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
			TG_OK(rref_future_then(f, count_and_free, &ran));
		}
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		TG_IS(atomic_load(&ran), want);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

static void check_error(struct rref_future *f, void *arg)
{
	struct rref_error e = { .size = sizeof(e) };

	TG_IS(rref_future_wait(f, 0), -ENOSYS);
	TG_OK(rref_future_error(f, &e));
	TG_IS(e.err, -ENOSYS);
	atomic_fetch_add((_Atomic int *)arg, 1);
}

TG_TEST(c092_093_of_a_failed_future, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = tg_start(ctx, 1 - rank, "no.such", NULL, 0);
	int want = 1;

	TG_OK(rref_future_then(f, check_error, &ran));
	TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENOSYS);
	TG_CHECK(tg_eventually(ran_enough, ctx, &want));
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

/* Calls on from a callback, `left` times, alternating between the workers. The last call counts. */
struct relay {
	struct rref_ctx *ctx;
	int left, hops;
};

static void relay_on(struct rref_future *f, void *arg)
{
	struct relay *r = arg;

	TG_OK(rref_future_wait(f, 0));
	rref_future_free(f);
	r->hops++;
	if (--r->left == 0)
		atomic_fetch_add(&ran, 1);
	else
		TG_OK(rref_future_then(tg_start(r->ctx, r->left % 2,
						r->left % 3 ? "tg.echo" : "tg.echo_inline", "x", 1),
				       relay_on, r));
}

TG_TEST(c092_093_five_hundred_chained, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct relay r = { ctx, tg_scale(500), 0 };
	int want = 1;

	TG_OK(rref_future_then(tg_start(ctx, 1 - rank, "tg.echo", "x", 1), relay_on, &r));
	TG_CHECK(tg_eventually(ran_enough, ctx, &want));
	TG_IS(r.hops, tg_scale(500));
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

static void wait_inside(struct rref_future *f, void *arg)
{
	struct rref_future *other = arg;

	TG_OK(rref_future_wait(f, 0));
	TG_OK(rref_future_wait(other, RREF_DEFAULT));
	rref_future_free(other);
	atomic_fetch_add(&ran, 1);
}

TG_TEST(c092_093_a_function_waits_for_another, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = tg_start(ctx, 1 - rank, "tg.echo", "x", 1),
			   *g = tg_start(ctx, 1 - rank, "tg.echo", "y", 1);
	int want = 1;

	TG_OK(rref_future_then(f, wait_inside, g));
	TG_CHECK(tg_eventually(ran_enough, ctx, &want));
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

static void *cancel_it(void *f)
{
	int err = rref_future_cancel(f);

	TG_CHECK(err == 0 || err == -EALREADY);
	return NULL;
}

/* Either side may win: the future completes once, and the callback runs once. */
TG_TEST(c092_093_completes_once_in_any_order, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(200);

	for (int i = 0; i < n; i++) {
		struct rref_future *f = tg_start(ctx, 1 - rank, "tg.echo_inline", "x", 1);
		int want = i + 1, err;
		pthread_t t;

		TG_OK(rref_future_then(f, count, &ran));
		TG_IS(pthread_create(&t, NULL, cancel_it, f), 0);
		err = rref_future_wait(f, RREF_DEFAULT);
		TG_CHECK(err == 0 || err == -ECANCELED);
		pthread_join(t, NULL);
		TG_IS(rref_future_wait(f, 0), err);
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		rref_future_free(f);
		TG_IS(atomic_load(&ran), want);
	}
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

static int reply_twice(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, tg_bytes("first", 5)));
	TG_IS(rref_call_reply(call, tg_bytes("second", 6)), -EALREADY);
	TG_IS(rref_call_error(call, -EIO, "third"), -EALREADY);
	atomic_fetch_add(&tg_current->shared->flag[1], 1);
	return 0;
}

TG_TEST(c092_093_replying_twice_is_refused, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref *r;
	char got[5];

	tg_add(ctx, "twice", reply_twice, 0);
	tg_add(ctx, "twice_inline", reply_twice, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 4; i++) {
		TG_OK(rref_rpc_sync(ctx, i % 2, i < 2 ? "twice" : "twice_inline", NULL,
				    RREF_DEFAULT, &f));
		tg_result(f, got, 5);
		TG_CHECK(memcmp(got, "first", 5) == 0);
		rref_future_free(f);
		TG_OK(rref_remote(ctx, i % 2, i < 2 ? "twice" : "twice_inline", NULL, RREF_DEFAULT,
				  &r));
		tg_expect_bytes(r, "first", 5);
		rref_release(r);
	}
	/* The handler counts after its reply. */
	tg_wait_flag_serving(ctx, 1, 16);
	tg_meet_serving(ctx, 1);
	TG_IS(tg_flag(1), 16);
	tg_finish(ctx);
	return 0;
}

static struct rref_call *_Atomic unanswered; /* deferred and unanswered */
static struct rref_call *_Atomic replied_to; /* the same call after its reply */

static int reply_to_it_again(struct rref_call *call, void *arg)
{
	struct rref_call *old = atomic_load(&replied_to);

	(void)arg;
	TG_CHECK(old);
	TG_IS(rref_call_reply(old, tg_bytes("second", 6)), -EALREADY);
	TG_TEXT("replied to already");
	TG_IS(rref_call_error(old, -EIO, "third"), -EALREADY);
	TG_IS(rref_call_nr_refs(old), 0);
	TG_IS(rref_call_length(old), 0);
	return rref_call_reply(call, NULL);
}

static int defer_and_keep(struct rref_call *call, void *arg)
{
	(void)arg;
	atomic_store(&unanswered, call);
	return RREF_DEFER;
}

static int reply_to_it(struct rref_call *call, void *arg)
{
	struct rref_call *deferred = atomic_exchange(&unanswered, NULL);

	(void)arg;
	if (!deferred)
		return -EAGAIN; /* still waits for its references */
	TG_OK(rref_call_reply(deferred, tg_bytes("first", 5)));
	atomic_store(&replied_to, deferred);
	return rref_call_reply(call, NULL);
}

/* A reply comes long after the call's end, and with many calls
 * between. It is an error, and has no effect. */
TG_TEST(c092_093_replying_twice_to_a_deferred_call, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "defer_and_keep", defer_and_keep, 0);
	tg_add(ctx, "reply_to_it", reply_to_it, 0);
	tg_add(ctx, "reply_again", reply_to_it_again, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref *held;

		TG_OK(rref_new(ctx, "argument", 8, &held));
		for (int kind = 0; kind < 2; kind++) {
			struct rref_future *f = NULL;
			struct rref *r = NULL;
			char got[5];
			int err;

			if (kind == 0)
				TG_OK(rref_rpc_async(ctx, 1, "defer_and_keep", tg_with(&held, 1),
						     RREF_DEFAULT, &f));
			else
				TG_OK(rref_remote(ctx, 1, "defer_and_keep", tg_with(&held, 1),
						  RREF_DEFAULT, &r));
			while ((err = rref_rpc_sync(ctx, 1, "reply_to_it", NULL, RREF_DEFAULT,
						    NULL)) == -EAGAIN)
				usleep(200);
			TG_OK(err);
			for (int i = 0; i < 100; i++)
				TG_OK(rref_rpc_sync(ctx, 1, "reply_again", tg_bytes("x", 1),
						    RREF_DEFAULT, NULL));
			if (kind == 0) {
				TG_OK(rref_future_wait(f, RREF_DEFAULT));
				tg_result(f, got, 5);
				TG_CHECK(memcmp(got, "first", 5) == 0);
				rref_future_free(f);
			} else {
				tg_expect_bytes(r, "first", 5);
				rref_release(r);
			}
		}
		rref_release(held);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- deferred replies ---- */

static void *reply_later(void *arg)
{
	struct rref_call *call = arg;
	struct rref_args a = { .data = rref_call_data(call), .length = rref_call_length(call) };

	TG_OK(rref_call_reply(call, &a));
	return NULL;
}

static int defer_to_thread(struct rref_call *call, void *arg)
{
	pthread_attr_t attr;
	pthread_t t;

	(void)arg;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	TG_IS(pthread_create(&t, &attr, reply_later, call), 0);
	pthread_attr_destroy(&attr);
	return RREF_DEFER;
}

TG_TEST(c094_099_simple, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[50];

	tg_add(ctx, "later", defer_to_thread, 0);
	tg_add(ctx, "later_inline", defer_to_thread, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 50; i++)
		TG_OK(rref_rpc_async(ctx, i % 4 ? 1 - rank : rank, i % 2 ? "later" : "later_inline",
				     tg_bytes(&i, sizeof(i)), RREF_DEFAULT, &f[i]));
	for (int i = 0; i < 50; i++) {
		int got;

		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

/* Answers `call` (deferred) with the next worker's result. */
static void pass_on(struct rref_future *f, void *arg)
{
	struct rref_call *call = arg;
	const void *data;
	size_t length;
	int err = rref_future_data(f, &data, &length);

	if (err)
		TG_OK(rref_call_error(call, err, "chained: %s", rref_last_error()));
	else
		TG_OK(rref_call_reply(call, tg_bytes(data, length)));
	rref_future_free(f);
}

static int chain(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	int next = (rref_rank(ctx) + 1) % rref_world_size(ctx), err;
	struct rref_future *f;

	(void)arg;
	err = rref_rpc_async(ctx, next, rref_call_length(call) ? "tg.echo" : "no.such",
			     tg_bytes(rref_call_data(call), rref_call_length(call)), RREF_DEFAULT,
			     &f);
	if (err)
		return err;
	TG_OK(rref_future_then(f, pass_on, call));
	return RREF_DEFER;
}

TG_TEST(c094_099_chained_and_failing, 3)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	int got;

	tg_add(ctx, "chain", chain, 0);
	tg_add(ctx, "chain_inline", chain, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	for (int i = 1; i < tg_scale(100) + 4; i++) {
		TG_OK(rref_rpc_sync(ctx, (rank + i) % 3, i % 2 ? "chain" : "chain_inline",
				    tg_bytes(&i, sizeof(i)), RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
	TG_IS(rref_rpc_sync(ctx, (rank + 1) % 3, "chain", NULL, RREF_DEFAULT, NULL), -ENOSYS);
	TG_TEXT("chained: ");
	TG_TEXT("no.such");
	tg_finish(ctx);
	return 0;
}

/* Defers its call, and calls a handler that defers in turn. The number gives the depth, and each
 * level is another worker. */
static int nest(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref_future *f;
	int32_t depth;

	(void)arg;
	memcpy(&depth, rref_call_data(call), sizeof(depth));
	if (--depth == 0)
		return defer_to_thread(call, NULL);
	f = tg_start(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), "nest", &depth,
		     sizeof(depth));
	TG_OK(rref_future_then(f, pass_on, call));
	return RREF_DEFER;
}

TG_TEST(c094_099_nested, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	for (int32_t depth = 1; depth <= 12; depth++) {
		struct rref_future *f;
		int32_t got;

		TG_OK(rref_rpc_sync(ctx, (rank + 1) % 4, "nest", tg_bytes(&depth, sizeof(depth)),
				    RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, 1);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c094_099_fan_out_of_twenty, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[20];

	if (rank == 0) {
		/* More calls than the pool has threads: a held call must not keep a thread. */
		for (int i = 0; i < 20; i++)
			TG_OK(rref_rpc_async(ctx, 1, "tg.hold", tg_bytes(&i, sizeof(i)),
					     RREF_DEFAULT, &f[i]));
		tg_until_held(ctx, 1, 20);
		for (int i = 0; i < 20; i++)
			TG_IS(rref_future_test(f[i]), 0);
		TG_IS(tg_release_held(ctx, 1), 20);
		for (int i = 0; i < 20; i++) {
			int got;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			tg_result(f[i], &got, sizeof(got));
			TG_IS(got, i);
			rref_future_free(f[i]);
		}
	}
	tg_finish(ctx);
	return 0;
}

static int fail_first(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_error(call, -ECONNABORTED, "failed before it was deferred"));
	return -ECONNABORTED;
}

TG_TEST(c094_099_failing_before_the_reply, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "fail_first", fail_first, 0);
	tg_meet_serving(ctx, 0);
	for (int to = 0; to < 2; to++) {
		TG_IS(rref_rpc_sync(ctx, to, "fail_first", NULL, RREF_DEFAULT, NULL),
		      -ECONNABORTED);
		TG_TEXT("failed before it was deferred");
		struct rref *r = tg_remote(ctx, to, "fail_first", NULL, 0);

		for (int again = 0; again < 2; again++)
			tg_expect_error(r, -ECONNABORTED, "failed before it was deferred");
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c092_093_a_function_runs_once),
		cmocka_unit_test(c092_093_of_a_complete_future),
		cmocka_unit_test(c092_093_many_without_a_waiter),
		cmocka_unit_test(c092_093_of_a_failed_future),
		cmocka_unit_test(c092_093_five_hundred_chained),
		cmocka_unit_test(c092_093_a_function_waits_for_another),
		cmocka_unit_test(c092_093_completes_once_in_any_order),
		cmocka_unit_test(c092_093_replying_twice_is_refused),
		cmocka_unit_test(c092_093_replying_twice_to_a_deferred_call),
		cmocka_unit_test(c094_099_simple),
		cmocka_unit_test(c094_099_chained_and_failing),
		cmocka_unit_test(c094_099_nested),
		cmocka_unit_test(c094_099_fan_out_of_twenty),
		cmocka_unit_test(c094_099_failing_before_the_reply),
	};

	return cmocka_run_group_tests_name("deferred", tests, NULL, NULL);
}
