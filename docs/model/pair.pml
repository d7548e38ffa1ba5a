/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue pair for READs of one ibv connection, both sides: verbs/ibv/pair.c, by its names. Each
 * side may leave a pair at any moment at which the code does, so offers may cross.
 *
 * Checked: an honest peer's frame is never judged as a fault. No READ is posted before the peer's
 * queue pair serves. At most PAIR_BUFS frames of a side are on their way. When no READ fails any
 * more, both sides are READY with the same pair.
 */
#ifndef NFAILS
#define NFAILS 3
#endif
#ifndef PAIR_BUFS
#define PAIR_BUFS 2     /* RVI_PAIR_BUFS */
#endif
#define NONE    0
#define OFFERED 1
#define LINKED  2
#define READY   3
#define LOST    4       /* stands for MAKING too: core, helper and ledger take their time */
#define TYING   5
#define OFFER   0       /* frames */
#define SERVES  1

chan wire[2] = [6] of { byte, byte };
byte state[2], number[2];
byte linked[2];         /* the last pair that the side has tied, and served */
bool has_offer[2], has_ready[2];
byte nr_fails;
bool fault, early, apart;

inline post(s, type, n)
{
	assert(len(wire[s]) < PAIR_BUFS);
	wire[s]!type, n
}

inline tie_pair(s)
{
	state[s] = TYING
}

inline tied(s)
{
	linked[s] = number[s];
	state[s] = LINKED;
#ifndef MUTANT_KEEPS_OFFER
	has_offer[s] = false;
#endif
#ifndef MUTANT_READY_FIRST
	post(s, SERVES, number[s]);
#endif
	if
	:: has_ready[s] -> has_ready[s] = false; state[s] = READY
	:: else
	fi
}

inline offer_pair(s)
{
	number[s]++;
	state[s] = OFFERED;
	post(s, OFFER, number[s]);
#ifdef MUTANT_READY_FIRST
	post(s, SERVES, number[s]);
#endif
	if
	:: has_offer[s] -> tie_pair(s)
	:: else
	fi
}

inline on_offer(s, n)
{
	fault = has_offer[s] || state[s] == LINKED || state[s] == TYING ||
#ifdef MUTANT_NO_CROSSING
		n != number[s] + 1;
#else
		n != number[s] + (state[s] != OFFERED -> 1 : 0);
#endif
	assert(fault == 0);
	has_offer[s] = true;
	if
	:: state[s] == OFFERED -> tie_pair(s)
#ifndef MUTANT_STAYS
	:: state[s] == READY -> state[s] = LOST
#endif
	:: else
	fi
}

inline on_ready(s, n)
{
	fault = (state[s] != LINKED && state[s] != TYING) || has_ready[s] || n != number[s];
	assert(fault == 0);
	if
	:: state[s] == LINKED -> state[s] = READY
#ifndef MUTANT_FORGETS_READY
	:: state[s] == TYING -> has_ready[s] = true
#endif
	:: else
	fi
}

hidden byte type, n;

proctype side(byte s)
{
end:	do
	:: d_step { state[s] == NONE || state[s] == LOST -> offer_pair(s) }
	:: d_step { state[s] == TYING -> tied(s) } /* the helper was at it */
	:: d_step { nr_fails < NFAILS && (state[s] == READY
#ifdef MUTANT_LEAVES_EARLY
			|| state[s] == LINKED
#endif
			) -> nr_fails++; state[s] = LOST }
	/* rvi_post_reads */
	:: d_step { state[s] == READY -> early = linked[1 - s] < number[s]; assert(early == 0) }
	:: d_step { len(wire[1 - s]) > 0 ->
		wire[1 - s]?type, n;
		if
		:: type == OFFER -> on_offer(s, n)
		:: else -> on_ready(s, n)
		fi;
		type = 0; n = 0 }
	od
}

/* Waits until no frame is on its way, and both sides can only post READs. */
proctype rest()
{
	d_step { nr_fails == NFAILS && len(wire[0]) + len(wire[1]) == 0 &&
			state[0] != NONE && state[1] != NONE &&
			state[0] != LOST && state[1] != LOST &&
			state[0] != TYING && state[1] != TYING ->
		apart = state[0] != READY || state[1] != READY || number[0] != number[1];
		assert(apart == 0) }
}

init { atomic { run side(0); run side(1); run rest() } }
