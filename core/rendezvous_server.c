/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous as rank 0 serves it: one poll loop, no thread, nothing that waits for one connection alone.
 *
 *   a connection   HELLO --hello good--> JOIN --join good--> MEMBER --table sent--> gone
 *                    |                    |                     |
 *                    |                    |                     +--closed--> gone, its place is free again
 *                    +-----refused--------+---group failed------+----------> LEAVING --closed or late--> gone
 *
 *   the group      GATHER --all here--> TABLE --all sent--> done
 *                    +--rank or name twice, another world or version, deadline--> FAILING --all told--> done
 *
 * What a stranger can take: MAX_HALF_OPEN connections at a time, for HALF_OPEN_NS each; more wait in the kernel's
 * queue. Nothing that comes without the key changes the group's state. FAILING still shakes hands for a short while, so
 * that workers that are on their way hear why, instead of trying until their deadline.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "rc_error.h"
#include "rc_rendezvous.h"

#define MAX_LISTENERS 8
#define MAX_HALF_OPEN 64
#define HALF_OPEN_NS (5 * NSEC_PER_SEC)
#define LEAVE_NS (1 * NSEC_PER_SEC)              /* for a refusal to be read */
#define TELL_NS (2 * NSEC_PER_SEC)               /* for late workers to hear of a failure */
#define TELL_LATE_NS (200 * NSEC_PER_MSEC)       /* the same when the time is up already */
#define STATUS_NS (250 * NSEC_PER_MSEC)
#define BIND_NS (500 * NSEC_PER_MSEC)
#define BIND_PAUSE_NS (20 * NSEC_PER_MSEC)
#define ACCEPT_PAUSE_NS (100 * NSEC_PER_MSEC)
#define DRAIN_MAX 65536                          /* bytes thrown away for a stranger to read our refusal */
#define LOGGED_REFUSALS 32

enum state { AT_HELLO, AT_JOIN, AT_MEMBER, AT_LEAVING, AT_GONE };

struct conn {
	int fd;
	enum state state;
	bool told;                     /* of the group's failure */
	bool is_shut;                  /* LEAVING: everything is sent */
	uint32_t next_entry;           /* TABLE: 0..world entries, world = END, world + 1 = all made */
	size_t drained;
	int64_t until;                 /* for HELLO, JOIN, LEAVING */
	struct rz_session session;
	struct rz_reader in;
	size_t out_have, out_sent;
	uint8_t out[4 * RZ_FRAME_MAX]; /* the last frame's place is kept for FAILED */
	char peer[RZ_SOCKADDR_TEXT];
};

enum phase { GATHER, TABLE, FAILING };

/* owner: the one thread inside rz_serve */
struct serve {
	const struct rz_address *a;
	const struct rc_key *key;
	const struct rc_group_log *log;
	uint32_t world;
	int64_t start, deadline;
	char at[RZ_SOCKADDR_TEXT];     /* where it listens */
	int listener[MAX_LISTENERS];
	unsigned nr_listeners;
	int64_t accept_again;          /* 0, or when to look again after a lack of descriptors or memory */
	int accept_err;                /* positive: the last such lack; 0 when there is none now */

	enum phase phase;
	int err;                       /* FAILING: positive */
	char text[RZ_TEXT_MAX];
	uint32_t nr_told;
	int64_t tell_until;

	struct rc_member *table;       /* [world]; valid where present */
	struct conn **holder;          /* [world]; NULL: this worker, or nobody */
	struct rz_presence present;
	uint32_t nr_present;
	struct rz_digest digest;       /* TABLE */
	bool status_due;
	int64_t next_status;

	struct conn **conns;           /* [max_conns] */
	size_t nr_conns, max_conns;
	struct pollfd *polls;          /* [MAX_LISTENERS + max_conns] */
	uint64_t nr_refused;
	char last_refused[160];
};

/* ---- connections */

static bool is_half_open(const struct conn *c)
{
	return !c->told && (c->state == AT_HELLO || c->state == AT_JOIN || c->state == AT_LEAVING);
}

static size_t count_half_open(const struct serve *s)
{
	size_t nr = 0;

	for (size_t i = 0; i < s->nr_conns; i++)
		nr += is_half_open(s->conns[i]);
	return nr;
}

