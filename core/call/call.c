/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the caller's side: sharing the argument references, and sending. A call's id on the wire
 * is its operation's token, so a late reply finds nothing. The reply's effect on the future:
 * reply.c.
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
#include "core/base/wait.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/session/session.h"
#include "core/value/value.h"

#define MAX_QUEUED 512u /* messages that may wait for one peer before callers have to wait */
/* Limit of the payload bytes that one peer has not read; see payload.c. */
#define MAX_OFFERED ((uint64_t)RREF_ARGS_MAX)

static needs_lock bool call_has_room(const struct rc_peer *p, uint64_t bytes)
{
	uint64_t offered = at_load(&p->offer_bytes);

	/* A single payload always has room, however large it is. */
	return p->nr_queued < MAX_QUEUED && (!bytes || !offered || offered + bytes <= MAX_OFFERED);
}

struct room {
	const struct rc_peer *p;
	uint64_t bytes;
};

static needs_lock bool got_room(struct rref_ctx *ctx, void *arg)
{
	const struct room *r = arg;

	(void)ctx;
	return call_has_room(r->p, r->bytes);
}

/*
 * Waits, making progress, until the peer has room for a message and for a payload of that many
 * bytes. This is the back-pressure on callers.
 */
static __attribute__((noinline)) needs_lock int wait_for_room(struct rref_ctx *ctx,
							      struct rc_peer *p, uint64_t bytes,
							      int64_t deadline)
{
	int err = rc_wait_until(ctx, got_room, &(struct room){ p, bytes }, deadline);

	if (err == -ESHUTDOWN)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	return err ? rc_fail(EAGAIN, "%u messages and %" PRIu64 " bytes of payloads wait for %s",
			     p->nr_queued, at_load(&p->offer_bytes), p->member->name)
		   : 0;
}

int rc_wait_for_room(struct rref_ctx *ctx, struct rc_peer *p, uint64_t bytes, int64_t deadline)
{
	rc_assert_locked(ctx);
	return likely(call_has_room(p, bytes)) ? 0 : wait_for_room(ctx, p, bytes, deadline);
}

struct session {
	struct rc_peer *p;
	int err;
};

static needs_lock bool got_session(struct rref_ctx *ctx, void *arg)
{
	struct session *s = arg;

	if (!s->p->fenced)
		return true;
	s->err = at_load(&ctx->state) == RC_CTX_RUNNING
			 ? rc_peer_want(ctx, s->p)
			 : rc_fail(ESHUTDOWN, "the context was shut down");
	return s->err;
}

/*
 * Waits for a new session, making progress. After a fence the machine shares nothing with that peer
 * until one is up. A message would start a session, but the machine's step comes before the
 * message. Lets go of the lock meanwhile.
 */
static needs_lock int wait_for_session(struct rref_ctx *ctx, struct rc_peer *p, int64_t deadline)
{
	struct session s = { p, 0 };
	char words[RREF_TEXT_SIZE];

	if (likely(!p->fenced || p->rank == ctx->rank))
		return 0;
	int err = rc_wait_until(ctx, got_session, &s, deadline);

	if (err == -ESHUTDOWN)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	if (err)
		return rc_fail(ETIMEDOUT, "%s",
			       rc_stall_words(ctx, p->rank, "no new session in time", words,
					      sizeof(words)));
	return s.err;
}

/* Returns the length of the function's name, or -errno. */
static inline int check_target(struct rref_ctx *ctx, int rank, const char *function,
			       const void *out, const char *what)
{
	int err = rc_enter(ctx);

	if (unlikely(err))
		return err == -ESHUTDOWN
			       ? rc_fail(ESHUTDOWN,
					 "%s: the context was shut down: "
					 "nothing is called or shared",
					 what)
			       : err;
	if (!out)
		return rc_fail(EINVAL, "%s: nowhere to put the result", what);
	if (rank < 0 || (uint32_t)rank >= ctx->world)
		return rc_fail(EINVAL, "%s: rank %d: the group has ranks 0 to %u", what, rank,
			       ctx->world - 1);
	return rc_function_length(function);
}

/* Wakes a sleeping poller that would wake too late for this deadline. */
static needs_lock void watch(struct rref_ctx *ctx, int64_t deadline)
{
	if (deadline < ctx->sleep.wake_at)
		rc_kick(ctx);
}

/* A call that is being made: the common part of rref_rpc_async and rref_remote. */
struct outgoing {
	struct rref_ctx *ctx;
	uint32_t rank;
	const char *function;
	uint8_t function_length;
	const struct rref_args *args;
	int64_t timeout;             /* the program's own value */
	int64_t deadline;            /* 0 = not asked for yet: deadline_of */
	struct rref_future *f;       /* the operation; its token is the call's id */
	struct rc_payload *payload;  /* NULL if the arguments fit the message */
};

