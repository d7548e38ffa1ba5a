/* SPDX-License-Identifier: Apache-2.0 */
/* Sharing: givers and takers, each side's view, and the counters. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

/* A value of its creator is handed on at once, perhaps before it is there. It goes by each kind of
 * call, to each worker. */
TG_TEST(c006_009_own_creation_handed_on_at_once, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (int i = 0; i < tg_scale(20); i++)
		for (int hop = 0; hop < 2; hop++) {
			struct rref *r = tg_remote(ctx, rank, "tg.echo", "\7", 1), *made;
			int to = (rank + hop) % 4;
			struct rref_future *f;
			unsigned sum, want = 7;

			TG_IS(rref_is_owner(r), 1);
			if (i % 3 == 0) {
				TG_IS(tg_sum_there(ctx, to, &r, 1), 7);
			} else if (i % 3 == 1) {
				TG_OK(rref_rpc_async(ctx, to, "tg.read", tg_with(&r, 1),
						     RREF_DEFAULT, &f));
				TG_OK(rref_future_wait(f, RREF_DEFAULT));
				tg_result(f, &sum, sizeof(sum));
				TG_IS(sum, 7);
				rref_future_free(f);
			} else {
				TG_OK(rref_remote(ctx, to, "tg.read", tg_with(&r, 1), RREF_DEFAULT,
						  &made));
				tg_expect_bytes(made, &want, sizeof(want));
				rref_release(made);
			}
			rref_release(r);
		}
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c045_047_passed_back_to_its_owner, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++) {
			struct rref *r[2] = { tg_remote(ctx, 1, "tg.echo", "\3", 1),
					      tg_remote(ctx, 1, "tg.echo", "\4", 1) };
			struct rref_future *f;
			struct tg_said s;

			/* Now, perhaps before the owner has seen the creation. */
			TG_IS(tg_sum_there(ctx, 1, r, 2), 7);
			TG_OK(rref_rpc_sync(ctx, 1, "inspect", tg_with(r, 1), RREF_DEFAULT, &f));
			tg_result(f, &s, sizeof(s));
			rref_future_free(f);
			TG_CHECK(s.is_owner == 1 && s.confirmed == 1 && s.owner == 1 &&
				 s.reads == 3);
			rref_release(r[0]);
			rref_release(r[1]);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c046_user_to_user_at_once, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(100); i++) {
			struct rref *r[2] = { tg_remote(ctx, 1, "tg.echo", "\5", 1),
					      tg_remote(ctx, 1, "tg.echo", "\6", 1) };

			TG_IS(tg_sum_there(ctx, 2, r, 2), 11);
			rref_release(r[0]);
			rref_release(r[1]);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Creates on the next worker, reads it there, and answers with the reference. */
static int fetch_from_next(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *r = tg_remote(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), "tg.echo",
				   rref_call_data(call), rref_call_length(call));
	int err;

	(void)arg;
	tg_expect_bytes(r, rref_call_data(call), rref_call_length(call));
	err = rref_call_reply(call, tg_with(&r, 1));
	rref_release(r);
	return err;
}

