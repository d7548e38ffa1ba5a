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
#include "core/read/take_in.h"
#include "core/session/session.h"
#include "core/value/value.h"

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
void rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline)
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
		return;
	}
	rc_lock(ctx);
	rc_wait_begin(ref, f, deadline);
	rc_unlock(ctx);
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

/*
 * Ends a read of this thread's alone, whose time is over. Its landing block stays with the device,
 * as in rc_read_end. A read that was posted needs no lock for that. Its holder may stand still.
 */
static void time_out(struct rref_future *f)
{
	static const char late[] = "the value did not come in time";
	struct rref_ctx *ctx = f->ctx;
	char words[RREF_TEXT_SIZE];

	if (!at_load_acq(&f->posted)) {
		rc_lock(ctx);
		rc_op_end(ctx, f, -ETIMEDOUT, late);
		rc_unlock(ctx);
		return;
	}
	at_add(&ctx->n.quarantined, 1);
	if (!rc_op_claim(f)) {
		at_sub(&ctx->n.quarantined, 1);
		return;
	}
	f->status = -ETIMEDOUT;
	f->wc_status = -1;
	snprintf(f->text, sizeof(f->text), "%s",
		 f->is->why_late(ctx, f->peer, late, words, sizeof(words)));
	rc_op_finish(f);
}

/* Waits for f, until deadline or, if that is below 0, for timeout; takes its view and frees it. */
int rc_read_finish(struct rref_future *f, int64_t deadline, int64_t timeout, struct rref_view **out)
{
	int err;

	if (unlikely(!rc_op_done(f)) &&
	    (deadline < 0 ? rc_op_wait_for(f, timeout) : rc_op_wait(f, deadline))) {
		time_out(f);
		rc_op_wait(f, INT64_MAX); /* complete, or its completer is about to complete it */
	}
	err = f->status ? rc_op_error(f) : 0;
	if (!err)
		*out = rc_op_take_view(f);
	rc_op_put(f);
	return err;
}

/*
 * Reads [offset, +length) of ref; SIZE_MAX: the whole value. A whole value of at least look_least
 * bytes that has to be waited for is looked at.
 */
static int read_range(struct rref *ref, size_t offset, size_t length, size_t look_least,
		      int64_t timeout, struct rref_view **out)
{
	struct rref_future *f;

	if (rc_read_at_once(ref, offset, length, &f))
		return rc_read_finish(f, -1, timeout, out);
	int err = rc_op_get(ref->ctx, &rc_read_kind, 0, &f);

	/* Back-pressure: the time runs only from here, since the first try took hardly any. */
	if (unlikely(err == -EAGAIN))
		err = rc_op_get(ref->ctx, &rc_read_kind, rc_deadline(ref->ctx, timeout), &f);
	if (err)
		return err;
	f->offset = offset;
	f->length = length;
	f->whole = length == SIZE_MAX;
	f->look_least = look_least;
	rc_read_begin(ref, f, INT64_MAX); /* this thread watches the time itself */
	return rc_read_finish(f, -1, timeout, out);
}

int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	RB_NO_CANCEL;

	return read_range(ref, 0, SIZE_MAX, rc_look_bytes(ref->ctx), timeout, out);
}

/* A wait for the READ of a flight, or for a slot in which it may go on. It takes no lock. */
struct go_on {
	struct rc_waiter w;
	struct rc_in_flight *fl;
	struct rref_future *f; /* the slot; NULL: it landed */
	int *status;
	unsigned pauses;
};

static bool may_go_on(struct rc_waiter *w)
{
	struct go_on *g = container_of(w, struct go_on, w);

	return (*g->status = rc_in_flight_result(g->fl)) <= 0 ||
	       rc_op_get(w->ctx, &rc_read_kind, 0, &g->f) == 0;
}

static void pause_before(struct rc_waiter *w, int64_t deadline)
{
	(void)deadline; /* is further off than a pause, or no matter */
	rc_pause(&container_of(w, struct go_on, w)->pauses);
}

/* Waits for a slot. Returns 0 and *f, NULL if the READ landed first; or -ETIMEDOUT. */
static int wait_for_slot(struct rref_ctx *ctx, struct rc_in_flight *fl, int64_t deadline,
			 struct rref_future **f, int *status)
{
	static const struct rc_wait_kind kind = { .is_over = may_go_on, .sleep = pause_before };
	static _Atomic uint32_t word; /* has always moved */
	struct go_on g = {
		.w = { .ctx = ctx, .kind = &kind, .word = &word, .seen = 1, .mask = 1 },
		.fl = fl,
		.status = status,
	};
	int err = rc_wait(&g.w, false, max_of(deadline, 0), 0);

	*f = g.f;
	return err;
}

int rc_read_go_on(struct rref *ref, struct rc_in_flight **fl, struct rc_landing *v, int64_t timeout,
		  struct rref_view **out, int *status)
{
	struct rref_ctx *ctx = ref->ctx;
	int64_t deadline = -1; /* no look at the clock yet */
	struct rref_future *f;

