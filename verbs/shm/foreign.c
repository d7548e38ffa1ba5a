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
void rvs_close_foreign(int fd)
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

/* Returns true if the descriptor is memory. A peer may hand
 * over memory: its close never waits. */
bool rvs_is_memory(int fd)
{
	return fcntl(fd, F_GET_SEALS) >= 0;
}

/* Closes descriptors of a packet that still lies in its socket, where memory has its last copy. */
void rvs_close_received(int *fds, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		if (rvs_is_memory(fds[i]))
			rb_close(fds[i]);
		else
			rvs_close_foreign(fds[i]);
}

/* Notes up to max descriptors that a message brought, and returns their number. [held] */
unsigned rvs_note_received(struct msghdr *msg, int *fds, unsigned max)
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
 * Takes out of a socket that was shut down what lies in it. True: it is empty. False: there is
 * something whose close may wait, or too much to look at.
 */
static bool empty(int sock)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(struct ucred)) +
			   CMSG_SPACE(sizeof(int) * RVS_PKT_FDS)];
	} control;
	int fds[RVS_PKT_FDS], on = 1;
	char byte;

	/* The option makes each packet bring something, an empty
	 * one too; the end brings nothing. */
	if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)))
		return false;
	for (unsigned i = 0; i < LOOKED_AT; i++) {
		struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
				      .msg_control = control.bytes,
				      .msg_controllen = sizeof(control.bytes) };
		bool memory = true;
		unsigned nr;
		ssize_t n;

		rb_hold();
		do
			n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		while (n < 0 && (errno == EINTR || errno == ECONNRESET));
		nr = n < 0 ? 0 : rvs_note_received(&msg, fds, RVS_PKT_FDS);
		rb_release();
		if (n < 0)
			return errno == ENOTCONN; /* then it never had a peer */
		if (!n && !msg.msg_controllen)
			return true;
		for (unsigned k = 0; k < nr; k++)
			memory = memory && rvs_is_memory(fds[k]);
		memory = memory && !(msg.msg_flags & MSG_CTRUNC);
		rvs_close_received(fds, nr);
		if (!memory)
			return false;
		(void)!recv(sock, &byte, 1, MSG_DONTWAIT);
	}
	return false;
}

/* Closes a connection's socket, so that its peer hears of it at once. [any] */
void rvs_close_socket(int sock)
{
	shutdown(sock, SHUT_RDWR);
	if (empty(sock))
		rb_close(sock);
	else
		rvs_close_foreign(sock);
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
		rvs_close_foreign(listener);
}
