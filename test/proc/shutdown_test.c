/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving: in good order, at once, too early, too late, twice, with things left over. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC

/* ---- in good order ---- */

TG_TEST(graceful__group_of_one, 1)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__without_any_traffic, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__a_worker_is_late, 3)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 2)
		usleep(100000);
	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__handles_released_after_it, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *mine, *theirs = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1),
			   *again = rref_dup(theirs);
	struct rref_view *v, *w;
	char text[RREF_TEXT_SIZE];

	TG_OK(rref_new(ctx, "mine", 4, &mine));
	TG_OK(rref_to_here(mine, RREF_DEFAULT, &v));
	TG_OK(rref_to_here(theirs, RREF_DEFAULT, &w));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	/* Views stay, and so do the handles' descriptions. */
	TG_CHECK(memcmp(rref_view_data(v), "mine", 4) == 0 &&
		 memcmp(rref_view_data(w), "x", 1) == 0);
	TG_CHECK(rref_owner(theirs) == 1 - rank && rref_format(mine, text, sizeof(text)) > 0);
	TG_IS(rref_confirmed(theirs), 0);
	rref_view_free(v);
	rref_view_free(w);
	rref_release(mine);
	rref_release(theirs);
	rref_release(again);
	TG_IS(tg_stats(ctx).value_bytes, 0);
	TG_IS(tg_stats(ctx).landing_bytes, 0);
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(graceful__calls_under_way_are_waited_for, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[50];

	for (int i = 0; i < 50; i++)
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo",
				     &(struct rref_args){ .data = &i, .length = sizeof(i) },
				     RREF_DEFAULT, &f[i]));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	for (int i = 0; i < 50; i++) {
		int got;

		TG_IS(rref_future_wait(f[i], 0), 0);
		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	rref_free_ctx(ctx);
	return 0;
}

/* ---- shutdowns that fail ---- */

TG_TEST(timeout__a_call_is_never_answered, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;

	if (rank == 0)
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f));
	if (rank == 0)
		tg_until_held(ctx, 1, 1);
	tg_meet_serving(ctx, 0);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 500 * MS), -ETIMEDOUT);
	if (f) {
		TG_CHECK(rref_future_wait(f, 0) < 0);
		TG_IS(rref_future_test(f), 1);
		rref_future_free(f);
	}
	tg_drop_held();
	rref_free_ctx(ctx);
	return 0;
}

static bool somebody_came(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);
	unsigned kind = 0;

	(void)arg;
	while (kind < RREF_MESSAGE_KINDS && strcmp(rref_message_kind(kind), "barrier") != 0)
		kind++;
	TG_CHECK(kind < RREF_MESSAGE_KINDS);
	return s.received[kind] == 1;
}

/* Rank 0 counts, so it knows the late ranks. */
TG_TEST(timeout__some_do_not_come, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_CHECK(tg_eventually(somebody_came, ctx, NULL));
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 300 * MS), -ETIMEDOUT);
		TG_TEXT("in time: missing worker1 (rank 1), worker3 (rank 3)");
	} else if (rank == 2) {
		TG_CHECK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC) < 0);
	} else {
		tg_wait_flag_serving(ctx, 1, 1);
	}
	if (rank == 0)
		tg_set_flag(1, 1);
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(timeout__rank_0_does_not_come, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		tg_wait_flag_serving(ctx, 1, 1);
	} else {
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 300 * MS), -ETIMEDOUT);
		TG_TEXT("worker0 (rank 0)");
		tg_set_flag(1, 1);
	}
	rref_free_ctx(ctx);
	return 0;
}

/* The other worker's time runs out long before. No worker left together with it, so this shutdown
 * did not succeed either. */
TG_TEST(timeout__of_the_other_worker, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;

	if (rank == 0) {
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f));
		tg_until_held(ctx, 1, 1);
	}
	tg_meet_serving(ctx, 0);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, rank == 0 ? 30 * NSEC_PER_SEC : 200 * MS),
	      -ETIMEDOUT);
	if (rank == 0)
		TG_TEXT("worker1 (rank 1) left before the others");
	rref_future_free(f);
	tg_drop_held();
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(shutdown__twice, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC), -ESHUTDOWN);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0), -ESHUTDOWN);
	rref_free_ctx(ctx);
	return 0;
}

static void *shut_too(void *ctx)
{
	return (void *)(intptr_t)rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC);
}

