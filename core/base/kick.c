/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wakes threads that sleep: the poller or a waiter on the devices, and the program's event loop.
 * How they go to sleep, and the order of accesses that a wake-up relies on: progress.c.
 */
#include <errno.h>
#include <unistd.h>

#include "core/base/kick.h"
#include "core/base/lock.h"

const void *rc_this_thread(void)
{
	static _Thread_local char here;

	return &here;
}

void rc_event_write(int fd)
{
	RB_NO_CANCEL; /* the caller may be in the midst of a fast read */
	uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void rc_event_read(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

void rc_kick(struct rref_ctx *ctx)
{
	uint32_t sleep = at_load_sc(&ctx->sleep.sleeping);

	if (likely(!sleep) || at_load(&ctx->sleep.kicked) == sleep)
		return;
	rc_event_write(ctx->sleep.kickfd);
	/* Comes last: a thread that stands still in between keeps no other from waking. */
	at_store(&ctx->sleep.kicked, sleep);
}

void rc_turn_by(struct rref_ctx *ctx, int64_t at)
{
	rc_assert_locked(ctx);
	ctx->turns.next_tick = min_of(ctx->turns.next_tick, at);
	/* The thread that asks may not come back before the poller wakes by itself. */
	if (at < ctx->sleep.wake_at)
		rc_kick(ctx);
}

void rc_loop_wake_slow(struct rref_ctx *ctx)
{
	uint32_t s = at_load(&ctx->sleep.loop);

	while (s == RC_LOOP_AWAKE || rc_loop_sleeps(s)) {
		/* Comes first: a thread that stands still in between keeps no other from it. */
		if (rc_loop_sleeps(s)) {
			rc_event_write(ctx->sleep.loop_wake_fd);
			at_store_rel(&ctx->sleep.loop_told, 1); /* Pairs with loop_is_here. */
		}
		/* The number tells this sleep from the next. */
		if (at_cas_weak_ar(&ctx->sleep.loop, &s, RC_LOOP_DUE))
			return;
	}
}
