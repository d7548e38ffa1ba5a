/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sharing, the child's side: a record that arrived becomes a local reference (owner) or a user
 * entry.
 */
#include "core/protocol/internal.h"

static struct rp_effect *new_handle(struct rp *m, const struct rref_id *id, uint32_t owner,
				    uint64_t cookie)
{
	struct rp_effect *e = rp_effect_add(m, RP_EFF_NEW_HANDLE);

	e->id = *id;
	e->peer = owner;
	e->cookie = cookie;
	return e;
}

static void ready(struct rp *m, uint64_t cookie, int status, const char *text)
{
	struct rp_effect *e = rp_effect_add(m, RP_EFF_READY);

	e->cookie = cookie;
	e->status = status;
	rp_text_copy(e->text, text);
}

/* Gives one more local reference, if the value is here and the word is its own; READY tells. */
static void receive_owned(struct rp *m, const struct rref_id *id, uint64_t word, uint64_t cookie,
			  int status, const char *text)
{
	uint32_t i = rp_find_owner(m, id);
	struct rp_owner *o;
	struct rp_effect *e;

	if (status || !rp_owner_opens(m, i, word)) {
		ready(m, cookie, status ? status : -ESTALE, status ? text : GONE_TEXT);
		return;
	}
	o = rp_owner_at(m, i);
	rb_assert_is(o->local, <, UINT32_MAX);
	o->local++;
	e = new_handle(m, id, m->self, cookie);
	e->value = rp_owner_value(o);
	ready(m, cookie, 0, NULL);
}

static int receive_own_fork(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_held(m, m->self, &ev->rec->fork), owner;
	const struct rp_owner *o = i ? rp_owner_at(m, rp_held_at(m, i)->owner) : NULL;
	int rc;

	if (!o || !rp_same(&o->id, &ev->rec->id))
		return -EALREADY;
	rc = rp_effects_reserve(m, RP_STEP_EFFECTS + (size_t)o->nr_waits);
	if (rc)
		return rc;
	owner = rp_held_erase(m, i);
	/* The local reference first: without it the entry might go with its last fork. */
	receive_owned(m, &ev->rec->id, ev->rec->word, ev->cookie, ev->status, ev->text);
	rp_owner_settle(m, owner);
	return 0;
}

static void ask_parent(struct rp *m, struct rp_user *u)
{
	rb_assert_is(u->state, ==, RP_USER_ASKING);
	u->asked = true;
	rp_user_send(m, u, u->parent, RP_MSG_PARENT_REQUEST);
}

static int receive_from_user(struct rp *m, const struct rp_event *ev)
{
	const struct rp_fork *rec = ev->rec;
	uint32_t owner = rp_find_owner(m, &rec->id);

	/* A wrong word asks too: asking the parent or not must not tell that the value is here. */
	if (!ev->status && (rec->flags & RP_FORK_EARLY) &&
	    !rp_owner_opens(m, owner, rec->word)) {
		uint32_t i = rp_user_add(m, &rec->id, &rec->fork, m->self, rec->parent,
					 RP_USER_ASKING);

		rp_user_at(m, i)->cookie = ev->cookie;
		rp_user_at(m, i)->word = rec->word;
		ask_parent(m, rp_user_at(m, i));
		return 0;
	}
	receive_owned(m, &rec->id, rec->word, ev->cookie, ev->status, ev->text);
	rp_send(m, rec->parent, RP_MSG_CHILD_ACCEPT, rec->id, rec->fork, 0, NULL, 0);
	return 0;
}

/* Returns the status of a record that the runtime refuses, or whose owner is not up; else 0. */
static int record_status(const struct rp *m, const struct rp_event *ev)
{
	uint32_t owner = ev->rec->owner;

	return ev->status ? ev->status : rp_peer_reachable(m, owner) ? 0 : m->peers[owner].status;
}

static void fail_received(struct rp *m, uint32_t i, int status, const struct rp_event *ev)
{
	const char *text = ev->status ? ev->text : "the owner of the reference is gone";
	uint32_t fault = rp_fault_new(m, status, text);

	rp_user_fail(m, i, fault, true);
	rp_fault_put(m, fault);
}

