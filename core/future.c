/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Futures as the program sees them. A waiter makes progress itself when nobody else does (leader/follower): no thread
 * hop between a completion and the one who waits for it. It spins for a bounded time, then sleeps on the future's
 * word and leaves the work to the poller; in manual mode, where there is none, it sleeps on the devices itself.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rc.h"

/*
 * A waiter's patience before it sleeps: longer than a READ on any sane fabric, shorter than a scheduler's slice. Where waits
 * end just behind it, as on an emulated or busy machine, it grows: to sleep and be woken would cost more than what is left.
 */
#define SPIN_NS (100 * NSEC_PER_USEC)
#define YIELD_NS (3 * NSEC_PER_USEC) /* longer than an answer takes from one who spins */
#define SPIN_MAX_NS (1 * NSEC_PER_MSEC)
#define SLOW_NS (1 * NSEC_PER_MSEC) /* as the poller; see progress.c */
#define FIRST_LOOKS 64u             /* behind a call: longer than an answer takes from one who spins */
#define LOOKS 8u                    /* between two looks at the clock, and at other threads' needs */

static bool done(const struct rref_future *f)
{
	return (at_load_acq(&f->state) & RC_F_MASK) == RC_F_DONE;
}

/*
 * Some looks of the engine. Returns how many things were handled, -1 if somebody else is at it. The pause of a spin loop is for
 * who only waits for another thread: one that polls would see its completion later for it (a lot later under emulation).
 */
int rc_make_progress(struct rref_ctx *ctx, bool slow)
{
	int n;

	if (!rc_trylock(ctx)) {
		cpu_relax();
		return -1;
	}
	/* Without a poller nobody else would ever look at connections, if all waits of the program are short. */
	ctx->turn_at = at_load(&ctx->has_poller) ? 0 : rc_coarse_ns();
	if (!slow && ctx->turn_at)
		slow = ctx->turn_at - ctx->polled_slow_at >= SLOW_NS;
	n = rc_progress_turns(ctx, slow, LOOKS);
	/* There may be more than one turn takes, and the wake-up for it was taken here: this thread may go now. */
	if (unlikely(slow && n > 0 && ctx->poller_asleep))
		rc_kick(ctx);
	rc_unlock(ctx);
	return n;
}

/* Says that somebody sleeps on f's word; false if it is complete, or just moved. *s: the word to sleep on. */
static bool will_sleep(struct rref_future *f, uint32_t *s)
{
	*s = at_load(&f->state);
	if ((*s & RC_F_MASK) == RC_F_DONE)
		return false;
	if (!(*s & RC_F_WAITERS) && !at_cas_ar(&f->state, s, *s | RC_F_WAITERS))
		return false;
	*s |= RC_F_WAITERS;
	return true;
}

static void futex_sleep(struct rref_future *f, uint32_t s, int64_t deadline)
{
	struct timespec ts, *limit = NULL;

	if (deadline != INT64_MAX) {
		int64_t left = max_of(deadline - now_ns(), 0);

		ts.tv_sec = left / NSEC_PER_SEC;
		ts.tv_nsec = left % NSEC_PER_SEC;
		limit = &ts;
	}
	syscall(SYS_futex, &f->state, FUTEX_WAIT_PRIVATE, s, limit, NULL, 0);
}

/* One of the waiters without a poller. On the stack of its thread, in ctx->sleepers. */
struct sleeper {
	struct list node;
	struct rref_future *f;
};

