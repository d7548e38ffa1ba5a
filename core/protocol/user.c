/* SPDX-License-Identifier: Apache-2.0 */
/* User entries: references held here to values of others, from their making to their DELETE. */
#include "core/protocol/internal.h"

#define IN_OWNER offsetof(struct rp_user, in_owner)
#define IN_PARENT offsetof(struct rp_user, in_parent)

uint32_t rp_user_add(struct rp *m, const struct rref_id *id, const struct rref_id *fork,
		     uint32_t owner, uint32_t parent, enum rp_user_state state)
{
	uint32_t i = rp_pool_take(&m->users);
	struct rp_user *u = rp_user_at(m, i);

	rb_assert(u->state == RP_USER_NONE && !u->children && !u->waits && !u->handle);
	rb_assert(!rp_find_user(m, fork));
	u->id = rp_key(id);
	u->fork = rp_key(fork);
	u->owner = owner;
	u->parent = parent;
	u->since = m->now;
	u->state = (uint8_t)state;
	if (state == RP_USER_ASKING)
		rp_list_add(&m->users, IN_PARENT, &m->peers[parent].asking, i);
	rp_list_add(&m->users, IN_OWNER, &m->peers[owner].users, i);
	rp_table_add(&m->user_table, &m->users, i, rp_hash(m, fork, 0));
	m->counts.users++;
	m->peers[owner].nr_users++;
	if (state != RP_USER_CONFIRMED)
		m->counts.pending_users++;
	return i;
}

static void change_state(struct rp *m, uint32_t i, enum rp_user_state to)
{
	struct rp_user *u = rp_user_at(m, i);
	enum rp_user_state from = u->state;

	/* The end of an entry is its last state, and no entry asks twice. */
	rb_assert_with(from != RP_USER_FAILED && to != RP_USER_ASKING, "from %d to %d", from, to);
	rb_assert_if(from != RP_USER_CONFIRMED, m->counts.pending_users);
	if (from == RP_USER_ASKING && to != from)
		rp_list_del(&m->users, IN_PARENT, &m->peers[u->parent].asking, i);
	m->counts.pending_users -= from == RP_USER_ASKING || from == RP_USER_REQUESTED;
	m->counts.pending_users += to == RP_USER_ASKING || to == RP_USER_REQUESTED;
	u->state = (uint8_t)to;
}

void rp_user_erase(struct rp *m, uint32_t i)
{
	struct rp_user *u = rp_user_at(m, i);
	struct rp_peer *owner = &m->peers[u->owner];

	if (u->state == RP_USER_ASKING || u->state == RP_USER_REQUESTED)
		change_state(m, i, RP_USER_CONFIRMED);
	rb_assert_with(!u->nr_children && !u->nr_waits, "%u children, %u waits", u->nr_children,
		       u->nr_waits);
	rb_assert(!u->ready_due && !u->losing);
	rb_assert_if(u->creator, u->created);
	rb_assert_if(u->ending, m->nr_later);
	m->nr_later -= u->ending;
	rp_list_del(&m->users, IN_OWNER, u->lost ? &owner->lost : &owner->users, i);
	rb_assert(m->counts.users && owner->nr_users);
	rp_fault_put(m, u->fault);
	rp_table_del(&m->user_table, &m->users, i);
	rp_pool_put(&m->users, i);
	m->counts.users--;
	owner->nr_users--;
}

size_t rp_user_effects(const struct rp_user *u)
{
	/* Handle, creation, READY, CHILD_ACCEPT, FETCH or DELETE, and a FORK_REQUEST of an entry
	 * that was ASKING. */
	return 6 + (size_t)u->nr_waits + u->nr_children;
}

/*
 * Tells whether the entry may end. A child that the owner has not confirmed lives on our fork alone
 * (G2). An answer may still come to us.
 */
static bool may_end(const struct rp_user *u)
{
	if (unlikely(u->ending) || u->nr_children)
		return false;
	if (u->state == RP_USER_FAILED || u->state == RP_USER_CONFIRMED)
		return !u->creator || u->created;
	return false;
}

