/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rp: the reference protocol as a pure state machine. Events go in, effects come out. It has no
 * I/O, no clock, no thread and no global. docs/design/references.md has the design. The runtime
 * (core/) and the simulator (test/sim/) drive this very code. One machine stands for one worker
 * (rank self).
 *
 * G1: the owner learns of the death of every user's reference. G2: a parent is not deleted before
 * the owner has confirmed its child. The owner keeps a *set* of forks, never a count. So a
 * repeated or late message changes nothing. A deleted fork leaves a tombstone (bounded per peer).
 * So a DELETE that overtakes its FORK_REQUEST wins.
 *
 * Owner entry (one for each RRefId owned here)
 *
 *     PENDING  --SET(0)------>  READY     the value is set
 *     PENDING  --SET(err)---->  FAILED    there is no value; every read gets the error
 *     PENDING  --abandoned--->  HUSK      somebody is still making the value
 *     READY    --abandoned--->  erased    effects FREE_VALUE and GONE
 *     FAILED   --abandoned--->  erased    effect GONE
 *     HUSK     --SET--------->  erased    the same; a value that comes so late is freed at once
 *
 * An entry is abandoned when local == 0 and its set of forks is empty.
 *
 * User entry (one for each ForkId held here)
 *
 *     ASKING     --PARENT_ACK(0), parent lost----->  REQUESTED   FORK_REQUEST is sent now
 *     ASKING     --PARENT_ACK(err), owner lost---->  FAILED
 *     REQUESTED  --FORK_ACK(0), CREATED(0)-------->  CONFIRMED
 *     REQUESTED  --FORK_ACK(err), CREATED(err)---->  FAILED      a creator ignores FORK_ACK(err)
 *     REQUESTED  --CREATE_FAILED, owner lost------>  FAILED
 *     CONFIRMED  --FETCH_REPLY(err), CREATED(err)->  FAILED
 *     CONFIRMED  --CREATE_FAILED, owner lost------>  FAILED
 *     CONFIRMED  --released, no child pending----->  erased      DELETE is sent
 *     FAILED     --no child pending--------------->  FAILED      DELETE is sent if it is owed
 *     FAILED     --released, no child pending----->  erased      after that DELETE
 *
 * A creator's entry starts REQUESTED. CREATED confirms it, or a FORK_ACK before that if the
 * creator had to ask (see early records). A received entry whose parent is the owner starts
 * CONFIRMED. Others start REQUESTED, or ASKING for an early record. An entry may be released while
 * it is ASKING or REQUESTED, or before its creator has the answer. It waits for the answer, then
 * goes the way above. Nothing is sent to a lost owner.
 *
 * A DELETE is owed when the owner knows the fork, or may come to know it. An entry whose
 * FORK_REQUEST was refused owes one: a repetition may still be under way. A creator always owes
 * one, even if CREATE_FAILED said that the call timed out or was not sent. It is sent then and
 * there, so that a value that is made too late is reclaimed. It finds the fork, or its tombstone
 * keeps a CREATE that is still under way from being run.
 *
 * Two things cross the wire between machines: struct rp_msg (encoded by core/wire), and fork
 * records inside calls and replies. The runtime asks for a record with FORK, and hands it to the
 * receiver's machine with RECV_FORK.
 *
 * The runtime's duties:
 * - Messages and calls of one session arrive in order, or else late, repeated and in any order.
 *   Nothing here breaks then, but FORK_ACKs may bring -ESTALE after a crash.
 * - A call or reply is handed in once (by call id), and each of its records once.
 * - OWN is stepped when the call arrives, before its references are confirmed.
 * - Records of a call that will not run are handed in all the same, and then dropped. Else they
 *   pin their parents.
 * - Ids are never used twice, nor by a later incarnation of the same rank.
 *
 * Sharing (FORK), from the sharer to the receiver:
 *
 *   owner -> user     The owner adds the fork at once (holder: the receiver). There is nothing to
 *                     confirm.
 *   owner -> itself   The owner adds the fork (holder: itself). RECV_FORK turns it into one more
 *                     local reference.
 *   user -> owner     The parent adds a pending child. The owner gains a local reference on
 *                     RECV_FORK, and sends CHILD_ACCEPT to the parent.
 *   user -> user      The parent adds a pending child. The child sends FORK_REQUEST to the owner.
 *                     On FORK_ACK, good or bad, it sends CHILD_ACCEPT to its parent. Parent and
 *                     child may be the same worker.
 *
 * Early records: a creator may share before the owner has even seen the creation. The child's
 * FORK_REQUEST may overtake the creation on another connection. Such a record has RP_FORK_EARLY.
 * Its receiver first sends PARENT_REQUEST to the parent. The parent answers PARENT_ACK once the
 * owner knows the id, or with the reason why it never will. A creator finds out by a FORK_REQUEST
 * of its own fork. The owner too asks the parent of an early record whose id it does not know.
 *
 * Messages to oneself go through SEND like any other. The runtime loops them back as MSG events,
 * never recursively.
 *
 * The word. Ids are counters, which anybody can guess, so an id alone opens nothing. Each value
 * has a random number, its word, that travels in every record of it. The owner takes a
 * FORK_REQUEST, or a record of a value of its own, only with that word. Without it the answer is
 * the one for an id that does not exist. Words come with events. CREATE brings the creator's
 * choice, and OWN tells it to the owner. FORK brings one for a value that its owner created.
 * Until then the value has no word, and nobody may ask for it. No word is needed in a message
 * about a fork that the owner lists, or that this worker shared. The sender is looked up with
 * the fork.
 *
 * Crash: PEER_FENCED(rank) comes after the device fence. At once:
 * - This peer's parked fetches are dropped.
 * - Pending children shared with it no longer pin their parents.
 * - User entries that it owns FAIL with the event's status, and so do their waits, creations and
 *   children.
 * - Entries that were ASKING it turn to the owner.
 * - Nothing more is sent to it or taken from it.
 * Its forks here stay *in grace*: a child that it was sharing can still be confirmed.
 * PEER_GRACE(rank) erases them, its tombstones, and all that hangs on them. PEER_UP(rank, epoch)
 * starts a session, never before PEER_GRACE of the last one (-EBUSY). That would erase the new
 * session's entries. A peer never heard of counts as up. Messages carry the epoch, and the runtime
 * drops those of another epoch before they come here. FORK, CREATE, OWN and RECV_FORK with a peer
 * that is not up return the status of its fence.
 *
 * Threads: nothing here is thread-safe. The runtime calls it under the progress lock only.
 * Progress: a step is O(1) amortised, with two exceptions. PEER_* are linear in all that hangs on
 * that peer. A step that answers n waiters takes n.
 */
