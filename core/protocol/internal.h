/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the reference protocol (protocol/protocol.h). All of it is guarded as the machine
 * is: by its caller.
 *
 * Memory: a group holds 10^6 references, so entries are packed and linked by 32-bit indices into
 * pools. Pool items never move (handle_slot points into one) and index 0 is nil. An owner entry
 * takes 64 bytes and each of its forks 52. Hash buckets add 4 to 8 to either.
 *
 * Out of memory: a step reserves whatever it may need before it changes anything. rp_step reserves
 * one item of each pool and RP_STEP_EFFECTS effects for all. Handlers that may add more call
 * rp_effects_reserve first. Taking a reserved item, and adding a reserved effect, cannot fail.
 *
 * Steps that give back (rp_gives_back) need no memory. They take no item but a fault; a fault
 * without memory is its status alone. Effects that find no room come later. The entry or the peer
 * is marked then, and counted in nr_later. rp_later goes on with it when earlier effects have been
 * taken out.
 */
#ifndef RP_INTERNAL_H
#define RP_INTERNAL_H

#include <errno.h>

#include "base/assert.h"
#include "base/atomic.h"
#include "core/protocol/protocol.h"

#define RP_CHUNK_ITEMS 256u     /* pool items per allocation */
#define RP_STEP_EFFECTS 16u     /* reserved for every step */
#define RP_LEAST_EFFECTS 8u     /* room without which no step begins */
#ifndef RP_EFFECTS_KEPT
#define RP_EFFECTS_KEPT 128u    /* room that there always is */
#endif
#define RP_TABLE_KEPT 1024u     /* buckets that an empty table keeps */

#define GONE_TEXT "the value is not there any more"
#define QUOTA_TEXT "this worker holds too many references there"

struct rp_link {
	uint32_t next, prev;
};

/* A circle of links inside items of one pool; the head's first element, 0 = empty. */
typedef uint32_t rp_list;

struct rp_chunk {
	char *items;            /* NULL: given back */
	uint32_t live, free;    /* items in use; place of the first free one + 1, 0 = none */
	uint32_t next, prev;    /* neighbours among chunks with room, index + 1 */
};

struct rp_pool {
	struct rp_chunk *chunks;
	uint32_t nr_chunks, max_chunks;
	uint32_t room;          /* first chunk with a free item, index + 1 */
	uint32_t hole;          /* first given-back chunk, index + 1 (linked by next) */
	uint32_t nr_free;       /* free items in all chunks */
	uint32_t live;
	uint32_t bytes;         /* per item, const */
	bool *wanting;          /* const; set when the last free item is taken */
};

/* First in every item that is in a hash table. */
struct rp_hashed {
	uint32_t next, hash;
};

struct rp_table {
	uint32_t *buckets;
	uint32_t mask, used;
	bool *wanting;          /* const; set when there are more items than buckets */
};

/* rref_id without its padding. */
struct rp_key {
	uint64_t local_id;
	uint32_t rank;
} __attribute__((packed, aligned(4)));

/*
 * A reason for failing; shared by all that failed with it. Without memory for one its number holds
 * the status alone.
 */
#define RP_FAULT_BARE (UINT32_C(1) << 31)
struct rp_fault {
	uint32_t refs;
	int status;
	uint16_t about;         /* rank + 1, as in struct rp_msg; 0: found here */
	char text[RP_TEXT_MAX];
};

struct rp_wait {
	uint64_t cookie;
	struct rp_link link;
};

enum rp_owner_state {
	RP_OWNER_NONE,
	RP_OWNER_PENDING,
	RP_OWNER_READY,
	RP_OWNER_FAILED,
	RP_OWNER_ABANDONED
};

struct rp_owner {
	struct rp_hashed hashed;
	union {
		void *value;    /* READY */
		void *maker;    /* PENDING */
		uint32_t fault; /* FAILED */
	};
	uint64_t word;          /* 0: never shared, so that nobody may ask for it */
	struct rp_key id;
	uint32_t local;         /* references of this worker */
	uint32_t nr_forks, nr_waits;
	rp_list forks, waits;
	uint32_t since;
	uint8_t state;          /* enum rp_owner_state */
	bool telling : 1;       /* some do not know yet that the value is set or given up */
};

