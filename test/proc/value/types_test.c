/* SPDX-License-Identifier: Apache-2.0 */
/* The type of a value: expectations about it, and a view's knowledge of it. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_types.h"

#define MS NSEC_PER_MSEC

static const struct rref_type floats = { sizeof(floats), "float32[]", 0, 0 };

TG_TEST(expect__a_mismatch_names_both_types_value_and_owner, 3)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_type narrow = { sizeof(narrow), "tick", 8, 0 },
				 local = { sizeof(local), "tick", 16, RREF_LOCAL_ONLY };
		struct rref *r = tgt_made(ctx, 1, "tick"), *other = tgt_made(ctx, 1, "depth");
		char name[RREF_TEXT_SIZE];
		struct rref_future *f;

		rref_format(other, name, sizeof(name));
		TG_IS(rref_expect_type(other, &tgt_tick, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT(name);
		TG_TEXT("depth (elements of 16 bytes)");
		TG_TEXT("not tick (elements of 16 bytes)");
		TG_TEXT(rref_owner_name(other));
		TG_OK(rref_expect_type(r, &tgt_tick, RREF_DEFAULT));
		/* Another type of the same name. */
		TG_IS(rref_expect_type(r, &narrow, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT("not tick (elements of 8 bytes)");
		TG_IS(rref_expect_type(r, &local, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT("local only");
		TG_IS(rref_expect_type(r, &floats, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT("float32[] (elements of 4 bytes)");
		/* A handler checks its argument: on its owner, on a third worker, and here. */
		for (int to = 0; to < 3; to++) {
			TG_OK(rref_rpc_sync(ctx, to, "take_ticks",
					    &(struct rref_args){ .refs = &r, .nr_refs = 1 },
					    RREF_DEFAULT, NULL));
			TG_IS(rref_rpc_sync(ctx, to, "take_ticks",
					    &(struct rref_args){ .refs = &other, .nr_refs = 1 },
					    RREF_DEFAULT, &f),
			      -EPROTOTYPE);
			TG_TEXT("is of type depth");
		}
		rref_release(r);
		rref_release(other);
	}
	tgt_finish(ctx, 3);
	return 0;
}

TG_TEST(view__knows_its_type, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *r = tgt_made(ctx, 1, "trade");
		struct rref_type t = { .size = sizeof(t) },
				 old = { .size = offsetof(struct rref_type, element_size) };
		struct rref_view *v;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), 2 * sizeof(struct tgt_tick));
		TG_IS(rref_view_type(v, &t), -ENOENT);
		TG_TEXT("rref_get_type");
		tgt_is_type(r, "trade", sizeof(struct tgt_tick), 0);
		TG_OK(rref_view_type(v, &t));
		TG_CHECK(strcmp(t.name, "trade") == 0 && t.element_size == sizeof(struct tgt_tick));
		/* A program with a smaller struct. */
		old.element_size = 99;
		TG_OK(rref_view_type(v, &old));
		TG_CHECK(strcmp(old.name, "trade") == 0 && old.element_size == 99);
		rref_view_free(v);
		rref_release(r);
		TG_OK(rref_new_value(ctx, TG_VALUE(.type = &tgt_tick), &r));
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_OK(rref_view_type(v, &t));
		TG_CHECK(strcmp(t.name, "tick") == 0);
		rref_view_free(v);
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

struct asker {
	struct rref_ctx *ctx;
	struct rref **refs;
	int nr;
	pthread_barrier_t *start;
};

static void *ask(void *arg)
{
	struct asker *a = arg;
	char name[16];

	pthread_barrier_wait(a->start);
	for (int i = 0; i < a->nr; i++) {
		struct rref_type mine = { sizeof(mine), name, 4, 0 };
		struct rref *own;

		snprintf(name, sizeof(name), "t%d", i);
		tgt_is_type(a->refs[i], name, sizeof(struct tgt_tick), 0);
		TG_OK(rref_new_value(a->ctx, TG_VALUE(.type = &mine), &own));
		TG_IS(rref_expect_type(a->refs[i], &mine, RREF_DEFAULT), -EPROTOTYPE);
		TG_OK(rref_expect_type(own, &mine, 0));
		rref_release(own);
	}
	return NULL;
}

TG_TEST(threads__ask_for_the_same_types_at_once, 2)
{
	enum { THREADS = 8, TYPES = 16 };
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *refs[TYPES];
		pthread_barrier_t start;
		pthread_t t[THREADS];
		struct asker a = { .ctx = ctx, .refs = refs, .nr = TYPES, .start = &start };
		char name[16];

		pthread_barrier_init(&start, NULL, THREADS);
		for (int i = 0; i < TYPES; i++) {
			snprintf(name, sizeof(name), "t%d", i);
			refs[i] = tgt_made(ctx, 1, name);
		}
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&t[i], NULL, ask, &a), 0);
		for (int i = 0; i < THREADS; i++)
			pthread_join(t[i], NULL);
		for (int i = 0; i < TYPES; i++)
			rref_release(refs[i]);
		pthread_barrier_destroy(&start);
	}
	tgt_finish(ctx, 2);
	return 0;
}

