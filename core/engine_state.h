/* SPDX-License-Identifier: Apache-2.0 */
/* The state of the files at the top of core/ in a context. */
#ifndef RC_ENGINE_STATE_H
#define RC_ENGINE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "core/base/locked.h"
#include "rref.h"

struct rc_engine;
struct rc_hands;
struct rc_leaks;

/* Whether calls were served or under way here at a barrier, or have been since the one before. */
struct rc_calm {
	uint64_t begun; /* calls_begun at the last barrier */
	bool idle;      /* and whether this worker was idle at it */
};

/* Turns of the engine. */
struct rc_turns {
	const struct rc_engine *engine;   /* [const] base/wait.h */
	int64_t next_tick under_lock;
	int64_t polled_slow_at under_lock;
	/* the clock, as who makes a turn read it; 0: not for this one */
	int64_t turn_at under_lock;
	uint32_t quick_turns under_lock; /* of rref_progress that did not look at the clock */
	struct rc_hands *hands;                   /* [const] NULL: manual mode. poller.c */
	_Atomic bool has_poller;
	enum rref_progress_mode mode;
	int poller_core;
};

/* Barriers, and the end of a context. */
struct rc_end {
	_Atomic bool closing;                     /* a thread is in rref_shutdown */
	uint64_t barrier_sent under_lock, barrier_done under_lock;
	/* bit n % 64: somebody was busy at barrier n, or since the one before */
	uint64_t barrier_busy under_lock;
	uint32_t *barrier_seen under_lock; /* rank 0: highest barrier each worker reached */
	struct rref_future *barrier_op under_lock; /* who waits for one here */
	_Atomic uint32_t serving, serve_stop;     /* a thread is in rref_serve; it is to end */
	bool came under_lock; /* it has begun the first barrier */
	bool came_sent under_lock; /* and told rank 0 ... */
	uint32_t came_fences under_lock; /* ... behind that many fences of its session */
	struct rc_calm came_calm under_lock; /* at that moment */
	bool leak_check;
	/* the report of the graceful shutdown; NULL = nothing to tell */
	struct rc_leaks *leaks under_lock;
};

#endif
