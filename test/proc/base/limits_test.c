/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of the system. Each is set in a process of its own, which then asks the library for
 * something. It must work, or fail with an errno that the function's block lists, by words that
 * name the limit, its value and the remedy.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MIB ((size_t)1 << 20)
#define SKIPPED 77

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NO_AS_LIMIT 1 /* the sanitizers reserve more than any such limit */
#else
#define NO_AS_LIMIT 0
#endif

/* Runs fn in a child. Returns its exit status; a signal ends the test. */
static int in_child(int (*fn)(const void *arg), const void *arg)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		alarm((unsigned)(60 * tg_slow()));
		_exit(fn(arg));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		fail_msg("ended by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

#define WORKED 42 /* status of a child in which the limit did not matter */

static void run_or_skip(int (*fn)(const void *arg), const void *arg)
{
	int status = in_child(fn, arg);

	if (status == SKIPPED) {
		print_message("skipped: this machine does not let the limit be set\n");
		skip();
	}
	assert_int_equal(status, 0);
}

static void limit(__rlimit_resource_t what, rlim_t value)
{
	struct rlimit r;

	TG_IS(getrlimit(what, &r), 0);
	r.rlim_cur = value;
	TG_IS(setrlimit(what, &r), 0);
}

static struct rref_options options(void)
{
	struct rref_options o;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	o.max_value_bytes = o.max_landing_bytes = 256 * MIB;
	o.region_bytes = 2 * MIB;
	tg_log(&o);
	return o;
}

/* err must be 0, or this with each of these words in the text. Returns whether it is 0. */
static bool works_or(int err, int expected, const char *word, const char *value, const char *remedy)
{
	if (!err)
		return true;
	if (err != expected || !strstr(rref_last_error(), word) ||
	    !strstr(rref_last_error(), value) || !strstr(rref_last_error(), remedy)) {
		fprintf(stderr, "%d, not %d with '%s', '%s', '%s': %s\n", err, expected, word,
			value, remedy, rref_last_error());
		_exit(1);
	}
	return false;
}

static void leave(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	rref_free_ctx(ctx);
}

/* ---- RLIMIT_NOFILE: no number is left for the first, second, ... descriptor ---- */

/* The hard limit too: rref_init raises the soft one. */
static void limit_descriptors(rlim_t n)
{
	TG_IS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ .rlim_cur = n, .rlim_max = n }), 0);
}

struct few {
	rlim_t n;
	int rank;
	bool by_name; /* the rendezvous' host is one that is looked up */
};

/* 0: it was refused as it should be. */
static int few_descriptors(const void *arg)
{
	struct rref_options o = options();
	const struct few *few = arg;
	struct rref_ctx *ctx;
	char value[16];

	snprintf(value, sizeof(value), " %d ", (int)few->n);
	limit_descriptors(few->n);
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_NOFILE", value, "ulimit -n"))
		return 0;
	leave(ctx);
	return WORKED;
}

/* At the rendezvous, as its rank. Nobody else comes: with enough descriptors it waits. */
static int few_at_rendezvous(const void *arg)
{
	struct rref_options o = options();
	const struct few *few = arg;
	struct rref_ctx *ctx;
	char place[64], named[80];
	int err;

	tg_free_place(place, sizeof(place));
	snprintf(named, sizeof(named), "localhost%s", strrchr(place, ':'));
	o.rank = few->rank;
	o.world_size = 2;
	o.rendezvous = few->by_name ? named : place;
	o.init_timeout = 300 * NSEC_PER_MSEC;
	limit_descriptors(few->n);
	err = rref_init(&o, &ctx);
	if (err == -ECONNREFUSED ||
	    (err == -ETIMEDOUT && strstr(rref_last_error(), "missing rank")))
		return WORKED;
	TG_CHECK(!works_or(err, -ENOMEM, "RLIMIT_NOFILE", "raise it", "ulimit -n"));
	return 0;
}

