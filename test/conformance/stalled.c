/* SPDX-License-Identifier: Apache-2.0 */
/* A case beyond the list. A user that is stopped keeps its references for stall_timeout. Then it is
 * fenced, and told so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

/* Returns a longer time where everything is slow: a worker that
 * was not stopped must not seem to be. */
static int64_t stall_ns(void)
{
	return (getenv("RREF_TEST_SLOW") ? 8 : 4) * NSEC_PER_SEC;
}

static struct rref_ctx *join(int rank)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.stall_timeout = stall_ns();
	return tg_join_by(&o);
}

static void lend(struct rref_ctx *ctx)
{
	struct rref *r;

	TG_OK(rref_new(ctx, "lent", 4, &r));
	TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), TG_LONG_NS, NULL));
	rref_release(r);
}

static void stop_for(struct rref_ctx *ctx, int64_t ns)
{
	int64_t end = now_ns() + ns;

	tg_stop_worker(1);
	for (; now_ns() < end; usleep(2000))
		rref_progress(ctx);
	tg_continue_worker(1);
}

TG_TEST(more_a_stopped_user_keeps_its_references_for_a_while, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_future *f;
		struct rref *r;

		lend(ctx);
		stop_for(ctx, stall_ns() / 2);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.get", NULL, TG_LONG_NS, &f));
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		tg_expect_bytes(r, "lent", 4);
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, TG_LONG_NS, NULL));
		tg_all_clean(ctx);
		TG_IS(tg_stats(ctx).sessions, 1);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(more_a_user_stopped_for_too_long_is_fenced_and_told, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		lend(ctx);
		tg_stop_worker(1);
		for (int64_t end = now_ns() + stall_ns() + TG_LONG_NS; tg_stats(ctx).owners;
		     usleep(2000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		TG_IS(tg_stats(ctx).value_bytes, 0);
		tg_set_flag(0, 1);
		tg_continue_worker(1);
		tg_wait_flag_serving(ctx, 0, 2);
		tg_until_clean(ctx, 0);
	} else {
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		tg_expect_error(tg_kept(0), -ENETRESET, "stood still");
		tg_expect_error(tg_kept(0), -ENETRESET, "stood still");
		for (int64_t end = now_ns() + TG_LONG_NS;
		     rref_remote(ctx, 0, "tg.echo", tg_bytes("again", 5), TG_LONG_NS, &r);
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		tg_expect_bytes(r, "again", 5);
		rref_release(r);
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	tg_leave(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_a_stopped_user_keeps_its_references_for_a_while),
		cmocka_unit_test(more_a_user_stopped_for_too_long_is_fenced_and_told),
	};

	return cmocka_run_group_tests_name("stalled", tests, NULL, NULL);
}
