/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleepers beside one another. In each round a thread of worker 0 sleeps until its call is
 * answered. Or it sleeps until another thread sets the value that it reads. Meanwhile the other
 * thread goes through the library in some way. Only then does worker 1 answer. In every second
 * round the other thread goes on until the sleeper is awake.
 *
 * The other thread may wrongly take a wake-up, or disarm a descriptor. An event loop then sleeps
 * for good, and a waiter sleeps until a timer looks after it (half a second). So sleeps are counted
 * that began before the answer or just behind it, and that only the time ended. Earlier timers
 * would hide the error: see nap.
 */
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/wait.h"
#include "tg_refs.h"

#define ROUNDS 8
#define LATE_NS (400 * NSEC_PER_MSEC)

/* flags of the run. GIVEN: time of the round's answer in ms; 0 = not yet */
enum { TURN = 4, ANSWER = 5, OVER = 6, GIVEN = 7 };

static struct rref_ctx *ctx;
static _Atomic int asleep; /* the round in which the sleeper is about to sleep */
static _Atomic int awake;
static _Atomic int missed; /* sleeps that an answer did not end */

/* ---- the library's sleeps ---- */

static _Atomic bool napping;
static pthread_t main_thread; /* a thread with short waits */

/* Returns a longer time for a sleep of the library: only a wake-up ends it sooner. */
static int64_t nap(int64_t ns)
{
	bool long_one = atomic_load(&napping) && !pthread_equal(pthread_self(), main_thread);

	return long_one ? max_of(ns, LATE_NS + 50 * NSEC_PER_MSEC) : ns;
}

static int in_ms(int64_t ns)
{
	return (int)(ns / NSEC_PER_MSEC % INT_MAX) | 1;
}

static pthread_mutex_t future_lock = PTHREAD_MUTEX_INITIALIZER;
static struct rref_future *awaited; /* guarded by future_lock: the sleeper's */

static bool is_awaited(void)
{
	bool is;

	pthread_mutex_lock(&future_lock);
	is = awaited && !rc_op_done(awaited);
	pthread_mutex_unlock(&future_lock);
	return is;
}

/*
 * Looks at a sleep of ns that began then, and that found nr events at its end. A busy machine may
 * run the threads late: that is no missed wake-up. So the answer counts if it came long before the
 * time was over.
 */
static int end_of_sleep(int64_t began, int64_t ns, int nr)
{
	int given = tg_flag(GIVEN);

	if (nr == 0 && ns > LATE_NS && atomic_load(&napping) &&
	    !pthread_equal(pthread_self(), main_thread) && given &&
	    given <= in_ms(began + ns - LATE_NS) && is_awaited())
		atomic_fetch_add(&missed, 1);
	return nr;
}

/* Replaces ppoll for the library, which is linked into this program. */
int ppoll(struct pollfd *fds, nfds_t nr, const struct timespec *time, const sigset_t *mask)
{
	int64_t began = now_ns(), ns = time ? nap(time->tv_sec * NSEC_PER_SEC + time->tv_nsec) : 0;
	struct timespec ts = { .tv_sec = ns / NSEC_PER_SEC, .tv_nsec = ns % NSEC_PER_SEC };

	return end_of_sleep(
		began, ns,
		(int)syscall(SYS_ppoll, fds, nr, time ? &ts : NULL, mask, (size_t)8));
}

int epoll_wait(int fd, struct epoll_event *events, int nr, int ms)
{
	/* 0 means a look without a sleep. */
	int64_t began = now_ns(), ns = ms > 0 ? nap(ms * NSEC_PER_MSEC) : ms * NSEC_PER_MSEC;

	return end_of_sleep(began, ns,
			    epoll_pwait(fd, events, nr, (int)(ns / NSEC_PER_MSEC), NULL));
}

/* ---- the sleepers: each begins one call and returns when it is answered ---- */

static bool local; /* the sleeper's event comes from its own worker */
static struct rref *value;

static struct rref_future *begin(void)
{
	struct rref_future *f;
	void *data;

