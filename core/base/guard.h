/* SPDX-License-Identifier: Apache-2.0 */
/* The guard of each public call: may this thread use the context now? */
#ifndef RC_BASE_GUARD_H
#define RC_BASE_GUARD_H

#include "core/ctx.h"

int rc_fail_child(void); /* -ECHILD */
int rc_enter_slow(const struct rref_ctx *ctx);
#define RC_NO_GATE UINT32_MAX
bool rc_in_scope_hook(void);   /* scope.c */
void rc_scopes_fork_child(void);

static inline bool rc_usable(const struct rref_ctx *ctx)
{
	return at_load_acq(&ctx->state) == RC_CTX_RUNNING && ctx->guard.gate == rb_generation();
}

/* Returns 0 if the context may be used by this process now. */
static inline int rc_enter(struct rref_ctx *ctx)
{
	return likely(ctx && rc_usable(ctx)) ? 0 : rc_enter_slow(ctx);
}

/*
 * Returns true in a child made by fork(), which shares memory and devices with its parent. It may
 * look, but neither write, wait nor free.
 */
static inline bool rc_is_child(const struct rref_ctx *ctx)
{
	return unlikely(ctx->guard.generation != rb_generation());
}

/*
 * Returns true if no call is allowed: in a child, and in a scope hook. For the errno:
 * rc_enter_slow.
 */
static inline bool rc_is_barred(const struct rref_ctx *ctx)
{
	return unlikely(ctx->guard.gate != rb_generation()) &&
	       (rc_is_child(ctx) || rc_in_scope_hook());
}

#endif
