/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of workers and functions, and the device text: pure checks, each with words for the one who
 * typed it.
 */
#include <errno.h>
#include <string.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/group/group.h"

enum { NAME = 1, FUNCTION = 2 }; /* marks of the names in which a character may stand */

/* Not isalnum: peers compare names, so the characters of a name must not depend on the locale. */
static const uint8_t char_in[256] = {
	['A' ... 'Z'] = NAME | FUNCTION,
	['a' ... 'z'] = NAME | FUNCTION,
	['0' ... '9'] = NAME | FUNCTION,
	['_'] = NAME | FUNCTION,
	[':'] = NAME | FUNCTION,
	['-'] = NAME | FUNCTION,
	['.'] = FUNCTION,
};

static bool is_name_char(char c)
{
	return char_in[(unsigned char)c] & NAME;
}

static __attribute__((cold)) int explain(const char *what, const char *allowed, const char *name,
					 bool dot)
{
	char quoted[64];
	size_t length;

	if (!name)
		return rc_fail(EINVAL, "%s: NULL", what);
	length = strnlen(name, RREF_NAME_MAX + 1);
	rc_quote(quoted, sizeof(quoted), name, length);
	if (length == 0)
		return rc_fail(EINVAL, "%s: empty; 1 to %d of %s are allowed", what, RREF_NAME_MAX,
			       allowed);
	if (length > RREF_NAME_MAX)
		return rc_fail(EINVAL, "%s \"%s\": longer than %d bytes", what, quoted,
			       RREF_NAME_MAX);
	size_t i = 0;

	while (is_name_char(name[i]) || (dot && name[i] == '.'))
		i++;
	return rc_fail(EINVAL, "%s \"%s\": byte 0x%02x at %zu is not allowed, only %s are", what,
		       quoted, (unsigned)(unsigned char)name[i], i, allowed);
}

/* Returns the length of a good name, or 0. */
static inline size_t good_length(const char *name, uint8_t in)
{
	const unsigned char *p = (const unsigned char *)name;

	if (!p)
		return 0;
	while (char_in[*p] & in)
		p++;
	size_t length = (size_t)((const char *)p - name);

	return *p || length > RREF_NAME_MAX ? 0 : length;
}

int rc_name_check(const char *name)
{
	return good_length(name, NAME) ? 0 : explain("worker name", "A-Za-z0-9_:-", name, false);
}

int rc_function_length(const char *name)
{
	size_t length = good_length(name, FUNCTION);

	return likely(length) ? (int)length : explain("function name", "A-Za-z0-9_:.-", name, true);
}

int rc_function_check(const char *name)
{
	return min_of(rc_function_length(name), 0);
}

/* Reads digits only, min..max. Returns the number, or -1. */
static int small_number(const char *s, size_t length, int min, int max)
{
	int v = 0;

	if (length == 0 || length > 5)
		return -1;
	for (size_t i = 0; i < length; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -1;
		v = v * 10 + (s[i] - '0');
	}
	return v >= min && v <= max ? v : -1;
}

/* Takes the device's name, up to a colon or the end. Returns its length, or -errno. */
static int device_name_take(const char *text, const char *quoted, struct rc_device_choice *c)
{
	size_t length = strcspn(text, ":");

	if (!length || length >= sizeof(c->device))
		return rc_fail(EINVAL, "device \"%s\": the device's name must have 1 to %zu bytes",
			       quoted, sizeof(c->device) - 1);
	for (size_t i = 0; i < length; i++)
		if (!(is_name_char(text[i]) || text[i] == '.'))
			return rc_fail(
				EINVAL,
				"device \"%s\": byte 0x%02x is not allowed in a device's name",
				quoted, (unsigned)(unsigned char)text[i]);
	memcpy(c->device, text, length);
	return (int)length;
}

/* Reads ibv:<device>[:port[:gid-index]]. Verbs counts ports and GID indices in 8 bits. */
static int ibv_parse(const char *text, struct rc_device_choice *c)
{
	const char *rest;
	char quoted[96];
	int length;

	rc_quote(quoted, sizeof(quoted), text, strlen(text));
	if (strncmp(text, "ibv:", 4) != 0)
		return rc_fail(
			EINVAL,
			"device \"%s\": not auto, shm, ibv or ibv:<device>[:port[:gid-index]]",
			quoted);
	length = device_name_take(text + 4, quoted, c);
	if (length < 0)
		return length;
	rest = text + 4 + length;
	if (*rest) {
		const char *field = rest + 1;

		rest = strchrnul(field, ':');
		c->port = small_number(field, (size_t)(rest - field), 1, 255);
		if (c->port < 0)
			return rc_fail(EINVAL, "device \"%s\": the port must be a number, 1 to 255",
				       quoted);
	}
	if (*rest) {
		c->gid_index = small_number(rest + 1, strlen(rest + 1), 0, 255);
		if (c->gid_index < 0)
			return rc_fail(EINVAL,
				       "device \"%s\": the GID index must be a number, 0 to 255",
				       quoted);
	}
	return 0;
}

int rc_device_parse(const char *text, struct rc_device_choice *out)
{
	bool any = !text || strcmp(text, "auto") == 0;
	bool shm = any || strcmp(text, "shm") == 0;
	struct rc_device_choice c = {
		.must = !any, .use_shm = shm, .use_ibv = any || !shm, .gid_index = -1
	};

	if (!shm && strcmp(text, "ibv") != 0) {
		int err = ibv_parse(text, &c);

		if (err)
			return err;
	}
	*out = c;
	return 0;
}
