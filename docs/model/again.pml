/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A read that is asked for again, by the names of core/read/again.c and core/read/read.c. Two
 * threads take in the ends of READs. One of them may stop for good, between any two steps, with an
 * end in its hand. The thread that waits for the read asks again after a while, or gives up. Each
 * atomic access of the code is a step.
 *
 * Checked: the future ends once, and with a view that holds the bytes. The device writes only into
 * a landing block that its READ has. The waiter comes to its end, whichever thread stops. If no
 * thread stops, all blocks are free in the end, and nothing is counted as quarantined.
 */
#define NONE 0
#define TAKEN 3

mtype:state = { PENDING, COMPLETING, DONE };

mtype:state state = PENDING;
byte view = NONE;        /* 1, 2: the landing block of the first, of the second READ */
byte ends;
bool failed, over, stopped;
bool block[3] = true;    /* somebody has the landing block */
bool bytes[3];           /* the READ's bytes are in it */
bool asked;              /* the second READ was posted */
byte under_way = 1;      /* READs whose end is not known */
short quarantined;
chan cq = [2] of { byte };

/* A thread may stop here for good. */
inline may_stop()
{
	if
	:: atomic { !stopped -> stopped = true }; goto endstill
	:: true
	fi
}

/* rc_op_succeed */
inline succeed(won)
{
	if
	:: atomic { state == PENDING -> state = DONE; ends++; won = true }
	:: atomic { state != PENDING -> won = false }
	fi
}

/* rc_read_put_view; a view that is not taken goes back */
inline put_view(i)
{
	if
	:: atomic { view == NONE -> view = i }
	:: atomic { view != NONE -> block[i] = false }
	fi
}

active proctype device()
{
	bool first = true, second;

end:	do
	:: atomic { first -> first = false; assert(block[1]); bytes[1] = true; cq!1 }
	:: atomic { asked && !second -> second = true; assert(block[2]); bytes[2] = true; cq!2 }
	od
}

/* rc_read_done, and for the second READ rc_read_stood_in */
active [2] proctype looker()
{
	byte i;
	bool won;

end:	do
	:: atomic { cq?i };
		may_stop();
		if
		:: i == 1 ->
			if
			:: state == PENDING ->
				may_stop();
#ifdef MUTANT_CLAIM
				if
				:: atomic { state == PENDING -> state = COMPLETING; won = true }
				:: atomic { state != PENDING -> won = false }
				fi;
				may_stop();
				if
				:: won -> view = 1;
					atomic { state = DONE; ends++ }
				:: else -> block[1] = false
				fi;
#else
				put_view(1);
				may_stop();
				succeed(won);
#endif
			:: state != PENDING -> block[1] = false; won = false
			fi;
			may_stop();
			if
			:: !won -> atomic { quarantined--; assert(quarantined >= 0) }
			:: else
			fi
		:: i == 2 ->
#ifndef MUTANT_COUNT_LATE
			quarantined++;
#endif
			may_stop();
#ifdef MUTANT_NO_HELP
			if
			:: atomic { view == NONE -> view = 2 };
				may_stop();
				succeed(won)
			:: atomic { view != NONE -> block[2] = false; won = false }
			fi;
#else
			put_view(2);
			may_stop();
			succeed(won);
#endif
#ifdef MUTANT_FREE_FIRST
			if
			:: won && view != 1 -> block[1] = false
			:: else
			fi;
#endif
			may_stop();
#ifdef MUTANT_COUNT_LATE
			if
			:: won -> quarantined++
			:: else
			fi
#else
			if
			:: !won -> atomic { quarantined--; assert(quarantined >= 0) }
			:: else
			fi
#endif
		fi;
		atomic { i = 0; won = false; under_way-- }
	od;
endstill: false
}

active proctype waiter()
{
	byte v;

	do
	:: state == DONE -> break
#ifndef MUTANT_WAIT
	:: atomic { state == PENDING && !asked -> asked = true; under_way++ }
#endif
#ifdef TIMES_OUT
	:: state == PENDING ->
		/* the time-out, under the lock: rc_read_end */
		quarantined++;
		if
		:: atomic { state == PENDING -> state = COMPLETING };
			failed = true;
			atomic { state = DONE; ends++ }
		:: atomic { state != PENDING -> quarantined-- }
		fi
#endif
	od;
	if
	:: failed
	:: else ->
		v = view;
		view = TAKEN;
		assert(v == 1 || v == 2);
		assert(block[v] && bytes[v]);
		/* the program frees it */
		block[v] = false
	fi;
	over = true;
	/* nothing more happens */
	timeout;
	assert(ends == 1);
	if
	:: !stopped ->
		/* the release of the future frees a view that the program did not take */
		assert(under_way == 0 && quarantined == 0);
		if
		:: view == 1 || view == 2 -> block[view] = false
		:: else
		fi;
		assert(!block[1] && (!asked || !block[2]))
	:: else
	fi
}
