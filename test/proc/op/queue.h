/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue of a test, and futures for it. Most are reads of a value of this worker that is not set
 * yet. Each test ends them when it likes, by a cancel or by setting the value.
 */
#ifndef TEST_OP_QUEUE_H
#define TEST_OP_QUEUE_H

#include "tg_refs.h"

#define FAR (20 * NSEC_PER_SEC)

static struct rref_ctx *ctx;
static struct rref_queue *q;
static struct rref *unset;

/* Makes one more future that is pending until unset is set, or the future is cancelled. */
static inline struct rref_future *pending(void)
{
	struct rref_future *f;

	TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
	return f;
}

/* Joins, and makes the queue. */
static inline void queue_begin(int rank)
{
	void *data;

	ctx = tg_join(rank);
	TG_OK(rref_queue_new(ctx, &q));
	TG_OK(rref_alloc(ctx, 8, &unset, &data));
}

/* Frees the queue. Checks that no operation is left, and leaves. */
static inline void queue_end(void)
{
	rref_queue_free(q);
	TG_OK(rref_set(unset));
	rref_release(unset);
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
}

static inline void *tag_of(size_t i)
{
	return (void *)(uintptr_t)(i + 1);
}

/* Takes the next future, which must be f with that tag and must have ended so. */
static inline void expect_next(struct rref_future *f, void *tag, int status)
{
	struct rref_future *got;
	void *its;

	TG_OK(rref_queue_next(q, FAR, &got, &its));
	TG_CHECK(got == f && its == tag);
	TG_IS(rref_future_wait(got, 0), status);
}

/* Takes the next future if it has ended. */
static inline int next_now(void)
{
	struct rref_future *f = NULL;
	void *tag = NULL;
	int err = rref_queue_next(q, 0, &f, &tag);

	TG_CHECK(!err == !!f); /* a call that failed wrote nothing */
	return err;
}

#endif
