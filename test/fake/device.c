/* SPDX-License-Identifier: Apache-2.0 */
/* The fake devices: profiles, contexts, the port and its GIDs, asynchronous events. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fv_own.h"

#define CONNECTX(srq) \
	.max_qp = 131072, .max_qp_wr = 32768, .max_sge = 30, .max_cqe = 4194303, \
	.max_srq_wr = (srq), .max_rd_atomic = 16, .max_inline = 96, .max_msg = 1u << 30, \
	.cleans_cq = true, .tells_qp_errors = true, .tells_last_wqe = true

static const struct fv_profile profiles[] = {
	{ .name = "connectx", CONNECTX(32767) },
	{ .name = "rxe",
	  .max_qp = 1048320,
	  .max_qp_wr = 1048576,
	  .max_sge = 32,
	  .max_cqe = 32767,
	  .max_srq_wr = 1048576,
	  .max_rd_atomic = 128,
	  .max_inline = 512,
	  .max_msg = 8u << 20 },
	{ .name = "srq-less", CONNECTX(0) },
	{ .name = "foreign-gid", CONNECTX(32767), .foreign_gid = true },
};

pthread_mutex_t fv_control = PTHREAD_MUTEX_INITIALIZER;
struct fv_device fv_devices[FV_DEVICES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

const struct fv_profile *fv_profile(const char *name)
{
	for (size_t i = 0; i < array_size(profiles); i++)
		if (!strcmp(profiles[i].name, name))
			return &profiles[i];
	return NULL;
}

static void make_devices(void)
{
	const char *name = getenv("RREF_FAKE_PROFILE"), *delay = getenv("RREF_FAKE_DELAY_NS");
	const struct fv_profile *p = fv_profile(name && *name ? name : "connectx");

	if (!p) {
		fprintf(stderr, "RREF_FAKE_PROFILE: there is no profile %s\n", name);
		abort();
	}
	for (unsigned i = 0; i < FV_DEVICES; i++) {
		struct fv_device *d = &fv_devices[i];

		d->index = i;
		d->profile = *p;
		d->base.node_type = IBV_NODE_CA;
		d->base.transport_type = IBV_TRANSPORT_IB;
		snprintf(d->base.name, sizeof(d->base.name), "fake%u", i);
		snprintf(d->base.dev_name, sizeof(d->base.dev_name), "uverbs_fake%u", i);
		at_store(&d->knobs.delay_ns, delay ? atoll(delay) : 2000);
		at_store(&d->knobs.refuse_status, 28);
	}
}

void fv_devices_init(void)
{
	pthread_once(&once, make_devices);
}

static struct fv_device *device_at(unsigned i)
{
	fv_devices_init();
	if (i >= FV_DEVICES)
		abort();
	return &fv_devices[i];
}

void fv_use(unsigned device, const struct fv_profile *profile)
{
	device_at(device)->profile = *profile;
}

struct fv_knobs *fv_knobs(unsigned device)
{
	return &device_at(device)->knobs;
}

struct fv_counts fv_count(unsigned device)
{
	struct fv_device *d = device_at(device);
	uint64_t n[FV_NR_COUNTS];
	struct fv_counts out;

	pthread_mutex_lock(&fv_control);
	for (int k = 0; k < FV_NR_COUNTS; k++)
		n[k] = at_load(&d->counts[k]);
	for (uint32_t i = 0; i < FV_QPS; i++) {
		struct fv_qp *q = at_load_acq(&fv_qps[i]);

		for (int k = 0; q && q->device == d && k < 3; k++)
			n[k] += at_load(&q->posted[k]);
	}
	pthread_mutex_unlock(&fv_control);
	memcpy(&out, n, sizeof(out));
	return out;
}

/* ---- contexts ---- */

struct fv_context *fv_context_of(struct ibv_context *context)
{
	return container_of(context, struct fv_context, v.context);
}

struct ibv_device **ibv_get_device_list(int *num_devices)
{
	struct ibv_device **list = calloc(FV_DEVICES + 1, sizeof(*list));

	fv_devices_init();
	for (unsigned i = 0; list && i < FV_DEVICES; i++)
		list[i] = &fv_devices[i].base;
	if (num_devices)
		*num_devices = list ? (int)FV_DEVICES : 0;
	return list;
}

void ibv_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *device)
{
	return device->name;
}

struct fv_context *fv_context_new(struct fv_device *device)
{
	struct fv_context *c = calloc(1, sizeof(*c));
	struct ibv_context *v;

