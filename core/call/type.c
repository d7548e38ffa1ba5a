/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions for a value's type. A worker that does not know the hash asks the value's owner for the
 * name.
 *
 * A query is an operation: first it waits for the value like a read (WAIT, WAITED). If the hash is
 * not known here, it then waits for TYPE_ANSWER. From its TYPE_QUERY on, its completion gives back
 * the engine's hold.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/call/call.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/value.h"

static needs_lock void type_give(struct rref_future *f, const struct rc_type *t)
{
	if (!rc_op_claim(f))
		return;
	f->type = t;
	rc_op_finish_locked(f);
	rc_op_put(f);
}

static needs_lock void give_error(struct rref_future *f, int err, const char *text)
{
	if (rc_op_fail(f, err, -1, text))
		rc_op_put(f);
}

static needs_lock void
query_located(struct rref_ctx *ctx, struct rref_future *f, const struct rp_location *loc)
{
	const struct rc_type *t = rc_type_find(ctx, loc->type_hash);
	struct rw_message m = { .frame.type = RW_TYPE_QUERY };
	int err;

	f->loc = *loc;
	if (t) {
		type_give(f, t);
		return;
	}
	m.u.type = (struct rw_type_info){ .number = rc_op_token(f), .id = f->handle->id,
					  .fork = rc_fork_of(f->handle) };
	err = rc_send(ctx, f->peer, &m);
	if (err)
		give_error(f, err, rc_error_text());
}

static needs_lock void end_query(struct rref_ctx *ctx, struct rref_future *f, int status,
				 const char *text)
{
	if (rc_op_fail(f, status, -1, text) && !rc_op_unpark(ctx, f))
		rc_op_put(f);
}

/* Ends the query with the type of this worker's own value. */
static void query_here(struct rref_future *f, struct rc_value *v)
{
	f->type = v->type;
}

static void release_query(struct rref_future *f)
{
	rref_release(f->handle);
}

static const struct rc_op_kind type_kind = {
	.name = "type", .ends_with_peer = true,
	.end = end_query, .release = release_query, .why_late = rc_stall_words,
	.here = query_here, .located = query_located,
};

/*
 * Returns the operation of a query or its answer, with a hold. Returns NULL if the operation is
 * over.
 */
static struct rref_future *asking(struct rref_ctx *ctx, uint64_t number)
{
	struct rref_future *f = rc_op_hold(ctx, number);

	if (!f || (at_load(&f->kind) == &type_kind && !f->parked &&
		   (at_load(&f->state) & RC_F_MASK) == RC_F_PENDING))
		return f;
	rc_op_put(f);
	return NULL;
}

void rc_type_unsent(struct rref_ctx *ctx, const struct rw_type_info *q, int err, const char *why)
{
	struct rref_future *f = asking(ctx, q->number);

	rc_assert_locked(ctx);
	if (!f)
		return;
	give_error(f, err, why);
	rc_op_put(f);
}

void rc_type_query(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_type_info *q)
{
	struct rw_message m = { .frame.type = RW_TYPE_ANSWER, .u.type.number = q->number };
	const struct rc_type *t;
	void *value;

	rc_assert_locked(ctx);
	/* Tells only the type of a value that the asker holds, by its own fork of it. */
	if (!rc_held_value(ctx, from->rank, &q->id, &q->fork, &value)) {
		t = ((const struct rc_value *)value)->type;
		m.u.type.element_size = t->element_size;
		m.u.type.flags = t->flags;
		m.u.type.name = t->name;
		m.u.type.name_length = (uint8_t)strlen(t->name);
	}
	rc_send_or_end(ctx, from->rank, &m);
}

void rc_type_answer(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_type_info *a)
{
	struct rref_future *f = asking(ctx, a->number);
	const char *owner = from->member->name;
	char text[RP_TEXT_MAX];
	const struct rc_type *t;
	int err;

	rc_assert_locked(ctx);
	/* Dropped: the answer is late, repeated, or of a worker that was not asked. */
	if (!f || f->peer != from->rank) {
		at_add(&ctx->n.dropped, 1);
		goto out;
	}
	err = rc_type_learn(ctx, f->loc.type_hash, a->name, a->name_length, a->element_size,
			    a->flags, &t);
	if (err == -EBADMSG) {
		snprintf(text, sizeof(text), "%.100s told a type that its value does not have",
			 owner);
		give_error(f, err, text);
	} else if (err) {
		give_error(f, err, rc_error_text());
	} else {
		type_give(f, t);
	}
out:
	if (f)
		rc_op_put(f);
}

/*
 * Returns the type if it is known without asking. Returns NULL if it has to be waited or asked for.
 */
