/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every provider of verbs/rv.h must do, tried with real processes: RREF_TEST_DEVICE = shm (default) | ibv.
 * Counts and behaviour are asserted, never times; every wait has a deadline (test/lib/tl_rv.h). A device is opened
 * only after the fork, in the process that uses it.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "test/lib/tl_rv.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER 1
#else
#define UNDER_SANITIZER 0
#endif

#define MIB ((size_t)1 << 20)

static struct tlv_node me;
static struct tlv_peer peer;

static int teardown(void **state)
{
	(void)state;
	tlv_close(&me);
	tlv_peer_reap(&peer);
	return 0;
}

static void start(const struct rv_options *mine, const struct rv_options *theirs)
{
	tlv_fork(&peer);
	tlv_peer_open(&peer, theirs);
	assert_int_equal(tlv_open(&me, mine), 0);
}

static struct tlv_conn *join(void)
{
	unsigned before = (unsigned)tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_STATE}).a;
	struct tlv_conn *c = tlv_connect(&me, &peer.addr, "hello", 5);

	assert_int_equal(c->status, 0);
	assert_true(tlv_until(&me, &c->up));
	assert_true(tlv_peer_until_up(&peer, &me, before));
	return c;
}

/* Two processes, one connection, READs allowed both ways, the peer in that mode. */
static struct tlv_conn *start_joined(enum tlv_mode mode)
{
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, mode, true, NULL, 0);
	me.allow = true;
	return join();
}

static void assert_peer_received(unsigned index, uint64_t nr)
{
	int64_t deadline = tlv_deadline_ns();
	struct tlv_conn c;

	do {
		c = tlv_peer_conn(&peer, index);
		tlv_pump(&me, 0, -1);
	} while (c.nr_recv < nr && now_ns() < deadline);
	assert_int_equal(c.nr_recv, nr);
	assert_int_equal(c.nr_bad, 0);
}

static void assert_echo(struct tlv_conn *c)
{
	uint64_t target = c->nr_recv + 1;

	assert_int_equal(tlv_send_next(c, 32), 0);
	assert_true(tlv_until_count(&me, &c->nr_recv, target));
	assert_int_equal(c->nr_bad, 0);
}

static void assert_reads(struct tlv_conn *c, const struct tlv_remote *from, uint64_t seed, struct tlv_region *to)
{
	assert_int_equal(tlv_read(c, from, 100, to, 1000), 0);
	assert_int_equal(tlv_differs(to->mem, 1000, seed, 100), -1);
}

/* --- open, connect ------------------------------------------------------------------------------------------ */

