/* SPDX-License-Identifier: Apache-2.0 */
/* The effect of a peer's coming and going on the entries. */
#include "core/protocol/internal.h"

int rp_peer_up(struct rp *m, const struct rp_event *ev)
{
	struct rp_peer *p = &m->peers[ev->peer];

	if (p->due)
		rp_peer_clean(m, ev->peer);
	if (p->state == RP_PEER_FENCED || p->due)
		return -EBUSY;
	/* A session begins with nothing of the last one but references that have failed. */
	rb_assert(p->state != RP_PEER_FENCED && !p->fault);
	rb_assert_if(p->state == RP_PEER_GONE, !p->forks && !p->tombs && !p->children);
	p->state = RP_PEER_UP;
	p->epoch = ev->epoch;
	return 0;
}

static size_t fence_effects(const struct rp *m, const struct rp_peer *p)
{
	size_t n = RP_STEP_EFFECTS;

	rp_list_for_each(i, &m->children, struct rp_child, in_peer, p->children)
		n++;
	rp_list_for_each(i, &m->users, struct rp_user, in_owner, p->users)
		n += rp_user_effects(rp_user_at(m, i));
	rp_list_for_each(i, &m->users, struct rp_user, in_parent, p->asking)
		n += RP_STEP_EFFECTS;
	return n;
}

/*
 * Fails an entry whose owner is lost, with all that hangs on it. Returns false if some is left, for
 * want of room.
 */
static bool lose_user(struct rp *m, uint32_t i, uint32_t fault)
{
	struct rp_user *u = rp_user_at(m, i);

	rb_assert(!u->lost && !rp_peer_reachable(m, u->owner));
	u->losing = true;
	if (!rp_children_answer(m, i, fault) || rp_effects_room(m) < RP_LEAST_EFFECTS)
		return false;
	return u->state == RP_USER_FAILED ? rp_user_finish(m, i) : rp_user_fail(m, i, fault, false);
}

/* Erases all that the peer holds here. Returns false if some is left, for want of room. */
static bool erase_held(struct rp *m, struct rp_peer *p, uint32_t rank)
{
	while (p->forks) {
		if (rp_effects_room(m) < RP_LEAST_EFFECTS)
			return false;
		rp_owner_settle(m, rp_held_erase(m, p->forks));
	}
	rp_tombs_erase(m, rank);
	return true;
}

static bool clean_some(struct rp *m, struct rp_peer *p, uint32_t rank)
{
	while (p->children) {
		uint32_t user = rp_child_at(m, p->children)->user;

		if (rp_effects_room(m) < RP_LEAST_EFFECTS)
			return false;
		rp_child_erase(m, p->children);
		rp_user_settle(m, user);
	}
	while (p->users) {
		if (rp_effects_room(m) < RP_LEAST_EFFECTS || !lose_user(m, p->users, p->fault))
			return false;
	}
	while (p->asking) {
		if (rp_effects_room(m) < RP_LEAST_EFFECTS)
			return false;
		rp_receive_resume(m, p->asking);
	}
	if (p->state != RP_PEER_GONE)
		return true;
	return erase_held(m, p, rank);
}

void rp_peer_clean(struct rp *m, uint32_t rank)
{
	struct rp_peer *p = &m->peers[rank];

	rb_assert(p->state != RP_PEER_UP);
	if (!clean_some(m, p, rank)) {
		m->nr_later += !p->due;
		p->due = true;
		return;
	}
	rb_assert(!p->children && !p->users && !p->asking);
	rb_assert_if(p->due, m->nr_later);
	m->nr_later -= p->due;
	p->due = false;
	rp_fault_put(m, p->fault);
	p->fault = 0;
}

int rp_peer_fenced(struct rp *m, const struct rp_event *ev)
{
	struct rp_peer *p = &m->peers[ev->peer];

	if (ev->status >= 0)
		return -EINVAL;
	if (p->state != RP_PEER_UP)
		return -EALREADY;
	rp_effects_wish(m, fence_effects(m, p));
	p->fault = rp_fault_new(m, ev->status, ev->text);
	/* Set before the rest: nothing below may send to it. */
	p->state = RP_PEER_FENCED;
	p->status = ev->status;

	rp_list_for_each(i, &m->helds, struct rp_held, in_peer, p->forks) {
		rb_assert_if(rp_held_at(m, i)->parked, m->counts.parked);
		m->counts.parked -= rp_held_at(m, i)->parked;
		rp_held_at(m, i)->parked = false;
	}
	rp_peer_clean(m, ev->peer);
	return 0;
}

int rp_peer_grace(struct rp *m, const struct rp_event *ev)
{
	struct rp_peer *p = &m->peers[ev->peer];
	size_t n = RP_LEAST_EFFECTS;

	if (p->state != RP_PEER_FENCED)
		return -EALREADY;
	rp_list_for_each(i, &m->helds, struct rp_held, in_peer, p->forks)
		n += 2 + (size_t)rp_owner_at(m, rp_held_at(m, i)->owner)->nr_waits;
	rp_effects_wish(m, n);
	p->state = RP_PEER_GONE;
	rp_peer_clean(m, ev->peer);
	return 0;
}
