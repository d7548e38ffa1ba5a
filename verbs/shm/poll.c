/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress: what happened, as events.
 *
 * The cheap part looks at one word per connection that is up (where its next message will be) and at the list of
 * connections that need attention. RV_POLL_SLOW adds one epoll_wait for sockets, the listener and deadlines.
 *
 * Order within a connection: REQUEST or CONNECTED, messages, DISCONNECTED. A hang-up is seen on the socket, and only
 * then is the ring looked at for the last time: whatever the peer sent before it died is delivered first.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "shm.h"

#define EPOLL_BATCH 32
#define RING_BATCH 16 /* messages of one connection before the next one's turn */

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
	case RVS_REQUESTED: /* it has nothing to say before it is answered */
	{
		struct rvs_packet p;
		int fds[RVS_PKT_FDS];
		unsigned nr_fds = 0;

		rc = rvs_packet_recv(conn->sock, &p, fds, &nr_fds);
		if (rc == -EAGAIN)
			return;
		if (rc > 0)
			rvs_close_fds(fds, nr_fds);
		rvs_conn_hangup(conn);
		return;
	}
	case RVS_ANSWERED:
	case RVS_UP:
	case RVS_BROKEN:
		rc = rvs_drain(conn, &eof);
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

static void look_around(struct rv_dev *dev)
{
	struct epoll_event e[EPOLL_BATCH];
	int n;

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
				break;
			case RVS_SRC_TIMER:
				break;
			case RVS_SRC_CONN:
				on_socket(container_of(src, struct rv_conn, source), e[i].events);
				break;
			}
		}
	} while (n == EPOLL_BATCH);
	if (dev->timer_ns || at_load(&dev->tell_again))
		rvs_timers(dev);
	rvs_give_back(dev, false);
	for (uint32_t i = 0; i < dev->nr_watch; i++)
		rvs_drop_revoked(dev->watch[i].conn);
}

static struct rv_event *fill(struct rv_event *ev, struct rv_conn *conn, enum rv_event_type type, int status)
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
		fill(&ev[n], conn, conn->notify, conn->status);
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

/* Some messages of one connection, where the first is known to be. */
static unsigned take_some(struct rv_dev *dev, struct rvs_watch *w, struct rv_event *ev, unsigned max)
{
	struct rv_conn *conn = w->conn;
	unsigned n = 0, most = min_of(max, (unsigned)RING_BATCH);
	int rc = 0;

	if (likely(!conn->poisoned)) {
		do {
			rc = rvs_ring_take(conn, &ev[n]);
			n += rc > 0;
		} while (rc > 0 && n < most && rvs_ring_ready(&conn->rx));
	}
	if (unlikely(rc < 0)) {
		conn->poisoned = true;
		rvs_log(dev, 1, "shm: pid %ld sent nonsense; its connection is closed", (long)conn->pid);
		rvs_break(conn, EPROTO, -1);
	}
	w->seq = conn->rx.post_pos + 1;
	w->word = &conn->rx.post[conn->rx.post_pos & conn->rx.mask].word;
	return n;
}

static __attribute__((noinline)) unsigned take_messages(struct rv_dev *dev, struct rv_event *ev, unsigned n, unsigned max)
{
	uint32_t nr = dev->nr_watch, at = dev->scan_at < nr ? dev->scan_at : 0;

	for (uint32_t i = 0; i < nr && n < max; i++, at = at + 1 < nr ? at + 1 : 0) {
		struct rvs_watch *w = &dev->watch[at];

		if (unlikely((uint32_t)(at_load_sc(w->word) >> 32) == w->seq))
			n += take_some(dev, w, &ev[n], max - n);
	}
	dev->scan_at = at;
	return n;
}

/* Room to send again, and ends. */
static unsigned report_rest(struct rv_dev *dev, struct rv_event *ev, unsigned n, unsigned max)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &dev->attn) {
		struct rv_conn *conn = container_of(l, struct rv_conn, attn);
		uint32_t state = at_load(&conn->state), why;

		if (n == max)
			break;
		if ((conn->attn_why & RVS_A_STALLED) && (state != RVS_UP || rvs_ring_has_room(&conn->tx))) {
			rvs_attended(conn, RVS_A_STALLED);
			at_store(&conn->tx.box->want, 0);
			if (state == RVS_UP)
				fill(&ev[n++], conn, RV_EV_WRITABLE, 0);
		}
		if (n == max || !(conn->attn_why & RVS_A_HUP) || (state != RVS_UP && state != RVS_BROKEN) ||
		    (!conn->poisoned && rvs_ring_ready(&conn->rx)))
			continue;
		why = at_load_acq(&conn->why); /* partner: rvs_break() */
		fill(&ev[n], conn, RV_EV_DISCONNECTED, why ? -(int)(why & 0xffff) : -ECONNRESET);
		ev[n++].wc_status = why ? (int16_t)(why >> 16) : -1;
		at_store(&conn->state, RVS_DOWN);
		rvs_watch_del(conn);
		rvs_attended(conn, ~0u);
	}
	return n;
}

static __attribute__((noinline)) int poll_all(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags)
{
	unsigned n = 0;

	if (flags & RV_POLL_SLOW)
		look_around(dev);
	n = report_news(dev, ev, n, max);
	n = take_messages(dev, ev, n, max);
	return (int)report_rest(dev, ev, n, max);
}

int rvs_poll(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags)
{
	const struct rvs_watch *w = dev->watch, *end = w + dev->nr_watch;

	if (unlikely((flags & RV_POLL_SLOW) || !list_empty(&dev->attn)))
		return poll_all(dev, ev, max, flags);
	/* Most looks find nothing. */
	for (; w < end; w++)
		if (unlikely((uint32_t)(at_load_sc(w->word) >> 32) == w->seq))
			return (int)take_messages(dev, ev, 0, max);
	return 0;
}
