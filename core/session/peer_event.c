/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events of the devices. A peer wants a session; a connection is up, failed or lost; a message
 * came; a READ ended. The action for each event and state is in table.c.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/ranks.h"
#include "core/ctx.h"
#include "core/op/step.h"
#include "core/session/internal.h"
#include "core/session/session.h"
#include "core/value/value.h"

/* Time for which the loser of a crossing waits for the winner's request. */
#define CROSSING_NS (3 * NSEC_PER_SEC)

/* Counts a hello for a new session. Tells whether it is too many in this second. */
static needs_lock bool comes_too_often(struct rc_peer *p)
{
	int64_t now = now_ns();

	if (now - p->hellos_since >= NSEC_PER_SEC) {
		p->hellos_since = now;
		p->nr_hellos = 0;
	}
	return ++p->nr_hellos > RC_HELLOS_MAX;
}

/* Finds the peer of a hello, and checks that the hello is the peer's and a new one. */
static needs_lock int read_hello(struct rref_ctx *ctx, const struct rv_event *ev,
				 struct rc_handshake *h, struct rc_peer **out)
{
	const struct rc_key *key;
	struct rc_peer *p;
	uint32_t from = 0;
	int err = rc_hello_from(ev->data, ev->len, ctx->rank, &from);

	if (err)
		return err;
	if (from >= ctx->world)
		return rc_fail(ESTALE, "not a member of this group");
	p = &ctx->peers[from];
	key = rc_peer_key(ctx, p);
	err = key ? rc_hello_check(key, ev->data, ev->len, h) : -EKEYREJECTED;
	if (err)
		return err;
	if (p->member->incarnation != h->peer_incarnation)
		return rc_fail(ESTALE, "not a member of this group");
	/* The hello is a copy, or its maker gave it up when it took a connection of ours. */
	if (rc_hello_number(h) <= p->hello_number)
		return rc_fail(ESTALE, "a hello that came before, or too late");
	p->hello_number = rc_hello_number(h);
	*out = p;
	return 0;
}

/* Tells whether the peer may begin a session now, or resume one. */
static needs_lock int may_come(const struct rref_ctx *ctx, const struct rc_device *d,
			       struct rc_peer *p, bool resumes, enum rc_session_action action)
{
	if (action == RC_DO_LEFT)
		return rc_fail(ESHUTDOWN, RC_LEFT_TEXT);
	if (p->dev != d->dev)
		return rc_fail(EPROTO, "this pair of workers uses the other device");
	if (now_ns() < p->resume.banned_until)
		return rc_fail(EAGAIN, "too many of its connections broke here; later");
	if (resumes)
		return 0;
	if (comes_too_often(p))
		return rc_fail(EAGAIN, "it begins too many sessions; later");
	if (action == RC_DO_CROSS && ctx->rank < p->rank)
		return rc_fail(EALREADY, "the connection of the lower rank is under way");
	return 0;
}

/* Ends the session, or the attempt at one, that the peer's new session replaces. */
static needs_lock void replace(struct rref_ctx *ctx, struct rc_peer *p,
			       enum rc_session_action action)
{
	if (action == RC_DO_CROSS || action == RC_DO_REPLACE) {
		/* This worker's attempt loses, or an older attempt of the peer's. Nothing was sent
		 * on it; messages in the queue go over the new connection. */
		rc_peer_close(p);
		rc_session_on(ctx, p, RC_STEP_OVER);
		rc_send_unproved(p);
	} else if (action == RC_DO_END_TAKE) {
		rc_session_end(ctx, p, -ENETRESET, "the peer opened a new session");
		(void)p->ops->close_conn(p->ending.next); /* the peer has given up that one */
	}
}

static needs_lock void accept_failed(struct rref_ctx *ctx, struct rc_peer *p, int err)
{
	char why[RP_TEXT_MAX];

	if (!rc_is_lack(err)) {
		rc_log(ctx, RREF_LOG_WARNING, "accepting %s failed: %s", p->member->name,
		       rv_error_text());
		rc_contact_finished(ctx, p, "accepting its connection failed");
		return;
	}
	snprintf(why, sizeof(why), "accepting its connection: %.170s", rv_error_text());
	if (worth_logging(++ctx->session.nr_refused))
		rc_log(ctx, RREF_LOG_WARNING, "%s (rank %u) was told to come again: %s",
		       p->member->name, p->rank, why);
	rc_contact_lacks(ctx, p, why);
	rc_contact_finished(ctx, p, why);
}

