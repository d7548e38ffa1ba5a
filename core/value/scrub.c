/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrubs the memory of large values that ended. Nobody reaches it any more. The nonce is destroyed;
 * no handle, fork or view is left; dead workers are fenced. So the scrub has time, and it is never
 * done under the progress lock. A gigabyte takes a tenth of a second.
 *
 * Such values wait in a queue. These scrub them, without the lock:
 *
 *   rref_release, rref_view_free   at once, if they ended the value
 *   a hook                         some at a time; the engine has a turn in between
 *   a thread that needs memory     all that waits, and the scrubs of other threads are waited for
 *
 * Statistics and the end of a context do as the last. A value counts as used until its memory is
 * free again.
 */
#include "base/assert.h"
#include "core/base/hook.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/value/internal.h"
#include "core/value/value.h"

/* A value that may wait here. */
struct large {
	struct rc_value value;
	struct rc_value_extra extra;
	struct list node; /* guarded by the queue's lock */
	size_t scrubbed; /* bytes so far; of the thread that has it out of the queue */
};

/* Values that the calling thread scrubs itself. */
static _Thread_local struct rc_scrub_own own;

static struct large *large_of(struct rc_value *v)
{
	return (struct large *)(void *)v; /* begins with it */
}

struct rc_value *rc_large_make(void)
{
	struct large *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->value.extra = &l->extra;
	list_init(&l->node);
	return &l->value;
}

static struct rc_value *take(struct rc_scrubs *q)
{
	struct list *n;

	pthread_mutex_lock(&q->lock);
	n = list_pop(&q->queue);
	pthread_mutex_unlock(&q->lock);
	return n ? &container_of(n, struct large, node)->value : NULL;
}

static void put(struct rc_scrubs *q, struct rc_value *v)
{
	pthread_mutex_lock(&q->lock);
	list_add(&q->queue, &large_of(v)->node);
	pthread_mutex_unlock(&q->lock);
}

static bool any_waits(struct rc_scrubs *q)
{
	bool any;

	pthread_mutex_lock(&q->lock);
	any = !list_empty(&q->queue);
	pthread_mutex_unlock(&q->lock);
	return any;
}

/* Scrubs up to most bytes of the next value. Returns false if no value waits. */
static bool scrub_some(struct rc_scrubs *q, size_t most)
{
	struct rc_value *v = take(q);

	if (!v)
		return false;
	struct large *l = large_of(v);
	size_t bytes = rc_value_bytes(v), n = min_of(bytes - l->scrubbed, most);

	rb_slow(RB_SLOW_SCRUB);
	explicit_bzero((char *)rc_value_header(v) + l->scrubbed, n);
	l->scrubbed += n;
	if (l->scrubbed < bytes) {
		put(q, v);
	} else {
		rc_value_free(v);
		at_sub_rel(&q->nr, 1); /* Pairs with rc_scrub_all. */
	}
	return true;
}

/* Has the hook queued, by work: the caller may hold the lock or not. */
static void ask_for_hook(struct rref_ctx *ctx)
{
	struct rc_scrubs *q = &ctx->value.scrubs;

	if (!at_xchg_ar(&q->announced, true))
		rc_work_push(ctx, &q->work);
	/* The holder of the lock, this thread perhaps, looks when it lets go of it. */
	if (rc_trylock(ctx))
		rc_unlock(ctx);
}

static needs_lock void queue_hook(struct rref_ctx *ctx, struct rc_work *w)
{
	rc_hook_push(ctx, &container_of(w, struct rc_scrubs, work)->hook);
}

static void scrub_hook(struct rref_ctx *ctx, struct rc_hook *h)
{
	struct rc_scrubs *q = container_of(h, struct rc_scrubs, hook);

	/* Comes before the look at the queue: a value that comes now brings the hook again. */
	at_xchg_ar(&q->announced, false);
	scrub_some(q, RC_SCRUB_TURN);
	if (any_waits(q))
		ask_for_hook(ctx);
}

void rc_scrub_open(struct rref_ctx *ctx)
{
	struct rc_scrubs *q = &ctx->value.scrubs;

	pthread_mutex_init(&q->lock, NULL);
	list_init(&q->queue);
	q->work.run = queue_hook;
	q->hook.run = scrub_hook;
	list_init(&q->hook.node);
}

void rc_scrub_close(struct rref_ctx *ctx)
{
	rc_scrub_all(ctx);
	rb_assert(!at_load(&ctx->value.scrubs.nr));
	pthread_mutex_destroy(&ctx->value.scrubs.lock);
}

void rc_scrub_later(struct rc_value *v)
{
	struct rref_ctx *ctx = v->view.ctx;

	rb_assert(!at_load(&v->pins) && !v->wrapped);
	at_add(&ctx->value.scrubs.nr, 1);
	put(&ctx->value.scrubs, v);
	/* A callback of the thread may end values of another context meanwhile. */
	if (own.ctx == ctx)
		own.nr++;
	else
		ask_for_hook(ctx);
}

struct rc_scrub_own rc_scrub_own_begin(struct rref_ctx *ctx)
{
	struct rc_scrub_own before = own;

	own = (struct rc_scrub_own){ .ctx = ctx };
	return before;
}

void rc_scrub_own_end(struct rc_scrub_own before)
{
	struct rref_ctx *ctx = own.ctx;
	unsigned nr = own.nr;

	own = before;
	/* The last are taken first: mostly these are its own. */
	while (nr-- && scrub_some(&ctx->value.scrubs, SIZE_MAX))
		;
}

void rc_scrub_all(struct rref_ctx *ctx)
{
	unsigned turn = 0;

	/* Acquire. Pairs with scrub_some: the memory is free. */
	while (at_load_acq(&ctx->value.scrubs.nr))
		if (!scrub_some(&ctx->value.scrubs, SIZE_MAX))
			rc_pause(&turn);
}
