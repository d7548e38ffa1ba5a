/* SPDX-License-Identifier: Apache-2.0 */
/* A peer: a forked process with its own node, commanded over a socket pair. See tl_rv.h. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "tl_rv.h"

static void state(struct tlv_node *n, struct tlv_msg *m)
{
	if (m->a < n->nr_conns)
		m->conn = n->conns[m->a];
	else
		memset(&m->conn, 0, sizeof(m->conn));
	m->a = n->nr_conns;
	m->b = n->nr_events;
	m->c = n->nr_held;
	m->d = n->nr_late;
}

static void close_fully(struct tlv_node *n, struct tlv_conn *c)
{
	tlv_close_conn(c);
	while (c->closes)
		tlv_pump(n, 1000, -1);
}

/* Deregisters a region, and overwrites it with fill unless that is 0. */
static int unregion(struct tlv_node *n, struct tlv_region *r, int fill)
{
	int rc = n->ops->dereg(n->dev, &r->mr);

	if (fill)
		memset(r->mem, fill, r->size);
	r->mem = NULL; /* stays mapped and open: the memory's next use */
	close(r->fd);
	return rc;
}

static void obey(struct tlv_node *n, struct tlv_msg *m)
{
	struct tlv_region *r;

	m->status = 0;
	switch ((enum tlv_op)m->op) {
	case TLV_OP_OPEN:
		m->status = tlv_open(n, &m->opt);
		m->addr = n->addr;
		n->close_ended = true;
		break;
	case TLV_OP_POLICY:
		n->policy = (enum tlv_policy)m->a;
		n->mode = (enum tlv_mode)m->b;
		n->allow = m->c;
		n->answer_len = m->len;
		memcpy(n->answer, m->bytes, m->len);
		break;
	case TLV_OP_REGION:
		r = tlv_region(n, m->a, (enum rv_access)m->c, m->b);
		m->status = r ? 0 : -ENOMEM;
		if (r) {
			m->a = r->mr.iova;
			m->b = r->mr.rkey ? r->mr.rkey : r->mr.lkey;
			m->c = (uint64_t)(r - n->regions);
		}
		break;
	/* a: the region; b: overwrite it with that after the key is gone, before it is unmapped */
	case TLV_OP_UNREGION:
		m->status = unregion(n, &n->regions[m->a], (int)m->b);
		break;
	case TLV_OP_FILL:
		memset(n->regions[m->a].mem, (int)m->b, n->regions[m->a].size);
		break;
	case TLV_OP_STATE:
		state(n, m);
		break;
	case TLV_OP_SEND:
		for (uint64_t i = 0; i < m->b && !m->status; i++)
			m->status = tlv_send_next(&n->conns[m->a], m->c);
		break;
	case TLV_OP_CLOSE_CONN: /* b, c: then deregister region b-1, and overwrite it with c */
		close_fully(n, &n->conns[m->a]);
		if (m->b)
			m->status = unregion(n, &n->regions[m->b - 1], (int)m->c);
		break;
	case TLV_OP_ALLOW:
		m->status = n->ops->allow_reads(n->conns[m->a].conn);
		break;
	case TLV_OP_RELEASE:
		tlv_release_all(n);
		n->mode = TLV_COUNT;
		break;
	case TLV_OP_CONNECT:
		m->status = tlv_connect(n, &m->addr, m->bytes, m->len)->status;
		break;
	case TLV_OP_COUNT:
		m->a = tlv_open_fds();
		m->b = tlv_maps();
		m->c = tlv_lowest_free_fd();
		break;
	case TLV_OP_EXIT:
		break;
	}
}

static void serve(int ctl)
{
	struct tlv_node *n = calloc(1, sizeof(*n));
	struct tlv_msg m;

	for (;;) {
		struct pollfd p = {.fd = ctl, .events = POLLIN};
		ssize_t got;

		if (n->dev)
			tlv_pump(n, 5000, ctl);
		else
			poll(&p, 1, -1);
		got = recv(ctl, &m, sizeof(m), MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got != sizeof(m))
			_exit(3); /* the parent is gone */
		obey(n, &m);
		if (m.op == TLV_OP_EXIT)
			break;
		if (send(ctl, &m, sizeof(m), 0) != sizeof(m))
			_exit(3);
	}
	tlv_close(n);
	free(n);
	if (send(ctl, &m, sizeof(m), 0) != sizeof(m))
		_exit(3);
	close(ctl);
	exit(0); /* not _exit: a leak checker looks now */
}