static inline void *rp_owner_value(const struct rp_owner *o)
{
	return o->state == RP_OWNER_READY ? o->value : NULL;
}
static inline uint32_t rp_owner_fault(const struct rp_owner *o)
{
	return o->state == RP_OWNER_FAILED ? o->fault : 0;
}

/* A fork recorded at the owner: the key is (holder, fork). */
struct rp_held {
	struct rp_hashed hashed;
	struct rp_key fork;
	uint32_t holder, owner; /* rank; the entry's index */
	uint32_t since;
	struct rp_link in_owner, in_peer;
	bool creator : 1;       /* gets CREATED when the value is set */
	bool told : 1;          /* CREATED was sent */
	bool parked : 1;        /* a FETCH waits for the value */
};

enum rp_user_state {
	RP_USER_NONE,
	RP_USER_ASKING,
	RP_USER_REQUESTED,
	RP_USER_CONFIRMED,
	RP_USER_FAILED
};

/*
 * A reference held here. owner == self only while the owner asks an early record's parent (no
 * handle exists yet).
 */
struct rp_user {
	struct rp_hashed hashed;
	void *handle;
	uint64_t cookie;        /* of READY */
	uint64_t word;          /* shown to the owner, and passed on with each share */
	struct rp_location loc; /* version 0 = unknown */
	struct rp_key id, fork;
	uint32_t owner, parent; /* ranks */
	uint32_t since;
	uint32_t nr_children, nr_waits;
	rp_list children, waits;
	uint32_t fault;         /* FAILED */
	struct rp_link in_owner;  /* member of the owner's list users or lost */
	struct rp_link in_parent; /* member of the parent's list asking, while ASKING */
	uint8_t state;          /* enum rp_user_state */
	bool dropped : 1;
	bool early : 1;         /* the owner may not know the id yet */
	bool creator : 1, created : 1;    /* made by CREATE; its CREATED effect was given */
	bool ready_due : 1;     /* READY is owed, and CHILD_ACCEPT with it */
	bool delete_due : 1;    /* DELETE is owed */
	bool requested : 1;     /* FORK_REQUEST was sent: an ack is legal */
	bool asked : 1;         /* PARENT_REQUEST was sent */
	bool fetched : 1, fetching : 1;   /* FETCH was ever sent; is unanswered */
	bool ending : 1;        /* some do not know of its end yet */
	bool losing : 1;        /* the owner's session has ended: its children go */
	bool lost : 1;          /* the children are gone: it is in the peer's list lost */
};

/* A child shared and not accepted yet. */
struct rp_child {
	struct rp_hashed hashed;
	struct rp_key fork;
	uint32_t user, dest;    /* parent entry's index; rank */
	uint32_t since;
	struct rp_link in_user, in_peer;
	bool asked;             /* a PARENT_REQUEST of the child waits for an answer */
};

struct rp_tomb {
	struct rp_hashed hashed;
	struct rp_key fork;
	uint32_t holder;
	struct rp_link in_peer;
};

enum rp_peer_state { RP_PEER_UP, RP_PEER_FENCED, RP_PEER_GONE };

struct rp_peer {
	enum rp_peer_state state;
	int status;             /* status of the last fence */
	uint32_t fault;         /* fault of a fence that is not over (see due) */
	bool due;               /* the fence or the end of grace has not reached all entries */
	uint32_t epoch;
	uint32_t nr_forks, nr_tombs, nr_users, nr_children;
	rp_list forks;          /* rp_held: values that it holds here */
	rp_list users;          /* rp_user: held here of its values */
	rp_list lost;           /* rp_user: lost with an earlier session, and held still */
	rp_list asking;         /* rp_user: ASKING it */
	rp_list children;       /* rp_child: shared with it */
	rp_list tombs;          /* oldest first */
};

