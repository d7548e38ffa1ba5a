/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions with peers: made on first use, authenticated, fenced at their end. Whether they still live: stall.c.
 *
 *            want                    CONNECTED               AUTH of the server
 *   DOWN ------------> CONNECTING ---------------> PROVING ------------------------> UP
 *     \    REQUEST                  CONNECTED + the client's AUTH
 *      ------------> ACCEPTING ---------------------------------------------------> UP
 *   UP --DISCONNECTED, protocol error--> fence --> DOWN
 * An attempt that comes to nothing: contact.c.
 *
 * Both sides may connect at the same moment: the lower rank's attempt wins (the higher rank drops its own and takes the
 * other; the lower one refuses with EALREADY and goes on). The server chooses the epoch: one more than the last this side knows of.
 *
 * A connection that breaks while the session is UP does not end it if both live: resume.c makes another.
 *
 * The fence, strictly in this order: (1) no new read finds the connection, those under way are waited for; (2) the
 * device fence: on return nothing of the peer is in flight; (3) the machine drops what hangs on the session, what the
 * peer was sharing stays for a grace period; only then (4) may a new session of that peer come. A clock decides when
 * to fence, never whether a read is safe.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "rc.h"

#define GRACE_NS (1 * NSEC_PER_SEC)
#define CROSSING_NS (3 * NSEC_PER_SEC) /* how long the one who lost a crossing waits for the winner's request */
#define RETRY_NS (200 * NSEC_PER_MSEC) /* a peer that could not be reached is not tried again at once */

int rc_peers_open(struct rref_ctx *ctx)
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
		/* shm between workers of one machine, ibv between machines; table order is preference. */
		for (int k = 0; k < RV_NR_KINDS && !p->ops; k++) {
			struct rc_device *d = &ctx->device[k];

			if (d->dev && p->member->addr[k].len && d->ops->reach(d->dev, &p->member->addr[k]) == 0) {
				p->ops = d->ops;
				p->dev = d->dev;
				p->device = d;
				p->kind = (enum rv_kind)k;
				p->max_sge = d->caps.max_sge;
				p->max_msg = k == RV_IBV ? min_of(d->caps.max_msg, RC_PIECE_MAX) : d->caps.max_msg;
			}
		}
		if (!p->ops)
			return rc_fail(ENODEV,
				       "no device reaches worker %s (rank %u): %s, and %s. Load an RDMA "
				       "device on both sides, e.g. 'rdma link add rxe0 type rxe netdev eth0', or check RREF_DEVICE",
				       p->member->name, i,
				       ctx->device[RV_SHM].dev ? "it is not on this machine (shm)" : ctx->device[RV_SHM].why_not,
				       !ctx->device[RV_IBV].dev ? ctx->device[RV_IBV].why_not : "it has no RDMA device");
	}
	return 0;
}

void rc_peers_close(struct rref_ctx *ctx)
{
	for (uint32_t i = 0; ctx->peers && i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];

		rc_peer_fence(ctx, p, -ESHUTDOWN, "the context was shut down");
		p->state = RC_PEER_GONE; /* for good: neither side's attempts begin a session any more */
	}
}

static void set_up(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rp_event up = { .type = RP_EV_PEER_UP, .peer = p->rank, .epoch = p->epoch };

	rc_contact_up(ctx, p);
	p->ever_up = true;
	p->nr_sessions++;
	ctx->n.sessions++;
	p->fenced = false;
	p->nobody = false;
	rc_stall_begin(ctx, p);
	rc_step(ctx, &up, NULL);
}

void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	p->authenticated = true;
	at_store_sc(&p->conn, p->link);
	rc_send_flush(ctx, p);
	rc_read_pump(ctx, p);
}

const struct rc_key *rc_peer_key(struct rref_ctx *ctx, struct rc_peer *p)
{
	if (!p->has_key &&
	    rc_pair_key(&ctx->key, &ctx->identity, &ctx->members[ctx->rank], p->member, &p->key))
		return NULL;
	p->has_key = true;
	return &p->key;
}

/* From now on its messages and ours prove whose they are. p->hs is complete but for what only
 * the proof tells. */
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

