/* SPDX-License-Identifier: Apache-2.0 */
/* 58-64: the type of a value: who is asked for it, and what is expected of it. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_types.h"

#define MS NSEC_PER_MSEC

static const struct rref_type bytes = { sizeof(bytes), "bytes", 0, 0 };
static const struct rref_type floats = { sizeof(floats), "float32[]", 0, 0 };

/* ---- 58-64: type queries ---- */

TG_TEST(type_query__one_message_the_first_time_none_later, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *a = tgt_made(ctx, 1, "quote"), *b = tgt_made(ctx, 1, "quote"), *c = tgt_made(ctx, 1, "int32[]");
		struct rref_stats s = tg_stats(ctx);
		uint64_t before = s.messages_sent, reads = s.reads;

		tgt_is_type(a, "quote", sizeof(struct tgt_tick), 0);
		TG_IS(tg_stats(ctx).messages_sent, before + 1);
		for (int i = 0; i < 3; i++) {
			tgt_is_type(a, "quote", sizeof(struct tgt_tick), 0);
			tgt_is_type(b, "quote", sizeof(struct tgt_tick), 0);
		}
		/* What every worker knows, nobody is asked for. */
		tgt_is_type(c, "int32[]", 4, 0);
		TG_IS(tg_stats(ctx).messages_sent, before + 1);
		TG_IS(tg_stats(ctx).reads, reads);
		rref_release(a);
		rref_release(b);
		rref_release(c);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(type_query__what_the_program_uses_itself_is_known, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *a = tgt_made(ctx, 1, "tick"), *own;
		uint64_t before = tg_stats(ctx).messages_sent;

		TG_OK(rref_expect_type(a, &tgt_tick, RREF_DEFAULT));
		tgt_is_type(a, "tick", sizeof(struct tgt_tick), 0);
		TG_OK(rref_new_typed(ctx, &tgt_tick, NULL, 0, &own));
		TG_IS(tg_stats(ctx).messages_sent, before);
		rref_release(own);
		rref_release(a);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(type_query__blocks_on_a_slow_creation, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_args a = { .data = "slow-one", .length = 8 };
		struct rref_type t = { .size = sizeof(t) };
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_remote(ctx, 1, "make_slowly", &a, RREF_DEFAULT, &r));
		TG_IS(rref_type(r, 10 * MS, &t), -ETIMEDOUT);
		TG_TEXT("type did not come in time");
		TG_OK(rref_type_async(r, RREF_DEFAULT, &f));
		TG_IS(rref_future_test(f), 0);
		TG_IS(rref_future_type(f, &t), -EAGAIN);
		tg_set_flag(0, 1);
		tgt_is_type(r, "slow-one", sizeof(struct tgt_tick), 0);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_type(f, &t));
		TG_CHECK(strcmp(t.name, "slow-one") == 0);
		rref_future_free(f);
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(type_query__of_a_value_that_is_set_later, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *r = tgt_prepared(ctx, 1, "later");
		struct rref_type t = { .size = sizeof(t) };
		struct rref_future *f[3];

		for (int i = 0; i < 3; i++)
			TG_OK(rref_type_async(r, RREF_DEFAULT, &f[i]));
		TG_OK(rref_future_cancel(f[2]));
		TG_IS(rref_future_type(f[2], &t), -ECANCELED);
		TG_OK(rref_rpc_sync(ctx, 1, "set", NULL, RREF_DEFAULT, NULL));
		for (int i = 0; i < 2; i++) {
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_type(f[i], &t));
			TG_CHECK(strcmp(t.name, "later") == 0);
			TG_IS(rref_future_view(f[i], &(struct rref_view *){ NULL }), -ENOMSG);
		}
		for (int i = 0; i < 3; i++)
			rref_future_free(f[i]);
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(type_query__of_a_failed_creation, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_type t = { .size = sizeof(t) };
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_remote(ctx, 1, "fail", NULL, RREF_DEFAULT, &r));
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_type(r, RREF_DEFAULT, &t), -EDOM);
			TG_TEXT("no such curve");
			TG_IS(rref_expect_type(r, &tgt_tick, RREF_DEFAULT), -EDOM);
			TG_OK(rref_type_async(r, RREF_DEFAULT, &f));
			TG_IS(rref_future_wait(f, RREF_DEFAULT), -EDOM);
			TG_TEXT("no such curve");
			rref_future_free(f);
		}
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(type_query__on_an_owner_handle, 1)
{
	struct rref_ctx *ctx = tgt_join(rank);
	struct rref_type t = { .size = sizeof(t) };
	struct iovec place = { .iov_len = sizeof(struct tgt_tick) };
	uint64_t before = tg_stats(ctx).messages_sent;
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_new(ctx, "plain", 5, &r));
	tgt_is_type(r, "bytes", 1, 0);
	TG_OK(rref_expect_type(r, &bytes, 0));
	rref_release(r);
	TG_OK(rref_new_typed(ctx, &tgt_book, NULL, 0, &r));
	tgt_is_type(r, "book", sizeof(struct tgt_tick), RREF_LOCAL_ONLY);
	rref_release(r);
	TG_OK(rref_alloc_typed(ctx, &tgt_tick, &place, 1, &r));
	TG_OK(rref_type_async(r, RREF_DEFAULT, &f));
	TG_IS(rref_future_test(f), 0);
	TG_OK(rref_set(r));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	TG_OK(rref_future_type(f, &t));
	TG_CHECK(strcmp(t.name, "tick") == 0);
	rref_future_free(f);
	rref_release(r);
	TG_OK(rref_alloc_typed(ctx, &tgt_tick, &place, 1, &r));
	TG_OK(rref_set_error(r, -EDOM, "sold out"));
	TG_IS(rref_type(r, RREF_DEFAULT, &t), -EDOM);
	TG_TEXT("sold out");
	rref_release(r);
	TG_IS(tg_stats(ctx).messages_sent, before);
	tgt_finish(ctx, 1);
	return 0;
}

