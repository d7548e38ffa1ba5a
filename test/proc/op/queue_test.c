/* SPDX-License-Identifier: Apache-2.0 */
/* Queues of futures: the order, the contents, futures that leave early, ends from outside. */
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "queue.h"

#define MS NSEC_PER_MSEC

/* ---- the order ---- */

#define MANY 100

TG_TEST(next__in_the_order_of_ends, 1)
{
	struct rref_future *f[MANY];

	queue_begin(rank);
	for (size_t i = 0; i < MANY; i++) {
		f[i] = pending();
		TG_OK(rref_queue_add(q, f[i], tag_of(i)));
	}
	TG_IS(next_now(), -ETIMEDOUT);
	for (size_t i = 0; i < MANY; i++)
		TG_OK(rref_future_cancel(f[i * 37 % MANY]));
	for (size_t i = 0; i < MANY; i++) {
		size_t k = i * 37 % MANY;

		expect_next(f[k], tag_of(k), -ECANCELED);
		rref_future_free(f[k]);
	}
	TG_IS(next_now(), -ENOENT);
	queue_end();
	return 0;
}

/* Takes some between the ends. They are older than the others. */
TG_TEST(take__batches_keep_the_order, 1)
{
	struct rref_future *f[MANY], *got[MANY];
	void *tags[MANY];
	size_t ended = 0, taken = 0;

	queue_begin(rank);
	for (size_t i = 0; i < MANY; i++) {
		f[i] = pending();
		TG_OK(rref_queue_add(q, f[i], tag_of(i)));
	}
	TG_IS(rref_queue_take(q, 0, MANY, got, tags), -ETIMEDOUT);
	for (size_t round = 0; taken < MANY; round++) {
		size_t most = round % 5 + 1;
		int n;

		for (size_t i = 0; i < round % 7 && ended < MANY; i++)
			TG_OK(rref_future_cancel(f[ended++]));
		if (taken == ended)
			continue;
		n = rref_queue_take(q, 0, most, got, round % 2 ? tags : NULL);
		TG_IS(n, min_of(most, ended - taken));
		for (int i = 0; i < n; i++) {
			TG_CHECK(got[i] == f[taken]);
			TG_CHECK(round % 2 == 0 || tags[i] == tag_of(taken));
			taken++;
		}
	}
	TG_IS(rref_queue_take(q, RREF_FOREVER, MANY, got, tags), -ENOENT);
	for (size_t i = 0; i < MANY; i++)
		rref_future_free(f[i]);
	queue_end();
	return 0;
}

TG_TEST(add__complete_futures_come_behind_those_that_ended, 1)
{
	struct rref_future *f[4];

	queue_begin(rank);
	for (int i = 0; i < 4; i++)
		f[i] = pending();
	TG_OK(rref_future_cancel(f[3]));
	TG_OK(rref_queue_add(q, f[0], NULL));
	TG_OK(rref_queue_add(q, f[1], NULL));
	TG_OK(rref_future_cancel(f[1]));
	TG_OK(rref_queue_add(q, f[3], q));
	TG_OK(rref_future_cancel(f[0]));
	TG_OK(rref_future_cancel(f[2]));
	TG_OK(rref_queue_add(q, f[2], NULL));
	expect_next(f[1], NULL, -ECANCELED);
	expect_next(f[3], q, -ECANCELED);
	TG_OK(rref_queue_add(q, f[3], ctx));
	expect_next(f[0], NULL, -ECANCELED);
	expect_next(f[2], NULL, -ECANCELED);
	expect_next(f[3], ctx, -ECANCELED);
	TG_IS(next_now(), -ENOENT);
	for (int i = 0; i < 4; i++)
		rref_future_free(f[i]);
	queue_end();
	return 0;
}

