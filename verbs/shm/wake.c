/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking, and the deadlines of handshakes.
 *
 * The sleeper sets its flag and looks once more (arm, poll); a sender publishes and looks at the
 * flag. All four with seq_cst, so at least one of the two sees the other. While no thread sleeps, a
 * wake-up costs one load.
 *
 * The flag numbers the sleeps. A sender ends each of them once, by a packet over the socket of its
 * connection. If a packet is taken while the device stays armed, the sleep goes on under another
 * number. Rings are looked at after that. A sender that found the old number has published before,
 * so that look finds its news.
 */
#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "shm.h"

static void sleep_on(struct rv_dev *dev)
{
	dev->sleep_nr += dev->sleep_nr == UINT32_MAX ? 2 : 1; /* 0 is to be awake */
	rb_assert_with(dev->sleep_nr && dev->sleep_nr != at_load(&dev->page->sleeping), "%u",
		       dev->sleep_nr);
	at_xchg_sc(&dev->page->sleeping, dev->sleep_nr); /* Pairs with rvs_wake() */
}

int rvs_arm(struct rv_dev *dev, unsigned flags)
{
	(void)flags; /* READs finish inside post_reads() */
	sleep_on(dev);
	rvs_give_back(dev, true);
	return 0;
}

void rvs_disarm(struct rv_dev *dev)
{
	at_store_rel(&dev->page->sleeping, 0);
}

/* Notes that a wake-up was taken from a socket. Call it before
 * the rings are looked at. [progress] */
void rvs_wake_taken(struct rv_dev *dev)
{
	if (at_load(&dev->page->sleeping))
		sleep_on(dev);
}

/* Wakes this device by its own eventfd: no peer has it. */
void rvs_wake_self(struct rv_dev *dev)
{
	uint64_t one = 1;

	(void)!write(dev->wake, &one, sizeof(one)); /* fails only if it is full of wake-ups */
}

void rvs_wake_consume(struct rv_dev *dev)
{
	uint64_t nr;

	(void)!read(dev->wake, &nr, sizeof(nr));
}

/* Sends a wake-up. A full socket is as good as one: the peer is told of it until it has read.
 * Returns false if there is no memory: try again. [any] */
static bool wake(struct rv_conn *conn)
{
	int rc = rvs_wake_send(conn->sock);

	return !rc || rc == -EAGAIN || rc == -EPIPE || rc == -ECONNRESET || rc == -ENOTCONN ||
	       rc == -EBADF;
}

/* [any] */
void rvs_wake_sleeper(struct rv_conn *conn, uint32_t sleep)
{
	rb_assert(sleep && conn->dev->wake >= 0);
	at_store(&conn->woken, sleep);
	if (likely(wake(conn)))
		return;
	at_store_rel(&conn->wake_owed, 1); /* Pairs with rvs_wake_owed() */
	if (!at_xchg_ar(&conn->dev->tell_again, 1))
		rvs_wake_self(conn->dev); /* its timers retry */
}

/* Sends the wake-up that could not be sent before. True: still not. */
bool rvs_wake_owed(struct rv_conn *conn)
{
	if (!at_xchg_acq(&conn->wake_owed, 0) || wake(conn))
		return false;
	at_store_rel(&conn->wake_owed, 1);
	return true;
}

static void set_wake_timer(struct rv_dev *dev, int64_t at_ns)
{
	struct itimerspec t = {.it_value = {at_ns / NSEC_PER_SEC, at_ns % NSEC_PER_SEC}};

	if (dev->timer_ns == at_ns)
		return;
	dev->timer_ns = at_ns;
	timerfd_settime(dev->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

/* Looks at the timers after a while. Waking early for one costs one look. */
void rvs_timer_soon(struct rv_dev *dev)
{
	int64_t soon = now_ns() + RVS_RETRY_NS;

	if (!dev->timer_ns || dev->timer_ns > soon)
		set_wake_timer(dev, soon);
}

/* 0 = none. */
void rvs_deadline(struct rv_conn *conn, int64_t at_ns)
{
	struct rv_dev *dev = conn->dev;

	rb_assert(list_empty(&conn->timed) == !conn->deadline_ns);
	rb_assert_is(at_ns, >=, 0);
	list_del(&conn->timed);
	conn->deadline_ns = at_ns;
	if (!at_ns)
		return;
	list_add_tail(&dev->timed, &conn->timed);
	rvs_timer_soon(dev); /* the exact next moment is found by rvs_timers() */
}

/* Ends the wait of a connection whose time is over. */
static void conn_late(struct rv_conn *conn)
{
	if (at_load(&conn->state) == RVS_CONNECTING) {
		rvs_conn_fail(conn, -ETIMEDOUT);
	} else if (at_load(&conn->state) != RVS_GREETING) {
		rvs_mute(conn, false);
	} else {
		rvs_log_refused(conn->dev, "pid %ld never said hello", (long)conn->pid);
		rvs_conn_free(conn);
	}
}

/* Dials again if need be. Returns the time of the connection's next look. */
static int64_t conn_next(struct rv_conn *conn, int64_t now)
{
	int64_t next = INT64_MAX;

	if (at_load(&conn->state) == RVS_CONNECTING && !conn->dialled) {
		rvs_dial(conn);
		if (!conn->dialled && conn->deadline_ns)
			next = now + RVS_RETRY_NS;
	}
	return conn->deadline_ns ? min_of(next, conn->deadline_ns) : next;
}

/* Runs everything that waits for time; called when there is such a thing. */
void rvs_timers(struct rv_dev *dev)
{
	int64_t now = now_ns(), next = INT64_MAX;
	struct list *l, *tmp;
	uint64_t nr;

	if (dev->timer_ns && now >= dev->timer_ns)
		(void)!read(dev->timer, &nr, sizeof(nr));
	list_for_each_safe(l, tmp, &dev->timed) {
		struct rv_conn *conn = container_of(l, struct rv_conn, timed);

		rb_assert(conn->deadline_ns && conn->dev == dev);
		if (now >= conn->deadline_ns)
			conn_late(conn);
		else
			next = min_of(next, conn_next(conn, now));
	}
	if (rvs_listen_timer(dev, now))
		next = min_of(next, dev->listen_at + RVS_WINDOW_NS);
	if (at_load(&dev->tell_again)) {
		at_store(&dev->tell_again, 0);
		if (rvs_tell_all(dev)) {
			at_store(&dev->tell_again, 1);
			next = min_of(next, now + RVS_RETRY_NS);
		}
	}
	set_wake_timer(dev, next == INT64_MAX ? 0 : next);
}
