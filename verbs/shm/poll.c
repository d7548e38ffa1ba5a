/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress: events of all that happened.
 *
 * The cheap part looks at one word per connection that is up, the place of its next message. It
 * also looks at the list of connections that need attention. RV_POLL_SLOW adds one epoll_wait for
 * sockets, the listener and deadlines.
 *
 * Order within a connection: REQUEST or CONNECTED, messages, DISCONNECTED. A hang-up is seen on the
 * socket, and only then is the ring looked at for the last time. So all messages that the peer sent
 * before it died are delivered first.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "shm.h"

#define EPOLL_BATCH 32
#define EPOLL_ROUNDS 4 /* rounds in a turn; epoll goes on with the others in the next turn */
#define RING_BATCH 16 /* messages of one connection before the next one's turn */

/* Tells whether there was something to wake this side for. */
static bool wake_had_reason(const struct rv_conn *conn)
{
	return conn->rx.post_pos != conn->wake_pos || rvs_ring_ready(&conn->rx) ||
	       (conn->attn_why & RVS_A_STALLED) ||
	       at_load(&conn->peer_page->revoked) != conn->seen_revoked;
}

/*
 * Takes the packets of an established connection. A peer may send more than is good for others.
 * Past the limit its socket is left alone until the window ends. Messages in its ring are still
 * seen meanwhile.
 */
static int take_packets(struct rv_conn *conn, bool hup, bool *eof)
{
	struct rvs_taken got;
	int64_t now = now_ns();
	int rc;

	if (now - conn->window_at >= RVS_WINDOW_NS) {
		conn->window_at = now;
		conn->window_packets = 0;
	}
	/* A peer that hung up sends no more: these packets are the last. */
	rc = rvs_drain(conn,
		       hup ? UINT32_MAX
			   : RVS_WINDOW_PACKETS - min_of(conn->window_packets, RVS_WINDOW_PACKETS),
		       &got);
	*eof = got.eof;
	if (got.wakes) {
		rb_assert_is(got.packets, >=, got.wakes);
		got.packets -= wake_had_reason(conn);
		rvs_wake_taken(conn->dev);
		conn->wake_pos = conn->rx.post_pos;
	}
	if (got.again)
		rvs_tell_one(conn, got.again);
	conn->window_packets += got.packets;
	if (!rc && !*eof && !hup && conn->window_packets >= RVS_WINDOW_PACKETS)
		rvs_mute(conn, true);
	return rc;
}

static void on_socket(struct rv_conn *conn, uint32_t events)
{
	bool eof = false;
	int rc;

	if (events & EPOLLOUT)
		rvs_tell_more(conn);
	if (!(events & ~(uint32_t)EPOLLOUT))
		return;
	switch ((enum rvs_state)at_load(&conn->state)) {
	case RVS_GREETING:
		rvs_on_hello(conn);
		return;
	case RVS_CONNECTING:
		rvs_on_answer(conn);
		return;
	case RVS_REQUESTED: /* the peer has nothing to say before it is answered */
		rvs_conn_hangup(conn);
		return;
	case RVS_ANSWERED:
	case RVS_UP:
	case RVS_BROKEN:
		rc = take_packets(conn, events & (EPOLLHUP | EPOLLERR), &eof);
		if (rc)
			rvs_break(conn, -rc, -1);
		if (rc || eof)
			rvs_conn_hangup(conn);
		return;
	case RVS_DOWN:
	case RVS_CLOSED:
		return;
	}
}

/* Ends a connection whose peer's process ended. The socket may live on in a child of it. */
static void on_process(struct rv_conn *conn)
{
	bool eof;
	int rc;

	if (conn->gone)
		return;
	rc = take_packets(conn, true, &eof);
	if (rc)
		rvs_break(conn, -rc, -1);
	rvs_conn_hangup(conn);
}

