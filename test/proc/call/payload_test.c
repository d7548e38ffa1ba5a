/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose arguments or results do not fit a message: contents, metadata, many at once. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "payload.h"

/* ---- contents ---- */

static const size_t sizes[] = { 0,
				1,
				RW_INLINE_MAX,
				RW_INLINE_MAX + 1,
				4096,
				64 * KIB - 64,
				64 * KIB,
				64 * KIB + 1,
				128 * KIB,
				MIB - 64,
				MIB,
				MIB + 1,
				3 * MIB + 7 };

/* Calls both ways, also as a creation: with the callee on the pool and inline, there and here,
 * waited for and not. */
TG_TEST(contents__every_size_and_way, 2)
{
	static const char *const function[] = { "tg.echo", "tg.echo_inline" };
	struct rref_ctx *ctx = tg_join(rank);

	for (size_t i = 0; i < array_size(sizes) * 4; i++) {
		size_t n = sizes[i / 4];
		int to = (int)(i & 1);
		const char *name = function[i >> 1 & 1];
		unsigned char *data = filled(n, (unsigned)i);
		struct rref_args a = bytes(data, n);
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, to, name, &a, RREF_DEFAULT, &f));
		expect_result(f, data, n);
		rref_future_free(f);
		TG_OK(rref_rpc_async(ctx, to, name, &a, RREF_DEFAULT, &f));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		expect_result(f, data, n);
		rref_future_free(f);
		TG_OK(rref_remote(ctx, to, name, &a, RREF_DEFAULT, &r));
		tg_expect_bytes(r, data, n);
		rref_release(r);
		free(data);
	}
	tg_meet_serving(ctx, 0);
	until_nothing_is_left(ctx, 1 - rank);
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

