/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that want the progress lock, beside threads that take it again and again. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/wait.h"
#include "tg.h"

static struct rref_ctx *ctx;

static void *want_lock(void *arg)
{
	rc_lock_looking(ctx);
	atomic_store((_Atomic bool *)arg, true);
	rc_unlock(ctx);
	return NULL;
}

/* A program that spins leaves 15 of 16 turns to threads that want the lock. */
TG_TEST(progress__makes_way, 1)
{
	enum { TURNS = 160 };
	_Atomic bool got = false;
	uint32_t before;
	pthread_t t;

	ctx = tg_join(rank);
	rc_lock(ctx);
	TG_CHECK(pthread_create(&t, NULL, want_lock, &got) == 0);
	for (int64_t end = tg_deadline(); !at_load(&ctx->lock.wanted); usleep(200))
		TG_CHECK(now_ns() < end);
	before = at_load(&ctx->lock.turns);
	for (int i = 0; i < TURNS; i++)
		TG_CHECK(!rc_trylock_in_turn(ctx)); /* it is taken */
	TG_CHECK(at_load(&ctx->lock.turns) - before >= TURNS);
	TG_CHECK(!atomic_load(&got));
	rc_unlock(ctx);
	pthread_join(t, NULL);
	TG_CHECK(atomic_load(&got));

	/* A thread that stands still wants it from now on. */
	at_add(&ctx->lock.wanted, 1);
	before = at_load(&ctx->lock.turns);
	for (int i = 0; i < TURNS; i++)
		TG_CHECK(rref_progress(ctx) >= 0);
	TG_CHECK(at_load(&ctx->lock.turns) - before >= TURNS);
	if (tg_mode() == RREF_PROGRESS_MANUAL) {
		int n = 0;

		for (int i = 0; i < TURNS; i++)
			if (rc_trylock_in_turn(ctx)) {
				n++;
				rc_unlock(ctx);
			}
		TG_IS(n, TURNS / 16);
	}
	at_sub(&ctx->lock.wanted, 1);
	tg_finish(ctx);
	return 0;
}

static void until_a_thread_sleeps_on_the_lock(void)
{
	for (int64_t end = tg_deadline(); at_load(&ctx->lock.word) != RC_LOCKED_WANTED;)
		TG_CHECK(now_ns() < end);
}

/* Takes the lock, and as a thread for which no other waits. */
static void take_the_lock(void)
{
	for (rc_lock(ctx); at_load(&ctx->lock.word) != RC_LOCKED; rc_lock(ctx))
		rc_unlock(ctx);
}

/* The poller sleeps on the lock in the end: it might never find it free. */
TG_TEST(poller__wants_the_lock_at_last, 1)
{
	ctx = tg_join(rank);
	take_the_lock();
	if (tg_mode() == RREF_PROGRESS_POLL)
		until_a_thread_sleeps_on_the_lock();
	rc_unlock(ctx);
	tg_finish(ctx);
	return 0;
}

static void *wait_for_it(void *f)
{
	TG_OK(rref_future_wait(f, RREF_FOREVER));
	return NULL;
}

static bool a_waiter_sleeps_on_the_devices(void)
{
	bool one;

	rc_lock(ctx);
	one = ctx->sleep.device_sleeper;
	rc_unlock(ctx);
	return one;
}

/* So does a waiter without a poller: it needs the lock to sleep, and to go on. */
TG_TEST(waiter__sleeps_on_the_lock, 1)
{
	struct rref_future *f;
	struct rref *unset;
	pthread_t t;
	void *data;

	ctx = tg_join(rank);
	if (tg_mode() == RREF_PROGRESS_MANUAL) {
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
		take_the_lock();
		TG_CHECK(pthread_create(&t, NULL, wait_for_it, f) == 0);
		until_a_thread_sleeps_on_the_lock();
		rc_unlock(ctx);
		for (int64_t end = tg_deadline(); !a_waiter_sleeps_on_the_devices(); usleep(200))
			TG_CHECK(now_ns() < end);
		take_the_lock();
		rc_kick(ctx);
		until_a_thread_sleeps_on_the_lock();
		rc_unlock(ctx);
		TG_OK(rref_set(unset));
		pthread_join(t, NULL);
		rref_future_free(f);
		rref_release(unset);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(progress__makes_way),
		cmocka_unit_test(poller__wants_the_lock_at_last),
		cmocka_unit_test(waiter__sleeps_on_the_lock),
	};

	return cmocka_run_group_tests_name("lock_turns", tests, NULL, NULL);
}
