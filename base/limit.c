/* SPDX-License-Identifier: Apache-2.0 */
#include "base/limit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static _Thread_local char text[256];

struct size {
	char text[24];
};

static struct size size_text(unsigned long long bytes)
{
	struct size s;

	if (bytes >= 1 << 20)
		snprintf(s.text, sizeof(s.text), "%llu MiB", bytes >> 20);
	else if (bytes >= 1 << 10)
		snprintf(s.text, sizeof(s.text), "%llu KiB", bytes >> 10);
	else
		snprintf(s.text, sizeof(s.text), "%llu B", bytes);
	return s;
}

/* Returns whether there is such a limit, and its value. */
static bool limited(int what, unsigned long long *value)
{
	struct rlimit r;

	if (getrlimit((__rlimit_resource_t)what, &r) || r.rlim_cur == RLIM_INFINITY)
		return false;
	*value = r.rlim_cur;
	return true;
}

/*
 * Tells whether new memory counts against RLIMIT_MEMLOCK, as after mlockall(MCL_FUTURE). The page
 * is for that alone: nothing else may be locked yet.
 */
static bool has_locked(void)
{
	void *page = mmap(NULL, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool refused = page == MAP_FAILED && errno == EAGAIN;
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	char status[4096] = "";
	const char *at = NULL;

	if (fd >= 0 && read(fd, status, sizeof(status) - 1) > 0)
		at = strstr(status, "VmLck:");
	if (fd >= 0)
		close(fd);
	if (page != MAP_FAILED)
		munmap(page, 1);
	return refused || (at && strtoull(at + strlen("VmLck:"), NULL, 10));
}

static struct size limit_text(int what)
{
	unsigned long long value = 0;

	limited(what, &value);
	return size_text(value);
}

static void no_descriptors(const char *call)
{
	struct rlimit r = { 0, 0 };

	getrlimit(RLIMIT_NOFILE, &r);
	snprintf(text, sizeof(text),
		 "%s: no descriptor is left of %llu (RLIMIT_NOFILE): raise it by 'ulimit -n', up "
		 "to %llu",
		 call, (unsigned long long)r.rlim_cur, (unsigned long long)r.rlim_max);
}

static void no_addresses(const char *call, size_t bytes)
{
	unsigned long long value;

	if (limited(RLIMIT_AS, &value))
		snprintf(text, sizeof(text),
			 "%s of %s: addresses are limited to %s (RLIMIT_AS): raise it by "
			 "'ulimit -v', or lower max_value_bytes and max_landing_bytes",
			 call, size_text(bytes).text, size_text(value).text);
	else
		snprintf(text, sizeof(text),
			 "%s of %s: no memory, or too many mappings (sysctl vm.max_map_count)",
			 call, size_text(bytes).text);
}

/*
 * Names the limit behind a thread that could not start: the user's threads, or memory for its
 * stack.
 */
static void no_threads(const char *call)
{
	char nproc[64] = "", memory[64] = "";
	unsigned long long value;

	if (limited(RLIMIT_NPROC, &value))
		snprintf(nproc, sizeof(nproc), "RLIMIT_NPROC is %llu ('ulimit -u'), ", value);
	if (limited(RLIMIT_AS, &value))
		snprintf(memory, sizeof(memory), "RLIMIT_AS %s ('ulimit -v'), ",
			 size_text(value).text);
	else if (limited(RLIMIT_DATA, &value))
		snprintf(memory, sizeof(memory), "RLIMIT_DATA %s ('ulimit -d'), ",
			 size_text(value).text);
	else if (limited(RLIMIT_MEMLOCK, &value) && has_locked())
		snprintf(memory, sizeof(memory), "RLIMIT_MEMLOCK %s ('ulimit -l'), ",
			 size_text(value).text);
	snprintf(text, sizeof(text),
		 "%s: a limit on threads: %s%sor pids.max of the container: raise it", call, nproc,
		 memory);
}

const char *limit_why(const char *call, int err, size_t bytes)
{
	int saved = errno;
	char words[96];

	if (err == EMFILE)
		no_descriptors(call);
	else if (err == ENFILE)
		snprintf(text, sizeof(text),
			 "%s: the system has no descriptor left: raise it by 'sysctl fs.file-max'",
			 call);
	else if (err == EFBIG)
		snprintf(text, sizeof(text),
			 "%s to %s: files, and so shared memory, are limited to %s (RLIMIT_FSIZE): "
			 "raise it by 'ulimit -f'",
			 call, size_text(bytes).text, limit_text(RLIMIT_FSIZE).text);
	else if (err == ENOMEM && bytes)
		no_addresses(call, bytes);
	else if (err == EAGAIN && !strcmp(call, "pthread_create"))
		no_threads(call);
	else if (err == EAGAIN && bytes)
		snprintf(text, sizeof(text),
			 "%s of %s: locked memory is limited to %s (RLIMIT_MEMLOCK): raise it by "
			 "'ulimit -l', or lower max_value_bytes and max_landing_bytes",
			 call, size_text(bytes).text, limit_text(RLIMIT_MEMLOCK).text);
	else if (err == EPERM || err == ENOSYS || err == EACCES)
		snprintf(text, sizeof(text),
			 "%s: refused by the system (%s): a container's seccomp profile must allow "
			 "it",
			 call, strerror_r(err, words, sizeof(words)));
	else if (err == EROFS)
		snprintf(text, sizeof(text),
			 "%s: the file system can only be read: mount it writable", call);
	else if (err == ENOSPC && !strcmp(call, "epoll_ctl"))
		snprintf(text, sizeof(text),
			 "%s: too many descriptors are watched for this user: raise it by 'sysctl "
			 "fs.epoll.max_user_watches'",
			 call);
	else if (err == ENOSPC || err == EDQUOT)
		snprintf(text, sizeof(text), "%s: no room is left there, or by its quota", call);
	else
		snprintf(text, sizeof(text), "%s: %s", call, strerror_r(err, words, sizeof(words)));
	errno = saved;
	return text;
}

const char *limit_why_no_memory(void)
{
	unsigned long long value;
	int saved = errno;

	text[0] = '\0';
	if (limited(RLIMIT_AS, &value))
		snprintf(text, sizeof(text),
			 "addresses are limited to %s (RLIMIT_AS): raise it by 'ulimit -v'",
			 size_text(value).text);
	else if (limited(RLIMIT_DATA, &value))
		snprintf(text, sizeof(text),
			 "data is limited to %s (RLIMIT_DATA): raise it by 'ulimit -d'",
			 size_text(value).text);
	else if (limited(RLIMIT_MEMLOCK, &value) && has_locked())
		snprintf(text, sizeof(text),
			 "locked memory is limited to %s (RLIMIT_MEMLOCK): raise it by 'ulimit -l'",
			 size_text(value).text);
	errno = saved;
	return text;
}

int limit_errno(int err)
{
	switch (err) {
	case EMFILE:
	case ENFILE:
	case EFBIG:
	case ENOSPC:
	case ENOBUFS:
		return ENOMEM;
	case EPERM:
	case ENOSYS:
	case EROFS:
		return EIO;
	default:
		return err;
	}
}

int limit_file(size_t bytes)
{
	unsigned long long value;

	if (!limited(RLIMIT_FSIZE, &value) || bytes <= value)
		return 0;
	errno = EFBIG;
	return -1;
}

/* ---- memory cgroups ---- */

static size_t read_limit(const char *folder, const char *name)
{
	unsigned long long value = 0;
	char path[8192 + 64];
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "re");
	if (!f)
		return SIZE_MAX;
	n = fscanf(f, "%llu", &value); /* "max" is no number */
	fclose(f);
	return n == 1 ? (size_t)value : SIZE_MAX;
}

