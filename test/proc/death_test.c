/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that die, stop or fork. The others go on, lose nothing of their own, and wait for nobody for ever. */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg.h"

#define MS NSEC_PER_MSEC
#define LONG_NS (20 * NSEC_PER_SEC)

/* As TG_TEST, for a run in which these ranks (bits) end by SIGKILL. */
#define DEATH_TEST(name, world_, victims) \
	static int name##_worker(int rank, void *arg); \
	static void name(void **state) \
	{ \
		struct tg_group g = { .world = world_ }; \
		(void)state; \
		for (int i = 0; i < (world_); i++) \
			g.expect_killed[i] = (victims) >> i & 1; \
		assert_int_equal(tg_run_group(&g, name##_worker, NULL), 0); \
	} \
	static int name##_worker(__attribute__((unused)) int rank, __attribute__((unused)) void *arg)

static struct rref *remote(struct rref_ctx *ctx, int to, const char *function, const void *data, size_t length)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function, &(struct rref_args){ .data = data, .length = length }, RREF_DEFAULT, &r));
	return r;
}

static struct rref_args *with(struct rref **refs, size_t nr)
{
	static _Thread_local struct rref_args a;

	a = (struct rref_args){ .refs = refs, .nr_refs = nr };
	return &a;
}

static struct rref *_Atomic kept[256];
static _Atomic int nr_kept;

static int keep(struct rref_call *call, void *arg)
{
	(void)arg;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++)
		kept[atomic_fetch_add(&nr_kept, 1)] = rref_dup(rref_call_ref(call, i));
	return 0;
}

static int give_kept(struct rref_call *call, void *arg)
{
	(void)arg;
	struct rref *r = kept[0];

	return rref_call_reply(call, with(&r, 1));
}

static int drop_kept(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	while (atomic_load(&nr_kept))
		rref_release(kept[atomic_fetch_sub(&nr_kept, 1) - 1]);
	return 0;
}

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "keep", .handler = keep }));
	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "give_kept", .handler = give_kept }));
	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "drop_kept", .handler = drop_kept }));
	tg_meet_serving(ctx, 15);
	return ctx;
}

static _Noreturn void die(void)
{
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

/* Serves until rank 0 sets the flag, then dies. */
static _Noreturn void serve_and_die(struct rref_ctx *ctx, int flag)
{
	tg_wait_flag_serving(ctx, flag, 1);
	die();
}

/* Survivors leave in bounded time; that somebody died is not their fault. */
static void leave(struct rref_ctx *ctx)
{
	int err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, LONG_NS);

	TG_CHECK(err == 0 || err == -EOWNERDEAD);
	rref_free_ctx(ctx);
}

static bool is_dead(struct rref_ctx *ctx, void *rank)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, *(int *)rank, &w));
	return !w.alive;
}

/* Stops a worker, and waits until each of its threads has stopped: the signal alone is only a wish. */
static void stop_worker(int rank)
{
	pid_t pid = tg_current->shared->pid[rank];
	int64_t end = now_ns() + LONG_NS;
	bool running = true;

	TG_IS(kill(pid, SIGSTOP), 0);
	while (running) {
		char path[300], line[512];
		struct dirent *e;
		DIR *d;

		TG_CHECK(now_ns() < end);
		snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
		d = opendir(path);
		TG_CHECK(d);
		running = false;
		while ((e = readdir(d))) {
			FILE *f;

			if (e->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", (int)pid, e->d_name);
			f = fopen(path, "r");
			if (!f)
				continue; /* it ended meanwhile */
			if (fgets(line, sizeof(line), f)) {
				const char *state = strrchr(line, ')');

				running |= !state || strncmp(state, ") T", 3) != 0;
			}
			fclose(f);
		}
		closedir(d);
	}
}

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

/* ---- the user dies ---- */

DEATH_TEST(user_killed__its_references_are_reclaimed, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 1)
		serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *r[50];

		for (int i = 0; i < 50; i++) {
			TG_OK(rref_new(ctx, &i, sizeof(i), &r[i]));
			TG_OK(rref_rpc_sync(ctx, 1, "keep", with(&r[i], 1), RREF_DEFAULT, NULL));
		}
		TG_OK(rref_rpc_sync(ctx, 2, "keep", with(&r[7], 1), RREF_DEFAULT, NULL));
		TG_IS(tg_stats(ctx).forks, 51);
		for (int i = 0; i < 50; i++)
			rref_release(r[i]);
		TG_IS(tg_stats(ctx).owners, 50);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(is_dead, ctx, &one));
		/* What the living one holds stays; the rest goes. */
		for (int64_t end = now_ns() + LONG_NS; tg_stats(ctx).owners != 1; usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		TG_IS(tg_stats(ctx).forks, 1);
		TG_IS(tg_stats(ctx).value_bytes, 64 + sizeof(int));
		TG_IS(tg_stats(ctx).dead_peers, 1);
		TG_OK(rref_rpc_sync(ctx, 2, "drop_kept", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 0);
	}
	leave(ctx);
	return 0;
}

