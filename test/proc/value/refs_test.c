/* SPDX-License-Identifier: Apache-2.0 */
/* References are made, shared, read and released, and describe themselves. Nothing remains. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC

/* ---- making and reading ---- */

TG_TEST(create__empty_value, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_view *v;
	struct rref *r;

	if (rank == 0) {
		TG_OK(rref_new(ctx, NULL, 0, &r));
		tg_expect_bytes(r, "", 0);
		rref_release(r);
		r = tg_remote(ctx, 1, "tg.nothing", NULL, 0);
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), 0);
		rref_view_free(v);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A read of a ready value is one READ and no message, in either direction. */
TG_TEST(read__of_a_ready_value_is_one_read_and_no_message, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_ask(ctx, 1, "pub.make",
					(struct tg_make){ .length = 1000, .seed = 3 });
		struct rref_stats before, after;
		struct rref_view *v;

		/* the connection may come first */
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		rref_view_free(v);
		before = tg_stats(ctx);
		for (int i = 0; i < 10; i++) {
			TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
			TG_CHECK(rref_view_length(v) == 1000 &&
				 tg_filled(rref_view_data(v), 1000, 0, 3));
			TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
			rref_view_free(v);
		}
		after = tg_stats(ctx);
		TG_IS(after.reads - before.reads, 10);
		TG_IS(after.read_bytes - before.read_bytes, 10 * 1000);
		TG_IS(after.doorbells - before.doorbells, 10);
		TG_IS(after.messages_sent - before.messages_sent, 0);
		TG_IS(after.messages_received - before.messages_received, 0);
		rref_release(r);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(read__async_many_at_once, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_ask(ctx, 1, "pub.make",
					(struct tg_make){ .length = 300, .seed = 9 });
		size_t n = (size_t)tg_scale(2000);
		struct rref_future **f = calloc(n, sizeof(struct rref_future *));

		for (size_t i = 0; i < n; i++)
			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f[i]));
		rref_release(r); /* the reads hold it */
		for (size_t i = 0; i < n; i++) {
			struct rref_view *v;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_view(f[i], &v));
			TG_CHECK(rref_view_length(v) == 300 &&
				 tg_filled(rref_view_data(v), 300, 0, 9));
			rref_view_free(v);
			rref_future_free(f[i]);
		}
		free(f);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(read__batch_odd_elements, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *mine, *theirs = tg_remote(ctx, 1, "tg.echo", "t", 1),
				   *held = tg_remote(ctx, 1, "tg.hold", "h", 1);
		struct rref_view *v[5];
		int status[5];

		TG_OK(rref_new(ctx, "m", 1, &mine));
		struct rref *r[5] = { mine, NULL, theirs, held, theirs };

		/* One of them never comes, so all of the time passes. The others have to come in
		 * it, on a slow machine too. */
		TG_OK(rref_to_here(theirs, RREF_DEFAULT, &v[0]));
		rref_view_free(v[0]);
		TG_IS(rref_to_here_batch(r, 5, (tg_is_shm() ? 300 : 3000) * MS, v, status), 3);
		TG_CHECK(status[0] == 0 && status[1] == -EINVAL && status[2] == 0 &&
			 status[3] == -ETIMEDOUT && status[4] == 0);
		TG_CHECK(!v[1] && !v[3]);
		for (int i = 0; i < 5; i++)
			rref_view_free(v[i]);
		TG_IS(rref_to_here_batch(NULL, 5, 0, v, status), -EINVAL);
		TG_IS(rref_to_here_batch(r, 5, 0, NULL, status), -EINVAL);
		TG_IS(rref_to_here_batch(r, 5, 0, v, NULL), -EINVAL);
		TG_IS(rref_to_here_batch(r, 0, 0, v, status), 0);
		TG_IS(rref_to_here_batch((struct rref *[]){ NULL }, 1, 0, v, status), -EINVAL);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_IS(rref_to_here_batch(r + 3, 1, RREF_DEFAULT, v, status), 1);
		rref_view_free(v[0]);
		rref_release(mine);
		rref_release(theirs);
		rref_release(held);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- alloc, set and set_error in place ---- */

TG_TEST(alloc__filled_in_place_and_set, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_view *v;
	struct rref *r;
	void *data;

	if (rank == 0) {
		TG_OK(rref_alloc(ctx, 5000, &r, &data));
		TG_IS((uintptr_t)data % 64, 0);
		TG_IS(tg_stats(ctx).owners, 1);
		tg_fill(data, 5000, 1);
		TG_OK(rref_set(r));
		TG_OK(rref_local_value(r, 0, &v));
		TG_CHECK(rref_view_data(v) == data);
		rref_view_free(v);
		TG_IS(tg_sum_there(ctx, 1, &r, 1), tg_byte(0, 1));
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(set_error__fails_every_read_everywhere, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *early = tg_ask(ctx, 1, "pub.alloc", (struct tg_make){ .length = 100 }),
			    *late;
		struct rref_future *f;

		TG_OK(rref_to_here_async(early, RREF_DEFAULT, &f));
		tg_ask(ctx, 1, "pub.fail", (struct tg_make){ .err = -ENODATA });
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENODATA);
		TG_CHECK(strcmp(rref_last_error(), "no value:\nit failed") == 0);
		rref_future_free(f);
		for (int i = 0; i < 3; i++)
			tg_expect_error(early, -ENODATA, "no value:\nit failed");
		/* A share after the failure: the receiver is told as well, by
		 * the owner or by the sharing itself. */
		if (rref_rpc_sync(ctx, 1, "pub.get", NULL, RREF_DEFAULT, &f) == 0) {
			TG_OK(rref_future_ref(f, 0, &late));
			for (int i = 0; i < 3; i++)
				tg_expect_error(late, -ENODATA, "no value:\nit failed");
			rref_release(late);
			rref_future_free(f);
		} else {
			TG_TEXT("no value:\nit failed");
		}
		rref_release(early);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(unset__released_by_the_owner, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_ask(ctx, 1, "pub.alloc", (struct tg_make){ .length = 100 });
		struct rref_future *f;

		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		/* No handle is left that could set it. */
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ECANCELED);
		rref_future_free(f);
		tg_expect_error(r, -ECANCELED, "before it was set");
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- values that are not ready ---- */

static bool parked_is(struct rref_ctx *ctx, void *arg)
{
	return tg_stats_of(ctx, 1).parked == *(uint64_t *)arg;
}

TG_TEST(not_ready__reads_park_at_the_owner_and_hold_no_thread, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.nr_threads = 1; /* a single thread: a held one would show */
	ctx = tg_join_by(&o);
	if (rank == 0) {
		struct rref *r[5];
		struct rref_future *f[5][3];
		struct rref_view *v;
		uint64_t want = 1;

		r[0] = tg_ask(ctx, 1, "pub.alloc", (struct tg_make){ .length = 2000 });
		for (int i = 1; i < 5; i++)
			r[i] = tg_ask(ctx, 1, "pub.get", (struct tg_make){ 0 });
		for (int k = 0; k < 3; k++)
			TG_OK(rref_to_here_async(r[0], RREF_DEFAULT, &f[0][k]));
		TG_CHECK(tg_eventually(parked_is, ctx, &want));
		for (int i = 1; i < 5; i++)
			for (int k = 0; k < 3; k++)
				TG_OK(rref_to_here_async(r[i], RREF_DEFAULT, &f[i][k]));
		want = 5;
		TG_CHECK(tg_eventually(parked_is, ctx, &want));
		TG_IS(rref_to_here(r[0], 20 * MS, &v), -ETIMEDOUT);
		TG_TEXT("worker1 (rank 1)");
		for (int i = 0; i < 5; i++)
			TG_IS(rref_future_test(f[i][0]), 0);
		tg_ask(ctx, 1, "pub.set", (struct tg_make){ .seed = 8 });
		for (int i = 0; i < 5; i++) {
			for (int k = 0; k < 3; k++) {
				TG_OK(rref_future_wait(f[i][k], RREF_DEFAULT));
				TG_OK(rref_future_view(f[i][k], &v));
				TG_CHECK(rref_view_length(v) == 2000 &&
					 tg_filled(rref_view_data(v), 2000, 0, 8));
				rref_view_free(v);
				rref_future_free(f[i][k]);
			}
			rref_release(r[i]);
		}
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static void *set_later(void *arg)
{
	usleep(20000);
	TG_OK(rref_set(arg));
	return NULL;
}

TG_TEST(not_ready__local_value_blocks_until_set, 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_view *v;
	struct rref *r;
	pthread_t t;
	void *data;

	for (int i = 0; i < 3; i++) {
		TG_OK(rref_alloc(ctx, 4, &r, &data));
		TG_IS(rref_local_value(r, 10 * MS, &v), -ETIMEDOUT);
		TG_IS(rref_to_here(r, 0, &v), -ETIMEDOUT);
		memcpy(data, "late", 4);
		TG_IS(pthread_create(&t, NULL, set_later, r), 0);
		TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
		TG_CHECK(memcmp(rref_view_data(v), "late", 4) == 0);
		pthread_join(t, NULL);
		rref_view_free(v);
		rref_release(r);
	}
	tg_until_clean(ctx, 0);
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

/* ---- failed creations ---- */

/* A share before the failure: its holders learn of it, too. */
TG_TEST(failed_creation__shared_before_the_failure, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct {
			int32_t code;
			char text[8];
		} a = { -EILSEQ, "too bad" };

		for (int i = 0; i < tg_scale(50); i++) {
			struct rref *r = tg_remote(ctx, 1, "tg.fail", &a,
						   sizeof(a.code) + strlen(a.text));
			struct rref_future *f;
			int err = rref_rpc_sync(ctx, 2, "tg.read", tg_with(&r, 1), RREF_DEFAULT,
						&f);

			TG_IS(err, -EILSEQ);
			TG_TEXT("too bad");
			tg_expect_error(r, -EILSEQ, "too bad");
			rref_release(r);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- sharing ---- */

TG_TEST(share__released_while_under_way, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(100); i++) {
			struct rref *r = tg_remote(ctx, 1, "tg.echo", "\5", 1);
			struct rref_future *f;
			unsigned sum;

			TG_OK(rref_rpc_async(ctx, i % 3, "tg.read", tg_with(&r, 1), RREF_DEFAULT,
					     &f));
			rref_release(r);
			TG_OK(rref_future_wait(f, RREF_DEFAULT));
			tg_result(f, &sum, sizeof(sum));
			TG_IS(sum, 5);
			rref_future_free(f);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The giver releases its reference. The receiver goes on reading. */
TG_TEST(share__kept_beyond_the_call, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "\11", 1), *back;

		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_until_clean(ctx, 0);
		TG_IS(tg_stats_of(ctx, 1).owners, 1);
		back = tg_ask(ctx, 2, "pub.get", (struct tg_make){ 0 });
		TG_IS(rref_owner(back), 1);
		tg_ask(ctx, 2, "pub.drop", (struct tg_make){ 0 });
		tg_until_clean(ctx, 2);
		tg_expect_bytes(back, "\11", 1);
		rref_release(back);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Two groups of two, in the same two processes, at once. */
TG_TEST(contexts__two_groups_in_two_processes, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx[2];
	char place[64];

	ctx[0] = tg_join_refs(rank);
	if (rank == 0) {
		tg_free_place(tg_current->shared->bytes, 64);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx[0], 0, 1);
	memcpy(place, tg_current->shared->bytes, sizeof(place));
	tg_options(&o, 1 - rank); /* the other way round */
	o.rendezvous = place;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx[1]));
	for (int i = 0; i < tg_scale(40); i++) {
		int me = i % 2 ? 1 - rank : rank;
		struct rref_ctx *c = ctx[i % 2];
		struct rref *r = tg_remote(c, 1 - me, "tg.echo", &i, sizeof(i));

		TG_IS(rref_rank(c), me);
		tg_expect_bytes(r, &i, sizeof(i));
		rref_release(r);
	}
	/* No thread serves one group while this thread waits in the other
	 * (manual mode). So all is done before. */
	for (int done = 0; done < 2; done++) {
		atomic_fetch_add(&tg_current->shared->arrived[1], 1);
		while (atomic_load(&tg_current->shared->arrived[1]) < 2 * (done + 1)) {
			rref_progress(ctx[0]);
			rref_progress(ctx[1]);
			usleep(100);
		}
	}
	tg_finish(ctx[0]);
	tg_finish(ctx[1]);
	return 0;
}

/* ---- many threads with one handle ---- */

struct shared_handle {
	struct rref *r;
	struct rref_ctx *ctx;
	int rounds, to;
};

static void *dup_and_release(void *arg)
{
	struct shared_handle *s = arg;

	for (int i = 0; i < s->rounds; i++) {
		struct rref *mine = rref_dup(s->r);

		if (i % 16 == 0)
			tg_expect_bytes(mine, "shared", 6);
		rref_release(mine);
	}
	return NULL;
}

TG_TEST(threads__dup_and_release_one_handle, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0)
		for (int to = 0; to < 2; to++) {
			struct shared_handle s = { tg_remote(ctx, to, "tg.echo", "shared", 6), ctx,
						   tg_scale(3000), to };
			pthread_t t[8];

			for (int i = 0; i < 8; i++)
				TG_IS(pthread_create(&t[i], NULL, dup_and_release, &s), 0);
			for (int i = 0; i < 8; i++)
				pthread_join(t[i], NULL);
			rref_release(s.r);
			tg_all_clean(ctx);
		}
	tg_finish(ctx);
	return 0;
}

static void *churn(void *arg)
{
	struct shared_handle *s = arg;

	for (int i = 0; i < s->rounds; i++) {
		struct rref *r;

		if (i % 2)
			TG_OK(rref_new(s->ctx, "c", 1, &r));
		else
			r = tg_remote(s->ctx, s->to, "tg.echo", "c", 1);
		tg_expect_bytes(r, "c", 1);
		rref_release(r);
	}
	return NULL;
}

TG_TEST(threads__create_read_release_everywhere, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct shared_handle s[4];
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		s[i] = (struct shared_handle){ NULL, ctx, tg_scale(300), i % 3 };
		TG_IS(pthread_create(&t[i], NULL, churn, &s[i]), 0);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

/* ---- counting ---- */

TG_TEST(dump__names_holders_and_values, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		static char text[65536];
		struct rref *mine, *theirs = tg_remote(ctx, 1, "tg.echo", "x", 1);
		char small[10];
		int n;

		tg_expect_bytes(theirs, "x", 1);
		TG_OK(rref_new(ctx, "m", 1, &mine));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&mine, 1), RREF_DEFAULT, NULL));
		n = rref_dump(ctx, text, sizeof(text));
		TG_CHECK(n > 0 && (size_t)n == strlen(text));
		TG_CHECK(strstr(text, "worker0") && strstr(text, "worker1") &&
			 strstr(text, "owner") && strstr(text, "fork") && strstr(text, "user"));
		TG_IS(rref_dump(ctx, NULL, 0), n);
		TG_IS(rref_dump(ctx, small, sizeof(small)), n);
		TG_CHECK(strlen(small) == 9 && memcmp(small, text, 9) == 0);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		rref_release(mine);
		rref_release(theirs);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(create__empty_value),
		cmocka_unit_test(read__of_a_ready_value_is_one_read_and_no_message),
		cmocka_unit_test(read__async_many_at_once),
		cmocka_unit_test(read__batch_odd_elements),
		cmocka_unit_test(alloc__filled_in_place_and_set),
		cmocka_unit_test(set_error__fails_every_read_everywhere),
		cmocka_unit_test(unset__released_by_the_owner),
		cmocka_unit_test(not_ready__reads_park_at_the_owner_and_hold_no_thread),
		cmocka_unit_test(not_ready__local_value_blocks_until_set),
		cmocka_unit_test(failed_creation__shared_before_the_failure),
		cmocka_unit_test(share__released_while_under_way),
		cmocka_unit_test(share__kept_beyond_the_call),
		cmocka_unit_test(contexts__two_groups_in_two_processes),
		cmocka_unit_test(threads__dup_and_release_one_handle),
		cmocka_unit_test(threads__create_read_release_everywhere),
		cmocka_unit_test(dump__names_holders_and_values),
	};

	return cmocka_run_group_tests_name("refs", tests, NULL, NULL);
}