static void look_around(struct rv_dev *dev)
{
	struct epoll_event e[EPOLL_BATCH];
	int n, rounds = 0;
	bool later = false;
	int64_t now;

	do {
		n = epoll_wait(dev->epoll, e, EPOLL_BATCH, 0);
		for (int i = 0; i < n; i++) {
			enum rvs_source *src = e[i].data.ptr;

			switch (*src) {
			case RVS_SRC_LISTEN:
				rvs_on_listener(dev);
				break;
			case RVS_SRC_WAKE:
				rvs_wake_consume(dev);
				/* the wake-up may stand for one that a READ took */
				rvs_wake_taken(dev);
				break;
			case RVS_SRC_TIMER:
				break;
			case RVS_SRC_CONN:
				on_socket(container_of(src, struct rv_conn, source), e[i].events);
				break;
			case RVS_SRC_PROCESS:
				on_process(container_of(src, struct rv_conn, process_source));
				break;
			}
		}
	} while (n == EPOLL_BATCH && ++rounds < EPOLL_ROUNDS);
	if (dev->timer_ns || at_load(&dev->tell_again))
		rvs_timers(dev);
	rvs_give_back(dev, false);
	now = now_ns();
	for (uint32_t i = 0; i < dev->nr_watch; i++)
		later |= rvs_drop_revoked(dev->watch[i].conn, now);
	if (later)
		rvs_timer_soon(dev);
}

static struct rv_event *fill_event(struct rv_event *ev, struct rv_conn *conn,
				   enum rv_event_type type, int status)
{
	memset(ev, 0, sizeof(*ev));
	ev->type = type;
	ev->status = status;
	ev->wc_status = -1;
	ev->conn = conn;
	ev->user = conn->user;
	return ev;
}

/* Requests, connections made, failures. */
static unsigned report_news(struct rv_dev *dev, struct rv_event *ev, unsigned n, unsigned max)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &dev->attn) {
		struct rv_conn *conn = container_of(l, struct rv_conn, attn);

		if (!(conn->attn_why & RVS_A_NOTIFY) || n == max)
			continue;
		rb_assert(conn->attn_why);
		rb_assert_if(conn->notify == RV_EV_REQUEST, at_load(&conn->state) == RVS_REQUESTED);
		rb_assert_if(conn->notify == RV_EV_CONNECTED,
			     at_load(&conn->state) == RVS_ANSWERED);
		rb_assert_if(conn->notify == RV_EV_FAILED,
			     at_load(&conn->state) == RVS_DOWN && conn->status < 0);
		fill_event(&ev[n], conn, conn->notify, conn->status);
		if (conn->text_len) {
			ev[n].data = conn->text;
			ev[n].len = conn->text_len;
		}
		if (conn->notify == RV_EV_CONNECTED)
			rvs_watch_add(conn);
		rvs_attended(conn, RVS_A_NOTIFY);
		n++;
	}
	return n;
}

/* Takes the next messages of one connection, up to max.
 * Returns their number, or -EPROTO: no message, but nonsense. */
static inline int take_from(struct rv_conn *conn, struct rv_event *ev, unsigned max)
{
	struct rvs_ring *rx = &conn->rx;
	unsigned n = 0;

	while (n < max) {
		struct rvs_post *post = &rx->post[rx->post_pos & rx->mask];
		uint64_t word = at_load_sc(&post->word); /* Pairs with rvs_send() */
		uint32_t slot = RVS_POST_WORD_SLOT(word), len = RVS_POST_WORD_LEN(word);

		if (!RVS_POST_WORD_THERE(word, rx->post_pos))
			break;
		if (unlikely(slot >= rx->nr || rx->taken[slot] || !len || len > RV_MSG_MAX))
			return n ? (int)n : -EPROTO; /* the next call meets the nonsense again */
		unsigned char *copy = rx->copy + (size_t)slot * RV_MSG_MAX;

		memcpy(copy,
		       len <= RVS_INLINE_MAX ? post->data : rx->slots + (size_t)slot * RV_MSG_MAX,
		       len);
		rb_assert_is(rx->nr_taken + rx->nr_due, <, rx->nr);
		rx->taken[slot] = 1;
		rx->nr_taken++;
		rx->post_pos++;
		ev[n++] = (struct rv_event){ .type = RV_EV_RECV,
					     .wc_status = -1,
					     .conn = conn,
					     .user = conn->user,
					     .data = copy,
					     .len = len,
					     .token = (uint64_t)conn->gen << 32 |
						     conn->index << 16 | slot };
	}
	return (int)n;
}

static inline bool is_there(const struct rvs_watch *w)
{
	return (uint32_t)(at_load_sc(w->word) >> 32) == w->seq;
}

