/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of the reference protocol, as core/protocol/*.c has them. Every inline is named after
 * the function that it follows. safety.pml and liveness.pml include this file and add the workers'
 * choices.
 *
 * Workers: O owns everything, A and B are users. There are two objects (ids 0 and 1) and one memory
 * slot. Id 1 is made in the place of id 0, once that is gone. Forks are numbers below NF, never
 * used twice; the constant properties of a fork are in f_*. The key of the owner's set is (holder,
 * fork). Here it is the fork alone, since the holder of a fork is f_dest.
 *
 * Flags of forks are masks, one bit each. A step of the machine is one transition.
 */
#define O 0
#define A 1
#define B 2
#define W 3

#ifndef NF
#define NF 4
#endif
#ifndef QLEN
#define QLEN 6
#endif
#define NID 2
#define NOBODY 7

/* enum rp_user_state */
#define NONE 0
#define ASKING 1
#define REQUESTED 2
#define CONFIRMED 3
#define FAILED 4

/* enum rp_owner_state; its NONE is 0 here, too */
#define PENDING 1
#define READY 2
#define SET_FAILED 3
#define HUSK 4

/* enum rp_peer_state */
#define UP 0
#define FENCED 1
#define GONE 2

/* Messages. _LOC: with a location; _ERR: status is not 0. RECORD is a fork record in a call, and
 * CREATE is the call itself. */
mtype:msg = {
	RECORD, RECORD_LOC, RECORD_EARLY, FORK_REQUEST, FORK_ACK,
	FORK_ACK_LOC, FORK_ACK_ERR, CHILD_ACCEPT, DELETE, CREATE,
	CREATED, CREATED_ERR, PARENT_REQUEST, PARENT_ACK, PARENT_ACK_ERR
};

#define HAS(m, f) (((m) >> (f)) & 1)
#define ADD(m, f) m = m | (1 << (f))
#define DEL(m, f) m = m & (255 - (1 << (f)))
#define PS(x, y) ps[(x) * W + (y)]
#define Q(x, y) q[(x) * 2 + (y) - ((y) > (x))]

/* Forks, by the choices made when they are made. f_src: the parent's
 * own fork, NOBODY when the owner shares. */
byte nf;
byte f_id[NF], f_parent[NF], f_src[NF], f_dest[NF];

/* struct rp_user, at f_dest */
byte ust[NF];
byte dropped, due, requested, asked, early, ready_due, creator, created, loc;

/* struct rp_child, at f_parent */
byte child, child_asked;

/* struct rp_held, struct rp_tomb, struct rp_owner, at O */
byte held, held_creator, tomb;
byte ost[NID], own_refs[NID];
byte slot;              /* object in the memory: id + 1, 0 = scrubbed */
bool made[NID];         /* ids are never used twice */
#ifdef MUTANT_NO_ABANDONED
bool running;           /* a function makes the value */
#endif

/* Sessions: PS(x, y) is the state of y in x's machine. Both UP
 * = one session, in both directions. */
byte ps[W * W];
byte alive = 7;
byte reading[W];        /* fork + 1 whose header was read, while the payload is on its way */

bool faulty;            /* a worker crashed, a session was cut, or a call timed out */

/* A queue for each direction: {type * 8 + fork}. */
chan q[6] = [QLEN] of { byte };

#ifdef LIVE
/* Messages under way about each fork: its number is used again when no trace of it is left. */
byte under_way[NF];
#define SENT(f) under_way[f]++
#define TAKEN(f) under_way[f]--
#else
#define SENT(f) skip
#define TAKEN(f) skip
#endif

hidden byte r_f, r_g, r_h, r_i, r_n;
hidden mtype:msg r_t;

#define PINNED1(f, g) (NF > (g) && HAS(child, g) && f_src[(g) % NF] == (f))
#ifdef MUTANT_NO_PIN
#define PINNED(f) false
#else
#define PINNED(f) (PINNED1(f, 0) || PINNED1(f, 1) || PINNED1(f, 2) || PINNED1(f, 3) || \
	PINNED1(f, 4) || PINNED1(f, 5))
