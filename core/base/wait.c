/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting. A thread that waits makes progress itself when no other thread does (leader/follower): there is no thread hop
 * between a completion and its waiter. It spins for a bounded time, then sleeps on a word and leaves the work to the
 * poller. In the manual mode, which has no poller, one waiter sleeps on the devices for all.
 *
 *   a future        its own state word; RC_F_WAITERS says that a thread sleeps on it
 *   any of several  one word of the process; RC_F_ANY in each future says that its end moves that word
 *   a condition     rc_wait_until: turns and pauses, for what no word tells of
 *
 * Before it sleeps a thread of the pool or of the poller says so (rc_blocking), and is replaced.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/op/kind.h"

/*
 * A waiter's patience before it sleeps: longer than a READ on any sane fabric, shorter than a scheduler's slice. Where waits
 * end just behind it, as on an emulated or busy machine, it grows: to sleep and be woken would cost more than what is left.
 */
#define SPIN_NS (100 * NSEC_PER_USEC)
#define YIELD_NS (3 * NSEC_PER_USEC) /* longer than an answer takes from one who spins */
#define SPIN_MAX_NS (1 * NSEC_PER_MSEC)
#define SLOW_NS (1 * NSEC_PER_MSEC) /* as the poller; see progress.c */
#define FIRST_LOOKS 64u             /* behind a call: longer than an answer takes from one who spins */
#define LOOKS 8u                    /* between two looks at the clock, and at other threads' needs */

/* Bumped by the end of each future with RC_F_ANY. One for all contexts: their futures may be waited for together. */
static _Atomic uint32_t any_word;
static _Atomic uint32_t any_sleepers; /* threads that sleep on it, or are about to */

struct rc_waiter {
	struct rref_ctx *ctx;
	struct rref_future *f;        /* NULL: any of fs */
	struct rref_future *const *fs;
	size_t nr, found;
	uint32_t seen;                /* any_word, before fs was looked through */
	bool mixed;                   /* fs are of several contexts */
	bool over;                    /* one of fs was found complete; for good */
	struct list node;	/* under the lock; ctx->sleepers */
};

