/* SPDX-License-Identifier: Apache-2.0 */
/* The program's code that the library calls. It may wait and block, and
 * nothing else of the context waits for it. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "hooks.h"

static void then_block(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	block();
}

static int block_inline(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	block();
	return 0;
}

static void release_block(void *arg)
{
	(void)arg;
	block();
}

static _Atomic bool log_blocks;

static void log_block(void *arg, enum rref_log_level level, const char *text)
{
	(void)arg, (void)level, (void)text;
	if (atomic_exchange(&log_blocks, false))
		block();
}

static void nothing_then(struct rref_future *f, void *arg)
{
	(void)f;
	atomic_fetch_add((_Atomic int *)arg, 1);
}

static bool is_value(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load((_Atomic int *)arg) == 1;
}

/* Checks that calls both ways, time-outs, reads and other hooks go on while a hook is held. */
static void everything_else_works(void)
{
	static _Atomic int called;
	struct rref_future *f, *g;
	struct rref *ref;
	struct rref_view *v;
	int64_t end = tg_deadline();

	atomic_store(&called, 0);
	TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 20 * MS, &f));
	/* A call without a waiter times out. In the manual mode no other thread makes progress. */
	while (!rref_future_test(f)) {
		TG_CHECK(now_ns() < end);
		if (tg_mode() == RREF_PROGRESS_MANUAL)
			rref_progress(ctx);
		usleep(300);
	}
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &g));
	TG_OK(rref_future_then(g, nothing_then, &called));
	while (!is_value(ctx, &called)) {
		TG_CHECK(now_ns() < end);
		if (tg_mode() == RREF_PROGRESS_MANUAL)
			rref_progress(ctx);
		usleep(300);
	}
	TG_OK(rref_new(ctx, "abc", 4, &ref));
	TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
	rref_view_free(v);
	rref_release(ref);
	/* The peer calls back, by an inline call. */
	TG_OK(rref_rpc_sync(ctx, 1, "call_back", NULL, RREF_DEFAULT, NULL));
	rref_future_free(f);
	rref_future_free(g);
}

static int call_back(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_rpc_sync(rref_call_context(call), rref_call_caller(call), "tg.echo_inline",
			     NULL, RREF_DEFAULT, NULL);
}

static struct rref_ctx *join(int rank)
{
	static const struct rref_function own[] = {
		{ .name = "block_inline", .handler = block_inline, .flags = RREF_INLINE },
		{ .name = "call_back", .handler = call_back },
	};
	struct rref_options o;
	struct rref_ctx *c;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	if (rank == 0)
		o.log = log_block;
	o.log_level = RREF_LOG_DEBUG;
	TG_OK(rref_init(&o, &c));
	for (size_t i = 0; i < array_size(own); i++)
		TG_OK(rref_register(c, &own[i]));
	return c;
}

static void *caller_waits(void *arg)
{
	(void)arg;
	everything_else_works();
	return NULL;
}

/* Makes the hook run; it blocks. */
static void bring(const char *what, struct rref_mem *mem, void *at)
{
	struct rref_future *f;
	struct rref *ref;

	if (strcmp(what, "callback") == 0) {
		TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &f));
		if (rref_future_then(f, then_block, NULL) == 0)
			rref_future_free(f);
	} else if (strcmp(what, "handler") == 0) {
		TG_OK(rref_rpc_async(ctx, 0, "block_inline", NULL, RREF_FOREVER, &f));
		rref_future_free(f);
	} else if (strcmp(what, "release") == 0) {
		TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 8), release_block, NULL, &ref));
		rref_release(ref);
	} else {
		atomic_store(&log_blocks, true);
		rc_log(ctx, RREF_LOG_ERROR, "a line");
	}
}

static int blocked(int rank, void *arg)
{
	const char *what = *(const char *const *)arg;
	struct rref_mem *mem;
	pthread_t driver, other;
	void *at;

	ctx = join(rank);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		reset();
		TG_OK(rref_mem_alloc(ctx, 4096, &mem, &at));
		start_driver(&driver);
		bring(what, mem, at);
		until(has_entered, 1);
		/* This thread works, and so does a new one. */
		TG_CHECK(pthread_create(&other, NULL, caller_waits, NULL) == 0);
		pthread_join(other, NULL);
		everything_else_works();
		TG_IS(atomic_load(&left), 0);
		atomic_store(&may_leave, 1);
		until(has_left, 1);
		stop_driver(driver);
		tg_until_held(ctx, 1, 2); /* the ones that timed out */
		TG_IS(tg_release_held(ctx, 1), 2);
		TG_OK(rref_mem_deregister(mem));
	}
	tg_finish(ctx);
	return 0;
}

static void callback__blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "callback" }), 0);
}

static void inline_handler__blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "handler" }), 0);
}

static void release_callback__blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "release" }), 0);
}

static void log_function__blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "log" }), 0);
}

/* ---- hooks that wait in the library ---- */

static int slow(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	usleep(20000);
	return 0;
}

static _Atomic int results[2];

static void then_call(struct rref_future *f, void *arg)
{
	(void)f;
	atomic_store(&results[0], rref_rpc_sync(ctx, 1, arg, NULL, 10 * NSEC_PER_SEC, NULL));
	atomic_store(&results[1], 1);
}

