/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads of one context read: the same value and their own, of one owner and of several. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <pthread.h>

#include "fg.h"

#define THREADS_MAX 8
#define BYTES 64u
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define READS 200u
#else
#define READS 2000u
#endif

struct reader {
	pthread_t thread;
	struct rref *own, *shared;
	unsigned seed;
	unsigned right;
};

static void *read_repeatedly(void *arg)
{
	struct reader *r = arg;

	for (unsigned i = 0; i < READS; i++) {
		struct rref_view *v;
		unsigned seed = i % 2 ? r->seed : 0;

		TG_OK(rref_to_here(i % 2 ? r->own : r->shared, RREF_DEFAULT, &v));
		if (rref_view_length(v) == BYTES && tg_filled(rref_view_data(v), BYTES, 0, seed))
			r->right++;
		rref_view_free(v);
	}
	return NULL;
}

/* Lets that many threads of worker 0 read. Their own values are those of all owners in turn. */
static void let_read(struct fg *g, struct reader *readers, int n)
{
	struct rref_stats before = tg_stats(g->ctx[0]), after;
	uint64_t reads, posted = fv_count(0).reads;

	for (int i = 0; i < n; i++) {
		readers[i].right = 0;
		TG_IS(pthread_create(&readers[i].thread, NULL, read_repeatedly, &readers[i]), 0);
	}
	for (int i = 0; i < n; i++) {
		pthread_join(readers[i].thread, NULL);
		assert_int_equal(readers[i].right, READS);
	}
	after = tg_stats(g->ctx[0]);
	reads = after.reads - before.reads;
	posted = fv_count(0).reads - posted;
	/* A read that takes long on a busy machine is asked for again. */
	assert_int_equal(reads - (after.reads_again - before.reads_again), READS * (unsigned)n);
	/* Beacons of the sessions are READs of the device, too. */
	assert_in_range(posted, reads, reads + 100);
}

static void read_with_threads(int world, int64_t delay_ns)
{
	struct reader readers[THREADS_MAX];
	struct fg g = { .world = world };

	for (int i = 0; i < world; i++)
		fv_knobs((unsigned)i)->delay_ns = delay_ns;
	fg_join(&g);
	for (int i = 0; i < THREADS_MAX; i++) {
		readers[i] = (struct reader){ .seed = 1 + (unsigned)i };
		readers[i].own = fg_value(&g, 1 + i % (world - 1), 0, BYTES, readers[i].seed);
		readers[i].shared = i ? rref_dup(readers[0].shared)
				      : fg_value(&g, 1, 0, BYTES, 0);
		TG_CHECK(readers[i].shared);
	}
	for (int n = 1; n <= THREADS_MAX; n *= 2)
		let_read(&g, readers, n);
	for (int i = 0; i < THREADS_MAX; i++) {
		rref_release(readers[i].own);
		rref_release(readers[i].shared);
	}
	fg_leave(&g);
}

static void threads__read_of_one_owner(void **state)
{
	(void)state;
	read_with_threads(2, 2000);
}

static void threads__read_of_one_owner_at_once(void **state)
{
	(void)state;
	read_with_threads(2, 0);
}

static void threads__read_of_seven_owners(void **state)
{
	(void)state;
	read_with_threads(8, 2000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads__read_of_one_owner),
		cmocka_unit_test(threads__read_of_one_owner_at_once),
		cmocka_unit_test(threads__read_of_seven_owners),
	};

	return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
