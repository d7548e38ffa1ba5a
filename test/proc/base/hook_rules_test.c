/* SPDX-License-Identifier: Apache-2.0 */
/* Rules for the program's code: the places where it does not run, and the calls it may not make.
 * Also its log, and its end. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "hooks.h"

/* ---- places without hooks ---- */

static pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER;

static void then_lock(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	TG_CHECK(pthread_mutex_lock(&mine) == 0);
	pthread_mutex_unlock(&mine);
	atomic_fetch_add(&ran, 1);
}

static void release_lock(void *arg)
{
	then_lock(NULL, arg);
}

/* Each call that does not wait returns, though the program holds a lock that its hooks take. */
TG_TEST(calls__run_no_hooks, 2)
{
	ctx = tg_join(rank);
	tg_meet_serving(ctx, 0);
	for (int i = 0; rank == 0 && i < tg_scale(200); i++) {
		struct rref_stats s = { .size = sizeof(s) };
		struct rref_future *f, *g;
		struct rref *unset, *ref;
		struct rref_mem *mem;
		void *data, *at;
		int n = 3;

		atomic_store(&ran, 0);
		TG_OK(rref_mem_alloc(ctx, 4096, &mem, &at));
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		TG_OK(rref_to_here_async(unset, RREF_DEFAULT, &f));
		TG_OK(rref_future_then(f, then_lock, NULL));
		TG_OK(rref_to_here_async(unset, RREF_DEFAULT, &g));
		TG_OK(rref_future_then(g, then_lock, NULL));
		TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 8), release_lock, NULL, &ref));
		pthread_mutex_lock(&mine);
		TG_OK(rref_future_cancel(f));
		rref_release(ref);
		TG_OK(rref_set(unset));
		TG_OK(rref_new(ctx, "x", 1, &ref));
		TG_OK(rref_get_stats(ctx, &s));
		rref_release(ref);
		rref_release(unset);
		rref_future_free(f);
		rref_future_free(g);
		TG_IS(atomic_load(&ran), 0);
		pthread_mutex_unlock(&mine);
		TG_CHECK(tg_eventually(all_ran, ctx, &n));
		TG_OK(rref_mem_deregister(mem));
	}
	tg_finish(ctx);
	return 0;
}

static pthread_t program;
static _Thread_local bool in_then; /* set in a callback: a complete future runs it at once */

static void then_whose(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	TG_CHECK(!pthread_equal(pthread_self(), program) || in_then);
	atomic_fetch_add(&ran, 1);
}

/* A thread that waits runs no other hook when there is a poller. */
TG_TEST(waits__run_no_hooks_where_there_is_a_poller, 2)
{
	ctx = tg_join(rank);
	tg_meet_serving(ctx, 0);
	program = pthread_self();
	for (int i = 0; rank == 0 && tg_mode() != RREF_PROGRESS_MANUAL && i < tg_scale(500); i++) {
		struct rref_future *f;
		int n = i + 1;

		TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &f));
		in_then = true;
		TG_OK(rref_future_then(f, then_whose, NULL));
		in_then = false;
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		until(all_ran, n);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- calls that may not be made ---- */

static void then_end(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0), -EDEADLK);
	rref_free_ctx(ctx);
	atomic_fetch_add(&ran, 1);
}

