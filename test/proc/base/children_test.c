/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that make children: helpers that outlive them, daemons, and children that are workers
 * themselves. Peers learn of a worker's death although its child lives on. A child can use no
 * context of its parent, and may have contexts of its own.
 */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_death.h"

enum how { FORK, GRANDCHILD, STRAY };

/* Makes a child of this process in the given way. */
static pid_t make_child(enum how how)
{
	return how == STRAY ? (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL) : fork();
}

_Noreturn static void stand_by(int flag)
{
	alarm(120); /* should the test end without ending this */
	tg_set_flag(flag, getpid());
	for (;;)
		pause();
}

/* Makes a process that stands by, and returns its number. */
static pid_t make_helper(enum how how, int flag)
{
	pid_t pid = make_child(how);

	TG_CHECK(pid >= 0);
	if (pid == 0) {
		if (how == GRANDCHILD && fork())
			_exit(0);
		stand_by(flag);
	}
	while (!tg_flag(flag))
		tg_pause();
	return tg_flag(flag);
}

/* Returns the status of a child when it has exited. */
static int status_of(pid_t pid)
{
	int status, waited = 0;

	TG_CHECK(pid > 0);
	while (!waited && now_ns() < tg_deadline()) {
		waited = waitpid(pid, &status, WNOHANG) == pid;
		if (!waited)
			tg_pause();
	}
	TG_CHECK(waited);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Joins with no bound on stalls: only the end of a process is a death here. */
static struct rref_ctx *join(int rank)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.stall_timeout = 0;
	return tg_join_by(&o);
}

/* ---- a helper lives on ---- */

static int dies_with_a_helper(int rank, enum how how)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1);
	int one = 1;

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		make_helper(how, 1);
		tg_set_flag(0, 1);
		tg_die();
	}
	tg_wait_flag_serving(ctx, 0, 1);
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
	TG_IS(kill(tg_flag(1), 0), 0); /* the helper lives */
	tg_expect_error(r, -EOWNERDEAD, "");
	TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
	rref_release(r);
	tg_until_clean(ctx, 0); /* the dead worker's references too */
	TG_IS(kill(tg_flag(1), SIGKILL), 0);
	tg_leave(ctx);
	return 0;
}

DEATH_TEST(killed__its_child_lives_on, 2, 1 << 1)
{
	return dies_with_a_helper(rank, FORK);
}

DEATH_TEST(killed__its_grandchild_lives_on, 2, 1 << 1)
{
	return dies_with_a_helper(rank, GRANDCHILD);
}

/* The device alone tells of a process's end over ibv, and such a
 * child has the device: see rref.h. */
DEATH_TEST(killed__a_child_without_handlers_lives_on, 2, 1 << 1)
{
	if (!tg_is_shm()) {
		if (rank == 1)
			raise(SIGKILL);
		return 0;
	}
	return dies_with_a_helper(rank, STRAY);
}

/* ---- the contexts of a child ---- */

/*
 * Counts the descriptors of this process that are not in `before`; with `fill` it notes them there.
 * librdmacm keeps two of its own.
 */
static int count_new(bool *before, size_t size, bool fill)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	int nr = 0;

	TG_CHECK(d);
	while ((e = readdir(d))) {
		char path[64], name[256];
		int fd = atoi(e->d_name);
		ssize_t n;

		if (e->d_name[0] == '.' || fd == dirfd(d) || (size_t)fd >= size)
			continue;
		if (fill)
			before[fd] = true;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, name, sizeof(name) - 1);
		if (before[fd] || n < 0)
			continue;
		name[n] = 0;
		if (strstr(name, "uverbs") || strstr(name, "infinibandevent"))
			continue;
		fprintf(stderr, "the child has descriptor %d: %s\n", fd, name);
		nr++;
	}
	closedir(d);
	return nr;
}

static int count_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];
	int nr = 0;

	TG_CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		if (!strstr(line, "memfd:rref") && !strstr(line, "/infiniband/uverbs"))
			continue;
		fprintf(stderr, "the child has %s", line);
		nr++;
	}
	fclose(f);
	return nr;
}