/*
 * Returns the deadline, and reads the clock only when it is needed. That takes time, which is
 * mostly free once the call is on its way.
 */
static int64_t deadline_of(struct outgoing *o)
{
	if (!o->deadline)
		o->deadline = rc_deadline(o->ctx, o->timeout);
	return o->deadline;
}

/* Gives up an operation before any work on it has begun. Keeps the text of the error. */
static int call_abandon(struct outgoing *o, int err)
{
	char why[RREF_TEXT_SIZE];

	snprintf(why, sizeof(why), "%s", rc_error_text());
	rc_op_claim(o->f);
	rc_scope_detach(o->f, err);
	rc_op_put(o->f);
	rc_op_put(o->f);
	rc_payload_drop(o->payload);
	return rc_fail(-err, "%s", why);
}

/* Checks the arguments, gets an operation and, for large arguments, the payload. */
static inline __attribute__((always_inline)) int call_prepare(
	struct outgoing *o, const struct rc_op_kind *op, struct rref_ctx *ctx, int rank,
	const char *function, const struct rref_args *args, int64_t timeout, const void *out,
	const char *what, bool scoped)
{
	int err = check_target(ctx, rank, function, out, what), length = err;

	if (err > 0)
		err = args ? rc_check_args(ctx, args) : 0;
	if (err)
		return err;
	*o = (struct outgoing){
		.ctx = ctx,
		.rank = (uint32_t)rank,
		.function = function,
		.function_length = (uint8_t)length,
		.args = args,
		.timeout = timeout,
	};
	if (unlikely(!rc_op_try(ctx, op, &o->f)) &&
	    (err = rc_op_get(ctx, op, deadline_of(o), &o->f)))
		return err;
	if (scoped)
		rc_scope_attach(o->f, what + sizeof("rref_") - 1, function, o->rank);
	if (rc_payload_needed(args) &&
	    (err = rc_payload_make(ctx, o->rank, args, deadline_of(o), &o->payload)))
		return call_abandon(o, err);
	o->f->peer = o->rank;
	return 0;
}

/* Waits until the peer takes a call. Back-pressure is a wait for room. */
static inline needs_lock __attribute__((always_inline)) int wait_for_peer(struct outgoing *o,
									  struct rc_peer *p)
{
	int err = o->args && o->args->nr_refs ? wait_for_session(o->ctx, p, deadline_of(o)) : 0;

	if (!err && unlikely(!call_has_room(p, 0)))
		err = wait_for_room(o->ctx, p, 0, deadline_of(o));
	return err;
}

/* Puts the arguments into the message, and shares their references. */
static inline needs_lock __attribute__((always_inline)) int put_arguments(
	struct outgoing *o, const struct rref_args *a, struct rw_call *c)
{
	int err = o->payload ? rc_payload_fill(o->ctx, o->payload, a, &c->loc, c->key) :
			       rc_make_forks(o->ctx, a, o->rank, c->refs);

	if (err)
		return err;
	c->nr_refs = (uint16_t)a->nr_refs;
	c->meta = a->meta;
	c->meta_length = (uint16_t)a->meta_length;
	c->data = a->data;
	c->data_length = (uint32_t)a->length;
	return 0;
}

/* Takes back what a message shared that was not sent. Keeps the text of the error. */
static __attribute__((noinline)) needs_lock int send_failed(struct outgoing *o,
							    const struct rw_call *c, int err)
{
	char why[RREF_TEXT_SIZE];

	snprintf(why, sizeof(why), "%s", rc_error_text());
	if (o->payload)
		rc_payload_undo(o->ctx, o->payload);
	else
		rc_undo_forks(o->ctx, o->args, o->rank, c->refs, c->nr_refs);
	return rc_fail(-err, "%s", why);
}

/* Sends it. Consumes the payload on success. */
static inline needs_lock __attribute__((always_inline)) int send_call(
	struct outgoing *o, uint8_t kind, struct rref_id id, struct rref_id fork, uint64_t word)
{
	struct rref_ctx *ctx = o->ctx;
	struct rw_message m;
	struct rw_call *c = &m.u.call;
	int err = wait_for_peer(o, &ctx->peers[o->rank]);

	if (err)
		return err;
	/* Checked under the lock: a call that begins after the shutdown would never end. */
	if (at_load(&ctx->state) != RC_CTX_RUNNING)
		return rc_fail(ESHUTDOWN, "the context was shut down");
	rw_call_init(&m);
	c->call_id = rc_op_token(o->f);
	c->kind = kind;
	c->id = id;
	c->fork = fork;
	if (kind == RW_CALL_REMOTE)
		c->word = word;
	c->name = o->function;
	c->name_length = o->function_length;
	if (o->args && (err = put_arguments(o, o->args, c)))
		return err;
	err = rc_send(ctx, o->rank, &m);
	if (likely(!err && !o->payload))
		return 0;
	if (err)
		return send_failed(o, c, err);
	rc_payload_offer(ctx, o->payload, RW_PAYLOAD_CALL, c->call_id);
	o->payload = NULL;
	return 0;
}

