/* SPDX-License-Identifier: Apache-2.0 */
/* The group: its members, their names, and strangers that are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC

TG_TEST(c001_names_and_ranks_resolve, 4)
{
	static const char *const names[] = { "alpha", "B:2", "gamma-3", "4_delta" };
	struct rref_worker_info w = { .size = sizeof(w) };
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.name = names[rank];
	TG_OK(rref_init(&o, &ctx));
	TG_IS(rref_rank(ctx), rank);
	for (int i = 0; i < 4; i++) {
		TG_IS(rref_worker_by_name(ctx, names[i]), i);
		TG_OK(rref_worker(ctx, i, &w));
		TG_IS(w.rank, i);
		TG_CHECK(strcmp(w.name, names[i]) == 0);
	}
	TG_IS(rref_worker_by_name(ctx, "worker0"), -ENOENT);
	TG_TEXT("worker0");
	TG_IS(rref_worker_by_name(ctx, "alph"), -ENOENT);
	TG_IS(rref_worker(ctx, 4, &w), -EINVAL);
	TG_TEXT("rank 4");
	TG_IS(rref_worker(ctx, -1, &w), -EINVAL);
	TG_TEXT("rank -1");
	tg_finish(ctx);
	return 0;
}

/* Each worker lists all, and all see the same list. No two have one
 * name, and each has one start of its process. */
