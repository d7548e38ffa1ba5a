/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The duties of every provider of verbs/rv.h, tried with real processes: RREF_TEST_DEVICE = shm
 * (default) | ibv. This part has devices, connections and messages. reads_test.c, refused_test.c
 * and ends_test.c have the others. Counts and behaviour are asserted, never times; every wait has a
 * deadline (test/lib/tl_rv.h). A device is opened only after the fork, in the process that uses it.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pair.h"

/* --- open, connect ---------------------------------------------------------------------------- */

static void open__tells_its_limits(void **state)
{
	struct rv_options opt = {.max_reads = 32};

	(void)state;
	assert_int_equal(tlv_open(&me, &opt), 0);
	assert_true(me.caps.max_msg >= MIB);
	assert_in_range(me.caps.max_reads, 1, 32);
	assert_int_equal(me.caps.reads_inline, tlv_is_shm());
	assert_true(strlen(me.caps.device) > 0);
	assert_in_range(me.addr.len, 1, RV_ADDR_MAX);
	assert_int_equal(me.ops->reach(me.dev, &me.addr), 0);
	assert_true(me.ops->fd(me.dev) >= 0);
	me.ops->close_conn(NULL);
	me.ops->close(NULL);
}

static void open__too_few_credits(void **state)
{
	struct rv_options opt = {.credits = 3, .gid_index = -1};
	struct rv_dev *dev = NULL;

	(void)state;
	assert_int_equal(tlv_ops->open(&opt, &dev), -EINVAL);
	assert_null(dev);
	assert_true(strlen(rv_error_text()) > 0);
}

static void reach__not_an_address(void **state)
{
	struct rv_addr bad = {.len = 3, .bytes = "xyz"};

	(void)state;
	assert_int_equal(tlv_open(&me, NULL), 0);
	assert_int_equal(me.ops->reach(me.dev, &bad), -EHOSTUNREACH);
	assert_true(strlen(rv_error_text()) > 0);
}

static void connect__carries_hello_and_answer(void **state)
{
	const size_t hello_sizes[] = {0, 1, RV_HELLO_MAX}, answer_sizes[] = {RV_ANSWER_MAX, 0, 1};
	unsigned char hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX];

	(void)state;
	tlv_fill(hello, sizeof(hello), 1);
	tlv_fill(answer, sizeof(answer), 2);
	/* a trailing zero is content, though the wire pads with zeros */
	hello[RV_HELLO_MAX - 1] = 0;
	start(NULL, NULL);
	for (unsigned i = 0; i < array_size(hello_sizes); i++) {
		struct tlv_conn *c, other;
		char text[128];

		tlv_peer_policy(&peer, TLV_ACCEPT, TLV_COUNT, false, answer, answer_sizes[i]);
		c = tlv_connect(&me, &peer.addr, hello, hello_sizes[i]);
		assert_true(tlv_until(&me, &c->up));
		assert_int_equal(c->text_len, answer_sizes[i]);
		assert_memory_equal(c->text, answer, answer_sizes[i]);
		assert_true(tlv_peer_until_up(&peer, &me, i));
		other = tlv_peer_conn(&peer, i);
		assert_int_equal(other.text_len, hello_sizes[i]);
		assert_memory_equal(other.text, hello, hello_sizes[i]);
		assert_int_equal(other.nr_connected, 1);
		me.ops->peer_text(c->conn, text, sizeof(text));
		assert_true(strlen(text) > 0);
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__rejected_with_reason(void **state)
{
	unsigned char reason[RV_REASON_MAX];
	struct tlv_conn *c;

	(void)state;
	tlv_fill(reason, sizeof(reason), 3);
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_REJECT, TLV_COUNT, false, reason, sizeof(reason));
	c = tlv_connect(&me, &peer.addr, "x", 1);
	assert_true(tlv_until(&me, &c->failed));
	assert_int_equal(c->status, -ECONNREFUSED);
	assert_int_equal(c->text_len, sizeof(reason));
	assert_memory_equal(c->text, reason, sizeof(reason));
	assert_int_equal(c->nr_connected, 0);
	tlv_close_conn(c);
	/* Later attempts succeed. */
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, false, NULL, 0);
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__no_listener(void **state)
{
	struct tlv_conn *c;

	(void)state;
	start(NULL, NULL);
	tlv_peer_exit(&peer);
	c = tlv_connect(&me, &peer.addr, "x", 1);
	assert_true(tlv_until(&me, &c->failed));
	assert_true(c->status == -ECONNREFUSED || c->status == -ETIMEDOUT);
	assert_int_equal(c->nr_failed, 1);
	tlv_close_conn(c);
}

