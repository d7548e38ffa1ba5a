/* SPDX-License-Identifier: Apache-2.0 */
/* The poller's thread: its sleeps, and its wake-ups. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/engine.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC
#define HOUR (3600 * NSEC_PER_SEC)

/* Returns how often the poller's thread has gone to sleep, or -1 if there is no poller. */
static long poller_sleeps(void)
{
	char path[300], line[100];
	DIR *d = opendir("/proc/self/task");
	long n = -1, value;

	TG_CHECK(d);
	for (struct dirent *e; n < 0 && (e = readdir(d));) {
		bool is_poller = false;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		if (e->d_name[0] == '.' || !(f = fopen(path, "r")))
			continue;
		while (fgets(line, sizeof(line), f)) {
			is_poller |= strcmp(line, "Name:\trref-poller\n") == 0;
			if (is_poller && sscanf(line, "voluntary_ctxt_switches: %ld", &value) == 1)
				n = value;
		}
		fclose(f);
	}
	closedir(d);
	return n;
}

/* Complete futures that the program keeps do not make the poller look at deadlines again and again.
 * This holds during a burst and after it. */
TG_TEST(kept_futures__wake_no_thread, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *f[600];
		long before;

		for (size_t i = 0; i < array_size(f); i++)
			f[i] = tg_start(ctx, 1, "tg.echo", "x", 1);
		for (size_t i = 0; i < array_size(f); i++)
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		for (size_t i = 1; i < array_size(f); i++)
			rref_future_free(f[i]);
		usleep(200000);
		before = poller_sleeps();
		usleep(1000000);
		/* A wake-up each tick of 5 ms would make 200. Over
		 * ibv there are the probes, too. */
		if (before >= 0 && tg_mode() == RREF_PROGRESS_AUTO)
			TG_CHECK(poller_sleeps() - before < 50);
		rref_future_free(f[0]);
	}
	tg_finish(ctx);
	return 0;
}

/* An operation far from its time-out does not wake the poller at each tick. A nearer one that
 * begins meanwhile is seen. */
TG_TEST(long_wait__lets_the_poller_sleep, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *far, *near;

		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, HOUR, &far));
		tg_until_held(ctx, 1, 1);
		usleep(200000);
		if (poller_sleeps() >= 0 && tg_mode() == RREF_PROGRESS_AUTO) {
			int64_t begun = now_ns();
			long before = poller_sleeps();

			usleep(1000000);
			/* ticks are 5 ms apart */
			TG_CHECK((poller_sleeps() - before) * 8 * MS < now_ns() - begun);
		}
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 20 * MS, &near));
		while (!rref_future_test(near))
			poller_sleeps() < 0 ? rref_progress(ctx) : usleep(1000);
		TG_IS(rref_future_wait(near, RREF_DEFAULT), -ETIMEDOUT);
		TG_IS(rref_future_test(far), 0);
		tg_until_held(ctx, 1, 2);
		TG_IS(tg_release_held(ctx, 1), 2);
		TG_OK(rref_future_wait(far, RREF_DEFAULT));
		rref_future_free(far);
		rref_future_free(near);
	}
	tg_finish(ctx);
	return 0;
}

static bool only_one_in_flight(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	rref_progress(ctx);
	return tg_stats(ctx).ops_in_flight == 1;
}

/* An operation that begins after a scan of the slab counts as under way, in any slot. Else its
 * time-out would come late. */
TG_TEST(operation__begins_after_a_scan, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (int i = 0; rank == 0 && i < tg_scale(100); i++) {
		struct rref_future *old, *f;
		bool idle, pending;

		TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_FOREVER, &old));
		TG_OK(rref_future_wait(old, RREF_DEFAULT));
		TG_CHECK(tg_eventually(only_one_in_flight, ctx, NULL));
		rc_lock(ctx);
		for (int k = 0; k < 3; k++)
			/* two more: the first sight does not count */
			rc_ops_expire(ctx, now_ns() + k * 100 * MS);
		idle = rc_ops_due(ctx) == INT64_MAX;
		rc_unlock(ctx);
		TG_CHECK(idle); /* complete, and kept */
		if (i % 2)
			rref_future_free(old);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, HOUR, &f));
		rc_lock(ctx);
		/* the poller may have scanned it already */
		pending = rc_ops_due(ctx) != INT64_MAX;
		rc_unlock(ctx);
		TG_CHECK(pending);
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		if (i % 2 == 0)
			rref_future_free(old);
	}
	tg_finish(ctx);
	return 0;
}

static bool poller_sleeps_now(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	rc_lock(ctx);
	bool is = (ctx->sleep.arms & RC_ARM_POLLER) && at_load(&ctx->sleep.sleeping);

	rc_unlock(ctx);
	return is;
}

/* A program's thread that makes progress once, and goes, does not take the poller's place. A
 * message must still wake the poller. */
TG_TEST(progress__leaves_the_poller_armed, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int armed = 0;

	for (int i = 0; rank == 0 && tg_mode() == RREF_PROGRESS_AUTO && i < 20; i++) {
		TG_CHECK(tg_eventually(poller_sleeps_now, ctx, NULL));
		TG_CHECK(rref_progress(ctx) >= 0);
		armed += poller_sleeps_now(ctx, NULL); /* the poller may have woken by itself */
		usleep(1000);
	}
	TG_CHECK(rank || tg_mode() != RREF_PROGRESS_AUTO || armed >= 10);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kept_futures__wake_no_thread),
		cmocka_unit_test(long_wait__lets_the_poller_sleep),
		cmocka_unit_test(operation__begins_after_a_scan),
		cmocka_unit_test(progress__leaves_the_poller_armed),
	};

	return cmocka_run_group_tests_name("poller", tests, NULL, NULL);
}
