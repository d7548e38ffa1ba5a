/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values that the program makes: at once, or in two steps (alloc, then set). The owner's handle
 * comes with the value.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/op/step.h"
#include "core/value/value.h"

int rref_new_value(struct rref_ctx *ctx, const struct rref_value_desc *desc, struct rref **out)
{
	RB_NO_CANCEL;
	struct rc_value *v;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (!out)
		return rc_fail(EINVAL, "rref_new_value: nowhere to put the reference");
	struct rc_scope *s = rc_scope_begin(ctx, "new", NULL, ctx->rank, ctx->rank);

	err = rc_value_describe(ctx, desc, true, NULL, "rref_new_value", &v);
	if (!err)
		err = rc_handle_of_value(ctx, v, true, out);
	rc_scope_end(ctx, s, err);
	return err;
}

int rref_alloc_value(struct rref_ctx *ctx, const struct rref_value_desc *desc, struct rref **out,
		     struct iovec *places)
{
	RB_NO_CANCEL;
	struct rc_value *v;
	struct rref *h;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (!out || !places)
		return rc_fail(EINVAL,
			       "rref_alloc_value: nowhere to put the reference or its places");
	struct rc_scope *s = rc_scope_begin(ctx, "alloc", NULL, ctx->rank, ctx->rank);

	err = rc_value_describe(ctx, desc, false, NULL, "rref_alloc_value", &v);
	if (!err)
		err = rc_handle_of_value(ctx, v, false, &h);
	rc_scope_end(ctx, s, err);
	if (err)
		return err;
	rref_view_segments(&v->view, places, v->view.nr_segments);
	*out = h;
	return 0;
}

int rref_new(struct rref_ctx *ctx, const void *data, size_t length, struct rref **out)
{
	RB_NO_CANCEL;
	struct rc_value *v;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (!out || (length && !data))
		return rc_fail(EINVAL, "rref_new: %s",
			       out ? "data is NULL" : "nowhere to put the reference");
	struct rc_scope *s = rc_scope_begin(ctx, "new", NULL, ctx->rank, ctx->rank);

	err = rc_value_alloc(ctx, length, NULL, &v);
	if (!err && length)
		memcpy(rc_value_data(v), data, length);
	if (!err)
		err = rc_handle_of_value(ctx, v, true, out);
	rc_scope_end(ctx, s, err);
	return err;
}

int rref_alloc(struct rref_ctx *ctx, size_t length, struct rref **out, void **data)
{
	RB_NO_CANCEL;
	struct rc_value *v;
	struct rref *h;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (!out || !data)
		return rc_fail(EINVAL, "rref_alloc: nowhere to put the reference or its memory");
	struct rc_scope *s = rc_scope_begin(ctx, "alloc", NULL, ctx->rank, ctx->rank);

	err = rc_value_alloc(ctx, length, NULL, &v);
	if (!err)
		err = rc_handle_of_value(ctx, v, false, &h);
	rc_scope_end(ctx, s, err);
	if (err)
		return err;
	*data = rc_value_data(v);
	*out = h;
	return 0;
}

/*
 * Makes the checks that rref_set and rref_set_error share: only the owner's handle may be set.
 * Callers check under the lock that it still has to be set.
 */
static int set_check(struct rref *ref, const char *what)
{
	if (!ref)
		return rc_fail(EINVAL, "%s: no reference", what);
	int err = rc_enter(ref->ctx);

	if (err)
		return err;
	if (!ref->owned)
		return rc_fail(EPERM,
			       "%s: this worker (rank %u) does not own the value, rank %u does",
			       what, ref->ctx->rank, ref->owner);
	return 0;
}

int rref_set_refs(struct rref *ref, struct rref *const *refs, size_t nr)
{
	RB_NO_CANCEL;
	int err = set_check(ref, "rref_set_refs");
	struct rc_value_extra extra = { 0 };
	struct rc_value old = { .extra = &extra }; /* references that it held so far */

	if (!err)
		err = rc_check_refs(ref->ctx, refs, nr);
	if (err)
		return err;
	rc_lock(ref->ctx);
	if (!ref->unset) {
		err = rc_fail(EALREADY, "rref_set_refs: the value was set before");
	} else {
		struct rc_value *v = ref->value;

		old.view = v->view;
		extra.refs = v->extra ? v->extra->refs : NULL;
		err = rc_value_hold(v, refs, nr);
	}
	rc_unlock(ref->ctx);
	if (!err)
		rc_value_let_go(&old);
	return err;
}

int rref_set(struct rref *ref)
{
	RB_NO_CANCEL;
	int err = set_check(ref, "rref_set");

	if (err)
		return err;
	struct rref_ctx *ctx = ref->ctx;

	rc_lock(ctx);
	if (!ref->unset) {
		err = rc_fail(EALREADY, "rref_set: the value was set before");
	} else {
		rc_value_publish(ref->value, ref->id);
		struct rp_event ev = { .type = RP_EV_SET, .id = ref->id, .value = ref->value };

		err = rc_step(ctx, &ev, NULL);
		if (!err) {
			ref->unset = false;
			at_store_rel(&ref->state, RC_H_READY);
		} else {
			err = rc_fail(-err, "rref_set: %s", rref_strerror(err));
		}
	}
	rc_unlock(ctx);
	return err;
}

int rref_set_error(struct rref *ref, int error, const char *text)
{
	RB_NO_CANCEL;
	int err = set_check(ref, "rref_set_error");

	if (err)
		return err;
	if (error >= 0 || error < -4095)
		return rc_fail(EINVAL, "rref_set_error: %d is not a negative errno", error);
	struct rref_ctx *ctx = ref->ctx;

	rc_lock(ctx);
	if (!ref->unset) {
		err = rc_fail(EALREADY, "rref_set_error: the value was set before");
	} else {
		struct rp_event ev = { .type = RP_EV_SET, .id = ref->id, .status = error,
				       .text = text ? text : rref_strerror(error) };

		err = rc_step(ctx, &ev, NULL);
		if (!err) {
			struct rc_value *v = ref->value;

			ref->unset = false;
			ref->value = NULL;
			rc_value_unpin(v);
			rc_handle_fail(ref, error, ev.text);
		}
	}
	rc_unlock(ctx);
	return err;
}
