/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks that are due and do not run yet: other hooks are
 * running, or another thread must run them. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/clock.h"
#include "core/base/lock.h"
#include "core/engine.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

static struct rref_ctx *ctx;
static _Atomic int entered, go, ran;

static void until_at_least(_Atomic int *what, int n)
{
	int64_t end = tg_deadline();

	while (atomic_load(what) < n) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
}

/* ---- a shutdown that they hold up ---- */

static void then_block(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	atomic_fetch_add(&entered, 1);
	until_at_least(&go, 1);
	atomic_fetch_add(&ran, 1);
}

/* Lets the hook go once the time of the graceful shutdown is over. */
static void *let_go(void *arg)
{
	(void)arg;
	while (at_load(&ctx->state) == RC_CTX_RUNNING)
		usleep(1000);
	atomic_store(&go, 1);
	return NULL;
}

/* No call is open. Callbacks hold it up, after the largest number of blocked callbacks. */
TG_TEST(shutdown__names_due_callbacks, 1)
{
	struct rref_future *f[18];
	struct rref *unset;
	pthread_t t;
	void *data;

	ctx = tg_join(rank);
	if (tg_mode() == RREF_PROGRESS_MANUAL) {
		tg_finish(ctx);
		return 0;
	}
	TG_OK(rref_alloc(ctx, 8, &unset, &data));
	for (size_t i = 0; i < array_size(f); i++) {
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f[i]));
		TG_OK(rref_future_then(f[i], then_block, NULL));
	}
	TG_OK(rref_set(unset));
	rref_release(unset);
	until_at_least(&entered, 15);
	TG_IS(pthread_create(&t, NULL, let_go, NULL), 0);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 300 * MS), -ETIMEDOUT);
	TG_TEXT("3 callbacks are due and wait for others to return");
	TG_IS(pthread_join(t, NULL), 0);
	TG_IS(atomic_load(&ran), (int)array_size(f));
	for (size_t i = 0; i < array_size(f); i++)
		rref_future_free(f[i]);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- hooks that are left to another thread ---- */

static void count(struct rref_ctx *c, struct rc_hook *h)
{
	(void)c, (void)h;
	atomic_fetch_add(&ran, 1);
}

/*
 * Manual mode. A waiter sleeps while it leaves hooks to another thread, for no longer than that
 * thread has time to come. Then the waiter runs the hooks itself.
 */
TG_TEST(waiter__sleeps_while_hooks_are_left_to_another, 1)
{
	struct rc_hook hook = { .run = count };
	struct rref_future *f;
	struct rref_view *v;
	struct rref *unset;
	int slept = 0;
	void *data;

	ctx = tg_join(rank);
	for (int i = 0; i < 10 && tg_mode() == RREF_PROGRESS_MANUAL; i++) {
		rc_lock(ctx);
		at_store(&ctx->hooks.progress_by, &hook); /* no thread of ours */
		at_store(&ctx->hooks.progress_at, rc_coarse_ns());
		rc_hook_push(ctx, &hook);
		if (rc_arm(ctx, RC_ARM_WAITER)) {
			slept++;
			TG_CHECK(rc_next_timer(ctx, now_ns()) <= 20 * MS);
		}
		rc_disarm(ctx, RC_ARM_WAITER);
		rc_unlock(ctx);
		TG_IS(atomic_load(&ran), i);
		TG_OK(rref_alloc(ctx, 8, &unset, &data));
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
		while (atomic_load(&ran) == i)
			TG_IS(rref_to_here(unset, 50 * MS, &v), -ETIMEDOUT);
		TG_IS(atomic_load(&ran), i + 1);
		rref_future_free(f);
		rref_release(unset);
	}
	if (tg_mode() == RREF_PROGRESS_MANUAL)
		TG_CHECK(slept > 5); /* not if this thread was held up for longer */
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shutdown__names_due_callbacks),
		cmocka_unit_test(waiter__sleeps_while_hooks_are_left_to_another),
	};

	return cmocka_run_group_tests_name("hooks_due", tests, NULL, NULL);
}
