/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress lock. Two things happen at its release, outside it: callbacks and inline handlers that were deferred
 * run, and handles dropped meanwhile by other threads (which do not wait for the lock) are taken care of.
 */
#include "rc.h"

static _Thread_local unsigned callback_depth;

bool rc_in_callback(void)
{
	return callback_depth > 0;
}

void rc_callback_enter(void)
{
	callback_depth++;
}

void rc_callback_leave(void)
{
	callback_depth--;
}

void rc_lock(struct rref_ctx *ctx)
{
	if (pthread_mutex_trylock(&ctx->lock) == 0)
		return;
	at_add(&ctx->lock_wanted, 1);
	pthread_mutex_lock(&ctx->lock);
	at_sub(&ctx->lock_wanted, 1);
}

bool rc_trylock(struct rref_ctx *ctx)
{
	return pthread_mutex_trylock(&ctx->lock) == 0;
}

static void splice(struct list *to, struct list *from)
{
	struct list *n;

	list_init(to);
	while ((n = list_pop(from)))
		list_add_tail(to, n);
}

void rc_unlock(struct rref_ctx *ctx)
{
	for (;;) {
		struct list ops, calls, *n;
		bool deferred = !list_empty(&ctx->deferred_ops) || !list_empty(&ctx->deferred_calls);

		if (unlikely(deferred)) {
			splice(&ops, &ctx->deferred_ops);
			splice(&calls, &ctx->deferred_calls);
		}
		pthread_mutex_unlock(&ctx->lock);
		if (unlikely(deferred)) {
			while ((n = list_pop(&ops)))
				rc_op_run_then(container_of(n, struct rref_future, then_node));
			while ((n = list_pop(&calls)))
				rc_run_call(container_of(n, struct rref_call, node));
		}
		/* sc: partner of rref_release's push; whoever pushed while we held the lock did not wait for it. */
		if (likely(!at_load_sc(&ctx->dropped)) || !rc_trylock(ctx))
			return;
		rc_drain_dropped(ctx);
	}
}
