/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls, the callee's side. A call waits until its references are confirmed. Then it runs on the
 * worker pool or, if its function says so, on the thread that made the progress. Its reply goes out
 * once: answer.c.
 *
 * Bounds. The memory of a peer's open calls is counted here. A call beyond CALLS_BYTES, or with a
 * payload beyond FETCH_BYTES (take.c), is answered -EAGAIN at once. Its messages are not held back:
 * among them may be the answers that the calls being served wait for. A caller with the default
 * max_ops and small arguments cannot get there.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/scope.h"
#include "core/base/site.h"
#include "core/base/wait.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/op/op.h"
#include "core/op/step.h"
#include "core/session/session.h"

#define CALLS_BYTES (UINT64_C(64) << 20) /* limit for one peer */
/* Limit of a plain call's arguments and metadata. Room that it does not use is not counted. */
#define PLAIN_BYTES 256u

/* ---- the call's life ---- */

/*
 * Keeps a deferred call for a while after its reply, for its `replied` alone. So a second reply
 * finds an error there instead of freed memory. Returns the call that has stayed longest, if there
 * is no room for more.
 */
static struct rref_call *keep(struct rref_ctx *ctx, struct rref_call *call)
{
	uint32_t at = at_add(&ctx->call.nr_consumed, 1) % RC_CONSUMED_KEPT;

	call->bytes = call->meta = NULL;
	call->length = call->meta_length = 0;
	/* Two threads, a thousand calls apart, may use the same place. Each takes out the call that
	 * it finds. */
	return at_xchg_ar(&ctx->call.consumed[at], call);
}

/*
 * Sets `in` back for the next user of the struct. A refused call has its refusal written there,
 * even a plain one.
 */
static void make_clean(struct rref_call *call)
{
	if (!call->plain || unlikely(call->in.status))
		rc_incoming_init(&call->in);
}

/*
 * Leaves a call for the next, without the lock, if the one place is free. Its arguments were
 * released.
 */
static bool serve_leave_spare(struct rref_ctx *ctx, struct rref_call *call)
{
	struct rref_call *none = NULL;

	if (!RC_SPARE_CALLS || !call->reusable || at_load(&ctx->call.spare_call))
		return false;
	make_clean(call);
	return at_cas_ar(&ctx->call.spare_call, &none, call); /* pairs with serve_take_spare */
}

/* Keeps a call for the next, or frees it. The lists are for the fast way, under the lock. */
void rc_call_spare(struct rref_ctx *ctx, struct rref_call *call)
{
	rc_assert_locked(ctx);
	if (unlikely(!call->reusable || ctx->call.nr_spare_calls + 1 > RC_SPARE_CALLS)) {
		free(call->block);
		return;
	}
	rb_assert_if(call->plain, call->kind == RW_CALL_RPC);
	make_clean(call);
	ctx->call.nr_spare_calls++;
	list_add(&ctx->call.spare_calls, &call->hook.node);
}

static needs_lock struct rref_call *serve_take_spare(struct rref_ctx *ctx)
{
	struct list *l = list_pop(&ctx->call.spare_calls);

	rb_assert((l != NULL) == (ctx->call.nr_spare_calls > 0));
	if (likely(l)) {
		ctx->call.nr_spare_calls--;
		return container_of(l, struct rref_call, hook.node);
	}
	return at_load(&ctx->call.spare_call) ? at_xchg_ar(&ctx->call.spare_call, NULL) : NULL;
}

void rc_call_put(struct rref_call *call)
{
	struct rref_ctx *ctx = call->ctx;

	if (at_sub_ar(&call->refs, 1) != 1)
		return;
	rc_incoming_release(&call->in);
	at_add(&ctx->peers[call->caller].call_bytes_over, call->cost);
	if (call->fetch_cost)
		at_sub(&ctx->peers[call->caller].fetch_bytes, call->fetch_cost);
	if (call->deferred)
		call = keep(ctx, call);
	if (call && !serve_leave_spare(ctx, call))
		free(call->block);
	/* Release, and last. Pairs with rc_calls_open (acquire), after which the context may be
	 * freed. */
	at_add_rel(&ctx->call.over, 1);
}

