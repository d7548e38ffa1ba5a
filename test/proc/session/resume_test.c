/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that break although both workers live. The session goes on over another one, and only
 * the counters show it. They break as in real use. A READ with a wrong key ends the queue pairs of
 * both sides (over shm, the connection).
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "tg_death.h"

#define NR_IDS 65536

static _Atomic uint32_t seen[NR_IDS]; /* the callee's runs of each call */

static int count(struct rref_call *call, void *arg)
{
	uint32_t id;

	(void)arg;
	if (rref_call_length(call) < sizeof(id))
		return -EINVAL;
	memcpy(&id, rref_call_data(call), sizeof(id));
	atomic_fetch_add(&seen[id % NR_IDS], 1);
	return rref_call_reply(call, &(struct rref_args){ .data = &id, .length = sizeof(id) });
}

static const struct rref_function counting = { .name = "count_id", .handler = count };

static struct rref_ctx *join(int rank, uint32_t score_limit, int64_t peer_timeout)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	/* Handshakes of an emulated device take longer. */
	o.peer_timeout = peer_timeout * (tg_is_shm() ? 1 : 5);
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_register(ctx, &counting));
	tg_add_refs(ctx);
	tg_meet_serving(ctx, 15); /* all can serve before the first call */
	if (score_limit)
		ctx->session.score_limit = score_limit;
	return ctx;
}

static bool break_link(struct rref_ctx *ctx, int rank)
{
	bool did;

	rc_lock(ctx);
	did = tg_break_link(ctx, rank);
	rc_unlock(ctx);
	return did;
}

/* Breaks the connection, or over ibv its READs alone. Returns whether it broke the connection. */
static bool harm(struct rref_ctx *ctx, int rank, bool its_reads)
{
	bool did = false;

	rc_lock(ctx);
	if (its_reads && !tg_is_shm())
		tg_refuse_a_read(ctx, rank);
	else
		did = tg_break_link(ctx, rank);
	rc_unlock(ctx);
	return did;
}

static uint64_t resumed(struct rref_ctx *ctx)
{
	return tg_stats(ctx).resumed_sessions;
}

static bool has_resumed(struct rref_ctx *ctx, void *arg)
{
	return resumed(ctx) >= *(const uint64_t *)arg;
}

static void must_resume(struct rref_ctx *ctx, uint64_t nr)
{
	TG_CHECK(tg_eventually(has_resumed, ctx, &nr));
}

static void call_count(struct rref_ctx *ctx, int to, uint32_t id)
{
	struct rref_future *f;
	uint32_t got;

	TG_OK(rref_rpc_sync(ctx, to, "count_id",
			    &(struct rref_args){ .data = &id, .length = sizeof(id) }, RREF_DEFAULT,
			    &f));
	tg_result(f, &got, sizeof(got));
	TG_IS(got, id);
	rref_future_free(f);
}

/* A call, a read, a share and a break, one after the other. Everything
 * from before the break is there after it. */
TG_TEST(broken__and_nothing_is_lost, 2)
{
	struct rref_ctx *ctx = join(rank, UINT32_MAX, NSEC_PER_SEC);
	int n = tg_is_shm() ? tg_scale(50) : 12;

	if (rank == 0) {
		struct rref *theirs, *mine;
		struct rref_future *f;
		unsigned sum;

		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "theirs", .length = 6 },
				  RREF_DEFAULT, &theirs));
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		tg_expect_bytes(theirs, "theirs", 6);
		for (int i = 0; i < n; i++) {
			TG_CHECK(break_link(ctx, 1));
			if (i % 4 == 0) {
				tg_expect_bytes(theirs, "theirs", 6);
			} else if (i % 4 == 1) {
				call_count(ctx, 1, (uint32_t)i);
			} else if (i % 4 == 2) {
				TG_OK(rref_rpc_sync(ctx, 1, "tg.read",
						    &(struct rref_args){ .refs = &mine,
									 .nr_refs = 1 },
						    RREF_DEFAULT, &f));
				tg_result(f, &sum, sizeof(sum));
				TG_IS(sum, 'm');
				rref_future_free(f);
			}
			must_resume(ctx, (uint64_t)i + 1);
		}
		struct rref_stats s = tg_stats(ctx);

		TG_IS(s.sessions, 1);
		TG_IS(s.dead_peers, 0);
		TG_IS(s.resumed_sessions, n);
		rref_release(theirs);
		rref_release(mine);
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- under load ---- */

