/* SPDX-License-Identifier: Apache-2.0 */
#include "test/unit/protocol/rp_test.h"

static int handle, value;

/* Returns worker 1, which holds {0,1} of worker 0, confirmed, by fork {0,9}. */
static struct rp *user(void)
{
	struct rp *m = machine(1, 4);
	struct rp_fork rec = { .word = WORD,
			       .id = ID(0, 1),
			       .fork = ID(0, 9),
			       .owner = 0,
			       .parent = 0,
			       .loc = LOC(3) };

	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 0, .cookie = 5)), 0);
	*effect(m, 0, RP_EFF_NEW_HANDLE)->handle_slot = &handle;
	return m;
}

static struct rp *creator(void)
{
	struct rp *m = machine(1, 4);

	assert_int_equal(step(m,
			      EV(CREATE, .id = ID(1, 1), .fork = ID(1, 2), .peer = 0,
				 .handle = &handle)),
			 0);
	return m;
}

static struct rp *owner(void)
{
	struct rp *m = machine(0, 4);

	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .value = &value)), 0);
	give_word(m, ID(0, 1));
	return m;
}

static void rp_share__owner_to_user_is_recorded_at_once(void **state)
{
	struct rp *m = owner();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 5), .peer = 2), &rec),
			 0);
	assert_true(rec.owner == 0 && rec.parent == 0 && rec.flags == 0 && rec.value == &value);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, MSG(DELETE, 2, ID(0, 1), ID(0, 5))), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	rp_destroy(m);
}

static void rp_share__undo_on_the_owner(void **state)
{
	struct rp *m = owner();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 5), .peer = 2), &rec),
			 0);
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 5), .peer = 2), &rec),
			 -EALREADY);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(FORK_UNDO, .id = ID(0, 1), .fork = ID(0, 5), .peer = 2)), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	assert_int_equal(step(m, EV(FORK_UNDO, .id = ID(0, 1), .fork = ID(0, 5), .peer = 2)),
			 -EALREADY);
	rp_destroy(m);
}

static void rp_share__owner_to_itself(void **state)
{
	struct rp *m = owner();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 5), .peer = 0), &rec),
			 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 0, .cookie = 6)), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->value, &value);
	assert_null(effect(m, 0, RP_EFF_NEW_HANDLE)->handle_slot);
	assert_int_equal(effect(m, 1, RP_EFF_READY)->status, 0);
	assert_int_equal(nr_effects(m), 2);
	assert_int_equal(counts(m).forks, 0);
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 0, .cookie = 6)), -EALREADY);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	rp_destroy(m);
}

static void rp_share__user_to_owner(void **state)
{
	struct rp *u = user(), *o = owner();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(u,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				     .peer = 0),
				  &rec),
			 0);
	assert_int_equal(step(o, EV(RECV_FORK, .rec = &rec, .peer = 1, .cookie = 6)), 0);
	effect(o, 0, RP_EFF_NEW_HANDLE);
	effect(o, 1, RP_EFF_READY);
	sent(o, 2, 1, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(step(u, EV(DROP, .fork = ID(0, 9))), 0);
	assert_int_equal(nr_effects(u), 0);
	assert_int_equal(step(u, MSG(CHILD_ACCEPT, 0, ID(0, 1), ID(1, 5))), 0);
	sent(u, 0, 0, RP_MSG_DELETE);
	assert_empty(u);
	/* Both local references are needed to keep the value. */
	assert_int_equal(step(o, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(o), 0);
	assert_int_equal(step(o, EV(RELEASE, .id = ID(0, 1))), 0);
	effect(o, 0, RP_EFF_FREE_VALUE);
	rp_destroy(u);
	rp_destroy(o);
}

static void rp_share__parent_is_pinned_until_its_child_is_accepted(void **state)
{
	struct rp *m = user();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_true(rec.owner == 0 && rec.parent == 1 && rec.flags == 0 && rec.loc.nonce == 3);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 6),
				     .peer = 1),
				  &rec),
			 0);
	assert_int_equal(counts(m).pending_children, 2);
	assert_int_equal(step(m, EV(DROP, .fork = ID(0, 9))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 7),
				     .peer = 2),
				  &rec),
			 -ESTALE);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(step(m, MSG(CHILD_ACCEPT, 2, ID(0, 1), ID(1, 5))), 0);
		assert_int_equal(nr_effects(m), 0);
	}
	assert_int_equal(step(m, MSG(CHILD_ACCEPT, 1, ID(0, 1), ID(1, 6))), 0);
	sent(m, 0, 0, RP_MSG_DELETE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_share__undo_on_a_user(void **state)
{
	struct rp *m = user();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(0, 9))), 0);
	assert_int_equal(step(m,
			      EV(FORK_UNDO, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				 .peer = 3)),
			 -EALREADY);
	assert_int_equal(step(m,
			      EV(FORK_UNDO, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				 .peer = 2)),
			 0);
	sent(m, 0, 0, RP_MSG_DELETE);
	assert_int_equal(step(m,
			      EV(FORK_UNDO, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				 .peer = 2)),
			 -EALREADY);
	rp_destroy(m);
}