static void with_more_and_more(int (*fn)(const void *arg), int rank, bool by_name)
{
	int status = 0, refused = 0;

	for (rlim_t n = 3; n < 64 && status == 0; n++) {
		status = in_child(fn, &(struct few){ .n = n, .rank = rank, .by_name = by_name });
		refused += status == 0;
	}
	assert_int_equal(status, WORKED);
	assert_true(refused > 4);
}

static void init__few_descriptors(void **state)
{
	(void)state;
	with_more_and_more(few_descriptors, 0, false);
}

static void init__few_descriptors_at_the_rendezvous(void **state)
{
	(void)state;
	with_more_and_more(few_at_rendezvous, 0, false);
	with_more_and_more(few_at_rendezvous, 1, false);
	with_more_and_more(few_at_rendezvous, 0, true);
	with_more_and_more(few_at_rendezvous, 1, true);
}

static int few_later(const void *arg)
{
	struct rref_options o = options();
	struct rref_mem *mem;
	struct rref_ctx *ctx;
	struct rref *ref;
	void *at;
	int fd;

	(void)arg;
	TG_OK(rref_init(&o, &ctx));
	fd = open("/dev/null", O_RDONLY);
	TG_CHECK(fd >= 0);
	limit(RLIMIT_NOFILE, (rlim_t)fd);
	TG_CHECK(!works_or(rref_mem_alloc(ctx, 4096, &mem, &at), -ENOMEM, "RLIMIT_NOFILE", "of",
			   "ulimit -n"));
	TG_CHECK(!works_or(rref_alloc(ctx, 64 * MIB, &ref, &at), -ENOMEM, "RLIMIT_NOFILE", "of",
			   "ulimit -n"));
	limit(RLIMIT_NOFILE, 256);
	TG_OK(rref_alloc(ctx, 64 * MIB, &ref, &at));
	rref_release(ref);
	leave(ctx);
	return 0;
}

static void values__few_descriptors(void **state)
{
	(void)state;
	run_or_skip(few_later, NULL);
}

/* ---- RLIMIT_FSIZE: shared memory is a file ---- */

static int short_files(const void *arg)
{
	const rlim_t bytes = *(const rlim_t *)arg;
	struct rref_options o = options();
	struct rref *refs[64];
	struct rref_mem *mem;
	struct rref_ctx *ctx;
	int n = 0;
	void *at;

	limit(RLIMIT_FSIZE, bytes);
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_FSIZE", "limited to", "ulimit -f"))
		return 0;
	TG_CHECK(bytes >= MIB);
	TG_CHECK(!works_or(rref_mem_alloc(ctx, 65 * MIB, &mem, &at), -ENOMEM, "RLIMIT_FSIZE",
			   "limited to", "ulimit -f"));
	/* Up to the bound, where the limit allows the least region for it. */
	while (n < 8 && works_or(rref_alloc(ctx, 30 * MIB, &refs[n], &at), -ENOMEM,
				 bytes < 30 * MIB ? "RLIMIT_FSIZE" : "RREF_MAX_VALUE_BYTES", "MiB",
				 bytes < 30 * MIB ? "ulimit -f" : "limit 256 MiB"))
		n++;
	TG_IS(n > 5, bytes > 30 * MIB);
	TG_CHECK(n < 8);
	while (n)
		rref_release(refs[--n]);
	leave(ctx);
	return 0;
}

static void values__short_files(void **state)
{
	const rlim_t bytes[] = { 0, 1, 4096, 100000, MIB, 4 * MIB, 20 * MIB, 40 * MIB };

	(void)state;
	for (size_t i = 0; i < array_size(bytes); i++)
		run_or_skip(short_files, &bytes[i]);
}

