/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Safety of the reference protocol: an owner, two users, crashes, false suspicions, reconnects, and
 * one memory slot that a later object takes over. Numbers of forks, crashes and cuts bound the
 * events, so every run ends. The guarantees (S1..S6, C1) are asserted after each step. They are
 * asserted once more when no event is left: then all is released and all must be reclaimed.
 *
 * -DNCRASH= -DNRESTART= -DNCUT=  the number of each
 * -DSTART_OWNER, -DSTART_CREATE  the maker of id 0 (default: either)
 * -DNO_REUSE                     id 1 is never made
 * -DANY_ORDER, -DNREPEAT=        messages overtake; so many are repeated
 */
#include "rules.pml"

#ifndef NCRASH
#define NCRASH 0
#endif
#ifndef NRESTART
#define NRESTART 0
#endif
#ifndef NCUT
#define NCUT 0
#endif
#ifndef NREPEAT
#define NREPEAT 0
#endif

/* Budgets left. */
byte crashes = NCRASH, restarts = NRESTART, cuts = NCUT, repeats = NREPEAT;
bool started;

#ifdef MUTANT_RECLAIM_FIRST
/* users whose queue pair still answers, though the machine was told of the fence */
byte served;
#define SERVES(w) (PS(O, w) == UP || HAS(served, w))
#else
#define SERVES(w) (PS(O, w) == UP)
#endif

#ifdef MUTANT_EARLY_UP
byte cleaning;          /* users whose old forks are still to be erased */
#define MAY_CONNECT(x, y) (PS(x, y) != UP && PS(y, x) != UP)
#else
#define MAY_CONNECT(x, y) (PS(x, y) == GONE && PS(y, x) == GONE)
#endif

mtype:op = {
	OP_NEW, OP_CREATE, OP_SET, OP_SET_ERR, OP_RELEASE, OP_SHARE_OWNED, OP_SHARE_HELD,
	OP_DROP, OP_CREATE_FAILED, OP_DELIVER, OP_READ_HEADER, OP_READ_PAYLOAD, OP_FENCE, OP_GRACE,
	OP_CONNECT, OP_CRASH, OP_RESTART, OP_DELIVER_LATER, OP_REPEAT, OP_DEVICE_FENCE
};

hidden short ev;
hidden mtype:op op;
hidden byte x, y, m;

/* ---- possible events ---- */

#define MAY_NEW(id) (HAS(alive, O) && !made[id] && slot == 0 && \
	(id == 0 || (made[0] && ost[0] == NONE && nf < NF)))
#define MAY_RELEASE(id) (own_refs[id] > 0)
/* The users are alike: A gets the first share. */
#define MAY_SHARE_OWNED(id, to) (nf < NF && (nf > 0 || to == A) && own_refs[id] > 0 && \
	PS(O, to) == UP)
#define MAY_SHARE_HELD(u, to) (nf < NF && \
	(ust[u] == ASKING || ust[u] == REQUESTED || ust[u] == CONFIRMED) && \
	f_dest[u] != O && f_dest[u] != to && !HAS(dropped, u) && PS(f_dest[u], to) == UP)
/* A handle lives as long as a READ for it is under way. */
#ifdef MUTANT_UNPINNED_READ
#define MAY_DROP(u) (ust[u] != NONE && f_dest[u] != O && !HAS(dropped, u))
#else
#define MAY_DROP(u) (ust[u] != NONE && f_dest[u] != O && !HAS(dropped, u) && \
	reading[f_dest[u]] != (u) + 1)
#endif
#define MAY_CREATE_FAILED(u) (ust[u] != NONE && HAS(creator, u) && !HAS(created, u))
#define MAY_READ(u) (ust[u] == CONFIRMED && HAS(loc, u) && f_dest[u] != O && !HAS(dropped, u) && \
		     reading[f_dest[u]] == 0 && PS(f_dest[u], O) == UP && SERVES(f_dest[u]))
