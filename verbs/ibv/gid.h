/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The choice of a port's GID. rdma_cm works with IP addresses, so on Ethernet only a GID that is
 * one will do. RoCE v2 over IPv4 (::ffff:a.b.c.d) comes first, RoCE v2 over a routable IPv6 address
 * second. Link-local ones need a scope that an address blob cannot carry, and RoCE v1 is not
 * routable. On InfiniBand it is GID 0; its IP address comes from IPoIB.
 *
 * Pure: works on a table that ibv_query_gid_table filled, or a test.
 */
#ifndef RVI_GID_H
#define RVI_GID_H

#include <infiniband/verbs.h>
#include <stddef.h>

enum rvi_gid_use {
	RVI_GID_NONE = 0,  /* cannot be used */
	RVI_GID_V6,
	RVI_GID_V4,
	RVI_GID_IB,
};

/* Returns the use that the entry is fit for; *why (may be NULL) = static text for NONE. */
enum rvi_gid_use rvi_gid_use(const struct ibv_gid_entry *e, int link_layer, const char **why);

/*
 * Chooses among the n entries of one port. index -1 = automatically. Returns the entry's place in
 * rows, or -ENODEV with the reason in why.
 */
int rvi_gid_choose(const struct ibv_gid_entry *rows, int n, int link_layer, int index, char *why,
		   size_t size);

/* Writes "10.77.0.1" for an IPv4-mapped GID, else its IPv6 form. size >= 46. */
void rvi_gid_text(const union ibv_gid *gid, char *buf, size_t size);

#endif
