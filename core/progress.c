/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress: one turn of the engine, and how threads go to sleep on what brings it work.
 *
 * Three kinds of sleepers wait on the devices: the poller, a waiter of the manual mode, and an
 * event loop of the manual mode. Each is a bit in ctx->sleep.arms. The devices stay armed until the
 * last one is awake. rc_kick costs one load unless one of them sleeps: the sleeper stores
 * `sleeping`, then looks for work; a thread that makes work publishes it, then looks at `sleeping`
 * (both sc).
 *
 * An event loop is a fourth kind in the modes with a poller: the poller does the work, and the loop
 * hears of its end. So a loop has a word and a descriptor of its own, in all modes: see
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
#include "core/session/session.h"

#define TICK_NS (5 * NSEC_PER_MSEC)       /* resolution of deadlines that no waiter watches */
#define IDLE_NS (500 * NSEC_PER_MSEC)
#define BATCH 16u
#define LOOKS 8u                          /* of rref_progress */
#define CLOCK_TURNS 64u

static __attribute__((noinline)) needs_lock int device_lost(struct rref_ctx *ctx,
							    struct rc_device *d, int err)
{
	struct rv_event lost = { .type = RV_EV_DEVICE, .status = err };

	if (!d->lost) {
		d->lost = true;
		rc_peer_event(ctx, d, &lost);
	}
	return 0;
}

/* One look at an open device. ev: room for BATCH, which is not cleared. */
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
	int n = 0;

	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			n += poll_device(ctx, &ctx->device[k], ev, flags);
	return n;
}

static needs_lock int poll_self(struct rref_ctx *ctx)
{
	int n = 0;
	struct list *l;

	/* A bounded number per turn: each may add another. */
	while (n < (int)BATCH && (l = list_pop(&ctx->session.self_queue))) {
		struct rc_outgoing *o = container_of(l, struct rc_outgoing, node);

		rc_count_received(ctx, &ctx->peers[ctx->rank], o->bytes, o->length);
		rc_message(ctx, &ctx->peers[ctx->rank], o->bytes, o->length);
		rc_outgoing_ended(ctx, o);
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
	if (unlikely(ctx->scopes))
		rc_scopes_tick(ctx, now, false);
	rc_send_tick(ctx, now);
	rc_error_back(&scratch);
}

/* Where it is not slow, turn_at was set. */
static inline needs_lock int turn(struct rref_ctx *ctx, struct rv_event *ev, bool slow)
{
	int n = 0;

	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT))
		return 0;
	/* Before anything is looked at: that this worker stood still explains what it finds. */
	if (unlikely(slow)) {
		ctx->turns.turn_at = now_ns();
		rc_stall_beat(ctx, ctx->turns.turn_at);
	}
	if (unlikely(at_load(&ctx->works.pushed)))
		n += (int)rc_work_run_pushed(ctx);
	if (unlikely(!list_empty(&ctx->session.self_queue)))
		n += poll_self(ctx);
	n += ctx->works.first != NULL; /* is run when the lock is let go of */
	n += progress_look(ctx, ev, slow ? RV_POLL_SLOW : 0);
	if (unlikely(slow))
		tick(ctx);
	return n;
}

int rc_progress_locked(struct rref_ctx *ctx, bool slow)
{
	struct rv_event ev[BATCH];

	return turn(ctx, ev, slow);
}

/*
 * A few looks at the queues under one hold of the lock: who spins sees what comes the sooner, the
 * less lies between two looks. It stops when something came, or somebody wants the lock.
 */
int rc_progress_turns(struct rref_ctx *ctx, bool slow, unsigned looks)
{
	struct rv_event ev[BATCH];
	int n = turn(ctx, ev, slow);

	/* What else there is to do was looked at; only the devices, and other threads' pushes, can
	 * bring more. */
	while (!n && --looks && !at_load(&ctx->lock.wanted) && !at_load(&ctx->works.pushed))
		n = progress_look(ctx, ev, 0);
	return n;
}