static int receive_user(struct rp *m, const struct rp_event *ev)
{
	const struct rp_fork *rec = ev->rec;
	bool from_owner = rec->parent == rec->owner;
	bool early = (rec->flags & RP_FORK_EARLY) && !from_owner;
	int status = record_status(m, ev);
	uint32_t i = rp_user_add(m, &rec->id, &rec->fork, rec->owner, rec->parent,
				 from_owner ? RP_USER_CONFIRMED :
				 early ? RP_USER_ASKING : RP_USER_REQUESTED);
	struct rp_user *u = rp_user_at(m, i);
	struct rp_effect *e;

	u->cookie = ev->cookie;
	u->word = rec->word;
	/* The location of another worker's value comes with that owner's answer, not from the
	 * parent. A wrong location costs the connection that it is read over, and that would be
	 * ours with the owner. */
	if (from_owner)
		u->loc = rec->loc;
	u->early = early;
	u->ready_due = true;
	u->delete_due = from_owner;
	e = new_handle(m, &rec->id, rec->owner, ev->cookie);
	e->fork = rec->fork;
	e->loc = u->loc;
	e->handle_slot = &u->handle;
	e->status = status ? status : from_owner ? 0 : -EINPROGRESS;
	if (status) {
		fail_received(m, i, status, ev);
	} else if (from_owner) {
		rp_user_ready(m, u, 0, 0);
	} else if (early) {
		ask_parent(m, u);
	} else {
		rp_user_request(m, i);
	}
	return 0;
}

/* Tells whether the sender may hand in this record. */
static bool record_valid(const struct rp *m, uint32_t from, const struct rp_fork *rec)
{
	return rec->parent == from && rec->fork.created_on == from && rec->owner < m->world &&
	       rp_id_valid(m, &rec->id) && rp_id_valid(m, &rec->fork) &&
	       !(rec->flags & ~RP_FORK_EARLY);
}

int rp_receive(struct rp *m, const struct rp_event *ev)
{
	const struct rp_fork *rec = ev->rec;

	if (!rec || ev->peer >= m->world || ev->status > 0)
		return -EINVAL;
	if (!record_valid(m, ev->peer, rec))
		return rp_refused(m);
	if (!rp_peer_reachable(m, ev->peer))
		return m->peers[ev->peer].status;
	if (rec->owner == m->self && rec->parent == m->self)
		return receive_own_fork(m, ev);
	if (rp_find_user(m, &rec->fork)) {
		m->counts.ignored++;
		return -EALREADY;
	}
	return rec->owner == m->self ? receive_from_user(m, ev) : receive_user(m, ev);
}

/* Ends an early record of an id owned here. */
static void resolve_owned(struct rp *m, uint32_t i, int status, const char *text)
{
	struct rp_user *u = rp_user_at(m, i);
	struct rref_id id = rp_id(&u->id), fork = rp_id(&u->fork);
	uint32_t parent = u->parent;
	uint64_t cookie = u->cookie, word = u->word;

	rb_assert(u->owner == m->self && u->state == RP_USER_ASKING && !u->handle);
	rp_user_erase(m, i);
	receive_owned(m, &id, word, cookie, status, text);
	rp_send(m, parent, RP_MSG_CHILD_ACCEPT, id, fork, 0, NULL, 0);
}

void rp_receive_resume(struct rp *m, uint32_t i)
{
	if (rp_user_at(m, i)->owner == m->self)
		resolve_owned(m, i, 0, NULL);
	else
		rp_user_request(m, i);
}

int rp_on_parent_ack(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	uint32_t i = rp_find_user(m, &msg->fork), fault;
	struct rp_user *u;
	int rc;

	/* A worker other than the parent hears no more of it than of a fork that ended. */
	if (!i || rp_user_at(m, i)->parent != from)
		return rp_ignored(m);
	u = rp_user_at(m, i);
	if (!u->asked || !rp_same(&u->id, &msg->id))
		return rp_refused(m);
	if (u->state != RP_USER_ASKING)
		return rp_ignored(m);
	rc = rp_effects_reserve(m, rp_user_effects(u));
	if (rc)
		return rc;
	if (!msg->status) {
		u->early = false;
		rp_children_answer(m, i, 0);
		rp_receive_resume(m, i);
	} else if (u->owner == m->self) {
		resolve_owned(m, i, msg->status, msg->text);
	} else {
		fault = rp_fault_new(m, msg->status, msg->text);
		rp_fault_about(m, fault, rp_told_about(from, msg));
		rp_user_fail(m, i, fault, false);
		rp_fault_put(m, fault);
	}
	return 0;
}
