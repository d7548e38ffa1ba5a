/* SPDX-License-Identifier: Apache-2.0 */
/* Seeded random programs over the protocol's state machine (test/lib/tl_rpsim.h). RP_SEEDS raises how many, RP_SEED
 * replays one, RP_TRACE prints its steps, RP_TEST=<name> runs one test only. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "test/lib/tl_rpsim.h"

static unsigned long long first_seed = 1, nr_seeds = 1000, current;

/* An assertion of the machine ends the process: say which seed it was. */
static void on_abort(int sig)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "RP_SEED=%llu failed\n", current);

	(void)!write(2, text, (size_t)n);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void run(unsigned flags)
{
	struct tl_rp_result sum = { .steps = 0 }, r;

	signal(SIGABRT, on_abort);
	signal(SIGSEGV, on_abort);
	for (current = first_seed; current < first_seed + nr_seeds; current++) {
		unsigned machines = 1 + (unsigned)(current * 7 % 5), actions = 40 + (unsigned)(current % 7) * 60;

		if (tl_rp_sim(current, machines, actions, flags, &r))
			fail_msg("RP_SEED=%llu: %s", current, r.text);
		sum.steps += r.steps;
		sum.messages += r.messages;
		sum.kills += r.kills;
		sum.cuts += r.cuts;
		sum.freed += r.freed;
		sum.attacks += r.attacks;
		sum.refused_records += r.refused_records;
	}
	print_message("%llu seeds: %llu steps, %llu messages, %llu values freed, %llu kills, %llu cuts, %llu records refused, %llu attacks\n",
		      nr_seeds, (unsigned long long)sum.steps, (unsigned long long)sum.messages, (unsigned long long)sum.freed,
		      (unsigned long long)sum.kills, (unsigned long long)sum.cuts, (unsigned long long)sum.refused_records,
		      (unsigned long long)sum.attacks);
}

static void rp_random__chaos(void **state)
{
	(void)state;
	run(TL_RP_CHAOS);
}

static void rp_random__chaos_and_crashes(void **state)
{
	(void)state;
	run(TL_RP_CHAOS | TL_RP_CRASH);
}

static void rp_random__in_order(void **state)
{
	(void)state;
	run(0);
}

static void rp_random__in_order_and_crashes(void **state)
{
	(void)state;
	run(TL_RP_CRASH);
}

static void rp_random__hostile(void **state)
{
	(void)state;
	run(TL_RP_CHAOS | TL_RP_HOSTILE);
}

static void rp_random__hostile_and_crashes(void **state)
{
	(void)state;
	run(TL_RP_CHAOS | TL_RP_CRASH | TL_RP_HOSTILE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_random__chaos),
		cmocka_unit_test(rp_random__chaos_and_crashes),
		cmocka_unit_test(rp_random__hostile),
		cmocka_unit_test(rp_random__hostile_and_crashes),
		cmocka_unit_test(rp_random__in_order),
		cmocka_unit_test(rp_random__in_order_and_crashes),
	};
	const char *seeds = getenv("RP_SEEDS"), *seed = getenv("RP_SEED"), *test = getenv("RP_TEST");

	if (seeds)
		nr_seeds = strtoull(seeds, NULL, 10);
	if (seed) {
		first_seed = strtoull(seed, NULL, 10);
		nr_seeds = 1;
	}
	if (test)
		cmocka_set_test_filter(test);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
