/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory objects. They cannot shrink under a reader, to which a shrunk file is a SIGBUS.
 * Readers get them so that they cannot map them writable.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/limit.h"
#include "shm.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Makes a zeroed memfd of that size, mapped read-write. */
int rvs_memfd(const char *name, size_t size, int *fd_out, void **map_out)
{
	int rc, fd;
	void *map;

	fd = RB_OPEN(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (fd < 0) {
		rc = errno;
		return rv_fail(rc, "shm: %s", limit_why("memfd_create", rc, 0));
	}
	if (limit_file(size) || ftruncate(fd, (off_t)size)) {
		rc = rv_fail(errno, "shm: %s", limit_why(name, errno, size));
		goto close_fd;
	}
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		/* EAGAIN is a limit too, on locked memory; to the core it means "come again". */
		rc = rv_fail(errno == EAGAIN ? ENOMEM : errno, "shm: %s",
			     limit_why("mmap", errno, size));
		goto close_fd;
	}
	rb_not_in_child(map, size);
	*fd_out = fd;
	*map_out = map;
	return 0;

close_fd:
	rb_close(fd);
	return rc;
}

/*
 * Fixes the size of a memory file. With only_reader no process can map it writable from now on;
 * this process keeps its own mapping. Kernels before 5.1 do not know that last seal and leave it
 * out. Returns 0, or -errno if the size is not fixed. A file that is sealed already keeps the seals
 * that it has.
 */
int rvs_seal(int fd, bool only_reader)
{
	int size = F_SEAL_SHRINK | F_SEAL_GROW, seals, err;

	if (only_reader && !fcntl(fd, F_ADD_SEALS, size | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL))
		return 0;
	if (!fcntl(fd, F_ADD_SEALS, size | F_SEAL_SEAL))
		return 0;
	err = errno;
	seals = fcntl(fd, F_GET_SEALS);
	return seals >= 0 && (seals & F_SEAL_SHRINK) ? 0 : -err;
}

/* Opens a second descriptor of the file that cannot write, to be handed to peers. */
int rvs_reopen_ro(int fd)
{
	char path[32];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = RB_OPEN(open(path, O_RDONLY | O_CLOEXEC));
	if (ro < 0 && rvs_lacks_fd(errno))
		return rvs_fail_fds(errno, "no descriptor to hand memory over with");
	if (ro < 0)
		return rv_fail(errno, "shm: re-opening read-only: %s%s", limit_why(path, errno, 0),
			       errno == ENOENT ? " (mount /proc)" : "");
	return ro;
}

/*
 * Checks a descriptor of a peer. It must be a memory file of at least that size. It must not
 * shrink, since a look behind its end is a SIGBUS. Its pages must be the machine's: the kernel
 * rounds mappings of larger pages up, over the memory behind them. Only memory files have this
 * seal, so no file system of the peer's making passes.
 */
int rvs_check_fd(int fd, size_t size)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct statfs fs;
	struct stat st;

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) || st.st_size < 0 ||
	    (uint64_t)st.st_size < size)
		return -EPROTO;
	if (fstatfs(fd, &fs) || fs.f_type != TMPFS_MAGIC || fs.f_bsize != sysconf(_SC_PAGESIZE))
		return -EPROTO;
	return 0;
}
