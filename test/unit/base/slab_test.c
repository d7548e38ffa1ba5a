/* SPDX-License-Identifier: Apache-2.0 */
/* Slabs: places that are allocated, found, visited, and freed. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/base/slab.h"

#define MANY 5000u

struct item {
	uint64_t number;
	unsigned char rest[56];
};

static size_t heap(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

static struct item *get(struct rc_slabs *s, uint64_t number)
{
	static const struct item zero;
	struct item *i = rc_slab_get(s);

	assert_non_null(i);
	assert_memory_equal(i, &zero, sizeof(zero));
	memset(i, 0xa5, sizeof(*i));
	i->number = number;
	return i;
}

/* Visits every item once, and nothing else. */
static void see(struct rc_slabs *s, const unsigned char *there)
{
	unsigned char *seen = calloc(1, MANY);

	assert_non_null(seen);
	for (struct item *i = rc_slab_next(s, NULL); i; i = rc_slab_next(s, i)) {
		assert_in_range(i->number, 0, MANY - 1);
		assert_int_equal(seen[i->number]++, 0);
	}
	assert_memory_equal(seen, there, MANY);
	free(seen);
}

static void slab__items_are_apart_and_lie_on_lines(void **state)
{
	struct rc_slabs s;
	struct item *i[MANY];

	(void)state;
	rc_slabs_open(&s, sizeof(struct item));
	assert_null(rc_slab_next(&s, NULL));
	for (unsigned n = 0; n < MANY; n++) {
		i[n] = get(&s, n);
		assert_int_equal((uintptr_t)i[n] % CACHE_LINE, 0);
	}
	for (unsigned n = 0; n < MANY; n++)
		assert_int_equal(i[n]->number, n);
	rc_slabs_close(&s);
}

static void slab__visits_present_items_during_changes(void **state)
{
	static unsigned char there[MANY];
	struct item *i[MANY] = { 0 };
	struct rc_slabs s;

	(void)state;
	srand(7);
	rc_slabs_open(&s, sizeof(struct item));
	/* Grown, thinned out, emptied: slabs that are full, have room, are given back. */
	for (int up = 90, round = 0; round < 9; round++,
		 up = round % 3 == 0					 ? 90
							: round % 3 == 1 ? 20
									 : 0) {
		for (unsigned k = 0; k < 4 * MANY; k++) {
			unsigned n = (unsigned)rand() % MANY;
			int want = rand() % 100 < up;

			if (want && !i[n])
				i[n] = get(&s, n);
			else if (!want && i[n])
				rc_slab_put(&s, i[n]), i[n] = NULL;
			there[n] = i[n] != NULL;
		}
		see(&s, there);
	}
	rc_slabs_close(&s);
}

static void slab__last_freed_place_is_used_first(void **state)
{
	struct rc_slabs s;
	struct item *a, *b;

	(void)state;
	rc_slabs_open(&s, sizeof(struct item));
	for (unsigned n = 0; n < MANY; n++)
		a = get(&s, n);
	rc_slab_put(&s, a);
	b = get(&s, 0);
	assert_ptr_equal(a, b);
	rc_slabs_close(&s);
}

static void slab__memory_comes_back_and_a_brief_item_costs_none(void **state)
{
	static struct item *i[MANY];
	size_t before, few, most;
	struct rc_slabs s;

	(void)state;
	rc_slabs_open(&s, sizeof(struct item));
	before = heap();
	rc_slab_put(&s, get(&s, 1));
	few = heap();
	for (unsigned n = 0; n < MANY; n++)
		i[n] = get(&s, n);
	most = heap();
	/* Only the items, and a little for each slab. The
	 * allocators of the sanitizers do not tell. */
	if (few != before)
		assert_in_range(most - before, MANY * sizeof(struct item),
				MANY * (sizeof(struct item) + 1) + few - before);
	for (unsigned n = 0; n < MANY; n++)
		rc_slab_put(&s, i[n]);
	assert_int_equal(heap(), few);
	for (unsigned n = 0; n < MANY; n++)
		rc_slab_put(&s, get(&s, n));
	assert_int_equal(heap(), few);
	assert_null(rc_slab_next(&s, NULL));
	rc_slabs_close(&s);
	assert_int_equal(heap(), before);
}

/* Items come and go over the edge of a slab, and the first to come is the first to go. */
static void slab__the_edge_of_a_slab_costs_no_allocation(void **state)
{
	size_t before, one, two;
	struct rc_slabs s;

	(void)state;
	rc_slabs_open(&s, sizeof(struct item));
	before = heap();
	get(&s, 0);
	one = heap() - before;
	for (unsigned n = 1; n < s.per - 1; n++)
		get(&s, n);
	rc_slab_put(&s, get(&s, 0));
	assert_int_equal(heap(), before + one);
	for (unsigned round = 0; round < 3; round++) {
		struct item *a = get(&s, 1), *b = get(&s, 2);

		two = heap();
		rc_slab_put(&s, a);
		rc_slab_put(&s, b);
		assert_int_equal(heap(), two);
	}
	rc_slabs_close(&s);
	assert_int_equal(heap(), before);
}

static void slab__items_of_any_size(void **state)
{
	(void)state;
	for (size_t size = 8; size <= 4096; size += 72) {
		struct rc_slabs s;
		unsigned nr = 0;

		rc_slabs_open(&s, size);
		for (unsigned n = 0; n < 300; n++)
			memset(rc_slab_get(&s), (int)n, size);
		for (unsigned char *i = rc_slab_next(&s, NULL); i; i = rc_slab_next(&s, i), nr++)
			for (size_t k = 1; k < size; k++)
				assert_int_equal(i[k], i[0]);
		assert_int_equal(nr, 300);
		rc_slabs_close(&s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(slab__items_are_apart_and_lie_on_lines),
		cmocka_unit_test(slab__items_of_any_size),
		cmocka_unit_test(slab__memory_comes_back_and_a_brief_item_costs_none),
		cmocka_unit_test(slab__the_edge_of_a_slab_costs_no_allocation),
		cmocka_unit_test(slab__last_freed_place_is_used_first),
		cmocka_unit_test(slab__visits_present_items_during_changes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
