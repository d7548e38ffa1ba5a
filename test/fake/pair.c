/* SPDX-License-Identifier: Apache-2.0 */
/* Queue pairs and receive queues: made, moved through their states, destroyed. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "fv_own.h"

_Atomic(struct fv_qp *) fv_qps[FV_QPS];
static uint32_t next_index, generation = 1; /* control */

/* ---- receive queues ---- */

/* Returns a power of two, so that places go on where their numbers wrap. */
uint32_t fv_ring_size(uint32_t max)
{
	uint32_t n = 1;

	while (n < max)
		n *= 2;
	return n;
}

int fv_queue_init(struct fv_queue *q, uint32_t max, uint32_t max_sge)
{
	uint32_t n = fv_ring_size(max);

	*q = (struct fv_queue){ .max = max, .mask = n - 1, .max_sge = max_of(max_sge, 1u) };
	q->ring = calloc(n, sizeof(*q->ring));
	q->sges = calloc((size_t)n * q->max_sge, sizeof(*q->sges));
	return q->ring && q->sges ? 0 : -1;
}

void fv_queue_fini(struct fv_queue *q)
{
	free(q->ring);
	free(q->sges);
	q->ring = NULL;
	q->sges = NULL;
	q->max = 0;
}

int fv_queue_post(struct fv_queue *q, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	int rc = 0;

	fv_take(&q->lock);
	for (; wr && !rc; wr = rc ? wr : wr->next) {
		uint32_t i;

		if (wr->num_sge < 0 || (uint32_t)wr->num_sge > q->max_sge)
			rc = EINVAL;
		else if (q->tail - q->head >= q->max)
			rc = ENOMEM;
		if (rc) {
			*bad = wr;
			break;
		}
		i = q->tail & q->mask;
		q->ring[i] = (struct fv_recv){ .wr_id = wr->wr_id,
					       .nr_sge = (uint32_t)wr->num_sge };
		if (wr->num_sge)
			memcpy(&q->sges[(size_t)i * q->max_sge], wr->sg_list,
			       (size_t)wr->num_sge * sizeof(*wr->sg_list));
		q->tail++;
	}
	fv_give(&q->lock);
	return rc;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
	const struct fv_profile *p = &fv_device_of(pd->context)->profile;
	struct fv_srq *s;

	if (!p->max_srq_wr || attr->attr.max_wr > (uint32_t)p->max_srq_wr ||
	    attr->attr.max_sge > (uint32_t)p->max_sge) {
		errno = p->max_srq_wr ? EINVAL : EOPNOTSUPP;
		return NULL;
	}
	s = calloc(1, sizeof(*s));
	if (!s || fv_queue_init(&s->queue, attr->attr.max_wr, attr->attr.max_sge)) {
		free(s);
		errno = ENOMEM;
		return NULL;
	}
	s->base.context = pd->context;
	s->base.pd = pd;
	s->base.srq_context = attr->srq_context;
	return &s->base;
}

int ibv_destroy_srq(struct ibv_srq *base)
{
	struct fv_srq *s = container_of(base, struct fv_srq, base);
	bool used;

	pthread_mutex_lock(&fv_control);
	used = s->nr_qps;
	pthread_mutex_unlock(&fv_control);
	if (used)
		return EBUSY;
	fv_queue_fini(&s->queue);
	free(s);
	return 0;
}

/* ---- making ---- */

struct fv_qp *fv_qp_find(uint32_t num)
{
	struct fv_qp *q = at_load_acq(&fv_qps[num % FV_QPS]);

	return num && q && at_load_acq(&q->num) == num ? q : NULL;
}

struct fv_qp *fv_peer(struct fv_qp *q)
{
	uint32_t dest = at_load_acq(&q->dest);
	struct fv_qp *p = at_load_acq(&q->peer);

	if (likely(p && at_load(&p->num) == dest))
		return p;
	p = fv_qp_find(dest);
	if (p)
		at_store_rel(&q->peer, p);
	return p;
}

/* Finds a struct that is not in use, makes one if needed. Its number is new. [control] */
static struct fv_qp *take_qp(uint32_t *num)
{
	for (uint32_t k = 0; k < FV_QPS; k++) {
		uint32_t i = next_index;
		struct fv_qp *q = at_load(&fv_qps[i]);

		next_index = (i + 1) % FV_QPS;
		if (!next_index)
			generation = generation % 4095 + 1;
		if (q && at_load(&q->num))
			continue;
		if (!q) {
			q = aligned_alloc(CACHE_LINE, sizeof(*q));
			if (!q)
				return NULL;
			memset(q, 0, sizeof(*q));
			pthread_mutex_init(&q->base.mutex, NULL);
			pthread_cond_init(&q->base.cond, NULL);
			at_store_rel(&fv_qps[i], q);
		}
		*num = generation * FV_QPS + i;
		return q;
	}
	return NULL;
}

