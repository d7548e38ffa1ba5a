/* SPDX-License-Identifier: Apache-2.0 */
#include "test/unit/protocol/rp_test.h"

static int handle;

/* Returns worker 1, which has created {1,1} on worker 0 with fork {1,2}. */
static struct rp *creator(void)
{
	struct rp *m = machine(1, 4);

	assert_int_equal(step(m,
			      EV(CREATE, .id = ID(1, 1), .fork = ID(1, 2), .peer = 0,
				 .handle = &handle)),
			 0);
	assert_int_equal(nr_effects(m), 0);
	return m;
}

/* Returns worker 2, which has got {0,1} of worker 0 by a record
 * from `parent`, with fork {parent,9}. */
static struct rp *receiver(uint32_t parent, struct rp_location loc)
{
	struct rp *m = machine(2, 4);
	struct rp_fork rec = { .word = WORD,
			       .id = ID(0, 1),
			       .fork = ID(parent, 9),
			       .owner = 0,
			       .parent = parent,
			       .loc = loc };

	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = parent, .cookie = 5)), 0);
	*effect(m, 0, RP_EFF_NEW_HANDLE)->handle_slot = &handle;
	return m;
}

static void rp_user__created(void **state)
{
	struct rp *m = creator();

	(void)state;
	assert_int_equal(counts(m).pending_users, 1);
	assert_int_equal(step(m, EV(WAIT, .id = ID(1, 1), .fork = ID(1, 2), .cookie = 8)), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_LOCATION)->handle, &handle);
	assert_int_equal(effect(m, 0, RP_EFF_LOCATION)->loc.nonce, 3);
	assert_int_equal(effect(m, 1, RP_EFF_CREATED)->status, 0);
	assert_int_equal(effect(m, 2, RP_EFF_WAITED)->loc.nonce, 3);
	assert_int_equal(nr_effects(m), 3);
	assert_int_equal(step(m, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(1, 2))), 0);
	sent(m, 0, 0, RP_MSG_DELETE);
	assert_empty(m);
	assert_int_equal(step(m, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	assert_int_equal(counts(m).ignored, 2);
	rp_destroy(m);
}

static void rp_user__creation_failed_there(void **state)
{
	struct rp *m = creator();
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m,
			      MSG(CREATED, 0, ID(1, 1), ID(1, 2), .status = -EDOM, .text = "no")),
			 0);
	assert_string_equal(effect(m, 0, RP_EFF_FAILED)->text, "no");
	assert_int_equal(effect(m, 1, RP_EFF_CREATED)->status, -EDOM);
	/* The owner is asked for nothing more, even if the handle is still held. */
	sent(m, 2, 0, RP_MSG_DELETE);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(step(m, EV(WAIT, .id = ID(1, 1), .fork = ID(1, 2), .cookie = 8)),
				 0);
		assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -EDOM);
		assert_string_equal(effect(m, 0, RP_EFF_WAITED)->text, "no");
	}
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 2), .fork = ID(1, 3),
				     .peer = 3),
				  &rec),
			 -EDOM);
	assert_int_equal(step(m, EV(DROP, .fork = ID(1, 2))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_user__creation_timed_out_and_came_late(void **state)
{
	struct rp *m = creator();

	(void)state;
	assert_int_equal(step(m,
			      EV(CREATE_FAILED, .fork = ID(1, 2), .status = -ETIMEDOUT,
				 .text = "too slow")),
			 0);
	effect(m, 0, RP_EFF_FAILED);
	assert_string_equal(effect(m, 1, RP_EFF_CREATED)->text, "too slow");
	/* This reclaims the late value. */
	sent(m, 2, 0, RP_MSG_DELETE);
	assert_int_equal(step(m, EV(CREATE_FAILED, .fork = ID(1, 2), .status = -ETIMEDOUT)),
			 -EALREADY);
	assert_int_equal(step(m, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(WAIT, .id = ID(1, 1), .fork = ID(1, 2), .cookie = 8)), 0);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -ETIMEDOUT);
	assert_int_equal(step(m, EV(DROP, .fork = ID(1, 2))), 0);
	assert_empty(m);
	assert_int_equal(step(m, EV(CREATE_FAILED, .fork = ID(1, 2), .status = -ETIMEDOUT)),
			 -ESTALE);
	rp_destroy(m);
}

static void rp_user__released_before_its_creation_is_answered(void **state)
{
	struct rp *m = creator();

	(void)state;
	assert_int_equal(step(m, EV(DROP, .fork = ID(1, 2))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(1, 2))), -EALREADY);
	assert_int_equal(step(m, EV(WAIT, .id = ID(1, 1), .fork = ID(1, 2), .cookie = 8)), -ESTALE);
	assert_int_equal(step(m, MSG(CREATED, 0, ID(1, 1), ID(1, 2), .loc = LOC(3))), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_CREATED)->handle, &handle);
	sent(m, 1, 0, RP_MSG_DELETE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_user__bad_creations(void **state)
{
	struct rp *m = creator();

	(void)state;
	assert_int_equal(step(m, EV(CREATE, .id = ID(1, 5), .fork = ID(1, 6), .peer = 1)), -EINVAL);
	assert_int_equal(step(m, EV(CREATE, .id = ID(1, 5), .fork = ID(1, 6), .peer = 4)), -EINVAL);
	assert_int_equal(step(m, EV(CREATE, .id = ID(2, 5), .fork = ID(1, 6), .peer = 0)), -EINVAL);
	assert_int_equal(step(m, EV(CREATE, .id = ID(1, 5), .fork = ID(2, 6), .peer = 0)), -EINVAL);
	assert_int_equal(step(m, EV(CREATE, .id = ID(1, 5), .fork = ID(1, 0), .peer = 0)), -EINVAL);
	assert_int_equal(step(m, EV(CREATE, .id = ID(1, 1), .fork = ID(1, 2), .peer = 0)),
			 -EALREADY);
	assert_int_equal(step(m, EV(CREATE_FAILED, .fork = ID(1, 2), .status = 0)), -EINVAL);
	rp_destroy(m);
}

static void rp_user__from_its_owner_is_confirmed_at_once(void **state)
{
	struct rp *m = receiver(0, LOC(3));

	(void)state;
	assert_int_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->status, 0);
	assert_int_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->loc.nonce, 3);
	assert_int_equal(effect(m, 1, RP_EFF_READY)->cookie, 5);
	assert_int_equal(nr_effects(m), 2);
	assert_int_equal(counts(m).pending_users, 0);
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 1), ID(0, 9))), -EPROTO); /* never asked */
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(0, 9), .cookie = 8)), 0);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->loc.nonce, 3);
	assert_int_equal(step(m, EV(DROP, .fork = ID(0, 9))), 0);
	sent(m, 0, 0, RP_MSG_DELETE);
	rp_destroy(m);
}

