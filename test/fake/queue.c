/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion queues and their channels.
 *
 * A poll first carries out what is due for its queue pairs, then takes completions. Each queue pair
 * has a bit in its completion queue, which a post sets. A poll clears it when it finds no request
 * left, and looks once more. Several threads may poll at once. A queue pair that another one is at
 * is left to it. The entries are taken under a spinlock, as mlx5 does.
 */
#include <errno.h>
#include <stdlib.h>

#include "fv_own.h"

static _Atomic(struct fv_cq *) all; /* every one that was ever made; grows under control */

/* ---- channels ---- */

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
	struct fv_channel *ch = calloc(1, sizeof(*ch));

	if (!ch || fv_bell_init(&ch->bell)) {
		free(ch);
		return NULL;
	}
	ch->base.context = context;
	ch->base.fd = ch->bell.fd;
	return &ch->base;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *base)
{
	struct fv_channel *ch = container_of(base, struct fv_channel, base);

	if (at_load(&ch->nr_cqs))
		return EBUSY;
	fv_bell_fini(&ch->bell);
	free(ch);
	return 0;
}

/* Notifies of a queue that was armed. */
static void tell_channel(struct fv_cq *cq)
{
	struct fv_channel *ch = cq->channel;

	if (!ch)
		return;
	pthread_mutex_lock(&ch->bell.lock);
	if (!cq->listed) {
		cq->listed = true;
		cq->next = NULL;
		*(ch->head ? &ch->tail->next : &ch->head) = cq;
		ch->tail = cq;
		fv_bell_ring(&ch->bell);
	}
	pthread_mutex_unlock(&ch->bell.lock);
}

int ibv_get_cq_event(struct ibv_comp_channel *base, struct ibv_cq **out, void **context)
{
	struct fv_channel *ch = container_of(base, struct fv_channel, base);
	struct fv_cq *cq = NULL;

	while (!cq) {
		pthread_mutex_lock(&ch->bell.lock);
		cq = ch->head;
		if (cq) {
			ch->head = cq->next;
			cq->listed = false;
			cq->events_out++;
		}
		if (!ch->head)
			fv_bell_quiet(&ch->bell);
		pthread_mutex_unlock(&ch->bell.lock);
		if (!cq && fv_bell_wait(&ch->bell))
			return -1;
	}
	*out = &cq->base;
	*context = cq->base.cq_context;
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned n)
{
	pthread_mutex_lock(&cq->mutex);
	cq->comp_events_completed += n;
	pthread_cond_signal(&cq->cond);
	pthread_mutex_unlock(&cq->mutex);
}

/* Takes the queue out of its channel. Waits for the acks of its events, as libibverbs does. */
static void leave_channel(struct fv_cq *cq)
{
	struct fv_channel *ch = cq->channel;
	uint32_t out;

	if (!ch)
		return;
	pthread_mutex_lock(&ch->bell.lock);
	for (struct fv_cq **p = &ch->head, *last = NULL; *p; last = *p, p = &(*p)->next) {
		if (*p != cq)
			continue;
		*p = cq->next;
		if (ch->tail == cq)
			ch->tail = last;
		break;
	}
	cq->listed = false;
	if (!ch->head)
		fv_bell_quiet(&ch->bell);
	out = cq->events_out;
	pthread_mutex_unlock(&ch->bell.lock);
	at_sub(&ch->nr_cqs, 1);
	pthread_mutex_lock(&cq->base.mutex);
	while (cq->base.comp_events_completed != out)
		pthread_cond_wait(&cq->base.cond, &cq->base.mutex);
	pthread_mutex_unlock(&cq->base.mutex);
}

/* ---- queues ---- */

/* Takes one that was destroyed, or makes one. [control] */
static struct fv_cq *take_cq(void)
{
	struct fv_cq *cq = at_load(&all);

	while (cq && cq->used)
		cq = cq->all_next;
	if (cq)
		return cq;
	cq = aligned_alloc(CACHE_LINE, sizeof(*cq));
	if (!cq)
		return NULL;
	memset(cq, 0, sizeof(*cq));
	pthread_mutex_init(&cq->base.mutex, NULL);
	pthread_cond_init(&cq->base.cond, NULL);
	cq->all_next = at_load(&all);
	at_store_rel(&all, cq);
	return cq;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
			     struct ibv_comp_channel *channel, int vector)
{
	struct ibv_wc *ring = NULL;
	struct fv_cq *cq = NULL;

