/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting. A thread that waits makes progress itself when no other thread does (leader/follower).
 * So there is no thread hop between a completion and its waiter. It spins for a bounded time, then
 * sleeps on a word and leaves the work to the poller. In the manual mode, which has no poller, one
 * waiter sleeps on the devices for all.
 *
 * No wait for a READ takes the progress lock, unless it is free. Its holder may stand still.
 *
 * The kind of a wait (struct rc_wait_kind) tells its end. op/wait.c waits for a future or any of
 * several. This file waits for a condition, which no word tells of.
 *
 * Before it sleeps a thread of the pool or of the poller says so (blocking), and is replaced.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/hook.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/wait.h"

/*
 * A waiter's patience before it sleeps: longer than a READ on any sane fabric, shorter than a
 * scheduler's slice. It grows where waits end just behind it, as on an emulated or busy machine.
 * There a sleep and a wake-up would cost more than the rest of the wait.
 */
#define SPIN_NS (100 * NSEC_PER_USEC)
#define YIELD_NS (3 * NSEC_PER_USEC) /* longer than an answer takes from one who spins */
#define SPIN_MAX_NS (1 * NSEC_PER_MSEC)
/* sleep of a waiter for the lock, between two looks at READs: the holder may stand still */
#define NAP_NS (20 * NSEC_PER_USEC)
#define NAP_MAX_NS (1 * NSEC_PER_MSEC)
/* A wait that takes as long is late. Many threads and slow devices make waits of some ms. */
#define LATE_NS (10 * NSEC_PER_MSEC)
/* number of looks between two looks at the clock, and at other threads' needs */
#define LOOKS 8u

