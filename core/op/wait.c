/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits for futures, on top of the loop in base/wait.c:
 *
 *   a future        its own state word; RC_F_WAITERS says that a thread sleeps on it
 *   any of several  a bell that the thread takes; a bit in each future says that its end rings it
 *
 * Waits for the futures of a queue are in queue.c.
 */
#include <errno.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/wait.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/op/op.h"

/* looks after a call: longer than a thread that spins takes to answer */
#define FIRST_LOOKS 64u

/*
 * A bell, on which a thread in rref_wait_any sleeps. All contexts share the bells, since their
 * futures may be waited for together. A future keeps its bits after the wait, so a bell may ring
 * for nothing. Two threads share a bell only while more than BELLS threads wait.
 */
#define BELLS 24u /* bits of RC_F_BELLS */
static struct bell {
	cache_aligned _Atomic uint32_t word; /* each ring moves it */
	_Atomic uint32_t sleepers; /* threads that sleep on it, or are about to */
	_Atomic uint32_t users; /* threads that wait with it */
} bells[BELLS];

_Static_assert(RC_F_BELLS >> RC_F_BELLS_AT == (UINT32_C(1) << BELLS) - 1, "a bit for each bell");

/* ---- the end of a future wakes its waiters ---- */

static void ring(struct bell *b)
{
	at_add_sc(&b->word, 1);
	/* sc. Pairs with rc_wait_sleep: the kernel lets a thread sleep only while the word is as
	 * it was. */
	if (at_load_sc(&b->sleepers))
		rc_wake_word(&b->word);
}

static void ring_all(uint32_t bits)
{
	for (; bits; bits &= bits - 1)
		ring(&bells[__builtin_ctz(bits)]);
}

void rc_wait_wake(struct rref_future *f, uint32_t old)
{
	struct rref_ctx *ctx = f->ctx;

	if (old & RC_F_QUEUED)
		rc_queue_push(f);
	ring_all(old >> RC_F_BELLS_AT);
	if (old & RC_F_WAITERS)
		rc_wake_word(&f->state);
	rc_kick_waiter(ctx);
}

/* ---- one future ---- */

struct one {
	struct rc_waiter w;
	struct rref_future *f;
};

/* Sets bit in f's state. Returns false if f is complete. */
static bool mark(struct rref_future *f, uint32_t bit)
{
	uint32_t s = at_load(&f->state);

	do {
		if ((s & RC_F_MASK) == RC_F_DONE)
			return false;
	} while (!(s & bit) && !at_cas_weak_ar(&f->state, &s, s | bit));
	return true;
}

static bool one_will_sleep(struct rc_waiter *w, uint32_t *value)
{
	struct rref_future *f = container_of(w, struct one, w)->f;

	if (!mark(f, RC_F_WAITERS))
		return false;
	*value = at_load(&f->state);
	return *value & RC_F_WAITERS;
}

static void call_one(struct rc_waiter *w)
{
	at_and_ar(w->word, ~(uint32_t)RC_F_WAITERS);
	rc_wake_word(w->word);
}

static bool say_late(struct rref_future *f, int64_t waited)
{
	return !f->is->late || rc_op_done(f) || f->is->late(f, waited);
}

static bool one_is_late(struct rc_waiter *w, int64_t waited)
{
	return say_late(container_of(w, struct one, w)->f, waited);
}

static const struct rc_wait_kind one_kind = {
	.will_sleep = one_will_sleep, .call = call_one, .late = one_is_late
};

static __attribute__((noinline)) int wait_for(struct rref_future *f, int64_t deadline,
					      int64_t timeout)
{
	struct one o; /* node is set when it is needed */
	/* Reads over shm are never waited for. */
	bool reads = f->is->reads && rc_has_poller(f->ctx);

	o.f = f;
	o.w.ctx = f->ctx;
	o.w.kind = &one_kind;
	o.w.word = &f->state;
	o.w.seen = 0;
	o.w.mask = RC_F_DONE; /* the one value of RC_F_MASK with this bit */
	o.w.sleepers = NULL;
	o.w.over = false;
	return rc_wait(&o.w, reads, deadline, timeout);
}

int rc_op_wait_locked(struct rref_future *f, int64_t deadline)
{
	struct rref_ctx *ctx = f->ctx;

	if (!rc_op_done(f)) {
		/* The same test is in rc_make_progress. */
		bool slow = !rc_has_poller(ctx) &&
			    ctx->turns.turn_at - ctx->turns.polled_slow_at >= RC_SLOW_NS;

		ctx->turns.engine->turns(ctx, slow, FIRST_LOOKS);
	}
	rc_unlock_hooks(ctx);
	return rc_op_done(f) ? 0 : wait_for(f, deadline, 0);
}

int rc_op_wait(struct rref_future *f, int64_t deadline)
{
	return wait_for(f, max_of(deadline, 0), 0);
}

int rc_op_wait_for(struct rref_future *f, int64_t timeout)
{
	/* A READ is mostly over at the first look. */
	if (f->is->reads && rc_has_poller(f->ctx) && rc_make_progress(f->ctx, false) > 0 &&
	    rc_op_done(f))
		return 0;
	return wait_for(f, -1, timeout);
}

/* ---- any of several ---- */

struct several {
	struct rc_waiter w;
	struct bell *bell;
	struct rref_future *const *fs;
	size_t nr, found;
};

/* Takes a bell that no other thread has, if there is one: the thread's last, if it can be had. */
static struct bell *take_bell(void)
{
	static _Thread_local unsigned last;
	unsigned i = 0;

