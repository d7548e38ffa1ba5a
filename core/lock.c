/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress lock. Three things happen at its release: deferred work is done (payload.c), callbacks and inline handlers
 * that were deferred run, and what other threads dropped meanwhile without waiting for the lock is taken care of: handles,
 * and memory that goes back to the program (wrap.c).
 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "rc.h"

static _Thread_local unsigned callback_depth;

bool rc_in_callback(void)
{
	return callback_depth > 0;
}

unsigned rc_callback_depth(void)
{
	return callback_depth;
}

void rc_callback_enter(void)
{
	callback_depth++;
}

void rc_callback_leave(void)
{
	callback_depth--;
}

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

/* The library's own work, before the program's: it makes calls and callbacks ready. [lock] */
static void run_work(struct rref_ctx *ctx)
{
	for (unsigned n = length(&ctx->deferred_work); n > 0; n--) {
		struct list *l = list_pop(&ctx->deferred_work);

		if (!l)
			return;
		struct rc_work *w = container_of(l, struct rc_work, node);

		w->run(ctx, w);
		ctx->nr_works--;
	}
}

/*
 * One at a time, and the others stay where any thread finds them: a callback may wait, and what it waits for may hang
 * on one that was deferred together with it. Not more than there are now: who adds some takes care of them. [lock, which
 * is let go for each, and at the end]
 */
static void run_deferred(struct rref_ctx *ctx)
{
	for (unsigned n = length(&ctx->deferred_ops) + length(&ctx->deferred_calls);;) {
		struct list *op = list_pop(&ctx->deferred_ops), *call = op ? NULL : list_pop(&ctx->deferred_calls);

		unlock(ctx);
		if (!op && !call)
			return;
		if (op)
			rc_op_run_then(container_of(op, struct rref_future, then_node));
		else
			rc_run_call(container_of(call, struct rref_call, node));
		if (--n == 0)
			return;
		rc_lock(ctx);
	}
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
		if (unlikely(!list_empty(&ctx->deferred_ops) || !list_empty(&ctx->deferred_calls))) {
			run_deferred(ctx); /* what else there is by then, the look below finds */
		} else {
			if (rc_wraps_due(ctx))
				rc_wraps_return(ctx);
			unlock(ctx);
		}
		if (likely(!is_due(ctx)) || !rc_trylock(ctx))
			return;
		rc_drain_dropped(ctx);
	}
}

void rc_unlock(struct rref_ctx *ctx)
{
	if (unlikely(!list_empty(&ctx->deferred_work) || !list_empty(&ctx->deferred_ops) || !list_empty(&ctx->deferred_calls) ||
		     at_load(&ctx->returned))) {
		unlock_and_run(ctx);
		return;
	}
	unlock(ctx);
	if (likely(!is_due(ctx)) || !rc_trylock(ctx))
		return;
	rc_drain_dropped(ctx);
	unlock_and_run(ctx);
}
