/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving in good order, too early, and at once. Errors afterwards, and new beginnings. */
#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/op/step.h"
#include "core/value/value.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

TG_TEST(c026_a_peer_is_too_slow, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1), *none = NULL;

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

		/* The other worker left at once; this one must not wait for it. */
		TG_CHECK(err == 0 || err == -EOWNERDEAD);
		rref_free_ctx(ctx);
	}
	return 0;
}

/* The group's barrier is the graceful shutdown. No worker gets through before the last has come.
 * Twice in a row. */
TG_TEST(c027_barrier_under_uneven_load, 4)
{
	for (int life = 0; life < 2; life++) {
		struct rref_ctx *ctx = tg_join(rank);

		for (int i = 0; i < rank * tg_scale(100); i++)
			TG_OK(rref_rpc_sync(ctx, (rank + i) % 4, "tg.echo", NULL, RREF_DEFAULT,
					    NULL));
		atomic_fetch_add(&tg_current->shared->flag[life], 1);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
		TG_IS(tg_flag(life), 4);
		rref_free_ctx(ctx);
	}
	return 0;
}

TG_TEST(c030_early_entrants_serve_later_calls, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0)
		for (int i = 0; i < 60; i++)
			for (int to = 1; to < 4; to++) {
				struct rref *r = tg_remote(ctx, to, "tg.echo", &i, sizeof(i));

				TG_OK(rref_rpc_sync(ctx, 1 + (to + i) % 3, "tg.read",
						    tg_with(&r, 1), RREF_DEFAULT, NULL));
				tg_expect_bytes(r, &i, sizeof(i));
				rref_release(r);
			}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c031_every_function_after_shutdown, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_function fn = { .name = "late", .handler = tg_functions[0].handler };
	struct rref *mine, *unset, *made = tg_remote(ctx, 0, "tg.echo", "x", 1), *r = NULL;
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
	TG_IS(rref_rpc_async(ctx, 0, "tg.echo", tg_with(&mine, 1), RREF_DEFAULT, &f), -ESHUTDOWN);
	TG_IS(rref_remote(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, &r), -ESHUTDOWN);
	TG_IS(rref_creation(made, &f), -ESHUTDOWN);
	TG_IS(rref_register(ctx, &fn), -ESHUTDOWN);
	TG_IS(rref_set_timeout(ctx, 1), -ESHUTDOWN);
	TG_IS(rref_progress(ctx), -ESHUTDOWN);
	TG_IS(rref_ctx_arm(ctx), -ESHUTDOWN);
	TG_CHECK(!r && !f && !v && !data);
	/* Functions that only tell something still work. */
	TG_IS(rref_rank(ctx), 0);
	TG_IS(rref_world_size(ctx), 1);
	TG_OK(rref_worker(ctx, 0, &w));
	TG_IS(rref_worker_by_name(ctx, "worker0"), 0);
	TG_OK(rref_get_stats(ctx, &s));
	TG_CHECK(s.owners == 0 && s.forks == 0 && s.users == 0);
	TG_CHECK(rref_dump(ctx, text, sizeof(text)) > 0);
	TG_CHECK(rref_owner(mine) == 0 && rref_is_owner(mine) && rref_equal(mine, mine) &&
		 rref_context(mine) == ctx);
	TG_CHECK(rref_format(mine, text, sizeof(text)) > 0 &&
		 strcmp(rref_owner_name(mine), "worker0") == 0);
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

