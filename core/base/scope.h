/* SPDX-License-Identifier: Apache-2.0 */
/* Profiling scopes and the trace file: calls for the runtime's functions. See scope.c, trace.c. */
#ifndef RC_SCOPE_H
#define RC_SCOPE_H

#include "core/ctx.h"

struct rc_trace;

struct rc_scope {
	uint64_t id;
	int64_t begun;           /* of the trace */
	int peer;
	bool async;
	bool traced;             /* the file holds its begin, so it must hold its end */
	/* <operation>#name(from)->(to); printable, neither quotes nor backslashes */
	char key[];
};

int rc_scopes_open(struct rref_ctx *ctx, const struct rref_options *opt);
void rc_scopes_close(struct rref_ctx *ctx);
void rc_scopes_tick(struct rref_ctx *ctx, int64_t now, bool flush);

struct rc_scope *rc_scope_begin_slow(struct rref_ctx *ctx, const char *what, const char *name,
				     uint32_t from, uint32_t to) __attribute__((cold));
void rc_scope_end_slow(struct rref_ctx *ctx, struct rc_scope *s, int status) __attribute__((cold));
void rc_scope_attach_slow(struct rref_future *f, const char *what, const char *name, uint32_t to)
	__attribute__((cold));
/* Ends f's scope, if it has one. */
void rc_scope_detach(struct rref_future *f, int status) __attribute__((cold));

/* Begins a scope of this thread. Returns NULL if there is no scope. name may be NULL. */
static inline struct rc_scope *rc_scope_begin(struct rref_ctx *ctx, const char *what,
					      const char *name, uint32_t from, uint32_t to)
{
	return unlikely(ctx->scopes) ? rc_scope_begin_slow(ctx, what, name, from, to) : NULL;
}
static inline void rc_scope_end(struct rref_ctx *ctx, struct rc_scope *s, int status)
{
	if (unlikely(s))
		rc_scope_end_slow(ctx, s, status);
}

/*
 * Gives an operation its scope, before the operation is started. The scope ends when its future is
 * complete, or by rc_scope_detach.
 */
static inline void rc_scope_attach(struct rref_future *f, const char *what, const char *name,
				   uint32_t to)
{
	if (unlikely(f->ctx->scopes))
		rc_scope_attach_slow(f, what, name, to);
}

/* Makes the text fit for a JSON text: a name that is refused later may hold anything. */
static inline void rc_make_plain(char *text)
{
	for (char *p = text; *p; p++)
		if (*p < ' ' || *p > '~' || *p == '"' || *p == '\\')
			*p = '?';
}

/* trace.c */
int rc_trace_open(const char *path, uint32_t rank, const char *name, struct rc_trace **out);
void rc_trace_close(struct rc_trace *t); /* NULL accepted */
void rc_trace_tick(struct rc_trace *t, int64_t now, bool at_once);
void rc_trace_begin(struct rc_trace *t, struct rc_scope *s);
void rc_trace_end(struct rc_trace *t, struct rc_scope *s, int status);

#endif
