/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The poller: the thread that gives the engine its turns when no other thread waits. It also runs
 * the program's code.
 *
 * The program's code may take as long as it likes, and the engine must not stand still meanwhile.
 * So the poller is a role, not a thread. A few threads, the hands, can have it. One hand has it.
 * The others stand by, asleep in a read of a timer. Before the poller goes out into the program's
 * code it starts that timer, if it does not run. The timer wakes a hand, which looks whether the
 * poller is still out in the same hook. If so, that hand is the poller from then on. A hook that
 * waits in the library gives the role away at once (rc_blocking). A hand that comes back without
 * the role stands by.
 *
 *   poller   turn, turn, ... hook ......................... (comes back: stands by)
 *   hand     asleep ..... WATCH_NS ...... takes over: turn, turn, hook, turn ...
 *
 * The poller goes out only while another hand stands by. With HANDS - 1 hooks away at once, the
 * last hand only makes progress. Time-outs come, and further hooks wait until a hook ends.
 *
 * The poller spins for a bounded time after the last event, then arms the devices, polls again, and
 * sleeps. While it sleeps the devices' descriptors and ctx->sleep.kickfd wake it. Nothing runs
 * while nothing happens: the timer is stopped.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
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
#include "core/op/op.h"

#define HANDS 16u
#define SPIN_NS (50 * NSEC_PER_USEC)      /* time that the poller spins after the last event */
/* time that a hook may be out before another hand takes over */
#define WATCH_NS (5 * NSEC_PER_MSEC)
/* time between two attempts to start a thread while hooks wait for one */
#define MORE_NS (100 * NSEC_PER_MSEC)
/* looks in a row without a hook before the timer is stopped */
#define QUIET 20u

enum hand_state { HAND_NONE, HAND_STARTING, HAND_RUNS };
/* OUT: the poller is in the program's code. REPLACED: it is out, and another hand has the role. */
enum hand_where { HAND_IN, HAND_OUT, HAND_REPLACED };

struct hand {
	struct rref_ctx *ctx;         /* [const] */
	pthread_t thread;
	/* enum hand_state; written under the lock, or by rc_poller_close */
	_Atomic uint32_t state;
	_Atomic uint32_t where;       /* enum hand_where */
};

struct rc_hands {
	struct hand hand[HANDS];
	_Atomic(struct hand *) poller;/* written under the lock */
	unsigned nr under_lock; /* hands that run or start */
	unsigned away under_lock; /* hands that lost the role while out, and are not back */
	uint64_t outings under_lock; /* times that a poller went out */
	uint64_t seen under_lock; /* value of outings at the last look */
	unsigned quiet under_lock; /* looks in a row without an outing */
	bool watched under_lock; /* the timer runs */
	/* the poller waits in its hook: the next look takes the role at once */
	bool give_away under_lock;
	int64_t tell_at under_lock; /* time of the next warning that no further thread can be had */
	int timer;
	_Atomic bool stop;            /* written under the lock */
};

static _Thread_local struct hand *my_hand;

void rc_hands_fork_child(void)
{
	my_hand = NULL;
}

/* Sets the timer to ns from now; 0 stops it. every: it repeats. */
static void poller_set_timer(const struct rc_hands *h, int64_t ns, bool every)
{
	struct itimerspec t = { .it_value = { ns / NSEC_PER_SEC, ns % NSEC_PER_SEC } };

	if (every)
		t.it_interval = t.it_value;
	timerfd_settime(h->timer, 0, &t, NULL);
}

static needs_lock unsigned standing_by(const struct rc_hands *h)
{
	return h->nr - h->away - 1;
}

bool rc_hooks_blocked(const struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	return ctx->turns.hands ? !standing_by(ctx->turns.hands) : rc_hooks_deep();
}

static void *hand(void *arg);