static void open__tells_what_it_can(void **state)
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
	hello[RV_HELLO_MAX - 1] = 0; /* a trailing zero is content, though the wire pads with zeros */
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
	/* It is no grudge. */
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, false, NULL, 0);
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__nobody_there(void **state)
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
	/* It now finds a request whose maker gave up; that harms nobody. */
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
	struct tlv_conn *c[64];

	(void)state;
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, true, NULL, 0);
	from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 11);
	to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	assert_non_null(to);
	for (unsigned i = 0; i < array_size(c); i++)
		c[i] = tlv_connect(&me, &peer.addr, "x", 1);
	for (unsigned i = 0; i < array_size(c); i++) {
		assert_true(tlv_until(&me, &c[i]->up));
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

/* --- messages ----------------------------------------------------------------------------------------------- */

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
	unsigned nr = tlv_scaled(20000);
	struct tlv_msg m;

	(void)state;
	for (unsigned i = 0; i < nr; i++) {
		assert_int_equal(tlv_send_next(c, 24), 0);
		while (c->nr_recv < i + 1)
			assert_true(tlv_pump(&me, 5000, -1) > 0); /* nothing in 5 s: a lost wake-up */
	}
	m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_STATE});
	assert_int_equal(me.nr_late, 0);
	assert_int_equal(m.d, 0);
	assert_int_equal(c->nr_bad, 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* --- READs -------------------------------------------------------------------------------------------------- */

static void read__sizes_and_pieces(void **state)
{
	const size_t sizes[] = {0, 1, 8, 9, 64, 4096, 65537, MIB};
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, MIB + 64, RV_ACCESS_REMOTE_READ, 5);
	struct tlv_region *to = tlv_region(&me, MIB + 128, RV_ACCESS_LOCAL, 0);

	(void)state;
	assert_non_null(to);
	for (unsigned i = 0; i < array_size(sizes) * 4; i++) {
		size_t len = sizes[i / 4], first = i & 1 ? len / 3 : len, off = i & 2 ? 13 : 0, at = i & 2 ? 5 : 0;
		struct rv_read r = {.addr = from.iova + off, .rkey = from.rkey, .nr_sge = i & 1 ? 2 : 1};

		memset(to->mem, TLV_PATTERN_LOCAL, to->size);
		r.sge[0] = (struct rv_sge){to->mem + at, (uint32_t)first, to->mr.lkey};
		r.sge[1] = (struct rv_sge){to->mem + at + first + 16, (uint32_t)(len - first), to->mr.lkey};
		assert_int_equal(tlv_reads(c, &r, 1), 0);
		assert_int_equal(r.status, 0);
		assert_int_equal(tlv_differs(to->mem + at, first, 5, off), -1);
		assert_int_equal(to->mem[at + first], TLV_PATTERN_LOCAL);
		if (i & 1) {
			assert_int_equal(tlv_differs(to->mem + at + first + 16, len - first, 5, off + first), -1);
			assert_int_equal(to->mem[at + len + 16], TLV_PATTERN_LOCAL);
		}
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void read__nothing_needs_no_key(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	struct rv_read r = {.addr = 0, .rkey = 0, .nr_sge = 0};

	(void)state;
	assert_int_equal(tlv_reads(c, &r, 1), 0);
	assert_int_equal(r.status, 0);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void read__chain(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 6);
	struct tlv_region *to = tlv_region(&me, 65536, RV_ACCESS_LOCAL, 0);
	struct rv_read r[100];

	(void)state;
	for (unsigned i = 0; i < 100; i++)
		r[i] = (struct rv_read){.addr = from.iova + i * 997, .rkey = from.rkey, .nr_sge = 1,
					.sge = {{to->mem + i * 600, 555, to->mr.lkey}}};
	assert_int_equal(tlv_reads(c, r, 100), 0);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(r[i].status, 0);
		assert_int_equal(me.read_reports[i], 1);
		assert_int_equal(tlv_differs(to->mem + i * 600, 555, 6, i * 997), -1);
		assert_int_equal(to->mem[i * 600 + 555], TLV_PATTERN_LOCAL);
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void read__more_than_slots(void **state)
{
	struct rv_options opt = {.max_reads = 16};
	struct tlv_remote from;
	struct tlv_region *to;
	struct rv_read r[200];
	struct tlv_conn *c;

	(void)state;
	start(&opt, NULL);
	assert_in_range(me.caps.max_reads, 1, 16);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_COUNT, true, NULL, 0);
	c = join();
	from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 7);
	to = tlv_region(&me, 200 * 64, RV_ACCESS_LOCAL, 0);
	for (unsigned round = 0; round < 3; round++) {
		int rc;

		for (unsigned i = 0; i < 200; i++) {
			me.read_status[i] = TLV_UNFINISHED;
			r[i] = (struct rv_read){.cookie = i, .addr = from.iova + i * 64, .rkey = from.rkey, .nr_sge = 1,
						.sge = {{to->mem + i * 64, 64, to->mr.lkey}}};
		}
		rc = me.ops->post_reads(c->conn, r, 200);
		assert_in_range(rc, 1, me.caps.max_reads);
		for (int i = 0; !me.caps.reads_inline && i < rc; i++)
			while (me.read_status[i] == TLV_UNFINISHED)
				assert_true(tlv_pump(&me, 10000, -1) > 0);
		assert_int_equal(tlv_reads(c, r, 200), 0);
		for (unsigned i = 0; i < 200; i++)
			assert_int_equal(r[i].status, 0);
		assert_int_equal(tlv_differs(to->mem, 200 * 64, 7, 0), -1);
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void read__not_postable(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	struct tlv_remote from = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 8);
	struct tlv_region *to = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);
	struct rv_read r = {.addr = from.iova, .rkey = from.rkey, .nr_sge = 1, .sge = {{to->mem, 8, to->mr.lkey}}};

	(void)state;
	r.sge[0].length = (uint32_t)min_of(me.caps.max_msg + 1, (uint64_t)UINT32_MAX);
	if (me.caps.max_msg < UINT32_MAX)
		assert_int_equal(me.ops->post_reads(c->conn, &r, 1), -EMSGSIZE);
	r.sge[0].length = 8;
	r.nr_sge = RV_READ_SGE + 1;
	assert_int_equal(me.ops->post_reads(c->conn, &r, 1), -EINVAL);
	/* Nothing was posted, so nothing is broken. */
	assert_reads(c, &from, 8, to);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/*
 * A READ that must be refused, over the first of two connections to one device: it fails, that connection ends on both
 * sides, and the other one knows nothing of it.
 */
struct refusal {
	struct tlv_conn *bad, *good;
	struct tlv_remote from;
	struct tlv_region *to;
};

static void refusal_start(struct refusal *f)
{
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, true, NULL, 0);
	f->bad = join();
	f->good = join();
	f->from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 9);
	f->to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	assert_non_null(f->to);
	assert_reads(f->bad, &f->from, 9, f->to);
}

