/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Carries out one request between two queue pairs: READ, WRITE, SEND. The requester's engine is
 * held, and the peer's serve lock while its memory is touched. So a queue pair that is moved into
 * error, or destroyed, serves no request when that call has returned.
 */
#include "fv_own.h"

/* The pieces of a request in this process' memory. */
struct pieces {
	uint32_t nr;
	uint8_t *at[FV_SGE_MAX];
	uint32_t length[FV_SGE_MAX];
};

/* Finds the memory of pieces. Returns false if a key does not give that access. */
static bool find_pieces(const struct ibv_pd *pd, const struct ibv_sge *sge, uint32_t n,
			unsigned access, struct pieces *out)
{
	out->nr = n;
	for (uint32_t i = 0; i < n; i++) {
		out->length[i] = sge[i].length;
		out->at[i] = sge[i].length ? fv_memory(sge[i].lkey, pd, access, sge[i].addr,
						       sge[i].length)
					   : NULL;
		if (sge[i].length && !out->at[i])
			return false;
	}
	return true;
}

static bool own_pieces(struct fv_qp *q, const struct fv_wqe *e, uint32_t i, unsigned access,
		       struct pieces *out)
{
	if (e->flags & IBV_SEND_INLINE) {
		out->nr = 1;
		out->at[0] = &q->small[(size_t)i * q->init.cap.max_inline_data];
		out->length[0] = e->length;
		return true;
	}
	return find_pieces(q->base.pd, &q->sges[(size_t)i * q->init.cap.max_send_sge], e->nr_sge,
			   access, out);
}

/* Copies the pieces from one run of bytes. */
static void scatter(const struct pieces *to, const uint8_t *from)
{
	for (uint32_t i = 0; i < to->nr; from += to->length[i++])
		if (to->length[i])
			fv_dma(to->at[i], from, to->length[i]);
}

/* Copies pieces to pieces: the bytes of `from`, for which there is room. */
static void move_pieces(const struct pieces *to, const struct pieces *from)
{
	uint32_t t = 0, done = 0;

	for (uint32_t f = 0; f < from->nr; f++) {
		uint32_t at = 0;

		while (at < from->length[f]) {
			uint32_t n = min_of(from->length[f] - at, to->length[t] - done);

			if (n)
				memcpy(to->at[t] + done, from->at[f] + at, n);
			at += n;
			done += n;
			if (done == to->length[t]) {
				t++;
				done = 0;
			}
		}
	}
}

/* Tells whether the peer answers at all. [p->serve] */
static bool answers(const struct fv_qp *p, const struct fv_qp *q)
{
	int state = at_load_acq(&p->state);

	return at_load_acq(&p->num) == at_load(&q->dest) &&
	       (state == IBV_QPS_RTR || state == IBV_QPS_RTS || state == IBV_QPS_SQD) &&
	       at_load(&p->dest) == at_load(&q->num) && !at_load(&p->device->knobs.silent);
}

/* Tries again after the ACK time-out, until the tries are used up. */
static int no_answer(struct fv_qp *q, struct fv_wqe *e)
{
	uint32_t timeout = at_load(&q->timeout);

	if (e->tries++ >= at_load(&q->retry)) {
		at_add(&q->device->counts[FV_TIMEOUTS], 1);
		return IBV_WC_RETRY_EXC_ERR;
	}
	e->due_ns = now_ns() + (INT64_C(4096) << (timeout ? min_of(timeout, 31u) : 20));
	return FV_LATER;
}

/* Puts the peer into error: it was asked for something that it does not allow. [p->serve] */
static void break_peer(struct fv_qp *p, enum ibv_event_type event)
{
	fv_set_error(p);
	if (p->device->profile.tells_qp_errors)
		fv_event_add(fv_context_of(p->base.context), event, &p->base);
	if (fv_mark(p->send_cq, p->send_slot))
		fv_wake_at(0);
}

/* Carries out a READ or WRITE. [p->serve] */
static int access_peer(struct fv_qp *p, const struct fv_wqe *e, const struct pieces *own)
{
	bool read = e->opcode == IBV_WR_RDMA_READ;
	unsigned access = read ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
	uint8_t *at = NULL;

	if (!(at_load(&p->access) & access) || (read && !at_load(&p->dest_rd_atomic))) {
		break_peer(p, IBV_EVENT_QP_REQ_ERR);
		return IBV_WC_REM_INV_REQ_ERR;
	}
	if (e->length)
		at = fv_memory(e->rkey, p->base.pd, access, e->remote, e->length);
	if (e->length && !at) {
		break_peer(p, IBV_EVENT_QP_ACCESS_ERR);
		return IBV_WC_REM_ACCESS_ERR;
	}
	if (read) {
		scatter(own, at);
	} else if (e->length) {
		struct pieces to = { .nr = 1, .at = { at }, .length = { e->length } };

		move_pieces(&to, own);
	}
	return IBV_WC_SUCCESS;
}

/* ---- messages ---- */

