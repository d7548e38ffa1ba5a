/* SPDX-License-Identifier: Apache-2.0 */
/* Reads: how values come here, views of them, their types and the references that they hold. */
#ifndef RREF_READ_H
#define RREF_READ_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rref_type;

/*
 * Brings the value here. On its owner: an alias of it, without a copy. Elsewhere: a fresh copy by a
 * one-sided READ. Over shared memory a large value is not copied, but looked at where it lies: see
 * rref_to_here_with. The owner's processor takes no part if the value was ready when this reference
 * was made. A value that is not ready is waited for.
 *
 *   ref       a reference
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_view_free
 *
 * Returns 0, or
 *   -ETIMEDOUT  neither value nor error came in time: the text names the owner. Or the creation of
 *               this reference timed out: the text names the reference.
 *   -EOWNERDEAD the owner died, or is cut off
 *   -ENETRESET  the session with the owner ended though it lives: the reference is gone
 *   -ESTALE     the value is not there any more
 *   -EPERM      the value stays with its owner; the text names value, owner and user
 *   -EBADMSG    what was read failed its check
 *   -EPROTO     the owner broke the protocol
 *   -ENOMEM     the bound on landing memory (max_landing_bytes), or memory; or memory of the owner
 *               that this worker could not map
 *   -EAGAIN     in time there was no room: max_ops operations are in flight
 *   -ENODEV     the device that reaches the owner was lost
 *   -EIO        this worker's own device refused the request; the text has its completion status
 *   -ECANCELED  released by its owner before it was set
 *   -EINVAL     ref or out is NULL
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   any other   the value's own error, given by its function or rref_set_error, with the text. Or
 *               the error with which the session with the owner ended
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_to_here(struct rref *ref, int64_t timeout, struct rref_view **out);

/* Copies the value of another worker, of whatever size. */
#define RREF_READ_COPY 1u
/* Looks at the value where it lies if that is possible, of whatever size. */
#define RREF_READ_LOOK 2u

/*
 * Brings the value here as rref_to_here does, by one way or the other.
 *
 *   ref       a reference
 *   flags     RREF_READ_COPY, RREF_READ_LOOK, or 0: as rref_to_here
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_view_free
 *
 * Over shared memory a view can show the bytes where they lie. They are in memory of their owner
 * that this process has mapped read-only. Such a view is made in the same time for any size. So do
 * rref_to_here, a batch and a future with values of options.look_bytes or more. The value is one
 * segment, holds no references, and wraps no memory. The view holds its reference. Its bytes never
 * change, and stay until it is freed, also when the session or the owner has ended meanwhile. An
 * owner that breaks the rules can change them: a program that does not trust its owner copies.
 * There may be 4,096 such views at once. The value is copied if no look is possible:
 * rref_view_is_copy tells.
 *
 * The owner's own view is of the value itself, with any flag. It is no copy, and keeps the value's
 * memory until it is freed. rref_to_here_into copies at the owner too.
 *
 * Returns 0, or
 *   -EINVAL     ref or out is NULL, or the flags are both or unknown
 *   -ETIMEDOUT  and any other, as rref_to_here: -EOWNERDEAD -ENETRESET -ESTALE -EPERM -EBADMSG
 *               -EPROTO -ENOMEM -EAGAIN -ENODEV -EIO -ECANCELED -ECHILD -EDEADLK -ESHUTDOWN
 *
 * Threads: any. Progress: may block, up to timeout; a look is lock-free.
 */
RREF_API int rref_to_here_with(struct rref *ref, unsigned flags, int64_t timeout,
			       struct rref_view **out);

/*
 * Begins to bring the value here, without waiting. Between workers of one machine, and of the
 * owner's own values, the read is mostly over when this returns.
 *
 *   ref       a reference; may be released meanwhile
 *   timeout   of the operation: ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_future_free. Its result is a view: rref_future_view
 *
 * Returns 0, or
 *   -EAGAIN   in time there was no room: max_ops operations are in flight
 *   -ENOMEM   no memory
 *   -EINVAL   ref or out is NULL
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * The future's own errors are those of rref_to_here, and
 *   -ECANCELED  rref_future_cancel
 *
 * Threads: any. Progress: may lock; with too much in flight it may block, up to timeout.
 */
