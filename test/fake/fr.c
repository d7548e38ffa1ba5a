/* SPDX-License-Identifier: Apache-2.0 */
#include "fr.h"

#include <poll.h>
#include <stdlib.h>

#define WRS 64u
#define LONG_NS (20 * NSEC_PER_SEC)

void fr_open(struct fr_end *e, unsigned device, bool srq)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_srq_init_attr s = { .attr = { .max_wr = WRS, .max_sge = 1 } };
	struct ibv_qp_init_attr q = { .qp_type = IBV_QPT_RC,
				      .cap = { WRS, WRS, 2, 1, 64 } };

	*e = (struct fr_end){ .device = device };
	e->context = ibv_open_device(list[device]);
	ibv_free_device_list(list);
	assert_non_null(e->context);
	e->pd = ibv_alloc_pd(e->context);
	e->channel = ibv_create_comp_channel(e->context);
	e->cq = ibv_create_cq(e->context, 2 * (int)WRS, NULL, e->channel, 0);
	e->srq = srq ? ibv_create_srq(e->pd, &s) : NULL;
	q.send_cq = q.recv_cq = e->cq;
	q.srq = e->srq;
	e->qp = ibv_create_qp(e->pd, &q);
	e->mem = aligned_alloc(4096, FR_BYTES);
	memset(e->mem, 0, FR_BYTES);
	e->iova = UINT64_C(0x700000000000) + device * (UINT64_C(1) << 32);
	e->mr = ibv_reg_mr_iova(e->pd, e->mem, FR_BYTES, e->iova,
				IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	assert_true(e->cq && e->qp && e->mr && (!srq || e->srq));
}

void fr_close(struct fr_end *e)
{
	if (e->qp)
		assert_int_equal(ibv_destroy_qp(e->qp), 0);
	if (e->srq)
		assert_int_equal(ibv_destroy_srq(e->srq), 0);
	assert_int_equal(ibv_destroy_cq(e->cq), 0);
	assert_int_equal(ibv_destroy_comp_channel(e->channel), 0);
	if (e->mr)
		assert_int_equal(ibv_dereg_mr(e->mr), 0);
	assert_int_equal(ibv_dealloc_pd(e->pd), 0);
	ibv_close_device(e->context);
	free(e->mem);
}

#define TO_INIT (IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)
#define TO_RTR \
	(IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | \
	 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)
#define TO_RTS \
	(IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | \
	 IBV_QP_MAX_QP_RD_ATOMIC)

void fr_connect(struct fr_end *e, uint32_t dest, unsigned access, struct fr_times times)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_INIT,
				 .port_num = 1,
				 .qp_access_flags = access,
				 .path_mtu = IBV_MTU_1024,
				 .dest_qp_num = dest,
				 .max_dest_rd_atomic = 16,
				 .min_rnr_timer = 1,
				 .timeout = times.timeout,
				 .retry_cnt = times.retry,
				 .rnr_retry = times.rnr_retry,
				 .max_rd_atomic = 16 };

	assert_int_equal(ibv_modify_qp(e->qp, &a, TO_INIT), 0);
	a.qp_state = IBV_QPS_RTR;
	assert_int_equal(ibv_modify_qp(e->qp, &a, TO_RTR), 0);
	a.qp_state = IBV_QPS_RTS;
	assert_int_equal(ibv_modify_qp(e->qp, &a, TO_RTS), 0);
}

void fr_pair_up(struct fr_pair *p, bool srq, struct fr_times times)
{
	fr_open(&p->a, 0, srq);
	fr_open(&p->b, 1, srq);
	fr_connect(&p->a, p->b.qp->qp_num, IBV_ACCESS_REMOTE_READ, times);
	fr_connect(&p->b, p->a.qp->qp_num, IBV_ACCESS_REMOTE_READ, times);
}

void fr_pair_down(struct fr_pair *p)
{
	fr_close(&p->a);
	fr_close(&p->b);
}

int fr_read(struct fr_end *e, const struct fr_end *from, uint64_t wr_id, size_t offset,
	    uint32_t length)
{
	struct ibv_sge sge = { .addr = e->iova + offset, .length = length, .lkey = e->mr->lkey };
	struct ibv_send_wr *bad = NULL, wr = { .wr_id = wr_id,
					       .sg_list = &sge,
					       .num_sge = 1,
					       .opcode = IBV_WR_RDMA_READ,
					       .send_flags = IBV_SEND_SIGNALED };

	wr.wr.rdma.remote_addr = from->iova + offset;
	wr.wr.rdma.rkey = from->mr->rkey;
	return ibv_post_send(e->qp, &wr, &bad);
}

int fr_send(struct fr_end *e, uint64_t wr_id, uint32_t length, unsigned flags)
{
	struct ibv_sge sge = { .addr = e->iova, .length = length, .lkey = e->mr->lkey };
	struct ibv_send_wr *bad = NULL, wr = { .wr_id = wr_id,
					       .sg_list = &sge,
					       .num_sge = 1,
					       .opcode = IBV_WR_SEND_WITH_IMM,
					       .imm_data = (uint32_t)wr_id,
					       .send_flags = IBV_SEND_SIGNALED | flags };

	if (flags & IBV_SEND_INLINE)
		sge.addr = (uintptr_t)e->mem;
	return ibv_post_send(e->qp, &wr, &bad);
}

void fr_buffer(struct fr_end *e, uint64_t wr_id, size_t offset, uint32_t length)
{
	struct ibv_sge sge = { .addr = e->iova + offset, .length = length, .lkey = e->mr->lkey };
	struct ibv_recv_wr *bad = NULL, wr = { .wr_id = wr_id, .sg_list = &sge, .num_sge = 1 };

	assert_int_equal(e->srq ? ibv_post_srq_recv(e->srq, &wr, &bad)
				: ibv_post_recv(e->qp, &wr, &bad),
			 0);
}

struct ibv_wc fr_next(struct fr_end *e)
{
	int64_t end = now_ns() + LONG_NS;
	struct ibv_wc wc;
	int n;

	while (!(n = ibv_poll_cq(e->cq, 1, &wc)))
		assert_true(now_ns() < end);
	assert_int_equal(n, 1);
	return wc;
}

void fr_expect(struct fr_end *e, uint64_t wr_id, enum ibv_wc_status status)
{
	struct ibv_wc wc = fr_next(e);

	assert_int_equal(wc.wr_id, wr_id);
	assert_int_equal(wc.status, status);
	assert_int_equal(wc.qp_num, e->qp->qp_num);
}

void fr_expect_none(struct fr_end *e)
{
	struct ibv_wc wc;

	assert_int_equal(ibv_poll_cq(e->cq, 1, &wc), 0);
}

enum ibv_qp_state fr_state(struct fr_end *e)
{
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr a;

	assert_int_equal(ibv_query_qp(e->qp, &a, IBV_QP_STATE, &init), 0);
	return a.qp_state;
}

void fr_expect_event(struct fr_end *e, enum ibv_event_type type)
{
	struct ibv_async_event event;

	assert_true(fr_is_readable(e->context->async_fd, 5000));
	assert_int_equal(ibv_get_async_event(e->context, &event), 0);
	ibv_ack_async_event(&event);
	assert_int_equal(event.event_type, type);
}

bool fr_is_readable(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}
