/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous as every other worker sees it: one connection to rank 0. A worker tries again and
 * again until it has its place. For rank 0 may start later, be busy with others, or be killed and
 * started again. Once rank 0 begins to tell the members, its loss is the group's loss.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "base/limit.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/group/rendezvous.h"

/* limit of one try: a lost SYN must not cost the whole deadline */
#define CONNECT_NS (3 * NSEC_PER_SEC)
#define BACKOFF_MIN_NS (10 * NSEC_PER_MSEC)
#define BACKOFF_MAX_NS (200 * NSEC_PER_MSEC)
/* least time between two looks for another address of rank 0's name */
#define LOOK_MIN_NS (2 * NSEC_PER_SEC)
#define LOOK_MAX_NS (30 * NSEC_PER_SEC)
#define COME_AGAIN 1

/* owner: the one thread inside rz_come */
struct come {
	const struct rz_address *a;
	const struct rc_member *me;
	const struct rc_key *key;
	const struct rc_group_log *log;
	uint32_t world;
	int64_t start, deadline;
	unsigned nr_tries;
	int last_err;                  /* positive; why the last try failed */
	bool is_connected;             /* the last try got a connection: some process is there */
	char last[200];                /* the same in words */
	char peer[RZ_SOCKADDR_TEXT];   /* the address of the last try */
	bool is_joined, has_status;
	bool has_table;	 /* rank 0 has begun to send it: from here on its loss is the group's */
	bool was_joined; /* joined over an earlier connection */
	struct rz_say say;             /* times at which this worker logs its wait */
	struct rz_status status;
	struct rz_session session;
	struct rz_reader in;
	struct rc_member *table;
};

static struct decimal client_waited(const struct come *c)
{
	return seconds_text(now_ns() - c->start);
}

/*
 * Waits for events on fd. Returns 0, -ETIMEDOUT or -errno of poll. Errors on fd show when it is
 * used.
 */
static int wait_fd(int fd, short events, int64_t until)
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		int ms = rz_poll_ms(until);
		int n = poll(&p, 1, ms);

		if (n > 0)
			return 0;
		if (n == 0 && now_ns() >= until)
			return -ETIMEDOUT;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

static void pause_until(int64_t until)
{
	while (now_ns() < until)
		(void)poll(NULL, 0, rz_poll_ms(until));
}

/* Logs the wait of this worker now and then. */
static void say(struct come *c)
{
	char text[320];

	if (!rz_say_due(&c->say))
		return;
	if (c->is_joined && c->has_status)
		rz_log(c->log, RREF_LOG_INFO, "rendezvous %s (%s): waiting for %s s: %s",
		       c->a->text, c->peer, client_waited(c).text,
		       rz_status_text(&c->status, c->world, text, sizeof(text)));
	else if (c->is_connected)
		rz_log(c->log, RREF_LOG_INFO,
		       "rendezvous %s (%s): rank %u has waited %s s: connected, "
		       "but rank 0 did not answer yet",
		       c->a->text, c->peer, c->me->rank, client_waited(c).text);
	else
		rz_log(c->log, RREF_LOG_INFO,
		       "rendezvous %s (%s): rank 0 is not there yet: rank %u has waited %s s, %u "
		       "tries, the last: %s",
		       c->a->text, c->peer, c->me->rank, client_waited(c).text, c->nr_tries,
		       *c->last ? c->last : "no answer yet");
}

/* Waits as wait_fd does, and says so in the log. */
static int wait_and_say(struct come *c, int fd, short events, int64_t until)
{
	for (;;) {
		int r = wait_fd(fd, events, min_of(until, c->say.next));

		if (r != -ETIMEDOUT || now_ns() >= until)
			return r;
		say(c);
	}
}

/*
 * Returns true if a connection met itself. It can at a port of this machine without a listener: the
 * kernel may choose it for our side. It would answer our hello with our hello, and keep rank 0 from
 * listening.
 */
static bool is_self_connected(int fd)
{
	struct sockaddr_storage self, peer;
	socklen_t self_length = sizeof(self), peer_length = sizeof(peer);

	memset(&self, 0, sizeof(self));
	memset(&peer, 0, sizeof(peer));
	if (getsockname(fd, (struct sockaddr *)&self, &self_length) < 0 ||
	    getpeername(fd, (struct sockaddr *)&peer, &peer_length) < 0)
		return false;
	return self_length == peer_length && memcmp(&self, &peer, self_length) == 0;
}

