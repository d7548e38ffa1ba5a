/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors that take long to close, handed over through a socket of worker 1. A TCP socket with
 * SO_LINGER and unread bytes is such a descriptor: its last close waits. The receiver makes the
 * last close if the sender has closed its own, even if it never received the descriptor. Worker 1
 * goes on with its work all the while, though these would hold it up for ten minutes.
 */
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_foe.h"
#include "verbs/shm/shm.h"

#define OTHER_UID 12347
#define LINGER_S  600
#define MANY      20u

/* Returns a socket whose close waits. Its other end reads
 * nothing, and lasts as long as the listener. */
static int lingering(int listener)
{
	struct linger linger = { 1, LINGER_S };
	struct sockaddr_in a;
	static char bytes[65536];
	socklen_t len = sizeof(a);
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	TG_OK(getsockname(listener, (struct sockaddr *)&a, &len));
	TG_OK(connect(sock, (struct sockaddr *)&a, len));
	while (send(sock, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	TG_OK(setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
	return sock;
}

/*
 * Sends `length` bytes of a packet and nr lingering descriptors. A process that ends has their
 * other copies: no close waits for it.
 */
static void send_lingering(int sock, const struct rvs_packet *p, size_t length, unsigned nr)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * 8)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)p, .iov_len = length };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = CMSG_SPACE(sizeof(int) * nr) };
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), copy = dup(sock), status;
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	pid_t pid;

	TG_OK(bind(listener, (struct sockaddr *)&a, sizeof(a)));
	TG_OK(listen(listener, 8));
	pid = fork(); /* the child loses the device's own descriptors */
	TG_CHECK(pid >= 0 && copy >= 0);
	if (!pid) {
		int fds[8];

		for (unsigned i = 0; i < nr; i++)
			fds[i] = lingering(listener);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nr);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nr);
		(void)!sendmsg(copy, &msg, MSG_NOSIGNAL); /* worker 1 may have hung up */
		_exit(0);
	}
	close(copy);
	TG_IS(waitpid(pid, &status, 0), pid);
	TG_IS(status, 0);
}

static int dial(const struct rv_addr *to)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	size_t len;
	const char *name = rvs_name(to, &len);

	memcpy(sun.sun_path + 1, name, len);
	TG_CHECK(sock >= 0);
	TG_OK(connect(sock, (struct sockaddr *)&sun,
		      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)));
	return sock;
}

static struct rvs_packet packet(enum rvs_packet_type type)
{
	struct rvs_packet p;

	memset(&p, 0, sizeof(p));
	p.magic = RVS_MAGIC;
	p.version = RVS_VERSION;
	p.type = (uint16_t)type;
	p.credits = 8;
	return p;
}

/* Waits until worker 1 has hung up. */
static void until_hung_up(int sock)
{
	char bytes[sizeof(struct rvs_packet)];

	while (recv(sock, bytes, sizeof(bytes), 0) > 0)
		;
	close(sock);
}

/* Sends each over a separate connection, as a process without the key can do. */
static void as_stranger(const struct rv_addr *to)
{
	struct rvs_packet hello = packet(RVS_PKT_HELLO), other = packet(RVS_PKT_HELLO);
	int sock;

	other.version++;
	for (unsigned kind = 0; kind < 6; kind++) {
		sock = dial(to);
		switch (kind) {
		case 0: send_lingering(sock, &hello, sizeof(hello), 2); break;
		case 1: send_lingering(sock, &hello, sizeof(hello), 5); break;
		case 2: send_lingering(sock, &other, sizeof(other), 1); break;
		case 3: send_lingering(sock, &hello, 3, 1); break;
		case 4: send_lingering(sock, &hello, 0, 1); break;
		default: /* the worker looks at the packet before alone */
			TG_CHECK(send(sock, "", 0, MSG_NOSIGNAL) == 0);
			send_lingering(sock, &hello, sizeof(hello), 1);
		}
		until_hung_up(sock);
		foe_others_work();
	}
}

