/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The READ of a fast read (read/fast.c) on its way, over a device that reports by events (ibv).
 * Its thread polls for it. Any thread may find the completion first, and notes it in the flight.
 * The flight is all that the two threads share. So it needs no operation slot, no future, and no
 * counter that other threads write.
 *
 * A flight lasts for as long as a thread spins, which is longer than a READ on any sane fabric. A
 * slower READ is handed over to an operation of the usual kind. The operation can sleep and time
 * out. It can leave its landing buffer in quarantine until the device is done with it. If there is
 * no slot for an operation, the flight itself keeps the buffer when the time is over.
 *
 * The flight's word decides, by compare-and-swap. The thread that found the completion moves it
 * from POSTED to LANDED. Or its own thread moves it from POSTED to LEFT. No lock takes part.
 *
 * A flight belongs to one thread at a time. While a READ is under way it is out of its reader's
 * hands. Callbacks and handlers that run on the thread meanwhile take another flight. Flights are
 * never freed before their context, so that a completion always finds its own. Each POSTED flight
 * is ended once, by its completion or by the shutdown.
 */
#include "core/base/lock.h"
#include "core/base/wait.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/reader.h"

void rc_in_flight_undo(struct rc_in_flight *fl)
{
	at_store(&fl->state, RC_FLIGHT_MINE);
}

bool rc_in_flight_leave(struct rref_ctx *ctx, struct rc_in_flight **fl, struct rref_future *f,
			struct rc_landing *v)
{
	uint32_t posted = RC_FLIGHT_POSTED;

	rb_assert(!(*fl)->f && !(*fl)->landing);
	rb_assert(f || v);
	(*fl)->f = f;
	(*fl)->landing = f ? NULL : v;
	rc_count_in_flight(ctx, 1);
	at_add(&ctx->n.quarantined, !f);
	/* Release. Pairs with land: the flight has its heir. */
	if (at_cas_ar(&(*fl)->state, &posted, RC_FLIGHT_LEFT)) {
		*fl = rc_in_flight_take(ctx);
		return true;
	}
	rb_assert_is(posted, ==, RC_FLIGHT_LANDED);
	at_sub(&ctx->sleep.reads_in_flight, 1);
	at_sub(&ctx->n.quarantined, !f);
	(*fl)->f = NULL;
	(*fl)->landing = NULL;
	return false;
}

/*
 * Ends a flight's READ. Returns the operation whose READ it is, which the caller ends, or NULL.
 * Gives back the landing buffer if the flight kept one.
 */
static struct rref_future *land(struct rref_ctx *ctx, struct rc_in_flight *fl, int status)
{
	uint32_t state = RC_FLIGHT_LEFT;
	struct rref_future *f;
	struct rc_landing *v;

	if (likely(rc_in_flight_land(fl, status)))
		return NULL;
	if (!at_cas_ar(&fl->state, &state, RC_FLIGHT_MINE)) {
		at_add(&ctx->n.dropped, 1); /* the shutdown ended it */
		return NULL;
	}
	f = fl->f;
	v = fl->landing;
	fl->f = NULL;
	fl->landing = NULL;
	rc_in_flight_put(fl);
	if (f)
		return f;
	rb_assert(at_load(&ctx->sleep.reads_in_flight) && at_load(&ctx->n.quarantined));
	at_sub(&ctx->sleep.reads_in_flight, 1);
	at_sub(&ctx->n.quarantined, 1);
	rc_landing_put(v);
	return NULL;
}

bool rc_in_flight_ended_well(struct rref_ctx *ctx, struct rc_in_flight *fl)
{
	struct rref_future *f = land(ctx, fl, 0);

	if (likely(!f))
		return false;
	at_sub(&ctx->sleep.reads_in_flight, 1);
	return rc_read_ended_well(f);
}

void rc_in_flight_event(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status,
			int wc)
{
	struct rref_future *f;

	rc_assert_locked(ctx);
	f = land(ctx, rc_in_flight_of(cookie), status);
	if (f)
		rc_read_finished(f, status, wc);
	else if (unlikely(status == -EACCES && p))
		at_add(&p->resume.refused, 1);
}

void rc_in_flight_all_fail(struct rref_ctx *ctx, int status)
{
	struct rc_in_flight *fl = at_load_acq(&ctx->value.flights);

	rc_assert_locked(ctx);
	for (; fl; fl = fl->next) {
		struct rref_future *f = NULL;

		/* The thread may be in rc_in_flight_undo, for a READ that was not posted. */
		if (at_load(&fl->state) == RC_FLIGHT_POSTED ||
		    at_load(&fl->state) == RC_FLIGHT_LEFT)
			f = land(ctx, fl, status);
		if (f)
			rc_read_finished(f, status, -1);
	}
}
