/* SPDX-License-Identifier: Apache-2.0 */
/* rref_wait_any: sleeps, several contexts, several threads, futures that are in a queue too. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "queue.h"

static long sleeps_of(pid_t thread)
{
	char name[64], line[100];
	long n = -1;
	FILE *f;

	snprintf(name, sizeof(name), "/proc/self/task/%d/status", (int)thread);
	f = fopen(name, "r");
	TG_CHECK(f);
	while (fgets(line, sizeof(line), f))
		sscanf(line, "voluntary_ctxt_switches: %ld", &n);
	fclose(f);
	TG_CHECK(n >= 0);
	return n;
}

/* A wait for any of several futures sleeps once, as a wait for one does. In the manual mode it
 * looks after time-outs: each 20 ms. */
TG_TEST(wait_any__that_waits_long_sleeps, 1)
{
	struct rref_future *f[5];
	struct rref *later;
	void *data;
	long before;

	ctx = tg_join(rank);
	TG_OK(rref_alloc(ctx, 8, &later, &data));
	for (size_t i = 0; i < array_size(f); i++)
		TG_OK(rref_to_here_async(later, RREF_FOREVER, &f[i]));
	before = sleeps_of(gettid());
	TG_IS(rref_wait_any(f, array_size(f), NSEC_PER_SEC), -ETIMEDOUT);
	TG_CHECK(sleeps_of(gettid()) - before < (tg_mode() == RREF_PROGRESS_MANUAL ? 120 : 20));
	TG_OK(rref_set(later));
	TG_OK(rref_wait_all(f, array_size(f), RREF_DEFAULT));
	for (size_t i = 0; i < array_size(f); i++) {
		TG_CHECK(rref_wait_any(f, array_size(f), 0) >= 0);
		rref_future_free(f[i]);
		f[i] = f[(i + 1) % array_size(f)];
	}
	rref_release(later);
	tg_finish(ctx);
	return 0;
}

static _Thread_local struct rref *to_set; /* set by this thread itself, during its wait */
static _Thread_local int64_t first_read;

/*
 * Replaces the library's clock. A wait reads it, without the lock, between its last look at the
 * futures and its sleep. It must not miss a future that ends just then. 100 us is SPIN_NS. A wait
 * that has slept reads it too, when its time is over: too late for an end.
 */
int clock_gettime(clockid_t id, struct timespec *ts)
{
	int r = (int)syscall(SYS_clock_gettime, id, ts);
	int64_t now = ts->tv_sec * NSEC_PER_SEC + ts->tv_nsec;
	struct rref *ref = to_set;

	if (!ref || id != CLOCK_MONOTONIC)
		return r;
	/* The poller may have the lock for a moment. Or this thread
	 * has it, and reads again later. */
	for (int tries = 0; !rc_trylock(ctx); tries++) {
		if (tries == 1000)
			return r;
		sched_yield();
	}
	rc_unlock_bare(ctx);
	if (!first_read)
		first_read = now;
	if (now < first_read + 100 * NSEC_PER_USEC + at_load(&ctx->sleep.extra_patience) ||
	    now > first_read + NSEC_PER_SEC / 4)
		return r;
	to_set = NULL;
	TG_OK(rref_set(ref));
	return r;
}

TG_TEST(wait_any__ends_just_before_its_sleep, 1)
{
	int nr = 0;

	ctx = tg_join(rank);
	for (int i = 0; i < 50; i++) {
		struct rref_future *f[2];
		struct rref *later[2];
		void *data;

		for (int k = 0; k < 2; k++) {
			TG_OK(rref_alloc(ctx, 8, &later[k], &data));
			TG_OK(rref_to_here_async(later[k], RREF_FOREVER, &f[k]));
		}
		first_read = 0;
		to_set = later[1];
		int found = rref_wait_any(f, 2, NSEC_PER_SEC / 2);

		if (to_set) { /* the lock was taken each time */
			to_set = NULL;
			TG_OK(rref_set(later[1]));
		} else {
			TG_IS(found, 1);
			nr++;
		}
		TG_OK(rref_set(later[0]));
		TG_OK(rref_wait_all(f, 2, RREF_DEFAULT));
		for (int k = 0; k < 2; k++) {
			rref_future_free(f[k]);
			rref_release(later[k]);
		}
	}
	TG_CHECK(nr > 0);
	tg_finish(ctx);
	return 0;
}

static struct rref_ctx *two[2];

static void *set_second(void *arg)
{
	usleep(20000);
	TG_OK(rref_set(arg));
	return NULL;
}

/* Futures of two contexts, each in another progress mode. */
TG_TEST(wait_any__of_two_contexts, 1)
{
	for (int round = 0; round < 8; round++) {
		struct rref_future *f[2];
		struct rref *later[2];
		pthread_t t;
		void *data;

		for (int i = 0; i < 2; i++) {
			struct rref_options o;

			tg_options(&o, rank);
			o.mode = round & (1 << i) ? RREF_PROGRESS_MANUAL : RREF_PROGRESS_AUTO;
			TG_OK(rref_init(&o, &two[i]));
			TG_OK(rref_alloc(two[i], 8, &later[i], &data));
			TG_OK(rref_to_here_async(later[i], RREF_FOREVER, &f[i]));
		}
		TG_CHECK(pthread_create(&t, NULL, set_second, later[round / 4 % 2]) == 0);
		TG_IS(rref_wait_any(f, 2, 20 * NSEC_PER_SEC), round / 4 % 2);
		pthread_join(t, NULL);
		TG_OK(rref_set(later[1 - round / 4 % 2]));
		TG_OK(rref_wait_all(f, 2, RREF_DEFAULT));
		for (int i = 0; i < 2; i++) {
			rref_future_free(f[i]);
			rref_release(later[i]);
			tg_finish(two[i]);
		}
	}
	return 0;
}

