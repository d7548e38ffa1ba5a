/* SPDX-License-Identifier: Apache-2.0 */
/* Calls: functions of other workers, from the caller's side and from the handler's. */
#ifndef RREF_CALL_H
#define RREF_CALL_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rref_value_desc;

/*
 * A function that peers may call. It runs on the worker pool. With RREF_INLINE it runs on the
 * thread that takes in the call, which saves a thread's wake-up. That is meant for short functions.
 * If it waits or takes long, another thread goes on with that work, after 5 ms at most. Until then
 * other inline calls wait for it. It replies with rref_call_reply (now or later, from any thread),
 * or returns:
 *   0             replied already, or an empty reply if not
 *   RREF_DEFER    it will reply later; until then the call stays valid
 *   -errno        the caller gets this code. The text is that of the handler's last failed call,
 *                 if it failed with this very code, else rref_strerror's. rref_call_error: another
 */
typedef int (*rref_handler)(struct rref_call *call, void *arg);
#define RREF_DEFER 1
#define RREF_INLINE 1u

struct rref_function {
	const char *name;        /* 1..RREF_NAME_MAX bytes of A-Za-z0-9_:.- ; copied */
	rref_handler handler;
	void *arg;               /* borrowed until rref_free_ctx */
	unsigned flags;          /* 0 or RREF_INLINE */
};

/*
 * Arguments or result of a call: bytes and references. The references are shared (forked), and the
 * caller keeps its own. Data that does not fit a message (about 3 KiB) is copied to registered
 * memory. The receiver READs it there.
 */
struct rref_args {
	const void *data;
	size_t length;              /* 0..RREF_ARGS_MAX */
	struct rref *const *refs;
	size_t nr_refs;             /* 0..RREF_REFS_MAX */
	const void *meta;           /* bytes for a call's handler, a trace context say */
	size_t meta_length;         /* 0..RREF_META_MAX */
};

/*
 * Adds a function that peers may call from now on.
 *
 *   ctx   the context
 *   fn    name, handler, arg and flags; copied, but arg is borrowed until rref_free_ctx
 *
 * Returns 0, or
 *   -EEXIST   the name is taken
 *   -EINVAL   a pointer that is NULL, an impossible name, unknown flags
 *   -ENOMEM   no memory
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_register(struct rref_ctx *ctx, const struct rref_function *fn);

/*
 * Calls a function of a worker, without waiting for its answer.
 *
 *   ctx        the context
 *   rank       of the worker; this one included
 *   function   its name
 *   args       copied; NULL = empty. The references in it are shared
 *   timeout    from now: ns, RREF_DEFAULT or RREF_FOREVER. The call fails with -ETIMEDOUT then, and
 *              a late answer is dropped
 *   out        *out is returned: free with rref_future_free. Its result: rref_future_data and
 *              rref_future_ref
 *
 * Returns 0, or, with nothing sent,
 *   -EMSGSIZE   bytes, references or metadata beyond RREF_ARGS_MAX, _REFS_MAX or _META_MAX
 *   -EAGAIN     no room in time: max_ops operations are in flight. Or too many messages, or 256 MiB
 *               of payloads, wait for the callee.
 *   -ENOMEM     no memory, or the bound on value memory for large arguments
 *   -ETIMEDOUT  references are among the arguments, and no session with the callee came in time
 *   -EINVAL     ctx or out is NULL, or no such rank. An impossible name; NULL bytes or references;
 *               a reference of another context.
 *   -ESTALE     a reference among the arguments ended
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   any other   of a failed reference among the arguments, or of the session with the callee
 *
 * The future's own errors
 *   -ENOSYS      the callee has no such function
 *   -EOWNERDEAD  the callee died, or is cut off
 *   -ENETRESET   the session with it ended though it lives
 *   -ETIMEDOUT   no answer in time
 *   -EAGAIN      too many calls of this worker, or 1 GiB of their arguments, are open there. Or no
 *                thread was free there
 *   -ENOMEM      no memory for them there, or for the result here
 *   -ECANCELED   rref_future_cancel
 *   -EBADMSG     the result is malformed
 *   the handler's own error, with its text; that of a reference in the result
 *
 * Threads: any. Progress: may lock. It may block, up to timeout, with too much in flight. So it may
 * if references are shared with a callee whose session ended.
 */
