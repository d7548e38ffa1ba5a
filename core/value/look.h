/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks: views of values that lie in their owner's memory, over a device that maps it (shm).
 * look.c has the reader's side, onlooker.c the owner's. Design: docs/design/reading.md.
 */
#ifndef RC_VALUE_LOOK_H
#define RC_VALUE_LOOK_H

#include "core/base/locked.h"
#include "core/ctx.h"

/*
 * A view where the value lies. It is a landing block without bytes behind it. That has a copy of
 * the header, the type, and in outer the reference that it holds. Its place in the device's table
 * is its index.
 */
struct rc_look {
	struct rc_landing landing;
	struct rv_look look;
	_Atomic uint32_t next; /* free: 1 + index of the next free one; 0: the last */
};

static inline struct rc_look *rc_look_of(struct rref_view *v) /* v->cache_class: RC_VIEW_LOOK */
{
	return (struct rc_look *)(void *)v; /* begins with it */
}

/* Tells whether a value of that location can be looked at where it lies, if its owner allows it. */
static inline bool rc_can_look(const struct rc_peer *p, const struct rp_location *loc)
{
	return p->ops && p->ops->look && loc->nr_segments == 1 && !loc->nr_refs && loc->nonce &&
	       loc->length && loc->length <= RC_VALUE_MAX && !rp_is_wrapped(loc);
}

/* look.c */
void rc_looks_open(struct rref_ctx *ctx, const struct rref_options *opt);
void rc_looks_close(struct rref_ctx *ctx);
void rc_looks_leave(struct rref_ctx *ctx); /* tells all owners that no look begins any more */
struct rv_mark rc_look_mark(const struct rref *ref); /* a user's: names it to its owner */
/* Lists the references that views hold, once for each view and in the order of their addresses.
 * *out is the caller's to free. Without memory there are none. */
size_t rc_looks_held(struct rref_ctx *ctx, const struct rref ***out);
/* Returns the bytes from which on values are looked at, unless a read says otherwise. */
static inline size_t rc_look_bytes(const struct rref_ctx *ctx)
{
	return ctx->value.look_bytes;
}
/* Takes a view that looks at nothing yet. Returns NULL if all are in use. Lock-free. */
struct rc_look *rc_look_take(struct rref_ctx *ctx, uint32_t *place);
void rc_look_put(struct rref_ctx *ctx, struct rc_look *l); /* gives it back: it looks at nothing */
struct rref *rc_look_end(struct rref_view *v); /* ends the look; returns the view's hold */

/* onlooker.c */
/* Lets the peer look at values here, if its process can be watched. Its connection has just been
 * allowed to read. */
needs_lock void rc_onlooker_begin(struct rref_ctx *ctx, struct rc_peer *p);
/* Keeps the values at which the peer still looks. Called when the device serves it no more, and
 * before the machine forgets its references. False: the lock is to be let go of, and places are
 * left. */
needs_lock bool rc_onlooker_over(struct rref_ctx *ctx, struct rc_peer *p);
/* Keeps them when the peer leaves, before a reference that it gives back is forgotten. */
needs_lock void rc_onlooker_gives_back(struct rref_ctx *ctx, struct rc_peer *p);
static inline needs_lock void rc_onlooker_message(struct rref_ctx *ctx, struct rc_peer *from,
						  enum rp_msg_type type)
{
	if (unlikely(from->onlooker) && type == RP_MSG_DELETE)
		rc_onlooker_gives_back(ctx, from);
}
/* Frees values at which their onlookers look no more. */
needs_lock void rc_onlookers_tick(struct rref_ctx *ctx, int64_t now);
/* Returns when the tick has something to do. INT64_MAX: never. */
needs_lock int64_t rc_onlookers_due(struct rref_ctx *ctx);
/* Calls fn for each worker whose views are waited for: values that are kept for it, and bytes. */
needs_lock void rc_onlookers_visit(struct rref_ctx *ctx,
				   void (*fn)(void *arg, uint32_t rank, uint32_t epoch,
					      uint32_t values, uint64_t bytes),
				   void *arg);
#endif