/* The one who shared it dies after its child was confirmed: the child lives. */
DEATH_TEST(user_killed__what_it_shared_lives, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 1) {
		/* Owner 0, parent 1, child 2. */
		struct rref *r = remote(ctx, 0, "tg.echo", "alive", 5);

		TG_OK(rref_rpc_sync(ctx, 2, "keep", with(&r, 1), RREF_DEFAULT, NULL));
		tg_set_flag(0, 1);
		die();
	}
	tg_wait_flag_serving(ctx, 0, 1);
	if (rank == 2)
		for (int i = 0; i < 100; i++)
			tg_expect_bytes(kept[0], "alive", 5);
	if (rank == 0) {
		TG_CHECK(tg_eventually(is_dead, ctx, &one));
		for (int64_t end = now_ns() + LONG_NS; tg_stats(ctx).forks != 1; usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
	}
	tg_wait_flag_serving(ctx, 0, 1);
	atomic_fetch_add(&tg_current->shared->flag[1], 1);
	tg_wait_flag_serving(ctx, 1, 2);
	if (rank == 2) {
		tg_expect_bytes(kept[0], "alive", 5);
		rref_release(kept[0]);
		tg_until_clean(ctx, 2);
	} else {
		tg_until_clean(ctx, 0);
	}
	leave(ctx);
	return 0;
}

DEATH_TEST(caller_killed__in_the_middle_of_a_call, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 1) {
		struct rref *mine, *made = remote(ctx, 0, "tg.hold", "x", 1);
		struct rref_future *f;

		(void)made;
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_rpc_async(ctx, 0, "tg.hold", with(&mine, 1), RREF_DEFAULT, &f));
		tg_until_held(ctx, 0, 2);
		die();
	}
	TG_CHECK(tg_eventually(is_dead, ctx, &one));
	/* Answered when the caller is gone: nothing is sent, nothing remains, neither of the creation nor of the call. */
	TG_IS(tg_release_held(ctx, 0), 2);
	tg_until_clean(ctx, 0);
	leave(ctx);
	return 0;
}

/* ---- the owner dies ---- */

struct reader {
	struct rref *r;
	int err;
};

static void *read_for_ever(void *arg)
{
	struct reader *rd = arg;
	struct rref_view *v;

	while ((rd->err = rref_to_here(rd->r, RREF_DEFAULT, &v)) == 0) {
		TG_CHECK(memcmp(rref_view_data(v), "ready", 5) == 0);
		rref_view_free(v);
	}
	return NULL;
}

DEATH_TEST(owner_killed__readers_are_told, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);
	int one = 1;

	if (rank == 1)
		serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *ready = remote(ctx, 1, "tg.echo", "ready", 5), *unready = remote(ctx, 1, "tg.hold", "x", 1);
		struct rref *theirs = remote(ctx, 2, "tg.echo", "theirs", 6), *none = NULL;
		struct rref_future *f[3], *g = NULL;
		struct rref_error e = { .size = sizeof(e) };
		struct rref_view *v = NULL;
		struct reader rd[2];
		pthread_t t[2];

		tg_expect_bytes(ready, "ready", 5);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", with(&theirs, 1), RREF_FOREVER, &f[0]));
		TG_OK(rref_to_here_async(unready, RREF_FOREVER, &f[1]));
		TG_OK(rref_creation(unready, &f[2]));
		tg_until_held(ctx, 1, 2);
		for (int i = 0; i < 2; i++) {
			rd[i].r = ready;
			TG_IS(pthread_create(&t[i], NULL, read_for_ever, &rd[i]), 0);
		}
		usleep(5000);
		tg_set_flag(0, 1);
		/* Those under way ... */
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_future_wait(f[i], LONG_NS), -EOWNERDEAD);
			TG_IS(rref_future_test(f[i]), 1);
			TG_OK(rref_future_error(f[i], &e));
			TG_CHECK(e.err == -EOWNERDEAD && e.peer == 1 && e.text[0]);
			rref_future_free(f[i]);
		}
		for (int i = 0; i < 2; i++) {
			pthread_join(t[i], NULL);
			TG_IS(rd[i].err, -EOWNERDEAD);
		}
		TG_CHECK(tg_eventually(is_dead, ctx, &one));
		/* ... and later ones, each time. */
		for (int i = 0; i < 50; i++) {
			TG_IS(rref_to_here(i % 2 ? ready : unready, RREF_FOREVER, &v), -EOWNERDEAD);
			TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_FOREVER, NULL), -EOWNERDEAD);
			int err = rref_remote(ctx, 1, "tg.echo", NULL, RREF_FOREVER, &none);

			if (err == 0) {
				TG_IS(rref_to_here(none, RREF_FOREVER, &v), -EOWNERDEAD);
				rref_release(none);
			} else {
				TG_IS(err, -EOWNERDEAD);
			}
			usleep(5000 * (i % 2)); /* across the times at which it tries to connect again */
		}
		TG_IS(rref_rpc_async(ctx, 2, "tg.read", with(&ready, 1), RREF_FOREVER, &g), -EOWNERDEAD);
		TG_CHECK(!v && !g);
		/* The others are not concerned. */
		tg_expect_bytes(theirs, "theirs", 6);
		TG_OK(rref_rpc_sync(ctx, 2, "tg.read", with(&theirs, 1), RREF_DEFAULT, NULL));
		rref_release(ready);
		rref_release(unready);
		rref_release(theirs);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 2);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	leave(ctx);
	return 0;
}

