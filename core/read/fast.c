/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quick read: a value of bytes whose location is known, by one READ that is over when the device posted it (shm) or soon
 * after (ibv; read/in_flight.c). Nothing of such a read is in flight when it returns, so that it needs no operation slot, no future
 * and no quarantine. Whatever is out of the ordinary is left to the way of all other reads (read.c), which finds the words.
 *
 * What a thread needs for it, the thread keeps to itself: the landing buffers that it gave back last, counters, and the
 * mark that pins a connection. So a read has no locked instruction of its own: what each thread marks in a
 * place of its own, only the fence looks up elsewhere, and it brings the barrier along (alloc/ra_asym.h).
 */
#include <errno.h>
#include <stdlib.h>

#include "alloc/ra_asym.h"
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/value.h"

struct rc_reader {
	cache_aligned _Atomic(struct rc_peer *) pinned; /* sc: the fence stores conn = NULL and waits until nobody has the peer here */
	uint64_t serial;                  /* [const] of its context, which may be gone and its address another's */
	struct rref_ctx *ctx;             /* guarded by lock; NULL: closed */
	struct rv_read read;              /* its constant parts, and what the last read filled in */
	struct rc_flight *flight;         /* not over shm; NULL: none yet */
	uint32_t fork_generation;
	/* Written by its thread only; others look, to count. */
	_Atomic(struct rc_landing *) spare[RC_CACHE_CLASSES];
	_Atomic uint64_t reads, read_bytes;
	struct rc_reader *next;           /* guarded by lock: of its context */
	struct rc_reader *thread_next;    /* of its thread */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* readers come and go */
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int no_key;
static __attribute__((tls_model("initial-exec"))) _Thread_local struct rc_reader *mine;

uint64_t rc_quick_serial(void)
{
	static _Atomic uint64_t last;

	return at_add(&last, 1) + 1;
}

static void unlink_reader(struct rc_reader *r)
{
	struct rc_reader **at = &r->ctx->readers;

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
}

/* Its context lives. Guarded by lock. */
static void give_back(struct rc_reader *r)
{
	struct rref_ctx *ctx = r->ctx;

	for (int c = 0; c < RC_CACHE_CLASSES; c++)
		rc_landing_put(at_load(&r->spare[c]));
	rc_flight_put(r->flight);
	at_add(&ctx->n.reads, at_load(&r->reads));
	at_add(&ctx->n.doorbells, at_load(&r->reads));
	at_add(&ctx->n.read_bytes, at_load(&r->read_bytes));
}

/* In a child of fork(2): another thread of the parent may have had it at that moment, and is not here to give it back. */
void rc_quick_fork_child(void)
{
	pthread_mutex_init(&lock, NULL);
}

/* A thread ends. Readers from before a fork(2) are of contexts that are the parent's: nothing of those is touched. */
static void thread_ends(void *arg)
{
	struct rc_reader *r = mine;

	(void)arg;
	mine = NULL;
	while (r) {
		struct rc_reader *next = r->thread_next;

		pthread_mutex_lock(&lock);
		if (r->ctx && r->fork_generation == rb_generation()) {
			unlink_reader(r);
			give_back(r);
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

/* Those of this thread whose context was freed. */
static void forget_closed(void)
{
	struct rc_reader **at = &mine;

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

/* This thread's first quick read in ctx. NULL: no memory; the other way of reading says so if it has none either. */
static __attribute__((noinline)) struct rc_reader *new_reader(struct rref_ctx *ctx)
{
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
	r->next = ctx->readers;
	ctx->readers = r;
	r->thread_next = mine;
	mine = r;
	pthread_mutex_unlock(&lock);
	if (pthread_setspecific(key, r)) {
		thread_ends(NULL); /* nobody would at its end */
		return NULL;
	}
	return r;
}

static inline struct rc_reader *reader_of(const struct rref_ctx *ctx)
{
	struct rc_reader *r = mine;

	while (r && unlikely(r->serial != ctx->serial))
		r = r->thread_next;
	return r;
}

static inline void count(_Atomic uint64_t *n, uint64_t by)
{
	at_store(n, at_load(n) + by);
}

/* Whether reads of a user's handle with this location can be quick: said once, when it becomes READY. */
uint8_t rc_quick_class(const struct rref_ctx *ctx, uint32_t owner, const struct rp_location *loc)
{
	const struct rc_peer *p = &ctx->peers[owner];

	if (!RB_FAST(!ctx->scopes && p->ops) || loc->type_hash != ctx->bytes_hash ||
	    loc->nr_segments != 1 || loc->nr_refs || rp_apart(loc) || !loc->nonce || !loc->length || loc->length > RC_VALUE_MAX ||
	    loc->length + RC_HEADER_BYTES > p->max_msg)
		return RC_QUICK_NOT;
	int cls = rc_landing_class(loc->length);

	return cls < 0 ? RC_QUICK_LARGE : (uint8_t)(RC_QUICK_FIRST + cls);
}

static inline bool header_fits(const struct rc_header *h, const struct rref *ref)
{
	const struct rp_location *loc = &rc_remote(ref)->loc;

	return likely(le64toh(h->nonce) == loc->nonce && le32toh(h->state) == RC_HEADER_READY &&
		      le64toh(h->local_id) == ref->id.local_id && le32toh(h->created_on) == ref->id.created_on &&
		      le64toh(h->length) == loc->length && le32toh(h->version) == loc->version &&
		      le64toh(h->type_hash) == loc->type_hash && le16toh(h->nr_segments) == 1 && h->nr_refs == 0);
}

/* A READ that was not made, or not good. A refusal has ended the connection: asked again, the answer would be that one. */
static __attribute__((noinline, cold)) int other_way(struct rref *ref, int64_t timeout, struct rref_view **out, struct rc_landing *v,
						     int status)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];
	char name[160];

	rref_view_free(&v->view);
	if (status != -EACCES) {
		if (rc_read_lost(status))
			at_add(&ref->ctx->n.reads_again, 1);
		return rc_read_whole(ref, timeout, out);
	}
	if (p->kind == RV_SHM)
		at_add(&p->resume.refused, 1); /* else by who took the completion in */
	if (at_load_acq(&ref->state) == RC_H_FAILED)
		return rc_handle_error(ref);
	rref_format(ref, name, sizeof(name));
	return rc_fail(ESTALE, "%s refused the read: the value of %s is not there any more", rref_owner_name(ref), name);
}

/* The thread's, in its hands from here on. NULL: no memory. */
static inline struct rc_flight *take_flight(struct rref_ctx *ctx, struct rc_reader *r)
{
	struct rc_flight *fl = r->flight;

	r->flight = NULL;
	return likely(fl != NULL) ? fl : rc_flight_get(ctx);
}

/* Reads that ran on this thread meanwhile may have left theirs. */
static inline void keep_flight(struct rc_reader *r, struct rc_flight *fl)
{
	if (RB_FAST(likely(!r->flight)))
		r->flight = fl;
	else
		rc_flight_put(fl);
}

/* A buffer that this thread has not kept. NULL: none to be had, or no reader; the other way says why. */
static __attribute__((noinline)) struct rc_landing *other_landing(const struct rref *ref, struct rc_reader **r)
{
	RB_NO_CANCEL;
	struct rc_landing *v;

	if (!*r && !(*r = new_reader(ref->ctx)))
		return NULL;
	return rc_landing_get(ref->ctx, rc_remote(ref)->loc.length, &v) ? NULL : v;
}

static inline __attribute__((always_inline)) int
quick_read(struct rref *ref, int64_t timeout, struct rref_view **out, enum rv_kind kind)
{
	struct rref_ctx *ctx = ref->ctx;
	struct rc_peer *p = &ctx->peers[ref->owner];
	unsigned cls = at_load(&ref->quick) - (unsigned)RC_QUICK_FIRST; /* a large one's is beyond all spares */
	uint64_t length = rc_remote(ref)->loc.length;
	struct rc_reader *r = reader_of(ctx);
	struct rc_landing *v;
	struct rc_flight *fl = NULL;
	struct rv_conn *conn;
	int posted = 0, status;

	if (unlikely(at_load(&p->nr_waiting)))
		return rc_read_whole(ref, timeout, out);
	if (likely(r && cls < RC_CACHE_CLASSES && (v = at_load(&r->spare[cls])) != NULL))
		at_store(&r->spare[cls], NULL);
	else if (!(v = other_landing(ref, &r)))
		return rc_read_whole(ref, timeout, out);
	/* Before r->read is filled in: a flight that is not there yet is got under the lock, at whose end others' reads may run. */
	if (kind != RV_SHM && unlikely(!(fl = take_flight(ctx, r))))
		return other_way(ref, timeout, out, v, 0);
	/* What never changes of it was set in new_reader. */
	struct rv_read *read = &r->read;

	read->addr = rc_remote(ref)->loc.addr;
	read->rkey = rc_remote(ref)->loc.rkey[kind];
	read->sge[0] = rc_landing_piece(v, length, kind);
	/* A READ that brought nothing is seen as one. */
	if (kind == RV_SHM) {
		v->header.nonce = 0;
	} else {
		memset(&v->header, RC_UNREAD, RC_HEADER_BYTES); /* an operation may go on with it */
		read->cookie = rc_flight_begin(fl);
	}
	/*
	 * The mark that the fence looks for. It stores conn = NULL and then looks here; so this store has to be seen before conn is
	 * loaded. That order is the fence's to make, which is rare.
	 */
	ra_asym_mark(&r->pinned, p);
	conn = at_load_sc(&p->conn);
	/*
	 * Once more, behind the pin: the connection may be a later session's, in which this reference holds nothing. The fence
	 * fails the reference, which makes it quick no more, before such a connection can be found.
	 */
	if (likely(conn != NULL) && likely(at_load(&ref->quick) != RC_QUICK_NOT))
		posted = p->ops->post_reads(conn, read, 1);
	at_store_rel(&r->pinned, NULL);
	status = read->status; /* before anything else of this thread can use it */
	if (kind != RV_SHM) {
		int done = 1;

		if (unlikely(posted != 1))
			rc_flight_undo(fl);
		else if (unlikely(!rc_flight_wait(ctx, p, fl, &status)))
			done = rc_read_go_on(ref, &fl, v, timeout, out, &status);
		keep_flight(r, fl);
		if (unlikely(done != 1)) {
			count(&r->reads, 1);
			return done;
		}
	}
	if (unlikely(posted != 1))
		return other_way(ref, timeout, out, v, 0);
	count(&r->reads, 1);
	if (unlikely(status || !header_fits(&v->header, ref)))
		return other_way(ref, timeout, out, v, status);
	count(&r->read_bytes, length);
	v->view.length = length;
	v->view.nr_segments = 1;
	v->type_hash = rc_remote(ref)->loc.type_hash;
	*out = &v->view;
	return 0;
}

/*
 * The device's driver may make system calls that are cancellation points, under locks of its own.
 */
static __attribute__((noinline)) int
read_by_hardware(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	RB_NO_CANCEL;

	return quick_read(ref, timeout, out, RV_IBV);
}

/*
 * ref->quick was loaded with acquire and is not RC_QUICK_NOT. The whole of rref_to_here from there
 * on. Over shm nothing of it is a cancellation point but what the device fetches first
 * (verbs/shm/read.c), and the ways that are left to others.
 */
int rc_quick_read(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	if (likely(ref->ctx->peers[ref->owner].kind == RV_SHM))
		return quick_read(ref, timeout, out, RV_SHM);
	return read_by_hardware(ref, timeout, out);
}

static __attribute__((noinline)) void put_view(struct rref_view *view)
{
	RB_NO_CANCEL;

	rc_view_put(view);
}

/* The calling thread's buffers, for a read that finds no memory. Those of other threads stay theirs. */
void rc_quick_spares_put(struct rref_ctx *ctx)
{
	struct rc_reader *r = reader_of(ctx);

	for (int c = 0; r && c < RC_CACHE_CLASSES; c++) {
		struct rc_landing *v = at_load(&r->spare[c]);

		at_store(&r->spare[c], NULL);
		rc_landing_put(v);
	}
}

/* Kept by this thread for its next read, if it has none of that class. */
void rref_view_free(struct rref_view *view)
{
	struct rc_reader *r;
	unsigned cls;

	if (!view || rc_view_lost(view))
		return;
	r = reader_of(view->ctx);
	cls = (unsigned)view->cls; /* an alias has none */
	if (RB_FAST(likely(r && cls < RC_CACHE_CLASSES && !view->nr_refs &&
			   !at_load(&r->spare[cls]))))
		at_store(&r->spare[cls], rc_landing_of(view));
	else
		put_view(view);
}

static bool is_pinned(struct rref_ctx *ctx, struct rc_peer *p)
{
	bool yes = false;

	pthread_mutex_lock(&lock);
	for (struct rc_reader *r = ctx->readers; r && !yes; r = r->next)
		yes = at_load_sc(&r->pinned) == p;
	pthread_mutex_unlock(&lock);
	return yes;
}

/*
 * The lock is the whole process': not held while a copy is waited for. A reader that comes in between takes it after the
 * first look, and so sees that conn is NULL.
 */
void rc_quick_fence(struct rref_ctx *ctx, struct rc_peer *p)
{
	unsigned turn = 0;
	bool any;

	pthread_mutex_lock(&lock);
	any = ctx->readers;
	pthread_mutex_unlock(&lock);
	if (any)
		ra_asym_barrier();
	while (is_pinned(ctx, p))
		rc_pause(&turn);
}

void rc_quick_counts(struct rref_ctx *ctx, struct rref_stats *s)
{
	uint64_t spare = 0, landing;

	/* All of it under the lock: a thread that ends adds what it counted to the context's counters. */
	pthread_mutex_lock(&lock);
	s->reads = at_load(&ctx->n.reads);
	s->doorbells = at_load(&ctx->n.doorbells);
	s->read_bytes = at_load(&ctx->n.read_bytes);
	for (struct rc_reader *r = ctx->readers; r; r = r->next) {
		s->reads += at_load(&r->reads);
		s->doorbells += at_load(&r->reads);
		s->read_bytes += at_load(&r->read_bytes);
		for (int c = 0; c < RC_CACHE_CLASSES; c++)
			spare += at_load(&r->spare[c]) ? RC_LANDING_BLOCK(c) : 0;
	}
	/* Behind what is a part of it, and still it may be less: they come and go without the lock. */
	landing = at_load(&ctx->n.landing_bytes);
	s->landing_bytes = landing - min_of(spare, landing);
	pthread_mutex_unlock(&lock);
}

void rc_quick_close(struct rref_ctx *ctx)
{
	pthread_mutex_lock(&lock);
	while (ctx->readers) {
		struct rc_reader *r = ctx->readers;

		ctx->readers = r->next;
		give_back(r);
		r->ctx = NULL; /* freed by its thread */
	}
	pthread_mutex_unlock(&lock);
}
