/* SPDX-License-Identifier: Apache-2.0 */
/* A seed's decisions, and the chance within a decision. */
#include "test/sim/sim.h"

const struct sim_profile sim_profiles[] = {
	{ "in order", 0 },
	{ "delayed, reordered, repeated", SIM_CHAOS | SIM_DELAY },
	{ "in order, crashes and cuts", SIM_CRASH | SIM_CUT },
	{ "reordered, crashes and cuts", SIM_CHAOS | SIM_CRASH | SIM_CUT },
	{ "reordered, a hostile worker", SIM_CHAOS | SIM_HOSTILE },
	{ "hostile, crashes and cuts", SIM_CHAOS | SIM_CRASH | SIM_CUT | SIM_HOSTILE },
};
const unsigned sim_nr_profiles = array_size(sim_profiles);

const char *const sim_kind_names[SIM_NR_KINDS] = {
	"deliver", "late", "create", "share", "read", "retain", "release", "recover", "kill", "die",
	"start", "drop", "suspect",
	"part", "heal", "replay", "attack", "burst",
};

/* The weights in 1000 decisions, by the flags of the profile. */
static const struct {
	unsigned flags; /* any of these; 0 = always */
	unsigned weight[SIM_NR_KINDS];
} weights[] = {
	{ 0,
	  { [SIM_DELIVER] = 450,
	    [SIM_LATE] = 50,
	    [SIM_CREATE] = 70,
	    [SIM_SHARE] = 230,
	    [SIM_READ] = 80,
	    [SIM_RETAIN] = 20,
	    [SIM_RELEASE] = 100 } },
	{ SIM_CRASH, { [SIM_KILL] = 6, [SIM_DIE] = 8, [SIM_START] = 40 } },
	{ SIM_CUT, { [SIM_DROP] = 8, [SIM_SUSPECT] = 6 } },
	{ SIM_CRASH | SIM_CUT, { [SIM_RECOVER] = 120 } },
	{ SIM_CUT | SIM_DELAY, { [SIM_PART] = 5, [SIM_HEAL] = 12, [SIM_REPLAY] = 15 } },
	{ SIM_HOSTILE, { [SIM_ATTACK] = 300 } },
};

uint64_t sim_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t draw(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	return sim_mix(*state);
}

static enum sim_kind choose(const unsigned weight[SIM_NR_KINDS], unsigned sum, uint64_t x)
{
	unsigned kind = 0, at = (unsigned)(x % sum);

	while (at >= weight[kind])
		at -= weight[kind++];
	return (enum sim_kind)kind;
}

void sim_plan_make(struct sim_plan *p, uint64_t seed, int profile, unsigned workers)
{
	uint64_t rng = sim_mix(seed + UINT64_C(0x9e3779b97f4a7c15));
	unsigned weight[SIM_NR_KINDS] = { 0 }, sum = 0, flags;

	memset(p, 0, sizeof(*p));
	p->seed = seed;
	p->profile = profile >= 0 ? (unsigned)profile : (unsigned)(seed % sim_nr_profiles);
	p->workers = 3 + (unsigned)(draw(&rng) % 6);
	if (workers)
		p->workers = workers;
	/* Many short ones and some long ones. */
	p->nr = 40 + (unsigned)(draw(&rng) % 8) * (unsigned)(draw(&rng) % 50);
	flags = sim_profiles[p->profile].flags;
	for (unsigned i = 0; i < array_size(weights); i++)
		for (unsigned k = 0;
		     k < SIM_NR_KINDS && (!weights[i].flags || (weights[i].flags & flags)); k++) {
			weight[k] += weights[i].weight[k];
			sum += weights[i].weight[k];
		}
	for (unsigned i = 0; i < p->nr; i++) {
		p->list[i].kind = choose(weight, sum, draw(&rng));
		p->list[i].salt = draw(&rng);
	}
	/* More deletes than tombstones are kept. It takes long, so it is rare. */
	if (!flags && seed % 4098 == 0)
		p->list[p->nr / 2].kind = SIM_BURST;
}

/* ---- chance ---------------------------------------------------------------------------------- */

void sim_salt(struct sim *s, uint64_t salt)
{
	s->rng = salt;
	s->uid = sim_mix(salt);
}

uint64_t sim_draw(struct sim *s)
{
	return draw(&s->rng);
}

uint32_t sim_rnd(struct sim *s, uint32_t n)
{
	return (uint32_t)((sim_draw(s) >> 33) % n);
}

bool sim_chance(struct sim *s, uint32_t percent)
{
	return sim_rnd(s, 100) < percent;
}

uint64_t sim_word(const struct sim *s, struct rref_id of)
{
	/* No draw: a decision's other picks stay unchanged. */
	return sim_mix(s->plan->seed + of.local_id * MAX_MACHINES + of.created_on) | 1;
}

uint64_t sim_uid(struct sim *s)
{
	return sim_mix(++s->uid);
}

static uint32_t pick_rank(struct sim *s, bool alive)
{
	uint64_t salt = sim_draw(s), best = 0;
	uint32_t which = s->n;

	for (uint32_t r = 0; r < s->n; r++)
		if ((!alive || s->machines[r].alive) &&
		    (which == s->n || sim_mix(salt + r) > best)) {
			which = r;
			best = sim_mix(salt + r);
		}
	return which;
}

uint32_t sim_pick_alive(struct sim *s)
{
	return pick_rank(s, true);
}

uint32_t sim_pick_rank(struct sim *s)
{
	return pick_rank(s, false);
}

struct handle *sim_pick_handle(struct sim *s, uint32_t r, bool nested)
{
	struct machine *k = &s->machines[r];
	uint64_t salt = sim_draw(s), best = 0;
	struct handle *which = NULL;

	for (size_t i = 0; i < k->nr_handles; i++) {
		struct handle *h = k->handles[i];

		if ((nested || !h->nested_in) && (!which || sim_mix(salt ^ h->uid) > best)) {
			which = h;
			best = sim_mix(salt ^ h->uid);
		}
	}
	return which;
}