struct rp {
	uint32_t self, world;
	uint32_t now;           /* time of the step under way */
	bool wanting;           /* the next step has to reserve something first; else pools and
				   tables have all that a step may need */
	bool large;             /* a table grew, and may have to be trimmed */
	uint64_t seed;
	uint64_t newest;        /* highest local id of a NEW */
	struct rp_effect *effects;
	size_t first_effect, nr_effects, max_effects; /* all before first_effect were taken out */
	uint32_t nr_later;      /* entries marked telling or ending, and peers marked due */
	struct rp_counts counts;
	struct rp_table owner_table, held_table, user_table, child_table, tomb_table;
	struct rp_pool owners, helds, users, children, tombs, waits, faults;
	struct rp_peer peers[];
};

/* ---- pools and lists (protocol/pool.c) ---- */
void rp_pool_init(struct rp_pool *p, uint32_t item_bytes, bool *wanting);
void rp_pool_close(struct rp_pool *p);
int rp_pool_grow(struct rp_pool *p, uint32_t n);
static inline int rp_pool_reserve(struct rp_pool *p, uint32_t n)
{
	return likely(p->nr_free >= n) ? 0 : rp_pool_grow(p, n);
}
/* Takes an item that was reserved before. It is zeroed. */
uint32_t rp_pool_take(struct rp_pool *p);
void rp_pool_put(struct rp_pool *p, uint32_t i);
/* Visits every place. Items in use have a state other than 0. */
uint32_t rp_pool_next(const struct rp_pool *p, uint32_t i);

static inline void *rp_item(const struct rp_pool *p, uint32_t i)
{
	rb_assert_with(i && i <= p->nr_chunks * RP_CHUNK_ITEMS, "%u of %u chunks", i, p->nr_chunks);
	rb_assert(p->chunks[(i - 1) / RP_CHUNK_ITEMS].items);
	return p->chunks[(i - 1) / RP_CHUNK_ITEMS].items +
	       (size_t)((i - 1) % RP_CHUNK_ITEMS) * p->bytes;
}

/* Adds item i at the end. */
void rp_list_add(const struct rp_pool *p, size_t offset, rp_list *list, uint32_t i);
void rp_list_del(const struct rp_pool *p, size_t offset, rp_list *list, uint32_t i);
/* Returns the item after i, or 0 at the end. */
uint32_t rp_list_next(const struct rp_pool *p, size_t offset, rp_list list, uint32_t i);

#define rp_list_for_each(i, pool, type, member, list) \
	for (uint32_t i = (list); i; \
	     i = rp_list_next((pool), offsetof(type, member), (list), i))

static inline struct rp_owner *rp_owner_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->owners, i);
}
static inline struct rp_held *rp_held_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->helds, i);
}
static inline struct rp_user *rp_user_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->users, i);
}
static inline struct rp_child *rp_child_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->children, i);
}
static inline struct rp_tomb *rp_tomb_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->tombs, i);
}
static inline struct rp_wait *rp_wait_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->waits, i);
}
static inline struct rp_fault *rp_fault_at(const struct rp *m, uint32_t i)
{
	return rp_item(&m->faults, i);
}

/*
 * ---- hash tables (protocol/table.c) ----
 * The find functions return 0 for an entry that is not there. holder is 0 for keys without one.
 */
