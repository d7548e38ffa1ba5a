/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real device whose READs take long. It does them as always, but a layer between provider and
 * core keeps their completions back. A test decides for how long; they are given out in order.
 */
#ifndef HOLD_H
#define HOLD_H

#include <stdatomic.h>

#include "core/ctx.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "tg_refs.h"

#define MAX_HELD 1024

static struct rv_ops holding;
static atomic_uint to_hold;     /* completions to keep back */
static atomic_uint to_give;     /* completions to give out */
static atomic_uint nr_held;     /* [lock] writes */
static struct rv_event held[MAX_HELD];
static unsigned oldest;

static inline int poll_holding(struct rv_dev *dev, struct rv_event *ev, unsigned max,
			       unsigned flags)
{
	int n = 0, got;

	for (; atomic_load(&to_give) && atomic_load(&nr_held) && n < (int)max;
	     oldest = (oldest + 1) % MAX_HELD) {
		ev[n++] = held[oldest];
		atomic_fetch_sub(&nr_held, 1);
		atomic_fetch_sub(&to_give, 1);
	}
	got = rv_ibv_ops.poll(dev, ev + n, max - (unsigned)n, flags);
	if (got < 0)
		return got;
	for (int end = n + got, i = n; i < end; i++)
		/* UINT64_MAX: a probe of the peer's life. */
		if (ev[i].type == RV_EV_READ && ev[i].cookie != UINT64_MAX &&
		    atomic_load(&to_hold) && atomic_load(&nr_held) < MAX_HELD) {
			atomic_fetch_sub(&to_hold, 1);
			held[(oldest + atomic_fetch_add(&nr_held, 1)) % MAX_HELD] = ev[i];
		} else {
			ev[n++] = ev[i];
		}
	return n;
}

static inline bool no_short_way(struct rv_dev *dev, uint64_t *cookie, void **user)
{
	(void)dev, (void)cookie, (void)user;
	return false;
}

/* Keeps the next n back. */
static inline void hold(struct rref_ctx *ctx, unsigned n)
{
	rc_lock(ctx);
	holding = rv_ibv_ops;
	holding.poll = poll_holding;
	holding.next_read = no_short_way;
	atomic_store(&to_give, 0);
	atomic_store(&to_hold, n);
	ctx->device[RV_IBV].ops = &holding;
	rc_unlock(ctx);
}

/* Gives out the oldest n completions. */
static inline void give(struct rref_ctx *ctx, unsigned n)
{
	atomic_store(&to_give, n);
	rc_kick(ctx); /* the device does not wake a sleeper: it did so before */
}

/* Gives all of them out, and keeps no further one back. */
static inline void release(struct rref_ctx *ctx)
{
	atomic_store(&to_hold, 0);
	give(ctx, MAX_HELD);
}

static inline bool holds(struct rref_ctx *ctx, void *n)
{
	rref_progress(ctx); /* manual mode: a waiter may sleep by now */
	return atomic_load(&nr_held) >= *(unsigned *)n;
}

#endif
