/* SPDX-License-Identifier: Apache-2.0 */
/* Values and references to them: how they are made, described, held and given back. */
#ifndef RREF_VALUE_H
#define RREF_VALUE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A type of values. Two types are the same if name, element size and flags are. The name is the
 * program's own, or one of
 *   bytes                 any bytes; the type of values of rref_new and rref_alloc.
 *   int8 .. int64, uint8 .. uint64, float16, bfloat16, float32, float64, complex64, complex128
 *                         one number
 *   the same with []      (float32[]) an array: any number of them
 *
 * The library knows the element sizes of these types: give 0, or the right size. If a type has an
 * element size, each segment of a value holds a whole number of elements. A value of one number has
 * one segment of one element.
 */
struct rref_type {
	size_t size;             /* sizeof(struct rref_type), set by the caller */
	const char *name;        /* 1..RREF_NAME_MAX visible ASCII characters. Given: copied.
				    Told: borrowed until rref_free_ctx */
	size_t element_size;     /* bytes; 0 = no such thing */
	unsigned flags;          /* RREF_LOCAL_ONLY, or 0 */
};

/*
 * A value of such a type never leaves its owner. Handlers there use it by rref_local_value or
 * rref_to_here; a user's read gives -EPERM. References to it can be shared like any other. It lies
 * in memory that no device serves, and its owner tells no worker its address. So a user cannot read
 * it by other means either.
 */
#define RREF_LOCAL_ONLY 1u

/*
 * A value as the program describes it. Zeros stand for the plain case: a value of bytes, of one
 * segment, without references. All that it points to is borrowed during the call.
 *
 * A value may hold references, beside its bytes. It keeps the values that they name alive until it
 * is reclaimed itself. A reader takes from the view as many of them as it likes (rref_view_refs).
 * A circle of values that hold references to each other is never reclaimed while its workers run.
 */
struct rref_value_desc {
	const void *data;              /* the bytes of one segment */
	size_t length;
	const struct iovec *segments;  /* several, instead of data and length */
	size_t nr_segments;            /* 0..RREF_SEGMENTS_MAX */
	const struct rref_type *type;  /* NULL = bytes */
	struct rref *const *refs;      /* the value will hold them; the caller keeps its own */
	size_t nr_refs;                /* 0..RREF_REFS_MAX */
};

/*
 * Makes a value with a copy of the bytes, owned here.
 *
 *   ctx      the context
 *   data     length bytes, borrowed during the call; may be NULL if length is 0
 *   length   bytes: 0 to 1792 MiB less 128
 *   out      *out is returned: free with rref_release
 *
 * Returns 0, or
 *   -ENOMEM    the bound on value memory (max_value_bytes), or memory
 *   -EMSGSIZE  larger than a value may be
 *   -EINVAL    ctx or out is NULL, or data is and length is not 0
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_new(struct rref_ctx *ctx, const void *data, size_t length, struct rref **out);

/*
 * Makes a value of what a description says, with a copy of its bytes, owned here. Number and
 * lengths of its segments are kept, see rref_view_segments. Read as a whole the value is its
 * segments one after another. Each begins at the next multiple of 64, with zeros between. A table
 * of no segments makes a value of none.
 *
 *   ctx    the context
 *   desc   borrowed during the call
 *   out    *out is returned: free with rref_release
 *
 * Returns 0, or
 *   -EINVAL    ctx, desc or out is NULL. Segments and bytes at once. A segment or the table
 *              is NULL. An impossible name, size or flags of the type. Another element size than
 *              the built-in type's. A length of broken elements. A reference that is NULL or of
 *              another context.
 *   -EMSGSIZE  too many segments, references or bytes
 *   -ENOMEM    the bound on value memory, or memory; 65536 types are known here
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   the error of a failed reference in desc
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_new_value(struct rref_ctx *ctx, const struct rref_value_desc *desc,
			    struct rref **out);

/*
 * Makes a value of bytes to be filled in place, owned here. rref_set makes it readable; reads of it
 * wait until then.
 *
 *   ctx      the context
 *   length   bytes: 0 to 1792 MiB less 128
 *   out      *out is returned: free with rref_release
 *   data     *data is where the program fills it, contents undefined; borrowed until rref_set.
 *            Its use in a child of fork(2) is a fault
 *
 * Returns 0, or
 *   -ENOMEM    the bound on value memory (max_value_bytes), or memory
 *   -EMSGSIZE  larger than a value may be
 *   -EINVAL    ctx, out or data is NULL
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_alloc(struct rref_ctx *ctx, size_t length, struct rref **out, void **data);

/*
 * Makes a value from a description, to be filled in place as by rref_alloc. Ignores the addresses
 * of the description's bytes.
 *
 *   ctx      the context
 *   desc     borrowed during the call
 *   out      *out is returned: free with rref_release
 *   places   an entry for each segment, one if desc has no table. Each is set to the place where
 *            the program fills that segment, borrowed until rref_set. May be the table of desc
 *
 * Returns 0, or
 *   -EINVAL    places is NULL; and as rref_new_value, but a segment may be NULL
 *   -EMSGSIZE -ENOMEM  as rref_new_value
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   the error of a failed reference in desc
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_alloc_value(struct rref_ctx *ctx, const struct rref_value_desc *desc,
			      struct rref **out, struct iovec *places);

/*
 * Makes the value of rref_alloc or rref_alloc_value readable. It is immutable from now on.
 *
 *   ref   the owner's reference
 *
 * Returns 0, or
 *   -EALREADY  it was set before
 *   -EPERM     the value is not owned here
 *   -EINVAL    ref is NULL
 *   -ENOMEM    no memory: it is not set
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any; it has to have seen the writes of the program's other threads. Progress: may lock.
 */
