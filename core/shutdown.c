/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leaving the group.
 *
 * Graceful, each step bounded by the one deadline:
 *   1  barrier: every program has come here; calls are served meanwhile
 *   2  wait until no call is served or under way here; barrier. Again until a round in which no
 *      worker was busy: a served call may have made further calls
 *   3  nothing new begins; every handle is ended; wait until no user entry and no pending child is
 *      left
 *   4  ping every peer: its answer is behind our deletes on the same ordered connection, so they
 *      were processed
 *   5  barrier: the deletes of all workers were processed everywhere. From now on a reference that
 *      is still listed here is a leak
 *   6  goodbye. Rank 0 leaves last: it has to tell the others that the last barrier is complete.
 *
 * A peer that dies meanwhile is not waited for.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/ranks.h"
#include "core/base/scope.h"
#include "core/call/call.h"
#include "core/engine.h"
#include "core/observe/observe.h"
#include "core/op/kind.h"
#include "core/op/op.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/look.h"

#define GOODBYE_NS (2 * NSEC_PER_SEC)
#define LEAK_NS (500 * NSEC_PER_MSEC) /* wait before a reference that remains is called a leak */

/* Waits, making progress, until ready(ctx) or the deadline. */
static bool wait_until(struct rref_ctx *ctx, bool (*ready)(struct rref_ctx *ctx, void *arg),
		       int64_t deadline)
{
	rc_lock(ctx);
	ctx->end.looked = 0;
	bool yes = rc_wait_until(ctx, ready, NULL, deadline) == 0;

	rc_unlock(ctx);
	return yes;
}

static needs_lock bool idle(struct rref_ctx *ctx, __attribute__((unused)) void *arg)
{
	return rc_calls_open(ctx) == 0 && rc_ops_calling(ctx) == 0 &&
	       list_empty(&ctx->session.self_queue) && list_empty(&ctx->hooks.due) &&
	       !ctx->peers[ctx->rank].nr_queued;
}

/*
 * Goes over the workers for which `is` holds, from the one at which it stopped before. Tells if it
 * is behind the last one. For each of these it held once, and they do not go back.
 */
static needs_lock bool all_are(struct rref_ctx *ctx, bool (*is)(const struct rc_peer *p))
{
	uint32_t *i = &ctx->end.looked, end = min_of(*i + RC_RANKS_TURN, ctx->world);

	while (*i < end && is(&ctx->peers[*i])) {
		rb_slow_rank(2 * RC_RANKS_TURN);
		++*i;
	}
	return *i == ctx->world;
}

static needs_lock bool has_sent_all(const struct rc_peer *p)
{
	return !p->nr_queued;
}

static needs_lock bool references_finished(struct rref_ctx *ctx, __attribute__((unused)) void *arg)
{
	struct rp_counts c;

	rp_counts(ctx->op.machine, &c);
	if (c.users || c.pending_children)
		return false;
	return all_are(ctx, has_sent_all) && list_empty(&ctx->session.self_queue);
}

static needs_lock bool has_answered(const struct rc_peer *p)
{
	return !rc_state_stands(p->state) || p->ponged >= p->pinged;
}

static needs_lock bool pinged(struct rref_ctx *ctx, __attribute__((unused)) void *arg)
{
	return all_are(ctx, has_answered);
}

/*
 * Returns whether no reference of others is left. Ends the grace of each peer first, since no work
 * under way needs the forks of a dead worker. Other workers may have noticed its death earlier than
 * this one.
 */
static needs_lock bool forks_finished(struct rref_ctx *ctx, __attribute__((unused)) void *arg)
{
	uint32_t *i = &ctx->end.looked, end = min_of(*i + RC_RANKS_TURN, ctx->world);
	struct rp_counts c;

	for (; *i < end; ++*i) {
		rb_slow_rank(2 * RC_RANKS_TURN);
		rc_peer_end_grace(ctx, &ctx->peers[*i]);
	}
	*i %= ctx->world;
	rp_counts(ctx->op.machine, &c);
	return c.forks == 0;
}

/*
 * Tells whether the peer's goodbye has come, and ours went. If the connection breaks, ours has to
 * be sent again.
 */
static needs_lock bool has_left(const struct rc_peer *p)
{
	return !rc_state_stands(p->state) ||
	       (p->said_goodbye && !p->nr_queued && !p->unacked.nr);
}

static needs_lock bool everybody_left(struct rref_ctx *ctx, __attribute__((unused)) void *arg)
{
	return all_are(ctx, has_left);
}

static needs_lock bool may_retry(struct rref_ctx *ctx, void *arg)
{
	const struct rc_peer *p = arg;

	if (p->rank == ctx->rank || p->said_goodbye || p->nobody)
		return true;
	return p->state == RC_PEER_DOWN ? now_ns() >= p->retry_at : !rc_state_ends(p->state);
}

