/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Protection domains and registered memory. A key is {place in the table, tag}, as mlx5 has it: one
 * number for both keys of a region. Its tag changes with each use of the place.
 *
 * A look-up is made under the engine of a queue pair. A deregistration takes the region out of
 * the table and then waits for each engine once. So no device is in the memory when it returns, and
 * no request pays for it.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "fv_own.h"

static _Atomic(struct fv_mr *) table[FV_MRS];
static uint32_t next_place, next_tag; /* control */

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
	struct fv_pd *pd = calloc(1, sizeof(*pd));

	if (!pd)
		return NULL;
	pd->base.context = context;
	return &pd->base;
}

int ibv_dealloc_pd(struct ibv_pd *base)
{
	struct fv_pd *pd = container_of(base, struct fv_pd, base);

	if (at_load(&pd->nr_mrs))
		return EBUSY;
	free(pd);
	return 0;
}

/* Finds a place that is free. Returns FV_MRS if there is none. [control] */
static uint32_t free_place(void)
{
	for (uint32_t k = 0; k < FV_MRS; k++) {
		uint32_t i = (next_place + k) % FV_MRS;

		if (i && !at_load(&table[i])) {
			next_place = i + 1;
			return i;
		}
	}
	return FV_MRS;
}

static struct ibv_mr *register_memory(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
				      unsigned access)
{
	struct fv_mr *mr = calloc(1, sizeof(*mr));
	uint32_t i;

	if (!mr || !length || ((iova ^ (uintptr_t)addr) & ((uintptr_t)getpagesize() - 1))) {
		errno = mr ? EINVAL : ENOMEM;
		free(mr);
		return NULL;
	}
	pthread_mutex_lock(&fv_control);
	i = free_place();
	next_tag = next_tag % 255 + 1;
	mr->base.context = pd->context;
	mr->base.pd = pd;
	mr->base.addr = addr;
	mr->base.length = length;
	mr->base.lkey = mr->base.rkey = i << 8 | next_tag;
	mr->iova = iova;
	mr->access = access;
	if (i < FV_MRS) {
		at_add(&container_of(pd, struct fv_pd, base)->nr_mrs, 1);
		at_store_rel(&table[i], mr);
	}
	pthread_mutex_unlock(&fv_control);
	if (i < FV_MRS)
		return &mr->base;
	free(mr);
	errno = ENOMEM;
	return NULL;
}

#undef ibv_reg_mr
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	return register_memory(pd, addr, length, (uintptr_t)addr, (unsigned)access);
}

#undef ibv_reg_mr_iova
struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
			       int access)
{
	return register_memory(pd, addr, length, iova, (unsigned)access);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
				unsigned access)
{
	return register_memory(pd, addr, length, iova, access);
}

int ibv_dereg_mr(struct ibv_mr *base)
{
	struct fv_mr *mr = container_of(base, struct fv_mr, base);

	at_store_rel(&table[base->lkey >> 8], NULL);
	for (uint32_t i = 0; i < FV_QPS; i++) {
		struct fv_qp *q = at_load_acq(&fv_qps[i]);

		if (!q)
			continue;
		fv_take(&q->engine);
		fv_give(&q->engine);
	}
	at_sub(&container_of(base->pd, struct fv_pd, base)->nr_mrs, 1);
	free(mr);
	return 0;
}

uint8_t *fv_memory(uint32_t key, const struct ibv_pd *pd, unsigned access, uint64_t at,
		   uint64_t length)
{
	struct fv_mr *mr = key >> 8 < FV_MRS ? at_load_acq(&table[key >> 8]) : NULL;

	if (!mr || mr->base.lkey != key || mr->base.pd != pd || (mr->access & access) != access ||
	    at < mr->iova || at - mr->iova > mr->base.length ||
	    length > mr->base.length - (at - mr->iova))
		return NULL;
	return (uint8_t *)mr->base.addr + (at - mr->iova);
}

/*
 * Takes bytes that their owner may be writing at this moment. A device is no thread, so the thread
 * sanitizer must not take this for a race. Aligned words are read whole, as all devices do.
 */
static __attribute__((noinline, no_sanitize("thread"), unused)) void
look_unseen(uint8_t *to, const uint8_t *from, size_t n)
{
	size_t i = 0;

	if (!((uintptr_t)from & 7))
		for (; i + 8 <= n; i += 8) {
			uint64_t word = *(const volatile uint64_t *)(const void *)(from + i);

			memcpy(to + i, &word, 8);
		}
	for (; i < n; i++)
		to[i] = *(const volatile uint8_t *)(from + i);
}

/*
 * Copies bytes as a device does, which knows no poisoned memory. A READ of several values brings
 * the padding between them too.
 */
static __attribute__((noinline, no_sanitize("address"), unused)) void
copy_unseen(uint8_t *to, const uint8_t *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((volatile uint8_t *)to)[i] = from[i];
}

/* Copies bytes. The sanitizer sees the stores to `to`: the reader has to wait for them. */
void fv_dma(void *to, const void *from, size_t n)
{
#ifdef __SANITIZE_ADDRESS__
	copy_unseen(to, from, n);
#elif defined(__SANITIZE_THREAD__)
	uint8_t some[4096];
	size_t k;

	for (size_t at = 0; at < n; at += k) {
		k = min_of(n - at, sizeof(some));
		look_unseen(some, (const uint8_t *)from + at, k);
		memcpy((uint8_t *)to + at, some, k);
	}
#else
	memcpy(to, from, n);
#endif
}
