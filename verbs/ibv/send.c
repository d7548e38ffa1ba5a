/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages out, and the credits that keep the peer's receive queue from running dry.
 *
 * A message costs the sender one credit, and the receiver returns it when the core has given the
 * buffer back. Returns ride on messages (frame.h). When half of them wait and nothing goes out, a
 * message of credits alone carries them.
 *
 * These messages cost no credit, and cannot deadlock: they have receive buffers of their own,
 * RVI_CREDIT_BUFS for each connection. Two are enough. At most opt.credits can be on their way back
 * at once. Each such message carries at least half of them. Its buffer is posted again the moment
 * it is looked at. They have send slots of their own for the same reason. So have the frames of
 * pair.c.
 */
#include "ibv.h"

#define AGAIN_NS (10 * NSEC_PER_MSEC) /* a frame without room is tried again after this */

void rvi_sends_init(struct rv_conn *conn)
{
	uint32_t n = conn->dev->nr_sends;

	for (uint32_t i = 0; i < n; i++)
		conn->sends[i].next = i + 1 < n ? i + 1 : RVI_NIL;
	conn->free_send = 0;
	conn->nr_sending = 0;
}

static void slot_free(struct rv_conn *conn, uint32_t slot)
{
	struct rvi_send *s = &conn->sends[slot];

	rb_assert_with(slot < conn->dev->nr_sends && (s->gen & 1), "slot %u", slot);
	rb_assert(conn->nr_sending && conn->dev->nr_sending >= conn->nr_sending);
	rb_assert_if(s->buf, s->buf->state == RVI_BUF_SENDING);
	s->gen++;
	if (s->buf)
		rvi_pool_give(&conn->dev->send_pool, s->buf);
	s->buf = NULL;
	s->next = conn->free_send;
	conn->free_send = slot;
	conn->nr_sending--;
	conn->dev->nr_sending--;
}

/* Drops all sends after the fence: nothing will complete any more. */
void rvi_sends_drop(struct rv_conn *conn)
{
	for (uint32_t i = 0; i < conn->dev->nr_sends; i++)
		if (conn->sends[i].gen & 1)
			slot_free(conn, i);
	rb_assert_is(conn->nr_sending, ==, 0);
}

static bool ibv_can_send(const struct rv_conn *conn)
{
	return at_load(&conn->state) == RVI_UP && conn->tx_credits &&
		conn->nr_sending < RVI_SENDS_MAX;
}

/*
 * Fills in header, message and MAC, inline or through a registered buffer, in one piece, as a MAC
 * needs it. The seal's number goes on when the device has taken the frame. A frame that it refuses
 * is made anew, under the same number.
 */
static int fill_frame(struct rv_conn *conn, struct rvi_send *s, const struct rvi_frame *f,
		const void *msg, uint32_t len, struct ibv_send_wr *wr, struct ibv_sge *sge,
		uint8_t small[RVI_INLINE_WISH])
{
	struct rv_dev *dev = conn->dev;
	uint32_t bytes = RVI_FRAME_BYTES + len + (conn->sealed ? RVI_SEAL_BYTES : 0);
	uint8_t *mem = small;
	int rc;

	s->buf = NULL;
	if (bytes <= dev->max_inline) {
		wr->send_flags |= IBV_SEND_INLINE;
	} else {
		rc = rvi_pool_take(dev, &dev->send_pool, RVI_BUF_SENDING, &s->buf);
		if (rc)
			return rc;
		mem = s->buf->mem;
	}
	rvi_frame_put(mem, f);
	if (len)
		memcpy(mem + RVI_FRAME_BYTES, msg, len);
	if (conn->sealed)
		rvi_seal_put(&conn->tx_seal, mem, RVI_FRAME_BYTES + len);
	*sge = (struct ibv_sge){ .addr = (uintptr_t)mem,
				 .length = bytes,
				 .lkey = s->buf ? s->buf->lkey : 0 };
	wr->num_sge = 1;
	return 0;
}

