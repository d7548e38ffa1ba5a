/* SPDX-License-Identifier: Apache-2.0 */
/* Connection management: the core's requests. The answers to them are in cm_event.c. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>

#include "ibv.h"

static int channel_failed(int err)
{
	if (err == EPERM || err == EACCES)
		return rv_fail(err, "no permission for /dev/infiniband/rdma_cm");
	if (err == ENODEV || err == ENOENT || err == ENOSYS)
		return rv_fail(ENODEV,
			       "/dev/infiniband/rdma_cm is missing: modprobe rdma_ucm (in a "
			       "container: "
			       "--device=/dev/infiniband)");
	return rv_fail(err ? err : EIO, "cannot open /dev/infiniband/rdma_cm: %s", strerror(err));
}

/* Listens on the chosen address, at a port of the kernel's choice. */
int rvi_listen(struct rv_dev *dev, const struct rvi_pick *pick)
{
	struct sockaddr_storage ip = pick->ip;
	char text[64];
	int flags;

	rvi_keep_begin();
	dev->cm = rdma_create_event_channel();
	if (dev->cm)
		rvi_keep_fd(dev->cm->fd);
	rvi_keep_end();
	if (!dev->cm)
		return channel_failed(errno);
	flags = fcntl(dev->cm->fd, F_GETFL);
	if (flags < 0 || fcntl(dev->cm->fd, F_SETFL, flags | O_NONBLOCK))
		return rv_fail(errno, "cannot make the connection manager non-blocking: %s",
			       strerror(errno));
	rvi_addr_text(&pick->ip, text, sizeof(text));
	if (rdma_create_id(dev->cm, &dev->listener, NULL, RDMA_PS_TCP)) {
		dev->listener = NULL;
		return channel_failed(errno);
	}
	if (rdma_bind_addr(dev->listener, (struct sockaddr *)&ip))
		return rv_fail(errno, "rdma_cm cannot bind to %s of %s: %s", text, dev->caps.device,
			       strerror(errno));
	/* Two devices have this address: rdma_cm would serve another one than was chosen. */
	if (!dev->listener->verbs || strcmp(ibv_get_device_name(dev->listener->verbs->device),
					    ibv_get_device_name(dev->ctx->device)))
		return rv_fail(ENODEV, "the address %s of %s leads rdma_cm to another device", text,
			       dev->caps.device);
	if (rdma_listen(dev->listener, 128))
		return rv_fail(errno, "rdma_cm cannot listen on %s: %s", text, strerror(errno));
	dev->src = pick->ip;
	rvi_addr_pack(&pick->ip, ntohs(rdma_get_src_port(dev->listener)), &pick->gid, &dev->addr);
	return 0;
}

int rvi_reach(struct rv_dev *dev, const struct rv_addr *to)
{
	struct sockaddr_storage dst;
	int rc = rvi_addr_unpack(to, &dst);

	if (rc)
		return rv_fail(EHOSTUNREACH, "not an address of the ibv provider");
	if (dst.ss_family != dev->src.ss_family)
		return rv_fail(EHOSTUNREACH, "the peer has an IPv%d address, %s an IPv%d one",
			       dst.ss_family == AF_INET ? 4 : 6, dev->caps.device,
			       dev->src.ss_family == AF_INET ? 4 : 6);
	return 0;
}

/* Translates the errors that rdma_cm gives at once to the contract's errors. */
static int connect_failed(struct rv_conn *conn, const char *step, int err)
{
	char text[64];
	int rc;

	rvi_addr_text(&conn->peer, text, sizeof(text));
	if (err == ENETUNREACH || err == EADDRNOTAVAIL)
		err = EHOSTUNREACH;
	rc = rv_fail(err ? err : EIO, "cannot connect to %s: %s: %s", text, step, strerror(err));
	if (conn->id)
		rvi_reap(conn->dev, conn->id);
	conn->id = NULL;
	rvi_conn_release(conn);
	return rc;
}

/* Sets the connection's ACK time-out. rdma_cm's own: 2.15 s times 8 tries, so a silent peer is
 * noticed after 17 s. */
static void set_ack_timeout(struct rv_conn *conn)
{
	uint8_t ack = conn->dev->ack_timeout;

	if (rdma_set_option(conn->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &ack,
			    sizeof(ack)))
		rvi_log(conn->dev, 2, "%s: no ACK timeout for connections: %s",
			conn->dev->caps.device, strerror(errno));
}

