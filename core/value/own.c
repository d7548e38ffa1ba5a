/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Own futures: of reads that are over when they are posted. Such an operation is never under way.
 * So nobody has to find it, to end it or to wait for it, and its future needs no slot. A thread
 * takes the future that it gave back last. The thread that frees a future keeps it.
 *
 * A thread keeps a few. The others lie on a stack of their context. A thread without any takes the
 * whole stack by one exchange. So a push needs no tag against ABA. Futures are freed with their
 * context, as slots are.
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/fast.h"
#include "base/thread.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/value/reader.h"

#define CHUNK 16u /* made at once */
#define KEPT 64u /* a thread keeps no more of what it frees */

struct rc_own_chunk {
	struct rc_own_chunk *next;
	struct {
		cache_aligned struct rref_future f;
	} at[CHUNK];
};

/* Puts a list of nr futures on the context's stack. */
static void own_push(struct rref_ctx *ctx, struct rref_future *first, struct rref_future *last,
		     uint32_t nr)
{
	struct rref_future *top = at_load(&ctx->value.own);

	at_add(&ctx->value.own_free, nr);
	do {
		last->own_next = top;
	} while (!at_cas_weak_ar(&ctx->value.own, &top, first)); /* Release. Pairs with own_take */
}

/*
 * Gives the thread's list what is on the context's stack, up to KEPT of them. The rest goes back.
 * Returns false if that is nothing.
 */
static bool own_take(struct rref_ctx *ctx, struct rc_reader *r)
{
	struct rref_future *last = NULL, *f, *rest;
	uint32_t nr = 0, more = 0;

	f = r->own = at_load(&ctx->value.own) ? at_xchg_acq(&ctx->value.own, NULL) : NULL;
	for (; f && nr < KEPT; f = f->own_next, nr++)
		last = f;
	rest = f;
	for (; f; f = f->own_next, more++)
		if (!f->own_next)
			break;
	at_sub(&ctx->value.own_free, nr + more + (f != NULL));
	at_store(&r->nr_own, nr);
	if (unlikely(rest)) {
		last->own_next = NULL;
		own_push(ctx, rest, f, more + 1);
	}
	return nr;
}

/* Makes futures for the thread's list. Returns false if there is no memory, or enough of them. */
static bool own_make(struct rref_ctx *ctx, struct rc_reader *r)
{
	struct rc_own_chunk *c, *top = at_load(&ctx->value.own_chunks);

	if (at_add(&ctx->value.nr_own, CHUNK) + CHUNK > rc_ops_max(ctx) ||
	    !(c = aligned_alloc(CACHE_LINE, sizeof(*c)))) {
		at_sub(&ctx->value.nr_own, CHUNK);
		return false;
	}
	memset(c, 0, sizeof(*c));
	for (uint32_t i = 0; i < CHUNK; i++) {
		rc_op_init(&c->at[i].f, ctx, UINT32_MAX);
		c->at[i].f.own_next = i + 1 < CHUNK ? &c->at[i + 1].f : NULL;
	}
	do {
		c->next = top;
	} while (!at_cas_weak_ar(&ctx->value.own_chunks, &top, c));
	r->own = &c->at[0].f;
	at_store(&r->nr_own, CHUNK);
	return true;
}

struct rref_future *rc_own_more(struct rc_reader *r)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx = r->ctx;

	rb_assert(!r->own && !at_load(&r->nr_own));
	return own_take(ctx, r) || own_make(ctx, r) ? rc_own_get(r) : NULL;
}

void rc_own_put(struct rref_future *f)
{
	struct rc_reader *r = rc_reader_of(f->ctx);

	rb_assert(rc_op_done(f));
	if (RB_FAST(likely(r && at_load(&r->nr_own) < KEPT))) {
		f->own_next = r->own;
		r->own = f;
		at_add_mine(&r->nr_own, 1);
	} else {
		own_push(f->ctx, f, f, 1);
	}
}

void rc_own_give_back(struct rc_reader *r)
{
	struct rref_future *last = r->own;

	if (!last)
		return;
	while (last->own_next)
		last = last->own_next;
	own_push(r->ctx, r->own, last, at_load(&r->nr_own));
}

void rc_own_close(struct rref_ctx *ctx)
{
	struct rc_own_chunk *c = at_load(&ctx->value.own_chunks), *next;

	for (; c; c = next) {
		next = c->next;
		free(c);
	}
}
