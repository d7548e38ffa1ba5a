/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The READ of a fast read (read/fast.c) on its way, over a device that reports by events (ibv).
 * Its thread polls for it. Any holder of the lock may find the completion first, and notes it in
 * the flight. The flight is all that the two threads share. So it needs no operation slot, no
 * future, and no counter that other threads write.
 *
 * A flight lasts for as long as a thread spins, which is longer than a READ on any sane fabric. A
 * slower READ is handed over to an operation of the usual kind. The operation can sleep and time
 * out. It can leave its landing buffer in quarantine until the device is done with it. If there is
 * no slot for an operation, the flight itself keeps the buffer when the time is over.
 *
 * A flight belongs to one thread at a time. While a READ is under way it is out of its reader's
 * hands. Callbacks and handlers that run on the thread meanwhile take another flight. Flights are
 * never freed before their context, so that a completion always finds its own. Each
 * RC_FLIGHT_POSTED flight is ended once, by its completion or by the shutdown.
 */
#include "core/base/lock.h"
#include "core/base/wait.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/reader.h"

/* Cookies of operations (rc_op_token) never have the highest bit. */
#define COOKIE (UINT64_C(1) << 63)

/*
 * Weights of the looks. A turn of the engine counts for more than a look that finds the lock taken.
 * A thread that always finds it taken looks for some 4 us in all.
 */
#define PATIENCE 256u
#define TURN 16u
#define LOOKS 4u /* looks before these, at READs only */

struct rc_in_flight *rc_in_flight_get(struct rref_ctx *ctx)
{
	struct rc_in_flight *fl;

	rc_lock(ctx);
	fl = rc_in_flight_take(ctx);
	rc_unlock(ctx);
	return fl;
}

uint64_t rc_in_flight_begin(struct rc_in_flight *fl)
{
	rb_assert_is(at_load(&fl->state), ==, RC_FLIGHT_MINE);
	rb_assert(!((uintptr_t)fl & COOKIE));
	/* stored before the post, which publishes the flight to the pollers */
	at_store(&fl->state, RC_FLIGHT_POSTED);
	return COOKIE | (uintptr_t)fl;
}

void rc_in_flight_undo(struct rc_in_flight *fl)
{
	at_store(&fl->state, RC_FLIGHT_MINE);
}

bool rc_in_flight_landed(struct rc_in_flight *fl, int *status)
{
	if (at_load_acq(&fl->state) != RC_FLIGHT_LANDED)
		return false;
	*status = fl->status;
	at_store(&fl->state, RC_FLIGHT_MINE);
	return true;
}

/* Looks for a finished READ of p's device, and for nothing else. */
static needs_lock void look_for_reads(struct rref_ctx *ctx, const struct rc_peer *p)
{
	uint64_t cookie;
	void *user;

	if (unlikely(at_load(&ctx->state) == RC_CTX_SHUT))
		return;
	ctx->turns.turn_at = 0; /* a step of the engine's may follow */
	if (p->device->ops->next_read(p->dev, &cookie, &user))
		rc_peer_read(ctx, user, cookie, 0, -1);
}

bool rc_in_flight_wait(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_in_flight *fl,
		       int *status)
{
	/* Skips these looks if there is no poller: a program that only reads has to serve its peers
	 * itself. */
	for (unsigned i = at_load(&ctx->turns.has_poller) ? 0 : LOOKS; i < LOOKS && rc_trylock(ctx);
	     i++) {
		look_for_reads(ctx, p);
		rc_unlock(ctx);
		if (rc_in_flight_landed(fl, status))
			return true;
	}
	for (unsigned spent = 0; spent < PATIENCE;
	     spent += rc_make_progress(ctx, false) < 0 ? 1 : TURN)
		if (rc_in_flight_landed(fl, status))
			return true;
	return rc_in_flight_landed(fl, status);
}

bool rc_in_flight_leave(struct rref_ctx *ctx, struct rc_in_flight **fl, struct rref_future *f,
			struct rc_landing *v, int *status)
{
	rc_assert_locked(ctx);
	if (rc_in_flight_landed(*fl, status))
		return false;
	rb_assert(!(*fl)->f && !(*fl)->landing && at_load(&(*fl)->state) == RC_FLIGHT_POSTED);
	rb_assert(f || v);
	(*fl)->f = f;
	(*fl)->landing = f ? NULL : v;
	at_add(&ctx->sleep.reads_in_flight, 1);
	at_add(&ctx->n.quarantined, !f);
	*fl = rc_in_flight_take(ctx);
	return true;
}

/* Lands a flight that its thread left: ends its operation, or puts back its landing buffer. */
static needs_lock void land_without(struct rref_ctx *ctx, struct rc_in_flight *fl, int status,
				    int wc)
{
	struct rref_future *f = fl->f;
	struct rc_landing *v = fl->landing;

	fl->f = NULL;
	fl->landing = NULL;
	rc_in_flight_put(fl);
	if (f) {
		rc_read_finished(f, status, wc);
		return;
	}
	rb_assert(at_load(&ctx->sleep.reads_in_flight) && at_load(&ctx->n.quarantined));
	at_sub(&ctx->sleep.reads_in_flight, 1);
	at_sub(&ctx->n.quarantined, 1);
	rc_landing_put(v);
}

bool rc_in_flight_event(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status,
			int wc)
{
	struct rc_in_flight *fl = (struct rc_in_flight *)(uintptr_t)(cookie & ~COOKIE);

	rc_assert_locked(ctx);
	if (!(cookie & COOKIE))
		return false;
	if (unlikely(at_load(&fl->state) != RC_FLIGHT_POSTED)) {
		at_add(&ctx->n.dropped, 1); /* the shutdown ended it */
	} else if (unlikely(fl->f || fl->landing)) {
		land_without(ctx, fl, status, wc);
	} else {
		if (unlikely(status == -EACCES && p))
			at_add(&p->resume.refused, 1);
		fl->status = status;
		at_store_rel(&fl->state, RC_FLIGHT_LANDED);
	}
	return true;
}

void rc_in_flight_all_fail(struct rref_ctx *ctx, int status)
{
	rc_assert_locked(ctx);
	for (struct rc_in_flight *fl = ctx->value.flights; fl; fl = fl->next) {
		uint32_t posted = RC_FLIGHT_POSTED;

		if (at_load(&fl->state) != RC_FLIGHT_POSTED)
			continue;
		if (fl->f || fl->landing) {
			land_without(ctx, fl, status, -1);
			continue;
		}
		fl->status = status;
		/* A compare-exchange: the thread may be in rc_in_flight_undo, for a READ that was
		 * not posted. */
		at_cas_ar(&fl->state, &posted, RC_FLIGHT_LANDED);
	}
}
