/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assertions of the laws that hold between two steps. The counters stand for the whole machine. The
 * entries and the peer of the step are looked at themselves. Each assertion is O(1).
 * The walk over all entries is the simulator's (test/lib/tl_rpcheck.c). Empty without RREF_CHECKED.
 */
#include "core/protocol/internal.h"

#if RB_CHECKED

static void pool_sound(const struct rp *m, const struct rp_pool *p)
{
	rb_assert_is(p->live + p->nr_free, <=, p->nr_chunks * RP_CHUNK_ITEMS);
	rb_assert_is(p->nr_chunks, <=, p->max_chunks);
	rb_assert(!p->room == !p->nr_free);
	rb_assert_if(!p->nr_free, m->wanting);
	rb_assert_if(p->room, p->chunks[p->room - 1].items && p->chunks[p->room - 1].free);
	rb_assert_if(p->hole, !p->chunks[p->hole - 1].items && !p->chunks[p->hole - 1].live);
}

/* Asserts that each item of the pool is in the table. */
static void table_sound(const struct rp *m, const struct rp_table *t, const struct rp_pool *p)
{
	rb_assert_is(t->used, ==, p->live);
	rb_assert_with(!(t->mask & (t->mask + 1)), "mask %x", t->mask);
	rb_assert_if(t->used > t->mask, m->wanting);
	pool_sound(m, p);
}

static void counts_sound(const struct rp *m)
{
	rb_assert_is(m->counts.owners, ==, m->owners.live);
	rb_assert_is(m->counts.forks, ==, m->helds.live);
	rb_assert_is(m->counts.users, ==, m->users.live);
	rb_assert_is(m->counts.pending_children, ==, m->children.live);
	rb_assert_is(m->counts.tombstones, ==, m->tombs.live);
	rb_assert_is(m->counts.pending_owners, <=, m->counts.owners);
	rb_assert_is(m->counts.pending_users, <=, m->counts.users);
	/* The rest of them are fetches of peers, one for each fork at most. */
	rb_assert_is(m->counts.parked, >=, m->waits.live);
	rb_assert_is(m->counts.parked, <=, m->waits.live + m->counts.forks);
	/* Each fault is held by an entry, or by a peer's fence that is not over. */
	rb_assert_is(m->faults.live, <=, m->owners.live + m->users.live + m->world);
	rb_assert_is(m->nr_later, <=, m->owners.live + m->users.live + m->world);
}

static void effects_sound(const struct rp *m)
{
	rb_assert_is(m->first_effect, <=, m->nr_effects);
	rb_assert_is(m->nr_effects, <=, m->max_effects);
	rb_assert_is(m->max_effects, >=, RP_LEAST_EFFECTS);
}

static void peer_sound(const struct rp *m, uint32_t rank)
{
	const struct rp_peer *p = &m->peers[rank];
	bool cleaned = p->state != RP_PEER_UP && !p->due;

	rb_assert_if(p->forks, p->nr_forks);
	rb_assert(!p->tombs == !p->nr_tombs);
	rb_assert(!p->children == !p->nr_children);
	rb_assert((!p->users && !p->lost) == !p->nr_users);
	rb_assert_is(p->nr_tombs, <=, RP_TOMBSTONES_MAX);
	rb_assert_if(rank == m->self, p->state == RP_PEER_UP && !p->due);
	rb_assert_if(p->state != RP_PEER_UP, p->status < 0);
	rb_assert_if(p->due, p->state != RP_PEER_UP && m->nr_later);
	rb_assert_if(p->fault, p->due);
	/* The work of a fence and of a grace is done, or noted as due. */
	rb_assert_if(cleaned, !p->children && !p->asking);
	rb_assert_if(cleaned && p->state == RP_PEER_GONE, !p->forks && !p->tombs);
}

static void owner_sound(const struct rp *m, uint32_t i)
{
	const struct rp_owner *o = rp_owner_at(m, i);
	bool wanted = o->local || o->nr_forks;

	rb_assert_with(o->state >= RP_OWNER_PENDING && o->state <= RP_OWNER_ABANDONED, "%d",
		       o->state);
	rb_assert_is(o->id.rank, <, m->world);
	rb_assert(o->id.local_id);
	rb_assert(!o->forks == !o->nr_forks);
	rb_assert(!o->waits == !o->nr_waits);
	rb_assert_if(o->state == RP_OWNER_READY, o->value);
	rb_assert_if(o->state == RP_OWNER_FAILED, rp_fault_status(m, o->fault) < 0);
	rb_assert_if(o->state == RP_OWNER_PENDING, !o->telling);
	/* An entry stays for its references, an abandoned one for the SET that will come. */
	rb_assert_if(!o->telling, wanted == (o->state != RP_OWNER_ABANDONED));
	rb_assert_if(o->nr_waits, o->state == RP_OWNER_PENDING || o->telling);
	rb_assert_if(o->telling, m->nr_later);
}

