/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc_resume: a session outlives its connection. What a peer's session keeps so that a broken
 * connection can be made again, and how that goes: see resume.c; what is sent again, send.c.
 */
#ifndef RC_RESUME_H
#define RC_RESUME_H

#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"
#include "core/base/locked.h"
#include "core/session/table.h"

struct rref_ctx;
struct rc_peer;
struct rc_device;
struct rc_handshake;
struct rv_event;

struct rc_resume {
	int64_t by;              /* when the session ends if it is still broken */
	int64_t at;              /* BROKEN: the next attempt; else: when this attempt is given up */
	/* when something was to be done next, as the last look left it: later, this worker was not
	 * awake */
	int64_t look_at;
	uint32_t attempts;       /* of ours, since it broke */
	uint32_t nobody;         /* of these in a row that found no listener */
	uint32_t stale;          /* of these in a row that were refused with ESTALE */
	uint32_t score;          /* of this short time: RC_SCORE_LIMIT */
	int64_t score_since;
	_Atomic uint32_t refused;/* [atomic] READs that its device refused, not in the score yet */
	int64_t banned_until;
	uint64_t nr_resumed;     /* of all sessions with it */
	char why[200];           /* it broke */
};

#define RC_ACK_EVERY 32u /* messages that came, and none went back */

/*
 * Messages that were sent and not acknowledged, and those of a broken connection that are to be
 * sent again.
 */
struct rc_unacked {
	struct list sent;        /* struct rc_outgoing, in the order of their numbers */
	/* the same, behind those: not sent over the connection at hand yet */
	struct list again;
	/* number of the last one the peer is known to have; sent and again hold those after it */
	uint64_t acked;
	uint32_t nr;             /* in both */
	/* messages of the peer that no message of ours has acknowledged yet */
	uint32_t owed;
};

/*
 * A connection that was made again counts 1, and a READ that was refused RC_SCORE_ACCESS: at the
 * limit the session ends.
 */
#define RC_SCORE_ACCESS 8u
#define RC_SCORE_LIMIT 64u

/* is the end of its connection not the session's? */
needs_lock bool rc_resume_may(const struct rref_ctx *ctx, const struct rc_peer *p, int status);
/*
 * The connection is gone; the session waits for another. The fence's first two steps, and nothing
 * of the third.
 */
needs_lock void rc_resume_break(struct rref_ctx *ctx, struct rc_peer *p, int status,
				const char *why);
/* Takes a hello that asks to resume, or refuses it. */
needs_lock void rc_resume_request(struct rref_ctx *ctx, struct rc_device *d, struct rc_peer *p,
				  struct rc_handshake *h, const struct rv_event *ev,
				  enum rc_session_action action);
/* Do what table.h calls RC_DO_REANSWER, RC_DO_REFAIL, RC_DO_REOVER and RC_DO_REFIRST. */
needs_lock void rc_resume_answered(struct rref_ctx *ctx, struct rc_peer *p,
				   const struct rv_event *ev);
needs_lock void rc_resume_failed(struct rref_ctx *ctx, struct rc_peer *p,
				 const struct rv_event *ev);
needs_lock void rc_resume_dropped(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_resume_message(struct rref_ctx *ctx, struct rc_peer *p,
				  const struct rv_event *ev);
needs_lock void rc_resume_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now);
/* when the next tick has work; INT64_MAX = none */
needs_lock int64_t rc_resume_due(const struct rc_peer *p);
needs_lock void rc_resume_over(struct rc_peer *p); /* the session ended */

/* send.c */
/* 0, or -EPROTO: what was never sent */
needs_lock int rc_send_acked(struct rref_ctx *ctx, struct rc_peer *p, uint32_t ack);
/* the same, and what is behind is sent again */
needs_lock int rc_send_resume(struct rref_ctx *ctx, struct rc_peer *p, uint64_t received);
/* the connection is gone: all that is not acknowledged */
needs_lock void rc_send_again(struct rc_peer *p);
/* what came so far. 0 or -errno */
needs_lock int rc_send_received(struct rref_ctx *ctx, struct rc_peer *p, const uint8_t *proof);
needs_lock void rc_send_more(struct rref_ctx *ctx, struct rc_peer *p); /* see rc_send_after */

#endif
