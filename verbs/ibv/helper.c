/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that stops and destroys queue pairs, and makes those for READs. These calls wait for the
 * device's firmware or for the kernel. The thread that ends a connection holds the core's
 * progress lock, so it must not wait there. It leaves the queue pair to the helper, which needs no
 * lock of the core's.
 *
 *   LIVE --rvi_stop--> STOPPED --rvi_drain_for, rvi_destroy--> GONE --poll--> RV_EV_CLOSED
 *
 * A device may refuse to destroy a queue pair, again and again. That one is STUCK. The device might
 * still write where its READs were to land, so they are never reported. Neither it nor its
 * connection is used again. Only the end of the device, which takes the keys away, frees the rest.
 *
 * In STOPPED the device begins nothing new, and the peer was told. Then the holder of the lock
 * takes the queue pair's messages out of the queue. Only GONE says that nothing is served or
 * written any more.
 *
 * A queue pair for READs is made, and tied to the peer's (pair.c). A lost one is destroyed before
 * the next is made. A stop of its connection calls that off, or comes behind it.
 *
 * A task needs no memory: its place in the helper's list is in the connection. Besides, the helper
 * rejects requests of strangers, as the reaper does.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/limit.h"
#include "base/thread.h"
#include "ibv.h"

#define DESTROY_TRIES 8u
#define DESTROY_PAUSE_NS (20 * NSEC_PER_MSEC)

static void stop(struct rv_conn *conn)
{
	rvi_qp_error(conn);
	/* The peer's queue pair does not notice the end of ours: only the CM says it. Without a
	 * route it is said later, when the id is destroyed: reap.c. */
	if (conn->cm_used && rvi_can_reach(conn->dev, &conn->peer))
		rdma_disconnect(conn->id);
	at_store_rel(&conn->stage, RVI_QP_STOPPED);
}

/* Tries to stop a queue pair that cannot be destroyed, and says what that means. A lost one may
 * not be in the error state yet, in which it serves no READ of the peer's. */
static void tell_stuck(struct rv_dev *dev, struct ibv_qp *qp, int err)
{
	bool serves = rvi_qp_stop(qp) != 0;

	rvi_log(dev, 0,
		"%s: queue pair %u cannot be %s: %s. Memory that its READs may write is not "
		"used again%s",
		dev->caps.device, qp->qp_num, serves ? "stopped or destroyed" : "destroyed",
		strerror(err),
		serves ? ". Its peer may read the memory of values until the device is closed"
		       : "");
}

static int destroy_one(struct rv_dev *dev, struct ibv_qp *qp)
{
	int rc = rvi_qp_destroy(qp);

	/* A device that is gone serves and writes nothing. */
	for (unsigned tries = 1; rc && rc != EIO && rc != ENODEV && tries < DESTROY_TRIES;
	     tries++) {
		nanosleep(&(struct timespec){ .tv_nsec = DESTROY_PAUSE_NS }, NULL);
		rc = rvi_qp_destroy(qp);
	}
	if (rc == EIO || rc == ENODEV)
		rc = 0;
	if (rc)
		tell_stuck(dev, qp, rc);
	return -rc;
}

/* Destroys both queue pairs. There is none for READs if it could not be made, or not in time. */
static void destroy(struct rv_conn *conn)
{
	bool stuck = conn->reads_qp && destroy_one(conn->dev, conn->reads_qp);

	if (!stuck) {
		conn->reads_qp = NULL;
		stuck = destroy_one(conn->dev, conn->qp);
	}
	at_store_rel(&conn->stage, stuck ? RVI_QP_STUCK : RVI_QP_GONE);
}

/* Notes the end of work at the queue pair for READs. Pairs with pair_goes_on. */
static void done(struct rv_conn *conn, int rc)
{
	if (rc)
		rvi_log(conn->dev, 1, "%s: %s", conn->dev->caps.device, rv_error_text());
	at_store_rel(&conn->pair.done, rc ? rc : 1);
}

static void make_reads(struct rv_conn *conn)
{
	int rc = conn->reads_qp ? destroy_one(conn->dev, conn->reads_qp) : 0;

	if (rc) {
		rv_fail(-rc, "the READs of a connection cannot be ended");
	} else {
		conn->reads_qp = NULL;
		rc = rvi_qp_create_reads(conn);
	}
	done(conn, rc);
}

static void tie_reads(struct rv_conn *conn)
{
	done(conn, rvi_qp_link_reads(conn));
}

void rvi_news(struct rv_dev *dev)
{
	/* sc. Pairs with poll, which takes the mark before it looks. */
	if (!at_xchg_sc(&dev->helper.news, 1))
		(void)!write(dev->helper.fd, &(uint64_t){ 1 }, sizeof(uint64_t));
}