/* ---- expectations ---- */

TG_TEST(expect__a_mismatch_names_both_types_value_and_owner, 3)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_type narrow = { sizeof(narrow), "tick", 8, 0 }, local = { sizeof(local), "tick", 16, RREF_LOCAL_ONLY };
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
		/* Of the same name, and yet another type. */
		TG_IS(rref_expect_type(r, &narrow, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT("not tick (elements of 8 bytes)");
		TG_IS(rref_expect_type(r, &local, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT("local only");
		TG_IS(rref_expect_type(r, &floats, RREF_DEFAULT), -EPROTOTYPE);
		TG_TEXT("float32[] (elements of 4 bytes)");
		/* A handler about its argument: on its owner, on a third worker, and here. */
		for (int to = 0; to < 3; to++) {
			TG_OK(rref_rpc_sync(ctx, to, "take_ticks", &(struct rref_args){ .refs = &r, .nr_refs = 1 }, RREF_DEFAULT, NULL));
			TG_IS(rref_rpc_sync(ctx, to, "take_ticks", &(struct rref_args){ .refs = &other, .nr_refs = 1 }, RREF_DEFAULT,
					    &f), -EPROTOTYPE);
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
		struct rref_type t = { .size = sizeof(t) }, old = { .size = offsetof(struct rref_type, element_size) };
		struct rref_view *v;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), 2 * sizeof(struct tgt_tick));
		TG_IS(rref_view_type(v, &t), -ENOENT);
		TG_TEXT("rref_type");
		tgt_is_type(r, "trade", sizeof(struct tgt_tick), 0);
		TG_OK(rref_view_type(v, &t));
		TG_CHECK(strcmp(t.name, "trade") == 0 && t.element_size == sizeof(struct tgt_tick));
		/* A program that knows less of the struct. */
		old.element_size = 99;
		TG_OK(rref_view_type(v, &old));
		TG_CHECK(strcmp(old.name, "trade") == 0 && old.element_size == 99);
		rref_view_free(v);
		rref_release(r);
		TG_OK(rref_new_typed(ctx, &tgt_tick, NULL, 0, &r));
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_OK(rref_view_type(v, &t));
		TG_CHECK(strcmp(t.name, "tick") == 0);
		rref_view_free(v);
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

/* ---- threads ---- */

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
		TG_OK(rref_new_typed(a->ctx, &mine, NULL, 0, &own));
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(expect__a_mismatch_names_both_types_value_and_owner),
		cmocka_unit_test(threads__ask_for_the_same_types_at_once),
		cmocka_unit_test(type_query__blocks_on_a_slow_creation),
		cmocka_unit_test(type_query__of_a_failed_creation),
		cmocka_unit_test(type_query__of_a_value_that_is_set_later),
		cmocka_unit_test(type_query__on_an_owner_handle),
		cmocka_unit_test(type_query__one_message_the_first_time_none_later),
		cmocka_unit_test(type_query__what_the_program_uses_itself_is_known),
		cmocka_unit_test(view__knows_its_type),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