/* The struct lives until the sweep: the loop may stand on it. */
static void drop(struct serve *s, struct conn *c)
{
	uint32_t rank = c->session.rank;

	if (c->state == AT_GONE)
		return;
	if (s->holder && rank < s->world && s->holder[rank] == c) {
		s->holder[rank] = NULL;
		if (s->phase == GATHER) {
			s->present.bits[rank / 8] &= (uint8_t)~(1u << (rank % 8));
			s->nr_present--;
			s->status_due = true;
		}
	}
	close(c->fd);
	c->state = AT_GONE;
}

static void sweep(struct serve *s)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state == AT_GONE)
			free(s->conns[i]);
		else
			s->conns[kept++] = s->conns[i];
	s->nr_conns = kept;
}

/* A log that anyone on the network can fill is a fault of its own: all are counted, some are written. */
static void count_refusal(struct serve *s, const struct conn *c, const char *why)
{
	s->nr_refused++;
	snprintf(s->last_refused, sizeof(s->last_refused), "%s: %s", c->peer, why);
	if (s->nr_refused <= LOGGED_REFUSALS || (s->nr_refused & (s->nr_refused - 1)) == 0)
		rz_log(s->log, RREF_LOG_WARNING, "rendezvous: refused connection %llu: %s", (unsigned long long)s->nr_refused,
		       s->last_refused);
}

static void refuse_silently(struct serve *s, struct conn *c, const char *why)
{
	count_refusal(s, c, why);
	drop(s, c);
}

static uint8_t *out_end(struct conn *c)
{
	return c->out + c->out_have;
}

static bool out_has_room(const struct conn *c)
{
	return sizeof(c->out) - c->out_have >= 2 * RZ_FRAME_MAX;
}

/* -errno when the connection is lost. */
static int flush(struct conn *c)
{
	while (c->out_sent < c->out_have) {
		ssize_t n = send(c->fd, c->out + c->out_sent, c->out_have - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
		c->out_sent += (size_t)n;
	}
	c->out_have = c->out_sent = 0;
	return 0;
}

/* Sends what is left, then the end of the stream. */
static void push_out(struct serve *s, struct conn *c)
{
	if (flush(c)) {
		drop(s, c);
	} else if (!c->out_have && !c->is_shut) {
		c->is_shut = true;
		(void)shutdown(c->fd, SHUT_WR);
	}
}

/* A close while bytes of the peer are unread becomes a reset, which may overtake the refusal: so it closes first. */
static void leave(struct serve *s, struct conn *c)
{
	c->state = AT_LEAVING;
	c->until = now_ns() + LEAVE_NS;
	push_out(s, c);
}

static void refuse(struct serve *s, struct conn *c, int err, const char *text)
{
	count_refusal(s, c, text);
	c->out_have += rz_refuse_make(err, text, out_end(c));
	leave(s, c);
}

/* ---- the group */

static void tell_failure(struct serve *s, struct conn *c)
{
	if (c->told || c->state == AT_GONE)
		return;
	c->told = true;
	s->nr_told++;
	c->out_have += rz_failed_make(&c->session, s->err, s->text, out_end(c));
	leave(s, c);
}

__attribute__((format(printf, 3, 4))) static void fail_group(struct serve *s, int err, const char *fmt, ...)
{
	va_list ap;

	if (s->phase == FAILING)
		return;
	va_start(ap, fmt);
	vsnprintf(s->text, sizeof(s->text), fmt, ap);
	va_end(ap);
	s->phase = FAILING;
	s->err = err;
	s->tell_until = now_ns() + (err == ETIMEDOUT ? TELL_LATE_NS : TELL_NS);
	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state == AT_MEMBER)
			tell_failure(s, s->conns[i]);
}

static void fail_timeout(struct serve *s)
{
	char ranks[160], refused[240] = "", lack[80] = "";
	uint32_t missing = rz_ranks_text(&s->present, s->world, false, ranks, sizeof(ranks));

	if (s->nr_refused)
		snprintf(refused, sizeof(refused), "; %llu %s refused, the last: %s", (unsigned long long)s->nr_refused,
			 s->nr_refused == 1 ? "connection was" : "connections were", s->last_refused);
	/* One descriptor per worker: a large group needs more than the usual soft limit of 1024. */
	if (s->accept_err)
		snprintf(lack, sizeof(lack), "; rank 0 could not accept more: %s", rref_strerror(s->accept_err));
	fail_group(s, ETIMEDOUT, "rendezvous %s (%s): waited %.1f s: %u of %u workers came; missing %s %s%s%s", s->a->text,
		   s->at, (double)(now_ns() - s->start) / 1e9, s->nr_present, s->world, missing == 1 ? "rank" : "ranks", ranks,
		   lack, refused);
}

