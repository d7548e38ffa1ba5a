/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a reference, and its own description. */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

#define MS NSEC_PER_MSEC

TG_TEST(c055_local_value_without_traffic, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_view *v, *w;
	struct rref *r;
	uint64_t sent = tg_stats(ctx).messages_sent;

	TG_OK(rref_new(ctx, "value", 5, &r));
	TG_IS(tg_stats(ctx).owners, 1);
	TG_IS(tg_stats(ctx).value_bytes, 64 + 5);
	tg_expect_bytes(r, "value", 5);
	TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
	TG_OK(rref_to_here(r, 0, &w));
	/* Aliases: no copy was made. */
	TG_CHECK(rref_view_data(v) == rref_view_data(w));
	TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
	TG_IS(tg_stats(ctx).reads, 0);
	TG_IS(tg_stats(ctx).messages_sent, sent);
	TG_IS(tg_stats(ctx).landing_bytes, 0);
	rref_release(r);
	/* An alias outlives the reference. */
	TG_CHECK(memcmp(rref_view_data(v), "value", 5) == 0);
	rref_view_free(v);
	rref_view_free(w);
	tg_until_clean(ctx, rank);
	tg_meet_serving(ctx, 0); /* a leaving worker sends messages, and gets answers */
	tg_finish(ctx);
	return 0;
}

TG_TEST(c056_local_value_on_a_user_names_all_three, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1);
	struct rref_view *v = NULL;
	char text[RREF_TEXT_SIZE], me[32], owner[32];

	rref_format(r, text, sizeof(text));
	snprintf(me, sizeof(me), "worker%d", rank);
	snprintf(owner, sizeof(owner), "worker%d", 1 - rank);
	TG_IS(rref_local_value(r, RREF_DEFAULT, &v), -EPERM);
	TG_TEXT(text);
	TG_TEXT(me);
	TG_TEXT(owner);
	TG_CHECK(!v);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c065_equality_and_hash, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = 8 });
		struct rref *same = tg_ask(ctx, 1, "pub.get", (struct tg_make){ 0 });
		struct rref *other = tg_remote(ctx, 1, "tg.echo", "x", 1), *dup = rref_dup(r);

		TG_CHECK(dup == r);
		TG_CHECK(r != same && rref_equal(r, same) == 1 && rref_hash(r) == rref_hash(same));
		TG_CHECK(rref_fork_id(r).local_id != rref_fork_id(same).local_id);
		TG_IS(rref_equal(r, other), 0);
		TG_CHECK(rref_hash(r) != rref_hash(other));
		TG_IS(rref_equal(r, NULL), 0);
		rref_release(r);
		rref_release(dup);
		rref_release(same);
		rref_release(other);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* An owner is a rank, which can be compared and hashed. */