static void rp_share__bad_arguments(void **state)
{
	struct rp *m = user();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m,
			      EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				 .peer = 2)),
			 -EINVAL);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(2, 5),
				     .peer = 2),
				  &rec),
			 -EINVAL);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				     .peer = 4),
				  &rec),
			 -EINVAL);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 2), .src = ID(0, 9), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 -EINVAL);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 8), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 -ESTALE);
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(1, 5), .peer = 2), &rec),
			 -ESTALE);
	assert_int_equal(counts(m).pending_children, 0);
	rp_destroy(m);
}

static void rp_share__answers_of_strangers_are_refused(void **state)
{
	struct rp *m = user();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_int_equal(step(m, MSG(CHILD_ACCEPT, 2, ID(0, 2), ID(1, 5))), -EPROTO);
	/* not shared from here */
	assert_int_equal(step(m, MSG(CHILD_ACCEPT, 2, ID(0, 1), ID(2, 5))), -EPROTO);
	assert_int_equal(counts(m).refused, 2);
	/* Worker 3 names the child of worker 2, then an unknown one: the answer is the same. */
	for (uint64_t n = 5; n <= 6; n++) {
		assert_int_equal(step(m, MSG(CHILD_ACCEPT, 3, ID(0, 1), ID(1, n))), 0);
		assert_int_equal(nr_effects(m), 0);
		assert_int_equal(step(m, MSG(PARENT_REQUEST, 3, ID(0, 1), ID(1, n))), 0);
		assert_int_equal(sent(m, 0, 3, RP_MSG_PARENT_ACK)->status, 0);
		assert_int_equal(nr_effects(m), 1);
	}
	assert_int_equal(counts(m).ignored, 4);
	assert_int_equal(counts(m).refused, 2);
	assert_int_equal(counts(m).pending_children, 1);
	rp_destroy(m);
}