struct load {
	struct rref_ctx *ctx;
	int to;
	uint32_t first, nr;          /* ids of its calls */
	struct rref *theirs, *large; /* owned by `to` */
	uint64_t rounds;
};

static _Atomic int at_work, over;

#define LARGE ((size_t)1 << 20)

/* Calls, reads in one piece, in many and in a batch, shares, and sends
 * payloads, until the others stop breaking. */
static void *work(void *arg)
{
	struct load *l = arg;
	static _Thread_local unsigned char big[20000];

	atomic_fetch_add(&at_work, 1);
	do {
		struct rref *r, *batch[8];
		struct rref_view *v, *views[8];
		struct rref_future *f;
		int status[8];
		uint32_t id = l->first + l->nr++;
		unsigned sum;

		call_count(l->ctx, l->to, id);
		tg_expect_bytes(l->theirs, "theirs", 6);
		TG_OK(rref_to_here(l->large, RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), LARGE);
		TG_CHECK(tg_filled(rref_view_data(v), LARGE, 0, (unsigned)l->to));
		rref_view_free(v);
		for (int i = 0; i < 8; i++)
			batch[i] = l->theirs;
		TG_IS(rref_to_here_batch(batch, 8, RREF_DEFAULT, views, status), 8);
		for (int i = 0; i < 8; i++) {
			TG_CHECK(memcmp(rref_view_data(views[i]), "theirs", 6) == 0);
			rref_view_free(views[i]);
		}
		TG_OK(rref_new(l->ctx, "x", 1, &r));
		TG_OK(rref_rpc_sync(l->ctx, l->to, "tg.read",
				    &(struct rref_args){ .refs = &r, .nr_refs = 1 }, RREF_DEFAULT,
				    &f));
		tg_result(f, &sum, sizeof(sum));
		TG_IS(sum, 'x');
		rref_future_free(f);
		rref_release(r);
		tg_fill(big, sizeof(big), id);
		TG_OK(rref_rpc_sync(l->ctx, l->to, "tg.echo",
				    &(struct rref_args){ .data = big, .length = sizeof(big) },
				    RREF_DEFAULT, &f));
		const void *data;
		size_t length;

		TG_OK(rref_future_data(f, &data, &length));
		TG_CHECK(length == sizeof(big) && tg_filled(data, length, 0, id));
		rref_future_free(f);
		l->rounds++;
	} while (!atomic_load(&over));
	return NULL;
}

static struct rref *own_large;

static int get_large(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_reply(call, &(struct rref_args){ .refs = &own_large, .nr_refs = 1 });
}

static const struct rref_function getting = { .name = "large", .handler = get_large };

#define THREADS 2
#define F_NR 8 /* flags: the calls of each rank and thread */

struct storm {
	int world, breaks;
	const char *faults; /* faults in sent messages: core/session/inject.h */
};

