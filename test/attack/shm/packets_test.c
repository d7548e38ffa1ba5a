/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of every kind, length and number of descriptors, and descriptors of every kind, over a
 * socket of worker 1. Strangers send them, and a member does. Worker 1 goes on with its work, and
 * in the end has as many descriptors and mappings as before.
 */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <cmocka.h>

#include "tg_attack.h"
#include "verbs/shm/shm.h"

#define FDS 4u
#define SEALED (F_SEAL_SHRINK | F_SEAL_GROW)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER true /* allocators map as they please */
#else
#define UNDER_SANITIZER false
#endif

enum {
	DIRECTORY,
	NO_MORE_THAN_A_PATH,
	DEVICE,
	PIPE,
	SOCKET,
	SOCKET_PAIR,
	EPOLL,
	PLAIN_FILE,
	UNSEALED,
	SEALED_SHORT,
	ONLY_GROW,
	SEALED_WRITE,
	SEALED_GOOD,
	NR_KINDS
};

static int make_fd(int kind)
{
	static int pair[2] = { -1, -1 }, ends[2];
	char name[] = "/tmp/rref-packets-XXXXXX";
	int fd;

	if (pair[0] < 0)
		TG_OK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) || pipe(ends));
	switch (kind) {
	case DIRECTORY: return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case NO_MORE_THAN_A_PATH: return open("/proc/self/exe", O_PATH | O_CLOEXEC);
	case DEVICE: return open("/dev/zero", O_RDWR | O_CLOEXEC);
	case PIPE: return dup(ends[0]);
	case SOCKET: return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	case SOCKET_PAIR: return dup(pair[0]);
	case EPOLL: return epoll_create1(EPOLL_CLOEXEC);
	case PLAIN_FILE:
		fd = mkstemp(name);
		unlink(name);
		TG_OK(ftruncate(fd, 1 << 20));
		return fd;
	case UNSEALED: return tg_memory(MFD_ALLOW_SEALING, 0, 1 << 20);
	case SEALED_SHORT: return tg_memory(MFD_ALLOW_SEALING, SEALED, 100);
	case ONLY_GROW: return tg_memory(MFD_ALLOW_SEALING, F_SEAL_GROW, 1 << 20);
	case SEALED_WRITE: return tg_memory(MFD_ALLOW_SEALING, SEALED | F_SEAL_WRITE, 1 << 20);
	default: return tg_memory(MFD_ALLOW_SEALING, SEALED, 1 << 20);
	}
}

/* Sends a packet, or drops it: it never waits for room in the socket. */
static void send_packet(int sock, int type, size_t length, unsigned nr, int kind)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * FDS)];
	} control = { 0 };
	struct {
		struct rvs_packet p;
		char more[16];
	} bytes = { 0 };
	struct iovec iov = { .iov_base = &bytes, .iov_len = length };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c = (struct cmsghdr *)(void *)control.bytes;
	int fds[FDS];

	bytes.p.magic = RVS_MAGIC;
	bytes.p.version = RVS_VERSION;
	bytes.p.type = (uint16_t)type;
	bytes.p.credits = 8;
	bytes.p.word = RVS_WORD(0x10009u, 1);
	bytes.p.iova = UINT64_C(1) << 33;
	bytes.p.length = 4096;
	for (unsigned i = 0; i < nr; i++) {
		fds[i] = make_fd(kind);
		TG_CHECK(fds[i] >= 0);
	}
	if (nr) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nr);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nr);
	}
	(void)!sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	for (unsigned i = 0; i < nr; i++)
		close(fds[i]);
}

/* Counts the entries of a directory, or the lines of a file, of worker 1 in /proc. */
/*
 * Returns the number of worker 1's descriptors, or of its mappings of files. The C library keeps
 * stacks of ended threads mapped: as many as lived at once.
 */
static unsigned count_of_1(const char *what)
{
	char path[64], line[512];
	unsigned nr = 0;
	DIR *d;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)tg_current->shared->pid[1], what);
	d = opendir(path);
	if (d) {
		while (readdir(d))
			nr++;
		closedir(d);
		return nr;
	}
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		nr += strchr(line, '/') != NULL;
	if (f)
		fclose(f);
	return nr;
}

