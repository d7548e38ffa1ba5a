/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the caller's side: sharing the argument references, sending, and what the reply makes of the future. A
 * call's id on the wire is its operation's token, so a late reply finds nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "rc.h"

#define MAX_QUEUED 512u /* messages that wait for one peer before callers have to */

int rc_check_args(struct rref_ctx *ctx, const struct rref_args *a)
{
	if (!a)
		return 0;
	if (a->length > RREF_ARGS_MAX)
		return rc_fail(EMSGSIZE, "%zu bytes of arguments: the limit is %d; share a reference to a value for more", a->length,
			       RREF_ARGS_MAX);
	if (a->nr_refs > RREF_REFS_MAX)
		return rc_fail(EMSGSIZE, "%zu references in one message: the limit is %d", a->nr_refs, RREF_REFS_MAX);
	if ((a->length && !a->data) || (a->nr_refs && !a->refs))
		return rc_fail(EINVAL, "arguments without their bytes or references");
	for (size_t i = 0; i < a->nr_refs; i++) {
		struct rref *r = a->refs[i];

		if (!r)
			return rc_fail(EINVAL, "reference %zu is NULL", i);
		if (r->ctx != ctx)
			return rc_fail(EINVAL, "reference %zu belongs to another context", i);
		if (at_load_acq(&r->state) == RC_H_FAILED)
			return rc_handle_error(r);
	}
	return 0;
}

/* Shares each reference with rank `to`: all or none. */
int rc_make_forks(struct rref_ctx *ctx, const struct rref_args *a, uint32_t to, struct rp_fork *recs)
{
	for (size_t i = 0; a && i < a->nr_refs; i++) {
		struct rref *r = a->refs[i];
		struct rp_event ev = { .type = RP_EV_FORK, .id = r->id, .src = r->fork, .fork = rc_next_id(ctx), .peer = to };
		int err = rc_step(ctx, &ev, &recs[i]);

		if (err) {
			rc_undo_forks(ctx, a, to, recs, i);
			if (at_load(&r->state) == RC_H_FAILED)
				return rc_handle_error(r);
			return rc_fail(-err, "sharing reference %zu: %s", i, rref_strerror(err));
		}
		recs[i].owner_incarnation = ctx->members[recs[i].owner].incarnation;
	}
	return 0;
}

void rc_undo_forks(struct rref_ctx *ctx, const struct rref_args *a, uint32_t to, const struct rp_fork *recs, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		struct rp_event ev = { .type = RP_EV_FORK_UNDO, .id = a->refs[i]->id, .src = a->refs[i]->fork,
				       .fork = recs[i].fork, .peer = to };

		rc_step(ctx, &ev, NULL);
	}
}

/* A call that was accepted, and never went: the callee has nothing of it. */
void rc_call_unsent(struct rref_ctx *ctx, uint32_t to, const struct rw_call *c, int status, const char *text)
{
	struct rref_future *f = rc_op_hold(ctx, c->call_id);

	for (uint32_t i = 0; i < c->nr_refs; i++) {
		struct rp_event ev = { .type = RP_EV_FORK_UNDO, .id = c->refs[i].id, .fork = c->refs[i].fork, .peer = to };

		/* Which fork it was shared from the machine knows; here it only tells a user's child from an owner's fork. */
		if (c->refs[i].owner != ctx->rank)
			ev.src = c->refs[i].fork;
		rc_step(ctx, &ev, NULL);
	}
	if (!f)
		return;
	if (at_load(&f->kind) == RC_OP_CALL || at_load(&f->kind) == RC_OP_CREATE)
		rc_op_end(ctx, f, status, text);
	rc_op_put(f);
}

/* Back-pressure: waits, making progress, until the peer's queue has room. */
static int wait_for_room(struct rref_ctx *ctx, struct rc_peer *p, int64_t deadline)
{
	while (p->nr_queued >= MAX_QUEUED) {
		rc_progress_locked(ctx, true);
		if (p->nr_queued < MAX_QUEUED)
			break;
		rc_unlock(ctx);
		sched_yield();
		int64_t now = now_ns();

		rc_lock(ctx);
		if (now >= deadline)
			return rc_fail(EAGAIN, "%u messages wait for %s", p->nr_queued, p->member->name);
		if (at_load(&ctx->state) == RC_CTX_SHUT)
			return rc_fail(ESHUTDOWN, "the context was shut down");
	}
	return 0;
}

