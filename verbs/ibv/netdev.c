/* SPDX-License-Identifier: Apache-2.0 */
/* The IP address of a GID, for rdma_cm. */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gid.h"
#include "ibv.h"

static socklen_t addr_size(const struct sockaddr_storage *a)
{
	return a->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

void rvi_ip_text(const struct sockaddr_storage *a, char *buf, size_t size)
{
	const void *ip = a->ss_family == AF_INET
		? (const void *)&((const struct sockaddr_in *)a)->sin_addr
		: (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr;

	if (!inet_ntop(a->ss_family, ip, buf, (socklen_t)size) && size)
		buf[0] = 0;
}

/* "10.77.0.1:4711", "[2001:db8::1]:4711". */
void rvi_addr_text(const struct sockaddr_storage *a, char *buf, size_t size)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
	char ip[INET6_ADDRSTRLEN] = "?";

	if (a->ss_family == AF_INET) {
		inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof(ip));
		snprintf(buf, size, "%s:%u", ip, ntohs(v4->sin_port));
	} else {
		inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof(ip));
		snprintf(buf, size, "[%s]:%u", ip, ntohs(v6->sin6_port));
	}
}

static long sysfs_number(const char *netdev, const char *file, long missing)
{
	char path[128], line[32];
	long v = missing;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/class/net/%s/%s", netdev, file);
	f = fopen(path, "re");
	if (!f)
		return missing;
	if (fgets(line, sizeof(line), f))
		v = strtol(line, NULL, 0);
	fclose(f);
	return v;
}

static bool is_ipoib_of(const char *netdev, const char *device, int port)
{
	char path[160];

	if (sysfs_number(netdev, "type", -1) != ARPHRD_INFINIBAND)
		return false;
	snprintf(path, sizeof(path), "/sys/class/net/%s/device/infiniband/%s", netdev, device);
	return !access(path, F_OK) && sysfs_number(netdev, "dev_port", port - 1) == port - 1;
}

static int ipoib_ip(const char *device, int port, struct sockaddr_storage *out)
{
	struct ifaddrs *all, *i;
	int rc = -ENODEV;

	if (getifaddrs(&all))
		return -errno;
	for (i = all; i; i = i->ifa_next) {
		if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET ||
		    !is_ipoib_of(i->ifa_name, device, port))
			continue;
		memcpy(out, i->ifa_addr, sizeof(struct sockaddr_in));
		rc = 0;
		break;
	}
	freeifaddrs(all);
	return rc;
}

unsigned rvi_gid_netdev(struct ibv_context *ctx, int port, int gid_index)
{
	struct ibv_gid_entry e;

	if (ibv_query_gid_ex(ctx, (uint32_t)port, (uint32_t)gid_index, &e, 0))
		return 0;
	return e.ndev_ifindex;
}

/* Looks for the route of a datagram, as a device with this interface does. Nothing is sent. */
bool rvi_has_route(const struct rv_dev *dev, const struct sockaddr_storage *to)
{
	socklen_t size = addr_size(to);
	bool has = true;
	int fd;

	if (!dev->ifindex || to->ss_family != dev->src.ss_family)
		return true;
	rb_hold(); /* no child gets the socket */
	fd = socket(to->ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		goto out;
	/* The option: without it a route by another interface counts too. With it every address
	 * without a route is taken for on-link, so that the interface and its address decide. */
	(void)setsockopt(fd, SOL_SOCKET, SO_BINDTOIFINDEX, &dev->ifindex, sizeof(dev->ifindex));
	/* No other error tells of the route. Before Linux 5.1 EINVAL comes of each link-local
	 * address, since the socket is bound to no interface. */
	if (bind(fd, (const struct sockaddr *)&dev->src, size) ||
	    connect(fd, (const struct sockaddr *)to, size))
		has = errno != EADDRNOTAVAIL && errno != ENETUNREACH && errno != EHOSTUNREACH &&
		      errno != ENETDOWN && errno != EACCES;
	close(fd);
out:
	rb_release();
	return has;
}

int rvi_gid_ip(const char *device, int port, int link_layer, const union ibv_gid *gid,
	       struct sockaddr_storage *out)
{
	struct ibv_gid_entry e = { .gid = *gid, .gid_type = IBV_GID_TYPE_ROCE_V2 };

	memset(out, 0, sizeof(*out));
	if (link_layer == IBV_LINK_LAYER_INFINIBAND)
		return ipoib_ip(device, port, out);
	switch (rvi_gid_use(&e, link_layer, NULL)) {
	case RVI_GID_V4: {
		struct sockaddr_in *v4 = (struct sockaddr_in *)out;

		v4->sin_family = AF_INET;
		memcpy(&v4->sin_addr, gid->raw + 12, 4);
		return 0;
	}
	case RVI_GID_V6: {
		struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;

		v6->sin6_family = AF_INET6;
		memcpy(&v6->sin6_addr, gid->raw, 16);
		return 0;
	}
	default:
		return -ENODEV;
	}
}
