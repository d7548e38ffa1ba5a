/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving: in good order, at once, too early, too late, twice, with things left behind; and beginning again. */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

#define MS NSEC_PER_MSEC

static struct rref *remote(struct rref_ctx *ctx, int to, const char *function, const void *data, size_t length)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function, &(struct rref_args){ .data = data, .length = length }, RREF_DEFAULT, &r));
	return r;
}

static struct rref_args *with(struct rref **refs, size_t nr)
{
	static _Thread_local struct rref_args a;

	a = (struct rref_args){ .refs = refs, .nr_refs = nr };
	return &a;
}

static struct rref *_Atomic kept[64];
static _Atomic int nr_kept;

static int keep(struct rref_call *call, void *arg)
{
	(void)arg;
	kept[atomic_fetch_add(&nr_kept, 1)] = rref_dup(rref_call_ref(call, 0));
	return 0;
}

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "keep", .handler = keep }));
	tg_meet_serving(ctx, 15);
	return ctx;
}

/* ---- in good order ---- */

TG_TEST(graceful__group_of_one, 1)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__without_any_traffic, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__one_comes_late, 3)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 2)
		usleep(100000);
	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__early_entrants_serve_later_calls, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0)
		for (int i = 0; i < 60; i++)
			for (int to = 1; to < 4; to++) {
				struct rref *r = remote(ctx, to, "tg.echo", &i, sizeof(i));

				TG_OK(rref_rpc_sync(ctx, 1 + (to + i) % 3, "tg.read", with(&r, 1), RREF_DEFAULT, NULL));
				tg_expect_bytes(r, &i, sizeof(i));
				rref_release(r);
			}
	tg_finish(ctx);
	return 0;
}

/* Everybody has a value of everybody else when all leave at once. */
TG_TEST(graceful__group_of_eight_all_to_all, 8)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *mine, *made[8];

	TG_OK(rref_new(ctx, &rank, sizeof(rank), &mine));
	for (int i = 0; i < 8; i++) {
		int to = (rank + i) % 8;

		made[to] = remote(ctx, to, "tg.echo", &to, sizeof(to));
		TG_OK(rref_rpc_sync(ctx, to, "tg.read", with(&mine, 1), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 8, "tg.read", with(&made[to], 1), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, (to + 2) % 8, "keep", with(&made[to], 1), RREF_DEFAULT, NULL));
	}
	for (int to = 0; to < 8; to++)
		tg_expect_bytes(made[to], &to, sizeof(to));
	/* Half is released, half is left to the shutdown. */
	for (int to = 0; to < 8; to += 2)
		rref_release(made[to]);
	tg_finish(ctx);
	return 0;
}

/* Nothing is released by the program: the shutdown does, finds no leak, and free_ctx leaves no memory behind. */
TG_TEST(graceful__handles_never_released, 3)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *mine[2], *dup;
	void *data;

	TG_OK(rref_new(ctx, "mine", 4, &mine[0]));
	TG_OK(rref_alloc(ctx, 100, &mine[1], &data)); /* never set */
	for (int to = 0; to < 3; to++) {
		struct rref *r = remote(ctx, to, "tg.echo", "theirs", 6);

		tg_expect_bytes(r, "theirs", 6);
		dup = rref_dup(r);
		(void)dup;
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 3, "keep", with(&r, 1), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 3, "keep", with(&mine[0], 1), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 3, "keep", with(&mine[1], 1), RREF_DEFAULT, NULL));
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(graceful__handles_released_after_it, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *mine, *theirs = remote(ctx, 1 - rank, "tg.echo", "x", 1), *again = rref_dup(theirs);
	struct rref_view *v, *w;
	char text[RREF_TEXT_SIZE];

	TG_OK(rref_new(ctx, "mine", 4, &mine));
	TG_OK(rref_to_here(mine, RREF_DEFAULT, &v));
	TG_OK(rref_to_here(theirs, RREF_DEFAULT, &w));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	/* Views stay; what handles say stays. */
	TG_CHECK(memcmp(rref_view_data(v), "mine", 4) == 0 && memcmp(rref_view_data(w), "x", 1) == 0);
	TG_CHECK(rref_owner(theirs) == 1 - rank && rref_format(mine, text, sizeof(text)) > 0);
	TG_IS(rref_confirmed(theirs), 0);
	rref_view_free(v);
	rref_view_free(w);
	rref_release(mine);
	rref_release(theirs);
	rref_release(again);
	TG_IS(tg_stats(ctx).value_bytes, 0);
	TG_IS(tg_stats(ctx).landing_bytes, 0);
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(graceful__calls_under_way_are_waited_for, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[50];

	for (int i = 0; i < 50; i++)
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", &(struct rref_args){ .data = &i, .length = sizeof(i) },
				     RREF_DEFAULT, &f[i]));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	for (int i = 0; i < 50; i++) {
		int got;

		TG_IS(rref_future_wait(f[i], 0), 0);
		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	rref_free_ctx(ctx);
	return 0;
}

