/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress: one turn of the engine, and the poller thread that gives it turns when nobody waits.
 *
 * The poller spins for a bounded time after the last event, then arms the devices, polls again, and sleeps. While it
 * sleeps the devices' descriptors and ctx->kickfd wake it. rc_kick costs one load unless the poller really sleeps:
 * the sleeper stores `sleeping`, then looks for work; who makes work publishes it, then looks at `sleeping` (both sc).
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "rc_scope.h"

#define SPIN_NS (50 * NSEC_PER_USEC)      /* the poller's patience */
#define SLOW_NS (1 * NSEC_PER_MSEC)       /* how often a busy engine looks at connections and timers */
#define TICK_NS (5 * NSEC_PER_MSEC)       /* resolution of deadlines that no waiter watches */
#define IDLE_NS (500 * NSEC_PER_MSEC)
#define BATCH 16u
#define LOOKS 8u                          /* of rref_progress */
#define CLOCK_TURNS 64u

static __attribute__((noinline)) int device_lost(struct rref_ctx *ctx, struct rc_device *d, int err)
{
	struct rv_event lost = { .type = RV_EV_DEVICE, .status = err };

	if (!d->lost) {
		d->lost = true;
		rc_peer_event(ctx, d, &lost);
	}
	return 0;
}

/* One look at an open device. ev: room for BATCH, which is not cleared. */
static inline int poll_device(struct rref_ctx *ctx, struct rc_device *d, struct rv_event *ev, unsigned flags)
{
	int n = d->ops->poll(d->dev, ev, BATCH, flags);

	if (unlikely(n < 0))
		return device_lost(ctx, d, n);
	for (int i = 0; i < n; i++)
		rc_peer_event(ctx, d, &ev[i]);
	return n;
}

static inline int look(struct rref_ctx *ctx, struct rv_event *ev, unsigned flags)
{
	int n = 0;

	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			n += poll_device(ctx, &ctx->device[k], ev, flags);
	return n;
}

static int poll_self(struct rref_ctx *ctx)
{
	int n = 0;
	struct list *l;

	/* A bounded number per turn: each may add another. */
	while (n < (int)BATCH && (l = list_pop(&ctx->self_queue))) {
		struct rc_outgoing *o = container_of(l, struct rc_outgoing, node);

		rc_count_received(ctx, &ctx->peers[ctx->rank], o->bytes, o->length);
		rc_message(ctx, &ctx->peers[ctx->rank], o->bytes, o->length);
		rc_outgoing_over(ctx, o);
		n++;
	}
	return n;
}

static __attribute__((noinline)) void tick(struct rref_ctx *ctx)
{
	int64_t now = now_ns();

	ctx->polled_slow_at = now;
	if (now < ctx->next_tick)
		return;
	ctx->next_tick = now + TICK_NS;
	rc_ops_expire(ctx, now);
	rc_peer_tick(ctx, now);
	if (unlikely(ctx->scopes))
		rc_scopes_tick(ctx, now, false);
	rc_send_tick(ctx, now);
}

/* Where it is not slow, turn_at was set. */
static inline int turn(struct rref_ctx *ctx, struct rv_event *ev, bool slow)
{
	int n = 0;

	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT))
		return 0;
	/* Before anything is looked at: that this worker stood still explains what it finds. */
	if (unlikely(slow)) {
		ctx->turn_at = now_ns();
		rc_stall_beat(ctx, ctx->turn_at);
	}
	if (unlikely(at_load(&ctx->dropped)))
		n += (int)rc_drain_dropped(ctx);
	if (unlikely(!list_empty(&ctx->self_queue)))
		n += poll_self(ctx);
	n += !list_empty(&ctx->deferred_work); /* is done when the lock is let go of */
	n += look(ctx, ev, slow ? RV_POLL_SLOW : 0);
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
 * A few looks at the queues under one hold of the lock: who spins sees what comes the sooner, the less lies between two
 * looks. It stops when something came, or somebody wants the lock.
 */
int rc_progress_turns(struct rref_ctx *ctx, bool slow, unsigned looks)
{
	struct rv_event ev[BATCH];
	int n = turn(ctx, ev, slow);

	/* What else there is to do was looked at; only the devices, and other threads' drops, can bring more. */
	while (!n && --looks && !at_load(&ctx->lock_wanted) && !at_load(&ctx->dropped))
		n = look(ctx, ev, 0);
	return n;
}

void rc_progress_reads(struct rref_ctx *ctx, const struct rc_peer *p)
{
	uint64_t cookie;
	void *user;

	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT))
		return;
	ctx->turn_at = 0; /* a step of the engine's may follow */
	if (p->device->ops->next_read(p->dev, &cookie, &user))
		rc_peer_read(ctx, user, cookie, 0, -1);
}

