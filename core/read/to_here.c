/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways by which a reference's value comes here: to_here and its kin.
 *
 *   owner, value ready      an alias, at once
 *   user, location known    READ, on this thread, without the progress lock
 *   otherwise               the machine is asked (WAIT); its answer (WAITED) brings value, location
 *                           or error
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fast.h"
#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/base/wait.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"

/*
 * Parks f in the machine until value, location or error is known: WAITED goes on with it. Consumes
 * the engine's hold on f if that fails, which completes the future. f->handle is set.
 */
void rc_wait_begin(struct rref *ref, struct rref_future *f, int64_t deadline)
{
	struct rref_ctx *ctx = ref->ctx;

	rc_assert_locked(ref->ctx);
	at_store(&f->deadline, deadline);
	rc_op_begin(f);
	struct rp_event ev = {
		.type = RP_EV_WAIT, .id = ref->id, .fork = rc_fork_of(ref), .cookie = rc_op_token(f)
	};
	/* Checked under the lock: after the shutdown's last sweep nobody would end a parked
	 * operation. */
	int err = at_load_acq(&ref->state) == RC_H_FAILED ? rc_handle_error(ref) : rc_enter(ctx);
	bool told = err;

	if (told && at_load(&ref->state) == RC_H_FAILED)
		f->about = ref->about;
	f->parked = true; /* set before the step: its answer may come at once */
	if (!err)
		err = rc_step(ctx, &ev, NULL);
	if (err) {
		f->parked = false;
		rc_op_fail(f, err, -1, told ? rc_error_text() : NULL);
		rc_op_put(f);
	}
}

/*
 * Starts the operation for [f->offset, +f->length) of ref. Consumes the engine's hold on f in every
 * case. Failures complete the future.
 */
int rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline)
{
	struct rref_ctx *ctx = ref->ctx;
	uint32_t state = at_load_acq(&ref->state);

	f->peer = ref->owner;
	f->handle = rref_dup(ref);
	if (state == RC_H_READY && !ref->owned) {
		f->loc = rc_remote(ref)->loc;
		at_store(&f->deadline, deadline);
		rc_op_begin(f);
		rc_read_start(f);
		return 0;
	}
	rc_lock(ctx);
	rc_wait_begin(ref, f, deadline);
	rc_unlock(ctx);
	return 0;
}

__attribute__((noinline, cold)) int rc_read_cannot(const struct rref *ref, const void *out,
						   const char *what)
{
	if (!ref || !out)
		return rc_fail(EINVAL, "%s: %s", what,
			       ref ? "nowhere to put the result" : "no reference");
	int err = rc_enter(ref->ctx);

	return err == -ESHUTDOWN
		       ? rc_fail(ESHUTDOWN, "%s: the context was shut down: nothing is read", what)
		       : err;
}

static inline int to_here_check(const struct rref *ref, const void *out, const char *what)
{
	return likely(ref && out && rc_usable(ref->ctx)) ? 0 : rc_read_cannot(ref, out, what);
}

/* Waits for f, until deadline or, if that is below 0, for timeout; takes its view and frees it. */
int rc_read_finish(struct rref_future *f, int64_t deadline, int64_t timeout, struct rref_view **out)
{
	struct rref_ctx *ctx = f->ctx;
	int err;

	if (unlikely((at_load_acq(&f->state) & RC_F_MASK) != RC_F_DONE) &&
	    (deadline < 0 ? rc_op_wait_for(f, timeout) : rc_op_wait(f, deadline))) {
		rc_lock(ctx);
		rc_op_end(ctx, f, -ETIMEDOUT, "the value did not come in time");
		rc_unlock(ctx);
		rc_op_wait(f, INT64_MAX); /* complete, or its completer is about to complete it */
	}
	err = f->status ? rc_op_error(f) : 0;
	if (!err) {
		*out = f->view;
		f->view = NULL;
	}
	rc_op_put(f);
	return err;
}

static int read_range(struct rref *ref, size_t offset, size_t length, int64_t timeout,
		      struct rref_view **out)
{
	struct rref_future *f;
	int err = rc_op_get(ref->ctx, &rc_read_kind, 0, &f);

