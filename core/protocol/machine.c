/* SPDX-License-Identifier: Apache-2.0 */
/* The machine: making it, its step function, and counters. */
#include <stdlib.h>

#include "core/protocol/internal.h"

/* The capacity that outlives a burst: a fence fails everything held of a peer. */
#define KEPT_EFFECTS 1024u

static_assert(sizeof(struct rp_owner) <= 64 && sizeof(struct rp_held) <= 52,
	      "an owner entry and its forks stay small");
static_assert(RP_CHUNK_ITEMS * sizeof(struct rp_user) < 65536,
	      "a pool chunk is a modest allocation");

#define AT(member) offsetof(struct rp, member)

/* Each pool, by its place in struct rp; the table that finds its items, if there is one. */
static const struct part {
	size_t pool, table; /* table 0: none */
	uint32_t item_bytes;
} parts[] = {
	{ AT(owners), AT(owner_table), sizeof(struct rp_owner) },
	{ AT(helds), AT(held_table), sizeof(struct rp_held) },
	{ AT(users), AT(user_table), sizeof(struct rp_user) },
	{ AT(children), AT(child_table), sizeof(struct rp_child) },
	{ AT(tombs), AT(tomb_table), sizeof(struct rp_tomb) },
	{ AT(waits), 0, sizeof(struct rp_wait) },
	{ AT(faults), 0, sizeof(struct rp_fault) },
};

#define for_each_part(part) \
	for (const struct part *part = parts; part < parts + sizeof(parts) / sizeof(*parts); part++)

static struct rp_pool *pool_of(struct rp *m, const struct part *part)
{
	return (void *)((char *)m + part->pool);
}

static struct rp_table *table_of(struct rp *m, const struct part *part)
{
	return part->table ? (void *)((char *)m + part->table) : NULL;
}

static bool open_parts(struct rp *m)
{
	for_each_part(part)
		rp_pool_init(pool_of(m, part), part->item_bytes, &m->wanting);
	for_each_part(part)
		if (part->table && rp_table_init(table_of(m, part), &m->wanting))
			return false;
	return true;
}

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
	m->wanting = true;
	if (!open_parts(m) || rp_effects_reserve(m, RP_EFFECTS_KEPT)) {
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
	for_each_part(part) {
		if (part->table)
			rp_table_close(table_of(m, part));
		rp_pool_close(pool_of(m, part));
	}
	free(m->effects);
	free(m);
}

void rp_set_seed(struct rp *m, uint64_t seed)
{
	rb_assert(!m->owners.live && !m->users.live && !m->tombs.live);
	m->seed = seed;
}

static bool reserve_items(struct rp *m)
{
	for_each_part(part)
		if (rp_pool_reserve(pool_of(m, part), 1))
			return false;
	return true;
}

static bool reserve_buckets(struct rp *m)
{
	for_each_part(part)
		if (part->table && !rp_table_reserve(table_of(m, part), pool_of(m, part)))
			return false;
	return true;
}

static bool have_large_table(struct rp *m)
{
	for_each_part(part)
		if (part->table && table_of(m, part)->mask >= RP_TABLE_KEPT)
			return true;
	return false;
}

static __attribute__((noinline)) int reserve_more(struct rp *m)
{
	m->large = true;
	if (rp_effects_reserve(m, RP_STEP_EFFECTS) || !reserve_items(m))
		return -ENOMEM;
	m->wanting = !reserve_buckets(m);
	m->large = have_large_table(m);
	return 0;
}

/* Reserves what a step may need. Mostly all of it is there. */
static inline int reserve_step(struct rp *m)
{
	if (likely(!m->wanting && rp_effects_room(m) >= RP_STEP_EFFECTS))
		return 0;
	return reserve_more(m);
}

static int on_message(struct rp *m, uint32_t from, const struct rp_msg *msg)
{
	if (!msg || from >= m->world)
		return -EINVAL;
	/* The message is left over from a session that is fenced. */
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

/*
 * Tells whether a step can do with the room that is there. Messages to oneself must: nobody else
 * could make them good.
 */
static bool needs_no_memory(const struct rp *m, const struct rp_event *ev)
{
	return rp_effects_room(m) >= RP_LEAST_EFFECTS &&
	       (rp_gives_back(ev->type) || (ev->type == RP_EV_MSG && ev->peer == m->self));
}

static inline int on_wait(struct rp *m, const struct rp_event *ev)
{
	return rp_id_none(&ev->fork) ? rp_owner_wait(m, ev) : rp_user_wait(m, ev);
}

static inline int on_unwait(struct rp *m, const struct rp_event *ev)
{
	return rp_id_none(&ev->fork) ? rp_owner_unwait(m, ev) : rp_user_unwait(m, ev);
}

static inline int one_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
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
	case RP_EV_WAIT:          return on_wait(m, ev);
	case RP_EV_UNWAIT:        return on_unwait(m, ev);
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

int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	size_t before = m->nr_effects - m->first_effect;
	int rc = one_step(m, ev, rec);

	rb_assert_is(rc, <=, 0);
	/* A session that comes too early helps the fence on, which may put effects out. */
	rb_assert_if(rc && ev->type != RP_EV_PEER_UP,
		     m->nr_effects - m->first_effect == before);
	rb_assert_is(m->nr_effects - m->first_effect, >=, before);
	rp_assert_sound(m, ev);
	return rc;
}

static uint32_t next_later(const struct rp *m, const struct rp_pool *p, uint32_t i)
{
	return m->nr_later ? rp_pool_next(p, i) : 0;
}

void rp_later(struct rp *m)
{
	for (uint32_t r = 0; r < m->world && m->nr_later; r++)
		if (m->peers[r].due)
			rp_peer_clean(m, r);
	for (uint32_t i = next_later(m, &m->owners, 0); i; i = next_later(m, &m->owners, i))
		if (rp_owner_at(m, i)->telling)
			rp_owner_tell(m, i);
	for (uint32_t i = next_later(m, &m->users, 0); i; i = next_later(m, &m->users, i))
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
	/* Not by for_each_part: each step comes here while a table is large. */
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
