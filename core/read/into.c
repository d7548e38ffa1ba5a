/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads into the program's memory over a device that copies (shm): from the owner's memory straight
 * into the program's. Such a READ is over when it is posted, so nothing comes late, and no landing
 * block is needed. The header lands in the thread's reader.
 *
 * A part from the value's beginning is one READ, with the header. Any other part is a READ of its
 * own, and the header's comes after it. So is a part of a value in the program's memory. On failure
 * the reader's memory may hold anything, as rref_to_here_into says. The general way then reads
 * again, or finds the words.
 */
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"

struct into {
	struct rv_read read[2];
	unsigned nr;
	size_t bytes;
};

/* Builds the READs of at most length bytes from offset on. The header comes last, or first. */
static void into_build(struct into *in, const struct rc_peer *p, const struct rp_location *loc,
		       struct rc_reader *r, void *buf, size_t offset, size_t length)
{
	uint32_t lkey = p->device->any.lkey;
	bool wrapped = rp_is_wrapped(loc);
	struct rv_read *head;

	in->bytes = min_of(length, loc->length - min_of(offset, loc->length));
	in->nr = in->bytes && (offset || wrapped) ? 2 : 1;
	if (in->nr == 2)
		in->read[0] = (struct rv_read){
			.addr = (wrapped ? loc->data_addr : loc->addr + RC_HEADER_BYTES) + offset,
			.rkey = wrapped ? loc->data_rkey[p->kind] : loc->rkey[p->kind],
			.nr_sge = 1,
			.sge[0] = { buf, (uint32_t)in->bytes, lkey },
		};
	head = &in->read[in->nr - 1];
	*head = (struct rv_read){ .addr = loc->addr, .rkey = loc->rkey[p->kind], .nr_sge = 1 };
	head->sge[0] = (struct rv_sge){ &r->header, RC_HEADER_BYTES, lkey };
	if (in->nr == 1 && in->bytes) {
		head->sge[1] = (struct rv_sge){ buf, (uint32_t)in->bytes, lkey };
		head->nr_sge = 2;
	}
}

/* Posts the READs under the thread's pin. Returns whether all were made and went well. */
static bool into_post(struct into *in, struct rc_peer *p, struct rref *ref, struct rc_reader *r,
		      int *status)
{
	struct rv_conn *conn = rc_pin(r, p);
	int posted = 0;

	/* Looks behind the pin, as the fast read does. */
	if (conn && at_load(&p->nr_waiting) == 0 && at_load_acq(&ref->state) == RC_H_READY)
		posted = p->ops->post_reads(conn, in->read, in->nr);
	rc_unpin(r);
	for (int i = 0; i < posted && !*status; i++)
		*status = in->read[i].status;
	rc_reader_count(r, posted);
	return posted == (int)in->nr && !*status;
}

/* Returns whether a READ may be tried: of a value elsewhere that is known. */
static bool may_try(const struct rref *ref, const struct rc_peer *p)
{
	return p->reads_inline && !ref->owned && p->device->any.lkey &&
	       at_load_acq(&ref->state) == RC_H_READY && rc_remote(ref)->loc.nonce &&
	       rc_remote(ref)->loc.length <= RC_VALUE_MAX && rc_remote(ref)->loc.nr_segments;
}

int rc_into_try(struct rref *ref, void *buf, size_t offset, size_t length, size_t *got)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];
	struct rc_reader *r;
	struct into in;
	int status = 0;

	if (!RB_FAST(may_try(ref, p)) || !(r = rc_reader_get(ref->ctx)))
		return 0;
	into_build(&in, p, &rc_remote(ref)->loc, r, buf, offset, length);
	if (in.bytes + RC_HEADER_BYTES > p->max_msg)
		return 0;
	memset(&r->header, RC_UNREAD, RC_HEADER_BYTES);
	if (!into_post(&in, p, ref, r, &status))
		return rc_read_refused(ref, status);
	if (!rc_read_header_fits(&r->header, ref, &rc_remote(ref)->loc))
		return 0;
	at_add_mine(&r->read_bytes, in.bytes);
	*got = in.bytes;
	return 1;
}