static void consume(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

/* Wakes a loop that sleeps on the descriptor after `wait` ns; 0 = not any more. */
static needs_lock void progress_set_timer(struct rref_ctx *ctx, int64_t wait)
{
	struct itimerspec at = { .it_value = { wait / NSEC_PER_SEC, wait % NSEC_PER_SEC } };

	timerfd_settime(ctx->sleep.timer_fd, 0, &at, NULL);
	ctx->sleep.timer_set = wait > 0;
}

/* The event loop is in the library, on this thread. */
static needs_lock void loop_is_here(struct rref_ctx *ctx)
{
	uint32_t asleep = RC_LOOP_ASLEEP;

	if (ctx->sleep.timer_set)
		progress_set_timer(ctx, 0);
	/* Written before loop_told, so there is something to read. */
	if (at_load(&ctx->sleep.loop_told) && at_xchg_acq(&ctx->sleep.loop_told, 0))
		consume(ctx->sleep.loop_wake_fd);
	at_cas_ar(&ctx->sleep.loop, &asleep, RC_LOOP_AWAKE);
	if (ctx->sleep.arms & RC_ARM_LOOP)
		rc_disarm(ctx, RC_ARM_LOOP);
}

/*
 * A program that spins here shall not make system calls all the time; one that has slept does each
 * time, and one that comes rarely at each tick of the coarse clock.
 */
int rref_progress(struct rref_ctx *ctx)
{
	RB_NO_CANCEL;
	int n = rc_enter(ctx);
	bool slow;

	if (n)
		return n;
	if (!rc_trylock(ctx))
		return 0;
	/* The coarse clock may stand for longer than RC_SLOW_NS; who comes that often can look at
	 * the other one now and then. */
	ctx->turns.turn_at = rc_coarse_ns();
	slow = (ctx->sleep.arms & ~(unsigned)RC_ARM_POLLER) ||
	       ctx->turns.turn_at - ctx->turns.polled_slow_at >= RC_SLOW_NS ||
	       (++ctx->turns.quick_turns % CLOCK_TURNS == 0 &&
		now_ns() - ctx->turns.polled_slow_at >= RC_SLOW_NS);
	if (unlikely(at_load(&ctx->sleep.loop)) && ctx->sleep.loop_thread == rc_this_thread())
		loop_is_here(ctx);
	else if (unlikely(!ctx->sleep.arms && at_load(&ctx->sleep.kicked)))
		rc_disarm(ctx, 0);
	if (likely(!rc_hooks_deep())) {
		ctx->hooks.progress_by = rc_this_thread();
		ctx->hooks.progress_at = ctx->turns.turn_at;
	}
	n = rc_progress_turns(ctx, slow, LOOKS);
	rc_pass_on(ctx, slow, n);
	return n + (int)rc_unlock_hooks(ctx);
}

int rref_ctx_fd(struct rref_ctx *ctx)
{
	if (!ctx)
		return rc_fail(EINVAL, "rref_ctx_fd: no context");
	/* It is closed there, and may be the number of a file of the program's. */
	return rc_is_child(ctx) ? rc_fail_child() : ctx->sleep.loop_fd;
}

/*
 * A future that completed before this call, and after the loop's own last look, the loop may not
 * have seen: then it is told to look again. So it is the first time, when nobody has kept watch for
 * it yet.
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
	/* sc: partner of rc_op_finish, which completes a future and then looks at this word. */
	sleep = at_xchg_sc(&ctx->sleep.loop, RC_LOOP_ASLEEP) == RC_LOOP_AWAKE;
	if (sleep && !at_load(&ctx->turns.has_poller))
		sleep = rc_arm(ctx, RC_ARM_LOOP);
	/* Nobody else has an eye on the time: a death, say, may show in a time-out only. */
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
	/* sc, and `sleeping` was stored before: partner of unwatch_reads in base/wait.c. */
	bool unarmed = at_load(&ctx->turns.has_poller) && at_load_sc(&ctx->sleep.watching);
	unsigned flags = at_load(&ctx->sleep.reads_in_flight) && !unarmed ? RV_ARM_READS : 0;

	at_store_sc(&ctx->sleep.reads_unarmed, unarmed);
	if (unarmed && !at_load_sc(&ctx->sleep.watching) && at_load(&ctx->sleep.reads_in_flight))
		return false; /* it left meanwhile, perhaps before it could see the line above */

	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev && ctx->device[k].ops->arm(ctx->device[k].dev, flags) < 0)
			return false;
	return true;
}

