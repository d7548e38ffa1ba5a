/* SPDX-License-Identifier: Apache-2.0 */
/* A context: its options, joining and leaving the group, the other workers, and progress. */
#ifndef RREF_CONTEXT_H
#define RREF_CONTEXT_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rref_function;

enum rref_progress_mode {
	/* a poller thread that sleeps when idle; waiters poll for themselves */
	RREF_PROGRESS_AUTO = 0,
	RREF_PROGRESS_POLL = 1,  /* a dedicated poller thread that never sleeps */
	RREF_PROGRESS_MANUAL = 2,/* no thread: the program calls rref_progress or waits */
};

enum rref_log_level {
	RREF_LOG_ERROR = 0,
	RREF_LOG_WARNING = 1,
	RREF_LOG_INFO = 2,
	RREF_LOG_DEBUG = 3,
};

/*
 * Profiling scopes: the hook of the options hears the begin and, exactly once, the end of
 *   to_here, to_here_into, to_here_async    #(this worker)->(owner)
 *   to_here_batch, to_here_into_batch       the same, of the first reference's owner
 *   rpc_sync, rpc_async, remote             #function(this worker)->(callee)
 *   view_refs, view_refs_async              #(this worker)->(owner), of the view's value
 *   new, alloc, wrap                        #(this worker)->(this worker)
 *   fork: one for each reference shared     #(this worker)->(with whom)
 *   handler: while it runs                  #function(caller)->(this worker)
 * with that text as key: "rpc_sync#price(trader1)->(feed0)". The scopes of to_here_async,
 * view_refs_async, rpc_async and remote end when the future or the creation is complete. That may
 * be on another thread, and a moment after a test of it says so. The others end where they began. A
 * call that is refused for its arguments may have none.
 * The hook runs on the thread at hand, on several threads at once, and perhaps under the library's
 * lock. So it must be short and must not wait. Calls of the library that take the lock give
 * -EDEADLK there; accessors, rref_release, rref_view_free and rref_future_free may be called. Off,
 * a scope costs one test and branch. The trace file has the same in Chrome's trace event format,
 * for ui.perfetto.dev (docs/OBSERVING.md).
 */
struct rref_scope {
	size_t size;             /* sizeof(struct rref_scope) of the library */
	uint64_t id;             /* the same at begin and end; counts up from 1 in each context */
	const char *key;         /* borrowed during the call */
	int peer;                /* rank of the other worker */
	int status;              /* result at the end: 0 or -errno */
	/* RREF_SCOPE_END: this is the end; RREF_SCOPE_ASYNC: it may be on another thread */
	unsigned flags;
};
#define RREF_SCOPE_END 1u
#define RREF_SCOPE_ASYNC 2u

/* A worker that was alive and is not any more, for the peer_down function of the options. */
struct rref_peer_down {
	size_t size;             /* sizeof(struct rref_peer_down) of the library */
	int rank;
	int err;                 /* the reason. 0: it left the group and said so. -EOWNERDEAD: it
				    died, fell silent or cannot be reached. -ENETRESET: the session
				    ended though both live. Else another error of the session's
				    end */
	const char *text;        /* the reason in words; borrowed during the call */
};

/*
 * Options of a context. Always start from rref_options_init. Strings and tables are borrowed until
 * rref_init returns. The environment variable named at a field is what rref_options_from_env reads.
 */
