/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose arguments or results do not fit a message:
 * contents, many at once, time-outs, deaths; and metadata. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/wire/wire.h"
#include "tg_death.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* The largest payload of a test: all of it only where copying it is quick. */
static size_t largest(void)
{
	return tg_is_shm() && !SANITIZED ? (size_t)RREF_ARGS_MAX : 4 * MIB;
}

static struct rref_args bytes(const void *data, size_t length)
{
	return (struct rref_args){ .data = data, .length = length };
}

static void add(struct rref_ctx *ctx, const char *name, rref_handler handler, unsigned flags)
{
	struct rref_function f = { .name = name, .handler = handler, .flags = flags };

	TG_OK(rref_register(ctx, &f));
}

static unsigned char *filled(size_t length, unsigned seed)
{
	unsigned char *p = malloc(length ? length : 1);

	TG_CHECK(p);
	tg_fill(p, length, seed);
	return p;
}

static void expect_result(struct rref_future *f, const void *want, size_t length)
{
	const void *data;
	size_t n;

	TG_OK(rref_future_data(f, &data, &n));
	TG_IS(n, length);
	TG_CHECK(!n || memcmp(data, want, n) == 0);
}

static bool nothing_offered(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	return !s.payload_bytes && !s.value_bytes && !s.quarantined && !s.landing_bytes;
}

