/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session outlives its connection. A connection may break although nothing says that the peer is
 * dead. The session is then "broken": nothing that hangs on it ends, and operations wait. Both
 * sides try to connect again, within the session.
 *
 *   UP --DISCONNECTED--> broken --hello(epoch), answer(received), proof(received), RECEIVED--> UP
 *                          \--no listener, refused, too late, too often--> fence
 *
 * Before anything else each side takes the fence's first two steps for the old connection. No
 * thread posts to it, and the device serves and writes nothing over it any more. So a READ that is
 * posted again, over the new connection, has its landing memory to itself. Nothing of the old
 * connection is under way either if the session ends later after all. The third step drops all that
 * hangs on the session, and only the fence takes it.
 *
 * Both sides prove again that they hold the group's key, and name the session by epoch and
 * incarnations. Each says up to which number the other's messages came. Later messages are sent
 * again (send.c), so each comes exactly once. Only holders of the MAC's key can tell the numbers.
 *
 * Both sides try at once. When the attempts cross, the lower rank's wins, as when a session begins.
 * A process that is gone has no listener: two refusals in a row end the session, within
 * milliseconds. So do two refusals with ESTALE, for another incarnation. One may be for a copy of
 * our hello, which the network repeated after the peer gave that attempt up. A peer that ended the
 * session refuses with ENETRESET: this worker was cut off. A peer that does not answer in time is
 * dead.
 *
 * A READ with a bad key ends its queue pair: a reliable connection works so
 * (docs/design/devices.md). Over ibv that one carries READs only. It is made again within the
 * connection, and messages go on. Over shm the connection ends. A peer could guess keys, or hand
 * out false locations, as often as it may try again. So broken connections are counted, and READs
 * that were cut off. Too many in a short time end the session, and for a while no other begins.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/session/internal.h"
#include "core/session/session.h"

/* pause between attempts; a little longer each time, up to AGAIN_LAST_NS */
#define AGAIN_NS (5 * NSEC_PER_MSEC)
#define AGAIN_LAST_NS (50 * NSEC_PER_MSEC)
#define LONG_NS (3600 * NSEC_PER_SEC)     /* no peer timeout is longer here */
#define CROSSED_NS (100 * NSEC_PER_MSEC)  /* time that the loser of a crossing leaves the other */
#define NOBODY_MAX 2u
#define STALE_MAX 2u
#define SCORE_NS (10 * NSEC_PER_SEC)
#define BAN_NS (5 * NSEC_PER_SEC)

static int64_t patience_ns(const struct rref_ctx *ctx)
{
	return min_of(ctx->session.peer_timeout, LONG_NS);
}

static int64_t attempt_ns(const struct rref_ctx *ctx)
{
	return max_of(patience_ns(ctx) / 3, 50 * NSEC_PER_MSEC);
}

static needs_lock int64_t again_ns(const struct rc_peer *p)
{
	return min_of(AGAIN_NS * (1 + p->resume.attempts), AGAIN_LAST_NS);
}

bool rc_resume_may(const struct rref_ctx *ctx, const struct rc_peer *p, int status)
{
	rc_assert_locked(ctx);
	/* A worker that leaves too has a goodbye of its own to say, and to know that it came. The
	 * other would take it for dead. */
	bool leaving = at_load(&ctx->state) != RC_CTX_RUNNING &&
		       (!p->goodbye_sent || p->unacked.nr || p->nr_queued);

	/* Nonsense from the peer ends the session, and so does a device that is gone. So does a
	 * goodbye, and a session that was never quite up. */
	return p->state == RC_PEER_UP && (!p->said_goodbye || leaving) && status != -EPROTO &&
	       status != -ENODEV;
}

void rc_resume_finished(struct rc_peer *p)
{
	p->resume.nobody = p->resume.stale = 0;
}

/* Counts a broken connection, or READs that were cut off. Once too often ends the session. */
static needs_lock void count_break(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rc_resume *r = &p->resume;
	uint32_t refused = at_xchg_acq(&r->refused, 0);
	int64_t now = now_ns();

	if (now - r->score_since > SCORE_NS) {
		r->score_since = now;
		r->score = 0;
	}
	r->score += 1 + RC_SCORE_ACCESS * min_of(refused, RC_SCORE_LIMIT);
	if (r->score < ctx->session.score_limit)
		return;
	r->score = 0;
	r->banned_until = now + BAN_NS;
	at_add(&ctx->n.rejected, 1);
	rc_session_end(ctx, p, -ENETRESET,
		       "its connection broke too often, by reads that were refused or otherwise");
}

