/* SPDX-License-Identifier: Apache-2.0 */
/* References that values hold: taken by readers, kept alive by the value, gone with it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

#define MS NSEC_PER_MSEC

/* "nest": the result of the creation holds the references of the arguments. */
static int nest(struct rref_call *call, void *arg)
{
	struct rref *refs[RREF_REFS_MAX];
	size_t nr = rref_call_nr_refs(call);

	(void)arg;
	for (size_t i = 0; i < nr; i++)
		refs[i] = rref_call_ref(call, i);
	return rref_call_reply(call,
			       &(struct rref_args){ .data = rref_call_data(call),
						    .length = rref_call_length(call),
						    .refs = refs,
						    .nr_refs = nr });
}

/* "nest_typed": the same as numbers in two segments. */
static int nest_typed(struct rref_call *call, void *arg)
{
	static const struct rref_type type = { .size = sizeof(type), .name = "uint32[]" };
	uint32_t n[3] = { 7, 8, 9 };
	struct iovec seg[2] = { { &n[0], 4 }, { &n[1], 8 } };
	struct rref *refs[RREF_REFS_MAX];
	size_t nr = rref_call_nr_refs(call);

	(void)arg;
	for (size_t i = 0; i < nr; i++)
		refs[i] = rref_call_ref(call, i);
	return rref_call_reply_value(call, TG_VALUE(.segments = seg, .nr_segments = 2,
						    .type = &type, .refs = refs, .nr_refs = nr));
}

/* "take_all": reads its reference, takes all that the value holds: the sum of their first bytes. */
static int take_all(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *refs[RREF_REFS_MAX];
	struct rref_view *v;
	unsigned sum;
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	size_t nr = rref_view_nr_refs(v);

	err = rref_view_refs(v, 0, nr, RREF_DEFAULT, refs);
	if (err)
		rref_call_error(call, err, "%s", rref_last_error());
	rref_view_free(v);
	if (err)
		return 0;
	sum = tg_sum_there(ctx, rref_rank(ctx), refs, nr);
	for (size_t i = 0; i < nr; i++)
		rref_release(refs[i]);
	return rref_call_reply(call, tg_bytes(&sum, sizeof(sum)));
}

static struct rref_ctx *join_under(int rank, const char *rules)
{
	struct rref_ctx *ctx;

	TG_IS(setenv("RREF_INJECT", rules, 1), 0);
	ctx = tg_join(rank);
	tg_add_refs(ctx);
	tg_add(ctx, "nest", nest, 0);
	tg_add(ctx, "nest_typed", nest_typed, 0);
	tg_add(ctx, "take_all", take_all, 0);
	tg_meet_serving(ctx, 15); /* nobody calls before everybody can serve */
	return ctx;
}

static struct rref_ctx *join(int rank)
{
	return join_under(rank, "");
}

static struct rref *remote_with(struct rref_ctx *ctx, int to, const char *function,
				const char *text, struct rref *const *refs, size_t nr)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function,
			  &(struct rref_args){ .data = text,
					       .length = strlen(text),
					       .refs = refs,
					       .nr_refs = nr },
			  RREF_DEFAULT, &r));
	return r;
}

static struct rref *value(struct rref_ctx *ctx, const char *text)
{
	struct rref *r;

	TG_OK(rref_new(ctx, text, strlen(text), &r));
	return r;
}

static struct rref *value_with(struct rref_ctx *ctx, const char *text, struct rref *const *refs,
			       size_t nr)
{
	struct rref *r;

	TG_OK(rref_new_value(
		ctx, TG_VALUE(.data = text, .length = strlen(text), .refs = refs, .nr_refs = nr),
		&r));
	return r;
}

static void hand_over(struct rref_ctx *ctx, int to, struct rref *r)
{
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
}

/* A view of r with so many references. */
static struct rref_view *read_with(struct rref *r, const char *text, size_t nr)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_CHECK(rref_view_length(v) == strlen(text) &&
		 !memcmp(rref_view_data(v), text, strlen(text)));
	TG_IS(rref_view_nr_refs(v), nr);
	return v;
}

static struct rref *take(struct rref_view *v, size_t i)
{
	struct rref *r;

	TG_OK(rref_view_ref(v, i, RREF_DEFAULT, &r));
	return r;
}

