/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of local-only types; typed results; refusals of misused types, values and calls. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_types.h"

TG_TEST(local_only__memory_is_bounded_and_counted, 1)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *r[4];
	struct iovec place = { .iov_len = 6 << 20 };
	static const struct rref_type heap = { sizeof(heap), "heap", 0, RREF_LOCAL_ONLY };

	tg_options(&o, rank);
	o.max_value_bytes = 16 << 20;
	TG_OK(rref_init(&o, &ctx));
	uint64_t registered = tg_stats(ctx).registered_bytes;

	TG_OK(rref_alloc_value(ctx, TG_VALUE(.length = place.iov_len, .type = &heap), &r[0],
			       &place));
	TG_IS((uintptr_t)place.iov_base % 64, 0);
	memset(place.iov_base, 1, place.iov_len);
	TG_OK(rref_alloc_value(ctx, TG_VALUE(.length = place.iov_len, .type = &heap), &r[1],
			       &place));
	TG_IS(rref_alloc_value(ctx, TG_VALUE(.length = place.iov_len, .type = &heap), &r[2],
			       &place),
	      -ENOMEM);
	TG_TEXT("max_value_bytes");
	TG_CHECK(tg_stats(ctx).value_bytes >= 12 << 20);
	TG_IS(tg_stats(ctx).registered_bytes, registered);
	rref_release(r[0]);
	TG_OK(rref_alloc_value(ctx, TG_VALUE(.length = place.iov_len, .type = &heap), &r[2],
			       &place));
	rref_release(r[1]);
	rref_release(r[2]);
	TG_IS(tg_stats(ctx).value_bytes, 0);
	tg_finish(ctx);
	return 0;
}

/* ---- 36: shapes of results; typed results of calls that are no creations ---- */

static int reply_typed(struct rref_call *call, void *arg)
{
	struct rref_type odd = { sizeof(odd), "int64[]", 0, 0 };
	struct iovec seg[2] = { { .iov_base = (void *)(uintptr_t)"12345678", .iov_len = 8 },
				{ .iov_base = (void *)(uintptr_t)"123", .iov_len = 3 } };
	int err = rref_call_reply_value(call,
					TG_VALUE(.segments = seg, .nr_segments = 2, .type = &odd));

	(void)arg;
	TG_IS(err, -EINVAL);
	if (strstr(rref_last_error(), "not a creation"))
		return rref_call_error(call, -ENOTSUP, "%s", rref_last_error());
	TG_TEXT("segment 1 of 3 bytes is not whole elements of type int64[]");
	TG_IS(rref_call_reply_value(call, TG_VALUE(.segments = (struct iovec[]){ { .iov_len = 8 } },
						   .nr_segments = 1, .type = &odd)),
	      -EINVAL);
	TG_OK(rref_call_reply_value(call,
				    TG_VALUE(.segments = seg, .nr_segments = 1, .type = &odd)));
	TG_IS(rref_call_reply_value(call,
				    TG_VALUE(.segments = seg, .nr_segments = 1, .type = &odd)),
	      -EALREADY);
	return 0;
}

TG_TEST(reply_typed__of_a_creation_only, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	TG_OK(rref_register(ctx,
			    &(struct rref_function){ .name = "reply_typed",
						     .handler = reply_typed }));
	tg_meet_serving(ctx, 14);
	if (rank == 0) {
		struct rref_future *f;
		struct rref *r;

		for (int to = 0; to < 2; to++) {
			TG_IS(rref_rpc_sync(ctx, to, "reply_typed", NULL, RREF_DEFAULT, &f),
			      -ENOTSUP);
			TG_TEXT("not a creation");
			TG_OK(rref_remote(ctx, to, "reply_typed", NULL, RREF_DEFAULT, &r));
			tg_expect_bytes(r, "12345678", 8);
			tgt_is_type(r, "int64[]", 8, 0);
			rref_release(r);
		}
		TG_IS(rref_call_reply_value(NULL, TG_VALUE(.length = 0)), -EINVAL);
	}
	tgt_finish(ctx, 2);
	return 0;
}

/* ---- bad input ---- */

