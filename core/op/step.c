/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps of the protocol machine. Its effects go up through ctx->op.effect, until none is left.
 */
#include <errno.h>

#include "core/base/clock.h"
#include "core/base/lock.h"
#include "core/op/step.h"

/* Carries the next effect out. Returns false if there is none. */
static needs_lock bool carry_out(struct rref_ctx *ctx)
{
	const struct rp_effect *e = rp_effect_next(ctx->op.machine);

	if (e)
		ctx->op.effect(ctx, e);
	return e;
}

void rc_effects(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	/* Effects of a step that an effect led to are taken out by the loop that is under way. */
	if (ctx->op.in_effects)
		return;
	ctx->op.in_effects = true;
	while (carry_out(ctx))
		;
	ctx->op.in_effects = false;
}

static needs_lock int step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec,
			   int64_t now)
{
	int err;

	if (!ctx->op.machine)
		return -ESHUTDOWN;
	ev->now = rc_age_at(ctx, now);
	err = rp_step(ctx->op.machine, ev, rec);
	/* An event that gives back never fails for want of memory, only for want of room. Then
	 * effects that are due come first. */
	while (unlikely(err == -ENOMEM) && rp_gives_back(ev->type) && carry_out(ctx))
		err = rp_step(ctx->op.machine, ev, rec);
	rc_effects(ctx);
	return err;
}

int rc_step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec)
{
	rc_assert_locked(ctx);
	return step(ctx, ev, rec, rc_coarse_ns());
}

int rc_step_at(struct rref_ctx *ctx, struct rp_event *ev, int64_t now)
{
	rc_assert_locked(ctx);
	return step(ctx, ev, NULL, now);
}

int rc_held_value(struct rref_ctx *ctx, uint32_t rank, const struct rref_id *id,
		  const struct rref_id *fork, void **value)
{
	rc_assert_locked(ctx);
	return ctx->op.machine ? rp_held_value(ctx->op.machine, rank, id, fork, value)
			       : -ESHUTDOWN;
}
