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

#define INLINE_MAX 2u /* pieces asked for at once from a provider that copies them at once */

/* Bytes copied of a payload over shm before others get their turn. */
#define TURN_BYTES (UINT64_C(1) << 20)

static lock_by_flag void read_done(struct rref_future *f, bool locked);

static struct rc_peer *read_peer_of(const struct rref_future *f)
{
	return &f->ctx->peers[f->peer];
}

bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg)
{
	return f->offset == 0 && f->length + RC_HEADER_BYTES <= max_msg && !rp_apart(&f->loc);
}

/* Returns as rc_read_is_single, before read_prepare() has cut the range to the value. */
static bool is_single_for(const struct rref_future *f, uint64_t max_msg)
{
	return f->offset == 0 && f->loc.length <= RC_VALUE_MAX && !rp_apart(&f->loc) &&
	       rc_extent(f->loc.length, f->loc.nr_segments) + RC_HEADER_BYTES <= max_msg;
}

bool rc_read_all_asked(const struct rref_future *f)
{
	return f->header_asked && f->next == f->length;
}

/*
 * Returns whether the session in which the reference was good is over. The caller looks behind the
 * pin, or under the lock. A thread may find the reference ready, and then a connection of a later
 * session. In that session the owner does not keep the value for it. The fence fails the reference
 * before such a connection can be found (conn is stored after it).
 */
static bool outlived(const struct rref_future *f)
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
	return rc_state_stands(p->state) && !outlived(f);
}

/*
 * Sets the read back to its beginning. Bytes from before the break are read again too, so that the
 * header vouches for all of it.
 */
static void begin_again(struct rref_future *f)
{
	f->next = 0;
	f->header_asked = false;
	f->again = false;
	memset(&f->landing->header, RC_UNREAD, RC_HEADER_BYTES);
	at_add(&f->ctx->n.reads_again, 1);
}

static void note_failure(struct rref_future *f, int status, int wc)
{
	if (status && !f->read_status) {
		if (status == -EACCES)
			at_add(&read_peer_of(f)->resume.refused, 1);
		f->read_status = status;
		f->read_wc = wc;
	}
}

/*
 * Reads over a provider whose READs are complete at once. Reads the whole in the caller's thread,
 * or INLINE_MAX pieces of at most max_msg. Returns false if there is no connection now.
 */
static bool read_inline(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn,
			uint64_t max_msg, bool whole)
{
	struct rv_read r[INLINE_MAX];

	for (bool first = true; (first || whole) && !rc_read_all_asked(f) && !f->read_status;
	     first = false) {
		unsigned n = rc_split_build(f, max_msg, r, INLINE_MAX);
		int posted = p->ops->post_reads(conn, r, n);

		if (posted <= 0) {
			rc_split_unbuild(f, r, 0, n);
			if (posted == 0 || posted == -EAGAIN || posted == -ENOTCONN)
				return false;
			note_failure(f, posted, -1);
			if (posted == -ENOMEM)
				snprintf(f->text, sizeof(f->text), "reading from %s: %.360s",
					 p->member->name, rv_error_text());
			break;
		}
		at_add(&f->ctx->n.reads, (unsigned)posted);
		at_add(&f->ctx->n.doorbells, 1);
		for (int i = 0; i < posted; i++) {
			f->again |= rc_read_lost(r[i].status);
			if (!rc_read_lost(r[i].status))
				note_failure(f, r[i].status, -1);
		}
		rc_split_unbuild(f, r, (unsigned)posted, n);
		if (f->again && !f->read_status) {
			/* The read waits for the session's fate. */
			begin_again(f);
			return false;
		}
	}
	return true;
}

void rc_read_count_posted(struct rref_ctx *ctx, int posted)
{
	if (posted > 0) {
		at_add(&ctx->n.reads, (unsigned)posted);
		at_add(&ctx->n.doorbells, 1);
	}
}

static void count_runs(struct rref_ctx *ctx, const struct rc_merge *runs, int posted)
{
	rc_read_count_posted(ctx, posted);
	if (posted > 0 && runs->first[posted] > (unsigned)posted)
		at_add(&ctx->n.reads_joined, runs->first[posted] - (unsigned)posted);
}

bool rc_read_hard_failure(int posted)
{
	return posted < 0 && posted != -EAGAIN && posted != -ENOTCONN;
}

/*
 * Starts reads of one message each, all of one owner, with one doorbell. The lock need not be held.
 * From the doorbell on, other threads handle the completions. Only the reads that were not posted
 * still belong to this thread.
 */
