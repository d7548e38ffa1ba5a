/* SPDX-License-Identifier: Apache-2.0 */
/* Types: the worker that answers for a type, and the refusals of a value of a local-only type. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_types.h"

#define MS NSEC_PER_MSEC

static const struct rref_type bytes = { sizeof(bytes), "bytes", 0, 0 };

TG_TEST(c058_064_one_message_the_first_time_none_later, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *a = tgt_made(ctx, 1, "quote"), *b = tgt_made(ctx, 1, "quote"),
			    *c = tgt_made(ctx, 1, "int32[]");
		struct rref_stats s = tg_stats(ctx);
		uint64_t before = s.messages_sent, reads = s.reads;

		tgt_is_type(a, "quote", sizeof(struct tgt_tick), 0);
		TG_IS(tg_stats(ctx).messages_sent, before + 1);
		for (int i = 0; i < 3; i++) {
			tgt_is_type(a, "quote", sizeof(struct tgt_tick), 0);
			tgt_is_type(b, "quote", sizeof(struct tgt_tick), 0);
		}
		/* Every worker knows this type, so no message asks for it. */
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

TG_TEST(c058_064_types_of_the_program_are_known, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *a = tgt_made(ctx, 1, "tick"), *own;
		uint64_t before = tg_stats(ctx).messages_sent;

		TG_OK(rref_expect_type(a, &tgt_tick, RREF_DEFAULT));
		tgt_is_type(a, "tick", sizeof(struct tgt_tick), 0);
		TG_OK(rref_new_value(ctx, TG_VALUE(.type = &tgt_tick), &own));
		TG_IS(tg_stats(ctx).messages_sent, before);
		rref_release(own);
		rref_release(a);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(c058_064_blocks_on_a_slow_creation, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_args a = { .data = "slow-one", .length = 8 };
		struct rref_type t = { .size = sizeof(t) };
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_remote(ctx, 1, "make_slowly", &a, RREF_DEFAULT, &r));
		TG_IS(rref_get_type(r, 10 * MS, &t), -ETIMEDOUT);
		TG_TEXT("type did not come in time");
		TG_OK(rref_get_type_async(r, RREF_DEFAULT, &f));
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

TG_TEST(c058_064_of_a_value_that_is_set_later, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *r = tgt_prepared(ctx, 1, "later");
		struct rref_type t = { .size = sizeof(t) };
		struct rref_future *f[3];

		for (int i = 0; i < 3; i++)
			TG_OK(rref_get_type_async(r, RREF_DEFAULT, &f[i]));
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

TG_TEST(c058_064_of_a_failed_creation, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref_type t = { .size = sizeof(t) };
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_remote(ctx, 1, "fail", NULL, RREF_DEFAULT, &r));
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_get_type(r, RREF_DEFAULT, &t), -EDOM);
			TG_TEXT("no such curve");
			TG_IS(rref_expect_type(r, &tgt_tick, RREF_DEFAULT), -EDOM);
			TG_OK(rref_get_type_async(r, RREF_DEFAULT, &f));
			TG_IS(rref_future_wait(f, RREF_DEFAULT), -EDOM);
			TG_TEXT("no such curve");
			rref_future_free(f);
		}
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

TG_TEST(c058_064_on_an_owner_handle, 1)
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
	TG_OK(rref_new_value(ctx, TG_VALUE(.type = &tgt_book), &r));
	tgt_is_type(r, "book", sizeof(struct tgt_tick), RREF_LOCAL_ONLY);
	rref_release(r);
	TG_OK(rref_alloc_value(ctx, TG_VALUE(.length = place.iov_len, .type = &tgt_tick), &r,
			       &place));
	TG_OK(rref_get_type_async(r, RREF_DEFAULT, &f));
	TG_IS(rref_future_test(f), 0);
	TG_OK(rref_set(r));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	TG_OK(rref_future_type(f, &t));
	TG_CHECK(strcmp(t.name, "tick") == 0);
	rref_future_free(f);
	rref_release(r);
	TG_OK(rref_alloc_value(ctx, TG_VALUE(.length = place.iov_len, .type = &tgt_tick), &r,
			       &place));
	TG_OK(rref_set_error(r, -EDOM, "sold out"));
	TG_IS(rref_get_type(r, RREF_DEFAULT, &t), -EDOM);
	TG_TEXT("sold out");
	rref_release(r);
	TG_IS(tg_stats(ctx).messages_sent, before);
	tgt_finish(ctx, 1);
	return 0;
}

