/* SPDX-License-Identifier: Apache-2.0 */
#include "test/lib/tl_rpsim.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rp.h"
#include "test/lib/tl_rpcheck.h"

#define MAX_MACHINES 6u
#define MAX_RECS 3u
#define ECREATE ECHILD          /* of a creation that fails at its owner */

/* A value, from its announcement on. Its address is the runtime's value. */
struct object {
	struct rref_id id;
	uint32_t owner, owner_inc, creator;
	uint64_t nonce;
	bool known, set, freed, gone;   /* OWN or NEW was stepped; SET was; the effects came */
	bool valued;                    /* SET brought a value */
	bool created;                   /* CREATED effect came */
	bool unsent;                    /* the CREATE call never arrives */
	bool timed_out;                 /* CREATE_FAILED was stepped */
	bool gave_up;                   /* it was, or the owner set an error */
	struct rref_id fork;            /* the creator's */
	uint32_t local;                 /* references of the owner */
};

enum claim_state { CLAIM_FLYING, CLAIM_RECEIVED, CLAIM_CONFIRMED, CLAIM_OVER };

/* One fork in the ledger. */
struct claim {
	struct object *obj;
	struct claim *parent;           /* NULL: shared by the owner, or the creator's */
	uint32_t holder, holder_inc;
	enum claim_state state;
	struct rref_id fork;
	bool evil;                      /* comes of a hostile worker's record: promises nothing before it is confirmed */
	bool lost;                      /* the owner wrote its holder off (grace is over) */
	bool unpinned;                  /* its parent wrote its holder, or the owner, off */
};

struct handle {
	struct object *obj;
	struct rref_id fork;            /* zero: owned */
	struct claim *claim;            /* user */
	uint32_t machine, inc;
	bool released, failed;
};

struct incoming {
	unsigned waiting;
	unsigned nr;
	bool refuse;                    /* the call will not run: its handles are dropped at once */
	struct handle *handles[MAX_RECS];
};

struct cookie {
	enum { COOKIE_READY, COOKIE_WAIT } kind;
	uint32_t machine, inc;
	bool over;
	struct object *obj;
	struct claim *claim;
	struct incoming *call;
	unsigned slot;
	struct handle *handle;
};

struct call {
	unsigned nr, copies;
	bool seen;
	struct rp_fork recs[MAX_RECS];
	uint32_t owner_inc[MAX_RECS];
	struct claim *claims[MAX_RECS];
	struct object *create;          /* a creation, without records */
};

struct packet {
	struct packet *next;
	uint32_t from, to, epoch;
	struct rp_msg msg;
	struct call *call;              /* NULL: msg */
};

enum link_state { LINK_UP, LINK_LOST, LINK_FENCED, LINK_GRACED };

/* What a machine thinks of a peer. */
struct view {
	enum link_state state;
	uint32_t epoch;                 /* of the session it is in; 0 = none */
	uint32_t last;                  /* of the last session that it left */
	uint32_t coming;                /* of the session to enter once grace is over; 0 = none */
	uint32_t inc, coming_inc;       /* the peer's incarnation */
};

struct machine {
	struct rp *m;
	bool alive;
	uint32_t inc;
	uint64_t next_local;
	struct view views[MAX_MACHINES];
	struct handle **handles;        /* not released */
	size_t nr_handles, max_handles;
};

struct sim {
	uint64_t rng;
	unsigned n, flags;
	uint32_t epochs;
	struct machine machines[MAX_MACHINES];
	struct packet *links[MAX_MACHINES][MAX_MACHINES];
	struct object **objects;
	struct claim **claims;
	struct cookie *cookies;
	size_t nr_objects, max_objects, nr_claims, max_claims, nr_cookies, max_cookies;
	void **garbage;                 /* everything allocated, freed at the end */
	size_t nr_garbage, max_garbage;
	bool trace;
	bool attacking;                 /* this step is a hostile worker's doing */
	uint32_t evil;                  /* its rank, or n */
	unsigned depth;                 /* of do_effects */
	struct handle **doomed;         /* to be released when all effects of the step were seen */
	size_t nr_doomed, max_doomed;
	bool broken;                    /* a crash or cut has happened */
	bool duplicate;                 /* the last OWN was one */
	struct tl_rp_result *result;
};

static void fail(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void fail(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (s->result->text[0])
		return;
	va_start(ap, fmt);
	vsnprintf(s->result->text, sizeof(s->result->text), fmt, ap);
	va_end(ap);
}

static bool failed(const struct sim *s)
{
	return s->result->text[0];
}

static uint32_t rnd(struct sim *s, uint32_t n)
{
	s->rng += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = s->rng;
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t)((x >> 33) % n);
}

