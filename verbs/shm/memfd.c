/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory objects: made so that they cannot shrink under whoever maps them (a shrunk file is a SIGBUS in its
 * reader), and handed to readers so that they cannot be mapped writable.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* A zeroed memfd of that size, mapped read-write. */
int rvs_memfd(const char *name, size_t size, int *fd_out, void **map_out)
{
	int rc, fd;
	void *map;

	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) {
		rc = errno;
		return rv_fail(rc, "shm: memfd_create(%s): %s", name, strerror(rc));
	}
	if (ftruncate(fd, (off_t)size)) {
		rc = rv_fail(errno, "shm: cannot size %s to %zu bytes: %s", name, size, strerror(errno));
		goto close_fd;
	}
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		rc = rv_fail(errno, "shm: cannot map %zu bytes of %s: %s", size, name, strerror(errno));
		goto close_fd;
	}
	*fd_out = fd;
	*map_out = map;
	return 0;

close_fd:
	close(fd);
	return rc;
}

/*
 * Fixes the size; only_reader: nobody can map it writable from now on (our own mapping stays). What cannot be sealed
 * stays as it is: a memfd made without MFD_ALLOW_SEALING, or a kernel before 5.1 for the last.
 */
int rvs_seal(int fd, bool only_reader)
{
	int size = F_SEAL_SHRINK | F_SEAL_GROW;

	if (only_reader && !fcntl(fd, F_ADD_SEALS, size | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL))
		return 0;
	return fcntl(fd, F_ADD_SEALS, size | F_SEAL_SEAL) ? -errno : 0;
}

/* A second descriptor of the file that cannot write: what is handed to peers. */
int rvs_reopen_ro(int fd)
{
	char path[32];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0)
		return rv_fail(errno, "shm: cannot re-open %s read-only: %s%s", path, strerror(errno),
			       errno == ENOENT ? " (is /proc mounted?)" : "");
	return ro;
}

/* Is what a peer handed over memory of at least that size, which cannot shrink? (Seals exist on memory files only.) */
int rvs_check_fd(int fd, size_t size, bool sealed)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || fstat(fd, &st) || st.st_size < 0 || (uint64_t)st.st_size < size)
		return -EPROTO;
	if (sealed && !(seals & F_SEAL_SHRINK))
		return -EPROTO;
	return 0;
}

/* Writing a wake-up must never block, which only an eventfd promises. */
bool rvs_is_eventfd(int fd)
{
	char path[32], link[32];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return false;
	link[n] = 0;
	return !strcmp(link, "anon_inode:[eventfd]");
}
