/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions that end, or go on over another connection, while the device is slow to destroy their
 * queue pairs. Nobody waits for the device with the progress lock. And nothing that waits for the
 * fence goes on before the device is done.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/slow.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/session/session.h"
#include "core/value/reader.h"
#include "fg.h"
#include "test/lib/tg_death.h"

#define BYTES 3000u

/* Worker 0 reads from workers 1 and 2. Worker 1 holds a value of worker 0. */
struct ends {
	struct fg g;
	struct rref *of_1, *of_2, *lent;
};

static struct ends e;

static int ends_begin(void **state)
{
	(void)state;
	e = (struct ends){ .g = { .world = 3 } };
	fg_join(&e.g);
	e.of_1 = fg_value(&e.g, 1, 0, BYTES, 1);
	e.of_2 = fg_value(&e.g, 2, 0, BYTES, 2);
	e.lent = fg_value(&e.g, 0, 1, BYTES, 3);
	fg_read(e.of_1, BYTES, 1);
	fg_read(e.of_2, BYTES, 2);
	fg_read(e.lent, BYTES, 3);
	return 0;
}

static int ends_end(void **state)
{
	(void)state;
	rref_release(e.of_1);
	rref_release(e.of_2);
	rref_release(e.lent);
	fg_leave(&e.g);
	/* The device did no such work under the lock. */
	assert_int_equal(rb_slow_holds(RB_SLOW_QP_DESTROY), 0);
	assert_int_equal(fv_knobs(0)->fail_destroys, 0);
	return 0;
}

static struct rc_peer *peer(int rank)
{
	return &e.g.ctx[0]->peers[rank];
}

/*
 * Ends the session of workers 0 and 1, or its connection, while device 0 holds destroys. destroys:
 * waits until it does.
 */
static void lose(bool session, bool destroys)
{
	struct rref_ctx *ctx = e.g.ctx[0];
	uint64_t held = fv_count(0).held_destroys;

	fv_knobs(0)->hold_destroys = 1;
	rc_lock(ctx);
	if (session)
		rc_session_end(ctx, peer(1), -EOWNERDEAD, "the test ends it");
	else
		rc_resume_break(ctx, peer(1), -ECONNRESET, "the test breaks it");
	rc_unlock(ctx);
	for (int64_t by = tg_deadline(); destroys && fv_count(0).held_destroys == held;
	     tg_pause())
		TG_CHECK(now_ns() < by);
}

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return !tg_stats(ctx).forks;
}

static bool session_is(struct rref_ctx *ctx, void *arg)
{
	bool is;

	rc_lock(ctx);
	is = peer(1)->state == *(enum rc_peer_state *)arg;
	rc_unlock(ctx);
	return is;
}

static void fence__is_over_when_the_device_is_done(void **state)
{
	struct rref_future *f;

	(void)state;
	lose(true, true);
	TG_OK(rref_to_here_async(e.of_1, 30 * NSEC_PER_SEC, &f));
	/* Longer than the grace: the peer may still read what it has a reference to. */
	for (int64_t until = now_ns() + 1500 * NSEC_PER_MSEC; now_ns() < until; usleep(1000))
		fg_read(e.of_2, BYTES, 2);
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	TG_IS(tg_stats(e.g.ctx[0]).forks, 1);
	TG_CHECK(session_is(e.g.ctx[0], &(enum rc_peer_state){ RC_PEER_ENDING }));
	fv_knobs(0)->hold_destroys = 0;
	TG_IS(rref_future_wait(f, 30 * NSEC_PER_SEC), -EOWNERDEAD);
	rref_future_free(f);
	TG_CHECK(tg_eventually(no_forks, e.g.ctx[0], NULL));
	rref_release(e.of_1);
	e.of_1 = fg_value(&e.g, 1, 0, BYTES, 4);
	fg_read(e.of_1, BYTES, 4);
}

static bool is_resumed(struct rref_ctx *ctx, void *arg)
{
	return tg_stats(ctx).resumed_sessions > *(uint64_t *)arg;
}

/* Has messages pass between workers 0 and 1, and worker 0 read from worker 2. */
static void others_go_on(void)
{
	for (int i = 0; i < 20; i++) {
		struct rref *more = fg_value(&e.g, 1, 0, BYTES, 5);

		fg_read(e.of_2, BYTES, 2);
		rref_release(more);
	}
}

static void resumed_session__reads_when_the_device_is_done(void **state)
{
	uint64_t resumed = tg_stats(e.g.ctx[0]).resumed_sessions;
	struct rref_future *f;

	(void)state;
	lose(false, true);
	TG_CHECK(tg_eventually(is_resumed, e.g.ctx[0], &resumed));
	TG_OK(rref_to_here_async(e.of_1, 30 * NSEC_PER_SEC, &f));
	/* Messages pass already. */
	others_go_on();
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	fv_knobs(0)->hold_destroys = 0;
	TG_OK(rref_future_wait(f, 30 * NSEC_PER_SEC));
	rref_future_free(f);
	fg_read(e.of_1, BYTES, 1);
}