static void post_singles(struct rref_ctx *ctx, struct rc_peer *p, struct rref_future **f,
			 unsigned n, bool locked)
{
	struct rv_conn *conn;
	struct rc_merge runs;
	int posted = -ENOTCONN;

	rc_merge_build(p, f, n, &runs);
	at_add(&ctx->sleep.reads_in_flight, runs.nr);
	/* The pin. It is given back before the lock is taken: the fence waits for it with the lock
	 * held. */
	at_add_sc(&p->readers, 1);
	conn = at_load_sc(&p->conn);
	for (unsigned i = 0; conn && i < n; i++)
		if (unlikely(outlived(f[i])))
			conn = NULL; /* each read finds out below */
	if (conn && at_load(&p->nr_waiting) == 0) {
		posted = p->ops->post_reads(conn, runs.r, runs.nr);
		count_runs(ctx, &runs, posted);
	}
	at_sub_rel(&p->readers, 1);
	unsigned left = (unsigned)max_of(posted, 0);

	at_sub(&ctx->sleep.reads_in_flight, runs.nr - left);
	for (unsigned i = runs.first[left]; i < n; i++) {
		rc_merge_undo(f[i]);
		if (rc_read_hard_failure(posted)) {
			note_failure(f[i], posted, -1);
			read_done(f[i], locked);
		} else {
			rc_read_wait(f[i], p, locked);
		}
	}
}

/* Waits for a slot or a connection, behind the reads that wait already. */
lock_by_flag void rc_read_wait(struct rref_future *f, struct rc_peer *p, bool locked)
{
	struct rref_ctx *ctx = f->ctx;

	if (!locked)
		rc_lock(ctx);
	/* Checked under the lock: after the shutdown's last sweep nobody would end a read that
	 * begins to wait. */
	int err = rc_enter(ctx);

	/* An offer or hold of a session that is over is gone. For the other reads a new session is
	 * begun. */
	if (!err && outlived(f))
		err = -ENOTCONN;
	if (!err && f->fetch && !rc_same_session(ctx, p->rank, f->fetch->epoch))
		err = -ENOTCONN;
	/* Comes before the read waits: a failure may fence the peer, which ends all reads that
	 * wait. */
	if (!err)
		err = rc_peer_want(ctx, p);
	if (err) {
		note_failure(f, err, -1);
		read_done(f, true);
	} else {
		list_add_tail(&p->waiting, &f->node);
		at_add(&p->nr_waiting, 1);
		/* The connection may have come up, or slots free, between the look without the
		 * lock and now. */
		if (at_load(&p->conn) && !f->retried)
			f->retried = true, rc_read_pump(ctx, p);
	}
	if (!locked)
		rc_unlock(ctx);
}

/*
 * Checks the bounds, gets the landing buffer, and marks the header's place before anything is
 * posted. The mark tells whether a header came.
 */
static int prepare_quietly(struct rref_future *f)
{
	f->next = 0;
	f->header_asked = false;
	f->retried = f->again = f->alone = false;
	uint64_t end = f->whole ? rc_extent(f->loc.length, f->loc.nr_segments) : f->loc.length;
	/* The location came over the wire: its length is bounded here, before memory is taken for
	 * it. */
	if (f->loc.length > RC_VALUE_MAX || end > RC_VALUE_MAX ||
	    (f->loc.length && !f->loc.nr_segments))
		return -EPROTO;
	if (!f->loc.nonce)
		return -EPERM;
	f->offset = min_of(f->offset, end);
	f->length = min_of(f->length, end - f->offset);
	int err = rc_landing_get(f->ctx, f->length, &f->landing);

	if (err)
		snprintf(f->text, sizeof(f->text), "%s", rc_error_text());
	else
		memset(&f->landing->header, RC_UNREAD, RC_HEADER_BYTES);
	return err;
}

/* Prepares f. Returns false if the read has ended with an error. */
static bool read_prepare(struct rref_future *f, bool locked)
{
	int err = prepare_quietly(f);

	if (!err)
		return true;
	note_failure(f, err, -1);
	read_done(f, locked);
	return false;
}

/*
 * Starts reads that are complete when they are posted: in this thread, under the pin. Returns false
 * if there is no connection or no slot now.
 */
static bool start_inline(struct rref_future *f, struct rc_peer *p)
{
	struct rv_conn *conn;
	bool over = false;

	at_add_sc(&p->readers, 1);
	conn = at_load_sc(&p->conn);
	if (conn && at_load(&p->nr_waiting) == 0 && !outlived(f))
		over = read_inline(f, p, conn, p->max_msg, true);
	at_sub_rel(&p->readers, 1);
	return over;
}

