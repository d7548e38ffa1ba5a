/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asynchronous reads of bytes whose READ is under way when they begin. They have a short way to the
 * device and back. All that may come meanwhile comes to them: cancels, time-outs, frees, releases
 * of the reference. Values are gone, and the device is full.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "test/roce/read/hold.h"
#include "base/fast.h"
#include "core/op/kind.h"
#include "fg.h"

#define BYTES 3000u
#define MANY 1500u /* more READs than a send queue takes */
#define SOON_NS (20 * tg_slow() * NSEC_PER_SEC)

static struct fg g;
static struct rref_ctx *ctx;
static struct rref *ref;

static int plain_begin(void **state)
{
	(void)state;
	g = (struct fg){ .world = 2 };
	fg_join(&g);
	ctx = g.ctx[0];
	ref = fg_value(&g, 1, 0, BYTES, BYTES);
	fg_read(ref, BYTES, BYTES);
	return 0;
}

static bool nothing_is_held(struct rref_ctx *c, void *arg)
{
	struct rref_stats s = tg_stats(c);

	(void)arg;
	rref_progress(c);
	return !s.quarantined && !s.ops_in_flight && !s.landing_bytes && !s.waiting_reads &&
	       !at_load(&c->sleep.reads_in_flight);
}

static int plain_end(void **state)
{
	(void)state;
	release(ctx);
	TG_CHECK(tg_eventually(nothing_is_held, ctx, NULL));
	at_store(&rc_never_again, false);
	rref_release(ref);
	fg_leave(&g);
	return 0;
}

/* Begins a read, which goes the short way. */
static struct rref_future *begin_plain(int64_t timeout)
{
	struct rref_future *f;

	TG_OK(rref_to_here_async(ref, timeout, &f));
	TG_CHECK(RB_FAST(f->plain) || !RB_FAST(true));
	return f;
}

/* Begins one whose end is kept back. */
static struct rref_future *begin_held(int64_t timeout)
{
	unsigned n = atomic_load(&nr_held) + 1;
	struct rref_future *f;

	hold(ctx, 1);
	f = begin_plain(timeout);
	TG_CHECK(tg_eventually(holds, ctx, &n));
	TG_IS(rref_future_test(f), 0);
	return f;
}

static void ends_with_value(struct rref_future *f)
{
	struct rref_view *v;

	TG_OK(rref_future_wait(f, SOON_NS));
	TG_OK(rref_future_view(f, &v));
	fg_check(v, BYTES, BYTES);
	rref_future_free(f);
}

/* Checks that the landing block stays with the device until the READ's end. */
static void is_quarantined(void)
{
	struct rref_stats s = tg_stats(ctx);

	TG_IS(s.quarantined, 1);
	TG_CHECK(s.landing_bytes);
}

static void reference__is_released_meanwhile(void **state)
{
	struct rref_future *f = begin_held(RREF_FOREVER);
	struct rref *other = fg_value(&g, 1, 0, BYTES, 7);

	(void)state;
	rref_release(ref);
	ref = other;
	fg_read(ref, BYTES, 7);
	release(ctx);
	ends_with_value(f);
}

static void future__is_freed_meanwhile(void **state)
{
	(void)state;
	rref_future_free(begin_held(RREF_FOREVER));
	TG_IS(tg_stats(ctx).ops_in_flight, 1);
	TG_CHECK(tg_stats(ctx).landing_bytes);
}

static void future__is_freed_with_its_view(void **state)
{
	struct rref_future *f = begin_plain(RREF_FOREVER);

	(void)state;
	TG_OK(rref_future_wait(f, SOON_NS));
	rref_future_free(f);
}

static void cancel__leaves_the_block_to_the_device(void **state)
{
	struct rref_future *f = begin_held(RREF_FOREVER);

	(void)state;
	TG_OK(rref_future_cancel(f));
	TG_IS(rref_future_wait(f, 0), -ECANCELED);
	rref_future_free(f);
	is_quarantined();
	ends_with_value(begin_plain(RREF_FOREVER));
}

