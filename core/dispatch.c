/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the wire, the protocol machine and the rest: incoming messages become events, the machine's effects become
 * messages, handles, completions.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/call/call.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/value.h"

static void send_effect(struct rref_ctx *ctx, const struct rp_effect *e)
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
		rc_tell(ctx, e->peer, &m);
	else if (rc_send(ctx, ctx->rank, &m)) {
		/* No session ends that would put a lost one right, so it is not put into a queue. */
		struct rp_event ev = { .type = RP_EV_MSG, .peer = ctx->rank, .msg = &m.u.proto };

		rc_step(ctx, &ev, NULL);
	}
}

static void new_handle(struct rref_ctx *ctx, const struct rp_effect *e)
{
	struct rc_inref *slot = (struct rc_inref *)(uintptr_t)e->cookie;
	bool owned = e->fork.local_id == 0;
	struct rref *h = rc_handle_make(ctx, owned, e->id, e->fork, e->peer);

	if (e->handle_slot)
		*e->handle_slot = h;
	if (!h) {
		/* No memory for a handle: the reference that the machine made for it is given back at once. */
		struct rp_event ev = { .type = owned ? RP_EV_RELEASE : RP_EV_DROP, .id = e->id, .fork = e->fork,
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

static void ready(struct rref_ctx *ctx, const struct rp_effect *e)
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

/* A wait is over: the owner's alias, or the location from which to read, or the error. */
static void waited(struct rref_ctx *ctx, const struct rp_effect *e)
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
		rc_op_fail(f, e->status, -1, e->text, true);
		rc_op_put(f);
	} else if (h->owned) {
		struct rc_value *v = e->value;

		/* Once: from then on threads read it without the lock. */
		if (at_load(&h->state) != RC_H_READY) {
			h->value = v;
			at_store_rel(&h->state, RC_H_READY);
		}
		if (rc_op_claim(f)) {
			f->type = v->type;
			if (at_load(&f->kind) == RC_OP_READ) {
				at_add(&v->pins, 1);
				f->view = &v->view;
			}
			rc_op_finish(f, true);
		}
		rc_op_put(f);
	} else if (!rc_op_wanted(f)) {
		rc_op_put(f); /* timed out or cancelled meanwhile */
	} else if (at_load(&f->kind) == RC_OP_TYPE) {
		rc_type_located(ctx, f, &e->loc);
	} else {
		f->loc = e->loc;
		rc_read_start(f, true);
	}
}

static void created(const struct rp_effect *e)
{
	struct rref *h = e->handle;
	struct rref_future *f = h ? rc_remote(h)->creation : NULL;

	if (!f)
		return;
	rc_remote(h)->creation = NULL;
	/* As with calls: only holders of the lock complete it, so that it may be filled in while it is PENDING. */
	if (rc_op_wanted(f)) {
		f->status = e->status;
		f->about = e->about;
		if (e->status)
			snprintf(f->text, sizeof(f->text), "%s", e->text);
		rc_op_finish(f, true);
	}
	rc_op_put(f);
}

/*
 * Carries the next effect out. What it leads to (a peer that turns out to be unreachable ...) may step the machine again,
 * which may move the effects: no function above looks at its effect again behind what may lead to a step.
 */
static bool carry_out(struct rref_ctx *ctx)
{
	const struct rp_effect *e = rp_effect_next(ctx->machine);

	if (!e)
		return false;
	switch (e->type) {
	case RP_EFF_SEND:
		send_effect(ctx, e);
		break;
	case RP_EFF_NEW_HANDLE:
		new_handle(ctx, e);
		break;
	case RP_EFF_READY:
		ready(ctx, e);
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
		waited(ctx, e);
		break;
	case RP_EFF_FREE_VALUE:
		rc_value_retire(e->value);
		break;
	case RP_EFF_GONE:
		break;
	case RP_EFF_DUPLICATE:
		ctx->duplicate = true;
		break;
	}
	return true;
}

void rc_effects(struct rref_ctx *ctx)
{
	/* Effects of a step that an effect led to are taken out by the loop that is under way. */
	if (ctx->in_effects)
		return;
	ctx->in_effects = true;
	while (carry_out(ctx))
		;
	ctx->in_effects = false;
}

static int step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec, int64_t now)
{
	int err;

	if (!ctx->machine)
		return -ESHUTDOWN;
	ev->now = rc_age_at(ctx, now);
	err = rp_step(ctx->machine, ev, rec);
	/* An event that gives back never fails for want of memory, only for that of room: then effects
	 * that are due come first. */
	while (unlikely(err == -ENOMEM) && rp_gives_back(ev->type) && carry_out(ctx))
		err = rp_step(ctx->machine, ev, rec);
	rc_effects(ctx);
	return err;
}

