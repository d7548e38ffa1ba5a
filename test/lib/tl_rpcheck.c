/* SPDX-License-Identifier: Apache-2.0 */
#include "test/lib/tl_rpcheck.h"

#include "core/protocol/internal.h"

#define CHECK(cond, text) do { if (!(cond)) return (text); } while (0)

struct seen {
	struct rp_counts counts;
	uint32_t waits, fault_refs, later;
};

static const char *check_owner(const struct rp *m, uint32_t i, struct seen *seen)
{
	const struct rp_owner *o = rp_owner_at(m, i);
	struct rref_id id = rp_id(&o->id);
	uint32_t nr = 0, waits = 0;

	CHECK(rp_find_owner(m, &id) == i, "an owner entry is not in its table");
	rp_list_for_each(k, &m->helds, struct rp_held, in_owner, o->forks) {
		const struct rp_held *h = rp_held_at(m, k);
		struct rref_id fork = rp_id(&h->fork);

		nr++;
		CHECK(h->owner == i, "a fork points to another entry");
		CHECK(rp_find_held(m, h->holder, &fork) == k, "a fork is not in its table");
		CHECK(!h->parked || o->state == RP_OWNER_PENDING || o->telling,
		      "a fetch is parked at a value that is set");
		CHECK(!h->parked || m->peers[h->holder].state == RP_PEER_UP,
		      "a fetch of a fenced peer is parked");
		CHECK(m->peers[h->holder].state != RP_PEER_GONE || m->peers[h->holder].due,
		      "a fork outlived its holder's grace");
		seen->counts.parked += h->parked;
	}
	rp_list_for_each(k, &m->waits, struct rp_wait, link, o->waits)
		waits++;
	CHECK(nr == o->nr_forks && waits == o->nr_waits, "an owner entry counts wrong");
	CHECK((o->state == RP_OWNER_ABANDONED) == !(nr || o->local) || o->telling,
	      "an owner entry without reference, or an abandoned entry with one");
	CHECK(!waits || o->state == RP_OWNER_PENDING || o->telling,
	      "a wait at a value that is set");
	seen->later += o->telling;
	CHECK((o->state == RP_OWNER_FAILED) == !!rp_owner_fault(o), "failed without a reason");
	seen->counts.owners++;
	seen->counts.pending_owners += o->state == RP_OWNER_PENDING ||
				       o->state == RP_OWNER_ABANDONED;
	seen->counts.forks += nr;
	seen->counts.parked += waits;
	seen->waits += waits;
	seen->fault_refs += rp_owner_fault(o) && !(rp_owner_fault(o) & RP_FAULT_BARE);
	return NULL;
}

static const char *check_user(const struct rp *m, uint32_t i, struct seen *seen)
{
	const struct rp_user *u = rp_user_at(m, i);
	struct rref_id fork = rp_id(&u->fork);
	const struct rp_peer *owner = &m->peers[u->owner];
	bool waiting = u->state == RP_USER_ASKING || u->state == RP_USER_REQUESTED;
	uint32_t nr = 0, waits = 0;

	CHECK(rp_find_user(m, &fork) == i, "a user entry is not in its table");
	rp_list_for_each(k, &m->children, struct rp_child, in_user, u->children) {
		const struct rp_child *c = rp_child_at(m, k);
		struct rref_id child = rp_id(&c->fork);

		nr++;
		CHECK(c->user == i, "a child points to another entry");
		CHECK(rp_find_child(m, &child) == k, "a child is not in its table");
		CHECK(!c->asked || u->early, "a child waits for what is known");
		CHECK(m->peers[c->dest].state == RP_PEER_UP || m->peers[c->dest].due,
		      "a child of a fenced peer is pending");
	}
	rp_list_for_each(k, &m->waits, struct rp_wait, link, u->waits)
		waits++;
	CHECK(nr == u->nr_children && waits == u->nr_waits, "a user entry counts wrong");
	CHECK((u->state == RP_USER_FAILED) == !!u->fault, "failed without a reason");
	CHECK(!waits || (!u->dropped && u->state != RP_USER_FAILED && !u->loc.version) || waiting ||
		      u->ending,
	      "a wait is not answered");
	CHECK(!waits || u->ending || waiting || u->fetching || (u->creator && !u->created),
	      "a wait that nothing will end");
	CHECK(!u->ready_due || waiting, "READY is overdue");
	CHECK(u->owner != m->self || u->state == RP_USER_ASKING,
	      "a user entry of a value owned here");
	CHECK(!u->dropped || u->ending || nr || waiting || (u->creator && !u->created),
	      "a released user entry stays");
	CHECK(!u->delete_due || u->state != RP_USER_FAILED || nr || u->ending || owner->due,
	      "DELETE is overdue");
	CHECK(owner->state == RP_PEER_UP || u->state == RP_USER_FAILED || owner->due,
	      "a reference of a lost owner has not failed");
	CHECK(u->state != RP_USER_ASKING || m->peers[u->parent].state == RP_PEER_UP ||
		      m->peers[u->parent].due,
	      "a fenced parent is being asked");
	CHECK(!u->lost || (u->state == RP_USER_FAILED && !nr && !u->losing),
	      "something hangs on a reference that was lost");
	seen->later += u->ending;
	seen->counts.users++;
	seen->counts.pending_users += waiting;
	seen->counts.pending_children += nr;
	seen->counts.parked += waits;
	seen->waits += waits;
	seen->fault_refs += u->fault && !(u->fault & RP_FAULT_BARE);
	return NULL;
}