	if (local) {
		TG_OK(rref_alloc(ctx, 8, &value, &data));
		TG_OK(rref_to_here_async(value, RREF_FOREVER, &f));
	} else {
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f));
	}
	pthread_mutex_lock(&future_lock);
	awaited = f;
	pthread_mutex_unlock(&future_lock);
	return f;
}

static void end_future(struct rref_future *f)
{
	pthread_mutex_lock(&future_lock);
	awaited = NULL;
	pthread_mutex_unlock(&future_lock);
	rref_future_free(f);
}

static void sleep_in_wait(void)
{
	struct rref_future *f = begin();

	atomic_fetch_add(&asleep, 1);
	TG_OK(rref_future_wait(f, RREF_FOREVER));
	end_future(f);
}

static void sleep_in_wait_any(void)
{
	struct rref_future *f[3];
	struct rref *unset[2];
	void *data;

	for (int i = 0; i < 2; i++) {
		TG_OK(rref_alloc(ctx, 8, &unset[i], &data));
		TG_OK(rref_to_here_async(unset[i], RREF_FOREVER, &f[2 * i]));
	}
	f[1] = begin();
	atomic_fetch_add(&asleep, 1);
	TG_IS(rref_wait_any(f, 3, RREF_FOREVER), 1);
	for (int i = 0; i < 2; i++) {
		TG_OK(rref_set(unset[i]));
		TG_OK(rref_future_wait(f[2 * i], RREF_DEFAULT));
		rref_release(unset[i]);
	}
	for (int i = 0; i < 3; i++)
		end_future(f[i]);
}

static void sleep_in_loop(void)
{
	struct rref_future *f = begin();
	struct pollfd p = { .fd = rref_ctx_fd(ctx), .events = POLLIN };

	atomic_fetch_add(&asleep, 1);
	for (;;) {
		while (rref_progress(ctx) > 0)
			;
		if (rref_future_test(f))
			break;
		if (rref_ctx_arm(ctx))
			continue;
		TG_CHECK(poll(&p, 1, 20000) == 1);
	}
	TG_OK(rref_future_wait(f, 0));
	end_future(f);
}

/* Waits on a thread of the pool. */
static int handler_waits(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	sleep_in_wait();
	return 0;
}

static void sleep_in_handler(void)
{
	TG_OK(rref_rpc_sync(ctx, 0, "handler_waits", NULL, RREF_FOREVER, NULL));
}

static const struct sleeper {
	const char *name;
	void (*sleep)(void);
} sleepers[] = {
	{ "wait", sleep_in_wait },
	{ "wait_any", sleep_in_wait_any },
	{ "loop", sleep_in_loop },
	{ "handler", sleep_in_handler },
};

/* ---- the other thread ---- */

static void nothing(void)
{
}

static void progress(void)
{
	for (int i = 0; i < 20; i++)
		TG_CHECK(rref_progress(ctx) >= 0);
}

static void short_call(void)
{
	TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
}

/* Waits for longer than a waiter's patience. */
static void long_wait(void)
{
	TG_OK(rref_rpc_sync(ctx, 1, "slow", NULL, RREF_DEFAULT, NULL));
}

static void long_wait_any(void)
{
	struct rref_future *f;

	TG_OK(rref_rpc_async(ctx, 1, "slow", NULL, RREF_DEFAULT, &f));
	TG_IS(rref_wait_any(&f, 1, RREF_DEFAULT), 0);
	rref_future_free(f);
}

static void wait_that_times_out(void)
{
	struct rref *unset;
	struct rref_view *v;
	void *data;

	TG_OK(rref_alloc(ctx, 8, &unset, &data));
	TG_IS(rref_to_here(unset, 5 * NSEC_PER_MSEC, &v), -ETIMEDOUT);
	TG_OK(rref_set(unset));
	rref_release(unset);
}

static void make_and_release(void)
{
	struct rref *ref;

	TG_OK(rref_new(ctx, "abc", 4, &ref));
	rref_release(ref);
}

