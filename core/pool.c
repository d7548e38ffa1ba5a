/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker pool for handlers. A handler may wait (for a call it makes, a value it reads): while it does, its thread
 * does not count, and another is started if calls are queued, so that nested calls cannot use the pool up.
 * Threads beyond the number asked for end when they find nothing to do.
 *
 * Of each other worker, PER_CALLER calls at most are queued or run; more wait apart. So none can have more threads
 * than that wait for it (in reads of values that it never gives, say), nor a longer queue before the others' calls.
 * It is also how deep calls between two workers may nest.
 */
#include <errno.h>
#include <stdlib.h>

#include "rc.h"

#define PER_CALLER 512u

struct rc_caller {
	unsigned nr;                 /* guarded by lock; of its calls in the queue or running */
	struct list apart;           /* guarded by lock; of those beyond PER_CALLER */
};

struct rc_pool {
	struct rref_ctx *ctx;
	pthread_mutex_t lock;
	pthread_cond_t work, gone;
	struct list queue;           /* guarded by lock */
	unsigned target;             /* const */
	unsigned queued;             /* guarded by lock: calls in queue */
	unsigned threads, idle, blocked; /* guarded by lock; idle: those too that were woken and have not looked yet */
	bool stop;
	struct rc_caller caller[];   /* by rank */
};

static _Thread_local struct rc_pool *my_pool;

static void *run(void *arg)
{
	struct rc_pool *pool = arg;

	my_pool = pool;
	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct list *n = list_pop(&pool->queue);

		if (n) {
			struct rref_call *call = container_of(n, struct rref_call, node);
			struct rc_caller *c = &pool->caller[call->caller];

			pool->queued--;
			pthread_mutex_unlock(&pool->lock);
			rc_run_call(call);
			pthread_mutex_lock(&pool->lock);
			n = list_pop(&c->apart);
			if (n) {
				pool->queued++;
				list_add_tail(&pool->queue, n);
			} else {
				c->nr--;
			}
			continue;
		}
		if (pool->stop || pool->threads - pool->blocked > pool->target)
			break;
		pool->idle++;
		pthread_cond_wait(&pool->work, &pool->lock);
		pool->idle--;
	}
	pool->threads--;
	pthread_cond_broadcast(&pool->gone);
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Starts a thread if there is work that no thread is free for. Guarded by lock. */
static void grow(struct rc_pool *pool)
{
	pthread_attr_t attr;
	pthread_t thread;

	if (!pool->queued)
		return;
	/* One for each call: a thread that was woken for an earlier one still counts as idle. */
	if (pool->idle >= pool->queued) {
		pthread_cond_signal(&pool->work);
		return;
	}
	if (pool->threads - pool->blocked >= pool->target)
		return;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pool->threads++;
	if (pthread_create(&thread, &attr, run, pool)) {
		pool->threads--;
		rc_log(pool->ctx, RREF_LOG_ERROR, "a worker thread could not be started: %u are running", pool->threads);
	}
	pthread_attr_destroy(&attr);
}

int rc_pool_open(struct rref_ctx *ctx, unsigned nr_threads)
{
	struct rc_pool *pool = calloc(1, sizeof(*pool) + ctx->world * sizeof(pool->caller[0]));

	if (!pool)
		return rc_fail(ENOMEM, "memory for the worker pool");
	pool->ctx = ctx;
	pool->target = nr_threads;
	list_init(&pool->queue);
	for (uint32_t i = 0; i < ctx->world; i++)
		list_init(&pool->caller[i].apart);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_cond_init(&pool->gone, NULL);
	ctx->pool = pool;
	return 0;
}

static void run_left(struct list *queue)
{
	struct list *n;

	while ((n = list_pop(queue)))
		rc_run_call(container_of(n, struct rref_call, node));
}

void rc_pool_close(struct rref_ctx *ctx)
{
	struct rc_pool *pool;

	/* First nobody may push any more: calls of a worker to itself can still come out of its own queue. */
	rc_lock(ctx);
	pool = ctx->pool;
	ctx->pool = NULL;
	rc_unlock(ctx);
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->work);
	while (pool->threads)
		pthread_cond_wait(&pool->gone, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
	/* Left over only where no thread could be started for them. */
	run_left(&pool->queue);
	for (uint32_t i = 0; i < ctx->world; i++)
		run_left(&pool->caller[i].apart);
	pthread_mutex_destroy(&pool->lock);
	pthread_cond_destroy(&pool->work);
	pthread_cond_destroy(&pool->gone);
	free(pool);
}

void rc_pool_push(struct rref_ctx *ctx, struct rref_call *call)
{
	struct rc_pool *pool = ctx->pool;
	struct rc_caller *c;

	if (!pool) {
		list_add_tail(&ctx->deferred_calls, &call->node); /* closing: whoever holds the lock runs it, and it hears so */
		return;
	}
	c = &pool->caller[call->caller];
	pthread_mutex_lock(&pool->lock);
	if (c->nr < PER_CALLER || call->caller == ctx->rank) {
		c->nr++;
		pool->queued++;
		list_add_tail(&pool->queue, &call->node);
		grow(pool);
	} else {
		list_add_tail(&c->apart, &call->node);
	}
	pthread_mutex_unlock(&pool->lock);
}

void rc_pool_blocking(struct rref_ctx *ctx, int delta)
{
	struct rc_pool *pool = my_pool;

	if (!pool || pool->ctx != ctx)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->blocked += (unsigned)delta;
	grow(pool);
	pthread_mutex_unlock(&pool->lock);
}
