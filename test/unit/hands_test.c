/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watch over a poller that is out in a hook, and the timer that wakes the hand beside it. They
 * hang together: while the watch is on, the timer runs. Else a long hook would stop the engine.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/slow.h"
#include "core/base/hook.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/hands.h"

static struct rref_ctx *ctx;
static struct rc_hands *hands;
static struct rc_hand *poller, *beside;
static bool timer_runs;
static void (*meanwhile)(void); /* runs just before the timer is stopped */

/* Replaces the system's, which would need time to pass. */
int timerfd_settime(int fd, int flags, const struct itimerspec *at, struct itimerspec *old)
{
	void (*fn)(void) = meanwhile;
	bool runs = at->it_value.tv_sec || at->it_value.tv_nsec;

	(void)fd, (void)flags, (void)old;
	if (fn && !runs) {
		meanwhile = NULL;
		fn();
	}
	timer_runs = runs;
	return 0;
}

static int make_hands(void **state)
{
	(void)state;
	ctx = aligned_alloc(CACHE_LINE, sizeof(*ctx));
	hands = calloc(1, sizeof(*hands));
	assert_true(ctx && hands);
	memset(ctx, 0, sizeof(*ctx));
	list_init(&ctx->hooks.due);
	ctx->turns.hands = hands;
	at_store(&ctx->turns.has_poller, true);
	poller = &hands->hand[0];
	beside = &hands->hand[1];
	poller->ctx = beside->ctx = ctx;
	at_store(&hands->poller, poller);
	at_store(&hands->nr, 2);
	timer_runs = false;
	meanwhile = NULL;
	return 0;
}

static int free_hands(void **state)
{
	(void)state;
	free(hands);
	free(ctx);
	return 0;
}

static unsigned ran;

static void count_hook(struct rref_ctx *c, struct rc_hook *h)
{
	(void)c, (void)h;
	ran++;
}

/* Goes out into a short hook and comes back, while another thread has the lock. */
static void short_hook(void)
{
	static struct rc_hook hook = { .run = count_hook };
	unsigned before = ran;
	struct rc_hook *h;

	assert_true(at_load(&ctx->lock.word) != RC_UNLOCKED);
	rc_hook_push_any(ctx, &hook);
	h = rc_hand_go_out_alone(ctx, poller);
	assert_ptr_equal(h, &hook);
	assert_int_equal(rc_hand_run_hooks(ctx, poller, h), 1);
	assert_int_equal(ran, before + 1);
	assert_int_equal(at_load(&poller->where), HAND_IN);
}

/* Has the hand beside the poller look until nothing has come for a while. */
static void look_until_quiet(void)
{
	for (int i = 0; i < 100 && at_load(&hands->watched); i++)
		assert_false(rc_hand_look(ctx, beside));
	assert_false(at_load(&hands->watched));
	assert_false(timer_runs);
}

static void start_watch(void)
{
	rc_lock(ctx);
	short_hook();
	rc_unlock(ctx);
	assert_true(at_load(&hands->watched));
	assert_true(timer_runs);
}

static void watch__ends_with_the_timer(void **state)
{
	(void)state;
	start_watch();
	look_until_quiet();
	start_watch();
}

/* Has a whole hook come and go while the last look ends the watch. */
static void watch__ends_while_a_short_hook_runs(void **state)
{
	(void)state;
	start_watch();
	meanwhile = short_hook;
	for (int i = 0; i < 100 && meanwhile; i++)
		assert_false(rc_hand_look(ctx, beside));
	assert_null(meanwhile);
	assert_int_equal(at_load(&hands->watched), timer_runs);
	start_watch();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(watch__ends_while_a_short_hook_runs, make_hands,
						free_hands),
		cmocka_unit_test_setup_teardown(watch__ends_with_the_timer, make_hands,
						free_hands),
	};

	/* A thread plays two, so a hook seems to run under the lock. */
	rb_slow_alone();
	return cmocka_run_group_tests_name("hands", tests, NULL, NULL);
}
