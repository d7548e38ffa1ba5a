/* SPDX-License-Identifier: Apache-2.0 */
/* Size: a million references, their cost, and that all of it comes back. */
#include <malloc.h>
#include <time.h>

#include "core/protocol/internal.h"
#include "test/unit/protocol/rp_test.h"

#define MILLION 1000000u

static int value;

static size_t heap(void)
{
	struct mallinfo2 i = mallinfo2();

	return i.uordblks + i.hblkhd;
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void fast(struct rp *m, const struct rp_event *ev)
{
	struct rp_fork rec;

	rp_effects_clear(m);
	assert_int_equal(rp_step(m, ev, &rec), 0);
}

static void rp_table__a_million_owner_entries(void **state)
{
	struct rp *m = machine(0, 2);
	size_t before, full, after;
	double t0, t1, t2;

	(void)state;
	rp_set_seed(m, 12345);
	fast(m, EV(NEW, .id = ID(0, 1)));
	fast(m, EV(RELEASE, .id = ID(0, 1)));
	fast(m, EV(SET, .id = ID(0, 1), .status = -EIO));
	before = heap();
	t0 = seconds();
	for (uint64_t i = 1; i <= MILLION; i++) {
		fast(m, EV(NEW, .id = ID(0, 2 * i)));
		fast(m, EV(SET, .id = ID(0, 2 * i), .value = &value));
		fast(m, EV(FORK, .id = ID(0, 2 * i), .fork = ID(0, 2 * i + 1), .peer = 1));
		fast(m, EV(RELEASE, .id = ID(0, 2 * i)));
	}
	full = heap();
	t1 = seconds();
	assert_int_equal(counts(m).forks, MILLION);
	assert_null(tl_rp_check(m));
	for (uint64_t i = MILLION; i; i--)
		fast(m, MSG(DELETE, 1, ID(0, 2 * i), ID(0, 2 * i + 1)));
	t2 = seconds();
	assert_empty(m);
	rp_effects_clear(m);
	assert_null(tl_rp_check(m));
	after = heap();
	print_message("%.0f bytes per entry with one fork, %.0f ns to make one, %.0f ns to end "
		      "it\n",
		      (double)(full - before) / MILLION, (t1 - t0) * 1e3, (t2 - t1) * 1e3);
	/* Sanitizers' allocators do not tell, and give nothing back. */
	if (full != before) {
		assert_true(full - before < 125ul * MILLION);
		assert_true(after < before + 300000);
	}
	rp_destroy(m);
}

static void rp_table__a_million_forks_of_one_value(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	fast(m, EV(NEW, .id = ID(0, 1)));
	fast(m, EV(SET, .id = ID(0, 1), .value = &value));
	give_word(m, ID(0, 1));
	for (uint64_t i = 1; i <= MILLION; i++)
		fast(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, i)));
	fast(m, EV(RELEASE, .id = ID(0, 1)));
	fast(m, EV(PEER_FENCED, .peer = 3, .status = -EOWNERDEAD));
	fast(m, EV(PEER_GRACE, .peer = 3));
	effect(m, 0, RP_EFF_FREE_VALUE);
	assert_empty(m);
	assert_null(tl_rp_check(m));
	rp_destroy(m);
}

/* Makes every stride-th id, and returns the length of the longest chain of any bucket. *apart: the
 * number of ids with another bucket than the rest of their line of 16. */
static uint32_t longest_chain(uint64_t stride, uint32_t *apart)
{
	struct rp *m = machine(0, 2);
	uint32_t most = 0;

	rp_set_seed(m, 98765);
	for (uint64_t i = 1; i <= 1u << 16; i++)
		fast(m, EV(NEW, .id = ID(0, i * stride)));
	for (uint32_t b = 0; b <= m->owner_table.mask; b++) {
		uint32_t n = 0;

		for (uint32_t i = m->owner_table.buckets[b]; i; i = rp_owner_at(m, i)->hashed.next)
			n++;
		most = n > most ? n : most;
	}
	*apart = 0;
	for (uint64_t i = 16; i < 1u << 16; i += 16)
		for (uint64_t k = 1; k < 16; k++) {
			uint32_t first = rp_hash(m, &ID(0, i), 0),
				 other = rp_hash(m, &ID(0, i + k), 0);

			*apart += first / 16 != other / 16 || first == other;
		}
	rp_destroy(m);
	return most;
}

