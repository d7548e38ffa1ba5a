/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the callee's side: the general way in, and refusals. Calls come here that have references
 * or a payload, or create a value. The fast way, and a call's life: serve.c.
 */
#include <errno.h>
#include <string.h>

#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/op/step.h"
#include "core/session/session.h"

#define FETCH_BYTES (UINT64_C(1) << 30)  /* limit for one peer's payloads */
#define REF_BYTES 512u                   /* rough cost of a reference that came with a call */

/* Returns the memory that a call occupies here, without its payload. */
static uint64_t call_bytes(const struct rw_call *c)
{
	return sizeof(struct rref_call) + (c->loc.version ? 0 : c->data_length) + c->meta_length +
	       (uint64_t)c->nr_refs * REF_BYTES;
}

/*
 * Drops the references of a call that does not run. References in a payload that was not read are
 * not taken at all.
 */
static needs_lock void drop_arguments(struct rref_ctx *ctx, struct rc_peer *from,
				      const struct rw_call *c, int status)
{
	if (c->loc.version)
		rc_fetch_refuse(ctx, from, RW_PAYLOAD_CALL, c->call_id, status);
	else
		rc_incoming_drop(ctx, c->refs, c->nr_refs, from);
}

/* Goes on when the payload is here, or will not be. */
static needs_lock void call_fetched(struct rref_ctx *ctx, struct rc_incoming *in, const void *data,
				    const struct rp_fork *recs, uint32_t nr)
{
	struct rref_call *call = container_of(in, struct rref_call, in);

	call->bytes = data;
	call->length = in->status ? 0 : in->data_length;
	rc_incoming_begin(ctx, in, recs, nr, in->from);
}

/* Refuses a call that cannot be taken in. */
static __attribute__((noinline)) needs_lock void refuse_call(struct rref_ctx *ctx,
							     struct rc_peer *from,
							     const struct rw_call *c, int status,
							     const char *text)
{
	struct rw_message r;

	rc_log(ctx, RREF_LOG_DEBUG, "a call from rank %u was refused: %s", from->rank, text);
	if (c->kind == RW_CALL_REMOTE) {
		struct rp_event ev = {
			.type = RP_EV_SET, .id = c->id, .status = status, .text = text
		};

		rc_step(ctx, &ev, NULL);
		return;
	}
	rw_reply_init(&r);
	r.u.reply.call_id = c->call_id;
	r.u.reply.status = status;
	r.u.reply.text = text;
	r.u.reply.text_length = (uint16_t)strlen(text);
	/* Tells this worker without the queue. If there is no memory for the call, there is none
	 * for a queued refusal. */
	if (from->rank == ctx->rank)
		rc_reply_message(ctx, from, &r);
	else
		rc_send_or_end(ctx, from->rank, &r);
}

/*
 * Makes this worker the owner of the value that the call makes. Returns false if the call must not
 * run: nonsense, no memory, or a message of a session that is over. It is dealt with then.
 */
static needs_lock bool take_ownership(struct rref_ctx *ctx, struct rc_peer *from,
				      const struct rw_call *c)
{
	struct rp_event ev = { .type = RP_EV_OWN, .id = c->id, .fork = c->fork,
			       .peer = from->rank, .word = c->word };
	int err;

	ctx->op.duplicate = false;
	err = rc_step_at(ctx, &ev, from->heard_at);
	if (!err && !ctx->op.duplicate)
		return true;
	if (err == -EPROTO || err == -EINVAL) {
		at_add(&ctx->n.rejected, 1);
		rc_session_end(ctx, from, -EPROTO,
			       "it asked for a creation with an id that it may not choose");
	} else if (err == -ENOMEM) {
		rc_session_end(ctx, from, -EOWNERDEAD,
			       "a message of it was lost for want of memory");
	} else {
		drop_arguments(ctx, from, c, -EALREADY);
	}
	return false;
}

