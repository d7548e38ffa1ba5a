/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shm provider's regions, and the machine's limits: keys, mappings, no descriptors left. It
 * knows the provider's insides, unlike test/proc/verbs.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "test/proc/verbs/pair.h"
#include "verbs/shm/shm.h"

static struct rlimit descriptors; /* at the start */

static int restore(void **state)
{
	setrlimit(RLIMIT_NOFILE, &descriptors); /* a failed test may have left it low */
	return teardown(state);
}

/* --- regions ---------------------------------------------------------------------------------- */

static void reg__cannot_be_written_by_peers(void **state)
{
	struct tlv_region *r;
	struct rvs_key *k;
	char path[64];
	int fd;

	(void)state;
	assert_int_equal(tlv_open(&me, NULL), 0);
	r = tlv_region(&me, 8192, RV_ACCESS_REMOTE_READ, 1);
	k = r->mr.impl;
	assert_int_equal(fcntl(k->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, k->fd, 0),
			 MAP_FAILED);
	/* Opening it once more does not help. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", k->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(write(fd, "x", 1), -1);
	close(fd);
	r->mem[0] = 77; /* the owner may write */
}

static void reg__arguments(void **state)
{
	int plain = memfd_create("plain", MFD_CLOEXEC), tcp = socket(AF_UNIX, SOCK_STREAM, 0);
	static char mem[4096];
	struct rv_mr mr;

	(void)state;
	assert_int_equal(ftruncate(plain, 4096), 0);
	assert_int_equal(tlv_open(&me, NULL), 0);
	assert_int_equal(me.ops->reg(me.dev, mem, 0, -1, 4096, RV_ACCESS_LOCAL, &mr), -EINVAL);
	assert_int_equal(me.ops->reg(me.dev, mem, 4096, -1, UINT64_MAX - 100, RV_ACCESS_LOCAL, &mr),
			 -EINVAL);
	assert_int_equal(me.ops->reg(me.dev, mem, 4096, -1, 4096, RV_ACCESS_REMOTE_READ, &mr),
			 -EINVAL);
	assert_int_equal(me.ops->reg(me.dev, mem, 4096, tcp, 4096, RV_ACCESS_REMOTE_READ, &mr),
			 -EINVAL);
	assert_int_equal(me.ops->reg(me.dev, mem, 4097, plain, 4096, RV_ACCESS_REMOTE_READ, &mr),
			 -EINVAL);
	assert_true(strlen(rv_error_text()) > 0);
	/* Memory that cannot be sealed could shrink under its readers. So they do not take it. */
	assert_int_equal(me.ops->reg(me.dev, mem, 4096, plain, 4096, RV_ACCESS_REMOTE_READ, &mr),
			 -EINVAL);
	assert_non_null(strstr(rv_error_text(), "MFD_ALLOW_SEALING"));
	close(plain);
	close(tcp);
}

static void reg__all_keys(void **state)
{
	struct rv_mr *mr = calloc(RVS_NR_KEYS, sizeof(*mr)), more;
	static char mem[64];
	unsigned n = 0;

	(void)state;
	assert_int_equal(tlv_open(&me, NULL), 0);
	while (n < RVS_NR_KEYS && !me.ops->reg(me.dev, mem, 64, -1, 4096, RV_ACCESS_LOCAL, &mr[n]))
		n++;
	assert_int_equal(n, RVS_NR_KEYS);
	assert_int_equal(me.ops->reg(me.dev, mem, 64, -1, 4096, RV_ACCESS_LOCAL, &more), -ENOMEM);
	assert_true(strlen(rv_error_text()) > 0);
	assert_int_equal(me.ops->dereg(me.dev, &mr[4711]), 0);
	assert_int_equal(me.ops->reg(me.dev, mem, 64, -1, 4096, RV_ACCESS_LOCAL, &more), 0);
	assert_int_equal(RVS_KEY_INDEX(more.lkey), 4711);
	free(mr);
}