/* Does our server's answer hold? Its hellos from before it are void. */
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
	int err = rc_fail(EOWNERDEAD, "%s (rank %u) cannot be reached: %s", p->member->name, p->rank, why);

	rc_error_concerns(p->rank);
	return err;
}

/* Tells whether a connection could not be made for want of something here, which may come back. */
static bool is_lack(int err)
{
	return err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -ENOBUFS;
}

/* Begins an attempt. 0: under way, or put off; -errno: there will be none. */
static int dial(struct rref_ctx *ctx, struct rc_peer *p)
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
	p->hs.self_incarnation = ctx->incarnation;
	p->hs.peer_incarnation = p->member->incarnation;
	length = rc_hello_make(key, &p->hs, hello);
	p->authenticated = false;
	err = p->ops->connect(p->dev, &p->member->addr[p->kind], hello, length, p, &p->link);
	if (!err) {
		p->state = RC_PEER_CONNECTING;
		return 0;
	}
	snprintf(why, sizeof(why), "connecting: %.180s", rv_error_text());
	p->link = NULL;
	if (err != -ENODEV) {
		if (is_lack(err))
			rc_contact_lacks(ctx, p, why);
		rc_contact_over(ctx, p, why);
		return 0;
	}
	rc_peer_fence(ctx, p, -EOWNERDEAD, why);
	return fail_unreachable(p, why);
}

int rc_peer_want(struct rref_ctx *ctx, struct rc_peer *p)
{
	if (p->rank == ctx->rank)
		return 0;
	if (p->state == RC_PEER_GONE)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	if (p->state == RC_PEER_DOWN && !p->said_goodbye && now_ns() >= p->retry_at) {
		int err = dial(ctx, p);

		if (err)
			return err;
	}
	if (p->cut_off) {
		rc_fail(EOWNERDEAD, "%s (rank %u) is cut off for %s s: %s", p->member->name,
			p->rank, seconds_text(now_ns() - at_load(&p->silent_since)).text, p->why);
		rc_error_concerns(p->rank);
		return -EOWNERDEAD;
	}
	/* After a fence a peer is not tried again at once; what waits for one that is silent goes
	 * on waiting. */
	if (p->state == RC_PEER_DOWN && (p->said_goodbye || !at_load(&p->silent_since)))
		return fail_unreachable(p, p->why);
	return 0;
}

/* On return no thread posts to its connection, or will. */
void rc_peer_stop_reads(struct rref_ctx *ctx, struct rc_peer *p)
{
	unsigned turn = 0;

	/* sc: partner of the pins in rc_read_start and rc_quick_read. */
	at_store_sc(&p->conn, NULL);
	while (at_load_sc(&p->readers))
		rc_pause(&turn); /* which sleeps in the end: the reader may be of a lower priority, on this very processor */
	rc_quick_fence(ctx, p);
	rc_pieces_stop(p);
}

