/* SPDX-License-Identifier: Apache-2.0 */
/* The program's code that the library calls: it may wait and
 * block, and nothing else of the context waits for it. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

static struct rref_ctx *ctx;
static _Atomic int entered, may_leave, left;

static void reset(void)
{
	atomic_store(&entered, 0);
	atomic_store(&may_leave, 0);
	atomic_store(&left, 0);
}

/* Blocks until the test says so, without the library. */
static void block(void)
{
	int64_t end = tg_deadline();

	atomic_fetch_add(&entered, 1);
	while (!atomic_load(&may_leave)) {
		TG_CHECK(now_ns() < end);
		usleep(300);
	}
	atomic_fetch_add(&left, 1);
}

static bool has_entered(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load(&entered) >= *(int *)arg;
}

static bool has_left(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load(&left) >= *(int *)arg;
}

/* In the manual mode the program's thread of progress: it is the one that a hook keeps. */
static _Atomic bool driving;

static void *drive(void *arg)
{
	while (atomic_load(&driving)) {
		rref_progress(arg);
		usleep(100);
	}
	return NULL;
}

static void start_driver(pthread_t *t)
{
	if (tg_mode() != RREF_PROGRESS_MANUAL)
		return;
	atomic_store(&driving, true);
	TG_CHECK(pthread_create(t, NULL, drive, ctx) == 0);
	usleep(5000); /* from its first look on, other threads leave hooks to it */
}

static void stop_driver(pthread_t t)
{
	if (tg_mode() != RREF_PROGRESS_MANUAL)
		return;
	atomic_store(&driving, false);
	TG_CHECK(pthread_join(t, NULL) == 0);
}

static void until(bool (*cond)(struct rref_ctx *c, void *arg), int n)
{
	int64_t end = tg_deadline();

	while (!cond(ctx, &n)) {
		TG_CHECK(now_ns() < end);
		usleep(300);
	}
}

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

/* While a hook of this context is out: calls both ways, time-outs, reads, other hooks. */
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
	/* The time-out of a call that no thread waits for. In the
	 * manual mode this is the only thread that makes progress. */
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

/* Brings the hook to run; it blocks. */
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
		/* On this thread, and on one that is not in the middle of anything. */
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

static void callback__that_blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "callback" }), 0);
}

static void inline_handler__that_blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "handler" }), 0);
}

static void release_callback__that_blocks(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, blocked, &(const char *){ "release" }), 0);
}

static void log_function__that_blocks(void **state)
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

/* Longer than the patience of a waiter, so that its thread
 * sleeps. No other thread is in the library meanwhile. */
TG_TEST(callback__that_waits, 2)
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
		/* And one whose call is never answered ends by its time. */
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

/* A reply that comes from an inline handler here, which the callback's own call needs. */
TG_TEST(callback__that_needs_an_inline_handler_here, 2)
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

/* ---- how deep, how many ---- */

#define MANY 2000

static _Atomic int deepest, ran;
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

static bool all_ran(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load(&ran) == *(int *)arg;
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

TG_TEST(callbacks__that_wait_do_not_pile_up_on_a_stack, 2)
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

/* More blocked callbacks than there are threads for: the rest
 * waits for one of them to end, and time-outs still come. */
TG_TEST(callbacks__more_than_there_are_threads_for, 2)
{
	struct rref_future *f[20], *late;
	int n = array_size(f);

	ctx = tg_join(rank);
	tg_meet_serving(ctx, 0);
	if (rank == 0 && tg_mode() != RREF_PROGRESS_MANUAL) {
		int64_t end = tg_deadline();

		reset();
		/* there is a session */
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

/* ---- where hooks do not run ---- */

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

/* With a lock of the program's held that the hooks take, each call that does not wait returns. */
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
static _Thread_local bool in_then; /* a future that is complete by then has its callback at once */

static void then_whose(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	TG_CHECK(!pthread_equal(pthread_self(), program) || in_then);
	atomic_fetch_add(&ran, 1);
}

/* With a poller a thread that waits for one thing is not lent out for another. */
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

static void scope_calls(void *arg, const struct rref_scope *scope)
{
	struct rref_stats s = { .size = sizeof(s) };
	struct rref_ctx *c = *(struct rref_ctx **)arg;
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
	TG_IS(rref_progress(c), -EDEADLK);
	TG_IS(rref_ctx_arm(c), -EDEADLK);
	TG_IS(rref_dump(c, buf, sizeof(buf)), -EDEADLK);
	TG_IS(rref_shutdown(c, RREF_SHUTDOWN_NOW, 0), -EDEADLK);
	rref_free_ctx(c); /* does nothing, either */
	TG_CHECK(rref_owner(known) == 0);
	rref_release(rref_dup(known));
	atomic_fetch_add(&scoped, 1);
}

TG_TEST(scope_hook__that_calls_is_refused, 1)
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
		TG_OK(rref_get_stats(ctx, &s)); /* it may ask the library */
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

/* In order, one at a time; a function that takes none loses lines and hears how many. */
TG_TEST(log_function__that_is_slow, 1)
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

/* Lines that are written last, in the shutdown too, are delivered before it returns. */
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

/* Each callback runs once, and the context is freed after the
 * thread that shuts it down is done with it. */
TG_TEST(shutdown__runs_what_is_left, 1)
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
			while (!at_load(&ctx->closing) && at_load(&ctx->state) != RC_CTX_SHUT)
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

/* Handlers of one group wait in the other, whose handlers wait
 * in the first: more at once than either pool has threads. */
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
			/* in the manual mode nobody else serves both */
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
		cmocka_unit_test(callback__that_blocks),
		cmocka_unit_test(inline_handler__that_blocks),
		cmocka_unit_test(release_callback__that_blocks),
		cmocka_unit_test(log_function__that_blocks),
		cmocka_unit_test(callback__that_waits),
		cmocka_unit_test(callback__that_needs_an_inline_handler_here),
		cmocka_unit_test(callbacks__that_wait_do_not_pile_up_on_a_stack),
		cmocka_unit_test(callbacks__more_than_there_are_threads_for),
		cmocka_unit_test(calls__run_no_hooks),
		cmocka_unit_test(waits__run_no_hooks_where_there_is_a_poller),
		cmocka_unit_test(callback__cannot_end_its_context),
		cmocka_unit_test(scope_hook__that_calls_is_refused),
		cmocka_unit_test(log_function__that_is_slow),
		cmocka_unit_test(log__is_complete_when_the_shutdown_returns),
		cmocka_unit_test(shutdown__runs_what_is_left),
		cmocka_unit_test(contexts__do_not_use_up_each_others_threads),
	};

	return cmocka_run_group_tests_name("hooks", tests, NULL, NULL);
}
