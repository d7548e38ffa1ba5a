/* SPDX-License-Identifier: Apache-2.0 */
/* A process that only serves. It ends when the others end or when it is
 * told to, but not because another worker dies. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

#define CALLS 50

static struct rref_ctx *the_ctx;    /* for signal handlers */
static struct rref_options the_options;

static struct rref_ctx *join(int rank)
{
	tg_options(&the_options, rank);
	the_options.functions = tg_functions;
	the_options.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&the_options, &the_ctx));
	return the_ctx;
}

static void call(struct rref_ctx *ctx, int rank)
{
	for (int i = 0; i < CALLS; i++) {
		struct rref_args a = { .data = &i, .length = sizeof(i) };
		const char *echo = i % 2 ? "tg.echo" : "tg.echo_inline";
		struct rref_future *f;
		int got;

		TG_OK(rref_rpc_sync(ctx, rank, echo, &a, RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
}

/* Leaves after rref_serve: the shutdown has only the last words to wait for. */
static void leave(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER));
	rref_free_ctx(ctx);
}

/* ---- its end ---- */

static int until_others_leave(int rank, int server)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == server) {
		TG_IS(rref_serve(ctx), 0);
		TG_IS(tg_stats(ctx).calls_served, 2 * CALLS);
		TG_IS(rref_serve(ctx), 0);
		leave(ctx);
		return 0;
	}
	call(ctx, server);
	tg_finish(ctx);
	return 0;
}

TG_TEST(serve__rank_0_until_the_others_leave, 3)
{
	return until_others_leave(rank, 0);
}

TG_TEST(serve__another_until_the_others_leave, 3)
{
	return until_others_leave(rank, 1);
}

/* The server calls after rref_serve. The leaving workers wait for it and serve its calls. */
TG_TEST(serve__the_server_may_still_call, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		call(ctx, 0);
		tg_finish(ctx);
		return 0;
	}
	TG_IS(rref_serve(ctx), 0);
	call(ctx, 1);
	leave(ctx);
	return 0;
}

TG_TEST(serve__all_of_them, 4)
{
	struct rref_ctx *ctx = join(rank);

	TG_IS(rref_serve(ctx), 0);
	leave(ctx);
	return 0;
}

TG_TEST(serve__alone, 1)
{
	struct rref_ctx *ctx = join(rank);

	TG_IS(rref_serve(ctx), 0);
	leave(ctx);
	return 0;
}

/* Serving lasts for longer than a shutdown's default time-out. */
TG_TEST(serve__has_no_time_out, 2)
{
	struct rref_ctx *ctx = join(rank);

	TG_OK(rref_set_timeout(ctx, 50 * NSEC_PER_MSEC));
	if (rank == 0) {
		TG_IS(rref_serve(ctx), 0);
		leave(ctx);
		return 0;
	}
	usleep(500000);
	TG_OK(rref_set_timeout(ctx, 30 * NSEC_PER_SEC));
	call(ctx, 0);
	tg_finish(ctx);
	return 0;
}

/* ---- stopping it ---- */

static _Atomic int stops;

static void on_signal(int sig)
{
	int saved = errno;

	(void)sig;
	errno = 4711;
	if (rref_serve_stop(the_ctx) || errno != 4711)
		_exit(9);
	errno = saved;
	atomic_fetch_add(&stops, 1);
}

/* Stops the server twice by a signal; the group works on. */
static int stopped_by_a_signal(int rank, int server)
{
	struct rref_ctx *ctx;

	signal(SIGUSR1, on_signal);
	ctx = join(rank);
	for (int round = 0; round < 2; round++) {
		if (rank == server) {
			tg_set_flag(round, 1);
			TG_IS(rref_serve(ctx), 0);
			TG_IS(atomic_load(&stops), round + 1);
			tg_set_flag(round, 2);
			continue;
		}
		tg_wait_flag_serving(ctx, round, 1);
		call(ctx, server);
		TG_IS(kill(tg_current->shared->pid[server], SIGUSR1), 0);
		tg_wait_flag_serving(ctx, round, 2);
	}
	if (rank == server) {
		TG_IS(rref_serve(ctx), 0);
		leave(ctx);
	} else {
		call(ctx, server);
		tg_finish(ctx);
	}
	return 0;
}

TG_TEST(stop__rank_0_by_a_signal, 2)
{
	return stopped_by_a_signal(rank, 0);
}

TG_TEST(stop__another_by_a_signal, 2)
{
	return stopped_by_a_signal(rank, 1);
}

