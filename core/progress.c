/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress: one turn of the engine, and the ways in which threads sleep until there is work.
 *
 * Three kinds of sleepers wait on the devices. They are the poller, a waiter of the manual mode,
 * and an event loop of the manual mode. Each is a bit in ctx->sleep.arms. The devices stay armed
 * until the last sleeper is awake. rc_kick costs one load unless one of them sleeps. The sleeper
 * stores `sleeping`, then looks for work. A thread that makes work publishes it, then looks at
 * `sleeping` (both sc).
 *
 * An event loop is a fourth kind in the modes with a poller. There the poller does the work, and
 * the loop hears of its end. So a loop has a word and a descriptor of its own in all modes: see
 * rc_loop_wake.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/scope.h"
#include "core/base/wait.h"
#include "core/call/call.h"
#include "core/engine.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/look.h"

#define TICK_NS (5 * NSEC_PER_MSEC)       /* resolution of deadlines that no waiter watches */
#define IDLE_NS (500 * NSEC_PER_MSEC)
/* time between two calls of a program that comes rarely */
#define RARE_NS (20 * NSEC_PER_MSEC)
#define BATCH 16u
#define LOOKS 8u                          /* looks in one call of rref_progress */
#define CLOCK_TURNS 64u

static __attribute__((noinline)) needs_lock int device_lost(struct rref_ctx *ctx,
							    struct rc_device *d, int err)
{
	struct rv_event lost = { .type = RV_EV_DEVICE, .status = err };

	if (!d->lost_why) /* the event sets it */
		rc_peer_event(ctx, d, &lost);
	return 0;
}

/* Looks once at an open device. ev has room for BATCH events, and is not cleared. */
static inline needs_lock int poll_device(struct rref_ctx *ctx, struct rc_device *d,
					 struct rv_event *ev, unsigned flags)
{
	int n = d->ops->poll(d->dev, ev, BATCH, flags);

	if (unlikely(n < 0))
		return device_lost(ctx, d, n);
	for (int i = 0; i < n; i++)
		rc_peer_event(ctx, d, &ev[i]);
	return n;
}

static inline needs_lock int progress_look(struct rref_ctx *ctx, struct rv_event *ev,
					   unsigned flags)
{
	bool due = false; /* no matter here: this thread polls next, and runs pushed work */
	int n = rc_reads_look(ctx, &due);

	n = max_of(n, 0);
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			n += poll_device(ctx, &ctx->device[k], ev, flags);
	return n;
}

static needs_lock int poll_self(struct rref_ctx *ctx)
{
	int n = 0;
	struct list *l;

	/* Bounded per turn: each message may add another. */
	while (n < (int)BATCH && (l = list_pop(&ctx->session.self_queue))) {
		struct rc_outgoing *o = container_of(l, struct rc_outgoing, node);

		rc_count_received(ctx, &ctx->peers[ctx->rank], o->bytes, o->length);
		rc_message(ctx, &ctx->peers[ctx->rank], o->bytes, o->length);
		rc_outgoing_finished(ctx, o);
		n++;
	}
	return n;
}

static __attribute__((noinline)) needs_lock void tick(struct rref_ctx *ctx)
{
	int64_t now = now_ns();
	struct rc_error scratch;

	ctx->turns.polled_slow_at = now;
	if (unlikely(at_load_sc(&ctx->end.serve_stop)))
		rc_serve_look(ctx);
	if (now < ctx->turns.next_tick)
		return;
	ctx->turns.next_tick = now + TICK_NS;
	rc_error_aside(&scratch);
	rc_ops_expire(ctx, now);
	rc_peer_tick(ctx, now);
	rc_onlookers_tick(ctx, now);
	if (unlikely(ctx->scopes))
		rc_scopes_tick(ctx, now, false);
	rc_send_tick(ctx, now);
	rc_error_back(&scratch);
}

/* Makes one turn. The caller has set turn_at if the turn is not slow. */
static inline needs_lock int turn(struct rref_ctx *ctx, struct rv_event *ev, bool slow)
{
	int n = 0;

	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT))
		return 0;
	/*
	 * Done first: if this worker stood still, that explains the rest of this turn's findings.
	 */
	if (unlikely(slow)) {
		ctx->turns.turn_at = now_ns();
		rc_stall_beat(ctx, ctx->turns.turn_at);
	}
	if (unlikely(at_load(&ctx->works.pushed)))
		n += (int)rc_work_run_pushed(ctx);
	if (unlikely(!list_empty(&ctx->session.self_queue)))
		n += poll_self(ctx);
	n += ctx->works.first != NULL; /* the work runs when the lock is let go of */
	n += progress_look(ctx, ev, slow ? RV_POLL_SLOW : 0);
	if (unlikely(slow))
		tick(ctx);
	if (unlikely(at_load(&ctx->hooks.pushed)))
		rc_hooks_gather(ctx);
	return n;
}

