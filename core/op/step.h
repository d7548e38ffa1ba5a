/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of the protocol machine. */
#ifndef RC_OP_STEP_H
#define RC_OP_STEP_H

#include "core/ctx.h"

void rc_effects(struct rref_ctx *ctx); /* [lock] carries out what is due */
/* [lock] A step and its effects. ev->now is filled in. Returns what rp_step does. */
int rc_step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec);
/* [lock] The same; now: the clock, read just before. */
int rc_step_at(struct rref_ctx *ctx, struct rp_event *ev, int64_t now);

#endif
