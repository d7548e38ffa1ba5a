/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rp: the reference protocol as a pure state machine. Events in, effects out: no I/O, no clock, no
 * thread, no global. Design: docs/design/references.md.
 * The runtime (core/) and the simulator (test/) drive this very code. One machine stands for one worker (rank self).
 *
 * G1: the owner learns of every user reference's death. G2: a parent is not deleted before the owner has confirmed
 * its child. The owner keeps a *set* of forks, never a count, so that a repeated or late message changes nothing;
 * forks that were deleted leave a tombstone (bounded per peer), so that a DELETE that overtakes its FORK_REQUEST wins.
 *
 * Owner entry (one per RRefId owned here)
 *
 *      PENDING --SET--> READY          value: set
 *          \---SET(err)-> FAILED       value: none; every read gets the error, each time
 *   freed (effect FREE_VALUE, entry erased) when local == 0 and forks is empty, whatever the state;
 *   a PENDING entry so abandoned stays as a husk until SET, so that a late creation is reclaimed, then is freed at once.
 *
 * User entry (one per ForkId held here)
 *
 *      ASKING -----PARENT_ACK(0) / parent lost-> REQUESTED (FORK_REQUEST is sent now)
 *          \------PARENT_ACK(err) / owner lost-> FAILED
 *      REQUESTED --FORK_ACK(0) / CREATED(0)----> CONFIRMED --released, no child pending--> DELETE sent, entry erased
 *          \------FORK_ACK(err) / CREATED(err) / CREATE_FAILED / owner lost--> FAILED
 *      CONFIRMED --FETCH_REPLY(err) / CREATED(err) / CREATE_FAILED / owner lost--> FAILED
 *      FAILED: no child pending: DELETE sent if it is owed, handle or not; released as well: entry erased
 *   A creator's entry starts REQUESTED and is confirmed by CREATED, or before by a FORK_ACK if it had to ask (below).
 *   A DELETE is owed when the owner knows the fork, or may come to know it: by one whose FORK_REQUEST was refused, for
 *   a repetition may still be under way; always by a creator, also one whose CREATE_FAILED said that the call timed
 *   out or was not sent. It is sent then and there, so that what is made too late is reclaimed: it finds the fork, or
 *   its tombstone keeps a CREATE that is still under way from being run.
 *   A received entry whose parent is the owner starts CONFIRMED; others REQUESTED, or ASKING for an early record.
 *   Released while ASKING or REQUESTED, or by a creator before its answer: waits for the answer, then goes the way
 *   above. Nothing is sent on a lost owner.
 *
 * Between machines two things cross the wire: struct rp_msg (encoded by core/wire), and fork
 * records inside calls and replies. The runtime asks for a record with FORK, and hands it to the
 * receiver's machine with RECV_FORK.
 *
 * What the runtime owes: messages and calls of one session arrive in order, or else late, repeated and in any order
 * (nothing here breaks, but FORK_ACKs may bring -ESTALE after a crash); a call or reply is handed in once (by call id),
 * and each of its records once; OWN is stepped when the call arrives, before its references are confirmed; records of
 * a call that will not run are handed in all the same and then dropped, else they pin their parents. Ids are never
 * used twice, nor by a later incarnation of the same rank.
 *
 * Sharing (FORK), by who shares (owner / user) with whom:
 *   owner -> user      the owner adds the fork (holder: the destination) at once; nothing to confirm.
 *   owner -> itself    the owner adds the fork (holder: itself); RECV_FORK turns it into one more local reference.
 *   user -> owner      the parent adds a pending child; the owner, on RECV_FORK, gains a local reference and sends
 *                      CHILD_ACCEPT to the parent.
 *   user -> user       the parent adds a pending child; the child sends FORK_REQUEST to the owner, and on FORK_ACK
 *                      (good or bad) CHILD_ACCEPT to its parent. Parent and child may be the same worker.
 *   early records      a creator may share before the owner has even seen the creation, and the child's FORK_REQUEST
 *                      may overtake it on another connection. Such a record has RP_FORK_EARLY: its receiver first
 *                      sends PARENT_REQUEST to the parent, which answers PARENT_ACK when it knows that the owner
 *                      knows the id (a creator asks by a FORK_REQUEST of its own fork), or with why it never will.
 *                      The owner itself does so with an early record whose id it does not know.
 * Messages to oneself go through SEND like any other; the runtime loops them back as MSG events, never recursively.
 *
 * The word. Ids are counters, which anybody can guess, so an id alone opens nothing. Each value
 * has a random number, its word, that travels in every record of it. The owner takes a
 * FORK_REQUEST, or a record of a value of its own, only with that word. Without it the answer is
 * the one for an id that does not exist. Words come with events. CREATE brings the creator's
 * choice, and OWN tells it to the owner. FORK brings one for a value that its owner created:
 * until then it has none, and nobody may ask for it. Messages about a fork that the owner lists,
 * or that this worker shared, need no word: the sender is looked up with the fork.
 *
 * Crash: PEER_FENCED(rank) comes after the device fence. At once: this peer's parked fetches are dropped, pending
 * children shared with it are unpinned, users whose owner it was FAIL with the event's status (their waits, creations
 * and children too), entries that were ASKING it turn to the owner, and nothing more is sent to it or taken from it.
 * Its forks here stay *in grace*, so that a child it was sharing can still be confirmed, until PEER_GRACE(rank) erases
 * them, its tombstones and what hangs on them. PEER_UP(rank, epoch) starts a session, never before PEER_GRACE of the
 * last one (-EBUSY): it would lose its own entries then. A peer never heard of counts as up. Messages carry the epoch,
 * and the runtime drops those of another one before they come here. FORK, CREATE, OWN, RECV_FORK with a peer that is
 * not up give the status of its fence.
 *
 * Thread class: none of this is thread-safe; the runtime calls it under the progress lock only. Progress: every
 * step is O(1) amortised, except PEER_* (linear in what hangs on that peer) and those that answer n waiters.
 */