RREF_API int rref_rpc_async(struct rref_ctx *ctx, int rank, const char *function,
			    const struct rref_args *args, int64_t timeout,
			    struct rref_future **out);

/*
 * Calls a function of a worker and waits for its answer.
 *
 *   ctx        the context
 *   rank       of the worker; this one included
 *   function   its name
 *   args       borrowed during the call; NULL = empty. The references in it are shared
 *   timeout    ns, RREF_DEFAULT or RREF_FOREVER
 *   out        *out, only on success, is returned: free with rref_future_free. May be NULL
 *
 * Returns 0, or an error of rref_rpc_async or of its future:
 *   -EMSGSIZE -EAGAIN -ENOMEM -ETIMEDOUT -EINVAL -ESTALE -ECHILD -EDEADLK -ESHUTDOWN
 *   -ENOSYS -EOWNERDEAD -ENETRESET -EBADMSG  as there
 *   the handler's own error, with its text
 *
 * Threads: any. Progress: may block.
 */
RREF_API int rref_rpc_sync(struct rref_ctx *ctx, int rank, const char *function,
			   const struct rref_args *args, int64_t timeout, struct rref_future **out);

/*
 * Calls a function whose result becomes a value of that worker, with the references in it. The
 * reference to the value comes back at once. If the creation fails, every read of the reference
 * fails with its error.
 *
 *   ctx        the context
 *   rank       of the worker that will own the value; this one included
 *   function   its name
 *   args       copied; NULL = empty. The references in it are shared
 *   timeout    of the creation, from now: ns, RREF_DEFAULT or RREF_FOREVER
 *   out        *out is returned: free with rref_release
 *
 * Returns 0, or, with nothing sent, as rref_rpc_async
 *   -EMSGSIZE -EAGAIN -ENOMEM -ETIMEDOUT -EINVAL -ESTALE -ECHILD -EDEADLK -ESHUTDOWN  as there
 *   any other  of a failed reference among the arguments, or of the session with the worker
 *
 * The creation's own errors are those of its future, see rref_creation: as rref_rpc_async's, and
 *   -EDQUOT   this worker holds as much there as one may
 *
 * Threads: any. Progress: may lock. It may block as rref_rpc_async.
 */
RREF_API int rref_remote(struct rref_ctx *ctx, int rank, const char *function,
			 const struct rref_args *args, int64_t timeout, struct rref **out);

/*
 * Makes a future of the creation of a value by rref_remote. Its result is its status alone.
 *
 *   ref   what rref_remote returned, on this worker
 *   out   *out is returned: free with rref_future_free
 *
 * Returns 0, or
 *   -EINVAL   ref or out is NULL, or ref was not made by rref_remote
 *   -EAGAIN   max_ops operations are in flight
 *   -ENOMEM   no memory
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may lock; with too much in flight it may block, up to the default
 * timeout.
 */
RREF_API int rref_creation(struct rref *ref, struct rref_future **out);

/* ---- for handlers ---- */