void rp_user_settle(struct rp *m, uint32_t i)
{
	struct rp_user *u = rp_user_at(m, i);

	if (!may_end(u))
		return;
	if (!u->dropped && u->state != RP_USER_FAILED)
		return;
	rb_assert(!u->nr_waits);
	if (u->delete_due) {
		rp_user_send(m, u, u->owner, RP_MSG_DELETE);
		u->delete_due = false;
	}
	if (u->dropped)
		rp_user_erase(m, i);
}

static void created_effect(struct rp *m, struct rp_user *u, int status, uint32_t fault)
{
	struct rp_effect *e;

	if (!u->creator || u->created)
		return;
	rb_assert_if(!status, u->loc.version);
	u->created = true;
	e = rp_effect_add(m, RP_EFF_CREATED);
	e->id = rp_id(&u->id);
	e->fork = rp_id(&u->fork);
	e->peer = u->owner;
	e->handle = u->handle;
	rp_effect_status(m, e, status, fault);
}

/* Gives the receiver's part of the answer, good or bad: the handler may run, the parent may go. */
void rp_user_ready(struct rp *m, struct rp_user *u, int status, uint32_t fault)
{
	struct rp_effect *e;

	if (!u->ready_due)
		return;
	rb_assert_if(!status, u->state == RP_USER_CONFIRMED);
	u->ready_due = false;
	e = rp_effect_add(m, RP_EFF_READY);
	e->cookie = u->cookie;
	rp_effect_status(m, e, status, fault);
	if (u->parent != u->owner)
		rp_user_send(m, u, u->parent, RP_MSG_CHILD_ACCEPT);
}

static void handle_effect(struct rp *m, const struct rp_user *u, enum rp_effect_type type,
			  int status, uint32_t fault)
{
	struct rp_effect *e;

	if (u->dropped)
		return;
	e = rp_effect_add(m, type);
	e->id = rp_id(&u->id);
	e->fork = rp_id(&u->fork);
	e->peer = u->owner;
	e->handle = u->handle;
	if (type == RP_EFF_LOCATION)
		e->loc = u->loc;
	rp_effect_status(m, e, status, fault);
}

static void send_fetch(struct rp *m, struct rp_user *u)
{
	/* A creator's answer comes unasked. */
	if (u->fetching || (u->creator && !u->created))
		return;
	u->fetching = u->fetched = true;
	rp_user_send(m, u, u->owner, RP_MSG_FETCH);
}

/* Notes that the owner knows this fork; loc has version 0 if the value is not ready. */
static void user_confirm(struct rp *m, uint32_t i, const struct rp_location *loc)
{
	struct rp_user *u = rp_user_at(m, i);
	bool located = loc->version && !u->loc.version, news = u->state != RP_USER_CONFIRMED;

	rb_assert(rp_peer_reachable(m, u->owner));
	change_state(m, i, RP_USER_CONFIRMED);
	u->delete_due = true;
	u->early = false;
	if (located)
		u->loc = *loc;
	if (located || (news && u->loc.version))
		handle_effect(m, u, RP_EFF_LOCATION, 0, 0);
	else if (news)
		handle_effect(m, u, RP_EFF_CONFIRMED, 0, 0);
	if (u->loc.version)
		created_effect(m, u, 0, 0);
	rp_user_ready(m, u, 0, 0);
	rp_children_answer(m, i, 0);
	if (u->loc.version)
		rp_waits_end(m, &u->waits, &u->nr_waits, 0, 0, NULL, &u->loc);
	else if (u->waits)
		send_fetch(m, u);
	rp_user_settle(m, i);
}

bool rp_user_fail(struct rp *m, uint32_t i, uint32_t fault, bool new)
{
	struct rp_user *u = rp_user_at(m, i);
	int status = rp_fault_status(m, fault);

	rb_assert_is(status, <, 0);
	if (u->state == RP_USER_FAILED)
		return true;
	rb_assert(!u->fault);
	change_state(m, i, RP_USER_FAILED);
	u->fault = rp_fault_get(m, fault);
	if (!new)
		handle_effect(m, u, RP_EFF_FAILED, status, fault);
	created_effect(m, u, status, fault);
	rp_user_ready(m, u, status, fault);
	return rp_user_finish(m, i);
}

