/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ends operations: by their result, or from outside (time-out, cancel, dead peer, shutdown). Scans
 * the slab for operations whose time has come. A scan skips chunks that have no taken slot.
 * Otherwise each tick would pay for the largest burst that ever was.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/op/kind.h"
#include "core/op/step.h"

#define RESCAN_NS (20 * NSEC_PER_MSEC)
/* An operation that no thread waits for is late after so long. A waiter has less patience. */
#define LATE_NS (100 * NSEC_PER_MSEC)

/*
 * Returns the first slot from i on that may be taken, or nr if there is none. May miss a slot that
 * is taken while the scan goes on. Its operation was not under way when the scan began.
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

/* Queues the callback of f. */
static needs_lock void queue_then(struct rref_future *f)
{
	at_add(&f->refs, 1);
	f->then_hook.run = run_then;
	rc_hook_push(f->ctx, &f->then_hook);
}

/*
 * Wakes the waiters of a future that is complete. old: its state before. Returns true if the caller
 * has to queue its callback.
 */
static bool wake_all_of(struct rref_future *f, uint32_t old)
{
	uint32_t set = 1;

	if (unlikely(old & ~(uint32_t)RC_F_MASK)) {
		if (old & RC_F_SCOPED)
			rc_scope_detach(f, f->status);
		if (old & ~(uint32_t)(RC_F_MASK | RC_F_SCOPED))
			rc_wait_wake(f, old);
	}
	return at_load_sc(&f->then_state) == 1 && at_cas_ar(&f->then_state, &set, 2);
}

/* Does the rest for a future that is complete. old: its state before. */
static needs_lock void tell_locked(struct rref_future *f, uint32_t old)
{
	rc_assert_locked(f->ctx);
	if (wake_all_of(f, old))
		queue_then(f);
	rc_loop_wake(f->ctx); /* sc, by the callers. Pairs with rref_ctx_arm */
}

static void tell_unlocked(struct rref_future *f, uint32_t old)
{
	if (wake_all_of(f, old)) {
		at_add(&f->refs, 1);
		f->then_hook.run = run_then;
		rc_hook_push_any(f->ctx, &f->then_hook);
	}
	rc_loop_wake(f->ctx); /* as above */
}

void rc_op_finish_locked(struct rref_future *f)
{
	rc_assert_locked(f->ctx);
	/* sc. Pairs with rref_future_then: it stores then_state and then looks at state. One of the
	 * two sees both. */
	tell_locked(f, at_xchg_sc(&f->state, RC_F_DONE));
}

void rc_op_finish(struct rref_future *f)
{
	tell_unlocked(f, at_xchg_sc(&f->state, RC_F_DONE)); /* sc, as above */
}

/* Moves f from PENDING to DONE. Returns false if it was not PENDING, otherwise its state before. */
static bool succeed(struct rref_future *f, uint32_t *old)
{
	*old = at_load(&f->state);
	do {
		if ((*old & RC_F_MASK) != RC_F_PENDING)
			return false;
	} while (!at_cas_weak_sc(&f->state, old, RC_F_DONE)); /* sc, as above */
	return true;
}

bool rc_op_succeed_locked(struct rref_future *f)
{
	uint32_t old;

	rc_assert_locked(f->ctx);
	if (!succeed(f, &old))
		return false;
	tell_locked(f, old);
	return true;
}

bool rc_op_succeed(struct rref_future *f)
{
	uint32_t old;

	if (!succeed(f, &old))
		return false;
	tell_unlocked(f, old);
	return true;
}

/*
 * Completes an answered operation without the state between. Only holders of the lock complete a
 * pending operation that waits for an answer.
 */
void rc_op_answered(struct rref_future *f)
{
	rc_assert_locked(f->ctx);
	rc_op_finish_locked(f);
	rc_op_put(f);
}

bool rc_op_fail(struct rref_future *f, int status, int wc, const char *text)
{
	rc_assert_locked(f->ctx);
	if (!rc_op_claim(f))
		return false;
	f->status = status;
	f->wc_status = wc;
	snprintf(f->text, sizeof(f->text), "%s", text && *text ? text : rref_strerror(status));
	rc_op_finish_locked(f);
	return true;
}

needs_lock void
rc_op_end_plain(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text)
{
	rc_assert_locked(ctx);
	(void)ctx;
	if (rc_op_fail(f, status, -1, text))
		rc_op_put(f);
}

bool rc_op_unpark(struct rref_ctx *ctx, struct rref_future *f)
{
	rc_assert_locked(ctx);
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

	rc_assert_locked(ctx);
	if (status == -ETIMEDOUT)
		text = kind->why_late(ctx, f->peer, text, words, sizeof(words));
	kind->end(ctx, f, status, text);
}

/*
 * Returns the operation in slot i with a hold on it (rc_op_put), or NULL if it is not under way.
 * Scans of the slab call it. Without the hold the slot could be another operation's before it is
 * ended. Reads come and go without the lock.
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
	/* Acquire. Pairs with rc_op_begin: a read releases its kind without the lock. */
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

/* Returns true only if no slot was taken since the last scan: taking one moves free or spare. */
static needs_lock bool is_known(const struct rref_ctx *ctx)
{
	return at_load(&ctx->op.free) == ctx->op.seen &&
	       at_load(&ctx->op.spare) == ctx->op.spare_seen;
}

