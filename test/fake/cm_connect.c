/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handshake: request, answer, confirmation; rejects and goodbyes. Its datagrams arrive at once,
 * or never if a device is silent.
 */
#include <arpa/inet.h>
#include <errno.h>

#include "cm.h"

static int ends_with(int err)
{
	if (!err)
		return 0;
	errno = err;
	return -1;
}

/* Tells whether a datagram of this id would reach its peer. */
static bool reaches_peer(const struct fv_id *id)
{
	return id->peer && !at_load(&id->device->knobs.silent) &&
	       !at_load(&id->peer->device->knobs.silent);
}

static void reject_event(struct fv_id *id, int status, const void *data, uint8_t length)
{
	struct rdma_conn_param p = { .private_data = data, .private_data_len = length };

	id->state = FV_OVER;
	fv_cm_event(id, RDMA_CM_EVENT_REJECTED, status, &p, FV_REJECT_DATA);
}

static void part(struct fv_id *id)
{
	if (id->peer)
		id->peer->peer = NULL;
	id->peer = NULL;
}

void fv_say_goodbye(struct fv_id *id)
{
	if (reaches_peer(id)) {
		switch (id->state) {
		case FV_ASKS:
		case FV_ANSWERED:
			reject_event(id->peer, FV_REJ_TIMEOUT, NULL, 0);
			break;
		case FV_ASKED:
		case FV_ANSWERS:
			reject_event(id->peer, FV_REJ_CONSUMER, NULL, 0);
			break;
		case FV_UP:
			id->peer->state = FV_OVER;
			fv_cm_event(id->peer, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
			break;
		default:
			break;
		}
	}
	part(id);
	id->state = FV_OVER;
}

static struct fv_id *listener_at(const struct sockaddr_in *to)
{
	for (struct fv_id *id = fv_ids; id; id = id->next) {
		const struct sockaddr_in *at = &id->base.route.addr.src_sin;

		if (id->state == FV_LISTENS && at->sin_port == to->sin_port &&
		    at->sin_addr.s_addr == to->sin_addr.s_addr)
			return id;
	}
	return NULL;
}

/* Brings a request to a listener: an id of its own, and an event. There the two sorts of READs
 * change their places. */
static int bring_request(struct fv_id *id, struct fv_id *listener,
			 const struct rdma_conn_param *param)
{
	struct rdma_conn_param seen = *param;
	struct fv_id *asked = fv_id_new(listener->channel, listener->base.context);
	struct fv_cm_event *e;

	if (!asked)
		return ENOMEM;
	asked->device = listener->device;
	asked->base.verbs = listener->base.verbs;
	asked->base.port_num = 1;
	asked->base.route.addr.src_sin = listener->base.route.addr.src_sin;
	asked->base.route.addr.dst_sin = id->base.route.addr.src_sin;
	asked->state = FV_ASKED;
	asked->peer_qpn = param->qp_num;
	asked->responder = seen.responder_resources = param->initiator_depth;
	asked->initiator = seen.initiator_depth = param->responder_resources;
	asked->retry = param->retry_count;
	asked->rnr_retry = param->rnr_retry_count;
	asked->ack_timeout = id->ack_timeout;
	asked->peer = id;
	id->peer = asked;
	e = fv_cm_event(asked, RDMA_CM_EVENT_CONNECT_REQUEST, 0, &seen, FV_REQUEST_DATA);
	e->base.listen_id = &listener->base;
	e->owner = listener;
	listener->nr_waiting++;
	return 0;
}

/* [fv_cm_lock] */
static int send_request(struct fv_id *id, const struct rdma_conn_param *param)
{
	struct fv_device *d = id->device, *to = fv_device_at(&id->base.route.addr.dst_addr);
	struct fv_id *listener = listener_at(&id->base.route.addr.dst_sin);

	id->state = FV_ASKS;
	id->own_qpn = param->qp_num;
	id->retry = param->retry_count;
	id->rnr_retry = param->rnr_retry_count;
	if (fv_strikes(&d->knobs.lose_requests)) {
		at_add(&d->counts[FV_LOST_REQUESTS], 1);
		return 0;
	}
	if (at_load(&d->knobs.silent) || at_load(&to->knobs.silent))
		return 0;
	if (fv_strikes(&d->knobs.refuse_requests)) {
		at_add(&d->counts[FV_REFUSED_REQUESTS], 1);
		reject_event(id, at_load(&d->knobs.refuse_status), NULL, 0);
		return 0;
	}
	if (!listener)
		reject_event(id, FV_REJ_NO_LISTENER, NULL, 0);
	else if (listener->nr_waiting >= listener->backlog)
		reject_event(id, FV_REJ_CONSUMER, NULL, 0);
	else
		return bring_request(id, listener, param);
	return 0;
}

int rdma_connect(struct rdma_cm_id *base, struct rdma_conn_param *param)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	int err;

	pthread_mutex_lock(&fv_cm_lock);
	err = id->state != FV_ROUTE || param->private_data_len > FV_REQUEST_DATA
		      ? EINVAL
		      : send_request(id, param);
	pthread_mutex_unlock(&fv_cm_lock);
	return ends_with(err);
}

