/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The poller: the thread that gives the engine its turns when no other thread waits. It also runs
 * the program's code. It is one of the hands: see hands.c.
 *
 * The poller spins for a bounded time after the last event, then arms the devices, polls again, and
 * sleeps. While it sleeps the devices' descriptors and ctx->sleep.kickfd wake it. Nothing runs
 * while nothing happens: the timer of the hands is stopped.
 *
 * It never waits for the lock, whose holder may stand still. It looks after the READs of threads
 * that sleep.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/limit.h"
#include "base/thread.h"
#include "core/base/clock.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/wait.h"
#include "core/call/call.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/hands.h"
#include "core/read/read.h"

#define SPIN_NS (50 * NSEC_PER_USEC)      /* time that the poller spins after the last event */
/* time between two attempts to start a thread while hooks wait for one */
#define MORE_NS (100 * NSEC_PER_MSEC)
/* pause of the poller that would sleep, and finds the lock taken */
#define NAP_NS (50 * NSEC_PER_USEC)
/* Tries of the lock in a row, about a millisecond, before the poller sleeps on it. */
#define MISSES 4096u

/* The poller's turns. */
struct turns {
	int64_t last;    /* time of the last event */
	int64_t slow_at; /* time of the next slow turn */
	int64_t more_at; /* time of the next attempt to start a hand */
	bool armed;      /* the devices are armed for it: it has slept, or was about to */
	bool slept;
	unsigned missed; /* tries of the lock in a row that failed */
};

/* Arms the devices. Returns for how many ns to sleep; 0: not at all. */
static needs_lock int64_t go_to_bed(struct rref_ctx *ctx, struct rc_hand *me, struct turns *t,
				    int64_t now)
{
	struct rc_hands *h = ctx->turns.hands;
	int64_t wait;

	t->armed = true;
	t->slept = rc_arm(ctx, RC_ARM_POLLER) && !at_load(&h->stop) && at_load(&h->poller) == me;
	wait = rc_next_timer(ctx, now);
	ctx->sleep.wake_at = now + wait;
	return t->slept ? max_of(wait, 1) : 0;
}

static needs_lock void get_up(struct rref_ctx *ctx, struct turns *t)
{
	t->armed = false;
	rc_disarm(ctx, RC_ARM_POLLER);
}

