/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages that fail, come late, twice, or in another order (RREF_INJECT, core/session/inject.h).
 * The tests do everything under each of these faults, and try the rules themselves. The scenarios
 * of single faults are in test/conformance/messages.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "tg_refs.h"

#define LONG_NS (20 * NSEC_PER_SEC)

static bool no_references(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	return !s.owners && !s.forks && !s.users && !s.pending_children && !s.value_bytes;
}

static int32_t runs_of(struct rref_ctx *ctx, int rank)
{
	struct rref_future *f;
	int32_t n;

	TG_OK(rref_rpc_sync(ctx, rank, "runs", NULL, RREF_DEFAULT, &f));
	tg_result(f, &n, sizeof(n));
	rref_future_free(f);
	return n;
}

/* Later messages wait for a message that is tried again. */
TG_TEST(c129__order_stays, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "CALL:fail=7" : "", 0);

	if (rank == 0) {
		struct rref_future *f[50];

		for (int i = 0; i < 50; i++)
			TG_OK(rref_rpc_async(ctx, 1, "count", NULL, RREF_DEFAULT, &f[i]));
		TG_OK(rref_wait_all(f, 50, LONG_NS));
		for (int i = 0; i < 50; i++) {
			TG_OK(rref_future_wait(f[i], 0));
			rref_future_free(f[i]);
		}
		TG_IS(tg_stats(ctx).retries, 7);
		TG_IS(runs_of(ctx, 1), 50);
	}
	tg_finish(ctx);
	return 0;
}

/* Creates values on some workers and shares them with others. They read them, hand them back and
 * release them, in chains. */
static void mill(struct rref_ctx *ctx, int rank, int rounds)
{
	for (int i = 0; i < rounds; i++) {
		int owner = (rank + i) % 4, to = (rank + i / 4) % 4;
		struct rref *r = tg_remote(ctx, owner, "tg.echo", "abc", 3), *back;
		struct rref_future *f;

		/* The reference is early, then known; it is read there and here. */
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo_refs", tg_with(&r, 1), RREF_DEFAULT, &f));
		TG_OK(rref_future_ref(f, 0, &back));
		rref_future_free(f);
		TG_OK(rref_rpc_sync(ctx, (to + 1) % 4, "tg.read", tg_with(&back, 1), RREF_DEFAULT,
				    NULL));
		if (i % 3)
			rref_release(r);
		tg_expect_bytes(back, "abc", 3);
		rref_release(back);
		if (i % 3 == 0)
			rref_release(r);
	}
}

static void mill_under(int rank, const char *rules, int rounds)
{
	struct rref_ctx *ctx = tg_join_under(rank, rules, 0);

	mill(ctx, rank, rounds);
	tg_meet_serving(ctx, 14);
	TG_CHECK(tg_eventually(no_references, ctx, NULL));
	TG_IS(tg_stats(ctx).dead_peers, 0);
	TG_IS(tg_stats(ctx).rejected_peers, 0);
	tg_meet_serving(ctx, 13);
	tg_finish(ctx);
}

TG_TEST(everything__twice, 4)
{
	mill_under(rank, "PROTO:dup", 100);
	return 0;
}

TG_TEST(everything__in_any_order, 4)
{
	mill_under(rank, "PROTO:reorder=3ms,REPLY:reorder=1ms", 40);
	return 0;
}

TG_TEST(everything__fails_now_and_then, 4)
{
	mill_under(rank,
		   "FORK_REQUEST:fail=5,CHILD_ACCEPT:fail=7,CREATED:fail=4,DELETE:delay=2ms,CALL:"
		   "fail=3,REPLY:fail=6",
		   60);
	return 0;
}

/* ---- news that lacks memory ---- */

/* Calls until a call is served: an earlier failure had nothing to do with keys. */
static void until_called(struct rref_ctx *ctx, int rank)
{
	int64_t end = now_ns() + LONG_NS;
	int err;

	while ((err = rref_rpc_sync(ctx, rank, "count", NULL, LONG_NS, NULL))) {
		TG_CHECK(err != -EKEYREJECTED && now_ns() < end);
		tg_pause();
	}
}

/* Serves until worker 0 has finished. */
static void serve_until_flag(struct rref_ctx *ctx, int rank)
{
	if (rank == 0)
		tg_set_flag(0, 1);
	while (!tg_flag(0)) {
		rref_progress(ctx);
		tg_pause();
	}
}

static void leave(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
}

/* A call is refused, and there is no memory for the refusal. Its caller must not wait for ever. */
TG_TEST(no_memory__for_a_refusal, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 1 ? "REPLY:nomem=1" : "", 0);

	if (rank == 1) {
		/* no further calls are allowed */
		at_sub(&ctx->peers[0].call_bytes_over, UINT64_C(1) << 40);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		at_add(&ctx->peers[0].call_bytes_over, UINT64_C(1) << 40);
		tg_set_flag(0, 3);
		tg_wait_flag_serving(ctx, 0, 4);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		int err = rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_FOREVER, NULL);

		TG_CHECK(err == -ENETRESET || err == -EOWNERDEAD);
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		/* Both begin anew. */
		for (int64_t end = tg_deadline();
		     rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL); usleep(1000))
			TG_CHECK(now_ns() < end);
		tg_set_flag(0, 4);
	}
	leave(ctx);
	return 0;
}

