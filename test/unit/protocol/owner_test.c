/* SPDX-License-Identifier: Apache-2.0 */
#include "core/protocol/internal.h"
#include "test/unit/protocol/rp_test.h"

static int value;

static struct rp *with_value(void)
{
	struct rp *m = machine(0, 4);

	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .value = &value)), 0);
	give_word(m, ID(0, 1));
	return m;
}

static void rp_owner__last_release_frees(void **state)
{
	struct rp *m = with_value();

	(void)state;
	assert_int_equal(step(m, EV(RETAIN, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_FREE_VALUE)->value, &value);
	assert_int_equal(effect(m, 1, RP_EFF_GONE)->id.local_id, 1);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), -ESTALE);
	assert_int_equal(step(m, EV(RETAIN, .id = ID(0, 1))), -ESTALE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_owner__abandoned_value_is_freed_on_arrival(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(step(m, EV(RETAIN, .id = ID(0, 1))), -ESTALE);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .cookie = 1)), -ESTALE);
	assert_int_equal(counts(m).pending_owners, 1);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .value = &value)), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_FREE_VALUE)->value, &value);
	effect(m, 1, RP_EFF_GONE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_owner__set_once(void **state)
{
	struct rp *m = with_value();

	(void)state;
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .value = &value)), -EALREADY);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .status = -EIO)), -EALREADY);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 2), .status = -EIO)), -ESTALE);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .status = 1)), -EINVAL);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1))), -EINVAL);
	rp_destroy(m);
}

/* Presents numbers in any order, as threads take them before they come to the machine. */
static void rp_owner__numbers_come_in_any_order(void **state)
{
	static const uint64_t order[] = { 5, 3, 9, 8, 1, 2 };
	struct rp *m = machine(0, 4);

	(void)state;
	for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
		assert_int_equal(step(m, EV(NEW, .id = ID(0, order[i]))), 0);
		for (size_t k = 0; k <= i; k++)
			assert_int_equal(step(m, EV(NEW, .id = ID(0, order[k]))), -EALREADY);
	}
	assert_int_equal(counts(m).owners, sizeof(order) / sizeof(order[0]));
	rp_destroy(m);
}

/* Finds a value by the holder's own fork of it, while the value is
 * there and the holder's session lasts. */
static void rp_owner__value_of_a_holder(void **state)
{
	struct rp *m = with_value();
	struct rp_fork rec;
	void *found = NULL;

	(void)state;
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 5), .peer = 2), &rec),
			 0);
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(2, 6), .peer = 2)), 0);
	assert_int_equal(rp_held_value(m, 2, &ID(0, 1), &ID(0, 5), &found), 0);
	assert_ptr_equal(found, &value);
	found = NULL;
	/* another's */
	assert_int_equal(rp_held_value(m, 3, &ID(0, 1), &ID(0, 5), &found), -ESTALE);
	assert_int_equal(rp_held_value(m, 0, &ID(0, 1), &ID(0, 5), &found), -ESTALE);
	assert_int_equal(rp_held_value(m, 99, &ID(0, 1), &ID(0, 5), &found), -ESTALE);
	/* of another value */
	assert_int_equal(rp_held_value(m, 2, &ID(0, 1), &ID(2, 6), &found), -ESTALE);
	assert_int_equal(rp_held_value(m, 2, &ID(2, 1), &ID(0, 5), &found), -ESTALE);
	assert_int_equal(rp_held_value(m, 2, &ID(0, 2), &ID(0, 7), &found), -ESTALE);
	/* not set yet */
	assert_int_equal(rp_held_value(m, 2, &ID(2, 1), &ID(2, 6), &found), -EAGAIN);
	assert_int_equal(step(m, EV(SET, .id = ID(2, 1), .status = -EDOM, .text = "no")), 0);
	assert_int_equal(rp_held_value(m, 2, &ID(2, 1), &ID(2, 6), &found), -EDOM);
	assert_int_equal(step(m, EV(PEER_FENCED, .peer = 2, .status = -EOWNERDEAD)), 0);
	assert_int_equal(rp_held_value(m, 2, &ID(0, 1), &ID(0, 5), &found), -ESTALE); /* in grace */
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 2)), 0);
	assert_int_equal(step(m, EV(PEER_UP, .peer = 2, .epoch = 2)), 0);
	assert_int_equal(rp_held_value(m, 2, &ID(0, 1), &ID(0, 5), &found), -ESTALE);
	assert_null(found);
	rp_destroy(m);
}