void rc_resume_allow(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (p->ops->allow_reads(p->link)) /* the news that the connection ended is on its way */
		rc_log(ctx, RREF_LOG_DEBUG, "allowing reads from %s again: %s", p->member->name,
		       rv_error_text());
}

void rc_resume_cut(struct rref_ctx *ctx, struct rc_peer *p, int status)
{
	rc_assert_locked(ctx);
	p->reads_up = false;
	p->reads_cut = true;
	rc_log(ctx, RREF_LOG_INFO, "reads from %s (rank %u) were cut off: %s", p->member->name,
	       p->rank, rref_strerror(status));
	/* The fence's first step. The device takes the second when it allows reads again. */
	rc_peer_stop_reads(ctx, p);
	/* Threads may still stand in an older connection. They never had this one. */
	if (p->left != p->link)
		rc_resume_allow(ctx, p);
}

void rc_resume_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	p->reads_up = true;
	if (p->reads_cut) {
		p->reads_cut = false;
		ctx->n.reads_resumed++;
		rc_log(ctx, RREF_LOG_INFO, "reads from %s (rank %u) go on", p->member->name,
		       p->rank);
		count_break(ctx, p);
	}
	rc_peer_open_reads(ctx, p);
}

/* Closes the link, and sets the time of the next attempt. */
static needs_lock void drop_link(struct rref_ctx *ctx, struct rc_peer *p, int64_t pause)
{
	rc_peer_close(p);
	rc_session_on(ctx, p, RC_STEP_OVER);
	p->resume.at = now_ns() + pause;
	rc_turn_by(ctx, p->resume.at);
}

void rc_resume_break(struct rref_ctx *ctx, struct rc_peer *p, int status, const char *why)
{
	struct rc_resume *r = &p->resume;

	rc_assert_locked(ctx);
	rc_session_on(ctx, p, RC_STEP_BROKE);
	rc_peer_stop_reads(ctx, p);
	drop_link(ctx, p, 0);
	p->probing = false;
	rc_send_again(p);
	r->nobody = r->stale = r->attempts = 0;
	/* A timeout of the device has taken its share of the time already. */
	r->by = now_ns() + (status == -ETIMEDOUT ? patience_ns(ctx) / 2 : patience_ns(ctx));
	r->look_at = rc_resume_due(p);
	snprintf(r->why, sizeof(r->why), "%s", why);
	rc_log(ctx, RREF_LOG_INFO,
	       "session %u with %s (rank %u) goes on over another connection: %s", p->epoch,
	       p->member->name, p->rank, why);
}

static needs_lock void resume_dial(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	uint8_t hello[RV_HELLO_MAX];
	size_t length;

	p->hs = (struct rc_handshake){ .resumes = true,
				       .self_rank = ctx->rank,
				       .peer_rank = p->rank,
				       .self_incarnation = ctx->group.incarnation,
				       .peer_incarnation = p->member->incarnation,
				       .epoch = p->epoch,
				       .client_received = p->recv_seq };
	length = rc_hello_make(&p->key, &p->hs, hello);
	p->resume.attempts++;
	if (p->ops->connect(p->dev, &p->member->addr[p->kind], hello, length, p, &p->link)) {
		rc_log(ctx, RREF_LOG_DEBUG, "connecting again to %s: %s", p->member->name,
		       rv_error_text());
		p->link = NULL;
		drop_link(ctx, p, again_ns(p));
		return;
	}
	rc_session_on(ctx, p, RC_STEP_DIALLED);
	p->resume.at = now + attempt_ns(ctx);
}

/* Refuses to take up a session that is over here. */
static needs_lock void refuse_over(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn)
{
	if (ctx->session.leaves)
		rc_peer_refuse(ctx, d, conn, -ESHUTDOWN, RC_LEFT_TEXT);
	else
		rc_peer_refuse(ctx, d, conn, -ENETRESET,
			       "that session is over: this worker has cut it off");
}

