/* SPDX-License-Identifier: Apache-2.0 */
/* Calls: arguments, results, and replies that come late, twice or not at all. */
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

/* ---- arguments and results ---- */

TG_TEST(sync__echoes_on_peer_and_self, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	char got[5];

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo", tg_bytes("hello", 5), RREF_DEFAULT, &f));
		tg_result(f, got, 5);
		TG_CHECK(memcmp(got, "hello", 5) == 0);
		TG_IS(rref_future_nr_refs(f), 0);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(sync__without_a_place_for_the_result, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (int i = 0; i < 20; i++)
		TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", tg_bytes("x", 1), RREF_DEFAULT,
				    NULL));
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

TG_TEST(async__inline_a_thousand_in_flight, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(1000);
	struct rref_future **f = calloc((size_t)n, sizeof(struct rref_future *));

	for (int i = 0; i < n; i++)
		TG_OK(rref_rpc_async(ctx, i % 2, "tg.echo_inline", tg_bytes(&i, sizeof(i)),
				     RREF_DEFAULT, &f[i]));
	TG_OK(rref_wait_all(f, (size_t)n, RREF_DEFAULT));
	for (int i = 0; i < n; i++) {
		int got;

		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	free(f);
	tg_finish(ctx);
	return 0;
}

struct many {
	struct rref_ctx *ctx;
	int rank, good;
};

static void *call_many(void *arg)
{
	struct many *m = arg;
	struct rref_future *f;

	for (int i = 0; i < tg_scale(200); i++) {
		int got = -1, want = i * 16;

		TG_OK(rref_rpc_sync(m->ctx, m->rank, i % 3 ? "tg.echo" : "tg.echo_inline",
				    tg_bytes(&want, sizeof(want)), RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, want);
		rref_future_free(f);
		m->good++;
	}
	return NULL;
}

TG_TEST(sync__from_eight_threads, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct many m[8];
	pthread_t t[8];

	for (int i = 0; i < 8; i++) {
		m[i] = (struct many){ ctx, i % 4 ? 1 - rank : rank, 0 };
		TG_IS(pthread_create(&t[i], NULL, call_many, &m[i]), 0);
	}
	for (int i = 0; i < 8; i++) {
		pthread_join(t[i], NULL);
		TG_IS(m[i].good, tg_scale(200));
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(function__registered_while_running, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_function dup = { .name = "tg.echo", .handler = tg_functions[3].handler };

	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_IS(rref_rpc_sync(ctx, 1, "late", NULL, RREF_DEFAULT, NULL), -ENOSYS);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_OK(rref_rpc_sync(ctx, 1, "late", NULL, RREF_DEFAULT, NULL));
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		tg_add(ctx, "late", tg_functions[3].handler, 0);
		TG_IS(rref_register(ctx, &dup), -EEXIST);
		TG_TEXT("tg.echo");
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

static int too_much(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_IS(rref_call_reply(call, tg_bytes("big", (size_t)RREF_ARGS_MAX + 1)), -EMSGSIZE);
	return rref_call_reply(call, tg_bytes("small", 5));
}

TG_TEST(result__too_large_leaves_the_call_open, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	char got[5];

	tg_add(ctx, "too_much", too_much, 0);
	tg_meet_serving(ctx, 0);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "too_much", NULL, RREF_DEFAULT, &f));
	tg_result(f, got, 5);
	TG_CHECK(memcmp(got, "small", 5) == 0);
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(references__too_many, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static struct rref *refs[RREF_REFS_MAX + 1];
	struct rref *r;
	struct rref_future *f = NULL;

	TG_OK(rref_new(ctx, "r", 1, &r));
	for (size_t i = 0; i < array_size(refs); i++)
		refs[i] = r;
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.read",
			    &(struct rref_args){ .refs = refs, .nr_refs = RREF_REFS_MAX + 1 },
			    RREF_DEFAULT, &f),
	      -EMSGSIZE);
	TG_TEXT("1025 references");
	TG_CHECK(!f);
	TG_IS(tg_stats(ctx).forks, 0);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* ---- errors ---- */

static int return_erange(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return -ERANGE;
}

static int return_garbage(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return 4711;
}

static int return_huge_errno(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return INT32_MIN;
}

static int reply_then_error(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, tg_bytes("good", 4)));
	return -EIO;
}

static int reply_then_garbage(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, tg_bytes("good", 4)));
	return 99;
}

static int reply_then_defer(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, tg_bytes("good", 4)));
	return RREF_DEFER;
}

static int empty_text(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_IS(rref_call_error(call, 5, "not negative"), -EINVAL);
	TG_IS(rref_call_error(call, 0, "not negative"), -EINVAL);
	return rref_call_error(call, -ENOSPC, "%s", "");
}

