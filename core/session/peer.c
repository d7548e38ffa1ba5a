/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions with peers: made on first use and authenticated. The states are in table.h, events of
 * the devices in peer_event.c, signs of life in stall.c. Attempts that come to nothing are in
 * contact.c.
 *
 * Both sides may connect at the same moment. The lower rank's attempt wins: the higher rank drops
 * its own attempt and takes the other. The lower rank refuses with EALREADY and goes on. The server
 * chooses the epoch: one more than the last epoch that this side knows of.
 *
 * A connection may break while the session is UP. If both sides live the session goes on: resume.c
 * makes another connection.
 *
 * A session ends by the fence: fence.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/op/step.h"
#include "core/session/internal.h"
#include "core/session/session.h"
#include "core/value/value.h"

is_alone int rc_peers_open(struct rref_ctx *ctx)
{
	ctx->peers = aligned_alloc(CACHE_LINE, ctx->world * sizeof(*ctx->peers));
	if (!ctx->peers)
		return rc_fail(ENOMEM, "memory for %u peers", ctx->world);
	memset(ctx->peers, 0, ctx->world * sizeof(*ctx->peers));
	for (uint32_t i = 0; i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];

		p->rank = i;
		p->member = &ctx->members[i];
		p->kind = RV_IBV;
		list_init(&p->queue);
		list_init(&p->waiting);
		list_init(&p->pieces.reads);
		p->pieces.connection = 1;
		list_init(&p->unacked.sent);
		list_init(&p->unacked.again);
		at_store(&p->alive, true);
		if (i == ctx->rank)
			continue;
		/* The first kind in the table wins: shm between workers of one machine, ibv between
		 * machines. */
		for (int k = 0; k < RV_NR_KINDS && !p->ops; k++) {
			struct rc_device *d = &ctx->device[k];

			if (d->dev && p->member->addr[k].len &&
			    d->ops->reach(d->dev, &p->member->addr[k]) == 0) {
				p->ops = d->ops;
				p->dev = d->dev;
				p->device = d;
				p->kind = (enum rv_kind)k;
				p->reads_inline = d->caps.reads_inline;
				p->max_sge = d->caps.max_sge;
				p->max_msg = p->reads_inline
						     ? d->caps.max_msg
						     : min_of(d->caps.max_msg, RC_PIECE_MAX);
			}
		}
		if (!p->ops)
			return rc_fail(
				ENODEV,
				"no device reaches worker %s (rank %u): %s, and %s. Load an RDMA "
				"device on both sides, e.g. 'rdma link add rxe0 type rxe netdev "
				"eth0', or check RREF_DEVICE",
				p->member->name, i,
				ctx->device[RV_SHM].dev ? "it is not on this machine (shm)"
							: ctx->device[RV_SHM].why_not,
				!ctx->device[RV_IBV].dev ? ctx->device[RV_IBV].why_not
							 : "it has no RDMA device");
	}
	return 0;
}

void rc_peers_close(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	/* no attempt of either side begins a session any more */
	ctx->session.leaves = true;
	for (uint32_t i = 0; ctx->peers && i < ctx->world; i++)
		rc_session_end(ctx, &ctx->peers[i], -ESHUTDOWN, "the context was shut down");
	rc_work_run(ctx);
}

void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (p->state != RC_PEER_UP)
		return; /* a fence is due */
	at_store_sc(&p->conn, p->link);
	rc_send_flush(ctx, p);
	ctx->session.events->reads_may(ctx, p);
}

const struct rc_key *rc_peer_key(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (!p->has_key && rc_pair_key(&ctx->group.key, &ctx->group.identity,
				       &ctx->members[ctx->rank], p->member, &p->key))
		return NULL;
	p->has_key = true;
	return &p->key;
}

/*
 * Seals a connection: from now on messages of both sides prove their sender. p->hs is complete,
 * except for the part that only the proof tells.
 */
int rc_peer_seal(struct rc_peer *p, struct rv_conn *conn, bool is_client)
{
	uint8_t out[RV_SEAL_KEY_BYTES], in[RV_SEAL_KEY_BYTES];
	int err;

	rc_handshake_seals(&p->key, &p->hs, is_client, out, in);
	err = p->ops->seal(conn, out, in);
	explicit_bzero(out, sizeof(out));
	explicit_bzero(in, sizeof(in));
	return err ? rc_fail(ENETRESET, "%s (rank %u): %s", p->member->name, p->rank,
			     rv_error_text())
		   : 0;
}

void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn, int err,
		    const char *text)
{
	uint8_t reason[RV_REASON_MAX];
	char who[96];

	rc_assert_locked(ctx);
	d->ops->peer_text(conn, who, sizeof(who));
	/* Counted before the peer hears of the refusal. "Come later" is no fault of the peer's. */
	at_add(&ctx->n.rejected, err != -EAGAIN && err != -EALREADY);
	d->ops->reject(conn, reason, rc_reason_make(err, text, reason));
	if (err == -EALREADY)
		return;
	/* Strangers must not fill the log, so its lines become rare. */
	if (worth_logging(++ctx->session.nr_refused))
		rc_log(ctx, RREF_LOG_WARNING,
		       "a connection from %s was refused (%" PRIu64 " so far): %s", who,
		       ctx->session.nr_refused, text);
}