TG_TEST(bad_types_are_refused_with_words, 1)
{
	struct rref_ctx *ctx = tgt_join(rank);
	struct rref_type t;
	struct iovec seg[2] = { { .iov_base = (void *)(uintptr_t) "0123456789abcdef",
				  .iov_len = 16 },
				{ .iov_base = (void *)(uintptr_t) "0123", .iov_len = 4 } };
	struct rref *r = NULL;
	struct rref_view *v;
	char name[RREF_NAME_MAX + 2];
	struct rref_stats before = tg_stats(ctx);

#define BAD(err, words, nr, ...) \
	do { \
		t = (struct rref_type){ .size = sizeof(t), __VA_ARGS__ }; \
		TG_IS(rref_new_value(ctx, \
				     TG_VALUE(.segments = seg, .nr_segments = nr, .type = &t), \
				     &r), \
		      err); \
		TG_TEXT(words); \
		TG_CHECK(!r); \
	} while (0)
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	BAD(-EINVAL, "name", 1, .name = NULL);
	BAD(-EINVAL, "name", 1, .name = "");
	BAD(-EINVAL, "name", 1, .name = "two words");
	BAD(-EINVAL, "name", 1, .name = "caf\xc3\xa9");
	BAD(-EINVAL, "name", 1, .name = name);
	BAD(-EINVAL, "unknown flags", 1, .name = "x", .flags = 2);
	BAD(-EINVAL, "float32[] have 4 bytes, not 8", 1, .name = "float32[]", .element_size = 8);
	BAD(-EINVAL, "segment 0 of 16 bytes is not one element of type int32", 1, .name = "int32");
	BAD(-EINVAL, "which is one number", 2, .name = "int32");
	BAD(-EINVAL, "which is one number", 0, .name = "int32");
	BAD(-EINVAL, "segment 1 of 4 bytes is not whole elements of type pair", 2, .name = "pair",
	    .element_size = 8);
	t = (struct rref_type){ .name = "no-size" };
	TG_IS(rref_new_value(ctx, TG_VALUE(.segments = seg, .nr_segments = 1, .type = &t), &r),
	      -EINVAL);
	TG_TEXT("size is not set");
	TG_IS(rref_new_value(ctx, TG_VALUE(.segments = NULL, .nr_segments = 1, .type = &tgt_tick),
			     &r),
	      -EINVAL);
	TG_IS(rref_new_value(ctx,
			     TG_VALUE(.segments = &(struct iovec){ .iov_len = 16 },
				      .nr_segments = 1, .type = &tgt_tick),
			     &r),
	      -EINVAL);
	TG_TEXT("segment 0 is NULL");
	TG_IS(rref_new_value(ctx,
			     TG_VALUE(.segments = (struct iovec[]){ { .iov_base = name,
								      .iov_len = SIZE_MAX },
								    seg[0] },
				      .nr_segments = 2),
			     &r),
	      -EMSGSIZE);
	TG_IS(rref_alloc_value(ctx,
			       TG_VALUE(.segments = (struct iovec[]){ { .iov_len = SIZE_MAX - 63 },
								      { .iov_len = 64 } },
					.nr_segments = 2),
			       &r, seg),
	      -EMSGSIZE);
	TG_IS(rref_alloc_value(
		      ctx,
		      TG_VALUE(.segments = (struct iovec[]){ { .iov_len = (size_t)1 << 30 },
							     { .iov_len = (size_t)1 << 30 } },
			       .nr_segments = 2),
		      &r, seg),
	      -EMSGSIZE);
	TG_IS(rref_new_value(ctx, TG_VALUE(.segments = seg, .nr_segments = 1, .type = &tgt_tick),
			     NULL),
	      -EINVAL);
	TG_IS(rref_alloc_value(ctx, TG_VALUE(.segments = seg, .nr_segments = 1, .type = &tgt_tick),
			       NULL, seg),
	      -EINVAL);
	TG_IS(rref_alloc_value(ctx, TG_VALUE(.length = 16, .type = &tgt_tick), &r, NULL), -EINVAL);
	TG_IS(rref_new_value(ctx, NULL, &r), -EINVAL);
	TG_TEXT("no description");
	TG_IS(rref_new_value(ctx, TG_VALUE(.length = 16, .type = &tgt_tick), &r), -EINVAL);
	TG_TEXT("segment 0 is NULL");
	TG_IS(rref_new_value(
		      ctx, TG_VALUE(.data = name, .length = 16, .segments = seg, .nr_segments = 1),
		      &r),
	      -EINVAL);
	TG_TEXT("segments, and bytes beside them");
	TG_IS(rref_new_value(NULL, TG_VALUE(.segments = seg, .nr_segments = 1, .type = &tgt_tick),
			     &r),
	      -EINVAL);
	TG_IS(rref_get_type(NULL, 0, &t), -EINVAL);
	TG_IS(rref_expect_type(NULL, &tgt_tick, 0), -EINVAL);
	TG_IS(rref_view_type(NULL, &t), -EINVAL);
	TG_IS(rref_view_segments(NULL, NULL, 0), 0);
	TG_IS(rref_future_type(NULL, &t), -EINVAL);
	TG_CHECK(!r);
	TG_IS(tg_stats(ctx).owners, before.owners);
	TG_IS(tg_stats(ctx).value_bytes, before.value_bytes);
	/* Correct uses are accepted: no shape at all, as in rref_new of no bytes. Also no segments,
	 * one number, and the longest name. */
	for (size_t i = 0; i < 2; i++) {
		TG_OK(rref_new_value(ctx, TG_VALUE(.segments = i ? seg : NULL), &r));
		tgt_is_type(r, "bytes", 1, 0);
		TG_OK(rref_to_here(r, 0, &v));
		TG_IS(rref_view_length(v), 0);
		TG_IS(rref_view_segments(v, NULL, 0), 1 - i);
		rref_view_free(v);
		rref_release(r);
	}
	t = (struct rref_type){ .size = sizeof(t), .name = "int32" };
	TG_OK(rref_new_value(ctx, TG_VALUE(.segments = &seg[1], .nr_segments = 1, .type = &t), &r));
	TG_IS(rref_get_type(r, 0, &(struct rref_type){ .size = 0 }), -EINVAL);
	TG_IS(rref_get_type(r, 0, NULL), -EINVAL);
	TG_IS(rref_expect_type(r, NULL, 0), -EINVAL);
	TG_OK(rref_expect_type(r, &t, 0));
	TG_OK(rref_to_here(r, 0, &v));
	TG_IS(rref_view_type(v, &(struct rref_type){ .size = 0 }), -EINVAL);
	rref_view_free(v);
	rref_release(r);
	name[RREF_NAME_MAX] = 0;
	t = (struct rref_type){ .size = sizeof(t), .name = name };
	TG_OK(rref_new_value(ctx, TG_VALUE(.segments = seg, .nr_segments = 2, .type = &t), &r));
	tgt_is_type(r, name, 0, 0);
	rref_release(r);
#undef BAD
	tgt_finish(ctx, 1);
	return 0;
}

