/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Liveness of the reference protocol, although the programs never come to rest. Unwanted things are
 * reclaimed in the end. No parent is pinned for ever, and no reference stays unconfirmed for ever.
 *
 * Each direction of each session is a process: it delivers, notices the other side's end, and ends
 * the grace. So is the function that makes a value. Each process that can go on does so in the end
 * (weak fairness: pan -f). All programs, and all misfortune, are one process that may do anything
 * at any time and is forced to nothing. It may idle for ever (its last branch). It need not drop
 * its references; `reclaimed` speaks of an object without holders.
 *
 * Runs have no end. A fork's number is used again when no trace of the fork is left. The object is
 * made again when it and all its forks are gone.
 *
 * The owner takes no more of its own references while it has two.
 *
 * -DCUTS: any session may be cut, again and again. -DCRASHES: A and B may crash and restart, again
 * and again.
 */
#define LIVE
#ifndef NF
#define NF 2
#endif
#ifndef QLEN
#define QLEN 4
#endif
#include "rules.pml"

#define WANTS(f) (NF > (f) && f_dest[(f) % NF] != O && ust[(f) % NF] != NONE && \
	ust[(f) % NF] != FAILED && \
		  !HAS(dropped, f))
#define NOBODY_WANTS (own_refs[0] == 0 && !WANTS(0) && !WANTS(1) && !WANTS(2))
#define RECLAIMED (ost[0] == NONE && slot == 0 && held == 0)
#define WAITING(f) (ust[f] == REQUESTED || ust[f] == ASKING)

#define CALM(f) ([] <> !(NF > (f) && HAS(child, f)) && [] <> !(NF > (f) && WAITING((f) % NF)))

/*
 * An object that stays unwanted for ever goes. No child is pending for ever. No reference waits for
 * ever for its confirmation or refusal.
 */
ltl lively { (<> [] NOBODY_WANTS -> [] <> RECLAIMED) && CALM(0) && CALM(1) && CALM(2) }

#define TRACE(f) (ust[f] != NONE || HAS(held, f) || HAS(child, f) || under_way[f] > 0)

/* Frees the numbers of forks that are gone, after each step: they look like new. */
inline tidy()
{
	nf = NF;
	r_f = NF;
	do
	:: r_f > 0 ->
		r_f--;
		if
		:: !TRACE(r_f) ->
			nf = r_f;
			DEL(tomb, r_f);
			f_id[r_f] = 0; f_parent[r_f] = 0; f_src[r_f] = 0; f_dest[r_f] = 0
		:: else
		fi
	:: else -> break
	od;
	r_n = 0
}

#define ALL_GONE (RECLAIMED && !TRACE(0) && !TRACE(1) && (NF < 3 || !TRACE(NF - 1)))

#ifdef MUTANT_NEVER_SUSPECTED
#define NOTICES(x, y) (HAS(alive, y) && PS(y, x) != UP)
#else
#define NOTICES(x, y) (!HAS(alive, y) || PS(y, x) != UP)
#endif

hidden byte m;

proctype link(byte from, to)
{
	do
	:: d_step {
		len(Q(from, to)) > 0 ->
		Q(from, to)?m;
		TAKEN(m & 7);
		on_message(m);
		tidy()
	}
#if defined(CUTS) || defined(CRASHES)
	:: d_step {
		HAS(alive, to) && PS(to, from) == UP && NOTICES(to, from) ->
		rp_peer_fenced(to, from);
		tidy()
	}
	:: d_step {
		HAS(alive, to) && PS(to, from) == FENCED ->
		rp_peer_grace(to, from);
		tidy()
	}
#endif
	od
}

/* The function that makes the value: it ends. */
proctype maker()
{
	do
	:: d_step { ost[0] == PENDING || ost[0] == HUSK -> rp_set(0, true); tidy() }
	od
}

#define MAY_SHARE_HELD(u, to) (nf < NF && \
	(ust[u] == ASKING || ust[u] == REQUESTED || ust[u] == CONFIRMED) && \
	f_dest[u] != O && f_dest[u] != to && !HAS(dropped, u) && PS(f_dest[u], to) == UP)
#define MAY_DROP(u) (ust[u] != NONE && f_dest[u] != O && !HAS(dropped, u))

#define PROGRAM(u) \
	:: d_step { MAY_SHARE_HELD(u, O) && own_refs[0] < 2 -> share_held(u, O); tidy() } \
	:: d_step { MAY_SHARE_HELD(u, A) -> share_held(u, A); tidy() } \
	:: d_step { MAY_SHARE_HELD(u, B) -> share_held(u, B); tidy() } \
	:: d_step { MAY_DROP(u) -> rp_drop(u); tidy() }

#define CUT(x, y) \
	:: d_step { HAS(alive, x) && HAS(alive, y) && PS(x, y) == UP && PS(y, x) == UP -> \
		    faulty = true; rp_peer_fenced(x, y); tidy() }
#define CONNECT(x, y) \
	:: d_step { HAS(alive, x) && HAS(alive, y) && PS(x, y) == GONE && PS(y, x) == GONE -> \
		    PS(x, y) = UP; PS(y, x) = UP }

proctype programs()
{
	do
#ifdef START_OWNER
	:: d_step { ALL_GONE && HAS(alive, O) ->
		own_refs[0] = 1; ost[0] = PENDING; rp_set(0, true) }
#else
	:: d_step { ALL_GONE && PS(A, O) == UP && PS(O, A) == UP -> rp_create_user(0, A); tidy() }
#endif
	:: d_step { own_refs[0] > 0 -> own_refs[0]--; rp_owner_settle(0); tidy() }
	:: d_step { own_refs[0] > 0 && nf < NF && PS(O, A) == UP -> share_owned(0, A); tidy() }
	:: d_step { own_refs[0] > 0 && nf < NF && PS(O, B) == UP -> share_owned(0, B); tidy() }
	PROGRAM(0)
	PROGRAM(1)
#if NF > 2
	PROGRAM(2)
#endif
#ifdef CUTS
	:: d_step { ust[0] != NONE && HAS(creator, 0) && !HAS(created, 0) ->
		rp_create_failed(0); tidy() }
	CUT(O, A)
	CUT(A, O)
	CUT(O, B)
	CUT(B, O)
	CUT(A, B)
	CUT(B, A)
#endif
#ifdef CRASHES
	:: d_step { HAS(alive, A) -> crash(A); tidy() }
	:: d_step { HAS(alive, B) -> crash(B); tidy() }
	/* Restarts when all have noticed. */
	:: d_step { !HAS(alive, A) && PS(O, A) != UP && PS(B, A) != UP -> ADD(alive, A) }
	:: d_step { !HAS(alive, B) && PS(O, B) != UP && PS(A, B) != UP -> ADD(alive, B) }
#endif
#if defined(CUTS) || defined(CRASHES)
	CONNECT(O, A)
	CONNECT(O, B)
	CONNECT(A, B)
#endif
	:: nf <= NF /* idles */
	od
}

init {
	atomic {
		run programs();
		run maker();
		run link(O, A);
		run link(A, O);
		run link(O, B);
		run link(B, O);
		run link(A, B);
		run link(B, A)
	}
}