void rc_peer_take(struct rref_ctx *ctx, struct rc_peer *p, struct rv_conn *conn)
{
	uint8_t answer[RV_ANSWER_MAX];
	size_t length;
	int err;

	rc_assert_locked(ctx);
	rc_peer_end_grace(ctx, p);
	p->hs.epoch = ++p->epoch;
	p->link = conn;
	rc_session_on(ctx, p, RC_STEP_TAKEN);
	p->cut_off = false; /* the peer lives */
	rc_contact_begin(ctx, p);
	p->said_goodbye = p->goodbye_sent = false;
	p->send_seq = p->recv_seq = 0;
	length = rc_answer_make(&p->key, &p->hs, answer);
	err = rc_peer_seal(p, conn, false);
	if (!err)
		err = p->ops->accept(conn, answer, length, p);
	if (err)
		accept_failed(ctx, p, err);
}

static needs_lock void on_request(struct rref_ctx *ctx, struct rc_device *d,
				  const struct rv_event *ev)
{
	struct rc_handshake h = { .self_rank = ctx->rank,
				  .self_incarnation = ctx->group.incarnation };
	enum rc_session_action action = RC_DO_REFUSE;
	struct rc_peer *p = NULL;
	int err = read_hello(ctx, ev, &h, &p);

	if (!err) {
		action = rc_session_on(ctx, p, h.resumes ? RC_SEE_RESUME : RC_SEE_HELLO);
		err = may_come(ctx, d, p, h.resumes, action);
	}
	if (err) {
		rc_peer_refuse(ctx, d, ev->conn, err, rc_error_text());
	} else if (h.resumes) {
		rc_resume_request(ctx, d, p, &h, ev, action);
	} else {
		replace(ctx, p, action);
		p->hs = h;
		if (action == RC_DO_END_TAKE)
			p->ending.next = ev->conn; /* kept until the fence is carried out */
		else
			rc_peer_take(ctx, p, ev->conn);
	}
}

static needs_lock void on_connected(struct rref_ctx *ctx, struct rc_peer *p,
				    const struct rv_event *ev)
{
	struct rw_message proof = { .frame.type = RW_AUTH };
	int err;

	err = rc_peer_answered(p, ev, proof.u.auth.mac);
	if (err) {
		at_add(&ctx->n.rejected, 1);
		if (err == -ENETRESET)
			rc_contact_finished(ctx, p,
					 "somebody else's message came over its connection");
		else
			rc_session_end(ctx, p, err, rc_error_text());
		return;
	}
	rc_beacon(ctx, p->kind, &proof.u.auth);
	rc_peer_end_grace(ctx, p);
	p->epoch = p->hs.epoch;
	rc_session_on(ctx, p, RC_STEP_ANSWERED);
	p->cut_off = false; /* the peer lives */
	rc_contact_begin(ctx, p);
	p->send_seq = p->recv_seq = 0;
	p->said_goodbye = p->goodbye_sent = false;
	at_store(&p->alive, true);
	err = rc_peer_allow(ctx, p);
	if (!err)
		err = rc_send(ctx, p->rank, &proof);
	if (err)
		rc_contact_finished(ctx, p, "the session could not be started");
}

static needs_lock void on_failed(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	char text[RP_TEXT_MAX] = "";
	int err = ev->status;

	if (ev->len)
		err = rc_reason_parse(ev->data, ev->len, text, sizeof(text));
	if (err == -EALREADY && p->state == RC_PEER_CONNECTING) {
		/* The attempts crossed: the other side's request is on its way. */
		rc_peer_close(p);
		p->retry_at = now_ns() + CROSSING_NS;
		rc_session_on(ctx, p, RC_STEP_CROSSED);
		return;
	}
	if (!ev->len && (err == -EAGAIN || rc_is_lack(err)))
		rc_contact_lacks(ctx, p, err == -EAGAIN ? NULL : rref_strerror(err));
	rc_contact_failed(ctx, p, err, ev->len ? text : NULL);
}

static needs_lock void set_up(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rp_event up = { .type = RP_EV_PEER_UP, .peer = p->rank, .epoch = p->epoch };

	rc_contact_up(ctx, p);
	p->ever_up = true;
	p->nr_sessions++;
	ctx->n.sessions++;
	p->fenced = false;
	p->nobody = false;
	rc_stall_begin(ctx, p);
	rc_step(ctx, &up, NULL);
}

/*
 * Takes the first message of a session: the proof (to the server) or its answer (to the client).
 * Returns 0, or -errno if there is no session.
 */