RREF_API int rref_to_here_async(struct rref *ref, int64_t timeout, struct rref_future **out);

/*
 * Reads a part of the value into the program's own memory.
 *
 *   ref       a reference
 *   buf       written to; length bytes, may be NULL if length is 0. On failure nothing of it is
 *             valid, and nothing is written to it after the call returned
 *   offset    of the part in the value, bytes
 *   length    at most so many bytes
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   got       *got = bytes written: fewer than length at the value's end, 0 at or past it
 *
 * Returns 0, or
 *   -EINVAL     ref or got is NULL, or buf is and length is not 0.
 *   -ETIMEDOUT  and any other, as rref_to_here: -EOWNERDEAD -ENETRESET -ESTALE -EPERM -EBADMSG
 *               -EPROTO -ENOMEM -EAGAIN -ENODEV -EIO -ECANCELED -ECHILD -EDEADLK -ESHUTDOWN
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_to_here_into(struct rref *ref, void *buf, size_t offset, size_t length,
			       int64_t timeout, size_t *got);

/*
 * Reads several references at once, with one doorbell for up to 32 of one owner. One READ brings
 * several small values that were created in a row and stand near one another in refs. That is
 * counted in reads_joined.
 *
 *   refs      nr references of one context; borrowed during the call
 *   nr        0 to INT32_MAX
 *   timeout   of all: ns, RREF_DEFAULT or RREF_FOREVER
 *   views     views[i] is returned where status[i] is 0: free with rref_view_free. Else it is NULL
 *   status    status[i] is 0 or an error of rref_to_here. It is -EINVAL too if refs[i] is NULL or
 *             of another context than the first. It is -ENOMEM too if the batch finds no memory
 *
 * Returns how many succeeded, or, with nothing started,
 *   -EINVAL   refs, views or status is NULL, all references are, or nr is too large
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_to_here_batch(struct rref *const *refs, size_t nr, int64_t timeout,
				struct rref_view **views, int *status);

/* A read of rref_to_here_into_batch. */
struct rref_into {
	struct rref *ref;
	void *buf;               /* length bytes of the program; borrowed during the call */
	size_t offset;           /* the part's begin in the value, bytes */
	size_t length;           /* the part's bytes at most */
	size_t got;              /* told: bytes written to buf; 0 on failure */
	int status;              /* told: 0 or -errno */
};

