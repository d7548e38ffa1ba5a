/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls with large arguments or results that end badly: given up, the caller or the callee dead, a
 * shutdown. Also calls within calls.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "payload.h"

/* ---- giving up ---- */

/* Calls by the way they are given up. For each way, the number that
 * began, and the number that learned of it. */
enum way { CALL_TIMES_OUT, CALL_IS_CANCELLED, CREATION_TIMES_OUT, CALL_HERE_TIMES_OUT, NR_WAYS };

static _Atomic int *begun(enum way w)
{
	return (_Atomic int *)(void *)tg_current->shared->bytes + w;
}

static _Atomic int *heard(enum way w)
{
	return begun(w) + NR_WAYS;
}

/* Waits until its caller has given up. The argument is the way. */
static int until_cancelled(struct rref_call *call, void *arg)
{
	int64_t end = tg_deadline();
	enum way w;

	(void)arg;
	TG_IS(rref_call_length(call), sizeof(w));
	memcpy(&w, rref_call_data(call), sizeof(w));
	atomic_fetch_add(begun(w), 1);
	while (!rref_call_cancelled(call)) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
	atomic_fetch_add(heard(w), 1);
	/* The unwanted result is sent all the same, and has no effect. */
	unsigned char *data = filled(100000, 1);
	struct rref_args a = bytes(data, 100000);
	int err = rref_call_reply(call, &a);

	free(data);
	return err;
}

static bool was_begun(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(begun(*(enum way *)arg)) > 0;
}

static bool all_heard(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	(void)arg;
	for (enum way w = 0; w < NR_WAYS; w++) {
		if (!atomic_load(begun(w)) || atomic_load(heard(w)) != atomic_load(begun(w)))
			return false;
	}
	return true;
}

