/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The accepting side. A socket that is accepted here is nobody until it said hello: other users' are dropped at once,
 * the silent after 2 s, and no more than 64 may be silent at a time. Garbage ends its own socket only.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shm.h"

/* No descriptor is left: refuse one with the spare, or the listener would stay readable for ever. */
static void refuse_one(struct rv_dev *dev)
{
	int sock;

	rb_close(dev->spare);
	sock = RB_OPEN(accept4(dev->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
	rvs_hang_up(dev, sock);
	dev->spare = RB_OPEN(eventfd(0, EFD_CLOEXEC));
	dev->nr_refused++;
	rvs_log(dev, 0, "shm: no descriptors left; refused a connection");
}

void rvs_on_listener(struct rv_dev *dev)
{
	for (unsigned i = 0; i < RVS_MAX_GREETING; i++) { /* bounded, so that a flood does not hold poll */
		struct rv_conn *conn;
		struct ucred cred;
		socklen_t len = sizeof(cred);
		int sock = RB_OPEN(accept4(dev->listener, NULL, NULL,
					   SOCK_CLOEXEC | SOCK_NONBLOCK));

		if (sock < 0) {
			if (errno == EMFILE || errno == ENFILE)
				refuse_one(dev);
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			return;
		}
		if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) || cred.uid != dev->uid) {
			rvs_log(dev, 1, "shm: dropped a connection of user %ld", (long)cred.uid);
			goto refuse;
		}
		if (dev->nr_greeting >= RVS_MAX_GREETING || rvs_conn_new(dev, sock, RVS_GREETING, &conn)) {
			rvs_log(dev, 1, "shm: dropped a connection of pid %ld: too many", (long)cred.pid);
			goto refuse;
		}
		dev->nr_greeting++;
		conn->pid = cred.pid;
		if (rvs_conn_listen(conn)) {
			rvs_conn_free(conn);
			dev->nr_refused++;
			continue;
		}
		rvs_deadline(conn, now_ns() + RVS_GREET_NS);
		rvs_on_hello(conn); /* a peer that means it has said it already, and so never counts as silent */
		continue;

refuse:
		rvs_hang_up(dev, sock);
		dev->nr_refused++;
	}
}

static void send_reject(struct rv_conn *conn, int status, const void *reason, size_t len)
{
	struct rvs_packet p;

	memset(&p, 0, sizeof(p));
	p.status = (uint16_t)status;
	p.len = (uint16_t)len;
	if (len)
		memcpy(p.data, reason, len);
	(void)rvs_packet_send(conn->sock, &p, RVS_PKT_REJECT, NULL, 0); /* a peer that is gone needs no reason */
}

void rvs_on_hello(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	int fds[RVS_PKT_FDS];
	struct rvs_packet p;
	unsigned nr_fds;
	int rc = rvs_packet_recv(conn->sock, &p, fds, &nr_fds);

	if (rc == -EAGAIN)
		return;
	if (rc <= 0) {
		if (rc == -EPROTONOSUPPORT)
			send_reject(conn, EPROTONOSUPPORT, NULL, 0);
		if (rc == -EMFILE)
			send_reject(conn, ECONNREFUSED, "no descriptors left", 19);
		goto refuse;
	}
	if (p.type != RVS_PKT_HELLO || p.len > RV_HELLO_MAX) {
		rvs_close_fds(fds, nr_fds);
		goto refuse;
	}
	if (rvs_hold_peer(conn, &p, fds, nr_fds))
		goto refuse;
	conn->text_len = p.len;
	memcpy(conn->text, p.data, p.len);
	rvs_deadline(conn, 0);
	dev->nr_greeting--;
	at_store(&conn->state, RVS_REQUESTED);
	rvs_notify(conn, RV_EV_REQUEST, 0);
	return;

refuse:
	dev->nr_refused++;
	if (rc)
		rvs_log(dev, 1, "shm: closed a connection of pid %ld that did not say hello properly", (long)conn->pid);
	rvs_conn_free(conn);
}

int rvs_accept(struct rv_conn *conn, const void *answer, size_t len, void *user)
{
	struct rv_dev *dev = conn->dev;
	struct rvs_packet p;
	int box_fd, rc;

	if (len > RV_ANSWER_MAX)
		return rv_fail(EINVAL, "shm: an answer of %zu bytes, %d at most", len, RV_ANSWER_MAX);
	if (at_load(&conn->state) != RVS_REQUESTED)
		return rv_fail(EINVAL, "shm: there is no request to accept");
	if (!conn->segs && (rc = rvs_segs_init(conn)))
		return rc;
	rc = rvs_box_create(&conn->rx, dev->opt.credits, &box_fd);
	if (rc)
		return rc;
	conn->user = user;
	memset(&p, 0, sizeof(p));
	p.credits = dev->opt.credits;
	p.len = (uint16_t)len;
	if (len)
		memcpy(p.data, answer, len);
	conn->text_len = 0;
	rc = conn->gone ? -ECONNRESET :
	     rvs_packet_send(conn->sock, &p, RVS_PKT_ACCEPT, (int[]){dev->page_fd, box_fd}, 2);
	rb_close(box_fd);
	if (rc) {
		rvs_attended(conn, RVS_A_HUP);
		rvs_conn_fail(conn, rc == -EPIPE ? -ECONNRESET : rc);
		return 0;
	}
	at_store(&conn->state, RVS_ANSWERED);
	rvs_notify(conn, RV_EV_CONNECTED, 0);
	return 0;
}

void rvs_reject(struct rv_conn *conn, const void *reason, size_t len)
{
	send_reject(conn, ECONNREFUSED, reason, min_of(len, (size_t)RV_REASON_MAX));
	rvs_conn_free(conn);
}
