/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Views of values where they lie, by the names of verbs/shm/look.c, core/read/look.c and
 * core/value/onlooker.c. Threads of one reader look at two values of one owner. Each thread has a
 * place of its own in the table of marks. The reader is fenced, leaves, or is killed. A thread that
 * stands still for ever is a run that ends early.
 *
 * Checked: the owner frees no value while a view shows it, and no view is made of a freed value.
 * When all is over the owner keeps nothing.
 */
#ifndef LOOKS
#define LOOKS 2 /* number of looks of thread 0; thread 1 looks once */
#endif
#define NT 2
#define NV 2
#define NONE 0

/* the reader's page, and the values that its threads show: 1 + value */
byte word0[NT], word1[NT], view[NT];
bool running = true, leaves, ended;
/* the handles: holds of threads and views; given back already */
byte holds[NV];
bool given[NV];
chan del = [NV] of { byte };

/* the owner */
bool serve = true, left, over;
bool held[NV];  /* the reader's fork */
bool alive[NV]; /* memory that is not used again */
bool nonce[NV];
byte kept[NT];  /* 1 + value */

inline give_back(v)
{
	if
	:: !given[v] -> given[v] = true; del!v
	:: else
	fi
}

inline release(v)
{
	holds[v]--;
	if
	:: holds[v] == 0 -> give_back(v)
	:: else
	fi
}

inline set_mark(t, v)
{
	word1[t] = v + 1;
	word0[t] = v + 1
}

/* The mark, then the looks at what forbids it. */
inline look_at(t, v, good)
{
#ifdef MUTANT_CHECK_FIRST
	good = serve;
	set_mark(t, v);
#else
	set_mark(t, v);
	good = serve;
#endif
#ifndef MUTANT_RUNNING
	good = good && running;
#endif
	good = good && nonce[v]
}

proctype thread(byte t) provided (!ended)
{
	byte n, v;
	bool good, mine = true;

	n = (t -> LOOKS - 1 : 0);
	do
	:: n < LOOKS ->
		atomic {
			n++;
			if
			:: v = 0
			:: v = 1
			fi };
		look_at(t, v, good);
		if
		:: atomic { good ->
			assert(alive[v]);
#ifndef MUTANT_NO_HOLD
			holds[v]++;
#endif
			view[t] = v + 1 };
			/* the program gives up its references while its last view lives */
			if
			:: n == LOOKS -> atomic { release(0) }; atomic { release(1); mine = false }
			:: else
			fi;
#ifdef MUTANT_MARK_FIRST
			word0[t] = NONE;
			view[t] = NONE;
#else
			view[t] = NONE;
			word0[t] = NONE;
#endif
#ifndef MUTANT_NO_HOLD
			atomic { release(v) };
#endif
			atomic { v = 0; good = false }
		:: atomic { else -> word0[t] = NONE; v = 0 }
		fi
	:: n == LOOKS -> break
	od;
	if
	:: mine -> atomic { release(0) }; atomic { release(1) }
	:: else
	fi
}

/* end_handles of shutdown.c */
active proctype shutdown() provided (!ended)
{
	if
	:: true ->
#ifdef MUTANT_LEAVES_LATE
		atomic { give_back(0); give_back(1) };
#endif
		running = false;
		leaves = true;
		atomic { give_back(0) };
		atomic { give_back(1) }
	:: true
	fi
}

active proctype killer()
{
	if
	:: true -> atomic { ended = true; view[0] = NONE; view[1] = NONE }
	:: true
	fi
}

/* Reads the marks, and keeps the values that they name. */
inline keep_marked(t, a)
{
	t = 0;
	do
	:: t < NT ->
		a = word0[t];
		atomic {
			if
			:: a && a == word1[t] && held[a - 1] -> kept[t] = a
			:: else
			fi;
			a = 0; t++ }
	:: atomic { t == NT -> t = 0; break }
	od
}

inline reclaim(v)
{
	nonce[v] = nonce[v] && held[v];
	if
	:: !held[v] && kept[0] != v + 1 && kept[1] != v + 1 ->
		assert(view[0] != v + 1 && view[1] != v + 1);
		alive[v] = false
	:: else
	fi
}

/* rc_peer_fence */
inline fence(t, a)
{
#ifdef MUTANT_MARKS_FIRST
	keep_marked(t, a);
	serve = false;
#else
	serve = false;
#ifdef MUTANT_FORKS_FIRST
	atomic { held[0] = false; held[1] = false };
#endif
	keep_marked(t, a);
#endif
	atomic {
		held[0] = false;
		held[1] = false;
		over = true;
		reclaim(0);
		reclaim(1) }
}

inline deleted(t, d, a)
{
	del?d;
	if
	:: leaves && !left -> left = true; keep_marked(t, a)
	:: else
	fi;
	atomic { held[d] = false; reclaim(d); d = 0 }
}

#ifdef MUTANT_NO_ENDED
#define DEAD false
#else
#define DEAD ended
#endif
#define due(t) (kept[t] && (DEAD || word0[t] != kept[t] || word1[t] != kept[t]))

/* look_again, at a place */
inline look_again(t, d, a)
{
	a = DEAD;
	atomic {
		if
		:: kept[t] && (a || word0[t] != kept[t] || word1[t] != kept[t]) ->
			d = kept[t] - 1;
			kept[t] = NONE;
			reclaim(d);
			d = 0
		:: else
		fi;
		a = 0 }
}

proctype owner()
{
	byte t, d, a;

	do
	:: !over && nempty(del) -> deleted(t, d, a)
	:: !over -> fence(t, a)
	:: over && due(0) -> t = 0; look_again(t, d, a)
	:: over && due(1) -> t = 1; look_again(t, d, a); t = 0
	:: timeout -> break
	od;
	bool clean = !alive[0] && !alive[1];
	assert(clean)
}

init
{
	atomic {
		holds[0] = NT; holds[1] = NT;
		held[0] = true; held[1] = true;
		alive[0] = true; alive[1] = true;
		nonce[0] = true; nonce[1] = true;
		run thread(0); run thread(1); run owner()
	}
}
