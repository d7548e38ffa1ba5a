/* SPDX-License-Identifier: Apache-2.0 */
/* A worker goes down. The others' programs learn of it once, with
 * the reason, and their event loops wake. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/session/session.h"
#include "tg_death.h"
#include "tg_refs.h"

/* The news of this worker's callback. */
static struct heard {
	_Atomic int total, of[TG_MAX], err[TG_MAX];
	_Atomic bool alive, no_text, failed;
	int calls;              /* rank that the callback calls, or -1 */
	_Atomic bool hold;      /* the callback waits until it is cleared */
} heard;

static void on_down(void *arg, struct rref_ctx *ctx, const struct rref_peer_down *down)
{
	struct rref_worker_info w = { .size = sizeof(w) };
	struct heard *h = arg;
	char text[4096];

	if (down->size < sizeof(*down) || rref_worker(ctx, down->rank, &w) || w.alive)
		atomic_store(&h->alive, true);
	if (!down->text || !*down->text)
		atomic_store(&h->no_text, true);
	/* Makes the calls that a callback may make; with the lock held
	 * the first of these would stand still. */
	if (tg_stats(ctx).sessions == 0 && down->err != -EOWNERDEAD)
		atomic_store(&h->failed, true);
	if (rref_dump(ctx, text, sizeof(text)) <= 0)
		atomic_store(&h->failed, true);
	if (rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0) != -EDEADLK)
		atomic_store(&h->failed, true);
	if (h->calls >= 0 && rref_rpc_sync(ctx, h->calls, "tg.nothing", NULL, RREF_DEFAULT, NULL))
		atomic_store(&h->failed, true);
	while (atomic_load(&h->hold) && now_ns() < tg_deadline())
		tg_pause();
	atomic_store(&h->err[down->rank], down->err);
	atomic_fetch_add(&h->of[down->rank], 1);
	atomic_fetch_add(&h->total, 1);
}

static struct rref_ctx *join_named(int rank, int calls, const char *name)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	heard = (struct heard){ .calls = calls };
	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.peer_down = on_down;
	o.peer_down_arg = &heard;
	o.name = name;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

static struct rref_ctx *join_and_hear(int rank, int calls)
{
	return join_named(rank, calls, NULL);
}

static void heard_well(void)
{
	TG_CHECK(!atomic_load(&heard.alive) && !atomic_load(&heard.no_text) &&
		 !atomic_load(&heard.failed));
}

static bool heard_of(struct rref_ctx *ctx, void *rank)
{
	(void)ctx;
	return atomic_load(&heard.of[*(int *)rank]) > 0;
}

static void call(struct rref_ctx *ctx, int rank)
{
	TG_OK(rref_rpc_sync(ctx, rank, "tg.nothing", NULL, RREF_DEFAULT, NULL));
}

/* Checks that a stored error's text names the dead worker. name: of rank 1, or NULL for worker1. */
static int names_the_dead(int rank, const char *name)
{
	struct rref_ctx *ctx = join_named(rank, -1, rank == 1 ? name : NULL);
	char who[32];
	struct rref_future *call, *read;
	struct rref_error e = { .size = sizeof(e) };
	struct rref_view *view;
	struct rref *ref;

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	snprintf(who, sizeof(who), "%s (rank 1): ", name ? name : "worker1");
	TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &call));
	ref = tg_remote(ctx, 1, "tg.hold", "x", 1);
	TG_OK(rref_to_here_async(ref, RREF_FOREVER, &read));
	tg_until_held(ctx, 1, 2);
	tg_set_flag(0, 1);
	TG_IS(rref_future_wait(call, RREF_FOREVER), -EOWNERDEAD);
	TG_OK(rref_future_error(call, &e));
	TG_CHECK(strstr(e.text, who) == e.text);
	TG_IS(rref_future_wait(read, RREF_FOREVER), -EOWNERDEAD);
	TG_OK(rref_future_error(read, &e));
	TG_CHECK(strstr(e.text, who) != NULL);
	TG_IS(rref_to_here(ref, RREF_DEFAULT, &view), -EOWNERDEAD);
	TG_TEXT(who);
	rref_future_free(call);
	rref_future_free(read);
	rref_release(ref);
	tg_leave(ctx);
	return 0;
}

DEATH_TEST(down__errors_name_the_dead_worker, 2, 1 << 1)
{
	return names_the_dead(rank, NULL);
}

