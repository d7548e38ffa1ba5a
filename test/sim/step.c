/* SPDX-License-Identifier: Apache-2.0 */
/* A step of one machine, and its runtime's handling of the effects. */
#include "test/sim/sim.h"

static void do_effects(struct sim *s, uint32_t r);

int sim_step(struct sim *s, uint32_t r, const struct rp_event *ev, struct rp_fork *rec)
{
	struct machine *k = &s->machines[r];
	struct rp_counts before, after;
	const char *text;
	size_t nr;
	int rc;

	if (sim_failed(s))
		return -EIO;
	/* The worker died at an effect of this very decision. */
	if (r == s->dying)
		return 0;
	s->result->steps++;
	rp_counts(k->m, &before);
	sim_trace_event(s, r, ev);
	rc = rp_step(k->m, ev, rec);
	sim_trace_effects(s, r, rc);
	rp_effects(k->m, &nr);
	if (rc && nr)
		sim_fail(s, "event %d failed (%d) and had effects", (int)ev->type, rc);
	if (rc == -EPROTO && !s->attacking)
		sim_fail(s, "worker %u refused event %d, message %d", r, (int)ev->type,
			 ev->msg ? (int)ev->msg->type : 0);
	text = tl_rp_check(k->m);
	if (text)
		sim_fail(s, "worker %u after event %d, message %d: %s", r, (int)ev->type,
			 ev->msg ? (int)ev->msg->type : 0, text);
	rp_counts(k->m, &after);
	if (after.forks < before.forks)
		sim_check_recorded(s, r);
	if (s->attacking && after.forks > before.forks)
		sim_check_held(s, r);
	if (!rc)
		do_effects(s, r);
	return rc;
}

/* Drops the handle: the machine learns of it when no READ pins the handle any more. */
static void drop(struct sim *s, struct handle *h)
{
	struct rp_event ev = { .type = h->claim ? RP_EV_DROP : RP_EV_RELEASE,
			       .id = h->obj->id,
			       .fork = h->fork };

	if (h->dropped)
		return;
	h->dropped = true;
	if (h->claim)
		h->claim->state = CLAIM_OVER;
	else
		h->obj->local--;
	if (sim_step(s, h->machine, &ev, NULL))
		sim_fail(s, "a handle of worker %u could not be released", h->machine);
}

void sim_release(struct sim *s, struct handle *h)
{
	struct machine *k = &s->machines[h->machine];

	if (!h->released) {
		h->released = true;
		for (size_t i = 0; i < k->nr_handles; i++)
			if (k->handles[i] == h)
				k->handles[i] = k->handles[--k->nr_handles];
	}
	if (!h->reads)
		drop(s, h);
}

void sim_later(struct sim *s, struct todo t)
{
	s->todo = sim_grow(s->todo, s->nr_todo, &s->max_todo, sizeof(*s->todo));
	s->todo[s->nr_todo++] = t;
}

void sim_todo(struct sim *s)
{
	while (s->nr_todo && !s->depth && !sim_failed(s)) {
		struct todo t = s->todo[--s->nr_todo];
		const struct machine *k = &s->machines[t.handle->machine];

		if (!k->alive || k->inc != t.handle->inc || t.handle->machine == s->dying)
			continue;
		if (t.what == TODO_RELEASE)
			sim_release(s, t.handle);
		else if (t.what == TODO_READ && !t.handle->released)
			sim_to_here(s, t.handle);
		else if (t.what == TODO_RETURN && !t.handle->released && s->machines[t.to].alive)
			sim_share(s, t.handle->machine, t.to, t.handle);
	}
}

static struct cookie *take_cookie(struct sim *s, uint32_t r, uint64_t cookie, int kind)
{
	struct cookie *c = cookie && cookie <= s->nr_cookies ? &s->cookies[cookie - 1] : NULL;

	if (!c || (int)c->kind != kind || c->machine != r || c->inc != s->machines[r].inc) {
		sim_fail(s, "worker %u: a cookie that is not its own", r);
		return NULL;
	}
	return c;
}

static void on_new_handle(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct cookie *c = take_cookie(s, r, e->cookie, COOKIE_READY);
	struct object *o = c ? c->obj : NULL;
	struct handle *h;

	if (!o)
		return;
	if (c->over || c->call->handles[c->slot] || !sim_same(e->id, o->id))
		sim_fail(s, "a second handle for a record");
	if (e->fork.local_id) {
		c->claim->state = CLAIM_RECEIVED;
		h = sim_add_handle(s, r, o, e->fork, c->claim);
		*e->handle_slot = h;
		/* No worker reads by it before it is confirmed. */
		h->loc = e->loc;
		if (h->loc.version && h->loc.nonce != o->nonce && o->owner != s->evil)
			sim_fail(s, "a new handle has another value's location");
	} else {
		if (c->claim->evil && !sim_is_given(s, o))
			sim_fail(s,
				 "worker %u gets its own value by a record of one that it was not "
				 "shared with",
				 r);
		o->local++;
		c->claim->state = CLAIM_OVER;
		h = sim_add_handle(s, r, o, e->fork, NULL);
	}
	c->call->handles[c->slot] = h;
}

