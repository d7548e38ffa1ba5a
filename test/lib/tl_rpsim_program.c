/* SPDX-License-Identifier: Apache-2.0 */
/* The random program: what workers do, and what they do when something arrives. */
#include "test/lib/tl_rpsim_internal.h"

/* ---- what arrives ------------------------------------------------------------------------------------------ */

/* What the runtime does about the owner's incarnation: 0, or why the record is refused. */
static int judge_incarnation(struct sim *s, uint32_t r, uint32_t owner, uint32_t inc)
{
	struct view *v = &s->machines[r].views[owner];

	if (owner == r)
		return inc == s->machines[r].inc ? 0 : -ESTALE;
	/* News of a restart: the old session is over, whoever says so. */
	while (v->inc < inc && v->coming && v->coming_inc >= inc && !sim_failed(s)) {
		if (v->state == LINK_UP)
			v->state = LINK_LOST;
		else if (v->state == LINK_LOST)
			sim_view_fence(s, r, owner);
		else if (v->state == LINK_FENCED)
			sim_view_grace(s, r, owner);
		else
			sim_view_up(s, r, owner);
	}
	return inc == v->inc ? 0 : inc < v->inc ? -ESTALE : -EOWNERDEAD;
}

static void deliver_call(struct sim *s, uint32_t from, uint32_t to, struct call *call)
{
	struct incoming *in;

	call->copies--;
	if (call->seen && call->nr)
		return; /* the runtime knows the call's id */
	call->seen = true;
	if (call->create) {
		/* Repeated creations do come: the machine knows them. */
		struct rp_event ev = { .type = RP_EV_OWN, .id = call->create->id, .fork = call->create->fork, .peer = from };

		s->duplicate = false;
		if (sim_step(s, to, &ev, NULL))
			sim_fail(s, "OWN failed");
		else if (!s->duplicate)
			call->create->known = true;
		return;
	}
	in = sim_make(s, sizeof(*in));
	in->nr = in->waiting = call->nr;
	in->refuse = sim_chance(s, 10);
	for (unsigned i = 0; i < call->nr; i++) {
		struct rp_event ev = { .type = RP_EV_RECV_FORK, .peer = from, .rec = &call->recs[i] };
		int rc;

		ev.status = judge_incarnation(s, to, call->recs[i].owner, call->owner_inc[i]);
		ev.cookie = sim_add_cookie(s, (struct cookie){ .kind = COOKIE_READY, .obj = call->claims[i]->obj,
							  .claim = call->claims[i], .call = in, .slot = i }, to);
		rc = sim_step(s, to, &ev, NULL);
		/* The news of a restart may have been of the sender. */
		if (rc && !sim_failed(s) && s->machines[to].views[from].state != LINK_UP) {
			s->cookies[ev.cookie - 1].over = true;
			call->claims[i]->state = CLAIM_OVER;
			in->waiting--;
		} else if (rc) {
			sim_fail(s, "RECV_FORK: %d", rc);
		}
		if (in->refuse && in->handles[i] && !in->handles[i]->released)
			sim_release(s, in->handles[i]);
	}
}

bool sim_deliver(struct sim *s)
{
	struct packet *p = sim_pick(s);
	struct rp_event ev = { .type = RP_EV_MSG };
	int rc;

	if (!p)
		return false;
	if (p->call) {
		deliver_call(s, p->from, p->to, p->call);
	} else {
		ev.peer = p->from;
		ev.msg = &p->msg;
		rc = sim_step(s, p->to, &ev, NULL);
		if (rc)
			sim_fail(s, "message %d: %d", (int)p->msg.type, rc);
	}
	free(p);
	return true;
}

/* ---- the program ------------------------------------------------------------------------------------------- */

static void set_value(struct sim *s, struct object *o)
{
	struct rp_event ev = { .type = RP_EV_SET, .id = o->id };

	o->set = true;
	if (sim_chance(s, 85)) {
		ev.value = o;
		o->valued = true;
		ev.loc = (struct rp_location){ .nonce = o->nonce, .version = 1 };
	} else {
		ev.status = -ECREATE;
		ev.text = "made to fail";
		o->gave_up = true;
	}
	if (sim_step(s, o->owner, &ev, NULL))
		sim_fail(s, "SET failed");
}

static void new_local(struct sim *s, uint32_t r)
{
	struct object *o = sim_add_object(s, r, r, s->machines[r].inc);
	struct rp_event ev = { .type = RP_EV_NEW, .id = o->id };

	o->known = o->created = true;
	o->local = 1;
	sim_add_handle(s, r, o, (struct rref_id){ 0 }, NULL);
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "NEW failed");
	if (sim_chance(s, 60))
		set_value(s, o);
}

static void new_remote(struct sim *s, uint32_t r, uint32_t owner)
{
	struct machine *k = &s->machines[r];
	struct object *o;
	struct rp_event ev = { .type = RP_EV_CREATE, .peer = owner };
	struct claim *c;
	struct call *call;
	int rc;

	if (owner == r) {
		new_local(s, r);
		return;
	}
	o = sim_add_object(s, r, owner, k->views[owner].inc);
	o->fork = sim_new_id(s, r);
	o->timed_out = o->gave_up = owner == s->evil;
	c = sim_add_claim(s, o, NULL, r);
	c->fork = o->fork;
	c->state = CLAIM_RECEIVED;
	ev.id = o->id;
	ev.fork = o->fork;
	ev.handle = sim_add_handle(s, r, o, o->fork, c);
	rc = sim_step(s, r, &ev, NULL);
	if (rc) {
		if (k->views[owner].state == LINK_UP)
			sim_fail(s, "CREATE failed: %d", rc);
		c->state = CLAIM_OVER;
		o->created = true;
		k->nr_handles--;
		return;
	}
	if (sim_chance(s, 10)) {
		o->unsent = true;
		return;
	}
	call = sim_make(s, sizeof(*call));
	call->create = o;
	sim_push(s, r, owner, NULL, call);
}