static int run_handler(struct rref_call *call)
{
	struct rref_ctx *ctx = call->ctx;
	struct rc_scope *s = rc_scope_begin(ctx, "handler", call->name, call->caller, ctx->rank);
	int r;

	if (!call->counted)
		at_add(&ctx->n.calls, 1);
	rc_error_forget();
	r = call->fn->handler(call, call->fn->arg);
	/* Forgets the site that the handler set last: it is not the site of the library's own
	 * references. */
	rc_site_take();
	rc_scope_end(ctx, s, r < 0 ? r : 0);
	return r;
}

/*
 * Answers with the handler's result, if the handler gave no answer. Gives back the handler's hold.
 */
static void serve_end_call(struct rref_call *call, int r, unsigned about, char *text, size_t size)
{
	if (r == 0 && !at_load(&call->replied)) {
		r = rc_answer(call, 0, 0, NULL, NULL);
		if (r)
			snprintf(text, size, "%.*s", (int)size - 1, rc_error_text());
	}
	/* Ends the call even if the caller cannot be told of the error. The caller's own time-out
	 * tells it. */
	if (r < 0 && !at_load(&call->replied) && rc_answer(call, r, about, text, NULL) &&
	    !at_xchg_acq(&call->replied, 1)) {
		rc_lock(call->ctx);
		list_del(&call->open_node);
		rc_unlock(call->ctx);
		rc_call_put(call);
	}
	call->deferred = r == RREF_DEFER;
	rc_call_put(call); /* the handler's hold */
}

static __attribute__((noinline)) void handler_finished(struct rref_call *call, int r)
{
	char text[RP_TEXT_MAX];
	unsigned about = 0;

	*text = 0;
	/* The handler passes on the error of its own last call. */
	if (r < 0 && r >= -4095 && rc_error()->err == r) {
		snprintf(text, sizeof(text), "%.*s", (int)sizeof(text) - 1, rc_error_text());
		about = rc_error_about(r);
	} else if (r < 0 && r >= -4095)
		snprintf(text, sizeof(text), "%s", rref_strerror(r));
	else if (r < 0 || r > RREF_DEFER)
		r = -EINVAL, snprintf(text, sizeof(text),
				      "the function returned neither 0, RREF_DEFER nor an errno");
	serve_end_call(call, r, about, text, sizeof(text));
}

static __attribute__((noinline)) void run_none(struct rref_call *call)
{
	char text[RP_TEXT_MAX];
	int r;

	if (call->in.status) {
		snprintf(text, sizeof(text), "%s", call->in.text);
		r = call->in.status;
	} else if (call->kind == RW_CALL_TAKE) {
		r = rc_take_serve(call, text, sizeof(text));
	} else {
		snprintf(text, sizeof(text), "no function named %.120s on %.40s", call->name,
			 call->ctx->members[call->ctx->rank].name);
		r = -ENOSYS;
	}
	serve_end_call(call, r, 0, text, sizeof(text));
}

static void run_call(struct rref_ctx *ctx, struct rc_hook *h)
{
	struct rref_call *call = container_of(h, struct rref_call, hook);

	(void)ctx;
	if (unlikely(call->in.status || !call->fn)) {
		run_none(call);
		return;
	}
	int r = run_handler(call);

	if (!RB_FAST(likely(!r && !at_load(&call->replied) && rc_answer_nothing(call))))
		handler_finished(call, r);
}

/*
 * Hands a call to the thread that runs hooks next. Hands it to the pool while all these threads are
 * away: they may be waiting for this very call.
 */
static needs_lock void push_inline(struct rref_ctx *ctx, struct rref_call *call)
{
	if (unlikely(ctx->turns.engine->hooks_blocked(ctx)))
		rc_pool_push(ctx, call);
	else
		rc_hook_push(ctx, &call->hook);
}