/* Noticed: a crash, an end of the session at the other side. Or wrongly suspected. */
#ifdef MUTANT_NEVER_SUSPECTED
#define NOTICES(x, y) (HAS(alive, y) && PS(y, x) != UP)
#else
#define NOTICES(x, y) (!HAS(alive, y) || PS(y, x) != UP)
#endif
#define MAY_FENCE(x, y) (HAS(alive, x) && PS(x, y) == UP && (NOTICES(x, y) || cuts > 0))

#define PICK(o, a, b) ev = (o) * 16 + (a) * 4 + (b)

#define EACH_PEER(guard, o) \
	:: guard(O, A) -> PICK(o, O, A) \
	:: guard(O, B) -> PICK(o, O, B) \
	:: guard(A, O) -> PICK(o, A, O) \
	:: guard(A, B) -> PICK(o, A, B) \
	:: guard(B, O) -> PICK(o, B, O) \
	:: guard(B, A) -> PICK(o, B, A)

#define FORK_OPS(u) \
	:: MAY_SHARE_HELD(u, O) -> PICK(OP_SHARE_HELD, u, O) \
	:: MAY_SHARE_HELD(u, A) -> PICK(OP_SHARE_HELD, u, A) \
	:: MAY_SHARE_HELD(u, B) -> PICK(OP_SHARE_HELD, u, B) \
	:: MAY_DROP(u) -> PICK(OP_DROP, u, 0) \
	:: MAY_READ(u) -> PICK(OP_READ_HEADER, u, 0)

#define HAS_MSG(a, b) (len(Q(a, b)) > 0)
#define GRACES(a, b) (HAS(alive, a) && PS(a, b) == FENCED)
#define LATER(a, b) (len(Q(a, b)) > 1)
/* Records and calls are handed in once, by call id. So the head of a
 * queue is repeated if it is another message. */
#define REPEATS(a, b) (repeats > 0 && len(Q(a, b)) > 0 && len(Q(a, b)) < QLEN)

/* ---- guarantees ---- */

#define IN_SESSION(w) (PS(w, O) == UP && PS(O, w) == UP)
#define BYTES_ARE(id) (ost[id] != NONE && ost[id] != HUSK && (ost[id] != READY || slot == (id) + 1))

inline check()
{
	r_f = 0;
	do
	:: r_f < NF ->
		/* S2: a confirmed fork of a standing session is in the
		 * owner's set, and its value is there. */
		assert(!(ust[r_f] == CONFIRMED && f_dest[r_f] != O && IN_SESSION(f_dest[r_f])) ||
		       (HAS(held, r_f) && BYTES_ARE(f_id[r_f])));
		r_f++
	:: else -> break
	od;
	r_f = 0;
	/* S2 for the owner's own references. */
	assert(own_refs[0] == 0 || BYTES_ARE(0));
	assert(own_refs[1] == 0 || BYTES_ARE(1));
	assert(slot == 0 || ost[slot - 1] == READY)
}

/* Checks the end, when no event is left: L1, L3, and S5 of the
 * protocol's part. Every creation has its answer. */
inline check_end()
{
	assert(ost[0] == NONE && ost[1] == NONE);
	assert(slot == 0);
	assert(held == 0);
	assert(child == 0);
	r_f = 0;
	do
	:: r_f < NF -> assert(ust[r_f] == NONE); r_f++
	:: else -> break
	od
}