/* An error after a creation that timed out names the reference. */
TG_TEST(errors__name_the_reference_of_a_creation_that_timed_out, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_args a = { .data = "slow", .length = 4 };
		struct rref_view *v;
		struct rref *r[2];
		char name[RREF_TEXT_SIZE];

		for (int to = 0; to < 2; to++) {
			TG_OK(rref_remote(ctx, to, "make_slowly", &a, 30 * MS, &r[to]));
			rref_format(r[to], name, sizeof(name));
			for (int i = 0; i < 2; i++) {
				TG_IS(rref_to_here(r[to], RREF_DEFAULT, &v), -ETIMEDOUT);
				TG_TEXT("creation of the reference timed out");
				TG_TEXT(name);
			}
			TG_IS(rref_get_type(r[to], RREF_DEFAULT,
					    &(struct rref_type){
						    .size = sizeof(struct rref_type) }),
			      -ETIMEDOUT);
			TG_TEXT(name);
		}
		tg_set_flag(0, 1);
		rref_release(r[0]);
		rref_release(r[1]);
	}
	tgt_finish(ctx, 2);
	return 0;
}

/* ---- questions and answers that go astray ---- */

static struct rref_ctx *join_with(int rank, const char *asker, const char *owner)
{
	TG_IS(setenv("RREF_INJECT", rank ? owner : asker, 1), 0);
	return tgt_join(rank);
}

TG_TEST(astray__first_sends_fail, 2)
{
	struct rref_ctx *ctx = join_with(rank, "TYPE_QUERY:fail=3", "TYPE_ANSWER:fail=3");

	if (rank == 0) {
		struct rref *r = tgt_made(ctx, 1, "quote");

		tgt_is_type(r, "quote", sizeof(struct tgt_tick), 0);
		TG_IS(tg_stats(ctx).retries, 3);
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(astray__lost_and_asked_again, 2)
{
	struct rref_ctx *ctx = join_with(rank, "TYPE_QUERY:drop=1", "TYPE_ANSWER:drop=1");

	if (rank == 0) {
		struct rref *r = tgt_made(ctx, 1, "quote");
		struct rref_type t = { .size = sizeof(t) };

		for (int i = 0; i < 2; i++) {
			TG_IS(rref_get_type(r, 30 * MS, &t), -ETIMEDOUT);
			TG_TEXT("type did not come in time");
		}
		tgt_is_type(r, "quote", sizeof(struct tgt_tick), 0);
		rref_release(r);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(astray__twice, 2)
{
	struct rref_ctx *ctx = join_with(rank, "TYPE_QUERY:dup", "TYPE_ANSWER:dup");

	if (rank == 0) {
		struct rref *a = tgt_made(ctx, 1, "quote"), *b = tgt_made(ctx, 1, "depth");

		tgt_is_type(a, "quote", sizeof(struct tgt_tick), 0);
		tgt_is_type(b, "depth", sizeof(struct tgt_tick), 0);
		rref_release(a);
		rref_release(b);
	}
	tgt_finish(ctx, 2);
	return 0;
}

/* The question ends with an error, and without other effects: the session lives. */
TG_TEST(astray__never_sent, 2)
{
	struct rref_ctx *ctx = join_with(rank, "TYPE_QUERY:fail=10", "AUTH:fail=0");

	if (rank == 0) {
		struct rref *r = tgt_made(ctx, 1, "quote");
		struct rref_type t = { .size = sizeof(t) };

		TG_CHECK(rref_get_type(r, RREF_DEFAULT, &t) < 0);
		TG_TEXT("the question for a type could not be sent to worker1");
		tgt_is_type(r, "quote", sizeof(struct tgt_tick), 0);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(astray__first_sends_fail),
		cmocka_unit_test(astray__lost_and_asked_again),
		cmocka_unit_test(astray__never_sent),
		cmocka_unit_test(astray__twice),
		cmocka_unit_test(errors__name_the_reference_of_a_creation_that_timed_out),
		cmocka_unit_test(expect__a_mismatch_names_both_types_value_and_owner),
		cmocka_unit_test(view__knows_its_type),
		cmocka_unit_test(threads__ask_for_the_same_types_at_once),
	};

	return cmocka_run_group_tests_name("types", tests, NULL, NULL);
}
