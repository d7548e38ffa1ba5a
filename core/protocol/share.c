/* SPDX-License-Identifier: Apache-2.0 */
/* Sharing, the parent's side: FORK and its undoing, children until they are accepted. */
#include "core/protocol/internal.h"

static void child_add(struct rp *m, uint32_t user, const struct rref_id *fork, uint32_t dest)
{
	uint32_t i = rp_pool_take(&m->children);
	struct rp_child *c = rp_child_at(m, i);
	struct rp_user *u = rp_user_at(m, user);

	rb_assert(fork->created_on == m->self && !rp_find_child(m, fork));
	rb_assert(rp_peer_reachable(m, dest) && rp_peer_reachable(m, u->owner));
	rb_assert_with(!u->dropped && u->state != RP_USER_FAILED, "state %d", u->state);
	c->fork = rp_key(fork);
	c->user = user;
	c->dest = dest;
	c->since = m->now;
	rp_list_add(&m->children, offsetof(struct rp_child, in_user), &u->children, i);
	rp_list_add(&m->children, offsetof(struct rp_child, in_peer), &m->peers[dest].children, i);
	rp_table_add(&m->child_table, &m->children, i, rp_hash(m, fork, 0));
	u->nr_children++;
	m->peers[dest].nr_children++;
	m->counts.pending_children++;
}

void rp_child_erase(struct rp *m, uint32_t i)
{
	struct rp_child *c = rp_child_at(m, i);
	struct rp_user *u = rp_user_at(m, c->user);
	uint32_t dest = c->dest;

	rb_assert(u->nr_children && m->peers[dest].nr_children && m->counts.pending_children);
	rp_list_del(&m->children, offsetof(struct rp_child, in_user), &u->children, i);
	rp_list_del(&m->children, offsetof(struct rp_child, in_peer), &m->peers[dest].children, i);
	rp_table_del(&m->child_table, &m->children, i);
	rp_pool_put(&m->children, i);
	u->nr_children--;
	m->peers[dest].nr_children--;
	m->counts.pending_children--;
}

/*
 * Asks whether the creation has arrived. A creator's FORK_REQUEST goes the creation's own way, so
 * the answer says that it has.
 */
static void ask_owner(struct rp *m, struct rp_user *u)
{
	if (u->creator && !u->requested && u->state == RP_USER_REQUESTED)
		rp_user_ask(m, u);
}

static int share_owned(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	uint32_t i = rp_find_owner(m, &ev->id);
	struct rp_owner *o;

	if (!rp_owner_alive(m, i))
		return -ESTALE;
	if (rp_find_held(m, ev->peer, &ev->fork))
		return -EALREADY;
	o = rp_owner_at(m, i);
	/* Made once: earlier shares of the value carry it too. */
	if (!o->word)
		o->word = ev->word;
	if (!o->word)
		return -EINVAL;
	rp_held_add(m, i, ev->peer, &ev->fork);
	rec->owner = m->self;
	rec->word = o->word;
	rec->value = rp_owner_value(o);
	return 0;
}

static int share_held(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	uint32_t i = rp_find_user(m, &ev->src);
	struct rp_user *u;

	if (!i || rp_user_at(m, i)->dropped || rp_user_at(m, i)->owner == m->self)
		return -ESTALE;
	u = rp_user_at(m, i);
	if (!rp_same(&u->id, &ev->id))
		return -EINVAL;
	if (u->state == RP_USER_FAILED)
		return rp_fault_status(m, u->fault);
	/* The owner's fence has not reached the entry yet. */
	if (!rp_peer_reachable(m, u->owner))
		return m->peers[u->owner].status;
	if (rp_find_child(m, &ev->fork))
		return -EALREADY;
	child_add(m, i, &ev->fork, ev->peer);
	rec->owner = u->owner;
	rec->word = u->word;
	rec->loc = u->loc;
	if (u->early) {
		rec->flags = RP_FORK_EARLY;
		/* The owner finds out by itself: the record follows the creation. */
		if (ev->peer != u->owner)
			ask_owner(m, u);
	}
	return 0;
}

