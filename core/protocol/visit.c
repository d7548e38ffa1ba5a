/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's contents for people: each reference with its holder, its age and its sharer.
 * Nothing here changes anything.
 */
#include "core/protocol/internal.h"

void rp_peer_counts(const struct rp *m, uint32_t rank, struct rp_peer_counts *out)
{
	const struct rp_peer *p = &m->peers[rank];

	out->forks = p->nr_forks;
	out->users = p->nr_users;
	out->pending_children = p->nr_children;
	out->tombstones = p->nr_tombs;
}

static void visit_owner(const struct rp *m, const struct rp_owner *o, rp_visit_fn fn, void *ctx)
{
	static const char *const names[] = {
		[RP_OWNER_PENDING] = "pending",
		[RP_OWNER_READY] = "ready",
		[RP_OWNER_FAILED] = "failed",
		[RP_OWNER_ABANDONED] = "abandoned",
	};
	struct rp_visit v = {
		.kind = RP_VISIT_OWNER,
		.owned = true,
		.id = rp_id(&o->id),
		.peer = m->self,
		.since = o->since,
		.local = o->local,
		.forks = o->nr_forks,
		.waits = o->nr_waits,
		.state = names[o->state],
		.status = o->state == RP_OWNER_FAILED ? rp_fault_status(m, o->fault) : 0,
		.value = rp_owner_value(o),
		.maker = o->state == RP_OWNER_PENDING ? o->maker : NULL,
	};

	fn(ctx, &v);
	rp_list_for_each(i, &m->helds, struct rp_held, in_owner, o->forks) {
		const struct rp_held *h = rp_held_at(m, i);
		struct rp_visit f = v;

		f.kind = RP_VISIT_FORK;
		f.fork = rp_id(&h->fork);
		f.peer = h->holder;
		f.parent = h->fork.rank; /* a fork's id begins with the rank of its sharer */
		f.epoch = m->peers[h->holder].epoch;
		f.since = h->since;
		f.creator = h->creator;
		f.parked = h->parked;
		f.grace = m->peers[h->holder].state == RP_PEER_FENCED;
		fn(ctx, &f);
	}
}

static void visit_user(const struct rp *m, const struct rp_user *u, bool children, rp_visit_fn fn,
		       void *ctx)
{
	static const char *const names[] = {
		[RP_USER_ASKING] = "asking its parent",
		[RP_USER_REQUESTED] = "requested",
		[RP_USER_CONFIRMED] = "confirmed",
		[RP_USER_FAILED] = "failed",
	};
	/* The owner's own early record has no handle that it could lose. */
	bool handle = !u->dropped && u->owner != m->self;
	struct rp_visit v = {
		.kind = RP_VISIT_USER,
		.id = rp_id(&u->id),
		.fork = rp_id(&u->fork),
		.peer = u->owner,
		.parent = u->parent,
		.epoch = m->peers[u->owner].epoch,
		.since = u->since,
		.children = u->nr_children,
		.waits = u->nr_waits,
		.status = u->state == RP_USER_FAILED ? rp_fault_status(m, u->fault) : 0,
		.creator = u->creator,
		.released = u->dropped,
		.state = names[u->state],
		.handle = handle ? u->handle : NULL,
		.loc = u->loc.version ? &u->loc : NULL,
	};

	fn(ctx, &v);
	if (!children)
		return;
	rp_list_for_each(i, &m->children, struct rp_child, in_user, u->children) {
		const struct rp_child *c = rp_child_at(m, i);
		struct rp_visit k = {
			.kind = RP_VISIT_CHILD,
			.id = v.id,
			.fork = rp_id(&c->fork),
			.peer = c->dest,
			.parent = m->self,
			.epoch = m->peers[c->dest].epoch,
			.since = c->since,
			.state = "pending",
		};

		fn(ctx, &k);
	}
}

static bool visit_some(const struct rp *m, struct rp_cursor *c, uint32_t max, bool children,
		       rp_visit_fn fn, void *ctx)
{
	while (!c->users) {
		c->owner = rp_pool_next(&m->owners, c->owner);
		c->users = !c->owner;
		if (c->owner && rp_owner_at(m, c->owner)->state) {
			visit_owner(m, rp_owner_at(m, c->owner), fn, ctx);
			if (!--max)
				return true;
		}
	}
	for (;;) {
		c->user = rp_pool_next(&m->users, c->user);
		if (!c->user)
			return false;
		if (rp_user_at(m, c->user)->state) {
			visit_user(m, rp_user_at(m, c->user), children, fn, ctx);
			if (!--max)
				return true;
		}
	}
}

bool rp_visit_some(const struct rp *m, struct rp_cursor *cursor, uint32_t max, rp_visit_fn fn,
		   void *ctx)
{
	return visit_some(m, cursor, max, true, fn, ctx);
}

void rp_visit(const struct rp *m, rp_visit_fn fn, void *ctx)
{
	struct rp_cursor c = { 0 };

	visit_some(m, &c, UINT32_MAX, false, fn, ctx);
}
