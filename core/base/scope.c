/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Profiling scopes: begin and end of the program's operations, for its hook (rref_options.scope)
 * and the trace file.
 *
 * Off, a scope costs one test of ctx->scopes where it would begin. It costs nothing at its end. The
 * state word of a future says if it has a scope; the completer exchanges it anyway. On, a scope is
 * one allocation. Without memory for it there is neither begin nor end.
 *
 * An exchange takes the end out of its future, so the end comes once. Either the completion or a
 * call that fails after its scope began is the first to take it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/slow.h"
#include "core/base/guard.h"
#include "core/base/scope.h"

struct rc_scopes {
	void (*hook)(void *ctx, const struct rref_scope *scope);
	void *hook_ctx;
	struct rc_trace *trace;
	_Atomic uint64_t last_id;
};

int rc_scopes_open(struct rref_ctx *ctx, const struct rref_options *opt)
{
	struct rc_scopes *s;
	int err = 0;

	if (!opt->scope && !(opt->trace && *opt->trace))
		return 0;
	s = calloc(1, sizeof(*s));
	if (!s)
		return rc_fail(ENOMEM, "memory for profiling scopes");
	s->hook = opt->scope;
	s->hook_ctx = opt->scope_ctx;
	if (opt->trace && *opt->trace)
		err = rc_trace_open(opt->trace, ctx->rank, ctx->members[ctx->rank].name, &s->trace);
	if (err)
		free(s);
	else
		ctx->scopes = s;
	return err;
}

void rc_scopes_close(struct rref_ctx *ctx)
{
	if (!ctx->scopes)
		return;
	rc_trace_close(ctx->scopes->trace);
	free(ctx->scopes);
	ctx->scopes = NULL;
}

void rc_scopes_tick(struct rref_ctx *ctx, int64_t now, bool flush)
{
	if (ctx->scopes->trace)
		rc_trace_tick(ctx->scopes->trace, now, flush);
}

static _Thread_local bool in_hook;

bool rc_in_scope_hook(void)
{
	return in_hook;
}

void rc_scopes_fork_child(void)
{
	in_hook = false;
}

static void tell(const struct rref_ctx *ctx, const struct rc_scope *s, unsigned end, int status)
{
	struct rref_scope told = { .size = sizeof(told),
				   .id = s->id,
				   .key = s->key,
				   .peer = s->peer,
				   .status = status,
				   .flags = end | (s->async ? RREF_SCOPE_ASYNC : 0) };

	if (!ctx->scopes->hook || in_hook)
		return; /* a call that the hook made, and that is refused, has no scope */
	rb_slow(RB_SLOW_SCOPE);
	in_hook = true;
	ctx->scopes->hook(ctx->scopes->hook_ctx, &told);
	in_hook = false;
}

static const char *scope_name_of(const struct rref_ctx *ctx, uint32_t rank)
{
	return rank < ctx->world ? ctx->members[rank].name : "?";
}

static struct rc_scope *scope_make(struct rref_ctx *ctx, const char *what, const char *name,
				   uint32_t from, uint32_t to, bool async)
{
	const char *a = scope_name_of(ctx, from), *b = scope_name_of(ctx, to);
	size_t size = strlen(what) + (name ? strnlen(name, RREF_NAME_MAX) : 0) + strlen(a) +
		      strlen(b) + sizeof("#()->()");
	struct rc_scope *s = malloc(sizeof(*s) + size);

	if (!s)
		return NULL;
	s->id = at_add(&ctx->scopes->last_id, 1) + 1;
	s->peer = (int)(from == ctx->rank ? to : from);
	s->async = async;
	s->traced = false;
	snprintf(s->key, size, "%s#%.*s(%s)->(%s)", what, RREF_NAME_MAX, name ? name : "", a, b);
	rc_make_plain(s->key);
	if (ctx->scopes->trace)
		rc_trace_begin(ctx->scopes->trace, s);
	tell(ctx, s, 0, 0);
	return s;
}

struct rc_scope *rc_scope_begin_slow(struct rref_ctx *ctx, const char *what, const char *name,
				     uint32_t from, uint32_t to)
{
	return rc_is_child(ctx) ? NULL : scope_make(ctx, what, name, from, to, false);
}

void rc_scope_end_slow(struct rref_ctx *ctx, struct rc_scope *s, int status)
{
	if (ctx->scopes->trace)
		rc_trace_end(ctx->scopes->trace, s, status);
	tell(ctx, s, RREF_SCOPE_END, status);
	free(s);
}

void rc_scope_attach_slow(struct rref_future *f, const char *what, const char *name, uint32_t to)
{
	struct rc_scope *s = scope_make(f->ctx, what, name, f->ctx->rank, to, true);

	if (!s)
		return;
	at_store(&f->scope, s);
	at_or_ar(&f->state, RC_F_SCOPED);
}

void rc_scope_detach(struct rref_future *f, int status)
{
	struct rc_scope *s = at_load(&f->scope) ? at_xchg_ar(&f->scope, NULL) : NULL;

	if (s)
		rc_scope_end_slow(f->ctx, s, status);
}
