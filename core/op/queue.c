/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queues of futures, which come out in the order in which they end.
 *
 * The end of a future in a queue pushes it to a stack by one compare-and-swap. Then it looks at one
 * word, which says whether a thread waits or the descriptor is armed. A thread that takes futures
 * out has the queue's own lock, which no end touches. When its list is empty it takes the whole
 * stack, and turns it round. So each future is touched twice, however many are in the queue.
 *
 * A future has room for one queue: the word `queue`. It is 0, or the queue's address with
 *
 *   COUNTED   it was not complete when it was put in: q->added counts it
 *   FREED     its program has freed it: the thread that takes it out puts the program's hold
 *
 * RC_F_QUEUED in a future's state tells its end to push it. A complete future is pushed by the
 * thread that puts it in.
 *
 * A freed queue is used again, and its memory lives as long as the context. So a thread that has
 * pushed may look at the queue, though others have emptied and freed it meanwhile. At worst it
 * wakes a thread for nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "base/limit.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/wait.h"
#include "core/op/kind.h"

#define COUNTED ((uintptr_t)1)
#define FREED ((uintptr_t)2)
#define ARMED (UINT32_C(1) << 31) /* in q->watch */

struct rref_queue {
	struct rref_ctx *ctx; /* [const] */
	struct rref_queue *next, *next_spare; /* guarded by ctx->op.grow_lock */
	_Atomic int fd; /* -1: not made yet; then const */
	_Atomic bool reads; /* READs bring some of its futures */
	/* counted futures that were put in; counted ones that left before their end */
	_Atomic uint64_t added, left;
	/* sc: threads that take futures out */
	cache_aligned _Atomic uint32_t lock;
	struct rc_item *first; /* guarded by lock; has ended, oldest first */
	_Atomic uint64_t taken; /* counted futures that came out; written under lock */
	cache_aligned _Atomic uintptr_t ended; /* a stack of futures that have ended since */
	_Atomic uint32_t watch; /* sc: threads that wait, and ARMED */
	_Atomic uint32_t arm; /* number of the last arm; written under lock */
	_Atomic uint32_t told; /* number of the arm that ended by a write; 0: it was read since */
	_Atomic uint32_t word, sleepers; /* an end moves it while threads wait */
};

static struct rref_future *future_of(struct rc_item *item)
{
	return container_of(item, struct rref_future, queued);
}

static struct rref_queue *queue_of(uintptr_t word)
{
	return (struct rref_queue *)(word & ~(COUNTED | FREED));
}

/* ---- a future ends ---- */

/* Wakes one of the threads that wait, or all of them. */
static void wake_takers(struct rref_queue *q, bool all)
{
	RB_NO_CANCEL;

	at_add_sc(&q->word, 1);
	/* sc. Pairs with rc_wait_sleep, which counts itself before it looks at the word. */
	if (at_load_sc(&q->sleepers))
		all ? rc_wake_word(&q->word) : rc_wake_one(&q->word);
	rc_kick_waiter(q->ctx);
}

static __attribute__((noinline)) void queue_tell(struct rref_queue *q, uint32_t watch)
{
	RB_NO_CANCEL;
	uint32_t arm = at_load(&q->arm);

	if (watch & ARMED && at_load(&q->told) != arm) {
		rc_event_write(at_load(&q->fd));
		/* Comes last: a thread that stands still in between keeps no other from the write.
		 * Pairs with rref_queue_arm, which then reads. */
		at_store_rel(&q->told, arm);
	}
	if (watch & ~ARMED)
		wake_takers(q, false);
}

/* Pushes a future that has ended. Another thread may free it from then on. */
static void push_ended(struct rref_queue *q, struct rref_future *f)
{
	/* sc, as the load. Pairs with wait_for_next and rref_queue_arm. They write the word and
	 * then look at the stack. */
	rc_item_push(&q->ended, &f->queued, (uintptr_t)&f->queued);
	uint32_t watch = at_load_sc(&q->watch);

	if (unlikely(watch))
		queue_tell(q, watch);
}

void rc_queue_push(struct rref_future *f)
{
	push_ended(queue_of(at_load(&f->queue)), f);
}

/* ---- a future is put in, or leaves before it came out ---- */

/* Marks f, so that its end pushes it. Returns false if it is complete. */
static bool leave_to_its_end(struct rref_queue *q, struct rref_future *f)
{
	uint32_t s = at_load(&f->state);

	at_add(&q->added, 1);
	if (f->is->reads)
		at_store(&q->reads, true);
	/* Release. Pairs with the end, which takes the state and then pushes f. */
	while ((s & RC_F_MASK) != RC_F_DONE)
		if (at_cas_weak_ar(&f->state, &s, s | RC_F_QUEUED))
			return true;
	return false;
}

