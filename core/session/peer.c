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

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/ranks.h"
#include "core/base/wait.h"
#include "core/ctx.h"
#include "core/op/step.h"
#include "core/session/internal.h"
#include "core/session/session.h"
#include "core/value/look.h"
#include "core/value/value.h"

#define LOOKS 100u /* looks at threads that post, before a later turn looks again */
#define LOOK_NS (1 * NSEC_PER_MSEC)

is_alone int rc_peers_open(struct rref_ctx *ctx)
{
	ctx->peers = aligned_alloc(CACHE_LINE, ctx->world * sizeof(*ctx->peers));
	if (!ctx->peers)
		return rc_fail(ENOMEM, "memory for %u peers", ctx->world);
	memset(ctx->peers, 0, ctx->world * sizeof(*ctx->peers));
	list_init(&ctx->session.watched);
	for (int k = 0; k < RV_NR_KINDS; k++)
		list_init(&ctx->session.looks[k]);
	for (uint32_t i = 0; i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];

		p->rank = i;
		p->member = &ctx->members[i];
		p->kind = RV_IBV;
		list_init(&p->queue);
		list_init(&p->watched);
		list_init(&p->looked);
		list_init(&p->waiting);
		list_init(&p->pieces.reads);
		rc_split_next(&p->pieces);
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

static needs_lock bool are_fenced(struct rref_ctx *ctx, __attribute__((unused)) void *arg)
{
	return !ctx->session.nr_ending;
}

void rc_peers_close(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	/* no attempt of either side begins a session any more */
	ctx->session.leaves = true;
	for (uint32_t i = 0; ctx->peers && i < ctx->world; i++) {
		rc_rank_next(ctx, i); /* their fences */
		rc_session_end(ctx, &ctx->peers[i], -ESHUTDOWN, "the context was shut down");
	}
	rc_wait_until(ctx, are_fenced, NULL, INT64_MAX);
}

void rc_peer_close(struct rc_peer *p)
{
	if (p->link && p->link == p->left)
		p->nr_closing++;
	else
		p->nr_closing += p->link && p->ops->close_conn(p->link);
	p->link = NULL;
}

void rc_peer_closed(struct rref_ctx *ctx, struct rc_peer *p, int status)
{
	rc_assert_locked(ctx);
	rb_assert_is(p->nr_closing, >, 0);
	/* The READs never end, so no READ is posted again. The fence ends the reads that wait. */
	if (status && rc_state_stands(p->state))
		rc_session_end(ctx, p, -ENETRESET,
			       "the device cannot destroy a queue pair of its connection");
	if (--p->nr_closing)
		return;
	if (p->ending.waits)
		rc_defer_first(ctx, &p->ending.work);
	else if (p->state == RC_PEER_UP)
		rc_peer_open_reads(ctx, p);
}

void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	/* A READ that is posted again must not meet a late landing of its first try. */
	bool can = (p->reads_inline || p->reads_up) && !p->nr_closing;

	rc_assert_locked(ctx);
	if (p->state != RC_PEER_UP)
		return; /* a fence is due */
	if (can)
		at_store_sc(&p->conn, p->link);
	rc_send_flush(ctx, p);
	if (can)
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
	rc_peer_watch(ctx, p); /* something waits for it */
	if (p->state == RC_PEER_GONE)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	if (p->state == RC_PEER_DOWN && !p->said_goodbye && now_ns() >= p->retry_at) {
		int err = peer_dial(ctx, p);

		if (err)
			return err;
	}
	if (p->cut_off) {
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

/* Tells whether threads still post over an earlier p->conn. Most are done within this moment. */
static needs_lock bool are_at_it(struct rref_ctx *ctx, const struct rc_peer *p)
{
	for (unsigned look = 0; look < LOOKS; look++) {
		if (!at_load_sc(&p->readers) && !ctx->session.events->posts(ctx, p))
			return false;
		cpu_relax();
	}
	return true;
}

void rc_peer_stop_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rv_conn *conn = at_load(&p->conn);

	rc_assert_locked(ctx);
	rb_assert_if(conn, conn == p->link && !p->left);
	/* sc. Pairs with inline_begin, post_pinned and post_marked: their pins. */
	at_store_sc(&p->conn, NULL);
	ctx->session.events->reads_stop(ctx, p);
	if (!conn || !are_at_it(ctx, p))
		return;
	/* A thread that posts may stand still, so a later turn looks again. */
	p->left = conn;
	rc_peer_watch(ctx, p);
	rc_turn_by(ctx, now_ns() + LOOK_NS);
}

/*
 * Closes the connection that threads posted to, if they are done. If only its READs were cut off,
 * they may come back.
 */
static needs_lock void close_left(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rv_conn *left = p->left;

	if (are_at_it(ctx, p))
		return;
	/* Again: a thread may have begun to wait for a turn in the meantime. */
	ctx->session.events->reads_stop(ctx, p);
	p->left = NULL;
	if (left == p->link)
		rc_resume_allow(ctx, p);
	else if (!p->ops->close_conn(left))
		rc_peer_closed(ctx, p, 0);
}

static needs_lock void do_now(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_peer *p = container_of(w, struct rc_peer, later);
	/* sc. Pairs with rc_peer_later: work that comes from here on is pushed again. */
	uint32_t what = at_xchg_sc(&p->later_what, 0);

	if (what & RC_LATER_HEARTBEAT)
		rc_stall_event(ctx, p, 0);
	if (what & RC_LATER_READS)
		ctx->session.events->reads_may(ctx, p);
}

void rc_peer_later(struct rref_ctx *ctx, struct rc_peer *p, enum rc_later what)
{
	if (at_or_sc(&p->later_what, (uint32_t)what))
		return;
	p->later.run = do_now;
	rc_work_push(ctx, &p->later);
}

int rc_peer_allow(struct rref_ctx *ctx, struct rc_peer *p)
{
	int err = p->ops->allow_reads(p->link);

	rc_assert_locked(ctx);
	p->reads_up = p->reads_cut = false;
	if (!err)
		rc_onlooker_begin(ctx, p);
	return err;
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

void rc_peer_watch(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (list_empty(&p->watched))
		list_add_tail(&ctx->session.watched, &p->watched);
}

/*
 * Returns whether a later tick may have something to do for the peer, besides looks at its
 * heartbeat. rc_next_timer has the times. All code that makes this true calls rc_peer_watch.
 */
static needs_lock bool stays_watched(const struct rref_ctx *ctx, const struct rc_peer *p)
{
	return p->left || p->grace_at || p->resend_at || p->stall.fence_at ||
	       at_load(&p->nr_waiting) || at_load(&p->pieces.nr_reads) ||
	       rc_state_tries(p->state) || rc_state_broken(p->state) ||
	       rc_contact_due(ctx, p) != INT64_MAX;
}

static needs_lock void tick_watched(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	if (p->left)
		close_left(ctx, p);
	if (p->grace_at && now >= p->grace_at)
		rc_peer_end_grace(ctx, p);
	peer_tick(ctx, p, now);
	/* Reads that wait may go on without an event. A region may have been under way (shm), or
	 * other reads may have taken the slots first. */
	if (at_load(&p->nr_waiting) || at_load(&p->pieces.nr_reads))
		ctx->session.events->reads_may(ctx, p);
	if (!stays_watched(ctx, p))
		list_del(&p->watched);
}

int64_t rc_peer_look_due(const struct rref_ctx *ctx, enum rv_kind kind)
{
	const struct list *looks = &ctx->session.looks[kind];

	rc_assert_locked(ctx);
	return list_empty(looks) ? INT64_MAX
				 : container_of(looks->next, struct rc_peer, looked)->probe_at;
}

/*
 * Looks at the peers that have something to do, and at heartbeats whose time has come. A group may
 * have many more, which nothing happens to.
 */
void rc_peer_tick(struct rref_ctx *ctx, int64_t now)
{
	struct list *l, *tmp;

	rc_assert_locked(ctx);
	list_for_each_safe(l, tmp, &ctx->session.watched)
		tick_watched(ctx, container_of(l, struct rc_peer, watched), now);
	for (int k = 0; k < RV_NR_KINDS; k++)
		while (rc_peer_look_due(ctx, (enum rv_kind)k) <= now) {
			l = list_pop(&ctx->session.looks[k]); /* the look puts it behind the last */
			peer_tick(ctx, container_of(l, struct rc_peer, looked), now);
		}
}