static const struct rref_function odd_functions[] = {
	{ .name = "return_erange", .handler = return_erange },
	{ .name = "return_garbage", .handler = return_garbage },
	{ .name = "return_huge_errno", .handler = return_huge_errno },
	{ .name = "reply_then_error", .handler = reply_then_error },
	{ .name = "reply_then_garbage", .handler = reply_then_garbage },
	{ .name = "reply_then_defer", .handler = reply_then_defer },
	{ .name = "empty_text", .handler = empty_text },
};

TG_TEST(handler__returns_an_errno_or_garbage, 2)
{
	struct rref_ctx *ctx = tg_init(rank, odd_functions, array_size(odd_functions));

	for (int to = 0; to < 2; to++) {
		TG_IS(rref_rpc_sync(ctx, to, "return_erange", NULL, RREF_DEFAULT, NULL), -ERANGE);
		TG_CHECK(strcmp(rref_last_error(), rref_strerror(-ERANGE)) == 0);
		TG_IS(rref_rpc_sync(ctx, to, "return_garbage", NULL, RREF_DEFAULT, NULL), -EINVAL);
		TG_CHECK(rref_rpc_sync(ctx, to, "return_huge_errno", NULL, RREF_DEFAULT, NULL) < 0);
		TG_IS(rref_rpc_sync(ctx, to, "empty_text", NULL, RREF_DEFAULT, NULL), -ENOSPC);
		TG_CHECK(strcmp(rref_last_error(), rref_strerror(-ENOSPC)) == 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(handler__result_after_its_reply_does_not_matter, 2)
{
	struct rref_ctx *ctx = tg_init(rank, odd_functions, array_size(odd_functions));
	static const char *const names[] = { "reply_then_error", "reply_then_garbage",
					     "reply_then_defer" };
	struct rref_future *f;
	char got[4];

	for (size_t i = 0; i < array_size(names); i++)
		for (int to = 0; to < 2; to++) {
			TG_OK(rref_rpc_sync(ctx, to, names[i], NULL, RREF_DEFAULT, &f));
			tg_result(f, got, 4);
			TG_CHECK(memcmp(got, "good", 4) == 0);
			rref_future_free(f);
		}
	tg_finish(ctx);
	return 0;
}

/* ---- remote ---- */

static struct rref *kept;

static int return_kept(struct rref_call *call, void *arg)
{
	int err;

	(void)arg;
	if (!kept)
		TG_OK(rref_new(rref_call_context(call), "kept", 4, &kept));
	err = rref_call_reply(call, &(struct rref_args){ .refs = &kept, .nr_refs = 1 });
	return err;
}

/* The value holds them, also in a creation on oneself. */
TG_TEST(remote__references_in_the_result_are_held, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_view *v;
	struct rref *r, *inner;

	tg_add(ctx, "return_kept", return_kept, 0);
	TG_OK(rref_remote(ctx, 0, "return_kept", NULL, RREF_DEFAULT, &r));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_IS(rref_view_length(v), 0);
	TG_IS(rref_view_nr_refs(v), 1);
	rref_release(r);
	rref_release(kept);
	TG_OK(rref_view_ref(v, 0, RREF_DEFAULT, &inner));
	rref_view_free(v);
	tg_expect_bytes(inner, "kept", 4);
	rref_release(inner);
	tg_until_clean(ctx, 0);
	tg_finish(ctx);
	return 0;
}

/* ---- deferred, nested, chained ---- */

static int deep(struct rref_call *call, void *arg)
{
	struct rref_future *f;
	int32_t depth;

	(void)arg;
	memcpy(&depth, rref_call_data(call), sizeof(depth));
	if (depth == 0)
		return rref_call_reply(call, tg_bytes(&depth, sizeof(depth)));
	depth--;
	int err = rref_rpc_sync(rref_call_context(call), rref_call_caller(call), "deep",
				tg_bytes(&depth, sizeof(depth)), RREF_DEFAULT, &f);

	if (err)
		return err;
	tg_result(f, &depth, sizeof(depth));
	rref_future_free(f);
	depth++;
	return rref_call_reply(call, tg_bytes(&depth, sizeof(depth)));
}

TG_TEST(nested__twenty_deep_with_a_pool_of_one, 2)
{
	static const struct rref_function fn = { .name = "deep", .handler = deep };
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref_future *f;
	int32_t depth;

	tg_options(&o, rank);
	o.functions = &fn;
	o.nr_functions = 1;
	o.nr_threads = 1;
	TG_OK(rref_init(&o, &ctx));
	for (int to = 0; to < 2; to++)
		for (int round = 0; round < 3; round++) {
			depth = 20;
			TG_OK(rref_rpc_sync(ctx, to, "deep", tg_bytes(&depth, sizeof(depth)),
					    RREF_DEFAULT, &f));
			tg_result(f, &depth, sizeof(depth));
			TG_IS(depth, 20);
			rref_future_free(f);
		}
	tg_finish(ctx);
	return 0;
}

/* ---- time ---- */

TG_TEST(timeout__zero_is_at_once, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;

	if (rank == 0) {
		/* A session sends both, though no thread waits for them. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_IS(rref_rpc_sync(ctx, 1, "tg.hold", NULL, 0, NULL), -ETIMEDOUT);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 0, &f));
		TG_IS(rref_future_wait(f, RREF_FOREVER), -ETIMEDOUT);
		TG_TEXT("worker1 (rank 1)");
		rref_future_free(f);
		tg_until_held(ctx, 1, 2);
		TG_IS(tg_release_held(ctx, 1), 2);
	}
	tg_finish(ctx);
	return 0;
}

static bool dropped_one(struct rref_ctx *ctx, void *arg)
{
	return tg_stats(ctx).dropped_messages >= *(uint64_t *)arg;
}

TG_TEST(timeout__late_answer_is_dropped_and_its_references_reclaimed, 3)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f, *g;
	struct rref *mine, *theirs;

	if (rank == 0) {
		uint64_t want = tg_stats(ctx).dropped_messages + 2;

		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_remote(ctx, 2, "tg.echo", tg_bytes("theirs", 6), RREF_DEFAULT, &theirs));
		tg_expect_bytes(theirs, "theirs", 6);
		struct rref_args a = { .data = "late",
				       .length = 4,
				       .refs = (struct rref *[]){ mine, theirs },
				       .nr_refs = 2 };

		/* make the session */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", &a, RREF_DEFAULT, &f));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", &a, 30 * MS, &g));
		tg_until_held(ctx, 1, 2);
		TG_IS(rref_future_wait(g, RREF_FOREVER), -ETIMEDOUT);
		TG_OK(rref_future_cancel(f));
		TG_IS(rref_future_wait(f, RREF_FOREVER), -ECANCELED);
		TG_IS(rref_future_cancel(f), -EALREADY);
		TG_IS(rref_future_cancel(g), -EALREADY);
		TG_IS(tg_release_held(ctx, 1), 2);
		TG_CHECK(tg_eventually(dropped_one, ctx, &want));
		TG_IS(rref_future_wait(g, 0), -ETIMEDOUT);
		TG_IS(rref_future_nr_refs(f), -ECANCELED);
		rref_future_free(f);
		rref_future_free(g);
		rref_release(mine);
		rref_release(theirs);
		for (int i = 0; i < 3; i++)
			tg_until_clean(ctx, i);
	}
	tg_finish(ctx);
	return 0;
}

static struct rref_call *_Atomic put_off;

static int defer(struct rref_call *call, void *arg)
{
	(void)arg;
	at_store_rel(&put_off, call);
	return RREF_DEFER;
}

/* Answers the deferred call, on the pool. */
static int answer(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return rref_call_reply(at_load_acq(&put_off), NULL);
}

static int echo_back(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_reply(call,
			       &(struct rref_args){ .data = rref_call_data(call),
						    .length = rref_call_length(call) });
}

static int silent(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return 0;
}

static const struct rref_function counted_functions[] = {
	{ .name = "inline", .handler = silent, .flags = RREF_INLINE },
	{ .name = "pool", .handler = silent },
	{ .name = "later", .handler = defer, .flags = RREF_INLINE },
	{ .name = "echo", .handler = echo_back, .flags = RREF_INLINE },
	{ .name = "error", .handler = empty_text, .flags = RREF_INLINE },
	{ .name = "answer", .handler = answer },
};

static bool all_calls_over(struct rref_ctx *ctx, void *arg)
{
	struct rref_peer_stats p = { .size = sizeof(p) };

	(void)arg;
	TG_OK(rref_get_peer_stats(ctx, 0, &p));
	return tg_stats(ctx).calls_open == 0 && p.call_bytes == 0;
}

/* Some calls take the fast path, some leave it half-way, some
 * never take it: the counters are the same. */
TG_TEST(counters__are_the_same_on_both_paths_of_calls, 2)
{
	struct rref_ctx *ctx = tg_init(rank, counted_functions, array_size(counted_functions));
	static char large[400];

	for (int i = 0; rank == 0 && i < tg_scale(50); i++) {
		struct rref_future *f, *g;

		TG_OK(rref_rpc_sync(ctx, 1, "inline", NULL, RREF_DEFAULT, NULL));
		/* Too much for the fast path. */
		TG_OK(rref_rpc_sync(ctx, 1, "inline", tg_bytes(large, sizeof(large)), RREF_DEFAULT,
				    NULL));
		TG_OK(rref_rpc_sync(ctx, 1, "pool", tg_bytes("x", 1), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, 1, "echo", tg_bytes(large, 256), RREF_DEFAULT, &f));
		TG_IS(rref_future_nr_refs(f), 0);
		TG_IS(rref_rpc_sync(ctx, 1, "error", NULL, RREF_DEFAULT, NULL), -ENOSPC);
		TG_IS(rref_rpc_sync(ctx, 1, "none of that name", NULL, RREF_DEFAULT, NULL),
		      -EINVAL);
		TG_IS(rref_rpc_sync(ctx, 1, "nobody", NULL, RREF_DEFAULT, NULL), -ENOSYS);
		TG_OK(rref_rpc_async(ctx, 1, "later", tg_bytes("y", 1), RREF_DEFAULT, &g));
		/* This call comes later and is answered earlier. */
		TG_OK(rref_rpc_sync(ctx, 1, "inline", NULL, RREF_DEFAULT, NULL));
		TG_IS(rref_future_test(g), 0);
		TG_OK(rref_rpc_sync(ctx, 1, "answer", NULL, RREF_DEFAULT, NULL));
		TG_OK(rref_future_wait(g, RREF_DEFAULT));
		rref_future_free(g);
		rref_future_free(f);
	}
	if (rank == 0) {
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		TG_CHECK(tg_eventually(all_calls_over, ctx, NULL));
		TG_IS(tg_stats(ctx).calls_served, 8 * (uint64_t)tg_scale(50));
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(arguments__wrong, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;
	char long_name[RREF_NAME_MAX + 2];
	static const char *const bad[] = { "", " ", "a b", "a/b", "\xc3\xa4", "a\n" };

	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = 0;
	TG_IS(rref_rpc_sync(ctx, 1 - rank, long_name, NULL, RREF_DEFAULT, &f), -EINVAL);
	for (size_t i = 0; i < array_size(bad); i++)
		TG_IS(rref_rpc_sync(ctx, 1 - rank, bad[i], NULL, RREF_DEFAULT, &f), -EINVAL);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, NULL, NULL, RREF_DEFAULT, &f), -EINVAL);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.echo", tg_bytes(NULL, 4), RREF_DEFAULT, &f),
	      -EINVAL);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.echo", &(struct rref_args){ .nr_refs = 1 },
			    RREF_DEFAULT, &f),
	      -EINVAL);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.echo",
			    &(struct rref_args){ .refs = (struct rref *[]){ NULL }, .nr_refs = 1 },
			    RREF_DEFAULT, &f),
	      -EINVAL);
	TG_IS(rref_rpc_async(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL), -EINVAL);
	TG_IS(rref_remote(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL), -EINVAL);
	TG_CHECK(!f);
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

