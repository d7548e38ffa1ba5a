/* SPDX-License-Identifier: Apache-2.0 */
/* Names shared by the files of read/. */
#ifndef RC_READ_INTERNAL_H
#define RC_READ_INTERNAL_H

#include <endian.h>
#include <string.h>

#include "base/slow.h"
#include "core/base/locked.h"
#include "core/ctx.h"
#include "core/read/read.h"
#include "core/value/look.h"
#include "core/value/reader.h"

/* The state of a read that has begun. */
enum rc_read_begun {
	RC_READ_UNDER_WAY, /* posted; other threads may have ended it already */
	RC_READ_OVER, /* no device touches it any more: rc_read_done */
	RC_READ_PIECES, /* the rest is rc_split_start */
	RC_READ_WAITS /* the rest is rc_read_wait */
};

/* The strategy of a session's reads. The session's device decides it. */
struct rc_read_strategy {
	/* Begins a read that is prepared. The lock need not be held. */
	enum rc_read_begun (*begin)(struct rref_future *f, struct rc_peer *p);
	/* Goes on with f, the first read that waits. Returns false if it found no slot: it waits
	 * again. Called under the lock. */
	bool (*resume)(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn);
	/* Goes on with a payload's READ. Called under the lock, and may let go of it meanwhile. */
	void (*turn)(struct rref_future *f, struct rc_peer *p);
};

extern const struct rc_read_strategy rc_read_inline; /* inline.c */
extern const struct rc_read_strategy rc_read_posted; /* merge.c */

static inline const struct rc_read_strategy *rc_read_strategy(const struct rc_peer *p)
{
	return p->reads_inline ? &rc_read_inline : &rc_read_posted;
}

/* Counts READs that are about to be posted, or were not. The count goes with the READs. */
static inline void rc_count_in_flight(struct rref_ctx *ctx, int more)
{
	/* sc, as the look in rc_kick. Pairs with arm_devices: it sees the READ, or is seen. */
	at_add_sc(&ctx->sleep.reads_in_flight, (uint32_t)more);
}

/* merge.c */
/* Returns whether one READ brings it, header and all. */
bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg);
/*
 * Starts many reads of one owner, whose handles and locations are set; n is at most RC_BATCH_MAX.
 * Posts the reads of one message each with one doorbell.
 */
without_lock void rc_read_start_many(struct rc_peer *p, struct rref_future **f, unsigned n);
/* Goes on with a read of one message that could not be posted. posted: the result of post_reads. */
without_lock void rc_read_not_posted(struct rref_future *f, struct rc_peer *p, int posted);

/* at_once.c */
extern const struct rc_op_kind rc_read_at_once_kind; /* futures that were never under way */
/*
 * Reads, of any kind, over a device that copies. Returns false if the read has to wait. Otherwise
 * *out is complete. length: SIZE_MAX = the whole value.
 */
bool rc_read_at_once(struct rref *ref, size_t offset, size_t length, struct rref_future **out);

/* into.c */
/*
 * Reads into the program's memory, over a device that copies. Returns 1 with *got. Returns 0 for
 * the general way, or the reference's error, with its text.
 */
int rc_into_try(struct rref *ref, void *buf, size_t offset, size_t length, size_t *got);

/* fast.c */
/*
 * Returns 0 if the general way may find out why a READ failed. Nothing asks again after a refusal.
 * The refusal has ended the connection, and the answer would be the same. Then this returns the
 * reference's error, with its text.
 */
int rc_read_refused(struct rref *ref, int status);

/* result.c */
/* Makes the result of an operation that was claimed. No device touches it any more. */
void rc_read_fill_result(struct rref_future *f);
/*
 * Ends f if it has its view. Another thread may have put the view there, and stopped. Returns false
 * if it has none. f has a READ out.
 */
bool rc_read_has_view(struct rref_future *f);
/*
 * End an operation that no device touches any more. Make its result, if it still wants one. Give
 * back the engine's hold. rc_read_done leaves all but a good view to the holder of the lock.
 */
void rc_read_done(struct rref_future *f);
/* Does so for a plain read that is good. Returns false, and has done nothing, for any other. */
bool rc_read_plain_done(struct rref_future *f);
needs_lock void rc_read_done_locked(struct rref_future *f);

/* read.c */
/*
 * Reads f over a device that copies. Only the caller knows f, whose future is complete. Returns
 * false if it has to wait.
 */
