/* SPDX-License-Identifier: Apache-2.0 */
/*
 * References in values.
 *
 * A value holds handles of this worker like the program does, each by a hold of its own. The holds
 * go when the value's memory goes. The memory itself contains no reference: a location and a header
 * only say how many there are. So a READ is the same READ.
 *
 * A reader that wants the references asks the value's owner (TAKE, a kind of call). It names its
 * own fork of the value. The owner shares them as it would in any other result. So the answer's
 * fate is dealt with already. That includes confirming, taking back unsent references, dropping
 * late ones, the quota, and the death of either.
 *
 * A view of such a value holds the reference by which it was read. A TAKE under way holds it too.
 * So the fork that it names is alive, and with it the value.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/base/site.h"
#include "core/call/internal.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/session/session.h"
#include "core/value/value.h"

/* Returns the reference by which the view was read. */
static struct rref *outer_of(const struct rref_view *v)
{
	return rc_landing_of(v)->outer;
}

/* ---- taking them ---- */

static int nested_check(const struct rref_view *view, size_t first, size_t nr, const void *out,
			const char *what)
{
	if (!view || !out)
		return rc_fail(EINVAL, "%s: %s", what,
			       view ? "nowhere to put the references" : "no view");
	int err = rc_view_lost(view) ? rc_fail_child() : rc_enter(view->ctx);

	if (err)
		return err == -ESHUTDOWN
			       ? rc_fail(ESHUTDOWN,
					 "%s: the context was shut down: nothing is shared", what)
			       : err;
	if (!nr || first >= view->nr_refs || nr > view->nr_refs - first)
		return rc_fail(EINVAL, "%s: %zu references from the %zu-th on: the value holds %u",
			       what, nr, first, view->nr_refs);
	return 0;
}

/* Takes references of an own value, each with a hold. Takes no reference at all if it fails. */
static int take_here(struct rc_value *v, size_t first, size_t nr, struct rref **out)
{
	struct rref_ctx *ctx = v->view.ctx;
	struct rref **refs;
	int err;

	rc_lock(ctx);
	/* Checked under the lock: the end of the context lets go of the references. */
	err = rc_enter(ctx);
	refs = v->extra->refs;
	for (size_t i = first; !err && i < first + nr; i++)
		if (at_load_acq(&refs[i]->state) == RC_H_FAILED)
			err = rc_handle_error(refs[i]);
	for (size_t i = 0; !err && i < nr; i++)
		out[i] = rref_dup(refs[first + i]);
	rc_unlock(ctx);
	return err;
}

/* Gives up an operation that is not under way. Keeps the text of the error. */
static int nested_abandon(struct rref_future *f, int err)
{
	char why[RREF_TEXT_SIZE];

	snprintf(why, sizeof(why), "%s", rc_error_text());
	rc_op_claim(f);
	rc_scope_detach(f, err);
	rc_op_put(f);
	rc_op_put(f);
	return rc_fail(-err, "%s", why);
}

/* Sends the TAKE. Lets go of the lock meanwhile. */
static needs_lock int send_take(struct rref_future *f, size_t first, int64_t deadline)
{
	struct rref_ctx *ctx = f->ctx;
	struct rref *outer = f->handle;
	struct rw_message m = { .frame.type = RW_CALL };
	uint8_t range[RW_TAKE_BYTES];
	int err = rc_wait_for_room(ctx, &ctx->peers[outer->owner], 0, deadline);

	if (err)
		return err;
	/* Checked under the lock: a call that begins after the shutdown would never end. */
	if (at_load(&ctx->state) != RC_CTX_RUNNING)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	/* The owner is dead, or another worker has taken its place. There is nobody to ask. */
	if (at_load_acq(&outer->state) == RC_H_FAILED)
		return rc_handle_error(outer);
	put_le32(range, (uint32_t)first);
	put_le32(range + 4, (uint32_t)f->number);
	m.u.call = (struct rw_call){ .call_id = rc_op_token(f),
				     .kind = RW_CALL_TAKE,
				     .id = outer->id,
				     .fork = rc_remote(outer)->fork,
				     .name = "",
				     .data = range,
				     .data_length = sizeof(range) };
	return rc_send(ctx, outer->owner, &m);
}

static int take_there(struct rref *outer, size_t first, size_t nr, int64_t timeout,
		      const char *scope, struct rref_future **out)
{
	struct rref_ctx *ctx = outer->ctx;
	int64_t deadline = rc_deadline(ctx, timeout);
	struct rref_future *f;
	int err = rc_op_get(ctx, &rc_call_kind, deadline, &f);

	if (err)
		return err;
	f->peer = outer->owner;
	f->handle = rref_dup(outer);
	f->number = nr;
	if (scope)
		rc_scope_attach(f, scope, NULL, outer->owner);
	if (!rc_call_incoming(f)) {
		rc_fail(ENOMEM, "memory for an answer");
		return nested_abandon(f, -ENOMEM);
	}
	rc_lock(ctx);
	err = send_take(f, first, deadline);
	if (!err) {
		at_store(&f->deadline, deadline);
		if (deadline < ctx->sleep.wake_at)
			rc_kick(ctx);
		rc_op_begin(f);
	}
	rc_unlock(ctx);
	if (err)
		return nested_abandon(f, err);
	*out = f;
	return 0;
}

static int nested_take(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
		       struct rref **out)
{
	const char *site = rc_site_take();
	struct rc_value *own = rc_value_of(view);
	struct rref_future *f;
	int err;