int rc_progress_locked(struct rref_ctx *ctx, bool slow)
{
	struct rv_event ev[BATCH];

	rc_assert_locked(ctx);
	return turn(ctx, ev, slow);
}

/*
 * Looks at the queues a few times under one hold of the lock. A thread that spins sees news sooner,
 * the less lies between two looks. Stops when something came, or another thread wants the lock.
 */
static needs_lock int progress_turns(struct rref_ctx *ctx, bool slow, unsigned looks)
{
	struct rv_event ev[BATCH];
	int n = turn(ctx, ev, slow);

	rc_assert_locked(ctx);
	/* The first turn did all other work. Only the devices and the pushes of other threads can
	 * bring more. */
	while (!n && --looks && !at_load(&ctx->lock.wanted) && !at_load(&ctx->works.pushed))
		n = progress_look(ctx, ev, 0);
	return n;
}

/* Wakes a loop that sleeps on the descriptor after `wait` ns; 0 stops the timer. */
static needs_lock void progress_set_timer(struct rref_ctx *ctx, int64_t wait)
{
	struct itimerspec at = { .it_value = { wait / NSEC_PER_SEC, wait % NSEC_PER_SEC } };

	timerfd_settime(ctx->sleep.timer_fd, 0, &at, NULL);
	ctx->sleep.timer_set = wait > 0;
}

/* Notes that the event loop is awake in the library, on this thread. */
static needs_lock void loop_is_here(struct rref_ctx *ctx)
{
	uint32_t asleep = at_load(&ctx->sleep.loop);

	if (ctx->sleep.timer_set)
		progress_set_timer(ctx, 0);
	/* The descriptor is written before loop_told is set. A sleep may have ended in between. */
	if ((at_load(&ctx->sleep.loop_told) && at_xchg_acq(&ctx->sleep.loop_told, 0)) ||
	    rc_loop_sleeps(asleep))
		rc_event_read(ctx->sleep.loop_wake_fd);
	if (rc_loop_sleeps(asleep))
		at_cas_ar(&ctx->sleep.loop, &asleep, RC_LOOP_AWAKE);
	if (ctx->sleep.arms & RC_ARM_LOOP)
		rc_disarm(ctx, RC_ARM_LOOP);
}

/*
 * Tries the lock. A program that spins here makes way for threads that wait for the lock. A program
 * that comes rarely does not: its next turn is far off.
 */
static tries_lock is_the_lock bool lock_for_turn(struct rref_ctx *ctx)
{
	return rc_trylock_in_turn(ctx) ||
	       (rc_coarse_ns() - at_load(&ctx->hooks.progress_at) > RARE_NS && rc_trylock(ctx));
}

/*
 * Makes a turn. A program that spins here shall not make system calls all the time. A program that
 * has slept makes them on each call. A program that comes rarely makes them at each tick of the
 * coarse clock.
 */
int rref_progress(struct rref_ctx *ctx)
{
	RB_NO_CANCEL;
	int n = rc_enter(ctx);
	bool slow, due = false;

	if (n)
		return n;
	if (!lock_for_turn(ctx)) {
		n = rc_reads_look(ctx, &due);
		n = rc_progress_without_lock(ctx, n, due);
		return max_of(n, 0);
	}
	/* The coarse clock may stand for longer than RC_SLOW_NS. A thread that comes often can
	 * afford the other clock now and then. */
	ctx->turns.turn_at = rc_coarse_ns();
	slow = (ctx->sleep.arms & ~(unsigned)RC_ARM_POLLER) ||
	       ctx->turns.turn_at - ctx->turns.polled_slow_at >= RC_SLOW_NS ||
	       (++ctx->turns.turns_without_clock % CLOCK_TURNS == 0 &&
		now_ns() - ctx->turns.polled_slow_at >= RC_SLOW_NS);
	if (unlikely(at_load(&ctx->sleep.loop)) && ctx->sleep.loop_thread == rc_this_thread())
		loop_is_here(ctx);
	else if (unlikely(!ctx->sleep.arms && at_load(&ctx->sleep.kicked)))
		rc_disarm(ctx, 0);
	if (likely(!rc_hooks_deep())) {
		at_store(&ctx->hooks.progress_by, rc_this_thread());
		at_store(&ctx->hooks.progress_at, ctx->turns.turn_at);
	}
	n = progress_turns(ctx, slow, LOOKS);
	rc_pass_on(ctx, slow, n);
	return n + (int)rc_unlock_hooks(ctx);
}