/* Checks what is asked against the device. Returns 0 or an errno. */
static int check_wish(const struct fv_profile *p, const struct ibv_qp_init_attr *a)
{
	uint32_t wr = max_of(a->cap.max_send_wr, a->cap.max_recv_wr);
	uint32_t sge = max_of(a->cap.max_send_sge, a->cap.max_recv_sge);

	if (a->qp_type != IBV_QPT_RC || !a->send_cq || !a->recv_cq ||
	    wr > (uint32_t)p->max_qp_wr || sge > (uint32_t)p->max_sge ||
	    a->cap.max_inline_data > p->max_inline)
		return EINVAL;
	return a->srq && !p->max_srq_wr ? EOPNOTSUPP : 0;
}

/* Makes the queues of a queue pair, which has no number yet. */
static int make_queues(struct fv_qp *q, struct ibv_qp_init_attr *a)
{
	struct ibv_qp_cap *cap = &a->cap;
	size_t n;

	cap->max_send_wr = max_of(cap->max_send_wr, 1u);
	cap->max_send_sge = max_of(cap->max_send_sge, 1u);
	if (a->srq)
		cap->max_recv_wr = cap->max_recv_sge = 0;
	q->max_sq = cap->max_send_wr;
	n = fv_ring_size(q->max_sq);
	q->sq_mask = (uint32_t)n - 1;
	q->sq = calloc(n, sizeof(*q->sq));
	q->sges = calloc(n * cap->max_send_sge, sizeof(*q->sges));
	q->small = calloc(n, max_of(cap->max_inline_data, 1u));
	return !q->sq || !q->sges || !q->small ||
			       fv_queue_init(&q->queue, cap->max_recv_wr, cap->max_recv_sge)
		       ? ENOMEM
		       : 0;
}

static void free_queues(struct fv_qp *q)
{
	free(q->sq);
	free(q->sges);
	free(q->small);
	q->sq = NULL;
	q->sges = NULL;
	q->small = NULL;
	fv_queue_fini(&q->queue);
}

/* Sets a struct that was used before to its beginning. [control, engine, serve] */
static int begin_qp(struct fv_qp *q, struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	int rc = make_queues(q, a), send, recv;

	if (rc)
		return rc;
	q->device = fv_device_of(pd->context);
	q->send_cq = container_of(a->send_cq, struct fv_cq, base);
	q->recv_cq = container_of(a->recv_cq, struct fv_cq, base);
	q->srq = a->srq ? container_of(a->srq, struct fv_srq, base) : NULL;
	q->init = *a;
	q->sig_all = a->sq_sig_all;
	q->attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RESET };
	q->nr_reads = 0;
	memset(q->read_due_ns, 0, sizeof(q->read_due_ns));
	q->told = q->heard = false;
	q->events_out = q->base.events_completed = 0;
	at_store(&q->tail, 0);
	at_store(&q->head, 0);
	at_store(&q->access, 0);
	at_store(&q->dest, 0);
	at_store(&q->peer, NULL);
	at_store(&q->state, IBV_QPS_RESET);
	send = fv_cq_attach(q->send_cq, (uintptr_t)q);
	recv = send < 0 ? -1 : fv_cq_attach(q->recv_cq, (uintptr_t)q | FV_INCOMING);
	if (recv < 0) {
		if (send >= 0)
			fv_cq_detach(q->send_cq, (uint32_t)send);
		return ENOMEM;
	}
	q->send_slot = (uint32_t)send;
	q->recv_slot = (uint32_t)recv;
	return 0;
}

/* Stands still while a knob is set. */
static void stand(struct fv_device *d, const _Atomic int *knob, enum fv_count_of count)
{
	if (!at_load(knob))
		return;
	at_add(&d->counts[count], 1);
	while (at_load(knob))
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	struct fv_device *d = fv_device_of(pd->context);
	int rc = fv_strikes(&d->knobs.fail_creates) ? ENOMEM : check_wish(&d->profile, a);
	struct fv_qp *q = NULL;
	uint32_t num = 0;

	stand(d, &d->knobs.hold_creates, FV_HELD_CREATES);
	pthread_mutex_lock(&fv_control);
	if (!rc && !(q = take_qp(&num)))
		rc = ENOMEM;
	if (!rc) {
		fv_take(&q->engine);
		fv_take(&q->serve);
		rc = begin_qp(q, pd, a);
		if (rc)
			free_queues(q);
		else
			at_store_rel(&q->num, num);
		fv_give(&q->serve);
		fv_give(&q->engine);
	}
	if (!rc && q->srq)
		q->srq->nr_qps++;
	pthread_mutex_unlock(&fv_control);
	if (rc) {
		errno = rc;
		return NULL;
	}
	q->base.context = pd->context;
	q->base.qp_context = a->qp_context;
	q->base.pd = pd;
	q->base.send_cq = a->send_cq;
	q->base.recv_cq = a->recv_cq;
	q->base.srq = a->srq;
	q->base.qp_num = num;
	q->base.qp_type = a->qp_type;
	q->base.state = IBV_QPS_RESET;
	return &q->base;
}