/* ---- that does not work out ---- */

TG_TEST(timeout__a_peer_does_not_come, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *r = remote(ctx, 1 - rank, "tg.echo", "x", 1), *none = NULL;

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 10 * MS), -ETIMEDOUT);
		TG_CHECK(strlen(rref_last_error()) > 0);
		TG_IS(rref_new(ctx, "x", 1, &none), -ESHUTDOWN);
		rref_release(r);
		rref_free_ctx(ctx);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		rref_release(r);
		int err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC);

		/* The other one left in its own way; this one must not wait for it. */
		TG_CHECK(err == 0 || err == -EOWNERDEAD);
		rref_free_ctx(ctx);
	}
	return 0;
}

TG_TEST(timeout__a_call_is_never_answered, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;

	if (rank == 0)
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f));
	if (rank == 0)
		tg_until_held(ctx, 1, 1);
	tg_meet_serving(ctx, 0);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 500 * MS), -ETIMEDOUT);
	if (f) {
		TG_CHECK(rref_future_wait(f, 0) < 0);
		TG_IS(rref_future_test(f), 1);
		rref_future_free(f);
	}
	tg_drop_held();
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(shutdown__twice, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC), -ESHUTDOWN);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0), -ESHUTDOWN);
	rref_free_ctx(ctx);
	return 0;
}

static void *shut_too(void *ctx)
{
	return (void *)(intptr_t)rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC);
}

TG_TEST(shutdown__by_two_threads, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	pthread_t t;
	void *theirs;
	int mine;

	TG_IS(pthread_create(&t, NULL, shut_too, ctx), 0);
	mine = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC);
	pthread_join(t, &theirs);
	TG_CHECK((mine == 0 && (intptr_t)theirs == -ESHUTDOWN) || (mine == -ESHUTDOWN && (intptr_t)theirs == 0));
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(shutdown__bad_arguments, 1)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_IS(rref_shutdown(NULL, RREF_SHUTDOWN_NOW, 0), -EINVAL);
	TG_IS(rref_shutdown(ctx, 7, 0), -EINVAL);
	rref_free_ctx(NULL);
	tg_finish(ctx);
	return 0;
}

/* ---- at once ---- */

TG_TEST(now__without_traffic, 3)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(now__by_free_alone, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, 1 - rank, "tg.echo", "x", 1), *mine;

	tg_expect_bytes(r, "x", 1);
	TG_OK(rref_new(ctx, "m", 1, &mine));
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "keep", with(&mine, 1), RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 0);
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(now__with_traffic, 3)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, (rank + 1) % 3, "tg.echo", "x", 1);
	struct rref_future *f[300];

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 300; i++) {
		int err = i % 3 ? rref_rpc_async(ctx, i % 3, "tg.echo", with(&r, (size_t)i % 2), RREF_DEFAULT, &f[i])
				: rref_to_here_async(r, RREF_DEFAULT, &f[i]);

		/* A reference whose owner left before cannot be shared any more. */
		TG_CHECK(err == 0 || err == -EOWNERDEAD);
		if (err)
			f[i] = NULL;
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	for (int i = 0; i < 300; i++) {
		/* Each completed, one way or another. */
		TG_CHECK(!f[i] || rref_future_test(f[i]) == 1);
		rref_future_free(f[i]);
	}
	rref_release(r);
	rref_free_ctx(ctx);
	return 0;
}

