/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two queue pairs of a connection: verbs/ibv/pair.c. The one for READs ends, and is made again.
 */
#include "two_pairs.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"

/* ---- a READ is refused ---- */

static void refused__messages_go_on(void **state)
{
	uint32_t first;

	(void)state;
	pair_meet_up();
	must_read(&a, &b);
	must_read(&b, &a);
	first = a.c->conn->reads_qp->qp_num;
	b.node.allow = false; /* so that READs stay away for as long as the test wants */
	post_one_read(&a, &b, 0, false);
	post_one_read(&a, &b, 1, true);
	UNTIL(a.c->nr_reads_down && b.c->nr_reads_down);
	assert_int_equal(a.node.read_status[0], -EACCES);
	assert_int_equal(a.node.read_status[1], -ECONNRESET);
	assert_int_equal(a.node.ops->post_reads(a.c->conn,
						&(struct rv_read){ .cookie = 9 }, 1),
			 -EAGAIN);
	must_echo(200);
	assert_false(a.c->down || b.c->down || a.c->reads_up || b.c->reads_up);
	b.node.allow = true;
	assert_int_equal(b.node.ops->allow_reads(b.c->conn), 0);
	UNTIL(a.c->reads_up && b.c->reads_up);
	must_read(&a, &b);
	must_read(&b, &a);
	assert_int_not_equal(a.c->conn->reads_qp->qp_num, first);
	assert_int_equal(pair_of(&a)->number, 2);
	assert_int_equal(a.c->nr_reads_down + b.c->nr_reads_down, 2);
	assert_int_equal(a.node.read_reports[0] + a.node.read_reports[1], 2);
	pair_part();
}

/* Posts to a queue pair in error that takes no request. Only READs are cut off. */
static void refused__post_in_error(void **state)
{
	struct rv_read r[2];

	(void)state;
	pair_meet_up();
	fv_knobs(1)->refuse_in_error = 1;
	post_one_read(&a, &b, 0, false);
	for (int64_t end = tlv_deadline_ns(); a.node.read_status[0] == TLV_UNFINISHED;) {
		assert_true(now_ns() < end);
		tlv_pump(&a.node, 0, -1);
	}
	r[0] = read_for(&b, &a, 64, 64);
	r[1] = read_for(&b, &a, 128, 64);
	assert_int_equal(b.node.ops->post_reads(b.c->conn, r, 1), -EAGAIN);
	assert_int_equal(b.node.ops->post_reads(b.c->conn, r, 2), -EAGAIN);
	UNTIL(b.c->nr_reads_down && b.c->reads_up && a.c->reads_up);
	fv_knobs(1)->refuse_in_error = 0;
	assert_false(a.c->down || b.c->down);
	must_echo(20);
	must_read(&a, &b);
	must_read(&b, &a);
	pair_part();
}

/* Tells whether the READs were cut off since, and are back. */
static bool went_and_came(const struct end *e, unsigned downs)
{
	return e->c->nr_reads_down > downs && e->c->reads_up;
}

static void reported_once(const struct end *e, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		assert_int_equal(e->node.read_reports[i], 1);
}

/* Has both leave the pair, together or one after the other. The moment makes no difference. */
static void refused__on_both_sides_at_once(void **state)
{
	(void)state;
	pair_meet_up();
	for (unsigned round = 0; round < 300; round++) {
		unsigned downs = a.c->nr_reads_down;

		for (unsigned i = 0; i < 8; i++) {
			post_one_read(&a, &b, i, i != round % 8);
			post_one_read(&b, &a, i, i != round / 8 % 8);
		}
		for (unsigned i = 0; i < round % 5; i++)
			tlv_pump(round & 1 ? &a.node : &b.node, 0, -1);
		UNTIL(went_and_came(&a, downs) && went_and_came(&b, downs));
		reported_once(&a, 8);
		reported_once(&b, 8);
		assert_int_equal(pair_of(&a)->number, pair_of(&b)->number);
		must_read(&a, &b);
		must_read(&b, &a);
		must_echo(1);
	}
	assert_false(a.c->down || b.c->down);
	pair_part();
}

/* Checks that the queue pair for messages gives no access, and the other reads alone. */
static void messages__give_no_access(void **state)
{
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attr;

	(void)state;
	pair_meet_up();
	assert_int_equal(ibv_query_qp(b.c->conn->qp, &attr, IBV_QP_ACCESS_FLAGS, &init), 0);
	assert_int_equal(attr.qp_access_flags, 0);
	assert_non_null(init.srq);
	assert_int_equal(ibv_query_qp(b.c->conn->reads_qp, &attr, IBV_QP_ACCESS_FLAGS, &init), 0);
	assert_int_equal(attr.qp_access_flags, IBV_ACCESS_REMOTE_READ);
	assert_null(init.srq);
	pair_part();
}

