/* SPDX-License-Identifier: Apache-2.0 */
/* Cases beyond the list: references in results, chains of many hops, and
 * chains that outlive their first worker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

#define REFS 8

/* A message full of references goes there and back. Each refers to its own owner's value. */
TG_TEST(more_references_in_results, 4)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *refs[REFS], *back;
	struct rref_future *f;

	for (int i = 0; i < REFS; i++)
		refs[i] = tg_remote(ctx, (rank + i) % 4, "tg.echo", &i, sizeof(i));
	for (int to = 0; to < 4; to++) {
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo_refs", tg_with(refs, REFS), RREF_DEFAULT,
				    &f));
		TG_IS(rref_future_nr_refs(f), REFS);
		for (int i = 0; i < REFS; i += 2) {
			TG_OK(rref_future_ref(f, (size_t)i, &back));
			TG_CHECK(rref_equal(back, refs[i]) && rref_confirmed(back));
			tg_expect_bytes(back, &i, sizeof(i));
			rref_release(back);
		}
		rref_future_free(f); /* the others go with it */
	}
	for (int i = 0; i < REFS; i++)
		rref_release(refs[i]);
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(more_chains_round_a_group_of_four, 4)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		for (int owner = 0; owner < 4; owner++)
			for (int32_t hops = 1; hops <= 8; hops++) {
				struct rref *r = tg_remote(ctx, owner, "tg.echo", "\7", 1);
				struct rref_args a = { .data = &hops,
						       .length = sizeof(hops),
						       .refs = &r,
						       .nr_refs = 1 };
				struct rref_future *f;
				unsigned sum;

				TG_OK(rref_rpc_sync(ctx, 1, "hand_on", &a, RREF_DEFAULT, &f));
				tg_result(f, &sum, sizeof(sum));
				TG_IS(sum, 7);
				rref_future_free(f);
				rref_release(r);
			}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/*
 * Passes its reference on by a call without a waiter. Each handler ends while its call is under
 * way, and the last one reads the value.
 */
static int travel(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *r = rref_call_ref(call, 0);
	struct rref_future *f;
	int32_t go[2]; /* hops left, workers in the ring */

	(void)arg;
	memcpy(go, rref_call_data(call), sizeof(go));
	if (--go[0] == 0) {
		tg_expect_bytes(r, "far", 3);
		atomic_fetch_add(&tg_current->shared->flag[0], 1);
		return 0;
	}
	TG_OK(rref_rpc_async(ctx, (rref_rank(ctx) + 1) % go[1], "travel",
			     &(struct rref_args){
				     .data = go, .length = sizeof(go), .refs = &r, .nr_refs = 1 },
			     RREF_FOREVER, &f));
	rref_future_free(f);
	return 0;
}

static void send_off(struct rref_ctx *ctx, int to, struct rref *r, int32_t hops, int32_t ring)
{
	int32_t go[2] = { hops, ring };
	struct rref_future *f;

	TG_OK(rref_rpc_async(ctx, to, "travel",
			     &(struct rref_args){
				     .data = go, .length = sizeof(go), .refs = &r, .nr_refs = 1 },
			     RREF_FOREVER, &f));
	rref_future_free(f);
}

TG_TEST(more_chains_without_a_waiter, 4)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(40);

	tg_add(ctx, "travel", travel, 0);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < n; i++) {
		struct rref *r = tg_remote(ctx, (rank + i) % 4, "tg.echo", "far", 3);

		send_off(ctx, (rank + 1) % 4, r, 1 + i, 4);
		rref_release(r); /* the first worker holds nothing now */
	}
	tg_wait_flag_serving(ctx, 0, 4 * n);
	tg_meet_serving(ctx, 1);
	TG_IS(tg_flag(0), 4 * n);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

/* The first worker dies when the chain has begun. The chain goes on among the others to its end.
 * Then nothing is left of it. */
DEATH_TEST(more_chains_outlive_their_first_caller, 4, 1 << 3)
{
	struct rref_ctx *ctx = tg_join(rank);
	int three = 3;

	tg_add(ctx, "travel", travel, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 3) {
		for (int i = 0; i < 5; i++) {
			struct rref *r = tg_remote(ctx, i % 3, "tg.echo", "far", 3);
			int32_t go[2] = { 200, 3 };

			TG_OK(rref_rpc_sync(ctx, (i + 1) % 3, "travel",
					    &(struct rref_args){ .data = go,
								 .length = sizeof(go),
								 .refs = &r,
								 .nr_refs = 1 },
					    RREF_DEFAULT, NULL));
		}
		tg_die();
	}
	tg_wait_flag_serving(ctx, 0, 5);
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &three));
	/* The survivors wait for each other, serving. */
	atomic_fetch_add(&tg_current->shared->flag[1], 1);
	tg_wait_flag_serving(ctx, 1, 3);
	tg_until_clean(ctx, rank);
	tg_leave(ctx);
	return 0;
}

/* A shutdown waits for everything under way, and for its consequences. */
TG_TEST(more_chains_are_waited_for_by_the_shutdown, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "travel", travel, 0);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 3; i++) {
		struct rref *r = tg_remote(ctx, (rank + i) % 4, "tg.echo", "far", 3);

		send_off(ctx, (rank + 1) % 4, r, 400, 4);
		rref_release(r);
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	TG_IS(tg_flag(0), 12);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_references_in_results),
		cmocka_unit_test(more_chains_round_a_group_of_four),
		cmocka_unit_test(more_chains_without_a_waiter),
		cmocka_unit_test(more_chains_outlive_their_first_caller),
		cmocka_unit_test(more_chains_are_waited_for_by_the_shutdown),
	};

	return cmocka_run_group_tests_name("chains", tests, NULL, NULL);
}
