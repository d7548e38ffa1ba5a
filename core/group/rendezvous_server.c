/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous' server: its connections, the state of the group, and the loop.
 * rendezvous_server.h has the states.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/group/rendezvous_server.h"

#define LEAVE_NS (1 * NSEC_PER_SEC)              /* time for a refusal to be read */
#define TELL_NS (2 * NSEC_PER_SEC)               /* time for late workers to hear of a failure */
#define TELL_LATE_NS (200 * NSEC_PER_MSEC)       /* the same when the time is up already */
#define STATUS_NS (250 * NSEC_PER_MSEC)
/* bytes thrown away for a stranger to read our refusal */
#define DRAIN_MAX 65536
#define LOGGED_REFUSALS 32

/* ---- connections */

/* Drops a connection. Its struct lives until the sweep: the loop may stand on it. */
void rz_drop(struct rz_serve *s, struct rz_conn *c)
{
	uint32_t rank = c->session.rank;

	if (c->state == AT_GONE)
		return;
	if (s->holder && rank < s->world && s->holder[rank] == c) {
		s->holder[rank] = NULL;
		if (s->phase == GATHER) {
			rb_assert_is(s->nr_present, >, 1);
			rb_assert(s->status.present.bits[rank / 8] >> rank % 8 & 1);
			s->status.present.bits[rank / 8] &= (uint8_t)~(1u << (rank % 8));
			s->nr_present--;
			s->status_due = true;
		}
	}
	rb_close(c->fd);
	c->state = AT_GONE;
}

static void sweep(struct rz_serve *s)
{
	size_t kept = 0;

	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state == AT_GONE)
			free(s->conns[i]);
		else
			s->conns[kept++] = s->conns[i];
	s->nr_conns = kept;
}

/* Counts all refusals, and logs some. Strangers on the network must not be able to fill the log. */
static void count_refusal(struct rz_serve *s, const struct rz_conn *c, const char *why)
{
	s->nr_refused++;
	snprintf(s->last_refused, sizeof(s->last_refused), "%s: %s", c->peer, why);
	if (s->nr_refused <= LOGGED_REFUSALS || (s->nr_refused & (s->nr_refused - 1)) == 0)
		rz_log(s->log, RREF_LOG_WARNING, "rendezvous: refused connection %llu: %s",
		       (unsigned long long)s->nr_refused, s->last_refused);
}

void rz_refuse_silently(struct rz_serve *s, struct rz_conn *c, const char *why)
{
	count_refusal(s, c, why);
	rz_drop(s, c);
}

/* Returns true if c takes a place of that state. A refused peer that still reads is a stranger. */
static bool is_of(const struct rz_conn *c, enum rz_state state)
{
	return c->state == state || (state == AT_HELLO && c->state == AT_LEAVING && !c->told);
}

void rz_make_room(struct rz_serve *s, enum rz_state state)
{
	struct rz_conn *of[MAX_HALF_OPEN], *out = NULL;
	size_t nr = 0, most = 0;

	/* Finds the connections in the order in which they came. */
	for (size_t i = 0; i < s->nr_conns && nr < MAX_HALF_OPEN; i++)
		if (is_of(s->conns[i], state))
			of[nr++] = s->conns[i];
	if (nr < MAX_HALF_OPEN)
		return;
	for (size_t i = 0; i < nr; i++) {
		size_t same = 0;

		for (size_t k = i; k < nr; k++)
			same += of[k]->from == of[i]->from;
		if (same > most) {
			most = same;
			out = of[i];
		}
	}
	rb_assert_with(out && out->state != AT_MEMBER && out->state != AT_GONE, "%zu of them",
		       most);
	rz_refuse_silently(s, out, "it made room for those that came later");
}

static bool out_has_room(const struct rz_conn *c)
{
	return sizeof(c->out) - c->out_have >= 2 * RZ_FRAME_MAX;
}

