/* SPDX-License-Identifier: Apache-2.0 */
#include "core/session/table.h"

#include <errno.h>
#include <stdio.h>

#include "base/assert.h"
#include "core/base/lock.h"
#include "core/base/work.h"
#include "core/ctx.h"
#include "core/session/session.h"

#define STAY(action) { RC_DO_##action, HERE }
#define GO(next) { RC_DO_NOTHING, RC_PEER_##next }
#define NEVER { RC_DO_NEVER, HERE }

/* Stands for the state of the row. */
#define HERE RC_PEER_NR_STATES

static const struct rc_session_row table[RC_PEER_NR_STATES][RC_SESSION_NR_EVENTS] = {
	[RC_PEER_DOWN] = {
		[RC_SEE_HELLO] = STAY(TAKE),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = NEVER,
		[RC_SEE_MESSAGE] = NEVER,
		[RC_SEE_WRITABLE] = NEVER,
		[RC_SEE_TICK] = STAY(WANT),
		[RC_STEP_DIALLED] = GO(CONNECTING),
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = GO(ACCEPTING),
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = GO(DOWN), /* the device could not even connect */
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GIVEN_UP),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_CONNECTING] = {
		[RC_SEE_HELLO] = STAY(CROSS),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = STAY(ANSWER),
		[RC_SEE_FAILED] = STAY(FAIL),
		[RC_SEE_LOST] = NEVER,
		[RC_SEE_MESSAGE] = STAY(NOTHING), /* FAILED follows: the peer has proved nothing */
		[RC_SEE_WRITABLE] = NEVER,
		[RC_SEE_TICK] = STAY(TIME),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = GO(CROSSED),
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = GO(PROVING),
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = GO(DOWN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GIVEN_UP),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_CROSSED] = {
		[RC_SEE_HELLO] = STAY(REPLACE),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = NEVER,
		[RC_SEE_MESSAGE] = NEVER,
		[RC_SEE_WRITABLE] = NEVER,
		[RC_SEE_TICK] = STAY(WAIT),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = GO(DOWN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GIVEN_UP),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_ACCEPTING] = {
		[RC_SEE_HELLO] = STAY(REPLACE),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = STAY(ALIVE),
		[RC_SEE_FAILED] = STAY(FAIL),
		[RC_SEE_LOST] = STAY(OVER),
		[RC_SEE_MESSAGE] = STAY(FIRST),
		[RC_SEE_WRITABLE] = STAY(NOTHING),
		[RC_SEE_TICK] = STAY(TIME),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = GO(UP),
		[RC_STEP_OVER] = GO(DOWN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GIVEN_UP),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_PROVING] = {
		[RC_SEE_HELLO] = STAY(CROSS),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = STAY(OVER),
		[RC_SEE_MESSAGE] = STAY(FIRST),
		[RC_SEE_WRITABLE] = STAY(FLUSH), /* the proof may wait for room */
		[RC_SEE_TICK] = STAY(TIME),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = GO(UP),
		[RC_STEP_OVER] = GO(DOWN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GIVEN_UP),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_GIVEN_UP] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = STAY(DROP),
		[RC_SEE_FAILED] = STAY(DROP),
		[RC_SEE_LOST] = STAY(DROP),
		[RC_SEE_MESSAGE] = STAY(DROP),
		[RC_SEE_WRITABLE] = STAY(DROP),
		[RC_SEE_TICK] = STAY(NOTHING),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = NEVER,
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GIVEN_UP), /* the first cause counts */
		[RC_STEP_FENCED] = GO(DOWN),
		[RC_STEP_SHUT] = GO(GONE),
	},
	[RC_PEER_GONE] = {
		[RC_SEE_HELLO] = STAY(LEFT),
		[RC_SEE_RESUME] = STAY(LEFT),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = NEVER,
		[RC_SEE_MESSAGE] = NEVER,
		[RC_SEE_WRITABLE] = NEVER,
		[RC_SEE_TICK] = STAY(NOTHING),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = NEVER,
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(GONE), /* no session is left to end */
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_UP] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(BREAK_TAKE),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = STAY(LOSE),
		[RC_SEE_MESSAGE] = STAY(MESSAGE),
		[RC_SEE_WRITABLE] = STAY(FLUSH),
		[RC_SEE_TICK] = STAY(LOOK),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = NEVER,
		[RC_STEP_BROKE] = GO(BROKEN),
		[RC_STEP_ENDS] = GO(ENDING),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_ENDING] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(REFUSE),
		[RC_SEE_CONNECTED] = STAY(DROP),
		[RC_SEE_FAILED] = STAY(DROP),
		[RC_SEE_LOST] = STAY(DROP),
		[RC_SEE_MESSAGE] = STAY(DROP),
		[RC_SEE_WRITABLE] = STAY(DROP),
		[RC_SEE_TICK] = STAY(NOTHING),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = NEVER,
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(ENDING), /* the first cause counts */
		[RC_STEP_FENCED] = GO(DOWN),
		[RC_STEP_SHUT] = GO(GONE),
	},
	[RC_PEER_BROKEN] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(REPLACE),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = NEVER,
		[RC_SEE_MESSAGE] = NEVER,
		[RC_SEE_WRITABLE] = NEVER,
		[RC_SEE_TICK] = STAY(RETIME),
		[RC_STEP_DIALLED] = GO(REDIALLING),
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = GO(REACCEPTING),
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = GO(BROKEN), /* the device could not even connect */
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(ENDING),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_REDIALLING] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(CROSS),
		[RC_SEE_CONNECTED] = STAY(REANSWER),
		[RC_SEE_FAILED] = STAY(REFAIL),
		[RC_SEE_LOST] = NEVER,
		[RC_SEE_MESSAGE] = STAY(NOTHING), /* FAILED follows: the peer has proved nothing */
		[RC_SEE_WRITABLE] = NEVER,
		[RC_SEE_TICK] = STAY(RETIME),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = GO(REPROVING),
		[RC_STEP_PROVED] = NEVER,
		[RC_STEP_OVER] = GO(BROKEN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(ENDING),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_REPROVING] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(CROSS),
		[RC_SEE_CONNECTED] = NEVER,
		[RC_SEE_FAILED] = NEVER,
		[RC_SEE_LOST] = STAY(REOVER),
		[RC_SEE_MESSAGE] = STAY(REFIRST),
		[RC_SEE_WRITABLE] = STAY(NOTHING),
		[RC_SEE_TICK] = STAY(RETIME),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = GO(UP),
		[RC_STEP_OVER] = GO(BROKEN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(ENDING),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
	[RC_PEER_REACCEPTING] = {
		[RC_SEE_HELLO] = STAY(END_TAKE),
		[RC_SEE_RESUME] = STAY(REPLACE),
		[RC_SEE_CONNECTED] = STAY(NOTHING), /* no action before the client's proof */
		[RC_SEE_FAILED] = STAY(REOVER),
		[RC_SEE_LOST] = STAY(REOVER),
		[RC_SEE_MESSAGE] = STAY(REFIRST),
		[RC_SEE_WRITABLE] = STAY(NOTHING),
		[RC_SEE_TICK] = STAY(RETIME),
		[RC_STEP_DIALLED] = NEVER,
		[RC_STEP_CROSSED] = NEVER,
		[RC_STEP_TAKEN] = NEVER,
		[RC_STEP_ANSWERED] = NEVER,
		[RC_STEP_PROVED] = GO(UP),
		[RC_STEP_OVER] = GO(BROKEN),
		[RC_STEP_BROKE] = NEVER,
		[RC_STEP_ENDS] = GO(ENDING),
		[RC_STEP_FENCED] = NEVER,
		[RC_STEP_SHUT] = NEVER,
	},
};