/*
 * Waits until a peer whose session just broke may be tried again. Without the wait this worker
 * would leave too early. Lets go of the lock meanwhile.
 */
static needs_lock void wait_for_retry(struct rref_ctx *ctx, struct rc_peer *p, int64_t deadline)
{
	rc_wait_until(ctx, may_retry, p, deadline);
}

const struct rc_op_kind rc_barrier_kind = {
	.name = "barrier",
	.ends_with_peer = true,
	.end = rc_op_end_plain,
	.why_late = rc_stall_words,
};

int rc_barrier_come(struct rref_ctx *ctx, struct rref_future *f, uint64_t number,
		    struct rc_calm *calm, int64_t deadline)
{
	struct rw_message m = { .frame.type = RW_BARRIER };
	/* Taken in the same hold of the lock as the sending: later calls are seen by the next
	 * barrier. */
	bool now_idle = idle(ctx, NULL);
	uint64_t begun = at_load(&ctx->call.begun);
	struct rc_peer *zero = &ctx->peers[0];
	int err = 0;

	rc_assert_locked(ctx);
	m.u.number = number << 1 | (!now_idle || !calm->idle || begun != calm->begun);
	if (number > ctx->end.barrier_sent) {
		ctx->end.barrier_sent = number;
		ctx->end.came_sent = false;
		*calm = (struct rc_calm){ begun, now_idle };
	}
	f->number = number;
	f->peer = 0;
	rc_op_begin(f);
	ctx->end.barrier_op = f;
	if (!ctx->end.came_sent || ctx->end.came_fences != zero->nr_fences) {
		wait_for_retry(ctx, zero, deadline);
		err = rc_send(ctx, 0, &m);
		ctx->end.came_sent = !err;
		ctx->end.came_fences = zero->nr_fences;
	}
	if (ctx->end.barrier_op == f && ctx->end.barrier_done >= number &&
	    !ctx->end.barrier_tells && rc_op_claim(f)) {
		rc_op_finish_locked(f);
		rc_op_put(f);
	}
	rc_barrier_watch(ctx);
	return err;
}

/* Names the workers that have not come to the barrier. Only rank 0 knows them. */
static needs_lock void say_missing(struct rref_ctx *ctx, char *text, size_t size)
{
	size_t used = (size_t)snprintf(text, size,
				       "not every worker came to rref_shutdown in time");
	const char *before = ": missing ";

	for (uint32_t i = 1; i < ctx->world && used < size; i++) {
		rc_rank_next(ctx, i);
		if (!rc_barrier_misses(ctx, i))
			continue;
		used += (size_t)snprintf(text + used, size - used, "%s%.60s (rank %u)", before,
					 ctx->members[i].name, i);
		before = ", ";
	}
}

/* Waits at the next barrier. Sets *busy to whether any worker was busy. */
static int barrier(struct rref_ctx *ctx, int64_t deadline, struct rc_calm *calm, bool *busy)
{
	struct rref_future *f;
	int err = rc_op_get(ctx, &rc_barrier_kind, deadline, &f);
	char text[RREF_TEXT_SIZE];
	uint64_t number;

	if (err)
		return err;
	rc_lock(ctx);
	/* rref_serve may have sent the first barrier. */
	number = ctx->end.came ? ctx->end.barrier_sent : ctx->end.barrier_sent + 1;
	if (ctx->end.came)
		*calm = ctx->end.came_calm;
	ctx->end.came = false;
	err = rc_barrier_come(ctx, f, number, calm, deadline);
	if (err)
		rc_op_end(ctx, f, err, rc_error_text());
	rc_unlock(ctx);
	if (rc_op_wait(f, deadline)) {
		rc_lock(ctx);
		say_missing(ctx, text, sizeof(text));
		rc_op_end(ctx, f, -ETIMEDOUT, text);
		rc_unlock(ctx);
	}
	rc_lock(ctx);
	if (ctx->end.barrier_op == f)
		ctx->end.barrier_op = NULL;
	*busy = ctx->end.barrier_busy >> f->number % 64 & 1;
	rc_unlock(ctx);
	err = f->status ? rc_fail_text(f->status, f->text) : 0;
	rc_op_put(f);
	return err;
}