/*
 * Reads several values, or parts of them, into the program's own memory at once, as
 * rref_to_here_into and rref_to_here_batch do. Their sum may be more than max_landing_bytes.
 *
 *   reads     nr reads, of references of one context; got and status of each are written
 *   nr        0 to INT32_MAX
 *   timeout   of all: ns, RREF_DEFAULT or RREF_FOREVER
 *
 * The status of a read is 0 or an error of rref_to_here_into. It is -EINVAL too if its reference is
 * of another context than the first. It is -ENOMEM too if the batch finds no memory.
 *
 * Returns how many succeeded, or, with nothing started,
 *   -EINVAL   reads is NULL, all references are, or nr is too large
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_to_here_into_batch(struct rref_into *reads, size_t nr, int64_t timeout);

/*
 * Makes the owner's view of its value, waiting for it if it is not ready. No traffic.
 *
 *   ref       a reference to a value that is owned here
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_view_free
 *
 * Returns 0, or
 *   -EPERM      not owned here; the text names the reference, this worker and the owner to ask
 *   -ETIMEDOUT  not set in time
 *   -ECANCELED  released before it was set
 *   -EAGAIN     in time there was no room: max_ops operations are in flight
 *   -ENOMEM     no memory
 *   -EINVAL     ref or out is NULL
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   any other   the value's own error
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_local_value(struct rref *ref, int64_t timeout, struct rref_view **out);

/*
 * Tells the value's type, waiting for a value that is not ready. Asks the owner for a type's name
 * once, by one message. It does not ask if it knows the name from its own value, rref_expect_type
 * or an earlier answer.
 *
 *   ref       a reference
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   out       written up to out->size, which the caller has set; the name is borrowed until
 *             rref_free_ctx
 *
 * Returns 0, or
 *   -EBADMSG  the owner's answer contradicts the value
 *   -ENOMEM   no memory, or 65536 types are known here
 *   -EINVAL   ref or out is NULL, or out->size is not set
 *   -ETIMEDOUT -EOWNERDEAD -ENETRESET -ESTALE -EAGAIN -ENODEV -ECANCELED
 *   -ECHILD -EDEADLK -ESHUTDOWN and any other  as rref_to_here
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_get_type(struct rref *ref, int64_t timeout, struct rref_type *out);

/*
 * Begins to ask for the value's type, without waiting.
 *
 *   ref       a reference; may be released meanwhile
 *   timeout   of the operation: ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_future_free. Its result: rref_future_type
 *
 * Returns 0, or
 *   -EAGAIN   in time there was no room: max_ops operations are in flight
 *   -ENOMEM   no memory
 *   -EINVAL   ref or out is NULL
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * The future's own errors are those of rref_get_type, and
 *   -ECANCELED  rref_future_cancel
 *
 * Threads: any. Progress: may lock; with too much in flight it may block, up to timeout.
 */
RREF_API int rref_get_type_async(struct rref *ref, int64_t timeout, struct rref_future **out);

/*
 * Checks that the value is of a type. No message if it is, and the value was ready when this
 * reference was made. For readers, and for handlers about their arguments. Waits for a value that
 * is not ready.
 *
 *   ref       a reference
 *   type      copied
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *
 * Returns 0 if it is, or
 *   -EPROTOTYPE  it is of another type; the text names both, the value and its owner
 *   -EINVAL      ref or type is NULL, or an impossible type
 *   -EBADMSG -ENOMEM -ETIMEDOUT -EOWNERDEAD -ENETRESET -ESTALE -EAGAIN -ENODEV -ECANCELED
 *   -ECHILD -EDEADLK -ESHUTDOWN and any other  as rref_get_type
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_expect_type(struct rref *ref, const struct rref_type *type, int64_t timeout);

/* ---- views ---- */

/*
 * Returns the view's bytes: aligned to 64, unless the value wraps memory of its owner and this is
 * the owner. Borrowed until rref_view_free. NULL if view is NULL, or in a child of fork(2) whose
 * parent made it. Never fails.
 *
 *   view   a view
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const void *rref_view_data(const struct rref_view *view);

/*
 * Returns the number of the view's bytes; 0 where rref_view_data is NULL. Never fails.
 *
 *   view   a view
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API size_t rref_view_length(const struct rref_view *view);

/*
 * Tells whether the view's bytes are a copy, in memory of its own. They are not where they lie: in
 * the value of this worker, or in that of another over shared memory. Returns 1 or 0. Returns 0 if
 * view is NULL, or in a child of fork(2) whose parent has it. Never fails.
 *
 *   view   a view
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_view_is_copy(const struct rref_view *view);

/*
 * Gives a view back. In a child of fork(2) it does nothing with its parent's. Never fails.
 *
 *   view   consumed; NULL is accepted
 *
 * Threads: any; not while another thread uses the view. Progress: may lock.
 */
RREF_API void rref_view_free(struct rref_view *view);

/*
 * Counts the segments of the value, and tells where they are. A value made of bytes has one.
 * Returns their number. Never fails.
 *
 *   view       a view; NULL has none
 *   segments   the first nr of them are written: to be read only, borrowed until rref_view_free.
 *              May be NULL
 *   nr         entries of segments
 *
 * Threads: any. Progress: wait-free, in steps of the number of segments.
 */
