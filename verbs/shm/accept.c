/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The accepting side. An accepted socket is unknown until it said hello, and a stranger until the
 * core has accepted the hello. Other users' sockets are dropped at once, silent ones after 2 s. No
 * more than 64 may be silent at a time. Garbage ends its own socket only.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shm.h"

static void send_reject(int sock, int status, const void *reason, size_t len)
{
	struct rvs_packet p;

	memset(&p, 0, sizeof(p));
	p.status = (uint16_t)status;
	p.len = (uint16_t)len;
	if (len)
		memcpy(p.data, reason, len);
	/* A peer that is gone needs no reason. */
	(void)rvs_packet_send(sock, &p, RVS_PKT_REJECT, NULL, 0);
}

/* Turns a connection away that there is no room for now: its peer is to come again. */
static void turn_away(struct rv_dev *dev, int sock, const char *why)
{
	send_reject(sock, EAGAIN, NULL, 0);
	rvs_hang_up(dev, sock);
	rvs_log_refused(dev, "%s", why);
}

static void mute(struct rv_dev *dev, bool muted)
{
	struct epoll_event e = { .events = muted ? 0u : (uint32_t)EPOLLIN,
				 .data.ptr = &dev->listen_src };

	dev->listen_muted = muted;
	epoll_ctl(dev->epoll, EPOLL_CTL_MOD, dev->listener, &e);
	if (muted)
		rvs_timer_soon(dev);
}

static bool give_up_spare(struct rv_dev *dev)
{
	if (dev->spare < 0)
		dev->spare = RB_OPEN(eventfd(0, EFD_CLOEXEC));
	return dev->spare >= 0;
}

/* Turns one connection away with the spare descriptor, when no
 * other is left. Else the listener would stay readable for ever. */
static void refuse_one(struct rv_dev *dev, int err)
{
	int sock;

	rb_close(dev->spare);
	dev->spare = -1;
	sock = RB_OPEN(accept4(dev->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
	if (sock >= 0) {
		rvs_fail_fds(err, "it was told to come again");
		turn_away(dev, sock, rv_error_text());
	}
	/* A thread may still hold what was turned away. */
	if (!give_up_spare(dev))
		mute(dev, true);
}

/* Listens again when the window is over, and there is a spare. True: it is not yet. */
bool rvs_listen_timer(struct rv_dev *dev, int64_t now)
{
	if (!dev->listen_muted || now < dev->listen_at + RVS_WINDOW_NS)
		return dev->listen_muted;
	if (give_up_spare(dev))
		mute(dev, false);
	else
		dev->listen_at = now;
	return dev->listen_muted;
}

/* Closes the socket that is silent for longest. A peer that
 * means it says hello as soon as it has connected. */
static void close_oldest_silent(struct rv_dev *dev)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &dev->timed) {
		struct rv_conn *conn = container_of(l, struct rv_conn, timed);

		if (at_load(&conn->state) != RVS_GREETING)
			continue;
		rvs_log_refused(dev, "pid %ld has not said hello, and there are too many like it",
				(long)conn->pid);
		send_reject(conn->sock, EAGAIN, NULL, 0); /* a slow peer comes again */
		rvs_conn_free(conn);
		return;
	}
}

static void greet(struct rv_dev *dev, int sock)
{
	struct rv_conn *conn;
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) || cred.uid != dev->uid) {
		rvs_hang_up(dev, sock);
		rvs_log_refused(dev, "it is of user %ld", (long)cred.uid);
		return;
	}
	if (dev->nr_greeting >= RVS_MAX_GREETING)
		close_oldest_silent(dev);
	if (rvs_conn_new(dev, sock, RVS_GREETING, &conn)) {
		turn_away(dev, sock, rv_error_text());
		return;
	}
	dev->nr_greeting++;
	rb_assert_is(dev->nr_greeting, <=, RVS_MAX_GREETING);
	rb_assert_is(dev->nr_greeting, <=, dev->nr_conns);
	conn->pid = cred.pid;
	/* A peer that means it has said it already, and so never counts as silent. */
	rvs_on_hello(conn);
}

/* Tells whether accept failed for want of a connection. */
static bool none_waits(int err)
{
	return err && !rvs_lacks_fd(err) && err != EINTR && err != ECONNABORTED;
}