#ifndef RP_H
#define RP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rref.h"

struct rp;

/*
 * All that a one-sided read needs. rkey: one per provider (enum rv_kind), 0 = none. A value that stays with its owner
 * (local only) has a location without nonce, address and keys: it is ready, and there is nothing to read.
 */
struct rp_location {
	uint64_t addr;        /* remote address of the value header; the payload follows it, but see data_addr */
	uint64_t length;      /* payload bytes */
	uint64_t nonce;       /* must be found in the header; 0 = local only */
	uint64_t type_hash;
	uint32_t rkey[2];
	uint32_t version;     /* 0 = no location (value not ready) */
	uint16_t nr_segments; /* of which the payload consists; their table follows it if there are two or more */
	uint16_t nr_refs;     /* references that the value holds; its owner gives them to who asks */
	uint64_t data_addr;   /* remote address of the payload, where it does not follow the header; 0 = it does */
	uint32_t data_rkey[2];/* its keys then */
};

/* The payload is memory that the owner's program registered: its header lies elsewhere. */
static inline bool rp_apart(const struct rp_location *l)
{
	return l->data_addr != 0;
}

#define RP_FORK_EARLY 1u        /* rp_fork.flags: the owner may not know the id yet */
#define RP_TOMBSTONES_MAX 1024u /* kept per peer; the oldest goes first */
#define RP_FORKS_MAX (1u << 22) /* that one peer may hold here; more are refused with -EDQUOT */

/* A fork record: what travels in a call or reply for each reference in it. */
struct rp_fork {
	struct rref_id id;
	struct rref_id fork;        /* chosen by the parent */
	uint32_t owner, parent;     /* ranks; parent is the sender */
	uint32_t flags;             /* RP_FORK_EARLY */
	uint64_t owner_incarnation; /* filled by the runtime, checked by the receiver's runtime */
	uint64_t word;              /* the value's; 0 opens nothing */
	struct rp_location loc;     /* version 0 = unknown */
	void *value;                /* of FORK by the owner, READY: the runtime fills in its location. Not on the wire */
};

