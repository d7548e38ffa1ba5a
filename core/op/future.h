/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc_op: operations, the slab behind futures, and the references and payload of a call or reply.
 * Guards: see core/ctx.h.
 */
#ifndef RC_OP_H
#define RC_OP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/hook.h"
#include "core/base/work.h"
#include "core/protocol/protocol.h"
#include "core/wire/wire.h"
#include "rref.h"
#include "verbs/rv.h"

struct rc_scope;
struct rc_op_kind;

enum {
	RC_F_PENDING = 0,
	RC_F_COMPLETING = 1,
	RC_F_DONE = 2,
	RC_F_MASK = 3,
	RC_F_WAITERS = 4,
	RC_F_SCOPED = 8,
	RC_F_QUEUED = 16 /* the end pushes the future to its queue; queue.c */
};
/* bells that its end rings; wait.c */
#define RC_F_BELLS UINT32_C(0xffffff00)
#define RC_F_BELLS_AT 8

/* A reference that arrived in a call or reply and is on its way to being confirmed. */
struct rc_inref {
	struct rc_incoming *in;
	struct rref *handle;
};

/*
 * References that come with a call or reply and are to be confirmed. A payload may have to be READ
 * before them.
 */
struct rc_incoming {
	struct rc_inref *ref;         /* few, or malloc'ed */
	uint32_t nr, unready;	/* under the lock */
	int status;                   /* first failure */
	/* under the lock; all confirmed (or one failed) */
	void (*ready)(struct rref_ctx *ctx, struct rc_incoming *in);
	struct rref_future *future;   /* replies: the call that they answer */
	uint32_t from;                /* sender, for a payload or when the references are dropped */
	/* payload: see payload.c */
	struct rc_work work;
	/* under the lock */
	void (*fetched)(struct rref_ctx *ctx, struct rc_incoming *in, const void *data,
			const struct rp_fork *recs, uint32_t nr);
	struct rref_future *read;	/* under the lock; the READ that brings it */
	struct rref_view *body;       /* payload that the READ brought; see own */
	struct rc_payload *own;       /* payload as it is, if it comes from this worker itself */
	struct rp_location loc;
	uint64_t call_id;
	uint32_t what;                /* enum rw_payload */
	uint32_t epoch;               /* epoch of the session it was offered in */
	uint32_t data_length, nr_refs;
	bool fetching;	/* under the lock; the payload is not here yet */
	bool cancelled;	/* under the lock; the payload need not come any more */
	/* Not cleared by rc_incoming_init, but for the text's first byte. */
	char text[RP_TEXT_MAX];       /* text of status */
	uint8_t key[RW_KEY_BYTES];    /* key of a payload with references */
	struct rc_inref few[RW_REFS_MAX];
};

static inline void rc_incoming_init(struct rc_incoming *in)
{
	memset(in, 0, offsetof(struct rc_incoming, text));
	in->text[0] = 0;
}

/*
 * A future's law: an accepted operation completes exactly once. The thread that moves state PENDING
 * -> COMPLETING owns the result fields, fills them, and moves it to DONE (release). Everybody else
 * reads them after DONE (acquire). Only holders of the lock complete calls and creations. They may
 * therefore fill the fields while it is PENDING (rc_op_answered). A read that goes well needs no
 * COMPLETING: its view is put in by compare-and-swap, and then state moves (rc_op_succeed). refs: 1
 * of the program + 1 of the engine. The engine's goes when no device and no peer can touch the
 * operation any more. So a landing buffer outlives a time-out (quarantine).
 */
struct rref_future {
	_Atomic uint32_t state;       /* futex word */
	_Atomic uint32_t refs;
	_Atomic uint32_t gen;         /* generation of this slot; part of the token */
	uint32_t index;               /* [const] */
	_Atomic uint32_t next_free;   /* slab free list */
	_Atomic uint32_t then_state;  /* 0 none, 1 set, 2 fired */
	void (*then)(struct rref_future *f, void *arg);
	void *then_arg;
	struct rref_ctx *ctx;
	const struct rc_op_kind *is;  /* [const] kind, from rc_op_get on; kind.h */
	/* NULL until it is under way (set under the lock, but for reads) */
	_Atomic(const struct rc_op_kind *) kind;
	uint32_t peer;                /* worker whose value is read or whose answer is waited for */
	int status, wc_status;        /* result [op], as the fields below */
	/* NULL -> the view of a read, by compare-and-swap. RC_VIEW_TAKEN: the program has it */
	_Atomic(struct rref_view *) view;
	struct rref_future *own_next; /* link of a free own future; value/own.c */
	_Atomic int64_t deadline;     /* [atomic] CLOCK_MONOTONIC ns; INT64_MAX = none */
	/* ends with the operation; set with RC_F_SCOPED. scope.c */
	_Atomic(struct rc_scope *) scope;
	/* queue that it is in, with marks; 0 = none. queue.c has these three */
	_Atomic uintptr_t queue;
	struct rc_item queued; /* [queue] link */
	void *tag; /* [queue] */
	/* [atomic] time when a scan first saw it under way; 0 = not yet. The read path asks no
	 * clock */
	_Atomic int64_t seen_at;
	struct list node;	/* under the lock; peer->waiting, or peer->pieces.reads */
	/* hook apart from node: a read that ends while it waits is in both */
	struct rc_hook then_hook;
	struct rc_work work;	/* a large read's start or next turn */

