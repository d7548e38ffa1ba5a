/* SPDX-License-Identifier: Apache-2.0 */
/* The connection manager: its ids and events. The handshake is in cm_connect.c. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>

#include "cm.h"

pthread_mutex_t fv_cm_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t acked = PTHREAD_COND_INITIALIZER;
struct fv_id *fv_ids;

/* ---- event channels ---- */

struct rdma_event_channel *rdma_create_event_channel(void)
{
	struct fv_cm_channel *ch = calloc(1, sizeof(*ch));

	fv_devices_init();
	if (!ch || fv_bell_init(&ch->bell)) {
		free(ch);
		return NULL;
	}
	ch->base.fd = ch->bell.fd;
	list_init(&ch->events);
	return &ch->base;
}

void rdma_destroy_event_channel(struct rdma_event_channel *base)
{
	struct fv_cm_channel *ch = container_of(base, struct fv_cm_channel, base);
	struct list *l;

	while ((l = list_pop(&ch->events)))
		free(container_of(l, struct fv_cm_event, link));
	fv_bell_fini(&ch->bell);
	free(ch);
}

struct fv_cm_event *fv_cm_event(struct fv_id *id, enum rdma_cm_event_type type, int status,
				const struct rdma_conn_param *param, size_t padded)
{
	struct fv_cm_event *e = calloc(1, sizeof(*e));

	if (!e)
		abort();
	e->base.id = &id->base;
	e->base.event = type;
	e->base.status = status;
	e->owner = id;
	if (param) {
		e->base.param.conn = *param;
		if (param->private_data)
			memcpy(e->data, param->private_data, param->private_data_len);
	}
	/* The receiver sees the whole field of the datagram. */
	e->base.param.conn.private_data = padded ? e->data : NULL;
	e->base.param.conn.private_data_len = (uint8_t)padded;
	pthread_mutex_lock(&id->channel->bell.lock);
	list_add_tail(&id->channel->events, &e->link);
	fv_bell_ring(&id->channel->bell);
	pthread_mutex_unlock(&id->channel->bell.lock);
	return e;
}

int rdma_get_cm_event(struct rdma_event_channel *base, struct rdma_cm_event **out)
{
	struct fv_cm_channel *ch = container_of(base, struct fv_cm_channel, base);
	struct fv_cm_event *e = NULL;

	while (!e) {
		struct list *l;

		pthread_mutex_lock(&fv_cm_lock);
		pthread_mutex_lock(&ch->bell.lock);
		l = list_pop(&ch->events);
		if (list_empty(&ch->events))
			fv_bell_quiet(&ch->bell);
		pthread_mutex_unlock(&ch->bell.lock);
		if (l) {
			e = container_of(l, struct fv_cm_event, link);
			e->owner->unacked++;
			if (e->base.event == RDMA_CM_EVENT_CONNECT_REQUEST)
				e->owner->nr_waiting--;
		}
		pthread_mutex_unlock(&fv_cm_lock);
		if (!e && fv_bell_wait(&ch->bell))
			return -1;
	}
	*out = &e->base;
	return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *base)
{
	struct fv_cm_event *e = container_of(base, struct fv_cm_event, base);

	pthread_mutex_lock(&fv_cm_lock);
	e->owner->unacked--;
	pthread_cond_broadcast(&acked);
	pthread_mutex_unlock(&fv_cm_lock);
	free(e);
	return 0;
}

/* ---- ids ---- */

struct fv_id *fv_id_new(struct fv_cm_channel *ch, void *context)
{
	struct fv_id *id = calloc(1, sizeof(*id));

	if (!id)
		return NULL;
	id->base.channel = &ch->base;
	id->base.context = context;
	id->base.ps = RDMA_PS_TCP;
	id->base.qp_type = IBV_QPT_RC;
	id->channel = ch;
	id->next = fv_ids;
	fv_ids = id;
	return id;
}

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **out, void *context,
		   enum rdma_port_space ps)
{
	struct fv_id *id;

	if (ps != RDMA_PS_TCP) {
		errno = EINVAL;
		return -1;
	}
	pthread_mutex_lock(&fv_cm_lock);
	id = fv_id_new(container_of(channel, struct fv_cm_channel, base), context);
	pthread_mutex_unlock(&fv_cm_lock);
	if (!id) {
		errno = ENOMEM;
		return -1;
	}
	*out = &id->base;
	return 0;
}

static void unlink_id(struct fv_id *id)
{
	struct fv_id **p = &fv_ids;

	while (*p != id)
		p = &(*p)->next;
	*p = id->next;
}