	/* Back-pressure: the time runs only from here, since the first try took hardly any. */
	if (unlikely(err == -EAGAIN))
		err = rc_op_get(ref->ctx, &rc_read_kind, rc_deadline(ref->ctx, timeout), &f);
	if (err)
		return err;
	f->offset = offset;
	f->length = length;
	f->whole = length == SIZE_MAX;
	rc_read_begin(ref, f, INT64_MAX); /* this thread watches the time itself */
	return rc_read_finish(f, -1, timeout, out);
}

int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	RB_NO_CANCEL;

	return read_range(ref, 0, SIZE_MAX, timeout, out);
}

/* A wait for the READ of a flight, or for a slot in which it may go on. */
struct go_on {
	struct rc_in_flight *fl;
	struct rref_future *f; /* the slot; NULL: it landed */
	int *status;
};

static needs_lock bool may_go_on(struct rref_ctx *ctx, void *arg)
{
	struct go_on *g = arg;

	return rc_in_flight_landed(g->fl, g->status) ||
	       rc_op_get(ctx, &rc_read_kind, 0, &g->f) == 0;
}

int rc_read_go_on(struct rref *ref, struct rc_in_flight **fl, struct rc_landing *v, int64_t timeout,
		  struct rref_view **out, int *status)
{
	struct rref_ctx *ctx = ref->ctx;
	int64_t deadline = -1; /* no look at the clock yet */
	struct go_on g = { .fl = *fl, .status = status };
	struct rref_future *f;
	int err = 0;

	if (rc_op_get(ctx, &rc_read_kind, 0, &g.f)) {
		deadline = rc_deadline(ctx, timeout);
		rc_lock(ctx);
		err = rc_wait_until(ctx, may_go_on, &g, deadline);
		/* A slot need not come in time: the flight then keeps the landing buffer. */
		bool left = err && rc_in_flight_leave(ctx, fl, NULL, v, status);

		rc_unlock(ctx);
		if (left)
			return rc_fail(ETIMEDOUT, "the value did not come in time");
		if (!g.f)
			return 1;
	}
	f = g.f;
	rc_lock(ctx);
	bool left = rc_in_flight_leave(ctx, fl, f, v, status);

	if (left) {
		rc_read_taken(f, ref, v);
		rc_op_begin(f);
	}
	rc_unlock(ctx);
	if (left)
		return rc_read_finish(f, deadline, timeout, out);
	rc_op_put(f); /* the engine's hold, which never saw it */
	rc_op_put(f);
	return 1;
}

/*
 * Waits until a creation that is under way is over, for a read by the creator. So no operation has
 * to be parked for it. The reference tells the creation's result. *timeout is the time that is
 * left. Returns 0, or -ETIMEDOUT with a text.
 */
static int wait_for_creation(struct rref *ref, int64_t *timeout)
{
	char words[RREF_TEXT_SIZE];
	struct rref_ctx *ctx = ref->ctx;
	struct rref_future *f;
	int64_t deadline;
	int err;

	rc_lock(ctx);
	f = rc_remote(ref)->creation;
	if (!f) {
		rc_unlock(ctx);
		return 0;
	}
	at_add(&f->refs, 1);
	ctx->turns.turn_at = rc_coarse_ns();
	deadline = rc_deadline_seen(ctx, *timeout, ctx->turns.turn_at);
	err = rc_op_wait_locked(f, deadline);
	rc_op_put(f);
	if (err && at_load_acq(&ref->state) < RC_H_READY) {
		rc_lock(ctx);
		const char *why = rc_stall_words(ctx, ref->owner, "the value did not come in time",
						 words, sizeof(words));

		rc_unlock(ctx);
		return rc_fail(ETIMEDOUT, "%s", why);
	}
	if (deadline != INT64_MAX)
		*timeout = max_of(deadline - rc_coarse_ns(), 0);
	return 0;
}

/* Goes every way that is not fast. With scopes on, no way is fast. */
static __attribute__((noinline)) int to_here(struct rref *ref, int64_t timeout,
					     struct rref_view **out)
{
	RB_NO_CANCEL;
	struct rc_scope *s = rc_scope_begin(ref->ctx, "to_here", NULL, ref->ctx->rank, ref->owner);
	int err = 0;

