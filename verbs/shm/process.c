/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer's process. Its socket ends when the last copy of it is closed. A child made by fork(2)
 * gives its copy up (base/child.h). A child made by clone(2) or _Fork has no handler that would,
 * and hides its parent's death. So the process itself is watched as well, by a pidfd.
 *
 * That is for a rare case, and takes a descriptor for each peer. The upper half of the allowed
 * descriptors is left to greater needs. Without it (an old kernel, a process of another pid
 * namespace, a filter) the socket alone tells.
 */
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shm.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

/* Opens the peer's process by the socket, where the kernel
 * can: its number may be another process' by now. [held] */
static int open_process(const struct rv_conn *conn)
{
	socklen_t len = sizeof(int);
	int fd;

	if (!getsockopt(conn->sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len))
		return fd;
#ifdef SYS_pidfd_open
	return conn->pid > 0 ? (int)syscall(SYS_pidfd_open, conn->pid, 0) : -1;
#else
	return -1;
#endif
}

void rvs_process_watch(struct rv_conn *conn)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = &conn->process_source};
	struct rlimit limit;
	int fd = RB_OPEN(open_process(conn));

	if (fd < 0)
		return;
	if (getrlimit(RLIMIT_NOFILE, &limit) || (rlim_t)fd >= limit.rlim_cur / 2 ||
	    epoll_ctl(conn->dev->epoll, EPOLL_CTL_ADD, fd, &e)) {
		rb_close(fd);
		return;
	}
	rb_assert_is(conn->onlooker->process, ==, -1);
	conn->onlooker->process = fd;
}

/* Hears of it no more. The descriptor is the onlooker's. */
void rvs_process_unwatch(struct rv_conn *conn)
{
	if (conn->onlooker && conn->onlooker->process >= 0)
		epoll_ctl(conn->dev->epoll, EPOLL_CTL_DEL, conn->onlooker->process, NULL);
}
