/* SPDX-License-Identifier: Apache-2.0 */
/* References that values hold: taken by readers, kept alive by the value, gone with it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "nest.h"

/* A worker puts references into its value. They refer to an own value, to one of the reader, and to
 * one of a third worker. */
TG_TEST(more_references_nested_in_an_own_value, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *inner[3] = { value(ctx, "own"),
					  tg_remote(ctx, 1, "tg.echo", "reader's", 8),
					  tg_remote(ctx, 2, "tg.echo", "third's", 7) };
		struct rref *outer = value_with(ctx, "outer", inner, 3);

		for (int i = 0; i < 3; i++)
			rref_release(inner[i]);
		TG_IS(tg_stats(ctx).nested, 3);
		/* The owner gets another hold on the nested values, without a message. */
		struct rref_view *v = read_with(outer, "outer", 3);
		bool none_sent = false;
		struct rref *r;

		/* No message for this read, that is: the two
		 * creations may be on their way still. */
		for (int i = 0; i < 50 && !none_sent; i++) {
			uint64_t sent = tg_stats(ctx).messages_sent;

			r = take(v, 0);
			none_sent = tg_stats(ctx).messages_sent == sent;
			TG_CHECK(rref_is_owner(r));
			rref_release(r);
		}
		TG_CHECK(none_sent);
		r = take(v, 2);
		TG_IS(rref_owner(r), 2);
		rref_release(r);
		take_fails(v, 3, -EINVAL, "holds 3");
		rref_view_free(v);
		hand_over(ctx, 1, outer);
		rref_release(outer);
		tg_set_flag(0, 1);
	}
	if (rank == 1) {
		static const char *const texts[3] = { "own", "reader's", "third's" };
		static const int owners[3] = { 0, 1, 2 };
		struct rref *r[3];

		tg_wait_flag_serving(ctx, 0, 1);
		uint64_t reads = tg_stats(ctx).reads;
		struct rref_view *v = read_with(tg_kept(0), "outer", 3);

		TG_IS(tg_stats(ctx).reads, reads + 1); /* a READ, as for any value */
		for (size_t i = 0; i < 3; i++) {
			r[i] = take(v, i);
			TG_CHECK(rref_confirmed(r[i]) && rref_owner(r[i]) == owners[i]);
			tg_expect_bytes(r[i], texts[i], strlen(texts[i]));
		}
		take_fails(v, 3, -EINVAL, "holds 3");
		take_fails(v, SIZE_MAX, -EINVAL, "holds 3");
		TG_IS(rref_view_refs(v, 1, 3, RREF_DEFAULT, r), -EINVAL);
		TG_IS(rref_view_refs(v, 1, 0, RREF_DEFAULT, r), -EINVAL);
		rref_view_free(v);
		tg_drop_kept();
		/* The value is gone, and the taken references live on. */
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats_of(ctx, 0).nested; usleep(1000))
			TG_CHECK(now_ns() < end);
		for (size_t i = 0; i < 3; i++) {
			tg_expect_bytes(r[i], texts[i], strlen(texts[i]));
			rref_release(r[i]);
		}
		tg_all_clean(ctx);
		for (int i = 0; i < 3; i++)
			TG_IS(tg_stats_of(ctx, i).nested, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(more_nested_in_the_result_of_a_creation, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *inner[2] = { value(ctx, "mine"),
					  tg_remote(ctx, 2, "tg.echo", "third's", 7) };

		for (int to = 0; to < 3; to++)
			for (int typed = 0; typed < 2; typed++) {
				struct rref *outer = remote_with(ctx, to,
								 typed ? "nest_typed" : "nest",
								 "result", inner, 2),
					    *r;
				struct rref_view *v;
				struct iovec seg[2];
				unsigned sum = 'm' + 't';

				TG_OK(rref_to_here(outer, RREF_DEFAULT, &v));
				TG_IS(rref_view_nr_refs(v), 2);
				TG_IS(rref_view_segments(v, seg, 2), 1 + typed);
				TG_IS(*(const unsigned char *)seg[typed].iov_base, typed ? 8 : 'r');
				r = take(v, 0);
				TG_CHECK(rref_equal(r, inner[0]) && rref_is_owner(r));
				tg_expect_bytes(r, "mine", 4);
				rref_release(r);
				r = take(v, 1);
				TG_CHECK(rref_equal(r, inner[1]));
				tg_expect_bytes(r, "third's", 7);
				rref_release(r);
				rref_view_free(v);
				/* A worker that gets the outer reference takes the inner ones. */
				for (int by = 0; by < 3; by++) {
					struct rref_future *f;
					unsigned got;

					TG_OK(rref_rpc_sync(ctx, by, "take_all", tg_with(&outer, 1),
							    RREF_DEFAULT, &f));
					tg_result(f, &got, sizeof(got));
					rref_future_free(f);
					TG_IS(got, sum);
				}
				rref_release(outer);
			}
		rref_release(inner[0]);
		rref_release(inner[1]);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A value of 3 lies in a value of 2, which lies in a value of 1. Worker 0 reads its way down, and
 * releases each on the way. */
TG_TEST(more_nested_three_deep_over_four_workers, 4)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int round = 0; round < tg_scale(20); round++) {
			static const char *const texts[4] = { "leaf", "three", "two", "one" };
			struct rref *r = tg_remote(ctx, 3, "tg.echo", "leaf", 4), *next;

			/* The inner values need not be ready, nor known to their owners yet. */
			for (int i = 1; i < 4; i++) {
				next = remote_with(ctx, i < 3 ? 3 - i : 1, "nest", texts[i], &r, 1);
				rref_release(r);
				r = next;
			}
			for (int i = 3; i > 0; i--) {
				struct rref_view *v = read_with(r, texts[i], 1);

				rref_release(r);
				r = take(v, 0);
				rref_view_free(v);
			}
			tg_expect_bytes(r, "leaf", 4);
			rref_release(r);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(more_nested_as_many_as_there_may_be, 2)
{
	struct rref_ctx *ctx = join(rank);
	static struct rref *refs[RREF_REFS_MAX + 1], *views[RREF_REFS_MAX];

	if (rank == 0) {
		struct rref *outer = NULL;

		for (uint32_t i = 0; i <= RREF_REFS_MAX; i++)
			TG_OK(rref_new(ctx, &i, sizeof(i), &refs[i]));
		TG_IS(rref_new_value(ctx,
				     TG_VALUE(.data = "x", .length = 1, .refs = refs,
					      .nr_refs = RREF_REFS_MAX + 1),
				     &outer),
		      -EMSGSIZE);
		TG_CHECK(!outer);
		outer = value_with(ctx, "many", refs, RREF_REFS_MAX);
		for (uint32_t i = 0; i <= RREF_REFS_MAX; i++)
			rref_release(refs[i]);
		TG_IS(tg_stats(ctx).owners, RREF_REFS_MAX + 1);
		hand_over(ctx, 1, outer);
		rref_release(outer);
		tg_set_flag(0, 1);
	} else {
		static const size_t ranges[][2] = { { 0, RREF_REFS_MAX },
						    { 0, 8 },
						    { 1, 9 },
						    { RREF_REFS_MAX - 1, 1 },
						    { 500, RREF_REFS_MAX - 500 } };

		tg_wait_flag_serving(ctx, 0, 1);
		struct rref_view *v = read_with(tg_kept(0), "many", RREF_REFS_MAX);

		for (size_t k = 0; k < array_size(ranges); k++) {
			size_t first = ranges[k][0], nr = ranges[k][1];
			static int status[RREF_REFS_MAX];

			if (k % 2) {
				struct rref_future *f;

				TG_OK(rref_view_refs_async(v, first, nr, RREF_DEFAULT, &f));
				TG_OK(rref_future_wait(f, RREF_DEFAULT));
				TG_IS(rref_future_nr_refs(f), nr);
				for (size_t i = 0; i < nr; i++)
					TG_OK(rref_future_ref(f, i, &refs[i]));
				rref_future_free(f);
			} else {
				TG_OK(rref_view_refs(v, first, nr, RREF_DEFAULT, refs));
			}
			TG_IS(rref_to_here_batch(refs, nr, RREF_DEFAULT,
						 (struct rref_view **)(void *)views, status),
			      nr);
			for (size_t i = 0; i < nr; i++) {
				struct rref_view *one = (struct rref_view *)(void *)views[i];
				uint32_t got;

				memcpy(&got, rref_view_data(one), sizeof(got));
				TG_IS(got, first + i);
				rref_view_free(one);
				rref_release(refs[i]);
			}
		}
		rref_view_free(v);
		tg_drop_kept();
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static bool has_forks(struct rref_ctx *ctx, void *arg)
{
	return tg_stats(ctx).forks == *(uint64_t *)arg;
}

/* Two takes give two references. A take from a batch's and a future's view does the same. */
TG_TEST(more_nested_taken_twice_is_two_references, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *inner = value(ctx, "in"),
			    *outer = value_with(ctx, "out", (struct rref *[]){ inner, inner }, 2);
		uint64_t forks = 1 + 4, one = 1;

		hand_over(ctx, 1, outer);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(has_forks, ctx, &forks));
		tg_set_flag(1, 1);
		TG_CHECK(tg_eventually(has_forks, ctx, &one));
		tg_set_flag(2, 1);
		rref_release(inner);
		rref_release(outer);
	} else {
		struct rref_view *v[3];
		struct rref *r[4], *outer;
		struct rref_future *f;
		int status;

		tg_wait_flag_serving(ctx, 0, 1);
		outer = tg_kept(0);
		TG_OK(rref_to_here(outer, RREF_DEFAULT, &v[0]));
		TG_OK(rref_to_here_async(outer, RREF_DEFAULT, &f));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_view(f, &v[1]));
		rref_future_free(f);
		TG_IS(rref_to_here_batch(&outer, 1, RREF_DEFAULT, &v[2], &status), 1);
		for (int i = 0; i < 4; i++) {
			r[i] = take(v[i % 3], (size_t)i & 1);
			tg_expect_bytes(r[i], "in", 2);
			for (int k = 0; k < i; k++) {
				struct rref_id a = rref_fork_id(r[i]), b = rref_fork_id(r[k]);

				TG_CHECK(rref_equal(r[i], r[k]) && r[i] != r[k] &&
					 a.local_id != b.local_id);
			}
		}
		for (int i = 0; i < 3; i++)
			rref_view_free(v[i]);
		tg_wait_flag_serving(ctx, 1, 1);
		for (int i = 0; i < 4; i++)
			rref_release(r[i]);
		tg_wait_flag_serving(ctx, 2, 1);
		tg_drop_kept();
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A view outlives the program's reference, and so does the value. Its references can still be
 * taken. Then it goes. */
TG_TEST(more_nested_the_view_keeps_the_value, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *inner = value(ctx, "in"), *outer = value_with(ctx, "out", &inner, 1);

		rref_release(inner);
		hand_over(ctx, 1, outer);
		rref_release(outer);
		tg_set_flag(0, 1);
	} else {
		struct rref_view *v;
		struct rref_future *f;
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		v = read_with(tg_kept(0), "out", 1);
		tg_drop_kept();
		TG_IS(tg_stats_of(ctx, 0).owners, 2);
		r = take(v, 0);
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
		/* The view is freed before the answer: the request has its own hold. */
		TG_OK(rref_view_refs_async(v, 0, 1, RREF_DEFAULT, &f));
		rref_view_free(v);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats_of(ctx, 0).owners != 1;
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		TG_IS(tg_stats_of(ctx, 0).nested, 0);
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_references_nested_in_an_own_value),
		cmocka_unit_test(more_nested_in_the_result_of_a_creation),
		cmocka_unit_test(more_nested_three_deep_over_four_workers),
		cmocka_unit_test(more_nested_as_many_as_there_may_be),
		cmocka_unit_test(more_nested_taken_twice_is_two_references),
		cmocka_unit_test(more_nested_the_view_keeps_the_value),
	};

	return cmocka_run_group_tests_name("nested", tests, NULL, NULL);
}