/* ---- a frame finds no room, while no send is under way ---- */

static void no_room__for_the_next_pair(void **state)
{
	(void)state;
	for (int n = 1; n < 5; n++) {
		pair_meet_up();
		must_echo(1);
		post_one_read(&a, &b, 0, false);
		fv_knobs(n & 1)->no_room = n;
		UNTIL(a.c->nr_reads_down && b.c->nr_reads_down && a.c->reads_up && b.c->reads_up);
		assert_int_equal(fv_knobs(n & 1)->no_room, 0);
		must_read(&a, &b);
		must_read(&b, &a);
		pair_part();
	}
}

static void no_room__for_credits(void **state)
{
	unsigned sent = 0, writable;

	(void)state;
	pair_meet_up();
	b.node.mode = TLV_COUNT;
	fv_knobs(1)->no_room = 1 << 30;
	writable = a.c->nr_writable;
	while (a.node.ops->send(a.c->conn, "m", 1) == 0) {
		sent++;
		pump_both();
	}
	UNTIL(b.c->nr_recv == sent);
	assert_int_equal(a.c->nr_writable, writable);
	fv_knobs(1)->no_room = 0;
	UNTIL(a.c->nr_writable > writable);
	pair_part();
}

static void no_room__for_a_message(void **state)
{
	(void)state;
	pair_meet_up();
	must_echo(1);
	fv_knobs(0)->no_room = 3;
	assert_int_equal(a.node.ops->send(a.c->conn, "m", 1), -EAGAIN);
	UNTIL(a.c->nr_writable);
	fv_knobs(0)->no_room = 0;
	must_echo(20);
	pair_part();
}

/* ---- the fence ---- */

/* Closes the connection at each step of a pair's life, with READs under way. Each is reported once,
 * and nothing is written behind the fence. */
static void fence__at_each_step(void **state)
{
	static unsigned char before[BYTES];

	(void)state;
	for (unsigned steps = 0; steps < 60; steps++) {
		pair_meet_up();
		fv_knobs(0)->delay_ns = 200 * NSEC_PER_USEC;
		for (unsigned i = 0; i < NR; i++)
			post_one_read(&a, &b, i, i != 20);
		for (unsigned i = 0; i < steps; i++)
			tlv_pump(i % 3 ? &a.node : &b.node, 0, -1);
		tlv_close_conn(a.c);
		UNTIL(!a.c->closes);
		memcpy(before, a.mine->mem, BYTES);
		for (unsigned i = 0; i < NR; i++)
			UNTIL(a.node.read_reports[i]);
		for (int64_t end = now_ns() + NSEC_PER_MSEC; now_ns() < end;)
			pump_both();
		assert_memory_equal(before, a.mine->mem, BYTES);
		reported_once(&a, NR);
		for (unsigned i = 20; i < NR; i++)
			assert_true(a.node.read_status[i] < 0);
		UNTIL(b.c->down);
		fv_knobs(0)->delay_ns = 2000;
		pair_part();
	}
}

/* ---- the helper makes another ---- */

/* Has b lose the pair while its device holds destroys. */
static void lose_while_held(void)
{
	uint64_t held = fv_count(1).held_destroys;

	pair_meet_up();
	fv_knobs(1)->hold_destroys = 1;
	for (unsigned i = 0; i < NR; i++)
		post_one_read(&b, &a, i, i != 20);
	UNTIL(fv_count(1).held_destroys > held);
	for (unsigned i = 21; i < NR; i++)
		assert_true(b.node.read_status[i] != 0);
}

/* Sees that nobody waits for the device, and that nothing is read before it is done. */
static void again__device_is_slow(void **state)
{
	unsigned nr = 0;

	(void)state;
	lose_while_held();
	must_echo(200);
	assert_false(a.c->reads_up || b.c->reads_up || a.c->down || b.c->down);
	assert_int_equal(pair_of(&b)->state, RVI_PAIR_MAKING);
	assert_int_equal(pair_of(&b)->number, 1);
	fv_knobs(1)->hold_destroys = 0;
	UNTIL(a.c->reads_up && b.c->reads_up);
	for (unsigned i = 0; i < NR; i++)
		nr += b.node.read_status[i] == 0;
	assert_int_equal(nr, 20);
	reported_once(&b, NR);
	must_read(&a, &b);
	must_read(&b, &a);
	pair_part();
}

