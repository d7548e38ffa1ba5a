/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First contact with a worker that does not answer. Only a refusal is death; silence is waited
 * through, each operation for its own time. Also a worker that was lost in silence: no operation
 * waits for it again and again.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "tg_death.h"

#define LONGER_NS (3500 * NSEC_PER_MSEC) /* more than any attempt at a session was once given */
#define RARELY_NS \
	(2800 * NSEC_PER_MSEC) /* the same, of one turn of a program that makes progress rarely */

static void call_async(struct rref_ctx *ctx, int to, int64_t timeout, struct rref_future **f)
{
	TG_OK(rref_rpc_async(ctx, to, "tg.echo", &(struct rref_args){ .data = "x", .length = 1 },
			     timeout, f));
}

static int call(struct rref_ctx *ctx, int to, int64_t timeout)
{
	return rref_rpc_sync(ctx, to, "tg.echo", &(struct rref_args){ .data = "x", .length = 1 },
			     timeout, NULL);
}

/* Serves for this time, with or without calls. */
static void serve_for(struct rref_ctx *ctx, int64_t ns)
{
	for (int64_t until = now_ns() + ns; now_ns() < until; tg_pause())
		rref_progress(ctx);
}

static int is_alive(struct rref_ctx *ctx, int rank)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, rank, &w));
	return w.alive;
}

static uint64_t queued(struct rref_ctx *ctx, int rank)
{
	struct rref_peer_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_peer_stats(ctx, rank, &s));
	return s.queued_messages;
}

static void nobody_died(struct rref_ctx *ctx)
{
	TG_IS(tg_stats(ctx).dead_peers, 0);
	TG_IS(tg_stats(ctx).rejected_peers, 0);
}

/* Several peers wait for the worker, with calls, creations and shares. */
TG_TEST(silent__stopped_before_its_first_session, 3)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet(0);
	if (rank == 0) {
		tg_stop_worker(2);
		tg_set_flag(0, 1);
	}
	if (rank < 2) {
		struct rref_future *calls[2], *shared;
		struct rref *mine, *made;

		tg_wait_flag(0, 1);
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		call_async(ctx, 2, RREF_DEFAULT, &calls[0]);
		call_async(ctx, 2, RREF_DEFAULT, &calls[1]);
		TG_OK(rref_rpc_async(ctx, 2, "tg.read", tg_with(&mine, 1), RREF_DEFAULT, &shared));
		TG_OK(rref_remote(ctx, 2, "tg.echo",
				  &(struct rref_args){ .data = "made", .length = 4 }, RREF_DEFAULT,
				  &made));
		serve_for(ctx, LONGER_NS);
		TG_IS(rref_future_test(calls[0]), 0);
		TG_IS(rref_future_test(shared), 0);
		tg_set_flag(1 + rank, 1);
		if (rank == 0) {
			tg_wait_flag_serving(ctx, 2, 1);
			tg_continue_worker(2);
		}
		for (int i = 0; i < 2; i++) {
			TG_OK(rref_future_wait(calls[i], RREF_DEFAULT));
			rref_future_free(calls[i]);
		}
		TG_OK(rref_future_wait(shared, RREF_DEFAULT));
		rref_future_free(shared);
		tg_expect_bytes(made, "made", 4);
		rref_release(made);
		rref_release(mine);
		nobody_died(ctx);
		tg_set_flag(4 + rank, 1);
	}
	tg_wait_flag_serving(ctx, 4, 1); /* the leaving worker makes the first contact itself */
	tg_wait_flag_serving(ctx, 5, 1);
	tg_finish(ctx);
	return 0;
}

/* The time-out belongs to the operation, and its text tells the beginning
 * of the silence. It has no other effect. */
