/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the callee's side: the answer, which is given once, by any thread that has the call. A
 * call's way to its handler: serve.c.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/op/op.h"
#include "core/op/step.h"
#include "core/session/session.h"

/*
 * Ends a call whose answer was sent, when nobody else has the call. Releases its arguments, and its
 * references at once.
 */
static needs_lock void answer_finished(struct rref_ctx *ctx, struct rref_call *call)
{
	rb_assert(at_load(&call->replied));
	rb_assert_is(at_load(&ctx->peers[call->caller].call_bytes), >=, call->cost);
	list_del(&call->open_node);
	at_add_mine(&ctx->peers[call->caller].call_bytes, -call->cost);
	if (!call->plain) {
		for (uint32_t i = 0; i < call->in.nr; i++) {
			struct rref *h = call->in.ref[i].handle;

			call->in.ref[i].handle = NULL;
			if (h) {
				at_store(&h->lent, 0);
				rc_handle_put(h);
			}
		}
		rc_incoming_release(&call->in);
	}
	rb_assert_is(at_load(&ctx->call.ended), <, at_load(&ctx->call.begun));
	/* Pairs with rc_calls_open (acquire). */
	at_store_rel(&ctx->call.ended, at_load(&ctx->call.ended) + 1);
	rc_call_spare(ctx, call);
}

/* Tells whether an empty answer is all that the call may need. */
static inline bool ends_simply(const struct rref_call *call)
{
	return call->plain || (call->kind == RW_CALL_RPC && !call->fetch_cost && !call->in.body &&
			       !call->in.own);
}

/*
 * Ends a call whose handler returned 0 and did not reply: sends an empty answer. Does all of it
 * under one hold of the lock. The thread that wins `replied` has the reply's hold. With the
 * handler's hold it has both, so nobody else has the call any more. Returns false for a creation,
 * for a call with a payload, and if something is in the way. The caller then has to use the general
 * way.
 */
bool rc_answer_nothing(struct rref_call *call)
{
	struct rref_ctx *ctx = call->ctx;
	uint32_t no = 0;
	int err = 0;

	/* acq_rel: as in answer_give(). */
	if (!ends_simply(call) || rc_is_child(ctx) || !at_cas_ar(&call->replied, &no, 1))
		return false;
	rc_lock(ctx);
	if (likely(rc_same_session(ctx, call->caller, call->caller_epoch))) {
		struct rw_message m;

		rw_reply_init(&m);
		m.u.reply.call_id = call->call_id;
		err = rc_send(ctx, call->caller, &m);
	}
	if (unlikely(err && err != -EOWNERDEAD)) {
		at_store(&call->replied, 0);
		rc_unlock(ctx);
		return false;
	}
	answer_finished(ctx, call);
	rc_unlock(ctx);
	return true;
}

/* Puts the result into the message, and shares its references. */
static needs_lock int put_result(struct rref_call *call, struct rw_reply *r,
				 const struct rref_args *result, struct rc_payload *payload)
{
	int err = payload ? rc_payload_fill(call->ctx, payload, result, &r->loc, r->key) :
			    rc_make_forks(call->ctx, result, call->caller, r->refs);

	if (err)
		return err;
	r->nr_refs = (uint16_t)result->nr_refs;
	r->data = result->data;
	r->data_length = (uint32_t)result->length;
	return 0;
}

/* Sends the reply of a plain call. Consumes *payload if it went out. */
static needs_lock int reply_rpc(struct rref_call *call, int status, unsigned about,
				const char *text, const struct rref_args *result,
				struct rc_payload **payload)
{
	struct rref_ctx *ctx = call->ctx;
	struct rw_message m;
	struct rw_reply *r = &m.u.reply;
	int err;

	rb_assert_with(status <= 0 && !(status && *payload), "status %d", status);
	if (!rc_same_session(ctx, call->caller, call->caller_epoch))
		return 0; /* the caller is gone, and a new worker of that name never asked */
	rw_reply_init(&m);
	r->call_id = call->call_id;
	r->status = status;
	if (status) {
		r->about = (uint16_t)about;
		r->text = text;
		r->text_length = (uint16_t)min_of(strlen(text), (size_t)RP_TEXT_MAX - 1);
	} else if (result && (err = put_result(call, r, result, *payload))) {
		return err;
	}
	err = rc_send(ctx, call->caller, &m);
	if (err) {
		if (*payload)
			rc_payload_undo(ctx, *payload);
		else
			rc_undo_forks(ctx, result, call->caller, r->refs, r->nr_refs);
		return err == -EOWNERDEAD ? 0 : err;
	}
	if (*payload)
		rc_payload_offer(ctx, *payload, RW_PAYLOAD_REPLY, call->call_id);
	*payload = NULL;
	return 0;
}

/* Ends the creation f, whose caller is this worker, with its value or an error. */
static needs_lock void creation_here_ends(struct rref_future *f, int status, unsigned about,
					  const char *text, struct rc_value *v)
{
	struct rref *h = f->handle;

	rc_remote(h)->creation = NULL;
	if (status)
		rc_handle_fail_about(h, status, (uint16_t)about, text);
	if (rc_op_claim(f)) {
		f->status = status;
		f->about = status ? (uint16_t)about : 0;
		snprintf(f->text, sizeof(f->text), "%s", text ? text : "");
		if (!status && at_load(&h->state) != RC_H_READY) {
			h->value = v;
			at_store_rel(&h->state, RC_H_READY);
		}
		rc_op_finish_locked(f);
	}
	rc_op_put(f);
}

