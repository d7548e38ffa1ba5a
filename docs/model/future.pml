/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a future over ibv, by the names of struct rref_future. It is a READ of one message
 * through core/op/op.c, core/read/read.c and core/read/to_here.c. One program after another uses
 * one slot of the slab, again and again. The device, the poller and the scan for deadlines run
 * beside it. Each atomic access of the code is a step.
 *
 * Checked: every operation completes exactly once. Success means that the data arrived. The device
 * writes only into a landing buffer that the engine of that very operation still has (quarantine).
 * A late or repeated completion does not touch the next operation of the slot. Every operation
 * ends, and its slot is free again in the end (weak fairness).
 */
#define GENS 4

mtype:state = { DONE, PENDING, COMPLETING };
mtype:landing = { FREE, ENGINE, VIEW, PROGRAM };

mtype:state state = DONE;
mtype:landing landing = FREE;
byte refs, gen, outstanding, completions, quarantined;
bool free_slot = true, lock;
bool ok;                /* the result: no error, so a view */
bool arrived;           /* the landing buffer has this operation's bytes */

/* The device: one READ at most, with the token's generation. stale_gen: its last report, which it
 * may make once more. */
bool flying;
byte fly_gen, stale_gen = GENS;
chan cq = [2] of { byte, bool };

#define LOCK atomic { !lock -> lock = true }
#define UNLOCK lock = false

/* rc_op_put */
inline put(last)
{
	atomic { refs--; last = (refs == 0) };
	if
	:: last ->
		d_step {
			if
			:: landing != PROGRAM -> landing = FREE
			:: else
			fi;
#ifndef MUTANT_NO_GENERATION
			gen = (gen + 1) % GENS;
#endif
			last = false
		};
		free_slot = true
	:: else
	fi
}

/*
 * Ends a READ: rc_read_done. Good: the view is put in, then the state moves (rc_op_succeed).
 * Otherwise it claims the operation (rc_op_claim). If it is won, the result follows, then DONE.
 */
inline finish(good)
{
	if
#ifdef MUTANT_NO_CLAIM
	:: good ->
#else
	:: good && state == PENDING ->
#endif
		landing = VIEW;
		if
#ifdef MUTANT_NO_CLAIM
		:: d_step { completions++; state = DONE }
#else
		:: d_step { state == PENDING -> completions++; state = DONE }
#endif
		:: atomic { state != PENDING -> skip };
			d_step { assert(quarantined > 0); quarantined-- }
		fi
	:: !good ->
		if
		:: atomic { state == PENDING -> state = COMPLETING };
			ok = false;
			d_step { completions++; state = DONE }
		:: atomic { state != PENDING -> skip };
			d_step { assert(quarantined > 0); quarantined-- }
		fi
	:: good && state != PENDING ->
		d_step { assert(quarantined > 0); quarantined-- }
	fi
}

/* Ends an operation from outside, under the lock: rc_op_end. A READ in flight cannot be recalled:
 * the engine's hold stays. */
inline end_op(last)
{
	if
	:: atomic { state == PENDING -> state = COMPLETING };
		ok = false;
		d_step { completions++; state = DONE; quarantined++ };
#ifdef MUTANT_NO_QUARANTINE
		put(last)
#endif
	:: atomic { state != PENDING -> skip }
	fi
}

proctype program()
{
	bool last;

idle:	do
	:: atomic {
		/* rc_op_get, rc_read_start */
		free_slot ->
		free_slot = false;
		assert(landing == FREE && refs == 0 && outstanding == 0 && quarantined == 0);
		completions = 0;
		arrived = false;
		ok = true;
		outstanding = 1;
		landing = ENGINE;
		refs = 2;
		state = PENDING
	   };
		d_step { assert(!flying); flying = true; fly_gen = gen };
		if
		:: state == DONE
		/* The program's patience ends, or it cancels. */
		:: LOCK; end_op(last); UNLOCK; state == DONE
		fi;
		assert(completions == 1);
		if
		:: ok ->
			d_step { assert(landing == VIEW && arrived); landing = PROGRAM };
			d_step { landing = FREE; arrived = false }
		:: else
		fi;
		put(last)
	od
}

proctype device()
{
	do
	:: flying ->
		if
		:: d_step {
			assert(landing == ENGINE && fly_gen == gen && !free_slot);
			arrived = true
		   };
			d_step { cq!fly_gen, true; stale_gen = fly_gen; flying = false }
		/* The READ fails, or the fence reports it from the ledger. */
		:: d_step { cq!fly_gen, false; stale_gen = fly_gen; flying = false }
		fi
	/* The device repeats its last report, as late as it likes. */
	:: d_step { !flying && stale_gen < GENS && len(cq) < 1 ->
		cq!stale_gen, true; stale_gen = GENS }
	od
}

/* rc_read_event, read_done */
proctype poller()
{
	byte g;
	bool good, last;

	do
	:: atomic { !lock && len(cq) > 0 -> lock = true; cq?g, good };
		if
		:: g == gen && refs > 0 && outstanding > 0 ->
			outstanding--;
			finish(good);
			put(last)
		:: else
		fi;
		d_step { g = 0; good = false };
		UNLOCK
	od
}

/* rc_ops_expire with pin_pending: any operation may be late. */
proctype expirer()
{
	bool last;

	do
	:: atomic { !lock && state == PENDING -> lock = true };
		if
		:: atomic { refs > 0 -> refs++ };
			end_op(last);
			put(last)
		:: atomic { refs == 0 -> skip }
		fi;
		UNLOCK
	od
}

ltl ends { [] <> (state == DONE) && [] <> free_slot }

init { atomic { run program(); run device(); run poller(); run expirer() } }