int rvi_connect(struct rv_dev *dev, const struct rv_addr *to, const void *hello, size_t len,
		void *user, struct rv_conn **out)
{
	struct sockaddr_storage dst;
	struct rv_conn *conn;
	struct rvi_id *one;
	int rc;

	if (len > RV_HELLO_MAX)
		return rv_fail(EMSGSIZE, "a hello of %zu bytes: %d fit", len, RV_HELLO_MAX);
	if (dev->lost)
		return rv_fail(ENODEV, "%s is gone", dev->caps.device);
	rc = rvi_addr_unpack(to, &dst);
	if (rc)
		return rc;
	if (dst.ss_family != dev->src.ss_family)
		return rvi_reach(dev, to);
	one = rvi_id_new(dev);
	if (!one)
		return -ENOMEM;
	rc = rvi_conn_alloc(dev, &conn);
	if (rc) {
		rvi_id_drop(dev, one);
		return rc;
	}
	one->conn = conn;
	at_store(&conn->user, user);
	conn->peer = dst;
	conn->data_len = rvi_pdata_put(RVI_PD_REQUEST, conn->data, hello, len, dev->credit_class);
	rb_slow(RB_SLOW_CM);
	if (rdma_create_id(dev->cm, &conn->id, one, RDMA_PS_TCP)) {
		rvi_id_drop(dev, one);
		conn->id = NULL;
		return connect_failed(conn, "rdma_create_id", errno);
	}
	set_ack_timeout(conn);
	if (rdma_resolve_addr(conn->id, (struct sockaddr *)&dev->src, (struct sockaddr *)&dst,
			      RVI_RESOLVE_MS))
		return connect_failed(conn, "rdma_resolve_addr", errno);
	at_store(&conn->state, RVI_ADDR);
	rvi_conn_deadline(conn, now_ns() + dev->connect_ns);
	*out = conn;
	return 0;
}

/* Accepts without a requester. The answer fails, in an event
 * like any other failure of an accept. */
static int accept_dead(struct rv_conn *conn)
{
	at_store(&conn->state, RVI_ACCEPTING);
	rvi_conn_down(conn, conn->dead, -1);
	return 0;
}

int rvi_accept(struct rv_conn *conn, const void *answer, size_t len, void *user)
{
	struct rdma_conn_param p = {
		.flow_control = 1,
		.rnr_retry_count = RVI_RNR_RETRY,
		.srq = 1,
	};
	struct rv_dev *dev = conn->dev;
	int rc;

	if (len > RV_ANSWER_MAX)
		return rv_fail(EMSGSIZE, "an answer of %zu bytes: %d fit", len, RV_ANSWER_MAX);
	if (rvi_state(conn) != RVI_REQUESTED)
		return rv_fail(EINVAL, "accept of a connection that asked for nothing");
	at_store(&conn->user, user);
	/* See reap.c: no datagram is sent without a route. */
	if (!conn->dead && !rvi_can_reach(conn->dev, &conn->peer))
		conn->dead = -EHOSTUNREACH;
	if (conn->dead)
		return accept_dead(conn);
	set_ack_timeout(conn);
	rc = rvi_qp_create(conn);
	if (rc)
		return rc; /* still REQUESTED: may be rejected, or tried again when there is room */
	if (rvi_qp_ready(conn)) {
		/* The CM gives no attributes for a request that was
		 * taken back: its event is on the way. */
		rvi_log(dev, 2, "%s: accept: %s", dev->caps.device, rv_error_text());
		conn->dead = -ECONNRESET;
		return accept_dead(conn);
	}
	p.private_data = conn->data;
	p.private_data_len = rvi_pdata_put(RVI_PD_ANSWER, conn->data, answer, len,
					   dev->credit_class);
	p.responder_resources = conn->responder;
	p.initiator_depth = conn->initiator;
	p.qp_num = conn->qpn;
	/* Messages may come from here on: the queue pair works already. */
	at_store(&conn->state, RVI_ACCEPTING);
	rb_slow(RB_SLOW_CM);
	if (rdma_accept(conn->id, &p)) {
		/* The requester gave up meanwhile: news, not an error of the caller's. */
		rvi_conn_down(conn, -ECONNRESET, -1);
		return 0;
	}
	conn->cm_used = true;
	rvi_conn_deadline(conn, now_ns() + dev->connect_ns);
	return 0;
}

void rvi_reject(struct rv_conn *conn, const void *reason, size_t len)
{
	uint8_t data[RVI_PDATA_MAX];
	uint8_t n;

	if (rvi_state(conn) == RVI_REQUESTED && !conn->dead) {
		n = rvi_pdata_put(RVI_PD_REASON, data, reason, min_of(len, (size_t)RV_REASON_MAX),
				  0);
		rvi_refuse(conn->dev, conn->id, data, n);
		conn->id = NULL;
	}
	rvi_close_conn(conn);
}

void rvi_peer_text(struct rv_conn *conn, char *buf, size_t size)
{
	rvi_addr_text(&conn->peer, buf, size);
}
