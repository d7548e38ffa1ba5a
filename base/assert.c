/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a process whose library is in a state that cannot be. Empty without RREF_CHECKED. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/util.h"

#if RB_CHECKED

void rb_assert_failed(const char *file, int line, const char *function, const char *condition,
		      const char *values, ...)
{
	char text[1024], with[256];
	va_list args;
	int n;

	va_start(args, values);
	vsnprintf(with, sizeof(with), values, args);
	va_end(args);
	n = snprintf(text, sizeof(text), "librref[%d]: %s:%d: %s: assertion failed: %s%s%s\n",
		     (int)getpid(), file, line, function, condition, *with ? ": " : "", with);
	/* Writes once: other processes write beside this one, and stdio's lock may be held. */
	if (write(STDERR_FILENO, text, min_of((size_t)n, sizeof(text) - 1)) < 0)
		abort();
	abort();
}

#endif
