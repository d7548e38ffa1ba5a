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
#include "base/child.h"
#include "base/random.h"
#include "base/thread.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/group/group.h"
#include "core/base/hook.h"
#include "core/op/future.h"
#include "core/session/peer.h"
#include "core/value/ref.h"
#include "core/session/resume.h"
#include "core/base/slab.h"
#include "core/protocol/protocol.h"
#include "rref.h"
#include "core/wire/wire.h"
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
	struct rc_hook hook;         /* [lock] its node: also of the pool's queues, and of the spare ones */
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
	uint64_t resumed, sent_again, not_again;                           /* [lock] */
	_Atomic uint64_t landing_bytes, value_bytes, payload_bytes, nested;
	_Atomic uint64_t mems, mem_bytes, wrapped_bytes;
	_Atomic uint64_t inline_calls; /* beside calls: plain ones of inline functions; written under the lock */
	uint64_t sent_by_kind[RW_NR_KINDS], received_by_kind[RW_NR_KINDS]; /* [lock] */
	uint64_t sent_bytes, received_bytes;                               /* [lock] */
	uint64_t sessions;                                                 /* [lock] */
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
	_Atomic uint32_t state;           /* enum rc_ctx_state */
	uint32_t fork_generation;         /* [const] */
	uint32_t gate;                    /* [const] the same, or NO_GATE: with a scope hook each call takes a closer look */
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

	struct rc_reader *readers;        /* read/fast.c */
	struct rc_flight *flights;        /* [lock] read/in_flight.c */

	cache_aligned _Atomic uint32_t lock; /* [atomic] enum in lock.c */
	_Atomic uint32_t lock_wanted;     /* threads that wait for the lock: pollers make way */
	struct rp *machine;               /* [lock] */
	bool in_effects;                  /* [lock] */
	bool duplicate;                   /* [lock] the last OWN was of an id known already */
	struct list self_queue;           /* [lock] struct rc_outgoing */
	struct list spare_messages;       /* [lock] small ones that came there; send.c */
	uint32_t nr_spare_messages;       /* [lock] */
#define RC_SPARE_DROPS 32u
	struct rc_incoming *spare_drop[RC_SPARE_DROPS]; /* [lock] incoming.c */
	uint32_t nr_spare_drops;			/* [lock] */
	struct rc_slabs handles, remotes; /* [lock] every handle: struct rref; those that are struct rc_remote */
	struct list mems, wraps;          /* [lock] memory that the program registered, values that wrap it; wrap.c */
	struct list wraps_out;            /* [lock] values whose release callbacks run now */
	struct list hooks;                /* [lock] struct rc_hook: the program's code that is due */
	_Atomic uint32_t nr_hooks;        /* of these; written under the lock */
	struct rc_log_lines *lines;       /* [const] log.c */
	_Atomic uint32_t log_due;         /* sc: there are lines that no hook was queued for; partner: rc_arm */
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
	bool poller_asleep;               /* [lock] it sleeps, or is about to, or was woken and has not got the lock yet */
	int64_t polled_slow_at;           /* [lock] */
	uint64_t nr_refused;              /* [lock] connections, for the log */
	char lack_here[RP_TEXT_MAX];      /* [lock] writes, once: see rc_contact_lacks */
	int64_t turn_at;                  /* [lock] the clock, as who makes a turn read it; 0: not for this one */
	uint32_t quick_turns;             /* [lock] of rref_progress that did not look at the clock */
	_Atomic uint32_t more_patience;   /* ns that waiters spin beyond the usual; see future.c */
	unsigned arms;                    /* [lock] enum rc_arm: sleepers whom the devices would wake */
	const void *progress_by;          /* [lock] the last thread in rref_progress, and when; see hook.c */
	int64_t progress_at;

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
	uint64_t ops_seen, spare_seen;            /* [lock] op_free and op_spare when the slab was scanned last */
	int64_t ops_scanned_at, ops_due;          /* [lock] when, and the first deadline of what was under way then */
	unsigned ops_quiet;                       /* [lock] scans since those two moved that found nothing under way */
	_Atomic(struct rc_landing *) cache[RC_CACHE_CLASSES][RC_CACHE_SLOTS];
	_Atomic(struct rc_landing *) large[RC_LARGE_SLOTS];

	/* poller */
	struct rc_hands *hands;                   /* [const] NULL: manual mode. poller.c */
	_Atomic bool has_poller;
	struct rc_waiter *device_sleeper;         /* [lock] manual mode: it sleeps on the devices */
	struct list sleepers;                     /* [lock] the other waiters; wait.c */
	enum rref_progress_mode mode;
	int poller_core;
	int epfd, kickfd;
	int fd, loopfd;                           /* rref_ctx_fd; what wakes the event loop alone */
	int timer_fd;                             /* of the manual mode's loop; -1 = none */
	bool timer_set;                           /* [lock] */
	_Atomic uint32_t loop;                    /* enum rc_loop; sc: partner of the completions of futures */
	_Atomic uint32_t loop_told;               /* loopfd was written, and not read yet */
	const void *loop_thread;                  /* [lock] that armed last */
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
	uint64_t barrier_sent, barrier_done;      /* [lock] */
	uint64_t barrier_busy;                    /* [lock] bit n % 64: somebody was busy at barrier n, or since the one before */
	uint32_t *barrier_seen;                   /* [lock] rank 0: highest barrier each worker reached */
	struct rref_future *barrier_op;           /* [lock] who waits for one here */
	_Atomic uint32_t serving, serve_stop;     /* a thread is in rref_serve; it is to end */
	bool came;                                /* [lock] it has begun the first barrier */
	bool came_sent;                           /* [lock] and told rank 0 ... */
	uint32_t came_fences;                     /* [lock] ... behind that many fences of its session */
	struct rc_calm came_calm;                 /* [lock] at that moment */
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
	struct rc_inject *inject;                 /* [lock] NULL but in tests: session/inject.h */
	struct rc_counters n;
	int64_t started_at;                       /* [const] ages in the machine count from here */
	struct rc_leaks *leaks;                   /* [lock] the report of the graceful shutdown; NULL = nothing to tell */
	void (*log)(void *ctx, enum rref_log_level level, const char *text);
	void *log_ctx;
	enum rref_log_level log_level;
};

