/* SPDX-License-Identifier: Apache-2.0 */
/* Records of a dump, as text or JSON. See observe/dump.h. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/observe/dump.h"

static bool record_room(struct rc_record *r, size_t n)
{
	size_t size = r->size ? r->size : 4096;
	char *buf;

	if (r->failed)
		return false;
	if (r->size - r->used > n)
		return true;
	while (size - r->used <= n)
		size *= 2;
	buf = realloc(r->buf, size);
	if (!buf) {
		r->failed = true;
		return false;
	}
	r->buf = buf;
	r->size = size;
	return true;
}

static void record_put(struct rc_record *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
static void record_put(struct rc_record *r, const char *fmt, ...)
{
	char text[160];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n <= 0 || !record_room(r, (size_t)n))
		return;
	memcpy(r->buf + r->used, text, (size_t)n + 1);
	r->used += (size_t)n;
}

static bool is_plain(const char *text)
{
	for (const char *p = text; *p; p++)
		if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			    "0123456789_-.:/@+[]",
			    *p))
			return false;
	return *text;
}

/*
 * Writes a text in quotes. Escapes each byte that is not printable ASCII, since some texts come
 * from peers (names of types).
 */
static void put_quoted(struct rc_record *r, const char *text)
{
	record_put(r, "\"");
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p == '"' || *p == '\\')
			record_put(r, "\\%c", *p);
		else if (*p < ' ' || *p > '~')
			record_put(r, "\\u%04x", *p);
		else
			record_put(r, "%c", *p);
	}
	record_put(r, "\"");
}

static void key_of(struct rc_record *r, const char *key)
{
	record_put(r, r->json ? ",\"%s\":" : " %s=", key);
}

void rc_rec_begin(struct rc_record *r, const char *kind)
{
	record_put(r, r->json ? "{\"kind\":\"%s\"" : "%-6s", kind);
}

void rc_rec_end(struct rc_record *r)
{
	record_put(r, r->json ? "}\n" : "\n");
}

void rc_rec_text(struct rc_record *r, const char *key, const char *text)
{
	if (!text)
		return;
	key_of(r, key);
	if (!r->json && is_plain(text))
		for (const char *p = text; *p; p += strnlen(p, 100))
			record_put(r, "%.100s", p);
	else
		put_quoted(r, text);
}

void rc_rec_number(struct rc_record *r, const char *key, uint64_t value)
{
	key_of(r, key);
	record_put(r, "%" PRIu64, value);
}

void rc_rec_signed(struct rc_record *r, const char *key, int64_t value)
{
	key_of(r, key);
	record_put(r, "%" PRId64, value);
}

void rc_rec_flag(struct rc_record *r, const char *key, bool is)
{
	if (!is)
		return;
	if (r->json)
		record_put(r, ",\"%s\":true", key);
	else
		record_put(r, " %s", key);
}

void rc_rec_id(struct rc_record *r, const char *key, struct rref_id id)
{
	key_of(r, key);
	record_put(r, r->json ? "[%u,%" PRIu64 "]" : "(%u,%" PRIu64 ")", id.created_on,
		   id.local_id);
}

void rc_rec_hex(struct rc_record *r, const char *key, uint64_t value)
{
	key_of(r, key);
	record_put(r, r->json ? "\"%016" PRIx64 "\"" : "%016" PRIx64, value);
}

void rc_rec_age(struct rc_record *r, const char *key, int64_t ns)
{
	key_of(r, key);
	/* Constant width: a second dump fits a buffer of the size that the first dump asked for. */
	record_put(r, r->json ? "%10s" : "%10ss", seconds_text(ns).text);
}
