/* SPDX-License-Identifier: Apache-2.0 */
/* The duties of every provider of verbs/rv.h (see
 * connections_test.c): fences, and how connections and devices end. */
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER 1
#else
#define UNDER_SANITIZER 0
#endif

/* --- fences and ends -------------------------------------------------------------------------- */

/* READs all of a region, into two pieces: over shm no way is fast for these. */
static int read_in_two(struct tlv_conn *c, const struct tlv_remote *from, struct tlv_region *to)
{
	uint32_t half = (uint32_t)(to->size / 2);
	struct rv_read r = { .addr = from->iova,
			     .rkey = from->rkey,
			     .nr_sge = 2,
			     .sge = { { to->mem, half, to->mr.lkey },
				      { to->mem + half, half, to->mr.lkey } } };
	int rc = tlv_reads(c, &r, 1);

	return rc ? rc : r.status;
}

/* READs the memory all the time. Returns the first failure. */
static int read_until_revoked(struct tlv_conn *c, const struct tlv_remote *from,
			      struct tlv_region *to)
{
	for (unsigned n = 0;; n++) {
		int rc = n & 1 ? read_in_two(c, from, to) : tlv_read(c, from, 0, to, to->size);

		if (rc)
			return rc;
		assert_null(memchr(to->mem, 0xff, to->size)); /* the pattern stays below 251 */
	}
}

/* Waits for the end of the connection; or for that of its READs, if that is enough. */
static void until_over(struct tlv_conn *c, bool or_reads)
{
	/* A key that is gone ends the READs alone, unless it looks like silence. */
	while (!c->down && !(or_reads && c->nr_reads_down))
		assert_true(tlv_pump(&me, 30000, -1) > 0);
}

/*
 * Lets the owner revoke the key, or the connection and then the key. The owner overwrites the
 * memory as soon as that call returns. A successful READ has not one new byte. A READ that met both
 * fails by the connection.
 */
static void race_with_revocation(enum tlv_op op)
{
	/* A copy takes longer than the close and the end of the key. */
	size_t size = tlv_is_shm() ? 16 * MIB : MIB;
	unsigned rounds = tlv_is_shm() ? 60 : 4;

	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_COUNT, true, NULL, 0);
	me.allow = true;
	struct tlv_region *to = tlv_region(&me, size, RV_ACCESS_LOCAL, 0);
	for (unsigned i = 0; i < rounds; i++) {
		struct tlv_remote from = tlv_peer_region(&peer, size, RV_ACCESS_REMOTE_READ, 15);
		struct tlv_conn *c = join();
		struct tlv_msg m = {.op = op, .a = from.index, .b = 0xff};
		int rc;

		if (op == TLV_OP_CLOSE_CONN)
			m = (struct tlv_msg){.op = op, .a = i, .b = from.index + 1, .c = 0xff};
		assert_int_equal(tlv_read(c, &from, 0, to, size), 0);
		tlv_tell(&peer, m);
		rc = read_until_revoked(c, &from, to);
		assert_true((rc == -EACCES && op == TLV_OP_UNREGION) || rc == -ECONNRESET ||
			    rc == -ENOTCONN || rc == -ETIMEDOUT);
		assert_int_equal(tlv_hear(&peer).status, 0);
		until_over(c, op == TLV_OP_UNREGION && !me.caps.reads_inline);
		tlv_close_conn(c);
	}
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
		r[i] = (struct rv_read){ .cookie = i,
					 .addr = from.iova + i * 16384,
					 .rkey = from.rkey,
					 .nr_sge = 1,
					 .sge = { { to->mem + i * 16384, 16384, to->mr.lkey } } };
	}
	rc = me.ops->post_reads(c->conn, r, nr);
	assert_in_range(rc, 1, nr);
	posted = (unsigned)rc;
	tlv_close_conn(c);
	for (int64_t by = tlv_deadline_ns(); c->closes; tlv_pump(&me, 1000, -1))
		assert_true(now_ns() < by);
	memcpy(before, to->mem, MIB); /* nothing may be written there any more */
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
	/* We close ours: the peer is told, once. */
	tlv_close_conn(c);
	assert_true(tlv_peer_until_down(&peer, &me, 0, &other));
	assert_true(other.status <= 0);
	assert_int_equal(other.nr_disconnected, 1);
	tlv_pump_for(&me, 20);
	assert_int_equal(c->nr_disconnected, 0);
	/* The peer closes its own: we are told. */
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
	struct tlv_msg m =
		tlv_ask(&peer, (struct tlv_msg){ .op = TLV_OP_SEND, .a = 0, .b = 50, .c = 200 });

	(void)state;
	assert_int_equal(m.status, 0);
	if (!tlv_is_shm())
		tlv_sleep_ms(500); /* "sent" there means handed to the device */
	tlv_peer_kill(&peer);
	assert_true(tlv_until(&me, &c->down));
	assert_true(c->status < 0);
	assert_int_equal(c->nr_recv, 50); /* earlier messages are not lost */
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
	me.allow = true;
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
		me.allow = true;
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
		/* closes the rest; the test's regions are gone with tlv_close */
		tlv_close(&me);
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
	if (!UNDER_SANITIZER) { /* the sanitizers' allocators map as they please */
		assert_true(tlv_maps() <= maps + 2);
		assert_true(m.b <= theirs.b + 2);
	}
	tlv_peer_exit(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(close__leaks_nothing),
		TEST(close__unfinished_reads_reported_once),
		TEST(disconnect__by_close_conn),
		TEST(disconnect__peer_killed),
		TEST(disconnect__peer_killed_while_we_sleep),
		TEST(fence__close_conn_against_reads),
		TEST(fence__dereg_against_reads),
	};

	tlv_ops = tlv_is_shm() ? &rv_shm_ops : &rv_ibv_ops;
	return cmocka_run_group_tests_name(tlv_is_shm() ? "ends (shm)" : "ends (ibv)", tests, NULL,
					   NULL);
}
