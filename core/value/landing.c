/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landing blocks and views.
 *
 * Blocks of up to 256 KiB are cached in arrays of slots. One exchange empties a slot, and one fills
 * it: wait-free, no ABA. A block goes back to the arena only when its class is full.
 */
#include <errno.h>

#include "base/fast.h"
#include "core/ctx.h"
#include "core/value/internal.h"
#include "core/value/reader.h"
#include "core/value/value.h"

static unsigned start_slot(void)
{
	static _Atomic unsigned threads;
	/* 0 = not chosen; threads start at different slots, so that they rarely meet */
	static _Thread_local unsigned mine;

	if (unlikely(!mine))
		mine = at_add(&threads, 5) + 1;
	return mine;
}

/*
 * Beyond the classes a thread finds the block that it gave back last, if that is of about the size.
 * An arena's large blocks cost some 3,000 instructions to get and give back. That is a twentieth of
 * the cost of copying 256 KiB.
 */
#define LARGE_MAX ((UINT64_C(2) << 20) + 4096) /* block */

static struct rc_landing *take_large(struct rref_ctx *ctx, size_t block)
{
	_Atomic(struct rc_landing *) *slot = &ctx->value.large[start_slot() % RC_LARGE_SLOTS];
	/* Pairs with leave_large */
	struct rc_landing *l = at_load(slot) ? at_xchg_acq(slot, NULL) : NULL;

	if (!l || (l->block >= block && l->block - block <= block / 4))
		return l;
	ra_free(ctx->value.landing, l, l->block);
	return NULL;
}

static void leave_large(struct rref_ctx *ctx, struct rc_landing *l)
{
	if (RB_FAST(l->block <= LARGE_MAX))
		l = at_xchg_ar(&ctx->value.large[start_slot() % RC_LARGE_SLOTS], l);
	if (l)
		ra_free(ctx->value.landing, l, l->block);
}

static void drain(struct rref_ctx *ctx, _Atomic(struct rc_landing *) *slots, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		struct rc_landing *l = at_xchg_acq(&slots[i], NULL);

		if (l)
			ra_free(ctx->value.landing, l, l->block);
	}
}

void rc_landing_drain(struct rref_ctx *ctx)
{
	drain(ctx, ctx->value.large, RC_LARGE_SLOTS);
	for (int c = 0; c < RC_CACHE_CLASSES; c++)
		drain(ctx, ctx->value.cache[c], RC_CACHE_SLOTS);
}

int rc_landing_get(struct rref_ctx *ctx, size_t length, struct rc_landing **out)
{
	/* Whole lines, as the arena gives them. The padding of a value that was read with others
	 * lands in the last line. */
	size_t block = (sizeof(struct rc_landing) + length + CACHE_LINE - 1) &
		       ~(size_t)(CACHE_LINE - 1);
	int size_class = rc_landing_class(length);
	struct rc_landing *l;
	void *mem, *base;

	if (size_class >= 0) {
		unsigned s = start_slot();

		for (unsigned i = 0; i < RC_CACHE_SLOTS; i++) {
			_Atomic(struct rc_landing *) *slot =
				&ctx->value.cache[size_class][(s + i) % RC_CACHE_SLOTS];

			/* Acquire. Pairs with rc_landing_put, which releases: the last user's
			 * reads are over. */
			if (at_load(slot) && (l = at_xchg_acq(slot, NULL)))
				goto found;
		}
		block = RC_LANDING_BLOCK(size_class);
	} else if ((l = take_large(ctx, block))) {
		goto found;
	}
	int err = ra_alloc(ctx->value.landing, block, CACHE_LINE, &mem);

	if (unlikely(err == -ENOMEM)) {
		rc_fast_spares_put(ctx);
		rc_landing_drain(ctx);
		err = ra_alloc(ctx->value.landing, block, CACHE_LINE, &mem);
	}
	if (err)
		return rc_arena_fail(err, "a buffer for a read", length);
	struct rc_region *r = ra_lookup(ctx->value.landing, mem, &base);

	l = mem;
	memset(l, 0, sizeof(*l));
	l->view.ctx = ctx;
	l->view.data = l + 1;
	l->view.cache_class = size_class;
	l->block = block;
	for (int k = 0; k < RV_NR_KINDS; k++)
		l->lkey[k] = r->mr[k].lkey;
found:
	l->view.length = length;
	at_add(&ctx->n.landing_bytes, l->block);
	*out = l;
	return 0;
}

void rc_landing_put(struct rc_landing *l)
{
	struct rref_ctx *ctx;

	if (!l)
		return;
	ctx = l->view.ctx;
	at_sub(&ctx->n.landing_bytes, l->block);
	if (l->view.cache_class >= 0) {
		unsigned s = start_slot();

		for (unsigned i = 0; i < RC_CACHE_SLOTS; i++) {
			_Atomic(struct rc_landing *) *slot =
				&ctx->value.cache[l->view.cache_class][(s + i) % RC_CACHE_SLOTS];
			struct rc_landing *none = NULL;

			if (RB_FAST(!at_load(slot) && at_cas_ar(slot, &none, l)))
				return;
		}
		ra_free(ctx->value.landing, l, l->block);
	} else {
		leave_large(ctx, l);
	}
}

const void *rref_view_data(const struct rref_view *view)
{
	return view && !rc_view_lost(view) ? view->data : NULL;
}

size_t rref_view_length(const struct rref_view *view)
{
	return view && !rc_view_lost(view) ? view->length : 0;
}

void rc_view_put(struct rref_view *view)
{
	struct rc_value *alias = rc_value_of(view);

	if (alias) {
		rc_value_unpin(alias);
		return;
	}
	if (unlikely(view->nr_refs))
		rc_view_let_go(view);
	rc_landing_put(rc_landing_of(view));
}
