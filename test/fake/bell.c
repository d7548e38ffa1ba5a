/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors that are readable while something waits in a list. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fv_own.h"

int fv_bell_init(struct fv_bell *b)
{
	b->fd = eventfd(0, EFD_CLOEXEC);
	b->rung = false;
	pthread_mutex_init(&b->lock, NULL);
	return b->fd < 0 ? -1 : 0;
}

void fv_bell_fini(struct fv_bell *b)
{
	if (b->fd >= 0)
		close(b->fd);
	pthread_mutex_destroy(&b->lock);
}

void fv_bell_ring(struct fv_bell *b)
{
	if (!b->rung)
		eventfd_write(b->fd, 1);
	b->rung = true;
}

void fv_bell_quiet(struct fv_bell *b)
{
	eventfd_t n;

	if (b->rung)
		eventfd_read(b->fd, &n);
	b->rung = false;
}

int fv_bell_wait(struct fv_bell *b)
{
	struct pollfd p = { .fd = b->fd, .events = POLLIN };

	if (fcntl(b->fd, F_GETFL) & O_NONBLOCK) {
		errno = EAGAIN;
		return -1;
	}
	return poll(&p, 1, -1) < 0 ? -1 : 0;
}
