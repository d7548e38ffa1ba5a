/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that destroys the ids of the connection manager. The kernel waits in there until the
 * management datagrams that it has sent for the id are done with. Over rdma_rxe 6.1 that took a
 * minute, more than once, until something else was sent (cm_destroy_id in the stack). The thread
 * that closes a connection holds the core's progress lock, so it must not wait there. Requests are
 * rejected here too: their ids go next.
 *
 * The fence is not concerned. It is over when the queue pair is destroyed, which is ours, not the
 * id's. So the helper, which destroys queue pairs, never waits for an id.
 *
 * An id that may have to say goodbye is not destroyed while its peer has no route. A datagram that
 * rdma_rxe 6.1 cannot route ends queue pair 1, which all of the machine's connection management
 * goes through. After ib_mad has repaired it, it only sends: no process ever makes a connection of
 * that device again. The port's state alone comes too late: an interface that goes down has no
 * routes before the port is told. And its address may go while the link stays.
 */
#include <stdlib.h>

#include "base/thread.h"
#include "ibv.h"

/*
 * limit of waiting ids, so that they do not pile up; further ids are destroyed when they are closed
 */
#define REAP_MAX 1024u
#define STOCK 64u /* records kept for times without memory */
#define ROUTE_LOOK_NS (100 * NSEC_PER_MSEC)

struct rvi_reaped {
	struct list node;
	struct rdma_cm_id *id;
	uint8_t nr_reason; /* bytes to reject a request with; 0 = none */
	uint8_t reason[RVI_PDATA_MAX];
};

bool rvi_can_reach(const struct rv_dev *dev, const struct sockaddr_storage *to)
{
	struct ibv_port_attr port;

	rb_slow(RB_SLOW_QUERY);
	if (!ibv_query_port(dev->ctx, dev->port, &port) && port.state != IBV_PORT_ACTIVE)
		return false;
	return rvi_has_route(dev, to);
}

static bool can_be_told(const struct rv_dev *dev, struct rdma_cm_id *id)
{
	const struct sockaddr *sa = rdma_get_peer_addr(id);
	struct sockaddr_storage to = { 0 };

	if (sa && (sa->sa_family == AF_INET || sa->sa_family == AF_INET6))
		memcpy(&to, sa, sa->sa_family == AF_INET ? sizeof(struct sockaddr_in)
							 : sizeof(struct sockaddr_in6));
	return rvi_can_reach(dev, &to);
}

/* Takes one that can be destroyed now; at the end, any. [r->lock, let go of meanwhile] */
static struct rvi_reaped *next(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;
	struct list *l;

	rb_assert(pthread_mutex_trylock(&r->lock) != 0);
	rb_assert_if(!list_empty(&r->ids), r->nr);
	for (uint32_t n = r->nr; n && (l = list_pop(&r->ids)); n--) {
		struct rvi_reaped *one = container_of(l, struct rvi_reaped, node);
		bool can = r->stop;

		if (!can) {
			/* Asks without the mutex: the progress lock's holder may wait for it. */
			pthread_mutex_unlock(&r->lock);
			can = can_be_told(dev, one->id);
			pthread_mutex_lock(&r->lock);
		}
		if (can)
			return one;
		list_add_tail(&r->ids, l);
	}
	return NULL;
}

/* Waits until there is more to do, or a route may be back. [r->lock, let go of meanwhile] */
static void wait_for_more(struct rvi_reaper *r)
{
	struct timespec until;

	if (list_empty(&r->ids)) {
		pthread_cond_wait(&r->more, &r->lock);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)ROUTE_LOOK_NS;
	until.tv_sec += until.tv_nsec / (long)NSEC_PER_SEC;
	until.tv_nsec %= (long)NSEC_PER_SEC;
	pthread_cond_timedwait(&r->more, &r->lock, &until);
}

/* Takes a record, NULL if there is none. [r->lock] */
static struct rvi_reaped *take_record(struct rvi_reaper *r)
{
	struct list *l = list_pop(&r->stock);