static void note_the_end(struct rref_future *f, void *arg)
{
	(void)f;
	atomic_store((atomic_int *)arg, 1);
}

static bool is_noted(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load((atomic_int *)arg);
}

static void time__ends_without_a_waiter(void **state)
{
	struct rref_future *f = begin_held(100 * NSEC_PER_MSEC);
	atomic_int noted = 0;

	(void)state;
	TG_OK(rref_future_then(f, note_the_end, &noted));
	TG_CHECK(tg_eventually(is_noted, ctx, &noted));
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	rref_future_free(f);
	is_quarantined();
}

static void value__is_another_by_now(void **state)
{
	struct rref_future *f = begin_held(RREF_FOREVER);

	(void)state;
	f->loc.nonce ^= 1;
	release(ctx);
	TG_IS(rref_future_wait(f, SOON_NS), -ESTALE);
	rref_future_free(f);
	ends_with_value(begin_plain(RREF_FOREVER));
}

static bool is_asleep_at_all(struct rref_ctx *c, void *arg)
{
	(void)arg;
	return at_load(&c->sleep.sleeping);
}

/* Begins a read that ends when the poller sleeps, and no other thread looks. */
static struct rref_future *begin_and_sleep(void)
{
	struct rref_future *f;

	fv_knobs(0)->delay_ns = 300 * tg_slow() * NSEC_PER_MSEC;
	f = begin_plain(RREF_FOREVER);
	TG_CHECK(tg_eventually(is_asleep_at_all, ctx, NULL));
	fv_knobs(0)->delay_ns = 0;
	return f;
}

static void poller__sleeps_when_it_ends(void **state)
{
	struct rref_future *f, *out;
	struct rref_queue *q;
	atomic_int noted = 0;

	(void)state;
	f = begin_and_sleep();
	TG_OK(rref_future_then(f, note_the_end, &noted));
	TG_CHECK(tg_eventually(is_noted, ctx, &noted));
	ends_with_value(f);
	f = begin_and_sleep();
	TG_OK(rref_queue_new(ctx, &q));
	TG_OK(rref_queue_add(q, f, NULL));
	TG_OK(rref_queue_next(q, SOON_NS, &out, NULL));
	TG_CHECK(out == f);
	rref_queue_free(q);
	ends_with_value(f);
	f = begin_and_sleep();
	TG_IS(rref_wait_any(&f, 1, SOON_NS), 0);
	ends_with_value(f);
	ends_with_value(begin_and_sleep());
}

static void device__has_no_room(void **state)
{
	static struct rref_future *f[MANY];
	unsigned short_ways = 0;

	(void)state;
	fv_knobs(0)->delay_ns = tg_slow() * NSEC_PER_SEC;
	for (unsigned i = 0; i < MANY; i++) {
		TG_OK(rref_to_here_async(ref, RREF_FOREVER, &f[i]));
		rc_lock(ctx); /* the poller tries again */
		short_ways += f[i]->plain;
		rc_unlock(ctx);
	}
	TG_CHECK(short_ways < MANY);
	fv_knobs(0)->delay_ns = 0;
	for (unsigned i = 0; i < MANY; i++)
		ends_with_value(f[i]);
}

#define PLAIN(test) cmocka_unit_test_setup_teardown(test, plain_begin, plain_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PLAIN(reference__is_released_meanwhile),
		PLAIN(future__is_freed_meanwhile),
		PLAIN(future__is_freed_with_its_view),
		PLAIN(cancel__leaves_the_block_to_the_device),
		PLAIN(time__ends_without_a_waiter),
		PLAIN(value__is_another_by_now),
		PLAIN(poller__sleeps_when_it_ends),
		PLAIN(device__has_no_room),
	};

	return cmocka_run_group_tests_name("plain", tests, NULL, NULL);
}
