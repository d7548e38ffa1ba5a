/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader's side of looks: the views, one for each place of the device's table. A place is of
 * its view for good. So a look needs no memory and no lock: one compare-and-swap takes a view, and
 * one gives it back. The list of free ones is counted, against ABA. When all are in use, values are
 * copied as ever.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/child.h"
#include "core/value/internal.h"
#include "core/value/look.h"
#include "core/value/value.h"

#define LEAST_BYTES ((size_t)16 << 10) /* the default bound */
#define LOOKS_BYTES (RV_LOOKS * sizeof(struct rc_look))
#define COUNT (UINT64_C(1) << 32)

void rc_looks_open(struct rref_ctx *ctx, const struct rref_options *opt)
{
	void *map = MAP_FAILED;

	list_init(&ctx->value.onlookers);
	ctx->value.look_bytes = opt->look_bytes ? opt->look_bytes : LEAST_BYTES;
	for (int k = 0; k < RV_NR_KINDS && map == MAP_FAILED; k++)
		if (ctx->device[k].dev && ctx->device[k].ops->look)
			map = mmap(NULL, LOOKS_BYTES, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	/* no device maps memory, or no room for it: values are copied */
	ctx->value.looks = map == MAP_FAILED ? NULL : map;
}

void rc_looks_close(struct rref_ctx *ctx)
{
	if (ctx->value.looks)
		munmap(ctx->value.looks, LOOKS_BYTES);
	ctx->value.looks = NULL;
}

void rc_looks_leave(struct rref_ctx *ctx)
{
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev && ctx->device[k].ops->look)
			ctx->device[k].ops->look->leave(ctx->device[k].dev);
}

/* Takes one that was never in use, or NULL. */
static struct rc_look *take_fresh(struct rref_ctx *ctx)
{
	uint32_t i = at_load(&ctx->value.looks_used);

	do
		if (i >= RV_LOOKS)
			return NULL;
	while (!at_cas_weak_ar(&ctx->value.looks_used, &i, i + 1));
	return &ctx->value.looks[i];
}

struct rc_look *rc_look_take(struct rref_ctx *ctx, uint32_t *place)
{
	/* Acquire. Pairs with rc_look_put. */
	uint64_t free = at_load_acq(&ctx->value.looks_free);
	struct rc_look *l;

	if (!ctx->value.looks)
		return NULL;
	do {
		if (!(uint32_t)free) {
			l = take_fresh(ctx);
			break;
		}
		l = &ctx->value.looks[(uint32_t)free - 1];
		/* next may be of a later time: then the count has moved, and the exchange fails. */
	} while (!at_cas_weak_ar(&ctx->value.looks_free, &free,
				 ((free + COUNT) & ~(COUNT - 1)) | at_load(&l->next)));
	if (l)
		*place = (uint32_t)(l - ctx->value.looks);
	return l;
}

void rc_look_put(struct rref_ctx *ctx, struct rc_look *l)
{
	uint64_t free = at_load(&ctx->value.looks_free);

	do
		at_store(&l->next, (uint32_t)free);
	while (!at_cas_weak_ar(&ctx->value.looks_free, &free,
			       ((free + COUNT) & ~(COUNT - 1)) |
				       (uint32_t)(l - ctx->value.looks + 1)));
}

struct rref *rc_look_end(struct rref_view *v)
{
	struct rc_look *l = rc_look_of(v);
	struct rref_ctx *ctx = v->ctx;
	struct rref *ref = l->landing.outer;
	const struct rc_peer *p = &ctx->peers[ref->owner];

	p->ops->look->look_away(p->dev, (uint32_t)(l - ctx->value.looks), &l->look);
	/* Pairs with rc_looks_held. */
	__atomic_store_n(&l->landing.outer, NULL, __ATOMIC_RELAXED);
	rc_look_put(ctx, l);
	return ref;
}

static int by_address(const void *a, const void *b)
{
	const struct rref *const *x = a, *const *y = b;

	return (*x > *y) - (*x < *y);
}

size_t rc_looks_held(struct rref_ctx *ctx, const struct rref ***out)
{
	uint32_t nr = ctx->value.looks ? at_load(&ctx->value.looks_used) : 0;
	const struct rref **refs = malloc((nr + 1) * sizeof(*refs)), *ref;
	size_t n = 0;

	/* A thread may free its view meanwhile: no reference is looked at. */
	for (uint32_t i = 0; refs && i < nr; i++)
		if ((ref = __atomic_load_n(&ctx->value.looks[i].landing.outer, __ATOMIC_RELAXED)))
			refs[n++] = ref;
	if (n)
		qsort(refs, n, sizeof(*refs), by_address);
	*out = refs;
	return n;
}

int rref_view_is_copy(const struct rref_view *view)
{
	return view && !rc_view_lost(view) && view->cache_class != RC_VIEW_ALIAS &&
	       view->cache_class != RC_VIEW_LOOK;
}
