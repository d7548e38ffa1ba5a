/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the callee's side. A call waits until the references that came with it are confirmed, then runs on the worker
 * pool or, if its function says so, on the thread that made the progress. Its reply goes out once.
 *
 * Bounds. What a peer's open calls occupy here is counted, and a call beyond CALLS_BYTES, or with a payload beyond
 * FETCH_BYTES, is answered -EAGAIN at once. Not by holding its messages back: among them may be the answers that the calls
 * being served wait for. A caller with the default max_ops and small arguments cannot get there.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "rc_scope.h"

#define CALLS_BYTES (UINT64_C(64) << 20) /* of one peer */
#define FETCH_BYTES (UINT64_C(1) << 30)  /* of one peer, payloads */
#define REF_BYTES 512u                   /* what a reference that came with a call costs, about */

/* ---- the call's life ---- */

/* What a call occupies here, without its payload. */
static uint64_t call_bytes(const struct rw_call *c)
{
	return sizeof(struct rref_call) + (c->loc.version ? 0 : c->data_length) + c->meta_length + (uint64_t)c->nr_refs * REF_BYTES;
}

/*
 * A call that was deferred and replied to stays for a while, of which nothing but `replied` is of use: a second reply finds
 * an error there instead of freed memory. Returns the one that has stayed longest, if so many have.
 */
static struct rref_call *keep(struct rref_ctx *ctx, struct rref_call *call)
{
	uint32_t at = at_add(&ctx->nr_consumed, 1) % RC_CONSUMED_KEPT;

	call->bytes = call->meta = NULL;
	call->length = call->meta_length = 0;
	/* Two threads may put theirs into the same place, a thousand apart: each takes out what it finds. */
	return at_xchg_ar(&ctx->consumed[at], call);
}

void rc_calls_close(struct rref_ctx *ctx)
{
	for (uint32_t i = 0; i < RC_CONSUMED_KEPT; i++) {
		struct rref_call *call = at_load(&ctx->consumed[i]);

		if (call)
			free(call->block);
	}
}

void rc_call_put(struct rref_call *call)
{
	struct rref_ctx *ctx = call->ctx;

	if (at_sub_ar(&call->refs, 1) != 1)
		return;
	rc_incoming_release(&call->in);
	at_sub(&ctx->peers[call->caller].call_bytes, call->cost);
	if (call->fetch_cost)
		at_sub(&ctx->peers[call->caller].fetch_bytes, call->fetch_cost);
	if (call->deferred)
		call = keep(ctx, call);
	if (call)
		free(call->block);
	/* Release, and last: partner of the acquire in shutdown.c's idle(), after which the context may be freed. */
	at_sub_rel(&ctx->calls_open, 1);
}

static struct rc_function *find(struct rref_ctx *ctx, const char *name, size_t length)
{
	/* Acquire: partner of the release in rref_register; entries are never removed while the context lives. */
	for (struct rc_function *fn = at_load_acq(&ctx->functions); fn; fn = fn->next)
		if (fn->name_length == length && memcmp(fn->name, name, length) == 0)
			return fn;
	return NULL;
}

int rref_register(struct rref_ctx *ctx, const struct rref_function *f)
{
	struct rc_function *fn;
	int err;

	if (!ctx || !f || !f->handler)
		return rc_fail(EINVAL, "rref_register: no context, or a function without a handler");
	/* Not before the context runs: that is rref_init, which registers its table. */
	if (at_load_acq(&ctx->state) != RC_CTX_STARTING && (err = rc_enter(ctx)))
		return err;
	err = rc_function_check(f->name);
	if (err)
		return err;
	if (f->flags & ~RREF_INLINE)
		return rc_fail(EINVAL, "rref_register: function %s: unknown flags %#x", f->name, f->flags);
	fn = calloc(1, sizeof(*fn));
	if (!fn)
		return rc_fail(ENOMEM, "memory for a function");
	fn->handler = f->handler;
	fn->arg = f->arg;
	fn->flags = f->flags;
	snprintf(fn->name, sizeof(fn->name), "%s", f->name);
	fn->name_length = strlen(fn->name);
	pthread_mutex_lock(&ctx->function_lock);
	if (find(ctx, fn->name, strlen(fn->name))) {
		pthread_mutex_unlock(&ctx->function_lock);
		free(fn);
		return rc_fail(EEXIST, "a function named %s is registered already", f->name);
	}
	fn->next = at_load(&ctx->functions);
	at_store_rel(&ctx->functions, fn);
	pthread_mutex_unlock(&ctx->function_lock);
	return 0;
}

