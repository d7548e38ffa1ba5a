/* SPDX-License-Identifier: Apache-2.0 */
/* References: made, shared, read, released; what they say of themselves; and that nothing remains. */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

#define MS NSEC_PER_MSEC

static struct rref_args *with(struct rref **refs, size_t nr)
{
	static _Thread_local struct rref_args a;

	a = (struct rref_args){ .refs = refs, .nr_refs = nr };
	return &a;
}

static struct rref *remote(struct rref_ctx *ctx, int to, const char *function, const void *data, size_t length)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function, &(struct rref_args){ .data = data, .length = length }, RREF_DEFAULT, &r));
	return r;
}

static bool nothing_in_flight(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).ops_in_flight == 0;
}

static void expect_error(struct rref *r, int err, const char *text)
{
	struct rref_view *v = NULL;

	TG_IS(rref_to_here(r, RREF_DEFAULT, &v), err);
	TG_CHECK(!v);
	TG_TEXT(text);
}

/*
 * A worker that publishes: "pub.make" makes a value of the size asked for (size_t, unsigned seed) and keeps it, and
 * answers with a reference to it; "pub.drop" gives it up. "pub.alloc" the same, but to be set by "pub.set" or "pub.fail".
 */
static struct rref *published;
static void *filling;
static size_t filling_length;

struct make {
	size_t length;
	unsigned seed;
	int32_t err;
};

static int answer_published(struct rref_call *call)
{
	int err = rref_call_reply(call, with(&published, 1));

	return err ? rref_call_error(call, err, "%s", rref_last_error()) : 0;
}

static int pub_make(struct rref_call *call, void *arg)
{
	const struct make *m = rref_call_data(call);
	void *data;
	int err;

	(void)arg;
	rref_release(published);
	published = NULL;
	err = rref_alloc(rref_call_context(call), m->length, &published, &data);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	tg_fill(data, m->length, m->seed);
	TG_OK(rref_set(published));
	return answer_published(call);
}

static int pub_alloc(struct rref_call *call, void *arg)
{
	const struct make *m = rref_call_data(call);

	(void)arg;
	rref_release(published);
	TG_OK(rref_alloc(rref_call_context(call), m->length, &published, &filling));
	filling_length = m->length;
	return answer_published(call);
}

static int pub_set(struct rref_call *call, void *arg)
{
	const struct make *m = rref_call_data(call);

	(void)arg;
	tg_fill(filling, filling_length, m->seed);
	TG_OK(rref_set(published));
	return rref_call_reply(call, NULL);
}

static int pub_fail(struct rref_call *call, void *arg)
{
	const struct make *m = rref_call_data(call);

	(void)arg;
	TG_OK(rref_set_error(published, m->err, "no value:\nit failed"));
	return rref_call_reply(call, NULL);
}

static int pub_get(struct rref_call *call, void *arg)
{
	(void)arg;
	return answer_published(call);
}

static int pub_drop(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	rref_release(published);
	published = NULL;
	return 0;
}

/* What the first reference of its arguments says of itself, while the handler runs. */
struct said {
	int32_t confirmed, is_owner, owner, reads;
	struct rref_id id;
};

static int inspect(struct rref_call *call, void *arg)
{
	struct rref *r = rref_call_ref(call, 0);
	struct said s = { rref_confirmed(r), rref_is_owner(r), rref_owner(r), 0, rref_get_id(r) };
	struct rref_view *v;

	(void)arg;
	TG_CHECK(rref_context(r) == rref_call_context(call));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	s.reads = *(const unsigned char *)rref_view_data(v);
	rref_view_free(v);
	return rref_call_reply(call, &(struct rref_args){ .data = &s, .length = sizeof(s) });
}

/* Keeps its first reference beyond the call; pub.drop ends it. */
static int keep(struct rref_call *call, void *arg)
{
	(void)arg;
	rref_release(published);
	published = rref_dup(rref_call_ref(call, 0));
	return 0;
}

/* Hands its references on to the next worker, `hops` times, and answers with the last one's sum. */
static int hand_on(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *refs[RREF_REFS_MAX];
	struct rref_future *f;
	int32_t hops;
	unsigned sum;
	int err;

	(void)arg;
	memcpy(&hops, rref_call_data(call), sizeof(hops));
	hops--;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++)
		refs[i] = rref_call_ref(call, i);
	err = rref_rpc_sync(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), hops ? "hand_on" : "tg.read",
			    &(struct rref_args){ .data = &hops, .length = sizeof(hops), .refs = refs,
						 .nr_refs = rref_call_nr_refs(call) }, RREF_DEFAULT, &f);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	tg_result(f, &sum, sizeof(sum));
	rref_future_free(f);
	return rref_call_reply(call, &(struct rref_args){ .data = &sum, .length = sizeof(sum) });
}

/* Creates on the next worker, reads it there, and answers with the reference. */
static int fetch_from_next(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *r = remote(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), "tg.echo", rref_call_data(call),
				rref_call_length(call));
	int err;

	(void)arg;
	tg_expect_bytes(r, rref_call_data(call), rref_call_length(call));
	err = rref_call_reply(call, with(&r, 1));
	rref_release(r);
	return err;
}

static const struct rref_function functions[] = {
	{ .name = "pub.make", .handler = pub_make },
	{ .name = "pub.alloc", .handler = pub_alloc },
	{ .name = "pub.set", .handler = pub_set },
	{ .name = "pub.fail", .handler = pub_fail },
	{ .name = "pub.get", .handler = pub_get },
	{ .name = "pub.drop", .handler = pub_drop },
	{ .name = "inspect", .handler = inspect },
	{ .name = "keep", .handler = keep },
	{ .name = "hand_on", .handler = hand_on },
	{ .name = "fetch_from_next", .handler = fetch_from_next },
};

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (size_t i = 0; i < array_size(functions); i++)
		TG_OK(rref_register(ctx, &functions[i]));
	tg_meet_serving(ctx, 15); /* nobody calls before everybody can serve */
	return ctx;
}

