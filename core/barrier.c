/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers: a star around rank 0, which tells all workers when the last of them has come. */
#include "core/base/lock.h"
#include "core/engine.h"
#include "core/session/session.h"

#define BUSY_BIT(number) (UINT64_C(1) << (number) % 64)

static needs_lock uint64_t barrier_word(const struct rref_ctx *ctx, uint64_t number)
{
	return number << 1 | !!(ctx->end.barrier_busy & BUSY_BIT(number));
}

static needs_lock void barrier_done(struct rref_ctx *ctx, uint64_t number, bool busy)
{
	if (busy)
		ctx->end.barrier_busy |= BUSY_BIT(number);
	if (number > ctx->end.barrier_done) {
		ctx->end.barrier_done = number;
		ctx->end.barrier_busy &= ~BUSY_BIT(number + 1);
	}
	if (ctx->end.barrier_op && ctx->end.barrier_op->number <= number) {
		struct rref_future *f = ctx->end.barrier_op;

		ctx->end.barrier_op = NULL;
		if (rc_op_claim(f)) {
			rc_op_finish_locked(f);
			rc_op_put(f);
		}
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

/* Completes the next barrier on rank 0 if all living workers have come to it. */
void rc_barrier_check(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	if (ctx->rank != 0 || !ctx->end.barrier_seen ||
	    ctx->end.barrier_sent <= ctx->end.barrier_done)
		return;
	uint64_t number = ctx->end.barrier_done + 1;

	for (uint32_t i = 0; i < ctx->world; i++)
		if (rc_barrier_misses(ctx, i))
			return;
	for (uint32_t i = 1; i < ctx->world; i++) {
		struct rw_message m = { .frame.type = RW_BARRIER_DONE,
					.u.number = barrier_word(ctx, number) };

		if (ctx->end.barrier_seen[i] >= number && at_load(&ctx->peers[i].alive))
			rc_send_or_end(ctx, i, &m);
	}
	barrier_done(ctx, number, false);
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
	return true;
}
