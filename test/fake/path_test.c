/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many reads of 8 bytes over fake devices, for path.sh to count their instructions. A READ is over
 * at the first poll. As a test of its own, it checks the bytes of each.
 *
 *   path_test [TEST]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "fg.h"

#define READS 20000
#define WINDOW 50 /* reads in flight */

static struct fg g = { .world = 2 };

static struct rref *join_for_8_bytes(void)
{
	for (unsigned i = 0; i < 2; i++)
		fv_knobs(i)->delay_ns = 0;
	fg_join(&g);
	return fg_value(&g, 1, 0, 8, 1);
}

static void path__one_by_one(void **state)
{
	struct rref *ref = join_for_8_bytes();

	(void)state;
	for (int i = 0; i < READS; i++)
		fg_read(ref, 8, 1);
	rref_release(ref);
	fg_leave(&g);
}

/* Waits for a future, and checks its view. */
static void expect_ones(struct rref_future *f)
{
	struct rref_view *v;

	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	TG_OK(rref_future_view(f, &v));
	rref_future_free(f);
	fg_check(v, 8, 1);
}

static void read_as_futures(int window)
{
	struct rref *ref = join_for_8_bytes();
	struct rref_future *f[WINDOW];

	for (int i = 0; i < READS; i += window) {
		for (int k = 0; k < window; k++)
			TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f[k]));
		for (int k = 0; k < window; k++)
			expect_ones(f[k]);
	}
	rref_release(ref);
	fg_leave(&g);
}

static void path__as_a_future(void **state)
{
	(void)state;
	read_as_futures(1);
}

static void path__as_many_futures(void **state)
{
	(void)state;
	read_as_futures(WINDOW);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(path__one_by_one),
		cmocka_unit_test(path__as_a_future),
		cmocka_unit_test(path__as_many_futures),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("path", tests, NULL, NULL);
}
