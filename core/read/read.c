/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads: from a known location to bytes here, by one-sided READs.
 *
 * A value that fits one message is read with its header by a single READ into a single landing
 * piece. Larger values, and ranges, are read in pieces (read/split.c). Their header comes last,
 * behind the pieces on the same connection. READs on a reliable connection keep their order, so the
 * header checks all that came before.
 *
 * The header's landing place is filled with ones before posting. On SoftRoCE a garbled answer was
 * seen to end a READ with success and no data; the ones show it. A header with another nonce, or a
 * scrubbed one, is -ESTALE, never wrong bytes.
 *
 * A value that wraps the program's memory has its header elsewhere. It is read in pieces too, with
 * keys of its own: the payload first, the header behind it. One doorbell serves both if the payload
 * is one message.
 *
 * An operation belongs first to the thread that starts it. Once pieces are at a device that reports
 * by events, only the holder of the progress lock works on it.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"

static struct rc_peer *read_peer_of(const struct rref_future *f)
{
	return &f->ctx->peers[f->peer];
}

bool rc_read_all_asked(const struct rref_future *f)
{
	return f->header_asked && f->next == f->length;
}

bool rc_read_outlived(const struct rref_future *f)
{
	return f->handle && at_load_acq(&f->handle->state) == RC_H_FAILED;
}

/*
 * Returns whether the session in which its location was learned still stands. A lost READ may then
 * be posted again, over another connection.
 */
static needs_lock bool may_go_again(const struct rref_future *f, const struct rc_peer *p)
{
	if (f->fetch)
		return rc_same_session(f->ctx, p->rank, f->fetch->epoch);
	return rc_state_stands(p->state) && !rc_read_outlived(f);
}

void rc_read_begin_again(struct rref_future *f)
{
	f->next = 0;
	f->header_asked = false;
	f->again = false;
	memset(&f->landing->header, RC_UNREAD, RC_HEADER_BYTES);
	at_add(&f->ctx->n.reads_again, 1);
}

void rc_read_note(struct rref_future *f, int status, int wc)
{
	if (status && !f->read_status) {
		if (status == -EACCES)
			at_add(&read_peer_of(f)->resume.refused, 1);
		f->read_status = status;
		f->read_wc = wc;
	}
}

void rc_read_count_posted(struct rref_ctx *ctx, int posted)
{
	if (posted > 0) {
		at_add(&ctx->n.reads, (unsigned)posted);
		at_add(&ctx->n.doorbells, 1);
	}
}

bool rc_read_hard_failure(int posted)
{
	return posted < 0 && posted != -EAGAIN && posted != -ENOTCONN;
}

void rc_read_wait(struct rref_future *f, struct rc_peer *p)
{
	struct rref_ctx *ctx = f->ctx;
	/* Checked under the lock: after the shutdown's last sweep nobody would end a read that
	 * begins to wait. */
	int err = rc_enter(ctx);

	rc_assert_locked(f->ctx);
	/* An offer or hold of a session that is over is gone. For the other reads a new session is
	 * begun. */
	if (!err && rc_read_outlived(f))
		err = -ENOTCONN;
	if (!err && f->fetch && !rc_same_session(ctx, p->rank, f->fetch->epoch))
		err = -ENOTCONN;
	if (!err)
		err = rc_peer_want(ctx, p);
	if (err) {
		rc_read_note(f, err, -1);
		rc_read_done_locked(f);
		return;
	}
	list_add_tail(&p->waiting, &f->node);
	at_add(&p->nr_waiting, 1);
	/* The connection may have come up, or slots free, between the look without the lock and
	 * now. */
	if (at_load(&p->conn) && !f->retried) {
		f->retried = true;
		rc_read_pump(ctx, p);
	}
}

/*
 * Checks the bounds, gets the landing buffer, and marks the header's place before anything is
 * posted. The mark tells whether a header came.
 */
