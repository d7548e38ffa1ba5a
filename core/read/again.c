/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads that stand in for others. A thread takes the end of a READ out of the device's queue. It
 * may stop before it has told the read. The end is nowhere else: over verbs a completion is given
 * out once. So the thread that waits for the read asks again, after some time.
 *
 * The second read is an operation of its own, with its own landing block. It waits for no turn and
 * no room, and for no lock but the allocator's. The first one keeps its block until its end is
 * known, as after a time-out. Both bring the same bytes, since both hold the reference. The first
 * that comes ends the future. So does a second read that finds the value gone, or the reference
 * failed. Every other failure says nothing of the first read.
 *
 * A slow device makes reads late, too. Then these reads only add to its load. So they are few for
 * each peer at a time. If one fails, it is not read again.
 */
#include "core/base/error.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"

/* A slow device has this much time for its bytes: 100 MB/s. */
#define NS_PER_KIB (10 * NSEC_PER_USEC)
/* Larger reads are not asked for again, all at once: their READs would fill a send queue. */
#define AGAIN_MAX (16 * (uint64_t)RC_PIECE_MAX)
/* Pieces of such reads from one peer at a time: one read of AGAIN_MAX, or some small ones. A thread
 * can stop with 8 ends. */
#define PIECES_MAX 24u

static const struct rc_op_kind rc_read_again_kind = {
	.name = "read",
	.reads = true,
	.end = rc_read_end,
	.release = rc_read_release,
	.why_late = rc_stall_words,
};

#ifdef RREF_INJECT
_Atomic bool rc_never_again; /* a test that holds READs back sets it */
#define NEVER at_load(&rc_never_again)
#else
#define NEVER false
#endif

static bool asks_again(const struct rref_future *f, int64_t waited)
{
	return !NEVER && !f->ctx->peers[f->peer].reads_inline && at_load_acq(&f->posted) &&
	       rc_op_wanted(f) && f->length <= AGAIN_MAX &&
	       waited >= (int64_t)(f->length / 1024) * NS_PER_KIB;
}

static bool is_one_of_few(struct rc_peer *p, uint32_t pieces)
{
	if (at_add(&p->standing_in, pieces) + pieces <= PIECES_MAX)
		return true;
	at_sub(&p->standing_in, pieces);
	return false;
}

/* Begins a read that stands in for f. */
static int stand_in(struct rref_future *f, struct rc_peer *p)
{
	struct rref_future *g;
	int err = rc_op_get_now(f->ctx, &rc_read_again_kind, &g);

	if (err)
		return err;
	g->peer = f->peer;
	g->handle = rref_dup(f->handle);
	g->loc = f->loc;
	g->offset = f->offset;
	g->length = f->length;
	g->whole = f->whole;
	at_add(&f->refs, 1);
	g->stands_for = f;
	rc_op_begin(g);
	if (!rc_read_prepare(g) || rc_split_begin(g, p, true) == RC_READ_OVER)
		rc_read_done(g);
	else
		at_add(&f->ctx->n.reads_again, 1);
	rc_op_put(g); /* no thread waits for it */
	return 0;
}

bool rc_read_late(struct rref_future *f, int64_t waited)
{
	struct rc_peer *p = &f->ctx->peers[f->peer];
	struct rc_error scratch;
	int err;

	if (rc_read_has_view(f) || !asks_again(f, waited))
		return true;
	if (rc_landing_waits(f->ctx) || !is_one_of_few(p, rc_read_pieces(f)))
		return false;
	rc_error_aside(&scratch);
	err = stand_in(f, p);
	if (err)
		at_sub(&p->standing_in, rc_read_pieces(f));
	rc_error_back(&scratch);
	return !err;
}