static void end_handles(struct rref_ctx *ctx)
{
	/* sc. Pairs with look_is_good: no look begins from here on, and peers are told so. */
	at_store_sc(&ctx->state, RC_CTX_CLOSING);
	rc_looks_leave(ctx);
	rc_lock(ctx);
	for (struct rref *h = rc_handle_next(ctx, NULL); h; h = rc_handle_next(ctx, h)) {
		/* A thread may have found the handle ready a moment ago and be about to alias its
		 * value. */
		if (h->owned && !h->ended && at_load(&h->state) == RC_H_READY) {
			at_add(&h->value->pins, 1);
			h->pins = true;
		}
		rc_handle_end(ctx, h);
		rc_handle_fail(h, -ESHUTDOWN, "the context was shut down");
	}
	rc_unlock(ctx);
}

/* Sends a message of this type to each peer with a session. */
static void tell_all(struct rref_ctx *ctx, uint8_t type)
{
	rc_lock(ctx);
	for (uint32_t i = 0; i < ctx->world; i++) {
		struct rc_peer *p = &ctx->peers[i];
		struct rw_message m = { .frame.type = type };

		rc_rank_next(ctx, i);
		if (!rc_state_stands(p->state) || i == ctx->rank)
			continue;
		if (type == RW_PING)
			m.u.number = p->pinged + 1;
		if (rc_send(ctx, i, &m))
			continue;
		p->pinged += type == RW_PING;
		p->goodbye_sent = type == RW_GOODBYE;
	}
	rc_unlock(ctx);
}

/*
 * Reports the references that are left. References of others to values owned here are leaks.
 * References held here are reported only if time ran out before they could be ended. err is the
 * result of the shutdown so far.
 */
static int report_rest(struct rref_ctx *ctx, int err)
{
	char why[RREF_TEXT_SIZE], what[RREF_TEXT_SIZE - 120];
	uint64_t leaks, stuck;

	rc_leaks_rest(ctx, what, sizeof(what), &leaks, &stuck);
	if (!leaks && !stuck)
		return err;
	if (leaks)
		rc_log(ctx, RREF_LOG_WARNING, "leak: %" PRIu64 " references remain at shutdown: %s",
		       leaks, what);
	if (err) {
		snprintf(why, sizeof(why), "%s", rc_error_text());
		return rc_fail(-err, "%.110s; what remains: %s", why, what);
	}
	return leaks && ctx->end.leak_check
		       ? rc_fail(EBUSY, "%" PRIu64 " references remain: %s", leaks, what)
		       : 0;
}

/*
 * Returns -ETIMEDOUT on rank 0 if a worker ran out of time and left before the others. It says
 * goodbye like any other worker and is not waited for. But a shutdown that succeeds promises that
 * all workers leave together.
 */
static int left_early(struct rref_ctx *ctx)
{
	int err = 0;

	rc_lock(ctx);
	for (uint32_t i = 1; ctx->rank == 0 && ctx->end.barrier_seen && !err && i < ctx->world;
	     i++) {
		rc_rank_next(ctx, i);
		if (ctx->peers[i].said_goodbye && ctx->end.barrier_seen[i] < ctx->end.barrier_done)
			err = rc_fail(ETIMEDOUT,
				      "%s (rank %u) left before the others were ready to",
				      ctx->members[i].name, i);
	}
	rc_unlock(ctx);
	return err;
}

/* Returns -ETIMEDOUT, with a text that says why this worker is not idle. */
static int fail_busy(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	unsigned due = at_load(&ctx->hooks.nr);
	bool blocked = due && rc_hooks_blocked(ctx);
	unsigned calling = rc_ops_calling(ctx);

	rc_unlock(ctx);
	return rc_fail(ETIMEDOUT, "%u calls are still being served here, %u wait for an answer, "
		       "%u callbacks are due%s", (unsigned)rc_calls_open(ctx),
		       calling, due, blocked ? " and wait for others to return" : "");
}

static int leave_gracefully(struct rref_ctx *ctx, int64_t deadline)
{
	uint64_t dead = at_load(&ctx->n.dead);
	struct rc_calm calm = { .idle = true };
	bool busy = true;
	int err = barrier(ctx, deadline, &calm, &busy);

	/*
	 * A call that is served here may make further calls, to any worker. The work is over when
	 * no worker was busy at two barriers in a row. Nor may a worker have begun to serve a call
	 * between the two.
	 */
	for (busy = true; busy && !err;) {
		if (!wait_until(ctx, idle, deadline))
			err = fail_busy(ctx);
		if (!err)
			err = barrier(ctx, deadline, &calm, &busy);
	}
	at_store_rel(&ctx->state, RC_CTX_CLOSING);
	rc_leaks_handles(ctx);
	end_handles(ctx);
	if (!wait_until(ctx, references_finished,
			max_of(deadline, now_ns() + 10 * NSEC_PER_MSEC)) &&
	    !err)
		err = rc_fail(ETIMEDOUT, "references could not be ended in time");
	tell_all(ctx, RW_PING);
	if (!wait_until(ctx, pinged, max_of(deadline, now_ns() + 10 * NSEC_PER_MSEC)) && !err)
		err = rc_fail(ETIMEDOUT, "a peer did not confirm in time that references ended");
	if (!err)
		err = barrier(ctx, deadline, &calm, &busy);
	if (!err)
		wait_until(ctx, forks_finished, now_ns() + LEAK_NS);
	err = report_rest(ctx, err);
	tell_all(ctx, RW_GOODBYE);
	wait_until(ctx, everybody_left, now_ns() + (err ? 50 * NSEC_PER_MSEC : GOODBYE_NS));
	if (!err && at_load(&ctx->n.dead) != dead)
		err = rc_fail(EOWNERDEAD, "a worker died during the shutdown");
	return err ? err : left_early(ctx);
}