/* Reads of another worker's values, calls, and failures of both. */
TG_TEST(next__of_every_kind_of_operation, 2)
{
	queue_begin(rank);
	if (rank == 0) {
		size_t n = (size_t)tg_scale(200);
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "8 bytes.", 8);
		struct rref_future *f;
		int calls = 0, reads = 0, failed = 0;
		void *tag;

		for (size_t i = 0; i < n; i++) {
			if (i % 3 == 0)
				TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
			else
				f = tg_start(ctx, 1, i % 3 == 1 ? "tg.echo" : "no.such", "x", 1);
			TG_OK(rref_queue_add(q, f, tag_of(i % 3)));
		}
		while (rref_queue_next(q, RREF_DEFAULT, &f, &tag) == 0) {
			struct rref_view *v;

			if (tag == tag_of(0)) {
				TG_OK(rref_future_view(f, &v));
				TG_CHECK(memcmp(rref_view_data(v), "8 bytes.", 8) == 0);
				rref_view_free(v);
				reads++;
			} else if (rref_future_wait(f, 0) == 0) {
				calls++;
			} else {
				TG_IS(rref_future_wait(f, 0), -ENOSYS);
				failed++;
			}
			rref_future_free(f);
		}
		TG_IS(next_now(), -ENOENT);
		TG_CHECK(reads == (int)(n + 2) / 3 && calls == (int)(n + 1) / 3 &&
			 failed == (int)n / 3);
		rref_release(r);
	}
	queue_end();
	return 0;
}

/* ---- contents ---- */

TG_TEST(next__says_what_is_missing, 1)
{
	struct rref_future *f, *got;
	int64_t begun;
	void *tag;

	queue_begin(rank);
	TG_IS(next_now(), -ENOENT);
	TG_IS(rref_queue_next(q, RREF_FOREVER, &got, &tag), -ENOENT);
	TG_TEXT("no future");
	f = pending();
	TG_OK(rref_queue_add(q, f, NULL));
	TG_IS(next_now(), -ETIMEDOUT);
	begun = now_ns();
	TG_IS(rref_queue_next(q, 20 * MS, &got, &tag), -ETIMEDOUT);
	TG_CHECK(now_ns() - begun >= 20 * MS);
	TG_TEXT("ended in time");
	TG_OK(rref_set_timeout(ctx, 10 * MS));
	TG_IS(rref_queue_next(q, RREF_DEFAULT, &got, &tag), -ETIMEDOUT);
	TG_OK(rref_set_timeout(ctx, FAR));
	TG_OK(rref_future_cancel(f));
	TG_OK(rref_queue_next(q, RREF_DEFAULT, &got, NULL));
	TG_CHECK(got == f);
	rref_future_free(f);
	queue_end();
	return 0;
}

TG_TEST(add__refuses_what_it_must, 1)
{
	struct rref_queue *other;
	struct rref_options o;
	struct rref_ctx *more;
	struct rref_future *f;

	queue_begin(rank);
	TG_OK(rref_queue_new(ctx, &other));
	f = pending();
	TG_OK(rref_queue_add(q, f, NULL));
	TG_IS(rref_queue_add(q, f, NULL), -EBUSY);
	TG_IS(rref_queue_add(other, f, NULL), -EBUSY);
	TG_TEXT("in a queue");
	TG_OK(rref_future_cancel(f));
	TG_IS(rref_queue_add(other, f, NULL), -EBUSY);
	expect_next(f, NULL, -ECANCELED);
	TG_OK(rref_queue_add(other, f, NULL));
	rref_queue_free(other);
	TG_OK(rref_queue_add(q, f, NULL));
	expect_next(f, NULL, -ECANCELED);
	tg_options(&o, rank);
	TG_OK(rref_init(&o, &more));
	TG_OK(rref_queue_new(more, &other));
	TG_IS(rref_queue_add(other, f, NULL), -EINVAL);
	TG_TEXT("another context");
	tg_finish(more);
	rref_future_free(f);
	queue_end();
	return 0;
}

/* ---- futures that leave before they came out ---- */

