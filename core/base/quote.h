/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Foreign bytes for people. Bytes of a peer, a file name or the environment must not steer a
 * terminal or a log.
 */
#ifndef RC_QUOTE_H
#define RC_QUOTE_H

#include <stddef.h>

/*
 * Copies at most size - 1 bytes, everything but printable ASCII as '?', "..." where it was cut.
 * Returns out. size >= 4.
 */
static inline const char *rc_quote(char *out, size_t size, const void *bytes, size_t length)
{
	const unsigned char *s = bytes;
	size_t n = length < size ? length : size - 1;

	for (size_t i = 0; i < n; i++)
		out[i] = s[i] >= 0x20 && s[i] < 0x7f ? (char)s[i] : '?';
	if (n < length)
		for (size_t i = n - 3; i < n; i++)
			out[i] = '.';
	out[n] = '\0';
	return out;
}

#endif
