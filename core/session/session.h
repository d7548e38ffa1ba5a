/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions with other workers: the names for other rooms. Design: docs/design/sessions.md. */
#ifndef RC_SESSION_SESSION_H
#define RC_SESSION_SESSION_H

#include "core/base/clock.h"
#include "core/base/locked.h"
#include "core/ctx.h"

/* peer.c */
int rc_peers_open(struct rref_ctx *ctx);
/* Fences all peers for good. Waits for the devices, and lets go of the lock meanwhile. */
needs_lock void rc_peers_close(struct rref_ctx *ctx);
/* Asks for a session. Returns 0 (UP or on the way) or -errno. */
needs_lock int rc_peer_want(struct rref_ctx *ctx, struct rc_peer *p);
/* Takes the fence's first step. */
needs_lock void rc_peer_stop_reads(struct rref_ctx *ctx, struct rc_peer *p);
/* Leaves work for p to the next holder of the lock. Any thread; waits for nobody. */
void rc_peer_later(struct rref_ctx *ctx, struct rc_peer *p, enum rc_later what);
needs_lock void rc_peer_end_grace(struct rref_ctx *ctx, struct rc_peer *p);
needs_lock void rc_peer_tick(struct rref_ctx *ctx, int64_t now);
/* Has the next ticks look at the peer, until none of them has anything to do for it. */
needs_lock void rc_peer_watch(struct rref_ctx *ctx, struct rc_peer *p);
/* Returns when the next look at a heartbeat over such a device is due. INT64_MAX: never. */
needs_lock int64_t rc_peer_look_due(const struct rref_ctx *ctx, enum rv_kind kind);

/* Lets the peer read here over its link. Returns as the device's allow_reads. */
needs_lock int rc_peer_allow(struct rref_ctx *ctx, struct rc_peer *p);

/* fence.c */
/* Carries out the fence of the peer whose ending.work is w. Only the queue of work calls it. */
needs_lock void rc_peer_fence(struct rref_ctx *ctx, struct rc_work *w);

/* peer_event.c */
needs_lock void rc_peer_event(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev);
/* Takes the end of a READ. p may be NULL. */
needs_lock void rc_peer_read(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status,
			     int wc);

/* contact.c */
needs_lock void rc_contact_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now);
/* Returns the time of the next attempt. INT64_MAX: never. */
needs_lock int64_t rc_contact_due(const struct rref_ctx *ctx, const struct rc_peer *p);

/* stall.c */
/* Counts the heartbeat up: progress is made. */
needs_lock void rc_stall_beat(struct rref_ctx *ctx, int64_t now);
/*
 * Returns the meaning of a lost connection: -EOWNERDEAD, or -ENETRESET if this worker stood still.
 * Writes the words into buf.
 */
int rc_stall_lost(struct rref_ctx *ctx, const struct rc_peer *p, const char *what, char *buf,
		  size_t size);
needs_lock void rc_stall_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t still_ns);
/* Returns text, or "timed out", with news of the silent worker. buf: RREF_TEXT_SIZE bytes. */
const char *rc_stall_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf,
			   size_t size);

/* send.c */
/* Sets up the reserve of messages. Returns 0, or -errno with a text. */
int rc_send_open(struct rref_ctx *ctx);
void rc_send_close(struct rref_ctx *ctx);
/* Sends a message, or queues it when it must. */
needs_lock int rc_send(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m);
/* Sends a message as rc_send does. Asks for the fence of a peer that cannot be told. */
needs_lock void rc_send_or_end(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m);
/* Frees a message, or keeps it for the next. */
needs_lock void rc_outgoing_finished(struct rref_ctx *ctx, struct rc_outgoing *o);
needs_lock void rc_send_tick(struct rref_ctx *ctx, int64_t now);
/* Returns the time when the next tick has work. INT64_MAX: never. */
needs_lock int64_t rc_send_due(const struct rref_ctx *ctx);
/*
 * Takes back a call that is still queued, and the references that it shared. Returns false if it is
 * not queued.
 */
needs_lock bool rc_send_withdraw(struct rref_ctx *ctx, struct rc_peer *p, uint64_t call_id);

/*
 * Runs after a message came. Sends the acknowledgement that is due, or queued messages that may go
 * now.
 */
static inline needs_lock void rc_send_after(struct rref_ctx *ctx, struct rc_peer *p)
{
	if (unlikely(p->unacked.owed >= RC_ACK_EVERY || p->nr_queued))
		rc_send_more(ctx, p);
}

/* Tells whether a message that came in that session can still be answered with any use. */
static inline needs_lock bool rc_same_session(const struct rref_ctx *ctx, uint32_t rank,
					      uint32_t epoch)
{
	const struct rc_peer *p = &ctx->peers[rank];

	if (unlikely(rank == ctx->rank))
		return at_load(&ctx->state) != RC_CTX_SHUT;
	return rc_state_stands(p->state) && p->epoch == epoch;
}

static inline needs_lock void rc_count_sent(struct rref_ctx *ctx, struct rc_peer *p,
					    const void *message, uint32_t length)
{
	at_add_mine(&ctx->n.sent, 1);
	ctx->n.sent_by_kind[rw_kind(message, length)]++;
	ctx->n.sent_bytes += length;
	p->traffic.sent++;
	p->traffic.sent_bytes += length;
}

static inline needs_lock void rc_count_received(struct rref_ctx *ctx, struct rc_peer *p,
						const void *message, uint32_t length)
{
	at_add_mine(&ctx->n.received, 1);
	ctx->n.received_by_kind[rw_kind(message, length)]++;
	ctx->n.received_bytes += length;
	p->traffic.received++;
	p->traffic.received_bytes += length;
	p->heard_at = likely(ctx->turns.turn_at) ? ctx->turns.turn_at : rc_coarse_ns();
}

#endif