struct rref_options {
	/* sizeof the program's struct rref_options, set by rref_options_init */
	size_t size;
	/* RREF_NAME: unique, 1..127 of A-Za-z0-9_:- ; NULL = "worker<rank>" */
	const char *name;
	int rank;                       /* RREF_RANK, RANK: 0..world_size-1; -1 (default) = not
					   said: 0 in a group of one */
	int world_size;                 /* RREF_WORLD_SIZE, WORLD_SIZE: 1..1024; 0 (default) = not
					   said, an error of rref_init */
	/*
	 * RREF_RENDEZVOUS, MASTER_ADDR:MASTER_PORT (port + 1 under torchrun's agent store):
	 * "host:port" of rank 0; not needed for a group of one
	 */
	const char *rendezvous;
	/* RREF_DEVICE: "auto" (default), "shm", "ibv", "ibv:<device>[:port[:gid-index]]" */
	const char *device;
	/* RREF_KEY_FILE: the group's key, a file of 16..4096 bytes that only its owner can read */
	const char *key_file;
	enum rref_progress_mode mode;   /* RREF_PROGRESS: "auto", "poll", "manual" */
	/* RREF_POLLER_CORE: pin the poller there; -1 = do not pin */
	int poller_core;
	unsigned nr_threads;            /* RREF_THREADS: worker pool for handlers; 0 = 4 */
	unsigned max_ops;               /* RREF_MAX_OPS: operations in flight at once; 0 = 65536.
					   Futures that the program has not freed count. Futures of
					   reads that were over at once do not: as many may live
					   besides */
	size_t max_value_bytes;         /* RREF_MAX_VALUE_BYTES: bound on memory for own values.
					   0 = half of the memory of this machine, or of this
					   container (cgroup) if that has less. Several workers in
					   one container share its memory: set it for them. Both
					   bounds together are all of it: lower them if the program
					   needs much itself. Counts in steps of 2 MiB, rounded
					   down; below 2 MiB rref_init gives -EINVAL */
	size_t max_landing_bytes;       /* RREF_MAX_LANDING_BYTES: bound on memory for values read
					   here; 0 = the same */
	/* RREF_REGION_BYTES: first registered region, later ones double; 0 = 16 MiB */
	size_t region_bytes;
	/* RREF_TIMEOUT_MS: default of calls, reads and waits; 0 = 60 s */
	int64_t timeout;
	/* RREF_INIT_TIMEOUT_MS: for the whole group to meet; 0 = 60 s */
	int64_t init_timeout;
	/* RREF_PEER_TIMEOUT_MS: silence after which a peer on another host is given up; 0 = 1 s */
	int64_t peer_timeout;
	const struct rref_function *functions; /* registered before the first peer can call */
	size_t nr_functions;
	/* NULL = silent. A hook: it may block, and call the library. One line at a time, in order.
	 * Up to 256 are kept for a slow function; the number of lines lost beyond that is told.
	 * rref_init's lines come in it. With RREF_LOG set, rref_options_from_env puts a function
	 * here that writes to standard error. */
	void (*log)(void *ctx, enum rref_log_level level, const char *text);
	void *log_ctx;
	/* RREF_LOG: "error", "warning", "info", "debug"; default warning */
	enum rref_log_level log_level;
	unsigned flags;                 /* RREF_NO_LEAK_CHECK */
	/* RREF_MAX_WAITING: handlers that may wait at once for the sake of one caller. Each waits
	 * on a thread of its own, so deep calls may nest. 0 = 8192 */
	unsigned max_waiting;
	void (*scope)(void *ctx, const struct rref_scope *scope); /* NULL = off */
	void *scope_ctx;
	/*
	 * RREF_TRACE: a file for this worker's scopes, see struct rref_scope; NULL = off. "%r" in
	 * it is the rank, else ".<rank>" is added
	 */
	const char *trace;
	/*
	 * RREF_STALL_TIMEOUT_MS: a worker whose process stands still for so long is fenced by those
	 * whose values it holds references to. 0 = for ever; default 60 s; in effect at least 2 s
	 */
	int64_t stall_timeout;
	/* A hook: called once each time that a worker goes down; see rref_worker. NULL = off. */
	void (*peer_down)(void *arg, struct rref_ctx *ctx, const struct rref_peer_down *down);
	void *peer_down_arg;
	/* RREF_LOOK_BYTES: over shared memory a value of so many bytes is not copied, but looked at
	 * where it lies. 0 = 16 KiB, SIZE_MAX = never. See rref_to_here_with */
	size_t look_bytes;
};
/* RREF_LEAK_CHECK=0: a leak at graceful shutdown is logged, not an error */
#define RREF_NO_LEAK_CHECK 1u

