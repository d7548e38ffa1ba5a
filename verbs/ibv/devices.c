/* SPDX-License-Identifier: Apache-2.0 */
/* rv_ibv_devices: the devices of this machine, for people and
 * for `auto`. Everything is asked, nothing assumed. */
#include <net/if.h>
#include <stdio.h>

#include "gid.h"
#include "ibv.h"

#define GIDS_MAX 256

/* Finds the inline size by making a queue pair: ibv_query_device has no such field. */
static uint32_t probe_inline(struct ibv_context *ctx)
{
	struct rv_dev dev = { .ctx = ctx };
	uint32_t got = 0;

	dev.pd = ibv_alloc_pd(ctx);
	dev.send_cq = dev.recv_cq = ibv_create_cq(ctx, 16, NULL, NULL, 0);
	if (dev.pd && dev.send_cq)
		rvi_qp_probe_inline(&dev, &got);
	if (dev.send_cq)
		ibv_destroy_cq(dev.send_cq);
	if (dev.pd)
		ibv_dealloc_pd(dev.pd);
	return got;
}

static void fill_device(struct ibv_context *ctx, const struct ibv_device_attr_ex *a,
			struct rv_device_info *d)
{
	d->max_mr_size = a->orig_attr.max_mr_size;
	d->max_qp = (uint32_t)a->orig_attr.max_qp;
	d->max_cq = (uint32_t)a->orig_attr.max_cq;
	d->max_mr = (uint32_t)a->orig_attr.max_mr;
	d->max_srq = (uint32_t)a->orig_attr.max_srq;
	d->max_sge = (uint32_t)a->orig_attr.max_sge;
	d->max_rd_atomic = (uint32_t)a->orig_attr.max_qp_rd_atom;
	d->max_inline = probe_inline(ctx);
	d->atomics = a->orig_attr.atomic_cap != IBV_ATOMIC_NONE;
	d->memory_windows = a->orig_attr.device_cap_flags &
		(IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B);
	d->on_demand_paging = a->odp_caps.general_caps & IBV_ODP_SUPPORT;
}

static void fill_gid(struct ibv_context *ctx, const struct ibv_port_attr *attr,
		     struct rv_device_info *d)
{
	struct ibv_gid_entry rows[GIDS_MAX];
	struct sockaddr_storage ip;
	ssize_t all = ibv_query_gid_table(ctx, rows, GIDS_MAX, 0);
	int n = 0, i;

	for (ssize_t k = 0; k < all; k++)
		if (rows[k].port_num == (uint32_t)d->port)
			rows[n++] = rows[k];
	i = rvi_gid_choose(rows, n, attr->link_layer, -1, d->why_not, sizeof(d->why_not));
	if (i < 0)
		return;
	d->gid_index = (int)rows[i].gid_index;
	rvi_gid_text(&rows[i].gid, d->gid, sizeof(d->gid));
	if (rows[i].ndev_ifindex) {
		char ifname[IF_NAMESIZE];

		if (if_indextoname(rows[i].ndev_ifindex, ifname))
			snprintf(d->netdev, sizeof(d->netdev), "%s", ifname);
	}
	if (rvi_gid_ip(d->name, d->port, attr->link_layer, &rows[i].gid, &ip)) {
		snprintf(d->why_not, sizeof(d->why_not),
			 "no IP address: rdma_cm needs IPoIB (modprobe ib_ipoib)");
		return;
	}
	rvi_ip_text(&ip, d->ip, sizeof(d->ip));
	d->usable = attr->state == IBV_PORT_ACTIVE;
}

static void fill_port(struct ibv_context *ctx, struct rv_device_info *d)
{
	struct ibv_port_attr attr;
	const char *state;

	if (ibv_query_port(ctx, (uint8_t)d->port, &attr)) {
		snprintf(d->why_not, sizeof(d->why_not), "the port cannot be queried");
		return;
	}
	snprintf(d->link, sizeof(d->link), "%s",
		 attr.link_layer == IBV_LINK_LAYER_INFINIBAND ? "InfiniBand" : "Ethernet");
	state = ibv_port_state_str(attr.state); /* "PORT_ACTIVE" */
	snprintf(d->state, sizeof(d->state), "%s", strncmp(state, "PORT_", 5) ? state : state + 5);
	d->active_mtu = 128u << attr.active_mtu;
	d->max_msg = attr.max_msg_sz;
	fill_gid(ctx, &attr, d);
	if (attr.state != IBV_PORT_ACTIVE)
		snprintf(d->why_not, sizeof(d->why_not), "the port is %s: is its link up?",
			 d->state);
}

static struct rv_device_info *next_info(struct rv_device_info *out, int max, int *n,
					const char *name, int port)
{
	struct rv_device_info *d;

	if (*n >= max)
		return NULL;
	d = &out[(*n)++];
	*d = (struct rv_device_info){ .port = port, .gid_index = -1 };
	snprintf(d->name, sizeof(d->name), "%s", name);
	return d;
}

static void one_device(struct ibv_device *device, struct rv_device_info *out, int max, int *n)
{
	struct ibv_context *ctx = ibv_open_device(device);
	struct ibv_device_attr_ex attr;
	struct rv_device_info *d;

	if (!ctx) {
		d = next_info(out, max, n, ibv_get_device_name(device), 1);
		if (d)
			snprintf(d->why_not, sizeof(d->why_not),
				 "cannot be opened: %s (/dev/infiniband/%s)", strerror(errno),
				 device->dev_name);
		return;
	}
	memset(&attr, 0, sizeof(attr));
	if (ibv_query_device_ex(ctx, NULL, &attr)) {
		d = next_info(out, max, n, ibv_get_device_name(device), 1);
		if (d)
			snprintf(d->why_not, sizeof(d->why_not), "cannot be queried");
	} else {
		for (int port = 1; port <= attr.orig_attr.phys_port_cnt; port++) {
			d = next_info(out, max, n, ibv_get_device_name(device), port);
			if (!d)
				break;
			fill_device(ctx, &attr, d);
			fill_port(ctx, d);
		}
	}
	ibv_close_device(ctx);
}

int rv_ibv_devices(struct rv_device_info *out, int max, int *found)
{
	struct ibv_device **list;
	int count = 0, n = 0;

	list = ibv_get_device_list(&count);
	if (!list) {
		/* A kernel without RDMA is an answer, not a failure. */
		if (errno != ENOSYS && errno != ENODEV && errno != ENOENT)
			return rvi_no_devices(errno);
		count = 0;
	}
	for (int i = 0; i < count; i++)
		one_device(list[i], out, max, &n);
	if (list)
		ibv_free_device_list(list);
	*found = n;
	if (!n)
		rvi_no_devices(0); /* sets the text that says why */
	return 0;
}
