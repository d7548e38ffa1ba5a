/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue of finished READs holds all that can be under way, and nothing more. The completions of
 * a connection that was closed must not take the place of those of its successor.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "base/util.h"
#include "fv.h"
#include "test/lib/tl_rv.h"

#define READS 64u /* READs of a connection, at most */
#define TIMES 5 /* connections, one after the other */

static struct tlv_node reader, owner;
static int nr_closed; /* fences of the reader that are over */

static void open_node(struct tlv_node *n, const char *device, struct rv_options o)
{
	memset(n, 0, sizeof(*n));
	n->ops = &rv_ibv_ops;
	o.device = device;
	o.gid_index = -1;
	assert_int_equal(n->ops->open(&o, &n->dev), 0);
	n->ops->caps(n->dev, &n->caps);
	n->ops->addr(n->dev, &n->addr);
	n->allow = n->close_ended = true;
}

/* Takes in the reader's events, but no READ that ended well. Returns its connection if READs may go
 * over it. */
static struct rv_conn *look_at_events(void)
{
	struct rv_conn *up = NULL;
	struct rv_event ev[16];
	int n = reader.ops->poll(reader.dev, ev, 16, RV_POLL_SLOW);

	assert_in_range(n, 0, 16);
	for (int i = 0; i < n; i++) {
		assert_int_not_equal(ev[i].type, RV_EV_DEVICE);
		assert_int_not_equal(ev[i].type, RV_EV_FAILED);
		nr_closed += ev[i].type == RV_EV_CLOSED;
		if (ev[i].type == RV_EV_CONNECTED)
			assert_int_equal(reader.ops->allow_reads(ev[i].conn), 0);
		if (ev[i].type == RV_EV_READS_UP)
			up = ev[i].conn;
	}
	tlv_pump(&owner, 0, -1);
	return up;
}

static struct rv_conn *connect_to_owner(void)
{
	int64_t deadline = tlv_deadline_ns();
	struct rv_conn *conn, *up = NULL;

	assert_int_equal(reader.ops->connect(reader.dev, &owner.addr, "hello", 5, NULL, &conn), 0);
	while (!up) {
		assert_true(now_ns() < deadline);
		up = look_at_events();
	}
	assert_ptr_equal(up, conn);
	return conn;
}

static void reads__of_closed_connections(void **state)
{
	struct tlv_region *from, *to;
	struct rv_read r[READS];

	(void)state;
	fv_use(0, fv_profile("rxe")); /* lets completions outlive their queue pair */
	fv_use(1, fv_profile("rxe"));
	open_node(&reader, "fake0", (struct rv_options){ .max_conns = 1, .max_reads = READS });
	open_node(&owner, "fake1", (struct rv_options){ .max_conns = 8 });
	from = tlv_region(&owner, 4096, RV_ACCESS_REMOTE_READ, 1);
	to = tlv_region(&reader, 4096, RV_ACCESS_LOCAL, 0);
	assert_true(from && to);
	for (unsigned i = 0; i < READS; i++)
		r[i] = (struct rv_read){ .addr = from->mr.iova,
					 .rkey = from->mr.rkey,
					 .nr_sge = 1,
					 .sge[0] = { to->mem, 64, to->mr.lkey } };
	for (int i = 0; i < TIMES; i++) {
		struct rv_conn *conn = connect_to_owner();

		assert_int_equal(reader.ops->post_reads(conn, r, READS), READS);
		assert_true(reader.ops->close_conn(conn));
		for (int64_t by = tlv_deadline_ns(); nr_closed <= i; look_at_events())
			assert_true(now_ns() < by);
	}
	look_at_events();
	tlv_close(&reader);
	tlv_close(&owner);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads__of_closed_connections),
	};

	return cmocka_run_group_tests_name("overrun", tests, NULL, NULL);
}