bool rc_read_copied(struct rref_future *f, struct rc_peer *p);
bool rc_read_all_asked(const struct rref_future *f);
/*
 * Returns whether the session in which the reference was good is over. The caller looks behind the
 * pin, or under the lock. A thread may find the reference ready, and then a connection of a later
 * session. In that session the owner does not keep the value for it. The fence fails the reference
 * before such a connection can be found (conn is stored after it).
 */
bool rc_read_outlived(const struct rref_future *f);
/*
 * Sets the read back to its beginning. Bytes from before the break are read again too, so that the
 * header vouches for all of it.
 */
void rc_read_begin_again(struct rref_future *f);
/* Notes the first failure of f's READs. Does nothing if status is 0. */
void rc_read_note(struct rref_future *f, int status, int wc);
/* Prepares f, or notes its failure and returns false. */
bool rc_read_prepare(struct rref_future *f);
/* Goes on with a read that begin returned so, now or at the next release of the lock. */
void rc_read_go_soon(struct rref_future *f, struct rc_peer *p, enum rc_read_begun begun);
/* Leaves work on f to the next holder of the lock. */
void rc_read_later(struct rref_future *f, void (*run)(struct rref_ctx *ctx, struct rc_work *w));
/* Does so with the end of f: rc_read_over. */
void rc_read_over_soon(struct rref_future *f);
/* Goes on with a read that begin returned so. */
needs_lock void rc_read_go(struct rref_future *f, struct rc_peer *p, enum rc_read_begun begun);
/* Ends a read whose READs are all over, or has it begin again. */
needs_lock void rc_read_over(struct rref_future *f);
/* Returns whether post_reads failed for another reason than a missing slot or connection. */
bool rc_read_hard_failure(int posted);
void rc_read_count_posted(struct rref_ctx *ctx, int posted);
/* Waits for a connection or a slot, behind the reads that wait already. */
needs_lock void rc_read_wait(struct rref_future *f, struct rc_peer *p);
needs_lock void rc_read_wait_first(struct rref_future *f, struct rc_peer *p); /* before them */
needs_lock void rc_read_wait_over(struct rref_future *f, struct rc_peer *p); /* waits no more */
/* Ends the only READ of f, which brought no other operation's value. */
needs_lock void rc_read_finished(struct rref_future *f, int status, int wc);
/*
 * Ends a READ of f that went well. Waits for no lock. Returns whether the holder of the lock has
 * something to do.
 */
bool rc_read_ended_well(struct rref_future *f);
/* Does that for all that the READ of that cookie brought. */
bool rc_read_came(struct rref_ctx *ctx, uint64_t cookie);
/* Sets f up as a read whose only READ, into v, is at the device. */
void rc_read_taken(struct rref_future *f, struct rref *ref, struct rc_landing *v);

/* to_here.c */
/* Finds the way: post, wait, or fail. */
void rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline);
int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out); /* waits for it too */
int rc_read_into(struct rref *ref, void *buf, size_t offset, size_t length, int64_t timeout,
		 size_t *got);
size_t rc_read_copy(struct rref_view *v, void *buf, size_t offset, size_t length);
int rc_read_finish(struct rref_future *f, int64_t deadline, int64_t timeout,
		   struct rref_view **out);
int rc_read_cannot(const struct rref *ref, const void *out, const char *what);

/* Returns whether the read copies so much that it is not done under the lock. */
static inline bool rc_read_is_large(const struct rref_future *f)
{
	return min_of(f->length, f->loc.length) + RC_HEADER_BYTES > RB_SLOW_BYTES;
}

static inline bool rc_read_ready_here(const struct rref *ref)
{
	return ref->owned && at_load_acq(&ref->state) == RC_H_READY;
}

/* Makes a view of an own value that is ready: one atomic increment, and all share one struct. */
static inline struct rref_view *rc_read_alias(struct rref *ref)
{
	at_add(&ref->value->pins, 1);
	return &ref->value->view;
}
/*
 * Goes on with a fast read that takes long, whose READ is on its way into v. Returns 1 if it is
 * over, with its status. Otherwise returns as rc_read_whole; then *fl is another flight, and v is
 * no longer the caller's.
 */
int rc_read_go_on(struct rref *ref, struct rc_in_flight **fl, struct rc_landing *v, int64_t timeout,
		  struct rref_view **out, int *status);

/* split.c */
/*
 * Begins a read in pieces if all of it can be posted now. The lock need not be held. urgent: it
 * waits neither for room nor for its turn. Without a slot for all of it, it then comes to nothing.
 */