TG_TEST(c002_every_worker_lists_all, 4)
{
	uint64_t *seen = (uint64_t *)tg_current->shared->bytes; /* [rank that sees][seen rank] */
	struct rref_ctx *ctx = tg_join(rank);

	TG_IS(rref_world_size(ctx), 4);
	for (int i = 0; i < 4; i++) {
		struct rref_worker_info w = { .size = sizeof(w) },
					other = { .size = sizeof(other) };

		TG_OK(rref_worker(ctx, i, &w));
		TG_CHECK(w.rank == i && w.alive && w.incarnation);
		TG_CHECK(strcmp(w.device, i == rank ? "self" : tg_is_shm() ? "shm" : "ibv") == 0);
		for (int k = 0; k < i; k++) {
			TG_OK(rref_worker(ctx, k, &other));
			TG_CHECK(strcmp(w.name, other.name) != 0 &&
				 w.incarnation != other.incarnation);
		}
		seen[rank * 4 + i] = w.incarnation;
	}
	tg_meet_serving(ctx, 0);
	TG_CHECK(memcmp(seen, seen + rank * 4, 4 * sizeof(seen[0])) == 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c004_calls_to_an_unknown_rank, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;
	struct rref *r = NULL;

	TG_IS(rref_rpc_async(ctx, -1, "tg.echo", NULL, RREF_DEFAULT, &f), -EINVAL);
	TG_TEXT("rank -1");
	TG_IS(rref_rpc_sync(ctx, 2, "tg.echo", NULL, RREF_DEFAULT, &f), -EINVAL);
	TG_TEXT("rank 2");
	TG_IS(rref_remote(ctx, 2, "tg.echo", NULL, RREF_DEFAULT, &r), -EINVAL);
	TG_IS(rref_remote(ctx, -1, "tg.echo", NULL, RREF_DEFAULT, &r), -EINVAL);
	for (int to = 0; to < 2; to++)
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo", NULL, RREF_DEFAULT, NULL));
	TG_CHECK(!f && !r);
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

/* The two workers with the name fail. The others cannot have their group either. */
TG_TEST(c017_a_name_taken_twice, 4)
{
	struct rref_options o;
	struct rref_ctx *ctx = NULL;
	int err;

	tg_options(&o, rank);
	o.name = rank == 1 ? NULL : rank == 0 ? "zero" : "same";
	o.name = rank == 1 ? "one" : o.name;
	o.init_timeout = 5 * NSEC_PER_SEC;
	err = rref_init(&o, &ctx);
	TG_CHECK(!ctx);
	if (rank >= 2) {
		TG_IS(err, -EEXIST);
		TG_TEXT("same");
	} else {
		TG_CHECK(err < 0 && *rref_last_error());
	}
	return 0;
}

/* A process may have several contexts, but not this one twice: its place in the group is taken. */
TG_TEST(c018_second_init_fails_and_the_first_goes_on, 2)
{
	struct rref_ctx *ctx = tg_join(rank), *second = NULL;
	struct rref_options o;

	for (int turn = 0; turn < 2; turn++) {
		tg_meet_serving(ctx, 0);
		if (turn != rank)
			continue;
		tg_options(&o, rank);
		o.init_timeout = 200 * MS;
		int err = rref_init(&o, &second);

		TG_CHECK(err == -ETIMEDOUT || err == -ECONNREFUSED || err == -EADDRINUSE ||
			 err == -EEXIST);
		TG_CHECK(!second && *rref_last_error());
		TG_OK(rref_rpc_sync(ctx, rank, "tg.echo", NULL, RREF_DEFAULT, NULL));
	}
	tg_meet_serving(ctx, 0);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1);

	tg_expect_bytes(r, "x", 1);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c019_without_a_context, 1)
{
	struct rref_worker_info w = { .size = sizeof(w) };
	struct rref_stats s = { .size = sizeof(s) };
	struct rref_function fn = tg_functions[0];
	struct rref_future *f = NULL;
	struct rref *r = NULL;
	void *data = NULL;
	char text[64];

#define NONE(call) \
	do { \
		TG_IS(call, -EINVAL); \
		TG_TEXT("no context"); \
	} while (0)
	NONE(rref_rank(NULL));
	NONE(rref_world_size(NULL));
	NONE(rref_worker(NULL, 0, &w));
	NONE(rref_worker_by_name(NULL, "x"));
	NONE(rref_register(NULL, &fn));
	NONE(rref_new(NULL, "x", 1, &r));
	NONE(rref_alloc(NULL, 1, &r, &data));
	NONE(rref_remote(NULL, 0, "tg.echo", NULL, RREF_DEFAULT, &r));
	NONE(rref_rpc_async(NULL, 0, "tg.echo", NULL, RREF_DEFAULT, &f));
	NONE(rref_rpc_sync(NULL, 0, "tg.echo", NULL, RREF_DEFAULT, &f));
	NONE(rref_get_stats(NULL, &s));
	NONE(rref_dump(NULL, text, sizeof(text)));
	NONE(rref_set_timeout(NULL, 1));
	NONE(rref_progress(NULL));
	NONE(rref_ctx_fd(NULL));
	NONE(rref_ctx_arm(NULL));
	NONE(rref_shutdown(NULL, RREF_SHUTDOWN_GRACEFUL, 0));
#undef NONE
	TG_CHECK(!f && !r && !data);
	return 0;
}

TG_TEST(c020_group_of_one, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	struct rref *r;
	char got[3];

	TG_OK(rref_new(ctx, "hello", 6, &r));
	tg_expect_bytes(r, "hello", 6);
	TG_IS(tg_sum_there(ctx, 0, &r, 1), 'h');
	rref_release(r);
	TG_OK(rref_rpc_sync(ctx, 0, "tg.echo", tg_bytes("abc", 3), RREF_DEFAULT, &f));
	tg_result(f, got, 3);
	TG_CHECK(memcmp(got, "abc", 3) == 0);
	rref_future_free(f);
	r = tg_remote(ctx, 0, "tg.echo", "made", 4);
	tg_expect_bytes(r, "made", 4);
	rref_release(r);
	tg_all_clean(ctx);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c021_names_ill_formed, 1)
{
	struct rref_options o;
	static const char *const bad[] = { "",	  " ",	      "a b",   "a/b", "a.b",
					   "a\n", "\xc3\xa4", "a\x01", "*",   "wor\tker" };
	char name[501];

	tg_options(&o, 0);
	for (size_t i = 0; i < array_size(bad); i++) {
		o.name = bad[i];
		tg_refuse(&o, -EINVAL, "name");
	}
	memset(name, 'x', sizeof(name));
	name[500] = 0;
	o.name = name;
	tg_refuse(&o, -EINVAL, "127");
	name[RREF_NAME_MAX + 1] = 0;
	tg_refuse(&o, -EINVAL, "127");
	name[RREF_NAME_MAX] = 0;
	tg_accept(&o);
	o.name = "A-z_0:9";
	tg_accept(&o);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c001_names_and_ranks_resolve),
		cmocka_unit_test(c002_every_worker_lists_all),
		cmocka_unit_test(c004_calls_to_an_unknown_rank),
		cmocka_unit_test(c017_a_name_taken_twice),
		cmocka_unit_test(c018_second_init_fails_and_the_first_goes_on),
		cmocka_unit_test(c019_without_a_context),
		cmocka_unit_test(c020_group_of_one),
		cmocka_unit_test(c021_names_ill_formed),
	};

	return cmocka_run_group_tests_name("group", tests, NULL, NULL);
}
