/* SPDX-License-Identifier: Apache-2.0 */
/* The session's table: each state and event has a row, and the rows make a machine that ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>

#include "core/session/peer.h"
#include "core/session/table.h"

/* States in which p->link is NULL, so that no event of the device is for it. */
static bool has_no_link(unsigned s)
{
	return s == RC_PEER_DOWN || s == RC_PEER_CROSSED || s == RC_PEER_GONE ||
	       s == RC_PEER_BROKEN;
}

static void table__total_over_states_and_events(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_EVENTS; e++) {
			struct rc_session_row row = rc_session_row(s, e);

			if (row.action == RC_DO_MISSING)
				fail_msg("no row for state %u, event %u", s, e);
			assert_in_range(row.action, RC_DO_NEVER, RC_DO_NR - 1);
			assert_in_range(row.next, 0, RC_PEER_NR_STATES - 1);
		}
	assert_int_equal(rc_session_row(RC_PEER_NR_STATES, 0).action, RC_DO_NEVER);
	assert_int_equal(rc_session_row(0, RC_SESSION_NR_EVENTS).action, RC_DO_NEVER);
	assert_int_equal(rc_session_row(UINT_MAX, UINT_MAX).action, RC_DO_NEVER);
}

static void table__only_steps_change_the_state(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_EVENTS; e++) {
			struct rc_session_row row = rc_session_row(s, e);

			if (e < RC_SESSION_NR_REPORTS || row.action == RC_DO_NEVER)
				assert_int_equal(row.next, s);
			else
				assert_int_equal(row.action, RC_DO_NOTHING);
		}
}

static void table__each_action_has_a_row(void **state)
{
	bool used[RC_DO_NR] = { false };

	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_EVENTS; e++)
			used[rc_session_row(s, e).action] = true;
	for (unsigned a = RC_DO_NEVER; a < RC_DO_NR; a++)
		if (!used[a])
			fail_msg("no row has action %u", a);
}

/* Marks all states that steps lead to from there. Returns how many. */
static unsigned reach(unsigned from, bool seen[RC_PEER_NR_STATES])
{
	unsigned nr = 1;

	seen[from] = true;
	for (unsigned e = RC_SESSION_NR_REPORTS; e < RC_SESSION_NR_EVENTS; e++) {
		struct rc_session_row row = rc_session_row(from, e);

		if (row.action != RC_DO_NEVER && !seen[row.next])
			nr += reach(row.next, seen);
	}
	return nr;
}

static void table__each_state_is_reached(void **state)
{
	bool seen[RC_PEER_NR_STATES] = { false };

	(void)state;
	assert_int_equal(reach(RC_PEER_DOWN, seen), RC_PEER_NR_STATES);
}

static void table__each_state_can_end(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++) {
		bool seen[RC_PEER_NR_STATES] = { false };
		struct rc_session_row fenced = rc_session_row(s, RC_STEP_FENCED);

		assert_int_equal(fenced.action, RC_DO_NOTHING);
		assert_int_equal(fenced.next, s == RC_PEER_GONE ? RC_PEER_GONE : RC_PEER_DOWN);
		assert_int_equal(rc_session_row(fenced.next, RC_STEP_SHUT).next, RC_PEER_GONE);
		assert_int_equal(reach(s, seen), s == RC_PEER_GONE ? 1 : RC_PEER_NR_STATES);
	}
}

/* Checks that only a proof brings a session up, and only a fence ends one. */
static void table__a_session_begins_by_proof_and_ends_by_fence(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_EVENTS; e++) {
			enum rc_peer_state next = (enum rc_peer_state)rc_session_row(s, e).next;
			bool stood = rc_state_stands((enum rc_peer_state)s);

			if (next == RC_PEER_UP && s != RC_PEER_UP)
				assert_int_equal(e, RC_STEP_PROVED);
			if (stood && !rc_state_stands(next))
				assert_int_equal(e, RC_STEP_FENCED);
			if (!stood && rc_state_stands(next))
				assert_int_equal(e, RC_STEP_PROVED);
		}
}

static void table__no_event_without_a_connection(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = RC_SEE_CONNECTED; e <= RC_SEE_WRITABLE; e++)
			if (has_no_link(s))
				assert_int_equal(rc_session_row(s, e).action, RC_DO_NEVER);
	/* Each other state learns of the end of its connection in at least one way. */
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		if (!has_no_link(s))
			assert_true(rc_session_row(s, RC_SEE_FAILED).action != RC_DO_NEVER ||
				    rc_session_row(s, RC_SEE_LOST).action != RC_DO_NEVER);
}

/* Ends the session alone after a report that the device must not make. */
static void on__an_impossible_report(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_REPORTS; e++) {
			struct rc_peer p = { .state = (enum rc_peer_state)s };
			enum rc_session_action a = rc_session_on(&p, (enum rc_session_event)e);

			assert_int_equal(a, rc_session_row(s, e).action);
			assert_int_equal(p.state, s);
			assert_int_equal(p.must_end, a == RC_DO_NEVER);
		}
}

/* Checks that a message of an unproved attempt takes no session from a worker. */
static void table__an_unproved_attempt_ends_no_session(void **state)
{
	static const enum rc_peer_state attempt[] = { RC_PEER_CONNECTING, RC_PEER_REDIALLING };

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct rc_peer p = { .state = attempt[i] };

		assert_int_equal(rc_session_on(&p, RC_SEE_MESSAGE), RC_DO_NOTHING);
		assert_int_equal(p.state, attempt[i]);
		assert_false(p.must_end);
	}
}

/* Forgives the next connection the errors of the last one. */
static void on__the_next_connection_is_not_ended_for_the_last(void **state)
{
	struct rc_peer p = { .state = RC_PEER_CROSSED };

	(void)state;
	rc_session_on(&p, RC_SEE_MESSAGE);
	assert_true(p.must_end);
	rc_session_on(&p, RC_SEE_TICK);
	assert_true(p.must_end);
	rc_session_on(&p, RC_STEP_OVER);
	assert_false(p.must_end);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(on__an_impossible_report),
		cmocka_unit_test(on__the_next_connection_is_not_ended_for_the_last),
		cmocka_unit_test(table__a_session_begins_by_proof_and_ends_by_fence),
		cmocka_unit_test(table__an_unproved_attempt_ends_no_session),
		cmocka_unit_test(table__each_action_has_a_row),
		cmocka_unit_test(table__each_state_can_end),
		cmocka_unit_test(table__each_state_is_reached),
		cmocka_unit_test(table__no_event_without_a_connection),
		cmocka_unit_test(table__only_steps_change_the_state),
		cmocka_unit_test(table__total_over_states_and_events),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
