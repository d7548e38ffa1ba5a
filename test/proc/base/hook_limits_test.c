/* SPDX-License-Identifier: Apache-2.0 */
/* The program's code at its limits: hooks that need each other, many hooks at once, and ends. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/engine.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

static struct rref_ctx *ctx;
static _Atomic int entered, go, ran;

static void until_at_least(_Atomic int *what, int n, bool serve)
{
	int64_t end = tg_deadline();

	while (atomic_load(what) < n) {
		TG_CHECK(now_ns() < end);
		if (serve)
			rref_progress(ctx);
		usleep(200);
	}
}

static struct rref_future *of_unset(struct rref **unset)
{
	struct rref_future *f;
	void *data;

	TG_OK(rref_alloc(ctx, 8, unset, &data));
	TG_OK(rref_to_here_async(*unset, RREF_FOREVER, &f));
	return f;
}

static void then_go(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	atomic_store(&go, 1);
	atomic_fetch_add(&ran, 1);
}

static void then_wait_for_go(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	atomic_fetch_add(&entered, 1);
	until_at_least(&go, 1, false);
	atomic_fetch_add(&ran, 1);
}

/* ---- the end of a context ---- */

/* Waits for a callback by the program's own means. */
static int handler_needs_callback(struct rref_call *call, void *arg)
{
	struct rref *unset;
	struct rref_future *f = of_unset(&unset);

	(void)call, (void)arg;
	TG_OK(rref_future_then(f, then_go, NULL));
	atomic_fetch_add(&entered, 1);
	until_at_least(&go, 1, false);
	rref_future_free(f);
	rref_release(unset);
	return 0;
}

TG_TEST(shutdown__runs_a_callback_for_a_waiting_handler, 1)
{
	static const struct rref_function fn = { .name = "needs",
						 .handler = handler_needs_callback };
	struct rref_future *f;

	ctx = tg_join(rank);
	TG_OK(rref_register(ctx, &fn));
	TG_OK(rref_rpc_async(ctx, 0, "needs", NULL, RREF_FOREVER, &f));
	until_at_least(&entered, 1, true);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	TG_IS(atomic_load(&ran), 1);
	rref_future_free(f);
	rref_free_ctx(ctx);
	return 0;
}

/* The first callback in the queue waits for the second. In the manual mode one thread runs both. */
TG_TEST(shutdown__runs_a_callback_for_another_callback, 1)
{
	struct rref_future *f[2];
	struct rref *unset[2];

	ctx = tg_join(rank);
	for (int i = 0; i < 2; i++) {
		bool waits = i == 0 && tg_mode() != RREF_PROGRESS_MANUAL;

		f[i] = of_unset(&unset[i]);
		TG_OK(rref_future_then(f[i], waits ? then_wait_for_go : then_go, NULL));
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	TG_IS(atomic_load(&ran), 2);
	for (int i = 0; i < 2; i++) {
		rref_future_free(f[i]);
		rref_release(unset[i]);
	}
	rref_free_ctx(ctx);
	return 0;
}

static void log_asks(void *arg, enum rref_log_level level, const char *text)
{
	struct rref_stats s = { .size = sizeof(s) };

	(void)arg, (void)level;
	if (strcmp(text, "the last line"))
		return;
	TG_OK(rref_get_stats(ctx, &s));
	atomic_fetch_add(&ran, 1);
}

/* A line between the shutdown and the free finds the context whole. */
TG_TEST(free__delivers_lines_first, 1)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.log = log_asks;
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	rc_log(ctx, RREF_LOG_ERROR, "the last line");
	rref_free_ctx(ctx);
	TG_IS(atomic_load(&ran), 1);
	return 0;
}

/* ---- the handlers' threads ---- */

static int call_back_slowly(struct rref_call *call, void *arg)
{
	(void)arg;
	usleep(20000); /* beyond a waiter's patience */
	return rref_rpc_sync(rref_call_context(call), rref_call_caller(call), "tg.nothing", NULL,
			     RREF_DEFAULT, NULL);
}

static int handler_waits(struct rref_call *call, void *arg)
{
	(void)call;
	atomic_fetch_add(&entered, 1);
	return rref_future_wait(arg, RREF_FOREVER);
}

static _Atomic int result;

static void then_call(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	atomic_store(&result, rref_rpc_sync(ctx, 1, "call_back", NULL, 5 * NSEC_PER_SEC, NULL));
	atomic_fetch_add(&ran, 1);
}

/*
 * A handler's thread runs a callback while it waits, in the manual mode. The callback waits for a
 * call that another thread of the pool has to serve.
 */
