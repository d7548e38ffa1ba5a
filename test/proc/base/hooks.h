/* SPDX-License-Identifier: Apache-2.0 */
/* A hook that blocks as long as the test wants, for hooks_test and hook_rules_test. */
#ifndef HOOKS_H
#define HOOKS_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/atomic.h"
#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

static struct rref_ctx *ctx;
static _Atomic int entered, may_leave, left;

static inline void reset(void)
{
	atomic_store(&entered, 0);
	atomic_store(&may_leave, 0);
	atomic_store(&left, 0);
}

/* Blocks until the test releases it, without the library. */
static inline void block(void)
{
	int64_t end = tg_deadline();

	atomic_fetch_add(&entered, 1);
	while (!atomic_load(&may_leave)) {
		TG_CHECK(now_ns() < end);
		usleep(300);
	}
	atomic_fetch_add(&left, 1);
}

static inline bool has_entered(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load(&entered) >= *(int *)arg;
}

static inline bool has_left(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load(&left) >= *(int *)arg;
}

/* Set while the program's thread of progress runs, in the manual
 * mode. A hook keeps that thread busy. */
static _Atomic bool driving;

static inline void *drive(void *arg)
{
	while (atomic_load(&driving)) {
		rref_progress(arg);
		usleep(100);
	}
	return NULL;
}

static inline void start_driver(pthread_t *t)
{
	if (tg_mode() != RREF_PROGRESS_MANUAL)
		return;
	atomic_store(&driving, true);
	TG_CHECK(pthread_create(t, NULL, drive, ctx) == 0);
	usleep(5000); /* other threads leave hooks to it now */
}

static inline void stop_driver(pthread_t t)
{
	if (tg_mode() != RREF_PROGRESS_MANUAL)
		return;
	atomic_store(&driving, false);
	TG_CHECK(pthread_join(t, NULL) == 0);
}

static inline void until(bool (*cond)(struct rref_ctx *c, void *arg), int n)
{
	int64_t end = tg_deadline();

	while (!cond(ctx, &n)) {
		TG_CHECK(now_ns() < end);
		usleep(300);
	}
}

static _Atomic int ran; /* the number of hooks that have run */

static inline bool all_ran(struct rref_ctx *c, void *arg)
{
	(void)c;
	return atomic_load(&ran) == *(int *)arg;
}

#endif