static bool finish_some(struct rp *m, uint32_t i)
{
	struct rp_user *u = rp_user_at(m, i);
	int status = u->fault ? rp_fault_status(m, u->fault) : -ECANCELED;

	if (u->state == RP_USER_FAILED && !rp_children_answer(m, i, u->fault))
		return false;
	/* Erase them now, while nothing can be sent. A later session of the owner does not know
	 * this fork, and must not hear of it. */
	while (u->losing && u->children)
		rp_child_erase(m, u->children);
	return rp_waits_end(m, &u->waits, &u->nr_waits, status, u->fault, NULL, NULL) &&
	       rp_effects_room(m);
}

bool rp_user_finish(struct rp *m, uint32_t i)
{
	struct rp_user *u = rp_user_at(m, i);

	if (unlikely(!finish_some(m, i))) {
		m->nr_later += !u->ending;
		u->ending = true;
		return false;
	}
	rb_assert(!u->nr_waits);
	rb_assert_if(u->ending, m->nr_later);
	m->nr_later -= u->ending;
	u->ending = false;
	if (u->losing) {
		rb_assert(u->state == RP_USER_FAILED && !u->nr_children && !u->lost);
		u->losing = false;
		u->lost = true;
		rp_list_del(&m->users, IN_OWNER, &m->peers[u->owner].users, i);
		rp_list_add(&m->users, IN_OWNER, &m->peers[u->owner].lost, i);
	}
	rp_user_settle(m, i);
	return true;
}

static void fail_with(struct rp *m, uint32_t i, int status, uint16_t about, const char *text)
{
	uint32_t fault = rp_fault_new(m, status, text);

	rp_fault_about(m, fault, about);
	rp_user_fail(m, i, fault, false);
	rp_fault_put(m, fault);
}

void rp_user_ask(struct rp *m, struct rp_user *u)
{
	size_t before = m->nr_effects;

	rb_assert(u->owner != m->self);
	u->requested = true;
	rp_user_send(m, u, u->owner, RP_MSG_FORK_REQUEST);
	if (m->nr_effects > before)
		m->effects[before].msg.word = u->word;
}

void rp_user_request(struct rp *m, uint32_t i)
{
	struct rp_user *u = rp_user_at(m, i);

	change_state(m, i, RP_USER_REQUESTED);
	rp_user_ask(m, u);
}

int rp_create_user(struct rp *m, const struct rp_event *ev)
{
	struct rp_user *u;

	if (ev->peer >= m->world || ev->peer == m->self || !rp_id_valid(m, &ev->id) ||
	    !rp_id_valid(m, &ev->fork) || ev->id.created_on != m->self ||
	    ev->fork.created_on != m->self || !ev->word)
		return -EINVAL;
	if (!rp_peer_reachable(m, ev->peer))
		return m->peers[ev->peer].status;
	if (rp_find_user(m, &ev->fork))
		return -EALREADY;
	u = rp_user_at(m, rp_user_add(m, &ev->id, &ev->fork, ev->peer, m->self, RP_USER_REQUESTED));
	u->handle = ev->handle;
	u->word = ev->word;
	u->creator = u->early = u->delete_due = true;
	return 0;
}

int rp_create_failed(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_user(m, &ev->fork);

	if (ev->status >= 0)
		return -EINVAL;
	if (!i)
		return -ESTALE;
	if (!rp_user_at(m, i)->creator)
		return -EINVAL;
	if (rp_user_at(m, i)->created)
		return -EALREADY;
	rp_effects_wish(m, rp_user_effects(rp_user_at(m, i)));
	fail_with(m, i, ev->status, 0, ev->text);
	return 0;
}

int rp_drop(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_user(m, &ev->fork);
	struct rp_user *u;

	if (!i || rp_user_at(m, i)->owner == m->self)
		return -ESTALE;
	u = rp_user_at(m, i);
	if (u->dropped)
		return -EALREADY;
	rp_effects_wish(m, rp_user_effects(u));
	u->dropped = true;
	rp_user_finish(m, i);
	return 0;
}