/* Several contexts that have pollers: the pollers look after
 * time-outs, and the waiter sleeps on. */
TG_TEST(wait_any__of_several_contexts_sleeps, 1)
{
	struct rref_ctx *several[3];
	struct rref_future *f[3];
	struct rref *later[3];
	void *data;
	long before;

	for (int i = 0; i < 3; i++) {
		struct rref_options o;

		tg_options(&o, rank);
		o.mode = RREF_PROGRESS_AUTO;
		TG_OK(rref_init(&o, &several[i]));
		TG_OK(rref_alloc(several[i], 8, &later[i], &data));
		TG_OK(rref_to_here_async(later[i], RREF_FOREVER, &f[i]));
	}
	before = sleeps_of(gettid());
	TG_IS(rref_wait_any(f, 3, NSEC_PER_SEC), -ETIMEDOUT);
	TG_CHECK(sleeps_of(gettid()) - before < 20);
	for (int i = 0; i < 3; i++) {
		struct rref_future *last = f[2 - i];
		pthread_t t;

		TG_CHECK(pthread_create(&t, NULL, set_second, later[2 - i]) == 0);
		TG_IS(rref_wait_any(f, (size_t)(3 - i), RREF_FOREVER), 2 - i);
		pthread_join(t, NULL);
		rref_future_free(last);
		rref_release(later[2 - i]);
	}
	for (int i = 0; i < 3; i++)
		tg_finish(several[i]);
	return 0;
}

/* ---- several threads, and queues ---- */

static void *wait_any_of(void *fs)
{
	return (void *)(intptr_t)rref_wait_any(fs, 2, FAR);
}

/* Futures in a queue, and two threads that wait for the same. */
TG_TEST(wait_any__of_futures_in_a_queue, 1)
{
	queue_begin(rank);
	for (int i = 0; i < 20; i++) {
		struct rref_future *f[3] = { pending(), pending(), pending() };
		pthread_t t[2];
		void *found;

		for (int k = 0; k < 3; k++)
			TG_OK(rref_queue_add(q, f[k], tag_of((size_t)k)));
		TG_IS(pthread_create(&t[0], NULL, wait_any_of, &f[0]), 0);
		TG_IS(pthread_create(&t[1], NULL, wait_any_of, &f[1]), 0);
		usleep(i % 4 * 1000);
		TG_OK(rref_future_cancel(f[1]));
		for (int k = 0; k < 2; k++) {
			pthread_join(t[k], &found);
			TG_IS((intptr_t)found, 1 - k);
		}
		expect_next(f[1], tag_of(1), -ECANCELED);
		for (int k = 0; k < 3; k++)
			rref_future_free(f[k]);
		TG_IS(next_now(), -ENOENT);
	}
	queue_end();
	return 0;
}

static _Atomic pid_t idle_thread;

static void *wait_idly(void *fs)
{
	atomic_store(&idle_thread, gettid());
	TG_IS(rref_wait_any(fs, 2, FAR), 0);
	return NULL;
}

/*
 * A thread waits, for any of its own futures. Another waits for others, a thousand times. The first
 * sleeps through that; in the manual mode it may look at the devices.
 */
TG_TEST(wait_any__sleeps_while_others_end, 1)
{
	struct rref_future *idle[2];
	pthread_t t;
	long before;
	int n = tg_scale(1000);

	queue_begin(rank);
	idle[0] = pending();
	idle[1] = pending();
	TG_IS(pthread_create(&t, NULL, wait_idly, idle), 0);
	while (!atomic_load(&idle_thread))
		usleep(100);
	usleep(20000);
	before = sleeps_of(atomic_load(&idle_thread));
	for (int i = 0; i < n; i++) {
		struct rref_future *f[2] = { pending(), pending() };

		TG_IS(rref_wait_any(f, 2, 0), -ETIMEDOUT); /* each is waited for from now on */
		TG_OK(rref_future_cancel(f[1]));
		TG_IS(rref_wait_any(f, 2, FAR), 1);
		TG_OK(rref_future_cancel(f[0]));
		rref_future_free(f[0]);
		rref_future_free(f[1]);
	}
	if (tg_mode() != RREF_PROGRESS_MANUAL)
		TG_CHECK(sleeps_of(atomic_load(&idle_thread)) - before < n / 10);
	TG_OK(rref_future_cancel(idle[0]));
	pthread_join(t, NULL);
	for (int i = 0; i < 2; i++)
		rref_future_free(idle[i]);
	queue_end();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wait_any__that_waits_long_sleeps),
		cmocka_unit_test(wait_any__ends_just_before_its_sleep),
		cmocka_unit_test(wait_any__of_two_contexts),
		cmocka_unit_test(wait_any__of_several_contexts_sleeps),
		cmocka_unit_test(wait_any__of_futures_in_a_queue),
		cmocka_unit_test(wait_any__sleeps_while_others_end),
	};

	return cmocka_run_group_tests_name("wait_any", tests, NULL, NULL);
}
