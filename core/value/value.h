/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values, their memory and their types: the names for other rooms. Design: docs/design/memory.md
 * and docs/design/values.md.
 */
#ifndef RC_VALUE_VALUE_H
#define RC_VALUE_VALUE_H

#include "core/base/guard.h"
#include "core/base/locked.h"
#include "core/ctx.h"

/* devices' registrations, arenas, values, landing blocks */
int rc_memory_open(struct rref_ctx *ctx, const struct rref_options *opt);
void rc_memory_close(struct rref_ctx *ctx);
void rc_beacon(struct rref_ctx *ctx, enum rv_kind kind, struct rw_auth *out);
uint64_t rc_word(void); /* a value's word: random, not 0 */

/* reader.c */
enum { RC_FAST_NOT, RC_FAST_LARGE, RC_FAST_FIRST }; /* RC_FAST_FIRST + class of landing block */
uint64_t rc_fast_serial(void);
/* Frees what threads keep, and the landing blocks that are kept. Comes before rc_memory_close. */
void rc_readers_close(struct rref_ctx *ctx);
/* Waits for the threads that still use conn of p. conn is NULL now. */
void rc_fast_fence(struct rref_ctx *ctx, struct rc_peer *p);
/* Fills in reads, doorbells, read_bytes and landing_bytes, without the blocks that threads keep. */
void rc_fast_counts(struct rref_ctx *ctx, struct rref_stats *s);
void rc_fast_fork_child(void);

/* Returns true in a child, which has neither the view nor the bytes that it shows. */
static inline bool rc_view_lost(const struct rref_view *v)
{
	return unlikely(rb_generation() != RB_FIRST_GENERATION) &&
	       (rb_is_parents(v) || rc_is_child(v->ctx));
}

#endif
