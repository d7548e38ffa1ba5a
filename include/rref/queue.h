/* SPDX-License-Identifier: Apache-2.0 */
/* Queues: futures are put in, and come out in the order in which they end. */
#ifndef RREF_QUEUE_H
#define RREF_QUEUE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Makes a queue for futures of one context. To put one in or take one out costs the same, however
 * many are in the queue.
 *
 * A future in a queue stays the program's. It may be waited for, tested, cancelled and given a
 * callback. If it is freed before it came out, it leaves the queue. It is in one queue at a time,
 * and may be put into one again after it came out. Each future comes out once, to one thread. That
 * holds also for futures that failed, were cancelled, or ended by rref_shutdown.
 *
 *   ctx   the context
 *   out   *out is returned: free with rref_queue_free
 *
 * Returns 0, or
 *   -ENOMEM   no memory
 *   -EINVAL   ctx or out is NULL
 *   -ESHUTDOWN -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_queue_new(struct rref_ctx *ctx, struct rref_queue **out);

/*
 * Puts a future into a queue. If it is complete already, it comes out behind those that have ended
 * so far.
 *
 *   q     a queue
 *   f     a future of the queue's context, not in a queue; borrowed until it comes out or is freed
 *   tag   comes out with the future; NULL is accepted, and nothing is done with it
 *
 * Returns 0, or
 *   -EBUSY            the future is in a queue
 *   -EINVAL           q or f is NULL, or the two are of different contexts
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: lock-free.
 */
RREF_API int rref_queue_add(struct rref_queue *q, struct rref_future *f, void *tag);

/*
 * Takes out the future that ended first. Waits until one has ended, making progress itself when no
 * other thread does. Of several threads that wait, one gets it.
 *
 *   q         a queue
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER; 0: does not wait
 *   f         *f is the future, which is complete and stays the program's
 *   tag       *tag is what it was put in with; tag may be NULL
 *
 * Returns 0, also if the operation failed: see rref_future_wait, which then returns at once. Or
 *   -ENOENT           there is no future in the queue. A thread that waits hears so when another
 *                     one takes the last out
 *   -ETIMEDOUT        none has ended in time
 *   -EINVAL           q or f is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may block; with a timeout of 0, may lock.
 */
RREF_API int rref_queue_next(struct rref_queue *q, int64_t timeout, struct rref_future **f,
			     void **tag);

/*
 * Takes out several futures, in the order in which they ended. Waits until one has ended, as
 * rref_queue_next does, and then takes those that are there.
 *
 *   q         a queue
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER; 0: does not wait
 *   max       1 or more: room in fs and tags
 *   fs        the futures, which are complete and stay the program's
 *   tags      what they were put in with; NULL is accepted
 *
 * Returns how many came out, at least 1, or
 *   -ENOENT -ETIMEDOUT  as rref_queue_next
 *   -EINVAL             q or fs is NULL, or max is 0
 *   -ECHILD -EDEADLK    as of any call
 *
 * Threads: any. Progress: may block; with a timeout of 0, may lock.
 */
RREF_API int rref_queue_take(struct rref_queue *q, int64_t timeout, size_t max,
			     struct rref_future **fs, void **tags);

/*
 * Tells a descriptor to sleep on in an event loop. After rref_queue_arm it is readable when a
 * future in the queue has ended. It makes no progress: in the manual mode the loop has rref_ctx_fd
 * beside it, and calls rref_progress.
 *
 *   q   a queue, which keeps the descriptor
 *
 * Returns it, or
 *   -ENOMEM           a limit on descriptors
 *   -EIO              the system has none
 *   -EINVAL           q is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_queue_fd(struct rref_queue *q);

/*
 * Prepares the descriptor of rref_queue_fd. To be called before each sleep. Several threads may
 * sleep on it: each of them wakes.
 *
 *   q   a queue
 *
 * Returns 0: sleep. 1: do not sleep, but take futures out, since one may have ended in between. Or
 *   -ENOMEM -EIO      as rref_queue_fd
 *   -EINVAL           q is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_queue_arm(struct rref_queue *q);

/*
 * Frees a queue. Futures in it stay the program's, and are in no queue any more. Never fails.
 * rref_free_ctx frees the queues that are left. The descriptor may serve another queue later: take
 * it out of event loops before.
 *
 *   q   a queue; NULL is accepted
 *
 * Threads: any; not while another thread uses q. Progress: may lock, in steps of the number of
 * operations in flight if there are futures in it.
 */
RREF_API void rref_queue_free(struct rref_queue *q);

#ifdef __cplusplus
}
#endif

#endif
