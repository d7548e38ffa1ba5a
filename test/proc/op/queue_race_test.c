/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Races of a sleep against the end of a future. One thread waits for the next future, and goes to
 * sleep if it has not ended. Another ends that future at about that moment, and no other before it
 * was taken. So a wake-up that is lost is made good by nobody. The sleep then ends by its time, and
 * the test fails.
 *
 *   queue_race_test [RACES]     races of each kind; the default is 4,000
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "queue.h"

#define BATCH 500
#define SURE  20 /* each such race sends the wait to sleep */

static int races = 4000;
static struct rref_future *f[BATCH + 1]; /* the last one never ends */
static _Atomic int offered; /* futures that may end */
static pid_t waiter;
static int caught; /* ends that came before the sleep, and kept the thread from it */

/*
 * Replaces the library's clock. The first looks of a wait find 1 ms more each. So the wait sleeps
 * after a few turns, and not after 100 us.
 */
static _Thread_local int jumps;
static _Thread_local int64_t ahead;

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int r = (int)syscall(SYS_clock_gettime, id, ts);

	if (ahead + jumps && id == CLOCK_MONOTONIC) {
		int64_t now = ts->tv_sec * NSEC_PER_SEC + ts->tv_nsec;

		if (jumps) {
			jumps--;
			ahead += NSEC_PER_MSEC;
		}
		now += ahead;
		ts->tv_sec = now / NSEC_PER_SEC;
		ts->tv_nsec = now % NSEC_PER_SEC;
	}
	return r;
}

/* ---- waits, each until f[i] has ended ---- */

static void wait_by_descriptor(int i)
{
	struct pollfd p = { .fd = rref_queue_fd(q), .events = POLLIN };
	struct rref_future *got;

	while (rref_queue_next(q, 0, &got, NULL)) {
		int armed = rref_queue_arm(q);

		TG_OK(armed);
		caught += armed;
		if (!armed)
			TG_CHECK(poll(&p, 1, (int)(FAR / NSEC_PER_MSEC)) == 1);
	}
	TG_CHECK(got == f[i]);
}

static void wait_in_next(int i)
{
	struct rref_future *got;

	TG_OK(rref_queue_next(q, FAR, &got, NULL));
	TG_CHECK(got == f[i]);
}

/* Waits for a future that leaves the queue, and leaves it empty. */
static void wait_until_empty(int i)
{
	struct rref_future *got;

	(void)i;
	TG_IS(rref_queue_next(q, FAR, &got, NULL), -ENOENT);
}

static void wait_for_any(int i)
{
	struct rref_future *two[2] = { f[BATCH], f[i] };

	TG_IS(rref_wait_any(two, 2, FAR), 1);
}

static void free_one(int i)
{
	rref_future_free(f[i]);
	f[i] = NULL;
}

static void cancel_one(int i)
{
	TG_OK(rref_future_cancel(f[i]));
}

static const struct kind {
	void (*wait)(int i);
	void (*end)(int i);
	bool queued, by_clock;
} by_descriptor = { wait_by_descriptor, cancel_one, true, false },
  in_next = { wait_in_next, cancel_one, true, true },
  until_empty = { wait_until_empty, free_one, true, true },
  for_any = { wait_for_any, cancel_one, false, true };

/* ---- the races ---- */

/* Spins for some us at most, mostly for much less. */
static void spin(unsigned *seed)
{
	for (int k = rand_r(seed) % (1 << rand_r(seed) % 12); k > 0; k--)
		cpu_relax();
}

static void *end_one_by_one(void *arg)
{
	const struct kind *kind = arg;
	unsigned seed = (unsigned)now_ns();

	for (int i = 0; i < BATCH; i++) {
		while (atomic_load(&offered) <= i)
			sched_yield();
		if (i % SURE == 0)
			while (!tg_is_asleep(waiter))
				sched_yield();
		else
			spin(&seed); /* perhaps beyond the moment of the sleep */
		kind->end(i);
	}
	return NULL;
}

static int race(const struct kind *kind, int rank)
{
	unsigned seed = (unsigned)now_ns();
	long sleeps = 0;

	waiter = gettid();
	queue_begin(rank);
	f[BATCH] = pending();
	struct rref *never = unset;

	for (int done = 0; done < races; done += BATCH) {
		pthread_t t;
		void *data;

		/* Reads that are freed go on until their value is set, and take up slots. */
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		atomic_store(&offered, 0);
		for (int i = 0; i < BATCH; i++)
			f[i] = pending();
		TG_IS(pthread_create(&t, NULL, end_one_by_one, (void *)(uintptr_t)kind), 0);
		sleeps -= tg_sleeps();
		for (int i = 0; i < BATCH; i++) {
			if (kind->queued)
				TG_OK(rref_queue_add(q, f[i], NULL));
			atomic_store(&offered, i + 1);
			spin(&seed);
			jumps = kind->by_clock ? 4 : 0;
			kind->wait(i);
			jumps = 0;
			ahead = 0;
		}
		sleeps += tg_sleeps();
		pthread_join(t, NULL);
		for (int i = 0; i < BATCH; i++)
			rref_future_free(f[i]);
		TG_OK(rref_set(unset));
		rref_release(unset);
	}
	unset = never;
	fprintf(stderr, "%d races: %ld sleeps, %d ends just before one\n", races, sleeps, caught);
	TG_CHECK(sleeps >= races / SURE);
	rref_future_free(f[BATCH]);
	queue_end();
	return 0;
}

static int race_worker(int rank, void *arg)
{
	return race(arg, rank);
}

static void run_races(const struct kind *kind)
{
	struct tg_group g = { .world = 1, .timeout_s = 60 + races / 1000 };

	assert_int_equal(tg_run_group(&g, race_worker, (void *)(uintptr_t)kind), 0);
}

static void arm__against_the_end(void **state)
{
	(void)state;
	run_races(&by_descriptor);
}

static void next__against_the_end(void **state)
{
	(void)state;
	run_races(&in_next);
}

static void next__against_the_last_future_leaving(void **state)
{
	(void)state;
	run_races(&until_empty);
}

static void wait_any__against_the_end(void **state)
{
	(void)state;
	run_races(&for_any);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arm__against_the_end),
		cmocka_unit_test(next__against_the_end),
		cmocka_unit_test(next__against_the_last_future_leaving),
		cmocka_unit_test(wait_any__against_the_end),
	};

	races = argc > 1 ? atoi(argv[1]) : tg_scale(races);
	return cmocka_run_group_tests_name("queue races", tests, NULL, NULL);
}