static const struct other {
	const char *name;
	void (*run)(void);
} others[] = {
	{ "nothing", nothing },
	{ "progress", progress },
	{ "short_call", short_call },
	{ "long_wait", long_wait },
	{ "long_wait_any", long_wait_any },
	{ "wait_that_times_out", wait_that_times_out },
	{ "make_and_release", make_and_release },
};

static int slow(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	usleep(5000);
	return 0;
}

/* ---- the rounds ---- */

static void answer(int *rounds)
{
	if (!local) {
		tg_set_flag(ANSWER, ++*rounds);
		return;
	}
	TG_OK(rref_set(value));
	tg_set_flag(GIVEN, in_ms(now_ns()));
	rref_release(value);
}

static void until_at_least(_Atomic int *what, int n)
{
	int64_t end = tg_deadline();

	while (atomic_load(what) < n) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
}

static void *run_sleeper(void *arg)
{
	const struct sleeper *s = arg;

	for (int i = 0; i < ROUNDS; i++) {
		s->sleep();
		atomic_fetch_add(&awake, 1);
		tg_wait_flag(TURN, i + 1);
	}
	return NULL;
}

static void pair(const struct sleeper *s, const struct other *o, int *rounds)
{
	pthread_t t;

	atomic_store(&asleep, 0);
	atomic_store(&awake, 0);
	atomic_store(&missed, 0);
	tg_set_flag(TURN, 0);
	atomic_store(&napping, true);
	TG_CHECK(pthread_create(&t, NULL, run_sleeper, (void *)(uintptr_t)s) == 0);
	for (int i = 0; i < ROUNDS; i++) {
		until_at_least(&asleep, i + 1);
		usleep(3000); /* beyond a waiter's patience: it sleeps */
		o->run();
		usleep(i % 2 ? 2000 : 0);
		answer(rounds);
		for (int64_t end = now_ns() + LATE_NS; i % 2 && atomic_load(&awake) == i;) {
			o->run();
			if (now_ns() >= end)
				break;
		}
		until_at_least(&awake, i + 1);
		for (int64_t end = tg_deadline(); !tg_flag(GIVEN); usleep(200))
			TG_CHECK(now_ns() < end);
		tg_set_flag(GIVEN, 0);
		tg_set_flag(TURN, i + 1);
	}
	pthread_join(t, NULL);
	atomic_store(&napping, false);
	if (atomic_load(&missed))
		fprintf(stderr, "%s%s beside %s: %d sleeps in %d rounds missed an answer\n",
			s->name, local ? " for a value" : "", o->name, atomic_load(&missed),
			ROUNDS);
	TG_IS(atomic_load(&missed), 0);
}

static int sleeper_run(int rank, void *arg)
{
	static const struct rref_function own[] = { { .name = "slow", .handler = slow },
						    { .name = "handler_waits",
						      .handler = handler_waits } };
	const struct sleeper *s = arg;
	int rounds = 0;

	main_thread = pthread_self();
	ctx = tg_join(rank);
	for (size_t i = 0; i < array_size(own); i++)
		TG_OK(rref_register(ctx, &own[i]));
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		short_call();
		for (size_t i = 0; i < 2 * array_size(others); i++) {
			local = i % 2;
			pair(s, &others[i / 2], &rounds);
		}
		tg_set_flag(OVER, 1);
		tg_set_flag(ANSWER, rounds + 1);
	}
	while (rank == 1) {
		tg_wait_flag_serving(ctx, ANSWER, rounds + 1);
		if (tg_flag(OVER))
			break;
		rounds++;
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		tg_set_flag(GIVEN, in_ms(now_ns()));
	}
	tg_finish(ctx);
	return 0;
}

static void run(size_t i)
{
	assert_int_equal(tg_run(2, sleeper_run, (void *)(uintptr_t)&sleepers[i]), 0);
}

static void waiter__beside_others(void **state)
{
	(void)state;
	run(0);
}

static void wait_any__beside_others(void **state)
{
	(void)state;
	run(1);
}

static void loop__beside_others(void **state)
{
	(void)state;
	run(2);
}

static void handler__beside_others(void **state)
{
	(void)state;
	run(3);
}

/* ---- wake-ups of an event loop ---- */

