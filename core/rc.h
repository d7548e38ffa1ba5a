/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc: the runtime's own types. What a context is made of, and who may touch what.
 *
 * One lock (ctx->lock, "the progress lock") guards all control state: the protocol machine, sessions, queues, the
 * devices' [progress] calls. It is held for one step or some looks, which end when anybody wants it; never while
 * sleeping and never while the program's code runs: callbacks and inline handlers are put on ctx->deferred_ops and
 * deferred_calls, and run by rc_unlock after the lock is gone.
 *
 * Starting a read of one message does not take it: a ready handle's location is constant (published by handle->state),
 * operations come from a lock-free slab, and a connection is pinned by peer->readers (see the fence in peer.c). Over shm
 * such a read also ends without it; over ibv completions are taken by whoever gets the lock without waiting.
 *
 * Guards: [lock] progress lock; [atomic]; [const] after creation; [op] whoever completes the operation (state CAS won, or a
 * call's answer under the lock).
 */
#ifndef RC_H
#define RC_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "alloc/ra.h"
#include "base/atomic.h"
#include "base/util.h"
#include "rc_error.h"
#include "rc_group.h"
#include "rc_ref.h"
#include "rc_resume.h"
#include "rc_slab.h"
#include "rp.h"
#include "rref.h"
#include "rw.h"
#include "verbs/rv.h"

#define RC_BATCH_MAX 32u /* reads posted with one doorbell */
#define RC_PIECE_MAX (UINT64_C(128) << 10) /* of a READ over hardware; see read.c */

/* ---- operations: the slab behind futures ---------------------------------------------------------------------- */

enum rc_op_kind {
	RC_OP_NONE,         /* free, or being set up */
	RC_OP_READ,
	RC_OP_CALL,         /* waits for its REPLY */
	RC_OP_REPLIED,      /* a call whose result's references are being confirmed */
	RC_OP_CREATE,       /* a remote creation: ends through the protocol machine */
	RC_OP_LOCAL_CREATE, /* a creation on oneself: ends with the function */
	RC_OP_BARRIER,
	RC_OP_TYPE,         /* waits for a value like a read, then for the name of its type */
	RC_OP_FETCH,        /* READs the payload of a call or reply; payload.c */
};

enum { RC_F_PENDING = 0, RC_F_COMPLETING = 1, RC_F_DONE = 2, RC_F_MASK = 3, RC_F_WAITERS = 4, RC_F_SCOPED = 8,
       RC_F_BOTH = 16 /* with DONE: the engine's hold is the waiter's too; see inner */ };

/* Work that the next one who lets go of the lock does. It begins with the lock held and may let go of it meanwhile. */
struct rc_work {
	struct list node;             /* [lock] ctx->deferred_work */
	void (*run)(struct rref_ctx *ctx, struct rc_work *w);
};

/* A reference that arrived in a call or reply and is on its way to being confirmed. */
struct rc_inref {
	struct rc_incoming *in;
	struct rref *handle;
};

/* What comes with a call or reply: references to be confirmed, and before them perhaps a payload to be READ. */
struct rc_incoming {
	struct rc_inref *ref;         /* few, or malloc'ed */
	uint32_t nr, unready;         /* [lock] */
	int status;                   /* first failure */
	void (*ready)(struct rref_ctx *ctx, struct rc_incoming *in); /* [lock] all confirmed (or one failed) */
	struct rref_future *future;   /* replies: whose result they are */
	uint32_t from;                /* who sent them: of a payload, or when they are dropped */
	/* payload: see payload.c */
	struct rc_work work;
	void (*fetched)(struct rref_ctx *ctx, struct rc_incoming *in, const void *data, const struct rp_fork *recs, uint32_t nr); /* [lock] */
	struct rref_future *read;     /* [lock] the READ that brings it */
	struct rref_view *body;       /* what it brought ... */
	struct rc_payload *own;       /* ... or, from this worker itself, the payload as it is */
	struct rp_location loc;
	uint64_t call_id;
	uint32_t what;                /* enum rw_payload */
	uint32_t epoch;               /* of the session it was offered in */
	uint32_t data_length, nr_refs;
	bool fetching;                /* [lock] it is not here yet */
	bool cancelled;               /* [lock] and need not come any more */
	/* Not cleared by rc_incoming_init, but for the text's first byte. */
	char text[RP_TEXT_MAX];       /* of status */
	struct rc_inref few[RW_REFS_MAX];
};

static inline void rc_incoming_init(struct rc_incoming *in)
{
	memset(in, 0, offsetof(struct rc_incoming, text));
	in->text[0] = 0;
}

/*
 * A future's law: an accepted operation completes exactly once. Whoever moves state PENDING -> COMPLETING owns the
 * result fields, fills them, and moves it to DONE (release). Everybody else reads them after DONE (acquire). Calls and
 * creations are completed by holders of the lock only, who may therefore fill them while it is PENDING (rc_op_answered).
 * refs: 1 of the program + 1 of the engine; the engine's goes when no device and no peer can touch the operation any
 * more, so that a landing buffer outlives a time-out (quarantine).
 */
struct rref_future {
	_Atomic uint32_t state;       /* futex word */
	_Atomic uint32_t refs;
	_Atomic uint32_t gen;         /* of this slot; part of the token */
	uint32_t index;               /* [const] */
	_Atomic uint32_t next_free;   /* slab free list */
	_Atomic uint32_t then_state;  /* 0 none, 1 set, 2 fired */
	void (*then)(struct rref_future *f, void *arg);
	void *then_arg;
	struct rref_ctx *ctx;
	_Atomic uint32_t kind;        /* enum rc_op_kind; NONE until it is under way (set under the lock, but for reads) */
	uint32_t peer;                /* CALL, CREATE, BARRIER: whose answer is waited for */
	_Atomic int64_t deadline;     /* [atomic] CLOCK_MONOTONIC ns; INT64_MAX = none */
	_Atomic(struct rc_scope *) scope; /* ends with the operation; set with RC_F_SCOPED. scope.c */
	_Atomic int64_t seen_at;      /* [atomic] when who scans the slab first saw it under way; 0 = not yet. No clock in the read path */
	struct list node;             /* [lock] peer->waiting */
	struct list then_node;        /* [lock] ctx->deferred_ops; not node: a read may end while it waits, and is then in both */

	/* result [op] */
	int status, wc_status;
	struct rref_view *view;
	const struct rc_type *type;
	char *data;
	size_t data_length;
	struct rc_incoming *incoming; /* references of a call's result; rc_op_incoming */
	struct rc_incoming *spare;    /* of an earlier one in this slot */
	char text[RREF_TEXT_SIZE];

	/* read */
	struct rref *handle;          /* pinned while the engine works; also CREATE */
	struct rp_location loc;
	struct rc_landing *landing;   /* owned by the engine until delivered */
	uint64_t offset, length;      /* payload range wanted */
	uint64_t next;                /* payload bytes asked for so far */
	uint32_t outstanding;         /* [lock] pieces at the device (set before posting) */
	struct rref_future *run_next; /* [lock] the next one that the same READ brings (set before posting); runs.c */
	int read_status, read_wc;     /* first failure of a piece */
	bool header_asked;
	bool whole;                   /* [const] not a range: the table of segments is read too */
	bool parked;                  /* [lock] waits in the machine for its location */
	bool retried;                 /* [lock] was pumped once after it began to wait */
	bool alone;                   /* [lock] a READ that brought others too was refused: no more company */
	bool again;                   /* [lock] its connection broke, not the session: it is read again from the beginning */
	uint64_t number;              /* barrier; call: references that its result must have, 0 = any */
	bool replied;                 /* [lock] call: its answer came */
	bool inner;                   /* [lock] a call that the program does not see under way: who waits puts both holds */
	struct rc_incoming *fetch;    /* FETCH: what for */
};

/* ---- peers ---------------------------------------------------------------------------------------------------- */

struct rc_traffic { /* control messages that went out and came in */
	uint64_t sent, received, sent_bytes, received_bytes;
};

/* How a peer's heartbeat was seen; stall.c. [lock] */
struct rc_stall {
	uint64_t count;               /* its heartbeat, last seen; 0 = not yet in this session */
	int64_t looked_at;
	int64_t still_ns;             /* for how long it has not changed, as far as this worker was awake to look */
	int64_t not_before;           /* this worker stood still itself: nobody is fenced before; 0 = it did not */
	int64_t fence_at;             /* it was told that it will be fenced; 0 = no */
};

enum rc_peer_state { RC_PEER_DOWN, RC_PEER_CONNECTING, RC_PEER_ACCEPTING, RC_PEER_UP, RC_PEER_GONE };

struct rc_peer {
	struct rc_member *member;
	uint32_t rank;
	const struct rv_ops *ops;     /* [const] device that reaches it; NULL for self or unreachable */
	struct rv_dev *dev;           /* [const] */
	enum rv_kind kind;            /* [const] */
	enum rc_peer_state state;     /* [lock] */
	bool said_goodbye;            /* [lock] its end is orderly */
	bool goodbye_sent;            /* [lock] ours, in this session */
	bool ever_up;                 /* [lock] there was a session */
	bool fenced;                  /* [lock] the machine shares nothing with it until a new session is up */
	bool nobody;                  /* [lock] the last attempt found no listener: its process is gone */
	uint64_t pinged, ponged;      /* [lock] last PING sent, last PONG seen */
	bool authenticated;           /* [lock] server: proof seen; client: its answer seen */
	int64_t auth_by;              /* [lock] when a session that is not authenticated ends */
	struct rv_conn *link;         /* [lock] connection in any state */
	struct rc_handshake hs;       /* [lock] */
	uint32_t epoch;               /* [lock] of the current or last session */
	uint64_t hello_number;        /* [lock] of its last hello */
	uint64_t send_seq, recv_seq;  /* [lock] */
	struct rc_unacked unacked;    /* [lock] */
	struct rc_resume resume;      /* [lock] */
	struct list queue;            /* [lock] struct rc_outgoing */
	uint32_t nr_queued;           /* [lock] those that a test holds back included */
	int64_t resend_at;            /* [lock] the head of the queue failed to be sent: not before; 0 = at once */
	size_t queued_bytes;          /* [lock] bounded, see send.c */
	uint32_t nr_drops;            /* [lock] struct rc_incoming that are dropped when confirmed */
	_Atomic uint64_t call_bytes;  /* of its calls that were open here, less those that ended under the lock. [lock] writes */
	_Atomic uint64_t call_bytes_over; /* ... of the others that ended; rc_call_bytes() are open: bounded, see serve.c */
	_Atomic uint64_t fetch_bytes; /* of their payloads; the same */
	_Atomic uint64_t offer_bytes; /* of payloads it has not read yet; bounded, see payload.c */
	struct list waiting;          /* [lock] reads that wait for a connection or a slot */
	int64_t retry_at;             /* [lock] no new attempt before */
	int64_t grace_at;             /* [lock] 0 = none */
	int64_t probe_at;             /* [lock] */
	uint64_t beacon_addr;         /* [lock] what to READ to learn whether its device answers */
	uint32_t beacon_rkey;
	bool probing;                 /* [lock] */
	struct rc_stall stall;        /* [lock] */
	_Atomic int64_t stalled_ns;   /* its process does not answer; 0 = it does */
	uint64_t max_msg;             /* [const] */
	uint32_t max_sge;             /* [const] */
	char why[RP_TEXT_MAX];        /* [lock] last failure */
	struct rc_traffic traffic;    /* [lock] */
	uint32_t nr_sessions;         /* [lock] that came up */
	int64_t heard_at;             /* [lock] its last message, or its device's last sign of life; 0 = never */
	_Atomic bool alive;
	/* read path: pinned connection */
	cache_aligned _Atomic(struct rv_conn *) conn; /* sc: partner of readers */
	_Atomic uint32_t readers;     /* sc: the fence stores conn = NULL and waits for 0 */
	_Atomic uint32_t nr_waiting;  /* hint: reads wait, do not overtake them */
};

struct rc_outgoing {
	struct list node;
	uint32_t length;
	uint16_t room;                /* for bytes; RC_SMALL_MESSAGE: it may be kept for the next message */
	uint16_t tries;               /* that failed */
	uint8_t bytes[];
};
#define RC_SMALL_MESSAGE 232u

/* ---- devices and regions --------------------------------------------------------------------------------------- */

struct rc_device {
	const struct rv_ops *ops;
	struct rv_dev *dev;          /* NULL = not open */
	struct rv_caps caps;
	char why_not[RREF_TEXT_SIZE];
	bool lost;                   /* [lock] */
};

struct rc_region {
	uint64_t iova;
	struct rv_mr mr[RV_NR_KINDS];
	bool have[RV_NR_KINDS];
	struct rref_ctx *ctx;
	enum rv_access access;
	size_t length;
};

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
	struct list node;            /* [lock] deferred, or pool queue */
	struct list open_node;       /* [lock] ctx->open_calls, until it is replied to */
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
	uint64_t resumed, sent_again, not_again;                           /* [lock] */
	_Atomic uint64_t landing_bytes, value_bytes, payload_bytes, nested;
	_Atomic uint64_t mems, mem_bytes, wrapped_bytes;
	_Atomic uint64_t inline_calls; /* beside calls: plain ones of inline functions; written under the lock */
	uint64_t sent_by_kind[RW_NR_KINDS], received_by_kind[RW_NR_KINDS]; /* [lock] */
	uint64_t sent_bytes, received_bytes;                               /* [lock] */
	uint64_t sessions;                                                 /* [lock] */
};