/* Its end of the connection is closed already: it died before we looked. */
static bool is_dead(const struct conn *c)
{
	char byte;
	ssize_t n;

	do
		n = recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

/*
 * Whether the holder of a rank or name makes way: it is dead, or is the same process on a new connection. This worker
 * itself (holder NULL) never does.
 */
static bool makes_way(struct serve *s, uint32_t rank, const struct rc_member *m)
{
	struct conn *old = s->holder[rank];

	if (!old || !(is_dead(old) || s->table[rank].incarnation == m->incarnation))
		return false;
	rz_log(s->log, RREF_LOG_INFO, "rendezvous: rank %u (%s) left before the group was complete", rank, old->peer);
	drop(s, old);
	return true;
}

static const char *peer_of(const struct serve *s, uint32_t rank)
{
	return s->holder[rank] ? s->holder[rank]->peer : "rank 0 itself";
}

/* Rank and name are free, or the group has failed. */
static bool check_place(struct serve *s, const struct conn *c, const struct rc_member *m)
{
	if (rz_is_present(&s->present, m->rank) && !makes_way(s, m->rank, m)) {
		fail_group(s, EEXIST, "rendezvous %s: rank %u is there twice: \"%s\" (%s) and \"%s\" (%s)", s->a->text, m->rank,
			   s->table[m->rank].name, peer_of(s, m->rank), m->name, c->peer);
		return false;
	}
	for (uint32_t i = 0; i < s->world; i++) {
		if (!rz_is_present(&s->present, i) || strcmp(s->table[i].name, m->name) != 0 || makes_way(s, i, m))
			continue;
		fail_group(s, EEXIST, "rendezvous %s: the name \"%s\" is there twice: rank %u (%s) and rank %u (%s)", s->a->text,
			   m->name, i, peer_of(s, i), m->rank, c->peer);
		return false;
	}
	return true;
}

static void take_join(struct serve *s, struct conn *c)
{
	struct rc_member m;
	int r = rz_join_take(&c->in, &c->session, &m);

	if (r == -EKEYREJECTED) {
		refuse(s, c, EKEYREJECTED, "the worker could not prove that it holds the group's key");
		return;
	}
	if (r || m.rank != c->session.rank) {
		refuse(s, c, EPROTO, "a malformed join");
		return;
	}
	/* From here on it is a worker of ours, so what is wrong with it is wrong with the group. */
	if (s->phase == GATHER && c->session.world != s->world)
		fail_group(s, EINVAL, "rendezvous %s: rank %u \"%s\" (%s) was started with world size %u, rank 0 with %u",
			   s->a->text, m.rank, m.name, c->peer, c->session.world, s->world);
	else if (s->phase == GATHER && m.rank >= s->world)
		fail_group(s, EINVAL, "rendezvous %s: \"%s\" (%s) claims rank %u in a group of %u", s->a->text, m.name, c->peer,
			   m.rank, s->world);
	if (s->phase != GATHER || !check_place(s, c, &m)) {
		tell_failure(s, c);
		return;
	}
	s->table[m.rank] = m;
	s->holder[m.rank] = c;
	s->present.bits[m.rank / 8] |= (uint8_t)(1u << (m.rank % 8));
	s->nr_present++;
	s->status_due = true;
	c->state = AT_MEMBER;
	c->out_have += rz_joined_make(&c->session, out_end(c));
	rz_log(s->log, RREF_LOG_DEBUG, "rendezvous: rank %u \"%s\" (%s) came, %u of %u are here", m.rank, m.name, c->peer,
	       s->nr_present, s->world);
	if (flush(c))
		drop(s, c);
}

static void take_hello(struct serve *s, struct conn *c)
{
	struct rz_hello h;
	char text[200];

	if (rz_hello_take(&c->in, s->key, &h)) {
		refuse(s, c, EPROTO, "a malformed hello");
		return;
	}
	if (h.version != RZ_VERSION) {
		snprintf(text, sizeof(text), "rank %u speaks protocol version %u, rank 0 version %u", h.rank, h.version, RZ_VERSION);
		/* Only who holds the key can make the group fail. It has no session, so its refusal is what it is told. */
		if (h.is_authentic) {
			fail_group(s, EPROTONOSUPPORT, "rendezvous %s: %s (%s)", s->a->text, text, c->peer);
			c->told = true;
			s->nr_told++;
		}
		refuse(s, c, EPROTONOSUPPORT, text);
		return;
	}
	if (!h.is_authentic) {
		if (h.has_group_key != s->key->is_group)
			snprintf(text, sizeof(text), "rank %u has %s and rank 0 has %s (RREF_KEY_FILE)", h.rank,
				 h.has_group_key ? "a key file" : "no key file", s->key->is_group ? "a key file" : "none");
		else if (s->key->is_group)
			snprintf(text, sizeof(text), "rank %u has another key file than rank 0", h.rank);
		else
			snprintf(text, sizeof(text), "without a key file, rank %u and rank 0 must be the same user on the same "
				 "machine with the same XDG_RUNTIME_DIR", h.rank);
		refuse(s, c, EKEYREJECTED, text);
		return;
	}
	c->session = (struct rz_session){ .key = s->key, .rank = h.rank, .world = h.world };
	memcpy(c->session.client_nonce, h.nonce, RC_NONCE_BYTES);
	rc_random(c->session.server_nonce, RC_NONCE_BYTES);
	c->state = AT_JOIN;
	c->out_have += rz_challenge_make(&c->session, out_end(c));
	rz_next(&c->in);
	if (flush(c))
		drop(s, c);
}

/* What came on a connection that has not its place yet. */
static void serve_half_open(struct serve *s, struct conn *c)
{
	int r;

	while (c->state == AT_HELLO || c->state == AT_JOIN) {
		r = rz_read(c->fd, &c->in);
		if (r == 0)
			return;
		if (r == 1 && c->state == AT_HELLO) {
			take_hello(s, c);
		} else if (r == 1) {
			take_join(s, c);
		} else if (r == -EPROTONOSUPPORT) {
			char text[96];

			snprintf(text, sizeof(text), "the peer speaks protocol version %u, rank 0 version %u", rz_version_of(&c->in),
				 RZ_VERSION);
			refuse(s, c, EPROTONOSUPPORT, text);
		} else {
			refuse_silently(s, c, r == -EPROTO ? "it does not speak this protocol" : "it closed before it had joined");
		}
	}
}

static void serve_leaving(struct serve *s, struct conn *c)
{
	char waste[4096];
	ssize_t n;

	push_out(s, c);
	if (!c->is_shut || c->state == AT_GONE)
		return;
	n = recv(c->fd, waste, sizeof(waste), MSG_DONTWAIT);
	if (n > 0)
		c->drained += (size_t)n;
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) || c->drained > DRAIN_MAX)
		drop(s, c);
}

