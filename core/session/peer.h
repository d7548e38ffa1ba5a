/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc_peer: the state of each peer and its session, outgoing messages, devices and their regions.
 * Guards: see core/ctx.h.
 */
#ifndef RC_PEER_H
#define RC_PEER_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/hook.h"
#include "core/base/locked.h"
#include "core/base/work.h"
#include "core/group/group.h"
#include "core/protocol/protocol.h"
#include "core/session/resume.h"
#include "core/session/table.h"
#include "rref.h"
#include "verbs/rv.h"

struct rc_traffic { /* control messages that went out and came in */
	uint64_t sent, received, sent_bytes, received_bytes;
};

/* State of a peer's heartbeat as seen from here; stall.c. */
struct rc_stall {
	uint64_t count;               /* heartbeat last seen; 0 = not yet in this session */
	int64_t looked_at;
	/* time without a change, as far as this worker was awake to look */
	int64_t still_ns;
	/* earliest fence after this worker stood still itself; 0 = it did not */
	int64_t not_before;
	int64_t fence_at;             /* time of the fence that the peer was told of; 0 = none */
};

/* Reads in pieces, over hardware; read/split.c */
struct rc_split {
	struct list reads under_lock; /* reads that have further pieces to post */
	/* number of these; sc: partner of the ends of pieces. Written under the lock */
	_Atomic uint32_t nr_reads;
	/*
	 * {connection 32, number 32}: bytes in flight, of the reads that need turns; pieces in
	 * flight, of all reads. Pieces of an earlier connection do not count; sc
	 */
	_Atomic uint64_t bytes, outstanding;
	uint32_t connection under_lock; /* number of the connection, counted up; not 0 */
};

/* Begins the count of the next connection. */
static inline needs_lock void rc_split_next(struct rc_split *q)
{
	q->connection += q->connection == UINT32_MAX ? 2 : 1;
	at_store_sc(&q->bytes, (uint64_t)q->connection << 32);
	at_store_sc(&q->outstanding, (uint64_t)q->connection << 32);
}

/* A fence that is due: it was asked for, and not carried out yet; fence.c. */
struct rc_ending {
	struct rc_work work;
	int status; /* the cause; rc_peer.why has its text */
	bool in_silence; /* no answer came: the peer is cut off behind the fence */
	bool waits; /* the device has to be done with the peer's connections first */
	/* the peer's next attempt, taken behind the fence; rc_peer.hs is its hello. NULL = none */
	struct rv_conn *next;
};

/* Deaths of a peer that the program has not heard of; down.c. */
struct rc_down {
	struct rc_hook hook;
	bool queued;                  /* the hook is to be run, or runs */
	uint32_t nr;
	int err;                      /* error of the last death */
	char text[RP_TEXT_MAX];
};

/* Cookie of the READ of a peer's heartbeat; stall.c */
#define RC_PROBE_COOKIE UINT64_MAX

/*
 * Time for which one attempt at a session waits for the peer. The peer may be stopped, or one of
 * many on a busy machine.
 */
#define RC_ANSWER_NS (30 * NSEC_PER_SEC)

/*
 * Number of hellos for new sessions that a peer may send in a second. To begin a session is much
 * work.
 */
#define RC_HELLOS_MAX 32u