TG_TEST(c053_returned_from_a_third_worker, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	tg_add(ctx, "fetch_from_next", fetch_from_next, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++) {
			struct rref_future *f;
			struct rref *r;

			TG_OK(rref_rpc_sync(ctx, 1, "fetch_from_next",
					    &(struct rref_args){ .data = &i, .length = sizeof(i) },
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_ref(f, 0, &r));
			rref_future_free(f);
			TG_IS(rref_owner(r), 2);
			TG_IS(rref_confirmed(r), 1);
			tg_expect_bytes(r, &i, sizeof(i));
			rref_release(r);
		}
		/* Round: the third reference is the first. */
		struct rref_future *f;
		struct rref *r;

		TG_OK(rref_rpc_sync(ctx, 2, "fetch_from_next",
				    &(struct rref_args){ .data = "me", .length = 2 }, RREF_DEFAULT,
				    &f));
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		TG_CHECK(rref_is_owner(r) && rref_owner(r) == 0);
		tg_expect_bytes(r, "me", 2);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c066_own_value_with_peer_and_self, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++) {
			unsigned char byte = (unsigned char)(i + 1);
			struct rref *r;

			TG_OK(rref_new(ctx, &byte, 1, &r));
			for (int to = 0; to < 2; to++) {
				struct rref *made;
				unsigned want = byte;

				TG_IS(tg_sum_there(ctx, to, &r, 1), want);
				TG_IS(tg_sum_there(ctx, to, (struct rref *[]){ r, r, r }, 3),
				      3 * want);
				TG_OK(rref_remote(ctx, to, "tg.read", tg_with(&r, 1), RREF_DEFAULT,
						  &made));
				if (i % 2) {
					/* Releases the reference while the
					 * creation may be under way. */
					rref_release(made);
				} else {
					tg_expect_bytes(made, &want, sizeof(want));
					rref_release(made);
				}
			}
			rref_release(r);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/*
 * Values do not change. The owner's own state does, and the value tells its place. The handler runs
 * on the owner, and uses the value in place.
 */
static int64_t accounts[4];
static pthread_mutex_t accounts_lock = PTHREAD_MUTEX_INITIALIZER;

static int add_to_account(struct rref_call *call, void *arg)
{
	struct rref_view *v;
	int32_t by, which;
	int64_t sum;
	int err = rref_local_value(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	memcpy(&which, rref_view_data(v), sizeof(which));
	memcpy(&by, rref_call_data(call), sizeof(by));
	rref_view_free(v);
	pthread_mutex_lock(&accounts_lock);
	sum = accounts[which] += by;
	pthread_mutex_unlock(&accounts_lock);
	return rref_call_reply(call, tg_bytes(&sum, sizeof(sum)));
}

TG_TEST(c068_state_changed_on_the_owner, 4)
{
	struct rref_ctx *ctx = tg_join(rank);
	int64_t sum;

	tg_add(ctx, "add_to_account", add_to_account, 0);
	tg_meet_serving(ctx, 0);
	/* Every worker has an account at the next one. */
	struct rref *r = tg_remote(ctx, (rank + 1) % 4, "tg.echo", &rank, sizeof(rank));

	for (int i = 1; i <= 3; i++) {
		int32_t by = i * 10;
		struct rref_args a = {
			.data = &by, .length = sizeof(by), .refs = &r, .nr_refs = 1
		};
		struct rref_future *f;

		TG_OK(rref_rpc_sync(ctx, rref_owner(r), "add_to_account", &a, RREF_DEFAULT, &f));
		tg_result(f, &sum, sizeof(sum));
		rref_future_free(f);
	}
	TG_IS(sum, 10 + 20 + 30);
	/* Other workers cannot use it in place. */
	struct rref_args a = { .data = &rank, .length = sizeof(rank), .refs = &r, .nr_refs = 1 };

	TG_IS(rref_rpc_sync(ctx, (rank + 2) % 4, "add_to_account", &a, RREF_DEFAULT, NULL), -EPERM);
	rref_release(r);
	tg_meet_serving(ctx, 1);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c073_counters_of_a_value_shared_with_one, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r;
		struct rref_stats s;

		TG_OK(rref_new(ctx, "c", 1, &r));
		s = tg_stats(ctx);
		TG_CHECK(s.owners == 1 && s.forks == 0 && s.value_bytes == 65);
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		s = tg_stats(ctx);
		TG_CHECK(s.owners == 1 && s.forks == 1 && s.users == 0);
		s = tg_stats_of(ctx, 1);
		TG_CHECK(s.owners == 0 && s.users == 1 && s.pending_users == 0 &&
			 s.value_bytes == 0);
		/* Releases the owner's own handle first: the fork keeps the value. */
		rref_release(r);
		s = tg_stats(ctx);
		TG_CHECK(s.owners == 1 && s.forks == 1 && s.value_bytes == 65);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c087_088_confirmed_inside_the_handler, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		for (int i = 0; i < tg_scale(50); i++)
			for (int owner = 0; owner < 3; owner++)
				for (int to = 0; to < 3; to++) {
					struct rref *r = tg_remote(ctx, owner, "tg.echo", "\2", 1);
					struct rref_future *f;
					struct tg_said s;

					TG_OK(rref_rpc_sync(ctx, to, "inspect", tg_with(&r, 1),
							    RREF_DEFAULT, &f));
					tg_result(f, &s, sizeof(s));
					rref_future_free(f);
					TG_IS(s.confirmed, 1);
					TG_IS(s.is_owner, to == owner);
					TG_IS(s.owner, owner);
					TG_IS(s.reads, 2);
					TG_CHECK(s.id.local_id == rref_get_id(r).local_id &&
						 s.id.created_on == 0);
					rref_release(r);
				}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A round's answers wait for the last trainer, and all get the mean. */
#define TRAINERS 3

static struct rref_call *waiting[TRAINERS]; /* guarded by round_lock, as is all below */
static double round_sum;
static int nr_waiting, nr_rounds;
static pthread_mutex_t round_lock = PTHREAD_MUTEX_INITIALIZER;

static int average(struct rref_call *call, void *arg)
{
	struct rref *server = rref_call_ref(call, 0);
	double gradient, mean;
	int last;

	(void)arg;
	TG_CHECK(rref_is_owner(server));
	memcpy(&gradient, rref_call_data(call), sizeof(gradient));
	pthread_mutex_lock(&round_lock);
	waiting[nr_waiting++] = call;
	round_sum += gradient;
	last = nr_waiting == TRAINERS;
	if (last) {
		mean = round_sum / TRAINERS;
		for (int i = 0; i < TRAINERS; i++)
			TG_OK(rref_call_reply(waiting[i], tg_bytes(&mean, sizeof(mean))));
		nr_waiting = 0;
		round_sum = 0;
		nr_rounds++;
	}
	pthread_mutex_unlock(&round_lock);
	return RREF_DEFER;
}

/* Trains on another worker: ten rounds with the server it was given. */
static int train(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *server = rref_call_ref(call, 0);

	(void)arg;
	for (int round = 0; round < 10; round++) {
		double mine = rref_rank(ctx) * 100 + round, mean;
		struct rref_args a = {
			.data = &mine, .length = sizeof(mine), .refs = &server, .nr_refs = 1
		};
		struct rref_future *f;
		int err = rref_rpc_sync(ctx, rref_owner(server), "average", &a, RREF_DEFAULT, &f);

		if (err)
			return rref_call_error(call, err, "round %d: %s", round, rref_last_error());
		tg_result(f, &mean, sizeof(mean));
		rref_future_free(f);
		TG_CHECK(mean == 200 + round); /* of 100, 200 and 300 */
	}
	return 0;
}

TG_TEST(c108_three_trainers_average_ten_rounds, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add(ctx, "average", average, 0);
	tg_add(ctx, "train", train, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref_future *f[TRAINERS];
		struct rref *server;

		TG_OK(rref_new(ctx, "the server", 10, &server));
		for (int i = 0; i < TRAINERS; i++)
			TG_OK(rref_rpc_async(ctx, 1 + i, "train", tg_with(&server, 1), RREF_DEFAULT,
					     &f[i]));
		for (int i = 0; i < TRAINERS; i++) {
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			rref_future_free(f[i]);
		}
		pthread_mutex_lock(&round_lock);
		TG_IS(nr_rounds, 10);
		pthread_mutex_unlock(&round_lock);
		rref_release(server);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c163_a_handle_leaves_its_context_in_calls_only, 1)
{
	struct rref_ctx *one = tg_join_refs(rank), *two;
	struct rref_options o;
	struct rref_future *f = NULL;
	struct rref_view *v[2];
	struct rref *r, *other;
	int status[2];

	/* Make a separate group in this process. */
	tg_options(&o, 0);
	o.name = "other";
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &two));
	TG_OK(rref_new(one, "one", 3, &r));
	TG_OK(rref_new(two, "two", 3, &other));
	TG_IS(rref_rpc_sync(one, 0, "tg.read", tg_with(&other, 1), RREF_DEFAULT, &f), -EINVAL);
	TG_TEXT("another context");
	TG_CHECK(!f);
	TG_IS(rref_equal(r, other), 0);
	TG_IS(rref_to_here_batch((struct rref *[]){ r, other }, 2, RREF_DEFAULT, v, status), 1);
	TG_CHECK(status[0] == 0 && status[1] == -EINVAL && !v[1]);
	rref_view_free(v[0]);
	TG_IS(tg_sum_there(one, 0, &r, 1), 'o');
	TG_IS(tg_sum_there(two, 0, &other, 1), 't');
	/* Ending one group leaves the other. */
	rref_release(other);
	tg_finish(two);
	TG_IS(tg_sum_there(one, 0, &r, 1), 'o');
	rref_release(r);
	tg_finish(one);
	return 0;
}

/* A user passes a reference on while the owner cannot answer.
 * It is pending on both sides, and the handler waits. */
TG_TEST(c190_pending_references_are_visible, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *slow = tg_remote(ctx, 1, "tg.hold", "s", 1),
			    *r = tg_remote(ctx, 1, "tg.echo", "r", 1);
		struct rref_future *f;
		struct rref_stats s;

		tg_expect_bytes(r, "r", 1);
		tg_until_held(ctx, 1, 1);
		s = tg_stats(ctx);
		TG_CHECK(s.users == 2 && s.pending_users == 1 && s.pending_children == 0);
		TG_IS(rref_confirmed(slow), 0);
		s = tg_stats_of(ctx, 1);
		TG_CHECK(s.owners == 2 && s.forks == 2);
		TG_IS(tg_release_held(ctx, 1), 1);
		tg_expect_bytes(slow, "s", 1);
		TG_IS(tg_stats(ctx).pending_users, 0);

		TG_OK(rref_rpc_sync(ctx, 2, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		tg_stop_worker(1);
		TG_OK(rref_rpc_async(ctx, 2, "tg.read", tg_with(&r, 1), RREF_DEFAULT, &f));
		/* The child has it and asks its owner. */
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats_of(ctx, 2).pending_users != 1;
		     usleep(500))
			TG_CHECK(now_ns() < end);
		s = tg_stats(ctx);
		TG_CHECK(s.users == 2 && s.pending_children == 1);
		TG_IS(rref_future_test(f), 0);
		tg_continue_worker(1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		rref_release(r);
		rref_release(slow);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c006_009_own_creation_handed_on_at_once),
		cmocka_unit_test(c045_047_passed_back_to_its_owner),
		cmocka_unit_test(c046_user_to_user_at_once),
		cmocka_unit_test(c053_returned_from_a_third_worker),
		cmocka_unit_test(c066_own_value_with_peer_and_self),
		cmocka_unit_test(c068_state_changed_on_the_owner),
		cmocka_unit_test(c073_counters_of_a_value_shared_with_one),
		cmocka_unit_test(c087_088_confirmed_inside_the_handler),
		cmocka_unit_test(c108_three_trainers_average_ten_rounds),
		cmocka_unit_test(c163_a_handle_leaves_its_context_in_calls_only),
		cmocka_unit_test(c190_pending_references_are_visible),
	};

	return cmocka_run_group_tests_name("sharing", tests, NULL, NULL);
}
