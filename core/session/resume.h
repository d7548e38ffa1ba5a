/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc_resume: the state by which a session outlives its connection. Design: resume.c; messages that
 * are sent again: send.c.
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
	int64_t by;              /* end of the session if it is still broken then */
	/* BROKEN: time of the next attempt; else: time at which this attempt is given up */
	int64_t at;
	/* Time of the next work, as the last look left it. A later look means that this worker was
	 * not awake. */
	int64_t look_at;
	uint32_t attempts;       /* attempts of ours since the break */
	uint32_t nobody;         /* attempts in a row that found no listener */
	uint32_t stale;          /* attempts in a row that were refused with ESTALE */
	uint32_t score;          /* points of the time since score_since, see RC_SCORE_LIMIT */
	int64_t score_since;
	_Atomic uint32_t refused;/* [atomic] READs that its device refused, not in the score yet */
	int64_t banned_until;
	uint64_t nr_resumed;     /* connections made again, in all sessions with the peer */
	char why[200];           /* reason of the break */
};

/* number of messages of the peer at which a bare acknowledgement goes back */
#define RC_ACK_EVERY 32u

/*
 * Messages that were sent and not acknowledged, and messages of a broken connection that are to be
 * sent again.
 */
struct rc_unacked {
	struct list sent;        /* struct rc_outgoing, in the order of their numbers */
	/* the messages that follow sent: not sent over the present connection yet */
	struct list again;
	/* number of the last message that the peer is known to have; the lists begin after it */
	uint64_t acked;
	uint32_t nr;             /* messages in both lists */
	/* messages of the peer that no message of ours has acknowledged yet */
	uint32_t owed;
};

/*
 * Points. A connection that was made again counts 1, and so do its READs. A READ that was refused
 * counts RC_SCORE_ACCESS. The session ends at the limit.
 */
#define RC_SCORE_ACCESS 8u
#define RC_SCORE_LIMIT 64u

/* Tells whether the session may outlive the end of its connection. */
needs_lock bool rc_resume_may(const struct rref_ctx *ctx, const struct rc_peer *p, int status);
/*
 * Breaks the session: its connection is gone, and it waits for another. Takes the fence's first two
 * steps, and nothing of the third.
 */
needs_lock void rc_resume_break(struct rref_ctx *ctx, struct rc_peer *p, int status,
				const char *why);
/* Takes a hello that asks to resume, or refuses it. */
needs_lock void rc_resume_request(struct rref_ctx *ctx, struct rc_device *d, struct rc_peer *p,
				  struct rc_handshake *h, const struct rv_event *ev,
				  enum rc_session_action action);
/* Handles RC_DO_REANSWER, RC_DO_REFAIL, RC_DO_REOVER or RC_DO_REFIRST (table.h). */
needs_lock void rc_resume_answered(struct rref_ctx *ctx, struct rc_peer *p,
				   const struct rv_event *ev);
needs_lock void rc_resume_failed(struct rref_ctx *ctx, struct rc_peer *p,
				 const struct rv_event *ev);
needs_lock void rc_resume_dropped(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_resume_message(struct rref_ctx *ctx, struct rc_peer *p,
				  const struct rv_event *ev);
needs_lock void rc_resume_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now);
/* Returns the time when the next tick has work. INT64_MAX: never. */
needs_lock int64_t rc_resume_due(const struct rc_peer *p);
/*
 * READs cannot go over the connection any more, which stands. Makes the device try again when no
 * thread posts.
 */
needs_lock void rc_resume_cut(struct rref_ctx *ctx, struct rc_peer *p, int status);
/* Makes the device try. No thread posts to the connection any more. */
needs_lock void rc_resume_allow(struct rref_ctx *ctx, struct rc_peer *p);
/* READs can go over the connection, for the first time or again. */
needs_lock void rc_resume_reads(struct rref_ctx *ctx, struct rc_peer *p);
/* Clears the counts of refusals: the session ended, or goes on. */
needs_lock void rc_resume_finished(struct rc_peer *p);

/* send.c */
/*
 * Forgets the messages up to ack. Returns 0, or -EPROTO if ack names a message that was never sent.
 */
needs_lock int rc_send_acked(struct rref_ctx *ctx, struct rc_peer *p, uint32_t ack);
/* Does the same for the number in a handshake. Later messages are sent again. */
needs_lock int rc_send_resume(struct rref_ctx *ctx, struct rc_peer *p, uint64_t received);
/* Marks all messages without an acknowledgement to be sent again: the connection is gone. */
needs_lock void rc_send_again(struct rc_peer *p);
/* Tells the peer the number of the last message that came. Returns 0 or -errno. */
needs_lock int rc_send_received(struct rref_ctx *ctx, struct rc_peer *p, const uint8_t *proof);
/* Does the rare part of rc_send_after. */
needs_lock void rc_send_more(struct rref_ctx *ctx, struct rc_peer *p);

#endif
