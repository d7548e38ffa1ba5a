/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue pairs. They are made and moved here, not by rdma_create_qp. rdma_cm would leave them with
 * REMOTE_WRITE, an RNR timer of 655 ms and the retry times of a routed fabric. rdma_init_qp_attr
 * has the attributes that the handshake agreed on.
 */
#include "ibv.h"

/* Fills in the request for a queue pair. Its size is the most that one connection may have under
 * way: dev->max_reads + dev->nr_sends. */
static void init_attr(struct rv_dev *dev, uint32_t max_inline, struct ibv_qp_init_attr *out)
{
	*out = (struct ibv_qp_init_attr){
		.send_cq = dev->send_cq,
		.recv_cq = dev->recv_cq,
		.srq = dev->srq,
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = max_of(dev->max_reads + dev->nr_sends, 1u),
			.max_send_sge = dev->max_sge,
			.max_recv_wr = dev->srq ? 0 : 1,
			.max_recv_sge = dev->srq ? 0 : 1,
			.max_inline_data = max_inline,
		},
	};
}

/* Asks for a queue pair with that much inline data. Returns 0,
 * or -errno if no queue pair can be made at all. */
int rvi_qp_probe_inline(struct rv_dev *dev, uint32_t *max_inline)
{
	for (uint32_t ask = RVI_INLINE_WISH;; ask = ask > 64 ? ask / 2 : 0) {
		struct ibv_qp_init_attr a;
		struct ibv_qp *qp;

		init_attr(dev, ask, &a);
		rvi_keep_begin();
		qp = ibv_create_qp(dev->pd, &a);
		rvi_keep_end();
		if (qp) {
			/* The wish, even if more was granted: connections ask the same. */
			*max_inline = min_of(ask, a.cap.max_inline_data);
			ibv_destroy_qp(qp);
			return 0;
		}
		if (!ask && dev->max_sge > RV_READ_SGE) {
			/* Entries of the wished size make too long a queue:
			 * READs of several values are not made then. */
			dev->max_sge = RV_READ_SGE;
			return rvi_qp_probe_inline(dev, max_inline);
		}
		if (!ask)
			return rv_fail(errno ? errno : EIO,
				       "the device makes no queue pair of %u requests: %s",
				       a.cap.max_send_wr, strerror(errno));
	}
}

static struct rv_conn **qpn_bucket(struct rv_dev *dev, uint32_t qpn)
{
	/* Queue pair numbers are handed out in sequence: the low bits spread well. */
	return &dev->qpn_table[qpn & dev->qpn_mask];
}

struct rv_conn *rvi_qpn_find(struct rv_dev *dev, uint32_t qpn)
{
	struct rv_conn *c = *qpn_bucket(dev, qpn);

	while (c && c->qpn != qpn)
		c = c->qpn_next;
	return c;
}

/* Counts the connection in, posts its receive buffers, makes
 * its queue pair. 0 or -errno with a text. */
int rvi_qp_create(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct ibv_qp_init_attr a;
	struct rv_conn **bucket;
	int rc;

	if (dev->nr_active >= dev->max_conns)
		return rv_fail(EDQUOT,
			       "all %u connections of %s are in use (option max_conns, or the "
			       "device's queue limits)",
			       dev->max_conns, dev->caps.device);
	rb_assert(!conn->active && !conn->qp);
	rc = rvi_reads_init(conn);
	if (rc)
		return rc;
	conn->active = true;
	dev->nr_active++;
	rc = rvi_recv_fill(dev);
	if (rc)
		goto deactivate;
	init_attr(dev, dev->max_inline, &a);
	rvi_keep_begin();
	conn->qp = ibv_create_qp(dev->pd, &a);
	rvi_keep_end();
	if (!conn->qp) {
		rc = rv_fail(errno ? errno : EIO,
			     "cannot create a queue pair on %s (%u connections exist): %s",
			     dev->caps.device, dev->nr_active - 1, strerror(errno));
		goto deactivate;
	}
	conn->qpn = conn->qp->qp_num;
	rb_assert(!rvi_qpn_find(dev, conn->qpn));
	bucket = qpn_bucket(dev, conn->qpn);
	conn->qpn_next = *bucket;
	*bucket = conn;
	return 0;
deactivate:
	conn->active = false;
	dev->nr_active--;
	return rc;
}