#endif
#define HELD1(id, g) (NF > (g) && HAS(held, g) && f_id[(g) % NF] == (id))
#define HELD(id) (HELD1(id, 0) || HELD1(id, 1) || HELD1(id, 2) || HELD1(id, 3) || HELD1(id, 4) || \
	HELD1(id, 5))

/* Fails: an honest worker must never meet this, since its session would be fenced. */
#define rp_refused() assert(false)

/*
 * rp_send. A worker whose end of the session is over will never take the message. It
 * is lost here, and not kept to be thrown away on arrival by its epoch.
 * MUTANT_OLD_SESSION keeps it, and all messages under way.
 */
inline rp_send(from, to, type, f)
{
	if
#ifdef MUTANT_OLD_SESSION
	:: PS(from, to) == UP && HAS(alive, to) ->
#else
	:: PS(from, to) == UP && PS(to, from) == UP && HAS(alive, to) ->
#endif
		assert(nfull(Q(from, to)));
		Q(from, to)!((type) * 8 + (f));
		SENT(f)
	:: else
	fi
}

inline purge(from, to)
{
	do
	:: len(Q(from, to)) > 0 -> Q(from, to)?r_h; TAKEN(r_h & 7)
	:: else -> break
	od;
	r_h = 0
}

/* ---- owner entries: protocol/owner.c ---- */

#define OWNER_ALIVE(id) (ost[id] != NONE && ost[id] != HUSK)

inline rp_owner_settle(id)
{
	if
	:: own_refs[id] == 0 && !HELD(id) && ost[id] != HUSK && ost[id] != NONE ->
		if
#ifndef MUTANT_NO_ABANDONED
		:: ost[id] == PENDING -> ost[id] = HUSK
#endif
		:: ost[id] == READY ->
			assert(slot == id + 1);
			slot = 0;
			ost[id] = NONE
		:: else -> ost[id] = NONE
		fi
	:: else
	fi
}

/* ---- user entries: protocol/user.c ---- */

inline rp_user_erase(f)
{
	ust[f] = NONE;
	DEL(dropped, f); DEL(due, f); DEL(requested, f); DEL(asked, f); DEL(early, f);
	DEL(ready_due, f); DEL(creator, f); DEL(created, f); DEL(loc, f)
}

inline rp_user_settle(f)
{
	if
	:: (ust[f] == CONFIRMED || ust[f] == FAILED) && !(HAS(creator, f) && !HAS(created, f)) &&
	   (HAS(dropped, f) || ust[f] == FAILED) && !PINNED(f) ->
		if
		:: HAS(due, f) ->
			rp_send(f_dest[f], O, DELETE, f);
			DEL(due, f)
		:: else
		fi;
		if
		:: HAS(dropped, f) -> rp_user_erase(f)
		:: else
		fi
	:: else
	fi
}

inline rp_user_ready(f)
{
	if
	:: HAS(ready_due, f) ->
		DEL(ready_due, f);
		if
		:: f_parent[f] != O -> rp_send(f_dest[f], f_parent[f], CHILD_ACCEPT, f)
		:: else
		fi
	:: else
	fi
}

/* answer(): only forks that asked before the owner knew get a failed parent's words. */
inline answer(u, g, failed)
{
	DEL(child_asked, g);
	if
	:: HAS(early, u) && failed -> rp_send(f_parent[g], f_dest[g], PARENT_ACK_ERR, g)
	:: else -> rp_send(f_parent[g], f_dest[g], PARENT_ACK, g)
	fi
}

inline rp_children_answer(f, failed)
{
#ifdef MUTANT_NO_ANSWER
	skip
#else
	r_g = 0;
	do
	:: r_g < NF && HAS(child_asked, r_g) && f_src[r_g] == f -> answer(f, r_g, failed); r_g++
	:: r_g < NF && !(HAS(child_asked, r_g) && f_src[r_g] == f) -> r_g++
	:: else -> break
	od;
	r_g = 0
#endif
}

