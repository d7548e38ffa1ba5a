/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that stand still (SIGSTOP) for too long with references of others. The awake workers
 * fence them, and the fenced ones find out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "stood_still.h"

static _Atomic int back;

static void came_back(void *arg)
{
	(void)arg;
	atomic_fetch_add(&back, 1);
}

static bool is_back(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	(void)arg;
	return atomic_load(&back) == 1;
}

/* The user finds itself fenced on its next use and on each later one.
 * Then it begins anew, and works as before. */
TG_TEST(fenced__a_user_that_stood_still_for_too_long, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *theirs = tg_remote(ctx, 1, "tg.echo", "theirs", 6), *r;
		struct rref_mem *mem;
		struct rref_view *v;
		void *at;

		tg_expect_bytes(theirs, "theirs", 6);
		lend_to(ctx, 1, "mine");
		lend_to(ctx, 2, "others go on");
		TG_OK(rref_mem_alloc(ctx, 100, &mem, &at));
		TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 100), came_back, NULL, &r));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		TG_IS(tg_stats(ctx).forks, 3);
		tg_stop_worker(1);
		int64_t from = now_ns();

		for (; tg_stats(ctx).forks != 1; usleep(1000)) {
			TG_CHECK(now_ns() < from + stall_ns() + TG_LONG_NS);
			rref_progress(ctx);
		}
		TG_CHECK(now_ns() - from >= stall_ns());
		TG_CHECK(tg_eventually(is_back, ctx, NULL));
		TG_IS(rref_mem_deregister(mem), 0);
		TG_IS(tg_stats(ctx).owners, 1);
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		TG_IS(info(ctx, 1).stalled, 0); /* there is no session in which it could be */
		TG_IS(info(ctx, 1).alive, 0);
		/* The session's messages the other way are lost with it. */
		TG_IS(rref_to_here(theirs, RREF_DEFAULT, &v), -EOWNERDEAD);
		TG_TEXT("stood still");
		rref_release(theirs);
		tg_set_flag(0, 1);
		tg_continue_worker(1);
		tg_wait_flag_serving(ctx, 0, 2);
		tg_until_clean(ctx, 1);
		TG_OK(rref_rpc_sync(ctx, 2, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 0);
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		TG_IS(atomic_load(&back), 1);
	}
	if (rank == 1) {
		struct rref_view *v;
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < 2; i++) {
			TG_IS(rref_to_here(tg_kept(0), RREF_DEFAULT, &v), -ENETRESET);
			TG_TEXT("stood still");
			TG_TEXT("stall_timeout");
			/* The READ was refused. The next turn finds that all else is lost too. */
			TG_CHECK(tg_eventually(tg_is_dead, ctx, &(int){ 0 }));
			r = tg_kept(1);
			TG_IS(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&r, 1), RREF_DEFAULT, NULL),
			      -ENETRESET);
		}
		/* A new session brings new references. A moment passes before it begins. */
		for (int64_t end = now_ns() + TG_LONG_NS;
		     rref_remote(ctx, 0, "tg.echo", tg_bytes("again", 5), TG_LONG_NS, &r);
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		tg_expect_bytes(r, "again", 5);
		rref_release(r);
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	if (rank == 2) {
		tg_wait_flag_serving(ctx, 0, 2);
		TG_IS(tg_stats(ctx).fenced_peers, 0);
	}
	tg_leave(ctx);
	return 0;
}

/* A user is stopped in the midst of its reads: right bytes before, and one answer after. */
TG_TEST(fenced__while_it_was_reading, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r;
		void *data;

		TG_OK(rref_alloc(ctx, 400000, &r, &data));
		tg_fill(data, 400000, 3);
		TG_OK(rref_set(r));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		tg_stop_worker(1);
		for (int64_t end = now_ns() + stall_ns() + TG_LONG_NS; !no_forks(ctx, NULL);
		     usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		/* The owner uses the memory again. */
		for (unsigned i = 0; i < 20; i++) {
			TG_OK(rref_alloc(ctx, 400000, &r, &data));
			tg_fill(data, 400000, 100 + i);
			TG_OK(rref_set(r));
			rref_release(r);
		}
		tg_continue_worker(1);
		tg_wait_flag_serving(ctx, 0, 3);
		tg_until_clean(ctx, 0);
	} else {
		struct rref_view *v;
		int err;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; !(err = rref_to_here(tg_kept(0), TG_LONG_NS, &v)); i++) {
			TG_IS(rref_view_length(v), 400000);
			TG_CHECK(tg_filled(rref_view_data(v), 400000, 0, 3));
			rref_view_free(v);
			if (i == 3)
				tg_set_flag(0, 2);
		}
		TG_IS(err, -ENETRESET);
		TG_TEXT("stood still");
		for (int i = 0; i < 3; i++)
			TG_IS(rref_to_here(tg_kept(0), TG_LONG_NS, &v), -ENETRESET);
		tg_drop_kept();
		tg_set_flag(0, 3);
	}
	tg_leave(ctx);
	return 0;
}

static bool for_3_s(struct rref_ctx *ctx, void *rank)
{
	return info(ctx, *(int *)rank).stalled >= 3 * NSEC_PER_SEC;
}

/* 0: for ever. */
TG_TEST(fenced__never_without_a_timeout, 2)
{
	struct rref_ctx *ctx = join_with(rank, 0, 0);

	if (rank == 0) {
		lend_to(ctx, 1, "for ever");
		tg_stop_worker(1);
		serve_for(ctx, 6 * NSEC_PER_SEC);
		/* The next look tells. Over hardware it comes each half peer_timeout: after 2 s
		 * here, or not yet after 6 s. */
		TG_CHECK(tg_eventually(for_3_s, ctx, &(int){ 1 }));
		TG_IS(tg_stats(ctx).forks, 1);
		tg_continue_worker(1);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		expect_intact(ctx);
		tg_until_clean(ctx, 0);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		tg_expect_bytes(tg_kept(0), "for ever", 8);
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* The owner was stopped, not its user. It sees that when it goes on,
 * and takes nothing from other workers. */
TG_TEST(not_fenced__by_a_worker_that_stood_still, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		lend_to(ctx, 1, "mine");
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		serve_for(ctx, NSEC_PER_SEC);
		TG_IS(tg_stats(ctx).forks, 1);
		expect_intact(ctx);
		tg_set_flag(0, 3);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < 2; i++) {
			tg_stop_worker(0);
			serve_for(ctx, stall_ns() + 2 * NSEC_PER_SEC);
			tg_expect_bytes(tg_kept(0), "mine", 4);
			tg_continue_worker(0);
			serve_for(ctx, NSEC_PER_SEC);
		}
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		tg_expect_bytes(tg_kept(0), "mine", 4);
		expect_intact(ctx);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fenced__a_user_that_stood_still_for_too_long),
		cmocka_unit_test(fenced__while_it_was_reading),
		cmocka_unit_test(fenced__never_without_a_timeout),
		cmocka_unit_test(not_fenced__by_a_worker_that_stood_still),
	};

	return cmocka_run_group_tests_name("fence", tests, NULL, NULL);
}
