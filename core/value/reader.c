/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readers: the blocks and counters that a thread keeps for its fast reads. They stay until the
 * thread ends or the context closes. A view that is given back leaves its landing block with the
 * thread.
 */
#include <stdlib.h>

#include "alloc/ra_asym.h"
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/value/internal.h"
#include "core/value/reader.h"
#include "core/value/value.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* readers come and go */
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int no_key;
__attribute__((tls_model("initial-exec"))) _Thread_local struct rc_reader *rc_my_readers;

uint64_t rc_fast_serial(void)
{
	static _Atomic uint64_t last;

	return at_add(&last, 1) + 1;
}

static void unlink_reader(struct rc_reader *r)
{
	struct rc_reader **at = &r->ctx->value.readers;

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
}

struct rc_landing *rc_kept_take(struct rc_reader *r, unsigned size_class)
{
	struct rc_landing *v = size_class < RC_CACHE_CLASSES ? r->kept[size_class] : NULL;

	if (v) {
		r->kept[size_class] = v->next;
		at_store(&r->kept_bytes, at_load(&r->kept_bytes) - v->block);
	}
	return v;
}

/* Keeps a block behind the spare of its class. Returns false if the thread has enough. */
static inline bool keep_block(struct rc_reader *r, struct rc_landing *v, unsigned size_class)
{
	size_t bytes = at_load(&r->kept_bytes) + v->block;

	if (bytes > r->ctx->value.kept_max)
		return false;
	v->next = r->kept[size_class];
	r->kept[size_class] = v;
	at_store(&r->kept_bytes, bytes);
	return true;
}

/* Gives back the blocks of a reader: the calling thread's, or one whose thread reads no more. */
static void put_blocks(struct rc_reader *r)
{
	struct rc_landing *v;

	for (unsigned c = 0; c < RC_CACHE_CLASSES; c++) {
		v = at_load(&r->spare[c]);
		at_store(&r->spare[c], NULL);
		rc_landing_put(v);
		while ((v = rc_kept_take(r, c)))
			rc_landing_put(v);
	}
}

/* Gives back the blocks and counters of a reader whose context lives. Guarded by lock. */
static void reader_give_back(struct rc_reader *r)
{
	struct rref_ctx *ctx = r->ctx;

	put_blocks(r);
	rc_own_give_back(r);
	rc_in_flight_put(r->flight);
	at_add(&ctx->n.reads, at_load(&r->reads));
	at_add(&ctx->n.doorbells, at_load(&r->reads) - at_load(&r->beyond));
	at_add(&ctx->n.read_bytes, at_load(&r->read_bytes));
	at_add(&ctx->n.landing_bytes, at_load(&r->landing_bytes));
	at_store(&r->landing_bytes, 0);
	at_add(&ctx->n.looks, at_load(&r->looks));
}

/*
 * Makes the lock anew in a child of fork(2). Another thread of the parent may have had it at that
 * moment. That thread is not here to give it back.
 */
void rc_fast_fork_child(void)
{
	pthread_mutex_init(&lock, NULL);
}

/*
 * Gives back the readers of a thread that ends. Readers from before a fork(2) are of contexts that
 * are the parent's: nothing of them is touched.
 */
static void thread_ends(void *arg)
{
	struct rc_reader *r = rc_my_readers;

	(void)arg;
	rc_my_readers = NULL;
	while (r) {
		struct rc_reader *next = r->thread_next;

		pthread_mutex_lock(&lock);
		if (r->ctx && r->fork_generation == rb_generation()) {
			unlink_reader(r);
			reader_give_back(r);
		}
		pthread_mutex_unlock(&lock);
		free(r);
		r = next;
	}
}

static void make_key(void)
{
	no_key = pthread_key_create(&key, thread_ends);
	ra_asym_begin();
}

/* Frees the readers of this thread whose context was freed. */
static void forget_closed(void)
{
	struct rc_reader **at = &rc_my_readers;

	while (*at) {
		struct rc_reader *r = *at;

		if (r->ctx) {
			at = &r->thread_next;
			continue;
		}
		*at = r->thread_next;
		free(r);
	}
}

struct rc_reader *rc_reader_new(struct rref_ctx *ctx)
{
	RB_NO_CANCEL;
	struct rc_reader *r;

	pthread_once(&once, make_key);
	if (no_key)
		return NULL;
	r = aligned_alloc(CACHE_LINE, sizeof(*r));
	if (!r)
		return NULL;
	memset(r, 0, sizeof(*r));
	r->ctx = ctx;
	r->serial = ctx->serial;
	r->fork_generation = rb_generation();
	r->read.nr_sge = 1;
	pthread_mutex_lock(&lock);
	forget_closed();
	r->next = ctx->value.readers;
	ctx->value.readers = r;
	r->thread_next = rc_my_readers;
	rc_my_readers = r;
	pthread_mutex_unlock(&lock);
	if (pthread_setspecific(key, r)) {
		thread_ends(NULL); /* called here: the end of the thread would not call it */
		return NULL;
	}
	return r;
}

static __attribute__((noinline)) void put_copy_or_alias(struct rref_view *view)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx = view->ctx;
	const struct rc_value *alias = rc_value_of(view);

	if (likely(!alias || rc_value_bytes(alias) <= RC_LARGE_BYTES)) {
		rc_view_put(view);
		return;
	}
	struct rc_scrub_own before = rc_scrub_own_begin(ctx);

	rc_view_put(view);
	rc_scrub_own_end(before);
}

static __attribute__((noinline)) void put_view(struct rref_view *view)
{
	if (view->cache_class == RC_VIEW_LOOK)
		rc_view_put(view); /* rref_release is no cancellation point */
	else
		put_copy_or_alias(view);
}

