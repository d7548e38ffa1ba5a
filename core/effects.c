/* SPDX-License-Identifier: Apache-2.0 */
/* Effects of the protocol machine: they become messages, handles, completions. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/lock.h"
#include "core/call/call.h"
#include "core/engine.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/value.h"

static needs_lock void send_effect(struct rref_ctx *ctx, const struct rp_effect *e)
{
	struct rw_message m;

	m.frame = (struct rw_frame){ .type = RW_PROTO };
	/* The text is long, and mostly empty. */
	if (unlikely(e->msg.status))
		m.u.proto = e->msg;
	else
		memcpy(&m.u.proto, &e->msg, offsetof(struct rp_msg, text) + 1);
	if (e->value)
		rc_value_locate(e->value, &m.u.proto.loc);
	if (likely(e->peer != ctx->rank))
		rc_send_or_end(ctx, e->peer, &m);
	else if (rc_send(ctx, ctx->rank, &m)) {
		/* No session ends that would repair a lost message, so it is handled without a
		 * queue. */
		struct rp_event ev = { .type = RP_EV_MSG, .peer = ctx->rank, .msg = &m.u.proto };

		rc_step(ctx, &ev, NULL);
	}
}

static needs_lock void effect_new_handle(struct rref_ctx *ctx, const struct rp_effect *e)
{
	struct rc_inref *slot = (struct rc_inref *)(uintptr_t)e->cookie;
	bool owned = e->fork.local_id == 0;
	struct rref *h = rc_handle_make(ctx, owned, e->id, e->fork, e->peer);

	if (e->handle_slot)
		*e->handle_slot = h;
	if (!h) {
		/* No memory for a handle: the reference that the machine made for it is given back
		 * at once. */
		struct rp_event ev = { .type = owned ? RP_EV_RELEASE : RP_EV_DROP,
				       .id = e->id,
				       .fork = e->fork,
				       .peer = e->peer };

		slot->in->status = -ENOMEM;
		snprintf(slot->in->text, sizeof(slot->in->text),
			 "memory for a handle of a reference");
		rc_step(ctx, &ev, NULL);
		return;
	}
	if (owned && e->value) {
		h->value = e->value;
		at_store_rel(&h->state, RC_H_READY);
	} else if (e->status == 0) {
		rc_handle_ready(h, &e->loc);
	} else if (e->loc.version) {
		rc_remote(h)->loc = e->loc; /* used once the fork is confirmed */
	}
	slot->handle = h;
}

static needs_lock void effect_ready(struct rref_ctx *ctx, const struct rp_effect *e)
{
	struct rc_inref *slot = (struct rc_inref *)(uintptr_t)e->cookie;
	struct rc_incoming *in = slot->in;
	struct rref *h = slot->handle;

	if (e->status) {
		if (!in->status) {
			in->status = e->status;
			snprintf(in->text, sizeof(in->text), "%s", e->text);
		}
		if (h)
			rc_handle_fail_about(h, e->status, e->about, e->text);
	} else if (h && !h->owned) {
		rc_handle_ready(h, rc_remote(h)->loc.version ? &rc_remote(h)->loc : NULL);
	}
	if (--in->unready == 0)
		in->ready(ctx, in);
}

/* Ends a wait with the owner's alias, the location to read from, or the error. */
static needs_lock void effect_waited(struct rref_ctx *ctx, const struct rp_effect *e)
{
	struct rref_future *f = rc_op_find(ctx, e->cookie);
	struct rref *h;

	if (!f)
		return;
	f->parked = false;
	h = f->handle;
	if (e->status) {
		if (rc_op_wanted(f))
			f->about = e->about;
		rc_op_fail(f, e->status, -1, e->text);
		rc_op_put(f);
	} else if (h->owned) {
		struct rc_value *v = e->value;

		/* Written once: from then on threads read it without the lock. */
		if (at_load(&h->state) != RC_H_READY) {
			h->value = v;
			at_store_rel(&h->state, RC_H_READY);
		}
		if (rc_op_claim(f)) {
			f->is->here(f, v);
			rc_op_finish_locked(f);
		}
		rc_op_put(f);
	} else if (!rc_op_wanted(f)) {
		rc_op_put(f); /* timed out or cancelled meanwhile */
	} else {
		f->is->located(ctx, f, &e->loc);
	}
}

static needs_lock void created(const struct rp_effect *e)
{
	struct rref *h = e->handle;
	struct rref_future *f = h ? rc_remote(h)->creation : NULL;

	if (!f)
		return;
	rc_remote(h)->creation = NULL;
	/* Only holders of the lock complete it, as with calls. So it may be filled in while it is
	 * PENDING. */
	if (rc_op_wanted(f)) {
		f->status = e->status;
		f->about = e->about;
		if (e->status)
			snprintf(f->text, sizeof(f->text), "%s", e->text);
		rc_op_finish_locked(f);
	}
	rc_op_put(f);
}

/*
 * Carries out an effect. A consequence of it, such as a handle for which there is no memory, may
 * step the machine again. That may move the effects. So no function above uses its effect after
 * such a call. A peer that cannot be told is no such consequence: its fence comes later.
 */
void rc_effect(struct rref_ctx *ctx, const struct rp_effect *e)
{
	rc_assert_locked(ctx);
	switch (e->type) {
	case RP_EFF_SEND:
		send_effect(ctx, e);
		break;
	case RP_EFF_NEW_HANDLE:
		effect_new_handle(ctx, e);
		break;
	case RP_EFF_READY:
		effect_ready(ctx, e);
		break;
	case RP_EFF_LOCATION:
		if (e->handle)
			rc_handle_ready(e->handle, &e->loc);
		break;
	case RP_EFF_CONFIRMED:
		if (e->handle)
			rc_handle_ready(e->handle, NULL);
		break;
	case RP_EFF_FAILED:
		if (e->handle)
			rc_handle_fail_about(e->handle, e->status, e->about, e->text);
		break;
	case RP_EFF_CREATED:
		created(e);
		break;
	case RP_EFF_WAITED:
		effect_waited(ctx, e);
		break;
	case RP_EFF_FREE_VALUE:
		rc_value_retire(e->value);
		break;
	case RP_EFF_GONE:
		break;
	case RP_EFF_DUPLICATE:
		ctx->op.duplicate = true;
		break;
	}
}