/*
 * Sets every field of the options to its default. A macro, so that the size is the program's own.
 * Then a newer library neither writes nor reads behind the options of an older program. It takes
 * the defaults for fields that are not in them. An older library takes the options of a newer
 * program if fields that it does not know are 0. Otherwise rref_init refuses them (-EINVAL).
 */
#define rref_options_init(opt) rref_options_init_size((opt), sizeof(struct rref_options))

/*
 * Sets every field of the options to its default: for languages without macros. Never fails.
 *
 *   opt    written; NULL is accepted
 *   size   of the program's own struct, bytes
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API void rref_options_init_size(struct rref_options *opt, size_t size);

/*
 * Overwrites the fields of the options whose environment variable is set.
 *
 *   opt   from rref_options_init; its strings then point into the environment
 *
 * Returns 0, or
 *   -EINVAL  opt is NULL, or a variable cannot be understood: the text names it and its value. Or
 *            neither a variable nor opt sets the world size, or the rank for a group of more than
 *            one. The text names the variables. The text has the line to type if mpirun, srun or
 *            another launcher started this process. RREF_WORLD_SIZE=1 asks for a group of one
 *   -ENOMEM  memory for the rendezvous address
 *
 * Threads: any, unless another one changes the environment. Progress: may lock.
 */
RREF_API int rref_options_from_env(struct rref_options *opt);

/*
 * Joins the group: opens devices and meets the other workers at the rendezvous, where rank 0
 * listens. Returns when all are present. Peers may call functions of opt before it returns:
 * handlers take the context from rref_call_context.
 *
 *   opt   borrowed during the call; NULL = defaults and environment
 *   out   *out is returned: free with rref_free_ctx
 *
 * Waits for things that can come by themselves, and logs them at level info. They are rank 0, its
 * name in the DNS, its address and its port. Rank 0 may also be killed and started again before the
 * group is complete. A group that has started is closed, for now. No worker can join it later, or
 * take a dead worker's place.
 *
 * Returns 0, or
 *   -EINVAL       out is NULL, or bad options: rank, name, device text, key file, an address that
 *                 cannot be ...
 *   -EEXIST       this rank or name is taken already in the group (both workers involved fail)
 *   -ENODEV       no usable device. The text names the devices looked for and the modules to load,
 *                 or the system call that is refused
 *   -ENOMEM       memory or a limit of the system: descriptors, threads, addresses, file sizes,
 *                 locked memory. The text names the limit, its value and how to raise it
 *   -ETIMEDOUT    the group was not complete in time. The text names the attempts made and the
 *                 ranks that are missing.
 *   -ECONNREFUSED no process answers as this group's rendezvous: rank 0 is not there, or its group
 *                 has started already
 *   -EADDRINUSE   rank 0 cannot listen at the rendezvous address
 *   -EADDRNOTAVAIL  in time the rendezvous address did not become one of rank 0's machine
 *   -EACCES       an address other than loopback was asked for without a key, or the key file's
 *                 mode is too open. Or there is no place for this user's own key (/tmp missing, or
 *                 read-only)
 *   -ENOENT       there is no such key file
 *   -EKEYREJECTED the other side does not hold the group's key
 *   -EPROTONOSUPPORT  a worker speaks another protocol version
 *   -EPROTO       the other side does not speak this protocol
 *   -EIO          the trace file cannot be made (it must be regular), getrandom(2) is refused, or a
 *                 system service failed. The text says which
 *   -ECHILD       this process was made by clone(2) or _Fork from one with contexts
 *
 * Threads: any. Progress: may block, up to opt->init_timeout.
 */
RREF_API int rref_init(const struct rref_options *opt, struct rref_ctx **out);

#define RREF_SHUTDOWN_GRACEFUL 0u
#define RREF_SHUTDOWN_NOW 1u

