/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reader: a thread's own things for its reads in one context. These are the landing blocks that
 * it gave back last, its counters, and the mark that pins a connection.
 */
#ifndef RC_VALUE_READER_H
#define RC_VALUE_READER_H

#include "core/ctx.h"

struct rc_reader {
	/* sc: the fence stores conn = NULL and waits until nobody has the peer here */
	cache_aligned _Atomic(struct rc_peer *) pinned;
	/* [const] serial of its context, which may be gone and its address another's */
	uint64_t serial;
	struct rref_ctx *ctx;             /* guarded by reader.c's lock; NULL: closed */
	/* constant parts, and the parts that the last read filled in */
	struct rv_read read;
	struct rc_in_flight *flight;         /* flight, not over shm; NULL: not made yet */
	uint32_t fork_generation;
	/* Written by its thread only; others look, to count. */
	_Atomic(struct rc_landing *) spare[RC_CACHE_CLASSES];
	_Atomic uint64_t reads, read_bytes;
	struct rc_reader *next;           /* guarded by the same; next of its context */
	struct rc_reader *thread_next;    /* next of its thread */
};

/* The READ of a fast read over a device that reports by events. See read/in_flight.c. */
enum rc_in_flight_state { RC_FLIGHT_FREE, RC_FLIGHT_MINE, RC_FLIGHT_POSTED, RC_FLIGHT_LANDED };

struct rc_in_flight {
	/* a thread has it from RC_FLIGHT_MINE on; RC_FLIGHT_LANDED publishes status */
	cache_aligned _Atomic uint32_t state;
	int status;
	/* under the lock; future whose READ it is, once it was handed over */
	struct rref_future *f;
	/* under the lock; block where the device may still write, once it was given up */
	struct rc_landing *landing;
	struct rc_in_flight *next;      /* under the lock; ctx->value.flights */
};

/* The calling thread's readers, one of each context. */
extern __attribute__((tls_model("initial-exec"))) _Thread_local struct rc_reader *rc_my_readers;

static inline struct rc_reader *rc_reader_of(const struct rref_ctx *ctx)
{
	struct rc_reader *r = rc_my_readers;

	while (r && unlikely(r->serial != ctx->serial))
		r = r->thread_next;
	return r;
}

/* Makes the calling thread's reader of ctx. Returns NULL if there is no memory. */
struct rc_reader *rc_reader_new(struct rref_ctx *ctx);
void rc_fast_spares_put(struct rref_ctx *ctx);

needs_lock struct rc_in_flight *rc_in_flight_take(struct rref_ctx *ctx); /* NULL: no memory */
void rc_in_flight_put(struct rc_in_flight *fl);               /* NULL is accepted */

#endif