void rc_peer_fence(struct rref_ctx *ctx, struct rc_peer *p, int status, const char *why)
{
	struct rv_conn *link = p->link;
	bool was_alive = at_load(&p->alive);
	char named[RP_TEXT_MAX]; /* for what ends with it: an operation's text stands alone */
	struct list *n;

	if (p->rank == ctx->rank)
		return;
	/* (1) */
	rc_peer_stop_reads(ctx, p);
	/* (2) Of a session that is broken the connection is gone already; this one was to take its place. */
	p->link = NULL;
	if (link)
		p->ops->close_conn(link);
	if (p->state == RC_PEER_UP && !p->said_goodbye) {
		rc_log(ctx, status == -ESHUTDOWN ? RREF_LOG_DEBUG : RREF_LOG_WARNING, "session %u with %s (rank %u) ended: %s",
		       p->epoch, p->member->name, p->rank, why);
		if (status == -EOWNERDEAD)
			at_add(&ctx->n.dead, 1);
	} else if (was_alive && p->state != RC_PEER_UP && status != -ESHUTDOWN) {
		rc_log(ctx, RREF_LOG_WARNING, "%s (rank %u) is given up: %s", p->member->name, p->rank, why);
	}
	if (p->state != RC_PEER_GONE)
		p->state = RC_PEER_DOWN;
	p->authenticated = p->cut_off = false;
	at_store(&p->silent_since, 0);
	p->nr_silent = 0;
	rc_stall_end(p);
	p->send_seq = p->recv_seq = 0;
	rc_resume_over(p);
	p->retry_at = max_of(now_ns() + RETRY_NS, p->resume.banned_until);
	at_store(&p->alive, false);
	if (strstr(why, p->member->name))
		snprintf(named, sizeof(named), "%s", why);
	else
		snprintf(named, sizeof(named), "%.60s (rank %u): %s", p->member->name, p->rank, why);
	snprintf(p->why, sizeof(p->why), "%s", why);
	p->nr_fences++;
	rc_send_drop_queue(ctx, p);
	/* (3) */
	struct rp_event ev = { .type = RP_EV_PEER_FENCED, .peer = p->rank, .status = status, .text = named };

	p->grace_at = now_ns() + GRACE_NS;
	p->fenced = true;
	rc_step(ctx, &ev, NULL);
	rc_payloads_fenced(ctx, p);
	rc_calls_fenced(ctx, p);
	rc_ops_fail_peer(ctx, p->rank, status, named);
	while ((n = list_pop(&p->waiting))) {
		at_sub(&p->nr_waiting, 1);
		rc_read_fail(container_of(n, struct rref_future, node), status);
	}
	if (was_alive)
		rc_peer_is_down(ctx, p, status);
	rc_barrier_check(ctx);
}

/* (4): what the old session left behind goes before the new one begins. */
void rc_peer_end_grace(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rp_event ev = { .type = RP_EV_PEER_GRACE, .peer = p->rank };

	if (!p->grace_at)
		return;
	p->grace_at = 0;
	rc_step(ctx, &ev, NULL);
}

void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn, int err, const char *text)
{
	uint8_t reason[RV_REASON_MAX];
	char who[96];

	d->ops->peer_text(conn, who, sizeof(who));
	/* Counted before the peer hears of it. "Come later" is no fault of the peer's. */
	at_add(&ctx->n.rejected, err != -EAGAIN && err != -EALREADY);
	d->ops->reject(conn, reason, rc_reason_make(err, text, reason));
	if (err == -EALREADY)
		return;
	/* Strangers do not fill the log: its lines become rare. */
	if (worth_logging(++ctx->nr_refused))
		rc_log(ctx, RREF_LOG_WARNING,
		       "a connection from %s was refused (%" PRIu64 " so far): %s", who,
		       ctx->nr_refused, text);
}

/* Counts a hello for a new session, and tells whether it is one too many in this second. */
static bool comes_too_often(struct rc_peer *p)
{
	int64_t now = now_ns();

	if (now - p->hellos_since >= NSEC_PER_SEC) {
		p->hellos_since = now;
		p->nr_hellos = 0;
	}
	return ++p->nr_hellos > RC_HELLOS_MAX;
}

