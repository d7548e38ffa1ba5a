/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asynchronous reads that are over when they are posted (shm; the owner's own values). Their
 * futures are the thread's own and complete from the beginning. Otherwise they are as all others.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/fast.h"
#include "core/ctx.h"
#include "core/read/read.h"
#include "tg_refs.h"

#define MANY 100
/* futures that a thread keeps, and futures made at once: value/own.c */
#define KEPT  64
#define CHUNK 16

static struct rref_future *begin_read(struct rref *ref)
{
	struct rref_future *f;

	TG_OK(rref_to_here_async(ref, RREF_DEFAULT, &f));
	return f;
}

/* Takes the view of a value of n bytes, made with seed n. */
static void end_read(struct rref_future *f, size_t n)
{
	struct rref_view *v;

	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	TG_OK(rref_future_view(f, &v));
	TG_IS(rref_view_length(v), n);
	TG_CHECK(tg_filled(rref_view_data(v), n, 0, (unsigned)n));
	rref_view_free(v);
	rref_future_free(f);
}

static struct rref *made_here(struct rref_ctx *ctx, size_t n)
{
	struct rref *ref;
	void *data;

	TG_OK(rref_alloc(ctx, n, &ref, &data));
	tg_fill(data, n, (unsigned)n);
	TG_OK(rref_set(ref));
	return ref;
}

static struct rref *made_there(struct rref_ctx *ctx, size_t n)
{
	return tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = n, .seed = (unsigned)n });
}

static bool over_at_once(void)
{
	return RB_FAST(tg_is_shm());
}

static void leave_clean(struct rref_ctx *ctx, int rank)
{
	if (rank == 0) {
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
}

/* Reads a value of bytes, a large one, and an own one. */
TG_TEST(read__takes_no_slot, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		static const size_t lengths[] = { 8, 5000, 700000 };
		struct rref *mine = made_here(ctx, 77);

		for (size_t i = 0; i < array_size(lengths); i++) {
			struct rref *ref = made_there(ctx, lengths[i]);
			struct rref_future *f[MANY];

			TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
			for (int k = 0; k < MANY; k++)
				f[k] = begin_read(k % 2 ? ref : mine);
			if (over_at_once())
				TG_IS(rc_ops_in_flight(ctx), 0);
			TG_IS(tg_stats(ctx).ops_in_flight, MANY);
			for (int k = 0; k < MANY; k++)
				end_read(f[k], k % 2 ? lengths[i] : 77);
			TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
			rref_release(ref);
		}
		rref_release(mine);
	}
	leave_clean(ctx, rank);
	return 0;
}

static void count_run(struct rref_future *f, void *arg)
{
	(void)f;
	++*(int *)arg;
}

static void count_run_and_free(struct rref_future *f, void *arg)
{
	count_run(f, arg);
	rref_future_free(f);
}

/* Cancels in vain. Callbacks run at once, and once. */
TG_TEST(future__is_complete_from_the_beginning, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (over_at_once() && rank == 0) {
		struct rref_error e = { .size = sizeof(e) };
		struct rref *ref = made_there(ctx, 100);
		struct rref_future *f[3];
		struct rref_view *v;
		const void *data;
		size_t length;
		int ran = 0;

		for (int i = 0; i < 3; i++)
			f[i] = begin_read(ref);
		TG_IS(rref_future_test(f[0]), 1);
		TG_OK(rref_future_wait(f[0], 0));
		TG_IS(rref_future_cancel(f[0]), -EALREADY);
		TG_OK(rref_future_error(f[0], &e));
		TG_IS(e.err, 0);
		TG_IS(e.peer, 1);
		TG_IS(rref_future_data(f[0], &data, &length), -ENOMSG);
		TG_IS(rref_future_nr_refs(f[0]), -ENOMSG);
		TG_IS(rref_wait_any(f, 3, 0), 0);
		TG_OK(rref_wait_all(f, 3, 0));
		TG_OK(rref_future_then(f[0], count_run, &ran));
		TG_IS(ran, 1);
		TG_IS(rref_future_then(f[0], count_run, &ran), -EBUSY);
		TG_OK(rref_future_then(f[1], count_run_and_free, &ran));
		TG_IS(ran, 2);
		TG_OK(rref_future_view(f[0], &v));
		rref_view_free(v);
		TG_IS(rref_future_view(f[0], &v), -ENOMSG);
		rref_future_free(f[0]);
		/* Uses that memory for a read that has its view and takes a callback. */
		f[0] = begin_read(ref);
		TG_OK(rref_future_then(f[0], count_run, &ran));
		TG_IS(ran, 3);
		end_read(f[0], 100);
		/* Leaves a view to its future, which takes it along. */
		rref_future_free(f[2]);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
		TG_CHECK(tg_idle(ctx, NULL));
		rref_release(ref);
	}
	leave_clean(ctx, rank);
	return 0;
}

