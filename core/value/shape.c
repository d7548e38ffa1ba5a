/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shape of a value: the places of its segments in the payload, and the table behind it. Each
 * segment begins at the next multiple of SEGMENT_ALIGN. So arrays of several may be used where they
 * lie. The table, only of two or more, has their lengths. A table from a peer is added up before
 * anybody uses it.
 */
#include <errno.h>

#include "core/ctx.h"
#include "core/value/value.h"

#define SEGMENT_ALIGN CACHE_LINE

static uint64_t table_at(uint64_t length)
{
	return (length + 7) & ~UINT64_C(7);
}

static uint64_t next_at(uint64_t end)
{
	return (end + SEGMENT_ALIGN - 1) & ~(uint64_t)(SEGMENT_ALIGN - 1);
}

/* Checks the length of one segment: each keeps the element size. */
static bool fits_type(const struct rc_type *t, uint64_t length)
{
	if (t->one)
		return length == t->element_size;
	return !t->element_size || length % t->element_size == 0;
}

uint64_t rc_extent(uint64_t length, uint32_t nr_segments)
{
	return nr_segments > 1 ? table_at(length) + 8 * (uint64_t)nr_segments : length;
}

int rc_shape_make(const struct rc_type *t, const struct iovec *segments, size_t nr,
		  const char *what, size_t *length)
{
	uint64_t end = 0;

	if (nr && !segments)
		return rc_fail(EINVAL, "%s: %zu segments, but no table", what, nr);
	if (nr > RREF_SEGMENTS_MAX)
		return rc_fail(EMSGSIZE, "%s: %zu segments: the limit is %d", what, nr,
			       RREF_SEGMENTS_MAX);
	if (t->one && nr != 1)
		return rc_fail(EINVAL, "%s: %zu segments of type %s, which is one number", what, nr,
			       t->name);
	for (size_t i = 0; i < nr; i++) {
		if (!fits_type(t, segments[i].iov_len))
			return rc_fail(
				EINVAL,
				"%s: segment %zu of %zu bytes is not %s of type %s "
				"(%zu bytes each)",
				what, i, segments[i].iov_len,
				t->one ? "one element" : "whole elements", t->name,
				t->element_size);
		if (segments[i].iov_len > RC_VALUE_MAX)
			end = UINT64_MAX / 2;
		else if (end <= RC_VALUE_MAX)
			end = next_at(end) + segments[i].iov_len;
	}
	if (end > RC_VALUE_MAX || rc_extent(end, (uint32_t)nr) > RC_VALUE_MAX)
		return rc_fail(EMSGSIZE, "%s: a value of more than %zu bytes, the limit", what,
			       (size_t)RC_VALUE_MAX);
	*length = end;
	return 0;
}

void rc_shape_write(void *payload, size_t length, const struct iovec *segments, size_t nr,
		    bool copy)
{
	uint64_t at = 0;

	for (size_t i = 0; i < nr; i++) {
		/* The gap between segments is sent too. */
		memset((char *)payload + at, 0, next_at(at) - at);
		at = next_at(at);
		if (copy && segments[i].iov_len)
			memcpy((char *)payload + at, segments[i].iov_base, segments[i].iov_len);
		at += segments[i].iov_len;
		if (nr > 1)
			put_le64((char *)payload + table_at(length) + 8 * i, segments[i].iov_len);
	}
	if (nr > 1)
		memset((char *)payload + length, 0, table_at(length) - length);
}

bool rc_shape_check(const void *payload, uint64_t length, uint32_t nr, const struct rc_type *t)
{
	uint64_t end = 0;

	if (nr < 2)
		return (nr || !length) && (!t || (nr ? fits_type(t, length) : !t->one));
	if (t && t->one)
		return false;
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t n = get_le64((const char *)payload + table_at(length) + 8 * (size_t)i);

		/* Both sides are below 2^63: length is bounded before memory is taken for it. */
		if (n > length || next_at(end) > length - n || (t && !fits_type(t, n)))
			return false;
		end = next_at(end) + n;
	}
	return end == length;
}

size_t rref_view_segments(const struct rref_view *view, struct iovec *segments, size_t nr)
{
	size_t at = 0;

	if (!view || rc_view_lost(view))
		return 0;
	for (uint32_t i = 0; segments && i < view->nr_segments && i < nr; i++) {
		size_t n = view->nr_segments > 1 ? get_le64((const char *)view->data +
							    table_at(view->length) + 8 * (size_t)i)
						 : view->length;

		at = next_at(at);
		segments[i] = (struct iovec){ .iov_base = (void *)((uintptr_t)view->data + at),
					      .iov_len = n };
		at += n;
	}
	return view->nr_segments;
}
