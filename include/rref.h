/* SPDX-License-Identifier: Apache-2.0 */
/*
 * librref: distributed shared references at RDMA speed. This header is the whole public API; its
 * parts are in rref/, and are not meant to be included alone:
 *   rref/base.h     limits, handles, the version, errors in words
 *   rref/context.h  options, joining and leaving the group, the other workers, progress
 *   rref/value.h    values and references: made, described, wrapped, held, given back
 *   rref/read.h     reads, views, types, references in values
 *   rref/call.h     calls: the caller's side, and the handler's
 *   rref/future.h   unfinished operations
 *   rref/queue.h    queues of them: the first to end is the first to come out
 *   rref/observe.h  counters, dumps, leaks
 *
 * A value is created once and lives in registered memory of its owner. Any worker of the group
 * names it by a counted reference (struct rref). rref_to_here() reads it with one one-sided READ
 * that does not wake the owner. When the last reference in the group is gone, by release or by
 * crash, the memory is scrubbed and reused.
 *
 * Conventions
 *   Results      0 (or a count) on success, -errno on failure. A call that failed changed nothing
 *                and wrote no out-parameter. rref_last_error() then has the words, for the calling
 *                thread.
 *   Ownership    borrowed until X / copied / consumed (on success) / returned (free with Y) /
 *                static.
 *   Destructors  accept NULL.
 *   Times        int64_t nanoseconds. A timeout of RREF_DEFAULT means the context's default,
 *                RREF_FOREVER no time-out. A time-out never ends early; it may end 50 ms late if it
 *                is a second or more.
 *   Sizes        bytes.
 *   Threads      Every function may be called by any thread, unless its block says otherwise. One
 *                handle may be used by many threads at once; its last release excludes every other
 *                use of that handle.
 *   Hooks        The program's code that the library calls: callbacks of futures, handlers,
 *                release callbacks, the log function. All run without a lock of the library. They
 *                may take their time, wait, and call anything but rref_shutdown (-EDEADLK) and
 *                rref_free_ctx (logged, and ignored). Where they run:
 *                  handlers        On the worker pool. With RREF_INLINE as the others, or on the
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
 *   Blocks       Above each function stand its parameters, its results and every errno with its
 *                condition. Then come the threads that may call it, and its progress. "As of any
 *                call" stands for the conditions of the first four errors below.
 *   The library never exits or aborts, and installs no signal handler. It prints only if RREF_LOG
 *   asks for its log.
 *   Signals      Every thread of the library blocks all signals except the signals of its own
 *                faults. It writes to no pipe or socket in a way that raises SIGPIPE. A signal
 *                handler may call only rref_serve_stop. If it interrupts a function of the library,
 *                it must not leave it by longjmp, nor call fork.
 *   Cancellation No function is a cancellation point, waits included. A thread that is cancelled in
 *                a function ends at its first cancellation point after the return. Callbacks,
 *                handlers and hooks run with cancellation disabled, and leave it so. They end by a
 *                return: no pthread_exit, longjmp or exception. A thread whose type is
 *                PTHREAD_CANCEL_ASYNCHRONOUS must not call the library.
 *   fork(2)      A child must not use contexts of its parent. Functions give -ECHILD, destructors
 *                do nothing, accessors of a view give NULL or 0. It has neither their descriptors
 *                nor their memory. An address from rref_view_data, rref_alloc, rref_future_data or
 *                rref_call_data is a fault there (SIGSEGV). Only memory of rref_mem_alloc is shared
 *                with it. The parent goes on; when it dies its peers hear of it at once, even if
 *                children of it live. A child may join groups of its own by rref_init, even if it
 *                was forked in a callback or handler. In that case it must not return from there. A
 *                daemon forks first and calls rref_init then. A child of clone(2) or _Fork, which
 *                run no fork handlers, is refused by rref_init too. It keeps its parent's devices:
 *                over ibv its parent's death looks like standing still (stall_timeout).
 *   Unloading    The library stays loaded after dlclose(3): threads that used it run destructors
 *                of it when they end. A program that is not linked with it and calls dlopen(3)
 *                must be started with GLIBC_TUNABLES=glibc.rtld.optional_static_tls=8192.
 *
 * Errors
 *   of any call
 *   -EINVAL        a pointer that is NULL, or another bad argument; the text names it.
 *   -ESHUTDOWN     the context was shut down.
 *   -ECHILD        the context belongs to the parent process.
 *   -EDEADLK       called from a scope hook, which may run under the library's lock.
 *   of any operation of the group
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
 *   -EKEYREJECTED  a peer does not hold the group's key; from operations too.
 *   -EPROTONOSUPPORT  a peer speaks another version; from operations too.
 *   -ESTALE        the reference or its value is not there any more (deleted, another incarnation).
 *   -EBADMSG       what was read failed its check.
 *   -EPERM         the value is of a type that stays with its owner (RREF_LOCAL_ONLY).
 *   -EPROTO        a peer broke the protocol; its connection is closed.
 *   -EOPNOTSUPP    not possible with the device in use; the text says what is.
 *   -EAGAIN        too much in flight: nothing was started, try again when something has finished.
 *   -EIO           a system service failed in a way that has no better name (the random generator,
 *                  a descriptor).
 */
#ifndef RREF_H
#define RREF_H

#include "rref/base.h"
#include "rref/call.h"
#include "rref/context.h"
#include "rref/future.h"
#include "rref/observe.h"
#include "rref/queue.h"
#include "rref/read.h"
#include "rref/value.h"

/* ---- places, in debug builds: see rref_site ---- */

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

#endif
