/* SPDX-License-Identifier: Apache-2.0 */
/* Batches of reads: a status per element, and doorbells shared by the reads of one owner. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

#define NR 1000

static int make_one(struct rref_call *call, void *arg)
{
	unsigned char bytes[64];

	(void)arg;
	memset(bytes, rref_call_length(call) ? *(const unsigned char *)rref_call_data(call) : 0,
	       sizeof(bytes));
	return rref_call_reply(call, &(struct rref_args){ .data = bytes, .length = sizeof(bytes) });
}

static const struct rref_function functions[] = { { .name = "make_one", .handler = make_one } };

static struct rref *refs[NR];
static struct rref_view *views[NR];
static int status[NR];

static void create(struct rref_ctx *ctx, int owners)
{
	for (int i = 0; i < NR; i++) {
		unsigned char byte = (unsigned char)i;
		struct rref_future *f;

		TG_OK(rref_remote(ctx, 1 + i % owners, "make_one",
				  &(struct rref_args){ .data = &byte, .length = 1 }, RREF_DEFAULT,
				  &refs[i]));
		TG_OK(rref_creation(refs[i], &f));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
	}
}

static void check_and_free(void)
{
	for (int i = 0; i < NR; i++) {
		TG_IS(status[i], 0);
		TG_IS(rref_view_length(views[i]), 64);
		for (int k = 0; k < 64; k++)
			TG_IS(((const unsigned char *)rref_view_data(views[i]))[k],
			      (unsigned char)i);
		rref_view_free(views[i]);
	}
}

static int one_owner(int rank, void *arg)
{
	struct rref_ctx *ctx = tg_init(rank, functions, array_size(functions));

	(void)arg;
	if (rank == 0) {
		struct rref_stats before, after;

		create(ctx, 1);
		before = tg_stats(ctx);
		TG_IS(rref_to_here_batch(refs, NR, RREF_DEFAULT, views, status), NR);
		after = tg_stats(ctx);
		TG_IS(after.reads + after.reads_joined - before.reads - before.reads_joined, NR);
		/* shm has no doorbell to share: posting a READ does all of it */
		if (!tg_is_shm())
			TG_CHECK(after.doorbells - before.doorbells <= NR / 8);
		check_and_free();
		for (int i = 0; i < NR; i++)
			rref_release(refs[i]);
	}
	tg_finish(ctx);
	return 0;
}

static void one_owner__doorbells_are_shared(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, one_owner, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_owner__doorbells_are_shared),
	};

	return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