/* Can what came in that session still be answered, and be of use to anyone? [lock] */
bool rc_same_session(const struct rref_ctx *ctx, uint32_t rank, uint32_t epoch)
{
	const struct rc_peer *p = &ctx->peers[rank];

	if (rank == ctx->rank)
		return at_load(&ctx->state) != RC_CTX_SHUT;
	return p->state == RC_PEER_UP && p->epoch == epoch;
}

/* Consumes *payload if it went out. [lock] */
static int reply_rpc(struct rref_call *call, int status, const char *text, const struct rref_args *result,
		     struct rc_payload **payload)
{
	struct rref_ctx *ctx = call->ctx;
	struct rw_message m;
	struct rw_reply *r = &m.u.reply;
	int err;

	if (!rc_same_session(ctx, call->caller, call->caller_epoch))
		return 0; /* the caller is gone, and a new one of that name never asked */
	rw_reply_init(&m);
	r->call_id = call->call_id;
	r->status = status;
	r->text = status ? text : NULL;
	r->text_length = status ? (uint16_t)min_of(strlen(text), (size_t)RP_TEXT_MAX - 1) : 0;
	if (!status && result) {
		err = *payload ? rc_payload_fill(ctx, *payload, result, &r->loc) :
				 rc_make_forks(ctx, result, call->caller, r->refs);
		if (err)
			return err;
		r->nr_refs = (uint16_t)result->nr_refs;
		r->data = result->data;
		r->data_length = (uint32_t)result->length;
	}
	err = rc_send(ctx, call->caller, &m);
	if (err) {
		if (*payload)
			rc_payload_undo(ctx, *payload);
		else
			rc_undo_forks(ctx, result, call->caller, r->refs, r->nr_refs);
		return err == -EOWNERDEAD ? 0 : err;
	}
	if (*payload)
		rc_payload_offer(ctx, *payload, RW_PAYLOAD_REPLY, call->call_id);
	*payload = NULL;
	return 0;
}

/* [lock] The value is made already. */
static int reply_remote(struct rref_call *call, int status, const char *text, struct rc_value *v)
{
	struct rref_ctx *ctx = call->ctx;
	struct rp_event ev = { .type = RP_EV_SET, .id = call->id, .status = status, .text = text, .value = v };
	int err;

	err = rc_step(ctx, &ev, NULL);
	if (!err && call->caller == ctx->rank) {
		struct rref_future *f = rc_op_find(ctx, call->call_id);

		if (f && at_load(&f->kind) == RC_OP_LOCAL_CREATE) {
			struct rref *h = f->handle;

			rc_remote(h)->creation = NULL;
			if (status)
				rc_handle_fail(h, status, text);
			if (rc_op_claim(f)) {
				f->status = status;
				snprintf(f->text, sizeof(f->text), "%s", text ? text : "");
				if (!status && at_load(&h->state) != RC_H_READY) {
					h->value = v;
					at_store_rel(&h->state, RC_H_READY);
				}
				rc_op_finish(f, true);
			}
			rc_op_put(f);
		}
	}
	/* -ESTALE: everybody who wanted it is gone; the machine has no entry to put it in. */
	return err;
}

/* Gives the answer, once. v: the value of a creation, payload: a large result's; consumed, also by a failure. */
static int give(struct rref_call *call, int status, const char *text, const struct rref_args *result, struct rc_value *v,
		struct rc_payload *payload)
{
	struct rref_ctx *ctx = call->ctx;
	uint32_t no = 0;
	int err;

