/* SPDX-License-Identifier: Apache-2.0 */
/* The measuring worker's requests to the others. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "pf.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told = PTHREAD_COND_INITIALIZER;
static atomic_uint stops;

bool pf_stopped(unsigned workers)
{
	return atomic_load(&stops) >= workers;
}

void pf_sleep_until_stopped(unsigned workers)
{
	pthread_mutex_lock(&lock);
	while (!pf_stopped(workers))
		pthread_cond_wait(&told, &lock);
	pthread_mutex_unlock(&lock);
}

/* Serves {u64 bytes} -> a reference to a value of that many bytes. The
 * measuring worker's reference keeps it. */
static int make_value(struct rref_call *call, void *arg)
{
	struct rref *ref;
	uint64_t bytes;
	void *data;

	(void)arg;
	if (rref_call_length(call) != sizeof(bytes))
		return -EINVAL;
	memcpy(&bytes, rref_call_data(call), sizeof(bytes));
	int err = rref_alloc(rref_call_context(call), bytes, &ref, &data);

	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	memset(data, 0x5a, bytes);
	err = rref_set(ref);
	if (!err)
		err = rref_call_reply(call, &(struct rref_args){ .refs = &ref, .nr_refs = 1 });
	rref_release(ref);
	return err;
}

static int nothing(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return 0;
}

/* Replies with the bytes of the arguments: rref_remote makes a value of them. */
static int same(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_reply(call,
			       &(struct rref_args){ .data = rref_call_data(call),
						    .length = rref_call_length(call) });
}

static int end(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	pthread_mutex_lock(&lock);
	atomic_fetch_add(&stops, 1);
	pthread_cond_signal(&told);
	pthread_mutex_unlock(&lock);
	return 0;
}

const struct rref_function pf_functions[] = {
	{ .name = "perf.value", .handler = make_value },
	{ .name = "perf.nothing", .handler = nothing, .flags = RREF_INLINE },
	{ .name = "perf.nothing_pool", .handler = nothing },
	{ .name = "perf.same", .handler = same, .flags = RREF_INLINE },
	{ .name = "perf.raw_shm", .handler = pf_raw_serve_shm },
	{ .name = "perf.raw_ibv", .handler = pf_raw_serve_ibv },
	{ .name = "perf.pingpong", .handler = pf_raw_serve_pingpong, .flags = RREF_INLINE },
	{ .name = "perf.count", .handler = pf_serve_count, .flags = RREF_INLINE },
	{ .name = "perf.calls", .handler = pf_serve_calls },
	{ .name = "perf.quiet", .handler = pf_serve_quiet, .flags = RREF_INLINE },
	{ .name = "perf.stop", .handler = end, .flags = RREF_INLINE },
};
const size_t pf_nr_functions = array_size(pf_functions);

int pf_say(int err, const char *what)
{
	const char *words = rref_last_error();

	if (err)
		fprintf(stderr, "rref-perf: %s: %s%s%s\n", what, rref_strerror(err),
			*words ? ": " : "", words);
	return err;
}

int pf_ask(struct rref_ctx *ctx, int rank, const char *name, const void *data, size_t length,
	   void *to, size_t want)
{
	struct rref_args a = { .data = data, .length = length };
	struct rref_future *f;
	const void *got;
	size_t n;
	int err = rref_rpc_sync(ctx, rank, name, &a, RREF_DEFAULT, &f);

	if (err)
		return pf_say(err, name);
	err = rref_future_data(f, &got, &n);
	if (!err && n != want)
		err = -EPROTO;
	if (!err && want)
		memcpy(to, got, want);
	rref_future_free(f);
	return pf_say(err, name);
}

int pf_value(struct rref_ctx *ctx, size_t bytes, struct rref **out)
{
	uint64_t want = bytes;
	struct rref_args a = { .data = &want, .length = sizeof(want) };
	struct rref_future *f;
	int err = rref_rpc_sync(ctx, 0, "perf.value", &a, RREF_DEFAULT, &f);

	if (err)
		return pf_say(err, "perf.value");
	err = pf_say(rref_future_ref(f, 0, out), "perf.value");
	rref_future_free(f);
	return err;
}

const char *pf_reached_by(struct rref_ctx *ctx, int rank)
{
	struct rref_worker_info info = { .size = sizeof(info) };

	return rref_worker(ctx, rank, &info) ? "unknown" : info.device;
}