#ifndef RP_H
#define RP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rref.h"

struct rp;

/*
 * All that a one-sided read needs. rkey: one per provider (enum rv_kind), 0 = none. A value that
 * stays with its owner (local only) is ready, but there is nothing to read. Its location has no
 * nonce, address and keys.
 */
struct rp_location {
	uint64_t addr;         /* remote address of the value header; the payload follows it, or
				  is at data_addr */
	uint64_t length;       /* payload bytes */
	uint64_t nonce;        /* must be found in the header; 0 = local only */
	uint64_t type_hash;
	uint32_t rkey[2];
	uint32_t version;      /* 0 = no location (value not ready) */
	uint16_t nr_segments;  /* parts of the payload; their table follows it if there are two
				  or more */
	uint16_t nr_refs;      /* references that the value holds; its owner gives them to a holder
				  that asks */
	uint64_t data_addr;    /* remote address of a payload that does not follow the header; 0 =
				  it does */
	uint32_t data_rkey[2]; /* keys of such a payload */
};

/* Tells whether the program registered the payload's memory: its header lies elsewhere. */
static inline bool rp_is_wrapped(const struct rp_location *l)
{
	return l->data_addr != 0;
}

#define RP_FORK_EARLY 1u        /* rp_fork.flags: the owner may not know the id yet */
#define RP_TOMBSTONES_MAX 1024u /* kept per peer; the oldest goes first */
#define RP_FORKS_MAX (1u << 22) /* forks that one peer may hold here; more give -EDQUOT */