enum rp_msg_type {
	RP_MSG_FORK_REQUEST = 1, /* child -> owner:  id, fork, word */
	RP_MSG_FORK_ACK,         /* owner -> child:  id, fork, status, loc if ready */
	RP_MSG_CHILD_ACCEPT,     /* child -> parent: id, fork (the child's) */
	RP_MSG_DELETE,           /* user -> owner:   id, fork */
	RP_MSG_FETCH,            /* user -> owner:   id, fork: answer when the value is ready or failed */
	RP_MSG_FETCH_REPLY,      /* owner -> user:   id, fork, status, loc, text */
	RP_MSG_CREATED,          /* owner -> creator: id, fork, status, loc, text */
	RP_MSG_PARENT_REQUEST,   /* child -> parent: id, fork (the child's): does the owner know this id? */
	RP_MSG_PARENT_ACK,       /* parent -> child: id, fork (the child's), status, text: ask the owner now (0) */
	RP_MSG_NR_TYPES
};

#define RP_TEXT_MAX 200

struct rp_msg {
	enum rp_msg_type type;
	struct rref_id id, fork;
	int32_t status;            /* 0 or -errno */
	uint64_t word;             /* FORK_REQUEST */
	uint16_t about;            /* of an error: rank + 1 of the worker that it is about; 0: the sender */
	struct rp_location loc;    /* FORK_ACK (if known), FETCH_REPLY, CREATED with status 0; from the owner: see SEND */
	char text[RP_TEXT_MAX];    /* NUL-terminated; why, when status != 0 */
};

enum rp_event_type {
	/* local program */
	RP_EV_NEW = 1,      /* id: a PENDING entry owned here, with one local reference */
	RP_EV_SET,          /* id, status, value (status 0; not NULL) or text: completes a PENDING entry once */
	RP_EV_RETAIN,       /* id: one more local reference */
	RP_EV_RELEASE,      /* id: one local reference less; the very last ends waits with -ECANCELED */
	RP_EV_CREATE,       /* id, fork, peer = owner, handle, word (not 0): a user entry for the value
			       that a CREATE call will make. Creating on oneself is NEW, not CREATE */
	RP_EV_CREATE_FAILED,/* fork, status, text: the carrying call could not be sent, failed or timed out unanswered;
			       -EALREADY: it was answered */
	RP_EV_FORK,         /* id, src (the sharer's fork id; zero on the owner), fork (the child's),
			       peer = destination; word (on the owner; not 0): the value's, if it has
			       none yet */
	RP_EV_FORK_UNDO,    /* same fields: the carrying message was never sent */
	RP_EV_RECV_FORK,    /* rec, peer = sender, cookie: a record arrived; ends in NEW_HANDLE and then one READY(cookie).
			       status: 0, or why the runtime refuses it (-ESTALE: another incarnation of the owner).
			       An id owned here that is not known or refused: READY alone, no handle */
	RP_EV_DROP,         /* fork: the last local handle of a user entry is gone; its waits end with -ECANCELED */
	RP_EV_WAIT,         /* id, fork (zero on the owner), cookie: wants value or location; ends in one WAITED(cookie) */
	RP_EV_UNWAIT,       /* id, fork, cookie: that WAIT was given up; no WAITED comes. -ESTALE: it is over already */
	/* owner's side of a CREATE call */
	RP_EV_OWN,          /* id, fork, peer = creator, word: a PENDING entry with that fork, or
			       effect DUPLICATE */
	/* network */
	RP_EV_MSG,          /* msg, peer = sender */
	RP_EV_PEER_UP,      /* peer, epoch */
	RP_EV_PEER_FENCED,  /* peer, status (-EOWNERDEAD, -ENETRESET, ...) */
	RP_EV_PEER_GRACE,   /* peer: its grace period is over */
};

struct rp_event {
	enum rp_event_type type;
	uint32_t peer, epoch;
	uint32_t now;              /* the runtime's time, in its own units: kept with what the event makes, for visits only,
				      and never looked at */
	struct rref_id id, fork, src;
	int status;                /* 0 or -errno */
	uint16_t about;            /* SET: as in struct rp_msg */
	void *value;               /* SET: the runtime's value, comes back in effects, FREE_VALUE the last of them */
	void *handle;              /* CREATE: the runtime's handle, comes back in effects about that fork until DROP;
				      after it only in CREATED */
	void *maker;               /* NEW, OWN: the runtime's, comes back in visits until SET */
	uint64_t cookie;
	uint64_t word;             /* CREATE, FORK, OWN; random */
	const char *text;          /* borrowed during the step; may be NULL */
	const struct rp_msg *msg;  /* borrowed during the step */
	const struct rp_fork *rec; /* borrowed during the step */
};