static int post_frame(struct rv_conn *conn, enum rvi_frame_type type, const void *msg, uint32_t len)
{
	struct rvi_frame f = {
		.type = (uint8_t)type,
		.grant = (uint16_t)min_of(conn->to_return, UINT16_MAX),
		.len = (uint16_t)len,
		.seq = conn->tx_seq,
	};
	uint32_t slot = conn->free_send;
	struct ibv_send_wr wr, *bad = NULL;
	uint8_t small[RVI_INLINE_WISH];
	struct ibv_sge sge;
	struct rvi_send *s;
	int rc;

	if (slot == RVI_NIL)
		return -EAGAIN;
	s = &conn->sends[slot];
	rb_assert_with(slot < conn->dev->nr_sends && !(s->gen & 1) && !s->buf, "slot %u", slot);
	rb_assert_is(conn->nr_sending, <, conn->dev->nr_sends);
	rvi_assert_credits(conn);
	/* Every message is solicited: the receiver may sleep. */
	wr = (struct ibv_send_wr){
		.opcode = IBV_WR_SEND,
		.send_flags = IBV_SEND_SIGNALED | IBV_SEND_SOLICITED,
		.sg_list = &sge,
		.wr_id = rvi_token_pack(RVI_SEND, rvi_index(conn->index, slot), s->gen + 1),
	};
	rc = fill_frame(conn, s, &f, msg, len, &wr, &sge, small);
	if (rc)
		return rc;
	conn->free_send = s->next;
	conn->nr_sending++;
	conn->dev->nr_sending++;
	s->gen++;
	rc = abs(ibv_post_send(conn->qp, &wr, &bad)); /* erdma and cxgb4 return -errno */
	if (rc && bad) {
		slot_free(conn, slot);
		if (rc == ENOMEM || rc == EAGAIN)
			return -EAGAIN;
	}
	if (rc) {
		/* A failure without a culprit: the request is in the queue, but the device was not
		 * told (rxe). The fence will tell. */
		rvi_conn_down(conn, -EIO, -1);
		return rv_fail(ENOTCONN, "the device refused to send: %s", strerror(rc));
	}
	conn->tx_seq++;
	conn->tx_seal.number++;
	rb_assert_is(f.grant, <=, conn->to_return);
	conn->to_return -= f.grant;
	conn->rx_window += f.grant;
	rvi_watch_sends(conn->dev);
	return 0;
}

int rvi_post_frame(struct rv_conn *conn, enum rvi_frame_type type, const void *msg, uint32_t len)
{
	struct rv_dev *dev = conn->dev;
	int rc = post_frame(conn, type, msg, len);

	/* The end of a send comes back to it. If none is under way, the timer does. */
	if (likely(!rc) || rc == -ENOTCONN || conn->nr_sending)
		return rc;
	if (list_empty(&conn->unsaid))
		list_add_tail(&dev->unsaid, &conn->unsaid);
	if (!dev->say_ns) {
		dev->say_ns = now_ns() + AGAIN_NS;
		rvi_wake_timer(dev);
	}
	return rc;
}

/* Says what has waited for the end of a send, or for the timer. */
static void say_rest(struct rv_conn *conn, struct rvi_sink *sink)
{
	rvi_pair_say(conn);
	rvi_pair_said(conn, sink);
	rvi_return_credits(conn);
	rvi_writable(conn, sink);
}

void rvi_say_again(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct list now, *l;

	if (!dev->say_ns || dev->say_ns > now_ns())
		return;
	dev->say_ns = 0;
	list_init(&now);
	while ((l = list_pop(&dev->unsaid)))
		list_add_tail(&now, l);
	while (sink->n < sink->max && (l = list_pop(&now)))
		say_rest(container_of(l, struct rv_conn, unsaid), sink);
	while ((l = list_pop(&now)))
		list_add_tail(&dev->unsaid, l);
	if (!list_empty(&dev->unsaid) && !dev->say_ns)
		dev->say_ns = now_ns() + AGAIN_NS;
}

int rvi_send(struct rv_conn *conn, const void *msg, size_t len)
{
	int rc;

	if (!len || len > RV_MSG_MAX)
		return rv_fail(EMSGSIZE, "a message of %zu bytes: 1 to %d can be sent", len,
			       RV_MSG_MAX);
	if (at_load(&conn->state) != RVI_UP)
		return -ENOTCONN;
	if (!ibv_can_send(conn)) {
		conn->want_write = true;
		return -EAGAIN;
	}
	rc = rvi_post_frame(conn, RVI_FRAME_MSG, msg, (uint32_t)len);
	if (rc == -EAGAIN)
		conn->want_write = true;
	if (rc)
		return rc;
	rb_assert_is(conn->tx_credits, >, 0);
	conn->tx_credits--;
	return 0;
}

void rvi_return_credits(struct rv_conn *conn)
{
	if (at_load(&conn->state) != RVI_UP || conn->to_return < conn->dev->credits / 2 ||
	    !conn->to_return)
		return;
	/* No slot or no buffer: the next completion of a send comes back here, or the timer. */
	rvi_post_frame(conn, RVI_FRAME_CREDITS, NULL, 0);
}

void rvi_send_done(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
		   struct rvi_sink *sink)
{
	uint32_t ci = rvi_index_conn(t.index), slot = rvi_index_slot(t.index);
	struct rv_conn *conn = rvi_conn_at(dev, ci);

	if (!conn || slot >= dev->nr_sends || conn->sends[slot].gen != t.gen || !(t.gen & 1))
		return;
	slot_free(conn, slot);
	if (wc->status != IBV_WC_SUCCESS) {
		rvi_conn_fail_wc(conn, wc->status);
		return;
	}
	say_rest(conn, sink);
}

/* Says WRITABLE if send() refused before and would not now. */
void rvi_writable(struct rv_conn *conn, struct rvi_sink *sink)
{
	if (!conn->want_write || !ibv_can_send(conn))
		return;
	conn->want_write = false;
	rvi_emit(sink, conn, RV_EV_WRITABLE, 0);
}