	/* acq_rel: of two threads that reply one wins, and it sees all that the handler did. */
	if (!at_cas_ar(&call->replied, &no, 1)) {
		if (v)
			rc_value_unpin(v);
		rc_payload_drop(payload);
		return rc_fail(EALREADY, "the call was replied to already");
	}
	rc_lock(ctx);
	err = call->kind == RW_CALL_REMOTE ? reply_remote(call, status, text, v) :
					     reply_rpc(call, status, text, result, &payload);
	if (err && call->kind == RW_CALL_REMOTE) {
		if (v)
			rc_value_unpin(v);
		err = 0; /* the reply was given; nobody was left to want it */
	}
	if (err)
		at_store(&call->replied, 0);
	else
		list_del(&call->open_node);
	rc_unlock(ctx);
	if (payload) {
		char why[RREF_TEXT_SIZE];

		snprintf(why, sizeof(why), "%s", rc_error_text());
		rc_payload_drop(payload); /* it did not go out */
		if (err)
			rc_fail(-err, "%s", why);
	}
	if (!err)
		rc_call_put(call); /* the reply's hold; a handler that still runs has its own */
	return err;
}

static int reply(struct rref_call *call, int status, const char *text, const struct rref_args *result)
{
	struct rref_ctx *ctx = call->ctx;
	struct rc_payload *payload = NULL;
	struct rc_value *v = NULL;
	int err;

	if (rc_is_child(ctx))
		return rc_enter_slow(ctx);
	if (!status) {
		err = rc_check_args(ctx, result);
		if (!err && result && result->meta_length)
			err = rc_fail(EINVAL, "a result has no metadata");
		if (!err && call->kind != RW_CALL_REMOTE)
			err = rc_payload_make(ctx, call->caller, result, rc_may_wait(ctx) ? rc_deadline(ctx, RREF_DEFAULT) : 0,
					      &payload);
		if (!err && call->kind == RW_CALL_REMOTE) {
			err = rc_value_alloc(ctx, result ? result->length : 0, call->fn->name, &v);
			if (!err && result && (err = rc_value_hold(v, result->refs, result->nr_refs)))
				rc_value_unpin(v);
			if (!err) {
				if (v->view.length)
					memcpy(rc_value_data(v), result->data, v->view.length);
				rc_value_publish(v, call->id);
			}
		}
		if (err)
			return err;
	}
	return give(call, status, text, result, v, payload);
}

int rref_call_reply(struct rref_call *call, const struct rref_args *result)
{
	if (!call)
		return rc_fail(EINVAL, "rref_call_reply: no call");
	return reply(call, 0, NULL, result);
}

static int reply_typed(struct rref_call *call, const struct rref_type *type, const struct iovec *segments, size_t nr,
		       struct rref *const *refs, size_t nr_refs, const char *what)
{
	struct rref_args held = { .refs = refs, .nr_refs = nr_refs };
	struct rc_value *v;
	int err;

	if (!call)
		return rc_fail(EINVAL, "%s: no call", what);
	if (rc_is_child(call->ctx))
		return rc_enter_slow(call->ctx);
	if (call->kind != RW_CALL_REMOTE)
		return rc_fail(EINVAL, "%s: the call is not a creation (rref_remote)", what);
	err = rc_check_args(call->ctx, &held);
	if (err)
		return err;
	for (size_t i = 0; segments && i < nr && i < RREF_SEGMENTS_MAX; i++)
		if (segments[i].iov_len && !segments[i].iov_base)
			return rc_fail(EINVAL, "%s: segment %zu is NULL", what, i);
	err = rc_value_make(call->ctx, type, segments, nr, true, call->fn->name, what, &v);
	if (err)
		return err;
	err = rc_value_hold(v, refs, nr_refs);
	if (err) {
		rc_value_unpin(v);
		return err;
	}
	rc_value_publish(v, call->id);
	return give(call, 0, NULL, NULL, v, NULL);
}

int rref_call_reply_typed(struct rref_call *call, const struct rref_type *type, const struct iovec *segments, size_t nr)
{
	return reply_typed(call, type, segments, nr, NULL, 0, "rref_call_reply_typed");
}

int rref_call_reply_typed_refs(struct rref_call *call, const struct rref_type *type, const struct iovec *segments, size_t nr,
			       struct rref *const *refs, size_t nr_refs)
{
	return reply_typed(call, type, segments, nr, refs, nr_refs, "rref_call_reply_typed_refs");
}