static int count_inline(struct rref_call *call, void *arg)
{
	(void)call;
	atomic_fetch_add((_Atomic int *)arg, 1);
	return 0;
}

/* Another thread's wait takes in an inline call, in the manual mode.
 * The loop or that thread must run it. */
TG_TEST(loop__hears_of_calls_taken_in_by_another, 2)
{
	static _Atomic int calls;
	const struct rref_function own[] = {
		{ .name = "slow", .handler = slow },
		{ .name = "count", .handler = count_inline, .arg = &calls, .flags = RREF_INLINE }
	};

	ctx = tg_join(rank);
	for (size_t i = 0; i < array_size(own); i++)
		TG_OK(rref_register(ctx, &own[i]));
	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		for (int i = 0; i < 50; i++)
			TG_OK(rref_rpc_sync(ctx, 0, "count", NULL, RREF_DEFAULT, NULL));
		tg_set_flag(OVER, 1);
	} else {
		struct pollfd p = { .fd = rref_ctx_fd(ctx), .events = POLLIN };
		pthread_t t;

		TG_CHECK(pthread_create(&t, NULL, (void *(*)(void *))(uintptr_t)long_wait, NULL) ==
			 0);
		while (!tg_flag(OVER) &&
		       (tg_mode() == RREF_PROGRESS_MANUAL || atomic_load(&calls) < 50)) {
			while (rref_progress(ctx) > 0)
				;
			if (!rref_ctx_arm(ctx))
				poll(&p, 1,
				     tg_mode() == RREF_PROGRESS_MANUAL && atomic_load(&calls) < 50
					     ? 20000
					     : 10);
		}
		pthread_join(t, NULL);
		TG_IS(atomic_load(&calls), 50);
	}
	tg_finish(ctx);
	return 0;
}

/* Cancels a future from another thread, or completes it by setting the value, in every mode. */
static void *complete_it(void *arg)
{
	struct rref_future *f = ((struct rref_future **)arg)[0];

	usleep(3000);
	TG_OK(rref_future_cancel(f));
	return NULL;
}

TG_TEST(loop__hears_of_a_cancel, 1)
{
	struct pollfd p;

	ctx = tg_join(rank);
	p = (struct pollfd){ .fd = rref_ctx_fd(ctx), .events = POLLIN };
	for (int i = 0; i < 20; i++) {
		struct rref_future *f;
		struct rref *unset;
		pthread_t t;
		void *data;

		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
		TG_CHECK(pthread_create(&t, NULL, complete_it, &f) == 0);
		while (!rref_future_test(f)) {
			while (rref_progress(ctx) > 0)
				;
			if (!rref_ctx_arm(ctx))
				TG_CHECK(poll(&p, 1, 20000) == 1);
		}
		pthread_join(t, NULL);
		rref_future_free(f);
		TG_OK(rref_set(unset));
		rref_release(unset);
	}
	tg_finish(ctx);
	return 0;
}

/* No thread runs and nothing happens. The descriptor is not readable, so a loop sleeps. */
TG_TEST(loop__sleeps_when_nothing_happens, 2)
{
	ctx = tg_join(rank);
	short_call();
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct pollfd p = { .fd = rref_ctx_fd(ctx), .events = POLLIN };
		int64_t end = now_ns() + NSEC_PER_SEC;
		int woken = 0;

		while (now_ns() < end) {
			while (rref_progress(ctx) > 0)
				;
			if (!rref_ctx_arm(ctx))
				woken += poll(&p, 1, 100);
		}
		TG_CHECK(woken < 20);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(waiter__beside_others),
		cmocka_unit_test(wait_any__beside_others),
		cmocka_unit_test(loop__beside_others),
		cmocka_unit_test(handler__beside_others),
		cmocka_unit_test(loop__hears_of_calls_taken_in_by_another),
		cmocka_unit_test(loop__hears_of_a_cancel),
		cmocka_unit_test(loop__sleeps_when_nothing_happens),
	};

	return cmocka_run_group_tests_name("sleepers", tests, NULL, NULL);
}
