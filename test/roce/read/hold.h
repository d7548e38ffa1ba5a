/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real device whose READs take long. It does them as always, but a layer between provider and
 * core keeps their completions back. A test decides for how long; they are given out in order.
 */
#ifndef HOLD_H
#define HOLD_H

#include "core/read/internal.h"
#include <pthread.h>
#include <stdatomic.h>

#include "core/ctx.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "tg_refs.h"

#define MAX_HELD 1024

/* A completion: of a READ that ended well, or an event. */
struct one_held {
	const struct rv_dev *dev;
	bool good;
	struct rv_read_end end;
	struct rv_event ev;
};

/* The linker puts the layer in the provider's place (--wrap, see Makefile). Pollers read the table
 * without a lock, so no test may change it once they run. */
extern const struct rv_ops __real_rv_ibv_ops;
struct rv_ops __wrap_rv_ibv_ops;

static atomic_uint to_hold;     /* completions to keep back */
static atomic_uint to_give;     /* completions to give out */
static atomic_uint nr_held;     /* written under hold_lock */
static pthread_mutex_t hold_lock = PTHREAD_MUTEX_INITIALIZER;
static struct one_held held[MAX_HELD];
static unsigned oldest;

/* Returns whether completions pass as they come. */
static inline bool idle(void)
{
	return !atomic_load(&to_hold) && !atomic_load(&nr_held);
}

/* Takes the oldest one that is to be given out, if it is of that device and sort. [hold_lock] */
static inline bool give_out(const struct rv_dev *dev, bool good, struct one_held *out)
{
	if (!atomic_load(&to_give) || !atomic_load(&nr_held) || held[oldest].good != good ||
	    held[oldest].dev != dev)
		return false;
	*out = held[oldest];
	oldest = (oldest + 1) % MAX_HELD;
	atomic_fetch_sub(&nr_held, 1);
	atomic_fetch_sub(&to_give, 1);
	return true;
}

/* Returns whether one of that cookie was kept back. [hold_lock] */
static inline bool keep_back(uint64_t cookie, const struct one_held *one)
{
	if (cookie == RC_PROBE_COOKIE || !atomic_load(&to_hold) ||
	    atomic_load(&nr_held) == MAX_HELD)
		return false;
	atomic_fetch_sub(&to_hold, 1);
	held[(oldest + atomic_fetch_add(&nr_held, 1)) % MAX_HELD] = *one;
	return true;
}

static inline int poll_holding(struct rv_dev *dev, struct rv_event *ev, unsigned max,
			       unsigned flags)
{
	struct one_held one;
	int n = 0, got;

	if (idle())
		return __real_rv_ibv_ops.poll(dev, ev, max, flags);
	pthread_mutex_lock(&hold_lock);
	while (n < (int)max && give_out(dev, false, &one))
		ev[n++] = one.ev;
	got = __real_rv_ibv_ops.poll(dev, ev + n, max - (unsigned)n, flags);
	for (int end = n + got, i = n; i < end; i++) {
		one = (struct one_held){ .dev = dev, .ev = ev[i] };
		if (ev[i].type != RV_EV_READ || !keep_back(ev[i].cookie, &one))
			ev[n++] = ev[i];
	}
	pthread_mutex_unlock(&hold_lock);
	return got < 0 ? got : n;
}

static inline int reads_holding(struct rv_dev *dev, struct rv_read_end *out, unsigned max,
				bool *more)
{
	struct one_held one;
	int n = 0, got;

	if (idle())
		return __real_rv_ibv_ops.reads(dev, out, max, more);
	pthread_mutex_lock(&hold_lock);
	while (n < (int)max && give_out(dev, true, &one))
		out[n++] = one.end;
	got = __real_rv_ibv_ops.reads(dev, out + n, max - (unsigned)n, more);
	for (int end = n + got, i = n; i < end; i++) {
		one = (struct one_held){ .dev = dev, .good = true, .end = out[i] };
		if (!keep_back(out[i].cookie, &one))
			out[n++] = out[i];
	}
	*more |= atomic_load(&to_give) && atomic_load(&nr_held);
	pthread_mutex_unlock(&hold_lock);
	return got < 0 && !n ? got : n;
}

/* Lays the layer over the provider before any group starts. */
__attribute__((constructor)) static void lay(void)
{
	__wrap_rv_ibv_ops = __real_rv_ibv_ops;
	__wrap_rv_ibv_ops.poll = poll_holding;
	__wrap_rv_ibv_ops.reads = reads_holding;
}

/* Keeps the next n back. */
static inline void hold(struct rref_ctx *ctx, unsigned n)
{
	at_store(&rc_never_again, true);
	rc_lock(ctx);
	atomic_store(&to_give, 0);
	atomic_store(&to_hold, n);
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
