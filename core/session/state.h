/* SPDX-License-Identifier: Apache-2.0 */
/* The state of session/ in a context. */
#ifndef RC_SESSION_STATE_H
#define RC_SESSION_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/locked.h"
#include "core/session/peer.h"
#include "rref.h"

struct rc_inject;
struct rc_session_events;

/* Sessions with all peers. */
struct rc_session_state {
	const struct rc_session_events *events; /* [const] */
	/* [const] fence.c: carries out the fence of rc_peer.ending */
	void (*fence)(struct rref_ctx *ctx, struct rc_work *w);
	bool leaves under_lock; /* this worker leaves: no session comes behind a fence */
	struct rc_region *beacon_region; /* region of one page; NULL = not yet */
	int beacon_fd;
	/* [const] heartbeat of this worker, which peers READ: its device answers, and its progress
	 * counts */
	uint64_t *beacon;
	/* [const] landing memory of the peers' heartbeats, by rank */
	uint64_t *probe_landing;
	struct rc_own_beat {
		uint64_t count under_lock;
		_Atomic int64_t at;       /* time of the last count */
		/* end and length of the last standstill of this worker */
		_Atomic int64_t woke_at, stood_ns;
	} own_beat;
	/* peers with something to do at a tick: rc_peer.watched */
	struct list watched under_lock;
	/* peers whose heartbeat is to be looked at, by their time, for each kind of device:
	 * rc_peer.looked */
	struct list looks[RV_NR_KINDS] under_lock;
	struct list self_queue under_lock; /* struct rc_outgoing */
	struct list spare_messages under_lock; /* small messages kept for the next; send.c */
	uint32_t nr_spare_messages under_lock;
	uint32_t nr_ending under_lock; /* peers whose fence is due */
	uint64_t nr_refused under_lock; /* refused connections, for the log */
	/* written under the lock, once: see rc_contact_lacks */
	char lack_here[RP_TEXT_MAX] under_lock;
	int64_t peer_timeout;
	int64_t stall_timeout;                    /* [const] 0 = for ever */
	/* [const] RC_SCORE_LIMIT; tests that break connections have their own */
	uint32_t score_limit;
	/* [const] RC_ANSWER_NS, or peer_timeout if that is longer; tests have their own */
	int64_t answer_ns;
	/* [const] NULL = off */
	void (*peer_down)(void *, struct rref_ctx *, const struct rref_peer_down *);
	void *peer_down_arg;                      /* [const] */
	struct rc_inject *inject under_lock; /* NULL but in tests: session/inject.h */
};

#endif
