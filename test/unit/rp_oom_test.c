/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Out of memory in the protocol's machine: every step of random programs is tried with its first, second, ... allocation
 * failing, until it needs no more. A step that failed must have changed nothing. The machine's sources are compiled
 * into this program with their allocator replaced, so that the library needs no hook.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static unsigned long allocations, fail_at, failures; /* fail_at: counts from 1; 0 = never */

static int fails(void)
{
	if (++allocations != fail_at)
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
#define rp_step real_step
#include "core/rp_effects.c"
#include "core/rp_held.c"
#include "core/rp_machine.c"
#include "core/rp_owner.c"
#include "core/rp_peer.c"
#include "core/rp_pool.c"
#include "core/rp_receive.c"
#include "core/rp_share.c"
#include "core/rp_table.c"
#include "core/rp_user.c"
#undef calloc
#undef realloc
#undef rp_step

#include "test/lib/tl_rpcheck.h"
#include "test/sim/sim.h"

int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec);
int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	for (unsigned long n = 1;; n++) {
		struct rp_counts before, after;
		struct rp_fork untouched;
		size_t effects = m->nr_effects;
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
		assert_int_equal(m->nr_effects, effects);
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
				fail_msg("seed %u, %s: %s", (unsigned)seed, sim_profiles[profile].name, r.text);
		}
	print_message("%lu allocations failed\n", failures);
	assert_true(failures > 1000);
}

/* The effects of a fence are many: they are reserved as a whole. */
static void rp_oom__fence_of_many(void **state)
{
	struct rp_event ev;
	struct rp *m;

	(void)state;
	assert_int_equal(rp_create(0, 2, &m), 0);
	for (uint64_t i = 1; i <= 1000; i++) {
		ev = (struct rp_event){ .type = RP_EV_CREATE, .id = { 2 * i, 0, 0 }, .fork = { 2 * i + 1, 0, 0 }, .peer = 1 };
		assert_int_equal(real_step(m, &ev, NULL), 0);
	}
	ev = (struct rp_event){ .type = RP_EV_PEER_FENCED, .peer = 1, .status = -EOWNERDEAD };
	allocations = 0;
	fail_at = 1;
	assert_int_equal(real_step(m, &ev, NULL), -ENOMEM);
	fail_at = 0;
	assert_int_equal(m->nr_effects, 0);
	assert_null(tl_rp_check(m));
	assert_int_equal(real_step(m, &ev, NULL), 0);
	assert_int_equal(m->nr_effects, 2000);
	rp_effects_clear(m);
	assert_null(tl_rp_check(m));
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
