/* SPDX-License-Identifier: Apache-2.0 */
/* The duties of every provider of verbs/rv.h (see connections_test.c): READs that are refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "pair.h"

/*
 * A READ that must be refused, over the first of two connections to one device. It fails. Over shm
 * that connection ends on both sides. Over ibv its READs end, on both sides: messages go on, and
 * READs come back. The other connection does not notice.
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
	me.allow = true;
	f->bad = join();
	f->good = join();
	f->from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 9);
	f->to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	assert_non_null(f->to);
	assert_reads(f->bad, &f->from, 9, f->to);
}

/* Checks that the connection stands, and that its READs are back on both sides. */
static void reads_come_back(struct refusal *f)
{
	int64_t end = tlv_deadline_ns();
	struct tlv_conn other;

	assert_true(tlv_until(&me, &f->bad->reads_up));
	do {
		tlv_pump(&me, 1, -1);
		other = tlv_peer_conn(&peer, 0);
	} while (other.nr_reads_up < 2 && now_ns() < end);
	assert_int_equal(f->bad->nr_reads_down, 1);
	assert_int_equal(f->bad->nr_reads_up, 2);
	assert_int_equal(other.nr_reads_down, 1);
	assert_int_equal(other.nr_reads_up, 2);
	assert_reads(f->bad, &f->from, 9, f->to);
	assert_echo(f->bad);
	assert_false(f->bad->down || other.down);
}

/* Checks that the connection has ended on both sides. */
static void bad_one_ends(struct refusal *f, int expected)
{
	struct tlv_conn other;
	int rc;

	assert_true(tlv_until(&me, &f->bad->down));
	assert_true(f->bad->status < 0);
	if (tlv_is_shm())
		/* REM_ACCESS_ERR, LOC_PROT_ERR */
		assert_int_equal(f->bad->wc_status, expected == -EACCES ? 10 : 4);
	assert_true(tlv_peer_until_down(&peer, &me, 0, &other));
	assert_true(other.status < 0);
	assert_int_equal(other.nr_disconnected, 1);
	tlv_pump_for(&me, 20);
	assert_int_equal(f->bad->nr_disconnected, 1);
	rc = tlv_read(f->bad, &f->from, 0, f->to, 8);
	assert_true(rc == -ENOTCONN || rc == -ECONNRESET);
	assert_int_equal(me.ops->send(f->bad->conn, "x", 1), -ENOTCONN);
}

static void refusal_check(struct refusal *f, struct rv_read *r, int expected)
{
	struct rv_read chain[3] = { *r, *r, *r };

	assert_int_equal(tlv_reads(f->bad, chain, 3), 0);
	assert_int_equal(chain[0].status, expected);
	assert_int_equal(chain[1].status, -ECONNRESET);
	assert_int_equal(chain[2].status, -ECONNRESET);
	if (tlv_is_shm())
		bad_one_ends(f, expected);
	else
		reads_come_back(f);
	assert_false(f->good->down);
	assert_int_equal(f->good->nr_reads_down, 0);
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

static void refused__not_among_the_good_ones(void **state)
{
	struct refusal f;
	bool more = false;

	(void)state;
	refusal_start(&f);
	if (!me.caps.reads_inline) {
		struct rv_read r = read_of(&f, 0, 8);

		r.rkey ^= 0x5a5a00;
		me.read_status[0] = TLV_UNFINISHED;
		assert_int_equal(me.ops->post_reads(f.bad->conn, &r, 1), 1);
		for (int64_t end = now_ns() + 50 * NSEC_PER_MSEC; now_ns() < end;)
			assert_int_equal(tlv_take_reads(&me, &more), 0);
		assert_true(more);
		assert_int_equal(me.read_status[0], TLV_UNFINISHED);
		while (!f.bad->nr_reads_down)
			assert_true(tlv_pump(&me, 10000, -1) > 0);
		assert_int_equal(me.read_status[0], -EACCES);
	}
	assert_reads(f.good, &f.from, 9, f.to);
	assert_echo(f.good);
	tlv_close(&me);
	tlv_peer_exit(&peer);
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
		r.rkey ^= 0x55u; /* the low bits vary there */
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
	/* the last byte is served */
	assert_int_equal(tlv_read(f.bad, &f.from, 8192 - 100, f.to, 100), 0);
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
	me.allow = true;
	f.bad = join();
	f.good = join();
	assert_int_equal(tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_ALLOW, .a = 1}).status, 0);
	f.from = tlv_peer_region(&peer, 8192, RV_ACCESS_REMOTE_READ, 9);
	f.to = tlv_region(&me, 8192, RV_ACCESS_LOCAL, 0);
	r = read_of(&f, 0, len);
	if (tlv_is_shm()) {
		refusal_check(&f, &r, -EACCES);
		return;
	}
	/* There is nothing to READ over: only the peer's part makes it. */
	tlv_pump_for(&me, 50);
	assert_int_equal(me.ops->post_reads(f.bad->conn, &r, 1), -EAGAIN);
	assert_false(f.bad->reads_up);
	assert_echo(f.bad);
	assert_reads(f.good, &f.from, 9, f.to);
	assert_int_equal(tlv_ask(&peer, (struct tlv_msg){ .op = TLV_OP_ALLOW, .a = 0 }).status, 0);
	assert_true(tlv_until(&me, &f.bad->reads_up));
	assert_reads(f.bad, &f.from, 9, f.to);
	tlv_close(&me);
	tlv_peer_exit(&peer);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(refused__address_wraps),
		TEST(refused__before_allow_reads),
		TEST(refused__key_never_given),
		TEST(refused__key_revoked),
		TEST(refused__landing_outside_its_region),
		TEST(refused__landing_without_a_key),
		TEST(refused__nothing_before_allow_reads),
		TEST(refused__not_among_the_good_ones),
		TEST(refused__one_byte_before_the_start),
		TEST(refused__one_byte_past_the_end),
		TEST(refused__region_for_landing_only),
	};

	tlv_ops = tlv_is_shm() ? &rv_shm_ops : &rv_ibv_ops;
	return cmocka_run_group_tests_name(tlv_is_shm() ? "refused (shm)" : "refused (ibv)", tests,
					   NULL, NULL);
}