/*
 * A program that spins here shall not make system calls all the time; one that has slept does each time, and one that comes
 * rarely at each tick of the coarse clock.
 */
int rref_progress(struct rref_ctx *ctx)
{
	int n = rc_enter(ctx);
	bool slow;

	if (n)
		return n;
	if (!rc_trylock(ctx))
		return 0;
	/* The coarse clock may stand for longer than SLOW_NS; who comes that often can look at the other one now and then. */
	ctx->turn_at = rc_coarse_ns();
	slow = (ctx->armed && !ctx->poller_asleep) || ctx->turn_at - ctx->polled_slow_at >= SLOW_NS ||
	       (++ctx->quick_turns % CLOCK_TURNS == 0 && now_ns() - ctx->polled_slow_at >= SLOW_NS);
	/* If it is the poller that sleeps it stays armed: it has to be woken by what comes when nobody calls this any more. */
	if ((ctx->armed || at_load(&ctx->kicked)) && !ctx->poller_asleep)
		rc_disarm(ctx);
	n = rc_progress_turns(ctx, slow, LOOKS);
	/* And by what there may be beyond that: the device's wake-up may have been taken here, by a slow look. */
	if (slow && n > 0 && ctx->poller_asleep)
		rc_kick(ctx);
	rc_unlock(ctx);
	return n;
}

int rref_ctx_fd(struct rref_ctx *ctx)
{
	return ctx ? ctx->epfd : rc_fail(EINVAL, "rref_ctx_fd: no context");
}

int rref_ctx_arm(struct rref_ctx *ctx)
{
	int err = rc_enter(ctx);

	if (err)
		return err;
	rc_lock(ctx);
	at_store_sc(&ctx->sleeping, 1);
	bool sleep = rc_arm(ctx);

	if (!sleep && !ctx->poller_asleep)
		at_store_sc(&ctx->sleeping, 0);
	rc_unlock(ctx);
	return !sleep;
}

bool rc_arm(struct rref_ctx *ctx)
{
	/* sc, and `sleeping` was stored before: partner of unwatch_reads in future.c. */
	bool unarmed = at_load(&ctx->has_poller) && at_load_sc(&ctx->watching);
	unsigned flags = at_load(&ctx->reads_in_flight) && !unarmed ? RV_ARM_READS : 0;

	at_store_sc(&ctx->reads_unarmed, unarmed);
	if (unarmed && !at_load_sc(&ctx->watching) && at_load(&ctx->reads_in_flight))
		return false; /* it left meanwhile, perhaps before it could see the line above */

	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev && ctx->device[k].ops->arm(ctx->device[k].dev, flags) < 0)
			return false;
	ctx->armed = true;
	/* After arming: what came before would not wake us. sc: partner of the pushes that look at `sleeping`. */
	return rc_progress_locked(ctx, true) == 0 && !at_load_sc(&ctx->dropped) && list_empty(&ctx->self_queue) &&
	       list_empty(&ctx->deferred_ops) && list_empty(&ctx->deferred_calls) && list_empty(&ctx->deferred_work);
}

void rc_disarm(struct rref_ctx *ctx)
{
	uint64_t count;

	/* After a sleep always: who kicked sets `kicked` first and may write only after another wake-up cleared it. */
	if (at_xchg_acq(&ctx->kicked, 0) || ctx->armed)
		(void)!read(ctx->kickfd, &count, sizeof(count));
	at_store(&ctx->sleeping, 0);
	if (!ctx->armed)
		return;
	ctx->armed = false;
	at_store(&ctx->reads_unarmed, 0);
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			ctx->device[k].ops->disarm(ctx->device[k].dev);
}

