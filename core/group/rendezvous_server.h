/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous as rank 0 serves it: one poll loop, no thread, nothing that waits for one
 * connection alone.
 *
 *   a connection   HELLO --hello good--> JOIN --join good--> MEMBER --table sent--> gone
 *                    |                    |                     |
 *                    |                    |                     +--closed--> gone
 *                    +-----refused--------+---group failed------+--> LEAVING --closed, late--> gone
 *
 *   the group      GATHER   --all here--> TABLE --all sent--> done
 *                    +--rank or name twice, another world or version, deadline--> FAILING
 *                  FAILING  --all told--> done
 *
 * The place of a member whose connection closes is free again.
 *
 * A stranger can take MAX_HALF_OPEN connections at a time, for STRANGER_NS each. A further
 * connection takes the place of the oldest, of the address that has most. A worker says its HELLO
 * at once, and is no stranger from then on: its MAC was right. So it needs its place for a moment
 * only, however many come behind it. On loopback, where all have one address, age decides alone.
 *
 * Nothing that comes without the key changes the group's state. FAILING still shakes hands for a
 * short while. So workers that are on their way hear the reason, instead of trying until their
 * deadline.
 */
#ifndef RC_RENDEZVOUS_SERVER_H
#define RC_RENDEZVOUS_SERVER_H

#include <poll.h>

#include "base/assert.h"
#include "base/util.h"
#include "core/group/rendezvous.h"

#define MAX_LISTENERS 8
#define MAX_HALF_OPEN 64
#define STRANGER_NS (2 * NSEC_PER_SEC)           /* for HELLO */
#define JOIN_NS (5 * NSEC_PER_SEC)

enum rz_state { AT_HELLO, AT_JOIN, AT_MEMBER, AT_LEAVING, AT_GONE };

struct rz_conn {
	int fd;
	enum rz_state state;
	bool told;                     /* true: the group's failure was told to it */
	bool is_shut;                  /* LEAVING: everything is sent */
	/* TABLE: 0..world entries, world = END, world + 1 = all made */
	uint32_t next_entry;
	size_t drained;
	int64_t until;                 /* limit for HELLO, JOIN, LEAVING */
	uint64_t from; /* the peer's address, or the network of it that one host may have */
	struct rz_session session;
	struct rz_reader in;
	size_t out_have, out_sent;
	uint8_t out[4 * RZ_FRAME_MAX]; /* the last frame's place is kept for FAILED */
	char peer[RZ_SOCKADDR_TEXT];
};

enum rz_phase { GATHER, TABLE, FAILING };

/* owner: the one thread inside rz_serve */
struct rz_serve {
	const struct rz_address *a;
	const struct rc_key *key;
	const struct rc_group_log *log;
	uint32_t world;
	int64_t start, deadline;
	char at[RZ_SOCKADDR_TEXT];     /* where it listens */
	int listener[MAX_LISTENERS];
	unsigned nr_listeners;
	/* time of the next accept after a lack of descriptors or memory, or 0 */
	int64_t accept_again;
	int accept_err;                /* positive: the last such lack; 0 when there is none now */

	enum rz_phase phase;
	int err;                       /* FAILING: positive */
	char text[RZ_TEXT_MAX];
	uint32_t nr_told;
	int64_t tell_until;

	struct rc_member *table;       /* [world]; valid where present */
	struct rz_conn **holder;       /* [world]; NULL: this worker, or no worker */
	struct rz_status status;
	uint32_t nr_present;
	struct rz_digest digest;       /* TABLE */
	bool status_due;
	int64_t next_status;
	struct rz_say say;             /* times at which the wait is logged in GATHER */

	struct rz_conn **conns;        /* [max_conns] */
	size_t nr_conns, max_conns;
	struct pollfd *polls;          /* [MAX_LISTENERS + max_conns] */
	uint64_t nr_refused;
	char last_refused[160];
};

/* ---- rendezvous_server.c */

static inline uint8_t *rz_out_end(struct rz_conn *c)
{
	/* The callers make one frame, and have looked whether there is room for it. */
	rb_assert_is(c->out_have + RZ_FRAME_MAX, <=, sizeof(c->out));
	return c->out + c->out_have;
}

/*
 * Makes room for a new connection in that state, AT_HELLO or AT_JOIN. Another may have to go for
 * it.
 */
void rz_make_room(struct rz_serve *s, enum rz_state state);
/* Sends what it can. Returns 0, or -errno when the connection is lost. */
int rz_flush(struct rz_conn *c);
/* Closes; its place, if it had one, is free. The struct stays until the next turn of the loop. */
void rz_drop(struct rz_serve *s, struct rz_conn *c);
/* Ends a connection that has no place, with a REFUSE or without. Counted and logged. */
void rz_refuse(struct rz_serve *s, struct rz_conn *c, int err, const char *text);
void rz_refuse_silently(struct rz_serve *s, struct rz_conn *c, const char *why);
/*
 * Fails a group that can never be complete. Tells all members, and each worker that joins from now
 * on. err positive.
 */
void rz_fail_group(struct rz_serve *s, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void rz_tell_failure(struct rz_serve *s, struct rz_conn *c);

/* ---- rendezvous_join.c: serves a connection that does not have its place yet */
void rz_serve_half_open(struct rz_serve *s, struct rz_conn *c);

/* ---- rendezvous_listen.c */

/* Listens. Returns 0, or -errno with a text. */
int rz_listen(struct rz_serve *s);
void rz_close_listeners(struct rz_serve *s);
void rz_accept(struct rz_serve *s, int listener);

#endif
