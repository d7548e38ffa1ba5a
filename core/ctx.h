/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc: the runtime's own types. What a context is made of, and who may touch what.
 *
 * One lock (ctx->lock, "the progress lock") guards all control state: the protocol machine, sessions, queues, the
 * devices' [progress] calls. It is held for one step or some looks, which end when anybody wants it; never while
 * sleeping and never while the program's code runs: that is queued as hooks, and run by hook.c.
 *
 * Starting a read of one message does not take it: a ready handle's location is constant (published by handle->state),
 * operations come from a lock-free slab, and a connection is pinned by peer->readers (see the fence in peer.c). Over shm
 * such a read also ends without it; over ibv completions are taken by whoever gets the lock without waiting.
 *
 * Guards: under_lock, the progress lock (core/base/locked.h, which clang checks); [atomic]; [const]
 * after creation; [op] the thread that completes the operation (its state CAS won, or a call's
 * answer under the lock).
 */
#ifndef RC_H
#define RC_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "alloc/ra.h"
#include "base/atomic.h"
#include "base/child.h"
#include "base/random.h"
#include "base/thread.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/hook.h"
#include "core/base/locked.h"
#include "core/base/slab.h"
#include "core/base/work.h"
#include "core/group/group.h"
#include "core/op/future.h"
#include "core/protocol/protocol.h"
#include "core/session/events.h"
#include "core/session/peer.h"
#include "core/session/resume.h"
#include "core/value/ref.h"
#include "core/wire/wire.h"
#include "rref.h"
#include "verbs/rv.h"

#define RC_BATCH_MAX 32u /* reads posted with one doorbell */
#define RC_PIECE_MAX (UINT64_C(256) << 10) /* of a READ over hardware; see read/split.c */

/* ---- functions and calls ---------------------------------------------------------------------------------------- */

struct rc_function {
	struct rc_function *next;
	rref_handler handler;
	void *arg;
	unsigned flags;
	size_t name_length;
	char name[RREF_NAME_MAX + 1];
};

struct rref_call {
	struct rref_ctx *ctx;
	void *block;                 /* [const] what to free */
	struct rc_hook hook;	/* under the lock; its node: also of the pool's queues, and of the spare ones */
	struct list open_node;	/* under the lock; ctx->open_calls, until it is replied to */
	uint32_t caller, caller_epoch;
	uint64_t call_id;
	uint64_t cost, fetch_cost;   /* in the caller's call_bytes, fetch_bytes */
	uint8_t kind;
	bool plain;                  /* neither references nor a payload, little data, no creation: see serve.c */
	bool roomy;                  /* [const] it has room for little data, and is kept for the next call */
	bool counted;                /* in inline_calls */
	struct rref_id id, fork;     /* REMOTE */
	const struct rc_function *fn;
	const void *bytes;           /* data, or a payload's */
	size_t length;
	const void *meta;            /* behind data */
	size_t meta_length;
	const char *name;            /* of fn, or own_name */
	_Atomic uint32_t refs;       /* handler + pending reply */
	_Atomic uint32_t replied;
	_Atomic uint32_t cancelled;  /* its caller gave it up, or is gone */
	bool deferred;               /* the handler said so; set while it holds the call */
	struct rc_incoming in;       /* from here on not simply cleared; see make_call */
	char own_name[RREF_NAME_MAX + 1];
	_Alignas(64) uint8_t data[];
};

/* ---- context ----------------------------------------------------------------------------------------------------- */

enum rc_ctx_state { RC_CTX_STARTING, RC_CTX_RUNNING, RC_CTX_CLOSING, RC_CTX_SHUT };

#define RC_CACHE_SLOTS 16
#define RC_LARGE_SLOTS 4
#define RC_CALL_BUCKETS 256u  /* a power of two */
#define RC_FUNCTION_BUCKETS 64u /* the same */
/* Kept for the next ones. Where the address sanitizer looks on, none: it is to see who uses a call that it has not any more. */
#if defined(__SANITIZE_ADDRESS__)
#define RC_SPARE_CALLS 0u
#else
#define RC_SPARE_CALLS 64u
#endif
#define RC_CONSUMED_KEPT 1024u

struct rc_counters {
	_Atomic uint64_t reads, read_bytes, doorbells, sent, received, calls, quarantined, dropped, rejected, dead;
	_Atomic uint64_t retries, fenced;
	_Atomic uint64_t reads_again, reads_joined;
	uint64_t resumed under_lock, sent_again under_lock, not_again under_lock;
	_Atomic uint64_t landing_bytes, value_bytes, payload_bytes, nested;
	_Atomic uint64_t mems, mem_bytes, wrapped_bytes;
	_Atomic uint64_t inline_calls; /* beside calls: plain ones of inline functions; written under the lock */
	uint64_t sent_by_kind[RW_NR_KINDS] under_lock, received_by_kind[RW_NR_KINDS] under_lock;
	uint64_t sent_bytes under_lock, received_bytes under_lock;
	uint64_t sessions under_lock;
};