int rref_call_error(struct rref_call *call, int err, const char *fmt, ...)
{
	char text[RP_TEXT_MAX];
	va_list ap;

	if (!call || err >= 0 || err < -4095)
		return rc_fail(EINVAL, "rref_call_error: %s", call ? "the code is not a negative errno" : "no call");
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt ? fmt : "", ap);
	va_end(ap);
	return reply(call, err, *text ? text : rref_strerror(err), NULL);
}

void rc_run_call(struct rref_call *call)
{
	char text[RP_TEXT_MAX];
	int r;

	if (call->in.status) {
		snprintf(text, sizeof(text), "%s", call->in.text);
		r = call->in.status;
	} else if (call->kind == RW_CALL_TAKE) {
		rc_callback_enter();
		r = rc_take_serve(call, text, sizeof(text));
		rc_callback_leave();
	} else if (!call->fn) {
		snprintf(text, sizeof(text), "no function named %.120s on %.40s", call->name,
			 call->ctx->members[call->ctx->rank].name);
		r = -ENOSYS;
	} else {
		at_add(&call->ctx->n.calls, 1);
		struct rref_ctx *ctx = call->ctx;
		struct rc_scope *s = rc_scope_begin(ctx, "handler", call->name, call->caller, ctx->rank);

		rc_callback_enter();
		r = call->fn->handler(call, call->fn->arg);
		rc_site_take(); /* what the handler named last is not where the library makes something for it */
		rc_callback_leave();
		rc_scope_end(ctx, s, r < 0 ? r : 0);
		if (r < 0 && r >= -4095)
			snprintf(text, sizeof(text), "%s", rref_strerror(r));
		else if (r < 0 || r > RREF_DEFER)
			r = -EINVAL, snprintf(text, sizeof(text), "the function returned neither 0, RREF_DEFER nor an errno");
	}
	if (r == 0 && !at_load(&call->replied)) {
		r = reply(call, 0, NULL, NULL);
		if (r)
			snprintf(text, sizeof(text), "%.*s", (int)sizeof(text) - 1, rc_error_text());
	}
	/* A caller that cannot even be told what went wrong hears of it by its own time-out: the call ends all the same. */
	if (r < 0 && !at_load(&call->replied) && reply(call, r, text, NULL) && !at_xchg_acq(&call->replied, 1)) {
		rc_lock(call->ctx);
		list_del(&call->open_node);
		rc_unlock(call->ctx);
		rc_call_put(call);
	}
	call->deferred = r == RREF_DEFER;
	rc_call_put(call); /* the handler's hold */
}

/* All references are confirmed: to the pool, or to whoever drops the lock next. [lock] */
static void call_ready(struct rref_ctx *ctx, struct rc_incoming *in)
{
	struct rref_call *call = container_of(in, struct rref_call, in);
	bool many = call->kind == RW_CALL_TAKE && get_le32((const char *)call->bytes + 4) > RW_REFS_MAX;

	for (uint32_t i = 0; i < in->nr; i++)
		if (in->ref[i].handle)
			at_store(&in->ref[i].handle->lent, 1);
	if (many)
		rc_pool_push(ctx, call);
	else if (!call->fn || call->in.status || (call->fn->flags & RREF_INLINE))
		list_add_tail(&ctx->deferred_calls, &call->node);
	else
		rc_pool_push(ctx, call);
}

/* The references of a call that does not run: taken and dropped, or, unread in its payload, not taken at all. [lock] */
static void drop_arguments(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_call *c, int status)
{
	if (c->loc.version)
		rc_fetch_refuse(ctx, from, RW_PAYLOAD_CALL, c->call_id, status);
	else
		rc_incoming_drop(ctx, c->refs, c->nr_refs, from);
}

static struct rref_call *find_open(struct rref_ctx *ctx, const struct rc_peer *from, uint64_t call_id)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &ctx->open_calls[rc_bucket(ctx, from->rank, call_id)]) {
		struct rref_call *call = container_of(l, struct rref_call, open_node);

