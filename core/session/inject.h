/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Message faults, on purpose: for tests only. The objects that call these are built twice: for the
 * library that is installed, in which they are nothing, and with RREF_INJECT for the one that the
 * tests link (Makefile).
 *
 * The environment variable RREF_INJECT holds rules, read by rref_init:
 *
 *   rules  := rule { "," rule }
 *   rule   := kind [ "@" rank ] ":" action             messages of that kind (to that rank only)
 *   kind   := "ANY" | "CALL" | "REMOTE" | "REPLY" | "PROTO" | "BARRIER" | ... | "FORK_REQUEST" |
 *             "DELETE" | ...     the types of wire/wire.h and of struct rp_msg; PROTO is any of
 *                                the latter, REMOTE a CALL that creates
 *   action := "fail" [ "=" N ]               the first N sends fail (all, without N)
 *           | "drop" [ "=" N ]               the first N are lost: CALL, REMOTE, REPLY, TYPE_* only
 *           | "dup"  [ "=" N ]               the first N are sent twice: protocol messages, TYPE_*
 *           | "delay" "=" T [ "*" N ]        the first N are sent T later
 *           | "reorder" [ "=" T ] [ "*" N ]  each is sent up to T later (5 ms), hence in any order:
 *                                            protocol messages, REPLY, TYPE_* only
 *           | "nomem" [ "=" N ]              for the first N there is no memory: their sender is
 *                                            told so
 *   T      := number ( "us" | "ms" | "s" )
 *
 * Of several rules for one message the first that still has some of its N left counts.
 *
 * The layer. fail is where the provider is asked to send, below the sequence numbers: what is seen
 * is the retry (send.c). The others are above them, where a message is handed in: it gets its
 * number when it goes out at last, so that the peer takes it, and the protocol machine there has to
 * bear it late, twice, or in another order. What a reliable connection never does, and nothing
 * above it could mend, is refused: a protocol message is not lost, a call or reply does not come
 * twice (protocol/protocol.h: their records are handed in once).
 */
#ifndef RC_INJECT_H
#define RC_INJECT_H

#include "core/base/locked.h"
#include "core/ctx.h"

#ifdef RREF_INJECT
/* 0, or -EINVAL with a text: the rules cannot be understood */
int rc_inject_open(struct rref_ctx *ctx);
void rc_inject_close(struct rref_ctx *ctx);
/* 1: it is ours now; -ENOMEM */
needs_lock int rc_inject_takes(struct rref_ctx *ctx, uint32_t to, const void *bytes,
			       uint32_t length);
/* 0 or -errno */
needs_lock int rc_inject_fails(struct rref_ctx *ctx, uint32_t to, const void *bytes,
			       uint32_t length);
needs_lock void rc_inject_tick(struct rref_ctx *ctx, int64_t now);
needs_lock int64_t rc_inject_due(const struct rref_ctx *ctx); /* INT64_MAX = nothing is held */
needs_lock void rc_inject_forget(struct rref_ctx *ctx, uint32_t to); /* its session ended */
#else
static inline int rc_inject_open(struct rref_ctx *ctx) { (void)ctx; return 0; }
static inline void rc_inject_close(struct rref_ctx *ctx) { (void)ctx; }
static inline int rc_inject_takes(struct rref_ctx *ctx, uint32_t to, const void *bytes,
				  uint32_t length)
{
	(void)ctx, (void)to, (void)bytes, (void)length;
	return 0;
}
static inline int rc_inject_fails(struct rref_ctx *ctx, uint32_t to, const void *bytes,
				  uint32_t length)
{
	(void)ctx, (void)to, (void)bytes, (void)length;
	return 0;
}
static inline void rc_inject_tick(struct rref_ctx *ctx, int64_t now) { (void)ctx, (void)now; }
static inline int64_t rc_inject_due(const struct rref_ctx *ctx) { (void)ctx; return INT64_MAX; }
static inline void rc_inject_forget(struct rref_ctx *ctx, uint32_t to) { (void)ctx, (void)to; }
#endif

#endif
