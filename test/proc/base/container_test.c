/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits that a container sets: refused system calls, missing or read-only folders, and memory.
 * Each is set in a separate process, as in limits_test.c.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "limits.h"

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
	/* No reason of another provider stands in its place. */
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

/* Checks that a text which quotes another one has it whole, with the remedy at its end. */
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

/* Enters a mount namespace of its own. Returns SKIPPED if that is not allowed. */
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
	/* The root becomes an empty folder without /tmp. */
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

/* Puts this process into its own cgroup with GROUP_MIB, and writes the cgroup's folder to path. */
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
		cmocka_unit_test(init__connections_refused),
		cmocka_unit_test(init__no_proc),
		cmocka_unit_test(init__no_tmp),
		cmocka_unit_test(init__read_only_tmp),
		cmocka_unit_test(init__system_calls_refused),
		cmocka_unit_test(values__in_a_small_container),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
