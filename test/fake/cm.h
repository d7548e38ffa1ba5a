/* SPDX-License-Identifier: Apache-2.0 */
/* The connection manager's objects. All of it is guarded by fv_cm_lock. */
#ifndef FV_CM_H
#define FV_CM_H

#include "fv_own.h"

/* The bytes of private data that a datagram has room for, after the CM's own. */
#define FV_REQUEST_DATA 56u
#define FV_ANSWER_DATA 196u
#define FV_REJECT_DATA 148u

/* IBTA's reasons of a reject. */
#define FV_REJ_TIMEOUT 4
#define FV_REJ_NO_LISTENER 8
#define FV_REJ_CONSUMER 28

enum fv_id_state {
	FV_IDLE = 0,
	FV_LISTENS,
	FV_ADDR,
	FV_ROUTE, /* resolved, or about to be */
	FV_ASKS, /* a request is sent */
	FV_ASKED, /* a request came */
	FV_ANSWERS, /* an answer is sent */
	FV_ANSWERED, /* an answer came */
	FV_UP,
	FV_OVER,
};

struct fv_cm_channel {
	struct rdma_event_channel base;
	struct fv_bell bell;
	struct list events; /* bell.lock */
};

struct fv_id {
	struct rdma_cm_id base;
	struct fv_id *next;
	struct fv_cm_channel *channel;
	struct fv_device *device;
	enum fv_id_state state;
	struct fv_id *peer; /* the other end, while it exists */
	uint32_t own_qpn, peer_qpn;
	uint8_t responder, initiator; /* READs: we serve, we have under way */
	uint8_t retry, rnr_retry, ack_timeout;
	int backlog, nr_waiting; /* FV_LISTENS: requests that the program has not taken */
	unsigned unacked;
};

struct fv_cm_event {
	struct rdma_cm_event base;
	struct list link;
	struct fv_id *owner; /* waits for its ack: the listener, of a request */
	uint8_t data[256];
};

extern pthread_mutex_t fv_cm_lock;
extern struct fv_id *fv_ids;

struct fv_id *fv_id_new(struct fv_cm_channel *ch, void *context);
struct fv_device *fv_device_at(const struct sockaddr *sa);
/* Adds an event. padded: bytes of private data that the program sees. */
struct fv_cm_event *fv_cm_event(struct fv_id *id, enum rdma_cm_event_type type, int status,
				const struct rdma_conn_param *param, size_t padded);
/* Tells the peer of an id that it is going (cm_connect.c). */
void fv_say_goodbye(struct fv_id *id);

#endif
