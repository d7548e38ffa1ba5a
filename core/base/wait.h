/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting, as every room does it: one loop, which takes turns of the engine and sleeps between
 * them. The waiter's kind tells the end of the wait and the place where its thread sleeps. See
 * wait.c.
 */
#ifndef RC_BASE_WAIT_H
#define RC_BASE_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/locked.h"
#include "core/ctx.h"

/* time between two looks of a busy engine at connections and timers */
#define RC_SLOW_NS (1 * NSEC_PER_MSEC)

/* Sleepers on the devices. */
enum rc_arm { RC_ARM_POLLER = 1, RC_ARM_WAITER = 2, RC_ARM_LOOP = 4 };

/* Calls of the rooms to the engine above them. All but reads and blocking need the lock. */
struct rc_engine {
	/*
	 * Takes in READs that ended well. Returns their number, -EAGAIN if other threads are at it.
	 * Sets *due if the holder of the lock has something to do.
	 */
	int (*reads)(struct rref_ctx *ctx, bool *due);
	/* Takes a turn, and up to looks - 1 further looks at the devices. Returns events
	 * handled. */
	int (*turns)(struct rref_ctx *ctx, bool slow, unsigned looks);
	/* Arms the devices. Returns true if there is nothing to do: sleep. Then, or if false:
	 * disarm. */
	bool (*arm)(struct rref_ctx *ctx, enum rc_arm who);
	void (*disarm)(struct rref_ctx *ctx, enum rc_arm who);
	/* Returns how many ns the next timer is away. */
	int64_t (*next_timer)(struct rref_ctx *ctx, int64_t now);
	/* Returns true if hooks wait for others to return. */
	bool (*hooks_blocked)(const struct rref_ctx *ctx);
	/*
	 * Says that this thread is about to wait (1), or is back (-1). A thread of the pool, or of
	 * the poller, is then replaced for as long, in whatever context it waits. Of 1: no lock
	 * held.
	 */
	void (*blocking)(int delta);
};

/* A thread that waits. It looks at one word, and asks its kind when that has moved. */
struct rc_waiter {
	struct rref_ctx *ctx;
	const struct rc_wait_kind *kind;
	_Atomic uint32_t *word;
	/* the word has moved: it differs from seen in a bit of mask */
	uint32_t seen, mask;
	/* counts the threads that sleep on the word; NULL: not counted */
	_Atomic uint32_t *sleepers;
	bool over;                    /* the kind said so; for good */
	struct list node;             /* under the lock; ctx->sleep.sleepers */
};

struct rc_wait_kind {
	/* Returns true if the wait is over, now that the word has moved. NULL: it is. */
	bool (*is_over)(struct rc_waiter *w);
	/*
	 * Says that the thread is about to sleep. Returns false if the wait is over. *value: sleep
	 * while the word is that. NULL: no word tells of the end, so the wait pauses and does not
	 * spin.
	 */
	bool (*will_sleep)(struct rc_waiter *w, uint32_t *value);
	/*
	 * Wakes it to sleep on the devices instead. Its word changes, so it cannot miss this. Needs
	 * the lock.
	 */
	void (*call)(struct rc_waiter *w);
	/* Says that the wait has taken so long, in ns. Called again and again, with pauses that
	 * grow, and shorter ones while it returns false. NULL: nothing can be done. */
	bool (*late)(struct rc_waiter *w, int64_t waited);
	/* Sleeps, at most until deadline. NULL: on the word or on the devices. */
	void (*sleep)(struct rc_waiter *w, int64_t deadline);
};

static inline bool rc_wait_has_moved(const struct rc_waiter *w)
{
	return (at_load_acq(w->word) ^ w->seen) & w->mask;
}

static inline bool rc_wait_is_finished(struct rc_waiter *w)
{
	if (likely(!rc_wait_has_moved(w)))
		return w->over;
	return w->over = !w->kind->is_over || w->kind->is_over(w);
}

/*
 * Waits, making progress. deadline < 0: `timeout` from the first look at the clock on. reads:
 * finished READs are among what is waited for, and there is a poller. 0 or -ETIMEDOUT. No lock
 * held.
 */
int rc_wait(struct rc_waiter *w, bool reads, int64_t deadline, int64_t timeout);

/*
 * Waits, making progress, until ready(), which is called with the lock. 0, -ETIMEDOUT or
 * -ESHUTDOWN, without a text. Lets go of the lock meanwhile.
 */
needs_lock int rc_wait_until(struct rref_ctx *ctx, bool (*ready)(struct rref_ctx *ctx, void *arg),
			     void *arg, int64_t deadline);

/*
 * Makes some looks of the engine. Returns events handled; -1: another thread is at it. READs that
 * ended well are taken in even then.
 */
int rc_make_progress(struct rref_ctx *ctx, bool slow);

/*
 * Does what can be done without the lock, behind a look at READs that told reads and due. Returns
 * as rc_make_progress.
 */
int rc_progress_without_lock(struct rref_ctx *ctx, int reads, bool due);

/* Takes the lock, and takes in READs until it has it. */
takes_lock void rc_lock_looking(struct rref_ctx *ctx);

/* Sleeps on the waiter's word while it is value, at most until deadline. */
void rc_wait_sleep(struct rc_waiter *w, uint32_t value, int64_t deadline);

void rc_wake_word(_Atomic uint32_t *word);           /* all threads that sleep on it */
void rc_wake_one(_Atomic uint32_t *word); /* one of them */
needs_lock bool rc_sleeper_is_done(const struct rref_ctx *ctx); /* device_sleeper's wait is over */

/* Passes on a sleeper's wake-up, which a turn that handled n events may have taken. */
needs_lock void rc_pass_on(struct rref_ctx *ctx, bool slow, int n);

#endif
