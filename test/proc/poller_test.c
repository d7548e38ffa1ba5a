/* SPDX-License-Identifier: Apache-2.0 */
/* The poller's thread: its sleeps, and its wake-ups. */
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/hook.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/engine.h"
#include "core/hands.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC
#define HOUR (3600 * NSEC_PER_SEC)

/*
 * Returns the number of this process' threads of that name. *sleeps: how often the last of them
 * has gone to sleep.
 */
static int threads_named(const char *name, long *sleeps)
{
	char path[300], line[100], wanted[100];
	DIR *d = opendir("/proc/self/task");
	int nr = 0;

	TG_CHECK(d);
	snprintf(wanted, sizeof(wanted), "Name:\t%s\n", name);
	for (struct dirent *e; (e = readdir(d));) {
		bool is_one = false;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		if (e->d_name[0] == '.' || !(f = fopen(path, "r")))
			continue;
		while (fgets(line, sizeof(line), f)) {
			is_one |= strcmp(line, wanted) == 0;
			if (is_one)
				sscanf(line, "voluntary_ctxt_switches: %ld", sleeps);
		}
		fclose(f);
		nr += is_one;
	}
	closedir(d);
	return nr;
}

/* Returns how often the poller's thread has gone to sleep, or -1 if there is no poller. */
static long poller_sleeps(void)
{
	long n = -1;

	threads_named("rref-poller", &n);
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

static _Atomic int entered, may_leave, left;

static void stay_out(struct rref_ctx *ctx, struct rc_hook *h)
{
	int64_t end = tg_deadline();

	(void)ctx, (void)h;
	atomic_fetch_add(&entered, 1);
	for (; !atomic_load(&may_leave); tg_pause())
		TG_CHECK(now_ns() < end);
	atomic_fetch_add(&left, 1);
}

static bool has_entered(struct rref_ctx *ctx, void *arg)
{
	(void)ctx, (void)arg;
	return atomic_load(&entered);
}

/* Returns whether another hand than *arg is the poller, and has gone to sleep. */
static bool another_sleeps(struct rref_ctx *ctx, void *arg)
{
	const struct rc_hands *h = ctx->turns.hands;
	char comm[32] = "";
	bool is;

	rc_lock(ctx);
	is = at_load(&h->poller) != arg && (ctx->sleep.arms & RC_ARM_POLLER) &&
	     ctx->sleep.wake_at > now_ns() + 100 * MS &&
	     !pthread_getname_np(at_load(&h->poller)->thread, comm, sizeof(comm)) &&
	     strcmp(comm, "rref-poller") == 0;
	rc_unlock(ctx);
	return is;
}

/* Returns whether all hands but the poller stand by. */
static bool others_stand_by(struct rref_ctx *ctx, void *arg)
{
	long sleeps;

	(void)arg;
	return atomic_load(&left) &&
	       threads_named("rref-standby", &sleeps) == (int)at_load(&ctx->turns.hands->nr) - 1;
}

/*
 * Wakes the poller for a hook while another thread has the lock. Another hand takes its place, and
 * goes to sleep. Returns whether that hand can still be woken when the first one is back.
 */
static bool replaced_while_armed(struct rref_ctx *ctx)
{
	struct rc_hook hook = { .run = stay_out };
	struct rc_hand *first;
	int64_t wake_at;
	bool armed;

	atomic_store(&entered, 0);
	atomic_store(&may_leave, 0);
	atomic_store(&left, 0);
	TG_CHECK(tg_eventually(poller_sleeps_now, ctx, NULL));
	rc_lock(ctx);
	first = at_load(&ctx->turns.hands->poller);
	ctx->sleep.wake_at = 0;
	rc_hook_push_any(ctx, &hook);
	TG_CHECK(tg_eventually(has_entered, ctx, NULL));
	rc_unlock(ctx);
	TG_CHECK(tg_eventually(another_sleeps, ctx, first));
	wake_at = ctx->sleep.wake_at;
	atomic_store(&may_leave, 1);
	TG_CHECK(tg_eventually(others_stand_by, ctx, NULL));
	TG_CHECK(tg_eventually(poller_sleeps_now, ctx, NULL));
	rc_lock(ctx);
	armed = ctx->sleep.wake_at == wake_at;
	rc_unlock(ctx);
	return armed;
}

/* A hand that comes back from a hook does not disarm the devices for the hand in its place. */
TG_TEST(hand__comes_back_while_another_sleeps, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	int armed = 0;

	for (int i = 0; tg_mode() == RREF_PROGRESS_AUTO && i < 5; i++)
		armed += replaced_while_armed(ctx); /* not if that hand woke by itself */
	TG_CHECK(tg_mode() != RREF_PROGRESS_AUTO || armed);
	tg_finish(ctx);
	return 0;
}

/* ---- threads that stand still ---- */

static _Thread_local int stands_at = -1;
static _Atomic int stands, may_go_on;

/* Replaces the system's. A thread that stands still does so just before it wakes another. */
ssize_t write(int fd, const void *bytes, size_t n)
{
	if (fd == stands_at)
		for (atomic_store(&stands, 1); !atomic_load(&may_go_on);)
			tg_pause();
	return syscall(SYS_write, fd, bytes, n);
}

struct waker {
	int fd;
	void (*wake)(void *arg);
	void *arg;
};

static void *wake_and_stand(void *arg)
{
	struct waker *w = arg;

	stands_at = w->fd;
	w->wake(w->arg);
	return NULL;
}

static bool is_standing(struct rref_ctx *ctx, void *arg)
{
	(void)ctx, (void)arg;
	return atomic_load(&stands);
}

/* Starts a thread that wakes another one, and stands still before it writes the descriptor. */
static pthread_t stop_waker(struct waker *w)
{
	pthread_t t;

	atomic_store(&stands, 0);
	atomic_store(&may_go_on, 0);
	TG_IS(pthread_create(&t, NULL, wake_and_stand, w), 0);
	TG_CHECK(tg_eventually(is_standing, NULL, NULL));
	return t;
}

static void let_waker_go(pthread_t t)
{
	atomic_store(&may_go_on, 1);
	TG_IS(pthread_join(t, NULL), 0);
}

static void kick(void *arg)
{
	rc_kick(arg);
}

/* Returns whether the poller has gone to sleep once more since *arg. */
static bool slept_again(struct rref_ctx *ctx, void *arg)
{
	bool is;

	rc_lock(ctx);
	is = ctx->sleep.wake_at != *(int64_t *)arg;
	rc_unlock(ctx);
	return is;
}

/* Returns whether a kick wakes the poller before its time, while another kick stands still. */
static bool kick_beside_another(struct rref_ctx *ctx)
{
	struct waker w = { ctx->sleep.kickfd, kick, ctx };
	int64_t wake_at;
	pthread_t t;
	bool woke;

	TG_CHECK(tg_eventually(poller_sleeps_now, ctx, NULL));
	t = stop_waker(&w);
	rc_lock(ctx);
	wake_at = ctx->sleep.wake_at;
	rc_unlock(ctx);
	rc_kick(ctx);
	TG_CHECK(tg_eventually(slept_again, ctx, &wake_at));
	woke = now_ns() < wake_at;
	let_waker_go(t);
	return woke;
}

TG_TEST(kick__that_stands_still_keeps_no_other_from_waking, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	int woke = 0;

	for (int i = 0; tg_mode() == RREF_PROGRESS_AUTO && i < 5; i++)
		woke += kick_beside_another(ctx); /* not if this thread was held up */
	TG_CHECK(tg_mode() != RREF_PROGRESS_AUTO || woke);
	tg_finish(ctx);
	return 0;
}

static bool wakes_a_poll(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 5000) == 1;
}