static needs_lock int on_first_message(struct rref_ctx *ctx, struct rc_peer *p,
				       const struct rv_event *ev)
{
	struct rw_message m, welcome = { .frame.type = RW_AUTH };
	int err;

	if (rw_decode(ev->data, ev->len, ctx->world, &m) || m.frame.type != RW_AUTH ||
	    m.frame.epoch != p->epoch || m.frame.seq != 1)
		return rc_fail(EPROTO,
			       "its first message did not prove that it holds the group's key");
	p->recv_seq = 1;
	p->beacon_addr = m.u.auth.beacon_addr;
	p->beacon_rkey = m.u.auth.beacon_rkey;
	if (p->state == RC_PEER_ACCEPTING) {
		err = rc_proof_check(&p->key, &p->hs, m.u.auth.mac);
		if (err)
			return err;
		err = rc_peer_allow(ctx, p);
		if (err)
			return rc_fail(-err, "the session could not be started: %s",
				       rv_error_text());
		rc_session_on(ctx, p, RC_STEP_PROVED);
		set_up(ctx, p);
		rc_beacon(ctx, p->kind, &welcome.u.auth);
		err = rc_send(ctx, p->rank, &welcome);
		if (err)
			return err;
	} else {
		rc_session_on(ctx, p, RC_STEP_PROVED);
		set_up(ctx, p);
	}
	rc_log(ctx, RREF_LOG_INFO, "session %u with %s (rank %u) over %s is up", p->epoch,
	       p->member->name, p->rank, p->ops->name);
	rc_peer_open_reads(ctx, p);
	return 0;
}

/*
 * Gives up a session that could not begin. A failure here is not the peer's fault, unless its proof
 * is wrong.
 */
static needs_lock void not_started(struct rref_ctx *ctx, struct rc_peer *p, int err)
{
	bool is_its_fault = err == -EKEYREJECTED || err == -EPROTO;
	char why[RP_TEXT_MAX];

	snprintf(why, sizeof(why), "%.180s", rc_error_text());
	at_add(&ctx->n.rejected, is_its_fault);
	if (!is_its_fault && p->state == RC_PEER_ACCEPTING)
		rc_contact_finished(ctx, p, why);
	else
		rc_session_end(ctx, p, is_its_fault || err == -ENOMEM ? err : -EOWNERDEAD, why);
}

static needs_lock void on_first(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	int err;

	rc_count_received(ctx, p, ev->data, ev->len);
	err = on_first_message(ctx, p, ev);
	if (err)
		not_started(ctx, p, err);
}

/* Breaks the session's connection, or ends the session. */
static needs_lock void on_lost(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev,
			       bool attempt)
{
	char why[RP_TEXT_MAX], lost[RP_TEXT_MAX];
	int status = -EOWNERDEAD;

	if (p->said_goodbye)
		snprintf(why, sizeof(why), "it left the group");
	else if (ev->wc_status > 0)
		snprintf(why, sizeof(why),
			 "its connection was lost (%s, work completion status %d)",
			 rref_strerror(ev->status), ev->wc_status);
	else
		snprintf(why, sizeof(why), "its connection was lost (%s)",
			 rref_strerror(ev->status));
	if (rc_resume_may(ctx, p, ev->status)) {
		rc_resume_break(ctx, p, ev->status, why);
		return;
	}
	if (attempt && ev->status != -ENODEV) {
		rc_contact_finished(ctx, p, why);
		return;
	}
	if (!p->said_goodbye) {
		status = rc_stall_lost(ctx, p, why, lost, sizeof(lost));
		snprintf(why, sizeof(why), "%s", lost);
	}
	rc_session_end(ctx, p, status, why);
}

void rc_peer_read(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status, int wc)
{
	rc_assert_locked(ctx);
	if (unlikely(cookie == RC_PROBE_COOKIE)) {
		at_sub(&ctx->sleep.reads_in_flight, 1);
		if (p)
			rc_stall_event(ctx, p, status);
		return;
	}
	ctx->session.events->read_ended(ctx, p, cookie, status, wc);
}

