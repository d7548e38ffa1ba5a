/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Functions for tests of types: an owner with types that its users do not know by themselves.
 *   make         (creation) two elements of the type named by the argument: "x[]" as it stands;
 *                "book..." local only; any other has the elements of struct tgt_tick,
 *                and holds prices 1.5 and 2.5
 *   make_slowly  the same once flag 0 is set
 *   prepare      a reference to such an unset value; set: sets it
 *   use          of a local value: the sum of the prices, a double
 *   relay        hands a local value on to worker 1's "use"
 *   take_ticks   nothing, or the reason if its reference is not of tgt_tick
 *   refuse       (creation) -EDOM "no such curve"
 */
#ifndef TG_TYPES_H
#define TG_TYPES_H

#include "tg.h"

struct tgt_tick {
	double price;
	int64_t time;
};

extern const struct rref_type tgt_tick, tgt_book; /* book: local only */

struct rref_ctx *tgt_join(int rank);
/* Waits until all workers are clean (rank 0), then shuts down. */
void tgt_finish(struct rref_ctx *ctx, int world);
/* tgt_made returns a value that worker `to` made, with its location
 * here. tgt_prepared returns an unset value. */
struct rref *tgt_made(struct rref_ctx *ctx, int to, const char *type);
struct rref *tgt_prepared(struct rref_ctx *ctx, int to, const char *type);
void tgt_is_type(struct rref *ref, const char *name, size_t element_size, unsigned flags);

#endif
