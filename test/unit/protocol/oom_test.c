/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Out of memory in the protocol's machine. Every step of random programs is tried with its first,
 * second, ... allocation failing, until it needs no more. A failed step must have changed nothing.
 * Steps that give back must succeed without any memory, and with little room for effects. The
 * machine's sources are compiled into this program with their allocator replaced, so that the
 * library needs no hook.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static unsigned long allocations, fail_at, failures; /* fail_at: counts from 1; 0 = never */
static bool fail_all;

static int fails(void)
{
	if (++allocations != fail_at && !fail_all)
		return 0;
	failures++;
	return 1;
}

static void *oom_calloc(size_t n, size_t size)
{
	return fails() ? NULL : calloc(n, size);
}

static void *oom_realloc(void *p, size_t size)
{
	return fails() ? NULL : realloc(p, size);
}

#define calloc oom_calloc
#define realloc oom_realloc
#define rp_create real_create
#define rp_step real_step
#include "core/protocol/effects.c"
#include "core/protocol/held.c"
#include "core/protocol/machine.c"
#include "core/protocol/owner.c"
#include "core/protocol/peer.c"
#include "core/protocol/pool.c"
#include "core/protocol/receive.c"
#include "core/protocol/share.c"
#include "core/protocol/table.c"
#include "core/protocol/user.c"
#undef calloc
#undef realloc
#undef rp_create
#undef rp_step

#include "test/lib/tl_rpcheck.h"
#include "test/sim/sim.h"

static unsigned long given_back, had_later;

int rp_create(uint32_t self, uint32_t world, struct rp **out);
int rp_create(uint32_t self, uint32_t world, struct rp **out)
{
	fail_all = false;
	return real_create(self, world, out);
}

int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec);
int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	static unsigned long steps;

	fail_all = false;
	if (rp_gives_back(ev->type) && ++steps % 2) {
		/* The step's effects are taken out without memory as well:
		 * there is none until the next step. */
		int rc;

		if (m->first_effect == m->nr_effects) {
			rp_effects_clear(m);
			if (m->nr_effects == 0)
				m->max_effects = RP_LEAST_EFFECTS;
		}
		fail_all = true;
		given_back++;
		rc = real_step(m, ev, rec);
		while (rc == -ENOMEM) {
			/* The runtime does the same; the simulator cannot
			 * carry them out in between. */
			size_t n = m->nr_effects - m->first_effect;

			assert_true(n > 0);
			fail_all = false;
			assert_int_equal(rp_effects_grow(m, RP_LEAST_EFFECTS), 0);
			fail_all = true;
			rc = real_step(m, ev, rec);
		}
		had_later += m->nr_later > 0;
		return rc;
	}
	for (unsigned long n = 1;; n++) {
		struct rp_counts before, after;
		struct rp_fork untouched;
		size_t effects = m->nr_effects - m->first_effect;
		int rc;

		rp_counts(m, &before);
		memset(&untouched, 0x5a, sizeof(untouched));
		if (rec)
			*rec = untouched;
		allocations = 0;
		fail_at = n;
		rc = real_step(m, ev, rec);
		fail_at = 0;
		if (rc != -ENOMEM)
			return rc;
		rp_counts(m, &after);
		assert_memory_equal(&before, &after, sizeof(before));
		assert_int_equal(m->nr_effects - m->first_effect, effects);
		if (rec)
			assert_memory_equal(rec, &untouched, sizeof(untouched));
		assert_null(tl_rp_check(m));
	}
}

static void rp_oom__each_allocation_of_each_step(void **state)
{
	struct sim_result r;
	struct sim_plan plan;

	(void)state;
	for (uint64_t seed = 1; seed <= 100; seed++)
		for (int profile = 0; profile < 4; profile++) {
			sim_plan_make(&plan, seed, profile, 3);
			if (sim_run(&plan, NULL, &r))
				fail_msg("seed %u, %s: %s", (unsigned)seed,
					 sim_profiles[profile].name, r.text);
		}
	fail_all = false;
	print_message("%lu allocations failed; of %lu steps that give back %lu had effects without "
		      "room\n",
		      failures, given_back, had_later);
	assert_true(failures > 1000);
	assert_true(given_back > 1000 && had_later > 100);
}