/*
 * After a fence the machine shares nothing with that peer until a new session is up. A message would start one, but the
 * machine's step comes before the message: so what needs it waits here, making progress. [lock, let go of meanwhile]
 */
static int wait_for_session(struct rref_ctx *ctx, struct rc_peer *p, int64_t deadline)
{
	while (p->fenced && p->rank != ctx->rank) {
		int err = rc_peer_want(ctx, p);

		if (err)
			return err;
		rc_progress_locked(ctx, true);
		if (!p->fenced)
			break;
		if (at_load(&ctx->state) != RC_CTX_RUNNING)
			return rc_fail(ESHUTDOWN, "the context was shut down");
		if (now_ns() >= deadline)
			return rc_fail(ETIMEDOUT, "no new session with %s in time", p->member->name);
		rc_unlock(ctx);
		sched_yield();
		rc_lock(ctx);
	}
	return 0;
}

static int check_target(struct rref_ctx *ctx, int rank, const char *function, const void *out, const char *what)
{
	int err = rc_enter(ctx);

	if (err)
		return err == -ESHUTDOWN ? rc_fail(ESHUTDOWN, "%s: the context was shut down: nothing is called or shared", what) : err;
	if (!out)
		return rc_fail(EINVAL, "%s: nowhere to put the result", what);
	if (rank < 0 || (uint32_t)rank >= ctx->world)
		return rc_fail(EINVAL, "%s: rank %d: the group has ranks 0 to %u", what, rank, ctx->world - 1);
	return rc_function_check(function);
}

/* A sleeping poller that would wake too late for this deadline is woken to see it. [lock] */
static void watch(struct rref_ctx *ctx, int64_t deadline)
{
	if (deadline < ctx->wake_at)
		rc_kick(ctx);
}

/* Encodes and sends one call; f's token is its id. [lock] */
static int send_call(struct rref_ctx *ctx, struct rref_future *f, int rank, const char *function, const struct rref_args *a,
		     uint8_t kind, struct rref_id id, struct rref_id fork, int64_t deadline)
{
	struct rw_message m = { .frame.type = RW_CALL };
	struct rw_call *c = &m.u.call;
	int err = a && a->nr_refs ? wait_for_session(ctx, &ctx->peers[rank], deadline) : 0;

	if (!err)
		err = wait_for_room(ctx, &ctx->peers[rank], deadline);
	if (err)
		return err;
	/* Looked at under the lock: what begins behind the shutdown's back would never end. */
	if (at_load(&ctx->state) != RC_CTX_RUNNING)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	err = rc_make_forks(ctx, a, (uint32_t)rank, c->refs);
	if (err)
		return err;
	c->call_id = rc_op_token(f);
	c->kind = kind;
	c->nr_refs = a ? (uint8_t)a->nr_refs : 0;
	c->name = function;
	c->name_length = (uint8_t)strlen(function);
	c->data = a ? a->data : NULL;
	c->data_length = a ? (uint32_t)a->length : 0;
	c->id = id;
	c->fork = fork;
	err = rc_send(ctx, (uint32_t)rank, &m);
	if (err) {
		char why[RREF_TEXT_SIZE];

		snprintf(why, sizeof(why), "%s", rc_error_text());
		rc_undo_forks(ctx, a, (uint32_t)rank, c->refs, c->nr_refs);
		return rc_fail(-err, "%s", why);
	}
	return 0;
}

int rref_rpc_async(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args, int64_t timeout,
		   struct rref_future **out)
{
	int err = check_target(ctx, rank, function, out, "rref_rpc_async");
	struct rref_future *f;

	if (!err)
		err = rc_check_args(ctx, args);
	if (err)
		return err;
	int64_t deadline = rc_deadline(ctx, timeout);

