/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connection management: its events. Each event is copied out, with its connection, and acked at
 * once. So no rdma_destroy_id ever waits for an ack. From then on the event's id may be gone:
 * reap.c. Then the event is stepped through the total table of cm_table.h.
 */
#include <arpa/inet.h>

#include "ibv.h"
#include "status.h"

/* An event as it was, after its ack. */
struct cm_event {
	struct rdma_cm_id *id;
	struct rvi_id *of; /* NULL: the listener's */
	/* NULL: the id is the listener's, new, or of a connection that was closed */
	struct rv_conn *conn;
	int type, status;
	uint8_t responder, initiator; /* READs: we serve, we have under way */
	uint32_t len;
	uint8_t data[256];
};

/* Gives a request's id its record. The one that came with it is the listener's: NULL. */
static struct rvi_id *born(struct rv_dev *dev, struct rdma_cm_id *id)
{
	struct rvi_id *one = dev->reaper.spare;

	dev->reaper.spare = NULL;
	one->id = id;
	id->context = one;
	return one;
}

/* Takes the next event. There is a record for a request. Returns true if there was one. */
static bool next_cm_event(struct rv_dev *dev, struct cm_event *out)
{
	struct rdma_cm_event *e;
	const struct rdma_conn_param *p;

	while (rdma_get_cm_event(dev->cm, &e)) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			rvi_log(dev, 1, "%s: connection events: %s", dev->caps.device,
				strerror(errno));
		return false;
	}
	p = &e->param.conn;
	out->id = e->id;
	out->of = e->event == RDMA_CM_EVENT_CONNECT_REQUEST ? born(dev, e->id) : e->id->context;
	out->conn = out->of ? out->of->conn : NULL;
	out->type = (int)e->event;
	out->status = e->status;
	out->responder = p->responder_resources;
	out->initiator = p->initiator_depth;
	out->len = p->private_data ? p->private_data_len : 0;
	if (out->len)
		memcpy(out->data, p->private_data, out->len);
	rdma_ack_cm_event(e);
	return true;
}

/* Takes the peer's data into conn->data, and its credits. 0 or -EPROTO. */
static int take_data(struct rv_conn *conn, const struct cm_event *e, enum rvi_pdata kind)
{
	struct rvi_pdata_view v;

	conn->data_len = 0;
	if (rvi_pdata_get(kind, e->data, e->len, &v))
		return -EPROTO;
	if (v.len)
		memcpy(conn->data, v.data, v.len);
	conn->data_len = v.len;
	if (kind != RVI_PD_REASON)
		conn->tx_credits = rvi_class_credits(v.class);
	return 0;
}

static void emit_data(struct rvi_sink *sink, struct rv_conn *conn, enum rv_event_type type)
{
	struct rv_event *ev = rvi_emit(sink, conn, type, 0);

	ev->data = conn->data;
	ev->len = conn->data_len;
}

static void copy_peer(struct rv_conn *conn)
{
	const struct sockaddr *sa = rdma_get_peer_addr(conn->id);

	if (sa && sa->sa_family == AF_INET)
		memcpy(&conn->peer, sa, sizeof(struct sockaddr_in));
	else if (sa && sa->sa_family == AF_INET6)
		memcpy(&conn->peer, sa, sizeof(struct sockaddr_in6));
}

/* Takes a stranger's request. It is bounded, and has no queue
 * pair until the core has looked at its hello. */
static void requested(struct rv_dev *dev, const struct cm_event *e, struct rvi_sink *sink)
{
	struct rv_conn *conn;

	if (dev->lost || !e->of->may_live || dev->nr_half_open >= RVI_HALF_OPEN_MAX ||
	    rvi_conn_alloc(dev, &conn))
		goto refuse;
	/* A connection is of use only with READs in both directions. */
	if (!e->responder || !e->initiator || take_data(conn, e, RVI_PD_REQUEST)) {
		rvi_conn_release(conn);
		goto refuse;
	}
	conn->id = e->id;
	e->of->conn = conn;
	conn->responder = min_of(e->responder, dev->max_responder);
	conn->initiator = min_of(e->initiator, dev->max_initiator);
	copy_peer(conn);
	rb_assert(!conn->half_open && dev->nr_half_open < RVI_HALF_OPEN_MAX);
	conn->half_open = true;
	dev->nr_half_open++;
	at_store(&conn->state, RVI_REQUESTED);
	rvi_conn_deadline(conn, now_ns() + dev->connect_ns);
	emit_data(sink, conn, RV_EV_REQUEST);
	return;
refuse:
	rvi_refuse(dev, e->id, NULL, 0);
}

static void resolve_route(struct rv_conn *conn)
{
	at_store(&conn->state, RVI_ROUTE);
	rb_slow(RB_SLOW_CM);
	if (rdma_resolve_route(conn->id, RVI_RESOLVE_MS))
		rvi_conn_down(conn, -EHOSTUNREACH, -1);
}

static void send_request(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct rdma_conn_param p = {
		.private_data = conn->data,
		.private_data_len = (uint8_t)conn->data_len,
		.responder_resources = dev->max_responder,
		.initiator_depth = dev->max_initiator,
		.flow_control = 1,
		.retry_count = RVI_RETRY_CNT,
		.rnr_retry_count = RVI_RNR_RETRY,
		.srq = 1,
	};
	int rc;

	/* See reap.c: no datagram is sent without a route. */
	if (!rvi_can_reach(dev, &conn->peer)) {
		rvi_conn_down(conn, -EHOSTUNREACH, -1);
		return;
	}
	rc = rvi_qp_create(conn);
	if (rc) {
		rvi_log(dev, 1, "%s: %s", dev->caps.device, rv_error_text());
		rvi_conn_down(conn, rc, -1);
		return;
	}
	rb_assert_is(rvi_state(conn), ==, RVI_ROUTE);
	p.qp_num = conn->qpn;
	at_store(&conn->state, RVI_CONNECTING);
	rb_slow(RB_SLOW_CM);
	if (rdma_connect(conn->id, &p)) {
		rvi_conn_down(conn, errno == ENETUNREACH ? -EHOSTUNREACH : -errno, -1);
		return;
	}
	conn->cm_used = true;
}

