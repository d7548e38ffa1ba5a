/* SPDX-License-Identifier: Apache-2.0 */
#include "test/lib/tl_rpsim_internal.h"

static void settle(struct sim *s)
{
	bool more = true;

	while (!sim_failed(s) && sim_deliver(s))
		;
	/* A handler must not wait for the function that makes what it was given, only for the owner to know of it. */
	for (size_t i = 0; i < s->nr_cookies && !sim_failed(s) && !s->flags; i++)
		if (s->cookies[i].kind == COOKIE_READY && !s->cookies[i].over && !s->cookies[i].obj->unsent)
			sim_fail(s, "a READY of worker %u waits for a value", s->cookies[i].machine);
	for (uint32_t r = 0; r < s->n && s->evil < s->n; r++)
		if (s->machines[r].alive && s->machines[r].views[s->evil].state == LINK_UP)
			s->machines[r].views[s->evil].state = LINK_LOST;
	while (!sim_failed(s) && (sim_deliver(s) || sim_be_late(s, true) || sim_recover(s, 100)))
		;
	/* Nothing is under way, and every value is set: no operation may wait any longer, held references or not. */
	for (size_t i = 0; i < s->nr_cookies && !sim_failed(s); i++) {
		const struct cookie *c = &s->cookies[i];

		if (!c->over && s->machines[c->machine].alive && s->machines[c->machine].inc == c->inc)
			sim_fail(s, "a %s of worker %u does not come", c->kind == COOKIE_READY ? "READY" : "WAITED", c->machine);
	}
	for (uint32_t r = 0; r < s->n && !sim_failed(s); r++) {
		struct rp_counts c = { .owners = 0 };

		if (s->machines[r].alive)
			rp_counts(s->machines[r].m, &c);
		if (c.pending_users || c.pending_children || c.parked || c.pending_owners)
			sim_fail(s, "worker %u still has %llu pending users, %llu children, %llu owners, %llu parked", r,
			     (unsigned long long)c.pending_users, (unsigned long long)c.pending_children,
			     (unsigned long long)c.pending_owners, (unsigned long long)c.parked);
	}
	while (more && !sim_failed(s)) {
		more = sim_deliver(s) || sim_be_late(s, true) || sim_recover(s, 100);
		for (uint32_t r = 0; r < s->n && !sim_failed(s); r++)
			if (s->machines[r].alive && s->machines[r].nr_handles) {
				sim_release(s, s->machines[r].handles[sim_rnd(s, (uint32_t)s->machines[r].nr_handles)]);
				more = true;
			}
	}
}

static void check_end(struct sim *s)
{
	for (uint32_t r = 0; r < s->n && !sim_failed(s); r++) {
		struct rp_counts c;

		if (!s->machines[r].alive)
			continue;
		rp_counts(s->machines[r].m, &c);
		if (c.owners || c.pending_owners || c.forks || c.users || c.pending_users || c.pending_children || c.parked)
			sim_fail(s, "worker %u at the end: %llu owners (%llu pending), %llu forks, %llu users (%llu pending), "
			     "%llu children, %llu parked", r, (unsigned long long)c.owners, (unsigned long long)c.pending_owners,
			     (unsigned long long)c.forks, (unsigned long long)c.users, (unsigned long long)c.pending_users,
			     (unsigned long long)c.pending_children, (unsigned long long)c.parked);
		if (c.refused && s->evil == s->n)
			sim_fail(s, "worker %u refused %llu messages", r, (unsigned long long)c.refused);
	}
	for (size_t i = 0; i < s->nr_objects && !sim_failed(s); i++) {
		struct object *o = s->objects[i];

		if (sim_owner_alive(s, o) && o->known && !o->gone && sim_object_of(s, o->id) == o && !o->gave_up)
			sim_fail(s, "the value %llx of worker %u was never reclaimed", (unsigned long long)o->id.local_id, o->owner);
		if (!o->created && s->machines[o->creator].alive &&
		    s->machines[o->creator].inc == (uint32_t)(o->id.local_id >> 32))
			sim_fail(s, "a CREATED of worker %u never came", o->creator);
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
		sim_start(s, r);
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
	for (unsigned i = 0; i < nr_actions && !sim_failed(s); i++) {
		uint32_t what = sim_rnd(s, 100), r = sim_rnd(s, s->n);

		if (flags & TL_RP_CRASH)
			sim_disturb(s);
		if (s->evil < s->n && sim_chance(s, 30))
			sim_attack(s);
		if (what < 45)
			sim_deliver(s);
		else if (what < 50)
			sim_be_late(s, false);
		else if (s->machines[r].alive && s->machines[r].nr_handles < 12)
			sim_act(s, r);
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
