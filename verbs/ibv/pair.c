/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue pair of a connection's READs. Messages, credits and the handshake have the queue pair
 * that rdma_cm knows. It gives no remote access, and never stands behind READs. READs have another
 * one. It serves remote READs and nothing else. A READ that is refused ends that one alone, and
 * messages go on.
 *
 * Both sides make it over the connection itself, and its frames are sealed by then. It needs no
 * handshake of rdma_cm: the path is that of the first. Pairs are numbered, from 1.
 *
 *   state     step                                    next state
 *   NONE      allow_reads                             MAKING
 *   MAKING    the helper has made it                  OFFERED, with the next number
 *   OFFERED   the peer's offer                        TYING
 *   TYING     the helper has tied it to the peer's    LINKED
 *   LINKED    the peer's ready                        READY
 *   READY     a READ fails, or the peer's next offer  LOST
 *   LOST      allow_reads                             MAKING
 *
 * OFFER names our queue pair, READY says that it serves. So no READ comes before the peer serves
 * it, and both offers of a pair come before either ready. A side leaves a pair only from READY. By
 * then the other side has linked its own. So a frame fits at one place only. Any other frame is a
 * fault of the peer's, and ends the connection. Both sides may leave a pair at once: their offers
 * for the next cross, and that changes nothing.
 *
 * At most two of a side's frames are on their way at once. These are the READY of a pair, and the
 * OFFER of the next. The peer has seen the OFFER before when its READY comes.
 *
 * A peer that does not do its part in time loses the connection, and the session tries another.
 * For the first pair it has FIRST_NS, since its program may make progress only now and then. A peer
 * that is silent meanwhile makes none: it has until it sends messages again.
 *
 * The end of a pair is a fence of its own. Before it is destroyed the core has stopped its threads
 * (READS_DOWN, allow_reads). The helper destroys it, and makes the next one's queue pair. Only then
 * its READs are reported, and the next is offered. So memory that a READ may still write is never
 * given to another READ. The helper makes the first one while the connection is made.
 */
#include "base/random.h"
#include "ibv.h"
#include "status.h"

#define FIRST_NS (30 * NSEC_PER_SEC)
#define LOOKS 8 /* looks at READs in the time that the tries of one may take */
#define LEAST_LOOKS 4u /* this side may have stood still meanwhile, with READs that are over */
#define LOOK_CONNS 16u /* connections of a poll: the lock is held */
#define NR_MAX (1u << 24) /* queue pairs and packets have numbers of 24 bits */

/*
 * Gives the peer time for its next step. Its program may not have seen the first pair yet: the time
 * for that begins when it is heard.
 */
static void give_time(struct rv_conn *conn)
{
	const struct rvi_pair *pair = &conn->pair;

	if (pair->number > 1)
		rvi_conn_deadline(conn, now_ns() + conn->dev->connect_ns);
	else if (pair->state == RVI_PAIR_LINKED || pair->heard_at)
		rvi_conn_deadline(conn, now_ns() + FIRST_NS);
}

static void say_offer(struct rv_conn *conn)
{
	struct rvi_pair *pair = &conn->pair;
	uint8_t body[RVI_OFFER_BYTES];

	put_le32(body, pair->number);
	put_le32(body + 4, conn->reads_qp->qp_num);
	put_le32(body + 8, pair->psn);
	pair->say_offer = rvi_post_frame(conn, RVI_FRAME_OFFER, body, sizeof(body)) != 0;
	if (!pair->say_offer && !pair->peer_qpn)
		give_time(conn);
}

static void say_ready(struct rv_conn *conn)
{
	uint8_t body[RVI_READY_BYTES];

	put_le32(body, conn->pair.number);
	conn->pair.say_ready = rvi_post_frame(conn, RVI_FRAME_READY, body, sizeof(body)) != 0;
	if (!conn->pair.say_ready && !conn->pair.peer_ready)
		give_time(conn);
}

void rvi_pair_say(struct rv_conn *conn)
{
	if (likely(!conn->pair.say_offer && !conn->pair.say_ready))
		return;
	/* The order counts. A frame that finds no room comes here again when a send is over, or by
	 * the timer. */
	if (conn->pair.say_offer && rvi_state(conn) == RVI_UP)
		say_offer(conn);
	if (conn->pair.say_ready && !conn->pair.say_offer && rvi_state(conn) == RVI_UP)
		say_ready(conn);
}

static void leave_pair(struct rv_conn *conn, enum rvi_pair_state state)
{
	conn->pair.state = state;
	list_add_tail(&conn->dev->pairs, &conn->pairs);
}

/* Has ours tied to the peer's. */
static void tie_pair(struct rv_conn *conn)
{
	rb_assert(conn->pair.state == RVI_PAIR_OFFERED && conn->pair.peer_qpn);
	leave_pair(conn, RVI_PAIR_TYING);
	rvi_tie_reads(conn);
}

