/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping. One epoll descriptor stands for the completion channel, the connection manager, the
 * async events and the helper's news. It also has a timer for the connect deadlines.
 *
 * Arming follows the rule of completion channels: ask for notification, poll once more (the core
 * does), then sleep. Only disarm and arm take notifications out of the channel. If poll did so, a
 * poll between arm and sleep that found nothing to report would eat the wake-up.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/limit.h"
#include "ibv.h"

#define CM_WAITING_MAX 1024u /* events of the connection manager that can wait at once, or more */

enum { WAKE_CHANNEL, WAKE_CM, WAKE_ASYNC, WAKE_TIMER, WAKE_HELPER };

static int watch_fd(struct rv_dev *dev, int fd, uint32_t what)
{
	struct epoll_event e = { .events = EPOLLIN, .data.u32 = what };
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
	    epoll_ctl(dev->epfd, EPOLL_CTL_ADD, fd, &e))
		return rv_fail(errno, "cannot watch the device's descriptors: %s",
			       limit_why("epoll_ctl", errno, 0));
	return 0;
}

int rvi_wake_init(struct rv_dev *dev)
{
	int rc;

	dev->epfd = RB_OPEN(epoll_create1(EPOLL_CLOEXEC));
	if (dev->epfd < 0)
		return rv_fail(errno, "%s", limit_why("epoll_create1", errno, 0));
	dev->timerfd = RB_OPEN(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
	if (dev->timerfd < 0)
		return rv_fail(errno, "%s", limit_why("timerfd_create", errno, 0));
	rc = watch_fd(dev, dev->channel->fd, WAKE_CHANNEL);
	if (!rc)
		rc = watch_fd(dev, dev->cm->fd, WAKE_CM);
	if (!rc)
		rc = watch_fd(dev, dev->ctx->async_fd, WAKE_ASYNC);
	if (!rc)
		rc = watch_fd(dev, dev->helper.fd, WAKE_HELPER);
	return rc ? rc : watch_fd(dev, dev->timerfd, WAKE_TIMER);
}

void rvi_watch_cm(struct rv_dev *dev, bool watch)
{
	struct epoll_event e = { .events = watch ? EPOLLIN : 0, .data.u32 = WAKE_CM };

	epoll_ctl(dev->epfd, EPOLL_CTL_MOD, dev->cm->fd, &e);
}

int rvi_fd(struct rv_dev *dev)
{
	return dev->epfd;
}

/* Takes all notifications, acks them in bulk: an unacked one
 * would make ibv_destroy_cq wait for ever. */
static void take_notifications(struct rv_dev *dev)
{
	struct ibv_cq *cq;
	void *ctx;

	while (!ibv_get_cq_event(dev->channel, &cq, &ctx)) {
		if (cq == dev->send_cq)
			dev->send_cq_events++;
		else
			dev->recv_cq_events++;
	}
	if (dev->send_cq_events)
		ibv_ack_cq_events(dev->send_cq, dev->send_cq_events);
	if (dev->recv_cq_events)
		ibv_ack_cq_events(dev->recv_cq, dev->recv_cq_events);
	dev->send_cq_events = dev->recv_cq_events = 0;
}

/* Notes that the device has a message while a thread sleeps, or is about to. */
void rvi_watch_sends(struct rv_dev *dev)
{
	if (!dev->asleep || dev->sends_watch_ns)
		return;
	dev->sends_watch_ns = now_ns() + dev->patience_ns;
	rvi_wake_timer(dev);
}

int rvi_arm(struct rv_dev *dev, unsigned flags)
{
	int rc;

	take_notifications(dev);
	rc = ibv_req_notify_cq(dev->recv_cq, 0);
	/* The send queue has nothing solicited, so without ARM_READS only failures wake. On rxe 6.1
	 * not even these do, so a timer looks after messages that the device still has. */
	if (!rc)
		rc = ibv_req_notify_cq(dev->send_cq, flags & RV_ARM_READS ? 0 : 1);
	dev->asleep = !(flags & RV_ARM_READS);
	if (dev->nr_sending)
		rvi_watch_sends(dev);
	return rc ? rv_fail(rc, "cannot arm the completion queues: %s", strerror(rc)) : 0;
}

void rvi_disarm(struct rv_dev *dev)
{
	dev->asleep = false;
	take_notifications(dev);
}

/* Sets the timer to the earliest of these: connection deadlines, the look after sends, frames to
 * say again. The slow path alone comes here. */
void rvi_wake_timer(struct rv_dev *dev)
{
	struct itimerspec t = { 0 };
	int64_t first = dev->sends_watch_ns;

	if (dev->say_ns && (!first || dev->say_ns < first))
		first = dev->say_ns;
	for (uint32_t i = 0; i < at_load(&dev->nr_conns) && dev->nr_timed; i++) {
		int64_t d = rvi_conn_at(dev, i)->deadline_ns;

		if (d && (!first || d < first))
			first = d;
	}
	if (first == dev->timer_ns)
		return;
	dev->timer_ns = first;
	dev->timer_waits = 0;
	t.it_value.tv_sec = first / NSEC_PER_SEC;
	t.it_value.tv_nsec = first % NSEC_PER_SEC;
	timerfd_settime(dev->timerfd, TFD_TIMER_ABSTIME, &t, NULL);
}

/*
 * Looks at the deadlines if the timer has fired. all: no message is left in the queues. Else the
 * timer stays readable, and the next poll comes here again. Under a flood it waits no longer than
 * for what the queues could hold when it fired.
 */
void rvi_timer_due(struct rv_dev *dev, bool all, struct rvi_sink *sink)
{
	uint64_t expirations;

	if (!dev->timer_due)
		return;
	dev->timer_due = false;
	if (!dev->timer_waits++) {
		dev->timer_at = now_ns();
		dev->timer_taken = dev->taken + dev->stash_max;
	}
	if ((!all && dev->taken < dev->timer_taken) ||
	    (!dev->cm_drained && dev->timer_waits * RVI_BATCH < CM_WAITING_MAX))
		return;
	dev->timer_waits = 0;
	while (read(dev->timerfd, &expirations, sizeof(expirations)) < 0 && errno == EINTR)
		;
	dev->timer_ns = 0;
	if (dev->sends_watch_ns <= now_ns())
		/* awake: poll sees what there is, and arm starts over if something is left */
		dev->sends_watch_ns = 0;
	rvi_say_again(dev, sink);
	rvi_cm_deadlines(dev, dev->timer_at); /* later ones wait for themselves */
	rvi_wake_timer(dev);
}

/* Does the work of RV_POLL_SLOW. It makes one system call when nothing has happened. */
void rvi_slow(struct rv_dev *dev, struct rvi_sink *sink)
{
	bool timer = false, drained = true;
	struct epoll_event e[5];
	int n = epoll_wait(dev->epfd, e, 5, 0);
	uint64_t news;

	for (int i = 0; i < n; i++) {
		switch (e[i].data.u32) {
		case WAKE_CM:
			drained = rvi_cm_events(dev, sink);
			break;
		case WAKE_ASYNC:
			rvi_async_events(dev, sink);
			break;
		case WAKE_TIMER:
			timer = true;
			break;
		case WAKE_HELPER: /* the caller looks at the news next */
			(void)!read(dev->helper.fd, &news, sizeof(news));
			break;
		default:
			break;
		}
	}
	/* Never before everything that came in time has been taken in: we may be the one who is
	 * slow. So the poll looks at the deadlines last. */
	dev->timer_due = timer;
	dev->cm_drained = drained;
	if (timer)
		at_store_sc(&dev->helper.news, 1);
}