/* ---- states ---- */

#define TO_INIT (IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)
#define TO_RTR \
	(IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | \
	 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)
#define TO_RTS \
	(IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | \
	 IBV_QP_MAX_QP_RD_ATOMIC)

/* Tells whether a queue pair in that state may move so: the table of the specification. */
static bool may_move(enum ibv_qp_state from, enum ibv_qp_state to, int mask)
{
	switch (to) {
	case IBV_QPS_RESET:
	case IBV_QPS_ERR:
		return !(mask & ~IBV_QP_STATE);
	case IBV_QPS_INIT:
		return (from == IBV_QPS_RESET && (mask & TO_INIT) == TO_INIT) ||
		       from == IBV_QPS_INIT;
	case IBV_QPS_RTR:
		return from == IBV_QPS_INIT && (mask & TO_RTR) == TO_RTR;
	case IBV_QPS_RTS:
		if (from == IBV_QPS_RTR)
			return (mask & TO_RTS) == TO_RTS;
		return from == IBV_QPS_RTS &&
		       !(mask & ~(IBV_QP_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER |
				  IBV_QP_CUR_STATE));
	default:
		return false;
	}
}

/* Takes the attributes of addressing that the mask names. [control, serve] */
static void take_address(struct fv_qp *q, const struct ibv_qp_attr *a, int mask)
{
	struct ibv_qp_attr *to = &q->attr;

	if (mask & IBV_QP_PORT)
		to->port_num = a->port_num;
	if (mask & IBV_QP_PKEY_INDEX)
		to->pkey_index = a->pkey_index;
	if (mask & IBV_QP_AV)
		to->ah_attr = a->ah_attr;
	if (mask & IBV_QP_PATH_MTU)
		to->path_mtu = a->path_mtu;
	if (mask & IBV_QP_RQ_PSN)
		to->rq_psn = a->rq_psn;
	if (mask & IBV_QP_SQ_PSN)
		to->sq_psn = a->sq_psn;
	if (mask & IBV_QP_DEST_QPN) {
		to->dest_qp_num = a->dest_qp_num;
		at_store_rel(&q->dest, a->dest_qp_num);
	}
}

/* Takes the other attributes. [control, serve] */
static void take_limits(struct fv_qp *q, const struct ibv_qp_attr *a, int mask)
{
	struct ibv_qp_attr *to = &q->attr;

	if (mask & IBV_QP_ACCESS_FLAGS)
		at_store(&q->access, to->qp_access_flags = a->qp_access_flags);
	if (mask & IBV_QP_MAX_DEST_RD_ATOMIC)
		at_store(&q->dest_rd_atomic, to->max_dest_rd_atomic = a->max_dest_rd_atomic);
	if (mask & IBV_QP_MAX_QP_RD_ATOMIC)
		at_store(&q->rd_atomic, to->max_rd_atomic = a->max_rd_atomic);
	if (mask & IBV_QP_MIN_RNR_TIMER)
		at_store(&q->min_rnr, to->min_rnr_timer = a->min_rnr_timer);
	if (mask & IBV_QP_TIMEOUT)
		at_store(&q->timeout, to->timeout = a->timeout);
	if (mask & IBV_QP_RETRY_CNT)
		at_store(&q->retry, to->retry_cnt = a->retry_cnt);
	if (mask & IBV_QP_RNR_RETRY)
		at_store(&q->rnr_retry, to->rnr_retry = a->rnr_retry);
}

/* Tells whether the device has these values. */
static bool has_values(const struct fv_qp *q, const struct ibv_qp_attr *a, int mask)
{
	int serves = mask & IBV_QP_MAX_DEST_RD_ATOMIC ? a->max_dest_rd_atomic : 0;
	int asks = mask & IBV_QP_MAX_QP_RD_ATOMIC ? a->max_rd_atomic : 0;

	if (mask & IBV_QP_PORT && a->port_num != 1)
		return false;
	if (mask & IBV_QP_DEST_QPN && !a->dest_qp_num)
		return false;
	return max_of(serves, asks) <= q->device->profile.max_rd_atomic;
}