	err = rc_op_get(ctx, deadline, &f);
	if (err)
		return err;
	f->incoming = calloc(1, sizeof(*f->incoming));
	if (!f->incoming) {
		rc_op_put(f);
		rc_op_put(f);
		return rc_fail(ENOMEM, "memory for a call");
	}
	rc_lock(ctx);
	f->peer = (uint32_t)rank;
	err = send_call(ctx, f, rank, function, args, RW_CALL_RPC, (struct rref_id){ 0 }, (struct rref_id){ 0 }, deadline);
	if (!err) {
		at_store(&f->deadline, deadline);
		watch(ctx, deadline);
		at_store(&f->kind, RC_OP_CALL);
	}
	rc_unlock(ctx);
	if (err == -EOWNERDEAD) {
		/* The call was accepted and its callee is gone: the future says so, like any other failure of a peer. */
		rc_op_fail(f, err, -1, rc_error_text(), false);
		rc_op_put(f);
	} else if (err) {
		char why[RREF_TEXT_SIZE];

		snprintf(why, sizeof(why), "%s", rc_error_text());
		rc_op_claim(f);
		rc_op_put(f);
		rc_op_put(f);
		return rc_fail(-err, "%s", why);
	}
	*out = f;
	return 0;
}

int rref_rpc_sync(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args, int64_t timeout,
		  struct rref_future **out)
{
	struct rref_future *f;
	int err = rref_rpc_async(ctx, rank, function, args, timeout, &f);

	if (err)
		return err;
	rc_op_wait(f, INT64_MAX); /* bounded by the call's own deadline */
	err = f->status ? rc_fail_text(f->status, f->text) : 0;
	if (err || !out)
		rc_op_put(f);
	else
		*out = f;
	return err;
}

int rref_remote(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args, int64_t timeout,
		struct rref **out)
{
	const char *site = rc_site_take();
	int err = check_target(ctx, rank, function, out, "rref_remote");
	struct rref_future *f;
	struct rref *h;

	if (!err)
		err = rc_check_args(ctx, args);
	if (err)
		return err;
	int64_t deadline = rc_deadline(ctx, timeout);

	err = rc_op_get(ctx, deadline, &f);
	if (err)
		return err;

	bool here = (uint32_t)rank == ctx->rank;
	/* Here too, since a message without one is malformed; an owner's handle has none. */
	struct rref_id id = rc_next_id(ctx), fork = rc_next_id(ctx);

	rc_lock(ctx);
	err = wait_for_session(ctx, &ctx->peers[rank], deadline);
	h = err ? NULL : rc_handle_make(ctx, here, id, here ? (struct rref_id){ 0 } : fork, (uint32_t)rank);
	struct rp_event ev = { .type = here ? RP_EV_NEW : RP_EV_CREATE, .id = id, .fork = fork, .peer = (uint32_t)rank,
			       .handle = h };

	if (!err)
		err = h ? rc_step(ctx, &ev, NULL) : -ENOMEM;
	if (err) {
		if (h) {
			h->ended = true;
			rref_release(h);
		}
		rc_unlock(ctx);
		rc_op_claim(f);
		rc_op_put(f);
		rc_op_put(f);
		return err == -ENOMEM ? rc_fail(ENOMEM, "memory for a reference") :
		       rc_fail(-err, "%s (rank %d): %s", ctx->members[rank].name, rank,
			       *ctx->peers[rank].why ? ctx->peers[rank].why : rref_strerror(err));
	}
	f->peer = (uint32_t)rank;
	f->handle = rref_dup(h); /* the creation keeps its handle until it is over */
	h->creator = true;
	at_store(&h->site, site);
	h->creation = f;
	err = send_call(ctx, f, rank, function, args, RW_CALL_REMOTE, id, fork, deadline);
	if (err == -EOWNERDEAD || !err) {
		at_store(&f->deadline, deadline);
		watch(ctx, deadline);
		at_store(&f->kind, here ? RC_OP_LOCAL_CREATE : RC_OP_CREATE);
		if (err)
			rc_op_end(ctx, f, err, rc_error_text());
		err = 0;
	} else {
		/* Nothing was sent: the reference never was. */
		char why[RREF_TEXT_SIZE];

		snprintf(why, sizeof(why), "%s", rc_error_text());
		rc_op_claim(f);
		/* While the sender waited for room, a fence may have ended the creation, and with it the engine's hold. */
		bool held = h->creation != NULL;

		h->creation = NULL;
		struct rp_event undo = { .type = here ? RP_EV_SET : RP_EV_CREATE_FAILED, .id = id, .fork = fork, .status = err,
					 .text = why, .peer = (uint32_t)rank, .handle = h };

		rc_step(ctx, &undo, NULL);
		rc_unlock(ctx);
		if (held)
			rc_op_put(f);
		rc_op_put(f);
		rref_release(h);
		return rc_fail(-err, "%s", why);
	}
	/* The program's hold on the future is taken by rref_creation; until then the handle's creation has the engine's. */
	rc_op_put(f);
	rc_unlock(ctx);
	*out = h;
	return err;
}

