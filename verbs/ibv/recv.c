/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages in, through one shared receive queue. It holds opt.credits + RVI_FREE_BUFS buffers for
 * each connection. So a peer that keeps its credits never meets an empty queue. A peer that does
 * not is cut off at its first message too many.
 */
#include "ibv.h"
#include "status.h"

/* Posts what the living connections need beyond what the
 * device and the core hold. 0 or -ENOMEM with a text. */
int rvi_recv_fill(struct rv_dev *dev)
{
	uint32_t need = dev->nr_active * (dev->credits + RVI_FREE_BUFS);

	rb_assert_is(dev->nr_posted + dev->nr_held_live, <=, dev->recv_pool.nr);
	while (dev->nr_posted + dev->nr_held_live < need) {
		struct ibv_recv_wr wr = { .num_sge = 1 }, *bad;
		struct ibv_sge sge;
		struct rvi_buf *b;
		int rc = rvi_pool_take(dev, &dev->recv_pool, RVI_BUF_POSTED, &b);

		if (rc)
			return rc == -EAGAIN ? rv_fail(ENOMEM, "no receive buffer left") : rc;
		sge = (struct ibv_sge){ .addr = (uintptr_t)b->mem,
					.length = RVI_FRAME_BYTES + RV_MSG_MAX + RVI_SEAL_BYTES,
					.lkey = b->lkey };
		wr.sg_list = &sge;
		wr.wr_id = rvi_token_pack(RVI_RECV, b->index, b->gen);
		rc = ibv_post_srq_recv(dev->srq, &wr, &bad);
		if (rc) {
			rvi_pool_give(&dev->recv_pool, b);
			return rv_fail(ENOMEM, "the device takes no more receive buffers: %s",
				       strerror(rc));
		}
		dev->nr_posted++;
	}
	return 0;
}

/* Returns the buffer of a token, if it is in that state now; else NULL. */
static struct rvi_buf *buf_of(struct rv_dev *dev, struct rvi_token t, enum rvi_buf_state state)
{
	struct rvi_buf *b = t.kind == RVI_RECV && t.index < dev->recv_pool.nr
		? dev->recv_pool.by_index[t.index]
		: NULL;

	rb_assert_if(b, b->index == t.index);
	return b && b->gen == t.gen && b->state == state ? b : NULL;
}

/* Puts a buffer back into the pool, and gives the device as many
 * as it needs. A failure is logged: the next call tries again. */
static void give_buffer_back(struct rv_dev *dev, struct rvi_buf *b)
{
	rvi_pool_give(&dev->recv_pool, b);
	if (rvi_recv_fill(dev))
		rvi_log(dev, 1, "%s: %s", dev->caps.device, rv_error_text());
}

void rvi_recv_done(struct rv_dev *dev, uint64_t token)
{
	struct rvi_buf *b = buf_of(dev, rvi_token_unpack(token), RVI_BUF_HELD);
	struct rv_conn *conn;

	if (!b)
		return;
	conn = rvi_conn_at(dev, b->conn);
	if (conn->epoch != b->epoch) {
		give_buffer_back(dev, b);
		return;
	}
	rb_assert_with(conn->nr_held && dev->nr_held_live >= conn->nr_held, "%u of %u",
		       conn->nr_held, dev->nr_held_live);
	rvi_assert_credits(conn);
	conn->nr_held--;
	dev->nr_held_live--;
	conn->to_return++;
	give_buffer_back(dev, b);
	rvi_return_credits(conn);
}

/* Takes back the buffer of a completion that a fence took out
 * of the queue: its connection is gone. */
void rvi_recv_drop(struct rv_dev *dev, struct rvi_token t)
{
	struct rvi_buf *b = buf_of(dev, t, RVI_BUF_POSTED);

	if (!b)
		return;
	rb_assert_is(dev->nr_posted, >, 0);
	dev->nr_posted--;
	give_buffer_back(dev, b);
}

/* Returns the errno for nonsense. With a MAC, or on a connection without one, its peer sent it.
 * Before the MAC is there, any process may have. */
static int fault_of(const struct rv_conn *conn)
{
	return conn->sealed ? -EBADMSG : -EPROTO;
}

