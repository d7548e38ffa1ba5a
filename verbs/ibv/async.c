/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous events of the device: each is acked at once;
 * known ones are judged, others logged. */
#include "ibv.h"

/* Ends every connection of an unusable device. The core hears
 * of it once, and poll says so when nothing is left to report. */
void rvi_lost(struct rv_dev *dev, struct rvi_sink *sink, const char *why)
{
	struct rv_event *e;

	if (dev->lost)
		return;
	dev->lost = true;
	rvi_log(dev, 0, "%s: %s", dev->caps.device, why);
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++)
		rvi_conn_down(rvi_conn_at(dev, i), -ENODEV, -1);
	e = rvi_emit(sink, NULL, RV_EV_DEVICE, -ENODEV);
	e->data = why;
	e->len = (uint32_t)strlen(why);
}

static void inform(struct rvi_sink *sink, const char *what)
{
	struct rv_event *e = rvi_emit(sink, NULL, RV_EV_DEVICE, 0);

	e->data = what;
	e->len = (uint32_t)strlen(what);
}

static void qp_failed(struct rv_dev *dev, struct rvi_sink *sink, uint32_t qpn)
{
	struct rv_conn *conn = rvi_qpn_find(dev, qpn);

	if (conn)
		rvi_conn_down(conn, -EIO, -1);
	else
		rvi_pair_broke(dev, qpn, sink);
}

static void judge_event(struct rv_dev *dev, struct rvi_sink *sink, enum ibv_event_type type,
			uint32_t qpn)
{
	switch (type) {
	case IBV_EVENT_CQ_ERR:
		rvi_lost(dev, sink, "a completion queue of the RDMA device is broken");
		break;
	case IBV_EVENT_DEVICE_FATAL:
	case IBV_EVENT_SRQ_ERR:
	case IBV_EVENT_WQ_FATAL:
		rvi_lost(dev, sink, "the RDMA device failed");
		break;
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_PATH_MIG_ERR:
		qp_failed(dev, sink, qpn);
		break;
	case IBV_EVENT_COMM_EST: /* the message that caused it says it too */
	case IBV_EVENT_SQ_DRAINED:
	case IBV_EVENT_QP_LAST_WQE_REACHED:
	case IBV_EVENT_SRQ_LIMIT_REACHED:
		break;
	case IBV_EVENT_PORT_ACTIVE:
		inform(sink, "port active");
		break;
	case IBV_EVENT_PORT_ERR:
		inform(sink, "port down");
		break;
	case IBV_EVENT_GID_CHANGE:
		inform(sink, "GID table changed");
		break;
	case IBV_EVENT_PATH_MIG:
	case IBV_EVENT_LID_CHANGE:
	case IBV_EVENT_PKEY_CHANGE:
	case IBV_EVENT_SM_CHANGE:
	case IBV_EVENT_CLIENT_REREGISTER:
		inform(sink, "port reconfigured");
		break;
	default:
		inform(sink, "unknown device event");
		break;
	}
}

/* Returns the queue pair that an event is about, 0 if none.
 * Read before the ack: after it the object may go. */
static uint32_t qpn_of(const struct ibv_async_event *e)
{
	switch (e->event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_PATH_MIG_ERR:
		return e->element.qp ? e->element.qp->qp_num : 0;
	default:
		return 0;
	}
}

void rvi_async_events(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct ibv_async_event e;

	while (sink->n < sink->max && !ibv_get_async_event(dev->ctx, &e)) {
		uint32_t qpn = qpn_of(&e);

		ibv_ack_async_event(&e);
		judge_event(dev, sink, e.event_type, qpn);
	}
}
