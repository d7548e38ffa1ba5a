/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the caller's side: the reply's effect on the future. A late reply finds nothing; see
 * call.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/lock.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/ctx.h"
#include "core/op/kind.h"

#define WRONG_NUMBER "%u references came, of %" PRIu64 " that were asked for"

#define NO_MEMORY "memory for a result of %" PRIu64 " bytes and %u references"

static needs_lock void reply_ready(struct rref_ctx *ctx, struct rc_incoming *in)
{
	struct rref_future *f = in->future;

	(void)ctx;
	if (!in->status && f->number && f->number != in->nr) {
		in->status = -EBADMSG;
		snprintf(in->text, sizeof(in->text), WRONG_NUMBER, in->nr, f->number);
	}
	if (rc_op_claim(f)) {
		f->status = in->status;
		if (in->status)
			snprintf(f->text, sizeof(f->text), "%s: %.200s",
				 in->nr ? "a reference in the result" : "the result", in->text);
		rc_op_finish_locked(f);
	}
	rc_op_put(f);
}

/* Goes on when the result's payload is here, or will not be. */
static needs_lock void reply_fetched(struct rref_ctx *ctx, struct rc_incoming *in, const void *data,
				     const struct rp_fork *recs, uint32_t nr)
{
	struct rref_future *f = in->future;

	f->data = (char *)(uintptr_t)data;
	f->data_length = in->data_length;
	rc_incoming_begin(ctx, in, recs, nr, in->from);
}

/* Takes an answer whose result is a payload. */
static needs_lock void take_payload(struct rref_ctx *ctx, struct rref_future *f,
				    struct rc_peer *from, const struct rw_reply *r)
{
	struct rc_incoming *in = f->incoming;

	in->fetched = reply_fetched;
	in->what = RW_PAYLOAD_REPLY;
	in->call_id = r->call_id;
	in->loc = r->loc;
	memcpy(in->key, r->key, sizeof(in->key));
	in->data_length = r->data_length;
	in->nr_refs = r->nr_refs;
	if (!rc_incoming_room(in, r->nr_refs)) {
		rc_fetch_refuse(ctx, from, in->what, in->call_id, -ENOMEM);
		in->status = -ENOMEM;
		snprintf(in->text, sizeof(in->text), NO_MEMORY, (uint64_t)r->data_length,
			 r->nr_refs);
		reply_ready(ctx, in);
		return;
	}
	rc_fetch_begin(ctx, in, from);
}

/* Copies the bytes of a result. Returns 0, or -ENOMEM with the text. */
static int copy_result(struct rref_future *f, const struct rw_reply *r, char *text, size_t size)
{
	f->data = malloc(r->data_length);
	if (!f->data) {
		snprintf(text, size, NO_MEMORY, (uint64_t)r->data_length, r->nr_refs);
		return -ENOMEM;
	}
	memcpy(f->data, r->data, r->data_length);
	f->data_length = r->data_length;
	return 0;
}

/* Takes an error, or a result without references. */
static needs_lock void take_simple(struct rref_future *f, const struct rc_peer *from,
				   const struct rw_reply *r)
{
	f->status = r->status;
	f->peer = from->rank;
	if (r->status) {
		f->about = r->about ? r->about : (uint16_t)(from->rank + 1);
		snprintf(f->text, sizeof(f->text), "%.*s", (int)r->text_length, r->text);
	} else if (f->number) {
		f->status = -EBADMSG;
		snprintf(f->text, sizeof(f->text), WRONG_NUMBER, 0u, f->number);
	} else if (r->data_length) {
		f->status = copy_result(f, r, f->text, sizeof(f->text));
	}
	rc_op_answered(f);
}

/* Takes the answer that f waits for. */
static needs_lock void take_reply(struct rref_ctx *ctx, struct rref_future *f, struct rc_peer *from,
				  const struct rw_reply *r)
{
	f->replied = true;
	if (likely(!r->loc.version && (r->status || r->nr_refs == 0))) {
		take_simple(f, from, r);
		return;
	}
	struct rc_incoming *in = f->incoming;

	/* Leaves the engine's hold to reply_ready from here on, even if the future ends before. */
	at_store(&f->kind, &rc_replied_kind);
	in->ready = reply_ready;
	in->future = f;
	if (r->loc.version) {
		take_payload(ctx, f, from, r);
		return;
	}
	if (r->data_length)
		in->status = copy_result(f, r, in->text, sizeof(in->text));
	rc_incoming_begin(ctx, in, r->refs, r->nr_refs, from->rank);
}

/*
 * Returns the call that waits for an answer from that peer, or NULL. A pending call and the
 * engine's hold on it stay while the lock is held. But meanwhile the slot may be given to the next
 * operation. Pairs with the release in rc_op_get: the state is loaded first (acquire). If it is the
 * next operation's, the kind is too: NULL until that one begins under the lock. The token is
 * compared once more behind all else.
 */
static needs_lock struct rref_future *waiting_call(struct rref_ctx *ctx, const struct rc_peer *from,
						   uint64_t call_id)
{
	struct rref_future *f = rc_op_find(ctx, call_id);

	if (!f || (at_load_acq(&f->state) & RC_F_MASK) != RC_F_PENDING ||
	    at_load(&f->kind) != &rc_call_kind || rc_op_token(f) != call_id)
		return NULL;
	return f->peer == from->rank && !f->replied ? f : NULL;
}

/*
 * Handles a reply whose caller gave up. Takes and drops its references, so that their owners know.
 */
static needs_lock void late_reply(struct rref_ctx *ctx, struct rc_peer *from,
				  const struct rw_reply *r)
{
	/* Finds it with a hold, since its slot may be on the way to the next operation. */
	struct rref_future *f = rc_op_hold(ctx, r->call_id);

	at_add(&ctx->n.dropped, 1);
	if (!r->loc.version)
		rc_incoming_drop(ctx, r->refs, r->nr_refs, from);
	else if (!f || !f->replied)
		rc_fetch_refuse(ctx, from, RW_PAYLOAD_REPLY, r->call_id, -ECANCELED);
	/* Otherwise it is the same reply again: its payload is being read, or was. */
	if (f)
		rc_op_put(f);
}

void rc_reply_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m)
{
	struct rref_future *f = waiting_call(ctx, from, m->u.reply.call_id);

	rc_assert_locked(ctx);
	if (likely(f))
		take_reply(ctx, f, from, &m->u.reply);
	else
		late_reply(ctx, from, &m->u.reply);
}
