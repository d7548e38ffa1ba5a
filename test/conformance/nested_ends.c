/* SPDX-License-Identifier: Apache-2.0 */
/* References that values hold, when a read, a worker or the group ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "nest.h"

/* The held value is not made yet, or will never be. */
TG_TEST(more_nested_not_ready_and_failed, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		int32_t code = -EDOM;
		char bad[8];

		memcpy(bad, &code, 4);
		memcpy(bad + 4, "no!", 4);
		struct rref *inner[2] = { tg_remote(ctx, 2, "tg.hold", "late", 4),
					  tg_remote(ctx, 2, "tg.fail", bad, 7) };
		struct rref *outer = value_with(ctx, "out", inner, 2);
		struct rref_view *v;

		hand_over(ctx, 1, outer);
		tg_expect_error(inner[1], -EDOM, "no!");
		v = read_with(outer, "out", 2);
		take_fails(v, 1, -EDOM, "no!");
		rref_view_free(v);
		/* A value cannot hold a failed reference. */
		struct rref *none = NULL;

		TG_IS(rref_new_value(
			      ctx, TG_VALUE(.data = "x", .length = 1, .refs = inner, .nr_refs = 2),
			      &none),
		      -EDOM);
		TG_TEXT("no!");
		rref_release(outer);
		rref_release(inner[0]);
		rref_release(inner[1]);
		tg_set_flag(0, 1);
	}
	if (rank == 1) {
		struct rref_future *f;
		struct rref_view *v;
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		v = read_with(tg_kept(0), "out", 2);
		r = take(v, 0);
		TG_IS(rref_confirmed(r), 1);
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		TG_IS(rref_future_test(f), 0);
		take_fails(v, 1, -EDOM, "no!");
		struct rref *both[2];

		TG_IS(rref_view_refs(v, 0, 2, RREF_DEFAULT, both), -EDOM);
		rref_view_free(v);
		tg_drop_kept();
		tg_until_held(ctx, 2, 1);
		TG_IS(tg_release_held(ctx, 2), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		tg_expect_bytes(r, "late", 4);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The answer comes too late, or never: its references are reclaimed. */
TG_TEST(more_nested_given_up, 3)
{
	struct rref_ctx *ctx = join_under(rank, rank == 1 ? "REPLY@0:delay=300ms*3" : "");

	if (rank == 1) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2);
		struct rref *refs[20], *outer;

		for (int i = 0; i < 20; i++)
			refs[i] = inner;
		outer = value_with(ctx, "out", refs, 20);
		rref_release(inner);
		/* This call goes to itself, so that it uses up no answer to rank 0. */
		TG_OK(rref_rpc_sync(ctx, 0, "keep", tg_with(&outer, 1), RREF_DEFAULT, NULL));
		rref_release(outer);
		tg_set_flag(0, 1);
	}
	if (rank == 0) {
		struct rref_view *v;
		struct rref_future *f;
		struct rref *r[20];

		tg_wait_flag_serving(ctx, 0, 1);
		v = read_with(tg_kept(0), "out", 20);
		TG_IS(rref_view_ref(v, 0, 20 * MS, &r[0]), -ETIMEDOUT);
		TG_IS(rref_view_refs(v, 0, 20, 20 * MS, r), -ETIMEDOUT); /* in a payload */
		TG_OK(rref_view_refs_async(v, 3, 2, RREF_DEFAULT, &f));
		TG_OK(rref_future_cancel(f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ECANCELED);
		rref_future_free(f);
		TG_OK(rref_view_refs(v, 0, 20, RREF_DEFAULT, r));
		for (int i = 0; i < 20; i++) {
			tg_expect_bytes(r[i], "in", 2);
			rref_release(r[i]);
		}
		rref_view_free(v);
		tg_drop_kept();
		tg_all_clean(ctx);
		for (int i = 0; i < 3; i++)
			TG_IS(tg_stats_of(ctx, i).dead_peers, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* Every message for a take fails at first, comes late, twice, or in another order. */
TG_TEST(more_nested_under_message_faults, 3)
{
	static const char *const rules = "CALL:fail=3,REPLY:fail=3,FORK_REQUEST:dup=9,FORK_ACK:dup="
					 "9,CHILD_ACCEPT:dup=9,DELETE:dup=9,"
					 "PROTO:reorder=2ms*60,REPLY:reorder=2ms*20";
	struct rref_ctx *ctx = join_under(rank, rules);

	if (rank == 0) {
		for (int i = 0; i < 20; i++) {
			struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
				    *outer = remote_with(ctx, 1, "nest", "out", &inner, 1), *r;
			struct rref_view *v;

			rref_release(inner);
			v = read_with(outer, "out", 1);
			rref_release(outer);
			r = take(v, 0);
			rref_view_free(v);
			tg_expect_bytes(r, "in", 2);
			rref_release(r);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Worker 1 owns the outer value and dies. A nested reference to a value of 2 lives if it was taken
 * before; else taking it fails with -EOWNERDEAD. */
DEATH_TEST(more_nested_the_owner_of_the_outer_dies, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
			    *mine = value(ctx, "mine"), *r;
		struct rref *outer = remote_with(ctx, 1, "nest", "out",
						 (struct rref *[]){ inner, mine }, 2);
		struct rref_view *v = read_with(outer, "out", 2);

		rref_release(inner);
		r = take(v, 0);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		take_fails(v, 0, -EOWNERDEAD, "");
		take_fails(v, 1, -EOWNERDEAD, "");
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
		rref_view_free(v);
		rref_release(outer);
		rref_release(mine);
		/* The owners get references in the dead worker's value back after their grace. */
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 2);
	}
	tg_leave(ctx);
	return 0;
}

/* The death comes during the request: the answer never comes. */
DEATH_TEST(more_nested_the_owner_dies_while_it_is_asked, 3, 1 << 1)
{
	struct rref_ctx *ctx = join_under(rank, rank == 1 ? "REPLY@0:delay=20s" : "");
	int one = 1;

	if (rank == 1) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
			    *outer = value_with(ctx, "out", &inner, 1);

		rref_release(inner);
		hand_over(ctx, 0, outer);
		tg_set_flag(1, 1);
		tg_serve_and_die(ctx, 0);
	}
	if (rank == 0) {
		struct rref_future *f;
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 1, 1);
		v = read_with(tg_kept(0), "out", 1);
		TG_OK(rref_view_refs_async(v, 0, 1, RREF_FOREVER, &f));
		usleep(50000);
		TG_IS(rref_future_test(f), 0);
		tg_set_flag(0, 1);
		TG_IS(rref_future_wait(f, TG_LONG_NS), -EOWNERDEAD);
		rref_future_free(f);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		rref_view_free(v);
		tg_drop_kept();
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 2);
	}
	tg_leave(ctx);
	return 0;
}

/* Worker 2 owns an inner value and dies. The outer value is read as before. Taking the dead
 * worker's reference fails, and taking the other succeeds. */
DEATH_TEST(more_nested_the_owner_of_the_inner_dies, 3, 1 << 2)
{
	struct rref_ctx *ctx = join(rank);
	int two = 2;

	if (rank == 2)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *inner = tg_remote(ctx, 2, "tg.echo", "in", 2),
			    *mine = value(ctx, "mine"), *r;
		struct rref *outer = remote_with(ctx, 1, "nest", "out",
						 (struct rref *[]){ inner, mine }, 2);
		struct rref_view *v = read_with(outer, "out", 2);

		rref_release(inner);
		rref_release(mine);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &two));
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats_of(ctx, 1).dead_peers != 1;
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		rref_view_free(v);
		v = read_with(outer, "out", 2);
		take_fails(v, 0, -EOWNERDEAD, "");
		r = take(v, 1);
		TG_CHECK(rref_is_owner(r));
		tg_expect_bytes(r, "mine", 4);
		rref_release(r);
		rref_view_free(v);
		rref_release(outer);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_leave(ctx);
	return 0;
}