int rref_queue_add(struct rref_queue *q, struct rref_future *f, void *tag)
{
	uintptr_t none = 0;

	if (!q || !f)
		return rc_fail(EINVAL, "rref_queue_add: no %s", q ? "future" : "queue");
	if (rc_is_barred(q->ctx))
		return rc_enter_slow(q->ctx);
	if (f->ctx != q->ctx)
		return rc_fail(EINVAL, "rref_queue_add: the future is of another context");
	bool done = rc_op_done(f);

	if (!at_cas_ar(&f->queue, &none, (uintptr_t)q | (done ? 0 : COUNTED)))
		return rc_fail(EBUSY, "rref_queue_add: the future is in a queue");
	f->tag = tag;
	if (done || !leave_to_its_end(q, f))
		push_ended(q, f);
	return 0;
}

/* Takes f, whose end has not come yet, out of its queue. Returns false if the end was first. */
static bool take_pending(struct rref_future *f, uintptr_t *was)
{
	uint32_t s = at_load(&f->state);

	while ((s & RC_F_MASK) != RC_F_DONE && s & RC_F_QUEUED)
		if (at_cas_weak_ar(&f->state, &s, s & ~(uint32_t)RC_F_QUEUED)) {
			*was = at_xchg_ar(&f->queue, 0);
			return true;
		}
	return false;
}

bool rc_queue_leave(struct rref_future *f)
{
	uintptr_t was;
	bool left = take_pending(f, &was);

	if (!left) {
		was = at_load(&f->queue);
		do {
			if (!was)
				return false; /* a thread has just taken it out */
		} while (!at_cas_weak_ar(&f->queue, &was, was | FREED));
	}
	/* A future that stays is counted when it comes out. */
	if (left && was & COUNTED) {
		struct rref_queue *q = queue_of(was);

		/* sc. Pairs with wait_for_next. The queue may be empty now. */
		at_add_sc(&q->left, 1);
		if (at_load_sc(&q->watch) & ~ARMED)
			wake_takers(q, true);
	}
	return !left;
}

/* ---- futures come out ---- */

static __attribute__((noinline)) void wait_for_lock(struct rref_queue *q)
{
	RB_NO_CANCEL;
	unsigned turn = 0;

	do
		rc_pause(&turn);
	while (at_xchg_acq(&q->lock, 1));
}

static inline void lock_queue(struct rref_queue *q)
{
	/* Acquire. Pairs with unlock_queue. */
	if (unlikely(at_xchg_acq(&q->lock, 1)))
		wait_for_lock(q);
}

static void unlock_queue(struct rref_queue *q)
{
	at_store_rel(&q->lock, 0);
}

/* Returns the oldest future that has ended, or NULL. Under q->lock. */
static struct rref_future *next_ended(struct rref_queue *q)
{
	struct rc_item *item = q->first;

	if (!item) {
		/* sc. Pairs with push_ended. */
		if (!at_load_sc(&q->ended))
			return NULL;
		item = (struct rc_item *)rc_items_turned(at_xchg_sc(&q->ended, 0));
	}
	q->first = (struct rc_item *)item->next;
	return future_of(item);
}

/* Returns whether no future is in q. Under q->lock. */
static bool is_empty(struct rref_queue *q)
{
	/* Loaded before `added`: a future that is put in meanwhile counts. */
	uint64_t gone = at_load(&q->taken) + at_load_sc(&q->left);

	return !q->first && !at_load_sc(&q->ended) && at_load_sc(&q->added) == gone;
}

/* Frees futures that were freed in the queue. */
static void put_freed(struct rc_item *freed)
{
	RB_NO_CANCEL;

	while (freed) {
		struct rref_future *f = future_of(freed);

		freed = (struct rc_item *)freed->next;
		rc_op_put(f);
	}
}

/* Takes up to max futures out. *empty: the queue is empty then, and no thread has to wait. */
static size_t take_ended(struct rref_queue *q, size_t max, struct rref_future **fs, void **tags,
			 bool *empty)
{
	struct rc_item *freed = NULL;
	struct rref_future *f;
	size_t n = 0;

	lock_queue(q);
	while (n < max && (f = next_ended(q))) {
		void *tag = f->tag; /* loaded before it may be put in again */
		uintptr_t was = at_xchg_ar(&f->queue, 0);

		if (was & COUNTED)
			at_add_mine(&q->taken, 1);
		if (unlikely(was & FREED)) {
			f->queued.next = (uintptr_t)freed;
			freed = &f->queued;
			continue;
		}
		fs[n] = f;
		if (tags)
			tags[n] = tag;
		n++;
	}
	*empty = is_empty(q);
	unlock_queue(q);
	if (unlikely(freed))
		put_freed(freed);
	/* Each thread that waits hears that the queue is empty. */
	if (unlikely(*empty && at_load_sc(&q->watch) & ~ARMED))
		wake_takers(q, true);
	return n;
}