static void shutdown_retire(void *arg, const struct rp_visit *v)
{
	struct list *values = arg;

	(void)values;
	/* Only the visit without a fork retires the value, so each value is retired once. */
	if (v->owned && !v->fork.local_id && v->value)
		rc_value_retire(v->value);
}

/*
 * Waits for the works of payloads: they handle failed READs and free memory. Lets go of the lock
 * meanwhile.
 */
static needs_lock void finish_work(struct rref_ctx *ctx)
{
	while (ctx->works.nr || ctx->works.running) {
		rc_unlock(ctx);
		sched_yield();
		rc_lock(ctx);
	}
}

/*
 * Fences every connection and completes every future. Leaves nothing of the group but the program's
 * handles.
 */
static void close_down(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	at_store_rel(&ctx->state, RC_CTX_CLOSING);
	rc_peers_close(ctx);
	rc_ops_fail_all(ctx, -ESHUTDOWN, "the context was shut down");
	/* Reads that the fence cut off report through the devices one last time. */
	for (int turn = 0;
	     turn < 1000 && (rc_progress_locked(ctx, true) || at_load(&ctx->sleep.reads_in_flight));
	     turn++)
		;
	rc_in_flight_all_fail(ctx, -ESHUTDOWN);
	finish_work(ctx);
	rc_unlock(ctx);
	/* Handlers may wait for hooks, and hooks for one another: the hands go last. */
	rc_pool_close(ctx);
	rc_poller_close(ctx);
	rc_hooks_flush(ctx);
	end_handles(ctx);
	rc_lock(ctx);
	struct list *n;

	while ((n = list_pop(&ctx->session.self_queue)))
		free(container_of(n, struct rc_outgoing, node));
	/* No fence ends the payloads that this worker offered to itself in these messages. */
	rc_payloads_fenced(ctx, &ctx->peers[ctx->rank]);
	finish_work(ctx);
	at_store_rel(&ctx->state, RC_CTX_SHUT);
	rp_visit(ctx->op.machine, shutdown_retire, NULL);
	rp_destroy(ctx->op.machine);
	ctx->op.machine = NULL;
	rc_values_let_go(ctx);
	rc_unlock(ctx);
	rc_hooks_flush(ctx);
}

int rref_shutdown(struct rref_ctx *ctx, unsigned how, int64_t timeout)
{
	RB_NO_CANCEL;
	char why[RREF_TEXT_SIZE] = "";
	bool no = false;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (how > RREF_SHUTDOWN_NOW)
		return rc_fail(EINVAL, "rref_shutdown: unknown way %u", how);
	if (rc_in_callback())
		return rc_fail(EDEADLK, "rref_shutdown: called from a callback or handler");
	if (!at_cas_ar(&ctx->end.closing, &no, true))
		return rc_fail(ESHUTDOWN, "another thread is shutting the context down");
	/* The other thread may have ended its shutdown since the first check. */
	err = rc_enter(ctx);
	if (err) {
		at_store_rel(&ctx->end.closing, false);
		return err;
	}
	rc_lock(ctx);
	rc_unlock(ctx); /* a thread in rref_serve has seen `closing`, or rc_serve_end sees it */
	rc_serve_end(ctx);
	if (how == RREF_SHUTDOWN_GRACEFUL) {
		err = leave_gracefully(ctx, rc_deadline(ctx, timeout));
		if (err)
			snprintf(why, sizeof(why), "%s", rc_error_text());
	}
	close_down(ctx);
	rc_log_deliver(ctx);
	/* a program may end without freeing the context */
	if (ctx->scopes)
		rc_scopes_tick(ctx, now_ns(), true);
	/* comes last. Pairs with rref_free_ctx in another thread */
	at_store_rel(&ctx->end.closing, false);
	if (!err)
		rc_error_clear();
	return err ? rc_fail_text(err, why) : 0;
}
