/* SPDX-License-Identifier: Apache-2.0 */
/* References made: here, there, by others, too late, not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC

TG_TEST(c005_create_on_oneself_and_fetch, 4)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref *r = tg_remote(ctx, rank, "tg.echo", "mine", 4);

	TG_IS(rref_is_owner(r), 1);
	tg_expect_bytes(r, "mine", 4);
	TG_IS(tg_stats(ctx).reads, 0);
	rref_release(r);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c040_043_create_on_others_and_fetch, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (int hop = 1; hop < 4; hop++) {
		int to = (rank + hop) % 4;
		struct rref *r = tg_remote(ctx, to, "tg.echo", &rank, sizeof(rank));

		TG_IS(rref_owner(r), to);
		TG_IS(rref_is_owner(r), 0);
		tg_expect_bytes(r, &rank, sizeof(rank));
		TG_IS(rref_confirmed(r), 1);
		rref_release(r);
	}
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c041_local_value_blocks_until_created, 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, 0, "tg.hold", "slow", 4);
	struct rref_view *v;

	TG_IS(rref_local_value(r, 10 * MS, &v), -ETIMEDOUT);
	tg_until_held(ctx, 0, 1);
	TG_IS(tg_release_held(ctx, 0), 1);
	TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
	TG_CHECK(rref_view_length(v) == 4 && memcmp(rref_view_data(v), "slow", 4) == 0);
	rref_view_free(v);
	rref_release(r);
	tg_until_clean(ctx, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c042_044_ten_then_read_in_any_order, 4)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r[10];

	for (int i = 0; i < 10; i++)
		r[i] = tg_remote(ctx, (rank + 1) % 4, "tg.echo", &i, sizeof(i));
	for (int i = 0; i < 10; i++) {
		int k = i * 7 % 10;

		tg_expect_bytes(r[k], &k, sizeof(k));
	}
	for (int i = 0; i < 10; i++)
		rref_release(r[i]);
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

/* Creates on the next worker, reads it, and answers with its value. */
static int value_of_next(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *r = tg_remote(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), "tg.echo",
				   rref_call_data(call), rref_call_length(call));
	struct rref_view *v;
	int err = rref_to_here(r, RREF_DEFAULT, &v);

	(void)arg;
	rref_release(r);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	err = rref_call_reply(call, tg_bytes(rref_view_data(v), rref_view_length(v)));
	rref_view_free(v);
	return err;
}

