/* SPDX-License-Identifier: Apache-2.0 */
/* Wakes the threads that sleep: the poller, and the program's event loop. */
#ifndef RC_BASE_KICK_H
#define RC_BASE_KICK_H

#include "core/ctx.h"

/* Wakes the poller if it sleeps: there is work. */
void rc_kick(struct rref_ctx *ctx);
/* Has a turn of the engine look at timers at that time, or before. */
needs_lock void rc_turn_by(struct rref_ctx *ctx, int64_t at);

static inline bool rc_has_poller(const struct rref_ctx *ctx)
{
	return at_load(&ctx->turns.has_poller);
}

/* Wakes a thread that sleeps on the devices for its own wait, which may be over. */
static inline void rc_kick_waiter(struct rref_ctx *ctx)
{
	if (!rc_has_poller(ctx))
		rc_kick(ctx);
}

const void *rc_this_thread(void);                            /* not NULL; different for each */
/*
 * The event loop's state. Without a loop it is NONE; DUE: something has ended since it looked. The
 * number of its sleep is added to ASLEEP, in steps of RC_LOOP_SLEEPS.
 */
enum rc_loop { RC_LOOP_NONE, RC_LOOP_AWAKE, RC_LOOP_DUE, RC_LOOP_ASLEEP, RC_LOOP_SLEEPS };

static inline bool rc_loop_sleeps(uint32_t loop)
{
	return loop % RC_LOOP_SLEEPS == RC_LOOP_ASLEEP;
}

void rc_loop_wake_slow(struct rref_ctx *ctx);
/* An eventfd: makes it readable; takes what makes it so. */
void rc_event_write(int fd);
void rc_event_read(int fd);

static inline void rc_loop_wake(struct rref_ctx *ctx)
{
	if (unlikely(at_load_sc(&ctx->sleep.loop)))
		rc_loop_wake_slow(ctx);
}

#endif
