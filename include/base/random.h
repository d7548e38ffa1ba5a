/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random numbers, from the kernel. They become nonces, keys and remote addresses. No two processes
 * may ever have the same, not even parent and child. A program may shut itself in (seccomp) after
 * set-up and lose getrandom(2). From then on they come from a key that was taken before.
 */
#ifndef RREF_BASE_RANDOM_H
#define RREF_BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/*
 * [any] Prepares random numbers, before the first context of a process and again in each child.
 * Returns 0, or -errno: getrandom(2) does not work.
 */
int rb_random_begin(void);

void rb_random(void *buf, size_t length);

/* Returns random bits from a stock of each thread: one system call for 32 words. */
uint64_t rb_random64(void);

#endif