struct hand_over {
	struct rref *ref;
	struct rref_future *f[MANY];
	size_t n;
};

static void *begin_many(void *arg)
{
	struct hand_over *h = arg;

	for (int i = 0; i < MANY; i++)
		h->f[i] = begin_read(h->ref);
	return NULL;
}

static void *end_many(void *arg)
{
	struct hand_over *h = arg;

	for (int i = 0; i < MANY; i++)
		end_read(h->f[i], h->n);
	return NULL;
}

static void on_a_thread(void *(*fn)(void *arg), void *arg)
{
	pthread_t t;

	TG_IS(pthread_create(&t, NULL, fn, arg), 0);
	TG_IS(pthread_join(t, NULL), 0);
}

/* Futures outlive their thread, and go from thread to thread. No more are made for it. */
TG_TEST(futures__of_other_threads, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct hand_over h = { .ref = made_there(ctx, 300), .n = 300 };
		uint32_t made = 0;

		for (int i = 0; i < tg_scale(100); i++) {
			on_a_thread(begin_many, &h); /* ends while its futures live */
			TG_CHECK(tg_stats(ctx).ops_in_flight >= MANY);
			if (i % 2)
				on_a_thread(end_many, &h);
			else
				end_many(&h);
			TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
			if (!made)
				made = at_load(&ctx->value.nr_own);
			/* this thread keeps some, and one more chunk may have been made */
			TG_CHECK(at_load(&ctx->value.nr_own) <= made + KEPT + CHUNK);
		}
		TG_CHECK(!over_at_once() || made >= MANY);
		rref_release(h.ref);
	}
	leave_clean(ctx, rank);
	return 0;
}

static struct hand_over *_Atomic box;
static atomic_bool no_more;

static void *take_from_the_box(void *arg)
{
	struct hand_over *h;

	(void)arg;
	while (!atomic_load(&no_more) || atomic_load(&box)) {
		h = atomic_exchange(&box, NULL);
		if (h) {
			end_many(h);
			free(h);
		}
	}
	return NULL;
}

/* Begins reads on one thread, and ends them on two others at the same time. */
TG_TEST(futures__while_other_threads_free, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *ref = made_there(ctx, 40);
		pthread_t t[2];

		for (int i = 0; i < 2; i++)
			TG_IS(pthread_create(&t[i], NULL, take_from_the_box, NULL), 0);
		for (int i = 0; i < tg_scale(300); i++) {
			struct hand_over *h = calloc(1, sizeof(*h)), *none = NULL;

			*h = (struct hand_over){ .ref = ref, .n = 40 };
			begin_many(h);
			while (!atomic_compare_exchange_weak(&box, &none, h))
				none = NULL;
		}
		atomic_store(&no_more, true);
		for (int i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		/* four boxes are under way at most, and each thread keeps some */
		TG_CHECK(at_load(&ctx->value.nr_own) <= 4 * MANY + 3 * KEPT + CHUNK);
		rref_release(ref);
	}
	leave_clean(ctx, rank);
	return 0;
}

