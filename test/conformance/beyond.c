/* SPDX-License-Identifier: Apache-2.0 */
/* Cases of extremes: references to lost values, many threads, many rounds, many workers. */
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "tg_refs.h"

/*
 * A reference to a deleted or unknown value is answered at once. This worker answers if it has no
 * such entry. The value's header does if the memory has another value by now. White box, since no
 * program can get such a reference.
 */
TG_TEST(c182_unknown_and_deleted_ones_fail_promptly, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_ask(ctx, 1, "pub.make",
					(struct tg_make){ .length = 100, .seed = 1 }),
			    *unknown;
		struct rp_location real = rc_remote(r)->loc, old;
		struct rref_view *v;

		tg_expect_bytes(tg_remote(ctx, 1, "tg.echo", "x", 1), "x", 1);
		for (int i = 0; i < 3; i++) {
			rc_remote(r)->loc.nonce = real.nonce + (uint64_t)i - 1;
			TG_IS(rref_to_here(r, RREF_FOREVER, &v), i == 1 ? 0 : -ESTALE);
			if (i == 1)
				rref_view_free(v);
		}
		rc_remote(r)->loc = real;
		/* The place of a value that was deleted, with another worker's value in it. */
		old = real;
		rref_release(r);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		for (int64_t end = tg_deadline(); tg_stats_of(ctx, 1).owners != 1; usleep(500))
			TG_CHECK(now_ns() < end);
		r = tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = 100, .seed = 2 });
		real = rc_remote(r)->loc;
		rc_remote(r)->loc = old;
		TG_IS(rref_to_here(r, RREF_FOREVER, &v), -ESTALE);
		rc_remote(r)->loc = real;
		TG_OK(rref_to_here(r, RREF_FOREVER, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 100, 0, 2));
		rref_view_free(v);
		rref_release(r);

		rc_lock(ctx);
		unknown = rc_handle_make(ctx, false, rc_next_id(ctx), rc_next_id(ctx), 1);
		rc_unlock(ctx);
		TG_CHECK(unknown);
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_to_here(unknown, RREF_FOREVER, &v), -ESTALE);
			TG_IS(rref_rpc_sync(ctx, 1, "tg.read", tg_with(&unknown, 1), RREF_FOREVER,
					    NULL),
			      -ESTALE);
		}
		rref_release(unknown);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
	}
	tg_finish(ctx);
	return 0;
}

struct shared_handle {
	struct rref *r;
	struct rref_ctx *ctx;
	int rounds, to;
};

static void *share_often(void *arg)
{
	struct shared_handle *s = arg;

	for (int i = 0; i < s->rounds; i++)
		TG_IS(tg_sum_there(s->ctx, s->to, &s->r, 1), 's');
	rref_release(s->r);
	return NULL;
}

/* Several threads share and release it: the last release ends it. */
TG_TEST(c187_shared_and_released_by_many_threads, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "shared", 6);
		struct shared_handle s[6];
		pthread_t t[6];

		for (int i = 0; i < 6; i++) {
			s[i] = (struct shared_handle){ rref_dup(r), ctx, tg_scale(60), i % 3 };
			TG_IS(pthread_create(&t[i], NULL, share_often, &s[i]), 0);
		}
		rref_release(r);
		for (int i = 0; i < 6; i++)
			pthread_join(t[i], NULL);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Returns the process' memory in KiB: all of it, since no part may grow. */
static long resident_kib(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	long size, resident;

	TG_CHECK(f && fscanf(f, "%ld %ld", &size, &resident) == 2);
	fclose(f);
	return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Makes a million values: most of them here, some shared, some created there. The first tenth warms
 * up the memory kept for reuse. */
TG_TEST(c192_a_million_created_and_released, 2)
{
	struct rref_ctx *ctx;

	/* Otherwise the kernel may make one huge page of sparse
	 * memory: 2 MiB more are then resident. */
	TG_IS(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
	ctx = tg_join_refs(rank);
	if (rank == 0) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
		/* each costs ten times as much, and freed memory is kept by the sanitizer */
		const int nr = 50000;
#else
		const int nr = tg_scale(1000000);
#endif
		struct rref_stats warm[2], end[2];
		long warm_kib = 0;

		for (int i = 0; i < nr; i++) {
			struct rref *r;

			if (i == nr / 10) {
				tg_all_clean(ctx);
				for (int k = 0; k < 2; k++)
					warm[k] = tg_stats_of(ctx, k);
				warm_kib = resident_kib();
			}
			if (i % 50 == 5) {
				rref_release(tg_remote(ctx, 1, "tg.echo_inline", &i, sizeof(i)));
				continue;
			}
			TG_OK(rref_new(ctx, &i, sizeof(i), &r));
			if (i % 50 == 0)
				tg_sum_there(ctx, 1, &r, 1);
			rref_release(r);
		}
		tg_all_clean(ctx);
		for (int k = 0; k < 2; k++) {
			end[k] = tg_stats_of(ctx, k);
			TG_IS(end[k].registered_bytes, warm[k].registered_bytes);
			TG_IS(end[k].nr_regions, warm[k].nr_regions);
			TG_CHECK(end[k].tombstones <= 1024); /* limit of protocol.h for a peer */
		}
		TG_CHECK(warm_kib > 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		/* Nine tenths of them must cost less than a page each hundred. A leaked entry,
		 * tombstone or handle costs more. */
		TG_CHECK(resident_kib() - warm_kib < 1024);
#endif
	}
	tg_finish(ctx);
	return 0;
}

/* Makes a value on each other worker. Each worker holds one of each other worker when all leave. */
static int all_to_all(int rank, void *arg)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int world = rref_world_size(ctx);
	struct rref *mine;

	(void)arg;
	TG_OK(rref_new(ctx, &rank, sizeof(rank), &mine));
	for (int i = 0; i < world; i++)
		TG_OK(rref_rpc_sync(ctx, (rank + i) % world, "keep", tg_with(&mine, 1),
				    RREF_DEFAULT, NULL));
	TG_IS(tg_stats(ctx).forks, world - 1);
	tg_meet_serving(ctx, 0);
	/* The kept references are in the order of arrival. */
	for (int i = 0; i < world; i++) {
		int owner = rref_owner(tg_kept(i));

		tg_expect_bytes(tg_kept(i), &owner, sizeof(owner));
	}
	TG_IS(tg_stats(ctx).users, world - 1);
	if (rank % 2)
		tg_ask(ctx, rank, "pub.drop", (struct tg_make){ 0 });
	rref_release(mine);
	tg_finish(ctx);
	return 0;
}

static void c197_a_group_of_64_all_to_all(void **state)
{
#if defined(__SANITIZE_THREAD__)
	int world = 16; /* the sanitizer's own threads and memory, for each of 64 */
#else
	int world = 64;
#endif
	struct tg_group g = { .world = tg_is_shm() ? world : 8, .timeout_s = 120 };

	(void)state;
	assert_int_equal(tg_run_group(&g, all_to_all, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c182_unknown_and_deleted_ones_fail_promptly),
		cmocka_unit_test(c187_shared_and_released_by_many_threads),
		cmocka_unit_test(c192_a_million_created_and_released),
		cmocka_unit_test(c197_a_group_of_64_all_to_all),
	};

	return cmocka_run_group_tests_name("beyond", tests, NULL, NULL);
}
