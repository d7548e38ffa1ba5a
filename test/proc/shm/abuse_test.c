/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shm provider against a hostile peer: nonsense in shared memory and on the socket, other
 * users, silence, full sockets. It knows the provider's insides, unlike test/proc/verbs.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "test/proc/verbs/pair.h"
#include "verbs/shm/shm.h"

static void assert_peer_ends_it(unsigned index, int status)
{
	struct tlv_conn other;

	assert_true(tlv_peer_until_down(&peer, &me, index, &other));
	assert_int_equal(other.status, status);
	assert_int_equal(other.nr_disconnected, 1);
}

/* --- keys ------------------------------------------------------------------------------------- */

/* Reads by the key 0, which opens nothing, also where a region was mapped before. */
static void key__zero(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 5);
	struct tlv_region *to = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);
	struct tlv_msg gone = { .op = TLV_OP_UNREGION, .a = from.index };
	int64_t deadline = tlv_deadline_ns();

	(void)state;
	assert_int_equal(RVS_KEY_INDEX(from.rkey), 0);
	assert_reads(c, &from, 5, to);
	assert_int_equal(tlv_ask(&peer, gone).status, 0);
	while (at_load(&c->conn->segs[0].word) && now_ns() < deadline)
		tlv_pump(&me, 10, -1);
	assert_int_equal(at_load(&c->conn->segs[0].word), 0);
	from.rkey = 0;
	assert_int_equal(tlv_read(c, &from, 100, to, 1000), -EACCES);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/*
 * Acts as if the peer said all the time that it has revoked a region. Its few regions have high
 * indexes, so a look goes through the whole table. There is one look in a window.
 */
