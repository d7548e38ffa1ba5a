/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wakes threads that sleep: the poller or a waiter on the devices, and the program's event loop.
 * How they go to sleep, and the order of accesses that a wake-up relies on: progress.c.
 */
#include <errno.h>
#include <unistd.h>

#include "core/base/kick.h"

const void *rc_this_thread(void)
{
	static _Thread_local char here;

	return &here;
}

static void write_one(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void rc_kick(struct rref_ctx *ctx)
{
	if (unlikely(at_load_sc(&ctx->sleep.sleeping)) && !at_xchg_ar(&ctx->sleep.kicked, 1))
		write_one(ctx->sleep.kickfd);
}

void rc_loop_wake_slow(struct rref_ctx *ctx)
{
	uint32_t s = at_load(&ctx->sleep.loop);

	while (s == RC_LOOP_AWAKE || s == RC_LOOP_ASLEEP)
		if (at_cas_weak_ar(&ctx->sleep.loop, &s, RC_LOOP_DUE)) {
			if (s != RC_LOOP_ASLEEP)
				return;
			write_one(ctx->sleep.loop_wake_fd);
			at_store_rel(&ctx->sleep.loop_told, 1); /* Pairs with loop_is_here. */
			return;
		}
}
