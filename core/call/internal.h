/* SPDX-License-Identifier: Apache-2.0 */
/* Names shared by the files of call/. */
#ifndef RC_CALL_INTERNAL_H
#define RC_CALL_INTERNAL_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* kinds.c */
extern const struct rc_op_kind rc_call_kind;          /* waits for its REPLY */
/* A call whose result's references are being confirmed. */
extern const struct rc_op_kind rc_replied_kind;
/* A creation of a remote value: ends through the machine. */
extern const struct rc_op_kind rc_creation_kind;
extern const struct rc_op_kind rc_creation_here_kind; /* creation here: ends with the function */
bool rc_call_incoming(struct rref_future *f); /* gives it f->incoming; false: no memory */

/* functions.c */
/* Returns NULL if there is no such function. */
const struct rc_function *rc_function_find(struct rref_ctx *ctx, const char *name, size_t length);

/* arguments.c */
needs_lock int rc_make_forks(struct rref_ctx *ctx, const struct rref_args *args, uint32_t to,
			     struct rp_fork *recs);
needs_lock void rc_undo_forks(struct rref_ctx *ctx, const struct rref_args *args, uint32_t to,
			      const struct rp_fork *recs, size_t nr);

/* call.c */
/* Lets go of the lock meanwhile. */
needs_lock int rc_wait_for_room(struct rref_ctx *ctx, struct rc_peer *p, uint64_t bytes,
				int64_t deadline);

/* serve.c */
void rc_call_put(struct rref_call *call);
/* Keeps or frees a call that nobody has any more. */
needs_lock void rc_call_spare(struct rref_ctx *ctx, struct rref_call *call);
/* Returns an open call of that peer's session, or NULL. */
needs_lock struct rref_call *rc_call_find(struct rref_ctx *ctx, const struct rc_peer *from,
					  uint64_t call_id);
/* Tells whether the peer's open calls may take so many bytes more. */
bool rc_call_has_room(const struct rref_ctx *ctx, const struct rc_peer *from, uint64_t bytes);
/* Makes a call whose fields are clear. */
needs_lock struct rref_call *rc_call_make(struct rref_ctx *ctx, size_t bytes);
/* Hands on a call whose references are all confirmed. */
needs_lock void rc_call_ready(struct rref_ctx *ctx, struct rc_incoming *in);

/* take.c */
/* Takes in any call. */
needs_lock void rc_call_take(struct rref_ctx *ctx, struct rc_peer *from,
			     const struct rw_message *m);

/* answer.c */
/* Answers once. The caller does not hold the lock. */
int rc_answer(struct rref_call *call, int status, unsigned about, const char *text,
	      const struct rref_args *result);
/*
 * Returns true if the caller no longer has the call. Called by the handler's thread, without the
 * lock.
 */
bool rc_answer_nothing(struct rref_call *call);

/* incoming.c */
needs_lock void rc_incoming_begin(struct rref_ctx *ctx, struct rc_incoming *in,
				  const struct rp_fork *recs, uint32_t nr, uint32_t from);
bool rc_incoming_room(struct rc_incoming *in, uint32_t nr);
needs_lock void rc_incoming_drop(struct rref_ctx *ctx, const struct rp_fork *recs, uint32_t nr,
				 struct rc_peer *from);

/* nested.c */
/* Serves a TAKE without the lock. Writes the text of its error. */
int rc_take_serve(struct rref_call *call, char *text, size_t size);

/* payload.c */
/* Sets *out to NULL if no payload is needed. */
int rc_payload_make(struct rref_ctx *ctx, uint32_t to, const struct rref_args *a, int64_t deadline,
		    struct rc_payload **out);
needs_lock int rc_payload_fill(struct rref_ctx *ctx, struct rc_payload *p,
			       const struct rref_args *a, struct rp_location *loc,
			       uint8_t *key); /* shares, publishes */
/* takes back the shared references */
needs_lock void rc_payload_undo(struct rref_ctx *ctx, struct rc_payload *p);
/* Consumes the payload: its message went out. */
needs_lock void rc_payload_offer(struct rref_ctx *ctx, struct rc_payload *p, uint32_t what,
				 uint64_t call_id);
/* Drops a payload that was not offered. */
void rc_payload_drop(struct rc_payload *p);
/* Frees a payload that this worker handed to itself. */
void rc_payload_free(struct rc_payload *p);
/* Begins the READ: loc ... nr_refs and fetched are set. */
needs_lock void rc_fetch_begin(struct rref_ctx *ctx, struct rc_incoming *in, struct rc_peer *from);
needs_lock void rc_fetch_refuse(struct rref_ctx *ctx, struct rc_peer *from, uint32_t what,
				uint64_t call_id, int status);

#endif