static void rp_owner__bad_ids(void **state)
{
	struct rp *m = with_value();

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), -EALREADY);
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 0))), -EINVAL);
	assert_int_equal(step(m, EV(NEW, .id = ID(1, 5))), -EINVAL);
	assert_int_equal(step(m, EV(NEW, .id = ID(4, 5))), -EINVAL);
	assert_int_equal(step(m, EV(NEW, .id = { 5, 0, 1 })), -EINVAL);
	assert_int_equal(step(m, &(struct rp_event){ .type = 0 }), -EINVAL);
	assert_int_equal(step(m, &(struct rp_event){ .type = RP_EV_PEER_GRACE + 1 }), -EINVAL);
	rp_destroy(m);
}

static void rp_owner__waits_end_once_each(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	for (uint64_t i = 1; i <= 3; i++) {
		assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .cookie = i)), 0);
		assert_int_equal(nr_effects(m), 0);
	}
	assert_int_equal(counts(m).parked, 3);
	assert_int_equal(step(m, EV(UNWAIT, .id = ID(0, 1), .cookie = 2)), 0);
	assert_int_equal(step(m, EV(UNWAIT, .id = ID(0, 1), .cookie = 2)), -ESTALE);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .value = &value)), 0);
	assert_int_equal(nr_effects(m), 2);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->cookie, 1);
	assert_ptr_equal(effect(m, 0, RP_EFF_WAITED)->value, &value);
	assert_int_equal(effect(m, 1, RP_EFF_WAITED)->cookie, 3);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .cookie = 4)), 0);
	rp_destroy(m);
}

static void rp_owner__last_release_cancels_waits(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .cookie = 9)), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -ECANCELED);
	rp_destroy(m);
}

static void rp_owner__failure_is_told_each_time(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .cookie = 1)), 0);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .status = -EDOM, .text = "why\nnot")), 0);
	assert_string_equal(effect(m, 0, RP_EFF_WAITED)->text, "why\nnot");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(step(m, EV(WAIT, .id = ID(0, 1), .cookie = 2)), 0);
		assert_int_equal(effect(m, 0, RP_EFF_WAITED)->status, -EDOM);
		assert_string_equal(effect(m, 0, RP_EFF_WAITED)->text, "why\nnot");
	}
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(m), 1);
	effect(m, 0, RP_EFF_GONE);
	rp_destroy(m);
}

static void rp_owner__creation_is_answered_when_ready(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(2, 2), .peer = 2)), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(counts(m).forks, 1);
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(2, 2), .peer = 2)), 0);
	effect(m, 0, RP_EFF_DUPLICATE);
	assert_int_equal(counts(m).forks, 1);
	assert_int_equal(step(m, EV(SET, .id = ID(2, 1), .value = &value)), 0);
	told(m, 0, 2, RP_MSG_CREATED, &value);
	assert_int_equal(nr_effects(m), 1);
	assert_int_equal(step(m, MSG(DELETE, 2, ID(2, 1), ID(2, 2))), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	/* A late or repeated creation: the function is not run again. */
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(2, 2), .peer = 2)), 0);
	effect(m, 0, RP_EFF_DUPLICATE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_owner__delete_overtakes_creation(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, MSG(DELETE, 2, ID(2, 1), ID(2, 2))), 0);
	assert_int_equal(counts(m).tombstones, 1);
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(2, 2), .peer = 2)), 0);
	effect(m, 0, RP_EFF_DUPLICATE);
	assert_empty(m);
	rp_destroy(m);
}

static void rp_owner__creation_of_foreign_ids_is_refused(void **state)
{
	struct rp *m = machine(0, 4);

	(void)state;
	assert_int_equal(step(m, EV(OWN, .id = ID(1, 1), .fork = ID(2, 2), .peer = 2)), -EPROTO);
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(1, 2), .peer = 2)), -EPROTO);
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 0), .fork = ID(2, 2), .peer = 2)), -EPROTO);
	assert_int_equal(step(m, EV(OWN, .id = ID(0, 1), .fork = ID(0, 2), .peer = 0)), -EINVAL);
	assert_int_equal(step(m, EV(OWN, .id = ID(2, 1), .fork = ID(2, 2), .peer = 4)), -EINVAL);
	assert_int_equal(counts(m).refused, 3);
	rp_destroy(m);
}

