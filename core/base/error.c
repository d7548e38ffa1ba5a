/* SPDX-License-Identifier: Apache-2.0 */
/* Error texts: the thread's last failure, and the meaning of each errno in this library. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limit.h"
#include "base/util.h"
#include "core/base/error.h"
#include "rref.h"

static _Thread_local struct rc_error own;
/* the scratch that rc_error_aside put in place of own; NULL: no scratch */
static _Thread_local struct rc_error *aside;

static struct rc_error *last(void)
{
	return aside ? aside : &own;
}

/* Says what malloc may have met. A text that names a limit says enough. */
static void add_limit(void)
{
	const char *why = limit_why_no_memory();
	size_t n = strlen(last()->text);

	if (*why && !strstr(last()->text, "limit"))
		snprintf(last()->text + n, sizeof(own.text) - n, ": %s", why);
}

int rc_fail(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(last()->text, sizeof(own.text), fmt, ap);
	va_end(ap);
	if (err == ENOMEM)
		add_limit();
	last()->err = -err;
	last()->about = 0;
	last()->answered = false;
	return -err;
}

int rc_fail_about(int err, const char *text, unsigned about, bool answered)
{
	/*
	 * Passes over the thread's own text, handed round: snprintf must not read the bytes it
	 * writes.
	 */
	if (text != last()->text)
		snprintf(last()->text, sizeof(own.text), "%s", text);
	last()->err = err;
	last()->about = (uint16_t)about;
	last()->answered = answered;
	return err;
}

int rc_fail_text(int err, const char *text)
{
	return rc_fail_about(err, text, 0, false);
}

const char *rc_error_text(void)
{
	return last()->text;
}

void rc_error_forget(void)
{
	last()->err = 0;
}

const struct rc_error *rc_error(void)
{
	return last();
}

unsigned rc_error_about(int err)
{
	return last()->err == err ? last()->about : 0;
}

void rc_error_concerns(unsigned rank)
{
	last()->about = (uint16_t)(rank + 1);
}

void rc_error_clear(void)
{
	last()->err = 0;
	last()->about = 0;
	last()->answered = false;
	last()->text[0] = 0;
}

void rc_error_aside(struct rc_error *scratch)
{
	scratch->err = 0;
	scratch->about = 0;
	scratch->answered = false;
	scratch->text[0] = 0;
	scratch->outer = aside;
	aside = scratch;
}

void rc_error_back(const struct rc_error *scratch)
{
	aside = scratch->outer;
}

const char *rref_last_error(void)
{
	return last()->text;
}

int rref_last_error_detail(struct rref_error *out)
{
	struct rref_error e = { .wc_status = -1, .peer = -1 };

	/* Fails without a text: a text would become the last error. */
	if (!out || out->size < sizeof(size_t))
		return -EINVAL;
	e.err = last()->err;
	e.peer = (int)last()->about - 1;
	e.flags = last()->answered ? RREF_ERROR_ANSWERED : 0;
	snprintf(e.text, sizeof(e.text), "%.*s", (int)sizeof(e.text) - 1, last()->text);
	rc_error_tell(&e, out);
	return 0;
}

void rc_error_tell(struct rref_error *e, struct rref_error *out)
{
	size_t size = out->size, n = min_of(size, sizeof(*e));

	e->size = size;
	/* Cuts the text off, with its NUL, if the program's struct has a shorter text. */
	if (n > offsetof(struct rref_error, text) && n < offsetof(struct rref_error, flags))
		((char *)e)[n - 1] = 0;
	memcpy(out, e, n);
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
