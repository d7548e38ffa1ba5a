/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's set of forks, and the tombstones of deleted forks.
 *
 * The key is (holder, fork). In a group of honest workers the fork alone would do. But a peer may
 * claim a fork that is not its own. With the holder in the key such a peer makes an entry of its
 * own, and stands in nobody's way.
 */
#include "core/protocol/internal.h"

uint32_t rp_held_add(struct rp *m, uint32_t owner, uint32_t holder, const struct rref_id *fork)
{
	uint32_t i = rp_pool_take(&m->helds);
	struct rp_held *h = rp_held_at(m, i);
	struct rp_owner *o = rp_owner_at(m, owner);

	rb_assert(o->state != RP_OWNER_NONE && o->state != RP_OWNER_ABANDONED);
	rb_assert(rp_peer_reachable(m, holder));
	rb_assert(!rp_find_held(m, holder, fork));
	h->fork = rp_key(fork);
	h->holder = holder;
	h->owner = owner;
	h->since = m->now;
	rp_list_add(&m->helds, offsetof(struct rp_held, in_owner), &o->forks, i);
	rp_list_add(&m->helds, offsetof(struct rp_held, in_peer), &m->peers[holder].forks, i);
	rp_table_add(&m->held_table, &m->helds, i, rp_hash(m, fork, holder));
	o->nr_forks++;
	m->peers[holder].nr_forks++;
	m->counts.forks++;
	return i;
}

uint32_t rp_held_erase(struct rp *m, uint32_t i)
{
	struct rp_held *h = rp_held_at(m, i);
	struct rp_peer *peer = &m->peers[h->holder];
	uint32_t owner = h->owner;
	struct rp_owner *o = rp_owner_at(m, owner);

	rb_assert(o->nr_forks && peer->nr_forks && m->counts.forks);
	rb_assert_if(h->parked, m->counts.parked);
	if (h->parked)
		m->counts.parked--;
	rp_list_del(&m->helds, offsetof(struct rp_held, in_owner), &o->forks, i);
	rp_list_del(&m->helds, offsetof(struct rp_held, in_peer), &peer->forks, i);
	rp_table_del(&m->held_table, &m->helds, i);
	rp_pool_put(&m->helds, i);
	o->nr_forks--;
	peer->nr_forks--;
	m->counts.forks--;
	return owner;
}

bool rp_held_full(const struct rp *m, uint32_t holder)
{
	return m->peers[holder].nr_forks >= RP_FORKS_MAX;
}

static void tomb_erase(struct rp *m, uint32_t i)
{
	struct rp_peer *peer = &m->peers[rp_tomb_at(m, i)->holder];

	rb_assert(peer->nr_tombs && m->counts.tombstones);
	rp_list_del(&m->tombs, offsetof(struct rp_tomb, in_peer), &peer->tombs, i);
	rp_table_del(&m->tomb_table, &m->tombs, i);
	rp_pool_put(&m->tombs, i);
	peer->nr_tombs--;
	m->counts.tombstones--;
}

void rp_tomb_add(struct rp *m, uint32_t holder, const struct rref_id *fork)
{
	struct rp_peer *peer = &m->peers[holder];
	uint32_t i;

	/* A fork made here needs no tombstone: nobody asks for it, so it cannot come back. */
	if (fork->created_on == m->self || rp_find_tomb(m, holder, fork))
		return;
	rb_assert(!rp_find_held(m, holder, fork));
	if (peer->nr_tombs >= RP_TOMBSTONES_MAX)
		tomb_erase(m, peer->tombs);
	i = rp_pool_take(&m->tombs);
	rp_tomb_at(m, i)->fork = rp_key(fork);
	rp_tomb_at(m, i)->holder = holder;
	rp_list_add(&m->tombs, offsetof(struct rp_tomb, in_peer), &peer->tombs, i);
	rp_table_add(&m->tomb_table, &m->tombs, i, rp_hash(m, fork, holder));
	peer->nr_tombs++;
	m->counts.tombstones++;
}

void rp_tombs_erase(struct rp *m, uint32_t holder)
{
	while (m->peers[holder].tombs)
		tomb_erase(m, m->peers[holder].tombs);
}

