/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connecting side: dial, say hello, wait for the answer. Two things go along with hello, and
 * come back with the answer. One is the device's page (read-only), the other the box for messages
 * to this side.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/limit.h"
#include "shm.h"

int rvs_connect(struct rv_dev *dev, const struct rv_addr *to, const void *hello, size_t len,
		void *user, struct rv_conn **out)
{
	struct rv_conn *conn;
	int sock, rc;

	if (len > RV_HELLO_MAX)
		return rv_fail(EINVAL, "shm: a hello of %zu bytes, %d at most", len, RV_HELLO_MAX);
	rc = rvs_reach(dev, to);
	if (rc)
		return rc;
	if (rvs_foreign_full())
		return rv_fail(ENFILE,
			       "shm: too many descriptors of others are still to be closed");
	sock = RB_OPEN(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	if (sock < 0)
		return rvs_fail_fds(errno, "no socket to connect with");
	rc = rvs_conn_new(dev, sock, RVS_CONNECTING, &conn);
	if (rc) {
		rb_close(sock);
		return rc;
	}
	rc = rvs_box_create(&conn->rx, dev->opt.credits, &conn->box_fd);
	if (rc)
		goto free_conn;
	rc = rvs_segs_init(conn);
	if (rc)
		goto free_conn;
	conn->to = *to;
	conn->user = user;
	conn->text_len = (uint16_t)len;
	if (len)
		memcpy(conn->text, hello, len);
	rvs_deadline(conn, now_ns() + dev->opt.connect_ns);
	rvs_dial(conn);
	*out = conn;
	return 0;

free_conn:
	rvs_conn_free(conn);
	return rc;
}

/* Dials. The timer calls it again while the listener's backlog is full. */
void rvs_dial(struct rv_conn *conn)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	struct rv_dev *dev = conn->dev;
	struct rvs_packet p;
	struct ucred cred;
	socklen_t cred_len = sizeof(cred);
	size_t len;
	const char *name = rvs_name(&conn->to, &len);
	int rc;

	rb_assert(at_load(&conn->state) == RVS_CONNECTING && !conn->dialled && conn->box_fd >= 0);
	rb_assert_is(len, <, sizeof(sun.sun_path));
	memcpy(sun.sun_path + 1, name, len);
	if (connect(conn->sock, (struct sockaddr *)&sun,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len))) {
		if (errno != EAGAIN && errno != EINTR) {
			rc = -errno;
			conn->text_len = 0; /* the text is our hello, not an answer */
			rvs_conn_fail(conn, rc);
		}
		return;
	}
	conn->dialled = true;
	if (getsockopt(conn->sock, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) ||
	    cred.uid != dev->uid) {
		rvs_log_refused(dev, "the listener belongs to another user");
		conn->text_len = 0;
		rvs_conn_fail(conn, -ECONNREFUSED);
		return;
	}
	conn->pid = cred.pid;
	memset(&p, 0, sizeof(p));
	p.credits = dev->opt.credits;
	p.len = conn->text_len;
	memcpy(p.data, conn->text, conn->text_len);
	conn->text_len = 0;
	rc = rvs_packet_send(conn->sock, &p, RVS_PKT_HELLO, (int[]){dev->page_fd, conn->box_fd}, 2);
	rb_close(conn->box_fd);
	conn->box_fd = -1;
	if (rc == -EPIPE || rc == -ECONNRESET)
		rvs_on_answer(conn); /* the peer hung up; it may have said why */
	else if (rc)
		rvs_conn_fail(conn, rc);
	else if ((rc = rvs_conn_listen(conn)))
		rvs_conn_fail(conn, rc);
}

/* Takes what came along with hello or answer. Consumes the descriptors. */
int rvs_hold_peer(struct rv_conn *conn, uint32_t credits, int fds[RVS_PKT_FDS], unsigned nr_fds)
{
	void *map;
	int rc;

	if (nr_fds != RVS_PKT_FDS || rvs_check_fd(fds[0], sizeof(struct rvs_page))) {
		rc = rv_fail(EPROTO, "shm: the peer's descriptors are not what they should be");
		goto close_fds;
	}
	map = mmap(NULL, sizeof(struct rvs_page), PROT_READ, MAP_SHARED, fds[0], 0);
	if (map == MAP_FAILED) {
		rc = rv_fail(errno == EAGAIN ? ENOMEM : errno, "shm: the peer's page: %s",
			     limit_why("mmap", errno, sizeof(struct rvs_page)));
		goto close_fds;
	}
	rb_not_in_child(map, sizeof(struct rvs_page));
	conn->onlooker = rvs_onlooker_new(map);
	if (!conn->onlooker) {
		munmap(map, sizeof(struct rvs_page));
		rc = rv_fail(ENOMEM, "shm: no memory for a connection");
		goto close_fds;
	}
	conn->peer_page = map;
	if (conn->peer_page->magic != RVS_MAGIC || conn->peer_page->version != RVS_VERSION) {
		rc = rv_fail(EPROTO, "shm: the peer's page is not what it should be");
		goto close_fds;
	}
	rc = rvs_box_attach(&conn->tx, credits, fds[1]);
	if (rc)
		goto close_fds;
	conn->peer_keys = conn->peer_page->key;
	conn->peer_serve = &conn->tx.box->serve;
	conn->peer_lets_look = &conn->tx.box->lets_look;

close_fds: /* the connection holds what it took; it is freed by the caller if this failed */
	rvs_close_fds(fds, nr_fds);
	return rc;
}

void rvs_on_answer(struct rv_conn *conn)
{
	int fds[RVS_PKT_FDS], status;
	struct rvs_packet p;
	unsigned nr_fds;
	int rc = rvs_packet_recv(conn->sock, &p, fds, &nr_fds);

	rb_assert(at_load(&conn->state) == RVS_CONNECTING && conn->dialled);
	if (rc == -EAGAIN)
		return;
	if (rc <= 0) { /* the peer left without an answer */
		rvs_conn_fail(conn, rc ? rc : -ECONNRESET);
		return;
	}
	if (p.type == RVS_PKT_REJECT) {
		rvs_close_fds(fds, nr_fds);
		status = p.status == EPROTONOSUPPORT || p.status == EAGAIN ? -(int)p.status
									   : -ECONNREFUSED;
		conn->text_len = min_of(p.len, RV_REASON_MAX);
		memcpy(conn->text, p.data, conn->text_len);
		rvs_conn_fail(conn, status);
		return;
	}
	if (p.type != RVS_PKT_ACCEPT) {
		rvs_close_fds(fds, nr_fds);
		rvs_conn_fail(conn, -EPROTO);
		return;
	}
	rc = rvs_hold_peer(conn, p.credits, fds, nr_fds);
	if (rc) {
		rvs_conn_fail(conn, rc);
		return;
	}
	conn->text_len = p.len;
	memcpy(conn->text, p.data, p.len);
	rvs_deadline(conn, 0);
	at_store(&conn->state, RVS_ANSWERED);
	rvs_notify(conn, RV_EV_CONNECTED, 0);
}
