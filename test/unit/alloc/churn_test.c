/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas of ra that come and go by the thousand: a test suite
 * creates and shuts down contexts all day. */
#include "ra_test.h"

int ra_je_mallctl(const char *name, void *oldp, size_t *oldlenp, void *newp, size_t newlen);

static unsigned narenas(void)
{
	size_t len = sizeof(unsigned);
	unsigned n = 0;

	assert_int_equal(ra_je_mallctl("arenas.narenas", &n, &len, NULL, 0), 0);
	return n;
}

static void cycle(unsigned i)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, (64 + i % 7 * 32) * MIB, 2 * MIB);
	void *p;

	for (size_t size = 64; size <= 3 * MIB; size *= 8) {
		p = must_alloc(a, size, 0);
		mark(p, size < 64 * KIB ? size : 64 * KIB, i);
		if (size % 3)
			ra_free(a, p, size);
	}
	ra_arena_destroy(a);
	assert_int_equal(d.nr_dereg, d.nr_regions);
}

static void cycles__leak_nothing(void **state)
{
	unsigned nr = UNDER_SANITIZER ? 1000 : 10000, fds, maps, arenas;
	size_t vm, rss;

	(void)state;
	for (unsigned i = 0; i < 100; i++)
		cycle(i);
	fds = open_fds();
	maps = mappings("");
	arenas = narenas();
	vm = status_bytes("VmSize:");
	rss = status_bytes("VmRSS:");
	for (unsigned i = 0; i < nr; i++)
		cycle(i);
	print_message("%u cycles: VmSize %zu -> %zu KiB, VmRSS %zu -> %zu KiB, maps %u -> %u\n", nr,
		      vm / KIB, status_bytes("VmSize:") / KIB, rss / KIB,
		      status_bytes("VmRSS:") / KIB, maps, mappings(""));
	assert_int_equal(open_fds(), fds);
	assert_int_equal(narenas(), arenas);
	assert_int_equal(mappings("/memfd:"), 0);
	if (UNDER_SANITIZER)
		return; /* the sanitizers' own memory comes and goes */
	assert_true(status_bytes("VmSize:") <= vm + 4 * MIB);
	assert_true(status_bytes("VmRSS:") <= rss + 2 * MIB);
	assert_true(mappings("") <= maps + 4);
}

static void many_at_once__indexes_are_reused(void **state)
{
	enum { NR = 200 };
	struct ra_arena *a[NR];
	struct dev d[NR];
	unsigned arenas = 0;

	(void)state;
	for (unsigned round = 0; round < 3; round++) {
		memset(d, 0, sizeof(d));
		for (unsigned i = 0; i < NR; i++) {
			a[i] = arena_new(&d[i], 16 * MIB, 2 * MIB);
			mark(must_alloc(a[i], 1000, 0), 1000, i);
		}
		if (round == 0)
			arenas = narenas();
		assert_int_equal(narenas(), arenas);
		for (unsigned i = 0; i < NR; i++)
			ra_arena_destroy(a[(i * 7) % NR]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cycles__leak_nothing),
		cmocka_unit_test(many_at_once__indexes_are_reused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