/*
 * Makes the call. Returns 0 if its future is on the way, or complete already. A payload that is
 * left in o->payload has to be dropped without the lock. After an error the caller abandons the
 * call, without the lock.
 */
static needs_lock int begin_call(struct outgoing *o)
{
	struct rref_ctx *ctx = o->ctx;
	int err = rc_call_incoming(o->f) ? 0 : rc_fail(ENOMEM, "memory for a call");

	if (!err)
		err = send_call(o, RW_CALL_RPC, (struct rref_id){ 0 }, (struct rref_id){ 0 }, 0);
	if (likely(!err)) {
		ctx->turns.turn_at = rc_coarse_ns();
		if (likely(!o->deadline))
			o->deadline = rc_deadline_seen(ctx, o->timeout, ctx->turns.turn_at);
		at_store(&o->f->deadline, o->deadline);
		watch(ctx, o->deadline);
		rc_op_begin(o->f);
		return 0;
	}
	if (err != -EOWNERDEAD)
		return err;
	/* The call was accepted and its callee is gone. The future reports it, like any other
	 * failure of a peer. */
	rc_op_fail(o->f, err, -1, rc_error_text());
	rc_op_put(o->f);
	return 0;
}

int rref_rpc_async(struct rref_ctx *ctx, int rank, const char *function,
		   const struct rref_args *args, int64_t timeout, struct rref_future **out)
{
	RB_NO_CANCEL;
	struct outgoing o;
	int err = call_prepare(&o, &rc_call_kind, ctx, rank, function, args, timeout, out,
			       "rref_rpc_async", true);

	if (err)
		return err;
	rc_lock(ctx);
	err = begin_call(&o);
	rc_unlock(ctx);
	if (err)
		return call_abandon(&o, err);
	rc_payload_drop(o.payload);
	*out = o.f;
	return 0;
}

static int call_sync(struct rref_ctx *ctx, int rank, const char *function,
		     const struct rref_args *args, int64_t timeout, struct rref_future **out)
{
	struct outgoing o;
	int err = call_prepare(&o, &rc_call_kind, ctx, rank, function, args, timeout, &o,
			       "rref_rpc_sync", false);

	if (err)
		return err;
	rc_lock(ctx);
	err = begin_call(&o);
	if (err) {
		rc_unlock(ctx);
		return call_abandon(&o, err);
	}
	rc_op_wait_locked(o.f, INT64_MAX); /* bounded by the call's own deadline */
	rc_payload_drop(o.payload);
	err = o.f->status ? rc_op_error(o.f) : 0;
	if (likely(err || !out))
		rc_op_put(o.f);
	else
		*out = o.f;
	return err;
}

int rref_rpc_sync(struct rref_ctx *ctx, int rank, const char *function,
		  const struct rref_args *args, int64_t timeout, struct rref_future **out)
{
	RB_NO_CANCEL;
	struct rc_scope *s =
		ctx ? rc_scope_begin(ctx, "rpc_sync", function, ctx->rank, (uint32_t)rank) : NULL;
	int err = call_sync(ctx, rank, function, args, timeout, out);

	if (s)
		rc_scope_end(ctx, s, err);
	return err;
}

/* The reference that rref_remote makes. */
struct creation {
	struct outgoing o;
	struct rref_id id, fork;
	uint64_t word;
	struct rref *h;
	bool here;  /* this worker owns it */
};

/* Makes the handle, and tells the machine. Keeps nothing if it fails. */
static inline needs_lock int creation_begin(struct creation *c, int64_t now)
{
	struct rref_ctx *ctx = c->o.ctx;
	int err = wait_for_session(ctx, &ctx->peers[c->o.rank], c->o.deadline);

	if (err)
		return err;
	c->h = rc_handle_make(ctx, c->here, c->id, c->here ? (struct rref_id){ 0 } : c->fork,
			      c->o.rank);
	if (!c->h)
		return -ENOMEM;
	c->word = c->here ? 0 : rc_word();
	struct rp_event ev = { .type = c->here ? RP_EV_NEW : RP_EV_CREATE,
			       .id = c->id,
			       .fork = c->fork,
			       .peer = c->o.rank,
			       .handle = c->h,
			       .word = c->word };

	err = rc_step_at(ctx, &ev, now);
	if (err) {
		c->h->ended = true;
		rref_release(c->h);
	}
	return err;
}