/* As many entries as fit; then END. */
static void fill_table(struct serve *s, struct conn *c)
{
	while (c->next_entry <= s->world && out_has_room(c)) {
		if (c->next_entry < s->world)
			c->out_have += rz_member_make(&s->table[c->next_entry], out_end(c));
		else
			c->out_have += rz_end_make(&c->session, &s->digest, out_end(c));
		c->next_entry++;
	}
}

static void serve_member(struct serve *s, struct conn *c)
{
	char byte;
	ssize_t n;

	for (;;) {
		if (s->phase == TABLE)
			fill_table(s, c);
		if (flush(c)) {
			n = 0;
			break;
		}
		if (c->out_have)
			return;
		if (s->phase == TABLE && c->next_entry > s->world) {
			drop(s, c);
			return;
		}
		if (s->phase == TABLE)
			continue;
		/* A member only listens: whatever comes is its end. */
		n = recv(c->fd, &byte, 1, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		break;
	}
	rz_log(s->log, n > 0 ? RREF_LOG_WARNING : RREF_LOG_INFO, "rendezvous: rank %u (%s) %s %s", c->session.rank, c->peer,
	       n > 0 ? "broke the protocol" : "left",
	       s->phase == TABLE ? "while the table was sent" : "before the group was complete");
	drop(s, c);
}

static void serve_conn(struct serve *s, struct conn *c)
{
	switch (c->state) {
	case AT_HELLO:
	case AT_JOIN:
		if (flush(c))
			refuse_silently(s, c, "it closed before it had joined");
		else
			serve_half_open(s, c);
		break;
	case AT_MEMBER:
		serve_member(s, c);
		break;
	case AT_LEAVING:
		serve_leaving(s, c);
		break;
	case AT_GONE:
		break;
	}
}

static void end_late(struct serve *s, int64_t now)
{
	for (size_t i = 0; i < s->nr_conns; i++) {
		struct conn *c = s->conns[i];

		if (c->state == AT_MEMBER || c->state == AT_GONE || now < c->until)
			continue;
		if (c->state == AT_LEAVING)
			drop(s, c);
		else
			refuse_silently(s, c, "it was too slow to join");
	}
}

/* ---- listening */

static void close_listeners(struct serve *s)
{
	while (s->nr_listeners)
		close(s->listener[--s->nr_listeners]);
}

/* A listening descriptor, or -errno. */
static int listen_at(const struct addrinfo *ai, uint32_t world)
{
	const int on = 1, off = 0;
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r;

	if (fd < 0)
		return -errno;
	/* Connections of a group that ended just now must not keep the next one from starting. */
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ai->ai_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)ai->ai_addr;
		bool any = IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);

		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, any ? &off : &on, sizeof(on));
	}
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, (int)world + MAX_HALF_OPEN) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

