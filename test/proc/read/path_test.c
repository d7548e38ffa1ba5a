/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many reads of 8 bytes, for path.sh to count their instructions. They are made one by one, as
 * futures, as batches, and out of queues. Also looks at large values where they lie, over shm. As
 * a test of its own, it checks the bytes of each.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define READS  100000
#define WINDOW 50 /* reads in flight, or in a batch */
#define KIB ((size_t)1024)

static struct rref *make_8_bytes(struct rref_ctx *ctx)
{
	struct rref_future *f;
	struct rref *ref;

	TG_OK(rref_remote(ctx, 0, "tg.echo",
			  &(struct rref_args){ .data = "8 bytes.", .length = 8 }, RREF_DEFAULT,
			  &ref));
	TG_OK(rref_creation(ref, &f));
	/* path.sh counts waits, but not these */
	while (rref_future_test(f) == 0)
		if (rref_progress(ctx) <= 0)
			tg_pause();
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	return ref;
}

static void expect_8_bytes(struct rref_view *v)
{
	TG_IS(rref_view_length(v), 8);
	TG_CHECK(memcmp(rref_view_data(v), "8 bytes.", 8) == 0);
	rref_view_free(v);
}

/* Takes the view of a complete future, and frees both. */
static void expect_future(struct rref_future *f)
{
	struct rref_view *v;

	TG_OK(rref_future_view(f, &v));
	rref_future_free(f);
	expect_8_bytes(v);
}

TG_TEST(reads__of_8_bytes, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 1) {
		struct rref *ref = make_8_bytes(ctx);

		for (int i = 0; i < tg_scale(READS); i++) {
			struct rref_view *v;

			TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
			expect_8_bytes(v);
		}
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(reads__as_futures, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 1) {
		struct rref *ref = make_8_bytes(ctx);
		struct rref_future *f[WINDOW];

		for (int i = 0; i < tg_scale(READS); i += WINDOW) {
			for (int k = 0; k < WINDOW; k++)
				TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f[k]));
			for (int k = 0; k < WINDOW; k++) {
				TG_OK(rref_future_wait(f[k], RREF_DEFAULT));
				expect_future(f[k]);
			}
		}
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(reads__as_batches, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 1) {
		struct rref *refs[WINDOW];
		struct rref_view *views[WINDOW];
		int status[WINDOW];

		for (int k = 0; k < WINDOW; k++)
			refs[k] = make_8_bytes(ctx);
		for (int i = 0; i < tg_scale(READS); i += WINDOW) {
			TG_IS(rref_to_here_batch(refs, WINDOW, RREF_DEFAULT, views, status),
			      WINDOW);
			for (int k = 0; k < WINDOW; k++)
				expect_8_bytes(views[k]);
		}
		for (int k = 0; k < WINDOW; k++)
			rref_release(refs[k]);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(reads__out_of_a_queue, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 1) {
		struct rref *ref = make_8_bytes(ctx);
		struct rref_queue *q;
		struct rref_future *f;

		TG_OK(rref_queue_new(ctx, &q));
		for (int i = 0; i < tg_scale(READS); i += WINDOW) {
			for (int k = 0; k < WINDOW; k++) {
				TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f));
				TG_OK(rref_queue_add(q, f, NULL));
			}
			for (int k = 0; k < WINDOW; k++) {
				TG_OK(rref_queue_next(q, RREF_DEFAULT, &f, NULL));
				expect_future(f);
			}
		}
		rref_queue_free(q);
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

/* Takes reads out of a queue with 10,000 other futures. Then all these end, and are taken out. */
TG_TEST(reads__out_of_a_full_queue, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 1) {
		struct rref *ref = make_8_bytes(ctx), *unset;
		int reads = tg_scale(READS) * 9 / 10, others = tg_scale(READS) / 10;
		struct rref_queue *q;
		struct rref_future *f;
		void *data;

		TG_OK(rref_queue_new(ctx, &q));
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		memcpy(data, "8 bytes.", 8);
		for (int i = 0; i < reads + others; i++) {
			struct rref *which = i < others ? unset : ref;

			TG_OK(rref_to_here_async(which, RREF_DEFAULT, &f));
			TG_OK(rref_queue_add(q, f, NULL));
			if (i < others)
				continue;
			TG_IS(rref_queue_take(q, RREF_DEFAULT, 1, &f, NULL), 1);
			expect_future(f);
		}
		TG_OK(rref_set(unset));
		for (int i = 0; i < others; i++) {
			TG_IS(rref_queue_take(q, RREF_DEFAULT, 1, &f, NULL), 1);
			expect_future(f);
		}
		rref_queue_free(q);
		rref_release(unset);
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

/* Looks at a value of that length again and again. Its ends are checked, the rest once. */
static int look_on(int rank, size_t length)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1) {
		struct rref *ref = tg_ask(ctx, 0, "pub.make",
					  (struct tg_make){ .length = length, .seed = 7 });
		uint64_t before = tg_stats(ctx).looks;
		struct rref_view *v;

		for (int i = 0; i < tg_scale(READS); i++) {
			TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
			const unsigned char *data = rref_view_data(v);

			TG_IS(rref_view_length(v), length);
			TG_CHECK(data[0] == tg_byte(0, 7) &&
				 data[length - 1] == tg_byte(length - 1, 7));
			if (i == 0)
				TG_CHECK(tg_filled(data, length, 0, 7));
			rref_view_free(v);
		}
		if (tg_is_shm())
			TG_IS(tg_stats(ctx).looks - before, tg_scale(READS));
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(looks__at_64_kib, 2)
{
	return tg_is_shm() ? look_on(rank, 64 * KIB) : 0;
}

TG_TEST(looks__at_64_mib, 2)
{
	return tg_is_shm() ? look_on(rank, 64 * KIB * KIB) : 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads__of_8_bytes),
		cmocka_unit_test(reads__as_futures),
		cmocka_unit_test(reads__as_batches),
		cmocka_unit_test(reads__out_of_a_queue),
		cmocka_unit_test(reads__out_of_a_full_queue),
		cmocka_unit_test(looks__at_64_kib),
		cmocka_unit_test(looks__at_64_mib),
	};

	return cmocka_run_group_tests_name("path", tests, NULL, NULL);
}