RREF_API int rref_set(struct rref *ref);

/*
 * Says that the value of rref_alloc or rref_alloc_value will never come: every read fails so.
 *
 *   ref    the owner's reference
 *   err    a negative errno
 *   text   copied; NULL = rref_strerror's
 *
 * Returns 0, or
 *   -EALREADY  it was set before
 *   -EPERM     the value is not owned here
 *   -EINVAL    ref is NULL, or err is not a negative errno
 *   -ENOMEM    no memory: it is not set
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_set_error(struct rref *ref, int err, const char *text);

/*
 * Replaces the references that a value of rref_alloc or rref_alloc_value will hold, before it is
 * set. So values that are made one after the other can name each other.
 *
 *   ref    the owner's reference
 *   refs   nr references, borrowed during the call; the caller keeps its own holds
 *   nr     0..RREF_REFS_MAX
 *
 * Returns 0, or
 *   -EALREADY  it was set before
 *   -EPERM     the value is not owned here
 *   -EINVAL    ref is NULL; refs or one of them is; one is of another context
 *   -EMSGSIZE  more than RREF_REFS_MAX
 *   -ENOMEM    no memory
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   the error of a failed reference among refs
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_set_refs(struct rref *ref, struct rref *const *refs, size_t nr);

/* ---- values in the program's own memory ---- */

/*
 * Registers memory of the program with the devices, to wrap parts of it as values. It allows remote
 * reads only, at a random remote address. Registering costs time and locked memory, so a few large
 * pieces are better than many small ones. Several may cover the same memory.
 *
 *   ctx      the context
 *   addr     readable memory of any alignment; borrowed until rref_mem_deregister, and to stay
 *            mapped as long
 *   length   bytes, 1 or more
 *   out      *out is returned: free with rref_mem_deregister
 *
 * Returns 0, or
 *   -EOPNOTSUPP  a worker is reached over shared memory, where only memory of rref_mem_alloc can be
 *                read in place
 *   -ENOMEM      the limit on locked memory (the text has it, and how much was asked), or memory
 *   -EFAULT      not all of it is mapped, or no device may pin it: shared read-only mappings, a
 *                device's memory
 *   -EINVAL      ctx, addr or out is NULL, no bytes, or it ends beyond the address space
 *   -EMSGSIZE    more than the device registers at once
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may block, while a device registers.
 */
RREF_API int rref_mem_register(struct rref_ctx *ctx, void *addr, size_t length,
			       struct rref_mem **out);

/*
 * Makes new, zeroed memory, registered as by rref_mem_register. Workers of the same machine can
 * also read it in place. Works with every device. Writes of a child of fork(2) show here.
 *
 *   ctx      the context
 *   length   bytes, 1 or more
 *   out      *out is returned: free with rref_mem_deregister, which unmaps the memory
 *   addr     *addr is the memory, aligned to a page; borrowed until rref_mem_deregister
 *
 * Returns 0, or
 *   -ENOMEM    a limit (the text has it, and how much was asked), or memory
 *   -EINVAL    ctx, out or addr is NULL, or no bytes
 *   -EMSGSIZE  more than the device registers at once
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may block, while a device registers.
 */
RREF_API int rref_mem_alloc(struct rref_ctx *ctx, size_t length, struct rref_mem **out,
			    void **addr);

/*
 * Gives registered memory up: on return no device reaches it any more. Runs the due release
 * callbacks of values in it, and waits for release callbacks that run on other threads. It does not
 * wait if a release callback calls it.
 *
 *   mem   consumed on success; NULL is accepted. Allowed after rref_shutdown, not after
 *         rref_free_ctx, which deregisters what is left
 *
 * Returns 0, or
 *   -EBUSY            values wrap some of it; or a device does not let go of it, and it must stay
 *                     mapped
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any; one for each mem. Progress: may block.
 */
RREF_API int rref_mem_deregister(struct rref_mem *mem);

