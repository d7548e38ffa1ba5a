/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a read: the words for a READ that failed, and the check of the header that came. The
 * header vouches for the rest of the value (read.c has the rules). Each function finds the text for
 * the operation. Nothing of the operation is in flight any more.
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>

#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/session/session.h"

#define NAME_SIZE 160 /* room for a reference's name with both ids at their longest */

static const char *check_name_of(const struct rref_future *f, char *buf)
{
	if (!f->handle)
		return "a payload";
	rref_format(f->handle, buf, NAME_SIZE);
	return buf;
}

/* Ends f with an error: its value has a type that stays with its owner. */
static void local_only(struct rref_future *f)
{
	const struct rref_ctx *ctx = f->ctx;
	char name[NAME_SIZE];

	snprintf(f->text, sizeof(f->text),
		 "%s is local only: it stays with its owner %s, and %s cannot read it",
		 check_name_of(f, name), ctx->members[f->peer].name, ctx->members[ctx->rank].name);
}

/*
 * Tells the program what a READ's failure means. The session's state decides. The completion's code
 * alone says little: a revoked key may show as "no answer".
 */
int rc_read_explain(struct rref_future *f)
{
	struct rref *h = f->handle;
	struct rc_peer *p = &f->ctx->peers[f->peer];
	char name[NAME_SIZE], lost[RREF_TEXT_SIZE / 2];

	if (h && at_load_acq(&h->state) == RC_H_FAILED) {
		snprintf(f->text, sizeof(f->text), "%s", rc_handle_why(h));
		f->about = h->about;
		return h->err;
	}
	switch (f->read_status) {
	case -ENOMEM:
	case -EMSGSIZE:
		if (!*f->text)
			snprintf(f->text, sizeof(f->text), "the read from %s failed: %s",
				 p->member->name, rref_strerror(f->read_status));
		return f->read_status;
	case -EPERM:
		local_only(f);
		return -EPERM;
	case -EACCES:
		snprintf(f->text, sizeof(f->text),
			 "%s refused the read: the value of %s is not there any more",
			 p->member->name, check_name_of(f, name));
		return -ESTALE;
	case -EPROTO:
		if (f->read_wc > 0)
			snprintf(f->text, sizeof(f->text),
				 "%s broke the rules of its connection (work completion status %d)",
				 p->member->name, f->read_wc);
		else
			snprintf(f->text, sizeof(f->text), "%s sent a location that cannot be",
				 p->member->name);
		return -EPROTO;
	case -EOWNERDEAD:
	case -ECONNRESET:
	case -ENOTCONN:
	case -ETIMEDOUT:
	case -EIO:
		snprintf(lost, sizeof(lost), "the connection to %s (rank %u) was lost",
			 p->member->name, p->rank);
		return rc_stall_lost(f->ctx, p, lost, f->text, sizeof(f->text));
	case -EFAULT: /* the device's word on this side's own memory or request */
	case -EINVAL:
		snprintf(f->text, sizeof(f->text),
			 "this worker's own device refused to read from %s (%s, work completion "
			 "status %d)",
			 p->member->name, rref_strerror(f->read_status), f->read_wc);
		return -EIO;
	default: /* the session ended: its error says how */
		snprintf(f->text, sizeof(f->text), "the read from %s failed: %s", p->member->name,
			 rref_strerror(f->read_status));
		return f->read_status;
	}
}

/*
 * Returns the type that f's value must have. Returns NULL if it is not known here or any bytes will
 * do.
 */
static const struct rc_type *type_of(const struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;

	return f->loc.type_hash == rc_type_bytes(ctx)->hash ? NULL
							    : rc_type_find(ctx, f->loc.type_hash);
}

/* Returns whether the header is of another value than the location says. ref: NULL = a payload. */
static bool contradicts(const struct rc_header *h, const struct rref *ref,
			const struct rp_location *loc)
{
	return (ref && (le64toh(h->local_id) != ref->id.local_id ||
			le32toh(h->created_on) != ref->id.created_on)) ||
	       le64toh(h->length) != loc->length || le32toh(h->version) != loc->version ||
	       le64toh(h->type_hash) != loc->type_hash ||
	       le16toh(h->nr_segments) != loc->nr_segments || le16toh(h->nr_refs) != loc->nr_refs;
}

bool rc_read_header_fits(const struct rc_header *h, const struct rref *ref,
			 const struct rp_location *loc)
{
	return le64toh(h->nonce) == loc->nonce && le32toh(h->state) == RC_HEADER_READY &&
	       !contradicts(h, ref, loc);
}

bool rc_read_is_good(const struct rref_future *f)
{
	struct rc_header h = f->landing->header; /* copied once: nothing is fetched twice */

	return rc_read_header_fits(&h, f->handle, &f->loc) &&
	       (!f->whole || rc_shape_check(f->landing + 1, f->loc.length, f->loc.nr_segments,
					    type_of(f)));
}

int rc_read_check(struct rref_future *f)
{
	struct rc_header h = f->landing->header; /* copied once: nothing is fetched twice */
	char name[NAME_SIZE];

	if (h.nonce == UINT64_MAX && h.state == UINT32_MAX && h.length == UINT64_MAX &&
	    h.version == UINT32_MAX) {
		snprintf(f->text, sizeof(f->text), "the read completed without data");
		return -EBADMSG;
	}
	if (le64toh(h.nonce) != f->loc.nonce || le32toh(h.state) != RC_HEADER_READY) {
		snprintf(f->text, sizeof(f->text), "the value of %s is not there any more",
			 check_name_of(f, name));
		return -ESTALE;
	}
	if (contradicts(&h, f->handle, &f->loc)) {
		snprintf(f->text, sizeof(f->text), "the value's header contradicts its location");
		return -EBADMSG;
	}
	if (f->whole &&
	    !rc_shape_check(f->landing + 1, f->loc.length, f->loc.nr_segments, type_of(f))) {
		snprintf(f->text, sizeof(f->text),
			 "the value's segments contradict its length or its type");
		return -EBADMSG;
	}
	return 0;
}