/* Breaks all connections from all workers, at any moment, while all of them work together. */
static int storm(int rank, void *arg)
{
	const struct storm *storm = arg;
	int world = storm->world,
	    breaks = tg_is_shm() ? tg_scale(storm->breaks) : storm->breaks / 3, did = 0;

	TG_OK(setenv("RREF_INJECT", storm->faults, 1));
	struct rref_ctx *ctx = join(rank, UINT32_MAX, 2 * NSEC_PER_SEC);
	struct load load[THREADS] = { 0 };
	pthread_t thread[THREADS];
	void *data;
	unsigned seed = (unsigned)now_ns() + (unsigned)rank;

	TG_OK(rref_register(ctx, &getting));
	TG_OK(rref_alloc(ctx, LARGE, &own_large, &data));
	tg_fill(data, LARGE, (unsigned)rank);
	TG_OK(rref_set(own_large));
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < THREADS; i++) {
		struct load *l = &load[i];
		struct rref_future *f;

		l->ctx = ctx;
		l->to = (rank + 1 + i % (world - 1)) % world;
		l->first = (uint32_t)(rank * THREADS + i) * (NR_IDS / 16);
		TG_OK(rref_remote(ctx, l->to, "tg.echo",
				  &(struct rref_args){ .data = "theirs", .length = 6 },
				  RREF_DEFAULT, &l->theirs));
		TG_OK(rref_rpc_sync(ctx, l->to, "large", NULL, RREF_DEFAULT, &f));
		TG_OK(rref_future_ref(f, 0, &l->large));
		rref_future_free(f);
		TG_IS(pthread_create(&thread[i], NULL, work, l), 0);
	}
	/* Wait for all threads: on a busy machine the test could end before some begin. */
	while (atomic_load(&at_work) < THREADS)
		usleep(1000);
	for (int64_t end = now_ns() + 60 * NSEC_PER_SEC; did < breaks && now_ns() < end;) {
		int to = (rank + 1 + (int)(rand_r(&seed) % (unsigned)(world - 1))) % world;

		did += harm(ctx, to, rand_r(&seed) % 2);
		usleep((useconds_t)(rand_r(&seed) % (tg_is_shm() ? 5000 : 200000)));
	}
	atomic_store(&over, 1);
	for (int i = 0; i < THREADS; i++) {
		TG_IS(pthread_join(thread[i], NULL), 0);
		rref_release(load[i].theirs);
		rref_release(load[i].large);
		TG_CHECK(load[i].nr < NR_IDS / 16);
		tg_current->shared->flag[F_NR + rank * THREADS + i] = (int)load[i].nr;
	}
	tg_meet_serving(ctx, 1);
	/* All have finished: each call ran once, at its callee. */
	for (int from = 0; from < world; from++)
		for (int i = 0; i < THREADS; i++) {
			if ((from + 1 + i % (world - 1)) % world != rank)
				continue;
			uint32_t first = (uint32_t)(from * THREADS + i) * (NR_IDS / 16);
			int nr = tg_flag(F_NR + from * THREADS + i);

			TG_CHECK(nr > 0);
			for (int k = 0; k < nr; k++)
				TG_IS(seen[first + (uint32_t)k], 1);
		}
	struct rref_stats s = tg_stats(ctx);

	if (getenv("RREF_TEST_LOG"))
		fprintf(stderr,
			"[%d] %d breaks: %lu resumed, messages %lu again, %lu not, reads %lu "
			"again, %lu rounds\n",
			rank, did, (unsigned long)s.resumed_sessions,
			(unsigned long)s.messages_again, (unsigned long)s.messages_not_again,
			(unsigned long)s.reads_again,
			(unsigned long)(load[0].rounds + load[1].rounds));
	TG_CHECK(s.resumed_sessions > 0);
	TG_IS(s.sessions, world - 1);
	TG_IS(s.dead_peers, 0);
	TG_IS(s.quarantined, 0);
	rref_release(own_large);
	tg_until_clean(ctx, rank);
	tg_meet_serving(ctx, 2);
	tg_finish(ctx);
	return 0;
}

static void run_storm(struct storm s)
{
	struct tg_group g = { .world = s.world, .timeout_s = 120 };

	assert_int_equal(tg_run_group(&g, storm, &s), 0);
}

static void broken__under_load(void **state)
{
	(void)state;
	run_storm((struct storm){ .world = 2, .breaks = 150, .faults = "" });
}

static void broken__under_load_of_three(void **state)
{
	(void)state;
	run_storm((struct storm){ .world = 3, .breaks = 100, .faults = "" });
}

/* Adds messages that fail to be sent, come late, twice, or in another order. */
static void broken__under_load_and_other_faults(void **state)
{
	(void)state;
	run_storm((struct storm){ .world = 2,
				  .breaks = 60,
				  .faults = "CALL:fail=5,REPLY:fail=5,DELETE:fail=5,PROTO:dup=200,"
					    "PROTO:reorder=2ms,REPLY:reorder=2ms" });
}

/* ---- a bad reference ---- */

