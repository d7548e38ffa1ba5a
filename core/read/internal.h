/* SPDX-License-Identifier: Apache-2.0 */
/* Names shared by the files of read/. */
#ifndef RC_READ_INTERNAL_H
#define RC_READ_INTERNAL_H

#include "core/base/locked.h"
#include "core/ctx.h"

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

/* merge.c */
/* Returns whether one READ brings it, header and all. */
bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg);
/*
 * Starts many reads of one owner, whose handles and locations are set; n is at most RC_BATCH_MAX.
 * Posts the reads of one message each with one doorbell.
 */
without_lock void rc_read_start_many(struct rc_peer *p, struct rref_future **f, unsigned n);

/* read.c */
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
/* Goes on with a read that begin returned so. */
needs_lock void rc_read_go(struct rref_future *f, struct rc_peer *p, enum rc_read_begun begun);
/*
 * End an operation that no device touches any more. Make its result, if it still wants one. Give
 * back the engine's hold.
 */
without_lock void rc_read_done(struct rref_future *f);
needs_lock void rc_read_done_locked(struct rref_future *f);
/* Returns whether post_reads failed for another reason than a missing slot or connection. */
bool rc_read_hard_failure(int posted);
void rc_read_count_posted(struct rref_ctx *ctx, int posted);
/* Waits for a connection or a slot, behind the reads that wait already. */
needs_lock void rc_read_wait(struct rref_future *f, struct rc_peer *p);
needs_lock void rc_read_wait_first(struct rref_future *f, struct rc_peer *p); /* before them */
needs_lock void rc_read_wait_over(struct rref_future *f, struct rc_peer *p); /* waits no more */
/* Ends the only READ of f, which brought no other operation's value. */
needs_lock void rc_read_finished(struct rref_future *f, int status, int wc);
/* Sets f up as a read whose only READ, into v, is at the device. */
void rc_read_taken(struct rref_future *f, struct rref *ref, struct rc_landing *v);

/* to_here.c */
/* Finds the way: post, wait, or fail. */
int rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline);
int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out); /* waits for it too */
int rc_read_into(struct rref *ref, void *buf, size_t offset, size_t length, int64_t timeout,
		 size_t *got);
size_t rc_read_copy(struct rref_view *v, void *buf, size_t offset, size_t length);
int rc_read_finish(struct rref_future *f, int64_t deadline, int64_t timeout,
		   struct rref_view **out);
int rc_read_cannot(const struct rref *ref, const void *out, const char *what);

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
/* all */
/* Returns false if it has to wait for a slot. */
needs_lock bool rc_split_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn);
/* Returns whether the read goes on. f->outstanding counts the end already. */
needs_lock bool rc_split_finished(struct rref_future *f, struct rc_peer *p);
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
/* Returns 0, or -errno with f->text. */
int rc_read_explain(struct rref_future *f);                 /* checks f->read_status */
int rc_read_check(struct rref_future *f);                   /* checks the header and the segments */

/* in_flight.c */
/* Returns a flight, NULL if there is no memory. Callbacks may run meanwhile. */
struct rc_in_flight *rc_in_flight_get(struct rref_ctx *ctx);
/* Begins a READ; a flight has one at a time. Returns the READ's cookie. */
uint64_t rc_in_flight_begin(struct rc_in_flight *fl);
/* Takes back a READ that was not posted. */
void rc_in_flight_undo(struct rc_in_flight *fl);
bool rc_in_flight_landed(struct rc_in_flight *fl, int *status);
/*
 * Returns true if the READ is over, with its status. Returns false if it takes long. Callbacks may
 * run meanwhile.
 */
bool rc_in_flight_wait(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_in_flight *fl,
		       int *status);
/*
 * Leaves a READ that takes long. Returns false if it is over. Otherwise f is the READ's operation
 * from here on. Without an f, the READ's end gives back v, its landing buffer. *fl is then another
 * flight, NULL if there is no memory.
 */
needs_lock bool rc_in_flight_leave(struct rref_ctx *ctx, struct rc_in_flight **fl,
				   struct rref_future *f, struct rc_landing *v, int *status);

#endif