static void take_fails(struct rref_view *v, size_t i, int err, const char *text)
{
	struct rref_future *f;
	struct rref *r = NULL;

	TG_IS(rref_view_ref(v, i, RREF_DEFAULT, &r), err);
	TG_TEXT(text);
	int begun = rref_view_refs_async(v, i, 1, RREF_DEFAULT, &f);

	if (!begun) {
		begun = rref_future_wait(f, TG_LONG_NS);
		rref_future_free(f);
	}
	TG_IS(begun, err);
	TG_TEXT(text);
	TG_CHECK(!r);
}

/* A worker puts references into its value: to an own value, to
 * one of the reader's, to one of a third. */
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
		/* On its owner: another hold on what the value holds, and no message. */
		struct rref_view *v = read_with(outer, "outer", 3);
		bool none_sent = false;
		struct rref *r;

		/* Of this, that is: the two creations may be on their way still. */
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

		TG_IS(tg_stats(ctx).reads, reads + 1); /* one READ, as of any value */
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
				/* A worker that is given the outer one takes the inner ones. */
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

/* A value of 3 in a value of 2 in a value of 1; 0 reads its
 * way down, and lets go of each on the way. */
TG_TEST(more_nested_three_deep_over_four_workers, 4)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int round = 0; round < tg_scale(20); round++) {
			static const char *const texts[4] = { "leaf", "three", "two", "one" };
			struct rref *r = tg_remote(ctx, 3, "tg.echo", "leaf", 4), *next;

			/* The inner ones need not be ready, nor known to their owners yet. */
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

/* Taken twice, it is two references. A take from a batch's and a future's view does the same. */
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

/* A view outlives the program's reference, and so does the
 * value: its references can still be taken. Then it goes. */
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
		/* Asked for, and the view freed before the answer:
		 * the request has a hold of its own. */
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

/* The held value is not made yet, or will never be. */
TG_TEST(more_nested_not_ready_and_failed, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		int32_t code = -EDOM;
		char bad[8];

		memcpy(bad, &code, 4);
		memcpy(bad + 4, "no!", 4);
		struct rref *inner[2] = { tg_remote(ctx, 2, "tg.hold", "late", 4),
					  tg_remote(ctx, 2, "tg.fail", bad, 7) };
		struct rref *outer = value_with(ctx, "out", inner, 2);
		struct rref_view *v;

		hand_over(ctx, 1, outer);
		tg_expect_error(inner[1], -EDOM, "no!");
		v = read_with(outer, "out", 2);
		take_fails(v, 1, -EDOM, "no!");
		rref_view_free(v);
		/* A value cannot be made of what has failed. */
		struct rref *none = NULL;

		TG_IS(rref_new_value(
			      ctx, TG_VALUE(.data = "x", .length = 1, .refs = inner, .nr_refs = 2),
			      &none),
		      -EDOM);
		TG_TEXT("no!");
		rref_release(outer);
		rref_release(inner[0]);
		rref_release(inner[1]);
		tg_set_flag(0, 1);
	}
	if (rank == 1) {
		struct rref_future *f;
		struct rref_view *v;
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		v = read_with(tg_kept(0), "out", 2);
		r = take(v, 0);
		TG_IS(rref_confirmed(r), 1);
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		TG_IS(rref_future_test(f), 0);
		take_fails(v, 1, -EDOM, "no!");
		struct rref *both[2];

		TG_IS(rref_view_refs(v, 0, 2, RREF_DEFAULT, both), -EDOM);
		rref_view_free(v);
		tg_drop_kept();
		tg_until_held(ctx, 2, 1);
		TG_IS(tg_release_held(ctx, 2), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		tg_expect_bytes(r, "late", 4);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The answer comes when nobody waits for it any more, or never: its references are reclaimed. */
TG_TEST(more_nested_given_up, 3)
{
	struct rref_ctx *ctx = join_under(rank, rank == 1 ? "REPLY@0:delay=300ms*3" : "");

	if (rank == 1) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2);
		struct rref *refs[20], *outer;

		for (int i = 0; i < 20; i++)
			refs[i] = inner;
		outer = value_with(ctx, "out", refs, 20);
		rref_release(inner);
		/* To itself, so that no answer to rank 0 is used up. */
		TG_OK(rref_rpc_sync(ctx, 0, "keep", tg_with(&outer, 1), RREF_DEFAULT, NULL));
		rref_release(outer);
		tg_set_flag(0, 1);
	}
	if (rank == 0) {
		struct rref_view *v;
		struct rref_future *f;
		struct rref *r[20];

		tg_wait_flag_serving(ctx, 0, 1);
		v = read_with(tg_kept(0), "out", 20);
		TG_IS(rref_view_ref(v, 0, 20 * MS, &r[0]), -ETIMEDOUT);
		TG_IS(rref_view_refs(v, 0, 20, 20 * MS, r), -ETIMEDOUT); /* in a payload */
		TG_OK(rref_view_refs_async(v, 3, 2, RREF_DEFAULT, &f));
		TG_OK(rref_future_cancel(f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ECANCELED);
		rref_future_free(f);
		TG_OK(rref_view_refs(v, 0, 20, RREF_DEFAULT, r));
		for (int i = 0; i < 20; i++) {
			tg_expect_bytes(r[i], "in", 2);
			rref_release(r[i]);
		}
		rref_view_free(v);
		tg_drop_kept();
		tg_all_clean(ctx);
		for (int i = 0; i < 3; i++)
			TG_IS(tg_stats_of(ctx, i).dead_peers, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* Every message that taking needs fails at first, comes late, twice, or in another order. */
TG_TEST(more_nested_under_message_faults, 3)
{
	static const char *const rules = "CALL:fail=3,REPLY:fail=3,FORK_REQUEST:dup=9,FORK_ACK:dup="
					 "9,CHILD_ACCEPT:dup=9,DELETE:dup=9,"
					 "PROTO:reorder=2ms*60,REPLY:reorder=2ms*20";
	struct rref_ctx *ctx = join_under(rank, rules);

	if (rank == 0) {
		for (int i = 0; i < 20; i++) {
			struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
				    *outer = remote_with(ctx, 1, "nest", "out", &inner, 1), *r;
			struct rref_view *v;

			rref_release(inner);
			v = read_with(outer, "out", 1);
			rref_release(outer);
			r = take(v, 0);
			rref_view_free(v);
			tg_expect_bytes(r, "in", 2);
			rref_release(r);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* 1 owns the outer value and dies. A reference to a value of 2
 * that was taken before lives; one that was not is -EOWNERDEAD. */
DEATH_TEST(more_nested_the_owner_of_the_outer_dies, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
			    *mine = value(ctx, "mine"), *r;
		struct rref *outer = remote_with(ctx, 1, "nest", "out",
						 (struct rref *[]){ inner, mine }, 2);
		struct rref_view *v = read_with(outer, "out", 2);

		rref_release(inner);
		r = take(v, 0);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		take_fails(v, 0, -EOWNERDEAD, "");
		take_fails(v, 1, -EOWNERDEAD, "");
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
		rref_view_free(v);
		rref_release(outer);
		rref_release(mine);
		/* References in the dead worker's value are given back by their owners' grace. */
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 2);
	}
	tg_leave(ctx);
	return 0;
}

/* In the middle of it: the answer never comes. */
DEATH_TEST(more_nested_the_owner_dies_while_it_is_asked, 3, 1 << 1)
{
	struct rref_ctx *ctx = join_under(rank, rank == 1 ? "REPLY@0:delay=20s" : "");
	int one = 1;

	if (rank == 1) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
			    *outer = value_with(ctx, "out", &inner, 1);

		rref_release(inner);
		hand_over(ctx, 0, outer);
		tg_set_flag(1, 1);
		tg_serve_and_die(ctx, 0);
	}
	if (rank == 0) {
		struct rref_future *f;
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 1, 1);
		v = read_with(tg_kept(0), "out", 1);
		TG_OK(rref_view_refs_async(v, 0, 1, RREF_FOREVER, &f));
		usleep(50000);
		TG_IS(rref_future_test(f), 0);
		tg_set_flag(0, 1);
		TG_IS(rref_future_wait(f, TG_LONG_NS), -EOWNERDEAD);
		rref_future_free(f);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		rref_view_free(v);
		tg_drop_kept();
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 2);
	}
	tg_leave(ctx);
	return 0;
}

/* 2 owns the inner value and dies: the outer one is read as
 * before, taking that one fails, taking the other does not. */
DEATH_TEST(more_nested_the_owner_of_the_inner_dies, 3, 1 << 2)
{
	struct rref_ctx *ctx = join(rank);
	int two = 2;

	if (rank == 2)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
			    *mine = value(ctx, "mine"), *r;
		struct rref *outer = remote_with(ctx, 1, "nest", "out",
						 (struct rref *[]){ inner, mine }, 2);
		struct rref_view *v = read_with(outer, "out", 2);

		rref_release(inner);
		rref_release(mine);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &two));
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats_of(ctx, 1).dead_peers != 1;
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		rref_view_free(v);
		v = read_with(outer, "out", 2);
		take_fails(v, 0, -EOWNERDEAD, "");
		r = take(v, 1);
		TG_CHECK(rref_is_owner(r));
		tg_expect_bytes(r, "mine", 4);
		rref_release(r);
		rref_view_free(v);
		rref_release(outer);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_leave(ctx);
	return 0;
}

/* 1 is killed while it holds an outer value, a view of it and
 * a taken reference: all of it is reclaimed. */
DEATH_TEST(more_nested_a_reader_dies, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 0) {
		struct rref *inner[2] = { value(ctx, "own"),
					  tg_remote(ctx, 2, "tg.echo", "third's", 7) };
		struct rref *outer = value_with(ctx, "out", inner, 2);

		hand_over(ctx, 1, outer);
		rref_release(inner[0]);
		rref_release(inner[1]);
		rref_release(outer);
		tg_set_flag(0, 1);
	}
	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		struct rref_view *v = read_with(tg_kept(0), "out", 2);

		take(v, 0);
		take(v, 1);
		TG_IS(tg_stats_of(ctx, 0).owners, 2);
		tg_die();
	}
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
	tg_until_clean(ctx, rank);
	tg_leave(ctx);
	return 0;
}