/* Runs the handler when all references of a call are confirmed. It reads them, keeps some, gives
 * one back, and releases the others. */
static void handle_call(struct sim *s, struct incoming *call)
{
	for (unsigned i = 0; i < call->nr; i++) {
		struct handle *h = call->handles[i];

		/* A reference that came before its call was ready may be in a value already. */
		if (!h || h->nested_in)
			continue;
		if (h->failed || call->refuse || sim_chance(s, 40))
			sim_later(s, (struct todo){ TODO_RELEASE, h, 0 });
		/* The last one in is the first one out: it is returned before its release. */
		if (!h->failed && !call->refuse && sim_chance(s, 15))
			sim_later(s, (struct todo){ TODO_RETURN, h, call->from });
		if (!h->failed && !call->refuse && sim_chance(s, 30))
			sim_later(s, (struct todo){ TODO_READ, h, 0 });
	}
}

static void on_ready(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct cookie *c = take_cookie(s, r, e->cookie, COOKIE_READY);
	struct incoming *call;
	struct handle *h;

	if (!c)
		return;
	if (c->over)
		sim_fail(s, "READY twice");
	c->over = true;
	call = c->call;
	h = call->handles[c->slot];
	if (!e->status && !h)
		sim_fail(s, "READY(0) without a handle");
	if (e->status) {
		call->failed = true;
		s->result->refused_records++;
		if (!s->broken && !sim_may_fail(s, c->claim) && !c->claim->evil &&
		    !c->claim->refused)
			sim_fail(s,
				 "worker %u: a record was refused (%d) in a run without crashes: "
				 "%s",
				 r, e->status, e->text);
		c->claim->state = CLAIM_OVER;
	} else {
		if (c->claim->evil && !sim_is_given(s, c->obj))
			sim_fail(s,
				 "worker %u: a record of one that its value was not shared with is "
				 "confirmed",
				 r);
		c->claim->confirmed = true;
		if (c->claim->state == CLAIM_RECEIVED)
			c->claim->state = CLAIM_CONFIRMED;
	}
	if (h && e->status)
		h->failed = true;
	if (--call->waiting == 0)
		handle_call(s, call);
}

static void on_waited(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct cookie *c = take_cookie(s, r, e->cookie, COOKIE_WAIT);
	bool evil;

	if (!c)
		return;
	if (c->over)
		sim_fail(s, "WAITED twice");
	c->over = true;
	evil = c->obj->owner == s->evil || (c->handle->claim && c->handle->claim->evil);
	if (!e->status && c->obj->owner != s->evil &&
	    (!c->obj->set || (r != c->obj->owner && e->loc.nonce != c->obj->nonce)))
		sim_fail(s, "a wait brought another value");
	if (!e->status && r == c->obj->owner && e->value != c->obj)
		sim_fail(s, "a wait on the owner brought another value");
	if (e->status && e->status != -ECANCELED && !s->broken && !c->obj->gave_up && !evil &&
	    !(c->handle->claim && c->handle->claim->refused))
		sim_fail(s, "a wait failed (%d) in a run without crashes: %s", e->status, e->text);
	if (e->status || c->handle->released)
		return;
	if (c->handle->claim)
		sim_read_post(s, c->handle, &e->loc);
	else
		sim_local_read(s, c->obj);
}

static void on_handle(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct handle *h = e->handle;

	if (!h || h->machine != r || h->inc != s->machines[r].inc || !sim_same(h->fork, e->fork)) {
		sim_fail(s, "worker %u: effect %d with a wrong handle", r, (int)e->type);
		return;
	}
	if (e->type != RP_EFF_CREATED && h->dropped)
		sim_fail(s, "worker %u: effect %d of a released handle", r, (int)e->type);
	if (e->type == RP_EFF_LOCATION) {
		h->loc = e->loc;
		if (e->loc.nonce != h->obj->nonce && h->obj->owner != s->evil)
			sim_fail(s, "a handle got another value's location");
	}
	if (e->type == RP_EFF_CREATED) {
		if (h->obj->created)
			sim_fail(s, "CREATED twice");
		h->obj->created = true;
		if (e->status && !s->broken && !h->obj->gave_up)
			sim_fail(s, "a creation failed: %d %s", e->status, e->text);
	}
	if (e->type == RP_EFF_FAILED) {
		h->failed = true;
		h->claim->state = CLAIM_OVER;
	} else if (e->type != RP_EFF_CREATED) {
		h->claim->confirmed = true;
		if (h->claim->state == CLAIM_RECEIVED)
			h->claim->state = CLAIM_CONFIRMED;
	}
}

