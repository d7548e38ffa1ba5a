/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors that cross calls. The words of the handler's failed call come along. The caller learns
 * whether the callee died or told of a third worker. Also the errors that rref_last_error keeps.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

/* ---- functions of the callee ---- */

static struct rref *made;

static int return_new(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_new(rref_call_context(call), NULL, 7, &made);
}

/* Returns a code of its own, which no call of the library gave. */
static int return_own(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	return -EINVAL;
}

/* Fails once, recovers, and returns another code of its own. */
static int return_other(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_IS(rref_new(rref_call_context(call), NULL, 7, &made), -EINVAL);
	return -ENOENT;
}

static int call_2(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_rpc_sync(rref_call_context(call), 2, "tg.nothing", NULL, RREF_DEFAULT, NULL);
}

static int call_2_and_tell(struct rref_call *call, void *arg)
{
	int err = call_2(call, arg);

	return err ? rref_call_error(call, err, "in other words: %.80s", rref_last_error()) : 0;
}

/* Fails with the worker's own words on the way through a second worker. */
static int call_2_new(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_rpc_sync(rref_call_context(call), 2, "new", NULL, RREF_DEFAULT, NULL);
}

static const struct rref_function functions[] = {
	{ .name = "new", .handler = return_new },
	{ .name = "own", .handler = return_own },
	{ .name = "other", .handler = return_other },
	{ .name = "call2", .handler = call_2 },
	{ .name = "call2.tell", .handler = call_2_and_tell },
	{ .name = "call2.new", .handler = call_2_new },
	{ .name = "inline.own", .handler = return_own, .flags = RREF_INLINE },
	{ .name = "tg.nothing", .handler = NULL },
};

static int nothing(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	return 0;
}

static struct rref_ctx *join(int rank)
{
	struct rref_function all[array_size(functions)];

	memcpy(all, functions, sizeof(all));
	all[array_size(all) - 1].handler = nothing;
	return tg_init(rank, all, array_size(all));
}

/* ---- seen by the caller ---- */

#define expect(...) expect_at(__LINE__, __VA_ARGS__)
static void expect_at(int line, const struct rref_error *e, int err, int peer, unsigned flags,
		      const char *text)
{
	if (e->err != err || e->peer != peer || e->flags != flags || !strstr(e->text, text)) {
		fprintf(stderr,
			"line %d: pid %d: err %d peer %d flags %u \"%s\"; not %d %d %u \"%s\"\n",
			line, (int)getpid(), e->err, e->peer, e->flags, e->text, err, peer, flags,
			text);
		_exit(1);
	}
}

/* Expects this as the thread's last error. */
static void expect_last(int err, int peer, unsigned flags, const char *text)
{
	struct rref_error e = { .size = sizeof(e) };

	TG_OK(rref_last_error_detail(&e));
	expect(&e, err, peer, flags, text);
	TG_TEXT(text);
}

/* Calls the function in both ways, and expects the same error. */
static void expect_call(struct rref_ctx *ctx, const char *function, int err, int peer,
			unsigned flags, const char *text)
{
	struct rref_error e = { .size = sizeof(e) };
	struct rref_future *f;

	TG_IS(rref_rpc_sync(ctx, 1, function, NULL, RREF_DEFAULT, NULL), err);
	expect_last(err, peer, flags, text);
	TG_OK(rref_rpc_async(ctx, 1, function, NULL, RREF_DEFAULT, &f));
	TG_IS(rref_future_wait(f, RREF_DEFAULT), err);
	TG_OK(rref_future_error(f, &e));
	expect(&e, err, peer, flags, text);
	rref_future_free(f);
}

TG_TEST(words__of_the_failed_call_come_along, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_error e = { .size = sizeof(e) };

	if (rank == 0) {
		for (int i = 0; i < 20; i++) {
			expect_call(ctx, "new", -EINVAL, 1, RREF_ERROR_ANSWERED, "rref_new");
			/* Neither the words of the call before, which the same thread may have
			 * served, nor words of another code. */
			expect_call(ctx, "own", -EINVAL, 1, RREF_ERROR_ANSWERED,
				    rref_strerror(-EINVAL));
			TG_CHECK(strcmp(rref_last_error(), rref_strerror(-EINVAL)) == 0);
			expect_call(ctx, "inline.own", -EINVAL, 1, RREF_ERROR_ANSWERED,
				    rref_strerror(-EINVAL));
			TG_CHECK(strcmp(rref_last_error(), rref_strerror(-EINVAL)) == 0);
			expect_call(ctx, "other", -ENOENT, 1, RREF_ERROR_ANSWERED,
				    rref_strerror(-ENOENT));
		}
		expect_call(ctx, "no.such", -ENOSYS, 1, RREF_ERROR_ANSWERED, "no.such");
	}
	tg_finish(ctx);
	return 0;
}

