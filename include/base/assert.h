/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assertions of invariants, for the library's own mistakes alone: a user's and a peer's mistakes
 * get an error. They are in the library that the tests link, and in one made with CHECKED=1.
 * Elsewhere they are compiled and not run, so a condition must have no effect of its own. Only
 * rb_require runs everywhere.
 */
#ifndef RREF_BASE_ASSERT_H
#define RREF_BASE_ASSERT_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/atomic.h"

/* Prints file, line, function, condition and values to stderr, and aborts. */
void rb_assert_failed(const char *file, int line, const char *function, const char *condition,
		      const char *values, ...)
	__attribute__((noreturn, cold, format(printf, 5, 6)));

#ifdef RREF_CHECKED
#define RB_CHECKED 1
#define RB_ASSERT_OR(cond, ...) \
	(likely(cond) ? (void)0 : rb_assert_failed(__FILE__, __LINE__, __func__, __VA_ARGS__))
#else
#define RB_CHECKED 0
#define RB_ASSERT_OR(cond, ...) ((void)(0 && (cond)))
#endif

/*
 * Guards memory in every build: ends the process before it writes past an array, or hands a place
 * out twice. For places off the read path.
 */
#if defined(RREF_CHECKED)
#define rb_require(cond) rb_assert(cond)
#else
#define rb_require(cond) (likely(cond) ? (void)0 : abort())
#endif

/* Asserts the condition. */
#define rb_assert(cond) RB_ASSERT_OR(cond, #cond, "%s", "")

/* Asserts the condition; a failure prints the values too, as printf does. */
#define rb_assert_with(cond, ...) RB_ASSERT_OR(cond, #cond, __VA_ARGS__)

/* Asserts that two integers are as the operator says, as in rb_assert_is(used, <=, max). */
#define rb_assert_is(a, op, b) \
	RB_ASSERT_OR((a)op(b), #a " " #op " " #b, "%lld, %lld", (long long)(a), (long long)(b))

/* Asserts that the one condition implies the other. */
#define rb_assert_if(a, b) RB_ASSERT_OR(!(a) || (b), #a " implies " #b, "%s", "")

#endif