	if (!l)
		return malloc(sizeof(struct rvi_reaped));
	r->nr_stock--;
	return container_of(l, struct rvi_reaped, node);
}

/* [r->lock] */
static void put_record(struct rvi_reaper *r, struct rvi_reaped *one)
{
	if (r->nr_stock == STOCK) {
		free(one);
		return;
	}
	list_add_tail(&r->stock, &one->node);
	r->nr_stock++;
}

static void *reap(void *arg)
{
	struct rv_dev *dev = arg;
	struct rvi_reaper *r = &dev->reaper;

	rb_thread_begin("rref-cm");
	pthread_mutex_lock(&r->lock);
	while (!r->stop || !list_empty(&r->ids)) {
		struct rvi_reaped *one = next(dev);

		if (!one) {
			wait_for_more(r);
			continue;
		}
		pthread_mutex_unlock(&r->lock);
		/* The end of the device takes ids whose peers cannot be told, too. */
		if (one->nr_reason && can_be_told(dev, one->id))
			rdma_reject(one->id, one->reason, one->nr_reason);
		rdma_destroy_id(one->id);
		pthread_mutex_lock(&r->lock);
		put_record(r, one);
		rb_assert_is(r->nr, >, 0);
		r->nr--;
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

void rvi_reap_init(struct rv_dev *dev)
{
	pthread_condattr_t attr;

	list_init(&dev->reaper.ids);
	list_init(&dev->reaper.stock);
	pthread_mutex_init(&dev->reaper.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dev->reaper.more, &attr);
	pthread_condattr_destroy(&attr);
}

/*
 * Starts the thread, while the device is opened and no lock is held. If it cannot be had, ids are
 * destroyed when they are closed.
 */
void rvi_reap_start(struct rv_dev *dev)
{
	struct rvi_reaped *one;

	for (unsigned i = 0; i < STOCK && (one = malloc(sizeof(*one))); i++)
		put_record(&dev->reaper, one);
	dev->reaper.runs = !rb_thread_start(&dev->reaper.thread, reap, dev);
}

void rvi_reap(struct rv_dev *dev, struct rdma_cm_id *id, const void *reason, uint8_t nr)
{
	struct rvi_reaper *r = &dev->reaper;
	struct rvi_reaped *one = NULL;

	id->context = NULL; /* events of the id find no connection any more; see next_cm_event() */
	pthread_mutex_lock(&r->lock);
	if (r->runs && (r->nr < REAP_MAX || !can_be_told(dev, id)))
		one = take_record(r);
	if (one) {
		one->id = id;
		one->nr_reason = nr;
		if (nr)
			memcpy(one->reason, reason, nr);
		list_init(&one->node);
		list_add_tail(&r->ids, &one->node);
		r->nr++;
		pthread_cond_signal(&r->more);
	}
	pthread_mutex_unlock(&r->lock);
	if (one)
		return;
	rb_slow(RB_SLOW_CM_DESTROY);
	if (nr && can_be_told(dev, id))
		rdma_reject(id, reason, nr);
	rdma_destroy_id(id);
}

/*
 * Rejects at once, since the reaper may stand in a destroy. Without a route the reaper does it, as
 * soon as there is one.
 */
void rvi_refuse(struct rv_dev *dev, struct rdma_cm_id *id, const void *reason, uint8_t nr)
{
	rb_slow(RB_SLOW_CM);
	if (can_be_told(dev, id)) {
		rdma_reject(id, reason, nr);
		nr = 0;
	}
	rvi_reap(dev, id, reason, nr);
}

/* Waits until all are gone. */
void rvi_reap_fini(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;
	struct list *l;

	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_cond_signal(&r->more);
	pthread_mutex_unlock(&r->lock);
	if (r->runs)
		pthread_join(r->thread, NULL);
	rb_assert(list_empty(&r->ids) && !r->nr);
	while ((l = list_pop(&r->stock)))
		free(container_of(l, struct rvi_reaped, node));
	pthread_cond_destroy(&r->more);
	pthread_mutex_destroy(&r->lock);
}