void tlv_fork(struct tlv_peer *p)
{
	int s[2];

	memset(p, 0, sizeof(*p));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	fflush(NULL);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (!p->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(s[0]);
		serve(s[1]);
	}
	close(s[1]);
	p->ctl = s[0];
}

static bool hear(struct tlv_peer *p, struct tlv_msg *m)
{
	struct pollfd fd = {.fd = p->ctl, .events = POLLIN};
	int64_t ms = (tlv_deadline_ns() - now_ns()) / NSEC_PER_MSEC;

	return poll(&fd, 1, (int)ms) == 1 && recv(p->ctl, m, sizeof(*m), 0) == sizeof(*m);
}

static bool tell(struct tlv_peer *p, const struct tlv_msg *m)
{
	return send(p->ctl, m, sizeof(*m), MSG_NOSIGNAL) == sizeof(*m);
}

void tlv_tell(struct tlv_peer *p, struct tlv_msg m)
{
	if (!tell(p, &m))
		fail_msg("the peer is gone");
}

struct tlv_msg tlv_hear(struct tlv_peer *p)
{
	struct tlv_msg m = {.op = 0};

	if (!hear(p, &m))
		fail_msg("the peer did not answer");
	return m;
}

struct tlv_msg tlv_ask(struct tlv_peer *p, struct tlv_msg m)
{
	tlv_tell(p, m);
	return tlv_hear(p);
}

void tlv_peer_open(struct tlv_peer *p, const struct rv_options *opt)
{
	struct tlv_msg m = {.op = TLV_OP_OPEN};

	if (opt)
		m.opt = *opt;
	m = tlv_ask(p, m);
	assert_int_equal(m.status, 0);
	p->addr = m.addr;
}

void tlv_peer_policy(struct tlv_peer *p, enum tlv_policy policy, enum tlv_mode mode, bool allow,
		     const void *answer, size_t len)
{
	struct tlv_msg m = {
		.op = TLV_OP_POLICY, .a = policy, .b = mode, .c = allow, .len = (uint32_t)len
	};

	p->allows = allow;
	if (len)
		memcpy(m.bytes, answer, len);
	tlv_ask(p, m);
}

struct tlv_remote tlv_peer_region(struct tlv_peer *p, size_t size, enum rv_access access,
				  uint64_t seed)
{
	struct tlv_msg m =
		tlv_ask(p,
			(struct tlv_msg){ .op = TLV_OP_REGION, .a = size, .b = seed, .c = access });

	assert_int_equal(m.status, 0);
	return (struct tlv_remote){.iova = m.a, .rkey = (uint32_t)m.b, .size = size, .index = m.c};
}

struct tlv_conn tlv_peer_conn(struct tlv_peer *p, unsigned index)
{
	return tlv_ask(p, (struct tlv_msg){.op = TLV_OP_STATE, .a = index}).conn;
}

bool tlv_peer_until_up(struct tlv_peer *p, struct tlv_node *n, unsigned index)
{
	int64_t deadline = tlv_deadline_ns();

	while (!tlv_peer_conn(p, index).up) {
		if (now_ns() > deadline)
			return false;
		tlv_pump(n, 5, -1);
	}
	return true;
}

bool tlv_peer_until_down(struct tlv_peer *p, struct tlv_node *n, unsigned index,
			 struct tlv_conn *out)
{
	int64_t deadline = tlv_deadline_ns();

	for (;;) {
		*out = tlv_peer_conn(p, index);
		if (out->down)
			return true;
		if (now_ns() > deadline)
			return false;
		tlv_pump(n, 5, -1);
	}
}

/* Waits for the process; false if it had to be killed. */
static bool reap(struct tlv_peer *p, int *status)
{
	int64_t deadline = tlv_deadline_ns();
	bool killed = false;

	while (waitpid(p->pid, status, WNOHANG) == 0) {
		if (now_ns() > deadline && !killed) {
			kill(p->pid, SIGKILL);
			killed = true;
		}
		tlv_sleep_ms(1);
	}
	p->pid = 0;
	close(p->ctl);
	return !killed;
}

void tlv_peer_exit(struct tlv_peer *p)
{
	struct tlv_msg m = {.op = TLV_OP_EXIT};
	int status = 0;

	if (!tell(p, &m) || !hear(p, &m))
		fail_msg("the peer did not end");
	assert_true(reap(p, &status));
	assert_int_equal(status, 0);
}

void tlv_peer_kill(struct tlv_peer *p)
{
	int status;

	kill(p->pid, SIGKILL);
	reap(p, &status);
}

void tlv_peer_reap(struct tlv_peer *p)
{
	if (p->pid)
		tlv_peer_kill(p);
}