static const char *check_peers(const struct rp *m, struct seen *seen)
{
	uint32_t forks = 0, users = 0, asking = 0, children = 0, tombs = 0, all_asking = 0;

	for (uint32_t r = 0; r < m->world; r++) {
		const struct rp_peer *p = &m->peers[r];
		uint32_t nf = 0, nt = 0, nu = 0, nc = 0;

		rp_list_for_each(i, &m->helds, struct rp_held, in_peer, p->forks) {
			nf++;
			CHECK(rp_held_at(m, i)->holder == r, "a fork is in another peer's list");
		}
		rp_list_for_each(i, &m->tombs, struct rp_tomb, in_peer, p->tombs) {
			struct rref_id fork = rp_id(&rp_tomb_at(m, i)->fork);

			nt++;
			CHECK(rp_find_tomb(m, r, &fork) == i, "a tombstone is not in its table");
			CHECK(!rp_find_held(m, r, &fork), "a fork lives beside its tombstone");
		}
		rp_list_for_each(i, &m->users, struct rp_user, in_owner, p->users) {
			nu++;
			CHECK(rp_user_at(m, i)->owner == r,
			      "a user entry is in another peer's list");
			CHECK(!rp_user_at(m, i)->lost,
			      "a reference that was lost is in the other list");
			all_asking += rp_user_at(m, i)->state == RP_USER_ASKING;
		}
		rp_list_for_each(i, &m->users, struct rp_user, in_owner, p->lost) {
			nu++;
			CHECK(rp_user_at(m, i)->owner == r && rp_user_at(m, i)->lost,
			      "a user entry is in a list of the lost");
		}
		rp_list_for_each(i, &m->users, struct rp_user, in_parent, p->asking) {
			asking++;
			CHECK(rp_user_at(m, i)->parent == r &&
				      rp_user_at(m, i)->state == RP_USER_ASKING,
			      "not asking that peer");
		}
		rp_list_for_each(i, &m->children, struct rp_child, in_peer, p->children) {
			nc++;
			CHECK(rp_child_at(m, i)->dest == r, "a child is in another peer's list");
		}
		CHECK(p->due || !p->fault, "a fence is over and its reason is kept");
		seen->later += p->due;
		seen->fault_refs += p->fault && !(p->fault & RP_FAULT_BARE);
		CHECK(!nt || p->state != RP_PEER_GONE || p->due,
		      "tombstones outlived their peer's grace");
		CHECK(nf == p->nr_forks && nt == p->nr_tombs && nt <= RP_TOMBSTONES_MAX,
		      "a peer counts wrong");
		CHECK(nu == p->nr_users && nc == p->nr_children,
		      "a peer counts its users or children wrong");
		forks += nf;
		users += nu;
		children += nc;
		tombs += nt;
	}
	CHECK(forks == m->helds.live && users == m->users.live && children == m->children.live &&
		      tombs == m->tombs.live && asking == all_asking,
	      "an entry is in no peer's list");
	CHECK(tombs == m->counts.tombstones, "the count of tombstones is wrong");
	return NULL;
}

/* Checks the room in the tables: a step adds one item at most,
 * and the next one makes room first. */
static const char *check_room(const struct rp *m)
{
	const struct rp_table *t[] = { &m->owner_table, &m->held_table, &m->user_table,
				       &m->child_table, &m->tomb_table };
	const struct rp_pool *p[] = { &m->owners, &m->helds, &m->users, &m->children,
				      &m->tombs,  &m->waits, &m->faults };

	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
		CHECK(t[i]->used <= t[i]->mask + (m->wanting ? 1 : 0),
		      "a table is too small for its items, and nobody says so");
	for (size_t i = 0; i < sizeof(p) / sizeof(p[0]); i++)
		CHECK(p[i]->nr_free || m->wanting, "a pool is empty, and nobody says so");
	return NULL;
}

const char *tl_rp_check(const struct rp *m)
{
	struct seen seen = { .waits = 0 };
	const char *text;
	uint32_t left = m->owners.live; /* most places of a chunk are free, after the used ones */

	for (uint32_t i = left ? rp_pool_next(&m->owners, 0) : 0; i && left;
	     i = rp_pool_next(&m->owners, i)) {
		left -= !!rp_owner_at(m, i)->state;
		text = rp_owner_at(m, i)->state ? check_owner(m, i, &seen) : NULL;
		if (text)
			return text;
	}
	left = m->users.live;
	for (uint32_t i = left ? rp_pool_next(&m->users, 0) : 0; i && left;
	     i = rp_pool_next(&m->users, i)) {
		left -= !!rp_user_at(m, i)->state;
		text = rp_user_at(m, i)->state ? check_user(m, i, &seen) : NULL;
		if (text)
			return text;
	}
	text = check_peers(m, &seen);
	if (!text)
		text = check_room(m);
	if (text)
		return text;
	CHECK(seen.counts.owners == m->counts.owners && m->owners.live == m->counts.owners,
	      "the count of owner entries");
	CHECK(seen.counts.pending_owners == m->counts.pending_owners,
	      "the count of pending owners");
	CHECK(seen.counts.forks == m->counts.forks && m->helds.live == m->counts.forks,
	      "the count of forks");
	CHECK(seen.counts.users == m->counts.users && m->users.live == m->counts.users,
	      "the count of user entries");
	CHECK(seen.counts.pending_users == m->counts.pending_users, "the count of pending users");
	CHECK(seen.counts.pending_children == m->counts.pending_children,
	      "the count of pending children");
	CHECK(seen.counts.parked == m->counts.parked && seen.waits == m->waits.live,
	      "the count of what is parked");
	CHECK(seen.later == m->nr_later, "the count of what had no room");
	CHECK(!m->faults.live == !seen.fault_refs && m->faults.live <= seen.fault_refs,
	      "a fault leaks");
	return NULL;
}
