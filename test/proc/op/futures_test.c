/* SPDX-License-Identifier: Apache-2.0 */
/* Futures: complete exactly once, with any order of waits,
 * tests, continuations, cancels and frees. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC

TG_TEST(wait__timeout_leaves_the_operation_alone, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *f = tg_start(ctx, 1, "tg.hold", "x", 1);

		TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
		TG_IS(rref_future_wait(f, 20 * MS), -ETIMEDOUT);
		TG_IS(rref_future_test(f), 0);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_IS(rref_future_test(f), 1);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

static void *wait_for_it(void *f)
{
	TG_OK(rref_future_wait(f, RREF_FOREVER));
	return NULL;
}

TG_TEST(wait__by_many_threads, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *f = tg_start(ctx, 1, "tg.hold", "x", 1);
		pthread_t t[8];

		for (int i = 0; i < 8; i++)
			TG_IS(pthread_create(&t[i], NULL, wait_for_it, f), 0);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		for (int i = 0; i < 8; i++)
			pthread_join(t[i], NULL);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(test__turns_without_being_waited_for, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = tg_start(ctx, 1 - rank, "tg.echo", "x", 1);
	int64_t end = tg_deadline();

	while (!rref_future_test(f)) {
		TG_CHECK(now_ns() < end);
		rref_progress(ctx); /* manual mode */
		usleep(200);
	}
	TG_OK(rref_future_wait(f, 0));
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

static _Atomic int ran;

static void count_and_free(struct rref_future *f, void *arg)
{
	atomic_fetch_add((_Atomic int *)arg, 1);
	rref_future_free(f);
}

static bool ran_enough(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&ran) >= *(int *)arg;
}

static void *set_then(void *f)
{
	TG_OK(rref_future_then(f, count_and_free, &ran));
	return NULL;
}

