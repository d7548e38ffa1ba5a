/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device: its page, listener, sleeping place and tables.
 *
 * RREF_SHM_MAX_MSG (bytes) lowers the largest READ, 1 GiB otherwise, so that tests see values read
 * in pieces without gigabytes. It is strict: a larger READ is -EMSGSIZE.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/limit.h"
#include "shm.h"

void rvs_log(const struct rv_dev *dev, int level, const char *fmt, ...)
{
	char text[320];
	va_list ap;

	if (!dev->opt.log)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	dev->opt.log(dev->opt.log_ctx, level, text);
}

/* Logs that one more was refused. Strangers do not fill the log: its lines become rare. */
void rvs_log_refused(struct rv_dev *dev, const char *fmt, ...)
{
	char text[200];
	va_list ap;

	if (!worth_logging(++dev->nr_refused))
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	rvs_log(dev, 1, "shm: refused connection %llu: %s", (unsigned long long)dev->nr_refused,
		text);
}

static int open_page(struct rv_dev *dev)
{
	void *map;
	int fd, rc;

	rc = rvs_memfd("rref-page", sizeof(struct rvs_page), &fd, &map);
	if (rc)
		return rc;
	dev->page = map;
	dev->page->magic = RVS_MAGIC;
	dev->page->version = RVS_VERSION;
	rc = rvs_seal(fd, true);
	if (rc)
		rc = rv_fail(-rc, "shm: cannot seal the device page: %s",
			     limit_why("fcntl", -rc, 0));
	else
		rc = dev->page_fd = rvs_reopen_ro(fd);
	rb_close(fd);
	return rc < 0 ? rc : 0;
}

static int open_listener(struct rv_dev *dev)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	size_t len;
	const char *name = rvs_name(&dev->self, &len);

	dev->listener = RB_OPEN(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	if (dev->listener < 0)
		return rv_fail(errno, "shm: to listen: %s", limit_why("socket", errno, 0));
	memcpy(sun.sun_path + 1, name, len);
	if (bind(dev->listener, (struct sockaddr *)&sun,
		 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)))
		return rv_fail(errno, "shm: cannot listen on @%.*s: %s", (int)len, name,
			       limit_why("bind", errno, 0));
	if (listen(dev->listener, 128))
		return rv_fail(errno, "shm: cannot listen on @%.*s: %s", (int)len, name,
			       limit_why("listen", errno, 0));
	return 0;
}

static int add_source(struct rv_dev *dev, int fd, enum rvs_source *src)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = src};

	return epoll_ctl(dev->epoll, EPOLL_CTL_ADD, fd, &e);
}

/* Makes the device's descriptors. Returns the call that gave
 * no descriptor; the later ones were not made. */
static const char *lacking(const struct rv_dev *dev)
{
	return dev->epoll < 0	 ? "epoll_create1"
		: dev->wake < 0	 ? "eventfd"
		: dev->timer < 0 ? "timerfd_create"
				 : "eventfd";
}

static int open_sources(struct rv_dev *dev)
{
	dev->listen_src = RVS_SRC_LISTEN;
	dev->wake_src = RVS_SRC_WAKE;
	dev->timer_src = RVS_SRC_TIMER;
	/* The calls stop at the first one that is refused: its errno counts. */
	if ((dev->epoll = RB_OPEN(epoll_create1(EPOLL_CLOEXEC))) < 0 ||
	    (dev->wake = RB_OPEN(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))) < 0 ||
	    (dev->timer = RB_OPEN(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK))) <
		    0 ||
	    (dev->spare = RB_OPEN(eventfd(0, EFD_CLOEXEC))) < 0)
		return rv_fail(errno, "shm: to wait: %s", limit_why(lacking(dev), errno, 0));
	if (add_source(dev, dev->listener, &dev->listen_src) ||
	    add_source(dev, dev->wake, &dev->wake_src) ||
	    add_source(dev, dev->timer, &dev->timer_src))
		return rv_fail(errno, "shm: to wait: %s", limit_why("epoll_ctl", errno, 0));
	/* Tried now, since later there is no way to report that the timer cannot be set. */
	if (timerfd_settime(dev->timer, 0, &(struct itimerspec){0}, NULL))
		return rv_fail(errno, "shm: to wait: %s", limit_why("timerfd_settime", errno, 0));
	return 0;
}

static void close_dev(struct rv_dev *dev)
{
	int fds[5];

	if (!dev)
		return;
	for (uint32_t i = 0; dev->conns && i < dev->max_conns; i++) {
		if (dev->conns[i] && at_load(&dev->conns[i]->state) != RVS_CLOSED)
			rvs_close_conn(dev->conns[i]);
		if (dev->conns[i]) /* the core still held messages of it */
			rvs_conn_free(dev->conns[i]);
	}
	rb_assert_is(dev->nr_conns, ==, 0);
	rvs_looks_fini(dev);
	rb_assert(!dev->nr_watch && !dev->nr_greeting && !at_load(&dev->nr_spans));
	rb_assert(list_empty(&dev->attn) && list_empty(&dev->timed) && list_empty(&dev->told));
	rvs_keys_fini(dev);
	rvs_close_listener(dev->listener);
	memcpy(fds, (int[]){ dev->epoll, dev->wake, dev->timer, dev->page_fd, dev->spare },
	       sizeof(fds));
	rvs_close_fds(fds, array_size(fds));
	if (dev->page)
		munmap(dev->page, sizeof(*dev->page));
	free(dev->watch);
	free(dev->conns);
	pthread_mutex_destroy(&dev->lock);
	free(dev);
}

