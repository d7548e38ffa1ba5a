/* SPDX-License-Identifier: Apache-2.0 */
/* The random program: the workers' actions, and their reactions to messages. */
#include "test/sim/sim.h"

#define BURST (RP_TOMBSTONES_MAX + 80u)

/* ---- arrivals ------------------------------------------------------------------------------- */

/* Does the runtime's work for the owner's incarnation. Returns 0,
 * or the reason to refuse the record. */
static int judge_incarnation(struct sim *s, uint32_t r, uint32_t owner, uint32_t inc)
{
	struct view *v = &s->machines[r].views[owner];

	if (owner == r)
		return inc == s->machines[r].inc ? 0 : -ESTALE;
	/* News of a restart: any messenger ends the old session. */
	while (v->inc < inc && v->coming && v->coming_inc >= inc && !s->parted[r][owner] &&
	       !sim_failed(s)) {
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

static void own(struct sim *s, uint32_t from, uint32_t to, struct call *call, struct incoming *in)
{
	/* Repeated creations are possible: the machine knows them. */
	struct rp_event ev = { .type = RP_EV_OWN,
			       .id = call->create->id,
			       .fork = call->create->fork,
			       .peer = from,
			       .word = call->create->word };

	s->duplicate = false;
	if (sim_step(s, to, &ev, NULL))
		sim_fail(s, "OWN failed");
	else if (s->dying == to)
		return;
	else if (s->duplicate && call->create->known && !call->seen)
		sim_fail(s, "OWN of a new call is a duplicate");
	else if (!s->duplicate && call->create->known)
		sim_fail(s, "a creation is run twice");
	else if (!s->duplicate)
		call->create->known = true;
	if (in) {
		in->refuse = s->duplicate;
		call->create->args = in;
	}
}

static void deliver_record(struct sim *s, uint32_t from, uint32_t to, struct call *call,
			   struct incoming *in, unsigned i)
{
	struct rp_event ev = { .type = RP_EV_RECV_FORK, .peer = from, .rec = &call->recs[i] };
	int rc;

	ev.status = judge_incarnation(s, to, call->recs[i].owner, call->owner_inc[i]);
	/* An unexpected type, for example. */
	if (!ev.status && sim_chance(s, 3)) {
		ev.status = -EPROTOTYPE;
		ev.text = "the runtime refuses it";
		call->claims[i]->refused = true;
	}
	ev.cookie = sim_add_cookie(s,
				   (struct cookie){ .kind = COOKIE_READY,
						    .obj = call->claims[i]->obj,
						    .claim = call->claims[i],
						    .call = in,
						    .slot = i },
				   to);
	rc = sim_step(s, to, &ev, NULL);
	/* The restart may have been the sender's. */
	if (rc && !sim_failed(s) && s->machines[to].views[from].state != LINK_UP) {
		s->cookies[ev.cookie - 1].over = true;
		call->claims[i]->state = CLAIM_OVER;
		in->waiting--;
		in->failed = true;
	} else if (rc) {
		sim_fail(s, "RECV_FORK: %d", rc);
	}
	if (in->refuse && in->handles[i] && s->dying != to)
		sim_release(s, in->handles[i]);
}

static void deliver_take(struct sim *s, uint32_t from, uint32_t to, struct call *call);

static void deliver_call(struct sim *s, uint32_t from, uint32_t to, struct call *call)
{
	struct incoming *in = NULL;

	call->copies--;
	if (call->take) {
		deliver_take(s, from, to, call);
		return;
	}
	if (!call->seen) {
		in = sim_make(s, sizeof(*in));
		in->nr = in->waiting = call->nr;
		in->from = from;
		in->refuse = sim_chance(s, 10);
	}
	/* This comes before its references are confirmed: children
	 * of the new value may ask for it. */
	if (call->create)
		own(s, from, to, call, in);
	call->seen = true;
	/* The runtime knows the call's id: its records are handed in once. */
	for (unsigned i = 0; in && i < call->nr && !sim_failed(s); i++)
		deliver_record(s, from, to, call, in, i);
}

bool sim_deliver(struct sim *s)
{
	struct packet *p;
	struct rp_event ev = { .type = RP_EV_MSG };
	int rc;

	if (s->nr_reads && sim_chance(s, 30) && sim_read_run(s))
		return true;
	p = sim_pick(s);
	if (!p)
		return sim_read_run(s);
	if (p->call) {
		deliver_call(s, p->from, p->to, p->call);
	} else {
		ev.peer = p->from;
		ev.msg = &p->msg;
		rc = sim_step(s, p->to, &ev, NULL);
		if (rc)
			sim_fail(s, "message %d: %d", (int)p->msg.type, rc);
	}
	sim_arrived(s, p);
	return true;
}

/* ---- the program ----------------------------------------------------------------------------- */

/* Puts references into some values. They refer only to values that were
 * set before: circles are not collected. */
static void nest(struct sim *s, struct object *o)
{
	for (unsigned i = 0; i < 2 && sim_chance(s, 30); i++) {
		struct handle *h = sim_pick_handle(s, o->owner, false);

		if (h && h->obj != o && h->obj->set && !h->reads) {
			h->nested_in = o;
			o->nr_nested++;
			sim_note(s, "   w%u puts a reference of %u/%u into it", o->owner,
				 h->obj->id.created_on, (unsigned)h->obj->id.local_id);
		}
	}
}

static void set_value(struct sim *s, struct object *o)
{
	struct rp_event ev = { .type = RP_EV_SET, .id = o->id };

	o->set = true;
	if (sim_chance(s, 85) && !(o->args && o->args->failed)) {
		ev.value = o;
		o->valued = true;
		sim_memory_set(s, o);
		nest(s, o);
	} else {
		ev.status = -ECREATE;
		ev.text = "made to fail";
		o->gave_up = true;
	}
	if (sim_step(s, o->owner, &ev, NULL))
		sim_fail(s, "SET failed");
}

static void create_local(struct sim *s, uint32_t r)
{
	struct object *o = sim_add_object(s, r, r, s->machines[r].inc);
	struct rp_event ev = { .type = RP_EV_NEW, .id = o->id };

	o->known = o->created = true;
	o->local = 1;
	sim_add_handle(s, r, o, (struct rref_id){ 0 }, NULL);
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "NEW failed");
	if (sim_chance(s, 60) && s->dying != r)
		set_value(s, o);
}

/* Adds a record to a call. src: its owner's handle. */
static void add_record(struct sim *s, uint32_t r, uint32_t to, struct call *call, struct handle *h,
		       struct handle **src)
{
	const struct machine *k = &s->machines[r];
	struct rp_event ev = { .type = RP_EV_FORK,
			       .id = h->obj->id,
			       .src = h->fork,
			       .fork = sim_new_id(s, r),
			       .peer = to };
	struct rp_fork *rec = &call->recs[call->nr];
	struct claim *c;
	int rc;

	if (!h->claim)
		ev.word = sim_word(s, ev.fork);
	rc = sim_step(s, r, &ev, rec);

	/* The ledger has no claim before the machine: it may refuse. */
	if (rc) {
		if (!h->failed && k->views[to].state == LINK_UP)
			sim_fail(s, "FORK failed: %d", rc);
		return;
	}
	if (rec->value)
		sim_memory_locate(rec->value, &rec->loc);
	if (h->failed && h->claim && s->dying != r)
		sim_fail(s, "a failed reference could be shared");
	if (!h->claim && !h->obj->word)
		h->obj->word = rec->word;
	if (s->dying != r && !(h->claim && h->claim->evil) &&
	    (!rec->word || rec->word != h->obj->word))
		sim_fail(s, "a record does not carry its value's word");
	call->owner_inc[call->nr] = h->obj->owner_inc;
	c = sim_add_claim(s, h->obj, h->claim, to);
	c->holder_inc = k->views[to].inc;
	c->fork = ev.fork;
	c->early = rec->flags & RP_FORK_EARLY;
	call->claims[call->nr] = c;
	src[call->nr++] = h;
}

static void undo_records(struct sim *s, uint32_t r, uint32_t to, struct call *call,
			 struct handle **src)
{
	for (unsigned i = 0; i < call->nr; i++) {
		struct rp_event ev = { .type = RP_EV_FORK_UNDO,
				       .id = call->recs[i].id,
				       .fork = call->recs[i].fork,
				       .src = src[i]->fork,
				       .peer = to };

		call->claims[i]->state = CLAIM_OVER;
		if (s->dying != r && sim_step(s, r, &ev, NULL))
			sim_fail(s, "UNDO failed");
	}
}

/* ---- references in values ------------------------------------------------------------------- */

void sim_take(struct sim *s, struct handle *h)
{
	const struct view *v = &s->machines[h->machine].views[h->obj->owner];
	struct call *call;

	if (h->failed || h->dropped || !v->epoch)
		return;
	call = sim_make(s, sizeof(*call));
	call->take = h;
	h->reads++;
	sim_note(s, "   w%u asks w%u for what %u/%u holds", h->machine, h->obj->owner,
		 h->obj->id.created_on, (unsigned)h->obj->id.local_id);
	sim_push(s, h->machine, h->obj->owner, NULL, call);
}

/* Shares all references in the value, as in any answer. */
static void give_nested(struct sim *s, uint32_t r, uint32_t to, struct object *o)
{
	struct machine *k = &s->machines[r];
	struct handle *nested[MAX_RECS], *src[MAX_RECS];
	struct call *call = sim_make(s, sizeof(*call));
	unsigned nr = 0;

	for (size_t i = 0; i < k->nr_handles; i++) {
		if (k->handles[i]->nested_in != o)
			continue;
		if (nr < MAX_RECS)
			nested[nr] = k->handles[i];
		nr++;
	}
	if (nr != o->nr_nested)
		sim_fail(s,
			 "a value that is there holds %u references, not the %u that were put in",
			 nr, o->nr_nested);
	for (unsigned i = 0; i < nr && i < MAX_RECS && !sim_failed(s); i++)
		add_record(s, r, to, call, nested[i], src);
	if (call->nr && sim_chance(s, 10))
		undo_records(s, r, to, call, src);
	else if (call->nr)
		sim_push(s, r, to, NULL, call);
}

static void deliver_take(struct sim *s, uint32_t from, uint32_t to, struct call *call)
{
	struct handle *h = call->take;
	struct object *o = h->obj;
	const struct claim *c = h->claim;
	void *value = NULL;
	int rc;

	if (call->seen || to == s->dying)
		return;
	call->seen = true;
	rc = rp_held_value(s->machines[to].m, from, &o->id, &h->fork, &value);
	if (h->dropped && s->machines[from].alive && s->machines[from].inc == h->inc)
		sim_fail(s, "a reference ended while what its value holds was asked for");
	if (rc && sim_owner_alive(s, o) && c->state != CLAIM_OVER && !c->lost)
		sim_fail(s, "worker %u does not find the value that worker %u holds: %d", to, from,
			 rc);
	if (!rc && (value != o || o->freed || !sim_owner_alive(s, o)))
		sim_fail(s, "worker %u finds another value than worker %u holds, or none", to,
			 from);
	if (!rc && !sim_failed(s))
		give_nested(s, to, from, o);
	sim_unpin(s, h);
}

static void let_go(struct sim *s, uint32_t r, const struct call *call, struct handle **src)
{
	/* A program may release a reference that it has just shared. */
	for (unsigned i = 0; i < call->nr; i++)
		if (!src[i]->released && !src[i]->nested_in && sim_chance(s, 30) && s->dying != r)
			sim_release(s, src[i]);
}

void sim_create(struct sim *s, uint32_t r, uint32_t owner)
{
	struct machine *k = &s->machines[r];
	struct handle *src[MAX_RECS], *h;
	struct rp_event ev = { .type = RP_EV_CREATE, .peer = owner };
	struct object *o;
	struct claim *c;
	struct call *call;
	int rc;

	if (owner == r) {
		create_local(s, r);
		return;
	}
	o = sim_add_object(s, r, owner, k->views[owner].inc);
	o->fork = sim_new_id(s, r);
	o->timed_out = o->gave_up = owner == s->evil;
	c = sim_add_claim(s, o, NULL, r);
	c->fork = o->fork;
	c->state = CLAIM_RECEIVED;
	h = sim_add_handle(s, r, o, o->fork, c);
	o->word = sim_word(s, o->id);
	ev.id = o->id;
	ev.fork = o->fork;
	ev.handle = h;
	ev.word = o->word;
	rc = sim_step(s, r, &ev, NULL);
	if (rc) {
		if (k->views[owner].state == LINK_UP)
			sim_fail(s, "CREATE failed: %d", rc);
		c->state = CLAIM_OVER;
		o->created = h->released = h->dropped = true;
		k->nr_handles--;
		return;
	}
	call = sim_make(s, sizeof(*call));
	call->create = o;
	while (call->nr < MAX_RECS && sim_chance(s, 25)) {
		struct handle *arg = sim_pick_handle(s, r, true);

		if (arg != h)
			add_record(s, r, owner, call, arg, src);
	}
	if (sim_chance(s, 10)) {
		o->unsent = true;
		undo_records(s, r, owner, call, src);
		return;
	}
	sim_push(s, r, owner, NULL, call);
	let_go(s, r, call, src);
}

void sim_share(struct sim *s, uint32_t r, uint32_t to, struct handle *only)
{
	struct call *call = sim_make(s, sizeof(*call));
	struct handle *src[MAX_RECS];
	unsigned nr = only ? 1 : 1 + sim_rnd(s, MAX_RECS);
	bool undo = sim_chance(s, 10);

	for (unsigned i = 0; i < nr && s->machines[r].nr_handles; i++)
		add_record(s, r, to, call, only ? only : sim_pick_handle(s, r, true), src);
	if (!call->nr)
		return;
	if (undo) {
		undo_records(s, r, to, call, src);
		return;
	}
	sim_push(s, r, to, NULL, call);
	let_go(s, r, call, src);
}

void sim_to_here(struct sim *s, struct handle *h)
{
	struct rp_event ev = { .type = RP_EV_WAIT, .id = h->obj->id, .fork = h->fork };

	/* The type is known already: the fast path sends no question. */
	if (h->claim && h->claim->confirmed && h->loc.version && !h->failed && sim_chance(s, 70)) {
		sim_read_post(s, h, &h->loc);
		return;
	}
	ev.cookie = sim_add_cookie(s,
				   (struct cookie){
					   .kind = COOKIE_WAIT, .obj = h->obj, .handle = h },
				   h->machine);
	if (sim_step(s, h->machine, &ev, NULL))
		sim_fail(s, "WAIT failed");
	if (sim_chance(s, 15) && s->dying != h->machine) {
		bool over = s->cookies[ev.cookie - 1].over;
		int rc;

		ev.type = RP_EV_UNWAIT;
		s->cookies[ev.cookie - 1].over = true;
		rc = sim_step(s, h->machine, &ev, NULL);
		if (rc != (over ? -ESTALE : 0))
			sim_fail(s, "UNWAIT: %d", rc);
	}
}

void sim_retain(struct sim *s, struct handle *h)
{
	struct rp_event ev = { .type = RP_EV_RETAIN, .id = h->obj->id };

	if (h->claim)
		return;
	h->obj->local++;
	sim_add_handle(s, h->machine, h->obj, h->fork, NULL);
	if (sim_step(s, h->machine, &ev, NULL))
		sim_fail(s, "RETAIN failed");
}

static void give_up(struct sim *s, struct object *o)
{
	struct rp_event ev = { .type = RP_EV_CREATE_FAILED,
			       .fork = o->fork,
			       .status = -ETIMEDOUT,
			       .text = "the creation timed out" };
	struct claim *c = sim_claim_of(s, o->fork);

	o->gave_up = o->timed_out = true;
	/* The ledger comes first: the machine may tell the owner in this step. */
	if (c)
		c->state = CLAIM_OVER;
	if (sim_step(s, o->creator, &ev, NULL))
		sim_fail(s, "CREATE_FAILED failed");
}

/* Does a thing that takes time: a value is set, or a creation is given up. */
bool sim_be_late(struct sim *s, bool all)
{
	for (size_t i = s->nr_objects; i--;) {
		struct object *o = s->objects[i];

		if (o->known && !o->set && !o->gone && sim_owner_alive(s, o) &&
		    !(o->args && o->args->waiting) && (all || sim_chance(s, 40))) {
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

/* Makes more creations than tombstones are kept, each made, told and deleted at once. */
void sim_burst(struct sim *s)
{
	uint32_t r = sim_pick_alive(s), owner = (r + 1) % s->n;
	struct machine *k = &s->machines[r];

	for (unsigned i = 0; i < BURST && !sim_failed(s); i++) {
		size_t nr = k->nr_handles;

		sim_create(s, r, owner);
		if (k->nr_handles > nr)
			sim_release(s, k->handles[k->nr_handles - 1]);
		while (sim_deliver(s) || sim_be_late(s, true))
			;
	}
}
