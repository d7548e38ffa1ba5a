/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device whose queue of messages is never empty. Ends of other connections and deadlines come
 * behind the messages that came before them, and behind no more.
 */
#include "two_pairs.h"

static struct end c; /* floods a */

static void flood_meet(void)
{
	struct rv_options o = {
		.device = "fake2", .gid_index = -1, .silence_ns = 20 * NSEC_PER_MSEC
	};

	pair_meet_up();
	memset(&c, 0, sizeof(c));
	c.node.ops = tlv_ops;
	assert_int_equal(tlv_ops->open(&o, &c.node.dev), 0);
	c.c = tlv_connect(&c.node, &a.node.addr, "hello", 5);
	for (int64_t end = tlv_deadline_ns(); !c.c->up; pump_both()) {
		assert_true(now_ns() < end);
		tlv_pump(&c.node, 0, -1);
	}
}

static void flood_part(void)
{
	tlv_close(&c.node);
	pair_part();
}

/* Lets a take one event beside a message that waits. Returns its type. */
static enum rv_event_type one_event(void)
{
	unsigned char message[40] = { 0 };
	struct rv_event e;
	bool more;
	int rc;

	/* Sends as many as a takes: more than one for each poll. */
	while (!(rc = tlv_ops->send(c.c->conn, message, sizeof(message))))
		;
	assert_int_equal(rc, -EAGAIN);
	tlv_pump(&c.node, 0, -1);
	tlv_take_reads(&a.node, &more); /* ends of its own messages, too */
	if (!tlv_ops->poll(a.node.dev, &e, 1, RV_POLL_SLOW))
		return 0;
	if (e.type == RV_EV_RECV)
		tlv_ops->recv_done(a.node.dev, e.token);
	return e.type;
}

/* Has a hear that b left, while c floods it. */
static void flood__ends_are_reported(void **state)
{
	uint64_t bound, taken = 0;
	enum rv_event_type type;

	(void)state;
	flood_meet();
	bound = a.node.dev->stash_max;
	tlv_close_conn(b.c);
	for (int64_t end = tlv_deadline_ns(); (type = one_event()) != RV_EV_DISCONNECTED;) {
		assert_true(now_ns() < end);
		assert_true(type == RV_EV_RECV || !taken);
		if (rvi_state(a.c->conn) == RVI_DOWN)
			assert_true(++taken <= bound + 2);
	}
	assert_true(taken >= bound);

	/* The fence: its READ and its end come, too. */
	tlv_close_conn(a.c);
	for (int64_t end = tlv_deadline_ns(); a.c->closes; taken++) {
		assert_true(now_ns() < end);
		if (one_event() == RV_EV_CLOSED)
			a.c->closes = false;
	}
	flood_part();
}

/* Has a deadline pass, while c floods a. */
static void flood__deadlines_pass(void **state)
{
	uint64_t bound, taken = 0;

	(void)state;
	flood_meet();
	bound = a.node.dev->stash_max;
	rvi_conn_deadline(a.c->conn, now_ns() + 1);
	for (int64_t end = tlv_deadline_ns(); a.c->conn->deadline_ns;) {
		assert_true(now_ns() < end);
		one_event();
		if (a.node.dev->timer_waits)
			assert_true(++taken <= bound + 2);
	}
	assert_true(taken + 2 >= bound);
	flood_part();
}

#define TEST(f) cmocka_unit_test(f)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(flood__ends_are_reported),
		TEST(flood__deadlines_pass),
	};

	setenv("RREF_TEST_DEVICE", "ibv", 1);
	tlv_ops = &rv_ibv_ops;
	return cmocka_run_group_tests_name("flood (fake)", tests, NULL, NULL);
}
