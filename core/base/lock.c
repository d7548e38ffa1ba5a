/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress lock. Its release runs the library's work that waits for it (work.h). The holder
 * deferred that work, or other threads pushed it meanwhile without a wait for the lock. The release
 * runs none of the program's code: see hook.h.
 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/work.h"
#include "core/ctx.h"

/* time of a sleep: the thread that a release woke may stand still, and wakes no other */
#define NAP_NS (10 * NSEC_PER_MSEC)

is_the_lock bool rc_lock_soon(struct rref_ctx *ctx)
{
	bool got = rc_trylock(ctx);

	if (likely(got))
		return true;
	at_add(&ctx->lock.wanted, 1);
	for (unsigned spins = 0; spins < 64 && !got; spins++) {
		cpu_relax();
		got = rc_trylock(ctx);
	}
	at_sub(&ctx->lock.wanted, 1);
	return got;
}

/*
 * Takes the lock as WANTED, so that its release wakes the next waiter, if there is one. Acquire, as
 * rc_trylock.
 */
static tries_lock is_the_lock bool take_as_wanted(struct rref_ctx *ctx)
{
	bool got = at_xchg_acq(&ctx->lock.word, RC_LOCKED_WANTED) == RC_UNLOCKED;

	if (got)
		rc_lock_taken(ctx);
	return got;
}

is_the_lock bool rc_lock_within(struct rref_ctx *ctx, int64_t ns)
{
	struct timespec time = { .tv_nsec = ns };
	bool got;

	at_add(&ctx->lock.wanted, 1);
	got = take_as_wanted(ctx);
	if (!got) {
		syscall(SYS_futex, &ctx->lock.word, FUTEX_WAIT_PRIVATE, RC_LOCKED_WANTED,
			&time, NULL, 0);
		got = take_as_wanted(ctx);
	}
	at_sub(&ctx->lock.wanted, 1);
	return got;
}

/*
 * Takes the lock, a futex word. One compare-and-swap takes it, one exchange gives it back. Both are
 * inline: a turn of the engine is not much longer than a pthread_mutex_lock.
 */
static __attribute__((noinline)) is_the_lock void lock_slow(struct rref_ctx *ctx)
{
	bool got = rc_lock_soon(ctx);

	while (!got)
		got = rc_lock_within(ctx, NAP_NS);
}

is_the_lock void rc_lock(struct rref_ctx *ctx)
{
	if (unlikely(!rc_trylock(ctx)))
		lock_slow(ctx);
}

/* turns in a row that are left to threads that wait for the lock: one may stand still */
#define WAY 16u

is_the_lock bool rc_trylock_in_turn(struct rref_ctx *ctx)
{
	if (unlikely(at_load(&ctx->lock.wanted)) && at_add(&ctx->lock.turns, 1) % WAY)
		return false;
	return rc_trylock(ctx);
}

/* Gives the lock back. sc. Pairs with rc_trylock: the look for pushed work comes after it. */
static inline is_the_lock void unlock(struct rref_ctx *ctx)
{
	rc_lock_given(ctx);
	if (unlikely(at_xchg_sc(&ctx->lock.word, RC_UNLOCKED) == RC_LOCKED_WANTED))
		syscall(SYS_futex, &ctx->lock.word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

is_the_lock void rc_unlock_bare(struct rref_ctx *ctx)
{
	unlock(ctx);
}

void rc_pause(unsigned *turn)
{
	unsigned n = (*turn)++;

	rb_slow(RB_SLOW_WAIT);
	/*
	 * Yields some turns of the processor for an event that is due soon. Sleeps for a later one:
	 * behind a stopped peer the turns are lost.
	 */
	if (n < 256)
		sched_yield();
	else
		nanosleep(&(struct timespec){ .tv_nsec = min_of(20 + n - 256, 1000u) * 1000L },
			  NULL);
}

/*
 * Runs the work, and looks again after each release. sc. Pairs with rc_work_push: a thread that
 * pushes while the lock is held does not wait.
 */
static __attribute__((noinline)) is_the_lock void run_and_unlock(struct rref_ctx *ctx)
{
	do {
		rc_work_run(ctx);
		unlock(ctx);
	} while (unlikely(at_load_sc(&ctx->works.pushed)) && rc_trylock(ctx));
	/* Runs the release callbacks here: after the shutdown no other thread ever would. */
	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT && !rc_in_callback()))
		rc_hooks_flush(ctx);
}

is_the_lock void rc_unlock(struct rref_ctx *ctx)
{
	if (unlikely(ctx->works.first || at_load(&ctx->works.pushed))) {
		run_and_unlock(ctx);
		return;
	}
	unlock(ctx);
	/* Looks again, as run_and_unlock does. sc. Pairs with rc_work_push. */
	if (unlikely(at_load_sc(&ctx->works.pushed)) && rc_trylock(ctx))
		run_and_unlock(ctx);
}

is_the_lock void rc_lock_settled(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	rc_unlock(ctx); /* runs it */
	rc_lock(ctx);
}