int rc_step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec)
{
	return step(ctx, ev, rec, rc_coarse_ns());
}

int rc_step_at(struct rref_ctx *ctx, struct rp_event *ev, int64_t now)
{
	return step(ctx, ev, NULL, now);
}

/* ---- barriers: a star around rank 0 ---- */

#define BUSY_BIT(number) (UINT64_C(1) << (number) % 64)

static uint64_t barrier_word(const struct rref_ctx *ctx, uint64_t number)
{
	return number << 1 | !!(ctx->barrier_busy & BUSY_BIT(number));
}

static void barrier_done(struct rref_ctx *ctx, uint64_t number, bool busy)
{
	if (busy)
		ctx->barrier_busy |= BUSY_BIT(number);
	if (number > ctx->barrier_done) {
		ctx->barrier_done = number;
		ctx->barrier_busy &= ~BUSY_BIT(number + 1);
	}
	if (ctx->barrier_op && ctx->barrier_op->number <= number) {
		struct rref_future *f = ctx->barrier_op;

		ctx->barrier_op = NULL;
		if (rc_op_claim(f)) {
			rc_op_finish(f, true);
			rc_op_put(f);
		}
	}
}

bool rc_barrier_misses(const struct rref_ctx *ctx, uint32_t rank)
{
	const struct rc_peer *p = &ctx->peers[rank];

	if (ctx->rank != 0 || !ctx->barrier_seen || ctx->barrier_sent <= ctx->barrier_done ||
	    ctx->barrier_seen[rank] > ctx->barrier_done)
		return false;
	/* Slow is not dead: it had a session that ended, or there is no process any more that would take one. */
	return rank == 0 || at_load(&p->alive) || !(p->ever_up || p->nobody);
}

/* Rank 0: is the next barrier complete? Workers that died do not come any more. */
void rc_barrier_check(struct rref_ctx *ctx)
{
	if (ctx->rank != 0 || !ctx->barrier_seen || ctx->barrier_sent <= ctx->barrier_done)
		return;
	uint64_t number = ctx->barrier_done + 1;

	for (uint32_t i = 0; i < ctx->world; i++)
		if (rc_barrier_misses(ctx, i))
			return;
	for (uint32_t i = 1; i < ctx->world; i++) {
		struct rw_message m = { .frame.type = RW_BARRIER_DONE, .u.number = barrier_word(ctx, number) };

		if (ctx->barrier_seen[i] >= number && at_load(&ctx->peers[i].alive))
			rc_tell(ctx, i, &m);
	}
	barrier_done(ctx, number, false);
}

/* Its last word, which it wants to know to have come before it goes: at once, not with a message that may never follow. */
static void on_goodbye(struct rc_peer *from)
{
	from->said_goodbye = true;
	from->unacked.owed += RC_ACK_EVERY;
}

