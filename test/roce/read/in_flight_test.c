/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quick reads over a real device whose READs take long (core/read/in_flight.c). The device does
 * them as always. This test keeps the completions back between the provider and the core, for as
 * long as it wants.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "hold.h"
#include "tg_refs.h"
#include "core/base/lock.h"
#include "core/engine.h"
#include "core/value/value.h"

#define MS NSEC_PER_MSEC
#define THREADS 4

static bool is_over(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	rref_progress(ctx);
	return !s.quarantined && !s.ops_in_flight && !s.landing_bytes;
}

/* Returns a value of worker 1 of this length, read once. */
static struct rref *value(struct rref_ctx *ctx, size_t length)
{
	struct rref *r = tg_ask(ctx, 1, "pub.make",
				(struct tg_make){ .length = length, .seed = (unsigned)length });
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	rref_view_free(v);
	TG_CHECK(at_load(&r->fast_class) != RC_FAST_NOT);
	return r;
}

static void check(const struct rref_view *v, size_t length)
{
	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, (unsigned)length));
}

static void read_well(struct rref *r, size_t length)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_FOREVER, &v));
	check(v, length);
	rref_view_free(v);
}

static void end(struct rref_ctx *ctx, struct rref *r)
{
	rref_release(r);
	TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
	tg_all_clean(ctx);
}

struct job {
	struct rref *ref;
	size_t length;
	int times, err;
	int64_t timeout;
};

static void *reader(void *arg)
{
	struct job *j = arg;
	struct rref_view *v;

	for (int i = 0; !j->err && i < j->times; i++) {
		j->err = rref_to_here(j->ref, j->timeout, &v);
		if (j->err)
			break;
		check(v, j->length);
		rref_view_free(v);
	}
	return NULL;
}

/* The read ends well, as the READ that it was from the beginning. */
TG_TEST(read__takes_long, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 5000);
		struct rref_stats before, after;
		struct job j = { .ref = r, .length = 5000, .times = 1, .timeout = RREF_FOREVER };
		pthread_t thread;

		for (int round = 0; round < 3; round++) {
			before = tg_stats(ctx);
			hold(ctx, 1);
			TG_IS(pthread_create(&thread, NULL, reader, &j), 0);
			TG_CHECK(tg_eventually(holds, ctx, &(unsigned){ 1 }));
			while (tg_stats(ctx).ops_in_flight == 0) /* the read is an operation now */
				tg_pause();
			release(ctx);
			TG_IS(pthread_join(thread, NULL), 0);
			TG_OK(j.err);
			after = tg_stats(ctx);
			TG_IS(after.reads - before.reads, 1);
			TG_IS(after.read_bytes - before.read_bytes, 5000);
			TG_CHECK(tg_eventually(is_over, ctx, NULL));
			read_well(r, 5000);
		}
		end(ctx, r);
	}
	tg_finish(ctx);
	return 0;
}