static void rp_user__from_a_user_asks_the_owner(void **state)
{
	struct rp *m = receiver(3, (struct rp_location){ .version = 0 });

	(void)state;
	assert_int_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->status, -EINPROGRESS);
	sent(m, 1, 0, RP_MSG_FORK_REQUEST);
	assert_int_equal(nr_effects(m), 2);
	/* Waits before the answer send nothing. */
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(3, 9), .cookie = 8)), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 1), ID(3, 9))), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_CONFIRMED)->handle, &handle);
	assert_int_equal(effect(m, 1, RP_EFF_READY)->status, 0);
	sent(m, 2, 3, RP_MSG_CHILD_ACCEPT);
	sent(m, 3, 0, RP_MSG_FETCH);
	assert_int_equal(nr_effects(m), 4);
	/* There is one question for all that wait. */
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(3, 9), .cookie = 9)), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(counts(m).parked, 2);
	assert_int_equal(step(m, MSG(FETCH_REPLY, 0, ID(0, 1), ID(3, 9), .loc = LOC(3))), 0);
	effect(m, 0, RP_EFF_LOCATION);
	assert_int_equal(effect(m, 1, RP_EFF_WAITED)->cookie, 8);
	assert_int_equal(effect(m, 2, RP_EFF_WAITED)->cookie, 9);
	assert_int_equal(step(m, MSG(FETCH_REPLY, 0, ID(0, 1), ID(3, 9), .loc = LOC(3))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 1), ID(3, 9))), 0);
	assert_int_equal(nr_effects(m), 0);
	rp_destroy(m);
}