/* The words and the worker come through two calls. */
TG_TEST(words__through_a_second_worker, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0)
		expect_call(ctx, "call2.new", -EINVAL, 2, RREF_ERROR_ANSWERED, "rref_new");
	tg_finish(ctx);
	return 0;
}

/* A call to oneself carries the same words as a call to others. */
TG_TEST(words__of_a_call_to_oneself, 1)
{
	struct rref_ctx *ctx = join(rank);

	TG_IS(rref_rpc_sync(ctx, 0, "new", NULL, RREF_DEFAULT, NULL), -EINVAL);
	expect_last(-EINVAL, 0, RREF_ERROR_ANSWERED, "rref_new");
	tg_finish(ctx);
	return 0;
}

/* ---- the dead worker ---- */

static void expect_read(struct rref *r, int err, int peer, unsigned flags, const char *text)
{
	struct rref_error e = { .size = sizeof(e) };
	struct rref_future *f;
	struct rref_view *v;

	TG_IS(rref_to_here(r, RREF_DEFAULT, &v), err);
	expect_last(err, peer, flags, text);
	if (rref_to_here_async(r, RREF_DEFAULT, &f) == 0) {
		TG_IS(rref_future_wait(f, RREF_DEFAULT), err);
		TG_OK(rref_future_error(f, &e));
		expect(&e, err, peer, flags, text);
		rref_future_free(f);
	} else {
		expect_last(err, peer, flags, text);
	}
}