FOE_TEST(stranger__hands_over_slow_descriptors)
{
	as_stranger(&f->members[1].addr[RV_SHM]);
	foe_meet(f, 1);
	foe_still_served(f);
}

/* Connects while worker 1 does not look: the connections wait in
 * its listener with their descriptors. */
FOE_TEST(other_user__hands_over_slow_descriptors)
{
	struct rvs_packet hello = packet(RVS_PKT_HELLO);
	pid_t worker = tg_current->shared->pid[1], pid;
	int status, done[2];
	char byte;

	if (geteuid()) {
		fprintf(stderr, "skipped: needs root to become another user\n");
		return;
	}
	TG_OK(pipe(done));
	TG_OK(kill(worker, SIGSTOP));
	pid = fork();
	TG_CHECK(pid >= 0);
	if (!pid) {
		if (setgid(OTHER_UID) || setuid(OTHER_UID))
			_exit(2);
		for (unsigned i = 0; i < MANY; i++)
			send_lingering(dial(&f->members[1].addr[RV_SHM]), &hello, sizeof(hello), 1);
		/* The other ends of the descriptors live as long as this process. */
		(void)!write(done[1], "", 1);
		for (;;)
			pause();
	}
	close(done[1]);
	TG_IS((int)read(done[0], &byte, 1), 1);
	TG_OK(kill(worker, SIGCONT));
	foe_others_work();
	foe_meet(f, 1);
	foe_still_served(f);
	TG_OK(kill(pid, SIGKILL));
	TG_IS(waitpid(pid, &status, 0), pid);
	close(done[0]);
}

FOE_TEST(member__hands_over_slow_descriptors)
{
	struct rvs_packet region = packet(RVS_PKT_REGION), wake = packet(RVS_PKT_WAKE),
			  again = packet(RVS_PKT_AGAIN);

	region.word = RVS_WORD(0x10009u, 1);
	region.iova = UINT64_C(1) << 33;
	region.length = 4096;
	for (unsigned kind = 0; kind < 6; kind++) {
		foe_meet(f, 1);
		switch (kind) {
		case 0: send_lingering(f->conn->sock, &region, sizeof(region), 1); break;
		case 1: send_lingering(f->conn->sock, &region, sizeof(region), 4); break;
		case 2: send_lingering(f->conn->sock, &wake, (size_t)RVS_HEAD_BYTES, 1); break;
		case 3: send_lingering(f->conn->sock, &wake, (size_t)RVS_HEAD_BYTES, 3); break;
		case 4: send_lingering(f->conn->sock, &again, sizeof(again), 1); break;
		default: /* more than worker 1 takes in a window */
			for (unsigned i = 0; i < RVS_WINDOW_PACKETS + 2; i++)
				TG_OK(rvs_wake_send(f->conn->sock));
			send_lingering(f->conn->sock, &region, sizeof(region), 1);
			shutdown(f->conn->sock, SHUT_RDWR);
		}
		FOE_UNTIL(f, f->ended);
		foe_others_work();
	}
	foe_meet(f, 1);
	foe_still_served(f);
}

/* Closes a device whose listener holds such descriptors too. */
static void device__closes_beside_slow_descriptors(void **state)
{
	struct rv_options options = { .max_conns = 4 };
	struct rvs_packet hello = packet(RVS_PKT_HELLO);
	struct rv_addr addr;
	struct rv_dev *dev;

	(void)state;
	assert_int_equal(rv_shm_ops.open(&options, &dev), 0);
	rv_shm_ops.addr(dev, &addr);
	for (unsigned i = 0; i < 3; i++)
		send_lingering(dial(&addr), &hello, sizeof(hello), 1);
	alarm(60);
	rv_shm_ops.close(dev);
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(member__hands_over_slow_descriptors),
		cmocka_unit_test(other_user__hands_over_slow_descriptors),
		cmocka_unit_test(stranger__hands_over_slow_descriptors),
		/* Last: it leaves threads, and the thread sanitizer forbids forks then. */
		cmocka_unit_test(device__closes_beside_slow_descriptors),
	};

	return cmocka_run_group_tests_name("shm_slow_close", tests, NULL, NULL);
}