static void rp_owner__fetch_parks_once(void **state)
{
	struct rp *m = machine(0, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 2), .peer = 3), &rec),
			 0);
	assert_null(rec.value);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 1), ID(0, 2))), 0);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 1), ID(0, 2))), 0);
	assert_int_equal(counts(m).parked, 1);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .value = &value)), 0);
	assert_int_equal(nr_effects(m), 1);
	told(m, 0, 3, RP_MSG_FETCH_REPLY, &value);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 1), ID(0, 2))), 0);
	told(m, 0, 3, RP_MSG_FETCH_REPLY, &value);
	rp_destroy(m);
}

static void rp_owner__parked_fetch_ends_with_its_fork(void **state)
{
	struct rp *m = machine(0, 4);
	struct rp_fork rec;

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1))), 0);
	assert_int_equal(step_rec(m, EV(FORK, .id = ID(0, 1), .fork = ID(0, 2), .peer = 3), &rec),
			 0);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 1), ID(0, 2))), 0);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(0, 2))), 0);
	assert_int_equal(counts(m).parked, 0);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .status = -EIO)), 0);
	assert_int_equal(nr_effects(m), 0);
	rp_destroy(m);
}

static void rp_owner__unknown_is_answered_at_once(void **state)
{
	struct rp *m = with_value();

	(void)state;
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 9), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FETCH_REPLY)->status, -ESTALE);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FETCH_REPLY)->status, -ESTALE);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 9), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	rp_destroy(m);
}

static void rp_owner__requests_and_deletes_repeat_harmlessly(void **state)
{
	struct rp *m = with_value();

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
		assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, 0);
		told(m, 0, 3, RP_MSG_FORK_ACK, &value);
		assert_int_equal(counts(m).forks, 1);
	}
	for (int i = 0; i < 3; i++) {
		assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(2, 2))), 0);
		assert_int_equal(counts(m).forks, 0);
	}
	assert_int_equal(counts(m).tombstones, 1);
	/* A request after its own DELETE. */
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	assert_int_equal(counts(m).forks, 0);
	assert_int_equal(counts(m).ignored, 5);
	rp_destroy(m);
}

static void rp_owner__tombstones_are_bounded(void **state)
{
	struct rp *m = with_value();

	(void)state;
	for (uint64_t i = 1; i <= 3 * RP_TOMBSTONES_MAX; i++) {
		rp_effects_clear(m);
		assert_int_equal(rp_step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, i)), NULL), 0);
		assert_int_equal(rp_step(m, MSG(DELETE, 3, ID(0, 1), ID(2, i)), NULL), 0);
	}
	assert_int_equal(counts(m).tombstones, RP_TOMBSTONES_MAX);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 3 * RP_TOMBSTONES_MAX))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2 * RP_TOMBSTONES_MAX + 1))),
			 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	/* A fork made here is never requested, so it leaves no tombstone. */
	assert_int_equal(step(m, MSG(DELETE, 2, ID(0, 1), ID(0, 77))), 0);
	assert_int_equal(counts(m).tombstones, RP_TOMBSTONES_MAX);
	rp_destroy(m);
}

static void rp_owner__quota_per_peer(void **state)
{
	struct rp *m = with_value();

	(void)state;
	m->peers[3].nr_forks = RP_FORKS_MAX;
	rp_effects_clear(m);
	assert_int_equal(rp_step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2)), NULL), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -EDQUOT);
	assert_int_equal(rp_step(m, EV(OWN, .id = ID(3, 1), .fork = ID(3, 2), .peer = 3), NULL), 0);
	assert_int_equal(sent(m, 1, 3, RP_MSG_CREATED)->status, -EDQUOT);
	effect(m, 2, RP_EFF_DUPLICATE);
	m->peers[3].nr_forks = 0;
	/* A refused request stays refused, once its holder knows. */
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 2, ID(0, 1), ID(3, 2))), 0);
	assert_int_equal(sent(m, 0, 2, RP_MSG_FORK_ACK)->status, 0);
	rp_destroy(m);
}

