/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How operations end: by their result, from outside (time-out, cancel, dead peer, shutdown), and
 * the scans of the slab that find those whose time has come. Who scans skips chunks of which no
 * slot is taken: else the largest burst that ever was would be paid for at each tick.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/op/kind.h"
#include "core/op/step.h"

#define RESCAN_NS (20 * NSEC_PER_MSEC)

/*
 * Of a scan that is at slot i: the first slot from there on that may be taken, nr if there is none.
 * A slot that is taken while the scan goes on may be missed: it was not under way when the scan
 * began.
 */
static uint32_t next_taken(struct rref_ctx *ctx, uint32_t i, uint32_t nr)
{
	while (i < nr && i % RC_OP_CHUNK == 0 && !at_load(&ctx->op.taken[i / RC_OP_CHUNK]))
		i += RC_OP_CHUNK;
	return i;
}

bool rc_op_claim(struct rref_future *f)
{
	uint32_t s = at_load(&f->state);

	do {
		if ((s & RC_F_MASK) != RC_F_PENDING)
			return false;
	} while (!at_cas_weak_ar(&f->state, &s, (s & ~(uint32_t)RC_F_MASK) | RC_F_COMPLETING));
	return true;
}

static void run_then(struct rref_ctx *ctx, struct rc_hook *h)
{
	struct rref_future *f = container_of(h, struct rref_future, then_hook);

	(void)ctx;
	f->then(f, f->then_arg);
	rc_op_put(f);
}

void rc_op_run_then(struct rref_future *f)
{
	f->then_hook.run = run_then;
	rc_hook_run(f->ctx, &f->then_hook);
}

/* Its callback is due. */
static lock_by_flag void queue_then(struct rref_future *f, bool locked)
{
	struct rref_ctx *ctx = f->ctx;

	at_add(&f->refs, 1);
	f->then_hook.run = run_then;
	if (!locked)
		rc_lock(ctx);
	rc_hook_push(ctx, &f->then_hook);
	if (!locked)
		rc_unlock(ctx);
}

void rc_op_finish(struct rref_future *f, bool locked)
{
	struct rref_ctx *ctx = f->ctx;
	uint32_t set = 1;
	/* sc: partner of rref_future_then, which stores then_state and then looks at state. One of
	 * the two sees both. */
	uint32_t old = at_xchg_sc(&f->state, RC_F_DONE);

	if (unlikely(old & (RC_F_SCOPED | RC_F_WAITERS | RC_F_ANY))) {
		if (old & RC_F_SCOPED)
			rc_scope_detach(f, f->status);
		if (old & (RC_F_WAITERS | RC_F_ANY))
			rc_wait_wake(f, old);
	}
	if (at_load_sc(&f->then_state) == 1 && at_cas_ar(&f->then_state, &set, 2))
		queue_then(f, locked);
	rc_loop_wake(ctx); /* sc above: partner of rref_ctx_arm */
}

/*
 * Without the state between: what is pending and waits for an answer is completed by holders of the
 * lock only. After the exchange an inner one is the waiter's alone, who may have put it already: of
 * the slot only the word to wake may be named.
 */
void rc_op_answered(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;

	if (!f->inner) {
		rc_op_finish(f, true);
		rc_op_put(f);
	} else if (unlikely(at_xchg_ar(&f->state, RC_F_DONE | RC_F_BOTH) & RC_F_WAITERS)) {
		rc_wait_wake_word(ctx, &f->state);
	}
}

bool rc_op_fail(struct rref_future *f, int status, int wc, const char *text, bool locked)
{
	if (!rc_op_claim(f))
		return false;
	f->status = status;
	f->wc_status = wc;
	snprintf(f->text, sizeof(f->text), "%s", text && *text ? text : rref_strerror(status));
	rc_op_finish(f, locked);
	return true;
}

needs_lock void
rc_op_end_plain(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text)
{
	(void)ctx;
	if (rc_op_fail(f, status, -1, text, true))
		rc_op_put(f);
}

bool rc_op_unpark(struct rref_ctx *ctx, struct rref_future *f)
{
	if (!f->parked)
		return false;
	struct rp_event ev = { .type = RP_EV_UNWAIT,
			       .id = f->handle->id,
			       .fork = rc_fork_of(f->handle),
			       .cookie = rc_op_token(f) };

	f->parked = false;
	if (rc_step(ctx, &ev, NULL) == 0)
		rc_op_put(f);
	return true;
}

void rc_op_end(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text)
{
	const struct rc_op_kind *kind = at_load(&f->kind);
	char words[RREF_TEXT_SIZE];

	if (status == -ETIMEDOUT)
		text = kind->why_late(ctx, f->peer, text, words, sizeof(words));
	kind->end(ctx, f, status, text);
}

/*
 * For who scans the slab: the operation in slot i with a hold on it (rc_op_put), if it is under
 * way. Without the hold the slot could be another operation's by the time it is ended: reads come
 * and go without the lock.
 */
static struct rref_future *pin_pending(struct rref_ctx *ctx, uint32_t i)
{
	struct rref_future *f = rc_op_at(ctx, i);
	uint32_t refs = at_load(&f->refs);

