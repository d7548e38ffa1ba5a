/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A side that stood still itself while a deadline passed. News that came meanwhile counts, although
 * the timer has fired.
 */
#include "two_pairs.h"

/* Lets the time of e's connection be over. */
static void be_late(struct end *e)
{
	assert_true(e->c->conn->deadline_ns > now_ns());
	rvi_conn_deadline(e->c->conn, now_ns());
}

#define UNTIL_ONE(e, cond) \
	do { \
		int64_t end_ = tlv_deadline_ns(); \
		while (!(cond)) { \
			assert_true(now_ns() < end_); \
			tlv_pump(&(e)->node, 0, -1); \
		} \
	} while (0)

static bool is_in(const struct end *e, enum rvi_pair_state state, uint32_t number)
{
	return pair_of(e)->state == state && pair_of(e)->number == number;
}

static void late__for_the_next_pair(void **state)
{
	(void)state;
	pair_meet_up();
	post_one_read(&a, &b, 0, false);
	/* A busy machine may let one round go through several states. */
	UNTIL(pair_of(&a)->number == 2 && pair_of(&a)->state != RVI_PAIR_MAKING);
	UNTIL_ONE(&b, is_in(&b, RVI_PAIR_LINKED, 2) || is_in(&b, RVI_PAIR_READY, 2));
	/* b's offer and its ready lie in a's queue, or a has taken them in. */
	if (a.c->conn->deadline_ns)
		be_late(&a);
	UNTIL_ONE(&a, a.c->reads_up || a.c->down);
	assert_false(a.c->down);
	if (b.c->conn->deadline_ns)
		be_late(&b);
	UNTIL_ONE(&b, b.c->reads_up || b.c->down);
	assert_false(b.c->down);
	must_read(&a, &b);
	must_read(&b, &a);
	pair_part();
}

/* Lets the time pass while this side's own device is at it. */
static void late__for_its_own_device(void **state)
{
	uint64_t held = fv_count(1).held_destroys;

	(void)state;
	pair_meet(true, true);
	UNTIL(a.c->reads_up && b.c->reads_up);
	fv_knobs(1)->hold_destroys = 1;
	post_one_read(&b, &a, 0, false);
	UNTIL(fv_count(1).held_destroys > held && is_in(&a, RVI_PAIR_OFFERED, 2));
	rvi_conn_deadline(b.c->conn, now_ns());
	UNTIL_ONE(&b, !b.c->conn->deadline_ns);
	assert_false(b.c->down);
	fv_knobs(1)->hold_destroys = 0;
	UNTIL(a.c->reads_up && b.c->reads_up);
	must_read(&b, &a);
	pair_part();
}

/* Lets the time pass before each step of a connect. */
static void late__for_each_step(void **state)
{
	enum rvi_state last = RVI_FREE;

	(void)state;
	open_one_end(&a);
	open_one_end(&b);
	a.node.allow = b.node.allow = true;
	a.c = tlv_connect(&a.node, &b.node.addr, "hello", 5);
	for (int64_t end = tlv_deadline_ns(); !a.c->up;) {
		enum rvi_state now = rvi_state(a.c->conn);

		assert_true(now_ns() < end);
		if (now == RVI_CONNECTING)
			UNTIL_ONE(&b, b.node.nr_conns && b.node.conns[0].conn);
		if (now == RVI_CONNECTING)
			UNTIL_ONE(&b, rvi_state(b.node.conns[0].conn) == RVI_ACCEPTING);
		if (now != last)
			be_late(&a);
		last = now;
		tlv_pump(&a.node, 0, -1);
		assert_false(a.c->failed);
	}
	b.c = &b.node.conns[0];
	UNTIL(a.c->reads_up && b.c->reads_up);
	pair_part();
}

/* Has a message stand for a confirmation that was lost. */
static void late__for_a_message_that_confirms(void **state)
{
	struct rdma_cm_event *e;

	(void)state;
	open_one_end(&a);
	open_one_end(&b);
	a.c = tlv_connect(&a.node, &b.node.addr, "hello", 5);
	UNTIL_ONE(&a, rvi_state(a.c->conn) == RVI_CONNECTING);
	UNTIL_ONE(&b, b.node.nr_conns && rvi_state(b.node.conns[0].conn) == RVI_ACCEPTING);
	b.c = &b.node.conns[0];
	UNTIL_ONE(&a, a.c->up);
	assert_int_equal(rdma_get_cm_event(b.node.dev->cm, &e), 0);
	assert_int_equal(e->event, RDMA_CM_EVENT_ESTABLISHED);
	rdma_ack_cm_event(e);
	assert_int_equal(tlv_send_next(a.c, 40), 0);
	for (int64_t until = now_ns() + 5 * NSEC_PER_MSEC; now_ns() < until;)
		cpu_relax();
	be_late(&b);
	UNTIL_ONE(&b, b.c->up || b.c->failed);
	assert_true(b.c->up);
	pair_part();
}

/* Has READs that the device forgets end as those without an answer. Others end in time. */
static void late__reads_that_stand_still(void **state)
{
	(void)state;
	pair_meet_up();
	must_read(&a, &b);
	fv_knobs(0)->strand_reads = 1;
	post_one_read(&a, &b, 0, true);
	post_one_read(&a, &b, 1, true);
	UNTIL(a.c->down && a.node.read_status[0] != TLV_UNFINISHED &&
	      a.node.read_status[1] != TLV_UNFINISHED);
	assert_int_equal(fv_knobs(0)->strand_reads, 0);
	assert_int_equal(a.node.read_reports[0], 1);
	assert_int_equal(a.node.read_reports[1], 1);
	assert_true(a.node.read_status[0] < 0 && a.node.read_status[1] < 0);
	pair_part();
}

/* Lets the time pass while READs are over that this side has not taken in. */
static void late__reads_that_are_over(void **state)
{
	struct rv_event e;

	(void)state;
	pair_meet_up();
	must_read(&a, &b);
	post_one_read(&a, &b, 0, true);
	for (int64_t end = tlv_deadline_ns(); !pair_of(&a)->still_looks;) {
		assert_true(now_ns() < end);
		assert_int_equal(tlv_ops->poll(a.node.dev, &e, 1, RV_POLL_SLOW), 0);
	}
	tlv_sleep_ms((int)(4 * a.node.dev->patience_ns / NSEC_PER_MSEC));
	for (int i = 0; i < 3; i++)
		assert_int_equal(tlv_ops->poll(a.node.dev, &e, 1, RV_POLL_SLOW), 0);
	UNTIL(a.node.read_status[0] != TLV_UNFINISHED);
	assert_int_equal(a.node.read_status[0], 0);
	assert_false(a.c->down);
	pair_part();
}

#define TEST(f) cmocka_unit_test(f)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(late__for_a_message_that_confirms),
		TEST(late__for_each_step),
		TEST(late__for_its_own_device),
		TEST(late__for_the_next_pair),
		TEST(late__reads_that_are_over),
		TEST(late__reads_that_stand_still),
	};

	setenv("RREF_TEST_DEVICE", "ibv", 1);
	tlv_ops = &rv_ibv_ops;
	return cmocka_run_group_tests_name("late (fake)", tests, NULL, NULL);
}