struct rref_ctx {
	/* read by every operation */
	uint64_t serial;                  /* [const] of this process' contexts; addresses come again, it does not */
	uint64_t bytes_hash;              /* [const] of the type "bytes" */
	_Atomic uint32_t state;           /* enum rc_ctx_state */
	uint32_t fork_generation;
	uint32_t rank, world;
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
		uint64_t count;           /* [lock] */
		_Atomic int64_t at;       /* when it was counted last */
		_Atomic int64_t woke_at, stood_ns; /* this worker stood still: until when, for how long */
	} own_beat;
	struct rc_device device[RV_NR_KINDS];

	struct rc_reader *readers;        /* quick.c */
	struct rc_flight *flights;        /* [lock] flight.c */

	cache_aligned _Atomic uint32_t lock; /* [atomic] enum in lock.c */
	_Atomic uint32_t lock_wanted;     /* threads that wait for the lock: pollers make way */
	struct rp *machine;               /* [lock] */
	bool in_effects;                  /* [lock] */
	bool duplicate;                   /* [lock] the last OWN was of an id known already */
	struct list self_queue;           /* [lock] struct rc_outgoing */
	struct list spare_messages;       /* [lock] small ones that came there; send.c */
	uint32_t nr_spare_messages;       /* [lock] */
	struct rc_slabs handles, remotes; /* [lock] every handle: struct rref; those that are struct rc_remote */
	struct list mems, wraps;          /* [lock] memory that the program registered, values that wrap it; wrap.c */
	struct list deferred_ops;         /* [lock] futures whose callback is to run */
	struct list deferred_calls;       /* [lock] inline calls to run */
	struct list deferred_work;        /* [lock] struct rc_work */
	uint32_t nr_works;                /* [lock] of these, and those being done */
	struct list open_calls[RC_CALL_BUCKETS]; /* [lock] calls served here, by caller and call id */
	struct list spare_calls;          /* [lock] plain ones that ended; serve.c */
	uint32_t nr_spare_calls;          /* [lock] */
	_Atomic(struct rref_call *) spare_call;   /* one more, left without the lock */
	struct list offers[RC_CALL_BUCKETS];     /* [lock] payloads that others have not read yet, by reader and call id */
	uint64_t bucket_seed;             /* [const] peers choose call ids, not buckets */
	int64_t next_tick;                /* [lock] */
	int64_t wake_at;                  /* [lock] when the sleeping poller wakes by itself */
	int64_t polled_slow_at;           /* [lock] */
	int64_t turn_at;                  /* [lock] the clock, as who makes a turn read it; 0: not for this one */
	uint32_t quick_turns;             /* [lock] of rref_progress that did not look at the clock */
	_Atomic uint32_t more_patience;   /* ns that waiters spin beyond the usual; see future.c */
	bool armed;                       /* [lock] devices would wake the poller */

	cache_aligned _Atomic(struct rref *) dropped; /* handles whose last hold is gone; MPSC stack */
	_Atomic uint64_t next_local_id;
	_Atomic(struct rc_wrap *) returned;           /* wrapped memory that nobody uses any more; MPSC stack, wrap.c */

	/* operations: see op.c */
	cache_aligned _Atomic uint64_t op_free;   /* {tag:32, index+1:32} */
	_Atomic uint64_t op_spare;                /* {tag:32, index+1:32}, or 0 below: none; see take_spare */
	_Atomic uint32_t ops_in_flight, nr_ops;   /* the spare one counts; rc_ops_in_flight() */
	uint32_t max_ops;
	pthread_mutex_t grow_lock;
	_Atomic(struct rref_future *) *op_chunk;  /* chunks of RC_OP_CHUNK */
	_Atomic uint32_t *op_taken;               /* how many slots of each chunk are not on the free list */
	uint64_t ops_kept;                        /* [lock] op_free when a scan found none under way; UINT64_MAX: it found some */
	uint64_t spare_kept;                      /* [lock] op_spare then */
	_Atomic(struct rc_landing *) cache[RC_CACHE_CLASSES][RC_CACHE_SLOTS];

	/* poller */
	pthread_t poller;
	_Atomic bool has_poller;
	bool device_sleeper;                      /* [lock] without a poller: a waiter sleeps on the devices */
	struct list sleepers;                     /* [lock] the other waiters; future.c */
	enum rref_progress_mode mode;
	int poller_core;
	int epfd, kickfd;
	cache_aligned _Atomic uint32_t sleeping;  /* sc: the poller sleeps in epoll; partner: work is published first */
	_Atomic uint32_t kicked;
	_Atomic bool stop;
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
	_Atomic bool closing;                     /* somebody is in rref_shutdown */
	uint64_t barrier_sent, barrier_done;      /* [lock] */
	uint64_t barrier_busy;                    /* [lock] bit n % 64: somebody was busy at barrier n, or since the one before */
	uint32_t *barrier_seen;                   /* [lock] rank 0: highest barrier each worker reached */
	struct rref_future *barrier_op;           /* [lock] who waits for one here */
	_Atomic(struct rref_call *) consumed[RC_CONSUMED_KEPT]; /* deferred ones that were replied to; serve.c */
	_Atomic uint32_t nr_consumed;
	_Atomic uint64_t calls_begun;             /* how many ever were to be served; written under the lock */
	_Atomic uint64_t calls_ended;             /* of these: those that ended under the lock; written under it */
	_Atomic uint64_t calls_over;              /* the others that ended */
	struct rc_key key;
	bool leak_check;
	int64_t peer_timeout;
	int64_t stall_timeout;                    /* [const] 0 = for ever */
	uint32_t score_limit;                     /* [const] RC_SCORE_LIMIT; tests that break connections have their own */

	struct rc_inject *inject;                 /* [lock] NULL but in tests: rc_inject.h */
	struct rc_counters n;
	int64_t started_at;                       /* [const] ages in the machine count from here */
	struct rc_leaks *leaks;                   /* [lock] the report of the graceful shutdown; NULL = nothing to tell */
	void (*log)(void *ctx, enum rref_log_level level, const char *text);
	void *log_ctx;
	enum rref_log_level log_level;
};

