/* SPDX-License-Identifier: Apache-2.0 */
/* The calling thread's last failure. */
#include <stdarg.h>
#include <stdio.h>

#include "alloc/ra_internal.h"
#include "base/util.h"

static _Thread_local char error_text[320];

int ra_fail(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error_text, sizeof(error_text), fmt, ap);
	va_end(ap);
	return err;
}

const char *ra_error_text(void)
{
	return error_text;
}

/* Gives bytes / 2^shift in tenths, rounded. */
static size_t tenths(size_t bytes, unsigned shift)
{
	size_t rest = bytes & (((size_t)1 << shift) - 1);

	return (bytes >> shift) * 10 + ((rest * 10 + ((size_t)1 << shift) / 2) >> shift);
}

struct ra_size ra_size_text(size_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	struct ra_size s;
	unsigned u = 0;

	while (u < 4 && bytes >= (size_t)1024 << (10 * u))
		u++;
	/*
	 * A bound of 1.5 GiB reads better as 1536 MiB: exact, and comparable with the other sizes
	 * in the sentence. An odd size (17825793) gets a rounded decimal instead.
	 */
	if (bytes % ((size_t)1 << (10 * u)) == 0)
		snprintf(s.text, sizeof(s.text), "%zu %s", bytes >> (10 * u), units[u]);
	else if (bytes % ((size_t)1 << (10 * (u - 1))) == 0)
		snprintf(s.text, sizeof(s.text), "%zu %s", bytes >> (10 * (u - 1)), units[u - 1]);
	else
		snprintf(s.text, sizeof(s.text), "%s %s",
			 decimal_text((int64_t)tenths(bytes, 10 * u), 1).text, units[u]);
	return s;
}