enum rc_read_begun rc_split_begin(struct rref_future *f, struct rc_peer *p, bool urgent);
/* Returns false if it has to wait for a slot. */
needs_lock bool rc_split_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn);
/* Gives back the room of a piece that has ended. f->outstanding still counts it. */
void rc_split_bytes_ended(struct rref_future *f, struct rc_peer *p);
/* Counts a piece that has ended at that connection, as in f->pieces_at. */
void rc_split_ended(struct rc_peer *p, uint32_t connection);
/* Has f post no further pieces. A piece of it is still counted. */
needs_lock void rc_split_give_up(struct rref_future *f, struct rc_peer *p);
/* Gives reads their turn as far as there is room, after pieces have ended. */
needs_lock void rc_split_go_on(struct rc_peer *p);
/*
 * Builds the next pieces into r, at most max, for any provider. Advances f->next and
 * f->header_asked.
 */
unsigned rc_split_build(struct rref_future *f, uint64_t max_msg, struct rv_read *r, unsigned max);
/* Takes back r[from..n), which could not be posted. */
void rc_split_unbuild(struct rref_future *f, const struct rv_read *r, unsigned from, unsigned n);

/* check.c */
/* Returns whether the header is of the value at the location. */
bool rc_read_header_fits(const struct rc_header *h, const struct rref *ref,
			 const struct rp_location *loc);
/* Compares a header of bytes with the location, whose length and type_hash the caller knows. */
static inline bool rc_read_fits(const struct rc_header *h, const struct rref *ref,
				const struct rp_location *loc, uint64_t length, uint64_t type_hash)
{
	uint32_t counts; /* number of segments, and behind it of references */

	memcpy(&counts, (const char *)h + offsetof(struct rc_header, nr_segments), sizeof(counts));
	return likely(le64toh(h->nonce) == loc->nonce && le32toh(h->state) == RC_HEADER_READY &&
		      le64toh(h->local_id) == ref->id.local_id &&
		      le32toh(h->created_on) == ref->id.created_on &&
		      le64toh(h->length) == length && le32toh(h->version) == loc->version &&
		      le64toh(h->type_hash) == type_hash && le32toh(counts) == 1);
}
/* Returns 0, or -errno with f->text. */
int rc_read_explain(struct rref_future *f);                 /* checks f->read_status */
int rc_read_check(struct rref_future *f);                   /* checks the header and the segments */
bool rc_read_is_good(const struct rref_future *f); /* the same, without a text */

/* again.c */
extern _Atomic bool rc_never_again; /* A test sets it: no read stands in for another. */

/* Returns the number of pieces for which a read that stands in for f counts. */
static inline uint32_t rc_read_pieces(const struct rref_future *f)
{
	return (uint32_t)(2 + f->length / RC_PIECE_MAX);
}

/* in_flight.c */
/* Begins a READ; a flight has one at a time. Returns the READ's cookie. */
static inline uint64_t rc_in_flight_begin(struct rc_in_flight *fl)
{
	rb_assert_is(at_load(&fl->state), ==, RC_FLIGHT_MINE);
	rb_assert(!((uintptr_t)fl & RC_FLIGHT_COOKIE));
	/* stored before the post, which publishes the flight to the pollers */
	at_store(&fl->state, RC_FLIGHT_POSTED);
	return RC_FLIGHT_COOKIE | (uintptr_t)fl;
}

static inline struct rc_in_flight *rc_in_flight_of(uint64_t cookie)
{
	return (struct rc_in_flight *)(uintptr_t)(cookie & ~RC_FLIGHT_COOKIE);
}

/* Ends a READ that its thread waits for. Returns false for one that its thread has left. */
static inline bool rc_in_flight_land(struct rc_in_flight *fl, int status)
{
	uint32_t state = RC_FLIGHT_POSTED;

	at_store(&fl->status, status);
	return likely(at_cas_ar(&fl->state, &state, RC_FLIGHT_LANDED));
}

/* Takes back a READ that was not posted. */
void rc_in_flight_undo(struct rc_in_flight *fl);
/*
 * Leaves a READ that takes long. Returns false if it has landed. Otherwise f, which is set up for
 * it, is the READ's operation from here on. Without an f, the READ's end gives back v, its landing
 * buffer. *fl is then another flight, NULL if there is no memory.
 */
bool rc_in_flight_leave(struct rref_ctx *ctx, struct rc_in_flight **fl, struct rref_future *f,
			struct rc_landing *v);
/* Ends the READ of a flight, which went well. Returns as rc_read_ended_well. */
bool rc_in_flight_ended_well(struct rref_ctx *ctx, struct rc_in_flight *fl);

#endif
