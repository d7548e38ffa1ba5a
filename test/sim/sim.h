/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulator of the reference protocol. It has machines (core/protocol/protocol.h, the objects
 * that ship), a network, and memory that is reused. A random program drives them; all depends on
 * one seed. The simulator keeps its own ledger of all holders and values, and looks at it after
 * every step.
 *
 * A seed makes a list of decisions (plan.c). Each has its own salt, which is all its chance. Among
 * packets, handles or workers it picks the one whose name and salt hash highest. So a decision
 * that is left out changes little of the others. A failing list can be shrunk (shrink.c).
 *
 * These rules must hold:
 *   - an owner entry goes, and its value is freed, only when nothing may still lead to it. A handle
 *     or fork of a session that the owner has not written off may lead to it. So may a record under
 *     way whose chain of parents is unbroken;
 *   - a READ that reaches the owner's memory finds the value that it was posted for: never freed,
 *     never reused;
 *   - a value is freed once, a fork is deleted once. Each record gives one READY, each wait one
 *     WAITED, each creation one CREATED, each READ one end;
 *   - a wait brings that value's own location;
 *   - whenever an owner forgets a fork, no confirmed holder of a session that is not written off
 *     loses its own;
 *   - without crashes no FORK_REQUEST is refused, and no record except for a creation
 *     that failed (S4);
 *   - honest workers are never refused (-EPROTO), and nothing is sent to a fenced peer. A later
 *     session of an owner learns nothing of the forks that were lost with an earlier one;
 *   - a hostile worker is told nothing of a value that was not shared with it. It holds no fork of
 *     it. No other worker gets a reference to that value by a record of the hostile worker;
 *   - all records of a value carry one word;
 *   - no session begins before the last one's grace is over;
 *   - tl_rp_check finds nothing;
 *   - when all is quiet, nothing is pending and no parent is pinned. The owners' forks are exactly
 *     the handles held;
 *   - after everything was released and delivered all tables are empty, but for tombstones, which
 *     are bounded.
 */
#ifndef SIM_H
#define SIM_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/protocol/protocol.h"
#include "test/lib/tl_rpcheck.h"

#define MIN_MACHINES 1u         /* fewer than 3 only if asked for, or shrunk */
#define MAX_MACHINES 8u
#define MAX_RECS 3u
#define MAX_DECISIONS 512u
#define MAX_HANDLES 12u         /* a program with that many makes no more */
#define ECREATE ECHILD          /* status of a creation that fails at its owner */

/* ---- decisions of a seed (plan.c) ------------------------------------------------------------ */

/* messages and calls are reordered and repeated; else each pair keeps its order */
#define SIM_CHAOS 1u
#define SIM_CRASH 2u            /* workers are killed, at any effect, and come back */
/* messages are lost, the group is parted and healed, peers are suspected */
#define SIM_CUT 4u
/* the last worker says anything, and is fenced at the end: the others must not suffer */
#define SIM_HOSTILE 8u
/* the group is parted and healed, connections replay, but no worker is suspected */
#define SIM_DELAY 16u

enum sim_kind {
	SIM_DELIVER,
	SIM_LATE,
	SIM_CREATE,
	SIM_SHARE,
	SIM_READ,
	SIM_RETAIN,
	SIM_RELEASE,
	SIM_RECOVER,
	SIM_KILL,
	SIM_DIE,
	SIM_START,
	SIM_DROP,
	SIM_SUSPECT,
	SIM_PART,
	SIM_HEAL,
	SIM_REPLAY,
	SIM_ATTACK,
	SIM_BURST,
	SIM_NR_KINDS
};

struct sim_decision {
	enum sim_kind kind;
	uint64_t salt;
	bool left_out;
};

struct sim_plan {
	uint64_t seed;
	unsigned profile, workers, nr;
	struct sim_decision list[MAX_DECISIONS];
};

struct sim_profile {
	const char *name;
	unsigned flags;
};
extern const struct sim_profile sim_profiles[];
extern const unsigned sim_nr_profiles;
extern const char *const sim_kind_names[SIM_NR_KINDS];

/* profile, workers: -1, 0 = by the seed. */
void sim_plan_make(struct sim_plan *p, uint64_t seed, int profile, unsigned workers);

/* ---- running it (run.c) ---------------------------------------------------------------------- */

struct sim_result {
	char text[256];         /* the failure; "" = nothing */
	const char *rule;       /* constant part, which names the check; compared by address */
	unsigned decision;      /* the failed one; nr after all of them */
	uint64_t steps, messages, reads, kills, fences, parts, freed, refused_records, attacks;
};