struct rc_session_row rc_session_row(unsigned state, unsigned event)
{
	struct rc_session_row row;

	if (state >= RC_PEER_NR_STATES || event >= RC_SESSION_NR_EVENTS)
		return (struct rc_session_row){ RC_DO_NEVER, RC_PEER_DOWN };
	row = table[state][event];
	if (row.next == HERE)
		row.next = (unsigned char)state;
	return row;
}

enum rc_session_action rc_session_on(struct rref_ctx *ctx, struct rc_peer *p,
				     enum rc_session_event event)
{
	struct rc_session_row row = rc_session_row(p->state, event);

	rc_assert_locked(ctx);
	if (row.action == RC_DO_NEVER) {
		rb_assert(event < RC_SESSION_NR_REPORTS);
		rc_session_end(ctx, p, -EPROTO, "its connection did what it cannot do");
	} else if (event >= RC_SESSION_NR_REPORTS) {
		p->state = (enum rc_peer_state)row.next;
		rc_peer_watch(ctx, p);
	}
	return (enum rc_session_action)row.action;
}

void rc_session_end(struct rref_ctx *ctx, struct rc_peer *p, int status, const char *why)
{
	enum rc_peer_state was = p->state;

	rc_assert_locked(ctx);
	if (p->rank == ctx->rank)
		return;
	rc_session_on(ctx, p, RC_STEP_ENDS);
	if (p->state == was)
		return;
	ctx->session.nr_ending += rc_state_ends(p->state);
	p->ending.status = status;
	snprintf(p->why, sizeof(p->why), "%s", why);
	p->ending.work.run = ctx->session.fence;
	rc_defer_first(ctx, &p->ending.work);
}