/* Returns the time of one of IBTA's RNR codes; code 0 is the longest. */
static int64_t rnr_ns(unsigned code)
{
	unsigned n = (code & 31) ? (code & 31) : 32;

	/* Counts 1, 2, 3, 4, 6, 8, 12, 16 and so on: a code is twice the last but one. */
	if (n <= 2)
		return n * 10 * NSEC_PER_USEC;
	return ((n & 1 ? 3 : 4) << (n - 3) / 2) * 10 * NSEC_PER_USEC;
}

/* Tries again after the receiver's RNR time, as often as the sender allows. */
static int not_ready(struct fv_qp *q, const struct fv_qp *p, struct fv_wqe *e)
{
	uint32_t max = at_load(&q->rnr_retry);

	at_add(&q->device->counts[FV_RNR], 1);
	if (max != 7 && e->rnr++ >= max)
		return IBV_WC_RNR_RETRY_EXC_ERR;
	e->due_ns = now_ns() + rnr_ns(at_load(&p->min_rnr));
	return FV_LATER;
}

/* Takes the next buffer. Returns false if there is none. */
static bool take_buffer(struct fv_queue *queue, struct fv_recv *out, struct ibv_sge *sges)
{
	bool found;

	fv_take(&queue->lock);
	found = queue->head != queue->tail;
	if (found) {
		uint32_t i = queue->head++ & queue->mask;

		*out = queue->ring[i];
		memcpy(sges, &queue->sges[(size_t)i * queue->max_sge],
		       out->nr_sge * sizeof(*sges));
	}
	fv_give(&queue->lock);
	return found;
}

/* Completes a receive that failed: its queue pair is in error, and so is the sender's. */
static int receive_failed(struct fv_qp *p, const struct fv_recv *r, enum ibv_wc_status status)
{
	bool too_long = status == IBV_WC_LOC_LEN_ERR;
	struct ibv_wc wc = { .wr_id = r->wr_id, .status = status, .qp_num = at_load(&p->num) };

	break_peer(p, too_long ? IBV_EVENT_QP_REQ_ERR : IBV_EVENT_QP_ACCESS_ERR);
	fv_cq_push(p->recv_cq, &wc, false);
	return too_long ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR;
}

static void received(struct fv_qp *q, struct fv_qp *p, const struct fv_wqe *e, uint64_t wr_id)
{
	bool imm = e->opcode == IBV_WR_SEND_WITH_IMM;
	struct ibv_wc wc = { .wr_id = wr_id,
			     .status = IBV_WC_SUCCESS,
			     .opcode = IBV_WC_RECV,
			     .byte_len = e->length,
			     .qp_num = at_load(&p->num),
			     .src_qp = at_load(&q->num),
			     .imm_data = imm ? e->imm : 0,
			     .wc_flags = imm ? IBV_WC_WITH_IMM : 0 };

	if (!p->heard && at_load(&p->state) == IBV_QPS_RTR && p->device->profile.tells_qp_errors)
		fv_event_add(fv_context_of(p->base.context), IBV_EVENT_COMM_EST, &p->base);
	p->heard = true;
	fv_cq_push(p->recv_cq, &wc, e->flags & IBV_SEND_SOLICITED);
}

/* Carries out a SEND. [p->serve] */
static int send_to(struct fv_qp *q, struct fv_qp *p, struct fv_wqe *e, const struct pieces *own)
{
	struct ibv_sge sges[FV_SGE_MAX];
	struct pieces to;
	struct fv_recv r;
	uint64_t room = 0;

	if (!take_buffer(p->srq ? &p->srq->queue : &p->queue, &r, sges))
		return not_ready(q, p, e);
	for (uint32_t i = 0; i < r.nr_sge; i++)
		room += sges[i].length;
	if (room < e->length)
		return receive_failed(p, &r, IBV_WC_LOC_LEN_ERR);
	if (!find_pieces(p->srq ? p->srq->base.pd : p->base.pd, sges, r.nr_sge,
			 IBV_ACCESS_LOCAL_WRITE, &to))
		return receive_failed(p, &r, IBV_WC_LOC_PROT_ERR);
	move_pieces(&to, own);
	received(q, p, e, r.wr_id);
	return IBV_WC_SUCCESS;
}

int fv_carry_out(struct fv_qp *q, struct fv_wqe *e, uint32_t i)
{
	struct fv_qp *p = fv_peer(q);
	bool message = e->opcode == IBV_WR_SEND || e->opcode == IBV_WR_SEND_WITH_IMM;
	struct pieces own;
	int status;

	if (e->length > q->device->profile.max_msg)
		return IBV_WC_LOC_LEN_ERR;
	if (!own_pieces(q, e, i, e->opcode == IBV_WR_RDMA_READ ? IBV_ACCESS_LOCAL_WRITE : 0, &own))
		return IBV_WC_LOC_PROT_ERR;
	if (!p || at_load(&q->device->knobs.silent))
		return no_answer(q, e);
	fv_take(&p->serve);
	if (!answers(p, q))
		status = no_answer(q, e);
	else
		status = message ? send_to(q, p, e, &own) : access_peer(p, e, &own);
	fv_give(&p->serve);
	return status;
}
