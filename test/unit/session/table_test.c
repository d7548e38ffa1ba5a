/* SPDX-License-Identifier: Apache-2.0 */
/* The session's table: each state and event has a row, and the rows make a machine that ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <limits.h>

#include "core/base/lock.h"
#include "core/ctx.h"
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
		struct rc_session_row ends = rc_session_row(s, RC_STEP_ENDS);

		assert_int_equal(reach(s, seen), s == RC_PEER_GONE ? 1 : RC_PEER_NR_STATES);
		assert_int_equal(ends.action, RC_DO_NOTHING);
		if (s == RC_PEER_GONE) {
			assert_int_equal(ends.next, RC_PEER_GONE);
			continue;
		}
		/* A session stands until its fence. */
		assert_int_equal(ends.next, rc_state_stands((enum rc_peer_state)s)
						    ? RC_PEER_ENDING
						    : RC_PEER_GIVEN_UP);
		assert_int_equal(rc_session_row(ends.next, RC_STEP_FENCED).next, RC_PEER_DOWN);
		assert_int_equal(rc_session_row(ends.next, RC_STEP_SHUT).next, RC_PEER_GONE);
	}
}

/*
 * Checks that only a proof brings a session up, and only a fence ends one. The fence was asked for
 * before.
 */
static void begins_by_proof_and_ends_by_fence(enum rc_peer_state s, unsigned e)
{
	struct rc_session_row row = rc_session_row(s, e);
	enum rc_peer_state next = (enum rc_peer_state)row.next;
	bool fence = e == RC_STEP_FENCED || e == RC_STEP_SHUT;

	if (next == RC_PEER_UP && s != RC_PEER_UP)
		assert_int_equal(e, RC_STEP_PROVED);
	if (rc_state_stands(s) && !rc_state_stands(next))
		assert_true(fence);
	if (!rc_state_stands(s) && rc_state_stands(next))
		assert_int_equal(e, RC_STEP_PROVED);
	if (fence && row.action != RC_DO_NEVER)
		assert_true(rc_state_ends(s));
}

static void table__a_session_begins_by_proof_and_ends_by_fence(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_EVENTS; e++)
			begins_by_proof_and_ends_by_fence((enum rc_peer_state)s, e);
}

/* Checks that nothing is taken while a fence is due, and that no step but the fence leads on. */
static void table__a_session_that_ends_takes_nothing(void **state)
{
	static const enum rc_peer_state ends[] = { RC_PEER_ENDING, RC_PEER_GIVEN_UP };

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		assert_true(rc_state_ends(ends[i]));
		assert_false(rc_state_tries(ends[i]) || rc_state_broken(ends[i]));
		for (unsigned e = RC_SEE_CONNECTED; e <= RC_SEE_WRITABLE; e++)
			assert_int_equal(rc_session_row(ends[i], e).action, RC_DO_DROP);
		assert_int_equal(rc_session_row(ends[i], RC_SEE_TICK).action, RC_DO_NOTHING);
		assert_int_equal(rc_session_row(ends[i], RC_SEE_RESUME).action, RC_DO_REFUSE);
		assert_int_equal(rc_session_row(ends[i], RC_SEE_HELLO).action, RC_DO_END_TAKE);
		for (unsigned e = RC_SESSION_NR_REPORTS; e < RC_SESSION_NR_EVENTS; e++)
			assert_int_equal(rc_session_row(ends[i], e).action == RC_DO_NEVER,
					 e != RC_STEP_ENDS && e != RC_STEP_FENCED &&
						 e != RC_STEP_SHUT);
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

/* ---- what the table does to a session ---- */

static struct rref_ctx ctx; /* rank 0, with an empty queue of work */

static void fence_is_not_run(struct rref_ctx *c, struct rc_work *w)
{
	(void)c, (void)w;
	fail_msg("asking for a fence carried it out");
}

/* Takes the lock for the rest of the program: no test here carries out a fence. */
static int take_lock(void **state)
{
	(void)state;
	rc_lock(&ctx);
	return 0;
}

static struct rc_peer peer_in(unsigned state)
{
	ctx.works = (struct rc_works){ 0 };
	ctx.session.fence = fence_is_not_run;
	return (struct rc_peer){ .rank = 1, .state = (enum rc_peer_state)state };
}

/* Checks that a report that the device must not make ends the session alone. */
static void on__an_impossible_report(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++)
		for (unsigned e = 0; e < RC_SESSION_NR_REPORTS; e++) {
			struct rc_peer p = peer_in(s);
			enum rc_session_action a = rc_session_on(&ctx, &p, (enum rc_session_event)e);
			bool ends = a == RC_DO_NEVER && s != RC_PEER_GONE;

			assert_int_equal(a, rc_session_row(s, e).action);
			assert_int_equal(p.state,
					 ends ? rc_session_row(s, RC_STEP_ENDS).next : s);
			assert_int_equal(ctx.works.nr, ends);
			assert_int_equal(p.ending.status, ends ? -EPROTO : 0);
		}
}

