/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First contact: attempts at a session, and the meaning of an attempt that came to nothing.
 *
 * Until a session exists only a refusal is death: no process listens there, or the peer says no.
 * Silence says nothing. The peer may be stopped, or be one of a hundred on a busy machine. It may
 * make progress only now and then. So an attempt ends alone when it meets silence, or a lack of
 * something at either end. Operations that wait for the session stay in their place, each for its
 * own time. Further attempts follow, later and later, as long as an operation waits.
 *
 *   DOWN --attempt--> CONNECTING, PROVING or ACCEPTING --refused--> fence
 *    ^                     |  \--proved--> UP
 *    +------silence--------+
 *
 * A peer is cut off when its session was lost in silence: peer_timeout passed without an answer.
 * Operations with this peer fail at once. Attempts go on in the background, so that an operation
 * begun after the peer's return succeeds.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/session/internal.h"
#include "core/session/session.h"

#define AGAIN_NS      (50 * NSEC_PER_MSEC) /* pause between attempts at first; doubled each time */
#define AGAIN_LAST_NS (500 * NSEC_PER_MSEC)
#define CUT_OFF_NS    (2500 * NSEC_PER_MSEC) /* time for one attempt at a peer that is cut off */
/*
 * Time between attempts at a peer that is cut off. Operations with this peer do not wait for the
 * attempt.
 */
#define CUT_OFF_AGAIN_NS (2 * NSEC_PER_SEC)

/*
 * Tells whether an answer of the peer or its machine is final: no later attempt will bring a
 * session.
 */
static bool is_refusal(int err, bool has_reason)
{
	switch (err) {
	case -EKEYREJECTED:
	case -EPROTONOSUPPORT:
	case -ESTALE:
	case -ESHUTDOWN:
	case -EPROTO:
	case -ENODEV:
		return true;
	case -ECONNREFUSED:
		/* no process listens; a listener without a reason has too much to do, or too little
		 * memory */
		return !has_reason;
	default:
		return false;
	}
}

void rc_contact_begin(struct rref_ctx *ctx, struct rc_peer *p)
{
	int64_t now = now_ns();

	rc_assert_locked(ctx);
	if (!at_load(&p->silent_since))
		at_store(&p->silent_since, now);
	p->auth_by = now + (p->cut_off ? CUT_OFF_NS : ctx->session.answer_ns);
}

void rc_contact_up(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (p->nr_silent)
		rc_log(ctx, RREF_LOG_INFO, "%s (rank %u) answers, after %s s", p->member->name,
		       p->rank, seconds_text(now_ns() - at_load(&p->silent_since)).text);
	at_store(&p->silent_since, 0);
	at_store(&p->why_later, NULL);
	p->nr_silent = 0;
	p->cut_off = false;
}

void rc_contact_lacks(struct rref_ctx *ctx, struct rc_peer *p, const char *here)
{
	static const char there[] =
		"it lives, and has no room for a connection now; its log names the limit";

	rc_assert_locked(ctx);
	/* Any thread may read the text at any time, so it is written once and never changed. */
	if (here && !*ctx->session.lack_here)
		snprintf(ctx->session.lack_here, sizeof(ctx->session.lack_here), "%s", here);
	/* Pairs with rc_contact_words: a thread that reads the pointer sees the text. */
	at_store_rel(&p->why_later, here ? ctx->session.lack_here : there);
}

void rc_contact_finished(struct rref_ctx *ctx, struct rc_peer *p, const char *why)
{
	int64_t now = now_ns(), wait = min_of(AGAIN_NS << min_of(p->nr_silent, 4u), AGAIN_LAST_NS);

	rc_assert_locked(ctx);
	if (rc_state_ends(p->state))
		return; /* the fence ends it, and all that waits for it */
	rc_peer_close(p);
	rc_session_on(ctx, p, RC_STEP_OVER);
	rc_send_unproved(p);
	/* A peer that is cut off keeps the reason of the cut. */
	if (!p->cut_off)
		snprintf(p->why, sizeof(p->why), "%s", why);
	if (!p->nr_silent++ && !p->cut_off)
		rc_log(ctx, RREF_LOG_INFO, "%s (rank %u) has not answered yet: %s; trying again",
		       p->member->name, p->rank, why);
	/* Waits for 0.5 to 1.5 times the interval: peers that failed together do not come back
	 * together. */
	wait = p->cut_off ? CUT_OFF_AGAIN_NS : wait;
	p->retry_at = max_of(now + wait / 2 + (int64_t)(rb_random64() % (uint64_t)wait),
			     p->resume.banned_until);
}

