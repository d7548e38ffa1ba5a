/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fast read: a value of bytes whose location is known, by one READ. The READ is over when the
 * device posted it (shm) or soon after (ibv; read/in_flight.c). Nothing is in flight when the read
 * returns. So it needs no operation slot, no future and no quarantine. Any case out of the ordinary
 * is left to the general read (read.c), which finds the words.
 *
 * The thread keeps all that its fast reads need. These are the landing buffers that it gave back
 * last, its counters, and the mark that pins a connection. So a read has no locked instruction of
 * its own. Each thread sets its mark in its own place. Only the fence looks at the marks of other
 * threads, and it brings the barrier along (alloc/ra_asym.h).
 */
#include <errno.h>
#include <stdlib.h>

#include "alloc/ra_asym.h"
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"
#include "core/value/value.h"

static inline void count(_Atomic uint64_t *n, uint64_t by)
{
	at_store(n, at_load(n) + by);
}

static inline bool header_fits(const struct rc_header *h, const struct rref *ref)
{
	const struct rp_location *loc = &rc_remote(ref)->loc;
	uint32_t counts; /* number of segments, and behind it of references */

	memcpy(&counts, (const char *)h + offsetof(struct rc_header, nr_segments), sizeof(counts));
	return likely(le64toh(h->nonce) == loc->nonce && le32toh(h->state) == RC_HEADER_READY &&
		      le64toh(h->local_id) == ref->id.local_id &&
		      le32toh(h->created_on) == ref->id.created_on &&
		      le64toh(h->length) == loc->length && le32toh(h->version) == loc->version &&
		      le64toh(h->type_hash) == loc->type_hash && le32toh(counts) == 1);
}

/*
 * Goes the general way after a READ that was not made or failed. Does not ask again after a
 * refusal: the refusal has ended the connection, and the answer would be the same.
 */
static __attribute__((noinline, cold)) int other_way(struct rref *ref, int64_t timeout,
						     struct rref_view **out, struct rc_landing *v,
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
	if (p->reads_inline)
		/* otherwise the completion's reader has counted it */
		at_add(&p->resume.refused, 1);
	if (at_load_acq(&ref->state) == RC_H_FAILED)
		return rc_handle_error(ref);
	rref_format(ref, name, sizeof(name));
	return rc_fail(ESTALE, "%s refused the read: the value of %s is not there any more",
		       rref_owner_name(ref), name);
}

/* Takes the thread's flight into the caller's hands. Returns NULL if there is no memory. */
static inline struct rc_in_flight *take_flight(struct rref_ctx *ctx, struct rc_reader *r)
{
	struct rc_in_flight *fl = r->flight;

	r->flight = NULL;
	return likely(fl != NULL) ? fl : rc_in_flight_get(ctx);
}

/*
 * Gives the flight back to the thread. Puts it away if another read on the thread left its own
 * there meanwhile.
 */
static inline void keep_flight(struct rc_reader *r, struct rc_in_flight *fl)
{
	if (RB_FAST(likely(!r->flight)))
		r->flight = fl;
	else
		rc_in_flight_put(fl);
}

/*
 * Returns a buffer that this thread has not kept. Returns NULL if there is no buffer or no reader;
 * the general way then says why.
 */
static __attribute__((noinline)) struct rc_landing *other_landing(const struct rref *ref,
								  struct rc_reader **r)
{
	RB_NO_CANCEL;
	struct rc_landing *v;

	if (!*r && !(*r = rc_reader_new(ref->ctx)))
		return NULL;
	return rc_landing_get(ref->ctx, rc_remote(ref)->loc.length, &v) ? NULL : v;
}

/*
 * Takes the buffer that this thread gave back last, or another. Returns NULL for the general way:
 * reads wait for the owner, or there is no buffer.
 */
static inline struct rc_landing *fast_landing(const struct rref *ref, const struct rc_peer *p,
					      struct rc_reader **reader)
{
	/* a large buffer's class is beyond all spares */
	unsigned size_class = at_load(&ref->fast_class) - (unsigned)RC_FAST_FIRST;
	struct rc_reader *r = *reader = rc_reader_of(ref->ctx);
	struct rc_landing *v;

