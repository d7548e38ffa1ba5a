/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that stand still (SIGSTOP), and go on: stalled is not dead; too long with references of others is too long. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_death.h"

#define MS NSEC_PER_MSEC

/* Where everything is slow, a worker that was not stopped must not be taken for one that was. */
static int64_t stall_ns(void)
{
	return (getenv("RREF_TEST_SLOW") ? 8 : 4) * NSEC_PER_SEC;
}

static struct rref_ctx *join_with(int rank, int64_t stall_timeout, enum rref_progress_mode mode)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.stall_timeout = stall_timeout;
	if (mode)
		o.mode = mode;
	TG_OK(rref_init(&o, &ctx));
	tg_add_refs(ctx);
	tg_meet_serving(ctx, 15);
	return ctx;
}

static struct rref_ctx *join(int rank)
{
	return join_with(rank, stall_ns(), 0);
}

static struct rref_worker_info info(struct rref_ctx *ctx, int rank)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, rank, &w));
	return w;
}

static bool is_stalled(struct rref_ctx *ctx, void *rank)
{
	return info(ctx, *(int *)rank).stalled > 0;
}

static bool is_well(struct rref_ctx *ctx, void *rank)
{
	return !is_stalled(ctx, rank);
}

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

static void serve_for(struct rref_ctx *ctx, int64_t ns)
{
	for (int64_t end = now_ns() + ns; now_ns() < end; usleep(5000))
		rref_progress(ctx);
}

/* Another worker keeps a reference to a value of this one, which gave up its own. */
static void lend_to(struct rref_ctx *ctx, int to, const char *text)
{
	struct rref *r;

	TG_OK(rref_new(ctx, text, strlen(text), &r));
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
}

static void expect_intact(struct rref_ctx *ctx)
{
	struct rref_stats s = tg_stats(ctx);

	TG_IS(s.fenced_peers, 0);
	TG_IS(s.dead_peers, 0);
	TG_IS(s.sessions, rref_world_size(ctx) - 1);
}

/* ---- shorter than the timeout ---- */

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
			TG_CHECK(rref_dump(ctx, text, sizeof(text)) > 0 && strstr(text, " stalled="));
			TG_IS(tg_stats(ctx).forks, 1);
			tg_continue_worker(1);
			TG_CHECK(tg_eventually(is_well, ctx, &one));
			TG_IS(tg_stats(ctx).stalled_peers, 0);
			TG_CHECK(rref_dump(ctx, text, sizeof(text)) > 0 && !strstr(text, " stalled="));
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

/* An idle worker counts, too: nobody is stalled for having nothing to do. */
TG_TEST(stalled__not_for_being_idle, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		lend_to(ctx, 1, "a");
		lend_to(ctx, 2, "b");
	}
	tg_meet_serving(ctx, 0);
	for (int64_t end = now_ns() + stall_ns() + 2 * NSEC_PER_SEC; now_ns() < end; usleep(200000)) {
		rref_progress(ctx); /* in the manual mode */
		TG_IS(tg_stats(ctx).fenced_peers, 0);
	}
	TG_IS(tg_stats(ctx).dead_peers, 0);
	tg_meet_serving(ctx, 1);
	tg_drop_kept();
	tg_finish(ctx);
	return 0;
}

/* Its values are read on; calls and creations time out, and say why. It holds nothing here: it is never fenced. */
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
		for (int64_t end = now_ns() + stall_ns() + 3 * NSEC_PER_SEC; now_ns() < end; usleep(20000)) {
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

/* ---- longer than the timeout ---- */

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

/* The user finds itself fenced, on its next use and on each; then it begins anew, and all is as it was. */
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
		TG_OK(rref_wrap(mem, 0, 100, NULL, came_back, NULL, &r));
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
		/* What the session carried the other way is lost with it. */
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
			/* The READ was refused at its place; that all the rest is lost too, the next turn finds. */
			TG_CHECK(tg_eventually(tg_is_dead, ctx, &(int){ 0 }));
			r = tg_kept(1);
			TG_IS(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&r, 1), RREF_DEFAULT, NULL), -ENETRESET);
		}
		/* A new session, new references. A moment passes before it is let in. */
		for (int64_t end = now_ns() + TG_LONG_NS; rref_remote(ctx, 0, "tg.echo", tg_bytes("again", 5), TG_LONG_NS, &r); usleep(1000))
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

/* Stopped in the midst of its reads: right bytes before, and one answer after. */
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
		for (int64_t end = now_ns() + stall_ns() + TG_LONG_NS; !no_forks(ctx, NULL); usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		/* Its memory is used again. */
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

/* 0: for ever. */
TG_TEST(fenced__never_without_a_timeout, 2)
{
	struct rref_ctx *ctx = join_with(rank, 0, 0);

	if (rank == 0) {
		lend_to(ctx, 1, "for ever");
		tg_stop_worker(1);
		serve_for(ctx, 6 * NSEC_PER_SEC);
		TG_IS(tg_stats(ctx).forks, 1);
		TG_CHECK(info(ctx, 1).stalled >= 3 * NSEC_PER_SEC);
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

/* ---- who stood still itself ---- */

/* The owner was stopped, not its user: when it goes on it sees that, and takes nothing from anybody. */
TG_TEST(not_fenced__by_one_that_stood_still_itself, 2)
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

/* The whole group, as a machine that is suspended: one after another they stop, and go on. */
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

	/* Everybody holds a reference of everybody else. */
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

/* In the manual mode the program makes the progress: if it does not, its worker stands still, though its process runs. */
TG_TEST(stalled__a_manual_one_that_makes_no_progress, 2)
{
	struct rref_ctx *ctx = join_with(rank, 60 * NSEC_PER_SEC, rank == 1 ? RREF_PROGRESS_MANUAL : 0);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stalled__seen_and_healed),
		cmocka_unit_test(stalled__not_for_being_idle),
		cmocka_unit_test(stalled__an_owner_is_read_on),
		cmocka_unit_test(stalled__a_manual_one_that_makes_no_progress),
		cmocka_unit_test(fenced__a_user_that_stood_still_for_too_long),
		cmocka_unit_test(fenced__while_it_was_reading),
		cmocka_unit_test(fenced__never_without_a_timeout),
		cmocka_unit_test(not_fenced__by_one_that_stood_still_itself),
		cmocka_unit_test(not_fenced__when_the_whole_group_stood_still),
	};

	return cmocka_run_group_tests_name("stall", tests, NULL, NULL);
}