/* The regions that a limit allows are enough for small values, up to the bound. */
static int small_values(const void *arg)
{
	struct rref_options o = options();
	struct rref *refs[150], *large;
	struct rref_ctx *ctx;
	void *at;

	(void)arg;
	o.region_bytes = 0;
	limit(RLIMIT_FSIZE, 4 * MIB);
	TG_OK(rref_init(&o, &ctx));
	for (size_t i = 0; i < array_size(refs); i++)
		TG_OK(rref_alloc(ctx, MIB, &refs[i], &at));
	TG_CHECK(!works_or(rref_alloc(ctx, 5 * MIB, &large, &at), -ENOMEM, "RLIMIT_FSIZE", "4 MiB",
			   "ulimit -f"));
	for (size_t i = 0; i < array_size(refs); i++)
		rref_release(refs[i]);
	leave(ctx);
	return 0;
}

static void values__small_in_short_files(void **state)
{
	(void)state;
	run_or_skip(small_values, NULL);
}

static int short_trace(const void *arg)
{
	char path[] = "/tmp/rref-limits-XXXXXX", *dir = mkdtemp(path), name[64];
	struct rref_options o = options();
	struct rref_ctx *ctx;
	struct stat st;

	(void)arg;
	TG_CHECK(dir);
	snprintf(name, sizeof(name), "%s/trace", path);
	o.trace = name;
	TG_OK(rref_init(&o, &ctx));
	limit(RLIMIT_FSIZE, 4096);
	for (int i = 0; i < 2000; i++)
		TG_OK(rref_rpc_sync(ctx, 0, "none", NULL, RREF_DEFAULT, NULL) == -ENOSYS ? 0
											 : -EIO);
	leave(ctx);
	strcat(name, ".0");
	TG_IS(stat(name, &st), 0);
	TG_CHECK(st.st_size <= 4096);
	unlink(name);
	rmdir(path);
	return 0;
}

static void trace__short_files(void **state)
{
	(void)state;
	run_or_skip(short_trace, NULL);
}

/* Reads need memory here as well; there is room again when the limit is raised. */
TG_TEST(reads__short_files, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1) {
		struct rref *r = tg_ask(ctx, 0, "pub.make",
					(struct tg_make){ .length = 60 * MIB, .seed = 1 });
		struct rref_view *v;

		limit(RLIMIT_FSIZE, 30 * MIB);
		TG_CHECK(!works_or(rref_to_here(r, RREF_DEFAULT, &v), -ENOMEM, "RLIMIT_FSIZE",
				   "30 MiB", "ulimit -f"));
		limit(RLIMIT_FSIZE, RLIM_INFINITY);
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		rref_view_free(v);
		rref_release(r);
	}
	tg_meet_serving(ctx, 0);
	if (rank == 0)
		tg_drop_kept();
	tg_finish(ctx);
	return 0;
}

/* ---- RLIMIT_AS ---- */

static size_t addresses_in_use(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	TG_CHECK(f && fscanf(f, "%lu", &pages) == 1);
	fclose(f);
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static int few_addresses(const void *arg)
{
	const size_t more = *(const size_t *)arg;
	struct rref_options o = options();
	struct rref_ctx *ctx;
	struct rref *ref;
	void *at;

	limit(RLIMIT_AS, addresses_in_use() + more);
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_AS", "iB", "ulimit -v"))
		return 2;
	limit(RLIMIT_AS, addresses_in_use());
	for (int i = 0; i < 100000; i++)
		if (!works_or(rref_alloc(ctx, 4096, &ref, &at), -ENOMEM, "limit", "iB",
			      "ulimit -v"))
			break;
	limit(RLIMIT_AS, RLIM_INFINITY);
	leave(ctx);
	return 0;
}

static void init__few_addresses(void **state)
{
	bool refused = false, worked = false;

	(void)state;
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs its addresses\n");
		skip();
	}
	for (size_t more = 0; more < 2048 * MIB; more = more * 5 / 4 + 16 * 1024) {
		int status = in_child(few_addresses, &more);

		assert_true(status == 0 || status == 2);
		refused |= status == 2;
		worked |= status == 0;
	}
	assert_true(refused && worked);
}

/* ---- RLIMIT_NPROC ---- */

/* The limit does not hold for root. */
static void become_nobody(void)
{
	if (getuid() == 0)
		TG_CHECK(!setgid(65534) && !setuid(65534));
}