/* Gives the reference a wrong key. */
static void spoil(struct rref *r)
{
	for (int k = 0; k < RV_NR_KINDS; k++)
		rc_remote(r)->loc.rkey[k] ^= 0x5a0000;
}

/* A bad read among good ones, in flight together. The bad one gets its own
 * error, and the good ones get their values. */
TG_TEST(bad_reference__fails_alone, 2)
{
	struct rref_ctx *ctx = join(rank, UINT32_MAX, NSEC_PER_SEC);

	if (rank == 0) {
		enum { NR = 24 };
		struct rref *good[NR], *bad;
		char text[NR][8];

		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "bad", .length = 3 }, RREF_DEFAULT,
				  &bad));
		tg_expect_bytes(bad, "bad", 3);
		spoil(bad);
		for (int i = 0; i < NR; i++) {
			snprintf(text[i], sizeof(text[i]), "good%d", i);
			TG_OK(rref_remote(ctx, 1, "tg.echo",
					  &(struct rref_args){ .data = text[i],
							       .length = strlen(text[i]) },
					  RREF_DEFAULT, &good[i]));
			tg_expect_bytes(good[i], text[i], strlen(text[i]));
		}
		for (int round = 0; round < tg_scale(40); round++) {
			struct rref *refs[NR + 1];
			struct rref_view *views[NR + 1];
			int status[NR + 1], at = round % (NR + 1);

			for (int i = 0; i <= NR; i++)
				refs[i] = i == at ? bad : good[i - (i > at)];
			TG_IS(rref_to_here_batch(refs, NR + 1, RREF_DEFAULT, views, status), NR);
			for (int i = 0; i <= NR; i++) {
				int k = i - (i > at);

				if (i == at) {
					TG_IS(status[i], -ESTALE);
					continue;
				}
				TG_OK(status[i]);
				TG_CHECK(rref_view_length(views[i]) == strlen(text[k]) &&
					 memcmp(rref_view_data(views[i]), text[k],
						strlen(text[k])) == 0);
				rref_view_free(views[i]);
			}
			/* The fast way alone works, too. */
			struct rref_view *v;

			TG_IS(rref_to_here(bad, RREF_DEFAULT, &v), -ESTALE);
			tg_expect_bytes(good[0], text[0], strlen(text[0]));
		}
		TG_IS(tg_stats(ctx).sessions, 1);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		TG_CHECK(resumed(ctx) + tg_stats(ctx).resumed_reads > 0);
		for (int i = 0; i < NR; i++)
			rref_release(good[i]);
		rref_release(bad);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

static bool is_down(struct rref_ctx *ctx, void *arg)
{
	struct rref_peer_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_peer_stats(ctx, *(int *)arg, &s));
	return strcmp(s.state, "down") == 0;
}

/* So many errors in so short a time are no accident. The session
 * ends, and no other begins for a while. */
TG_TEST(bad_references__too_many_end_the_session, 2)
{
	struct rref_ctx *ctx = join(rank, 0, NSEC_PER_SEC);

	if (rank == 0) {
		struct rref *good, *bad, *mine;
		struct rref_view *v;
		uint32_t n = RC_SCORE_LIMIT / RC_SCORE_ACCESS;

		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "bad", .length = 3 }, RREF_DEFAULT,
				  &bad));
		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "good", .length = 4 }, RREF_DEFAULT,
				  &good));
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&mine, 1), RREF_DEFAULT, NULL));
		rref_release(mine);
		tg_expect_bytes(bad, "bad", 3);
		tg_expect_bytes(good, "good", 4);
		spoil(bad);
		for (uint32_t i = 1; i < n; i++) {
			TG_IS(rref_to_here(bad, RREF_DEFAULT, &v), -ESTALE);
			tg_expect_bytes(good, "good", 4);
		}
		TG_IS(tg_stats(ctx).rejected_peers, 0);
		TG_IS(rref_to_here(bad, RREF_DEFAULT, &v), -ESTALE);
		TG_IS(rref_to_here(good, RREF_DEFAULT, &v), -ENETRESET);
		TG_IS(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EOWNERDEAD);
		TG_IS(tg_stats(ctx).rejected_peers, 1);
		rref_release(good);
		rref_release(bad);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	if (rank == 1) {
		struct rref_view *v;
		int zero = 0;

		/* The other side learns that it was cut off, not that a worker died. */
		TG_CHECK(tg_eventually(is_down, ctx, &zero));
		TG_IS(rref_to_here(tg_kept(0), RREF_DEFAULT, &v), -ENETRESET);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		tg_drop_kept();
	}
	tg_meet_serving(ctx, 0);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
	return 0;
}

