/* SPDX-License-Identifier: Apache-2.0 */
/* The duties of every provider of verbs/rv.h (see connections_test.c): READs that succeed. */
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

#include "pair.h"

/* --- READs ------------------------------------------------------------------------------------ */

static void read__sizes_and_pieces(void **state)
{
	const size_t sizes[] = {0, 1, 8, 9, 64, 4096, 65537, MIB};
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, MIB + 64, RV_ACCESS_REMOTE_READ, 5);
	struct tlv_region *to = tlv_region(&me, MIB + 128, RV_ACCESS_LOCAL, 0);

	(void)state;
	assert_non_null(to);
	for (unsigned i = 0; i < array_size(sizes) * 4; i++) {
		size_t len = sizes[i / 4], first = i & 1 ? len / 3 : len, off = i & 2 ? 13 : 0,
		       at = i & 2 ? 5 : 0;
		struct rv_read r = { .addr = from.iova + off,
				     .rkey = from.rkey,
				     .nr_sge = i & 1 ? 2 : 1 };

		memset(to->mem, TLV_PATTERN_LOCAL, to->size);
		r.sge[0] = (struct rv_sge){to->mem + at, (uint32_t)first, to->mr.lkey};
		r.sge[1] = (struct rv_sge){ to->mem + at + first + 16, (uint32_t)(len - first),
					    to->mr.lkey };
		assert_int_equal(tlv_reads(c, &r, 1), 0);
		assert_int_equal(r.status, 0);
		assert_int_equal(tlv_differs(to->mem + at, first, 5, off), -1);
		assert_int_equal(to->mem[at + first], TLV_PATTERN_LOCAL);
		if (i & 1) {
			assert_int_equal(tlv_differs(to->mem + at + first + 16, len - first, 5,
						     off + first),
					 -1);
			assert_int_equal(to->mem[at + len + 16], TLV_PATTERN_LOCAL);
		}
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* Reads as many pieces as the device takes, each of another length and some empty. Several such
 * READs share one doorbell. */
static void read__many_pieces(void **state)
{
	enum { READS = 5, EACH = 4096 };
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 9);
	struct tlv_region *to = tlv_region(&me, READS * EACH, RV_ACCESS_LOCAL, 0);
	struct rv_sge sge[READS][RV_READ_SGE_MAX];
	struct rv_read r[READS];

	(void)state;
	assert_in_range(me.caps.max_sge, RV_READ_SGE, RV_READ_SGE_MAX);
	for (uint32_t i = 0; i < READS; i++) {
		uint32_t n = i ? me.caps.max_sge : min_of(me.caps.max_sge, 3u);

		for (uint32_t k = 0; k < n; k++)
			sge[i][k] = (struct rv_sge){ to->mem + i * EACH + k * 200,
						     k % 5 == 3 ? 0 : 60 + 7 * k, to->mr.lkey };
		r[i] = (struct rv_read){ .addr = from.iova + i * 5000,
					 .rkey = from.rkey,
					 .nr_sge = n,
					 .sge = { sge[i][0], sge[i][1] },
					 .more = &sge[i][RV_READ_SGE] };
	}
	memset(to->mem, TLV_PATTERN_LOCAL, to->size);
	assert_int_equal(tlv_reads(c, r, READS), 0);
	for (uint32_t i = 0; i < READS; i++) {
		size_t at = i * 5000;

		assert_int_equal(r[i].status, 0);
		for (uint32_t k = 0; k < r[i].nr_sge; k++) {
			unsigned char *p = sge[i][k].addr;

			assert_int_equal(tlv_differs(p, sge[i][k].length, 9, at), -1);
			assert_int_equal(p[sge[i][k].length], TLV_PATTERN_LOCAL);
			at += sge[i][k].length;
		}
	}
	/* A piece without a key among good ones is refused, as a single piece is. */
	sge[1][r[1].nr_sge - 1].lkey = 0;
	if (me.caps.max_sge > RV_READ_SGE) {
		assert_int_equal(tlv_reads(c, &r[1], 1), 0);
		assert_int_equal(r[1].status, -EFAULT);
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
	me.allow = true;
	c = join();
	from = tlv_peer_region(&peer, MIB, RV_ACCESS_REMOTE_READ, 7);
	to = tlv_region(&me, 200 * 64, RV_ACCESS_LOCAL, 0);
	for (unsigned round = 0; round < 3; round++) {
		int rc;

		for (unsigned i = 0; i < 200; i++) {
			me.read_status[i] = TLV_UNFINISHED;
			r[i] = (struct rv_read){ .cookie = i,
						 .addr = from.iova + i * 64,
						 .rkey = from.rkey,
						 .nr_sge = 1,
						 .sge = { { to->mem + i * 64, 64, to->mr.lkey } } };
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
	struct rv_read r = { .addr = from.iova,
			     .rkey = from.rkey,
			     .nr_sge = 1,
			     .sge = { { to->mem, 8, to->mr.lkey } } };
	const struct rv_sge many[RV_READ_SGE_MAX] = {{0}};

	(void)state;
	r.sge[0].length = (uint32_t)min_of(me.caps.max_msg + 1, (uint64_t)UINT32_MAX);
	if (me.caps.max_msg < UINT32_MAX)
		assert_int_equal(me.ops->post_reads(c->conn, &r, 1), -EMSGSIZE);
	r.sge[0].length = 8;
	r.nr_sge = RV_READ_SGE_MAX + 1;
	r.more = many;
	assert_int_equal(me.ops->post_reads(c->conn, &r, 1), -EINVAL);
	/* No READ was posted, so nothing is broken. */
	assert_reads(c, &from, 8, to);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/*
 * Takes READs in without a poll. Good ones come each once, and messages' completions do not stand
 * before them: these are news for poll. There are no such ends where READs end at once.
 */
static void read__taken_in_without_a_poll(void **state)
{
	enum { READS = 3 };
	struct tlv_conn *c = start_joined(TLV_ECHO);
	struct tlv_remote from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 9);
	struct tlv_region *to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	int64_t deadline = tlv_deadline_ns();
	unsigned with_more = 0;
	struct rv_read r[READS];

	(void)state;
	assert_reads(c, &from, 9, to);
	for (int round = 0; round < 50; round++) {
		unsigned found = 0;
		bool more = false;

		for (unsigned i = 0; i < READS; i++) {
			r[i] = (struct rv_read){ .cookie = i,
						 .addr = from.iova + 100 * i,
						 .rkey = from.rkey,
						 .nr_sge = 1,
						 .sge = { { to->mem + 1000 * i, 100,
							    to->mr.lkey } } };
			me.read_status[i] = TLV_UNFINISHED;
			me.read_reports[i] = 0;
		}
		memset(to->mem, TLV_PATTERN_LOCAL, to->size);
		if (round % 2)
			assert_int_equal(tlv_send_next(c, 32), 0);
		assert_int_equal(me.ops->post_reads(c->conn, r, READS), READS);
		while (found < READS && !me.caps.reads_inline) {
			found += (unsigned)tlv_take_reads(&me, &more);
			assert_true(now_ns() < deadline);
		}
		with_more += more;
		assert_int_equal(tlv_take_reads(&me, &more), 0);
		for (unsigned i = 0; i < READS; i++)
			assert_int_equal(tlv_differs(to->mem + 1000 * i, 100, 9, 100 * i), -1);
		tlv_pump_for(&me, 5);
		for (unsigned i = 0; i < READS && !me.caps.reads_inline; i++) {
			assert_int_equal(me.read_status[i], 0);
			assert_int_equal(me.read_reports[i], 1);
		}
	}
	/* The message was sent first, and its completion came first. */
	assert_int_equal(with_more, me.caps.reads_inline ? 0 : 25);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* Registers a region after the connection, and uses keys again. */
static void read__regions_come_and_go(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_region *to = tlv_region(&me, MIB, RV_ACCESS_LOCAL, 0);
	unsigned nr = tlv_scaled(2000);

	(void)state;
	for (unsigned i = 0; i < nr; i++) {
		struct tlv_remote from = tlv_peer_region(&peer, 4096 << (i % 8),
							 RV_ACCESS_REMOTE_READ, i);

		assert_int_equal(tlv_read(c, &from, from.size - 4000, to, 4000), 0);
		assert_int_equal(tlv_differs(to->mem, 4000, i, from.size - 4000), -1);
		tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = from.index});
		tlv_pump(&me, 0, -1);
	}
	assert_false(c->down);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* Checks that a hint changes nothing, not even for a READ that
 * would be refused, or for missing memory. */
static void read__announced(void **state)
{
	struct tlv_conn *c = start_joined(TLV_ECHO);
	struct tlv_remote from = tlv_peer_region(&peer, 65536, RV_ACCESS_REMOTE_READ, 15),
			  gone = from;
	struct tlv_region *to = tlv_region(&me, 65536, RV_ACCESS_LOCAL, 0);

	(void)state;
	/* the region not yet taken, and after a READ of it */
	for (unsigned taken = 0; taken < 2; taken++) {
		const struct { uint32_t rkey; uint64_t addr, length; } said[] = {
			{ from.rkey, from.iova, from.size }, { from.rkey, from.iova, 72 },
			{ from.rkey, from.iova + 65535, 1 },
			{ from.rkey, from.iova, 0 }, { from.rkey, from.iova + 65500, 72 },
			{ from.rkey, from.iova - 8, 72 },
			{ from.rkey, from.iova, UINT64_MAX }, { from.rkey, UINT64_MAX - 10, 72 },
			{ from.rkey, 0, 72 },
			{ from.rkey ^ 0x100, from.iova, 72 }, { from.rkey + 1, from.iova, 72 },
			{ UINT32_MAX, from.iova, 72 },
			{ 0, 0, 72 },
		};

		for (unsigned i = 0; i < array_size(said); i++) {
			me.ops->will_read(c->conn, said[i].rkey, said[i].addr, said[i].length);
			assert_echo(c);
		}
		assert_int_equal(tlv_read(c, &from, 100, to, 4000), 0);
		assert_int_equal(tlv_differs(to->mem, 4000, 15, 100), -1);
	}
	/* Hints about a region that has gone, whose place may be used again. Also a hint over a
	 * connection that has ended. */
	tlv_ask(&peer, (struct tlv_msg){ .op = TLV_OP_UNREGION, .a = gone.index });
	me.ops->will_read(c->conn, gone.rkey, gone.iova, 72);
	from = tlv_peer_region(&peer, 65536, RV_ACCESS_REMOTE_READ, 16);
	me.ops->will_read(c->conn, gone.rkey, gone.iova, 72);
	me.ops->will_read(c->conn, from.rkey, from.iova, 72);
	assert_int_equal(tlv_read(c, &from, 0, to, 4000), 0);
	assert_int_equal(tlv_differs(to->mem, 4000, 16, 0), -1);
	assert_false(c->down);
	tlv_peer_exit(&peer);
	assert_true(tlv_until(&me, &c->down));
	me.ops->will_read(c->conn, from.rkey, from.iova, 72);
	tlv_close(&me);
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
		struct rv_read r = { .cookie = t->index,
				     .addr = t->from.iova + off,
				     .rkey = t->from.rkey,
				     .nr_sge = 1,
				     .sge = {
					     { t->to->mem + at, (uint32_t)len, t->to->mr.lkey } } };
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(read__announced),
		TEST(read__taken_in_without_a_poll),
		TEST(read__chain),
		TEST(read__from_many_threads),
		TEST(read__more_than_slots),
		TEST(read__not_postable),
		TEST(read__many_pieces),
		TEST(read__nothing_needs_no_key),
		TEST(read__owner_stopped),
		TEST(read__regions_come_and_go),
		TEST(read__sizes_and_pieces),
	};

	tlv_ops = tlv_is_shm() ? &rv_shm_ops : &rv_ibv_ops;
	return cmocka_run_group_tests_name(tlv_is_shm() ? "reads (shm)" : "reads (ibv)", tests,
					   NULL, NULL);
}