static void *wait_for_the_end(void *f)
{
	return (void *)(intptr_t)rref_future_wait(f, RREF_FOREVER);
}

TG_TEST(now__pending_futures_end_and_their_waiters_wake, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.hold", "x", 1), *own;
		struct rref_future *f[4];
		pthread_t t[4];
		void *data;

		TG_OK(rref_alloc(ctx, 10, &own, &data));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f[0]));
		TG_OK(rref_to_here_async(r, RREF_FOREVER, &f[1]));
		TG_OK(rref_creation(r, &f[2]));
		TG_OK(rref_to_here_async(own, RREF_FOREVER, &f[3]));
		tg_until_held(ctx, 1, 2);
		for (int i = 0; i < 4; i++)
			TG_IS(pthread_create(&t[i], NULL, wait_for_the_end, f[i]), 0);
		usleep(10000);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		for (int i = 0; i < 4; i++) {
			void *err;

			pthread_join(t[i], &err);
			TG_IS((intptr_t)err, -ESHUTDOWN);
			TG_IS(rref_future_wait(f[i], 0), -ESHUTDOWN);
			rref_future_free(f[i]);
		}
		rref_release(r);
		rref_release(own);
		rref_free_ctx(ctx);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		/* The caller is gone: late answers go nowhere, and hurt nobody. */
		tg_drop_held();
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		rref_free_ctx(ctx);
	}
	return 0;
}

TG_TEST(now__peers_see_this_worker_die, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_worker_info w = { .size = sizeof(w) };

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.hold", "x", 1);
		struct rref_future *f, *g;
		struct rref_view *v;

		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &f));
		TG_OK(rref_to_here_async(r, RREF_FOREVER, &g));
		tg_until_held(ctx, 1, 2);
		tg_set_flag(0, 1);
		TG_IS(rref_future_wait(f, 20 * NSEC_PER_SEC), -EOWNERDEAD);
		TG_IS(rref_future_wait(g, 20 * NSEC_PER_SEC), -EOWNERDEAD);
		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EOWNERDEAD);
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
		TG_OK(rref_worker(ctx, 1, &w));
		TG_IS(w.alive, 0);
		rref_future_free(f);
		rref_future_free(g);
		rref_release(r);
		int err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC);

		TG_CHECK(err == 0 || err == -EOWNERDEAD);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		/* Answered when there is nobody to hear it any more: a call and a creation. */
		tg_drop_held();
	}
	rref_free_ctx(ctx);
	return 0;
}

/* Calls to oneself, held when the context ends. */
TG_TEST(now__own_calls_answered_after_it, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, 0, "tg.hold", "x", 1);
	struct rref_future *f;

	TG_OK(rref_rpc_async(ctx, 0, "tg.hold", NULL, RREF_FOREVER, &f));
	tg_until_held(ctx, 0, 2);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	TG_IS(rref_future_wait(f, 0), -ESHUTDOWN);
	rref_future_free(f);
	tg_drop_held();
	rref_release(r);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- use after it ---- */

