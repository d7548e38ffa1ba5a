/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads as a kind of operations: how they end from outside, and how the wait for a value goes on.
 */
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/look.h"

/*
 * Ends the read from outside. The engine's hold stays until the device or the peer is done: a READ
 * in flight cannot be recalled. The landing block is quarantined till then.
 */
void rc_read_end(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text)
{
	rc_assert_locked(ctx);
	/* Counted first: its last READ may end meanwhile. */
	at_add(&ctx->n.quarantined, 1);
	if (!rc_op_fail(f, status, -1, text) || rc_op_unpark(ctx, f))
		at_sub(&ctx->n.quarantined, 1);
}

void rc_read_release(struct rref_future *f)
{
	struct rref_view *v = rc_op_view(f);

	/* The lock may be held: a large value of this worker's own is not scrubbed here. */
	if (v && rc_value_of(v))
		rc_view_put(v);
	else
		rref_view_free(v);
	if (f->handle)
		rc_handle_release(f->handle);
	rc_landing_put(f->landing);
}

/* Ends the wait with a value of this worker's own. */
static void read_here(struct rref_future *f, struct rc_value *v)
{
	f->type = v->type;
	at_add(&v->pins, 1);
	at_store(&f->view, &v->view);
}

/*
 * Ends the read with a view where the value lies. Looks without the lock, since the first look at a
 * region maps it. Reads if no look is to be.
 */
static needs_lock void end_by_look(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, work);
	struct rref_view *v = NULL;
	bool looked;

	rc_unlock_bare(ctx);
	looked = rc_read_look(f->handle, f->look_least, &v);
	rc_lock(ctx);
	if (!looked && rc_op_wanted(f)) {
		rc_read_start_locked(f);
		return;
	}
	if (rc_op_claim(f)) {
		at_store(&f->view, v);
		v = NULL;
		rc_op_finish_locked(f);
	} else {
		at_sub(&ctx->n.quarantined, 1); /* ended meanwhile: rc_read_end */
	}
	rc_op_put(f);
	if (!v)
		return;
	rc_unlock_bare(ctx);
	rref_view_free(v); /* may unmap a region */
	rc_lock(ctx);
}

static needs_lock void
read_located(struct rref_ctx *ctx, struct rref_future *f, const struct rp_location *loc)
{
	f->loc = *loc;
	if (loc->length < f->look_least || !rc_can_look(&ctx->peers[f->handle->owner], loc)) {
		rc_read_start_locked(f);
		return;
	}
	f->work.run = end_by_look;
	rc_defer(ctx, &f->work);
}

const struct rc_op_kind rc_read_kind = {
	.name = "read",
	.reads = true,
	.ends_with_peer = true,
	.end = rc_read_end,
	.release = rc_read_release,
	.why_late = rc_stall_words,
	.here = read_here,
	.located = read_located,
	.late = rc_read_late,
};
