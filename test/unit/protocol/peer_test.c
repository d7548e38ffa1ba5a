/* SPDX-License-Identifier: Apache-2.0 */
#include "test/unit/protocol/rp_test.h"

static int handle, value;

static int fence(struct rp *m, uint32_t peer)
{
	return step(m, EV(PEER_FENCED, .peer = peer, .status = -EOWNERDEAD, .text = "died"));
}

static struct rp *receive(struct rp *m, uint32_t owner, uint32_t parent, uint64_t fork,
			  unsigned flags)
{
	struct rp_fork rec = { .word = WORD,
			       .id = ID(owner, 1),
			       .fork = ID(parent, fork),
			       .owner = owner,
			       .parent = parent,
			       .flags = flags };

	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = parent, .cookie = fork)), 0);
	*effect(m, 0, RP_EFF_NEW_HANDLE)->handle_slot = &handle;
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

static void rp_peer__references_to_its_values_fail(void **state)
{
	struct rp *m = receive(machine(2, 4), 0, 0, 9, 0);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(0, 9), .cookie = 1)), 0);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(2, 5),
				     .peer = 3),
				  &rec),
			 0);
	assert_int_equal(step(m,
			      EV(CREATE, .id = ID(2, 1), .fork = ID(2, 2), .peer = 0,
				 .handle = &value)),
			 0);
	assert_int_equal(fence(m, 0), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_FAILED)->handle, &handle);
	assert_string_equal(effect(m, 0, RP_EFF_FAILED)->text, "died");
	assert_int_equal(effect(m, 1, RP_EFF_WAITED)->status, -EOWNERDEAD);
	assert_ptr_equal(effect(m, 2, RP_EFF_FAILED)->handle, &value);
	assert_int_equal(effect(m, 3, RP_EFF_CREATED)->status, -EOWNERDEAD);
	assert_int_equal(nr_effects(m), 4);
	assert_int_equal(counts(m).pending_children, 0);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(0, 9), .cookie = 1)), 0);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -EOWNERDEAD);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(2, 6),
				     .peer = 3),
				  &rec),
			 -EOWNERDEAD);
	assert_int_equal(fence(m, 0), -EALREADY);
	/* A new session of it learns nothing of them. */
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 0)), 0);
	assert_int_equal(step(m, EV(PEER_UP, .peer = 0, .epoch = 2)), 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(0, 9))), 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(2, 2))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_peer__its_forks_live_until_grace_is_over(void **state)
{
	struct rp *m = owner();

	(void)state;
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(fence(m, 3), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(counts(m).forks, 1);
	/* The reference that it was sharing arrives in time. */
	assert_int_equal(step(m, MSG(FORK_REQUEST, 2, ID(0, 1), ID(3, 2))), 0);
	assert_int_equal(sent(m, 0, 2, RP_MSG_FORK_ACK)->status, 0);
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 3)), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(counts(m).forks, 1);
	assert_int_equal(step(m, MSG(DELETE, 2, ID(0, 1), ID(3, 2))), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	rp_destroy(m);
}

static void rp_peer__grace_frees(void **state)
{
	struct rp *m = owner();

	(void)state;
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(fence(m, 3), 0);
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 3)), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	effect(m, 1, RP_EFF_GONE);
	assert_int_equal(counts(m).tombstones, 0);
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 3)), -EALREADY);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_peer__no_new_session_before_grace_is_over(void **state)
{
	struct rp *m = owner();

	(void)state;
	assert_int_equal(step(m, EV(PEER_UP, .peer = 3, .epoch = 1)), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(fence(m, 3), 0);
	assert_int_equal(step(m, EV(PEER_UP, .peer = 3, .epoch = 2)), -EBUSY);
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 3)), 0);
	assert_int_equal(step(m, EV(PEER_UP, .peer = 3, .epoch = 2)), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, 0);
	assert_int_equal(counts(m).forks, 1);
	rp_destroy(m);
}

static void rp_peer__is_not_heard_while_fenced(void **state)
{
	struct rp *m = owner();
	struct rp_fork rec = {
		.word = WORD, .id = ID(2, 1), .fork = ID(3, 2), .owner = 2, .parent = 3
	};

	(void)state;
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(fence(m, 3), 0);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(counts(m).forks, 1);
	assert_int_equal(counts(m).ignored, 2);
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 1)), -EOWNERDEAD);
	assert_int_equal(step(m, EV(OWN, .id = ID(3, 1), .fork = ID(3, 2), .peer = 3)),
			 -EOWNERDEAD);
	assert_int_equal(step(m, EV(CREATE, .id = ID(0, 5), .fork = ID(0, 6), .peer = 3)),
			 -EOWNERDEAD);
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 7), .peer = 3), &rec),
			 -EOWNERDEAD);
	rp_destroy(m);
}