/* Begins one call and gives it up in this way. A short time may end before its handler begins. */
static void give_up(struct rref_ctx *ctx, enum way w)
{
	struct rref_args a = bytes(&w, sizeof(w));
	struct rref_future *f;
	struct rref *r;

	switch (w) {
	case CALL_TIMES_OUT:
	case CALL_HERE_TIMES_OUT:
		TG_IS(rref_rpc_sync(ctx, w == CALL_TIMES_OUT, "until_cancelled", &a,
				    50 * NSEC_PER_MSEC, NULL), -ETIMEDOUT);
		break;
	case CALL_IS_CANCELLED:
		TG_OK(rref_rpc_async(ctx, 1, "until_cancelled", &a, RREF_FOREVER, &f));
		TG_CHECK(tg_eventually(was_begun, ctx, &w));
		TG_OK(rref_future_cancel(f));
		rref_future_free(f);
		break;
	default:
		TG_OK(rref_remote(ctx, 1, "until_cancelled", &a, 50 * NSEC_PER_MSEC, &r));
		TG_OK(rref_creation(r, &f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ETIMEDOUT);
		rref_future_free(f);
		rref_release(r);
	}
}

/* A call and a creation time out, or are cancelled: the handler can know. */
TG_TEST(cancelled__the_handler_can_ask, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	add(ctx, "until_cancelled", until_cancelled, 0);
	tg_meet_serving(ctx, 0);
	for (enum way w = 0; rank == 0 && w < NR_WAYS; w++) {
		while (!was_begun(ctx, &w)) {
			TG_CHECK(now_ns() < tg_deadline());
			give_up(ctx, w);
		}
	}
	/* Each handler that was begun learns of it, however often the caller tried. */
	TG_CHECK(tg_eventually(all_heard, ctx, NULL));
	TG_IS(rref_call_cancelled(NULL), -EINVAL);
	tg_meet_serving(ctx, 1);
	until_nothing_is_left(ctx, 1 - rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

/* The caller gives up before there is a session. The call was never sent, and is taken back. */
TG_TEST(cancelled__before_there_is_a_session, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	add(ctx, "until_cancelled", until_cancelled, 0);
	tg_meet(0); /* without messages */
	if (rank == 0) {
		tg_stop_worker(1);
		give_up(ctx, CALL_TIMES_OUT);
		TG_IS(tg_stats(ctx).sessions, 0);
		tg_continue_worker(1);
		/* The next message follows on the same connection. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	}
	tg_meet_serving(ctx, 1);
	TG_IS(atomic_load(begun(CALL_TIMES_OUT)), 0);
	until_nothing_is_left(ctx, 1 - rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

/* Calls time out at any moment of the READs of their payloads. All memory comes back. */
TG_TEST(timeout__in_the_middle_of_a_read, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	size_t n = tg_is_shm() ? (SANITIZED ? 4 * MIB : 32 * MIB) : MIB;

	if (rank == 0) {
		unsigned char *data = filled(n, 2);
		struct rref_args a = bytes(data, n);
		int gone = 0, good = 0;

		for (int i = 0; i < tg_scale(60); i++) {
			int64_t timeout = (i % 20 + 1) * (tg_is_shm() ? 1 : 20) * NSEC_PER_MSEC;
			struct rref_future *f;
			int err = rref_rpc_async(ctx, 1, "tg.echo", &a, timeout, &f);

			if (err == -EAGAIN) {
				gone++; /* the bytes that were given up before still lie there */
				continue;
			}
			TG_OK(err);
			err = rref_future_wait(f, RREF_DEFAULT);
			TG_CHECK(err == 0 || err == -ETIMEDOUT || err == -EAGAIN);
			if (!err)
				expect_result(f, data, n);
			gone += err != 0;
			good += err == 0;
			rref_future_free(f);
		}
		/* In all cases the next call is served, and nothing is left. */
		struct rref_future *f;

		until_nothing_is_left(ctx, 1);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &a, RREF_DEFAULT, &f));
		expect_result(f, data, n);
		rref_future_free(f);
		TG_CHECK(gone + good == tg_scale(60));
		free(data);
		until_nothing_is_left(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- deaths ---- */

static bool peer_is_dead(struct rref_ctx *ctx, void *arg)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, *(int *)arg, &w));
	return !w.alive;
}

/* Kills the reader, or the owner of the memory it reads, at any moment. The other one goes on with
 * all of its memory. */
static int killed(int rank, void *arg)
{
	bool caller_dies = arg;
	struct rref_ctx *ctx = tg_join(rank);
	size_t n = tg_is_shm() ? (SANITIZED ? MIB : 16 * MIB) : 512 * KIB;
	unsigned char *data = filled(n, 4);
	struct rref_args a = bytes(data, n);
	int mortal = caller_dies ? 1 : 2, other = 3 - mortal;

	if (rank == 0) {
		/* The third worker does the killing, and calls the survivor all the while. */
		struct rref_future *f;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < 3; i++)
			TG_OK(rref_rpc_sync(ctx, other, "tg.echo", &a, RREF_DEFAULT, NULL));
		kill(tg_current->shared->pid[mortal], SIGKILL);
		TG_OK(rref_rpc_sync(ctx, other, "tg.echo", &a, RREF_DEFAULT, &f));
		expect_result(f, data, n);
		rref_future_free(f);
		tg_set_flag(1, 1);
	} else if (rank == 1) {
		/* The caller makes as many as there is room for, without end. */
		struct rref_future *f[4] = { NULL };
		int err = 0;

		for (unsigned i = 0; err == 0 || err == -EAGAIN; i = (i + 1) % 4) {
			if (f[i]) {
				err = rref_future_wait(f[i], RREF_DEFAULT);
				if (!err)
					expect_result(f[i], data, n);
				rref_future_free(f[i]);
				f[i] = NULL;
				tg_set_flag(0, 1);
			}
			if (!err)
				err = rref_rpc_async(ctx, 2, i & 1 ? "tg.echo" : "tg.echo_inline",
						     &a, RREF_DEFAULT, &f[i]);
		}
		TG_IS(err, -EOWNERDEAD);
		for (int i = 0; i < 4; i++) {
			/* Payloads that were complete before the death stay so. */
			err = f[i] ? rref_future_wait(f[i], RREF_DEFAULT) : -EOWNERDEAD;
			TG_CHECK(err == -EOWNERDEAD || err == 0 || err == -EAGAIN);
			rref_future_free(f[i]);
		}
	} else {
		tg_wait_flag_serving(ctx, 1, 1);
	}
	tg_wait_flag_serving(ctx, 1, 1);
	TG_CHECK(rank == 0 || tg_eventually(peer_is_dead, ctx, &mortal));
	TG_CHECK(tg_eventually(nothing_offered, ctx, NULL));
	free(data);
	rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	rref_free_ctx(ctx);
	return 0;
}

static void death__of_the_caller(void **state)
{
	struct tg_group g = { .world = 3, .expect_killed = { [1] = 1 } };

	(void)state;
	for (int i = 0; i < (tg_is_shm() ? 5 : 1); i++)
		assert_int_equal(tg_run_group(&g, killed, (void *)1), 0);
}

static void death__of_the_callee(void **state)
{
	struct tg_group g = { .world = 3, .expect_killed = { [2] = 1 } };

	(void)state;
	for (int i = 0; i < (tg_is_shm() ? 5 : 1); i++)
		assert_int_equal(tg_run_group(&g, killed, NULL), 0);
}

/* A shutdown NOW comes in the middle of everything: every future completes, nothing is left. */
TG_TEST(shutdown__now, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	size_t n = tg_is_shm() ? (SANITIZED ? MIB : 8 * MIB) : 512 * KIB;
	unsigned char *data = filled(n, 4);
	struct rref_args a = bytes(data, n);
	struct rref_future *f[16];

	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 16; i++)
		TG_OK(rref_rpc_async(ctx, i & 1 ? rank : 1 - rank,
				     i & 2 ? "tg.echo" : "tg.echo_inline", &a, RREF_DEFAULT,
				     &f[i]));
	if (rank == 0)
		/* any status: it may have met the other's end */
		rref_future_wait(f[0], RREF_DEFAULT);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	for (int i = 0; i < 16; i++) {
		TG_CHECK(rref_future_test(f[i]));
		struct rref_error e = { .size = sizeof(e) };

		TG_OK(rref_future_error(f[i], &e));
		if (!e.err)
			expect_result(f[i], data, n);
		rref_future_free(f[i]);
	}
	TG_CHECK(nothing_offered(ctx, NULL));
	free(data);
	rref_free_ctx(ctx);
	return 0;
}

/* ---- nested calls ---- */

static int nest(struct rref_call *call, void *arg)
{
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref_args a = bytes(rref_call_data(call), rref_call_length(call));
	struct rref_future *f;
	int32_t *depth, left;
	int err;

	(void)arg;
	memcpy(&left, a.data, sizeof(left));
	if (left == 0)
		return rref_call_reply(call, &a);
	depth = malloc(a.length);
	TG_CHECK(depth);
	memcpy(depth, a.data, a.length);
	*depth = left - 1;
	a.data = depth;
	err = rref_rpc_sync(ctx, (rref_rank(ctx) + 1) % rref_world_size(ctx), "nest", &a,
			    RREF_DEFAULT, &f);
	if (err) {
		err = rref_call_error(call, err, "%s", rref_last_error());
	} else {
		const void *data;
		size_t n;

		TG_OK(rref_future_data(f, &data, &n));
		a = bytes(data, n);
		err = rref_call_reply(call, &a);
		rref_future_free(f);
	}
	free(depth);
	return err;
}

static int32_t deep(void)
{
#if defined(__SANITIZE_THREAD__)
	return 300;
#else
	return tg_is_shm() ? 3000 : 300;
#endif
}

/* Calls from A to B to A to B ..., and the same with oneself. They nest far deeper than the pool
 * has threads at first. */
TG_TEST(nested__deeper_than_any_pool, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		int32_t depth = deep();
		struct rref_args a = bytes(&depth, sizeof(depth));
		struct rref_future *f;
		int32_t got = -1;

		TG_OK(rref_rpc_sync(ctx, 1, "nest", &a, RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, 0);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(nested__on_oneself, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	int32_t depth = deep() / 2;
	struct rref_args a = bytes(&depth, sizeof(depth));

	add(ctx, "nest", nest, 0);
	TG_OK(rref_rpc_sync(ctx, 0, "nest", &a, RREF_DEFAULT, NULL));
	tg_finish(ctx);
	return 0;
}

/* The payloads of all levels exist at once. */
TG_TEST(nested__with_large_arguments, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int32_t *data = calloc(1, 64 * KIB);

	add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	*data = tg_is_shm() ? 200 : 20;
	if (rank == 0) {
		struct rref_args a = bytes(data, 64 * KIB);

		TG_OK(rref_rpc_sync(ctx, 1, "nest", &a, RREF_DEFAULT, NULL));
		until_nothing_is_left(ctx, 1);
	}
	free(data);
	tg_finish(ctx);
	return 0;
}

/* Calls nest deeper than the limit of threads. An error says so at
 * once; the calls do not stand still. */
TG_TEST(nested__deeper_than_allowed, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.max_waiting = 30;
	TG_OK(rref_init(&o, &ctx));
	add(ctx, "nest", nest, 0);
	tg_meet_serving(ctx, 0);
	for (int round = 0; rank == 0 && round < 3; round++) {
		int32_t depth = 200;
		struct rref_args a = bytes(&depth, sizeof(depth));

		TG_IS(rref_rpc_sync(ctx, 1, "nest", &a, RREF_FOREVER, NULL), -EAGAIN);
		TG_TEXT("no thread for the call");
		/* The refusal concerned that call, and no later one. */
		for (int i = 0; i < 40; i++) {
			TG_OK(rref_rpc_sync(ctx, 1, i % 2 ? "tg.echo" : "tg.echo_inline", &a,
					    RREF_FOREVER, NULL));
			TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_FOREVER, NULL));
		}
		depth = 40;
		TG_OK(rref_rpc_sync(ctx, 1, "nest", &a, RREF_FOREVER, NULL));
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cancelled__the_handler_can_ask),
		cmocka_unit_test(cancelled__before_there_is_a_session),
		cmocka_unit_test(timeout__in_the_middle_of_a_read),
		cmocka_unit_test(death__of_the_caller),
		cmocka_unit_test(death__of_the_callee),
		cmocka_unit_test(shutdown__now),
		cmocka_unit_test(nested__deeper_than_any_pool),
		cmocka_unit_test(nested__on_oneself),
		cmocka_unit_test(nested__with_large_arguments),
		cmocka_unit_test(nested__deeper_than_allowed),
	};

	return cmocka_run_group_tests_name("payload_ends", tests, NULL, NULL);
}