inline user_confirm(f, with_loc)
{
	ust[f] = CONFIRMED;
	ADD(due, f);
	DEL(early, f);
	if
	:: with_loc -> ADD(loc, f)
	:: else
	fi;
	if
	:: HAS(loc, f) && HAS(creator, f) -> ADD(created, f)
	:: else
	fi;
	rp_user_ready(f);
	rp_children_answer(f, false);
	rp_user_settle(f)
}

inline rp_user_fail(f)
{
	if
	:: ust[f] != FAILED ->
		ust[f] = FAILED;
		if
		:: HAS(creator, f) -> ADD(created, f)
		:: else
		fi;
#ifndef MUTANT_NO_ACCEPT_OF_REFUSED
		rp_user_ready(f);
#endif
		rp_children_answer(f, true);
		rp_user_settle(f)
	:: else
	fi
}

inline rp_user_request(f)
{
	ust[f] = REQUESTED;
	ADD(requested, f);
	rp_send(f_dest[f], O, FORK_REQUEST, f)
}

inline rp_on_fork_ack(f, type)
{
	if
	:: ust[f] == NONE
	:: else ->
		if
		:: !HAS(requested, f) -> rp_refused()
		:: else
		fi;
		if
		:: ust[f] == REQUESTED && type != FORK_ACK_ERR ->
			user_confirm(f, type == FORK_ACK_LOC)
		:: ust[f] == REQUESTED && type == FORK_ACK_ERR && !HAS(creator, f) ->
			assert(faulty);         /* S4: nothing is refused without a fault */
#ifndef MUTANT_NO_DELETE_AFTER_REFUSAL
			ADD(due, f);
#endif
			rp_user_fail(f)
		:: else
		fi
	fi
}

inline rp_on_created(f, ok)
{
	if
	:: ust[f] == NONE
	:: else ->
		if
		:: !HAS(creator, f) -> rp_refused()
		:: else
		fi;
		if
		:: HAS(created, f)
		:: else ->
			DEL(early, f);
			if
			:: ok -> user_confirm(f, true)
			:: else -> rp_user_fail(f)
			fi
		fi
	fi
}

inline rp_drop(f)
{
	ADD(dropped, f);
	rp_user_settle(f)
}

inline rp_create_failed(f)
{
	faulty = true;
	rp_user_fail(f)
}

/* ---- the owner's set: protocol/held.c ---- */

inline rp_tomb_add(f)
{
#ifndef MUTANT_NO_TOMBSTONE
	if
	:: f_parent[f] != O -> ADD(tomb, f)
	:: else
	fi
#else
	skip
#endif
}

inline ack_fork(f)
{
	if
	:: ost[f_id[f]] == READY -> rp_send(O, f_dest[f], FORK_ACK_LOC, f)
	:: else -> rp_send(O, f_dest[f], FORK_ACK, f)
	fi
}

inline rp_on_fork_request(f)
{
	if
	:: HAS(held, f) -> ack_fork(f)
#ifdef MUTANT_NO_GENERATION
	/* The mutant's answer names the slot, not the object in it. */
	:: !HAS(held, f) && (HAS(tomb, f) || slot == 0) -> rp_send(O, f_dest[f], FORK_ACK_ERR, f)
#else
	:: !HAS(held, f) && (HAS(tomb, f) || !OWNER_ALIVE(f_id[f])) ->
		rp_send(O, f_dest[f], FORK_ACK_ERR, f)
#endif
	:: else ->
		assert(f_parent[f] != O);
		ADD(held, f);
		ack_fork(f)
	fi
}