static unsigned nr_mapped(const char *name)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	unsigned n = 0;

	while (fgets(line, sizeof(line), f))
		n += strstr(line, name) != NULL;
	fclose(f);
	return n;
}

static void dereg__peers_let_go(void **state)
{
	(void)state;
	start_as(TLV_ECHO);
	struct tlv_conn *c = join();
	struct tlv_region *to = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);
	for (unsigned i = 0; i < 20; i++) {
		struct tlv_remote from = tlv_peer_region(&peer, 3 << 20, RV_ACCESS_REMOTE_READ, i);

		assert_int_equal(tlv_read(c, &from, 2 << 20, to, 4096), 0);
		assert_int_equal(nr_mapped("memfd:tl-region"), 2); /* mine, and its */
		tlv_tell(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = from.index});
		/* The node sleeps when it happens, and wakes. A release is no
		 * event, so this looks for itself. */
		while (nr_mapped("memfd:tl-region") > 1) {
			struct pollfd p = {.fd = me.ops->fd(me.dev), .events = POLLIN};
			struct rv_event ev;

			me.ops->arm(me.dev, 0);
			assert_int_equal(me.ops->poll(me.dev, &ev, 1, RV_POLL_SLOW), 0);
			if (nr_mapped("memfd:tl-region") > 1)
				assert_int_equal(poll(&p, 1, 20000), 1);
			me.ops->disarm(me.dev);
			assert_int_equal(me.ops->poll(me.dev, &ev, 1, RV_POLL_SLOW), 0);
		}
		assert_int_equal(nr_mapped("memfd:tl-region"), 1);
		tlv_hear(&peer);
	}
	assert_false(c->down);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* Registers more at the owner than our socket holds while we look away. The owner does not wait,
 * and nothing is lost. */
static void reg__peer_does_not_look(void **state)
{
	struct tlv_remote first, last;
	struct tlv_region *to;

	(void)state;
	start_as(TLV_ECHO);
	struct tlv_conn *c = join();
	to = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);
	first = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 20);
	for (unsigned i = 0; i < 3000; i++) {
		struct tlv_remote r = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 21);

		tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_UNREGION, .a = r.index});
	}
	last = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 22);
	assert_int_equal(tlv_read(c, &last, 0, to, 4096), 0);
	assert_int_equal(tlv_differs(to->mem, 4096, 22, 0), -1);
	assert_int_equal(tlv_read(c, &first, 0, to, 4096), 0);
	assert_int_equal(tlv_differs(to->mem, 4096, 20, 0), -1);
	assert_echo(c);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* --- limits ----------------------------------------------------------------------------------- */