/* One that is the next, and neither a call nor a reply. */
static __attribute__((noinline)) void dispatch(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m)
{
	bool self = from->rank == ctx->rank;
	int err;

	switch (m->frame.type) {
	case RW_PROTO: {
		struct rp_event ev = { .type = RP_EV_MSG, .peer = from->rank, .epoch = from->epoch, .msg = &m->u.proto };

		err = rc_step_at(ctx, &ev, from->heard_at);
		if (err == -EPROTO || err == -EINVAL)
			break;
		if (err == -ENOMEM)
			rc_peer_fence(ctx, from, -EOWNERDEAD, "a message of it was lost for want of memory");
		return;
	}
	case RW_BARRIER: {
		uint64_t number = m->u.number >> 1;

		/* The last one again: its sender lost a session, and does not know if it came. */
		bool again = ctx->rank == 0 && number && number == ctx->barrier_seen[from->rank];

		if (ctx->rank != 0 || (!again && number != (uint64_t)ctx->barrier_seen[from->rank] + 1))
			break;
		ctx->barrier_seen[from->rank] += !again;
		if (!again && number > ctx->barrier_done && (m->u.number & 1))
			ctx->barrier_busy |= BUSY_BIT(number);
		if (number <= ctx->barrier_done) {
			/* It was given up for dead, and only its session had ended: it missed nothing but the answer. */
			struct rw_message late = { .frame.type = RW_BARRIER_DONE, .u.number = barrier_word(ctx, number) };

			rc_tell(ctx, from->rank, &late);
		}
		rc_barrier_check(ctx);
		return;
	}
	case RW_BARRIER_DONE:
		if (from->rank != 0 || m->u.number >> 1 > ctx->barrier_sent)
			break;
		barrier_done(ctx, m->u.number >> 1, m->u.number & 1);
		return;
	case RW_GOODBYE:
		on_goodbye(from);
		return;
	case RW_PING: {
		struct rw_message pong = { .frame.type = RW_PONG, .u.number = m->u.number };

		rc_tell(ctx, from->rank, &pong);
		return;
	}
	case RW_PONG:
		if (m->u.number > from->pinged)
			break;
		from->ponged = m->u.number;
		return;
	case RW_TYPE_QUERY:
		rc_type_query(ctx, from, &m->u.type);
		return;
	case RW_TYPE_ANSWER:
		rc_type_answer(ctx, from, &m->u.type);
		return;
	case RW_CANCEL:
		rc_cancel_message(ctx, from, m->u.number);
		return;
	case RW_DONE:
		rc_payload_done(ctx, from, &m->u.done);
		return;
	case RW_FENCED:
		if (self)
			break;
		rc_stall_message(ctx, from, m->u.number);
		return;
	default:
		break;
	}
	if (self)
		return;
	at_add(&ctx->n.rejected, 1);
	rc_peer_fence(ctx, from, -EPROTO, "it broke the protocol");
}

static __attribute__((noinline)) void malformed(struct rref_ctx *ctx, struct rc_peer *from)
{
	at_add(&ctx->n.dropped, 1);
	at_add(&ctx->n.rejected, 1);
	rc_peer_fence(ctx, from, -EPROTO, "it sent a malformed message");
}

/* RECEIVED only tells how far ours came, and is not counted. */
static bool is_news(const struct rw_message *m)
{
	static const uint8_t no_mac[sizeof(m->u.received.mac)];

	return (uint32_t)m->u.received.seq == m->frame.ack && !memcmp(m->u.received.mac, no_mac, sizeof(no_mac));
}

void rc_message(struct rref_ctx *ctx, struct rc_peer *from, const void *data, uint32_t length)
{
	struct rw_message m;
	bool self = from->rank == ctx->rank;
	uint32_t epoch = from->epoch;

	if (unlikely(rw_decode(data, length, ctx->world, &m))) {
		malformed(ctx, from);
		return;
	}
	if (likely(!self)) {
		bool news = m.frame.type == RW_RECEIVED;

		if (unlikely(m.frame.epoch != epoch || m.frame.seq != (news ? 0 : from->recv_seq + 1) ||
			     rc_send_acked(ctx, from, m.frame.ack) || (news && !is_news(&m)))) {
			malformed(ctx, from);
			return;
		}
		from->recv_seq += !news;
		from->unacked.owed += !news;
		if (unlikely(news)) {
			rc_send_after(ctx, from);
			return;
		}
	}
	if (m.frame.type == RW_CALL)
		rc_call_message(ctx, from, &m);
	else if (m.frame.type == RW_REPLY)
		rc_reply_message(ctx, from, &m);
	else
		dispatch(ctx, from, &m);
	if (likely(!self) && rc_same_session(ctx, from->rank, epoch))
		rc_send_after(ctx, from);
}
