/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that die, stop or fork. The others go on, lose nothing of
 * their own, and do not wait for ever. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_death.h"

#define MS NSEC_PER_MSEC
#define LONG_NS (20 * NSEC_PER_SEC)

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

/* ---- the user dies ---- */

/* The sharer dies after its child was confirmed: the child lives. */
DEATH_TEST(user_killed__shared_references_live, 3, 1 << 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int one = 1;

	if (rank == 1) {
		/* Owner 0, parent 1, child 2. */
		struct rref *r = tg_remote(ctx, 0, "tg.echo", "alive", 5);

		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		tg_set_flag(0, 1);
		tg_die();
	}
	tg_wait_flag_serving(ctx, 0, 1);
	if (rank == 2)
		for (int i = 0; i < 100; i++)
			tg_expect_bytes(tg_kept(0), "alive", 5);
	if (rank == 0) {
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats(ctx).forks != 1; usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
	}
	tg_wait_flag_serving(ctx, 0, 1);
	atomic_fetch_add(&tg_current->shared->flag[1], 1);
	tg_wait_flag_serving(ctx, 1, 2);
	if (rank == 2) {
		tg_expect_bytes(tg_kept(0), "alive", 5);
		tg_drop_kept();
		tg_until_clean(ctx, 2);
	} else {
		tg_until_clean(ctx, 0);
	}
	tg_leave(ctx);
	return 0;
}

DEATH_TEST(caller_killed__in_the_middle_of_a_call, 2, 1 << 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int one = 1;

	if (rank == 1) {
		struct rref *mine, *made = tg_remote(ctx, 0, "tg.hold", "x", 1);
		struct rref_future *f;

		(void)made;
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_rpc_async(ctx, 0, "tg.hold", tg_with(&mine, 1), RREF_DEFAULT, &f));
		tg_until_held(ctx, 0, 2);
		tg_die();
	}
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
	/* The answer comes after the caller has gone: nothing is sent, and nothing remains of the
	 * creation or the call. */
	TG_IS(tg_release_held(ctx, 0), 2);
	tg_until_clean(ctx, 0);
	tg_leave(ctx);
	return 0;
}

/* ---- the owner dies ---- */

/* Rank 0 counts the others at the barrier. */
DEATH_TEST(rank_0_killed__the_others_leave_all_the_same, 3, 1 << 0)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		tg_wait_flag_serving(ctx, 0, 2);
		tg_die();
	}
	struct rref *r = tg_remote(ctx, 0, "tg.echo", "x", 1),
		    *other = tg_remote(ctx, 3 - rank, "tg.echo", "y", 1);

	tg_expect_bytes(r, "x", 1);
	tg_expect_bytes(other, "y", 1);
	atomic_fetch_add(&tg_current->shared->flag[0], 1);
	tg_leave(ctx);
	return 0;
}

DEATH_TEST(killed__while_the_others_are_leaving, 4, 1 << 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *r = tg_remote(ctx, (rank + 1) % 4, "tg.echo", "x", 1);

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	if (rank == 2) {
		/* The others wait only for this worker, in the manual
		 * mode too, so it serves a while. */
		for (int i = 0; i < 50; i++) {
			rref_progress(ctx);
			tg_pause();
		}
		tg_die();
	}
	tg_leave(ctx);
	return 0;
}

/* The worker never spoke to another one. */
DEATH_TEST(killed__a_stranger, 3, 1 << 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 2)
		tg_die();
	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "x", 1);

		tg_expect_bytes(r, "x", 1);
		for (int i = 0; i < 3; i++)
			TG_IS(rref_rpc_sync(ctx, 2, "tg.echo", NULL, 5 * NSEC_PER_SEC, NULL),
			      -EOWNERDEAD);
		rref_release(r);
	}
	tg_leave(ctx);
	return 0;
}

