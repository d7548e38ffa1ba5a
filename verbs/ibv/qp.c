/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue pairs. They are made and moved here, not by rdma_create_qp. rdma_cm would leave them with
 * REMOTE_WRITE, an RNR timer of 655 ms and the retry times of a routed fabric. rdma_init_qp_attr
 * has the attributes that the handshake agreed on. They hold for the queue pair of the READs too.
 * Only its peer and the numbers of its first packets are others: pair.c. ibv_query_qp would have
 * the same, but some drivers leave the address out.
 */
#include "ibv.h"

/* Fills in the request for a queue pair for messages. */
static void init_attr(struct rv_dev *dev, uint32_t max_inline, struct ibv_qp_init_attr *out)
{
	*out = (struct ibv_qp_init_attr){
		.send_cq = dev->send_cq,
		.recv_cq = dev->recv_cq,
		.srq = dev->srq,
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = max_of(dev->nr_sends, 1u),
			.max_send_sge = 1,
			.max_recv_wr = dev->srq ? 0 : 1,
			.max_recv_sge = dev->srq ? 0 : 1,
			.max_inline_data = max_inline,
		},
	};
}

/* Fills in the request for a queue pair for READs. It receives nothing; some drivers want room for
 * a receive all the same. */
static void init_attr_reads(struct rv_dev *dev, struct ibv_qp_init_attr *out)
{
	*out = (struct ibv_qp_init_attr){
		.send_cq = dev->send_cq,
		.recv_cq = dev->recv_cq,
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = dev->max_reads,
			.max_send_sge = dev->max_sge,
			.max_recv_wr = 1,
			.max_recv_sge = 1,
		},
	};
}

static struct ibv_qp *create(struct rv_dev *dev, struct ibv_qp_init_attr *a)
{
	struct ibv_qp *qp;

	rvi_keep_begin();
	qp = ibv_create_qp(dev->pd, a);
	rvi_keep_end();
	return qp;
}

/* Asks for a queue pair with that much inline data. Returns 0,
 * or -errno if no queue pair can be made at all. */
int rvi_qp_probe_inline(struct rv_dev *dev, uint32_t *max_inline)
{
	for (uint32_t ask = RVI_INLINE_WISH;; ask = ask > 64 ? ask / 2 : 0) {
		struct ibv_qp_init_attr a;
		struct ibv_qp *qp;

		init_attr(dev, ask, &a);
		qp = create(dev, &a);
		if (qp) {
			/* The wish, even if more was granted: connections ask the same. */
			*max_inline = min_of(ask, a.cap.max_inline_data);
			ibv_destroy_qp(qp);
			return 0;
		}
		if (!ask)
			return rv_fail(errno ? errno : EIO,
				       "the device makes no queue pair of %u requests: %s",
				       a.cap.max_send_wr, strerror(errno));
	}
}