static bool called(struct rref_ctx *c, void *arg)
{
	(void)c, (void)arg;
	return atomic_load(&results[1]);
}

/* The wait is longer than a waiter's patience, so its thread sleeps. No
 * other thread is in the library meanwhile. */
TG_TEST(callback__waits, 2)
{
	static const struct rref_function fn = { .name = "slow", .handler = slow };
	struct rref_future *f;
	int64_t end;

	ctx = tg_join(rank);
	TG_OK(rref_register(ctx, &fn));
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_OK(rref_rpc_async(ctx, 1, "slow", NULL, RREF_DEFAULT, &f));
		TG_OK(rref_future_then(f, then_call, (void *)(uintptr_t)"slow"));
		end = tg_deadline();
		while (!called(ctx, NULL)) {
			TG_CHECK(now_ns() < end);
			if (tg_mode() == RREF_PROGRESS_MANUAL)
				rref_progress(ctx);
			usleep(1000);
		}
		TG_OK(atomic_load(&results[0]));
		/* A call that is never answered ends by its time. */
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

/* The callback's own call needs a reply from an inline handler here. */
TG_TEST(callback__needs_an_inline_handler_here, 2)
{
	static const struct rref_function fn = { .name = "call_back", .handler = call_back };
	struct rref_future *f;

	ctx = tg_join(rank);
	TG_OK(rref_register(ctx, &fn));
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &f));
		TG_OK(rref_future_then(f, then_call, (void *)(uintptr_t)"call_back"));
		TG_CHECK(tg_eventually(called, ctx, NULL));
		TG_OK(atomic_load(&results[0]));
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- depth and number ---- */

#define MANY 2000

static _Atomic int deepest;
static _Thread_local int depth;

static void then_nest(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	depth++;
	for (int d = atomic_load(&deepest);
	     depth > d && !atomic_compare_exchange_weak(&deepest, &d, depth);)
		;
	TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	depth--;
	atomic_fetch_add(&ran, 1);
}

static void *nest(void *arg)
{
	static struct rref_future *f[MANY];
	int n = tg_scale(MANY);
	struct rref *ref;
	void *data;

	(void)arg;
	TG_OK(rref_alloc(ctx, 8, &ref, &data));
	for (int i = 0; i < n; i++) {
		TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f[i]));
		TG_OK(rref_future_then(f[i], then_nest, NULL));
	}
	TG_OK(rref_set(ref)); /* all of them end at once */
	TG_CHECK(tg_eventually(all_ran, ctx, &n));
	for (int i = 0; i < n; i++)
		rref_future_free(f[i]);
	rref_release(ref);
	return NULL;
}

TG_TEST(callbacks__waiting_do_not_pile_up_on_a_stack, 2)
{
	ctx = tg_join(rank);
	if (rank == 0) {
		pthread_attr_t attr;
		pthread_t t;

		pthread_attr_init(&attr);
		TG_CHECK(pthread_attr_setstacksize(&attr, 256 << 10) == 0);
		TG_CHECK(pthread_create(&t, &attr, nest, NULL) == 0);
		pthread_join(t, NULL);
		pthread_attr_destroy(&attr);
		TG_CHECK(atomic_load(&deepest) <= (tg_mode() == RREF_PROGRESS_MANUAL ? 8 : 1));
	}
	tg_finish(ctx);
	return 0;
}

/* More callbacks block than there are threads. The others wait until one
 * of them ends, and time-outs still come. */
TG_TEST(callbacks__more_than_there_are_threads_for, 2)
{
	struct rref_future *f[20], *late;
	int n = array_size(f);

	ctx = tg_join(rank);
	tg_meet_serving(ctx, 0);
	if (rank == 0 && tg_mode() != RREF_PROGRESS_MANUAL) {
		int64_t end = tg_deadline();

		reset();
		/* make the session */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		for (int i = 0; i < n; i++) {
			TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &f[i]));
			TG_OK(rref_future_then(f[i], then_block, NULL));
		}
		until(has_entered, 15);
		for (int i = 0; i < n; i++)
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 20 * MS, &late));
		while (!rref_future_test(late)) {
			TG_CHECK(now_ns() < end);
			usleep(1000);
		}
		TG_IS(rref_future_wait(late, 0), -ETIMEDOUT);
		TG_IS(atomic_load(&entered), 15);
		atomic_store(&may_leave, 1);
		until(has_left, n);
		for (int i = 0; i < n; i++)
			rref_future_free(f[i]);
		rref_future_free(late);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(callback__blocks),
		cmocka_unit_test(inline_handler__blocks),
		cmocka_unit_test(release_callback__blocks),
		cmocka_unit_test(log_function__blocks),
		cmocka_unit_test(callback__waits),
		cmocka_unit_test(callback__needs_an_inline_handler_here),
		cmocka_unit_test(callbacks__waiting_do_not_pile_up_on_a_stack),
		cmocka_unit_test(callbacks__more_than_there_are_threads_for),
	};

	return cmocka_run_group_tests_name("hooks", tests, NULL, NULL);
}