/* Starts one more hand, which stands by. The caller must not hold the lock. */
static int start_hand(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;
	struct hand *me = NULL;
	char why[200];
	int err;

	rc_lock(ctx);
	for (unsigned i = 0; i < HANDS && !me && !at_load(&h->stop); i++)
		if (at_load(&h->hand[i].state) == HAND_NONE)
			me = &h->hand[i];
	if (me) {
		at_store(&me->state, HAND_STARTING);
		h->nr++;
	}
	rc_unlock(ctx);
	if (!me)
		return -EAGAIN;
	me->ctx = ctx;
	err = rb_thread_start(&me->thread, hand, me);
	if (err) {
		rc_lock(ctx);
		at_store(&me->state, HAND_NONE);
		h->nr--;
		rc_unlock(ctx);
		rb_thread_why(err, why, sizeof(why));
		return rc_fail(err == EAGAIN ? ENOMEM : err, "a thread for callbacks: %s", why);
	}
	if (ctx->turns.poller_core >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET((unsigned)ctx->turns.poller_core, &set);
		err = pthread_setaffinity_np(me->thread, sizeof(set), &set);
		if (err)
			rc_fail(err, "pinning the poller to core %d: %s", ctx->turns.poller_core,
				rref_strerror(err));
	}
	at_store_rel(&me->state, HAND_RUNS); /* Pairs with rc_poller_close */
	return -err;
}

/* ---- the program's code ---- */

/*
 * Takes the next hook, if the poller may go out. The poller is out from then on, and the other
 * hands watch it.
 */
static needs_lock struct rc_hook *go_out(struct rref_ctx *ctx, struct hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	struct rc_hook *hook;

	/* No hand goes out once the hands have to end: rc_hooks_flush runs the rest. The timer
	 * wakes all hands then. */
	if (at_load(&h->poller) != me || !standing_by(h) || at_load(&h->stop))
		return NULL;
	hook = rc_hook_pop(ctx);
	if (!hook)
		return NULL;
	h->outings++;
	at_store(&me->where, HAND_OUT);
	if (unlikely(!h->watched)) {
		h->watched = true;
		h->seen = h->outings;
		h->quiet = 0;
		poller_set_timer(h, WATCH_NS, false);
	}
	return hook;
}

/* Brings a hand back from a hook. Another hand may have the role by now. */
static void come_back(struct rref_ctx *ctx, struct hand *me)
{
	struct rc_hands *h = ctx->turns.hands;

	/* Pairs with poller_look: it takes the role from a hand that is out, by the same word. */
	if (likely(at_xchg_ar(&me->where, HAND_IN) == HAND_OUT))
		return;
	rc_lock(ctx);
	h->away--;
	if (at_load(&ctx->hooks.nr))
		rc_kick(ctx); /* perhaps no hand stood by, so the poller could not run the hook */
	rc_unlock(ctx);
}

/*
 * Runs hooks, at most the number due now, and for at most a tick of the coarse clock. Then the
 * engine has its turn again. Many short hooks would stop it like a long one, and no other hand
 * would take over. Returns the number of hooks run.
 */
static int run_hooks(struct rref_ctx *ctx, struct hand *me, struct rc_hook *hook)
{
	unsigned nr = at_load(&ctx->hooks.nr);
	int64_t begun = nr ? rc_coarse_ns() : 0;
	int n = 0;

	while (hook) {
		rc_hook_run(ctx, hook);
		come_back(ctx, me);
		n++;
		if (!nr-- || at_load(&ctx->turns.hands->poller) != me || rc_coarse_ns() != begun)
			break;
		rc_lock(ctx);
		hook = go_out(ctx, me);
		rc_unlock(ctx);
	}
	return n;
}

/*
 * Looks after the poller, when a hand that stands by woke. Returns true if that hand is the poller
 * now.
 */
static bool poller_look(struct rref_ctx *ctx, struct hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	uint32_t is_out = HAND_OUT;
	bool take, out;

	rc_lock(ctx);
	struct hand *poller = at_load(&h->poller);

	out = at_load(&poller->where) == HAND_OUT;
	take = out && (h->give_away || h->outings == h->seen) && !at_load(&h->stop) &&
	       at_cas_ar(&poller->where, &is_out, HAND_REPLACED); /* Pairs with come_back */
	h->give_away = false;
	if (take) {
		at_store_rel(&h->poller, me);
		h->away++;
		h->watched = false;
	} else {
		h->quiet = h->outings == h->seen && !out ? h->quiet + 1 : 0;
		h->watched = h->quiet < QUIET;
	}
	h->seen = h->outings;
	if (!at_load(&h->stop))
		poller_set_timer(h, h->watched ? WATCH_NS : 0, false);
	rc_unlock(ctx);
	return take;
}