static void sleep_for_all(struct rref_ctx *ctx, struct rc_hand *me, struct turns *t, int64_t now)
{
	struct epoll_event ev;
	int64_t wait;

	if (!rc_lock_soon(ctx)) {
		nanosleep(&(struct timespec){ .tv_nsec = NAP_NS }, NULL);
		return;
	}
	wait = go_to_bed(ctx, me, t, now);
	rc_unlock(ctx);
	if (wait)
		/* Rounded up: after a wake-up that comes a moment early, the poller would only
		 * spin. */
		epoll_wait(ctx->sleep.epfd, &ev, 1,
			   (int)((wait + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC));
}

static bool is_last(const struct rref_ctx *ctx)
{
	return !rc_hands_standing_by(ctx->turns.hands);
}

static bool has_hooks(struct rref_ctx *ctx)
{
	return unlikely(at_load(&ctx->hooks.nr)) || unlikely(at_load(&ctx->hooks.pushed));
}

/*
 * Tries the lock. Other threads get it first: the poller's turn is never urgent while they run. But
 * hooks are urgent.
 */
static tries_lock is_the_lock bool get_lock(struct rref_ctx *ctx, struct turns *t)
{
	bool got = has_hooks(ctx) ? rc_lock_soon(ctx) : rc_trylock_in_turn(ctx);

	/* A thread that takes it again and again leaves hardly a moment in which it is free. */
	if (unlikely(!got && ++t->missed > MISSES))
		got = rc_lock_within(ctx, NAP_NS);
	if (got)
		t->missed = 0;
	return got;
}

/* Makes a turn. Returns the number of events, and in *hook a hook for which the poller is out. */
static int turn_for_all(struct rref_ctx *ctx, struct rc_hand *me, struct turns *t, int64_t now,
			struct rc_hook **hook)
{
	bool due = false;
	int n;

	*hook = NULL;
	if (!get_lock(ctx, t)) {
		n = rc_reads_look(ctx, &due);
		if (unlikely(at_load(&ctx->hooks.pushed)))
			*hook = rc_hand_go_out_alone(ctx, me);
		return max_of(n, 0);
	}
	bool slow = now >= t->slow_at || t->armed;

	if (slow)
		t->slow_at = now + RC_SLOW_NS;
	/* A timer alone is no reason to spin; events are. */
	n = t->armed && !t->slept;
	if (t->armed)
		get_up(ctx, t);
	ctx->turns.turn_at = now;
	n += rc_progress_locked(ctx, slow);
	if (unlikely(at_load(&ctx->hooks.nr)))
		*hook = rc_hand_go_out(ctx, me);
	rc_unlock(ctx);
	return n;
}

static void poll_for_all(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	/* The hand before may have gone out while the devices were armed for it. */
	struct turns t = { .last = now_ns(), .armed = true };
	struct rc_hook *hook;

	t.more_at = t.last + MORE_NS;
	rb_thread_begin("rref-poller");
	while (!at_load_acq(&h->stop) && at_load(&h->poller) == me) {
		int64_t now = now_ns();
		int n = turn_for_all(ctx, me, &t, now, &hook);

		if (hook)
			n += rc_hand_run_hooks(ctx, me, hook);
		/* No thread could be had when the last hand went out. Perhaps it can now. */
		if (has_hooks(ctx) && now >= t.more_at) {
			t.more_at = now + MORE_NS;
			if (is_last(ctx))
				rc_hand_start(ctx);
		}
		if (n)
			t.last = now;
		if (ctx->turns.mode == RREF_PROGRESS_POLL || now - t.last < SPIN_NS) {
			/* The thread that the poller waits for may need this core. */
			if (n == 0)
				ctx->turns.mode == RREF_PROGRESS_POLL ? cpu_relax()
								      : (void)sched_yield();
			continue;
		}
		if (!t.armed)
			sleep_for_all(ctx, me, &t, now);
		else
			nanosleep(&(struct timespec){ .tv_nsec = NAP_NS }, NULL);
	}
	if (!t.armed)
		return;
	rc_lock(ctx);
	/* Not if another hand has the role, which may sleep by now. */
	if (at_load(&h->poller) == me)
		get_up(ctx, &t);
	rc_unlock(ctx);
}

/* Hands calls to the worker pool and warns, if no hand stands by and no thread can be had. */
static void go_without(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;
	int64_t now = now_ns();
	bool tell = false;

	rc_lock_looking(ctx);
	if (!rc_hands_standing_by(h)) {
		rc_calls_to_pool(ctx);
		tell = now >= h->tell_at;
		if (tell)
			h->tell_at = now + NSEC_PER_SEC;
	}
	rc_unlock(ctx);
	if (tell)
		rc_log(ctx, RREF_LOG_WARNING, "no further thread for callbacks: more of them "
		       "wait until one ends");
}

static void stand_by(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	uint64_t count;
	bool mine = false;

	rb_thread_begin("rref-standby");
	while (!mine && !at_load_acq(&h->stop) && at_load_acq(&h->poller) != me)
		if (read(h->timer, &count, sizeof(count)) == sizeof(count) &&
		    !at_load_acq(&h->stop))
			mine = rc_hand_look(ctx, me);
	/* The next long hook finds another hand, or stays in the queue. */
	if (mine && is_last(ctx) && rc_hand_start(ctx))
		go_without(ctx);
}

void *rc_hand_run(void *arg)
{
	struct rc_hand *me = arg;
	struct rref_ctx *ctx = me->ctx;

	rc_hand_begin(me);
	while (!at_load_acq(&ctx->turns.hands->stop)) {
		if (at_load_acq(&ctx->turns.hands->poller) == me)
			poll_for_all(ctx, me);
		else
			stand_by(ctx, me);
	}
	return NULL;
}

/* ---- opening and closing ---- */

int rc_poller_open(struct rref_ctx *ctx)
{
	int err = rc_sleep_open(ctx);

	if (err)
		return rc_fail(-err, "a descriptor to sleep on: %s",
			       limit_why("epoll or eventfd", -err, 0));
	if (ctx->turns.mode == RREF_PROGRESS_MANUAL)
		return 0;
	struct rc_hands *h = calloc(1, sizeof(*h));

	if (!h)
		return rc_fail(ENOMEM, "memory for the poller");
	h->timer = RB_OPEN(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	if (h->timer < 0 || timerfd_settime(h->timer, 0, &(struct itimerspec){ 0 }, NULL)) {
		err = rc_fail(errno, "a timer for the poller: %s",
			      limit_why(h->timer < 0 ? "timerfd_create" : "timerfd_settime",
					errno, 0));
		rb_close(h->timer);
		free(h);
		return err;
	}
	at_store(&h->poller, &h->hand[0]);
	ctx->turns.hands = h;
	/* The first hand is the poller. It only stands by until this is true. */
	at_store(&ctx->turns.has_poller, true);
	err = rc_hand_start(ctx);
	return err ? err : rc_hand_start(ctx);
}

/*
 * Tells the hands to end, if no hand is out and no hand would go out. Returns whether it told them.
 */
static bool stop_if_idle(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;

	rc_lock(ctx);
	rc_hooks_gather(ctx);
	at_store_sc(&h->ending, true); /* Pairs with rc_hand_go_out_alone */
	bool idle = !at_load(&h->away) && at_load_sc(&at_load(&h->poller)->where) == HAND_IN &&
		    (list_empty(&ctx->hooks.due) || !rc_hands_standing_by(h));

	if (idle)
		at_store_rel(&h->stop, true);
	else
		at_store_sc(&h->ending, false);
	rc_unlock(ctx);
	return idle;
}

void rc_poller_close(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;
	unsigned turn = 0;

	if (!h)
		return;
	/* A hook that is out may wait for a hook that is still in the queue. */
	while (!stop_if_idle(ctx))
		rc_pause(&turn);
	turn = 0;
	/* Kicked even if it does not sleep: it may be about to. */
	rc_event_write(ctx->sleep.kickfd);
	rc_hands_set_timer(h, NSEC_PER_MSEC, true); /* each hand that stands by reads one */
	for (unsigned i = 0; i < RC_HANDS; i++) {
		while (at_load_acq(&h->hand[i].state) == HAND_STARTING)
			rc_pause(&turn);
		if (at_load(&h->hand[i].state) == HAND_RUNS)
			pthread_join(h->hand[i].thread, NULL);
	}
	rb_close(h->timer);
	rc_lock(ctx);
	ctx->turns.hands = NULL;
	at_store(&ctx->turns.has_poller, false);
	rc_unlock(ctx);
	free(h);
}