/* Runs a plan. Returns 0, or -1 with result->text. trace: NULL, or the file for each step. */
int sim_run(const struct sim_plan *plan, FILE *trace, struct sim_result *result);

/* ---- shrinking (shrink.c): as few decisions and workers as still fail by the same rule ------- */
/* Runs a plan in a separate process, which it may crash or hang.
 * Returns 0, or -1 with result->text. */
int sim_run_apart(const struct sim_plan *plan, FILE *trace, struct sim_result *result);
void sim_shrink(struct sim_plan *plan, struct sim_result *result);

/* ---- the state ------------------------------------------------------------------------------- */

/* A value, from its announcement on. Its address is the runtime's value. */
struct object {
	struct rref_id id;
	uint32_t owner, owner_inc, creator;
	uint64_t nonce;
	uint32_t slot;                  /* place in the owner's memory */
	bool known, set, freed, gone;   /* OWN or NEW stepped; SET stepped; effects came */
	bool valued;                    /* SET brought a value */
	bool created;                   /* CREATED effect came */
	bool unsent;                    /* the CREATE call never arrives */
	bool timed_out;                 /* CREATE_FAILED was stepped */
	bool gave_up;                   /* creation given up, or the owner set an error */
	struct rref_id fork;            /* the creator's */
	uint32_t local;                 /* references of the owner */
	struct incoming *args;          /* the call that makes it */
	unsigned nr_nested;             /* references in the value */
	uint64_t word;                  /* 0: created by its owner, and not shared yet */
	bool given;                     /* the hostile worker knows the word */
};

enum claim_state { CLAIM_FLYING, CLAIM_RECEIVED, CLAIM_CONFIRMED, CLAIM_OVER };

/* A fork in the ledger. */
struct claim {
	struct object *obj;
	struct claim *parent;           /* NULL: shared by the owner, or the creator's */
	uint32_t holder, holder_inc;
	enum claim_state state;
	struct rref_id fork;
	bool confirmed;                 /* the claim was confirmed once */
	/* the owner may not have known of the value when it was shared */
	bool early;
	/* comes of a hostile worker's record: promises nothing before it is confirmed */
	bool evil;
	bool lost;                      /* the owner wrote its holder off (grace is over) */
	bool refused;                   /* the receiver's runtime refused it */
	bool deleted;                   /* the holder sent DELETE */
	bool owner_lost;                /* the holder fenced the owner */
	/* the parent wrote the holder off, or the owner that did not know the parent */
	bool unpinned;
};

struct handle {
	uint64_t uid;
	struct object *obj;
	struct rref_id fork;            /* zero: owned */
	struct claim *claim;            /* user */
	uint32_t machine, inc;
	struct rp_location loc;         /* version 0 = unknown */
	struct object *nested_in;       /* this value holds it, not the program */
	unsigned reads;                 /* reads and takes under way: they pin the handle */
	bool released, dropped, failed; /* by the program; the machine knows; by a status */
};

struct incoming {
	unsigned waiting;
	unsigned nr;
	uint32_t from;
	bool refuse;                    /* the call will not run: its handles are dropped at once */
	bool failed;                    /* the machine refused a record of it */
	struct handle *handles[MAX_RECS];
};

struct cookie {
	enum { COOKIE_READY, COOKIE_WAIT } kind;
	uint32_t machine, inc;
	bool over;
	struct object *obj;
	struct claim *claim;
	struct incoming *call;
	unsigned slot;
	struct handle *handle;
};

/* A one-sided READ under way. */
struct read {
	uint64_t uid;
	struct handle *handle;
	uint32_t machine, epoch;
	struct rp_location loc;
};

struct call {
	unsigned nr, copies;
	bool seen;
	struct rp_fork recs[MAX_RECS];
	uint32_t owner_inc[MAX_RECS];
	struct claim *claims[MAX_RECS];
	struct object *create;          /* a creation; its records are the arguments */
	/* no call: a reader of this reference's value asks for its references */
	struct handle *take;
};

struct packet {
	struct packet *next;
	uint64_t uid;
	uint32_t from, to, epoch;
	struct rp_msg msg;
	struct call *call;              /* NULL: msg */
};

enum link_state { LINK_UP, LINK_LOST, LINK_FENCED, LINK_GRACED };

