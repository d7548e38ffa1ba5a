/* SPDX-License-Identifier: Apache-2.0 */
/* The memory limit of cgroups of both versions, and the words
 * for limits that a process test cannot meet. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limit.h"

static char dir[64];

static void put(const char *path, const char *text)
{
	char full[256];
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", dir, path);
	for (char *slash = full + strlen(dir) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		mkdir(full, 0700);
		*slash = '/';
	}
	f = fopen(full, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

/* Writes the table of mounts; DIR stands for the folder of the test. */
static void put_mounts(const char *lines)
{
	char text[2048] = "";
	const char *at;

	while ((at = strstr(lines, "DIR"))) {
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "%.*s%s",
			 (int)(at - lines), lines, dir);
		lines = at + 3;
	}
	strcat(text, lines);
	put("mountinfo", text);
}

static size_t found(void)
{
	char cgroup[128], mountinfo[128];

	snprintf(cgroup, sizeof(cgroup), "%s/cgroup", dir);
	snprintf(mountinfo, sizeof(mountinfo), "%s/mountinfo", dir);
	return limit_cgroup(cgroup, mountinfo);
}

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/rref-limit-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -r '%s'", dir);
	return system(command);
}

static void limit__cgroup_of_version_2(void **state)
{
	(void)state;
	put("cgroup", "0::/user/job/step\n");
	put_mounts("25 30 0:22 / DIR/proc rw - proc proc rw\n31 23 0:28 / DIR/v2 rw,relatime - "
		   "cgroup2 cgroup2 rw\n");
	put("v2/user/job/step/memory.max", "max\n");
	assert_true(found() == SIZE_MAX);
	put("v2/user/job/memory.max", "268435456\n");
	assert_int_equal(found(), 268435456);
	put("v2/user/memory.max", "1073741824\n");
	assert_int_equal(found(), 268435456);
	put("v2/memory.max", "134217728\n");
	assert_int_equal(found(), 134217728);
	/* Of another group. */
	put("v2/user/job/other/memory.max", "4096\n");
	assert_int_equal(found(), 134217728);
}

static void limit__cgroup_of_version_1(void **state)
{
	(void)state;
	put("cgroup", "7:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n");
	put_mounts("34 31 0:31 / DIR/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / DIR/m rw - cgroup "
		   "cgroup rw,memory\n"
		   "36 31 0:33 / DIR/u rw - cgroup2 cgroup2 rw\n");
	put("m/a/b/memory.limit_in_bytes", "9223372036854771712\n");
	put("m/a/memory.limit_in_bytes", "536870912\n");
	put("cpu/a/memory.limit_in_bytes", "4096\n");
	assert_int_equal(found(), 536870912);
}

/* Reads a mount that begins at the container's own group, which
 * /proc/self/cgroup names from the top. */
static void limit__cgroup_in_a_container(void **state)
{
	(void)state;
	put("cgroup", "4:memory:/docker/abc/x\n");
	put_mounts("35 31 0:32 /docker/abc DIR/m rw - cgroup cgroup rw,memory\n");
	put("m/memory.limit_in_bytes", "67108864\n");
	assert_int_equal(found(), 67108864);
	put("m/x/memory.limit_in_bytes", "33554432\n");
	assert_int_equal(found(), 33554432);
}

static void limit__cgroup_files_missing_or_odd(void **state)
{
	(void)state;
	assert_true(found() == SIZE_MAX);
	put("cgroup", "nonsense\n:::\n0::/\n");
	put_mounts(
		"x\n - \n1 2 3 / DIR/v2 rw - cgroup2\n\n1 2 3 / DIR/v2 rw - cgroup2 cgroup2 rw\n");
	assert_true(found() == SIZE_MAX);
	put("v2/memory.max", "");
	assert_true(found() == SIZE_MAX);
	put("v2/memory.max", "8192");
	assert_int_equal(found(), 8192);
}

static void limit__is_at_most_the_machines_memory(void **state)
{
	(void)state;
	assert_in_range(limit_memory(), 1 << 20,
			(size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE));
}

static void limit__words(void **state)
{
	(void)state;
	errno = EXDEV;
	assert_non_null(strstr(limit_why("open", ENFILE, 0), "fs.file-max"));
	assert_non_null(strstr(limit_why("mmap", EAGAIN, 4096), "RLIMIT_MEMLOCK"));
	assert_non_null(strstr(limit_why("mmap", ENOMEM, 4096), "mmap of 4 KiB"));
	assert_non_null(strstr(limit_why("mmap", EAGAIN, 4096), "'ulimit -l'"));
	assert_non_null(strstr(limit_why("write", ENOSPC, 0), "no room"));
	assert_non_null(strstr(limit_why("epoll_ctl", ENOSPC, 0), "fs.epoll.max_user_watches"));
	assert_string_equal(limit_why("read", EISDIR, 0), "read: Is a directory");
	assert_int_equal(errno, EXDEV);
	assert_int_equal(limit_errno(EMFILE), ENOMEM);
	assert_int_equal(limit_errno(EPERM), EIO);
	assert_int_equal(limit_errno(ENODEV), ENODEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(limit__cgroup_files_missing_or_odd, setup,
						teardown),
		cmocka_unit_test_setup_teardown(limit__cgroup_in_a_container, setup, teardown),
		cmocka_unit_test_setup_teardown(limit__cgroup_of_version_1, setup, teardown),
		cmocka_unit_test_setup_teardown(limit__cgroup_of_version_2, setup, teardown),
		cmocka_unit_test(limit__is_at_most_the_machines_memory),
		cmocka_unit_test(limit__words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