TG_TEST(shutdown__by_two_threads, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	pthread_t t;
	void *theirs;
	int mine;

	TG_IS(pthread_create(&t, NULL, shut_too, ctx), 0);
	mine = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC);
	pthread_join(t, &theirs);
	TG_CHECK((mine == 0 && (intptr_t)theirs == -ESHUTDOWN) ||
		 (mine == -ESHUTDOWN && (intptr_t)theirs == 0));
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(shutdown__bad_arguments, 1)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_IS(rref_shutdown(NULL, RREF_SHUTDOWN_NOW, 0), -EINVAL);
	TG_IS(rref_shutdown(ctx, 7, 0), -EINVAL);
	rref_free_ctx(NULL);
	tg_finish(ctx);
	return 0;
}

/* ---- at once ---- */

TG_TEST(now__by_free_alone, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1), *mine;

	tg_expect_bytes(r, "x", 1);
	TG_OK(rref_new(ctx, "m", 1, &mine));
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "keep", tg_with(&mine, 1), RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 0);
	rref_free_ctx(ctx);
	return 0;
}

static void *wait_for_the_end(void *f)
{
	return (void *)(intptr_t)rref_future_wait(f, RREF_FOREVER);
}

TG_TEST(now__pending_futures_end_and_their_waiters_wake, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.hold", "x", 1), *own;
		struct rref_future *f[4];
		pthread_t t[4];
		void *data;

		TG_OK(rref_alloc(ctx, 10, &own, &data));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f[0]));
		TG_OK(rref_to_here_async(r, RREF_FOREVER, &f[1]));
		TG_OK(rref_creation(r, &f[2]));
		TG_OK(rref_to_here_async(own, RREF_FOREVER, &f[3]));
		tg_until_held(ctx, 1, 2);
		for (int i = 0; i < 4; i++)
			TG_IS(pthread_create(&t[i], NULL, wait_for_the_end, f[i]), 0);
		usleep(10000);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		for (int i = 0; i < 4; i++) {
			void *err;

			pthread_join(t[i], &err);
			TG_IS((intptr_t)err, -ESHUTDOWN);
			TG_IS(rref_future_wait(f[i], 0), -ESHUTDOWN);
			rref_future_free(f[i]);
		}
		rref_release(r);
		rref_release(own);
		rref_free_ctx(ctx);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		/* The caller has gone. Late answers have no receiver, and do no harm. */
		tg_drop_held();
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		rref_free_ctx(ctx);
	}
	return 0;
}

TG_TEST(now__peers_see_this_worker_die, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_worker_info w = { .size = sizeof(w) };

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.hold", "x", 1);
		struct rref_future *f, *g;
		struct rref_view *v;

		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f));
		TG_OK(rref_to_here_async(r, RREF_FOREVER, &g));
		tg_until_held(ctx, 1, 2);
		tg_set_flag(0, 1);
		TG_IS(rref_future_wait(f, 20 * NSEC_PER_SEC), -EOWNERDEAD);
		TG_IS(rref_future_wait(g, 20 * NSEC_PER_SEC), -EOWNERDEAD);
		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EOWNERDEAD);
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
		TG_OK(rref_worker(ctx, 1, &w));
		TG_IS(w.alive, 0);
		rref_future_free(f);
		rref_future_free(g);
		rref_release(r);
		int err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC);

		TG_CHECK(err == 0 || err == -EOWNERDEAD);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		/* A call and a creation are answered after their caller has gone. */
		tg_drop_held();
	}
	rref_free_ctx(ctx);
	return 0;
}

/* Calls to oneself, held when the context ends. */
TG_TEST(now__own_calls_answered_after_it, 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, 0, "tg.hold", "x", 1);
	struct rref_future *f;

	TG_OK(rref_rpc_async(ctx, 0, "tg.hold", NULL, RREF_FOREVER, &f));
	tg_until_held(ctx, 0, 2);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	TG_IS(rref_future_wait(f, 0), -ESHUTDOWN);
	rref_future_free(f);
	tg_drop_held();
	rref_release(r);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(graceful__group_of_one),
		cmocka_unit_test(graceful__without_any_traffic),
		cmocka_unit_test(graceful__a_worker_is_late),
		cmocka_unit_test(graceful__handles_released_after_it),
		cmocka_unit_test(graceful__calls_under_way_are_waited_for),
		cmocka_unit_test(timeout__a_call_is_never_answered),
		cmocka_unit_test(timeout__of_the_other_worker),
		cmocka_unit_test(timeout__rank_0_does_not_come),
		cmocka_unit_test(timeout__some_do_not_come),
		cmocka_unit_test(shutdown__twice),
		cmocka_unit_test(shutdown__by_two_threads),
		cmocka_unit_test(shutdown__bad_arguments),
		cmocka_unit_test(now__by_free_alone),
		cmocka_unit_test(now__pending_futures_end_and_their_waiters_wake),
		cmocka_unit_test(now__peers_see_this_worker_die),
		cmocka_unit_test(now__own_calls_answered_after_it),
	};

	return cmocka_run_group_tests_name("shutdown", tests, NULL, NULL);
}