/* The context goes while futures of its reads live, with and without their views. */
TG_TEST(context__ends_before_its_futures, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *ref = made_there(ctx, 100);
		struct rref_view *v;

		for (int i = 0; i < 3 * MANY; i++) {
			struct rref_future *f = begin_read(ref);

			TG_OK(rref_future_wait(f, RREF_DEFAULT));
			if (i % 2)
				TG_OK(rref_future_view(f, &v));
		}
		rref_release(ref);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		/* The other futures hold their reference. */
		if (over_at_once())
			tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* A future is freed after the shutdown, before the context is. */
TG_TEST(future__is_freed_after_the_shutdown, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_future *f = NULL;

	if (rank == 0) {
		struct rref *ref = made_there(ctx, 100);

		f = begin_read(ref);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_release(ref);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	if (f)
		end_read(f, 100);
	rref_free_ctx(ctx);
	return 0;
}

/* The owner's device refuses the READ: the future has the error, and its memory serves again. */
TG_TEST(read__is_refused, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *ref = made_there(ctx, 100);
		struct rref_error e = { .size = sizeof(e) };
		struct rref_future *f;
		struct rref_view *v;
		uint64_t at = rc_remote(ref)->loc.addr;

		end_read(begin_read(ref), 100);
		rc_remote(ref)->loc.addr = UINT64_C(1) << 40; /* nothing is there */
		f = begin_read(ref);
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ESTALE);
		TG_TEXT("not there any more");
		TG_IS(rref_future_view(f, &v), -ESTALE);
		TG_OK(rref_future_error(f, &e));
		TG_IS(e.err, -ESTALE);
		rref_future_free(f);
		rc_remote(ref)->loc.addr = at;
		/* Waits for the next connection: then the same future serves. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		for (int i = 0; i < MANY; i++)
			end_read(begin_read(ref), 100);
		rref_release(ref);
	}
	leave_clean(ctx, rank);
	return 0;
}

/*
 * Fails a reference while its READ is refused. The future tells whom that is about. The next read
 * with the same future says nothing of it.
 */
TG_TEST(read__is_refused_as_its_reference_fails, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0 && over_at_once()) {
		struct rref *ref = made_there(ctx, 100), *other = made_there(ctx, 200);
		struct rref_error e = { .size = sizeof(e) };
		uint64_t at = rc_remote(ref)->loc.addr;
		struct rref_future *f;

		end_read(begin_read(ref), 100);
		end_read(begin_read(other), 200);
		rc_remote(ref)->loc.addr = UINT64_C(1) << 40; /* nothing is there */
		ref->err = -EOWNERDEAD;
		ref->about = 2; /* worker 1 */
		at_store_rel(&ref->state, RC_H_FAILED);
		TG_CHECK(rc_fast_begin(ref, &f));
		TG_OK(rref_future_error(f, &e));
		TG_IS(e.err, -EOWNERDEAD);
		TG_IS(e.flags, RREF_ERROR_ANSWERED);
		TG_IS(e.peer, 1);
		rref_future_free(f);
		at_store_rel(&ref->state, RC_H_READY);
		ref->err = 0;
		ref->about = 0;
		rc_remote(ref)->loc.addr = at;
		/* Waits for the next connection: then the same future serves. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		f = begin_read(other);
		TG_OK(rref_future_error(f, &e));
		TG_IS(e.err, 0);
		TG_IS(e.flags, 0);
		TG_IS(e.peer, 1);
		end_read(f, 200);
		rref_release(other);
		rref_release(ref);
	}
	leave_clean(ctx, rank);
	return 0;
}

/* Another value lies there now: no way takes its bytes for those of the one that was asked for. */
TG_TEST(header__of_another_value, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *ref = made_there(ctx, 100), *one[1] = { ref };
		struct rref_into into = { .ref = ref, .length = 100 };
		struct rref_future *f;
		struct rref_view *v;
		char buf[100];
		size_t got;
		int status;

		into.buf = buf;
		rc_remote(ref)->loc.nonce ^= 1;
		tg_expect_error(ref, -ESTALE, "not there any more");
		f = begin_read(ref);
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ESTALE);
		rref_future_free(f);
		TG_IS(rref_to_here_batch(one, 1, RREF_DEFAULT, &v, &status), 0);
		TG_IS(status, -ESTALE);
		for (size_t at = 0; at < 100; at += 50)
			TG_IS(rref_to_here_into(ref, buf, at, 50, RREF_DEFAULT, &got), -ESTALE);
		TG_IS(rref_to_here_into_batch(&into, 1, RREF_DEFAULT), 0);
		TG_IS(into.status, -ESTALE);
		rc_remote(ref)->loc.nonce ^= 1;
		end_read(begin_read(ref), 100);
		rref_release(ref);
	}
	leave_clean(ctx, rank);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(read__takes_no_slot),
		cmocka_unit_test(future__is_complete_from_the_beginning),
		cmocka_unit_test(futures__of_other_threads),
		cmocka_unit_test(futures__while_other_threads_free),
		cmocka_unit_test(context__ends_before_its_futures),
		cmocka_unit_test(future__is_freed_after_the_shutdown),
		cmocka_unit_test(read__is_refused),
		cmocka_unit_test(read__is_refused_as_its_reference_fails),
		cmocka_unit_test(header__of_another_value),
	};

	return cmocka_run_group_tests_name("at_once", tests, NULL, NULL);
}