/* Worker 1 is killed while it holds an outer value, a view of it and a
 * taken reference. All of it is reclaimed. */
DEATH_TEST(more_nested_a_reader_dies, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 0) {
		struct rref *inner[2] = { value(ctx, "own"),
					  tg_remote(ctx, 2, "tg.echo", "third's", 7) };
		struct rref *outer = value_with(ctx, "out", inner, 2);

		hand_over(ctx, 1, outer);
		rref_release(inner[0]);
		rref_release(inner[1]);
		rref_release(outer);
		tg_set_flag(0, 1);
	}
	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		struct rref_view *v = read_with(tg_kept(0), "out", 2);

		take(v, 0);
		take(v, 1);
		TG_IS(tg_stats_of(ctx, 0).owners, 2);
		tg_die();
	}
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
	tg_until_clean(ctx, rank);
	tg_leave(ctx);
	return 0;
}

/* The program releases nothing: values that hold references, and two that hold each other, across
 * workers and on one. */
TG_TEST(more_nested_never_released, 3)
{
	struct rref_ctx *ctx = join(rank);
	int next = (rank + 1) % 3;
	struct rref *inner = tg_remote(ctx, next, "tg.echo", "in", 2),
		    *outer = value_with(ctx, "out", &inner, 1), *self;
	struct rref_view *v;
	char report[4096];
	void *data;

	rref_release(inner);
	hand_over(ctx, next, outer);
	tg_meet_serving(ctx, 0);
	/* A circle of one, and one of three. */
	TG_OK(rref_alloc(ctx, 1, &self, &data));
	TG_OK(rref_set_refs(self, &self, 1));
	TG_OK(rref_set(self));
	rref_release(self);
	TG_OK(rref_alloc(ctx, 1, &self, &data));
	hand_over(ctx, next, self);
	tg_meet_serving(ctx, 1);
	struct rref *other = tg_kept(1);

	TG_OK(rref_set_refs(self, &other, 1));
	TG_OK(rref_set(self));
	tg_meet_serving(ctx, 2);
	rref_release(self);
	/* A view that alone holds its reference. */
	v = read_with(tg_kept(0), "out", 1);
	tg_drop_kept();
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	/* References in values are no leak of the program. Its leaks are the outer value, and the
	 * reference of the view. */
	TG_CHECK(rref_leak_report(ctx, report, sizeof(report)) > 0);
	int lines = 0;

	for (char *p = report; (p = strstr(p, "unreleased")); p++)
		lines++;
	TG_IS(lines, 2);
	TG_CHECK(!strstr(report, "leak") && !strstr(report, "stuck"));
	struct rref *r = NULL;

	TG_IS(rref_view_ref(v, 0, RREF_DEFAULT, &r), -ESHUTDOWN);
	rref_view_free(v);
	rref_release(outer);
	rref_free_ctx(ctx);
	return 0;
}