/* Whether calls were served or under way here at a barrier, or have been since the one before. */
struct rc_calm {
	uint64_t begun; /* calls_begun at the last barrier */
	bool idle;      /* and whether this worker was idle at it */
};

struct rref_ctx {
	/* read by every operation */
	uint64_t serial;                  /* [const] of this process' contexts; addresses come again, it does not */
	uint64_t bytes_hash;              /* [const] of the type "bytes" */
	const struct rc_engine *engine;   /* [const] base/wait.h */
	_Atomic uint32_t state;           /* enum rc_ctx_state */
	uint32_t fork_generation;         /* [const] */
	uint32_t gate;                    /* [const] the same, or NO_GATE: with a scope hook each call takes a closer look */
	uint32_t rank, world;
	const struct rc_session_events *session_events; /* [const] */
	struct rc_scopes *scopes;         /* [const] NULL = off; scope.c */
	struct rc_peer *peers;            /* [const] array of world */
	struct rc_member *members;        /* [const] */
	uint64_t incarnation;
	_Atomic int64_t timeout;          /* rref_set_timeout */
	struct ra_arena *values, *landing;
	struct rc_region *beacon_region; /* of one page; NULL = not yet */
	int beacon_fd;
	size_t max_value_bytes;           /* [const] bound on values, the arena's and the local only ones */
	uint64_t *beacon;                 /* [const] our heartbeat, which peers READ: our device answers, and our progress counts */
	uint64_t *probe_landing;          /* [const] where theirs land, by rank */
	struct rc_own_beat {
		uint64_t count under_lock;
		_Atomic int64_t at;       /* when it was counted last */
		_Atomic int64_t woke_at, stood_ns; /* this worker stood still: until when, for how long */
	} own_beat;
	struct rc_device device[RV_NR_KINDS];

	struct rc_reader *readers;        /* value/reader.c */
	struct rc_flight *flights under_lock; /* value/reader.c */

	cache_aligned _Atomic uint32_t lock; /* [atomic] enum in lock.c */
	_Atomic uint32_t lock_wanted;     /* threads that wait for the lock: pollers make way */
	struct rp *machine under_lock;
	void (*effect)(struct rref_ctx *ctx, const struct rp_effect *e); /* [const] what carries out the machine's effects */
	bool in_effects under_lock;
	bool duplicate under_lock; /* the last OWN was of an id known already */
	struct list self_queue under_lock; /* struct rc_outgoing */
	struct list spare_messages under_lock; /* small ones that came there; send.c */
	uint32_t nr_spare_messages under_lock;
#define RC_SPARE_DROPS 32u
	struct rc_incoming *spare_drop[RC_SPARE_DROPS] under_lock; /* incoming.c */
	uint32_t nr_spare_drops under_lock;
	struct rc_slabs handles under_lock, remotes under_lock; /* every handle: struct rref; those that are struct rc_remote */
	struct list mems under_lock, wraps under_lock; /* memory that the program registered, values that wrap it; wrap.c */
	struct list wraps_out under_lock; /* values whose release callbacks run now */
	struct list hooks under_lock; /* struct rc_hook: the program's code that is due */
	_Atomic uint32_t nr_hooks;        /* of these; written under the lock */
	struct rc_log_lines *lines;       /* [const] log.c */
	struct list open_calls[RC_CALL_BUCKETS] under_lock; /* calls served here, by caller and call id */
	struct list spare_calls under_lock; /* plain ones that ended; serve.c */
	uint32_t nr_spare_calls under_lock;
	_Atomic(struct rref_call *) spare_call;   /* one more, left without the lock */
	struct list offers[RC_CALL_BUCKETS] under_lock; /* payloads that others have not read yet, by reader and call id */
	uint64_t bucket_seed;             /* [const] peers choose call ids, not buckets */
	int64_t next_tick under_lock;
	int64_t wake_at under_lock; /* when the sleeping poller wakes by itself */
	bool poller_asleep under_lock; /* it sleeps, or is about to, or was woken and has not got the lock yet */
	int64_t polled_slow_at under_lock;
	uint64_t nr_refused under_lock; /* connections, for the log */
	char lack_here[RP_TEXT_MAX] under_lock; /* writes, once: see rc_contact_lacks */
	int64_t turn_at under_lock; /* the clock, as who makes a turn read it; 0: not for this one */
	uint32_t quick_turns under_lock; /* of rref_progress that did not look at the clock */
	_Atomic uint32_t more_patience;   /* ns that waiters spin beyond the usual; see base/wait.c */
	unsigned arms under_lock; /* enum rc_arm: sleepers whom the devices would wake */
	const void *progress_by under_lock; /* the last thread in rref_progress, and when; see hook.c */
	int64_t progress_at;

	struct rc_works works;
	_Atomic uint64_t next_local_id;