/* ---- releases of a foreign reference in a handler ---- */

static int greedy(struct rref_call *call, void *arg)
{
	struct rref *ref = rref_call_ref(call, 0);
	struct rref_view *v;

	(void)arg;
	for (int i = 0; i < 3; i++) {
		rref_release(ref);
		TG_TEXT("lent by a call");
	}
	/* The handler may give back its own hold, once. */
	rref_release(rref_dup(ref));
	rref_release(ref);
	TG_TEXT("lent by a call");
	TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
	TG_IS(rref_view_length(v), 7);
	rref_view_free(v);
	return rref_call_reply(call, &(struct rref_args){ .refs = &ref, .nr_refs = 1 });
}

TG_TEST(a_handler_cannot_release_lent_references, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "greedy", .handler = greedy }));
	tg_meet_serving(ctx, 14);
	if (rank == 0) {
		struct rref *own, *back;
		struct rref_future *f;

		TG_OK(rref_new(ctx, "nothing", 7, &own));
		for (int to = 0; to < 2; to++) {
			TG_OK(rref_rpc_sync(ctx, to, "greedy",
					    &(struct rref_args){ .refs = &own, .nr_refs = 1 },
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_ref(f, 0, &back));
			rref_future_free(f);
			TG_CHECK(rref_equal(own, back));
			tg_expect_bytes(back, "nothing", 7);
			rref_release(back);
		}
		rref_release(own);
	}
	tgt_finish(ctx, 2);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_handler_cannot_release_lent_references),
		cmocka_unit_test(bad_types_are_refused_with_words),
		cmocka_unit_test(local_only__memory_is_bounded_and_counted),
		cmocka_unit_test(reply_typed__of_a_creation_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
