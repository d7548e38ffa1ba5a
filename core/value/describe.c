/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values made from a description (struct rref_value_desc). Its bytes become a table of segments, as
 * every value is made from one.
 */
#include <errno.h>

#include "core/ctx.h"

/* Checks references that a program hands in. Returns the error of one that failed. */
int rc_check_refs(struct rref_ctx *ctx, struct rref *const *refs, size_t nr)
{
	if (nr > RREF_REFS_MAX)
		return rc_fail(EMSGSIZE, "%zu references in one message or value: the limit is %d",
			       nr, RREF_REFS_MAX);
	if (nr && !refs)
		return rc_fail(EINVAL, "%zu references, but no table", nr);
	for (size_t i = 0; i < nr; i++) {
		if (!refs[i])
			return rc_fail(EINVAL, "reference %zu is NULL", i);
		if (refs[i]->ctx != ctx)
			return rc_fail(EINVAL, "reference %zu belongs to another context", i);
		if (at_load_acq(&refs[i]->state) == RC_H_FAILED)
			return rc_handle_error(refs[i]);
	}
	return 0;
}

/* Checks that the bytes are given in one way: as a table of segments, or as data and length. */
static int check_bytes(const struct rref_value_desc *d, const char *what)
{
	if (!d)
		return rc_fail(EINVAL, "%s: no description of the value", what);
	if (d->nr_segments && !d->segments)
		return rc_fail(EINVAL, "%s: %zu segments, but no table", what, d->nr_segments);
	if (d->segments && (d->data || d->length))
		return rc_fail(EINVAL, "%s: the description has segments, and bytes beside them",
			       what);
	return 0;
}

/* Checks that the segments that are copied have an address. */
static int check_segments(const struct iovec *segments, size_t nr, const char *what)
{
	for (size_t i = 0; i < nr && i < RREF_SEGMENTS_MAX; i++)
		if (segments[i].iov_len && !segments[i].iov_base)
			return rc_fail(EINVAL, "%s: segment %zu is NULL", what, i);
	return 0;
}

int rc_value_describe(struct rref_ctx *ctx, const struct rref_value_desc *d, bool copy,
		      const char *function, const char *what, struct rc_value **out)
{
	int err = check_bytes(d, what);

	if (err)
		return err;
	struct iovec one = { .iov_base = (void *)(uintptr_t)d->data, .iov_len = d->length };
	const struct iovec *segments = d->segments ? d->segments : &one;
	size_t nr = d->segments ? d->nr_segments : 1;

	if (copy)
		err = check_segments(segments, nr, what);
	if (!err)
		err = rc_check_refs(ctx, d->refs, d->nr_refs);
	if (!err)
		err = rc_value_make(ctx, d->type, segments, nr, copy, function, what, out);
	if (err)
		return err;
	err = rc_value_hold(*out, d->refs, d->nr_refs);
	if (err)
		rc_value_unpin(*out);
	return err;
}
