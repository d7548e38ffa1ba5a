/* SPDX-License-Identifier: Apache-2.0 */
/* The main job, end to end: create, share in every way, read,
 * call, release, leave. Real processes, any device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

/* Atomic: another process makes sure that it is set before the request. */
static struct rref *_Atomic published;

static int get_published(struct rref_call *call, void *arg)
{
	struct rref *ref = published;
	struct rref_args a = { .refs = &ref, .nr_refs = 1 };

	(void)arg;
	return rref_call_reply(call, &a);
}

static int echo(struct rref_call *call, void *arg)
{
	struct rref_args a = { .data = rref_call_data(call), .length = rref_call_length(call) };

	(void)arg;
	return rref_call_reply(call, &a);
}

/* Reads its references and returns the sum of their first bytes. */
static int read_all(struct rref_call *call, void *arg)
{
	unsigned sum = 0;

	(void)arg;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++) {
		struct rref_view *v;
		int err = rref_to_here(rref_call_ref(call, i), RREF_DEFAULT, &v);

		if (err)
			return rref_call_error(call, err, "reading: %s", rref_last_error());
		sum += *(const unsigned char *)rref_view_data(v);
		rref_view_free(v);
	}
	struct rref_args a = { .data = &sum, .length = sizeof(sum) };

	return rref_call_reply(call, &a);
}

static const struct rref_function functions[] = {
	{ .name = "get_published", .handler = get_published },
	{ .name = "echo", .handler = echo },
	{ .name = "echo_inline", .handler = echo, .flags = RREF_INLINE },
	{ .name = "read_all", .handler = read_all },
};

static int pair(int rank, void *arg)
{
	struct rref_ctx *ctx = tg_init(rank, functions, array_size(functions));

	(void)arg;
	if (rank == 0) {
		struct rref *ref;

		TG_OK(rref_new(ctx, "published", 10, &ref));
		published = ref;
		tg_meet(0);
	} else {
		struct rref_future *f;
		struct rref *r;
		struct rref_view *v;

		tg_meet(0);
		TG_OK(rref_rpc_sync(ctx, 0, "get_published", NULL, RREF_DEFAULT, &f));
		TG_IS(rref_future_nr_refs(f), 1);
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		TG_IS(rref_confirmed(r), 1);
		TG_IS(rref_owner(r), 0);
		for (int i = 0; i < tg_scale(1000); i++) {
			TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
			TG_CHECK(rref_view_length(v) == 10 &&
				 strcmp(rref_view_data(v), "published") == 0);
			rref_view_free(v);
		}
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

static void two_workers__owner_shares_user_reads(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, pair, NULL), 0);
}

/* Creates on 1, shares with 2 (user to user), with 1 (user to owner), and with itself; reads.
 * Counts return to zero. */
static int ring(int rank, void *arg)
{
	struct rref_ctx *ctx = tg_init(rank, functions, array_size(functions));

	(void)arg;
	if (rank == 0) {
		for (int round = 0; round < tg_scale(100); round++) {
			struct rref *r;
			struct rref_view *v;
			unsigned char byte = 7;

			TG_OK(rref_remote(ctx, 1, "echo",
					  &(struct rref_args){ .data = &byte, .length = 1 },
					  RREF_DEFAULT, &r));
			for (int to = 0; to < 3; to++) {
				struct rref_future *f;
				const void *data;
				size_t length;

				TG_OK(rref_rpc_sync(ctx, to, "read_all",
						    &(struct rref_args){
							    .refs = (struct rref *[]){ r, r },
							    .nr_refs = 2 },
						    RREF_DEFAULT, &f));
				TG_OK(rref_future_data(f, &data, &length));
				TG_IS(*(const unsigned *)data, 14);
				rref_future_free(f);
			}
			TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
			TG_IS(*(const unsigned char *)rref_view_data(v), 7);
			rref_view_free(v);
			rref_release(r);
		}
	}
	tg_finish(ctx);
	return 0;
}

static void three_workers__all_ways_of_sharing(void **state)
{
	(void)state;
	assert_int_equal(tg_run(3, ring, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_workers__owner_shares_user_reads),
		cmocka_unit_test(three_workers__all_ways_of_sharing),
	};

	return cmocka_run_group_tests_name("spine", tests, NULL, NULL);
}