inline rp_on_delete(f)
{
	if
#ifdef MUTANT_COUNTER
	/* A count of forks goes down with any message. */
	:: !HAS(held, f) ->
		r_g = 0;
		do
		:: r_g < NF && HAS(held, r_g) && f_id[r_g] == f_id[f] -> DEL(held, r_g); r_g = NF
		:: r_g < NF && !(HAS(held, r_g) && f_id[r_g] == f_id[f]) -> r_g++
		:: else -> break
		od;
		r_g = 0;
		rp_owner_settle(f_id[f])
#else
	:: !HAS(held, f) -> rp_tomb_add(f)
#endif
	:: else ->
		DEL(held, f);
		DEL(held_creator, f);
		rp_tomb_add(f);
		rp_owner_settle(f_id[f])
	fi
}

inline rp_own(f)
{
	made[f_id[f]] = true;
	if
	:: ost[f_id[f]] != NONE || HAS(held, f) || HAS(tomb, f) /* DUPLICATE */
	:: else ->
		ost[f_id[f]] = PENDING;
#ifdef MUTANT_NO_ABANDONED
		running = true;
#endif
		ADD(held, f);
		ADD(held_creator, f)
	fi
}

inline rp_set(id, ok)
{
	if
	:: ost[id] == HUSK -> ost[id] = NONE
#ifdef MUTANT_NO_ABANDONED
	/* No entry tells that the value is unwanted. */
	:: ost[id] == NONE -> slot = id + 1; running = false
#endif
	:: else ->
#ifdef MUTANT_NO_ABANDONED
		running = false;
#endif
		if
		:: ok -> ost[id] = READY; assert(slot == 0); slot = id + 1
		:: else -> ost[id] = SET_FAILED
		fi;
		r_f = 0;
		do
		:: r_f < NF ->
			if
			:: HAS(held_creator, r_f) && f_id[r_f] == id && ok ->
				rp_send(O, f_dest[r_f], CREATED, r_f)
			:: HAS(held_creator, r_f) && f_id[r_f] == id && !ok ->
				rp_send(O, f_dest[r_f], CREATED_ERR, r_f)
			:: else
			fi;
			r_f++
		:: else -> break
		od;
		r_f = 0
	fi
}

/* ---- sharing: protocol/share.c, protocol/receive.c ---- */

/* A creator's question goes the creation's own way. */
inline ask_owner(u)
{
	if
	:: HAS(creator, u) && !HAS(requested, u) && ust[u] == REQUESTED ->
		ADD(requested, u);
		rp_send(f_dest[u], O, FORK_REQUEST, u)
	:: else
	fi
}

inline new_fork(id, parent, src, dest)
{
	f_id[nf] = id;
	f_parent[nf] = parent;
	f_src[nf] = src;
	f_dest[nf] = dest;
	r_n = nf;
	nf++
}

inline rp_create_user(id, who)
{
	ust[nf] = REQUESTED;
	ADD(creator, nf); ADD(early, nf); ADD(due, nf);
	new_fork(id, who, NOBODY, who);
	rp_send(who, O, CREATE, r_n)
}

inline share_owned(id, to)
{
	ADD(held, nf);
	new_fork(id, O, NOBODY, to);
	if
	:: ost[id] == READY -> rp_send(O, to, RECORD_LOC, r_n)
	:: else -> rp_send(O, to, RECORD, r_n)
	fi
}

inline share_held(u, to)
{
	ADD(child, nf);
	new_fork(f_id[u], f_dest[u], u, to);
#ifdef MUTANT_NO_EARLY
	rp_send(f_dest[u], to, RECORD, r_n)
#else
	if
	:: HAS(early, u) && to != O ->
		ask_owner(u);
		rp_send(f_dest[u], to, RECORD_EARLY, r_n)
	:: HAS(early, u) && to == O -> rp_send(f_dest[u], to, RECORD_EARLY, r_n)
	:: else -> rp_send(f_dest[u], to, RECORD, r_n)
	fi
#endif
}

inline rp_child_erase(g)
{
	DEL(child, g);
	DEL(child_asked, g)
}

