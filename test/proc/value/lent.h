/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that a program lends, and a worker that reads values wrapped in it. */
#ifndef LENT_H
#define LENT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "tg_death.h"

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

/* Wrapped memory, and the number of times it came back. own: not the
 * library's, at an odd address; not over shm. */
struct lent {
	struct rref_mem *mem;
	unsigned char *at;
	void *block;
	size_t length;
	_Atomic int back;
	bool give_up; /* the callback deregisters it */
};

static inline void lend(struct rref_ctx *ctx, struct lent *l, size_t length, bool own,
			unsigned seed)
{
	void *at;

	*l = (struct lent){ .length = length };
	if (own) {
		l->block = malloc(length + 100);
		TG_CHECK(l->block);
		l->at = (unsigned char *)l->block + 13;
		TG_OK(rref_mem_register(ctx, l->at, length, &l->mem));
	} else {
		TG_OK(rref_mem_alloc(ctx, length, &l->mem, &at));
		l->at = at;
		TG_IS((uintptr_t)at % 4096, 0);
		TG_IS(l->at[0] | l->at[length - 1], 0);
	}
	tg_fill(l->at, length, seed);
}

static inline void give_up(struct lent *l)
{
	TG_IS(rref_mem_deregister(l->mem), 0);
	free(l->block);
}

static inline void came_back(void *arg)
{
	struct lent *l = arg;

	if (l->give_up)
		give_up(l);
	atomic_fetch_add(&l->back, 1);
}

static inline bool is_back(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&((struct lent *)arg)->back) == 1;
}

/* Waits until one value of the whole region has come back. */
static inline void until_back(struct rref_ctx *ctx, struct lent *l)
{
	TG_CHECK(tg_eventually(is_back, ctx, l));
	usleep(1000);
	TG_IS(atomic_load(&l->back), 1);
}

static inline struct rref *wrap(struct lent *l, size_t offset, size_t length)
{
	struct rref *r;

	TG_OK(rref_wrap(l->mem, TG_VALUE(.data = l->at + offset, .length = length), came_back, l,
			&r));
	return r;
}

/* ---- the reader ---- */

struct range {
	uint64_t offset, length;
	uint32_t seed, by; /* values of by: 0 all, 1 a range, 2 batch */
};

static inline int read_range(struct rref_call *call, void *arg)
{
	const struct range *w = rref_call_data(call);
	struct rref *r = rref_call_ref(call, 0), *twice[3] = { r, r, r };
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref_view *v[3];
	int status[3];
	size_t got, from = w->length / 3, n = w->length - from - w->length / 7;

	(void)arg;
	if (w->by == 1) {
		char *buf = malloc(n + 1);

		TG_CHECK(buf);
		TG_OK(rref_to_here_into(r, buf, from, n, RREF_DEFAULT, &got));
		TG_IS(got, n);
		TG_CHECK(tg_filled(buf, n, w->offset + from, w->seed));
		TG_OK(rref_to_here_into(r, buf, w->length, 1, RREF_DEFAULT, &got));
		TG_IS(got, 0);
		free(buf);
		return 0;
	}
	if (w->by == 2) {
		TG_IS(rref_to_here_batch(twice, 3, RREF_DEFAULT, v, status), 3);
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_view_length(v[i]), w->length);
			TG_CHECK(tg_filled(rref_view_data(v[i]), w->length, w->offset, w->seed));
			rref_view_free(v[i]);
		}
		return 0;
	}
	struct rref_stats a = tg_stats(ctx), b;

	TG_OK(rref_to_here(r, RREF_DEFAULT, v));
	b = tg_stats(ctx);
	TG_IS(rref_view_length(v[0]), w->length);
	TG_CHECK(rref_is_owner(r) || (uintptr_t)rref_view_data(v[0]) % 64 == 0);
	TG_CHECK(tg_filled(rref_view_data(v[0]), w->length, w->offset, w->seed));
	/* The payload and its header, with one doorbell. More pieces
	 * come only for more than one message. */
	if (w->length <= 128 * KIB && !rref_is_owner(r)) {
		TG_IS(b.reads - a.reads, 2);
		TG_IS(b.doorbells - a.doorbells, 1);
		TG_IS(b.messages_sent - a.messages_sent, 0);
	}
	rref_view_free(v[0]);
	return 0;
}

static inline struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add_refs(ctx);
	tg_add(ctx, "range", read_range, 0);
	tg_meet_serving(ctx, 15);
	return ctx;
}

static inline void read_there(struct rref_ctx *ctx, int to, struct rref *r, struct range w)
{
	TG_OK(rref_rpc_sync(ctx, to, "range",
			    &(struct rref_args){
				    .data = &w, .length = sizeof(w), .refs = &r, .nr_refs = 1 },
			    RREF_DEFAULT, NULL));
}

#endif