static int shut_down(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_shutdown(rref_call_context(call), RREF_SHUTDOWN_NOW, 0);
}

TG_TEST(handler__may_not_shut_down, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "shut", shut_down, 0);
	tg_add(ctx, "shut_inline", shut_down, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "shut", NULL, RREF_DEFAULT, NULL), -EDEADLK);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "shut_inline", NULL, RREF_DEFAULT, NULL), -EDEADLK);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sync__echoes_on_peer_and_self),
		cmocka_unit_test(sync__without_a_place_for_the_result),
		cmocka_unit_test(async__inline_a_thousand_in_flight),
		cmocka_unit_test(counters__are_the_same_on_both_paths_of_calls),
		cmocka_unit_test(sync__from_eight_threads),
		cmocka_unit_test(function__registered_while_running),
		cmocka_unit_test(result__too_large_leaves_the_call_open),
		cmocka_unit_test(references__too_many),
		cmocka_unit_test(handler__returns_an_errno_or_garbage),
		cmocka_unit_test(handler__result_after_its_reply_does_not_matter),
		cmocka_unit_test(remote__references_in_the_result_are_held),
		cmocka_unit_test(nested__twenty_deep_with_a_pool_of_one),
		cmocka_unit_test(timeout__zero_is_at_once),
		cmocka_unit_test(timeout__late_answer_is_dropped_and_its_references_reclaimed),
		cmocka_unit_test(arguments__wrong),
		cmocka_unit_test(handler__may_not_shut_down),
	};

	return cmocka_run_group_tests_name("calls", tests, NULL, NULL);
}
