/* SPDX-License-Identifier: Apache-2.0 */
/* The parts that all headers of librref share: limits, handles, the version, errors in words. */
#ifndef RREF_BASE_H
#define RREF_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h> /* struct iovec */

#ifdef __cplusplus
extern "C" {
#endif

#define RREF_VERSION_MAJOR 0
#define RREF_VERSION_MINOR 1
#define RREF_VERSION_PATCH 0
#define RREF_VERSION_NUMBER \
	(RREF_VERSION_MAJOR * 10000 + RREF_VERSION_MINOR * 100 + RREF_VERSION_PATCH)

#if defined(__GNUC__)
#define RREF_API __attribute__((visibility("default")))
#else
#define RREF_API
#endif

#define RREF_DEFAULT INT64_C(-1)     /* the context's default timeout */
#define RREF_FOREVER INT64_MAX       /* no timeout */

#define RREF_NAME_MAX 127            /* bytes of a worker's or function's name, without the NUL */
#define RREF_ARGS_MAX (256 << 20)    /* bytes of a call's arguments or result */
#define RREF_REFS_MAX 1024           /* references in a call's arguments or result, or in a value */
#define RREF_META_MAX 256            /* bytes of a call's metadata */
#define RREF_SEGMENTS_MAX 1024       /* segments of one value */
#define RREF_TEXT_SIZE 512           /* a buffer for every text of rref_format or an error */

struct rref_ctx;     /* this process' membership in a group */
struct rref;         /* a reference: owner's or user's handle of a value */
struct rref_future;  /* an unfinished operation; completes exactly once */
struct rref_queue; /* a queue of futures, which come out in the order in which they end */
struct rref_view;    /* a value that a read brought here, or an alias of a local one */
struct rref_call;    /* a call being served by a handler */
struct rref_mem;     /* memory that the program registered, to wrap parts of it as values */

#ifndef __cplusplus
typedef struct rref_ctx rref_ctx;
typedef struct rref rref;
typedef struct rref_future rref_future;
typedef struct rref_queue rref_queue;
typedef struct rref_view rref_view;
typedef struct rref_call rref_call;
typedef struct rref_mem rref_mem;
#endif

/* Names a value (RRefId) or one share of it (ForkId), group-wide. */
struct rref_id {
	uint64_t local_id;   /* counts up from 1 per worker; 0 = none */
	uint32_t created_on; /* rank */
	uint32_t reserved;   /* 0 */
};

/*
 * Returns the linked library's version as "major.minor.patch". Static. Never fails.
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const char *rref_version(void);

/*
 * Returns the linked library's version as RREF_VERSION_NUMBER has it. Never fails.
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API unsigned rref_version_number(void);

/*
 * Returns the text of the calling thread's last failed call; "" if none failed yet. Never fails.
 * Borrowed until the thread's next call of the library.
 *
 * A call that succeeds leaves the text of an earlier failure, as with errno. But
 * rref_options_from_env, rref_init, rref_serve and rref_shutdown empty it when they succeed.
 * Failures that the library meets on the way to a success are not in it. Nor are failed calls of a
 * hook that ran during a call of the thread.
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const char *rref_last_error(void);

struct rref_error {
	size_t size;              /* sizeof(struct rref_error), set by the caller */
	int err;                  /* 0 or -errno */
	int wc_status;            /* verbs work-completion status behind it, or -1 */
	int peer;                 /* rank of the worker concerned, or -1 */
	char text[256];           /* words, "" on success */
	unsigned flags;           /* RREF_ERROR_ANSWERED */
};

/*
 * The worker that was asked lives: it answered with this error. peer is the worker that the error
 * is about. That is the answering worker, or a third worker whose error it passed on. A handler
 * passes on the error of its last failed call by returning that errno, or by rref_call_error.
 * Without the flag the error was found here, and peer is the worker that was asked. For -EOWNERDEAD
 * with the flag, peer is dead and the callee lives. Without the flag peer is the callee.
 */
#define RREF_ERROR_ANSWERED 1u

/*
 * Tells the calling thread's last failed call: text, errno, worker and flags.
 *
 *   out   written up to out->size, which the caller has set; wc_status is -1
 *
 * In a handler err is 0 until a call of the handler fails.
 *
 * Returns 0, or
 *   -EINVAL   out is NULL or its size is not set; rref_last_error stays as it is
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_last_error_detail(struct rref_error *out);

/*
 * Returns the meaning of an errno in this library: "the owner is dead or unreachable", say.
 * Static. Never fails.
 *
 *   err   an errno, negative or positive
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const char *rref_strerror(int err);

#ifdef __cplusplus
}
#endif

#endif
