/* SPDX-License-Identifier: Apache-2.0 */
/*
 * librref: distributed shared references at RDMA speed. This is the whole public API.
 *
 * A value is created once and lives in registered memory of its owner. Any worker of the group
 * names it by a counted reference (struct rref). rref_to_here() reads it with one one-sided READ
 * that does not wake the owner. When the last reference in the group is gone, by release or by
 * crash, the memory is scrubbed and reused.
 *
 * Conventions
 *   Results      0 (or a count) on success, -errno on failure. A call that failed changed nothing and wrote no
 *                out-parameter. rref_last_error() then has the words, for the calling thread.
 *   Ownership    borrowed until X / copied / consumed (on success) / returned (free with Y) / static.
 *   Destructors  accept NULL.
 *   Times        int64_t nanoseconds. A timeout of RREF_DEFAULT means the context's default, RREF_FOREVER none. None ends
 *                early; one of a second or more may end 50 ms late.
 *   Sizes        bytes.
 *   Threads      Every function may be called by any thread, unless its block says otherwise. One handle may be used
 *                by many threads at once; its last release excludes every other use of that handle.
 *   Hooks        The program's code that the library calls: callbacks of futures, handlers,
 *                release callbacks, the log function. All run without a lock of the library. They
 *                may take their time, wait, and call anything but rref_shutdown (-EDEADLK) and
 *                rref_free_ctx (logged, and ignored). Where they run:
 *                  handlers        on the worker pool; with RREF_INLINE as the others, or on the
 *                                  pool while as many of these are out as may be.
 *                  the others      In the modes auto and poll on threads of the library, up to 15
 *                                  at once. A thread of the program, in whatever call, never runs
 *                                  them. In the manual mode in rref_progress and in calls that
 *                                  wait, nested at most 8 deep. Such a call then returns after its
 *                                  hook does. It leaves hooks to another thread that called
 *                                  rref_progress within the last 20 ms.
 *                  exceptions      rref_future_then on a complete future; rref_mem_deregister; and,
 *                                  once the context is shut down, calls that free. These run hooks
 *                                  themselves.
 *                Only the scope hook is different: see struct rref_scope.
 *   Progress     Each function says which it is: wait-free, lock-free, "may block" or "may lock".
 *                The third waits for peers, bounded by its timeout. The last enters a short
 *                critical section of this process.
 *   The library never exits or aborts, and installs no signal handler. It prints only if RREF_LOG
 *   asks for its log.
 *   Signals      Every thread of the library blocks all signals but those that its own faults
 *                raise. It writes to no pipe or socket in a way that raises SIGPIPE. A signal
 *                handler may call rref_serve_stop alone. Where it interrupts a function of the
 *                library it must not leave it by longjmp, nor call fork.
 *   Cancellation No function is a cancellation point, waits included: a thread that is cancelled
 *                in one ends at its first cancellation point after the return. Callbacks, handlers
 *                and hooks run with cancellation disabled, and leave it so. They end by a return:
 *                no pthread_exit, longjmp or exception. A thread whose type is
 *                PTHREAD_CANCEL_ASYNCHRONOUS must not call the library.
 *   fork(2)      A child must not use contexts of its parent: functions give -ECHILD, destructors
 *                do nothing, accessors of a view give NULL or 0. It has none of their descriptors,
 *                nor their memory: an address from rref_view_data, rref_alloc, rref_future_data or
 *                rref_call_data is a fault there (SIGSEGV). Only memory of
 *                rref_mem_alloc is shared with it. The parent goes on; when it dies its peers hear
 *                of it at once, even if children of it live. A child may join groups of its own by
 *                rref_init, also one that was forked in a callback or handler; such a child must
 *                not return from there. A daemon forks first and calls rref_init then. A child of
 *                clone(2) or _Fork, which run no fork handlers, is refused by rref_init too. It
 *                keeps its parent's devices: over ibv its parent's death looks like standing still
 *                (stall_timeout).
 *   Unloading    The library stays loaded after dlclose(3): threads that used it run destructors
 *                of it when they end. A program that is not linked with it and calls dlopen(3)
 *                must be started with GLIBC_TUNABLES=glibc.rtld.optional_static_tls=8192.
 *
 * Errors that any operation of the group may give
 *   -EINVAL        a bad argument; the text names it.
 *   -ESHUTDOWN     the context was shut down.
 *   -ECHILD        the context belongs to the parent process.
 *   -ENOMEM        memory or a limit; the text says which, and how much was asked for.
 *   -ETIMEDOUT     not within the time given; a retry may succeed. The text names the worker that
 *                  did not answer. If there has been no session with it yet, it says since when.
 *   -EOWNERDEAD    the owner of the value (or the callee) died, or fell silent during a session.
 *                  While it is cut off every operation with it fails so, at once. After its return
 *                  new ones succeed.
 *   -ENETRESET     the session with the peer ended though both live. It began a new one, or it cut
 *                  this worker off, for standing still longer than stall_timeout, say. Or this
 *                  worker ended it, because too many reads were refused or its connection broke too
 *                  often. References of the old session are gone; new ones can be had.
 *   -ENODEV        the device that reaches the peer was lost.
 *   -EDQUOT        a bound on what one worker may hold at another was reached.
 *   -EKEYREJECTED, -EPROTONOSUPPORT  a peer does not hold the group's key, or speaks another version; from operations too.
 *   -ESTALE        the reference or its value is not there any more (deleted, another incarnation).
 *   -EBADMSG       what was read failed its check.
 *   -EPERM         the value is of a type that stays with its owner (RREF_LOCAL_ONLY).
 *   -EPROTO        a peer broke the protocol; its connection is closed.
 *   -EOPNOTSUPP    not possible with the device in use; the text says what is.
 *   -EAGAIN        too much in flight: nothing was started, try again when something has finished.
 *   -EIO           a system service failed in a way that has no better name (the random generator, a descriptor).
 */
#ifndef RREF_H
#define RREF_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h> /* struct iovec */