static const struct rc_type *known(struct rref *ref)
{
	if (at_load_acq(&ref->state) != RC_H_READY)
		return NULL;
	return ref->owned ? ref->value->type
			  : rc_type_find(ref->ctx, rc_remote(ref)->loc.type_hash);
}

/*
 * Begins a query. The operation ends by itself at `until`; a waiter that watches the time gives
 * INT64_MAX.
 */
static int begin_query(struct rref *ref, int64_t deadline, int64_t until, struct rref_future **out)
{
	struct rref_ctx *ctx = ref->ctx;
	int err = rc_op_get(ctx, &type_kind, deadline, out);
	const struct rc_type *t;

	if (err)
		return err;
	struct rref_future *f = *out;

	f->peer = ref->owner;
	f->handle = rref_dup(ref);
	rc_lock(ctx);
	t = known(ref);
	if (t || (at_load_acq(&ref->state) == RC_H_READY && !rc_enter(ctx))) {
		at_store(&f->deadline, until);
		rc_op_begin(f);
		if (t)
			type_give(f, t);
		else
			query_located(ctx, f, &rc_remote(ref)->loc);
	} else {
		rc_wait_begin(ref, f, until);
	}
	rc_unlock(ctx);
	return 0;
}

static int type_check(struct rref *ref, const void *arg, const char *what)
{
	if (!ref || !arg)
		return rc_fail(EINVAL, "%s: %s", what,
			       ref ? "no type, or nowhere to put it" : "no reference");
	return rc_enter(ref->ctx);
}

static int get(struct rref *ref, int64_t timeout, const struct rc_type **out)
{
	struct rref_ctx *ctx = ref->ctx;
	int64_t deadline;
	struct rref_future *f;
	int err;

	*out = known(ref);
	if (*out)
		return 0;
	deadline = rc_deadline(ctx, timeout);
	err = begin_query(ref, deadline, INT64_MAX, &f);
	if (err)
		return err;
	if (rc_op_wait(f, deadline)) {
		rc_lock(ctx);
		rc_op_end(ctx, f, -ETIMEDOUT, "the value's type did not come in time");
		rc_unlock(ctx);
		rc_op_wait(f, INT64_MAX); /* complete, or its completer is about to complete it */
	}
	err = f->status ? rc_op_error(f) : 0;
	*out = f->type;
	rc_op_put(f);
	return err;
}

int rref_get_type(struct rref *ref, int64_t timeout, struct rref_type *out)
{
	RB_NO_CANCEL;
	const struct rc_type *t;
	int err = type_check(ref, out, "rref_get_type");

	if (!err)
		err = rc_type_check_out(out, "rref_get_type");
	if (!err)
		err = get(ref, timeout, &t);
	if (!err)
		rc_type_describe(t, out);
	return err;
}

int rref_get_type_async(struct rref *ref, int64_t timeout, struct rref_future **out)
{
	RB_NO_CANCEL;
	int err = type_check(ref, out, "rref_get_type_async");
	struct rref_future *f;
	int64_t deadline;

	if (err)
		return err;
	deadline = rc_deadline(ref->ctx, timeout);
	err = begin_query(ref, deadline, deadline, &f);
	if (err)
		return err;
	/* The waiter may come late or never: the poller has to be awake for it. */
	if (!rref_future_test(f))
		rc_kick(ref->ctx);
	*out = f;
	return 0;
}

int rref_expect_type(struct rref *ref, const struct rref_type *type, int64_t timeout)
{
	RB_NO_CANCEL;
	char name[RREF_TEXT_SIZE / 2], is[RREF_NAME_MAX + 96], wanted[RREF_NAME_MAX + 96];
	const struct rc_type *want, *t;
	int err = type_check(ref, type, "rref_expect_type");

	if (!err)
		err = rc_type_get(ref->ctx, type, "rref_expect_type", &want);
	if (!err)
		err = get(ref, timeout, &t);
	if (err || t == want)
		return err;
	rref_format(ref, name, sizeof(name));
	return rc_fail(EPROTOTYPE, "%s of %s is of type %s, not %s", name, rref_owner_name(ref),
		       rc_type_words(t, is, sizeof(is)),
		       rc_type_words(want, wanted, sizeof(wanted)));
}

int rref_future_type(const struct rref_future *f, struct rref_type *out)
{
	int err = out && out->size >= sizeof(size_t)
			  ? rc_future_check(f, "rref_future_type")
			  : rc_fail(EINVAL,
				    "rref_future_type: nowhere to put it, or out->size is not set");

	if (err)
		return err;
	if (!f->type)
		return rc_fail(ENOMSG, "the future is not of a type");
	rc_type_describe(f->type, out);
	return 0;
}
