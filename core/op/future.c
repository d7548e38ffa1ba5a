/* SPDX-License-Identifier: Apache-2.0 */
/* Futures as the program sees them: callbacks, cancel, results. Waiting for them is wait.c. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/fast.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/site.h"
#include "core/ctx.h"
#include "core/op/kind.h"

/* Waits for f. The program's own thread may have stood in for the poller's; see progress.c. */
static __attribute__((noinline)) int future_wait(struct rref_future *f, int64_t timeout)
{
	RB_NO_CANCEL;

	if (!f)
		return rc_fail(EINVAL, "rref_future_wait: no future");
	if (rc_is_barred(f->ctx))
		return rc_enter_slow(f->ctx);
	if (!rc_op_done(f)) {
		int err = rc_op_wait_for(f, timeout);

		if (err)
			return rc_fail(ETIMEDOUT, "the wait timed out; the operation goes on");
	}
	return f->status ? rc_op_error(f) : 0;
}

int rref_future_wait(struct rref_future *f, int64_t timeout)
{
	/* A fence between the threads, and nothing else, if it is complete and went well. */
	if (RB_FAST(likely(f && rc_op_done(f)) && !rc_is_barred(f->ctx) && !f->status))
		return 0;
	return future_wait(f, timeout);
}

int rref_future_test(const struct rref_future *f)
{
	return f ? rc_op_done(f) : rc_fail(EINVAL, "rref_future_test: no future");
}

int rref_future_then(struct rref_future *f, void (*fn)(struct rref_future *f, void *arg), void *arg)
{
	RB_NO_CANCEL;
	uint32_t none = 0, set = 1;

	if (!f || !fn)
		return rc_fail(EINVAL, "rref_future_then: no future or no function");
	if (rc_is_barred(f->ctx))
		return rc_enter_slow(f->ctx);
	/* 3: being written. A finisher that sees it lets us see DONE below and run the callback
	 * here. */
	if (!at_cas_ar(&f->then_state, &none, 3))
		return rc_fail(EBUSY, "the future has a callback already");
	f->then = fn;
	f->then_arg = arg;
	at_store_sc(&f->then_state, 1);
	if ((at_load_sc(&f->state) & RC_F_MASK) == RC_F_DONE) {
		if (at_cas_ar(&f->then_state, &set, 2)) {
			at_add(&f->refs, 1);
			rc_op_run_then(f);
		}
	} else if (at_load(&f->ctx->turns.has_poller)) {
		rc_kick(f->ctx); /* the poller has to look: nobody may be waiting for it */
	}
	return 0;
}

int rref_future_cancel(struct rref_future *f)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx;

	if (!f)
		return rc_fail(EINVAL, "rref_future_cancel: no future");
	ctx = f->ctx;
	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	rc_lock(ctx);
	bool was_done = (at_load_acq(&f->state) & RC_F_MASK) != RC_F_PENDING;

	if (!was_done)
		rc_op_end(ctx, f, -ECANCELED, "cancelled");
	rc_unlock(ctx);
	return was_done ? rc_fail(EALREADY, "the operation is complete") : 0;
}

int rref_future_error(const struct rref_future *f, struct rref_error *out)
{
	struct rref_error e = { 0 };

	if (!f || !out || out->size < sizeof(size_t))
		return rc_fail(EINVAL, "rref_future_error: no future, or out->size is not set");
	if (rc_is_child(f->ctx))
		return rc_fail_child();
	if (!rc_op_done(f))
		return rc_fail(EAGAIN, "the operation is not complete");
	e.err = f->status;
	e.wc_status = f->status ? f->wc_status : -1;
	e.peer = f->about ? f->about - 1 : (int)f->peer;
	e.flags = f->about ? RREF_ERROR_ANSWERED : 0;
	snprintf(e.text, sizeof(e.text), "%.*s", (int)sizeof(e.text) - 1, f->status ? f->text : "");
	rc_error_tell(&e, out);
	return 0;
}

int rc_future_check(const struct rref_future *f, const char *what)
{
	if (!f)
		return rc_fail(EINVAL, "%s: no future", what);
	if (rc_is_child(f->ctx))
		return rc_fail_child();
	if (!rc_op_done(f))
		return rc_fail(EAGAIN, "the operation is not complete");
	return f->status ? rc_op_error(f) : 0;
}

int rref_future_view(struct rref_future *f, struct rref_view **out)
{
	int err = out ? rc_future_check(f, "rref_future_view")
		      : rc_fail(EINVAL, "rref_future_view: nowhere to put it");

	if (err)
		return err;
	*out = rc_op_take_view(f);
	return *out ? 0 : rc_fail(ENOMSG, "the future holds no view (any more)");
}

int rref_future_data(const struct rref_future *f, const void **data, size_t *length)
{
	int err = data && length ? rc_future_check(f, "rref_future_data")
				 : rc_fail(EINVAL, "rref_future_data: nowhere to put it");

	if (err)
		return err;
	if (!f->incoming)
		return rc_fail(ENOMSG, "the future is not of a call");
	*data = f->data;
	*length = f->data_length;
	return 0;
}

int rref_future_nr_refs(const struct rref_future *f)
{
	int err = rc_future_check(f, "rref_future_nr_refs");

	if (err)
		return err;
	return f->incoming ? (int)f->incoming->nr : rc_fail(ENOMSG, "the future is not of a call");
}

int rref_future_ref(struct rref_future *f, size_t i, struct rref **out)
{
	const char *site = rc_site_take();
	int err = out ? rc_future_check(f, "rref_future_ref")
		      : rc_fail(EINVAL, "rref_future_ref: nowhere to put it");

	if (err)
		return err;
	if (!f->incoming)
		return rc_fail(ENOMSG, "the future is not of a call");
	if (i >= f->incoming->nr)
		return rc_fail(EINVAL,
			       "rref_future_ref: reference %zu: the result has %u, counted from 0",
			       i, f->incoming->nr);
	if (!f->incoming->ref[i].handle)
		return rc_fail(ENOMSG, "reference %zu was taken already", i);
	*out = f->incoming->ref[i].handle;
	rc_handle_made_at(*out, site);
	f->incoming->ref[i].handle = NULL;
	return 0;
}

/* Returns whether f is a read that gives back only its slot and its hold on the reference. */
static inline bool brought_all(const struct rref_future *f)
{
	return f->is->reads && at_load(&f->view) == RC_VIEW_TAKEN && !f->landing;
}

static __attribute__((noinline)) void future_put(struct rref_future *f)
{
	RB_NO_CANCEL;

	if (!at_load(&f->queue) || !rc_queue_leave(f))
		rc_op_put(f);
}

void rref_future_free(struct rref_future *f)
{
	if (!f || rc_is_child(f->ctx))
		return;
	/* The last hold on an own future stays the last, since nobody finds the future but its
	 * queue. Acquire: the other holders are done with it. */
	if (RB_FAST(f->is->keep && at_load_acq(&f->refs) == 1 && !at_load(&f->queue)))
		f->is->keep(f);
	else if (RB_FAST(at_load_acq(&f->refs) == 1 && !at_load(&f->queue) && brought_all(f)))
		rc_op_put(f); /* makes no system call, so it is no cancellation point */
	else
		future_put(f);
}