/*
 * Returns the context that serves a call; NULL if call is NULL. Borrowed. Never fails.
 *
 *   call   valid until the reply
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API struct rref_ctx *rref_call_context(const struct rref_call *call);

/*
 * Returns the name of the function that is called; "" if call is NULL. Borrowed until the reply.
 * Never fails.
 *
 *   call   valid until the reply
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const char *rref_call_function(const struct rref_call *call);

/*
 * Tells the caller's rank.
 *
 *   call   valid until the reply
 *
 * Returns it, or
 *   -EINVAL   call is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_call_caller(const struct rref_call *call);

/*
 * Returns the argument bytes, NULL if there are none. Borrowed until the reply. Never fails.
 *
 *   call   valid until the reply
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const void *rref_call_data(const struct rref_call *call);

/*
 * Returns the number of argument bytes. Never fails.
 *
 *   call   valid until the reply; NULL has none
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API size_t rref_call_length(const struct rref_call *call);

/*
 * Returns the call's metadata, NULL if there are none. Borrowed until the reply. They are not
 * passed on by themselves: a handler that calls on gives them along if it wants to. Never fails.
 *
 *   call   valid until the reply
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const void *rref_call_meta(const struct rref_call *call);

/*
 * Returns the number of bytes of the call's metadata. Never fails.
 *
 *   call   valid until the reply; NULL has none
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API size_t rref_call_meta_length(const struct rref_call *call);

/*
 * Tells whether the caller gave the call up (timeout, rref_future_cancel) or died, as far as is
 * known here.
 *
 *   call   valid until the reply
 *
 * Returns 1 if so, 0 if not, or
 *   -EINVAL   call is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_call_cancelled(const struct rref_call *call);

/*
 * Returns the number of references among the arguments. Never fails.
 *
 *   call   valid until the reply; NULL has none
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API size_t rref_call_nr_refs(const struct rref_call *call);

/*
 * Returns the i-th reference among the arguments, NULL if there is no such. Lent: borrowed until
 * the reply, and not to be released. rref_dup keeps it. Never fails.
 *
 *   call   valid until the reply
 *   i      counted from 0
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API struct rref *rref_call_ref(const struct rref_call *call, size_t i);

/*
 * Replies to a call. After a success a call that was deferred is consumed. Inside the handler it
 * stays valid until the handler returns.
 *
 *   call     the call
 *   result   copied; NULL = empty. The references in it are shared
 *
 * Returns 0, also if the caller is gone; or, with nothing sent and the call still open,
 *   -EALREADY  it was replied to. Of a deferred call that is known until a thousand others were
 *              replied to; then its memory is another's
 *   -EMSGSIZE  bytes or references beyond RREF_ARGS_MAX or RREF_REFS_MAX
 *   -EAGAIN    the caller has not read enough of the other results (256 MiB) within the context's
 *              timeout. Inline handlers and callbacks do not wait for that
 *   -ENOMEM    no memory, or the bound on value memory
 *   -EINVAL    call is NULL; bytes or references that are NULL; a reference of another context;
 *              metadata
 *   -ESTALE    a reference of the result ended
 *   -ESHUTDOWN the context was shut down while it waited
 *   -ECHILD -EDEADLK  as of any call
 *   the error of a failed reference in the result
 *
 * Threads: any. Progress: may lock; for a large result it may block, up to the default timeout.
 */
RREF_API int rref_call_reply(struct rref_call *call, const struct rref_args *result);

/*
 * Replies to a call with an error. The call is consumed as by rref_call_reply.
 *
 *   call   the call
 *   err    a negative errno
 *   fmt    a printf format of the text; NULL = the text of rref_strerror
 *   ...    its arguments
 *
 * Returns 0, also if the caller is gone; or
 *   -EALREADY  it was replied to
 *   -EINVAL    call is NULL, or err is not a negative errno
 *   -ENOMEM    no memory
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_call_error(struct rref_call *call, int err, const char *fmt, ...)
#if defined(__GNUC__)
	__attribute__((format(printf, 3, 4)))
#endif
	;

/*
 * Replies to a creation (rref_remote) with a value of any kind. The call is consumed as by
 * rref_call_reply.
 *
 *   call   the call
 *   desc   what the value is; borrowed during the call
 *
 * Returns 0, also if the caller is gone; or, with the call still open,
 *   -EINVAL    call is NULL, or no creation; and as rref_new_value
 *   -EALREADY  it was replied to
 *   -EMSGSIZE -ENOMEM  as rref_new_value
 *   -ECHILD -EDEADLK  as of any call
 *   the error of a failed reference in desc
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_call_reply_value(struct rref_call *call, const struct rref_value_desc *desc);

#ifdef __cplusplus
}
#endif

#endif