/* Takes so many effects out that another step has room. Returns
 * the number of effects of that type. */
static size_t some_taken(struct rp *m, enum rp_effect_type type)
{
	size_t n = 0;

	for (unsigned i = 0; i < RP_LEAST_EFFECTS; i++)
		n += rp_effect_next(m)->type == type;
	return n;
}

/* Takes all effects out by ones, without memory. Returns the number of effects of that type. */
static size_t taken(struct rp *m, enum rp_effect_type type)
{
	const struct rp_effect *e;
	size_t n = 0;

	while ((e = rp_effect_next(m))) {
		n += e->type == type;
		assert_null(tl_rp_check(m));
	}
	assert_int_equal(m->nr_later, 0);
	return n;
}

static void must(struct rp *m, struct rp_event ev)
{
	assert_int_equal(real_step(m, &ev, NULL), 0);
}

#define MANY 1000u

/* Does as must, with every allocation failing from now on. */
static void must_without(struct rp *m, struct rp_event ev)
{
	fail_all = true;
	failures = 0;
	must(m, ev);
	assert_true(failures > 0);
	assert_true(m->nr_later > 0);
}

/* Fences a worker with many forks. Effects without room come later, and
 * a new session does not come before them. */
static void rp_oom__fence_of_many(void **state)
{
	struct rp_event up = { .type = RP_EV_PEER_UP, .peer = 1, .epoch = 2 };
	size_t ended;
	struct rp *m;

	(void)state;
	assert_int_equal(rp_create(0, 2, &m), 0);
	for (uint64_t i = 1; i <= MANY; i++) {
		must(m,
		     (struct rp_event){ .type = RP_EV_CREATE,
					.word = 1,
					.id = { 2 * i, 0, 0 },
					.fork = { 2 * i + 1, 0, 0 },
					.peer = 1 });
		must(m,
		     (struct rp_event){ .type = RP_EV_WAIT,
					.id = { 2 * i, 0, 0 },
					.fork = { 2 * i + 1, 0, 0 },
					.cookie = i });
	}
	must_without(m,
		     (struct rp_event){ .type = RP_EV_PEER_FENCED,
					.peer = 1,
					.status = -EOWNERDEAD,
					.text = "died" });
	ended = some_taken(m, RP_EFF_WAITED);
	must(m, (struct rp_event){ .type = RP_EV_PEER_GRACE, .peer = 1 });
	ended += some_taken(m, RP_EFF_WAITED);
	assert_int_equal(real_step(m, &up, NULL), -EBUSY);
	assert_int_equal(ended + taken(m, RP_EFF_WAITED), MANY);
	assert_int_equal(real_step(m, &up, NULL), 0);
	for (uint64_t i = 1; i <= MANY; i++)
		must(m,
		     (struct rp_event){ .type = RP_EV_DROP,
					.id = { 2 * i, 0, 0 },
					.fork = { 2 * i + 1, 0, 0 },
					.peer = 1 });
	assert_int_equal(m->counts.users, 0);
	assert_int_equal(m->counts.parked, 0);
	fail_all = false;
	rp_destroy(m);
}

/* Returns a machine that owns MANY values. Each has a fork of worker
 * 1, and no other reference if released. */
static struct rp *owner_of_many(bool released)
{
	struct rp_fork rec;
	struct rp *m;

	assert_int_equal(rp_create(0, 2, &m), 0);
	for (uint64_t i = 1; i <= MANY; i++) {
		struct rp_event share = { .type = RP_EV_FORK,
					  .word = 1,
					  .id = { 2 * i, 0, 0 },
					  .fork = { 2 * i + 1, 0, 0 },
					  .peer = 1 };

		must(m, (struct rp_event){ .type = RP_EV_NEW, .id = { 2 * i, 0, 0 } });
		must(m,
		     (struct rp_event){ .type = RP_EV_SET, .id = { 2 * i, 0, 0 }, .value = &rec });
		assert_int_equal(real_step(m, &share, &rec), 0);
		if (released)
			must(m, (struct rp_event){ .type = RP_EV_RELEASE, .id = { 2 * i, 0, 0 } });
	}
	rp_effects_clear(m);
	return m;
}