/* A question for a type gets no answer. */
TG_TEST(no_memory__for_an_answer_to_a_type_query, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 1 ? "TYPE_ANSWER:nomem=1" : "", 0);
	struct rref_type t = { .size = sizeof(t), .name = "no_memory:t", .element_size = 3 };

	if (rank == 1) {
		struct rref *r;

		TG_OK(rref_new_value(ctx, TG_VALUE(.data = "abc", .length = 3, .type = &t), &r));
		TG_OK(rref_rpc_sync(ctx, 0, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		rref_release(r);
	} else {
		struct rref_type got = { .size = sizeof(got) };
		int err;

		tg_wait_flag_serving(ctx, 0, 1);
		err = rref_get_type(tg_kept(0), RREF_FOREVER, &got);
		TG_CHECK(err == -ENETRESET || err == -EOWNERDEAD);
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	leave(ctx);
	return 0;
}

/* A leaving worker waits for each peer's answer, which says that its deletes came. It must not wait
 * for an answer that never comes. */
/* The client has no memory for its proof. It tries again, and its call is served. */
TG_TEST(no_memory__for_a_proof, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "AUTH:nomem=1" : "", 0);

	if (rank == 0) {
		TG_OK(rref_rpc_sync(ctx, 1, "count", NULL, LONG_NS, NULL));
		TG_IS(runs_of(ctx, 1), 1);
	}
	TG_IS(tg_stats(ctx).rejected_peers, 0);
	serve_until_flag(ctx, rank);
	leave(ctx);
	return 0;
}

/* The server lacks memory for its answer to the proof. The peer's
 * key was right, and is not called wrong. */
TG_TEST(no_memory__for_the_answer_to_a_proof, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 1 ? "AUTH:nomem=1" : "", 0);

	if (rank == 0)
		until_called(ctx, 1);
	serve_until_flag(ctx, rank);
	TG_IS(tg_stats(ctx).rejected_peers, 0);
	leave(ctx);
	return 0;
}

TG_TEST(no_memory__for_a_pong, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 1 ? "PONG:nomem" : "", 0);
	int err;

	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER);
	TG_CHECK(!err || err == -EOWNERDEAD || err == -ENETRESET);
	rref_free_ctx(ctx);
	return 0;
}

/* A barrier is complete, and one worker is not told. It learns of it later, or its session ends. */
TG_TEST(no_memory__for_a_barriers_end, 3)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "BARRIER_DONE@1:nomem=1" : "", 0);
	int err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER);

	TG_CHECK(!err || err == -EOWNERDEAD || err == -ENETRESET || err == -ETIMEDOUT);
	TG_CHECK(rank != 1 || err);
	rref_free_ctx(ctx);
	return 0;
}

static int one_worker(struct rref_options *o)
{
	struct rref_ctx *ctx = NULL;
	int err;

	rref_options_init(o);
	o->world_size = 1;
	o->device = "shm";
	err = rref_init(o, &ctx);
	if (!err)
		rref_free_ctx(ctx);
	else
		TG_CHECK(!ctx);
	return err;
}

TG_TEST(rules__with_mistakes_are_refused, 1)
{
	static const char *const bad[] = {
		"NOTHING:fail=3", "fork_request:fail=3", "FORK_REQUEST", "FORK_REQUEST:",
		"FORK_REQUEST:lose", "FORK_REQUEST:fail=",
		"FORK_REQUEST:fail=x", "FORK_REQUEST:fail=3x", "FORK_REQUEST:fail=-1",
		"FORK_REQUEST@1:fail", "FORK_REQUEST@:fail",
		"CALL:delay", "CALL:delay=1", "CALL:delay=1h", "CALL:delay=1s*",
		"CALL:delay=99999999s", "CALL:dup", "REPLY:dup", "CALL:reorder",
		"FORK_REQUEST:drop", "PROTO:drop=1", "ANY:drop", "BARRIER:dup", "GOODBYE:delay=1s",
		"CALL:fail=1,,CALL:fail=1",
		"CALL:fail=1,", ":", ",",
		"CALL:fail=1111111111111111111111111111111111111111111111111111111111111111111111111",
	}, *const good[] = {
		"", "FORK_REQUEST:fail=3,CHILD_ACCEPT:fail=3,DELETE:fail=3", "CALL:delay=1s",
		"FETCH_REPLY:dup", "PROTO:reorder",
		"PROTO@0:reorder=10us*5", "ANY:fail", "REMOTE:drop=2", "REPLY:drop", "PONG:nomem=1",
	};
	struct rref_options o;

	for (size_t i = 0; i < array_size(bad); i++) {
		TG_IS(setenv("RREF_INJECT", bad[i], 1), 0);
		TG_IS(one_worker(&o), -EINVAL);
		TG_TEXT("RREF_INJECT");
	}
	for (size_t i = 0; i < array_size(good); i++) {
		TG_IS(setenv("RREF_INJECT", good[i], 1), 0);
		TG_OK(one_worker(&o));
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c129__order_stays),
		cmocka_unit_test(everything__twice),
		cmocka_unit_test(everything__in_any_order),
		cmocka_unit_test(everything__fails_now_and_then),
		cmocka_unit_test(no_memory__for_a_refusal),
		cmocka_unit_test(no_memory__for_an_answer_to_a_type_query),
		cmocka_unit_test(no_memory__for_a_pong),
		cmocka_unit_test(no_memory__for_a_proof),
		cmocka_unit_test(no_memory__for_the_answer_to_a_proof),
		cmocka_unit_test(no_memory__for_a_barriers_end),
		cmocka_unit_test(rules__with_mistakes_are_refused),
	};

	return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
