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
enum { RC_FAST_NOT, RC_FAST_LARGE, RC_FAST_FIRST }; /* and on, by class of landing block */
uint64_t rc_fast_serial(void);
/* Frees what threads keep, and the landing blocks that are kept. Comes before rc_memory_close. */
void rc_readers_close(struct rref_ctx *ctx);
/* conn is NULL: waits for those who still use it */
void rc_fast_fence(struct rref_ctx *ctx, struct rc_peer *p);
/* reads, doorbells, read_bytes, landing_bytes: without what threads keep */
void rc_fast_counts(struct rref_ctx *ctx, struct rref_stats *s);
void rc_fast_fork_child(void);

/* A child has neither the view, nor what it shows. */
static inline bool rc_view_lost(const struct rref_view *v)
{
	return unlikely(rb_generation() != RB_FIRST_GENERATION) &&
	       (rb_is_parents_slow(v) || rc_is_child(v->ctx));
}

#endif
