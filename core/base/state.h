/* SPDX-License-Identifier: Apache-2.0 */
/* The state of base/ in a context. */
#ifndef RC_BASE_STATE_H
#define RC_BASE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/locked.h"
#include "rref.h"

struct rc_log_lines;
struct rc_waiter;

/* May this process, and this thread, use the context? [const] */
struct rc_guard {
	uint32_t generation;         /* [const] */
	/* [const] the same, or NO_GATE: with a scope hook each call takes a closer look */
	uint32_t gate;
};

/* The progress lock. */
struct rc_lock_state {
	cache_aligned _Atomic uint32_t word; /* [atomic] enum in lock.c */
	_Atomic uint32_t wanted; /* threads that wait for the lock: others make way */
	_Atomic uint32_t turns; /* turns that were others': rc_trylock_in_turn */
};

/* The program's code that is due. */
struct rc_hooks {
	struct list due under_lock; /* struct rc_hook: the program's code that is due */
	_Atomic uint32_t nr;        /* number of due hooks; written under the lock */
	/* hooks that are due too, pushed without the lock: a stack, linked by next */
	_Atomic(struct list *) pushed;
	/* the last thread in rref_progress, and when; see hook.c */
	_Atomic(const void *) progress_by;
	_Atomic int64_t progress_at;
};

/* The program's log function. */
struct rc_log_state {
	struct rc_log_lines *lines;       /* [const] log.c */
	void (*fn)(void *ctx, enum rref_log_level level, const char *text);
	void *arg;
	enum rref_log_level level;
};

/* Threads that sleep: on the devices, on each other, in an event loop. */
struct rc_sleep {
	int64_t wake_at under_lock; /* time at which the sleeping poller wakes by itself */
	/* ns that waiters spin beyond the usual; see base/wait.c */
	_Atomic uint32_t extra_patience;
	unsigned arms under_lock; /* enum rc_arm: sleepers whom the devices would wake */
	uint32_t last_sleep under_lock; /* number of the last sleep; not 0 behind the first */
	struct rc_waiter *device_sleeper under_lock; /* manual mode: it sleeps on the devices */
	struct list sleepers under_lock; /* the other waiters; wait.c */
	int epfd, kickfd;
	/* rref_ctx_fd; a descriptor that wakes the event loop alone */
	int loop_fd, loop_wake_fd;
	/* timer of the manual mode's loop; -1 = no timer */
	int timer_fd;
	bool timer_set under_lock;
	/* enum rc_loop; sc: partner of the completions of futures */
	_Atomic uint32_t loop;
	_Atomic uint32_t loop_told;               /* loopfd was written, and not read yet */
	const void *loop_thread under_lock; /* thread that armed last */
	uint32_t loop_sleep under_lock; /* number of the loop's last sleep */
	/*
	 * sc: number of the sleep on the devices; 0: no thread sleeps there. Partner: work is
	 * published first. Written under the lock.
	 */
	cache_aligned _Atomic uint32_t sleeping;
	_Atomic uint32_t kicked; /* number of the sleep that a kick ended last, or 0 */
	/* READs at a device that reports them by events; not those of fast reads. Apart from the
	 * words above, which each READ's post looks at */
	cache_aligned _Atomic uint32_t reads_in_flight;
	_Atomic uint32_t watching;                /* sc: threads that poll for them */
	/* sc: some thread sleeps on the devices, and they would not wake it */
	_Atomic uint32_t reads_unarmed;
};

#endif
