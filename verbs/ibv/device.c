/* SPDX-License-Identifier: Apache-2.0 */
/* Open and close: the device's objects, their sizes, and their end in reverse order. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "ibv.h"

void rvi_log(struct rv_dev *dev, int level, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	if (!dev->log)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	dev->log(dev->log_ctx, level, text);
}

/* Sizes a connection's part of the queues. */
static int size_each(struct rv_dev *dev, const struct rv_options *opt)
{
	const struct ibv_device_attr *a = &dev->attr;
	uint32_t max_wr = (uint32_t)max_of(a->max_qp_wr, 0);

	dev->credits = opt->credits ? opt->credits : 64;
	if (dev->credits < RVI_CREDITS_MIN || dev->credits > 16384)
		return rv_fail(EINVAL, "credits %u: %u to 16384 are possible", dev->credits,
			       RVI_CREDITS_MIN);
	dev->credit_class = rvi_credit_class(dev->credits);
	dev->nr_sends = RVI_SENDS_MAX + RVI_FREE_BUFS;
	if (max_wr <= dev->nr_sends || a->max_srq_wr <= 0)
		return rv_fail(EOPNOTSUPP, "%s has %s", dev->caps.device,
			       a->max_srq_wr > 0 ? "too small send queues"
						 : "no shared receive queues");
	dev->max_sge = (uint32_t)max_of(min_of(min_of(a->max_sge, a->max_sge_rd), RV_READ_SGE_MAX),
					RV_READ_SGE);
	dev->max_reads = opt->max_reads ? opt->max_reads : 256;
	dev->max_reads = min_of(min_of(dev->max_reads, max_wr), RVI_SLOTS_MAX);
	return 0;
}

/*
 * Sizes the queues for every completion that can be under way. An overrun loses some without a word
 * (seen on rxe). If the device's queues are too small for the wish, fewer connections are made,
 * never fuller queues.
 */
static int size_queues(struct rv_dev *dev, const struct rv_options *opt)
{
	const struct ibv_device_attr *a = &dev->attr;
	uint32_t want = opt->max_conns ? opt->max_conns : 64;
	uint32_t max_cqe = (uint32_t)max_of(a->max_cqe, 0),
		 max_srq = (uint32_t)max_of(a->max_srq_wr, 0), recv_each, max, closing;
	int rc = size_each(dev, opt);

	if (rc)
		return rc;
	recv_each = dev->credits + RVI_FREE_BUFS;
	max = min_of(max_cqe / (dev->max_reads + dev->nr_sends),
		     min_of(max_srq, max_cqe) / recv_each);
	/* two for each connection */
	max = min_of(min_of(max, (uint32_t)max_of(a->max_qp, 0) / 2),
		     (RVI_CONNS_MAX - RVI_HALF_OPEN_MAX) / 2);
	/* The living ones come first. Without such room a new one waits (ENOBUFS) for a destroy. */
	closing = min_of(min_of(want, RVI_CLOSING_MAX), max - min_of(want, max));
	if (!max)
		return rv_fail(EINVAL,
			       "%u reads and %u credits per connection are more than the queues of "
			       "%s hold",
			       dev->max_reads, dev->credits, dev->caps.device);
	dev->max_conns = min_of(want, max - closing);
	dev->max_qps = dev->max_conns + closing;
	if (dev->max_conns < want)
		rvi_log(dev, 1,
			"%s: %u connections instead of %u: its queues hold %u completions and %u "
			"receives",
			dev->caps.device, dev->max_conns, want, max_cqe, max_srq);
	/* Structs for requests, and for closed ones whose READs wait to be reported. */
	dev->max_slots = 2 * dev->max_qps + RVI_HALF_OPEN_MAX;
	dev->max_responder = (uint8_t)min_of(a->max_qp_rd_atom, RVI_RD_ATOMIC_MAX);
	dev->max_initiator = (uint8_t)min_of(a->max_qp_init_rd_atom, RVI_RD_ATOMIC_MAX);
	if (!dev->max_responder || !dev->max_initiator)
		return rv_fail(EOPNOTSUPP, "%s does no RDMA READ", dev->caps.device);
	return 0;
}