void rc_wake_word(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void rc_wake_one(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void rc_pass_on(struct rref_ctx *ctx, bool slow, int n)
{
	rc_assert_locked(ctx);
	if (unlikely(slow && n > 0 && at_load(&ctx->sleep.sleeping)))
		rc_kick(ctx);
}

int rc_progress_without_lock(struct rref_ctx *ctx, int reads, bool due)
{
	reads = max_of(reads, 0);
	/* The holder of the lock may be past its look. */
	if (unlikely(due))
		rc_kick(ctx);
	if (unlikely(at_load(&ctx->hooks.pushed)))
		reads += (int)rc_hook_run_any(ctx);
	cpu_relax();
	return reads ? reads : -1;
}

/*
 * Makes some looks of the engine. Returns how many events were handled, -1 if another thread is at
 * it. Does not pause between looks: under emulation a pause delays a completion a lot. A pause is
 * for a thread that only waits for another thread. In the manual mode it runs the program's code
 * that is due.
 */
int rc_make_progress(struct rref_ctx *ctx, bool slow)
{
	bool due = false;
	int reads = ctx->turns.engine->reads(ctx, &due), n;

	reads = max_of(reads, 0);
	if (reads && !due && !slow && at_load(&ctx->turns.has_poller))
		return reads; /* mostly the caller's */
	if (!rc_trylock(ctx))
		return rc_progress_without_lock(ctx, reads, due);
	/*
	 * Looks at connections here without a poller: no other thread would, if all waits of the
	 * program are short.
	 */
	ctx->turns.turn_at = at_load(&ctx->turns.has_poller) ? 0 : rc_coarse_ns();
	if (!slow && ctx->turns.turn_at)
		slow = ctx->turns.turn_at - ctx->turns.polled_slow_at >= RC_SLOW_NS;
	n = ctx->turns.engine->turns(ctx, slow, LOOKS);
	/*
	 * Passes the wake-up on: there may be more events than one turn takes. This thread took the
	 * wake-up, and may leave now.
	 */
	rc_pass_on(ctx, slow, n);
	return n + reads + (int)rc_unlock_hooks(ctx);
}

void rc_wait_sleep(struct rc_waiter *w, uint32_t value, int64_t deadline)
{
	struct timespec ts, *limit = NULL;

	if (deadline != INT64_MAX) {
		int64_t left = max_of(deadline - now_ns(), 0);

		ts.tv_sec = left / NSEC_PER_SEC;
		ts.tv_nsec = left % NSEC_PER_SEC;
		limit = &ts;
	}
	/* sc. Pairs with the waker, which moves the word and then looks at the count. */
	if (w->sleepers)
		at_add_sc(w->sleepers, 1);
	syscall(SYS_futex, w->word, FUTEX_WAIT_PRIVATE, value, limit, NULL, 0);
	if (w->sleepers)
		at_sub_sc(w->sleepers, 1);
}

bool rc_sleeper_is_done(const struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	return ctx->sleep.device_sleeper && rc_wait_has_moved(ctx->sleep.device_sleeper);
}

/* Calls another waiter to sleep on the devices: no thread sleeps on them any more. */
static needs_lock void call_sleeper(struct rref_ctx *ctx)
{
	if (ctx->sleep.device_sleeper || list_empty(&ctx->sleep.sleepers))
		return;
	struct rc_waiter *next = container_of(ctx->sleep.sleepers.next, struct rc_waiter, node);

	next->kind->call(next);
}

is_the_lock void rc_lock_looking(struct rref_ctx *ctx)
{
	long nap = NAP_NS;
	bool due = false;

	if (rc_trylock(ctx))
		return;
	at_add(&ctx->lock.wanted, 1); /* also between two looks */
	while (!rc_lock_soon(ctx) && !rc_lock_within(ctx, nap)) {
		ctx->turns.engine->reads(ctx, &due);
		nap = min_of(2 * nap, NAP_MAX_NS);
	}
	at_sub(&ctx->lock.wanted, 1);
	if (unlikely(due))
		rc_kick(ctx); /* the caller may make no turn */
}

/*
 * Sleeps on the devices without a poller, if no other waiter does. A completion by another thread
 * kicks this waiter. The other waiters sleep on their words. A waiter that leaves calls the next,
 * which takes the place or leaves too.
 */
static void device_sleep(struct rc_waiter *w, int64_t deadline)
{
	struct rref_ctx *ctx = w->ctx;
	struct pollfd pfd = { .fd = ctx->sleep.epfd, .events = POLLIN };
	int64_t now = now_ns(), wait;
	bool sleep;
	uint32_t s;

	if (!w->kind->will_sleep(w, &s))
		return;
	/* Waits for it no longer than that: it would not see the end of a READ meanwhile. */
	if (!rc_trylock(ctx) && !rc_lock_within(ctx, NAP_NS))
		return;
	if (ctx->sleep.device_sleeper) {
		list_add_tail(&ctx->sleep.sleepers, &w->node);
		rc_unlock(ctx);
		rc_wait_sleep(w, s, deadline);
		rc_lock_looking(ctx);
		list_del(&w->node);
		call_sleeper(ctx);
		rc_unlock(ctx);
		return;
	}
	ctx->sleep.device_sleeper = w;
	sleep = ctx->turns.engine->arm(ctx, RC_ARM_WAITER) && !rc_wait_is_finished(w);
	wait = min_of(ctx->turns.engine->next_timer(ctx, now), max_of(deadline - now, 0));
	rc_unlock(ctx);
	if (sleep) {
		struct timespec ts = { .tv_sec = wait / NSEC_PER_SEC,
				       .tv_nsec = wait % NSEC_PER_SEC };

		ppoll(&pfd, 1, &ts, NULL);
	}
	rc_lock_looking(ctx);
	ctx->turns.engine->turns(ctx, true, 1);
	ctx->turns.engine->disarm(ctx, RC_ARM_WAITER);
	ctx->sleep.device_sleeper = NULL;
	call_sleeper(ctx);
	rc_unlock(ctx);
}

/*
 * Learns from a wait that slept, and took that long in all. Threads may overwrite each other's
 * result.
 */
static void learn_patience(struct rref_ctx *ctx, int64_t took)
{
	uint32_t more = at_load(&ctx->sleep.extra_patience);

	if (took < SPIN_MAX_NS)
		more = (uint32_t)min_of(2 * (more + SPIN_NS), SPIN_MAX_NS) - (uint32_t)SPIN_NS;
	else
		more /= 2;
	at_store(&ctx->sleep.extra_patience, more);
}

/*
 * Says that this thread polls for READs. Meanwhile a poller that goes to sleep does not ask READs
 * to wake it. Every single READ would, and the poller would get in the way. A thread that stops
 * polling wakes the poller if READs of others are under way. sc. Pairs with arm_devices.
 */
static void watch_reads(struct rref_ctx *ctx)
{
	at_add_sc(&ctx->sleep.watching, 1);
}

static void unwatch_reads(struct rref_ctx *ctx)
{
	if (at_sub_sc(&ctx->sleep.watching, 1) == 1 && at_load_sc(&ctx->sleep.reads_unarmed) &&
	    at_load(&ctx->sleep.reads_in_flight))
		rc_kick(ctx);
}

/* Makes the poller look, and arm for finished READs, before this thread sleeps. */
static void leave_to_poller(struct rc_waiter *w, bool reads, int64_t deadline)
{
	struct rref_ctx *ctx = w->ctx;
	uint32_t s;

	if (reads)
		at_sub_sc(&ctx->sleep.watching, 1);
	rc_kick(ctx);
	if (w->kind->will_sleep(w, &s))
		rc_wait_sleep(w, s, deadline);
	if (reads)
		watch_reads(ctx);
}

static void go_to_sleep(struct rc_waiter *w, bool reads, int64_t deadline)
{
	if (unlikely(w->kind->sleep))
		w->kind->sleep(w, deadline);
	else if (at_load(&w->ctx->turns.has_poller))
		leave_to_poller(w, reads, deadline);
	else
		device_sleep(w, deadline);
}

/* The patience of a wait: turns before it sleeps. */
struct patience {
	bool spins;           /* a word tells of the end: quick turns come first */
	int64_t begun, until; /* ns; 0 = not yet */
	int64_t late_at; /* INT64_MAX: never */
};

/* Tells whether the wait goes on with turns, and does not sleep yet. */
static bool has_patience(struct rref_ctx *ctx, struct patience *p, int64_t now, bool worked)
{
	if (p->spins && (!p->until || worked))
		p->until = now + SPIN_NS + at_load(&ctx->sleep.extra_patience);
	return now < p->until || (worked && !p->spins);
}

/* Notes the time. Tells the kind when the wait is late, and for how long it lasts. */
static void look_at_time(struct rc_waiter *w, struct patience *p, int64_t now)
{
	if (!p->begun) {
		p->begun = now;
		p->late_at = w->kind->late ? now + LATE_NS : INT64_MAX;
	} else if (unlikely(now >= p->late_at)) {
		int64_t waited = now - p->begun;
		bool done = w->kind->late(w, waited);

		p->late_at = now + (done ? waited : max_of(waited / 8, LATE_NS));
	}
}

/*
 * Waits. Reads the clock late and seldom. Where the machine has no good clock, as most virtual
 * ones, a read is a system call. A wait that is over soon never reads it.
 */
int rc_wait(struct rc_waiter *w, bool reads, int64_t deadline, int64_t timeout)
{
	struct rref_ctx *ctx = w->ctx;
	/* A wait that no word tells of pauses between any two turns, and each is a slow one. */
	struct patience p = { .spins = w->kind->will_sleep };
	unsigned clock_mask = p.spins ? 15 : 0, slow_mask = p.spins ? 63 : 0;
	bool blocking = false;
	unsigned turn = 0;
	int err = 0;

	/* A READ is mostly over at the first look. */
	if (reads && rc_make_progress(ctx, false) > 0 && rc_wait_is_finished(w))
		return 0;
	if (reads)
		watch_reads(ctx);
	while (!rc_wait_is_finished(w)) {
		bool worked = rc_make_progress(ctx, (turn & slow_mask) == slow_mask) > 0;

		if (rc_wait_is_finished(w))
			break;
		if (++turn & clock_mask)
			continue;
		int64_t now = now_ns();

		if (deadline < 0)
			deadline = rc_deadline(ctx, timeout);
		if (now >= deadline) {
			err = -ETIMEDOUT;
			break;
		}
		look_at_time(w, &p, now);
		if (has_patience(ctx, &p, now, worked)) {
			/* A thread that was woken may wait for this very processor. */
			if (now - p.begun >= YIELD_NS)
				sched_yield();
			continue;
		}
		if (!blocking) {
			blocking = true;
			ctx->turns.engine->blocking(1);
		}
		go_to_sleep(w, reads, min_of(deadline, p.late_at));
	}
	if (reads)
		unwatch_reads(ctx);
	if (blocking) {
		ctx->turns.engine->blocking(-1);
		if (p.spins)
			learn_patience(ctx, now_ns() - p.begun);
	}
	return err;
}

/* ---- conditions ---- */

/* A wait for a condition that no word tells of: turns and pauses. */
struct condition {
	struct rc_waiter w;
	bool (*ready)(struct rref_ctx *ctx, void *arg);
	void *arg;
	unsigned pauses;
	int err;
};

/* Keeps the lock if it returns true. */
static tries_lock is_the_lock bool is_ready(struct rc_waiter *w)
{
	struct condition *c = container_of(w, struct condition, w);
	struct rref_ctx *ctx = w->ctx;

	rc_lock(ctx);
	if (c->ready(ctx, c->arg))
		return true;
	if (at_load(&ctx->state) == RC_CTX_SHUT) {
		c->err = -ESHUTDOWN;
		return true;
	}
	rc_unlock(ctx);
	return false;
}

static void pause_for(struct rc_waiter *w, int64_t deadline)
{
	(void)deadline; /* is further off than a pause, or no matter */
	rc_pause(&container_of(w, struct condition, w)->pauses);
}

static const struct rc_wait_kind condition_kind = { .is_over = is_ready, .sleep = pause_for };

is_the_lock int rc_wait_until(struct rref_ctx *ctx, bool (*ready)(struct rref_ctx *ctx, void *arg),
			      void *arg, int64_t deadline)
{
	static _Atomic uint32_t word; /* has always moved */
	struct condition c = {
		.w = { .ctx = ctx, .kind = &condition_kind, .word = &word, .seen = 1, .mask = 1 },
		.ready = ready,
		.arg = arg,
	};

	rc_assert_locked(ctx);
	if (ready(ctx, arg))
		return 0;
	rc_unlock_hooks(ctx);
	if (!rc_wait(&c.w, false, max_of(deadline, 0), 0))
		return c.err;
	rc_lock(ctx);
	return ready(ctx, arg) ? 0 : -ETIMEDOUT;
}