enum rp_effect_type {
	RP_EFF_SEND = 1,    /* peer, msg; value: one owned here, whose location the runtime fills in. The machine knows none of
			       values owned here: they are the runtime's to tell, and would be kept twice */
	RP_EFF_NEW_HANDLE,  /* id, fork, peer = owner, cookie, loc, status: make a handle for a received fork; the runtime
			       writes it to *handle_slot before the next step. status: 0 confirmed, -EINPROGRESS not yet,
			       else dead (READY follows with the same). Owned here: fork is zero, handle_slot NULL, value set
			       if ready; the handle holds one local reference, to be given back with RELEASE */
	RP_EFF_READY,       /* cookie, status, text: a received fork is confirmed (0) or refused; comes after DROP too */
	RP_EFF_LOCATION,    /* handle, loc: now known for this user entry; also marks it confirmed */
	RP_EFF_CONFIRMED,   /* handle: confirmed by the owner, location not known yet */
	RP_EFF_FAILED,      /* handle, status, text: this user entry is dead: creation failed, owner lost, refused */
	RP_EFF_CREATED,     /* handle, status, text: the creation future of a CREATE is to be completed */
	RP_EFF_WAITED,      /* cookie, status, text; loc, or value on the owner: a WAIT is over */
	RP_EFF_FREE_VALUE,  /* value: scrub and free */
	RP_EFF_GONE,        /* id: the owner entry was erased (also when it had no value) */
	RP_EFF_DUPLICATE,   /* id: OWN of an id that is known, was deleted or is refused: do not run the function */
};

/* Only the fields named above are set, and value is NULL otherwise. */
struct rp_effect {
	enum rp_effect_type type;
	uint32_t peer;
	void *value, *handle;
	void **handle_slot;
	uint64_t cookie;
	struct rref_id id, fork;
	int status;
	uint16_t about;                    /* of an error that a message told; 0: it was found here */
	union {
		struct rp_msg msg;         /* SEND */
		struct {                   /* all others */
			struct rp_location loc;
			char text[RP_TEXT_MAX];
		};
	};
};

struct rp_counts {
	uint64_t owners;           /* owner entries */
	uint64_t pending_owners;   /* of these: value not set yet */
	uint64_t forks;            /* forks recorded at owner entries, those in grace included */
	uint64_t users;            /* user entries */
	uint64_t pending_users;    /* of these: not confirmed yet */
	uint64_t pending_children; /* children shared and not accepted yet */
	uint64_t parked;           /* fetches and local waits that wait for a value */
	uint64_t tombstones;
	uint64_t ignored;          /* messages that changed nothing: repeated, late, unknown */
	uint64_t refused;          /* messages and records that were illegal: -EPROTO */
};

/* 0, -EINVAL or -ENOMEM. world = number of workers; ranks at or above it are refused everywhere. */
int rp_create(uint32_t self, uint32_t world, struct rp **out);
/* Keys the hash tables, so that peers cannot choose ids that collide. Before the first step; changes no outcome. */
void rp_set_seed(struct rp *m, uint64_t seed);
void rp_destroy(struct rp *m); /* NULL accepted; values still held are not freed: the caller owns their memory */

/*
 * One step. 0, or -errno with nothing changed and no effect added:
 *   -ENOMEM; -EINVAL (malformed event: a rank out of range, an id of another owner, a zero id, no
 *   word where one is due);
 *   -ESTALE (unknown or deleted id or fork); -EALREADY (SET, DROP, CREATE or a record twice, UNDO of an accepted child:
 *   harmless); -EPROTO (MSG or record that this peer may not send here: wrong direction, ack of what was never asked);
 *   -EBUSY (PEER_UP before PEER_GRACE, or before its effects have been taken out); FORK of a FAILED user entry: its status; a peer that is not up: see Crash.
 * The owner's set of forks is keyed by holder and fork, and the holder is the sender: what a peer says of another
 * peer's fork finds nothing, is answered -ESTALE or ignored, and never touches it.
 * FORK fills *rec (others: rec may be NULL).
 */
