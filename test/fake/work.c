/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests: posted, and carried out in order when they are due.
 *
 * A post puts a request into the queue pair's ring. A thread carries it out that polls the
 * requester's completion queue. For a message it may poll the receiver's queue. For a thread that
 * sleeps the poster does it, or the timer's thread.
 */
#include <errno.h>

#include "fv_own.h"

/* Returns the time at which the last byte of a READ has come to this device. */
static int64_t over_the_wire(struct fv_device *d, int64_t from, uint32_t bytes, int64_t ns_per_kib)
{
	int64_t took = (int64_t)bytes * ns_per_kib / 1024, free_at = at_load(&d->wire_free_ns), end;

	do {
		end = max_of(from, free_at) + took;
	} while (!at_cas_weak_ar(&d->wire_free_ns, &free_at, end));
	return end;
}

/*
 * Returns when a request posted now is over, unless an earlier one takes longer. Of a queue pair's
 * READs rd_atomic are under way at once. [posting]
 */
static int64_t due_of(struct fv_qp *q, enum ibv_wr_opcode opcode, uint32_t bytes)
{
	struct fv_device *d = q->device;
	int64_t delay = at_load(&d->knobs.delay_ns), kib = at_load(&d->knobs.ns_per_kib), due;
	bool read = opcode == IBV_WR_RDMA_READ;
	uint32_t depth = max_of(min_of(at_load(&q->rd_atomic), FV_RD_MAX), 1u);

	if (unlikely(read && fv_strikes(&d->knobs.strand_reads)))
		return INT64_MAX / 2;
	if (likely(!delay && !kib))
		return 0;
	due = now_ns();
	if (read)
		due = max_of(due, q->read_due_ns[q->nr_reads % depth]);
	if (read && kib)
		due = over_the_wire(d, due, bytes, kib);
	due += delay;
	if (read)
		q->read_due_ns[q->nr_reads++ % depth] = due;
	return due;
}

/* Returns the length of a request, or -1 for one that the device refuses. */
static int64_t check_request(const struct fv_qp *q, const struct ibv_send_wr *wr)
{
	bool in = wr->send_flags & IBV_SEND_INLINE;
	uint64_t bytes = 0;

	switch (wr->opcode) {
	case IBV_WR_SEND:
	case IBV_WR_SEND_WITH_IMM:
	case IBV_WR_RDMA_WRITE:
		break;
	case IBV_WR_RDMA_READ:
		if (in)
			return -1;
		break;
	default:
		return -1;
	}
	if (wr->num_sge < 0 || (uint32_t)wr->num_sge > q->init.cap.max_send_sge)
		return -1;
	for (int i = 0; i < wr->num_sge; i++)
		bytes += wr->sg_list[i].length;
	if (bytes > UINT32_MAX || (in && bytes > q->init.cap.max_inline_data))
		return -1;
	return (int64_t)bytes;
}

static void copy_inline(uint8_t *to, const struct ibv_send_wr *wr)
{
	for (int i = 0; i < wr->num_sge; i++) {
		if (wr->sg_list[i].length)
			memcpy(to, (const void *)(uintptr_t)wr->sg_list[i].addr,
			       wr->sg_list[i].length);
		to += wr->sg_list[i].length;
	}
}

static enum fv_count_of kind_of(enum ibv_wr_opcode opcode)
{
	return opcode == IBV_WR_RDMA_READ    ? FV_READS
	       : opcode == IBV_WR_RDMA_WRITE ? FV_WRITES
					     : FV_SENDS;
}

/* Puts a request into the ring, and says when it is due. Returns 0 or an errno. [posting] */
static int put_request(struct fv_qp *q, const struct ibv_send_wr *wr, int64_t *due_ns)
{
	uint32_t tail = at_load(&q->tail), i = tail & q->sq_mask;
	int64_t bytes = check_request(q, wr);
	struct fv_wqe *e = &q->sq[i];

	if (bytes < 0)
		return EINVAL;
	if (tail - at_load_acq(&q->head) >= q->max_sq)
		return ENOMEM;
	e->wr_id = wr->wr_id;
	e->remote = wr->wr.rdma.remote_addr;
	e->rkey = wr->wr.rdma.rkey;
	e->length = (uint32_t)bytes;
	e->nr_sge = (uint32_t)wr->num_sge;
	e->flags = wr->send_flags;
	e->opcode = wr->opcode;
	e->imm = wr->imm_data;
	e->tries = e->rnr = 0;
	*due_ns = e->due_ns = due_of(q, wr->opcode, e->length);
	if (wr->send_flags & IBV_SEND_INLINE)
		copy_inline(&q->small[(size_t)i * q->init.cap.max_inline_data], wr);
	else if (wr->num_sge)
		memcpy(&q->sges[(size_t)i * q->init.cap.max_send_sge], wr->sg_list,
		       (size_t)wr->num_sge * sizeof(*wr->sg_list));
	at_add_mine(&q->posted[kind_of(wr->opcode)], 1);
	at_store_sc(&q->tail, tail + 1);
	return 0;
}

/* Notes that there is something to do. If a thread may sleep, does it or wakes the timer. A message
 * is looked for at the receiver too, and so is all that is before it. */
static void mark(struct fv_qp *q, bool message, int64_t due_ns)
{
	struct fv_qp *p = message ? fv_peer(q) : NULL;
	bool sleeps = fv_mark(q->send_cq, q->send_slot);

	if (p && fv_mark(p->recv_cq, p->recv_slot))
		sleeps = true;
	if (likely(!sleeps))
		return;
	if (due_ns || fv_run(q) != FV_NEVER)
		fv_wake_at(due_ns);
}