static void rp_table__neighbours_share_a_line_and_strides_do_not_meet(void **state)
{
	uint32_t apart;

	(void)state;
	for (uint64_t stride = 1; stride <= 1u << 20; stride *= 4) {
		/* There are as many buckets as entries: at random the
		 * longest of 65536 chains has 8 or 9. */
		assert_in_range(longest_chain(stride, &apart), 1, 12);
		assert_int_equal(apart, 0);
	}
}

/* Looks after each step: the table must tell in time that the next step may need more room. */
static void rp_table__grows_with_its_items(void **state)
{
	struct rp *m = machine(0, 2);

	(void)state;
	assert_null(tl_rp_check(m));
	for (uint64_t i = 1; i <= 600; i++) {
		fast(m, EV(NEW, .id = ID(0, 2 * i)));
		assert_null(tl_rp_check(m));
		fast(m, EV(FORK, .id = ID(0, 2 * i), .fork = ID(0, 2 * i + 1), .peer = 1));
		assert_null(tl_rp_check(m));
		fast(m, EV(WAIT, .id = ID(0, 2 * i), .cookie = i));
		assert_null(tl_rp_check(m));
	}
	assert_int_equal(m->owner_table.mask, 1023);
	for (uint64_t i = 1; i <= 600; i++) {
		fast(m, EV(SET, .id = ID(0, 2 * i), .value = &value));
		fast(m, EV(RELEASE, .id = ID(0, 2 * i)));
		fast(m, MSG(DELETE, 1, ID(0, 2 * i), ID(0, 2 * i + 1)));
		assert_null(tl_rp_check(m));
	}
	assert_int_equal(counts(m).owners, 0);
	rp_destroy(m);
}

static void rp_table__handles_keep_their_address(void **state)
{
	struct rp *m = machine(2, 4);
	void **slots[3000];

	(void)state;
	for (uint64_t i = 0; i < 3000; i++) {
		struct rp_fork rec = { .word = WORD,
				       .id = ID(0, i + 1),
				       .fork = ID(0, i + 1),
				       .owner = 0,
				       .parent = 0 };

		fast(m, EV(RECV_FORK, .rec = &rec, .peer = 0, .cookie = i));
		slots[i] = effect(m, 0, RP_EFF_NEW_HANDLE)->handle_slot;
		*slots[i] = &slots[i];
	}
	for (size_t i = 0; i < 3000; i++)
		assert_ptr_equal(*slots[i], &slots[i]);
	fast(m, EV(PEER_FENCED, .peer = 0, .status = -EOWNERDEAD));
	assert_int_equal(nr_effects(m), 3000);
	for (size_t i = 0; i < 3000; i++)
		assert_ptr_equal(effect(m, i, RP_EFF_FAILED)->handle, &slots[i]);
	rp_destroy(m);
}

static void rp_table__create_and_release_does_not_grow(void **state)
{
	struct rp *m = machine(0, 2);
	size_t before = 0;

	(void)state;
	for (uint64_t i = 1; i <= MILLION; i++) {
		fast(m, EV(NEW, .id = ID(0, i)));
		fast(m, EV(SET, .id = ID(0, i), .value = &value));
		fast(m, EV(RELEASE, .id = ID(0, i)));
		if (i == 1000)
			before = heap();
	}
	assert_int_equal(heap(), before);
	assert_empty(m);
	rp_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_table__a_million_forks_of_one_value),
		cmocka_unit_test(rp_table__a_million_owner_entries),
		cmocka_unit_test(rp_table__create_and_release_does_not_grow),
		cmocka_unit_test(rp_table__grows_with_its_items),
		cmocka_unit_test(rp_table__handles_keep_their_address),
		cmocka_unit_test(rp_table__neighbours_share_a_line_and_strides_do_not_meet),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
