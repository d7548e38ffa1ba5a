/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pthread_cancel. No function of the library is a cancellation point, so a
 * cancelled thread ends only after the call. It leaves no lock taken, no operation
 * without an end, and no place in a queue of sleepers.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

static struct rref_ctx *ctx;
static struct rref *theirs, *large;

/*
 * Makes one round of calls that take locks, wait or enter the system. A cancelled thread ends only
 * between two of them.
 */
static void use_everything(void)
{
	struct rref_future *f, *fs[2];
	struct rref_view *v;
	struct rref *r;
	char text[256];
	void *data;

	TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", tg_bytes("x", 1), RREF_DEFAULT, NULL));
	TG_OK(rref_to_here(theirs, RREF_DEFAULT, &v));
	rref_view_free(v);
	TG_OK(rref_to_here(large, RREF_DEFAULT, &v));
	rref_view_free(v);
	TG_OK(rref_new(ctx, "y", 1, &r));
	rref_release(r);
	TG_OK(rref_alloc(ctx, 300000, &r, &data));
	rref_release(r);
	TG_OK(rref_to_here_async(theirs, RREF_DEFAULT, &f));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	for (int i = 0; i < 2; i++)
		TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &fs[i]));
	TG_OK(rref_wait_any(fs, 2, RREF_DEFAULT));
	TG_OK(rref_wait_all(fs, 2, RREF_DEFAULT));
	for (int i = 0; i < 2; i++)
		rref_future_free(fs[i]);
	TG_OK(rref_remote(ctx, 1, "tg.echo", tg_bytes("z", 1), RREF_DEFAULT, &r));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	rref_view_free(v);
	rref_release(r);
	TG_OK(rref_progress(ctx));
	rref_dump(ctx, text, sizeof(text));
}

static _Atomic uint64_t rounds;

/*
 * Handles and futures of a round belong to the program, and are lost if its thread ends in the
 * middle. So it ends only at its own cancellation point. The test: it ends nowhere else, though it
 * is cancelled at some moment of a round.
 */
static void *user(void *arg)
{
	(void)arg;
	for (;;) {
		use_everything();
		atomic_fetch_add(&rounds, 1);
		pthread_testcancel();
	}
	return NULL;
}

#define THREADS 4

TG_TEST(cancelled_at_any_moment__nothing_is_left_behind, 2)
{
	unsigned seed = 1;

	ctx = tg_join_refs(rank);
	if (rank == 0) {
		pthread_t t[THREADS];

		theirs = tg_remote(ctx, 1, "tg.echo", "theirs", 6);
		large = tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = 20000 });
		tg_expect_bytes(theirs, "theirs", 6);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&t[i], NULL, user, NULL), 0);
		for (int n = 0; n < tg_scale(120); n++) {
			int i = n % THREADS;
			void *how;

			/* Each thread has had a round, or is about to. */
			usleep((useconds_t)(rand_r(&seed) % 3000));
			TG_IS(pthread_cancel(t[i]), 0);
			TG_IS(pthread_join(t[i], &how), 0);
			TG_CHECK(how == PTHREAD_CANCELED);
			TG_IS(pthread_create(&t[i], NULL, user, NULL), 0);
		}
		for (int i = 0; i < THREADS; i++) {
			TG_IS(pthread_cancel(t[i]), 0);
			TG_IS(pthread_join(t[i], NULL), 0);
		}
		TG_CHECK(atomic_load(&rounds) > 0);
		/* All goes on, and the ended threads hold nothing. */
		tg_expect_bytes(theirs, "theirs", 6);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		rref_release(theirs);
		rref_release(large);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

static _Atomic int waits, over;

/*
 * Waits for a future. Cancelled in its sleep, the wait goes on to
 * its end, and the thread ends after it.
 */
static void *waiter(void *arg)
{
	struct rref_future *f = arg;

	atomic_fetch_add(&waits, 1);
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	atomic_fetch_add(&over, 1);
	pthread_testcancel();
	TG_CHECK(false);
	return NULL;
}

