/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of read/. */
#ifndef RC_READ_INTERNAL_H
#define RC_READ_INTERNAL_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* read.c */
/* one READ brings it, header and all */
bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg);
bool rc_read_all_asked(const struct rref_future *f);
/* of post_reads: not for want of a slot or a connection */
bool rc_read_hard_failure(int posted);
void rc_read_count_posted(struct rref_ctx *ctx, int posted);
/* for a connection, or a slot */
void rc_read_wait(struct rref_future *f, struct rc_peer *p, bool locked);
void rc_read_start_many(struct rref_ctx *ctx, struct rc_peer *p, struct rref_future **f,
			unsigned n);
/* the only READ of f's, which brought no other's value */
needs_lock void rc_read_ended(struct rref_future *f, int status, int wc);
/* f is such a read, or another thread's */
void rc_read_taken(struct rref_future *f, struct rref *ref, struct rc_landing *v);

/* to_here.c */
/* finds the way: post, wait, or fail */
int rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline);
int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out); /* and waits for it */
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
 * A quick read that takes long, whose READ is on its way into v: 1, it is over, with its status.
 * Else as rc_read_whole; *fl is another flight then, and v is not the caller's any more.
 */
int rc_read_go_on(struct rref *ref, struct rc_in_flight **fl, struct rc_landing *v, int64_t timeout,
		  struct rref_view **out, int *status);

/* merge.c */
/*
 * reads of one message each, as few READs: f[first[i]] to before f[first[i + 1]] are brought by
 * r[i].
 */
struct rc_merge {
	unsigned nr, first[RC_BATCH_MAX + 1];
	struct rv_read r[RC_BATCH_MAX];
	/* one more: `more` of the last may point behind what it has */
	struct rv_sge sge[(RC_BATCH_MAX + 1) * RV_READ_SGE];
};
/*
 * Orders f[0..n), and sets each up as one that is at a device. f: prepared, of p; n up to
 * RC_BATCH_MAX.
 */
void rc_merge_build(const struct rc_peer *p, struct rref_future **f, unsigned n,
		    struct rc_merge *runs);
void rc_merge_undo(struct rref_future *f); /* it is not: its READ was not posted */

/* split.c */
/* all */
/* false: it has to wait for a slot */
needs_lock bool rc_split_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn);
/* of which f->outstanding tells already; whether it goes on */
needs_lock bool rc_split_ended(struct rref_future *f, struct rc_peer *p);
/* pieces have ended: those have their turn for which there is room */
needs_lock void rc_split_go_on(struct rc_peer *p);
/* Any provider's. The next pieces, at most max, into r; advances f->next and f->header_asked. */
unsigned rc_split_build(struct rref_future *f, uint64_t max_msg, struct rv_read *r, unsigned max);
/* Takes that back for r[from..n), which could not be posted. */
void rc_split_unbuild(struct rref_future *f, const struct rv_read *r, unsigned from, unsigned n);

/* check.c */
/* 0, or -errno with f->text */
int rc_read_explain(struct rref_future *f);                 /* of f->read_status */
int rc_read_check(struct rref_future *f);                   /* of the header, and of the segments */

/* in_flight.c */
/*
 * read/in_flight.c: of a thread, for one READ at a time. begin: the READ's cookie; undo: it was not
 * posted. wait: true, it is over, with the READ's status; false, it takes long. leave: false, it is
 * over; true, f is the READ's operation from here on, or without one v, its landing buffer, is
 * given back when it ends; and *fl is another flight, NULL if there is no memory.
 */
/* NULL: no memory. Callbacks may run meanwhile */
struct rc_in_flight *rc_in_flight_get(struct rref_ctx *ctx);
uint64_t rc_in_flight_begin(struct rc_in_flight *fl);
void rc_in_flight_undo(struct rc_in_flight *fl);
bool rc_in_flight_landed(struct rc_in_flight *fl, int *status);
/* callbacks may run */
bool rc_in_flight_wait(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_in_flight *fl,
		       int *status);
needs_lock bool rc_in_flight_leave(struct rref_ctx *ctx, struct rc_in_flight **fl,
				   struct rref_future *f, struct rc_landing *v, int *status);

#endif
