/* SPDX-License-Identifier: Apache-2.0 */
/* The machine: making it, its step function, and counters. */
#include <stdlib.h>

#include "core/protocol/internal.h"

/* The capacity that outlives a burst: a fence fails everything held of a peer. */
#define KEPT_EFFECTS 1024u

static_assert(sizeof(struct rp_owner) <= 64 && sizeof(struct rp_held) <= 52, "an owner entry and its forks stay small");
static_assert(RP_CHUNK_ITEMS * sizeof(struct rp_user) < 65536, "a pool chunk is a modest allocation");

int rp_create(uint32_t self, uint32_t world, struct rp **out)
{
	struct rp *m;

	if (!world || self >= world)
		return -EINVAL;
	m = calloc(1, sizeof(*m) + (size_t)world * sizeof(m->peers[0]));
	if (!m)
		return -ENOMEM;
	m->self = self;
	m->world = world;
	rp_pool_init(&m->owners, sizeof(struct rp_owner), &m->wanting);
	rp_pool_init(&m->helds, sizeof(struct rp_held), &m->wanting);
	rp_pool_init(&m->users, sizeof(struct rp_user), &m->wanting);
	rp_pool_init(&m->children, sizeof(struct rp_child), &m->wanting);
	rp_pool_init(&m->tombs, sizeof(struct rp_tomb), &m->wanting);
	rp_pool_init(&m->waits, sizeof(struct rp_wait), &m->wanting);
	rp_pool_init(&m->faults, sizeof(struct rp_fault), &m->wanting);
	m->wanting = true;
	if (rp_effects_reserve(m, RP_EFFECTS_KEPT) || rp_table_init(&m->owner_table, &m->wanting) || rp_table_init(&m->held_table, &m->wanting) ||
	    rp_table_init(&m->user_table, &m->wanting) || rp_table_init(&m->child_table, &m->wanting) ||
	    rp_table_init(&m->tomb_table, &m->wanting)) {
		rp_destroy(m);
		return -ENOMEM;
	}
	*out = m;
	return 0;
}

void rp_destroy(struct rp *m)
{
	if (!m)
		return;
	rp_table_close(&m->owner_table);
	rp_table_close(&m->held_table);
	rp_table_close(&m->user_table);
	rp_table_close(&m->child_table);
	rp_table_close(&m->tomb_table);
	rp_pool_close(&m->owners);
	rp_pool_close(&m->helds);
	rp_pool_close(&m->users);
	rp_pool_close(&m->children);
	rp_pool_close(&m->tombs);
	rp_pool_close(&m->waits);
	rp_pool_close(&m->faults);
	free(m->effects);
	free(m);
}

void rp_set_seed(struct rp *m, uint64_t seed)
{
	assert(!m->owners.live && !m->users.live && !m->tombs.live);
	m->seed = seed;
}

static __attribute__((noinline)) int reserve_more(struct rp *m)
{
	m->large = true;
	if (rp_effects_reserve(m, RP_STEP_EFFECTS) || rp_pool_reserve(&m->owners, 1) || rp_pool_reserve(&m->helds, 1) ||
	    rp_pool_reserve(&m->users, 1) || rp_pool_reserve(&m->children, 1) || rp_pool_reserve(&m->tombs, 1) ||
	    rp_pool_reserve(&m->waits, 1) || rp_pool_reserve(&m->faults, 1))
		return -ENOMEM;
	m->wanting = !(rp_table_reserve(&m->owner_table, &m->owners) &&
		       rp_table_reserve(&m->held_table, &m->helds) &&
		       rp_table_reserve(&m->user_table, &m->users) &&
		       rp_table_reserve(&m->child_table, &m->children) &&
		       rp_table_reserve(&m->tomb_table, &m->tombs));
	m->large = m->owner_table.mask >= RP_TABLE_KEPT || m->held_table.mask >= RP_TABLE_KEPT ||
		   m->user_table.mask >= RP_TABLE_KEPT || m->child_table.mask >= RP_TABLE_KEPT || m->tomb_table.mask >= RP_TABLE_KEPT;
	return 0;
}

/* Mostly all of it is there. */
static inline int reserve_step(struct rp *m)
{
	return likely(!m->wanting && m->max_effects - m->nr_effects >= RP_STEP_EFFECTS) ? 0 : reserve_more(m);
}

