/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reader: what a thread keeps to itself for its reads in one context. These are the landing
 * blocks that it gave back last, its counters, and the mark that pins a connection.
 */
#ifndef RC_VALUE_READER_H
#define RC_VALUE_READER_H

#include "core/ctx.h"

struct rc_reader {
	/* sc: the fence stores conn = NULL and waits until nobody has the peer here */
	cache_aligned _Atomic(struct rc_peer *) pinned;
	/* [const] of its context, which may be gone and its address another's */
	uint64_t serial;
	struct rref_ctx *ctx;             /* guarded by reader.c's lock; NULL: closed */
	struct rv_read read;              /* its constant parts, and what the last read filled in */
	struct rc_in_flight *flight;         /* not over shm; NULL: none yet */
	uint32_t fork_generation;
	/* Written by its thread only; others look, to count. */
	_Atomic(struct rc_landing *) spare[RC_CACHE_CLASSES];
	_Atomic uint64_t reads, read_bytes;
	struct rc_reader *next;           /* guarded by the same: of its context */
	struct rc_reader *thread_next;    /* of its thread */
};

/* The READ of a fast read over a device that reports by events. See read/in_flight.c. */
enum rc_in_flight_state { RC_FLIGHT_FREE, RC_FLIGHT_MINE, RC_FLIGHT_POSTED, RC_FLIGHT_LANDED };

struct rc_in_flight {
	/* of a thread from RC_FLIGHT_MINE on; RC_FLIGHT_LANDED publishes status */
	cache_aligned _Atomic uint32_t state;
	int status;
	struct rref_future *f;       /* under the lock; it was handed over: whose READ it is */
	/* under the lock; it was given up: where the device may still write */
	struct rc_landing *landing;
	struct rc_in_flight *next;      /* under the lock; ctx->read.flights */
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