void rc_contact_failed(struct rref_ctx *ctx, struct rc_peer *p, int err, const char *reason)
{
	char why[RP_TEXT_MAX];

	rc_assert_locked(ctx);
	snprintf(why, sizeof(why), "connecting failed: %.150s",
		 reason && *reason ? reason : rref_strerror(err));
	/* A peer that connected to this worker and left again has refused nothing. */
	if (p->state == RC_PEER_ACCEPTING || !is_refusal(err, reason)) {
		rc_contact_finished(ctx, p, why);
		return;
	}
	p->nobody = err == -ECONNREFUSED;
	rc_session_end(ctx, p,
		       err == -EKEYREJECTED || err == -EPROTONOSUPPORT || err == -ESTALE
			       ? err
			       : -EOWNERDEAD,
		       why);
}

void rc_contact_lost(struct rref_ctx *ctx, struct rc_peer *p)
{
	int64_t now = now_ns();

	rc_assert_locked(ctx);
	p->cut_off = true;
	at_store(&p->silent_since, now);
	p->retry_at = max_of(now + CUT_OFF_AGAIN_NS, p->resume.banned_until);
	rc_log(ctx, RREF_LOG_INFO,
	       "%s (rank %u) is cut off; a new session is tried for now and then", p->member->name,
	       p->rank);
}

/* Tells whether another attempt is to be made when its time comes. */
static needs_lock bool is_wanted(const struct rref_ctx *ctx, const struct rc_peer *p)
{
	if (p->state != RC_PEER_DOWN || p->said_goodbye)
		return false;
	if (p->cut_off)
		return at_load(&ctx->state) == RC_CTX_RUNNING;
	/* A barrier may wait for the peer. Only an attempt shows whether the peer will
	 * ever come. */
	return ctx->session.events->is_awaited(ctx, p->rank) ||
	       (at_load(&p->silent_since) && (p->nr_queued || at_load(&p->nr_waiting)));
}

int64_t rc_contact_due(const struct rref_ctx *ctx, const struct rc_peer *p)
{
	rc_assert_locked(ctx);
	return is_wanted(ctx, p) ? p->retry_at : INT64_MAX;
}

void rc_contact_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	rc_assert_locked(ctx);
	if (is_wanted(ctx, p) && now >= p->retry_at)
		rc_peer_want(ctx, p);
	if (p->state == RC_PEER_CROSSED && now >= p->retry_at)
		rc_contact_finished(ctx, p, "the connection that it was to make did not come");
	if (!rc_state_tries(p->state) || p->state == RC_PEER_CROSSED || now < p->auth_by)
		return;
	at_add(&ctx->n.rejected, p->state == RC_PEER_ACCEPTING);
	rc_contact_finished(ctx, p,
			p->state == RC_PEER_CONNECTING
				? "it does not answer"
				: "it connected, and its first message did not come");
}

/* [any] */
bool rc_contact_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf, size_t size)
{
	int64_t since = at_load(&ctx->peers[rank].silent_since);
	/* Pairs with rc_contact_lacks: the text is complete. */
	const char *why = at_load_acq(&ctx->peers[rank].why_later);

	if (!since)
		return false;
	if (why) {
		snprintf(buf, size, "%.250s: %.127s (rank %u) could not be connected to: %s", text,
			 ctx->peers[rank].member->name, rank, why);
		return true;
	}
	snprintf(buf, size,
		 "%.250s: %.127s (rank %u) has not answered for %s s, nor refused: it is stopped, "
		 "very busy, or out of reach",
		 text, ctx->peers[rank].member->name, rank, seconds_text(now_ns() - since).text);
	return true;
}