static void rp_user__location_comes_with_the_ack(void **state)
{
	struct rp *m = receiver(3, (struct rp_location){ .version = 0 });

	(void)state;
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(3, 9), .cookie = 8)), 0);
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 1), ID(3, 9), .loc = LOC(3))), 0);
	effect(m, 0, RP_EFF_LOCATION);
	effect(m, 1, RP_EFF_READY);
	sent(m, 2, 3, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(effect(m, 3, RP_EFF_WAITED)->loc.nonce, 3);
	assert_int_equal(nr_effects(m), 4);
	rp_destroy(m);
}

static void rp_user__refused(void **state)
{
	struct rp *m = receiver(3, (struct rp_location){ .version = 0 });

	(void)state;
	assert_int_equal(step(m,
			      MSG(FORK_ACK, 0, ID(0, 1), ID(3, 9), .status = -ESTALE,
				  .text = "gone")),
			 0);
	assert_int_equal(effect(m, 0, RP_EFF_FAILED)->status, -ESTALE);
	assert_int_equal(effect(m, 1, RP_EFF_READY)->status, -ESTALE);
	sent(m, 2, 3, RP_MSG_CHILD_ACCEPT);
	/* A repeated request must not be accepted later. */
	sent(m, 3, 0, RP_MSG_DELETE);
	assert_int_equal(nr_effects(m), 4);
	assert_int_equal(step(m, EV(DROP, .fork = ID(3, 9))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_user__released_before_confirmed(void **state)
{
	struct rp *m = receiver(3, (struct rp_location){ .version = 0 });

	(void)state;
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(3, 9), .cookie = 8)), 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(3, 9))), 0);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -ECANCELED);
	assert_int_equal(nr_effects(m), 1);
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 1), ID(3, 9))), 0);
	effect(m, 0, RP_EFF_READY);
	sent(m, 1, 3, RP_MSG_CHILD_ACCEPT);
	sent(m, 2, 0, RP_MSG_DELETE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_user__value_failed(void **state)
{
	struct rp *m = receiver(0, (struct rp_location){ .version = 0 });

	(void)state;
	/* never asked */
	assert_int_equal(step(m, MSG(FETCH_REPLY, 0, ID(0, 1), ID(0, 9), .loc = LOC(1))), -EPROTO);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(0, 9), .cookie = 8)), 0);
	sent(m, 0, 0, RP_MSG_FETCH);
	/* says nothing */
	assert_int_equal(step(m, MSG(FETCH_REPLY, 0, ID(0, 1), ID(0, 9))), -EPROTO);
	assert_int_equal(step(m,
			      MSG(FETCH_REPLY, 0, ID(0, 1), ID(0, 9), .status = -EDOM,
				  .text = "bad")),
			 0);
	effect(m, 0, RP_EFF_FAILED);
	assert_string_equal(effect(m, 1, RP_EFF_WAITED)->text, "bad");
	sent(m, 2, 0, RP_MSG_DELETE);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .fork = ID(0, 9), .cookie = 8)), 0);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -EDOM);
	rp_destroy(m);
}

static void rp_user__answers_of_others_are_refused(void **state)
{
	struct rp *m = receiver(3, (struct rp_location){ .version = 0 });

	(void)state;
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 2), ID(3, 9))), -EPROTO);
	assert_int_equal(step(m, MSG(CREATED, 0, ID(0, 1), ID(3, 9), .loc = LOC(1))), -EPROTO);
	assert_int_equal(step(m, MSG(PARENT_ACK, 3, ID(0, 1), ID(3, 9))), -EPROTO);
	assert_int_equal(counts(m).refused, 3);
	/* Messages from neither the owner nor the parent, about a fork that ended meanwhile, or an
	 * unknown one: all alike. */
	assert_int_equal(step(m, MSG(FORK_ACK, 1, ID(0, 1), ID(3, 9))), 0);
	assert_int_equal(step(m, MSG(FORK_ACK, 3, ID(0, 1), ID(3, 9))), 0);
	assert_int_equal(step(m, MSG(FETCH_REPLY, 1, ID(0, 1), ID(3, 9), .loc = LOC(1))), 0);
	assert_int_equal(step(m, MSG(CREATED, 1, ID(0, 1), ID(3, 9), .loc = LOC(1))), 0);
	assert_int_equal(step(m, MSG(PARENT_ACK, 2, ID(0, 1), ID(3, 9))), 0);
	assert_int_equal(step(m, MSG(FORK_ACK, 1, ID(0, 1), ID(3, 10))), 0);
	assert_int_equal(step(m, MSG(CREATED, 1, ID(0, 1), ID(3, 10), .loc = LOC(1))), 0);
	assert_int_equal(counts(m).ignored, 7);
	assert_int_equal(counts(m).refused, 3);
	assert_int_equal(counts(m).pending_users, 1);
	rp_destroy(m);
}

