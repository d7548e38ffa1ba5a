/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers: a star around rank 0, which tells all workers when the last of them has come. */
#include "core/base/lock.h"
#include "core/base/ranks.h"
#include "core/engine.h"
#include "core/session/session.h"

#define BUSY_BIT(number) (UINT64_C(1) << (number) % 64)

static needs_lock uint64_t barrier_word(const struct rref_ctx *ctx, uint64_t number)
{
	return number << 1 | !!(ctx->end.barrier_busy & BUSY_BIT(number));
}

/* Ends the wait of this worker for the barriers that are done. */
static needs_lock void end_wait(struct rref_ctx *ctx)
{
	struct rref_future *f = ctx->end.barrier_op;

	if (!f || f->number > ctx->end.barrier_done)
		return;
	ctx->end.barrier_op = NULL;
	if (rc_op_claim(f)) {
		rc_op_finish_locked(f);
		rc_op_put(f);
	}
}

static needs_lock void barrier_done(struct rref_ctx *ctx, uint64_t number, bool busy)
{
	if (busy)
		ctx->end.barrier_busy |= BUSY_BIT(number);
	if (number > ctx->end.barrier_done) {
		ctx->end.barrier_done = number;
		ctx->end.barrier_busy &= ~BUSY_BIT(number + 1);
	}
}

bool rc_barrier_misses(const struct rref_ctx *ctx, uint32_t rank)
{
	const struct rc_peer *p = &ctx->peers[rank];

	rc_assert_locked(ctx);
	if (ctx->rank != 0 || !ctx->end.barrier_seen ||
	    ctx->end.barrier_sent <= ctx->end.barrier_done ||
	    ctx->end.barrier_seen[rank] > ctx->end.barrier_done)
		return false;
	/* A slow worker is not dead. A dead worker had a session that ended, or no process is left
	 * that would take a session. */
	return rank == 0 || at_load(&p->alive) || !(p->ever_up || p->nobody);
}

void rc_barrier_watch(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	for (uint32_t i = 1; ctx->rank == 0 && i < ctx->world; i++) {
		rc_rank_next(ctx, i);
		if (rc_barrier_misses(ctx, i))
			rc_peer_watch(ctx, &ctx->peers[i]);
	}
}

/* Tells a worker that all have come. */
static needs_lock void tell_done(struct rref_ctx *ctx, uint32_t rank)
{
	struct rw_message m = { .frame.type = RW_BARRIER_DONE,
				.u.number = barrier_word(ctx, ctx->end.barrier_done) };

	if (ctx->end.barrier_seen[rank] >= ctx->end.barrier_done &&
	    at_load(&ctx->peers[rank].alive))
		rc_send_or_end(ctx, rank, &m);
}

/* Ends a look at all workers, or their being told. */
static needs_lock void end_pass(struct rref_ctx *ctx)
{
	if (ctx->end.barrier_tells) {
		ctx->end.barrier_tells = false;
		end_wait(ctx);
	} else if (ctx->end.barrier_sessions != ctx->n.sessions) {
		/* A worker that was passed without a session may be back: looks again. */
		ctx->end.barrier_sessions = ctx->n.sessions;
	} else {
		ctx->end.barrier_tells = true;
		barrier_done(ctx, ctx->end.barrier_done + 1, false);
	}
}

/*
 * Looks at some workers: has each come to the next barrier? Behind the last one the barrier is
 * done, and the workers are told, some at a time. A worker that asks again meanwhile is answered as
 * a late one. The wait of rank 0 itself ends last: it leaves behind the others.
 */
static needs_lock void barrier_turn(struct rref_ctx *ctx, __attribute__((unused)) struct rc_work *w)
{
	uint32_t *i = &ctx->end.barrier_next, end = min_of(*i + RC_RANKS_TURN, ctx->world);

	ctx->end.barrier_due = false;
	if (!ctx->end.barrier_tells && ctx->end.barrier_sent <= ctx->end.barrier_done)
		return;
	for (; *i < end; ++*i) {
		rb_slow_rank(2 * RC_RANKS_TURN);
		if (ctx->end.barrier_tells && *i)
			tell_done(ctx, *i);
		else if (rc_barrier_misses(ctx, *i))
			return;
	}
	if (*i == ctx->world) {
		*i = 0;
		end_pass(ctx);
	}
	rc_barrier_check(ctx);
}

/* Has rank 0 look whether all living workers have come to the next barrier. */
void rc_barrier_check(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	if (ctx->rank != 0 || !ctx->end.barrier_seen || ctx->end.barrier_due ||
	    (!ctx->end.barrier_tells && ctx->end.barrier_sent <= ctx->end.barrier_done))
		return;
	ctx->end.barrier_due = true;
	ctx->end.barrier_work.run = barrier_turn;
	rc_defer(ctx, &ctx->end.barrier_work);
}

bool rc_barrier_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t word)
{
	uint64_t number = word >> 1;
	/*
	 * The sender lost a session and repeats its last message, since it cannot know if it came.
	 */
	bool again = ctx->rank == 0 && number && number == ctx->end.barrier_seen[from->rank];

	rc_assert_locked(ctx);
	if (ctx->rank != 0 || (!again && number != (uint64_t)ctx->end.barrier_seen[from->rank] + 1))
		return false;
	ctx->end.barrier_seen[from->rank] += !again;
	if (!again && number > ctx->end.barrier_done && (word & 1))
		ctx->end.barrier_busy |= BUSY_BIT(number);
	if (number <= ctx->end.barrier_done) {
		/* This worker was given up for dead, but only its session had ended. So it missed
		 * only the answer. */
		struct rw_message late = { .frame.type = RW_BARRIER_DONE,
					   .u.number = barrier_word(ctx, number) };

		rc_send_or_end(ctx, from->rank, &late);
	}
	rc_barrier_check(ctx);
	return true;
}

bool rc_barrier_done_message(struct rref_ctx *ctx, const struct rc_peer *from, uint64_t word)
{
	rc_assert_locked(ctx);
	if (from->rank != 0 || word >> 1 > ctx->end.barrier_sent)
		return false;
	barrier_done(ctx, word >> 1, word & 1);
	end_wait(ctx);
	return true;
}