RREF_API size_t rref_view_segments(const struct rref_view *view, struct iovec *segments, size_t nr);

/*
 * Tells the type of the value that this is a view of.
 *
 *   view   a view
 *   out    written up to out->size, which the caller has set; the name is borrowed until
 *          rref_free_ctx
 *
 * Returns 0, or
 *   -ENOENT   its name is not known here: rref_get_type of the reference asks for it
 *   -EINVAL   view or out is NULL, or out->size is not set
 *   -ECHILD   as of any call
 *
 * Threads: any. Progress: lock-free.
 */
RREF_API int rref_view_type(const struct rref_view *view, struct rref_type *out);

/* ---- references in values ---- */

/*
 * Returns the number of references that the value holds. Never fails.
 *
 *   view   a view; NULL has none
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API size_t rref_view_nr_refs(const struct rref_view *view);

/*
 * Takes references that the value holds: the whole range, or no reference on an error. On the
 * value's owner it takes another hold on each reference at once. Elsewhere it asks the owner, by
 * one message and its answer. The owner shares the references: they are confirmed when this
 * returns. For that the value lives as long as the view, even if its reference was released. Taking
 * a reference twice gives two references.
 *
 *   view      a view
 *   first     of the range, counted from 0
 *   nr        1 or more
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   out       out[0, nr) are returned: free with rref_release
 *
 * Returns 0, or
 *   -EINVAL      view or out is NULL, or no such references in the value
 *   -EOWNERDEAD  the value's owner died, or the owner of one of the references
 *   -ENETRESET   the session with the owner ended though it lives
 *   -ESTALE      the value is not there any more
 *   -EBADMSG     the owner answered something else
 *   -EPERM       the value stays with its owner, and so does what it holds
 *   -EAGAIN      too much in flight, here or there
 *   -EDQUOT      a bound on what one worker may hold at another was reached
 *   -ENOMEM      no memory, here or there
 *   -ETIMEDOUT   no answer in time
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   any other    of a failed reference among them, from the owner, with the text
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_view_refs(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
			    struct rref **out);

/*
 * Takes the i-th reference that the value holds, as rref_view_refs does.
 *
 *   view      a view
 *   i         counted from 0
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_release
 *
 * Returns 0, or
 *   -EINVAL   view or out is NULL, or there is no i-th
 *   -EOWNERDEAD -ENETRESET -ESTALE -EBADMSG -EPERM -EAGAIN -EDQUOT -ENOMEM -ETIMEDOUT
 *   -ECHILD -EDEADLK -ESHUTDOWN and any other  as rref_view_refs
 *
 * Threads: any. Progress: may block, up to timeout.
 */
RREF_API int rref_view_ref(struct rref_view *view, size_t i, int64_t timeout, struct rref **out);

/*
 * Begins to take references that the value holds, without waiting.
 *
 *   view      a view; may be freed meanwhile
 *   first     of the range, counted from 0
 *   nr        1 or more
 *   timeout   of the operation: ns, RREF_DEFAULT or RREF_FOREVER
 *   out       *out is returned: free with rref_future_free. Its result: rref_future_ref
 *
 * Returns 0, or
 *   -EINVAL   view or out is NULL, or no such references in the value
 *   -EAGAIN   in time there was no room: max_ops operations are in flight, or too many messages
 *             wait for the owner
 *   -ENOMEM   no memory
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   any other   of a failed reference: the one that was read, or on the owner one that is taken. Or
 *               of the session with the owner
 *
 * The future's own errors are those of rref_view_refs, and
 *   -ECANCELED  rref_future_cancel
 *
 * Threads: any. Progress: may lock; with too much in flight it may block, up to timeout.
 */
RREF_API int rref_view_refs_async(struct rref_view *view, size_t first, size_t nr, int64_t timeout,
				  struct rref_future **out);

#ifdef __cplusplus
}
#endif

#endif
