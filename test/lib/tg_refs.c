/* SPDX-License-Identifier: Apache-2.0 */
#include "tg_refs.h"

#include <pthread.h>
#include <stdatomic.h>

#define KEPT_MAX 256

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rref *kept[KEPT_MAX]; /* guarded by lock, as the rest */
static int nr_kept;
static void *filling;
static size_t filling_length;

static _Thread_local struct rref_args args;

struct rref_args *tg_with(struct rref *const *refs, size_t nr)
{
	args = (struct rref_args){ .refs = refs, .nr_refs = nr };
	return &args;
}

struct rref_args *tg_bytes(const void *data, size_t length)
{
	args = (struct rref_args){ .data = data, .length = length };
	return &args;
}

struct rref *tg_remote(struct rref_ctx *ctx, int to, const char *function, const void *data,
		       size_t length)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function, tg_bytes(data, length), RREF_DEFAULT, &r));
	return r;
}

struct rref_future *tg_start(struct rref_ctx *ctx, int to, const char *function, const void *data,
			     size_t length)
{
	struct rref_future *f;

	TG_OK(rref_rpc_async(ctx, to, function, tg_bytes(data, length), RREF_DEFAULT, &f));
	return f;
}

unsigned tg_sum_there(struct rref_ctx *ctx, int to, struct rref *const *refs, size_t nr)
{
	struct rref_future *f;
	unsigned sum;

	TG_OK(rref_rpc_sync(ctx, to, "tg.read", tg_with(refs, nr), RREF_DEFAULT, &f));
	tg_result(f, &sum, sizeof(sum));
	rref_future_free(f);
	return sum;
}

void tg_expect_error(struct rref *r, int err, const char *text)
{
	struct rref_view *v = NULL;

	TG_IS(rref_to_here(r, RREF_DEFAULT, &v), err);
	TG_CHECK(!v);
	TG_TEXT(text);
}

bool tg_idle(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).ops_in_flight == 0;
}

void tg_all_clean(struct rref_ctx *ctx)
{
	for (int i = 0; i < rref_world_size(ctx); i++)
		tg_until_clean(ctx, i);
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	TG_IS(tg_stats(ctx).landing_bytes, 0);
}

/* ---- a worker that publishes and keeps ---- */

static void keep_one(struct rref *r)
{
	TG_CHECK(nr_kept < KEPT_MAX);
	kept[nr_kept++] = r;
}

static void drop_all(void)
{
	while (nr_kept)
		rref_release(kept[--nr_kept]);
}

struct rref *tg_kept(int i)
{
	struct rref *r;

	pthread_mutex_lock(&lock);
	TG_CHECK(i < nr_kept);
	r = kept[i];
	pthread_mutex_unlock(&lock);
	return r;
}

int tg_nr_kept(void)
{
	int n;

	pthread_mutex_lock(&lock);
	n = nr_kept;
	pthread_mutex_unlock(&lock);
	return n;
}

void tg_drop_kept(void)
{
	pthread_mutex_lock(&lock);
	drop_all();
	pthread_mutex_unlock(&lock);
}

static int answer(struct rref_call *call)
{
	struct rref *r = tg_kept(0);
	int err = rref_call_reply(call, tg_with(&r, 1));

	return err ? rref_call_error(call, err, "%s", rref_last_error()) : 0;
}

static int pub_make(struct rref_call *call, void *arg)
{
	const struct tg_make *m = rref_call_data(call);
	struct rref *r;
	void *data;
	int err;

	(void)arg;
	err = rref_alloc(rref_call_context(call), m->length, &r, &data);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	tg_fill(data, m->length, m->seed);
	TG_OK(rref_set(r));
	pthread_mutex_lock(&lock);
	drop_all();
	keep_one(r);
	pthread_mutex_unlock(&lock);
	return answer(call);
}

static int pub_alloc(struct rref_call *call, void *arg)
{
	const struct tg_make *m = rref_call_data(call);
	struct rref *r;

	(void)arg;
	pthread_mutex_lock(&lock);
	TG_OK(rref_alloc(rref_call_context(call), m->length, &r, &filling));
	filling_length = m->length;
	drop_all();
	keep_one(r);
	pthread_mutex_unlock(&lock);
	return answer(call);
}

static int pub_set(struct rref_call *call, void *arg)
{
	const struct tg_make *m = rref_call_data(call);

	(void)arg;
	pthread_mutex_lock(&lock);
	tg_fill(filling, filling_length, m->seed);
	TG_OK(rref_set(kept[0]));
	pthread_mutex_unlock(&lock);
	return rref_call_reply(call, NULL);
}

