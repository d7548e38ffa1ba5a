/* SPDX-License-Identifier: Apache-2.0 */
/* Calls: what reaches the callee, what comes back, and what happens when it comes late, twice or not at all. */
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

#define MS NSEC_PER_MSEC

static const struct rref_args *bytes(const void *data, size_t length)
{
	static _Thread_local struct rref_args a;

	a = (struct rref_args){ .data = data, .length = length };
	return &a;
}

static void add(struct rref_ctx *ctx, const char *name, rref_handler fn, unsigned flags)
{
	struct rref_function f = { .name = name, .handler = fn, .flags = flags };

	TG_OK(rref_register(ctx, &f));
}

/* ---- what reaches the callee, and what comes back ---- */

TG_TEST(sync__echoes_on_peer_and_self, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	char got[5];

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo", bytes("hello", 5), RREF_DEFAULT, &f));
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
		TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", bytes("x", 1), RREF_DEFAULT, NULL));
	TG_IS(tg_stats(ctx).ops_in_flight, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(async__a_thousand_in_flight, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(1000);
	struct rref_future **f = calloc((size_t)n, sizeof(struct rref_future *));

	for (int i = 0; i < n; i++)
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", bytes(&i, sizeof(i)), RREF_DEFAULT, &f[i]));
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

TG_TEST(async__inline_a_thousand_in_flight, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(1000);
	struct rref_future **f = calloc((size_t)n, sizeof(struct rref_future *));

	for (int i = 0; i < n; i++)
		TG_OK(rref_rpc_async(ctx, i % 2, "tg.echo_inline", bytes(&i, sizeof(i)), RREF_DEFAULT, &f[i]));
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

TG_TEST(async__heavy_both_ways, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static unsigned char payload[RREF_ARGS_MAX];
	struct rref_future *f[200];
	const void *data;
	size_t length;

	tg_fill(payload, sizeof(payload), (unsigned)rank);
	for (int i = 0; i < 200; i++)
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", bytes(payload, sizeof(payload)), RREF_DEFAULT, &f[i]));
	for (int i = 0; i < 200; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		TG_OK(rref_future_data(f[i], &data, &length));
		TG_CHECK(length == sizeof(payload) && memcmp(data, payload, length) == 0);
		rref_future_free(f[i]);
	}
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

		TG_OK(rref_rpc_sync(m->ctx, m->rank, i % 3 ? "tg.echo" : "tg.echo_inline", bytes(&want, sizeof(want)),
				    RREF_DEFAULT, &f));
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

static int who(struct rref_call *call, void *arg)
{
	int32_t caller = rref_call_caller(call);

	(void)arg;
	TG_CHECK(strcmp(rref_call_function(call), "who.is-it:now_1") == 0);
	TG_CHECK(rref_call_length(call) == 0 && rref_call_nr_refs(call) == 0);
	TG_CHECK(rref_call_ref(call, 0) == NULL);
	return rref_call_reply(call, bytes(&caller, sizeof(caller)));
}

TG_TEST(callee__sees_caller_and_name, 3)
{
	struct rref_function fn = { .name = "who.is-it:now_1", .handler = who };
	struct rref_ctx *ctx = tg_init(rank, &fn, 1);
	struct rref_future *f;
	int32_t got;

	for (int to = 0; to < 3; to++) {
		TG_OK(rref_rpc_sync(ctx, to, "who.is-it:now_1", NULL, RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, rank);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(target__by_a_name_looked_up, 3)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_worker_info w = { .size = sizeof(w) };
	struct rref_future *f;
	char name[32];
	int got;

	for (int i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "worker%d", i);
		int to = rref_worker_by_name(ctx, name);

		TG_IS(to, i);
		TG_OK(rref_worker(ctx, to, &w));
		TG_CHECK(w.rank == i && strcmp(w.name, name) == 0 && w.incarnation != 0 && w.alive);
		TG_CHECK(strcmp(w.device, i == rank ? "self" : tg_device()) == 0 || !tg_is_shm());
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo", bytes(&i, sizeof(i)), RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
	TG_IS(rref_worker_by_name(ctx, "nobody"), -ENOENT);
	TG_TEXT("nobody");
	tg_finish(ctx);
	return 0;
}

TG_TEST(target__no_such_rank, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;
	struct rref *r = NULL;

	TG_IS(rref_rpc_async(ctx, -1, "tg.echo", NULL, RREF_DEFAULT, &f), -EINVAL);
	TG_TEXT("rank -1");
	TG_IS(rref_rpc_sync(ctx, 2, "tg.echo", NULL, RREF_DEFAULT, &f), -EINVAL);
	TG_TEXT("rank 2");
	TG_IS(rref_remote(ctx, 2, "tg.echo", NULL, RREF_DEFAULT, &r), -EINVAL);
	TG_IS(rref_remote(ctx, -1, "tg.echo", NULL, RREF_DEFAULT, &r), -EINVAL);
	TG_CHECK(!f && !r);
	TG_IS(tg_stats(ctx).ops_in_flight, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(function__unknown_is_the_callers_error, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_error e = { .size = sizeof(e) };
	struct rref_future *f;

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_rpc_async(ctx, to, "no.such", NULL, RREF_DEFAULT, &f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENOSYS);
		TG_TEXT("no.such");
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.err == -ENOSYS && e.peer == to && strstr(e.text, "no.such"));
		rref_future_free(f);
		TG_OK(rref_rpc_sync(ctx, to, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(function__registered_while_running, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_function dup = { .name = "tg.echo", .handler = who };

	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		TG_IS(rref_rpc_sync(ctx, 1, "who.is-it:now_1", NULL, RREF_DEFAULT, NULL), -ENOSYS);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_OK(rref_rpc_sync(ctx, 1, "who.is-it:now_1", NULL, RREF_DEFAULT, NULL));
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		add(ctx, "who.is-it:now_1", who, 0);
		TG_IS(rref_register(ctx, &dup), -EEXIST);
		TG_TEXT("tg.echo");
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(result__of_nothing, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	const void *data;
	size_t length = 9;

	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.nothing", bytes("ignored", 7), RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_IS(length, 0);
	rref_future_free(f);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_IS(length, 0);
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(payload__up_to_the_limit, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static unsigned char payload[RREF_ARGS_MAX + 1];
	static const size_t sizes[] = { 0, 1, 2, 63, 64, 65, 1023, 1024, 2048, RREF_ARGS_MAX - 1, RREF_ARGS_MAX };
	struct rref_future *f = NULL;
	const void *data;
	size_t length;

	tg_fill(payload, sizeof(payload), 7);
	for (int to = 0; to < 2; to++) {
		for (size_t i = 0; i < array_size(sizes); i++) {
			TG_OK(rref_rpc_sync(ctx, to, "tg.echo", bytes(payload, sizes[i]), RREF_DEFAULT, &f));
			TG_OK(rref_future_data(f, &data, &length));
			TG_IS(length, sizes[i]);
			TG_CHECK(!length || memcmp(data, payload, length) == 0);
			rref_future_free(f);
		}
		f = NULL;
		TG_IS(rref_rpc_sync(ctx, to, "tg.echo", bytes(payload, RREF_ARGS_MAX + 1), RREF_DEFAULT, &f), -EMSGSIZE);
		TG_TEXT("3073");
		TG_CHECK(!f);
	}
	tg_finish(ctx);
	return 0;
}

static int too_much(struct rref_call *call, void *arg)
{
	static const char big[RREF_ARGS_MAX + 1];

	(void)arg;
	TG_IS(rref_call_reply(call, bytes(big, sizeof(big))), -EMSGSIZE);
	return rref_call_reply(call, bytes("small", 5));
}

TG_TEST(result__too_large_leaves_the_call_open, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	char got[5];

	add(ctx, "too_much", too_much, 0);
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
	struct rref *r, *refs[RREF_REFS_MAX + 1];
	struct rref_future *f = NULL;

	TG_OK(rref_new(ctx, "r", 1, &r));
	for (size_t i = 0; i < array_size(refs); i++)
		refs[i] = r;
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.read", &(struct rref_args){ .refs = refs, .nr_refs = RREF_REFS_MAX + 1 },
			    RREF_DEFAULT, &f), -EMSGSIZE);
	TG_TEXT("9 references");
	TG_CHECK(!f);
	TG_IS(tg_stats(ctx).forks, 0);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* The largest message there is: the longest name, all bytes, all references with their locations. */
TG_TEST(message__the_largest_there_is, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static unsigned char payload[RREF_ARGS_MAX];
	char name[RREF_NAME_MAX + 1];
	struct rref *refs[RREF_REFS_MAX];
	struct rref_future *f;
	const void *data;
	size_t length;

	memset(name, 'n', RREF_NAME_MAX);
	name[RREF_NAME_MAX] = 0;
	add(ctx, name, tg_functions[2].handler, 0);
	tg_meet_serving(ctx, 0);
	tg_fill(payload, sizeof(payload), 3);
	for (size_t i = 0; i < RREF_REFS_MAX; i++)
		TG_OK(rref_new(ctx, &i, sizeof(i), &refs[i]));
	TG_OK(rref_rpc_sync(ctx, 1 - rank, name, &(struct rref_args){ payload, sizeof(payload), refs, RREF_REFS_MAX },
			    RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_CHECK(length == sizeof(payload) && memcmp(data, payload, length) == 0);
	TG_IS(rref_future_nr_refs(f), RREF_REFS_MAX);
	for (size_t i = 0; i < RREF_REFS_MAX; i++) {
		struct rref *back;

		TG_OK(rref_future_ref(f, i, &back));
		TG_CHECK(rref_equal(back, refs[i]) && rref_is_owner(back));
		tg_expect_bytes(back, &i, sizeof(i));
		rref_release(back);
		rref_release(refs[i]);
	}
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

/* ---- errors ---- */

TG_TEST(error__code_and_text_travel, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct {
		int32_t code;
		char text[64];
	} a = { -EDOM, "line one\nline two: 100%s of it\n" };
	struct rref_error e = { .size = sizeof(e) };
	struct rref_future *f = NULL;
	const void *data;
	size_t length;

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_rpc_async(ctx, to, "tg.fail", bytes(&a, sizeof(a.code) + strlen(a.text)), RREF_DEFAULT, &f));
		for (int again = 0; again < 2; again++) {
			TG_IS(rref_future_wait(f, RREF_DEFAULT), -EDOM);
			TG_CHECK(strcmp(rref_last_error(), a.text) == 0);
		}
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.err == -EDOM && e.peer == to && e.wc_status == -1 && strcmp(e.text, a.text) == 0);
		TG_IS(rref_future_data(f, &data, &length), -EDOM);
		rref_future_free(f);
		f = NULL;
		TG_IS(rref_rpc_sync(ctx, to, "tg.fail", bytes(&a, sizeof(a.code) + strlen(a.text)), RREF_DEFAULT, &f), -EDOM);
		TG_CHECK(strcmp(rref_last_error(), a.text) == 0);
		TG_CHECK(!f);
	}
	tg_finish(ctx);
	return 0;
}

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
	TG_OK(rref_call_reply(call, bytes("good", 4)));
	return -EIO;
}

static int reply_then_garbage(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, bytes("good", 4)));
	return 99;
}

static int reply_then_defer(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, bytes("good", 4)));
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

TG_TEST(handler__what_it_returns_after_its_reply_does_not_matter, 2)
{
	struct rref_ctx *ctx = tg_init(rank, odd_functions, array_size(odd_functions));
	static const char *const names[] = { "reply_then_error", "reply_then_garbage", "reply_then_defer" };
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

static int reply_twice(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_call_reply(call, bytes("first", 5)));
	TG_IS(rref_call_reply(call, bytes("second", 6)), -EALREADY);
	TG_IS(rref_call_error(call, -EIO, "third"), -EALREADY);
	atomic_fetch_add(&tg_current->shared->flag[1], 1);
	return 0;
}

TG_TEST(handler__replies_twice, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref *r;
	char got[5];

	add(ctx, "twice", reply_twice, 0);
	add(ctx, "twice_inline", reply_twice, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 4; i++) {
		TG_OK(rref_rpc_sync(ctx, i % 2, i < 2 ? "twice" : "twice_inline", NULL, RREF_DEFAULT, &f));
		tg_result(f, got, 5);
		TG_CHECK(memcmp(got, "first", 5) == 0);
		rref_future_free(f);
		TG_OK(rref_remote(ctx, i % 2, i < 2 ? "twice" : "twice_inline", NULL, RREF_DEFAULT, &r));
		tg_expect_bytes(r, "first", 5);
		rref_release(r);
	}
	/* Counted after the reply, by the handler that goes on. */
	tg_wait_flag_serving(ctx, 1, 16);
	tg_meet_serving(ctx, 1);
	TG_IS(tg_flag(1), 16);
	tg_finish(ctx);
	return 0;
}

/* ---- remote ---- */

TG_TEST(remote__result_becomes_a_value_there, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;

	for (int to = 0; to < 2; to++) {
		struct rref *r;

		TG_OK(rref_remote(ctx, to, "tg.echo", bytes("made there", 10), RREF_DEFAULT, &r));
		TG_IS(rref_owner(r), to);
		TG_IS(rref_is_owner(r), to == rank);
		tg_expect_bytes(r, "made there", 10);
		TG_OK(rref_creation(r, &f));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		rref_release(r);
	}
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, 1 - rank);
	tg_finish(ctx);
	return 0;
}

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

TG_TEST(remote__references_in_the_result_are_refused, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_view *v;
	struct rref *r;

	add(ctx, "return_kept", return_kept, 0);
	TG_OK(rref_remote(ctx, 0, "return_kept", NULL, RREF_DEFAULT, &r));
	TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EINVAL);
	rref_release(r);
	rref_release(kept);
	tg_until_clean(ctx, 0);
	tg_finish(ctx);
	return 0;
}

/* ---- deferred, nested, chained ---- */

static void *reply_later(void *arg)
{
	struct rref_call *call = arg;
	struct rref_args a = { .data = rref_call_data(call), .length = rref_call_length(call) };

	TG_OK(rref_call_reply(call, &a));
	return NULL;
}

static int defer_to_thread(struct rref_call *call, void *arg)
{
	pthread_attr_t attr;
	pthread_t t;

	(void)arg;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	TG_IS(pthread_create(&t, &attr, reply_later, call), 0);
	pthread_attr_destroy(&attr);
	return RREF_DEFER;
}

TG_TEST(deferred__replied_by_another_thread, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[50];

	add(ctx, "later", defer_to_thread, 0);
	add(ctx, "later_inline", defer_to_thread, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 50; i++)
		TG_OK(rref_rpc_async(ctx, i % 4 ? 1 - rank : rank, i % 2 ? "later" : "later_inline", bytes(&i, sizeof(i)),
				     RREF_DEFAULT, &f[i]));
	for (int i = 0; i < 50; i++) {
		int got;

		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(deferred__fan_out_of_twenty_holds_no_thread, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[20];

	if (rank == 0) {
		/* More than the pool has threads: each held call must not keep one. */
		for (int i = 0; i < 20; i++)
			TG_OK(rref_rpc_async(ctx, 1, "tg.hold", bytes(&i, sizeof(i)), RREF_DEFAULT, &f[i]));
		tg_until_held(ctx, 1, 20);
		for (int i = 0; i < 20; i++)
			TG_IS(rref_future_test(f[i]), 0);
		TG_IS(tg_release_held(ctx, 1), 20);
		for (int i = 0; i < 20; i++) {
			int got;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			tg_result(f[i], &got, sizeof(got));
			TG_IS(got, i);
			rref_future_free(f[i]);
		}
	}
	tg_finish(ctx);
	return 0;
}

/* Answers `call` (deferred) with what the next worker says. */
static void pass_on(struct rref_future *f, void *arg)
{
	struct rref_call *call = arg;
	const void *data;
	size_t length;
	int err = rref_future_data(f, &data, &length);

	if (err)
		TG_OK(rref_call_error(call, err, "chained: %s", rref_last_error()));
	else
		TG_OK(rref_call_reply(call, bytes(data, length)));
	rref_future_free(f);
}

static int chain(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	int next = (rref_rank(ctx) + 1) % rref_world_size(ctx), err;
	struct rref_future *f;

	(void)arg;
	err = rref_rpc_async(ctx, next, rref_call_length(call) ? "tg.echo" : "no.such",
			     bytes(rref_call_data(call), rref_call_length(call)), RREF_DEFAULT, &f);
	if (err)
		return err;
	TG_OK(rref_future_then(f, pass_on, call));
	return RREF_DEFER;
}

TG_TEST(deferred__chained_through_a_second_worker, 3)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	int got;

	add(ctx, "chain", chain, 0);
	add(ctx, "chain_inline", chain, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	for (int i = 1; i < tg_scale(100) + 4; i++) {
		TG_OK(rref_rpc_sync(ctx, (rank + i) % 3, i % 2 ? "chain" : "chain_inline", bytes(&i, sizeof(i)), RREF_DEFAULT,
				    &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
	TG_IS(rref_rpc_sync(ctx, (rank + 1) % 3, "chain", NULL, RREF_DEFAULT, NULL), -ENOSYS);
	TG_TEXT("chained: ");
	TG_TEXT("no.such");
	tg_finish(ctx);
	return 0;
}

static int call_back(struct rref_call *call, void *arg)
{
	struct rref_future *f;
	const void *data;
	size_t length;
	int err = rref_rpc_sync(rref_call_context(call), rref_call_caller(call), "tg.echo",
				bytes(rref_call_data(call), rref_call_length(call)), RREF_DEFAULT, &f);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	TG_OK(rref_future_data(f, &data, &length));
	err = rref_call_reply(call, bytes(data, length));
	rref_future_free(f);
	return err;
}

TG_TEST(nested__callee_calls_its_caller_back, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[40];

	add(ctx, "back", call_back, 0);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 40; i++)
		TG_OK(rref_rpc_async(ctx, i % 2, "back", bytes(&i, sizeof(i)), RREF_DEFAULT, &f[i]));
	for (int i = 0; i < 40; i++) {
		int got;

		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

static int deep(struct rref_call *call, void *arg)
{
	struct rref_future *f;
	int32_t depth;

	(void)arg;
	memcpy(&depth, rref_call_data(call), sizeof(depth));
	if (depth == 0)
		return rref_call_reply(call, bytes(&depth, sizeof(depth)));
	depth--;
	int err = rref_rpc_sync(rref_call_context(call), rref_call_caller(call), "deep", bytes(&depth, sizeof(depth)),
				RREF_DEFAULT, &f);

	if (err)
		return err;
	tg_result(f, &depth, sizeof(depth));
	rref_future_free(f);
	depth++;
	return rref_call_reply(call, bytes(&depth, sizeof(depth)));
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
			TG_OK(rref_rpc_sync(ctx, to, "deep", bytes(&depth, sizeof(depth)), RREF_DEFAULT, &f));
			tg_result(f, &depth, sizeof(depth));
			TG_IS(depth, 20);
			rref_future_free(f);
		}
	tg_finish(ctx);
	return 0;
}

/* ---- time ---- */

TG_TEST(timeout__per_call_and_default, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref_future *shorter, *longer, *forever, *standard;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.timeout = rank == 0 ? 300 * MS : o.timeout;
	TG_OK(rref_init(&o, &ctx));
	if (rank == 0) {
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 20 * MS, &shorter));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 60 * NSEC_PER_SEC, &longer));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &forever));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_DEFAULT, &standard));
		/* Each ends by its own time; the waits have none. */
		TG_IS(rref_future_wait(shorter, RREF_FOREVER), -ETIMEDOUT);
		TG_IS(rref_future_test(shorter), 1);
		TG_IS(rref_future_wait(standard, RREF_FOREVER), -ETIMEDOUT);
		TG_IS(rref_future_test(standard), 1);
		TG_IS(rref_future_test(longer), 0);
		TG_IS(rref_future_test(forever), 0);
		/* A wait's own time is not the call's. */
		TG_IS(rref_future_wait(longer, 1 * MS), -ETIMEDOUT);
		TG_IS(rref_future_test(longer), 0);
		tg_until_held(ctx, 1, 4);
		TG_IS(tg_release_held(ctx, 1), 4);
		TG_OK(rref_future_wait(longer, 20 * NSEC_PER_SEC));
		TG_OK(rref_future_wait(forever, 20 * NSEC_PER_SEC));
		rref_future_free(shorter);
		rref_future_free(longer);
		rref_future_free(forever);
		rref_future_free(standard);
		TG_IS(tg_stats(ctx).ops_in_flight, 0);
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(timeout__zero_is_at_once, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;

	if (rank == 0) {
		TG_IS(rref_rpc_sync(ctx, 1, "tg.hold", NULL, 0, NULL), -ETIMEDOUT);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 0, &f));
		TG_IS(rref_future_wait(f, RREF_FOREVER), -ETIMEDOUT);
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
		TG_OK(rref_remote(ctx, 2, "tg.echo", bytes("theirs", 6), RREF_DEFAULT, &theirs));
		tg_expect_bytes(theirs, "theirs", 6);
		struct rref_args a = { .data = "late", .length = 4, .refs = (struct rref *[]){ mine, theirs }, .nr_refs = 2 };

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

TG_TEST(timeout__late_creation_is_reclaimed, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref_view *v;

	if (rank == 0) {
		for (int to = 0; to < 2; to++) {
			struct rref *gave_up, *cancelled, *dropped;

			TG_OK(rref_remote(ctx, to, "tg.hold", bytes("late", 4), 30 * MS, &gave_up));
			TG_OK(rref_remote(ctx, to, "tg.hold", bytes("late", 4), RREF_DEFAULT, &cancelled));
			TG_OK(rref_remote(ctx, to, "tg.hold", bytes("late", 4), RREF_DEFAULT, &dropped));
			tg_until_held(ctx, to, 3);
			TG_OK(rref_creation(gave_up, &f));
			TG_IS(rref_future_wait(f, RREF_FOREVER), -ETIMEDOUT);
			rref_future_free(f);
			TG_OK(rref_creation(cancelled, &f));
			TG_OK(rref_future_cancel(f));
			TG_IS(rref_future_wait(f, RREF_FOREVER), -ECANCELED);
			rref_future_free(f);
			for (int again = 0; again < 3; again++) {
				TG_IS(rref_to_here(gave_up, RREF_DEFAULT, &v), -ETIMEDOUT);
				TG_TEXT("creation");
				TG_IS(rref_to_here(cancelled, RREF_DEFAULT, &v), -ECANCELED);
			}
			TG_IS(rref_confirmed(gave_up), 0);
			rref_release(dropped);
			TG_IS(tg_release_held(ctx, to), 3);
			/* Still failed after the answer came, and the late values are gone although handles remain. */
			if (to == 0)
				TG_IS(tg_stats(ctx).value_bytes, 0);
			else
				tg_until_clean(ctx, 1);
			TG_IS(rref_to_here(gave_up, RREF_DEFAULT, &v), -ETIMEDOUT);
			TG_IS(rref_to_here(cancelled, RREF_DEFAULT, &v), -ECANCELED);
			rref_release(gave_up);
			rref_release(cancelled);
			tg_until_clean(ctx, 0);
			tg_until_clean(ctx, 1);
		}
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(arguments__bad_ones, 2)
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
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.echo", bytes(NULL, 4), RREF_DEFAULT, &f), -EINVAL);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.echo", &(struct rref_args){ .nr_refs = 1 }, RREF_DEFAULT, &f), -EINVAL);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "tg.echo", &(struct rref_args){ .refs = (struct rref *[]){ NULL }, .nr_refs = 1 },
			    RREF_DEFAULT, &f), -EINVAL);
	TG_IS(rref_rpc_async(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL), -EINVAL);
	TG_IS(rref_remote(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL), -EINVAL);
	TG_CHECK(!f);
	TG_IS(tg_stats(ctx).ops_in_flight, 0);
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

	add(ctx, "shut", shut_down, 0);
	add(ctx, "shut_inline", shut_down, RREF_INLINE);
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
		cmocka_unit_test(async__a_thousand_in_flight),
		cmocka_unit_test(async__inline_a_thousand_in_flight),
		cmocka_unit_test(async__heavy_both_ways),
		cmocka_unit_test(sync__from_eight_threads),
		cmocka_unit_test(callee__sees_caller_and_name),
		cmocka_unit_test(target__by_a_name_looked_up),
		cmocka_unit_test(target__no_such_rank),
		cmocka_unit_test(function__unknown_is_the_callers_error),
		cmocka_unit_test(function__registered_while_running),
		cmocka_unit_test(result__of_nothing),
		cmocka_unit_test(payload__up_to_the_limit),
		cmocka_unit_test(result__too_large_leaves_the_call_open),
		cmocka_unit_test(references__too_many),
		cmocka_unit_test(message__the_largest_there_is),
		cmocka_unit_test(error__code_and_text_travel),
		cmocka_unit_test(handler__returns_an_errno_or_garbage),
		cmocka_unit_test(handler__what_it_returns_after_its_reply_does_not_matter),
		cmocka_unit_test(handler__replies_twice),
		cmocka_unit_test(remote__result_becomes_a_value_there),
		cmocka_unit_test(remote__references_in_the_result_are_refused),
		cmocka_unit_test(deferred__replied_by_another_thread),
		cmocka_unit_test(deferred__fan_out_of_twenty_holds_no_thread),
		cmocka_unit_test(deferred__chained_through_a_second_worker),
		cmocka_unit_test(nested__callee_calls_its_caller_back),
		cmocka_unit_test(nested__twenty_deep_with_a_pool_of_one),
		cmocka_unit_test(timeout__per_call_and_default),
		cmocka_unit_test(timeout__zero_is_at_once),
		cmocka_unit_test(timeout__late_answer_is_dropped_and_its_references_reclaimed),
		cmocka_unit_test(timeout__late_creation_is_reclaimed),
		cmocka_unit_test(arguments__bad_ones),
		cmocka_unit_test(handler__may_not_shut_down),
	};

	return cmocka_run_group_tests_name("calls", tests, NULL, NULL);
}