/*
 * Checks our server's answer, and seals the connection. The server's hellos from before the answer
 * are void.
 */
int rc_peer_answered(struct rc_peer *p, const struct rv_event *ev, uint8_t proof[RC_MAC_BYTES])
{
	int err = rc_answer_check(&p->key, ev->data, ev->len, &p->hs, proof);

	if (err)
		return err;
	p->hello_number = max_of(p->hello_number, p->hs.server_hellos);
	return rc_peer_seal(p, p->link, true);
}

static int fail_unreachable(const struct rc_peer *p, const char *why)
{
	int err = rc_fail(EOWNERDEAD, "%s (rank %u) cannot be reached: %s", p->member->name,
			  p->rank, why);

	rc_error_concerns(p->rank);
	return err;
}

/*
 * Begins an attempt. Returns 0 if it is under way or put off. Returns -errno if there will be none.
 */
static needs_lock int peer_dial(struct rref_ctx *ctx, struct rc_peer *p)
{
	const struct rc_key *key;
	uint8_t hello[RV_HELLO_MAX];
	char why[RP_TEXT_MAX];
	size_t length;
	int err;

	key = rc_peer_key(ctx, p);
	if (!key)
		return -EKEYREJECTED;
	rc_contact_begin(ctx, p);
	memset(&p->hs, 0, sizeof(p->hs));
	p->hs.self_rank = ctx->rank;
	p->hs.peer_rank = p->rank;
	p->hs.self_incarnation = ctx->group.incarnation;
	p->hs.peer_incarnation = p->member->incarnation;
	length = rc_hello_make(key, &p->hs, hello);
	err = p->ops->connect(p->dev, &p->member->addr[p->kind], hello, length, p, &p->link);
	if (!err) {
		rc_session_on(ctx, p, RC_STEP_DIALLED);
		return 0;
	}
	snprintf(why, sizeof(why), "connecting: %.180s", rv_error_text());
	p->link = NULL;
	if (err != -ENODEV) {
		if (rc_is_lack(err))
			rc_contact_lacks(ctx, p, why);
		rc_contact_finished(ctx, p, why);
		return 0;
	}
	rc_session_end(ctx, p, -EOWNERDEAD, why);
	return fail_unreachable(p, why);
}

int rc_peer_want(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (p->rank == ctx->rank)
		return 0;
	if (p->state == RC_PEER_GONE)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	if (p->state == RC_PEER_DOWN && !p->said_goodbye && now_ns() >= p->retry_at) {
		int err = peer_dial(ctx, p);

		if (err)
			return err;
	}
	if (p->cut_off && !rc_state_ends(p->state)) {
		rc_fail(EOWNERDEAD, "%s (rank %u) is cut off for %s s: %s", p->member->name,
			p->rank, seconds_text(now_ns() - at_load(&p->silent_since)).text, p->why);
		rc_error_concerns(p->rank);
		return -EOWNERDEAD;
	}
	/* A fenced peer is not tried again at once. Operations that wait for a silent peer go on
	 * waiting. */
	if (p->state == RC_PEER_DOWN && (p->said_goodbye || !at_load(&p->silent_since)))
		return fail_unreachable(p, p->why);
	return 0;
}

/* Stops reads: on return no thread posts to the peer's connection, or will. */
void rc_peer_stop_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	unsigned turn = 0;

	rc_assert_locked(ctx);
	/* sc. Pairs with inline_begin, post_pinned and post_marked: their pins. */
	at_store_sc(&p->conn, NULL);
	/* rc_pause sleeps in the end: the reader may be of a lower priority, on this very
	 * processor */
	while (at_load_sc(&p->readers))
		rc_pause(&turn);
	ctx->session.events->reads_stop(ctx, p);
}

/* Ends the grace period (4): the rest of the old session goes before the new one begins. */
void rc_peer_end_grace(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rp_event ev = { .type = RP_EV_PEER_GRACE, .peer = p->rank };

	rc_assert_locked(ctx);
	if (!p->grace_at)
		return;
	p->grace_at = 0;
	rc_step(ctx, &ev, NULL);
}

static needs_lock void peer_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	switch (rc_session_on(ctx, p, RC_SEE_TICK)) {
	case RC_DO_WANT:
	case RC_DO_WAIT:
	case RC_DO_TIME:
		rc_contact_tick(ctx, p, now);
		break;
	case RC_DO_RETIME:
		rc_resume_tick(ctx, p, now);
		if (!rc_state_ends(p->state))
			rc_stall_tick(ctx, p, now);
		break;
	case RC_DO_LOOK:
		rc_stall_tick(ctx, p, now);
		break;
	default:
		break;
	}
}

void rc_peer_tick(struct rref_ctx *ctx, int64_t now)
{
	rc_assert_locked(ctx);
	for (uint32_t i = 0; i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];

		if (p->grace_at && now >= p->grace_at)
			rc_peer_end_grace(ctx, p);
		peer_tick(ctx, p, now);
		/* Reads that wait may go on without an event. A region may have been under way
		 * (shm), or other reads may have taken the slots first. */
		if (at_load(&p->nr_waiting))
			ctx->session.events->reads_may(ctx, p);
	}
}
