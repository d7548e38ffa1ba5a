/* SPDX-License-Identifier: Apache-2.0 */
/* Wrapped memory goes back to the program exactly once, however its values end. */
#include <pthread.h>
#include <signal.h>

#include "core/base/lock.h"
#include "lent.h"

/* ---- the way back ---- */

/* A view of the owner itself is the memory. The memory comes back after the last view, and the
 * callback may give it up. */
TG_TEST(given_back__after_the_last_view, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_view *a, *b;
	struct lent l;

	lend(ctx, &l, 1000, true, 2); /* a group of one: any memory will do */
	struct rref *r = wrap(&l, 0, 1000), *more = rref_dup(r);

	l.give_up = true;
	TG_OK(rref_to_here(r, RREF_DEFAULT, &a));
	TG_OK(rref_local_value(r, RREF_DEFAULT, &b));
	rref_release(r);
	rref_release(more);
	rref_view_free(a);
	for (int i = 0; i < 50; i++)
		rref_progress(ctx);
	TG_IS(atomic_load(&l.back), 0);
	TG_CHECK(tg_filled(rref_view_data(b), 1000, 0, 2));
	TG_IS(rref_mem_deregister(l.mem), -EBUSY);
	rref_view_free(b);
	until_back(ctx, &l);
	TG_IS(tg_stats(ctx).value_bytes, 0);
	tg_finish(ctx);
	TG_IS(atomic_load(&l.back), 1);
	return 0;
}

/* The owner gave its handle up. The user shares the value, and gives up its own handle. */
TG_TEST(given_back__after_the_last_user_of_a_chain, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent l;

		lend(ctx, &l, 200 * KIB, !tg_is_shm(), 8);
		struct rref *r = wrap(&l, 0, l.length);

		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		tg_until_clean(ctx, 1);
		TG_IS(atomic_load(&l.back), 0);
		r = tg_ask(ctx, 2, "pub.get", (struct tg_make){ 0 });
		read_there(ctx, 2, r, (struct range){ .length = l.length, .seed = 8 });
		rref_release(r);
		tg_until_clean(ctx, 1);
		TG_IS(atomic_load(&l.back), 0);
		TG_OK(rref_rpc_sync(ctx, 2, "pub.drop", NULL, RREF_DEFAULT, NULL));
		until_back(ctx, &l);
		give_up(&l);
		tg_all_clean(ctx);
	}
	if (rank == 1) {
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		r = tg_kept(0);
		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* The last holder dies. After the fence and the grace the memory is back,
 * once. The living worker reads on meanwhile. */
DEATH_TEST(given_back__when_the_user_is_killed, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct lent one, both;

		lend(ctx, &one, 300 * KIB, !tg_is_shm(), 1);
		lend(ctx, &both, 300 * KIB, false, 2);
		struct rref *refs[2] = { wrap(&one, 0, one.length), wrap(&both, 0, both.length) };

		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs, 2), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(refs + 1, 1), RREF_DEFAULT, NULL));
		rref_release(refs[0]);
		rref_release(refs[1]);
		tg_set_flag(0, 1);
		until_back(ctx, &one);
		give_up(&one);
		TG_IS(atomic_load(&both.back), 0);
		tg_set_flag(1, 1);
		until_back(ctx, &both);
		give_up(&both);
		tg_until_clean(ctx, 0);
	} else {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 1, 1);
		TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 300 * KIB, 0, 2));
		rref_view_free(v);
		tg_drop_kept();
	}
	tg_leave(ctx);
	return 0;
}

/* The user is killed in the middle of its reads, which it posts again and again. */
DEATH_TEST(given_back__when_a_reading_user_is_killed, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0;; i++) {
			TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
			rref_view_free(v);
			if (i == 3)
				tg_set_flag(0, 2);
		}
	}
	struct lent l;

	lend(ctx, &l, 2 * MIB, !tg_is_shm(), 4);
	struct rref *r = wrap(&l, 0, l.length);

	TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
	tg_set_flag(0, 1);
	tg_wait_flag_serving(ctx, 0, 2);
	TG_IS(kill(tg_current->shared->pid[1], SIGKILL), 0);
	until_back(ctx, &l);
	give_up(&l);
	tg_until_clean(ctx, 0);
	tg_leave(ctx);
	return 0;
}

/* A graceful shutdown ends users' references. The owner's handle and its view belong to the program
 * until it frees the context. */