		if (call->call_id == call_id && call->caller == from->rank && call->caller_epoch == from->epoch)
			return call;
	}
	return NULL;
}

/* Its caller waits no longer. The handler runs on, and may ask; arguments that are not here yet need not come. [lock] */
static void cancel(struct rref_ctx *ctx, struct rref_call *call)
{
	at_store(&call->cancelled, 1);
	rc_fetch_cancel(ctx, &call->in);
}

void rc_cancel_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t call_id)
{
	struct rref_call *call = find_open(ctx, from, call_id);

	if (call)
		cancel(ctx, call);
}

void rc_calls_fenced(struct rref_ctx *ctx, const struct rc_peer *p)
{
	for (unsigned i = 0; i < RC_CALL_BUCKETS && at_load(&p->call_bytes); i++) {
		struct list *l, *tmp;

		list_for_each_safe(l, tmp, &ctx->open_calls[i]) {
			struct rref_call *call = container_of(l, struct rref_call, open_node);

			if (call->caller == p->rank)
				cancel(ctx, call);
		}
	}
}

/* The payload is here, or will not be. [lock] */
static void call_fetched(struct rref_ctx *ctx, struct rc_incoming *in, const void *data, const struct rp_fork *recs, uint32_t nr)
{
	struct rref_call *call = container_of(in, struct rref_call, in);

	call->bytes = data;
	call->length = in->status ? 0 : in->data_length;
	rc_incoming_begin(ctx, in, recs, nr, in->from);
}

/* A call that cannot be taken in. [lock] */
static void refuse_call(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_call *c, int status, const char *text)
{
	struct rw_message r;

	rc_log(ctx, RREF_LOG_DEBUG, "a call from rank %u was refused: %s", from->rank, text);
	if (c->kind == RW_CALL_REMOTE) {
		struct rp_event ev = { .type = RP_EV_SET, .id = c->id, .status = status, .text = text };

		rc_step(ctx, &ev, NULL);
		return;
	}
	rw_reply_init(&r);
	r.u.reply.call_id = c->call_id;
	r.u.reply.status = status;
	r.u.reply.text = text;
	r.u.reply.text_length = (uint16_t)strlen(text);
	/* To oneself without a queue: of whoever is refused for want of memory none is left for the refusal. */
	if (from->rank == ctx->rank)
		rc_reply_message(ctx, from, &r);
	else
		rc_tell(ctx, from->rank, &r);
}

/* By malloc and not aligned_alloc, which has no cache and costs more than all the rest of a small call. */
static struct rref_call *make_call(size_t bytes)
{
	void *block = malloc(sizeof(struct rref_call) + _Alignof(struct rref_call) - 1 + bytes);
	uintptr_t at = ((uintptr_t)block + _Alignof(struct rref_call) - 1) & ~(uintptr_t)(_Alignof(struct rref_call) - 1);
	struct rref_call *call = (struct rref_call *)at;

	if (!block)
		return NULL;
	memset(call, 0, offsetof(struct rref_call, in));
	rc_incoming_init(&call->in);
	call->block = block;
	return call;
}

static void free_call(struct rref_call *call)
{
	if (call)
		free(call->block);
}

