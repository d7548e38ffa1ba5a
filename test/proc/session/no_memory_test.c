/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker dies while another has no memory at all. The dead worker's references and values are put
 * right all the same, before there is memory again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

#define MANY 700 /* more effects than the machine keeps room for */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CANNOT_FAIL 1 /* the sanitizers replace the allocator themselves */
#endif

static _Atomic int out, failed; /* out: every allocation fails */
static _Atomic int nth;         /* counts down: that allocation fails when it comes to 1 */

#ifndef CANNOT_FAIL
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

static bool fails(void)
{
	if (!out && (nth <= 0 || atomic_fetch_sub(&nth, 1) != 1))
		return false;
	atomic_fetch_add(&failed, 1);
	errno = ENOMEM;
	return true;
}

void *malloc(size_t n)
{
	return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	return fails() ? NULL : __libc_realloc(p, n);
}
#endif

#ifdef CANNOT_FAIL
#define ALLOCATIONS_FAIL false
#else
#define ALLOCATIONS_FAIL true
#endif

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

static struct rref *many[MANY];

/* Keeps duplicates of all references: no.keep. (no.unset answers
 * with MANY values that are never set.) */
static int keep_all(struct rref_call *call, void *arg)
{
	(void)arg;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++)
		many[i] = rref_dup(rref_call_ref(call, i));
	return 0;
}

static int make_unset(struct rref_call *call, void *arg)
{
	void *data;

	(void)arg;
	for (int i = 0; i < MANY; i++)
		TG_OK(rref_alloc(rref_call_context(call), 8, &many[i], &data));
	return rref_call_reply(call, tg_with(many, MANY));
}

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	tg_add(ctx, "no.keep", keep_all, 0);
	tg_add(ctx, "no.unset", make_unset, 0);
	tg_meet_serving(ctx, 0);
	return ctx;
}

/* Kills rank 1 when this worker has no memory left. Returns when the death is known. */
static void die_without_memory(struct rref_ctx *ctx)
{
	int one = 1;

	out = 1;
	tg_set_flag(0, 1);
	TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
}

DEATH_TEST(holder_killed__forks_end_without_memory, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	for (int i = 0; i < MANY; i++)
		TG_OK(rref_new(ctx, "x", 1, &many[i]));
	TG_OK(rref_rpc_sync(ctx, 1, "no.keep", tg_with(many, MANY), RREF_DEFAULT, NULL));
	for (int i = 0; i < MANY; i++)
		rref_release(many[i]);
	TG_IS(tg_stats(ctx).forks, MANY);
	die_without_memory(ctx);
	TG_CHECK(tg_eventually(no_forks, ctx, NULL));
	TG_IS(tg_stats(ctx).owners, 0);
	TG_CHECK(failed > 0);
	out = 0;
	tg_until_clean(ctx, 0);
	tg_leave(ctx);
	return 0;
}

DEATH_TEST(owner_killed__reads_end_without_memory, 2, 1 << 1)
{
	static struct rref_future *reads[MANY];
	struct rref_ctx *ctx = join(rank);
	struct rref_future *f;

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	TG_OK(rref_rpc_sync(ctx, 1, "no.unset", NULL, RREF_DEFAULT, &f));
	for (int i = 0; i < MANY; i++) {
		TG_OK(rref_future_ref(f, (size_t)i, &many[i]));
		TG_OK(rref_to_here_async(many[i], RREF_FOREVER, &reads[i]));
	}
	rref_future_free(f);
	die_without_memory(ctx);
	for (int i = 0; i < MANY; i++)
		TG_IS(rref_future_wait(reads[i], tg_deadline() - now_ns()), -EOWNERDEAD);
	TG_CHECK(failed > 0);
	for (int i = 0; i < MANY; i++) {
		rref_future_free(reads[i]);
		rref_release(many[i]);
	}
	TG_IS(tg_stats(ctx).users, 0);
	out = 0;
	tg_until_clean(ctx, 0);
	tg_leave(ctx);
	return 0;
}

/* Returns the result of a call that brings five references and has them back. */
static int echo(struct rref_ctx *ctx, int to, struct rref *const *refs)
{
	struct rref_future *f = NULL;
	int err = rref_rpc_sync(ctx, to, "tg.echo_refs", tg_with(refs, 5), RREF_DEFAULT, &f);

	if (!err)
		rref_future_free(f);
	return err;
}

