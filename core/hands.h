/* SPDX-License-Identifier: Apache-2.0 */
/* The hands, the threads that can be the poller: for poller.c. */
#ifndef RC_HANDS_H
#define RC_HANDS_H

#include <pthread.h>

#include "core/base/hook.h"
#include "core/base/locked.h"
#include "core/ctx.h"

#define RC_HANDS 16u

enum hand_state { HAND_NONE, HAND_STARTING, HAND_RUNS };
/* OUT: the poller is in the program's code. REPLACED: it is out, and another hand has the role. */
enum hand_where { HAND_IN, HAND_OUT, HAND_REPLACED };

struct rc_hand {
	struct rref_ctx *ctx;         /* [const] */
	pthread_t thread;
	/* enum hand_state; written under the lock, or by rc_poller_close */
	_Atomic uint32_t state;
	_Atomic uint32_t where;       /* enum hand_where */
};

struct rc_hands {
	struct rc_hand hand[RC_HANDS];
	_Atomic(struct rc_hand *) poller;/* written under the lock */
	_Atomic uint32_t nr;          /* hands that run or start; written under the lock */
	/* hands that lost the role while out, and are not back; written under the lock */
	_Atomic uint32_t away;
	_Atomic uint64_t outings;     /* times that a poller went out; written by the poller */
	uint64_t seen under_lock; /* value of outings at the last look */
	unsigned quiet under_lock; /* looks in a row without an outing */
	_Atomic bool watched;         /* the timer runs; sc: partner of where */
	_Atomic bool ending;          /* the hands are about to end; sc: partner of where */
	/* the poller waits in its hook: the next look takes the role at once */
	_Atomic bool give_away;
	int64_t tell_at under_lock; /* time of the next warning that no further thread can be had */
	int timer;
	_Atomic bool stop;            /* written under the lock */
};

/* hands.c */
unsigned rc_hands_standing_by(const struct rc_hands *h);
/* Sets the timer to ns from now; 0 stops it. every: it repeats. */
void rc_hands_set_timer(const struct rc_hands *h, int64_t ns, bool every);
/* Starts one more hand, which stands by. The caller must not hold the lock. */
without_lock int rc_hand_start(struct rref_ctx *ctx);
void rc_hand_begin(struct rc_hand *me); /* is called on the hand's own thread */
/*
 * Takes the next hook, if the poller may go out. The poller is out from then on, and the other
 * hands watch it.
 */
needs_lock struct rc_hook *rc_hand_go_out(struct rref_ctx *ctx, struct rc_hand *me);
/* Does the same while another thread has the lock: for a hook that was pushed without it. */
struct rc_hook *rc_hand_go_out_alone(struct rref_ctx *ctx, struct rc_hand *me);
/*
 * Runs hooks, at most the number due now, and for at most a tick of the coarse clock. Returns the
 * number of hooks run.
 */
int rc_hand_run_hooks(struct rref_ctx *ctx, struct rc_hand *me, struct rc_hook *hook);
/*
 * Looks after the poller, when a hand that stands by woke. Returns true if that hand is the poller
 * now.
 */
bool rc_hand_look(struct rref_ctx *ctx, struct rc_hand *me);

/* poller.c */
void *rc_hand_run(void *arg); /* the thread of a hand, which it gets */

#endif