static void on_request(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev)
{
	struct rc_handshake h = { .self_rank = ctx->rank, .self_incarnation = ctx->incarnation };
	uint8_t answer[RV_ANSWER_MAX];
	const struct rc_key *key;
	struct rc_peer *p;
	uint32_t from = 0;
	int err = rc_hello_from(ev->data, ev->len, ctx->rank, &from);

	if (!err && from >= ctx->world)
		err = rc_fail(ESTALE, "not a member of this group");
	if (!err) {
		key = rc_peer_key(ctx, &ctx->peers[from]);
		err = key ? rc_hello_check(key, ev->data, ev->len, &h) : -EKEYREJECTED;
	}
	if (err) {
		rc_peer_refuse(ctx, d, ev->conn, err, rc_error_text());
		return;
	}
	p = &ctx->peers[from];
	if (p->member->incarnation != h.peer_incarnation) {
		rc_peer_refuse(ctx, d, ev->conn, -ESTALE, "not a member of this group");
		return;
	}
	/* A copy, or one that its maker gave up when it took a connection of ours. */
	if (rc_hello_number(&h) <= p->hello_number) {
		rc_peer_refuse(ctx, d, ev->conn, -ESTALE, "a hello that came before, or too late");
		return;
	}
	p->hello_number = rc_hello_number(&h);
	if (p->state == RC_PEER_GONE) {
		rc_peer_refuse(ctx, d, ev->conn, -ESHUTDOWN, "this worker has left the group");
		return;
	}
	if (p->dev != d->dev) {
		rc_peer_refuse(ctx, d, ev->conn, -EPROTO, "this pair of workers uses the other device");
		return;
	}
	if (now_ns() < p->resume.banned_until) {
		rc_peer_refuse(ctx, d, ev->conn, -EAGAIN, "too many of its connections broke here; later");
		return;
	}
	if (h.resumes) {
		rc_resume_request(ctx, d, p, &h, ev);
		return;
	}
	if (comes_too_often(p)) {
		rc_peer_refuse(ctx, d, ev->conn, -EAGAIN, "it begins too many sessions; later");
		return;
	}
	if ((p->state == RC_PEER_CONNECTING || p->state == RC_PEER_PROVING) &&
	    ctx->rank < p->rank && p->link) {
		rc_peer_refuse(ctx, d, ev->conn, -EALREADY, "the connection of the lower rank is under way");
		return;
	}
	if (p->state == RC_PEER_CONNECTING || p->state == RC_PEER_PROVING ||
	    p->state == RC_PEER_ACCEPTING) {
		/* Ours loses, or an older one of the peer's: nothing was sent on it, what waits in
		 * the queue goes over the new one. */
		p->ops->close_conn(p->link);
		p->link = NULL;
		p->state = RC_PEER_DOWN;
		rc_send_unproved(p);
	} else if (p->state != RC_PEER_DOWN) {
		rc_peer_fence(ctx, p, -ENETRESET, "the peer opened a new session");
	}
	rc_peer_end_grace(ctx, p);
	h.epoch = p->epoch + 1;
	p->hs = h;
	p->epoch = h.epoch;
	p->link = ev->conn;
	p->state = RC_PEER_ACCEPTING;
	p->authenticated = p->cut_off = false; /* it lives */
	rc_contact_begin(ctx, p);
	p->said_goodbye = p->goodbye_sent = false;
	p->send_seq = p->recv_seq = 0;
	size_t length = rc_answer_make(&p->key, &p->hs, answer);

	err = rc_peer_seal(p, ev->conn, false);
	if (!err)
		err = d->ops->accept(ev->conn, answer, length, p);
	if (is_lack(err)) {
		char why[RP_TEXT_MAX];

		snprintf(why, sizeof(why), "accepting its connection: %.170s", rv_error_text());
		if (worth_logging(++ctx->nr_refused))
			rc_log(ctx, RREF_LOG_WARNING, "%s (rank %u) was told to come again: %s",
			       p->member->name, p->rank, why);
		rc_contact_lacks(ctx, p, why);
		rc_contact_over(ctx, p, why);
	} else if (err) {
		rc_log(ctx, RREF_LOG_WARNING, "accepting %s failed: %s", p->member->name, rv_error_text());
		rc_contact_over(ctx, p, "accepting its connection failed");
	}
}

static void on_connected(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	struct rw_message proof = { .frame.type = RW_AUTH };
	int err;

	if (p->state == RC_PEER_ACCEPTING) {
		at_store(&p->alive, true);
		return; /* nothing happens before the client's proof */
	}
	err = rc_peer_answered(p, ev, proof.u.auth.mac);
	if (err) {
		at_add(&ctx->n.rejected, 1);
		if (err == -ENETRESET)
			rc_contact_over(ctx, p, "somebody else's message came over its connection");
		else
			rc_peer_fence(ctx, p, err, rc_error_text());
		return;
	}
	rc_beacon(ctx, p->kind, &proof.u.auth);
	rc_peer_end_grace(ctx, p);
	p->epoch = p->hs.epoch;
	p->state = RC_PEER_PROVING;
	p->cut_off = false; /* it lives */
	rc_contact_begin(ctx, p);
	p->send_seq = p->recv_seq = 0;
	p->said_goodbye = p->goodbye_sent = false;
	at_store(&p->alive, true);
	err = p->ops->allow_reads(p->link);
	if (!err)
		err = rc_send(ctx, p->rank, &proof);
	if (err)
		rc_contact_over(ctx, p, "the session could not be started");
}