static int pub_fail(struct rref_call *call, void *arg)
{
	const struct tg_make *m = rref_call_data(call);

	(void)arg;
	TG_OK(rref_set_error(tg_kept(0), m->err, "no value:\nit failed"));
	return rref_call_reply(call, NULL);
}

static int pub_get(struct rref_call *call, void *arg)
{
	(void)arg;
	return answer(call);
}

static int pub_drop(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	tg_drop_kept();
	return 0;
}

static int inspect(struct rref_call *call, void *arg)
{
	struct rref *r = rref_call_ref(call, 0);
	struct tg_said s = { rref_confirmed(r), rref_is_owner(r), rref_owner(r), 0,
			     rref_get_id(r) };
	struct rref_view *v;

	(void)arg;
	TG_CHECK(rref_context(r) == rref_call_context(call));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	s.reads = *(const unsigned char *)rref_view_data(v);
	rref_view_free(v);
	return rref_call_reply(call, tg_bytes(&s, sizeof(s)));
}

static int keep(struct rref_call *call, void *arg)
{
	(void)arg;
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < rref_call_nr_refs(call); i++)
		keep_one(rref_dup(rref_call_ref(call, i)));
	pthread_mutex_unlock(&lock);
	return 0;
}

static int hand_on(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref *refs[RREF_REFS_MAX];
	struct rref_future *f;
	int32_t hops;
	unsigned sum;
	int err;

	(void)arg;
	memcpy(&hops, rref_call_data(call), sizeof(hops));
	hops--;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++)
		refs[i] = rref_call_ref(call, i);
	err = rref_rpc_sync(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx),
			    hops ? "hand_on" : "tg.read",
			    &(struct rref_args){ .data = &hops,
						 .length = sizeof(hops),
						 .refs = refs,
						 .nr_refs = rref_call_nr_refs(call) },
			    RREF_DEFAULT, &f);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	tg_result(f, &sum, sizeof(sum));
	rref_future_free(f);
	return rref_call_reply(call, tg_bytes(&sum, sizeof(sum)));
}

static _Atomic int runs;

int tg_runs(void)
{
	return atomic_load(&runs);
}

static int count(struct rref_call *call, void *arg)
{
	int32_t n = atomic_fetch_add(&runs, 1) + 1;

	(void)arg;
	return rref_call_reply(call, tg_bytes(&n, sizeof(n)));
}

static int say_runs(struct rref_call *call, void *arg)
{
	int32_t n = tg_runs();

	(void)arg;
	return rref_call_reply(call, tg_bytes(&n, sizeof(n)));
}

static const struct rref_function functions[] = {
	{ .name = "pub.make", .handler = pub_make },
	{ .name = "pub.alloc", .handler = pub_alloc },
	{ .name = "pub.set", .handler = pub_set },
	{ .name = "pub.fail", .handler = pub_fail },
	{ .name = "pub.get", .handler = pub_get },
	{ .name = "pub.drop", .handler = pub_drop },
	{ .name = "inspect", .handler = inspect },
	{ .name = "keep", .handler = keep },
	{ .name = "count", .handler = count },
	{ .name = "runs", .handler = say_runs },
	{ .name = "hand_on", .handler = hand_on },
};

void tg_add(struct rref_ctx *ctx, const char *name, rref_handler fn, unsigned flags)
{
	struct rref_function f = { .name = name, .handler = fn, .flags = flags };

	TG_OK(rref_register(ctx, &f));
}

void tg_add_refs(struct rref_ctx *ctx)
{
	for (size_t i = 0; i < array_size(functions); i++)
		TG_OK(rref_register(ctx, &functions[i]));
}

struct rref_ctx *tg_join_refs(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add_refs(ctx);
	tg_meet_serving(ctx, 15); /* all can serve before the first call */
	return ctx;
}

struct rref_ctx *tg_join_by(struct rref_options *o)
{
	struct rref_ctx *ctx;

	o->functions = tg_functions;
	o->nr_functions = tg_nr_functions;
	TG_OK(rref_init(o, &ctx));
	tg_add_refs(ctx);
	tg_meet_serving(ctx, 15); /* all can serve before the first call */
	return ctx;
}

struct rref_ctx *tg_join_under(int rank, const char *rules, int64_t timeout)
{
	struct rref_options o;

	TG_IS(setenv("RREF_INJECT", rules, 1), 0);
	tg_options(&o, rank);
	if (timeout)
		o.timeout = timeout;
	return tg_join_by(&o);
}

struct rref *tg_ask(struct rref_ctx *ctx, int to, const char *function, struct tg_make m)
{
	struct rref_future *f;
	struct rref *r = NULL;

	TG_OK(rref_rpc_sync(ctx, to, function, tg_bytes(&m, sizeof(m)), RREF_DEFAULT, &f));
	if (rref_future_nr_refs(f) > 0)
		TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	return r;
}