TG_TEST(contents__the_largest, 2)
{
	/* Fill before joining: in manual mode nobody would answer while others connect. */
	size_t n = largest();
	unsigned char *data = rank == 0 ? filled(n, 5) : NULL;
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_args a = bytes(data, n);
		struct rref_stats before = tg_stats(ctx), s;
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &a, RREF_DEFAULT, &f));
		expect_result(f, data, n);
		rref_future_free(f);
		a.length /= 8;
		TG_OK(rref_remote(ctx, 1, "tg.echo", &a, RREF_DEFAULT, &r));
		tg_expect_bytes(r, data, a.length);
		rref_release(r);
		s = tg_stats(ctx);
		/* READ brings it; a handful of messages is enough. Over shm the value is looked
		 * at. */
		TG_CHECK(s.messages_sent - before.messages_sent < 40);
		TG_CHECK(s.read_bytes - before.read_bytes >= n + (tg_is_shm() ? 0 : n / 8));
		TG_CHECK((s.looks - before.looks > 0) == tg_is_shm());
		a.length = (size_t)RREF_ARGS_MAX + 1;
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", &a, RREF_DEFAULT, NULL), -EMSGSIZE);
		TG_IS(rref_remote(ctx, 1, "tg.echo", &a, RREF_DEFAULT, &r), -EMSGSIZE);
		TG_TEXT("268435456");
		free(data);
		until_nothing_is_left(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* A call has all references that it may have. They go by the payload too, both ways. */
TG_TEST(references__as_many_as_there_may_be, 2)
{
	static struct rref *refs[RREF_REFS_MAX];
	static const size_t counts[] = { RW_REFS_MAX, RW_REFS_MAX + 1, 64, RREF_REFS_MAX };
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		for (size_t i = 0; i < array_size(refs); i++)
			TG_OK(rref_new(ctx, &i, sizeof(i), &refs[i]));
		for (size_t c = 0; c < 2 * array_size(counts); c++) {
			struct rref_args a = { .data = refs,
					       .length = c & 1 ? 5000 : 0,
					       .refs = refs,
					       .nr_refs = counts[c / 2] };

			for (int to = 0; to < 2; to++) {
				struct rref_future *f;

				TG_OK(rref_rpc_sync(ctx, to, "tg.echo_refs", &a, RREF_DEFAULT, &f));
				expect_result(f, refs, a.length);
				TG_IS(rref_future_nr_refs(f), a.nr_refs);
				for (size_t i = 0; i < a.nr_refs; i++) {
					struct rref *back;

					TG_OK(rref_future_ref(f, i, &back));
					TG_CHECK(rref_equal(back, refs[i]));
					tg_expect_bytes(back, &i, sizeof(i));
					rref_release(back);
				}
				rref_future_free(f);
				TG_OK(rref_rpc_sync(ctx, to, "tg.read", &a, RREF_DEFAULT, NULL));
			}
		}
		for (size_t i = 0; i < array_size(refs); i++)
			rref_release(refs[i]);
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
		until_nothing_is_left(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- metadata ---- */

static int show_meta(struct rref_call *call, void *arg)
{
	struct rref_args a = bytes(rref_call_meta(call), rref_call_meta_length(call));

	(void)arg;
	return rref_call_reply(call, &a);
}

/* Hands its metadata on to the other worker, or not. */
static int pass_meta(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref_args a = { .data = "x", .length = 1 };
	struct rref_future *f;
	const void *data;
	size_t n;
	int err;

	(void)arg;
	if (rref_call_length(call)) {
		a.meta = rref_call_meta(call);
		a.meta_length = rref_call_meta_length(call);
	}
	TG_OK(rref_rpc_sync(ctx, 1 - rref_rank(ctx), "show_meta", &a, RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &n));
	a = bytes(data, n);
	err = rref_call_reply(call, &a);
	rref_future_free(f);
	return err;
}

static int meta_in_reply(struct rref_call *call, void *arg)
{
	struct rref_args a = { .meta = "m", .meta_length = 1 };

	(void)arg;
	TG_IS(rref_call_reply(call, &a), -EINVAL);
	return rref_call_reply(call, NULL);
}

TG_TEST(metadata__travels_with_the_call, 2)
{
	static const size_t lengths[] = { 0, 1, 17, RREF_META_MAX };
	static const size_t with[] = {
		0, 100, RW_INLINE_MAX - RREF_META_MAX, RW_INLINE_MAX - 1, RW_INLINE_MAX, 100000
	};
	struct rref_ctx *ctx = tg_join(rank);
	unsigned char meta[RREF_META_MAX + 1], *data = filled(100000, 3);
	struct rref_future *f;

	add(ctx, "show_meta", show_meta, 0);
	add(ctx, "pass_meta", pass_meta, 0);
	add(ctx, "meta_in_reply", meta_in_reply, 0);
	tg_fill(meta, sizeof(meta), 9);
	tg_meet_serving(ctx, 0);
	for (size_t i = 0; i < array_size(lengths) * array_size(with) * 2; i++) {
		struct rref_args a = { .data = data,
				       .length = with[i / 2 % array_size(with)],
				       .meta = meta,
				       .meta_length = lengths[i / 2 / array_size(with)] };
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, (int)(i & 1), "show_meta", &a, RREF_DEFAULT, &f));
		expect_result(f, meta, a.meta_length);
		rref_future_free(f);
		TG_OK(rref_rpc_sync(ctx, (int)(i & 1), "tg.echo", &a, RREF_DEFAULT, &f));
		expect_result(f, data, a.length);
		rref_future_free(f);
		TG_OK(rref_remote(ctx, (int)(i & 1), "show_meta", &a, RREF_DEFAULT, &r));
		tg_expect_bytes(r, meta, a.meta_length);
		rref_release(r);
	}
	/* Forwarding is the handler's choice. */
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "pass_meta",
			    &(struct rref_args){
				    .data = "y", .length = 1, .meta = meta, .meta_length = 33 },
			    RREF_DEFAULT, &f));
	expect_result(f, meta, 33);
	rref_future_free(f);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "pass_meta",
			    &(struct rref_args){ .meta = meta, .meta_length = 33 }, RREF_DEFAULT,
			    &f));
	expect_result(f, meta, 0);
	rref_future_free(f);
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "show_meta",
			    &(struct rref_args){ .meta = meta, .meta_length = RREF_META_MAX + 1 },
			    RREF_DEFAULT, &f),
	      -EMSGSIZE);
	TG_TEXT("257 bytes of metadata");
	TG_IS(rref_rpc_sync(ctx, 1 - rank, "show_meta", &(struct rref_args){ .meta_length = 1 },
			    RREF_DEFAULT, &f),
	      -EINVAL);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "meta_in_reply", NULL, RREF_DEFAULT, NULL));
	TG_CHECK(rref_call_meta(NULL) == NULL && rref_call_meta_length(NULL) == 0);
	tg_meet_serving(ctx, 1);
	free(data);
	tg_finish(ctx);
	return 0;
}

/* ---- many at once ---- */

/* More bytes than one peer may leave unread: the caller waits for room,
 * and so do the handlers. All of it arrives. */
