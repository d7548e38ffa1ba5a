/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large values that are read before their location is known. The location comes by a message, under
 * the progress lock. The copy is made without it, in turns.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/slow.h"
#include "tg_refs.h"

#define MIB ((size_t)1 << 20)
#define READS 4

/* Begins reads of a value of rank 0 that is not set yet. */
static struct rref *begin_reads(struct rref_ctx *ctx, size_t length, struct rref_future **f)
{
	struct rref *r = tg_ask(ctx, 0, "pub.alloc", (struct tg_make){ .length = length });

	for (int i = 0; i < READS; i++)
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f[i]));
	return r;
}

static void set_there(struct rref_ctx *ctx, unsigned seed)
{
	TG_CHECK(!tg_ask(ctx, 0, "pub.set", (struct tg_make){ .seed = seed }));
}

TG_TEST(located_later__no_hold_copies, 2)
{
	static const size_t lengths[] = { 8, 64 << 10, (64 << 10) + 1, 1 << 20, (9 << 20) + 5 };
	struct rref_ctx *ctx = tg_join_refs(rank);

	for (size_t k = 0; rank == 1 && k < array_size(lengths); k++) {
		struct rref_future *f[READS];
		struct rref *r = begin_reads(ctx, lengths[k], f);

		set_there(ctx, (unsigned)k);
		for (int i = 0; i < READS; i++) {
			struct rref_view *v;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_view(f[i], &v));
			TG_IS(rref_view_length(v), lengths[k]);
			TG_CHECK(tg_filled(rref_view_data(v), lengths[k], 0, (unsigned)k));
			rref_view_free(v);
			rref_future_free(f[i]);
		}
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
	}
	tg_meet_serving(ctx, 1);
	TG_IS(rb_slow_holds(RB_SLOW_COPY), 0);
	TG_IS(tg_stats(ctx).quarantined, 0);
	tg_finish(ctx);
	return 0;
}

/* Each read is given up at some moment of its way. Nothing of it stays. */
TG_TEST(cancelled_on_the_way__nothing_stays, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	for (int k = 0; rank == 1 && k < tg_scale(20); k++) {
		struct rref_future *f[READS];
		struct rref *r = begin_reads(ctx, 5 * MIB, f);

		set_there(ctx, (unsigned)k);
		for (int i = 0; i < READS; i++) {
			rref_future_cancel(f[i]);
			rref_future_free(f[i]);
		}
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		TG_IS(tg_stats(ctx).quarantined, 0);
	}
	tg_meet_serving(ctx, 1);
	TG_IS(rb_slow_holds(RB_SLOW_COPY), 0);
	tg_finish(ctx);
	return 0;
}

/* The context ends while the reads are on their way. */
TG_TEST(shutdown_on_the_way__ends_each_read_once, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_future *f[READS];

	if (rank == 1) {
		begin_reads(ctx, 20 * MIB, f);
		set_there(ctx, 1);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	for (int i = 0; rank == 1 && i < READS; i++) {
		int err = rref_future_wait(f[i], RREF_DEFAULT);

		TG_CHECK(!err || err == -ESHUTDOWN || err == -EOWNERDEAD);
		rref_future_free(f[i]);
	}
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cancelled_on_the_way__nothing_stays),
		cmocka_unit_test(located_later__no_hold_copies),
		cmocka_unit_test(shutdown_on_the_way__ends_each_read_once),
	};

	return cmocka_run_group_tests_name("large", tests, NULL, NULL);
}