static __attribute__((noinline)) void view_let_go(struct rref_view *view)
{
	RB_NO_CANCEL;

	rc_view_let_go(view);
}

/*
 * Gives back the calling thread's buffers, for a read that finds no memory. Buffers of other
 * threads stay theirs.
 */
void rc_fast_spares_put(struct rref_ctx *ctx)
{
	struct rc_reader *r = rc_reader_of(ctx);

	if (r)
		put_blocks(r);
}

/* Leaves the block with this thread for its next reads. */
void rref_view_free(struct rref_view *view)
{
	struct rc_reader *r;
	unsigned size_class;

	if (!view || rc_view_lost(view))
		return;
	r = rc_reader_of(view->ctx);
	size_class = (unsigned)view->cache_class; /* an alias has none */
	if (RB_FAST(likely(r && size_class < RC_CACHE_CLASSES))) {
		if (unlikely(view->nr_refs))
			view_let_go(view);
		if (!at_load(&r->spare[size_class])) {
			at_store(&r->spare[size_class], rc_landing_of(view));
			return;
		}
		if (keep_block(r, rc_landing_of(view), size_class))
			return;
	}
	put_view(view);
}

bool rc_is_pinned(struct rref_ctx *ctx, const struct rc_peer *p)
{
	bool yes = false;

	pthread_mutex_lock(&lock);
	for (struct rc_reader *r = ctx->value.readers; r && !yes; r = r->next)
		yes = at_load_sc(&r->pinned) == p;
	pthread_mutex_unlock(&lock);
	return yes;
}

/*
 * Makes the barrier if there are readers. A later reader takes the lock behind the look here. So it
 * sees that conn is NULL.
 */
void rc_fast_fence(struct rref_ctx *ctx)
{
	bool any;

	pthread_mutex_lock(&lock);
	any = ctx->value.readers;
	pthread_mutex_unlock(&lock);
	if (any)
		ra_asym_barrier();
}

void rc_fast_counts(struct rref_ctx *ctx, struct rref_stats *s)
{
	uint64_t spare = 0, landing = 0, own, made;

	/* All of it under the lock: a thread that ends adds what it counted to the context's
	 * counters. */
	pthread_mutex_lock(&lock);
	s->reads = at_load(&ctx->n.reads);
	s->doorbells = at_load(&ctx->n.doorbells);
	s->read_bytes = at_load(&ctx->n.read_bytes);
	own = at_load(&ctx->value.own_free);
	s->looks = at_load(&ctx->n.looks);
	for (struct rc_reader *r = ctx->value.readers; r; r = r->next) {
		s->reads += at_load(&r->reads);
		s->doorbells += at_load(&r->reads) - at_load(&r->beyond);
		s->read_bytes += at_load(&r->read_bytes);
		landing += at_load(&r->landing_bytes);
		spare += at_load(&r->kept_bytes);
		own += at_load(&r->nr_own);
		s->looks += at_load(&r->looks);
		for (int c = 0; c < RC_CACHE_CLASSES; c++)
			spare += at_load(&r->spare[c]) ? RC_LANDING_BLOCK(c) : 0;
	}
	/* Futures come and go without the lock: the free ones may be counted twice or not. */
	made = at_load(&ctx->value.nr_own);
	s->ops_in_flight = rc_ops_in_flight(ctx) + made - min_of(own, made);
	/* Blocks come and go without the lock. One may be missed on its way from thread to thread.
	 * Then spare seems to be more than the whole. */
	landing += at_load(&ctx->n.landing_bytes);
	s->landing_bytes = (int64_t)(landing - spare) > 0 ? landing - spare : 0;
	pthread_mutex_unlock(&lock);
}

/* ---- flights ---- */

struct rc_in_flight *rc_in_flight_take(struct rref_ctx *ctx)
{
	/* Acquire. Pairs with the push below. */
	struct rc_in_flight *fl = at_load_acq(&ctx->value.flights), *first;

	for (; fl; fl = fl->next) {
		uint32_t none = RC_FLIGHT_FREE;

		/* Pairs with rc_in_flight_put: acquire. */
		if (at_load(&fl->state) == RC_FLIGHT_FREE &&
		    at_cas_ar(&fl->state, &none, RC_FLIGHT_MINE))
			return fl;
	}
	fl = aligned_alloc(CACHE_LINE, sizeof(*fl));
	if (!fl)
		return NULL;
	memset(fl, 0, sizeof(*fl));
	at_store(&fl->state, RC_FLIGHT_MINE);
	first = at_load(&ctx->value.flights);
	do
		fl->next = first;
	while (!at_cas_weak_ar(&ctx->value.flights, &first, fl));
	return fl;
}

void rc_in_flight_put(struct rc_in_flight *fl)
{
	rb_assert_if(fl, at_load(&fl->state) != RC_FLIGHT_FREE && !fl->f && !fl->landing);
	if (fl)
		at_store_rel(&fl->state, RC_FLIGHT_FREE);
}

is_alone void rc_readers_close(struct rref_ctx *ctx)
{
	pthread_mutex_lock(&lock);
	while (ctx->value.readers) {
		struct rc_reader *r = ctx->value.readers;

		ctx->value.readers = r->next;
		reader_give_back(r);
		r->ctx = NULL; /* freed by its thread */
	}
	pthread_mutex_unlock(&lock);
	for (struct rc_in_flight *fl = at_load_acq(&ctx->value.flights), *next; fl; fl = next) {
		next = fl->next;
		free(fl);
	}
	at_store(&ctx->value.flights, NULL);
	rc_own_close(ctx);
	rc_landing_drain(ctx);
}