/* Checks a frame. Returns NULL if the protocol allows it now,
 * else the fault in words. *status: see rvi_conn_protocol_error. */
static const char *check_frame(struct rv_conn *conn, const struct ibv_wc *wc,
			       const struct rvi_buf *b, struct rvi_frame *f, int *status)
{
	size_t bytes = wc->byte_len;

	*status = fault_of(conn);
	if (wc->opcode != IBV_WC_RECV || wc->wc_flags & (IBV_WC_WITH_IMM | IBV_WC_WITH_INV))
		return "a message with immediate data or invalidation";
	if (conn->sealed && rvi_seal_get(&conn->rx_seal, b->mem, &bytes))
		return "a frame that is not the peer's next";
	*status = -EPROTO;
	if (rvi_frame_get(b->mem, bytes, f))
		return "malformed frame";
	if (f->seq != conn->rx_seq)
		return "frame out of sequence";
	if (f->type == RVI_FRAME_MSG && !conn->rx_window)
		return "message without credit";
	if (f->grant > UINT16_MAX - min_of(conn->tx_credits, UINT16_MAX))
		return "more credits than possible";
	return NULL;
}

/*
 * Ends a connection by a failed receive. A message that did not fit is longer than any may be.
 * Other failures say nothing about the peer.
 */
static void recv_failed(struct rv_conn *conn, enum ibv_wc_status status)
{
	int err = rvi_wc_errno(status);

	if (err == -ECONNRESET || err == -ETIMEDOUT)
		rvi_conn_fail_wc(conn, status);
	else
		rvi_conn_protocol_error(conn, fault_of(conn), rvi_wc_text(status));
}

/* Tells whether the core may still get a message of that connection. */
static inline bool takes_frames(const struct rv_conn *conn)
{
	enum rvi_state state = conn ? rvi_state(conn) : RVI_FREE;

	return state == RVI_UP || state == RVI_ACCEPTING || (state == RVI_DOWN && conn->deliver);
}

void rvi_recv_completed(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
			struct rvi_sink *sink)
{
	struct rvi_buf *b = buf_of(dev, t, RVI_BUF_POSTED);
	struct rv_conn *conn = rvi_qpn_find(dev, wc->qp_num);
	struct rvi_frame f = { 0 };
	struct rv_event *e;
	const char *wrong;
	int status;

	if (!b)
		return;
	rb_assert_is(dev->nr_posted, >, 0);
	dev->nr_posted--;
	if (wc->status != IBV_WC_SUCCESS) {
		give_buffer_back(dev, b);
		if (conn && rvi_state(conn) != RVI_CLOSED)
			recv_failed(conn, wc->status);
		return;
	}
	if (!takes_frames(conn)) {
		give_buffer_back(dev, b);
		return;
	}
	wrong = check_frame(conn, wc, b, &f, &status);
	if (wrong) {
		give_buffer_back(dev, b);
		rvi_conn_protocol_error(conn, status, wrong);
		return;
	}
	conn->rx_seq++;
	conn->tx_credits += f.grant;
	/* A message may come before rdma_cm's ESTABLISHED, and says the same. */
	if (rvi_state(conn) == RVI_ACCEPTING)
		rvi_confirmed(conn, sink, true);
	rvi_writable(conn, sink);
	if (f.type != RVI_FRAME_MSG) {
		if (f.type != RVI_FRAME_CREDITS)
			rvi_pair_frame(conn, &f, b->mem + RVI_FRAME_BYTES, sink);
		give_buffer_back(dev, b);
		return;
	}
	rvi_pair_awake(conn);
	rb_assert_is(conn->rx_window, >, 0);
	rvi_assert_credits(conn);
	conn->rx_window--;
	conn->nr_held++;
	dev->nr_held_live++;
	b->state = RVI_BUF_HELD;
	b->conn = conn->index;
	b->epoch = conn->epoch;
	e = rvi_emit(sink, conn, RV_EV_RECV, 0);
	e->data = b->mem + RVI_FRAME_BYTES;
	e->len = f.len;
	e->token = rvi_token_pack(RVI_RECV, b->index, b->gen);
}
