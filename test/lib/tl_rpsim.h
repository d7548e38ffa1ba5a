/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A simulator of the reference protocol: machines (core/rp.h), a network that delays, and a random program, all driven
 * by one seed. It keeps its own ledger of who holds what, and looks at it after every step.
 *
 * What must hold:
 *   - an owner entry goes, and its value is freed, only when nothing may still lead to it: a handle or fork of a
 *     session that the owner has not written off, or a record under way whose chain of parents is unbroken;
 *   - it is freed once; each record gives one READY, each wait one WAITED, each creation one CREATED;
 *   - what a wait brings is that value's own location;
 *   - without crashes no record is refused but for a creation that failed;
 *   - honest workers are never refused (-EPROTO), and nothing is sent to a fenced peer;
 *   - tl_rp_check finds nothing;
 *   - after everything was released and delivered all tables are empty, but for tombstones, which are bounded.
 */
#ifndef TL_RPSIM_H
#define TL_RPSIM_H

#include <stdbool.h>
#include <stdint.h>

#define TL_RP_CHAOS 1u      /* messages and calls are reordered and repeated; else each pair keeps its order */
#define TL_RP_CRASH 2u      /* workers are killed and come back, pairs are cut */
#define TL_RP_HOSTILE 4u    /* the last worker says anything: the others must not suffer; fenced at the end */

struct tl_rp_result {
	char text[256];         /* what failed; "" = nothing */
	uint64_t steps, messages, kills, cuts, freed, refused_records, attacks;
};

/* Runs one program of about nr_actions actions on nr_machines (1..6) machines. 0, or -1 with result->text. */
int tl_rp_sim(uint64_t seed, unsigned nr_machines, unsigned nr_actions, unsigned flags, struct tl_rp_result *result);

#endif