TG_TEST(after__every_function_says_so, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_function fn = { .name = "late", .handler = keep };
	struct rref *mine, *unset, *made = remote(ctx, 0, "tg.echo", "x", 1), *r = NULL;
	struct rref_future *f = NULL, *done;
	struct rref_view *v = NULL, *views[1];
	struct rref_worker_info w = { .size = sizeof(w) };
	struct rref_stats s = { .size = sizeof(s) };
	struct rref_error e = { .size = sizeof(e) };
	char text[RREF_TEXT_SIZE], byte;
	int status[1];
	size_t got;
	void *data = NULL;

	TG_OK(rref_new(ctx, "m", 1, &mine));
	TG_OK(rref_alloc(ctx, 1, &unset, &data));
	data = NULL;
	TG_OK(rref_rpc_sync(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, &done));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));

	TG_IS(rref_new(ctx, "x", 1, &r), -ESHUTDOWN);
	TG_TEXT("shut down");
	TG_IS(rref_alloc(ctx, 1, &r, &data), -ESHUTDOWN);
	TG_IS(rref_set(unset), -ESHUTDOWN);
	TG_IS(rref_set_error(unset, -EIO, "x"), -ESHUTDOWN);
	TG_IS(rref_to_here(mine, RREF_DEFAULT, &v), -ESHUTDOWN);
	TG_IS(rref_to_here(made, RREF_DEFAULT, &v), -ESHUTDOWN);
	TG_IS(rref_to_here_async(mine, RREF_DEFAULT, &f), -ESHUTDOWN);
	TG_IS(rref_to_here_into(mine, &byte, 0, 1, RREF_DEFAULT, &got), -ESHUTDOWN);
	TG_IS(rref_to_here_batch(&mine, 1, RREF_DEFAULT, views, status), -ESHUTDOWN);
	TG_IS(rref_local_value(mine, RREF_DEFAULT, &v), -ESHUTDOWN);
	TG_IS(rref_rpc_sync(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, NULL), -ESHUTDOWN);
	TG_IS(rref_rpc_async(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, &f), -ESHUTDOWN);
	TG_IS(rref_rpc_async(ctx, 0, "tg.echo", with(&mine, 1), RREF_DEFAULT, &f), -ESHUTDOWN);
	TG_IS(rref_remote(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, &r), -ESHUTDOWN);
	TG_IS(rref_creation(made, &f), -ESHUTDOWN);
	TG_IS(rref_register(ctx, &fn), -ESHUTDOWN);
	TG_IS(rref_progress(ctx), -ESHUTDOWN);
	TG_IS(rref_ctx_arm(ctx), -ESHUTDOWN);
	TG_CHECK(!r && !f && !v && !data);
	/* What only tells something still does. */
	TG_IS(rref_rank(ctx), 0);
	TG_IS(rref_world_size(ctx), 1);
	TG_OK(rref_worker(ctx, 0, &w));
	TG_IS(rref_worker_by_name(ctx, "worker0"), 0);
	TG_OK(rref_get_stats(ctx, &s));
	TG_CHECK(s.owners == 0 && s.forks == 0 && s.users == 0);
	TG_CHECK(rref_dump(ctx, text, sizeof(text)) > 0);
	TG_CHECK(rref_owner(mine) == 0 && rref_is_owner(mine) && rref_equal(mine, mine) && rref_context(mine) == ctx);
	TG_CHECK(rref_format(mine, text, sizeof(text)) > 0 && strcmp(rref_owner_name(mine), "worker0") == 0);
	TG_IS(rref_future_wait(done, 0), 0);
	TG_IS(rref_future_test(done), 1);
	TG_OK(rref_future_error(done, &e));
	TG_IS(rref_future_cancel(done), -EALREADY);
	TG_IS(rref_wait_all(&done, 1, 0), 0);
	TG_IS(rref_wait_any(&done, 1, 0), 0);
	rref_future_free(done);
	rref_release(rref_dup(mine));
	rref_release(mine);
	rref_release(unset);
	rref_release(made);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- beginning again ---- */

