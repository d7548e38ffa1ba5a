/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress lock. Two things happen at its release: deferred work of the library is done (payload.c), and what other
 * threads dropped meanwhile without waiting for the lock is taken care of: handles, and memory that goes back to the program
 * (wrap.c). None of the program's code runs here: see base/hook.h.
 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/value/value.h"

/*
 * The lock itself is a futex word: taken by one compare-and-swap and given back by one exchange, inline where it is tried,
 * since a turn of the engine is not much longer than a pthread_mutex_lock.
 */
static __attribute__((noinline)) void lock_slow(struct rref_ctx *ctx)
{
	at_add(&ctx->lock_wanted, 1);
	for (unsigned spins = 0; spins < 64; spins++) {
		cpu_relax();
		if (rc_trylock(ctx))
			goto out;
	}
	/* Acquire, as rc_trylock. It is taken as WANTED: whoever gives it back wakes the next, if there is one. */
	while (at_xchg_acq(&ctx->lock, RC_LOCKED_WANTED) != RC_UNLOCKED)
		syscall(SYS_futex, &ctx->lock, FUTEX_WAIT_PRIVATE, RC_LOCKED_WANTED, NULL, NULL, 0);
out:
	at_sub(&ctx->lock_wanted, 1);
}

void rc_lock(struct rref_ctx *ctx)
{
	if (unlikely(!rc_trylock(ctx)))
		lock_slow(ctx);
}

static inline void unlock(struct rref_ctx *ctx)
{
	if (unlikely(at_xchg_rel(&ctx->lock, RC_UNLOCKED) == RC_LOCKED_WANTED))
		syscall(SYS_futex, &ctx->lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static unsigned length(const struct list *l)
{
	unsigned n = 0;

	for (const struct list *i = l->next; i != l; i = i->next)
		n++;
	return n;
}

void rc_unlock_bare(struct rref_ctx *ctx)
{
	unlock(ctx);
}

void rc_pause(unsigned *turn)
{
	unsigned n = (*turn)++;

	/* What is due soon is worth some turns of a processor; behind a peer that is stopped it is not. */
	if (n < 256)
		sched_yield();
	else
		nanosleep(&(struct timespec){ .tv_nsec = min_of(20 + n - 256, 1000u) * 1000L }, NULL);
}

void rc_defer(struct rref_ctx *ctx, struct rc_work *w)
{
	list_add_tail(&ctx->deferred_work, &w->node);
	ctx->nr_works++;
}

/* The library's own work: it makes calls and callbacks ready. [lock] */
static void run_work(struct rref_ctx *ctx)
{
	struct rc_error scratch;

	rc_error_aside(&scratch);
	for (unsigned n = length(&ctx->deferred_work); n > 0; n--) {
		struct list *l = list_pop(&ctx->deferred_work);

		if (!l)
			break;
		struct rc_work *w = container_of(l, struct rc_work, node);

		w->run(ctx, w);
		ctx->nr_works--;
	}
	rc_error_back(&scratch);
}

static bool is_due(struct rref_ctx *ctx)
{
	/* sc: partner of the pushes of rref_release and rc_wrap_over; whoever pushed while we held the lock did not wait. */
	return at_load_sc(&ctx->dropped) || rc_wraps_due(ctx);
}

static __attribute__((noinline)) void unlock_and_run(struct rref_ctx *ctx)
{
	for (;;) {
		if (unlikely(!list_empty(&ctx->deferred_work)))
			run_work(ctx);
		if (unlikely(!list_empty(&ctx->deferred_work)))
			rc_kick(ctx); /* it goes on at somebody's next turn: the poller has to be awake for that */
		if (rc_wraps_due(ctx))
			rc_wraps_return(ctx);
		unlock(ctx);
		if (likely(!is_due(ctx)) || !rc_trylock(ctx))
			break;
		rc_drain_dropped(ctx);
	}
	/* After the shutdown no other thread would ever run the release callbacks of what is let go of now. */
	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT && !rc_in_callback()))
		rc_hooks_flush(ctx);
}

void rc_unlock(struct rref_ctx *ctx)
{
	if (unlikely(!list_empty(&ctx->deferred_work) || at_load(&ctx->returned))) {
		unlock_and_run(ctx);
		return;
	}
	unlock(ctx);
	if (likely(!is_due(ctx)) || !rc_trylock(ctx))
		return;
	rc_drain_dropped(ctx);
	unlock_and_run(ctx);
}
