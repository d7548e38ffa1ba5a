/* SPDX-License-Identifier: Apache-2.0 */
/* The listening of rank 0, and the number of connections that it lets in at a time. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "base/limit.h"
#include "core/base/error.h"
#include "core/group/rendezvous_server.h"

#define BIND_NS (500 * NSEC_PER_MSEC)
#define BIND_PAUSE_NS (20 * NSEC_PER_MSEC)
/* pause with a look at the name server each time */
#define BIND_NAME_PAUSE_NS (200 * NSEC_PER_MSEC)
/* then connections that have a place are looked after */
#define ACCEPT_BATCH (MAX_HALF_OPEN / 2)
#define ACCEPT_PAUSE_NS (100 * NSEC_PER_MSEC)

void rz_close_listeners(struct rz_serve *s)
{
	while (s->nr_listeners)
		rb_close(s->listener[--s->nr_listeners]);
}

/* Listens at an address. Returns a descriptor, or -errno. */
static int listen_at(const struct addrinfo *ai)
{
	const int on = 1, off = 0;
	int fd = RB_OPEN(socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	int r;

	if (fd < 0)
		return -errno;
	/* Connections of a group that ended just now must not keep the next one from starting. */
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ai->ai_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)ai->ai_addr;
		bool any = IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr) ||
			   IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);

		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, any ? &off : &on, sizeof(on));
	}
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0) {
		r = -errno;
		rb_close(fd);
		return r;
	}
	return fd;
}

/*
 * Tells whether an address is not here, and may come: with its interface, with a container's
 * network, by DHCP.
 */
static bool is_absent(int err)
{
	return err == EADDRNOTAVAIL || err == EAFNOSUPPORT || err == ENODEV || err == ENETDOWN ||
	       err == ENXIO;
}

/*
 * Tells why rank 0 cannot listen. Returns -errno with a text, or 1: the obstacle may go. A worker's
 * attempt to reach us may hold the port for a moment. The kernel chose the port for the worker's
 * own side.
 */
static int listen_failed(struct rz_serve *s, int err, struct rz_patience *patience)
{
	int64_t now = now_ns();

	if (err == EADDRINUSE && now < min_of(s->deadline, s->start + BIND_NS))
		return 1;
	if (err == EADDRNOTAVAIL && now < s->deadline) {
		rz_still(patience, s->log,
			 "rendezvous %s: rank 0 cannot listen there yet: it is no address of this "
			 "host; trying again. Run "
			 "rank 0 on that host, or give rank 0 0.0.0.0:%s or [::]:%s",
			 s->a->text, s->a->port, s->a->port);
		return 1;
	}
	if (err == EADDRNOTAVAIL)
		return rc_fail(err,
			       "rendezvous %s: rank 0 could not listen there in %s s: it is no "
			       "address of this host; run rank 0 on "
			       "that host, or give rank 0 0.0.0.0:%s or [::]:%s",
			       s->a->text, seconds_text(now - s->start).text, s->a->port,
			       s->a->port);
	if (err == EADDRINUSE)
		return rc_fail(
			err,
			"rendezvous %s (%s): rank 0 cannot listen there: another program, "
			"another rank 0 or a launcher's own store uses the port; "
			"choose another one with RREF_RENDEZVOUS",
			s->a->text, s->at);
	return rc_fail(err, "rendezvous %s (%s): rank 0 cannot listen there: %s", s->a->text, s->at,
		       limit_errno(err) == err ? rref_strerror(err) : limit_why("socket", err, 0));
}

/*
 * Listens at every address of the host, so that workers that resolve it in another order find us.
 * Passes over an address or a family that the host does not have, if another address works.
 * Returns as listen_failed does, or 0.
 */
static int listen_once(struct rz_serve *s, const struct addrinfo *list,
		       struct rz_patience *patience)
{
	for (const struct addrinfo *i = list; i && s->nr_listeners < MAX_LISTENERS;
	     i = i->ai_next) {
		int fd = listen_at(i);

		if (fd < 0 && is_absent(-fd))
			continue;
		if (fd < 0) {
			rz_sockaddr_text(i->ai_addr, i->ai_addrlen, s->at);
			rz_close_listeners(s);
			return listen_failed(s, -fd, patience);
		}
		if (s->nr_listeners == 0)
			rz_sockaddr_text(i->ai_addr, i->ai_addrlen, s->at);
		s->listener[s->nr_listeners++] = fd;
	}
	return s->nr_listeners ? 0 : listen_failed(s, EADDRNOTAVAIL, patience);
}