	/* operations: see op.c */
	cache_aligned _Atomic uint64_t op_free;   /* {tag:32, index+1:32} */
	_Atomic uint64_t op_spare;                /* {tag:32, index+1:32}, or 0 below: none; see take_spare */
	_Atomic uint32_t ops_in_flight, nr_ops;   /* the spare one counts; rc_ops_in_flight() */
	uint32_t max_ops;
	pthread_mutex_t grow_lock;
	_Atomic(struct rref_future *) *op_chunk;  /* chunks of RC_OP_CHUNK */
	_Atomic uint32_t *op_taken;               /* how many slots of each chunk are not on the free list */
	uint64_t ops_seen under_lock, spare_seen under_lock; /* op_free and op_spare when the slab was scanned last */
	int64_t ops_scanned_at under_lock, ops_due under_lock; /* when, and the first deadline of what was under way then */
	unsigned ops_quiet under_lock; /* scans since those two moved that found nothing under way */
	_Atomic(struct rc_landing *) cache[RC_CACHE_CLASSES][RC_CACHE_SLOTS];
	_Atomic(struct rc_landing *) large[RC_LARGE_SLOTS];

	/* poller */
	struct rc_hands *hands;                   /* [const] NULL: manual mode. poller.c */
	_Atomic bool has_poller;
	struct rc_waiter *device_sleeper under_lock; /* manual mode: it sleeps on the devices */
	struct list sleepers under_lock; /* the other waiters; wait.c */
	enum rref_progress_mode mode;
	int poller_core;
	int epfd, kickfd;
	int fd, loopfd;                           /* rref_ctx_fd; what wakes the event loop alone */
	int timer_fd;                             /* of the manual mode's loop; -1 = none */
	bool timer_set under_lock;
	_Atomic uint32_t loop;                    /* enum rc_loop; sc: partner of the completions of futures */
	_Atomic uint32_t loop_told;               /* loopfd was written, and not read yet */
	const void *loop_thread under_lock; /* that armed last */
	cache_aligned _Atomic uint32_t sleeping;  /* sc: the poller sleeps in epoll; partner: work is published first */
	_Atomic uint32_t kicked;
	_Atomic uint32_t reads_in_flight;         /* READs at a device that reports them by events */
	_Atomic uint32_t watching;                /* sc: threads that poll for them */
	_Atomic uint32_t reads_unarmed;           /* sc: somebody sleeps on the devices who would not be woken by them */

	/* worker pool */
	struct rc_pool *pool;

	/* functions: pushed at the head under function_lock, read without */
	_Atomic(struct rc_function *) functions[RC_FUNCTION_BUCKETS]; /* by name */
	pthread_mutex_t function_lock;
	struct rc_types *types;           /* [const] types.c */

	/* shutdown */
	_Atomic bool closing;                     /* a thread is in rref_shutdown */
	uint64_t barrier_sent under_lock, barrier_done under_lock;
	uint64_t barrier_busy under_lock; /* bit n % 64: somebody was busy at barrier n, or since the one before */
	uint32_t *barrier_seen under_lock; /* rank 0: highest barrier each worker reached */
	struct rref_future *barrier_op under_lock; /* who waits for one here */
	_Atomic uint32_t serving, serve_stop;     /* a thread is in rref_serve; it is to end */
	bool came under_lock; /* it has begun the first barrier */
	bool came_sent under_lock; /* and told rank 0 ... */
	uint32_t came_fences under_lock; /* ... behind that many fences of its session */
	struct rc_calm came_calm under_lock; /* at that moment */
	_Atomic(struct rref_call *) consumed[RC_CONSUMED_KEPT]; /* deferred ones that were replied to; serve.c */
	_Atomic uint32_t nr_consumed;
	_Atomic uint64_t calls_begun;             /* how many ever were to be served; written under the lock */
	_Atomic uint64_t calls_ended;             /* of these: those that ended under the lock; written under it */
	_Atomic uint64_t calls_over;              /* the others that ended */
	struct rc_key key;
	struct rc_identity identity;
	bool leak_check;
	int64_t peer_timeout;
	int64_t stall_timeout;                    /* [const] 0 = for ever */
	uint32_t score_limit;                     /* [const] RC_SCORE_LIMIT; tests that break connections have their own */
	int64_t answer_ns;                        /* [const] RC_ANSWER_NS, or peer_timeout if that is longer; tests have their own */

	void (*peer_down)(void *, struct rref_ctx *, const struct rref_peer_down *); /* [const] NULL = off */
	void *peer_down_arg;                      /* [const] */
	struct rc_inject *inject under_lock; /* NULL but in tests: session/inject.h */
	struct rc_counters n;
	int64_t started_at;                       /* [const] ages in the machine count from here */
	struct rc_leaks *leaks under_lock; /* the report of the graceful shutdown; NULL = nothing to tell */
	void (*log)(void *ctx, enum rref_log_level level, const char *text);
	void *log_ctx;
	enum rref_log_level log_level;
};

#endif