/* Frees the references in the value, which go with it. */
static void free_nested(struct sim *s, const struct object *o)
{
	struct machine *k = &s->machines[o->owner];

	for (size_t i = 0; i < k->nr_handles; i++)
		if (k->handles[i]->nested_in == o)
			sim_later(s, (struct todo){ TODO_RELEASE, k->handles[i], 0 });
}

static void on_gone(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct object *o = e->type == RP_EFF_FREE_VALUE ? e->value : sim_object_of(s, e->id);

	if (!o || o->owner != r || o->owner_inc != s->machines[r].inc) {
		sim_fail(s, "worker %u erases what it does not own", r);
		return;
	}
	sim_check_unreferenced(s, o, e->type == RP_EFF_GONE ? "GONE" : "FREE_VALUE");
	if (e->type == RP_EFF_FREE_VALUE) {
		if (o->freed || o->gone || !o->set) {
			sim_fail(s, "freed twice, or before it was set");
			return;
		}
		o->freed = true;
		s->result->freed++;
		sim_memory_free(s, o);
		free_nested(s, o);
	} else {
		if (o->gone || o->valued != o->freed)
			sim_fail(s, "gone twice, or without its value");
		o->gone = true;
	}
}

static void on_send(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	if (e->peer == s->evil)
		sim_check_told(s, r, &e->msg);
	if (e->msg.type == RP_MSG_FORK_ACK && e->msg.status && !s->attacking)
		sim_check_refusal(s, r, &e->msg);
	if (e->msg.type == RP_MSG_DELETE) {
		struct claim *c = sim_claim_of(s, e->msg.fork);

		if (!c || c->deleted)
			sim_fail(s, "worker %u deletes a fork twice, or one that never was", r);
		else if (c->owner_lost)
			sim_fail(s,
				 "worker %u deletes a fork that was lost with the owner's session",
				 r);
		else
			c->deleted = true;
	}
	struct rp_msg msg = e->msg;

	if (e->value)
		sim_memory_locate(e->value, &msg.loc);
	sim_push(s, r, e->peer, &msg, NULL);
	s->result->messages++;
}

static void do_effects(struct sim *s, uint32_t r)
{
	const struct rp_effect *effects;
	struct rp_effect *copy;
	size_t nr;

	effects = rp_effects(s->machines[r].m, &nr);
	if (!nr || sim_failed(s))
		return;
	copy = malloc(nr * sizeof(*copy));
	if (!copy)
		abort();
	memcpy(copy, effects, nr * sizeof(*copy));
	for (size_t i = 0; i < nr; i++)
		rp_effect_next(s->machines[r].m);
	s->depth++;
	/* Handles come first: their slots are valid until the next
	 * step, which the rest may make. */
	for (size_t i = 0; i < nr; i++)
		if (copy[i].type == RP_EFF_NEW_HANDLE)
			on_new_handle(s, r, &copy[i]);
	for (size_t i = 0; i < nr && !sim_failed(s) && s->dying != r; i++) {
		const struct rp_effect *e = &copy[i];

		switch (e->type) {
		case RP_EFF_SEND:
			on_send(s, r, e);
			break;
		case RP_EFF_NEW_HANDLE:
			break;
		case RP_EFF_DUPLICATE:
			s->duplicate = true;
			break;
		case RP_EFF_READY:
			on_ready(s, r, e);
			break;
		case RP_EFF_LOCATION:
		case RP_EFF_CONFIRMED:
		case RP_EFF_FAILED:
		case RP_EFF_CREATED:
			on_handle(s, r, e);
			break;
		case RP_EFF_WAITED:
			on_waited(s, r, e);
			break;
		case RP_EFF_FREE_VALUE:
		case RP_EFF_GONE:
			on_gone(s, r, e);
			break;
		}
		if (r == s->doomed && !--s->doom) {
			sim_note(s, "   w%u dies here", r);
			s->dying = r;
		}
	}
	free(copy);
	s->depth--;
	sim_todo(s);
	/* Effects without room come when no other effect is left, after all earlier ones. */
	if (!s->depth && !sim_failed(s) && s->dying != r) {
		if (rp_effects(s->machines[r].m, &nr) && !nr)
			rp_effects_clear(s->machines[r].m);
		do_effects(s, r);
	}
}