/* ---- values that stay with their owner ---- */

static void refused_here(struct rref *r, const char *user)
{
	struct rref_view *v = NULL, *views[2];
	struct rref *both[2] = { r, r };
	char name[RREF_TEXT_SIZE], buf[16];
	struct rref_future *f;
	int status[2];
	size_t got;

	rref_format(r, name, sizeof(name));
	TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EPERM);
	TG_TEXT(name);
	TG_TEXT(rref_owner_name(r));
	TG_TEXT(user);
	TG_TEXT("local only");
	TG_CHECK(!v);
	TG_IS(rref_to_here_into(r, buf, 0, sizeof(buf), RREF_DEFAULT, &got), -EPERM);
	TG_TEXT(name);
	TG_IS(rref_to_here_batch(both, 2, RREF_DEFAULT, views, status), 0);
	TG_IS(status[0], -EPERM);
	TG_IS(status[1], -EPERM);
	TG_CHECK(!views[0] && !views[1]);
	TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
	TG_IS(rref_future_wait(f, RREF_DEFAULT), -EPERM);
	TG_TEXT(name);
	rref_future_free(f);
}

TG_TEST(c128_160_used_on_its_owner_refused_elsewhere, 3)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *r = tgt_made(ctx, 1, "book");
		struct rref_args a = { .refs = &r, .nr_refs = 1 };
		struct rref_worker_info me = { .size = sizeof(me) };
		struct rref_future *f;
		double sum = 0;

		TG_OK(rref_worker(ctx, 0, &me));
		refused_here(r, me.name);
		tgt_is_type(r, "book", sizeof(struct tgt_tick), RREF_LOCAL_ONLY);
		TG_OK(rref_expect_type(r, &tgt_book, RREF_DEFAULT));
		TG_OK(rref_rpc_sync(ctx, 1, "use", &a, RREF_DEFAULT, &f));
		tg_result(f, &sum, sizeof(sum));
		TG_CHECK(sum == 4.0);
		rref_future_free(f);
		/* The third worker cannot read it either, and its owner can still use it. */
		sum = 0;
		TG_OK(rref_rpc_sync(ctx, 2, "relay", &a, RREF_DEFAULT, &f));
		tg_result(f, &sum, sizeof(sum));
		TG_CHECK(sum == 4.0);
		rref_future_free(f);
		TG_IS(tg_stats(ctx).reads, 0);
		TG_IS(tg_stats(ctx).quarantined, 0);
		rref_release(r);
	}
	tgt_finish(ctx, 3);
	return 0;
}

TG_TEST(c160_a_value_not_ready_yet, 2)
{
	struct rref_ctx *ctx = tgt_join(rank);

	if (rank == 0) {
		struct rref *r = tgt_prepared(ctx, 1, "book");
		struct rref_future *f;

		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		TG_OK(rref_rpc_sync(ctx, 1, "set", NULL, RREF_DEFAULT, NULL));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -EPERM);
		TG_TEXT("local only");
		rref_future_free(f);
		refused_here(r, "worker0");
		rref_release(r);
	}
	tgt_finish(ctx, 2);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c058_064_one_message_the_first_time_none_later),
		cmocka_unit_test(c058_064_types_of_the_program_are_known),
		cmocka_unit_test(c058_064_blocks_on_a_slow_creation),
		cmocka_unit_test(c058_064_of_a_value_that_is_set_later),
		cmocka_unit_test(c058_064_of_a_failed_creation),
		cmocka_unit_test(c058_064_on_an_owner_handle),
		cmocka_unit_test(c128_160_used_on_its_owner_refused_elsewhere),
		cmocka_unit_test(c160_a_value_not_ready_yet),
	};

	return cmocka_run_group_tests_name("types", tests, NULL, NULL);
}