/* ctx.c */
void rc_log(struct rref_ctx *ctx, enum rref_log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void rc_ctx_destroy(struct rref_ctx *ctx); /* what rref_init made, in reverse; works at every stage of it */
int rc_enter_slow(const struct rref_ctx *ctx);
extern _Atomic uint32_t rc_fork_generation;

static inline bool rc_usable(const struct rref_ctx *ctx)
{
	return at_load_acq(&ctx->state) == RC_CTX_RUNNING && ctx->fork_generation == at_load(&rc_fork_generation);
}

/* 0 if the context may be used by this process now. */
static inline int rc_enter(struct rref_ctx *ctx)
{
	return likely(ctx && rc_usable(ctx)) ? 0 : rc_enter_slow(ctx);
}

/* A child made by fork() shares memory and devices with its parent: it may look, but neither write, wait nor free. */
static inline bool rc_is_child(const struct rref_ctx *ctx)
{
	return unlikely(ctx->fork_generation != at_load(&rc_fork_generation));
}

/* The machine's time: tenths of a second since the context was made, in 13 years no two alike. The coarse clock will do. */
#define RC_AGE_NS (100 * NSEC_PER_MSEC)
static inline int64_t rc_coarse_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (int64_t)ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}
static inline uint32_t rc_age_now(const struct rref_ctx *ctx)
{
	return (uint32_t)((rc_coarse_ns() - ctx->started_at) / RC_AGE_NS);
}