/* The landing buffer is not used again until the device has said that it is done with it. */
TG_TEST(read__times_out, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 100);
		struct rref_view *v;

		for (unsigned round = 0; round < 3; round++) {
			hold(ctx, 1);
			TG_IS(rref_to_here(r, round ? 20 * MS : 0, &v), -ETIMEDOUT);
			TG_IS(atomic_load(&nr_held), 1);
			TG_IS(tg_stats(ctx).quarantined, 1);
			TG_CHECK(tg_stats(ctx).landing_bytes > 0);
			for (int i = 0; i < 5; i++)
				/* others pass with another flight and another buffer */
				read_well(r, 100);
			TG_IS(tg_stats(ctx).quarantined, 1);
			release(ctx);
			TG_CHECK(tg_eventually(is_over, ctx, NULL));
		}
		end(ctx, r);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(threads__some_take_long, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		static const size_t lengths[THREADS] = { 8, 64, 4096, 20000 };
		struct rref_stats before, after;
		struct job job[THREADS];
		pthread_t thread[THREADS];
		uint64_t bytes = 0;
		atomic_int running = THREADS;

		for (int i = 0; i < THREADS; i++) {
			job[i] = (struct job){ .ref = value(ctx, lengths[i]),
					       .length = lengths[i],
					       .times = tg_scale(1000),
					       .timeout = RREF_FOREVER };
			bytes += (uint64_t)job[i].times * lengths[i];
		}
		before = tg_stats(ctx);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&thread[i], NULL, reader, &job[i]), 0);
		/* Some reads are late, by the time of a turn of this loop. */
		for (int i = 0; i < 50 && atomic_load(&running); i++) {
			hold(ctx, 1 + (unsigned)i % THREADS);
			for (int k = 0; k < 20; k++) {
				rref_progress(ctx);
				tg_pause();
			}
			release(ctx);
			tg_pause();
		}
		for (int i = 0; i < THREADS; i++) {
			release(ctx);
			TG_IS(pthread_join(thread[i], NULL), 0);
			TG_OK(job[i].err);
		}
		after = tg_stats(ctx);
		TG_IS(after.read_bytes - before.read_bytes, bytes);
		TG_IS(after.reads - before.reads, (uint64_t)THREADS * (uint64_t)job[0].times);
		TG_CHECK(tg_eventually(is_over, ctx, NULL));
		for (int i = 1; i < THREADS; i++)
			rref_release(job[i].ref);
		end(ctx, job[0].ref);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- a handler that reads, on the very thread that waits for a READ ---- */

static struct rref *to_read;
static atomic_int nested, inside;
static _Thread_local bool reading;

static int read_too(struct rref_call *call, void *arg)
{
	(void)arg;
	if (reading)
		atomic_fetch_add(&inside, 1);
	read_well(to_read, 300);
	atomic_fetch_add(&nested, 1);
	return rref_call_reply(call, NULL);
}