	if (cqe < 1 || cqe > fv_device_of(context)->profile.max_cqe || vector) {
		errno = EINVAL;
		return NULL;
	}
	ring = calloc((size_t)cqe, sizeof(*ring));
	pthread_mutex_lock(&fv_control);
	cq = ring ? take_cq() : NULL;
	if (cq) {
		cq->used = true;
		cq->base.context = context;
		cq->base.cq_context = cq_context;
		cq->base.channel = channel;
		cq->base.cqe = cqe;
		cq->base.comp_events_completed = cq->events_out = 0;
		cq->channel = channel ? container_of(channel, struct fv_channel, base) : NULL;
		cq->ring = ring;
		cq->max = (uint32_t)cqe;
		cq->head = cq->tail = 0;
		if (cq->channel)
			at_add(&cq->channel->nr_cqs, 1);
	}
	pthread_mutex_unlock(&fv_control);
	if (cq)
		return &cq->base;
	free(ring);
	errno = ENOMEM;
	return NULL;
}

int ibv_destroy_cq(struct ibv_cq *base)
{
	struct fv_cq *cq = container_of(base, struct fv_cq, base);

	pthread_mutex_lock(&fv_control);
	if (cq->nr_qps) {
		pthread_mutex_unlock(&fv_control);
		return EBUSY;
	}
	at_store(&cq->armed, FV_ASLEEP);
	at_store(&cq->nr, 0);
	at_store(&cq->broken, 0);
	free(cq->ring);
	cq->ring = NULL;
	leave_channel(cq);
	cq->used = false;
	pthread_mutex_unlock(&fv_control);
	return 0;
}

int fv_cq_attach(struct fv_cq *cq, uintptr_t qp)
{
	for (uint32_t i = 0; i < FV_SLOTS; i++) {
		if (at_load(&cq->attached[i]))
			continue;
		at_store_rel(&cq->attached[i], qp);
		if (i / 64 >= at_load(&cq->nr_words))
			at_store_rel(&cq->nr_words, i / 64 + 1);
		cq->nr_qps++;
		return (int)i;
	}
	return -1;
}

void fv_cq_detach(struct fv_cq *cq, uint32_t slot)
{
	at_store_rel(&cq->attached[slot], 0);
	cq->nr_qps--;
}

/*
 * Sets the bit after the request is in its queue, and then looks at `armed`. A thread that arms
 * does it the other way round. So one of them sees the other.
 */
bool fv_mark(struct fv_cq *cq, uint32_t slot)
{
	_Atomic uint64_t *word = &cq->bits[slot / 64];
	uint64_t bit = UINT64_C(1) << slot % 64;

	if (!(at_load_sc(word) & bit))
		atomic_fetch_or_explicit(word, bit, memory_order_seq_cst);
	return at_load_sc(&cq->armed) != FV_ASLEEP;
}

/* Clears the bit of a queue pair that has no request left, unless one comes meanwhile. */
static void unmark(struct fv_cq *cq, uint32_t slot, struct fv_qp *q)
{
	_Atomic uint64_t *word = &cq->bits[slot / 64];
	uint64_t bit = UINT64_C(1) << slot % 64;

	atomic_fetch_and_explicit(word, ~bit, memory_order_seq_cst);
	if (q && at_load_sc(&q->tail) != at_load(&q->head))
		atomic_fetch_or_explicit(word, bit, memory_order_seq_cst);
}

/* Runs one marked queue pair. Returns the time of its next request. */
static int64_t run_slot(struct fv_cq *cq, uint32_t slot)
{
	uintptr_t at = at_load_acq(&cq->attached[slot]);
	struct fv_qp *q = (struct fv_qp *)(at & ~FV_INCOMING);
	int64_t next;

	if (q && at & FV_INCOMING)
		q = fv_peer(q);
	next = q ? fv_run(q) : FV_NEVER;
	if (next == FV_NEVER)
		unmark(cq, slot, q);
	return next;
}

