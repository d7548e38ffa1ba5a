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
#include <stdio.h>

#include "alloc/ra_asym.h"
#include "base/fast.h"
#include "core/base/clock.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/read/take_in.h"
#include "core/value/reader.h"
#include "core/value/value.h"

int rc_read_refused(struct rref *ref, int status)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];
	char name[160];

	if (status != -EACCES) {
		if (rc_read_lost(status))
			at_add(&ref->ctx->n.reads_again, 1);
		return 0;
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

/* Gives the buffer of a READ back that was not made or failed. Returns as rc_read_refused. */
static __attribute__((noinline, cold)) int not_read(struct rref *ref, struct rc_landing *v,
						    int status)
{
	rref_view_free(&v->view);
	return rc_read_refused(ref, status);
}

/* Goes the general way after a READ that was not made or failed, unless it was refused. */
static __attribute__((noinline, cold)) int other_way(struct rref *ref, int64_t timeout,
						     struct rref_view **out, struct rc_landing *v,
						     int status)
{
	int err = not_read(ref, v, status);

	return err ? err : rc_read_whole(ref, timeout, out);
}

/* Takes the thread's flight into the caller's hands. Returns NULL if there is no memory. */
static inline struct rc_in_flight *take_flight(struct rref_ctx *ctx, struct rc_reader *r)
{
	struct rc_in_flight *fl = r->flight;

	r->flight = NULL;
	return likely(fl != NULL) ? fl : rc_in_flight_take(ctx);
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
static __attribute__((noinline)) struct rc_landing *new_landing(const struct rref *ref)
{
	RB_NO_CANCEL;
	struct rc_landing *v;

	if (!rc_reader_get(ref->ctx))
		return NULL;
	return rc_landing_get(ref->ctx, rc_remote(ref)->loc.length, &v) ? NULL : v;
}

/*
 * Returns a buffer that this thread has kept behind the one at hand, or another. Returns NULL for a
 * look, which needs none.
 */
static __attribute__((noinline)) struct rc_landing *other_landing(const struct rref *ref,
								  struct rc_reader *r)
{
	unsigned fast_class = at_load(&ref->fast_class);
	struct rc_landing *v;

	if (fast_class == RC_FAST_LOOK)
		return NULL;
	v = r ? rc_kept_take(r, fast_class - (unsigned)RC_FAST_FIRST) : NULL;
	return v ? v : new_landing(ref);
}

/*
 * Takes the buffer that this thread gave back last, or another. Returns NULL for the general way:
 * reads wait for the owner, or there is no buffer. With a buffer comes a reader.
 */
static inline __attribute__((always_inline)) struct rc_landing *
fast_landing(const struct rref *ref, const struct rc_peer *p, struct rc_reader **reader)
{
	/* a large buffer's class is beyond all spares */
	unsigned size_class = at_load(&ref->fast_class) - (unsigned)RC_FAST_FIRST;
	struct rc_reader *r = *reader;
	struct rc_landing *v;

	if (unlikely(at_load(&p->nr_waiting)))
		return NULL;
	if (likely(r && size_class < RC_CACHE_CLASSES &&
		   (v = at_load(&r->spare[size_class])) != NULL)) {
		at_store(&r->spare[size_class], NULL);
		return v;
	}
	v = other_landing(ref, r);
	*reader = rc_reader_of(ref->ctx);
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
	conn = rc_pin(r, p);
	/*
	 * Looks again, behind the pin: the connection may be a later session's, in which this
	 * reference holds nothing. The fence fails the reference, which clears its fast mark. That
	 * comes before such a connection can be found.
	 */
	if (likely(conn != NULL) && likely(at_load(&ref->fast_class) != RC_FAST_NOT))
		posted = p->ops->post_reads(conn, read, 1);
	rc_unpin(r);
	return posted;
}

/* Makes the view of what the READ brought. Returns false if it is not the value. */
static inline bool view_landed(struct rref *ref, struct rc_reader *r, struct rc_landing *v,
			       int status)
{
	const struct rp_location *loc = &rc_remote(ref)->loc;
	uint64_t length = loc->length, hash = loc->type_hash;

	at_add_mine(&r->reads, 1);
	if (unlikely(status || !rc_read_fits(&v->header, ref, loc, length, hash)))
		return false;
	at_add_mine(&r->read_bytes, length);
	v->view.length = length;
	v->view.nr_segments = 1;
	v->type_hash = hash;
	return true;
}

/* Gives all back for a READ that was not posted, and goes the general way. */
static __attribute__((noinline, cold)) int not_posted(struct rref *ref, int64_t timeout,
						      struct rref_view **out,
						      struct rc_landing *v,
						      struct rc_in_flight *fl)
{
	rc_in_flight_undo(fl);
	keep_flight(rc_reader_of(ref->ctx), fl);
	return other_way(ref, timeout, out, v, 0);
}

/* Goes on with a READ that takes long. */
static __attribute__((noinline, cold)) int takes_long(struct rref *ref, int64_t timeout,
						      struct rref_view **out,
						      struct rc_landing *v,
						      struct rc_in_flight *fl)
{
	int status = 0, done = rc_read_go_on(ref, &fl, v, timeout, out, &status);
	struct rc_reader *r = rc_reader_of(ref->ctx);

	keep_flight(r, fl);
	if (done != 1) {
		at_add_mine(&r->reads, 1);
		return done;
	}
	if (!view_landed(ref, r, v, status))
		return other_way(ref, timeout, out, v, status);
	*out = &v->view;
	return 0;
}

/*
 * Reads over a device whose driver may make system calls. These are cancellation points, under
 * locks of the driver's own.
 */
int rc_fast_read_posted(struct rref *ref, int64_t timeout, struct rref_view **out,
			struct rc_peer *p)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx = ref->ctx;
	struct rc_reader *r = rc_reader_of(ctx);
	struct rc_landing *v = fast_landing(ref, p, &r);
	struct rc_in_flight *fl;
	int status;

	if (unlikely(!v))
		return rc_read_whole(ref, timeout, out);
	fl = take_flight(ctx, r);
	if (unlikely(!fl))
		return other_way(ref, timeout, out, v, 0);
	memset(&v->header, RC_UNREAD, RC_HEADER_BYTES); /* an operation may go on with it */
	r->read.cookie = rc_in_flight_begin(fl);
	if (unlikely(post_marked(ref, p, r, v) != 1))
		return not_posted(ref, timeout, out, v, fl);
	status = rc_in_flight_wait(ctx, p, fl);
	if (unlikely(status > 0))
		return takes_long(ref, timeout, out, v, fl);
	keep_flight(r, fl);
	if (unlikely(!view_landed(ref, r, v, status)))
		return other_way(ref, timeout, out, v, status);
	*out = &v->view;
	return 0;
}

#define AHEAD 4u /* references of a batch whose lines are fetched before their turn */

/* Fetches both lines of a later handle of a batch into the cache. */
static inline void fetch_ahead(struct rref *const *refs, size_t nr, size_t i)
{
	if (i + AHEAD < nr && refs[i + AHEAD]) {
		__builtin_prefetch(refs[i + AHEAD]);
		__builtin_prefetch((const char *)refs[i + AHEAD] + CACHE_LINE);
	}
}

/*
 * Reads over shm. Returns 1 with *out; 0 for the general way; or the reference's error, which has
 * its words.
 */
static inline __attribute__((always_inline)) int
copy_value(struct rref *ref, struct rc_peer *p, struct rc_reader *r, struct rref_view **out)
{
	struct rc_landing *v = fast_landing(ref, p, &r);

	if (unlikely(!v))
		return 0;
	v->header.nonce = 0; /* a READ that brought nothing must be seen as one */
	if (unlikely(post_marked(ref, p, r, v) != 1))
		return not_read(ref, v, 0);
	if (unlikely(!view_landed(ref, r, v, r->read.status)))
		return not_read(ref, v, r->read.status);
	*out = &v->view;
	return 1;
}

/* Looks at a large value where it lies. Returns NULL for the general way. */
static __attribute__((noinline)) struct rref_view *look_at_large(struct rref *ref)
{
	struct rref_view *v;

	return at_load(&ref->fast_class) == RC_FAST_LOOK &&
			       rc_read_look(ref, rc_look_bytes(ref->ctx), &v)
		       ? v
		       : NULL;
}

/* Does so, or goes the general way. */
static __attribute__((noinline)) int look_or_read(struct rref *ref, int64_t timeout,
						  struct rref_view **out)
{
	struct rref_view *v = look_at_large(ref);

	if (!v)
		return rc_read_whole(ref, timeout, out);
	*out = v;
	return 0;
}

int rc_fast_read_copied(struct rref *ref, int64_t timeout, struct rref_view **out,
			struct rc_peer *p)
{
	int done = copy_value(ref, p, rc_reader_of(ref->ctx), out);

	if (likely(done == 1))
		return 0;
	return done ? done : look_or_read(ref, timeout, out);
}

size_t rc_fast_many(struct rref_ctx *ctx, struct rref *const *refs, size_t nr,
		    struct rref_view **views, int *status)
{
	struct rc_reader *r = rc_reader_get(ctx);
	size_t i;

	for (i = 0; i < nr; i++) {
		struct rref *ref = refs[i];
		int done;

		fetch_ahead(refs, nr, i);
		if (unlikely(!ref || ref->ctx != ctx || !at_load_acq(&ref->fast_class) ||
			     !ctx->peers[ref->owner].reads_inline))
			break;
		done = copy_value(ref, &ctx->peers[ref->owner], r, &views[i]);
		if (unlikely(!done) && !(views[i] = look_at_large(ref)))
			break;
		status[i] = min_of(done, 0);
		if (unlikely(done < 0))
			views[i] = NULL;
	}
	return i;
}

/* Writes the error of a READ that was refused into f. The error has its words. */
static __attribute__((noinline, cold)) void own_fails(struct rref_future *f, const struct rref *ref,
						      int err)
{
	f->status = err;
	f->wc_status = -1;
	f->about = at_load_acq(&ref->state) == RC_H_FAILED ? ref->about : 0;
	snprintf(f->text, sizeof(f->text), "%s", rc_error_text());
}

bool rc_fast_begin(struct rref *ref, struct rref_future **out)
{
	struct rref_ctx *ctx = ref->ctx;
	struct rc_reader *r;
	bool here = rc_read_ready_here(ref);
	struct rref_view *v = NULL;
	struct rref_future *f;
	int done = 1;

	if (!RB_FAST(here ? !ctx->scopes
			  : at_load_acq(&ref->fast_class) && ctx->peers[ref->owner].reads_inline))
		return false;
	r = rc_reader_get(ctx);
	/* First: without a future the value would be read twice. */
	f = r ? rc_own_get(r) : NULL;
	if (unlikely(!f))
		return false;
	if (here)
		v = rc_read_alias(ref);
	else
		done = copy_value(ref, &ctx->peers[ref->owner], r, &v);
	if (unlikely(!done) && !(v = look_at_large(ref))) {
		rc_own_put(f);
		return false;
	}
	f->is = &rc_read_at_once_kind;
	f->peer = ref->owner;
	at_store(&f->view, v);
	at_store(&f->then_state, 0);
	at_store(&f->refs, 1);
	if (unlikely(done < 0))
		own_fails(f, ref, done);
	*out = f;
	rc_loop_wake(ctx);
	return true;
}

/*
 * Begins a read that goes the general way from the post on. Its deadline, its end from outside, and
 * the quarantine of its landing block are those of any other. Only the way to the post is short,
 * and the end if all goes well (rc_read_plain_done). v is given back if there is no slot.
 */
static inline bool begin_into(struct rref *ref, struct rc_peer *p, struct rc_reader *r,
			      struct rc_landing *v, int64_t timeout, struct rref_future **out)
{
	struct rref_ctx *ctx = ref->ctx;
	struct rref_future *f;
	int posted;

	if (unlikely(rc_op_get_now(ctx, &rc_read_kind, &f))) {
		rref_view_free(&v->view);
		return false;
	}
	memset(&v->header, RC_UNREAD, RC_HEADER_BYTES);
	rc_read_taken(f, ref, v);
	f->plain = true;
	at_store(&f->deadline, rc_deadline(ctx, timeout));
	rc_op_begin(f);
	*out = f;
	r->read.cookie = rc_op_token(f);
	rc_count_in_flight(ctx, 1);
	posted = post_marked(ref, p, r, v);
	if (likely(posted == 1)) {
		at_add_mine(&r->reads, 1);
	} else {
		rc_count_in_flight(ctx, -1);
		rc_read_not_posted(f, p, posted);
	}
	/* The waiter may come late or never: the poller has to be awake for it. */
	rc_kick(ctx);
	return true;
}

bool rc_fast_begin_posted(struct rref *ref, int64_t timeout, struct rref_future **out)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];

	if (!RB_FAST(at_load_acq(&ref->fast_class) && !p->reads_inline))
		return false;
	RB_NO_CANCEL;
	struct rc_reader *r = rc_reader_of(ref->ctx);
	struct rc_landing *v = fast_landing(ref, p, &r);

	return likely(v) && begin_into(ref, p, r, v, timeout, out);
}