void rc_calls_to_pool(struct rref_ctx *ctx)
{
	struct list *l = ctx->hooks.due.next, *next;

	rc_assert_locked(ctx);
	/* The pool may give a call back, to the end of the queue. */
	for (unsigned n = at_load(&ctx->hooks.nr); n > 0; n--, l = next) {
		struct rc_hook *h = container_of(l, struct rc_hook, node);

		next = l->next;
		if (h->run != run_call)
			continue;
		rc_hook_take(ctx, h);
		rc_pool_push(ctx, container_of(h, struct rref_call, hook));
	}
}

/*
 * Hands on a call whose references are all confirmed. It goes to the pool, or to the next thread
 * that drops the lock.
 */
void rc_call_ready(struct rref_ctx *ctx, struct rc_incoming *in)
{
	struct rref_call *call = container_of(in, struct rref_call, in);
	bool many = call->kind == RW_CALL_TAKE &&
		    get_le32((const char *)call->bytes + 4) > RW_REFS_MAX;

	rc_assert_locked(ctx);
	for (uint32_t i = 0; i < in->nr; i++)
		if (in->ref[i].handle)
			at_store(&in->ref[i].handle->lent, 1);
	if (many)
		rc_pool_push(ctx, call);
	else if (!call->fn || call->in.status || (call->fn->flags & RREF_INLINE))
		push_inline(ctx, call);
	else
		rc_pool_push(ctx, call);
}

static needs_lock struct rref_call *find_open_in(struct list *bucket, const struct rc_peer *from,
						 uint64_t call_id)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, bucket) {
		struct rref_call *call = container_of(l, struct rref_call, open_node);

		if (call->call_id == call_id && call->caller == from->rank &&
		    call->caller_epoch == from->epoch)
			return call;
	}
	return NULL;
}

struct rref_call *rc_call_find(struct rref_ctx *ctx, const struct rc_peer *from,
			       uint64_t call_id)
{
	rc_assert_locked(ctx);
	return find_open_in(&ctx->call.open[rc_bucket(ctx, from->rank, call_id)], from, call_id);
}

/*
 * Cancels a call whose caller no longer waits. The handler runs on, and may ask. Arguments that are
 * not here yet need not come.
 */
static needs_lock void cancel(struct rref_ctx *ctx, struct rref_call *call)
{
	at_store(&call->cancelled, 1);
	rc_fetch_cancel(ctx, &call->in);
}

void rc_cancel_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t call_id)
{
	struct rref_call *call = rc_call_find(ctx, from, call_id);

	rc_assert_locked(ctx);
	if (call)
		cancel(ctx, call);
}

void rc_calls_fenced(struct rref_ctx *ctx, const struct rc_peer *p)
{
	rc_assert_locked(ctx);
	for (unsigned i = 0; i < RC_CALL_BUCKETS && rc_call_bytes(p); i++) {
		struct list *l, *tmp;

		list_for_each_safe(l, tmp, &ctx->call.open[i]) {
			struct rref_call *call = container_of(l, struct rref_call, open_node);

			if (call->caller == p->rank)
				cancel(ctx, call);
		}
	}
}

/*
 * Makes a call by malloc. aligned_alloc has no cache and costs more than all the rest of a small
 * call.
 */
static struct rref_call *new_call(size_t bytes)
{
	void *block = malloc(sizeof(struct rref_call) + _Alignof(struct rref_call) - 1 +
			     max_of(bytes, (size_t)PLAIN_BYTES));
	uintptr_t at = ((uintptr_t)block + _Alignof(struct rref_call) - 1) &
		       ~(uintptr_t)(_Alignof(struct rref_call) - 1);
	struct rref_call *call = (struct rref_call *)at;

	if (!block)
		return NULL;
	call->block = block;
	call->hook.run = run_call;
	call->reusable = RB_FAST(bytes <= PLAIN_BYTES);
	rc_incoming_init(&call->in);
	return call;
}

