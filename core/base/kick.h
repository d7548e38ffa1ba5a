/* SPDX-License-Identifier: Apache-2.0 */
/* Wakes the threads that sleep: the poller, and the program's event loop. */
#ifndef RC_BASE_KICK_H
#define RC_BASE_KICK_H

#include "core/ctx.h"

/* Wakes the poller if it sleeps: there is work. */
void rc_kick(struct rref_ctx *ctx);
const void *rc_this_thread(void);                            /* not NULL; different for each */
/* The event loop's state. Without a loop it is NONE; DUE: something has ended since it looked. */
enum rc_loop { RC_LOOP_NONE, RC_LOOP_AWAKE, RC_LOOP_DUE, RC_LOOP_ASLEEP };
void rc_loop_wake_slow(struct rref_ctx *ctx);

static inline void rc_loop_wake(struct rref_ctx *ctx)
{
	if (unlikely(at_load_sc(&ctx->sleep.loop)))
		rc_loop_wake_slow(ctx);
}

#endif
