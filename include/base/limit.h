/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of the system, in words. A failed call names the limit that it met, its value, and the
 * remedy. strerror alone ("Too many open files") says neither. The file belongs to no layer: all of
 * them meet limits.
 */
#ifndef BASE_LIMIT_H
#define BASE_LIMIT_H

#include <stddef.h>

/*
 * Returns why `call` failed with the positive errno err. bytes is the size that was asked for, 0 if
 * that says nothing. Borrowed until the thread's next call. errno stays as it is.
 */
const char *limit_why(const char *call, int err, size_t bytes);

/* A hint for a failed malloc: the limit that it may have met, or "". Borrowed as above. */
const char *limit_why_no_memory(void);

/*
 * The positive errno that the public header promises: ENOMEM for limits, EIO where the system
 * refuses a call. Others stay as they are.
 */
int limit_errno(int err);

/*
 * Checks a file's length before the file grows: beyond RLIMIT_FSIZE the kernel would end the
 * process by SIGXFSZ. Returns 0, or -1 with errno EFBIG.
 */
int limit_file(size_t bytes);

/*
 * Returns the memory that this process may use. This is the machine's memory, or a limit of a
 * memory cgroup or of its parents (version 1 or 2).
 */
size_t limit_memory(void);

/* The cgroups' part alone, by files in place of /proc/self's two. SIZE_MAX: no limit. */
size_t limit_cgroup(const char *cgroup_file, const char *mountinfo_file);

#endif