/* Carries out what is due for one completion queue. Returns the time of the next. */
static int64_t run_marked(struct fv_cq *cq)
{
	uint32_t n = at_load_acq(&cq->nr_words);
	int64_t next = FV_NEVER;

	for (uint32_t w = 0; w < n; w++) {
		uint64_t bits = at_load_sc(&cq->bits[w]);

		for (; bits; bits &= bits - 1) {
			uint32_t slot = w * 64 + (uint32_t)__builtin_ctzll(bits);
			int64_t t = run_slot(cq, slot);

			next = min_of(next, t);
		}
	}
	return next;
}

int64_t fv_run_armed(void)
{
	int64_t next = FV_NEVER;

	for (struct fv_cq *cq = at_load_acq(&all); cq; cq = cq->all_next) {
		if (at_load_sc(&cq->armed) != FV_ASLEEP) {
			int64_t t = run_marked(cq);

			next = min_of(next, t);
		}
	}
	return next;
}

void fv_cq_push(struct fv_cq *cq, const struct ibv_wc *wc, bool solicited)
{
	bool fire = false;
	int armed;

	fv_take(&cq->lock);
	if (unlikely(at_load(&cq->nr) == cq->max)) {
		/* The completion is lost, as on real devices. */
		if (!at_load(&cq->broken))
			fv_event_add(fv_context_of(cq->base.context), IBV_EVENT_CQ_ERR, &cq->base);
		at_store(&cq->broken, 1);
		fv_give(&cq->lock);
		return;
	}
	cq->ring[cq->tail] = *wc;
	cq->tail = cq->tail + 1 == cq->max ? 0 : cq->tail + 1;
	at_store_rel(&cq->nr, at_load(&cq->nr) + 1);
	armed = at_load(&cq->armed);
	if (unlikely(armed)) {
		fire = armed == FV_ANY || solicited || wc->status != IBV_WC_SUCCESS;
		if (fire)
			at_store(&cq->armed, FV_ASLEEP);
	}
	fv_give(&cq->lock);
	if (fire)
		tell_channel(cq);
}

int fv_poll_cq(struct ibv_cq *base, int max, struct ibv_wc *wc)
{
	struct fv_cq *cq = container_of(base, struct fv_cq, base);
	int n = 0;

	run_marked(cq);
	if (unlikely(at_load(&cq->broken)))
		return -1;
	if (!at_load_acq(&cq->nr))
		return 0;
	fv_take(&cq->lock);
	for (uint32_t nr = at_load(&cq->nr); n < max && nr; nr--) {
		wc[n++] = cq->ring[cq->head];
		cq->head = cq->head + 1 == cq->max ? 0 : cq->head + 1;
	}
	at_store(&cq->nr, at_load(&cq->nr) - (uint32_t)n);
	fv_give(&cq->lock);
	return n;
}

void fv_cq_clean(struct fv_cq *cq, uint32_t qpn)
{
	uint32_t kept, at;

	fv_take(&cq->lock);
	kept = at = cq->head;
	for (uint32_t nr = at_load(&cq->nr); nr; nr--) {
		struct ibv_wc wc = cq->ring[at];

		at = at + 1 == cq->max ? 0 : at + 1;
		if (wc.qp_num == qpn) {
			at_store(&cq->nr, at_load(&cq->nr) - 1);
			continue;
		}
		cq->ring[kept] = wc;
		kept = kept + 1 == cq->max ? 0 : kept + 1;
	}
	cq->tail = kept;
	fv_give(&cq->lock);
}

/* Arms for completions from now on. Earlier ones wake no thread. */
int fv_req_notify_cq(struct ibv_cq *base, int solicited_only)
{
	struct fv_cq *cq = container_of(base, struct fv_cq, base);
	uint32_t n = at_load_acq(&cq->nr_words);

	fv_take(&cq->lock);
	if (!solicited_only)
		at_store_sc(&cq->armed, FV_ANY);
	else if (at_load(&cq->armed) == FV_ASLEEP)
		at_store_sc(&cq->armed, FV_SOLICITED);
	fv_give(&cq->lock);
	for (uint32_t w = 0; w < n; w++) {
		if (at_load_sc(&cq->bits[w])) {
			fv_wake_at(0);
			break;
		}
	}
	return 0;
}