/* Rank 0 is the one who counts the others at the barrier. */
DEATH_TEST(rank_0_killed__the_others_leave_all_the_same, 3, 1 << 0)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		tg_wait_flag_serving(ctx, 0, 2);
		die();
	}
	struct rref *r = remote(ctx, 0, "tg.echo", "x", 1), *other = remote(ctx, 3 - rank, "tg.echo", "y", 1);

	tg_expect_bytes(r, "x", 1);
	tg_expect_bytes(other, "y", 1);
	atomic_fetch_add(&tg_current->shared->flag[0], 1);
	leave(ctx);
	return 0;
}

DEATH_TEST(killed__while_the_others_are_leaving, 4, 1 << 2)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = remote(ctx, (rank + 1) % 4, "tg.echo", "x", 1);

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	if (rank == 2) {
		/* In the manual mode too the others wait for this one only; it serves a while. */
		for (int i = 0; i < 50; i++) {
			rref_progress(ctx);
			usleep(1000);
		}
		die();
	}
	leave(ctx);
	return 0;
}

/* Never spoke to anybody. */
DEATH_TEST(killed__a_stranger, 3, 1 << 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 2)
		die();
	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.echo", "x", 1);

		tg_expect_bytes(r, "x", 1);
		for (int i = 0; i < 3; i++)
			TG_IS(rref_rpc_sync(ctx, 2, "tg.echo", NULL, 5 * NSEC_PER_SEC, NULL), -EOWNERDEAD);
		rref_release(r);
	}
	leave(ctx);
	return 0;
}

/* Two at once, one of them in the middle of sharing. */
DEATH_TEST(killed__two_of_five_under_load, 5, 1 << 3 | 1 << 4)
{
	struct rref_ctx *ctx = join(rank);
	int64_t end = now_ns() + 300 * MS;
	int lost = 0;

	for (int i = 0; now_ns() < end || i < 50; i++) {
		int owner = (rank + i) % 5, to = (rank + i / 5) % 5;
		struct rref_view *v;
		struct rref *r;
		int err = rref_remote(ctx, owner, "tg.echo", &(struct rref_args){ .data = "z", .length = 1 }, LONG_NS, &r);

		if (rank >= 3 && now_ns() > end - 150 * MS)
			die();
		if (err) {
			TG_IS(err, -EOWNERDEAD);
			TG_CHECK(owner >= 3);
			continue;
		}
		err = rref_rpc_sync(ctx, to, "tg.read", with(&r, 1), LONG_NS, NULL);
		if (err) {
			/* Of the living only what hangs on the dead may fail. */
			TG_IS(err, -EOWNERDEAD);
			TG_CHECK(owner >= 3 || to >= 3);
			lost++;
		}
		err = rref_to_here(r, LONG_NS, &v);
		if (err)
			TG_CHECK(err == -EOWNERDEAD && owner >= 3);
		else
			rref_view_free(v);
		rref_release(r);
	}
	TG_CHECK(lost >= 0);
	for (int dead = 3; dead < 5; dead++)
		TG_CHECK(rref_rpc_sync(ctx, dead, "tg.nothing", NULL, LONG_NS, NULL) == -EOWNERDEAD);
	/* The survivors wait for each other, serving, and then for what the dead left here. */
	atomic_fetch_add(&tg_current->shared->flag[2], 1);
	tg_wait_flag_serving(ctx, 2, 3);
	tg_until_clean(ctx, rank);
	leave(ctx);
	return 0;
}