static void held_sound(const struct rp *m, uint32_t i)
{
	const struct rp_held *h = rp_held_at(m, i);
	const struct rp_owner *o = rp_owner_at(m, h->owner);
	const struct rp_peer *p = &m->peers[h->holder];
	struct rref_id fork = rp_id(&h->fork);

	rb_assert_is(h->holder, <, m->world);
	rb_assert_is(o->nr_forks, >, 0);
	rb_assert_is(p->nr_forks, >, 0);
	rb_assert(!rp_find_tomb(m, h->holder, &fork));
	rb_assert_if(p->state == RP_PEER_GONE, p->due);
	rb_assert_if(h->told, h->creator && o->state != RP_OWNER_PENDING);
	rb_assert_if(h->creator, h->fork.rank == h->holder && h->holder != m->self);
	rb_assert_if(h->parked, o->state == RP_OWNER_PENDING || o->telling);
	rb_assert_if(h->parked, p->state == RP_PEER_UP && m->counts.parked);
	rb_assert_if(h->fork.rank == m->self, o->word);
}

static void user_ends_soundly(const struct rp *m, const struct rp_user *u, bool asks)
{
	const struct rp_peer *owner = &m->peers[u->owner];
	bool unmade = u->creator && !u->created;

	/* An event will come that ends each of these; else the program would wait for ever. */
	rb_assert_if(u->nr_waits, u->ending || asks || u->fetching || unmade);
	rb_assert_if(u->dropped, u->ending || u->nr_children || asks || unmade);
	rb_assert_if(u->ready_due, asks);
	rb_assert_if(u->delete_due && u->state == RP_USER_FAILED,
		     u->nr_children || u->ending || owner->due);
	rb_assert_if(owner->state != RP_PEER_UP, u->state == RP_USER_FAILED || owner->due);
	rb_assert_if(u->lost, u->state == RP_USER_FAILED && !u->nr_children && !u->losing);
	rb_assert_if(u->ending, m->nr_later);
	rb_assert_if(u->ending, u->dropped || u->state == RP_USER_FAILED);
}

static void user_sound(const struct rp *m, uint32_t i)
{
	const struct rp_user *u = rp_user_at(m, i);
	bool asks = u->state == RP_USER_ASKING || u->state == RP_USER_REQUESTED;

	rb_assert_with(u->state >= RP_USER_ASKING && u->state <= RP_USER_FAILED, "%d", u->state);
	rb_assert_is(u->owner, <, m->world);
	rb_assert_is(u->parent, <, m->world);
	rb_assert_is(m->peers[u->owner].nr_users, >, 0);
	rb_assert(!u->children == !u->nr_children);
	rb_assert(!u->waits == !u->nr_waits);
	rb_assert((u->state == RP_USER_FAILED) == !!u->fault);
	rb_assert_is(u->fork.rank, ==, u->parent);
	rb_assert_if(u->owner == m->self, u->state == RP_USER_ASKING && !u->ready_due);
	rb_assert_if(u->state == RP_USER_ASKING, u->parent != u->owner && u->asked);
	rb_assert_if(u->creator, u->parent == m->self && !u->ready_due);
	rb_assert_if(u->created, u->creator && !asks);
	rb_assert_if(u->fetching, u->fetched);
	rb_assert_if(asks, m->counts.pending_users);
	user_ends_soundly(m, u, asks);
}

static void child_sound(const struct rp *m, uint32_t i)
{
	const struct rp_child *c = rp_child_at(m, i);
	const struct rp_user *u = rp_user_at(m, c->user);
	const struct rp_peer *p = &m->peers[c->dest];

	rb_assert_is(c->fork.rank, ==, m->self);
	rb_assert_is(u->nr_children, >, 0);
	rb_assert_is(p->nr_children, >, 0);
	rb_assert_if(c->asked, u->early);
	rb_assert_if(p->state != RP_PEER_UP, p->due);
	rb_assert(u->owner != m->self);
}

/* Asserts the laws of the entries that these ids name, of any kind. */
static void named_sound(const struct rp *m, uint32_t peer, const struct rref_id *id,
			const struct rref_id *fork)
{
	uint32_t i;

	if ((i = rp_find_owner(m, id)))
		owner_sound(m, i);
	if ((i = rp_find_user(m, fork)))
		user_sound(m, i);
	if ((i = rp_find_child(m, fork))) {
		child_sound(m, i);
		user_sound(m, rp_child_at(m, i)->user);
	}
	if (peer >= m->world)
		return;
	peer_sound(m, peer);
	if ((i = rp_find_held(m, peer, fork))) {
		held_sound(m, i);
		owner_sound(m, rp_held_at(m, i)->owner);
	}
}

void rp_assert_sound(const struct rp *m, const struct rp_event *ev)
{
	counts_sound(m);
	effects_sound(m);
	table_sound(m, &m->owner_table, &m->owners);
	table_sound(m, &m->held_table, &m->helds);
	table_sound(m, &m->user_table, &m->users);
	table_sound(m, &m->child_table, &m->children);
	table_sound(m, &m->tomb_table, &m->tombs);
	pool_sound(m, &m->waits);
	peer_sound(m, m->self);
	if (ev->type == RP_EV_MSG && ev->msg)
		named_sound(m, ev->peer, &ev->msg->id, &ev->msg->fork);
	else if (ev->type == RP_EV_RECV_FORK && ev->rec)
		named_sound(m, ev->peer, &ev->rec->id, &ev->rec->fork);
	else
		named_sound(m, ev->peer, &ev->id, &ev->fork);
}

#endif