#define RC_LONG_NS NSEC_PER_SEC
#define RC_COARSE_NS (50 * NSEC_PER_MSEC) /* several ticks of the coarse clock: it is behind by one, and one may come late */
static inline int64_t rc_deadline(const struct rref_ctx *ctx, int64_t timeout)
{
	if (timeout == RREF_DEFAULT)
		timeout = at_load(&ctx->timeout);
	if (timeout == RREF_FOREVER)
		return INT64_MAX;
	/* Of a long one some ticks more do not matter, and the coarse clock costs a fifth. */
	int64_t now = timeout < RC_LONG_NS ? now_ns() : rc_coarse_ns() + RC_COARSE_NS;

	return timeout > INT64_MAX - now ? INT64_MAX : now + timeout;
}
/* The same, where the coarse clock was read just now. */
static inline int64_t rc_deadline_seen(const struct rref_ctx *ctx, int64_t timeout, int64_t coarse)
{
	if (timeout == RREF_DEFAULT)
		timeout = at_load(&ctx->timeout);
	if (timeout < RC_LONG_NS || timeout > INT64_MAX - RC_COARSE_NS - coarse)
		return rc_deadline(ctx, timeout);
	return coarse + RC_COARSE_NS + timeout;
}

/* Calls being served or waiting to be. Acquire: partner of the release by who ends one. Those first: never too few. */
static inline uint64_t rc_calls_open(const struct rref_ctx *ctx)
{
	uint64_t over = at_load_acq(&ctx->calls_over) + at_load_acq(&ctx->calls_ended);

	return at_load(&ctx->calls_begun) - over;
}
static inline uint64_t rc_call_bytes(const struct rc_peer *p)
{
	uint64_t over = at_load(&p->call_bytes_over);

	return at_load(&p->call_bytes) - over;
}