	if (rc_op_get(ctx, &rc_read_kind, 0, &f)) {
		deadline = rc_deadline(ctx, timeout);
		if (wait_for_slot(ctx, *fl, deadline, &f, status)) {
			/* No slot came in time: the flight keeps the landing buffer. */
			if (rc_in_flight_leave(ctx, fl, NULL, v))
				return rc_fail(ETIMEDOUT, "the value did not come in time");
			*status = rc_in_flight_result(*fl);
			return 1;
		}
		if (!f)
			return 1;
	}
	rc_read_taken(f, ref, v);
	if (rc_in_flight_leave(ctx, fl, f, v)) {
		rc_op_begin(f);
		return rc_read_finish(f, deadline, timeout, out);
	}
	*status = rc_in_flight_result(*fl);
	f->landing = NULL;
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

/* Reads what is known. ref->fast_class was loaded with acquire and is not RC_FAST_NOT. */
static inline int read_fast(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	struct rc_peer *p = &ref->ctx->peers[ref->owner];

	return p->reads_inline ? rc_fast_read_copied(ref, timeout, out, p)
			       : rc_fast_read_posted(ref, timeout, out, p);
}

/*
 * Goes every way that is not fast. With scopes on, no way is fast. look_least: bytes from which on
 * a value is looked at.
 */
static __attribute__((noinline)) int to_here(struct rref *ref, size_t look_least, int64_t timeout,
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
	else if (rc_read_look(ref, look_least, out))
		; /* a look takes no time */
	else if (at_load_acq(&ref->fast_class) > RC_FAST_LOOK)
		err = read_fast(ref, timeout, out);
	else
		err = read_range(ref, 0, SIZE_MAX, look_least, timeout, out);
	rc_scope_end(ref->ctx, s, err);
	return err;
}

/* Says why nothing is read, or reads after all. */
static __attribute__((noinline, cold)) int to_here_checked(struct rref *ref, int64_t timeout,
							   struct rref_view **out)
{
	int err = rc_read_cannot(ref, out, "rref_to_here");

	return err ? err : to_here(ref, rc_look_bytes(ref->ctx), timeout, out);
}

int rref_to_here(struct rref *ref, int64_t timeout, struct rref_view **out)
{
	if (unlikely(!ref || !out || !rc_usable(ref->ctx)))
		return to_here_checked(ref, timeout, out);
	/* Acquire: pairs with rc_handle_ready. */
	return at_load_acq(&ref->fast_class) ? read_fast(ref, timeout, out)
					     : to_here(ref, rc_look_bytes(ref->ctx), timeout, out);
}

int rref_to_here_with(struct rref *ref, unsigned flags, int64_t timeout, struct rref_view **out)
{
	RB_NO_CANCEL;
	int err = to_here_check(ref, out, "rref_to_here_with");

	if (err)
		return err;
	switch (flags) {
	case 0:
		return rref_to_here(ref, timeout, out);
	case RREF_READ_COPY:
		return to_here(ref, SIZE_MAX, timeout, out);
	case RREF_READ_LOOK:
		return to_here(ref, 0, timeout, out);
	default:
		return rc_fail(EINVAL, "rref_to_here_with: flags %#x", flags);
	}
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
	int err = rc_into_try(ref, buf, offset, length, got);

	if (err)
		return min_of(err, 0);
	if (rc_read_ready_here(ref))
		v = rc_read_alias(ref);
	else
		err = read_range(ref, offset, min_of(length, SIZE_MAX - 1), SIZE_MAX,
				 timeout, &v);
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

/* Returns a view that needs no READ, or NULL. The fast way has tried a look. */
static struct rref_view *view_at_once(struct rref *ref)
{
	struct rref_view *v = NULL;

	if (rc_read_ready_here(ref))
		v = rc_read_alias(ref);
	else if (!RB_FAST(!ref->ctx->scopes))
		rc_read_look(ref, rc_look_bytes(ref->ctx), &v);
	return v;
}

/* Goes every way in which an asynchronous read is not over at once. */
static __attribute__((noinline)) int begin_async(struct rref *ref, int64_t timeout,
						 struct rref_future **out)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx = ref->ctx;
	int64_t deadline = rc_deadline(ctx, timeout);
	struct rref_view *v;
	struct rref_future *f;

	/* A scope ends with an operation under way. */
	if (!ctx->scopes && rc_read_at_once(ref, 0, SIZE_MAX, out))
		return 0;
	int err = rc_op_get(ctx, &rc_read_kind, deadline, &f);

	if (err)
		return err;
	rc_scope_attach(f, "to_here_async", NULL, ref->owner);
	f->offset = 0;
	f->length = SIZE_MAX;
	f->whole = true;
	f->look_least = rc_look_bytes(ctx);
	v = view_at_once(ref);
	if (v) {
		f->peer = ref->owner;
		rc_op_claim(f);
		at_store(&f->view, v);
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

int rref_to_here_async(struct rref *ref, int64_t timeout, struct rref_future **out)
{
	int err = to_here_check(ref, out, "rref_to_here_async");

	if (unlikely(err))
		return err;
	return likely(rc_fast_begin(ref, out)) || rc_fast_begin_posted(ref, timeout, out)
		       ? 0
		       : begin_async(ref, timeout, out);
}
