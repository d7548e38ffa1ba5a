/* SPDX-License-Identifier: Apache-2.0 */
/* The state of the files at the top of core/ in a context. */
#ifndef RC_ENGINE_STATE_H
#define RC_ENGINE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "core/base/locked.h"
#include "core/base/work.h"
#include "rref.h"

struct rc_engine;
struct rc_hands;
struct rc_leaks;

/* Signs of calls that were served or under way here at a barrier, or since the one before. */
struct rc_calm {
	uint64_t begun; /* calls_begun at the last barrier */
	bool idle;      /* this worker was idle at that barrier */
};

/* Turns of the engine. */
struct rc_turns {
	const struct rc_engine *engine;   /* [const] base/wait.h */
	int64_t next_tick under_lock;
	int64_t polled_slow_at under_lock;
	/*
	 * time on the clock as read by the thread that makes the turn; 0: this turn did not read it
	 */
	int64_t turn_at under_lock;
	/* turns of rref_progress without a look at the clock */
	uint32_t turns_without_clock under_lock;
	struct rc_hands *hands;                   /* [const] NULL: manual mode. poller.c */
	_Atomic bool has_poller;
	enum rref_progress_mode mode;
	int poller_core;
};

/* Barriers, and the end of a context. */
struct rc_end {
	_Atomic bool closing;                     /* a thread is in rref_shutdown */
	uint64_t barrier_sent under_lock, barrier_done under_lock;
	/* bit n % 64: a worker was busy at barrier n, or since the one before */
	uint64_t barrier_busy under_lock;
	uint32_t *barrier_seen under_lock; /* rank 0: highest barrier each worker reached */
	/* rank 0: looks whether all have come, or tells them that all have; barrier.c */
	struct rc_work barrier_work;
	bool barrier_due under_lock; /* the work is deferred */
	bool barrier_tells under_lock; /* barrier_done is not told to all yet */
	uint64_t barrier_sessions under_lock; /* sessions begun before the last look at all */
	uint32_t barrier_next under_lock; /* the worker to look at next, or to tell */
	uint32_t looked under_lock; /* workers for which a step of the end is done; shutdown.c */
	struct rref_future *barrier_op under_lock; /* the future that waits for a barrier here */
	/* serving: a thread is in rref_serve; serve_stop: it has to end */
	_Atomic uint32_t serving, serve_stop;
	bool came under_lock; /* rref_serve has begun the first barrier */
	bool came_sent under_lock; /* rank 0 was told */
	uint32_t came_fences under_lock; /* fences of the session with rank 0 at that moment */
	struct rc_calm came_calm under_lock; /* state of this worker when it came */
	bool leak_check;
	/* report of the graceful shutdown; NULL = nothing to report */
	struct rc_leaks *leaks under_lock;
};

#endif
