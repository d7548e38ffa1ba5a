/* SPDX-License-Identifier: Apache-2.0 */
/* The provider's table: total, as rv.h asks. */
#include "ibv.h"

static int open_ibv(const struct rv_options *opt, struct rv_dev **out)
{
	static const struct rv_options defaults = { .gid_index = -1 };

	return rvi_open(opt ? opt : &defaults, out);
}

static void caps(struct rv_dev *dev, struct rv_caps *out)
{
	*out = dev->caps;
}

static void addr(struct rv_dev *dev, struct rv_addr *out)
{
	*out = dev->addr;
}

/* Does nothing: no preparation helps a READ. */
static void no_will_read(struct rv_conn *conn, uint32_t rkey, uint64_t address, uint64_t length)
{
	(void)conn, (void)rkey, (void)address, (void)length;
}

const struct rv_ops rv_ibv_ops = {
	.name = "ibv",
	.kind = RV_IBV,
	.open = open_ibv,
	.close = rvi_close,
	.caps = caps,
	.addr = addr,
	.reach = rvi_reach,
	.reg = rvi_reg,
	.dereg = rvi_dereg,
	.connect = rvi_connect,
	.accept = rvi_accept,
	.reject = rvi_reject,
	.seal = rvi_seal,
	.allow_reads = rvi_allow_reads,
	.send = rvi_send,
	.post_reads = rvi_post_reads,
	.will_read = no_will_read,
	.poll = rvi_poll,
	.reads = rvi_reads,
	.recv_done = rvi_recv_done,
	.arm = rvi_arm,
	.disarm = rvi_disarm,
	.fd = rvi_fd,
	.close_conn = rvi_close_conn,
	.peer_text = rvi_peer_text,
};
