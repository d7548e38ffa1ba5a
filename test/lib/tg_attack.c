/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tg_attack.h"
#include "verbs/shm/shm.h"

int tg_stranger_dial(const struct rv_addr *to)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	size_t len;
	const char *name = rvs_name(to, &len);
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	memcpy(sun.sun_path + 1, name, len);
	if (sock >= 0 && connect(sock, (struct sockaddr *)&sun,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len))) {
		close(sock);
		sock = -1;
	}
	return sock;
}

bool tg_stranger(struct foe *f, tg_act_fn act)
{
	static int open_socks[TG_STRANGER_OPEN], at; /* 0 = none */
	int sock = tg_stranger_dial(&f->members[1].addr[RV_SHM]);

	if (sock < 0)
		return false;
	if (!act(f, sock)) {
		close(sock);
		return true;
	}
	if (open_socks[at])
		close(open_socks[at]);
	open_socks[at] = sock;
	at = (at + 1) % TG_STRANGER_OPEN;
	return true;
}

bool tg_act_leave(struct foe *f, int sock)
{
	(void)f, (void)sock;
	return false;
}

bool tg_act_stay_silent(struct foe *f, int sock)
{
	(void)f, (void)sock;
	return true;
}

/* Sends a packet of one byte. */
bool tg_act_trickle(struct foe *f, int sock)
{
	(void)f;
	(void)!send(sock, "r", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	return true;
}

bool tg_act_send_garbage(struct foe *f, int sock)
{
	(void)f;
	(void)!send(sock, "0123456789abcdef", 16, MSG_DONTWAIT | MSG_NOSIGNAL);
	return false;
}

/* Sends a hello with a wrong MAC, which only the core can tell. */
bool tg_act_say_hello(struct foe *f, int sock)
{
	static struct rvs_ring ring;
	static int box = -1;
	struct rvs_packet p;

	if (box < 0) {
		if (rvs_box_create(&ring, 8, &box))
			_exit(4);
		foe_make_hello(f, 1);
		f->hello[f->hello_length - 1] ^= 1; /* of its MAC */
	}
	memset(&p, 0, sizeof(p));
	p.credits = 8;
	p.len = (uint16_t)f->hello_length;
	memcpy(p.data, f->hello, f->hello_length);
	(void)rvs_packet_send(sock, &p, RVS_PKT_HELLO, (int[]){ f->dev->page_fd, box }, 2);
	return false;
}

bool tg_act_hand_over_pipe(struct foe *f, int sock)
{
	static int ends[2] = { -1, -1 };
	struct rvs_packet p;

	(void)f;
	if (ends[0] < 0 && pipe(ends))
		_exit(4);
	memset(&p, 0, sizeof(p));
	p.credits = 8;
	(void)rvs_packet_send(sock, &p, RVS_PKT_HELLO, ends, 2);
	return false;
}

int tg_memory(unsigned flags, int seals, off_t size)
{
	int fd = memfd_create("foe-region", MFD_CLOEXEC | flags);

	TG_CHECK(fd >= 0 && !ftruncate(fd, size));
	TG_CHECK(!seals || !fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

int tg_send_region(struct foe *f, uint32_t i)
{
	static int fd = -1;
	struct rvs_packet p;

	if (fd < 0)
		fd = tg_memory(MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_GROW, 4096);
	memset(&p, 0, sizeof(p));
	p.word = RVS_WORD(0x10009u, i + 1);
	p.iova = UINT64_C(1) << 33;
	p.length = 4096;
	at_store_sc(&f->dev->page->key[9], p.word);
	return rvs_packet_send(f->conn->sock, &p, RVS_PKT_REGION, &fd, 1);
}

int tg_send_wake(struct foe *f, uint32_t i)
{
	(void)i;
	return rvs_wake_send(f->conn->sock);
}

/* Asks for regions of worker 1's again and again, and takes no answer: they fit its socket. */
int tg_send_again(struct foe *f, uint32_t i)
{
	struct rvs_packet p;

	memset(&p, 0, sizeof(p));
	p.word = at_load(&f->conn->peer_keys[i % 8]);
	return rvs_packet_send(f->conn->sock, &p, RVS_PKT_AGAIN, NULL, 0);
}
