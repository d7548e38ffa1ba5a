/* SPDX-License-Identifier: Apache-2.0 */
/* The bounds on value memory and landing memory. The tests look at the memory that counts, and at
 * the memory that is taken back before a refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "tg_refs.h"

#define MIB ((size_t)1 << 20)
#define BOUND (64 * MIB)
#define LARGE (40 * MIB)

/* Instrumented code writes and checks every byte there. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ROUNDS 1
#else
#define ROUNDS 3
#endif

static struct rref_ctx *join(int rank)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.region_bytes = 2 * MIB;
	o.max_value_bytes = o.max_landing_bytes = BOUND;
	return tg_join_by(&o);
}

/* Reads n values of that length from rank 0, holds their views together, and gives all back. */
static void read_many(struct rref_ctx *ctx, size_t length, int n, unsigned seed)
{
	struct rref_view *views[64];

	for (int i = 0; i < n; i++) {
		struct rref *r = tg_ask(ctx, 0, "pub.make",
					(struct tg_make){ .length = length,
							  .seed = seed + (unsigned)i });

		TG_OK(rref_to_here(r, RREF_DEFAULT, &views[i]));
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
	}
	for (int i = 0; i < n; i++) {
		TG_CHECK(tg_filled(rref_view_data(views[i]), length, 0, seed + (unsigned)i));
		rref_view_free(views[i]);
	}
}

/*
 * Values of many sizes come, are read, and go. After each lot there is room for
 * a large one at its owner and at its reader. The bytes are right, over mappings
 * and registrations that have changed meanwhile.
 */
TG_TEST(regions__serve_other_sizes_later, 2)
{
	static const size_t sizes[] = { 100, 5000, 70000, 300000, MIB, 3 * MIB };
	struct rref_ctx *ctx = join(rank);

	for (int round = 0; rank == 1 && round < tg_scale(ROUNDS); round++)
		for (size_t i = 0; i < array_size(sizes); i++) {
			int n = (int)min_of(45 * MIB / (sizes[i] + sizes[i] / 4), 60u);

			read_many(ctx, sizes[i], n, (unsigned)round * 100);
			read_many(ctx, LARGE, 1, (unsigned)(round * 10 + (int)i));
		}
	tg_meet_serving(ctx, 1);
	TG_CHECK(tg_stats(ctx).registered_bytes <= 2 * BOUND + MIB);
	tg_finish(ctx);
	return 0;
}

/* A held value keeps its place while all around it goes, and is read as before. */
TG_TEST(regions__values_in_use_stay, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		struct rref *r = tg_ask(ctx, 0, "pub.make",
					(struct tg_make){ .length = 5000, .seed = 9 });
		unsigned char bytes[5000];

		tg_fill(bytes, sizeof(bytes), 9);
		for (int round = 0; round < 5; round++) {
			struct rref_stats before = tg_stats_of(ctx, 0);
			struct rref *large = NULL, *m;

			for (int i = 0; i < 3; i++) {
				m = tg_ask(ctx, 0, "pub.make",
					   (struct tg_make){ .length = 5 * MIB, .seed = 1 });
				rref_release(m);
			}
			TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
			large = tg_ask(ctx, 0, "pub.make",
				       (struct tg_make){ .length = 35 * MIB, .seed = 2 });
			TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
			tg_expect_bytes(r, bytes, sizeof(bytes));
			rref_release(large);
			TG_CHECK(before.owners <= 2);
		}
		rref_release(r);
	}
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

/* The largest value has a place at its reader. No byte of it is touched. */
TG_TEST(largest__one_limit, 1)
{
	struct rc_landing *l;
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *r;
	void *at;

	tg_options(&o, rank);
	o.max_value_bytes = o.max_landing_bytes = (size_t)8 << 30;
	TG_OK(rref_init(&o, &ctx));
	TG_IS(rref_alloc(ctx, (1792 * MIB) - 127, &r, &at), -EMSGSIZE);
	TG_OK(rref_alloc(ctx, (1792 * MIB) - 128, &r, &at));
	TG_OK(rc_landing_get(ctx, (1792 * MIB) - 128, &l));
	rc_landing_put(l);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

TG_TEST(bounds__too_small, 1)
{
	struct rref_options o;
	struct rref_stats s;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.max_value_bytes = 2 * MIB - 1;
	tg_refuse(&o, -EINVAL, "max_value_bytes of 2097151: at least 2097152");
	o.max_value_bytes = 2 * MIB;
	o.max_landing_bytes = 1;
	tg_refuse(&o, -EINVAL, "max_landing_bytes of 1: at least 2097152");
	o.max_value_bytes = SIZE_MAX;
	tg_refuse(&o, -EINVAL, "max_landing_bytes of 1");
	o.max_landing_bytes = 2 * MIB;
	tg_refuse(&o, -EINVAL, "RREF_MAX_VALUE_BYTES");
	o.max_value_bytes = 2 * MIB;
	o.max_landing_bytes = SIZE_MAX / 2;
	tg_refuse(&o, -EINVAL, "RREF_MAX_LANDING_BYTES");
	/* The limit is the requested memory. */
	o.max_value_bytes = o.max_landing_bytes = 4 * MIB - 1;
	o.region_bytes = 2 * MIB;
	TG_OK(rref_init(&o, &ctx));
	for (int i = 0; i < 2; i++) {
		struct rref *r;
		void *at;

		TG_IS(rref_alloc(ctx, 2 * MIB, &r, &at), -ENOMEM);
		TG_TEXT("limit 2 MiB");
	}
	s = tg_stats(ctx);
	TG_CHECK(s.registered_bytes < 5 * MIB);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bounds__too_small),
		cmocka_unit_test(largest__one_limit),
		cmocka_unit_test(regions__serve_other_sizes_later),
		cmocka_unit_test(regions__values_in_use_stay),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