/* rc_wraps_return has something to do, for this thread. */
static inline bool rc_wraps_due(const struct rref_ctx *ctx)
{
	return unlikely(at_load_sc(&ctx->returned)) && !rc_wraps_returning();
}

/* lock.c: the progress lock */
void rc_lock(struct rref_ctx *ctx);
enum { RC_UNLOCKED, RC_LOCKED, RC_LOCKED_WANTED }; /* WANTED: somebody may sleep on the word */
/* Acquire: partner of the unlock's release. */
static inline bool rc_trylock(struct rref_ctx *ctx)
{
	uint32_t free = RC_UNLOCKED;

	return at_load(&ctx->lock) == RC_UNLOCKED && at_cas_ar(&ctx->lock, &free, RC_LOCKED);
}
void rc_unlock(struct rref_ctx *ctx); /* and runs what was deferred */
void rc_unlock_bare(struct rref_ctx *ctx); /* and runs nothing: for who takes it again and lets go of it then */
void rc_pause(unsigned *turn); /* between two looks at something that others will do: at first a moment, then up to 1 ms */
void rc_defer(struct rref_ctx *ctx, struct rc_work *w); /* [lock] */

/* memory.c: devices' registrations, arenas, values, landing blocks */
int rc_memory_open(struct rref_ctx *ctx, const struct rref_options *opt);
void rc_memory_close(struct rref_ctx *ctx);
int rc_region_reg(struct rref_ctx *ctx, enum rv_access access, void *base, size_t length, int fd, void **cookie);
int rc_region_dereg(void *ctx, void *cookie); /* 0, or -errno: the memory must be kept */
void rc_beacon(struct rref_ctx *ctx, enum rv_kind kind, struct rw_auth *out);
uint64_t rc_random64(void);
/* types.c */
void rc_type_located(struct rref_ctx *ctx, struct rref_future *f, const struct rp_location *loc); /* [lock] */
void rc_type_query(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_type_info *q);     /* [lock] */
void rc_type_answer(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_type_info *a);    /* [lock] */
void rc_type_unsent(struct rref_ctx *ctx, const struct rw_type_info *q, int err, const char *why);  /* [lock] */

/* runs.c: reads of one message each, as few READs: f[first[i]] to before f[first[i + 1]] are brought by r[i]. */
struct rc_runs {
	unsigned nr, first[RC_BATCH_MAX + 1];
	struct rv_read r[RC_BATCH_MAX];
	struct rv_sge sge[(RC_BATCH_MAX + 1) * RV_READ_SGE]; /* one more: `more` of the last may point behind what it has */
};
/* Orders f[0..n), and sets each up as one that is at a device. f: prepared, of p; n up to RC_BATCH_MAX. */
void rc_runs_build(const struct rc_peer *p, struct rref_future **f, unsigned n, struct rc_runs *runs);
void rc_run_undo(struct rref_future *f); /* it is not: its READ was not posted */

/* op.c */
#define RC_OP_CHUNK 256u
int rc_ops_open(struct rref_ctx *ctx, unsigned max_ops);
void rc_ops_close(struct rref_ctx *ctx);
/*
 * Whose operation it is: there are max_ops slots for what the program begins, and as many again for the payloads of calls
 * that come, and for those of results: a call that was made keeps its slot until its result is here, so that a result that
 * needed one of the same could never come when all are taken.
 */
enum rc_op_share { RC_OP_PROGRAM = 1, RC_OP_ARGUMENTS = 2, RC_OP_RESULT = 3 };
int rc_op_get(struct rref_ctx *ctx, int64_t deadline, struct rref_future **out); /* waits for a slot until deadline */
bool rc_op_try(struct rref_ctx *ctx, struct rref_future **out); /* the same, one that is at hand; false: there is none */
int rc_op_get_share(struct rref_ctx *ctx, enum rc_op_share share, int64_t deadline, struct rref_future **out);
struct rref_future *rc_op_find(struct rref_ctx *ctx, uint64_t token); /* NULL: old generation. Only while the engine holds it */
struct rref_future *rc_op_hold(struct rref_ctx *ctx, uint64_t token); /* with a hold, for tokens from outside; rc_op_put */
uint64_t rc_op_token(const struct rref_future *f);
void rc_op_put(struct rref_future *f);
void rc_op_put_inner(struct rref_future *f);   /* complete: the waiter's hold, and the engine's if that is the waiter's too */
uint32_t rc_ops_in_flight(const struct rref_ctx *ctx);
bool rc_op_incoming(struct rref_future *f);    /* gives it f->incoming; false: no memory */
bool rc_op_claim(struct rref_future *f);       /* PENDING -> COMPLETING: true for one caller */
void rc_op_finish(struct rref_future *f, bool locked); /* COMPLETING -> DONE, wakes, callback */
void rc_op_answered(struct rref_future *f);    /* [lock] claim, finish and the engine's put of a call that waits for its answer */
bool rc_op_fail(struct rref_future *f, int status, int wc, const char *text, bool locked); /* claim + finish with an error */
void rc_ops_expire(struct rref_ctx *ctx, int64_t now);                  /* [lock] */
bool rc_ops_pending(const struct rref_ctx *ctx);                        /* [lock] false: none is under way, but complete ones may be kept */
void rc_ops_fail_peer(struct rref_ctx *ctx, uint32_t peer, int status, const char *text); /* [lock] */
void rc_ops_fail_all(struct rref_ctx *ctx, int status, const char *text); /* [lock] */
void rc_op_end(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text); /* [lock] */
unsigned rc_ops_calling(struct rref_ctx *ctx); /* [lock] calls and creations that wait for their answer */
void rc_op_run_then(struct rref_future *f);
int rc_make_progress(struct rref_ctx *ctx, bool slow);      /* events handled; -1: another thread is at it */
int rc_op_wait_locked(struct rref_future *f, int64_t deadline); /* [lock] which it lets go of: as rc_op_wait. turn_at is of now */
int rc_op_wait(struct rref_future *f, int64_t deadline);    /* 0 complete, -ETIMEDOUT */
int rc_op_wait_for(struct rref_future *f, int64_t timeout); /* the same, as the program says it */
/* Calls fn for those of the slots [from, from + max) that are under way, with a hold; the next slot, 0 = that was the last. [lock] */
uint32_t rc_ops_visit(struct rref_ctx *ctx, uint32_t from, uint32_t max, void (*fn)(void *arg, struct rref_future *f), void *arg);