TG_TEST(handler__waiting_in_its_own_callback_counts_once, 2)
{
	struct rref_function own = { .name = "call_back", .handler = call_back_slowly };
	struct rref_options o;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.nr_threads = 1;
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_register(ctx, &own));
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref *unset, *unset2;
		struct rref_future *f, *g, *call;

		f = of_unset(&unset);
		g = of_unset(&unset2);
		own = (struct rref_function){ .name = "waits", .handler = handler_waits, .arg = f };
		TG_OK(rref_register(ctx, &own));
		TG_OK(rref_rpc_async(ctx, 0, "waits", NULL, RREF_FOREVER, &call));
		until_at_least(&entered, 1, true);
		usleep(50000); /* manual mode: hooks are not left to this thread any more */
		TG_OK(rref_future_then(g, then_call, NULL));
		TG_OK(rref_set(unset2));
		until_at_least(&ran, 1, false);
		TG_OK(atomic_load(&result));
		TG_OK(rref_set(unset));
		TG_OK(rref_future_wait(call, RREF_DEFAULT));
		rref_future_free(call);
		rref_future_free(f);
		rref_future_free(g);
		rref_release(unset);
		rref_release(unset2);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- many at once ---- */

#define MANY 400

static void then_take_time(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	usleep(3000);
	atomic_fetch_add(&ran, 1);
}

/* Each of many callbacks is short, but all together take long. A time-out comes between them. */
TG_TEST(callbacks__in_large_numbers_leave_time_for_the_engine, 2)
{
	struct rref_future *f[MANY], *late;
	int64_t end = tg_deadline();
	struct rref *unset;
	void *data;

	ctx = tg_join(rank);
	tg_meet_serving(ctx, 0);
	if (rank == 0 && tg_mode() != RREF_PROGRESS_MANUAL) {
		/* make the session */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		for (int i = 0; i < MANY; i++) {
			TG_OK(rref_to_here_async(unset, RREF_DEFAULT, &f[i]));
			TG_OK(rref_future_then(f[i], then_take_time, NULL));
		}
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 30 * MS, &late));
		TG_OK(rref_set(unset));
		while (!rref_future_test(late)) {
			TG_CHECK(now_ns() < end);
			usleep(300);
		}
		TG_CHECK(atomic_load(&ran) < MANY / 2);
		until_at_least(&ran, MANY, false);
		for (int i = 0; i < MANY; i++)
			rref_future_free(f[i]);
		rref_future_free(late);
		rref_release(unset);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
	}
	tg_finish(ctx);
	return 0;
}

