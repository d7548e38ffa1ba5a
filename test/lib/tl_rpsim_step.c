/* SPDX-License-Identifier: Apache-2.0 */
/* A step of one machine, and what its runtime would do about the effects. */
#include "test/lib/tl_rpsim_internal.h"

/* ---- steps and their effects ------------------------------------------------------------------------------- */

static void do_effects(struct sim *s, uint32_t r);

/* RP_TRACE: one line for each step and effect, to read how a seed fails. */
static void trace(const struct sim *s, uint32_t r, const struct rp_event *ev, int rc)
{
	static const char *const events[] = { "?", "NEW", "SET", "RETAIN", "RELEASE", "CREATE", "CREATE_FAILED", "FORK", "FORK_UNDO",
		"RECV_FORK", "DROP", "WAIT", "UNWAIT", "OWN", "MSG", "PEER_UP", "PEER_FENCED", "PEER_GRACE" };
	static const char *const effects[] = { "?", "SEND", "NEW_HANDLE", "READY", "LOCATION", "CONFIRMED", "FAILED", "CREATED",
		"WAITED", "FREE_VALUE", "GONE", "DUPLICATE" };
	static const char *const messages[] = { "?", "FORK_REQUEST", "FORK_ACK", "CHILD_ACCEPT", "DELETE", "FETCH", "FETCH_REPLY",
		"CREATED", "PARENT_REQUEST", "PARENT_ACK" };
	const struct rp_msg *msg = ev->type == RP_EV_MSG ? ev->msg : NULL;
	const struct rref_id *id = msg ? &msg->id : ev->rec ? &ev->rec->id : &ev->id;
	const struct rref_id *fork = msg ? &msg->fork : ev->rec ? &ev->rec->fork : &ev->fork;
	const struct rp_effect *e;
	size_t nr;

	fprintf(stderr, "%u: %s %s id %u/%llx fork %u/%llx src %u/%llx peer %u status %d%s -> %d\n", r, events[ev->type],
		msg ? messages[msg->type] : "", id->created_on, (unsigned long long)id->local_id, fork->created_on,
		(unsigned long long)fork->local_id, ev->src.created_on, (unsigned long long)ev->src.local_id, ev->peer,
		msg ? msg->status : ev->status, ev->rec && ev->rec->flags ? " early" : "", rc);
	e = rp_effects(s->machines[r].m, &nr);
	for (; nr--; e++)
		fprintf(stderr, "      %s %s peer %u fork %u/%llx status %d\n", effects[e->type],
			e->type == RP_EFF_SEND ? messages[e->msg.type] : "", e->peer,
			e->type == RP_EFF_SEND ? e->msg.fork.created_on : e->fork.created_on,
			(unsigned long long)(e->type == RP_EFF_SEND ? e->msg.fork.local_id : e->fork.local_id),
			e->type == RP_EFF_SEND ? e->msg.status : e->status);
}

int sim_step(struct sim *s, uint32_t r, const struct rp_event *ev, struct rp_fork *rec)
{
	struct machine *k = &s->machines[r];
	const char *text;
	size_t nr;
	int rc;

	if (sim_failed(s))
		return -EIO;
	s->result->steps++;
	rc = rp_step(k->m, ev, rec);
	if (s->trace)
		trace(s, r, ev, rc);
	rp_effects(k->m, &nr);
	if (rc && nr)
		sim_fail(s, "event %d failed (%d) and had effects", (int)ev->type, rc);
	if (rc == -EPROTO && !s->attacking)
		sim_fail(s, "worker %u refused event %d, message %d", r, (int)ev->type, ev->msg ? (int)ev->msg->type : 0);
	text = tl_rp_check(k->m);
	if (text)
		sim_fail(s, "worker %u after event %d, message %d: %s", r, (int)ev->type, ev->msg ? (int)ev->msg->type : 0, text);
	if (!rc)
		do_effects(s, r);
	return rc;
}

void sim_release(struct sim *s, struct handle *h)
{
	struct machine *k = &s->machines[h->machine];
	struct rp_event ev = { .type = h->claim ? RP_EV_DROP : RP_EV_RELEASE, .id = h->obj->id, .fork = h->fork };

	h->released = true;
	for (size_t i = 0; i < k->nr_handles; i++)
		if (k->handles[i] == h)
			k->handles[i] = k->handles[--k->nr_handles];
	if (h->claim)
		h->claim->state = CLAIM_OVER;
	else
		h->obj->local--;
	if (sim_step(s, h->machine, &ev, NULL))
		sim_fail(s, "a handle of worker %u could not be released", h->machine);
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

	if (!o)
		return;
	if (c->over || c->call->handles[c->slot] || !sim_same(e->id, o->id))
		sim_fail(s, "a second handle for a record");
	if (e->fork.local_id) {
		c->claim->state = CLAIM_RECEIVED;
		c->call->handles[c->slot] = sim_add_handle(s, r, o, e->fork, c->claim);
		*e->handle_slot = c->call->handles[c->slot];
	} else {
		o->local++;
		c->claim->state = CLAIM_OVER;
		c->call->handles[c->slot] = sim_add_handle(s, r, o, e->fork, NULL);
	}
}

