/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads that are complete at once (core/quick.c): what threads keep to themselves comes back when they end or their
 * context does, in whatever order; the counters are whole; the fence waits for those who read.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

#define THREADS 8

static int make(struct rref_call *call, void *arg)
{
	struct rref_args a = { .nr_refs = 1 };
	struct rref *ref;
	uint64_t length;
	void *data;

	(void)arg;
	memcpy(&length, rref_call_data(call), sizeof(length));
	TG_OK(rref_alloc(rref_call_context(call), length, &ref, &data));
	tg_fill(data, length, (unsigned)length);
	TG_OK(rref_set(ref));
	a.refs = &ref;
	int err = rref_call_reply(call, &a);

	rref_release(ref);
	return err;
}

static struct rref *ask(struct rref_ctx *ctx, int from, uint64_t length)
{
	struct rref_args a = { .data = &length, .length = sizeof(length) };
	struct rref_future *f;
	struct rref *ref;

	TG_OK(rref_rpc_sync(ctx, from, "quick.make", &a, RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &ref));
	rref_future_free(f);
	return ref;
}

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "quick.make", .handler = make }));
	tg_meet_serving(ctx, 14);
	return ctx;
}

static void read_whole(struct rref *ref, size_t length)
{
	struct rref_view *v;

	TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, (unsigned)length));
	rref_view_free(v);
}

struct job {
	struct rref *ref;
	size_t length;
	int times;
	struct rref_view *kept;      /* for another thread to free */
};

static void *read_often(void *arg)
{
	struct job *j = arg;

	for (int i = 0; i < j->times; i++)
		read_whole(j->ref, j->length);
	TG_OK(rref_to_here(j->ref, RREF_DEFAULT, &j->kept));
	return NULL;
}

/* Each READ and each byte is counted once, after the threads are gone too; views freed elsewhere leave nothing behind. */
TG_TEST(threads__leave_nothing_behind, 2)
{
	static const size_t lengths[] = { 8, 100, 4096, 70000, 300000, 0, 8, 8 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		struct rref_stats before = tg_stats(ctx), after;
		struct job job[THREADS];
		pthread_t thread[THREADS];
		uint64_t reads = 0, bytes = 0;

		for (int i = 0; i < THREADS; i++) {
			job[i] = (struct job){ .ref = ask(ctx, 0, lengths[i]), .length = lengths[i], .times = tg_scale(500) };
			reads += (uint64_t)job[i].times + 1;
			bytes += ((uint64_t)job[i].times + 1) * lengths[i];
		}
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&thread[i], NULL, read_often, &job[i]), 0);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		after = tg_stats(ctx);
		if (tg_is_shm()) /* over ibv a large value takes several */
			TG_IS(after.reads - before.reads, reads);
		TG_IS(after.read_bytes - before.read_bytes, bytes);
		TG_CHECK(after.landing_bytes > before.landing_bytes);
		for (int i = 0; i < THREADS; i++) {
			TG_CHECK(tg_filled(rref_view_data(job[i].kept), job[i].length, 0, (unsigned)job[i].length));
			rref_view_free(job[i].kept);
			rref_release(job[i].ref);
		}
		TG_IS(tg_stats(ctx).landing_bytes, before.landing_bytes);
	}
	tg_finish(ctx);
	return 0;
}

static atomic_int stage;

static void until(int s)
{
	while (atomic_load(&stage) < s)
		usleep(100);
}

/* A thread that outlives its first context, and ends after the second is gone too. */
static void *outlive(void *arg)
{
	struct rref **refs = arg;

	until(1);
	read_whole(refs[0], 64);
	atomic_store(&stage, 2);
	until(3);
	for (int i = 0; i < 100; i++)
		read_whole(refs[1], 64);
	atomic_store(&stage, 4);
	until(5);
	return NULL;
}