inline rp_on_child_accept(g)
{
	if
	:: HAS(child, g) ->
		rp_child_erase(g)
#ifndef MUTANT_NO_SETTLE
		;
		rp_user_settle(f_src[g])
#endif
	:: else
	fi
}

inline rp_on_parent_request(g)
{
	if
	:: !HAS(child, g) -> rp_send(f_parent[g], f_dest[g], PARENT_ACK, g)
	:: HAS(child, g) && HAS(early, f_src[g]) && ust[f_src[g]] != FAILED ->
		ADD(child_asked, g);
		ask_owner(f_src[g])
	:: else -> answer(f_src[g], g, ust[f_src[g]] == FAILED)
	fi
}

inline ask_parent(g)
{
	ADD(asked, g);
	rp_send(f_dest[g], f_parent[g], PARENT_REQUEST, g)
}

inline receive_owned(g, ok)
{
	if
	:: ok && OWNER_ALIVE(f_id[g]) -> own_refs[f_id[g]]++
	:: else
	fi;
	rp_send(O, f_parent[g], CHILD_ACCEPT, g)
}

inline resolve_owned(g, ok)
{
	rp_user_erase(g);
	receive_owned(g, ok)
}

inline rp_receive_resume(g)
{
	if
	:: f_dest[g] == O -> resolve_owned(g, true)
	:: else -> rp_user_request(g)
	fi
}

inline rp_on_parent_ack(g, ok)
{
	if
	:: ust[g] == NONE
	:: else ->
		if
		:: !HAS(asked, g) -> rp_refused()
		:: else
		fi;
		if
		:: ust[g] != ASKING
		:: ust[g] == ASKING && ok ->
			DEL(early, g);
			rp_children_answer(g, false);
			rp_receive_resume(g)
		:: else ->
			if
			:: f_dest[g] == O -> resolve_owned(g, false)
			:: else -> rp_user_fail(g)
			fi
		fi
	fi
}

inline rp_receive(g, type)
{
	if
	:: f_dest[g] == O && type == RECORD_EARLY && ost[f_id[g]] == NONE ->
		ust[g] = ASKING;
		ask_parent(g)
	:: f_dest[g] == O && !(type == RECORD_EARLY && ost[f_id[g]] == NONE) ->
		receive_owned(g, true)
	:: else ->
		ADD(ready_due, g);
		if
		:: f_parent[g] == O -> ust[g] = CONFIRMED; ADD(due, g)
		:: f_parent[g] != O && type == RECORD_EARLY -> ust[g] = ASKING; ADD(early, g)
		:: else -> ust[g] = REQUESTED
		fi;
		if
		:: type == RECORD_LOC -> ADD(loc, g)
		:: else
		fi;
		if
		:: PS(f_dest[g], O) != UP -> rp_user_fail(g)
		:: PS(f_dest[g], O) == UP && ust[g] == CONFIRMED -> rp_user_ready(g)
		:: PS(f_dest[g], O) == UP && ust[g] == ASKING -> ask_parent(g)
		:: else ->
#ifdef MUTANT_ACCEPT_AT_ONCE
			rp_user_ready(g);
#endif
			rp_user_request(g)
		fi
	fi
}

/* ---- peers: protocol/peer.c ---- */

/* The fence of x (core/session/fence.c), then the machine's part. The device
 * fence is PS(O, user) != UP: see read_* of safety.pml. */