/*
 * Leaves the group. Afterwards every call gives -ESHUTDOWN; handles may still be released.
 *
 *   ctx       the context
 *   how       RREF_SHUTDOWN_GRACEFUL: waits until every worker has come here, serving their calls
 *             meanwhile. Then releases the program's handles, waits until every reference in the
 *             group is gone, and checks for leaks.
 *             RREF_SHUTDOWN_NOW: leaves at once; peers see this worker die
 *   timeout   ns, RREF_DEFAULT or RREF_FOREVER
 *
 * Returns 0 when nothing is left, or
 *   -ETIMEDOUT    peers did not follow in time; the context is shut down all the same, the text
 *                 lists what remained
 *   -EBUSY        leak: references to values owned here remained; the text lists them; the context
 *                 is shut down
 *   -EOWNERDEAD   a peer died meanwhile; the context is shut down. A worker that died before, or
 *                 returned from main without a shutdown, is not waited for, which is no error.
 *                 peer_down and the log tell of it
 *   -ENETRESET    rank 0 had cut this worker off, since it stood still; the context is shut down
 *   -ESHUTDOWN    shut down before, or another thread is at it
 *   -EDEADLK      called from a callback, handler or scope hook
 *   -EINVAL       ctx is NULL, or an unknown way
 *   -ECHILD       as of any call
 *
 * Threads: any; others may use the context until it is shut down. Progress: may block, up to
 * timeout.
 */
RREF_API int rref_shutdown(struct rref_ctx *ctx, unsigned how, int64_t timeout);

/*
 * Waits, for a process that only serves, until every other living worker has come to its graceful
 * rref_shutdown. Then no worker is left to serve. Makes progress in every mode. Then call
 * rref_shutdown, which does not wait for them again. The death of a worker ends nothing: it is told
 * as always (see rref_worker), and the others are served on. That holds for rank 0 too, which
 * counts the workers that have come. Alone in a group of one it returns at once.
 *
 *   ctx   the context
 *
 * rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_FOREVER) serves until the others come, too. But
 * it cannot be stopped, and ends with an error if rank 0 dies.
 *
 * Returns 0 when every other worker has come, rref_serve_stop was called, or another thread is in
 * rref_shutdown. Returns 0 also when some workers died and the others have come. Or
 *   -EOWNERDEAD  no worker is left, and not in order: all others died, or rank 0 did and the rest
 *                left
 *   -EDEADLK     called from a callback, handler or scope hook
 *   -EBUSY       another thread is in rref_serve of this context
 *   -ESHUTDOWN   the context was shut down before
 *   -EAGAIN      all operations of the context are in use (max_ops)
 *   -ENOMEM      no memory
 *   -EINVAL -ECHILD  as of any call
 *
 * Threads: any; others may use the context meanwhile. Progress: may block, without a time-out.
 */
RREF_API int rref_serve(struct rref_ctx *ctx);

/*
 * Ends the rref_serve that runs, or else the next one, which then returns 0. A graceful
 * rref_shutdown after it waits for the other workers, up to its time-out, and serves them.
 *
 *   ctx   the context; must not be freed meanwhile
 *
 * Returns 0, or, without a text,
 *   -EINVAL   ctx is NULL
 *   -ECHILD   as of any call
 *
 * Threads: any, and signal handlers: it is async-signal-safe and keeps errno.
 * Progress: lock-free.
 */
RREF_API int rref_serve_stop(struct rref_ctx *ctx);

/*
 * Frees the context, after rref_shutdown(NOW) if it was not shut down. Handles, views, futures and
 * calls of it must be gone or are not to be touched again. Never fails; from a hook it does nothing
 * but log an error.
 *
 *   ctx   consumed; NULL is accepted
 *
 * Threads: any; not while another thread uses the context, but it waits for one that is in
 * rref_shutdown. Progress: may block.
 */
RREF_API void rref_free_ctx(struct rref_ctx *ctx);

