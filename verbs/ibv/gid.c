/* SPDX-License-Identifier: Apache-2.0 */
#include "gid.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const uint8_t v4_mapped[12] = { [10] = 0xff, [11] = 0xff };

enum rvi_gid_use rvi_gid_use(const struct ibv_gid_entry *e, int link_layer, const char **why)
{
	static const uint8_t zero[16];
	const uint8_t *g = e->gid.raw;
	const char *reason = NULL;
	enum rvi_gid_use use = RVI_GID_NONE;

	if (link_layer == IBV_LINK_LAYER_INFINIBAND) {
		use = RVI_GID_IB;
	} else if (!memcmp(g, zero, 16)) {
		reason = "empty";
	} else if (e->gid_type != IBV_GID_TYPE_ROCE_V2) {
		reason = "not RoCE v2";
	} else if (!memcmp(g, v4_mapped, sizeof(v4_mapped))) {
		use = memcmp(g + 12, zero, 4) ? RVI_GID_V4 : RVI_GID_NONE;
		reason = "IPv4 address 0.0.0.0";
	} else if (g[0] == 0xfe && (g[1] & 0xc0) == 0x80) {
		reason = "link-local: the netdev has no IP address for it";
	} else if (g[0] == 0xff) {
		reason = "multicast";
	} else {
		use = RVI_GID_V6;
	}
	if (why)
		*why = use ? NULL : reason;
	return use;
}

void rvi_gid_text(const union ibv_gid *gid, char *buf, size_t size)
{
	bool v4 = !memcmp(gid->raw, v4_mapped, sizeof(v4_mapped));

	if (!inet_ntop(v4 ? AF_INET : AF_INET6, gid->raw + (v4 ? 12 : 0), buf, (socklen_t)size) &&
	    size)
		buf[0] = 0;
}

/* Lists the usable GIDs for an error text: " 1 (10.0.0.1) 3 (2001:db8::1)". */
static void list_usable(const struct ibv_gid_entry *rows, int n, int link_layer, char *buf,
			size_t size)
{
	size_t used = 0;

	buf[0] = 0;
	for (int i = 0; i < n && used < size; i++) {
		char text[64];

		if (!rvi_gid_use(&rows[i], link_layer, NULL))
			continue;
		rvi_gid_text(&rows[i].gid, text, sizeof(text));
		used += (size_t)snprintf(buf + used, size - used, " %u (%s)", rows[i].gid_index,
					 text);
	}
	if (!used)
		snprintf(buf, size, " none");
}

int rvi_gid_choose(const struct ibv_gid_entry *rows, int n, int link_layer, int index, char *why,
		   size_t size)
{
	enum rvi_gid_use best = RVI_GID_NONE;
	const char *reason = "no such entry";
	int chosen = -1;
	char usable[120];

	for (int i = 0; i < n; i++) {
		enum rvi_gid_use use = rvi_gid_use(&rows[i], link_layer,
						   index >= 0 ? NULL : &reason);

		if (index >= 0) {
			if (rows[i].gid_index != (uint32_t)index)
				continue;
			if (rvi_gid_use(&rows[i], link_layer, &reason))
				return i;
			break;
		}
		/* The lowest index of the best kind; on InfiniBand that is GID 0. */
		if (use > best ||
		    (use && use == best && rows[i].gid_index < rows[chosen].gid_index)) {
			best = use;
			chosen = i;
		}
	}
	if (chosen >= 0)
		return chosen;
	list_usable(rows, n, link_layer, usable, sizeof(usable));
	if (index >= 0)
		snprintf(why, size, "GID index %d: %s; usable:%s", index, reason, usable);
	else if (n)
		snprintf(why, size,
			 "no RoCE v2 GID with an IP address (give the netdev one: ip addr add "
			 "...)");
	else
		snprintf(why, size, "no GID: is the netdev up, with an IP address?");
	return -ENODEV;
}
