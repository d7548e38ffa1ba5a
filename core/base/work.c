/* SPDX-License-Identifier: Apache-2.0 */
/* The queue of the library's own work: see work.h. */
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/work.h"
#include "core/ctx.h"

void rc_defer(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_works *q = &ctx->works;

	rc_assert_locked(ctx);
	w->item.next = 0;
	if (q->first)
		q->last->item.next = (uintptr_t)w;
	else
		q->first = w;
	q->last = w;
	q->nr++;
}

void rc_defer_first(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_works *q = &ctx->works;

	rc_assert_locked(ctx);
	if (q->last_urgent) {
		w->item.next = q->last_urgent->item.next;
		q->last_urgent->item.next = (uintptr_t)w;
	} else {
		w->item.next = (uintptr_t)q->first;
		q->first = w;
	}
	if (!w->item.next)
		q->last = w;
	q->last_urgent = w;
	q->nr++;
}

static needs_lock struct rc_work *next_deferred(struct rc_works *q)
{
	struct rc_work *w = q->first;

	if (w) {
		q->first = (struct rc_work *)w->item.next;
		if (q->last_urgent == w)
			q->last_urgent = NULL;
		q->nr--;
	}
	return w;
}

void rc_work_push(struct rref_ctx *ctx, struct rc_work *w)
{
	/* sc. Pairs with rc_unlock and is_quiet. */
	rc_item_push(&ctx->works.pushed, &w->item, (uintptr_t)&w->item);
}

void rc_work_push_bare(struct rref_ctx *ctx, struct rc_item *item)
{
	rc_item_push(&ctx->works.pushed, item, (uintptr_t)item | RC_ITEM_BARE); /* as above */
}

unsigned rc_work_run_pushed(struct rref_ctx *ctx)
{
	struct rc_works *q = &ctx->works;
	uintptr_t i = at_load(&q->pushed), next;
	unsigned n = 0;

	rc_assert_locked(ctx);
	if (!i)
		return 0;
	/* Acquire. Pairs with rc_item_push: its thread's last use of the item happened before. */
	i = rc_items_turned(at_xchg_sc(&q->pushed, 0)); /* first come, first served */
	for (; i; i = next) {
		struct rc_item *item = (struct rc_item *)(i & ~RC_ITEM_BARE);
		struct rc_work *w = container_of(item, struct rc_work, item);

		/* read before the item runs: it may then be freed or pushed again */
		next = item->next;
		if (i & RC_ITEM_BARE)
			q->run_bare(ctx, item);
		else
			w->run(ctx, w);
		n++;
	}
	return n;
}

void rc_work_run(struct rref_ctx *ctx)
{
	struct rc_works *q = &ctx->works;
	struct rc_error scratch;
	struct rc_work *w;

	rc_assert_locked(ctx);
	rc_error_aside(&scratch);
	rc_work_run_pushed(ctx);
	for (unsigned n = q->nr; (n > 0 || q->last_urgent) && (w = next_deferred(q)); n -= n > 0) {
		q->running++;
		w->run(ctx, w);
		q->running--;
	}
	/* The rest goes on at some thread's next turn: the poller has to be awake for that. */
	if (q->first)
		rc_kick(ctx);
	rc_error_back(&scratch);
}