static void wake_loop(void *arg)
{
	rc_loop_wake(arg);
}

/* The event loop of a context is woken, though another thread is in the middle of doing so. */
TG_TEST(loop__is_woken_beside_a_thread_that_stands_still, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct waker w = { ctx->sleep.loop_wake_fd, wake_loop, ctx };

	for (int i = 0; i < 3; i++) {
		pthread_t t;

		while (rref_ctx_arm(ctx))
			TG_CHECK(rref_progress(ctx) >= 0);
		t = stop_waker(&w);
		rc_loop_wake(ctx);
		TG_CHECK(wakes_a_poll(rref_ctx_fd(ctx)));
		/* The late thread must not make the next sleep deaf. */
		while (rref_ctx_arm(ctx))
			TG_CHECK(rref_progress(ctx) >= 0);
		let_waker_go(t);
		rc_loop_wake(ctx);
		TG_CHECK(wakes_a_poll(rref_ctx_fd(ctx)));
	}
	tg_finish(ctx);
	return 0;
}

struct in_queue {
	struct rref_queue *q;
	struct rref_future *f;
};

static void add_to_queue(void *arg)
{
	struct in_queue *in = arg;

	TG_OK(rref_queue_add(in->q, in->f, NULL));
}

static void empty_and_arm(struct rref_queue *q)
{
	struct rref_future *got;

	do
		while (!rref_queue_next(q, 0, &got, NULL))
			;
	while (rref_queue_arm(q));
}