int rref_creation(struct rref *ref, struct rref_future **out)
{
	struct rref_ctx *ctx;
	struct rref_future *f;
	int err = 0;

	if (!ref || !out)
		return rc_fail(EINVAL, "rref_creation: no reference, or nowhere to put the future");
	ctx = ref->ctx;
	err = rc_enter(ctx);
	if (err)
		return err;
	if (!ref->creator)
		return rc_fail(EINVAL, "rref_creation: the reference was not made by rref_remote");
	rc_lock(ctx);
	f = ref->creation;
	if (f)
		at_add(&f->refs, 1);
	rc_unlock(ctx);
	if (!f) {
		/* It is over: a complete future that says how it ended. */
		err = rc_op_get(ctx, rc_deadline(ctx, RREF_DEFAULT), &f);
		if (err)
			return err;
		f->peer = ref->owner;
		rc_op_claim(f);
		if (at_load_acq(&ref->state) == RC_H_FAILED) {
			f->status = ref->err;
			snprintf(f->text, sizeof(f->text), "%s", ref->text ? ref->text : rref_strerror(ref->err));
		}
		rc_op_finish(f, false);
		rc_op_put(f);
	}
	*out = f;
	return 0;
}

/* ---- replies ---- */

static void reply_ready(struct rref_ctx *ctx, struct rc_incoming *in)
{
	struct rref_future *f = in->future;

	(void)ctx;
	if (rc_op_claim(f)) {
		f->status = in->status;
		if (in->status)
			snprintf(f->text, sizeof(f->text), "a reference in the result: %.200s", in->text);
		rc_op_finish(f, true);
	}
	rc_op_put(f);
}

/* The answer that f waits for. [lock] */
static void take_reply(struct rref_ctx *ctx, struct rref_future *f, struct rc_peer *from, const struct rw_reply *r)
{
	if (r->status || r->nr_refs == 0) {
		f->replied = true;
		if (!rc_op_claim(f))
			return;
		f->status = r->status;
		f->peer = from->rank;
		if (r->status) {
			snprintf(f->text, sizeof(f->text), "%.*s", (int)r->text_length, r->text);
		} else if (r->data_length) {
			f->data = malloc(r->data_length);
			if (f->data) {
				memcpy(f->data, r->data, r->data_length);
				f->data_length = r->data_length;
			} else {
				f->status = -ENOMEM;
			}
		}
		rc_op_finish(f, true);
		rc_op_put(f);
		return;
	}
	f->replied = true;
	if (r->data_length) {
		f->data = malloc(r->data_length);
		if (f->data) {
			memcpy(f->data, r->data, r->data_length);
			f->data_length = r->data_length;
		} else {
			f->incoming->status = -ENOMEM;
		}
	}
	/* From here the engine's hold ends in reply_ready, whatever becomes of the future meanwhile. */
	at_store(&f->kind, RC_OP_REPLIED);
	f->incoming->ready = reply_ready;
	f->incoming->future = f;
	rc_incoming_begin(ctx, f->incoming, r->refs, r->nr_refs, from->rank);
}

void rc_reply_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m)
{
	const struct rw_reply *r = &m->u.reply;
	/* Held: an answer that comes late may find an operation whose slot is being given to the next one. */
	struct rref_future *f = rc_op_hold(ctx, r->call_id);

	if (f && at_load(&f->kind) == RC_OP_CALL && f->peer == from->rank && (at_load(&f->state) & RC_F_MASK) == RC_F_PENDING &&
	    !f->replied) {
		take_reply(ctx, f, from, r);
	} else {
		/* Late: the caller gave up. References that came with it are taken and dropped, so that their owners know. */
		at_add(&ctx->n.dropped, 1);
		rc_incoming_drop(ctx, r->refs, r->nr_refs, from);
	}
	if (f)
		rc_op_put(f);
}
