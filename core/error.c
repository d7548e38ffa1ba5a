/* SPDX-License-Identifier: Apache-2.0 */
/* Error texts: the thread's last failure, and what each errno means in this library. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "rc_error.h"
#include "rref.h"

static _Thread_local char error_text[RREF_TEXT_SIZE];

int rc_fail(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error_text, sizeof(error_text), fmt, ap);
	va_end(ap);
	return -err;
}

int rc_fail_text(int err, const char *text)
{
	/* The text may be this thread's own, handed round: snprintf must not read what it writes. */
	if (text != error_text)
		snprintf(error_text, sizeof(error_text), "%s", text);
	return err;
}

const char *rc_error_text(void)
{
	return error_text;
}

const char *rref_last_error(void)
{
	return error_text;
}

const char *rref_strerror(int err)
{
	static const struct {
		int err;
		const char *text;
	} words[] = {
		{ 0, "success" },
		{ EINVAL, "bad argument" },
		{ ESHUTDOWN, "the context was shut down" },
		{ ECHILD, "the context belongs to the parent process" },
		{ ENOMEM, "out of memory, or a limit was reached" },
		{ ETIMEDOUT, "timed out" },
		{ EOWNERDEAD, "the owner is dead or unreachable" },
		{ ENETRESET, "the session with the peer was cut off, though both live" },
		{ ESTALE, "the reference is not valid any more" },
		{ EKEYREVOKED, "access was revoked" },
		{ EBADMSG, "the data read failed its check" },
		{ EKEYREJECTED, "the peer does not hold the group's key" },
		{ EPROTO, "protocol error" },
		{ EPROTONOSUPPORT, "another protocol version" },
		{ EDQUOT, "quota exceeded" },
		{ EAGAIN, "too much in flight" },
		{ ENODEV, "no usable device" },
		{ ECANCELED, "cancelled" },
		{ EMSGSIZE, "too large" },
		{ ENOSYS, "unknown function" },
		{ EALREADY, "done already" },
		{ EBUSY, "busy: something is still in use" },
		{ EPERM, "only the owner can do this" },
		{ EPROTOTYPE, "the value is of another type" },
		{ EDEADLK, "not allowed from a callback or handler" },
		{ EEXIST, "exists already" },
		{ ENOENT, "no such entry" },
		{ ENOMSG, "the future holds nothing of this kind" },
		{ ECONNREFUSED, "connection refused" },
		{ EADDRINUSE, "address in use" },
		{ EACCES, "permission denied" },
		{ EOPNOTSUPP, "not possible with the device in use" },
		{ EFAULT, "the memory is not mapped, or no device may use it" },
	};

	/* Not abs(): the smallest int has no counterpart. */
	err = err < 0 && err != INT_MIN ? -err : err;
	for (size_t i = 0; i < array_size(words); i++)
		if (words[i].err == err)
			return words[i].text;
	/* GNU: the name is static, unlike strerror's text. */
	const char *name = strerrordesc_np(err);

	return name ? name : "unknown error";
}

const char *rref_version(void)
{
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
	return TEXT(RREF_VERSION_MAJOR) "." TEXT(RREF_VERSION_MINOR) "." TEXT(RREF_VERSION_PATCH);
}

unsigned rref_version_number(void)
{
	return RREF_VERSION_NUMBER;
}