static void establish(struct rv_conn *conn, const struct cm_event *e, struct rvi_sink *sink)
{
	int rc;

	if (!e->responder || !e->initiator || take_data(conn, e, RVI_PD_ANSWER)) {
		rvi_conn_down(conn, -EPROTO, -1);
		return;
	}
	conn->responder = min_of(e->responder, conn->dev->max_responder);
	conn->initiator = min_of(e->initiator, conn->dev->max_initiator);
	rc = rvi_qp_ready(conn);
	rb_slow(RB_SLOW_CM);
	if (!rc && rdma_establish(conn->id))
		rc = rv_fail(errno, "rdma_establish: %s", strerror(errno));
	if (rc) {
		rvi_log(conn->dev, 1, "%s: %s", conn->dev->caps.device, rv_error_text());
		rvi_conn_down(conn, rc, -1);
		return;
	}
	emit_data(sink, conn, RV_EV_CONNECTED);
	rvi_conn_up(conn);
}

/* Brings a connection up whose accept was confirmed, by the CM or by a message that overtook it.
 * After a message the CM is told, or it would end a connection whose confirmation was lost. */
void rvi_confirmed(struct rv_conn *conn, struct rvi_sink *sink, bool by_message)
{
	rb_assert_is(rvi_state(conn), ==, RVI_ACCEPTING);
	if (by_message) {
		rb_slow(RB_SLOW_CM);
		rdma_notify(conn->id, IBV_EVENT_COMM_EST);
	}
	rvi_emit(sink, conn, RV_EV_CONNECTED, 0);
	rvi_conn_up(conn);
}

static void failed(struct rv_conn *conn, const struct cm_event *e)
{
	bool refused = e->type == RDMA_CM_EVENT_REJECTED && rvi_state(conn) == RVI_CONNECTING;

	/* A reason that makes no sense is no reason. */
	if (!refused || take_data(conn, e, RVI_PD_REASON))
		conn->data_len = 0;
	rvi_conn_down(conn, conn->data_len ? -ECONNREFUSED : rvi_cm_errno(e->type, e->status), -1);
}

/* Gives a connect its time again whose event lay here at the deadline: this side was slow. */
static void prolong(struct rv_conn *conn)
{
	int64_t now = now_ns();

	if (conn->deadline_ns && conn->deadline_ns <= now)
		rvi_conn_deadline(conn, now + conn->dev->connect_ns);
}

static void step_conn(struct rv_conn *conn, const struct cm_event *e, struct rvi_sink *sink)
{
	switch (rvi_cm_action(rvi_state(conn), e->type)) {
	case RVI_CM_IGNORE:
		break;
	case RVI_CM_RESOLVE_ROUTE:
		prolong(conn);
		resolve_route(conn);
		break;
	case RVI_CM_SEND_REQUEST:
		prolong(conn);
		send_request(conn);
		break;
	case RVI_CM_ESTABLISH:
		establish(conn, e, sink);
		break;
	case RVI_CM_CONFIRMED:
		rvi_confirmed(conn, sink, false);
		break;
	case RVI_CM_FAIL:
		failed(conn, e);
		break;
	case RVI_CM_PEER_LEFT:
		rvi_conn_down(conn, -ECONNRESET, -1);
		break;
	case RVI_CM_DEVICE_LOST:
		rvi_lost(conn->dev, sink, "the RDMA device was removed");
		break;
	case RVI_CM_UNEXPECTED:
		break;
	}
}

static void step_listener(struct rv_dev *dev, const struct cm_event *e, struct rvi_sink *sink)
{
	switch (e->type) {
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		rvi_lost(dev, sink, "the RDMA device was removed");
		break;
	default:
		break;
	}
}

/*
 * Handles the events that are there, a batch at most, since strangers make as many as they like.
 * Returns true if all were taken. While too many ids wait to be destroyed none is taken. The
 * kernel bounds the requests that wait there.
 */
bool rvi_cm_events(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct cm_event e;

	for (unsigned n = 0; n < RVI_BATCH && sink->n < sink->max; n++) {
		if (!rvi_id_spare(dev) || !next_cm_event(dev, &e))
			return true;
		if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST)
			requested(dev, &e, sink);
		else if (e.id == dev->listener)
			step_listener(dev, &e, sink);
		else if (e.conn)
			step_conn(e.conn, &e, sink);
	}
	return false;
}

/*
 * Ends connects that take too long. The deadlines are ours: a connect to a silent address was seen
 * to bring no event for 100 s.
 */
void rvi_cm_deadlines(struct rv_dev *dev, int64_t now)
{
	for (uint32_t i = 0; i < at_load(&dev->nr_conns) && dev->nr_timed; i++) {
		struct rv_conn *conn = rvi_conn_at(dev, i);

		if (!conn->deadline_ns || conn->deadline_ns > now)
			continue;
		if (rvi_state(conn) == RVI_UP && !rvi_pair_overdue(conn)) {
			rvi_conn_deadline(conn, 0);
			continue;
		}
		if (rvi_state(conn) == RVI_UP) {
			rvi_conn_protocol_error(conn, -ETIMEDOUT,
						"it did not make its queue pair for READs in time");
			continue;
		}
		conn->data_len = 0;
		rvi_conn_down(conn, -ETIMEDOUT, -1);
	}
}