/* Returns the least limit of path and of all above it, up to the mount point. */
static size_t least_above(char *path, size_t mount_length, const char *name)
{
	size_t least = SIZE_MAX;

	for (;;) {
		size_t here = read_limit(path, name);
		char *slash = strrchr(path, '/');

		least = here < least ? here : least;
		if (!slash || (size_t)(slash - path) < mount_length)
			return least;
		*slash = '\0';
	}
}

/* Tells whether a comma list has that controller; "" is the only one of an empty list. */
static bool has_controller(char *names, const char *controller)
{
	const char *one;

	if (!*controller)
		return !*names;
	while ((one = strsep(&names, ",")))
		if (!strcmp(one, controller))
			return true;
	return false;
}

/*
 * Finds this process' path in the hierarchy of that controller; "" is version 2's. Returns NULL, or
 * the path, which lies in buf.
 */
static const char *own_path(const char *cgroup_file, const char *controller, char *buf, size_t size)
{
	FILE *f = fopen(cgroup_file, "re");
	const char *found = NULL;

	while (f && !found && fgets(buf, (int)size, f)) {
		char *names = strchr(buf, ':'), *path = names ? strchr(names + 1, ':') : NULL;

		buf[strcspn(buf, "\n")] = '\0';
		if (!path || path[1] != '/')
			continue;
		*path++ = '\0';
		if (has_controller(names + 1, controller))
			found = path;
	}
	if (f)
		fclose(f);
	return found;
}

/* Reads one line of mountinfo. Returns whether it mounts a hierarchy that limits memory. */
static bool mounts_memory(const char *line, char root[4096], char mount[4096], bool *v1)
{
	const char *rest = strstr(line, " - ");
	char type[32], options[512];

	if (!rest || sscanf(line, "%*s %*s %*s %4095s %4095s", root, mount) != 2 ||
	    sscanf(rest, " - %31s %*s %511s", type, options) != 2)
		return false;
	*v1 = !strcmp(type, "cgroup");
	return *v1 ? strstr(options, "memory") != NULL : !strcmp(type, "cgroup2");
}

/* Returns the least limit of the hierarchy that a line of mountinfo mounts, or SIZE_MAX. */
static size_t mount_limit(const char *line, const char *cgroup_file)
{
	char root[4096], mount[4096], buf[4096], path[8192];
	const char *own;
	bool v1;

	if (!mounts_memory(line, root, mount, &v1))
		return SIZE_MAX;
	own = own_path(cgroup_file, v1 ? "memory" : "", buf, sizeof(buf));
	if (!own)
		return SIZE_MAX;
	/* A container's mount may begin at the process' own group, which its path names all the
	 * same. */
	if (strcmp(root, "/") && !strncmp(own, root, strlen(root)))
		own += strlen(root);
	snprintf(path, sizeof(path), "%.4000s%.4000s", mount, own);
	while (*path && path[strlen(path) - 1] == '/')
		path[strlen(path) - 1] = '\0';
	return least_above(path, strlen(mount), v1 ? "memory.limit_in_bytes" : "memory.max");
}

size_t limit_cgroup(const char *cgroup_file, const char *mountinfo_file)
{
	FILE *f = fopen(mountinfo_file, "re");
	size_t least = SIZE_MAX, length = 0;
	char *line = NULL;

	while (f && getline(&line, &length, f) > 0) {
		size_t here = mount_limit(line, cgroup_file);

		least = here < least ? here : least;
	}
	free(line);
	if (f)
		fclose(f);
	return least;
}

size_t limit_memory(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
	size_t physical = pages > 0 && page > 0 ? (size_t)pages * (size_t)page : (size_t)1 << 30;
	size_t group = limit_cgroup("/proc/self/cgroup", "/proc/self/mountinfo");

	return group < physical ? group : physical;
}
