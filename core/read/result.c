/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The result of a read, which no device touches any more: a view or an error. The thread that has
 * the read makes it, mostly without the lock.
 */
#include <errno.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"

/* Counts what f brought. If f stands in for a read, that one counts when it gets the view. */
static void count_bytes(const struct rref_future *f, uint64_t bytes)
{
	struct rc_reader *r = rc_reader_of(f->ctx);

	if (likely(r != NULL))
		at_add_mine(&r->read_bytes, f->stands_for ? 0 : bytes);
	else if (!f->stands_for)
		at_add(&f->ctx->n.read_bytes, bytes);
}

/* Makes the view of what landed, which is good. No device touches it any more. */
static struct rref_view *landed_view(struct rref_future *f)
{
	struct rc_landing *l = f->landing;

	l->view.length = f->whole ? f->loc.length : f->length;
	l->view.nr_segments = f->loc.nr_segments;
	l->type_hash = f->loc.type_hash;
	if (unlikely(f->whole && f->loc.nr_refs))
		rc_view_hold(l, f->handle, f->loc.nr_refs);
	f->landing = NULL;
	return &l->view;
}

void rc_read_fill_result(struct rref_future *f)
{
	struct rref_view *v;

	if (!rc_read_all_asked(f))
		rc_read_note(f, -ECANCELED, -1);
	f->status = f->read_status ? rc_read_explain(f) : rc_read_check(f);
	f->wc_status = f->read_wc;
	if (f->status)
		return;
	v = landed_view(f);
	at_store(&f->view, v);
	count_bytes(f, v->length);
}

/* Puts a view into a read that waits for one. Frees it if f has another: a read stood in for f. */
static void set_view(struct rref_future *f, struct rref_view *v)
{
	struct rref_view *none = NULL;
	uint64_t length = v->length; /* another thread may free the view */

	if (likely(at_cas_ar(&f->view, &none, v)))
		count_bytes(f, length);
	else
		rref_view_free(v);
}

/*
 * Puts the view into f if all went well, and its header is good. Then f needs only rc_op_succeed,
 * which any thread may do. So a thread that stops between the two holds up nobody.
 */
static bool brought_view(struct rref_future *f)
{
	if (f->read_status || !rc_read_all_asked(f) || f->is->over || !rc_op_wanted(f) ||
	    unlikely(!rc_read_is_good(f)))
		return false;
	set_view(f, landed_view(f));
	return true;
}

/* Claims f, and makes its result. Returns false if nobody wants it. */
static bool make_result(struct rref_future *f)
{
	if (!rc_op_claim(f)) {
		at_sub(&f->ctx->n.quarantined, 1);
		return false;
	}
	rc_read_fill_result(f);
	return true;
}

bool rc_read_has_view(struct rref_future *f)
{
	if (!at_load_acq(&f->view))
		return false;
	/* Counted first, as in rc_read_end: the thread that put the view there counts down. */
	at_add(&f->ctx->n.quarantined, 1);
	if (!rc_op_succeed(f))
		at_sub(&f->ctx->n.quarantined, 1);
	return true;
}

/* Gives what g brought to the read that it stands for. g is complete. */
static void stood_in(struct rref_future *g)
{
	struct rref_future *f = g->stands_for;
	struct rref_view *v = rc_op_done(g) && !g->status ? rc_op_take_view(g) : NULL;

	if (v) {
		set_view(f, v);
		/* Also for a view that another thread has put there, before it stopped. */
		rc_read_has_view(f);
	}
	g->stands_for = NULL;
	at_sub(&f->ctx->peers[f->peer].standing_in, rc_read_pieces(f));
	rc_op_put(f);
}

/*
 * Fails the read that g stands for, as g failed, if each further read would fail so too. f's own
 * READ is over by then, or never will be.
 */
static needs_lock void failed_too(const struct rref_future *g)
{
	struct rref_future *f = g->stands_for;

	if (!rc_op_done(g) || (g->status != -ESTALE && (!g->status || !rc_read_outlived(g))))
		return;
	at_add(&f->ctx->n.quarantined, 1); /* counted first, as above */
	if (!rc_op_claim(f)) {
		at_sub(&f->ctx->n.quarantined, 1);
		return;
	}
	f->status = g->status;
	f->wc_status = g->wc_status;
	f->about = g->about;
	memcpy(f->text, g->text, sizeof(f->text));
	rc_op_finish_locked(f);
}

bool rc_read_plain_done(struct rref_future *f)
{
	if (unlikely(f->read_status || !rc_op_wanted(f)) ||
	    unlikely(!rc_read_fits(&f->landing->header, f->handle, &f->loc, f->loc.length,
				   f->loc.type_hash)))
		return false;
	at_store(&f->outstanding, 0); /* only its one READ counted */
	set_view(f, landed_view(f));
	if (unlikely(!rc_op_succeed(f)))
		at_sub(&f->ctx->n.quarantined, 1);
	rc_op_put(f);
	return true;
}

static needs_lock void done_later(struct rref_ctx *ctx, struct rc_work *w)
{
	(void)ctx;
	rc_read_done_locked(container_of(w, struct rref_future, read_work));
}

void rc_read_done(struct rref_future *f)
{
	if (unlikely(!brought_view(f)) && rc_op_wanted(f)) {
		/* A thread may stop between the claim and the end. So it claims under the lock. */
		rc_read_later(f, done_later);
		return;
	}
	if (unlikely(!rc_op_succeed(f)))
		at_sub(&f->ctx->n.quarantined, 1);
	if (unlikely(f->stands_for))
		stood_in(f);
	rc_op_put(f);
}

void rc_read_done_locked(struct rref_future *f)
{
	rc_assert_locked(f->ctx);
	if (brought_view(f)) {
		if (!rc_op_succeed_locked(f))
			at_sub(&f->ctx->n.quarantined, 1);
	} else if (make_result(f)) {
		rc_op_finish_locked(f);
	}
	if (f->is->over)
		f->is->over(f);
	if (f->stands_for) {
		failed_too(f);
		stood_in(f);
	}
	rc_op_put(f);
}