void rc_call_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m)
{
	const struct rw_call *c = &m->u.call;
	bool located = c->loc.version != 0;
	size_t inline_length = located ? 0 : c->data_length;
	uint64_t bytes = call_bytes(c), fetch_bytes = located ? c->loc.length : 0;
	bool room = from->rank == ctx->rank || (at_load(&from->call_bytes) + bytes <= CALLS_BYTES &&
						at_load(&from->fetch_bytes) + fetch_bytes <= FETCH_BYTES);
	uint32_t epoch = from->epoch;
	struct rref_call *call;

	if (find_open(ctx, from, c->call_id)) {
		at_add(&ctx->n.dropped, 1); /* the same call again */
		return;
	}
	call = room ? make_call(inline_length + c->meta_length) : NULL;
	bool own = c->kind == RW_CALL_REMOTE && from->rank != ctx->rank;

	if (own) {
		struct rp_event ev = { .type = RP_EV_OWN, .id = c->id, .fork = c->fork, .peer = from->rank };
		int err;

		ctx->duplicate = false;
		err = rc_step(ctx, &ev, NULL);
		if (err || ctx->duplicate) {
			free_call(call);
			if (err == -EPROTO || err == -EINVAL) {
				at_add(&ctx->n.rejected, 1);
				rc_peer_fence(ctx, from, -EPROTO, "it asked for a creation with an id that it may not choose");
			} else if (err == -ENOMEM) {
				rc_peer_fence(ctx, from, -EOWNERDEAD, "a message of it was lost for want of memory");
			} else {
				drop_arguments(ctx, from, c, -EALREADY);
			}
			return;
		}
	}
	if (call && !rc_incoming_room(&call->in, c->nr_refs)) {
		free_call(call);
		call = NULL;
	}
	if (!call) {
		int status = room ? -ENOMEM : -EAGAIN;

		refuse_call(ctx, from, c, status, room ? "no memory for the call" : "too many calls of this caller are open there");
		if (rc_same_session(ctx, from->rank, epoch))
			drop_arguments(ctx, from, c, status);
		return;
	}
	list_init(&call->node);
	call->ctx = ctx;
	call->caller = from->rank;
	call->caller_epoch = from->epoch;
	call->call_id = c->call_id;
	call->kind = c->kind;
	call->id = c->id;
	call->fork = c->fork;
	call->bytes = call->data;
	call->length = inline_length;
	call->meta = call->data + inline_length;
	call->meta_length = c->meta_length;
	call->cost = bytes;
	call->fetch_cost = fetch_bytes;
	memcpy(call->name, c->name, c->name_length);
	call->name[c->name_length] = 0;
	if (inline_length)
		memcpy(call->data, c->data, inline_length);
	if (c->meta_length)
		memcpy(call->data + inline_length, c->meta, c->meta_length);
	list_add_tail(&ctx->open_calls[rc_bucket(ctx, from->rank, c->call_id)], &call->open_node);
	at_store(&call->refs, 2); /* the handler's and the reply's */
	call->fn = find(ctx, c->name, c->name_length);
	call->in.ready = call_ready;
	at_add(&ctx->calls_open, 1);
	at_add_mine(&ctx->calls_begun, 1);
	at_add(&from->call_bytes, bytes);
	if (fetch_bytes)
		at_add(&from->fetch_bytes, fetch_bytes);
	if (!located) {
		rc_incoming_begin(ctx, &call->in, c->refs, c->nr_refs, from->rank);
		return;
	}
	call->in.fetched = call_fetched;
	call->in.what = RW_PAYLOAD_CALL;
	call->in.call_id = c->call_id;
	call->in.loc = c->loc;
	call->in.data_length = c->data_length;
	call->in.nr_refs = c->nr_refs;
	rc_fetch_begin(ctx, &call->in, from);
}

/* ---- accessors ---- */

struct rref_ctx *rref_call_context(const struct rref_call *call)
{
	return call ? call->ctx : NULL;
}

const char *rref_call_function(const struct rref_call *call)
{
	return call ? call->name : "";
}

int rref_call_caller(const struct rref_call *call)
{
	return call ? (int)call->caller : rc_fail(EINVAL, "rref_call_caller: no call");
}

const void *rref_call_data(const struct rref_call *call)
{
	return call ? call->bytes : NULL;
}

size_t rref_call_length(const struct rref_call *call)
{
	return call ? call->length : 0;
}

const void *rref_call_meta(const struct rref_call *call)
{
	return call ? call->meta : NULL;
}

size_t rref_call_meta_length(const struct rref_call *call)
{
	return call ? call->meta_length : 0;
}

int rref_call_cancelled(const struct rref_call *call)
{
	return call ? (int)at_load(&call->cancelled) : rc_fail(EINVAL, "rref_call_cancelled: no call");
}

size_t rref_call_nr_refs(const struct rref_call *call)
{
	return call ? call->in.nr : 0;
}

struct rref *rref_call_ref(const struct rref_call *call, size_t i)
{
	return call && i < call->in.nr ? call->in.ref[i].handle : NULL;
}
