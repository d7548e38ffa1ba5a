/* SPDX-License-Identifier: Apache-2.0 */
#include "rv_error.h"

#include <stdarg.h>
#include <stdio.h>

#include "rv.h"

static _Thread_local char error_text[320];

int rv_fail(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error_text, sizeof(error_text), fmt, ap);
	va_end(ap);
	return -err;
}

const char *rv_error_text(void)
{
	return error_text;
}
