/* SPDX-License-Identifier: Apache-2.0 */
/* Queues of futures and several threads: takers, adders, ends; and event loops. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/op/future.h"
#include "queue.h"

/* ---- several threads ---- */

static void *take_until_empty(void *arg)
{
	struct rref_future *f;
	int n = 0, err;

	(void)arg;
	while ((err = rref_queue_next(q, FAR, &f, NULL)) == 0) {
		TG_IS(rref_future_wait(f, 0), -ECANCELED);
		rref_future_free(f);
		n++;
	}
	TG_IS(err, -ENOENT);
	return (void *)(uintptr_t)n;
}

#define TAKERS 4

static size_t join_takers(pthread_t t[TAKERS])
{
	size_t all = 0;

	for (int i = 0; i < TAKERS; i++) {
		void *n;

		TG_IS(pthread_join(t[i], &n), 0);
		all += (size_t)(uintptr_t)n;
	}
	return all;
}

/* All sleep. Each end wakes one; the last taker, and the freed future, tell the others. */
TG_TEST(next__by_threads_that_sleep, 1)
{
	queue_begin(rank);
	for (int round = 0; round < 6; round++) {
		struct rref_future *f[TAKERS + 1];
		pthread_t t[TAKERS];

		for (int i = 0; i <= TAKERS; i++) {
			f[i] = pending();
			TG_OK(rref_queue_add(q, f[i], NULL));
		}
		for (int i = 0; i < TAKERS; i++)
			TG_IS(pthread_create(&t[i], NULL, take_until_empty, NULL), 0);
		usleep(5000);
		for (int i = 0; i < TAKERS; i++)
			TG_OK(rref_future_cancel(f[i]));
		usleep(5000);
		if (round % 2)
			TG_OK(rref_future_cancel(f[TAKERS]));
		else
			rref_future_free(f[TAKERS]); /* the others need not wait for it */
		TG_IS(join_takers(t), TAKERS + round % 2);
	}
	queue_end();
	return 0;
}

#define ADDERS 3

static _Atomic uint32_t came_out[ADDERS * 4000];
static int each;

/* Adds futures, and ends them before and after, in any order. */
static void *add_and_end(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg, seed = me + 1;
	struct rref_future *f[20];

	for (int i = 0; i < each; i += 20) {
		unsigned bits = (unsigned)rand_r(&seed);

		for (int k = 0; k < 20; k++) {
			TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f[k]));
			if (bits >> k & 1)
				TG_OK(rref_future_cancel(f[k]));
			TG_OK(rref_queue_add(q, f[k], tag_of(me * 4000 + (unsigned)(i + k))));
			/* Complete: it may be out, and freed, by now. */
			if (!(bits >> k & 1) && k % 4 == 0)
				TG_OK(rref_future_cancel(f[k]));
		}
		for (int k = 0; k < 20; k++)
			if (!(bits >> k & 1) && k % 4)
				TG_OK(rref_future_cancel(f[k]));
	}
	return NULL;
}

static void *take_batches(void *arg)
{
	struct rref_future *f[16], *held = arg;
	size_t all = 0;
	void *tags[16];
	int n;

	while ((n = rref_queue_take(q, FAR, 1 + all % 16, f, tags)) > 0) {
		for (int i = 0; i < n; i++) {
			if (f[i] == held)
				continue;
			TG_IS(rref_future_wait(f[i], 0), -ECANCELED);
			atomic_fetch_add(&came_out[(uintptr_t)tags[i] - 1], 1);
			rref_future_free(f[i]);
			all++;
		}
	}
	TG_IS(n, -ENOENT);
	return (void *)all;
}

TG_TEST(queue__many_producers_and_consumers, 1)
{
	pthread_t adders[ADDERS], takers[TAKERS];
	struct rref_future *held;

	queue_begin(rank);
	each = tg_scale(4000) / 20 * 20;
	held = pending();
	TG_OK(rref_queue_add(q, held, NULL));
	for (int i = 0; i < TAKERS; i++)
		TG_IS(pthread_create(&takers[i], NULL, take_batches, held), 0);
	for (size_t i = 0; i < ADDERS; i++)
		TG_IS(pthread_create(&adders[i], NULL, add_and_end, (void *)i), 0);
	for (int i = 0; i < ADDERS; i++)
		pthread_join(adders[i], NULL);
	TG_OK(rref_future_cancel(held));
	TG_IS(join_takers(takers), ADDERS * each);
	for (int i = 0; i < ADDERS; i++)
		for (int k = 0; k < each; k++)
			TG_IS(atomic_load(&came_out[i * 4000 + k]), 1);
	rref_future_free(held);
	queue_end();
	return 0;
}