/* The answer to one record of a call. Once all are in, the handler keeps some of the references. */
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
	if (!e->status && !h && !call->refuse)
		sim_fail(s, "READY(0) without a handle");
	if (e->status) {
		s->result->refused_records++;
		if (!s->broken && !c->obj->timed_out && !c->claim->evil)
			sim_fail(s, "worker %u: a record was refused (%d) in a run without crashes: %s", r, e->status, e->text);
		c->claim->state = CLAIM_OVER;
	} else if (c->claim->state == CLAIM_RECEIVED) {
		c->claim->state = CLAIM_CONFIRMED;
	}
	if (h && e->status)
		h->failed = true;
	if (--call->waiting)
		return;
	for (unsigned i = 0; i < call->nr; i++)
		if (call->handles[i] && (call->handles[i]->failed || sim_chance(s, 40))) {
			s->doomed = sim_grow(s->doomed, s->nr_doomed, &s->max_doomed, sizeof(*s->doomed));
			s->doomed[s->nr_doomed++] = call->handles[i];
		}
}

static void on_waited(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct cookie *c = take_cookie(s, r, e->cookie, COOKIE_WAIT);

	if (!c)
		return;
	if (c->over)
		sim_fail(s, "WAITED twice");
	c->over = true;
	if (c->obj->owner == s->evil || (c->handle->claim && c->handle->claim->evil))
		return;
	if (!e->status && (e->loc.nonce != c->obj->nonce || !c->obj->set))
		sim_fail(s, "a wait brought another value");
	if (!e->status && r == c->obj->owner && e->value != c->obj)
		sim_fail(s, "a wait on the owner brought another value");
	if (e->status && e->status != -ECANCELED && !s->broken && !c->obj->gave_up)
		sim_fail(s, "a wait failed (%d) in a run without crashes: %s", e->status, e->text);
}

static void on_handle(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct handle *h = e->handle;

	if (!h || h->machine != r || h->inc != s->machines[r].inc || !sim_same(h->fork, e->fork)) {
		sim_fail(s, "worker %u: effect %d with a wrong handle", r, (int)e->type);
		return;
	}
	if (e->type != RP_EFF_CREATED && h->released)
		sim_fail(s, "worker %u: effect %d of a released handle", r, (int)e->type);
	if (e->type == RP_EFF_LOCATION && e->loc.nonce != h->obj->nonce && h->obj->owner != s->evil && !h->claim->evil)
		sim_fail(s, "a handle got another value's location");
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
	} else if (e->type != RP_EFF_CREATED && h->claim->state == CLAIM_RECEIVED) {
		h->claim->state = CLAIM_CONFIRMED;
	}
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
		if (o->freed || o->gone || !o->set)
			sim_fail(s, "freed twice, or before it was set");
		o->freed = true;
		s->result->freed++;
	} else {
		if (o->gone || o->valued != o->freed)
			sim_fail(s, "gone twice, or without its value");
		o->gone = true;
	}
}

static void do_effects(struct sim *s, uint32_t r)
{
	const struct rp_effect *effects;
	struct rp_effect *copy;
	size_t nr;

	effects = rp_effects(s->machines[r].m, &nr);
	if (!nr)
		return;
	copy = malloc(nr * sizeof(*copy));
	if (!copy)
		abort();
	memcpy(copy, effects, nr * sizeof(*copy));
	rp_effects_clear(s->machines[r].m);
	s->depth++;
	/* Handles first: their slots are valid until the next step, and what follows may make steps. */
	for (size_t i = 0; i < nr; i++)
		if (copy[i].type == RP_EFF_NEW_HANDLE)
			on_new_handle(s, r, &copy[i]);
	for (size_t i = 0; i < nr && !sim_failed(s); i++) {
		const struct rp_effect *e = &copy[i];

		switch (e->type) {
		case RP_EFF_SEND:
			sim_push(s, r, e->peer, &e->msg, NULL);
			s->result->messages++;
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
	}
	free(copy);
	while (--s->depth == 0 && s->nr_doomed && !sim_failed(s)) {
		struct handle *h = s->doomed[--s->nr_doomed];

		s->depth++;
		if (!h->released)
			sim_release(s, h);
	}
}
