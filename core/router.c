/* SPDX-License-Identifier: Apache-2.0 */
/* Messages that came: each is handed to its room. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/lock.h"
#include "core/base/clock.h"
#include "core/call/call.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/op/step.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/look.h"
#include "core/value/value.h"

/*
 * Notes a goodbye and has it acknowledged at once. The sender waits for that before it goes, and no
 * later message may follow.
 */
static needs_lock void on_goodbye(struct rc_peer *from)
{
	from->said_goodbye = true;
	from->unacked.owed += RC_ACK_EVERY;
}

/* Hands the next message to its room, if it is neither a call nor a reply. */
static __attribute__((noinline)) needs_lock void dispatch(struct rref_ctx *ctx,
							  struct rc_peer *from,
							  const struct rw_message *m)
{
	bool self = from->rank == ctx->rank;
	int err;

	switch (m->frame.type) {
	case RW_PROTO: {
		struct rp_event ev = { .type = RP_EV_MSG,
				       .peer = from->rank,
				       .epoch = from->epoch,
				       .msg = &m->u.proto };

		rc_onlooker_message(ctx, from, m->u.proto.type);
		err = rc_step_at(ctx, &ev, from->heard_at);
		if (err == -EPROTO || err == -EINVAL)
			break;
		if (err == -ENOMEM)
			rc_session_end(ctx, from, -EOWNERDEAD,
				       "a message of it was lost for want of memory");
		return;
	}
	case RW_BARRIER:
		if (!rc_barrier_message(ctx, from, m->u.number))
			break;
		return;
	case RW_BARRIER_DONE:
		if (!rc_barrier_done_message(ctx, from, m->u.number))
			break;
		return;
	case RW_GOODBYE:
		on_goodbye(from);
		return;
	case RW_PING: {
		struct rw_message pong = { .frame.type = RW_PONG, .u.number = m->u.number };

		rc_send_or_end(ctx, from->rank, &pong);
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
	rc_session_end(ctx, from, -EPROTO, "it broke the protocol");
}

static __attribute__((noinline)) needs_lock void malformed(struct rref_ctx *ctx,
							   struct rc_peer *from)
{
	at_add(&ctx->n.dropped, 1);
	at_add(&ctx->n.rejected, 1);
	rc_session_end(ctx, from, -EPROTO, "it sent a malformed message");
}

/*
 * Returns whether a RECEIVED is well-formed. It only tells how far our messages came, and is not
 * counted.
 */
static bool is_news(const struct rw_message *m)
{
	static const uint8_t no_mac[sizeof(m->u.received.mac)];

	return (uint32_t)m->u.received.seq == m->frame.ack &&
	       !memcmp(m->u.received.mac, no_mac, sizeof(no_mac));
}

void rc_message(struct rref_ctx *ctx, struct rc_peer *from, const void *data, uint32_t length)
{
	struct rw_message m;
	bool self = from->rank == ctx->rank;

	rc_assert_locked(ctx);
	if (unlikely(rw_decode(data, length, ctx->world, &m))) {
		malformed(ctx, from);
		return;
	}
	if (likely(!self)) {
		bool news = m.frame.type == RW_RECEIVED;

		if (unlikely(m.frame.epoch != from->epoch ||
			     m.frame.seq != (news ? 0 : from->recv_seq + 1) ||
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
	if (likely(!self))
		rc_send_after(ctx, from);
}

/* ---- events of sessions ---- */

static needs_lock void session_read_finished(struct rref_ctx *ctx, struct rc_peer *p,
					     uint64_t cookie, int status, int wc)
{
	if (rc_in_flight_is(cookie))
		rc_in_flight_event(ctx, p, cookie, status, wc);
	else
		rc_read_event(ctx, cookie, status, wc);
	if (p)
		rc_reads_go_on(ctx, p);
}

static needs_lock void session_reads_stop(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_fast_fence(ctx);
	rc_split_stop(p);
	rc_peer_watch(ctx, p);
}

static needs_lock bool session_posts(struct rref_ctx *ctx, const struct rc_peer *p)
{
	return rc_is_pinned(ctx, p);
}

static needs_lock void session_unsent(struct rref_ctx *ctx, struct rc_peer *p,
				      const struct rw_message *m, int err, const char *why)
{
	if (m->frame.type == RW_CALL)
		rc_call_unsent(ctx, p->rank, &m->u.call, err, why);
	else
		rc_type_unsent(ctx, &m->u.type, err, why);
}

static needs_lock void session_ended(struct rref_ctx *ctx, struct rc_peer *p, int status,
				     const char *why)
{
	struct list *n;

	rc_payloads_fenced(ctx, p);
	rc_calls_fenced(ctx, p);
	rc_ops_fail_peer(ctx, p->rank, status, why);
	while ((n = list_pop(&p->waiting))) {
		at_sub(&p->nr_waiting, 1);
		rc_read_fail(container_of(n, struct rref_future, node), status);
	}
}

const struct rc_session_events rc_router_session = {
	.message = rc_message,
	.read_ended = session_read_finished,
	.reads_may = rc_reads_go_on,
	.reads_stop = session_reads_stop,
	.posts = session_posts,
	.unsent = session_unsent,
	.ended = session_ended,
	.one_fewer = rc_barrier_check,
	.is_awaited = rc_barrier_misses,
};