/* ---- a peer that stays away ---- */

static bool is_broken(struct rref_ctx *ctx, void *arg)
{
	struct rref_peer_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_peer_stats(ctx, *(int *)arg, &s));
	return strcmp(s.state, "broken") == 0;
}

/* A peer stands still while its connection is broken, and is then
 * killed. Operations end in bounded time. */
DEATH_TEST(broken__and_the_peer_is_killed, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank, 0, 4 * NSEC_PER_SEC);

	if (rank == 0) {
		struct rref_future *call, *read;
		struct rref *r;
		int one = 1;
		char dump[4096];

		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "x", .length = 1 }, RREF_DEFAULT,
				  &r));
		tg_expect_bytes(r, "x", 1);
		tg_stop_worker(1);
		TG_CHECK(break_link(ctx, 1));
		TG_CHECK(tg_eventually(is_broken, ctx, &one));
		TG_OK(rref_rpc_async(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, &call));
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &read));
		TG_OK(rref_dump(ctx, dump, sizeof(dump)));
		TG_CHECK(strstr(dump, "broken"));
		TG_IS(rref_future_test(call), 0);
		TG_IS(rref_future_test(read), 0);
		TG_IS(kill(tg_current->shared->pid[1], SIGKILL), 0);
		TG_IS(rref_future_wait(call, TG_LONG_NS), -EOWNERDEAD);
		TG_IS(rref_future_wait(read, TG_LONG_NS), -EOWNERDEAD);
		rref_future_free(call);
		rref_future_free(read);
		rref_release(r);
		TG_IS(tg_stats(ctx).dead_peers, 1);
		TG_IS(resumed(ctx), 0);
		tg_until_clean(ctx, 0);
		tg_leave(ctx);
		return 0;
	}
	for (;; usleep(1000))
		rref_progress(ctx);
}

/* A worker stands still for longer than its peers wait. They give it up, and it learns that it was
 * cut off when it comes back. */
TG_TEST(broken__for_too_long, 2)
{
	struct rref_ctx *ctx = join(rank, 0, NSEC_PER_SEC);
	int other = 1 - rank;

	if (rank == 0) {
		struct rref *r, *mine;
		struct rref_view *v;

		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "x", .length = 1 }, RREF_DEFAULT,
				  &r));
		tg_expect_bytes(r, "x", 1);
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&mine, 1), RREF_DEFAULT, NULL));
		tg_stop_worker(1);
		TG_CHECK(break_link(ctx, 1));
		TG_CHECK(tg_eventually(is_down, ctx, &other));
		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EOWNERDEAD);
		tg_continue_worker(1);
		rref_release(r);
		rref_release(mine);
	} else {
		struct rref_view *v;

		while (!tg_nr_kept()) {
			rref_progress(ctx);
			usleep(1000);
		}
		TG_CHECK(tg_eventually(is_down, ctx, &other));
		TG_IS(rref_to_here(tg_kept(0), RREF_DEFAULT, &v), -ENETRESET);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		tg_drop_kept();
	}
	tg_meet_serving(ctx, 0);
	tg_until_clean(ctx, rank);
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(broken__and_nothing_is_lost),
		cmocka_unit_test(broken__under_load),
		cmocka_unit_test(broken__under_load_of_three),
		cmocka_unit_test(broken__under_load_and_other_faults),
		cmocka_unit_test(bad_reference__fails_alone),
		cmocka_unit_test(bad_references__too_many_end_the_session),
		cmocka_unit_test(broken__and_the_peer_is_killed),
		cmocka_unit_test(broken__for_too_long),
	};

	return cmocka_run_group_tests_name("resume", tests, NULL, NULL);
}
