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

	rb_assert_is(nr_fds, <=, RVS_PKT_FDS);
	rb_assert_is(p->len, <=, sizeof(p->data));
	for (unsigned i = 0; RB_CHECKED && i < nr_fds; i++)
		rb_assert_with(fds[i] >= 0, "descriptor %u of a packet of type %d", i, type);
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

/*
 * Takes the next packet out of the socket, and lets go of what it carries. 0 or -errno. Passes over
 * ECONNRESET, as rvs_peek: the peer may have left since the look.
 */
int rvs_packet_skip(int sock)
{
	char byte;

	while (recv(sock, &byte, 1, MSG_DONTWAIT) < 0)
		if (errno != EINTR && errno != ECONNRESET)
			return -errno;
	return 0;
}

/* Tells whether n bytes are a wake-up, or a whole packet with a length that it may have. */
static bool has_form(const struct rvs_packet *p, ssize_t n, const struct rvs_peeked *got)
{
	if (n == RVS_HEAD_BYTES)
		return p->type == RVS_PKT_WAKE && !got->nr && !(got->flags & MSG_CTRUNC);
	return n == sizeof(*p) && p->type != RVS_PKT_WAKE && !(got->flags & MSG_TRUNC) &&
	       p->len <= sizeof(p->data);
}

/* Returns 1 for a packet that may be taken, or as rvs_packet_recv does. */
static int packet_check(const struct rvs_packet *p, ssize_t n, const struct rvs_peeked *got)
{
	if (n < RVS_HEAD_BYTES || p->magic != RVS_MAGIC)
		return -EPROTO;
	if (p->version != RVS_VERSION)
		return -EPROTONOSUPPORT;
	if (!has_form(p, n, got) || !rvs_all_memory(got->fds, got->nr))
		return -EPROTO;
	if (got->flags & MSG_CTRUNC)
		return got->nr < RVS_PKT_FDS ? -EMFILE : -EPROTO;
	return 1;
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
	struct rvs_peeked got;
	ssize_t n = rvs_peek(sock, p, sizeof(*p), false, &got);
	int rc;

	if (n < 0)
		return (int)n;
	rc = n ? packet_check(p, n, &got) : 0;
	if (rc == 1) {
		rc = rvs_packet_skip(sock);
		if (!rc) {
			memcpy(fds, got.fds, sizeof(got.fds));
			rb_assert_is(got.nr, <=, RVS_PKT_FDS);
			*nr_fds = got.nr;
			return 1;
		}
	}
	rvs_close_received(got.fds, got.nr);
	return rc;
}

/* Reports a failure. For want of descriptors its text names
 * the limit; other errors are told as they are. Returns -err. */
int rvs_fail_fds(int err, const char *what)
{
	return rv_fail(err, "shm: %s", limit_why(what, err, 0));
}