static void destroy__that_fails_is_tried_again(void **state)
{
	(void)state;
	lose(true, true);
	fv_knobs(0)->fail_destroys = 3;
	fv_knobs(0)->hold_destroys = 0;
	TG_CHECK(tg_eventually(no_forks, e.g.ctx[0], NULL));
	rref_release(e.of_1);
	e.of_1 = fg_value(&e.g, 1, 0, BYTES, 4);
	fg_read(e.of_1, BYTES, 4);
}

#define VIEWS 40

static bool may_begin(struct rref_ctx *ctx, void *arg)
{
	bool may;

	(void)arg;
	rc_lock(ctx);
	may = peer(1)->state == RC_PEER_DOWN && now_ns() >= peer(1)->retry_at;
	rc_unlock(ctx);
	return may;
}

/* Loses a session, or its connection, whose queue pair stays for ever with a READ in it. */
static void lose_a_stuck_one(bool session, int err)
{
	struct rref_ctx *ctx = e.g.ctx[0];
	struct rc_landing *never;
	struct rref_view *v[VIEWS];
	struct rref_future *f;

	fv_knobs(0)->delay_ns = 3600 * NSEC_PER_SEC;
	fv_knobs(0)->lose_flushes = 1;
	TG_OK(rref_to_here_async(e.of_1, RREF_FOREVER, &f));
	never = f->landing;
	fv_knobs(0)->fail_destroys = 8;
	lose(session, false);
	fv_knobs(0)->delay_ns = 2000;
	fv_knobs(0)->hold_destroys = 0;
	TG_IS(rref_future_wait(f, 30 * NSEC_PER_SEC), err);
	TG_IS(tg_stats(ctx).quarantined, 1);
	fv_knobs(0)->lose_flushes = 0;
	rref_future_free(f);
	/* All else goes on, and that block is nobody else's. */
	TG_CHECK(tg_eventually(no_forks, ctx, NULL));
	TG_CHECK(tg_eventually(may_begin, ctx, NULL));
	rref_release(e.of_1);
	e.of_1 = fg_value(&e.g, 1, 0, BYTES, 4);
	for (int i = 0; i < VIEWS; i++) {
		TG_OK(rref_to_here(e.of_1, RREF_FOREVER, &v[i]));
		TG_CHECK(rref_view_data(v[i]) != (const void *)(never + 1));
	}
	for (int i = 0; i < VIEWS; i++)
		fg_check(v[i], BYTES, 4);
	TG_IS(tg_stats(ctx).quarantined, 1);
}

static void destroy__that_always_fails_keeps_the_memory(void **state)
{
	(void)state;
	lose_a_stuck_one(true, -EOWNERDEAD);
}

static void destroy__that_always_fails_ends_the_session(void **state)
{
	(void)state;
	lose_a_stuck_one(false, -ENETRESET);
}

/* ---- a thread that stands still while it posts ---- */

static struct still {
	pthread_t thread, loser;
	atomic_int stage;
	atomic_bool lost;
	bool session;
} still;

static void *stand_in_a_pin(void *arg)
{
	struct rc_reader *r = rc_reader_get(e.g.ctx[0]);

	(void)arg;
	TG_CHECK(rc_pin(r, peer(1)));
	atomic_store(&still.stage, 1);
	while (atomic_load(&still.stage) == 1)
		tg_pause();
	rc_unpin(r);
	return NULL;
}

static void *lose_it(void *arg)
{
	(void)arg;
	lose(still.session, false);
	atomic_store(&still.lost, true);
	return NULL;
}

/* Has a thread stand still that posts to worker 1. */
static void keep_one_posting(void)
{
	atomic_store(&still.stage, 0);
	TG_IS(pthread_create(&still.thread, NULL, stand_in_a_pin, NULL), 0);
	while (!atomic_load(&still.stage))
		tg_pause();
}

static bool has_cut_reads(struct rref_ctx *ctx, void *arg)
{
	bool yes;

	(void)arg;
	rc_lock(ctx);
	yes = peer(1)->reads_cut;
	rc_unlock(ctx);
	return yes;
}

/* Loses the session of workers 0 and 1, or its connection, under a thread that posts to it. */
static void lose_under_a_pin(bool session)
{
	atomic_store(&still.lost, false);
	still.session = session;
	keep_one_posting();
	TG_IS(pthread_create(&still.loser, NULL, lose_it, NULL), 0);
	for (int64_t end = tg_deadline(); !atomic_load(&still.lost); tg_pause())
		TG_CHECK(now_ns() < end);
	TG_IS(pthread_join(still.loser, NULL), 0);
}

static void let_it_post(void)
{
	atomic_store(&still.stage, 2);
	TG_IS(pthread_join(still.thread, NULL), 0);
}

