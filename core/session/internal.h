/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of session/. */
#ifndef RC_SESSION_INTERNAL_H
#define RC_SESSION_INTERNAL_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* peer.c */
/* The key of the pair, made once. NULL: -EKEYREJECTED. */
needs_lock const struct rc_key *rc_peer_key(struct rref_ctx *ctx, struct rc_peer *p);
/* By p->hs, before anything is sent over conn. 0 or -ENETRESET. */
needs_lock int rc_peer_seal(struct rc_peer *p, struct rv_conn *conn, bool is_client);
/* CONNECTED of our link: 0 and the proof, or -errno. */
needs_lock int rc_peer_answered(struct rc_peer *p, const struct rv_event *ev,
				uint8_t proof[RC_MAC_BYTES]);
/* from here on reads may be posted */
needs_lock void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p);

/* peer_event.c */
needs_lock void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn,
			       int err, const char *text);

/* attempts at a session */
/* an attempt of either side begins */
needs_lock void rc_contact_begin(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_contact_up(struct rref_ctx *ctx, struct rc_peer *p); /* the peer has answered */
/* it came to nothing; what waits goes on waiting */
needs_lock void rc_contact_ended(struct rref_ctx *ctx, struct rc_peer *p, const char *why);
/* here: for want of what; NULL = there */
needs_lock void rc_contact_lacks(struct rref_ctx *ctx, struct rc_peer *p, const char *here);
/* The same, or the fence if err is a refusal. reason: the peer's words, or NULL. */
needs_lock void rc_contact_failed(struct rref_ctx *ctx, struct rc_peer *p, int err,
				  const char *reason);
/* its session was fenced because nothing answered */
needs_lock void rc_contact_lost(struct rref_ctx *ctx, struct rc_peer *p);
/*
 * text, and since when this worker has not answered, into buf, which has room for the sum. False:
 * it has, or was not asked.
 */
bool rc_contact_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf,
		      size_t size);

/* down.c */
/* it was alive */
needs_lock void rc_peer_is_down(struct rref_ctx *ctx, struct rc_peer *p, int status);

/* stall.c */
/* ns that this worker stood still a moment ago, if too long; or 0 */
int64_t rc_stall_own(struct rref_ctx *ctx);
needs_lock void rc_stall_begin(struct rref_ctx *ctx, struct rc_peer *p); /* a session is up */
needs_lock void rc_stall_end(struct rc_peer *p);
needs_lock void rc_stall_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now); /* may fence */
/* p may be NULL */
needs_lock void rc_stall_event(struct rref_ctx *ctx, struct rc_peer *p, int status);

/* send.c */
/* the same */
needs_lock int rc_send_encoded(struct rref_ctx *ctx, uint32_t to, void *bytes, uint32_t length);

/* NULL: no memory; free */
struct rc_outgoing *rc_outgoing_make(const void *bytes, uint32_t length);
needs_lock void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_send_drop_queue(struct rref_ctx *ctx, struct rc_peer *p);
/* forgets the proof of an attempt that came to nothing; the queue stays */
needs_lock void rc_send_unproved(struct rc_peer *p);

#endif
