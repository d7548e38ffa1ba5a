/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stalled is not dead. Each worker has a heartbeat: 8 bytes in a region of its own. Its progress
 * counts them up, and its peers READ them, at no cost to the worker. So two facts are told apart.
 * The device answers: the READ comes back. The process answers: the count went on. A process may be
 * stopped, or its program may keep it from progress; it still serves reads of its values. Such a
 * process is stalled, and loses nothing but time.
 *
 * A stalled worker that holds references here pins memory. After stall_timeout it is told (FENCED),
 * then fenced. Its references are reclaimed like those of a dead worker. When it goes on it finds
 * that message, or its connection gone after it stood still itself. The result is -ENETRESET either
 * way, and it may begin a new session. A stalled worker that holds nothing here is left alone: its
 * values go on being read.
 *
 * A clock decides when to fence, never whether a read is safe. It is the monotonic clock, and time
 * counts only while this worker was awake to look. Of the time between two looks only as much
 * counts as a peer may take to show up. This worker or all workers may have been stopped for a
 * while. No peer is then fenced before there was time to look afresh.
 *
 * All state is used under the progress lock, except the fields that are atomic.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/clock.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/session/internal.h"
#include "core/session/session.h"

/* time between looks: as often as an idle worker counts; over hardware half of peer_timeout */
#define SHM_LOOK_NS (500 * NSEC_PER_MSEC)
/* several times the interval at which an idle worker counts */
#define STALLED_NS (2 * NSEC_PER_SEC)
/* time between the last message and the fence, for a device to deliver it */
#define TELL_NS (100 * NSEC_PER_MSEC)
/* time for which a worker blames its own standstill for a lost session */
#define RECENT_NS (5 * NSEC_PER_SEC)

static int64_t look_ns(const struct rref_ctx *ctx, const struct rc_peer *p)
{
	return p->kind == RV_SHM ? SHM_LOOK_NS : ctx->session.peer_timeout / 2;
}

/* ---- this worker's own ---- */

void rc_stall_beat(struct rref_ctx *ctx, int64_t now)
{
	struct rc_own_beat *own = &ctx->session.own_beat;
	int64_t last = at_load(&own->at);

	rc_assert_locked(ctx);
	if (last && now - last >= STALLED_NS) {
		at_store(&own->stood_ns, now - last);
		at_store(&own->woke_at, now);
	}
	at_store(&own->at, now);
	/* The count is alone in its cache line; peers copy it whole. */
	__atomic_store_n(ctx->session.beacon, htole64(++own->count), __ATOMIC_RELAXED);
}

/* Returns the ns that this worker stood still a moment ago if that was too long, else 0. */
static int64_t stood_still(struct rref_ctx *ctx)
{
	int64_t now = now_ns(), last = at_load(&ctx->session.own_beat.at), stood = 0;

	if (!ctx->session.stall_timeout)
		return 0;
	if (last && now - last >= STALLED_NS)
		stood = now - last; /* no count since */
	else if (now - at_load(&ctx->session.own_beat.woke_at) < RECENT_NS)
		stood = at_load(&ctx->session.own_beat.stood_ns);
	return stood >= ctx->session.stall_timeout ? stood : 0;
}

int rc_stall_lost(struct rref_ctx *ctx, const struct rc_peer *p, const char *what, char *buf,
		  size_t size)
{
	int64_t stood = stood_still(ctx);

	if (!stood) {
		snprintf(buf, size, "%s", what);
		return -EOWNERDEAD;
	}
	snprintf(buf, size,
		 "this worker stood still for %s s, longer than stall_timeout, and was cut off by "
		 "%.60s: %.70s",
		 seconds_text(stood).text, p->member->name, what);
	return -ENETRESET;
}

/* ---- peers ---- */

/* Puts p behind the others: all over one kind of device have the same time between looks. */
void rc_stall_again(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	rc_assert_locked(ctx);
	p->probe_at = now + look_ns(ctx, p);
	list_del(&p->looked);
	list_add_tail(&ctx->session.looks[p->kind], &p->looked);
}

void rc_stall_begin(struct rref_ctx *ctx, struct rc_peer *p)
{
	int64_t now = now_ns();

	rc_assert_locked(ctx);
	rc_stall_again(ctx, p, now);
	p->stall = (struct rc_stall){ .looked_at = now };
	at_store(&p->stalled_ns, 0);
}

void rc_stall_end(struct rc_peer *p)
{
	p->probing = false;
	list_del(&p->looked);
	p->stall = (struct rc_stall){ 0 };
	at_store(&p->stalled_ns, 0);
}

/* Tells whether memory here would stay pinned for the peer's sake. */
static needs_lock bool holds_something(struct rref_ctx *ctx, const struct rc_peer *p)
{
	struct rp_peer_counts c;

	rp_peer_counts(ctx->op.machine, p->rank, &c);
	return c.forks || c.pending_children || at_load(&p->offer_bytes);
}

static needs_lock void announce_fence(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	struct rw_message m = { .frame.type = RW_FENCED, .u.number = (uint64_t)p->stall.still_ns };

	/* May fail for want of room: the peer then learns of the fence from the lost connection. */
	rc_send(ctx, p->rank, &m);
	p->stall.fence_at = now + TELL_NS;
	rc_peer_watch(ctx, p);
}