	if (unlikely(at_load(&p->nr_waiting)))
		return NULL;
	if (unlikely(!r || size_class >= RC_CACHE_CLASSES ||
		     (v = at_load(&r->spare[size_class])) == NULL))
		return other_landing(ref, reader);
	at_store(&r->spare[size_class], NULL);
	return v;
}

/*
 * Posts the READ of the value into v, under the thread's mark. Returns 1, or another number if it
 * was not posted. The caller has marked the header's place.
 */
static inline int post_marked(const struct rref *ref, struct rc_peer *p, struct rc_reader *r,
			      struct rc_landing *v)
{
	/* rc_reader_new has set the fields that never change. */
	struct rv_read *read = &r->read;
	struct rv_conn *conn;
	int posted = 0;

	read->addr = rc_remote(ref)->loc.addr;
	read->rkey = rc_remote(ref)->loc.rkey[p->kind];
	read->sge[0] = rc_landing_piece(v, rc_remote(ref)->loc.length, p->kind);
	/*
	 * The mark that the fence looks for. Pairs with the fence: it stores conn = NULL and then
	 * looks here. So this store has to be seen before conn is loaded. The fence makes that
	 * order, because it is rare.
	 */
	ra_asym_mark(&r->pinned, p);
	conn = at_load_sc(&p->conn);
	/*
	 * Looks again, behind the pin: the connection may be a later session's, in which this
	 * reference holds nothing. The fence fails the reference, which clears its fast mark. That
	 * comes before such a connection can be found.
	 */
	if (likely(conn != NULL) && likely(at_load(&ref->fast_class) != RC_FAST_NOT))
		posted = p->ops->post_reads(conn, read, 1);
	at_store_rel(&r->pinned, NULL);
	return posted;
}

/* Makes the view of what the READ brought, or goes the general way. status: the READ's. */
static inline int view_landed(struct rref *ref, int64_t timeout, struct rref_view **out,
			      struct rc_reader *r, struct rc_landing *v, int status)
{
	uint64_t length = rc_remote(ref)->loc.length;

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
 * Reads over a device whose driver may make system calls. These are cancellation points, under
 * locks of the driver's own.
 */
static __attribute__((noinline)) int
read_by_hardware(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx = ref->ctx;
	struct rc_peer *p = &ctx->peers[ref->owner];
	struct rc_in_flight *fl;
	struct rc_reader *r;
	struct rc_landing *v = fast_landing(ref, p, &r);
	int status = 0, done = 1;

	if (unlikely(!v))
		return rc_read_whole(ref, timeout, out);
	/* A missing flight is got under the lock, and at its end other reads may run. They use
	 * r->read too, so the flight comes first. */
	fl = take_flight(ctx, r);
	if (unlikely(!fl))
		return other_way(ref, timeout, out, v, 0);
	memset(&v->header, RC_UNREAD, RC_HEADER_BYTES); /* an operation may go on with it */
	r->read.cookie = rc_in_flight_begin(fl);
	int posted = post_marked(ref, p, r, v);

	if (unlikely(posted != 1))
		rc_in_flight_undo(fl);
	else if (unlikely(!rc_in_flight_wait(ctx, p, fl, &status)))
		done = rc_read_go_on(ref, &fl, v, timeout, out, &status);
	keep_flight(r, fl);
	if (unlikely(posted != 1))
		return other_way(ref, timeout, out, v, 0);
	if (likely(done == 1))
		return view_landed(ref, timeout, out, r, v, status);
	count(&r->reads, 1);
	return done;
}

/*
 * Does the rest of rref_to_here. ref->fast_class was loaded with acquire and is not RC_FAST_NOT.
 * Over shm only the device's first fetch (verbs/shm/read.c) and the general ways are cancellation
 * points.
 */
int rc_fast_read(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];
	struct rc_reader *r;
	struct rc_landing *v;

	if (unlikely(!p->reads_inline))
		return read_by_hardware(ref, timeout, out);
	v = fast_landing(ref, p, &r);
	if (unlikely(!v))
		return rc_read_whole(ref, timeout, out);
	v->header.nonce = 0; /* a READ that brought nothing must be seen as one */
	if (unlikely(post_marked(ref, p, r, v) != 1))
		return other_way(ref, timeout, out, v, 0);
	return view_landed(ref, timeout, out, r, v, r->read.status);
}
