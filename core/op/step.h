/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of the protocol machine. */
#ifndef RC_OP_STEP_H
#define RC_OP_STEP_H

#include "core/base/locked.h"
#include "core/ctx.h"

needs_lock void rc_effects(struct rref_ctx *ctx); /* carries out what is due */
/* A step and its effects. ev->now is filled in. Returns what rp_step does. */
needs_lock int rc_step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec);
/* The same; now: the clock, read just before. */
needs_lock int rc_step_at(struct rref_ctx *ctx, struct rp_event *ev, int64_t now);

#endif
