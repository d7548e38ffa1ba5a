/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The time while a fence is due. Nothing of the session goes out or is taken, and nothing is gone
 * yet. The fence tells the first cause. White box: a worker holds its lock, so that the fence does
 * not follow at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <pthread.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/session/session.h"
#include "tg.h"

#define CALLS 8u

static bool is_down(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return !at_load(&ctx->peers[0].alive);
}

static void meet(struct rref_ctx *ctx)
{
	TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
}

/* Leaves with the other worker: no order is left to leave in behind a fence. */
static void leave(struct rref_ctx *ctx)
{
	tg_meet_serving(ctx, 2);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
}

static bool is_pending(const struct rref_future *f)
{
	return (at_load(&f->state) & RC_F_MASK) == RC_F_PENDING;
}

/* Takes the lock, once no fence is under way. Over ibv the device takes some time. */
static void lock_behind_fences(struct rref_ctx *ctx)
{
	int64_t deadline = tg_deadline();

	rc_lock(ctx);
	while (ctx->session.nr_ending && now_ns() < deadline) {
		rc_progress_locked(ctx, true);
		rc_unlock(ctx); /* runs what is due */
		tg_pause();
		rc_lock(ctx);
	}
}

TG_TEST(ending__the_first_cause_is_told, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rc_peer *p = &ctx->peers[1];
	struct rref_future *f;

	if (rank == 1) {
		TG_CHECK(tg_eventually(is_down, ctx, NULL));
		tg_drop_held();
		leave(ctx);
		return 0;
	}
	TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_DEFAULT, &f));
	tg_until_held(ctx, 1, 1);
	rc_lock(ctx);
	uint32_t fences = p->nr_fences;

	rc_session_end(ctx, p, -ENETRESET, "the first cause");
	rc_session_end(ctx, p, -EPROTO, "the second cause");
	/* Nothing is gone yet. */
	TG_IS(p->state, RC_PEER_ENDING);
	TG_CHECK(p->link && is_pending(f));
	TG_CHECK(rc_same_session(ctx, 1, p->epoch) && at_load(&p->alive));
	rc_unlock(ctx);
	lock_behind_fences(ctx);
	TG_IS(p->state, RC_PEER_DOWN);
	TG_IS(p->nr_fences, fences + 1);
	TG_CHECK(!p->link && !is_pending(f) && !at_load(&p->alive));
	rc_unlock(ctx);
	TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENETRESET);
	TG_TEXT("the first cause");
	rref_future_free(f);
	leave(ctx);
	return 0;
}

/* Sends a message that no worker can read, and calls behind it. */
static void be_bad(struct rref_ctx *ctx)
{
	static const uint8_t nonsense[24] = { 0xff };
	struct rc_peer *p = &ctx->peers[0];
	struct rref_future *f[CALLS];

	rc_lock(ctx);
	TG_IS(p->state, RC_PEER_UP);
	TG_OK(p->ops->send(p->link, nonsense, sizeof(nonsense)));
	rc_unlock(ctx);
	for (unsigned i = 0; i < CALLS; i++)
		TG_OK(rref_rpc_async(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, &f[i]));
	tg_set_flag(1, 1);
	for (unsigned i = 0; i < CALLS; i++) {
		TG_CHECK(rref_future_wait(f[i], RREF_DEFAULT) < 0);
		rref_future_free(f[i]);
	}
}

/* Lets a message of a batch end the session: nothing behind it is taken. */
TG_TEST(ending__the_rest_of_a_batch, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rc_peer *p = &ctx->peers[1];
	struct rw_message ping = { .frame.type = RW_PING, .u.number = 1 };

	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		be_bad(ctx);
		leave(ctx);
		return 0;
	}
	meet(ctx);
	rc_lock(ctx);
	tg_set_flag(0, 1);
	tg_wait_flag(1, 1);
	uint64_t dropped = at_load(&ctx->n.dropped), begun = at_load(&ctx->call.begun);
	int64_t deadline = tg_deadline();

	/* The calls may need a moment on their way, over hardware. */
	while (at_load(&ctx->n.dropped) < dropped + 1 + CALLS && now_ns() < deadline)
		rc_progress_locked(ctx, true);
	TG_IS(at_load(&ctx->n.dropped), dropped + 1 + CALLS);
	TG_IS(at_load(&ctx->call.begun), begun);
	TG_IS(p->state, RC_PEER_ENDING);
	TG_IS(p->ending.status, -EPROTO);
	TG_CHECK(strstr(p->why, "malformed"));
	/* A message to the peer waits meanwhile, and goes with the session. */
	uint64_t sent = p->traffic.sent;

	TG_OK(rc_send(ctx, 1, &ping));
	rc_send_after(ctx, p);
	TG_IS(p->traffic.sent, sent);
	TG_IS(p->nr_queued, 1);
	rc_unlock(ctx);
	lock_behind_fences(ctx);
	TG_CHECK(p->state != RC_PEER_ENDING && p->nr_queued == 0);
	rc_unlock(ctx);
	leave(ctx);
	return 0;
}

