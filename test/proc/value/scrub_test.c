/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large values that end: their memory is scrubbed without the progress lock, and in turns. It is
 * free again where the program expects it, and never shows old bytes.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/slow.h"
#include "core/ctx.h"
#include "tg_refs.h"

#define MIB ((size_t)1 << 20)
#define BOUND (16 * MIB)
#define LARGE (10 * MIB)

static struct rref_ctx *join_with(int rank, size_t bound)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.max_value_bytes = bound;
	return tg_join_by(&o);
}

static uint32_t nr_queued(struct rref_ctx *ctx)
{
	return at_load(&ctx->value.scrubs.nr);
}

/* Leaves rank 0 with a value that this worker alone holds. */
static struct rref *only_mine(struct rref_ctx *ctx, size_t length)
{
	struct rref *r = tg_ask(ctx, 0, "pub.make", (struct tg_make){ .length = length });

	TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
	return r;
}

static bool has_no_value(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return !nr_queued(ctx) && !at_load(&ctx->n.value_bytes);
}

/* Reads a small value and calls, until the flag of the run says that it is enough. */
static void *read_and_call(void *arg)
{
	struct rref *small = arg;
	struct rref_view *v;

	while (!tg_flag(0)) {
		TG_OK(rref_to_here(small, RREF_DEFAULT, &v));
		rref_view_free(v);
		TG_OK(rref_rpc_sync(rref_context(small), 0, "tg.nothing", NULL, RREF_DEFAULT,
				    NULL));
	}
	return NULL;
}

/* The last reference goes by a message while others read and call there. */
TG_TEST(ended_by_a_message__no_hold_scrubs, 2)
{
	struct rref_ctx *ctx = join_with(rank, 256 * MIB);
	size_t large = (size_t)tg_scale(64) * MIB; /* many turns of a scrub */
	pthread_t t;

	if (rank == 1) {
		struct rref *small = tg_ask(ctx, 0, "pub.make", (struct tg_make){ .length = 8 });

		TG_IS(pthread_create(&t, NULL, read_and_call, small), 0);
		for (int i = 0; i < 2; i++)
			rref_release(only_mine(ctx, large));
		while (tg_stats_of(ctx, 0).owners > 1)
			tg_pause();
		tg_set_flag(0, 1);
		TG_IS(pthread_join(t, NULL), 0);
		rref_release(small);
		TG_OK(rref_rpc_sync(ctx, 0, "pub.drop", NULL, RREF_DEFAULT, NULL));
	}
	tg_meet_serving(ctx, 1);
	if (rank == 0)
		TG_CHECK(tg_eventually(has_no_value, ctx, NULL));
	TG_IS(rb_slow_holds(RB_SLOW_SCRUB), 0);
	tg_finish(ctx);
	return 0;
}

/* The thread that ends a value has its memory back when the call returns. */
TG_TEST(ended_here__the_memory_is_free_at_once, 1)
{
	struct rref_ctx *ctx = join_with(rank, BOUND);
	struct rref_view *v;
	struct rref *r;
	void *data;

	for (int i = 0; i < 4; i++) {
		TG_OK(rref_alloc(ctx, LARGE, &r, &data));
		memset(data, 0xa5, LARGE);
		if (i & 1)
			TG_OK(rref_set(r));
		rref_release(r);
		TG_IS(nr_queued(ctx), 0);
		TG_IS(at_load(&ctx->n.value_bytes), 0);
	}
	TG_OK(rref_alloc(ctx, LARGE, &r, &data));
	TG_OK(rref_set(r));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	rref_release(r);
	TG_CHECK(at_load(&ctx->n.value_bytes) >= LARGE);
	rref_view_free(v);
	TG_IS(nr_queued(ctx), 0);
	TG_IS(at_load(&ctx->n.value_bytes), 0);
	/* A batch of them. */
	struct rref *some[3];

	for (int i = 0; i < 3; i++)
		TG_OK(rref_alloc(ctx, LARGE / 4, &some[i], &data));
	rref_release_batch(some, 3);
	TG_IS(nr_queued(ctx), 0);
	TG_IS(at_load(&ctx->n.value_bytes), 0);
	TG_IS(rb_slow_holds(RB_SLOW_SCRUB), 0);
	tg_finish(ctx);
	return 0;
}

static bool is_zero(const unsigned char *bytes, size_t length)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, length - 1);
}