/* Checks that a message of an unproved attempt takes no session from a worker. */
static void table__an_unproved_attempt_ends_no_session(void **state)
{
	static const enum rc_peer_state attempt[] = { RC_PEER_CONNECTING, RC_PEER_REDIALLING };

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct rc_peer p = peer_in(attempt[i]);

		assert_int_equal(rc_session_on(&ctx, &p, RC_SEE_MESSAGE), RC_DO_NOTHING);
		assert_int_equal(p.state, attempt[i]);
	}
}

static void end__the_first_cause_counts(void **state)
{
	(void)state;
	for (unsigned s = 0; s < RC_PEER_NR_STATES; s++) {
		struct rc_peer p = peer_in(s);

		if (rc_state_ends((enum rc_peer_state)s) || s == RC_PEER_GONE)
			continue;
		rc_session_end(&ctx, &p, -ENETRESET, "the first");
		assert_true(rc_state_ends(p.state));
		rc_session_end(&ctx, &p, -EPROTO, "the second");
		rc_session_on(&ctx, &p, RC_SEE_TICK);
		assert_int_equal(rc_session_on(&ctx, &p, RC_SEE_LOST), RC_DO_DROP);
		assert_int_equal(p.ending.status, -ENETRESET);
		assert_string_equal(p.why, "the first");
		assert_int_equal(ctx.works.nr, 1);
		assert_ptr_equal(ctx.works.first, &p.ending.work);
	}
}

static void end__of_this_worker_or_after_it_left(void **state)
{
	struct rc_peer p = peer_in(RC_PEER_GONE);

	(void)state;
	rc_session_end(&ctx, &p, -EPROTO, "nothing is left");
	assert_int_equal(p.state, RC_PEER_GONE);
	p = peer_in(RC_PEER_DOWN);
	p.rank = ctx.rank;
	rc_session_end(&ctx, &p, -EPROTO, "itself");
	assert_int_equal(p.state, RC_PEER_DOWN);
	assert_int_equal(ctx.works.nr, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(end__of_this_worker_or_after_it_left),
		cmocka_unit_test(end__the_first_cause_counts),
		cmocka_unit_test(on__an_impossible_report),
		cmocka_unit_test(table__a_session_begins_by_proof_and_ends_by_fence),
		cmocka_unit_test(table__a_session_that_ends_takes_nothing),
		cmocka_unit_test(table__an_unproved_attempt_ends_no_session),
		cmocka_unit_test(table__each_action_has_a_row),
		cmocka_unit_test(table__each_state_can_end),
		cmocka_unit_test(table__each_state_is_reached),
		cmocka_unit_test(table__no_event_without_a_connection),
		cmocka_unit_test(table__only_steps_change_the_state),
		cmocka_unit_test(table__total_over_states_and_events),
	};
	return cmocka_run_group_tests(tests, take_lock, NULL);
}