/* Lets the peer begin another session while the fence of the last one is due. */
TG_TEST(ending__the_next_session_comes_behind_the_fence, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rc_peer *p = &ctx->peers[1];

	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		rc_lock(ctx);
		rc_session_end(ctx, &ctx->peers[0], -ENETRESET, "the test broke it");
		rc_unlock(ctx);
		usleep(300000); /* past the pause before a fenced peer is tried again */
		TG_OK(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		leave(ctx);
		return 0;
	}
	meet(ctx);
	rc_lock(ctx);
	uint32_t epoch = p->epoch, fences = p->nr_fences;
	int64_t deadline = tg_deadline();

	tg_set_flag(0, 1);
	while (!p->ending.next && now_ns() < deadline) {
		rc_progress_locked(ctx, true);
		usleep(1000);
	}
	TG_CHECK(p->ending.next);
	TG_IS(p->state, RC_PEER_ENDING);
	TG_IS(p->ending.status, -ENETRESET);
	TG_IS(p->epoch, epoch);
	TG_IS(p->nr_fences, fences);
	rc_unlock(ctx);
	rc_lock(ctx);
	TG_CHECK(!p->ending.next);
	TG_IS(p->epoch, epoch + 1);
	TG_IS(p->nr_fences, fences + 1);
	rc_unlock(ctx);
	meet(ctx);
	leave(ctx);
	return 0;
}

/* Shuts down while a fence is due: it is the only one, and no session follows. */
TG_TEST(ending__a_shutdown_while_a_fence_is_due, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rc_peer *p = &ctx->peers[1];

	if (rank == 0) {
		meet(ctx);
		rc_lock(ctx);
		uint32_t fences = p->nr_fences;

		rc_session_end(ctx, p, -ENETRESET, "the first cause");
		rc_peers_close(ctx);
		TG_IS(p->state, RC_PEER_GONE);
		TG_IS(p->nr_fences, fences + 1);
		TG_CHECK(!p->link && !strcmp(p->why, "the first cause"));
		rc_unlock(ctx);
	} else {
		TG_CHECK(tg_eventually(is_down, ctx, NULL));
	}
	leave(ctx);
	return 0;
}

/* ---- reads ---- */

#define READERS 3
#define ROUNDS 5

struct reader {
	pthread_t thread;
	struct rref *ref;
	_Atomic unsigned good;
};

/* Reads until the session ends. */
static void *read_on(void *arg)
{
	struct reader *r = arg;
	struct rref_view *v;
	int err;

	while (!(err = rref_to_here(r->ref, RREF_DEFAULT, &v))) {
		TG_CHECK(!memcmp(rref_view_data(v), "kept", 4));
		rref_view_free(v);
		at_add(&r->good, 1);
	}
	TG_IS(err, -ENETRESET); /* the cause of the fence, at whatever time the read began */
	return NULL;
}

static struct rref *get_value(struct rref_ctx *ctx)
{
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_rpc_sync(ctx, 1, "tg.echo_refs", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_remote(ctx, 1, "tg.echo", &(struct rref_args){ .data = "kept", .length = 4 },
			  RREF_DEFAULT, &r));
	TG_OK(rref_creation(r, &f));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	return r;
}

static void read_until_the_fence(struct rref_ctx *ctx)
{
	struct reader r[READERS];
	struct rref *ref = get_value(ctx);

	for (int i = 0; i < READERS; i++) {
		r[i].ref = ref;
		r[i].good = 0;
		TG_OK(pthread_create(&r[i].thread, NULL, read_on, &r[i]));
	}
	for (int i = 0; i < READERS; i++)
		while (!at_load(&r[i].good))
			tg_pause();
	rc_lock(ctx);
	rc_session_end(ctx, &ctx->peers[1], -ENETRESET, "the test broke it");
	usleep(2000); /* reads go on, and some come to wait for the lock */
	rc_unlock(ctx);
	for (int i = 0; i < READERS; i++)
		TG_OK(pthread_join(r[i].thread, NULL));
	rref_release(ref);
}

TG_TEST(ending__reads_end_with_its_cause, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (int i = 0; i < ROUNDS && rank == 0; i++) {
		read_until_the_fence(ctx);
		usleep(300000);
	}
	leave(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ending__a_shutdown_while_a_fence_is_due),
		cmocka_unit_test(ending__reads_end_with_its_cause),
		cmocka_unit_test(ending__the_first_cause_is_told),
		cmocka_unit_test(ending__the_next_session_comes_behind_the_fence),
		cmocka_unit_test(ending__the_rest_of_a_batch),
	};

	return cmocka_run_group_tests_name("ending", tests, NULL, NULL);
}
