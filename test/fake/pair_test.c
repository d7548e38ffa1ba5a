/* SPDX-License-Identifier: Apache-2.0 */
/* librref's ibv provider over fake devices: the main job, end to end, in one process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <infiniband/verbs.h>

#include "fg.h"

#define MANY 300u

static int usual(void **state)
{
	(void)state;
	for (unsigned i = 0; i < FV_DEVICES; i++) {
		fv_use(i, fv_profile("connectx"));
		fv_knobs(i)->delay_ns = 2000;
	}
	return 0;
}

static const size_t sizes[] = { 1, 8, 100, 4096, 65536, 1 << 20, (20 << 20) + 5 };

/* Creates, shares, reads, passes on and calls, in a group as it is set. */
static void main_job(struct fg *g)
{
	struct rref *refs[array_size(sizes)];
	struct rref_future *f;
	struct rref_args a = { .data = "bytes", .length = 5 };
	unsigned sum, want = 0;
	char back[5];

	fg_join(g);
	for (size_t i = 0; i < array_size(sizes); i++) {
		refs[i] = fg_value(g, 1, 0, sizes[i], (unsigned)i);
		fg_read(refs[i], sizes[i], (unsigned)i);
		want += tg_byte(0, (unsigned)i);
	}
	TG_OK(rref_rpc_sync(g->ctx[0], 1, "tg.echo", &a, RREF_DEFAULT, &f));
	tg_result(f, back, 5);
	assert_memory_equal(back, "bytes", 5);
	rref_future_free(f);
	a = (struct rref_args){ .refs = refs, .nr_refs = array_size(sizes) };
	TG_OK(rref_rpc_sync(g->ctx[0], 2, "tg.read", &a, RREF_DEFAULT, &f));
	tg_result(f, &sum, sizeof(sum));
	assert_int_equal(sum, want);
	rref_future_free(f);
	for (size_t i = 0; i < array_size(sizes); i++)
		rref_release(refs[i]);
	fg_leave(g);
}

static void main_job__over_each_profile(void **state)
{
	static const char *const names[] = { "connectx", "rxe" };

	(void)state;
	for (size_t i = 0; i < array_size(names); i++) {
		struct fg g = { .world = 3 };
		uint64_t failed = fv_count(0).failed;

		for (unsigned d = 0; d < 3; d++)
			fv_use(d, fv_profile(names[i]));
		main_job(&g);
		assert_int_equal(fv_count(0).failed, failed);
	}
}

static void main_job__with_each_delay(void **state)
{
	static const int64_t delays[] = { 0, 200 * NSEC_PER_USEC };

	(void)state;
	for (size_t i = 0; i < array_size(delays); i++) {
		struct fg g = { .world = 3 };

		for (unsigned d = 0; d < 3; d++)
			fv_knobs(d)->delay_ns = delays[i];
		main_job(&g);
	}
}

static void main_job__with_a_poller_that_never_sleeps(void **state)
{
	struct fg g = { .world = 3, .mode = RREF_PROGRESS_POLL };

	(void)state;
	main_job(&g);
}

static void reads__async_and_in_a_batch(void **state)
{
	struct fg g = { .world = 3 };
	static struct rref *refs[MANY];
	static struct rref_future *f[MANY];
	static struct rref_view *views[MANY];
	static int status[MANY];

	(void)state;
	fg_join(&g);
	for (unsigned i = 0; i < MANY; i++)
		refs[i] = fg_value(&g, 1 + (int)i % 2, 0, 8 + i, i);
	fv_knobs(0)->delay_ns = 100 * NSEC_PER_USEC;
	for (unsigned i = 0; i < MANY; i++)
		TG_OK(rref_to_here_async(refs[i], RREF_DEFAULT, &f[i]));
	for (unsigned i = 0; i < MANY; i++) {
		struct rref_view *v;

		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		TG_OK(rref_future_view(f[i], &v));
		fg_check(v, 8 + i, i);
		rref_future_free(f[i]);
	}
	TG_OK(rref_to_here_batch(refs, MANY, RREF_DEFAULT, views, status));
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(status[i], 0);
		fg_check(views[i], 8 + i, i);
		rref_release(refs[i]);
	}
	fg_leave(&g);
}