/* A stop that comes first is kept for one later rref_serve. */
TG_TEST(stop__before_serving_begins, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		TG_OK(rref_serve_stop(ctx));
		TG_OK(rref_serve_stop(ctx));
		TG_IS(rref_serve(ctx), 0);
		tg_set_flag(0, 1);
		TG_IS(rref_serve(ctx), 0);
		TG_IS(tg_stats(ctx).calls_served, CALLS);
		leave(ctx);
		return 0;
	}
	tg_wait_flag_serving(ctx, 0, 1);
	call(ctx, 0);
	tg_finish(ctx);
	return 0;
}

/* The others still work: the shutdown waits for them, and serves. */
TG_TEST(stop__and_a_graceful_shutdown, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		TG_OK(rref_serve_stop(ctx));
		TG_IS(rref_serve(ctx), 0);
		tg_set_flag(0, 1);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
		TG_IS(tg_stats(ctx).calls_served, CALLS);
		rref_free_ctx(ctx);
		return 0;
	}
	tg_wait_flag_serving(ctx, 0, 1);
	call(ctx, 0);
	tg_finish(ctx);
	return 0;
}

static void *serve_thread(void *arg)
{
	return (void *)(intptr_t)rref_serve(arg);
}

static void *stop_thread(void *arg)
{
	for (int i = 0; i < 200; i++) {
		while (atomic_load(&stops) == i)
			sched_yield();
		TG_OK(rref_serve_stop(arg));
	}
	return NULL;
}

/* Stops come at every moment of its beginning and its sleep. */
TG_TEST(stop__by_another_thread_many_times, 2)
{
	struct rref_ctx *ctx = join(rank);
	pthread_t thread;

	if (rank == 1) {
		TG_IS(pthread_create(&thread, NULL, stop_thread, ctx), 0);
		for (int i = 0; i < 200; i++) {
			atomic_fetch_add(&stops, 1);
			TG_IS(rref_serve(ctx), 0);
		}
		pthread_join(thread, NULL);
	}
	tg_meet_serving(ctx, 0);
	tg_finish(ctx);
	return 0;
}

static void shut_down_beside(int rank, unsigned how)
{
	struct rref_ctx *ctx = join(rank);
	pthread_t thread;
	void *result;

	if (rank == 0) {
		TG_IS(pthread_create(&thread, NULL, serve_thread, ctx), 0);
		call(ctx, 1);
		TG_IS(rref_shutdown(ctx, how, 30 * NSEC_PER_SEC), 0);
		TG_IS(pthread_join(thread, &result), 0);
		/* Either it had not begun yet, or this ended it. */
		TG_CHECK((intptr_t)result == 0 || (intptr_t)result == -ESHUTDOWN);
		rref_free_ctx(ctx);
		return;
	}
	tg_leave(ctx);
}

TG_TEST(stop__by_a_shutdown_of_another_thread, 2)
{
	shut_down_beside(rank, RREF_SHUTDOWN_GRACEFUL);
	return 0;
}

TG_TEST(stop__by_a_hasty_shutdown_of_another_thread, 2)
{
	shut_down_beside(rank, RREF_SHUTDOWN_NOW);
	return 0;
}

/* ---- deaths ---- */

/* Kills a client: the others are served on, and the end is in order. */
static int client_dies(int rank, int server)
{
	struct rref_ctx *ctx = join(rank);
	int victim = 3 - server - (server ? 0 : 1), other = 3 - server - victim;

	if (rank == server) {
		TG_IS(rref_serve(ctx), 0);
		TG_IS(tg_stats(ctx).calls_served, 3 * CALLS);
		/* the worker may see the death later than rank 0, which said that all are there */
		tg_leave(ctx);
		return 0;
	}
	call(ctx, server);
	tg_meet(1);
	if (rank == victim)
		tg_die();
	TG_IS(rank, other);
	call(ctx, server);
	tg_leave(ctx);
	return 0;
}

static void *count_server(void *arg)
{
	/* tg_meet counts all workers of the run: the server meets by this thread. */
	tg_meet(1);
	return arg;
}

DEATH_TEST(death__of_a_client_of_rank_0, 3, 1 << 2)
{
	pthread_t thread;

	if (rank == 0)
		TG_IS(pthread_create(&thread, NULL, count_server, NULL) || pthread_detach(thread),
		      0);
	return client_dies(rank, 0);
}

DEATH_TEST(death__of_a_client_of_another, 3, 1 << 2)
{
	pthread_t thread;

	if (rank == 1)
		TG_IS(pthread_create(&thread, NULL, count_server, NULL) || pthread_detach(thread),
		      0);
	return client_dies(rank, 1);
}