static bool chance(struct sim *s, uint32_t percent)
{
	return rnd(s, 100) < percent;
}

static void *grow(void *array, size_t nr, size_t *max, size_t bytes)
{
	if (nr < *max)
		return array;
	*max = *max ? 2 * *max : 64;
	array = realloc(array, *max * bytes);
	if (!array)
		abort();
	return array;
}

static void *make(struct sim *s, size_t bytes)
{
	void *p = calloc(1, bytes);

	if (!p)
		abort();
	s->garbage = grow(s->garbage, s->nr_garbage, &s->max_garbage, sizeof(*s->garbage));
	s->garbage[s->nr_garbage++] = p;
	return p;
}

static struct rref_id new_id(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];

	return (struct rref_id){ .local_id = (uint64_t)k->inc << 32 | ++k->next_local, .created_on = r };
}

static bool same(struct rref_id a, struct rref_id b)
{
	return a.local_id == b.local_id && a.created_on == b.created_on;
}

static struct object *object_of(struct sim *s, struct rref_id id)
{
	for (size_t i = 0; i < s->nr_objects; i++)
		if (same(s->objects[i]->id, id))
			return s->objects[i];
	return NULL;
}

static struct object *add_object(struct sim *s, uint32_t creator, uint32_t owner, uint32_t owner_inc)
{
	struct object *o = make(s, sizeof(*o));

	o->id = new_id(s, creator);
	o->owner = owner;
	o->owner_inc = owner_inc;
	o->creator = creator;
	o->nonce = s->nr_objects + 1000;
	s->objects = grow(s->objects, s->nr_objects, &s->max_objects, sizeof(*s->objects));
	s->objects[s->nr_objects++] = o;
	return o;
}

static struct claim *add_claim(struct sim *s, struct object *o, struct claim *parent, uint32_t holder)
{
	struct claim *c = make(s, sizeof(*c));

	c->obj = o;
	c->parent = parent;
	c->holder = holder;
	c->holder_inc = s->machines[holder].inc;
	c->evil = parent && parent->evil;
	s->claims = grow(s->claims, s->nr_claims, &s->max_claims, sizeof(*s->claims));
	s->claims[s->nr_claims++] = c;
	return c;
}

static struct handle *add_handle(struct sim *s, uint32_t r, struct object *o, struct rref_id fork, struct claim *claim)
{
	struct machine *k = &s->machines[r];
	struct handle *h = make(s, sizeof(*h));

	h->obj = o;
	h->fork = fork;
	h->claim = claim;
	h->machine = r;
	h->inc = k->inc;
	k->handles = grow(k->handles, k->nr_handles, &k->max_handles, sizeof(*k->handles));
	k->handles[k->nr_handles++] = h;
	return h;
}

static uint64_t add_cookie(struct sim *s, struct cookie c, uint32_t r)
{
	c.machine = r;
	c.inc = s->machines[r].inc;
	s->cookies = grow(s->cookies, s->nr_cookies, &s->max_cookies, sizeof(*s->cookies));
	s->cookies[s->nr_cookies++] = c;
	return s->nr_cookies;
}

static bool owner_alive(const struct sim *s, const struct object *o)
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