static pthread_barrier_t ready;

static void *cancel_soon(void *f)
{
	pthread_barrier_wait(&ready);
	TG_OK(rref_future_cancel(f));
	return NULL;
}

static void *set_it(void *value)
{
	pthread_barrier_wait(&ready);
	TG_OK(rref_set(value));
	return NULL;
}

static void wait_a_little(unsigned *seed)
{
	for (int k = rand_r(seed) % 2000; k > 0; k--)
		cpu_relax();
}

/* A queue is freed at the moment when a future in it ends. */
TG_TEST(free__of_a_queue_at_the_moment_of_an_end, 1)
{
	unsigned seed = 1;

	queue_begin(rank);
	pthread_barrier_init(&ready, NULL, 2);
	for (int i = 0; i < tg_scale(1000); i++) {
		struct rref_future *f = pending();
		pthread_t t;

		TG_OK(rref_queue_add(q, f, NULL));
		TG_IS(pthread_create(&t, NULL, cancel_soon, f), 0);
		pthread_barrier_wait(&ready);
		wait_a_little(&seed);
		rref_queue_free(q);
		TG_OK(rref_queue_new(ctx, &q));
		TG_IS(next_now(), -ENOENT);
		pthread_join(t, NULL);
		TG_IS(next_now(), -ENOENT);
		TG_OK(rref_queue_add(q, f, NULL));
		expect_next(f, NULL, -ECANCELED);
		rref_future_free(f);
	}
	queue_end();
	return 0;
}

static _Atomic bool queue_is_freed;

static void *free_queue(void *arg)
{
	(void)arg;
	rref_queue_free(q);
	atomic_store(&queue_is_freed, true);
	return NULL;
}

/*
 * The end of a future stands still before its push, and the program frees the future meanwhile.
 * The future is in the queue until then. Otherwise its push would come to a queue that is used
 * again, and the future would keep its slot.
 */
TG_TEST(free__of_a_future_whose_end_stands_still, 1)
{
	struct rref_future *f, *none;
	pthread_t t;

	queue_begin(rank);
	f = pending();
	TG_OK(rref_queue_add(q, f, NULL));
	TG_CHECK(rc_op_claim(f));
	f->status = -ECANCELED;
	at_xchg_sc(&f->state, RC_F_DONE); /* the first step of complete */
	rref_future_free(f);
	TG_IS(rref_queue_next(q, 0, &none, NULL), -ETIMEDOUT);
	TG_IS(pthread_create(&t, NULL, free_queue, NULL), 0);
	usleep(20000);
	TG_CHECK(!atomic_load(&queue_is_freed));
	rc_queue_push(f);
	TG_IS(pthread_join(t, NULL), 0);
	TG_OK(rref_queue_new(ctx, &q));
	TG_IS(next_now(), -ENOENT);
	queue_end();
	return 0;
}

/* A future is freed at the moment of its end. */
TG_TEST(free__of_a_future_at_the_moment_of_its_end, 1)
{
	unsigned seed = 1;

	queue_begin(rank);
	pthread_barrier_init(&ready, NULL, 2);
	for (int i = 0; i < tg_scale(1000); i++) {
		struct rref_future *f;
		struct rref *value;
		pthread_t t;
		void *data;
		int err;

		TG_OK(rref_alloc(ctx, 8, &value, &data));
		TG_OK(rref_to_here_async(value, RREF_FOREVER, &f));
		TG_OK(rref_queue_add(q, f, NULL));
		TG_IS(pthread_create(&t, NULL, set_it, value), 0);
		pthread_barrier_wait(&ready);
		wait_a_little(&seed);
		rref_future_free(f);
		/* Counts a future that is about to come: it leaves the queue soon. */
		err = next_now();
		TG_CHECK(err == -ENOENT || err == -ETIMEDOUT);
		pthread_join(t, NULL);
		TG_IS(next_now(), -ENOENT);
		rref_release(value);
	}
	queue_end();
	return 0;
}