int rp_table_init(struct rp_table *t, bool *wanting);
void rp_table_close(struct rp_table *t);
int rp_table_grow(struct rp_table *t, const struct rp_pool *p);
/* Grows a full table. Returns whether there is room now: a full table works on, more slowly. */
static inline bool rp_table_reserve(struct rp_table *t, const struct rp_pool *p)
{
	return likely(t->used <= t->mask) || !rp_table_grow(t, p);
}
void rp_table_shrink(struct rp_table *t);
/* Gives memory of an empty table back. */
static inline void rp_table_trim(struct rp_table *t)
{
	if (unlikely(!t->used && t->mask >= RP_TABLE_KEPT))
		rp_table_shrink(t);
}
#define RP_NEAR_BITS 4
static inline uint32_t rp_hash(const struct rp *m, const struct rref_id *id, uint32_t holder)
{
	uint64_t x = (id->local_id >> RP_NEAR_BITS) + m->seed;

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	x ^= ((uint64_t)id->created_on << 32 | holder) * UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 31)) * UINT64_C(0xd6e8feb86659fd93);
	return (uint32_t)(x >> 32 ^ (id->local_id & ((UINT64_C(1) << RP_NEAR_BITS) - 1)));
}
void rp_table_add(struct rp_table *t, const struct rp_pool *p, uint32_t i, uint32_t hash);
void rp_table_del(struct rp_table *t, const struct rp_pool *p, uint32_t i);
uint32_t rp_find_owner(const struct rp *m, const struct rref_id *id);
uint32_t rp_find_held(const struct rp *m, uint32_t holder, const struct rref_id *fork);
uint32_t rp_find_user(const struct rp *m, const struct rref_id *fork);
uint32_t rp_find_child(const struct rp *m, const struct rref_id *fork);
uint32_t rp_find_tomb(const struct rp *m, uint32_t holder, const struct rref_id *fork);

static inline struct rp_key rp_key(const struct rref_id *id)
{
	return (struct rp_key){ .local_id = id->local_id, .rank = id->created_on };
}
static inline struct rref_id rp_id(const struct rp_key *k)
{
	return (struct rref_id){ .local_id = k->local_id, .created_on = k->rank };
}
static inline bool rp_same(const struct rp_key *k, const struct rref_id *id)
{
	return k->local_id == id->local_id && k->rank == id->created_on;
}
/* Tells whether it names something: a rank of the group and a number that was given out. */
static inline bool rp_id_valid(const struct rp *m, const struct rref_id *id)
{
	return id->local_id && id->created_on < m->world && !id->reserved;
}
static inline bool rp_id_none(const struct rref_id *id)
{
	return !id->local_id && !id->created_on;
}

/* ---- effects and faults (protocol/effects.c) ---- */
int rp_effects_grow(struct rp *m, size_t n);
static inline int rp_effects_reserve(struct rp *m, size_t n)
{
	return likely(m->max_effects - m->nr_effects >= n) ? 0 : rp_effects_grow(m, n);
}
static inline size_t rp_effects_room(const struct rp *m)
{
	return m->max_effects - m->nr_effects;
}
/* Reserves room for n effects, in a step that can do with less. */
static inline void rp_effects_wish(struct rp *m, size_t n)
{
	(void)rp_effects_reserve(m, n);
}
struct rp_effect *rp_effect_add(struct rp *m, enum rp_effect_type type);
/* Goes on with the work that had no room, as far as there is room. */
void rp_later(struct rp *m);
/* Sets status and text. fault 0: no text. */
void rp_effect_status(const struct rp *m, struct rp_effect *e, int status, uint32_t fault);
/*
 * Sends nothing to a peer that is not up. A message has status 0 with a value, or another status
 * with a fault, or neither (NULL, 0).
 */
void rp_send(struct rp *m, uint32_t to, enum rp_msg_type type, struct rref_id id,
	     struct rref_id fork, int status, void *value, uint32_t fault);
void rp_send_refusal(struct rp *m, uint32_t to, enum rp_msg_type type, const struct rref_id *id,
		     const struct rref_id *fork, int status, const char *text);
/* Returns a fault with one reference; never fails. text may be NULL. */
uint32_t rp_fault_new(struct rp *m, int status, const char *text);
static inline int rp_fault_status(const struct rp *m, uint32_t fault)
{
	rb_assert(fault);
	return fault & RP_FAULT_BARE ? -(int)(fault & ~RP_FAULT_BARE) :
				       rp_fault_at(m, fault)->status;
}
/* Notes that a message told the fault, and the worker that it is about. */
void rp_fault_about(struct rp *m, uint32_t fault, uint16_t about);
/* Returns the worker that an error in that message is about: rank + 1. */
static inline uint16_t rp_told_about(uint32_t from, const struct rp_msg *msg)
{
	return msg->about ? msg->about : (uint16_t)(from + 1);
}
static inline const char *rp_fault_text(const struct rp *m, uint32_t fault)
{
	return fault & RP_FAULT_BARE ? "" : rp_fault_at(m, fault)->text;
}
uint32_t rp_fault_get(struct rp *m, uint32_t fault);
void rp_fault_put(struct rp *m, uint32_t fault);
/* Copies a text, cut to RP_TEXT_MAX. from NULL: "". */
void rp_text_copy(char *to, const char *from);

