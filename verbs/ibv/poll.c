/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions to events. The order within one poll: first events that an earlier poll had no room
 * for. Then connection events (if asked); completions; the ends of connections. The ends come only
 * when both queues were found empty. So a message that came before its sender left is delivered
 * before the news that it left.
 */

#include "ibv.h"

/* Appends an event. The callers keep room: a completion makes
 * at most three events, and a batch is bounded. */
struct rv_event *rvi_emit(struct rvi_sink *sink, struct rv_conn *conn, enum rv_event_type type,
			  int status)
{
	struct rv_event *e;

	if (likely(sink->n < sink->max)) {
		e = &sink->ev[sink->n++];
	} else {
		rb_require(sink->dev->spill_tail < RVI_SPILL_MAX);
		e = &sink->dev->spill[sink->dev->spill_tail++];
	}
	*e = (struct rv_event){
		.type = type,
		.status = status,
		.wc_status = -1,
		.conn = conn,
		.user = conn ? conn->user : NULL,
	};
	return e;
}

static void unspill(struct rvi_sink *sink)
{
	struct rv_dev *dev = sink->dev;

	rb_assert_with(dev->spill_head <= dev->spill_tail && dev->spill_tail <= RVI_SPILL_MAX,
		       "%u..%u", dev->spill_head, dev->spill_tail);
	while (dev->spill_head < dev->spill_tail && sink->n < sink->max)
		sink->ev[sink->n++] = dev->spill[dev->spill_head++];
	if (dev->spill_head == dev->spill_tail)
		dev->spill_head = dev->spill_tail = 0;
}

/* Drops the events of a closed connection. It reports nothing but its READs. */
void rvi_spill_purge(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	uint32_t kept = dev->spill_head;

	for (uint32_t i = dev->spill_head; i < dev->spill_tail; i++) {
		struct rv_event *e = &dev->spill[i];

		if (e->conn != conn || e->type == RV_EV_READ)
			dev->spill[kept++] = *e;
		else if (e->type == RV_EV_RECV)
			rvi_recv_done(dev, e->token);
	}
	dev->spill_tail = kept;
}

static void completed(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_sink *sink)
{
	struct rvi_token t = rvi_token_unpack(wc->wr_id);

	switch (t.kind) {
	case RVI_READ:
		rvi_read_done(dev, wc, t, sink);
		break;
	case RVI_SEND:
		rvi_send_done(dev, wc, t, sink);
		break;
	case RVI_RECV:
		rvi_recv_completed(dev, wc, t, sink);
		break;
	default:
		break;
	}
}

/* Polls as ibv_poll_cq does, which may say only once that the queue is broken. */
static int poll_cq(struct rv_dev *dev, struct ibv_cq *cq, int max, struct ibv_wc *wc)
{
	int n = ibv_poll_cq(cq, max, wc);

	if (unlikely(n < 0))
		dev->cq_broken = true;
	return n;
}

/* Takes one batch of one queue; *full: there may be more. */
static void batch(struct rv_dev *dev, struct ibv_cq *cq, struct rvi_sink *sink, bool *full)
{
	struct ibv_wc wc[RVI_BATCH];
	int want = (int)min_of(sink->max - sink->n, (unsigned)RVI_BATCH);
	int n = want ? poll_cq(dev, cq, want, wc) : 0;

	for (int i = 0; i < n; i++)
		completed(dev, &wc[i], sink);
	*full |= n == want;
}

/* Takes completions. Returns true if nothing is left. */
static bool completions(struct rv_dev *dev, struct rvi_sink *sink)
{
	bool full;

	rb_assert_with(dev->stash_head <= dev->stash_tail && dev->stash_tail <= dev->stash_max,
		       "%u..%u of %u", dev->stash_head, dev->stash_tail, dev->stash_max);
	while (unlikely(dev->stash_head < dev->stash_tail)) {
		if (sink->n >= sink->max)
			return false;
		completed(dev, &dev->stash[dev->stash_head++], sink);
	}
	do {
		full = false;
		batch(dev, dev->send_cq, sink, &full);
		batch(dev, dev->recv_cq, sink, &full);
		if (unlikely(dev->cq_broken)) {
			rvi_lost(dev, sink, "a completion queue of the RDMA device is broken");
			return true;
		}
		/* Completions may make no event: without a look
		 * behind them a sleeper would miss what is there. */
	} while (full && sink->n < sink->max);
	return !full;
}

static void report_ends(struct rv_dev *dev, struct rvi_sink *sink)
{
	while (sink->n < sink->max) {
		struct list *l = list_pop(&dev->ends);
		struct rv_conn *conn;
		struct rv_event *e;

		if (!l)
			return;
		conn = container_of(l, struct rv_conn, end);
		rb_assert_is(rvi_state(conn), ==, RVI_DOWN);
		rb_assert(conn->end_type == RV_EV_FAILED || conn->end_type == RV_EV_DISCONNECTED);
		rb_assert_is(conn->end_status, <, 0);
		conn->deliver = false;
		e = rvi_emit(sink, conn, conn->end_type, conn->end_status);
		e->wc_status = conn->end_wc;
		if (conn->end_type == RV_EV_FAILED && conn->data_len) {
			e->data = conn->data;
			e->len = conn->data_len;
		}
	}
}

