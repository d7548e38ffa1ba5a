/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks and deadlines. */
#ifndef RC_BASE_CLOCK_H
#define RC_BASE_CLOCK_H

#include "core/ctx.h"

/*
 * The machine's time: tenths of a second since the context was made, in 13 years no two alike. The
 * coarse clock will do.
 */
#define RC_AGE_NS (100 * NSEC_PER_MSEC)

static inline int64_t rc_coarse_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (int64_t)ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

static inline uint32_t rc_age_at(const struct rref_ctx *ctx, int64_t now)
{
	return (uint32_t)((now - ctx->op.started_at) / RC_AGE_NS);
}

static inline uint32_t rc_age_now(const struct rref_ctx *ctx)
{
	return rc_age_at(ctx, rc_coarse_ns());
}

#define RC_LONG_NS NSEC_PER_SEC
/* several ticks of the coarse clock: it is behind by one, and one may come late */
#define RC_COARSE_NS (50 * NSEC_PER_MSEC)

static inline int64_t rc_deadline(const struct rref_ctx *ctx, int64_t timeout)
{
	if (timeout == RREF_DEFAULT)
		timeout = at_load(&ctx->timeout);
	if (timeout == RREF_FOREVER)
		return INT64_MAX;
	/* The coarse clock costs a fifth, and some more ticks do not matter to a long timeout. */
	int64_t now = timeout < RC_LONG_NS ? now_ns() : rc_coarse_ns() + RC_COARSE_NS;

	return timeout > INT64_MAX - now ? INT64_MAX : now + timeout;
}

/* The same, where the coarse clock was read just now. */
static inline int64_t rc_deadline_seen(const struct rref_ctx *ctx, int64_t timeout, int64_t coarse)
{
	if (timeout == RREF_DEFAULT)
		timeout = at_load(&ctx->timeout);
	if (timeout < RC_LONG_NS || timeout > INT64_MAX - RC_COARSE_NS - coarse)
		return rc_deadline(ctx, timeout);
	return coarse + RC_COARSE_NS + timeout;
}

#endif