static void on_failed(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	char text[RP_TEXT_MAX] = "";
	int err = ev->status;

	if (ev->len)
		err = rc_reason_parse(ev->data, ev->len, text, sizeof(text));
	if (err == -EALREADY && p->state == RC_PEER_CONNECTING) {
		/* A crossing: the other side's request is on its way. */
		p->ops->close_conn(p->link);
		p->link = NULL;
		p->retry_at = now_ns() + CROSSING_NS;
		return;
	}
	if (!ev->len && (err == -EAGAIN || is_lack(err)))
		rc_contact_lacks(ctx, p, err == -EAGAIN ? NULL : rref_strerror(err));
	rc_contact_failed(ctx, p, err, ev->len ? text : NULL);
}

/* The first message of a session is the proof (to the server) or its answer (to the client). 0,
 * or why there is no session. */
static int on_first_message(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	struct rw_message m, welcome = { .frame.type = RW_AUTH };
	int err;

	if (rw_decode(ev->data, ev->len, ctx->world, &m) || m.frame.type != RW_AUTH || m.frame.epoch != p->epoch ||
	    m.frame.seq != 1)
		return rc_fail(EPROTO,
			       "its first message did not prove that it holds the group's key");
	p->recv_seq = 1;
	p->beacon_addr = m.u.auth.beacon_addr;
	p->beacon_rkey = m.u.auth.beacon_rkey;
	if (p->state == RC_PEER_ACCEPTING) {
		err = rc_proof_check(&p->key, &p->hs, m.u.auth.mac);
		if (err)
			return err;
		err = p->ops->allow_reads(p->link);
		if (err)
			return rc_fail(-err, "the session could not be started: %s",
				       rv_error_text());
		p->state = RC_PEER_UP;
		set_up(ctx, p);
		rc_beacon(ctx, p->kind, &welcome.u.auth);
		err = rc_send(ctx, p->rank, &welcome);
		if (err)
			return err;
	} else {
		p->state = RC_PEER_UP;
		set_up(ctx, p);
	}
	rc_log(ctx, RREF_LOG_INFO, "session %u with %s (rank %u) over %s is up", p->epoch, p->member->name, p->rank,
	       p->ops->name);
	rc_peer_open_reads(ctx, p);
	return 0;
}

/* Gives up a session that could not begin. A failure here is not the peer's fault: only its proof
 * says something of its key. */
static void not_started(struct rref_ctx *ctx, struct rc_peer *p, int err)
{
	bool is_its_fault = err == -EKEYREJECTED || err == -EPROTO;
	char why[RP_TEXT_MAX];

	snprintf(why, sizeof(why), "%.180s", rc_error_text());
	at_add(&ctx->n.rejected, is_its_fault);
	if (!is_its_fault && p->state == RC_PEER_ACCEPTING)
		rc_contact_over(ctx, p, why);
	else
		rc_peer_fence(ctx, p, is_its_fault || err == -ENOMEM ? err : -EOWNERDEAD, why);
}

static void on_message(struct rref_ctx *ctx, struct rc_peer *p, const struct rv_event *ev)
{
	rc_count_received(ctx, p, ev->data, ev->len);
	if (p->authenticated) {
		rc_message(ctx, p, ev->data, ev->len);
	} else {
		int err = on_first_message(ctx, p, ev);

		if (err)
			not_started(ctx, p, err);
	}
}

void rc_peer_read(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status, int wc)
{
	if (unlikely(cookie == UINT64_MAX)) {
		rc_stall_event(ctx, p, status);
		return;
	}
	if (!rc_flight_event(ctx, p, cookie, status, wc))
		rc_read_event(ctx, cookie, status, wc);
	if (p && unlikely(at_load(&p->nr_waiting)))
		rc_read_pump(ctx, p);
}