static void until_no_more_than(unsigned fds, unsigned maps)
{
	int64_t end = tg_deadline();

	while (count_of_1("fd") > fds || (!UNDER_SANITIZER && count_of_1("maps") > maps + 2)) {
		if (now_ns() > end) {
			fprintf(stderr,
				"worker 1 has %u descriptors, %u before; %u mappings, %u before\n",
				count_of_1("fd"), fds, count_of_1("maps"), maps);
			_exit(1);
		}
		tg_pause();
	}
}

/* Sends one packet over a separate connection, and waits until worker 1 has finished with it. */
static void as_stranger(struct foe *f, int type, size_t length, unsigned nr, int kind)
{
	char byte[sizeof(struct rvs_packet)];
	int sock;

	while ((sock = tg_stranger_dial(&f->members[1].addr[RV_SHM])) < 0)
		tg_pause();
	send_packet(sock, type, length, nr, kind);
	/* A greeting alone waits for more. This waits for the end. */
	shutdown(sock, SHUT_WR);
	fcntl(sock, F_SETFL, 0);
	while (recv(sock, byte, sizeof(byte), 0) > 0)
		;
	close(sock);
}

static void all_of_strangers(struct foe *f)
{
	for (size_t length = 0; length <= sizeof(struct rvs_packet) + 8; length++)
		as_stranger(f, RVS_PKT_HELLO, length, (unsigned)length % 4, (int)length % NR_KINDS);
	for (int type = 0; type < 8; type++)
		for (unsigned nr = 0; nr <= FDS; nr++)
			as_stranger(f, type, sizeof(struct rvs_packet), nr,
				    type == RVS_PKT_HELLO ? SEALED_GOOD : (int)nr);
	for (int kind = 0; kind < NR_KINDS; kind++)
		as_stranger(f, RVS_PKT_HELLO, sizeof(struct rvs_packet), 2, kind);
	foe_others_work();
}

/* Sends a packet as a member: it ends the session or is ignored. */
static void as_member(struct foe *f, int type, size_t length, unsigned nr, int kind)
{
	if (!f->conn || f->ended)
		foe_meet(f, 1);
	send_packet(f->conn->sock, type, length, nr, kind);
	while (!f->ended && foe_say_number(f, RW_PING, 1) == 0) {
		uint64_t pongs = f->nr_recv[RW_PONG];

		FOE_UNTIL(f, f->ended || f->nr_recv[RW_PONG] > pongs);
		break;
	}
}

static void all_of_a_member(struct foe *f)
{
	for (size_t length = 0; length <= sizeof(struct rvs_packet) + 8; length += 7)
		as_member(f, RVS_PKT_REGION, length, (unsigned)length % 4, (int)length % NR_KINDS);
	for (int type = 0; type < 8; type++)
		for (unsigned nr = 0; nr <= FDS; nr++)
			as_member(f, type, sizeof(struct rvs_packet), nr, SEALED_GOOD);
	for (unsigned nr = 0; nr <= FDS; nr++)
		as_member(f, RVS_PKT_WAKE, (size_t)RVS_HEAD_BYTES, nr, PIPE);
	for (int kind = 0; kind < NR_KINDS; kind++)
		as_member(f, RVS_PKT_REGION, sizeof(struct rvs_packet), 1, kind);
	foe_others_work();
}

/* Runs it twice, so that lasting things exist after the first run, and compares the numbers. */
static void leaks_nothing(struct foe *f, void (*all)(struct foe *f))
{
	unsigned fds = 0, maps = 0;

	for (unsigned i = 0; i < 2; i++) {
		all(f);
		foe_meet(f, 1);
		foe_still_served(f);
		if (!i)
			fds = count_of_1("fd");
		maps = i ? maps : count_of_1("maps");
	}
	until_no_more_than(fds, maps);
}

FOE_TEST(member__every_packet)
{
	leaks_nothing(f, all_of_a_member);
}

FOE_TEST(stranger__every_packet)
{
	leaks_nothing(f, all_of_strangers);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(member__every_packet),
		cmocka_unit_test(stranger__every_packet),
	};

	return cmocka_run_group_tests_name("shm_packets", tests, NULL, NULL);
}