/* Sends what it can. Returns 0, or -errno when the connection is lost. */
int rz_flush(struct rz_conn *c)
{
	rb_assert_with(c->out_sent <= c->out_have && c->out_have <= sizeof(c->out), "%zu of %zu",
		       c->out_sent, c->out_have);
	while (c->out_sent < c->out_have) {
		ssize_t n = send(c->fd, c->out + c->out_sent, c->out_have - c->out_sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
		c->out_sent += (size_t)n;
	}
	c->out_have = c->out_sent = 0;
	return 0;
}

/* Sends the rest, then the end of the stream. */
static void push_out(struct rz_serve *s, struct rz_conn *c)
{
	if (rz_flush(c)) {
		rz_drop(s, c);
	} else if (!c->out_have && !c->is_shut) {
		c->is_shut = true;
		(void)shutdown(c->fd, SHUT_WR);
	}
}

/*
 * Lets the peer close first. Our close would become a reset while bytes of the peer are unread. A
 * reset may overtake the refusal.
 */
static void leave(struct rz_serve *s, struct rz_conn *c)
{
	rb_assert(c->state != AT_GONE);
	c->state = AT_LEAVING;
	c->until = now_ns() + LEAVE_NS;
	push_out(s, c);
}

void rz_refuse(struct rz_serve *s, struct rz_conn *c, int err, const char *text)
{
	count_refusal(s, c, text);
	c->out_have += rz_refuse_make(err, text, rz_out_end(c));
	leave(s, c);
}

/* ---- the group */

void rz_tell_failure(struct rz_serve *s, struct rz_conn *c)
{
	if (c->told || c->state == AT_GONE)
		return;
	rb_assert(s->phase == FAILING && s->err > 0);
	c->told = true;
	s->nr_told++;
	c->out_have += rz_failed_make(&c->session, s->err, s->text, rz_out_end(c));
	leave(s, c);
}

void rz_fail_group(struct rz_serve *s, int err, const char *fmt, ...)
{
	va_list ap;

	if (s->phase == FAILING)
		return;
	va_start(ap, fmt);
	vsnprintf(s->text, sizeof(s->text), fmt, ap);
	va_end(ap);
	rb_assert_is(err, >, 0);
	s->phase = FAILING;
	s->err = err;
	s->tell_until = now_ns() + (err == ETIMEDOUT ? TELL_LATE_NS : TELL_NS);
	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state == AT_MEMBER)
			rz_tell_failure(s, s->conns[i]);
}

static void server_fail_timeout(struct rz_serve *s)
{
	char text[320], refused[240] = "", lack[80] = "";

	if (s->nr_refused)
		snprintf(refused, sizeof(refused), "; %llu %s refused, the last: %s",
			 (unsigned long long)s->nr_refused,
			 s->nr_refused == 1 ? "connection was" : "connections were",
			 s->last_refused);
	/*
	 * Warns of a lack: a large group needs a descriptor per worker, more than the usual limit
	 * of 1024.
	 */
	if (s->accept_err)
		snprintf(lack, sizeof(lack), "; rank 0 could not accept more: %s",
			 rref_strerror(s->accept_err));
	rz_fail_group(s, ETIMEDOUT, "rendezvous %s (%s): waited %s s: %s%s%s", s->a->text, s->at,
		      seconds_text(now_ns() - s->start).text,
		      rz_status_text(&s->status, s->world, text, sizeof(text)), lack, refused);
}

static void serve_leaving(struct rz_serve *s, struct rz_conn *c)
{
	char waste[4096];
	ssize_t n;

	push_out(s, c);
	if (!c->is_shut || c->state == AT_GONE)
		return;
	n = recv(c->fd, waste, sizeof(waste), MSG_DONTWAIT);
	if (n > 0)
		c->drained += (size_t)n;
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) ||
	    c->drained > DRAIN_MAX)
		rz_drop(s, c);
}

