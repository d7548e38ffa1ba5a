/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's work for views of workers whose session ended (look_life_test). Memory comes back
 * when it is wanted, and the lock is held for few marks at a time. Worker 0 owns, worker 1 reads.
 */
#include <signal.h>

#include "core/base/lock.h"
#include "core/op/step.h"
#include "looks.h"

#define LARGE (40 * MIB)
#define BOUND (64 * MIB)

/* ---- marks that were looked up between two turns of the lock ---- */

static unsigned in_turn, most_in_turn;

int __real_rc_held_value(struct rref_ctx *ctx, uint32_t rank, const struct rref_id *id,
			 const struct rref_id *fork, void **value);
int __wrap_rc_held_value(struct rref_ctx *ctx, uint32_t rank, const struct rref_id *id,
			 const struct rref_id *fork, void **value);
void __real_rc_unlock(struct rref_ctx *ctx);
void __wrap_rc_unlock(struct rref_ctx *ctx);

int __wrap_rc_held_value(struct rref_ctx *ctx, uint32_t rank, const struct rref_id *id,
			 const struct rref_id *fork, void **value)
{
	most_in_turn = max_of(most_in_turn, ++in_turn);
	return __real_rc_held_value(ctx, rank, id, fork, value);
}

void __wrap_rc_unlock(struct rref_ctx *ctx)
{
	in_turn = 0;
	__real_rc_unlock(ctx);
}

/* ---- looks, also under the lock ---- */

static unsigned nr_looks, nr_locked;

bool __real_rc_read_look(struct rref *ref, size_t least, struct rref_view **out);
bool __wrap_rc_read_look(struct rref *ref, size_t least, struct rref_view **out);

bool __wrap_rc_read_look(struct rref *ref, size_t least, struct rref_view **out)
{
	nr_looks++;
	nr_locked += rc_lock_is_mine(ref->ctx);
	return __real_rc_read_look(ref, least, out);
}

/* ---- */

static struct rref_ctx *join_bounded(int rank, enum rref_progress_mode mode)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.stall_timeout = stall_ns();
	o.max_value_bytes = BOUND;
	if (mode && rank == 0)
		o.mode = mode;
	TG_OK(rref_init(&o, &ctx));
	tg_add_refs(ctx);
	tg_meet_serving(ctx, 15);
	return ctx;
}

/* Has no tick look at marks from now on. */
static void stop_ticks(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	ctx->value.onlookers_at = INT64_MAX;
	rc_unlock(ctx);
}

/* Stops worker 1 until it is fenced. */
static void fence_reader(struct rref_ctx *ctx)
{
	tg_stop_worker(1);
	for (int64_t end = now_ns() + stall_ns() + TG_LONG_NS; !no_forks(ctx, NULL);
	     usleep(1000)) {
		TG_CHECK(now_ns() < end);
		rref_progress(ctx);
	}
	TG_IS(tg_stats(ctx).fenced_peers, 1);
}

/* Makes a value that finds no room beside another one. */
static int make_40_mib(struct rref_ctx *ctx, bool local, struct rref **out)
{
	static const struct rref_type here = { sizeof(here), "here", 0, RREF_LOCAL_ONLY };
	struct iovec place;

	return rref_alloc_value(ctx, TG_VALUE(.length = LARGE, .type = local ? &here : NULL), out,
				&place);
}

/* Lends worker 1 such a value, and keeps no reference to it. */
static void lend_large(struct rref_ctx *ctx)
{
	struct rref *r;

	TG_OK(make_40_mib(ctx, false, &r));
	TG_OK(rref_set(r));
	TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
}

/* Reads until the fence is known, then frees the views when it is told to. */
static void look_until_fenced(struct rref_ctx *ctx, struct rref_view **v, size_t nr)
{
	struct rref_view *no;

	for (size_t i = 0; i < nr; i++)
		v[i] = look_at(tg_kept(0));
	tg_set_flag(0, 2);
	/* The worker is stopped here, and finds itself fenced when it goes on. */
	for (int err = 0; err != -ENETRESET; usleep(1000)) {
		err = rref_to_here_with(tg_kept(0), RREF_READ_LOOK, TG_LONG_NS, &no);
		TG_CHECK(!err || err == -ENETRESET);
		if (!err)
			rref_view_free(no);
	}
	tg_drop_kept();
	tg_wait_flag_serving(ctx, 0, 4);
	for (size_t i = 0; i < nr; i++)
		rref_view_free(v[i]);
	tg_set_flag(0, 5);
	tg_wait_flag_serving(ctx, 0, 6);
}

/* Allocates memory of a view that has ended, though no tick has looked. */
static void find_the_room(int rank, bool local)
{
	struct rref_ctx *ctx = join_bounded(rank, 0);

	if (rank == 0) {
		struct rref *r;

		lend_large(ctx);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		fence_reader(ctx);
		stop_ticks(ctx);
		TG_IS(tg_stats(ctx).views_left, 1);
		TG_IS(make_40_mib(ctx, local, &r), -ENOMEM);
		tg_continue_worker(1);
		tg_set_flag(0, 4);
		tg_wait_flag_serving(ctx, 0, 5);
		TG_IS(tg_stats(ctx).views_left, 1);
		TG_OK(make_40_mib(ctx, local, &r));
		TG_IS(tg_stats(ctx).views_left, 0);
		TG_OK(rref_set(r));
		rref_release(r);
		tg_set_flag(0, 6);
	} else {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 0, 1);
		look_until_fenced(ctx, &v, 1);
	}
	tg_leave(ctx);
}

