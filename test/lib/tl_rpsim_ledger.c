/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger of who holds what, and the network. */
#include <stdarg.h>

#include "test/lib/tl_rpsim_internal.h"

void sim_fail(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (s->result->text[0])
		return;
	va_start(ap, fmt);
	vsnprintf(s->result->text, sizeof(s->result->text), fmt, ap);
	va_end(ap);
}

bool sim_failed(const struct sim *s)
{
	return s->result->text[0];
}

uint32_t sim_rnd(struct sim *s, uint32_t n)
{
	s->rng += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = s->rng;
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t)((x >> 33) % n);
}

bool sim_chance(struct sim *s, uint32_t percent)
{
	return sim_rnd(s, 100) < percent;
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

	return (struct rref_id){ .local_id = (uint64_t)k->inc << 32 | ++k->next_local, .created_on = r };
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

struct handle *sim_add_handle(struct sim *s, uint32_t r, struct object *o, struct rref_id fork, struct claim *claim)
{
	struct machine *k = &s->machines[r];
	struct handle *h = sim_make(s, sizeof(*h));

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

/* ---- the ledger -------------------------------------------------------------------------------------------- */

/* May the owner do without this one? It may when it wrote a holder off on whom the claim still hangs. */
static bool excused(const struct claim *c)
{
	for (; c; c = c->parent) {
		if (c->lost)
			return true;
		if (c->state == CLAIM_CONFIRMED || !c->parent)
			return false;
		/* Those whose parent did not know yet fail with the creation. */
		if (c->unpinned || c->obj->timed_out)
			return true;
	}
	return false;
}

void sim_check_unreferenced(struct sim *s, const struct object *o, const char *what)
{
	if (o->local)
		sim_fail(s, "%s of %llu: %u local references", what, (unsigned long long)o->id.local_id, o->local);
	for (size_t i = 0; i < s->nr_claims; i++) {
		const struct claim *c = s->claims[i];

		if (c->obj == o && c->state != CLAIM_OVER && !excused(c))
			sim_fail(s, "%s of %u/%llx: worker %u still has a claim (%d)", what, o->id.created_on,
			     (unsigned long long)o->id.local_id, c->holder, (int)c->state);
	}
}

static void call_dropped(struct call *call)
{
	if (--call->copies || call->seen)
		return;
	for (unsigned i = 0; i < call->nr; i++)
		call->claims[i]->state = CLAIM_OVER;
	if (call->create)
		call->create->unsent = true;
}

/* ---- network ----------------------------------------------------------------------------------------------- */

void sim_push(struct sim *s, uint32_t from, uint32_t to, const struct rp_msg *msg, struct call *call)
{
	struct view *there = &s->machines[to].views[from];
	unsigned copies = (s->flags & TL_RP_CHAOS) && sim_chance(s, 20) ? 2 : 1;

	if (call)
		call->copies = copies;
	while (copies--) {
		struct packet *p = calloc(1, sizeof(*p)), **tail = &s->links[from][to];

		if (!p)
			abort();
		p->from = from;
		p->to = to;
		p->epoch = s->machines[from].views[to].epoch;
		p->call = call;
		if (msg)
			p->msg = *msg;
		if (!p->epoch)
			sim_fail(s, "worker %u sends to worker %u, which it has fenced", from, to);
		if (!s->machines[to].alive || p->epoch <= there->last) {
			if (call)
				call_dropped(call);
			free(p);
			continue;
		}
		while (*tail)
			tail = &(*tail)->next;
		*tail = p;
	}
}

/* Drops what the receiver will never accept any more. */
void sim_purge(struct sim *s, uint32_t from, uint32_t to)
{
	struct packet **at = &s->links[from][to];

	while (*at) {
		struct packet *p = *at;

		if (s->machines[to].alive && p->epoch > s->machines[to].views[from].last) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		if (p->call)
			call_dropped(p->call);
		free(p);
	}
}

/* A packet that can arrive now; the choice among all of them is the seed's. */
struct packet *sim_pick(struct sim *s)
{
	uint32_t start = sim_rnd(s, s->n * s->n);

	for (uint32_t k = 0; k < s->n * s->n; k++) {
		uint32_t link = (start + k) % (s->n * s->n), from = link / s->n, to = link % s->n, nr = 0, which;
		struct packet **at = &s->links[from][to], *p;

		for (p = *at; p; p = p->next) {
			if (p->epoch == s->machines[to].views[from].epoch)
				nr++;
			else if (!(s->flags & TL_RP_CHAOS))
				break;
		}
		if (!nr)
			continue;
		for (which = s->flags & TL_RP_CHAOS ? sim_rnd(s, nr) : 0;; at = &(*at)->next)
			if ((*at)->epoch == s->machines[to].views[from].epoch && !which--)
				break;
		p = *at;
		*at = p->next;
		return p;
	}
	return NULL;
}
