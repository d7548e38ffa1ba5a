/* SPDX-License-Identifier: Apache-2.0 */
/* The locks that a thread holds, for assertions. Empty without RREF_CHECKED. */
#include "core/base/lock.h"

#if RB_CHECKED

/* A thread may hold the locks of this many contexts at once; the library itself takes one. */
#define LOCKS_MAX 16

static _Thread_local const struct rref_ctx *mine[LOCKS_MAX];
static _Thread_local unsigned nr_mine;

bool rc_lock_is_mine(const struct rref_ctx *ctx)
{
	for (unsigned i = 0; i < nr_mine; i++)
		if (mine[i] == ctx)
			return true;
	return false;
}

void rc_lock_taken(const struct rref_ctx *ctx)
{
	rb_assert(!rc_lock_is_mine(ctx));
	rb_assert_is(nr_mine, <, LOCKS_MAX);
	mine[nr_mine++] = ctx;
	rb_hold_begin();
}

void rc_lock_given(const struct rref_ctx *ctx)
{
	rb_assert(rc_lock_is_mine(ctx));
	rb_hold_end();
	for (unsigned i = 0; i < nr_mine; i++)
		if (mine[i] == ctx) {
			mine[i] = mine[--nr_mine];
			return;
		}
}

#endif