DEATH_TEST(dead__a_third_worker_is_told_apart, 3, 1 << 2)
{
	struct rref_ctx *ctx = join(rank);
	int two = 2;

	TG_OK(rref_rpc_sync(ctx, (rank + 1) % 3, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 0);
	if (rank == 2)
		tg_die();
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &two));
	tg_set_flag(rank, 1);
	tg_wait_flag_serving(ctx, 1 - rank, 1);
	if (rank == 0) {
		struct rref_error e = { .size = sizeof(e) };
		struct rref_future *f;
		struct rref *r;

		expect_call(ctx, "call2", -EOWNERDEAD, 2, RREF_ERROR_ANSWERED, "rank 2");
		expect_call(ctx, "call2.tell", -EOWNERDEAD, 2, RREF_ERROR_ANSWERED,
			    "in other words");
		TG_IS(rref_rpc_sync(ctx, 2, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
		expect_last(-EOWNERDEAD, 2, 0, "");
		/* A creation fails so: its future fails, and so do the reads. */
		TG_OK(rref_remote(ctx, 1, "call2", NULL, RREF_DEFAULT, &r));
		TG_OK(rref_creation(r, &f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -EOWNERDEAD);
		TG_OK(rref_future_error(f, &e));
		expect(&e, -EOWNERDEAD, 2, RREF_ERROR_ANSWERED, "rank 2");
		rref_future_free(f);
		expect_read(r, -EOWNERDEAD, 2, RREF_ERROR_ANSWERED, "rank 2");
		TG_OK(rref_creation(r, &f));
		TG_OK(rref_future_error(f, &e));
		expect(&e, -EOWNERDEAD, 2, RREF_ERROR_ANSWERED, "rank 2");
		rref_future_free(f);
		rref_release(r);
		TG_OK(rref_remote(ctx, 1, "new", NULL, RREF_DEFAULT, &r));
		expect_read(r, -EINVAL, 1, RREF_ERROR_ANSWERED, "rref_new");
		rref_release(r);
	}
	tg_set_flag(3 + rank, 1);
	tg_wait_flag_serving(ctx, 4 - rank, 1);
	tg_leave(ctx);
	return 0;
}

static int never(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	tg_die();
}

/* The callee itself: found here, told by no other worker. */
DEATH_TEST(dead__the_callee_is_named_without_the_flag, 2, 1 << 1)
{
	struct rref_function fn = { .name = "never", .handler = never };
	struct rref_ctx *ctx = tg_init(rank, &fn, 1);
	struct rref *r;

	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		return 1;
	}
	TG_OK(rref_remote(ctx, 1, "never", NULL, RREF_DEFAULT, &r));
	expect_read(r, -EOWNERDEAD, 1, 0, "");
	TG_IS(rref_rpc_sync(ctx, 1, "never", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
	expect_last(-EOWNERDEAD, 1, 0, "");
	rref_release(r);
	tg_leave(ctx);
	return 0;
}

/* ---- the thread's last error ---- */

TG_TEST(last__is_empty_when_nothing_failed, 2)
{
	struct rref_error e = { .size = sizeof(e) };
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref_view *v;
	struct rref *r;

	TG_CHECK(!*rref_last_error());
	tg_options(&o, rank);
	/* no failure on a machine without RDMA */
	o.device = tg_is_shm() ? "auto" : tg_device();
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	TG_CHECK(!*rref_last_error());
	TG_OK(rref_new(ctx, "x", 1, &r));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	rref_view_free(v);
	rref_release(r);
	r = tg_remote(ctx, 1 - rank, "tg.echo", "abc", 3);
	tg_expect_bytes(r, "abc", 3);
	rref_release(r);
	TG_CHECK(!*rref_last_error());
	TG_OK(rref_last_error_detail(&e));
	TG_CHECK(e.err == 0 && e.peer == -1 && e.flags == 0 && e.wc_status == -1 && !*e.text);
	/* The error stays as errno does, until another call fails or the context ends well. */
	TG_IS(rref_new(ctx, NULL, 1, &r), -EINVAL);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL));
	expect_last(-EINVAL, -1, 0, "rref_new");
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	TG_CHECK(!*rref_last_error());
	rref_free_ctx(ctx);
	TG_IS(rref_last_error_detail(NULL), -EINVAL);
	e.size = 0;
	TG_IS(rref_last_error_detail(&e), -EINVAL);
	TG_CHECK(!*rref_last_error());
	return 0;
}

static void fails(struct rref_future *f, void *arg)
{
	struct rref *r;

	(void)f;
	TG_IS(rref_new(NULL, NULL, 1, &r), -EINVAL);
	atomic_store((_Atomic int *)arg, 1);
}

static bool is_set(struct rref_ctx *ctx, void *word)
{
	(void)ctx;
	return atomic_load((_Atomic int *)word);
}

/* Failures of the engine in this thread's turns, and of a callback there, are not the thread's. */
DEATH_TEST(last__outlives_later_successes, 3, 1 << 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	_Atomic int ran = 0;
	int two = 2;

	TG_OK(rref_rpc_sync(ctx, (rank + 1) % 3, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 5); /* worker 2 is not needed for these calls any more */
	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 2, "tg.echo", "x", 1), *n;
		struct rref_future *f;

		TG_IS(rref_rpc_sync(ctx, 1, "no.such", NULL, RREF_DEFAULT, NULL), -ENOSYS);
		TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &f));
		TG_OK(rref_future_then(f, fails, &ran));
		/* This thread runs the callback in the manual mode. It also runs it at once if the
		 * call is over already. */
		TG_CHECK(tg_eventually(is_set, ctx, &ran));
		rref_future_free(f);
		TG_IS(rref_new(ctx, NULL, 1, &n), -EINVAL);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &two));
		/* The owner must be told of the release, and cannot be. */
		rref_release(r);
		for (int i = 0; i < 100; i++, tg_pause())
			TG_OK(rref_progress(ctx));
		expect_last(-EINVAL, -1, 0, "rref_new");
	} else if (rank == 2) {
		tg_serve_and_die(ctx, 0);
	}
	tg_leave(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dead__a_third_worker_is_told_apart),
		cmocka_unit_test(dead__the_callee_is_named_without_the_flag),
		cmocka_unit_test(last__is_empty_when_nothing_failed),
		cmocka_unit_test(last__outlives_later_successes),
		cmocka_unit_test(words__of_a_call_to_oneself),
		cmocka_unit_test(words__of_the_failed_call_come_along),
		cmocka_unit_test(words__through_a_second_worker),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