bool rc_read_prepare(struct rref_future *f)
{
	uint64_t end = f->whole ? rc_extent(f->loc.length, f->loc.nr_segments) : f->loc.length;
	int err = 0;

	f->next = 0;
	f->header_asked = false;
	f->retried = f->again = f->alone = false;
	f->offset = min_of(f->offset, end);
	f->length = min_of(f->length, end - f->offset);
	/* The location came over the wire: its length is bounded here, before memory is taken for
	 * it. */
	if (f->loc.length > RC_VALUE_MAX || end > RC_VALUE_MAX ||
	    (f->loc.length && !f->loc.nr_segments))
		err = -EPROTO;
	else if (!f->loc.nonce)
		err = -EPERM;
	else if ((err = rc_landing_get(f->ctx, f->length, &f->landing)))
		snprintf(f->text, sizeof(f->text), "%s", rc_error_text());
	else
		memset(&f->landing->header, RC_UNREAD, RC_HEADER_BYTES);
	rc_read_note(f, err, -1);
	return !err;
}

/* Begins a read in pieces. Returns false if it has to wait. */
static needs_lock bool begin_pieces(struct rref_future *f, struct rc_peer *p)
{
	struct rv_conn *conn = at_load(&p->conn);

	return conn && at_load(&p->nr_waiting) == 0 && !rc_read_outlived(f) &&
	       rc_split_start(f, p, conn);
}

void rc_read_go(struct rref_future *f, struct rc_peer *p, enum rc_read_begun begun)
{
	rc_assert_locked(f->ctx);
	if (begun == RC_READ_OVER)
		rc_read_done_locked(f);
	else if (begun == RC_READ_WAITS || (begun == RC_READ_PIECES && !begin_pieces(f, p)))
		rc_read_wait(f, p);
}

/* Begins a read whose handle and location are set. The lock need not be held. */
static enum rc_read_begun begin_read(struct rref_future *f, struct rc_peer *p)
{
	return rc_read_prepare(f) ? rc_read_strategy(p)->begin(f, p) : RC_READ_OVER;
}

void rc_read_start_locked(struct rref_future *f)
{
	struct rc_peer *p = read_peer_of(f);

	rc_assert_locked(f->ctx);
	rc_read_go(f, p, begin_read(f, p));
}

void rc_read_start(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;
	struct rc_peer *p = read_peer_of(f);
	enum rc_read_begun begun = begin_read(f, p);

	if (begun == RC_READ_OVER) {
		rc_read_done(f);
	} else if (begun != RC_READ_UNDER_WAY) {
		rc_lock(ctx);
		rc_read_go(f, p, begun);
		rc_unlock(ctx);
	}
}

/*
 * Sets f up as if it had been started here and all of it were at the device. Called under the lock,
 * or while nobody else knows f.
 */
void rc_read_taken(struct rref_future *f, struct rref *ref, struct rc_landing *v)
{
	f->peer = ref->owner;
	f->handle = rref_dup(ref);
	f->loc = rc_remote(ref)->loc;
	f->landing = v;
	f->offset = 0;
	f->length = f->next = f->loc.length;
	f->whole = f->header_asked = true;
	f->retried = f->again = f->alone = false;
	f->outstanding = 1;
	f->merged_next = NULL;
}

void rc_read_wait_first(struct rref_future *f, struct rc_peer *p)
{
	struct list *n = &f->node;

	rc_assert_locked(f->ctx);
	n->next = p->waiting.next;
	n->prev = &p->waiting;
	p->waiting.next->prev = n;
	p->waiting.next = n;
	at_add(&p->nr_waiting, 1);
}

void rc_read_wait_over(struct rref_future *f, struct rc_peer *p)
{
	rc_assert_locked(f->ctx);
	list_del(&f->node);
	at_sub(&p->nr_waiting, 1);
}

/* Starts the reads that wait for p, first come first served, until one finds no slot. */
void rc_read_pump(struct rref_ctx *ctx, struct rc_peer *p)
{
	const struct rc_read_strategy *reads = rc_read_strategy(p);
	struct rv_conn *conn = at_load(&p->conn); /* stable: the fence holds the lock too */

	rc_assert_locked(ctx);
	while (conn && !list_empty(&p->waiting)) {
		struct rref_future *f = container_of(p->waiting.next, struct rref_future, node);

		if (!rc_op_wanted(f)) {
			/* timed out or cancelled while it waited: nothing is in flight */
			rc_read_wait_over(f, p);
			rc_read_done_locked(f);
		} else if (!reads->resume(f, p, conn)) {
			return;
		}
	}
}

/* Notes how a READ of f's ended. in_run: the READ brought other values too. */
static void note_end(struct rref_future *f, int status, int wc, bool in_run)
{
	bool lost = rc_read_lost(status);

	if (status && in_run && !lost)
		f->alone = lost = true;
	f->again |= lost;
	if (!lost)
		rc_read_note(f, status, wc);
}