/* Tells whether a queue pair in that state takes requests. */
static bool takes_requests(const struct fv_qp *q, int state)
{
	if (state == IBV_QPS_ERR)
		return !at_load(&q->device->knobs.refuse_in_error);
	return state == IBV_QPS_RTS || state == IBV_QPS_SQD;
}

int fv_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct fv_qp *q = fv_qp_of(qp);
	const struct ibv_send_wr *first = wr;
	int rc = 0;
	bool message = false;
	int64_t due = 0, last;

	if (!takes_requests(q, at_load(&q->state))) {
		*bad = wr;
		return EINVAL;
	}
	if (wr->opcode == IBV_WR_SEND && fv_strikes(&q->device->knobs.no_room)) {
		*bad = wr;
		return ENOMEM;
	}
	fv_take(&q->posting);
	for (; wr && !(rc = put_request(q, wr, &last)); wr = wr->next) {
		message |= kind_of(wr->opcode) == FV_SENDS;
		if (wr == first)
			due = last;
	}
	fv_give(&q->posting);
	if (rc)
		*bad = wr;
	if (first != wr)
		mark(q, message, due);
	return rc;
}

int fv_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct fv_qp *q = fv_qp_of(qp);
	int rc;

	if (q->srq || at_load(&q->state) == IBV_QPS_RESET) {
		*bad = wr;
		return EINVAL;
	}
	rc = fv_queue_post(&q->queue, wr, bad);
	if (at_load(&q->state) == IBV_QPS_ERR)
		fv_run_all(q);
	return rc;
}

int fv_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return fv_queue_post(&container_of(srq, struct fv_srq, base)->queue, wr, bad);
}

/* ---- carrying out ---- */

static enum ibv_wc_opcode opcode_of(enum ibv_wr_opcode opcode)
{
	return opcode == IBV_WR_RDMA_READ    ? IBV_WC_RDMA_READ
	       : opcode == IBV_WR_RDMA_WRITE ? IBV_WC_RDMA_WRITE
					     : IBV_WC_SEND;
}

/* Makes the completion of a request. Of a failed one all is rubbish that need not be right. */
static void complete(struct fv_qp *q, const struct fv_wqe *e, enum ibv_wc_status status)
{
	struct ibv_wc wc = { .wr_id = e->wr_id, .status = status, .qp_num = at_load(&q->num) };

	if (status == IBV_WC_SUCCESS) {
		if (!(e->flags & IBV_SEND_SIGNALED) && !q->sig_all)
			return;
		wc.opcode = opcode_of(e->opcode);
		wc.byte_len = e->length;
	} else {
		wc.opcode = (enum ibv_wc_opcode)0x5a;
		wc.byte_len = 0x5a5a5a5a;
		wc.wc_flags = 0x5a;
		wc.vendor_err = 0x5a;
		at_add(&q->device->counts[status == IBV_WC_WR_FLUSH_ERR ? FV_FLUSHED : FV_FAILED],
		       1);
		if (status == IBV_WC_WR_FLUSH_ERR && at_load(&q->device->knobs.lose_flushes))
			return;
	}
	fv_cq_push(q->send_cq, &wc, false);
}

void fv_set_error(struct fv_qp *q)
{
	at_store_rel(&q->state, IBV_QPS_ERR);
}

/* Flushes the receives of a queue pair in error. Tells that it takes no more of a shared queue. */
static void flush_receives(struct fv_qp *q)
{
	struct fv_queue *r = &q->queue;

	if (!q->told && q->srq && q->device->profile.tells_last_wqe)
		fv_event_add(fv_context_of(q->base.context), IBV_EVENT_QP_LAST_WQE_REACHED,
			     &q->base);
	q->told = true;
	fv_take(&r->lock);
	while (r->head != r->tail) {
		struct ibv_wc wc = { .wr_id = r->ring[r->head++ & r->mask].wr_id,
				     .status = IBV_WC_WR_FLUSH_ERR,
				     .qp_num = at_load(&q->num),
				     .opcode = (enum ibv_wc_opcode)0x5a };

		fv_cq_push(q->recv_cq, &wc, false);
	}
	fv_give(&r->lock);
}

/* Carries out what is due. [engine] Returns the time of the next, or FV_NEVER. */
static int64_t run_due(struct fv_qp *q)
{
	uint32_t head = at_load(&q->head);
	int64_t now = 0;

	if (unlikely(at_load_acq(&q->state) == IBV_QPS_ERR))
		flush_receives(q);
	for (; head != at_load_acq(&q->tail); at_store_rel(&q->head, ++head)) {
		struct fv_wqe *e = &q->sq[head & q->sq_mask];
		int status = IBV_WC_WR_FLUSH_ERR;

		if (likely(at_load_acq(&q->state) != IBV_QPS_ERR)) {
			if (e->due_ns && e->due_ns > now && e->due_ns > (now = now_ns()))
				return e->due_ns;
			status = fv_carry_out(q, e, head & q->sq_mask);
		}
		if (unlikely(status == FV_LATER))
			return e->due_ns;
		complete(q, e, (enum ibv_wc_status)status);
		if (likely(status == IBV_WC_SUCCESS || status == IBV_WC_WR_FLUSH_ERR))
			continue;
		fv_take(&q->serve);
		fv_set_error(q);
		fv_give(&q->serve);
		flush_receives(q);
	}
	return FV_NEVER;
}

int64_t fv_run(struct fv_qp *q)
{
	int64_t next;

	if (!fv_try(&q->engine))
		return FV_BUSY;
	next = run_due(q);
	fv_give(&q->engine);
	return next;
}

void fv_run_all(struct fv_qp *q)
{
	fv_take(&q->engine);
	run_due(q);
	fv_give(&q->engine);
}
