/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "base/util.h"

/*
 * A status as a reader over a connection understands it. There are five errors, and the core knows
 * no other:
 *
 * EACCES      The peer's device refused: a bad key or bounds, or READs that are not allowed yet.
 *
 * EFAULT      This side's own memory or length was wrong. To ask again would bring the same.
 *
 * EPROTO      The peer gave credits without buffers, so it is broken: credits are the flow control.
 *
 * ETIMEDOUT   The peer's device does not answer. A key that is revoked in mid-READ looks the same.
 *
 * ECONNRESET  The connection is gone, and that says nothing about the request. It may be asked
 *             again over another connection.
 */
static const struct {
	int err;
	const char *text;
} wc_table[] = {
	[IBV_WC_SUCCESS] = { 0, "success" },
	[IBV_WC_LOC_LEN_ERR] = { EFAULT, "local length error" },
	[IBV_WC_LOC_QP_OP_ERR] = { ECONNRESET,
				   "local queue pair operation error: it could not send, as when a "
				   "link or a route is gone" },
	[IBV_WC_LOC_EEC_OP_ERR] = { ECONNRESET, "local EE context operation error" },
	[IBV_WC_LOC_PROT_ERR] = { EFAULT, "local protection error: landing memory not registered" },
	[IBV_WC_WR_FLUSH_ERR] = { ECONNRESET, "flushed" },
	[IBV_WC_MW_BIND_ERR] = { ECONNRESET, "memory window bind error" },
	[IBV_WC_BAD_RESP_ERR] = { ECONNRESET, "bad response" },
	[IBV_WC_LOC_ACCESS_ERR] = { EFAULT, "local access error" },
	[IBV_WC_REM_INV_REQ_ERR] = { EACCES, "remote invalid request: the peer does not allow it" },
	[IBV_WC_REM_ACCESS_ERR] = { EACCES,
				    "remote access error: key or bounds refused by the peer's "
				    "device" },
	[IBV_WC_REM_OP_ERR] = { ECONNRESET, "remote operation error" },
	[IBV_WC_RETRY_EXC_ERR] = { ETIMEDOUT,
				   "retries exhausted: the peer's device does not answer" },
	[IBV_WC_RNR_RETRY_EXC_ERR] = { EPROTO, "receiver not ready: the peer broke its credits" },
	[IBV_WC_LOC_RDD_VIOL_ERR] = { ECONNRESET, "local RDD violation" },
	[IBV_WC_REM_INV_RD_REQ_ERR] = { ECONNRESET, "remote invalid RD request" },
	[IBV_WC_REM_ABORT_ERR] = { ECONNRESET, "aborted by the remote side" },
	[IBV_WC_INV_EECN_ERR] = { ECONNRESET, "invalid EE context number" },
	[IBV_WC_INV_EEC_STATE_ERR] = { ECONNRESET, "invalid EE context state" },
	[IBV_WC_FATAL_ERR] = { ECONNRESET, "fatal transport error" },
	[IBV_WC_RESP_TIMEOUT_ERR] = { ETIMEDOUT, "response timeout" },
	[IBV_WC_GENERAL_ERR] = { ECONNRESET, "general error" },
	[IBV_WC_TM_ERR] = { ECONNRESET, "tag matching error" },
	[IBV_WC_TM_RNDV_INCOMPLETE] = { ECONNRESET, "tag matching rendezvous incomplete" },
};

int rvi_wc_errno(int wc_status)
{
	if (wc_status < 0 || (size_t)wc_status >= array_size(wc_table))
		return -ECONNRESET;
	return -wc_table[wc_status].err;
}

const char *rvi_wc_text(int wc_status)
{
	if (wc_status < 0 || (size_t)wc_status >= array_size(wc_table))
		return "unknown completion status";
	return wc_table[wc_status].text;
}

/* IB CM reject codes (IBTA 12.6.7.2): no process listens; another wire version. */
#define REJ_INVALID_SERVICE_ID 8
#define REJ_INVALID_CLASS_VERSION 31

int rvi_cm_errno(int event, int status)
{
	switch (event) {
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
		return -EHOSTUNREACH;
	case RDMA_CM_EVENT_UNREACHABLE:
		return -ETIMEDOUT;
	case RDMA_CM_EVENT_REJECTED:
		/* All others are somebody's: its CM's (busy, out of
		 * something), or its program's without a reason. */
		return status == REJ_INVALID_CLASS_VERSION ? -EPROTONOSUPPORT :
		       status == REJ_INVALID_SERVICE_ID	   ? -ECONNREFUSED : -ECONNRESET;
	case RDMA_CM_EVENT_CONNECT_ERROR:
		return status == -ETIMEDOUT ? -ETIMEDOUT : -EHOSTUNREACH;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return -ENODEV;
	default:
		return -ECONNRESET;
	}
}