/* At every address of the host, so that workers that resolve it in another order find us. An address that is not of
 * this host, or a family that it does not have, is passed over as long as another one works. */
static int listen_once(struct serve *s, const struct addrinfo *list, int64_t *waits)
{
	int err = EADDRNOTAVAIL;

	for (const struct addrinfo *i = list; i && s->nr_listeners < MAX_LISTENERS; i = i->ai_next) {
		int fd = listen_at(i, s->world);

		if (fd >= 0) {
			if (s->nr_listeners == 0)
				rz_sockaddr_text(i->ai_addr, i->ai_addrlen, s->at);
			s->listener[s->nr_listeners++] = fd;
			continue;
		}
		if (fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT)
			continue;
		err = -fd;
		rz_sockaddr_text(i->ai_addr, i->ai_addrlen, s->at);
		close_listeners(s);
		break;
	}
	if (s->nr_listeners)
		return 0;
	/* A worker's attempt to reach us may hold the port for a moment, when the kernel chose it for its own side. */
	if (err == EADDRINUSE && now_ns() < *waits)
		return 1;
	if (err == EADDRNOTAVAIL)
		return rc_fail(err, "rendezvous %s: rank 0 cannot listen there: it is no address of this host; run rank 0 on that "
			       "host, or give rank 0 0.0.0.0:%s or [::]:%s", s->a->text, s->a->port, s->a->port);
	if (err == EADDRINUSE)
		return rc_fail(err, "rendezvous %s (%s): rank 0 cannot listen there: another program, another rank 0 or a launcher's "
			       "own store uses the port; choose another one with RREF_RENDEZVOUS", s->a->text, s->at);
	return rc_fail(err, "rendezvous %s (%s): rank 0 cannot listen there: %s", s->a->text, s->at, rref_strerror(err));
}

static int start_listening(struct serve *s, const struct addrinfo *list)
{
	int64_t waits = min_of(s->deadline, s->start + BIND_NS);
	bool only_loopback = true;
	int r;

	while ((r = listen_once(s, list, &waits)) == 1)
		(void)poll(NULL, 0, rz_poll_ms(now_ns() + BIND_PAUSE_NS));
	if (r)
		return r;
	for (const struct addrinfo *i = list; i; i = i->ai_next)
		only_loopback = only_loopback && rz_is_loopback(i->ai_addr);
	/* Debian's installer gives a host's own name the address 127.0.1.1. Literal addresses start with a digit or ':'. */
	if (only_loopback && strncmp(s->a->host, "localhost", 9) != 0 && s->a->host[0] > ':')
		rz_log(s->log, RREF_LOG_WARNING, "rendezvous %s: on this host the name is %s, which other hosts cannot reach",
		       s->a->text, s->at);
	rz_log(s->log, RREF_LOG_INFO, "rendezvous %s (%s): waiting for %u workers", s->a->text, s->at, s->world - 1);
	return 0;
}

