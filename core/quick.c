/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quick read: a value of bytes whose location is known, over a device whose READs are complete when they are
 * posted (shm). Nothing of such a read is in flight when it returns, so that it needs no operation slot, no future and
 * no quarantine. Whatever is out of the ordinary is left to the way of all other reads (read.c), which finds the words.
 *
 * What a thread needs for it, the thread keeps to itself: a landing place for headers, the landing buffers that it gave
 * back last, counters, and the mark that pins a connection. So a read costs one locked instruction, the pin: what each
 * thread marks in a place of its own, only the fence looks up elsewhere.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "rc.h"

struct rc_reader {
	cache_aligned _Atomic(struct rc_peer *) pinned; /* sc: the fence stores conn = NULL and waits until nobody has the peer here */
	uint64_t serial;                  /* [const] of its context, which may be gone and its address another's */
	struct rref_ctx *ctx;             /* guarded by lock; NULL: closed */
	struct rc_header *header;
	uint32_t header_lkey;
	uint32_t fork_generation;
	struct rref_view *spare[RC_CACHE_CLASSES];
	/* Written by its thread only. */
	_Atomic uint64_t reads, read_bytes;
	_Atomic int64_t landing_bytes;    /* below 0: got elsewhere and given back here */
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
		if (r->spare[c])
			ra_free(ctx->landing, r->spare[c], r->spare[c]->block);
	ra_free(ctx->landing, r->header, RC_HEADER_BYTES);
	at_add(&ctx->n.reads, at_load(&r->reads));
	at_add(&ctx->n.doorbells, at_load(&r->reads));
	at_add(&ctx->n.read_bytes, at_load(&r->read_bytes));
	at_add(&ctx->n.landing_bytes, (uint64_t)at_load(&r->landing_bytes));
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
		if (r->ctx && r->fork_generation == at_load(&rc_fork_generation)) {
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
	void *header, *base;

	pthread_once(&once, make_key);
	if (no_key)
		return NULL;
	r = aligned_alloc(CACHE_LINE, sizeof(*r));
	if (!r)
		return NULL;
	if (ra_alloc(ctx->landing, RC_HEADER_BYTES, CACHE_LINE, &header)) {
		free(r);
		return NULL;
	}
	memset(r, 0, sizeof(*r));
	r->ctx = ctx;
	r->serial = ctx->serial;
	r->fork_generation = at_load(&rc_fork_generation);
	r->header = header;
	r->header_lkey = ((struct rc_region *)ra_lookup(ctx->landing, header, &base))->mr[RV_SHM].lkey;
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

static inline struct rref_view *landing(struct rc_reader *r, struct rref_ctx *ctx, size_t length)
{
	int cls = rc_landing_class(length);
	struct rref_view *v = NULL;

	if (likely(cls >= 0 && (v = r->spare[cls]) != NULL)) {
		r->spare[cls] = NULL;
		at_store(&r->landing_bytes, at_load(&r->landing_bytes) + (int64_t)v->block);
		return v;
	}
	return rc_landing_get(ctx, length, &v) ? NULL : v;
}

bool rc_quick_put(struct rref_view *v)
{
	struct rc_reader *r = reader_of(v->ctx);

	if (!r || v->cls < 0 || r->spare[v->cls])
		return false;
	r->spare[v->cls] = v;
	at_store(&r->landing_bytes, at_load(&r->landing_bytes) - (int64_t)v->block);
	return true;
}

static bool header_fits(const struct rc_header *h, const struct rref *ref)
{
	const struct rp_location *loc = &ref->loc;

	return le64toh(h->nonce) == loc->nonce && le32toh(h->state) == RC_HEADER_READY &&
	       le64toh(h->local_id) == ref->id.local_id && le32toh(h->created_on) == ref->id.created_on &&
	       le64toh(h->length) == loc->length && le32toh(h->version) == loc->version &&
	       le64toh(h->type_hash) == loc->type_hash && le16toh(h->nr_segments) == loc->nr_segments &&
	       h->nr_refs == 0;
}

/* ref is a user's, and its location is known. 0: *out. 1: to be read the other way. -errno with its text. */
int rc_quick_read(struct rref *ref, struct rref_view **out)
{
	struct rref_ctx *ctx = ref->ctx;
	struct rc_peer *p = &ctx->peers[ref->owner];
	const struct rp_location *loc = &ref->loc;
	uint64_t length = loc->length;
	struct rc_reader *r = reader_of(ctx);
	struct rref_view *v;
	struct rv_conn *conn;
	int posted = 0;

	if (p->kind != RV_SHM || loc->type_hash != ctx->bytes_hash || loc->nr_segments != 1 || loc->nr_refs || !loc->nonce ||
	    rp_apart(loc) || !length || length > RC_VALUE_MAX || length + RC_HEADER_BYTES > p->max_msg || at_load(&p->nr_waiting))
		return 1;
	if (unlikely(!r) && !(r = new_reader(ctx)))
		return 1;
	v = landing(r, ctx, length);
	if (unlikely(!v))
		return 1;

	struct rv_read read = { .addr = loc->addr, .rkey = loc->rkey[RV_SHM], .nr_sge = 2,
				.sge = { { r->header, RC_HEADER_BYTES, r->header_lkey },
					 { v + 1, (uint32_t)length, v->lkey[RV_SHM] } } };

	r->header->nonce = 0; /* a READ that brought nothing is seen as one */
	at_store_sc(&r->pinned, p);
	conn = at_load_sc(&p->conn);
	/* Once more, behind the pin: the connection may be a later session's, in which this reference holds nothing. */
	if (likely(conn != NULL) && likely(at_load_acq(&ref->state) == RC_H_READY))
		posted = p->ops->post_reads(conn, &read, 1);
	at_store_rel(&r->pinned, NULL);
	if (likely(posted == 1)) {
		count(&r->reads, 1);
		if (likely(!read.status && header_fits(r->header, ref))) {
			count(&r->read_bytes, length);
			v->length = length;
			v->nr_segments = 1;
			v->type_hash = loc->type_hash;
			*out = v;
			return 0;
		}
	}
	rref_view_free(v);
	/* The refusal has ended the connection: asked again, the answer would be that one. */
	if (posted == 1 && read.status == -EACCES) {
		char name[160];

		at_add(&p->resume.refused, 1);
		rref_format(ref, name, sizeof(name));
		return rc_fail(ESTALE, "%s refused the read: the value of %s is not there any more", p->member->name, name);
	}
	return 1;
}

void rc_quick_fence(struct rref_ctx *ctx, struct rc_peer *p)
{
	pthread_mutex_lock(&lock);
	for (struct rc_reader *r = ctx->readers; r; r = r->next)
		while (at_load_sc(&r->pinned) == p)
			sched_yield();
	pthread_mutex_unlock(&lock);
}

void rc_quick_counts(struct rref_ctx *ctx, uint64_t *reads, uint64_t *read_bytes, uint64_t *landing_bytes)
{
	*reads = *read_bytes = *landing_bytes = 0;
	pthread_mutex_lock(&lock);
	for (struct rc_reader *r = ctx->readers; r; r = r->next) {
		*reads += at_load(&r->reads);
		*read_bytes += at_load(&r->read_bytes);
		*landing_bytes += (uint64_t)at_load(&r->landing_bytes);
	}
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