	/* result [op] */
	const struct rc_type *type;
	char *data;
	size_t data_length;
	struct rc_incoming *incoming; /* references of a call's result; rc_call_incoming */
	struct rc_incoming *spare;    /* incoming of an earlier operation in this slot */
	char text[RREF_TEXT_SIZE];

	/* read */
	struct rref *handle;          /* pinned while the engine works; also by a creation */
	struct rp_location loc;
	struct rc_landing *landing;   /* owned by the engine until delivered */
	uint64_t offset, length;      /* payload range wanted */
	size_t look_least; /* [const] bytes from which on it ends with a look */
	uint64_t next;                /* payload bytes asked for so far */
	/* READs at the device, set before they are posted; one more while it has pieces to post.
	 * The thread that makes it 0 ends the read, or leaves that to the holder of the lock */
	_Atomic uint32_t outstanding;
	_Atomic bool posted; /* release: its range is set. Pairs with rc_read_late */
	bool is_told; /* under the lock: `work` is to tell its kind that it is late */
	/* set before posting: the connection that they are at, as in struct rc_split; 0 = it is
	 * not read in pieces */
	uint32_t pieces_at;
	_Atomic uint64_t bytes_at;    /* bytes of theirs in flight */
	/* set before posting: the next one that the same READ brings; read/merge.c */
	struct rref_future *merged_next;
	struct rc_work read_work;     /* ends it under the lock; pushed by the last READ's end */
	/* under the lock; first failure of a piece */
	int read_status, read_wc;
	bool header_asked;
	bool whole;                   /* [const] not a range: the table of segments is read too */
	bool parked;	/* under the lock; waits in the machine for its location */
	bool retried;	/* under the lock; was pumped once after it began to wait */
	/* under the lock; a READ that brought others too was refused: no more company */
	bool alone;
	/* under the lock; the connection broke, not the session: it is read again from the
	 * beginning */
	bool again;
	bool plain; /* [const] mark of a read that has the short way; read/fast.c */
	/* an error that the answer brought: rank + 1 of the worker that it is about; 0 = none */
	uint16_t about;
	/* barrier; call: references that its result must have, 0 = any */
	uint64_t number;
	bool replied;	/* under the lock; call: its answer came */
	/* [const] the read that it stands in for, held; read/again.c */
	struct rref_future *stands_for;
	struct rc_incoming *fetch;    /* purpose of a payload's READ */
};

#define RC_VIEW_TAKEN ((struct rref_view *)1)

/* Returns the view that is still in a complete future, or NULL. */
static inline struct rref_view *rc_op_view(const struct rref_future *f)
{
	struct rref_view *v = at_load_acq(&f->view);

	return v == RC_VIEW_TAKEN ? NULL : v;
}

/* Takes the view out of a complete future. */
static inline struct rref_view *rc_op_take_view(struct rref_future *f)
{
	struct rref_view *v = rc_op_view(f);

	at_store(&f->view, RC_VIEW_TAKEN);
	return v;
}

/* Returns true while f is neither complete, nor timed out or cancelled. */
static inline bool rc_op_wanted(const struct rref_future *f)
{
	return (at_load(&f->state) & RC_F_MASK) == RC_F_PENDING;
}

static inline bool rc_op_done(const struct rref_future *f)
{
	return (at_load_acq(&f->state) & RC_F_MASK) == RC_F_DONE;
}

/* Makes the error of an operation that failed the thread's. */
static inline int rc_op_error(const struct rref_future *f)
{
	return rc_fail_about(f->status, f->text, f->about ? f->about : f->peer + 1, f->about);
}

/* op.c: slots */
#define RC_OP_CHUNK 256u
/* Sets up a future in memory of zeros, as a free slot. */
void rc_op_init(struct rref_future *f, struct rref_ctx *ctx, uint32_t index);
/* Sets all but state and holds back for a new operation. Nobody else knows f. */
void rc_op_clean(struct rref_future *f, const struct rc_op_kind *kind);
int rc_ops_open(struct rref_ctx *ctx, unsigned max_ops);
void rc_ops_close(struct rref_ctx *ctx);
/*
 * Shares of the slots. The program's operations have max_ops slots. The payloads of calls that come
 * have as many again, and so do those of results. A call keeps its slot until its result is here.
 * If results needed slots of the same share, no result could come when all are taken.
 */