TG_TEST(given_back__at_a_graceful_shutdown, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct lent held = { 0 }, gone = { 0 }, viewed = { 0 };
	struct rref_view *v = NULL;

	if (rank == 0) {
		lend(ctx, &held, 5000, false, 1);
		lend(ctx, &gone, 5000, false, 1);
		lend(ctx, &viewed, 5000, false, 1);
		struct rref *refs[3] = { wrap(&held, 0, 5000), wrap(&gone, 0, 5000),
					 wrap(&viewed, 0, 5000) };

		TG_OK(rref_to_here(refs[2], RREF_DEFAULT, &v));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs, 3), RREF_DEFAULT, NULL));
		rref_release(refs[1]);
		rref_release(refs[2]);
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS));
	if (rank == 0) {
		TG_IS(atomic_load(&held.back), 0);
		TG_IS(atomic_load(&gone.back), 1);
		TG_IS(atomic_load(&viewed.back), 0);
		TG_IS(rref_mem_deregister(held.mem), -EBUSY);
		give_up(&gone);
		TG_CHECK(tg_filled(rref_view_data(v), 5000, 0, 1));
		rref_view_free(v);
		TG_IS(atomic_load(&viewed.back), 1);
		held.give_up = true;
	}
	rref_free_ctx(ctx);
	if (rank == 0) {
		TG_IS(atomic_load(&held.back), 1);
		TG_IS(atomic_load(&gone.back), 1);
		TG_IS(atomic_load(&viewed.back), 1);
	}
	return 0;
}

static _Atomic int in_callback;

static void come_back_slowly(void *arg)
{
	atomic_store(&in_callback, 1);
	usleep(50 * 1000);
	came_back(arg);
}

static void *release_on_a_thread(void *ref)
{
	rref_release(ref);
	return NULL;
}

/* The thread of the last release runs the callback after the shutdown. Another thread that takes
 * the memory back waits for it. */
TG_TEST(given_back__after_the_shutdown_on_another_thread, 1)
{
	struct rref_ctx *ctx = join(rank);
	int64_t end = tg_deadline();
	struct lent l;
	struct rref *r;
	pthread_t thread;

	lend(ctx, &l, 5000, false, 1);
	TG_OK(rref_wrap(l.mem, TG_VALUE(.data = l.at, .length = 8), come_back_slowly, &l, &r));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS));
	TG_IS(pthread_create(&thread, NULL, release_on_a_thread, r), 0);
	while (!atomic_load(&in_callback)) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
	give_up(&l);
	TG_IS(atomic_load(&l.back), 1);
	TG_IS(pthread_join(thread, NULL), 0);
	rref_free_ctx(ctx);
	return 0;
}

/* The last release finds the lock taken. No turn is made any more after the shutdown. So the next
 * user of the lock runs the callback: a look at the counters. */
TG_TEST(given_back__after_the_shutdown_by_a_look_at_the_counters, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct lent l;
	struct rref *r;
	pthread_t thread;

	lend(ctx, &l, 5000, false, 1);
	r = wrap(&l, 0, 8);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS));
	rc_lock(ctx);
	TG_IS(pthread_create(&thread, NULL, release_on_a_thread, r), 0);
	TG_IS(pthread_join(thread, NULL), 0);
	rc_unlock_bare(ctx);
	TG_IS(atomic_load(&l.back), 0);
	TG_IS(tg_stats(ctx).owners, 0);
	TG_IS(atomic_load(&l.back), 1);
	give_up(&l);
	rref_free_ctx(ctx);
	return 0;
}

/* An immediate shutdown: the user holds a reference and is told nothing. A forgotten view and a
 * forgotten registration go with the context. */
TG_TEST(given_back__at_an_immediate_shutdown, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent held, gone, forgotten;
		struct rref_view *v;

		lend(ctx, &held, 5000, false, 1);
		lend(ctx, &gone, 5000, !tg_is_shm(), 1);
		lend(ctx, &forgotten, 5000, false, 1);
		struct rref *refs[3] = { wrap(&held, 0, 5000), wrap(&gone, 0, 5000),
					 wrap(&forgotten, 0, 5000) };

		TG_OK(rref_to_here(refs[2], RREF_DEFAULT, &v));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs, 3), RREF_DEFAULT, NULL));
		rref_release(refs[1]);
		rref_release(refs[2]);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0), 0);
		TG_IS(atomic_load(&gone.back), 1);
		give_up(&gone);
		TG_IS(atomic_load(&held.back), 0);
		rref_release(refs[0]);
		TG_IS(atomic_load(&held.back), 1);
		give_up(&held);
		TG_IS(atomic_load(&forgotten.back), 0);
		rref_free_ctx(ctx);
		TG_IS(atomic_load(&held.back), 1);
		TG_IS(atomic_load(&gone.back), 1);
		TG_IS(atomic_load(&forgotten.back), 1);
		return 0;
	}
	int zero = 0;

	TG_CHECK(tg_eventually(tg_is_dead, ctx, &zero));
	tg_leave(ctx);
	return 0;
}

