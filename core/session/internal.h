/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of session/. */
#ifndef RC_SESSION_INTERNAL_H
#define RC_SESSION_INTERNAL_H

#include "core/ctx.h"

/* peer.c */
/* [lock] The key of the pair, made once. NULL: -EKEYREJECTED. */
const struct rc_key *rc_peer_key(struct rref_ctx *ctx, struct rc_peer *p);
/* [lock] By p->hs, before anything is sent over conn. 0 or -ENETRESET. */
int rc_peer_seal(struct rc_peer *p, struct rv_conn *conn, bool is_client);
/* [lock] CONNECTED of our link: 0 and the proof, or -errno. */
int rc_peer_answered(struct rc_peer *p, const struct rv_event *ev, uint8_t proof[RC_MAC_BYTES]);
void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p);           /* [lock] from here on reads may be posted */

/* peer_event.c */
void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn, int err,
		    const char *text); /* [lock] */

/* attempts at a session */
void rc_contact_begin(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] an attempt of either side begins */
void rc_contact_up(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] the peer has answered */
void rc_contact_over(struct rref_ctx *ctx, struct rc_peer *p, const char *why); /* [lock] it came to nothing; what waits goes on waiting */
/* [lock] here: for want of what; NULL = there */
void rc_contact_lacks(struct rref_ctx *ctx, struct rc_peer *p, const char *here);
/* [lock] The same, or the fence if err is a refusal. reason: the peer's words, or NULL. */
void rc_contact_failed(struct rref_ctx *ctx, struct rc_peer *p, int err, const char *reason);
void rc_contact_lost(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] its session was fenced because nothing answered */
/* text, and since when this worker has not answered, into buf, which has room for the sum. False: it has, or was not asked. */
bool rc_contact_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf, size_t size);

/* down.c */
void rc_peer_is_down(struct rref_ctx *ctx, struct rc_peer *p, int status); /* [lock] it was alive */

/* stall.c */
int64_t rc_stall_own(struct rref_ctx *ctx);                          /* ns that this worker stood still a moment ago, if too long; or 0 */
void rc_stall_begin(struct rref_ctx *ctx, struct rc_peer *p);        /* [lock] a session is up */
void rc_stall_end(struct rc_peer *p);                                /* [lock] */
void rc_stall_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now); /* [lock] may fence */
void rc_stall_event(struct rref_ctx *ctx, struct rc_peer *p, int status); /* [lock] p may be NULL */

/* send.c */
int rc_send_encoded(struct rref_ctx *ctx, uint32_t to, void *bytes, uint32_t length); /* [lock] the same */

struct rc_outgoing *rc_outgoing_make(const void *bytes, uint32_t length);    /* NULL: no memory; free */
void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p);                 /* [lock] */
void rc_send_drop_queue(struct rref_ctx *ctx, struct rc_peer *p);            /* [lock] */
void rc_send_unproved(struct rc_peer *p); /* [lock] forgets the proof of an attempt that came to nothing; the queue stays */

#endif
