/* SPDX-License-Identifier: Apache-2.0 */
/* READs on a queue pair of one's own (raw.h). */
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "verbs/raw/raw.h"
#include "verbs/rv.h"

#define WINDOW_MAX 128
#define DEADLINE (30 * NSEC_PER_SEC)   /* time for one READ; a READ that takes longer is lost */

struct rv_raw {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_mr *mr, *mr_remote;
	void *buffer, *shown;          /* READs land in buffer; the other end READs shown */
	size_t length, head;
	int port, gid_index;
	union ibv_gid gid;
	struct ibv_port_attr attr;
	uint32_t psn;
	uint64_t peer_addr;
	uint32_t peer_rkey;
};

static _Thread_local char words[256];

static int fail(int err, const char *what)
{
	snprintf(words, sizeof(words), "%s: %s", what, strerror(err));
	return -err;
}

const char *rv_raw_error(void)
{
	return words;
}

static struct ibv_context *open_named(const char *name)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_context *context = NULL;

	for (int i = 0; list && list[i] && !context; i++)
		if (strcmp(ibv_get_device_name(list[i]), name) == 0)
			context = ibv_open_device(list[i]);
	if (list)
		ibv_free_device_list(list);
	return context;
}

/* Chooses the device that the library would take. */
static int choose(struct rv_raw *raw, const char *device, int port, int gid_index)
{
	struct rv_device_info info[16];
	int found = 0, err = rv_ibv_devices(info, array_size(info), &found);

	if (err < 0)
		return fail(-err, rv_error_text());
	for (int i = 0; i < found; i++) {
		if (!info[i].usable || (device && *device && strcmp(device, info[i].name)) ||
		    (port && port != info[i].port))
			continue;
		raw->context = open_named(info[i].name);
		raw->port = info[i].port;
		raw->gid_index = gid_index >= 0 ? gid_index : info[i].gid_index;
		if (!raw->context)
			return fail(errno ? errno : ENODEV, info[i].name);
		if (ibv_query_port(raw->context, (uint8_t)raw->port, &raw->attr) ||
		    ibv_query_gid(raw->context, (uint8_t)raw->port, raw->gid_index, &raw->gid))
			return fail(ENODEV, "port and GID");
		return 0;
	}
	return fail(ENODEV, "no usable RDMA device");
}

static int queue_pair(struct rv_raw *raw)
{
	struct ibv_qp_init_attr init = { .qp_type = IBV_QPT_RC,
					 .sq_sig_all = 0,
					 .cap = { .max_send_wr = WINDOW_MAX,
						  .max_recv_wr = 1,
						  .max_send_sge = 1,
						  .max_recv_sge = 1 } };
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = (uint8_t)raw->port,
				    .qp_access_flags = IBV_ACCESS_REMOTE_READ };

	raw->pd = ibv_alloc_pd(raw->context);
	raw->cq = raw->pd ? ibv_create_cq(raw->context, WINDOW_MAX, NULL, NULL, 0) : NULL;
	if (!raw->cq)
		return fail(errno, "protection domain or completion queue");
	init.send_cq = init.recv_cq = raw->cq;
	raw->qp = ibv_create_qp(raw->pd, &init);
	if (!raw->qp)
		return fail(errno, "queue pair");
	raw->psn = (uint32_t)now_ns() & 0xffffff;
	int err = ibv_modify_qp(raw->qp, &attr,
				IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
					IBV_QP_ACCESS_FLAGS);

	return err ? fail(err, "queue pair to INIT") : 0;
}