void rc_resume_request(struct rref_ctx *ctx, struct rc_device *d, struct rc_peer *p,
		       struct rc_handshake *h, const struct rv_event *ev,
		       enum rc_session_action action)
{
	struct rc_resume *r = &p->resume;
	uint8_t answer[RV_ANSWER_MAX];
	size_t length;

	rc_assert_locked(ctx);
	if (action == RC_DO_REFUSE || p->epoch != h->epoch) {
		refuse_over(ctx, d, ev->conn);
		return;
	}
	if (action == RC_DO_CROSS && ctx->rank < p->rank) {
		rc_peer_refuse(ctx, d, ev->conn, -EALREADY,
			       "the connection of the lower rank is under way");
		return;
	}
	if (action == RC_DO_BREAK_TAKE)
		rc_resume_break(ctx, p, -ECONNRESET, "the peer has lost it");
	else
		drop_link(ctx, p, 0);
	h->server_received = p->recv_seq;
	p->hs = *h;
	p->link = ev->conn;
	rc_session_on(ctx, p, RC_STEP_TAKEN);
	r->at = now_ns() + attempt_ns(ctx);
	r->nobody = r->stale = 0;
	length = rc_answer_make(&p->key, &p->hs, answer);
	if (rc_peer_seal(p, ev->conn, false) || d->ops->accept(ev->conn, answer, length, p)) {
		rc_log(ctx, RREF_LOG_WARNING, "accepting %s again failed: %s", p->member->name,
		       rv_error_text());
		drop_link(ctx, p, again_ns(p));
	}
}

/*
 * Takes the session up again: both sides have proved their identity, and each knows what the other
 * has got.
 */
static needs_lock void resumed(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_session_on(ctx, p, RC_STEP_PROVED);
	rc_resume_finished(p);
	p->resume.nr_resumed++;
	ctx->n.resumed++;
	rc_stall_again(ctx, p, now_ns());
	rc_log(ctx, RREF_LOG_INFO, "session %u with %s (rank %u) goes on", p->epoch,
	       p->member->name, p->rank);
	count_break(ctx, p);
	rc_peer_open_reads(ctx, p);
}

/*
 * Takes the number up to which the peer has our messages. Returns false if that cannot be, and the
 * session ends.
 */
static needs_lock bool take_received(struct rref_ctx *ctx, struct rc_peer *p, uint64_t received)
{
	if (!rc_send_resume(ctx, p, received))
		return true;
	at_add(&ctx->n.rejected, 1);
	rc_session_end(ctx, p, -EPROTO,
		       "it says that it got what was never sent, "
		       "or never got what it acknowledged");
	return false;
}

void rc_resume_answered(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	uint8_t proof[RC_MAC_BYTES];

	rc_assert_locked(ctx);
	if (rc_peer_answered(p, ev, proof)) {
		/* The answer may be anybody's: it ends this attempt, not the session. */
		at_add(&ctx->n.rejected, 1);
		drop_link(ctx, p, again_ns(p));
		return;
	}
	if (!take_received(ctx, p, p->hs.server_received))
		return;
	rc_session_on(ctx, p, RC_STEP_ANSWERED);
	p->resume.at = now_ns() + attempt_ns(ctx);
	if (rc_peer_allow(ctx, p) || rc_send_received(ctx, p, proof))
		drop_link(ctx, p, again_ns(p));
}

void rc_resume_failed(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	char text[RP_TEXT_MAX] = "", why[RP_TEXT_MAX], lost[RP_TEXT_MAX];
	int err = ev->len ? rc_reason_parse(ev->data, ev->len, text, sizeof(text)) : ev->status;

	rc_assert_locked(ctx);
	drop_link(ctx, p, err == -EALREADY ? CROSSED_NS : again_ns(p));
	if (!ev->len) {
		p->resume.nobody = err == -ECONNREFUSED ? p->resume.nobody + 1 : 0;
		if (p->resume.nobody < NOBODY_MAX)
			return;
		p->nobody = true;
		err = rc_stall_lost(ctx, p, p->resume.why, why, sizeof(why));
		rc_session_end(ctx, p, err, why);
		return;
	}
	p->resume.nobody = 0;
	p->resume.stale = err == -ESTALE ? p->resume.stale + 1 : 0;
	if (err == -EALREADY || err == -ECONNREFUSED ||
	    (err == -ESTALE && p->resume.stale < STALE_MAX))
		return;
	/* the peer lives, and refuses more connections: the session is over there */
	if (err == -EAGAIN)
		err = -ENETRESET;
	err = err == -ENETRESET || err == -ESTALE || err == -EKEYREJECTED ? err : -EOWNERDEAD;
	snprintf(lost, sizeof(lost), "%.60s, and was not taken up again: %.90s", p->resume.why,
		 text);
	/* A worker that lost the session for standing still says so. */
	if (rc_stall_lost(ctx, p, lost, why, sizeof(why)) == -ENETRESET)
		err = -ENETRESET;
	rc_session_end(ctx, p, err, why);
}