/* ctx.c */
/* log.c */
int rc_log_open(struct rref_ctx *ctx);
void rc_log_flush(struct rref_ctx *ctx); /* delivers what is due, for the end of a context */
void rc_log_close(struct rref_ctx *ctx);
void rc_log_schedule(struct rref_ctx *ctx); /* [lock] lines are due */
void rc_log(struct rref_ctx *ctx, enum rref_log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void rc_limits_raise(struct rref_ctx *ctx);
void rc_ctx_destroy(struct rref_ctx *ctx); /* what rref_init made, in reverse; works at every stage of it */
int rc_fail_child(void); /* -ECHILD */
int rc_enter_slow(const struct rref_ctx *ctx);
#define RC_NO_GATE UINT32_MAX
bool rc_in_scope_hook(void);   /* scope.c */

static inline bool rc_usable(const struct rref_ctx *ctx)
{
	return at_load_acq(&ctx->state) == RC_CTX_RUNNING && ctx->gate == rb_generation();
}

/* 0 if the context may be used by this process now. */
static inline int rc_enter(struct rref_ctx *ctx)
{
	return likely(ctx && rc_usable(ctx)) ? 0 : rc_enter_slow(ctx);
}

/* A child made by fork() shares memory and devices with its parent: it may look, but neither write, wait nor free. */
static inline bool rc_is_child(const struct rref_ctx *ctx)
{
	return unlikely(ctx->fork_generation != rb_generation());
}

/* A child has neither the view, nor what it shows. */
static inline bool rc_view_lost(const struct rref_view *v)
{
	return unlikely(rb_generation() != RB_FIRST_GENERATION) &&
	       (rb_is_parents_slow(v) || rc_is_child(v->ctx));
}

/* No call is allowed: in a child, and in a scope hook. The errno and its text: rc_enter_slow. */
static inline bool rc_is_barred(const struct rref_ctx *ctx)
{
	return unlikely(ctx->gate != rb_generation()) && (rc_is_child(ctx) || rc_in_scope_hook());
}

/* The machine's time: tenths of a second since the context was made, in 13 years no two alike. The coarse clock will do. */
#define RC_AGE_NS (100 * NSEC_PER_MSEC)
static inline int64_t rc_coarse_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (int64_t)ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}
static inline uint32_t rc_age_at(const struct rref_ctx *ctx, int64_t now)
{
	return (uint32_t)((now - ctx->started_at) / RC_AGE_NS);
}
static inline uint32_t rc_age_now(const struct rref_ctx *ctx)
{
	return rc_age_at(ctx, rc_coarse_ns());
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

/* rc_wraps_return has something to do. */
static inline bool rc_wraps_due(const struct rref_ctx *ctx)
{
	return unlikely(at_load_sc(&ctx->returned));
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
void rc_unlock(struct rref_ctx *ctx); /* and does the library's own work that was deferred; never the program's */
void rc_unlock_bare(struct rref_ctx *ctx); /* and runs nothing: for who takes it again and lets go of it then */
void rc_pause(unsigned *turn); /* between two looks at something that others will do: at first a moment, then up to 1 ms */
void rc_defer(struct rref_ctx *ctx, struct rc_work *w); /* [lock] */

/* memory.c: devices' registrations, arenas, values, landing blocks */
int rc_memory_open(struct rref_ctx *ctx, const struct rref_options *opt);
void rc_memory_close(struct rref_ctx *ctx);
int rc_region_reg(struct rref_ctx *ctx, enum rv_access access, void *base, size_t length, int fd, void **cookie);
int rc_region_dereg(void *ctx, void *cookie); /* 0, or -errno: the memory must be kept */
void rc_beacon(struct rref_ctx *ctx, enum rv_kind kind, struct rw_auth *out);
static inline uint64_t rc_random64(void)
{
	return rb_random64();
}
uint64_t rc_word(void); /* a value's word: random, not 0 */
/* types.c */
void rc_type_located(struct rref_ctx *ctx, struct rref_future *f, const struct rp_location *loc); /* [lock] */
void rc_type_query(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_type_info *q);     /* [lock] */
void rc_type_answer(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_type_info *a);    /* [lock] */
void rc_type_unsent(struct rref_ctx *ctx, const struct rw_type_info *q, int err, const char *why);  /* [lock] */

/* read/merge.c: reads of one message each, as few READs: f[first[i]] to before f[first[i + 1]] are brought by r[i]. */
struct rc_runs {
	unsigned nr, first[RC_BATCH_MAX + 1];
	struct rv_read r[RC_BATCH_MAX];
	struct rv_sge sge[(RC_BATCH_MAX + 1) * RV_READ_SGE]; /* one more: `more` of the last may point behind what it has */
};
/* Orders f[0..n), and sets each up as one that is at a device. f: prepared, of p; n up to RC_BATCH_MAX. */
void rc_runs_build(const struct rc_peer *p, struct rref_future **f, unsigned n, struct rc_runs *runs);
void rc_run_undo(struct rref_future *f); /* it is not: its READ was not posted */

/* What is said of a READ whose connection broke under it: nothing about the READ itself. */
static inline bool rc_read_lost(int status)
{
	return status == -ECONNRESET || status == -ETIMEDOUT || status == -ENOTCONN || status == -EIO;
}

/* read/split.c; all [lock] */
bool rc_pieces_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn); /* false: it has to wait for a slot */
bool rc_piece_ended(struct rref_future *f, struct rc_peer *p); /* of which f->outstanding tells already; whether it goes on */
void rc_pieces_go_on(struct rc_peer *p);  /* pieces have ended: those have their turn for which there is room */
void rc_pieces_stop(struct rc_peer *p);   /* its connection ends */
/* Any provider's. The next pieces, at most max, into r; advances f->next and f->header_asked. */
unsigned rc_pieces_build(struct rref_future *f, uint64_t max_msg, struct rv_read *r, unsigned max);
/* Takes that back for r[from..n), which could not be posted. */
void rc_pieces_unbuild(struct rref_future *f, const struct rv_read *r, unsigned from, unsigned n);

/* read.c */
bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg); /* one READ brings it, header and all */
bool rc_read_all_asked(const struct rref_future *f);
bool rc_read_hard_failure(int posted);      /* of post_reads: not for want of a slot or a connection */
void rc_read_count_posted(struct rref_ctx *ctx, int posted);
void rc_read_wait(struct rref_future *f, struct rc_peer *p, bool locked); /* for a connection, or a slot */
void rc_read_start(struct rref_future *f, bool locked);     /* loc and handle are set */
void rc_read_start_many(struct rref_ctx *ctx, struct rc_peer *p, struct rref_future **f, unsigned n);
void rc_read_pump(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] */
void rc_read_fail(struct rref_future *f, int status);       /* [lock] at once, or when its last piece has come back */
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
/* read/check.c: 0, or -errno with f->text */
int rc_read_explain(struct rref_future *f);                 /* of f->read_status */
int rc_read_check(struct rref_future *f);                   /* of the header, and of the segments */

