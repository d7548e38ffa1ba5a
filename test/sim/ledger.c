/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger of all holders and values, and its judgement of the machines. */
#include <stdarg.h>

#include "core/protocol/internal.h"
#include "test/sim/sim.h"

void sim_fail(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (s->result->text[0])
		return;
	va_start(ap, fmt);
	vsnprintf(s->result->text, sizeof(s->result->text), fmt, ap);
	va_end(ap);
	s->result->rule = fmt;
}

bool sim_failed(const struct sim *s)
{
	return s->result->text[0];
}

void *sim_grow(void *array, size_t nr, size_t *max, size_t bytes)
{
	if (nr < *max)
		return array;
	*max = *max ? 2 * *max : 64;
	array = realloc(array, *max * bytes);
	if (!array)
		abort();
	return array;
}

void *sim_make(struct sim *s, size_t bytes)
{
	void *p = calloc(1, bytes);

	if (!p)
		abort();
	s->garbage = sim_grow(s->garbage, s->nr_garbage, &s->max_garbage, sizeof(*s->garbage));
	s->garbage[s->nr_garbage++] = p;
	return p;
}

struct rref_id sim_new_id(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];

	return (struct rref_id){ .local_id = (uint64_t)k->inc << 32 | ++k->next_local,
				 .created_on = r };
}

bool sim_same(struct rref_id a, struct rref_id b)
{
	return a.local_id == b.local_id && a.created_on == b.created_on;
}

struct object *sim_object_of(struct sim *s, struct rref_id id)
{
	for (size_t i = 0; i < s->nr_objects; i++)
		if (sim_same(s->objects[i]->id, id))
			return s->objects[i];
	return NULL;
}

struct claim *sim_claim_of(struct sim *s, struct rref_id fork)
{
	for (size_t i = s->nr_claims; i--;)
		if (sim_same(s->claims[i]->fork, fork))
			return s->claims[i];
	return NULL;
}

struct object *sim_add_object(struct sim *s, uint32_t creator, uint32_t owner, uint32_t owner_inc)
{
	struct object *o = sim_make(s, sizeof(*o));

	o->id = sim_new_id(s, creator);
	o->owner = owner;
	o->owner_inc = owner_inc;
	o->creator = creator;
	o->nonce = s->nr_objects + 1000;
	s->objects = sim_grow(s->objects, s->nr_objects, &s->max_objects, sizeof(*s->objects));
	s->objects[s->nr_objects++] = o;
	return o;
}

struct claim *sim_add_claim(struct sim *s, struct object *o, struct claim *parent, uint32_t holder)
{
	struct claim *c = sim_make(s, sizeof(*c));

	c->obj = o;
	c->parent = parent;
	c->holder = holder;
	c->holder_inc = s->machines[holder].inc;
	c->evil = parent && parent->evil;
	s->claims = sim_grow(s->claims, s->nr_claims, &s->max_claims, sizeof(*s->claims));
	s->claims[s->nr_claims++] = c;
	return c;
}

struct handle *sim_add_handle(struct sim *s, uint32_t r, struct object *o, struct rref_id fork,
			      struct claim *claim)
{
	struct machine *k = &s->machines[r];
	struct handle *h = sim_make(s, sizeof(*h));

	h->uid = sim_uid(s);
	h->obj = o;
	h->fork = fork;
	h->claim = claim;
	h->machine = r;
	h->inc = k->inc;
	k->handles = sim_grow(k->handles, k->nr_handles, &k->max_handles, sizeof(*k->handles));
	k->handles[k->nr_handles++] = h;
	return h;
}

uint64_t sim_add_cookie(struct sim *s, struct cookie c, uint32_t r)
{
	c.machine = r;
	c.inc = s->machines[r].inc;
	s->cookies = sim_grow(s->cookies, s->nr_cookies, &s->max_cookies, sizeof(*s->cookies));
	s->cookies[s->nr_cookies++] = c;
	return s->nr_cookies;
}

bool sim_owner_alive(const struct sim *s, const struct object *o)
{
	return s->machines[o->owner].alive && s->machines[o->owner].inc == o->owner_inc;
}

/* ---- the ledger ------------------------------------------------------------------------------ */

bool sim_may_fail(const struct sim *s, const struct claim *c)
{
	return c->obj->timed_out && (c->early || c->obj->owner == s->evil);
}

