/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps by which a connection becomes a member: HELLO, CHALLENGE, JOIN. Then the check that its
 * rank and name are free.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "core/group/rendezvous_server.h"

/* Returns true if the peer's end of the connection is closed: it died before we looked. */
static bool is_dead(const struct rz_conn *c)
{
	char byte;
	ssize_t n;

	do
		n = recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

/*
 * Returns true if the holder of a rank or name makes way. It does so if it is dead, or is the same
 * process on a new connection. This worker itself (holder NULL) never does.
 */
static bool makes_way(struct rz_serve *s, uint32_t rank, const struct rc_member *m)
{
	struct rz_conn *old = s->holder[rank];

	if (!old || !(is_dead(old) || s->table[rank].incarnation == m->incarnation))
		return false;
	rz_log(s->log, RREF_LOG_INFO, "rendezvous: rank %u (%s) left before the group was complete",
	       rank, old->peer);
	rz_drop(s, old);
	return true;
}

static const char *join_peer_of(const struct rz_serve *s, uint32_t rank)
{
	return s->holder[rank] ? s->holder[rank]->peer : "rank 0 itself";
}

/* Returns true if rank and name are free. Fails the group if they are not. */
static bool join_check_place(struct rz_serve *s, const struct rz_conn *c, const struct rc_member *m)
{
	if (rz_is_present(&s->status.present, m->rank) && !makes_way(s, m->rank, m)) {
		rz_fail_group(s, EEXIST,
			      "rendezvous %s: rank %u is there twice: \"%s\" (%s) and \"%s\" (%s)",
			      s->a->text, m->rank, s->table[m->rank].name, join_peer_of(s, m->rank),
			      m->name, c->peer);
		return false;
	}
	for (uint32_t i = 0; i < s->world; i++) {
		if (!rz_is_present(&s->status.present, i) ||
		    strcmp(s->table[i].name, m->name) != 0 || makes_way(s, i, m))
			continue;
		rz_fail_group(
			s, EEXIST,
			"rendezvous %s: the name \"%s\" is there twice: "
			"rank %u (%s) and rank %u (%s)",
			s->a->text, m->name, i, join_peer_of(s, i), m->rank, c->peer);
		return false;
	}
	return true;
}

/*
 * Returns true if the worker fits the group. Fails the group if it does not: it is a worker of
 * ours, so its fault is the group's fault.
 */
static bool join_fits(struct rz_serve *s, const struct rz_conn *c, const struct rc_member *m)
{
	if (s->phase != GATHER)
		return false;
	if (c->session.world == s->world && m->rank < s->world)
		return join_check_place(s, c, m);
	if (c->session.world != s->world)
		rz_fail_group(
			s, EINVAL,
			"rendezvous %s: rank %u \"%s\" (%s) was started with world size %u, rank 0 "
			"with %u",
			s->a->text, m->rank, m->name, c->peer, c->session.world, s->world);
	else
		rz_fail_group(s, EINVAL,
			      "rendezvous %s: \"%s\" (%s) claims rank %u in a group of %u",
			      s->a->text, m->name, c->peer, m->rank, s->world);
	return false;
}

static void take_join(struct rz_serve *s, struct rz_conn *c)
{
	struct rc_member m;
	int r = rz_join_take(&c->in, &c->session, &m);

	if (r == -EKEYREJECTED) {
		rz_refuse(s, c, EKEYREJECTED,
			  "the worker could not prove that it holds the group's key");
		return;
	}
	if (r || m.rank != c->session.rank) {
		rz_refuse(s, c, EPROTO, "a malformed join");
		return;
	}
	if (!join_fits(s, c, &m)) {
		rz_tell_failure(s, c);
		return;
	}
	s->table[m.rank] = m;
	s->holder[m.rank] = c;
	s->status.present.bits[m.rank / 8] |= (uint8_t)(1u << (m.rank % 8));
	s->status.came.bits[m.rank / 8] |= (uint8_t)(1u << (m.rank % 8));
	s->nr_present++;
	s->status_due = true;
	c->state = AT_MEMBER;
	c->out_have += rz_joined_make(&c->session, rz_out_end(c));
	rz_log(s->log, RREF_LOG_DEBUG, "rendezvous: rank %u \"%s\" (%s) came, %u of %u are here",
	       m.rank, m.name, c->peer, s->nr_present, s->world);
	if (rz_flush(c))
		rz_drop(s, c);
}

static void take_hello(struct rz_serve *s, struct rz_conn *c)
{
	struct rz_hello h;
	const int on = 1;
	char text[200];

	if (rz_hello_take(&c->in, s->key, &h)) {
		rz_refuse(s, c, EPROTO, "a malformed hello");
		return;
	}
	if (h.version != RZ_VERSION) {
		snprintf(text, sizeof(text),
			 "rank %u speaks protocol version %u, rank 0 version %u", h.rank, h.version,
			 RZ_VERSION);
		/*
		 * Only a worker that holds the key can make the group fail. It has no session, so
		 * its refusal tells it of the failure.
		 */
		if (h.is_authentic) {
			rz_fail_group(s, EPROTONOSUPPORT, "rendezvous %s: %s (%s)", s->a->text,
				      text, c->peer);
			c->told = true;
			s->nr_told++;
		}
		rz_refuse(s, c, EPROTONOSUPPORT, text);
		return;
	}
	if (!h.is_authentic) {
		if (h.has_group_key != s->key->is_group)
			snprintf(text, sizeof(text),
				 "rank %u has %s and rank 0 has %s (RREF_KEY_FILE)", h.rank,
				 h.has_group_key ? "a key file" : "no key file",
				 s->key->is_group ? "a key file" : "none");
		else if (s->key->is_group)
			snprintf(text, sizeof(text), "rank %u has another key file than rank 0",
				 h.rank);
		else
			snprintf(
				text, sizeof(text),
				"without a key file, rank %u and rank 0 must be the same "
				"user on the same machine with the same XDG_RUNTIME_DIR",
				h.rank);
		rz_refuse(s, c, EKEYREJECTED, text);
		return;
	}
	c->session = (struct rz_session){ .key = s->key, .rank = h.rank, .world = h.world };
	memcpy(c->session.client_nonce, h.nonce, RC_NONCE_BYTES);
	rc_random(c->session.server_nonce, RC_NONCE_BYTES);
	(void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(c->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	rz_make_room(s, AT_JOIN);
	c->state = AT_JOIN;
	c->until = now_ns() + JOIN_NS;
	c->out_have += rz_challenge_make(&c->session, rz_out_end(c));
	rz_next(&c->in);
	if (rz_flush(c))
		rz_drop(s, c);
}

/* Serves a connection that does not have its place yet. */
void rz_serve_half_open(struct rz_serve *s, struct rz_conn *c)
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

			snprintf(text, sizeof(text),
				 "the peer speaks protocol version %u, rank 0 version %u",
				 rz_version_of(&c->in), RZ_VERSION);
			rz_refuse(s, c, EPROTONOSUPPORT, text);
		} else {
			rz_refuse_silently(s, c,
					   r == -EPROTO ? "it does not speak this protocol"
							: "it closed before it had joined");
		}
	}
}