/* read/fast.c */
enum { RC_QUICK_NOT, RC_QUICK_LARGE, RC_QUICK_FIRST };      /* and on, by class of landing block */
uint64_t rc_quick_serial(void);
uint8_t rc_quick_class(const struct rref_ctx *ctx, uint32_t owner, const struct rp_location *loc);
int rc_quick_read(struct rref *ref, int64_t timeout, struct rref_view **out);
void rc_quick_spares_put(struct rref_ctx *ctx);
void rc_quick_fence(struct rref_ctx *ctx, struct rc_peer *p);/* conn is NULL: waits for those who still use it */
void rc_quick_counts(struct rref_ctx *ctx, struct rref_stats *s); /* reads, doorbells, read_bytes, landing_bytes: without what threads keep */
void rc_quick_close(struct rref_ctx *ctx);
void rc_quick_fork_child(void);

/*
 * read/in_flight.c: of a thread, for one READ at a time. begin: the READ's cookie; undo: it was not posted. wait: true, it is over, with
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
/* [lock] The key of the pair, made once. NULL: -EKEYREJECTED. */
const struct rc_key *rc_peer_key(struct rref_ctx *ctx, struct rc_peer *p);
/* [lock] By p->hs, before anything is sent over conn. 0 or -ENETRESET. */
int rc_peer_seal(struct rc_peer *p, struct rv_conn *conn, bool is_client);
/* [lock] CONNECTED of our link: 0 and the proof, or -errno. */
int rc_peer_answered(struct rc_peer *p, const struct rv_event *ev, uint8_t proof[RC_MAC_BYTES]);
int rc_peer_want(struct rref_ctx *ctx, struct rc_peer *p);  /* [lock] 0 (UP or on the way) or -errno */
void rc_peer_fence(struct rref_ctx *ctx, struct rc_peer *p, int status, const char *why); /* [lock] */
void rc_peer_stop_reads(struct rref_ctx *ctx, struct rc_peer *p);           /* [lock] the fence's first step */
void rc_peer_open_reads(struct rref_ctx *ctx, struct rc_peer *p);           /* [lock] from here on reads may be posted */
void rc_peer_end_grace(struct rref_ctx *ctx, struct rc_peer *p);             /* [lock] */
void rc_peer_tick(struct rref_ctx *ctx, int64_t now);       /* [lock] */