TG_TEST(c065_owners_compare, 4)
{
	struct rref_ctx *ctx = tg_join(rank);
	int next = (rank + 1) % 4, next2 = (rank + 2) % 4;
	struct rref *a = tg_remote(ctx, next, "tg.echo", "a", 1),
		    *b = tg_remote(ctx, next, "tg.echo", "b", 1);
	struct rref *c = tg_remote(ctx, next2, "tg.echo", "c", 1), *mine;

	TG_OK(rref_new(ctx, "m", 1, &mine));
	TG_CHECK(rref_owner(a) == next && rref_owner(b) == next && rref_owner(c) == next2 &&
		 rref_owner(mine) == rank);
	TG_CHECK(strcmp(rref_owner_name(a), rref_owner_name(b)) == 0);
	TG_CHECK(strcmp(rref_owner_name(a), rref_owner_name(c)) != 0);
	TG_CHECK(strcmp(rref_owner_name(a), rref_owner_name(mine)) != 0);
	TG_IS(rref_worker_by_name(ctx, rref_owner_name(c)), next2);
	rref_release(a);
	rref_release(b);
	rref_release(c);
	rref_release(mine);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c071_text_forms, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	char want[RREF_TEXT_SIZE], text[RREF_TEXT_SIZE], small[8];

	if (rank == 0) {
		struct rref *mine, *theirs = tg_remote(ctx, 1, "tg.echo", "x", 1);
		struct rref_id id, fork;

		tg_expect_bytes(theirs, "x", 1);
		TG_OK(rref_new(ctx, "m", 1, &mine));
		TG_CHECK(rref_is_owner(mine) && rref_owner(mine) == 0 &&
			 strcmp(rref_owner_name(mine), "worker0") == 0);
		TG_CHECK(!rref_is_owner(theirs) && rref_owner(theirs) == 1 &&
			 strcmp(rref_owner_name(theirs), "worker1") == 0);
		TG_CHECK(rref_context(mine) == ctx && rref_context(theirs) == ctx);
		TG_CHECK(rref_confirmed(mine) == 1 && rref_confirmed(theirs) == 1);
		id = rref_get_id(mine);
		fork = rref_fork_id(mine);
		TG_CHECK(id.created_on == 0 && id.local_id > 0 && id.reserved == 0 &&
			 fork.local_id == 0 && fork.created_on == 0);
		int n = snprintf(want, sizeof(want),
				 "OwnerRRef(rref_id=GloballyUniqueId(created_on=0, "
				 "local_id=%" PRIu64 "))",
				 id.local_id);

		TG_IS(rref_format(mine, text, sizeof(text)), n);
		TG_CHECK(strcmp(text, want) == 0);
		TG_IS(rref_format(mine, small, sizeof(small)), n);
		TG_CHECK(strcmp(small, "OwnerRR") == 0);
		TG_IS(rref_format(mine, NULL, 0), n);
		TG_IS(rref_format(mine, NULL, 5), -EINVAL);
		id = rref_get_id(theirs);
		fork = rref_fork_id(theirs);
		TG_CHECK(id.created_on == 0 && id.local_id > 0 && fork.created_on == 0 &&
			 fork.local_id > 0);
		n = snprintf(want, sizeof(want),
			     "UserRRef(rref_id=GloballyUniqueId(created_on=0, local_id=%" PRIu64
			     "), fork_id=GloballyUniqueId(created_on=0, local_id=%" PRIu64 "))",
			     id.local_id, fork.local_id);
		TG_IS(rref_format(theirs, text, sizeof(text)), n);
		TG_CHECK(strcmp(text, want) == 0);
		rref_release(mine);
		rref_release(theirs);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c145_146_is_owner_on_both_sides, 4)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *theirs = tg_remote(ctx, (rank + 1) % 4, "tg.echo", "t", 1), *mine;

	TG_OK(rref_new(ctx, "m", 1, &mine));
	TG_CHECK(rref_is_owner(mine) == 1 && rref_is_owner(theirs) == 0);
	for (int to = 0; to < 4; to++)
		for (int which = 0; which < 2; which++) {
			struct rref_future *f;
			struct tg_said s;

			TG_OK(rref_rpc_sync(ctx, to, "inspect", tg_with(which ? &theirs : &mine, 1),
					    RREF_DEFAULT, &f));
			tg_result(f, &s, sizeof(s));
			rref_future_free(f);
			TG_IS(s.is_owner, to == (which ? (rank + 1) % 4 : rank));
		}
	rref_release(mine);
	rref_release(theirs);
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c188_a_value_is_written_once, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r, *theirs;
		void *data;

		TG_OK(rref_alloc(ctx, 4, &r, &data));
		memcpy(data, "set!", 4);
		TG_OK(rref_set(r));
		TG_IS(rref_set(r), -EALREADY);
		TG_IS(rref_set_error(r, -EIO, "no"), -EALREADY);
		tg_expect_bytes(r, "set!", 4);
		rref_release(r);
		TG_OK(rref_alloc(ctx, 4, &r, &data));
		TG_IS(rref_set_error(r, 0, "no"), -EINVAL);
		TG_IS(rref_set_error(r, 5, "no"), -EINVAL);
		TG_IS(rref_set_error(r, -100000, "no"), -EINVAL);
		TG_OK(rref_set_error(r, -EIO, "broken"));
		TG_IS(rref_set(r), -EALREADY);
		TG_IS(rref_set_error(r, -EIO, "no"), -EALREADY);
		tg_expect_error(r, -EIO, "broken");
		rref_release(r);
		TG_OK(rref_new(ctx, "n", 1, &r));
		TG_IS(rref_set(r), -EALREADY);
		rref_release(r);
		theirs = tg_remote(ctx, 1, "tg.echo", "x", 1);
		TG_IS(rref_set(theirs), -EPERM);
		TG_IS(rref_set_error(theirs, -EIO, "no"), -EPERM);
		rref_release(theirs);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A value that is being filled cannot be read anywhere: readers wait, and get all of it. */
TG_TEST(c188_a_value_half_written_is_not_read, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		enum { LENGTH = 300000 };
		struct rref_future *f[2];
		struct rref *r, *copy;
		struct rref_view *v;
		void *data;

		TG_OK(rref_alloc(ctx, LENGTH, &r, &data));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		copy = tg_ask(ctx, 1, "pub.get", (struct tg_make){ 0 });
		TG_CHECK(rref_equal(copy, r));
		for (int i = 0; i < 2; i++)
			TG_OK(rref_rpc_async(ctx, 1 + i, "tg.read", tg_with(&r, 1), RREF_DEFAULT,
					     &f[i]));
		for (size_t at = 0; at < LENGTH; at += 1000) {
			tg_fill(data, at, 5);
			TG_IS(rref_to_here(r, 0, &v), -ETIMEDOUT);
			TG_IS(rref_future_test(f[0]) + rref_future_test(f[1]), 0);
			at += at < 10000 ? 0 : 30000;
		}
		tg_fill(data, LENGTH, 5);
		TG_OK(rref_set(r));
		for (int i = 0; i < 2; i++) {
			unsigned sum;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			tg_result(f[i], &sum, sizeof(sum));
			TG_IS(sum, tg_byte(0, 5));
			rref_future_free(f[i]);
		}
		rref_release(r);
		rref_release(copy);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c193_the_owner_is_stopped, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "ready", 5);
		struct rref_worker_info w = { .size = sizeof(w) };
		struct rref_future *f;

		tg_expect_bytes(r, "ready", 5);
		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		tg_stop_worker(1);
		for (int i = 0; i < 100; i++)
			tg_expect_bytes(r, "ready", 5);
		/* A call has its time; no worker is given up for dead. */
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, 100 * MS, NULL), -ETIMEDOUT);
		TG_OK(rref_rpc_async(ctx, 1, "tg.echo", NULL, TG_LONG_NS, &f));
		for (int i = 0; i < 100; i++)
			tg_expect_bytes(r, "ready", 5);
		TG_OK(rref_worker(ctx, 1, &w));
		TG_IS(w.alive, 1);
		tg_continue_worker(1);
		TG_OK(rref_future_wait(f, TG_LONG_NS));
		rref_future_free(f);
		rref_release(r);
		TG_IS(tg_stats_of(ctx, 1).owners, 1);
		TG_OK(rref_rpc_sync(ctx, 2, "pub.drop", NULL, RREF_DEFAULT, NULL));
		for (int i = 0; i < 3; i++)
			tg_until_clean(ctx, i);
		TG_IS(tg_stats(ctx).dead_peers, 0);
	}
	tg_finish(ctx);
	return 0;
}