/* Ends the connection meanwhile, from either side. */
static void again__connection_ends(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		lose_while_held();
		tlv_close_conn(round & 1 ? a.c : b.c);
		for (unsigned i = 0; i < round; i++)
			pump_both();
		if (round & 1) {
			UNTIL(b.c->down);
			tlv_close_conn(b.c);
		}
		assert_true(b.c->closes);
		fv_knobs(1)->hold_destroys = 0;
		UNTIL(!b.c->closes);
		reported_once(&b, NR);
		pair_part();
	}
}

static void *open_one(void *done)
{
	rb_close(RB_OPEN(eventfd(0, EFD_CLOEXEC)));
	at_store_rel((_Atomic bool *)done, true);
	return NULL;
}

static void *fork_one(void *done)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	at_store_rel((_Atomic bool *)done, true);
	return NULL;
}

/* Stands in the making of a queue pair. Only fork(2) waits for it. */
static void again__device_is_slow_to_make_one(void **state)
{
	_Atomic bool opened = false, forked = false;
	uint64_t held = fv_count(1).held_creates;
	pthread_t opens, forks;

	(void)state;
	pair_meet_up();
	fv_knobs(1)->hold_creates = 1;
	post_one_read(&b, &a, 0, false);
	UNTIL(fv_count(1).held_creates > held);
	assert_int_equal(pthread_create(&forks, NULL, fork_one, &forked), 0);
	assert_int_equal(pthread_create(&opens, NULL, open_one, &opened), 0);
	UNTIL(at_load_acq(&opened));
	must_echo(20);
	assert_false(at_load_acq(&forked));
	fv_knobs(1)->hold_creates = 0;
	UNTIL(at_load_acq(&forked) && a.c->reads_up && b.c->reads_up);
	assert_int_equal(pthread_join(opens, NULL), 0);
	assert_int_equal(pthread_join(forks, NULL), 0);
	pair_part();
}

static void again__destroy_fails(void **state)
{
	(void)state;
	pair_meet_up();
	fv_knobs(1)->fail_destroys = 3;
	post_one_read(&b, &a, 0, false);
	UNTIL(b.c->nr_reads_down && b.c->reads_up && a.c->reads_up);
	assert_int_equal(fv_knobs(1)->fail_destroys, 0);
	must_read(&b, &a);
	/* All tries fail: the connection has to end. */
	fv_knobs(1)->fail_destroys = 1000;
	post_one_read(&b, &a, 0, false);
	UNTIL(b.c->down);
	assert_int_equal(b.c->status, -EBUSY);
	assert_non_null(strstr(b.log, "cannot be ended"));
	fv_knobs(1)->fail_destroys = 0;
	pair_part();
}

/* Says so if the device may go on serving the peer. */
static void end__stops_fail_too(void **state)
{
	(void)state;
	for (int stops = 0; stops < 2; stops++) {
		pair_meet_up();
		fv_knobs(1)->fail_destroys = 1000;
		fv_knobs(1)->fail_stops = stops * 1000;
		tlv_close_conn(b.c);
		UNTIL(!b.c->closes);
		assert_non_null(strstr(b.log, stops ? "cannot be stopped or destroyed"
						    : "cannot be destroyed"));
		assert_int_equal(!!strstr(b.log, "Its peer may read"), stops);
		fv_knobs(1)->fail_destroys = fv_knobs(1)->fail_stops = 0;
		pair_part();
	}
}

/* Ends the connection when no queue pair is left. The session will try another. */
static void again__create_fails(void **state)
{
	(void)state;
	pair_meet_up();
	fv_knobs(1)->fail_creates = 1;
	for (unsigned i = 0; i < NR; i++)
		post_one_read(&b, &a, i, i != 20);
	UNTIL(b.c->down && a.c->down);
	assert_int_equal(b.c->status, -ENOMEM);
	assert_non_null(strstr(b.log, "cannot create a queue pair for READs"));
	assert_int_equal(fv_knobs(1)->fail_creates, 0);
	tlv_close_conn(b.c);
	UNTIL(!b.c->closes);
	reported_once(&b, NR);
	pair_part();
}

#define TEST(f) cmocka_unit_test(f)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(again__connection_ends),
		TEST(again__create_fails),
		TEST(again__destroy_fails),
		TEST(again__device_is_slow),
		TEST(again__device_is_slow_to_make_one),
		TEST(end__stops_fail_too),
		TEST(fence__at_each_step),
		TEST(messages__give_no_access),
		TEST(no_room__for_a_message),
		TEST(no_room__for_credits),
		TEST(no_room__for_the_next_pair),
		TEST(refused__messages_go_on),
		TEST(refused__on_both_sides_at_once),
		TEST(refused__post_in_error),
	};

	setenv("RREF_TEST_DEVICE", "ibv", 1);
	tlv_ops = &rv_ibv_ops;
	return cmocka_run_group_tests_name("two pairs (fake)", tests, NULL, NULL);
}