/* peer_event.c */
void rc_peer_event(struct rref_ctx *ctx, struct rc_device *d, const struct rv_event *ev); /* [lock] */
/* [lock] A READ has ended. p may be NULL. */
void rc_peer_read(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status, int wc);
void rc_peer_refuse(struct rref_ctx *ctx, struct rc_device *d, struct rv_conn *conn, int err,
		    const char *text); /* [lock] */

/* contact.c: attempts at a session */
void rc_contact_begin(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] an attempt of either side begins */
void rc_contact_up(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] the peer has answered */
void rc_contact_over(struct rref_ctx *ctx, struct rc_peer *p, const char *why); /* [lock] it came to nothing; what waits goes on waiting */
/* [lock] here: for want of what; NULL = there */
void rc_contact_lacks(struct rref_ctx *ctx, struct rc_peer *p, const char *here);
/* [lock] The same, or the fence if err is a refusal. reason: the peer's words, or NULL. */
void rc_contact_failed(struct rref_ctx *ctx, struct rc_peer *p, int err, const char *reason);
void rc_contact_lost(struct rref_ctx *ctx, struct rc_peer *p); /* [lock] its session was fenced because nothing answered */
void rc_contact_tick(struct rref_ctx *ctx, struct rc_peer *p, int64_t now); /* [lock] */
int64_t rc_contact_due(const struct rref_ctx *ctx, const struct rc_peer *p); /* [lock] when it will be tried again; INT64_MAX = never */
/* text, and since when this worker has not answered, into buf, which has room for the sum. False: it has, or was not asked. */
bool rc_contact_words(struct rref_ctx *ctx, uint32_t rank, const char *text, char *buf, size_t size);

/* down.c */
void rc_peer_is_down(struct rref_ctx *ctx, struct rc_peer *p, int status); /* [lock] it was alive */

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
/* Returns text, or "timed out", with news of the silent worker. buf: RREF_TEXT_SIZE bytes. */
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
/* [lock] Takes back a call that is still queued, and what it shared. False: it is not. */
bool rc_send_withdraw(struct rref_ctx *ctx, struct rc_peer *p, uint64_t call_id);
void rc_send_unproved(struct rc_peer *p); /* [lock] forgets the proof of an attempt that came to nothing; the queue stays */

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
int rc_step_at(struct rref_ctx *ctx, struct rp_event *ev, int64_t now);      /* [lock] the same, where the clock was read just now */
void rc_barrier_check(struct rref_ctx *ctx);                                 /* [lock] */
bool rc_barrier_misses(const struct rref_ctx *ctx, uint32_t rank);           /* [lock] rank 0: is it this one that has not come? */

