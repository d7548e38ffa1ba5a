/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that die, come back, are cut off, or lie. */
#include "test/lib/tl_rpsim_internal.h"

/* ---- crashes ----------------------------------------------------------------------------------------------- */

void sim_view_fence(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_FENCED, .peer = peer, .status = -EOWNERDEAD, .text = "died" };

	v->state = LINK_FENCED;
	v->last = v->epoch;
	v->epoch = 0;
	sim_purge(s, peer, r);
	for (size_t i = 0; i < s->nr_claims; i++) {
		struct claim *c = s->claims[i];

		if (c->parent && c->parent->holder == r && c->parent->holder_inc == s->machines[r].inc &&
		    ((c->holder == peer && c->holder_inc == v->inc) || (c->obj->owner == peer && c->obj->owner_inc == v->inc)))
			c->unpinned = true;
	}
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "PEER_FENCED failed");
}

void sim_view_grace(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_GRACE, .peer = peer };

	v->state = LINK_GRACED;
	for (size_t i = 0; i < s->nr_claims; i++) {
		struct claim *c = s->claims[i];

		if (c->holder == peer && c->holder_inc == v->inc && c->obj->owner == r && c->obj->owner_inc == s->machines[r].inc)
			c->lost = true;
	}
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "PEER_GRACE failed");
}

void sim_view_up(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_UP, .peer = peer, .epoch = v->coming };

	v->state = LINK_UP;
	v->epoch = v->coming;
	/* Sessions that came and went meanwhile are over too. */
	v->last = v->coming - 1;
	v->coming = 0;
	v->inc = v->coming_inc;
	sim_purge(s, peer, r);
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "PEER_UP failed");
}

void sim_start(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];

	if (rp_create(r, s->n, &k->m))
		abort();
	rp_set_seed(k->m, s->rng);
	k->alive = true;
	k->inc++;
	k->next_local = 0;
	for (uint32_t q = 0; q < s->n; q++) {
		struct view *there = &s->machines[q].views[r];

		k->views[q] = (struct view){ .state = LINK_UP, .epoch = ++s->epochs, .inc = s->machines[q].inc };
		k->views[q].last = k->views[q].epoch - 1;
		if (q == r)
			continue;
		if (!s->machines[q].alive) {
			/* To be fenced when it is missed. */
			k->views[q].state = LINK_LOST;
		}
		there->coming = k->views[q].epoch;
		there->coming_inc = k->inc;
	}
}

static void kill_machine(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];

	s->broken = true;
	s->result->kills++;
	k->alive = false;
	rp_destroy(k->m);
	k->m = NULL;
	k->nr_handles = 0;
	for (size_t i = 0; i < s->nr_claims; i++)
		if (s->claims[i]->holder == r && s->claims[i]->holder_inc == k->inc && s->claims[i]->state != CLAIM_FLYING)
			s->claims[i]->state = CLAIM_OVER;
	for (uint32_t q = 0; q < s->n; q++) {
		struct view *v = &s->machines[q].views[r];

		sim_purge(s, q, r);
		if (q == r)
			continue;
		if (v->state == LINK_UP)
			v->state = LINK_LOST;
		/* A session that was offered and not entered dies with it. */
		if (v->coming) {
			v->coming = 0;
			for (struct packet *p = s->links[r][q]; p; p = p->next)
				if (p->epoch > v->last && p->epoch != v->epoch)
					p->epoch = 0;
			sim_purge(s, r, q);
		}
	}
}

static void cut(struct sim *s, uint32_t a, uint32_t b)
{
	if (a == b || s->machines[a].views[b].state != LINK_UP || s->machines[b].views[a].state != LINK_UP ||
	    s->machines[a].views[b].epoch != s->machines[b].views[a].epoch)
		return;
	s->broken = true;
	s->result->cuts++;
	s->machines[a].views[b].state = LINK_LOST;
	s->machines[b].views[a].state = LINK_LOST;
}

/* Each pair goes its way: lost, fenced, grace over, up again with whoever is there. */
bool sim_recover(struct sim *s, uint32_t percent)
{
	for (uint32_t a = 0; a < s->n; a++) {
		for (uint32_t b = 0; b < s->n; b++) {
			struct view *v = &s->machines[a].views[b], *w = &s->machines[b].views[a];

			if (a == b || !s->machines[a].alive || !sim_chance(s, percent))
				continue;
			if (v->state == LINK_LOST) {
				sim_view_fence(s, a, b);
				return true;
			}
			if (v->state == LINK_FENCED) {
				sim_view_grace(s, a, b);
				return true;
			}
			if (v->state != LINK_GRACED || !s->machines[b].alive)
				continue;
			if (v->coming) {
				sim_view_up(s, a, b);
				return true;
			}
			if (w->state == LINK_GRACED && !w->coming) {
				v->coming = w->coming = ++s->epochs;
				v->coming_inc = s->machines[b].inc;
				w->coming_inc = s->machines[a].inc;
				sim_view_up(s, a, b);
				sim_view_up(s, b, a);
				return true;
			}
		}
	}
	return false;
}

