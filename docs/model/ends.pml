/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a READ over ibv, by the names of verbs/ibv/read.c and core/read/in_flight.c. One
 * thread reads again and again. Two other threads take in completions, each at its own pace, and
 * without a lock. Beside them go the device, fences and the shutdown. Each atomic access of the
 * code is a step. Any thread may stop between two of them for as long as it likes.
 *
 * Checked: every READ is ended exactly once. A read that succeeds has its own bytes. The device
 * writes only into a landing buffer that this very READ has. Every read ends, and at the end all
 * slots, flights and buffers are free again.
 */
#ifndef NREADS
#define NREADS 3
#endif
#ifndef NFENCES
#define NFENCES 1
#endif
#define NONE 15

mtype:flight = { FREE, MINE, POSTED, LANDED, LEFT };
mtype:op = { IDLE, PENDING, DONE, TIMED_OUT };

/* two flights, each with its landing buffer and the operation that may go on with it */
mtype:flight fl[2] = FREE;
bool status[2];
bool heir[2];           /* the flight has its operation */
mtype:op op[2] = IDLE;
bool op_ok[2];
byte op_ends[2];        /* ends of the operation under way */
byte holds[2];          /* READ that may write into the buffer; 0: no READ */
byte bytes[2];          /* READ whose bytes are in the buffer */

/* the ledger: one slot. Its generation is odd while a READ is under way */
byte gen, cookie = NONE;
bool up = true, pinned, shut, reads_over;

/* the device: one READ at most */
bool flying, broken;
byte fly_gen, fly_fl, fly_read;
chan cq = [2] of { byte, bool };
chan odd = [4] of { byte };

/* land of in_flight.c */
inline land(x, good)
{
	status[x] = good;
	if
	:: atomic { fl[x] == POSTED -> fl[x] = LANDED }
	:: atomic { fl[x] == LEFT -> fl[x] = MINE };
#ifndef MUTANT_HEIR_LATE
		assert(heir[x]);
#endif
		if
		:: heir[x] ->
			heir[x] = false;
			if
			:: atomic { op[x] == PENDING ->
				op_ok[x] = good;
				op_ends[x]++;
				op[x] = DONE }
			:: atomic { op[x] == TIMED_OUT ->
				/* quarantine is over */
				holds[x] = 0;
				op[x] = IDLE;
				fl[x] = FREE }
			fi
		:: else
		fi
	:: atomic { fl[x] != POSTED && fl[x] != LEFT -> assert(shut) }
	fi
}

/* end_read of read.c: ends the READ of generation g, and gives back its slot */
inline end_read(g, x, good)
{
#ifndef MUTANT_COOKIE_LATE
	x = cookie;
#endif
	if
#ifdef MUTANT_LOOK
	:: atomic { gen == g -> skip };
		gen = g + 1;
#else
	:: atomic { gen == g -> gen = g + 1 };
#endif
#ifdef MUTANT_COOKIE_LATE
		x = cookie;
#endif
		land(x, good)
	:: atomic { gen != g -> skip }
	fi;
	x = 0;
	g = 0
}

/* a thread that looks: rvi_reads, rc_reads_look */
active [2] proctype looker()
{
	byte g, x;
	bool good;

end:	do
	:: atomic { cq?g, good };
		if
		:: good -> end_read(g, x, true)
		:: !good -> odd!g; g = 0
		fi;
		good = false
	od
}

active proctype device()
{
end:	do
	:: atomic { flying ->
		if
		:: !broken ->
			assert(holds[fly_fl] == fly_read);
			bytes[fly_fl] = fly_read;
			cq!fly_gen, true
		:: true ->
			broken = true;
			cq!fly_gen, false
		fi;
		flying = false }
	od
}

/* close_conn and the report that follows it, under the lock */
inline fence()
{
	up = false;
	!pinned;
	atomic {
		/* ibv_destroy_qp cleans the queue of its completions */
		flying = false;
		do
		:: cq?_, _
		:: empty(cq) -> break
		od
	};
	do
	:: atomic { odd?g }; end_read(g, x, false)
	:: empty(odd) -> break
	od;
	g = gen;
	if
	:: g % 2 -> end_read(g, x, false)
	:: else -> g = 0
	fi
}

active proctype keeper()
{
	byte g, x, fences;

	do
	:: atomic { odd?g }; end_read(g, x, false)
	:: (broken || fences < NFENCES) && !reads_over ->
		if
		:: broken
		:: else -> fences++
		fi;
		fence();
		atomic { broken = false; up = true }
	:: true -> break
	od;
	/* the shutdown: no new reads, the fence, then rc_in_flight_all_fail */
	shut = true;
	fence();
	x = 0;
	do
	:: x < 2 ->
		if
		:: fl[x] == POSTED || fl[x] == LEFT -> land(x, false)
		:: else
		fi;
		x++
	:: x == 2 -> break
	od
}

active proctype reader()
{
	byte n = 1, x;
	bool ok, posted;

	do
	:: n <= NREADS && !shut ->
		/* a flight with its buffer */
		if
		:: atomic { fl[0] == FREE -> fl[0] = MINE; x = 0 }
		:: atomic { fl[1] == FREE -> fl[1] = MINE; x = 1 }
		:: shut -> goto over
		fi;
		atomic { assert(holds[x] == 0); holds[x] = n; bytes[x] = 0; op_ends[x] = 0 };
		fl[x] = POSTED;
		/* behind the pin */
		pinned = true;
		if
		:: up ->
			if
			:: atomic { gen % 2 == 0 -> cookie = x; gen++ };
				atomic {
					flying = true;
					fly_gen = gen;
					fly_fl = x;
					fly_read = n
				};
				posted = true
			:: gen % 2 -> posted = false
			fi
		:: !up -> posted = false
		fi;
		pinned = false;
		if
		:: !posted ->
			fl[x] = MINE;
			atomic { holds[x] = 0; fl[x] = FREE };
			goto next
		:: else
		fi;
		/* waits; or leaves a READ that takes long */
		if
		:: fl[x] == LANDED -> goto landed
		:: op[x] = PENDING;
#ifndef MUTANT_HEIR_LATE
			heir[x] = true;
#endif
#ifdef MUTANT_LEAVE
			fl[x] = LEFT;
#else
			if
			:: atomic { fl[x] == POSTED -> fl[x] = LEFT }
			:: atomic { fl[x] == LANDED -> heir[x] = false; op[x] = IDLE };
				goto landed
			fi;
#endif
#ifdef MUTANT_HEIR_LATE
			heir[x] = true;
#endif
			if
			:: op[x] == DONE ->
				ok = op_ok[x];
				assert(op_ends[x] == 1 && (!ok || bytes[x] == n));
				atomic { op[x] = IDLE; holds[x] = 0; fl[x] = FREE }
			:: atomic { op[x] == PENDING ->
				op[x] = TIMED_OUT;
#ifdef MUTANT_FREE_EARLY
				holds[x] = 0
#endif
				}
			fi;
			goto next
		fi;
landed:		ok = status[x];
		fl[x] = MINE;
		assert(!ok || bytes[x] == n);
		atomic { holds[x] = 0; fl[x] = FREE };
next:		n++;
		ok = false;
		posted = false;
		x = 0
	:: else -> break
	od;
over:	reads_over = true;
	/* all is free again, when no thread stands still any more */
	timeout;
	assert(gen % 2 == 0 && holds[0] == 0 && holds[1] == 0 && fl[0] == FREE && fl[1] == FREE)
}