static void refusal_check(struct refusal *f, struct rv_read *r, int expected)
{
	struct rv_read chain[3] = {*r, *r, *r};
	struct tlv_conn other;
	int rc;

	assert_int_equal(tlv_reads(f->bad, chain, 3), 0);
	assert_true(chain[0].status < 0);
	if (tlv_is_shm())
		assert_int_equal(chain[0].status, expected);
	assert_int_equal(chain[1].status, -ECONNRESET);
	assert_int_equal(chain[2].status, -ECONNRESET);
	assert_true(tlv_until(&me, &f->bad->down));
	assert_true(f->bad->status < 0);
	if (tlv_is_shm())
		assert_int_equal(f->bad->wc_status, expected == -EACCES ? 10 : 4); /* REM_ACCESS_ERR, LOC_PROT_ERR */
	assert_true(tlv_peer_until_down(&peer, &me, 0, &other));
	assert_true(other.status < 0);
	assert_int_equal(other.nr_disconnected, 1);
	tlv_pump_for(&me, 20);
	assert_int_equal(f->bad->nr_disconnected, 1);
	rc = tlv_read(f->bad, &f->from, 0, f->to, 8);
	assert_true(rc == -ENOTCONN || rc == -ECONNRESET);
	assert_int_equal(me.ops->send(f->bad->conn, "x", 1), -ENOTCONN);

	assert_false(f->good->down);
	assert_reads(f->good, &f->from, 9, f->to);
	assert_echo(f->good);
	tlv_close_conn(f->bad);
	assert_reads(f->good, &f->from, 9, f->to);
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static struct rv_read read_of(const struct refusal *f, uint64_t offset, uint32_t len)
{
	return (struct rv_read){.addr = f->from.iova + offset, .rkey = f->from.rkey, .nr_sge = 1,
				.sge = {{f->to->mem, len, f->to->mr.lkey}}};
}

static void refused__key_never_given(void **state)
{
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	r = read_of(&f, 0, 8);
	r.rkey ^= 0x00ff0000u;
	if (!tlv_is_shm())
		r.rkey ^= 0x55u; /* there the low bits are the ones that vary */
	refusal_check(&f, &r, -EACCES);
}

static void refused__key_revoked(void **state)
{
	struct tlv_remote old;
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	old = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 10);
	assert_reads(f.bad, &old, 10, f.to);
	tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = old.index});
	r = read_of(&f, 0, 8);
	r.addr = old.iova;
	r.rkey = old.rkey;
	refusal_check(&f, &r, -EACCES);
}