TG_TEST(a_child_has_neither_descriptors_nor_memory_of_the_library, 2)
{
	static bool before[4096];

	count_new(before, sizeof(before), true);
	struct rref_ctx *ctx = join(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1);

	tg_expect_bytes(r, "x", 1);
	pid_t pid = fork();

	if (pid == 0) {
		TG_IS(count_new(before, sizeof(before), false), 0);
		TG_IS(count_maps(), 0);
		_exit(7);
	}
	TG_IS(status_of(pid), 7);
	tg_expect_bytes(r, "x", 1);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

static void on_fault(int sig)
{
	(void)sig;
	_exit(42);
}

/* Reads p in a child, and expects a fault. */
static void expect_fault(const void *p)
{
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGSEGV, on_fault);
		*(const volatile char *)p;
		_exit(1);
	}
	TG_IS(status_of(pid), 42);
}

/*
 * A child does not see its parent's views change, nor write into
 * memory that peers read. Accessors find nothing.
 */
TG_TEST(views_and_values_are_not_in_a_child, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *theirs = tg_remote(ctx, 1, "tg.echo", "theirs", 6), *mine, *taken;
		struct rref_view *far, *near;
		struct rref_type type = { .size = sizeof(type) };
		struct iovec segment;
		void *data;

		TG_OK(rref_alloc(ctx, 4, &mine, &data));
		memcpy(data, "mine", 4);
		TG_OK(rref_to_here(theirs, RREF_DEFAULT, &far));
		TG_OK(rref_set(mine));
		TG_OK(rref_local_value(mine, RREF_DEFAULT, &near));
		const void *seen = rref_view_data(far);
		pid_t pid = fork();

		if (pid == 0) {
			struct rref_view *views[] = { far, near };

			for (int i = 0; i < 2; i++) {
				TG_CHECK(!rref_view_data(views[i]));
				TG_IS(rref_view_length(views[i]), 0);
				TG_IS(rref_view_segments(views[i], &segment, 1), 0);
				TG_IS(rref_view_nr_refs(views[i]), 0);
				TG_IS(rref_view_type(views[i], &type), -ECHILD);
				TG_IS(rref_view_ref(views[i], 0, RREF_DEFAULT, &taken), -ECHILD);
			}
			expect_fault(seen);
			expect_fault(data);
			rref_view_free(far);
			rref_view_free(near);
			_exit(7);
		}
		TG_IS(status_of(pid), 7);
		TG_IS(memcmp(rref_view_data(far), "theirs", 6), 0);
		TG_IS(memcmp(rref_view_data(near), "mine", 4), 0);
		rref_view_free(far);
		rref_view_free(near);
		rref_release(theirs);
		rref_release(mine);
	}
	tg_finish(ctx);
	return 0;
}

/* Expects that nothing tells of a child any more, and that no descriptor is left. */
static void expect_no_child(struct rref_ctx *ctx, struct rref_future *f)
{
	struct rref_worker_info info = { .size = sizeof(info) };
	struct rref_error error = { .size = sizeof(error) };
	struct rref_type type = { .size = sizeof(type) };
	struct rref_view *view;
	struct rref *ref;
	const void *data;
	size_t length;

	TG_IS(rref_ctx_fd(ctx), -ECHILD);
	TG_TEXT("fork");
	TG_IS(rref_worker(ctx, 0, &info), -ECHILD);
	TG_IS(rref_worker_by_name(ctx, "worker0"), -ECHILD);
	TG_IS(rref_future_error(f, &error), -ECHILD);
	TG_IS(rref_future_view(f, &view), -ECHILD);
	TG_IS(rref_future_type(f, &type), -ECHILD);
	TG_IS(rref_future_data(f, &data, &length), -ECHILD);
	TG_IS(rref_future_nr_refs(f), -ECHILD);
	TG_IS(rref_future_ref(f, 0, &ref), -ECHILD);
	TG_IS(rref_future_wait(f, 0), -ECHILD);
	rref_future_free(f);
}