TG_TEST(handler__reads_while_its_thread_does, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int n = tg_scale(400);

	tg_add(ctx, "read_too", read_too, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		to_read = value(ctx, 300);
		tg_set_flag(0, 1);
		reading = true;
		while (atomic_load(&nested) < n)
			read_well(to_read, 300);
		reading = false;
		/* No other thread makes progress in the manual mode:
		 * all of them ran within a read. */
		if (tg_mode() == RREF_PROGRESS_MANUAL)
			TG_IS(atomic_load(&inside), n);
		tg_wait_flag_serving(ctx, 1, 1);
		end(ctx, to_read);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < n; i++)
			TG_OK(rref_rpc_sync(ctx, 0, "read_too", NULL, RREF_DEFAULT, NULL));
		tg_set_flag(1, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* The same after the READ was handed over. Its thread serves while it
 * waits, and reads with another flight. */
TG_TEST(handler__reads_while_its_thread_waits_long, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	tg_add(ctx, "read_too", read_too, RREF_INLINE);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		to_read = value(ctx, 300);
		for (int round = 0; round < 5; round++) {
			struct job j = {
				.ref = to_read, .length = 300, .times = 1, .timeout = RREF_FOREVER
			};
			pthread_t thread;

			hold(ctx, 1);
			TG_IS(pthread_create(&thread, NULL, reader, &j), 0);
			while (!atomic_load(&nr_held))
				tg_pause();
			tg_set_flag(0, round + 1);
			/* The waiter serves the call in the manual mode: no
			 * other thread makes progress. */
			while (atomic_load(&nested) <= round)
				tg_pause();
			release(ctx);
			TG_IS(pthread_join(thread, NULL), 0);
			TG_OK(j.err);
			tg_wait_flag_serving(ctx, 1, round + 1);
		}
		end(ctx, to_read);
	} else {
		for (int round = 0; round < 5; round++) {
			tg_wait_flag_serving(ctx, 0, round + 1);
			TG_OK(rref_rpc_sync(ctx, 0, "read_too", NULL, RREF_DEFAULT, NULL));
			tg_set_flag(1, round + 1);
		}
	}
	tg_finish(ctx);
	return 0;
}

/* ---- callbacks ---- */

struct chained {
	struct rref *ref;
	size_t length;
	atomic_int ran;
};

static void read_then(struct rref_future *f, void *arg)
{
	struct chained *c = arg;

	(void)f;
	read_well(c->ref, c->length);
	atomic_fetch_add(&c->ran, 1);
}

struct two {
	struct rref_ctx *ctx;
	struct chained c[2];
};

static void *take_both_in(void *arg)
{
	struct two *t = arg;

	rc_lock(t->ctx);
	release(t->ctx);
	rc_progress_locked(t->ctx, true);
	rc_unlock(t->ctx);
	return NULL;
}

/*
 * Two callbacks of one turn, on a thread that never read. The first one's read gets its flight
 * under the lock. The second one runs at the lock's end, and reads.
 */
TG_TEST(callbacks__read_within_one_another, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct two t = { .ctx = ctx,
				 .c = { { .ref = value(ctx, 100), .length = 100 },
					{ .ref = value(ctx, 3000), .length = 3000 } } };

		for (int round = 0; round < 3; round++) {
			struct rref_stats before = tg_stats(ctx);
			struct rref_future *f[2];
			pthread_t thread;

			hold(ctx, 2);
			for (int i = 0; i < 2; i++) {
				TG_OK(rref_to_here_async(t.c[0].ref, RREF_FOREVER, &f[i]));
				TG_OK(rref_future_then(f[i], read_then, &t.c[i]));
			}
			TG_CHECK(tg_eventually(holds, ctx, &(unsigned){ 2 }));
			TG_IS(pthread_create(&thread, NULL, take_both_in, &t), 0);
			TG_IS(pthread_join(thread, NULL), 0);
			for (int i = 0; i < 2; i++) {
				TG_OK(rref_future_wait(f[i], RREF_FOREVER));
				while (atomic_load(&t.c[i].ran) <= round)
					tg_pause();
				rref_future_free(f[i]);
			}
			/* Each value took its own READ. */
			TG_IS(tg_stats(ctx).reads - before.reads, 4);
			TG_CHECK(tg_eventually(is_over, ctx, NULL));
		}
		rref_release(t.c[1].ref);
		end(ctx, t.c[0].ref);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- no slot ---- */

/* Joins with few slots in the context. Complete and kept reads take them all. */
static struct rref_ctx *join_with_slots(int rank)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.max_ops = RC_OP_CHUNK;
	return tg_join_by(&o);
}

static void take_all_slots(struct rref *r, struct rref_future *f[RC_OP_CHUNK])
{
	for (unsigned i = 0; i < RC_OP_CHUNK; i++)
		TG_OK(rref_to_here_async(r, RREF_FOREVER, &f[i]));
	TG_OK(rref_wait_all(f, RC_OP_CHUNK, RREF_FOREVER));
}

/* The read cannot become an operation: its flight keeps the
 * landing buffer when its time is over. */
TG_TEST(read__takes_long_and_there_is_no_slot, 2)
{
	struct rref_ctx *ctx = join_with_slots(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 8);
		struct rref_future *f[RC_OP_CHUNK];
		struct rref_stats before;
		struct rref_view *v;

		take_all_slots(r, f);
		before = tg_stats(ctx);
		for (int round = 0; round < 3; round++) {
			struct job j = {
				.ref = r, .length = 8, .times = 1, .timeout = RREF_FOREVER
			};
			pthread_t thread;

			hold(ctx, 1);
			TG_IS(rref_to_here(r, round * 20 * MS, &v), -ETIMEDOUT);
			TG_IS(tg_stats(ctx).quarantined, 1);
			TG_CHECK(tg_stats(ctx).landing_bytes > before.landing_bytes);
			read_well(r, 8);
			release(ctx);
			while (tg_stats(ctx).quarantined) {
				rref_progress(ctx);
				tg_pause();
			}
			TG_IS(tg_stats(ctx).landing_bytes, before.landing_bytes);
			/* This time the READ ends in time. */
			hold(ctx, 1);
			TG_IS(pthread_create(&thread, NULL, reader, &j), 0);
			TG_CHECK(tg_eventually(holds, ctx, &(unsigned){ 1 }));
			usleep(20000);
			release(ctx);
			TG_IS(pthread_join(thread, NULL), 0);
			TG_OK(j.err);
			TG_IS(tg_stats(ctx).reads - before.reads, 3 * (round + 1));
		}
		for (unsigned i = 0; i < RC_OP_CHUNK; i++)
			rref_future_free(f[i]);
		end(ctx, r);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- the end of all ---- */

static atomic_int begun;

static void *read_until_error(void *arg)
{
	struct job *j = arg;

	while (!j->err) {
		reader(j);
		atomic_fetch_add(&begun, 1);
	}
	return NULL;
}

static void shut_down_under_readers(struct rref_ctx *ctx, int rank, unsigned nr_lost)
{
	if (rank == 0) {
		struct job job[THREADS];
		pthread_t thread[THREADS];
		struct rref *r = value(ctx, 200);

		for (int i = 0; i < THREADS; i++) {
			job[i] = (struct job){
				.ref = r, .length = 200, .times = 1, .timeout = RREF_FOREVER
			};
			TG_IS(pthread_create(&thread[i], NULL, read_until_error, &job[i]), 0);
		}
		while (atomic_load(&begun) < 10 * THREADS)
			tg_pause();
		if (nr_lost) {
			hold(ctx, nr_lost);
			TG_CHECK(tg_eventually(holds, ctx, &nr_lost));
		}
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
		for (int i = 0; i < THREADS; i++) {
			TG_IS(pthread_join(thread[i], NULL), 0);
			TG_CHECK(job[i].err == -ESHUTDOWN || job[i].err == -EOWNERDEAD);
		}
		rref_release(r);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	}
	rref_free_ctx(ctx);
}

TG_TEST(shutdown__under_readers, 2)
{
	shut_down_under_readers(tg_join_refs(rank), rank, 0);
	return 0;
}

/* No completion tells that their READs ended: the fence did end them. */
TG_TEST(shutdown__and_completions_are_lost, 2)
{
	shut_down_under_readers(tg_join_refs(rank), rank, THREADS);
	return 0;
}

/* Also a thread waits whose READ cannot be handed over. */
TG_TEST(shutdown__and_there_is_no_slot, 2)
{
	struct rref_ctx *ctx = join_with_slots(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, 8);
		struct job j = { .ref = r, .length = 8, .times = 1, .timeout = RREF_FOREVER };
		struct rref_future *f[RC_OP_CHUNK];
		pthread_t thread;

		take_all_slots(r, f);
		hold(ctx, 1);
		TG_IS(pthread_create(&thread, NULL, reader, &j), 0);
		TG_CHECK(tg_eventually(holds, ctx, &(unsigned){ 1 }));
		usleep(20000);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
		TG_IS(pthread_join(thread, NULL), 0);
		TG_CHECK(j.err == -ESHUTDOWN || j.err == -EOWNERDEAD);
		for (unsigned i = 0; i < RC_OP_CHUNK; i++)
			rref_future_free(f[i]);
		rref_release(r);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	}
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(read__takes_long),
		cmocka_unit_test(read__times_out),
		cmocka_unit_test(threads__some_take_long),
		cmocka_unit_test(handler__reads_while_its_thread_does),
		cmocka_unit_test(handler__reads_while_its_thread_waits_long),
		cmocka_unit_test(callbacks__read_within_one_another),
		cmocka_unit_test(read__takes_long_and_there_is_no_slot),
		cmocka_unit_test(shutdown__under_readers),
		cmocka_unit_test(shutdown__and_completions_are_lost),
		cmocka_unit_test(shutdown__and_there_is_no_slot),
	};

	return cmocka_run_group_tests_name("flight", tests, NULL, NULL);
}