static void refused__one_byte_past_the_end(void **state)
{
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	assert_int_equal(tlv_read(f.bad, &f.from, 8192 - 100, f.to, 100), 0); /* the last byte is served */
	r = read_of(&f, 8192 - 100, 101);
	refusal_check(&f, &r, -EACCES);
}

static void refused__one_byte_before_the_start(void **state)
{
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	r = read_of(&f, (uint64_t)-1, 8);
	refusal_check(&f, &r, -EACCES);
}

static void refused__address_wraps(void **state)
{
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	r = read_of(&f, 0, 64);
	r.addr = UINT64_MAX - 10;
	refusal_check(&f, &r, -EACCES);
}

static void refused__region_for_landing_only(void **state)
{
	struct tlv_remote local;
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	local = tlv_peer_region(&peer, 4096, RV_ACCESS_LOCAL, 0);
	r = read_of(&f, 0, 8);
	r.addr = local.iova;
	r.rkey = local.rkey;
	refusal_check(&f, &r, -EACCES);
}

static void before_allow_reads(uint32_t len)
{
	struct refusal f;
	struct rv_read r;

	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, false, NULL, 0);
	f.bad = join();
	f.good = join();
	assert_int_equal(tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_ALLOW, .a = 1}).status, 0);
	f.from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 9);
	f.to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	r = read_of(&f, 0, len);
	refusal_check(&f, &r, -EACCES);
}

static void refused__before_allow_reads(void **state)
{
	(void)state;
	before_allow_reads(8);
}

static void refused__nothing_before_allow_reads(void **state)
{
	(void)state;
	before_allow_reads(0);
}

static void refused__landing_outside_its_region(void **state)
{
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	r = read_of(&f, 0, 101);
	r.sge[0].addr = f.to->mem + 8192 - 100;
	refusal_check(&f, &r, -EFAULT);
}

static void refused__landing_without_a_key(void **state)
{
	struct refusal f;
	struct rv_read r;

	(void)state;
	refusal_start(&f);
	r = read_of(&f, 0, 8);
	r.sge[0].lkey = 0;
	refusal_check(&f, &r, -EFAULT);
}

