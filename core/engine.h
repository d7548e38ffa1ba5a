/* SPDX-License-Identifier: Apache-2.0 */
/* The files at the top of core/: progress, messages, barriers, the end. */
#ifndef RC_ENGINE_H
#define RC_ENGINE_H

#include "core/base/locked.h"
#include "core/base/wait.h"
#include "core/ctx.h"

/* router.c */
extern const struct rc_session_events rc_router_session;
needs_lock void rc_message(struct rref_ctx *ctx, struct rc_peer *from, const void *data,
			   uint32_t length);

/* effects.c */
/* carries out the effect */
needs_lock void rc_effect(struct rref_ctx *ctx, const struct rp_effect *e);

/* barrier.c */
/* Handle messages of barriers. Return false if the sender broke the protocol. */
needs_lock bool rc_barrier_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t word);
needs_lock bool rc_barrier_done_message(struct rref_ctx *ctx, const struct rc_peer *from,
					uint64_t word);
needs_lock void rc_barrier_check(struct rref_ctx *ctx);
/* Has the ticks look for the workers that rank 0 waits for. */
needs_lock void rc_barrier_watch(struct rref_ctx *ctx);
/* Returns whether rank 0 waits for this worker at the current barrier. */
needs_lock bool rc_barrier_misses(const struct rref_ctx *ctx, uint32_t rank);

/* progress.c */
extern const struct rc_engine rc_engine; /* see base/wait.h, which also describes its members */
needs_lock bool rc_arm(struct rref_ctx *ctx, enum rc_arm who);
int rc_sleep_open(struct rref_ctx *ctx); /* the descriptors; 0 or -errno */
needs_lock int rc_progress_locked(struct rref_ctx *ctx, bool slow); /* returns events handled */
needs_lock void rc_disarm(struct rref_ctx *ctx, enum rc_arm who);
needs_lock int64_t rc_next_timer(struct rref_ctx *ctx, int64_t now); /* ns until the next tick */

/* poller.c */
void rc_hands_fork_child(void);
int rc_poller_open(struct rref_ctx *ctx);
void rc_poller_close(struct rref_ctx *ctx);
void rc_blocking(int delta);
/* Returns whether hooks have to wait: all hands are away, or in the manual mode rc_hooks_deep. */
needs_lock bool rc_hooks_blocked(const struct rref_ctx *ctx);

/* shutdown.c, serving.c */
extern const struct rc_op_kind rc_barrier_kind;
/*
 * Begins a wait for a barrier, or continues it; f ends with the barrier. Tells rank 0, unless rank
 * 0 was told since the last fence. Returns the error of telling it; f waits all the same. Lets go
 * of the lock meanwhile.
 */
needs_lock int rc_barrier_come(struct rref_ctx *ctx, struct rref_future *f, uint64_t number,
			       struct rc_calm *calm, int64_t deadline);
needs_lock void rc_serve_look(struct rref_ctx *ctx);
/*
 * Ends rref_serve and waits until no thread is in it. `closing` is set, so no thread enters it
 * later.
 */
void rc_serve_end(struct rref_ctx *ctx);

#endif
