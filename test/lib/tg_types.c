/* SPDX-License-Identifier: Apache-2.0 */
#include "tg_types.h"

const struct rref_type tgt_tick = { sizeof(tgt_tick), "tick", sizeof(struct tgt_tick), 0 };
const struct rref_type tgt_book = { sizeof(tgt_book), "book", sizeof(struct tgt_tick),
				    RREF_LOCAL_ONLY };

/* ---- functions of the owner: its users do not know its types by themselves ---- */

/* Makes two elements of the type that the argument names. */
static int make_typed(struct rref_call *call, struct rref_type *type)
{
	static const struct tgt_tick two[2] = { { 1.5, 7 }, { 2.5, 8 } };
	size_t element = type->element_size ? type->element_size : 4;

	return rref_call_reply_value(call,
				     TG_VALUE(.data = two, .length = 2 * element, .type = type));
}

static int make(struct rref_call *call, void *arg)
{
	struct rref_type type = { sizeof(type), NULL, 0, 0 };
	char name[64];

	(void)arg;
	snprintf(name, sizeof(name), "%.*s", (int)rref_call_length(call),
		 (const char *)rref_call_data(call));
	type.name = name;
	if (!strchr(name, '['))
		type.element_size = sizeof(struct tgt_tick);
	if (strncmp(name, "book", 4) == 0)
		type.flags = RREF_LOCAL_ONLY;
	return make_typed(call, &type);
}

/* Waits for flag 0, and then does the same: a slow creation, on the pool. */
static int make_slowly(struct rref_call *call, void *arg)
{
	int64_t end = tg_deadline();

	while (!tg_flag(0) && now_ns() < end)
		tg_pause();
	return make(call, arg);
}

static struct rref *kept[8];

/* Keeps an unset value of the type in the argument, and gives a reference to it; "set" sets it. */
static int prepare(struct rref_call *call, void *arg)
{
	char name[64];
	struct rref_type type = { sizeof(type), name, sizeof(struct tgt_tick), 0 };
	struct iovec place = { .iov_len = 2 * sizeof(struct tgt_tick) };

	(void)arg;
	snprintf(name, sizeof(name), "%.*s", (int)rref_call_length(call),
		 (const char *)rref_call_data(call));
	if (strncmp(name, "book", 4) == 0)
		type.flags = RREF_LOCAL_ONLY;
	TG_OK(rref_alloc_value(rref_call_context(call),
			       TG_VALUE(.length = place.iov_len, .type = &type), &kept[0], &place));
	((struct tgt_tick *)place.iov_base)[0] = (struct tgt_tick){ 1.5, 7 };
	((struct tgt_tick *)place.iov_base)[1] = (struct tgt_tick){ 2.5, 8 };
	return rref_call_reply(call, &(struct rref_args){ .refs = &kept[0], .nr_refs = 1 });
}

static int set(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	TG_OK(rref_set(kept[0]));
	rref_release(kept[0]);
	return 0;
}

/* Returns the sum of the prices: a handler of the owner uses the value in its place. */
static int use(struct rref_call *call, void *arg)
{
	struct rref_view *v;
	double sum = 0;

	(void)arg;
	if (rref_local_value(rref_call_ref(call, 0), RREF_DEFAULT, &v))
		return rref_call_error(call, -EPERM, "%s", rref_last_error());
	for (size_t i = 0; i < rref_view_length(v) / sizeof(struct tgt_tick); i++)
		sum += ((const struct tgt_tick *)rref_view_data(v))[i].price;
	rref_view_free(v);
	return rref_call_reply(call, &(struct rref_args){ .data = &sum, .length = sizeof(sum) });
}

/* Hands its reference on to worker 1's "use". */
static int relay(struct rref_call *call, void *arg)
{
	struct rref *ref = rref_call_ref(call, 0);
	struct rref_future *f;
	struct rref_view *v;
	double sum;

	(void)arg;
	TG_IS(rref_to_here(ref, RREF_DEFAULT, &v), -EPERM);
	TG_OK(rref_rpc_sync(rref_call_context(call), 1, "use",
			    &(struct rref_args){ .refs = &ref, .nr_refs = 1 }, RREF_DEFAULT, &f));
	tg_result(f, &sum, sizeof(sum));
	rref_future_free(f);
	return rref_call_reply(call, &(struct rref_args){ .data = &sum, .length = sizeof(sum) });
}

/* Takes one tick array, nothing else. */
static int take_ticks(struct rref_call *call, void *arg)
{
	int err = rref_expect_type(rref_call_ref(call, 0), &tgt_tick, RREF_DEFAULT);

	(void)arg;
	return err ? rref_call_error(call, err, "%s", rref_last_error()) : 0;
}

static int refuse(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_error(call, -EDOM, "no such curve");
}

static const struct rref_function functions[] = {
	{ .name = "make", .handler = make }, { .name = "make_slowly", .handler = make_slowly },
	{ .name = "prepare", .handler = prepare }, { .name = "set", .handler = set },
	{ .name = "use", .handler = use },
	{ .name = "relay", .handler = relay }, { .name = "take_ticks", .handler = take_ticks },
	{ .name = "fail", .handler = refuse },
};

struct rref_ctx *tgt_join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (size_t i = 0; i < array_size(functions); i++)
		TG_OK(rref_register(ctx, &functions[i]));
	tg_meet_serving(ctx, 15);
	return ctx;
}

static struct rref_args text_args(const char *text)
{
	return (struct rref_args){ .data = text, .length = strlen(text) };
}

/* Returns a value that worker `to` made, with its location here. */
struct rref *tgt_made(struct rref_ctx *ctx, int to, const char *type)
{
	struct rref_args a = text_args(type);
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_remote(ctx, to, "make", &a, RREF_DEFAULT, &r));
	TG_OK(rref_creation(r, &f));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	return r;
}

struct rref *tgt_prepared(struct rref_ctx *ctx, int to, const char *type)
{
	struct rref_args a = text_args(type);
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_rpc_sync(ctx, to, "prepare", &a, RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	return r;
}

void tgt_is_type(struct rref *ref, const char *name, size_t element_size, unsigned flags)
{
	struct rref_type t = { .size = sizeof(t) };

	TG_OK(rref_get_type(ref, RREF_DEFAULT, &t));
	TG_CHECK(strcmp(t.name, name) == 0);
	TG_IS(t.element_size, element_size);
	TG_IS(t.flags, flags);
	TG_IS(t.size, sizeof(t));
}

void tgt_finish(struct rref_ctx *ctx, int world)
{
	for (int i = 0; rref_rank(ctx) == 0 && i < world; i++)
		tg_until_clean(ctx, i);
	tg_finish(ctx);
}