/* A machine's view of a peer. */
struct view {
	enum link_state state;          /* LOST: the session ended unnoticed by this side */
	uint32_t epoch;                 /* epoch of the present session; 0 = none */
	uint32_t last;                  /* epoch of the last session that it left */
	uint32_t coming;                /* epoch of the session to enter after grace; 0 = none */
	/* epoch in which a message to this side was lost: no message comes after it */
	uint32_t deaf;
	uint32_t inc, coming_inc;       /* the peer's incarnation */
};

struct slot {
	uint64_t nonce;                 /* 0 = scrubbed */
	struct object *obj;
};

struct machine {
	struct rp *m;
	bool alive;
	uint32_t inc;
	uint64_t next_local;
	struct view views[MAX_MACHINES];
	struct handle **handles;        /* not released */
	size_t nr_handles, max_handles;
	struct slot *memory;
	uint32_t *free;                 /* slots, the last freed is the next used */
	size_t nr_slots, max_slots, nr_free, max_free;
	struct packet *sent[MAX_MACHINES]; /* last arrived packets, for replay */
};

/* A program's work after the effects of a step: their handle
 * slots are valid until the next step. */
struct todo {
	enum { TODO_RELEASE, TODO_RETURN, TODO_READ } what;
	struct handle *handle;
	uint32_t to;
};

struct sim {
	const struct sim_plan *plan;
	uint64_t rng, uid;              /* state of the present decision */
	unsigned n, flags;
	uint32_t epochs;
	struct machine machines[MAX_MACHINES];
	bool parted[MAX_MACHINES][MAX_MACHINES];
	struct packet *links[MAX_MACHINES][MAX_MACHINES];
	struct object **objects;
	struct claim **claims;
	struct cookie *cookies;
	struct read *reads;
	struct todo *todo;
	size_t nr_objects, max_objects, nr_claims, max_claims, nr_cookies, max_cookies, nr_reads,
		max_reads, nr_todo, max_todo;
	void **garbage;                 /* everything allocated, freed at the end */
	size_t nr_garbage, max_garbage;
	FILE *trace;
	bool attacking;                 /* this step is a hostile worker's doing */
	uint32_t evil;                  /* rank of the hostile worker, or n */
	unsigned depth;                 /* depth of effects within effects */
	uint32_t doomed;                /* rank that dies in this decision, or n */
	unsigned doom;                  /* effects until that death */
	/* rank that died within a decision, or n */
	uint32_t dying;
	bool broken;                    /* a worker died, or was suspected */
	bool duplicate;                 /* the last OWN was a duplicate */
	struct sim_result *result;
};

/* ---- chance (plan.c) ---- */
uint64_t sim_mix(uint64_t x);
void sim_salt(struct sim *s, uint64_t salt);            /* begins a decision */
uint64_t sim_draw(struct sim *s);
uint32_t sim_rnd(struct sim *s, uint32_t n);
bool sim_chance(struct sim *s, uint32_t percent);
uint64_t sim_uid(struct sim *s);                        /* names a new thing */
uint64_t sim_word(const struct sim *s, struct rref_id of); /* returns a word, never guessed */
uint32_t sim_pick_alive(struct sim *s);                 /* a rank; n if no worker lives */
uint32_t sim_pick_rank(struct sim *s);
/* Picks a handle of that worker's program; nested: also one inside a
 * value. Returns NULL if there is no handle. */
struct handle *sim_pick_handle(struct sim *s, uint32_t r, bool nested);