/* Takes the client's proof, or the server's word that it has seen the proof. */
void rc_resume_message(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	struct rw_message m;

	rc_assert_locked(ctx);
	rc_count_received(ctx, p, ev->data, ev->len);
	if (rw_decode(ev->data, ev->len, ctx->world, &m) || m.frame.type != RW_RECEIVED ||
	    m.frame.seq || m.frame.epoch != p->epoch)
		goto bad;
	if (p->state == RC_PEER_REACCEPTING) {
		p->hs.client_received = m.u.received.seq;
		if (rc_proof_check(&p->key, &p->hs, m.u.received.mac))
			goto bad;
		if (!take_received(ctx, p, m.u.received.seq))
			return;
		if (rc_peer_allow(ctx, p) || rc_send_received(ctx, p, NULL)) {
			drop_link(ctx, p, again_ns(p));
			return;
		}
	} else if (m.u.received.seq != p->hs.server_received) {
		goto bad;
	}
	resumed(ctx, p);
	return;
bad:
	/* The sender has not proved to be the peer: it ends its own connection, and no session. */
	at_add(&ctx->n.rejected, 1);
	drop_link(ctx, p, again_ns(p));
}

/* Ends an attempt that the peer gave up, or that lost its connection before it proved anything. */
void rc_resume_dropped(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	drop_link(ctx, p, again_ns(p));
}

/*
 * Puts the end off by time in which this worker was not awake to act. A clock decides when to give
 * up, and counts only awake time. A worker may be stopped, or its program may make progress only
 * now and then. Such a worker has not waited for the peer. A late look counts as an eighth of the
 * patience at most: this bounds the number of looks too.
 */
static void not_awake(struct rref_ctx *ctx, struct rc_resume *r, int64_t now)
{
	int64_t late = now - r->look_at, most = patience_ns(ctx) / 8;

	if (late > most)
		r->by += late - most;
}

int rc_send_received(struct rref_ctx *ctx, struct rc_peer *p, const uint8_t *proof)
{
	struct rw_message m = {
		.frame = { .type = RW_RECEIVED, .epoch = p->epoch, .ack = (uint32_t)p->recv_seq },
		.u.received.seq = p->recv_seq
	};
	uint8_t buf[RW_FRAME_BYTES + 64];
	int n, err;

	rc_assert_locked(ctx);
	if (proof)
		memcpy(m.u.received.mac, proof, sizeof(m.u.received.mac));
	n = rw_encode(&m, buf, sizeof(buf));
	err = p->ops->send(p->link, buf, (size_t)n);
	if (!err) {
		p->unacked.owed = 0;
		rc_count_sent(ctx, p, buf, (uint32_t)n);
	}
	return err;
}

void rc_resume_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	struct rc_resume *r = &p->resume;
	char why[RP_TEXT_MAX], lost[RP_TEXT_MAX];

	rc_assert_locked(ctx);
	not_awake(ctx, r, now);
	if (now >= r->by) {
		snprintf(lost, sizeof(lost), "%.150s, and could not be made again in time", r->why);
		int err = rc_stall_lost(ctx, p, lost, why, sizeof(why));

		rc_session_end(ctx, p, err, why);
		p->ending.in_silence = err == -EOWNERDEAD;
		return;
	}
	if (p->state != RC_PEER_BROKEN && now >= r->at)
		drop_link(ctx, p, 0);
	if (p->state == RC_PEER_BROKEN && now >= r->at)
		resume_dial(ctx, p, now);
	r->look_at = rc_resume_due(p);
}

int64_t rc_resume_due(const struct rc_peer *p)
{
	return rc_state_broken(p->state) ? min_of(p->resume.at, p->resume.by) : INT64_MAX;
}