static void check_unreferenced(struct sim *s, const struct object *o, const char *what)
{
	if (o->local)
		fail(s, "%s of %llu: %u local references", what, (unsigned long long)o->id.local_id, o->local);
	for (size_t i = 0; i < s->nr_claims; i++) {
		const struct claim *c = s->claims[i];

		if (c->obj == o && c->state != CLAIM_OVER && !excused(c))
			fail(s, "%s of %u/%llx: worker %u still has a claim (%d)", what, o->id.created_on,
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

static void push(struct sim *s, uint32_t from, uint32_t to, const struct rp_msg *msg, struct call *call)
{
	struct view *there = &s->machines[to].views[from];
	unsigned copies = (s->flags & TL_RP_CHAOS) && chance(s, 20) ? 2 : 1;

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
			fail(s, "worker %u sends to worker %u, which it has fenced", from, to);
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
static void purge(struct sim *s, uint32_t from, uint32_t to)
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
static struct packet *pick(struct sim *s)
{
	uint32_t start = rnd(s, s->n * s->n);

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
		for (which = s->flags & TL_RP_CHAOS ? rnd(s, nr) : 0;; at = &(*at)->next)
			if ((*at)->epoch == s->machines[to].views[from].epoch && !which--)
				break;
		p = *at;
		*at = p->next;
		return p;
	}
	return NULL;
}

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

static int step(struct sim *s, uint32_t r, const struct rp_event *ev, struct rp_fork *rec)
{
	struct machine *k = &s->machines[r];
	const char *text;
	size_t nr;
	int rc;

	if (failed(s))
		return -EIO;
	s->result->steps++;
	rc = rp_step(k->m, ev, rec);
	if (s->trace)
		trace(s, r, ev, rc);
	rp_effects(k->m, &nr);
	if (rc && nr)
		fail(s, "event %d failed (%d) and had effects", (int)ev->type, rc);
	if (rc == -EPROTO && !s->attacking)
		fail(s, "worker %u refused event %d, message %d", r, (int)ev->type, ev->msg ? (int)ev->msg->type : 0);
	text = tl_rp_check(k->m);
	if (text)
		fail(s, "worker %u after event %d, message %d: %s", r, (int)ev->type, ev->msg ? (int)ev->msg->type : 0, text);
	if (!rc)
		do_effects(s, r);
	return rc;
}

static void release(struct sim *s, struct handle *h)
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
	if (step(s, h->machine, &ev, NULL))
		fail(s, "a handle of worker %u could not be released", h->machine);
}

static struct cookie *take_cookie(struct sim *s, uint32_t r, uint64_t cookie, int kind)
{
	struct cookie *c = cookie && cookie <= s->nr_cookies ? &s->cookies[cookie - 1] : NULL;

	if (!c || (int)c->kind != kind || c->machine != r || c->inc != s->machines[r].inc) {
		fail(s, "worker %u: a cookie that is not its own", r);
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
	if (c->over || c->call->handles[c->slot] || !same(e->id, o->id))
		fail(s, "a second handle for a record");
	if (e->fork.local_id) {
		c->claim->state = CLAIM_RECEIVED;
		c->call->handles[c->slot] = add_handle(s, r, o, e->fork, c->claim);
		*e->handle_slot = c->call->handles[c->slot];
	} else {
		o->local++;
		c->claim->state = CLAIM_OVER;
		c->call->handles[c->slot] = add_handle(s, r, o, e->fork, NULL);
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
		fail(s, "READY twice");
	c->over = true;
	call = c->call;
	h = call->handles[c->slot];
	if (!e->status && !h && !call->refuse)
		fail(s, "READY(0) without a handle");
	if (e->status) {
		s->result->refused_records++;
		if (!s->broken && !c->obj->timed_out && !c->claim->evil)
			fail(s, "worker %u: a record was refused (%d) in a run without crashes: %s", r, e->status, e->text);
		c->claim->state = CLAIM_OVER;
	} else if (c->claim->state == CLAIM_RECEIVED) {
		c->claim->state = CLAIM_CONFIRMED;
	}
	if (h && e->status)
		h->failed = true;
	if (--call->waiting)
		return;
	for (unsigned i = 0; i < call->nr; i++)
		if (call->handles[i] && (call->handles[i]->failed || chance(s, 40))) {
			s->doomed = grow(s->doomed, s->nr_doomed, &s->max_doomed, sizeof(*s->doomed));
			s->doomed[s->nr_doomed++] = call->handles[i];
		}
}

static void on_waited(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct cookie *c = take_cookie(s, r, e->cookie, COOKIE_WAIT);

	if (!c)
		return;
	if (c->over)
		fail(s, "WAITED twice");
	c->over = true;
	if (c->obj->owner == s->evil || (c->handle->claim && c->handle->claim->evil))
		return;
	if (!e->status && (e->loc.nonce != c->obj->nonce || !c->obj->set))
		fail(s, "a wait brought another value");
	if (!e->status && r == c->obj->owner && e->value != c->obj)
		fail(s, "a wait on the owner brought another value");
	if (e->status && e->status != -ECANCELED && !s->broken && !c->obj->gave_up)
		fail(s, "a wait failed (%d) in a run without crashes: %s", e->status, e->text);
}

static void on_handle(struct sim *s, uint32_t r, const struct rp_effect *e)
{
	struct handle *h = e->handle;

	if (!h || h->machine != r || h->inc != s->machines[r].inc || !same(h->fork, e->fork)) {
		fail(s, "worker %u: effect %d with a wrong handle", r, (int)e->type);
		return;
	}
	if (e->type != RP_EFF_CREATED && h->released)
		fail(s, "worker %u: effect %d of a released handle", r, (int)e->type);
	if (e->type == RP_EFF_LOCATION && e->loc.nonce != h->obj->nonce && h->obj->owner != s->evil && !h->claim->evil)
		fail(s, "a handle got another value's location");
	if (e->type == RP_EFF_CREATED) {
		if (h->obj->created)
			fail(s, "CREATED twice");
		h->obj->created = true;
		if (e->status && !s->broken && !h->obj->gave_up)
			fail(s, "a creation failed: %d %s", e->status, e->text);
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
	struct object *o = e->type == RP_EFF_FREE_VALUE ? e->value : object_of(s, e->id);

	if (!o || o->owner != r || o->owner_inc != s->machines[r].inc) {
		fail(s, "worker %u erases what it does not own", r);
		return;
	}
	check_unreferenced(s, o, e->type == RP_EFF_GONE ? "GONE" : "FREE_VALUE");
	if (e->type == RP_EFF_FREE_VALUE) {
		if (o->freed || o->gone || !o->set)
			fail(s, "freed twice, or before it was set");
		o->freed = true;
		s->result->freed++;
	} else {
		if (o->gone || o->valued != o->freed)
			fail(s, "gone twice, or without its value");
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
	for (size_t i = 0; i < nr && !failed(s); i++) {
		const struct rp_effect *e = &copy[i];

		switch (e->type) {
		case RP_EFF_SEND:
			push(s, r, e->peer, &e->msg, NULL);
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
	while (--s->depth == 0 && s->nr_doomed && !failed(s)) {
		struct handle *h = s->doomed[--s->nr_doomed];

		s->depth++;
		if (!h->released)
			release(s, h);
	}
}

/* ---- what arrives ------------------------------------------------------------------------------------------ */

static void view_fence(struct sim *s, uint32_t r, uint32_t peer);
static void view_grace(struct sim *s, uint32_t r, uint32_t peer);
static void view_up(struct sim *s, uint32_t r, uint32_t peer);

/* What the runtime does about the owner's incarnation: 0, or why the record is refused. */
static int judge_incarnation(struct sim *s, uint32_t r, uint32_t owner, uint32_t inc)
{
	struct view *v = &s->machines[r].views[owner];

	if (owner == r)
		return inc == s->machines[r].inc ? 0 : -ESTALE;
	/* News of a restart: the old session is over, whoever says so. */
	while (v->inc < inc && v->coming && v->coming_inc >= inc && !failed(s)) {
		if (v->state == LINK_UP)
			v->state = LINK_LOST;
		else if (v->state == LINK_LOST)
			view_fence(s, r, owner);
		else if (v->state == LINK_FENCED)
			view_grace(s, r, owner);
		else
			view_up(s, r, owner);
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
		if (step(s, to, &ev, NULL))
			fail(s, "OWN failed");
		else if (!s->duplicate)
			call->create->known = true;
		return;
	}
	in = make(s, sizeof(*in));
	in->nr = in->waiting = call->nr;
	in->refuse = chance(s, 10);
	for (unsigned i = 0; i < call->nr; i++) {
		struct rp_event ev = { .type = RP_EV_RECV_FORK, .peer = from, .rec = &call->recs[i] };
		int rc;

		ev.status = judge_incarnation(s, to, call->recs[i].owner, call->owner_inc[i]);
		ev.cookie = add_cookie(s, (struct cookie){ .kind = COOKIE_READY, .obj = call->claims[i]->obj,
							  .claim = call->claims[i], .call = in, .slot = i }, to);
		rc = step(s, to, &ev, NULL);
		/* The news of a restart may have been of the sender. */
		if (rc && !failed(s) && s->machines[to].views[from].state != LINK_UP) {
			s->cookies[ev.cookie - 1].over = true;
			call->claims[i]->state = CLAIM_OVER;
			in->waiting--;
		} else if (rc) {
			fail(s, "RECV_FORK: %d", rc);
		}
		if (in->refuse && in->handles[i] && !in->handles[i]->released)
			release(s, in->handles[i]);
	}
}

static bool deliver(struct sim *s)
{
	struct packet *p = pick(s);
	struct rp_event ev = { .type = RP_EV_MSG };
	int rc;

	if (!p)
		return false;
	if (p->call) {
		deliver_call(s, p->from, p->to, p->call);
	} else {
		ev.peer = p->from;
		ev.msg = &p->msg;
		rc = step(s, p->to, &ev, NULL);
		if (rc)
			fail(s, "message %d: %d", (int)p->msg.type, rc);
	}
	free(p);
	return true;
}

/* ---- the program ------------------------------------------------------------------------------------------- */

static void set_value(struct sim *s, struct object *o)
{
	struct rp_event ev = { .type = RP_EV_SET, .id = o->id };

	o->set = true;
	if (chance(s, 85)) {
		ev.value = o;
		o->valued = true;
		ev.loc = (struct rp_location){ .nonce = o->nonce, .version = 1 };
	} else {
		ev.status = -ECREATE;
		ev.text = "made to fail";
		o->gave_up = true;
	}
	if (step(s, o->owner, &ev, NULL))
		fail(s, "SET failed");
}

static void new_local(struct sim *s, uint32_t r)
{
	struct object *o = add_object(s, r, r, s->machines[r].inc);
	struct rp_event ev = { .type = RP_EV_NEW, .id = o->id };

	o->known = o->created = true;
	o->local = 1;
	add_handle(s, r, o, (struct rref_id){ 0 }, NULL);
	if (step(s, r, &ev, NULL))
		fail(s, "NEW failed");
	if (chance(s, 60))
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
	o = add_object(s, r, owner, k->views[owner].inc);
	o->fork = new_id(s, r);
	o->timed_out = o->gave_up = owner == s->evil;
	c = add_claim(s, o, NULL, r);
	c->fork = o->fork;
	c->state = CLAIM_RECEIVED;
	ev.id = o->id;
	ev.fork = o->fork;
	ev.handle = add_handle(s, r, o, o->fork, c);
	rc = step(s, r, &ev, NULL);
	if (rc) {
		if (k->views[owner].state == LINK_UP)
			fail(s, "CREATE failed: %d", rc);
		c->state = CLAIM_OVER;
		o->created = true;
		k->nr_handles--;
		return;
	}
	if (chance(s, 10)) {
		o->unsent = true;
		return;
	}
	call = make(s, sizeof(*call));
	call->create = o;
	push(s, r, owner, NULL, call);
}

static void give_up(struct sim *s, struct object *o)
{
	struct rp_event ev = { .type = RP_EV_CREATE_FAILED, .fork = o->fork, .status = -ETIMEDOUT, .text = "the creation timed out" };

	o->gave_up = o->timed_out = true;
	/* The ledger first: the machine may tell the owner in this step. */
	for (size_t i = 0; i < s->nr_claims; i++)
		if (s->claims[i]->obj == o && !s->claims[i]->parent && s->claims[i]->holder == o->creator)
			s->claims[i]->state = CLAIM_OVER;
	if (step(s, o->creator, &ev, NULL))
		fail(s, "CREATE_FAILED failed");
}

static bool usable(const struct handle *h)
{
	return !h->released;
}

static void share(struct sim *s, uint32_t r, uint32_t to)
{
	struct machine *k = &s->machines[r];
	struct call *call = make(s, sizeof(*call));
	struct handle *src[MAX_RECS];
	unsigned nr = 1 + rnd(s, MAX_RECS);
	bool undo = chance(s, 10);

	for (unsigned i = 0; i < nr && k->nr_handles; i++) {
		struct handle *h = k->handles[rnd(s, (uint32_t)k->nr_handles)];
		struct rp_event ev = { .type = RP_EV_FORK, .id = h->obj->id, .src = h->fork, .peer = to };
		struct rp_fork *rec = &call->recs[call->nr];
		int rc;

		ev.fork = new_id(s, r);
		/* The ledger has no claim before the machine has: it may refuse. */
		rc = step(s, r, &ev, rec);
		if (rc) {
			if (!h->failed && k->views[to].state == LINK_UP)
				fail(s, "FORK failed: %d", rc);
			continue;
		}
		if (h->failed && h->claim)
			fail(s, "a failed reference could be shared");
		call->owner_inc[call->nr] = h->obj->owner_inc;
		call->claims[call->nr] = add_claim(s, h->obj, h->claim, to);
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
			if (step(s, r, &ev, NULL))
				fail(s, "UNDO failed");
		}
		return;
	}
	/* A program may let go of what it has just shared. */
	push(s, r, to, NULL, call);
	for (unsigned i = 0; i < call->nr; i++)
		if (usable(src[i]) && chance(s, 30))
			release(s, src[i]);
}

static void wait_for(struct sim *s, struct handle *h)
{
	struct rp_event ev = { .type = RP_EV_WAIT, .id = h->obj->id, .fork = h->fork };

	ev.cookie = add_cookie(s, (struct cookie){ .kind = COOKIE_WAIT, .obj = h->obj, .handle = h }, h->machine);
	if (step(s, h->machine, &ev, NULL))
		fail(s, "WAIT failed");
	if (chance(s, 15)) {
		bool over = s->cookies[ev.cookie - 1].over;
		int rc;

		ev.type = RP_EV_UNWAIT;
		s->cookies[ev.cookie - 1].over = true;
		rc = step(s, h->machine, &ev, NULL);
		if (rc != (over ? -ESTALE : 0))
			fail(s, "UNWAIT: %d", rc);
	}
}

static void act(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];
	struct handle *h = k->nr_handles ? k->handles[rnd(s, (uint32_t)k->nr_handles)] : NULL;
	uint32_t what = rnd(s, 100);
	struct rp_event ev;

	if (!h || what < 12) {
		new_remote(s, r, rnd(s, s->n));
	} else if (what < 60) {
		share(s, r, rnd(s, s->n));
	} else if (what < 75) {
		wait_for(s, h);
	} else if (what < 80 && !h->claim) {
		ev = (struct rp_event){ .type = RP_EV_RETAIN, .id = h->obj->id };
		h->obj->local++;
		add_handle(s, r, h->obj, h->fork, NULL);
		if (step(s, r, &ev, NULL))
			fail(s, "RETAIN failed");
	} else {
		release(s, h);
	}
}

/* Something that takes its time: a value is set, a creation is given up. */
static bool be_late(struct sim *s, bool all)
{
	for (size_t i = s->nr_objects; i--;) {
		struct object *o = s->objects[i];

		if (o->known && !o->set && !o->gone && owner_alive(s, o) && (all || chance(s, 20))) {
			set_value(s, o);
			return true;
		}
		if (!o->created && s->machines[o->creator].alive && o->creator != o->owner &&
		    s->machines[o->creator].inc == (uint32_t)(o->id.local_id >> 32) &&
		    (o->unsent ? all || chance(s, 10) : !all && chance(s, 2))) {
			give_up(s, o);
			return true;
		}
	}
	return false;
}

/* ---- crashes ----------------------------------------------------------------------------------------------- */

static void view_fence(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_FENCED, .peer = peer, .status = -EOWNERDEAD, .text = "died" };

	v->state = LINK_FENCED;
	v->last = v->epoch;
	v->epoch = 0;
	purge(s, peer, r);
	for (size_t i = 0; i < s->nr_claims; i++) {
		struct claim *c = s->claims[i];

		if (c->parent && c->parent->holder == r && c->parent->holder_inc == s->machines[r].inc &&
		    ((c->holder == peer && c->holder_inc == v->inc) || (c->obj->owner == peer && c->obj->owner_inc == v->inc)))
			c->unpinned = true;
	}
	if (step(s, r, &ev, NULL))
		fail(s, "PEER_FENCED failed");
}

static void view_grace(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_GRACE, .peer = peer };

	v->state = LINK_GRACED;
	for (size_t i = 0; i < s->nr_claims; i++) {
		struct claim *c = s->claims[i];

		if (c->holder == peer && c->holder_inc == v->inc && c->obj->owner == r && c->obj->owner_inc == s->machines[r].inc)
			c->lost = true;
	}
	if (step(s, r, &ev, NULL))
		fail(s, "PEER_GRACE failed");
}

static void view_up(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_UP, .peer = peer, .epoch = v->coming };

	v->state = LINK_UP;
	v->epoch = v->coming;
	/* Sessions that came and went meanwhile are over too. */
	v->last = v->coming - 1;
	v->coming = 0;
	v->inc = v->coming_inc;
	purge(s, peer, r);
	if (step(s, r, &ev, NULL))
		fail(s, "PEER_UP failed");
}

static void start(struct sim *s, uint32_t r)
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

		purge(s, q, r);
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
			purge(s, r, q);
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
static bool recover(struct sim *s, uint32_t percent)
{
	for (uint32_t a = 0; a < s->n; a++) {
		for (uint32_t b = 0; b < s->n; b++) {
			struct view *v = &s->machines[a].views[b], *w = &s->machines[b].views[a];

			if (a == b || !s->machines[a].alive || !chance(s, percent))
				continue;
			if (v->state == LINK_LOST) {
				view_fence(s, a, b);
				return true;
			}
			if (v->state == LINK_FENCED) {
				view_grace(s, a, b);
				return true;
			}
			if (v->state != LINK_GRACED || !s->machines[b].alive)
				continue;
			if (v->coming) {
				view_up(s, a, b);
				return true;
			}
			if (w->state == LINK_GRACED && !w->coming) {
				v->coming = w->coming = ++s->epochs;
				v->coming_inc = s->machines[b].inc;
				w->coming_inc = s->machines[a].inc;
				view_up(s, a, b);
				view_up(s, b, a);
				return true;
			}
		}
	}
	return false;
}

static void disturb(struct sim *s)
{
	uint32_t r = rnd(s, s->n), alive = 0, what = rnd(s, 1000);

	if (what < 300)
		recover(s, 20);
	for (uint32_t q = 0; q < s->n; q++)
		alive += s->machines[q].alive;
	if (what < 12 && s->machines[r].alive && alive > 1)
		kill_machine(s, r);
	else if (what < 60 && !s->machines[r].alive && r != s->evil)
		start(s, r);
	else if (what > 990 && s->machines[r].alive)
		cut(s, r, rnd(s, s->n));
}

/* ---- a hostile worker -------------------------------------------------------------------------------------- */

static struct rref_id any_id(struct sim *s, bool fork)
{
	if (fork && s->nr_claims && chance(s, 70))
		return s->claims[rnd(s, (uint32_t)s->nr_claims)]->fork;
	if (!fork && s->nr_objects && chance(s, 80))
		return s->objects[rnd(s, (uint32_t)s->nr_objects)]->id;
	/* Never one that will be: the ledger could not tell it from the true one. */
	return (struct rref_id){ .local_id = UINT64_C(1) << 32 | (1000000 + rnd(s, 40)), .created_on = rnd(s, s->n + 1) };
}

static void attack_with_record(struct sim *s, uint32_t r)
{
	struct rp_fork rec = {
		.id = any_id(s, false), .fork = new_id(s, s->evil), .owner = rnd(s, s->n), .parent = s->evil,
		.flags = rnd(s, 2), .loc = { .nonce = 666, .version = rnd(s, 2) },
	};
	struct rp_event ev = { .type = RP_EV_RECV_FORK, .peer = s->evil, .rec = &rec };
	struct object *o = object_of(s, rec.id);
	struct incoming *in = make(s, sizeof(*in));
	struct claim *c;

	/* A value that is not, or not there: it is in no ledger. */
	if (!o || o->owner != rec.owner || o->owner_inc != s->machines[rec.owner].inc) {
		o = make(s, sizeof(*o));
		o->id = rec.id;
		o->owner = rec.owner;
		o->owner_inc = s->machines[rec.owner].inc;
	}
	c = add_claim(s, o, NULL, r);
	c->fork = rec.fork;
	c->evil = c->unpinned = true;
	c->parent = make(s, sizeof(*c));
	in->nr = in->waiting = 1;
	ev.cookie = add_cookie(s, (struct cookie){ .kind = COOKIE_READY, .obj = o, .claim = c, .call = in }, r);
	if (step(s, r, &ev, NULL)) {
		s->cookies[ev.cookie - 1].over = true;
		c->state = CLAIM_OVER;
	}
}

static void attack_with_creation(struct sim *s, uint32_t r)
{
	struct object *o = add_object(s, s->evil, r, s->machines[r].inc);
	struct rp_event ev = { .type = RP_EV_OWN, .id = o->id, .fork = new_id(s, s->evil), .peer = s->evil };

	o->created = true;
	s->duplicate = false;
	if (!step(s, r, &ev, NULL) && !s->duplicate)
		o->known = true;
	ev.id = any_id(s, false);
	if (ev.id.created_on != s->evil)
		step(s, r, &ev, NULL);
}

static void attack(struct sim *s)
{
	uint32_t r = rnd(s, s->n), what = rnd(s, 100);
	struct rp_msg msg = {
		.type = (enum rp_msg_type)rnd(s, RP_MSG_NR_TYPES + 1), .id = any_id(s, false), .fork = any_id(s, true),
		.status = chance(s, 50) ? 0 : 1 - (int)rnd(s, 40), .loc = { .nonce = 666, .version = rnd(s, 2) },
	};
	struct rp_event ev = { .type = RP_EV_MSG, .peer = s->evil, .msg = &msg };

	/* Mostly about something that is: another's fork of its own value, at the value's owner or anywhere. */
	if (s->nr_claims && chance(s, 60)) {
		const struct claim *c = s->claims[rnd(s, (uint32_t)s->nr_claims)];

		msg.id = c->obj->id;
		msg.fork = c->fork;
		if (chance(s, 70))
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
		step(s, r, &ev, NULL);
	s->attacking = false;
}

/* ---- the run ----------------------------------------------------------------------------------------------- */

static void settle(struct sim *s)
{
	bool more = true;

	while (!failed(s) && deliver(s))
		;
	/* A handler must not wait for the function that makes what it was given, only for the owner to know of it. */
	for (size_t i = 0; i < s->nr_cookies && !failed(s) && !s->flags; i++)
		if (s->cookies[i].kind == COOKIE_READY && !s->cookies[i].over && !s->cookies[i].obj->unsent)
			fail(s, "a READY of worker %u waits for a value", s->cookies[i].machine);
	for (uint32_t r = 0; r < s->n && s->evil < s->n; r++)
		if (s->machines[r].alive && s->machines[r].views[s->evil].state == LINK_UP)
			s->machines[r].views[s->evil].state = LINK_LOST;
	while (!failed(s) && (deliver(s) || be_late(s, true) || recover(s, 100)))
		;
	/* Nothing is under way, and every value is set: no operation may wait any longer, held references or not. */
	for (size_t i = 0; i < s->nr_cookies && !failed(s); i++) {
		const struct cookie *c = &s->cookies[i];

		if (!c->over && s->machines[c->machine].alive && s->machines[c->machine].inc == c->inc)
			fail(s, "a %s of worker %u does not come", c->kind == COOKIE_READY ? "READY" : "WAITED", c->machine);
	}
	for (uint32_t r = 0; r < s->n && !failed(s); r++) {
		struct rp_counts c = { .owners = 0 };

		if (s->machines[r].alive)
			rp_counts(s->machines[r].m, &c);
		if (c.pending_users || c.pending_children || c.parked || c.pending_owners)
			fail(s, "worker %u still has %llu pending users, %llu children, %llu owners, %llu parked", r,
			     (unsigned long long)c.pending_users, (unsigned long long)c.pending_children,
			     (unsigned long long)c.pending_owners, (unsigned long long)c.parked);
	}
	while (more && !failed(s)) {
		more = deliver(s) || be_late(s, true) || recover(s, 100);
		for (uint32_t r = 0; r < s->n && !failed(s); r++)
			if (s->machines[r].alive && s->machines[r].nr_handles) {
				release(s, s->machines[r].handles[rnd(s, (uint32_t)s->machines[r].nr_handles)]);
				more = true;
			}
	}
}

static void check_end(struct sim *s)
{
	for (uint32_t r = 0; r < s->n && !failed(s); r++) {
		struct rp_counts c;

		if (!s->machines[r].alive)
			continue;
		rp_counts(s->machines[r].m, &c);
		if (c.owners || c.pending_owners || c.forks || c.users || c.pending_users || c.pending_children || c.parked)
			fail(s, "worker %u at the end: %llu owners (%llu pending), %llu forks, %llu users (%llu pending), "
			     "%llu children, %llu parked", r, (unsigned long long)c.owners, (unsigned long long)c.pending_owners,
			     (unsigned long long)c.forks, (unsigned long long)c.users, (unsigned long long)c.pending_users,
			     (unsigned long long)c.pending_children, (unsigned long long)c.parked);
		if (c.refused && s->evil == s->n)
			fail(s, "worker %u refused %llu messages", r, (unsigned long long)c.refused);
	}
	for (size_t i = 0; i < s->nr_objects && !failed(s); i++) {
		struct object *o = s->objects[i];

		if (owner_alive(s, o) && o->known && !o->gone && object_of(s, o->id) == o && !o->gave_up)
			fail(s, "the value %llx of worker %u was never reclaimed", (unsigned long long)o->id.local_id, o->owner);
		if (!o->created && s->machines[o->creator].alive &&
		    s->machines[o->creator].inc == (uint32_t)(o->id.local_id >> 32))
			fail(s, "a CREATED of worker %u never came", o->creator);
	}
}

int tl_rp_sim(uint64_t seed, unsigned nr_machines, unsigned nr_actions, unsigned flags, struct tl_rp_result *result)
{
	struct sim *s = calloc(1, sizeof(*s));

	if (!s)
		abort();
	memset(result, 0, sizeof(*result));
	s->rng = seed * UINT64_C(0x9e3779b97f4a7c15);
	s->n = nr_machines;
	s->flags = flags;
	s->result = result;
	s->trace = getenv("RP_TRACE");
	for (uint32_t r = 0; r < s->n; r++)
		start(s, r);
	/* The first meeting: everyone is in the session that the later of each two offered. */
	for (uint32_t a = 0; a < s->n; a++)
		for (uint32_t b = 0; b < a; b++) {
			s->machines[b].views[a] = s->machines[a].views[b];
			s->machines[a].views[b].inc = s->machines[b].views[a].inc = 1;
			s->machines[a].views[b].state = s->machines[b].views[a].state = LINK_UP;
		}
	s->evil = s->n;
	if ((flags & TL_RP_HOSTILE) && s->n > 1) {
		s->evil = s->n - 1;
		s->machines[s->evil].alive = false;
		rp_destroy(s->machines[s->evil].m);
		s->machines[s->evil].m = NULL;
	}
	for (unsigned i = 0; i < nr_actions && !failed(s); i++) {
		uint32_t what = rnd(s, 100), r = rnd(s, s->n);

		if (flags & TL_RP_CRASH)
			disturb(s);
		if (s->evil < s->n && chance(s, 30))
			attack(s);
		if (what < 45)
			deliver(s);
		else if (what < 50)
			be_late(s, false);
		else if (s->machines[r].alive && s->machines[r].nr_handles < 12)
			act(s, r);
	}
	settle(s);
	check_end(s);

	for (uint32_t a = 0; a < s->n; a++) {
		rp_destroy(s->machines[a].m);
		free(s->machines[a].handles);
		for (uint32_t b = 0; b < s->n; b++)
			while (s->links[a][b]) {
				struct packet *p = s->links[a][b];

				s->links[a][b] = p->next;
				free(p);
			}
	}
	for (size_t i = 0; i < s->nr_garbage; i++)
		free(s->garbage[i]);
	free(s->garbage);
	free(s->objects);
	free(s->claims);
	free(s->cookies);
	free(s->doomed);
	free(s);
	return result->text[0] ? -1 : 0;
}
