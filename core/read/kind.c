/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads as a kind of operations: how they end from outside, and how the wait for a value goes on.
 */
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/read.h"
#include "core/session/session.h"

/*
 * Ends the read from outside. The engine's hold stays until the device or the peer is done: a READ
 * in flight cannot be recalled. The landing block is quarantined till then.
 */
void rc_read_end(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text)
{
	rc_assert_locked(ctx);
	if (rc_op_fail(f, status, -1, text) && !rc_op_unpark(ctx, f))
		at_add(&ctx->n.quarantined, 1);
}

void rc_read_release(struct rref_future *f)
{
	if (f->view)
		rref_view_free(f->view);
	if (f->handle)
		rref_release(f->handle);
	rc_landing_put(f->landing);
}

/* Ends the wait with a value of this worker's own. */
static void read_here(struct rref_future *f, struct rc_value *v)
{
	f->type = v->type;
	at_add(&v->pins, 1);
	f->view = &v->view;
}

static needs_lock void
read_located(struct rref_ctx *ctx, struct rref_future *f, const struct rp_location *loc)
{
	(void)ctx;
	f->loc = *loc;
	rc_read_start_locked(f);
}

const struct rc_op_kind rc_read_kind = {
	.name = "read", .reads = true,
	.end = rc_read_end, .release = rc_read_release, .why_late = rc_stall_words,
	.here = read_here, .located = read_located,
};