static void rp_owner__another_holders_fork_is_out_of_reach(void **state)
{
	struct rp *m = with_value();

	(void)state;
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	/* Worker 1 names worker 3's fork in all ways. */
	assert_int_equal(step(m, MSG(DELETE, 1, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(counts(m).forks, 1);
	assert_int_equal(step(m, MSG(FETCH, 1, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(sent(m, 0, 1, RP_MSG_FETCH_REPLY)->status, -ESTALE);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 1, ID(0, 1), ID(2, 2))), 0);
	/* worker 1's own DELETE left a tombstone */
	assert_int_equal(sent(m, 0, 1, RP_MSG_FORK_ACK)->status, -ESTALE);
	/* A claim in advance does not stop the true holder. */
	assert_int_equal(step(m, MSG(FORK_REQUEST, 1, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, 0);
	assert_int_equal(step(m, MSG(DELETE, 1, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(counts(m).forks, 2);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(nr_effects(m), 0);
	rp_destroy(m);
}

static void rp_owner__malformed_messages_are_refused(void **state)
{
	struct rp *m = with_value();

	(void)state;
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	/* worker 3's fork, another id */
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 5), ID(2, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(FETCH, 3, ID(0, 5), ID(2, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 5), ID(2, 2))), -EPROTO);
	/* no such rank */
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(4, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(7, 1), ID(2, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(2, 0))), -EPROTO);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 0), ID(2, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ((struct rref_id){ 2, 2, 1 }))), -EPROTO);
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(2, 2), .status = 5)), -EPROTO);
	/* from ourselves */
	assert_int_equal(step(m, MSG(DELETE, 0, ID(0, 1), ID(2, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(FETCH, 0, ID(0, 1), ID(2, 2))), -EPROTO);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 0, ID(0, 1), ID(2, 9))), -EPROTO);
	assert_int_equal(step(m,
			      EV(MSG, .peer = 3,
				 .msg = &(struct rp_msg){ .type = 0,
							  .id = ID(0, 1),
							  .fork = ID(2, 2) })),
			 -EPROTO);
	assert_int_equal(step(m,
			      EV(MSG, .peer = 3,
				 .msg = &(struct rp_msg){ .type = 99,
							  .id = ID(0, 1),
							  .fork = ID(2, 2) })),
			 -EPROTO);
	assert_int_equal(step(m, MSG(DELETE, 4, ID(0, 1), ID(2, 2))), -EINVAL);
	assert_int_equal(step(m, EV(MSG, .peer = 3)), -EINVAL);
	assert_int_equal(counts(m).refused, 14);
	assert_int_equal(counts(m).forks, 1);
	rp_destroy(m);
}

static void count_visit(void *ctx, const struct rp_visit *v)
{
	unsigned *seen = ctx;

	assert_non_null(v->state);
	*seen += v->owned ? v->fork.local_id ? 1 : 100 : 10000;
}

static void rp_owner__visits(void **state)
{
	struct rp *m = with_value();
	unsigned seen = 0;

	(void)state;
	rp_visit(m, count_visit, &seen);
	assert_int_equal(seen, 100);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(2, 2))), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 1, ID(0, 1), ID(2, 3))), 0);
	assert_int_equal(step(m, EV(CREATE, .id = ID(0, 10), .fork = ID(0, 11), .peer = 2)), 0);
	seen = 0;
	rp_visit(m, count_visit, &seen);
	assert_int_equal(seen, 10102);
	rp_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_owner__abandoned_value_is_freed_on_arrival),
		cmocka_unit_test(rp_owner__another_holders_fork_is_out_of_reach),
		cmocka_unit_test(rp_owner__bad_ids),
		cmocka_unit_test(rp_owner__creation_is_answered_when_ready),
		cmocka_unit_test(rp_owner__creation_of_foreign_ids_is_refused),
		cmocka_unit_test(rp_owner__delete_overtakes_creation),
		cmocka_unit_test(rp_owner__failure_is_told_each_time),
		cmocka_unit_test(rp_owner__fetch_parks_once),
		cmocka_unit_test(rp_owner__last_release_cancels_waits),
		cmocka_unit_test(rp_owner__last_release_frees),
		cmocka_unit_test(rp_owner__malformed_messages_are_refused),
		cmocka_unit_test(rp_owner__numbers_come_in_any_order),
		cmocka_unit_test(rp_owner__parked_fetch_ends_with_its_fork),
		cmocka_unit_test(rp_owner__quota_per_peer),
		cmocka_unit_test(rp_owner__requests_and_deletes_repeat_harmlessly),
		cmocka_unit_test(rp_owner__set_once),
		cmocka_unit_test(rp_owner__tombstones_are_bounded),
		cmocka_unit_test(rp_owner__unknown_is_answered_at_once),
		cmocka_unit_test(rp_owner__value_of_a_holder),
		cmocka_unit_test(rp_owner__visits),
		cmocka_unit_test(rp_owner__waits_end_once_each),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