int rref_ctx_fd(struct rref_ctx *ctx)
{
	if (!ctx)
		return rc_fail(EINVAL, "rref_ctx_fd: no context");
	/* The descriptor is closed in a child. Its number may belong to a file of the program
	 * there. */
	return rc_is_child(ctx) ? rc_fail_child() : ctx->sleep.loop_fd;
}

/*
 * Arms the loop's descriptor. The loop may have missed a future that completed between its last
 * look and this call. Then it is told to look again. The first call tells it so too, since no
 * thread has kept watch for it yet.
 */
int rref_ctx_arm(struct rref_ctx *ctx)
{
	RB_NO_CANCEL;
	int err = rc_enter(ctx);
	bool sleep;

	if (err)
		return err;
	rc_lock(ctx);
	ctx->sleep.loop_thread = rc_this_thread();
	loop_is_here(ctx);
	/* sc. Pairs with rc_op_finish, which completes a future and then looks at this word. */
	ctx->sleep.loop_sleep += RC_LOOP_SLEEPS;
	sleep = at_xchg_sc(&ctx->sleep.loop, RC_LOOP_ASLEEP + ctx->sleep.loop_sleep) ==
		RC_LOOP_AWAKE;
	if (sleep && !at_load(&ctx->turns.has_poller))
		sleep = rc_arm(ctx, RC_ARM_LOOP);
	/* No other thread watches the time, and a death may show only in a time-out. */
	if (sleep && ctx->sleep.timer_fd >= 0)
		progress_set_timer(ctx, max_of(rc_next_timer(ctx, now_ns()), 1));
	if (!sleep) {
		at_store(&ctx->sleep.loop, RC_LOOP_AWAKE);
		if (ctx->sleep.arms & RC_ARM_LOOP)
			rc_disarm(ctx, RC_ARM_LOOP);
	}
	rc_unlock(ctx);
	return !sleep;
}

static bool arm_devices(struct rref_ctx *ctx)
{
	/* sc, after `sleeping` was stored. Pairs with unwatch_reads in base/wait.c. */
	bool unarmed = at_load(&ctx->turns.has_poller) && at_load_sc(&ctx->sleep.watching);
	/* sc. Pairs with rc_count_in_flight, behind which a thread looks at `sleeping`. */
	unsigned flags = at_load_sc(&ctx->sleep.reads_in_flight) && !unarmed ? RV_ARM_READS : 0;

	at_store_sc(&ctx->sleep.reads_unarmed, unarmed);
	if (unarmed && !at_load_sc(&ctx->sleep.watching) && at_load(&ctx->sleep.reads_in_flight))
		return false; /* the watcher left, perhaps before it could see the store above */

	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev && ctx->device[k].ops->arm(ctx->device[k].dev, flags) < 0)
			return false;
	return true;
}

/* Returns whether there are hooks that this thread may run. */
static needs_lock bool hooks_are_due(struct rref_ctx *ctx)
{
	if (list_empty(&ctx->hooks.due))
		return false;
	if (rc_hooks_blocked(ctx)) {
		rc_calls_to_pool(ctx); /* calls must not wait for a hook that may wait for them */
		return false;
	}
	return at_load(&ctx->turns.has_poller) || !rc_hooks_left(ctx);
}

/*
 * Returns whether nothing is left to do. Comes after arming: earlier events would not wake the
 * sleeper.
 */
static needs_lock bool is_quiet(struct rref_ctx *ctx)
{
	bool due = false;

	/* A look that other threads keep this one from is none: they may have looked too early. */
	if (rc_reads_look(ctx, &due))
		return false;
	/* sc. Pairs with the pushes that look at `sleeping`. */
	return rc_progress_locked(ctx, true) == 0 && !at_load_sc(&ctx->works.pushed) &&
	       list_empty(&ctx->session.self_queue) && !ctx->works.first &&
	       !at_load_sc(&ctx->hooks.pushed) && !hooks_are_due(ctx);
}

/* Begins another sleep. A kick of an earlier one says nothing of it. */
static needs_lock void begin_sleep(struct rref_ctx *ctx)
{
	ctx->sleep.last_sleep += ctx->sleep.last_sleep == UINT32_MAX ? 2 : 1;
	at_store_sc(&ctx->sleep.sleeping, ctx->sleep.last_sleep); /* Pairs with rc_kick */
}

