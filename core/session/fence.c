/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fence: the end of a session, or of an attempt at one. Any code that holds the lock may ask
 * for it (rc_session_end, table.c). That may be in the middle of a message, or of a loop over
 * peers. Nothing that the caller holds goes away meanwhile. The next release of the lock carries
 * the fence out, as work of its own: core/base/work.h. Nothing else calls it.
 *
 * Its steps, strictly in this order:
 *
 *   (1) No new read finds the connection. Threads that post to it are waited for, without the lock.
 *   (2) The device fence: at its end nothing of the peer is in flight. The lock is not held
 *       meanwhile.
 *   (3) The machine drops all that hangs on the session. References that the peer was sharing stay
 *       for a grace period.
 *   (4) Only then may a new session of that peer come.
 *
 * A clock decides when to fence, never whether a read is safe.
 */
#include <errno.h>
#include <stdio.h>

#include "base/assert.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/op/step.h"
#include "core/session/internal.h"
#include "core/session/session.h"
#include "core/value/look.h"

#define GRACE_NS (1 * NSEC_PER_SEC)
/* pause before a fenced peer is tried again */
#define RETRY_NS (200 * NSEC_PER_MSEC)

static needs_lock void say_end(struct rref_ctx *ctx, const struct rc_peer *p, int status)
{
	bool stood = rc_state_stands(p->state);

	if (stood && !p->said_goodbye) {
		rc_log(ctx, status == -ESHUTDOWN ? RREF_LOG_DEBUG : RREF_LOG_WARNING,
		       "session %u with %s (rank %u) ended: %s", p->epoch, p->member->name, p->rank,
		       p->why);
		if (status == -EOWNERDEAD)
			at_add(&ctx->n.dead, 1);
	} else if (at_load(&p->alive) && !stood && status != -ESHUTDOWN) {
		rc_log(ctx, RREF_LOG_WARNING, "%s (rank %u) is given up: %s", p->member->name,
		       p->rank, p->why);
	}
}

/* Writes the cause with the worker's name. A long text is cut. */
static needs_lock void name_cause(const struct rc_peer *p, char named[RP_TEXT_MAX])
{
	int n = snprintf(named, RP_TEXT_MAX, "%.60s (rank %u): ", p->member->name, p->rank);

	strncat(named, p->why, (size_t)(RP_TEXT_MAX - 1 - n));
}

/* Sets the session back to its beginning. */
static needs_lock void begin_afresh(struct rref_ctx *ctx, struct rc_peer *p)
{
	p->cut_off = false;
	at_store(&p->silent_since, 0);
	p->nr_silent = 0;
	rc_stall_end(p);
	p->send_seq = p->recv_seq = 0;
	rc_resume_finished(p);
	p->retry_at = max_of(now_ns() + RETRY_NS, p->resume.banned_until);
	at_store(&p->alive, false);
	p->nr_fences++;
	rc_send_drop_queue(ctx, p);
	p->grace_at = now_ns() + GRACE_NS;
	p->fenced = true;
}

/* Takes the session that the peer has asked for meanwhile, or refuses it. */
static needs_lock void let_next_in(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rv_conn *next = p->ending.next;

	p->ending.next = NULL;
	if (next && p->state == RC_PEER_GONE)
		rc_peer_refuse(ctx, p->device, next, -ESHUTDOWN, RC_LEFT_TEXT);
	else if (next)
		rc_peer_take(ctx, p, next);
}

/*
 * Does (1), and begins (2). The connection of a broken session is gone already; link was to take
 * its place. Returns false if the device is not done. The end of its last connection brings the
 * fence again.
 */
static needs_lock bool is_cut_loose(struct rref_ctx *ctx, struct rc_peer *p)
{
	if (!p->ending.waits) {
		rc_peer_stop_reads(ctx, p);
		rc_peer_close(p);
	}
	p->ending.waits = p->nr_closing > 0;
	return !p->ending.waits;
}

void rc_peer_fence(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_peer *p = container_of(w, struct rc_peer, ending.work);
	bool was_alive = at_load(&p->alive), in_silence = p->ending.in_silence;
	char named[RP_TEXT_MAX]; /* names the worker, since an operation's text stands alone */
	struct rp_event ev = { .type = RP_EV_PEER_FENCED, .peer = p->rank, .text = named };

	rc_assert_locked(ctx);
	rb_assert(rc_state_ends(p->state));
	if (!is_cut_loose(ctx, p))
		return;
	/* Comes here, since no further look is good, and the machine still knows the references. */
	if (!rc_onlooker_over(ctx, p)) {
		p->ending.waits = true;
		rc_defer(ctx, w);
		return;
	}
	p->ending.in_silence = false;
	ev.status = p->ending.status;
	ctx->session.nr_ending--;
	say_end(ctx, p, ev.status);
	name_cause(p, named);
	rc_session_on(ctx, p, ctx->session.leaves ? RC_STEP_SHUT : RC_STEP_FENCED);
	begin_afresh(ctx, p);
	/* (3) */
	rc_step(ctx, &ev, NULL);
	ctx->session.events->ended(ctx, p, ev.status, named);
	if (was_alive)
		rc_peer_is_down(ctx, p, ev.status);
	ctx->session.events->one_fewer(ctx);
	if (in_silence && p->state == RC_PEER_DOWN)
		rc_contact_lost(ctx, p);
	let_next_in(ctx, p);
}