inline rp_peer_fenced(x, y)
{
	PS(x, y) = FENCED;
#ifndef MUTANT_OLD_SESSION
	purge(y, x);
#endif
	if
	:: y == O -> reading[x] = 0
	:: else
	fi;
	r_f = 0;
	do
	:: r_f < NF ->
		if
#ifndef MUTANT_DEAD_PINS
		:: HAS(child, r_f) && f_parent[r_f] == x && f_dest[r_f] == y ->
			rp_child_erase(r_f);
			rp_user_settle(f_src[r_f])
#endif
		:: else
		fi;
		r_f++
	:: else -> break
	od;
#ifndef MUTANT_SURVIVES_RECONNECT
	r_f = 0;
	do
	:: y == O && r_f < NF ->
		if
		:: f_dest[r_f] == x && ust[r_f] != NONE -> /* lose_user */
			rp_children_answer(r_f, true);
			r_h = 0;
			do
			:: r_h < NF ->
				if
				:: HAS(child, r_h) && f_src[r_h] == r_f -> rp_child_erase(r_h)
				:: else
				fi;
				r_h++
			:: else -> break
			od;
			r_h = 0;
			if
			:: ust[r_f] == FAILED -> rp_user_settle(r_f)
			:: else -> rp_user_fail(r_f)
			fi
		:: else
		fi;
		r_f++
	:: else -> break
	od;
#endif
	r_f = 0;
	do
	:: r_f < NF ->
		if
#ifndef MUTANT_ASKING_FORGOTTEN
		:: f_dest[r_f] == x && ust[r_f] == ASKING && f_parent[r_f] == y ->
			rp_receive_resume(r_f)
#endif
		:: else
		fi;
		r_f++
	:: else -> break
	od;
	r_f = 0
}

inline rp_peer_grace(x, y)
{
	PS(x, y) = GONE;
	r_f = 0;
	do
	:: x == O && r_f < NF ->
		if
		:: f_dest[r_f] == y && HAS(held, r_f) ->
			DEL(held, r_f);
			DEL(held_creator, r_f);
			rp_owner_settle(f_id[r_f])
		:: else
		fi;
		if
		:: f_dest[r_f] == y -> DEL(tomb, r_f)
		:: else
		fi;
		r_f++
	:: else -> break
	od;
	r_f = 0
}

/* Ends a process: its earlier messages may still arrive, and its state is forgotten. */
inline crash(w)
{
	faulty = true;
	DEL(alive, w);
	reading[w] = 0;
	r_f = 0;
	do
	:: r_f < NF ->
		if
		:: f_dest[r_f] == w -> rp_user_erase(r_f)
		:: else
		fi;
		if
		:: f_parent[r_f] == w -> rp_child_erase(r_f)
		:: else
		fi;
		r_f++
	:: else -> break
	od;
	r_f = 0;
	do
	:: r_f < W ->
		if
		:: r_f != w -> PS(w, r_f) = GONE; purge(r_f, w)
		:: else
		fi;
		r_f++
	:: else -> break
	od;
	r_f = 0;
	if
	:: w == O ->
		held = 0; held_creator = 0; tomb = 0; slot = 0;
		ost[0] = NONE; ost[1] = NONE; own_refs[0] = 0; own_refs[1] = 0
	:: else
	fi
}

inline on_message(m)
{
	r_i = m & 7;
	r_t = m >> 3;
	printf("     takes %e of fork %d\n", r_t, r_i);
	if
	:: r_t == RECORD || r_t == RECORD_LOC || r_t == RECORD_EARLY -> rp_receive(r_i, r_t)
	:: r_t == FORK_REQUEST -> rp_on_fork_request(r_i)
	:: r_t == FORK_ACK || r_t == FORK_ACK_LOC || r_t == FORK_ACK_ERR -> rp_on_fork_ack(r_i, r_t)
	:: r_t == CHILD_ACCEPT -> rp_on_child_accept(r_i)
	:: r_t == DELETE -> rp_on_delete(r_i)
	:: r_t == CREATE -> rp_own(r_i)
	:: r_t == CREATED || r_t == CREATED_ERR -> rp_on_created(r_i, r_t == CREATED)
	:: r_t == PARENT_REQUEST -> rp_on_parent_request(r_i)
	:: r_t == PARENT_ACK || r_t == PARENT_ACK_ERR -> rp_on_parent_ack(r_i, r_t == PARENT_ACK)
	fi;
	r_i = 0;
	r_t = 0
}