/* Makes a device with its options, and with nothing open. */
static struct rv_dev *make_dev(const struct rv_options *opt)
{
	const char *env = getenv("RREF_SHM_MAX_MSG");
	struct rv_dev *dev = aligned_alloc(CACHE_LINE, sizeof(*dev));

	if (!dev)
		return NULL;
	memset(dev, 0, sizeof(*dev));
	dev->opt = *opt;
	dev->opt.credits = min_of(opt->credits ? opt->credits : 64, RVS_MAX_CREDITS);
	dev->opt.max_reads = opt->max_reads ? opt->max_reads : 256;
	dev->opt.connect_ns = opt->connect_ns ? opt->connect_ns : RVS_CONNECT_NS;
	dev->opt.max_conns = min_of(opt->max_conns ? opt->max_conns : 64, 16384u);
	dev->max_msg = env && *env ? max_of(strtoull(env, NULL, 0), 1u) : RVS_MAX_MSG;
	dev->uid = geteuid();
	rvs_map_bounds(dev);
	dev->epoll = dev->listener = dev->wake = dev->timer = dev->page_fd = dev->spare = -1;
	/* A reconnecting peer's new connection and its old one
	 * overlap, and half-open ones come on top. */
	dev->max_conns = 2 * dev->opt.max_conns + 2 * RVS_MAX_GREETING;
	list_init(&dev->attn);
	list_init(&dev->owing);
	list_init(&dev->timed);
	list_init(&dev->regions);
	list_init(&dev->told);
	list_init(&dev->outliving);
	pthread_mutex_init(&dev->lock, NULL);
	return dev;
}

static int shm_parts_open(struct rv_dev *dev)
{
	int rc = rvs_keys_init(dev);

	dev->conns = calloc(dev->max_conns, sizeof(*dev->conns));
	dev->watch = calloc(dev->max_conns, sizeof(*dev->watch));
	if (!rc && (!dev->conns || !dev->watch))
		rc = rv_fail(ENOMEM, "shm: no memory for %u connections", dev->max_conns);
	if (!rc)
		rc = rvs_self(&dev->self);
	if (!rc)
		rc = open_page(dev);
	if (!rc)
		rc = open_listener(dev);
	if (!rc)
		rc = open_sources(dev);
	return rc;
}

static int open_shm(const struct rv_options *opt, struct rv_dev **out)
{
	struct rv_dev *dev;
	int rc;

	if (opt->credits && opt->credits < 4)
		return rv_fail(EINVAL, "shm: %u credits asked for, at least 4 are needed",
			       opt->credits);
	if (rb_child_begin())
		return rv_fail(ENOMEM, "shm: no memory for a fork handler");
	dev = make_dev(opt);
	if (!dev)
		return rv_fail(ENOMEM, "shm: no memory for the device");
	rc = shm_parts_open(dev);
	if (rc)
		close_dev(dev);
	else
		*out = dev;
	return rc;
}

static void rvs_caps(struct rv_dev *dev, struct rv_caps *out)
{
	memset(out, 0, sizeof(*out));
	out->max_msg = dev->max_msg;
	out->max_inline = RV_MSG_MAX;
	out->max_reads = dev->opt.max_reads;
	out->max_sge = RV_READ_SGE_MAX;
	out->reads_inline = true;
	snprintf(out->device, sizeof(out->device), "shm");
}

static void rvs_addr(struct rv_dev *dev, struct rv_addr *out)
{
	*out = dev->self;
}

static int rvs_fd(struct rv_dev *dev)
{
	return dev->epoll;
}

/* READs are over when they are posted. */
static int reads(struct rv_dev *dev, struct rv_read_end *out, unsigned max, bool *more)
{
	(void)dev, (void)out, (void)max, (void)more;
	return 0;
}

/* Does nothing: only the two ends can write to a connection's memory and socket. */
static int seal(struct rv_conn *conn, const uint8_t out[RV_SEAL_KEY_BYTES],
		const uint8_t in[RV_SEAL_KEY_BYTES])
{
	(void)conn, (void)out, (void)in;
	return 0;
}

const struct rv_ops rv_shm_ops = {
	.name = "shm",
	.kind = RV_SHM,
	.open = open_shm,
	.close = close_dev,
	.caps = rvs_caps,
	.addr = rvs_addr,
	.reach = rvs_reach,
	.reg = rvs_reg,
	.dereg = rvs_dereg,
	.connect = rvs_connect,
	.accept = rvs_accept,
	.reject = rvs_reject,
	.seal = seal,
	.allow_reads = rvs_allow_reads,
	.send = rvs_send,
	.post_reads = rvs_post_reads,
	.look = &rvs_look_ops,
	.will_read = rvs_will_read,
	.poll = rvs_poll,
	.reads = reads,
	.recv_done = rvs_recv_done,
	.arm = rvs_arm,
	.disarm = rvs_disarm,
	.fd = rvs_fd,
	.close_conn = rvs_close_conn,
	.peer_text = rvs_peer_text,
};