	if (RB_FAST(!ref->owned && ref->creator && at_load_acq(&ref->state) < RC_H_READY))
		err = wait_for_creation(ref, &timeout);
	if (err)
		; /* the error has its words */
	else if (rc_read_ready_here(ref))
		*out = rc_read_alias(ref);
	else if (at_load_acq(&ref->fast_class))
		err = rc_fast_read(ref, timeout, out);
	else
		err = rc_read_whole(ref, timeout, out);
	rc_scope_end(ref->ctx, s, err);
	return err;
}

int rref_to_here(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	int err = to_here_check(ref, out, "rref_to_here");

	if (unlikely(err))
		return err;
	/* Acquire: pairs with rc_handle_ready. */
	return at_load_acq(&ref->fast_class) ? rc_fast_read(ref, timeout, out)
					: to_here(ref, timeout, out);
}

int rref_local_value(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	RB_NO_CANCEL;
	int err = to_here_check(ref, out, "rref_local_value");

	if (err)
		return err;
	if (!ref->owned) {
		char name[RREF_TEXT_SIZE / 2];

		rref_format(ref, name, sizeof(name));
		return rc_fail(
			EPERM,
			"rref_local_value: %s is not owned by this worker (%s): its owner is %s",
			name, ref->ctx->members[ref->ctx->rank].name, rref_owner_name(ref));
	}
	return rref_to_here(ref, timeout, out);
}

/*
 * Copies what a read brought into the program's buffer, and frees the view. Returns the bytes
 * copied. The program's memory is written by this thread only, so that nothing can come late. An
 * alias is of the whole value, a landing buffer begins at offset.
 */
size_t rc_read_copy(struct rref_view *v, void *buf, size_t offset, size_t length)
{
	size_t skip = rc_value_of(v) ? min_of(offset, v->length) : 0;
	size_t n = min_of(length, v->length - skip);

	if (n)
		memcpy(buf, (const char *)v->data + skip, n);
	rref_view_free(v);
	return n;
}

int rc_read_into(struct rref *ref, void *buf, size_t offset, size_t length, int64_t timeout,
		 size_t *got)
{
	struct rref_view *v;
	int err = 0;

	if (rc_read_ready_here(ref))
		v = rc_read_alias(ref);
	else
		err = read_range(ref, offset, min_of(length, SIZE_MAX - 1), timeout, &v);
	if (!err)
		*got = rc_read_copy(v, buf, offset, length);
	return err;
}

int rref_to_here_into(struct rref *ref, void *buf, size_t offset, size_t length, int64_t timeout,
		      size_t *got)
{
	RB_NO_CANCEL;
	int err = to_here_check(ref, got, "rref_to_here_into");

	if (err)
		return err;
	if (length && !buf)
		return rc_fail(EINVAL, "rref_to_here_into: no buffer");
	struct rc_scope *s = rc_scope_begin(ref->ctx, "to_here_into", NULL, ref->ctx->rank,
					    ref->owner);

	err = rc_read_into(ref, buf, offset, length, timeout, got);
	rc_scope_end(ref->ctx, s, err);
	return err;
}

int rref_to_here_async(struct rref *ref, int64_t timeout, struct rref_future **out)
{
	RB_NO_CANCEL;
	int err = to_here_check(ref, out, "rref_to_here_async");

	if (err)
		return err;
	struct rref_ctx *ctx = ref->ctx;
	int64_t deadline = rc_deadline(ctx, timeout);
	struct rref_future *f;

	err = rc_op_get(ctx, &rc_read_kind, deadline, &f);
	if (err)
		return err;
	rc_scope_attach(f, "to_here_async", NULL, ref->owner);
	f->offset = 0;
	f->length = SIZE_MAX;
	f->whole = true;
	if (rc_read_ready_here(ref)) {
		f->peer = ref->owner;
		rc_op_claim(f);
		f->view = rc_read_alias(ref);
		rc_op_finish(f);
		rc_op_put(f);
	} else {
		rc_read_begin(ref, f, deadline);
		/* The waiter may come late or never: the poller has to be awake for it. */
		if (!rref_future_test(f))
			rc_kick(ctx);
	}
	*out = f;
	return 0;
}
