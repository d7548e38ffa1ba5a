/* SPDX-License-Identifier: Apache-2.0 */
/* Counters: of the whole context, of one peer, and as text. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/base/ranks.h"
#include "core/call/call.h"
#include "core/observe/dump.h"
#include "core/value/value.h"

_Static_assert(RREF_MESSAGE_KINDS == RW_NR_KINDS, "one counter for each kind");

const char *rref_message_kind(unsigned kind)
{
	return rw_kind_name(kind);
}

/* Copies the counters that only the lock holder may read. */
static needs_lock void locked_part(struct rref_ctx *ctx, struct rref_stats *s)
{
	struct rp_counts c = { 0 };

	if (ctx->op.machine)
		rp_counts(ctx->op.machine, &c);
	s->owners = c.owners;
	s->pending_owners = c.pending_owners;
	s->forks = c.forks;
	s->users = c.users;
	s->pending_users = c.pending_users;
	s->pending_children = c.pending_children;
	s->parked = c.parked;
	s->tombstones = c.tombstones;
	s->dropped_messages = at_load(&ctx->n.dropped) + c.ignored;
	s->nested = at_load(&ctx->n.nested);
	s->sessions = ctx->n.sessions;
	s->views_left = ctx->n.views_left;
	s->views_left_bytes = at_load(&ctx->n.views_left_bytes);
	s->resumed_sessions = ctx->n.resumed;
	s->resumed_reads = ctx->n.reads_resumed;
	s->messages_again = ctx->n.sent_again;
	s->messages_not_again = ctx->n.not_again;
	s->sent_bytes = ctx->n.sent_bytes;
	s->received_bytes = ctx->n.received_bytes;
	memcpy(s->sent, ctx->n.sent_by_kind, sizeof(s->sent));
	memcpy(s->received, ctx->n.received_by_kind, sizeof(s->received));
	for (uint32_t i = 0; i < ctx->world; i++) {
		rc_rank_next(ctx, i);
		s->queued_messages += ctx->peers[i].nr_queued;
		s->queued_bytes += ctx->peers[i].queued_bytes;
		s->waiting_reads += at_load(&ctx->peers[i].nr_waiting) +
				    at_load(&ctx->peers[i].pieces.nr_reads);
		s->stalled_peers += at_load(&ctx->peers[i].stalled_ns) != 0;
	}
}

int rref_get_stats(struct rref_ctx *ctx, struct rref_stats *out)
{
	RB_NO_CANCEL;
	struct rref_stats s = { 0 };
	struct ra_stats v, l;

	if (!ctx || !out || out->size < sizeof(size_t))
		return rc_fail(EINVAL, "rref_get_stats: no context, or out->size is not set");
	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	rc_lock_settled(ctx);
	locked_part(ctx, &s);
	rc_unlock(ctx);
	rc_scrub_all(ctx);
	ra_stats(ctx->value.arena, &v);
	ra_stats(ctx->value.landing, &l);
	s.size = out->size;
	s.value_bytes = at_load(&ctx->n.value_bytes);
	rc_fast_counts(ctx, &s);
	s.payload_bytes = at_load(&ctx->n.payload_bytes);
	s.registered_bytes = v.region_bytes + l.region_bytes + ctx->session.beacon_region->length +
			     at_load(&ctx->n.mem_bytes);
	s.nr_regions = v.nr_regions + l.nr_regions + 1 + at_load(&ctx->n.mems);
	s.wrapped_bytes = at_load(&ctx->n.wrapped_bytes);
	s.messages_sent = at_load(&ctx->n.sent);
	s.messages_received = at_load(&ctx->n.received);
	s.calls_served = at_load(&ctx->n.calls) + at_load(&ctx->n.inline_calls);
	s.calls_open = rc_calls_open(ctx);
	s.quarantined = at_load(&ctx->n.quarantined);
	s.rejected_peers = at_load(&ctx->n.rejected);
	s.dead_peers = at_load(&ctx->n.dead);
	s.retries = at_load(&ctx->n.retries);
	s.fenced_peers = at_load(&ctx->n.fenced);
	s.reads_again = at_load(&ctx->n.reads_again);
	s.reads_joined = at_load(&ctx->n.reads_joined);
	memcpy(out, &s, min_of(out->size, sizeof(s)));
	return 0;
}

