/* SPDX-License-Identifier: Apache-2.0 */
/* 91: a value of several segments keeps its shape in every kind of read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

static const struct rref_type floats = { sizeof(floats), "float32[]", 0, 0 };

static void finish(struct rref_ctx *ctx, int world)
{
	for (int i = 0; rref_rank(ctx) == 0 && i < world; i++)
		tg_until_clean(ctx, i);
	tg_finish(ctx);
}

/* The shapes: lengths of segments, ended by -1. */
static const int64_t shapes[][8] = {
	{ 0, -1 }, { 5, -1 }, { 0, 0, -1 }, { 1, 2, 3, -1 }, { 64, 64, 64, -1 },
	{ 63, 65, 0, 127, 1, -1 }, { 0, 9, -1 }, { 9, 0, -1 },
	{ 4032, 100, -1 }, { 70000, 1, 70000, -1 }, { 131072, 131072, 131073, 7, -1 },
	{ 1, 3000000, 0, 5, -1 }, { -1 },
};

static size_t segments_of(size_t shape, struct iovec *iov)
{
	size_t n = 0;

	for (; shapes[shape][n] >= 0; n++)
		iov[n] = (struct iovec){ .iov_len = (size_t)shapes[shape][n] };
	return n;
}

static struct rref *new_shape(struct rref_ctx *ctx, size_t shape, bool in_place)
{
	struct iovec iov[8] = { { 0 } };
	size_t n = segments_of(shape, iov);
	struct rref *r;

	if (in_place) {
		TG_OK(rref_alloc_value(ctx, TG_VALUE(.segments = iov, .nr_segments = n), &r, iov));
		for (size_t i = 0; i < n; i++) {
			TG_IS((uintptr_t)iov[i].iov_base % 64, 0);
			tg_fill(iov[i].iov_base, iov[i].iov_len, (unsigned)(shape * 8 + i));
		}
		TG_OK(rref_set(r));
		return r;
	}
	for (size_t i = 0; i < n; i++) {
		iov[i].iov_base = malloc(iov[i].iov_len + 1);
		TG_CHECK(iov[i].iov_base);
		tg_fill(iov[i].iov_base, iov[i].iov_len, (unsigned)(shape * 8 + i));
	}
	TG_OK(rref_new_value(ctx, TG_VALUE(.segments = iov, .nr_segments = n), &r));
	for (size_t i = 0; i < n; i++)
		free(iov[i].iov_base);
	return r;
}

static void check_shape(const struct rref_view *v, size_t shape)
{
	struct iovec want[8], got[9];
	size_t n = segments_of(shape, want);

	TG_IS(rref_view_segments(v, NULL, 0), n);
	memset(got, 0x11, sizeof(got));
	TG_IS(rref_view_segments(v, got, n ? n - 1 : 0), n);
	TG_CHECK(!n || got[n - 1].iov_len == 0x1111111111111111);
	TG_IS(rref_view_segments(v, got, 9), n);
	for (size_t i = 0; i < n; i++) {
		TG_IS(got[i].iov_len, want[i].iov_len);
		TG_IS((uintptr_t)got[i].iov_base % 64, 0);
		TG_CHECK(tg_filled(got[i].iov_base, got[i].iov_len, 0, (unsigned)(shape * 8 + i)));
		TG_CHECK((char *)got[i].iov_base + got[i].iov_len <=
			 (const char *)rref_view_data(v) + rref_view_length(v));
	}
	if (n)
		TG_CHECK((char *)got[n - 1].iov_base + got[n - 1].iov_len ==
			 (const char *)rref_view_data(v) + rref_view_length(v));
	else
		TG_IS(rref_view_length(v), 0);
}

/* All shapes, made in both ways, kept; and references to them. */
static struct rref *shaped[2 * array_size(shapes)];

static int get_shape(struct rref_call *call, void *arg)
{
	uint32_t i;

	(void)arg;
	memcpy(&i, rref_call_data(call), sizeof(i));
	return rref_call_reply(call, &(struct rref_args){ .refs = &shaped[i], .nr_refs = 1 });
}

/* Reads the given value, which belongs to a third worker: user to user. */
static int check_shape_of(struct rref_call *call, void *arg)
{
	struct rref_view *v;
	uint32_t i;

	(void)arg;
	memcpy(&i, rref_call_data(call), sizeof(i));
	TG_OK(rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v));
	check_shape(v, i / 2);
	rref_view_free(v);
	return 0;
}

static void check_ranges(struct rref *r, const struct rref_view *whole)
{
	size_t length = rref_view_length(whole), step = length / 7 + 1;
	char *buf = malloc(length + 100);

	TG_CHECK(buf);
	for (size_t at = 0; at < length + 2 * step; at += step) {
		size_t want = length > at ? min_of(step + 3, length - at) : 0, got;

		TG_OK(rref_to_here_into(r, buf, at, step + 3, RREF_DEFAULT, &got));
		TG_IS(got, want);
		TG_CHECK(memcmp(buf, (const char *)rref_view_data(whole) + at, got) == 0 || !got);
	}
	/* The table of segments is no part of the payload, even for a longer read. */
	size_t got;

	TG_OK(rref_to_here_into(r, buf, 0, SIZE_MAX, RREF_DEFAULT, &got));
	TG_IS(got, length);
	TG_OK(rref_to_here_into(r, buf, length, 50, RREF_DEFAULT, &got));
	TG_IS(got, 0);
	free(buf);
}

