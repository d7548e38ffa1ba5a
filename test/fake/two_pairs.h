/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two ends of a connection over fake devices, in this process, for tests of its second queue pair
 * (verbs/ibv/pair.c).
 */
#ifndef TWO_PAIRS_H
#define TWO_PAIRS_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fv.h"
#include "test/lib/tl_rv.h"
#include "verbs/ibv/ibv.h"

#define BYTES 65536u
#define NR 64u /* READs at once */

struct end {
	struct tlv_node node;
	struct tlv_conn *c;
	struct tlv_region *theirs, *mine; /* readable; landing */
	char log[512]; /* the last warning */
};

static struct end a, b;
static int64_t connect_ns = 60 * NSEC_PER_SEC; /* time for the next pair */

static inline void note_log(void *ctx, int level, const char *text)
{
	struct end *e = ctx;

	if (level <= 1)
		snprintf(e->log, sizeof(e->log), "%s", text);
}

static inline void open_one_end(struct end *e)
{
	struct rv_options o = { .device = e == &a ? "fake0" : "fake1",
				.log = note_log,
				.log_ctx = e,
				.gid_index = -1,
				.silence_ns = 20 * NSEC_PER_MSEC,
				.connect_ns = connect_ns };

	memset(e, 0, sizeof(*e));
	e->node.ops = tlv_ops;
	assert_int_equal(tlv_ops->open(&o, &e->node.dev), 0);
	tlv_ops->caps(e->node.dev, &e->node.caps);
	tlv_ops->addr(e->node.dev, &e->node.addr);
	e->theirs = tlv_region(&e->node, BYTES, RV_ACCESS_REMOTE_READ, 3);
	e->mine = tlv_region(&e->node, BYTES, RV_ACCESS_LOCAL, 0);
}

static inline void pump_both(void)
{
	tlv_pump(&a.node, 0, -1);
	tlv_pump(&b.node, 0, -1);
}

#define UNTIL(cond) \
	do { \
		int64_t end_ = tlv_deadline_ns(); \
		while (!(cond)) { \
			assert_true(now_ns() < end_); \
			pump_both(); \
		} \
	} while (0)

/* Connects both ends. Each allows READs if it is told to. */
static inline void pair_meet(bool a_allows, bool b_allows)
{
	open_one_end(&a);
	open_one_end(&b);
	a.node.allow = a_allows;
	b.node.allow = b_allows;
	b.node.mode = TLV_ECHO;
	a.c = tlv_connect(&a.node, &b.node.addr, "hello", 5);
	UNTIL(a.c->up && b.node.nr_conns && b.node.conns[0].up);
	b.c = &b.node.conns[0];
}

static inline void pair_meet_up(void)
{
	pair_meet(true, true);
	UNTIL(a.c->reads_up && b.c->reads_up);
}

static inline void pair_part(void)
{
	tlv_close(&a.node);
	tlv_close(&b.node);
}

static inline struct rvi_pair *pair_of(const struct end *e)
{
	return &e->c->conn->pair;
}

static inline struct rv_read
read_for(const struct end *e, const struct end *from, unsigned at, uint32_t len)
{
	return (struct rv_read){ .cookie = at / 64,
				 .addr = from->theirs->mr.iova + at,
				 .rkey = from->theirs->mr.rkey,
				 .nr_sge = 1,
				 .sge = { { e->mine->mem + at, len, e->mine->mr.lkey } } };
}

/* Posts a READ of 64 bytes with that number. */
static inline void post_one_read(struct end *e, const struct end *from, unsigned nr, bool good)
{
	struct rv_read r = read_for(e, from, nr * 64, 64);

	r.rkey ^= good ? 0 : 0x5a0000;
	e->node.read_status[nr] = TLV_UNFINISHED;
	e->node.read_reports[nr] = 0;
	assert_int_equal(e->node.ops->post_reads(e->c->conn, &r, 1), 1);
}

static inline void must_read(struct end *e, const struct end *from)
{
	memset(e->mine->mem, TLV_PATTERN_LOCAL, BYTES);
	post_one_read(e, from, 5, true);
	UNTIL(e->node.read_status[5] != TLV_UNFINISHED);
	assert_int_equal(e->node.read_status[5], 0);
	assert_int_equal(tlv_differs(e->mine->mem + 320, 64, 3, 320), -1);
}

static inline void must_echo(unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		uint64_t got = a.c->nr_recv;

		assert_int_equal(tlv_send_next(a.c, 40), 0);
		UNTIL(a.c->nr_recv > got);
	}
	assert_int_equal(a.c->nr_bad + b.c->nr_bad, 0);
}

#endif
