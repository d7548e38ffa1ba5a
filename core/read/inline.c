/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads over a device that copies (shm): a READ is over when it is posted. The thread that posts it
 * copies, under the pin and mostly without the lock.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"

#define INLINE_MAX 2u /* pieces asked for at once */

/* Bytes copied of a payload before others get their turn. */
#define TURN_BYTES (UINT64_C(1) << 20)

/*
 * Copies the next pieces of f, of at most max_msg bytes each. Returns false if there is no
 * connection now.
 */
static bool copy_some(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn,
			uint64_t max_msg)
{
	struct rv_read r[INLINE_MAX];
	unsigned n = rc_split_build(f, max_msg, r, INLINE_MAX);
	int posted = p->ops->post_reads(conn, r, n);

	rc_split_unbuild(f, r, (unsigned)max_of(posted, 0), n);
	if (rc_read_hard_failure(posted)) {
		rc_read_note(f, posted, -1);
		if (posted == -ENOMEM)
			snprintf(f->text, sizeof(f->text), "reading from %s: %.360s",
				 p->member->name, rv_error_text());
		return true;
	}
	if (posted <= 0)
		return false;
	rc_read_count_posted(f->ctx, posted);
	for (int i = 0; i < posted; i++) {
		f->again |= rc_read_lost(r[i].status);
		if (!rc_read_lost(r[i].status))
			rc_read_note(f, r[i].status, -1);
	}
	if (!f->again || f->read_status)
		return true;
	/* The read waits for the session's fate. */
	rc_read_begin_again(f);
	return false;
}

/* Copies all of f. Returns as copy_some. */
static bool copy_all(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	bool connected;

	do
		connected = copy_some(f, p, conn, p->max_msg);
	while (connected && !rc_read_all_asked(f) && !f->read_status);
	return connected;
}

static enum rc_read_begun inline_begin(struct rref_future *f, struct rc_peer *p)
{
	struct rc_reader *r = rc_reader_get(f->ctx);
	struct rv_conn *conn = rc_read_pin(r, p);
	bool over = false;

	if (conn && at_load(&p->nr_waiting) == 0 && !rc_read_outlived(f))
		over = copy_all(f, p, conn);
	rc_read_unpin(r, p);
	return over ? RC_READ_OVER : RC_READ_WAITS;
}

static needs_lock void go_on(struct rref_future *f);

static needs_lock bool
inline_resume(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	rc_read_wait_over(f, p);
	if (f->is->resume || rc_read_is_large(f)) {
		go_on(f); /* turns do without the lock */
	} else if (copy_all(f, p, conn)) {
		rc_read_done_locked(f);
	} else {
		rc_read_wait_first(f, p);
		return false;
	}
	return true;
}

/* Copies a turn of a payload. Turns keep the lock and the copying thread free for other work. */
static needs_lock void inline_turn(struct rref_future *f, struct rc_peer *p)
{
	struct rref_ctx *ctx = f->ctx;
	/* Pins it under the lock: it is of the session whose epoch the caller has compared. */
	struct rc_reader *r = rc_reader_get(ctx);
	struct rv_conn *conn = rc_read_pin(r, p);
	bool connected = false;

	rc_unlock_bare(ctx);
	if (conn)
		connected = copy_some(f, p, conn, min_of(p->max_msg, TURN_BYTES / INLINE_MAX));
	rc_read_unpin(r, p);
	rc_lock(ctx);
	if (!connected && rc_op_wanted(f))
		rc_read_wait(f, p);
	else if (rc_read_all_asked(f) || f->read_status || !rc_op_wanted(f))
		rc_read_done_locked(f);
	else
		go_on(f);
}

/* Copies a turn of a large read that waited. */
static needs_lock void large_turn(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, work);

	/* The location is of a session that ended. */
	if (rc_read_outlived(f))
		rc_read_note(f, -ENOTCONN, -1);
	if (f->read_status || !rc_op_wanted(f))
		rc_read_done_locked(f);
	else
		inline_turn(f, &ctx->peers[f->peer]);
}

/* Has the next turn of f made by the release of the lock. */
static needs_lock void go_on(struct rref_future *f)
{
	if (f->is->resume) {
		f->is->resume(f);
		return;
	}
	f->work.run = large_turn;
	rc_defer(f->ctx, &f->work);
}

const struct rc_read_strategy rc_read_inline = { inline_begin, inline_resume, inline_turn };