/* Finds out which queue pairs the device makes. Returns 0 or -errno. */
int rvi_qp_probe(struct rv_dev *dev)
{
	int rc = rvi_qp_probe_inline(dev, &dev->max_inline);
	struct ibv_qp_init_attr a;
	struct ibv_qp *qp;

	if (rc)
		return rc;
	init_attr_reads(dev, &a);
	qp = create(dev, &a);
	if (!qp && dev->max_sge > RV_READ_SGE) {
		/* Entries of the wished size make too long a queue: READs of several values are not
		 * made then. */
		dev->max_sge = RV_READ_SGE;
		init_attr_reads(dev, &a);
		qp = create(dev, &a);
	}
	if (!qp)
		return rv_fail(errno ? errno : EIO,
			       "the device makes no queue pair of %u READs: %s", dev->max_reads,
			       strerror(errno));
	ibv_destroy_qp(qp);
	return 0;
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

/*
 * Drops the messages of a queue pair that is gone, and forgets its number. Some drivers clear a
 * destroyed queue pair's completions; rxe lets them live on, and its number may come back.
 */
static void forget_qpn(struct rv_conn *conn)
{
	struct rv_conn **p = qpn_bucket(conn->dev, conn->qpn);

	if (!conn->qpn)
		return;
	rvi_drain_for(conn);
	while (*p != conn)
		p = &(*p)->qpn_next;
	*p = conn->qpn_next;
	conn->qpn = 0;
}

/* Notes the number of a new queue pair. Another that had the number may be gone unnoticed. */
static void note_qpn(struct rv_conn *conn)
{
	struct rv_conn **bucket = qpn_bucket(conn->dev, conn->qp->qp_num);
	struct rv_conn *before = rvi_qpn_find(conn->dev, conn->qp->qp_num);

	rb_assert_if(before, rvi_state(before) == RVI_CLOSED && before->destroys);
	if (before)
		forget_qpn(before);
	conn->qpn = conn->qp->qp_num;
	conn->qpn_next = *bucket;
	*bucket = conn;
}

/* Counts the connection in, posts its receive buffers, makes
 * its queue pair for messages, and has the other made. 0 or -errno with a text. */
int rvi_qp_create(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct ibv_qp_init_attr a;
	int rc;

	if (dev->nr_active >= dev->max_qps)
		return rv_fail(ENOBUFS, "%u queue pairs of %s are still being destroyed",
			       dev->nr_closing, dev->caps.device);
	if (dev->nr_active - dev->nr_closing >= dev->max_conns)
		return rv_fail(EDQUOT,
			       "all %u connections of %s are in use (option max_conns, or the "
			       "device's queue limits)",
			       dev->max_conns, dev->caps.device);
	rb_assert(!conn->active && !conn->qp && !conn->reads_qp);
	rvi_sent_drain(dev);
	rc = rvi_reads_init(conn);
	if (rc)
		return rc;
	conn->active = true;
	dev->nr_active++;
	rc = rvi_recv_fill(dev);
	if (rc)
		goto deactivate;
	init_attr(dev, dev->max_inline, &a);
	rb_slow(RB_SLOW_QP_CREATE);
	conn->qp = create(dev, &a);
	if (!conn->qp) {
		rc = rv_fail(errno ? errno : EIO,
			     "cannot create a queue pair on %s (%u connections exist): %s",
			     dev->caps.device, dev->nr_active - 1, strerror(errno));
		goto deactivate;
	}
	note_qpn(conn);
	rvi_make_reads(conn);
	return 0;
deactivate:
	conn->active = false;
	dev->nr_active--;
	return rc;
}

/* Fills in what a queue pair for READs has of its own, besides what the handshake agreed on. */
static void fill_reads(const struct rv_conn *conn, const struct rvi_pair *pair,
		       struct ibv_qp_attr *a)
{
	a->qp_access_flags = IBV_ACCESS_REMOTE_READ;
	a->max_dest_rd_atomic = conn->responder;
	a->max_rd_atomic = conn->initiator;
	a->dest_qp_num = pair->peer_qpn;
	a->rq_psn = pair->peer_psn;
	a->sq_psn = pair->psn;
}

/* Moves one of the connection's queue pairs on. pair: NULL = the one for messages. */
static int move_to(struct rv_conn *conn, enum ibv_qp_state state, const struct rvi_pair *pair)
{
	struct ibv_qp_attr a = { .qp_state = state };
	int mask = 0, rc;

	if (rdma_init_qp_attr(conn->id, &a, &mask))
		return rv_fail(errno, "rdma_cm gave no attributes for state %d: %s", state,
			       strerror(errno));
	/* Old kernels set the bits of RoCE addressing here on InfiniBand; librdmacm masks them off
	 * too. */
	if (state == IBV_QPS_RTR && !a.ah_attr.is_global)
		mask &= ~0xe00000;
	a.qp_access_flags = 0;
	a.max_dest_rd_atomic = a.max_rd_atomic = 1;
	a.min_rnr_timer = RVI_MIN_RNR_TIMER;
	a.timeout = conn->dev->ack_timeout;
	a.retry_cnt = RVI_RETRY_CNT;
	a.rnr_retry = RVI_RNR_RETRY;
	if (pair)
		fill_reads(conn, pair, &a);
	rb_slow(RB_SLOW_QP_MODIFY);
	rc = ibv_modify_qp(pair ? conn->reads_qp : conn->qp, &a, mask);
	return rc ? rv_fail(rc, "queue pair to state %d: %s", state, strerror(rc)) : 0;
}

static int move_to_ready(struct rv_conn *conn, const struct rvi_pair *pair)
{
	int rc = move_to(conn, IBV_QPS_INIT, pair);

	if (!rc)
		rc = move_to(conn, IBV_QPS_RTR, pair);
	return rc ? rc : move_to(conn, IBV_QPS_RTS, pair);
}

/* Moves the queue pair to ready-to-send, once the peer's side of the handshake is known. */
int rvi_qp_ready(struct rv_conn *conn)
{
	return move_to_ready(conn, NULL);
}

/* Makes a queue pair for READs. It is not tied yet. Returns 0 or -errno. [helper] */
int rvi_qp_create_reads(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct ibv_qp_init_attr a;

	rb_assert(!conn->reads_qp);
	init_attr_reads(dev, &a);
	rb_slow(RB_SLOW_QP_CREATE);
	conn->reads_qp = create(dev, &a);
	if (conn->reads_qp)
		return 0;
	return rv_fail(errno ? errno : EIO, "cannot create a queue pair for READs on %s: %s",
		       dev->caps.device, strerror(errno));
}

/* Ties the queue pair for READs to the peer's. On return it serves READs. */
int rvi_qp_link_reads(struct rv_conn *conn)
{
	return move_to_ready(conn, &conn->pair);
}

/* Stops both directions. Returns 0 or an errno. A queue pair that cannot go to error can do no
 * harm, or is destroyed next. If that fails too: helper.c. */
int rvi_qp_stop(struct ibv_qp *qp)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_ERR };

	rb_slow(RB_SLOW_QP_MODIFY);
	return ibv_modify_qp(qp, &a, IBV_QP_STATE);
}

/* Stops both queue pairs, the one for READs first. */
void rvi_qp_error(struct rv_conn *conn)
{
	if (conn->reads_qp)
		rvi_qp_stop(conn->reads_qp);
	rvi_qp_stop(conn->qp);
}

/*
 * Destroys a queue pair: after this the device neither serves it nor writes for it. Only the
 * return of ibv_destroy_qp says so. In the error state alone one more packet may be served (seen on
 * rxe). Its messages were taken out of the queue before. Some drivers clear a destroyed queue
 * pair's completions, and with them the news of a receive buffer. Returns 0 or an errno.
 */
int rvi_qp_destroy(struct ibv_qp *qp)
{
	rb_slow(RB_SLOW_QP_DESTROY);
	return ibv_destroy_qp(qp);
}

/* Takes note that the queue pairs are gone. */
void rvi_qp_gone(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;

	forget_qpn(conn);
	rb_assert(conn->active && dev->nr_active && dev->nr_closing);
	conn->qp = conn->reads_qp = NULL;
	conn->active = false;
	dev->nr_active--;
	dev->nr_closing--;
	rvi_sends_drop(conn);
}