/* A fork record, which travels in a call or reply for each reference in it. */
struct rp_fork {
	struct rref_id id;
	struct rref_id fork;        /* chosen by the parent */
	uint32_t owner, parent;     /* ranks; parent is the sender */
	uint32_t flags;             /* RP_FORK_EARLY */
	uint64_t owner_incarnation; /* filled by the runtime, checked by the receiver's runtime */
	uint64_t word;              /* the value's; 0 opens nothing */
	struct rp_location loc;     /* version 0 = unknown */
	void *value;                /* value of a FORK by its owner, if READY: the runtime fills in
				       its location. Not on the wire */
};

enum rp_msg_type {
	RP_MSG_FORK_REQUEST = 1, /* child -> owner:  id, fork, word */
	RP_MSG_FORK_ACK,         /* owner -> child:  id, fork, status, loc if ready */
	RP_MSG_CHILD_ACCEPT,     /* child -> parent: id, fork (the child's) */
	RP_MSG_DELETE,           /* user -> owner:   id, fork */
	RP_MSG_FETCH,            /* user -> owner:   id, fork: answer when the value is ready or
				    failed */
	RP_MSG_FETCH_REPLY,      /* owner -> user:   id, fork, status, loc, text */
	RP_MSG_CREATED,          /* owner -> creator: id, fork, status, loc, text */
	RP_MSG_PARENT_REQUEST,   /* child -> parent: id, fork (the child's): does the owner know
				    this id? */
	RP_MSG_PARENT_ACK,       /* parent -> child: id, fork (the child's), status, text: ask the
				    owner now (0) */
	RP_MSG_NR_TYPES
};

#define RP_TEXT_MAX 200

struct rp_msg {
	enum rp_msg_type type;
	struct rref_id id, fork;
	int32_t status;            /* 0 or -errno */
	uint64_t word;             /* FORK_REQUEST */
	uint16_t about;            /* rank + 1 of the worker that an error is about; 0:
				      the sender */
	struct rp_location loc;    /* FORK_ACK (if known), FETCH_REPLY, CREATED with status 0; from
				      the owner: see SEND */
	char text[RP_TEXT_MAX];    /* NUL-terminated; the reason when status != 0 */
};

enum rp_event_type {
	/* local program */
	RP_EV_NEW = 1,      /* id: a PENDING entry owned here, with one local reference */
	RP_EV_SET,          /* id, status, value (status 0; not NULL) or text: completes a PENDING
			       entry once */
	RP_EV_RETAIN,       /* id: one more local reference */
	RP_EV_RELEASE,      /* id: one local reference less; the very last ends waits with
			       -ECANCELED */
	RP_EV_CREATE,       /* id, fork, peer = owner, handle, word (not 0): a user entry for the
			       value that a CREATE call will make. Creating on oneself is NEW,
			       not CREATE */
	RP_EV_CREATE_FAILED,/* fork, status, text: the carrying call could not be sent, failed or
			       timed out unanswered. -EALREADY: it was answered */
	RP_EV_FORK,         /* id, src, fork, peer, word: shares a reference with peer. src: the
			       sharer's own fork, zero on the owner. fork: the child's. word (of
			       the owner; not 0): the value's, if it has none yet */
	RP_EV_FORK_UNDO,    /* same fields: the carrying message was never sent */
	RP_EV_RECV_FORK,    /* rec, peer = sender, cookie: a record arrived. It ends in NEW_HANDLE
			       and then one READY(cookie). status: 0, or why the runtime refuses
			       it (-ESTALE: another incarnation of the owner). An id owned here
			       that is not known or refused: READY alone, no handle */
	RP_EV_DROP,         /* fork: the last local handle of a user entry is gone; its waits end
			       with -ECANCELED */
	RP_EV_WAIT,         /* id, fork (zero on the owner), cookie: wants value or location; ends
			       in one WAITED(cookie) */
	RP_EV_UNWAIT,       /* id, fork, cookie: that WAIT was given up; no WAITED comes. -ESTALE:
			       it is over already */
	/* the owner's side of a CREATE call */
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
	uint32_t now;              /* the runtime's time, in its own units. It is kept for visits,
				      with the entries that the event makes, and never looked at */
	struct rref_id id, fork, src;
	int status;                /* 0 or -errno */
	uint16_t about;            /* SET: as in struct rp_msg */
	void *value;               /* SET: the runtime's value, comes back in effects, FREE_VALUE
				      the last of them */
	void *handle;              /* CREATE: the runtime's handle, comes back in effects about
				      that fork until DROP; after DROP only in CREATED */
	void *maker;               /* NEW, OWN: the runtime's, comes back in visits until SET */
	uint64_t cookie;
	uint64_t word;             /* CREATE, FORK, OWN; random */
	const char *text;          /* borrowed during the step; may be NULL */
	const struct rp_msg *msg;  /* borrowed during the step */
	const struct rp_fork *rec; /* borrowed during the step */
};

