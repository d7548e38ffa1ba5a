/* SPDX-License-Identifier: Apache-2.0 */
/* Failures: lost references, and workers that die. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

TG_TEST(c170_171_a_failed_reference_as_argument, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *bad[2] = { tg_remote(ctx, 1, "no.such", NULL, 0),
					tg_ask(ctx, 1, "pub.alloc",
					       (struct tg_make){ .length = 1 }) };
		static const int want[2] = { -ENOSYS, -ENODATA };
		static const char *const words[2] = { "no.such", "no value:\nit failed" };
		struct rref *good = tg_remote(ctx, 2, "tg.echo", "g", 1), *made = NULL;

		tg_ask(ctx, 1, "pub.fail", (struct tg_make){ .err = -ENODATA });
		tg_expect_bytes(good, "g", 1);
		for (int i = 0; i < 2; i++)
			tg_expect_error(bad[i], want[i], words[i]);
		uint64_t sent = tg_stats(ctx).messages_sent;

		for (int i = 0; i < 2; i++)
			for (int to = 0; to < 3; to++) {
				struct rref *refs[2] = { good, bad[i] };
				struct rref_future *f = NULL;

				TG_IS(rref_rpc_sync(ctx, to, "tg.read", tg_with(refs, 2),
						    RREF_DEFAULT, &f),
				      want[i]);
				TG_TEXT(words[i]);
				TG_IS(rref_rpc_async(ctx, to, "tg.read", tg_with(refs, 2),
						     RREF_DEFAULT, &f),
				      want[i]);
				TG_TEXT(words[i]);
				TG_IS(rref_remote(ctx, to, "tg.read", tg_with(refs, 2),
						  RREF_DEFAULT, &made),
				      want[i]);
				TG_TEXT(words[i]);
				TG_CHECK(!f && !made);
			}
		TG_IS(tg_stats(ctx).messages_sent, sent);
		TG_IS(tg_stats(ctx).pending_children, 0);
		for (int i = 0; i < 2; i++)
			rref_release(bad[i]);
		rref_release(good);
		tg_ask(ctx, 1, "pub.drop", (struct tg_make){ 0 });
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- a worker dies ---- */

DEATH_TEST(c185_a_user_is_killed, 3, 1 << 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int one = 1;

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *r[50];

		for (int i = 0; i < 50; i++) {
			TG_OK(rref_new(ctx, &i, sizeof(i), &r[i]));
			TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r[i], 1), RREF_DEFAULT, NULL));
		}
		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(&r[7], 1), RREF_DEFAULT, NULL));
		TG_IS(tg_stats(ctx).forks, 51);
		for (int i = 0; i < 50; i++)
			rref_release(r[i]);
		TG_IS(tg_stats(ctx).owners, 50);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		/* References of the living worker stay; the rest goes. */
		for (int64_t end = now_ns() + TG_LONG_NS; tg_stats(ctx).owners != 1; usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		TG_IS(tg_stats(ctx).forks, 1);
		TG_IS(tg_stats(ctx).value_bytes, 64 + sizeof(int));
		TG_IS(tg_stats(ctx).dead_peers, 1);
		TG_OK(rref_rpc_sync(ctx, 2, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 0);
	}
	tg_leave(ctx);
	return 0;
}

struct reader {
	struct rref *r;
	int err;
};

static void *read_for_ever(void *arg)
{
	struct reader *rd = arg;
	struct rref_view *v;

	while ((rd->err = rref_to_here(rd->r, RREF_DEFAULT, &v)) == 0) {
		TG_CHECK(memcmp(rref_view_data(v), "ready", 5) == 0);
		rref_view_free(v);
	}
	return NULL;
}

DEATH_TEST(c185_an_owner_is_killed, 3, 1 << 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	int one = 1;

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct rref *ready = tg_remote(ctx, 1, "tg.echo", "ready", 5),
			    *unready = tg_remote(ctx, 1, "tg.hold", "x", 1);
		struct rref *theirs = tg_remote(ctx, 2, "tg.echo", "theirs", 6), *none = NULL;
		struct rref_future *f[3], *g = NULL;
		struct rref_error e = { .size = sizeof(e) };
		struct rref_view *v = NULL;
		struct reader rd[2];
		pthread_t t[2];

		tg_expect_bytes(ready, "ready", 5);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", tg_with(&theirs, 1), RREF_FOREVER, &f[0]));
		TG_OK(rref_to_here_async(unready, RREF_FOREVER, &f[1]));
		TG_OK(rref_creation(unready, &f[2]));
		tg_until_held(ctx, 1, 2);
		for (int i = 0; i < 2; i++) {
			rd[i].r = ready;
			TG_IS(pthread_create(&t[i], NULL, read_for_ever, &rd[i]), 0);
		}
		usleep(5000);
		tg_set_flag(0, 1);
		/* The waiting reads ... */
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_future_wait(f[i], TG_LONG_NS), -EOWNERDEAD);
			TG_IS(rref_future_test(f[i]), 1);
			TG_OK(rref_future_error(f[i], &e));
			TG_CHECK(e.err == -EOWNERDEAD && e.peer == 1 && e.text[0]);
			rref_future_free(f[i]);
		}
		for (int i = 0; i < 2; i++) {
			pthread_join(t[i], NULL);
			TG_IS(rd[i].err, -EOWNERDEAD);
		}
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &one));
		/* ... and all later reads. */
		for (int i = 0; i < 50; i++) {
			TG_IS(rref_to_here(i % 2 ? ready : unready, RREF_FOREVER, &v), -EOWNERDEAD);
			TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_FOREVER, NULL),
			      -EOWNERDEAD);
			int err = rref_remote(ctx, 1, "tg.echo", NULL, RREF_FOREVER, &none);

			if (err == 0) {
				TG_IS(rref_to_here(none, RREF_FOREVER, &v), -EOWNERDEAD);
				rref_release(none);
			} else {
				TG_IS(err, -EOWNERDEAD);
			}
			/* time for its attempts to connect again */
			usleep(5000 * (i % 2));
		}
		TG_IS(rref_rpc_async(ctx, 2, "tg.read", tg_with(&ready, 1), RREF_FOREVER, &g),
		      -EOWNERDEAD);
		TG_CHECK(!v && !g);
		/* The others work on. */
		tg_expect_bytes(theirs, "theirs", 6);
		TG_OK(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&theirs, 1), RREF_DEFAULT, NULL));
		rref_release(ready);
		rref_release(unready);
		rref_release(theirs);
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 2);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_leave(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c170_171_a_failed_reference_as_argument),
		cmocka_unit_test(c185_a_user_is_killed),
		cmocka_unit_test(c185_an_owner_is_killed),
	};

	return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