TG_TEST(free__of_a_future_in_a_queue, 1)
{
	struct rref_future *f[6];

	queue_begin(rank);
	for (int i = 0; i < 6; i++) {
		f[i] = pending();
		TG_OK(rref_queue_add(q, f[i], NULL));
	}
	for (int i = 0; i < 5; i++)
		if (i != 2)
			TG_OK(rref_future_cancel(f[i]));
	rref_future_free(f[0]);
	rref_future_free(f[3]);
	rref_future_free(f[2]);
	expect_next(f[1], NULL, -ECANCELED);
	rref_future_free(f[4]); /* the queue has looked at it already */
	TG_IS(next_now(), -ETIMEDOUT);
	rref_future_free(f[5]);
	TG_IS(next_now(), -ENOENT);
	rref_future_free(f[1]);
	/* A slot that was freed in the queue is another operation's now. */
	for (int i = 0; i < 50; i++) {
		struct rref_future *last = pending();

		TG_OK(rref_queue_add(q, last, NULL));
		if (i % 3)
			TG_OK(rref_future_cancel(last));
		if (i % 3 == 2)
			expect_next(last, NULL, -ECANCELED);
		rref_future_free(last);
	}
	TG_IS(next_now(), -ENOENT);
	queue_end();
	return 0;
}

/* Puts in many futures, every third of which ends. */
static void fill_queue(struct rref_future *f[MANY])
{
	for (size_t i = 0; i < MANY; i++) {
		f[i] = pending();
		TG_OK(rref_queue_add(q, f[i], NULL));
		if (i % 3 == 1)
			TG_OK(rref_future_cancel(f[i]));
	}
}

/* Reads a value of another worker. Over shm each read is complete before it is put in. */
TG_TEST(free__of_reads_that_are_over_at_once, 2)
{
	queue_begin(rank);
	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "8 bytes.", 8);
		struct rref_future *f[MANY];

		tg_expect_bytes(r, "8 bytes.", 8);
		for (int round = 0; round < 4; round++) {
			for (size_t i = 0; i < MANY; i++) {
				TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f[i]));
				TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
				TG_OK(rref_queue_add(q, f[i], tag_of(i)));
				TG_IS(rref_queue_add(q, f[i], NULL), -EBUSY);
			}
			for (size_t i = 0; i < MANY; i += 2)
				rref_future_free(f[i]);
			for (size_t i = 1; i < MANY && round < 3; i += 2)
				expect_next(f[i], tag_of(i), 0);
			TG_IS(rref_queue_arm(q), round == 3);
			rref_queue_free(q);
			TG_OK(rref_queue_new(ctx, &q));
			TG_IS(next_now(), -ENOENT);
			for (size_t i = 1; i < MANY; i += 2)
				rref_future_free(f[i]);
		}
		rref_release(r);
	}
	queue_end();
	return 0;
}

TG_TEST(free__of_a_queue_with_futures, 1)
{
	struct rref_future *f[MANY];

	queue_begin(rank);
	for (int round = 0; round < 3; round++) {
		if (round == 1)
			TG_IS(rref_queue_arm(q), 0);
		fill_queue(f);
		rref_queue_free(q);
		TG_OK(rref_queue_new(ctx, &q));
		TG_IS(next_now(), -ENOENT);
		for (size_t i = 2; i < MANY; i += 3) {
			TG_IS(rref_future_test(f[i]), 0);
			TG_OK(rref_queue_add(q, f[i], tag_of(i)));
		}
		for (size_t i = 0; i < MANY; i++) {
			if (i % 3 != 1)
				TG_OK(rref_future_cancel(f[i]));
			if (i % 3 == 2)
				expect_next(f[i], tag_of(i), -ECANCELED);
			rref_future_free(f[i]);
		}
		TG_IS(next_now(), -ENOENT);
	}
	rref_queue_free(NULL);
	queue_end();
	return 0;
}

/* ---- ends from outside ---- */

static struct rref_future *last_one;

static void *next_of_a_shutdown(void *arg)
{
	(void)arg;
	expect_next(last_one, q, -ESHUTDOWN);
	return NULL;
}