/* The memory came back and was written over. Its old place never shows those bytes. */
TG_TEST(given_back__an_old_place_is_stale, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent l, other;

		lend(ctx, &l, 100 * KIB, false, 1);
		lend(ctx, &other, 100 * KIB, false, 2);
		struct rref *r = wrap(&l, 0, l.length), *s = wrap(&other, 0, other.length);

		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with((struct rref *[]){ r, s }, 2),
				    RREF_DEFAULT, NULL));
		rref_release(r);
		rref_release(s);
		tg_set_flag(0, 1);
		until_back(ctx, &l);
		tg_fill(l.at, l.length, 77);
		tg_set_flag(0, 2);
		until_back(ctx, &other);
		give_up(&l);
		give_up(&other);
		tg_all_clean(ctx);
	} else {
		struct rp_location old, real;
		struct rref_view *v;
		struct rref *r, *s;

		tg_wait_flag_serving(ctx, 0, 1);
		r = rref_dup(tg_kept(0));
		s = rref_dup(tg_kept(1));
		TG_CHECK(rp_is_wrapped(&rc_remote(r)->loc));
		old = rc_remote(r)->loc;
		tg_drop_kept();
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 100 * KIB, 0, 1));
		rref_view_free(v);
		rref_release(r);
		tg_wait_flag_serving(ctx, 0, 2);
		real = rc_remote(s)->loc;
		rc_remote(s)->loc = old;
		int err = rref_to_here(s, RREF_DEFAULT, &v);

		TG_IS(err, -ESTALE); /* also before the header's place is scrubbed */
		rc_remote(s)->loc = real;
		/* A foreign nonce. */
		rc_remote(s)->loc.nonce ^= 1;
		TG_IS(rref_to_here(s, RREF_DEFAULT, &v), -ESTALE);
		rc_remote(s)->loc = real;
		TG_OK(rref_to_here(s, RREF_DEFAULT, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 100 * KIB, 0, 2));
		rref_view_free(v);
		rref_release(s);
	}
	tg_finish(ctx);
	return 0;
}

/* A scrubbed header is not a missing one. It tells every kind of read that the value is gone. */
TG_TEST(scrubbed__is_stale_and_not_broken, 2)
{
	enum { NR = 3 };
	static const size_t lengths[NR] = { 8, 5000, 3 << 20 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r[NR];

		for (int i = 0; i < NR; i++) {
			void *data;

			TG_OK(rref_alloc(ctx, lengths[i], &r[i], &data));
			tg_fill(data, lengths[i], (unsigned)i);
			TG_OK(rref_set(r[i]));
		}
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(r, NR), RREF_DEFAULT, NULL));
		for (int i = 0; i < NR; i++)
			memset(rc_value_header(r[i]->value), 0, RC_HEADER_BYTES);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		for (int i = 0; i < NR; i++)
			rref_release(r[i]);
		tg_all_clean(ctx);
	} else {
		struct rref *refs[NR];
		struct rref_view *v[NR];
		int status[NR];
		char part[16];
		size_t got;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < NR; i++) {
			refs[i] = tg_kept(i);
			TG_IS(rref_to_here(refs[i], RREF_DEFAULT, &v[0]), -ESTALE);
			TG_TEXT("not there any more");
			TG_IS(rref_to_here_into(refs[i], part, 0, sizeof(part), RREF_DEFAULT, &got),
			      -ESTALE);
		}
		TG_IS(rref_to_here_batch(refs, NR, RREF_DEFAULT, v, status), 0);
		for (int i = 0; i < NR; i++)
			TG_IS(status[i], -ESTALE);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(given_back__after_the_last_view),
		cmocka_unit_test(given_back__after_the_last_user_of_a_chain),
		cmocka_unit_test(given_back__when_the_user_is_killed),
		cmocka_unit_test(given_back__when_a_reading_user_is_killed),
		cmocka_unit_test(given_back__at_a_graceful_shutdown),
		cmocka_unit_test(given_back__after_the_shutdown_on_another_thread),
		cmocka_unit_test(given_back__after_the_shutdown_by_a_look_at_the_counters),
		cmocka_unit_test(given_back__at_an_immediate_shutdown),
		cmocka_unit_test(given_back__an_old_place_is_stale),
		cmocka_unit_test(scrubbed__is_stale_and_not_broken),
	};

	return cmocka_run_group_tests_name("given_back", tests, NULL, NULL);
}