bool rc_arm(struct rref_ctx *ctx, enum rc_arm who)
{
	rc_assert_locked(ctx);
	begin_sleep(ctx);
	ctx->sleep.arms |= who;
	return arm_devices(ctx) && is_quiet(ctx);
}

void rc_disarm(struct rref_ctx *ctx, enum rc_arm who)
{
	bool was = ctx->sleep.arms;

	rc_assert_locked(ctx);
	/* Always read after a sleep. A kick writes first, and says so after it. */
	if (was || at_load(&ctx->sleep.kicked)) {
		at_store(&ctx->sleep.kicked, 0);
		rc_event_read(ctx->sleep.kickfd);
	}
	ctx->sleep.arms &= ~(unsigned)who;
	if (ctx->sleep.arms) {
		/*
		 * Others sleep on, and this thread may have taken their wake-up. So the devices are
		 * armed again, and a sleeper is woken if there is work. Without that, a woken
		 * waiter that has not looked yet would sleep on.
		 */
		begin_sleep(ctx);
		if (!arm_devices(ctx) || !is_quiet(ctx) || rc_sleeper_is_done(ctx))
			rc_kick(ctx);
		return;
	}
	at_store(&ctx->sleep.sleeping, 0);
	if (!was)
		return;
	at_store(&ctx->sleep.reads_unarmed, 0);
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			ctx->device[k].ops->disarm(ctx->device[k].dev);
}

int64_t rc_next_timer(struct rref_ctx *ctx, int64_t now)
{
	int64_t next = min_of(now + IDLE_NS, max_of(rc_send_due(ctx), ctx->turns.next_tick));
	int64_t tick = max_of(ctx->turns.next_tick, now + TICK_NS), ops = rc_ops_due(ctx);
	bool pending = rc_ops_in_flight(ctx);
	struct list *l, *tmp;

	rc_assert_locked(ctx);
	if (ops != INT64_MAX)
		next = min_of(next, max_of(ops, tick));
	/* The thread that the hooks are left to may not come. */
	if (unlikely(!list_empty(&ctx->hooks.due)) && !at_load(&ctx->turns.has_poller) &&
	    rc_hooks_left(ctx))
		next = min_of(next, now + rc_hooks_left(ctx));
	/* READs may be posted while the poller sleeps, and do not wake it. Or a thread that polls
	 * for them may be busy with other work. Over shm no READ is ever in flight. */
	if (at_load(&ctx->turns.has_poller)
		    ? at_load(&ctx->sleep.reads_in_flight) && at_load(&ctx->sleep.reads_unarmed)
		    : pending && ctx->device[RV_IBV].dev)
		next = min_of(next, tick);
	list_for_each_safe(l, tmp, &ctx->session.watched) {
		const struct rc_peer *p = container_of(l, struct rc_peer, watched);

		/* Such reads may become ready without an event: see rc_peer_tick. */
		if (pending && (at_load(&p->nr_waiting) || at_load(&p->pieces.nr_reads)))
			next = min_of(next, tick);
		/*
		 * A server's barrier may last for days: only a peer to be contacted needs a turn.
		 */
		if (pending && rc_barrier_misses(ctx, p->rank) && p->state == RC_PEER_DOWN &&
		    !p->said_goodbye)
			next = min_of(next, max_of(p->retry_at, tick));
		if (p->left)
			next = min_of(next, tick);
		if (p->stall.fence_at)
			next = min_of(next, max_of(p->stall.fence_at, tick));
		if (p->grace_at)
			next = min_of(next, p->grace_at);
		if (rc_state_tries(p->state))
			next = min_of(next, now + 20 * NSEC_PER_MSEC);
		next = min_of(next, max_of(rc_contact_due(ctx, p), tick));
		if (rc_state_broken(p->state))
			next = min_of(next, max_of(rc_resume_due(p), ctx->turns.next_tick));
	}
	next = min_of(next, max_of(rc_peer_look_due(ctx, RV_IBV), ctx->turns.next_tick));
	next = min_of(next, max_of(rc_onlookers_due(ctx), tick));
	return max_of(next - now, 0);
}

/* Opens the descriptors that threads sleep on. Returns 0 or -errno. */
int rc_sleep_open(struct rref_ctx *ctx)
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

const struct rc_engine rc_engine = {
	.reads = rc_reads_look,
	.turns = progress_turns,
	.arm = rc_arm,
	.disarm = rc_disarm,
	.next_timer = rc_next_timer,
	.hooks_blocked = rc_hooks_blocked,
	.blocking = rc_blocking,
};
