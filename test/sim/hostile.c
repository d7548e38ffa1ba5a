/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile worker: it may say anything. */
#include "test/sim/sim.h"

static struct rref_id any_id(struct sim *s, bool fork)
{
	if (fork && s->nr_claims && sim_chance(s, 70))
		return s->claims[sim_rnd(s, (uint32_t)s->nr_claims)]->fork;
	if (!fork && s->nr_objects && sim_chance(s, 80))
		return s->objects[sim_rnd(s, (uint32_t)s->nr_objects)]->id;
	/* Never an id of later use: the ledger could not tell it from the true one. */
	return (struct rref_id){ .local_id = UINT64_C(1) << 32 | (1000000 + sim_rnd(s, 40)),
				 .created_on = sim_rnd(s, s->n + 1) };
}

/* Returns a word for that id: the true one if the attacker knows it, or a guess. */
static uint64_t any_word(struct sim *s, struct rref_id id)
{
	const struct object *o = sim_object_of(s, id), *other;

	if (o && sim_is_given(s, o) && sim_chance(s, 60))
		return o->word;
	other = s->nr_objects ? s->objects[sim_rnd(s, (uint32_t)s->nr_objects)] : NULL;
	switch (sim_rnd(s, 4)) {
	case 0:
		return 0;
	case 1:
		return other && sim_is_given(s, other) ? other->word : 1;
	case 2:
		return o ? o->nonce : 666;
	default:
		return id.local_id;
	}
}

static void attack_with_record(struct sim *s, uint32_t r)
{
	struct rref_id id = any_id(s, false);
	struct rp_fork rec = {
		.id = id, .word = any_word(s, id), .fork = sim_new_id(s, s->evil),
		.owner = sim_rnd(s, s->n), .parent = s->evil,
		.flags = sim_rnd(s, 2), .loc = { .nonce = 666, .version = sim_rnd(s, 2) },
	};
	struct rp_event ev = { .type = RP_EV_RECV_FORK, .peer = s->evil, .rec = &rec };
	struct object *o = sim_object_of(s, rec.id);
	struct incoming *in = sim_make(s, sizeof(*in));
	struct claim *c;

	/* An unknown or missing value: it is in no ledger. */
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
	ev.cookie = sim_add_cookie(s,
				   (struct cookie){
					   .kind = COOKIE_READY, .obj = o, .claim = c, .call = in },
				   r);
	if (sim_step(s, r, &ev, NULL)) {
		s->cookies[ev.cookie - 1].over = true;
		c->state = CLAIM_OVER;
	} else if (r == rec.owner && rec.flags && !sim_is_given(s, o) &&
		   s->cookies[ev.cookie - 1].over) {
		/* The parent is asked first about a missing value. */
		sim_fail(s, "worker %u does not ask the parent, which tells that a value is there",
			 r);
	}
}

static void attack_with_creation(struct sim *s, uint32_t r)
{
	struct object *o = sim_add_object(s, s->evil, r, s->machines[r].inc);
	struct rp_event ev = {
		.type = RP_EV_OWN, .id = o->id, .fork = sim_new_id(s, s->evil), .peer = s->evil
	};

	o->word = ev.word = sim_chance(s, 80) ? sim_word(s, o->id) : 0;
	o->created = true;
	s->duplicate = false;
	if (!sim_step(s, r, &ev, NULL) && !s->duplicate)
		o->known = true;
	ev.id = any_id(s, false);
	if (ev.id.created_on != s->evil)
		sim_step(s, r, &ev, NULL);
}

struct sought {
	uint32_t holder;
	struct rref_id id, fork;
	bool found;
};

static void seek(void *arg, const struct rp_visit *v)
{
	struct sought *k = arg;

	k->found |= v->kind == RP_VISIT_FORK && v->peer == k->holder && sim_same(v->id, k->id) &&
		sim_same(v->fork, k->fork);
}

/* Asks for the references that a value holds, by a fork that the owner does not list as the
 * attacker's. Nothing is found. */
static void attack_with_take(struct sim *s, uint32_t r, struct rref_id id, struct rref_id fork)
{
	struct sought k = { .holder = s->evil, .id = id, .fork = fork };
	void *value = NULL;
	const struct object *o;

	if (rp_held_value(s->machines[r].m, s->evil, &id, &fork, &value))
		return;
	o = value;
	rp_visit(s->machines[r].m, seek, &k);
	if (!k.found || !o || !sim_same(o->id, id) || o->freed || !o->set)
		sim_fail(s, "worker %u gives away what it was not asked for", r);
}

void sim_attack(struct sim *s)
{
	uint32_t r = sim_rnd(s, s->n), what = sim_rnd(s, 100);
	struct rp_msg msg = {
		.type = (enum rp_msg_type)sim_rnd(s, RP_MSG_NR_TYPES + 1), .id = any_id(s, false),
		.fork = any_id(s, true),
		.status = sim_chance(s, 50) ? 0 : 1 - (int)sim_rnd(s, 40),
		.loc = { .nonce = 666, .version = sim_rnd(s, 2) },
	};
	struct rp_event ev = { .type = RP_EV_MSG, .peer = s->evil, .msg = &msg };

	/* Mostly about a real thing: another's fork of its own value,
	 * at the value's owner or anywhere. */
	if (s->nr_claims && sim_chance(s, 60)) {
		const struct claim *c = s->claims[sim_rnd(s, (uint32_t)s->nr_claims)];

		msg.id = c->obj->id;
		msg.fork = c->fork;
		if (sim_chance(s, 70))
			r = c->obj->owner;
	}
	if (!s->machines[r].alive)
		return;
	msg.word = any_word(s, msg.id);
	s->result->attacks++;
	s->attacking = true;
	if (what < 15)
		attack_with_record(s, r);
	else if (what < 20)
		attack_with_creation(s, r);
	else if (what < 35)
		attack_with_take(s, r, msg.id, msg.fork);
	else
		sim_step(s, r, &ev, NULL);
	s->attacking = false;
}
