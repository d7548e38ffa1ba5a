/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The READ of a quick read (read/fast.c) over a device that reports by events (ibv), while it is on its way. Its thread polls for
 * it; whoever gets the lock finds the completion and says so in the flight, which is all that the two share. So it needs no
 * operation slot, no future, and no counter that other threads write.
 *
 * That is for as long as a thread spins, longer than a READ on any sane fabric. A READ that takes longer is handed over to
 * an operation of the usual kind, which can sleep, time out, and leave its landing buffer in quarantine until the device is
 * done with it. If there is no slot for one, the flight itself keeps the buffer when the time is over.
 *
 * A flight is of one thread at a time, and out of its reader's hands while a READ is under way: callbacks and handlers that run
 * on the thread meanwhile take another for theirs. Flights are never freed before their context, so that a completion always
 * finds its own. Each POSTED one is ended once, by its completion or by the shutdown.
 */
#include <stdlib.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/read/internal.h"
#include "core/read/read.h"

enum { FREE, MINE, POSTED, LANDED };

struct rc_flight {
	cache_aligned _Atomic uint32_t state; /* of a thread from MINE on; LANDED publishes status */
	int status;
	struct rref_future *f;	/* under the lock; it was handed over: whose READ it is */
	struct rc_landing *landing;	/* under the lock; it was given up: where the device may still write */
	struct rc_flight *next;	/* under the lock; ctx->flights */
};

/* Cookies of operations (rc_op_token) never have the highest bit. */
#define COOKIE (UINT64_C(1) << 63)

/* A turn of the engine counts for more than finding somebody else at it. In all some 4 us if it is always somebody else. */
#define PATIENCE 256u
#define TURN 16u
#define LOOKS 4u /* before these, at READs only */

static needs_lock struct rc_flight *get(struct rref_ctx *ctx)
{
	struct rc_flight *fl;

	for (fl = ctx->flights; fl; fl = fl->next) {
		uint32_t none = FREE;

		/* Acquire: partner of rc_flight_put. */
		if (at_load(&fl->state) == FREE && at_cas_ar(&fl->state, &none, MINE))
			return fl;
	}
	fl = aligned_alloc(CACHE_LINE, sizeof(*fl));
	if (!fl)
		return NULL;
	memset(fl, 0, sizeof(*fl));
	at_store(&fl->state, MINE);
	fl->next = ctx->flights;
	ctx->flights = fl;
	return fl;
}

struct rc_flight *rc_flight_get(struct rref_ctx *ctx)
{
	struct rc_flight *fl;

	rc_lock(ctx);
	fl = get(ctx);
	rc_unlock(ctx);
	return fl;
}

void rc_flight_put(struct rc_flight *fl)
{
	if (fl)
		at_store_rel(&fl->state, FREE);
}

uint64_t rc_flight_begin(struct rc_flight *fl)
{
	at_store(&fl->state, POSTED); /* before the post, which publishes it to whoever polls */
	return COOKIE | (uintptr_t)fl;
}

void rc_flight_undo(struct rc_flight *fl)
{
	at_store(&fl->state, MINE);
}

static inline bool landed(struct rc_flight *fl, int *status)
{
	if (at_load_acq(&fl->state) != LANDED)
		return false;
	*status = fl->status;
	at_store(&fl->state, MINE);
	return true;
}

bool rc_flight_wait(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_flight *fl, int *status)
{
	/* Where there is no poller, a program that only reads is the one that serves its peers. */
	for (unsigned i = at_load(&ctx->has_poller) ? 0 : LOOKS; i < LOOKS && rc_trylock(ctx); i++) {
		rc_progress_reads(ctx, p);
		rc_unlock(ctx);
		if (landed(fl, status))
			return true;
	}
	for (unsigned spent = 0; spent < PATIENCE; spent += rc_make_progress(ctx, false) < 0 ? 1 : TURN)
		if (landed(fl, status))
			return true;
	return landed(fl, status);
}

bool rc_flight_leave(struct rref_ctx *ctx, struct rc_flight **fl, struct rref_future *f, struct rc_landing *v, int *status)
{
	if (landed(*fl, status))
		return false;
	(*fl)->f = f;
	(*fl)->landing = f ? NULL : v;
	at_add(&ctx->reads_in_flight, 1);
	at_add(&ctx->n.quarantined, !f);
	*fl = get(ctx);
	return true;
}

/* One that its thread left. */
static needs_lock void land_without(struct rref_ctx *ctx, struct rc_flight *fl, int status, int wc)
{
	struct rref_future *f = fl->f;
	struct rc_landing *v = fl->landing;

	fl->f = NULL;
	fl->landing = NULL;
	rc_flight_put(fl);
	if (f) {
		rc_read_ended(f, status, wc);
		return;
	}
	at_sub(&ctx->reads_in_flight, 1);
	at_sub(&ctx->n.quarantined, 1);
	rc_landing_put(v);
}

bool rc_flight_event(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status, int wc)
{
	struct rc_flight *fl = (struct rc_flight *)(uintptr_t)(cookie & ~COOKIE);

	if (!(cookie & COOKIE))
		return false;
	if (unlikely(at_load(&fl->state) != POSTED)) {
		at_add(&ctx->n.dropped, 1); /* the shutdown ended it */
	} else if (unlikely(fl->f || fl->landing)) {
		land_without(ctx, fl, status, wc);
	} else {
		if (unlikely(status == -EACCES && p))
			at_add(&p->resume.refused, 1);
		fl->status = status;
		at_store_rel(&fl->state, LANDED);
	}
	return true;
}

void rc_flights_fail(struct rref_ctx *ctx, int status)
{
	for (struct rc_flight *fl = ctx->flights; fl; fl = fl->next) {
		uint32_t posted = POSTED;

		if (at_load(&fl->state) != POSTED)
			continue;
		if (fl->f || fl->landing) {
			land_without(ctx, fl, status, -1);
			continue;
		}
		fl->status = status;
		at_cas_ar(&fl->state, &posted, LANDED); /* or it was not posted after all: rc_flight_undo */
	}
}

is_alone void rc_flights_close(struct rref_ctx *ctx)
{
	while (ctx->flights) {
		struct rc_flight *fl = ctx->flights;

		ctx->flights = fl->next;
		free(fl);
	}
}