/* No thread is left when the first callback blocks. Later there is a thread for the second. */
TG_TEST(callback__without_a_free_thread_runs_later, 1)
{
	struct rref_future *f[2];
	struct rref *unset[2];
	struct rlimit before, none;

	if (tg_mode() == RREF_PROGRESS_MANUAL)
		return 0;
	/* The limit does not hold for root. */
	if (geteuid() == 0) {
		TG_IS(setresgid(12345, 12345, 12345), 0);
		TG_IS(setresuid(12345, 12345, 12345), 0);
	}
	ctx = tg_join(rank);
	for (int i = 0; i < 2; i++)
		f[i] = of_unset(&unset[i]);
	TG_IS(getrlimit(RLIMIT_NPROC, &before), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = before.rlim_max };
	TG_IS(setrlimit(RLIMIT_NPROC, &none), 0);
	TG_OK(rref_future_then(f[0], then_wait_for_go, NULL));
	TG_OK(rref_set(unset[0]));
	until_at_least(&entered, 1, false);
	usleep(50000);
	TG_OK(rref_future_then(f[1], then_go, NULL));
	TG_OK(rref_set(unset[1]));
	usleep(50000);
	TG_IS(atomic_load(&ran), 0);
	TG_IS(setrlimit(RLIMIT_NPROC, &before), 0);
	until_at_least(&ran, 2, false);
	for (int i = 0; i < 2; i++) {
		rref_future_free(f[i]);
		rref_release(unset[i]);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- calls while all callbacks that there may be wait ---- */

static struct rref *gate;
static struct rref_future *opened;

enum { FULL = 1 }; /* a flag of the run */

static void then_call_inline(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	if (atomic_fetch_add(&entered, 1) + 1 == (tg_mode() == RREF_PROGRESS_MANUAL ? 8 : 15))
		tg_set_flag(FULL, 1);
	TG_OK(rref_future_wait(opened, RREF_FOREVER));
	TG_OK(rref_rpc_sync(ctx, 0, "tg.echo_inline", NULL, RREF_DEFAULT, NULL));
	TG_IS(rref_rpc_sync(ctx, 0, "none", NULL, RREF_DEFAULT, NULL), -ENOSYS);
	atomic_fetch_add(&ran, 1);
}

/* Checks that calls, creations and reads are answered that need a hook of the busy worker. */
static void calls_are_answered(void)
{
	struct rref *holder = tg_kept(0), *held;
	struct rref_view *v;

	TG_OK(rref_rpc_sync(ctx, 0, "tg.echo_inline", NULL, RREF_DEFAULT, NULL));
	TG_IS(rref_rpc_sync(ctx, 0, "none", NULL, RREF_DEFAULT, NULL), -ENOSYS);
	TG_OK(rref_to_here(holder, RREF_DEFAULT, &v));
	TG_OK(rref_view_ref(v, 0, RREF_DEFAULT, &held));
	rref_view_free(v);
	tg_expect_bytes(held, "held", 4);
	rref_release(held);
}

static int handler_opens(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	return rref_set(gate);
}

/*
 * All callbacks wait for inline handlers of their own worker. Meanwhile another worker calls some,
 * asks for an unknown function, and asks for a reference that a value holds. No hook can answer.
 */
TG_TEST(callbacks__all_wait_for_an_inline_handler, 2)
{
	struct rref_future *f[20];
	struct rref *unset, *held, *holder;
	int n = array_size(f);
	void *data;

	ctx = tg_join_refs(rank);
	tg_add(ctx, "open", handler_opens, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_OK(rref_new(ctx, "held", 4, &held));
		TG_OK(rref_new_value(
			ctx, TG_VALUE(.data = "holder", .length = 6, .refs = &held, .nr_refs = 1),
			&holder));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&holder, 1), RREF_DEFAULT, NULL));
		opened = of_unset(&gate);
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		for (int i = 0; i < n; i++) {
			TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f[i]));
			TG_OK(rref_future_then(f[i], then_call_inline, NULL));
		}
		TG_OK(rref_set(unset));
		until_at_least(&ran, n, true);
		for (int i = 0; i < n; i++)
			rref_future_free(f[i]);
		rref_future_free(opened);
		rref_release(gate);
		rref_release(unset);
		rref_release(holder);
		rref_release(held);
	} else {
		tg_wait_flag_serving(ctx, FULL, 1);
		calls_are_answered();
		TG_OK(rref_rpc_sync(ctx, 0, "open", NULL, RREF_DEFAULT, NULL));
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* ---- how deep ---- */

static struct rref *last;
static struct rref_future *never;
static int deep;
static long slept = -1;

static void then_nest(struct rref_future *f, void *arg)
{
	long before = tg_sleeps();

	(void)f, (void)arg;
	if (slept < 0 && ++deep < 8) {
		TG_OK(rref_future_wait(never, RREF_FOREVER));
	} else if (slept < 0) {
		TG_IS(rref_future_wait(never, 300 * MS), -ETIMEDOUT);
		slept = tg_sleeps() - before;
		TG_OK(rref_set(last));
	}
	atomic_fetch_add(&ran, 1);
}

/* Hooks are nested as deep as possible, in the manual mode. The
 * thread leaves the other hooks, and sleeps. */
TG_TEST(callback__nested_deepest_sleeps_in_its_waits, 1)
{
	struct rref_future *f[12];
	struct rref *unset;
	void *data;

	ctx = tg_join(rank);
	if (tg_mode() == RREF_PROGRESS_MANUAL) {
		never = of_unset(&last);
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		for (size_t i = 0; i < array_size(f); i++) {
			TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f[i]));
			TG_OK(rref_future_then(f[i], then_nest, NULL));
		}
		TG_OK(rref_set(unset));
		TG_OK(rref_future_wait(never, RREF_FOREVER));
		until_at_least(&ran, (int)array_size(f), true);
		TG_CHECK(slept > 0);
		for (size_t i = 0; i < array_size(f); i++)
			rref_future_free(f[i]);
		rref_future_free(never);
		rref_release(unset);
		rref_release(last);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- memory that comes back ---- */

static void release_write(void *arg)
{
	usleep(500);
	*(volatile char *)arg = 1;
	atomic_fetch_add(&ran, 1);
}

static int refused, early;

/* Releases a region's references and gives the region up: its callback has run by then. */
static void give_up(int nr)
{
	for (int i = 0; i < nr; i++) {
		int before = atomic_load(&ran), err;
		struct rref_mem *mem;
		struct rref *ref;
		void *at;

		TG_OK(rref_mem_alloc(ctx, 4096, &mem, &at));
		TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 8), release_write, at, &ref));
		rref_release(ref);
		if (i % 3)
			usleep(i % 100);
		while ((err = rref_mem_deregister(mem)) == -EBUSY)
			refused++;
		TG_OK(err);
		early += atomic_load(&ran) != before + 1;
	}
}