/* Each allocation fails in turn, for any purpose: nothing is left of the attempt. */
TG_TEST(shares__each_allocation, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *refs[5];
		int refused = 0;

		for (int i = 0; i < 5; i++)
			refs[i] = tg_remote(ctx, i % 2, "tg.echo", &i, sizeof(i));
		for (int round = 0; round < 200; round++) {
			int err;

			nth = round / 2 % 10 + 1;
			err = echo(ctx, round % 2, refs);
			nth = 0;
			refused += err != 0;
			/* A session that was lost with it comes again, and so do its references. */
			for (int i = 0; err && i < 5; i++) {
				rref_release(refs[i]);
				while (rref_remote(ctx, i % 2, "tg.echo", tg_bytes(&i, sizeof(i)),
						   RREF_DEFAULT, &refs[i])) {
					TG_CHECK(now_ns() < tg_deadline());
					rref_progress(ctx);
					tg_pause();
				}
			}
		}
		TG_CHECK(failed > 20 && refused > 0);
		for (int i = 0; i < 5; i++)
			rref_release(refs[i]);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

/*
 * Calls of all kinds reach a worker that has no memory. Each ends at once in an error with a
 * reason. The session stays, and so do the shared references.
 */
TG_TEST(calls__to_a_worker_without_memory, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		tg_wait_flag_serving(ctx, 0, 1);
		out = 1;
		tg_set_flag(0, 2);
		while (tg_flag(0) != 3)
			rref_progress(ctx);
		out = 0;
		tg_set_flag(0, 4);
		TG_CHECK(failed > 0);
	} else {
		static char bytes[4096], large[1 << 20];
		struct rref *shared = tg_remote(ctx, 0, "tg.echo", "kept", 4), *made, *own;
		struct rref_future *f;
		uint64_t sessions;
		struct rref_view *view;

		TG_OK(rref_new(ctx, "own", 3, &own));
		tg_expect_bytes(shared, "kept", 4);
		sessions = tg_stats(ctx).sessions;
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		for (int i = 0; i < 20; i++) {
			struct rref *refs[] = { shared, own, shared };

			TG_IS(rref_rpc_sync(ctx, 0, "tg.echo", tg_bytes(bytes, sizeof(bytes)),
					    RREF_DEFAULT, &f), -ENOMEM);
			TG_TEXT("memory");
			TG_IS(rref_rpc_sync(ctx, 0, "tg.echo", tg_bytes(large, sizeof(large)),
					    RREF_DEFAULT, &f), -ENOMEM);
			TG_TEXT("memory");
			TG_IS(rref_rpc_sync(ctx, 0, "tg.echo_refs", tg_with(refs, 3), RREF_DEFAULT,
					    &f), -ENOMEM);
			TG_TEXT("memory");
			TG_OK(rref_remote(ctx, 0, "tg.echo", tg_bytes("x", 1), RREF_DEFAULT,
					  &made));
			TG_IS(rref_to_here(made, RREF_DEFAULT, &view), -ENOMEM);
			TG_TEXT("memory");
			rref_release(made);
		}
		tg_expect_bytes(shared, "kept", 4);
		tg_set_flag(0, 3);
		tg_wait_flag_serving(ctx, 0, 4);
		TG_IS(echo(ctx, 0, (struct rref *[]){ shared, own, shared, own, own }), 0);
		TG_IS(tg_stats(ctx).sessions, sessions);
		rref_release(shared);
		rref_release(own);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

static void a_sanitizer__replaces_the_allocator(void **state)
{
	(void)state;
	print_message("skipped: a sanitizer replaces the allocator\n");
	skip();
}

int main(void)
{
	const struct CMUnitTest none[] = { cmocka_unit_test(a_sanitizer__replaces_the_allocator) };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(calls__to_a_worker_without_memory),
		cmocka_unit_test(holder_killed__forks_end_without_memory),
		cmocka_unit_test(owner_killed__reads_end_without_memory),
		cmocka_unit_test(shares__each_allocation),
	};

	return ALLOCATIONS_FAIL ? cmocka_run_group_tests(tests, NULL, NULL)
				: cmocka_run_group_tests(none, NULL, NULL);
}
