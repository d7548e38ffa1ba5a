/* SPDX-License-Identifier: Apache-2.0 */
/* The asymmetric barrier (alloc/ra_asym.h). One thread marks with a plain store, another looks:
 * they never both miss each other. */
#include <pthread.h>
#include <sched.h>

#include "alloc/ra_asym.h"
#include "ra_test.h"

enum { ROUNDS = UNDER_SANITIZER ? 2000 : 20000 };

/* Two words on separate lines: the store has to wait for its
 * line, and the load after it does not. */
struct place {
	cache_aligned _Atomic unsigned mark;
	cache_aligned _Atomic unsigned closed;
};

static struct place place[ROUNDS];
static bool saw_closed[ROUNDS], saw_mark[ROUNDS];
static _Atomic unsigned here[2];

/* Lets both threads begin a round at nearly the same time. */
static void meet(unsigned me, unsigned round)
{
	unsigned n = 0;

	at_store_rel(&here[me], round + 1);
	while (at_load_acq(&here[!me]) <= round)
		if (++n % 100000 == 0)
			sched_yield();
}

/* Moves this thread to the n-th processor that the program may use. */
static void run_on(unsigned n)
{
	cpu_set_t all, one;

	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	for (int c = 0; c < CPU_SETSIZE; c++) {
		if (!CPU_ISSET(c, &all) || n--)
			continue;
		CPU_ZERO(&one);
		CPU_SET(c, &one);
		assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
		return;
	}
}

static void *marks(void *arg)
{
	(void)arg;
	run_on(1);
	for (unsigned i = 0; i < ROUNDS; i++) {
		(void)at_load(&place[i].closed);
		meet(0, i);
		ra_asym_mark_plain(&place[i].mark, 1);
		saw_closed[i] = at_load_sc(&place[i].closed);
	}
	return NULL;
}

static void asym__one_sees_the_other(void **state)
{
	unsigned nr_both = 0, nr_marks = 0, nr_closed = 0;
	pthread_t t;

	(void)state;
	ra_asym_begin();
	if (!ra_asym_is_plain()) {
		print_message("skipped: no membarrier(2)\n");
		skip();
	}
	memset(place, 0, sizeof(place));
	assert_int_equal(pthread_create(&t, NULL, marks, NULL), 0);
	run_on(0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		/* A read here makes the other thread's store fetch the line. */
		(void)at_load(&place[i].mark);
		meet(1, i);
		for (unsigned k = 0; k < i % 64; k++)
			__asm__ volatile("");
		at_store_sc(&place[i].closed, 1);
		assert_true(ra_asym_barrier());
		saw_mark[i] = at_load_sc(&place[i].mark);
	}
	pthread_join(t, NULL);
	for (unsigned i = 0; i < ROUNDS; i++) {
		assert_true(saw_mark[i] || saw_closed[i]);
		nr_both += saw_mark[i] && saw_closed[i];
		nr_marks += saw_mark[i] && !saw_closed[i];
		nr_closed += !saw_mark[i];
	}
	print_message("%u saw the mark, %u saw it closed, %u saw both\n", nr_marks, nr_closed,
		      nr_both);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(asym__one_sees_the_other),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