	if ((at_load(&f->state) & RC_F_MASK) != RC_F_PENDING || !at_load(&f->kind))
		return NULL;
	do {
		if (!refs)
			return NULL;
	} while (!at_cas_weak_ar(&f->refs, &refs, refs + 1));
	/* Acquire: partner of the release of kind by who starts a read without the lock. */
	if ((at_load_acq(&f->state) & RC_F_MASK) == RC_F_PENDING && at_load_acq(&f->kind))
		return f;
	rc_op_put(f);
	return NULL;
}

/* Ends an operation whose time is over. */
static needs_lock void expire(struct rref_ctx *ctx, struct rref_future *f)
{
	const struct rc_op_kind *kind = at_load(&f->kind);
	char text[RREF_TEXT_SIZE] = "timed out";

	if (kind->expired)
		kind->expired(f, text, sizeof(text));
	rc_op_end(ctx, f, -ETIMEDOUT, text);
}

/* Whatever is taken moves one of the two. */
static needs_lock bool is_known(const struct rref_ctx *ctx)
{
	return at_load(&ctx->op.free) == ctx->op.seen &&
	       at_load(&ctx->op.spare) == ctx->op.spare_seen;
}

/*
 * Also without a deadline that has come: a slot that was taken a moment before a scan looks free
 * until its operation begins.
 */
static needs_lock int64_t next_scan(const struct rref_ctx *ctx)
{
	return is_known(ctx) ? min_of(ctx->op.due, ctx->op.scanned_at + RESCAN_NS) : 0;
}

int64_t rc_ops_due(const struct rref_ctx *ctx)
{
	/* For that moment, too, twice. What is in flight then is complete, and kept by the
	 * program. */
	return !rc_ops_in_flight(ctx) || (is_known(ctx) && ctx->op.quiet >= 2) ? INT64_MAX
									       : next_scan(ctx);
}

void rc_ops_expire(struct rref_ctx *ctx, int64_t now)
{
	if (now < next_scan(ctx))
		return;
	/* Before it is asked whether there are any: what begins behind that moves one of the
	 * two. */
	uint64_t free_list = at_load_acq(&ctx->op.free), spare = at_load_acq(&ctx->op.spare);
	bool known = free_list == ctx->op.seen && spare == ctx->op.spare_seen, pending = false;
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->op.nr) : 0;

	ctx->op.due = INT64_MAX;
	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *op = rc_op_at(ctx, i);
		struct rref_future *f = at_load(&op->deadline) <= now ? pin_pending(ctx, i) : NULL;

		/* A slot that is given to the next operation meanwhile begins with this very
		 * moment, which is true of it too. */
		if (!at_load(&op->seen_at) && at_load(&op->kind))
			at_store(&op->seen_at, now);
		if ((at_load(&op->state) & RC_F_MASK) != RC_F_DONE) {
			/* Acquire: its deadline was there before its kind. One without a kind
			 * begins any moment. */
			int64_t due = at_load_acq(&op->kind) ? at_load(&op->deadline) : 0;

			pending = true;
			ctx->op.due = min_of(ctx->op.due, due);
		}
		if (!f)
			continue;
		if (at_load(&f->deadline) <= now)
			expire(ctx, f);
		rc_op_put(f);
	}
	ctx->op.seen = free_list;
	ctx->op.spare_seen = spare;
	ctx->op.scanned_at = now;
	ctx->op.quiet = pending ? 0 : known ? ctx->op.quiet + 1 : 1;
}

/*
 * Reads are not looked at: each of them ends by its own completion, its wait, or its place in
 * peer->waiting.
 */
void rc_ops_fail_peer(struct rref_ctx *ctx, uint32_t peer, int status, const char *text)
{
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->op.nr) : 0;

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);

		if (!f)
			continue;
		/* What still waits for its value is ended by the machine. */
		if (at_load(&f->kind)->ends_with_peer && !f->parked && f->peer == peer)
			rc_op_end(ctx, f, status, text);
		rc_op_put(f);
	}
}

void rc_ops_fail_all(struct rref_ctx *ctx, int status, const char *text)
{
	uint32_t nr = at_load_acq(&ctx->op.nr);

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);

		if (!f)
			continue;
		rc_op_end(ctx, f, status, text);
		rc_op_put(f);
	}
}

unsigned rc_ops_calling(struct rref_ctx *ctx)
{
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->op.nr) : 0;
	unsigned n = 0;

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = rc_op_at(ctx, i);
		const struct rc_op_kind *kind = at_load(&f->kind);

		n += kind && kind->calls &&
		     (at_load_acq(&f->state) & RC_F_MASK) == RC_F_PENDING;
	}
	return n;
}

uint32_t rc_ops_visit(struct rref_ctx *ctx, uint32_t from, uint32_t max,
		      void (*fn)(void *arg, struct rref_future *f), void *arg)
{
	uint32_t nr = at_load_acq(&ctx->op.nr), i = from;

	for (i = next_taken(ctx, i, nr); i < nr && i - from < max; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);

		if (!f)
			continue;
		if (!at_load(&f->seen_at))
			at_store(&f->seen_at, now_ns());
		fn(arg, f);
		rc_op_put(f);
	}
	return i < nr ? i : 0;
}
