/* SPDX-License-Identifier: Apache-2.0 */
/* Futures: unfinished operations, waits for them, and their results. */
#ifndef RREF_FUTURE_H
#define RREF_FUTURE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rref_type;

/*
 * Waits until the operation is complete, making progress itself when no other thread does.
 *
 *   f         a future
 *   timeout   of this wait alone: ns, RREF_DEFAULT or RREF_FOREVER
 *
 * Returns the operation's result: 0 or its -errno. Or
 *   -ETIMEDOUT        not complete in time: the operation goes on. If it ended with this errno
 *                     itself, rref_future_test says 1
 *   -EINVAL           f is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may block.
 */
RREF_API int rref_future_wait(struct rref_future *f, int64_t timeout);

/*
 * Tells whether the operation is complete. Makes no progress.
 *
 *   f   a future
 *
 * Returns 1 if it is, 0 if not, or
 *   -EINVAL   f is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_test(const struct rref_future *f);

/*
 * Sets a callback that runs exactly once, after completion. It runs at once on this thread if the
 * operation is complete already, else as a hook.
 *
 *   f     a future; stays valid until fn has returned, even if it is freed meanwhile, by fn say
 *   fn    the callback
 *   arg   given to fn; borrowed until fn has run
 *
 * Returns 0, or
 *   -EBUSY            it has a callback already
 *   -EINVAL           f or fn is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock; if the operation is complete, as long as fn takes.
 */
RREF_API int rref_future_then(struct rref_future *f, void (*fn)(struct rref_future *f, void *arg),
			      void *arg);

/*
 * Asks the operation to end with -ECANCELED. A late answer is dropped, and a value that it created
 * is reclaimed.
 *
 *   f   a future
 *
 * Returns 0, or
 *   -EALREADY         it was complete
 *   -EINVAL           f is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_future_cancel(struct rref_future *f);

/*
 * Waits until one of several operations is complete. They may be of several contexts. If some of
 * these are in the manual mode, it looks at them every 2 ms.
 *
 *   fs        nr futures; borrowed during the call
 *   nr        1 or more
 *   timeout   ns, RREF_DEFAULT (of the first one's context) or RREF_FOREVER
 *
 * Returns the index of a complete one, or
 *   -ETIMEDOUT        none is complete in time
 *   -EINVAL           nr is 0, or fs or one of them is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may block.
 */
RREF_API int rref_wait_any(struct rref_future *const *fs, size_t nr, int64_t timeout);

/*
 * Waits until all of several operations are complete. They may be of several contexts.
 *
 *   fs        nr futures; borrowed during the call
 *   nr        0 or more
 *   timeout   ns, RREF_DEFAULT (of the first one's context) or RREF_FOREVER
 *
 * Returns 0 when all are complete, with success or not; or
 *   -ETIMEDOUT        not all are complete in time
 *   -EINVAL           fs or one of them is NULL
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may block.
 */
RREF_API int rref_wait_all(struct rref_future *const *fs, size_t nr, int64_t timeout);

/*
 * Tells how a complete operation ended.
 *
 *   f     a future
 *   out   written up to out->size, which the caller has set
 *
 * Returns 0, also if the operation failed; or
 *   -EAGAIN   it is not complete
 *   -EINVAL   f or out is NULL, or out->size is not set
 *   -ECHILD   as of any call
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_error(const struct rref_future *f, struct rref_error *out);

/*
 * Takes the view of a complete rref_to_here_async.
 *
 *   f     a future; one thread at a time takes from it
 *   out   *out is returned: free with rref_view_free
 *
 * Returns 0, or
 *   -EAGAIN   it is not complete
 *   -ENOMSG   it is of another kind, or its view was taken
 *   -EINVAL   f or out is NULL
 *   -ECHILD   as of any call
 *   the operation's error, if it failed
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_view(struct rref_future *f, struct rref_view **out);

/*
 * Tells the type that a complete rref_get_type_async brought.
 *
 *   f     a future
 *   out   written up to out->size, which the caller has set; the name is borrowed until
 *         rref_free_ctx
 *
 * Returns 0, or
 *   -EAGAIN   it is not complete
 *   -ENOMSG   it is of another kind
 *   -EINVAL   f or out is NULL, or out->size is not set
 *   -ECHILD   as of any call
 *   the operation's error, if it failed
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_type(const struct rref_future *f, struct rref_type *out);

/*
 * Tells the result bytes of a complete call.
 *
 *   f        a future
 *   data     *data is borrowed until rref_future_free; NULL if there are none
 *   length   *length is their number
 *
 * Returns 0, or
 *   -EAGAIN   it is not complete
 *   -ENOMSG   it is of another kind
 *   -EINVAL   f, data or length is NULL
 *   -ECHILD   as of any call
 *   the operation's error, if it failed
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_data(const struct rref_future *f, const void **data, size_t *length);

/*
 * Counts the references that a complete call or rref_view_refs_async brought, taken ones included.
 *
 *   f   a future
 *
 * Returns their number, or
 *   -EAGAIN   it is not complete
 *   -ENOMSG   it is of another kind
 *   -EINVAL   f is NULL
 *   -ECHILD   as of any call
 *   the operation's error, if it failed
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_nr_refs(const struct rref_future *f);

/*
 * Takes the i-th reference that a complete call or rref_view_refs_async brought. References that
 * nobody takes are released with the future.
 *
 *   f     a future; one thread at a time takes from it
 *   i     counted from 0
 *   out   *out is returned: free with rref_release
 *
 * Returns 0, or
 *   -EAGAIN   it is not complete
 *   -ENOMSG   it is of another kind, or this reference was taken
 *   -EINVAL   f or out is NULL, or there is no i-th
 *   -ECHILD   as of any call
 *   the operation's error, if it failed
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_future_ref(struct rref_future *f, size_t i, struct rref **out);

/*
 * Frees a future, at any time. An operation that is not complete goes on unobserved. Never fails.
 *
 *   f   a future; NULL is accepted
 *
 * Threads: any; not while another thread uses f. Progress: may lock.
 */
RREF_API void rref_future_free(struct rref_future *f);

#ifdef __cplusplus
}
#endif

#endif