/* Nobody sleeps on the devices any more: another waiter has to. Its word changes, so that it cannot miss this. [lock] */
static void call_sleeper(struct rref_ctx *ctx)
{
	if (ctx->device_sleeper || list_empty(&ctx->sleepers))
		return;
	struct rref_future *f = container_of(ctx->sleepers.next, struct sleeper, node)->f;

	at_and_ar(&f->state, ~(uint32_t)RC_F_WAITERS);
	syscall(SYS_futex, &f->state, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/*
 * Without a poller one waiter sleeps on the devices, and a completion made by another thread kicks it; the others sleep
 * on their futures. Each who leaves calls the next: that one takes the place, or leaves too.
 */
static void device_sleep(struct rref_ctx *ctx, struct rref_future *f, int64_t deadline)
{
	struct pollfd pfd = { .fd = ctx->epfd, .events = POLLIN };
	struct sleeper me = { .f = f };
	int64_t now = now_ns(), wait;
	bool sleep;
	uint32_t s;

	if (!will_sleep(f, &s))
		return;
	rc_lock(ctx);
	if (ctx->device_sleeper) {
		list_add_tail(&ctx->sleepers, &me.node);
		rc_unlock(ctx);
		futex_sleep(f, s, deadline);
		rc_lock(ctx);
		list_del(&me.node);
		call_sleeper(ctx);
		rc_unlock(ctx);
		return;
	}
	ctx->device_sleeper = true;
	at_store_sc(&ctx->sleeping, 1);
	sleep = rc_arm(ctx) && !done(f);
	wait = min_of(rc_next_timer(ctx, now), max_of(deadline - now, 0));
	rc_unlock(ctx);
	if (sleep && !done(f)) {
		struct timespec ts = { .tv_sec = wait / NSEC_PER_SEC, .tv_nsec = wait % NSEC_PER_SEC };

		ppoll(&pfd, 1, &ts, NULL);
	}
	at_store_sc(&ctx->sleeping, 0);
	rc_lock(ctx);
	rc_disarm(ctx);
	rc_progress_locked(ctx, true);
	ctx->device_sleeper = false;
	call_sleeper(ctx);
	rc_unlock(ctx);
}

/* A wait slept, and took that long in all. Threads may overwrite one another's finding. */
static void learn_patience(struct rref_ctx *ctx, int64_t took)
{
	uint32_t more = at_load(&ctx->more_patience);

	if (took < SPIN_MAX_NS)
		more = (uint32_t)min_of(2 * (more + SPIN_NS), SPIN_MAX_NS) - (uint32_t)SPIN_NS;
	else
		more /= 2;
	at_store(&ctx->more_patience, more);
}

/*
 * While somebody polls for READs the poller, when it goes to sleep, does not ask to be woken by them: it would be by every
 * single one, and get in the way. Who stops polling wakes it if others' READs are still under way. sc: partner of rc_arm.
 */
static void watch_reads(struct rref_ctx *ctx)
{
	at_add_sc(&ctx->watching, 1);
}

static void unwatch_reads(struct rref_ctx *ctx)
{
	if (at_sub_sc(&ctx->watching, 1) == 1 && at_load_sc(&ctx->reads_unarmed) && at_load(&ctx->reads_in_flight))
		rc_kick(ctx);
}

/*
 * Reading the clock is a system call where the machine has no good one (virtual ones mostly), so it is read late and seldom: a
 * wait that is over soon never does. deadline < 0: `timeout` from the first look at the clock on.
 */
static int wait_for(struct rref_future *f, int64_t deadline, int64_t timeout)
{
	struct rref_ctx *ctx = f->ctx;
	/* Over shm none of them is ever waited for. */
	bool reads = at_load(&f->kind) == RC_OP_READ && at_load(&ctx->has_poller);
	int64_t spin_until = 0, begun = 0;
	bool blocking = false;
	unsigned turn = 0;
	int err = 0;

	if (reads)
		watch_reads(ctx);
	while (!done(f)) {
		bool worked = rc_make_progress(ctx, (turn & 63) == 63) > 0;

		if (done(f))
			break;
		if (++turn & 15)
			continue;
		int64_t now = now_ns();

		if (deadline < 0)
			deadline = rc_deadline(ctx, timeout);
		if (now >= deadline) {
			err = -ETIMEDOUT;
			break;
		}
		if (!begun)
			begun = now;
		if (!spin_until || worked)
			spin_until = now + SPIN_NS + at_load(&ctx->more_patience);
		if (now < spin_until) {
			/* Whom we woke may have been put on this very processor, and waits for us as we do for it. */
			if (now - begun >= YIELD_NS)
				sched_yield();
			continue;
		}
		if (!blocking) {
			blocking = true;
			rc_pool_blocking(ctx, 1);
		}
		if (at_load(&ctx->has_poller)) {
			uint32_t s;

			if (reads)
				at_sub_sc(&ctx->watching, 1);
			rc_kick(ctx); /* the poller must look, and arm for finished READs, before this thread sleeps */
			if (will_sleep(f, &s))
				futex_sleep(f, s, deadline);
			if (reads)
				watch_reads(ctx);
		} else {
			device_sleep(ctx, f, deadline);
		}
	}
	if (reads)
		unwatch_reads(ctx);
	if (blocking) {
		rc_pool_blocking(ctx, -1);
		learn_patience(ctx, now_ns() - begun);
	}
	return err;
}

int rc_op_wait_locked(struct rref_future *f, int64_t deadline)
{
	struct rref_ctx *ctx = f->ctx;

	if (!done(f)) {
		/* As in rc_make_progress. */
		bool slow = !at_load(&ctx->has_poller) && ctx->turn_at - ctx->polled_slow_at >= SLOW_NS;

		rc_progress_turns(ctx, slow, FIRST_LOOKS);
	}
	rc_unlock(ctx);
	return done(f) ? 0 : wait_for(f, deadline, 0);
}

int rc_op_wait(struct rref_future *f, int64_t deadline)
{
	return wait_for(f, max_of(deadline, 0), 0);
}

int rc_op_wait_for(struct rref_future *f, int64_t timeout)
{
	return wait_for(f, -1, timeout);
}

/* The program's own thread may have stood in for the poller's; see progress.c. */
int rref_future_wait(struct rref_future *f, int64_t timeout)
{
	if (!f)
		return rc_fail(EINVAL, "rref_future_wait: no future");
	if (rc_is_child(f->ctx))
		return rc_enter_slow(f->ctx);
	if (!done(f)) {
		int err = rc_op_wait_for(f, timeout);

		if (err)
			return rc_fail(ETIMEDOUT, "the wait timed out; the operation goes on");
	}
	return f->status ? rc_fail_text(f->status, f->text) : 0;
}

int rref_future_test(const struct rref_future *f)
{
	return f ? done(f) : rc_fail(EINVAL, "rref_future_test: no future");
}

int rref_future_then(struct rref_future *f, void (*fn)(struct rref_future *f, void *arg), void *arg)
{
	uint32_t none = 0, set = 1;

	if (!f || !fn)
		return rc_fail(EINVAL, "rref_future_then: no future or no function");
	if (rc_is_child(f->ctx))
		return rc_enter_slow(f->ctx);
	/* 3: being written. A finisher that sees it lets us see DONE below and run the callback here. */
	if (!at_cas_ar(&f->then_state, &none, 3))
		return rc_fail(EBUSY, "the future has a callback already");
	f->then = fn;
	f->then_arg = arg;
	at_store_sc(&f->then_state, 1);
	if ((at_load_sc(&f->state) & RC_F_MASK) == RC_F_DONE) {
		if (at_cas_ar(&f->then_state, &set, 2)) {
			at_add(&f->refs, 1);
			rc_op_run_then(f);
		}
	} else if (at_load(&f->ctx->has_poller)) {
		rc_kick(f->ctx); /* nobody may be waiting for it: the poller has to */
	}
	return 0;
}

int rref_future_cancel(struct rref_future *f)
{
	struct rref_ctx *ctx;

	if (!f)
		return rc_fail(EINVAL, "rref_future_cancel: no future");
	ctx = f->ctx;
	if (rc_is_child(ctx))
		return rc_enter_slow(ctx);
	rc_lock(ctx);
	bool was_done = (at_load_acq(&f->state) & RC_F_MASK) != RC_F_PENDING;

	if (!was_done)
		rc_op_end(ctx, f, -ECANCELED, "cancelled");
	rc_unlock(ctx);
	return was_done ? rc_fail(EALREADY, "the operation is complete") : 0;
}

int rref_wait_any(struct rref_future *const *fs, size_t nr, int64_t timeout)
{
	if (!fs || !nr)
		return rc_fail(EINVAL, "rref_wait_any: no futures");
	for (size_t i = 0; i < nr; i++)
		if (!fs[i])
			return rc_fail(EINVAL, "rref_wait_any: future %zu is NULL", i);
	if (rc_is_child(fs[0]->ctx))
		return rc_enter_slow(fs[0]->ctx);

	int64_t deadline = rc_deadline(fs[0]->ctx, timeout);

	for (size_t turn = 0;; turn++) {
		for (size_t i = 0; i < nr; i++)
			if (done(fs[i]))
				return (int)i;
		/* Wait on one at a time, in turn and briefly: the others are seen in the next round. */
		int64_t now = now_ns();

		if (now >= deadline)
			return rc_fail(ETIMEDOUT, "none of %zu operations is complete", nr);
		rc_op_wait(fs[turn % nr], min_of(deadline, now + (turn < 64 ? 200 * NSEC_PER_USEC : 2 * NSEC_PER_MSEC)));
	}
}

int rref_wait_all(struct rref_future *const *fs, size_t nr, int64_t timeout)
{
	if (nr && !fs)
		return rc_fail(EINVAL, "rref_wait_all: no futures");
	for (size_t i = 0; i < nr; i++)
		if (!fs[i])
			return rc_fail(EINVAL, "rref_wait_all: future %zu is NULL", i);
	if (nr && rc_is_child(fs[0]->ctx))
		return rc_enter_slow(fs[0]->ctx);

	int64_t deadline = nr ? rc_deadline(fs[0]->ctx, timeout) : 0;

	for (size_t i = 0; i < nr; i++)
		if (!done(fs[i]) && rc_op_wait(fs[i], deadline))
			return rc_fail(ETIMEDOUT, "%zu of %zu operations are complete in order", i, nr);
	return 0;
}

int rref_future_error(const struct rref_future *f, struct rref_error *out)
{
	struct rref_error e = { 0 };

	if (!f || !out || out->size < sizeof(size_t))
		return rc_fail(EINVAL, "rref_future_error: no future, or out->size is not set");
	if (!done(f))
		return rc_fail(EAGAIN, "the operation is not complete");
	e.size = out->size;
	e.err = f->status;
	e.wc_status = f->status ? f->wc_status : -1;
	e.peer = (int)f->peer;
	snprintf(e.text, sizeof(e.text), "%.*s", (int)sizeof(e.text) - 1, f->status ? f->text : "");
	size_t n = min_of(out->size, sizeof(e));

	/* For a program whose text is shorter: cut off, but ended. */
	if (n > offsetof(struct rref_error, text))
		((char *)&e)[n - 1] = 0;
	memcpy(out, &e, n);
	return 0;
}

/* What every result getter asks first. */
static int result_check(const struct rref_future *f, const char *what)
{
	if (!f)
		return rc_fail(EINVAL, "%s: no future", what);
	if (!done(f))
		return rc_fail(EAGAIN, "the operation is not complete");
	return f->status ? rc_fail_text(f->status, f->text) : 0;
}

int rref_future_view(struct rref_future *f, struct rref_view **out)
{
	int err = out ? result_check(f, "rref_future_view") : rc_fail(EINVAL, "rref_future_view: nowhere to put it");

	if (err)
		return err;
	if (!f->view)
		return rc_fail(ENOMSG, "the future holds no view (any more)");
	*out = f->view;
	f->view = NULL;
	return 0;
}

int rref_future_type(const struct rref_future *f, struct rref_type *out)
{
	int err = out && out->size >= sizeof(size_t) ? result_check(f, "rref_future_type") :
						       rc_fail(EINVAL, "rref_future_type: nowhere to put it, or out->size is not set");

	if (err)
		return err;
	if (!f->type)
		return rc_fail(ENOMSG, "the future is not of a type");
	rc_type_tell(f->type, out);
	return 0;
}

int rref_future_data(const struct rref_future *f, const void **data, size_t *length)
{
	int err = data && length ? result_check(f, "rref_future_data") : rc_fail(EINVAL, "rref_future_data: nowhere to put it");

	if (err)
		return err;
	if (!f->incoming)
		return rc_fail(ENOMSG, "the future is not of a call");
	*data = f->data;
	*length = f->data_length;
	return 0;
}

int rref_future_nr_refs(const struct rref_future *f)
{
	int err = result_check(f, "rref_future_nr_refs");

	if (err)
		return err;
	return f->incoming ? (int)f->incoming->nr : rc_fail(ENOMSG, "the future is not of a call");
}

int rref_future_ref(struct rref_future *f, size_t i, struct rref **out)
{
	const char *site = rc_site_take();
	int err = out ? result_check(f, "rref_future_ref") : rc_fail(EINVAL, "rref_future_ref: nowhere to put it");

	if (err)
		return err;
	if (!f->incoming)
		return rc_fail(ENOMSG, "the future is not of a call");
	if (i >= f->incoming->nr)
		return rc_fail(EINVAL, "reference %zu of %u", i, f->incoming->nr);
	if (!f->incoming->ref[i].handle)
		return rc_fail(ENOMSG, "reference %zu was taken already", i);
	*out = f->incoming->ref[i].handle;
	rc_handle_made_at(*out, site);
	f->incoming->ref[i].handle = NULL;
	return 0;
}

void rref_future_free(struct rref_future *f)
{
	if (f && !rc_is_child(f->ctx))
		rc_op_put(f);
}