	if (own)
		return take_here(own, first, nr, out);
	err = take_there(outer_of(view), first, nr, timeout, NULL, &f);
	if (err)
		return err;
	rc_op_wait(f, INT64_MAX); /* bounded by the call's own deadline */
	err = f->status ? rc_op_error(f) : 0;
	for (size_t i = 0; !err && i < nr; i++) {
		out[i] = f->incoming->ref[i].handle;
		rc_handle_made_at(out[i], site);
		f->incoming->ref[i].handle = NULL;
	}
	rc_op_put(f);
	return err;
}

static int scoped_take(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
		       struct rref **out, const char *what)
{
	int err = nested_check(view, first, nr, out, what);

	if (err)
		return err;
	struct rref_ctx *ctx = view->ctx;
	struct rc_scope *s = rc_scope_begin(ctx, "view_refs", NULL, ctx->rank,
					    rc_value_of(view) ? ctx->rank : outer_of(view)->owner);

	err = nested_take(view, first, nr, timeout, out);
	rc_scope_end(ctx, s, err);
	return err;
}

int rref_view_refs(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
		   struct rref **out)
{
	RB_NO_CANCEL;

	return scoped_take(view, first, nr, timeout, out, "rref_view_refs");
}

int rref_view_ref(struct rref_view *view, size_t i, int64_t timeout, struct rref **out)
{
	RB_NO_CANCEL;

	return scoped_take(view, i, 1, timeout, out, "rref_view_ref");
}

/* Makes a future that is complete from the start. */
static int take_here_async(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
			   struct rref_future **out)
{
	struct rref_ctx *ctx = view->ctx;
	struct rref **taken = calloc(nr, sizeof(*taken));
	struct rref_future *f = NULL;
	struct rc_incoming *in;
	int err;

	if (!taken)
		return rc_fail(ENOMEM, "memory for %zu references", nr);
	err = take_here(rc_value_of(view), first, nr, taken);
	if (!err)
		err = rc_op_get(ctx, &rc_call_kind, rc_deadline(ctx, timeout), &f);
	if (err)
		goto release;
	f->peer = ctx->rank;
	rc_scope_attach(f, "view_refs_async", NULL, ctx->rank);
	in = calloc(1, sizeof(*in));
	if (!in || !rc_incoming_room(in, (uint32_t)nr)) {
		free(in);
		rc_fail(ENOMEM, "memory for %zu references", nr);
		err = nested_abandon(f, -ENOMEM);
		goto release;
	}
	for (size_t i = 0; i < nr; i++)
		in->ref[i].handle = taken[i];
	in->nr = (uint32_t)nr;
	f->incoming = in;
	rc_op_claim(f);
	rc_op_finish(f);
	rc_op_put(f);
	free(taken);
	*out = f;
	return 0;
release:
	for (size_t i = 0; i < nr; i++)
		rref_release(taken[i]);
	free(taken);
	return err;
}

int rref_view_refs_async(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
			 struct rref_future **out)
{
	RB_NO_CANCEL;
	int err = nested_check(view, first, nr, out, "rref_view_refs_async");

	if (err)
		return err;
	return rc_value_of(view) ? take_here_async(view, first, nr, timeout, out) :
			     take_there(outer_of(view), first, nr, timeout, "view_refs_async", out);
}

/* ---- the owner's answer ---- */

/*
 * Finds the references that were asked for, and takes a hold of each. The value may go while the
 * answer is made.
 */
static needs_lock int nested_find(const struct rref_call *call, struct rref **out)
{
	struct rref_ctx *ctx = call->ctx;
	uint32_t first = get_le32(call->bytes), nr = get_le32((const char *)call->bytes + 4);
	void *found;
	int err = rc_held_value(ctx, call->caller, &call->id, &call->fork, &found);
	const struct rc_value *v;

	if (err)
		return rc_fail(-err,
			       "the value (%u,%" PRIu64
			       ") is not there, or rank %u does not hold it so: %s",
			       call->id.created_on, call->id.local_id, call->caller,
			       rref_strerror(err));
	v = found;
	if (v->type->flags & RREF_LOCAL_ONLY)
		return rc_fail(EPERM,
			       "the value (%u,%" PRIu64
			       ") is local only, and what it holds stays with it",
			       call->id.created_on, call->id.local_id);
	/* The decoder has checked that the sum is a small number. */
	if (first + nr > v->view.nr_refs)
		return rc_fail(EINVAL, "%u references from the %u-th on: the value holds %u", nr,
			       first, v->view.nr_refs);
	for (uint32_t i = 0; i < nr; i++)
		out[i] = rref_dup(v->extra->refs[first + i]);
	return 0;
}

int rc_take_serve(struct rref_call *call, char *text, size_t size)
{
	uint32_t nr = get_le32((const char *)call->bytes + 4);
	struct rref *few[RW_REFS_MAX],
		**refs = nr <= RW_REFS_MAX ? few : malloc(nr * sizeof(*refs));
	int err;

	if (!refs) {
		snprintf(text, size, "no memory for %u references", nr);
		return -ENOMEM;
	}
	rc_lock(call->ctx);
	err = nested_find(call, refs);
	rc_unlock(call->ctx);
	if (err) {
		snprintf(text, size, "%s", rc_error_text());
		goto out;
	}
	err = rref_call_reply(call, &(struct rref_args){ .refs = refs, .nr_refs = nr });
	snprintf(text, size, "%s", err ? rc_error_text() : "");
	for (uint32_t i = 0; i < nr; i++)
		rref_release(refs[i]);
out:
	if (refs != few)
		free(refs);
	return err;
}