/*
 * Returns when the next scan is due, which may be before any deadline. A slot taken a moment before
 * a scan looks free until its operation begins.
 */
static needs_lock int64_t next_scan(const struct rref_ctx *ctx)
{
	return is_known(ctx) ? min_of(ctx->op.due, ctx->op.scanned_at + RESCAN_NS) : 0;
}

int64_t rc_ops_due(const struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	/* Two quiet scans are needed, because of that moment. After them the operations in
	 * flight are complete, and kept by the program. */
	return !rc_ops_in_flight(ctx) || (is_known(ctx) && ctx->op.quiet >= 2) ? INT64_MAX
									       : next_scan(ctx);
}

/* Tells the kind that f is late, without the lock. */
static needs_lock void tell_kind(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, work);

	f->is_told = false;
	rc_unlock_bare(ctx);
	if (!f->is->late(f, now_ns() - at_load(&f->seen_at)))
		at_store(&f->seen_at, now_ns()); /* late again soon */
	rc_lock(ctx);
	rc_op_put(f);
}

/* Ends f if its time is over. Gives back the caller's hold, at the latest behind tell_kind. */
static needs_lock void end_or_tell(struct rref_ctx *ctx, struct rref_future *f, int64_t now,
			       bool late)
{
	if (at_load(&f->deadline) <= now)
		expire(ctx, f);
	/* Acquire. Behind that no other part of a read has work under the lock. */
	if (late && f->is->late && at_load_acq(&f->posted) && rc_op_wanted(f) && !f->is_told) {
		/* Marked: another scan may come before the work does, which has one link. */
		f->is_told = true;
		f->work.run = tell_kind;
		rc_defer(ctx, &f->work);
	} else {
		rc_op_put(f);
	}
}

/* Returns whether f is late at this scan, for the first time or for twice as long. */
static needs_lock bool is_late(struct rref_ctx *ctx, const struct rref_future *f, int64_t now)
{
	int64_t seen = at_load(&f->seen_at), waited = now - seen;
	int64_t before = ctx->op.scanned_at - seen;

	return seen && waited >= LATE_NS &&
	       (before < LATE_NS || __builtin_clzll((uint64_t)waited) <
					    __builtin_clzll((uint64_t)before));
}

/*
 * Looks at slot i, and ends its operation if the time is over. Returns whether the slot is not
 * done: then ctx->op.due regards it.
 */
static needs_lock bool scan_slot(struct rref_ctx *ctx, uint32_t i, int64_t now)
{
	struct rref_future *op = rc_op_at(ctx, i);
	bool pending = (at_load(&op->state) & RC_F_MASK) != RC_F_DONE;
	bool late = pending && is_late(ctx, op, now);
	struct rref_future *f =
		late || at_load(&op->deadline) <= now ? pin_pending(ctx, i) : NULL;

	/* The slot may be given to the next operation meanwhile. That operation begins at this very
	 * moment, so the time is true of it too. */
	if (!at_load(&op->seen_at) && at_load(&op->kind))
		at_store(&op->seen_at, now);
	if (pending) {
		/* Acquire. Pairs with rc_op_begin: the deadline was there before the kind. An
		 * operation without a kind begins any moment. */
		int64_t due = at_load_acq(&op->kind) ? at_load(&op->deadline) : 0;

		ctx->op.due = min_of(ctx->op.due, due);
	}
	if (f)
		end_or_tell(ctx, f, now, late);
	return pending;
}

void rc_ops_expire(struct rref_ctx *ctx, int64_t now)
{
	rc_assert_locked(ctx);
	if (now < next_scan(ctx))
		return;
	/* Loaded before rc_ops_in_flight is asked: an operation that begins later moves one of
	 * the two. */
	uint64_t free_list = at_load_acq(&ctx->op.free), spare = at_load_acq(&ctx->op.spare);
	bool known = free_list == ctx->op.seen && spare == ctx->op.spare_seen, pending = false;
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->op.nr) : 0;

	ctx->op.due = INT64_MAX;
	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr))
		pending |= scan_slot(ctx, i, now);
	ctx->op.seen = free_list;
	ctx->op.spare_seen = spare;
	ctx->op.scanned_at = now;
	ctx->op.quiet = pending ? 0 : known ? ctx->op.quiet + 1 : 1;
}

/*
 * Fails the operations that end with the peer. Reads are among them. A READ may be over, and its
 * end be in the hand of a thread that stands still.
 */
void rc_ops_fail_peer(struct rref_ctx *ctx, uint32_t peer, int status, const char *text)
{
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->op.nr) : 0;

	rc_assert_locked(ctx);
	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);

		if (!f)
			continue;
		/* The machine ends an operation that still waits for its value. */
		if (at_load(&f->kind)->ends_with_peer && !f->parked && f->peer == peer)
			rc_op_end(ctx, f, status, text);
		rc_op_put(f);
	}
}

void rc_ops_fail_all(struct rref_ctx *ctx, int status, const char *text)
{
	uint32_t nr = at_load_acq(&ctx->op.nr);

	rc_assert_locked(ctx);
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

	rc_assert_locked(ctx);
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

	rc_assert_locked(ctx);
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