static int move_to(struct rv_conn *conn, enum ibv_qp_state state)
{
	struct ibv_qp_attr a = { .qp_state = state };
	int mask = 0, rc;

	if (rdma_init_qp_attr(conn->id, &a, &mask))
		return rv_fail(errno, "rdma_cm gave no attributes for state %d: %s", state,
			       strerror(errno));
	switch (state) {
	case IBV_QPS_INIT:
		a.qp_access_flags = 0; /* no access until allow_reads */
		break;
	case IBV_QPS_RTR:
		/* Old kernels set the bits of RoCE addressing here
		 * on InfiniBand; librdmacm masks them off too. */
		if (!a.ah_attr.is_global)
			mask &= ~0xe00000;
		a.max_dest_rd_atomic = conn->responder;
		a.min_rnr_timer = RVI_MIN_RNR_TIMER;
		break;
	default:
		a.max_rd_atomic = conn->initiator;
		a.timeout = conn->dev->ack_timeout;
		a.retry_cnt = RVI_RETRY_CNT;
		a.rnr_retry = RVI_RNR_RETRY;
		break;
	}
	rc = ibv_modify_qp(conn->qp, &a, mask);
	return rc ? rv_fail(rc, "queue pair to state %d: %s", state, strerror(rc)) : 0;
}

/* Moves the queue pair to ready-to-send, once the peer's side of the handshake is known. */
int rvi_qp_ready(struct rv_conn *conn)
{
	int rc = move_to(conn, IBV_QPS_INIT);

	if (!rc)
		rc = move_to(conn, IBV_QPS_RTR);
	return rc ? rc : move_to(conn, IBV_QPS_RTS);
}

/* Allows remote READs, by RTS -> RTS: once for each connection, 38 us on an emulated rxe. */
int rvi_qp_access(struct rv_conn *conn)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_RTS,
				 .qp_access_flags = IBV_ACCESS_REMOTE_READ };
	int rc = ibv_modify_qp(conn->qp, &a, IBV_QP_STATE | IBV_QP_ACCESS_FLAGS);

	return rc ? rv_fail(rc, "cannot allow remote reads: %s", strerror(rc)) : 0;
}

/* Stops both directions. Failing is fine: a queue pair that
 * cannot go to error can do no harm, or is destroyed next. */
void rvi_qp_error(struct rv_conn *conn)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_ERR };

	if (conn->qp)
		ibv_modify_qp(conn->qp, &a, IBV_QP_STATE);
}

/*
 * Fences the connection: after this the device neither serves it nor writes for it. Only the return
 * of ibv_destroy_qp says so. In the error state alone one more packet may be served (seen on rxe).
 */
void rvi_qp_destroy(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct rv_conn **p;
	int rc;

	if (!conn->qp)
		return;
	/* Drains before and after the destroy. Some drivers clear a destroyed queue pair's
	 * completions, and with them the news of a receive buffer. rxe lets them live on, and its
	 * number may come back. */
	rvi_drain_for(conn);
	rc = ibv_destroy_qp(conn->qp);
	if (rc)
		rvi_log(dev, 0, "%s: queue pair %u cannot be destroyed: %s", dev->caps.device,
			conn->qpn, strerror(rc));
	rvi_drain_for(conn);
	for (p = qpn_bucket(dev, conn->qpn); *p; p = &(*p)->qpn_next) {
		if (*p == conn) {
			*p = conn->qpn_next;
			break;
		}
	}
	rb_assert(!rvi_qpn_find(dev, conn->qpn));
	rb_assert(conn->active && dev->nr_active);
	conn->qp = NULL;
	conn->active = false;
	dev->nr_active--;
}
