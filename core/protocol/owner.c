/* SPDX-License-Identifier: Apache-2.0 */
/* Owner entries: a value owned here, from its announcement to its reclamation. */
#include "base/fast.h"
#include "core/protocol/internal.h"

static uint32_t owner_add(struct rp *m, const struct rref_id *id, void *maker)
{
	uint32_t i = rp_pool_take(&m->owners);
	struct rp_owner *o = rp_owner_at(m, i);

	rb_assert(o->state == RP_OWNER_NONE && !o->forks && !o->waits);
	rb_assert(!rp_find_owner(m, id));
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

	rb_assert_with(!o->local && !o->nr_forks && !o->nr_waits,
		       "%u references here, %u forks, %u waits", o->local, o->nr_forks,
		       o->nr_waits);
	rb_assert(!o->telling);
	rb_assert_is(m->counts.owners, >, 0);
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

static bool tell_some(struct rp *m, struct rp_owner *o)
{
	uint32_t fault = rp_owner_fault(o);
	int status = fault ? rp_fault_status(m, fault)
			   : o->state == RP_OWNER_ABANDONED ? -ECANCELED : 0;
	void *value = rp_owner_value(o);
	struct rref_id id = rp_id(&o->id);

	rb_assert(o->state != RP_OWNER_PENDING);
	rb_assert_if(o->state == RP_OWNER_ABANDONED, !o->nr_forks);
	rp_list_for_each(k, &m->helds, struct rp_held, in_owner, o->forks) {
		struct rp_held *h = rp_held_at(m, k);

		/* A creator that fetches as well gets both answers. */
		if (rp_effects_room(m) < 2)
			return false;
		if (h->creator && !h->told) {
			h->told = true;
			rp_send(m, h->holder, RP_MSG_CREATED, id, rp_id(&h->fork), status, value,
				fault);
		}
		if (h->parked) {
			rp_send(m, h->holder, RP_MSG_FETCH_REPLY, id, rp_id(&h->fork), status,
				value, fault);
			rb_assert_is(m->counts.parked, >, 0);
			h->parked = false;
			m->counts.parked--;
		}
	}
	return rp_waits_end(m, &o->waits, &o->nr_waits, status, fault, value, NULL);
}

void rp_owner_tell(struct rp *m, uint32_t i)
{
	struct rp_owner *o = rp_owner_at(m, i);
	bool all = tell_some(m, o);

	if (likely(all && !o->telling))
		return;
	if (!all || rp_effects_room(m) < 2) {
		m->nr_later += !o->telling;
		o->telling = true;
		return;
	}
	rb_assert_is(m->nr_later, >, 0);
	m->nr_later--;
	o->telling = false;
	rp_owner_settle(m, i);
}

void rp_owner_settle(struct rp *m, uint32_t i)
{
	struct rp_owner *o = rp_owner_at(m, i);
	struct rref_id id = rp_id(&o->id);

	if (o->local || o->nr_forks || o->state == RP_OWNER_ABANDONED || unlikely(o->telling))
		return;
	if (o->state == RP_OWNER_PENDING) {
		/* Somebody is still making the value. SET has to find the entry, to know that
		 * nobody wants the value. */
		o->state = RP_OWNER_ABANDONED;
		o->maker = NULL;
		rp_owner_tell(m, i);
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
	/* Numbers are given out upwards. A number beyond all others needs no search, which would
	 * go to entries long out of the caches. */
	if (RB_FAST(ev->id.local_id > m->newest))
		m->newest = ev->id.local_id;
	else if (rp_find_owner(m, &ev->id))
		return -EALREADY;
	rp_owner_at(m, owner_add(m, &ev->id, ev->maker))->local = 1;
	return 0;
}

/* Ends an entry whose value comes too late. */
static void end_abandoned(struct rp *m, uint32_t i, const struct rp_event *ev)
{
	struct rp_owner *o = rp_owner_at(m, i);

	if (!ev->status)
		free_value(m, &ev->id, ev->value);
	if (!o->telling) {
		owner_erase(m, i);
		return;
	}
	/* Some do not know yet that it was given up: it goes when they do. */
	o->state = RP_OWNER_FAILED;
	o->fault = rp_fault_new(m, -ECANCELED, NULL);
}

int rp_set(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id);
	struct rp_owner *o;

	if (ev->status > 0 || (!ev->status && !ev->value))
		return -EINVAL;
	if (!i)
		return -ESTALE;
	o = rp_owner_at(m, i);
	if (o->state != RP_OWNER_PENDING && o->state != RP_OWNER_ABANDONED)
		return -EALREADY;
	rp_effects_wish(m, 2 * (size_t)o->nr_forks + o->nr_waits);
	rb_assert_is(m->counts.pending_owners, >, 0);
	m->counts.pending_owners--;
	if (o->state == RP_OWNER_ABANDONED) {
		end_abandoned(m, i, ev);
		return 0;
	}
	if (ev->status) {
		o->state = RP_OWNER_FAILED;
		o->fault = rp_fault_new(m, ev->status, ev->text);
		rp_fault_about(m, o->fault, ev->about);
	} else {
		o->state = RP_OWNER_READY;
		o->value = ev->value;
	}
	rp_owner_tell(m, i);
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

	if (!i || !rp_owner_at(m, i)->local)
		return -ESTALE;
	o = rp_owner_at(m, i);
	rp_effects_wish(m, 2 + (size_t)o->nr_waits);
	o->local--;
	rp_owner_settle(m, i);
	return 0;
}

/* Tells whether the ids of a creation are its creator's own. */
static bool creator_valid(const struct rp *m, const struct rp_event *ev)
{
	return rp_id_valid(m, &ev->id) && ev->id.created_on == ev->peer &&
	       rp_id_valid(m, &ev->fork) && ev->fork.created_on == ev->peer;
}

int rp_own(struct rp *m, const struct rp_event *ev)
{
	uint32_t i;

	if (ev->peer >= m->world || ev->peer == m->self)
		return -EINVAL;
	if (!creator_valid(m, ev))
		return rp_refused(m);
	if (!rp_peer_reachable(m, ev->peer))
		return m->peers[ev->peer].status;
	i = rp_find_owner(m, &ev->id);
	if (!i && rp_held_full(m, ev->peer)) {
		rp_send_refusal(m, ev->peer, RP_MSG_CREATED, &ev->id, &ev->fork, -EDQUOT,
				QUOTA_TEXT);
		rp_effect_add(m, RP_EFF_DUPLICATE)->id = ev->id;
		return 0;
	}
	if (i || rp_find_held(m, ev->peer, &ev->fork) || rp_find_tomb(m, ev->peer, &ev->fork)) {
		rp_effect_add(m, RP_EFF_DUPLICATE)->id = ev->id;
		return rp_ignored(m);
	}
	i = owner_add(m, &ev->id, ev->maker);
	rp_owner_at(m, i)->word = ev->word;
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
		rp_waited(m, ev->cookie, fault ? rp_fault_status(m, fault) : 0, fault,
			  rp_owner_value(o), NULL);
	return 0;
}

int rp_owner_unwait(struct rp *m, const struct rp_event *ev)
{
	uint32_t i = rp_find_owner(m, &ev->id);

	if (!i)
		return -ESTALE;
	return rp_wait_remove(m, &rp_owner_at(m, i)->waits, &rp_owner_at(m, i)->nr_waits,
			      ev->cookie);
}
