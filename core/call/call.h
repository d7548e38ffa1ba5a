/* SPDX-License-Identifier: Apache-2.0 */
/* Calls, made and served: the names for other rooms. Design: docs/design/calls.md. */
#ifndef RC_CALL_CALL_H
#define RC_CALL_CALL_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* call.c */
needs_lock void rc_call_unsent(struct rref_ctx *ctx, uint32_t to, const struct rw_call *c,
			       int status, const char *text);
int rc_check_args(struct rref_ctx *ctx, const struct rref_args *args);

/* reply.c */
needs_lock void rc_reply_message(struct rref_ctx *ctx, struct rc_peer *from,
				 const struct rw_message *m);

/* serve.c */
needs_lock void rc_call_message(struct rref_ctx *ctx, struct rc_peer *from,
				const struct rw_message *m);
needs_lock void rc_cancel_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t call_id);
needs_lock void rc_calls_fenced(struct rref_ctx *ctx, const struct rc_peer *p);
void rc_calls_close(struct rref_ctx *ctx);
/* serve.c: calls for inline handlers go to the pool, since hooks are blocked. */
needs_lock void rc_calls_to_pool(struct rref_ctx *ctx);

/* type.c */
needs_lock void rc_type_query(struct rref_ctx *ctx, struct rc_peer *from,
			      const struct rw_type_info *q);
needs_lock void rc_type_answer(struct rref_ctx *ctx, struct rc_peer *from,
			       const struct rw_type_info *a);
needs_lock void rc_type_unsent(struct rref_ctx *ctx, const struct rw_type_info *q, int err,
			       const char *why);

/* incoming.c */
int rc_incoming_open(struct rref_ctx *ctx); /* returns 0, or -errno with a text */
void rc_incoming_close(struct rref_ctx *ctx);
void rc_incoming_release(struct rc_incoming *in); /* releases handles and payload */

/* payload.c */
needs_lock void rc_payload_done(struct rref_ctx *ctx, struct rc_peer *from,
				const struct rw_done *d);
needs_lock void rc_payloads_fenced(struct rref_ctx *ctx, const struct rc_peer *p);
needs_lock void rc_fetch_cancel(struct rref_ctx *ctx, struct rc_incoming *in);

static inline bool rc_payload_needed(const struct rref_args *a)
{
	return a && (a->length + a->meta_length > RW_INLINE_MAX || a->nr_refs > RW_REFS_MAX) &&
	       (a->length || a->nr_refs);
}

static inline uint32_t rc_bucket(const struct rref_ctx *ctx, uint32_t rank, uint64_t call_id)
{
	uint64_t x = (call_id ^ ctx->call.bucket_seed) * UINT64_C(0x9e3779b97f4a7c15) + rank;

	return (uint32_t)((x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93) >> 40) &
	       (RC_CALL_BUCKETS - 1);
}

/*
 * Returns the number of calls being served or waiting to be. Pairs with answer_finished and
 * rc_call_put (release): the ended calls are loaded first (acquire). So the number is never too
 * small.
 */
static inline uint64_t rc_calls_open(const struct rref_ctx *ctx)
{
	uint64_t over = at_load_acq(&ctx->call.over) + at_load_acq(&ctx->call.ended);

	return at_load(&ctx->call.begun) - over;
}

static inline uint64_t rc_call_bytes(const struct rc_peer *p)
{
	uint64_t over = at_load(&p->call_bytes_over);

	return at_load(&p->call_bytes) - over;
}

#endif