/*
 * Tells this worker's own rank.
 *
 *   ctx   the context
 *
 * Returns it, or
 *   -EINVAL   ctx is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_rank(const struct rref_ctx *ctx);

/*
 * Counts the workers in the group.
 *
 *   ctx   the context
 *
 * Returns their number, or
 *   -EINVAL   ctx is NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_world_size(const struct rref_ctx *ctx);

/*
 * Sets the default timeout of what is begun from now on. Operations under way keep their own.
 *
 *   ctx       the context
 *   timeout   ns above 0, or RREF_FOREVER
 *
 * Returns 0, or
 *   -EINVAL   ctx is NULL, or timeout is not above 0
 *   -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_set_timeout(struct rref_ctx *ctx, int64_t timeout);

struct rref_worker_info {
	size_t size;             /* sizeof(struct rref_worker_info), set by the caller */
	int rank;
	const char *name;        /* borrowed until rref_free_ctx */
	uint64_t incarnation;    /* random, new with every start of that worker */
	int alive;               /* 0: known to be dead or gone */
	const char *device;      /* "self", "shm" or "ibv": how this worker reaches it; static */
	/* ns since its process stopped answering though its device does; 0 = it answers */
	int64_t stalled;
};

/*
 * Tells of a worker, by rank.
 *
 *   ctx    the context; also after rref_shutdown
 *   rank   of the worker; this one included
 *   out    written up to out->size, which the caller has set
 *
 * A worker counts as alive until this one finds that it is not. It finds so by itself if the two
 * have a session, which their first call, read or reference makes. Over shm the end of a process
 * shows at once. A silent host shows within peer_timeout, a process that stands still within
 * stall_timeout. Without a session the next attempt to speak to the worker shows it. The graceful
 * shutdown of rank 0 makes such an attempt. Then alive is 0, the options' peer_down is called, and
 * the descriptor of rref_ctx_fd is readable. A new session makes the worker alive again.
 *
 * Operations that wait for the dead worker fail before peer_down is called. It is not called for
 * sessions that this worker's rref_shutdown ends, nor for workers that leave together with this
 * one.
 *
 * Returns 0, or
 *   -EINVAL   ctx or out is NULL, out->size is not set, or no such rank
 *   -ECHILD   as of any call
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_worker(struct rref_ctx *ctx, int rank, struct rref_worker_info *out);

/*
 * Finds a worker by its name.
 *
 *   ctx    the context; also after rref_shutdown
 *   name   of the worker
 *
 * Returns its rank, or
 *   -ENOENT   no worker has that name
 *   -EINVAL   ctx or name is NULL
 *   -ECHILD   as of any call
 *
 * Threads: any. Progress: wait-free, in steps of the number of workers.
 */
RREF_API int rref_worker_by_name(struct rref_ctx *ctx, const char *name);

/*
 * Does what can be done now, without blocking: for the manual mode, allowed in all. A program that
 * neither calls it nor waits in the library is stalled for its peers (stall_timeout). So call it
 * twice a second in the manual mode.
 *
 *   ctx   the context
 *
 * Returns the number of events handled (0 = nothing to do, or another thread is at it), or
 *   -EINVAL -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: any. Progress: may lock, but never waits for the lock; in the manual mode it runs hooks.
 */
RREF_API int rref_progress(struct rref_ctx *ctx);

/*
 * Tells the descriptor to sleep on in an event loop; one loop for each context. It is readable when
 * a future of the context has ended on any thread. So it is when a worker went down (see
 * rref_worker). In the manual mode it is also readable when rref_progress has work, or a timer is
 * due. That is half a second after rref_ctx_arm at the latest, so a loop needs no time-out of its
 * own.
 *
 *   ctx   the context, which closes the descriptor in rref_free_ctx
 *
 * Returns it, or
 *   -EINVAL   ctx is NULL
 *   -ECHILD   as of any call
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_ctx_fd(struct rref_ctx *ctx);

/*
 * Prepares the descriptor of rref_ctx_fd. To be called before each sleep.
 *
 *   ctx   the context
 *
 * Returns 0: sleep, then call rref_progress. 1: do not sleep; call rref_progress and look at the
 * futures again, since one may have ended in between. Or
 *   -EINVAL -ECHILD -EDEADLK -ESHUTDOWN  as of any call
 *
 * Threads: that of the loop. Progress: may lock.
 */
RREF_API int rref_ctx_arm(struct rref_ctx *ctx);

#ifdef __cplusplus
}
#endif

#endif