/* Two workers die at once, one of them in the middle of sharing. */
DEATH_TEST(killed__two_of_five_under_load, 5, 1 << 3 | 1 << 4)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int64_t end = now_ns() + 300 * MS;
	int lost = 0;

	for (int i = 0; now_ns() < end || i < 50; i++) {
		int owner = (rank + i) % 5, to = (rank + i / 5) % 5;
		struct rref_view *v;
		struct rref *r;
		int err = rref_remote(ctx, owner, "tg.echo",
				      &(struct rref_args){ .data = "z", .length = 1 }, TG_LONG_NS,
				      &r);

		if (rank >= 3 && now_ns() > end - 150 * MS)
			tg_die();
		if (err) {
			TG_IS(err, -EOWNERDEAD);
			TG_CHECK(owner >= 3);
			continue;
		}
		err = rref_rpc_sync(ctx, to, "tg.read", tg_with(&r, 1), TG_LONG_NS, NULL);
		if (err) {
			/* Only values that depend on the dead may fail. */
			TG_IS(err, -EOWNERDEAD);
			TG_CHECK(owner >= 3 || to >= 3);
			lost++;
		}
		err = rref_to_here(r, TG_LONG_NS, &v);
		if (err)
			TG_CHECK(err == -EOWNERDEAD && owner >= 3);
		else
			rref_view_free(v);
		rref_release(r);
	}
	TG_CHECK(lost >= 0);
	for (int dead = 3; dead < 5; dead++)
		TG_CHECK(rref_rpc_sync(ctx, dead, "tg.nothing", NULL, TG_LONG_NS, NULL) ==
			 -EOWNERDEAD);
	/* The survivors wait for each other, serving, and then for the
	 * release of the dead worker's references. */
	atomic_fetch_add(&tg_current->shared->flag[2], 1);
	tg_wait_flag_serving(ctx, 2, 3);
	tg_until_clean(ctx, rank);
	tg_leave(ctx);
	return 0;
}

/* ---- stopped, not dead ---- */

TG_TEST(user_stopped__keeps_its_references, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r, *back;
		struct rref_future *f;

		TG_OK(rref_new(ctx, "kept", 4, &r));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_stop_worker(1);
		for (int i = 0; i < 300; i++) {
			rref_progress(ctx);
			usleep(5000);
		}
		TG_IS(tg_stats(ctx).forks, 1);
		tg_continue_worker(1);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.get", NULL, TG_LONG_NS, &f));
		TG_OK(rref_future_ref(f, 0, &back));
		rref_future_free(f);
		tg_expect_bytes(back, "kept", 4);
		rref_release(back);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- fork(2) ---- */

/* Tries each function that would touch the parent's things, and expects a
 * refusal. Releases and frees do nothing. */
static void try_everything(struct rref_ctx *ctx, struct rref *mine, struct rref *theirs,
			   struct rref_future *pending)
{
	struct rref_stats s = { .size = sizeof(s) };
	struct rref_view *v, *views[1];
	struct rref_future *f;
	struct rref *r;
	char byte, text[RREF_TEXT_SIZE];
	int status[1];
	size_t got;
	void *data;

	TG_IS(rref_new(ctx, "x", 1, &r), -ECHILD);
	TG_TEXT("fork");
	TG_IS(rref_alloc(ctx, 1, &r, &data), -ECHILD);
	TG_IS(rref_set(mine), -ECHILD);
	TG_IS(rref_set_error(mine, -EIO, NULL), -ECHILD);
	TG_IS(rref_to_here(mine, RREF_DEFAULT, &v), -ECHILD);
	TG_IS(rref_to_here(theirs, RREF_DEFAULT, &v), -ECHILD);
	TG_IS(rref_to_here_async(theirs, RREF_DEFAULT, &f), -ECHILD);
	TG_IS(rref_to_here_into(theirs, &byte, 0, 1, RREF_DEFAULT, &got), -ECHILD);
	TG_IS(rref_to_here_batch(&theirs, 1, RREF_DEFAULT, views, status), -ECHILD);
	TG_IS(rref_local_value(mine, RREF_DEFAULT, &v), -ECHILD);
	TG_IS(rref_rpc_sync(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, NULL), -ECHILD);
	TG_IS(rref_rpc_async(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, &f), -ECHILD);
	TG_IS(rref_remote(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, &r), -ECHILD);
	TG_IS(rref_creation(theirs, &f), -ECHILD);
	TG_IS(rref_register(ctx,
			    &(struct rref_function){ .name = "child",
						     .handler = tg_functions[0].handler }),
	      -ECHILD);
	TG_IS(rref_set_timeout(ctx, 1), -ECHILD);
	TG_IS(rref_progress(ctx), -ECHILD);
	TG_IS(rref_ctx_arm(ctx), -ECHILD);
	TG_IS(rref_get_stats(ctx, &s), -ECHILD);
	TG_IS(rref_dump(ctx, text, sizeof(text)), -ECHILD);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT), -ECHILD);
	TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT), -ECHILD);
	TG_IS(rref_future_wait(pending, 50 * MS), -ECHILD);
	TG_IS(rref_wait_all(&pending, 1, 50 * MS), -ECHILD);
	TG_IS(rref_wait_any(&pending, 1, 50 * MS), -ECHILD);
	TG_IS(rref_future_cancel(pending), -ECHILD);
	TG_IS(rref_owner(theirs), 1);
	rref_future_free(pending);
	rref_release(mine);
	rref_release(theirs);
	rref_free_ctx(ctx);
}

