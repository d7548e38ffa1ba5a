/* SPDX-License-Identifier: Apache-2.0 */
/* The inline part of take_in.c: a look at one device, and the end of the READ that it finds. */
#ifndef RC_READ_TAKE_IN_H
#define RC_READ_TAKE_IN_H

#include "core/base/kick.h"
#include "core/base/wait.h"
#include "core/read/internal.h"
#include "core/session/session.h"

/* Ends that a thread takes at once. They wait for that thread, so they are few. */
#define RC_ENDS 8u

/* Returns whether reads of p wait for what an end gives back, and has them go on. */
static inline bool rc_take_go_on(struct rref_ctx *ctx, struct rc_peer *p)
{
	/* sc, after the end. Pairs with the reads, which say that they wait and look again. */
	if (likely(!at_load_sc(&p->nr_waiting) && !at_load_sc(&p->pieces.nr_reads)))
		return false;
	rc_peer_later(ctx, p, RC_LATER_READS);
	return true;
}

/* Ends a READ of a heartbeat. */
void rc_take_probe(struct rref_ctx *ctx, struct rc_peer *p);

/* Ends a READ. Returns whether the holder of the lock has something to do. */
static inline bool rc_take_end(struct rref_ctx *ctx, const struct rv_read_end *end)
{
	struct rc_peer *p = end->user;
	bool due = false;

	if (unlikely(end->cookie == RC_PROBE_COOKIE)) {
		rc_take_probe(ctx, p);
		return true;
	}
	if (!rc_in_flight_is(end->cookie))
		due = rc_read_came(ctx, end->cookie);
	else if (unlikely(!rc_in_flight_land(rc_in_flight_of(end->cookie), 0)))
		due = rc_in_flight_ended_well(ctx, rc_in_flight_of(end->cookie));
	return rc_take_go_on(ctx, p) || due;
}

/* Ends some READs. Returns as rc_take_end. */
bool rc_take_ends(struct rref_ctx *ctx, const struct rv_read_end *end, int nr);

/* Looks at one device, which reports by events. Returns as rc_reads_look. */
static inline int rc_take_from(struct rref_ctx *ctx, const struct rc_device *d, bool *due)
{
	struct rv_read_end end[RC_ENDS];
	int got = d->ops->reads(d->dev, end, RC_ENDS, due);

	if (likely(got == 1))
		*due |= rc_take_end(ctx, end);
	else if (got > 1)
		*due |= rc_take_ends(ctx, end, got);
	return got;
}

/* Takes in READs that ended well. Takes a turn of the engine if that found other work. */
static inline void rc_take_in(struct rref_ctx *ctx, const struct rc_device *d)
{
	bool due = false;

	rc_take_from(ctx, d, &due);
	if (unlikely(due))
		rc_make_progress(ctx, false);
}

/* Returns the status of a READ that landed, 1 if it has not. */
static inline int rc_in_flight_result(struct rc_in_flight *fl)
{
	if (at_load_acq(&fl->state) != RC_FLIGHT_LANDED)
		return 1;
	at_store(&fl->state, RC_FLIGHT_MINE);
	return at_load(&fl->status);
}

/* Does the rest of rc_in_flight_wait. */
int rc_in_flight_wait_on(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_in_flight *fl);

/*
 * Returns the READ's status if it is over: 0 or -errno. Returns 1 if it takes long. Callbacks may
 * run meanwhile.
 */
static inline int rc_in_flight_wait(struct rref_ctx *ctx, const struct rc_peer *p,
				    struct rc_in_flight *fl)
{
	int status = 1;

	if (likely(rc_has_poller(ctx))) {
		rc_take_in(ctx, p->device);
		status = rc_in_flight_result(fl);
	}
	return unlikely(status > 0) ? rc_in_flight_wait_on(ctx, p, fl) : status;
}

#endif