	while (i < BELLS && at_load(&bells[(last + i) % BELLS].users))
		i++;
	last = (last + i) % BELLS;
	at_add(&bells[last].users, 1);
	return &bells[last];
}

void rc_wait_fork_child(void)
{
	for (unsigned i = 0; i < BELLS; i++) {
		at_store(&bells[i].users, 0);
		at_store(&bells[i].sleepers, 0);
	}
}

static bool find_done(struct several *s)
{
	/* Loaded before the look: an end that it misses moves the word. */
	s->w.seen = at_load_sc(s->w.word);
	for (size_t i = 0; i < s->nr; i++)
		if (rc_op_done(s->fs[i])) {
			s->found = i;
			s->w.over = true;
			return true;
		}
	return false;
}

static bool any_is_finished(struct rc_waiter *w)
{
	return find_done(container_of(w, struct several, w));
}

static bool any_will_sleep(struct rc_waiter *w, uint32_t *value)
{
	*value = w->seen;
	return !rc_wait_is_finished(w);
}

static bool any_is_late(struct rc_waiter *w, int64_t waited)
{
	const struct several *s = container_of(w, struct several, w);
	bool done = true;

	for (size_t i = 0; i < s->nr; i++)
		done &= say_late(s->fs[i], waited);
	return done;
}

static void call_any(struct rc_waiter *w)
{
	ring(container_of(w, struct several, w)->bell);
}

/* Sleeps for futures of several contexts. Contexts without a poller are looked at every 2 ms. */
static void sleep_for_several(struct rc_waiter *w, int64_t deadline)
{
	const struct several *s = container_of(w, struct several, w);
	bool briefly = false;
	uint32_t value;

	for (size_t i = 0; i < s->nr; i++) {
		struct rref_ctx *ctx = s->fs[i]->ctx;

		if (rc_has_poller(ctx)) {
			rc_kick(ctx); /* the kick of leave_to_poller in base/wait.c */
			continue;
		}
		briefly = true;
		rc_make_progress(ctx, true);
	}
	if (briefly)
		deadline = min_of(deadline, now_ns() + 2 * NSEC_PER_MSEC);
	if (any_will_sleep(w, &value))
		rc_wait_sleep(w, value, deadline);
}

static const struct rc_wait_kind any_kind = {
	.is_over = any_is_finished,
	.will_sleep = any_will_sleep,
	.call = call_any,
	.late = any_is_late,
};
/* Kind of a wait for futures of several contexts. */
static const struct rc_wait_kind mixed_kind = {
	.is_over = any_is_finished,
	.will_sleep = any_will_sleep,
	.call = call_any,
	.late = any_is_late,
	.sleep = sleep_for_several,
};

static int check_several(struct rref_future *const *fs, size_t nr, const char *what)
{
	if (nr && !fs)
		return rc_fail(EINVAL, "%s: no futures", what);
	for (size_t i = 0; i < nr; i++) {
		if (!fs[i])
			return rc_fail(EINVAL, "%s: future %zu is NULL", what, i);
		if (rc_is_barred(fs[i]->ctx))
			return rc_enter_slow(fs[i]->ctx);
	}
	return 0;
}

/* Marks all of them, for a wait. Returns false if one is complete: s->found. */
static bool mark_all(struct several *s, bool *reads)
{
	uint32_t bit = UINT32_C(1) << RC_F_BELLS_AT << (s->bell - bells);

	for (size_t i = 0; i < s->nr; i++) {
		if (s->fs[i]->ctx != s->w.ctx)
			s->w.kind = &mixed_kind;
		*reads |= s->fs[i]->is->reads;
		if (!mark(s->fs[i], bit)) {
			s->found = i;
			return false;
		}
	}
	return true;
}

int rref_wait_any(struct rref_future *const *fs, size_t nr, int64_t timeout)
{
	RB_NO_CANCEL;
	int err = nr ? check_several(fs, nr, "rref_wait_any")
		     : rc_fail(EINVAL, "rref_wait_any: no futures");

	if (err)
		return err;
	for (size_t i = 0; i < nr; i++)
		if (rc_op_done(fs[i]))
			return (int)i;
	struct bell *bell = take_bell();
	struct several s = {
		.w.ctx = fs[0]->ctx,
		.w.kind = &any_kind,
		.w.word = &bell->word,
		.w.mask = UINT32_MAX,
		.w.sleepers = &bell->sleepers,
		.bell = bell,
		.fs = fs,
		.nr = nr,
	};
	bool reads = false;

	/* Loaded before the futures are marked: an end that comes after it moves the word. */
	s.w.seen = at_load_sc(&bell->word);
	if (mark_all(&s, &reads)) {
		reads = reads && s.w.kind == &any_kind && rc_has_poller(s.w.ctx);
		err = rc_wait(&s.w, reads, -1, timeout);
	}
	at_sub(&bell->users, 1);
	return err ? rc_fail(-err, "none of %zu operations is complete", nr) : (int)s.found;
}

int rref_wait_all(struct rref_future *const *fs, size_t nr, int64_t timeout)
{
	RB_NO_CANCEL;
	int err = check_several(fs, nr, "rref_wait_all");

	if (err || !nr)
		return err;
	int64_t deadline = rc_deadline(fs[0]->ctx, timeout);

	for (size_t i = 0; i < nr; i++)
		if (!rc_op_done(fs[i]) && rc_op_wait(fs[i], deadline))
			return rc_fail(ETIMEDOUT, "%zu of %zu operations are complete in order", i,
				       nr);
	return 0;
}