/* Carries out what was due before now, in both directions: a device would have done it. */
static void catch_up(struct fv_qp *q)
{
	struct fv_qp *p = fv_peer(q);

	fv_run_all(q);
	if (p && p != q)
		fv_run_all(p);
}

static int modify_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask)
{
	struct fv_qp *q = fv_qp_of(base);
	enum ibv_qp_state from, to;
	int rc;

	pthread_mutex_lock(&fv_control);
	if (mask & IBV_QP_STATE && a->qp_state == IBV_QPS_ERR)
		catch_up(q);
	fv_take(&q->serve);
	from = (enum ibv_qp_state)at_load(&q->state);
	to = mask & IBV_QP_STATE ? a->qp_state : from;
	rc = may_move(from, to, mask) && has_values(q, a, mask) ? 0 : EINVAL;
	if (!rc) {
		take_address(q, a, mask);
		take_limits(q, a, mask);
		if (to == IBV_QPS_ERR)
			fv_set_error(q);
		else
			at_store_rel(&q->state, to);
		q->attr.qp_state = base->state = to;
	}
	fv_give(&q->serve);
	/* A caller finds the requests flushed. */
	if (!rc && to == IBV_QPS_ERR)
		fv_run_all(q);
	pthread_mutex_unlock(&fv_control);
	return rc;
}

int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask)
{
	bool stops = mask & IBV_QP_STATE && a->qp_state == IBV_QPS_ERR;

	if (stops && fv_strikes(&fv_qp_of(base)->device->knobs.fail_stops))
		return EIO;
	return modify_qp(base, a, mask);
}

int ibv_query_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask,
		 struct ibv_qp_init_attr *init)
{
	struct fv_qp *q = fv_qp_of(base);

	(void)mask;
	pthread_mutex_lock(&fv_control);
	*a = q->attr;
	a->qp_state = a->cur_qp_state = base->state = (enum ibv_qp_state)at_load(&q->state);
	a->cap = q->init.cap;
	*init = q->init;
	pthread_mutex_unlock(&fv_control);
	return 0;
}

/* ---- end ---- */

/* Takes entries out of a shared queue as if the queue pair had begun with them. */
static void lose_entries(struct fv_qp *q)
{
	int n = at_load(&q->device->knobs.lose_srq);

	fv_take(&q->srq->queue.lock);
	for (; n > 0 && q->srq->queue.head != q->srq->queue.tail; n--) {
		q->srq->queue.head++;
		at_add(&q->device->counts[FV_LOST_SRQ], 1);
	}
	fv_give(&q->srq->queue.lock);
}

/* Drops the events that were not taken, and waits for the acks of the others. */
static void end_events(struct fv_qp *q)
{
	struct fv_context *c = fv_context_of(q->base.context);
	uint32_t out;

	fv_events_forget(c, &q->base);
	pthread_mutex_lock(&c->bell.lock);
	out = q->events_out;
	pthread_mutex_unlock(&c->bell.lock);
	pthread_mutex_lock(&q->base.mutex);
	while (q->base.events_completed != out)
		pthread_cond_wait(&q->base.cond, &q->base.mutex);
	pthread_mutex_unlock(&q->base.mutex);
}

/* Ends a queue pair. On return no device looks at memory or writes to it for its sake. */
int ibv_destroy_qp(struct ibv_qp *base)
{
	struct fv_qp *q = fv_qp_of(base);
	uint32_t num = base->qp_num;

	if (fv_strikes(&q->device->knobs.fail_destroys))
		return EBUSY;
	stand(q->device, &q->device->knobs.hold_destroys, FV_HELD_DESTROYS);
	pthread_mutex_lock(&fv_control);
	catch_up(q);
	fv_take(&q->engine);
	fv_take(&q->serve);
	at_store_rel(&q->num, 0);
	for (int i = 0; i < 3; i++) {
		at_add(&q->device->counts[i], at_load(&q->posted[i]));
		at_store(&q->posted[i], 0);
	}
	at_store_rel(&q->state, IBV_QPS_RESET);
	at_store(&q->head, at_load(&q->tail));
	free_queues(q);
	fv_give(&q->serve);
	fv_give(&q->engine);
	fv_cq_detach(q->send_cq, q->send_slot);
	fv_cq_detach(q->recv_cq, q->recv_slot);
	if (q->device->profile.cleans_cq) {
		fv_cq_clean(q->send_cq, num);
		fv_cq_clean(q->recv_cq, num);
	}
	if (q->srq) {
		lose_entries(q);
		q->srq->nr_qps--;
	}
	end_events(q);
	pthread_mutex_unlock(&fv_control);
	return 0;
}
