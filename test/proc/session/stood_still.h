/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that stand still, and their peers' view of it: for stall_test and fence_test. */
#ifndef STOOD_STILL_H
#define STOOD_STILL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

/* Returns a longer time where everything is slow: a worker that
 * was not stopped must not seem to be. */
static inline int64_t stall_ns(void)
{
	return (getenv("RREF_TEST_SLOW") ? 8 : 4) * NSEC_PER_SEC;
}

static inline struct rref_ctx *join_with(int rank, int64_t stall_timeout,
					 enum rref_progress_mode mode)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.stall_timeout = stall_timeout;
	if (mode)
		o.mode = mode;
	TG_OK(rref_init(&o, &ctx));
	tg_add_refs(ctx);
	tg_meet_serving(ctx, 15);
	return ctx;
}

static inline struct rref_ctx *join(int rank)
{
	return join_with(rank, stall_ns(), 0);
}

static inline struct rref_worker_info info(struct rref_ctx *ctx, int rank)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, rank, &w));
	return w;
}

static inline bool is_stalled(struct rref_ctx *ctx, void *rank)
{
	return info(ctx, *(int *)rank).stalled > 0;
}

static inline bool is_well(struct rref_ctx *ctx, void *rank)
{
	return !is_stalled(ctx, rank);
}

static inline bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

static inline void serve_for(struct rref_ctx *ctx, int64_t ns)
{
	for (int64_t end = now_ns() + ns; now_ns() < end; usleep(5000))
		rref_progress(ctx);
}

/* Lets another worker keep a reference to a value of this one, which gives up its own. */
static inline void lend_to(struct rref_ctx *ctx, int to, const char *text)
{
	struct rref *r;

	TG_OK(rref_new(ctx, text, strlen(text), &r));
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
}

static inline void expect_intact(struct rref_ctx *ctx)
{
	struct rref_stats s = tg_stats(ctx);

	TG_IS(s.fenced_peers, 0);
	TG_IS(s.dead_peers, 0);
	TG_IS(s.sessions, rref_world_size(ctx) - 1);
}

#endif