static void fence__waits_without_the_lock_for_a_thread_that_posts(void **state)
{
	uint64_t held = fv_count(0).held_destroys;
	struct rref_future *f;

	(void)state;
	lose_under_a_pin(true);
	TG_OK(rref_to_here_async(e.of_1, 30 * NSEC_PER_SEC, &f));
	/* Calls take the lock. Longer than the grace. */
	for (int64_t until = now_ns() + 1500 * NSEC_PER_MSEC; now_ns() < until; usleep(1000)) {
		struct rref *more = fg_value(&e.g, 2, 0, BYTES, 6);

		fg_read(more, BYTES, 6);
		rref_release(more);
	}
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	TG_IS(tg_stats(e.g.ctx[0]).forks, 1);
	TG_CHECK(session_is(e.g.ctx[0], &(enum rc_peer_state){ RC_PEER_ENDING }));
	TG_IS(fv_count(0).held_destroys, held); /* no queue pair's end has begun */
	fv_knobs(0)->hold_destroys = 0;
	let_it_post();
	TG_IS(rref_future_wait(f, 30 * NSEC_PER_SEC), -EOWNERDEAD);
	rref_future_free(f);
	TG_CHECK(tg_eventually(no_forks, e.g.ctx[0], NULL));
	rref_release(e.of_1);
	e.of_1 = fg_value(&e.g, 1, 0, BYTES, 4);
	fg_read(e.of_1, BYTES, 4);
}

static void resumed_session__reads_behind_a_thread_that_posts(void **state)
{
	uint64_t resumed = tg_stats(e.g.ctx[0]).resumed_sessions;
	uint64_t held = fv_count(0).held_destroys;
	struct rref_future *f;

	(void)state;
	lose_under_a_pin(false);
	TG_CHECK(tg_eventually(is_resumed, e.g.ctx[0], &resumed));
	TG_OK(rref_to_here_async(e.of_1, 30 * NSEC_PER_SEC, &f));
	others_go_on();
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	TG_IS(fv_count(0).held_destroys, held);
	fv_knobs(0)->hold_destroys = 0;
	let_it_post();
	TG_OK(rref_future_wait(f, 30 * NSEC_PER_SEC));
	rref_future_free(f);
	fg_read(e.of_1, BYTES, 1);
}

/* Cuts off READs alone, under a thread that posts to them. Calls go on over the connection. */
static void reads__come_back_behind_a_thread_that_posts(void **state)
{
	struct rref_ctx *ctx = e.g.ctx[0];
	struct rref_future *f;
	bool did;

	(void)state;
	keep_one_posting();
	rc_lock(ctx);
	did = tg_refuse_a_read(ctx, 1);
	rc_unlock(ctx);
	TG_CHECK(did);
	TG_CHECK(tg_eventually(has_cut_reads, ctx, NULL));
	TG_OK(rref_to_here_async(e.of_1, 30 * NSEC_PER_SEC, &f));
	others_go_on();
	TG_IS(rref_future_wait(f, 0), -ETIMEDOUT);
	let_it_post();
	TG_OK(rref_future_wait(f, 30 * NSEC_PER_SEC));
	rref_future_free(f);
	fg_read(e.of_1, BYTES, 1);
	TG_CHECK(tg_stats(ctx).resumed_reads + tg_stats(ctx).resumed_sessions == 1);
}

static void *leave(void *arg)
{
	(void)arg;
	TG_OK(rref_shutdown(e.g.ctx[0], RREF_SHUTDOWN_NOW, 0));
	return NULL;
}

static void shutdown__waits_for_the_device(void **state)
{
	pthread_t thread;

	(void)state;
	lose(true, true);
	TG_IS(pthread_create(&thread, NULL, leave, NULL), 0);
	usleep(200000);
	TG_IS(at_load(&e.g.ctx[0]->state), RC_CTX_CLOSING);
	fv_knobs(0)->hold_destroys = 0;
	TG_IS(pthread_join(thread, NULL), 0);
	rref_release(e.of_1);
	rref_release(e.of_2);
	e.of_1 = e.of_2 = NULL;
	rref_free_ctx(e.g.ctx[0]);
	e.g.ctx[0] = NULL;
	for (int i = 1; i < 3; i++)
		TG_OK(rref_shutdown(e.g.ctx[i], RREF_SHUTDOWN_NOW, 0));
	rref_release(e.lent);
	e.lent = NULL;
	for (int i = 1; i < 3; i++)
		rref_free_ctx(e.g.ctx[i]);
	memset(e.g.ctx, 0, sizeof(e.g.ctx));
}

#define ENDS(name) cmocka_unit_test_setup_teardown(name, ends_begin, ends_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ENDS(destroy__that_always_fails_ends_the_session),
		ENDS(destroy__that_always_fails_keeps_the_memory),
		ENDS(destroy__that_fails_is_tried_again),
		ENDS(fence__is_over_when_the_device_is_done),
		ENDS(fence__waits_without_the_lock_for_a_thread_that_posts),
		ENDS(reads__come_back_behind_a_thread_that_posts),
		ENDS(resumed_session__reads_behind_a_thread_that_posts),
		ENDS(resumed_session__reads_when_the_device_is_done),
		ENDS(shutdown__waits_for_the_device),
	};

	return cmocka_run_group_tests_name("ends", tests, NULL, NULL);
}