static int on_message(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	if (!msg || from >= m->world)
		return -EINVAL;
	/* Left over from a session that is fenced. */
	if (!rp_peer_reachable(m, from))
		return rp_ignored(m);
	if (!rp_id_valid(m, &msg->id) || !rp_id_valid(m, &msg->fork) || msg->status > 0)
		return rp_refused(m);
	switch (msg->type) {
	case RP_MSG_FORK_REQUEST:   return rp_on_fork_request(m, from, msg);
	case RP_MSG_FORK_ACK:       return rp_on_fork_ack(m, from, msg);
	case RP_MSG_CHILD_ACCEPT:   return rp_on_child_accept(m, from, msg);
	case RP_MSG_DELETE:         return rp_on_delete(m, from, msg);
	case RP_MSG_FETCH:          return rp_on_fetch(m, from, msg);
	case RP_MSG_FETCH_REPLY:    return rp_on_fetch_reply(m, from, msg);
	case RP_MSG_CREATED:        return rp_on_created(m, from, msg);
	case RP_MSG_PARENT_REQUEST: return rp_on_parent_request(m, from, msg);
	case RP_MSG_PARENT_ACK:     return rp_on_parent_ack(m, from, msg);
	case RP_MSG_NR_TYPES:       break;
	}
	return rp_refused(m);
}

/* Neither do messages to oneself, which nobody else could make good. */
static bool needs_no_memory(const struct rp *m, const struct rp_event *ev)
{
	return rp_effects_room(m) >= RP_LEAST_EFFECTS &&
	       (rp_gives_back(ev->type) || (ev->type == RP_EV_MSG && ev->peer == m->self));
}

int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	int rc = reserve_step(m);

	if (unlikely(rc) && !needs_no_memory(m, ev))
		return rc;
	m->now = ev->now;
	switch (ev->type) {
	case RP_EV_NEW:           return rp_new(m, ev);
	case RP_EV_SET:           return rp_set(m, ev);
	case RP_EV_RETAIN:        return rp_retain(m, ev);
	case RP_EV_RELEASE:       return rp_release(m, ev);
	case RP_EV_CREATE:        return rp_create_user(m, ev);
	case RP_EV_CREATE_FAILED: return rp_create_failed(m, ev);
	case RP_EV_FORK:          return rp_share(m, ev, rec);
	case RP_EV_FORK_UNDO:     return rp_share_undo(m, ev);
	case RP_EV_RECV_FORK:     return rp_receive(m, ev);
	case RP_EV_DROP:          return rp_drop(m, ev);
	case RP_EV_WAIT:          return rp_id_none(&ev->fork) ? rp_owner_wait(m, ev) : rp_user_wait(m, ev);
	case RP_EV_UNWAIT:        return rp_id_none(&ev->fork) ? rp_owner_unwait(m, ev) : rp_user_unwait(m, ev);
	case RP_EV_OWN:           return rp_own(m, ev);
	case RP_EV_MSG:           return on_message(m, ev->peer, ev->msg);
	case RP_EV_PEER_UP:
	case RP_EV_PEER_FENCED:
	case RP_EV_PEER_GRACE:
		break;
	default:
		return -EINVAL;
	}
	if (ev->peer >= m->world || ev->peer == m->self)
		return -EINVAL;
	return ev->type == RP_EV_PEER_UP ? rp_peer_up(m, ev) :
	       ev->type == RP_EV_PEER_FENCED ? rp_peer_fenced(m, ev) : rp_peer_grace(m, ev);
}

void rp_later(struct rp *m)
{
	for (uint32_t r = 0; r < m->world && m->nr_later; r++)
		if (m->peers[r].due)
			rp_peer_clean(m, r);
	for (uint32_t i = m->nr_later ? rp_pool_next(&m->owners, 0) : 0; i; i = m->nr_later ? rp_pool_next(&m->owners, i) : 0)
		if (rp_owner_at(m, i)->telling)
			rp_owner_tell(m, i);
	for (uint32_t i = m->nr_later ? rp_pool_next(&m->users, 0) : 0; i; i = m->nr_later ? rp_pool_next(&m->users, i) : 0)
		if (rp_user_at(m, i)->ending)
			rp_user_finish(m, i);
}

const struct rp_effect *rp_effect_next(struct rp *m)
{
	if (m->first_effect == m->nr_effects)
		rp_effects_clear(m);
	return m->nr_effects ? &m->effects[m->first_effect++] : NULL;
}

void rp_effects_clear(struct rp *m)
{
	m->first_effect = m->nr_effects = 0;
	if (m->max_effects > KEPT_EFFECTS) {
		struct rp_effect *effects = realloc(m->effects, KEPT_EFFECTS * sizeof(*effects));

		if (effects) {
			m->effects = effects;
			m->max_effects = KEPT_EFFECTS;
		}
	}
	if (unlikely(m->large)) {
		rp_table_trim(&m->owner_table);
		rp_table_trim(&m->held_table);
		rp_table_trim(&m->user_table);
		rp_table_trim(&m->child_table);
		rp_table_trim(&m->tomb_table);
	}
	if (unlikely(m->nr_later))
		rp_later(m);
}

void rp_counts(const struct rp *m, struct rp_counts *out)
{
	*out = m->counts;
}