/* Offers ours, which is made. */
static void offer_pair(struct rv_conn *conn)
{
	struct rvi_pair *pair = &conn->pair;

	pair->number++;
	pair->psn = (uint32_t)rb_random64() & (NR_MAX - 1);
	pair->state = RVI_PAIR_OFFERED;
	pair->say_offer = true;
	rvi_pair_say(conn);
	if (rvi_state(conn) != RVI_UP)
		return;
	if (pair->peer_qpn)
		tie_pair(conn);
}

void rvi_pair_allow(struct rv_conn *conn)
{
	struct rvi_pair *pair = &conn->pair;

	rb_assert(rvi_state(conn) == RVI_UP && conn->reads_allowed);
	if (pair->state == RVI_PAIR_NONE) {
		leave_pair(conn, RVI_PAIR_MAKING);
		rvi_news(conn->dev); /* the helper may be done already */
	} else if (pair->state == RVI_PAIR_LOST) {
		conn->report_slot = 0;
		at_store(&conn->kicked, 0); /* meant the pair that was lost; no thread posts */
		leave_pair(conn, RVI_PAIR_MAKING);
		rvi_make_reads(conn);
	}
}

/* Says that READs may be posted. */
static void open_pair(struct rv_conn *conn, struct rvi_sink *sink)
{
	conn->pair.state = RVI_PAIR_READY;
	conn->pair.still_looks = 0;
	rvi_conn_deadline(conn, 0);
	/* Pairs with rvi_post_reads. */
	at_store_rel(&conn->reads_open, 1);
	rvi_emit(sink, conn, RV_EV_READS_UP, 0);
}

void rvi_pair_said(struct rv_conn *conn, struct rvi_sink *sink)
{
	struct rvi_pair *pair = &conn->pair;

	if (likely(!pair->peer_ready) || pair->state != RVI_PAIR_LINKED || pair->say_ready ||
	    rvi_state(conn) != RVI_UP)
		return;
	pair->peer_ready = false;
	open_pair(conn, sink);
}

/* Tells the peer that ours is tied. */
static void tied(struct rv_conn *conn, struct rvi_sink *sink)
{
	struct rvi_pair *pair = &conn->pair;

	pair->state = RVI_PAIR_LINKED;
	pair->peer_qpn = 0; /* the next offer is for the next pair */
	pair->say_ready = true;
	rvi_pair_say(conn);
	if (rvi_state(conn) != RVI_UP)
		return;
	rvi_pair_said(conn, sink);
}

/* Goes on with a pair that the helper was at. Returns false if the sink has no room. */
static bool pair_goes_on(struct rv_conn *conn, struct rvi_sink *sink)
{
	int done = at_load_acq(&conn->pair.done);
	bool made = conn->pair.state == RVI_PAIR_MAKING;

	rb_assert(rvi_state(conn) == RVI_UP);
	if (!done)
		return true;
	if (done < 0) {
		rvi_conn_down(conn, done, -1);
		return true;
	}
	if (made)
		rvi_sent_drain(conn->dev);
	if ((made && !rvi_reads_report(conn, sink)) || sink->n >= sink->max)
		return false;
	list_del(&conn->pairs);
	if (made)
		offer_pair(conn);
	else
		tied(conn, sink);
	return true;
}

void rvi_pairs_go_on(struct rv_dev *dev, struct rvi_sink *sink)
{
	struct list *l, *next;

	list_for_each_safe(l, next, &dev->pairs)
	{
		if (!pair_goes_on(container_of(l, struct rv_conn, pairs), sink))
			rvi_news(dev);
	}
}

static void lose_pair(struct rv_conn *conn, int status, struct rvi_sink *sink)
{
	struct rvi_pair *pair = &conn->pair;

	rb_assert(pair->state == RVI_PAIR_READY && !pair->say_offer && !pair->say_ready);
	pair->state = RVI_PAIR_LOST;
	at_store_rel(&conn->reads_open, 0);
	rvi_emit(sink, conn, RV_EV_READS_DOWN, status);
}

void rvi_pair_failed(struct rv_conn *conn, int wc_status, struct rvi_sink *sink)
{
	int status = rvi_wc_errno(wc_status);
	/* An error of the request itself, or its consequence. All else is about the path, and the
	 * messages share that. */
	bool alone = status == -EACCES || status == -EFAULT || wc_status == IBV_WC_WR_FLUSH_ERR;

	if (rvi_state(conn) == RVI_UP && conn->pair.state != RVI_PAIR_READY)
		return; /* the pair is lost already, perhaps because the peer left it */
	if (!alone || rvi_state(conn) != RVI_UP)
		rvi_conn_fail_wc(conn, wc_status);
	else
		lose_pair(conn, status, sink);
}

void rvi_pair_refused(struct rv_conn *conn, struct rvi_sink *sink)
{
	if (rvi_state(conn) == RVI_UP && conn->pair.state == RVI_PAIR_READY)
		lose_pair(conn, -ECONNRESET, sink);
}

/*
 * Ends a connection whose READs stand still for twice the time that all tries of one take. The
 * device should have told so by then. rxe 6.1 does not, where a link goes while it repeats a READ:
 * it repeats no other then.
 */
