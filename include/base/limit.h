/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of the system, in words. A call that fails names the limit that it met, its value, and
 * what to do about it; strerror alone ("Too many open files") says neither. Of no layer: all of
 * them meet limits.
 */
#ifndef BASE_LIMIT_H
#define BASE_LIMIT_H

#include <stddef.h>

/*
 * Why `call` failed with the positive errno err; bytes: how much was asked for, 0 if that says
 * nothing. Borrowed until the thread's next call of this. errno stays as it is.
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
 * Asked before a file gets so long: beyond RLIMIT_FSIZE the kernel would end the process by
 * SIGXFSZ. 0, or -1 with errno EFBIG.
 */
int limit_file(size_t bytes);

/*
 * The memory that this process may use: that of the machine, or the least limit of its memory
 * cgroups (version 1 and 2) and of those above them.
 */
size_t limit_memory(void);

/* The cgroups' part alone, by files in place of /proc/self's two. SIZE_MAX: no limit. */
size_t limit_cgroup(const char *cgroup_file, const char *mountinfo_file);

#endif
