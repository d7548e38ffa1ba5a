/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The READ of a quick read (quick.c) over a device that reports by events (ibv), while it is on its way. Its thread polls for
 * it; whoever gets the lock finds the completion and says so in the flight, which is all that the two share. So it needs no
 * operation slot, no future, and no counter that other threads write.
 *
 * That is for as long as a thread spins, longer than a READ on any sane fabric. A READ that takes longer is handed over to
 * an operation of the usual kind, which can sleep, time out, and leave its landing buffer in quarantine until the device is
 * done with it.
 *
 * Flights are never freed before their context, so that a completion always finds one. Each POSTED one is ended once, by its
 * completion or by the shutdown.
 */
#include <errno.h>
#include <stdlib.h>

#include "rc.h"

enum { FREE, MINE, POSTED, LANDED };

struct rc_flight {
	cache_aligned _Atomic uint32_t state; /* of a thread from MINE on; POSTED: [lock] ends it, so LANDED publishes status */
	int status;
	struct rref_future *f;       /* [lock] whose READ it is meanwhile; NULL: its thread's */
	struct rc_flight *next;      /* [lock] ctx->flights */
};

/* Cookies of operations (rc_op_token) never have the highest bit. */
#define COOKIE (UINT64_C(1) << 63)

/* A turn of the engine counts for more than finding somebody else at it. In all some 4 us if it is always somebody else. */
#define PATIENCE 256u
#define TURN 16u
#define LOOKS 4u /* before these, at READs only */

struct rc_flight *rc_flight_get(struct rref_ctx *ctx)
{
	struct rc_flight *fl;

	rc_lock(ctx);
	for (fl = ctx->flights; fl; fl = fl->next) {
		uint32_t none = FREE;

		/* Acquire: partner of rc_flight_put. */
		if (at_load(&fl->state) == FREE && at_cas_ar(&fl->state, &none, MINE))
			break;
	}
	if (!fl && (fl = aligned_alloc(CACHE_LINE, sizeof(*fl)))) {
		memset(fl, 0, sizeof(*fl));
		at_store(&fl->state, MINE);
		fl->next = ctx->flights;
		ctx->flights = fl;
	}
	rc_unlock(ctx);
	return fl;
}

void rc_flight_put(struct rc_flight *fl)
{
	if (fl)
		at_store_rel(&fl->state, FREE);
}

bool rc_flight_begin(struct rc_flight *fl, uint64_t *cookie)
{
	/* In a callback or handler that ran while this thread waited for it. */
	if (unlikely(at_load(&fl->state) != MINE))
		return false;
	at_store(&fl->state, POSTED);
	*cookie = COOKIE | (uintptr_t)fl;
	return true;
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

bool rc_flight_hand_over(struct rc_flight *fl, struct rref_future *f, int *status)
{
	if (landed(fl, status))
		return false;
	fl->f = f;
	at_add(&f->ctx->reads_in_flight, 1);
	return true;
}

static void land(struct rref_ctx *ctx, struct rc_flight *fl, int status, int wc)
{
	struct rref_future *f = fl->f;

	if (at_load(&fl->state) != POSTED) {
		at_add(&ctx->n.dropped, 1);
		return;
	}
	fl->status = status;
	if (likely(!f)) {
		at_store_rel(&fl->state, LANDED);
		return;
	}
	fl->f = NULL;
	rc_flight_put(fl);
	rc_read_ended(f, status, wc);
}

bool rc_flight_event(struct rref_ctx *ctx, uint64_t cookie, int status, int wc)
{
	if (!(cookie & COOKIE))
		return false;
	land(ctx, (struct rc_flight *)(uintptr_t)(cookie & ~COOKIE), status, wc);
	return true;
}

void rc_flights_fail(struct rref_ctx *ctx, int status)
{
	for (struct rc_flight *fl = ctx->flights; fl; fl = fl->next)
		if (at_load(&fl->state) == POSTED)
			land(ctx, fl, status, -1);
}

void rc_flights_close(struct rref_ctx *ctx)
{
	while (ctx->flights) {
		struct rc_flight *fl = ctx->flights;

		ctx->flights = fl->next;
		free(fl);
	}
}