/* ---- stopped, not dead ---- */

TG_TEST(owner_stopped__ready_values_are_read, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.echo", "ready", 5);
		struct rref_worker_info w = { .size = sizeof(w) };
		struct rref_future *f;

		tg_expect_bytes(r, "ready", 5);
		TG_OK(rref_rpc_sync(ctx, 2, "keep", with(&r, 1), RREF_DEFAULT, NULL));
		stop_worker(1);
		for (int i = 0; i < 100; i++)
			tg_expect_bytes(r, "ready", 5);
		/* A call has its time; nobody is given up for dead. */
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, 100 * MS, NULL), -ETIMEDOUT);
		TG_OK(rref_rpc_async(ctx, 1, "tg.echo", NULL, LONG_NS, &f));
		for (int i = 0; i < 100; i++)
			tg_expect_bytes(r, "ready", 5);
		TG_OK(rref_worker(ctx, 1, &w));
		TG_IS(w.alive, 1);
		TG_IS(kill(tg_current->shared->pid[1], SIGCONT), 0);
		TG_OK(rref_future_wait(f, LONG_NS));
		rref_future_free(f);
		rref_release(r);
		TG_IS(tg_stats_of(ctx, 1).owners, 1);
		TG_OK(rref_rpc_sync(ctx, 2, "drop_kept", NULL, RREF_DEFAULT, NULL));
		for (int i = 0; i < 3; i++)
			tg_until_clean(ctx, i);
		TG_IS(tg_stats(ctx).dead_peers, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(user_stopped__keeps_its_references, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r, *back;
		struct rref_future *f;

		TG_OK(rref_new(ctx, "kept", 4, &r));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		stop_worker(1);
		for (int i = 0; i < 300; i++) {
			rref_progress(ctx);
			usleep(5000);
		}
		TG_IS(tg_stats(ctx).forks, 1);
		TG_IS(kill(tg_current->shared->pid[1], SIGCONT), 0);
		TG_OK(rref_rpc_sync(ctx, 1, "give_kept", NULL, LONG_NS, &f));
		TG_OK(rref_future_ref(f, 0, &back));
		rref_future_free(f);
		tg_expect_bytes(back, "kept", 4);
		rref_release(back);
		TG_OK(rref_rpc_sync(ctx, 1, "drop_kept", NULL, RREF_DEFAULT, NULL));
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- fork(2) ---- */

/* Each function that would touch what the parent owns refuses; releases and frees do nothing. */
static void try_everything(struct rref_ctx *ctx, struct rref *mine, struct rref *theirs, struct rref_future *pending)
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
	TG_IS(rref_register(ctx, &(struct rref_function){ .name = "child", .handler = keep }), -ECHILD);
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
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *mine, *theirs = remote(ctx, 1, "tg.echo", "theirs", 6);
		struct rref_future *pending;
		pthread_t t;

		tg_expect_bytes(theirs, "theirs", 6);
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_DEFAULT, &pending));
		tg_until_held(ctx, 1, 1);
		TG_IS(pthread_create(&t, NULL, keep_busy, ctx), 0); /* locks are held at odd moments */
		for (int i = 0; i < 5; i++) {
			int status, waited = 0;
			pid_t pid = fork();

			if (pid == 0) {
				alarm(20);
				try_everything(ctx, mine, theirs, pending);
				_exit(0);
			}
			TG_CHECK(pid > 0);
			for (int64_t end = now_ns() + LONG_NS; !waited && now_ns() < end; usleep(500))
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

/* The child's end closes its copies of descriptors and mappings; the parent's peers must not take it for the parent's. */
TG_TEST(fork__child_lives_on_and_ends, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = remote(ctx, 1, "tg.echo", "x", 1);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(user_killed__its_references_are_reclaimed),
		cmocka_unit_test(user_killed__what_it_shared_lives),
		cmocka_unit_test(caller_killed__in_the_middle_of_a_call),
		cmocka_unit_test(owner_killed__readers_are_told),
		cmocka_unit_test(rank_0_killed__the_others_leave_all_the_same),
		cmocka_unit_test(killed__while_the_others_are_leaving),
		cmocka_unit_test(killed__a_stranger),
		cmocka_unit_test(killed__two_of_five_under_load),
		cmocka_unit_test(owner_stopped__ready_values_are_read),
		cmocka_unit_test(user_stopped__keeps_its_references),
		cmocka_unit_test(fork__child_is_refused_and_parent_goes_on),
		cmocka_unit_test(fork__child_lives_on_and_ends),
	};

	return cmocka_run_group_tests_name("death", tests, NULL, NULL);
}