struct rc_peer {
	struct rc_member *member;
	uint32_t rank;
	/* [const] device that reaches the peer; NULL for self or unreachable */
	const struct rv_ops *ops;
	struct rv_dev *dev;           /* [const] */
	struct rc_device *device;     /* [const] entry of dev in ctx->device */
	enum rv_kind kind;            /* [const] */
	/* [const] a READ is over when it is posted: caps of its device */
	bool reads_inline;
	enum rc_peer_state state under_lock; /* table.h */
	bool said_goodbye under_lock; /* the peer's goodbye came: its end is orderly */
	bool goodbye_sent under_lock; /* goodbye of this worker went out in this session */
	bool ever_up under_lock; /* there was a session */
	/* the machine shares nothing with the peer until a new session is up */
	bool fenced under_lock;
	bool nobody under_lock; /* the last attempt found no listener: its process is gone */
	/* the last session ended because nothing answered, and nothing has since */
	bool cut_off under_lock;
	/* attempts in a row that came to nothing, without a refusal */
	uint32_t nr_silent under_lock;
	uint64_t pinged under_lock, ponged under_lock; /* last PING sent, last PONG seen */
	/* time at which an attempt ends if the peer has not answered */
	int64_t auth_by under_lock;
	struct rv_conn *link under_lock; /* connection in any state */
	/* earlier connections that the device is not done with; one of them may be `left` */
	uint32_t nr_closing under_lock;
	uint32_t epoch under_lock; /* epoch of the current or last session */
	/* the connection to which threads may still post. It is closed behind them, or if it is
	 * link its READs are made again; NULL = none */
	struct rv_conn *left under_lock;
	struct rc_handshake hs under_lock;
	uint64_t hello_number under_lock; /* number of the peer's last hello */
	int64_t hellos_since under_lock; /* beginning of the second in which nr_hellos counts */
	uint32_t nr_hellos under_lock; /* hellos in this second; at most RC_HELLOS_MAX are taken */
	uint64_t send_seq under_lock, recv_seq under_lock;
	struct rc_unacked unacked under_lock;
	struct rc_resume resume under_lock;
	struct list queue under_lock; /* struct rc_outgoing */
	/* messages in the queue, and messages that a test holds back */
	uint32_t nr_queued under_lock;
	/* number of struct rc_incoming to drop when they are confirmed */
	uint32_t nr_drops under_lock;
	/* earliest time to send the head of the queue again; 0 = at once */
	int64_t resend_at under_lock;
	size_t queued_bytes under_lock; /* bounded, see send.c */
	/* Bytes of the peer's calls that were open here, less the calls that ended under the lock.
	 * Written under the lock. */
	_Atomic uint64_t call_bytes;
	/* Bytes of the calls that ended without the lock. rc_call_bytes() returns the open bytes:
	 * bounded, see serve.c. */
	_Atomic uint64_t call_bytes_over;
	/* bytes of the payloads of open calls; bounded, see take.c */
	_Atomic uint64_t fetch_bytes;
	/* bytes of payloads that the peer has not read yet; bounded, see payload.c */
	_Atomic uint64_t offer_bytes;
	struct list waiting under_lock; /* reads that wait for a connection or a slot */
	struct rc_split pieces;
	int64_t retry_at under_lock; /* earliest time of a new attempt */
	int64_t grace_at under_lock; /* end of the grace period; 0 = none */
	struct list watched under_lock; /* ctx->session.watched; rc_peer_watch */
	struct list looked under_lock; /* ctx->session.looks */
	int64_t probe_at under_lock;
	/* address to READ to learn whether the peer's device answers */
	uint64_t beacon_addr under_lock;
	uint32_t beacon_rkey;
	bool probing under_lock;
	/* READs can go over link, as its device says; nothing where reads_inline */
	bool reads_up under_lock;
	bool reads_cut under_lock; /* they could before */
	struct rc_stall stall under_lock;
	/* reason that the peer has no connection yet; NULL = unknown */
	_Atomic(const char *) why_later;
	/* ns for which the peer's process has not answered; 0 = it answers */
	_Atomic int64_t stalled_ns;
	/* Time since which no attempt at a session was answered. 0 = no attempt was made, or one
	 * was answered. Written under the lock. */
	_Atomic int64_t silent_since;
	uint64_t max_msg;             /* [const] */
	uint32_t max_sge;             /* [const] */
	char why[RP_TEXT_MAX] under_lock; /* last failure */
	struct rc_traffic traffic under_lock;
	uint32_t nr_sessions under_lock; /* sessions that came up */
	uint32_t nr_fences under_lock; /* fences; each drops the messages that wait */
	/* time of the peer's last message or its device's last sign of life; 0 = never */
	int64_t heard_at under_lock;
	struct rc_ending ending under_lock;
	struct rc_down down under_lock;
	/* work that ends of READs leave to the next holder of the lock; peer.c */
	struct rc_work later;
	_Atomic uint32_t later_what;  /* bits of enum rc_later; 0 = it is not pushed */
	_Atomic bool alive;
	/* read path: pinned connection */
	cache_aligned _Atomic(struct rv_conn *) conn; /* sc. Pairs with readers */
	/* sc. Pairs with conn: the fence stores conn = NULL and goes on at 0 */
	_Atomic uint32_t readers;
	/* hint: reads wait, do not overtake them; sc: partner of the ends of READs */
	_Atomic uint32_t nr_waiting;
	_Atomic uint32_t standing_in; /* pieces of reads that stand in for others: read/again.c */
	bool has_key under_lock;
	struct rc_key key under_lock; /* key of the pair; rc_peer_key */
	/* the peer's process, which may look at values here; NULL = it may not. It stands here
	 * since the struct's size counts: reads find their peer by it */
	struct rc_onlooker *onlooker under_lock;
};

/* Work for a peer that any thread may leave to the next holder of the lock. */
enum rc_later { RC_LATER_READS = 1 /* reads go on */, RC_LATER_HEARTBEAT = 2 /* was READ */ };

/* Tells whether a connection failed for want of something here, which may come back. */
static inline bool rc_is_lack(int err)
{
	return err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -ENOBUFS;
}

struct rc_outgoing {
	struct list node;
	uint32_t length;
	/* room for bytes; RC_SMALL_MESSAGE: the block may be kept for the next message */
	uint16_t room;
	uint16_t tries;               /* tries that failed */
	uint8_t bytes[];
};
#define RC_SMALL_MESSAGE 232u

/*
 * ---- devices and regions
 * ---------------------------------------------------------------------------------------
 */

struct rc_device {
	const struct rv_ops *ops;
	struct rv_dev *dev;          /* NULL = not open */
	struct rv_caps caps;
	/* [const] all memory of this process as a landing place; only where reads_inline */
	struct rv_mr any;
	char why_not[RREF_TEXT_SIZE];
	int lost_why under_lock; /* -errno; its sessions end. 0 = not lost */
	struct rc_work lost_work;
	uint32_t lost_next under_lock; /* the peer whose session ends next */
};

struct rc_region {
	uint64_t iova;
	struct rv_mr mr[RV_NR_KINDS];
	bool have[RV_NR_KINDS];
	struct rref_ctx *ctx;
	enum rv_access access;
	size_t length;
};

#endif
