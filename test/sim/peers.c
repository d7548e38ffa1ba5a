/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that die and come back, pairs that are cut, groups
 * that are parted: the runtime's part. */
#include "test/sim/sim.h"

/* ---- a pair's way: lost, fenced, grace over, up again with whoever is there ------------------ */

/* Ends the session with that epoch: the other side will notice, or never enters it. */
static void tell_other(struct sim *s, uint32_t r, uint32_t peer, uint32_t epoch)
{
	struct view *there = &s->machines[peer].views[r];

	if (there->epoch == epoch && there->state == LINK_UP)
		there->state = LINK_LOST;
	else if (there->coming == epoch)
		sim_withdraw(s, r, peer);
}

void sim_view_fence(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = {
		.type = RP_EV_PEER_FENCED, .peer = peer, .status = -EOWNERDEAD, .text = "died"
	};

	s->broken = true;
	s->result->fences++;
	/* The device comes first: nothing of that peer is in flight any more, here or there. */
	tell_other(s, r, peer, v->epoch);
	v->state = LINK_FENCED;
	v->last = v->epoch;
	v->epoch = 0;
	sim_purge(s, peer, r);
	sim_reads_fail(s, r, peer);
	for (size_t i = 0; i < s->nr_claims; i++) {
		struct claim *c = s->claims[i];

		/* A confirmed parent stays known to a lost owner until
		 * that owner's grace is over. */
		if (c->parent && c->parent->holder == r &&
		    c->parent->holder_inc == s->machines[r].inc &&
		    ((c->holder == peer && c->holder_inc == v->inc) ||
		     (c->obj->owner == peer && c->obj->owner_inc == v->inc &&
		      !c->parent->confirmed)))
			c->unpinned = true;
		if (c->state != CLAIM_FLYING && c->holder == r &&
		    c->holder_inc == s->machines[r].inc && c->obj->owner == peer &&
		    c->obj->owner_inc == v->inc)
			c->owner_lost = true;
	}
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "PEER_FENCED failed");
	/* A new session would meet the old one's entries, and lose its own with them. */
	if (sim_chance(s, 20) && !sim_failed(s) && s->dying != r) {
		ev = (struct rp_event){ .type = RP_EV_PEER_UP,
					.peer = peer,
					.epoch = s->epochs + 1 };
		if (sim_step(s, r, &ev, NULL) != -EBUSY)
			sim_fail(s, "worker %u takes a session while the last one is cleaned up",
				 r);
	}
}

void sim_view_grace(struct sim *s, uint32_t r, uint32_t peer)
{
	struct view *v = &s->machines[r].views[peer];
	struct rp_event ev = { .type = RP_EV_PEER_GRACE, .peer = peer };

	v->state = LINK_GRACED;
	for (size_t i = 0; i < s->nr_claims; i++) {
		struct claim *c = s->claims[i];

		if (c->holder == peer && c->holder_inc == v->inc && c->obj->owner == r &&
		    c->obj->owner_inc == s->machines[r].inc)
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
	/* Sessions that came and went meanwhile are over, too. */
	v->last = v->coming - 1;
	v->coming = 0;
	v->inc = v->coming_inc;
	sim_purge(s, peer, r);
	if (sim_step(s, r, &ev, NULL))
		sim_fail(s, "PEER_UP failed");
}

/* Makes the next step of one pair's way. Returns false if there is no next step. */
static bool recover(struct sim *s, uint32_t a, uint32_t b)
{
	struct view *v = &s->machines[a].views[b], *w = &s->machines[b].views[a];

	if (a == b || !s->machines[a].alive)
		return false;
	if (v->state == LINK_LOST) {
		sim_view_fence(s, a, b);
		return true;
	}
	if (v->state == LINK_FENCED) {
		sim_view_grace(s, a, b);
		return true;
	}
	if (v->state != LINK_GRACED || !s->machines[b].alive || s->parted[a][b])
		return false;
	if (!v->coming && w->state == LINK_GRACED && !w->coming) {
		v->coming = w->coming = ++s->epochs;
		v->coming_inc = s->machines[b].inc;
		w->coming_inc = s->machines[a].inc;
	}
	if (!v->coming)
		return false;
	sim_view_up(s, a, b);
	return true;
}

bool sim_recover(struct sim *s, bool all)
{
	uint64_t salt = sim_draw(s);
	bool done = false;

	/* Some pairs now, the others later. */
	for (uint32_t a = 0; a < s->n; a++)
		for (uint32_t b = 0; b < s->n && !sim_failed(s); b++)
			if (all || sim_mix(salt + a * MAX_MACHINES + b) % 100 < 20)
				done |= recover(s, a, b);
	return done;
}

/* ---- events of a worker's life ------------------------------------------------------------- */

void sim_start(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];

	if (rp_create(r, s->n, &k->m))
		abort();
	rp_set_seed(k->m, s->rng);
	k->alive = true;
	k->inc++;
	k->next_local = 0;
	sim_note(s, "   w%u starts, incarnation %u", r, k->inc);
	for (uint32_t q = 0; q < s->n; q++) {
		struct view *there = &s->machines[q].views[r];

		k->views[q] = (struct view){ .state = LINK_UP,
					     .epoch = ++s->epochs,
					     .inc = s->machines[q].inc };
		k->views[q].last = k->views[q].epoch - 1;
		if (q == r)
			continue;
		if (!s->machines[q].alive) {
			/* The others will miss it, and fence it. */
			k->views[q].state = LINK_LOST;
		}
		there->coming = k->views[q].epoch;
		there->coming_inc = k->inc;
	}
}