/* Drops the events of an id that were not taken. A request that no program saw is refused. */
static void drop_events(struct fv_id *id)
{
	struct list *l, *next;
	struct list mine;

	list_init(&mine);
	pthread_mutex_lock(&id->channel->bell.lock);
	list_for_each_safe(l, next, &id->channel->events)
	{
		struct fv_cm_event *e = container_of(l, struct fv_cm_event, link);

		if (e->owner != id && e->base.id != &id->base)
			continue;
		list_del(l);
		list_add_tail(&mine, l);
	}
	if (list_empty(&id->channel->events))
		fv_bell_quiet(&id->channel->bell);
	pthread_mutex_unlock(&id->channel->bell.lock);
	while ((l = list_pop(&mine))) {
		struct fv_cm_event *e = container_of(l, struct fv_cm_event, link);
		struct fv_id *asked = container_of(e->base.id, struct fv_id, base);

		if (e->base.event == RDMA_CM_EVENT_CONNECT_REQUEST && asked != id) {
			fv_say_goodbye(asked);
			drop_events(asked);
			unlink_id(asked);
			free(asked);
		}
		free(e);
	}
}

int rdma_destroy_id(struct rdma_cm_id *base)
{
	struct fv_id *id = container_of(base, struct fv_id, base);

	pthread_mutex_lock(&fv_cm_lock);
	fv_say_goodbye(id);
	while (id->unacked)
		pthread_cond_wait(&acked, &fv_cm_lock);
	drop_events(id);
	unlink_id(id);
	pthread_mutex_unlock(&fv_cm_lock);
	free(id);
	return 0;
}

/* ---- addresses ---- */

/* Finds the device with that address: the librdmacm's own context of it is made at first use. */
struct fv_device *fv_device_at(const struct sockaddr *sa)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)sa;
	uint32_t i;

	if (!sa || sa->sa_family != AF_INET)
		return NULL;
	i = ntohl(v4->sin_addr.s_addr) - INADDR_LOOPBACK;
	return i < FV_DEVICES ? &fv_devices[i] : NULL;
}

static int fails_with(int err)
{
	errno = err;
	return -1;
}

/* [fv_cm_lock] */
static int bind_to(struct fv_id *id, const struct sockaddr *sa)
{
	static uint16_t last_port = 20000;
	struct fv_device *d = fv_device_at(sa);
	struct sockaddr_in *src = &id->base.route.addr.src_sin;

	if (!d)
		return fails_with(ENODEV);
	if (!d->cm)
		d->cm = fv_context_new(d);
	if (!d->cm)
		return fails_with(ENOMEM);
	memcpy(src, sa, sizeof(*src));
	if (!src->sin_port)
		src->sin_port = htons(++last_port);
	id->device = d;
	id->base.verbs = &d->cm->v.context;
	id->base.port_num = 1;
	return 0;
}

int rdma_bind_addr(struct rdma_cm_id *base, struct sockaddr *sa)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	int rc;

	pthread_mutex_lock(&fv_cm_lock);
	rc = bind_to(id, sa);
	pthread_mutex_unlock(&fv_cm_lock);
	return rc;
}

int rdma_listen(struct rdma_cm_id *base, int backlog)
{
	struct fv_id *id = container_of(base, struct fv_id, base);

	pthread_mutex_lock(&fv_cm_lock);
	id->state = FV_LISTENS;
	id->backlog = backlog > 0 ? backlog : 1024;
	pthread_mutex_unlock(&fv_cm_lock);
	return 0;
}

__be16 rdma_get_src_port(struct rdma_cm_id *id)
{
	return id->route.addr.src_sin.sin_port;
}

int rdma_set_option(struct rdma_cm_id *base, int level, int name, void *value, size_t length)
{
	struct fv_id *id = container_of(base, struct fv_id, base);

	if (level != RDMA_OPTION_ID || name != RDMA_OPTION_ID_ACK_TIMEOUT || length != 1)
		return fails_with(EINVAL);
	id->ack_timeout = *(const uint8_t *)value;
	return 0;
}

int rdma_resolve_addr(struct rdma_cm_id *base, struct sockaddr *src, struct sockaddr *dst,
		      int timeout_ms)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	int rc;

	(void)timeout_ms;
	pthread_mutex_lock(&fv_cm_lock);
	rc = bind_to(id, src);
	if (!rc) {
		memcpy(&id->base.route.addr.dst_sin, dst, sizeof(struct sockaddr_in));
		id->state = FV_ADDR;
		if (fv_device_at(dst))
			fv_cm_event(id, RDMA_CM_EVENT_ADDR_RESOLVED, 0, NULL, 0);
		else
			fv_cm_event(id, RDMA_CM_EVENT_ADDR_ERROR, -EHOSTUNREACH, NULL, 0);
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return rc;
}

int rdma_resolve_route(struct rdma_cm_id *base, int timeout_ms)
{
	struct fv_id *id = container_of(base, struct fv_id, base);
	bool good;

	(void)timeout_ms;
	pthread_mutex_lock(&fv_cm_lock);
	good = id->state == FV_ADDR;
	if (good) {
		id->state = FV_ROUTE;
		fv_cm_event(id, RDMA_CM_EVENT_ROUTE_RESOLVED, 0, NULL, 0);
	}
	pthread_mutex_unlock(&fv_cm_lock);
	return good ? 0 : fails_with(EINVAL);
}