active proctype group()
{
	do
	:: atomic {
		if
#ifndef START_CREATE
		:: !started -> PICK(OP_NEW, 0, 0)
#endif
#ifndef START_OWNER
		:: !started -> PICK(OP_CREATE, 0, A)
#endif
#ifndef NO_REUSE
		:: started && MAY_NEW(1) -> PICK(OP_NEW, 1, 0)
#endif
		/* A function that makes a value runs at the owner. */
#ifdef MUTANT_NO_ABANDONED
		:: running && slot == 0 -> PICK(OP_SET, 0, 0)
#else
		:: ost[0] == HUSK || (ost[0] == PENDING && slot == 0) -> PICK(OP_SET, 0, 0)
#endif
#ifdef SET_ERR
		:: ost[0] == PENDING -> PICK(OP_SET_ERR, 0, 0)
#endif
		:: MAY_RELEASE(0) -> PICK(OP_RELEASE, 0, 0)
		:: MAY_RELEASE(1) -> PICK(OP_RELEASE, 1, 0)
		:: MAY_SHARE_OWNED(0, A) -> PICK(OP_SHARE_OWNED, 0, A)
		:: MAY_SHARE_OWNED(0, B) -> PICK(OP_SHARE_OWNED, 0, B)
		:: MAY_SHARE_OWNED(1, A) -> PICK(OP_SHARE_OWNED, 1, A)
		:: MAY_SHARE_OWNED(1, B) -> PICK(OP_SHARE_OWNED, 1, B)
		FORK_OPS(0)
		FORK_OPS(1)
#if NF > 2
		FORK_OPS(2)
#endif
#if NF > 3
		FORK_OPS(3)
#endif
#if NF > 4
		FORK_OPS(4)
#endif
#if NF > 5
		FORK_OPS(5)
#endif
		/* Only the first fork is a creator's. */
#ifndef NO_TIMEOUT
		:: MAY_CREATE_FAILED(0) -> PICK(OP_CREATE_FAILED, 0, 0)
#endif
		:: reading[A] && PS(A, O) == UP && SERVES(A) -> PICK(OP_READ_PAYLOAD, A, 0)
		:: reading[B] && PS(B, O) == UP && SERVES(B) -> PICK(OP_READ_PAYLOAD, B, 0)
		EACH_PEER(HAS_MSG, OP_DELIVER)
#ifdef ANY_ORDER
		EACH_PEER(LATER, OP_DELIVER_LATER)
#endif
#if NREPEAT
		EACH_PEER(REPEATS, OP_REPEAT)
#endif
#if NCRASH || NCUT
		EACH_PEER(MAY_FENCE, OP_FENCE)
		EACH_PEER(GRACES, OP_GRACE)
		:: HAS(alive, O) && HAS(alive, A) && MAY_CONNECT(O, A) -> PICK(OP_CONNECT, O, A)
		:: HAS(alive, O) && HAS(alive, B) && MAY_CONNECT(O, B) -> PICK(OP_CONNECT, O, B)
		:: HAS(alive, A) && HAS(alive, B) && MAY_CONNECT(A, B) -> PICK(OP_CONNECT, A, B)
#endif
#if NCRASH
		:: crashes > 0 && started && HAS(alive, A) -> PICK(OP_CRASH, A, 0)
		:: crashes > 0 && started && HAS(alive, B) -> PICK(OP_CRASH, B, 0)
#ifdef OWNER_CRASH
		:: crashes > 0 && started && HAS(alive, O) -> PICK(OP_CRASH, O, 0)
#endif
		:: restarts > 0 && !HAS(alive, A) -> PICK(OP_RESTART, A, 0)
		:: restarts > 0 && !HAS(alive, B) -> PICK(OP_RESTART, B, 0)
#ifdef OWNER_CRASH
		:: restarts > 0 && !HAS(alive, O) -> PICK(OP_RESTART, O, 0)
#endif
#endif
#ifdef MUTANT_RECLAIM_FIRST
		:: HAS(served, A) -> PICK(OP_DEVICE_FENCE, A, 0)
		:: HAS(served, B) -> PICK(OP_DEVICE_FENCE, B, 0)
#endif
#ifdef MUTANT_EARLY_UP
		:: HAS(cleaning, A) -> PICK(OP_GRACE, O, A)
		:: HAS(cleaning, B) -> PICK(OP_GRACE, O, B)
#endif
		:: else -> break
		fi;
		d_step {
			op = ev / 16; x = (ev / 4) & 3; y = ev & 3;
			printf("STEP %e %d %d\n", op, x, y);
			if
			:: op == OP_NEW ->
				/* NEW and SET: the owner's program has filled it before any other
				 * worker knows of it. */
				started = true;
				made[x] = true;
				own_refs[x] = 1;
				ost[x] = PENDING;
				rp_set(x, true)
			:: op == OP_CREATE ->
				started = true;
				rp_create_user(x, y)
			:: op == OP_SET -> rp_set(x, true)
			:: op == OP_SET_ERR -> rp_set(x, false)
			:: op == OP_RELEASE ->
				own_refs[x]--;
				rp_owner_settle(x)
			:: op == OP_SHARE_OWNED -> share_owned(x, y)
			:: op == OP_SHARE_HELD -> share_held(x, y)
			:: op == OP_DROP -> rp_drop(x)
			:: op == OP_CREATE_FAILED -> rp_create_failed(x)
			:: op == OP_DELIVER ->
				Q(x, y)?m;
#ifdef MUTANT_OLD_SESSION
				if
				:: PS(y, x) == UP -> on_message(m)
				:: else
				fi
#else
				on_message(m)
#endif
#ifdef ANY_ORDER
			/* The first goes to the end: by repetition, any message may come next. */
			:: op == OP_DELIVER_LATER ->
				Q(x, y)?m;
				Q(x, y)!m
#endif
#if NREPEAT
			:: op == OP_REPEAT ->
				Q(x, y)?<m>;
				if
				:: (m >> 3) != RECORD && (m >> 3) != RECORD_LOC &&
					(m >> 3) != RECORD_EARLY && (m >> 3) != CREATE ->
					Q(x, y)!m;
					repeats--
				:: else
				fi
#endif
			:: op == OP_READ_HEADER ->
				/* Another header is -ESTALE: the read is over. */
				if
				:: slot == f_id[x] + 1 -> reading[f_dest[x]] = x + 1
				:: else
				fi
			:: op == OP_READ_PAYLOAD ->
				/* S1: the bytes after a good header are the
				 * bytes of that object. */
				assert(slot == f_id[reading[x] - 1] + 1);
				reading[x] = 0
#if NCRASH || NCUT
			:: op == OP_FENCE ->
				if
				:: !NOTICES(x, y) -> cuts--; faulty = true
				:: else
				fi;
#ifdef MUTANT_RECLAIM_FIRST
				if
				:: x == O -> ADD(served, y)
				:: else
				fi;
#endif
				rp_peer_fenced(x, y)
			:: op == OP_GRACE ->
#ifdef MUTANT_EARLY_UP
				m = PS(x, y);
				rp_peer_grace(x, y);
				PS(x, y) = (m == UP -> UP : GONE);
				DEL(cleaning, y)
#else
				rp_peer_grace(x, y)
#endif
			:: op == OP_CONNECT ->
#ifdef MUTANT_EARLY_UP
				if
				:: x == O && PS(x, y) == FENCED -> ADD(cleaning, y)
				:: else
				fi;
#else
				/* S3 (5): nothing of the old session is left. */
				r_f = 0;
				do
				:: r_f < NF ->
					assert(!(x == O && HAS(held, r_f) && f_dest[r_f] == y));
					r_f++
				:: else -> break
				od;
				r_f = 0;
#endif
				PS(x, y) = UP;
				PS(y, x) = UP
#endif
#if NCRASH
			:: op == OP_CRASH ->
				crashes--;
				crash(x)
			:: op == OP_RESTART ->
				restarts--;
				ADD(alive, x)
#endif
#ifdef MUTANT_RECLAIM_FIRST
			:: op == OP_DEVICE_FENCE -> DEL(served, x)
#endif
			fi;
			check()
		}
	}
	od;
	skip;
	d_step { check_end() }
}