static bool is_only_loopback(const struct addrinfo *list)
{
	for (const struct addrinfo *i = list; i; i = i->ai_next)
		if (!rz_is_loopback(i->ai_addr))
			return false;
	return true;
}

int rz_listen(struct rz_serve *s)
{
	struct rz_patience patience = { 0 };
	struct addrinfo *list;
	bool only_loopback;
	int r;

	for (;;) {
		/* Resolves each time: the name may have another address by now. */
		r = rz_resolve(s->a, s->key, s->deadline, &patience, s->log, &list);
		if (r)
			return r;
		r = listen_once(s, list, &patience);
		only_loopback = is_only_loopback(list);
		freeaddrinfo(list);
		if (r <= 0)
			break;
		(void)poll(NULL, 0,
			   rz_poll_ms(now_ns() +
				      (s->a->is_number ? BIND_PAUSE_NS : BIND_NAME_PAUSE_NS)));
	}
	if (r)
		return r;
	/* Debian's installer gives a host's own name the address 127.0.1.1. Literal addresses
	 * start with a digit or ':'. */
	if (only_loopback && strncmp(s->a->host, "localhost", 9) != 0 && s->a->host[0] > ':')
		rz_log(s->log, RREF_LOG_WARNING,
		       "rendezvous %s: on this host the name is %s, which other hosts cannot reach",
		       s->a->text, s->at);
	rz_log(s->log, RREF_LOG_INFO, "rendezvous %s (%s): waiting for %u workers", s->a->text,
	       s->at, s->world - 1);
	return 0;
}

/*
 * Returns the part of an address that tells hosts apart. An IPv6 host may choose among all
 * addresses of its network of 64 bits.
 */
static uint64_t host_of(const struct sockaddr *sa)
{
	uint64_t host = 0;

	if (sa->sa_family == AF_INET) {
		host = ((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr;
	} else if (sa->sa_family == AF_INET6) {
		const struct in6_addr *a =
			&((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;

		memcpy(&host, a->s6_addr + (IN6_IS_ADDR_V4MAPPED(a) ? 8 : 0), sizeof(host));
	}
	return host;
}

static struct rz_conn *add_conn(struct rz_serve *s, int fd, const struct sockaddr *from,
				socklen_t length)
{
	struct rz_conn *c = s->nr_conns < s->max_conns ? calloc(1, sizeof(*c)) : NULL;

	if (!c)
		return NULL;
	c->fd = fd;
	c->state = AT_HELLO;
	c->until = now_ns() + STRANGER_NS;
	c->from = host_of(from);
	/* Sets no rank yet: rz_drop() must not find rank 0's place by it. */
	c->session.rank = UINT32_MAX;
	rz_sockaddr_text(from, length, c->peer);
	s->conns[s->nr_conns++] = c;
	return c;
}

/*
 * Pauses while descriptors or memory are short. New connections wait in the queue, the others are
 * served on. Returns true if the listener has nothing more now. Any other error is that of a
 * connection that was never ours.
 */
static bool accept_ends(struct rz_serve *s, int err)
{
	if (err == EAGAIN || err == EWOULDBLOCK)
		return true;
	if (err != EMFILE && err != ENFILE && err != ENOBUFS && err != ENOMEM)
		return false;
	if (!s->accept_err)
		rz_log(s->log, RREF_LOG_WARNING, "rendezvous: accept: %s", rref_strerror(err));
	s->accept_err = err;
	s->accept_again = now_ns() + ACCEPT_PAUSE_NS;
	return true;
}

void rz_accept(struct rz_serve *s, int listener)
{
	for (unsigned nr = 0; nr < ACCEPT_BATCH; nr++) {
		struct sockaddr_storage from;
		socklen_t length = sizeof(from);
		struct rz_conn *c;
		int fd = RB_OPEN(accept4(listener, (struct sockaddr *)&from, &length,
					 SOCK_CLOEXEC | SOCK_NONBLOCK));

		if (fd < 0 && accept_ends(s, errno))
			return;
		if (fd < 0)
			continue;
		rz_make_room(s, AT_HELLO);
		c = add_conn(s, fd, (struct sockaddr *)&from, length);
		if (!c) {
			rb_close(fd);
			s->accept_again = now_ns() + ACCEPT_PAUSE_NS;
			return;
		}
		s->accept_err = 0;
		/*
		 * Reads the HELLO of a worker, mostly here already: it is no stranger before the
		 * next one comes.
		 */
		rz_serve_half_open(s, c);
	}
}