/* Takes the messages of the connections in watch[at..end), up to max. */
static __attribute__((noinline)) unsigned take_messages(struct rv_dev *dev, struct rv_event *ev,
							unsigned max, uint32_t at, uint32_t end)
{
	unsigned n = 0;

	for (; at < end && n < max; at++) {
		struct rvs_watch *w = &dev->watch[at];
		struct rv_conn *conn = w->conn;
		int rc;

		rb_assert_is(conn->watch, ==, at);
		if (!is_there(w))
			continue;
		rb_assert_is(w->seq, ==, conn->rx.post_pos + 1);
		rc = likely(!conn->poisoned)
			? take_from(conn, ev + n, min_of(max - n, (unsigned)RING_BATCH))
			: 0;
		if (unlikely(rc < 0)) {
			conn->poisoned = true;
			rvs_log(dev, 1, "shm: pid %ld sent nonsense; its connection is closed",
				(long)conn->pid);
			rvs_break(conn, EPROTO, -1);
			rc = 0;
		}
		n += (unsigned)rc;
		w->seq = conn->rx.post_pos + 1;
		w->word = &conn->rx.post[conn->rx.post_pos & conn->rx.mask].word;
	}
	/* The connections that were not looked at come first the next time. */
	dev->scan_at = at < end ? at : 0;
	return n;
}

/* Reports room to send again. */
static unsigned report_room(struct rv_event *ev, unsigned n, struct rv_conn *conn)
{
	uint32_t state = at_load(&conn->state);

	if (!(conn->attn_why & RVS_A_STALLED) ||
	    (state == RVS_UP && !rvs_ring_has_room(&conn->tx)))
		return n;
	rvs_attended(conn, RVS_A_STALLED);
	at_store(&conn->tx.box->want, 0);
	if (state == RVS_UP)
		fill_event(&ev[n++], conn, RV_EV_WRITABLE, 0);
	return n;
}

/* Reports the end of a connection whose last message was taken. */
static unsigned report_end(struct rv_event *ev, unsigned n, struct rv_conn *conn)
{
	uint32_t state = at_load(&conn->state), why;

	if (!(conn->attn_why & RVS_A_HUP) || (state != RVS_UP && state != RVS_BROKEN) ||
	    (!conn->poisoned && rvs_ring_ready(&conn->rx)))
		return n;
	rb_assert_is(conn->watch, <, conn->dev->nr_watch);
	why = at_load_acq(&conn->why); /* Pairs with rvs_break() */
	fill_event(&ev[n], conn, RV_EV_DISCONNECTED, why ? -(int)(why & 0xffff) : -ECONNRESET);
	ev[n++].wc_status = why ? (int16_t)(why >> 16) : -1;
	at_store(&conn->state, RVS_DOWN);
	rvs_watch_del(conn);
	rvs_attended(conn, ~0u);
	return n;
}

/* Reports room to send again, and ends. */
static unsigned report_room_and_ends(struct rv_dev *dev, struct rv_event *ev, unsigned n,
				     unsigned max)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &dev->attn) {
		struct rv_conn *conn = container_of(l, struct rv_conn, attn);

		if (n < max)
			n = report_room(ev, n, conn);
		if (n < max)
			n = report_end(ev, n, conn);
	}
	return n;
}

static __attribute__((noinline)) int poll_all(struct rv_dev *dev, struct rv_event *ev, unsigned max,
					      unsigned flags)
{
	unsigned n = 0;

	rb_assert_is(dev->nr_watch, <=, dev->nr_conns);
	if (flags & RV_POLL_SLOW)
		look_around(dev);
	n = report_news(dev, ev, n, max);
	uint32_t at = dev->scan_at < dev->nr_watch ? dev->scan_at : 0;

	n += take_messages(dev, ev + n, max - n, at, dev->nr_watch);
	if (at && !dev->scan_at)
		n += take_messages(dev, ev + n, max - n, 0, at);
	rb_assert_is(n, <=, max);
	return (int)report_room_and_ends(dev, ev, n, max);
}

int rvs_poll(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags)
{
	const struct rvs_watch *watch = dev->watch;
	uint32_t nr = dev->nr_watch;

	if (unlikely((flags & RV_POLL_SLOW) || !list_empty(&dev->attn) || dev->scan_at))
		return poll_all(dev, ev, max, flags);
	/* Most looks find nothing. */
	for (uint32_t at = 0; at < nr; at++)
		if (unlikely(is_there(&watch[at])))
			return (int)take_messages(dev, ev, max, at, nr);
	return 0;
}