static void watch_pair(struct rv_conn *conn, int64_t now)
{
	struct rvi_pair *pair = &conn->pair;
	uint32_t ended;

	if (rvi_state(conn) != RVI_UP || pair->state != RVI_PAIR_READY ||
	    !rvi_reads_outstanding(conn, &ended)) {
		pair->still_looks = 0;
	} else if (!pair->still_looks || ended != pair->ended) {
		pair->still_looks = 1;
		pair->still_since = now;
		pair->ended = ended;
	} else if (++pair->still_looks >= LEAST_LOOKS &&
		   now - pair->still_since > 2 * conn->dev->patience_ns) {
		rvi_log(conn->dev, 2, "%s neither ends nor repeats READs: the connection ends",
			conn->dev->caps.device);
		rvi_conn_fail_wc(conn, IBV_WC_RETRY_EXC_ERR);
	}
}

void rvi_pairs_watch(struct rv_dev *dev)
{
	uint32_t nr = at_load(&dev->nr_conns), end = min_of(nr, dev->watch_next + LOOK_CONNS);
	int64_t now = now_ns();

	if (now < dev->watch_at)
		return;
	for (; dev->watch_next < end; dev->watch_next++)
		watch_pair(rvi_conn_at(dev, dev->watch_next), now);
	if (dev->watch_next < nr)
		return;
	dev->watch_next = 0;
	dev->watch_at = now + dev->patience_ns / LOOKS;
}

void rvi_pair_broke(struct rv_dev *dev, uint32_t qpn, struct rvi_sink *sink)
{
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++) {
		struct rv_conn *conn = rvi_conn_at(dev, i);

		/* A pair before READY is left alone: READs that meet the error tell it. */
		if (rvi_state(conn) == RVI_UP && conn->pair.state == RVI_PAIR_READY &&
		    conn->reads_qp->qp_num == qpn)
			lose_pair(conn, -EACCES, sink);
	}
}

/* Returns whether the pair is the connection's first, which the peer has to take part in. */
static bool is_first(const struct rvi_pair *pair)
{
	return pair->state == RVI_PAIR_MAKING ? !pair->number : pair->number == 1;
}

void rvi_pair_awake(struct rv_conn *conn)
{
	struct rvi_pair *pair = &conn->pair;

	if (likely(pair->state == RVI_PAIR_READY) || !is_first(pair))
		return;
	pair->heard_at = now_ns();
	if (!conn->deadline_ns && rvi_state(conn) == RVI_UP)
		rvi_conn_deadline(conn, pair->heard_at + FIRST_NS);
}

bool rvi_pair_overdue(const struct rv_conn *conn)
{
	const struct rvi_pair *pair = &conn->pair;

	/* This side has its turn, and its device or its room for frames is slow. */
	if (pair->state == RVI_PAIR_MAKING || pair->state == RVI_PAIR_TYING || pair->say_offer ||
	    pair->say_ready)
		return false;
	return !is_first(pair) || now_ns() - pair->heard_at < FIRST_NS / 2;
}

/* Takes an offer. Returns NULL, or the peer's fault in words. */
static const char *on_offer(struct rv_conn *conn, const uint8_t *body, struct rvi_sink *sink)
{
	uint32_t number = get_le32(body), qpn = get_le32(body + 4), psn = get_le32(body + 8);
	struct rvi_pair *pair = &conn->pair;
	bool is_mine = pair->state == RVI_PAIR_OFFERED;

	if (pair->state == RVI_PAIR_TYING || pair->state == RVI_PAIR_LINKED ||
	    number != pair->number + !is_mine)
		return "a queue pair for READs was offered out of its turn";
	if (pair->peer_qpn)
		return "a queue pair for READs was offered twice";
	if (qpn < 2 || qpn >= NR_MAX || psn >= NR_MAX)
		return "a queue pair for READs was offered that cannot be";
	pair->peer_qpn = qpn;
	pair->peer_psn = psn;
	if (is_mine)
		tie_pair(conn);
	else if (pair->state == RVI_PAIR_READY)
		lose_pair(conn, -ECONNRESET, sink);
	return NULL;
}

static const char *on_ready(struct rv_conn *conn, const uint8_t *body, struct rvi_sink *sink)
{
	struct rvi_pair *pair = &conn->pair;

	/* An offer that found no room yet cannot have made the peer ready. */
	if (get_le32(body) != pair->number || pair->peer_ready || pair->say_offer ||
	    (pair->state != RVI_PAIR_TYING && pair->state != RVI_PAIR_LINKED))
		return "a queue pair for READs was called ready out of its turn";
	/* Waits for our READY: the next pair's offer must come behind it. */
	pair->peer_ready = true;
	rvi_pair_said(conn, sink);
	return NULL;
}

void rvi_pair_frame(struct rv_conn *conn, const struct rvi_frame *f, const uint8_t *body,
		    struct rvi_sink *sink)
{
	const char *wrong;

	if (rvi_state(conn) != RVI_UP)
		return;
	wrong = f->type == RVI_FRAME_OFFER ? on_offer(conn, body, sink)
					   : on_ready(conn, body, sink);
	if (wrong)
		rvi_conn_protocol_error(conn, -EPROTO, wrong);
}