static void give_away(struct hand *me)
{
	struct rc_hands *h = me->ctx->turns.hands;

	rc_lock(me->ctx);
	if (at_load(&h->poller) == me && at_load(&me->where) == HAND_OUT && !at_load(&h->stop)) {
		h->give_away = true;
		h->watched = true;
		poller_set_timer(h, 1, false);
	}
	rc_unlock(me->ctx);
}

void rc_blocking(int delta)
{
	rc_pool_blocking(delta);
	if (delta > 0 && my_hand && rc_in_callback())
		give_away(my_hand);
}

/* ---- the threads ---- */

static void sleep_for_all(struct rref_ctx *ctx, struct hand *me, int64_t now, int64_t *last)
{
	struct rc_hands *h = ctx->turns.hands;
	struct epoll_event ev;
	int64_t wait;

	rc_lock(ctx);
	bool sleep = rc_arm(ctx, RC_ARM_POLLER) && !at_load(&h->stop) && at_load(&h->poller) == me;

	wait = rc_next_timer(ctx, now);
	ctx->sleep.wake_at = now + wait;
	ctx->sleep.poller_asleep = sleep;
	rc_unlock(ctx);
	if (sleep)
		/* Rounded up: after a wake-up that comes a moment early, the poller would only
		 * spin. */
		epoll_wait(ctx->sleep.epfd, &ev, 1,
			   (int)((wait + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC));
	rc_lock(ctx);
	ctx->sleep.poller_asleep = false;
	rc_disarm(ctx, RC_ARM_POLLER);
	/* A timer alone is no reason to spin; events are. */
	if (rc_progress_locked(ctx, true) || !sleep)
		*last = now_ns();
	rc_unlock(ctx);
}

static bool is_last(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	bool yes = !standing_by(ctx->turns.hands);

	rc_unlock(ctx);
	return yes;
}

static tries_lock is_the_lock bool get_lock(struct rref_ctx *ctx)
{
	if (unlikely(at_load(&ctx->hooks.nr))) {
		rc_lock(ctx);
		return true;
	}
	return !at_load(&ctx->lock.wanted) && rc_trylock(ctx);
}

static void poll_for_all(struct rref_ctx *ctx, struct hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	int64_t last = now_ns(), slow_at = 0, more_at = last + MORE_NS;

	rb_thread_begin("rref-poller");
	while (!at_load_acq(&h->stop) && at_load(&h->poller) == me) {
		int64_t now = now_ns();
		int n = 0;

		/* Other threads get the lock first: the poller's turn is never urgent while they
		 * run. But hooks are urgent. */
		if (get_lock(ctx)) {
			bool slow = now >= slow_at;

			if (slow)
				slow_at = now + RC_SLOW_NS;
			ctx->turns.turn_at = now;
			n = rc_progress_locked(ctx, slow);
			struct rc_hook *hook = unlikely(at_load(&ctx->hooks.nr)) ? go_out(ctx, me)
										 : NULL;

			rc_unlock(ctx);
			if (hook)
				n += run_hooks(ctx, me, hook);
		}
		/*
		 * No thread could be had when the last hand went out. Perhaps one can be had now.
		 */
		if (unlikely(at_load(&ctx->hooks.nr)) && now >= more_at) {
			more_at = now + MORE_NS;
			if (is_last(ctx))
				start_hand(ctx);
		}
		if (n)
			last = now;
		if (ctx->turns.mode == RREF_PROGRESS_POLL || now - last < SPIN_NS) {
			/* The thread that the poller waits for may need this core. */
			if (n == 0)
				ctx->turns.mode == RREF_PROGRESS_POLL ? cpu_relax()
								      : (void)sched_yield();
			continue;
		}
		sleep_for_all(ctx, me, now, &last);
	}
}

/* Hands calls to the worker pool and warns, if no hand stands by and no thread can be had. */
static void go_without(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;
	int64_t now = now_ns();
	bool tell = false;

	rc_lock(ctx);
	if (!standing_by(h)) {
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

static void stand_by(struct rref_ctx *ctx, struct hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	uint64_t count;
	bool mine = false;

	rb_thread_begin("rref-standby");
	while (!mine && !at_load_acq(&h->stop) && at_load_acq(&h->poller) != me)
		if (read(h->timer, &count, sizeof(count)) == sizeof(count) &&
		    !at_load_acq(&h->stop))
			mine = poller_look(ctx, me);
	/* The next long hook finds another hand, or stays in the queue. */
	if (mine && is_last(ctx) && start_hand(ctx))
		go_without(ctx);
}

static void *hand(void *arg)
{
	struct hand *me = arg;
	struct rref_ctx *ctx = me->ctx;

	my_hand = me;
	while (!at_load_acq(&ctx->turns.hands->stop)) {
		if (at_load_acq(&ctx->turns.hands->poller) == me)
			poll_for_all(ctx, me);
		else
			stand_by(ctx, me);
	}
	return NULL;
}

/* ---- opening and closing ---- */

static int open_descriptors(struct rref_ctx *ctx)
{
	struct epoll_event ev = { .events = EPOLLIN };

	ctx->sleep.epfd = RB_OPEN(epoll_create1(EPOLL_CLOEXEC));
	ctx->sleep.kickfd = RB_OPEN(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	ctx->sleep.loop_wake_fd = RB_OPEN(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	if (ctx->sleep.epfd < 0 || ctx->sleep.kickfd < 0 || ctx->sleep.loop_wake_fd < 0 ||
	    epoll_ctl(ctx->sleep.epfd, EPOLL_CTL_ADD, ctx->sleep.kickfd, &ev))
		return -errno;
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev &&
		    epoll_ctl(ctx->sleep.epfd, EPOLL_CTL_ADD,
			      ctx->device[k].ops->fd(ctx->device[k].dev), &ev))
			return -errno;
	/*
	 * A loop's descriptor tells of completions. In the manual mode it also tells of work to do.
	 */
	ctx->sleep.loop_fd = ctx->sleep.loop_wake_fd;
	if (ctx->turns.mode == RREF_PROGRESS_MANUAL)
		ctx->sleep.loop_fd = RB_OPEN(epoll_create1(EPOLL_CLOEXEC));
	if (ctx->sleep.loop_fd < 0 ||
	    (ctx->sleep.loop_fd != ctx->sleep.loop_wake_fd &&
	     (epoll_ctl(ctx->sleep.loop_fd, EPOLL_CTL_ADD, ctx->sleep.loop_wake_fd, &ev) ||
	      epoll_ctl(ctx->sleep.loop_fd, EPOLL_CTL_ADD, ctx->sleep.epfd, &ev))))
		return -errno;
	if (ctx->turns.mode != RREF_PROGRESS_MANUAL)
		return 0;
	ctx->sleep.timer_fd = RB_OPEN(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
	if (ctx->sleep.timer_fd < 0 ||
	    epoll_ctl(ctx->sleep.loop_fd, EPOLL_CTL_ADD, ctx->sleep.timer_fd, &ev))
		return -errno;
	return 0;
}

int rc_poller_open(struct rref_ctx *ctx)
{
	int err = open_descriptors(ctx);

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
	err = start_hand(ctx);
	return err ? err : start_hand(ctx);
}

/*
 * Tells the hands to end, if no hand is out and no hand would go out. Returns whether it told them.
 */
static bool stop_if_idle(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;

	rc_lock(ctx);
	bool idle = !h->away && at_load(&at_load(&h->poller)->where) == HAND_IN &&
		    (list_empty(&ctx->hooks.due) || !standing_by(h));

	if (idle)
		at_store_rel(&h->stop, true);
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
	uint64_t one = 1;

	(void)!write(ctx->sleep.kickfd, &one, sizeof(one));
	poller_set_timer(h, NSEC_PER_MSEC, true); /* each hand that stands by reads one */
	for (unsigned i = 0; i < HANDS; i++) {
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