/* A wait for the next futures. */
struct taker {
	struct rc_waiter w;
	struct rref_queue *q;
	struct rref_future **fs;
	void **tags;
	size_t max, n;
};

static bool look(struct taker *t)
{
	bool empty;

	/* Loaded before the look: an end that it misses moves the word. */
	t->w.seen = at_load_sc(&t->q->word);
	t->n = take_ended(t->q, t->max, t->fs, t->tags, &empty);
	return t->w.over = t->n || empty;
}

static bool next_is_here(struct rc_waiter *w)
{
	/* Asked again after the wait was over, it keeps what it has taken. */
	return w->over || look(container_of(w, struct taker, w));
}

static bool taker_will_sleep(struct rc_waiter *w, uint32_t *value)
{
	*value = w->seen;
	return !rc_wait_is_finished(w);
}

static void call_takers(struct rc_waiter *w)
{
	wake_takers(container_of(w, struct taker, w)->q, true);
}

static const struct rc_wait_kind taker_kind = {
	.is_over = next_is_here,
	.will_sleep = taker_will_sleep,
	.call = call_takers,
};

/* Waits until a future has ended, or the queue is empty. Makes one turn if timeout is 0. */
static __attribute__((noinline)) size_t wait_for_next(struct rref_queue *q, int64_t timeout,
						      size_t max, struct rref_future **fs,
						      void **tags, bool *empty)
{
	RB_NO_CANCEL;
	bool reads = at_load(&q->reads) && rc_has_poller(q->ctx);
	struct taker t = {
		.w.ctx = q->ctx,
		.w.kind = &taker_kind,
		.w.word = &q->word,
		.w.mask = UINT32_MAX,
		.w.sleepers = &q->sleepers,
		.q = q,
		.fs = fs,
		.tags = tags,
		.max = max,
	};

	if (!timeout) {
		rc_make_progress(q->ctx, false);
		look(&t);
	} else {
		/* sc. Pairs with push_ended. */
		at_add_sc(&q->watch, 1);
		if (!look(&t))
			rc_wait(&t.w, reads, -1, timeout);
		at_sub_sc(&q->watch, 1);
	}
	*empty = t.w.over;
	return t.n;
}

/* Returns how many came out, or -errno. */
static int take_or_wait(struct rref_queue *q, int64_t timeout, size_t max, struct rref_future **fs,
			void **tags, const char *what)
{
	size_t n;
	bool empty;

	if (!q || !fs || !max)
		return rc_fail(EINVAL, "%s: no %s", what, !q ? "queue" : "room for a future");
	if (rc_is_barred(q->ctx))
		return rc_enter_slow(q->ctx);
	max = min_of(max, INT32_MAX);
	n = take_ended(q, max, fs, tags, &empty);
	if (unlikely(!n && !empty))
		n = wait_for_next(q, timeout, max, fs, tags, &empty);
	if (likely(n))
		return (int)n;
	return empty ? rc_fail(ENOENT, "%s: there is no future in the queue", what)
		     : rc_fail(ETIMEDOUT, "%s: no future in the queue has ended in time", what);
}

int rref_queue_next(struct rref_queue *q, int64_t timeout, struct rref_future **f, void **tag)
{
	int n = take_or_wait(q, timeout, 1, f, tag, "rref_queue_next");

	return n < 0 ? n : 0;
}

int rref_queue_take(struct rref_queue *q, int64_t timeout, size_t max, struct rref_future **fs,
		    void **tags)
{
	return take_or_wait(q, timeout, max, fs, tags, "rref_queue_take");
}

/* ---- event loops ---- */

