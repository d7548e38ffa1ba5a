/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An asymmetric barrier. Many threads mark something as in use, each in a place of its own, and
 * then look whether they may. Seldom one thread says that they may not, and then looks at the
 * marks:
 *
 *   each of the many:  ra_asym_mark(&mark, 1);  if (at_load_sc(&closed)) ...
 *   the one:           at_store_sc(&closed, 1);  ra_asym_barrier();  if (at_load_sc(&mark)) ...
 *
 * At least one of the two sees the other. That needs a store ordered before a load, which costs a
 * processor some 20 cycles. The many leave it to the one: by membarrier(2) it makes every running
 * thread of the process pass a barrier. Without this call, the many make the barrier themselves.
 *
 * Marks are taken away by a release store, which the one's look acquires. So the thread sanitizer
 * sees every order.
 */
#ifndef RA_ASYM_H
#define RA_ASYM_H

#include "base/atomic.h"
#include "base/fast.h"

/*
 * The side that makes the barrier. MARKS: always the many marking threads. LOOKS: the one thread
 * that looks. MARKS_NOW: the many from some moment on.
 */
enum { RA_ASYM_MARKS, RA_ASYM_LOOKS, RA_ASYM_MARKS_NOW };
extern _Atomic uint32_t ra_asym_who;

/*
 * [any, may block] Prepares the barrier, before the first mark. Without it marks work as well, but
 * slower.
 */
void ra_asym_begin(void);

/* Returns true if the thread that looks makes the barrier. */
static inline bool ra_asym_is_plain(void)
{
	return RB_FAST(at_load(&ra_asym_who) == RA_ASYM_LOOKS);
}

/*
 * [wait-free] Sets a mark; the compiler keeps the order. The thread that looks makes the processors
 * keep it.
 */
#define ra_asym_mark_plain(p, v) \
	do { \
		at_store((p), (v)); \
		__asm__ volatile("" : : : "memory"); \
	} while (0)

/* [wait-free] Sets a mark, and makes the barrier itself if no other thread makes it. */
#define ra_asym_mark(p, v) \
	do { \
		if (likely(ra_asym_is_plain())) \
			ra_asym_mark_plain((p), (v)); \
		else \
			at_store_sc((p), (v)); \
	} while (0)

/*
 * [any, may block] Makes the barrier. Returns whether the next barrier will be as cheap; false: the
 * marking threads had better make it.
 */
bool ra_asym_barrier(void);

#endif
