/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second queue pair of a connection, for READs (verbs/ibv/pair.c), with a peer that does wrong.
 * The peer is the library's own, with frames of the test's.
 */
#include "two_pairs.h"

static void say_offer_to(struct end *e, uint32_t number, uint32_t qpn, uint32_t psn)
{
	uint8_t body[RVI_OFFER_BYTES];

	put_le32(body, number);
	put_le32(body + 4, qpn);
	put_le32(body + 8, psn);
	assert_int_equal(rvi_post_frame(e->c->conn, RVI_FRAME_OFFER, body, sizeof(body)), 0);
}

static void say_ready_to(struct end *e, uint32_t number)
{
	uint8_t body[RVI_READY_BYTES];

	put_le32(body, number);
	assert_int_equal(rvi_post_frame(e->c->conn, RVI_FRAME_READY, body, sizeof(body)), 0);
}

/* Expects that a's connection ends for it, with these words in the log. */
static void must_end(const char *words)
{
	UNTIL(a.c->down);
	assert_int_equal(a.c->status, -EPROTO);
	if (!strstr(a.log, words))
		fail_msg("logged: %s", a.log);
	pair_part();
}

#define TWICE "was offered twice"
#define TURN "was offered out of its turn"
#define CANNOT "was offered that cannot be"
#define EARLY "was called ready out of its turn"

static void wrong__before_reads_are_allowed(void **state)
{
	(void)state;
	pair_meet(false, false);
	say_ready_to(&b, 1);
	must_end(EARLY);
	pair_meet(false, false);
	say_offer_to(&b, 2, 77, 1);
	must_end(TURN);
	pair_meet(false, false);
	say_offer_to(&b, 1, 77, 1);
	say_offer_to(&b, 1, 77, 1);
	must_end(TWICE);
}

static void wrong__while_the_first_is_made(void **state)
{
	(void)state;
	pair_meet(true, false);
	say_ready_to(&b, 1);
	must_end(EARLY);
	pair_meet(true, false);
	say_offer_to(&b, 2, 77, 1);
	must_end(TURN);
	pair_meet(true, false);
	UNTIL(pair_of(&a)->number);
	say_offer_to(&b, 1, 77, 1);
	say_offer_to(&b, 1, 77, 1);
	must_end(TURN);
	pair_meet(true, false);
	UNTIL(pair_of(&a)->number);
	say_offer_to(&b, 1, 77, 1);
	say_ready_to(&b, 2);
	must_end(EARLY);
}

static void wrong__with_one_that_works(void **state)
{
	(void)state;
	pair_meet_up();
	say_ready_to(&b, 1);
	must_end(EARLY);
	for (uint32_t number = 0; number < 5; number++) {
		if (number == 2)
			continue;
		pair_meet_up();
		say_offer_to(&b, number, 77, 1);
		must_end(TURN);
	}
}

static void wrong__numbers(void **state)
{
	static const uint32_t bad[][2] = {
		{ 0, 0 },
		{ 1, 0 },
		{ 1u << 24, 0 },
		{ UINT32_MAX, 0 },
		{ 77, 1u << 24 },
		{ 77, UINT32_MAX },
	};

	(void)state;
	for (unsigned i = 0; i < array_size(bad); i++) {
		pair_meet(true, false);
		say_offer_to(&b, 1, bad[i][0], bad[i][1]);
		must_end(CANNOT);
		pair_meet_up();
		say_offer_to(&b, 2, bad[i][0], bad[i][1]);
		must_end(CANNOT);
	}
}

/* Has b take a's answers to frames of the test's. */
static void play_along(void)
{
	UNTIL(pair_of(&b)->peer_qpn);
	pair_of(&b)->number = 1;
	pair_of(&b)->state = RVI_PAIR_LINKED;
}

/* Names a queue pair of nobody's: READs over it meet silence. */
static void wrong__another_queue_pair(void **state)
{
	(void)state;
	pair_meet(true, false);
	play_along();
	say_offer_to(&b, 1, 0xabcdef, 1);
	say_ready_to(&b, 1);
	UNTIL(a.c->reads_up);
	post_one_read(&a, &b, 0, true);
	UNTIL(a.c->down);
	assert_int_equal(a.c->status, -ETIMEDOUT);
	assert_int_equal(a.node.read_status[0], -ETIMEDOUT);
	pair_part();
}

static void never__the_first(void **state)
{
	(void)state;
	pair_meet(true, false);
	/* A peer that says nothing has its core's time. */
	UNTIL(pair_of(&a)->number);
	assert_int_equal(a.c->conn->deadline_ns, 0);
	/* A peer that sends messages is awake. */
	assert_int_equal(tlv_send_next(b.c, 40), 0);
	UNTIL(a.c->nr_recv);
	assert_true(a.c->conn->deadline_ns > now_ns());
	rvi_conn_deadline(a.c->conn, now_ns());
	UNTIL(a.c->down);
	assert_int_equal(a.c->status, -ETIMEDOUT);
	assert_non_null(strstr(a.log, "did not make its queue pair for READs in time"));
	pair_part();
}

