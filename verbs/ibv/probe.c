/* SPDX-License-Identifier: Apache-2.0 */
/* The choice of device, port and GID; and the remedy when there is none. */
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "gid.h"
#include "ibv.h"

#define RXE_HINT \
	"for RDMA over plain Ethernet: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev " \
	"<dev>"
#define GIDS_MAX 256

/* Finds a device that the kernel knows, even if programs may not use it. */
static bool kernel_device(char *name, size_t size)
{
	DIR *d = opendir("/sys/class/infiniband");
	struct dirent *e;
	bool found = false;

	while (d && !found && (e = readdir(d))) {
		found = e->d_name[0] != '.';
		if (found)
			snprintf(name, size, "%.63s", e->d_name);
	}
	if (d)
		closedir(d);
	return found;
}

int rvi_no_devices(int err)
{
	char name[64];

	if (err == EPERM || err == EACCES)
		return rv_fail(err,
			       "no permission to use the RDMA devices: give the user access to "
			       "/dev/infiniband/*");
	if (kernel_device(name, sizeof(name)))
		return rv_fail(ENODEV,
			       "the kernel has RDMA device %s, but /dev/infiniband has no device "
			       "file for it: modprobe "
			       "ib_uverbs rdma_ucm (in a container: --device=/dev/infiniband)",
			       name);
	return rv_fail(ENODEV, "no RDMA device on this machine; %s", RXE_HINT);
}

/* Explains why a listed device could not be opened. */
static int open_failed(const char *name, const char *uverbs, int err)
{
	char path[128];

	snprintf(path, sizeof(path), "/dev/infiniband/%s", uverbs);
	if (access(path, F_OK))
		return rv_fail(ENODEV,
			       "RDMA device %s: %s is missing: modprobe ib_uverbs (in a container: "
			       "--device=/dev/infiniband)",
			       name, path);
	if (err == EPERM || err == EACCES || access(path, R_OK | W_OK))
		return rv_fail(err == EPERM ? EPERM : EACCES,
			       "RDMA device %s: no permission for %s", name, path);
	return rv_fail(err ? err : EIO, "RDMA device %s cannot be opened: %s", name, strerror(err));
}

/* Appends "; text" to a list of reasons. */
static void __attribute__((format(printf, 3, 4)))
add_words(char *buf, size_t size, const char *fmt, ...)
{
	size_t used = strlen(buf);
	va_list ap;

	if (used && used + 2 < size) {
		memcpy(buf + used, "; ", 3);
		used += 2;
	}
	va_start(ap, fmt);
	vsnprintf(buf + used, size - used, fmt, ap);
	va_end(ap);
}

/* Reads the GIDs of one port. Returns their number, 0 on
 * failure too: a port without GIDs is unusable either way. */
static int port_gids(struct ibv_context *ctx, int port, struct ibv_gid_entry *rows, int max)
{
	ssize_t n = ibv_query_gid_table(ctx, rows, (size_t)max, 0);
	int kept = 0;

	for (ssize_t i = 0; i < n; i++)
		if (rows[i].port_num == (uint32_t)port)
			rows[kept++] = rows[i];
	return kept;
}

/* Fills in *out but for ctx. Returns 0, or -ENODEV with the reason in why. */
static int pick_port(struct ibv_context *ctx, int port, int gid_index, struct rvi_pick *out,
		     char *why, size_t size)
{
	const char *name = ibv_get_device_name(ctx->device);
	struct ibv_gid_entry rows[GIDS_MAX];
	struct ibv_port_attr attr;
	int n, i;

	if (ibv_query_port(ctx, (uint8_t)port, &attr)) {
		snprintf(why, size, "cannot be queried");
		return -ENODEV;
	}
	if (attr.state != IBV_PORT_ACTIVE) {
		snprintf(why, size, "is %s", ibv_port_state_str(attr.state));
		return -ENODEV;
	}
	n = port_gids(ctx, port, rows, GIDS_MAX);
	i = rvi_gid_choose(rows, n, attr.link_layer, gid_index, why, size);
	if (i < 0)
		return i;
	if (rvi_gid_ip(name, port, attr.link_layer, &rows[i].gid, &out->ip)) {
		snprintf(why, size,
			 "has no IP address: rdma_cm needs IPoIB (modprobe ib_ipoib; ip addr add "
			 "...)");
		return -ENODEV;
	}
	out->port = port;
	out->gid_index = (int)rows[i].gid_index;
	out->gid = rows[i].gid;
	return 0;
}

/* Tries the ports of one opened device. */
static int pick_on(struct ibv_context *ctx, const struct rv_options *opt, struct rvi_pick *out,
		   char *reasons, size_t size)
{
	const char *name = ibv_get_device_name(ctx->device);
	struct ibv_device_attr attr;
	char why[240];

	if (ibv_query_device(ctx, &attr)) {
		add_words(reasons, size, "%s cannot be queried", name);
		return -ENODEV;
	}
	if (opt->port && opt->port > attr.phys_port_cnt) {
		add_words(reasons, size, "%s has no port %d, it has %d", name, opt->port,
		    attr.phys_port_cnt);
		return -ENODEV;
	}
	for (int port = 1; port <= attr.phys_port_cnt; port++) {
		if (opt->port && opt->port != port)
			continue;
		if (!pick_port(ctx, port, opt->gid_index, out, why, sizeof(why)))
			return 0;
		add_words(reasons, size, "%s port %d: %s", name, port, why);
	}
	return -ENODEV;
}

/* Says in words why no device can be used. open_rc: the last one that did not open. */
static int none_usable(const struct rv_options *opt, int seen, int open_rc, const char *names,
		       const char *reasons)
{
	if (!seen)
		return rv_fail(ENODEV, "no RDMA device named %s; there is: %s", opt->device,
			       names);
	if (open_rc)
		return rv_fail(-open_rc, "%s", reasons);
	return rv_fail(ENODEV, "no usable RDMA port: %s", reasons);
}

int rvi_pick(const struct rv_options *opt, struct rvi_pick *out)
{
	char reasons[240] = "", names[160] = "";
	struct ibv_device **list;
	int n = 0, rc = -ENODEV, seen = 0, open_rc = 0;

	rc = rvi_child_begin(opt);
	if (rc)
		return rc;
	rc = -ENODEV;
	list = ibv_get_device_list(&n);
	if (!list)
		return rvi_no_devices(errno);
	for (int i = 0; i < n && rc; i++) {
		const char *name = ibv_get_device_name(list[i]);
		struct ibv_context *ctx;

		add_words(names, sizeof(names), "%s", name);
		if (opt->device && strcmp(opt->device, name))
			continue;
		seen++;
		ctx = rvi_context_open(list[i]);
		if (!ctx) {
			open_rc = open_failed(name, list[i]->dev_name, errno);
			add_words(reasons, sizeof(reasons), "%s", rv_error_text());
			continue;
		}
		rc = pick_on(ctx, opt, out, reasons, sizeof(reasons));
		if (rc)
			rvi_context_close(ctx);
		else
			out->ctx = ctx;
	}
	if (rc)
		rc = n ? none_usable(opt, seen, open_rc, names, reasons) : rvi_no_devices(0);
	ibv_free_device_list(list);
	return rc;
}
