/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Message faults, on purpose: for tests only. The objects that call these functions are built twice
 * (Makefile). In the objects of the installed library the functions are empty. The objects that the
 * tests link have RREF_INJECT.
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
 *           | "reorder" [ "=" T ] [ "*" N ]  each is sent up to T later (5 ms), in any order:
 *                                            protocol messages, REPLY, TYPE_* only
 *           | "nomem" [ "=" N ]              for the first N there is no memory: their sender is
 *                                            told so
 *   T      := number ( "us" | "ms" | "s" )
 *
 * Several rules may match one message. The first rule that has some of its N left counts.
 *
 * The layer. A fail rule acts where the provider is asked to send, below the sequence numbers: it
 * shows the retry (send.c). The other rules act above the sequence numbers, where a message is
 * handed in. Such a message gets its number when it goes out at last, so that the peer takes it.
 * The peer's protocol machine has to bear the message late, twice, or in another order.
 *
 * A fault is refused if a reliable connection never has it and no layer above could mend it. So
 * a protocol message is never lost. A call or reply never comes twice: their records are handed in
 * once (protocol/protocol.h).
 */
#ifndef RC_INJECT_H
#define RC_INJECT_H

#include "core/base/locked.h"
#include "core/ctx.h"

#ifdef RREF_INJECT
/* Reads the rules. Returns 0, or -EINVAL with a text if the rules cannot be understood. */
int rc_inject_open(struct rref_ctx *ctx);
void rc_inject_close(struct rref_ctx *ctx);
/* Returns 1 if the message is taken over, 0 if it is to be sent now, or -ENOMEM. */
needs_lock int rc_inject_takes(struct rref_ctx *ctx, uint32_t to, const void *bytes,
			       uint32_t length);
/* Returns 0, or -errno if a rule lets the send fail. */
needs_lock int rc_inject_fails(struct rref_ctx *ctx, uint32_t to, const void *bytes,
			       uint32_t length);
needs_lock void rc_inject_tick(struct rref_ctx *ctx, int64_t now);
/* Returns the time of the next message to let go. INT64_MAX: no message is held. */
needs_lock int64_t rc_inject_due(const struct rref_ctx *ctx);
/* Drops the messages held for a peer: its session ended. */
needs_lock void rc_inject_forget(struct rref_ctx *ctx, uint32_t to);
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
