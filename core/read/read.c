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
 * An operation belongs first to the thread that starts it. From the post on, READs that end well
 * count f->outstanding down, on any thread and without the lock. The thread that makes it 0 has the
 * read, and ends it. Some reads it leaves to the holder of the lock. These have to begin again,
 * have failed, or bring a payload.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/reader.h"

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
	f->again = f->plain = false;
	f->pieces_at = 0; /* all of its pieces are back */
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
	struct rc_reader *r = rc_reader_of(ctx);

	if (likely(r != NULL)) {
		rc_reader_count(r, posted);
	} else if (posted > 0) {
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
	rc_peer_watch(ctx, p);
	/* sc. Pairs with rc_take_go_on. The connection may have come up, or slots free,
	 * between the look without the lock and now. */
	at_add_sc(&p->nr_waiting, 1);
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

static needs_lock void go_later(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, read_work);
	struct rc_peer *p = read_peer_of(f);

	(void)ctx;
	if (!rc_op_wanted(f))
		rc_read_done_locked(f);
	else if (p->reads_inline || rc_read_is_single(f, p->max_msg))
		rc_read_go(f, p, RC_READ_WAITS);
	else
		rc_read_go(f, p, RC_READ_PIECES);
}

void rc_read_later(struct rref_future *f, void (*run)(struct rref_ctx *ctx, struct rc_work *w))
{
	struct rref_ctx *ctx = f->ctx;

	f->read_work.run = run;
	rc_work_push(ctx, &f->read_work);
	if (rc_trylock(ctx))
		rc_unlock(ctx);
	else
		rc_kick(ctx);
}

void rc_read_go_soon(struct rref_future *f, struct rc_peer *p, enum rc_read_begun begun)
{
	struct rref_ctx *ctx = f->ctx;

	/* The lock's holder may stand still. */
	if (!rc_trylock(ctx)) {
		rc_read_later(f, go_later);
		return;
	}
	rc_work_run_pushed(ctx); /* reads that came before */
	rc_read_go(f, p, begun);
	rc_unlock(ctx);
}

/* Begins a read whose handle and location are set. The lock need not be held. */
static enum rc_read_begun begin_read(struct rref_future *f, struct rc_peer *p)
{
	return rc_read_prepare(f) ? rc_read_strategy(p)->begin(f, p) : RC_READ_OVER;
}

/* Starts a large read. Gets its memory without the lock: a region may have to be registered. */
static needs_lock void start_large(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, work);
	struct rc_peer *p = read_peer_of(f);
	bool ready;

	rc_unlock_bare(ctx);
	ready = rc_read_prepare(f);
	rc_lock(ctx);
	if (!ready || !rc_op_wanted(f))
		rc_read_done_locked(f);
	else if (p->reads_inline)
		rc_read_wait(f, p); /* goes on in turns */
	else
		rc_read_go(f, p, rc_read_strategy(p)->begin(f, p));
}

void rc_read_start_locked(struct rref_future *f)
{
	struct rc_peer *p = read_peer_of(f);

	rc_assert_locked(f->ctx);
	if (!rc_read_is_large(f)) {
		rc_read_go(f, p, begin_read(f, p));
		return;
	}
	f->work.run = start_large;
	rc_defer(f->ctx, &f->work);
}

void rc_read_start(struct rref_future *f)
{
	struct rc_peer *p = read_peer_of(f);
	enum rc_read_begun begun = begin_read(f, p);

	if (begun == RC_READ_OVER)
		rc_read_done(f);
	else if (begun != RC_READ_UNDER_WAY)
		rc_read_go_soon(f, p, begun);
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
	at_store(&f->outstanding, 1);
	at_store_rel(&f->posted, true);
	f->merged_next = NULL;
}

void rc_read_wait_first(struct rref_future *f, struct rc_peer *p)
{
	rc_assert_locked(f->ctx);
	list_add(&p->waiting, &f->node);
	at_add_sc(&p->nr_waiting, 1); /* as above */
	rc_peer_watch(f->ctx, p);
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
	if (!conn || list_empty(&p->waiting))
		return;
	/* sc. Pairs with rc_take_go_on. A read leaves the list while it looks for a
	 * slot. An end that comes meanwhile has the reads go on. */
	at_add_sc(&p->nr_waiting, 1);
	while (!list_empty(&p->waiting)) {
		struct rref_future *f = container_of(p->waiting.next, struct rref_future, node);

		if (!rc_op_wanted(f)) {
			/* timed out or cancelled while it waited: nothing is in flight */
			rc_read_wait_over(f, p);
			rc_read_done_locked(f);
		} else if (!reads->resume(f, p, conn)) {
			break;
		}
	}
	at_sub(&p->nr_waiting, 1);
}