/* Calls function with m on worker `to`; returns the first reference of the result, or NULL. */
static struct rref *ask(struct rref_ctx *ctx, int to, const char *function, struct make m)
{
	struct rref_future *f;
	struct rref *r = NULL;

	TG_OK(rref_rpc_sync(ctx, to, function, &(struct rref_args){ .data = &m, .length = sizeof(m) }, RREF_DEFAULT, &f));
	if (rref_future_nr_refs(f) > 0)
		TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	return r;
}

static unsigned sum_there(struct rref_ctx *ctx, int to, struct rref **refs, size_t nr)
{
	struct rref_future *f;
	unsigned sum;

	TG_OK(rref_rpc_sync(ctx, to, "tg.read", with(refs, nr), RREF_DEFAULT, &f));
	tg_result(f, &sum, sizeof(sum));
	rref_future_free(f);
	return sum;
}

static void all_clean(struct rref_ctx *ctx)
{
	for (int i = 0; i < rref_world_size(ctx); i++)
		tg_until_clean(ctx, i);
	TG_CHECK(tg_eventually(nothing_in_flight, ctx, NULL));
	TG_IS(tg_stats(ctx).landing_bytes, 0);
}

/* ---- making and reading ---- */

TG_TEST(create__on_self_and_read, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_view *v, *w;
	struct rref *r;

	TG_OK(rref_new(ctx, "value", 5, &r));
	TG_IS(tg_stats(ctx).owners, 1);
	TG_IS(tg_stats(ctx).value_bytes, 64 + 5);
	tg_expect_bytes(r, "value", 5);
	TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
	TG_OK(rref_to_here(r, 0, &w));
	/* Aliases: no copy was made. */
	TG_CHECK(rref_view_data(v) == rref_view_data(w));
	TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
	TG_IS(tg_stats(ctx).reads, 0);
	TG_IS(tg_stats(ctx).messages_sent, 0);
	TG_IS(tg_stats(ctx).landing_bytes, 0);
	rref_release(r);
	/* An alias outlives the reference. */
	TG_CHECK(memcmp(rref_view_data(v), "value", 5) == 0);
	rref_view_free(v);
	rref_view_free(w);
	tg_until_clean(ctx, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(create__empty_value, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_view *v;
	struct rref *r;

	if (rank == 0) {
		TG_OK(rref_new(ctx, NULL, 0, &r));
		tg_expect_bytes(r, "", 0);
		rref_release(r);
		r = remote(ctx, 1, "tg.nothing", NULL, 0);
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), 0);
		rref_view_free(v);
		rref_release(r);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(create__ten_then_read_in_any_order, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r[10];

	for (int i = 0; i < 10; i++)
		r[i] = remote(ctx, 1 - rank, "tg.echo", &i, sizeof(i));
	for (int i = 0; i < 10; i++) {
		int k = i * 7 % 10;

		tg_expect_bytes(r[k], &k, sizeof(k));
	}
	for (int i = 0; i < 10; i++)
		rref_release(r[i]);
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

/* A read of a ready value is one READ and no message, in either direction. */
TG_TEST(read__of_a_ready_value_is_one_read_and_no_message, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = ask(ctx, 1, "pub.make", (struct make){ .length = 1000, .seed = 3 });
		struct rref_stats before, after;
		struct rref_view *v;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v)); /* the first may have to wait for the connection */
		rref_view_free(v);
		before = tg_stats(ctx);
		for (int i = 0; i < 10; i++) {
			TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
			TG_CHECK(rref_view_length(v) == 1000 && tg_filled(rref_view_data(v), 1000, 0, 3));
			TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
			rref_view_free(v);
		}
		after = tg_stats(ctx);
		TG_IS(after.reads - before.reads, 10);
		TG_IS(after.read_bytes - before.read_bytes, 10 * 1000);
		TG_IS(after.doorbells - before.doorbells, 10);
		TG_IS(after.messages_sent - before.messages_sent, 0);
		TG_IS(after.messages_received - before.messages_received, 0);
		rref_release(r);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(read__async_many_at_once, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = ask(ctx, 1, "pub.make", (struct make){ .length = 300, .seed = 9 });
		size_t n = (size_t)tg_scale(2000);
		struct rref_future **f = calloc(n, sizeof(struct rref_future *));

		for (size_t i = 0; i < n; i++)
			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f[i]));
		rref_release(r); /* the reads hold it */
		for (size_t i = 0; i < n; i++) {
			struct rref_view *v;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_view(f[i], &v));
			TG_CHECK(rref_view_length(v) == 300 && tg_filled(rref_view_data(v), 300, 0, 9));
			rref_view_free(v);
			rref_future_free(f[i]);
		}
		free(f);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(read__ranges, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		static const size_t length = 10000;
		static unsigned char buf[10064];
		static const struct {
			size_t offset, length, got;
		} ranges[] = {
			{ 0, 10000, 10000 }, { 0, 1, 1 }, { 9999, 1, 1 }, { 1, 9999, 9999 }, { 4321, 1234, 1234 },
			{ 0, 0, 0 }, { 5000, 0, 0 }, { 9990, 64, 10 }, { 10000, 10, 0 }, { 10001, 10, 0 },
			{ SIZE_MAX, 10, 0 }, { 5000, 10064, 5000 }, { SIZE_MAX - 5, 64, 0 }, { 64, 64, 64 }, { 0, 10064, 10000 },
		};
		struct rref *there = ask(ctx, 1, "pub.make", (struct make){ .length = length, .seed = 5 });
		struct rref *here;
		void *data;
		size_t got;

		TG_OK(rref_alloc(ctx, length, &here, &data));
		tg_fill(data, length, 5);
		TG_OK(rref_set(here));
		for (int where = 0; where < 2; where++)
			for (size_t i = 0; i < array_size(ranges); i++) {
				memset(buf, 0xAA, sizeof(buf));
				got = 4711;
				TG_OK(rref_to_here_into(where ? there : here, ranges[i].length ? buf : NULL, ranges[i].offset,
							ranges[i].length, RREF_DEFAULT, &got));
				TG_IS(got, ranges[i].got);
				TG_CHECK(tg_filled(buf, got, ranges[i].offset, 5));
				/* Nothing beyond. */
				for (size_t k = got; k < sizeof(buf); k++)
					TG_IS(buf[k], 0xAA);
			}
		TG_IS(rref_to_here_into(there, NULL, 0, 1, RREF_DEFAULT, &got), -EINVAL);
		TG_IS(rref_to_here_into(there, buf, 0, 1, RREF_DEFAULT, NULL), -EINVAL);
		rref_release(here);
		rref_release(there);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(read__batch_over_three_owners_some_failed, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		size_t n = (size_t)tg_scale(1000), bad = 0;
		struct rref **r = calloc(n, sizeof(struct rref *));
		struct rref_view **v = calloc(n, sizeof(struct rref_view *));
		int *status = calloc(n, sizeof(int));

		for (size_t i = 0; i < n; i++)
			r[i] = remote(ctx, (int)(i % 3), i % 10 == 7 ? "no.such" : "tg.echo", &i, sizeof(i));
		for (int again = 0; again < 2; again++) {
			bad = 0;
			memset(status, 0x55, n * sizeof(int));
			int good = rref_to_here_batch(r, n, RREF_DEFAULT, v, status);

			for (size_t i = 0; i < n; i++) {
				if (i % 10 == 7) {
					TG_IS(status[i], -ENOSYS);
					TG_CHECK(!v[i]);
					bad++;
					continue;
				}
				TG_IS(status[i], 0);
				TG_CHECK(rref_view_length(v[i]) == sizeof(i) && memcmp(rref_view_data(v[i]), &i, sizeof(i)) == 0);
				rref_view_free(v[i]);
			}
			TG_IS(good, (long)(n - bad));
		}
		for (size_t i = 0; i < n; i++)
			rref_release(r[i]);
		free(r);
		free(v);
		free(status);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(read__batch_odd_elements, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *mine, *theirs = remote(ctx, 1, "tg.echo", "t", 1), *held = remote(ctx, 1, "tg.hold", "h", 1);
		struct rref_view *v[5];
		int status[5];

		TG_OK(rref_new(ctx, "m", 1, &mine));
		struct rref *r[5] = { mine, NULL, theirs, held, theirs };

		TG_IS(rref_to_here_batch(r, 5, 300 * MS, v, status), 3);
		TG_CHECK(status[0] == 0 && status[1] == -EINVAL && status[2] == 0 && status[3] == -ETIMEDOUT && status[4] == 0);
		TG_CHECK(!v[1] && !v[3]);
		for (int i = 0; i < 5; i++)
			rref_view_free(v[i]);
		TG_IS(rref_to_here_batch(NULL, 5, 0, v, status), -EINVAL);
		TG_IS(rref_to_here_batch(r, 5, 0, NULL, status), -EINVAL);
		TG_IS(rref_to_here_batch(r, 5, 0, v, NULL), -EINVAL);
		TG_IS(rref_to_here_batch(r, 0, 0, v, status), 0);
		TG_IS(rref_to_here_batch((struct rref *[]){ NULL }, 1, 0, v, status), -EINVAL);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_IS(rref_to_here_batch(r + 3, 1, RREF_DEFAULT, v, status), 1);
		rref_view_free(v[0]);
		rref_release(mine);
		rref_release(theirs);
		rref_release(held);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- in place: alloc, set, set_error ---- */

TG_TEST(alloc__filled_in_place_and_set, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_view *v;
	struct rref *r;
	void *data;

	if (rank == 0) {
		TG_OK(rref_alloc(ctx, 5000, &r, &data));
		TG_IS((uintptr_t)data % 64, 0);
		TG_IS(tg_stats(ctx).owners, 1);
		tg_fill(data, 5000, 1);
		TG_OK(rref_set(r));
		TG_OK(rref_local_value(r, 0, &v));
		TG_CHECK(rref_view_data(v) == data);
		rref_view_free(v);
		TG_IS(sum_there(ctx, 1, &r, 1), tg_byte(0, 1));
		rref_release(r);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(set__twice_or_by_another, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r, *theirs;
		void *data;

		TG_OK(rref_alloc(ctx, 4, &r, &data));
		memcpy(data, "set!", 4);
		TG_OK(rref_set(r));
		TG_IS(rref_set(r), -EALREADY);
		TG_IS(rref_set_error(r, -EIO, "no"), -EALREADY);
		tg_expect_bytes(r, "set!", 4);
		rref_release(r);
		TG_OK(rref_alloc(ctx, 4, &r, &data));
		TG_IS(rref_set_error(r, 0, "no"), -EINVAL);
		TG_IS(rref_set_error(r, 5, "no"), -EINVAL);
		TG_IS(rref_set_error(r, -100000, "no"), -EINVAL);
		TG_OK(rref_set_error(r, -EIO, "broken"));
		TG_IS(rref_set(r), -EALREADY);
		TG_IS(rref_set_error(r, -EIO, "no"), -EALREADY);
		expect_error(r, -EIO, "broken");
		rref_release(r);
		TG_OK(rref_new(ctx, "n", 1, &r));
		TG_IS(rref_set(r), -EALREADY);
		rref_release(r);
		theirs = remote(ctx, 1, "tg.echo", "x", 1);
		TG_IS(rref_set(theirs), -EPERM);
		TG_IS(rref_set_error(theirs, -EIO, "no"), -EPERM);
		rref_release(theirs);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(set_error__every_read_fails_with_it_everywhere, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *early = ask(ctx, 1, "pub.alloc", (struct make){ .length = 100 }), *late;
		struct rref_future *f;

		TG_OK(rref_to_here_async(early, RREF_DEFAULT, &f));
		ask(ctx, 1, "pub.fail", (struct make){ .err = -ENODATA });
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENODATA);
		TG_CHECK(strcmp(rref_last_error(), "no value:\nit failed") == 0);
		rref_future_free(f);
		for (int i = 0; i < 3; i++)
			expect_error(early, -ENODATA, "no value:\nit failed");
		/* Shared after it failed: the receiver is told as well, by the owner or by the sharing itself. */
		if (rref_rpc_sync(ctx, 1, "pub.get", NULL, RREF_DEFAULT, &f) == 0) {
			TG_OK(rref_future_ref(f, 0, &late));
			for (int i = 0; i < 3; i++)
				expect_error(late, -ENODATA, "no value:\nit failed");
			rref_release(late);
			rref_future_free(f);
		} else {
			TG_TEXT("no value:\nit failed");
		}
		/* A failed reference as an argument errs before anything is sent. */
		uint64_t sent = tg_stats(ctx).messages_sent;

		TG_IS(rref_rpc_async(ctx, 1, "tg.read", with(&early, 1), RREF_DEFAULT, &f), -ENODATA);
		TG_TEXT("no value:\nit failed");
		TG_IS(tg_stats(ctx).messages_sent, sent);
		rref_release(early);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(unset__released_by_its_owner, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = ask(ctx, 1, "pub.alloc", (struct make){ .length = 100 });
		struct rref_future *f;

		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		/* Nobody can set it any more. */
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ECANCELED);
		rref_future_free(f);
		expect_error(r, -ECANCELED, "before it was set");
		rref_release(r);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- values that are not ready ---- */

static bool parked_is(struct rref_ctx *ctx, void *arg)
{
	return tg_stats_of(ctx, 1).parked == *(uint64_t *)arg;
}

TG_TEST(not_ready__reads_park_at_the_owner_and_hold_no_thread, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.nr_threads = 1; /* one held thread would show */
	TG_OK(rref_init(&o, &ctx));
	for (size_t i = 0; i < array_size(functions); i++)
		TG_OK(rref_register(ctx, &functions[i]));
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref *r[5];
		struct rref_future *f[5][3];
		struct rref_view *v;
		uint64_t want = 1;

		r[0] = ask(ctx, 1, "pub.alloc", (struct make){ .length = 2000 });
		for (int i = 1; i < 5; i++)
			r[i] = ask(ctx, 1, "pub.get", (struct make){ 0 });
		for (int k = 0; k < 3; k++)
			TG_OK(rref_to_here_async(r[0], RREF_DEFAULT, &f[0][k]));
		TG_CHECK(tg_eventually(parked_is, ctx, &want));
		for (int i = 1; i < 5; i++)
			for (int k = 0; k < 3; k++)
				TG_OK(rref_to_here_async(r[i], RREF_DEFAULT, &f[i][k]));
		want = 5;
		TG_CHECK(tg_eventually(parked_is, ctx, &want));
		TG_IS(rref_to_here(r[0], 20 * MS, &v), -ETIMEDOUT);
		for (int i = 0; i < 5; i++)
			TG_IS(rref_future_test(f[i][0]), 0);
		ask(ctx, 1, "pub.set", (struct make){ .seed = 8 });
		for (int i = 0; i < 5; i++) {
			for (int k = 0; k < 3; k++) {
				TG_OK(rref_future_wait(f[i][k], RREF_DEFAULT));
				TG_OK(rref_future_view(f[i][k], &v));
				TG_CHECK(rref_view_length(v) == 2000 && tg_filled(rref_view_data(v), 2000, 0, 8));
				rref_view_free(v);
				rref_future_free(f[i][k]);
			}
			rref_release(r[i]);
		}
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static void *set_later(void *arg)
{
	usleep(20000);
	TG_OK(rref_set(arg));
	return NULL;
}

TG_TEST(not_ready__local_value_blocks_until_set, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_view *v;
	struct rref *r;
	pthread_t t;
	void *data;

	for (int i = 0; i < 3; i++) {
		TG_OK(rref_alloc(ctx, 4, &r, &data));
		TG_IS(rref_local_value(r, 10 * MS, &v), -ETIMEDOUT);
		TG_IS(rref_to_here(r, 0, &v), -ETIMEDOUT);
		memcpy(data, "late", 4);
		TG_IS(pthread_create(&t, NULL, set_later, r), 0);
		TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
		TG_CHECK(memcmp(rref_view_data(v), "late", 4) == 0);
		pthread_join(t, NULL);
		rref_view_free(v);
		rref_release(r);
	}
	tg_until_clean(ctx, 0);
	TG_CHECK(tg_eventually(nothing_in_flight, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

TG_TEST(not_ready__create_on_self_by_a_slow_function, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, 0, "tg.hold", "slow", 4);
	struct rref_view *v;

	TG_IS(rref_local_value(r, 10 * MS, &v), -ETIMEDOUT);
	tg_until_held(ctx, 0, 1);
	TG_IS(tg_release_held(ctx, 0), 1);
	TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
	TG_CHECK(rref_view_length(v) == 4 && memcmp(rref_view_data(v), "slow", 4) == 0);
	rref_view_free(v);
	rref_release(r);
	tg_until_clean(ctx, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(local_value__on_a_user_names_all_three, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, 1 - rank, "tg.echo", "x", 1);
	struct rref_view *v = NULL;
	char text[RREF_TEXT_SIZE], me[32], owner[32];

	rref_format(r, text, sizeof(text));
	snprintf(me, sizeof(me), "worker%d", rank);
	snprintf(owner, sizeof(owner), "worker%d", 1 - rank);
	TG_IS(rref_local_value(r, RREF_DEFAULT, &v), -EPERM);
	TG_TEXT(text);
	TG_TEXT(me);
	TG_TEXT(owner);
	TG_CHECK(!v);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* ---- failed creations ---- */

TG_TEST(failed_creation__every_read_says_so_on_user_and_owner, 3)
{
	struct rref_ctx *ctx = join(rank);
	struct {
		int32_t code;
		char text[16];
	} a = { -EILSEQ, "not this\nthing" };

	if (rank == 0) {
		for (int to = 0; to < 2; to++) {
			struct rref *first = remote(ctx, to, "tg.fail", &a, sizeof(a.code) + strlen(a.text));
			struct rref *second = remote(ctx, to, "no.such", NULL, 0);
			struct rref_future *f;

			for (int i = 0; i < 3; i++) {
				expect_error(first, -EILSEQ, "not this\nthing");
				expect_error(second, -ENOSYS, "no.such");
			}
			if (to) {
				TG_IS(rref_confirmed(first), 0);
				TG_IS(rref_confirmed(second), 0);
			}
			TG_IS(rref_rpc_sync(ctx, 2, "tg.read", with(&first, 1), RREF_DEFAULT, &f), -EILSEQ);
			TG_TEXT("not this\nthing");
			rref_release(first);
			rref_release(second);
		}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(failed_creation__text_names_the_worker, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, 1 - rank, "no.such", NULL, 0);
	char who[32];

	snprintf(who, sizeof(who), "worker%d", 1 - rank);
	expect_error(r, -ENOSYS, who);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* Shared before it failed: who has it hears of it too. */
TG_TEST(failed_creation__shared_before_it_failed, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct {
			int32_t code;
			char text[8];
		} a = { -EILSEQ, "too bad" };

		for (int i = 0; i < tg_scale(50); i++) {
			struct rref *r = remote(ctx, 1, "tg.fail", &a, sizeof(a.code) + strlen(a.text));
			struct rref_future *f;
			int err = rref_rpc_sync(ctx, 2, "tg.read", with(&r, 1), RREF_DEFAULT, &f);

			TG_IS(err, -EILSEQ);
			TG_TEXT("too bad");
			expect_error(r, -EILSEQ, "too bad");
			rref_release(r);
		}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- sharing ---- */

TG_TEST(share__own_value_with_peer_and_self, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++) {
			unsigned char byte = (unsigned char)(i + 1);
			struct rref *r;

			TG_OK(rref_new(ctx, &byte, 1, &r));
			for (int to = 0; to < 2; to++) {
				struct rref *made;
				unsigned want = byte;

				TG_IS(sum_there(ctx, to, &r, 1), want);
				TG_IS(sum_there(ctx, to, (struct rref *[]){ r, r, r }, 3), 3 * want);
				TG_OK(rref_remote(ctx, to, "tg.read", with(&r, 1), RREF_DEFAULT, &made));
				if (i % 2) {
					/* Released while the creation may be under way. */
					rref_release(made);
				} else {
					tg_expect_bytes(made, &want, sizeof(want));
					rref_release(made);
				}
			}
			rref_release(r);
		}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__user_passes_it_back_to_its_owner, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++) {
			struct rref *r[2] = { remote(ctx, 1, "tg.echo", "\3", 1), remote(ctx, 1, "tg.echo", "\4", 1) };
			struct rref_future *f;
			struct said s;

			/* At once, perhaps before the owner has seen the creation. */
			TG_IS(sum_there(ctx, 1, r, 2), 7);
			TG_OK(rref_rpc_sync(ctx, 1, "inspect", with(r, 1), RREF_DEFAULT, &f));
			tg_result(f, &s, sizeof(s));
			rref_future_free(f);
			TG_CHECK(s.is_owner == 1 && s.confirmed == 1 && s.owner == 1 && s.reads == 3);
			rref_release(r[0]);
			rref_release(r[1]);
		}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__user_to_user_at_once, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(100); i++) {
			struct rref *r[2] = { remote(ctx, 1, "tg.echo", "\5", 1), remote(ctx, 1, "tg.echo", "\6", 1) };

			TG_IS(sum_there(ctx, 2, r, 2), 11);
			rref_release(r[0]);
			rref_release(r[1]);
		}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__released_while_under_way, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(100); i++) {
			struct rref *r = remote(ctx, 1, "tg.echo", "\5", 1);
			struct rref_future *f;
			unsigned sum;

			TG_OK(rref_rpc_async(ctx, i % 3, "tg.read", with(&r, 1), RREF_DEFAULT, &f));
			rref_release(r);
			TG_OK(rref_future_wait(f, RREF_DEFAULT));
			tg_result(f, &sum, sizeof(sum));
			TG_IS(sum, 5);
			rref_future_free(f);
		}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__chains_round_a_group_of_four, 4)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int owner = 0; owner < 4; owner++)
			for (int32_t hops = 1; hops <= 8; hops++) {
				struct rref *r = remote(ctx, owner, "tg.echo", "\7", 1);
				struct rref_args a = { .data = &hops, .length = sizeof(hops), .refs = &r, .nr_refs = 1 };
				struct rref_future *f;
				unsigned sum;

				TG_OK(rref_rpc_sync(ctx, 1, "hand_on", &a, RREF_DEFAULT, &f));
				tg_result(f, &sum, sizeof(sum));
				TG_IS(sum, 7);
				rref_future_free(f);
				rref_release(r);
			}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The one who shared it lets go: who received it goes on reading. */
TG_TEST(share__kept_beyond_the_call, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.echo", "\11", 1), *back;

		TG_OK(rref_rpc_sync(ctx, 2, "keep", with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_until_clean(ctx, 0);
		TG_IS(tg_stats_of(ctx, 1).owners, 1);
		back = ask(ctx, 2, "pub.get", (struct make){ 0 });
		TG_IS(rref_owner(back), 1);
		ask(ctx, 2, "pub.drop", (struct make){ 0 });
		tg_until_clean(ctx, 2);
		tg_expect_bytes(back, "\11", 1);
		rref_release(back);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__returned_from_a_third_worker, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++) {
			struct rref_future *f;
			struct rref *r;

			TG_OK(rref_rpc_sync(ctx, 1, "fetch_from_next", &(struct rref_args){ .data = &i, .length = sizeof(i) },
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_ref(f, 0, &r));
			rref_future_free(f);
			TG_IS(rref_owner(r), 2);
			TG_IS(rref_confirmed(r), 1);
			tg_expect_bytes(r, &i, sizeof(i));
			rref_release(r);
		}
		/* Round: the third is the first. */
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, 2, "fetch_from_next", &(struct rref_args){ .data = "me", .length = 2 }, RREF_DEFAULT,
				    &f));
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		TG_CHECK(rref_is_owner(r) && rref_owner(r) == 0);
		tg_expect_bytes(r, "me", 2);
		rref_release(r);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__confirmed_inside_the_handler, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++)
			for (int owner = 0; owner < 3; owner++)
				for (int to = 0; to < 3; to++) {
					struct rref *r = remote(ctx, owner, "tg.echo", "\2", 1);
					struct rref_future *f;
					struct said s;

					TG_OK(rref_rpc_sync(ctx, to, "inspect", with(&r, 1), RREF_DEFAULT, &f));
					tg_result(f, &s, sizeof(s));
					rref_future_free(f);
					TG_IS(s.confirmed, 1);
					TG_IS(s.is_owner, to == owner);
					TG_IS(s.owner, owner);
					TG_IS(s.reads, 2);
					TG_CHECK(s.id.local_id == rref_get_id(r).local_id && s.id.created_on == 0);
					rref_release(r);
				}
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(share__reference_of_another_context, 1)
{
	struct rref_ctx *one = join(rank), *two;
	struct rref_options o;
	struct rref_future *f = NULL;
	struct rref_view *v[2];
	struct rref *r, *other;
	int status[2];

	/* A group of its own, in this process. */
	tg_options(&o, 0);
	o.name = "other";
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &two));
	TG_OK(rref_new(one, "one", 3, &r));
	TG_OK(rref_new(two, "two", 3, &other));
	TG_IS(rref_rpc_sync(one, 0, "tg.read", with(&other, 1), RREF_DEFAULT, &f), -EINVAL);
	TG_TEXT("another context");
	TG_CHECK(!f);
	TG_IS(rref_equal(r, other), 0);
	TG_IS(rref_to_here_batch((struct rref *[]){ r, other }, 2, RREF_DEFAULT, v, status), 1);
	TG_CHECK(status[0] == 0 && status[1] == -EINVAL && !v[1]);
	rref_view_free(v[0]);
	TG_IS(sum_there(one, 0, &r, 1), 'o');
	TG_IS(sum_there(two, 0, &other, 1), 't');
	/* One ends, the other goes on. */
	rref_release(other);
	tg_finish(two);
	TG_IS(sum_there(one, 0, &r, 1), 'o');
	rref_release(r);
	tg_finish(one);
	return 0;
}

/* Two groups of two, in the same two processes, at once. */
TG_TEST(contexts__two_groups_in_two_processes, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx[2];
	char place[64];

	ctx[0] = join(rank);
	if (rank == 0) {
		tg_free_place(tg_current->shared->bytes, 64);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx[0], 0, 1);
	memcpy(place, tg_current->shared->bytes, sizeof(place));
	tg_options(&o, 1 - rank); /* the other way round */
	o.rendezvous = place;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx[1]));
	for (int i = 0; i < tg_scale(40); i++) {
		int me = i % 2 ? 1 - rank : rank;
		struct rref_ctx *c = ctx[i % 2];
		struct rref *r = remote(c, 1 - me, "tg.echo", &i, sizeof(i));

		TG_IS(rref_rank(c), me);
		tg_expect_bytes(r, &i, sizeof(i));
		rref_release(r);
	}
	/* In the manual mode nobody serves one group while this thread waits in the other: all is done before. */
	for (int done = 0; done < 2; done++) {
		atomic_fetch_add(&tg_current->shared->arrived[1], 1);
		while (atomic_load(&tg_current->shared->arrived[1]) < 2 * (done + 1)) {
			rref_progress(ctx[0]);
			rref_progress(ctx[1]);
			usleep(100);
		}
	}
	tg_finish(ctx[0]);
	tg_finish(ctx[1]);
	return 0;
}

/* ---- one handle, many threads ---- */

struct shared_handle {
	struct rref *r;
	struct rref_ctx *ctx;
	int rounds, to;
};

static void *dup_and_release(void *arg)
{
	struct shared_handle *s = arg;

	for (int i = 0; i < s->rounds; i++) {
		struct rref *mine = rref_dup(s->r);

		if (i % 16 == 0)
			tg_expect_bytes(mine, "shared", 6);
		rref_release(mine);
	}
	return NULL;
}

static void *read_often(void *arg)
{
	struct shared_handle *s = arg;
	struct rref_view *v;

	for (int i = 0; i < s->rounds; i++) {
		TG_OK(rref_to_here(s->r, RREF_DEFAULT, &v));
		TG_CHECK(rref_view_length(v) == 4000 && tg_filled(rref_view_data(v), 4000, 0, 2));
		rref_view_free(v);
	}
	return NULL;
}

static void *share_often(void *arg)
{
	struct shared_handle *s = arg;

	for (int i = 0; i < s->rounds; i++)
		TG_IS(sum_there(s->ctx, s->to, &s->r, 1), 's');
	rref_release(s->r);
	return NULL;
}

TG_TEST(threads__dup_and_release_one_handle, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0)
		for (int to = 0; to < 2; to++) {
			struct shared_handle s = { remote(ctx, to, "tg.echo", "shared", 6), ctx, tg_scale(3000), to };
			pthread_t t[8];

			for (int i = 0; i < 8; i++)
				TG_IS(pthread_create(&t[i], NULL, dup_and_release, &s), 0);
			for (int i = 0; i < 8; i++)
				pthread_join(t[i], NULL);
			rref_release(s.r);
			all_clean(ctx);
		}
	tg_finish(ctx);
	return 0;
}

TG_TEST(threads__sixteen_read_one_reference, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct shared_handle s = { ask(ctx, 1, "pub.make", (struct make){ .length = 4000, .seed = 2 }), ctx, tg_scale(400),
					   1 };
		uint64_t before = tg_stats(ctx).reads;
		pthread_t t[16];

		for (int i = 0; i < 16; i++)
			TG_IS(pthread_create(&t[i], NULL, read_often, &s), 0);
		for (int i = 0; i < 16; i++)
			pthread_join(t[i], NULL);
		TG_IS(tg_stats(ctx).reads - before, 16 * s.rounds);
		rref_release(s.r);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Shared from several threads and released from them: the last to go ends it. */
TG_TEST(threads__share_and_release_one_handle, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.echo", "shared", 6);
		struct shared_handle s[6];
		pthread_t t[6];

		for (int i = 0; i < 6; i++) {
			s[i] = (struct shared_handle){ rref_dup(r), ctx, tg_scale(60), i % 3 };
			TG_IS(pthread_create(&t[i], NULL, share_often, &s[i]), 0);
		}
		rref_release(r);
		for (int i = 0; i < 6; i++)
			pthread_join(t[i], NULL);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static void *churn(void *arg)
{
	struct shared_handle *s = arg;

	for (int i = 0; i < s->rounds; i++) {
		struct rref *r;

		if (i % 2)
			TG_OK(rref_new(s->ctx, "c", 1, &r));
		else
			r = remote(s->ctx, s->to, "tg.echo", "c", 1);
		tg_expect_bytes(r, "c", 1);
		rref_release(r);
	}
	return NULL;
}

TG_TEST(threads__create_read_release_everywhere, 3)
{
	struct rref_ctx *ctx = join(rank);
	struct shared_handle s[4];
	pthread_t t[4];

	for (int i = 0; i < 4; i++) {
		s[i] = (struct shared_handle){ NULL, ctx, tg_scale(300), i % 3 };
		TG_IS(pthread_create(&t[i], NULL, churn, &s[i]), 0);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

/* ---- what they say of themselves ---- */

TG_TEST(accessors__of_owner_and_user, 2)
{
	struct rref_ctx *ctx = join(rank);
	char want[RREF_TEXT_SIZE], text[RREF_TEXT_SIZE], small[8];

	if (rank == 0) {
		struct rref *mine, *theirs = remote(ctx, 1, "tg.echo", "x", 1);
		struct rref_id id, fork;

		tg_expect_bytes(theirs, "x", 1);
		TG_OK(rref_new(ctx, "m", 1, &mine));
		TG_CHECK(rref_is_owner(mine) && rref_owner(mine) == 0 && strcmp(rref_owner_name(mine), "worker0") == 0);
		TG_CHECK(!rref_is_owner(theirs) && rref_owner(theirs) == 1 && strcmp(rref_owner_name(theirs), "worker1") == 0);
		TG_CHECK(rref_context(mine) == ctx && rref_context(theirs) == ctx);
		TG_CHECK(rref_confirmed(mine) == 1 && rref_confirmed(theirs) == 1);
		id = rref_get_id(mine);
		fork = rref_fork_id(mine);
		TG_CHECK(id.created_on == 0 && id.local_id > 0 && id.reserved == 0 && fork.local_id == 0 && fork.created_on == 0);
		int n = snprintf(want, sizeof(want), "OwnerRRef(rref_id=GloballyUniqueId(created_on=0, local_id=%" PRIu64 "))",
				 id.local_id);

		TG_IS(rref_format(mine, text, sizeof(text)), n);
		TG_CHECK(strcmp(text, want) == 0);
		TG_IS(rref_format(mine, small, sizeof(small)), n);
		TG_CHECK(strcmp(small, "OwnerRR") == 0);
		TG_IS(rref_format(mine, NULL, 0), n);
		TG_IS(rref_format(mine, NULL, 5), -EINVAL);
		id = rref_get_id(theirs);
		fork = rref_fork_id(theirs);
		TG_CHECK(id.created_on == 0 && id.local_id > 0 && fork.created_on == 0 && fork.local_id > 0);
		n = snprintf(want, sizeof(want),
			     "UserRRef(rref_id=GloballyUniqueId(created_on=0, local_id=%" PRIu64
			     "), fork_id=GloballyUniqueId(created_on=0, local_id=%" PRIu64 "))",
			     id.local_id, fork.local_id);
		TG_IS(rref_format(theirs, text, sizeof(text)), n);
		TG_CHECK(strcmp(text, want) == 0);
		rref_release(mine);
		rref_release(theirs);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(equal__and_hash, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = ask(ctx, 1, "pub.make", (struct make){ .length = 8 });
		struct rref *same = ask(ctx, 1, "pub.get", (struct make){ 0 });
		struct rref *other = remote(ctx, 1, "tg.echo", "x", 1), *dup = rref_dup(r);

		TG_CHECK(dup == r);
		TG_CHECK(r != same && rref_equal(r, same) == 1 && rref_hash(r) == rref_hash(same));
		TG_CHECK(rref_fork_id(r).local_id != rref_fork_id(same).local_id);
		TG_IS(rref_equal(r, other), 0);
		TG_CHECK(rref_hash(r) != rref_hash(other));
		TG_IS(rref_equal(r, NULL), 0);
		rref_release(r);
		rref_release(dup);
		rref_release(same);
		rref_release(other);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- counting ---- */

TG_TEST(counters__of_a_local_value_shared_with_one, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r;
		struct rref_stats s;

		TG_OK(rref_new(ctx, "c", 1, &r));
		s = tg_stats(ctx);
		TG_CHECK(s.owners == 1 && s.forks == 0 && s.value_bytes == 65);
		TG_OK(rref_rpc_sync(ctx, 1, "keep", with(&r, 1), RREF_DEFAULT, NULL));
		s = tg_stats(ctx);
		TG_CHECK(s.owners == 1 && s.forks == 1 && s.users == 0);
		s = tg_stats_of(ctx, 1);
		TG_CHECK(s.owners == 0 && s.users == 1 && s.pending_users == 0 && s.value_bytes == 0);
		/* The owner's own handle goes first: the fork keeps the value. */
		rref_release(r);
		s = tg_stats(ctx);
		TG_CHECK(s.owners == 1 && s.forks == 1 && s.value_bytes == 65);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(counters__pending_ones_are_visible, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.hold", "x", 1), *value;
		struct rref_future *f;
		struct rref_stats s;

		tg_until_held(ctx, 1, 1);
		s = tg_stats(ctx);
		TG_CHECK(s.users == 1 && s.pending_users == 1);
		TG_IS(rref_confirmed(r), 0);
		s = tg_stats_of(ctx, 1);
		TG_CHECK(s.owners == 1 && s.forks == 1 && s.value_bytes == 0);
		TG_IS(tg_release_held(ctx, 1), 1);
		tg_expect_bytes(r, "x", 1);
		s = tg_stats(ctx);
		TG_CHECK(s.users == 1 && s.pending_users == 0);
		TG_IS(rref_confirmed(r), 1);

		/* A child that cannot be confirmed yet: in the manual mode and in every other its owner decides when. */
		value = remote(ctx, 1, "tg.echo", "v", 1);
		TG_OK(rref_rpc_async(ctx, 2, "tg.hold", with(&value, 1), RREF_DEFAULT, &f));
		tg_until_held(ctx, 2, 1);
		TG_IS(tg_stats_of(ctx, 1).forks, 3);
		TG_IS(tg_release_held(ctx, 2), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		rref_release(value);
		rref_release(r);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(counters__return_after_many_create_and_release, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_stats warm = { 0 }, end;

		for (int round = 0; round < 2; round++) {
			for (int i = 0; i < tg_scale(3000); i++) {
				struct rref *r;

				TG_OK(rref_new(ctx, &i, sizeof(i), &r));
				if (i % 10 == 0)
					sum_there(ctx, 1, &r, 1);
				rref_release(r);
				if (i % 10 == 5)
					rref_release(remote(ctx, 1, "tg.echo", &i, sizeof(i)));
			}
			all_clean(ctx);
			end = tg_stats(ctx);
			if (round == 0)
				warm = end;
		}
		TG_IS(end.registered_bytes, warm.registered_bytes);
		TG_IS(end.nr_regions, warm.nr_regions);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(dump__says_who_holds_what, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		static char text[65536];
		struct rref *mine, *theirs = remote(ctx, 1, "tg.echo", "x", 1);
		char small[10];
		int n;

		tg_expect_bytes(theirs, "x", 1);
		TG_OK(rref_new(ctx, "m", 1, &mine));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", with(&mine, 1), RREF_DEFAULT, NULL));
		n = rref_dump(ctx, text, sizeof(text));
		TG_CHECK(n > 0 && (size_t)n == strlen(text));
		TG_CHECK(strstr(text, "worker0") && strstr(text, "worker1") && strstr(text, "owner") && strstr(text, "fork") &&
			 strstr(text, "user"));
		TG_IS(rref_dump(ctx, NULL, 0), n);
		TG_IS(rref_dump(ctx, small, sizeof(small)), n);
		TG_CHECK(strlen(small) == 9 && memcmp(small, text, 9) == 0);
		ask(ctx, 1, "pub.drop", (struct make){ 0 });
		rref_release(mine);
		rref_release(theirs);
		all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(create__on_self_and_read),
		cmocka_unit_test(create__empty_value),
		cmocka_unit_test(create__ten_then_read_in_any_order),
		cmocka_unit_test(read__of_a_ready_value_is_one_read_and_no_message),
		cmocka_unit_test(read__async_many_at_once),
		cmocka_unit_test(read__ranges),
		cmocka_unit_test(read__batch_over_three_owners_some_failed),
		cmocka_unit_test(read__batch_odd_elements),
		cmocka_unit_test(alloc__filled_in_place_and_set),
		cmocka_unit_test(set__twice_or_by_another),
		cmocka_unit_test(set_error__every_read_fails_with_it_everywhere),
		cmocka_unit_test(unset__released_by_its_owner),
		cmocka_unit_test(not_ready__reads_park_at_the_owner_and_hold_no_thread),
		cmocka_unit_test(not_ready__local_value_blocks_until_set),
		cmocka_unit_test(not_ready__create_on_self_by_a_slow_function),
		cmocka_unit_test(local_value__on_a_user_names_all_three),
		cmocka_unit_test(failed_creation__every_read_says_so_on_user_and_owner),
		cmocka_unit_test(failed_creation__text_names_the_worker),
		cmocka_unit_test(failed_creation__shared_before_it_failed),
		cmocka_unit_test(share__own_value_with_peer_and_self),
		cmocka_unit_test(share__user_passes_it_back_to_its_owner),
		cmocka_unit_test(share__user_to_user_at_once),
		cmocka_unit_test(share__released_while_under_way),
		cmocka_unit_test(share__chains_round_a_group_of_four),
		cmocka_unit_test(share__kept_beyond_the_call),
		cmocka_unit_test(share__returned_from_a_third_worker),
		cmocka_unit_test(share__confirmed_inside_the_handler),
		cmocka_unit_test(share__reference_of_another_context),
		cmocka_unit_test(contexts__two_groups_in_two_processes),
		cmocka_unit_test(threads__dup_and_release_one_handle),
		cmocka_unit_test(threads__sixteen_read_one_reference),
		cmocka_unit_test(threads__share_and_release_one_handle),
		cmocka_unit_test(threads__create_read_release_everywhere),
		cmocka_unit_test(accessors__of_owner_and_user),
		cmocka_unit_test(equal__and_hash),
		cmocka_unit_test(counters__of_a_local_value_shared_with_one),
		cmocka_unit_test(counters__pending_ones_are_visible),
		cmocka_unit_test(counters__return_after_many_create_and_release),
		cmocka_unit_test(dump__says_who_holds_what),
	};

	return cmocka_run_group_tests_name("refs", tests, NULL, NULL);
}