/* Nobody releases anything: values that hold references, and
 * two that hold each other, across workers and on one. */
TG_TEST(more_nested_never_released, 3)
{
	struct rref_ctx *ctx = join(rank);
	int next = (rank + 1) % 3;
	struct rref *inner = tg_remote(ctx, next, "tg.echo", "in", 2),
		    *outer = value_with(ctx, "out", &inner, 1), *self;
	struct rref_view *v;
	char report[4096];
	void *data;

	rref_release(inner);
	hand_over(ctx, next, outer);
	tg_meet_serving(ctx, 0);
	/* A circle of one, and one of three. */
	TG_OK(rref_alloc(ctx, 1, &self, &data));
	TG_OK(rref_set_refs(self, &self, 1));
	TG_OK(rref_set(self));
	rref_release(self);
	TG_OK(rref_alloc(ctx, 1, &self, &data));
	hand_over(ctx, next, self);
	tg_meet_serving(ctx, 1);
	struct rref *other = tg_kept(1);

	TG_OK(rref_set_refs(self, &other, 1));
	TG_OK(rref_set(self));
	tg_meet_serving(ctx, 2);
	rref_release(self);
	/* A view whose reference nobody has but the view. */
	v = read_with(tg_kept(0), "out", 1);
	tg_drop_kept();
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	/* References in values are no leak of the program's. Its
	 * leaks are the outer value, and the reference of the view. */
	TG_CHECK(rref_leak_report(ctx, report, sizeof(report)) > 0);
	int lines = 0;

	for (char *p = report; (p = strstr(p, "unreleased")); p++)
		lines++;
	TG_IS(lines, 2);
	TG_CHECK(!strstr(report, "leak") && !strstr(report, "stuck"));
	struct rref *r = NULL;

	TG_IS(rref_view_ref(v, 0, RREF_DEFAULT, &r), -ESHUTDOWN);
	rref_view_free(v);
	rref_release(outer);
	rref_free_ctx(ctx);
	return 0;
}