TG_TEST(c048_a_handler_creates_on_a_third_worker, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "value_of_next", value_of_next, 0);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < tg_scale(40); i++) {
		struct rref_future *f;
		int got;

		TG_OK(rref_rpc_sync(ctx, (rank + 1) % 4, "value_of_next", tg_bytes(&i, sizeof(i)),
				    RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
	tg_meet_serving(ctx, 1);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c052_178_failed_creations_fail_every_read, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct {
		int32_t code;
		char text[16];
	} a = { -EILSEQ, "not this\nthing" };

	if (rank == 0) {
		for (int to = 0; to < 2; to++) {
			struct rref *first = tg_remote(ctx, to, "tg.fail", &a,
						       sizeof(a.code) + strlen(a.text));
			struct rref *second = tg_remote(ctx, to, "no.such", NULL, 0);
			struct rref_future *f;

			for (int i = 0; i < 3; i++) {
				tg_expect_error(first, -EILSEQ, "not this\nthing");
				tg_expect_error(second, -ENOSYS, "no.such");
			}
			if (to) {
				TG_IS(rref_confirmed(first), 0);
				TG_IS(rref_confirmed(second), 0);
			}
			TG_IS(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&first, 1), RREF_DEFAULT,
					    &f),
			      -EILSEQ);
			TG_TEXT("not this\nthing");
			rref_release(first);
			rref_release(second);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c090_the_error_names_the_worker, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "no.such", NULL, 0);
	char who[32];

	snprintf(who, sizeof(who), "worker%d", 1 - rank);
	tg_expect_error(r, -ENOSYS, who);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c072_the_creation_has_a_future, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f, *g;
	struct rref *r;

	if (rank == 0) {
		for (int to = 0; to < 2; to++) {
			TG_OK(rref_remote(ctx, to, "tg.hold", NULL, RREF_DEFAULT, &r));
			TG_OK(rref_creation(r, &f));
			TG_OK(rref_creation(r, &g));
			tg_until_held(ctx, to, 1);
			TG_IS(rref_future_test(f), 0);
			TG_IS(tg_release_held(ctx, to), 1);
			TG_OK(rref_future_wait(f, RREF_DEFAULT));
			TG_OK(rref_future_wait(g, RREF_DEFAULT));
			rref_future_free(f);
			rref_future_free(g);
			TG_OK(rref_creation(r, &f));
			TG_OK(rref_future_wait(f, 0));
			rref_future_free(f);
			rref_release(r);
			TG_OK(rref_remote(ctx, to, "no.such", NULL, RREF_DEFAULT, &r));
			TG_OK(rref_creation(r, &f));
			TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENOSYS);
			TG_TEXT("no.such");
			rref_future_free(f);
			TG_OK(rref_creation(r, &f));
			TG_IS(rref_future_wait(f, 0), -ENOSYS);
			TG_TEXT("no.such");
			rref_future_free(f);
			rref_release(r);
		}
		TG_OK(rref_new(ctx, "x", 1, &r));
		TG_IS(rref_creation(r, &f), -EINVAL);
		rref_release(r);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c101_180_late_creation_is_reclaimed, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref_view *v;

	if (rank == 0) {
		for (int to = 0; to < 2; to++) {
			struct rref *gave_up, *cancelled, *dropped;

			/* The first may be given up before it is sent if there is no session. */
			TG_OK(rref_rpc_sync(ctx, to, "tg.nothing", NULL, RREF_DEFAULT, NULL));
			TG_OK(rref_remote(ctx, to, "tg.hold", tg_bytes("late", 4), 30 * MS,
					  &gave_up));
			TG_OK(rref_remote(ctx, to, "tg.hold", tg_bytes("late", 4), RREF_DEFAULT,
					  &cancelled));
			TG_OK(rref_remote(ctx, to, "tg.hold", tg_bytes("late", 4), RREF_DEFAULT,
					  &dropped));
			tg_until_held(ctx, to, 3);
			TG_OK(rref_creation(gave_up, &f));
			TG_IS(rref_future_wait(f, RREF_FOREVER), -ETIMEDOUT);
			rref_future_free(f);
			TG_OK(rref_creation(cancelled, &f));
			TG_OK(rref_future_cancel(f));
			TG_IS(rref_future_wait(f, RREF_FOREVER), -ECANCELED);
			rref_future_free(f);
			for (int again = 0; again < 3; again++) {
				TG_IS(rref_to_here(gave_up, RREF_DEFAULT, &v), -ETIMEDOUT);
				TG_TEXT("creation");
				TG_IS(rref_to_here(cancelled, RREF_DEFAULT, &v), -ECANCELED);
			}
			TG_IS(rref_confirmed(gave_up), 0);
			rref_release(dropped);
			TG_IS(tg_release_held(ctx, to), 3);
			/* The reference stays failed after the answer came. The late values are
			 * gone although handles remain. */
			if (to == 0)
				TG_IS(tg_stats(ctx).value_bytes, 0);
			else
				tg_until_clean(ctx, 1);
			TG_IS(rref_to_here(gave_up, RREF_DEFAULT, &v), -ETIMEDOUT);
			TG_IS(rref_to_here(cancelled, RREF_DEFAULT, &v), -ECANCELED);
			rref_release(gave_up);
			rref_release(cancelled);
			tg_until_clean(ctx, 0);
			tg_until_clean(ctx, 1);
		}
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c179_confirmed_tells_the_truth, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *failed = tg_remote(ctx, 1, "no.such", NULL, 0),
			    *slow = tg_remote(ctx, 1, "tg.hold", "s", 1);
		struct rref *got = tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = 4 });

		TG_IS(rref_confirmed(got), 1); /* the owner listed it when it shared */
		tg_expect_error(failed, -ENOSYS, "no.such");
		TG_IS(rref_confirmed(failed), 0);
		TG_IS(rref_confirmed(slow), 0);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		tg_expect_bytes(slow, "s", 1);
		TG_IS(rref_confirmed(slow), 1);
		TG_IS(rref_confirmed(failed), 0);
		rref_release(failed);
		rref_release(slow);
		rref_release(got);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c005_create_on_oneself_and_fetch),
		cmocka_unit_test(c040_043_create_on_others_and_fetch),
		cmocka_unit_test(c041_local_value_blocks_until_created),
		cmocka_unit_test(c042_044_ten_then_read_in_any_order),
		cmocka_unit_test(c048_a_handler_creates_on_a_third_worker),
		cmocka_unit_test(c052_178_failed_creations_fail_every_read),
		cmocka_unit_test(c090_the_error_names_the_worker),
		cmocka_unit_test(c072_the_creation_has_a_future),
		cmocka_unit_test(c101_180_late_creation_is_reclaimed),
		cmocka_unit_test(c179_confirmed_tells_the_truth),
	};

	return cmocka_run_group_tests_name("creating", tests, NULL, NULL);
}