int rdma_accept(struct rdma_cm_id *base, struct rdma_conn_param *param)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	struct rdma_conn_param seen = *param;
	int err = 0;

	pthread_mutex_lock(&fv_cm_lock);
	if (id->state != FV_ASKED || param->private_data_len > FV_ANSWER_DATA) {
		err = EINVAL;
	} else {
		id->state = FV_ANSWERS;
		id->own_qpn = param->qp_num;
		id->responder = param->responder_resources;
		id->initiator = param->initiator_depth;
	}
	if (!err && reaches_peer(id) && id->peer->state == FV_ASKS) {
		struct fv_id *to = id->peer;

		to->state = FV_ANSWERED;
		to->peer_qpn = param->qp_num;
		to->responder = seen.responder_resources = param->initiator_depth;
		to->initiator = seen.initiator_depth = param->responder_resources;
		fv_cm_event(to, RDMA_CM_EVENT_CONNECT_RESPONSE, 0, &seen, FV_ANSWER_DATA);
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return ends_with(err);
}

/* Confirms an answer. rdma_cm leaves that to the program if the queue pairs are its own. */
int rdma_establish(struct rdma_cm_id *base)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	bool good;

	pthread_mutex_lock(&fv_cm_lock);
	good = id->state == FV_ANSWERED;
	if (good)
		id->state = FV_UP;
	if (good && reaches_peer(id) && id->peer->state == FV_ANSWERS) {
		id->peer->state = FV_UP;
		fv_cm_event(id->peer, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, 0);
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return ends_with(good ? 0 : EINVAL);
}

int rdma_notify(struct rdma_cm_id *base, enum ibv_event_type event)
{
	struct fv_id *id = container_of(base, struct fv_id, base);

	pthread_mutex_lock(&fv_cm_lock);
	if (event == IBV_EVENT_COMM_EST && id->state == FV_ANSWERS) {
		id->state = FV_UP;
		fv_cm_event(id, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, 0);
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return 0;
}

int rdma_reject(struct rdma_cm_id *base, const void *data, uint8_t length)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	bool good;

	pthread_mutex_lock(&fv_cm_lock);
	good = id->state == FV_ASKED && length <= FV_REJECT_DATA;
	if (good && reaches_peer(id))
		reject_event(id->peer, FV_REJ_CONSUMER, data, length);
	if (good) {
		part(id);
		id->state = FV_OVER;
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return ends_with(good ? 0 : EINVAL);
}

/* Ends a connection. Both ends hear of it. */
int rdma_disconnect(struct rdma_cm_id *base)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	bool up;

	pthread_mutex_lock(&fv_cm_lock);
	up = id->state == FV_UP;
	if (up && reaches_peer(id)) {
		id->peer->state = FV_OVER;
		fv_cm_event(id->peer, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	}
	if (up) {
		id->state = FV_OVER;
		fv_cm_event(id, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, 0);
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return ends_with(up ? 0 : EINVAL);
}

/* Fills in what the handshake agreed on. */
static void attributes(const struct fv_id *id, struct ibv_qp_attr *a, int *mask)
{
	switch (a->qp_state) {
	case IBV_QPS_INIT:
		*mask = IBV_QP_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX | IBV_QP_PORT;
		a->qp_access_flags = IBV_ACCESS_REMOTE_WRITE |
				     (id->responder ? IBV_ACCESS_REMOTE_READ : 0);
		a->pkey_index = 0;
		a->port_num = 1;
		break;
	case IBV_QPS_RTR:
		*mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
			IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
		a->ah_attr.is_global = 1;
		a->ah_attr.port_num = 1;
		a->path_mtu = IBV_MTU_4096;
		a->dest_qp_num = id->peer_qpn;
		a->max_dest_rd_atomic = id->responder;
		break;
	default:
		*mask = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
			IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
		a->timeout = id->ack_timeout ? id->ack_timeout : 19;
		a->retry_cnt = id->retry;
		a->rnr_retry = id->rnr_retry;
		a->max_rd_atomic = id->initiator;
		break;
	}
}

int rdma_init_qp_attr(struct rdma_cm_id *base, struct ibv_qp_attr *a, int *mask)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	bool good;

	pthread_mutex_lock(&fv_cm_lock);
	good = id->state == FV_ASKED || id->state == FV_ANSWERS || id->state == FV_ANSWERED ||
	       id->state == FV_UP;
	if (good)
		attributes(id, a, mask);
	pthread_mutex_unlock(&fv_cm_lock);
	return ends_with(good ? 0 : EINVAL);
}