TG_TEST(c091_segments_keep_their_shape, 3)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_register(ctx,
			    &(struct rref_function){ .name = "get_shape", .handler = get_shape }));
	TG_OK(rref_register(ctx,
			    &(struct rref_function){ .name = "check_shape_of",
						     .handler = check_shape_of }));
	for (uint32_t i = 0; rank == 1 && i < array_size(shaped); i++) {
		struct rref_view *v;

		shaped[i] = new_shape(ctx, i / 2, i % 2);
		TG_OK(rref_to_here(shaped[i], RREF_DEFAULT, &v));
		check_shape(v, i / 2);
		rref_view_free(v);
	}
	tg_meet_serving(ctx, 14);
	if (rank == 0) {
		struct rref *all[array_size(shaped)];
		struct rref_view *views[array_size(shaped)], *v;
		int status[array_size(shaped)];

		for (uint32_t i = 0; i < array_size(shaped); i++) {
			struct rref_future *f;

			TG_OK(rref_rpc_sync(ctx, 1, "get_shape",
					    &(struct rref_args){ .data = &i, .length = 4 },
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_ref(f, 0, &all[i]));
			rref_future_free(f);
			TG_OK(rref_to_here(all[i], RREF_DEFAULT, &v));
			check_shape(v, i / 2);
			check_ranges(all[i], v);
			rref_view_free(v);
			TG_OK(rref_rpc_sync(ctx, 2, "check_shape_of",
					    &(struct rref_args){ .data = &i,
								 .length = 4,
								 .refs = &all[i],
								 .nr_refs = 1 },
					    RREF_DEFAULT, NULL));
		}
		TG_IS(rref_to_here_batch(all, array_size(all), RREF_DEFAULT, views, status),
		      array_size(all));
		for (uint32_t i = 0; i < array_size(all); i++) {
			check_shape(views[i], i / 2);
			rref_view_free(views[i]);
			rref_release(all[i]);
		}
		tg_set_flag(1, 1);
	}
	tg_wait_flag_serving(ctx, 1, 1);
	for (uint32_t i = 0; rank == 1 && i < array_size(shaped); i++)
		rref_release(shaped[i]);
	finish(ctx, 3);
	return 0;
}

/* Header, payload and table come with one READ. */
TG_TEST(c091_segments_come_with_one_read, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_register(ctx,
			    &(struct rref_function){ .name = "get_shape", .handler = get_shape }));
	if (rank == 1)
		shaped[0] = new_shape(ctx, 5, false);
	tg_meet_serving(ctx, 14);
	if (rank == 0) {
		uint32_t i = 0;
		struct rref_future *f;
		struct rref_view *v;
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, 1, "get_shape",
				    &(struct rref_args){ .data = &i, .length = 4 }, RREF_DEFAULT,
				    &f));
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		uint64_t reads = tg_stats(ctx).reads, sent = tg_stats(ctx).messages_sent;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_IS(tg_stats(ctx).reads, reads + 1);
		TG_IS(tg_stats(ctx).messages_sent, sent);
		check_shape(v, 5);
		rref_view_free(v);
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		tg_set_flag(1, 1);
	}
	tg_wait_flag_serving(ctx, 1, 1);
	if (rank == 1)
		rref_release(shaped[0]);
	finish(ctx, 2);
	return 0;
}

TG_TEST(c091_as_many_as_there_may_be, 1)
{
	static struct iovec iov[RREF_SEGMENTS_MAX + 1], got[RREF_SEGMENTS_MAX];
	static uint32_t number[RREF_SEGMENTS_MAX + 1];
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_view *v;
	struct rref *r = NULL;

	for (uint32_t i = 0; i <= RREF_SEGMENTS_MAX; i++) {
		number[i] = i;
		iov[i] = (struct iovec){ .iov_base = &number[i], .iov_len = 4 };
	}
	TG_IS(rref_new_value(ctx,
			     TG_VALUE(.segments = iov, .nr_segments = RREF_SEGMENTS_MAX + 1,
				      .type = &floats),
			     &r),
	      -EMSGSIZE);
	TG_CHECK(!r);
	TG_OK(rref_new_value(
		ctx, TG_VALUE(.segments = iov, .nr_segments = RREF_SEGMENTS_MAX, .type = &floats),
		&r));
	TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
	TG_IS(rref_view_segments(v, got, RREF_SEGMENTS_MAX), RREF_SEGMENTS_MAX);
	for (uint32_t i = 0; i < RREF_SEGMENTS_MAX; i++)
		TG_CHECK(got[i].iov_len == 4 && memcmp(got[i].iov_base, &i, 4) == 0);
	rref_view_free(v);
	rref_release(r);
	finish(ctx, 1);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c091_segments_keep_their_shape),
		cmocka_unit_test(c091_segments_come_with_one_read),
		cmocka_unit_test(c091_as_many_as_there_may_be),
	};

	return cmocka_run_group_tests_name("segments", tests, NULL, NULL);
}
