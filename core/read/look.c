/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks: reads that bring nothing here. The view is of the value where it lies, in memory of its
 * owner that this process has mapped (shm). It costs a pin, a mark and a look at the header, the
 * same for all sizes.
 *
 * The view holds its reference, so the owner keeps the value while the session stands. Behind the
 * session's end the mark keeps it (value/onlooker.c). Any case out of the ordinary is left to the
 * general read, which copies or finds the words. There may be no connection, no leave to look, or
 * no free place in the table. Or the value is gone.
 */
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"
#include "core/value/value.h"

/* Makes the look, under the thread's mark: see post_marked in fast.c. */
static bool look_marked(const struct rref *ref, struct rc_peer *p, struct rc_reader *r,
			struct rc_look *l, uint32_t place)
{
	const struct rp_location *loc = &rc_remote(ref)->loc;
	struct rv_want want = { .addr = loc->addr,
				.length = RC_HEADER_BYTES + loc->length,
				.rkey = loc->rkey[p->kind],
				.place = place,
				.mark = rc_look_mark(ref) };
	struct rv_conn *conn = rc_pin(r, p);
	bool made = false;

	/* The reference may have ended with its session: looked at behind the pin. */
	if (likely(conn != NULL) && likely(at_load_acq(&ref->state) == RC_H_READY))
		made = !p->ops->look->look(conn, &want, &l->look);
	rc_unpin(r);
	return made;
}

/* Copies the header and checks it, so that nothing is fetched twice. */
static bool header_is_good(const struct rref *ref, struct rc_look *l)
{
	const struct rp_location *loc = &rc_remote(ref)->loc;

	memcpy(&l->landing.header, l->look.at, RC_HEADER_BYTES);
	return rc_read_fits(&l->landing.header, ref, loc, loc->length, loc->type_hash);
}

/* Tells whether this is the value, and of its type, and this worker is not about to leave. */
static bool look_is_good(const struct rref *ref, struct rc_look *l)
{
	const struct rp_location *loc = &rc_remote(ref)->loc;

	/* The owner says where it lies; views are aligned. */
	if (unlikely((uintptr_t)l->look.at & (CACHE_LINE - 1)))
		return false;
	/* sc. Pairs with end_handles: it stores the state, then gives back. The mark is there. */
	return at_load_sc(&ref->ctx->state) == RC_CTX_RUNNING && header_is_good(ref, l) &&
	       rc_shape_check((const char *)l->look.at + RC_HEADER_BYTES, loc->length, 1,
			      rc_type_find(ref->ctx, loc->type_hash));
}

/* Looks, with a view that is at hand. Returns false if it is not to be. */
static bool look_with(struct rref *ref, struct rc_reader *r, struct rc_look *l, uint32_t place)
{
	struct rref_ctx *ctx = ref->ctx;
	struct rc_peer *p = &ctx->peers[ref->owner];

	if (!look_marked(ref, p, r, l, place))
		return false;
	if (likely(look_is_good(ref, l)))
		return true;
	p->ops->look->look_away(p->dev, place, &l->look);
	return false;
}

bool rc_read_look(struct rref *ref, size_t least, struct rref_view **out)
{
	struct rref_ctx *ctx = ref->ctx;
	struct rc_reader *r = rc_reader_of(ctx);
	struct rc_look *l;
	uint32_t place;

	if (ref->owned || at_load_acq(&ref->state) != RC_H_READY ||
	    rc_remote(ref)->loc.length < least ||
	    !rc_can_look(&ctx->peers[ref->owner], &rc_remote(ref)->loc))
		return false;
	if ((!r && !(r = rc_reader_new(ctx))) || !(l = rc_look_take(ctx, &place)))
		return false;
	if (!look_with(ref, r, l, place)) {
		rc_look_put(ctx, l);
		return false;
	}
	l->landing.view = (struct rref_view){ .ctx = ctx,
					      .data = (const char *)l->look.at + RC_HEADER_BYTES,
					      .length = rc_remote(ref)->loc.length,
					      .nr_segments = 1,
					      .cache_class = RC_VIEW_LOOK };
	l->landing.type_hash = rc_remote(ref)->loc.type_hash;
	/* Pairs with rc_looks_held. */
	__atomic_store_n(&l->landing.outer, rref_dup(ref), __ATOMIC_RELAXED);
	at_add_mine(&r->looks, 1);
	*out = &l->landing.view;
	return true;
}