/* What is said of a READ whose connection broke under it: nothing about the READ itself. */
static inline bool rc_read_lost(int status)
{
	return status == -ECONNRESET || status == -ETIMEDOUT || status == -ENOTCONN;
}

/* read.c */
void rc_read_start(struct rref_future *f, bool locked);     /* loc and handle are set */
void rc_read_start_many(struct rref_ctx *ctx, struct rc_peer *p, struct rref_future **f, unsigned n);
void rc_read_pump(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] */
void rc_read_fail(struct rref_future *f, int status);       /* [lock] a read that waited for its peer; nothing in flight */
void rc_read_event(struct rref_ctx *ctx, uint64_t cookie, int status, int wc); /* [lock] */
void rc_read_ended(struct rref_future *f, int status, int wc); /* [lock] the only READ of f's, which brought no other's value */
int rc_read_begin(struct rref *ref, struct rref_future *f, int64_t deadline); /* finds the way: post, wait, or fail */
int rc_read_whole(struct rref *ref, int64_t timeout, struct rref_view **out); /* and waits for it */
/*
 * A quick read that takes long, whose READ is on its way into v: 1, it is over, with its status. Else as rc_read_whole; *fl is
 * another flight then, and v is not the caller's any more.
 */
int rc_read_go_on(struct rref *ref, struct rc_flight **fl, struct rc_landing *v, int64_t timeout, struct rref_view **out, int *status);
void rc_read_taken(struct rref_future *f, struct rref *ref, struct rc_landing *v); /* f is such a read, or another thread's */
void rc_wait_begin(struct rref *ref, struct rref_future *f, enum rc_op_kind kind, int64_t deadline); /* [lock] for value or location */
void rc_read_turn(struct rref_future *f);                   /* [lock, let go of meanwhile] of a payload */
/* verdict.c: 0, or -errno with f->text */
int rc_read_explain(struct rref_future *f);                 /* of f->read_status */
int rc_read_check(struct rref_future *f);                   /* of the header, and of the segments */

/* quick.c */
enum { RC_QUICK_NOT, RC_QUICK_LARGE, RC_QUICK_FIRST };      /* and on, by class of landing block */
uint64_t rc_quick_serial(void);
uint8_t rc_quick_class(const struct rref_ctx *ctx, uint32_t owner, const struct rp_location *loc);
int rc_quick_read(struct rref *ref, int64_t timeout, struct rref_view **out);
void rc_quick_fence(struct rref_ctx *ctx, struct rc_peer *p);/* conn is NULL: waits for those who still use it */
void rc_quick_counts(struct rref_ctx *ctx, struct rref_stats *s); /* reads, doorbells, read_bytes, landing_bytes: without what threads keep */
void rc_quick_close(struct rref_ctx *ctx);
void rc_quick_fork_child(void);

/*
 * flight.c: of a thread, for one READ at a time. begin: the READ's cookie; undo: it was not posted. wait: true, it is over, with
 * the READ's status; false, it takes long. leave: false, it is over; true, f is the READ's operation from here on, or without one
 * v, its landing buffer, is given back when it ends; and *fl is another flight, NULL if there is no memory.
 */
struct rc_flight *rc_flight_get(struct rref_ctx *ctx);      /* NULL: no memory. Callbacks may run meanwhile */
void rc_flight_put(struct rc_flight *fl);                   /* NULL is accepted */
uint64_t rc_flight_begin(struct rc_flight *fl);
void rc_flight_undo(struct rc_flight *fl);
bool rc_flight_wait(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_flight *fl, int *status); /* callbacks may run */
bool rc_flight_leave(struct rref_ctx *ctx, struct rc_flight **fl, struct rref_future *f, struct rc_landing *v, int *status); /* [lock] */
bool rc_flight_event(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status, int wc); /* [lock] false: not of a flight */
void rc_flights_fail(struct rref_ctx *ctx, int status);     /* [lock] no device touches their landing places any more */
void rc_flights_close(struct rref_ctx *ctx);

/* peer.c */
int rc_peers_open(struct rref_ctx *ctx);
void rc_peers_close(struct rref_ctx *ctx);                  /* [lock] */
int rc_peer_want(struct rref_ctx *ctx, struct rc_peer *p);  /* [lock] 0 (UP or on the way) or -errno */
void rc_peer_event(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev); /* [lock] */
void rc_peer_fence(struct rref_ctx *ctx, struct rc_peer *p, int status, const char *why); /* [lock] */
void rc_peer_stop_reads(struct rref_ctx *ctx, struct rc_peer *p);           /* [lock] the fence's first step */
void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p);           /* [lock] from here on reads may be posted */
void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn, int err, const char *text); /* [lock] */
void rc_peer_end_grace(struct rref_ctx *ctx, struct rc_peer *p);             /* [lock] */
void rc_peer_tick(struct rref_ctx *ctx, int64_t now);       /* [lock] */

