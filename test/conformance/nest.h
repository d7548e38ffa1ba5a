/* SPDX-License-Identifier: Apache-2.0 */
/* Values that hold references: making, reading and taking them apart. */
#ifndef CONFORMANCE_NEST_H
#define CONFORMANCE_NEST_H

#include "tg_death.h"

#define MS NSEC_PER_MSEC

/* Serves "nest": the creation's value holds the references of the arguments. */
static inline int nest(struct rref_call *call, void *arg)
{
	struct rref *refs[RREF_REFS_MAX];
	size_t nr = rref_call_nr_refs(call);

	(void)arg;
	for (size_t i = 0; i < nr; i++)
		refs[i] = rref_call_ref(call, i);
	return rref_call_reply(call,
			       &(struct rref_args){ .data = rref_call_data(call),
						    .length = rref_call_length(call),
						    .refs = refs,
						    .nr_refs = nr });
}

/* Serves "nest_typed": the same as numbers in two segments. */
static inline int nest_typed(struct rref_call *call, void *arg)
{
	static const struct rref_type type = { .size = sizeof(type), .name = "uint32[]" };
	uint32_t n[3] = { 7, 8, 9 };
	struct iovec seg[2] = { { &n[0], 4 }, { &n[1], 8 } };
	struct rref *refs[RREF_REFS_MAX];
	size_t nr = rref_call_nr_refs(call);

	(void)arg;
	for (size_t i = 0; i < nr; i++)
		refs[i] = rref_call_ref(call, i);
	return rref_call_reply_value(call, TG_VALUE(.segments = seg, .nr_segments = 2,
						    .type = &type, .refs = refs, .nr_refs = nr));
}

/* Serves "take_all": reads its reference, takes all references in the value,
 * and returns the sum of their first bytes. */
static inline int take_all(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *refs[RREF_REFS_MAX];
	struct rref_view *v;
	unsigned sum;
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	size_t nr = rref_view_nr_refs(v);

	err = rref_view_refs(v, 0, nr, RREF_DEFAULT, refs);
	if (err)
		rref_call_error(call, err, "%s", rref_last_error());
	rref_view_free(v);
	if (err)
		return 0;
	sum = tg_sum_there(ctx, rref_rank(ctx), refs, nr);
	for (size_t i = 0; i < nr; i++)
		rref_release(refs[i]);
	return rref_call_reply(call, tg_bytes(&sum, sizeof(sum)));
}

static inline struct rref_ctx *join_under(int rank, const char *rules)
{
	struct rref_ctx *ctx;

	TG_IS(setenv("RREF_INJECT", rules, 1), 0);
	ctx = tg_join(rank);
	tg_add_refs(ctx);
	tg_add(ctx, "nest", nest, 0);
	tg_add(ctx, "nest_typed", nest_typed, 0);
	tg_add(ctx, "take_all", take_all, 0);
	tg_meet_serving(ctx, 15); /* all can serve before the first call */
	return ctx;
}

static inline struct rref_ctx *join(int rank)
{
	return join_under(rank, "");
}

static inline struct rref *remote_with(struct rref_ctx *ctx, int to, const char *function,
				       const char *text, struct rref *const *refs, size_t nr)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function,
			  &(struct rref_args){ .data = text,
					       .length = strlen(text),
					       .refs = refs,
					       .nr_refs = nr },
			  RREF_DEFAULT, &r));
	return r;
}

static inline struct rref *value(struct rref_ctx *ctx, const char *text)
{
	struct rref *r;

	TG_OK(rref_new(ctx, text, strlen(text), &r));
	return r;
}

static inline struct rref *value_with(struct rref_ctx *ctx, const char *text,
				      struct rref *const *refs, size_t nr)
{
	struct rref *r;

	TG_OK(rref_new_value(
		ctx, TG_VALUE(.data = text, .length = strlen(text), .refs = refs, .nr_refs = nr),
		&r));
	return r;
}

static inline void hand_over(struct rref_ctx *ctx, int to, struct rref *r)
{
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
}

/* Returns a view of r, which must have so many references. */
static inline struct rref_view *read_with(struct rref *r, const char *text, size_t nr)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_CHECK(rref_view_length(v) == strlen(text) &&
		 !memcmp(rref_view_data(v), text, strlen(text)));
	TG_IS(rref_view_nr_refs(v), nr);
	return v;
}

static inline struct rref *take(struct rref_view *v, size_t i)
{
	struct rref *r;

	TG_OK(rref_view_ref(v, i, RREF_DEFAULT, &r));
	return r;
}

static inline void take_fails(struct rref_view *v, size_t i, int err, const char *text)
{
	struct rref_future *f;
	struct rref *r = NULL;

	TG_IS(rref_view_ref(v, i, RREF_DEFAULT, &r), err);
	TG_TEXT(text);
	int begun = rref_view_refs_async(v, i, 1, RREF_DEFAULT, &f);

	if (!begun) {
		begun = rref_future_wait(f, TG_LONG_NS);
		rref_future_free(f);
	}
	TG_IS(begun, err);
	TG_TEXT(text);
	TG_CHECK(!r);
}

#endif
