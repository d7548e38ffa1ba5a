/* SPDX-License-Identifier: Apache-2.0 */
/* Reads: the names for other rooms. Design: docs/design/reading.md. */
#ifndef RC_READ_READ_H
#define RC_READ_READ_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* again.c */
/*
 * Asks again for a read that takes long. waited: ns. Its end may be in the hand of a thread that
 * stands still. Waits for no lock but the allocator's. Returns false if it cannot ask now.
 */
bool rc_read_late(struct rref_future *f, int64_t waited);

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
/* Does the same. A large read is started by the release of the lock, and copied without it. */
needs_lock void rc_read_start_locked(struct rref_future *f);
needs_lock void rc_read_pump(struct rref_ctx *ctx, struct rc_peer *p);
/* Has all reads of p go on that wait for a turn, a slot or a connection. */
needs_lock void rc_reads_go_on(struct rref_ctx *ctx, struct rc_peer *p);
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

/* look.c */
/* Makes a view where the value lies, if it has at least so many bytes. Returns false if none can be
 * made. */
bool rc_read_look(struct rref *ref, size_t least, struct rref_view **out);

/* fast.c */
/*
 * Reads over a device that copies (shm). Only the device's first fetch (verbs/shm/read.c) and the
 * general ways are cancellation points.
 */
int rc_fast_read_copied(struct rref *ref, int64_t timeout, struct rref_view **out,
			struct rc_peer *p);
/* Reads over a device that reports by events. */
int rc_fast_read_posted(struct rref *ref, int64_t timeout, struct rref_view **out,
			struct rc_peer *p);
/*
 * Reads a batch over a device that copies, up to the first reference that goes the general way.
 * Returns how many have their view or status.
 */
size_t rc_fast_many(struct rref_ctx *ctx, struct rref *const *refs, size_t nr,
		    struct rref_view **views, int *status);
/*
 * Begins a read that is over at once. Returns false for the general way. Otherwise *out is
 * complete.
 */
bool rc_fast_begin(struct rref *ref, struct rref_future **out);
/*
 * Begins a read over a device that reports by events. Its READ is under way then. Returns false for
 * the general way.
 */
bool rc_fast_begin_posted(struct rref *ref, int64_t timeout, struct rref_future **out);

/* take_in.c */
/*
 * Takes in READs that ended well. Any thread calls it, with the lock or without. Returns their
 * number, -EAGAIN if other threads are at it. Sets *due if the holder of the lock has something to
 * do: take a turn, or wake the poller.
 */
int rc_reads_look(struct rref_ctx *ctx, bool *due);

/* in_flight.c */
/* Cookies of operations (rc_op_token) never have the highest bit. */
#define RC_FLIGHT_COOKIE (UINT64_C(1) << 63)
/* Returns whether the cookie is of a flight, or of a probe. */
static inline bool rc_in_flight_is(uint64_t cookie)
{
	return cookie & RC_FLIGHT_COOKIE;
}
needs_lock void rc_in_flight_event(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie,
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
