/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values, their memory and their types: the names for other rooms. Design: docs/design/memory.md
 * and docs/design/values.md.
 */
#ifndef RC_VALUE_VALUE_H
#define RC_VALUE_VALUE_H

#include "base/slow.h"
#include "core/base/guard.h"
#include "core/base/locked.h"
#include "core/ctx.h"

/* devices' registrations, arenas, values, landing blocks */
int rc_memory_open(struct rref_ctx *ctx, const struct rref_options *opt);
void rc_memory_close(struct rref_ctx *ctx);
/* Ends what is kept for looks of others, and leaves its bytes to them. Comes before it. */
void rc_onlookers_close(struct rref_ctx *ctx);
void rc_beacon(struct rref_ctx *ctx, enum rv_kind kind, struct rw_auth *out);
uint64_t rc_word(void); /* a value's word: random, not 0 */

/* scrub.c */
/* Values of more bytes, header and all, are large. */
#define RC_LARGE_BYTES RB_SLOW_BYTES
/* Bytes of a large value that are scrubbed in one turn. */
#define RC_SCRUB_TURN ((size_t)1 << 20)
void rc_scrub_open(struct rref_ctx *ctx);
void rc_scrub_close(struct rref_ctx *ctx);
/*
 * Begin and end an action that may end large values. The thread holds no lock at the end, and
 * scrubs there as many as it ended. So the memory is free again behind it. before: the result of
 * the begin.
 */
struct rc_scrub_own {
	struct rref_ctx *ctx; /* NULL: no action is under way */
	unsigned nr;          /* values that the thread ended and will scrub */
};
struct rc_scrub_own rc_scrub_own_begin(struct rref_ctx *ctx);
void rc_scrub_own_end(struct rc_scrub_own before);
/* Scrubs and frees all values that ended. Waits for scrubs of other threads. No lock is held. */
void rc_scrub_all(struct rref_ctx *ctx);

/* reader.c */
/* RC_FAST_LOOK: looked at where it lies; RC_FAST_FIRST + class of landing block */
enum { RC_FAST_NOT, RC_FAST_LOOK, RC_FAST_LARGE, RC_FAST_FIRST };
uint64_t rc_fast_serial(void);
/* Frees what threads keep, and the landing blocks that are kept. Comes before rc_memory_close. */
void rc_readers_close(struct rref_ctx *ctx);
/* Makes the marks of all threads seen. From here on rc_is_pinned finds each that may use a
 * connection, whose peer's conn was set to NULL before. */
void rc_fast_fence(struct rref_ctx *ctx);
/* Returns whether a thread has its mark at p. rc_fast_fence came before. */
bool rc_is_pinned(struct rref_ctx *ctx, const struct rc_peer *p);
/*
 * Fills in reads, doorbells, read_bytes, ops_in_flight and landing_bytes, without the futures and
 * blocks that threads keep.
 */
void rc_fast_counts(struct rref_ctx *ctx, struct rref_stats *s);
void rc_fast_fork_child(void);

/* Returns true in a child, which has neither the view nor the bytes that it shows. */
static inline bool rc_view_lost(const struct rref_view *v)
{
	return unlikely(rb_generation() != RB_FIRST_GENERATION) &&
	       (rb_is_parents(v) || rc_is_child(v->ctx));
}

#endif