static void rp_peer__unpins_references_shared_with_it(void **state)
{
	struct rp *m = receive(machine(2, 4), 0, 0, 9, 0);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(0, 9), .fork = ID(2, 5),
				     .peer = 3),
				  &rec),
			 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(0, 9))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(fence(m, 3), 0);
	sent(m, 0, 0, RP_MSG_DELETE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_peer__parked_fetches_are_dropped(void **state)
{
	struct rp *m = machine(0, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 2), .peer = 3), &rec),
			 0);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 1), ID(0, 2))), 0);
	assert_int_equal(fence(m, 3), 0);
	assert_int_equal(counts(m).parked, 0);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .status = -EIO)), 0);
	assert_int_equal(nr_effects(m), 0);
	rp_destroy(m);
}

static void rp_peer__record_of_a_lost_owner(void **state)
{
	struct rp *m = machine(2, 4);

	(void)state;
	assert_int_equal(fence(m, 0), 0);
	receive(m, 0, 3, 9, 0);
	assert_int_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->status, -EOWNERDEAD);
	assert_int_equal(effect(m, 1, RP_EFF_READY)->status, -EOWNERDEAD);
	sent(m, 2, 3, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(nr_effects(m), 3);
	assert_int_equal(step(m, EV(DROP, .fork = ID(3, 9))), 0);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_peer__lost_parent_is_asked_no_longer(void **state)
{
	struct rp *m = receive(machine(2, 4), 0, 3, 9, RP_FORK_EARLY), *o = machine(0, 4);
	struct rp_fork rec = { .word = WORD,
			       .id = ID(1, 1),
			       .fork = ID(3, 5),
			       .owner = 0,
			       .parent = 3,
			       .flags = RP_FORK_EARLY };

	(void)state;
	assert_int_equal(fence(m, 3), 0);
	sent(m, 0, 0, RP_MSG_FORK_REQUEST);
	assert_int_equal(nr_effects(m), 1);
	/* The owner itself knows: it does not. */
	assert_int_equal(step(o, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 6)), 0);
	assert_int_equal(fence(o, 3), 0);
	assert_int_equal(effect(o, 0, RP_EFF_READY)->status, -ESTALE);
	assert_int_equal(nr_effects(o), 1);
	rp_destroy(m);
	rp_destroy(o);
}

static void rp_peer__asking_children_hear_of_a_lost_owner(void **state)
{
	struct rp *m = machine(1, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m,
			      EV(CREATE, .id = ID(1, 1), .fork = ID(1, 2), .peer = 0,
				 .handle = &handle)),
			 0);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 2), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_int_equal(step(m, MSG(PARENT_REQUEST, 2, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(fence(m, 0), 0);
	assert_int_equal(sent(m, 0, 2, RP_MSG_PARENT_ACK)->status, -EOWNERDEAD);
	effect(m, 1, RP_EFF_FAILED);
	effect(m, 2, RP_EFF_CREATED);
	assert_int_equal(counts(m).pending_children, 0);
	rp_destroy(m);
}

static void rp_peer__bad_events(void **state)
{
	struct rp *m = machine(1, 4);

	(void)state;
	assert_int_equal(fence(m, 1), -EINVAL);
	assert_int_equal(fence(m, 4), -EINVAL);
	assert_int_equal(step(m, EV(PEER_FENCED, .peer = 0)), -EINVAL);
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 0)), -EALREADY);
	assert_int_equal(step(m, EV(PEER_UP, .peer = 1, .epoch = 1)), -EINVAL);
	rp_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_peer__asking_children_hear_of_a_lost_owner),
		cmocka_unit_test(rp_peer__bad_events),
		cmocka_unit_test(rp_peer__grace_frees),
		cmocka_unit_test(rp_peer__is_not_heard_while_fenced),
		cmocka_unit_test(rp_peer__its_forks_live_until_grace_is_over),
		cmocka_unit_test(rp_peer__references_to_its_values_fail),
		cmocka_unit_test(rp_peer__lost_parent_is_asked_no_longer),
		cmocka_unit_test(rp_peer__no_new_session_before_grace_is_over),
		cmocka_unit_test(rp_peer__parked_fetches_are_dropped),
		cmocka_unit_test(rp_peer__record_of_a_lost_owner),
		cmocka_unit_test(rp_peer__unpins_references_shared_with_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