/*
 * Completes a creation with its value, which is made already. If all workers that wanted the value
 * are gone, the machine has no entry to put it in.
 */
static needs_lock void reply_remote(struct rref_call *call, int status, unsigned about,
				    const char *text, struct rc_value *v)
{
	struct rref_ctx *ctx = call->ctx;
	struct rp_event ev = { .type = RP_EV_SET,
			       .id = call->id,
			       .status = status,
			       .about = (uint16_t)about,
			       .text = text,
			       .value = v };
	int err = rc_step(ctx, &ev, NULL);

	if (!err && call->caller == ctx->rank) {
		struct rref_future *f = rc_op_find(ctx, call->call_id);

		if (f && at_load(&f->kind) == &rc_creation_here_kind)
			creation_here_ends(f, status, about, text, v);
	}
	if (err && v)
		rc_value_unpin(v);
}

/*
 * Gives the answer, once. v is the value of a creation, payload that of a large result. Consumes
 * both, also if it fails.
 */
static int answer_give(struct rref_call *call, int status, unsigned about, const char *text,
		const struct rref_args *result, struct rc_value *v, struct rc_payload *payload)
{
	struct rref_ctx *ctx = call->ctx;
	uint32_t no = 0;
	int err = 0;

	/* acq_rel: of two threads that reply one wins, and it sees all that the handler did. */
	if (!at_cas_ar(&call->replied, &no, 1)) {
		if (v)
			rc_value_unpin(v);
		rc_payload_drop(payload);
		return rc_fail(EALREADY, "the call was replied to already");
	}
	rc_lock(ctx);
	if (call->kind == RW_CALL_REMOTE)
		reply_remote(call, status, about, text, v);
	else
		err = reply_rpc(call, status, about, text, result, &payload);
	if (err)
		at_store(&call->replied, 0);
	else
		list_del(&call->open_node);
	rc_unlock(ctx);
	if (payload) {
		char why[RREF_TEXT_SIZE];

		snprintf(why, sizeof(why), "%s", rc_error_text());
		rc_payload_drop(payload); /* the payload did not go out */
		if (err)
			rc_fail(-err, "%s", why);
	}
	if (!err)
		rc_call_put(call); /* the reply's hold; a handler that still runs has its own */
	return err;
}

/* Makes the value of a creation from its result. */
static int make_value(struct rref_call *call, const struct rref_args *result, struct rc_value **out)
{
	struct rc_value *v;
	int err = rc_value_alloc(call->ctx, result ? result->length : 0, call->fn->name, &v);

	if (err)
		return err;
	if (result && result->nr_refs && (err = rc_value_hold(v, result->refs, result->nr_refs))) {
		rc_value_unpin(v);
		return err;
	}
	if (v->view.length)
		memcpy(rc_value_data(v), result->data, v->view.length);
	rc_value_publish(v, call->id);
	*out = v;
	return 0;
}

static int check_result(struct rref_ctx *ctx, const struct rref_args *result)
{
	int err = rc_check_args(ctx, result);

	return !err && result && result->meta_length ? rc_fail(EINVAL, "a result has no metadata")
						     : err;
}

int rc_answer(struct rref_call *call, int status, unsigned about, const char *text,
	      const struct rref_args *result)
{
	struct rref_ctx *ctx = call->ctx;
	struct rc_payload *payload = NULL;
	struct rc_value *v = NULL;
	int err = 0;

	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	if (!status) {
		err = check_result(ctx, result);
		if (!err && call->kind == RW_CALL_REMOTE)
			err = make_value(call, result, &v);
		else if (!err)
			err = rc_payload_make(ctx, call->caller, result,
					      rc_may_wait(ctx) ? rc_deadline(ctx, RREF_DEFAULT) : 0,
					      &payload);
	}
	return err ? err : answer_give(call, status, about, text, result, v, payload);
}

int rref_call_reply(struct rref_call *call, const struct rref_args *result)
{
	RB_NO_CANCEL;

	if (!call)
		return rc_fail(EINVAL, "rref_call_reply: no call");
	return rc_answer(call, 0, 0, NULL, result);
}

int rref_call_reply_value(struct rref_call *call, const struct rref_value_desc *desc)
{
	RB_NO_CANCEL;
	struct rc_value *v;

	if (!call)
		return rc_fail(EINVAL, "rref_call_reply_value: no call");
	if (rc_is_barred(call->ctx))
		return rc_enter_slow(call->ctx);
	if (call->kind != RW_CALL_REMOTE)
		return rc_fail(EINVAL,
			       "rref_call_reply_value: the call is not a creation (rref_remote)");
	int err = rc_value_describe(call->ctx, desc, true, call->fn->name, "rref_call_reply_value",
				    &v);

	if (err)
		return err;
	rc_value_publish(v, call->id);
	return answer_give(call, 0, 0, NULL, NULL, v, NULL);
}

int rref_call_error(struct rref_call *call, int err, const char *fmt, ...)
{
	RB_NO_CANCEL;
	char text[RP_TEXT_MAX] = "";
	va_list ap;

	if (!call || err >= 0 || err < -4095)
		return rc_fail(EINVAL, "rref_call_error: %s",
			       call ? "the code is not a negative errno" : "no call");
	va_start(ap, fmt);
	if (fmt)
		vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return rc_answer(call, err, rc_error_about(err), *text ? text : rref_strerror(err), NULL);
}