void sim_meet(struct sim *s)
{
	for (uint32_t r = 0; r < s->n; r++)
		sim_start(s, r);
	/* The first meeting: each pair is in the later one of the two offered sessions. */
	for (uint32_t a = 0; a < s->n; a++)
		for (uint32_t b = 0; b < a; b++) {
			s->machines[b].views[a] = s->machines[a].views[b];
			s->machines[a].views[b].inc = s->machines[b].views[a].inc = 1;
			s->machines[a].views[b].state = s->machines[b].views[a].state = LINK_UP;
			s->machines[a].views[b].coming = s->machines[b].views[a].coming = 0;
		}
}

void sim_kill(struct sim *s, uint32_t r)
{
	struct machine *k = &s->machines[r];

	if (sim_failed(s))
		return;
	sim_note(s, "   w%u dies", r);
	s->broken = true;
	s->result->kills++;
	k->alive = false;
	rp_destroy(k->m);
	k->m = NULL;
	k->nr_handles = 0;
	sim_reads_forget(s, r);
	sim_memory_close(k);
	for (size_t i = 0; i < s->nr_claims; i++)
		if (s->claims[i]->holder == r && s->claims[i]->holder_inc == k->inc &&
		    s->claims[i]->state != CLAIM_FLYING)
			s->claims[i]->state = CLAIM_OVER;
	for (uint32_t q = 0; q < s->n; q++) {
		struct view *v = &s->machines[q].views[r];

		sim_forget_sent(s, r, q);
		sim_purge(s, q, r);
		if (q == r)
			continue;
		if (v->state == LINK_UP)
			v->state = LINK_LOST;
		/* An offered session that was not entered dies with it. */
		if (v->coming)
			sim_withdraw(s, r, q);
	}
}

void sim_lose(struct sim *s, uint32_t a, uint32_t b)
{
	uint32_t epoch = s->machines[b].views[a].epoch;

	s->broken = true;
	tell_other(s, a, b, epoch);
	tell_other(s, b, a, epoch);
}

/* Fences a peer that is silent for too long; it will notice at some time. */
void sim_suspect(struct sim *s, uint32_t r, uint32_t peer)
{
	if (r != peer && s->machines[r].views[peer].state == LINK_UP)
		sim_view_fence(s, r, peer);
}

void sim_part(struct sim *s)
{
	uint64_t salt = sim_draw(s);

	s->result->parts++;
	for (uint32_t a = 0; a < s->n; a++)
		for (uint32_t b = 0; b < s->n; b++)
			s->parted[a][b] = (sim_mix(salt + a) ^ sim_mix(salt + b)) & 1;
	/* Some sides lose patience with some of the others before the group heals. */
	for (uint32_t a = 0; a < s->n && (s->flags & SIM_CUT); a++)
		for (uint32_t b = 0; b < s->n && s->machines[a].alive; b++)
			if (s->parted[a][b] &&
			    sim_mix(salt + 1000 + a * MAX_MACHINES + b) % 100 < 25)
				sim_suspect(s, a, b);
}

void sim_heal(struct sim *s)
{
	memset(s->parted, 0, sizeof(s->parted));
}
