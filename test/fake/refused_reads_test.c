/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READs that are refused, between two workers over fake devices. Only READs are cut off, and made
 * possible again: calls and the session go on over the same connection. Both sides count.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "fg.h"

#define ROUNDS 100

static atomic_int over;

struct caller {
	pthread_t thread;
	struct rref_ctx *ctx;
	int to;
	unsigned long nr;
};

static void *call_on(void *arg)
{
	struct caller *c = arg;

	do {
		struct rref_future *f;
		uint32_t sent = (uint32_t)c->nr, got;

		TG_OK(rref_rpc_sync(c->ctx, c->to, "tg.echo",
				    &(struct rref_args){ .data = &sent, .length = sizeof(sent) },
				    RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, sent);
		rref_future_free(f);
		c->nr++;
	} while (!atomic_load(&over));
	return NULL;
}

static void read_refused(struct rref *bad)
{
	struct rref_view *v;

	TG_IS(rref_to_here(bad, RREF_DEFAULT, &v), -ESTALE);
}

/* Returns a reference of worker 0 to a value of worker 1, with a key that opens nothing. */
static struct rref *bad_value(struct fg *g)
{
	struct rref *r = fg_value(g, 1, 0, 100, 7);

	fg_read(r, 100, 7);
	rc_remote(r)->loc.rkey[RV_IBV] ^= 0x5a0000;
	return r;
}

static void join_two(struct fg *g, uint32_t limit_here, uint32_t limit_there)
{
	*g = (struct fg){ .world = 2 };
	fg_join(g);
	g->ctx[0]->session.score_limit = limit_here;
	g->ctx[1]->session.score_limit = limit_there;
}

/* Reads a batch with a bad reference in it. The others succeed. */
static void batch_with(struct rref *bad, struct rref *good)
{
	struct rref *r[4] = { good, bad, good, good };
	struct rref_view *v[4];
	int status[4];

	TG_IS(rref_to_here_batch(r, 4, RREF_DEFAULT, v, status), 3);
	for (int i = 0; i < 4; i++) {
		TG_IS(status[i], i == 1 ? -ESTALE : 0);
		if (i != 1)
			fg_check(v[i], 5000, 9);
	}
}

static void have_reads_refused(void)
{
	struct caller c[2];
	struct rref *bad, *good, *large;
	struct fg g;

	join_two(&g, UINT32_MAX, UINT32_MAX);
	bad = bad_value(&g);
	good = fg_value(&g, 1, 0, 5000, 9);
	large = fg_value(&g, 1, 0, 3 << 20, 11);
	atomic_store(&over, 0);
	for (int i = 0; i < 2; i++) {
		c[i] = (struct caller){ .ctx = g.ctx[i], .to = !i };
		TG_IS(pthread_create(&c[i].thread, NULL, call_on, &c[i]), 0);
	}
	for (int i = 0; i < ROUNDS; i++) {
		struct rref_future *f;
		struct rref_view *v;

		TG_OK(rref_to_here_async(large, RREF_DEFAULT, &f));
		read_refused(bad);
		fg_read(good, 5000, 9);
		batch_with(bad, good);
		TG_OK(rref_future_wait(f, RREF_FOREVER));
		TG_OK(rref_future_view(f, &v));
		fg_check(v, 3 << 20, 11);
		rref_future_free(f);
	}
	atomic_store(&over, 1);
	for (int i = 0; i < 2; i++) {
		struct rref_stats s;

		TG_IS(pthread_join(c[i].thread, NULL), 0);
		TG_CHECK(c[i].nr > 0);
		s = tg_stats(g.ctx[i]);
		TG_CHECK(s.resumed_reads >= 2 * ROUNDS - 1);
		TG_IS(s.resumed_sessions, 0);
		TG_IS(s.messages_again, 0);
		TG_IS(s.sessions, 1);
		TG_IS(s.dead_peers, 0);
		TG_IS(s.rejected_peers, 0);
	}
	rref_release(bad);
	rref_release(good);
	rref_release(large);
	fg_leave(&g);
}

static void refused__calls_go_on(void **state)
{
	(void)state;
	have_reads_refused();
}

/* Has drivers that take no request of a queue pair in error. */
static void refused__posts_in_error(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++)
		fv_knobs(i)->refuse_in_error = 1;
	have_reads_refused();
	for (unsigned i = 0; i < 2; i++)
		fv_knobs(i)->refuse_in_error = 0;
}

/* Leaves a group whose session is over, and for a while no other begins. */
static void leave_two(struct fg *g)
{
	for (int i = 0; i < 2; i++) {
		TG_OK(rref_shutdown(g->ctx[i], RREF_SHUTDOWN_NOW, RREF_DEFAULT));
		rref_free_ctx(g->ctx[i]);
	}
}

/* Has the reader give up an owner that hands out false places. */
static void refused__too_often_for_the_reader(void **state)
{
	struct rref *bad, *good;
	struct rref_view *v;
	struct fg g;

	(void)state;
	join_two(&g, RC_SCORE_LIMIT, UINT32_MAX);
	bad = bad_value(&g);
	good = fg_value(&g, 1, 0, 5000, 9);
	for (uint32_t i = 1; i < RC_SCORE_LIMIT / RC_SCORE_ACCESS; i++) {
		read_refused(bad);
		fg_read(good, 5000, 9);
	}
	TG_IS(tg_stats(g.ctx[0]).rejected_peers, 0);
	read_refused(bad);
	TG_IS(rref_to_here(good, RREF_DEFAULT, &v), -ENETRESET);
	TG_IS(tg_stats(g.ctx[0]).rejected_peers, 1);
	rref_release(bad);
	rref_release(good);
	leave_two(&g);
}

/* Has the owner give up a reader that guesses keys, or makes queue pairs without end. */
static void refused__too_often_for_the_owner(void **state)
{
	struct rref *bad, *good;
	struct rref_view *v;
	struct fg g;
	int err;

	(void)state;
	join_two(&g, UINT32_MAX, 8);
	bad = bad_value(&g);
	good = fg_value(&g, 1, 0, 5000, 9);
	for (uint32_t i = 1; i < 8; i++) {
		read_refused(bad);
		fg_read(good, 5000, 9);
	}
	TG_IS(tg_stats(g.ctx[1]).rejected_peers, 0);
	read_refused(bad);
	while (!(err = rref_to_here(good, RREF_DEFAULT, &v)))
		fg_check(v, 5000, 9); /* the owner counts in its own time */
	TG_IS(err, -ENETRESET);
	TG_IS(tg_stats(g.ctx[1]).rejected_peers, 1);
	rref_release(bad);
	rref_release(good);
	leave_two(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refused__calls_go_on),
		cmocka_unit_test(refused__posts_in_error),
		cmocka_unit_test(refused__too_often_for_the_owner),
		cmocka_unit_test(refused__too_often_for_the_reader),
	};

	return cmocka_run_group_tests_name("refused reads (fake)", tests, NULL, NULL);
}