static int entries(const char *dir)
{
	DIR *d = opendir(dir);
	int n = 0;

	TG_CHECK(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int lines(const char *file)
{
	FILE *f = fopen(file, "r");
	int c, n = 0;

	TG_CHECK(f);
	while ((c = fgetc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

struct usage {
	int fds, tasks, maps;
};

static struct usage usage(void)
{
	return (struct usage){ entries("/proc/self/fd"), entries("/proc/self/task"), lines("/proc/self/maps") };
}

static void one_life(int rank, int world, int how)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *r[10];

	for (int i = 0; i < 10; i++) {
		r[i] = remote(ctx, (rank + i) % world, "tg.echo", &i, sizeof(i));
		TG_OK(rref_rpc_sync(ctx, (rank + i + 1) % world, "tg.read", with(&r[i], 1), RREF_DEFAULT, NULL));
		tg_expect_bytes(r[i], &i, sizeof(i));
	}
	for (int i = 0; i < 10; i += 2)
		rref_release(r[i]);
	if (how == RREF_SHUTDOWN_NOW) {
		tg_meet_serving(ctx, 1);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		rref_free_ctx(ctx);
	} else {
		struct rref_stats s;

		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
		s = tg_stats(ctx);
		/* Not value_bytes: the handles that are left keep their values, for a thread that may be about to read one. */
		TG_CHECK(!s.owners && !s.forks && !s.users && !s.pending_children && !s.landing_bytes && !s.ops_in_flight);
		rref_free_ctx(ctx);
	}
}

static void *do_nothing(void *arg)
{
	return arg;
}

static void many_lives(int rank, int world, int how)
{
	struct usage first = { 0 }, now;
	pthread_t t;
	int tasks;

	/* With its first thread a process may get one of a sanitizer's too. */
	TG_IS(pthread_create(&t, NULL, do_nothing, NULL), 0);
	pthread_join(t, NULL);
	usleep(20000);
	tasks = usage().tasks;

	for (int i = 0; i < 20; i++) {
		one_life(rank, world, how);
		now = usage();
		/* The first ones fill caches of the C library (stacks, arenas). */
		if (i == 4)
			first = now;
		tg_meet(0);
	}
	/* A thread that was joined, or has nothing left to do, is in /proc a little longer. */
	for (int64_t end = now_ns() + 20 * NSEC_PER_SEC; now.tasks != tasks && now_ns() < end; usleep(1000))
		now = usage();
	TG_IS(now.fds, first.fds);
	TG_IS(now.tasks, tasks);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	TG_CHECK(now.maps <= first.maps + 8);
#endif
}

TG_TEST(again__twenty_times_alone, 1)
{
	many_lives(rank, 1, RREF_SHUTDOWN_GRACEFUL);
	return 0;
}

TG_TEST(again__twenty_times_in_a_group, 3)
{
	many_lives(rank, 3, RREF_SHUTDOWN_GRACEFUL);
	return 0;
}

TG_TEST(again__twenty_times_left_at_once, 2)
{
	many_lives(rank, 2, RREF_SHUTDOWN_NOW);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(graceful__group_of_one),
		cmocka_unit_test(graceful__without_any_traffic),
		cmocka_unit_test(graceful__one_comes_late),
		cmocka_unit_test(graceful__early_entrants_serve_later_calls),
		cmocka_unit_test(graceful__group_of_eight_all_to_all),
		cmocka_unit_test(graceful__handles_never_released),
		cmocka_unit_test(graceful__handles_released_after_it),
		cmocka_unit_test(graceful__calls_under_way_are_waited_for),
		cmocka_unit_test(timeout__a_peer_does_not_come),
		cmocka_unit_test(timeout__a_call_is_never_answered),
		cmocka_unit_test(shutdown__twice),
		cmocka_unit_test(shutdown__by_two_threads),
		cmocka_unit_test(shutdown__bad_arguments),
		cmocka_unit_test(now__without_traffic),
		cmocka_unit_test(now__by_free_alone),
		cmocka_unit_test(now__with_traffic),
		cmocka_unit_test(now__pending_futures_end_and_their_waiters_wake),
		cmocka_unit_test(now__peers_see_this_worker_die),
		cmocka_unit_test(now__own_calls_answered_after_it),
		cmocka_unit_test(after__every_function_says_so),
		cmocka_unit_test(again__twenty_times_alone),
		cmocka_unit_test(again__twenty_times_in_a_group),
		cmocka_unit_test(again__twenty_times_left_at_once),
	};

	return cmocka_run_group_tests_name("shutdown", tests, NULL, NULL);
}