static void give_up(struct sim *s, struct object *o)
{
	struct rp_event ev = { .type = RP_EV_CREATE_FAILED, .fork = o->fork, .status = -ETIMEDOUT, .text = "the creation timed out" };

	o->gave_up = o->timed_out = true;
	/* The ledger first: the machine may tell the owner in this step. */
	for (size_t i = 0; i < s->nr_claims; i++)
		if (s->claims[i]->obj == o && !s->claims[i]->parent && s->claims[i]->holder == o->creator)
			s->claims[i]->state = CLAIM_OVER;
	if (sim_step(s, o->creator, &ev, NULL))
		sim_fail(s, "CREATE_FAILED failed");
}

static bool usable(const struct handle *h)
{
	return !h->released;
}

static void share(struct sim *s, uint32_t r, uint32_t to)
{
	struct machine *k = &s->machines[r];
	struct call *call = sim_make(s, sizeof(*call));
	struct handle *src[MAX_RECS];
	unsigned nr = 1 + sim_rnd(s, MAX_RECS);
	bool undo = sim_chance(s, 10);

	for (unsigned i = 0; i < nr && k->nr_handles; i++) {
		struct handle *h = k->handles[sim_rnd(s, (uint32_t)k->nr_handles)];
		struct rp_event ev = { .type = RP_EV_FORK, .id = h->obj->id, .src = h->fork, .peer = to };
		struct rp_fork *rec = &call->recs[call->nr];
		int rc;

		ev.fork = sim_new_id(s, r);
		/* The ledger has no claim before the machine has: it may refuse. */
		rc = sim_step(s, r, &ev, rec);
		if (rc) {
			if (!h->failed && k->views[to].state == LINK_UP)
				sim_fail(s, "FORK failed: %d", rc);
			continue;
		}
		if (h->failed && h->claim)
			sim_fail(s, "a failed reference could be shared");
		call->owner_inc[call->nr] = h->obj->owner_inc;
		call->claims[call->nr] = sim_add_claim(s, h->obj, h->claim, to);
		call->claims[call->nr]->holder_inc = k->views[to].inc;
		call->claims[call->nr]->fork = ev.fork;
		src[call->nr++] = h;
	}
	if (!call->nr)
		return;
	if (undo) {
		for (unsigned i = 0; i < call->nr; i++) {
			struct rp_event ev = { .type = RP_EV_FORK_UNDO, .id = call->recs[i].id, .fork = call->recs[i].fork,
					       .src = src[i]->fork, .peer = to };

			call->claims[i]->state = CLAIM_OVER;
			if (sim_step(s, r, &ev, NULL))
				sim_fail(s, "UNDO failed");
		}
		return;
	}
	/* A program may let go of what it has just shared. */
	sim_push(s, r, to, NULL, call);
	for (unsigned i = 0; i < call->nr; i++)
		if (usable(src[i]) && sim_chance(s, 30))
			sim_release(s, src[i]);
}

static void wait_for(struct sim *s, struct handle *h)
{
	struct rp_event ev = { .type = RP_EV_WAIT, .id = h->obj->id, .fork = h->fork };

	ev.cookie = sim_add_cookie(s, (struct cookie){ .kind = COOKIE_WAIT, .obj = h->obj, .handle = h }, h->machine);
	if (sim_step(s, h->machine, &ev, NULL))
		sim_fail(s, "WAIT failed");
	if (sim_chance(s, 15)) {
		bool over = s->cookies[ev.cookie - 1].over;
		int rc;

		ev.type = RP_EV_UNWAIT;
		s->cookies[ev.cookie - 1].over = true;
		rc = sim_step(s, h->machine, &ev, NULL);
		if (rc != (over ? -ESTALE : 0))
			sim_fail(s, "UNWAIT: %d", rc);
	}
}

void sim_act(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];
	struct handle *h = k->nr_handles ? k->handles[sim_rnd(s, (uint32_t)k->nr_handles)] : NULL;
	uint32_t what = sim_rnd(s, 100);
	struct rp_event ev;

	if (!h || what < 12) {
		new_remote(s, r, sim_rnd(s, s->n));
	} else if (what < 60) {
		share(s, r, sim_rnd(s, s->n));
	} else if (what < 75) {
		wait_for(s, h);
	} else if (what < 80 && !h->claim) {
		ev = (struct rp_event){ .type = RP_EV_RETAIN, .id = h->obj->id };
		h->obj->local++;
		sim_add_handle(s, r, h->obj, h->fork, NULL);
		if (sim_step(s, r, &ev, NULL))
			sim_fail(s, "RETAIN failed");
	} else {
		sim_release(s, h);
	}
}

/* Something that takes its time: a value is set, a creation is given up. */
bool sim_be_late(struct sim *s, bool all)
{
	for (size_t i = s->nr_objects; i--;) {
		struct object *o = s->objects[i];

		if (o->known && !o->set && !o->gone && sim_owner_alive(s, o) && (all || sim_chance(s, 20))) {
			set_value(s, o);
			return true;
		}
		if (!o->created && s->machines[o->creator].alive && o->creator != o->owner &&
		    s->machines[o->creator].inc == (uint32_t)(o->id.local_id >> 32) &&
		    (o->unsent ? all || sim_chance(s, 10) : !all && sim_chance(s, 2))) {
			give_up(s, o);
			return true;
		}
	}
	return false;
}