/* Connects. Returns a connected descriptor, or -errno. */
static int connect_to(struct come *c, const struct addrinfo *ai)
{
	const struct linger no_time_wait = { .l_onoff = 1, .l_linger = 0 };
	const int on = 1;
	socklen_t length = sizeof(int);
	int err = 0, r;
	int fd = RB_OPEN(socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));

	if (fd < 0)
		return -errno;
	if (connect(fd, ai->ai_addr, ai->ai_addrlen) < 0) {
		/* An interrupted connect goes on by itself, as one in progress. */
		if (errno != EINPROGRESS && errno != EINTR) {
			r = -errno;
			goto close_fd;
		}
		r = wait_and_say(c, fd, POLLOUT, min_of(c->deadline, now_ns() + CONNECT_NS));
		if (r)
			goto close_fd;
		if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0)
			err = errno;
		if (err) {
			r = -err;
			goto close_fd;
		}
	}
	if (is_self_connected(fd)) {
		(void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &no_time_wait, sizeof(no_time_wait));
		r = -ECONNREFUSED;
		goto close_fd;
	}
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	return fd;
close_fd:
	rb_close(fd);
	return r;
}

static int send_all(int fd, const uint8_t *p, size_t length, int64_t deadline)
{
	while (length) {
		ssize_t n = send(fd, p, length, MSG_NOSIGNAL);

		if (n > 0) {
			p += n;
			length -= (size_t)n;
		} else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			int r = wait_fd(fd, POLLOUT, deadline);

			if (r)
				return r;
		} else if (n < 0 && errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

/* Reads the next frame to c->in. Returns 0, -ETIMEDOUT or an error of rz_read. */
static int next_frame(struct come *c, int fd)
{
	int r;

	rz_next(&c->in);
	while ((r = rz_read(fd, &c->in)) == 0)
		if ((r = wait_and_say(c, fd, POLLIN, c->deadline)))
			return r;
	return r < 0 ? r : 0;
}

static int client_fail_timeout(const struct come *c)
{
	char text[320];

	if (c->has_status)
		return rc_fail(ETIMEDOUT, "rendezvous %s (%s): waited %s s: %s", c->a->text,
			       c->peer, client_waited(c).text,
			       rz_status_text(&c->status, c->world, text, sizeof(text)));
	return rc_fail(ETIMEDOUT,
		       "rendezvous %s (%s): waited %s s (%u tries): connected, but rank 0 did not "
		       "answer; is it "
		       "this group's rank 0 that listens there?",
		       c->a->text, c->peer, client_waited(c).text, c->nr_tries);
}

/*
 * Turns an error of rz_read, a taker or send_all into words. Returns COME_AGAIN for a connection
 * that was lost before it counted.
 */
static int fail_frame(struct come *c, int r)
{
	char bytes[RZ_HEAD_BYTES * 2 + 1];

	switch (r) {
	case -ETIMEDOUT:
		return client_fail_timeout(c);
	case -EPROTO:
		rc_quote(bytes, sizeof(bytes), c->in.frame,
			 min_of(c->in.have, (size_t)RZ_HEAD_BYTES * 2));
		return rc_fail(
			EPROTO,
			"rendezvous %s (%s): what answers there does not speak this protocol "
			"(it sent \"%s\")",
			c->a->text, c->peer, bytes);
	case -EPROTONOSUPPORT:
		return rc_fail(
			EPROTONOSUPPORT,
			"rendezvous %s (%s): rank 0 speaks protocol version %u, rank %u version %u",
			c->a->text, c->peer, rz_version_of(&c->in), c->me->rank, RZ_VERSION);
	case -EKEYREJECTED:
		return rc_fail(
			EKEYREJECTED,
			"rendezvous %s (%s): what answers there does not hold this group's key",
			c->a->text, c->peer);
	default:
		if (c->has_table)
			return rc_fail(ECONNREFUSED,
				       "rendezvous %s (%s): lost rank 0 after %s s, while it told "
				       "who the members "
				       "are: %s",
				       c->a->text, c->peer, client_waited(c).text,
				       rref_strerror(r));
		c->last_err = -r;
		if (c->is_joined) {
			/*
			 * Comes again: rank 0 may have been killed, and be started again. The group
			 * is not complete, so nothing is lost.
			 */
			c->was_joined = true;
			snprintf(c->last, sizeof(c->last),
				 "lost rank 0 before the group was complete (%s)",
				 rref_strerror(r));
			rz_log(c->log, RREF_LOG_INFO,
			       "rendezvous %s (%s): %s; joining again when it is back", c->a->text,
			       c->peer, c->last);
			return COME_AGAIN;
		}
		snprintf(c->last, sizeof(c->last),
			 "the connection was closed before an answer (%s)", rref_strerror(r));
		return COME_AGAIN;
	}
}

/*
 * Fails with rank 0's last word. A refusal is not signed, so only the codes that a refusal can have
 * count.
 */
static int fail_refused(struct come *c)
{
	char text[RZ_TEXT_MAX + 1];
	int err, r;

	if (rz_type_of(&c->in) == RZ_FAILED) {
		r = rz_failed_take(&c->in, &c->session, &err, text, sizeof(text));
		return r ? fail_frame(c, r) : rc_fail(err, "%s", text);
	}
	r = rz_refuse_take(&c->in, &err, text, sizeof(text));
	if (r || (err != EPROTONOSUPPORT && err != EKEYREJECTED && err != EPROTO))
		return fail_frame(c, -EPROTO);
	return rc_fail(err, "rendezvous %s (%s): refused: %s", c->a->text, c->peer, text);
}

/* Reads the entries in rank order, then END, which says that they are rank 0's. */
static int take_table(struct come *c, int fd)
{
	struct rz_digest digest;
	int r;

	c->has_table = true;
	rz_digest_start(&digest);
	for (uint32_t i = 0; i < c->world; i++) {
		if (i && (r = next_frame(c, fd)))
			return fail_frame(c, r);
		if (rz_type_of(&c->in) == RZ_FAILED)
			return fail_refused(c);
		r = rz_member_take(&c->in, &c->table[i]);
		if (r || c->table[i].rank != i)
			return fail_frame(c, -EPROTO);
		rz_digest_add(&digest, c->key, &c->table[i]);
	}
	if ((r = next_frame(c, fd)) || (r = rz_end_take(&c->in, &c->session, &digest)))
		return fail_frame(c, r);
	if (c->table[c->me->rank].incarnation != c->me->incarnation)
		return rc_fail(EPROTO, "rendezvous %s (%s): rank 0 lists another worker as rank %u",
			       c->a->text, c->peer, c->me->rank);
	return 0;
}

/* Sends a frame and reads the next. Returns 0, or as fail_frame does. */
static int exchange(struct come *c, int fd, const uint8_t *frame, size_t length)
{
	int r = send_all(fd, frame, length, c->deadline);

	if (!r)
		r = next_frame(c, fd);
	return r ? fail_frame(c, r) : 0;
}

/* Proves to rank 0 that this worker holds the key, and takes its place. */
static int join(struct come *c, int fd)
{
	struct rz_session *s = &c->session;
	uint8_t out[RZ_FRAME_MAX];
	int r;

	*s = (struct rz_session){ .key = c->key, .rank = c->me->rank, .world = c->world };
	rc_random(s->client_nonce, sizeof(s->client_nonce));
	rz_next(&c->in);
	if ((r = exchange(c, fd, out, rz_hello_make(s, out))))
		return r;
	if (rz_type_of(&c->in) == RZ_REFUSE)
		return fail_refused(c);
	if ((r = rz_challenge_take(&c->in, s)))
		return fail_frame(c, r);
	if ((r = exchange(c, fd, out, rz_join_make(s, c->me, out))))
		return r;
	if (rz_type_of(&c->in) == RZ_FAILED || rz_type_of(&c->in) == RZ_REFUSE)
		return fail_refused(c);
	r = rz_joined_take(&c->in, s);
	return r ? fail_frame(c, r) : 0;
}

/* Runs one connection from hello to table. Returns 0, -errno with a text, or COME_AGAIN. */
static int talk(struct come *c, int fd)
{
	int r;

	c->is_joined = c->has_status = false;
	if ((r = join(c, fd)))
		return r;
	c->is_joined = true;
	for (;;) {
		if ((r = next_frame(c, fd)))
			return fail_frame(c, r);
		switch (rz_type_of(&c->in)) {
		case RZ_STATUS:
			if ((r = rz_status_take(&c->in, &c->session, &c->status)))
				return fail_frame(c, r);
			c->has_status = true;
			break;
		case RZ_MEMBER:
			return take_table(c, fd);
		case RZ_FAILED:
			return fail_refused(c);
		default:
			return fail_frame(c, -EPROTO);
		}
	}
}

/* Tries each address once. */
static int try_all(struct come *c, const struct addrinfo *list)
{
	for (const struct addrinfo *i = list; i && (c->nr_tries == 0 || now_ns() < c->deadline);
	     i = i->ai_next) {
		int fd, r;

		rz_sockaddr_text(i->ai_addr, i->ai_addrlen, c->peer);
		c->nr_tries++;
		c->is_connected = false;
		fd = connect_to(c, i);
		if (fd < 0) {
			c->last_err = -fd;
			snprintf(c->last, sizeof(c->last), "%s",
				 limit_errno(-fd) == -fd ? rref_strerror(fd)
							 : limit_why("socket", -fd, 0));
			continue;
		}
		c->is_connected = true;
		r = talk(c, fd);
		rb_close(fd);
		if (r != COME_AGAIN)
			return r;
	}
	return COME_AGAIN;
}

/* Tells whether this process itself could not make a connection, for a limit or a refusal. */
static bool lacks(const struct come *c)
{
	int err = c->is_connected ? 0 : c->last_err;

	return err == EMFILE || err == ENFILE || err == ENOMEM || err == EACCES || err == EPERM;
}

/*
 * Fails after the last try. No rank 0 is there if that was refused, or closed without an answer.
 * Any other error may be the network's.
 */
static int come_failed(struct come *c)
{
	int err = c->is_connected ? ECONNREFUSED : c->last_err;

	if (err != ECONNREFUSED && !lacks(c))
		err = ETIMEDOUT;
	return rc_fail(err,
		       "rendezvous %s (%s): rank %u %s rank 0: %u tries in %s s, the last: %s%s",
		       c->a->text, c->peer, c->me->rank,
		       c->was_joined
			       ? "lost rank 0 before the group was complete, and could not reach"
			       : "could not reach",
		       c->nr_tries, client_waited(c).text, c->last,
		       lacks(c) ? ""
				: "; is rank 0 running there? A group that has started is closed: "
				  "nobody can join it later, or take a dead worker's place");
}

/* Tries until a try tells the members, or fails for good. */
static int try_on(struct come *c, struct addrinfo **list)
{
	int64_t backoff = BACKOFF_MIN_NS, look_ns = LOOK_MIN_NS, look_at = now_ns() + look_ns;
	uint32_t jitter;
	int r;

	while ((r = try_all(c, *list)) == COME_AGAIN && now_ns() < c->deadline) {
		/* Ends the wait if this process lacks something: no wait mends that. */
		if (lacks(c))
			break;
		/*
		 * Looks the name up again: a rank 0 that is started again elsewhere has the same
		 * name.
		 */
		if (now_ns() >= look_at) {
			rz_resolve_again(c->a, c->key, list);
			look_ns = min_of(2 * look_ns, LOOK_MAX_NS);
			look_at = now_ns() + look_ns;
		}
		say(c);
		/* A thousand workers that start together should not come back together. */
		rc_random(&jitter, sizeof(jitter));
		pause_until(min_of(c->deadline,
				   now_ns() + backoff / 2 + (int64_t)(jitter % (uint32_t)backoff)));
		backoff = c->is_joined ? BACKOFF_MIN_NS : min_of(backoff * 2, BACKOFF_MAX_NS);
	}
	return r == COME_AGAIN ? come_failed(c) : r;
}

int rz_come(const struct rz_address *a, uint32_t world, const struct rc_member *me,
	    const struct rc_key *key, int64_t deadline, const struct rc_group_log *log,
	    struct rc_member *members)
{
	struct come *c = calloc(1, sizeof(*c));
	struct rc_member *table = calloc(world, sizeof(*table));
	struct rz_patience patience = { 0 };
	struct addrinfo *list = NULL;
	int r;

	if (!c || !table) {
		r = rc_fail(ENOMEM, "rendezvous: no memory for %u members (%zu bytes)", world,
			    world * sizeof(*table));
		goto free_all;
	}
	c->a = a;
	c->me = me;
	c->key = key;
	c->log = log;
	c->world = world;
	c->start = now_ns();
	c->deadline = deadline;
	c->table = table;
	rz_say_start(&c->say);
	r = rz_resolve(a, key, deadline, &patience, log, &list);
	if (r)
		goto free_all;
	r = try_on(c, &list);
	if (!r)
		memcpy(members, table, world * sizeof(*table));
free_all:
	if (list)
		freeaddrinfo(list);
	free(table);
	free(c);
	return r;
}