static int make_queues(struct rv_dev *dev)
{
	uint32_t sends = dev->max_qps * (dev->max_reads + dev->nr_sends);
	uint32_t recvs = dev->max_qps * (dev->credits + RVI_FREE_BUFS);
	struct ibv_srq_init_attr srq = { .attr = { .max_wr = recvs, .max_sge = 1 } };

	dev->pd = ibv_alloc_pd(dev->ctx);
	if (!dev->pd)
		return rv_fail(errno, "%s: no protection domain: %s", dev->caps.device,
			       strerror(errno));
	rvi_keep_begin();
	dev->channel = ibv_create_comp_channel(dev->ctx);
	if (dev->channel)
		rvi_keep_fd(dev->channel->fd);
	rvi_keep_end();
	if (!dev->channel)
		return rv_fail(errno, "%s: no completion channel: %s", dev->caps.device,
			       strerror(errno));
	rvi_keep_begin();
	dev->send_cq = ibv_create_cq(dev->ctx, (int)sends, NULL, dev->channel, 0);
	if (dev->send_cq)
		dev->recv_cq = ibv_create_cq(dev->ctx, (int)recvs, NULL, dev->channel, 0);
	rvi_keep_end();
	if (!dev->recv_cq)
		return rv_fail(errno, "%s: no completion queue of %u: %s", dev->caps.device, sends,
			       strerror(errno));
	rvi_keep_begin();
	dev->srq = ibv_create_srq(dev->pd, &srq);
	rvi_keep_end();
	if (!dev->srq)
		return rv_fail(errno, "%s: no shared receive queue of %u: %s", dev->caps.device,
			       recvs, strerror(errno));
	return rvi_qp_probe(dev);
}

static int make_tables(struct rv_dev *dev)
{
	uint32_t recv_each = dev->credits + RVI_FREE_BUFS, hash = 64;
	int rc;

	while (hash < 2 * dev->max_qps)
		hash *= 2;
	dev->qpn_mask = hash - 1;
	dev->stash_max = dev->max_qps * recv_each + RVI_BATCH;
	dev->conns = calloc(dev->max_slots, sizeof(*dev->conns));
	dev->qpn_table = calloc(hash, sizeof(*dev->qpn_table));
	/* most of it untouched until a fence needs it */
	dev->stash = malloc(dev->stash_max * sizeof(*dev->stash));
	if (!dev->conns || !dev->qpn_table || !dev->stash)
		return rv_fail(ENOMEM, "no memory for %u connections", dev->max_conns);
	/* Twice: buffers of closed connections stay with the core until it gives them back. */
	rc = rvi_pool_init(&dev->recv_pool, 2 * dev->max_qps * recv_each, recv_each);
	if (!rc)
		rc = rvi_sent_init(dev, dev->max_qps * (dev->max_reads + dev->nr_sends));
	return rc
		? rc
		: rvi_pool_init(&dev->send_pool, dev->max_qps * dev->nr_sends, dev->nr_sends / 3);
}

static int describe(struct rv_dev *dev, const struct rvi_pick *pick)
{
	struct ibv_port_attr port;
	int rc = ibv_query_device(dev->ctx, &dev->attr);

	if (!rc)
		rc = ibv_query_port(dev->ctx, (uint8_t)pick->port, &port);
	snprintf(dev->caps.device, sizeof(dev->caps.device), "%s:%d:%d",
		 ibv_get_device_name(dev->ctx->device), pick->port, pick->gid_index);
	if (rc)
		return rv_fail(rc, "%s cannot be queried: %s", dev->caps.device, strerror(rc));
	dev->port = (uint8_t)pick->port;
	dev->ifindex = rvi_gid_netdev(dev->ctx, pick->port, pick->gid_index);
	/* A piece of a READ has a length of 32 bits, even if the device could do more. */
	dev->max_msg = min_of(port.max_msg_sz, 1u << 31);
	return 0;
}

/* Sets the longest ACK time-out with which all tries are over within silence_ns. */
static void set_silence(struct rv_dev *dev, const struct rv_options *opt)
{
	int64_t silence_ns = opt->silence_ns ? opt->silence_ns : RVI_SILENCE_NS;
	int64_t connect_ns = opt->connect_ns ? opt->connect_ns : RVI_CONNECT_NS;

	dev->ack_timeout = RVI_ACK_TIMEOUT_MIN;
	while (dev->ack_timeout < RVI_ACK_TIMEOUT_MAX &&
	       (INT64_C(4096) << (dev->ack_timeout + 1)) * (RVI_RETRY_CNT + 1) <= silence_ns)
		dev->ack_timeout++;
	dev->patience_ns = (INT64_C(4096) << dev->ack_timeout) * (RVI_RETRY_CNT + 1) +
		RVI_WATCH_SLACK_NS;
	/* A device that may be silent for longer may also need
	 * longer to connect: an overloaded or emulated host. */
	dev->connect_ns = max_of(connect_ns,
				 silence_ns > INT64_MAX / 5 ? INT64_MAX / 5 : 5 * silence_ns);
}