/*
 * Makes a value owned here whose bytes lie in registered memory, without a copy. The program lends
 * them to the group: they must not change until they come back. One part may be wrapped more than
 * once.
 *
 *   mem       registered memory
 *   desc      data and length are a part of it, the value's one segment; borrowed during the call
 *   release   the way back: called exactly once if rref_wrap succeeded; NULL = no callback
 *   arg       given to release
 *   out       *out is returned: free with rref_release
 *
 * release(arg) comes when the group has no reference any more, no worker can read, and no view is
 * left here. That is after a release, a crash of the last holder (when it is fenced), or a
 * shutdown. After a shutdown the program has to release its own handle and views too. The latest
 * moment is rref_free_ctx. release is a hook and may deregister the memory. Views of such a value
 * on its owner are the memory itself, aligned as it is.
 *
 * Returns 0, or
 *   -EINVAL    mem, desc or out is NULL, or no bytes. Outside of the registered memory. A table of
 *              segments. An impossible or local type. A length of broken elements. A reference
 *              that is NULL or of another context.
 *   -EMSGSIZE  larger than a value may be, or too many references
 *   -ENOMEM    memory, or the bound on value memory (64 bytes of it for each); 65536 types are
 *              known here
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *   the error of a failed reference in desc
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_wrap(struct rref_mem *mem, const struct rref_value_desc *desc,
		       void (*release)(void *arg), void *arg, struct rref **out);

/* ---- references ---- */

/*
 * Takes one more hold on the same handle. Local: no message. Returns ref. Never fails.
 *
 *   ref   a reference; NULL is accepted
 *
 * Threads: any. Progress: lock-free.
 */
RREF_API struct rref *rref_dup(struct rref *ref);

/*
 * Gives one hold back. The last one ends the reference: on a user its owner is told. Never fails,
 * but refuses what a handler does not hold: a reference of its call without a dup. Then
 * rref_last_error has the words (-EINVAL), and so has the log, and nothing is lost.
 *
 *   ref   consumed; NULL is accepted. Allowed after rref_shutdown, not after rref_free_ctx
 *
 * Threads: any; the last release excludes every other use of the handle.
 * Progress: may lock, but never waits for the lock: if it is taken, its holder does the work.
 */
RREF_API void rref_release(struct rref *ref);

/*
 * Gives one hold back on each of several references, as rref_release does. Up to 256 in a row of
 * one context cost one turn of the lock. A loop would cost one for each. They end in no certain
 * order. Never fails: a refused reference (-EINVAL in rref_last_error) keeps no other from being
 * released.
 *
 *   refs   nr references, each consumed; the table is borrowed during the call. NULL among them is
 *          skipped, and they may be of several contexts
 *   nr     0 or more
 *
 * Threads: any; as rref_release for each.
 * Progress: may lock, but never waits for the lock.
 */
RREF_API void rref_release_batch(struct rref *const *refs, size_t nr);

/*
 * Tells the rank of the value's owner.
 *
 *   ref   a reference
 *
 * Returns it, or
 *   -EINVAL   ref is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_owner(const struct rref *ref);

/*
 * Returns the name of the value's owner; "" if ref is NULL. Borrowed until rref_free_ctx. Never
 * fails.
 *
 *   ref   a reference
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const char *rref_owner_name(const struct rref *ref);

/*
 * Tells whether this worker owns the value.
 *
 *   ref   a reference
 *
 * Returns 1 or 0, or
 *   -EINVAL   ref is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_is_owner(const struct rref *ref);

/*
 * Tells whether the owner knows of this reference.
 *
 *   ref   a reference
 *
 * Returns 1 or 0, or
 *   -EINVAL   ref is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_confirmed(const struct rref *ref);

/*
 * Returns the value's id; zeros if ref is NULL. Never fails.
 *
 *   ref   a reference
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API struct rref_id rref_get_id(const struct rref *ref);

/*
 * Returns the id of this share of the value; zeros on its owner, or if ref is NULL. Never fails.
 *
 *   ref   a reference
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API struct rref_id rref_fork_id(const struct rref *ref);

/*
 * Returns the reference's context; NULL if ref is. Borrowed. Never fails.
 *
 *   ref   a reference
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API struct rref_ctx *rref_context(const struct rref *ref);

/*
 * Tells whether two references name the same value. Returns 1 or 0. Never fails.
 *
 *   a   a reference; NULL equals none
 *   b   another
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_equal(const struct rref *a, const struct rref *b);

/*
 * Returns a hash: equal references hash equal. Never fails.
 *
 *   ref   a reference, or NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API uint64_t rref_hash(const struct rref *ref);

/*
 * Writes a reference as "OwnerRRef(rref_id=...)" or "UserRRef(rref_id=..., fork_id=...)".
 *
 *   ref    a reference
 *   buf    size bytes, always terminated if size is not 0; may be NULL if size is 0
 *   size   bytes; RREF_TEXT_SIZE is enough
 *
 * Returns the length that the text has, as snprintf does, or
 *   -EINVAL   ref is NULL, or buf is and size is not 0
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_format(const struct rref *ref, char *buf, size_t size);

#ifdef __cplusplus
}
#endif

#endif