/* So is the event loop of a queue. */
TG_TEST(queue__is_told_beside_a_thread_that_stands_still, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct in_queue in[3];
	struct rref_queue *q;
	struct rref *ref;

	TG_OK(rref_new(ctx, "value", 5, &ref));
	TG_OK(rref_queue_new(ctx, &q));
	for (int i = 0; i < 3; i++) {
		in[i].q = q;
		TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &in[i].f));
		TG_OK(rref_future_wait(in[i].f, RREF_DEFAULT));
	}
	for (int i = 0; i < 3; i++) {
		struct waker w = { rref_queue_fd(q), add_to_queue, &in[0] };
		pthread_t t;

		empty_and_arm(q);
		t = stop_waker(&w);
		add_to_queue(&in[1]);
		TG_CHECK(wakes_a_poll(rref_queue_fd(q)));
		empty_and_arm(q);
		let_waker_go(t);
		add_to_queue(&in[2]);
		TG_CHECK(wakes_a_poll(rref_queue_fd(q)));
		empty_and_arm(q);
	}
	for (int i = 0; i < 3; i++)
		rref_future_free(in[i].f);
	rref_queue_free(q);
	rref_release(ref);
	tg_finish(ctx);
	return 0;
}

/* A thread stands still while it waits for the lock. The poller makes way, but not for good. */
TG_TEST(waiter_for_the_lock__that_stands_still_stops_no_poller, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (tg_mode() != RREF_PROGRESS_MANUAL) {
		if (rank == 1)
			at_add(&ctx->lock.wanted, 1);
		tg_meet(1);
		for (int i = 0; rank == 0 && i < 20; i++)
			TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, 10 * NSEC_PER_SEC, NULL));
		tg_meet(2);
		if (rank == 1)
			at_sub(&ctx->lock.wanted, 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(kick__that_stands_still_keeps_no_other_from_waking),
		cmocka_unit_test(loop__is_woken_beside_a_thread_that_stands_still),
		cmocka_unit_test(queue__is_told_beside_a_thread_that_stands_still),
		cmocka_unit_test(waiter_for_the_lock__that_stands_still_stops_no_poller),
		cmocka_unit_test(hand__comes_back_while_another_sleeps),
		cmocka_unit_test(kept_futures__wake_no_thread),
		cmocka_unit_test(long_wait__lets_the_poller_sleep),
		cmocka_unit_test(operation__begins_after_a_scan),
		cmocka_unit_test(progress__leaves_the_poller_armed),
	};

	return cmocka_run_group_tests_name("poller", tests, NULL, NULL);
}