static void futex_wake_all(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void rc_wait_wake(struct rref_future *f, uint32_t old)
{
	struct rref_ctx *ctx = f->ctx;

	/* A waiter may sleep on the context's descriptor, and needs the kick. */
	if (old & RC_F_ANY)
		rc_wait_wake_any();
	rc_wait_wake_word(ctx, &f->state);
}

void rc_wait_wake_word(struct rref_ctx *ctx, _Atomic uint32_t *word)
{
	futex_wake_all(word);
	if (!at_load(&ctx->has_poller))
		rc_kick(ctx);
}

void rc_wait_wake_any(void)
{
	at_add_sc(&any_word, 1);
	/* Futures stay marked behind a wait. sc: partner of futex_sleep: the kernel lets a thread
	 * sleep only while the word is as it was. */
	if (at_load_sc(&any_sleepers))
		futex_wake_all(&any_word);
}

/*
 * Some looks of the engine. Returns how many things were handled, -1 if another thread is at it. The pause of a spin loop is
 * for a thread that only waits for another thread: one that polls would see its completion later for it (a lot later under
 * emulation). In the manual mode it runs the program's code that is due.
 */
int rc_make_progress(struct rref_ctx *ctx, bool slow)
{
	int n;

	if (!rc_trylock(ctx)) {
		cpu_relax();
		return -1;
	}
	/* Without a poller nobody else would ever look at connections, if all waits of the program are short. */
	ctx->turn_at = at_load(&ctx->has_poller) ? 0 : rc_coarse_ns();
	if (!slow && ctx->turn_at)
		slow = ctx->turn_at - ctx->polled_slow_at >= SLOW_NS;
	n = rc_progress_turns(ctx, slow, LOOKS);
	/* There may be more than one turn takes, and the wake-up for it was taken here: this thread may go now. */
	rc_progress_pass_on(ctx, slow, n);
	return n + (int)rc_unlock_hooks(ctx);
}

static bool find_done(struct rc_waiter *w)
{
	/* Before the look: an end that it misses moves the word. */
	w->seen = at_load_sc(&any_word);
	for (size_t i = 0; i < w->nr; i++)
		if (rc_op_done(w->fs[i])) {
			w->found = i;
			w->over = true;
			return true;
		}
	return false;
}

static inline bool is_over(struct rc_waiter *w)
{
	if (w->f)
		return rc_op_done(w->f);
	/* Asked again behind a look that found it, the word would be as it was seen. */
	return w->over || (unlikely(at_load_acq(&any_word) != w->seen) && find_done(w));
}

/* Sets bit in f's state; false if f is complete. */
static bool mark(struct rref_future *f, uint32_t bit)
{
	uint32_t s = at_load(&f->state);

	do {
		if ((s & RC_F_MASK) == RC_F_DONE)
			return false;
	} while (!(s & bit) && !at_cas_weak_ar(&f->state, &s, s | bit));
	return true;
}

/* Says that a thread is about to sleep; false if what it waits for is over. *s: the value of the word to sleep on. */
static bool will_sleep(struct rc_waiter *w, uint32_t *s)
{
	if (w->f) {
		if (!mark(w->f, RC_F_WAITERS))
			return false;
		*s = at_load(&w->f->state);
		return *s & RC_F_WAITERS;
	}
	*s = w->seen;
	return !is_over(w);
}

static void futex_sleep(struct rc_waiter *w, uint32_t s, int64_t deadline)
{
	struct timespec ts, *limit = NULL;

	if (deadline != INT64_MAX) {
		int64_t left = max_of(deadline - now_ns(), 0);

		ts.tv_sec = left / NSEC_PER_SEC;
		ts.tv_nsec = left % NSEC_PER_SEC;
		limit = &ts;
	}
	if (w->f) {
		syscall(SYS_futex, &w->f->state, FUTEX_WAIT_PRIVATE, s, limit, NULL, 0);
		return;
	}
	at_add_sc(&any_sleepers, 1);
	syscall(SYS_futex, &any_word, FUTEX_WAIT_PRIVATE, s, limit, NULL, 0);
	at_sub_sc(&any_sleepers, 1);
}

bool rc_sleeper_is_done(const struct rref_ctx *ctx)
{
	const struct rc_waiter *w = ctx->device_sleeper;

	return w && (w->f ? rc_op_done(w->f) : at_load_acq(&any_word) != w->seen);
}

/* Nobody sleeps on the devices any more: another waiter has to. Its word changes, so that it cannot miss this. */
static needs_lock void call_sleeper(struct rref_ctx *ctx)
{
	if (ctx->device_sleeper || list_empty(&ctx->sleepers))
		return;
	struct rref_future *f = container_of(ctx->sleepers.next, struct rc_waiter, node)->f;

	if (!f) {
		rc_wait_wake_any();
		return;
	}
	at_and_ar(&f->state, ~(uint32_t)RC_F_WAITERS);
	futex_wake_all(&f->state);
}

/*
 * Without a poller one waiter sleeps on the devices, and a completion made by another thread kicks it; the others sleep
 * on their words. Each one that leaves calls the next: that one takes the place, or leaves too.
 */
static void device_sleep(struct rc_waiter *w, int64_t deadline)
{
	struct rref_ctx *ctx = w->ctx;
	struct pollfd pfd = { .fd = ctx->epfd, .events = POLLIN };
	int64_t now = now_ns(), wait;
	bool sleep;
	uint32_t s;

	if (!will_sleep(w, &s))
		return;
	rc_lock(ctx);
	if (ctx->device_sleeper) {
		list_add_tail(&ctx->sleepers, &w->node);
		rc_unlock(ctx);
		futex_sleep(w, s, deadline);
		rc_lock(ctx);
		list_del(&w->node);
		call_sleeper(ctx);
		rc_unlock(ctx);
		return;
	}
	ctx->device_sleeper = w;
	sleep = rc_arm(ctx, RC_ARM_WAITER) && !is_over(w);
	wait = min_of(rc_next_timer(ctx, now), max_of(deadline - now, 0));
	rc_unlock(ctx);
	if (sleep) {
		struct timespec ts = { .tv_sec = wait / NSEC_PER_SEC, .tv_nsec = wait % NSEC_PER_SEC };

		ppoll(&pfd, 1, &ts, NULL);
	}
	rc_lock(ctx);
	rc_progress_locked(ctx, true);
	rc_disarm(ctx, RC_ARM_WAITER);
	ctx->device_sleeper = NULL;
	call_sleeper(ctx);
	rc_unlock(ctx);
}

/* A wait slept, and took that long in all. Threads may overwrite one another's finding. */
static void learn_patience(struct rref_ctx *ctx, int64_t took)
{
	uint32_t more = at_load(&ctx->more_patience);

	if (took < SPIN_MAX_NS)
		more = (uint32_t)min_of(2 * (more + SPIN_NS), SPIN_MAX_NS) - (uint32_t)SPIN_NS;
	else
		more /= 2;
	at_store(&ctx->more_patience, more);
}

/*
 * While somebody polls for READs the poller, when it goes to sleep, does not ask to be woken by them: it would be by every
 * single one, and get in the way. Who stops polling wakes it if others' READs are still under way. sc: partner of rc_arm.
 */
static void watch_reads(struct rref_ctx *ctx)
{
	at_add_sc(&ctx->watching, 1);
}

static void unwatch_reads(struct rref_ctx *ctx)
{
	if (at_sub_sc(&ctx->watching, 1) == 1 && at_load_sc(&ctx->reads_unarmed) && at_load(&ctx->reads_in_flight))
		rc_kick(ctx);
}

/* The poller must look, and arm for finished READs, before this thread sleeps. */
static void leave_to_poller(struct rc_waiter *w, bool reads, int64_t deadline)
{
	struct rref_ctx *ctx = w->ctx;
	uint32_t s;

	if (reads)
		at_sub_sc(&ctx->watching, 1);
	rc_kick(ctx);
	if (will_sleep(w, &s))
		futex_sleep(w, s, deadline);
	if (reads)
		watch_reads(ctx);
}

/* Sleeps for futures of several contexts. Contexts without a poller are looked at every 2 ms. */
static void sleep_for_several(struct rc_waiter *w, int64_t deadline)
{
	bool briefly = false;
	uint32_t s;

	for (size_t i = 0; i < w->nr; i++) {
		struct rref_ctx *ctx = w->fs[i]->ctx;

		if (at_load(&ctx->has_poller)) {
			rc_kick(ctx); /* as in leave_to_poller */
			continue;
		}
		briefly = true;
		rc_make_progress(ctx, true);
	}
	if (briefly)
		deadline = min_of(deadline, now_ns() + 2 * NSEC_PER_MSEC);
	if (will_sleep(w, &s))
		futex_sleep(w, s, deadline);
}

/*
 * Reading the clock is a system call where the machine has no good one (virtual ones mostly), so it is read late and seldom: a
 * wait that is over soon never does. deadline < 0: `timeout` from the first look at the clock on.
 */
static int wait_on(struct rc_waiter *w, bool reads, int64_t deadline, int64_t timeout)
{
	struct rref_ctx *ctx = w->ctx;
	int64_t spin_until = 0, begun = 0;
	bool blocking = false;
	unsigned turn = 0;
	int err = 0;

	if (reads)
		watch_reads(ctx);
	while (!is_over(w)) {
		bool worked = rc_make_progress(ctx, (turn & 63) == 63) > 0;

		if (is_over(w))
			break;
		if (++turn & 15)
			continue;
		int64_t now = now_ns();

		if (deadline < 0)
			deadline = rc_deadline(ctx, timeout);
		if (now >= deadline) {
			err = -ETIMEDOUT;
			break;
		}
		if (!begun)
			begun = now;
		if (!spin_until || worked)
			spin_until = now + SPIN_NS + at_load(&ctx->more_patience);
		if (now < spin_until) {
			/* A thread that we woke may have been put on this very processor, and waits for us as we do for it. */
			if (now - begun >= YIELD_NS)
				sched_yield();
			continue;
		}
		if (!blocking) {
			blocking = true;
			rc_blocking(1);
		}
		if (unlikely(w->mixed))
			sleep_for_several(w, deadline);
		else if (at_load(&ctx->has_poller))
			leave_to_poller(w, reads, deadline);
		else
			device_sleep(w, deadline);
	}
	if (reads)
		unwatch_reads(ctx);
	if (blocking) {
		rc_blocking(-1);
		learn_patience(ctx, now_ns() - begun);
	}
	return err;
}

static bool is_read(const struct rref_future *f)
{
	return f->is->reads;
}

static int wait_for(struct rref_future *f, int64_t deadline, int64_t timeout)
{
	struct rc_waiter w; /* the rest is of several futures */
	/* Over shm none of them is ever waited for. */
	bool reads = is_read(f) && at_load(&f->ctx->has_poller);

	w.ctx = f->ctx;
	w.f = f;
	w.mixed = false;
	return wait_on(&w, reads, deadline, timeout);
}

int rc_op_wait_locked(struct rref_future *f, int64_t deadline)
{
	struct rref_ctx *ctx = f->ctx;

	if (!rc_op_done(f)) {
		/* As in rc_make_progress. */
		bool slow = !at_load(&ctx->has_poller) && ctx->turn_at - ctx->polled_slow_at >= SLOW_NS;

		rc_progress_turns(ctx, slow, FIRST_LOOKS);
	}
	rc_unlock_hooks(ctx);
	return rc_op_done(f) ? 0 : wait_for(f, deadline, 0);
}

int rc_op_wait(struct rref_future *f, int64_t deadline)
{
	return wait_for(f, max_of(deadline, 0), 0);
}

int rc_op_wait_for(struct rref_future *f, int64_t timeout)
{
	return wait_for(f, -1, timeout);
}

int rc_wait_until(struct rref_ctx *ctx, bool (*ready)(struct rref_ctx *ctx, void *arg), void *arg, int64_t deadline)
{
	bool blocking = false;
	unsigned turn = 0;
	int err = 0;

	while (!ready(ctx, arg)) {
		int n = rc_progress_locked(ctx, true);

		rc_progress_pass_on(ctx, true, n);
		if (ready(ctx, arg))
			break;
		if (at_load(&ctx->state) == RC_CTX_SHUT)
			err = -ESHUTDOWN;
		else if (now_ns() >= deadline)
			err = -ETIMEDOUT;
		if (err)
			break;
		unsigned ran = rc_unlock_hooks(ctx);

		if (!blocking) {
			blocking = true;
			rc_blocking(1);
		}
		if (!ran)
			rc_pause(&turn);
		rc_lock(ctx);
	}
	if (blocking)
		rc_blocking(-1);
	return err;
}

static int check_several(struct rref_future *const *fs, size_t nr, const char *what)
{
	if (nr && !fs)
		return rc_fail(EINVAL, "%s: no futures", what);
	for (size_t i = 0; i < nr; i++) {
		if (!fs[i])
			return rc_fail(EINVAL, "%s: future %zu is NULL", what, i);
		if (rc_is_barred(fs[i]->ctx))
			return rc_enter_slow(fs[i]->ctx);
	}
	return 0;
}

int rref_wait_any(struct rref_future *const *fs, size_t nr, int64_t timeout)
{
	RB_NO_CANCEL;
	int err = nr ? check_several(fs, nr, "rref_wait_any") : rc_fail(EINVAL, "rref_wait_any: no futures");

	if (err)
		return err;
	struct rc_waiter w = { .ctx = fs[0]->ctx, .fs = fs, .nr = nr };
	bool reads = false;

	if (find_done(&w))
		return (int)w.found;
	for (size_t i = 0; i < nr; i++) {
		w.mixed |= fs[i]->ctx != w.ctx;
		reads |= is_read(fs[i]);
		if (!mark(fs[i], RC_F_ANY))
			return (int)i;
	}
	if (find_done(&w))
		return (int)w.found;
	reads = reads && !w.mixed && at_load(&w.ctx->has_poller);
	err = wait_on(&w, reads, -1, timeout);
	return err ? rc_fail(-err, "none of %zu operations is complete", nr) : (int)w.found;
}

int rref_wait_all(struct rref_future *const *fs, size_t nr, int64_t timeout)
{
	RB_NO_CANCEL;
	int err = check_several(fs, nr, "rref_wait_all");

	if (err || !nr)
		return err;
	int64_t deadline = rc_deadline(fs[0]->ctx, timeout);

	for (size_t i = 0; i < nr; i++)
		if (!rc_op_done(fs[i]) && rc_op_wait(fs[i], deadline))
			return rc_fail(ETIMEDOUT, "%zu of %zu operations are complete in order", i, nr);
	return 0;
}