static void rp_share__early_child_asks_its_parent(void **state)
{
	struct rp *a = creator(), *b = machine(2, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(a,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 2), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_int_equal(rec.flags, RP_FORK_EARLY);
	sent(a, 0, 0, RP_MSG_FORK_REQUEST); /* does the owner know? */
	assert_int_equal(step(b, EV(RECV_FORK, .rec = &rec, .peer = 1, .cookie = 6)), 0);
	effect(b, 0, RP_EFF_NEW_HANDLE);
	sent(b, 1, 1, RP_MSG_PARENT_REQUEST);
	assert_int_equal(nr_effects(b), 2);
	assert_int_equal(step(a, MSG(PARENT_REQUEST, 2, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(nr_effects(a), 0);
	assert_int_equal(step(a, MSG(FORK_ACK, 0, ID(1, 1), ID(1, 2))), 0);
	effect(a, 0, RP_EFF_CONFIRMED);
	assert_int_equal(sent(a, 1, 2, RP_MSG_PARENT_ACK)->status, 0);
	assert_int_equal(nr_effects(a), 2);
	assert_int_equal(step(b, MSG(PARENT_ACK, 3, ID(1, 1), ID(1, 5))), 0); /* not its parent */
	assert_int_equal(nr_effects(b), 0);
	assert_int_equal(step(b, MSG(PARENT_ACK, 1, ID(1, 2), ID(1, 5))), -EPROTO);
	/* not asked yet */
	assert_int_equal(step(b, MSG(FORK_ACK, 0, ID(1, 1), ID(1, 5))), -EPROTO);
	assert_int_equal(step(b, MSG(PARENT_ACK, 1, ID(1, 1), ID(1, 5))), 0);
	sent(b, 0, 0, RP_MSG_FORK_REQUEST);
	assert_int_equal(step(b, MSG(PARENT_ACK, 1, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(nr_effects(b), 0);
	/* Later records are not early. */
	assert_int_equal(step_rec(b,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 5), .fork = ID(2, 7),
				     .peer = 3),
				  &rec),
			 0);
	assert_int_equal(rec.flags, 0);
	/* The creation itself goes on. */
	assert_int_equal(step(a, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	effect(a, 0, RP_EFF_LOCATION);
	effect(a, 1, RP_EFF_CREATED);
	rp_destroy(a);
	rp_destroy(b);
}

static void rp_share__question_overtakes_the_creation(void **state)
{
	struct rp *a = creator(), *o = machine(0, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(a,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 2), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_int_equal(step(o, MSG(FORK_REQUEST, 1, ID(1, 1), ID(1, 2))), 0);
	assert_int_equal(sent(o, 0, 1, RP_MSG_FORK_ACK)->status, -ESTALE);
	assert_int_equal(step(a, MSG(PARENT_REQUEST, 2, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(step(a, MSG(FORK_ACK, 0, ID(1, 1), ID(1, 2), .status = -ESTALE)), 0);
	assert_int_equal(nr_effects(a), 0);
	/* The creation must still be accepted. */
	assert_int_equal(step(o, EV(OWN, .id = ID(1, 1), .fork = ID(1, 2), .peer = 1)), 0);
	assert_int_equal(nr_effects(o), 0);
	assert_int_equal(step(a, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	effect(a, 0, RP_EFF_LOCATION);
	effect(a, 1, RP_EFF_CREATED);
	assert_int_equal(sent(a, 2, 2, RP_MSG_PARENT_ACK)->status, 0);
	rp_destroy(a);
	rp_destroy(o);
}

static void rp_share__early_children_fail_with_the_creation(void **state)
{
	struct rp *a = creator(), *b = machine(2, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(a,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 2), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_int_equal(step(b, EV(RECV_FORK, .rec = &rec, .peer = 1, .cookie = 6)), 0);
	*effect(b, 0, RP_EFF_NEW_HANDLE)->handle_slot = &handle;
	assert_int_equal(step(a, MSG(PARENT_REQUEST, 2, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(step(a,
			      EV(CREATE_FAILED, .fork = ID(1, 2), .status = -ETIMEDOUT,
				 .text = "too slow")),
			 0);
	effect(a, 0, RP_EFF_FAILED);
	effect(a, 1, RP_EFF_CREATED);
	assert_string_equal(sent(a, 2, 2, RP_MSG_PARENT_ACK)->text, "too slow");
	assert_int_equal(nr_effects(a), 3); /* DELETE waits for the child */
	/* A later request gets the same answer. */
	assert_int_equal(step(a, MSG(PARENT_REQUEST, 2, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(sent(a, 0, 2, RP_MSG_PARENT_ACK)->status, -ETIMEDOUT);
	assert_int_equal(step(b,
			      MSG(PARENT_ACK, 1, ID(1, 1), ID(1, 5), .status = -ETIMEDOUT,
				  .text = "too slow")),
			 0);
	effect(b, 0, RP_EFF_FAILED);
	assert_string_equal(effect(b, 1, RP_EFF_READY)->text, "too slow");
	sent(b, 2, 1, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(step(a, MSG(CHILD_ACCEPT, 2, ID(1, 1), ID(1, 5))), 0);
	sent(a, 0, 0, RP_MSG_DELETE);
	rp_destroy(a);
	rp_destroy(b);
}

static void rp_share__owner_asks_about_early_records_too(void **state)
{
	struct rp *o = machine(0, 4);
	struct rp_fork rec = { .word = WORD,
			       .id = ID(1, 1),
			       .fork = ID(2, 5),
			       .owner = 0,
			       .parent = 2,
			       .flags = RP_FORK_EARLY };

	(void)state;
	assert_int_equal(step(o, EV(RECV_FORK, .rec = &rec, .peer = 2, .cookie = 6)), 0);
	sent(o, 0, 2, RP_MSG_PARENT_REQUEST);
	assert_int_equal(nr_effects(o), 1);
	assert_int_equal(step(o, EV(RECV_FORK, .rec = &rec, .peer = 2, .cookie = 6)), -EALREADY);
	assert_int_equal(step(o, EV(DROP, .fork = ID(2, 5))), -ESTALE);
	assert_int_equal(step(o, EV(OWN, .id = ID(1, 1), .fork = ID(1, 2), .peer = 1)), 0);
	assert_int_equal(step(o, MSG(PARENT_ACK, 2, ID(1, 1), ID(2, 5))), 0);
	assert_int_equal(effect(o, 0, RP_EFF_NEW_HANDLE)->fork.local_id, 0);
	assert_int_equal(effect(o, 1, RP_EFF_READY)->cookie, 6);
	sent(o, 2, 2, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(counts(o).users, 0);
	/* Known now: no question. */
	rec.fork = ID(2, 6);
	assert_int_equal(step(o, EV(RECV_FORK, .rec = &rec, .peer = 2, .cookie = 7)), 0);
	effect(o, 0, RP_EFF_NEW_HANDLE);
	rp_destroy(o);
}

static void rp_share__unknown_child_is_sent_to_the_owner(void **state)
{
	struct rp *m = user();

	(void)state;
	assert_int_equal(step(m, MSG(PARENT_REQUEST, 2, ID(0, 1), ID(1, 77))), 0);
	assert_int_equal(sent(m, 0, 2, RP_MSG_PARENT_ACK)->status, 0);
	rp_destroy(m);
}

static void rp_share__record_of_a_freed_value(void **state)
{
	struct rp *o = machine(0, 4);
	struct rp_fork rec = {
		.word = WORD, .id = ID(0, 1), .fork = ID(2, 5), .owner = 0, .parent = 2
	};

	(void)state;
	assert_int_equal(step(o, EV(RECV_FORK, .rec = &rec, .peer = 2, .cookie = 6)), 0);
	assert_int_equal(effect(o, 0, RP_EFF_READY)->status, -ESTALE);
	sent(o, 1, 2, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(nr_effects(o), 2);
	assert_empty(o);
	rp_destroy(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_share__answers_of_strangers_are_refused),
		cmocka_unit_test(rp_share__bad_arguments),
		cmocka_unit_test(rp_share__early_child_asks_its_parent),
		cmocka_unit_test(rp_share__early_children_fail_with_the_creation),
		cmocka_unit_test(rp_share__owner_asks_about_early_records_too),
		cmocka_unit_test(rp_share__owner_to_itself),
		cmocka_unit_test(rp_share__owner_to_user_is_recorded_at_once),
		cmocka_unit_test(rp_share__parent_is_pinned_until_its_child_is_accepted),
		cmocka_unit_test(rp_share__question_overtakes_the_creation),
		cmocka_unit_test(rp_share__record_of_a_freed_value),
		cmocka_unit_test(rp_share__undo_on_a_user),
		cmocka_unit_test(rp_share__undo_on_the_owner),
		cmocka_unit_test(rp_share__unknown_child_is_sent_to_the_owner),
		cmocka_unit_test(rp_share__user_to_owner),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