/* No payload, value or landing buffer is left here, nor at the other worker. */
static void until_nothing_is_left(struct rref_ctx *ctx, int other)
{
	int64_t end = tg_deadline();

	TG_CHECK(tg_eventually(nothing_offered, ctx, NULL));
	for (;;) {
		struct rref_stats s = tg_stats_of(ctx, other);

		if (!s.payload_bytes && !s.value_bytes && !s.quarantined && !s.landing_bytes)
			return;
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
}

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

/* Both ways, with the callee on the pool and inline, elsewhere
 * and here, waited for, not, and as a creation. */
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
	/* Before it joins: in manual mode nobody would answer those who connect meanwhile. */
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
		/* By READ, not by messages: a handful of these. */
		TG_CHECK(s.messages_sent - before.messages_sent < 40);
		TG_CHECK(s.read_bytes - before.read_bytes >= n + n / 8);
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

/* All references that a call may have: they go by the payload too, both ways. */
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

/* More than one peer may leave unread: the caller waits for
 * room, the handlers too, and all of it arrives. */
TG_TEST(many__at_once_both_ways, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int nr = tg_is_shm() ? 24 : 6;
	size_t n = tg_is_shm() && !SANITIZED ? 16 * MIB : 300 * KIB;
	struct rref_future *f[24];
	unsigned char *data = filled(n + 24, (unsigned)rank);

	tg_meet_serving(ctx, 0);
	/* The session first: filling memory for seconds is no
	 * time to shake hands in, without a poller. */
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 3);
	for (int i = 0; i < nr; i++) {
		struct rref_args a = bytes(data + i, n);

		/* Too much for the other's memory is not an error
		 * that ends anything: later there is room again. */
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

/* No memory for it, at the caller, the callee, for the result
 * there and here: an error each, and the calls go on. */
TG_TEST(memory__that_is_not_there, 2)
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
		/* The callee cannot take it: the references shared with it are taken back. */
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", &big, RREF_DEFAULT, NULL), -ENOMEM);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &small, RREF_DEFAULT, &f));
		expect_result(f, data, 5000);
		rref_future_free(f);
		TG_OK(rref_remote(ctx, 1, "tg.echo", &big, RREF_DEFAULT, &r));
		struct rref_view *v;

		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -ENOMEM);
		rref_release(r);
	} else {
		/* Not even here. */
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

/* The caller has no memory for the result: its future says so,
 * and the callee has its own memory and references back. */
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

/* ---- giving up ---- */

/* Calls by how they are given up. For each way, how many began, and how many heard of it. */
enum way { CALL_TIMES_OUT, CALL_IS_CANCELLED, CREATION_TIMES_OUT, CALL_HERE_TIMES_OUT, NR_WAYS };

static _Atomic int *begun(enum way w)
{
	return (_Atomic int *)(void *)tg_current->shared->bytes + w;
}

static _Atomic int *heard(enum way w)
{
	return begun(w) + NR_WAYS;
}

/* Waits until its caller gave up. The argument is the way of that. */
static int until_cancelled(struct rref_call *call, void *arg)
{
	int64_t end = tg_deadline();
	enum way w;

	(void)arg;
	TG_IS(rref_call_length(call), sizeof(w));
	memcpy(&w, rref_call_data(call), sizeof(w));
	atomic_fetch_add(begun(w), 1);
	while (!rref_call_cancelled(call)) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
	atomic_fetch_add(heard(w), 1);
	/* Nobody wants it: it goes all the same, and comes to nothing. */
	unsigned char *data = filled(100000, 1);
	struct rref_args a = bytes(data, 100000);
	int err = rref_call_reply(call, &a);

	free(data);
	return err;
}

static bool was_begun(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(begun(*(enum way *)arg)) > 0;
}

static bool all_heard(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	(void)arg;
	for (enum way w = 0; w < NR_WAYS; w++) {
		if (!atomic_load(begun(w)) || atomic_load(heard(w)) != atomic_load(begun(w)))
			return false;
	}
	return true;
}

/* One call that is given up in this way. A short time may be over before its handler is begun. */
static void give_up(struct rref_ctx *ctx, enum way w)
{
	struct rref_args a = bytes(&w, sizeof(w));
	struct rref_future *f;
	struct rref *r;

	switch (w) {
	case CALL_TIMES_OUT:
	case CALL_HERE_TIMES_OUT:
		TG_IS(rref_rpc_sync(ctx, w == CALL_TIMES_OUT, "until_cancelled", &a,
				    50 * NSEC_PER_MSEC, NULL), -ETIMEDOUT);
		break;
	case CALL_IS_CANCELLED:
		TG_OK(rref_rpc_async(ctx, 1, "until_cancelled", &a, RREF_FOREVER, &f));
		TG_CHECK(tg_eventually(was_begun, ctx, &w));
		TG_OK(rref_future_cancel(f));
		rref_future_free(f);
		break;
	default:
		TG_OK(rref_remote(ctx, 1, "until_cancelled", &a, 50 * NSEC_PER_MSEC, &r));
		TG_OK(rref_creation(r, &f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ETIMEDOUT);
		rref_future_free(f);
		rref_release(r);
	}
}

/* Time-out, cancel, both of a call and a creation: the handler can know. */
TG_TEST(cancelled__the_handler_can_ask, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	add(ctx, "until_cancelled", until_cancelled, 0);
	tg_meet_serving(ctx, 0);
	for (enum way w = 0; rank == 0 && w < NR_WAYS; w++) {
		while (!was_begun(ctx, &w)) {
			TG_CHECK(now_ns() < tg_deadline());
			give_up(ctx, w);
		}
	}
	/* Each handler that was begun hears of it, however often the caller tried. */
	TG_CHECK(tg_eventually(all_heard, ctx, NULL));
	TG_IS(rref_call_cancelled(NULL), -EINVAL);
	tg_meet_serving(ctx, 1);
	until_nothing_is_left(ctx, 1 - rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

/* The caller gives up before there is a session: the call was never sent, and is taken back. */
TG_TEST(cancelled__before_there_is_a_session, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	add(ctx, "until_cancelled", until_cancelled, 0);
	tg_meet(0); /* not by messages */
	if (rank == 0) {
		tg_stop_worker(1);
		give_up(ctx, CALL_TIMES_OUT);
		TG_IS(tg_stats(ctx).sessions, 0);
		tg_continue_worker(1);
		/* Behind it, on the same connection, comes what is sent now. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	}
	tg_meet_serving(ctx, 1);
	TG_IS(atomic_load(begun(CALL_TIMES_OUT)), 0);
	until_nothing_is_left(ctx, 1 - rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

/* Calls that end by their time-out at any moment of the READs
 * of their payloads: all memory comes back. */
TG_TEST(timeout__in_the_middle_of_a_read, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	size_t n = tg_is_shm() ? (SANITIZED ? 4 * MIB : 32 * MIB) : MIB;

	if (rank == 0) {
		unsigned char *data = filled(n, 2);
		struct rref_args a = bytes(data, n);
		int gone = 0, good = 0;

		for (int i = 0; i < tg_scale(60); i++) {
			int64_t timeout = (i % 20 + 1) * (tg_is_shm() ? 1 : 20) * NSEC_PER_MSEC;
			struct rref_future *f;
			int err = rref_rpc_async(ctx, 1, "tg.echo", &a, timeout, &f);

			if (err == -EAGAIN) {
				gone++; /* the bytes that were given up before still lie there */
				continue;
			}
			TG_OK(err);
			err = rref_future_wait(f, RREF_DEFAULT);
			TG_CHECK(err == 0 || err == -ETIMEDOUT || err == -EAGAIN);
			if (!err)
				expect_result(f, data, n);
			gone += err != 0;
			good += err == 0;
			rref_future_free(f);
		}
		/* However it went: the next one is served, and nothing stays behind. */
		struct rref_future *f;

		until_nothing_is_left(ctx, 1);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &a, RREF_DEFAULT, &f));
		expect_result(f, data, n);
		rref_future_free(f);
		TG_CHECK(gone + good == tg_scale(60));
		free(data);
		until_nothing_is_left(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- deaths ---- */

static bool peer_is_dead(struct rref_ctx *ctx, void *arg)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, *(int *)arg, &w));
	return !w.alive;
}

/* The one who reads, or the one who is read from, is killed at
 * any moment: the other goes on with all of its memory. */
static int killed(int rank, void *arg)
{
	bool caller_dies = arg;
	struct rref_ctx *ctx = tg_join(rank);
	size_t n = tg_is_shm() ? (SANITIZED ? MIB : 16 * MIB) : 512 * KIB;
	unsigned char *data = filled(n, 4);
	struct rref_args a = bytes(data, n);
	int mortal = caller_dies ? 1 : 2, other = 3 - mortal;

	if (rank == 0) {
		/* Not concerned: sees to the killing, and calls the survivor all the while. */
		struct rref_future *f;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < 3; i++)
			TG_OK(rref_rpc_sync(ctx, other, "tg.echo", &a, RREF_DEFAULT, NULL));
		kill(tg_current->shared->pid[mortal], SIGKILL);
		TG_OK(rref_rpc_sync(ctx, other, "tg.echo", &a, RREF_DEFAULT, &f));
		expect_result(f, data, n);
		rref_future_free(f);
		tg_set_flag(1, 1);
	} else if (rank == 1) {
		/* The caller: as many as there is room for, for ever. */
		struct rref_future *f[4] = { NULL };
		int err = 0;

		for (unsigned i = 0; err == 0 || err == -EAGAIN; i = (i + 1) % 4) {
			if (f[i]) {
				err = rref_future_wait(f[i], RREF_DEFAULT);
				if (!err)
					expect_result(f[i], data, n);
				rref_future_free(f[i]);
				f[i] = NULL;
				tg_set_flag(0, 1);
			}
			if (!err)
				err = rref_rpc_async(ctx, 2, i & 1 ? "tg.echo" : "tg.echo_inline",
						     &a, RREF_DEFAULT, &f[i]);
		}
		TG_IS(err, -EOWNERDEAD);
		for (int i = 0; i < 4; i++) {
			/* Payloads that were complete before it died stay so. */
			err = f[i] ? rref_future_wait(f[i], RREF_DEFAULT) : -EOWNERDEAD;
			TG_CHECK(err == -EOWNERDEAD || err == 0 || err == -EAGAIN);
			rref_future_free(f[i]);
		}
	} else {
		tg_wait_flag_serving(ctx, 1, 1);
	}
	tg_wait_flag_serving(ctx, 1, 1);
	TG_CHECK(rank == 0 || tg_eventually(peer_is_dead, ctx, &mortal));
	TG_CHECK(tg_eventually(nothing_offered, ctx, NULL));
	free(data);
	rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	rref_free_ctx(ctx);
	return 0;
}

static void death__of_the_caller(void **state)
{
	struct tg_group g = { .world = 3, .expect_killed = { [1] = 1 } };

	(void)state;
	for (int i = 0; i < (tg_is_shm() ? 5 : 1); i++)
		assert_int_equal(tg_run_group(&g, killed, (void *)1), 0);
}

static void death__of_the_callee(void **state)
{
	struct tg_group g = { .world = 3, .expect_killed = { [2] = 1 } };

	(void)state;
	for (int i = 0; i < (tg_is_shm() ? 5 : 1); i++)
		assert_int_equal(tg_run_group(&g, killed, NULL), 0);
}

/* A shutdown NOW in the middle of everything: every future completes, nothing is left. */
TG_TEST(shutdown__now, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	size_t n = tg_is_shm() ? (SANITIZED ? MIB : 8 * MIB) : 512 * KIB;
	unsigned char *data = filled(n, 4);
	struct rref_args a = bytes(data, n);
	struct rref_future *f[16];

	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 16; i++)
		TG_OK(rref_rpc_async(ctx, i & 1 ? rank : 1 - rank,
				     i & 2 ? "tg.echo" : "tg.echo_inline", &a, RREF_DEFAULT,
				     &f[i]));
	if (rank == 0)
		/* with any status: it may have met the other's end */
		rref_future_wait(f[0], RREF_DEFAULT);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	for (int i = 0; i < 16; i++) {
		TG_CHECK(rref_future_test(f[i]));
		struct rref_error e = { .size = sizeof(e) };

		TG_OK(rref_future_error(f[i], &e));
		if (!e.err)
			expect_result(f[i], data, n);
		rref_future_free(f[i]);
	}
	TG_CHECK(nothing_offered(ctx, NULL));
	free(data);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- nested calls ---- */

static int nest(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref_args a = bytes(rref_call_data(call), rref_call_length(call));
	struct rref_future *f;
	int32_t *depth, left;
	int err;

	(void)arg;
	memcpy(&left, a.data, sizeof(left));
	if (left == 0)
		return rref_call_reply(call, &a);
	depth = malloc(a.length);
	TG_CHECK(depth);
	memcpy(depth, a.data, a.length);
	*depth = left - 1;
	a.data = depth;
	err = rref_rpc_sync(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), "nest", &a,
			    RREF_DEFAULT, &f);
	if (err) {
		err = rref_call_error(call, err, "%s", rref_last_error());
	} else {
		const void *data;
		size_t n;

		TG_OK(rref_future_data(f, &data, &n));
		a = bytes(data, n);
		err = rref_call_reply(call, &a);
		rref_future_free(f);
	}
	free(depth);
	return err;
}

static int32_t deep(void)
{
#if defined(__SANITIZE_THREAD__)
	return 300;
#else
	return tg_is_shm() ? 3000 : 300;
#endif
}

/* A to B to A to B ..., and all of it on oneself: far deeper
 * than there are threads for at first. */
TG_TEST(nested__deeper_than_any_pool, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		int32_t depth = deep();
		struct rref_args a = bytes(&depth, sizeof(depth));
		struct rref_future *f;
		int32_t got = -1;

		TG_OK(rref_rpc_sync(ctx, 1, "nest", &a, RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, 0);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(nested__on_oneself, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	int32_t depth = deep() / 2;
	struct rref_args a = bytes(&depth, sizeof(depth));

	add(ctx, "nest", nest, 0);
	TG_OK(rref_rpc_sync(ctx, 0, "nest", &a, RREF_DEFAULT, NULL));
	tg_finish(ctx);
	return 0;
}

/* With payloads: the payloads of all levels are there at once. */
TG_TEST(nested__with_large_arguments, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int32_t *data = calloc(1, 64 * KIB);

	add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	*data = tg_is_shm() ? 200 : 20;
	if (rank == 0) {
		struct rref_args a = bytes(data, 64 * KIB);

		TG_OK(rref_rpc_sync(ctx, 1, "nest", &a, RREF_DEFAULT, NULL));
		until_nothing_is_left(ctx, 1);
	}
	free(data);
	tg_finish(ctx);
	return 0;
}

/* Deeper than there may be threads: an error that says so, at once, and not a stand-still. */
TG_TEST(nested__deeper_than_allowed, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.max_waiting = 30;
	TG_OK(rref_init(&o, &ctx));
	add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	for (int round = 0; rank == 0 && round < 3; round++) {
		int32_t depth = 200;
		struct rref_args a = bytes(&depth, sizeof(depth));

		TG_IS(rref_rpc_sync(ctx, 1, "nest", &a, RREF_FOREVER, NULL), -EAGAIN);
		TG_TEXT("no thread for the call");
		/* The refusal was of that call, and of no later one. */
		for (int i = 0; i < 40; i++) {
			TG_OK(rref_rpc_sync(ctx, 1, i % 2 ? "tg.echo" : "tg.echo_inline", &a,
					    RREF_FOREVER, NULL));
			TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_FOREVER, NULL));
		}
		depth = 40;
		TG_OK(rref_rpc_sync(ctx, 1, "nest", &a, RREF_FOREVER, NULL));
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
		cmocka_unit_test(memory__that_is_not_there),
		cmocka_unit_test(memory__for_the_result),
		cmocka_unit_test(cancelled__the_handler_can_ask),
		cmocka_unit_test(cancelled__before_there_is_a_session),
		cmocka_unit_test(timeout__in_the_middle_of_a_read),
		cmocka_unit_test(death__of_the_caller),
		cmocka_unit_test(death__of_the_callee),
		cmocka_unit_test(shutdown__now),
		cmocka_unit_test(nested__deeper_than_any_pool),
		cmocka_unit_test(nested__on_oneself),
		cmocka_unit_test(nested__with_large_arguments),
		cmocka_unit_test(nested__deeper_than_allowed),
	};

	return cmocka_run_group_tests_name("payload", tests, NULL, NULL);
}