/* The text of its end contains its name by chance, but does not name it. */
DEATH_TEST(down__a_name_that_is_a_word, 2, 1 << 1)
{
	return names_the_dead(rank, "lost");
}

DEATH_TEST(down__a_death_is_told_once, 3, 1 << 1)
{
	struct rref_ctx *ctx = join_and_hear(rank, rank == 1 ? -1 : 2 - rank);
	int one = 1;

	call(ctx, (rank + 1) % 3);
	tg_meet_serving(ctx, 0);
	if (rank == 1)
		tg_die();
	TG_CHECK(tg_eventually(heard_of, ctx, &one));
	TG_IS(atomic_load(&heard.err[1]), -EOWNERDEAD);
	/* Attempts that fail later are no further deaths. */
	for (int i = 0; i < 5; i++) {
		TG_IS(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
		TG_TEXT("worker1 (rank 1)");
		tg_pause();
	}
	atomic_fetch_add(&tg_current->shared->flag[1], 1);
	tg_wait_flag_serving(ctx, 1, 2);
	tg_leave(ctx);
	TG_IS(atomic_load(&heard.total), 1);
	heard_well();
	return 0;
}

/* No worker ever spoke to it: the first attempt finds its death. */
DEATH_TEST(down__a_worker_without_a_session, 2, 1 << 1)
{
	struct rref_ctx *ctx = join_and_hear(rank, -1);
	int one = 1;

	if (rank == 1)
		tg_die();
	while (rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL) != -EOWNERDEAD)
		TG_CHECK(now_ns() < tg_deadline());
	TG_CHECK(tg_eventually(heard_of, ctx, &one));
	TG_IS(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
	tg_leave(ctx);
	TG_IS(atomic_load(&heard.total), 1);
	TG_IS(atomic_load(&heard.err[1]), -EOWNERDEAD);
	heard_well();
	return 0;
}

/* A worker whose time runs out says goodbye. A worker that returns from main without a word has
 * died, for all others. */
TG_TEST(down__an_early_leaver_is_told_apart, 3)
{
	struct rref_ctx *ctx = join_and_hear(rank, -1);
	int one = 1, two = 2;

	if (rank != 0)
		call(ctx, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, NSEC_PER_MSEC), -ETIMEDOUT);
		rref_free_ctx(ctx);
		return 0;
	}
	if (rank == 2)
		return 0;
	TG_CHECK(tg_eventually(heard_of, ctx, &one));
	TG_CHECK(tg_eventually(heard_of, ctx, &two));
	TG_IS(atomic_load(&heard.err[1]), 0);
	TG_IS(atomic_load(&heard.err[2]), -EOWNERDEAD);
	TG_IS(atomic_load(&heard.total), 2);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0), 0);
	rref_free_ctx(ctx);
	TG_IS(atomic_load(&heard.total), 2);
	heard_well();
	return 0;
}

/* Tells of a device that was lost, and of the end of a connection over it, in one look. */
static void lose_device(struct rref_ctx *ctx, int rank)
{
	struct rc_peer *p = &ctx->peers[rank];
	struct rc_device *d = NULL;

	rc_lock(ctx);
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev && ctx->device[k].dev == p->dev)
			d = &ctx->device[k];
	TG_CHECK(d && p->link);
	rc_peer_event(ctx, d,
		      &(struct rv_event){ .type = RV_EV_DEVICE, .status = -ENODEV, .user = NULL });
	rc_peer_event(ctx, d,
		      &(struct rv_event){ .type = RV_EV_DISCONNECTED,
					  .status = -ENODEV,
					  .wc_status = -1,
					  .conn = p->link,
					  .user = p });
	rc_unlock(ctx);
}

TG_TEST(down__a_lost_device_is_the_cause, 2)
{
	struct rref_ctx *ctx = join_and_hear(rank, -1);

	if (rank == 0) {
		struct rref_future *held;

		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &held));
		tg_until_held(ctx, 1, 1);
		lose_device(ctx, 1);
		TG_IS(rref_future_wait(held, RREF_FOREVER), -ENODEV);
		rref_future_free(held);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	tg_drop_held();
	rref_free_ctx(ctx);
	return 0;
}

TG_TEST(down__a_group_that_leaves_together_hears_nothing, 3)
{
	struct rref_ctx *ctx = join_and_hear(rank, -1);

	call(ctx, (rank + 1) % 3);
	tg_finish(ctx);
	TG_IS(atomic_load(&heard.total), 0);
	return 0;
}