/* A region that comes after the connection, and keys that are used again. */
static void read__regions_come_and_go(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_region *to = tlv_region(&me, MIB, RV_ACCESS_LOCAL, 0);
	unsigned nr = tlv_scaled(2000);

	(void)state;
	for (unsigned i = 0; i < nr; i++) {
		struct tlv_remote from = tlv_peer_region(&peer, 4096 << (i % 8), RV_ACCESS_REMOTE_READ, i);

		assert_int_equal(tlv_read(c, &from, from.size - 4000, to, 4000), 0);
		assert_int_equal(tlv_differs(to->mem, 4000, i, from.size - 4000), -1);
		tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = from.index});
		tlv_pump(&me, 0, -1);
	}
	assert_false(c->down);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void read__owner_stopped(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	struct tlv_remote from = tlv_peer_region(&peer, 65536, RV_ACCESS_REMOTE_READ, 12);
	struct tlv_region *to = tlv_region(&me, 65536, RV_ACCESS_LOCAL, 0);

	(void)state;
	kill(peer.pid, SIGSTOP);
	for (unsigned i = 0; i < 50; i++) {
		memset(to->mem, 0, 1000);
		assert_reads(c, &from, 12, to);
	}
	assert_false(c->down);
	kill(peer.pid, SIGCONT);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

struct reader {
	pthread_t thread;
	struct tlv_conn *c;
	struct tlv_remote from;
	struct tlv_region *to;
	unsigned index, nr;
	unsigned nr_failed, nr_wrong;
	_Atomic bool done;
};

static void *reader_main(void *arg)
{
	struct reader *t = arg;

	for (unsigned i = 0; i < t->nr; i++) {
		size_t at = (size_t)t->index * 4096, len = i % 4 ? 8 : 3000, off = i * 61 % 5000;
		struct rv_read r = {.cookie = t->index, .addr = t->from.iova + off, .rkey = t->from.rkey, .nr_sge = 1,
				    .sge = {{t->to->mem + at, (uint32_t)len, t->to->mr.lkey}}};
		int rc;

		me.read_status[t->index] = TLV_UNFINISHED;
		do {
			rc = me.ops->post_reads(t->c->conn, &r, 1);
		} while (rc == -EAGAIN || !rc);
		if (rc == 1 && me.caps.reads_inline)
			me.read_status[t->index] = r.status;
		while (rc == 1 && me.read_status[t->index] == TLV_UNFINISHED)
			tlv_sleep_ms(0);
		if (rc != 1 || me.read_status[t->index])
			t->nr_failed++;
		else if (tlv_differs(t->to->mem + at, len, 13, off) >= 0)
			t->nr_wrong++;
	}
	t->done = true;
	return NULL;
}

static void read__from_many_threads(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	struct tlv_remote from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 13);
	struct tlv_region *to = tlv_region(&me, 65536, RV_ACCESS_LOCAL, 0);
	struct reader t[4];
	bool done = false;

	(void)state;
	memset(t, 0, sizeof(t));
	for (unsigned i = 0; i < array_size(t); i++) {
		t[i].c = c;
		t[i].from = from;
		t[i].to = to;
		t[i].index = i;
		t[i].nr = tlv_scaled(20000);
		assert_int_equal(pthread_create(&t[i].thread, NULL, reader_main, &t[i]), 0);
	}
	/* Meanwhile regions come and go on both sides, and messages flow. */
	while (!done) {
		struct tlv_remote other = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 14);
		struct tlv_region *mine = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);

		assert_echo(c);
		tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = other.index});
		assert_int_equal(tlv_unregion(&me, mine), 0);
		done = true;
		for (unsigned i = 0; i < array_size(t); i++)
			done &= t[i].done;
	}
	for (unsigned i = 0; i < array_size(t); i++) {
		pthread_join(t[i].thread, NULL);
		assert_int_equal(t[i].nr_failed, 0);
		assert_int_equal(t[i].nr_wrong, 0);
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* --- fences and ends ---------------------------------------------------------------------------------------- */

/*
 * The owner revokes (the connection, or the key), and as soon as that call returned overwrites the memory, while we
 * READ it all the time: a READ that says success has not one new byte.
 */
static void race_with_revocation(enum tlv_op op)
{
	unsigned rounds = tlv_is_shm() ? 60 : 4, nr_good = 0;

	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_COUNT, true, NULL, 0);
	struct tlv_region *to = tlv_region(&me, MIB, RV_ACCESS_LOCAL, 0);
	for (unsigned i = 0; i < rounds; i++) {
		struct tlv_remote from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 15);
		struct tlv_conn *c = join();
		struct tlv_msg m = {.op = op, .a = from.index, .b = 0xff};
		int rc;

		if (op == TLV_OP_CLOSE_CONN)
			m = (struct tlv_msg){.op = op, .a = i, .b = from.index + 1, .c = 0xff};
		assert_int_equal(tlv_read(c, &from, 0, to, MIB), 0);
		tlv_tell(&peer, m);
		do {
			rc = tlv_read(c, &from, 0, to, MIB);
			if (!rc) {
				assert_null(memchr(to->mem, 0xff, MIB)); /* the pattern stays below 251 */
				nr_good++;
			}
		} while (!rc);
		assert_true(rc == -EACCES || rc == -ECONNRESET || rc == -ENOTCONN || rc == -ETIMEDOUT);
		tlv_hear(&peer);
		if (op == TLV_OP_CLOSE_CONN)
			tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = from.index});
		assert_true(tlv_until(&me, &c->down));
		tlv_close_conn(c);
	}
	(void)nr_good;
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void fence__close_conn_against_reads(void **state)
{
	(void)state;
	race_with_revocation(TLV_OP_CLOSE_CONN);
}