enum rp_effect_type {
	RP_EFF_SEND = 1,    /* peer, msg. value: one owned here, whose location the runtime fills
			       in. The machine keeps no location of a value owned here: the runtime
			       has it already */
	RP_EFF_NEW_HANDLE,  /* id, fork, peer = owner, cookie, loc, status: make a handle for a
			       received fork. The runtime writes it to *handle_slot before the
			       next step. status: 0 confirmed; -EINPROGRESS not yet; else dead, and
			       READY follows with the same. Of a value owned here fork is zero,
			       handle_slot is NULL, and value is set if READY. That handle holds
			       one local reference, to be given back with RELEASE */
	RP_EFF_READY,       /* cookie, status, text: a received fork is confirmed (0) or refused;
			       comes after DROP too */
	RP_EFF_LOCATION,    /* handle, loc: now known for this user entry; also marks it
			       confirmed */
	RP_EFF_CONFIRMED,   /* handle: confirmed by the owner, location not known yet */
	RP_EFF_FAILED,      /* handle, status, text: this user entry is dead: creation failed,
			       owner lost, refused */
	RP_EFF_CREATED,     /* handle, status, text: the creation future of a CREATE is to be
			       completed */
	RP_EFF_WAITED,      /* cookie, status, text; loc, or value on the owner: a WAIT is over */
	RP_EFF_FREE_VALUE,  /* value: scrub and free */
	RP_EFF_GONE,        /* id: the owner entry was erased (also when it had no value) */
	RP_EFF_DUPLICATE,   /* id: OWN of an id that is known, was deleted or is refused: do not
			       run the function */
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
	uint16_t about;                    /* rank + 1, as in struct rp_msg; 0: found here */
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
	uint64_t pending_owners;   /* owner entries whose value is not set yet */
	uint64_t forks;            /* forks recorded at owner entries, also in grace */
	uint64_t users;            /* user entries */
	uint64_t pending_users;    /* user entries that are not confirmed yet */
	uint64_t pending_children; /* children shared and not accepted yet */
	uint64_t parked;           /* fetches and local waits that wait for a value */
	uint64_t tombstones;
	uint64_t ignored;          /* messages that changed nothing: repeated, late, unknown */
	uint64_t refused;          /* messages and records that were illegal: -EPROTO */
};

/*
 * Makes the machine of worker self. world: the number of workers; ranks at or above it are refused
 * everywhere. Returns 0, -EINVAL or -ENOMEM.
 */
int rp_create(uint32_t self, uint32_t world, struct rp **out);
/*
 * Keys the hash tables, so that peers cannot choose ids that collide. It must come before the first
 * step, and changes no outcome.
 */
void rp_set_seed(struct rp *m, uint64_t seed);
/* Accepts NULL. Frees no values that are still held: the caller owns their memory. */
void rp_destroy(struct rp *m);

/*
 * Takes one step. FORK fills *rec; with other events rec may be NULL. Returns 0, or -errno with
 * nothing changed and no effect added:
 *
 *     -ENOMEM    no memory (see rp_gives_back)
 *     -EINVAL    malformed event: a rank out of range, an id of another owner, a zero id, a
 *                missing word
 *     -ESTALE    unknown or deleted id or fork
 *     -EALREADY  SET, DROP, CREATE or a record twice, UNDO of an accepted child: harmless
 *     -EPROTO    MSG or record that this peer may not send here: wrong direction, or an answer
 *                without a question
 *     -EBUSY     PEER_UP before PEER_GRACE, or before its effects have been taken out; it may add
 *                more of them
 *     a status   FORK of a FAILED user entry: its status; a peer that is not up: see Crash
 *
 * The owner's set of forks is keyed by holder and fork, and the holder is the sender. So a message
 * about another peer's fork finds nothing, and never touches that fork. It is answered -ESTALE or
 * ignored.
 */
int rp_step(struct rp *m, const struct rp_event *ev, struct rp_fork *rec);