static void rp_user__bad_records(void **state)
{
	struct rp *m = receiver(3, (struct rp_location){ .version = 0 });
	struct rp_fork good = { .id = ID(0, 1), .fork = ID(3, 10), .owner = 0, .parent = 3 }, rec;

#define REFUSED(change) \
	do { \
		rec = good; \
		change; \
		assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 6)), \
				 -EPROTO); \
	} while (0)
	(void)state;
	REFUSED(rec.parent = 1);
	REFUSED((rec.parent = 1, rec.fork.created_on = 1)); /* well-formed, but not its sender's */
	REFUSED(rec.fork.created_on = 1);
	REFUSED(rec.fork.local_id = 0);
	REFUSED(rec.id.local_id = 0);
	REFUSED(rec.id.created_on = 4);
	REFUSED(rec.owner = 4);
	REFUSED(rec.flags = 2);
#undef REFUSED
	rec = good;
	rec.fork = ID(3, 9);
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 6)), -EALREADY);
	assert_int_equal(step(m, EV(RECV_FORK, .peer = 3, .cookie = 6)), -EINVAL);
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &good, .peer = 4, .cookie = 6)), -EINVAL);
	assert_int_equal(counts(m).users, 1);
	rp_destroy(m);
}

static void rp_user__refused_by_the_runtime(void **state)
{
	struct rp *m = machine(2, 4);
	struct rp_fork rec = {
		.word = WORD, .id = ID(0, 1), .fork = ID(3, 9), .owner = 0, .parent = 3
	};

	(void)state;
	assert_int_equal(step(m,
			      EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 5, .status = -ESTALE,
				 .text = "old")),
			 0);
	assert_int_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->status, -ESTALE);
	assert_string_equal(effect(m, 1, RP_EFF_READY)->text, "old");
	sent(m, 2, 3, RP_MSG_CHILD_ACCEPT);
	assert_int_equal(step(m, EV(DROP, .fork = ID(3, 9))), 0);
	assert_int_equal(nr_effects(m), 0);
	/* An earlier incarnation owned it here: no handle at all. */
	rec.owner = 2;
	assert_int_equal(step(m,
			      EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 5,
				 .status = -ESTALE)),
			 0);
	assert_int_equal(effect(m, 0, RP_EFF_READY)->status, -ESTALE);
	sent(m, 1, 3, RP_MSG_CHILD_ACCEPT);
	assert_empty(m);
	rp_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_user__answers_of_others_are_refused),
		cmocka_unit_test(rp_user__bad_creations),
		cmocka_unit_test(rp_user__bad_records),
		cmocka_unit_test(rp_user__created),
		cmocka_unit_test(rp_user__creation_failed_there),
		cmocka_unit_test(rp_user__creation_timed_out_and_came_late),
		cmocka_unit_test(rp_user__from_a_user_asks_the_owner),
		cmocka_unit_test(rp_user__from_its_owner_is_confirmed_at_once),
		cmocka_unit_test(rp_user__location_comes_with_the_ack),
		cmocka_unit_test(rp_user__refused),
		cmocka_unit_test(rp_user__refused_by_the_runtime),
		cmocka_unit_test(rp_user__released_before_confirmed),
		cmocka_unit_test(rp_user__released_before_its_creation_is_answered),
		cmocka_unit_test(rp_user__value_failed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