/* Returns whether the owner may lack this one. It may if it wrote off a
 * holder that the claim still depends on. */
static bool excused(const struct sim *s, const struct claim *c)
{
	for (; c; c = c->parent) {
		if (c->lost)
			return true;
		if (c->state == CLAIM_CONFIRMED || !c->parent)
			return false;
		/* Shares whose parent was still unconfirmed fail with the creation. */
		if (c->unpinned || sim_may_fail(s, c))
			return true;
	}
	return false;
}

void sim_check_unreferenced(struct sim *s, const struct object *o, const char *what)
{
	if (o->local)
		sim_fail(s, "%s of %llu: %u local references", what,
			 (unsigned long long)o->id.local_id, o->local);
	for (size_t i = 0; i < s->nr_claims; i++) {
		const struct claim *c = s->claims[i];

		if (c->obj == o && c->state != CLAIM_OVER && !excused(s, c))
			sim_fail(s, "%s of %u/%llx: worker %u still has a claim (%d)", what,
				 o->id.created_on, (unsigned long long)o->id.local_id, c->holder,
				 (int)c->state);
	}
}

/* Checks a step that lost the owner a fork: no held one may be lost. */
void sim_check_recorded(struct sim *s, uint32_t r)
{
	const struct machine *k = &s->machines[r];

	for (size_t i = 0; i < s->nr_claims; i++) {
		const struct claim *c = s->claims[i];

		if (c->state == CLAIM_CONFIRMED && !c->lost && c->obj->owner == r &&
		    c->obj->owner_inc == k->inc && !rp_find_held(k->m, c->holder, &c->fork))
			sim_fail(s, "worker %u forgot a fork that worker %u holds", r, c->holder);
	}
}

/* Checks S4: only a creator's question may overtake the creation it asks about. */
void sim_check_refusal(struct sim *s, uint32_t r, const struct rp_msg *msg)
{
	const struct claim *c = sim_claim_of(s, msg->fork);
	const struct object *o = c ? c->obj : NULL;

	if (!o || c->evil || o->owner != r || sim_same(o->fork, msg->fork))
		return;
	/* A repetition after its own end. */
	if (c->state == CLAIM_OVER)
		return;
	if (!s->broken && !sim_may_fail(s, c))
		sim_fail(s, "worker %u refused a FORK_REQUEST (%d) in a run without crashes", r,
			 msg->status);
	if (o->known && !o->gone && sim_owner_alive(s, o) && !excused(s, c))
		sim_fail(s, "worker %u refused a FORK_REQUEST (%d) for a value that it has", r,
			 msg->status);
}

bool sim_is_given(const struct sim *s, const struct object *o)
{
	return o->given || o->owner == s->evil || o->creator == s->evil;
}

void sim_check_told(struct sim *s, uint32_t r, const struct rp_msg *msg)
{
	const struct object *o = sim_object_of(s, msg->id);
	bool answer = msg->type == RP_MSG_FORK_ACK || msg->type == RP_MSG_FETCH_REPLY ||
		msg->type == RP_MSG_CREATED;

	if (!answer || (o && sim_is_given(s, o)))
		return;
	if (!msg->status)
		sim_fail(s, "worker %u tells where a value is that was not shared", r);
	else if (msg->status != -ESTALE)
		sim_fail(s, "worker %u tells (%d) that a value is there that was not shared", r,
			 msg->status);
}

void sim_check_held(struct sim *s, uint32_t r)
{
	const struct rp *m = s->machines[r].m;

	rp_list_for_each(i, &m->helds, struct rp_held, in_peer, m->peers[s->evil].forks) {
		struct rref_id id = rp_id(&rp_owner_at(m, rp_held_at(m, i)->owner)->id);
		const struct object *o = sim_object_of(s, id);

		if (!o || !sim_is_given(s, o))
			sim_fail(s,
				 "worker %u lists a fork of a value that was not shared with its "
				 "holder",
				 r);
	}
}

/* ---- quiet ---------------------------------------------------------------------------------- */

struct visit {
	struct sim *s;
	uint32_t rank;
};