void sim_disturb(struct sim *s)
{
	uint32_t r = sim_rnd(s, s->n), alive = 0, what = sim_rnd(s, 1000);

	if (what < 300)
		sim_recover(s, 20);
	for (uint32_t q = 0; q < s->n; q++)
		alive += s->machines[q].alive;
	if (what < 12 && s->machines[r].alive && alive > 1)
		kill_machine(s, r);
	else if (what < 60 && !s->machines[r].alive && r != s->evil)
		sim_start(s, r);
	else if (what > 990 && s->machines[r].alive)
		cut(s, r, sim_rnd(s, s->n));
}

/* ---- a hostile worker -------------------------------------------------------------------------------------- */

static struct rref_id any_id(struct sim *s, bool fork)
{
	if (fork && s->nr_claims && sim_chance(s, 70))
		return s->claims[sim_rnd(s, (uint32_t)s->nr_claims)]->fork;
	if (!fork && s->nr_objects && sim_chance(s, 80))
		return s->objects[sim_rnd(s, (uint32_t)s->nr_objects)]->id;
	/* Never one that will be: the ledger could not tell it from the true one. */
	return (struct rref_id){ .local_id = UINT64_C(1) << 32 | (1000000 + sim_rnd(s, 40)), .created_on = sim_rnd(s, s->n + 1) };
}

static void attack_with_record(struct sim *s, uint32_t r)
{
	struct rp_fork rec = {
		.id = any_id(s, false), .fork = sim_new_id(s, s->evil), .owner = sim_rnd(s, s->n), .parent = s->evil,
		.flags = sim_rnd(s, 2), .loc = { .nonce = 666, .version = sim_rnd(s, 2) },
	};
	struct rp_event ev = { .type = RP_EV_RECV_FORK, .peer = s->evil, .rec = &rec };
	struct object *o = sim_object_of(s, rec.id);
	struct incoming *in = sim_make(s, sizeof(*in));
	struct claim *c;

	/* A value that is not, or not there: it is in no ledger. */
	if (!o || o->owner != rec.owner || o->owner_inc != s->machines[rec.owner].inc) {
		o = sim_make(s, sizeof(*o));
		o->id = rec.id;
		o->owner = rec.owner;
		o->owner_inc = s->machines[rec.owner].inc;
	}
	c = sim_add_claim(s, o, NULL, r);
	c->fork = rec.fork;
	c->evil = c->unpinned = true;
	c->parent = sim_make(s, sizeof(*c));
	in->nr = in->waiting = 1;
	ev.cookie = sim_add_cookie(s, (struct cookie){ .kind = COOKIE_READY, .obj = o, .claim = c, .call = in }, r);
	if (sim_step(s, r, &ev, NULL)) {
		s->cookies[ev.cookie - 1].over = true;
		c->state = CLAIM_OVER;
	}
}

static void attack_with_creation(struct sim *s, uint32_t r)
{
	struct object *o = sim_add_object(s, s->evil, r, s->machines[r].inc);
	struct rp_event ev = { .type = RP_EV_OWN, .id = o->id, .fork = sim_new_id(s, s->evil), .peer = s->evil };

	o->created = true;
	s->duplicate = false;
	if (!sim_step(s, r, &ev, NULL) && !s->duplicate)
		o->known = true;
	ev.id = any_id(s, false);
	if (ev.id.created_on != s->evil)
		sim_step(s, r, &ev, NULL);
}

void sim_attack(struct sim *s)
{
	uint32_t r = sim_rnd(s, s->n), what = sim_rnd(s, 100);
	struct rp_msg msg = {
		.type = (enum rp_msg_type)sim_rnd(s, RP_MSG_NR_TYPES + 1), .id = any_id(s, false), .fork = any_id(s, true),
		.status = sim_chance(s, 50) ? 0 : 1 - (int)sim_rnd(s, 40), .loc = { .nonce = 666, .version = sim_rnd(s, 2) },
	};
	struct rp_event ev = { .type = RP_EV_MSG, .peer = s->evil, .msg = &msg };

	/* Mostly about something that is: another's fork of its own value, at the value's owner or anywhere. */
	if (s->nr_claims && sim_chance(s, 60)) {
		const struct claim *c = s->claims[sim_rnd(s, (uint32_t)s->nr_claims)];

		msg.id = c->obj->id;
		msg.fork = c->fork;
		if (sim_chance(s, 70))
			r = c->obj->owner;
	}
	if (!s->machines[r].alive)
		return;
	s->result->attacks++;
	s->attacking = true;
	if (what < 15)
		attack_with_record(s, r);
	else if (what < 20)
		attack_with_creation(s, r);
	else
		sim_step(s, r, &ev, NULL);
	s->attacking = false;
}
