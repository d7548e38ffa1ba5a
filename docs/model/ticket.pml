/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ticket of the completion queue, and the sleep of the poller, by the names of
 * verbs/ibv/sent.c, core/read/take_in.c and core/progress.c. Threads read: each READ is posted
 * and looked for. Then its thread sleeps, and leaves it to the poller. Completions of READs that
 * failed go to the holder of the lock by way of a list.
 *
 * Checked: no READ's end is lost between a look and a sleep. With STOPS a thread may stand still
 * for good while it has the ticket: the READs still end.
 */
#ifndef READERS
#define READERS 2
#endif

bool lock, ticket, sleeping, armed, event, kicked;
bool done[READERS];      /* the READ's end reached its operation */
bool left;               /* READs were left to the poller: ctx->sleep.reads_in_flight */
bool stands;            /* a thread stands still, with the ticket */
chan device = [READERS] of { byte };
chan cq = [READERS] of { byte, bool };
chan odd = [READERS] of { byte };

inline kick() { if :: sleeping -> kicked = true :: else fi }

inline deliver(r)
{
	assert(!done[r]);
	done[r] = true;
	r = 0
}

/*
 * rvi_reads and rc_reads_look: one completion at most. found: it took one in. beside: this thread
 * was refused often enough, and looks beside the ticket's holder. may_stop: see above.
 */
inline look(r, good, beside, refused, found, due, may_stop)
{
	if
	:: atomic { !ticket -> ticket = true; refused = false; found = false };
#ifdef STOPS
		if
		:: atomic { may_stop && !stands -> stands = true }; goto endstill
		:: true
		fi;
#endif
		atomic {
			if
			:: cq?r, good -> found = true
			:: empty(cq)
			fi };
		/* the list is filled before the ticket is given back */
		atomic {
			if
			:: found && !good -> odd!r; due = true; r = 0
			:: else
			fi };
		atomic { ticket = false; if :: !(found && good) -> good = false :: else fi };
		if
		:: found && good -> atomic { deliver(r); good = false }
		:: else
		fi
#ifndef MUTANT_NO_BESIDE
	:: atomic { ticket && beside ->
		refused = false;
		found = false;
		if
		:: cq?r, good -> found = true
		:: empty(cq)
		fi };
		if
		:: found && !good -> atomic { odd!r; due = true; r = 0 }
		:: found && good -> atomic { deliver(r); good = false }
		:: else
		fi
#endif
	:: atomic { ticket && !beside -> refused = true; found = false }
	fi
}

/* the list, as the holder of the lock takes it in */
inline gather(r, found)
{
	do
	:: atomic { odd?r -> found = true; deliver(r) }
	:: empty(odd) -> break
	od
}

active proctype hardware()
{
	byte r;

end:	do
	:: atomic { device?r ->
		if
		:: cq!r, true
		:: cq!r, false
		fi;
		r = 0;
		if
		:: armed -> armed = false; event = true
		:: else
		fi }
	od
}

active [READERS] proctype reader()
{
	byte me = _pid - 1, r;
	bool good, refused, found, due, looked;

	device!me;
	do
	:: done[me] -> goto over
	:: !looked ->
		/* has the ticket, or looks beside its holder */
		looked = true;
		look(r, good, looked, refused, found, due, true);
		if
		:: due ->
			due = false;
			if
			:: atomic { !lock -> lock = true }; gather(r, found); lock = false
			:: atomic { lock -> skip };
#ifndef MUTANT_NO_KICK
				kick()
#endif
			fi
		:: else
		fi
	:: break
	od;
	/* goes to sleep: leave_to_poller */
	left = true;
#ifndef MUTANT_LEAVE_SILENTLY
	kick();
#endif
	atomic { refused = false; found = false; looked = false };
	done[me];
over:	skip;
	d_step { refused = false; found = false; due = false; looked = false; good = false };
	if
	:: true
	:: false ->
endstill:		false
	fi
}

active proctype poller()
{
	byte r;
	bool good, refused, found, due, beside;

	do
	:: atomic { !lock -> lock = true };
		look(r, good, beside, refused, found, due, false);
		beside = refused;
		gather(r, found);
		if
		:: found -> lock = false
		:: !found && refused ->
			lock = false;
#ifdef MUTANT_NO_BESIDE
			!ticket
#endif
		:: else ->
			/* rc_arm */
			sleeping = true;
#ifndef MUTANT_ARM_LAST
			armed = left;
#endif
			look(r, good, beside, refused, found, due, false);
			beside = refused;
			gather(r, found);
#ifdef MUTANT_ARM_LAST
			armed = left;
#endif
			lock = false;
			if
#ifdef MUTANT_QUIET
			:: found
#else
			:: found || refused
#endif
			:: else ->
endsleep:			(event || kicked)
			fi;
			atomic { event = false; kicked = false; armed = false; sleeping = false }
		fi;
		due = false
	:: false ->
endstill:	false
	od
}