static int few_threads(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	become_nobody();
	limit(RLIMIT_NPROC, 1);
	TG_CHECK(!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_NPROC", "is 1", "ulimit -u"));
	o.mode = RREF_PROGRESS_MANUAL;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	TG_IS(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EAGAIN);
	leave(ctx);
	return 0;
}

static void init__few_threads(void **state)
{
	(void)state;
	run_or_skip(few_threads, NULL);
}

/* ---- RLIMIT_DATA: too little for another thread's stack ---- */

static size_t data_in_use(void)
{
	size_t kib = 0;
	char line[256];
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmData: %zu", &kib) == 1)
			break;
	TG_CHECK(kib);
	fclose(f);
	return kib * 1024;
}

static int little_data(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	o.mode = RREF_PROGRESS_MANUAL;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	limit(RLIMIT_DATA, data_in_use() + MIB);
	TG_CHECK(!works_or(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EAGAIN,
			   "no thread for the call: pthread_create: ", "RLIMIT_DATA", "ulimit -d"));
	limit(RLIMIT_DATA, RLIM_INFINITY);
	TG_OK(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	leave(ctx);
	return 0;
}

static void calls__little_data(void **state)
{
	(void)state;
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs its memory\n");
		skip();
	}
	run_or_skip(little_data, NULL);
}

/* ---- RLIMIT_MEMLOCK: new memory counts against it after mlockall ---- */

/* 0: it was refused as it should be. */
static int little_locked(const void *arg)
{
	const rlim_t bytes = *(const rlim_t *)arg;
	struct rref_options o = options();
	struct rlimit r;
	struct rref_ctx *ctx;
	struct rref *ref;
	void *at;

	TG_IS(getrlimit(RLIMIT_MEMLOCK, &r), 0);
	if (r.rlim_max != RLIM_INFINITY && r.rlim_max < bytes)
		return SKIPPED;
	r.rlim_cur = r.rlim_max = bytes;
	TG_IS(setrlimit(RLIMIT_MEMLOCK, &r), 0);
	become_nobody();
	if (mlockall(MCL_FUTURE))
		return SKIPPED;
	o.mode = RREF_PROGRESS_MANUAL;
	o.max_value_bytes = o.max_landing_bytes = 2 * MIB;
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_MEMLOCK", "iB", "ulimit -l"))
		return 0;
	for (int i = 0; i < 100; i++)
		if (!works_or(rref_alloc(ctx, 1000000, &ref, &at), -ENOMEM, "imit", "iB", ""))
			break;
	leave(ctx);
	return WORKED;
}

static void init__little_locked_memory(void **state)
{
	int refused = 0, status;

	(void)state;
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs its memory\n");
		skip();
	}
	for (rlim_t bytes = 64 * 1024; bytes <= 256 * MIB; bytes = bytes * 5 / 4) {
		status = in_child(little_locked, &bytes);
		if (status != 0)
			break;
		refused++;
	}
	assert_true(status == WORKED || status == SKIPPED);
	assert_true(refused > 4);
}

/* ---- system calls that are refused, as by a container's profile ---- */

struct denied {
	const char *name, *device;
	int nr, err, expected; /* expected: of rref_init */
};

static int deny(int nr, int err)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = { array_size(f), f };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p);
}

static int denied_init(const void *arg)
{
	const struct denied *d = arg;
	struct rref_options o = options();
	struct rref_ctx *ctx;
	int err;

	if (deny(d->nr, d->err))
		return SKIPPED;
	o.device = d->device;
	err = rref_init(&o, &ctx);
	if (!d->expected) {
		TG_OK(err);
		leave(ctx);
		return 0;
	}
	TG_CHECK(!works_or(err, d->expected, d->name, "refused by the system", "seccomp"));
	/* Not another provider's reason in its place. */
	TG_CHECK(!strncmp(d->device, rref_last_error(), 3) ||
		 strstr(rref_last_error(), "no usable device: shm: "));
	return 0;
}