/* Returns the descriptor, which is made by the first call, or -errno. */
static int descriptor(struct rref_queue *q)
{
	pthread_mutex_lock(&q->ctx->op.grow_lock);
	int fd = at_load(&q->fd);

	if (fd < 0) {
		fd = RB_OPEN(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
		if (fd < 0)
			fd = rc_fail(limit_errno(errno), "a descriptor for a queue: %s",
				     limit_why("eventfd", errno, 0));
		else
			at_store(&q->fd, fd);
	}
	pthread_mutex_unlock(&q->ctx->op.grow_lock);
	return fd;
}

int rref_queue_fd(struct rref_queue *q)
{
	RB_NO_CANCEL;

	if (!q)
		return rc_fail(EINVAL, "rref_queue_fd: no queue");
	return rc_is_barred(q->ctx) ? rc_enter_slow(q->ctx) : descriptor(q);
}

/*
 * Arms the descriptor: the first end after this wakes a loop that sleeps. Does not read it while
 * futures that have ended are in the queue. Another loop may sleep on it.
 */
int rref_queue_arm(struct rref_queue *q)
{
	RB_NO_CANCEL;
	int fd = rref_queue_fd(q);

	if (fd < 0)
		return fd;
	lock_queue(q);
	bool sleep = !q->first && !at_load_sc(&q->ended);

	if (sleep) {
		uint32_t arm = at_load(&q->arm);

		at_store(&q->told, 0);
		rc_event_read(fd); /* always: the write comes before the number */
		at_store(&q->arm, arm == UINT32_MAX ? 1 : arm + 1);
		/* sc. Pairs with push_ended: it sees the mark and the number, or is seen here. */
		at_or_sc(&q->watch, ARMED);
		sleep = !at_load_sc(&q->ended);
		if (!sleep)
			queue_tell(q, ARMED);
	}
	unlock_queue(q);
	/* No other thread may be waiting for the READs of its futures. */
	if (sleep && rc_has_poller(q->ctx))
		rc_kick(q->ctx);
	return !sleep;
}

/* ---- queues are made and freed ---- */

int rref_queue_new(struct rref_ctx *ctx, struct rref_queue **out)
{
	RB_NO_CANCEL;
	int err = out ? rc_enter(ctx) : rc_fail(EINVAL, "rref_queue_new: nowhere to put it");
	struct rref_queue *q;

	if (err)
		return err;
	pthread_mutex_lock(&ctx->op.grow_lock);
	q = ctx->op.spare_queues;
	if (q) {
		ctx->op.spare_queues = q->next_spare;
	} else if ((q = aligned_alloc(CACHE_LINE, sizeof(*q)))) {
		memset(q, 0, sizeof(*q));
		q->ctx = ctx;
		at_store(&q->fd, -1);
		q->next = ctx->op.queues;
		ctx->op.queues = q;
	}
	pthread_mutex_unlock(&ctx->op.grow_lock);
	if (!q)
		return rc_fail(ENOMEM, "memory for a queue");
	*out = q;
	return 0;
}

/*
 * Takes the pending futures out of q. Some may be about to be pushed by their ends: the caller
 * looks again.
 */
static void leave_all(struct rref_queue *q)
{
	struct rref_ctx *ctx = q->ctx;
	uint32_t nr = at_load_acq(&ctx->op.nr);
	uintptr_t was;

	for (uint32_t i = 0; i < nr; i++) {
		/* Held: another thread may free it, and its slot would be another operation's. */
		struct rref_future *f = rc_op_hold(ctx, rc_op_token(rc_op_at(ctx, i)));

		if (!f)
			continue;
		if (queue_of(at_load(&f->queue)) == q && take_pending(f, &was)) {
			at_add_sc(&q->left, 1);
			if (was & FREED)
				rc_op_put(f);
		}
		rc_op_put(f);
	}
}

void rref_queue_free(struct rref_queue *q)
{
	RB_NO_CANCEL;
	struct rref_future *fs[64];
	struct rref_ctx *ctx = q ? q->ctx : NULL;
	unsigned turn = 0;
	bool empty;

	if (!q || rc_is_child(ctx))
		return;
	for (;;) {
		while (take_ended(q, array_size(fs), fs, NULL, &empty) == array_size(fs))
			;
		if (empty)
			break;
		leave_all(q);
		rc_pause(&turn);
	}
	at_and_ar(&q->watch, ~ARMED);
	at_store(&q->reads, false);
	pthread_mutex_lock(&ctx->op.grow_lock);
	q->next_spare = ctx->op.spare_queues;
	ctx->op.spare_queues = q;
	pthread_mutex_unlock(&ctx->op.grow_lock);
}

void rc_queues_close(struct rref_ctx *ctx)
{
	struct rref_future *fs[64];
	struct rref_queue *q;
	bool empty;

	while ((q = ctx->op.queues)) {
		ctx->op.queues = q->next;
		/* Futures that were freed in it are put. The others stay the program's. */
		while (take_ended(q, array_size(fs), fs, NULL, &empty) == array_size(fs))
			;
		rb_close(at_load(&q->fd));
		free(q);
	}
}
