/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that only serves: rref_serve.
 *
 * It is the first barrier of a graceful shutdown, without an end. This worker has come, and waits
 * until all others have. So the group ends by itself when the others end, and rref_shutdown goes on
 * from there. A server needs more than a barrier has: a signal handler may stop it. It also goes on
 * when rank 0 dies, which counts the workers that came. Then the server itself looks whether any
 * worker is left.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/ranks.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/op/kind.h"
#include "core/session/session.h"

#define AGAIN_NS (1 * NSEC_PER_SEC) /* time between two looks while rank 0 is away */

/* Ends the wait of rref_serve if it is asked for. */
void rc_serve_look(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	/* sc. Pairs with rref_serve_stop, which stores and then looks at `sleeping`. */
	if (!at_load(&ctx->end.serving) || !at_load_sc(&ctx->end.serve_stop) ||
	    !ctx->end.barrier_op)
		return;
	rc_op_end(ctx, ctx->end.barrier_op, -ECANCELED, "rref_serve_stop");
}

void rc_serve_end(struct rref_ctx *ctx)
{
	unsigned turn = 0;

	while (at_load_acq(&ctx->end.serving)) {
		at_store_sc(&ctx->end.serve_stop, 1);
		rc_lock(ctx);
		rc_serve_look(ctx);
		rc_unlock(ctx);
		rc_pause(&turn);
	}
}

/*
 * Returns whether all workers but this one and rank 0 seem to be gone. Speaks to the workers that
 * it knows nothing of.
 */
static needs_lock bool nobody_left(struct rref_ctx *ctx)
{
	bool left = false;

	for (uint32_t i = 0; i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];

		rc_rank_next(ctx, i);
		if (i == ctx->rank || p->said_goodbye ||
		    (!at_load(&p->alive) && (p->ever_up || p->nobody)))
			continue;
		left = true;
		if (!p->ever_up && p->state == RC_PEER_DOWN && now_ns() >= p->retry_at)
			rc_peer_want(ctx, p);
	}
	return !left;
}

/*
 * Returns whether another worker has come, as far as rank 0 counts. True on other ranks and in a
 * group of one.
 */
static needs_lock bool anybody_came(const struct rref_ctx *ctx)
{
	bool came = ctx->rank != 0 || ctx->world == 1;

	for (uint32_t i = 1; !came && i < ctx->world; i++)
		came = ctx->end.barrier_seen[i] > 0;
	return came;
}

/* Returns how the wait ended: 0, an error, or 1 if it goes on. */
static needs_lock int judge(struct rref_ctx *ctx, int status)
{
	const struct rc_peer *zero = &ctx->peers[0];

	if (status == -ECANCELED)
		return 0;
	if (status == 0)
		return anybody_came(ctx)
			       ? 0
			       : rc_fail(EOWNERDEAD, "every other worker of the group has died");
	if (at_load(&ctx->state) != RC_CTX_RUNNING)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	if (!nobody_left(ctx))
		return 1;
	return rc_fail(EOWNERDEAD,
		       "no worker is left to serve, and %s (rank 0) did not end in order: %s",
		       zero->member->name, zero->why);
}

static int serve(struct rref_ctx *ctx)
{
	int64_t deadline = INT64_MAX;
	struct rref_future *f;
	int err;

	for (;;) {
		err = rc_op_get(ctx, &rc_barrier_kind, INT64_MAX, &f);
		if (err)
			return err;
		rc_lock(ctx);
		if (rc_barrier_come(ctx, f,
				    ctx->end.came ? ctx->end.barrier_sent
						  : ctx->end.barrier_sent + 1,
				    &ctx->end.came_calm, now_ns() + AGAIN_NS))
			deadline = now_ns() + AGAIN_NS;
		ctx->end.came = true;
		rc_serve_look(ctx);
		rc_unlock(ctx);
		rc_op_wait(f, deadline);
		rc_lock(ctx);
		rc_op_end(ctx, f, -EAGAIN, "rank 0 is away");
		ctx->end.barrier_op = NULL;
		err = judge(ctx, f->status);
		rc_unlock(ctx);
		rc_op_put(f);
		if (err <= 0)
			return err;
		deadline = now_ns() + AGAIN_NS;
	}
}

int rref_serve(struct rref_ctx *ctx)
{
	RB_NO_CANCEL;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (rc_in_callback())
		return rc_fail(EDEADLK, "rref_serve: called from a callback or handler");
	rc_lock(ctx);
	/* Checked again: a whole shutdown may have passed since the first look. */
	if (at_load(&ctx->end.closing) || at_load(&ctx->state) != RC_CTX_RUNNING)
		err = rc_fail(ESHUTDOWN, "the context is being shut down");
	else if (at_load(&ctx->end.serving))
		err = rc_fail(EBUSY, "another thread is in rref_serve");
	else
		at_store(&ctx->end.serving, 1);
	rc_unlock(ctx);
	if (err)
		return err;
	err = serve(ctx);
	if (!err)
		rc_error_clear();
	at_store(&ctx->end.serve_stop, 0);
	/* comes last. Pairs with rc_serve_end: after it the context may be freed. */
	at_store_rel(&ctx->end.serving, 0);
	return err;
}

/* Stops rref_serve. A signal handler may call it: one store, and one write if a thread sleeps. */
int rref_serve_stop(struct rref_ctx *ctx)
{
	int saved = errno;

	if (!ctx || rc_is_child(ctx))
		return ctx ? -ECHILD : -EINVAL;
	at_store_sc(&ctx->end.serve_stop, 1);
	rc_kick(ctx);
	errno = saved;
	return 0;
}
