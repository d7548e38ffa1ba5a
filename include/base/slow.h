/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slow work under the progress lock. The lock is held for a step, or for some looks at queues. Work
 * that may take longer is marked where it is done. The library that the tests link counts the holds
 * of the lock in which marked work was done. It also adds them up in a file that all processes of a
 * test run share (RREF_TEST_HOLDS, docs/TESTING.md). In other builds the marks are nothing.
 */
#ifndef RREF_BASE_SLOW_H
#define RREF_BASE_SLOW_H

#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"

/* Kinds of slow work. base/slow.c has their names. */
enum rb_slow_kind {
	RB_SLOW_QP_CREATE, /* ibv_create_qp, and so on */
	RB_SLOW_QP_MODIFY,
	RB_SLOW_QP_DESTROY,
	RB_SLOW_QUERY, /* a question to a device or to the kernel's routes */
	RB_SLOW_REGISTER,
	RB_SLOW_DEREGISTER,
	RB_SLOW_CM, /* a call of rdma_cm that sends or waits */
	RB_SLOW_CM_DESTROY,
	RB_SLOW_MAP,
	RB_SLOW_UNMAP,
	RB_SLOW_GROW, /* an arena gets a region */
	RB_SLOW_GATHER, /* an arena gathers the memory of all threads */
	RB_SLOW_COPY, /* more than RB_SLOW_BYTES */
	RB_SLOW_SCRUB, /* the same */
	RB_SLOW_THREAD, /* a thread is started */
	RB_SLOW_HOOK, /* code of the program */
	RB_SLOW_SCOPE, /* the same, which is told of scopes */
	RB_SLOW_TRACE, /* a write to a file */
	RB_SLOW_WAIT, /* pauses until other threads are ready */
	RB_SLOW_RANKS, /* a loop over all workers of the group */
	RB_NR_SLOW
};

/* Copies and scrubs of more bytes are slow. */
#define RB_SLOW_BYTES ((size_t)64 << 10)

#if RB_CHECKED
/* Notes slow work of the calling thread. Counts it if the thread holds a progress lock. */
void rb_slow(enum rb_slow_kind kind);
/* Note that the thread takes a progress lock, and gives one back. */
void rb_hold_begin(void);
void rb_hold_end(void);
/* Notes that a loop over workers looks at one more. More than max in a hold are slow. */
void rb_slow_rank(unsigned max);
/* Returns the holds of this process in which work of that kind was done. */
uint64_t rb_slow_holds(enum rb_slow_kind kind);
/* Keeps the counts of this process out of the shared file, for a test that plants slow work. */
void rb_slow_alone(void);
#else
static inline void rb_slow(enum rb_slow_kind kind)
{
	(void)kind;
}
static inline void rb_slow_rank(unsigned max)
{
	(void)max;
}
#endif

/* Notes work on so many bytes, if they are many. */
static inline void rb_slow_bytes(enum rb_slow_kind kind, size_t bytes)
{
	if (RB_CHECKED && bytes > RB_SLOW_BYTES)
		rb_slow(kind);
}

#endif