struct shared_handle {
	struct rref *r;
	struct rref_ctx *ctx;
	int rounds, to;
};

static void *read_often(void *arg)
{
	struct shared_handle *s = arg;
	struct rref_view *v;

	for (int i = 0; i < s->rounds; i++) {
		TG_OK(rref_to_here(s->r, RREF_DEFAULT, &v));
		TG_CHECK(rref_view_length(v) == 4000 && tg_filled(rref_view_data(v), 4000, 0, 2));
		rref_view_free(v);
	}
	return NULL;
}

TG_TEST(c194_sixteen_threads_read_one_reference, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct shared_handle s = { tg_ask(ctx, 1, "pub.make",
						  (struct tg_make){ .length = 4000, .seed = 2 }),
					   ctx, tg_scale(400), 1 };
		uint64_t before = tg_stats(ctx).reads;
		pthread_t t[16];

		for (int i = 0; i < 16; i++)
			TG_IS(pthread_create(&t[i], NULL, read_often, &s), 0);
		for (int i = 0; i < 16; i++)
			pthread_join(t[i], NULL);
		TG_IS(tg_stats(ctx).reads - before, 16 * s.rounds);
		rref_release(s.r);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c195_ranges, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		static const size_t length = 10000;
		static unsigned char buf[10064];
		static const struct {
			size_t offset, length, got;
		} ranges[] = {
			{ 0, 10000, 10000 }, { 0, 1, 1 }, { 9999, 1, 1 }, { 1, 9999, 9999 },
			{ 4321, 1234, 1234 },
			{ 0, 0, 0 }, { 5000, 0, 0 }, { 9990, 64, 10 }, { 10000, 10, 0 },
			{ 10001, 10, 0 },
			{ SIZE_MAX, 10, 0 }, { 5000, 10064, 5000 }, { SIZE_MAX - 5, 64, 0 },
			{ 64, 64, 64 }, { 0, 10064, 10000 },
		};
		struct rref *there = tg_ask(ctx, 1, "pub.make",
					    (struct tg_make){ .length = length, .seed = 5 });
		struct rref *here;
		void *data;
		size_t got;

		TG_OK(rref_alloc(ctx, length, &here, &data));
		tg_fill(data, length, 5);
		TG_OK(rref_set(here));
		for (int where = 0; where < 2; where++)
			for (size_t i = 0; i < array_size(ranges); i++) {
				memset(buf, 0xAA, sizeof(buf));
				got = 4711;
				TG_OK(rref_to_here_into(where ? there : here,
							ranges[i].length ? buf : NULL,
							ranges[i].offset, ranges[i].length,
							RREF_DEFAULT, &got));
				TG_IS(got, ranges[i].got);
				TG_CHECK(tg_filled(buf, got, ranges[i].offset, 5));
				/* Nothing beyond. */
				for (size_t k = got; k < sizeof(buf); k++)
					TG_IS(buf[k], 0xAA);
			}
		TG_IS(rref_to_here_into(there, NULL, 0, 1, RREF_DEFAULT, &got), -EINVAL);
		TG_IS(rref_to_here_into(there, buf, 0, 1, RREF_DEFAULT, NULL), -EINVAL);
		rref_release(here);
		rref_release(there);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* 1000 good elements of three owners, among elements that are bad in
 * each possible way. The good ones are read. */
TG_TEST(c196_batch_of_a_thousand_some_bad, 4)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		enum { NR = 1000 };
		static struct rref *refs[NR];
		static struct rref_view *views[NR];
		static int status[NR], want[NR];
		int good = 0;

		for (int i = 0; i < NR; i++) {
			int to = 1 + i % 3;

			want[i] = i % 100 == 7	? -ENOSYS
				: i % 100 == 50 ? -ENODATA
				: i == 333	? -EINVAL
						: 0;
			if (want[i] == -ENODATA)
				TG_OK(rref_rpc_sync(ctx, to, "pub.drop", NULL, RREF_DEFAULT, NULL));
			refs[i] = want[i] == -EINVAL ? NULL
				: want[i] == -ENODATA
				? tg_ask(ctx, to, "pub.alloc", (struct tg_make){ .length = 9 })
				: tg_remote(ctx, to, want[i] ? "no.such" : "tg.echo", &i,
					    sizeof(i));
			if (want[i] == -ENODATA)
				tg_ask(ctx, to, "pub.fail", (struct tg_make){ .err = -ENODATA });
			good += want[i] == 0;
		}
		for (int again = 0; again < 2; again++) {
			memset(status, 0x55, sizeof(status));
			memset(views, 0x55, sizeof(views));
			TG_IS(rref_to_here_batch(refs, NR, RREF_DEFAULT, views, status), good);
			for (int i = 0; i < NR; i++) {
				TG_IS(status[i], want[i]);
				TG_CHECK(!views[i] == (want[i] != 0));
				if (views[i])
					TG_CHECK(rref_view_length(views[i]) == sizeof(i) &&
						 memcmp(rref_view_data(views[i]), &i, sizeof(i)) ==
							 0);
				rref_view_free(views[i]);
			}
		}
		/* A late read does not delay the others either. */
		struct rref *late[3] = { tg_remote(ctx, 2, "tg.hold", "l", 1), refs[7], refs[333] };

		TG_IS(rref_to_here_batch(late, 3, 200 * MS, views, status), 0);
		TG_CHECK(status[0] == -ETIMEDOUT && status[1] == -ENOSYS && status[2] == -EINVAL);
		tg_until_held(ctx, 2, 1);
		TG_IS(tg_release_held(ctx, 2), 1);
		TG_IS(rref_to_here_batch(late, 3, RREF_DEFAULT, views, status), 1);
		rref_view_free(views[0]);
		rref_release(late[0]);
		TG_IS(rref_to_here_batch(refs, NR, RREF_DEFAULT, views, status), good);
		for (int i = 0; i < NR; i++) {
			rref_view_free(views[i]);
			rref_release(refs[i]);
		}
		for (int to = 1; to < 4; to++)
			tg_ask(ctx, to, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c055_local_value_without_traffic),
		cmocka_unit_test(c056_local_value_on_a_user_names_all_three),
		cmocka_unit_test(c065_equality_and_hash),
		cmocka_unit_test(c065_owners_compare),
		cmocka_unit_test(c071_text_forms),
		cmocka_unit_test(c145_146_is_owner_on_both_sides),
		cmocka_unit_test(c188_a_value_is_written_once),
		cmocka_unit_test(c188_a_value_half_written_is_not_read),
		cmocka_unit_test(c193_the_owner_is_stopped),
		cmocka_unit_test(c194_sixteen_threads_read_one_reference),
		cmocka_unit_test(c195_ranges),
		cmocka_unit_test(c196_batch_of_a_thousand_some_bad),
	};

	return cmocka_run_group_tests_name("reading", tests, NULL, NULL);
}
