/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loops over all workers of the group. A hold of the lock looks at some of them only. So other
 * threads wait for as long in a large group as in a small one.
 */
#ifndef RC_BASE_RANKS_H
#define RC_BASE_RANKS_H

#include <stdint.h>

#include "base/slow.h"
#include "core/base/locked.h"
#include "core/base/lock.h"

/* Workers that a hold looks at. One in tests, whose groups are small. */
#define RC_RANKS_TURN (RB_CHECKED ? 1u : 64u)

/*
 * Counts a worker that a loop looks at next; i is its rank. Lets go of the lock and takes it again
 * at each turn's end.
 */
static inline needs_lock void rc_rank_next(struct rref_ctx *ctx, uint32_t i)
{
	if (i && i % RC_RANKS_TURN == 0) {
		rc_unlock(ctx);
		rc_lock(ctx);
	}
	rb_slow_rank(2 * RC_RANKS_TURN);
}

#endif