static void init__system_calls_refused(void **state)
{
	const struct denied calls[] = {
		{ "memfd_create", "shm", SYS_memfd_create, EPERM, -ENODEV },
		{ "memfd_create", "auto", SYS_memfd_create, EPERM, -ENODEV },
		{ "memfd_create", "auto", SYS_memfd_create, ENOSYS, -ENODEV },
		{ "socket", "auto", SYS_socket, EPERM, -ENODEV },
		{ "epoll_create1", "auto", SYS_epoll_create1, EPERM, -ENODEV },
		{ "eventfd", "auto", SYS_eventfd2, EPERM, -ENODEV },
		{ "timerfd_create", "auto", SYS_timerfd_create, EPERM, -ENODEV },
		{ "timerfd_settime", "auto", SYS_timerfd_settime, EPERM, -ENODEV },
		{ "bind", "auto", SYS_bind, EPERM, -ENODEV },
		{ "listen", "auto", SYS_listen, EPERM, -ENODEV },
		{ "fcntl", "auto", SYS_fcntl, EPERM, -ENODEV },
		{ "membarrier", "auto", SYS_membarrier, EPERM, 0 },
		{ "madvise", "auto", SYS_madvise, EPERM, 0 },
	};

	(void)state;
	for (size_t i = 0; i < array_size(calls); i++)
		run_or_skip(denied_init, &calls[i]);
}

/* A text that quotes another one has it whole, with the remedy at its end. */
static int denied_connect(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;
	char place[64];

	(void)arg;
	tg_free_place(place, sizeof(place));
	o.rank = 1;
	o.world_size = 2;
	o.rendezvous = place;
	if (deny(SYS_connect, EPERM))
		return SKIPPED;
	TG_CHECK(!works_or(rref_init(&o, &ctx), -EIO, "could not reach rank 0",
			   "refused by the system", "a container's seccomp profile must allow it"));
	return 0;
}

static void init__connections_refused(void **state)
{
	(void)state;
	run_or_skip(denied_connect, NULL);
}

/* ---- file systems ---- */

/* A mount namespace of this process' own, or SKIPPED. */
static int own_mounts(void)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return SKIPPED;
	unsetenv("XDG_RUNTIME_DIR");
	return 0;
}

