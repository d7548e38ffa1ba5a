/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many references given back at once. The Makefile links rc_unlock by way of this program, which
 * counts its turns of the lock.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "tg_refs.h"

#define NR 1000
#define TURN 256 /* references in one turn of the lock, as the header says */

static _Thread_local unsigned unlocked; /* turns of this thread */

void __real_rc_unlock(struct rref_ctx *ctx);
void __wrap_rc_unlock(struct rref_ctx *ctx);

void __wrap_rc_unlock(struct rref_ctx *ctx)
{
	unlocked++;
	__real_rc_unlock(ctx);
}

static struct rref *refs[NR];

static void make_own(struct rref_ctx *ctx, size_t from, size_t nr)
{
	for (size_t i = from; i < from + nr; i++)
		TG_OK(rref_new(ctx, &i, sizeof(i), &refs[i]));
}

static struct rref_ctx *alone(void)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	rref_options_init(&o);
	o.world_size = 1;
	o.mode = tg_mode();
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

static void leave(struct rref_ctx *ctx)
{
	TG_IS(tg_stats(ctx).owners, 0);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	rref_free_ctx(ctx);
}

/* A loop takes the lock for each reference, a batch for 256 of them. */
TG_TEST(turns_of_the_lock__are_few, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	unsigned before, loop, batch;

	make_own(ctx, 0, NR);
	before = unlocked;
	for (int i = 0; i < NR; i++)
		rref_release(refs[i]);
	loop = unlocked - before;
	make_own(ctx, 0, NR);
	before = unlocked;
	rref_release_batch(refs, NR);
	batch = unlocked - before;
	TG_CHECK(loop > NR / 2); /* another thread may have had the lock, and did it for this one */
	TG_CHECK(batch <= (NR + TURN - 1) / TURN);
	TG_IS(tg_stats(ctx).owners, 0);
	/* Holds that are not the last need no turn at all. */
	make_own(ctx, 0, 1);
	for (int i = 1; i < NR; i++)
		refs[i] = rref_dup(refs[0]);
	before = unlocked;
	rref_release_batch(refs + 1, NR - 1);
	TG_IS(unlocked, before);
	TG_IS(tg_stats(ctx).owners, 1);
	rref_release(refs[0]);
	tg_finish(ctx);
	return 0;
}

static void *release_all(void *arg)
{
	rref_release_batch(refs, *(size_t *)arg);
	return NULL;
}

/* Another thread has the lock. The call returns at once, and that thread
 * does the work when it releases the lock. */
TG_TEST(the_lock__is_not_waited_for, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	size_t nr = NR;
	pthread_t t;

	make_own(ctx, 0, NR);
	rc_lock(ctx);
	TG_IS(pthread_create(&t, NULL, release_all, &nr), 0);
	TG_IS(pthread_join(t, NULL), 0);
	rc_unlock(ctx);
	TG_IS(tg_stats(ctx).owners, 0);
	tg_finish(ctx);
	return 0;
}

/* NULL, one reference by several holds, several contexts in any order, and nothing at all. */
TG_TEST(mixed__all_are_given_back, 1)
{
	struct rref_ctx *ctx[2];

	(void)rank;
	for (int i = 0; i < 2; i++)
		ctx[i] = alone();
	rref_release_batch(NULL, 0);
	rref_release_batch(refs, 0);
	memset(refs, 0, sizeof(refs));
	rref_release_batch(refs, NR);
	for (size_t i = 0; i < NR; i++) {
		if (i % 3 == 2)
			refs[i] = NULL;
		else if (i % 7 == 3)
			refs[i] = rref_dup(refs[i - 1] ? refs[i - 1] : refs[i - 2]);
		else
			make_own(ctx[i / 5 % 2], i, 1);
	}
	rref_release_batch(refs, NR);
	for (int i = 0; i < 2; i++)
		leave(ctx[i]);
	return 0;
}

/* The owner of foreign values learns of each release. */
TG_TEST(of_others__their_owner_hears, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		size_t nr = (size_t)tg_scale(NR);

		for (size_t i = 0; i < nr; i++)
			refs[i] = tg_remote(ctx, 1, "tg.echo", &i, sizeof(i));
		tg_expect_bytes(refs[nr - 1], &(size_t){ nr - 1 }, sizeof(size_t));
		TG_IS(tg_stats(ctx).users, nr);
		rref_release_batch(refs, nr);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static int give_lent_back(struct rref_call *call, void *arg)
{
	struct rref *both[2] = { rref_call_ref(call, 0), rref_dup(rref_call_ref(call, 1)) };

	(void)arg;
	rref_release_batch(both, 2);
	return strstr(rref_last_error(), "lent")
		? rref_call_reply(call, &(struct rref_args){ .refs = both, .nr_refs = 1 })
		: -EDOM;
}

/* A handler gives back a reference it does not hold. That one is
 * refused, and the others are released. */
TG_TEST(lent__is_refused_alone, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	tg_add(ctx, "lent", give_lent_back, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref_future *f;
		struct rref *back;

		make_own(ctx, 0, 2);
		TG_OK(rref_rpc_sync(ctx, 1, "lent", tg_with(refs, 2), RREF_DEFAULT, &f));
		TG_OK(rref_future_ref(f, 0, &back));
		rref_future_free(f);
		tg_expect_bytes(back, &(size_t){ 0 }, sizeof(size_t));
		refs[2] = back;
		rref_release_batch(refs, 3);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

#define THREADS 4

static struct rref *parts[THREADS][NR];

static void *release_part(void *arg)
{
	rref_release_batch(arg, NR);
	return NULL;
}

/* Threads give back holds of the same references: each reference ends once. */
TG_TEST(threads__share_the_references, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	pthread_t t[THREADS];

	for (int round = 0; round < tg_scale(20); round++) {
		make_own(ctx, 0, NR);
		for (int k = 0; k < THREADS; k++)
			for (int i = 0; i < NR; i++)
				parts[k][i] = k ? rref_dup(refs[i]) : refs[i];
		for (int k = 0; k < THREADS; k++)
			TG_IS(pthread_create(&t[k], NULL, release_part, parts[k]), 0);
		for (int k = 0; k < THREADS; k++)
			TG_IS(pthread_join(t[k], NULL), 0);
		rc_lock(ctx);
		rc_unlock(ctx); /* takes care of the last dropped handles */
		TG_IS(tg_stats(ctx).owners, 0);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lent__is_refused_alone),
		cmocka_unit_test(mixed__all_are_given_back),
		cmocka_unit_test(of_others__their_owner_hears),
		cmocka_unit_test(the_lock__is_not_waited_for),
		cmocka_unit_test(threads__share_the_references),
		cmocka_unit_test(turns_of_the_lock__are_few),
	};

	return cmocka_run_group_tests_name("release_batch", tests, NULL, NULL);
}