TG_TEST(silent__each_operation_has_its_own_time, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet(0);
	if (rank == 0) {
		struct rref_future *f;

		tg_stop_worker(1);
		call_async(ctx, 1, RREF_DEFAULT, &f);
		for (int i = 0; i < 3; i++) {
			TG_IS(call(ctx, 1, 300 * NSEC_PER_MSEC), -ETIMEDOUT);
			TG_TEXT("worker1 (rank 1) has not answered for ");
		}
		TG_IS(rref_future_test(f), 0);
		TG_IS(is_alive(ctx, 1), 1);
		/* No later work is left of these operations. */
		TG_IS(queued(ctx, 1), 1);
		tg_continue_worker(1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		TG_OK(call(ctx, 1, RREF_DEFAULT));
		nobody_died(ctx);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	tg_finish(ctx);
	return 0;
}

/* Makes progress rarely: this worker answers late, proves late and takes proofs late. The others
 * wait for all of that. */
static int rarely_worker(int rank, void *arg)
{
	bool it_calls = arg;
	struct rref_options o;
	struct rref_future *f;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	if (rank == 1)
		o.mode = RREF_PROGRESS_MANUAL;
	TG_OK(rref_init(&o, &ctx));
	tg_meet(0);
	if (rank == 0) {
		call_async(ctx, 1, RREF_DEFAULT, &f);
		TG_OK(rref_future_wait(f, tg_deadline() - now_ns()));
		rref_future_free(f);
		nobody_died(ctx);
		TG_IS(tg_stats(ctx).sessions, 1);
		tg_set_flag(0, 1);
	} else {
		if (it_calls)
			call_async(ctx, 0, RREF_DEFAULT, &f);
		while (!tg_flag(0) || (it_calls && !rref_future_test(f))) {
			usleep((useconds_t)(RARELY_NS / NSEC_PER_USEC));
			rref_progress(ctx);
		}
		if (it_calls) {
			TG_OK(rref_future_wait(f, RREF_DEFAULT));
			rref_future_free(f);
		}
		nobody_died(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static void silent__a_server_that_makes_progress_rarely(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, rarely_worker, NULL), 0);
}

static void silent__a_client_that_makes_progress_rarely(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, rarely_worker, (void *)1), 0);
}

/* The graceful end has its own time, too, and waits no longer. */
TG_TEST(silent__the_shutdown_has_its_own_time, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet(0);
	if (rank == 0) {
		tg_stop_worker(1);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 500 * NSEC_PER_MSEC), -ETIMEDOUT);
		rref_free_ctx(ctx);
		tg_set_flag(0, 1);
		tg_continue_worker(1);
		return 0;
	}
	tg_wait_flag_serving(ctx, 0, 1);
	TG_CHECK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT) <
		 0); /* rank 0 has left */
	rref_free_ctx(ctx);
	return 0;
}

/* Killed during the wait: the next attempt finds no worker. */
DEATH_TEST(silent__and_then_killed, 2, 1 << 1)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet(0);
	if (rank == 0) {
		struct rref_future *f;

		tg_stop_worker(1);
		call_async(ctx, 1, RREF_DEFAULT, &f);
		TG_IS(rref_future_wait(f, 300 * NSEC_PER_MSEC), -ETIMEDOUT);
		TG_IS(kill(tg_current->shared->pid[1], SIGKILL), 0);
		TG_IS(rref_future_wait(f, TG_LONG_NS), -EOWNERDEAD);
		rref_future_free(f);
		TG_IS(call(ctx, 1, RREF_DEFAULT), -EOWNERDEAD);
		tg_leave(ctx);
		return 0;
	}
	serve_for(ctx, INT64_MAX / 2);
	return 1;
}

/* ---- a session that was lost in silence */

static bool is_down(struct rref_ctx *ctx, void *rank)
{
	return !is_alive(ctx, *(int *)rank);
}

/* Ends the connection; a stopped worker makes no new one. */
static void break_link(struct rref_ctx *ctx, int rank)
{
	rc_lock(ctx);
	TG_CHECK(tg_break_link(ctx, rank));
	rc_unlock(ctx);
}

/* Each call fails at once: if one took an attempt's time, it would not end before the run does.
 * Calls work after the worker's return. */
TG_TEST(cut_off__costs_no_time, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int one = 1;

	if (rank == 0) {
		TG_OK(call(ctx, 1, RREF_DEFAULT));
		tg_stop_worker(1);
		break_link(ctx, 1);
		TG_CHECK(tg_eventually(is_down, ctx, &one));
		for (int i = 0; i < 200; i++) {
			TG_IS(call(ctx, 1, RREF_DEFAULT), -EOWNERDEAD);
			TG_TEXT("worker1 (rank 1)");
			TG_TEXT("cut off");
			serve_for(ctx, 10 * NSEC_PER_MSEC);
		}
		tg_continue_worker(1);
		while (call(ctx, 1, RREF_DEFAULT)) {
			TG_CHECK(now_ns() < tg_deadline());
			serve_for(ctx, 10 * NSEC_PER_MSEC);
		}
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
	}
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cut_off__costs_no_time),
		cmocka_unit_test(silent__a_client_that_makes_progress_rarely),
		cmocka_unit_test(silent__a_server_that_makes_progress_rarely),
		cmocka_unit_test(silent__and_then_killed),
		cmocka_unit_test(silent__each_operation_has_its_own_time),
		cmocka_unit_test(silent__stopped_before_its_first_session),
		cmocka_unit_test(silent__the_shutdown_has_its_own_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
