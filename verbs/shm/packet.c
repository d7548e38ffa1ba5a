/* SPDX-License-Identifier: Apache-2.0 */
/* A datagram of a connection's socket: a packet of fixed size
 * and up to two descriptors, or a wake-up. Never blocks. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/limit.h"
#include "shm.h"

void rvs_close_fds(int *fds, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		rb_close(fds[i]);
}

/* Sends a packet. Returns 0 or -errno, without text: callers tell a full socket from a dead one. */
int rvs_packet_send(int sock, struct rvs_packet *p, enum rvs_packet_type type, const int *fds,
		    unsigned nr_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * RVS_PKT_FDS)];
	} control;
	struct iovec iov = {.iov_base = p, .iov_len = sizeof(*p)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	p->magic = RVS_MAGIC;
	p->version = RVS_VERSION;
	p->type = (uint16_t)type;
	if (nr_fds) {
		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nr_fds);
	}
	for (;;) {
		if (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
}

/* Sends a wake-up: the head of a packet alone. Returns 0 or -errno, without text. */
int rvs_wake_send(int sock)
{
	const struct rvs_packet p = { .magic = RVS_MAGIC,
				      .version = RVS_VERSION,
				      .type = RVS_PKT_WAKE };

	for (;;) {
		if (send(sock, &p, RVS_HEAD_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
}

/* Takes the next packet out of the socket, and lets go of what it carries. 0 or -errno. */
int rvs_packet_skip(int sock)
{
	char byte;

	while (recv(sock, &byte, 1, MSG_DONTWAIT) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/*
 * Receives a packet of this version with a well-formed length. Returns 1; 0 at the end; -EAGAIN
 * nothing there; -EPROTONOSUPPORT another version; -EPROTO garbage. -EMFILE: its descriptors were
 * lost, since no number is free here; the packet is complete but for these. Descriptors are the
 * caller's only with 1, and are memory then.
 *
 * It looks before it takes. A bad packet stays in the socket with its descriptors, since their
 * close might wait (foreign.c).
 */
int rvs_packet_recv(int sock, struct rvs_packet *p, int fds[RVS_PKT_FDS], unsigned *nr_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * RVS_PKT_FDS)];
	} control;
	struct iovec iov = {.iov_base = p, .iov_len = sizeof(*p)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			     .msg_controllen = sizeof(control.bytes)};
	unsigned nr;
	ssize_t n;
	int rc;

	rb_hold(); /* held until its descriptors are noted */
	do {
		n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		/* ECONNRESET: the peer left with packets of ours unread. It is reported once; the
		 * peer's own packets are still there. */
	} while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	if (n < 0) {
		rb_release();
		return -errno;
	}
	nr = rvs_note_received(&msg, fds, RVS_PKT_FDS);
	rb_release();
	rc = -EPROTO;
	if (n == 0) {
		rc = 0;
		goto drop_fds;
	}
	if (n < RVS_HEAD_BYTES || p->magic != RVS_MAGIC)
		goto drop_fds;
	if (p->version != RVS_VERSION) {
		rc = -EPROTONOSUPPORT;
		goto drop_fds;
	}
	if (n == RVS_HEAD_BYTES ? p->type != RVS_PKT_WAKE || nr || (msg.msg_flags & MSG_CTRUNC)
				: n != sizeof(*p) || p->type == RVS_PKT_WAKE ||
					  (msg.msg_flags & MSG_TRUNC) || p->len > sizeof(p->data))
		goto drop_fds;
	for (unsigned i = 0; i < nr; i++)
		if (!rvs_is_memory(fds[i]))
			goto drop_fds;
	if (msg.msg_flags & MSG_CTRUNC) {
		if (nr < RVS_PKT_FDS)
			rc = -EMFILE;
		goto drop_fds;
	}
	rc = rvs_packet_skip(sock);
	if (rc)
		goto drop_fds;
	*nr_fds = nr;
	return 1;

drop_fds:
	rvs_close_received(fds, nr);
	return rc;
}

/* Reports a failure. For want of descriptors its text names
 * the limit; other errors are told as they are. Returns -err. */
int rvs_fail_fds(int err, const char *what)
{
	return rv_fail(err, "shm: %s", limit_why(what, err, 0));
}