static void connect__listener_stopped(void **state)
{
	struct tlv_conn *c;

	(void)state;
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, false, NULL, 0);
	kill(peer.pid, SIGSTOP);
	c = tlv_connect(&me, &peer.addr, "x", 1);
	assert_true(tlv_until(&me, &c->failed));
	assert_int_equal(c->status, -ETIMEDOUT);
	tlv_close_conn(c);
	kill(peer.pid, SIGCONT);
	/* The listener now finds a request whose maker gave up, which harms no other peer. */
	c = tlv_connect(&me, &peer.addr, "x", 1);
	assert_true(tlv_until(&me, &c->up));
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__never_answered(void **state)
{
	struct tlv_conn *c;

	(void)state;
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_IGNORE, TLV_COUNT, false, NULL, 0);
	c = tlv_connect(&me, &peer.addr, "x", 1);
	assert_true(tlv_until(&me, &c->failed));
	assert_int_equal(c->status, -ETIMEDOUT);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__closed_before_it_is_up(void **state)
{
	(void)state;
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, false, NULL, 0);
	for (unsigned i = 0; i < 5; i++) {
		struct tlv_conn *c = tlv_connect(&me, &peer.addr, "x", 1);

		if (i & 1)
			tlv_pump(&me, 0, -1);
		tlv_close_conn(c);
		assert_int_equal(c->nr_failed, 0);
	}
	tlv_pump_for(&me, 100);
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__many_to_one_device(void **state)
{
	struct tlv_remote from;
	struct tlv_region *to;
	/* An emulated machine that is busy may need longer for so many than a worker has. */
	struct rv_options opt = { .gid_index = -1, .connect_ns = 20 * NSEC_PER_SEC };
	struct tlv_conn *c[64];

	(void)state;
	start(&opt, &opt);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, true, NULL, 0);
	me.allow = true;
	from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 11);
	to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	assert_non_null(to);
	for (unsigned i = 0; i < array_size(c); i++)
		c[i] = tlv_connect(&me, &peer.addr, "x", 1);
	for (unsigned i = 0; i < array_size(c); i++) {
		bool up = tlv_until(&me, &c[i]->up);

		if (!up && c[i]->failed)
			fail_msg("connection %u failed: %s", i, strerror(-c[i]->status));
		assert_true(up);
		assert_true(tlv_peer_until_up(&peer, &me, i));
	}
	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < array_size(c); i++) {
			assert_echo(c[i]);
			assert_reads(c[i], &from, 11, to);
		}
	for (unsigned i = 0; i < array_size(c); i++)
		tlv_close_conn(c[i]);
	for (unsigned i = 0; i < array_size(c); i++) {
		struct tlv_conn other;

		assert_true(tlv_peer_until_down(&peer, &me, i, &other));
		assert_int_equal(other.nr_disconnected, 1);
		assert_int_equal(other.nr_bad, 0);
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* --- messages --------------------------------------------------------------------------------- */

static void message__both_ways(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);

	(void)state;
	for (unsigned i = 0; i < 200; i++)
		assert_echo(c);
	assert_peer_received(0, 200);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void message__sizes(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	uint32_t in = min_of(max_of(me.caps.max_inline, 2u), RV_MSG_MAX - 1);
	const uint32_t sizes[] = {1, 2, 8, 9, in - 1, in, in + 1, RV_MSG_MAX - 1, RV_MSG_MAX};
	unsigned char big[RV_MSG_MAX + 1] = {0};

	(void)state;
	for (unsigned i = 0; i < array_size(sizes); i++) {
		assert_int_equal(tlv_send_next(c, sizes[i]), 0);
		assert_true(tlv_until_count(&me, &c->nr_recv, i + 1));
		assert_int_equal(c->last_len, sizes[i]);
	}
	assert_int_equal(me.ops->send(c->conn, big, 0), -EMSGSIZE);
	assert_int_equal(me.ops->send(c->conn, big, RV_MSG_MAX + 1), -EMSGSIZE);
	assert_true(strlen(rv_error_text()) > 0);
	assert_echo(c);
	assert_peer_received(0, array_size(sizes) + 1);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void message__order_under_back_pressure(void **state)
{
	struct tlv_conn *c = start_joined(TLV_HOLD);
	unsigned nr = tlv_scaled(100000);

	(void)state;
	for (unsigned i = 0; i < nr; i++)
		assert_int_equal(tlv_send_next(c, i % 97 ? 16 + i % 300 : RV_MSG_MAX), 0);
	tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_RELEASE});
	assert_peer_received(0, nr);
	assert_true(c->nr_writable > 0); /* else there was no pressure */
	assert_int_equal(me.nr_late, 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void message__kept_by_the_receiver(void **state)
{
	struct rv_options opt = {.credits = 8};
	unsigned char text[64] = {0};
	unsigned sent = 0, writable;
	struct tlv_conn *c;
	int rc;

	(void)state;
	start(NULL, &opt);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_KEEP, false, NULL, 0);
	c = join();
	while (!(rc = me.ops->send(c->conn, text, 1)) && sent < 1000)
		text[0] = (unsigned char)++sent;
	assert_int_equal(rc, -EAGAIN);
	assert_in_range(sent, 1, 8);
	assert_peer_received(0, sent);
	tlv_pump_for(&me, 50);
	assert_int_equal(me.ops->send(c->conn, text, 1), -EAGAIN);
	writable = c->nr_writable;
	assert_int_equal(writable, 0);
	tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_RELEASE});
	c->nr_sent = sent;
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(tlv_send_next(c, 1), 0);
	assert_peer_received(0, sent + 100);
	assert_true(c->nr_writable > 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void message__kept_across_close_conn(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_msg m;

	(void)state;
	me.mode = TLV_KEEP;
	m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_SEND, .a = 0, .b = 3, .c = 100});
	assert_int_equal(m.status, 0);
	assert_true(tlv_until_count(&me, &c->nr_recv, 3));
	tlv_close_conn(c);
	tlv_pump_for(&me, 20);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(get_le64(me.held[i].data), i);
		assert_int_equal(((const unsigned char *)me.held[i].data)[99], i * 7);
	}
	tlv_release_all(&me);
	assert_int_equal(c->nr_bad, 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void wake__both_sides_sleep(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	uint64_t before = me.nr_timeouts; /* connecting may have caused some */
	unsigned nr = tlv_scaled(20000);
	struct tlv_msg m;

	(void)state;
	for (unsigned i = 0; i < nr; i++) {
		assert_int_equal(tlv_send_next(c, 24), 0);
		/* A wake-up may be for messages that are in already. No
		 * wake-up within 5 s is a lost one. */
		while (c->nr_recv < i + 1) {
			assert_true(tlv_pump(&me, 5000, -1) >= 0);
			assert_int_equal(me.nr_timeouts, before);
		}
	}
	m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_STATE});
	assert_int_equal(me.nr_late, 0);
	assert_int_equal(m.d, 0);
	assert_int_equal(c->nr_bad, 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(connect__carries_hello_and_answer),
		TEST(connect__closed_before_it_is_up),
		TEST(connect__listener_stopped),
		TEST(connect__many_to_one_device),
		TEST(connect__never_answered),
		TEST(connect__no_listener),
		TEST(connect__rejected_with_reason),
		TEST(message__both_ways),
		TEST(message__kept_across_close_conn),
		TEST(message__kept_by_the_receiver),
		TEST(message__order_under_back_pressure),
		TEST(message__sizes),
		TEST(open__tells_its_limits),
		TEST(open__too_few_credits),
		TEST(reach__not_an_address),
		TEST(wake__both_sides_sleep),
	};

	tlv_ops = tlv_is_shm() ? &rv_shm_ops : &rv_ibv_ops;
	return cmocka_run_group_tests_name(tlv_is_shm() ? "connections (shm)" : "connections (ibv)",
					   tests, NULL, NULL);
}
