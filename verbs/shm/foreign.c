/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors of others, and the sockets that they lie in. A close may wait: for as long as a
 * SO_LINGER says, or for a file system that a process serves. The last copy of a packet's
 * descriptor may be the one in this side's socket, received or not. So a socket is closed on the
 * spot only if nothing lies in it but memory. The others, and descriptors that are no memory, are
 * closed by threads of their own. They run only while there is something to close.
 *
 * The number that waits is bounded: from 64 on this side makes no connection and takes none.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/thread.h"
#include "shm.h"

#define THREADS_MAX 4u
#define QUEUE_MAX   4096u
#define FULL        64u
#define LOOKED_AT   8u /* packets of a socket; closing one that holds more is left to the threads */

/* Guarded by rb_hold. */
static struct {
	int fd[QUEUE_MAX];
	unsigned nr, nr_threads;
	uint32_t generation; /* number of the process that all of this is about */
} waiting;

/* [held] Forgets the parent's threads and descriptors: a child has neither. */
static void forget_parents(void)
{
	if (waiting.generation == rb_generation())
		return;
	waiting.nr = waiting.nr_threads = 0;
	waiting.generation = rb_generation();
}

static void *closer(void *arg)
{
	int fd;

	rb_thread_begin("rref-close");
	for (;;) {
		rb_hold();
		fd = waiting.nr ? waiting.fd[--waiting.nr] : -1;
		waiting.nr_threads -= fd < 0;
		rb_release();
		if (fd < 0)
			return arg;
		close(fd);
	}
}

/* Starts a thread. If that fails, the next descriptor to be closed asks for one again. */
static void start_thread(void)
{
	bool start;

	rb_hold();
	start = waiting.nr && waiting.nr_threads < THREADS_MAX;
	waiting.nr_threads += start;
	rb_release();
	if (!start || !rb_thread_start(NULL, closer, NULL))
		return;
	rb_hold();
	waiting.nr_threads--;
	rb_release();
}

/*
 * Closes a descriptor whose close may take any time. A child that is forked meanwhile keeps it,
 * since its close might be the last one. A socket was shut down before. [any]
 */
static void close_foreign(int fd)
{
	bool kept;

	if (fd < 0)
		return;
	rb_hold();
	forget_parents();
	kept = waiting.nr < QUEUE_MAX;
	if (kept) {
		rb_forget(fd);
		waiting.fd[waiting.nr++] = fd;
	}
	rb_release();
	if (kept)
		start_thread();
	else
		rb_close(fd);
}

/* Returns true if so many wait to be closed that no connections are made meanwhile. */
bool rvs_foreign_full(void)
{
	bool full;

	rb_hold();
	forget_parents();
	full = waiting.nr + waiting.nr_threads >= FULL;
	rb_release();
	if (full)
		start_thread();
	return full;
}

static bool is_memory(int fd)
{
	return fcntl(fd, F_GET_SEALS) >= 0;
}

/* Returns true if all are memory. A peer may hand over memory: its close never waits. */
bool rvs_all_memory(const int *fds, unsigned nr)
{
	while (nr && is_memory(fds[nr - 1]))
		nr--;
	return !nr;
}

/* Closes descriptors of a packet that still lies in its socket, where memory has its last copy. */
void rvs_close_received(int *fds, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		if (is_memory(fds[i]))
			rb_close(fds[i]);
		else
			close_foreign(fds[i]);
}

/* Notes up to max descriptors that a message brought, and returns their number. [held] */
static unsigned note_received(struct msghdr *msg, int *fds, unsigned max)
{
	unsigned nr = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		unsigned here = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (unsigned i = 0; i < here && nr < max; i++, nr++) {
			memcpy(&fds[nr], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			rb_note(fds[nr]);
		}
	}
	return nr;
}

/*
 * Looks at the next packet and leaves it in its socket. Returns the length, or -errno. Passes over
 * ECONNRESET: the peer left with packets of ours unread. It is reported once, and the peer's own
 * packets are still there.
 */
ssize_t rvs_peek(int sock, void *buf, size_t size, bool creds, struct rvs_peeked *out)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(struct ucred)) +
			   CMSG_SPACE(sizeof(int) * RVS_PKT_FDS)];
	} control;
	/* no room for more descriptors than out has */
	size_t room = sizeof(control.bytes) - (creds ? 0 : CMSG_SPACE(sizeof(struct ucred)));
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = room };
	ssize_t n;

	rb_hold(); /* held until its descriptors are noted */
	do
		n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && (errno == EINTR || errno == ECONNRESET));
	n = n < 0 ? -errno : n;
	out->nr = n < 0 ? 0 : note_received(&msg, out->fds, RVS_PKT_FDS);
	rb_release();
	out->flags = msg.msg_flags;
	out->control = msg.msg_controllen;
	return n;
}

/*
 * Drops the next packet. Returns 1, or 0 if there is none. Returns -1 and leaves it if it has
 * something whose close may wait.
 */
static int drop_packet(int sock)
{
	struct rvs_peeked got;
	char byte;
	ssize_t n = rvs_peek(sock, &byte, 1, true, &got);
	bool memory;

	if (n < 0)
		return n == -ENOTCONN ? 0 : -1; /* then it never had a peer */
	if (!n && !got.control)
		return 0;
	memory = rvs_all_memory(got.fds, got.nr) && !(got.flags & MSG_CTRUNC);
	rvs_close_received(got.fds, got.nr);
	if (!memory)
		return -1;
	(void)!rvs_packet_skip(sock);
	return 1;
}

/*
 * Takes out of a socket that was shut down what lies in it. True: it is empty. False: there is
 * something whose close may wait, or too much to look at.
 */
static bool empty(int sock)
{
	int on = 1, rc = 1;

	/* The option makes each packet bring something, an empty
	 * one too; the end brings nothing. */
	if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)))
		return false;
	for (unsigned i = 0; rc > 0 && i < LOOKED_AT; i++)
		rc = drop_packet(sock);
	return !rc;
}

/* Closes a connection's socket, so that its peer hears of it at once. [any] */
void rvs_close_socket(int sock)
{
	shutdown(sock, SHUT_RDWR);
	if (empty(sock))
		rb_close(sock);
	else
		close_foreign(sock);
}

/* Closes a listener, with the connections that wait in it. */
void rvs_close_listener(int listener)
{
	int sock;

	if (listener < 0)
		return;
	shutdown(listener, SHUT_RDWR); /* no peer comes to it any more */
	do {
		sock = RB_OPEN(accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
		if (sock >= 0)
			rvs_close_socket(sock);
	} while (sock >= 0 || errno == EINTR || errno == ECONNABORTED);
	if (errno == EAGAIN || errno == EINVAL) /* none is left */
		rb_close(listener);
	else
		close_foreign(listener);
}
