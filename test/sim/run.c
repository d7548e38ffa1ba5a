/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a schedule, from the first meeting to the end: its decisions,
 * then rest, then everything is released. */
#include "test/sim/sim.h"

#define MAX_STEPS 500000u       /* ten times any schedule's need: beyond it there is no rest */

static void decide(struct sim *s, enum sim_kind kind)
{
	uint32_t r = sim_pick_alive(s);
	struct machine *k = &s->machines[r % s->n];
	bool room = r < s->n && k->nr_handles < MAX_HANDLES;
	struct handle *h = NULL;

	switch (kind) {
	case SIM_DELIVER:
		sim_deliver(s);
		return;
	case SIM_LATE:
		sim_be_late(s, false);
		return;
	case SIM_RECOVER:
		sim_recover(s, false);
		return;
	case SIM_DIE:
		/* The death comes at some effect of the next decision, or at its end. */
		if (r < s->n) {
			s->doomed = r;
			s->doom = 1 + sim_rnd(s, 4);
		}
		return;
	case SIM_START:
		r = sim_pick_rank(s);
		if (!s->machines[r].alive && r != s->evil)
			sim_start(s, r);
		return;
	case SIM_DROP:
		sim_drop(s);
		return;
	case SIM_PART:
		sim_part(s);
		return;
	case SIM_HEAL:
		sim_heal(s);
		return;
	case SIM_REPLAY:
		sim_replay(s);
		return;
	case SIM_ATTACK:
		if (s->evil < s->n)
			sim_attack(s);
		return;
	case SIM_BURST:
		sim_burst(s);
		return;
	case SIM_NR_KINDS:
		return;
	default:
		break;
	}
	if (r == s->n)
		return;
	switch (kind) {
	case SIM_KILL:
		sim_kill(s, r);
		return;
	case SIM_SUSPECT:
		sim_suspect(s, r, sim_pick_rank(s));
		return;
	case SIM_CREATE:
		if (room)
			sim_create(s, r, sim_pick_rank(s));
		return;
	case SIM_SHARE:
		if (k->nr_handles)
			sim_share(s, r, sim_pick_rank(s), NULL);
		else
			sim_create(s, r, sim_pick_rank(s));
		return;
	default:
		h = sim_pick_handle(s, r, false);
	}
	if (!h)
		return;
	if (kind == SIM_READ)
		sim_to_here(s, h);
	else if (kind == SIM_RETAIN && room)
		sim_retain(s, h);
	else if (kind == SIM_RELEASE)
		sim_release(s, h);
}

static void decision(struct sim *s, const struct sim_decision *d)
{
	uint32_t doomed = s->doomed;

	sim_note(s, "#%u %s", (unsigned)(d - s->plan->list), sim_kind_names[d->kind]);
	sim_salt(s, d->salt);
	decide(s, d->kind);
	sim_todo(s);
	/* A worker that was doomed before this decision, and outlived it, dies now. */
	if (s->dying == s->n && d->kind != SIM_DIE)
		s->dying = doomed;
	if (s->dying < s->n) {
		s->nr_todo = 0;
		sim_kill(s, s->dying);
	}
	if (d->kind != SIM_DIE)
		s->doomed = s->n;
	s->dying = s->n;
}

static bool go_on(struct sim *s)
{
	sim_todo(s);
	if (s->result->steps > MAX_STEPS)
		sim_fail(s, "it does not come to rest");
	return !sim_failed(s);
}

static void settle(struct sim *s)
{
	bool more = true;

	sim_note(s, "# all is delivered");
	sim_heal(s);
	while (go_on(s) && sim_deliver(s))
		;
	/* A handler must not wait for the function that makes a given value. It waits only until
	 * the owner knows of the value. */
	for (size_t i = 0; i < s->nr_cookies && !sim_failed(s) && !s->flags; i++)
		if (s->cookies[i].kind == COOKIE_READY && !s->cookies[i].over &&
		    !s->cookies[i].obj->unsent)
			sim_fail(s, "a READY of worker %u waits for a value",
				 s->cookies[i].machine);
	for (uint32_t r = 0; r < s->n && s->evil < s->n; r++)
		if (s->machines[r].alive && s->machines[r].views[s->evil].state == LINK_UP)
			s->machines[r].views[s->evil].state = LINK_LOST;
	while (go_on(s) && (sim_deliver(s) || sim_be_late(s, true) || sim_recover(s, true)))
		;
	sim_check_quiet(s);
	sim_note(s, "# all is released");
	while (more && go_on(s)) {
		more = sim_deliver(s) || sim_be_late(s, true) || sim_recover(s, true);
		for (uint32_t r = 0; r < s->n && !sim_failed(s); r++) {
			struct handle *h = s->machines[r].alive ? sim_pick_handle(s, r, false)
								: NULL;

			if (h) {
				sim_release(s, h);
				more = true;
			}
		}
	}
	sim_check_end(s);
}

static void open_sim(struct sim *s)
{
	s->evil = s->doomed = s->dying = s->n;
	sim_salt(s, s->plan->seed);
	sim_meet(s);
	if ((s->flags & SIM_HOSTILE) && s->n > 1) {
		s->evil = s->n - 1;
		s->machines[s->evil].alive = false;
		rp_destroy(s->machines[s->evil].m);
		s->machines[s->evil].m = NULL;
	}
}

static void close_sim(struct sim *s)
{
	sim_net_close(s);
	for (uint32_t r = 0; r < s->n; r++) {
		rp_destroy(s->machines[r].m);
		free(s->machines[r].handles);
		free(s->machines[r].memory);
		free(s->machines[r].free);
	}
	for (size_t i = 0; i < s->nr_garbage; i++)
		free(s->garbage[i]);
	free(s->garbage);
	free(s->objects);
	free(s->claims);
	free(s->cookies);
	free(s->reads);
	free(s->todo);
	free(s);
}

int sim_run(const struct sim_plan *plan, FILE *trace, struct sim_result *result)
{
	struct sim *s = calloc(1, sizeof(*s));

	if (!s)
		abort();
	memset(result, 0, sizeof(*result));
	s->plan = plan;
	s->n = plan->workers;
	s->flags = sim_profiles[plan->profile].flags;
	s->result = result;
	s->trace = trace;
	open_sim(s);
	for (unsigned i = 0; i < plan->nr && !sim_failed(s); i++) {
		result->decision = i;
		if (!plan->list[i].left_out)
			decision(s, &plan->list[i]);
	}
	if (!sim_failed(s)) {
		result->decision = plan->nr;
		sim_salt(s, ~plan->seed);
		/* A worker that was doomed in the last decision lives. */
		s->doomed = s->n;
		settle(s);
	}
	if (sim_failed(s))
		sim_note(s, "FAILED: %s", result->text);
	close_sim(s);
	return result->text[0] ? -1 : 0;
}