static int memory(struct rv_raw *raw, size_t bytes)
{
	raw->length = max_of(raw->head + bytes, (size_t)4096);
	raw->buffer = mmap(NULL, raw->length, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	raw->shown = mmap(NULL, raw->length, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (raw->buffer == MAP_FAILED || raw->shown == MAP_FAILED)
		return fail(ENOMEM, "buffers");
	raw->mr = ibv_reg_mr(raw->pd, raw->buffer, raw->length, IBV_ACCESS_LOCAL_WRITE);
	raw->mr_remote = ibv_reg_mr(raw->pd, raw->shown, raw->length, IBV_ACCESS_REMOTE_READ);
	return raw->mr && raw->mr_remote ? 0 : fail(errno, "registering the buffers");
}

int rv_raw_open(const char *device, int port, int gid_index, size_t head, size_t bytes,
		struct rv_raw **out)
{
	struct rv_raw *raw = calloc(1, sizeof(*raw));

	if (!raw)
		return fail(ENOMEM, "raw queue pair");
	raw->head = head;
	raw->buffer = raw->shown = MAP_FAILED;
	int err = choose(raw, device, port, gid_index);

	if (!err)
		err = queue_pair(raw);
	if (!err)
		err = memory(raw, bytes);
	if (err) {
		rv_raw_close(raw);
		return err;
	}
	*out = raw;
	return 0;
}

void rv_raw_end(const struct rv_raw *raw, uint8_t out[RV_RAW_END_BYTES])
{
	memset(out, 0, RV_RAW_END_BYTES);
	put_le32(out, raw->qp->qp_num);
	put_le32(out + 4, raw->psn);
	put_le16(out + 8, raw->attr.lid);
	memcpy(out + 16, &raw->gid, 16);
	put_le64(out + 32, (uintptr_t)raw->shown);
	put_le32(out + 40, raw->mr_remote->rkey);
	put_le32(out + 44, (uint32_t)raw->attr.active_mtu);
}

int rv_raw_connect(struct rv_raw *raw, const uint8_t end[RV_RAW_END_BYTES])
{
	struct ibv_qp_attr rtr = { .qp_state = IBV_QPS_RTR,
				   .path_mtu = min_of(raw->attr.active_mtu, get_le32(end + 44)),
				   .dest_qp_num = get_le32(end),
				   .rq_psn = get_le32(end + 4),
				   .max_dest_rd_atomic = 16,
				   .min_rnr_timer = 12,
				   .ah_attr = { .dlid = get_le16(end + 8),
						.port_num = (uint8_t)raw->port } };
	struct ibv_qp_attr rts = { .qp_state = IBV_QPS_RTS,
				   .timeout = 14,
				   .retry_cnt = 6,
				   .rnr_retry = 6,
				   .sq_psn = raw->psn,
				   .max_rd_atomic = 16 };

	if (raw->attr.link_layer == IBV_LINK_LAYER_ETHERNET) {
		rtr.ah_attr.is_global = 1;
		memcpy(&rtr.ah_attr.grh.dgid, end + 16, 16);
		rtr.ah_attr.grh.sgid_index = (uint8_t)raw->gid_index;
		rtr.ah_attr.grh.hop_limit = 64;
	}
	raw->peer_addr = get_le64(end + 32);
	raw->peer_rkey = get_le32(end + 40);
	int err = ibv_modify_qp(raw->qp, &rtr,
				IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
					IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
					IBV_QP_MIN_RNR_TIMER);

	if (err)
		return fail(err, "queue pair to RTR");
	err = ibv_modify_qp(raw->qp, &rts,
			    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
				    IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
	return err ? fail(err, "queue pair to RTS") : 0;
}

static int post(struct rv_raw *raw, size_t bytes)
{
	struct ibv_sge sge = { .addr = (uintptr_t)raw->buffer,
			       .length = (uint32_t)(raw->head + bytes),
			       .lkey = raw->mr->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge,
				  .num_sge = 1,
				  .opcode = IBV_WR_RDMA_READ,
				  .send_flags = IBV_SEND_SIGNALED,
				  .wr.rdma = { .remote_addr = raw->peer_addr,
					       .rkey = raw->peer_rkey } };
	struct ibv_send_wr *bad;
	int err = ibv_post_send(raw->qp, &wr, &bad);

	return err ? fail(err, "ibv_post_send") : 0;
}

/* Polls until some have ended. Their number, or -errno. */
static int reap(struct rv_raw *raw)
{
	struct ibv_wc wc[16];
	int64_t end = 0;

	for (unsigned spins = 1;; spins++) {
		int n = ibv_poll_cq(raw->cq, array_size(wc), wc);

		if (n < 0)
			return fail(EIO, "ibv_poll_cq");
		for (int i = 0; i < n; i++)
			if (wc[i].status != IBV_WC_SUCCESS)
				return fail(EIO, ibv_wc_status_str(wc[i].status));
		if (n)
			return n;
		if (spins % 65536)
			continue;
		if (end && now_ns() > end)
			return fail(ETIMEDOUT, "a raw READ");
		if (!end)
			end = now_ns() + DEADLINE;
	}
}

int rv_raw_read(struct rv_raw *raw, size_t bytes, unsigned n)
{
	while (n--) {
		int err = post(raw, bytes), got = err ? err : reap(raw);

		if (got < 0)
			return got;
	}
	return 0;
}

int rv_raw_stream(struct rv_raw *raw, size_t bytes, unsigned n, unsigned window)
{
	unsigned posted = 0, done = 0;

	window = min_of(window, (unsigned)WINDOW_MAX);
	while (done < n) {
		while (posted < n && posted - done < window) {
			int err = post(raw, bytes);

			if (err)
				return err;
			posted++;
		}
		int got = reap(raw);

		if (got < 0)
			return got;
		done += (unsigned)got;
	}
	return 0;
}

void rv_raw_close(struct rv_raw *raw)
{
	if (!raw)
		return;
	if (raw->qp)
		ibv_destroy_qp(raw->qp);
	if (raw->mr)
		ibv_dereg_mr(raw->mr);
	if (raw->mr_remote)
		ibv_dereg_mr(raw->mr_remote);
	if (raw->cq)
		ibv_destroy_cq(raw->cq);
	if (raw->pd)
		ibv_dealloc_pd(raw->pd);
	if (raw->context)
		ibv_close_device(raw->context);
	if (raw->buffer != MAP_FAILED)
		munmap(raw->buffer, raw->length);
	if (raw->shown != MAP_FAILED)
		munmap(raw->shown, raw->length);
	free(raw);
}