TG_TEST(results_are_not_in_a_child, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_future *f;
	const void *data;
	size_t length;
	pid_t pid;

	TG_OK(rref_rpc_sync(ctx, 0, "tg.echo", &(struct rref_args){ .data = "x", .length = 1 },
			    RREF_DEFAULT, &f));
	pid = fork();
	if (pid == 0) {
		expect_no_child(ctx, f);
		_exit(7);
	}
	TG_IS(status_of(pid), 7);
	TG_OK(rref_future_data(f, &data, &length));
	TG_IS(length, 1);
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

/* ---- contexts of the child's own ---- */

/* Joins in the manual mode: the thread sanitizer allows no thread
 * after the fork of a process with threads. */
static struct rref_ctx *child_joins(int rank, int world, const char *place)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.world_size = world;
	o.rendezvous = place;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.mode = RREF_PROGRESS_MANUAL;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

/* Makes a value, reads it, and leaves in order. */
static void be_a_worker(void)
{
	struct rref_ctx *ctx = child_joins(0, 1, NULL);
	struct rref *r;

	TG_OK(rref_new(ctx, "own", 3, &r));
	tg_expect_bytes(r, "own", 3);
	rref_release(r);
	tg_finish(ctx);
}

/* The child begins as a daemon does (init, fork, exit), after the end of its parent. */
DEATH_TEST(daemon__the_child_is_told_and_begins_anew, 2, 0)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1);
	int one = 1;

	tg_expect_bytes(r, "x", 1);
	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		pid_t parent = getpid(), pid = fork();

		TG_CHECK(pid >= 0);
		if (pid > 0)
			_exit(0);
		alarm(120);
		while (getppid() == parent)
			tg_pause();
		TG_IS(rref_rpc_sync(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, NULL), -ECHILD);
		TG_TEXT("fork");
		rref_release(r);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT), -ECHILD);
		rref_free_ctx(ctx);
		be_a_worker();
		tg_set_flag(0, 1);
		_exit(0);
	}
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
	tg_wait_flag_serving(ctx, 0, 1);
	rref_release(r);
	tg_leave(ctx);
	return 0;
}

/* A child waits for a list of futures of its own context and of
 * its parent's. The wait is refused. */
TG_TEST(a_child_cannot_wait_for_its_parents_futures, 1)
{
	struct rref_ctx *ctx = join(rank), *own;
	struct rref_future *f[2], *parents;
	struct rref *unset, *other;
	void *data;
	pid_t pid;

	TG_OK(rref_alloc(ctx, 8, &unset, &data));
	TG_OK(rref_to_here_async(unset, RREF_FOREVER, &parents));
	pid = fork();
	if (pid == 0) {
		own = child_joins(0, 1, NULL);
		TG_OK(rref_alloc(own, 8, &other, &data));
		TG_OK(rref_to_here_async(other, RREF_FOREVER, &f[0]));
		f[1] = parents;
		TG_IS(rref_wait_any(f, 2, 0), -ECHILD);
		TG_IS(rref_wait_all(f, 2, 0), -ECHILD);
		TG_IS(rref_wait_any(f, 1, 0), -ETIMEDOUT);
		rref_future_free(f[0]);
		rref_release(other);
		tg_finish(own);
		_exit(7);
	}
	TG_IS(status_of(pid), 7);
	TG_OK(rref_set(unset));
	TG_OK(rref_future_wait(parents, RREF_DEFAULT));
	rref_future_free(parents);
	rref_release(unset);
	tg_finish(ctx);
	return 0;
}

/* The children form their own group, beside the group of their parent, which goes on. */
TG_TEST(children_of_a_worker_are_a_group, 1)
{
	struct rref_ctx *ctx = join(rank);
	char place[64];
	pid_t pid[2];
	struct rref *r;

	TG_OK(rref_new(ctx, "parent", 6, &r));
	tg_free_place(place, sizeof(place));
	for (int i = 0; i < 2; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			struct rref_ctx *own = child_joins(i, 2, place);
			struct rref *theirs;

			rref_release(r);
			theirs = tg_remote(own, 1 - i, "tg.echo_inline", i ? "one" : "two", 3);
			tg_expect_bytes(theirs, i ? "one" : "two", 3);
			rref_release(theirs);
			tg_finish(own);
			_exit(7);
		}
	}
	for (int i = 0; i < 2; i++)
		TG_IS(status_of(pid[i]), 7);
	tg_expect_bytes(r, "parent", 6);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* A stray child is refused everywhere, and told the remedy. */
