/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions to events. The order within one poll: first events that an earlier poll had no room
 * for. Then connection events (if asked); completions; the ends of connections. The ends come only
 * when the queue of messages was found empty. So a message that came before its sender left is
 * delivered before the news that it left. The send queues' completions come from sent.c.
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
		.user = conn ? at_load(&conn->user) : NULL,
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

/* Polls as ibv_poll_cq does, which may say only once that the queue is broken. [any] */
int rvi_poll_cq(struct rv_dev *dev, struct ibv_cq *cq, int max, struct ibv_wc *wc)
{
	int n = ibv_poll_cq(cq, max, wc);

	if (unlikely(n < 0))
		at_store(&dev->cq_broken, true);
	return n;
}

/* Takes one batch of messages. Returns true if there may be more. */
static bool batch(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct ibv_wc wc[RVI_BATCH];
	int want = (int)min_of(sink->max - sink->n, (unsigned)RVI_BATCH);
	int n = want ? rvi_poll_cq(dev, dev->recv_cq, want, wc) : 0;

	dev->taken += (unsigned)max_of(n, 0);
	for (int i = 0; i < n; i++)
		completed(dev, &wc[i], sink);
	return n == want;
}

/* Takes what was taken out of the queues before. Returns true if nothing is left of it. */
static bool taken_before(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct ibv_wc wc;

	rb_assert_with(dev->stash_head <= dev->stash_tail && dev->stash_tail <= dev->stash_max,
		       "%u..%u of %u", dev->stash_head, dev->stash_tail, dev->stash_max);
	while (unlikely(dev->stash_head < dev->stash_tail)) {
		if (sink->n >= sink->max)
			return false;
		completed(dev, &dev->stash[dev->stash_head++], sink);
	}
	while (sink->n < sink->max) {
		if (!rvi_sent_next(dev, &wc))
			return true;
		completed(dev, &wc, sink);
	}
	return false;
}

/* Takes completions. Returns true if nothing is left. */
static bool completions(struct rv_dev *dev, struct rvi_sink *sink)
{
	bool full;

	if (!taken_before(dev, sink))
		return false;
	do {
		full = batch(dev, sink);
		if (unlikely(at_load(&dev->cq_broken))) {
			rvi_lost(dev, sink, "a completion queue of the RDMA device is broken");
			return true;
		}
		/* Completions may make no event: without a look
		 * behind them a sleeper would miss what is there. */
	} while (full && sink->n < sink->max);
	return !full;
}

/*
 * Reports ends of connections, behind the messages that came before. all: nothing is left in the
 * queues. Else those whose messages have all been taken by now: a flood may keep the queues full.
 */
