/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads of any kind that are over when they are posted, over a device that copies (shm). Only its
 * thread knows the operation until it is complete. So it has a future of the thread's own, and no
 * slot. A read that has to wait is given up here, and begins again in a slot.
 */
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"

static void at_once_over(struct rref_future *f)
{
	rref_view_free(rc_op_view(f));
	at_store(&f->view, NULL);
	if (unlikely(f->status)) {
		f->status = 0;
		f->about = 0;
		f->text[0] = 0;
	}
	rc_own_put(f);
}

const struct rc_op_kind rc_read_at_once_kind = {
	.name = "read", .reads = true, .keep = at_once_over
};

bool rc_read_at_once(struct rref *ref, size_t offset, size_t length, struct rref_future **out)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];
	struct rref_future *f;
	struct rc_reader *r;
	bool over;

	if (!RB_FAST(p->reads_inline && !ref->owned && at_load_acq(&ref->state) == RC_H_READY) ||
	    !(r = rc_reader_get(ref->ctx)) || !(f = rc_own_get(r)))
		return false;
	rc_op_clean(f, &rc_read_at_once_kind);
	at_store(&f->refs, 1);
	f->peer = ref->owner;
	f->handle = ref; /* the caller's, for as long as this lasts */
	f->loc = rc_remote(ref)->loc;
	f->offset = offset;
	f->length = length;
	f->whole = length == SIZE_MAX;
	over = rc_read_copied(f, p);
	f->handle = NULL;
	rc_landing_put(f->landing); /* NULL unless it failed */
	f->landing = NULL;
	if (over)
		*out = f;
	else
		rc_own_put(f);
	return over;
}