/* Makes a value for which the last one's memory is needed, and looks at it. */
static int look_at_new(struct rref_call *call, __attribute__((unused)) void *arg)
{
	struct rref *r;
	void *data;

	TG_OK(rref_alloc(rref_call_context(call), LARGE, &r, &data));
	TG_CHECK(is_zero(data, LARGE));
	rref_release(r);
	return 0;
}

/*
 * There is room for one such value only. The last one ended a moment ago, by a message, and may
 * wait for its scrub. The next finds room all the same, and shows nothing old.
 */
TG_TEST(a_new_value__waits_for_the_memory_and_shows_nothing_old, 2)
{
	struct rref_ctx *ctx = join_with(rank, BOUND);

	tg_add(ctx, "look", look_at_new, 0);
	tg_meet_serving(ctx, 1);
	for (int i = 0; rank == 1 && i < tg_scale(20); i++) {
		rref_release(only_mine(ctx, LARGE));
		TG_OK(rref_rpc_sync(ctx, 0, "look", NULL, RREF_DEFAULT, NULL));
	}
	tg_meet_serving(ctx, 2);
	if (rank == 0)
		TG_CHECK(tg_eventually(has_no_value, ctx, NULL));
	TG_IS(rb_slow_holds(RB_SLOW_SCRUB), 0);
	tg_finish(ctx);
	return 0;
}

/* Values of no device have the same bound, and the same end. */
TG_TEST(local_only__waits_for_the_memory_too, 1)
{
	static const struct rref_type secret = { .size = sizeof(secret),
						 .name = "secret",
						 .element_size = 1,
						 .flags = RREF_LOCAL_ONLY };
	struct rref_ctx *ctx = join_with(rank, BOUND);
	struct rref_value_desc d = { .type = &secret, .length = LARGE };
	struct rref *r;
	struct iovec place;

	for (int i = 0; i < 4; i++) {
		TG_OK(rref_alloc_value(ctx, &d, &r, &place));
		memset(place.iov_base, 0xa5, LARGE);
		rref_release(r);
		TG_IS(at_load(&ctx->n.value_bytes), 0);
	}
	TG_IS(rb_slow_holds(RB_SLOW_SCRUB), 0);
	tg_finish(ctx);
	return 0;
}

/* The statistics count a value until its memory is free, and wait for that. */
TG_TEST(statistics__count_no_value_that_ended, 2)
{
	struct rref_ctx *ctx = join_with(rank, BOUND);

	for (int i = 0; rank == 1 && i < tg_scale(20); i++) {
		rref_release(only_mine(ctx, LARGE));
		while (tg_stats_of(ctx, 0).owners)
			tg_pause();
		TG_IS(tg_stats_of(ctx, 0).value_bytes, 0);
	}
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

/* Ends the context while values wait for their scrub. */
static int end_while_scrubbing(int rank, unsigned how)
{
	struct rref_ctx *ctx = join_with(rank, 512 * MIB);
	struct rref *r[3];

	for (int i = 0; rank == 1 && i < 3; i++)
		r[i] = only_mine(ctx, 3 * LARGE);
	tg_meet_serving(ctx, 1);
	for (int i = 0; rank == 1 && i < 3; i++)
		rref_release(r[i]);
	TG_OK(rref_shutdown(ctx, how, RREF_DEFAULT));
	if (how == RREF_SHUTDOWN_GRACEFUL)
		TG_IS(tg_stats(ctx).value_bytes, 0);
	TG_IS(rb_slow_holds(RB_SLOW_SCRUB), 0);
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(shutdown__ends_the_scrubs, 2)
{
	return end_while_scrubbing(rank, RREF_SHUTDOWN_GRACEFUL);
}

TG_TEST(shutdown_now__ends_the_scrubs, 2)
{
	return end_while_scrubbing(rank, RREF_SHUTDOWN_NOW);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_value__waits_for_the_memory_and_shows_nothing_old),
		cmocka_unit_test(ended_by_a_message__no_hold_scrubs),
		cmocka_unit_test(ended_here__the_memory_is_free_at_once),
		cmocka_unit_test(local_only__waits_for_the_memory_too),
		cmocka_unit_test(shutdown__ends_the_scrubs),
		cmocka_unit_test(shutdown_now__ends_the_scrubs),
		cmocka_unit_test(statistics__count_no_value_that_ended),
	};

	return cmocka_run_group_tests_name("scrub", tests, NULL, NULL);
}