static struct conn *add_conn(struct serve *s, int fd, const struct sockaddr *from, socklen_t length)
{
	struct conn *c = s->nr_conns < s->max_conns ? calloc(1, sizeof(*c)) : NULL;
	const int on = 1;

	if (!c)
		return NULL;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	c->fd = fd;
	c->state = AT_HELLO;
	c->until = now_ns() + HALF_OPEN_NS;
	/* No rank yet: what drop() looks up must not be rank 0's place. */
	c->session.rank = UINT32_MAX;
	rz_sockaddr_text(from, length, c->peer);
	s->conns[s->nr_conns++] = c;
	return c;
}

static void accept_some(struct serve *s, int listener)
{
	size_t room = MAX_HALF_OPEN - min_of(count_half_open(s), (size_t)MAX_HALF_OPEN);

	while (room--) {
		struct sockaddr_storage from;
		socklen_t length = sizeof(from);
		int fd = accept4(listener, (struct sockaddr *)&from, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			/* Descriptors or memory are short: those in the queue wait there, the others are served on. */
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
				if (!s->accept_err)
					rz_log(s->log, RREF_LOG_WARNING, "rendezvous: accept: %s", rref_strerror(errno));
				s->accept_err = errno;
				s->accept_again = now_ns() + ACCEPT_PAUSE_NS;
				return;
			}
			if (errno == EAGAIN || errno == EWOULDBLOCK)
				return;
			/* What ails a connection that was never ours is not our failure. */
			continue;
		}
		if (!add_conn(s, fd, (struct sockaddr *)&from, length)) {
			close(fd);
			s->accept_again = now_ns() + ACCEPT_PAUSE_NS;
			return;
		}
		s->accept_err = 0;
	}
}

/* ---- the loop */

static void send_status(struct serve *s, int64_t now)
{
	if (s->phase != GATHER || !s->status_due || now < s->next_status)
		return;
	s->status_due = false;
	s->next_status = now + STATUS_NS;
	for (size_t i = 0; i < s->nr_conns; i++) {
		struct conn *c = s->conns[i];

		/* Only the newest counts, so who does not read gets none. */
		if (c->state != AT_MEMBER || c->out_have)
			continue;
		c->out_have += rz_status_make(&c->session, &s->present, out_end(c));
		if (flush(c))
			drop(s, c);
	}
}

static void start_table(struct serve *s)
{
	s->phase = TABLE;
	close_listeners(s);
	rz_digest_start(&s->digest);
	for (uint32_t i = 0; i < s->world; i++)
		rz_digest_add(&s->digest, s->key, &s->table[i]);
	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state == AT_MEMBER)
			serve_member(s, s->conns[i]);
		else
			drop(s, s->conns[i]);
}

/* 1 while there is something to do, 0 or -errno at the end. */
static int step_group(struct serve *s, int64_t now)
{
	char ranks[160];
	struct rz_presence waiting;

	if (s->phase == GATHER && s->nr_present == s->world)
		start_table(s);
	else if (s->phase == GATHER && now >= s->deadline)
		fail_timeout(s);
	sweep(s);
	if (s->phase == TABLE && s->nr_conns == 0)
		return 0;
	if (s->phase == TABLE && now >= s->deadline) {
		memset(&waiting, 0, sizeof(waiting));
		for (uint32_t i = 0; i < s->world; i++)
			if (s->holder[i])
				waiting.bits[i / 8] |= (uint8_t)(1u << (i % 8));
		rz_ranks_text(&waiting, s->world, true, ranks, sizeof(ranks));
		return rc_fail(ETIMEDOUT, "rendezvous %s (%s): all %u workers came, but these did not take the list of members in "
			       "%.1f s: %s", s->a->text, s->at, s->world, (double)(now - s->start) / 1e9, ranks);
	}
	if (s->phase == FAILING) {
		bool pending = false, half_open = false;

		for (size_t i = 0; i < s->nr_conns; i++) {
			pending = pending || s->conns[i]->told;
			half_open = half_open || is_half_open(s->conns[i]);
		}
		if (now >= s->tell_until ||
		    (!pending && (s->nr_told >= s->world - 1 || (s->err == ETIMEDOUT && !half_open))))
			return rc_fail(s->err, "%s", s->text);
	}
	return 1;
}

