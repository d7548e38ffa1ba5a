/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread that carries requests out while the threads of the program sleep. It works for armed
 * queues only. It starts with the first that is armed, and ends with the last open context.
 */
#include <signal.h>

#include "fv_own.h"

static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	pthread_t thread;
	bool runs, stop; /* guarded by lock, as the next */
	int64_t next_ns;
} timer = { .lock = PTHREAD_MUTEX_INITIALIZER, .next_ns = FV_NEVER };

/* Waits until something is due, or there is more to do. [lock, let go of meanwhile] */
static void wait_until_due(void)
{
	struct timespec t = { .tv_sec = timer.next_ns / NSEC_PER_SEC,
			      .tv_nsec = timer.next_ns % NSEC_PER_SEC };

	if (timer.next_ns == FV_NEVER)
		pthread_cond_wait(&timer.more, &timer.lock);
	else
		pthread_cond_timedwait(&timer.more, &timer.lock, &t);
}

static void *keep_time(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&timer.lock);
	while (!timer.stop) {
		int64_t next;

		if (timer.next_ns > now_ns()) {
			wait_until_due();
			continue;
		}
		timer.next_ns = FV_NEVER;
		pthread_mutex_unlock(&timer.lock);
		next = fv_run_armed();
		/* Another thread is at it: look again soon. */
		if (next == FV_BUSY)
			next = now_ns() + 20 * NSEC_PER_USEC;
		pthread_mutex_lock(&timer.lock);
		timer.next_ns = min_of(timer.next_ns, next);
	}
	pthread_mutex_unlock(&timer.lock);
	return NULL;
}

/* Starts the thread. [lock] */
static void start_timer(void)
{
	pthread_condattr_t attr;
	sigset_t all, old;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&timer.more, &attr);
	pthread_condattr_destroy(&attr);
	timer.stop = false;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	timer.runs = !pthread_create(&timer.thread, NULL, keep_time, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void fv_wake_at(int64_t ns)
{
	pthread_mutex_lock(&timer.lock);
	if (!timer.runs)
		start_timer();
	if (ns < timer.next_ns) {
		timer.next_ns = ns;
		pthread_cond_signal(&timer.more);
	}
	pthread_mutex_unlock(&timer.lock);
}

void fv_timer_stop(void)
{
	bool runs;

	pthread_mutex_lock(&timer.lock);
	runs = timer.runs;
	timer.stop = true;
	if (runs)
		pthread_cond_signal(&timer.more);
	pthread_mutex_unlock(&timer.lock);
	if (!runs)
		return;
	pthread_join(timer.thread, NULL);
	pthread_cond_destroy(&timer.more);
	timer.runs = false;
	timer.next_ns = FV_NEVER;
}