TG_TEST(then__set_by_another_thread_while_it_completes, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(300);

	for (int i = 0; i < n; i++) {
		struct rref_future *f = tg_start(ctx, 1 - rank,
						 i % 2 ? "tg.echo_inline" : "tg.echo", "x", 1);
		int want = i + 1;
		pthread_t t;

		TG_IS(pthread_create(&t, NULL, set_then, f), 0);
		for (int k = 0; k < i % 50; k++)
			rref_progress(ctx);
		pthread_join(t, NULL);
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		TG_IS(atomic_load(&ran), want);
	}
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

static void shut_down_inside(struct rref_future *f, void *arg)
{
	(void)f;
	TG_IS(rref_shutdown(arg, RREF_SHUTDOWN_NOW, 0), -EDEADLK);
	atomic_fetch_add(&ran, 1);
}

TG_TEST(then__may_not_shut_down, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = tg_start(ctx, 0, "tg.echo", "x", 1);
	int want = 1;

	TG_OK(rref_future_then(f, shut_down_inside, ctx));
	TG_CHECK(tg_eventually(ran_enough, ctx, &want));
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(free__before_completion, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref *r;

	if (rank == 0) {
		/* The calls are served though their futures are freed. Results
		 * are dropped, with their references. */
		TG_OK(rref_new(ctx, "mine", 4, &r));
		for (int i = 0; i < 10; i++)
			rref_future_free(tg_start(ctx, 1, i % 2 ? "tg.echo" : "tg.hold", "x", 1));
		for (int i = 0; i < 10; i++) {
			struct rref_args a = { .refs = &r, .nr_refs = 1 };

			TG_OK(rref_rpc_async(ctx, 1, "tg.echo_refs", &a, RREF_DEFAULT, &f));
			rref_future_free(f);
		}
		rref_future_free(NULL);
		tg_until_held(ctx, 1, 5);
		TG_IS(tg_release_held(ctx, 1), 5);
		rref_release(r);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
		/* The echoes, the echoes of references, the held calls; and
		 * the calls that asked for them. */
		TG_CHECK(tg_stats_of(ctx, 1).calls_served >= 20);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(free__of_reads_before_completion, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref *r;

	if (rank == 0) {
		TG_OK(rref_remote(ctx, 1, "tg.hold",
				  &(struct rref_args){ .data = "late", .length = 4 }, RREF_DEFAULT,
				  &r));
		for (int i = 0; i < 10; i++) {
			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
			rref_future_free(f);
		}
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		tg_expect_bytes(r, "late", 4);
		for (int i = 0; i < 100; i++) {
			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
			rref_future_free(f);
		}
		rref_release(r);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(wait_any__finds_the_complete_future, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *f[5];

		for (int i = 0; i < 5; i++)
			f[i] = tg_start(ctx, 1, i == 3 ? "tg.echo" : "tg.hold", "x", 1);
		TG_IS(rref_wait_any(f, 5, RREF_DEFAULT), 3);
		TG_IS(rref_wait_any(f, 3, 20 * MS), -ETIMEDOUT);
		TG_IS(rref_wait_any(f, 3, 0), -ETIMEDOUT);
		TG_IS(rref_wait_any(f, 0, 0), -EINVAL);
		TG_IS(rref_wait_all(f, 5, 20 * MS), -ETIMEDOUT);
		tg_until_held(ctx, 1, 4);
		TG_IS(tg_release_held(ctx, 1), 4);
		TG_IS(rref_wait_all(f, 5, RREF_DEFAULT), 0);
		TG_IS(rref_wait_all(f, 5, 0), 0);
		TG_IS(rref_wait_all(f, 0, 0), 0);
		TG_IS(rref_wait_any(f, 5, 0), 0);
		for (int i = 0; i < 5; i++)
			rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(wait_any__takes_futures_one_by_one, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[100];
	size_t n = (size_t)tg_scale(100);
	long sum = 0;

	for (size_t i = 0; i < n; i++)
		f[i] = tg_start(ctx, (int)i % 2, "tg.echo", &i, sizeof(i));
	for (size_t left = n; left; left--) {
		int i = rref_wait_any(f, left, RREF_DEFAULT);
		size_t got;

		TG_OK(i);
		tg_result(f[i], &got, sizeof(got));
		sum += (long)got;
		rref_future_free(f[i]);
		f[i] = f[left - 1];
	}
	TG_IS(sum, (long)(n * (n - 1) / 2));
	tg_finish(ctx);
	return 0;
}

TG_TEST(wait_all__does_not_take_errors_for_its_own, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[3] = { tg_start(ctx, 1 - rank, "tg.echo", "x", 1),
				     tg_start(ctx, 1 - rank, "no.such", "x", 1),
				     tg_start(ctx, rank, "tg.echo", "x", 1) };

	TG_IS(rref_wait_all(f, 3, RREF_DEFAULT), 0);
	TG_IS(rref_future_wait(f[0], 0), 0);
	TG_IS(rref_future_wait(f[1], 0), -ENOSYS);
	TG_IS(rref_future_wait(f[2], 0), 0);
	for (int i = 0; i < 3; i++)
		rref_future_free(f[i]);
	tg_finish(ctx);
	return 0;
}

TG_TEST(result__asked_for_too_early, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *f = tg_start(ctx, 1, "tg.hold", "x", 1);
		struct rref_error e = { .size = sizeof(e), .err = 77 };
		struct rref_view *v = NULL;
		struct rref *r = NULL;
		const void *data = NULL;
		size_t length = 99;

		TG_IS(rref_future_error(f, &e), -EAGAIN);
		TG_IS(rref_future_view(f, &v), -EAGAIN);
		TG_IS(rref_future_data(f, &data, &length), -EAGAIN);
		TG_IS(rref_future_nr_refs(f), -EAGAIN);
		TG_IS(rref_future_ref(f, 0, &r), -EAGAIN);
		TG_CHECK(e.err == 77 && !v && !r && !data && length == 99);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.err == 0 && e.wc_status == -1 && e.text[0] == 0 && e.peer == 1);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(result__of_the_other_kind, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *call = tg_start(ctx, 1 - rank, "tg.echo", "x", 1), *read, *creation;
	struct rref_view *v = NULL;
	struct rref *r, *none = NULL;
	const void *data;
	size_t length;

	TG_OK(rref_remote(ctx, 1 - rank, "tg.echo", &(struct rref_args){ .data = "v", .length = 1 },
			  RREF_DEFAULT, &r));
	TG_OK(rref_creation(r, &creation));
	TG_OK(rref_to_here_async(r, RREF_DEFAULT, &read));
	TG_OK(rref_wait_all((struct rref_future *[]){ call, read, creation }, 3, RREF_DEFAULT));
	TG_IS(rref_future_view(call, &v), -ENOMSG);
	TG_IS(rref_future_data(read, &data, &length), -ENOMSG);
	TG_IS(rref_future_nr_refs(read), -ENOMSG);
	TG_IS(rref_future_ref(read, 0, &none), -ENOMSG);
	TG_IS(rref_future_view(creation, &v), -ENOMSG);
	TG_IS(rref_future_data(creation, &data, &length), -ENOMSG);
	TG_IS(rref_future_ref(call, 0, &none), -EINVAL);
	TG_CHECK(!v && !none);
	rref_future_free(call);
	rref_future_free(read);
	rref_future_free(creation);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

TG_TEST(view__is_taken_once, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref_view *v, *w = NULL;
	struct rref *r;

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_remote(ctx, to, "tg.echo",
				  &(struct rref_args){ .data = "once", .length = 4 }, RREF_DEFAULT,
				  &r));
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_view(f, &v));
		TG_IS(rref_future_view(f, &w), -ENOMSG);
		TG_CHECK(!w);
		rref_future_free(f);
		rref_release(r);
		/* The view outlives its future and its reference. */
		TG_CHECK(rref_view_length(v) == 4 && memcmp(rref_view_data(v), "once", 4) == 0);
		rref_view_free(v);
	}
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	TG_IS(tg_stats(ctx).landing_bytes, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(references__are_taken_once_each_and_else_released, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref *r[3], *got = NULL;
		struct rref_future *f;

		for (int i = 0; i < 3; i++)
			TG_OK(rref_new(ctx, &"abc"[i], 1, &r[i]));
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo_refs",
				    &(struct rref_args){ .refs = r, .nr_refs = 3 }, RREF_DEFAULT,
				    &f));
		TG_IS(rref_future_nr_refs(f), 3);
		TG_OK(rref_future_ref(f, 1, &got));
		tg_expect_bytes(got, "b", 1);
		rref_release(got);
		got = NULL;
		TG_IS(rref_future_ref(f, 1, &got), -ENOMSG);
		TG_IS(rref_future_ref(f, 3, &got), -EINVAL);
		TG_CHECK(!got);
		rref_future_free(f);
		for (int i = 0; i < 3; i++)
			rref_release(r[i]);
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(cancel__of_reads, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *parked, *other, *done;
		struct rref *r;

		TG_OK(rref_remote(ctx, 1, "tg.hold",
				  &(struct rref_args){ .data = "late", .length = 4 }, RREF_DEFAULT,
				  &r));
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &parked));
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &other));
		TG_OK(rref_future_cancel(parked));
		TG_IS(rref_future_wait(parked, 0), -ECANCELED);
		TG_IS(rref_future_cancel(parked), -EALREADY);
		TG_IS(rref_future_test(other), 0);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(other, RREF_DEFAULT));
		TG_IS(rref_future_wait(parked, 0), -ECANCELED);
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &done));
		TG_OK(rref_future_wait(done, RREF_DEFAULT));
		TG_IS(rref_future_cancel(done), -EALREADY);
		rref_future_free(parked);
		rref_future_free(other);
		rref_future_free(done);
		rref_release(r);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wait__timeout_leaves_the_operation_alone),
		cmocka_unit_test(wait__by_many_threads),
		cmocka_unit_test(test__turns_without_being_waited_for),
		cmocka_unit_test(then__set_by_another_thread_while_it_completes),
		cmocka_unit_test(then__may_not_shut_down),
		cmocka_unit_test(free__before_completion),
		cmocka_unit_test(free__of_reads_before_completion),
		cmocka_unit_test(wait_any__finds_the_complete_future),
		cmocka_unit_test(wait_any__takes_futures_one_by_one),
		cmocka_unit_test(wait_all__does_not_take_errors_for_its_own),
		cmocka_unit_test(result__asked_for_too_early),
		cmocka_unit_test(result__of_the_other_kind),
		cmocka_unit_test(view__is_taken_once),
		cmocka_unit_test(references__are_taken_once_each_and_else_released),
		cmocka_unit_test(cancel__of_reads),
	};

	return cmocka_run_group_tests_name("futures", tests, NULL, NULL);
}