/* Ends a READ of f's. in_run: as note_end. */
static needs_lock void ended(struct rref_future *f, int status, int wc, bool in_run)
{
	struct rc_peer *p = read_peer_of(f);

	f->outstanding--;
	note_end(f, status, wc, in_run);
	bool wanted = rc_op_wanted(f);

	if (f->pieces_at && rc_split_finished(f, p))
		return; /* further READs of f are at the device */
	if (f->outstanding)
		return;
	/* No device works on f any more. */
	if (f->again && !f->read_status && wanted && may_go_again(f, p)) {
		rc_read_begin_again(f);
		f->retried = true; /* the caller pumps */
		rc_read_wait(f, p);
		return;
	}
	if (f->again)
		rc_read_note(f, -ECONNRESET, wc);
	rc_read_done_locked(f);
}

void rc_read_finished(struct rref_future *f, int status, int wc)
{
	rc_assert_locked(f->ctx);
	at_sub(&f->ctx->sleep.reads_in_flight, 1);
	ended(f, status, wc, false);
}

void rc_read_event(struct rref_ctx *ctx, uint64_t cookie, int status, int wc)
{
	struct rref_future *f = rc_op_find(ctx, cookie), *next;

	rc_assert_locked(ctx);
	at_sub(&ctx->sleep.reads_in_flight, 1);
	if (!f || !f->is->reads || !f->outstanding) {
		at_add(&ctx->n.dropped, 1);
		return;
	}
	struct rc_peer *p = read_peer_of(f);

	for (bool in_run = f->merged_next; f; f = next) {
		next = f->merged_next; /* read first: f may be over behind it */
		f->merged_next = NULL;
		ended(f, status, wc, in_run);
	}
	rc_split_go_on(p);
}

/*
 * Makes the result of an operation that no device touches any more. Returns false if nobody wants
 * it. Otherwise f is claimed.
 */
static bool make_result(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;
	int status = f->read_status;

	if (!rc_op_claim(f)) {
		at_sub(&ctx->n.quarantined, 1);
		return false;
	}
	if (!status && !rc_read_all_asked(f))
		status = -ECANCELED;
	f->status = status ? rc_read_explain(f) : rc_read_check(f);
	f->wc_status = f->read_wc;
	if (f->status)
		return true;
	f->landing->view.length = f->whole ? f->loc.length : f->length;
	f->landing->view.nr_segments = f->loc.nr_segments;
	f->landing->type_hash = f->loc.type_hash;
	if (unlikely(f->whole && f->loc.nr_refs))
		rc_view_hold(f->landing, f->handle, f->loc.nr_refs);
	f->view = &f->landing->view;
	f->landing = NULL;
	at_add(&ctx->n.read_bytes, f->view->length);
	return true;
}

void rc_read_done(struct rref_future *f)
{
	if (make_result(f))
		rc_op_finish(f);
	rc_op_put(f);
}

void rc_read_done_locked(struct rref_future *f)
{
	rc_assert_locked(f->ctx);
	if (make_result(f))
		rc_op_finish_locked(f);
	if (f->is->over)
		f->is->over(f);
	rc_op_put(f);
}

/*
 * Begins a payload's READ, or over shm goes on with it: f->fetch, peer and loc are set. The READ
 * ends in the kind's over(). The buffer is got without the lock, since a large one may have to be
 * registered first.
 */
void rc_read_turn(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;
	struct rc_peer *p = read_peer_of(f);

	rc_assert_locked(f->ctx);
	if (!f->landing) {
		rc_unlock_bare(ctx);
		rc_read_prepare(f);
		rc_lock(ctx);
	}
	/* The epoch is checked under the lock. A connection of another session is never used for
	 * it. */
	if (!rc_same_session(ctx, p->rank, f->fetch->epoch))
		rc_read_note(f, -ENOTCONN, -1);
	if (f->read_status || !rc_op_wanted(f))
		rc_read_done_locked(f);
	else
		rc_read_strategy(p)->turn(f, p);
}

void rc_read_fail(struct rref_future *f, int status)
{
	rc_assert_locked(f->ctx);
	rc_read_note(f, status, -1);
	if (!f->outstanding)
		rc_read_done_locked(f);
}