/* stall.c */
void rc_stall_beat(struct rref_ctx *ctx, int64_t now);               /* [lock] progress is made */
int64_t rc_stall_own(struct rref_ctx *ctx);                          /* ns that this worker stood still a moment ago, if too long; or 0 */
/* What a lost connection means: -EOWNERDEAD, or that this worker stood still. buf: the words. */
int rc_stall_lost(struct rref_ctx *ctx, const struct rc_peer *p, const char *what, char *buf, size_t size);
void rc_stall_begin(struct rref_ctx *ctx, struct rc_peer *p);        /* [lock] a session is up */
void rc_stall_end(struct rc_peer *p);                                /* [lock] */
void rc_stall_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now); /* [lock] may fence */
void rc_stall_event(struct rref_ctx *ctx, struct rc_peer *p, int status); /* [lock] p may be NULL */
void rc_stall_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t still_ns); /* [lock] */
/* text, and that this worker is stalled if it is; buf has room for the sum. */
const char *rc_stall_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf, size_t size);

/* send.c */
int rc_send_open(struct rref_ctx *ctx);                                      /* 0, or -errno with a text */
void rc_send_close(struct rref_ctx *ctx);
int rc_send(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m);  /* [lock] queues when it must */
int rc_send_encoded(struct rref_ctx *ctx, uint32_t to, void *bytes, uint32_t length); /* [lock] the same */
void rc_tell(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m); /* [lock] the same; who cannot be told is fenced */
struct rc_outgoing *rc_outgoing_make(const void *bytes, uint32_t length);    /* NULL: no memory; free */
void rc_outgoing_over(struct rref_ctx *ctx, struct rc_outgoing *o);          /* [lock] free, or kept for the next */
void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p);                 /* [lock] */
void rc_send_tick(struct rref_ctx *ctx, int64_t now);                        /* [lock] */
int64_t rc_send_due(const struct rref_ctx *ctx);                             /* [lock] when the next tick has work; INT64_MAX = none */
void rc_send_drop_queue(struct rref_ctx *ctx, struct rc_peer *p);            /* [lock] */

/* [lock] A message came: what it asks for or makes room for. */
static inline void rc_send_after(struct rref_ctx *ctx, struct rc_peer *p)
{
	if (unlikely(p->unacked.owed >= RC_ACK_EVERY || p->nr_queued))
		rc_send_more(ctx, p);
}

/* dispatch.c: messages and effects */
void rc_message(struct rref_ctx *ctx, struct rc_peer *from, const void *data, uint32_t length); /* [lock] */
void rc_effects(struct rref_ctx *ctx);                                       /* [lock] */
int rc_step(struct rref_ctx *ctx, struct rp_event *ev, struct rp_fork *rec); /* [lock] step + effects; fills in ev->now */
void rc_barrier_check(struct rref_ctx *ctx);                                 /* [lock] */
bool rc_barrier_misses(const struct rref_ctx *ctx, uint32_t rank);           /* [lock] rank 0: is it this one that has not come? */

/* functions.c */
const struct rc_function *rc_function_find(struct rref_ctx *ctx, const char *name, size_t length); /* NULL: there is none */

/* call.c, reply.c, serve.c, answer.c, incoming.c, pool.c */
void rc_call_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m);  /* [lock] */
void rc_reply_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m); /* [lock] */
void rc_run_call(struct rref_call *call);                                     /* no lock held */
void rc_incoming_begin(struct rref_ctx *ctx, struct rc_incoming *in, const struct rp_fork *recs, uint32_t nr, uint32_t from);
bool rc_incoming_room(struct rc_incoming *in, uint32_t nr);
void rc_incoming_release(struct rc_incoming *in); /* and what came with them */
void rc_incoming_drop(struct rref_ctx *ctx, const struct rp_fork *recs, uint32_t nr, struct rc_peer *from); /* [lock] */
int rc_make_forks(struct rref_ctx *ctx, const struct rref_args *args, uint32_t to, struct rp_fork *recs); /* [lock] */
void rc_undo_forks(struct rref_ctx *ctx, const struct rref_args *args, uint32_t to, const struct rp_fork *recs, size_t nr); /* [lock] */
void rc_call_unsent(struct rref_ctx *ctx, uint32_t to, const struct rw_call *c, int status, const char *text); /* [lock] */
int rc_wait_for_room(struct rref_ctx *ctx, struct rc_peer *p, uint64_t bytes, int64_t deadline); /* [lock, let go of meanwhile] */
void rc_cancel_message(struct rref_ctx *ctx, struct rc_peer *from, uint64_t call_id); /* [lock] */
void rc_calls_fenced(struct rref_ctx *ctx, const struct rc_peer *p); /* [lock] */
/* [lock] Can what came in that session still be answered, and be of use to anyone? */
static inline bool rc_same_session(const struct rref_ctx *ctx, uint32_t rank, uint32_t epoch)
{
	const struct rc_peer *p = &ctx->peers[rank];

	if (unlikely(rank == ctx->rank))
		return at_load(&ctx->state) != RC_CTX_SHUT;
	return p->state == RC_PEER_UP && p->epoch == epoch;
}
int rc_check_args(struct rref_ctx *ctx, const struct rref_args *args);
int rc_pool_open(struct rref_ctx *ctx, unsigned nr_threads, unsigned max_waiting);
void rc_pool_close(struct rref_ctx *ctx);
void rc_pool_push(struct rref_ctx *ctx, struct rref_call *call); /* [lock] */
void rc_pool_blocking(struct rref_ctx *ctx, int delta);  /* this pool thread is about to wait (+1, not under the lock) / is back (-1) */
bool rc_may_wait(const struct rref_ctx *ctx);            /* not in a callback or inline handler */
void rc_call_put(struct rref_call *call);
void rc_calls_close(struct rref_ctx *ctx);
int rc_answer(struct rref_call *call, int status, const char *text, const struct rref_args *result); /* no lock held; once */
void rc_call_spare(struct rref_ctx *ctx, struct rref_call *call); /* [lock] nobody has it any more: kept, or freed */
bool rc_answer_nothing(struct rref_call *call); /* no lock held; by who runs its handler, and has the call no more if true */
bool rc_in_callback(void);
unsigned rc_callback_depth(void);
void rc_callback_enter(void);
void rc_callback_leave(void);

