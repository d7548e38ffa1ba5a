/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks: the program's code that is due. A callback, an inline handler, a release callback and the
 * delivery of log lines are each a hook on one queue. Nothing in the library runs them in passing:
 * hook.c does, on threads that are free to be away for as long as the program likes. With a poller
 * these are the hands of poller.c. In the manual mode these are the threads in rref_progress and in
 * waits.
 */
#ifndef RC_HOOK_H
#define RC_HOOK_H

#include <stdbool.h>

#include "base/util.h"
#include "core/base/locked.h"

struct rref_ctx;

struct rc_hook {
	struct list node;	/* under the lock; ctx->hooks.due */
	/* called once, without the lock; may wait */
	void (*run)(struct rref_ctx *ctx, struct rc_hook *h);
};

/* Queues a hook, and wakes the thread that will run it. */
needs_lock void rc_hook_push(struct rref_ctx *ctx, struct rc_hook *h);

/* Takes the next hook, NULL if there is none. The caller calls rc_hook_run, without the lock. */
needs_lock struct rc_hook *rc_hook_pop(struct rref_ctx *ctx);

/* Runs the hook. No lock held. */
void rc_hook_run(struct rref_ctx *ctx, struct rc_hook *h);

/*
 * Unlocks, and runs what is due on this thread, if it may: see hook.c. Returns how many were run.
 */
gives_lock unsigned rc_unlock_hooks(struct rref_ctx *ctx);

/*
 * Manual mode: as many hooks as may be are on this thread's stack. It runs no further one until
 * one of them ends.
 */
bool rc_hooks_deep(void);

/* Manual mode: for how many ns hooks are another thread's to run; 0: they are this one's. */
needs_lock int64_t rc_hooks_left(const struct rref_ctx *ctx);

/* Runs everything that is due, for the end of a context. Takes the lock. */
void rc_hooks_flush(struct rref_ctx *ctx);

/* Whether this thread is in the program's code, and how deep. */
bool rc_in_callback(void);
unsigned rc_callback_depth(void);
void rc_callback_enter(void);
void rc_callback_leave(void);

/* log.c: a line is queued, and delivered by a hook. */
void rc_log_deliver(struct rref_ctx *ctx); /* no lock held */

/* Takes one that is queued out of the queue again. */
needs_lock void rc_hook_take(struct rref_ctx *ctx, struct rc_hook *h);

/*
 * In a child of fork(2), by its only thread: what the parent's thread was in the middle of is
 * over.
 */
void rc_callback_fork_child(void);

#endif
