/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mark of a fast path. The code that it guards has a general way beside it, which does the same
 * for every case. RB_FAST(condition) chooses the fast way. In a build with RREF_NOFAST each mark
 * says no. The tests of `make check-nofast` show that the general ways suffice.
 *
 *	if (RB_FAST(is_simple(m)))
 *		return do_simple(m);
 *	return do_any(m);
 */
#ifndef RB_FAST_H
#define RB_FAST_H

#ifdef RREF_NOFAST
#define RB_FAST(condition) (0 && (condition))
#else
#define RB_FAST(condition) (condition)
#endif

#endif
