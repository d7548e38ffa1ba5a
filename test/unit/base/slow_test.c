/* SPDX-License-Identifier: Apache-2.0 */
/* Slow work counts where the thread holds a progress lock, once in each hold. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/slow.h"
#include "base/thread.h"
#include "core/base/lock.h"
#include "core/ctx.h"

static struct rref_ctx *ctx_for_lock(void)
{
	struct rref_ctx *ctx = aligned_alloc(CACHE_LINE, sizeof(*ctx));

	assert_non_null(ctx);
	memset(ctx, 0, sizeof(*ctx));
	return ctx;
}

static void slow_work__counts_under_the_lock_alone(void **state)
{
	struct rref_ctx *ctx = ctx_for_lock();
	uint64_t before = rb_slow_holds(RB_SLOW_HOOK);

	(void)state;
	rb_slow(RB_SLOW_HOOK);
	assert_int_equal(rb_slow_holds(RB_SLOW_HOOK), before);
	rc_lock(ctx);
	rb_slow(RB_SLOW_HOOK);
	rc_unlock(ctx);
	assert_int_equal(rb_slow_holds(RB_SLOW_HOOK), before + 1);
	rb_slow(RB_SLOW_HOOK);
	assert_int_equal(rb_slow_holds(RB_SLOW_HOOK), before + 1);
	free(ctx);
}

static void one_hold__counts_once_for_each_kind(void **state)
{
	struct rref_ctx *ctx = ctx_for_lock();
	uint64_t hooks = rb_slow_holds(RB_SLOW_HOOK), waits = rb_slow_holds(RB_SLOW_WAIT);

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_true(rc_trylock(ctx));
		rb_slow(RB_SLOW_HOOK);
		rb_slow(RB_SLOW_WAIT);
		rb_slow(RB_SLOW_HOOK);
		rc_unlock_bare(ctx);
	}
	rc_lock(ctx);
	rc_unlock(ctx);
	assert_int_equal(rb_slow_holds(RB_SLOW_HOOK), hooks + 3);
	assert_int_equal(rb_slow_holds(RB_SLOW_WAIT), waits + 3);
	free(ctx);
}

static void two_locks__are_one_hold(void **state)
{
	struct rref_ctx *a = ctx_for_lock(), *b = ctx_for_lock();
	uint64_t before = rb_slow_holds(RB_SLOW_TRACE);

	(void)state;
	rc_lock(a);
	rc_lock(b);
	rb_slow(RB_SLOW_TRACE);
	rc_unlock(a);
	assert_int_equal(rb_slow_holds(RB_SLOW_TRACE), before);
	rc_unlock(b);
	assert_int_equal(rb_slow_holds(RB_SLOW_TRACE), before + 1);
	free(a);
	free(b);
}

static void few_bytes__are_not_slow(void **state)
{
	struct rref_ctx *ctx = ctx_for_lock();
	uint64_t before = rb_slow_holds(RB_SLOW_COPY);

	(void)state;
	rc_lock(ctx);
	rb_slow_bytes(RB_SLOW_COPY, RB_SLOW_BYTES);
	rc_unlock(ctx);
	assert_int_equal(rb_slow_holds(RB_SLOW_COPY), before);
	rc_lock(ctx);
	rb_slow_bytes(RB_SLOW_COPY, RB_SLOW_BYTES + 1);
	rc_unlock(ctx);
	assert_int_equal(rb_slow_holds(RB_SLOW_COPY), before + 1);
	free(ctx);
}

static void *end_at_once(void *arg)
{
	return arg;
}

static void a_thread_start__is_marked(void **state)
{
	struct rref_ctx *ctx = ctx_for_lock();
	uint64_t before = rb_slow_holds(RB_SLOW_THREAD);
	pthread_t t[2];

	(void)state;
	assert_int_equal(rb_thread_start(&t[0], end_at_once, NULL), 0);
	assert_int_equal(rb_slow_holds(RB_SLOW_THREAD), before);
	rc_lock(ctx);
	assert_int_equal(rb_thread_start(&t[1], end_at_once, NULL), 0);
	rc_unlock(ctx);
	assert_int_equal(rb_slow_holds(RB_SLOW_THREAD), before + 1);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	free(ctx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(slow_work__counts_under_the_lock_alone),
		cmocka_unit_test(one_hold__counts_once_for_each_kind),
		cmocka_unit_test(two_locks__are_one_hold),
		cmocka_unit_test(few_bytes__are_not_slow),
		cmocka_unit_test(a_thread_start__is_marked),
	};

	/* Planted work is no fault of the run, unless test/tools/runner.sh wants to see the run
	 * fail. */
	if (!getenv("RREF_TEST_PLANT"))
		rb_slow_alone();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
