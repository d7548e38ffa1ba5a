/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reader: a thread's own things for its reads in one context. These are landing blocks and
 * futures that it gave back, its counters, and the mark that pins a connection.
 */
#ifndef RC_VALUE_READER_H
#define RC_VALUE_READER_H

#include "alloc/ra_asym.h"
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
	/* reads without a doorbell of their own */
	_Atomic uint64_t beyond;
	/* bytes of blocks that it took, less the bytes that it gave back; wraps below 0 */
	_Atomic uint64_t landing_bytes;
	_Atomic uint64_t kept_bytes; /* bytes of the blocks in kept */
	_Atomic uint32_t nr_own; /* futures in own */
	/* The rest is the thread's alone. Blocks given back while there was a spare, linked by
	 * next; futures, linked by own_next (own.c); a landing place (into.c). */
	struct rc_landing *kept[RC_CACHE_CLASSES];
	struct rref_future *own;
	struct rc_header header;
	struct rc_reader *next;           /* guarded by the same; next of its context */
	struct rc_reader *thread_next;    /* next of its thread */
	_Atomic uint64_t looks; /* as reads */
};

/* The READ of a fast read over a device that reports by events. See read/in_flight.c. */
enum rc_in_flight_state {
	RC_FLIGHT_FREE,
	RC_FLIGHT_MINE,   /* a thread has it from here on */
	RC_FLIGHT_POSTED,
	RC_FLIGHT_LANDED, /* publishes status */
	RC_FLIGHT_LEFT,   /* publishes f or landing; the READ's end gives it back */
};

struct rc_in_flight {
	cache_aligned _Atomic uint32_t state;
	_Atomic int status;
	struct rref_future *f; /* LEFT: future whose READ it is, or NULL */
	struct rc_landing *landing; /* LEFT: block where the device may still write, or NULL */
	struct rc_in_flight *next; /* [const] next of ctx->value.flights */
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
/* Returns the calling thread's reader of ctx, NULL if there is none and no memory. */
static inline struct rc_reader *rc_reader_get(struct rref_ctx *ctx)
{
	struct rc_reader *r = rc_reader_of(ctx);

	return likely(r != NULL) ? r : rc_reader_new(ctx);
}

/*
 * Pins p's connection, and returns it. The mark pairs with the fence: it stores conn = NULL and
 * then looks here. So this store has to be seen before conn is loaded. The fence makes that order,
 * because it is rare.
 */
static inline struct rv_conn *rc_pin(struct rc_reader *r, struct rc_peer *p)
{
	ra_asym_mark(&r->pinned, p);
	return at_load_sc(&p->conn);
}

static inline void rc_unpin(struct rc_reader *r)
{
	at_store_rel(&r->pinned, NULL);
}

/*
 * Does the same for a thread that may have no reader. Such a thread counts in p->readers. Pairs
 * with the fence: it stores conn = NULL, then waits until readers is 0 (both sc). Then it waits for
 * the marks.
 */
static inline struct rv_conn *rc_read_pin(struct rc_reader *r, struct rc_peer *p)
{
	if (likely(r != NULL))
		return rc_pin(r, p);
	at_add_sc(&p->readers, 1);
	return at_load_sc(&p->conn);
}

static inline void rc_read_unpin(struct rc_reader *r, struct rc_peer *p)
{
	if (likely(r != NULL))
		rc_unpin(r);
	else
		at_sub_rel(&p->readers, 1);
}

/* Counts READs that were posted with one doorbell. */
static inline void rc_reader_count(struct rc_reader *r, int posted)
{
	if (posted <= 0)
		return;
	at_add_mine(&r->reads, (unsigned)posted);
	at_add_mine(&r->beyond, (unsigned)posted - 1);
}

/* Takes a block that the calling thread keeps behind its spare. Returns NULL if there is none. */
struct rc_landing *rc_kept_take(struct rc_reader *r, unsigned size_class);
void rc_fast_spares_put(struct rref_ctx *ctx);

/* own.c */
/* Makes or finds futures. Returns one of them, NULL if there is no memory or max_ops are alive. */
struct rref_future *rc_own_more(struct rc_reader *r);
/* Takes a future of the calling thread's own, which is complete and nobody else's. */
static inline struct rref_future *rc_own_get(struct rc_reader *r)
{
	struct rref_future *f = r->own;

	if (unlikely(!f))
		return rc_own_more(r);
	r->own = f->own_next;
	at_add_mine(&r->nr_own, -1);
	return f;
}
/* Gives a future to the calling thread, for its next read. */
void rc_own_put(struct rref_future *f);
/* Gives the futures of a reader back to its context. */
void rc_own_give_back(struct rc_reader *r);
/* Frees the futures, also those that the program has. */
void rc_own_close(struct rref_ctx *ctx);

struct rc_in_flight *rc_in_flight_take(struct rref_ctx *ctx); /* NULL: no memory */
void rc_in_flight_put(struct rc_in_flight *fl);               /* NULL is accepted */

#endif