/* functions.c */
const struct rc_function *rc_function_find(struct rref_ctx *ctx, const char *name, size_t length); /* NULL: there is none */

/* call.c, reply.c, serve.c, answer.c, incoming.c, pool.c */
void rc_call_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m);  /* [lock] */
void rc_reply_message(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_message *m); /* [lock] */
void rc_incoming_begin(struct rref_ctx *ctx, struct rc_incoming *in, const struct rp_fork *recs, uint32_t nr, uint32_t from);
int rc_incoming_open(struct rref_ctx *ctx); /* 0, or -errno with a text */
void rc_incoming_close(struct rref_ctx *ctx);
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
void rc_pool_blocking(int delta); /* as rc_blocking, which calls it; does nothing on other threads */
bool rc_may_wait(const struct rref_ctx *ctx);            /* not in a callback or inline handler */
void rc_call_put(struct rref_call *call);
void rc_calls_close(struct rref_ctx *ctx);
int rc_answer(struct rref_call *call, int status, unsigned about, const char *text, const struct rref_args *result); /* no lock held; once */
void rc_call_spare(struct rref_ctx *ctx, struct rref_call *call); /* [lock] nobody has it any more: kept, or freed */
bool rc_answer_nothing(struct rref_call *call); /* no lock held; by who runs its handler, and has the call no more if true */
/*
 * In a child of fork(2), by its only thread: what the parent's thread was in the middle of is
 * over.
 */
void rc_callback_fork_child(void);
void rc_hands_fork_child(void);
void rc_scopes_fork_child(void);
void rc_pool_fork_child(void);

/* shutdown.c, serving.c */
/*
 * Begins or goes on to wait for a barrier: f ends with it. Rank 0 is told, unless it was since the
 * last fence. Returns the error of telling it; f waits all the same. [lock, let go of meanwhile]
 */
int rc_barrier_come(struct rref_ctx *ctx, struct rref_future *f, uint64_t number, struct rc_calm *calm,
		    int64_t deadline);
void rc_serve_look(struct rref_ctx *ctx);                    /* [lock] */
void rc_serve_end(struct rref_ctx *ctx); /* no thread is in rref_serve, or will be: closing is set */

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
int rc_payload_fill(struct rref_ctx *ctx, struct rc_payload *p, const struct rref_args *a,
		    struct rp_location *loc, uint8_t *key); /* [lock] shares, publishes */
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
void rc_progress_reads(struct rref_ctx *ctx, const struct rc_peer *p); /* [lock] a look for a finished READ of p's device only */
int rc_poller_open(struct rref_ctx *ctx);
void rc_poller_close(struct rref_ctx *ctx);
void rc_kick(struct rref_ctx *ctx);                          /* there is work: wake the poller if it sleeps */
void rc_progress_pass_on(struct rref_ctx *ctx, bool slow, int n); /* [lock] after a turn that may have taken a sleeper's wake-up */
/* A sleeper on the devices: its bit. Returns true if there is nothing to do: sleep. Then, or if false: rc_disarm. [lock] */
enum rc_arm { RC_ARM_POLLER = 1, RC_ARM_WAITER = 2, RC_ARM_LOOP = 4 };
bool rc_arm(struct rref_ctx *ctx, enum rc_arm who);
void rc_disarm(struct rref_ctx *ctx, enum rc_arm who);
/* [lock] Hooks wait: all hands are away, or in the manual mode rc_hooks_deep. */
bool rc_hooks_blocked(const struct rref_ctx *ctx);

/* [lock] serve.c: calls for inline handlers go to the pool, since hooks are blocked. */
void rc_calls_to_pool(struct rref_ctx *ctx);
const void *rc_this_thread(void);                            /* not NULL; different for each */
/* The event loop. NONE: there is none. DUE: something has ended since it looked. */
enum rc_loop { RC_LOOP_NONE, RC_LOOP_AWAKE, RC_LOOP_DUE, RC_LOOP_ASLEEP };
void rc_loop_tell_slow(struct rref_ctx *ctx);
static inline void rc_loop_tell(struct rref_ctx *ctx)
{
	if (unlikely(at_load_sc(&ctx->loop)))
		rc_loop_tell_slow(ctx);
}
int64_t rc_next_timer(struct rref_ctx *ctx, int64_t now);    /* [lock] ns until the next tick */

#endif
