/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads over shm write nothing that their threads share: no counter, no lock, no list, no pin. The
 * context and the peer are compared with a copy of theirs, inside each READ and after it. So a
 * count that goes up and down again shows too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/fast.h"
#include "core/ctx.h"
#include "tg_refs.h"

#define LENGTH 1024
#define WINDOW 20

enum kind { BYTES, TYPED, SEGMENTS, HOLDS, WRAPPED, KINDS };

static struct rref_ctx *mine; /* the owner's */

static struct rref *make_segments(const unsigned char *bytes)
{
	struct iovec s[3];
	struct rref *ref;

	for (int i = 0; i < 3; i++)
		s[i] = (struct iovec){ .iov_base = (void *)(uintptr_t)(bytes + 64 * i),
				       .iov_len = 64 };
	TG_OK(rref_new_value(mine, TG_VALUE(.segments = s, .nr_segments = 3), &ref));
	return ref;
}

static struct rref *make_holder(const unsigned char *bytes)
{
	struct rref *inner, *ref;

	TG_OK(rref_new(mine, "inner", 5, &inner));
	TG_OK(rref_new_value(
		mine, TG_VALUE(.data = bytes, .length = LENGTH, .refs = &inner, .nr_refs = 1),
		&ref));
	rref_release(inner);
	return ref;
}

static struct rref *make_wrapped(const unsigned char *bytes)
{
	struct rref_mem *mem;
	struct rref *ref;
	void *at;

	TG_OK(rref_mem_alloc(mine, LENGTH, &mem, &at));
	memcpy(at, bytes, LENGTH);
	TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = LENGTH), NULL, NULL, &ref));
	return ref;
}

static int make_kind(struct rref_call *call, void *arg)
{
	static const struct rref_type floats = { sizeof(floats), "floats", 4, 0 };
	unsigned char bytes[LENGTH];
	struct rref *ref;

	(void)arg;
	tg_fill(bytes, sizeof(bytes), 5);
	switch (*(const uint32_t *)rref_call_data(call)) {
	case BYTES:
		TG_OK(rref_new(mine, bytes, LENGTH, &ref));
		break;
	case TYPED:
		TG_OK(rref_new_value(
			mine, TG_VALUE(.data = bytes, .length = LENGTH, .type = &floats), &ref));
		break;
	case SEGMENTS:
		ref = make_segments(bytes);
		break;
	case HOLDS:
		ref = make_holder(bytes);
		break;
	default:
		ref = make_wrapped(bytes);
	}
	int err = rref_call_reply(call, tg_with(&ref, 1));

	rref_release(ref);
	return err;
}

/* ---- the copies ---- */

static struct rref_ctx ctx_before;
static struct rc_peer peer_before;
static struct rref_ctx *watched; /* NULL: not now */
static uint64_t looks;

/* Names the first byte that was written. */
static void expect_same(const void *before, const void *now, size_t size)
{
	const unsigned char *a = before, *b = now;

	size_t same = 0;

	while (same < size && a[same] == b[same])
		same++;
	TG_IS(same, size);
}

static void expect_untouched(void)
{
	if (!watched)
		return;
	looks++;
	expect_same(&ctx_before, watched, sizeof(ctx_before));
	expect_same(&peer_before, &watched->peers[1], sizeof(peer_before));
}

static struct rv_ops watching;

static int post_and_look(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	int posted = rv_shm_ops.post_reads(conn, r, n);

	expect_untouched();
	return posted;
}

static void watch(struct rref_ctx *ctx)
{
	memcpy(&ctx_before, ctx, sizeof(ctx_before));
	memcpy(&peer_before, &ctx->peers[1], sizeof(peer_before));
	watched = ctx;
}

/* ---- the ways ---- */

static void check_view(struct rref_view *v)
{
	TG_CHECK(tg_filled(rref_view_data(v), 64, 0, 5));
	rref_view_free(v);
}

static void by_to_here(struct rref *ref)
{
	struct rref_view *v;

	for (int i = 0; i < WINDOW; i++) {
		TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
		check_view(v);
	}
}

static void as_futures(struct rref *ref)
{
	struct rref_future *f[WINDOW];
	struct rref_view *v;

	for (int i = 0; i < WINDOW; i++)
		TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f[i]));
	for (int i = 0; i < WINDOW; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		TG_OK(rref_future_view(f[i], &v));
		rref_future_free(f[i]);
		check_view(v);
	}
}

static void in_a_batch(struct rref *ref)
{
	struct rref *refs[WINDOW];
	struct rref_view *views[WINDOW];
	int status[WINDOW];

	for (int i = 0; i < WINDOW; i++)
		refs[i] = ref;
	TG_IS(rref_to_here_batch(refs, WINDOW, RREF_DEFAULT, views, status), WINDOW);
	for (int i = 0; i < WINDOW; i++)
		check_view(views[i]);
}

static void by_into(struct rref *ref)
{
	unsigned char buf[LENGTH];
	size_t got;

	TG_OK(rref_to_here_into(ref, buf, 0, sizeof(buf), RREF_DEFAULT, &got));
	TG_CHECK(got >= 192 && tg_filled(buf, 64, 0, 5));
	TG_OK(rref_to_here_into(ref, buf, 33, 20, RREF_DEFAULT, &got));
	TG_CHECK(got == 20 && tg_filled(buf, 20, 33, 5));
	TG_OK(rref_to_here_into(ref, buf, 1 << 20, 20, RREF_DEFAULT, &got));
	TG_IS(got, 0);
}

static void by_into_batch(struct rref *ref)
{
	unsigned char buf[2][40];
	struct rref_into reads[2] = {
		{ .ref = ref, .buf = buf[0], .length = 40 },
		{ .ref = ref, .buf = buf[1], .offset = 10, .length = 40 },
	};

	TG_IS(rref_to_here_into_batch(reads, 2, RREF_DEFAULT), 2);
	for (int i = 0; i < 2; i++)
		TG_CHECK(reads[i].got == 40 && tg_filled(buf[i], 40, reads[i].offset, 5));
}

static void (*const ways[])(struct rref *ref) = { by_to_here, as_futures, in_a_batch, by_into,
						  by_into_batch };

/* Reads a value of a kind in each way. The first round gets memory. */
static void read_kind(struct rref_ctx *ctx, uint32_t kind)
{
	struct rref *ref;
	struct rref_future *f;

	TG_OK(rref_rpc_sync(ctx, 1, "make_kind", tg_bytes(&kind, sizeof(kind)), RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &ref));
	rref_future_free(f);
	for (size_t way = 0; way < array_size(ways); way++) {
		ways[way](ref);
		ways[way](ref);
		watch(ctx);
		ways[way](ref);
		expect_untouched();
		watched = NULL;
	}
	rref_release(ref);
}

TG_TEST(reads__write_nothing_shared, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	if (rank == 0)
		o.mode = RREF_PROGRESS_MANUAL; /* no other thread writes */
	TG_OK(rref_init(&o, &ctx));
	mine = ctx;
	tg_add(ctx, "make_kind", make_kind, 0);
	tg_meet_serving(ctx, 0);
	if (RB_FAST(rank == 0 && tg_is_shm())) {
		watching = *ctx->peers[1].ops;
		watching.post_reads = post_and_look;
		ctx->peers[1].ops = &watching;
		for (uint32_t kind = 0; kind < KINDS; kind++)
			read_kind(ctx, kind);
		TG_CHECK(looks >= KINDS * array_size(ways) * 2);
		ctx->peers[1].ops = &rv_shm_ops;
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(reads__write_nothing_shared) };

	return cmocka_run_group_tests_name("apart", tests, NULL, NULL);
}