/* Makes as many entries as fit; then END. */
static void fill_table(struct rz_serve *s, struct rz_conn *c)
{
	rb_assert_is(c->next_entry, <=, s->world + 1);
	while (c->next_entry <= s->world && out_has_room(c)) {
		if (c->next_entry < s->world)
			c->out_have += rz_member_make(&s->table[c->next_entry], rz_out_end(c));
		else
			c->out_have += rz_end_make(&c->session, &s->digest, rz_out_end(c));
		c->next_entry++;
	}
}

/*
 * Reads from a member, which only listens. Returns false if it neither sent a byte nor closed;
 * *broke tells which it did.
 */
static bool member_stirs(const struct rz_conn *c, bool *broke)
{
	char byte;
	ssize_t n;

	do
		n = recv(c->fd, &byte, 1, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	*broke = n > 0;
	return n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

/* Sends what there is to send, and the table as its parts fit. */
static int feed_member(struct rz_serve *s, struct rz_conn *c)
{
	int r;

	do {
		if (s->phase == TABLE)
			fill_table(s, c);
		r = rz_flush(c);
	} while (!r && !c->out_have && s->phase == TABLE && c->next_entry <= s->world);
	return r;
}

static void serve_member(struct rz_serve *s, struct rz_conn *c)
{
	bool broke = false;

	if (feed_member(s, c) == 0) {
		if (c->out_have)
			return;
		if (s->phase == TABLE) {
			rz_drop(s, c);
			return;
		}
		if (!member_stirs(c, &broke))
			return;
	}
	rz_log(s->log, broke ? RREF_LOG_WARNING : RREF_LOG_INFO, "rendezvous: rank %u (%s) %s %s",
	       c->session.rank, c->peer, broke ? "broke the protocol" : "left",
	       s->phase == TABLE ? "while the table was sent" : "before the group was complete");
	rz_drop(s, c);
}

static void serve_conn(struct rz_serve *s, struct rz_conn *c)
{
	switch (c->state) {
	case AT_HELLO:
	case AT_JOIN:
		if (rz_flush(c))
			rz_refuse_silently(s, c, "it closed before it had joined");
		else
			rz_serve_half_open(s, c);
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

static void end_late(struct rz_serve *s, int64_t now)
{
	for (size_t i = 0; i < s->nr_conns; i++) {
		struct rz_conn *c = s->conns[i];

		if (c->state == AT_MEMBER || c->state == AT_GONE || now < c->until)
			continue;
		if (c->state == AT_LEAVING)
			rz_drop(s, c);
		else
			rz_refuse_silently(s, c, "it was too slow to join");
	}
}

/* ---- the loop */

static void send_status(struct rz_serve *s, int64_t now)
{
	if (s->phase != GATHER || !s->status_due || now < s->next_status)
		return;
	s->status_due = false;
	s->next_status = now + STATUS_NS;
	for (size_t i = 0; i < s->nr_conns; i++) {
		struct rz_conn *c = s->conns[i];

		/*
		 * Only the newest status counts, so a member that does not read gets no further
		 * status.
		 */
		if (c->state != AT_MEMBER || c->out_have)
			continue;
		c->out_have += rz_status_make(&c->session, &s->status, rz_out_end(c));
		if (rz_flush(c))
			rz_drop(s, c);
	}
}

static void say_who_is_missing(struct rz_serve *s)
{
	char text[320], refused[240] = "";

	if (s->phase != GATHER || !rz_say_due(&s->say))
		return;
	if (s->nr_refused)
		snprintf(refused, sizeof(refused), "; refused so far: %llu, the last: %s",
			 (unsigned long long)s->nr_refused, s->last_refused);
	rz_log(s->log, RREF_LOG_INFO, "rendezvous %s (%s): waiting for %s s: %s%s", s->a->text,
	       s->at, seconds_text(now_ns() - s->start).text,
	       rz_status_text(&s->status, s->world, text, sizeof(text)), refused);
}

static void start_table(struct rz_serve *s)
{
	rb_assert(s->phase == GATHER && s->nr_present == s->world);
	for (uint32_t i = 1; RB_CHECKED && i < s->world; i++)
		rb_assert_with(s->holder[i] && s->holder[i]->session.rank == i, "rank %u", i);
	s->phase = TABLE;
	rz_close_listeners(s);
	rz_digest_start(&s->digest);
	for (uint32_t i = 0; i < s->world; i++)
		rz_digest_add(&s->digest, s->key, &s->table[i]);
	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state == AT_MEMBER)
			serve_member(s, s->conns[i]);
		else
			rz_drop(s, s->conns[i]);
}

static int fail_late_table(const struct rz_serve *s, int64_t now)
{
	char ranks[160];
	struct rz_presence waiting;

	memset(&waiting, 0, sizeof(waiting));
	for (uint32_t i = 0; i < s->world; i++)
		if (s->holder[i])
			waiting.bits[i / 8] |= (uint8_t)(1u << (i % 8));
	rz_ranks_text(&waiting, s->world, true, ranks, sizeof(ranks));
	return rc_fail(ETIMEDOUT,
		       "rendezvous %s (%s): all %u workers came, but these did not take "
		       "the list of members in "
		       "%s s: %s",
		       s->a->text, s->at, s->world, seconds_text(now - s->start).text, ranks);
}

/* Tells whether each worker that can hear of the failure has heard of it, or had its time. */
static bool failure_is_told(const struct rz_serve *s, int64_t now)
{
	bool half_open = false;

	if (now >= s->tell_until)
		return true;
	for (size_t i = 0; i < s->nr_conns; i++) {
		const struct rz_conn *c = s->conns[i];

		if (c->told)
			return false; /* it still reads */
		half_open = half_open || is_of(c, AT_HELLO) || is_of(c, AT_JOIN);
	}
	return s->nr_told >= s->world - 1 || (s->err == ETIMEDOUT && !half_open);
}

/* Takes a step of the group. Returns 1 while there is more to do, 0 or -errno at the end. */
static int step_group(struct rz_serve *s, int64_t now)
{
	if (s->phase == GATHER) {
		if (s->nr_present == s->world)
			start_table(s);
		else if (now >= s->deadline)
			server_fail_timeout(s);
	}
	sweep(s);
	if (s->phase == TABLE && s->nr_conns == 0)
		return 0;
	if (s->phase == TABLE)
		return now >= s->deadline ? fail_late_table(s, now) : 1;
	if (s->phase == FAILING && failure_is_told(s, now))
		return rc_fail(s->err, "%s", s->text);
	return 1;
}

static int64_t next_event(const struct rz_serve *s, bool is_accepting)
{
	int64_t next = s->phase == FAILING ? s->tell_until : s->deadline;

	if (!is_accepting && s->nr_listeners && s->accept_again)
		next = min_of(next, s->accept_again);
	if (s->phase == GATHER && s->status_due)
		next = min_of(next, s->next_status);
	if (s->phase == GATHER)
		next = min_of(next, s->say.next);
	for (size_t i = 0; i < s->nr_conns; i++)
		if (s->conns[i]->state != AT_MEMBER)
			next = min_of(next, s->conns[i]->until);
	return next;
}

/*
 * Fills in s->polls: the listeners, if rank 0 accepts, and all connections behind them. Returns the
 * number of listeners there.
 */
static size_t fill_polls(struct rz_serve *s, bool is_accepting)
{
	size_t nr = 0, first;

	for (unsigned i = 0; is_accepting && i < s->nr_listeners; i++)
		s->polls[nr++] = (struct pollfd){ .fd = s->listener[i], .events = POLLIN };
	first = nr;
	for (size_t i = 0; i < s->nr_conns; i++) {
		const struct rz_conn *c = s->conns[i];
		/*
		 * Waits for the peer's bytes only if there is nothing to send. In TABLE the peer
		 * has nothing to say. Its early end would wake us for nothing but an error.
		 */
		short events = c->out_have ? POLLOUT : POLLIN;

		s->polls[nr++] = (struct pollfd){ .fd = c->fd, .events = events };
	}
	return first;
}

#define IN(state) (1u << (state))

/* Serves the connections that poll() found, if they are in one of the states by now. */
static void serve_polled(struct rz_serve *s, const struct pollfd *polls, size_t nr, unsigned states)
{
	for (size_t i = 0; i < nr; i++)
		if (polls[i].revents && (states & IN(s->conns[i]->state)))
			serve_conn(s, s->conns[i]);
}

static int serve_group(struct rz_serve *s)
{
	for (;;) {
		int64_t now = now_ns();
		size_t first, nr_polled;
		bool is_accepting;
		int r, n;

		send_status(s, now);
		end_late(s, now);
		r = step_group(s, now);
		if (r <= 0)
			return r;
		say_who_is_missing(s);

		if (s->accept_again && now >= s->accept_again)
			s->accept_again = 0;
		is_accepting = !s->accept_again;
		first = fill_polls(s, is_accepting);
		nr_polled = s->nr_conns;
		rb_assert(nr_polled <= s->max_conns && first <= MAX_LISTENERS);
		n = poll(s->polls, first + nr_polled, rz_poll_ms(next_event(s, is_accepting)));
		if (n < 0 && errno != EINTR)
			return rc_fail(errno, "rendezvous %s: poll: %s", s->a->text,
				       rref_strerror(errno));
		if (n <= 0)
			continue;
		/*
		 * Serves members first: a member that left must make way for a worker that comes.
		 * Then connections that hold the key, strangers last.
		 */
		serve_polled(s, s->polls + first, nr_polled, IN(AT_MEMBER));
		serve_polled(s, s->polls + first, nr_polled, IN(AT_JOIN));
		serve_polled(s, s->polls + first, nr_polled, ~(IN(AT_MEMBER) | IN(AT_JOIN)));
		for (size_t i = 0; i < first; i++)
			if (s->polls[i].revents)
				rz_accept(s, s->polls[i].fd);
	}
}

int rz_serve(const struct rz_address *a, uint32_t world, const struct rc_member *me,
	     const struct rc_key *key, int64_t deadline, const struct rc_group_log *log,
	     struct rc_member *members)
{
	struct rz_serve s = { .a = a,
			      .key = key,
			      .log = log,
			      .world = world,
			      .start = now_ns(),
			      .deadline = deadline };
	int r;

	/*
	 * Members; half-open connections in both states; and a batch of connections that made room.
	 */
	s.max_conns = world - 1 + 3 * MAX_HALF_OPEN;
	s.table = calloc(world, sizeof(*s.table));
	s.holder = calloc(world, sizeof(*s.holder));
	s.conns = calloc(s.max_conns, sizeof(*s.conns));
	s.polls = calloc(MAX_LISTENERS + s.max_conns, sizeof(*s.polls));
	if (!s.table || !s.holder || !s.conns || !s.polls) {
		r = rc_fail(ENOMEM, "rendezvous: no memory for %u members (%zu bytes)", world,
			    world * sizeof(*s.table));
		goto free_all;
	}
	rz_say_start(&s.say);
	s.table[0] = *me;
	s.status.present.bits[0] = s.status.came.bits[0] = 1;
	s.nr_present = 1;
	r = rz_listen(&s);
	if (r)
		goto free_all;
	r = serve_group(&s);
	if (s.nr_refused)
		rz_log(log, RREF_LOG_WARNING, "rendezvous: %llu %s refused in all, the last: %s",
		       (unsigned long long)s.nr_refused,
		       s.nr_refused == 1 ? "connection was" : "connections were", s.last_refused);
	if (r == 0)
		memcpy(members, s.table, world * sizeof(*members));
	for (size_t i = 0; i < s.nr_conns; i++)
		rz_drop(&s, s.conns[i]);
	sweep(&s);
	rz_close_listeners(&s);
free_all:
	free(s.polls);
	free(s.conns);
	free(s.holder);
	free(s.table);
	return r;
}
