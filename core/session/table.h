/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session's state machine, as one total table. Each state and event has a row: an action and
 * the next state. States change nowhere else (rc_session_on).
 *
 *         DIALLED              ANSWERED           PROVED
 *   DOWN ---------> CONNECTING ---------> PROVING ------------------------> UP
 *    | TAKEN           | CROSSED                                            |
 *    |                 v                                                    |
 *    |              CROSSED                                                 |
 *    | TAKEN                                      PROVED                    |
 *    +------------> ACCEPTING --------------------------------------------> UP
 *                                                                           | BROKE
 *            DIALLED               ANSWERED            PROVED               v
 *   BROKEN ---------> REDIALLING ----------> REPROVING -------> UP        BROKEN
 *      |      TAKEN                                    PROVED
 *      +------------> REACCEPTING ----------------------------> UP
 *
 * OVER leads from an attempt back to DOWN, or to BROKEN while the session stands.
 *
 *   any state --ENDS--> ENDING, or GIVEN_UP if no session stands --FENCED--> DOWN
 *                                                                \--SHUT---> GONE, for good
 *
 * A fence is asked for in the middle of other work, and carried out later: fence.c. In between, no
 * message goes out or is taken. Requests of this worker wait, as in BROKEN, and the fence
 * ends them. The first cause is the one that counts.
 *
 * Reports come from the device and the clock: they have an action, and the state stays. Steps
 * follow from reports: they have no action, and lead to the next state. An impossible report ends
 * the session, since no peer may end this process. An impossible step is a fault of the library: an
 * assertion, or the same end without assertions.
 *
 * Some facts are no states, since they outlive the session or meet each of its states. These are
 * the peer's goodbye and ours, cut_off, fenced, ever_up, nobody (peer.h).
 */
#ifndef RC_SESSION_TABLE_H
#define RC_SESSION_TABLE_H

#include <stdbool.h>

#include "core/base/locked.h"

struct rref_ctx;
struct rc_peer;

enum rc_peer_state {
	RC_PEER_DOWN,        /* no session, no attempt */
	RC_PEER_CONNECTING,  /* this worker's hello is out */
	RC_PEER_CROSSED,     /* the peer's hello won against ours, and is on its way */
	RC_PEER_ACCEPTING,   /* this worker's answer is out, the client's proof is not here */
	RC_PEER_PROVING,     /* this worker's proof is out, the server's answer to it is not here */
	RC_PEER_GIVEN_UP,    /* a fence is due, and no session stands */
	RC_PEER_GONE,        /* this worker has left */
	/* The session stands from here on. */
	RC_PEER_UP,
	RC_PEER_ENDING,      /* a fence is due; until then nothing of the session is gone */
	/* The session stands, its connection does not. */
	RC_PEER_BROKEN,      /* no attempt is under way */
	RC_PEER_REDIALLING,  /* like CONNECTING, PROVING and ACCEPTING, within the session */
	RC_PEER_REPROVING,
	RC_PEER_REACCEPTING,
	RC_PEER_NR_STATES,
};

enum rc_session_event {
	/* reports */
	RC_SEE_HELLO,        /* a peer's hello for a new session, checked */
	RC_SEE_RESUME,       /* a peer's hello for the session that stands, checked */
	RC_SEE_CONNECTED,    /* events of the device for p->link */
	RC_SEE_FAILED,
	RC_SEE_LOST,
	RC_SEE_MESSAGE,
	RC_SEE_WRITABLE,
	RC_SEE_TICK,         /* time has passed */
	RC_SESSION_NR_REPORTS,
	/* steps */
	RC_STEP_DIALLED = RC_SESSION_NR_REPORTS, /* this worker's hello went out */
	RC_STEP_CROSSED,     /* the peer has a hello of its own under way, which goes first */
	RC_STEP_TAKEN,       /* a hello of the peer is taken */
	RC_STEP_ANSWERED,    /* the server's answer holds */
	RC_STEP_PROVED,      /* both sides have proved their identity */
	RC_STEP_OVER,        /* an attempt came to nothing */
	RC_STEP_BROKE,       /* the connection is gone, the session stands */
	RC_STEP_ENDS,        /* a fence is asked for: rc_session_end */
	RC_STEP_FENCED,      /* the fence was carried out */
	RC_STEP_SHUT,        /* the same, and this worker leaves */
	RC_SESSION_NR_EVENTS,
};

enum rc_session_action {
	RC_DO_MISSING,       /* no row; the unit test fails if a place has none */
	RC_DO_NEVER,         /* the event cannot come */
	RC_DO_NOTHING,
	RC_DO_LEFT,          /* hellos: refuse it, since this worker has left */
	RC_DO_REFUSE,        /* refuse it */
	RC_DO_TAKE,          /* begin the session */
	RC_DO_CROSS,         /* the lower rank's goes first */
	RC_DO_REPLACE,       /* give up the attempt at hand, then take it */
	RC_DO_END_TAKE,      /* end the old session, and take it after the fence */
	RC_DO_BREAK_TAKE,    /* break the connection, then take it */
	RC_DO_ALIVE,         /* the client lives: await its proof */
	RC_DO_ANSWER,        /* check the answer, send the proof */
	RC_DO_REANSWER,
	RC_DO_FAIL,          /* an attempt failed: tell a refusal from silence */
	RC_DO_REFAIL,
	RC_DO_OVER,          /* an attempt lost its connection */
	RC_DO_REOVER,
	RC_DO_LOSE,          /* the session lost its connection: break, or fence */
	RC_DO_FIRST,         /* the first message: a proof */
	RC_DO_REFIRST,
	RC_DO_MESSAGE,
	RC_DO_DROP,          /* the session ends: its events are worth nothing */
	RC_DO_FLUSH,
	RC_DO_WANT,          /* tick: begin an attempt if one is due */
	RC_DO_WAIT,          /* tick: wait for the hello that won */
	RC_DO_TIME,          /* tick: time the attempt */
	RC_DO_RETIME,        /* tick: time the broken session and its attempt */
	RC_DO_LOOK,          /* tick: look whether its process stands still */
	RC_DO_NR,
};

struct rc_session_row {
	unsigned char action; /* enum rc_session_action */
	unsigned char next;   /* enum rc_peer_state */
};

/* Returns the row of any state and event. Out of range: NEVER, and DOWN. */
struct rc_session_row rc_session_row(unsigned state, unsigned event);
/* Moves p to the next state and returns the action. */
needs_lock enum rc_session_action rc_session_on(struct rref_ctx *ctx, struct rc_peer *p,
						enum rc_session_event event);
/*
 * Asks for the peer's fence, which the next release of the lock carries out. Notes the cause,
 * -errno and text, unless a fence is due already. Changes no state but the session's, and frees
 * nothing.
 */
needs_lock void rc_session_end(struct rref_ctx *ctx, struct rc_peer *p, int status,
			       const char *why);

/* Tells whether a session stands, with a connection or without. */
static inline bool rc_state_stands(enum rc_peer_state state)
{
	return state >= RC_PEER_UP;
}

/* Tells whether a session stands without a connection. */
static inline bool rc_state_broken(enum rc_peer_state state)
{
	return state > RC_PEER_ENDING;
}

/* Tells whether an attempt at a session is under way. */
static inline bool rc_state_tries(enum rc_peer_state state)
{
	return state >= RC_PEER_CONNECTING && state <= RC_PEER_PROVING;
}

/* Tells whether a fence is due. */
static inline bool rc_state_ends(enum rc_peer_state state)
{
	return state == RC_PEER_ENDING || state == RC_PEER_GIVEN_UP;
}

#endif