static void fence__dereg_against_reads(void **state)
{
	(void)state;
	race_with_revocation(TLV_OP_UNREGION);
}

static void close__unfinished_reads_reported_once(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 16);
	struct tlv_region *to = tlv_region(&me, MIB, RV_ACCESS_LOCAL, 0);
	unsigned nr = min_of(me.caps.max_reads, 64u), posted;
	unsigned char *before = malloc(MIB);
	struct rv_read r[64];
	int rc;

	(void)state;
	for (unsigned i = 0; i < nr; i++) {
		me.read_status[i] = TLV_UNFINISHED;
		me.read_reports[i] = 0;
		r[i] = (struct rv_read){.cookie = i, .addr = from.iova + i * 16384, .rkey = from.rkey, .nr_sge = 1,
					.sge = {{to->mem + i * 16384, 16384, to->mr.lkey}}};
	}
	rc = me.ops->post_reads(c->conn, r, nr);
	assert_in_range(rc, 1, nr);
	posted = (unsigned)rc;
	tlv_close_conn(c);
	memcpy(before, to->mem, MIB); /* from here on nothing may be written there */
	tlv_pump_for(&me, 200);
	assert_memory_equal(before, to->mem, MIB);
	free(before);
	for (unsigned i = 0; i < posted; i++) {
		int status = me.caps.reads_inline ? r[i].status : me.read_status[i];

		assert_int_equal(me.read_reports[i], !me.caps.reads_inline);
		assert_true(status == 0 || status == -ECONNRESET);
	}
	assert_int_equal(c->nr_disconnected, 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void disconnect__by_close_conn(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT), other;

	(void)state;
	/* Ours: the peer is told, once. */
	tlv_close_conn(c);
	assert_true(tlv_peer_until_down(&peer, &me, 0, &other));
	assert_true(other.status <= 0);
	assert_int_equal(other.nr_disconnected, 1);
	tlv_pump_for(&me, 20);
	assert_int_equal(c->nr_disconnected, 0);
	/* The peer's: we are. */
	c = join();
	tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_CLOSE_CONN, .a = 1});
	assert_true(tlv_until(&me, &c->down));
	tlv_pump_for(&me, 20);
	assert_int_equal(c->nr_disconnected, 1);
	assert_int_equal(me.ops->send(c->conn, "x", 1), -ENOTCONN);
	assert_int_equal(me.ops->allow_reads(c->conn), -ENOTCONN);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void disconnect__peer_killed(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_msg m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_SEND, .a = 0, .b = 50, .c = 200});

	(void)state;
	assert_int_equal(m.status, 0);
	if (!tlv_is_shm())
		tlv_sleep_ms(500); /* "sent" there means handed to the device */
	tlv_peer_kill(&peer);
	assert_true(tlv_until(&me, &c->down));
	assert_true(c->status < 0);
	assert_int_equal(c->nr_recv, 50); /* what had arrived is not lost */
	assert_int_equal(c->nr_bad, 0);
	assert_int_equal(c->nr_disconnected, 1);
	tlv_close_conn(c);
}

static void disconnect__peer_killed_while_we_sleep(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);

	(void)state;
	tlv_pump_for(&me, 20);
	tlv_peer_kill(&peer);
	while (!c->down)
		assert_true(tlv_pump(&me, 20000, -1) > 0);
	assert_int_equal(me.nr_late, 0);
}