static void handle_event(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev)
{
	struct rc_peer *p = ev->user;

	if (ev->type == RV_EV_REQUEST) {
		on_request(ctx, d, ev);
		return;
	}
	if (ev->type == RV_EV_DEVICE) {
		rc_log(ctx, ev->status ? RREF_LOG_ERROR : RREF_LOG_INFO, "%s: %.*s", d->caps.device, (int)ev->len,
		       ev->data ? (const char *)ev->data : "");
		for (uint32_t i = 0; ev->status && i < ctx->world; i++)
			if (ctx->peers[i].dev == d->dev)
				rc_peer_fence(ctx, &ctx->peers[i], ev->status, "the device was lost");
		return;
	}
	/* Somebody else's, or changed on its way: its connection ends, the session goes on over
	 * another. */
	if (ev->status == -EBADMSG && (ev->type == RV_EV_DISCONNECTED || ev->type == RV_EV_FAILED))
		at_add(&ctx->n.rejected, 1);
	if (!p || p->link != ev->conn) {
		at_add(&ctx->n.dropped, 1); /* of a connection that is closed already */
		if (ev->type == RV_EV_RECV)
			d->ops->recv_done(d->dev, ev->token);
		return;
	}
	if (p->resume.broken) {
		rc_resume_event(ctx, p, ev);
		if (ev->type == RV_EV_RECV)
			d->ops->recv_done(d->dev, ev->token);
		return;
	}
	switch (ev->type) {
	case RV_EV_CONNECTED:
		on_connected(ctx, p, ev);
		break;
	case RV_EV_FAILED:
		on_failed(ctx, p, ev);
		break;
	case RV_EV_DISCONNECTED: {
		char why[RP_TEXT_MAX], lost[RP_TEXT_MAX];
		int status = -EOWNERDEAD;

		if (p->said_goodbye)
			snprintf(why, sizeof(why), "it left the group");
		else if (ev->wc_status > 0)
			snprintf(why, sizeof(why), "its connection was lost (%s, work completion status %d)", rref_strerror(ev->status),
				 ev->wc_status);
		else
			snprintf(why, sizeof(why), "its connection was lost (%s)", rref_strerror(ev->status));
		if (rc_resume_may(ctx, p, ev->status)) {
			rc_resume_break(ctx, p, ev->status, why);
			break;
		}
		if (p->state != RC_PEER_UP && ev->status != -ENODEV) {
			rc_contact_over(ctx, p, why);
			break;
		}
		if (!p->said_goodbye) {
			status = rc_stall_lost(ctx, p, why, lost, sizeof(lost));
			snprintf(why, sizeof(why), "%s", lost);
		}
		rc_peer_fence(ctx, p, status, why);
		break;
	}
	case RV_EV_RECV:
		on_message(ctx, p, ev);
		d->ops->recv_done(d->dev, ev->token);
		break;
	case RV_EV_WRITABLE:
		rc_send_flush(ctx, p);
		break;
	default:
		break;
	}
}

static __attribute__((noinline)) void any_event(struct rref_ctx *ctx, struct rc_device *d,
						const struct rv_event *ev)
{
	struct rc_error scratch;

	rc_error_aside(&scratch);
	handle_event(ctx, d, ev);
	rc_error_back(&scratch);
}

void rc_peer_event(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev)
{
	struct rc_peer *p = ev->user;

	/* Most are messages of a session that is up, or ends of READs. */
	if (ev->type == RV_EV_READ) {
		rc_peer_read(ctx, p, ev->cookie, ev->status, ev->wc_status);
	} else if (unlikely(ev->type != RV_EV_RECV || !p || p->link != ev->conn || p->resume.broken || !p->authenticated)) {
		any_event(ctx, d, ev);
	} else {
		rc_count_received(ctx, p, ev->data, ev->len);
		rc_message(ctx, p, ev->data, ev->len);
		d->ops->recv_done(d->dev, ev->token);
	}
}

void rc_peer_tick(struct rref_ctx *ctx, int64_t now)
{
	for (uint32_t i = 0; i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];

		if (p->grace_at && now >= p->grace_at)
			rc_peer_end_grace(ctx, p);
		if (p->resume.broken)
			rc_resume_tick(ctx, p, now);
		rc_contact_tick(ctx, p, now);
		rc_stall_tick(ctx, p, now);
		/* What held them up may go without an event: a region under way (shm), slots that others took first. */
		if (at_load(&p->nr_waiting))
			rc_read_pump(ctx, p);
	}
}
