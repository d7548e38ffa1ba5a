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
#include "core/value/look.h"
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

static int arena_get(struct rref_ctx *ctx, size_t block, void **out)
{
	int err;

	at_add(&ctx->value.in_landing, 1);
	err = ra_alloc(ctx->value.landing, block, CACHE_LINE, out);
	at_sub(&ctx->value.in_landing, 1);
	return err;
}

static void arena_put(struct rref_ctx *ctx, struct rc_landing *l)
{
	at_add(&ctx->value.in_landing, 1);
	ra_free(ctx->value.landing, l, l->block);
	at_sub(&ctx->value.in_landing, 1);
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
	arena_put(ctx, l);
	return NULL;
}

static void leave_large(struct rref_ctx *ctx, struct rc_landing *l)
{
	if (RB_FAST(l->block <= LARGE_MAX))
		l = at_xchg_ar(&ctx->value.large[start_slot() % RC_LARGE_SLOTS], l);
	if (l)
		arena_put(ctx, l);
}

static void drain(struct rref_ctx *ctx, _Atomic(struct rc_landing *) *slots, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		struct rc_landing *l = at_xchg_acq(&slots[i], NULL);

		if (l)
			arena_put(ctx, l);
	}
}

void rc_landing_drain(struct rref_ctx *ctx)
{
	drain(ctx, ctx->value.large, RC_LARGE_SLOTS);
	for (int c = 0; c < RC_CACHE_CLASSES; c++)
		drain(ctx, ctx->value.cache[c], RC_CACHE_SLOTS);
}

/* Takes a block that this thread keeps. Returns NULL if there is none. */
static struct rc_landing *own_block(struct rref_ctx *ctx, unsigned size_class)
{
	struct rc_reader *r = rc_reader_of(ctx);
	struct rc_landing *l;

	if (!RB_FAST(r && size_class < RC_CACHE_CLASSES))
		return NULL;
	l = at_load(&r->spare[size_class]);
	if (!l)
		return rc_kept_take(r, size_class);
	at_store(&r->spare[size_class], NULL);
	return l;
}

/* Counts bytes that are given out, or wrapped: that are given back. */
static void count_landing(struct rref_ctx *ctx, uint64_t bytes)
{
	struct rc_reader *r = rc_reader_of(ctx);

	if (likely(r != NULL))
		at_add_mine(&r->landing_bytes, bytes);
	else
		at_add(&ctx->n.landing_bytes, bytes);
}

bool rc_landing_waits(const struct rref_ctx *ctx)
{
	return at_load(&ctx->value.in_landing);
}

int rc_landing_get(struct rref_ctx *ctx, size_t length, struct rc_landing **out)
{
	/* Whole lines, as the arena gives them. The padding of a value that was read with others
	 * lands in the last line. */
	size_t block = (sizeof(struct rc_landing) + length + CACHE_LINE - 1) &
		       ~(size_t)(CACHE_LINE - 1);
	int size_class = rc_landing_class(length);
	struct rc_landing *l = own_block(ctx, (unsigned)size_class);
	void *mem, *base;

	if (l) {
		l->view.length = length; /* counted already */
		*out = l;
		return 0;
	}
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
	int err = arena_get(ctx, block, &mem);

	if (unlikely(err == -ENOMEM)) {
		rc_fast_spares_put(ctx);
		rc_landing_drain(ctx);
		err = arena_get(ctx, block, &mem);
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
	count_landing(ctx, l->block);
	*out = l;
	return 0;
}

void rc_landing_put(struct rc_landing *l)
{
	struct rref_ctx *ctx;

	if (!l)
		return;
	ctx = l->view.ctx;
	count_landing(ctx, -l->block);
	if (l->view.cache_class >= 0) {
		unsigned s = start_slot();

		for (unsigned i = 0; i < RC_CACHE_SLOTS; i++) {
			_Atomic(struct rc_landing *) *slot =
				&ctx->value.cache[l->view.cache_class][(s + i) % RC_CACHE_SLOTS];
			struct rc_landing *none = NULL;

			if (RB_FAST(!at_load(slot) && at_cas_ar(slot, &none, l)))
				return;
		}
		arena_put(ctx, l);
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
	if (view->cache_class == RC_VIEW_LOOK) {
		rref_release(rc_look_end(view)); /* last: the owner may free the value now */
		return;
	}
	if (unlikely(view->nr_refs))
		rc_view_let_go(view);
	rc_landing_put(rc_landing_of(view));
}