/* ---- the ledger (ledger.c) ---- */
void sim_fail(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool sim_failed(const struct sim *s);
void *sim_grow(void *array, size_t nr, size_t *max, size_t bytes);
void *sim_make(struct sim *s, size_t bytes);
struct rref_id sim_new_id(struct sim *s, uint32_t r);
bool sim_same(struct rref_id a, struct rref_id b);
struct object *sim_object_of(struct sim *s, struct rref_id id);
struct claim *sim_claim_of(struct sim *s, struct rref_id fork);
struct object *sim_add_object(struct sim *s, uint32_t creator, uint32_t owner, uint32_t owner_inc);
struct claim *sim_add_claim(struct sim *s, struct object *o, struct claim *parent, uint32_t holder);
struct handle *sim_add_handle(struct sim *s, uint32_t r, struct object *o, struct rref_id fork,
			      struct claim *claim);
uint64_t sim_add_cookie(struct sim *s, struct cookie c, uint32_t r);
/* Returns whether the claim may fail with its value's creation, which was given up. */
bool sim_may_fail(const struct sim *s, const struct claim *c);
bool sim_owner_alive(const struct sim *s, const struct object *o);
void sim_check_unreferenced(struct sim *s, const struct object *o, const char *what);
/* Checks the owner's forks against its holders' handles. */
void sim_check_recorded(struct sim *s, uint32_t r);
void sim_check_refusal(struct sim *s, uint32_t r, const struct rp_msg *msg);
/* Returns whether the hostile worker has the value, by a share or as its own. */
bool sim_is_given(const struct sim *s, const struct object *o);
/* Checks a message to the hostile worker. */
void sim_check_told(struct sim *s, uint32_t r, const struct rp_msg *msg);
/* Checks the hostile worker's forks at this owner. */
void sim_check_held(struct sim *s, uint32_t r);
/* Run when no packet is under way and handles are held. */
void sim_check_quiet(struct sim *s);
void sim_check_end(struct sim *s);                      /* run after all releases */

/* ---- the network (net.c) ---- */
void sim_push(struct sim *s, uint32_t from, uint32_t to, const struct rp_msg *msg,
	      struct call *call);
/* Drops packets that the receiver will never accept any more. */
void sim_purge(struct sim *s, uint32_t from, uint32_t to);
/* Withdraws the session that was offered and not entered. */
void sim_withdraw(struct sim *s, uint32_t from, uint32_t to);
struct packet *sim_pick(struct sim *s);
void sim_arrived(struct sim *s, struct packet *p);      /* keeps it for a replay, or frees it */
void sim_drop(struct sim *s);
void sim_replay(struct sim *s);
void sim_forget_sent(struct sim *s, uint32_t from, uint32_t to);
void sim_net_close(struct sim *s);

/* ---- memory and READs of it (memory.c) ---- */
void sim_memory_set(struct sim *s, struct object *o);
void sim_memory_locate(const struct object *o, struct rp_location *loc);
void sim_memory_free(struct sim *s, struct object *o);
void sim_memory_close(struct machine *k);               /* the worker died */
void sim_local_read(struct sim *s, const struct object *o);
void sim_read_post(struct sim *s, struct handle *h, const struct rp_location *loc);
/* Ends one READ. Returns false if no READ can end now. */
bool sim_read_run(struct sim *s);
void sim_reads_fail(struct sim *s, uint32_t r, uint32_t peer); /* the reader fenced that peer */
void sim_unpin(struct sim *s, struct handle *h);        /* a READ or a take of it is over */
void sim_reads_forget(struct sim *s, uint32_t r);       /* the reader died */

/* ---- steps and their effects (step.c, trace.c) ---- */
int sim_step(struct sim *s, uint32_t r, const struct rp_event *ev, struct rp_fork *rec);
void sim_release(struct sim *s, struct handle *h);
void sim_later(struct sim *s, struct todo t);
void sim_todo(struct sim *s);
/* Print before the step, and after it. */
void sim_trace_event(struct sim *s, uint32_t r, const struct rp_event *ev);
void sim_trace_effects(struct sim *s, uint32_t r, int rc);
void sim_note(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- arrivals, the program (program.c) ---- */
bool sim_deliver(struct sim *s);
void sim_create(struct sim *s, uint32_t r, uint32_t owner);
void sim_share(struct sim *s, uint32_t r, uint32_t to, struct handle *only);
void sim_to_here(struct sim *s, struct handle *h);
void sim_retain(struct sim *s, struct handle *h);
/* Asks for the references of a value that was read. */
void sim_take(struct sim *s, struct handle *h);
bool sim_be_late(struct sim *s, bool all);
void sim_burst(struct sim *s);

/* ---- crashes and cuts (peers.c) ---- */
void sim_view_fence(struct sim *s, uint32_t r, uint32_t peer);
void sim_view_grace(struct sim *s, uint32_t r, uint32_t peer);
void sim_view_up(struct sim *s, uint32_t r, uint32_t peer);
void sim_meet(struct sim *s);
void sim_start(struct sim *s, uint32_t r);
void sim_kill(struct sim *s, uint32_t r);
/* Ends the session of a pair, unnoticed by both. */
void sim_lose(struct sim *s, uint32_t a, uint32_t b);
void sim_suspect(struct sim *s, uint32_t r, uint32_t peer);
void sim_part(struct sim *s);
void sim_heal(struct sim *s);
bool sim_recover(struct sim *s, bool all);

/* ---- a hostile worker (hostile.c) ---- */
void sim_attack(struct sim *s);

#endif