/* Gives back everything that the dead worker held. */
static void rp_oom__grace_of_many(void **state)
{
	struct rp *m = owner_of_many(true);

	(void)state;
	must(m, (struct rp_event){ .type = RP_EV_PEER_FENCED, .peer = 1, .status = -EOWNERDEAD });
	assert_int_equal(m->counts.forks, MANY);
	rp_effects_clear(m);
	must_without(m, (struct rp_event){ .type = RP_EV_PEER_GRACE, .peer = 1 });
	assert_int_equal(taken(m, RP_EFF_FREE_VALUE), MANY);
	assert_int_equal(m->counts.forks + m->counts.owners + m->counts.tombstones, 0);
	must(m, (struct rp_event){ .type = RP_EV_PEER_UP, .peer = 1, .epoch = 2 });
	fail_all = false;
	rp_destroy(m);
}

/* Lets many wait for one value. All learn of it, although its references change meanwhile. */
static void rp_oom__many_wait_for_one(void **state)
{
	const struct rref_id id = { 2, 0, 0 };

	(void)state;
	for (int how = 0; how < 3; how++) {
		size_t ended;
		struct rp *m;

		assert_int_equal(rp_create(0, 2, &m), 0);
		must(m, (struct rp_event){ .type = RP_EV_NEW, .id = id });
		for (uint64_t i = 1; i <= MANY; i++)
			must(m, (struct rp_event){ .type = RP_EV_WAIT, .id = id, .cookie = i });
		if (how == 0) {
			must_without(m,
				     (struct rp_event){ .type = RP_EV_SET, .id = id, .value = &m });
			ended = some_taken(m, RP_EFF_WAITED);
			must(m, (struct rp_event){ .type = RP_EV_RELEASE, .id = id });
		} else {
			must_without(m, (struct rp_event){ .type = RP_EV_RELEASE, .id = id });
			ended = some_taken(m, RP_EFF_WAITED);
			must(m,
			     (struct rp_event){ .type = RP_EV_SET,
						.id = id,
						.value = how == 1 ? &m : NULL,
						.status = how == 1 ? 0 : -EIO });
		}
		assert_int_equal(ended + taken(m, RP_EFF_WAITED), MANY);
		assert_int_equal(m->counts.owners, 0);
		assert_int_equal(m->counts.parked, 0);
		fail_all = false;
		rp_destroy(m);
	}
}

/* Makes a step that gives back without room for its effects: it
 * asks for room, and changes nothing. */
static void rp_oom__no_room(void **state)
{
	struct rp *m = owner_of_many(false);
	struct rp_event ev = { .type = RP_EV_PEER_FENCED, .peer = 1, .status = -EOWNERDEAD };
	uint64_t i = 0;
	int rc;

	(void)state;
	must(m, ev);
	ev.type = RP_EV_PEER_GRACE;
	must(m, ev);
	rp_effects_clear(m);
	fail_all = true;
	do {
		ev = (struct rp_event){ .type = RP_EV_RELEASE, .id = { 2 * ++i, 0, 0 } };
		rc = real_step(m, &ev, NULL);
	} while (!rc && i < MANY);
	assert_int_equal(rc, -ENOMEM);
	assert_int_equal(m->counts.owners, MANY - (i - 1));
	for (unsigned n = 0; n < RP_LEAST_EFFECTS; n++)
		assert_non_null(rp_effect_next(m));
	must(m, ev);
	assert_int_equal(m->counts.owners, MANY - i);
	fail_all = false;
	rp_destroy(m);
}

static void rp_oom__create(void **state)
{
	struct rp *m = NULL;

	(void)state;
	for (fail_at = 1;; fail_at++) {
		allocations = 0;
		if (!rp_create(0, 4, &m))
			break;
		assert_null(m);
	}
	assert_true(fail_at > 5);
	fail_at = 0;
	rp_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_oom__create),
		cmocka_unit_test(rp_oom__each_allocation_of_each_step),
		cmocka_unit_test(rp_oom__fence_of_many),
		cmocka_unit_test(rp_oom__grace_of_many),
		cmocka_unit_test(rp_oom__many_wait_for_one),
		cmocka_unit_test(rp_oom__no_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