TG_TEST(thread__outlives_its_contexts, 2)
{
	struct rref *refs[2];
	pthread_t thread;

	if (rank == 1)
		TG_IS(pthread_create(&thread, NULL, outlive, refs), 0);
	for (int i = 0; i < 2; i++) {
		struct rref_ctx *ctx = join(rank);

		if (rank == 1) {
			refs[i] = ask(ctx, 0, 64);
			atomic_store(&stage, 1 + 2 * i);
			until(2 + 2 * i);
			TG_IS(tg_stats(ctx).landing_bytes, 0);
			rref_release(refs[i]);
		}
		tg_finish(ctx);
		if (i == 0 && rank == 0)
			tg_free_place(tg_current->shared->bytes, 64);
		tg_meet(i);
		memcpy(tg_current->rendezvous, tg_current->shared->bytes, sizeof(tg_current->rendezvous));
	}
	if (rank == 1) {
		atomic_store(&stage, 5);
		TG_IS(pthread_join(thread, NULL), 0);
	}
	return 0;
}

/* One thread, two contexts in turn: each read is counted where it belongs. */
TG_TEST(contexts__in_turn, 2)
{
	struct rref_ctx *ctx[2];
	struct rref *refs[2];

	ctx[0] = join(rank);
	if (rank == 0)
		tg_free_place(tg_current->shared->bytes, 64);
	tg_meet_serving(ctx[0], 0);
	memcpy(tg_current->rendezvous, tg_current->shared->bytes, sizeof(tg_current->rendezvous));
	ctx[1] = tg_join(rank);
	TG_OK(rref_register(ctx[1], &(struct rref_function){ .name = "quick.make", .handler = make }));
	tg_meet_serving(ctx[1], 1);
	if (rank == 1) {
		for (int i = 0; i < 2; i++)
			refs[i] = ask(ctx[i], 0, 64);
		for (int i = 0; i < tg_scale(400); i++)
			for (int k = 0; k < 2; k++)
				read_whole(refs[k], 64);
		for (int i = 0; i < 2; i++) {
			TG_IS(tg_stats(ctx[i]).read_bytes, (uint64_t)tg_scale(400) * 64);
			rref_release(refs[i]);
		}
	}
	if (rank == 1)
		tg_set_flag(3, 1);
	/* In the manual mode both want serving. */
	while (!tg_flag(3))
		for (int i = 0; i < 2; i++)
			rref_progress(ctx[i]);
	for (int i = 0; i < 2; i++)
		tg_finish(ctx[i]);
	return 0;
}

static void *read_until_error(void *arg)
{
	struct rref *ref = arg;
	struct rref_view *v;
	int err;

	while ((err = rref_to_here(ref, RREF_DEFAULT, &v)) == 0) {
		TG_CHECK(tg_filled(rref_view_data(v), 4096, 0, 4096));
		rref_view_free(v);
	}
	TG_CHECK(err == -EOWNERDEAD || err == -ENETRESET || err == -ESTALE);
	atomic_fetch_add(&stage, 1);
	return NULL;
}

/* The owner dies under readers: each ends with an error, none with bytes that were not its value's. */
static int owner_dies(int rank, void *arg)
{
	struct rref_ctx *ctx = join(rank);

	(void)arg;
	if (rank == 1) {
		struct rref *ref = ask(ctx, 0, 4096);
		pthread_t thread[THREADS];

		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&thread[i], NULL, read_until_error, ref), 0);
		tg_set_flag(1, 1);
		/* A read that is complete at once makes no progress: without a poller, somebody has to. */
		while (atomic_load(&stage) < THREADS)
			if (rref_progress(ctx) <= 0)
				usleep(100);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
		rref_release(ref);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
		rref_free_ctx(ctx);
		return 0;
	}
	tg_wait_flag_serving(ctx, 1, 1);
	raise(SIGKILL);
	return 1;
}

static void owner__dies_under_its_readers(void **state)
{
	struct tg_group g = { .world = 2, .expect_killed = { [0] = 1 } };

	(void)state;
	assert_int_equal(tg_run_group(&g, owner_dies, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads__leave_nothing_behind),
		cmocka_unit_test(thread__outlives_its_contexts),
		cmocka_unit_test(contexts__in_turn),
		cmocka_unit_test(owner__dies_under_its_readers),
	};

	return cmocka_run_group_tests_name("quick", tests, NULL, NULL);
}