void rc_kick(struct rref_ctx *ctx)
{
	uint64_t one = 1;

	if (likely(!at_load_sc(&ctx->sleeping)) || at_xchg_ar(&ctx->kicked, 1))
		return;
	while (write(ctx->kickfd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

int64_t rc_next_timer(struct rref_ctx *ctx, int64_t now)
{
	int64_t next = min_of(now + IDLE_NS, max_of(rc_send_due(ctx), ctx->next_tick));
	int64_t tick = max_of(ctx->next_tick, now + TICK_NS), ops = rc_ops_due(ctx);
	bool pending = rc_ops_in_flight(ctx);

	if (ops != INT64_MAX)
		next = min_of(next, max_of(ops, tick));
	/* READs may be posted behind the back of who sleeps for all, or of who polls for them and sees to something else just now. */
	if (at_load(&ctx->has_poller) ? at_load(&ctx->reads_in_flight) && at_load(&ctx->reads_unarmed) : pending)
		next = min_of(next, tick);
	for (uint32_t i = 0; i < ctx->world; i++) {
		const struct rc_peer *p = &ctx->peers[i];

		/* What these wait for may come without an event: see rc_peer_tick. */
		if (pending && (at_load(&p->nr_waiting) || rc_barrier_misses(ctx, i)))
			next = min_of(next, tick);
		if (p->stall.fence_at)
			next = min_of(next, max_of(p->stall.fence_at, tick));
		if (p->grace_at)
			next = min_of(next, p->grace_at);
		if (p->state == RC_PEER_CONNECTING || p->state == RC_PEER_ACCEPTING)
			next = min_of(next, now + 20 * NSEC_PER_MSEC);
		if (p->state == RC_PEER_UP && !p->authenticated)
			next = min_of(next, p->auth_by);
		if (p->resume.broken)
			next = min_of(next, max_of(rc_resume_due(p), ctx->next_tick));
		if (p->state == RC_PEER_UP && p->kind == RV_IBV)
			next = min_of(next, max_of(p->probe_at, ctx->next_tick));
	}
	return max_of(next - now, 0);
}

/* ---- the poller ---- */

static void *poller(void *arg)
{
	struct rref_ctx *ctx = arg;
	int64_t last = now_ns(), slow_at = 0;

	prctl(PR_SET_NAME, "rref-poller");
	while (!at_load_acq(&ctx->stop)) {
		int64_t now = now_ns();
		int n = 0;

		/* Threads that want to do something come first: the poller's turn is never urgent while they run. */
		if (!at_load(&ctx->lock_wanted) && rc_trylock(ctx)) {
			bool slow = now >= slow_at;

			if (slow)
				slow_at = now + SLOW_NS;
			ctx->turn_at = now;
			n = rc_progress_locked(ctx, slow);
			rc_unlock(ctx);
		}
		if (n)
			last = now;
		if (ctx->mode == RREF_PROGRESS_POLL || now - last < SPIN_NS) {
			/* On a busy machine the one we wait for may need this very core. */
			if (n == 0)
				ctx->mode == RREF_PROGRESS_POLL ? cpu_relax() : (void)sched_yield();
			continue;
		}
		rc_lock(ctx);
		at_store_sc(&ctx->sleeping, 1);
		bool sleep = rc_arm(ctx) && !at_load_acq(&ctx->stop);
		int64_t wait = rc_next_timer(ctx, now);

		ctx->wake_at = now + wait;
		ctx->poller_asleep = sleep;
		rc_unlock(ctx);
		if (sleep) {
			struct epoll_event ev;

			/* Rounded up: a timer that wakes a moment early would only spin. */
			epoll_wait(ctx->epfd, &ev, 1, (int)((wait + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC));
		}
		rc_lock(ctx);
		ctx->poller_asleep = false;
		rc_disarm(ctx);
		/* A timer alone is no reason to spin; events are. */
		if (rc_progress_locked(ctx, true) || !sleep)
			last = now_ns();
		rc_unlock(ctx);
	}
	return NULL;
}

int rc_poller_open(struct rref_ctx *ctx)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int err;

	ctx->epfd = epoll_create1(EPOLL_CLOEXEC);
	ctx->kickfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ctx->epfd < 0 || ctx->kickfd < 0 || epoll_ctl(ctx->epfd, EPOLL_CTL_ADD, ctx->kickfd, &ev))
		return rc_fail(errno, "a descriptor to sleep on: %s", rref_strerror(errno));
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev &&
		    epoll_ctl(ctx->epfd, EPOLL_CTL_ADD, ctx->device[k].ops->fd(ctx->device[k].dev), &ev))
			return rc_fail(errno, "a descriptor to sleep on: %s", rref_strerror(errno));
	if (ctx->mode == RREF_PROGRESS_MANUAL)
		return 0;
	err = pthread_create(&ctx->poller, NULL, poller, ctx);
	if (err)
		return rc_fail(err, "the poller thread: %s", rref_strerror(err));
	at_store(&ctx->has_poller, true);
	if (ctx->poller_core >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET((unsigned)ctx->poller_core, &set);
		err = pthread_setaffinity_np(ctx->poller, sizeof(set), &set);
		if (err)
			return rc_fail(err, "pinning the poller to core %d: %s", ctx->poller_core, rref_strerror(err));
	}
	return 0;
}

void rc_poller_close(struct rref_ctx *ctx)
{
	if (at_load(&ctx->has_poller)) {
		uint64_t one = 1;

		at_store_rel(&ctx->stop, true);
		(void)!write(ctx->kickfd, &one, sizeof(one));
		pthread_join(ctx->poller, NULL);
		at_store(&ctx->has_poller, false);
	}
}