	if (!c || fv_bell_init(&c->bell)) {
		free(c);
		return NULL;
	}
	c->device = device;
	c->v.sz = sizeof(c->v);
	v = &c->v.context;
	v->device = &device->base;
	v->abi_compat = __VERBS_ABI_IS_EXTENDED;
	v->cmd_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	v->async_fd = c->bell.fd;
	v->num_comp_vectors = 1;
	pthread_mutex_init(&v->mutex, NULL);
	v->ops.poll_cq = fv_poll_cq;
	v->ops.req_notify_cq = fv_req_notify_cq;
	v->ops.post_send = fv_post_send;
	v->ops.post_recv = fv_post_recv;
	v->ops.post_srq_recv = fv_post_srq_recv;
	return c;
}

void fv_context_free(struct fv_context *c)
{
	close(c->v.context.cmd_fd);
	fv_bell_fini(&c->bell);
	pthread_mutex_destroy(&c->v.context.mutex);
	free(c);
}

struct ibv_context *ibv_open_device(struct ibv_device *base)
{
	struct fv_device *d = container_of(base, struct fv_device, base);
	struct fv_context *c = fv_context_new(d);

	if (!c)
		return NULL;
	pthread_mutex_lock(&fv_control);
	c->next = d->contexts;
	d->contexts = c;
	pthread_mutex_unlock(&fv_control);
	return &c->v.context;
}

static bool any_open(void)
{
	for (unsigned i = 0; i < FV_DEVICES; i++)
		if (fv_devices[i].contexts)
			return true;
	return false;
}

int ibv_close_device(struct ibv_context *context)
{
	struct fv_context *c = fv_context_of(context), **p;
	bool last;

	pthread_mutex_lock(&fv_control);
	for (p = &c->device->contexts; *p != c; p = &(*p)->next)
		;
	*p = c->next;
	last = !any_open();
	pthread_mutex_unlock(&fv_control);
	if (last)
		fv_timer_stop();
	fv_context_free(c);
	return 0;
}

int ibv_fork_init(void)
{
	return 0;
}

enum ibv_fork_status ibv_is_fork_initialized(void)
{
	return IBV_FORK_UNNEEDED;
}

/* ---- attributes ---- */

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *out)
{
	const struct fv_profile *p = &fv_device_of(context)->profile;

	*out = (struct ibv_device_attr){
		.fw_ver = "fake",
		.max_mr_size = UINT64_MAX,
		.page_size_cap = 4096,
		.max_qp = p->max_qp,
		.max_qp_wr = p->max_qp_wr,
		.max_sge = p->max_sge,
		.max_sge_rd = p->max_sge,
		.max_cq = 65536,
		.max_cqe = p->max_cqe,
		.max_mr = FV_MRS,
		.max_pd = 65536,
		.max_qp_rd_atom = p->max_rd_atomic,
		.max_qp_init_rd_atom = p->max_rd_atomic,
		.atomic_cap = IBV_ATOMIC_NONE,
		.max_srq = p->max_srq_wr ? 65536 : 0,
		.max_srq_wr = p->max_srq_wr,
		.max_srq_sge = p->max_srq_wr ? p->max_sge : 0,
		.max_pkeys = 1,
		.phys_port_cnt = 1,
	};
	return 0;
}

/* The context's table has no query_port, so that verbs.h comes here. */
#undef ibv_query_port
int ibv_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *compat)
{
	struct ibv_port_attr *out = (struct ibv_port_attr *)compat;

	if (port != 1)
		return EINVAL;
	out->state = IBV_PORT_ACTIVE;
	out->max_mtu = out->active_mtu = IBV_MTU_4096;
	out->gid_tbl_len = 4;
	out->max_msg_sz = fv_device_of(context)->profile.max_msg;
	out->pkey_tbl_len = 1;
	out->link_layer = IBV_LINK_LAYER_ETHERNET;
	return 0;
}

/* Writes ::ffff:a.b.c.d. */
static void mapped(union ibv_gid *gid, uint32_t ip)
{
	uint32_t be = htonl(ip);

	memset(gid, 0, sizeof(*gid));
	gid->raw[10] = gid->raw[11] = 0xff;
	memcpy(gid->raw + 12, &be, 4);
}

/* Fills in a row of the GID table: of another network namespace, if the profile says so, and our
 * own. */