int rp_share(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	struct rp_fork out = { .id = ev->id, .fork = ev->fork, .parent = m->self };
	int rc;

	if (!rec || ev->peer >= m->world || !rp_id_valid(m, &ev->id) ||
	    !rp_id_valid(m, &ev->fork) || ev->fork.created_on != m->self)
		return -EINVAL;
	if (!rp_peer_reachable(m, ev->peer))
		return m->peers[ev->peer].status;
	rc = rp_id_none(&ev->src) ? share_owned(m, ev, &out) : share_held(m, ev, &out);
	if (!rc)
		*rec = out;
	return rc;
}

static void end_child(struct rp *m, uint32_t i)
{
	uint32_t user = rp_child_at(m, i)->user;

	rp_child_erase(m, i);
	rp_user_settle(m, user);
}

int rp_share_undo(struct rp *m, const struct rp_event *ev)
{
	uint32_t i;

	if (ev->peer >= m->world)
		return -EINVAL;
	if (rp_id_none(&ev->src)) {
		i = rp_find_held(m, ev->peer, &ev->fork);
		if (!i || !rp_same(&rp_owner_at(m, rp_held_at(m, i)->owner)->id, &ev->id))
			return -EALREADY;
		rp_effects_wish(m, 2 + (size_t)rp_owner_at(m, rp_held_at(m, i)->owner)->nr_waits);
		rp_owner_settle(m, rp_held_erase(m, i));
		return 0;
	}
	i = rp_find_child(m, &ev->fork);
	if (!i || rp_child_at(m, i)->dest != ev->peer)
		return -EALREADY;
	end_child(m, i);
	return 0;
}

/*
 * Sends PARENT_ACK. fault: why the user entry failed, 0 if it did not. Only a child that asked
 * before the owner knew the id is told.
 */
static void answer(struct rp *m, const struct rp_user *u, struct rp_child *c, uint32_t fault)
{
	if (!u->early)
		fault = 0;
	c->asked = false;
	rp_send(m, c->dest, RP_MSG_PARENT_ACK, rp_id(&u->id), rp_id(&c->fork),
		fault ? rp_fault_status(m, fault) : 0, NULL, fault);
}

bool rp_children_answer(struct rp *m, uint32_t user, uint32_t fault)
{
	struct rp_user *u = rp_user_at(m, user);

	rp_list_for_each(i, &m->children, struct rp_child, in_user, u->children) {
		if (!rp_child_at(m, i)->asked)
			continue;
		if (!rp_effects_room(m))
			return false;
		answer(m, u, rp_child_at(m, i), fault);
	}
	return true;
}

/*
 * Finds the child that a message is about. Returns 0 with its place, or -EPROTO. The place is 0 if
 * the child is over already or was not shared with the sender.
 */
static int find_child(struct rp *m, uint32_t from, const struct rp_msg *msg, uint32_t *child)
{
	*child = 0;
	if (msg->fork.created_on != m->self)
		return rp_refused(m);
	*child = rp_find_child(m, &msg->fork);
	/* The sender hears no more of another worker's child than of a child that is over. */
	if (*child && rp_child_at(m, *child)->dest != from)
		*child = 0;
	if (*child && !rp_same(&rp_user_at(m, rp_child_at(m, *child)->user)->id, &msg->id))
		return rp_refused(m);
	return 0;
}

int rp_on_child_accept(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i;
	int rc = find_child(m, from, msg, &i);

	if (rc)
		return rc;
	if (!i)
		return rp_ignored(m);
	end_child(m, i);
	return 0;
}

int rp_on_parent_request(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i;
	int rc = find_child(m, from, msg, &i);
	struct rp_child *c;
	struct rp_user *u;

	if (rc)
		return rc;
	if (!i) {
		/* Not ours to say any more; the owner will. */
		rp_send(m, from, RP_MSG_PARENT_ACK, msg->id, msg->fork, 0, NULL, 0);
		return rp_ignored(m);
	}
	c = rp_child_at(m, i);
	u = rp_user_at(m, c->user);
	if (u->early && u->state != RP_USER_FAILED) {
		c->asked = true;
		ask_owner(m, u);
	} else {
		answer(m, u, c, u->fault);
	}
	return 0;
}
