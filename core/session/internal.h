/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that only the files of session/ share. */
#ifndef RC_SESSION_INTERNAL_H
#define RC_SESSION_INTERNAL_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* peer.c */
/* Refuses a request for a connection. Counts it, and logs it as long as such lines are rare. */
needs_lock void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn,
			       int err, const char *text);
/* Returns the key of the pair, which is made once. NULL: -EKEYREJECTED. */
needs_lock const struct rc_key *rc_peer_key(struct rref_ctx *ctx, struct rc_peer *p);
/*
 * Seals conn with keys made from p->hs, before anything is sent over it. Returns 0 or -ENETRESET.
 */
needs_lock int rc_peer_seal(struct rc_peer *p, struct rv_conn *conn, bool is_client);
/* Checks the answer that came with CONNECTED of our link. Returns 0 and the proof, or -errno. */
needs_lock int rc_peer_answered(struct rc_peer *p, const struct rv_event *ev,
				uint8_t proof[RC_MAC_BYTES]);
/*
 * Closes the peer's connection, if there is one. Threads may still post to it, or the device be at
 * it: p->nr_closing.
 */
needs_lock void rc_peer_close(struct rc_peer *p);
/*
 * Goes on when the device is done with a connection that was closed. status: 0, or the device may
 * never be done with it.
 */
needs_lock void rc_peer_closed(struct rref_ctx *ctx, struct rc_peer *p, int status);
/*
 * Opens the connection to reads: from here on they may be posted. Comes again when no earlier
 * connection is being closed any more.
 */
needs_lock void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p);

/* peer_event.c */
/* Begins the session that the peer's request asks for. p->hs is the request's hello. */
needs_lock void rc_peer_take(struct rref_ctx *ctx, struct rc_peer *p, struct rv_conn *conn);
#define RC_LEFT_TEXT "this worker has left the group"

/* contact.c */
/* Begins an attempt of either side. */
needs_lock void rc_contact_begin(struct rref_ctx *ctx, struct rc_peer *p);
/* Ends the silence: the peer has answered. */
needs_lock void rc_contact_up(struct rref_ctx *ctx, struct rc_peer *p);
/* Ends an attempt that came to nothing. Operations that wait go on waiting. */
needs_lock void rc_contact_finished(struct rref_ctx *ctx, struct rc_peer *p, const char *why);
/*
 * Notes why no connection could be made. here: the lack at this worker; NULL: a lack at the peer.
 */
needs_lock void rc_contact_lacks(struct rref_ctx *ctx, struct rc_peer *p, const char *here);
/*
 * Ends the attempt alone, or asks for the fence if err is a refusal. reason: the peer's words, or
 * NULL.
 */
needs_lock void rc_contact_failed(struct rref_ctx *ctx, struct rc_peer *p, int err,
				  const char *reason);
/* Cuts the peer off: its session was fenced because nothing answered. */
needs_lock void rc_contact_lost(struct rref_ctx *ctx, struct rc_peer *p);
/*
 * Writes text, and the time of silence of the worker with that rank, into buf, which has room for
 * both. Returns false if the worker has answered, or was not asked.
 */
bool rc_contact_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf,
		      size_t size);

/* down.c */
/* Tells the program that a live peer went down. */
needs_lock void rc_peer_is_down(struct rref_ctx *ctx, struct rc_peer *p, int status);

/* stall.c */
/* Begins to look at the heartbeat: a session is up. */
needs_lock void rc_stall_begin(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_stall_end(struct rc_peer *p);
/* Sets the time of the next look at the heartbeat. */
needs_lock void rc_stall_again(struct rref_ctx *ctx, struct rc_peer *p, int64_t now);
/* Looks at the heartbeat when its time comes. May end the session. */
needs_lock void rc_stall_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now);
/* Takes the end of a READ of the heartbeat. */
needs_lock void rc_stall_event(struct rref_ctx *ctx, struct rc_peer *p, int status);

/* send.c */
/* Sends an encoded message as rc_send does, without a call of rc_inject_takes. */
needs_lock int rc_send_encoded(struct rref_ctx *ctx, uint32_t to, void *bytes, uint32_t length);

/* Returns a copy of a message, to be freed by free(). NULL: no memory. */
struct rc_outgoing *rc_outgoing_make(const void *bytes, uint32_t length);
needs_lock void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_send_drop_queue(struct rref_ctx *ctx, struct rc_peer *p);
/* Forgets the proof of an attempt that came to nothing. The queue stays. */
needs_lock void rc_send_unproved(struct rc_peer *p);

#endif
