/* SPDX-License-Identifier: Apache-2.0 */
/* A program that shuts itself in: the system refuses it membarrier(2) after this. */
#ifndef TL_MEMBARRIER_H
#define TL_MEMBARRIER_H

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

/* Makes the system refuse membarrier. With `trap_affinity` the program's own handler (SIGSYS) has
 * to do sched_setaffinity. Returns whether that worked. */
static inline bool tl_refuse_membarrier(bool trap_affinity)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
			 trap_affinity ? SYS_sched_setaffinity : UINT32_MAX, 2, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
	};
	struct sock_fprog prog = { .len = array_size(f), .filter = f };

	/* All threads are meant: the library's threads exist already. */
	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog) &&
	       syscall(SYS_membarrier, 0, 0, 0) < 0 && errno == EPERM;
}

#endif