static void revoked__all_the_time(void **state)
{
	struct tlv_conn *c = start_joined(TLV_COUNT);
	struct tlv_remote from = tlv_peer_region(&peer, 4096, RV_ACCESS_REMOTE_READ, 5);
	struct tlv_region *to = tlv_region(&me, 4096, RV_ACCESS_LOCAL, 0);
	struct rv_conn *conn = c->conn;
	int64_t now = now_ns();
	unsigned looks = 0;

	(void)state;
	assert_reads(c, &from, 5, to);
	assert_int_equal(conn->nr_mapped, 1);
	conn->segs_end = RVS_NR_KEYS;
	for (int64_t t = 0; t < 10 * RVS_WINDOW_NS; t += RVS_WINDOW_NS / 100) {
		conn->seen_revoked++;
		looks += !rvs_drop_revoked(conn, now + t);
	}
	assert_in_range(looks, 10, 11);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* --- nonsense over an established connection -------------------------------------------------- */

static uint64_t word(uint32_t pos, uint32_t len, uint32_t slot)
{
	return (uint64_t)(pos + 1) << 32 | (uint64_t)len << 16 | slot;
}

static void nonsense__in_the_message_ring(void **state)
{
	const struct { uint32_t len, slot; } bad[] = {
		{10, 64}, {10, 0xffff}, {0, 1}, {RV_MSG_MAX + 1, 1}, {0xffff, 1},
	};

	(void)state;
	start_as(TLV_ECHO);
	struct tlv_conn *good = join();
	for (unsigned i = 0; i < array_size(bad); i++) {
		struct tlv_conn *c = join();
		struct rvs_ring *tx = &c->conn->tx;

		assert_echo(c);
		at_store_sc(&tx->post[tx->post_pos & tx->mask].word,
			    word(tx->post_pos, bad[i].len, bad[i].slot));
		rvs_wake(c->conn);
		assert_peer_ends_it(i + 1, -EPROTO);
		assert_true(tlv_until(&me, &c->down));
		tlv_close_conn(c);
		assert_echo(good);
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void nonsense__slot_of_the_receiver(void **state)
{
	(void)state;
	start_as(TLV_KEEP);
	struct tlv_conn *good = join(), *c = join();
	struct rvs_ring *tx = &c->conn->tx;

	assert_int_equal(tlv_send_next(c, 10), 0);
	/* slot 0 again */
	at_store_sc(&tx->post[tx->post_pos & tx->mask].word, word(tx->post_pos, 10, 0));
	rvs_wake(c->conn);
	assert_peer_ends_it(1, -EPROTO);
	assert_int_equal(tlv_peer_conn(&peer, 1).nr_recv, 1);
	assert_false(good->down);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void nonsense__in_the_returned_slots(void **state)
{
	const uint32_t bad[] = {63, 64, 0xffff}; /* never used, no key, no key */

	(void)state;
	start_as(TLV_COUNT);
	struct tlv_conn *good = join();
	for (unsigned i = 0; i < array_size(bad); i++) {
		struct tlv_conn *c = join();
		struct rvs_ring *rx = &c->conn->rx;
		struct tlv_msg m;

		at_store_sc(&rx->back[rx->back_pos & rx->mask], word(rx->back_pos, 0, bad[i]));
		m = tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_SEND, .a = i + 1, .b = 1, .c = 9});
		assert_int_equal(m.status, -ENOTCONN);
		assert_peer_ends_it(i + 1, -EPROTO);
		assert_true(tlv_until(&me, &c->down));
		tlv_close_conn(c);
	}
	assert_int_equal(tlv_send_next(good, 9), 0);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void nonsense__on_the_socket(void **state)
{
	int memfd = memfd_create("abuse", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int pipe_fds[2], fd;
	struct rvs_packet p;

	(void)state;
	assert_int_equal(ftruncate(memfd, 4096), 0);
	assert_int_equal(pipe(pipe_fds), 0);
	start_as(TLV_ECHO);
	struct tlv_conn *good = join();
	for (unsigned i = 0; i < 7; i++) {
		struct tlv_conn *c = join();
		int sock = c->conn->sock, *fds = &fd;
		unsigned nr_fds = 1;
		enum rvs_packet_type type = RVS_PKT_REGION;

		memset(&p, 0, sizeof(p));
		p.word = RVS_WORD(0x10003u, 1);
		p.length = 4096;
		fd = memfd;
		switch (i) {
		case 0: nr_fds = 0; break;                  /* no memory */
		case 1: fd = pipe_fds[0]; break;            /* not memory */
		case 2: p.length = 4097; break;             /* less memory than it says */
		case 3: p.length = UINT64_C(1) << 62; break;
		case 4: p.iova = UINT64_MAX - 100; break;   /* wraps */
		case 5: type = RVS_PKT_HELLO; break;        /* not now */
		default: break;
		}
		if (i == 6)
			assert_int_equal(send(sock, "junk", 4, MSG_NOSIGNAL), 4);
		else
			assert_int_equal(rvs_packet_send(sock, &p, type, fds, nr_fds), 0);
		assert_peer_ends_it(i + 1, -EPROTO);
		assert_true(tlv_until(&me, &c->down));
		tlv_close_conn(c);
		assert_echo(good);
	}
	rvs_close_fds((int[]){memfd, pipe_fds[0], pipe_fds[1]}, 3);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* --- nonsense instead of a handshake ---------------------------------------------------------- */

static int raw_connect(const struct rv_addr *to)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	size_t len;
	const char *name = rvs_name(to, &len);
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(sun.sun_path + 1, name, len);
	if (connect(s, (struct sockaddr *)&sun,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len))) {
		close(s);
		return -1;
	}
	return s;
}

/* Returns the peer's words before the end: 0 nothing, -2 not a
 * REJECT, else the status of a REJECT. -1: it did not end. */
static int raw_end(int s)
{
	struct timeval tv = {.tv_sec = 20};
	struct rvs_packet p;
	int status = 0;
	ssize_t n;

	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	while ((n = recv(s, &p, sizeof(p), 0)) > 0)
		status = p.type == RVS_PKT_REJECT ? p.status : -2;
	if (n < 0 && errno != ECONNRESET)
		status = -1;
	close(s);
	return status;
}

static void hello__garbage(void **state)
{
	char bytes[300];

	(void)state;
	start_as(TLV_ECHO);
	struct tlv_conn *good = join();
	for (unsigned i = 0; i < 300; i++) {
		int s = raw_connect(&peer.addr);

		assert_true(s >= 0);
		for (unsigned k = 0; k < sizeof(bytes); k++)
			bytes[k] = (char)(random() >> 8);
		(void)!send(s, bytes, i, MSG_NOSIGNAL);
		if (i % 50 == 0)
			assert_echo(good);
		if (i % 3)
			close(s);
		else
			assert_int_equal(raw_end(s), 0);
	}
	assert_echo(good);
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static uint64_t peer_fds(void)
{
	return tlv_ask(&peer, (struct tlv_msg){.op = TLV_OP_COUNT}).a;
}

static void hello__malformed(void **state)
{
	uint64_t before;

	(void)state;
	start_as(TLV_ECHO);
	struct tlv_conn *good = join();
	before = peer_fds();
	for (unsigned i = 0; i < 11; i++) {
		int page = me.dev->page_fd, s = raw_connect(&peer.addr), box = -1, other;
		struct rvs_ring rx;
		struct rvs_packet p;
		int fds[2], nr = 2, expected = 0;

		assert_true(s >= 0);
		assert_int_equal(rvs_box_create(&rx, 8, &box), 0);
		other = memfd_create("abuse", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(other, sizeof(struct rvs_page)), 0);
		memset(&p, 0, sizeof(p));
		p.magic = RVS_MAGIC;
		p.version = RVS_VERSION;
		p.type = RVS_PKT_HELLO;
		p.credits = 8;
		memcpy(fds, (int[]){page, box}, sizeof(fds));
		switch (i) {
		case 0: nr = 1; break;
		case 1: p.credits = 9; break;                /* more than the box has */
		case 2: p.credits = 3; break;
		case 3: p.credits = UINT32_MAX; break;
		case 4: fds[0] = box; break;                 /* too small */
		case 5: fds[0] = other; break;               /* could shrink under its reader */
		case 6: fds[1] = other; break;
		case 7: fds[1] = s; break;                   /* not memory */
		case 8: p.len = RV_HELLO_MAX + 1; break;
		case 9: p.type = RVS_PKT_ACCEPT; break;
		case 10: rvs_seal(other, false); fds[0] = other; break; /* a page of zeros */
		}
		assert_int_equal(rvs_packet_send(s, &p, (enum rvs_packet_type)p.type, fds,
						 (unsigned)nr),
				 0);
		assert_int_equal(raw_end(s), expected);
		close(box);
		close(other);
		rvs_ring_fini(&rx);
	}
	struct {
		uint32_t magic;
		uint16_t version, type;
		char rest[600];
	} old = { RVS_MAGIC, RVS_VERSION + 1, 1, "" };
	int s = raw_connect(&peer.addr);
	assert_int_equal(send(s, &old, sizeof(old), 0), sizeof(old));
	assert_int_equal(raw_end(s), EPROTONOSUPPORT);
	assert_echo(good);
	/* A thread of the peer's closes what a close may wait for, in its own time. */
	for (int64_t end = tlv_deadline_ns(); peer_fds() != before; tlv_sleep_ms(1))
		assert_true(now_ns() < end);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void hello__never_comes(void **state)
{
	int s[100];
	unsigned nr_closed = 0;

	(void)state;
	start_as(TLV_ECHO);
	struct tlv_conn *good = join();
	for (unsigned i = 0; i < array_size(s); i++) {
		s[i] = raw_connect(&peer.addr);
		assert_true(s[i] >= 0);
		if (i % 20 == 0)
			assert_echo(good);
	}
	/* More than 64 may not be silent at once: the longest silent ones go. */
	for (int64_t end = tlv_deadline_ns();
	     nr_closed < array_size(s) - RVS_MAX_GREETING && now_ns() < end;) {
		char c;

		nr_closed = 0;
		for (unsigned i = 0; i < array_size(s); i++)
			nr_closed += recv(s[i], &c, 1, MSG_DONTWAIT) == 0;
		tlv_pump(&me, 1, -1);
	}
	assert_int_equal(nr_closed, array_size(s) - RVS_MAX_GREETING);
	/* A peer that speaks is not kept out by them. */
	assert_echo(good);
	assert_echo(join());
	/* All are closed in the end, though the peer sleeps. */
	for (unsigned i = 0; i < array_size(s); i++) {
		int told = raw_end(s[i]);

		assert_true(told == 0 ||
			    told == EAGAIN); /* EAGAIN: it made room for
					      * another, and may come again */
	}
	assert_echo(join());
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* Replaces the listener with a foreign one. */
static void answer__malformed(void **state)
{
	const int expected[] = { -ECONNRESET, -EPROTO, -EPROTONOSUPPORT,
				 -EPROTO,     -EPROTO, -EPROTONOSUPPORT };
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	struct rv_addr addr;
	size_t len;
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	(void)state;
	assert_int_equal(tlv_open(&me, NULL), 0);
	assert_int_equal(rvs_self(&addr), 0);
	const char *name = rvs_name(&addr, &len);
	memcpy(sun.sun_path + 1, name, len);
	assert_int_equal(bind(listener, (struct sockaddr *)&sun,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)), 0);
	assert_int_equal(listen(listener, 8), 0);
	for (unsigned i = 0; i < array_size(expected); i++) {
		struct tlv_conn *c = tlv_connect(&me, &addr, "x", 1);
		int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		struct rvs_packet p;

		assert_true(s >= 0);
		memset(&p, 0, sizeof(p));
		switch (i) {
		case 0: break;
		case 1: (void)!send(s, "junk, and more of it", 20, 0); break;
		case 2:
			p.magic = RVS_MAGIC;
			p.version = RVS_VERSION + 7;
			(void)!send(s, &p, sizeof(p), 0);
			break;
		case 3: rvs_packet_send(s, &p, RVS_PKT_ACCEPT, NULL, 0); break;
		case 4: rvs_packet_send(s, &p, RVS_PKT_HELLO, NULL, 0); break;
		case 5:
			p.status = EPROTONOSUPPORT;
			rvs_packet_send(s, &p, RVS_PKT_REJECT, NULL, 0);
			break;
		}
		close(s);
		assert_true(tlv_until(&me, &c->failed));
		assert_int_equal(c->status, expected[i]);
		tlv_close_conn(c);
	}
	close(listener);
}

static int say_hello(struct tlv_node *n)
{
	struct rvs_packet p = {.credits = 8};
	struct rvs_ring rx;
	int box, s = raw_connect(&peer.addr);

	if (s < 0 || rvs_box_create(&rx, 8, &box))
		return -3;
	/* The connection may have been dropped already. */
	(void)rvs_packet_send(s, &p, RVS_PKT_HELLO, (int[]){n->dev->page_fd, box}, 2);
	return raw_end(s);
}

static void connect__of_another_user(void **state)
{
	int status, s[2];
	char c;
	pid_t pid;

	(void)state;
	if (geteuid()) {
		print_message("skipped: needs root to become another user\n");
		skip();
	}
	start_as(TLV_ECHO);
	struct tlv_conn *good = join();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	fflush(NULL);
	pid = fork();
	if (!pid) {
		static struct tlv_node other;
		struct tlv_conn *mine;

		if (setgid(65534) || setuid(65534) || tlv_open(&other, NULL))
			_exit(2);
		mine = tlv_connect(&other, &peer.addr, "x", 1);
		if (!tlv_until(&other, &mine->failed) || mine->status != -ECONNREFUSED)
			_exit(3);
		/* We have checked the listener's owner. Now the listener checks
		 * us: a proper hello is not answered. */
		if (say_hello(&other) != 0)
			_exit(6);
		/* No peer connects to this listener either. */
		if (send(s[1], &other.addr, sizeof(other.addr), 0) != sizeof(other.addr))
			_exit(4);
		while (recv(s[1], &c, 1, MSG_DONTWAIT) != 1)
			tlv_pump(&other, 5, -1);
		_exit(other.nr_conns == 1 ? 0 : 5);
	}
	struct rv_addr addr;
	assert_int_equal(recv(s[0], &addr, sizeof(addr), 0), sizeof(addr));
	struct tlv_conn *mine = tlv_connect(&me, &addr, "x", 1);
	assert_true(tlv_until(&me, &mine->failed));
	assert_int_equal(mine->status, -ECONNREFUSED);
	assert_int_equal(send(s[0], "x", 1, 0), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(s[0]);
	close(s[1]);
	assert_echo(good);
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

/* Fills the listener's backlog. Connecting waits for room, within its deadline. */
static void connect__backlog_full(void **state)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int s[300], rc = 0;
	unsigned nr = 0;
	size_t len;

	(void)state;
	start_as(TLV_ECHO);
	const char *name = rvs_name(&peer.addr, &len);
	memcpy(sun.sun_path + 1, name, len);
	len += offsetof(struct sockaddr_un, sun_path) + 1;
	for (unsigned round = 0; round < 2; round++) {
		struct tlv_conn *c;

		kill(peer.pid, SIGSTOP);
		for (nr = 0; nr < array_size(s); nr++) {
			s[nr] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
			rc = connect(s[nr], (struct sockaddr *)&sun, (socklen_t)len);
			if (rc)
				break;
		}
		assert_int_equal(rc, -1);
		assert_int_equal(errno, EAGAIN);
		c = tlv_connect(&me, &peer.addr, "x", 1);
		tlv_pump_for(&me, 100);
		assert_false(c->up || c->failed);
		for (unsigned i = 0; i <= nr; i++)
			close(s[i]);
		if (round) { /* no thread makes room */
			assert_true(tlv_until(&me, &c->failed));
			assert_int_equal(c->status, -ETIMEDOUT);
		}
		kill(peer.pid, SIGCONT);
		if (!round) {
			assert_true(tlv_until(&me, &c->up));
			assert_echo(c);
		}
		tlv_close_conn(c);
		assert_echo(join());
	}
	tlv_close(&me);
	tlv_peer_exit(&peer);
}

static void connect__to_oneself(void **state)
{
	struct tlv_conn *c;
	struct tlv_region *to, *from;
	struct tlv_remote remote;

	(void)state;
	assert_int_equal(tlv_open(&me, NULL), 0);
	me.allow = true;
	c = tlv_connect(&me, &me.addr, "me", 2);
	assert_true(tlv_until(&me, &c->up));
	while (me.nr_conns < 2 || !me.conns[1].up)
		assert_true(tlv_pump(&me, 5000, -1) > 0);
	from = tlv_region(&me, 5000, RV_ACCESS_REMOTE_READ, 3);
	to = tlv_region(&me, 5000, RV_ACCESS_LOCAL, 0);
	remote = (struct tlv_remote){from->mr.iova, from->mr.rkey, 5000, 0};
	assert_int_equal(tlv_read(c, &remote, 1, to, 4999), 0);
	assert_int_equal(tlv_differs(to->mem, 4999, 3, 1), -1);
	assert_int_equal(tlv_send_next(c, 100), 0);
	assert_true(tlv_until_count(&me, &me.conns[1].nr_recv, 1));
	assert_int_equal(me.conns[1].nr_bad, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(key__zero),
		TEST(revoked__all_the_time),
		TEST(answer__malformed),
		TEST(connect__backlog_full),
		TEST(connect__of_another_user),
		TEST(connect__to_oneself),
		TEST(hello__garbage),
		TEST(hello__never_comes),
		TEST(hello__malformed),
		TEST(nonsense__in_the_message_ring),
		TEST(nonsense__in_the_returned_slots),
		TEST(nonsense__on_the_socket),
		TEST(nonsense__slot_of_the_receiver),
	};

	unsetenv("RREF_TEST_DEVICE");
	tlv_ops = &rv_shm_ops;
	return cmocka_run_group_tests_name("abuse", tests, NULL, NULL);
}