/* The workers leave in any order, and at once. */
TG_TEST(more_nested_left_at_once, 3)
{
	struct rref_ctx *ctx = join(rank);
	int next = (rank + 1) % 3;
	struct rref *inner = tg_remote(ctx, next, "tg.echo", "in", 2),
		    *outer = value_with(ctx, "out", &inner, 1);
	struct rref_view *v, *own;

	hand_over(ctx, next, outer);
	tg_meet_serving(ctx, 0);
	v = read_with(tg_kept(0), "out", 1);
	own = read_with(outer, "out", 1);
	rref_release(take(v, 0));
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_release(outer);
	rref_view_free(own);
	rref_release(inner);
	tg_drop_kept();
	rref_view_free(v);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_nested_not_ready_and_failed),
		cmocka_unit_test(more_nested_given_up),
		cmocka_unit_test(more_nested_under_message_faults),
		cmocka_unit_test(more_nested_the_owner_of_the_outer_dies),
		cmocka_unit_test(more_nested_the_owner_dies_while_it_is_asked),
		cmocka_unit_test(more_nested_the_owner_of_the_inner_dies),
		cmocka_unit_test(more_nested_a_reader_dies),
		cmocka_unit_test(more_nested_never_released),
		cmocka_unit_test(more_nested_left_at_once),
	};

	return cmocka_run_group_tests_name("nested_ends", tests, NULL, NULL);
}