int rvi_open(const struct rv_options *opt, struct rv_dev **out)
{
	struct rvi_pick pick = { 0 };
	struct rv_dev *dev;
	int rc;

	rc = rvi_pick(opt, &pick);
	if (rc)
		return rc;
	dev = aligned_alloc(CACHE_LINE, sizeof(*dev));
	if (!dev) {
		rvi_context_close(pick.ctx);
		return rv_fail(ENOMEM, "no memory for a device");
	}
	memset(dev, 0, sizeof(*dev));
	dev->ctx = pick.ctx;
	dev->epfd = dev->timerfd = dev->helper.fd = -1;
	set_silence(dev, opt);
	dev->log = opt->log;
	dev->log_ctx = opt->log_ctx;
	list_init(&dev->closed);
	list_init(&dev->pairs);
	list_init(&dev->unsaid);
	list_init(&dev->ends);
	list_init(&dev->free_conns);
	list_init(&dev->regions);
	pthread_mutex_init(&dev->region_lock, NULL);
	rvi_reap_init(dev);

	if ((rc = describe(dev, &pick)) || (rc = size_queues(dev, opt)) ||
	    (rc = make_queues(dev)) || (rc = make_tables(dev)) || (rc = rvi_listen(dev, &pick)) ||
	    (rc = rvi_helper_start(dev)) || (rc = rvi_wake_init(dev))) {
		rvi_close(dev);
		return rc;
	}
	dev->caps.max_msg = dev->max_msg;
	dev->caps.max_inline =
		dev->max_inline -
		min_of(dev->max_inline, (uint32_t)(RVI_FRAME_BYTES + RVI_SEAL_BYTES));
	dev->caps.max_reads = dev->max_reads;
	dev->caps.max_sge = dev->max_sge;
	dev->caps.max_rd_atomic = dev->max_initiator;
	dev->caps.reads_inline = false;
	rvi_log(dev, 2, "%s: %u connections, %u reads each, %u credits, %u bytes inline",
		dev->caps.device, dev->max_conns, dev->max_reads, dev->credits, dev->max_inline);
	*out = dev;
	return 0;
}

static void free_conns(struct rv_dev *dev)
{
	/* All closed before any is freed: they hang in one another's lists. */
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++)
		rvi_close_conn(rvi_conn_at(dev, i));
	rvi_helper_end(dev);
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++) {
		if (rvi_conn_at(dev, i)->id)
			rvi_reap(dev, rvi_conn_at(dev, i)->id);
	}
	for (uint32_t i = 0; i < at_load(&dev->nr_conns); i++) {
		struct rv_conn *conn = at_load(&dev->conns[i]);

		free(at_load(&conn->reads));
		free(conn->sends);
		free(conn);
	}
	free(dev->conns);
}

/* Takes a device that open() left half made, too. Nothing in it waits for a peer. */
void rvi_close(struct rv_dev *dev)
{
	if (!dev)
		return;
	free_conns(dev);
	rvi_reap_fini(dev);
	if (dev->listener)
		rdma_destroy_id(dev->listener);
	if (dev->cm) {
		rb_hold();
		rb_forget(dev->cm->fd);
		rdma_destroy_event_channel(dev->cm);
		rb_release();
	}
	if (dev->srq)
		ibv_destroy_srq(dev->srq);
	if (dev->epfd >= 0)
		rvi_disarm(dev); /* unacked notifications would hold up the queues */
	if (dev->recv_cq)
		ibv_destroy_cq(dev->recv_cq);
	if (dev->send_cq)
		ibv_destroy_cq(dev->send_cq);
	if (dev->channel) {
		rb_hold();
		rb_forget(dev->channel->fd);
		ibv_destroy_comp_channel(dev->channel);
		rb_release();
	}
	rvi_pool_free(&dev->recv_pool);
	rvi_pool_free(&dev->send_pool);
	rvi_regions_free(dev);
	if (dev->pd)
		ibv_dealloc_pd(dev->pd);
	rvi_context_close(dev->ctx);
	rb_close(dev->timerfd);
	rb_close(dev->epfd);
	pthread_mutex_destroy(&dev->region_lock);
	free(dev->stash);
	free(dev->odd);
	free(dev->qpn_table);
	free(dev);
}