/* ---- waits, of both kinds of entry (protocol/effects.c) ---- */
void rp_wait_add(struct rp *m, rp_list *waits, uint32_t *nr, uint64_t cookie);
/* Returns 0, or -ESTALE when that wait is over. */
int rp_wait_remove(struct rp *m, rp_list *waits, uint32_t *nr, uint64_t cookie);
/* Returns false if some are left, for want of room. */
bool rp_waits_end(struct rp *m, rp_list *waits, uint32_t *nr, int status, uint32_t fault,
		  void *value, const struct rp_location *loc);
void rp_waited(struct rp *m, uint64_t cookie, int status, uint32_t fault, void *value,
	       const struct rp_location *loc);

/* ---- owner entries (protocol/owner.c) ---- */
int rp_new(struct rp *m, const struct rp_event *ev);
int rp_set(struct rp *m, const struct rp_event *ev);
int rp_retain(struct rp *m, const struct rp_event *ev);
int rp_release(struct rp *m, const struct rp_event *ev);
int rp_own(struct rp *m, const struct rp_event *ev);
int rp_owner_wait(struct rp *m, const struct rp_event *ev);
int rp_owner_unwait(struct rp *m, const struct rp_event *ev);
/* Frees the entry if nothing refers to it; needs room for 2 effects. */
void rp_owner_settle(struct rp *m, uint32_t owner);
/* Tells the creator and the waits that the value is set or given up, as far as there is room. */
void rp_owner_tell(struct rp *m, uint32_t owner);
/* Tells whether the entry may be referred to anew. */
static inline bool rp_owner_alive(const struct rp *m, uint32_t i)
{
	return i && rp_owner_at(m, i)->state != RP_OWNER_ABANDONED;
}
/*
 * Tells whether a peer that shows this word may refer to the entry anew. That is one comparison of
 * two registers: its time tells nothing.
 */
static inline bool rp_owner_opens(const struct rp *m, uint32_t i, uint64_t word)
{
	return rp_owner_alive(m, i) && word && !(rp_owner_at(m, i)->word ^ word);
}

/* ---- the owner's set of forks (protocol/held.c) ---- */
uint32_t rp_held_add(struct rp *m, uint32_t owner, uint32_t holder, const struct rref_id *fork);
/* Returns the owner entry's index; the caller settles that entry. */
uint32_t rp_held_erase(struct rp *m, uint32_t held);
bool rp_held_full(const struct rp *m, uint32_t holder);
void rp_tomb_add(struct rp *m, uint32_t holder, const struct rref_id *fork);
void rp_tombs_erase(struct rp *m, uint32_t holder);
int rp_on_fork_request(struct rp *m, uint32_t from, const struct rp_msg *msg);
int rp_on_delete(struct rp *m, uint32_t from, const struct rp_msg *msg);
int rp_on_fetch(struct rp *m, uint32_t from, const struct rp_msg *msg);

/* ---- user entries (protocol/user.c) ---- */
int rp_create_user(struct rp *m, const struct rp_event *ev);
int rp_create_failed(struct rp *m, const struct rp_event *ev);
int rp_drop(struct rp *m, const struct rp_event *ev);
int rp_user_wait(struct rp *m, const struct rp_event *ev);
int rp_user_unwait(struct rp *m, const struct rp_event *ev);
uint32_t rp_user_add(struct rp *m, const struct rref_id *id, const struct rref_id *fork,
		     uint32_t owner, uint32_t parent, enum rp_user_state state);