/* Finds the entry that a program may still use under this name. */
static uint32_t find_held(const struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_user(m, &ev->fork);
	const struct rp_user *u = i ? rp_user_at(m, i) : NULL;

	return u && !u->dropped && u->owner != m->self && rp_same(&u->id, &ev->id) ? i : 0;
}

int rp_user_wait(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = find_held(m, ev);
	struct rp_user *u;

	if (!i)
		return -ESTALE;
	u = rp_user_at(m, i);
	if (u->state == RP_USER_FAILED) {
		rp_waited(m, ev->cookie, rp_fault_status(m, u->fault), u->fault, NULL, NULL);
	} else if (u->loc.version) {
		rp_waited(m, ev->cookie, 0, 0, NULL, &u->loc);
	} else {
		rp_wait_add(m, &u->waits, &u->nr_waits, ev->cookie);
		if (u->state == RP_USER_CONFIRMED)
			send_fetch(m, u);
	}
	return 0;
}

int rp_user_unwait(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = find_held(m, ev);

	if (!i)
		return -ESTALE;
	return rp_wait_remove(m, &rp_user_at(m, i)->waits, &rp_user_at(m, i)->nr_waits,
			      ev->cookie);
}

/*
 * Finds the entry that the owner's answer is about. Returns 0 with *user, -EPROTO or -ENOMEM. *user
 * is 0 if the fork ended meanwhile.
 */
static int answered(struct rp *m, uint32_t from, const struct rp_msg *msg, uint32_t *user)
{
	*user = rp_find_user(m, &msg->fork);
	/* A worker other than the owner hears no more of it than of a fork that ended. */
	if (*user && rp_user_at(m, *user)->owner != from)
		*user = 0;
	if (!*user)
		return rp_ignored(m);
	if (from == m->self || !rp_same(&rp_user_at(m, *user)->id, &msg->id))
		return rp_refused(m);
	return rp_effects_reserve(m, rp_user_effects(rp_user_at(m, *user)));
}

int rp_on_fork_ack(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i;
	int rc = answered(m, from, msg, &i);
	struct rp_user *u;

	if (rc || !i)
		return rc;
	u = rp_user_at(m, i);
	if (!u->requested)
		return rp_refused(m);
	if (u->state != RP_USER_REQUESTED)
		return rp_ignored(m);
	if (!msg->status) {
		user_confirm(m, i, &msg->loc);
	} else if (u->creator) {
		/* The creator's question overtook its creation; CREATED will tell. */
		return rp_ignored(m);
	} else {
		/* A repetition of the request may be let in later, after a creation that comes
		 * late. Nothing else would delete that fork. */
		u->delete_due = true;
		fail_with(m, i, msg->status, rp_told_about(from, msg), msg->text);
	}
	return 0;
}

int rp_on_fetch_reply(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i;
	int rc = answered(m, from, msg, &i);
	struct rp_user *u;

	if (rc || !i)
		return rc;
	u = rp_user_at(m, i);
	if (!u->fetched || (!msg->status && !msg->loc.version))
		return rp_refused(m);
	if (!u->fetching)
		return rp_ignored(m);
	u->fetching = false;
	if (u->state != RP_USER_CONFIRMED)
		return rp_ignored(m);
	if (!msg->status)
		user_confirm(m, i, &msg->loc);
	else
		/* The value will never come, so no later read asks again. */
		fail_with(m, i, msg->status, rp_told_about(from, msg), msg->text);
	return 0;
}

int rp_on_created(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i;
	int rc = answered(m, from, msg, &i);
	struct rp_user *u;

	if (rc || !i)
		return rc;
	u = rp_user_at(m, i);
	if (!u->creator || (!msg->status && !msg->loc.version))
		return rp_refused(m);
	if (u->created)
		return rp_ignored(m);
	/* The value was made, if only to fail: children may ask for it. */
	u->early = false;
	if (!msg->status)
		user_confirm(m, i, &msg->loc);
	else
		fail_with(m, i, msg->status, rp_told_about(from, msg), msg->text);
	return 0;
}
