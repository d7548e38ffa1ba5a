/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by tests of references: short ways to create, call and read. Also
 * functions of a worker that publishes and keeps references. All of them end
 * this worker with a message if something fails.
 */
#ifndef TG_REFS_H
#define TG_REFS_H

#include "tg.h"

/* Arguments of a call, for one call only: per thread, written over by the next. */
struct rref_args *tg_with(struct rref *const *refs, size_t nr);
struct rref_args *tg_bytes(const void *data, size_t length);

struct rref *tg_remote(struct rref_ctx *ctx, int to, const char *function, const void *data,
		       size_t length);
struct rref_future *tg_start(struct rref_ctx *ctx, int to, const char *function, const void *data,
			     size_t length);
/* Returns the sum of the first bytes: tg.read on worker `to`. */
unsigned tg_sum_there(struct rref_ctx *ctx, int to, struct rref *const *refs, size_t nr);
/* Expects that to_here fails with err each time, and with this in the text. */
void tg_expect_error(struct rref *r, int err, const char *text);
/* Checks that every worker is clean, and nothing of this one is in flight or landing. */
void tg_all_clean(struct rref_ctx *ctx);

/*
 * Functions of tg_join_refs, besides tg_functions:
 *   pub.make      a struct tg_make: makes a value, keeps it alone, answers with a reference to it
 *   pub.alloc     the same, to be set by pub.set (seed) or pub.fail (err)
 *   keep          keeps dups of its references, besides earlier ones
 *   pub.get       answers with the first kept reference
 *   pub.drop      gives up all kept references
 *   inspect       a struct tg_said: its first reference's own description while the handler runs
 *   count         int32_t: how often count has run here, this time included
 *   runs          int32_t: how often count has run here
 *   hand_on       int32_t hops: hands its references on to the next worker so often; answers with
 *                 the last one's sum
 */
struct tg_make {
	size_t length;
	unsigned seed;
	int32_t err;
};

struct tg_said {
	int32_t confirmed, is_owner, owner, reads;
	struct rref_id id;
};

void tg_add_refs(struct rref_ctx *ctx);
/* Joins with these functions, too. Returns when all can serve (meeting point 15). */
struct rref_ctx *tg_join_refs(int rank);
/* Joins like that by a worker's own options, which tg_options began. Sets their functions. */
struct rref_ctx *tg_join_by(struct rref_options *o);
/* Joins with faults in this worker's messages (rules of core/session/inject.h), and a default
 * timeout (0 = the usual). */
struct rref_ctx *tg_join_under(int rank, const char *rules, int64_t timeout);
void tg_add(struct rref_ctx *ctx, const char *name, rref_handler fn, unsigned flags);
/* Calls with m; returns the first reference of the result, or NULL. */
struct rref *tg_ask(struct rref_ctx *ctx, int to, const char *function, struct tg_make m);
/* tg_kept returns the i-th reference that this worker keeps, borrowed until tg_drop_kept drops them
 * all. tg_nr_kept returns their number. tg_runs returns how often count has run here. */
struct rref *tg_kept(int i);
int tg_nr_kept(void);
void tg_drop_kept(void);
int tg_runs(void);

#endif