static void read__largest_message_lowered(void **state)
{
	struct tlv_remote from;
	struct tlv_region *to;
	struct rv_read r;

	(void)state;
	setenv("RREF_SHM_MAX_MSG", "1000", 1);
	start_as(TLV_ECHO);
	unsetenv("RREF_SHM_MAX_MSG");
	assert_int_equal(me.caps.max_msg, 1000);
	struct tlv_conn *c = join();
	from = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 4);
	to = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);
	assert_int_equal(tlv_read(c, &from, 0, to, 1000), 0);
	r = (struct rv_read){.addr = from.iova, .rkey = from.rkey, .nr_sge = 2,
			     .sge = {{to->mem, 64, to->mr.lkey}, {to->mem + 64, 937, to->mr.lkey}}};
	assert_int_equal(me.ops->post_reads(c->conn, &r, 1), -EMSGSIZE);
	assert_int_equal(tlv_read(c, &from, 0, to, 1000), 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/*
 * Fails at every place where a descriptor is made or received, by counting. There is room for k
 * more, for k = 0, 1, ... until all succeeds. Each failure is an error with a text (or a FAILED
 * event), and leaves nothing behind.
 */
static void descriptors__run_out(void **state)
{
	struct rlimit old = descriptors, low;
	unsigned k, base, first;
	bool all = false;

	(void)state;
	tlv_fork(&peer);
	tlv_peer_open(&peer, NULL);
	tlv_peer_policy(&peer, TLV_ACCEPT, TLV_ECHO, true, NULL, 0);
	base = tlv_open_fds();
	first = tlv_lowest_free_fd(); /* the next one to be taken, and most later ones after it */
	for (k = 0; !all && k < 40; k++) {
		struct tlv_conn *c;
		int rc;

		low = (struct rlimit){first + k, old.rlim_max};
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
		rc = tlv_open(&me, NULL);
		if (rc) {
			assert_true(rc == -EMFILE);
			assert_non_null(strstr(rv_error_text(), "shm: "));
			me.ops = NULL;
			goto next;
		}
		me.allow = true;
		c = tlv_connect(&me, &peer.addr, "x", 1);
		if (c->status) {
			assert_int_equal(c->status, -EMFILE);
			assert_true(strlen(rv_error_text()) > 0);
			goto next;
		}
		while (!c->up && !c->failed)
			assert_true(tlv_pump(&me, 10000, -1) > 0);
		if (c->failed) {
			assert_int_equal(c->status, -EMFILE);
			goto next;
		}
		all = tlv_region(&me, 4096, RV_ACCESS_REMOTE_READ, 0) != NULL;
next:
		setrlimit(RLIMIT_NOFILE, &old);
		tlv_close(&me);
		/* A thread closes a socket whose descriptors could not be looked at. */
		for (int64_t end = tlv_deadline_ns(); tlv_open_fds() != base && now_ns() < end; )
			sched_yield();
		assert_int_equal(tlv_open_fds(), base);
	}
	assert_true(all);
	assert_true(k > 6); /* else the descriptors were not counted from the right place */
	tlv_peer_exit(&peer);
}

/* Does the same at the accepting side. A peer is refused and not
 * left waiting, and later ones are served. */
static void descriptors__run_out_at_the_listener(void **state)
{
	struct rlimit old = descriptors, low;
	bool all = false;
	struct tlv_msg m;
	unsigned base;

	(void)state;
	start_as(TLV_ECHO);
	m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_COUNT});
	base = (unsigned)m.a;
	for (unsigned k = 0; !all && k < 12; k++) {
		struct tlv_conn *c;
		unsigned left;

		low = (struct rlimit){m.c + k, old.rlim_max};
		assert_int_equal(prlimit(peer.pid, RLIMIT_NOFILE, &low, NULL), 0);
		c = tlv_connect(&me, &peer.addr, "x", 1);
		while (!c->up && !c->failed)
			assert_true(tlv_pump(&me, 10000, -1) > 0);
		if (c->failed) {
			/* The peer failed at accept, at hello, or in making its
			 * box. It lives, and says so. */
			assert_int_equal(c->status, -EAGAIN);
		}
		all = c->up;
		assert_int_equal(prlimit(peer.pid, RLIMIT_NOFILE, &old, NULL), 0);
		tlv_close_conn(c);
		for (unsigned i = 0; i < 1000; i++) {
			left = (unsigned)tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_COUNT}).a;
			if (left == base)
				break;
			tlv_sleep_ms(2);
		}
		assert_int_equal(left, base);
	}
	assert_true(all);
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(dereg__peers_let_go, restore),
		cmocka_unit_test_teardown(descriptors__run_out, restore),
		cmocka_unit_test_teardown(descriptors__run_out_at_the_listener, restore),
		cmocka_unit_test_teardown(read__largest_message_lowered, restore),
		cmocka_unit_test_teardown(reg__all_keys, restore),
		cmocka_unit_test_teardown(reg__arguments, restore),
		cmocka_unit_test_teardown(reg__cannot_be_written_by_peers, restore),
		cmocka_unit_test_teardown(reg__peer_does_not_look, restore),
	};

	getrlimit(RLIMIT_NOFILE, &descriptors);
	unsetenv("RREF_TEST_DEVICE");
	tlv_ops = &rv_shm_ops;
	return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
