/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking, and the deadlines of handshakes.
 *
 * The sleeper sets its flag and looks once more (arm, poll); a sender publishes and looks at the flag. All four with
 * seq_cst, so at least one of the two sees the other. While nobody sleeps, a wake-up costs one load.
 */
#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "shm.h"

int rvs_arm(struct rv_dev *dev, unsigned flags)
{
	(void)flags; /* READs finish inside post_reads() */
	at_xchg_sc(&dev->page->sleeping, 1); /* partner: rvs_wake() */
	rvs_give_back(dev, true);
	return 0;
}

void rvs_disarm(struct rv_dev *dev)
{
	at_store_rel(&dev->page->sleeping, 0);
	rvs_wake_consume(dev);
}

void rvs_wake_self(struct rv_dev *dev)
{
	uint64_t one = 1;

	(void)!write(dev->wake, &one, sizeof(one)); /* it can only be full of wake-ups */
}

void rvs_wake_consume(struct rv_dev *dev)
{
	uint64_t nr;

	(void)!read(dev->wake, &nr, sizeof(nr));
}

void rvs_wake_sleeper(struct rv_conn *conn)
{
	uint64_t one = 1;

	(void)!write(conn->peer_wake, &one, sizeof(one));
}

static void set_timer(struct rv_dev *dev, int64_t at_ns)
{
	struct itimerspec t = {.it_value = {at_ns / NSEC_PER_SEC, at_ns % NSEC_PER_SEC}};

	if (dev->timer_ns == at_ns)
		return;
	dev->timer_ns = at_ns;
	timerfd_settime(dev->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

/* 0 = none. */
void rvs_deadline(struct rv_conn *conn, int64_t at_ns)
{
	struct rv_dev *dev = conn->dev;

	list_del(&conn->timed);
	conn->deadline_ns = at_ns;
	if (!at_ns)
		return;
	list_add_tail(&dev->timed, &conn->timed);
	/* The exact next moment is found by rvs_timers(); waking early for it costs one look. */
	if (!dev->timer_ns || dev->timer_ns > now_ns() + RVS_RETRY_NS)
		set_timer(dev, now_ns() + RVS_RETRY_NS);
}

/* Everything that waits for time; called when there is such a thing. */
void rvs_timers(struct rv_dev *dev)
{
	int64_t now = now_ns(), next = INT64_MAX;
	struct list *l, *tmp;
	uint64_t nr;

	if (dev->timer_ns && now >= dev->timer_ns)
		(void)!read(dev->timer, &nr, sizeof(nr));
	list_for_each_safe(l, tmp, &dev->timed) {
		struct rv_conn *conn = container_of(l, struct rv_conn, timed);
		bool connecting = at_load(&conn->state) == RVS_CONNECTING;

		if (now >= conn->deadline_ns) {
			if (connecting) {
				rvs_conn_fail(conn, -ETIMEDOUT);
			} else {
				dev->nr_refused++;
				rvs_log(dev, 1, "shm: closed a connection of pid %ld that never said hello",
					(long)conn->pid);
				rvs_conn_free(conn);
			}
			continue;
		}
		if (connecting && !conn->dialled) {
			rvs_dial(conn);
			if (!conn->dialled && conn->deadline_ns)
				next = min_of(next, now + RVS_RETRY_NS);
		}
		if (conn->deadline_ns)
			next = min_of(next, conn->deadline_ns);
	}
	if (at_load(&dev->tell_again)) {
		at_store(&dev->tell_again, 0);
		if (rvs_tell_all(dev)) {
			at_store(&dev->tell_again, 1);
			next = min_of(next, now + RVS_RETRY_NS);
		}
	}
	set_timer(dev, next == INT64_MAX ? 0 : next);
}