static needs_lock void heard_nothing(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	struct rc_stall *s = &p->stall;
	int64_t since = now - s->looked_at, most = 2 * look_ns(ctx, p) + NSEC_PER_SEC;

	if (since > most && !s->not_before)
		s->not_before = now + STALLED_NS;
	s->still_ns += min_of(since, most);
	if (s->still_ns < STALLED_NS)
		return;
	if (!at_load(&p->stalled_ns))
		rc_log(ctx, RREF_LOG_WARNING,
		       "%s (rank %u) stands still: its device answers, its process does not",
		       p->member->name, p->rank);
	at_store(&p->stalled_ns, s->still_ns);
	if (ctx->session.stall_timeout && s->still_ns >= ctx->session.stall_timeout &&
	    now >= s->not_before && !s->fence_at && holds_something(ctx, p))
		announce_fence(ctx, p, now);
}

static needs_lock void heard(struct rref_ctx *ctx, struct rc_peer *p, uint64_t count)
{
	if (at_load(&p->stalled_ns))
		rc_log(ctx, RREF_LOG_INFO, "%s (rank %u) goes on after it stood still for %s s",
		       p->member->name, p->rank, seconds_text(p->stall.still_ns).text);
	p->stall.count = count;
	p->stall.still_ns = p->stall.not_before = 0;
	at_store(&p->stalled_ns, 0);
}

static needs_lock void compare(struct rref_ctx *ctx, struct rc_peer *p, int64_t now, uint64_t count)
{
	if (!p->stall.count || count != p->stall.count)
		heard(ctx, p, count);
	else
		heard_nothing(ctx, p, now);
	p->stall.looked_at = now;
}

/* Compares the count after a READ of the peer's heartbeat came back. */
static needs_lock void looked(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	p->heard_at = rc_coarse_ns();
	compare(ctx, p, now,
		__atomic_load_n(&ctx->session.probe_landing[p->rank], __ATOMIC_RELAXED));
}

void rc_stall_event(struct rref_ctx *ctx, struct rc_peer *p, int status)
{
	rc_assert_locked(ctx);
	if (!p->probing)
		return; /* the READ belongs to a session that is over */
	p->probing = false;
	if (!status) {
		looked(ctx, p, now_ns());
	} else if (status == -EACCES && !p->said_goodbye) {
		/* The peer named the place, and nothing else tells whether it lives. */
		at_add(&ctx->n.rejected, 1);
		rc_session_end(ctx, p, -EPROTO, "its device refuses READs of its heartbeat");
	}
}

/*
 * READs the peer's heartbeat. Host death and link loss send nothing, but the READ finds them: it
 * needs no processor of the peer. If the peer's device does not answer, retries run out and the
 * connection ends. A stopped process still answers it. (A zero-length READ would need no key. When
 * it has to be repeated, rdma_rxe 6.1 looks the missing key up again and does not find it. It then
 * ends both queue pairs with REM_ACCESS_ERR. Seen on a slow link between two hosts.)
 */
static needs_lock void stall_look(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	void *base;
	const struct rc_region *region = ra_lookup(ctx->value.landing, ctx->session.probe_landing,
						   &base);
	struct rv_read r = { .cookie = RC_PROBE_COOKIE,
			     .addr = p->beacon_addr,
			     .rkey = p->beacon_rkey,
			     .nr_sge = 1,
			     .sge[0] = { &ctx->session.probe_landing[p->rank], 8,
					 region->mr[p->kind].lkey } };

	rc_stall_again(ctx, p, now);
	if (p->probing)
		return;
	if (!at_load(&p->conn)) {
		/* Waits: its program has to make progress before its heartbeat can be read. Its
		 * messages tell meanwhile that it goes on. */
		if (p->state == RC_PEER_UP && !p->reads_inline && !p->reads_up)
			compare(ctx, p, now, p->recv_seq + 1);
		return;
	}
	/* Counted first: another thread may take in its end before this call returns. sc. Pairs
	 * with arm_devices. */
	p->probing = p->kind != RV_SHM;
	at_add_sc(&ctx->sleep.reads_in_flight, p->probing);
	if (p->ops->post_reads(p->link, &r, 1) != 1) {
		at_sub(&ctx->sleep.reads_in_flight, p->probing);
		p->probing = false;
	} else if (!p->probing && !r.status) {
		looked(ctx, p, now);
	}
}

void rc_stall_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now)
{
	rc_assert_locked(ctx);
	if (p->stall.fence_at && now >= p->stall.fence_at) {
		char why[RP_TEXT_MAX];

		snprintf(why, sizeof(why),
			 "it stood still for %s s (stall_timeout) and held references or memory "
			 "here: fenced",
			 seconds_text(p->stall.still_ns).text);
		at_add(&ctx->n.fenced, 1);
		rc_session_end(ctx, p, -EOWNERDEAD, why);
		return;
	}
	if (now >= p->probe_at)
		stall_look(ctx, p, now);
}

void rc_stall_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t still_ns)
{
	char why[RP_TEXT_MAX];

	rc_assert_locked(ctx);
	snprintf(why, sizeof(why),
		 "%.60s fenced this worker, which stood still for %.13s s (stall_timeout); what "
		 "they held of each "
		 "other is gone, a new session may begin",
		 from->member->name, seconds_text(still_ns).text);
	rc_session_end(ctx, from, -ENETRESET, why);
}

const char *rc_stall_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf,
			   size_t size)
{
	int64_t still = at_load(&ctx->peers[rank].stalled_ns);

	if (!text)
		text = "timed out";
	if (rank == ctx->rank)
		return text;
	if (still)
		snprintf(buf, size,
			 "%.250s: %.127s (rank %u) is stalled, its process has not answered for "
			 "%s s",
			 text, ctx->peers[rank].member->name, rank, seconds_text(still).text);
	else if (!rc_contact_words(ctx, rank, text, buf, size))
		snprintf(buf, size, "%.350s: no answer to it from %.127s (rank %u) yet", text,
			 ctx->peers[rank].member->name, rank);
	return buf;
}