int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec);

/*
 * Events that give something back, or put right what a death left. They need no memory: -ENOMEM of theirs says that
 * effects of earlier steps take up the room. Take one out and step again.
 */
static inline bool rp_gives_back(enum rp_event_type type)
{
	return type == RP_EV_SET || type == RP_EV_RELEASE || type == RP_EV_CREATE_FAILED || type == RP_EV_FORK_UNDO ||
	       type == RP_EV_DROP || type == RP_EV_UNWAIT || type >= RP_EV_PEER_UP;
}

/* The effects that have not been taken out, in order; valid until the next step. */
const struct rp_effect *rp_effects(const struct rp *m, size_t *count);
/* Takes the first one out; NULL: none is left. Valid until the next step, or the next one is taken out. */
const struct rp_effect *rp_effect_next(struct rp *m);
/*
 * Takes all out. Effects of earlier steps may follow, which had no room: whoever does not use rp_effect_next looks for
 * them until there are none.
 */
void rp_effects_clear(struct rp *m);

void rp_counts(const struct rp *m, struct rp_counts *out);

/*
 * Of the owner: the value that a peer holds by that fork of its own. 0 and *value; -ESTALE: no such value or not by such a
 * fork, or the peer's session is over; -EAGAIN: not set yet; a FAILED one's status. Changes nothing.
 */
int rp_held_value(const struct rp *m, uint32_t holder, const struct rref_id *id, const struct rref_id *fork, void **value);

/* What hangs on one peer. */
struct rp_peer_counts {
	uint64_t forks;            /* that it holds of values owned here */
	uint64_t users;            /* held here of its values */
	uint64_t pending_children; /* shared with it and not accepted yet */
	uint64_t tombstones;
};
void rp_peer_counts(const struct rp *m, uint32_t rank, struct rp_peer_counts *out);

/*
 * Every owner entry, each followed by its forks, then every user entry, each followed by its pending children: leak
 * reports, dumps, and the values left at the end. RP_VISIT_CHILD comes for those only who ask for it.
 */
enum rp_visit_kind { RP_VISIT_OWNER, RP_VISIT_FORK, RP_VISIT_USER, RP_VISIT_CHILD };

struct rp_visit {
	enum rp_visit_kind kind;
	bool owned;                /* OWNER, FORK */
	struct rref_id id, fork;   /* fork: zero of an owner entry */
	uint32_t peer;             /* holder of the fork / owner of the user entry / who the child is shared with */
	uint32_t parent;           /* FORK, USER, CHILD: who shared it (a creator: itself) */
	uint32_t epoch;            /* of the session with peer, 0 = none yet */
	uint32_t since;            /* rp_event.now of what made it */
	uint32_t local;            /* OWNER: local references */
	uint32_t forks, children;  /* OWNER: recorded forks; USER: pending children */
	uint32_t waits;            /* OWNER, USER: local waits for the value */
	int status;                /* OWNER, USER: why it failed, 0 if it did not */
	bool creator;              /* FORK, USER: made by CREATE */
	bool grace;                /* FORK: its holder is fenced */
	bool parked;               /* FORK: its holder waits for the value */
	bool released;             /* USER: the handle is gone, the entry waits for answers or children */
	const char *state;         /* static text */
	void *handle, *value;
	void *maker;               /* OWNER, PENDING: as given by NEW or OWN */
	const struct rp_location *loc; /* USER: NULL if not known */
};
typedef void (*rp_visit_fn)(void *ctx, const struct rp_visit *v);
void rp_visit(const struct rp *m, rp_visit_fn fn, void *ctx); /* without children */

/*
 * The same a piece at a time: at most max entries, each with its forks or children, and on from there with the next
 * call. The machine may be stepped between two calls: what is made or erased meanwhile may be visited or not, all else
 * is visited once. cursor: zero at first. False: that was the last.
 */
struct rp_cursor {
	uint32_t owner, user;
	bool users;
};
bool rp_visit_some(const struct rp *m, struct rp_cursor *cursor, uint32_t max, rp_visit_fn fn, void *ctx);

#endif
