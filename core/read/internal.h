/* SPDX-License-Identifier: Apache-2.0 */
/* Names shared by the files of read/. */
#ifndef RC_READ_INTERNAL_H
#define RC_READ_INTERNAL_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* read.c */
/* Returns whether one READ brings it, header and all. */
bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg);
bool rc_read_all_asked(const struct rref_future *f);
/* Returns whether post_reads failed for another reason than a missing slot or connection. */
bool rc_read_hard_failure(int posted);
void rc_read_count_posted(struct rref_ctx *ctx, int posted);
/* Waits for a connection or a slot. */
void rc_read_wait(struct rref_future *f, struct rc_peer *p, bool locked);
void rc_read_start_many(struct rref_ctx *ctx, struct rc_peer *p, struct rref_future **f,
			unsigned n);
/* Ends the only READ of f, which brought no other operation's value. */
needs_lock void rc_read_ended(struct rref_future *f, int status, int wc);
/* Sets f up as a read whose only READ, into v, is at the device. */
void rc_read_taken(struct rref_future *f, struct rref *ref, struct rc_landing *v);

/* to_here.c */
/* Finds the way: post, wait, or fail. */
int rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline);
int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out); /* waits for it too */
int rc_read_range(struct rref *ref, size_t offset, size_t length, int64_t timeout,
		  struct rref_view **out);
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
 * Goes on with a quick read that takes long, whose READ is on its way into v. Returns 1 if it is
 * over, with its status. Otherwise returns as rc_read_whole; then *fl is another flight, and v is
 * no longer the caller's.
 */
int rc_read_go_on(struct rref *ref, struct rc_in_flight **fl, struct rc_landing *v, int64_t timeout,
		  struct rref_view **out, int *status);

/* merge.c */
/* Reads of one message each, as few READs: r[i] brings f[first[i]] to before f[first[i + 1]]. */
struct rc_merge {
	unsigned nr, first[RC_BATCH_MAX + 1];
	struct rv_read r[RC_BATCH_MAX];
	/* an extra entry: `more` of the last may point behind its own */
	struct rv_sge sge[(RC_BATCH_MAX + 1) * RV_READ_SGE];
};
/*
 * Orders f[0..n), and sets each up as an operation that is at a device. Each f is prepared and of
 * p; n is at most RC_BATCH_MAX.
 */
void rc_merge_build(const struct rc_peer *p, struct rref_future **f, unsigned n,
		    struct rc_merge *runs);
void rc_merge_undo(struct rref_future *f); /* undoes it: the READ was not posted */

/* split.c */
/* all */
/* Returns false if it has to wait for a slot. */
needs_lock bool rc_split_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn);
/* Returns whether the read goes on. f->outstanding counts the end already. */
needs_lock bool rc_split_ended(struct rref_future *f, struct rc_peer *p);
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