/* The two texts name the attempt; the code is the same. */
TG_TEST(c086_reading_and_sharing_after_shutdown, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *refs[2] = { NULL, tg_remote(ctx, 1 - rank, "tg.echo", "x", 1) };
	struct rref_view *v;

	TG_OK(rref_new(ctx, "mine", 4, &refs[0]));
	tg_expect_bytes(refs[1], "x", 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	for (int i = 0; i < 2; i++) {
		TG_IS(rref_to_here(refs[i], RREF_DEFAULT, &v), -ESHUTDOWN);
		TG_TEXT("rref_to_here");
		TG_TEXT("nothing is read");
		TG_IS(rref_rpc_sync(ctx, 1, "tg.read", tg_with(&refs[i], 1), RREF_DEFAULT, NULL),
		      -ESHUTDOWN);
		TG_TEXT("nothing is called or shared");
		rref_release(refs[i]);
	}
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(c075_079_at_once_without_traffic, 3)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(c075_079_at_once_with_traffic, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, (rank + 1) % 3, "tg.echo", "x", 1);
	struct rref_future *f[300];

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 300; i++) {
		int err = i % 3 ? rref_rpc_async(ctx, i % 3, "tg.echo", tg_with(&r, (size_t)i % 2),
						 RREF_DEFAULT, &f[i])
				: rref_to_here_async(r, RREF_DEFAULT, &f[i]);

		/* A reference cannot be shared after its owner has left. */
		TG_CHECK(err == 0 || err == -EOWNERDEAD);
		if (err)
			f[i] = NULL;
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	for (int i = 0; i < 300; i++) {
		/* Each future completed in some way. */
		TG_CHECK(!f[i] || rref_future_test(f[i]) == 1);
		rref_future_free(f[i]);
	}
	rref_release(r);
	rref_free_ctx(ctx);
	return 0;
}

/* The program releases nothing. The shutdown does, and finds no
 * leak; free_ctx leaves no memory behind. */
TG_TEST(c085_handles_never_released, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *mine[2], *dup;
	static char report[100000];
	void *data;

	TG_OK(rref_new(ctx, "mine", 4, &mine[0]));
	TG_OK(rref_alloc(ctx, 100, &mine[1], &data)); /* never set */
	for (int to = 0; to < 3; to++) {
		struct rref *r = tg_remote(ctx, to, "tg.echo", "theirs", 6);

		tg_expect_bytes(r, "theirs", 6);
		dup = rref_dup(r);
		(void)dup;
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 3, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 3, "keep", tg_with(&mine[0], 1), RREF_DEFAULT,
				    NULL));
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 3, "keep", tg_with(&mine[1], 1), RREF_DEFAULT,
				    NULL));
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	/* The program may want to know of its own handles; they are no leak of the group. */
	TG_CHECK(rref_leak_report(ctx, report, sizeof(report)) > 0);
	TG_CHECK(strncmp(report, "unreleased ", 11) == 0 && !strstr(report, "\nleak ") &&
		 !strstr(report, "\nstuck "));
	rref_free_ctx(ctx);
	return 0;
}

/* ---- a leak ---- */

static char warned[RREF_TEXT_SIZE];

static void on_warning(void *ctx, enum rref_log_level level, const char *text)
{
	(void)ctx;
	if (level == RREF_LOG_WARNING && strstr(text, "leak"))
		snprintf(warned, sizeof(warned), "%s", text);
}

/*
 * Leaks a fork that its owner lists and no holder will ever end. It is made as a share is, and
 * never sent. White box, since a program cannot lose one.
 */
static void leak(int rank, unsigned flags, int expected)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	char id[64], report[2000];
	const char *text;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.flags = flags;
	o.log = on_warning;
	TG_OK(rref_init(&o, &ctx));
	if (rank == 0) {
		struct rp_fork never_sent;
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_OK(rref_new(ctx, "leaks", 5, &r));
		snprintf(id, sizeof(id), "(0,%llu)", (unsigned long long)rref_get_id(r).local_id);
		rc_lock(ctx);
		struct rp_event ev = { .type = RP_EV_FORK,
				       .id = r->id,
				       .fork = rc_next_id(ctx),
				       .peer = 1,
				       .word = rc_word() };

		TG_OK(rc_step(ctx, &ev, &never_sent));
		rc_unlock(ctx);
		rref_release(r);
		TG_IS(tg_stats(ctx).forks, 1);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC), expected);
		TG_CHECK(*warned);
		text = expected ? rref_last_error() : warned;
		TG_CHECK(strstr(text, "1 reference") && strstr(text, id) &&
			 strstr(text, "worker1"));
		TG_IS(rref_new(ctx, "x", 1, &r), -ESHUTDOWN);
		TG_CHECK(rref_leak_report(ctx, report, sizeof(report)) > 0);
		TG_CHECK(strncmp(report, "leak ", 5) == 0 && strstr(report, id) &&
			 strstr(report, "holder=worker1"));
		TG_CHECK(strstr(report, "type=bytes") && strstr(report, "by=worker0"));
	} else {
		/* The others are not affected. */
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC));
		TG_CHECK(!*warned);
		TG_IS(rref_leak_report(ctx, report, sizeof(report)), 0);
	}
	rref_free_ctx(ctx);
}

