/* SPDX-License-Identifier: Apache-2.0 */
/* Reads: the names for other rooms. Design: docs/design/reading.md. */
#ifndef RC_READ_READ_H
#define RC_READ_READ_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* kind.c */
extern const struct rc_op_kind rc_read_kind;
needs_lock void rc_read_end(struct rref_ctx *ctx, struct rref_future *f, int status,
			    const char *text);
void rc_read_release(struct rref_future *f);

/* read.c */
/*
 * Starts a read whose handle and location are set. Consumes the engine's hold on f, which
 * rc_read_done gives back.
 */
without_lock void rc_read_start(struct rref_future *f);
needs_lock void rc_read_start_locked(struct rref_future *f); /* does the same */
needs_lock void rc_read_pump(struct rref_ctx *ctx, struct rc_peer *p);
/* Fails the read at once, or when its last piece has come back. */
needs_lock void rc_read_fail(struct rref_future *f, int status);
needs_lock void rc_read_event(struct rref_ctx *ctx, uint64_t cookie, int status, int wc);
/* Goes on with a payload's READ. Lets go of the lock meanwhile. */
needs_lock void rc_read_turn(struct rref_future *f);

/* to_here.c */
/* Waits for value or location. */
needs_lock void rc_wait_begin(struct rref *ref, struct rref_future *f, int64_t deadline);

/* split.c */
needs_lock void rc_split_stop(struct rc_peer *p);   /* its connection ends */

/* fast.c */
int rc_fast_read(struct rref *ref, int64_t timeout, struct rref_view **out);

/* in_flight.c */
/* Returns false if the cookie is not of a flight. */
needs_lock bool rc_in_flight_event(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie,
				   int status, int wc);
/* Fails all flights. No device touches their landing places any more. */
needs_lock void rc_in_flight_all_fail(struct rref_ctx *ctx, int status);

/*
 * Returns whether the READ's connection broke under it. Such a status says nothing about the READ
 * itself.
 */
static inline bool rc_read_lost(int status)
{
	return status == -ECONNRESET || status == -ETIMEDOUT || status == -ENOTCONN ||
	       status == -EIO;
}

#endif
