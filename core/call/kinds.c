/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds of operations that are calls: how they end when no answer ends them. */
#include <stdio.h>
#include <stdlib.h>

#include "base/fast.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/session/session.h"

bool rc_call_incoming(struct rref_future *f)
{
	f->incoming = f->spare;
	f->spare = NULL;
	if (likely(f->incoming))
		return true;
	f->incoming = malloc(sizeof(*f->incoming));
	if (f->incoming)
		rc_incoming_init(f->incoming);
	return f->incoming;
}

/*
 * Releases the references and data that came for f. Keeps the struct for the slot's next operation,
 * in the state of rc_incoming_init.
 */
static void put_incoming(struct rref_future *f)
{
	struct rc_incoming *in = f->incoming;

	/* Leaves the struct alone: nothing came. */
	if (likely(!in->ready && !in->nr)) {
		free(f->data);
	} else {
		if (!in->body && !in->own)
			free(f->data);
		rc_incoming_release(in);
		rc_incoming_init(in);
	}
	if (!RB_FAST(!f->spare))
		free(in);
	else
		f->spare = in;
}

static void release_call(struct rref_future *f)
{
	if (likely(f->incoming))
		put_incoming(f);
	else
		free(f->data);
	if (f->handle)
		rref_release(f->handle);
}

/*
 * Tells the callee that its caller gave up. Only a hint: no session is begun to give it. Where one
 * is being begun, the call may still be in the queue, and the hint goes behind it.
 */
static needs_lock void tell_callee(struct rref_ctx *ctx, const struct rref_future *f)
{
	struct rw_message m = { .frame.type = RW_CANCEL, .u.number = rc_op_token(f) };
	struct rc_peer *p = &ctx->peers[f->peer];

	if (f->peer == ctx->rank || rc_state_stands(p->state) || !list_empty(&p->queue))
		rc_send(ctx, f->peer, &m);
}

static needs_lock void kinds_end_call(struct rref_ctx *ctx, struct rref_future *f, int status,
				      const char *text)
{
	struct rc_peer *p = &ctx->peers[f->peer];

	if (!rc_op_fail(f, status, -1, text))
		return;
	/* Tells nothing to the callee of a call that still waits here for a connection. The callee
	 * has nothing to run. */
	if (p->state == RC_PEER_UP || !rc_send_withdraw(ctx, p, rc_op_token(f)))
		tell_callee(ctx, f);
	rc_op_put(f);
}

/*
 * Ends a call whose answer is here. The engine's hold goes when the answer's references have been
 * looked at; see reply.c.
 */
static needs_lock void end_replied(struct rref_ctx *ctx, struct rref_future *f, int status,
				   const char *text)
{
	if (rc_op_fail(f, status, -1, text))
		rc_fetch_cancel(ctx, f->incoming);
}

/*
 * Ends a creation. The machine fails the handle, and completes this very operation
 * (RP_EFF_CREATED).
 */
static needs_lock void end_creation(struct rref_ctx *ctx, struct rref_future *f, int status,
				    const char *text)
{
	struct rref *h = f->handle;
	struct rp_event ev = { .type = RP_EV_CREATE_FAILED,
			       .id = h->id,
			       .fork = rc_remote(h)->fork,
			       .status = status,
			       .text = text,
			       .peer = f->peer,
			       .handle = h };

	tell_callee(ctx, f);
	rc_step(ctx, &ev, NULL);
}

static needs_lock void end_creation_here(struct rref_ctx *ctx, struct rref_future *f, int status,
					 const char *text)
{
	struct rref *h = f->handle;
	struct rp_event ev = { .type = RP_EV_SET, .id = h->id, .status = status, .text = text };

	if (!rc_op_fail(f, status, -1, text))
		return;
	tell_callee(ctx, f);
	/* The workers that share it learn the same. A late result finds the entry set, and is
	 * dropped. */
	rc_step(ctx, &ev, NULL);
	rc_handle_fail(h, status, text);
	rc_remote(h)->creation = NULL;
	rc_op_put(f);
}

/*
 * Writes the text of a creation that timed out. It names the reference that was created. It says
 * that no retry of the read will help.
 */
static void creation_expired(const struct rref_future *f, char *text, size_t size)
{
	char name[160];

	rref_format(f->handle, name, sizeof(name));
	snprintf(text, size, "the creation of the reference timed out: %s", name);
}

const struct rc_op_kind rc_call_kind = {
	.name = "call", .calls = true, .ends_with_peer = true,
	.end = kinds_end_call, .release = release_call, .why_late = rc_stall_words,
};

const struct rc_op_kind rc_replied_kind = {
	.name = "call", .calls = true,
	.end = end_replied, .release = release_call, .why_late = rc_stall_words,
};

const struct rc_op_kind rc_creation_kind = {
	.name = "remote",
	.calls = true,
	.ends_with_peer = true,
	.end = end_creation,
	.release = release_call,
	.expired = creation_expired,
	.why_late = rc_stall_words,
};

const struct rc_op_kind rc_creation_here_kind = {
	.name = "remote",
	.calls = true,
	.end = end_creation_here,
	.release = release_call,
	.expired = creation_expired,
	.why_late = rc_stall_words,
};