/* Notes how a READ of f's ended. in_run: the READ brought other values too. */
static void note_end(struct rref_future *f, int status, int wc, bool in_run)
{
	bool lost = rc_read_lost(status);

	if (status && in_run && !lost)
		f->alone = lost = true;
	f->again |= lost;
	if (lost)
		f->read_wc = wc;
	else
		rc_read_note(f, status, wc);
}

void rc_read_over(struct rref_future *f)
{
	struct rc_peer *p = read_peer_of(f);

	rc_assert_locked(f->ctx);
	if (f->again && !f->stands_for && !f->read_status && rc_op_wanted(f) &&
	    may_go_again(f, p)) {
		rc_read_begin_again(f);
		f->retried = true; /* the caller pumps */
		rc_read_wait(f, p);
		return;
	}
	if (f->again)
		rc_read_note(f, -ECONNRESET, f->read_wc);
	rc_read_done_locked(f);
}

/* Counts a READ of f's that is over. Returns whether no other is under way, and no turn to come. */
static bool one_fewer(struct rref_future *f, struct rc_peer *p)
{
	uint32_t pieces_at = f->pieces_at;
	bool last;

	if (!pieces_at)
		return at_sub_ar(&f->outstanding, 1) == 1;
	rc_split_bytes_ended(f, p);
	last = at_sub_ar(&f->outstanding, 1) == 1;
	/* Comes last. Pairs with rc_split_go_on: no piece is out, so the read may leave. f may be
	 * another thread's by now. */
	rc_split_ended(p, pieces_at);
	return last;
}

/* Ends a READ of f's. in_run: as note_end. */
static needs_lock void read_ended(struct rref_future *f, int status, int wc, bool in_run)
{
	struct rc_peer *p = read_peer_of(f);

	note_end(f, status, wc, in_run);
	if (f->pieces_at && (f->again || f->read_status || !rc_op_wanted(f)))
		rc_split_give_up(f, p);
	if (one_fewer(f, p))
		rc_read_over(f);
}

static needs_lock void over_later(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, read_work);
	struct rc_peer *p = read_peer_of(f);

	rc_read_over(f);
	rc_read_pump(ctx, p);
}

bool rc_read_ended_well(struct rref_future *f)
{
	if (!one_fewer(f, read_peer_of(f)))
		return false;
	if (likely(!f->again && !f->read_status && !f->is->over)) {
		rc_read_done(f);
		return false;
	}
	f->read_work.run = over_later;
	rc_work_push(f->ctx, &f->read_work);
	return true;
}

void rc_read_over_soon(struct rref_future *f)
{
	rc_read_later(f, over_later);
}

void rc_read_finished(struct rref_future *f, int status, int wc)
{
	rc_assert_locked(f->ctx);
	at_sub(&f->ctx->sleep.reads_in_flight, 1);
	read_ended(f, status, wc, false);
}

/* Finds the operation whose READ has ended. Returns NULL if it is no more. */
static struct rref_future *read_of(struct rref_ctx *ctx, uint64_t cookie)
{
	struct rref_future *f = rc_op_find(ctx, cookie);

	at_sub(&ctx->sleep.reads_in_flight, 1);
	if (likely(f && f->is->reads && at_load(&f->outstanding)))
		return f;
	at_add(&ctx->n.dropped, 1);
	return NULL;
}

bool rc_read_came(struct rref_ctx *ctx, uint64_t cookie)
{
	struct rref_future *f = read_of(ctx, cookie), *next;
	bool due = false;

	if (likely(f && f->plain) && likely(rc_read_plain_done(f)))
		return false;
	for (; f; f = next) {
		next = f->merged_next; /* read first: f may be over behind it */
		/* A value in pieces has many ends, on several threads at once, and is in no run. */
		if (next)
			f->merged_next = NULL;
		due |= rc_read_ended_well(f);
	}
	return due;
}

void rc_read_event(struct rref_ctx *ctx, uint64_t cookie, int status, int wc)
{
	struct rref_future *f = read_of(ctx, cookie), *next;

	rc_assert_locked(ctx);
	for (bool in_run = f && f->merged_next; f; f = next) {
		next = f->merged_next; /* as above */
		if (next) /* as above */
			f->merged_next = NULL;
		read_ended(f, status, wc, in_run);
	}
}

void rc_reads_go_on(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	rc_split_go_on(p);
	rc_read_pump(ctx, p);
}

bool rc_read_copied(struct rref_future *f, struct rc_peer *p)
{
	rb_assert(p->reads_inline && rc_op_done(f));
	if (begin_read(f, p) != RC_READ_OVER)
		return false;
	rc_read_fill_result(f);
	return true;
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
	if (!at_load(&f->outstanding))
		rc_read_done_locked(f);
}
