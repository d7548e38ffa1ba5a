/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection's states, and the effect of each connection-manager event in each of them. It is a
 * total function: an event out of order is counted and dropped, and nothing crashes.
 *
 *   connect(): ADDR -> ROUTE -> CONNECTING -> UP -> DOWN -> CLOSED -> FREE
 *   request:   REQUESTED -> ACCEPTING ------> UP
 *   any failure on the way leads to DOWN; close_conn() leads to CLOSED from everywhere. CLOSED only
 *   waits until the READs that the fence cut off have been reported.
 */
#ifndef RVI_CM_TABLE_H
#define RVI_CM_TABLE_H

enum rvi_state {
	RVI_FREE = 0,
	RVI_ADDR,        /* resolving the address */
	RVI_ROUTE,       /* resolving the route */
	RVI_CONNECTING,  /* request sent */
	RVI_REQUESTED,   /* request received, the core decides */
	RVI_ACCEPTING,   /* accept sent, not yet confirmed; the queue pair works already */
	RVI_UP,
	RVI_DOWN,
	RVI_CLOSED,
	RVI_NR_STATES,
};

enum rvi_cm_action {
	RVI_CM_UNEXPECTED = 0,  /* count, drop */
	RVI_CM_IGNORE,          /* legal and meaningless here */
	RVI_CM_RESOLVE_ROUTE,
	RVI_CM_SEND_REQUEST,
	RVI_CM_ESTABLISH,       /* the answer came: queue pair to RTS, confirm */
	RVI_CM_CONFIRMED,       /* the peer confirmed our accept */
	RVI_CM_FAIL,            /* connect or accept ended */
	RVI_CM_PEER_LEFT,
	RVI_CM_DEVICE_LOST,
};

/* event: enum rdma_cm_event_type, or any other number. */
enum rvi_cm_action rvi_cm_action(enum rvi_state state, int event);

#endif