static void report_ends(struct rv_dev *dev, bool all, struct rvi_sink *sink)
{
	while (!list_empty(&dev->ends) && sink->n < sink->max) {
		struct rv_conn *conn = container_of(dev->ends.next, struct rv_conn, end);
		struct rv_event *e;

		if (!all && (dev->taken < conn->end_taken || dev->stash_head < dev->stash_tail))
			return;
		list_del(&conn->end);
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

/* Goes on with a queue pair that has stopped: nothing new arrives for it. */
static void stopped(struct rv_conn *conn)
{
	rvi_drain_for(conn);
	rvi_reap(conn->dev, conn->id);
	conn->id = NULL;
	rvi_destroy(conn);
}

/* Reports the end of a connection whose queue pair is gone. Returns false if the sink is full. */
static bool report_gone(struct rv_conn *conn, struct rvi_sink *sink)
{
	if (conn->qp)
		rvi_qp_gone(conn);
	if (!rvi_reads_report(conn, sink) || sink->n >= sink->max)
		return false;
	rb_assert(!rvi_reads_outstanding(conn, &(uint32_t){ 0 }));
	rvi_emit(sink, conn, RV_EV_CLOSED, 0);
	rvi_conn_release(conn);
	return true;
}

/*
 * Reports the end of a connection whose queue pair cannot be destroyed. Its READs stay unreported.
 * Returns false if the sink is full.
 */
static bool report_stuck(struct rv_conn *conn, struct rvi_sink *sink)
{
	if (sink->n >= sink->max)
		return false;
	list_del(&conn->link); /* keeps the struct out of all lists: it is not used again */
	rvi_emit(sink, conn, RV_EV_CLOSED, -EBUSY);
	return true;
}

/* Takes closed connections as far as the helper has come with them. */
static void closed_go_on(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct list *l, *next;

	at_xchg_sc(&dev->helper.news, 0);
	list_for_each_safe(l, next, &dev->closed)
	{
		struct rv_conn *conn = container_of(l, struct rv_conn, link);
		int stage = at_load_acq(&conn->stage);

		rb_assert_is(rvi_state(conn), ==, RVI_CLOSED);
		if (stage == RVI_QP_STOPPED && !conn->destroys)
			stopped(conn);
		else if ((stage == RVI_QP_GONE && !report_gone(conn, sink)) ||
			 (stage == RVI_QP_STUCK && !report_stuck(conn, sink)))
			at_store_sc(&dev->helper.news, 1);
	}
}

/*
 * Ends the queue pairs for READs whose posts the device refused. Messages go on. Some drivers take
 * no post to a queue pair in error, and a refused key may have brought that about.
 */
static void attend(struct rv_dev *dev, struct rvi_sink *sink)
{
	if (likely(!at_xchg_acq(&dev->attention, 0)))
		return;
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++) {
		struct rv_conn *conn = rvi_conn_at(dev, i);

		if (likely(!at_load(&conn->kicked)))
			continue;
		if (sink->n >= sink->max) {
			at_store_rel(&dev->attention, 1); /* the rest is for the next poll */
			at_store_sc(&dev->helper.news, 1);
			return;
		}
		if (at_xchg_acq(&conn->kicked, 0))
			rvi_pair_refused(conn, sink);
	}
}

static void helper_told(struct rv_dev *dev, struct rvi_sink *sink)
{
	closed_go_on(dev, sink);
	rvi_pairs_go_on(dev, sink);
}

/* Goes on with what the helper, a poster or the timer told. all: nothing is left in the queues. */
static void take_news(struct rv_dev *dev, bool all, struct rvi_sink *sink)
{
	helper_told(dev, sink);
	/* Comes behind completions, which may tell that the peer is dead. It comes behind the
	 * exchange of the news, too: they are told later than the attention. */
	attend(dev, sink);
	rvi_timer_due(dev, all, sink);
	if (all)
		report_ends(dev, true, sink);
}

/* Tells whether the device is gone, and everything of it was reported. */
static inline bool all_reported(const struct rv_dev *dev, const struct rvi_sink *sink)
{
	return dev->lost && !sink->n && list_empty(&dev->ends) && list_empty(&dev->closed);
}

int rvi_poll(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags)
{
	struct rvi_sink sink = { .dev = dev, .ev = ev, .max = max };
	bool all, news = false;

	if (unlikely(dev->spill_tail))
		unspill(&sink);
	if (flags & RV_POLL_SLOW) {
		/* Come first, too: a flood leaves no room in the sink. */
		report_ends(dev, false, &sink);
		rvi_slow(dev, &sink);
		news = at_load(&dev->helper.news);
		if (news)
			helper_told(dev, &sink);
	}
	all = completions(dev, &sink);
	if (flags & RV_POLL_SLOW)
		rvi_pairs_watch(dev);
	if (all && unlikely(!list_empty(&dev->ends)))
		report_ends(dev, true, &sink);
	if (unlikely(news || at_load(&dev->helper.news)))
		take_news(dev, all, &sink);
	if (unlikely(all_reported(dev, &sink)))
		return rv_fail(ENODEV, "%s is gone", dev->caps.device);
	rb_assert_is(sink.n, <=, max);
	return (int)sink.n;
}

/* Drops a message of the connection that is being closed. Returns false if it is another's. */
static bool drop_message(struct rv_conn *conn, const struct ibv_wc *wc)
{
	if (wc->qp_num != conn->qpn)
		return false;
	rvi_recv_drop(conn->dev, rvi_token_unpack(wc->wr_id));
	return true;
}

/*
 * Empties the queue of messages for a queue pair that ends. So no message stays behind to be
 * mistaken for one of a later queue pair of the same number. Other connections' messages wait in
 * the stash. The send queues need no such care: their tokens tell one use of a connection from the
 * next.
 */
void rvi_drain_for(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct ibv_wc wc[RVI_BATCH];
	uint32_t kept = 0;
	int n;

	rb_assert_is(dev->stash_head, <=, dev->stash_tail);
	for (uint32_t i = dev->stash_head; i < dev->stash_tail; i++)
		if (!drop_message(conn, &dev->stash[i]))
			dev->stash[kept++] = dev->stash[i];
	dev->stash_head = 0;
	dev->stash_tail = kept;
	do {
		n = rvi_poll_cq(dev, dev->recv_cq, RVI_BATCH, wc);
		for (int i = 0; i < n; i++) {
			if (drop_message(conn, &wc[i]))
				continue;
			/* This cannot overflow: all in the stash is still
			 * under way, and the queue holds all that can be. */
			rb_require(dev->stash_tail < dev->stash_max);
			dev->stash[dev->stash_tail++] = wc[i];
		}
	} while (n == RVI_BATCH);
}
