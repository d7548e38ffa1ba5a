/* SPDX-License-Identifier: Apache-2.0 */
/* What is going on: counters, and who holds what as text. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "rc.h"

int rref_get_stats(struct rref_ctx *ctx, struct rref_stats *out)
{
	struct rref_stats s = { 0 };
	struct rp_counts c = { 0 };
	struct ra_stats v, l, b;

	if (!ctx || !out || out->size < sizeof(size_t))
		return rc_fail(EINVAL, "rref_get_stats: no context, or out->size is not set");
	if (rc_is_child(ctx))
		return rc_enter_slow(ctx);
	rc_lock(ctx);
	if (at_load(&ctx->dropped))
		rc_drain_dropped(ctx);
	if (ctx->machine)
		rp_counts(ctx->machine, &c);
	rc_unlock(ctx);
	ra_stats(ctx->values, &v);
	ra_stats(ctx->landing, &l);
	ra_stats(ctx->beacons, &b);
	s.size = out->size;
	s.owners = c.owners;
	s.forks = c.forks;
	s.users = c.users;
	s.pending_users = c.pending_users;
	s.pending_children = c.pending_children;
	s.parked = c.parked;
	s.value_bytes = at_load(&ctx->n.value_bytes);
	s.landing_bytes = at_load(&ctx->n.landing_bytes);
	s.registered_bytes = v.region_bytes + l.region_bytes + b.region_bytes;
	s.nr_regions = v.nr_regions + l.nr_regions + b.nr_regions;
	s.reads = at_load(&ctx->n.reads);
	s.read_bytes = at_load(&ctx->n.read_bytes);
	s.doorbells = at_load(&ctx->n.doorbells);
	s.messages_sent = at_load(&ctx->n.sent);
	s.messages_received = at_load(&ctx->n.received);
	s.calls_served = at_load(&ctx->n.calls);
	s.ops_in_flight = at_load(&ctx->ops_in_flight);
	s.quarantined = at_load(&ctx->n.quarantined);
	s.dropped_messages = at_load(&ctx->n.dropped) + c.ignored;
	s.rejected_peers = at_load(&ctx->n.rejected);
	s.dead_peers = at_load(&ctx->n.dead);
	s.retries = at_load(&ctx->n.retries);
	memcpy(out, &s, min_of(out->size, sizeof(s)));
	return 0;
}

struct dump {
	struct rref_ctx *ctx;
	char *buf;
	size_t size, length;
};

static void line(struct dump *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void line(struct dump *d, const char *fmt, ...)
{
	size_t left = d->length < d->size ? d->size - d->length : 0;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(left ? d->buf + d->length : NULL, left, fmt, ap);
	va_end(ap);
	d->length += n > 0 ? (size_t)n : 0;
}

static void visit(void *arg, const struct rp_visit *v)
{
	struct dump *d = arg;
	const char *peer = d->ctx->members[v->peer].name;

	if (!v->owned)
		line(d, "user  id=(%u,%" PRIu64 ") fork=(%u,%" PRIu64 ") owner=%s %s children=%u\n", v->id.created_on,
		     v->id.local_id, v->fork.created_on, v->fork.local_id, peer, v->state, v->children);
	else if (v->fork.local_id)
		line(d, "fork  id=(%u,%" PRIu64 ") fork=(%u,%" PRIu64 ") holder=%s %s\n", v->id.created_on, v->id.local_id,
		     v->fork.created_on, v->fork.local_id, peer, v->state);
	else
		line(d, "owner id=(%u,%" PRIu64 ") %s local=%u\n", v->id.created_on, v->id.local_id, v->state, v->local);
}

int rref_dump(struct rref_ctx *ctx, char *buf, size_t size)
{
	struct dump d = { .ctx = ctx, .buf = buf, .size = size };

	if (!ctx || (!buf && size))
		return rc_fail(EINVAL, "rref_dump: no context or no buffer");
	if (rc_is_child(ctx))
		return rc_enter_slow(ctx);
	if (size)
		buf[0] = 0;
	line(&d, "worker %s rank %u of %u\n", ctx->members[ctx->rank].name, ctx->rank, ctx->world);
	rc_lock(ctx);
	for (uint32_t i = 0; i < ctx->world; i++) {
		const struct rc_peer *p = &ctx->peers[i];
		static const char *const state[] = { "down", "connecting", "accepting", "up", "gone" };

		if (i != ctx->rank)
			line(&d, "peer  %s rank %u over %s: %s epoch %u\n", p->member->name, i, p->ops->name, state[p->state],
			     p->epoch);
	}
	if (ctx->machine)
		rp_visit(ctx->machine, visit, &d);
	rc_unlock(ctx);
	return (int)d.length;
}
