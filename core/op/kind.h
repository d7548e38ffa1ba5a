/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kinds of operations. op/ has the part that all operations share. A kind is the rest, and belongs
 * to the room that begins such operations. A future has its kind from rc_op_get on.
 */
#ifndef RC_OP_KIND_H
#define RC_OP_KIND_H

#include "core/ctx.h"

/* All functions but release, keep and late are called under the lock. */
struct rc_op_kind {
	const char *name;    /* in dumps */
	bool calls;          /* somebody works on it: a barrier tells that this worker is busy */
	bool reads;          /* READs bring it */
	bool ends_with_peer; /* the end of its peer ends it, unless it is parked */

	/* Ends it from outside: time-out, cancel, dead peer, shutdown. Drops the engine's hold
	 * too, unless something still finds the operation: an operation in flight cannot be
	 * recalled. */
	void (*end)(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text);
	/* Gives back what the operation brought and held. NULL: nothing. */
	void (*release)(struct rref_future *f);
	/* Takes back a future that nobody holds any more. Called without the lock. NULL: it has a
	 * slot. Otherwise it was complete from the beginning, and only its holders know it. */
	void (*keep)(struct rref_future *f);
	/* Writes what has timed out. NULL: "timed out". */
	void (*expired)(const struct rref_future *f, char *text, size_t size);
	/* Returns text with news of the worker that was waited for. buf: RREF_TEXT_SIZE bytes. */
	const char *(*why_late)(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf,
				size_t size);

	/* Continues an operation that may be parked. here: its value is here, and f is claimed.
	 * located: its location is known. */
	void (*here)(struct rref_future *f, struct rc_value *v);
	void (*located)(struct rref_ctx *ctx, struct rref_future *f,
			const struct rp_location *loc);
	/* Continues an operation that READs bring. over: the last READ is over. resume: there is
	 * a slot, and it may go on. NULL: nothing. */
	void (*over)(struct rref_future *f);
	void (*resume)(struct rref_future *f);
	/*
	 * Says that a thread has waited for f for so long, in ns. Called again and again, with
	 * pauses that grow. Returns false if something is in the way now, for shorter pauses.
	 * NULL: nothing can be done.
	 */
	bool (*late)(struct rref_future *f, int64_t waited);
};

/* Says that the operation is under way: scans of the slab find it. Pairs with pin_pending. */
static inline void rc_op_begin(struct rref_future *f)
{
	at_store_rel(&f->kind, f->is);
}

/* Fails the operation, and gives back the engine's hold. */
needs_lock void rc_op_end_plain(struct rref_ctx *ctx, struct rref_future *f, int status,
				const char *text);
/*
 * Takes a failed operation out of the machine, and with it the engine's hold. Returns false if it
 * is not parked.
 */
needs_lock bool rc_op_unpark(struct rref_ctx *ctx, struct rref_future *f);

#endif