/*
 * Tells the events that give something back, or put right the results of a death. They need no
 * memory: -ENOMEM of theirs says that effects of earlier steps take up the room. Take one out and
 * step again.
 */
static inline bool rp_gives_back(enum rp_event_type type)
{
	return type == RP_EV_SET || type == RP_EV_RELEASE || type == RP_EV_CREATE_FAILED ||
	       type == RP_EV_FORK_UNDO || type == RP_EV_DROP || type == RP_EV_UNWAIT ||
	       type >= RP_EV_PEER_UP;
}

/* Returns the effects that have not been taken out, in order; valid until the next step. */
const struct rp_effect *rp_effects(const struct rp *m, size_t *count);
/*
 * Takes the first effect out. Returns NULL when there are no more. The effect is valid until the
 * next step, or until the next one is taken out.
 */
const struct rp_effect *rp_effect_next(struct rp *m);
/*
 * Takes all effects out. Effects of earlier steps may follow, which had no room. A caller that does
 * not use rp_effect_next looks for them until there are no more.
 */
void rp_effects_clear(struct rp *m);

void rp_counts(const struct rp *m, struct rp_counts *out);

/*
 * Finds, for the owner, the value that a peer holds by that fork of its own. Changes nothing.
 * Returns 0 and *value, or:
 *
 *     -ESTALE   no such value, or held by another fork, or the peer's session is over
 *     -EAGAIN   not set yet
 *     a status  of a FAILED value
 */
int rp_held_value(const struct rp *m, uint32_t holder, const struct rref_id *id,
		  const struct rref_id *fork, void **value);

/* Counts of one peer. */
struct rp_peer_counts {
	uint64_t forks;            /* forks that it holds of values owned here */
	uint64_t users;            /* held here of its values */
	uint64_t pending_children; /* shared with it and not accepted yet */
	uint64_t tombstones;
};
void rp_peer_counts(const struct rp *m, uint32_t rank, struct rp_peer_counts *out);

/*
 * The order of a visit: every owner entry, each followed by its forks. Then every user entry, each
 * followed by its pending children if the caller asks for these. It serves leak reports, dumps,
 * and the values left at the end.
 */
enum rp_visit_kind { RP_VISIT_OWNER, RP_VISIT_FORK, RP_VISIT_USER, RP_VISIT_CHILD };

struct rp_visit {
	enum rp_visit_kind kind;
	bool owned;                /* OWNER, FORK */
	struct rref_id id, fork;   /* fork: zero of an owner entry */
	uint32_t peer;             /* FORK: its holder; USER: its owner; CHILD: its receiver */
	uint32_t parent;           /* FORK, USER, CHILD: the sharer (a creator: itself) */
	uint32_t epoch;            /* epoch of the session with peer, 0 = none yet */
	uint32_t since;            /* rp_event.now of the event that made it */
	uint32_t local;            /* OWNER: local references */
	uint32_t forks, children;  /* OWNER: recorded forks; USER: pending children */
	uint32_t waits;            /* OWNER, USER: local waits for the value */
	int status;                /* OWNER, USER: why it failed, 0 if it did not */
	bool creator;              /* FORK, USER: made by CREATE */
	bool grace;                /* FORK: its holder is fenced */
	bool parked;               /* FORK: its holder waits for the value */
	bool released;             /* USER: the handle is gone, the entry waits for answers or
				      children */
	const char *state;         /* static text */
	void *handle, *value;
	void *maker;               /* OWNER, PENDING: as given by NEW or OWN */
	const struct rp_location *loc; /* USER: NULL if not known */
};
typedef void (*rp_visit_fn)(void *ctx, const struct rp_visit *v);
/* Visits all entries, without children. */
void rp_visit(const struct rp *m, rp_visit_fn fn, void *ctx);

/* The place of a visit in pieces; zero at first. */
struct rp_cursor {
	uint32_t owner, user;
	bool users;
};
/*
 * Visits at most max entries, each with its forks or children, from the cursor on. The machine may
 * be stepped between two calls. An entry that is made or erased meanwhile may be visited or not;
 * any other is visited once. Returns false after the last.
 */
bool rp_visit_some(const struct rp *m, struct rp_cursor *cursor, uint32_t max, rp_visit_fn fn,
		   void *ctx);

#endif