/* ---- the descriptor ---- */

static bool readable(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}

TG_TEST(fd__is_readable_after_an_end, 1)
{
	struct rref_future *f[3];
	int fd;

	queue_begin(rank);
	fd = rref_queue_fd(q);
	TG_OK(fd);
	TG_IS(rref_queue_fd(q), fd);
	TG_IS(rref_queue_arm(q), 0);
	for (int i = 0; i < 3; i++)
		f[i] = pending();
	TG_OK(rref_queue_add(q, f[0], NULL));
	TG_CHECK(!readable(fd, 0));
	TG_OK(rref_future_cancel(f[0]));
	TG_CHECK(readable(fd, 0));
	TG_IS(rref_queue_arm(q), 1);
	TG_CHECK(readable(fd, 0));
	expect_next(f[0], NULL, -ECANCELED);
	TG_IS(rref_queue_arm(q), 0);
	TG_CHECK(!readable(fd, 0));
	TG_OK(rref_future_cancel(f[1]));
	TG_OK(rref_queue_add(q, f[1], NULL)); /* complete */
	TG_CHECK(readable(fd, 0));
	expect_next(f[1], NULL, -ECANCELED);
	TG_IS(rref_queue_arm(q), 0);
	TG_OK(rref_queue_add(q, f[2], NULL));
	TG_OK(rref_future_cancel(f[2]));
	expect_next(f[2], NULL, -ECANCELED);
	TG_CHECK(readable(fd, 0));
	TG_IS(rref_queue_arm(q), 0);
	TG_CHECK(!readable(fd, 0));
	for (int i = 0; i < 3; i++)
		rref_future_free(f[i]);
	queue_end();
	return 0;
}

/* Begins a read of r or a call, and puts it in. */
static void begin_one(struct rref *r, int i)
{
	struct rref_future *f;

	if (i % 2)
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
	else
		f = tg_start(ctx, 1, "tg.echo", "x", 1);
	TG_OK(rref_queue_add(q, f, NULL));
}

/* Takes out what has ended. Returns how many. */
static int take_what_ended(void)
{
	struct rref_future *f;
	int n = 0;

	for (; rref_queue_next(q, 0, &f, NULL) == 0; n++) {
		TG_OK(rref_future_wait(f, 0));
		rref_future_free(f);
	}
	return n;
}

/*
 * Keeps ten operations under way, and sleeps on the queue's descriptor alone. The manual mode needs
 * the context's too.
 */
static void loop_over(struct rref *r, int n)
{
	struct pollfd p[2] = { { .fd = rref_queue_fd(q), .events = POLLIN },
			       { .fd = rref_ctx_fd(ctx), .events = POLLIN } };
	bool manual = tg_mode() == RREF_PROGRESS_MANUAL;
	int begun = 0;

	for (int ended = 0; ended < n;) {
		for (; begun < n && begun < ended + 10; begun++)
			begin_one(r, begun);
		ended += take_what_ended();
		if (ended == begun || (manual && rref_ctx_arm(ctx)) || rref_queue_arm(q))
			continue;
		TG_CHECK(poll(p, 1 + manual, 20000) >= 1);
	}
}

TG_TEST(fd__of_a_loop_over_calls_and_reads, 2)
{
	queue_begin(rank);
	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "8 bytes.", 8);

		tg_expect_bytes(r, "8 bytes.", 8);
		loop_over(r, tg_scale(300));
		TG_IS(next_now(), -ENOENT);
		rref_release(r);
	}
	queue_end();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(next__by_threads_that_sleep),
		cmocka_unit_test(queue__many_producers_and_consumers),
		cmocka_unit_test(free__of_a_queue_at_the_moment_of_an_end),
		cmocka_unit_test(free__of_a_future_whose_end_stands_still),
		cmocka_unit_test(free__of_a_future_at_the_moment_of_its_end),
		cmocka_unit_test(fd__is_readable_after_an_end),
		cmocka_unit_test(fd__of_a_loop_over_calls_and_reads),
	};

	return cmocka_run_group_tests_name("queue threads", tests, NULL, NULL);
}
