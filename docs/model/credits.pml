/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credit flow of one ibv connection, both directions: verbs/ibv/send.c and recv.c, by the names of
 * struct rv_conn.
 *
 * A message costs its sender one credit. The receiver returns it when the core gives the buffer
 * back. Messages carry these returns. When half of the credits wait and no message goes out, a
 * message of credits alone carries them. Such a message costs no credit, and has CREDIT_BUFS
 * receive buffers of its own.
 *
 * Checked: no message meets an empty receive queue. No side that keeps the rules is cut off
 * (rx_window). No credit is lost or made. Neither side is without credits for ever (weak fairness
 * for all but the senders).
 */
#ifndef CREDITS
#define CREDITS 4       /* opt.credits */
#endif
#ifndef CLASS
#define CLASS CREDITS   /* credits that the handshake promises */
#endif
#ifndef CREDIT_BUFS
#define CREDIT_BUFS 2   /* RVI_CREDIT_BUFS */
#endif
#define ONLY 16         /* a message of credits alone; both kinds carry a grant */

byte tx_credits[2] = CLASS, rx_window[2] = CLASS, to_return[2] = CREDITS - CLASS, nr_held[2];

/* Messages sent and not looked at. Each has a receive buffer of the
 * other side, from its arrival at the latest. */
chan wire[2] = [CREDITS + CREDIT_BUFS + 2] of { byte };

#define RETURNS(s) (to_return[s] > 0 && to_return[s] >= CREDITS / 2)

byte in_messages[2], in_grants[2];

inline post(s, type)
{
	/* The device would answer receiver-not-ready. */
	assert(len(wire[s]) + nr_held[1 - s] < CREDITS + CREDIT_BUFS);
	wire[s]!(type + to_return[s]);
	in_grants[s] = in_grants[s] + to_return[s];
	rx_window[s] = rx_window[s] + to_return[s];
	to_return[s] = 0
}

/* rvi_return_credits */
inline return_credits(s)
{
	if
#ifdef MUTANT_RETURN_COSTS
	:: RETURNS(s) && tx_credits[s] > 0 -> tx_credits[s]--; in_messages[s]++; post(s, ONLY)
#else
	:: RETURNS(s) -> post(s, ONLY)
#endif
	:: else
	fi
}

#define CONSERVED(s) (tx_credits[s] + in_messages[s] + nr_held[1 - (s)] + to_return[1 - (s)] + \
	in_grants[1 - (s)] == CREDITS)

hidden byte m;

proctype sender(byte s)
{
	do
	:: d_step { tx_credits[s] > 0 ->
		tx_credits[s]--; in_messages[s]++; post(s, 0); assert(CONSERVED(s)) }
	/* Wants nothing. */
	:: nr_held[s] <= CREDITS
	od
}

/* rvi_recv_completed */
proctype receiver(byte s)
{
	do
	:: d_step {
		len(wire[1 - s]) > 0 ->
		wire[1 - s]?m;
		tx_credits[s] = tx_credits[s] + (m & 15);
		in_grants[1 - s] = in_grants[1 - s] - (m & 15);
		if
#ifdef MUTANT_RETURN_COSTS
		:: m >= ONLY -> in_messages[1 - s]--; rx_window[s]--; to_return[s]++;
			return_credits(s)
#else
		:: m >= ONLY /* a credit message: its buffer is posted again at once */
#endif
		:: else ->
			in_messages[1 - s]--;
			assert(rx_window[s] > 0);
			rx_window[s]--;
			nr_held[s]++
		fi;
		assert(CONSERVED(0) && CONSERVED(1));
		m = 0
	}
	od
}

/* Ends the core's work on a message: rvi_recv_done. Its answer waits in the core's queue, and no
 * buffer waits with it. */
proctype core(byte s)
{
	/* rvi_conn_up */
	d_step { return_credits(s) };
	do
	:: d_step {
#ifdef MUTANT_HELD_UNTIL_ANSWERED
		nr_held[s] > 0 && tx_credits[s] > 0 ->
		tx_credits[s]--; in_messages[s]++; post(s, 0);
#else
		nr_held[s] > 0 ->
#endif
		nr_held[s]--;
		to_return[s]++;
		return_credits(s);
		assert(CONSERVED(0) && CONSERVED(1))
	}
	od
}

ltl flows { [] <> (tx_credits[0] > 0) && [] <> (tx_credits[1] > 0) }

init {
	atomic {
		run sender(0); run sender(1);
		run receiver(0); run receiver(1);
		run core(0); run core(1)
	}
}
