/* SPDX-License-Identifier: Apache-2.0 */
/* The progress lock, and work that its next holder does. Design: docs/design/progress.md. */
#ifndef RC_BASE_LOCK_H
#define RC_BASE_LOCK_H

#include "base/assert.h"
#include "base/slow.h"
#include "core/base/locked.h"
#include "core/ctx.h"

enum { RC_UNLOCKED, RC_LOCKED, RC_LOCKED_WANTED }; /* WANTED: somebody may sleep on the word */
/* Takes the progress lock (lock.c). */
takes_lock void rc_lock(struct rref_ctx *ctx);
/*
 * Tries the lock, for a thread that comes again and again. It makes way for threads that wait for
 * the lock: they might never find it free.
 */
tries_lock bool rc_trylock_in_turn(struct rref_ctx *ctx);
/* Tries the lock for a moment. Pollers make way. */
tries_lock bool rc_lock_soon(struct rref_ctx *ctx);
/* Sleeps until the lock was let go of, for ns at most (under 1 s), then tries it. */
tries_lock bool rc_lock_within(struct rref_ctx *ctx, int64_t ns);
/*
 * Takes the lock after all work that was pushed before, and after the work that this work pushed.
 * After the shutdown callbacks may run meanwhile.
 */
takes_lock void rc_lock_settled(struct rref_ctx *ctx);
/* Gives the lock back, and runs the library's deferred work; never the program's code. */
gives_lock void rc_unlock(struct rref_ctx *ctx);
/*
 * Gives the lock back and runs nothing, for a caller that soon takes it again and runs the work
 * then.
 */
gives_lock void rc_unlock_bare(struct rref_ctx *ctx);
/*
 * Pauses between two looks at a state that other threads change: at first a moment, then up to 1
 * ms.
 */
void rc_pause(unsigned *turn);

/*
 * Notes of the locks that the calling thread holds (lock_owner.c). The checked build alone takes
 * them.
 */
#if RB_CHECKED
void rc_lock_taken(const struct rref_ctx *ctx);
void rc_lock_given(const struct rref_ctx *ctx);
#else
static inline void rc_lock_taken(const struct rref_ctx *ctx)
{
	(void)ctx;
}

static inline void rc_lock_given(const struct rref_ctx *ctx)
{
	(void)ctx;
}
#endif
bool rc_lock_is_mine(const struct rref_ctx *ctx);

/* Asserts that the calling thread holds the context's lock. */
#define rc_assert_locked(ctx) rb_assert(rc_lock_is_mine(ctx))

/*
 * Tries the lock. Acquire: partner of the unlock's release. The load is sc. Pairs with rc_unlock: a
 * thread that pushed work finds the lock free, or its holder finds the work.
 */
static inline tries_lock is_the_lock bool rc_trylock(struct rref_ctx *ctx)
{
	uint32_t free = RC_UNLOCKED;

	if (at_load_sc(&ctx->lock.word) != RC_UNLOCKED ||
	    !at_cas_ar(&ctx->lock.word, &free, RC_LOCKED))
		return false;
	rc_lock_taken(ctx);
	return true;
}

#endif