/* More deaths come while the program still handles the first one. */
DEATH_TEST(down__a_slow_program_hears_of_all, 4, 1 << 1 | 1 << 2 | 1 << 3)
{
	struct rref_ctx *ctx = join_and_hear(rank, -1);
	int dead[] = { 1, 2, 3 };

	if (rank != 0)
		call(ctx, 0);
	atomic_store(&heard.hold, rank == 0);
	tg_meet_serving(ctx, 0);
	if (rank != 0)
		tg_die();
	/* The callback holds up this very thread in the manual mode. So the deaths of the others
	 * are found after it. */
	if (tg_mode() == RREF_PROGRESS_MANUAL)
		atomic_store(&heard.hold, false);
	for (int i = 0; i < 3; i++)
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &dead[i]));
	atomic_store(&heard.hold, false);
	for (int i = 0; i < 3; i++) {
		TG_CHECK(tg_eventually(heard_of, ctx, &dead[i]));
		TG_IS(atomic_load(&heard.of[dead[i]]), 1);
		TG_IS(atomic_load(&heard.err[dead[i]]), -EOWNERDEAD);
	}
	tg_leave(ctx);
	TG_IS(atomic_load(&heard.total), 3);
	heard_well();
	return 0;
}

/* Sleeps as an event loop does: on the descriptor alone, with no function for deaths. Returns false
 * if nothing came in time. */
static bool loop_once(struct rref_ctx *ctx)
{
	struct pollfd p = { .fd = rref_ctx_fd(ctx), .events = POLLIN };
	int64_t left = tg_deadline() - now_ns();

	if (rref_ctx_arm(ctx) == 0 && poll(&p, 1, (int)(max_of(left, 0) / NSEC_PER_MSEC)) == 0)
		return false;
	TG_OK(rref_progress(ctx));
	return true;
}

DEATH_TEST(down__an_event_loop_wakes, 2, 1 << 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct pollfd p = { .fd = rref_ctx_fd(ctx), .events = POLLIN };
	int one = 1;

	if (rank == 0)
		call(ctx, 1);
	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		usleep(50000); /* most likely the other one sleeps by then */
		tg_die();
	}
	while (!tg_is_dead(ctx, &one))
		TG_CHECK(loop_once(ctx));
	/* Another thread found the death. The loop still learns of it, but once. */
	while (rref_ctx_arm(ctx) || poll(&p, 1, 0)) {
		TG_CHECK(now_ns() < tg_deadline());
		TG_OK(rref_progress(ctx));
	}
	tg_leave(ctx);
	return 0;
}

/* The poller finds the death and sleeps again, long before the loop looks at its descriptor. */
DEATH_TEST(down__an_event_loop_that_looks_late, 2, 1 << 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct pollfd p = { .fd = rref_ctx_fd(ctx), .events = POLLIN };
	int one = 1;

	if (rank == 0)
		call(ctx, 1);
	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		tg_wait_flag_serving(ctx, 1, 1);
		tg_die();
	}
	while (rref_ctx_arm(ctx))
		TG_OK(rref_progress(ctx));
	tg_set_flag(1, 1);
	/* The loop itself finds the death in the manual mode. */
	while (tg_mode() == RREF_PROGRESS_MANUAL ? !poll(&p, 1, 0) : !tg_is_dead(ctx, &one)) {
		TG_CHECK(now_ns() < tg_deadline());
		tg_pause();
	}
	TG_IS(poll(&p, 1, (int)((tg_deadline() - now_ns()) / NSEC_PER_MSEC)), 1);
	while (!tg_is_dead(ctx, &one))
		TG_CHECK(loop_once(ctx));
	tg_leave(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(down__a_death_is_told_once),
		cmocka_unit_test(down__a_lost_device_is_the_cause),
		cmocka_unit_test(down__a_name_that_is_a_word),
		cmocka_unit_test(down__a_group_that_leaves_together_hears_nothing),
		cmocka_unit_test(down__a_slow_program_hears_of_all),
		cmocka_unit_test(down__a_worker_without_a_session),
		cmocka_unit_test(down__an_event_loop_that_looks_late),
		cmocka_unit_test(down__an_event_loop_wakes),
		cmocka_unit_test(down__an_early_leaver_is_told_apart),
		cmocka_unit_test(down__errors_name_the_dead_worker),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
