/* SPDX-License-Identifier: Apache-2.0 */
/* A connection's life between the states of cm_table.h; how it ends, and the fence. */
#include <stdlib.h>

#include "ibv.h"
#include "status.h"

static struct rv_conn *conn_new(struct rv_dev *dev)
{
	struct rv_conn *c;

	if (at_load(&dev->nr_conns) >= dev->max_slots)
		return NULL;
	c = aligned_alloc(CACHE_LINE, sizeof(*c));
	if (!c)
		return NULL;
	memset(c, 0, sizeof(*c));
	c->sends = calloc(dev->nr_sends, sizeof(*c->sends));
	if (!c->sends) {
		free(c);
		return NULL;
	}
	c->dev = dev;
	c->index = at_load(&dev->nr_conns);
	list_init(&c->link);
	list_init(&c->end);
	list_init(&c->pairs);
	list_init(&c->unsaid);
	list_init(&c->end_task.node);
	list_init(&c->pair_task.node);
	c->end_task.conn = c->pair_task.conn = c;
	at_store(&dev->conns[c->index], c);
	at_store_rel(&dev->nr_conns, c->index + 1); /* Pairs with rvi_conn_at */
	return c;
}

/* Takes a connection. Returns 0 or -EDQUOT. Structs are used again, and their slot tables with
 * them: generations must never start over. */
int rvi_conn_alloc(struct rv_dev *dev, struct rv_conn **out)
{
	struct list *l = list_pop(&dev->free_conns);
	struct rv_conn *c = l ? container_of(l, struct rv_conn, link) : conn_new(dev);

	if (!c)
		return rv_fail(EDQUOT, "too many connections on %s (%u)", dev->caps.device,
			       at_load(&dev->nr_conns));
	rb_assert(rvi_state(c) == RVI_FREE && list_empty(&c->link) && list_empty(&c->end));
	rb_assert(!at_load(&c->reads_open) && !c->reads_qp && list_empty(&c->pairs));
	rb_assert(!c->active && !c->nr_held && !c->nr_sending && !c->deadline_ns && !c->half_open);
	rb_assert(rvi_conn_at(dev, c->index) == c);
	c->epoch++;
	c->id = NULL;
	c->qp = NULL;
	memset(&c->pair, 0, sizeof(c->pair));
	at_store(&c->user, NULL);
	at_store(&c->kicked, 0);
	c->tx_credits = 0;
	c->rx_window = rvi_class_credits(dev->credit_class);
	c->to_return = dev->credits - c->rx_window;
	c->nr_held = 0;
	c->tx_seq = c->rx_seq = 0;
	c->sealed = false;
	c->want_write = c->active = c->half_open = c->cm_used = c->reads_allowed = c->deliver =
		c->end_by_flush = c->stops = c->destroys = false;
	at_store(&c->stage, RVI_QP_LIVE);
	c->responder = dev->max_responder;
	c->initiator = dev->max_initiator;
	c->deadline_ns = 0;
	c->dead = 0;
	c->data_len = 0;
	memset(&c->peer, 0, sizeof(c->peer));
	rvi_sends_init(c);
	rvi_assert_credits(c);
	*out = c;
	return 0;
}

void rvi_conn_release(struct rv_conn *conn)
{
	rb_assert(!conn->qp && !conn->id && list_empty(&conn->end));
	at_store(&conn->state, RVI_FREE);
	list_del(&conn->link);
	list_add_tail(&conn->dev->free_conns, &conn->link);
}

void rvi_conn_deadline(struct rv_conn *conn, int64_t at_ns)
{
	struct rv_dev *dev = conn->dev;

	if (conn->deadline_ns == at_ns)
		return;
	rb_assert_if(conn->deadline_ns, dev->nr_timed);
	rb_assert_is(dev->nr_timed, <=, at_load(&dev->nr_conns));
	dev->nr_timed += !!at_ns;
	dev->nr_timed -= !!conn->deadline_ns;
	conn->deadline_ns = at_ns;
	rvi_wake_timer(dev);
}

static void not_half_open(struct rv_conn *conn)
{
	rb_assert_if(conn->half_open, conn->dev->nr_half_open);
	if (conn->half_open)
		conn->dev->nr_half_open--;
	conn->half_open = false;
}

/* Completes the handshake. */
void rvi_conn_up(struct rv_conn *conn)
{
	rb_assert(rvi_state(conn) == RVI_CONNECTING || rvi_state(conn) == RVI_ACCEPTING);
	rb_assert(conn->qp && conn->active && rvi_qpn_find(conn->dev, conn->qpn) == conn);
	rvi_conn_deadline(conn, 0);
	not_half_open(conn);
	conn->data_len = 0;
	at_store_rel(&conn->state, RVI_UP);
	rvi_return_credits(conn);
	if (conn->reads_allowed)
		rvi_pair_allow(conn);
}

/*
 * Ends the connection: stops the queue pair, and keeps the first cause. The cause is reported after
 * all that arrived before it. wc_status -1: no completion is behind it. A flush is a consequence,
 * so a real cause takes its place while it waits to be reported.
 */