static int64_t next_event(const struct serve *s, bool is_accepting)
{
	int64_t next = s->phase == FAILING ? s->tell_until : s->deadline;

	if (!is_accepting && s->nr_listeners && s->accept_again)
		next = min_of(next, s->accept_again);
	if (s->phase == GATHER && s->status_due)
		next = min_of(next, s->next_status);
	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state != AT_MEMBER)
			next = min_of(next, s->conns[i]->until);
	return next;
}

static int serve_group(struct serve *s)
{
	for (;;) {
		int64_t now = now_ns();
		size_t nr = 0, first, nr_polled;
		bool is_accepting;
		int r, n;

		send_status(s, now);
		end_late(s, now);
		r = step_group(s, now);
		if (r <= 0)
			return r;

		if (s->accept_again && now >= s->accept_again)
			s->accept_again = 0;
		is_accepting = !s->accept_again && count_half_open(s) < MAX_HALF_OPEN;
		for (unsigned i = 0; is_accepting && i < s->nr_listeners; i++)
			s->polls[nr++] = (struct pollfd){ .fd = s->listener[i], .events = POLLIN };
		first = nr;
		nr_polled = s->nr_conns;
		for (size_t i = 0; i < nr_polled; i++) {
			const struct conn *c = s->conns[i];
			/* In TABLE the peer has nothing to say, and its early end would wake us for nothing but an error. */
			short events = c->out_have ? POLLOUT : POLLIN;

			s->polls[nr++] = (struct pollfd){ .fd = c->fd, .events = events };
		}
		n = poll(s->polls, nr, rz_poll_ms(next_event(s, is_accepting)));
		if (n < 0 && errno != EINTR)
			return rc_fail(errno, "rendezvous %s: poll: %s", s->a->text, rref_strerror(errno));
		if (n <= 0)
			continue;
		/* Those who have a place first: who left must make way for who comes. */
		for (size_t i = 0; i < nr_polled; i++)
			if (s->polls[first + i].revents && s->conns[i]->state == AT_MEMBER)
				serve_conn(s, s->conns[i]);
		for (size_t i = 0; i < nr_polled; i++)
			if (s->polls[first + i].revents && s->conns[i]->state != AT_MEMBER)
				serve_conn(s, s->conns[i]);
		for (size_t i = 0; i < first; i++)
			if (s->polls[i].revents)
				accept_some(s, s->polls[i].fd);
	}
}

int rz_serve(const struct rz_address *a, const struct addrinfo *list, uint32_t world, const struct rc_member *me,
	     const struct rc_key *key, int64_t deadline, const struct rc_group_log *log, struct rc_member *members)
{
	struct serve s = { .a = a, .key = key, .log = log, .world = world, .start = now_ns(), .deadline = deadline };
	int r;

	s.max_conns = world - 1 + MAX_HALF_OPEN;
	s.table = calloc(world, sizeof(*s.table));
	s.holder = calloc(world, sizeof(*s.holder));
	s.conns = calloc(s.max_conns, sizeof(*s.conns));
	s.polls = calloc(MAX_LISTENERS + s.max_conns, sizeof(*s.polls));
	if (!s.table || !s.holder || !s.conns || !s.polls) {
		r = rc_fail(ENOMEM, "rendezvous: no memory for %u members (%zu bytes)", world, world * sizeof(*s.table));
		goto free_all;
	}
	s.table[0] = *me;
	s.present.bits[0] = 1;
	s.nr_present = 1;
	r = start_listening(&s, list);
	if (r)
		goto free_all;
	r = serve_group(&s);
	if (s.nr_refused)
		rz_log(log, RREF_LOG_WARNING, "rendezvous: %llu %s refused in all, the last: %s", (unsigned long long)s.nr_refused,
		       s.nr_refused == 1 ? "connection was" : "connections were", s.last_refused);
	if (r == 0)
		memcpy(members, s.table, world * sizeof(*members));
	for (size_t i = 0; i < s.nr_conns; i++)
		drop(&s, s.conns[i]);
	sweep(&s);
	close_listeners(&s);
free_all:
	free(s.polls);
	free(s.conns);
	free(s.holder);
	free(s.table);
	return r;
}