/* Makes a call whose fields are clear. */
struct rref_call *rc_call_make(struct rref_ctx *ctx, size_t bytes)
{
	struct rref_call *call = bytes <= PLAIN_BYTES ? serve_take_spare(ctx) : NULL;

	rc_assert_locked(ctx);
	if (!call)
		call = new_call(bytes);
	if (!call)
		return NULL;
	void *block = call->block;
	bool reusable = call->reusable;

	memset(call, 0, offsetof(struct rref_call, in));
	call->block = block;
	call->hook.run = run_call;
	call->reusable = reusable;
	return call;
}

bool rc_call_has_room(const struct rref_ctx *ctx, const struct rc_peer *from, uint64_t bytes)
{
	return from->rank == ctx->rank || rc_call_bytes(from) + bytes <= CALLS_BYTES;
}

/* Makes a call in which only block, hook.run, reusable and in are set. `in` is as new. */
static needs_lock struct rref_call *make_plain(struct rref_ctx *ctx)
{
	struct rref_call *call = serve_take_spare(ctx);

	return likely(call) ? call : new_call(0);
}

/* Tells whether a call brings only some bytes. */
static inline bool is_plain_call(const struct rw_call *c)
{
	return c->kind == RW_CALL_RPC && !c->nr_refs && !c->loc.version &&
	       c->data_length + (size_t)c->meta_length <= PLAIN_BYTES;
}

/*
 * Takes in a plain call by the fast way: it brings only some bytes, for a known function.
 * Returns false, with nothing done, for another call or if something is in the way.
 */
static needs_lock bool take_plain(struct rref_ctx *ctx, struct rc_peer *from,
				  const struct rw_call *c)
{
	struct list *bucket = &ctx->call.open[rc_bucket(ctx, from->rank, c->call_id)];
	size_t data = c->data_length, meta = c->meta_length;
	uint64_t cost = sizeof(struct rref_call) + data + meta;
	const struct rc_function *fn;
	struct rref_call *call;

	if (!is_plain_call(c) || !rc_call_has_room(ctx, from, cost) ||
	    find_open_in(bucket, from, c->call_id))
		return false;
	fn = rc_function_find(ctx, c->name, c->name_length);
	call = likely(fn) ? make_plain(ctx) : NULL;
	if (unlikely(!call))
		return false;
	rb_assert(call->reusable && call->block && !call->in.nr && !call->in.body && !call->in.own);
	call->ctx = ctx;
	call->caller = from->rank;
	call->caller_epoch = from->epoch;
	call->call_id = c->call_id;
	call->cost = cost;
	call->fetch_cost = 0;
	call->kind = RW_CALL_RPC;
	call->plain = true;
	call->fn = fn;
	call->name = fn->name;
	call->bytes = call->data;
	call->length = data;
	call->meta = call->data + data;
	call->meta_length = meta;
	if (data)
		memcpy(call->data, c->data, data);
	if (meta)
		memcpy(call->data + data, c->meta, meta);
	at_store(&call->refs, 2); /* the handler's and the reply's */
	at_store(&call->replied, 0);
	at_store(&call->cancelled, 0);
	call->deferred = false;
	call->counted = fn->flags & RREF_INLINE;
	list_add_tail(bucket, &call->open_node);
	at_add_mine(&ctx->call.begun, 1);
	at_add_mine(&from->call_bytes, cost);
	if (call->counted) {
		/* counted before the push: nothing can keep the call from its run */
		at_add_mine(&ctx->n.inline_calls, 1);
		push_inline(ctx, call);
	} else {
		list_init(&call->hook.node);
		rc_pool_push(ctx, call);
	}
	return true;
}

void rc_call_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m)
{
	rc_assert_locked(ctx);
	if (!RB_FAST(likely(take_plain(ctx, from, &m->u.call))))
		rc_call_take(ctx, from, m);
}