/* Gives up a creation that did not begin. */
static __attribute__((noinline)) gives_lock int creation_refused(struct creation *c, int err)
{
	struct rref_ctx *ctx = c->o.ctx;
	const struct rc_peer *p = &ctx->peers[c->o.rank];
	char why[RREF_TEXT_SIZE]; /* a copy: the text may change when the lock is let go of */

	snprintf(why, sizeof(why), "%s", *p->why ? p->why : rref_strerror(err));
	rc_unlock(ctx);
	if (err == -ENOMEM)
		rc_fail(ENOMEM, "memory for a reference");
	else
		rc_fail(-err, "%s (rank %u): %s", ctx->members[c->o.rank].name, c->o.rank, why);
	return call_abandon(&c->o, err);
}

/* Gives up a creation that was not sent. No other worker knows of the reference. */
static __attribute__((noinline)) gives_lock int creation_unsent(struct creation *c, int err)
{
	struct rref_ctx *ctx = c->o.ctx;
	struct rref_future *f = c->o.f;
	char why[RREF_TEXT_SIZE];
	struct rp_event undo = { .type = c->here ? RP_EV_SET : RP_EV_CREATE_FAILED,
				 .id = c->id,
				 .fork = c->fork,
				 .status = err,
				 .text = why,
				 .peer = c->o.rank,
				 .handle = c->h };

	snprintf(why, sizeof(why), "%s", rc_error_text());
	rc_op_claim(f);
	rc_scope_detach(f, err);
	/* A fence may have ended the creation while the sender waited for room. That ends the
	 * engine's hold too. */
	bool held = rc_remote(c->h)->creation != NULL;

	rc_remote(c->h)->creation = NULL;
	rc_step(ctx, &undo, NULL);
	rc_unlock(ctx);
	if (held)
		rc_op_put(f);
	rc_op_put(f);
	rref_release(c->h);
	rc_payload_drop(c->o.payload);
	return rc_fail(-err, "%s", why);
}

int rref_remote(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args,
		int64_t timeout, struct rref **out)
{
	RB_NO_CANCEL;
	const char *site = rc_site_take();
	struct creation c;
	struct outgoing *o = &c.o;
	int err;

	c.here = ctx && (uint32_t)rank == ctx->rank;
	err = call_prepare(o, c.here ? &rc_creation_here_kind : &rc_creation_kind, ctx, rank,
			   function, args, timeout, out, "rref_remote", true);
	if (err)
		return err;
	/* Here too, since a message without one is malformed; an owner's handle has none. */
	c.id = rc_next_ids(ctx, 2);
	c.fork = (struct rref_id){ .local_id = c.id.local_id + 1, .created_on = c.id.created_on };
	rc_lock(ctx);
	int64_t now = rc_coarse_ns();

	if (likely(!o->deadline))
		o->deadline = rc_deadline_seen(ctx, timeout, now);
	err = creation_begin(&c, now);
	if (err)
		return creation_refused(&c, err);
	o->f->handle = c.h; /* the creation keeps its handle until it is over */
	at_store(&c.h->refs, 2);
	c.h->creator = true;
	rc_handle_made_at(c.h, site);
	rc_remote(c.h)->creation = o->f;
	err = send_call(o, RW_CALL_REMOTE, c.id, c.fork, c.word);
	if (err && err != -EOWNERDEAD)
		return creation_unsent(&c, err);
	at_store(&o->f->deadline, deadline_of(o));
	watch(ctx, o->deadline);
	rc_op_begin(o->f);
	if (err)
		rc_op_end(ctx, o->f, err, rc_error_text());
	rc_payload_drop(o->payload);
	/* rref_creation takes the program's hold on the future. Until then the engine's hold
	 * belongs to the handle's creation. */
	rc_op_put(o->f);
	rc_unlock(ctx);
	*out = c.h;
	return 0;
}

int rref_creation(struct rref *ref, struct rref_future **out)
{
	RB_NO_CANCEL;
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
	f = rc_remote(ref)->creation;
	if (f)
		at_add(&f->refs, 1);
	rc_unlock(ctx);
	if (!f) {
		/* The creation is over: makes a complete future that says how it ended. */
		err = rc_op_get(ctx, &rc_creation_kind, rc_deadline(ctx, RREF_DEFAULT), &f);
		if (err)
			return err;
		f->peer = ref->owner;
		rc_op_claim(f);
		if (at_load_acq(&ref->state) == RC_H_FAILED) {
			f->status = ref->err;
			f->about = ref->about;
			snprintf(f->text, sizeof(f->text), "%s", rc_handle_why(ref));
		}
		rc_op_finish(f);
		rc_op_put(f);
	}
	*out = f;
	return 0;
}
