/* SPDX-License-Identifier: Apache-2.0 */
/*
 * References that arrive, in a call or a reply: each is confirmed before anybody gets it. Dropped
 * references are looked after in DROPS_MAX lots per peer at a time. A peer that sends more of them
 * is fenced.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "core/base/lock.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/ctx.h"
#include "core/op/step.h"
#include "core/session/session.h"

#define DROPS_MAX 8192u

/* Takes back a reference that this worker shared with itself, or that found no memory here. */
static needs_lock void incoming_give_back(struct rref_ctx *ctx, const struct rp_fork *rec)
{
	struct rp_event ev = {
		.type = RP_EV_FORK_UNDO, .id = rec->id, .fork = rec->fork, .peer = ctx->rank
	};

	if (rec->owner != ctx->rank)
		ev.src = rec->fork;
	rc_step(ctx, &ev, NULL);
}

/*
 * Takes in the records of one call or reply. A payload that could not be had has no records, and
 * in->status is set.
 */
void rc_incoming_begin(struct rref_ctx *ctx, struct rc_incoming *in, const struct rp_fork *recs,
		       uint32_t nr, uint32_t from)
{
	rc_assert_locked(ctx);
	if (!in->ref)
		in->ref = in->few;
	bool lost = false;

	rb_assert(in->ready && (nr <= RW_REFS_MAX || in->ref != in->few));
	in->nr = nr;
	in->unready = nr + 1; /* an extra count for this function, so that ready() comes last */
	for (uint32_t i = 0; i < nr; i++) {
		struct rp_event ev = { .type = RP_EV_RECV_FORK, .rec = &recs[i], .peer = from,
				       .cookie = (uint64_t)(uintptr_t)&in->ref[i] };
		int err;

		in->ref[i].in = in;
		in->ref[i].handle = NULL;
		/* Handed in even when refused: otherwise its parent would stay pinned. */
		if (recs[i].owner_incarnation != ctx->members[recs[i].owner].incarnation)
			ev.status = -ESTALE;
		err = rc_step(ctx, &ev, NULL);
		if (err) {
			if (!in->status) {
				in->status = err;
				snprintf(in->text, sizeof(in->text), "reference %u: %s", i,
					 rref_strerror(err));
			}
			rb_assert_is(in->unready, >, 1);
			in->unready--;
			lost |= err == -ENOMEM;
			if (err == -ENOMEM && from == ctx->rank)
				incoming_give_back(ctx, &recs[i]);
		}
	}
	if (--in->unready == 0)
		in->ready(ctx, in);
	/* Fences the sender: otherwise the parents would wait for their children for good. */
	if (lost)
		rc_session_end(ctx, &ctx->peers[from], -EOWNERDEAD,
			       "references that it shared were lost for want of memory");
}

/* Makes room before the records come, so that they can be taken in. */
bool rc_incoming_room(struct rc_incoming *in, uint32_t nr)
{
	in->ref = nr <= RW_REFS_MAX ? in->few : calloc(nr, sizeof(in->ref[0]));
	return in->ref;
}

void rc_incoming_release(struct rc_incoming *in)
{
	for (uint32_t i = 0; i < in->nr; i++) {
		if (in->ref[i].handle)
			at_store(&in->ref[i].handle->lent, 0);
		rref_release(in->ref[i].handle);
		in->ref[i].handle = NULL;
	}
	if (in->ref != in->few)
		free(in->ref);
	in->ref = NULL;
	in->nr = 0;
	rref_view_free(in->body);
	in->body = NULL;
	rc_payload_free(in->own);
	in->own = NULL;
}

/*
 * Makes spare structs for the time when there is no memory. A call that is refused then may still
 * bring references.
 */
is_alone int rc_incoming_open(struct rref_ctx *ctx)
{
	while (ctx->call.nr_spare_drops < RC_SPARE_DROPS) {
		struct rc_incoming *in = malloc(sizeof(*in));

		if (!in)
			return rc_fail(ENOMEM, "memory for %u refused calls", RC_SPARE_DROPS);
		ctx->call.spare_drop[ctx->call.nr_spare_drops++] = in;
	}
	return 0;
}

is_alone void rc_incoming_close(struct rref_ctx *ctx)
{
	rb_assert_is(ctx->call.nr_spare_drops, <=, RC_SPARE_DROPS);
	while (ctx->call.nr_spare_drops)
		free(ctx->call.spare_drop[--ctx->call.nr_spare_drops]);
}

static needs_lock void discard(struct rref_ctx *ctx, struct rc_incoming *in)
{
	rb_assert_is(ctx->peers[in->from].nr_drops, >, 0);
	ctx->peers[in->from].nr_drops--;
	rc_incoming_release(in);
	if (ctx->call.nr_spare_drops < RC_SPARE_DROPS)
		ctx->call.spare_drop[ctx->call.nr_spare_drops++] = in;
	else
		free(in);
}

/*
 * Takes and drops the records of a call that does not run, or of a late reply. So their parents go
 * on.
 */
void rc_incoming_drop(struct rref_ctx *ctx, const struct rp_fork *recs, uint32_t nr,
		      struct rc_peer *from)
{
	struct rc_incoming *in;

	rc_assert_locked(ctx);
	if (!nr)
		return;
	if (from->nr_drops >= DROPS_MAX) {
		at_add(&ctx->n.rejected, 1);
		rc_session_end(ctx, from, -EOWNERDEAD,
			       "it shared too many references that nobody asked for");
		return;
	}
	in = malloc(sizeof(*in));
	if (!in && ctx->call.nr_spare_drops)
		in = ctx->call.spare_drop[--ctx->call.nr_spare_drops];
	if (!in) {
		rc_session_end(ctx, from, -EOWNERDEAD,
			       "a message of it was lost for want of memory");
		return;
	}
	rc_incoming_init(in);
	from->nr_drops++;
	in->from = from->rank;
	in->ready = discard;
	rc_incoming_begin(ctx, in, recs, nr, from->rank);
}
