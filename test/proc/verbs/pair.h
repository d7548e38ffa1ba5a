/* SPDX-License-Identifier: Apache-2.0 */
/* A node in this process and a peer in a forked one, for the
 * tests of the providers of verbs/rv.h. */
#ifndef RV_PAIR_H
#define RV_PAIR_H

#include "base/util.h"
#include "test/lib/tl_rv.h"

#define MIB ((size_t)1 << 20)

static struct tlv_node me;
static struct tlv_peer peer;

static inline int teardown(void **state)
{
	(void)state;
	tlv_close(&me);
	tlv_peer_reap(&peer);
	return 0;
}

static inline void start(const struct rv_options *mine, const struct rv_options *theirs)
{
	tlv_fork(&peer);
	tlv_peer_open(&peer, theirs);
	assert_int_equal(tlv_open(&me, mine), 0);
}

static inline struct tlv_conn *join(void)
{
	unsigned before = (unsigned)tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_STATE}).a;
	struct tlv_conn *c = tlv_connect(&me, &peer.addr, "hello", 5);

	assert_int_equal(c->status, 0);
	assert_true(tlv_until(&me, &c->up));
	assert_true(tlv_peer_until_up(&peer, &me, before));
	if (!me.caps.reads_inline && me.allow && peer.allows)
		assert_true(tlv_until(&me, &c->reads_up));
	return c;
}

/* Starts the peer in that mode, with READs allowed both ways. */
static inline void start_as(enum tlv_mode mode)
{
	start(NULL, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, mode, true, NULL, 0);
	me.allow = true;
}

/* Does the same, and makes one connection. */
static inline struct tlv_conn *start_joined(enum tlv_mode mode)
{
	start_as(mode);
	return join();
}

static inline void assert_peer_received(unsigned index, uint64_t nr)
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

static inline void assert_echo(struct tlv_conn *c)
{
	uint64_t target = c->nr_recv + 1;

	assert_int_equal(tlv_send_next(c, 32), 0);
	assert_true(tlv_until_count(&me, &c->nr_recv, target));
	assert_int_equal(c->nr_bad, 0);
}

static inline void assert_reads(struct tlv_conn *c, const struct tlv_remote *from, uint64_t seed,
				struct tlv_region *to)
{
	assert_int_equal(tlv_read(c, from, 100, to, 1000), 0);
	assert_int_equal(tlv_differs(to->mem, 1000, seed, 100), -1);
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

#endif
