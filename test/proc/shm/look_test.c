/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values that are looked at where they lie: views without a copy, over shm. Which reads look, and
 * which copy. Worker 1 owns, worker 0 reads.
 */
#include <sys/resource.h>

#include "core/read/read.h"
#include "looks.h"
#include "verbs/shm/shm.h"

/* Reads of any size copy nothing and make no READ. The memory is the owner's, and cannot be
 * written. */
TG_TEST(look__copies_nothing_at_any_size, 2)
{
	static const size_t sizes[] = { 16 * KIB, 64 * KIB, MIB + 1, 16 * MIB };
	struct rref_ctx *ctx = tg_join_refs(rank);

	for (size_t i = 0; rank == 0 && i < array_size(sizes); i++) {
		struct rref *r = value_there(ctx, sizes[i], 7);
		struct rref_stats before = tg_stats(ctx), after;
		struct rref_view *v = look_at(r);

		after = tg_stats(ctx);
		TG_IS(after.looks - before.looks, 1);
		TG_IS(after.reads - before.reads, 0);
		TG_IS(after.read_bytes - before.read_bytes, 0);
		TG_IS(after.landing_bytes, before.landing_bytes);
		TG_CHECK(is_of_owner(rref_view_data(v)));
		TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
		shows(v, sizes[i], 7);
		rref_view_free(v);
		rref_release(r);
	}
	if (rank == 0) {
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- copies ---- */

static void reads_a_copy(struct rref *r, size_t length)
{
	struct rref_stats before = tg_stats(rref_context(r)), after;
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	after = tg_stats(rref_context(r));
	TG_IS(rref_view_is_copy(v), 1);
	TG_IS(after.looks, before.looks);
	TG_CHECK(after.read_bytes - before.read_bytes >= length);
	TG_CHECK(!is_of_owner(rref_view_data(v)));
	shows(v, length, 7);
	rref_view_free(v);
}

/* A value below the bound is copied. A flag of the read goes before the bound, both ways. */
TG_TEST(copy__below_the_bound_or_by_a_flag, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *small = value_there(ctx, 16 * KIB - 1, 7), *large;
		struct rref_view *v;

		reads_a_copy(small, 16 * KIB - 1);
		TG_OK(rref_to_here_with(small, RREF_READ_LOOK, RREF_DEFAULT, &v));
		TG_IS(rref_view_is_copy(v), 0);
		shows(v, 16 * KIB - 1, 7);
		rref_view_free(v);
		rref_release(small);
		TG_OK(rref_new(ctx, "here", 4, &small));
		TG_OK(rref_to_here_with(small, RREF_READ_COPY, RREF_DEFAULT, &v));
		TG_IS(rref_view_is_copy(v), 0); /* an alias, as on any owner */
		TG_IS(rref_view_is_copy(NULL), 0);
		rref_view_free(v);
		rref_release(small);
		large = value_there(ctx, 300 * KIB, 7);
		TG_OK(rref_to_here_with(large, RREF_READ_COPY, RREF_DEFAULT, &v));
		TG_IS(rref_view_is_copy(v), 1);
		shows(v, 300 * KIB, 7);
		rref_view_free(v);
		TG_IS(rref_to_here_with(large, RREF_READ_COPY | RREF_READ_LOOK, RREF_DEFAULT, &v),
		      -EINVAL);
		TG_IS(rref_to_here_with(large, 4, RREF_DEFAULT, &v), -EINVAL);
		rref_release(large);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(copy__if_no_value_is_large_enough, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.look_bytes = SIZE_MAX;
	ctx = tg_join_by(&o);
	if (rank == 0) {
		struct rref *r = value_there(ctx, MIB, 7);

		reads_a_copy(r, MIB);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* Values are copied when all places are taken. Places that come back are used again. */
TG_TEST(copy__when_too_much_is_looked_at, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		static struct rref_view *views[RV_LOOKS];
		struct rref *r = value_there(ctx, 64 * KIB, 7);

		for (int round = 0; round < 2; round++) {
			for (size_t i = 0; i < RV_LOOKS; i++)
				views[i] = look_at(r);
			reads_a_copy(r, 64 * KIB);
			shows(views[RV_LOOKS - 1], 64 * KIB, 7);
			for (size_t i = 0; i < RV_LOOKS; i++)
				rref_view_free(views[i]);
		}
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

static void no_marks(struct rref_ctx *ctx)
{
	const struct rvs_page *page = ctx->device[RV_SHM].dev->page;

	for (uint32_t i = 0; i < at_load(&page->places_end); i++)
		TG_IS(at_load(&page->place[i].word[0]), 0);
}

static const struct rref_type pairs = { sizeof(pairs), "pairs", 16, 0 };

/* Makes a value that worker 0 keeps: the next one that it keeps. */
static void lend_one(struct rref_ctx *ctx, const struct rref_value_desc *desc)
{
	struct rref *r;

	TG_OK(rref_new_value(ctx, desc, &r));
	TG_OK(rref_rpc_sync(ctx, 0, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
}

/* Lends a typed value, a value of two segments, and a value with a reference. */
static void lend_all_kinds(struct rref_ctx *ctx)
{
	static unsigned char bytes[32 * KIB];
	const struct iovec two[] = { { bytes, 16 * KIB }, { bytes + 16 * KIB, 16 * KIB } };
	struct rref *held;

	tg_fill(bytes, sizeof(bytes), 7);
	TG_OK(rref_new(ctx, "held", 4, &held));
	lend_one(ctx, TG_VALUE(.data = bytes, .length = sizeof(bytes), .type = &pairs));
	lend_one(ctx, TG_VALUE(.segments = two, .nr_segments = 2));
	lend_one(ctx, TG_VALUE(.data = bytes, .length = sizeof(bytes), .refs = &held,
			       .nr_refs = 1));
	rref_release(held);
}

/* A typed value is looked at. Values of several segments are copied, and values that hold
 * references. */
TG_TEST(look__at_which_kinds, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1) {
		lend_all_kinds(ctx);
		tg_set_flag(0, 1);
	} else {
		struct rref_type t = { .size = sizeof(t) };

		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_get_type(tg_kept(0), RREF_DEFAULT, &t));
		for (int i = 0; i < 3; i++) {
			unsigned flags[] = { 0, RREF_READ_LOOK };

			for (int k = 0; k < 2; k++) {
				struct rref_view *v;

				TG_OK(rref_to_here_with(tg_kept(i), flags[k], RREF_DEFAULT, &v));
				TG_IS(rref_view_is_copy(v), i > 0);
				TG_IS(rref_view_segments(v, NULL, 0), i == 1 ? 2 : 1);
				TG_IS(rref_view_nr_refs(v), i == 2);
				if (i == 0) {
					TG_OK(rref_view_type(v, &t));
					TG_IS(t.element_size, 16);
				}
				shows(v, 32 * KIB, 7);
				rref_view_free(v);
			}
		}
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

static void count_up(struct rref_future *f, void *arg)
{
	(void)f;
	++*(int *)arg;
}

/* All ways of a whole value here look: batches, and futures, also in queues or with callbacks. */
TG_TEST(look__in_each_way, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r[2] = { value_there(ctx, 64 * KIB, 7),
				      value_there(ctx, 16 * KIB, 8) };
		struct rref_view *v[2];
		struct rref_queue *q;
		struct rref_future *f;
		int status[2];

		TG_IS(rref_to_here_batch(r, 2, RREF_DEFAULT, v, status), 2);
		for (int i = 0; i < 2; i++) {
			TG_IS(rref_view_is_copy(v[i]), 0);
			shows(v[i], i ? 16 * KIB : 64 * KIB, i ? 8u : 7u);
			rref_view_free(v[i]);
		}
		TG_OK(rref_queue_new(ctx, &q));
		for (int how = 0; how < 3; how++) {
			uint64_t reads = tg_stats(ctx).reads;
			int called = 0;

			TG_OK(rref_to_here_async(r[0], RREF_DEFAULT, &f));
			if (how == 1)
				TG_OK(rref_future_then(f, count_up, &called));
			if (how == 2) {
				TG_OK(rref_queue_add(q, f, NULL));
				TG_OK(rref_queue_next(q, RREF_DEFAULT, &f, NULL));
			}
			TG_OK(rref_future_wait(f, RREF_DEFAULT));
			TG_IS(called, how == 1);
			/* a view that is not taken out ends with the future */
			if (how < 2)
				TG_OK(rref_future_view(f, &v[0]));
			rref_future_free(f);
			TG_IS(tg_stats(ctx).reads, reads);
			if (how == 2)
				continue;
			TG_IS(rref_view_is_copy(v[0]), 0);
			shows(v[0], 64 * KIB, 7);
			rref_view_free(v[0]);
		}
		rref_queue_free(q);
		no_marks(ctx);
		rref_release(r[0]);
		rref_release(r[1]);
	}
	tg_finish(ctx);
	return 0;
}

/* A header that is not the value's is refused, and leaves no look behind. Such a location is of a
 * value that died, whose place another one has. */
TG_TEST(look__not_at_another_value, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value_there(ctx, 64 * KIB, 7);
		struct rp_location *loc = &rc_remote(r)->loc;
		struct rref_view *v = look_at(r);
		uint64_t looks = tg_stats(ctx).looks;

		rref_view_free(v);
		loc->nonce ^= 1;
		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -ESTALE);
		TG_IS(rref_to_here_with(r, RREF_READ_LOOK, RREF_DEFAULT, &v), -ESTALE);
		loc->nonce ^= 1;
		loc->addr += 64;
		TG_CHECK(rref_to_here(r, RREF_DEFAULT, &v) < 0);
		loc->addr -= 64;
		TG_IS(tg_stats(ctx).looks, looks);
		v = look_at(r);
		shows(v, 64 * KIB, 7);
		rref_view_free(v);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* A thread has found its context running. Then the word goes out that no look begins any more. The
 * thread takes its mark back. */
TG_TEST(look__not_when_the_worker_leaves, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value_there(ctx, 64 * KIB, 7);
		uint64_t looks = tg_stats(ctx).looks;
		struct rref_view *v;

		at_store_sc(&ctx->state, RC_CTX_CLOSING);
		TG_CHECK(!rc_read_look(r, 0, &v));
		at_store_sc(&ctx->state, RC_CTX_RUNNING);
		no_marks(ctx);
		TG_IS(tg_stats(ctx).looks, looks);
		TG_CHECK(rc_read_look(r, 0, &v));
		shows(v, 64 * KIB, 7);
		rref_view_free(v);
		no_marks(ctx);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* Reads that wait for the value look at it when it comes, or copy it if they were asked to. */
TG_TEST(look__when_the_value_comes, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	static unsigned char large[20 * KIB];

	for (int copy = 0; rank == 0 && copy < 2; copy++) {
		unsigned flags = copy ? RREF_READ_COPY : 0;
		struct rref *r = tg_ask(ctx, 1, "pub.alloc", (struct tg_make){ .length = MIB });
		struct rref_future *set, *f;
		struct rref_view *v;

		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		TG_IS(rref_future_test(f), 0);
		set = tg_start(ctx, 1, "pub.set", &(struct tg_make){ .seed = 5 },
			       sizeof(struct tg_make));
		TG_OK(rref_to_here_with(r, flags, RREF_DEFAULT, &v));
		TG_IS(rref_view_is_copy(v), copy);
		shows(v, MIB, 5);
		rref_view_free(v);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_view(f, &v));
		TG_IS(rref_view_is_copy(v), 0);
		shows(v, MIB, 5);
		rref_view_free(v);
		rref_future_free(f);
		TG_OK(rref_future_wait(set, RREF_DEFAULT));
		rref_future_free(set);
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
	}
	if (rank == 0) {
		struct rref *r;

		tg_fill(large, sizeof(large), 6);
		r = tg_remote(ctx, 1, "tg.echo", large, sizeof(large));
		struct rref_view *v = look_at(r);

		shows(v, sizeof(large), 6);
		rref_view_free(v);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* An owner with few descriptors cannot watch the reader's process, so it lets nobody look. */
TG_TEST(copy__if_the_owner_has_no_descriptor_to_spare, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1) {
		int fd = dup(0);
		struct rlimit few;

		TG_CHECK(fd >= 0 && !getrlimit(RLIMIT_NOFILE, &few));
		close(fd);
		few.rlim_cur = (rlim_t)fd * 2;
		TG_CHECK(!setrlimit(RLIMIT_NOFILE, &few));
	}
	tg_meet_serving(ctx, 1);
	if (rank == 0) {
		struct rref *r = value_there(ctx, 64 * KIB, 7);

		reads_a_copy(r, 64 * KIB);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(look__copies_nothing_at_any_size),
		cmocka_unit_test(copy__below_the_bound_or_by_a_flag),
		cmocka_unit_test(copy__if_no_value_is_large_enough),
		cmocka_unit_test(copy__when_too_much_is_looked_at),
		cmocka_unit_test(copy__if_the_owner_has_no_descriptor_to_spare),
		cmocka_unit_test(look__at_which_kinds),
		cmocka_unit_test(look__in_each_way),
		cmocka_unit_test(look__when_the_value_comes),
		cmocka_unit_test(look__not_at_another_value),
		cmocka_unit_test(look__not_when_the_worker_leaves),
	};

	if (!tg_is_shm())
		return 0;
	return cmocka_run_group_tests_name("look", tests, NULL, NULL);
}