TG_TEST(many__at_once_both_ways, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int nr = tg_is_shm() ? 24 : 6;
	size_t n = tg_is_shm() && !SANITIZED ? 16 * MIB : 300 * KIB;
	struct rref_future *f[24];
	unsigned char *data = filled(n + 24, (unsigned)rank);

	tg_meet_serving(ctx, 0);
	/* Make the session first: without a poller no handshake goes on
	 * while memory is filled for seconds. */
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 3);
	for (int i = 0; i < nr; i++) {
		struct rref_args a = bytes(data + i, n);

		/* Too much for the other's memory is an error that ends
		 * nothing: later there is room again. */
		for (;;) {
			TG_OK(rref_rpc_async(ctx, 1 - rank, i & 1 ? "tg.echo" : "tg.echo_inline",
					     &a, RREF_DEFAULT, &f[i]));
			TG_CHECK(tg_stats(ctx).payload_bytes <=
				 2 * (uint64_t)RREF_ARGS_MAX + 64 * MIB);
			if (!rref_future_test(f[i]) || rref_future_wait(f[i], 0) != -EAGAIN)
				break;
			rref_future_free(f[i]);
		}
	}
	for (int i = 0; i < nr; i++) {
		int err = rref_future_wait(f[i], RREF_DEFAULT);

		while (err == -EAGAIN) {
			struct rref_args a = bytes(data + i, n);

			rref_future_free(f[i]);
			TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", &a, RREF_DEFAULT, &f[i]));
			err = rref_future_wait(f[i], RREF_DEFAULT);
		}
		TG_OK(err);
		expect_result(f[i], data + i, n);
		rref_future_free(f[i]);
	}
	free(data);
	tg_meet_serving(ctx, 1);
	until_nothing_is_left(ctx, 1 - rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

/* Memory is missing at the caller, at the callee, and for the result on either side. Each time an
 * error comes, and the calls go on. */
TG_TEST(memory__missing, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	size_t n = 24 * MIB;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.region_bytes = 2 * MIB;
	if (rank == 0)
		o.max_value_bytes = o.max_landing_bytes = 64 * MIB;
	else
		o.max_value_bytes = o.max_landing_bytes = 12 * MIB;
	TG_OK(rref_init(&o, &ctx));
	tg_meet_serving(ctx, 0);
	unsigned char *data = filled(n, 1);
	struct rref_args big = bytes(data, n), small = bytes(data, 5000);
	struct rref *r = NULL, *refs[20];
	struct rref_future *f;

	for (size_t i = 0; i < array_size(refs); i++)
		TG_OK(rref_new(ctx, "r", 1, &refs[i]));
	if (rank == 0) {
		big.refs = refs;
		big.nr_refs = array_size(refs);
		/* The callee cannot take the payload: the references
		 * shared with it are taken back. */
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", &big, RREF_DEFAULT, NULL), -ENOMEM);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &small, RREF_DEFAULT, &f));
		expect_result(f, data, 5000);
		rref_future_free(f);
		TG_OK(rref_remote(ctx, 1, "tg.echo", &big, RREF_DEFAULT, &r));
		struct rref_view *v;

		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -ENOMEM);
		rref_release(r);
	} else {
		/* The same on this worker. */
		TG_IS(rref_rpc_async(ctx, 0, "tg.echo", &big, RREF_DEFAULT, &f), -ENOMEM);
		TG_TEXT("25165824");
		TG_OK(rref_rpc_sync(ctx, 0, "tg.echo", &small, RREF_DEFAULT, &f));
		expect_result(f, data, 5000);
		rref_future_free(f);
	}
	for (size_t i = 0; i < array_size(refs); i++)
		rref_release(refs[i]);
	free(data);
	tg_meet_serving(ctx, 1);
	until_nothing_is_left(ctx, 1 - rank);
	tg_until_clean(ctx, 1 - rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

static int large_result(struct rref_call *call, void *arg)
{
	unsigned char *data = filled(24 * MIB, 8);
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *refs[20];
	struct rref_args a = {
		.data = data, .length = 24 * MIB, .refs = refs, .nr_refs = array_size(refs)
	};
	int err;

	(void)arg;
	for (size_t i = 0; i < array_size(refs); i++)
		TG_OK(rref_new(ctx, "r", 1, &refs[i]));
	err = rref_call_reply(call, &a);
	for (size_t i = 0; i < array_size(refs); i++)
		rref_release(refs[i]);
	free(data);
	return err;
}

/* The caller has no memory for the result. Its future says so, and the
 * callee gets its own memory and references back. */
TG_TEST(memory__for_the_result, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref_future *f;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.region_bytes = 2 * MIB;
	if (rank == 0)
		o.max_landing_bytes = 12 * MIB;
	TG_OK(rref_init(&o, &ctx));
	add(ctx, "large_result", large_result, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref_error e = { .size = sizeof(e) };

		TG_OK(rref_rpc_async(ctx, 1, "large_result", NULL, RREF_DEFAULT, &f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENOMEM);
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(strstr(e.text, "the result"));
		rref_future_free(f);
		until_nothing_is_left(ctx, 1);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(contents__every_size_and_way),
		cmocka_unit_test(contents__the_largest),
		cmocka_unit_test(references__as_many_as_there_may_be),
		cmocka_unit_test(metadata__travels_with_the_call),
		cmocka_unit_test(many__at_once_both_ways),
		cmocka_unit_test(memory__missing),
		cmocka_unit_test(memory__for_the_result),
	};

	return cmocka_run_group_tests_name("payload", tests, NULL, NULL);
}