TG_TEST(a_child_without_handlers_is_refused, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r;
	pid_t pid;

	TG_OK(rref_new(ctx, "x", 1, &r));
	pid = make_child(STRAY);
	if (pid == 0) {
		struct rref_ctx *own;
		struct rref_options o;
		struct rref *other;

		alarm(20);
		TG_IS(rref_new(ctx, "x", 1, &other), -ECHILD);
		rref_release(r);
		tg_options(&o, 0);
		TG_IS(rref_init(&o, &own), -ECHILD);
		TG_TEXT("clone");
		_exit(7);
	}
	TG_IS(status_of(pid), 7);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* ---- fork in the middle of the library ---- */

static _Atomic int nr_forked;

/*
 * Forks a child that is in no callback and on no thread of the pool.
 * Its own context may wait, and be shut down.
 */
static void fork_a_worker(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		alarm(60);
		be_a_worker();
		_exit(7);
	}
	TG_IS(status_of(pid), 7);
	atomic_fetch_add(&nr_forked, 1);
}

static int forks(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	fork_a_worker();
	return 0;
}

static void then_forks(struct rref_future *f, void *arg)
{
	(void)f, (void)arg;
	fork_a_worker();
}

static void release_forks(void *arg)
{
	(void)arg;
	fork_a_worker();
}

TG_TEST(forks_in_callbacks_and_handlers, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_future *f;
	struct rref_mem *mem;
	struct rref *r;
	void *at;

	tg_add(ctx, "forks", forks, 0);
	tg_add(ctx, "forks_inline", forks, RREF_INLINE);
	TG_OK(rref_rpc_sync(ctx, 0, "forks", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_rpc_sync(ctx, 0, "forks_inline", NULL, RREF_DEFAULT, NULL));
	TG_IS(atomic_load(&nr_forked), 2);
	TG_OK(rref_rpc_async(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_then(f, then_forks, NULL));
	while (atomic_load(&nr_forked) < 3 && now_ns() < tg_deadline())
		rref_progress(ctx);
	TG_IS(atomic_load(&nr_forked), 3);
	rref_future_free(f);
	TG_OK(rref_mem_alloc(ctx, 4096, &mem, &at));
	TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 8), release_forks, NULL, &r));
	rref_release(r);
	while (atomic_load(&nr_forked) < 4 && now_ns() < tg_deadline())
		rref_progress(ctx);
	TG_IS(atomic_load(&nr_forked), 4);
	TG_OK(rref_mem_deregister(mem));
	tg_finish(ctx);
	return 0;
}

static _Atomic int armed; /* the next log line, or scope, forks */

static void log_forks(void *arg, enum rref_log_level level, const char *text)
{
	(void)arg, (void)level, (void)text;
	if (atomic_exchange(&armed, 0))
		fork_a_worker();
}

static void scope_forks(void *arg, const struct rref_scope *scope)
{
	(void)arg, (void)scope;
	if (atomic_exchange(&armed, 0))
		fork_a_worker();
}

TG_TEST(forks_in_log_and_scope_hooks, 1)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *r;

	for (int i = 0; i < 2; i++) {
		tg_options(&o, rank);
		if (i == 0) {
			o.log = log_forks;
			o.log_level = RREF_LOG_DEBUG;
		} else {
			o.scope = scope_forks;
		}
		atomic_store(&armed, i == 0);
		TG_OK(rref_init(&o, &ctx));
		if (i == 1) {
			atomic_store(&armed, 1);
			TG_OK(rref_new(ctx, "x", 1, &r));
			rref_release(r);
		}
		while (atomic_load(&nr_forked) <= i && now_ns() < tg_deadline())
			rref_progress(ctx);
		TG_IS(atomic_load(&nr_forked), i + 1);
		tg_finish(ctx);
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(killed__its_child_lives_on),
		cmocka_unit_test(killed__its_grandchild_lives_on),
		cmocka_unit_test(killed__a_child_without_handlers_lives_on),
		cmocka_unit_test(a_child_has_neither_descriptors_nor_memory_of_the_library),
		cmocka_unit_test(views_and_values_are_not_in_a_child),
		cmocka_unit_test(results_are_not_in_a_child),
		cmocka_unit_test(daemon__the_child_is_told_and_begins_anew),
		cmocka_unit_test(a_child_cannot_wait_for_its_parents_futures),
		cmocka_unit_test(children_of_a_worker_are_a_group),
		cmocka_unit_test(a_child_without_handlers_is_refused),
		cmocka_unit_test(forks_in_callbacks_and_handlers),
		cmocka_unit_test(forks_in_log_and_scope_hooks),
	};

	return cmocka_run_group_tests_name("children", tests, NULL, NULL);
}