/* Fills in a call whose fields are clear, and opens it. */
static needs_lock void open_call(struct rref_ctx *ctx, struct rc_peer *from,
				 const struct rw_call *c, struct rref_call *call)
{
	size_t length = c->loc.version ? 0 : c->data_length;

	list_init(&call->hook.node);
	call->ctx = ctx;
	call->caller = from->rank;
	call->caller_epoch = from->epoch;
	call->call_id = c->call_id;
	call->kind = c->kind;
	call->id = c->id;
	call->fork = c->fork;
	call->bytes = call->data;
	call->length = length;
	call->meta = call->data + length;
	call->meta_length = c->meta_length;
	call->cost = call_bytes(c);
	call->fetch_cost = c->loc.version ? c->loc.length : 0;
	memcpy(call->own_name, c->name, c->name_length);
	call->own_name[c->name_length] = 0;
	call->name = call->own_name;
	if (length)
		memcpy(call->data, c->data, length);
	if (c->meta_length)
		memcpy(call->data + length, c->meta, c->meta_length);
	list_add_tail(&ctx->call.open[rc_bucket(ctx, from->rank, c->call_id)], &call->open_node);
	at_store(&call->refs, 2); /* the handler's and the reply's */
	call->fn = rc_function_find(ctx, c->name, c->name_length);
	call->in.ready = rc_call_ready;
	at_add_mine(&ctx->call.begun, 1);
	at_add_mine(&from->call_bytes, call->cost);
	if (call->fetch_cost)
		at_add(&from->fetch_bytes, call->fetch_cost);
}

static bool fetch_has_room(const struct rref_ctx *ctx, const struct rc_peer *from,
			   const struct rw_call *c)
{
	return from->rank == ctx->rank || !c->loc.version ||
	       at_load(&from->fetch_bytes) + c->loc.length <= FETCH_BYTES;
}

/* Makes a call with room for its bytes and references, or returns NULL. */
static needs_lock struct rref_call *make_call_for(struct rref_ctx *ctx, const struct rw_call *c)
{
	size_t length = c->loc.version ? 0 : c->data_length;
	struct rref_call *call = rc_call_make(ctx, length + c->meta_length);

	if (!call || rc_incoming_room(&call->in, c->nr_refs))
		return call;
	rc_call_spare(ctx, call);
	return NULL;
}

/* Refuses a call for want of memory, or for want of room for this caller. */
static needs_lock void turn_call_away(struct rref_ctx *ctx, struct rc_peer *from,
				      const struct rw_call *c, bool room)
{
	int status = room ? -ENOMEM : -EAGAIN;

	refuse_call(ctx, from, c, status,
		    room ? "no memory for the call"
			 : "too many calls of this caller are open there");
	drop_arguments(ctx, from, c, status);
}

/* Takes in any call. */
void rc_call_take(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m)
{
	const struct rw_call *c = &m->u.call;
	bool room = rc_call_has_room(ctx, from, call_bytes(c)) && fetch_has_room(ctx, from, c);
	struct rref_call *call;

	rc_assert_locked(ctx);
	if (rc_call_find(ctx, from, c->call_id)) {
		at_add(&ctx->n.dropped, 1); /* a repeated call */
		return;
	}
	if (c->kind == RW_CALL_REMOTE && from->rank != ctx->rank && !take_ownership(ctx, from, c))
		return;
	call = room ? make_call_for(ctx, c) : NULL;
	if (!call) {
		turn_call_away(ctx, from, c, room);
		return;
	}
	open_call(ctx, from, c, call);
	if (!c->loc.version) {
		rc_incoming_begin(ctx, &call->in, c->refs, c->nr_refs, from->rank);
		return;
	}
	call->in.fetched = call_fetched;
	call->in.what = RW_PAYLOAD_CALL;
	call->in.call_id = c->call_id;
	call->in.loc = c->loc;
	memcpy(call->in.key, c->key, sizeof(call->in.key));
	call->in.data_length = c->data_length;
	call->in.nr_refs = c->nr_refs;
	rc_fetch_begin(ctx, &call->in, from);
}
