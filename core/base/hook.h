/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks: the program's code that is due. One queue holds them all: callbacks, inline handlers,
 * release callbacks and the delivery of log lines. The library never runs a hook in passing. hook.c
 * runs it on a thread that is free to be away for as long as the program likes. With a poller these
 * threads are the hands of poller.c. In the manual mode these are the threads in rref_progress and
 * in waits.
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

/*
 * Does the same without the lock. The hook waits in ctx->hooks.pushed. A holder of the lock gathers
 * it from there. A thread that finds the lock taken runs it.
 */
void rc_hook_push_any(struct rref_ctx *ctx, struct rc_hook *h);
needs_lock void rc_hooks_gather(struct rref_ctx *ctx);
/* Takes the hook that was pushed first. Returns NULL if there is none. */
struct rc_hook *rc_hook_pop_any(struct rref_ctx *ctx);
/* Runs the hook that was pushed first, in the manual mode. Returns how many it ran. */
unsigned rc_hook_run_any(struct rref_ctx *ctx);

/* Takes the next hook, NULL if there is none. The caller calls rc_hook_run, without the lock. */
needs_lock struct rc_hook *rc_hook_pop(struct rref_ctx *ctx);

/* Runs the hook. No lock held. */
void rc_hook_run(struct rref_ctx *ctx, struct rc_hook *h);

/*
 * Unlocks, and runs the hooks that are due if this thread may: see hook.c. Returns how many it ran.
 */
gives_lock unsigned rc_unlock_hooks(struct rref_ctx *ctx);

/*
 * Returns true if this thread's stack holds as many hooks as it may (manual mode). The thread runs
 * no further hook until one of them ends.
 */
bool rc_hooks_deep(void);

/*
 * Returns for how many ns hooks are another thread's to run (manual mode). 0: they are this
 * thread's.
 */
int64_t rc_hooks_left(const struct rref_ctx *ctx);

/* Runs every hook that is due, for the end of a context. Takes the lock. */
void rc_hooks_flush(struct rref_ctx *ctx);

/* Return whether this thread is in the program's code, and how deep. */
bool rc_in_callback(void);
unsigned rc_callback_depth(void);
void rc_callback_enter(void);
void rc_callback_leave(void);

/* log.c: a line is queued, and delivered by a hook. */
void rc_log_deliver(struct rref_ctx *ctx); /* no lock held */

/* Takes a queued hook out of the queue again. */
needs_lock void rc_hook_take(struct rref_ctx *ctx, struct rc_hook *h);

/*
 * Ends the callbacks that the parent's thread was in. The only thread of a child of fork(2) calls
 * it.
 */
void rc_callback_fork_child(void);

#endif
