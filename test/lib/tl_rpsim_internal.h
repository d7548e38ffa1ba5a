/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the simulator (tl_rpsim.h): its state, and what its parts want of each other. */
#ifndef TL_RPSIM_INTERNAL_H
#define TL_RPSIM_INTERNAL_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rp.h"
#include "test/lib/tl_rpcheck.h"
#include "test/lib/tl_rpsim.h"

#define MAX_MACHINES 6u
#define MAX_RECS 3u
#define ECREATE ECHILD          /* of a creation that fails at its owner */

/* A value, from its announcement on. Its address is the runtime's value. */
struct object {
	struct rref_id id;
	uint32_t owner, owner_inc, creator;
	uint64_t nonce;
	bool known, set, freed, gone;   /* OWN or NEW was stepped; SET was; the effects came */
	bool valued;                    /* SET brought a value */
	bool created;                   /* CREATED effect came */
	bool unsent;                    /* the CREATE call never arrives */
	bool timed_out;                 /* CREATE_FAILED was stepped */
	bool gave_up;                   /* it was, or the owner set an error */
	struct rref_id fork;            /* the creator's */
	uint32_t local;                 /* references of the owner */
};

enum claim_state { CLAIM_FLYING, CLAIM_RECEIVED, CLAIM_CONFIRMED, CLAIM_OVER };

/* One fork in the ledger. */
struct claim {
	struct object *obj;
	struct claim *parent;           /* NULL: shared by the owner, or the creator's */
	uint32_t holder, holder_inc;
	enum claim_state state;
	struct rref_id fork;
	bool evil;                      /* comes of a hostile worker's record: promises nothing before it is confirmed */
	bool lost;                      /* the owner wrote its holder off (grace is over) */
	bool unpinned;                  /* its parent wrote its holder, or the owner, off */
};

struct handle {
	struct object *obj;
	struct rref_id fork;            /* zero: owned */
	struct claim *claim;            /* user */
	uint32_t machine, inc;
	bool released, failed;
};

struct incoming {
	unsigned waiting;
	unsigned nr;
	bool refuse;                    /* the call will not run: its handles are dropped at once */
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

struct call {
	unsigned nr, copies;
	bool seen;
	struct rp_fork recs[MAX_RECS];
	uint32_t owner_inc[MAX_RECS];
	struct claim *claims[MAX_RECS];
	struct object *create;          /* a creation, without records */
};

struct packet {
	struct packet *next;
	uint32_t from, to, epoch;
	struct rp_msg msg;
	struct call *call;              /* NULL: msg */
};

enum link_state { LINK_UP, LINK_LOST, LINK_FENCED, LINK_GRACED };

/* What a machine thinks of a peer. */
struct view {
	enum link_state state;
	uint32_t epoch;                 /* of the session it is in; 0 = none */
	uint32_t last;                  /* of the last session that it left */
	uint32_t coming;                /* of the session to enter once grace is over; 0 = none */
	uint32_t inc, coming_inc;       /* the peer's incarnation */
};

struct machine {
	struct rp *m;
	bool alive;
	uint32_t inc;
	uint64_t next_local;
	struct view views[MAX_MACHINES];
	struct handle **handles;        /* not released */
	size_t nr_handles, max_handles;
};

struct sim {
	uint64_t rng;
	unsigned n, flags;
	uint32_t epochs;
	struct machine machines[MAX_MACHINES];
	struct packet *links[MAX_MACHINES][MAX_MACHINES];
	struct object **objects;
	struct claim **claims;
	struct cookie *cookies;
	size_t nr_objects, max_objects, nr_claims, max_claims, nr_cookies, max_cookies;
	void **garbage;                 /* everything allocated, freed at the end */
	size_t nr_garbage, max_garbage;
	bool trace;
	bool attacking;                 /* this step is a hostile worker's doing */
	uint32_t evil;                  /* its rank, or n */
	unsigned depth;                 /* of do_effects */
	struct handle **doomed;         /* to be released when all effects of the step were seen */
	size_t nr_doomed, max_doomed;
	bool broken;                    /* a crash or cut has happened */
	bool duplicate;                 /* the last OWN was one */
	struct tl_rp_result *result;
};

/* ---- the ledger, the network (tl_rpsim_ledger.c) ---- */
void sim_fail(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool sim_failed(const struct sim *s);
uint32_t sim_rnd(struct sim *s, uint32_t n);
bool sim_chance(struct sim *s, uint32_t percent);
void *sim_grow(void *array, size_t nr, size_t *max, size_t bytes);
void *sim_make(struct sim *s, size_t bytes);
struct rref_id sim_new_id(struct sim *s, uint32_t r);
bool sim_same(struct rref_id a, struct rref_id b);
struct object *sim_object_of(struct sim *s, struct rref_id id);
struct object *sim_add_object(struct sim *s, uint32_t creator, uint32_t owner, uint32_t owner_inc);
struct claim *sim_add_claim(struct sim *s, struct object *o, struct claim *parent, uint32_t holder);
struct handle *sim_add_handle(struct sim *s, uint32_t r, struct object *o, struct rref_id fork,
			      struct claim *claim);
uint64_t sim_add_cookie(struct sim *s, struct cookie c, uint32_t r);
bool sim_owner_alive(const struct sim *s, const struct object *o);
void sim_check_unreferenced(struct sim *s, const struct object *o, const char *what);
void sim_push(struct sim *s, uint32_t from, uint32_t to, const struct rp_msg *msg, struct call *call);
void sim_purge(struct sim *s, uint32_t from, uint32_t to);
struct packet *sim_pick(struct sim *s);

/* ---- steps and their effects (tl_rpsim_step.c) ---- */
int sim_step(struct sim *s, uint32_t r, const struct rp_event *ev, struct rp_fork *rec);
void sim_release(struct sim *s, struct handle *h);

/* ---- what arrives, the program (tl_rpsim_program.c) ---- */
bool sim_deliver(struct sim *s);
void sim_act(struct sim *s, uint32_t r);
bool sim_be_late(struct sim *s, bool all);

/* ---- crashes, a hostile worker (tl_rpsim_crash.c) ---- */
void sim_view_fence(struct sim *s, uint32_t r, uint32_t peer);
void sim_view_grace(struct sim *s, uint32_t r, uint32_t peer);
void sim_view_up(struct sim *s, uint32_t r, uint32_t peer);
void sim_start(struct sim *s, uint32_t r);
bool sim_recover(struct sim *s, uint32_t percent);
void sim_disturb(struct sim *s);
void sim_attack(struct sim *s);

#endif