TG_TEST(shutdown__ends_the_waits, 1)
{
	struct rref_future *more[3];
	struct rref_queue *none;
	pthread_t t;

	queue_begin(rank);
	last_one = pending();
	TG_OK(rref_queue_add(q, last_one, q));
	TG_IS(pthread_create(&t, NULL, next_of_a_shutdown, NULL), 0);
	usleep(5000);
	for (int i = 0; i < 3; i++)
		more[i] = pending();
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	pthread_join(t, NULL);
	for (int i = 0; i < 3; i++)
		TG_OK(rref_queue_add(q, more[i], NULL));
	for (int i = 0; i < 3; i++) {
		expect_next(more[i], NULL, -ESHUTDOWN);
		rref_future_free(more[i]);
	}
	TG_IS(next_now(), -ENOENT);
	TG_IS(rref_queue_new(ctx, &none), -ESHUTDOWN);
	rref_future_free(last_one);
	rref_release(unset);
	rref_free_ctx(ctx); /* and the queue */
	return 0;
}

TG_TEST(a_child_has_no_queue, 1)
{
	struct rref_future *f, *got = NULL;
	int status;
	pid_t pid;

	queue_begin(rank);
	TG_CHECK(rref_queue_fd(q) >= 0);
	f = pending();
	TG_OK(rref_queue_add(q, f, NULL));
	pid = fork();
	TG_CHECK(pid >= 0);
	if (!pid) {
		TG_IS(rref_queue_add(q, f, NULL), -ECHILD);
		TG_IS(rref_queue_next(q, RREF_FOREVER, &got, NULL), -ECHILD);
		TG_IS(rref_queue_take(q, RREF_FOREVER, 1, &got, NULL), -ECHILD);
		TG_IS(rref_queue_fd(q), -ECHILD);
		TG_IS(rref_queue_arm(q), -ECHILD);
		TG_IS(rref_queue_new(ctx, &q), -ECHILD);
		rref_future_free(f);
		rref_queue_free(q);
		_exit(got ? 1 : 7);
	}
	TG_CHECK(waitpid(pid, &status, 0) == pid);
	TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
	TG_OK(rref_future_cancel(f));
	expect_next(f, NULL, -ECANCELED);
	rref_future_free(f);
	queue_end();
	return 0;
}

#define VIEWS 500

/* Makes futures with views of values here, frees them in the queue, and leaves without it. */
static void leave_freed_futures(int rank)
{
	struct rref_future *f;
	struct rref *ref;

	queue_begin(rank);
	for (int i = 0; i < VIEWS; i++) {
		TG_OK(rref_new(ctx, "value", 5, &ref));
		TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f));
		TG_OK(rref_queue_add(q, f, NULL));
		rref_future_free(f);
		rref_release(ref);
	}
	TG_OK(rref_set(unset));
	rref_release(unset);
	tg_finish(ctx);
}

/* The context goes with a queue, and with the futures in it that the program has freed. */
TG_TEST(free_ctx__with_freed_futures_in_a_queue, 1)
{
	size_t before = 0;

	for (int i = 0; i < 6; i++) {
		leave_freed_futures(rank);
		if (!i)
			before = mallinfo2().uordblks;
	}
	TG_CHECK(mallinfo2().uordblks < before + 2 * VIEWS * 100);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(free_ctx__with_freed_futures_in_a_queue),
		cmocka_unit_test(next__in_the_order_of_ends),
		cmocka_unit_test(take__batches_keep_the_order),
		cmocka_unit_test(add__complete_futures_come_behind_those_that_ended),
		cmocka_unit_test(next__of_every_kind_of_operation),
		cmocka_unit_test(next__says_what_is_missing),
		cmocka_unit_test(add__refuses_what_it_must),
		cmocka_unit_test(free__of_a_future_in_a_queue),
		cmocka_unit_test(free__of_reads_that_are_over_at_once),
		cmocka_unit_test(free__of_a_queue_with_futures),
		cmocka_unit_test(shutdown__ends_the_waits),
		cmocka_unit_test(a_child_has_no_queue),
	};

	return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