/* No worker counts the arrivals after this death. The server
 * goes on until no other worker is left. */
DEATH_TEST(death__of_rank_0, 3, 1 << 0)
{
	struct rref_ctx *ctx = join(rank);
	int zero = 0;

	if (rank == 0) {
		call(ctx, 1);
		tg_wait_flag_serving(ctx, 0, 1);
		tg_die();
	}
	if (rank == 1) {
		TG_IS(rref_serve(ctx), -EOWNERDEAD);
		TG_TEXT("no worker is left");
		TG_IS(tg_stats(ctx).calls_served, 4 * CALLS);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER), -EOWNERDEAD);
		rref_free_ctx(ctx);
		return 0;
	}
	call(ctx, 0);
	call(ctx, 1);
	tg_set_flag(0, 1);
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &zero));
	call(ctx, 1);
	call(ctx, 1);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT), -EOWNERDEAD);
	rref_free_ctx(ctx);
	return 0;
}

DEATH_TEST(death__of_all_others, 3, 1 << 1 | 1 << 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank) {
		call(ctx, 0);
		tg_die();
	}
	TG_IS(rref_serve(ctx), -EOWNERDEAD);
	TG_TEXT("every other worker");
	rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER);
	rref_free_ctx(ctx);
	return 0;
}

/* A stop ends the server, also without rank 0. */
DEATH_TEST(death__of_rank_0_and_a_stop, 3, 1 << 0)
{
	struct rref_ctx *ctx;
	int zero = 0;

	signal(SIGUSR1, on_signal);
	ctx = join(rank);
	if (rank == 0) {
		call(ctx, 1);
		tg_wait_flag_serving(ctx, 0, 1);
		tg_die();
	}
	if (rank == 1) {
		TG_IS(rref_serve(ctx), 0);
		tg_set_flag(1, 1);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0);
		rref_free_ctx(ctx);
		return 0;
	}
	call(ctx, 0);
	call(ctx, 1);
	tg_set_flag(0, 1);
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &zero));
	call(ctx, 1);
	TG_IS(kill(tg_current->shared->pid[1], SIGUSR1), 0);
	tg_wait_flag_serving(ctx, 1, 1);
	rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- misuse ---- */

static int serves(struct rref_call *call_, void *arg)
{
	(void)arg;
	return rref_serve(rref_call_context(call_));
}

TG_TEST(misuse__is_an_error, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_function fn = { .name = "serves", .handler = serves };
	pthread_t thread;
	void *result;

	TG_IS(rref_serve(NULL), -EINVAL);
	TG_IS(rref_serve_stop(NULL), -EINVAL);
	TG_OK(rref_register(ctx, &fn));
	TG_IS(rref_rpc_sync(ctx, rank, "serves", NULL, RREF_DEFAULT, NULL), -EDEADLK);
	if (rank == 1) {
		TG_IS(pthread_create(&thread, NULL, serve_thread, ctx), 0);
		/* The wait is an operation. */
		while (tg_stats(ctx).ops_in_flight == 0) {
			TG_CHECK(now_ns() < tg_deadline());
			tg_pause();
		}
		TG_IS(rref_serve(ctx), -EBUSY);
		TG_TEXT("another thread");
		do
			TG_OK(rref_serve_stop(ctx));
		while (pthread_tryjoin_np(thread, &result));
		TG_IS((intptr_t)result, 0);
	}
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	TG_IS(rref_serve(ctx), -ESHUTDOWN);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(death__of_a_client_of_another),
		cmocka_unit_test(death__of_a_client_of_rank_0),
		cmocka_unit_test(death__of_all_others),
		cmocka_unit_test(death__of_rank_0),
		cmocka_unit_test(death__of_rank_0_and_a_stop),
		cmocka_unit_test(misuse__is_an_error),
		cmocka_unit_test(serve__all_of_them),
		cmocka_unit_test(serve__alone),
		cmocka_unit_test(serve__another_until_the_others_leave),
		cmocka_unit_test(serve__has_no_time_out),
		cmocka_unit_test(serve__rank_0_until_the_others_leave),
		cmocka_unit_test(serve__the_server_may_still_call),
		cmocka_unit_test(stop__and_a_graceful_shutdown),
		cmocka_unit_test(stop__another_by_a_signal),
		cmocka_unit_test(stop__before_serving_begins),
		cmocka_unit_test(stop__by_a_hasty_shutdown_of_another_thread),
		cmocka_unit_test(stop__by_a_shutdown_of_another_thread),
		cmocka_unit_test(stop__by_another_thread_many_times),
		cmocka_unit_test(stop__rank_0_by_a_signal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