/* Starts reads of values of workers 1 and 2. Their answers take longer than the next step. */
static void start_reads(struct fg *g, struct rref *refs[40], struct rref_future *f[40])
{
	for (unsigned i = 0; i < 40; i++)
		refs[i] = fg_value(g, i < 32 ? 1 : 2, 0, 4096, i);
	fv_knobs(0)->delay_ns = 400 * NSEC_PER_MSEC;
	for (unsigned i = 0; i < 40; i++)
		TG_OK(rref_to_here_async(refs[i], RREF_DEFAULT, &f[i]));
	fv_knobs(0)->delay_ns = 2000;
}

/* Expects that the reads of worker 1's values failed so, and the others are right. */
static void end_reads(struct fg *g, struct rref *refs[40], struct rref_future *f[40])
{
	for (unsigned i = 0; i < 40; i++) {
		struct rref_view *v;

		if (i < 32) {
			TG_IS(rref_future_wait(f[i], RREF_DEFAULT), -EOWNERDEAD);
		} else {
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_view(f[i], &v));
			fg_check(v, 4096, i);
		}
		rref_future_free(f[i]);
	}
	TG_IS(rref_to_here(refs[0], RREF_DEFAULT, &(struct rref_view *){ NULL }), -EOWNERDEAD);
	fg_read(refs[39], 4096, 39);
	while (tg_stats(g->ctx[0]).landing_bytes || tg_stats(g->ctx[0]).ops_in_flight)
		tg_pause();
	for (unsigned i = 0; i < 40; i++)
		rref_release(refs[i]);
}

static void owner__leaves_with_reads_under_way(void **state)
{
	struct fg g = { .world = 3 };
	uint64_t flushed = fv_count(0).flushed;
	struct rref_future *f[40];
	struct rref *refs[40];

	(void)state;
	fg_join(&g);
	start_reads(&g, refs, f);
	rref_shutdown(g.ctx[1], RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	rref_free_ctx(g.ctx[1]);
	g.ctx[1] = NULL;
	end_reads(&g, refs, f);
	assert_true(fv_count(0).flushed > flushed);
	fg_leave(&g);
}

static void owner__falls_silent_with_reads_under_way(void **state)
{
	struct fg g = { .world = 3 };
	uint64_t timeouts = fv_count(0).timeouts;
	struct rref_future *f[40];
	struct rref *refs[40];

	(void)state;
	fg_join(&g);
	start_reads(&g, refs, f);
	fv_knobs(1)->silent = 1;
	end_reads(&g, refs, f);
	assert_true(fv_count(0).timeouts > timeouts);
	rref_shutdown(g.ctx[1], RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	rref_free_ctx(g.ctx[1]);
	g.ctx[1] = NULL;
	fv_knobs(1)->silent = 0;
	fg_leave(&g);
}

/* Events that only inform, of the port and of the device, harm nothing. */
static void events__of_the_port_do_no_harm(void **state)
{
	static const int types[] = { IBV_EVENT_PORT_ACTIVE, IBV_EVENT_GID_CHANGE,
				     IBV_EVENT_LID_CHANGE, IBV_EVENT_PKEY_CHANGE,
				     IBV_EVENT_SM_CHANGE, IBV_EVENT_CLIENT_REREGISTER };
	struct fg g = { .world = 2 };
	struct rref *r;

	(void)state;
	fg_join(&g);
	r = fg_value(&g, 1, 0, 4096, 7);
	for (size_t i = 0; i < array_size(types); i++) {
		fv_raise((unsigned)i % 2, types[i]);
		fg_read(r, 4096, 7);
	}
	rref_release(r);
	fg_leave(&g);
}

#define PAIR(name) cmocka_unit_test_setup(name, usual)

int main(void)
{
	const struct CMUnitTest tests[] = {
		PAIR(events__of_the_port_do_no_harm),
		PAIR(main_job__over_each_profile),
		PAIR(main_job__with_a_poller_that_never_sleeps),
		PAIR(main_job__with_each_delay),
		PAIR(owner__falls_silent_with_reads_under_way),
		PAIR(owner__leaves_with_reads_under_way),
		PAIR(reads__async_and_in_a_batch),
	};

	return cmocka_run_group_tests_name("pair", tests, NULL, NULL);
}