/* The end of it in any order, and at once. */
TG_TEST(more_nested_left_at_once, 3)
{
	struct rref_ctx *ctx = join(rank);
	int next = (rank + 1) % 3;
	struct rref *inner = tg_remote(ctx, next, "tg.echo", "in", 2),
		    *outer = value_with(ctx, "out", &inner, 1);
	struct rref_view *v, *own;

	hand_over(ctx, next, outer);
	tg_meet_serving(ctx, 0);
	v = read_with(tg_kept(0), "out", 1);
	own = read_with(outer, "out", 1);
	rref_release(take(v, 0));
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_release(outer);
	rref_view_free(own);
	rref_release(inner);
	tg_drop_kept();
	rref_view_free(v);
	rref_free_ctx(ctx);
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
		cmocka_unit_test(more_nested_not_ready_and_failed),
		cmocka_unit_test(more_nested_given_up),
		cmocka_unit_test(more_nested_under_message_faults),
		cmocka_unit_test(more_nested_the_owner_of_the_outer_dies),
		cmocka_unit_test(more_nested_the_owner_dies_while_it_is_asked),
		cmocka_unit_test(more_nested_the_owner_of_the_inner_dies),
		cmocka_unit_test(more_nested_a_reader_dies),
		cmocka_unit_test(more_nested_never_released),
		cmocka_unit_test(more_nested_left_at_once),
	};

	return cmocka_run_group_tests_name("nested", tests, NULL, NULL);
}