static void never__the_next(void **state)
{
	(void)state;
	connect_ns = 100 * NSEC_PER_MSEC;
	pair_meet_up();
	connect_ns = 60 * NSEC_PER_SEC;
	b.node.allow = false;
	post_one_read(&a, &b, 0, false);
	UNTIL(a.c->down);
	assert_int_equal(a.c->status, -ETIMEDOUT);
	assert_int_equal(a.node.read_status[0], -EACCES);
	assert_non_null(strstr(a.log, "did not make its queue pair for READs in time"));
	pair_part();
}

/* Connects both, and lets b offer a queue pair. Its ready is the test's. */
static void meet_linked(void)
{
	pair_meet(true, false);
	play_along();
	say_offer_to(&b, 1, 77, 1);
	UNTIL(pair_of(&a)->state == RVI_PAIR_LINKED);
}

/* Offers a queue pair, and never calls it ready. */
static void never__ready(void **state)
{
	(void)state;
	meet_linked();
	assert_int_equal(tlv_send_next(b.c, 40), 0);
	UNTIL(a.c->nr_recv);
	assert_true(a.c->conn->deadline_ns > now_ns());
	rvi_conn_deadline(a.c->conn, now_ns());
	UNTIL(a.c->down);
	assert_int_equal(a.c->status, -ETIMEDOUT);
	pair_part();
}

/* Returns whether no frame is under way. */
static bool all_is_sent(const struct end *e)
{
	const struct rv_conn *conn = e->c->conn;

	for (uint32_t i = 0; i < conn->dev->nr_sends; i++)
		if (conn->sends[i].gen & 1)
			return false;
	return true;
}

/* Keeps a connection whose peer computes for long after its first message. */
static void silent__keeps_its_connection(void **state)
{
	(void)state;
	pair_meet(true, false);
	pump_both();
	assert_int_equal(tlv_send_next(b.c, 40), 0);
	UNTIL(a.c->nr_recv);
	pair_of(&a)->heard_at -= 31 * NSEC_PER_SEC;
	rvi_conn_deadline(a.c->conn, now_ns());
	UNTIL(!a.c->conn->deadline_ns);
	assert_false(a.c->down);
	/* the peer is awake again */
	assert_int_equal(tlv_send_next(b.c, 40), 0);
	UNTIL(a.c->nr_recv == 2);
	assert_true(a.c->conn->deadline_ns > now_ns());
	assert_false(a.c->down);
	pair_part();
}

/* Hears that the other side is ready while the offer has found no room. */
static void wrong__ready_without_an_offer(void **state)
{
	(void)state;
	meet_linked();
	UNTIL(all_is_sent(&a)); /* the end of a send would say it again */
	pair_of(&a)->say_offer = true;
	say_ready_to(&b, 1);
	UNTIL(a.c->down);
	assert_int_equal(a.c->status, -EPROTO);
	assert_int_equal(a.c->conn->reads_open, 0);
	pair_part();
}

/* Hears that the other side is ready before our own word of it has found room. */
static void ready__behind_our_own(void **state)
{
	(void)state;
	meet_linked();
	UNTIL(all_is_sent(&a)); /* the end of a send would say it again */
	pair_of(&a)->say_ready = true;
	say_ready_to(&b, 1);
	UNTIL(pair_of(&a)->peer_ready);
	assert_false(a.c->reads_up);
	assert_int_equal(pair_of(&a)->state, RVI_PAIR_LINKED);
	pair_of(&a)->say_ready = false; /* said */
	assert_int_equal(tlv_send_next(a.c, 40), 0);
	UNTIL(a.c->reads_up);
	assert_int_equal(pair_of(&a)->state, RVI_PAIR_READY);
	pair_part();
}

#define TEST(f) cmocka_unit_test(f)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(never__ready),
		TEST(never__the_first),
		TEST(never__the_next),
		TEST(ready__behind_our_own),
		TEST(silent__keeps_its_connection),
		TEST(wrong__another_queue_pair),
		TEST(wrong__before_reads_are_allowed),
		TEST(wrong__numbers),
		TEST(wrong__ready_without_an_offer),
		TEST(wrong__while_the_first_is_made),
		TEST(wrong__with_one_that_works),
	};

	setenv("RREF_TEST_DEVICE", "ibv", 1);
	tlv_ops = &rv_ibv_ops;
	return cmocka_run_group_tests_name("a pair with a foe (fake)", tests, NULL, NULL);
}
