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

/*
 * Pins the connection by p->readers. Pairs with the fence: it stores conn = NULL, then waits until
 * readers is 0 (both sc).
 */
static enum rc_read_begun inline_begin(struct rref_future *f, struct rc_peer *p)
{
	struct rv_conn *conn;
	bool over = false;

	at_add_sc(&p->readers, 1);
	conn = at_load_sc(&p->conn);
	if (conn && at_load(&p->nr_waiting) == 0 && !rc_read_outlived(f))
		over = copy_all(f, p, conn);
	at_sub_rel(&p->readers, 1);
	return over ? RC_READ_OVER : RC_READ_WAITS;
}

static needs_lock bool
inline_resume(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	rc_read_wait_over(f, p);
	if (f->is->resume) {
		f->is->resume(f); /* goes on in turns, and without the lock */
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
	bool connected = false;
	struct rv_conn *conn;

	/* Pins it under the lock: it is of the session whose epoch the caller has compared. */
	at_add_sc(&p->readers, 1);
	conn = at_load_sc(&p->conn);
	rc_unlock_bare(ctx);
	if (conn)
		connected = copy_some(f, p, conn, min_of(p->max_msg, TURN_BYTES / INLINE_MAX));
	at_sub_rel(&p->readers, 1);
	rc_lock(ctx);
	if (!connected && rc_op_wanted(f))
		rc_read_wait(f, p);
	else if (rc_read_all_asked(f) || f->read_status || !rc_op_wanted(f))
		rc_read_done_locked(f);
	else
		f->is->resume(f);
}

const struct rc_read_strategy rc_read_inline = { inline_begin, inline_resume, inline_turn };