TG_TEST(callback__cannot_end_its_context, 1)
{
	struct rref_future *f;
	int n = 1;

	ctx = tg_join(rank);
	TG_OK(rref_rpc_async(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_then(f, then_end, NULL));
	TG_CHECK(tg_eventually(all_ran, ctx, &n));
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

static _Atomic int scoped;
static struct rref *known;
static struct rref_future *pending;
static struct rref_queue *queue;

static void scope_calls(void *arg, const struct rref_scope *scope)
{
	struct rref_stats s = { .size = sizeof(s) };
	struct rref_ctx *c = *(struct rref_ctx **)arg;
	struct rref_future *f;
	struct rref_view *v;
	struct rref *ref;
	char buf[64];

	(void)scope;
	if (!c || !known)
		return;
	TG_IS(rref_get_stats(c, &s), -EDEADLK);
	TG_IS(rref_new(c, "x", 1, &ref), -EDEADLK);
	TG_IS(rref_to_here(known, RREF_DEFAULT, &v), -EDEADLK);
	TG_IS(rref_rpc_sync(c, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EDEADLK);
	TG_IS(rref_future_wait(pending, 0), -EDEADLK);
	TG_IS(rref_future_cancel(pending), -EDEADLK);
	TG_IS(rref_wait_any(&pending, 1, 0), -EDEADLK);
	TG_IS(rref_queue_add(queue, pending, NULL), -EDEADLK);
	TG_IS(rref_queue_next(queue, 0, &f, NULL), -EDEADLK);
	TG_IS(rref_queue_fd(queue), -EDEADLK);
	TG_IS(rref_queue_arm(queue), -EDEADLK);
	TG_IS(rref_progress(c), -EDEADLK);
	TG_IS(rref_ctx_arm(c), -EDEADLK);
	TG_IS(rref_dump(c, buf, sizeof(buf)), -EDEADLK);
	TG_IS(rref_shutdown(c, RREF_SHUTDOWN_NOW, 0), -EDEADLK);
	rref_free_ctx(c); /* does nothing, either */
	TG_CHECK(rref_owner(known) == 0);
	rref_release(rref_dup(known));
	atomic_fetch_add(&scoped, 1);
}

TG_TEST(scope_hook__calls_are_refused, 1)
{
	struct rref_options o;
	struct rref_view *v;
	void *data;
	struct rref *unset;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.scope = scope_calls;
	o.scope_ctx = &ctx;
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_alloc(ctx, 8, &unset, &data));
	TG_OK(rref_queue_new(ctx, &queue));
	TG_OK(rref_to_here_async(unset, RREF_DEFAULT, &pending));
	TG_OK(rref_new(ctx, "abc", 4, &known));
	TG_OK(rref_to_here(known, RREF_DEFAULT, &v));
	rref_view_free(v);
	TG_OK(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_set(unset)); /* ends the scope of a read that waited, under the lock */
	TG_OK(rref_future_wait(pending, RREF_DEFAULT));
	TG_CHECK(atomic_load(&scoped) >= 5);
	rref_future_free(pending);
	rref_release(unset);
	rref_release(known);
	tg_finish(ctx);
	return 0;
}

/* ---- the log ---- */

static _Atomic int lines, first, last, in_order, told;

static void log_counts(void *arg, enum rref_log_level level, const char *text)
{
	struct rref_stats s = { .size = sizeof(s) };
	int n;

	(void)arg, (void)level;
	if (ctx && at_load(&ctx->state) == RC_CTX_RUNNING)
		TG_OK(rref_get_stats(ctx, &s)); /* the function may ask the library */
	if (sscanf(text, "line %d", &n) == 1) {
		if (!atomic_fetch_add(&lines, 1))
			atomic_store(&first, n), block();
		else
			atomic_fetch_add(&in_order, n == atomic_load(&last) + 1);
		atomic_store(&last, n);
	}
	if (sscanf(text, "%d log lines were dropped", &n) == 1)
		atomic_store(&told, n);
}

static bool is_told(struct rref_ctx *c, void *arg)
{
	(void)c, (void)arg;
	return atomic_load(&told) != 0;
}

/* Lines come in order, one at a time. A log function that takes no
 * line loses lines, and hears how many. */
TG_TEST(log_function__is_slow, 1)
{
	struct rref_options o;
	pthread_t driver;

	tg_options(&o, rank);
	o.log = log_counts;
	TG_OK(rref_init(&o, &ctx));
	reset();
	start_driver(&driver);
	rc_lock(ctx); /* lines are written with the lock, too */
	rc_log(ctx, RREF_LOG_ERROR, "line 0");
	rc_unlock(ctx);
	until(has_entered, 1);
	for (int i = 1; i <= 1000; i++)
		rc_log(ctx, RREF_LOG_ERROR, "line %d", i);
	atomic_store(&may_leave, 1);
	until(is_told, 0);
	stop_driver(driver);
	TG_IS(atomic_load(&first), 0);
	TG_IS(atomic_load(&lines), 257);
	TG_IS(atomic_load(&in_order), 256);
	TG_IS(atomic_load(&told), 1000 - 256);
	tg_finish(ctx);
	return 0;
}

/* The last lines, also from the shutdown, are delivered before it returns. */
TG_TEST(log__is_complete_when_the_shutdown_returns, 1)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.log = log_counts;
	TG_OK(rref_init(&o, &ctx));
	atomic_store(&may_leave, 1);
	for (int i = 0; i < 100; i++)
		rc_log(ctx, RREF_LOG_ERROR, "line %d", i);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	TG_IS(atomic_load(&lines), 100);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- a context that ends while hooks run ---- */

static void *end_now(void *arg)
{
	(void)arg;
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	return NULL;
}

static void then_count(struct rref_future *f, void *arg)
{
	(void)arg;
	TG_CHECK(rref_future_test(f) == 1);
	usleep(1000);
	atomic_fetch_add(&ran, 1);
}

/* Each callback runs once. The context is freed only when the thread
 * that shuts it down has finished with it. */
TG_TEST(shutdown__runs_the_remaining_hooks, 1)
{
	for (int round = 0; round < 10; round++) {
		struct rref_future *f[40];
		struct rref *unset;
		pthread_t t;
		void *data;

		ctx = tg_join(rank);
		atomic_store(&ran, 0);
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		for (size_t i = 0; i < array_size(f); i++) {
			TG_OK(rref_to_here_async(unset, RREF_DEFAULT, &f[i]));
			TG_OK(rref_future_then(f[i], then_count, NULL));
		}
		TG_CHECK(pthread_create(&t, NULL, end_now, NULL) == 0);
		if (round % 2)
			pthread_join(t, NULL);
		else
			while (!at_load(&ctx->end.closing) && at_load(&ctx->state) != RC_CTX_SHUT)
				usleep(10);
		if (round % 2) {
			TG_IS(atomic_load(&ran), 40);
			for (size_t i = 0; i < array_size(f); i++)
				rref_future_free(f[i]);
			rref_release(unset);
		}
		rref_free_ctx(ctx);
		if (round % 2 == 0) {
			pthread_join(t, NULL);
			TG_IS(atomic_load(&ran), 40);
		}
	}
	return 0;
}

/* ---- two contexts of one process ---- */

static struct rref_ctx *group[2];
static char places[2][64];

static int over_the_other(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_rpc_sync(group[1], rref_call_caller(call), "back", NULL, RREF_DEFAULT, NULL);
}

static int back(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_rpc_sync(group[0], rref_call_caller(call), "tg.nothing", NULL, RREF_DEFAULT,
			     NULL);
}

/* Lets handlers of one group wait in the other, whose handlers wait in the first. More of them wait
 * at once than either pool has threads. */
static int two_groups(int rank, void *arg)
{
	static const struct rref_function own[] = { { .name = "over", .handler = over_the_other },
						    { .name = "back", .handler = back } };
	struct rref_future *f[12];
	struct rref_options o;

	(void)arg;
	for (int g = 0; g < 2; g++) {
		tg_options(&o, rank);
		o.rendezvous = places[g];
		o.functions = tg_functions;
		o.nr_functions = tg_nr_functions;
		o.nr_threads = 2;
		TG_OK(rref_init(&o, &group[g]));
	}
	for (int g = 0; g < 2; g++)
		for (size_t i = 0; i < array_size(own); i++)
			TG_OK(rref_register(group[g], &own[i]));
	tg_meet(1);
	if (rank == 0) {
		for (size_t i = 0; i < array_size(f); i++)
			TG_OK(rref_rpc_async(group[0], 1, "over", NULL, RREF_DEFAULT, &f[i]));
		for (size_t i = 0; i < array_size(f); i++) {
			/* no other thread serves both in the manual mode */
			while (!rref_future_test(f[i])) {
				rref_progress(group[0]);
				rref_progress(group[1]);
				usleep(100);
			}
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			rref_future_free(f[i]);
		}
		tg_set_flag(2, 1);
	}
	while (tg_flag(2) < 1) {
		rref_progress(group[0]);
		rref_progress(group[1]);
		usleep(100);
	}
	tg_finish(group[0]);
	tg_finish(group[1]);
	return 0;
}

static void contexts__do_not_use_up_each_others_threads(void **state)
{
	(void)state;
	for (int g = 0; g < 2; g++)
		tg_free_place(places[g], sizeof(places[g]));
	assert_int_equal(tg_run(2, two_groups, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(calls__run_no_hooks),
		cmocka_unit_test(waits__run_no_hooks_where_there_is_a_poller),
		cmocka_unit_test(callback__cannot_end_its_context),
		cmocka_unit_test(scope_hook__calls_are_refused),
		cmocka_unit_test(log_function__is_slow),
		cmocka_unit_test(log__is_complete_when_the_shutdown_returns),
		cmocka_unit_test(shutdown__runs_the_remaining_hooks),
		cmocka_unit_test(contexts__do_not_use_up_each_others_threads),
	};

	return cmocka_run_group_tests_name("hook_rules", tests, NULL, NULL);
}