void rvs_on_listener(struct rv_dev *dev)
{
	int64_t now = now_ns();

	if (now - dev->listen_at >= RVS_WINDOW_NS) {
		dev->listen_at = now;
		dev->listen_nr = 0;
	}
	for (unsigned i = 0; i < RVS_ACCEPTS; i++) {
		int sock, err;

		if (dev->listen_nr >= RVS_WINDOW_STRANGERS || rvs_foreign_full()) {
			mute(dev, true);
			return;
		}
		sock = RB_OPEN(accept4(dev->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
		err = sock < 0 ? errno : 0;
		if (none_waits(err))
			return;
		dev->listen_nr++;
		if (!err)
			greet(dev, sock);
		else if (rvs_lacks_fd(err))
			refuse_one(dev, err);
		if (dev->listen_muted)
			return;
	}
}

/* Waits for a connection's hello, for a while. */
static int wait_for_hello(struct rv_conn *conn)
{
	int rc = conn->deadline_ns ? 0 : rvs_conn_listen(conn);

	if (!rc && !conn->deadline_ns)
		rvs_deadline(conn, now_ns() + RVS_GREET_NS);
	return rc;
}

/* Takes in a hello. Returns 1, or -EPROTO if it is none. */
static int hello_take(struct rv_conn *conn, const struct rvs_packet *p, int *fds, unsigned nr_fds)
{
	if (p->type != RVS_PKT_HELLO || p->len > RV_HELLO_MAX || nr_fds != RVS_PKT_FDS) {
		rvs_close_fds(fds, nr_fds);
		return -EPROTO;
	}
	memcpy(conn->hello_fds, fds, sizeof(conn->hello_fds));
	conn->hello_credits = p->credits;
	conn->text_len = p->len;
	memcpy(conn->text, p->data, p->len);
	return conn->deadline_ns || !rvs_conn_listen(conn) ? 1 : -EPROTO;
}

/* Ends a connection that said no proper hello. rc 0: the peer left without a word. */
static void refuse_hello(struct rv_conn *conn, int rc)
{
	if (rc == -EPROTONOSUPPORT)
		send_reject(conn->sock, EPROTONOSUPPORT, NULL, 0);
	else if (rc == -EMFILE || rc == -EAGAIN)
		send_reject(conn->sock, EAGAIN, NULL, 0);
	if (rc)
		rvs_log_refused(conn->dev, "pid %ld did not say hello properly", (long)conn->pid);
	else
		conn->dev->nr_refused++;
	rvs_conn_free(conn);
}

void rvs_on_hello(struct rv_conn *conn)
{
	int fds[RVS_PKT_FDS];
	struct rvs_packet p;
	unsigned nr_fds;
	int rc = rvs_packet_recv(conn->sock, &p, fds, &nr_fds);

	if (rc == -EAGAIN && !wait_for_hello(conn))
		return;
	if (rc > 0)
		rc = hello_take(conn, &p, fds, nr_fds);
	if (rc <= 0) {
		refuse_hello(conn, rc);
		return;
	}
	rvs_deadline(conn, 0);
	rb_assert(at_load(&conn->state) == RVS_GREETING && conn->dev->nr_greeting);
	conn->dev->nr_greeting--;
	at_store(&conn->state, RVS_REQUESTED);
	rvs_notify(conn, RV_EV_REQUEST, 0);
}

/* Takes what came with the hello, and makes what the answer brings. */
static int prepare_accept(struct rv_conn *conn, int *box_fd)
{
	int fds[RVS_PKT_FDS], rc = 0;

	memcpy(fds, conn->hello_fds, sizeof(fds));
	for (unsigned i = 0; i < RVS_PKT_FDS; i++)
		conn->hello_fds[i] = -1;
	rc = rvs_hold_peer(conn, conn->hello_credits, fds, RVS_PKT_FDS);
	if (!rc && !conn->segs)
		rc = rvs_segs_init(conn);
	return rc ? rc : rvs_box_create(&conn->rx, conn->dev->opt.credits, box_fd);
}

/* Ends a connection whose answer could not be made or sent, as an event tells the core. */
static int answer_failed(struct rv_conn *conn, int rc)
{
	conn->text_len = 0;
	rvs_attended(conn, RVS_A_HUP);
	rvs_conn_fail(conn, rc == -EPIPE ? -ECONNRESET : rc);
	return 0;
}

int rvs_accept(struct rv_conn *conn, const void *answer, size_t len, void *user)
{
	struct rv_dev *dev = conn->dev;
	struct rvs_packet p;
	int box_fd, rc;

	if (len > RV_ANSWER_MAX)
		return rv_fail(EINVAL, "shm: an answer of %zu bytes, %d at most", len,
			       RV_ANSWER_MAX);
	if (at_load(&conn->state) != RVS_REQUESTED)
		return rv_fail(EINVAL, "shm: there is no request to accept");
	rc = prepare_accept(conn, &box_fd);
	if (rvs_lacks_fd(-rc) || rc == -ENOMEM) {
		send_reject(conn->sock, EAGAIN, NULL, 0);
		return rc;
	}
	conn->user = user;
	if (rc)
		return answer_failed(conn, rc); /* nonsense came along */
	dev->listen_nr -= dev->listen_nr > 0; /* no stranger */
	memset(&p, 0, sizeof(p));
	p.credits = dev->opt.credits;
	p.len = (uint16_t)len;
	if (len)
		memcpy(p.data, answer, len);
	conn->text_len = 0;
	rc = conn->gone ? -ECONNRESET :
	     rvs_packet_send(conn->sock, &p, RVS_PKT_ACCEPT, (int[]){dev->page_fd, box_fd}, 2);
	rb_close(box_fd);
	if (rc)
		return answer_failed(conn, rc);
	at_store(&conn->state, RVS_ANSWERED);
	rvs_notify(conn, RV_EV_CONNECTED, 0);
	return 0;
}

void rvs_reject(struct rv_conn *conn, const void *reason, size_t len)
{
	send_reject(conn->sock, ECONNREFUSED, reason, min_of(len, (size_t)RV_REASON_MAX));
	rvs_conn_free(conn);
}