enum rc_op_share { RC_OP_PROGRAM = 1, RC_OP_ARGUMENTS = 2, RC_OP_RESULT = 3 };
/* Gets a slot for an operation of that kind. Waits for one until deadline. */
int rc_op_get(struct rref_ctx *ctx, const struct rc_op_kind *kind, int64_t deadline,
	      struct rref_future **out);
/* Gets a slot, and waits for no other thread. Returns -EAGAIN if it would have to. */
int rc_op_get_now(struct rref_ctx *ctx, const struct rc_op_kind *kind, struct rref_future **out);
/* Takes the slot that is at hand. Returns false if there is none. */
bool rc_op_try(struct rref_ctx *ctx, const struct rc_op_kind *kind, struct rref_future **out);
int rc_op_get_share(struct rref_ctx *ctx, enum rc_op_share share, const struct rc_op_kind *kind,
		    int64_t deadline, struct rref_future **out);
/*
 * Finds an operation by its token. Returns NULL if the generation is old. Only while the engine
 * holds it.
 */
struct rref_future *rc_op_find(struct rref_ctx *ctx, uint64_t token);
/* Does the same with a hold, for tokens from outside; rc_op_put. */
struct rref_future *rc_op_hold(struct rref_ctx *ctx, uint64_t token);
/* Returns the operation in slot index, which was published. */
struct rref_future *rc_op_at(struct rref_ctx *ctx, uint32_t index);
uint64_t rc_op_token(const struct rref_future *f);
void rc_op_put(struct rref_future *f);
uint32_t rc_ops_in_flight(const struct rref_ctx *ctx);
uint32_t rc_ops_max(const struct rref_ctx *ctx); /* max_ops, rounded up */
/* complete.c: how they end */
bool rc_op_claim(struct rref_future *f);       /* PENDING -> COMPLETING: true for one caller */
/* COMPLETING -> DONE: wakes the waiters, queues the callback. Waits for no lock. */
void rc_op_finish(struct rref_future *f);
/* Does the same. The callback is queued at once. */
needs_lock void rc_op_finish_locked(struct rref_future *f);
/*
 * PENDING -> DONE, for a result that is only a view. It is in f by then, and any thread that found
 * it there may do this. Returns whether this thread ended f. Waits for no lock.
 */
bool rc_op_succeed(struct rref_future *f);
/* Does the same. The callback is queued at once. */
needs_lock bool rc_op_succeed_locked(struct rref_future *f);
/* Claims and finishes a call that waits for its answer, and puts the engine's hold. */
needs_lock void rc_op_answered(struct rref_future *f);
/* Claims and finishes an operation with an error. */
needs_lock bool rc_op_fail(struct rref_future *f, int status, int wc, const char *text);
needs_lock void rc_ops_expire(struct rref_ctx *ctx, int64_t now);
/* Returns when expire has something to do: 0 = at the next tick, INT64_MAX = never. */
needs_lock int64_t rc_ops_due(const struct rref_ctx *ctx);
needs_lock void rc_ops_fail_peer(struct rref_ctx *ctx, uint32_t peer, int status, const char *text);
needs_lock void rc_ops_fail_all(struct rref_ctx *ctx, int status, const char *text);
needs_lock void rc_op_end(struct rref_ctx *ctx, struct rref_future *f, int status,
			  const char *text);
/* Counts calls and creations that wait for their answer. */
needs_lock unsigned rc_ops_calling(struct rref_ctx *ctx);
void rc_op_run_then(struct rref_future *f);    /* runs the callback on this thread; no lock held */
/* future.c */
/* Makes the checks that each result getter begins with. */
int rc_future_check(const struct rref_future *f, const char *what);
/* queue.c */
/* Gives f, which is complete, to its queue. A thread that takes it out may free it at once. */
void rc_queue_push(struct rref_future *f);
/*
 * Takes f out of its queue, since the program frees it. Returns true if the queue has the program's
 * hold from then on.
 */
bool rc_queue_leave(struct rref_future *f);
/* Frees the queues that are left. All operations are over. */
void rc_queues_close(struct rref_ctx *ctx);
/* wait.c */
/* Wakes the waiters of f, which is complete. old: its state before. */
void rc_wait_wake(struct rref_future *f, uint32_t old);
/* Waits as rc_op_wait does, and lets go of the lock. turn_at is of now. */
gives_lock int rc_op_wait_locked(struct rref_future *f, int64_t deadline);
int rc_op_wait(struct rref_future *f, int64_t deadline);    /* 0 complete, -ETIMEDOUT */
int rc_op_wait_for(struct rref_future *f, int64_t timeout); /* the same, as the program says it */
/*
 * Calls fn, with a hold, for each operation under way in slots [from, from + max). Returns the next
 * slot, or 0 if that was the last.
 */
needs_lock uint32_t rc_ops_visit(struct rref_ctx *ctx, uint32_t from, uint32_t max,
				 void (*fn)(void *arg, struct rref_future *f), void *arg);

#endif