TG_TEST(room__of_a_view_that_ended, 2)
{
	find_the_room(rank, false);
	return 0;
}

TG_TEST(room__of_a_view_that_ended_for_a_local_value, 2)
{
	find_the_room(rank, true);
	return 0;
}

/* Tells whether the process has ended, by its line in /proc. */
static bool has_died(pid_t pid)
{
	char path[64], line[512] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return true;
	TG_CHECK(fgets(line, sizeof(line), f));
	fclose(f);
	return strstr(line, ") Z") || strstr(line, ") X");
}

/* A reader whose process has ended keeps nothing, from the end of its session on. */
DEATH_TEST(room__of_a_dead_reader, 2, 1 << 1)
{
	struct rref_ctx *ctx = join_bounded(rank, RREF_PROGRESS_MANUAL);

	if (rank == 0) {
		lend_large(ctx);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		stop_ticks(ctx);
		tg_set_flag(9, 1);
		while (!has_died(tg_current->shared->pid[1]))
			usleep(1000);
		TG_IS(tg_stats(ctx).forks, 1);
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		TG_IS(tg_stats(ctx).views_left, 0);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		look_at(tg_kept(0));
		tg_set_flag(0, 2);
		tg_serve_and_die(ctx, 9);
	}
	tg_leave(ctx);
	return 0;
}

/* A full table of marks is read in turns of the lock, and each mark keeps the value. */
TG_TEST(turns__of_a_full_table, 2)
{
	struct rref_ctx *ctx = join_bounded(rank, 0);

	if (rank == 0) {
		lend_large(ctx);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		fence_reader(ctx);
		TG_IS(tg_stats(ctx).views_left, RV_LOOKS - 1);
		TG_CHECK(most_in_turn > 0 && most_in_turn <= RV_LOOKS / 8);
		tg_continue_worker(1);
		tg_set_flag(0, 4);
		tg_wait_flag_serving(ctx, 0, 5);
		TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
		tg_set_flag(0, 6);
	} else {
		static struct rref_view *v[RV_LOOKS - 1];

		tg_wait_flag_serving(ctx, 0, 1);
		look_until_fenced(ctx, v, array_size(v));
	}
	tg_leave(ctx);
	return 0;
}

/* The turns go on while the owner leaves at once, and no other thread runs them. */
TG_TEST(turns__while_the_owner_leaves, 2)
{
	struct rref_ctx *ctx = join_bounded(rank, RREF_PROGRESS_MANUAL);
	static struct rref_view *v[RV_LOOKS];

	if (rank == 0) {
		lend_large(ctx);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, TG_LONG_NS));
		TG_CHECK(most_in_turn > 0 && most_in_turn <= RV_LOOKS / 8);
		rref_free_ctx(ctx);
		tg_set_flag(0, 3);
		return 0;
	}
	tg_wait_flag_serving(ctx, 0, 1);
	for (size_t i = 0; i < RV_LOOKS; i++)
		v[i] = look_at(tg_kept(0));
	tg_set_flag(0, 2);
	tg_wait_flag_serving(ctx, 0, 3);
	for (size_t i = 0; i < RV_LOOKS; i++)
		rref_view_free(v[i]);
	tg_drop_kept();
	tg_leave(ctx);
	return 0;
}

/* A read that waits looks without the lock: the first look at a region maps it. */
TG_TEST(look__of_a_value_that_comes, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_ask(ctx, 1, "pub.alloc", (struct tg_make){ .length = MIB });
		struct rref_future *f, *set;
		struct rref_view *v;

		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		nr_looks = 0;
		set = tg_start(ctx, 1, "pub.set", &(struct tg_make){ .seed = 5 },
			       sizeof(struct tg_make));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_IS(nr_looks, 1);
		TG_IS(nr_locked, 0);
		TG_OK(rref_future_view(f, &v));
		TG_IS(rref_view_is_copy(v), 0);
		shows(v, MIB, 5);
		rref_view_free(v);
		rref_future_free(f);
		TG_OK(rref_future_wait(set, RREF_DEFAULT));
		rref_future_free(set);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(room__of_a_view_that_ended),
		cmocka_unit_test(room__of_a_view_that_ended_for_a_local_value),
		cmocka_unit_test(room__of_a_dead_reader),
		cmocka_unit_test(turns__of_a_full_table),
		cmocka_unit_test(turns__while_the_owner_leaves),
		cmocka_unit_test(look__of_a_value_that_comes),
	};

	if (!tg_is_shm())
		return 0;
	return cmocka_run_group_tests_name("look_room", tests, NULL, NULL);
}
