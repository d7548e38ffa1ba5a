/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The address blob, 36 bytes:
 *   0 u8 version 1   1 u8 family 4 or 6   2 u16 port
 *   4 u8[16] IP address, IPv4 in the first 4, else 0   20 u8[16] GID
 *
 * The GID is information for people and later versions; rdma_cm finds the path by IP.
 */
#include "ibv.h"

#define ADDR_BYTES 36

void rvi_addr_pack(const struct sockaddr_storage *ip, uint16_t port, const union ibv_gid *gid,
		   struct rv_addr *out)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)ip;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)ip;

	memset(out, 0, sizeof(*out));
	out->len = ADDR_BYTES;
	out->bytes[0] = RVI_ADDR_VERSION;
	out->bytes[1] = ip->ss_family == AF_INET ? 4 : 6;
	put_le16(out->bytes + 2, port);
	if (ip->ss_family == AF_INET)
		memcpy(out->bytes + 4, &v4->sin_addr, 4);
	else
		memcpy(out->bytes + 4, &v6->sin6_addr, 16);
	memcpy(out->bytes + 20, gid->raw, 16);
}

int rvi_addr_unpack(const struct rv_addr *a, struct sockaddr_storage *out)
{
	static const uint8_t zero[16];
	struct sockaddr_in *v4 = (struct sockaddr_in *)out;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
	uint16_t port;

	if (a->len < 1 || a->len > RV_ADDR_MAX)
		return rv_fail(EINVAL, "malformed address: %u bytes", a->len);
	if (a->bytes[0] != RVI_ADDR_VERSION)
		return rv_fail(EPROTONOSUPPORT, "address of version %u, this library speaks %u",
			       a->bytes[0], RVI_ADDR_VERSION);
	if (a->len != ADDR_BYTES)
		return rv_fail(EINVAL, "malformed address: %u bytes instead of %d", a->len,
			       ADDR_BYTES);
	port = get_le16(a->bytes + 2);
	if (!port || !memcmp(a->bytes + 4, zero, a->bytes[1] == 4 ? 4 : 16))
		return rv_fail(EINVAL, "malformed address: no %s", port ? "IP address" : "port");
	memset(out, 0, sizeof(*out));
	switch (a->bytes[1]) {
	case 4:
		v4->sin_family = AF_INET;
		v4->sin_port = htobe16(port);
		memcpy(&v4->sin_addr, a->bytes + 4, 4);
		return 0;
	case 6:
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htobe16(port);
		memcpy(&v6->sin6_addr, a->bytes + 4, 16);
		return 0;
	default:
		return rv_fail(EINVAL, "malformed address: family %u", a->bytes[1]);
	}
}
