/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads in pieces over a real device (core/read/split.c). The most that a connection has in flight,
 * the order of turns, and that a waiting read always ends. The completions are kept back for as
 * long as that takes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "test/proc/value/lent.h"
#include "hold.h"
#include "tg_refs.h"
#include "core/base/lock.h"

#define MS NSEC_PER_MSEC
#define PER_MIB ((unsigned)(MIB / RC_PIECE_MAX))
#define PIECES (PER_MIB + 1) /* in flight */
#define ALL 1000u
#define WRAPPED (100 * KIB)

static struct rref_future *start(struct rref *r, int64_t timeout)
{
	struct rref_future *f;

	TG_OK(rref_to_here_async(r, timeout, &f));
	return f;
}

static bool is_done(struct rref_ctx *ctx, void *f)
{
	rref_progress(ctx);
	return rref_future_test(f);
}

static void check(struct rref_future *f, size_t length)
{
	struct rref_view *v;

	TG_OK(rref_future_wait(f, RREF_FOREVER));
	TG_OK(rref_future_view(f, &v));
	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, (unsigned)length));
	rref_future_free(f);
	rref_view_free(v);
}

/* Returns a value of worker 1 of this length, read once: its location is known. */
static struct rref *value(struct rref_ctx *ctx, size_t length)
{
	struct rref *r = tg_ask(ctx, 1, "pub.make",
				(struct tg_make){ .length = length, .seed = (unsigned)length });

	check(start(r, RREF_FOREVER), length);
	return r;
}

static bool none_waits(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	rref_progress(ctx);
	return !s.quarantined && !s.ops_in_flight && !s.landing_bytes && !s.waiting_reads &&
		!(uint32_t)at_load(&ctx->peers[1].pieces.bytes) &&
		!(uint32_t)at_load(&ctx->peers[1].pieces.outstanding);
}

static void until_none_waits(struct rref_ctx *ctx)
{
	TG_CHECK(tg_eventually(none_waits, ctx, NULL));
}

static void end(struct rref_ctx *ctx, struct rref *const *r, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		rref_release(r[i]);
	TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
	tg_all_clean(ctx);
}

static void until_held(struct rref_ctx *ctx, unsigned n)
{
	TG_CHECK(tg_eventually(holds, ctx, &n));
}

/* Checks that the device holds n and not one more, however long it works. */
static void holds_just(struct rref_ctx *ctx, unsigned n)
{
	until_held(ctx, n);
	for (int i = 0; i < 20; i++) {
		rref_progress(ctx);
		tg_pause();
	}
	TG_IS(atomic_load(&nr_held), n);
	TG_CHECK((uint32_t)at_load(&ctx->peers[1].pieces.bytes) <=
		 MIB + RC_PIECE_MAX + RC_HEADER_BYTES);
}