void rvi_conn_down(struct rv_conn *conn, int status, int wc_status)
{
	bool flush = wc_status == IBV_WC_WR_FLUSH_ERR;
	struct rv_dev *dev = conn->dev;

	switch (rvi_state(conn)) {
	case RVI_UP:
		conn->end_type = RV_EV_DISCONNECTED;
		break;
	case RVI_ADDR:
	case RVI_ROUTE:
	case RVI_CONNECTING:
	case RVI_ACCEPTING:
		conn->end_type = RV_EV_FAILED;
		break;
	case RVI_REQUESTED:
		/* Not the core's connection yet: it will hear when it accepts. */
		if (!conn->dead)
			conn->dead = status;
		rvi_conn_deadline(conn, 0);
		return;
	case RVI_DOWN:
		if (conn->end_by_flush && !flush && !list_empty(&conn->end)) {
			conn->end_status = status;
			conn->end_wc = wc_status;
			conn->end_by_flush = false;
		}
		return;
	default:
		return;
	}
	rb_assert_with(status < 0, "%d", status);
	rb_assert(list_empty(&conn->end)); /* an end is reported once */
	at_store_rel(&conn->state, RVI_DOWN);
	at_store(&conn->reads_open, 0);
	list_del(&conn->pairs);
	list_del(&conn->unsaid);
	conn->deliver = true;
	conn->end_status = status;
	conn->end_wc = flush ? -1 : wc_status;
	conn->end_by_flush = flush;
	conn->end_taken = dev->taken + dev->stash_max; /* the queue holds no more */
	list_add_tail(&dev->ends, &conn->end);
	rvi_conn_deadline(conn, 0);
	not_half_open(conn);
	/* Else our READs would go on retrying against a peer that left. */
	rvi_stop(conn);
}

/* A completion failed. */
void rvi_conn_fail_wc(struct rv_conn *conn, int wc_status)
{
	rvi_conn_down(conn, rvi_wc_errno(wc_status), wc_status);
}

void rvi_conn_protocol_error(struct rv_conn *conn, int status, const char *what)
{
	char peer[64];

	rvi_addr_text(&conn->peer, peer, sizeof(peer));
	rvi_log(conn->dev, 1, "%s: connection with %s ended: %s", conn->dev->caps.device, peer,
		what);
	rvi_conn_down(conn, status, -1);
	conn->deliver = false;
}

int rvi_seal(struct rv_conn *conn, const uint8_t out[RV_SEAL_KEY_BYTES],
	     const uint8_t in[RV_SEAL_KEY_BYTES])
{
	if (conn->rx_seq)
		return rv_fail(EBADMSG, "a message came before the connection's keys were known");
	conn->sealed = true;
	rvi_seal_init(&conn->tx_seal, out);
	rvi_seal_init(&conn->rx_seal, in);
	return 0;
}

int rvi_allow_reads(struct rv_conn *conn)
{
	switch (rvi_state(conn)) {
	case RVI_REQUESTED: /* takes effect when it is up */
	case RVI_ACCEPTING:
		conn->reads_allowed = true;
		return 0;
	case RVI_UP:
		conn->reads_allowed = true;
		rvi_pair_allow(conn);
		return 0;
	default:
		return rv_fail(ENOTCONN, "reads cannot be allowed: the connection is not up");
	}
}

/*
 * Begins the fence. The helper goes on, in this order. Nothing new is served or written (ERR), and
 * the peer is told. Nothing old is served any more (destroy). Both queue pairs go, and the one for
 * READs goes first. The polls that follow report the READs that the ledger has, and the end.
 */
bool rvi_close_conn(struct rv_conn *conn)
{
	struct rv_dev *dev;

	if (!conn || rvi_state(conn) == RVI_FREE || rvi_state(conn) == RVI_CLOSED)
		return false;
	dev = conn->dev;
	at_store_rel(&conn->state, RVI_CLOSED);
	rvi_conn_deadline(conn, 0);
	not_half_open(conn);
	at_store(&conn->reads_open, 0);
	list_del(&conn->end);
	list_del(&conn->pairs);
	list_del(&conn->unsaid);
	rvi_spill_purge(conn);
	explicit_bzero(&conn->tx_seal, sizeof(conn->tx_seal));
	explicit_bzero(&conn->rx_seal, sizeof(conn->rx_seal));
	rb_assert_is(dev->nr_held_live, >=, conn->nr_held);
	dev->nr_held_live -= conn->nr_held;
	conn->nr_held = 0;
	conn->epoch++;
	conn->report_slot = 0;
	if (conn->qp) {
		dev->nr_closing++;
		list_add_tail(&dev->closed, &conn->link);
		rvi_stop(conn);
		rvi_news(dev); /* the queue pair may have stopped before */
		return true;
	}
	rb_assert(!conn->active && !conn->nr_sending);
	rb_assert(!rvi_reads_outstanding(conn, &(uint32_t){ 0 }));
	if (conn->id)
		rvi_reap(dev, conn->id);
	conn->id = NULL;
	rvi_conn_release(conn);
	return false;
}