static void *help(void *arg)
{
	struct rv_dev *dev = arg;
	struct rvi_helper *h = &dev->helper;

	rb_thread_begin("rref-qp");
	pthread_mutex_lock(&h->lock);
	while (!h->stop || !list_empty(&h->tasks)) {
		struct list *l = list_pop(&h->tasks);
		struct rvi_task *task;

		if (!l && !at_load(&dev->reaper.nr_refused)) {
			pthread_cond_wait(&h->more, &h->lock);
			continue;
		}
		pthread_mutex_unlock(&h->lock);
		if (l) {
			task = container_of(l, struct rvi_task, node);
			task->run(task->conn);
			/* The connection may be another's from here on. */
			rvi_news(dev);
		}
		rvi_reject_next(dev);
		pthread_mutex_lock(&h->lock);
	}
	pthread_mutex_unlock(&h->lock);
	return NULL;
}

static void leave_to_helper(struct rvi_task *task, void (*run)(struct rv_conn *conn))
{
	struct rvi_helper *h = &task->conn->dev->helper;

	pthread_mutex_lock(&h->lock);
	rb_assert(h->runs && list_empty(&task->node));
	task->run = run;
	/* A stop goes first, and a tie: these are short, and the peer waits for them. */
	if (run == stop || run == tie_reads)
		list_add(&h->tasks, &task->node);
	else
		list_add_tail(&h->tasks, &task->node);
	pthread_cond_signal(&h->more);
	pthread_mutex_unlock(&h->lock);
}

void rvi_help_reject(struct rv_dev *dev)
{
	struct rvi_helper *h = &dev->helper;

	/* The mutex: the helper may be between its look and its sleep. */
	pthread_mutex_lock(&h->lock);
	pthread_cond_signal(&h->more);
	pthread_mutex_unlock(&h->lock);
}

static void call_off(struct rvi_task *task)
{
	struct rvi_helper *h = &task->conn->dev->helper;

	pthread_mutex_lock(&h->lock);
	list_del(&task->node);
	pthread_mutex_unlock(&h->lock);
}

void rvi_stop(struct rv_conn *conn)
{
	if (!conn->qp || conn->stops)
		return;
	conn->stops = true;
	call_off(&conn->pair_task);
	leave_to_helper(&conn->end_task, stop);
}

void rvi_destroy(struct rv_conn *conn)
{
	rb_assert_is(at_load(&conn->stage), ==, RVI_QP_STOPPED);
	conn->destroys = true;
	leave_to_helper(&conn->end_task, destroy);
}

void rvi_make_reads(struct rv_conn *conn)
{
	rb_assert(!conn->stops && !at_load(&conn->reads_open));
	at_store(&conn->pair.done, 0);
	leave_to_helper(&conn->pair_task, make_reads);
}

void rvi_tie_reads(struct rv_conn *conn)
{
	rb_assert(!conn->stops && conn->reads_qp);
	at_store(&conn->pair.done, 0);
	leave_to_helper(&conn->pair_task, tie_reads);
}

int rvi_thread_start(pthread_t *thread, bool *runs, void *(*run)(void *), struct rv_dev *dev)
{
	int err = rb_thread_start(thread, run, dev);
	char why[200];

	*runs = !err;
	if (!err)
		return 0;
	rb_thread_why(err, why, sizeof(why));
	return rv_fail(err, "no thread for the ends of connections: %s", why);
}

int rvi_helper_start(struct rv_dev *dev)
{
	struct rvi_helper *h = &dev->helper;
	int rc;

	h->fd = RB_OPEN(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	if (h->fd < 0)
		return rv_fail(errno, "%s", limit_why("eventfd", errno, 0));
	list_init(&h->tasks);
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->more, NULL);
	rc = rvi_thread_start(&h->thread, &h->runs, help, dev);
	return rc ? rc : rvi_reap_start(dev);
}

void rvi_helper_end(struct rv_dev *dev)
{
	struct rvi_helper *h = &dev->helper;

	if (h->fd < 0)
		return;
	pthread_mutex_lock(&h->lock);
	h->stop = true;
	pthread_cond_signal(&h->more);
	pthread_mutex_unlock(&h->lock);
	if (h->runs)
		pthread_join(h->thread, NULL);
	h->runs = false;
	/* No thread polls any more, and no queue pair is used. */
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++) {
		struct rv_conn *conn = rvi_conn_at(dev, i);

		if (!conn->qp)
			continue;
		if (at_load(&conn->stage) != RVI_QP_GONE)
			destroy(conn);
		rvi_qp_gone(conn);
	}
	pthread_cond_destroy(&h->more);
	pthread_mutex_destroy(&h->lock);
	rb_close(h->fd);
	h->fd = -1;
}
