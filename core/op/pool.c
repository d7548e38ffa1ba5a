/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker pool for handlers. A handler may wait, for a call it makes or a value it reads.
 * Meanwhile its thread does not count, and another is started if calls are queued. So nested calls
 * cannot use the pool up. Threads beyond the number asked for end when they find nothing to do.
 *
 * At most PER_CALLER calls of each other worker are queued or run without waiting. Further calls
 * stand apart, so that no caller has a longer queue before the others' calls. Calls that wait do
 * not count. Otherwise calls that nest deeper than that would wait for each other for good.
 *
 * A call is answered -EAGAIN if every thread waits and no thread can be had. The reason is memory,
 * a limit of the system, or max_waiting handlers of one caller that wait already. The chain of
 * calls that leads to it unwinds, instead of standing still.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/limit.h"
#include "base/thread.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/op/op.h"

#define PER_CALLER 512u

struct rc_caller {
	unsigned nr;                 /* guarded by lock; of its calls in the queue or running */
	unsigned blocked;            /* guarded by lock; of these: their handlers wait */
	struct list overflow;           /* guarded by lock; of those beyond PER_CALLER */
};

struct rc_pool {
	struct rref_ctx *ctx;
	pthread_mutex_t lock;
	pthread_cond_t work, gone;
	struct list queue;           /* guarded by lock */
	unsigned target;             /* const */
	/* const: handlers of one caller that wait, in reads of values that it never gives, say */
	unsigned max_waiting;
	unsigned queued;             /* guarded by lock: calls in queue */
	/* guarded by lock; idle also counts threads that were woken and have not looked yet */
	unsigned threads, idle, blocked;
	/* guarded by lock: threads that are being started, and threads that start some */
	unsigned starting;
	bool stop;
	struct rc_caller caller[];   /* by rank */
};

static _Thread_local struct rc_pool *my_pool;
static _Thread_local struct rc_caller *my_caller; /* caller whose call this thread serves */
static _Thread_local unsigned my_waits; /* waits on its stack: a wait may run a hook that waits */

bool rc_may_wait(const struct rref_ctx *ctx)
{
	unsigned depth = rc_callback_depth();

	return depth == 0 || (depth == 1 && my_pool && my_pool->ctx == ctx);
}

void rc_pool_fork_child(void)
{
	rc_wait_fork_child();
	my_pool = NULL;
	my_caller = NULL;
	my_waits = 0;
}

/* Moves calls that stood apart into the queue. Guarded by lock. */
static void admit(struct rc_pool *pool, struct rc_caller *c)
{
	struct list *n;

	while (c->nr - c->blocked < PER_CALLER && (n = list_pop(&c->overflow))) {
		c->nr++;
		pool->queued++;
		list_add_tail(&pool->queue, n);
	}
}

/*
 * Refuses a call that no thread can be had for. Its caller hears so from the thread that runs it.
 */
static void pool_refuse(struct rref_call *call, const char *why)
{
	call->in.status = -EAGAIN;
	snprintf(call->in.text, sizeof(call->in.text), "no thread for the call: %.170s", why);
}

