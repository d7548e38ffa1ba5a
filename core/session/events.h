/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc_session_events: the functions of the rooms above that a session calls, without their names.
 * The context gets the table (from router.c) before the first peer exists. All are called under the
 * lock.
 */
#ifndef RC_SESSION_EVENTS_H
#define RC_SESSION_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

struct rref_ctx;
struct rc_peer;
struct rw_message;

struct rc_session_events {
	/* Takes a message of a session that both sides have proved. */
	void (*message)(struct rref_ctx *ctx, struct rc_peer *from, const void *bytes,
			uint32_t length);
	/* Takes the end of a READ. p may be NULL: the connection is closed already. */
	void (*read_ended)(struct rref_ctx *ctx, struct rc_peer *p, uint64_t cookie, int status,
			   int wc);
	/* Posts the READs that wait for a connection or a slot. */
	void (*reads_may)(struct rref_ctx *ctx, struct rc_peer *p);
	/* Has the READs that wait for a turn wait for the next connection. p->conn is NULL
	 * already. */
	void (*reads_stop)(struct rref_ctx *ctx, struct rc_peer *p);
	/* Tells whether a thread may still post to the connection. reads_stop came before. */
	bool (*posts)(struct rref_ctx *ctx, const struct rc_peer *p);
	/* Ends a call, or a question for a type, that never went out. */
	void (*unsent)(struct rref_ctx *ctx, struct rc_peer *p, const struct rw_message *m, int err,
		       const char *why);
	/* Ends all operations of a session that the protocol machine has left already. */
	void (*ended)(struct rref_ctx *ctx, struct rc_peer *p, int status, const char *why);
	/* Checks whether a barrier is complete without a worker that went down. */
	void (*one_fewer)(struct rref_ctx *ctx);
	/* Tells whether a barrier waits for that worker. */
	bool (*is_awaited)(const struct rref_ctx *ctx, uint32_t rank);
};

#endif