/*
 * Starts a read whose handle and location are set. Consumes the engine's hold on f (given back in
 * read_done). A connection is pinned by p->readers: the fence stores conn = NULL, then waits for
 * readers to be 0 (both sc).
 */
lock_by_flag void rc_read_start(struct rref_future *f, bool locked)
{
	struct rref_ctx *ctx = f->ctx;
	struct rc_peer *p = read_peer_of(f);

	if (!read_prepare(f, locked))
		return;
	if (p->reads_inline) {
		if (start_inline(f, p))
			read_done(f, locked);
		else
			rc_read_wait(f, p, locked);
		return;
	}
	if (rc_read_is_single(f, p->max_msg)) {
		post_singles(ctx, p, &f, 1, locked);
		return;
	}
	/* The books of several pieces are kept under the lock from the first doorbell on. */
	if (!locked)
		rc_lock(ctx);
	struct rv_conn *conn = at_load(&p->nr_waiting) == 0 && !outlived(f) ? at_load(&p->conn)
									    : NULL;

	if (!conn || !rc_split_start(f, p, conn))
		rc_read_wait(f, p, true);
	if (!locked)
		rc_unlock(ctx);
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

/*
 * Starts many reads of one owner, whose handles and locations are set. Posts the reads of one
 * message each with one doorbell.
 */
void rc_read_start_many(struct rref_ctx *ctx, struct rc_peer *p, struct rref_future **f, unsigned n)
{
	struct rref_future *single[RC_BATCH_MAX];
	unsigned nr = 0;

	for (unsigned i = 0; i < n; i++) {
		if (p->reads_inline || !is_single_for(f[i], p->max_msg)) {
			rc_read_start(f[i], false);
			continue;
		}
		if (!read_prepare(f[i], false))
			continue;
		single[nr++] = f[i];
		if (nr == RC_BATCH_MAX) {
			post_singles(ctx, p, single, nr, false);
			nr = 0;
		}
	}
	if (nr)
		post_singles(ctx, p, single, nr, false);
}

static needs_lock void wait_first(struct rref_future *f, struct rc_peer *p)
{
	struct list *n = &f->node;

	n->next = p->waiting.next;
	n->prev = &p->waiting;
	p->waiting.next->prev = n;
	p->waiting.next = n;
	at_add(&p->nr_waiting, 1);
}

/*
 * Starts the reads of one message each at the head of the queue, with one doorbell. Returns false
 * if some of them found no slot.
 */
static needs_lock bool pump_singles(struct rref_ctx *ctx, struct rc_peer *p, struct rv_conn *conn)
{
	struct rref_future *f[RC_BATCH_MAX];
	struct rc_merge runs;
	unsigned n = 0, left;
	int posted;

	while (n < RC_BATCH_MAX && !list_empty(&p->waiting)) {
		f[n] = container_of(p->waiting.next, struct rref_future, node);
		if (!rc_read_is_single(f[n], p->max_msg) || !rc_op_wanted(f[n]))
			break;
		list_del(&f[n]->node);
		at_sub(&p->nr_waiting, 1);
		n++;
	}
	rc_merge_build(p, f, n, &runs);
	posted = p->ops->post_reads(conn, runs.r, runs.nr);
	count_runs(ctx, &runs, posted);
	left = (unsigned)max_of(posted, 0);
	at_add(&ctx->sleep.reads_in_flight, left);
	for (unsigned i = n; i-- > runs.first[left];) {
		rc_merge_undo(f[i]);
		if (rc_read_hard_failure(posted)) {
			note_failure(f[i], posted, -1);
			read_done(f[i], true);
		} else {
			wait_first(f[i], p);
		}
	}
	return posted == (int)runs.nr || rc_read_hard_failure(posted);
}

/* Starts the reads that wait for p, first come first served, until one finds no slot. */
void rc_read_pump(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rv_conn *conn = at_load(&p->conn); /* stable: the fence holds the lock too */

	while (conn && !list_empty(&p->waiting)) {
		struct rref_future *f = container_of(p->waiting.next, struct rref_future, node);
		bool wanted = rc_op_wanted(f);

		if (wanted && !p->reads_inline && rc_read_is_single(f, p->max_msg)) {
			if (!pump_singles(ctx, p, conn))
				return;
			continue;
		}
		list_del(&f->node);
		at_sub(&p->nr_waiting, 1);
		if (!wanted) {
			/* timed out or cancelled while it waited: nothing is in flight */
			read_done(f, true);
		} else if (f->is->resume && p->reads_inline) {
			f->is->resume(f); /* goes on in turns, and without the lock */
		} else if (p->reads_inline) {
			if (!read_inline(f, p, conn, p->max_msg, true)) {
				wait_first(f, p);
				return;
			}
			read_done(f, true);
		} else {
			if (!rc_split_start(f, p, conn)) {
				wait_first(f, p);
				return;
			}
		}
	}
}

/* Ends a READ of f's. in_run: the READ brought other values too. */
static needs_lock void ended(struct rref_future *f, int status, int wc, bool in_run)
{
	struct rc_peer *p = read_peer_of(f);

	f->outstanding--;
	if (status && in_run && !rc_read_lost(status)) {
		f->alone = true;
		status = -ECONNRESET;
	}
	f->again |= rc_read_lost(status);
	if (!rc_read_lost(status))
		note_failure(f, status, wc);
	bool wanted = rc_op_wanted(f);

	if (f->pieces_at && rc_split_ended(f, p))
		return; /* further READs of f are at the device */
	if (f->outstanding)
		return;
	/* No device works on f any more. */
	if (f->again && !f->read_status && wanted && may_go_again(f, p)) {
		begin_again(f);
		f->retried = true; /* the caller pumps */
		rc_read_wait(f, p, true);
		return;
	}
	if (f->again)
		note_failure(f, -ECONNRESET, wc);
	read_done(f, true);
}

void rc_read_ended(struct rref_future *f, int status, int wc)
{
	at_sub(&f->ctx->sleep.reads_in_flight, 1);
	ended(f, status, wc, false);
}

void rc_read_event(struct rref_ctx *ctx, uint64_t cookie, int status, int wc)
{
	struct rref_future *f = rc_op_find(ctx, cookie), *next;

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
 * Ends an operation that no device touches any more. Makes its result, if it still wants one, and
 * gives back the engine's hold.
 */
static lock_by_flag void read_done(struct rref_future *f, bool locked)
{
	struct rref_ctx *ctx = f->ctx;
	int status = f->read_status;

	if (!status && !rc_read_all_asked(f))
		status = -ECANCELED;
	if (rc_op_claim(f)) {
		f->status = status ? rc_read_explain(f) : rc_read_check(f);
		f->wc_status = f->read_wc;
		if (!f->status) {
			f->landing->view.length = f->whole ? f->loc.length : f->length;
			f->landing->view.nr_segments = f->loc.nr_segments;
			f->landing->type_hash = f->loc.type_hash;
			if (unlikely(f->whole && f->loc.nr_refs))
				rc_view_hold(f->landing, f->handle, f->loc.nr_refs);
			f->view = &f->landing->view;
			f->landing = NULL;
			at_add(&ctx->n.read_bytes, f->view->length);
		}
		rc_op_finish(f, locked);
	} else {
		at_sub(&ctx->n.quarantined, 1);
	}
	if (f->is->over)
		f->is->over(f);
	rc_op_put(f);
}

/*
 * Copies a turn of a payload over shm. Turns keep the lock and the copying thread free for other
 * work.
 */
static needs_lock void turn_inline(struct rref_future *f, struct rc_peer *p)
{
	struct rref_ctx *ctx = f->ctx;
	bool over = false;

	rc_unlock_bare(ctx);
	at_add_sc(&p->readers, 1);
	struct rv_conn *conn = at_load_sc(&p->conn);

	if (conn)
		over = read_inline(f, p, conn, min_of(p->max_msg, TURN_BYTES / INLINE_MAX), false);
	at_sub_rel(&p->readers, 1);
	rc_lock(ctx);
	if (!over && rc_op_wanted(f))
		rc_read_wait(f, p, true);
	else if (rc_read_all_asked(f) || f->read_status || !rc_op_wanted(f))
		read_done(f, true);
	else
		f->is->resume(f);
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

	if (!f->landing) {
		rc_unlock_bare(ctx);
		int err = prepare_quietly(f);

		rc_lock(ctx);
		if (err)
			note_failure(f, err, -1);
	}
	/* The epoch is checked under the lock. A connection of another session is never used for
	 * it. */
	if (!rc_same_session(ctx, p->rank, f->fetch->epoch))
		note_failure(f, -ENOTCONN, -1);
	if (f->read_status || !rc_op_wanted(f))
		read_done(f, true);
	else if (p->reads_inline)
		turn_inline(f, p);
	else if (rc_read_is_single(f, p->max_msg))
		post_singles(ctx, p, &f, 1, true);
	else if (!at_load(&p->conn) || at_load(&p->nr_waiting) ||
		 !rc_split_start(f, p, at_load(&p->conn)))
		rc_read_wait(f, p, true);
}

void rc_read_fail(struct rref_future *f, int status)
{
	note_failure(f, status, -1);
	if (!f->outstanding)
		read_done(f, true);
}