static _Atomic int stop;

static void *keep_busy(void *arg)
{
	while (!atomic_load(&stop))
		TG_OK(rref_rpc_sync(arg, 1, "tg.echo", NULL, RREF_DEFAULT, NULL));
	return NULL;
}

TG_TEST(fork__child_is_refused_and_parent_goes_on, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *mine, *theirs = tg_remote(ctx, 1, "tg.echo", "theirs", 6);
		struct rref_future *pending;
		pthread_t t;

		tg_expect_bytes(theirs, "theirs", 6);
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_DEFAULT, &pending));
		tg_until_held(ctx, 1, 1);
		/* this thread takes locks at odd moments */
		TG_IS(pthread_create(&t, NULL, keep_busy, ctx), 0);
		for (int i = 0; i < 5; i++) {
			int status, waited = 0;
			pid_t pid = fork();

			if (pid == 0) {
				alarm(20);
				try_everything(ctx, mine, theirs, pending);
				_exit(0);
			}
			TG_CHECK(pid > 0);
			for (int64_t end = now_ns() + TG_LONG_NS; !waited && now_ns() < end;
			     usleep(500))
				waited = waitpid(pid, &status, WNOHANG) == pid;
			if (!waited)
				kill(pid, SIGKILL);
			TG_CHECK(waited);
			TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
			tg_expect_bytes(theirs, "theirs", 6);
			tg_expect_bytes(mine, "mine", 4);
		}
		atomic_store(&stop, 1);
		pthread_join(t, NULL);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(pending, RREF_DEFAULT));
		rref_future_free(pending);
		rref_release(mine);
		rref_release(theirs);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* The child's end closes its copies of descriptors and mappings. The parent's peers must not take
 * it for the parent's end. */
TG_TEST(fork__child_lives_on_and_ends, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "x", 1);
		int status;
		pid_t pid;

		tg_expect_bytes(r, "x", 1);
		pid = fork();
		if (pid == 0) {
			usleep(50000);
			_exit(7);
		}
		for (int i = 0; i < tg_scale(200); i++) {
			TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, NULL));
			tg_expect_bytes(r, "x", 1);
		}
		TG_IS(waitpid(pid, &status, 0), pid);
		TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, NULL));
		tg_expect_bytes(r, "x", 1);
		rref_release(r);
		tg_until_clean(ctx, 1);
		TG_IS(tg_stats(ctx).dead_peers, 0);
	}
	tg_finish(ctx);
	return 0;
}

static void *look_often(void *ctx)
{
	while (!atomic_load(&stop))
		tg_stats(ctx);
	return NULL;
}

/* The single things of the process may be taken at that moment.
 * The child's own context needs them. */
TG_TEST(fork__child_makes_a_context_of_its_own, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	pthread_t t[2];

	for (int i = 0; i < 2; i++)
		TG_IS(pthread_create(&t[i], NULL, look_often, ctx), 0);
	for (int i = 0; i < 40; i++) {
		int status;
		pid_t pid = fork();

		if (pid == 0) {
			struct rref_ctx *own;
			struct rref_options o;

			alarm(10);
			tg_options(&o, 0);
			/* no thread: the thread sanitizer forbids one after such a fork */
			o.mode = RREF_PROGRESS_MANUAL;
			TG_OK(rref_init(&o, &own));
			TG_IS(tg_stats(own).reads, 0);
			tg_finish(own);
			_exit(0);
		}
		TG_CHECK(pid > 0);
		TG_IS(waitpid(pid, &status, 0), pid);
		TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	atomic_store(&stop, 1);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(user_killed__shared_references_live),
		cmocka_unit_test(caller_killed__in_the_middle_of_a_call),
		cmocka_unit_test(rank_0_killed__the_others_leave_all_the_same),
		cmocka_unit_test(killed__while_the_others_are_leaving),
		cmocka_unit_test(killed__a_stranger),
		cmocka_unit_test(killed__two_of_five_under_load),
		cmocka_unit_test(user_stopped__keeps_its_references),
		cmocka_unit_test(fork__child_is_refused_and_parent_goes_on),
		cmocka_unit_test(fork__child_lives_on_and_ends),
		cmocka_unit_test(fork__child_makes_a_context_of_its_own),
	};

	return cmocka_run_group_tests_name("death", tests, NULL, NULL);
}