/* There are hooks, and this thread is one that may run them. */
static needs_lock bool hooks_are_due(struct rref_ctx *ctx)
{
	if (list_empty(&ctx->hooks.due))
		return false;
	if (rc_hooks_blocked(ctx)) {
		rc_calls_to_pool(ctx); /* calls must not wait for what may wait for them */
		return false;
	}
	return at_load(&ctx->turns.has_poller) || !rc_hooks_left(ctx);
}

/* Nothing is left to do. After arming: what came before would not wake the sleeper. */
static needs_lock bool is_quiet(struct rref_ctx *ctx)
{
	/* sc: partner of the pushes that look at `sleeping`. */
	return rc_progress_locked(ctx, true) == 0 && !at_load_sc(&ctx->works.pushed) &&
	       list_empty(&ctx->session.self_queue) && !ctx->works.first && !hooks_are_due(ctx);
}

bool rc_arm(struct rref_ctx *ctx, enum rc_arm who)
{
	at_store_sc(&ctx->sleep.sleeping, 1);
	ctx->sleep.arms |= who;
	return arm_devices(ctx) && is_quiet(ctx);
}

void rc_disarm(struct rref_ctx *ctx, enum rc_arm who)
{
	bool was = ctx->sleep.arms;

	/* After a sleep always: a kick sets `kicked` first and may be written only after another
	 * wake-up cleared it. */
	if (at_xchg_acq(&ctx->sleep.kicked, 0) || was)
		consume(ctx->sleep.kickfd);
	ctx->sleep.arms &= ~(unsigned)who;
	if (ctx->sleep.arms) {
		/* Others sleep on. This thread may have taken their wake-up: the devices are
		 * armed anew, and one of them is woken if there is anything. A waiter that was
		 * woken, and has not looked yet, would sleep on. */
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

	if (ops != INT64_MAX)
		next = min_of(next, max_of(ops, tick));
	/* Should the thread that they are left to not come. */
	if (unlikely(!list_empty(&ctx->hooks.due)) && !at_load(&ctx->turns.has_poller) &&
	    rc_hooks_left(ctx))
		next = min_of(next, now + rc_hooks_left(ctx));
	/* READs may be posted behind the back of the thread that sleeps for all, or of one that
	 * polls for them and is busy with something else. Over shm none is ever in flight. */
	if (at_load(&ctx->turns.has_poller)
		    ? at_load(&ctx->sleep.reads_in_flight) && at_load(&ctx->sleep.reads_unarmed)
		    : pending && ctx->device[RV_IBV].dev)
		next = min_of(next, tick);
	for (uint32_t i = 0; i < ctx->world; i++) {
		const struct rc_peer *p = &ctx->peers[i];

		/* What these wait for may come without an event: see rc_peer_tick. */
		if (pending && at_load(&p->nr_waiting))
			next = min_of(next, tick);
		/* A server's barrier may last for days: only a peer to be spoken to needs a
		 * turn. */
		if (pending && rc_barrier_misses(ctx, i) && p->state == RC_PEER_DOWN &&
		    !p->said_goodbye)
			next = min_of(next, max_of(p->retry_at, tick));
		if (p->must_end)
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
		if (rc_state_stands(p->state) && p->kind == RV_IBV)
			next = min_of(next, max_of(p->probe_at, ctx->turns.next_tick));
	}
	return max_of(next - now, 0);
}

const struct rc_engine rc_engine = {
	.turns = rc_progress_turns,
	.arm = rc_arm,
	.disarm = rc_disarm,
	.next_timer = rc_next_timer,
	.hooks_blocked = rc_hooks_blocked,
	.blocking = rc_blocking,
};