TG_TEST(cancelled_in_a_wait__the_wait_goes_on, 2)
{
	ctx = tg_join_refs(rank);
	if (rank == 0) {
		pthread_t t[THREADS];

		for (int i = 0; i < THREADS; i++) {
			struct rref_future *f = tg_start(ctx, 1, "tg.hold", "x", 1);

			TG_IS(pthread_create(&t[i], NULL, waiter, f), 0);
		}
		tg_until_held(ctx, 1, THREADS);
		while (atomic_load(&waits) < THREADS)
			tg_pause();
		usleep(20000); /* most threads sleep by now */
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_cancel(t[i]), 0);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_IS(atomic_load(&over), 0);
		TG_IS(tg_release_held(ctx, 1), THREADS);
		for (int i = 0; i < THREADS; i++) {
			void *how;

			TG_IS(pthread_join(t[i], &how), 0);
			TG_CHECK(how == PTHREAD_CANCELED);
		}
		TG_IS(atomic_load(&over), THREADS);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

static void *server(void *arg)
{
	(void)arg;
	atomic_fetch_add(&waits, 1);
	TG_IS(rref_serve(ctx), 0);
	atomic_fetch_add(&over, 1);
	pthread_testcancel();
	TG_CHECK(false);
	return NULL;
}

/* A cancelled server serves on until it is stopped, and another thread may serve then. */
TG_TEST(cancelled_in_serve__it_serves_on, 2)
{
	ctx = tg_join(rank);
	if (rank == 0) {
		pthread_t t;
		void *how;

		for (int i = 0; i < 3; i++) {
			TG_IS(pthread_create(&t, NULL, server, NULL), 0);
			while (atomic_load(&waits) <= i)
				tg_pause();
			usleep(20000); /* probably asleep by now */
			TG_IS(pthread_cancel(t), 0);
			TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
			TG_IS(atomic_load(&over), i);
			TG_OK(rref_serve_stop(ctx));
			TG_IS(pthread_join(t, &how), 0);
			TG_CHECK(how == PTHREAD_CANCELED);
			TG_IS(atomic_load(&over), i + 1);
		}
		tg_set_flag(1, 1);
	}
	tg_wait_flag_serving(ctx, 1, 1);
	tg_finish(ctx);
	return 0;
}

/*
 * Runs a callback or a handler with cancellation off. A thread that was cancelled before the call
 * is cancelled after it.
 */
static int tries(struct rref_call *call, void *arg)
{
	int old;

	(void)call, (void)arg;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	TG_IS(old, PTHREAD_CANCEL_DISABLE);
	pthread_cancel(pthread_self());
	pthread_testcancel();
	return 0;
}

static void *cancels_itself(void *arg)
{
	struct rref *r;
	int old;

	(void)arg;
	pthread_cancel(pthread_self());
	TG_OK(rref_rpc_sync(ctx, 0, "tries", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_rpc_sync(ctx, 0, "tries_inline", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_new(ctx, "x", 1, &r));
	rref_release(r);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	TG_IS(old, PTHREAD_CANCEL_ENABLE); /* as it was */
	atomic_fetch_add(&over, 1);
	return NULL;
}

TG_TEST(cancelled_before__calls_work_and_the_state_is_given_back, 1)
{
	pthread_t t;

	ctx = tg_join(rank);
	tg_add(ctx, "tries", tries, 0);
	tg_add(ctx, "tries_inline", tries, RREF_INLINE);
	for (int i = 0; i < 50; i++) {
		TG_IS(pthread_create(&t, NULL, cancels_itself, NULL), 0);
		TG_IS(pthread_join(t, NULL), 0);
		TG_IS(atomic_load(&over), i + 1);
	}
	TG_OK(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cancelled_at_any_moment__nothing_is_left_behind),
		cmocka_unit_test(cancelled_in_a_wait__the_wait_goes_on),
		cmocka_unit_test(cancelled_in_serve__it_serves_on),
		cmocka_unit_test(cancelled_before__calls_work_and_the_state_is_given_back),
	};

	return cmocka_run_group_tests_name("cancel", tests, NULL, NULL);
}