TG_TEST(c069_a_leak_fails_the_shutdown, 2)
{
	leak(rank, 0, -EBUSY);
	return 0;
}

TG_TEST(c070_without_the_check_it_only_warns, 2)
{
	leak(rank, RREF_NO_LEAK_CHECK, 0);
	return 0;
}

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
	return (struct usage){ entries("/proc/self/fd"), entries("/proc/self/task"),
			       lines("/proc/self/maps") };
}

static void one_life(int rank, int world, int how)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *r[10];

	for (int i = 0; i < 10; i++) {
		r[i] = tg_remote(ctx, (rank + i) % world, "tg.echo", &i, sizeof(i));
		TG_OK(rref_rpc_sync(ctx, (rank + i + 1) % world, "tg.read", tg_with(&r[i], 1),
				    RREF_DEFAULT, NULL));
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
		/* value_bytes may not be 0: remaining handles keep their
		 * values for a thread about to read one. */
		TG_IS(s.owners, 0);
		TG_IS(s.forks, 0);
		TG_IS(s.users, 0);
		TG_IS(s.pending_children, 0);
		TG_IS(s.landing_bytes, 0);
		TG_IS(s.ops_in_flight, 0);
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

	/* The number of the C library's arenas depends on the threads that meet in it. */
	mallopt(M_ARENA_MAX, 1);
	/* The first thread of a process may bring a thread of the sanitizer. */
	TG_IS(pthread_create(&t, NULL, do_nothing, NULL), 0);
	pthread_join(t, NULL);
	usleep(20000);
	tasks = usage().tasks;

	for (int i = 0; i < 20; i++) {
		one_life(rank, world, how);
		now = usage();
		/* The first ones fill caches of the C library (stacks). */
		if (i == 4)
			first = now;
		tg_meet(0);
	}
	/* A thread that was joined, or has no work left, is in /proc a little longer. */
	for (int64_t end = tg_deadline(); now.tasks != tasks && now_ns() < end; usleep(1000))
		now = usage();
	TG_IS(now.fds, first.fds);
	TG_IS(now.tasks, tasks);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	TG_CHECK(now.maps <= first.maps + 8);
#endif
}

TG_TEST(c104_twenty_lives_alone, 1)
{
	many_lives(rank, 1, RREF_SHUTDOWN_GRACEFUL);
	return 0;
}

TG_TEST(c104_184_twenty_lives_in_a_group, 3)
{
	many_lives(rank, 3, RREF_SHUTDOWN_GRACEFUL);
	return 0;
}

TG_TEST(c104_twenty_lives_left_at_once, 2)
{
	many_lives(rank, 2, RREF_SHUTDOWN_NOW);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c026_a_peer_is_too_slow),
		cmocka_unit_test(c027_barrier_under_uneven_load),
		cmocka_unit_test(c030_early_entrants_serve_later_calls),
		cmocka_unit_test(c031_every_function_after_shutdown),
		cmocka_unit_test(c075_079_at_once_without_traffic),
		cmocka_unit_test(c075_079_at_once_with_traffic),
		cmocka_unit_test(c085_handles_never_released),
		cmocka_unit_test(c086_reading_and_sharing_after_shutdown),
		cmocka_unit_test(c069_a_leak_fails_the_shutdown),
		cmocka_unit_test(c070_without_the_check_it_only_warns),
		cmocka_unit_test(c104_twenty_lives_alone),
		cmocka_unit_test(c104_184_twenty_lives_in_a_group),
		cmocka_unit_test(c104_twenty_lives_left_at_once),
	};

	return cmocka_run_group_tests_name("leaving", tests, NULL, NULL);
}