static int read_only_tmp(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	if (own_mounts() || mount("none", "/tmp", "tmpfs", 0, NULL))
		return SKIPPED;
	TG_OK(rref_init(&o, &ctx));
	leave(ctx);
	TG_IS(mount(NULL, "/tmp", NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
	/* The key is there already. */
	TG_OK(rref_init(&o, &ctx));
	leave(ctx);
	o.trace = "/tmp/trace";
	TG_CHECK(!works_or(rref_init(&o, &ctx), -EIO, "/tmp/trace", "can only be read",
			   "mount it writable"));
	o.trace = NULL;
	TG_IS(umount("/tmp"), 0);
	TG_IS(mount("none", "/tmp", "tmpfs", MS_RDONLY, NULL), 0);
	TG_CHECK(!works_or(rref_init(&o, &ctx), -EACCES, "/tmp/librref-", "Read-only file system",
			   "RREF_KEY_FILE"));
	return 0;
}

static void init__read_only_tmp(void **state)
{
	(void)state;
	run_or_skip(read_only_tmp, NULL);
}

static int no_tmp(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	/* An empty folder as root has no /tmp. */
	if (own_mounts() || mount("none", "/tmp", "tmpfs", 0, NULL) || chroot("/tmp") || chdir("/"))
		return SKIPPED;
	TG_CHECK(!works_or(rref_init(&o, &ctx), -EACCES, "/tmp/librref-", "no such entry",
			   "RREF_KEY_FILE"));
	return 0;
}

static void init__no_tmp(void **state)
{
	(void)state;
	run_or_skip(no_tmp, NULL);
}

static int no_proc(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	o.device = "auto";
	if (own_mounts() || mount("none", "/proc", "tmpfs", 0, NULL))
		return SKIPPED;
	TG_CHECK(!works_or(rref_init(&o, &ctx), -ENODEV, "no usable device: shm:", "/proc",
			   "mount"));
	return 0;
}

static void init__no_proc(void **state)
{
	(void)state;
	run_or_skip(no_proc, NULL);
}

/* ---- a container's memory ---- */

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

#define GROUP_MIB 128

/* A cgroup of its own for this process, with GROUP_MIB; its folder goes to path. */
static int enter_group(char *path, size_t size)
{
	static const char *const kinds[][2] = {
		{ "/sys/fs/cgroup/memory", "memory.limit_in_bytes" },
		{ "/sys/fs/cgroup", "memory.max" },
	};

	for (size_t i = 0; i < array_size(kinds); i++) {
		char file[128], text[32];

		snprintf(path, size, "%.40s/rref-limits-%d", kinds[i][0], (int)getpid());
		if (mkdir(path, 0700))
			continue;
		snprintf(file, sizeof(file), "%.80s/%.30s", path, kinds[i][1]);
		snprintf(text, sizeof(text), "%zu", GROUP_MIB * MIB);
		if (!write_text(file, text)) {
			snprintf(file, sizeof(file), "%.80s/cgroup.procs", path);
			snprintf(text, sizeof(text), "%d", (int)getpid());
			if (!write_text(file, text))
				return 0;
		}
		rmdir(path);
	}
	return SKIPPED;
}

static int fill_group(const void *arg)
{
	struct rref_options o = options();
	char *bytes = malloc(4 * MIB);
	struct rref *refs[GROUP_MIB];
	struct rref_ctx *ctx;
	int n = 0;

	(void)arg;
	o.max_value_bytes = o.max_landing_bytes = 0;
	TG_CHECK(bytes);
	tg_fill(bytes, 4 * MIB, 1);
	TG_OK(rref_init(&o, &ctx));
	while (n < GROUP_MIB &&
	       works_or(rref_new(ctx, bytes, 4 * MIB, &refs[n]), -ENOMEM, "limit 64 MiB", "asked 4",
			"RREF_MAX_VALUE_BYTES"))
		n++;
	TG_CHECK(n >= 10 && n < 17);
	while (n)
		rref_release(refs[--n]);
	leave(ctx);
	return 0;
}

static int in_group(const void *arg)
{
	char path[256];
	int status;
	pid_t pid;

	(void)arg;
	pid = fork();
	if (!pid) {
		if (enter_group(path, sizeof(path)))
			_exit(SKIPPED);
		_exit(fill_group(NULL));
	}
	TG_IS(waitpid(pid, &status, 0), pid);
	snprintf(path, sizeof(path), "/sys/fs/cgroup/memory/rref-limits-%d", (int)pid);
	rmdir(path);
	snprintf(path, sizeof(path), "/sys/fs/cgroup/rref-limits-%d", (int)pid);
	rmdir(path);
	TG_CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void values__in_a_small_container(void **state)
{
	(void)state;
	/* The shadow of the thread sanitizer is several times the
	 * memory that it watches, and counts. */
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs more memory than the container has\n");
		skip();
	}
	run_or_skip(in_group, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(calls__little_data),
		cmocka_unit_test(init__connections_refused),
		cmocka_unit_test(init__few_addresses),
		cmocka_unit_test(init__few_descriptors),
		cmocka_unit_test(init__few_descriptors_at_the_rendezvous),
		cmocka_unit_test(init__few_threads),
		cmocka_unit_test(init__little_locked_memory),
		cmocka_unit_test(init__no_proc),
		cmocka_unit_test(init__no_tmp),
		cmocka_unit_test(init__read_only_tmp),
		cmocka_unit_test(init__system_calls_refused),
		cmocka_unit_test(reads__short_files),
		cmocka_unit_test(trace__short_files),
		cmocka_unit_test(values__few_descriptors),
		cmocka_unit_test(values__in_a_small_container),
		cmocka_unit_test(values__short_files),
		cmocka_unit_test(values__small_in_short_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
