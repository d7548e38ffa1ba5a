/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ids of the connection manager are destroyed by a thread of their own. The kernel waits in there until the management
 * datagrams that it has sent for the id are done with; over rdma_rxe 6.1 that took a minute, more than once, until
 * something else was sent (cm_destroy_id in the stack). Whoever closes a connection holds the core's progress lock.
 *
 * The fence is not concerned: it is over when the queue pair is destroyed, and the queue pair is ours, not the id's.
 *
 * While the port is down nothing is destroyed that may have to say goodbye. A datagram that rdma_rxe 6.1 cannot route ends
 * the queue pair that all of the machine's connection management goes through (number 1), and what comes back after
 * ib_mad has repaired it only sends: no connection of that device is ever made again, by any process.
 * The kernel takes the routes before it tells the port, so the port alone says it too late: the
 * network interface is asked as well, whose flag falls first.
 */
#include <stdlib.h>

#include "base/thread.h"
#include "ibv.h"

#define REAP_MAX 64u /* that wait; more are destroyed where they are closed, so that nobody piles them up */
#define PORT_LOOK_NS (100 * NSEC_PER_MSEC)

struct rvi_reaped {
	struct list node;
	struct rdma_cm_id *id;
};

bool rvi_port_is_up(const struct rv_dev *dev)
{
	struct ibv_port_attr port;

	if (!ibv_query_port(dev->ctx, dev->port, &port) && port.state != IBV_PORT_ACTIVE)
		return false;
	return rvi_netdev_is_up(dev->ifindex);
}

/* Waits until the port is up, or nobody wants to wait. [r->lock, let go of meanwhile] */
static void await_port(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;

	while (!r->stop && !rvi_port_is_up(dev)) {
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += (long)PORT_LOOK_NS;
		until.tv_sec += until.tv_nsec / (long)NSEC_PER_SEC;
		until.tv_nsec %= (long)NSEC_PER_SEC;
		pthread_cond_timedwait(&r->more, &r->lock, &until);
	}
}

static void *reap(void *arg)
{
	struct rv_dev *dev = arg;
	struct rvi_reaper *r = &dev->reaper;
	struct list *l;

	rb_thread_begin("rref-cm");
	pthread_mutex_lock(&r->lock);
	while (!r->stop || !list_empty(&r->ids)) {
		if (!list_empty(&r->ids))
			await_port(dev);
		l = list_pop(&r->ids);
		if (!l) {
			pthread_cond_wait(&r->more, &r->lock);
			continue;
		}
		pthread_mutex_unlock(&r->lock);
		rdma_destroy_id(container_of(l, struct rvi_reaped, node)->id);
		free(container_of(l, struct rvi_reaped, node));
		pthread_mutex_lock(&r->lock);
		r->nr--;
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

void rvi_reap_init(struct rv_dev *dev)
{
	pthread_condattr_t attr;

	list_init(&dev->reaper.ids);
	pthread_mutex_init(&dev->reaper.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dev->reaper.more, &attr);
	pthread_condattr_destroy(&attr);
}

static bool start(struct rv_dev *dev)
{
	dev->reaper.runs = !rb_thread_start(&dev->reaper.thread, reap, dev);
	return dev->reaper.runs;
}

void rvi_reap(struct rv_dev *dev, struct rdma_cm_id *id)
{
	struct rvi_reaper *r = &dev->reaper;
	struct rvi_reaped *one = malloc(sizeof(*one));
	bool taken = false;

	id->context = NULL; /* its events find no connection any more; see next_event() */
	pthread_mutex_lock(&r->lock);
	if (one && (r->nr < REAP_MAX || !rvi_port_is_up(dev)) && (r->runs || start(dev))) {
		one->id = id;
		list_init(&one->node);
		list_add_tail(&r->ids, &one->node);
		r->nr++;
		pthread_cond_signal(&r->more);
		taken = true;
	}
	pthread_mutex_unlock(&r->lock);
	if (taken)
		return;
	free(one);
	rdma_destroy_id(id);
}

/* Waits until all are gone. */
void rvi_reap_fini(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;

	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_cond_signal(&r->more);
	pthread_mutex_unlock(&r->lock);
	if (r->runs)
		pthread_join(r->thread, NULL);
	pthread_cond_destroy(&r->more);
	pthread_mutex_destroy(&r->lock);
}
