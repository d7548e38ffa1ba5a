/* SPDX-License-Identifier: Apache-2.0 */
/* What a peer's coming and going does to the entries. */
#include "core/rp_internal.h"

int rp_peer_up(struct rp *m, const struct rp_event *ev)
{
	struct rp_peer *p = &m->peers[ev->peer];

	if (p->state == RP_PEER_FENCED)
		return -EBUSY;
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

/* The owner is lost, and so is what hangs on its value. */
static void lose_user(struct rp *m, uint32_t i, uint32_t fault)
{
	struct rp_user *u = rp_user_at(m, i);

	/* With no child left the entry settles here and now, while nothing can be sent: a later session of the owner hears
	 * nothing of this fork, which it does not know. */
	rp_children_answer(m, i, fault);
	while (u->children)
		rp_child_erase(m, u->children);
	if (u->state == RP_USER_FAILED)
		rp_user_settle(m, i);
	else
		rp_user_fail(m, i, fault, false);
}

int rp_peer_fenced(struct rp *m, const struct rp_event *ev)
{
	struct rp_peer *p = &m->peers[ev->peer];
	uint32_t fault, next;
	int rc;

	if (ev->status >= 0)
		return -EINVAL;
	if (p->state != RP_PEER_UP)
		return -EALREADY;
	rc = rp_effects_reserve(m, fence_effects(m, p));
	if (rc)
		return rc;
	fault = rp_fault_new(m, ev->status, ev->text);
	/* First: nothing below may send to it. */
	p->state = RP_PEER_FENCED;
	p->status = ev->status;

	rp_list_for_each(i, &m->helds, struct rp_held, in_peer, p->forks) {
		m->counts.parked -= rp_held_at(m, i)->parked;
		rp_held_at(m, i)->parked = false;
	}
	while (p->children) {
		uint32_t user = rp_child_at(m, p->children)->user;

		rp_child_erase(m, p->children);
		rp_user_settle(m, user);
	}
	for (uint32_t i = p->users; i; i = next) {
		next = rp_list_next(&m->users, offsetof(struct rp_user, in_owner), p->users, i);
		lose_user(m, i, fault);
	}
	while (p->asking)
		rp_receive_resume(m, p->asking);
	rp_fault_put(m, fault);
	return 0;
}

int rp_peer_grace(struct rp *m, const struct rp_event *ev)
{
	struct rp_peer *p = &m->peers[ev->peer];
	size_t n = 0;
	int rc;

	if (p->state != RP_PEER_FENCED)
		return -EALREADY;
	rp_list_for_each(i, &m->helds, struct rp_held, in_peer, p->forks)
		n += 2 + (size_t)rp_owner_at(m, rp_held_at(m, i)->owner)->nr_waits;
	rc = rp_effects_reserve(m, n);
	if (rc)
		return rc;
	p->state = RP_PEER_GONE;
	while (p->forks)
		rp_owner_settle(m, rp_held_erase(m, p->forks));
	rp_tombs_erase(m, ev->peer);
	return 0;
}
