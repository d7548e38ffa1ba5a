/* SPDX-License-Identifier: Apache-2.0 */
/* The owners of the values that freeze_test reads: many small ones, one, and lent memory. */
#ifndef FZ_OWNER_H
#define FZ_OWNER_H

#include "test/proc/value/lent.h"

#define OWNER 1
#define BATCH 14u

static struct lent lent;

static inline int give_many_small(struct rref_call *call, void *arg)
{
	(void)arg;
	return fg_give_small(call, BATCH);
}

static inline int give_length(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	const uint32_t *length = rref_call_data(call);
	struct rref *r;
	void *at;
	int err;

	(void)arg;
	if (*length) {
		TG_OK(rref_alloc(ctx, *length, &r, &at));
		tg_fill(at, *length, *length);
		TG_OK(rref_set(r));
	} else {
		lend(ctx, &lent, 100 * KIB, false, 100 * KIB);
		r = wrap(&lent, 0, 100 * KIB);
	}
	err = rref_call_reply(call, &(struct rref_args){ .refs = &r, .nr_refs = 1 });
	rref_release(r);
	return err;
}

static inline void add_owner(struct rref_ctx *ctx)
{
	ctx->session.score_limit = UINT32_MAX; /* connections break often here */
	tg_add(ctx, "give", give_many_small, 0);
	tg_add(ctx, "give_length", give_length, 0);
}

static inline int ask_any_owner(struct rref_ctx *ctx, int owner, uint32_t length, struct rref **r)
{
	struct rref_future *f;
	int err = rref_rpc_sync(ctx, owner, "give_length",
				&(struct rref_args){ .data = &length, .length = sizeof(length) },
				RREF_DEFAULT, &f);

	if (err)
		return err;
	err = rref_future_ref(f, 0, r);
	rref_future_free(f);
	return err;
}

static inline struct rref *ask_owner(struct rref_ctx *ctx, uint32_t length)
{
	struct rref *r;

	TG_OK(ask_any_owner(ctx, OWNER, length, &r));
	return r;
}

#endif