static int gid_row(const struct fv_device *d, uint32_t i, struct ibv_gid_entry *out)
{
	*out = (struct ibv_gid_entry){ .gid_index = i, .port_num = 1 };
	out->gid_type = IBV_GID_TYPE_ROCE_V2;
	if (d->profile.foreign_gid && i == 0) {
		mapped(&out->gid, (10u << 24) + 7);
		out->ndev_ifindex = 4242;
		return 0;
	}
	if (i != (d->profile.foreign_gid ? 1 : 0))
		return ENODATA;
	mapped(&out->gid, INADDR_LOOPBACK + d->index);
	out->ndev_ifindex = if_nametoindex("lo");
	return 0;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port, uint32_t i,
		      struct ibv_gid_entry *out, uint32_t flags, size_t size)
{
	(void)size;
	return port != 1 || flags ? EINVAL : gid_row(fv_device_of(context), i, out);
}

ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *out, size_t max,
			     uint32_t flags, size_t size)
{
	size_t n = 0;

	(void)size;
	if (flags)
		return -EINVAL;
	for (uint32_t i = 0; i < 4 && n < max; i++)
		if (!gid_row(fv_device_of(context), i, &out[n]))
			n++;
	return (ssize_t)n;
}

int ibv_query_gid(struct ibv_context *context, uint8_t port, int i, union ibv_gid *out)
{
	struct ibv_gid_entry row;

	if (port != 1 || gid_row(fv_device_of(context), (uint32_t)i, &row)) {
		errno = EINVAL;
		return -1;
	}
	*out = row.gid;
	return 0;
}

const char *ibv_port_state_str(enum ibv_port_state state)
{
	return state == IBV_PORT_ACTIVE ? "PORT_ACTIVE" : "PORT_DOWN";
}

const char *ibv_wc_status_str(enum ibv_wc_status status)
{
	return status == IBV_WC_SUCCESS ? "success" : "failed";
}

/* ---- asynchronous events ---- */

void fv_event_add(struct fv_context *c, enum ibv_event_type type, void *element)
{
	struct ibv_async_event *e;

	pthread_mutex_lock(&c->bell.lock);
	if (c->tail - c->head < FV_EVENTS) {
		e = &c->events[c->tail++ % FV_EVENTS];
		*e = (struct ibv_async_event){ .event_type = type };
		if (element)
			e->element.qp = element;
		else
			e->element.port_num = 1;
		fv_bell_ring(&c->bell);
	}
	pthread_mutex_unlock(&c->bell.lock);
}

void fv_events_forget(struct fv_context *c, const void *element)
{
	uint32_t kept;

	pthread_mutex_lock(&c->bell.lock);
	kept = c->head;
	for (uint32_t i = c->head; i != c->tail; i++)
		if (c->events[i % FV_EVENTS].element.qp != element)
			c->events[kept++ % FV_EVENTS] = c->events[i % FV_EVENTS];
	c->tail = kept;
	if (c->head == c->tail)
		fv_bell_quiet(&c->bell);
	pthread_mutex_unlock(&c->bell.lock);
}

void fv_raise(unsigned device, int event)
{
	struct fv_device *d = device_at(device);

	pthread_mutex_lock(&fv_control);
	for (struct fv_context *c = d->contexts; c; c = c->next)
		fv_event_add(c, (enum ibv_event_type)event, NULL);
	pthread_mutex_unlock(&fv_control);
}

static bool about_qp(enum ibv_event_type type)
{
	return type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_REQ_ERR ||
	       type == IBV_EVENT_QP_ACCESS_ERR || type == IBV_EVENT_COMM_EST ||
	       type == IBV_EVENT_QP_LAST_WQE_REACHED;
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *out)
{
	struct fv_context *c = fv_context_of(context);
	bool found = false;

	while (!found) {
		pthread_mutex_lock(&c->bell.lock);
		found = c->head != c->tail;
		if (found)
			*out = c->events[c->head++ % FV_EVENTS];
		if (found && about_qp(out->event_type))
			fv_qp_of(out->element.qp)->events_out++;
		if (c->head == c->tail)
			fv_bell_quiet(&c->bell);
		pthread_mutex_unlock(&c->bell.lock);
		if (!found && fv_bell_wait(&c->bell))
			return -1;
	}
	return 0;
}

void ibv_ack_async_event(struct ibv_async_event *e)
{
	struct fv_qp *q;

	if (!about_qp(e->event_type))
		return;
	q = fv_qp_of(e->element.qp);
	pthread_mutex_lock(&q->base.mutex);
	q->base.events_completed++;
	pthread_cond_signal(&q->base.cond);
	pthread_mutex_unlock(&q->base.mutex);
}