#ifdef __cplusplus
extern "C" {
#endif

#define RREF_VERSION_MAJOR 0
#define RREF_VERSION_MINOR 1
#define RREF_VERSION_PATCH 0
#define RREF_VERSION_NUMBER (RREF_VERSION_MAJOR * 10000 + RREF_VERSION_MINOR * 100 + RREF_VERSION_PATCH)

#if defined(__GNUC__)
#define RREF_API __attribute__((visibility("default")))
#else
#define RREF_API
#endif

#define RREF_DEFAULT INT64_C(-1)     /* the context's default timeout */
#define RREF_FOREVER INT64_MAX       /* no timeout */

#define RREF_NAME_MAX 127            /* bytes of a worker's or function's name, without the NUL */
#define RREF_ARGS_MAX (256 << 20)    /* bytes of a call's arguments or result */
#define RREF_REFS_MAX 1024           /* references in one call's arguments or result, or in one value */
#define RREF_META_MAX 256            /* bytes of a call's metadata */
#define RREF_SEGMENTS_MAX 1024       /* segments of one value */
#define RREF_TEXT_SIZE 512           /* a buffer of this size holds every text that rref_format or an error writes */

struct rref_ctx;     /* this process' membership in a group */
struct rref;         /* a reference: owner's or user's handle of a value */
struct rref_future;  /* an unfinished operation; completes exactly once */
struct rref_view;    /* what a read brought here, or an alias of a local value */
struct rref_call;    /* a call being served by a handler */
struct rref_mem;     /* memory that the program registered, to wrap parts of it as values */

#ifndef __cplusplus
typedef struct rref_ctx rref_ctx;
typedef struct rref rref;
typedef struct rref_future rref_future;
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

/* ---- the library ------------------------------------------------------------------------------------------- */

/*
 * rref_version: the linked library's version as "major.minor.patch". Static. Wait-free.
 * rref_version_number: the same as RREF_VERSION_NUMBER.
 */
RREF_API const char *rref_version(void);
RREF_API unsigned rref_version_number(void);

/*
 * rref_last_error: the text of the calling thread's last failed call; "" if none failed yet. A call
 * that succeeds leaves the text of an earlier failure, as with errno; rref_options_from_env,
 * rref_init, rref_serve and rref_shutdown empty it. Failures that the library meets on the way to a
 * success are not in it. Nor are failed calls of a hook that ran during a call of the thread.
 * Borrowed until the thread's next call of the library. Wait-free.
 * rref_last_error_detail: the same with errno, worker and flags; see struct rref_error. wc_status
 * is -1. In a handler err is 0 until a call of the handler fails. out->size is set by the caller.
 * -EINVAL, without a text of its own: out is NULL, or its size is not set. Wait-free.
 */
struct rref_error;
RREF_API const char *rref_last_error(void);
RREF_API int rref_last_error_detail(struct rref_error *out);

/*
 * rref_strerror: what an errno means in this library ("owner dead", ...). err may be negative or positive. Static.
 */
RREF_API const char *rref_strerror(int err);

/* ---- context ----------------------------------------------------------------------------------------------- */

enum rref_progress_mode {
	RREF_PROGRESS_AUTO = 0,  /* a poller thread that sleeps when idle; waiters poll for themselves */
	RREF_PROGRESS_POLL = 1,  /* a dedicated poller thread that never sleeps */
	RREF_PROGRESS_MANUAL = 2,/* no thread: the program calls rref_progress or waits */
};

enum rref_log_level { RREF_LOG_ERROR = 0, RREF_LOG_WARNING = 1, RREF_LOG_INFO = 2, RREF_LOG_DEBUG = 3 };

/*
 * A function that peers may call. Runs on the worker pool. With RREF_INLINE it runs on the thread
 * that takes in the call, which saves a thread's wake-up: meant for short functions. If it waits or
 * takes long, another thread goes on with that work, after 5 ms at most. Until then other inline
 * calls wait for it.
 * It replies with rref_call_reply (now or later, from any thread), or returns:
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
 * Profiling scopes: the hook of the options hears the begin and, exactly once, the end of
 *   to_here, to_here_into, to_here_async                     #(this worker)->(owner)
 *   to_here_batch, to_here_into_batch                        the same, of the first reference's owner
 *   rpc_sync, rpc_async, remote                              #function(this worker)->(callee)
 *   view_refs, view_refs_async                               #(this worker)->(owner)    of the view's value
 *   new, alloc, wrap                                         #(this worker)->(this worker)
 *   fork: one for each reference that is shared              #(this worker)->(with whom)
 *   handler: while it runs                                   #function(caller)->(this worker)
 * with that text as key: "rpc_sync#price(trader1)->(feed0)". The scopes of to_here_async,
 * view_refs_async, rpc_async and remote end when the future or the creation is complete. That may
 * be on another thread, and a moment after a test of it says so. The others end where they began. A
 * call that is refused for its arguments may have none.
 * The hook runs on the thread at hand, on several at once, and may run under the library's lock: it
 * must be short and must not wait. Calls of the library that take the lock give -EDEADLK there;
 * accessors, rref_release, rref_view_free and
 * rref_future_free may be called. Off, a scope costs one test and branch.
 * The trace file has the same in Chrome's trace event format, for ui.perfetto.dev (docs/OBSERVING.md).
 */
struct rref_scope {
	size_t size;             /* sizeof(struct rref_scope) of the library */
	uint64_t id;             /* the same at begin and end; counts up from 1 in each context */
	const char *key;         /* borrowed during the call */
	int peer;                /* rank of the other worker */
	int status;              /* at the end: 0 or -errno */
	unsigned flags;          /* RREF_SCOPE_END: this is the end; RREF_SCOPE_ASYNC: it may be on another thread */
};
#define RREF_SCOPE_END 1u
#define RREF_SCOPE_ASYNC 2u

/* A worker that was alive and is not any more, for the peer_down function of the options. */
struct rref_peer_down {
	size_t size;             /* sizeof(struct rref_peer_down) of the library */
	int rank;
	int err;                 /* 0: it left the group and said so; -EOWNERDEAD: it died, fell
				    silent or cannot be reached; -ENETRESET: the session ended
				    though both live; else another error of the session's end */
	const char *text;        /* the reason in words; borrowed during the call */
};

/*
 * Options of a context. Always start from rref_options_init. Strings and tables are borrowed until rref_init returns.
 * The environment variable named behind a field is what rref_options_from_env reads.
 */
struct rref_options {
	size_t size;                    /* of the program's struct rref_options, set by rref_options_init */
	const char *name;               /* RREF_NAME: unique, 1..127 of A-Za-z0-9_:- ; NULL = "worker<rank>" */
	int rank;                       /* RREF_RANK, RANK: 0..world_size-1; -1 (default) = not
					   said: 0 in a group of one */
	int world_size;                 /* RREF_WORLD_SIZE, WORLD_SIZE: 1..1024; 0 (default) = not
					   said, an error of rref_init */
	const char *rendezvous;         /* RREF_RENDEZVOUS, MASTER_ADDR:MASTER_PORT (port + 1 under torchrun's agent store):
					   "host:port" of rank 0; not needed for a group of one */
	const char *device;             /* RREF_DEVICE: "auto" (default), "shm", "ibv", "ibv:<device>[:port[:gid-index]]" */
	const char *key_file;           /* RREF_KEY_FILE: the group's key, a file of 16..4096 bytes that only its owner can read */
	enum rref_progress_mode mode;   /* RREF_PROGRESS: "auto", "poll", "manual" */
	int poller_core;                /* RREF_POLLER_CORE: pin the poller there; -1 = do not pin */
	unsigned nr_threads;            /* RREF_THREADS: worker pool for handlers; 0 = 4 */
	unsigned max_ops;               /* RREF_MAX_OPS: operations in flight at once; 0 = 65536 */
	size_t max_value_bytes;         /* RREF_MAX_VALUE_BYTES: bound on memory for own values;
					   0 = half of the memory of this machine, or of this
					   container (cgroup) if that has less. Several workers in
					   one container share its memory: set it for them. Both
					   bounds together are all of it: lower them if the program
					   needs much itself. Counts in steps of 2 MiB, rounded
					   down; below 2 MiB rref_init gives -EINVAL */
	size_t max_landing_bytes;       /* RREF_MAX_LANDING_BYTES: bound on memory for values read
					   here; 0 = the same */
	size_t region_bytes;            /* RREF_REGION_BYTES: first registered region, later ones double; 0 = 16 MiB */
	int64_t timeout;                /* RREF_TIMEOUT_MS: default of calls, reads and waits; 0 = 60 s */
	int64_t init_timeout;           /* RREF_INIT_TIMEOUT_MS: for the whole group to meet; 0 = 60 s */
	int64_t peer_timeout;           /* RREF_PEER_TIMEOUT_MS: silence after which a peer on another host is given up; 0 = 1 s */
	const struct rref_function *functions; /* registered before the first peer can call */
	size_t nr_functions;
	/* NULL = silent. A hook: it may block, and call the library. One line at a time, in order.
	 * Up to 256 are kept for a slow function; the number of lines lost beyond that is told.
	 * rref_init's lines come in it. With RREF_LOG set, rref_options_from_env puts a function
	 * here that writes to standard error. */
	void (*log)(void *ctx, enum rref_log_level level, const char *text);
	void *log_ctx;
	enum rref_log_level log_level;  /* RREF_LOG: "error", "warning", "info", "debug"; default warning */
	unsigned flags;                 /* RREF_NO_LEAK_CHECK */
	unsigned max_waiting;           /* RREF_MAX_WAITING: handlers that may wait at once for the sake of one caller, each on a
					   thread of its own; so deep calls may nest. 0 = 8192 */
	void (*scope)(void *ctx, const struct rref_scope *scope); /* NULL = off */
	void *scope_ctx;
	const char *trace;              /* RREF_TRACE: a file for this worker's scopes, see struct rref_scope; NULL = off.
					   "%r" in it is the rank, else ".<rank>" is added */
	int64_t stall_timeout;          /* RREF_STALL_TIMEOUT_MS: a worker whose process stands still for so long is fenced by those
					   whose values it holds references to. 0 = for ever; default 60 s; in effect at least 2 s */
	/* A hook: called once each time that a worker goes down; see rref_worker. NULL = off. */
	void (*peer_down)(void *arg, struct rref_ctx *ctx, const struct rref_peer_down *down);
	void *peer_down_arg;
};
#define RREF_NO_LEAK_CHECK 1u           /* RREF_LEAK_CHECK=0: a leak at graceful shutdown is logged, not an error */

/*
 * rref_options_init(opt): sets every field to its default. NULL accepted. Wait-free. A macro, so
 * that the size is the program's own: a newer library neither writes behind the options of an older
 * program nor reads there. It takes the defaults for fields that are not in them. An older library
 * takes the options of a newer program if fields that it does not know are 0. Otherwise rref_init
 * refuses them (-EINVAL). Languages without macros call rref_options_init_size with the
 * size of their own struct.
 */
#define rref_options_init(opt) rref_options_init_size((opt), sizeof(struct rref_options))
RREF_API void rref_options_init_size(struct rref_options *opt, size_t size);

/*
 * rref_options_from_env: overwrites the fields whose variable is set. Strings point into the environment.
 *   -EINVAL  a variable that cannot be understood: the text names it and its value. Or neither a
 *            variable nor opt has a world size, or a rank for a group of more than one: the text
 *            names the variables. If mpirun, srun or another launcher started this process, it has
 *            the line to type. RREF_WORLD_SIZE=1 asks for a group of one.
 *   -ENOMEM  memory for the rendezvous address
 */
RREF_API int rref_options_from_env(struct rref_options *opt);

/*
 * rref_init: joins the group. Opens devices, meets the other workers at the rendezvous (rank 0 listens there), returns
 * when all are present. Functions of opt may be called by peers before it returns: handlers take the context from
 * rref_call_context. opt NULL = defaults + environment. *out: returned, free with rref_free_ctx.
 * May block, up to opt->init_timeout. Things that can come by themselves are waited for, and told
 * in the log at level info: rank 0 and its name in the DNS, its address and port; also a rank 0
 * that is killed and started again before the group is complete. A group that has started is
 * closed, for now: nobody can join it later, or take a dead worker's place.
 *   -EINVAL       bad options: rank, name, device text, key file, an address that cannot be ...
 *   -EEXIST       this rank or name is taken already in the group (both workers involved fail)
 *   -ENODEV       no usable device; the text says what was looked for and what to load, or which
 *                 system call is refused
 *   -ENOMEM       memory or a limit of the system: descriptors, threads, addresses, file sizes,
 *                 locked memory; the text names the limit, its value and how to raise it
 *   -ETIMEDOUT    the group was not complete in time; the text says what was tried, and which ranks are missing
 *   -ECONNREFUSED nobody answers as this group's rendezvous: rank 0 is not there, or its group has
 *                 started already
 *   -EADDRINUSE   rank 0 cannot listen at the rendezvous address
 *   -EADDRNOTAVAIL in time the rendezvous address did not become one of rank 0's machine
 *   -EACCES       without a key, an address other than loopback was asked for; or the key file's
 *                 mode is too open; or there is no place for this user's own key (/tmp missing, or
 *                 read-only)
 *   -ENOENT       there is no such key file
 *   -EKEYREJECTED the other side does not hold the group's key
 *   -EPROTONOSUPPORT a worker speaks another protocol version
 *   -EPROTO       the other side does not speak this protocol
 *   -EIO          the trace file cannot be made (it must be a regular file); or getrandom(2) is
 *                 refused, or a system service failed: the text says which
 *   -ECHILD       this process was made by clone(2) or _Fork from one with contexts: see the top
 */
RREF_API int rref_init(const struct rref_options *opt, struct rref_ctx **out);

#define RREF_SHUTDOWN_GRACEFUL 0u
#define RREF_SHUTDOWN_NOW 1u

/*
 * rref_shutdown: leaves the group. Graceful: waits until every worker has come here, serving their calls meanwhile;
 * releases the handles that the program still holds; waits until every reference in the group is gone; checks for leaks.
 * NOW: leaves at once; peers see this worker die. Afterwards every call gives -ESHUTDOWN; handles may still be released.
 * May block, up to timeout (RREF_DEFAULT, RREF_FOREVER or ns).
 *   0             done, nothing left
 *   -ESHUTDOWN    shut down before
 *   -EDEADLK      called from a callback or handler
 *   -ETIMEDOUT    peers did not follow in time; the context is shut down all the same, the text lists what remained
 *   -EBUSY        leak: references to values owned here remained; the text lists them; the context is shut down
 *   -EOWNERDEAD   a peer died meanwhile; the context is shut down. A worker that died before,
 *                 or returned from main without a shutdown, is not waited for, which is no error.
 *                 peer_down and the log tell of it
 */
RREF_API int rref_shutdown(struct rref_ctx *ctx, unsigned how, int64_t timeout);

/*
 * rref_serve: for a process that only serves. Blocks, makes progress in every mode, and returns
 * when every other worker that lives has come to its graceful rref_shutdown: nobody is left to
 * serve. Then call rref_shutdown, which does not wait for them again. There is no time-out. Other
 * threads may use the context meanwhile. The death of a worker ends nothing: it is told as always
 * (see rref_worker), and the others are served on. That holds for rank 0 too, which counts the
 * workers that have come. Alone in a group of one it returns at once.
 *   0            every other worker has come, or rref_serve_stop was called, or another thread is
 *                in rref_shutdown. Also when some workers died and the others have come
 *   -EOWNERDEAD  nobody is left, and not in order: all others died, or rank 0 did and the rest left
 *   -EDEADLK     called from a callback or handler
 *   -EBUSY       another thread is in rref_serve of this context
 *   -ESHUTDOWN   the context was shut down before
 *   -EAGAIN      all operations of the context are in use (max_ops)
 *
 * rref_serve_stop: ends the rref_serve that runs, or else the next one, which then returns 0. For
 * any thread, and for signal handlers: it is async-signal-safe, keeps errno and sets no text. A
 * graceful rref_shutdown after it waits for the other workers, up to its time-out; serving them all
 * the same. Lock-free. -EINVAL: NULL. -ECHILD. The context must not be freed meanwhile.
 *
 * Without these two, rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER) serves until the
 * others come, too. It cannot be stopped, and ends with an error if rank 0 dies.
 */
RREF_API int rref_serve(struct rref_ctx *ctx);
RREF_API int rref_serve_stop(struct rref_ctx *ctx);

/*
 * rref_free_ctx: frees the context, after rref_shutdown(NOW) if it was not shut down. Handles, views, futures and calls
 * of it must be gone or are not to be touched again. NULL accepted. May block: it waits for a
 * thread that is in rref_shutdown. From a hook it does nothing but log an error.
 */
RREF_API void rref_free_ctx(struct rref_ctx *ctx);

/* Own rank; number of workers. -EINVAL for NULL. Wait-free. */
RREF_API int rref_rank(const struct rref_ctx *ctx);
RREF_API int rref_world_size(const struct rref_ctx *ctx);

/*
 * rref_set_timeout: the default timeout of what is begun from now on, in ns or RREF_FOREVER; what is under way keeps its
 * own. -EINVAL: not above 0. Wait-free.
 */
RREF_API int rref_set_timeout(struct rref_ctx *ctx, int64_t timeout);

struct rref_worker_info {
	size_t size;             /* sizeof(struct rref_worker_info), set by the caller */
	int rank;
	const char *name;        /* borrowed until rref_free_ctx */
	uint64_t incarnation;    /* random, new with every start of that worker */
	int alive;               /* 0: known to be dead or gone */
	const char *device;      /* "self", "shm" or "ibv": how this worker reaches it; static */
	int64_t stalled;         /* ns since its process stopped answering though its device does; 0 = it answers */
};

/*
 * rref_worker: by rank. -EINVAL: no such rank. Wait-free.
 * rref_worker_by_name: its rank, or -ENOENT. Wait-free.
 *
 * A worker counts as alive until this one finds that it is not. It finds so by itself if the two
 * have a session, which their first call, read or reference makes. Over shm the end of a process
 * shows at once. A silent host shows within peer_timeout, a process that stands still within
 * stall_timeout. Without a session the next attempt to speak to the worker shows it; the graceful
 * shutdown of rank 0 makes one. Then alive is 0, the options' peer_down is called, and the
 * descriptor of rref_ctx_fd is readable. A new session makes the worker alive again.
 *
 * Operations that wait for the dead worker fail before peer_down is called. It is not called for
 * sessions that this worker's rref_shutdown ends, nor for workers that leave together with this
 * one.
 */
RREF_API int rref_worker(struct rref_ctx *ctx, int rank, struct rref_worker_info *out);
RREF_API int rref_worker_by_name(struct rref_ctx *ctx, const char *name);

/*
 * rref_progress: for the manual mode (allowed in all): does what can be done now, without blocking. A program that calls
 * neither it nor anything that waits is stalled for its peers (stall_timeout): in the manual mode call it twice a second.
 * Returns the number of events handled (0 = nothing to do, or another thread is at it), or -ESHUTDOWN.
 * rref_ctx_fd: a descriptor to sleep on in an event loop; one loop for each context. It is readable
 * when a future of the context has ended, on whatever thread. It is so too when a worker went down
 * (see rref_worker). In the manual mode also when rref_progress has something to do, or a timer is
 * due: half a second after rref_ctx_arm at the latest, so that a loop needs no time-out of its own.
 * rref_ctx_arm: to be called before each sleep. 0: sleep, then call rref_progress. 1: do not sleep;
 * call rref_progress and look at the futures again, since one may have ended in between. May lock.
 */
RREF_API int rref_progress(struct rref_ctx *ctx);
RREF_API int rref_ctx_fd(struct rref_ctx *ctx);
RREF_API int rref_ctx_arm(struct rref_ctx *ctx);

struct rref_stats {
	size_t size;               /* sizeof(struct rref_stats), set by the caller */
	uint64_t owners;           /* values (and pending ones) owned here */
	uint64_t forks;            /* references of other workers to them */
	uint64_t users;            /* references held here to values of others */
	uint64_t pending_users;    /* of these: not confirmed by the owner yet */
	uint64_t pending_children; /* shares that the owner has not confirmed yet */
	uint64_t parked;           /* reads waiting for a value that is not ready */
	uint64_t value_bytes;      /* memory of live values, headers included */
	uint64_t landing_bytes;    /* memory of views and reads in flight */
	uint64_t payload_bytes;    /* large arguments and results that their receivers have not read yet; they count as value_bytes too */
	uint64_t registered_bytes; /* registered with the devices, by the program too */
	uint64_t nr_regions;
	uint64_t reads;            /* one-sided READs posted */
	uint64_t read_bytes;
	uint64_t doorbells;        /* postings that carried them */
	uint64_t messages_sent, messages_received;
	uint64_t calls_served;
	uint64_t ops_in_flight;
	uint64_t quarantined;      /* landing buffers of operations that timed out and that the device may still write */
	uint64_t dropped_messages; /* malformed, late or of another session */
	uint64_t rejected_peers;   /* connections refused or closed for breaking the protocol */
	uint64_t dead_peers;
	uint64_t retries;          /* messages that the device failed to send, and that were tried again */
	uint64_t pending_owners;   /* of owners: value not set yet */
	uint64_t tombstones;       /* kept of references that ended, so that a late message does not revive them */
	uint64_t calls_open;       /* calls being served here, or waiting to be */
	uint64_t waiting_reads;    /* reads that wait for a connection, or for a place in one */
	uint64_t sessions;         /* that came up: more than there are peers means that some broke */
	uint64_t queued_messages, queued_bytes; /* that wait for their peer to take them */
	uint64_t sent_bytes, received_bytes;    /* of control messages; what was read is read_bytes */
#define RREF_MESSAGE_KINDS 32
	uint64_t sent[RREF_MESSAGE_KINDS], received[RREF_MESSAGE_KINDS]; /* messages by kind: rref_message_kind */
	uint64_t nested;           /* references that values owned here hold */
	uint64_t wrapped_bytes;    /* of the program's memory that values wrap; their headers count as value_bytes */
	uint64_t stalled_peers;    /* now: see struct rref_worker_info */
	uint64_t fenced_peers;     /* sessions that ended because their peer stood still for longer than stall_timeout */
	uint64_t resumed_sessions;   /* connections that broke and were made again, within their session */
	uint64_t messages_again;     /* sent again over such a connection, since the peer had not got them */
	uint64_t messages_not_again; /* not acknowledged when it broke, and not sent again: the peer had got them */
	uint64_t reads_again;        /* READs that such a break cut off, and that were begun again */
	uint64_t reads_joined;       /* values of a batch that came with the READ of another: they lie side by side */
};

/*
 * rref_get_stats: fills out->size bytes at most. -EINVAL. May lock.
 * rref_message_kind: the name of kind 0 .. RREF_MESSAGE_KINDS-1 ("call", "fork-request" ...), "" for one that is not used.
 * Static. Wait-free.
 * rref_stats_format: the counters as lines "name value", messages by kind as "sent.call 12", zeros of those left out.
 * Returns the length it has, as snprintf does, or -EINVAL. Wait-free.
 */
RREF_API int rref_get_stats(struct rref_ctx *ctx, struct rref_stats *out);
RREF_API const char *rref_message_kind(unsigned kind);
RREF_API int rref_stats_format(const struct rref_stats *stats, char *buf, size_t size);

struct rref_peer_stats {
	size_t size;               /* sizeof(struct rref_peer_stats), set by the caller */
	int rank;
	uint32_t epoch;            /* of the current or last session with it */
	const char *state;         /* "self", "down", "connecting", "accepting", "up", "broken" (its connection is being made
				      again) or "gone"; static */
	uint64_t sessions;         /* that came up */
	uint64_t forks;            /* references it holds to values owned here */
	uint64_t users;            /* references held here to its values */
	uint64_t pending_children; /* shared with it, not confirmed by their owners yet */
	uint64_t tombstones;
	uint64_t messages_sent, messages_received, sent_bytes, received_bytes;
	uint64_t queued_messages, queued_bytes; /* that wait for it to take them: it is slow, stopped, or not connected */
	uint64_t waiting_reads;
	uint64_t call_bytes;       /* of its calls that are open here */
	int64_t heard;             /* ns since its last message, or since its device answered; -1 = never */
	int64_t stalled;           /* as in struct rref_worker_info */
	uint64_t resumed;          /* of its sessions' connections: broke and were made again */
	uint64_t unacked_messages; /* sent to it, and kept until it says that they came */
};

/* rref_get_peer_stats: the same of one worker, by rank (the own one: messages to itself). -EINVAL. May lock. */
RREF_API int rref_get_peer_stats(struct rref_ctx *ctx, int rank, struct rref_peer_stats *out);

/*
 * Dumps: who holds which reference, since when, shared by whom; one record on a line. As text: a kind, then key=value;
 * with RREF_DUMP_JSON a JSON object per line, with the same keys and "kind". docs/OBSERVING.md explains each.
 *   worker  this one                                peer   each other one: its session, what hangs on it
 *   owner   a value owned here                      fork   a reference to it: holder, epoch, by whom it was shared
 *   user    a reference held here                   child  one that it was shared as, not confirmed by the owner yet
 *   nested  a reference that a value holds
 *   op      an operation in flight, its age         stats  the counters, with RREF_DUMP_STATS
 * A worker with many references goes on meanwhile: what changes during the dump may be in it or not.
 *
 * rref_dump_to: write is called with whole records, on the calling thread, with no lock held; a result other than 0 ends
 * the dump and is returned. -EINVAL, -ENOMEM. May lock.
 * rref_dump: text without counters into buf (size bytes, always terminated). Returns the length it would have, as
 * snprintf does, or -errno. Ages have a constant width. May lock.
 */
#define RREF_DUMP_JSON 1u
#define RREF_DUMP_STATS 2u
typedef int (*rref_writer)(void *arg, const char *text, size_t length);
RREF_API int rref_dump_to(struct rref_ctx *ctx, unsigned flags, rref_writer write, void *arg);
RREF_API int rref_dump(struct rref_ctx *ctx, char *buf, size_t size);

/*
 * rref_leak_report: finds of the graceful shutdown, as text records. "unreleased": a handle that
 * the program still held. "leak": a reference of others to a value owned here that was not given
 * back. "stuck": a reference held here that could not be ended in time. At most about 1 MiB. "" if
 * nothing. Length as snprintf, or -EINVAL. Until rref_free_ctx. May lock.
 *
 * Define RREF_DEBUG before this header is included, and records and dumps say where a reference was
 * made (site=file:line). rref_site: called by macros then; names the place
 * where the calling thread's next call makes a reference. Static text, or NULL. Wait-free.
 */
RREF_API int rref_leak_report(struct rref_ctx *ctx, char *buf, size_t size);
RREF_API void rref_site(const char *site);

/* ---- references -------------------------------------------------------------------------------------------- */

/*
 * rref_new: a new value with a copy of data (length bytes, may be 0; then data may be NULL), owned here.
 * *out: returned, free with rref_release. May lock.
 *   -ENOMEM  a bound on value memory, or memory; -EMSGSIZE larger than a value may be (1792 MiB
 *            less 128 bytes).
 */
RREF_API int rref_new(struct rref_ctx *ctx, const void *data, size_t length, struct rref **out);

/*
 * rref_alloc: a new value of length bytes, to be filled in place and then made readable by rref_set. *data: borrowed
 * until rref_set; registered memory, contents undefined; its use in a child of fork(2) is a fault.
 * Until rref_set reads of it wait. Errors as rref_new.
 * rref_set: the value is complete and immutable from now on. -EALREADY: set before; -EPERM: not owned here.
 * rref_set_error: the value will never come: every read fails with err (negative errno) and text (copied, may be NULL).
 */
RREF_API int rref_alloc(struct rref_ctx *ctx, size_t length, struct rref **out, void **data);
RREF_API int rref_set(struct rref *ref);
RREF_API int rref_set_error(struct rref *ref, int err, const char *text);

/* rref_dup: one more hold on the same handle (local, no message). Returns ref. Wait-free. */
RREF_API struct rref *rref_dup(struct rref *ref);

/*
 * rref_release: gives one hold back. The last one ends the reference: on a user its owner is told. NULL accepted.
 * A handler that releases a reference of its call without a dup gives back what it does not hold: that is refused, with
 * words in rref_last_error and in the log, and nothing is lost.
 * Allowed after rref_shutdown, not after rref_free_ctx. Never waits for a lock.
 */
RREF_API void rref_release(struct rref *ref);

/*
 * rref_release_batch: as rref_release of each of refs[0, nr), in that order; NULL among them is
 * skipped, and so is one that is refused. They may be of several contexts. Up to 256 in a row of
 * one context cost one turn of the lock that a loop takes for each. refs: borrowed during the call.
 */
RREF_API void rref_release_batch(struct rref *const *refs, size_t nr);

/* ---- types and values of several segments ------------------------------------------------------------------ */

/*
 * What a value is. Two types are the same if name, element size and flags are. The name is the program's own, or one of
 *   bytes                                                    any bytes; what rref_new and rref_alloc make
 *   int8 .. int64, uint8 .. uint64, float16, bfloat16, float32, float64, complex64, complex128     one number
 *   the same with [] behind (float32[])                      an array: any number of them
 * whose element sizes the library knows: give 0, or what is right. Of a type with an element size, a value's segments
 * hold a whole number of elements each (one number: one segment of one element).
 */
struct rref_type {
	size_t size;             /* sizeof(struct rref_type), set by the caller */
	const char *name;        /* 1..RREF_NAME_MAX visible ASCII characters. Given: copied. Told: borrowed until rref_free_ctx */
	size_t element_size;     /* bytes; 0 = no such thing */
	unsigned flags;          /* 0 or RREF_LOCAL_ONLY */
};

/*
 * A value of such a type never leaves its owner: handlers there use it by rref_local_value or
 * rref_to_here; a user's read is -EPERM. References to it can be shared like any other. It lies in
 * memory that no device serves, and its owner tells nobody where. So a user cannot read it by other
 * means either.
 */
#define RREF_LOCAL_ONLY 1u

/*
 * A value as the program describes it. Zeros stand for the plain case: a value of bytes, of one
 * segment, without references. All that it points to is borrowed during the call.
 */
struct rref_value_desc {
	const void *data;              /* the bytes of one segment */
	size_t length;
	const struct iovec *segments;  /* or several, instead of data and length: 0..RREF_SEGMENTS_MAX */
	size_t nr_segments;
	const struct rref_type *type;  /* NULL = bytes */
	struct rref *const *refs;      /* that the value will hold; the caller keeps its own holds */
	size_t nr_refs;                /* 0..RREF_REFS_MAX */
};

/*
 * rref_new_value: as rref_new, of what desc says. The bytes are copied. Number and lengths of the
 * segments are kept: rref_view_segments. Read as a whole the value is its segments one after
 * another. Each begins at the next multiple of 64, with zeros between. A table of no segments makes
 * a value of none.
 * rref_alloc_value: as rref_alloc, of what desc says; where its bytes are is not looked at.
 * places[i]: where the program fills segment i; borrowed until rref_set. places has an entry for
 * each segment, one if desc has no table. It may be the table itself.
 *   -EINVAL  no desc; segments and bytes beside them; a segment that is NULL; an impossible name or
 *            flags of the type, another element size than the built-in type's, a length of broken
 *            elements; a reference that is NULL or of another context; -EMSGSIZE too many
 *            segments, references or bytes; -ENOMEM also: more than 65536 types are known here.
 *   a failed reference: its error
 */
RREF_API int rref_new_value(struct rref_ctx *ctx, const struct rref_value_desc *desc, struct rref **out);
RREF_API int rref_alloc_value(struct rref_ctx *ctx, const struct rref_value_desc *desc, struct rref **out,
			      struct iovec *places);

/* ---- values in the program's own memory --------------------------------------------------------------------- */

/*
 * rref_mem_register: memory of the program, to wrap parts of it as values: readable, of any
 * alignment and length. It is registered with the devices for remote read alone, at a random remote
 * address. It must stay mapped until it is deregistered. Registering costs time and locked memory,
 * so few and large ones are better than many. Several may cover the same memory. *out: returned,
 * free with rref_mem_deregister. May block (a device registers).
 *   -EOPNOTSUPP  a worker is reached over shared memory, where only memory of rref_mem_alloc can be read in place
 *   -ENOMEM      the limit on locked memory (the text has it, and how much was asked), or memory
 *   -EFAULT      not all of it is mapped, or no device may pin it: shared read-only mappings, a device's memory
 *   -EINVAL      NULL, no bytes, or it ends beyond the address space
 *   -EMSGSIZE    more than the device registers at once
 *
 * rref_mem_alloc: new, zeroed memory, registered likewise, which workers of the same machine can read in place as well:
 * works with every device. *addr: borrowed until rref_mem_deregister, which unmaps it; aligned to a page. Writes of a
 * child of fork(2) show here. Errors as rref_mem_register, but for -EOPNOTSUPP and -EFAULT. May block.
 *
 * rref_mem_deregister: on return no device reaches the memory any more. Allowed after rref_shutdown, not after
 * rref_free_ctx, which deregisters what is left. NULL accepted. May block: it runs the release
 * callbacks that are due of values in this memory, and waits for callbacks on other threads. From a
 * release callback it does not wait.
 *   -EBUSY  values wrap some of it; or a device does not let go of it, and it must stay mapped
 */
RREF_API int rref_mem_register(struct rref_ctx *ctx, void *addr, size_t length, struct rref_mem **out);
RREF_API int rref_mem_alloc(struct rref_ctx *ctx, size_t length, struct rref_mem **out, void **addr);
RREF_API int rref_mem_deregister(struct rref_mem *mem);

/*
 * rref_wrap: a value owned here whose bytes lie in the registered memory: desc->length from
 * desc->data on, as they are now, without a copy. The program lends them to the group: they must
 * not change until they come back. One part may be wrapped more than once. The value is one
 * segment. *out: returned, free with rref_release. May lock.
 *
 * release(arg) is the way back: called exactly once if rref_wrap succeeded. It comes when all of
 * these are so: the last reference in the group is gone, nobody can be reading, and no view is left
 * here.
 * That is after a release, a crash of the last holder (when it is fenced), or a shutdown. In the
 * last case the program has to release its own handle and views too; at the latest it is in
 * rref_free_ctx. It is a hook (see the top) and may deregister the memory. NULL: nobody wants to
 * hear. Views of such a value on its owner are the memory itself, aligned as it is.
 *   -EINVAL    NULL, no bytes, outside of the registered memory, a table of segments, an
 *              impossible or local type, a length of broken elements, a reference that is NULL or
 *              of another context; -EMSGSIZE larger than a value may be, too many references;
 *              -ENOMEM memory, or the bound on value memory (64 bytes of it for each)
 *   a failed reference: its error
 */
RREF_API int rref_wrap(struct rref_mem *mem, const struct rref_value_desc *desc, void (*release)(void *arg),
		       void *arg, struct rref **out);

/*
 * rref_get_type: the type of the value. Waits for a value that is not ready. A type's name is asked for once, by one message to
 * the owner, if this worker does not know it: from a value of it, rref_expect_type or an answer before. out->size is set
 * by the caller. May block, up to timeout.
 *   the value's own error if it failed, and those of rref_to_here; -EBADMSG: the owner's answer contradicts the value.
 * rref_get_type_async: the same without waiting. *out: returned, free with rref_future_free; its result: rref_future_type.
 */
RREF_API int rref_get_type(struct rref *ref, int64_t timeout, struct rref_type *out);
RREF_API int rref_get_type_async(struct rref *ref, int64_t timeout, struct rref_future **out);

/*
 * rref_expect_type: 0 if the value is of this type; no message when it is, and the value was ready when this reference was
 * made. For readers, and for handlers about their arguments. Waits for a value that is not ready. May block, up to timeout.
 *   -EPROTOTYPE  it is of another type; the text names both, the value and its owner. And the errors of rref_get_type.
 */
RREF_API int rref_expect_type(struct rref *ref, const struct rref_type *type, int64_t timeout);

/*
 * rref_to_here: brings the value here. On its owner: an alias of it, without a copy. Elsewhere: a fresh copy by a
 * one-sided READ; the owner's processor takes no part if the value was ready when this reference was made.
 * A value that is not ready is waited for. *out: returned, free with rref_view_free. May block, up to timeout.
 *   -ETIMEDOUT  in time neither value nor error came: the text names the owner. Or the creation of
 *               this reference timed out: the text names the reference
 *   -EOWNERDEAD, -ENETRESET, -ESTALE, -EBADMSG, -ENOMEM, -EAGAIN, -ESHUTDOWN, -EPROTO, -ENODEV: see
 *   the top
 *   -EPERM      not the owner, and the value stays there; the text names value, owner and user
 *   -EIO        this worker's own device refused the request; the text has its completion status.
 *   any other   the value's own error, given by its function or rref_set_error, with the text.
 */
RREF_API int rref_to_here(struct rref *ref, int64_t timeout, struct rref_view **out);

/* rref_to_here_async: the same without waiting: *out: returned, free with rref_future_free; its result is a view. */
RREF_API int rref_to_here_async(struct rref *ref, int64_t timeout, struct rref_future **out);

/*
 * rref_to_here_into: reads [offset, offset+length) of the value into buf, which is the caller's own memory. *got = bytes written: fewer
 * than length at the value's end, 0 at or past it. On failure nothing of buf is valid, and nothing is written to it
 * after the call returned. May block. Errors as rref_to_here.
 */
RREF_API int rref_to_here_into(struct rref *ref, void *buf, size_t offset, size_t length, int64_t timeout, size_t *got);

/*
 * rref_to_here_batch: reads nr references at once, one doorbell for up to 32 of one owner. Several
 * small values come with one READ if they were created one after the other. They must also stand
 * near one another in refs (statistic reads_joined). views[i] is returned where status[i] is 0,
 * NULL where it is -errno. Returns how many succeeded, or -errno if nothing was started. May block.
 */
RREF_API int rref_to_here_batch(struct rref *const *refs, size_t nr, int64_t timeout, struct rref_view **views, int *status);

/* A read of rref_to_here_into_batch. */
struct rref_into {
	struct rref *ref;
	void *buf;               /* the program's memory, of length bytes; borrowed during the call */
	size_t offset;           /* of the value, in bytes */
	size_t length;           /* at most so many bytes from there */
	size_t got;              /* told: bytes written to buf, as by rref_to_here_into; 0 on failure */
	int status;              /* told: 0 or -errno */
};

/*
 * rref_to_here_into_batch: as rref_to_here_into of each of reads[0, nr), at once as by
 * rref_to_here_batch. Buffers that overlap hold bytes of one of their reads each. Returns how many
 * succeeded, or -errno if nothing was started. A batch of values whose sum is more than
 * max_landing_bytes is read in turns. May block.
 */
RREF_API int rref_to_here_into_batch(struct rref_into *reads, size_t nr, int64_t timeout);

/*
 * rref_local_value: the owner's view of its value, waiting for it if it is not ready; no traffic. *out as rref_to_here.
 * -EPERM: not owned here; the text names the reference, this worker and the owner to ask.
 */
RREF_API int rref_local_value(struct rref *ref, int64_t timeout, struct rref_view **out);

/* Accessors. Wait-free; none fails on a valid handle. rref_owner: rank. rref_fork_id: zero on the owner. */
RREF_API int rref_owner(const struct rref *ref);
RREF_API const char *rref_owner_name(const struct rref *ref); /* borrowed until rref_free_ctx */
RREF_API int rref_is_owner(const struct rref *ref);
RREF_API int rref_confirmed(const struct rref *ref);           /* 1 when the owner knows of this reference */
RREF_API struct rref_id rref_get_id(const struct rref *ref);
RREF_API struct rref_id rref_fork_id(const struct rref *ref);
RREF_API struct rref_ctx *rref_context(const struct rref *ref);
RREF_API int rref_equal(const struct rref *a, const struct rref *b);  /* 1 if they name the same value */
RREF_API uint64_t rref_hash(const struct rref *ref);                  /* equal references hash equal */

/* rref_format: "OwnerRRef(rref_id=...)" or "UserRRef(rref_id=..., fork_id=...)"; length as snprintf. */
RREF_API int rref_format(const struct rref *ref, char *buf, size_t size);

/* Views. data: borrowed until rref_view_free; aligned to 64 (but see rref_wrap); NULL accepted by
 * free. Wait-free (free: may lock). In a child of fork(2) a view of the parent's has data NULL and
 * length 0. There free does nothing. */
RREF_API const void *rref_view_data(const struct rref_view *view);
RREF_API size_t rref_view_length(const struct rref_view *view);
RREF_API void rref_view_free(struct rref_view *view);

/*
 * rref_view_segments: how many segments the value has; the first nr of them are written to segments (to be read only;
 * borrowed until rref_view_free). A value made of bytes has one. Wait-free.
 * rref_view_type: the type. out->size is set by the caller. Lock-free.
 *   -ENOENT: its name is not known here; rref_get_type of the reference asks for it.
 */
RREF_API size_t rref_view_segments(const struct rref_view *view, struct iovec *segments, size_t nr);
RREF_API int rref_view_type(const struct rref_view *view, struct rref_type *out);

/* ---- references in values ---------------------------------------------------------------------------------- */

/*
 * A value may hold references, beside its bytes. It keeps the values that they name alive until it
 * is reclaimed itself. A reader of the value takes from the view as many of them as it likes. Each
 * is a reference of its own.
 * A circle of values that hold references to each other is never reclaimed while its workers run.
 *
 * rref_set_refs: of a value made by rref_alloc or rref_alloc_value and not set yet: the references
 * it will hold, instead of those given before. So values can name each other that are made one
 * after the other. -EALREADY: it was set; -EPERM: not owned here. May lock.
 *   -EINVAL a reference that is NULL or of another context; -EMSGSIZE more than RREF_REFS_MAX; a failed one: its error.
 */
RREF_API int rref_set_refs(struct rref *ref, struct rref *const *refs, size_t nr);

/*
 * rref_view_nr_refs: how many references the value holds that this is a view of. Wait-free.
 * rref_view_refs: the references [first, first+nr), nr from 1: all of them or none. On the value's owner another hold on
 * what the value holds, at once. Elsewhere the value's owner is asked, by one message and its answer, and shares them: they
 * are confirmed when this returns. The value itself lives for that as long as the view, even if its reference was released.
 * Taking the same one twice gives two references. out[i]: returned, free with rref_release. May block, up to timeout.
 *   -EINVAL     no such references in the value
 *   -EOWNERDEAD the value's owner died, or that of one of the references; -ENETRESET, -ESTALE: see the top
 *   -EBADMSG    the owner answered something else; -EAGAIN: too much in flight, here or there; -EDQUOT, -ENOMEM, -ETIMEDOUT
 *   a failed reference among them: its error, from the owner, with the text
 * rref_view_ref: the i-th.
 * rref_view_refs_async: the same without waiting. *out: returned, free with rref_future_free; result: rref_future_ref. The
 * view may be freed meanwhile. May lock; with too much in flight it may block, up to timeout.
 */
RREF_API size_t rref_view_nr_refs(const struct rref_view *view);
RREF_API int rref_view_refs(struct rref_view *view, size_t first, size_t nr, int64_t timeout, struct rref **out);
RREF_API int rref_view_ref(struct rref_view *view, size_t i, int64_t timeout, struct rref **out);
RREF_API int rref_view_refs_async(struct rref_view *view, size_t first, size_t nr, int64_t timeout, struct rref_future **out);

/* ---- calls ------------------------------------------------------------------------------------------------- */

/*
 * Arguments or result of a call: bytes and references. The references are shared (forked), the caller keeps its own.
 * What does not fit a message (about 3 KiB) is copied to registered memory, from where the receiver READs it.
 */
struct rref_args {
	const void *data;
	size_t length;              /* 0..RREF_ARGS_MAX */
	struct rref *const *refs;
	size_t nr_refs;             /* 0..RREF_REFS_MAX */
	const void *meta;           /* of a call only: bytes that go with it and that its handler may read, a trace context say */
	size_t meta_length;         /* 0..RREF_META_MAX */
};

/* rref_register: adds a function at any time. -EEXIST: the name is taken; -EINVAL. May lock. */
RREF_API int rref_register(struct rref_ctx *ctx, const struct rref_function *fn);

/*
 * rref_rpc_async: calls a function by name on a worker (by rank; itself included). args NULL = empty; copied.
 * timeout: from now; the call fails with -ETIMEDOUT then, a late answer is dropped. *out: returned,
 * free with rref_future_free; result: rref_future_data / _ref. May lock. With too much in flight,
 * or 256 MiB unread by the callee, it may block, up to timeout (then -EAGAIN).
 *   -EMSGSIZE: arguments or metadata too large; -EINVAL: rank, name, a reference of another context;
 *   -ENOMEM: no memory for large arguments, or the bound on value memory;
 *   a failed reference among the arguments: its error, before anything is sent.
 * The future: -ENOSYS unknown function there; the handler's own error and text; -EOWNERDEAD;
 * -ETIMEDOUT; -EAGAIN: too many calls of this worker, or 1 GiB of their arguments, are open there;
 * -ENOMEM: no memory for them there, or for the result here.
 * rref_rpc_sync: the same, and waits. *out (may be NULL) only on success.
 */
RREF_API int rref_rpc_async(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args,
			    int64_t timeout, struct rref_future **out);
RREF_API int rref_rpc_sync(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args,
			   int64_t timeout, struct rref_future **out);

/*
 * rref_remote: calls a function whose result becomes a value owned by that worker, with the
 * references in it. The reference to it comes back at once. If the creation fails, every read of
 * the reference fails with its error. *out: returned, free with rref_release. Errors as
 * rref_rpc_async.
 * rref_creation: a future of the creation itself (no result but its status). *out: returned, free with rref_future_free.
 * -EINVAL: this handle was not made by rref_remote.
 */
RREF_API int rref_remote(struct rref_ctx *ctx, int rank, const char *function, const struct rref_args *args,
			 int64_t timeout, struct rref **out);
RREF_API int rref_creation(struct rref *ref, struct rref_future **out);

/*
 * For handlers. data, metadata, name and references: borrowed until the reply (dup a reference to keep it). Wait-free.
 * rref_call_ref: NULL for i out of range. rref_call_caller: the caller's rank. rref_call_meta, rref_call_meta_length: the
 * call's metadata. It is not passed on by itself: a handler that calls on gives it along if it wants to.
 * rref_call_cancelled: 1 when the caller gave the call up (timeout, rref_future_cancel) or died, as far as is known here.
 */
RREF_API struct rref_ctx *rref_call_context(const struct rref_call *call);
RREF_API const char *rref_call_function(const struct rref_call *call);
RREF_API int rref_call_caller(const struct rref_call *call);
RREF_API const void *rref_call_data(const struct rref_call *call);
RREF_API size_t rref_call_length(const struct rref_call *call);
RREF_API const void *rref_call_meta(const struct rref_call *call);
RREF_API size_t rref_call_meta_length(const struct rref_call *call);
RREF_API int rref_call_cancelled(const struct rref_call *call);
RREF_API size_t rref_call_nr_refs(const struct rref_call *call);
RREF_API struct rref *rref_call_ref(const struct rref_call *call, size_t i);

/*
 * rref_call_reply: the result (copied; NULL = empty). From any thread. After a success of a call that was deferred the
 * call is consumed; inside the handler it stays valid until the handler returns. A call replies once: a second reply is
 * -EALREADY, inside the handler, and of a call that was deferred until a thousand others were; then its memory is another's.
 * -EMSGSIZE, -ENOMEM, -EINVAL, -EAGAIN: nothing was sent, the call still wants a reply.
 * A large result waits, up to the context's timeout, until the caller has read enough of the others (256 MiB); in an
 * inline handler or a callback it does not wait: -EAGAIN.
 * rref_call_error: the same with an error (negative errno) and a printf-like text.
 */
RREF_API int rref_call_reply(struct rref_call *call, const struct rref_args *result);
RREF_API int rref_call_error(struct rref_call *call, int err, const char *fmt, ...)
#if defined(__GNUC__)
	__attribute__((format(printf, 3, 4)))
#endif
	;

/*
 * rref_call_reply_value: as rref_call_reply, for a creation (rref_remote): the value is what desc
 * says, with the errors of rref_new_value. -EINVAL also: the call is not a creation.
 */
RREF_API int rref_call_reply_value(struct rref_call *call, const struct rref_value_desc *desc);

/* ---- futures ----------------------------------------------------------------------------------------------- */

/*
 * rref_future_wait: waits until complete, making progress itself when nobody else does. Returns the operation's
 * result (0 or -errno), or -ETIMEDOUT when it is not complete in time (rref_future_test tells which). May block.
 * rref_future_test: 1 complete, 0 not. Wait-free; does not make progress.
 */
RREF_API int rref_future_wait(struct rref_future *f, int64_t timeout);
RREF_API int rref_future_test(const struct rref_future *f);

/*
 * rref_future_then: fn runs exactly once, after completion: at once, on this thread, if it is
 * complete already; else as a hook (see the top).
 * f stays valid until fn returned, even if it was freed meanwhile; fn may free it. -EBUSY: it has a callback already.
 */
RREF_API int rref_future_then(struct rref_future *f, void (*fn)(struct rref_future *f, void *arg), void *arg);

/*
 * rref_future_cancel: asks the operation to end with -ECANCELED. 0, or -EALREADY if it was complete. What arrives
 * later is dropped, and what it created is reclaimed. May lock.
 */
RREF_API int rref_future_cancel(struct rref_future *f);

/*
 * rref_wait_any: the index of a complete one, or -ETIMEDOUT. rref_wait_all: 0 when all are complete, or -ETIMEDOUT;
 * their results are theirs. nr 0 is -EINVAL / 0. May block.
 * The futures may be of several contexts. A rref_wait_any of several, of which some are in the
 * manual mode, looks at those every 2 ms.
 */
RREF_API int rref_wait_any(struct rref_future *const *fs, size_t nr, int64_t timeout);
RREF_API int rref_wait_all(struct rref_future *const *fs, size_t nr, int64_t timeout);

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
 * is about: the answering one, or a third worker of which it was told itself and passed it on. A
 * handler passes on the error of its last failed call by returning that errno, or by
 * rref_call_error. Without the flag the error was found here, and peer is the worker that was
 * asked. So of -EOWNERDEAD: with the flag peer is dead and the callee is not; without it peer is
 * the callee.
 */
#define RREF_ERROR_ANSWERED 1u

/*
 * What a complete future holds. -EAGAIN: not complete; -ENOMSG: not of that kind; the operation's error if it failed.
 * _error: always for a complete one. _view: returned once (-ENOMSG the second time), free with rref_view_free.
 * _type: of rref_get_type_async; out->size is set by the caller. _data: a call's result bytes, borrowed until
 * rref_future_free. _ref: the i-th reference of a result or of rref_view_refs_async, returned once
 * each, free with rref_release; those never taken are released with the future. -EINVAL: no i-th.
 */
RREF_API int rref_future_error(const struct rref_future *f, struct rref_error *out);
RREF_API int rref_future_view(struct rref_future *f, struct rref_view **out);
RREF_API int rref_future_type(const struct rref_future *f, struct rref_type *out);
RREF_API int rref_future_data(const struct rref_future *f, const void **data, size_t *length);
RREF_API int rref_future_nr_refs(const struct rref_future *f);
RREF_API int rref_future_ref(struct rref_future *f, size_t i, struct rref **out);

/* rref_future_free: at any time, complete or not (the operation then goes on unobserved). NULL accepted. May lock. */
RREF_API void rref_future_free(struct rref_future *f);

/* ---- places, in debug builds: see rref_leak_report ----------------------------------------------------------- */

#ifdef RREF_DEBUG
#define RREF_LINE_(line) #line
#define RREF_LINE(line) RREF_LINE_(line)
#define RREF_HERE() rref_site(__FILE__ ":" RREF_LINE(__LINE__))
#define rref_new(...) (RREF_HERE(), rref_new(__VA_ARGS__))
#define rref_alloc(...) (RREF_HERE(), rref_alloc(__VA_ARGS__))
#define rref_remote(...) (RREF_HERE(), rref_remote(__VA_ARGS__))
#define rref_future_ref(...) (RREF_HERE(), rref_future_ref(__VA_ARGS__))
#define rref_call_reply(...) (RREF_HERE(), rref_call_reply(__VA_ARGS__))
#define rref_new_value(...) (RREF_HERE(), rref_new_value(__VA_ARGS__))
#define rref_alloc_value(...) (RREF_HERE(), rref_alloc_value(__VA_ARGS__))
#define rref_call_reply_value(...) (RREF_HERE(), rref_call_reply_value(__VA_ARGS__))
#define rref_view_refs(...) (RREF_HERE(), rref_view_refs(__VA_ARGS__))
#define rref_view_ref(...) (RREF_HERE(), rref_view_ref(__VA_ARGS__))
#define rref_wrap(...) (RREF_HERE(), rref_wrap(__VA_ARGS__))
#endif

#ifdef __cplusplus
}
#endif

#endif