/* The fewest doorbells that the room allows. */
TG_TEST(alone__with_one_doorbell, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref_stats before, after;
		struct rref *r = value(ctx, MIB);

		before = tg_stats(ctx);
		check(start(r, RREF_FOREVER), MIB);
		after = tg_stats(ctx);
		TG_IS(after.reads - before.reads, PER_MIB + 1);
		TG_IS(after.doorbells - before.doorbells, 1);
		end(ctx, &r, 1);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(large__no_more_than_there_is_room_for, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 4 * MIB + 100);
		struct rref_stats before, after;
		struct rref_future *f;

		before = tg_stats(ctx);
		hold(ctx, ALL);
		f = start(r, RREF_FOREVER);
		for (unsigned out = 0; out + PIECES < 4 * PER_MIB + 1; out += 3) {
			holds_just(ctx, PIECES);
			give(ctx, 1);
			holds_just(ctx, PIECES - 1); /* not for a piece alone */
			give(ctx, 1);
			holds_just(ctx, PIECES - 2);
			give(ctx, 1);
		}
		release(ctx);
		check(f, 4 * MIB + 100);
		after = tg_stats(ctx);
		TG_IS(after.reads - before.reads, 4 * PER_MIB + 2);
		/* fewer, where several pieces ended at once */
		TG_CHECK(after.doorbells - before.doorbells <=
			 1 + (4 * PER_MIB + 2 - PIECES + 2) / 3);
		end(ctx, &r, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* Large reads come one after the other. Small reads do not wait for
 * large ones that wait for their turn. */
TG_TEST(several__first_come_first_served, 2)
{
	enum { N = 4 };
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r[N + 1];
		struct rref_future *f[N];

		for (int i = 0; i < N; i++)
			r[i] = value(ctx, MIB - (size_t)i);
		r[N] = value(ctx, 500);
		hold(ctx, PIECES);
		for (int i = 0; i < N; i++)
			f[i] = start(r[i], RREF_FOREVER);
		until_held(ctx, PIECES);
		TG_IS(tg_stats(ctx).waiting_reads, N - 1);
		for (int i = 0; i < 5; i++)
			check(start(r[N], RREF_FOREVER), 500);
		for (int i = 0; i < N; i++) {
			atomic_store(&to_hold, ALL);
			give(ctx, PIECES);
			TG_CHECK(tg_eventually(is_done, ctx, f[i]));
			if (i + 1 < N) {
				holds_just(ctx, PIECES);
				TG_CHECK(!rref_future_test(f[i + 1]));
			}
			TG_IS(tg_stats(ctx).waiting_reads, i + 2 < N ? (unsigned)(N - 2 - i) : 0);
		}
		release(ctx);
		for (int i = 0; i < N; i++)
			check(f[i], MIB - (size_t)i);
		until_none_waits(ctx);
		end(ctx, r, N + 1);
	}
	tg_finish(ctx);
	return 0;
}

/* A read that has had a turn goes after the others. */
TG_TEST(several__small_reads_pass_a_large_one, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r[2] = { value(ctx, 12 * MIB), value(ctx, MIB) };
		struct rref_future *large, *other;

		hold(ctx, ALL);
		large = start(r[0], RREF_FOREVER);
		other = start(r[1], RREF_FOREVER);
		for (unsigned out = 0; !rref_future_test(other); out++) {
			TG_CHECK(out < 5 * PER_MIB); /* the rest of 12 + 1 times as many */
			until_held(ctx, 1);
			give(ctx, 1);
			while (atomic_load(&to_give))
				rref_progress(ctx);
		}
		TG_CHECK(!rref_future_test(large));
		release(ctx);
		check(large, 12 * MIB);
		check(other, MIB);
		until_none_waits(ctx);
		end(ctx, r, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* Wrapped memory of worker 1: a payload of one message, with its header elsewhere. Worker 1 gets it
 * back after meeting point 1. */
static struct lent lent;

static int give_wrapped(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *r;
	int err;

	(void)arg;
	lend(ctx, &lent, WRAPPED, true, WRAPPED);
	r = wrap(&lent, 0, WRAPPED);
	err = rref_call_reply(call, &(struct rref_args){ .refs = &r, .nr_refs = 1 });
	rref_release(r);
	return err;
}

static struct rref *wrapped(struct rref_ctx *ctx)
{
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_rpc_sync(ctx, 1, "give_wrapped", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_wait(f, RREF_FOREVER));
	TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	check(start(r, RREF_FOREVER), WRAPPED);
	return r;
}

static struct rref_ctx *join_with_wrapped(int rank)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	tg_add(ctx, "give_wrapped", give_wrapped, 0);
	tg_meet_serving(ctx, 0);
	return ctx;
}

static void finish_with_wrapped(struct rref_ctx *ctx, int rank)
{
	tg_meet_serving(ctx, 1);
	if (rank == 1) {
		until_back(ctx, &lent);
		give_up(&lent);
	}
	tg_finish(ctx);
}

/* Two READs need no turn. */
TG_TEST(wrapped__is_not_kept_waiting, 2)
{
	enum { TIMES = 20 };
	struct rref_ctx *ctx = join_with_wrapped(rank);

	if (rank == 0) {
		struct rref *r[2] = { value(ctx, 3 * MIB), wrapped(ctx) };
		struct rref_future *large[3], *small[TIMES];

		hold(ctx, PIECES);
		for (int i = 0; i < 3; i++)
			large[i] = start(r[0], RREF_FOREVER);
		until_held(ctx, PIECES);
		check(start(r[1], RREF_FOREVER), WRAPPED);
		/* They do not wait for one another either, and the room
		 * is as before when all is over. */
		hold(ctx, ALL);
		for (int i = 0; i < TIMES; i++)
			small[i] = start(r[1], RREF_FOREVER);
		until_held(ctx, PIECES + 2 * TIMES);
		release(ctx);
		for (int i = 0; i < TIMES; i++)
			check(small[i], WRAPPED);
		for (int i = 0; i < 3; i++)
			check(large[i], 3 * MIB);
		until_none_waits(ctx);
		end(ctx, r, 2);
	}
	finish_with_wrapped(ctx, rank);
	return 0;
}

/* The time ends while the read waits for its turn, or between two turns. */
TG_TEST(waiting__times_out, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r[2] = { value(ctx, 4 * MIB), value(ctx, MIB) };

		for (int late = 0; late < 3; late++) {
			struct rref_future *large, *other, *last;

			hold(ctx, ALL);
			large = start(r[0], late == 1 ? RREF_FOREVER : 20 * MS);
			other = start(r[1], late == 2 ? RREF_FOREVER : 20 * MS);
			last = start(r[1], RREF_FOREVER);
			until_held(ctx, PIECES);
			if (late != 1) {
				TG_IS(rref_future_wait(large, RREF_FOREVER), -ETIMEDOUT);
				rref_future_free(large);
			}
			if (late != 2) {
				TG_IS(rref_future_wait(other, RREF_FOREVER), -ETIMEDOUT);
				rref_future_free(other);
			}
			TG_CHECK(tg_stats(ctx).quarantined > 0);
			holds_just(ctx, PIECES);
			release(ctx);
			if (late == 1)
				check(large, 4 * MIB);
			if (late == 2)
				check(other, MIB);
			check(last, MIB);
			until_none_waits(ctx);
		}
		end(ctx, r, 2);
	}
	tg_finish(ctx);
	return 0;
}

static bool has_resumed(struct rref_ctx *ctx, void *nr)
{
	rref_progress(ctx);
	return tg_stats(ctx).resumed_sessions >= *(uint64_t *)nr;
}

static void must_resume(struct rref_ctx *ctx)
{
	uint64_t nr = tg_stats(ctx).resumed_sessions + 1;

	rc_lock(ctx);
	rc_resume_break(ctx, &ctx->peers[1], -ECONNRESET, "a test");
	rc_unlock(ctx);
	TG_CHECK(tg_eventually(has_resumed, ctx, &nr));
}

/* A read that had nothing in flight waits for the next
 * connection. It does not wait for the pieces of the broken one. */
TG_TEST(waiting__its_connection_breaks, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r[2] = { value(ctx, 4 * MIB), value(ctx, MIB) };

		for (int round = 0; round < 3; round++) {
			struct rref_future *f[4];

			hold(ctx, PIECES);
			for (int i = 0; i < 4; i++)
				f[i] = start(r[i % 2], RREF_FOREVER);
			until_held(ctx, PIECES);
			must_resume(ctx);
			for (int i = 1; i < 4; i++)
				check(f[i], i % 2 ? MIB : 4 * MIB);
			TG_CHECK(!rref_future_test(f[0]));
			release(ctx);
			check(f[0], 4 * MIB);
			until_none_waits(ctx);
		}
		end(ctx, r, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* A read that has had a turn has nothing in flight just now. All of it is read over the next
 * connection, as the header is. */
TG_TEST(between_turns__its_connection_breaks, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 4 * MIB);

		for (int round = 0; round < 3; round++) {
			struct rref_future *f[2];
			struct rref_stats before;

			hold(ctx, ALL);
			for (int i = 0; i < 2; i++)
				f[i] = start(r, RREF_FOREVER);
			for (bool between = false; !between;) {
				until_held(ctx, 1);
				give(ctx, 1);
				while (atomic_load(&to_give))
					rref_progress(ctx);
				rc_lock(ctx);
				/* The read counts itself until all is posted. */
				between = f[0]->next && at_load(&f[0]->outstanding) == 1;
				rc_unlock(ctx);
			}
			TG_CHECK(f[0]->next < 4 * MIB);
			/* pieces of the other one, three at a time */
			holds_just(ctx, PIECES / 3 * 3);
			atomic_store(&to_hold, 0);
			before = tg_stats(ctx);
			must_resume(ctx);
			check(f[0], 4 * MIB);
			TG_IS(tg_stats(ctx).reads - before.reads, 4 * PER_MIB + 1);
			TG_CHECK(!rref_future_test(f[1]));
			release(ctx);
			check(f[1], 4 * MIB);
			until_none_waits(ctx);
		}
		end(ctx, &r, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* Short reads take no room from it, in any number. */
TG_TEST(large__is_not_starved_by_small_reads, 2)
{
	enum { TIMES = 20 };
	struct rref_ctx *ctx = join_with_wrapped(rank);

	if (rank == 0) {
		struct rref *r[2] = { value(ctx, 3 * MIB), wrapped(ctx) };
		struct rref_future *large, *small[TIMES];

		hold(ctx, 2 * TIMES);
		for (int i = 0; i < TIMES; i++)
			small[i] = start(r[1], RREF_FOREVER);
		until_held(ctx, 2 * TIMES);
		large = start(r[0], RREF_FOREVER);
		check(large, 3 * MIB);
		release(ctx);
		for (int i = 0; i < TIMES; i++)
			check(small[i], WRAPPED);
		until_none_waits(ctx);
		end(ctx, r, 2);
	}
	finish_with_wrapped(ctx, rank);
	return 0;
}

/* All fail, with and without pieces at the device. */
DEATH_TEST(waiting__its_owner_dies, 2, 1 << 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1)
		tg_serve_and_die(ctx, 0);

	struct rref *r[2] = { value(ctx, 4 * MIB), value(ctx, MIB) };
	struct rref_future *f[4];

	hold(ctx, ALL);
	for (int i = 0; i < 4; i++)
		f[i] = start(r[i % 2], RREF_FOREVER);
	until_held(ctx, PIECES);
	tg_set_flag(0, 1);
	for (int i = 3; i >= 0; i--) {
		if (i == 0) {
			TG_IS(tg_stats(ctx).waiting_reads, 0);
			release(ctx);
		}
		TG_CHECK(tg_eventually(is_done, ctx, f[i]));
		TG_IS(rref_future_wait(f[i], RREF_FOREVER), -EOWNERDEAD);
		rref_future_free(f[i]);
	}
	until_none_waits(ctx);
	rref_release(r[0]);
	rref_release(r[1]);
	tg_leave(ctx);
	return 0;
}

TG_TEST(waiting__shutdown, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 4 * MIB);
		struct rref_future *f[4];
		int err;

		hold(ctx, ALL);
		for (int i = 0; i < 4; i++)
			f[i] = start(r, RREF_FOREVER);
		until_held(ctx, PIECES);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
		for (int i = 0; i < 4; i++) {
			err = rref_future_wait(f[i], RREF_FOREVER);
			TG_CHECK(err == -ESHUTDOWN || err == -EOWNERDEAD);
			rref_future_free(f[i]);
		}
		rref_release(r);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	}
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(alone__with_one_doorbell),
		cmocka_unit_test(large__no_more_than_there_is_room_for),
		cmocka_unit_test(several__first_come_first_served),
		cmocka_unit_test(several__small_reads_pass_a_large_one),
		cmocka_unit_test(wrapped__is_not_kept_waiting),
		cmocka_unit_test(waiting__times_out),
		cmocka_unit_test(waiting__its_connection_breaks),
		cmocka_unit_test(between_turns__its_connection_breaks),
		cmocka_unit_test(large__is_not_starved_by_small_reads),
		cmocka_unit_test(waiting__its_owner_dies),
		cmocka_unit_test(waiting__shutdown),
	};

	return cmocka_run_group_tests_name("pieces", tests, NULL, NULL);
}