int rref_get_peer_stats(struct rref_ctx *ctx, int rank, struct rref_peer_stats *out)
{
	RB_NO_CANCEL;
	static const char *const state[RC_PEER_NR_STATES] = {
		[RC_PEER_DOWN] = "down",	  [RC_PEER_CONNECTING] = "connecting",
		[RC_PEER_CROSSED] = "connecting", [RC_PEER_ACCEPTING] = "accepting",
		[RC_PEER_PROVING] = "connecting", [RC_PEER_GONE] = "gone",
		[RC_PEER_GIVEN_UP] = "down",	  [RC_PEER_ENDING] = "down",
		[RC_PEER_UP] = "up",		  [RC_PEER_BROKEN] = "broken",
		[RC_PEER_REDIALLING] = "broken",  [RC_PEER_REPROVING] = "broken",
		[RC_PEER_REACCEPTING] = "broken",
	};
	struct rref_peer_stats s = { .heard = -1 };
	struct rp_peer_counts c = { 0 };

	if (!ctx || !out || out->size < sizeof(size_t))
		return rc_fail(EINVAL, "rref_get_peer_stats: no context, or out->size is not set");
	if (rank < 0 || (uint32_t)rank >= ctx->world)
		return rc_fail(EINVAL, "rref_get_peer_stats: rank %d: the group has ranks 0 to %u",
			       rank, ctx->world - 1);
	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	const struct rc_peer *p = &ctx->peers[rank];

	rc_lock_settled(ctx);
	if (ctx->op.machine)
		rp_peer_counts(ctx->op.machine, (uint32_t)rank, &c);
	s.size = out->size;
	s.rank = rank;
	s.state = (uint32_t)rank == ctx->rank ? "self" : p->cut_off ? "down" : state[p->state];
	s.epoch = p->epoch;
	s.sessions = p->nr_sessions;
	s.resumed = p->resume.nr_resumed;
	s.unacked_messages = p->unacked.nr;
	s.forks = c.forks;
	s.users = c.users;
	s.pending_children = c.pending_children;
	s.tombstones = c.tombstones;
	s.messages_sent = p->traffic.sent;
	s.messages_received = p->traffic.received;
	s.sent_bytes = p->traffic.sent_bytes;
	s.received_bytes = p->traffic.received_bytes;
	s.queued_messages = p->nr_queued;
	s.queued_bytes = p->queued_bytes;
	s.waiting_reads = at_load(&p->nr_waiting) + at_load(&p->pieces.nr_reads);
	s.call_bytes = rc_call_bytes(p);
	s.stalled = at_load(&p->stalled_ns);
	if (p->heard_at)
		s.heard = max_of(rc_coarse_ns() - p->heard_at, 0);
	rc_unlock(ctx);
	memcpy(out, &s, min_of(out->size, sizeof(s)));
	return 0;
}

/* ---- as text ---- */

#define FIELD(name) { #name, offsetof(struct rref_stats, name) }
static const struct {
	const char *name;
	size_t at;
} fields[] = {
	FIELD(owners),
	FIELD(pending_owners),
	FIELD(forks),
	FIELD(users),
	FIELD(pending_users),
	FIELD(pending_children),
	FIELD(nested),
	FIELD(tombstones),
	FIELD(parked),
	FIELD(ops_in_flight),
	FIELD(calls_open),
	FIELD(calls_served),
	FIELD(waiting_reads),
	FIELD(reads),
	FIELD(read_bytes),
	FIELD(doorbells),
	FIELD(quarantined),
	FIELD(value_bytes),
	FIELD(wrapped_bytes),
	FIELD(payload_bytes),
	FIELD(landing_bytes),
	FIELD(registered_bytes),
	FIELD(nr_regions),
	FIELD(sessions),
	FIELD(messages_sent),
	FIELD(messages_received),
	FIELD(sent_bytes),
	FIELD(received_bytes),
	FIELD(queued_messages),
	FIELD(queued_bytes),
	FIELD(retries),
	FIELD(dropped_messages),
	FIELD(rejected_peers),
	FIELD(dead_peers),
	FIELD(stalled_peers),
	FIELD(fenced_peers),
	FIELD(resumed_sessions),
	FIELD(messages_again),
	FIELD(messages_not_again),
	FIELD(reads_again),
	FIELD(reads_joined),
	FIELD(looks),
	FIELD(views_left),
	FIELD(views_left_bytes),
	FIELD(resumed_reads),
};

const char *rc_stats_field(unsigned i, size_t *at)
{
	if (i >= array_size(fields))
		return NULL;
	*at = fields[i].at;
	return fields[i].name;
}

struct text {
	char *buf;
	size_t size, used;
};

static void line(struct text *t, const char *name, const char *kind, uint64_t value)
{
	size_t left = t->used < t->size ? t->size - t->used : 0;
	int n = snprintf(left ? t->buf + t->used : NULL, left, "%s%s%s %" PRIu64 "\n", name,
			 kind ? "." : "", kind ? kind : "", value);

	t->used += n > 0 ? (size_t)n : 0;
}

static void kind_line(struct text *t, const char *name, unsigned kind, uint64_t value)
{
	if (value)
		line(t, name, *rw_kind_name(kind) ? rw_kind_name(kind) : "malformed", value);
}

int rref_stats_format(const struct rref_stats *stats, char *buf, size_t size)
{
	struct text t = { buf, size, 0 };
	struct rref_stats s = { 0 };

	if (!stats || stats->size < sizeof(size_t) || (!buf && size))
		return rc_fail(EINVAL, "rref_stats_format: no counters, or no buffer");
	if (size)
		buf[0] = 0;
	memcpy(&s, stats, min_of(stats->size, sizeof(s)));
	for (unsigned i = 0; i < array_size(fields); i++)
		if (fields[i].at + sizeof(uint64_t) <= stats->size)
			line(&t, fields[i].name, NULL,
			     *(const uint64_t *)(const void *)((const char *)&s + fields[i].at));
	for (unsigned k = 0; k < RREF_MESSAGE_KINDS; k++) {
		kind_line(&t, "sent", k, s.sent[k]);
		kind_line(&t, "received", k, s.received[k]);
	}
	return (int)t.used;
}