int rp_held_value(const struct rp *m, uint32_t holder, const struct rref_id *id,
		  const struct rref_id *fork, void **value)
{
	bool up = holder < m->world && rp_peer_reachable(m, holder);
	uint32_t i = up ? rp_find_held(m, holder, fork) : 0;
	const struct rp_owner *o = i ? rp_owner_at(m, rp_held_at(m, i)->owner) : NULL;

	if (!o || !rp_same(&o->id, id))
		return -ESTALE;
	if (o->state == RP_OWNER_FAILED)
		return rp_fault_status(m, o->fault);
	if (o->state != RP_OWNER_READY)
		return -EAGAIN;
	*value = o->value;
	return 0;
}

/*
 * Refuses, and leaves no tombstone: a creator's question may have overtaken its creation. The
 * asking worker's DELETE leaves one.
 */
static int refuse_fork(struct rp *m, uint32_t from, const struct rp_msg *msg, int status,
		       const char *text)
{
	rp_send_refusal(m, from, RP_MSG_FORK_ACK, &msg->id, &msg->fork, status, text);
	return rp_ignored(m);
}

static void accept_fork(struct rp *m, uint32_t from, const struct rp_msg *msg, uint32_t owner)
{
	void *value = rp_owner_value(rp_owner_at(m, owner));

	rp_send(m, from, RP_MSG_FORK_ACK, msg->id, msg->fork, 0, value, 0);
}

int rp_on_fork_request(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i = rp_find_held(m, from, &msg->fork), owner = rp_find_owner(m, &msg->id);

	if (from == m->self)
		return rp_refused(m);
	if (i) {
		struct rp_held *h = rp_held_at(m, i);

		if (h->owner != owner)
			return rp_refused(m);
		/* Repeated, or a creator that asks whether its creation is known here yet. */
		accept_fork(m, from, msg, owner);
		return h->creator ? 0 : rp_ignored(m);
	}
	/* A value that is not here and a wrong word get the same answer: a guess learns nothing. */
	if (rp_find_tomb(m, from, &msg->fork) || msg->fork.created_on == m->self ||
	    !rp_owner_opens(m, owner, msg->word))
		return refuse_fork(m, from, msg, -ESTALE, GONE_TEXT);
	if (rp_held_full(m, from))
		return refuse_fork(m, from, msg, -EDQUOT, QUOTA_TEXT);
	rp_held_add(m, owner, from, &msg->fork);
	accept_fork(m, from, msg, owner);
	return 0;
}

int rp_on_delete(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i = rp_find_held(m, from, &msg->fork), owner;
	int rc;

	/* A fork to ourselves ends by its record's arrival, never by a message. */
	if (from == m->self)
		return rp_refused(m);
	if (!i) {
		rp_tomb_add(m, from, &msg->fork);
		return rp_ignored(m);
	}
	owner = rp_held_at(m, i)->owner;
	if (!rp_same(&rp_owner_at(m, owner)->id, &msg->id))
		return rp_refused(m);
	rc = rp_effects_reserve(m, 2 + (size_t)rp_owner_at(m, owner)->nr_waits);
	if (rc)
		return rc;
	rp_held_erase(m, i);
	rp_tomb_add(m, from, &msg->fork);
	rp_owner_settle(m, owner);
	return 0;
}

int rp_on_fetch(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i = rp_find_held(m, from, &msg->fork), fault;
	struct rp_held *h;
	struct rp_owner *o;

	if (from == m->self)
		return rp_refused(m);
	if (!i) {
		rp_send_refusal(m, from, RP_MSG_FETCH_REPLY, &msg->id, &msg->fork, -ESTALE,
				GONE_TEXT);
		return rp_ignored(m);
	}
	h = rp_held_at(m, i);
	o = rp_owner_at(m, h->owner);
	if (!rp_same(&o->id, &msg->id))
		return rp_refused(m);
	if (o->state == RP_OWNER_PENDING) {
		if (h->parked)
			return rp_ignored(m);
		h->parked = true;
		m->counts.parked++;
		return 0;
	}
	fault = rp_owner_fault(o);
	rp_send(m, from, RP_MSG_FETCH_REPLY, msg->id, msg->fork,
		fault ? rp_fault_status(m, fault) : 0, rp_owner_value(o), fault);
	return 0;
}
