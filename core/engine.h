/* SPDX-License-Identifier: Apache-2.0 */
/* The files at the top of core/: progress, messages, barriers, the end. */
#ifndef RC_ENGINE_H
#define RC_ENGINE_H

#include "core/ctx.h"

/* ctx.c */
void rc_ctx_destroy(struct rref_ctx *ctx); /* what rref_init made, in reverse; works at every stage of it */

/* router.c */
extern const struct rc_session_events rc_router_session;
void rc_message(struct rref_ctx *ctx, struct rc_peer *from, const void *data, uint32_t length); /* [lock] */

/* effects.c */
void rc_effect(struct rref_ctx *ctx, const struct rp_effect *e); /* [lock] carries it out */

/* barrier.c */
/* [lock] Messages of barriers. False: from broke the protocol. */
bool rc_barrier_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t word);
bool rc_barrier_done_message(struct rref_ctx *ctx, const struct rc_peer *from, uint64_t word);
void rc_barrier_check(struct rref_ctx *ctx);                                 /* [lock] */
bool rc_barrier_misses(const struct rref_ctx *ctx, uint32_t rank);           /* [lock] rank 0: is it this one that has not come? */

/* progress.c */
/* A sleeper on the devices: its bit. Returns true if there is nothing to do: sleep. Then, or if false: rc_disarm. [lock] */
enum rc_arm { RC_ARM_POLLER = 1, RC_ARM_WAITER = 2, RC_ARM_LOOP = 4 };
bool rc_arm(struct rref_ctx *ctx, enum rc_arm who);
int rc_progress_locked(struct rref_ctx *ctx, bool slow);     /* [lock] returns events handled */
int rc_progress_turns(struct rref_ctx *ctx, bool slow, unsigned looks); /* [lock] */
void rc_progress_reads(struct rref_ctx *ctx, const struct rc_peer *p); /* [lock] a look for a finished READ of p's device only */
void rc_progress_pass_on(struct rref_ctx *ctx, bool slow, int n); /* [lock] after a turn that may have taken a sleeper's wake-up */
void rc_disarm(struct rref_ctx *ctx, enum rc_arm who);
int64_t rc_next_timer(struct rref_ctx *ctx, int64_t now);    /* [lock] ns until the next tick */

/* poller.c */
void rc_hands_fork_child(void);
int rc_poller_open(struct rref_ctx *ctx);
void rc_poller_close(struct rref_ctx *ctx);
/* [lock] Hooks wait: all hands are away, or in the manual mode rc_hooks_deep. */
bool rc_hooks_blocked(const struct rref_ctx *ctx);

/* shutdown.c, serving.c */
/*
 * Begins or goes on to wait for a barrier: f ends with it. Rank 0 is told, unless it was since the
 * last fence. Returns the error of telling it; f waits all the same. [lock, let go of meanwhile]
 */
int rc_barrier_come(struct rref_ctx *ctx, struct rref_future *f, uint64_t number, struct rc_calm *calm,
		    int64_t deadline);
void rc_serve_look(struct rref_ctx *ctx);                    /* [lock] */
void rc_serve_end(struct rref_ctx *ctx); /* no thread is in rref_serve, or will be: closing is set */

#endif
