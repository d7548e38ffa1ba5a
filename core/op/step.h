/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of the protocol machine. */
#ifndef RC_OP_STEP_H
#define RC_OP_STEP_H

#include "core/base/locked.h"
#include "core/ctx.h"

needs_lock void rc_effects(struct rref_ctx *ctx); /* carries out what is due */
/* Makes a step and carries out its effects. Fills in ev->now. Returns the result of rp_step. */
needs_lock int rc_step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec);
/* Does the same. now: the clock, read just before. */
needs_lock int rc_step_at(struct rref_ctx *ctx, struct rp_event *ev, int64_t now);
/*
 * Finds the value of id, if worker `rank` holds it by that fork. Returns 0 or -errno: -ESHUTDOWN
 * when the machine is gone, or as rp_held_value.
 */
needs_lock int rc_held_value(struct rref_ctx *ctx, uint32_t rank, const struct rref_id *id,
			     const struct rref_id *fork, void **value);

#endif
