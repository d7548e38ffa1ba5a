/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that stand still (SIGSTOP), and go on: stalled is not dead. fence_test has workers that
 * stand still for too long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "stood_still.h"

#define MS NSEC_PER_MSEC

TG_TEST(stalled__seen_and_healed, 2)
{
	struct rref_ctx *ctx = join_with(rank, 60 * NSEC_PER_SEC, 0);
	int one = 1;

	if (rank == 0) {
		struct rref_peer_stats p = { .size = sizeof(p) };
		struct rref_future *f;
		char text[4096];

		lend_to(ctx, 1, "kept");
		TG_IS(info(ctx, 1).stalled, 0);
		TG_IS(info(ctx, 0).stalled, 0);
		for (int i = 0; i < 2; i++) {
			tg_stop_worker(1);
			TG_CHECK(tg_eventually(is_stalled, ctx, &one));
			TG_IS(info(ctx, 1).alive, 1);
			TG_CHECK(info(ctx, 1).stalled >= NSEC_PER_SEC);
			TG_IS(tg_stats(ctx).stalled_peers, 1);
			TG_OK(rref_get_peer_stats(ctx, 1, &p));
			TG_CHECK(p.stalled > 0 && strcmp(p.state, "up") == 0);
			TG_CHECK(rref_dump(ctx, text, sizeof(text)) > 0 &&
				 strstr(text, " stalled="));
			TG_IS(tg_stats(ctx).forks, 1);
			tg_continue_worker(1);
			TG_CHECK(tg_eventually(is_well, ctx, &one));
			TG_IS(tg_stats(ctx).stalled_peers, 0);
			TG_CHECK(rref_dump(ctx, text, sizeof(text)) > 0 &&
				 !strstr(text, " stalled="));
		}
		TG_OK(rref_rpc_sync(ctx, 1, "pub.get", NULL, TG_LONG_NS, &f));
		rref_future_free(f);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		expect_intact(ctx);
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* An idle worker counts, too: idleness is no stall. */
TG_TEST(stalled__not_for_being_idle, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		lend_to(ctx, 1, "a");
		lend_to(ctx, 2, "b");
	}
	tg_meet_serving(ctx, 0);
	for (int64_t end = now_ns() + stall_ns() + 2 * NSEC_PER_SEC; now_ns() < end;
	     usleep(200000)) {
		rref_progress(ctx); /* manual mode */
		TG_IS(tg_stats(ctx).fenced_peers, 0);
	}
	TG_IS(tg_stats(ctx).dead_peers, 0);
	tg_meet_serving(ctx, 1);
	tg_drop_kept();
	tg_finish(ctx);
	return 0;
}

/* The values of a stalled owner are still read. Calls and creations time out, and say why. It holds
 * nothing here, so it is never fenced. */
TG_TEST(stalled__an_owner_is_read_on, 2)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "still here", 10), *late;
		struct rref_future *f;
		struct rref_error e = { .size = sizeof(e) };
		struct rref_view *v;

		tg_expect_bytes(r, "still here", 10);
		tg_stop_worker(1);
		for (int64_t end = now_ns() + stall_ns() + 3 * NSEC_PER_SEC; now_ns() < end;
		     usleep(20000)) {
			tg_expect_bytes(r, "still here", 10);
			rref_progress(ctx);
		}
		TG_CHECK(is_stalled(ctx, &one));
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, 200 * MS, NULL), -ETIMEDOUT);
		TG_TEXT("stalled");
		TG_TEXT(rref_owner_name(r));
		TG_OK(rref_rpc_async(ctx, 1, "tg.echo", NULL, 200 * MS, &f));
		TG_IS(rref_future_wait(f, TG_LONG_NS), -ETIMEDOUT);
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.err == -ETIMEDOUT && strstr(e.text, "stalled"));
		rref_future_free(f);
		TG_OK(rref_remote(ctx, 1, "tg.echo", tg_bytes("x", 1), 200 * MS, &late));
		TG_IS(rref_to_here(late, TG_LONG_NS, &v), -ETIMEDOUT);
		TG_TEXT("stalled");
		rref_release(late);
		tg_expect_bytes(r, "still here", 10);
		tg_continue_worker(1);
		TG_CHECK(tg_eventually(is_well, ctx, &one));
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", NULL, TG_LONG_NS, NULL));
		rref_release(r);
		expect_intact(ctx);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The program makes the progress in the manual mode. If it does not, its worker stands still,
 * though its process runs. */
TG_TEST(stalled__a_manual_worker_without_progress, 2)
{
	struct rref_ctx *ctx = join_with(rank, 60 * NSEC_PER_SEC,
					 rank == 1 ? RREF_PROGRESS_MANUAL : 0);
	int one = 1;

	if (rank == 0) {
		lend_to(ctx, 1, "kept");
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(is_stalled, ctx, &one));
		tg_set_flag(0, 2);
		TG_CHECK(tg_eventually(is_well, ctx, &one));
		expect_intact(ctx);
		tg_set_flag(0, 3);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		tg_wait_flag(0, 2); /* without the library */
		tg_wait_flag_serving(ctx, 0, 3);
		tg_expect_bytes(tg_kept(0), "kept", 4);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* The whole group stands still, as on a suspended machine. The
 * workers stop one after another, and go on. */
TG_TEST(not_fenced__when_the_whole_group_stood_still, 3)
{
	pid_t hand = 0;

	if (rank == 0) {
		hand = fork();
		TG_CHECK(hand >= 0);
		if (hand == 0) {
			alarm(100);
			tg_wait_flag(0, 3);
			for (int i = 0; i < 3; i++)
				tg_stop_worker(i);
			sleep((unsigned)(stall_ns() / NSEC_PER_SEC) + 3);
			for (int i = 0; i < 3; i++) {
				tg_continue_worker((i + 1) % 3);
				usleep(300000);
			}
			tg_set_flag(1, 1);
			_exit(0);
		}
	}
	struct rref_ctx *ctx = join(rank);

	/* Each worker holds a reference of each other one. */
	lend_to(ctx, (rank + 1) % 3, "to the next");
	lend_to(ctx, (rank + 2) % 3, "to the next but one");
	tg_meet_serving(ctx, 0);
	atomic_fetch_add(&tg_current->shared->flag[0], 1);
	tg_wait_flag_serving(ctx, 1, 1);
	serve_for(ctx, 3 * NSEC_PER_SEC);
	expect_intact(ctx);
	TG_IS(tg_stats(ctx).forks, 2);
	for (int i = 0; i < 2; i++) {
		struct rref_view *v;

		TG_OK(rref_to_here(tg_kept(i), RREF_DEFAULT, &v));
		TG_CHECK(memcmp(rref_view_data(v), "to the next", 11) == 0);
		rref_view_free(v);
	}
	tg_meet_serving(ctx, 1);
	tg_drop_kept();
	tg_finish(ctx);
	if (hand)
		TG_IS(waitpid(hand, NULL, 0), hand);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stalled__seen_and_healed),
		cmocka_unit_test(stalled__not_for_being_idle),
		cmocka_unit_test(stalled__an_owner_is_read_on),
		cmocka_unit_test(stalled__a_manual_worker_without_progress),
		cmocka_unit_test(not_fenced__when_the_whole_group_stood_still),
	};

	return cmocka_run_group_tests_name("stall", tests, NULL, NULL);
}