static void close__leaks_nothing(void **state)
{
	unsigned fds = 0, maps = 0, cycles = tlv_is_shm() ? 40 : 8;
	struct tlv_msg theirs = {.op = 0}, m;

	(void)state;
	tlv_fork(&peer);
	tlv_peer_open(&peer, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, true, NULL, 0);
	struct tlv_remote from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 17);
	for (unsigned i = 0; i < cycles; i++) {
		struct tlv_conn *c, *d, other;
		struct tlv_region *to, *mine;

		if (i == 3) {
			fds = tlv_open_fds();
			maps = tlv_maps();
			theirs = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_COUNT});
		}
		assert_int_equal(tlv_open(&me, NULL), 0);
		c = join();
		d = join();
		to = tlv_region(&me, 65536, RV_ACCESS_LOCAL, 0);
		mine = tlv_region(&me, 65536, RV_ACCESS_REMOTE_READ, 1);
		assert_reads(c, &from, 17, to);
		assert_reads(d, &from, 17, to);
		assert_echo(c);
		if (i & 1)
			tlv_close_conn(c);
		if (i & 2)
			assert_int_equal(tlv_unregion(&me, mine), 0);
		tlv_close(&me); /* closes what is left; the test's regions are gone with tlv_close */
		for (unsigned k = 2 * i; k < 2 * i + 2; k++) {
			int64_t deadline = tlv_deadline_ns();

			do
				other = tlv_peer_conn(&peer, k);
			while (!other.down && now_ns() < deadline);
			assert_true(other.down);
		}
	}
	assert_int_equal(tlv_open_fds(), fds);
	m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_COUNT});
	assert_int_equal(m.a, theirs.a);
	if (!UNDER_SANITIZER) { /* their allocators map as they please */
		assert_true(tlv_maps() <= maps + 2);
		assert_true(m.b <= theirs.b + 2);
	}
	tlv_peer_exit(&peer);
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(close__leaks_nothing),
		TEST(close__unfinished_reads_reported_once),
		TEST(connect__carries_hello_and_answer),
		TEST(connect__closed_before_it_is_up),
		TEST(connect__listener_stopped),
		TEST(connect__many_to_one_device),
		TEST(connect__never_answered),
		TEST(connect__nobody_there),
		TEST(connect__rejected_with_reason),
		TEST(disconnect__by_close_conn),
		TEST(disconnect__peer_killed),
		TEST(disconnect__peer_killed_while_we_sleep),
		TEST(fence__close_conn_against_reads),
		TEST(fence__dereg_against_reads),
		TEST(message__both_ways),
		TEST(message__kept_across_close_conn),
		TEST(message__kept_by_the_receiver),
		TEST(message__order_under_back_pressure),
		TEST(message__sizes),
		TEST(open__tells_what_it_can),
		TEST(open__too_few_credits),
		TEST(reach__not_an_address),
		TEST(read__chain),
		TEST(read__from_many_threads),
		TEST(read__more_than_slots),
		TEST(read__not_postable),
		TEST(read__nothing_needs_no_key),
		TEST(read__owner_stopped),
		TEST(read__regions_come_and_go),
		TEST(read__sizes_and_pieces),
		TEST(refused__address_wraps),
		TEST(refused__before_allow_reads),
		TEST(refused__key_never_given),
		TEST(refused__key_revoked),
		TEST(refused__landing_outside_its_region),
		TEST(refused__landing_without_a_key),
		TEST(refused__nothing_before_allow_reads),
		TEST(refused__one_byte_before_the_start),
		TEST(refused__one_byte_past_the_end),
		TEST(refused__region_for_landing_only),
		TEST(wake__both_sides_sleep),
	};

	tlv_ops = tlv_is_shm() ? &rv_shm_ops : &rv_ibv_ops;
	return cmocka_run_group_tests_name(tlv_is_shm() ? "rv_conformance (shm)" : "rv_conformance (ibv)", tests, NULL, NULL);
}