/* Does the table's action for an event of p->link. */
static needs_lock void do_event(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	static const unsigned char report[] = {
		[RV_EV_CONNECTED] = RC_SEE_CONNECTED, [RV_EV_FAILED] = RC_SEE_FAILED,
		[RV_EV_DISCONNECTED] = RC_SEE_LOST,   [RV_EV_RECV] = RC_SEE_MESSAGE,
		[RV_EV_WRITABLE] = RC_SEE_WRITABLE,
	};
	enum rc_session_action action = rc_session_on(ctx, p, report[ev->type]);

	switch (action) {
	case RC_DO_ALIVE:
		at_store(&p->alive, true);
		break;
	case RC_DO_ANSWER:
		on_connected(ctx, p, ev);
		break;
	case RC_DO_REANSWER:
		rc_resume_answered(ctx, p, ev);
		break;
	case RC_DO_FAIL:
		on_failed(ctx, p, ev);
		break;
	case RC_DO_REFAIL:
		rc_resume_failed(ctx, p, ev);
		break;
	case RC_DO_LOSE:
	case RC_DO_OVER:
		on_lost(ctx, p, ev, action == RC_DO_OVER);
		break;
	case RC_DO_REOVER:
		rc_resume_dropped(ctx, p);
		break;
	case RC_DO_FIRST:
		on_first(ctx, p, ev);
		break;
	case RC_DO_REFIRST:
		rc_resume_message(ctx, p, ev);
		break;
	case RC_DO_MESSAGE:
		rc_count_received(ctx, p, ev->data, ev->len);
		ctx->session.events->message(ctx, p, ev->data, ev->len);
		break;
	case RC_DO_DROP:
		at_add(&ctx->n.dropped, 1);
		break;
	case RC_DO_FLUSH:
		rc_send_flush(ctx, p);
		break;
	default:
		break;
	}
}

static needs_lock void end_lost(struct rref_ctx *ctx, const struct rc_device *d, struct rc_peer *p)
{
	if (p->dev == d->dev)
		rc_session_end(ctx, p, d->lost_why, "the device was lost");
}

/* Ends the sessions over a device that was lost, some at a time. */
static needs_lock void lost_turn(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_device *d = container_of(w, struct rc_device, lost_work);
	uint32_t end = min_of(d->lost_next + RC_RANKS_TURN, ctx->world);

	for (; d->lost_next < end; d->lost_next++) {
		rb_slow_rank(2 * RC_RANKS_TURN);
		end_lost(ctx, d, &ctx->peers[d->lost_next]);
	}
	if (end < ctx->world)
		rc_defer(ctx, w);
}

static needs_lock void handle_event(struct rref_ctx *ctx, struct rc_device *d,
				    const struct rv_event *ev)
{
	struct rc_peer *p = ev->user;

	if (ev->type == RV_EV_REQUEST) {
		on_request(ctx, d, ev);
		return;
	}
	if (ev->type == RV_EV_CLOSED) {
		if (p)
			rc_peer_closed(ctx, p, ev->status);
		return;
	}
	if (ev->type == RV_EV_DEVICE) {
		rc_log(ctx, ev->status ? RREF_LOG_ERROR : RREF_LOG_INFO, "%s: %.*s", d->caps.device,
		       (int)ev->len, ev->data ? (const char *)ev->data : "");
		if (ev->status && !d->lost_why) {
			d->lost_why = ev->status;
			d->lost_work.run = lost_turn;
			rc_defer(ctx, &d->lost_work);
		}
		return;
	}
	/* The end of the connection may come before lost_turn is there. Its cause is the device. */
	if (unlikely(d->lost_why) && p)
		end_lost(ctx, d, p);
	/* The message is of another sender, or changed on its way. Its connection ends; the session
	 * goes on over another. */
	if (ev->status == -EBADMSG && (ev->type == RV_EV_DISCONNECTED || ev->type == RV_EV_FAILED))
		at_add(&ctx->n.rejected, 1);
	if (!p || p->link != ev->conn)
		at_add(&ctx->n.dropped, 1); /* event of a connection that is closed already */
	else if (ev->type == RV_EV_READS_UP)
		rc_resume_reads(ctx, p);
	else if (ev->type == RV_EV_READS_DOWN)
		rc_resume_cut(ctx, p, ev->status);
	else
		do_event(ctx, p, ev);
	if (ev->type == RV_EV_RECV)
		d->ops->recv_done(d->dev, ev->token);
}

static __attribute__((noinline)) needs_lock void any_event(struct rref_ctx *ctx,
							   struct rc_device *d,
							   const struct rv_event *ev)
{
	struct rc_error scratch;

	rc_error_aside(&scratch);
	handle_event(ctx, d, ev);
	rc_error_back(&scratch);
}

void rc_peer_event(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev)
{
	struct rc_peer *p = ev->user;

	rc_assert_locked(ctx);
	/* Most events are messages of a session that is up, or ends of READs. */
	if (ev->type == RV_EV_READ) {
		rc_peer_read(ctx, p, ev->cookie, ev->status, ev->wc_status);
	} else if (unlikely(ev->type != RV_EV_RECV || !p || p->link != ev->conn ||
			    p->state != RC_PEER_UP)) {
		any_event(ctx, d, ev);
	} else {
		rc_count_received(ctx, p, ev->data, ev->len);
		ctx->session.events->message(ctx, p, ev->data, ev->len);
		d->ops->recv_done(d->dev, ev->token);
	}
}
