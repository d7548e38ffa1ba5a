/* SPDX-License-Identifier: Apache-2.0 */
/* Owner entries: a value owned here, from its announcement to its reclamation. */
#include "core/rp_internal.h"

static uint32_t owner_add(struct rp *m, const struct rref_id *id, void *maker)
{
	uint32_t i = rp_pool_take(&m->owners);
	struct rp_owner *o = rp_owner_at(m, i);

	o->id = rp_key(id);
	o->state = RP_OWNER_PENDING;
	o->since = m->now;
	o->maker = maker;
	rp_table_add(&m->owner_table, &m->owners, i, rp_hash(m, id, 0));
	m->counts.owners++;
	m->counts.pending_owners++;
	return i;
}

static void owner_erase(struct rp *m, uint32_t i)
{
	struct rp_owner *o = rp_owner_at(m, i);

	rp_effect_add(m, RP_EFF_GONE)->id = rp_id(&o->id);
	rp_fault_put(m, rp_owner_fault(o));
	rp_table_del(&m->owner_table, &m->owners, i);
	rp_pool_put(&m->owners, i);
	m->counts.owners--;
}

static void free_value(struct rp *m, const struct rref_id *id, void *value)
{
	struct rp_effect *e = rp_effect_add(m, RP_EFF_FREE_VALUE);

	e->id = *id;
	e->value = value;
}

void rp_owner_settle(struct rp *m, uint32_t i)
{
	struct rp_owner *o = rp_owner_at(m, i);
	struct rref_id id = rp_id(&o->id);

	if (o->local || o->nr_forks || o->state == RP_OWNER_HUSK)
		return;
	if (o->state == RP_OWNER_PENDING) {
		/* Somebody is still making the value: SET has to find the entry, to know that nobody wants it. */
		o->state = RP_OWNER_HUSK;
		o->maker = NULL;
		rp_waits_end(m, &o->waits, &o->nr_waits, -ECANCELED, 0, NULL, NULL);
		return;
	}
	if (o->state == RP_OWNER_READY)
		free_value(m, &id, o->value);
	owner_erase(m, i);
}

int rp_new(struct rp *m, const struct rp_event *ev)
{
	if (!rp_id_valid(m, &ev->id) || ev->id.created_on != m->self)
		return -EINVAL;
	/* Numbers are given out upwards: one beyond all others needs no search, which would go to entries long out of the caches. */
	if (ev->id.local_id > m->newest)
		m->newest = ev->id.local_id;
	else if (rp_find_owner(m, &ev->id))
		return -EALREADY;
	rp_owner_at(m, owner_add(m, &ev->id, ev->maker))->local = 1;
	return 0;
}

int rp_set(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id), fault = 0;
	void *value = NULL;
	struct rp_owner *o;
	int rc;

	if (ev->status > 0 || (!ev->status && !ev->value))
		return -EINVAL;
	if (!i)
		return -ESTALE;
	o = rp_owner_at(m, i);
	if (o->state != RP_OWNER_PENDING && o->state != RP_OWNER_HUSK)
		return -EALREADY;
	/* A creator that fetches as well gets both answers. */
	rc = rp_effects_reserve(m, 2 * (size_t)o->nr_forks + o->nr_waits);
	if (rc)
		return rc;

	m->counts.pending_owners--;
	if (o->state == RP_OWNER_HUSK) {
		if (!ev->status)
			free_value(m, &ev->id, ev->value);
		owner_erase(m, i);
		return 0;
	}
	if (ev->status) {
		o->state = RP_OWNER_FAILED;
		o->fault = fault = rp_fault_new(m, ev->status, ev->text);
	} else {
		o->state = RP_OWNER_READY;
		o->value = value = ev->value;
	}
	rp_list_for_each(k, &m->helds, struct rp_held, in_owner, o->forks) {
		struct rp_held *h = rp_held_at(m, k);

		if (h->creator)
			rp_send(m, h->holder, RP_MSG_CREATED, ev->id, rp_id(&h->fork), ev->status, value, fault);
		if (h->parked) {
			rp_send(m, h->holder, RP_MSG_FETCH_REPLY, ev->id, rp_id(&h->fork), ev->status, value, fault);
			h->parked = false;
			m->counts.parked--;
		}
	}
	rp_waits_end(m, &o->waits, &o->nr_waits, ev->status, fault, value, NULL);
	return 0;
}

int rp_retain(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id);

	if (!rp_owner_alive(m, i))
		return -ESTALE;
	if (rp_owner_at(m, i)->local == UINT32_MAX)
		return -ENOMEM;
	rp_owner_at(m, i)->local++;
	return 0;
}

int rp_release(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id);
	struct rp_owner *o;
	int rc;

	if (!i || !rp_owner_at(m, i)->local)
		return -ESTALE;
	o = rp_owner_at(m, i);
	rc = rp_effects_reserve(m, 2 + (size_t)o->nr_waits);
	if (rc)
		return rc;
	o->local--;
	rp_owner_settle(m, i);
	return 0;
}

int rp_own(struct rp *m, const struct rp_event *ev)
{
	uint32_t i;

	if (ev->peer >= m->world || ev->peer == m->self)
		return -EINVAL;
	if (!rp_id_valid(m, &ev->id) || !rp_id_valid(m, &ev->fork) || ev->id.created_on != ev->peer ||
	    ev->fork.created_on != ev->peer)
		return rp_refused(m);
	if (!rp_peer_reachable(m, ev->peer))
		return m->peers[ev->peer].status;
	i = rp_find_owner(m, &ev->id);
	if (!i && rp_held_full(m, ev->peer)) {
		rp_send_refusal(m, ev->peer, RP_MSG_CREATED, &ev->id, &ev->fork, -EDQUOT, QUOTA_TEXT);
		rp_effect_add(m, RP_EFF_DUPLICATE)->id = ev->id;
		return 0;
	}
	if (i || rp_find_held(m, ev->peer, &ev->fork) || rp_find_tomb(m, ev->peer, &ev->fork)) {
		rp_effect_add(m, RP_EFF_DUPLICATE)->id = ev->id;
		return rp_ignored(m);
	}
	i = owner_add(m, &ev->id, ev->maker);
	rp_held_at(m, rp_held_add(m, i, ev->peer, &ev->fork))->creator = true;
	return 0;
}

int rp_owner_wait(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id), fault;
	struct rp_owner *o;

	if (!rp_owner_alive(m, i))
		return -ESTALE;
	o = rp_owner_at(m, i);
	fault = rp_owner_fault(o);
	if (o->state == RP_OWNER_PENDING)
		rp_wait_add(m, &o->waits, &o->nr_waits, ev->cookie);
	else
		rp_waited(m, ev->cookie, fault ? rp_fault_at(m, fault)->status : 0, fault, rp_owner_value(o), NULL);
	return 0;
}

int rp_owner_unwait(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id);

	if (!i)
		return -ESTALE;
	return rp_wait_remove(m, &rp_owner_at(m, i)->waits, &rp_owner_at(m, i)->nr_waits, ev->cookie);
}