static int handler_gives_up(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	give_up(tg_scale(500));
	return 0;
}

static struct rref_mem *shared;
static _Atomic int freed;

/* Deregisters the memory in the second of two callbacks. The first one waits until then. */
static void release_both(void *arg)
{
	(void)arg;
	if (atomic_fetch_add(&entered, 1) == 1) {
		TG_OK(rref_mem_deregister(shared));
		atomic_store(&freed, 1);
	} else if (tg_mode() != RREF_PROGRESS_MANUAL) {
		until_at_least(&freed, 1, false);
	}
	atomic_fetch_add(&ran, 1);
}

TG_TEST(deregister__waits_for_release_callbacks, 1)
{
	static const struct rref_function fn = { .name = "give_up", .handler = handler_gives_up };

	ctx = tg_join(rank);
	TG_OK(rref_register(ctx, &fn));
	give_up(tg_scale(1000));
	TG_OK(rref_rpc_sync(ctx, 0, "give_up", NULL, RREF_FOREVER, NULL));
	TG_IS(refused, 0);
	TG_IS(early, 0);
	tg_finish(ctx);
	return 0;
}

/* A release callback does not wait for another one, which may wait for the first. */
TG_TEST(deregister__in_a_release_callback, 1)
{
	struct rref *ref[2];
	void *at;

	ctx = tg_join(rank);
	TG_OK(rref_mem_alloc(ctx, 4096, &shared, &at));
	for (size_t i = 0; i < array_size(ref); i++)
		TG_OK(rref_wrap(shared, TG_VALUE(.data = (char *)at + i, .length = 1), release_both,
				NULL, &ref[i]));
	rref_release(ref[0]);
	rref_release(ref[1]);
	until_at_least(&ran, 2, true);
	tg_finish(ctx);
	return 0;
}

/* ---- a wake-up that another sleeper takes ---- */

static _Atomic int awake;

static void *wait_for_it(void *arg)
{
	TG_OK(rref_future_wait(arg, RREF_FOREVER));
	atomic_fetch_add(&awake, 1);
	return NULL;
}

/*
 * A waiter and an event loop sleep on the devices, in the manual mode. The loop's thread ends the
 * wait, and takes the wake-up of both.
 */
TG_TEST(waiter__loses_its_wake_up_to_the_loop, 1)
{
	int lost = 0;

	ctx = tg_join(rank);
	for (int i = 0; i < 50 && tg_mode() == RREF_PROGRESS_MANUAL; i++) {
		struct rref *unset;
		struct rref_future *f = of_unset(&unset);
		bool asleep = false;
		pthread_t t;

		TG_CHECK(pthread_create(&t, NULL, wait_for_it, f) == 0);
		while (!asleep) {
			rc_lock(ctx);
			asleep = ctx->sleep.device_sleeper && ctx->sleep.arms & RC_ARM_WAITER;
			rc_unlock(ctx);
		}
		usleep(1000);
		while (rref_ctx_arm(ctx))
			rref_progress(ctx);
		TG_OK(rref_set(unset));
		rref_progress(ctx);
		rc_lock(ctx);
		lost += ctx->sleep.device_sleeper && !at_load(&ctx->sleep.kicked);
		rc_unlock(ctx);
		pthread_join(t, NULL);
		rref_future_free(f);
		rref_release(unset);
	}
	TG_IS(lost, 0);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shutdown__runs_a_callback_for_a_waiting_handler),
		cmocka_unit_test(shutdown__runs_a_callback_for_another_callback),
		cmocka_unit_test(free__delivers_lines_first),
		cmocka_unit_test(handler__waiting_in_its_own_callback_counts_once),
		cmocka_unit_test(callbacks__in_large_numbers_leave_time_for_the_engine),
		cmocka_unit_test(callback__without_a_free_thread_runs_later),
		cmocka_unit_test(callbacks__all_wait_for_an_inline_handler),
		cmocka_unit_test(callback__nested_deepest_sleeps_in_its_waits),
		cmocka_unit_test(deregister__waits_for_release_callbacks),
		cmocka_unit_test(deregister__in_a_release_callback),
		cmocka_unit_test(waiter__loses_its_wake_up_to_the_loop),
	};

	return cmocka_run_group_tests_name("hook_limits", tests, NULL, NULL);
}
