/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that destroys the ids of the connection manager. The kernel waits in there until the
 * management datagrams that it has sent for the id are done with. Over rdma_rxe 6.1 that took a
 * minute, more than once, until something else was sent (cm_destroy_id in the stack). The thread
 * that closes a connection holds the core's progress lock, so it must not wait there. No id is ever
 * destroyed by it. When too many ids wait, connection events are not taken, and no connect begins.
 *
 * Requests are rejected here too: their ids go next. The helper takes part in that. So a request is
 * rejected soon, though one of the two threads may stand in a destroy.
 *
 * Each id has its record from its beginning, so an end needs no memory. Without memory a request
 * gets one of the stock. Its last part is for refusals, which give it back.
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

/* waiting ids from which on no others are made */
#define REAP_MAX 1024u
#define STOCK 64u /* records kept for times without memory */
#define ROUTE_LOOK_NS (100 * NSEC_PER_MSEC)

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
static struct rvi_id *next(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;
	struct list *l;

	rb_assert(pthread_mutex_trylock(&r->lock) != 0);
	rb_assert_if(!list_empty(&r->ids), r->nr);
	for (uint32_t n = r->nr; n && (l = list_pop(&r->ids)); n--) {
		struct rvi_id *one = container_of(l, struct rvi_id, node);
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

/* Takes a record. The stock keeps as many. Returns NULL if there is none. [r->lock] */
static struct rvi_id *take_record(struct rvi_reaper *r, uint32_t keep)
{
	struct rvi_id *one = malloc(sizeof(*one));

	if (!one && r->nr_stock > keep) {
		r->nr_stock--;
		one = container_of(list_pop(&r->stock), struct rvi_id, node);
	}
	if (!one)
		return NULL;
	memset(one, 0, sizeof(*one));
	list_init(&one->node);
	one->may_live = true;
	return one;
}

/* [r->lock] */
static void put_record(struct rvi_reaper *r, struct rvi_id *one)
{
	if (r->nr_stock == STOCK) {
		free(one);
		return;
	}
	list_add_tail(&r->stock, &one->node);
	r->nr_stock++;
}

struct rvi_id *rvi_id_new(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;
	struct rvi_id *one = NULL;
	bool full;

	pthread_mutex_lock(&r->lock);
	full = r->nr >= REAP_MAX;
	if (!full)
		one = take_record(r, STOCK / 2);
	pthread_mutex_unlock(&r->lock);
	if (full)
		rv_fail(ENOMEM, "%u ended connections of %s wait for the kernel", REAP_MAX,
			dev->caps.device);
	else if (!one)
		rv_fail(ENOMEM, "no memory for a connection");
	return one;
}

void rvi_id_drop(struct rv_dev *dev, struct rvi_id *one)
{
	pthread_mutex_lock(&dev->reaper.lock);
	put_record(&dev->reaper, one);
	pthread_mutex_unlock(&dev->reaper.lock);
}

bool rvi_id_spare(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;
	bool full;

	pthread_mutex_lock(&r->lock);
	if (!r->spare)
		r->spare = take_record(r, STOCK / 2);
	if (!r->spare && (r->spare = take_record(r, 0)))
		r->spare->may_live = false;
	/* No record is left if all of the stock's last part waits to be destroyed. */
	r->full = full = !r->spare || r->nr >= REAP_MAX;
	if (full)
		rvi_watch_cm(dev, false);
	pthread_mutex_unlock(&r->lock);
	return !full;
}

/* Takes one that is to be rejected. [r->lock] */
static struct rvi_id *next_refused(struct rvi_reaper *r)
{
	struct list *l = list_pop(&r->refused);

	if (!l)
		return NULL;
	at_sub(&r->nr_refused, 1);
	return container_of(l, struct rvi_id, node);
}

bool rvi_reject_next(struct rv_dev *dev)
{
	struct rvi_reaper *r = &dev->reaper;
	struct rvi_id *one;

	if (!at_load(&r->nr_refused))
		return false;
	pthread_mutex_lock(&r->lock);
	one = next_refused(r);
	pthread_mutex_unlock(&r->lock);
	if (!one)
		return false;
	if (can_be_told(dev, one->id)) {
		rdma_reject(one->id, one->nr_reason ? one->reason : NULL, one->nr_reason);
		one->nr_reason = 0;
	}
	pthread_mutex_lock(&r->lock);
	list_add_tail(&r->ids, &one->node);
	pthread_cond_signal(&r->more);
	pthread_mutex_unlock(&r->lock);
	return true;
}

/* Takes note that an id is destroyed. Others may be made again when half of them are. [r->lock] */
static void destroyed(struct rv_dev *dev, struct rvi_id *one)
{
	struct rvi_reaper *r = &dev->reaper;

	if (one)
		put_record(r, one);
	rb_assert_is(r->nr, >, 0);
	r->nr--;
	if (!r->full || r->nr > REAP_MAX / 2)
		return;
	r->full = false;
	rvi_watch_cm(dev, true);
}

static void *reap(void *arg)
{
	struct rv_dev *dev = arg;
	struct rvi_reaper *r = &dev->reaper;

	rb_thread_begin("rref-cm");
	pthread_mutex_lock(&r->lock);
	while (!r->stop || r->nr) {
		struct rvi_id *one;
		int failed;

		if (at_load(&r->nr_refused)) {
			pthread_mutex_unlock(&r->lock);
			rvi_reject_next(dev);
			pthread_mutex_lock(&r->lock);
			continue;
		}
		one = next(dev);
		if (!one) {
			/* The mutex was let go of meanwhile. */
			if (!at_load(&r->nr_refused))
				wait_for_more(r);
			continue;
		}
		pthread_mutex_unlock(&r->lock);
		/* The end of the device takes ids whose peers cannot be told, too. */
		if (one->nr_reason && can_be_told(dev, one->id))
			rdma_reject(one->id, one->reason, one->nr_reason);
		rb_slow(RB_SLOW_CM_DESTROY);
		failed = rdma_destroy_id(one->id);
		pthread_mutex_lock(&r->lock);
		destroyed(dev, failed ? NULL : one); /* an id that stays may have events */
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

void rvi_reap_init(struct rv_dev *dev)
{
	pthread_condattr_t attr;

	list_init(&dev->reaper.refused);
	list_init(&dev->reaper.ids);
	list_init(&dev->reaper.stock);
	pthread_mutex_init(&dev->reaper.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dev->reaper.more, &attr);
	pthread_condattr_destroy(&attr);
}

/* Starts the thread, while the device is opened and no lock is held. Returns 0 or -errno. */
int rvi_reap_start(struct rv_dev *dev)
{
	struct rvi_id *one;

	for (unsigned i = 0; i < STOCK; i++) {
		one = malloc(sizeof(*one));
		if (!one)
			return rv_fail(ENOMEM, "no memory for the ends of connections");
		put_record(&dev->reaper, one);
	}
	return rvi_thread_start(&dev->reaper.thread, &dev->reaper.runs, reap, dev);
}

/* Hands an id over, whose events find no connection any more. */
static void leave_to_reaper(struct rv_dev *dev, struct rdma_cm_id *id, struct list *to,
			    const void *reason, uint8_t nr)
{
	struct rvi_reaper *r = &dev->reaper;
	struct rvi_id *one = id->context;

	rb_assert(r->runs && list_empty(&one->node));
	one->id = id;
	one->conn = NULL;
	one->nr_reason = nr;
	if (nr)
		memcpy(one->reason, reason, nr);
	pthread_mutex_lock(&r->lock);
	list_add_tail(to, &one->node);
	r->nr++;
	if (to == &r->refused)
		at_add(&r->nr_refused, 1);
	pthread_cond_signal(&r->more);
	pthread_mutex_unlock(&r->lock);
}

void rvi_reap(struct rv_dev *dev, struct rdma_cm_id *id)
{
	leave_to_reaper(dev, id, &dev->reaper.ids, NULL, 0);
}

void rvi_refuse(struct rv_dev *dev, struct rdma_cm_id *id, const void *reason, uint8_t nr)
{
	leave_to_reaper(dev, id, &dev->reaper.refused, reason, nr);
	rvi_help_reject(dev);
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
	rb_assert(list_empty(&r->refused) && list_empty(&r->ids) && !r->nr);
	free(r->spare);
	while ((l = list_pop(&r->stock)))
		free(container_of(l, struct rvi_id, node));
	pthread_cond_destroy(&r->more);
	pthread_mutex_destroy(&r->lock);
}