static void report_closed(struct rv_dev *dev, struct rvi_sink *sink)
{
	while (!list_empty(&dev->closed)) {
		struct rv_conn *conn = container_of(dev->closed.next, struct rv_conn, link);

		rb_assert_is(rvi_state(conn), ==, RVI_CLOSED);
		if (!rvi_reads_report(conn, sink))
			return;
		rb_assert(!rvi_reads_outstanding(conn));
		rvi_conn_release(conn);
	}
}

/* Ends the connections whose doorbell the device refused in
 * post_reads: they are as good as failed. */
static void attend(struct rv_dev *dev)
{
	at_xchg_acq(&dev->attention, 0);
	for (uint32_t i = 0; i < dev->nr_conns; i++)
		if (at_xchg_acq(&dev->conns[i]->kicked, 0))
			rvi_conn_down(dev->conns[i], -EIO, -1);
}

/* Tells whether the device is gone, and everything of it was reported. */
static inline bool all_reported(const struct rv_dev *dev, const struct rvi_sink *sink)
{
	return dev->lost && !sink->n && list_empty(&dev->ends) && list_empty(&dev->closed);
}

int rvi_poll(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags)
{
	struct rvi_sink sink = { .dev = dev, .ev = ev, .max = max };

	if (unlikely(dev->spill_tail))
		unspill(&sink);
	if (unlikely(at_load(&dev->attention)))
		attend(dev);
	if (flags & RV_POLL_SLOW)
		rvi_slow(dev, &sink);
	if (completions(dev, &sink) && unlikely(!list_empty(&dev->ends)))
		report_ends(dev, &sink);
	if (unlikely(!list_empty(&dev->closed)))
		report_closed(dev, &sink);
	if (unlikely(all_reported(dev, &sink)))
		return rv_fail(ENODEV, "%s is gone", dev->caps.device);
	rb_assert_is(sink.n, <=, max);
	return (int)sink.n;
}

/* Takes a READ's completion. All else that it finds is kept for poll. */
bool rvi_next_read(struct rv_dev *dev, uint64_t *cookie, void **user)
{
	struct rvi_token t;
	struct rv_conn *conn;
	struct ibv_wc wc;

	/* Earlier completions have their turn first. */
	if (unlikely(dev->spill_tail || dev->stash_head != dev->stash_tail) ||
	    poll_cq(dev, dev->send_cq, 1, &wc) != 1)
		return false;
	t = rvi_token_unpack(wc.wr_id);
	if (unlikely(t.kind != RVI_READ || wc.status != IBV_WC_SUCCESS)) {
		dev->stash[0] = wc;
		dev->stash_head = 0;
		dev->stash_tail = 1;
		return false;
	}
	conn = rvi_read_finished(dev, t, cookie);
	if (likely(conn != NULL))
		*user = conn->user;
	return conn;
}

/* Drops a completion of the connection that is being closed: the ledger reports its READs. */
static bool drop_completion(struct rv_conn *conn, const struct ibv_wc *wc)
{
	struct rvi_token t = rvi_token_unpack(wc->wr_id);

	if (t.kind == RVI_READ || t.kind == RVI_SEND)
		return rvi_index_conn(t.index) == conn->index;
	if (wc->qp_num != conn->qpn)
		return false;
	rvi_recv_drop(conn->dev, t);
	return true;
}

static void drain_queue(struct rv_conn *conn, struct ibv_cq *cq)
{
	struct rv_dev *dev = conn->dev;
	struct ibv_wc wc[RVI_BATCH];
	int n;

	do {
		n = poll_cq(dev, cq, RVI_BATCH, wc);
		for (int i = 0; i < n; i++) {
			if (drop_completion(conn, &wc[i]))
				continue;
			/* This cannot overflow: all in the stash is still
			 * under way, and both queues hold all that can be. */
			rb_require(dev->stash_tail < dev->stash_max);
			dev->stash[dev->stash_tail++] = wc[i];
		}
	} while (n == RVI_BATCH);
}

/*
 * Empties the queues for a queue pair that ends. So no completion stays behind to be mistaken for
 * one of a later queue pair of the same number. Nor does one count against the queues' size. Other
 * connections' completions wait in the stash.
 */
void rvi_drain_for(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	uint32_t kept = 0;

	rb_assert_is(dev->stash_head, <=, dev->stash_tail);
	for (uint32_t i = dev->stash_head; i < dev->stash_tail; i++)
		if (!drop_completion(conn, &dev->stash[i]))
			dev->stash[kept++] = dev->stash[i];
	dev->stash_head = 0;
	dev->stash_tail = kept;
	drain_queue(conn, dev->send_cq);
	drain_queue(conn, dev->recv_cq);
}