static void visit(void *ctx, const struct rp_visit *v)
{
	struct visit *at = ctx;
	struct sim *s = at->s;
	const struct object *o = sim_object_of(s, v->id);
	const struct claim *c;

	if (!v->owned)
		return;
	if (!o || o->owner != at->rank) {
		sim_fail(s, "worker %u keeps a value that was never made", at->rank);
		return;
	}
	if (rp_id_none(&v->fork)) {
		if (v->local != o->local)
			sim_fail(s, "worker %u counts %u local references of a value, and holds %u",
				 at->rank, v->local, o->local);
		return;
	}
	c = sim_claim_of(s, v->fork);
	if (!c || c->state == CLAIM_OVER || c->holder != v->peer || !s->machines[c->holder].alive ||
	    s->machines[c->holder].inc != c->holder_inc)
		sim_fail(s, "worker %u keeps a fork that worker %u does not hold any more",
			 at->rank, v->peer);
}

/* Checks that no operation still waits, held references or not. */
static void check_operations(struct sim *s)
{
	for (size_t i = 0; i < s->nr_cookies; i++) {
		const struct cookie *c = &s->cookies[i];

		if (!c->over && s->machines[c->machine].alive &&
		    s->machines[c->machine].inc == c->inc)
			sim_fail(s, "a %s of worker %u does not come",
				 c->kind == COOKIE_READY ? "READY" : "WAITED", c->machine);
	}
	if (s->nr_reads)
		sim_fail(s, "a READ of worker %u does not end", s->reads[0].machine);
}

void sim_check_quiet(struct sim *s)
{
	if (sim_failed(s))
		return;
	check_operations(s);
	for (uint32_t r = 0; r < s->n && !sim_failed(s); r++) {
		struct visit at = { s, r };
		uint64_t handles = 0;
		struct rp_counts c;

		if (!s->machines[r].alive)
			continue;
		rp_counts(s->machines[r].m, &c);
		if (c.pending_users || c.pending_children || c.parked || c.pending_owners)
			sim_fail(s,
				 "worker %u still has %llu pending users, %llu children, %llu "
				 "owners, %llu parked",
				 r, (unsigned long long)c.pending_users,
				 (unsigned long long)c.pending_children,
				 (unsigned long long)c.pending_owners,
				 (unsigned long long)c.parked);
		for (size_t i = 0; i < s->machines[r].nr_handles; i++)
			handles += !!s->machines[r].handles[i]->claim;
		if (c.users != handles)
			sim_fail(s, "worker %u has %llu user entries for %llu handles", r,
				 (unsigned long long)c.users, (unsigned long long)handles);
		rp_visit(s->machines[r].m, visit, &at);
		sim_check_recorded(s, r);
	}
}

void sim_check_end(struct sim *s)
{
	for (uint32_t r = 0; r < s->n && !sim_failed(s); r++) {
		struct rp_counts c;

		if (!s->machines[r].alive)
			continue;
		rp_counts(s->machines[r].m, &c);
		if (c.owners || c.pending_owners || c.forks || c.users || c.pending_users ||
		    c.pending_children || c.parked)
			sim_fail(s,
				 "worker %u at the end: %llu owners (%llu pending), %llu forks, "
				 "%llu users (%llu pending), "
				 "%llu children, %llu parked",
				 r, (unsigned long long)c.owners,
				 (unsigned long long)c.pending_owners, (unsigned long long)c.forks,
				 (unsigned long long)c.users, (unsigned long long)c.pending_users,
				 (unsigned long long)c.pending_children,
				 (unsigned long long)c.parked);
		if (c.refused && s->evil == s->n)
			sim_fail(s, "worker %u refused %llu messages", r,
				 (unsigned long long)c.refused);
		if (s->machines[r].nr_free != s->machines[r].nr_slots)
			sim_fail(s, "worker %u has memory in use", r);
	}
	for (size_t i = 0; i < s->nr_objects && !sim_failed(s); i++) {
		struct object *o = s->objects[i];

		if (sim_owner_alive(s, o) && o->known && !o->gone && sim_object_of(s, o->id) == o &&
		    !o->gave_up)
			sim_fail(s, "the value %llx of worker %u was never reclaimed",
				 (unsigned long long)o->id.local_id, o->owner);
		if (!o->created && s->machines[o->creator].alive &&
		    s->machines[o->creator].inc == (uint32_t)(o->id.local_id >> 32))
			sim_fail(s, "a CREATED of worker %u never came", o->creator);
	}
}