void rp_user_erase(struct rp *m, uint32_t user);
/* Sends a message about the entry's fork, with status 0. */
static inline void rp_user_send(struct rp *m, const struct rp_user *u, uint32_t to,
				enum rp_msg_type type)
{
	rp_send(m, to, type, rp_id(&u->id), rp_id(&u->fork), 0, NULL, 0);
}
/* Sends FORK_REQUEST to the owner. */
void rp_user_ask(struct rp *m, struct rp_user *u);
/* Sends it too, and changes the state to REQUESTED. */
void rp_user_request(struct rp *m, uint32_t user);
/* Sends DELETE and erases the entry as far as it may go; one effect at most. */
void rp_user_settle(struct rp *m, uint32_t user);
/* Returns the number of effects that confirming, failing or settling it may add at most. */
size_t rp_user_effects(const struct rp_user *u);
/* Gives READY and CHILD_ACCEPT, once. */
void rp_user_ready(struct rp *m, struct rp_user *u, int status, uint32_t fault);
/*
 * Fails the entry, and finishes it. Needs room for 4 effects. new: its NEW_HANDLE is an effect of
 * this very step and tells the same. Returns as rp_user_finish.
 */
bool rp_user_fail(struct rp *m, uint32_t user, uint32_t fault, bool new);
/*
 * Ends the waits and children of an entry that failed or was dropped, as far as there is room.
 * Then settles it. Returns true when that was all of it.
 */
bool rp_user_finish(struct rp *m, uint32_t user);
int rp_on_fork_ack(struct rp *m, uint32_t from, const struct rp_msg *msg);
int rp_on_fetch_reply(struct rp *m, uint32_t from, const struct rp_msg *msg);
int rp_on_created(struct rp *m, uint32_t from, const struct rp_msg *msg);

/* ---- sharing (protocol/share.c: the parent's side, protocol/receive.c: the child's) ---- */
int rp_share(struct rp *m, const struct rp_event *ev, struct rp_fork *rec);
int rp_share_undo(struct rp *m, const struct rp_event *ev);
/* Erases a pending child; the caller settles the parent. */
void rp_child_erase(struct rp *m, uint32_t child);
/* Sends PARENT_ACK to the children that asked. Returns false for want of room. */
bool rp_children_answer(struct rp *m, uint32_t user, uint32_t fault);
int rp_on_child_accept(struct rp *m, uint32_t from, const struct rp_msg *msg);
int rp_on_parent_request(struct rp *m, uint32_t from, const struct rp_msg *msg);
int rp_receive(struct rp *m, const struct rp_event *ev);
/* Goes on with an entry that need not ask its parent any longer; 4 effects at most. */
void rp_receive_resume(struct rp *m, uint32_t user);
int rp_on_parent_ack(struct rp *m, uint32_t from, const struct rp_msg *msg);

/* ---- the laws between two steps (protocol/sound.c) ---- */
#if RB_CHECKED
void rp_assert_sound(const struct rp *m, const struct rp_event *ev);
#else
static inline void rp_assert_sound(const struct rp *m, const struct rp_event *ev)
{
	(void)m;
	(void)ev;
}
#endif

/* ---- peers (protocol/peer.c) ---- */
int rp_peer_up(struct rp *m, const struct rp_event *ev);
int rp_peer_fenced(struct rp *m, const struct rp_event *ev);
int rp_peer_grace(struct rp *m, const struct rp_event *ev);
/* Cleans up after the peer's fence or the end of its grace, as far as there is room. */
void rp_peer_clean(struct rp *m, uint32_t rank);
static inline bool rp_peer_reachable(const struct rp *m, uint32_t rank)
{
	return m->peers[rank].state == RP_PEER_UP;
}

static inline int rp_ignored(struct rp *m)
{
	m->counts.ignored++;
	return 0;
}
static inline int rp_refused(struct rp *m)
{
	m->counts.refused++;
	return -EPROTO;
}

#endif