/* stats.c, leak.c */
static inline void rc_count_sent(struct rref_ctx *ctx, struct rc_peer *p, const void *message, uint32_t length) /* [lock] */
{
	at_add_mine(&ctx->n.sent, 1);
	ctx->n.sent_by_kind[rw_kind(message, length)]++;
	ctx->n.sent_bytes += length;
	p->traffic.sent++;
	p->traffic.sent_bytes += length;
}
static inline void rc_count_received(struct rref_ctx *ctx, struct rc_peer *p, const void *message, uint32_t length) /* [lock] */
{
	at_add_mine(&ctx->n.received, 1);
	ctx->n.received_by_kind[rw_kind(message, length)]++;
	ctx->n.received_bytes += length;
	p->traffic.received++;
	p->traffic.received_bytes += length;
	p->heard_at = likely(ctx->turn_at) ? ctx->turn_at : rc_coarse_ns();
}
const char *rc_site_take(void);                              /* of the call under way; NULL but in debug builds */
/* What a graceful shutdown leaves behind. rc_leaks_handles: before they are ended, those that the program never released. */
void rc_leaks_handles(struct rref_ctx *ctx);
void rc_leaks_rest(struct rref_ctx *ctx, char *summary, size_t size, uint64_t *leaks, uint64_t *stuck); /* what is left now */
void rc_leaks_free(struct rref_ctx *ctx);

/* nested.c */
int rc_take_serve(struct rref_call *call, char *text, size_t size); /* no lock held; the text of its error */

/* payload.c */
int rc_payload_make(struct rref_ctx *ctx, uint32_t to, const struct rref_args *a, int64_t deadline, struct rc_payload **out); /* NULL: not needed */
int rc_payload_fill(struct rref_ctx *ctx, struct rc_payload *p, const struct rref_args *a, struct rp_location *loc); /* [lock] shares, publishes */
void rc_payload_undo(struct rref_ctx *ctx, struct rc_payload *p);                              /* [lock] what was shared */
void rc_payload_offer(struct rref_ctx *ctx, struct rc_payload *p, uint32_t what, uint64_t call_id); /* [lock] consumed: the message went out */
static inline bool rc_payload_needed(const struct rref_args *a)
{
	return a && (a->length + a->meta_length > RW_INLINE_MAX || a->nr_refs > RW_REFS_MAX) && (a->length || a->nr_refs);
}
void rc_payload_drop(struct rc_payload *p);                                                    /* one that was not offered */
void rc_payload_free(struct rc_payload *p);                                                    /* one that this worker handed to itself */
void rc_payload_done(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_done *d);     /* [lock] */
void rc_payloads_fenced(struct rref_ctx *ctx, const struct rc_peer *p);                        /* [lock] */
void rc_fetch_begin(struct rref_ctx *ctx, struct rc_incoming *in, struct rc_peer *from);       /* [lock] loc ... nr_refs, fetched are set */
void rc_fetch_over(struct rref_ctx *ctx, struct rc_incoming *in);                              /* [lock] its READ ended */
void rc_fetch_resume(struct rref_ctx *ctx, struct rc_incoming *in);                            /* [lock] its READ may go on */
void rc_fetch_cancel(struct rref_ctx *ctx, struct rc_incoming *in);                            /* [lock] */
void rc_fetch_refuse(struct rref_ctx *ctx, struct rc_peer *from, uint32_t what, uint64_t call_id, int status); /* [lock] */
static inline uint32_t rc_bucket(const struct rref_ctx *ctx, uint32_t rank, uint64_t call_id)
{
	uint64_t x = (call_id ^ ctx->bucket_seed) * UINT64_C(0x9e3779b97f4a7c15) + rank;

	return (uint32_t)((x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93) >> 40) & (RC_CALL_BUCKETS - 1);
}

/* progress.c */
int rc_progress_locked(struct rref_ctx *ctx, bool slow);     /* [lock] returns events handled */
int rc_progress_turns(struct rref_ctx *ctx, bool slow, unsigned looks); /* [lock] */
void rc_progress_reads(struct rref_ctx *ctx, const struct rc_peer *p); /* [lock] a look for finished READs from p only */
int rc_poller_open(struct rref_ctx *ctx);
void rc_poller_close(struct rref_ctx *ctx);
void rc_kick(struct rref_ctx *ctx);                          /* there is work: wake the poller if it sleeps */
bool rc_arm(struct rref_ctx *ctx);                           /* [lock] true: nothing to do, sleep */
void rc_disarm(struct rref_ctx *ctx);                        /* [lock] */
int64_t rc_next_timer(struct rref_ctx *ctx, int64_t now);    /* [lock] ns until the next tick */

#endif