static void *pool_run(void *arg)
{
	struct rc_pool *pool = arg;

	rb_thread_begin("rref-pool");
	my_pool = pool;
	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct list *n = list_pop(&pool->queue);

		if (n) {
			struct rref_call *call = container_of(n, struct rref_call, hook.node);
			struct rc_caller *c = &pool->caller[call->caller];

			pool->queued--;
			if (c->blocked >= pool->max_waiting)
				pool_refuse(call,
					    "all handlers there wait, and no more can be started "
					    "(max_waiting)");
			my_caller = c;
			pthread_mutex_unlock(&pool->lock);
			rc_hook_run(call->ctx, &call->hook);
			pthread_mutex_lock(&pool->lock);
			my_caller = NULL;
			c->nr--;
			admit(pool, c);
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

static void run_left(struct list *queue)
{
	struct list *n;

	while ((n = list_pop(queue))) {
		struct rref_call *call = container_of(n, struct rref_call, hook.node);

		rc_hook_run(call->ctx, &call->hook);
	}
}

/* Wakes an idle thread for the queue. Returns whether one has to be started. Guarded by lock. */
static bool wants_thread(struct rc_pool *pool)
{
	if (!pool->queued)
		return false;
	/* Signals once for each call: a thread that was woken for an earlier call still counts
	 * as idle. */
	if (pool->idle >= pool->queued) {
		pthread_cond_signal(&pool->work);
		return false;
	}
	return pool->threads - pool->blocked < pool->target;
}

/*
 * Starts a thread if there is work that no thread is free for. Moves the queue to *refused if no
 * thread can be started and all threads wait. Guarded by lock, and lets go of it meanwhile.
 */
static void pool_grow(struct rc_pool *pool, struct list *refused)
{
	struct list *n;
	char why[200];
	int err;

	if (!wants_thread(pool))
		return;
	pool->threads++;
	pool->starting++;
	pthread_mutex_unlock(&pool->lock);
	err = rb_thread_start(NULL, pool_run, pool);
	if (err)
		rb_thread_why(err, why, sizeof(why));
	pthread_mutex_lock(&pool->lock);
	pool->starting--;
	pthread_cond_broadcast(&pool->gone);
	if (!err)
		return;
	pool->threads--;
	rc_log(pool->ctx, RREF_LOG_ERROR,
	       "a worker thread could not be started (%u are running): %s", pool->threads, why);
	while (pool->threads == pool->blocked && (n = list_pop(&pool->queue))) {
		struct rref_call *call = container_of(n, struct rref_call, hook.node);

		pool->queued--;
		pool->caller[call->caller].nr--;
		pool_refuse(call, why);
		list_add_tail(refused, n);
	}
}

/* Starts threads for calls that were pushed under the lock. Lets go of the lock meanwhile. */
static needs_lock void pool_grow_work(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_pool *pool = ctx->op.pool;
	unsigned nr = ctx->op.pool_grows;
	struct list refused, *n;

	(void)w;
	ctx->op.pool_grows = 0;
	if (!pool)
		return;
	list_init(&refused);
	/* Taken before the progress lock is let go of: from then on the pool may be closed. */
	pthread_mutex_lock(&pool->lock);
	rc_unlock_bare(ctx);
	pool->starting++; /* keeps the pool */
	while (nr--)
		pool_grow(pool, &refused);
	pool->starting--;
	pthread_cond_broadcast(&pool->gone);
	pthread_mutex_unlock(&pool->lock);
	rc_lock(ctx);
	while ((n = list_pop(&refused)))
		rc_hook_push(ctx, container_of(n, struct rc_hook, node));
}

int rc_pool_open(struct rref_ctx *ctx, unsigned nr_threads, unsigned max_waiting)
{
	struct rc_pool *pool = calloc(1, sizeof(*pool) + ctx->world * sizeof(pool->caller[0]));

	if (!pool)
		return rc_fail(ENOMEM, "memory for the worker pool");
	pool->ctx = ctx;
	pool->target = nr_threads;
	pool->max_waiting = max_waiting;
	list_init(&pool->queue);
	for (uint32_t i = 0; i < ctx->world; i++)
		list_init(&pool->caller[i].overflow);
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_cond_init(&pool->gone, NULL);
	ctx->op.pool_grow.run = pool_grow_work;
	ctx->op.pool = pool;
	return 0;
}

/*
 * Waits until the last threads end. A handler may wait for a hook: without a poller this thread
 * runs it.
 */
static void until_gone(struct rref_ctx *ctx, struct rc_pool *pool)
{
	struct timespec ts;

	while (pool->threads || pool->starting) {
		if (at_load(&ctx->turns.has_poller)) {
			pthread_cond_wait(&pool->gone, &pool->lock);
			continue;
		}
		pthread_mutex_unlock(&pool->lock);
		rc_hooks_flush(ctx);
		pthread_mutex_lock(&pool->lock);
		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_nsec += NSEC_PER_MSEC;
		ts.tv_sec += ts.tv_nsec / NSEC_PER_SEC;
		ts.tv_nsec %= NSEC_PER_SEC;
		if (pool->threads || pool->starting)
			pthread_cond_timedwait(&pool->gone, &pool->lock, &ts);
	}
}

void rc_pool_close(struct rref_ctx *ctx)
{
	struct rc_pool *pool;

	/* Pushes are stopped first: calls of a worker to itself can still come out of its own
	 * queue. */
	rc_lock(ctx);
	pool = ctx->op.pool;
	ctx->op.pool = NULL;
	rc_unlock(ctx);
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->work);
	until_gone(ctx, pool);
	pthread_mutex_unlock(&pool->lock);
	/* Calls are left over only if no thread could be started for them. */
	run_left(&pool->queue);
	for (uint32_t i = 0; i < ctx->world; i++)
		run_left(&pool->caller[i].overflow);
	pthread_mutex_destroy(&pool->lock);
	pthread_cond_destroy(&pool->work);
	pthread_cond_destroy(&pool->gone);
	free(pool);
}

void rc_pool_push(struct rref_ctx *ctx, struct rref_call *call)
{
	struct rc_pool *pool = ctx->op.pool;
	struct rc_caller *c;
	bool grow = false;

	rc_assert_locked(ctx);
	if (!pool) {
		rc_hook_push(ctx, &call->hook); /* closing: it hears so */
		return;
	}
	c = &pool->caller[call->caller];
	pthread_mutex_lock(&pool->lock);
	if (c->nr - c->blocked < PER_CALLER || call->caller == ctx->rank) {
		c->nr++;
		pool->queued++;
		list_add_tail(&pool->queue, &call->hook.node);
		grow = wants_thread(pool);
	} else {
		list_add_tail(&c->overflow, &call->hook.node);
	}
	pthread_mutex_unlock(&pool->lock);
	/* Not here: a thread's start takes long. */
	if (grow && !ctx->op.pool_grows++)
		rc_defer(ctx, &ctx->op.pool_grow);
}

/* Counts the waits of this thread, in whatever context: it holds no lock of another context. */
void rc_pool_blocking(int delta)
{
	struct rc_pool *pool = my_pool;
	struct list refused;

	if (!pool || !my_caller)
		return;
	/* The thread counts once, however many waits it has. */
	my_waits += (unsigned)delta;
	if (my_waits != (delta > 0))
		return;
	list_init(&refused);
	pthread_mutex_lock(&pool->lock);
	pool->blocked += (unsigned)delta;
	my_caller->blocked += (unsigned)delta;
	admit(pool, my_caller);
	pool_grow(pool, &refused);
	pthread_mutex_unlock(&pool->lock);
	run_left(&refused); /* empty when delta is -1: this thread does not wait any more */
}
