/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that break while something else is under way. It may be a fence, a stall, an
 * abandoned read, or memory that is to go back. It may also be references in values, or a shutdown.
 * Some workers make no progress meanwhile.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "tg_death.h"

struct how {
	int64_t peer_timeout, stall_timeout; /* 0 = the usual */
	enum rref_progress_mode mode;
	const char *faults;
};

static struct rref_ctx *join(int rank, struct how how)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	TG_IS(setenv("RREF_INJECT", how.faults ? how.faults : "", 1), 0);
	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	if (how.peer_timeout)
		o.peer_timeout = how.peer_timeout * (tg_is_shm() ? 1 : 5);
	if (how.stall_timeout)
		o.stall_timeout = how.stall_timeout;
	if (how.mode)
		o.mode = how.mode;
	TG_OK(rref_init(&o, &ctx));
	tg_add_refs(ctx);
	ctx->session.score_limit = UINT32_MAX;
	tg_meet_serving(ctx, 15);
	return ctx;
}

/* Returns a longer time where everything is slow: a worker that
 * was not stopped must not seem to be. */
static int64_t stall_ns(void)
{
	return (getenv("RREF_TEST_SLOW") ? 8 : 4) * NSEC_PER_SEC;
}

static bool break_link(struct rref_ctx *ctx, int rank)
{
	bool did;

	rc_lock(ctx);
	did = tg_break_link(ctx, rank);
	rc_unlock(ctx);
	return did;
}

static const char *state_of(struct rref_ctx *ctx, int rank)
{
	static struct rref_peer_stats s;

	s.size = sizeof(s);
	TG_OK(rref_get_peer_stats(ctx, rank, &s));
	return s.state;
}

static bool is_broken(struct rref_ctx *ctx, void *rank)
{
	return strcmp(state_of(ctx, *(int *)rank), "broken") == 0;
}

static bool has_resumed(struct rref_ctx *ctx, void *arg)
{
	return tg_stats(ctx).resumed_sessions >= *(const uint64_t *)arg;
}

static void must_resume(struct rref_ctx *ctx, uint64_t nr)
{
	TG_CHECK(tg_eventually(has_resumed, ctx, &nr));
}

static void lend_to(struct rref_ctx *ctx, int to, const char *text)
{
	struct rref *r;

	TG_OK(rref_new(ctx, text, strlen(text), &r));
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
}

static void leave_now(struct rref_ctx *ctx)
{
	tg_meet_serving(ctx, 14);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
}

/* ---- fenced ---- */

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

static bool begins_fence(struct rref_ctx *ctx, void *arg)
{
	bool yes;

	rc_lock(ctx);
	yes = ctx->peers[1].stall.fence_at != 0;
	if (yes && arg)
		*(bool *)arg = tg_break_link(ctx, 1);
	rc_unlock(ctx);
	return yes;
}

/* Stops worker 1 for too long. With or without the fence's message, it
 * finds out when it goes on, and begins anew. */
static void fenced(int rank, const char *faults, bool breaks)
{
	struct rref_ctx *ctx = join(rank,
				    (struct how){ .stall_timeout = stall_ns(),
						  .faults = rank == 0 ? faults : "" });

	if (rank == 0) {
		bool did = false;

		lend_to(ctx, 1, "lent");
		tg_stop_worker(1);
		TG_CHECK(tg_eventually(begins_fence, ctx, breaks ? &did : NULL));
		TG_IS(did, breaks);
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		TG_IS(tg_stats(ctx).resumed_sessions, 0);
		tg_set_flag(0, 1);
		tg_continue_worker(1);
		tg_wait_flag_serving(ctx, 0, 2);
	} else {
		struct rref_view *v;
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		TG_IS(rref_to_here(tg_kept(0), RREF_FOREVER, &v), -ENETRESET);
		TG_TEXT("stood still");
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &(int){ 0 }));
		TG_IS(rref_to_here(tg_kept(0), RREF_FOREVER, &v), -ENETRESET);
		TG_IS(tg_stats(ctx).resumed_sessions, 0);
		tg_drop_kept();
		for (int64_t end = tg_deadline();
		     rref_remote(ctx, 0, "tg.echo", tg_bytes("again", 5), RREF_DEFAULT, &r);
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		tg_expect_bytes(r, "again", 5);
		rref_release(r);
		tg_set_flag(0, 2);
	}
	leave_now(ctx);
}

TG_TEST(fenced__and_the_word_is_never_sent, 2)
{
	fenced(rank, "FENCED:fail", false);
	return 0;
}

TG_TEST(fenced__and_no_memory_for_the_word, 2)
{
	fenced(rank, "FENCED:nomem", false);
	return 0;
}

TG_TEST(fenced__while_its_connection_breaks, 2)
{
	fenced(rank, "", true);
	return 0;
}

/* ---- an abandoned read ---- */

static bool none_quarantined(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).quarantined == 0;
}

TG_TEST(read__given_up_while_the_connection_is_broken, 2)
{
	struct rref_ctx *ctx = join(rank, (struct how){ .peer_timeout = 10 * NSEC_PER_SEC });

	if (rank == 0) {
		struct rref *small, *large;
		struct rref_future *f[4];
		struct tg_make m = { .length = 3 << 20, .seed = 7 };
		struct rref_view *v;
		int one = 1;

		small = tg_remote(ctx, 1, "tg.echo", "small", 5);
		large = tg_ask(ctx, 1, "pub.make", m);
		tg_expect_bytes(small, "small", 5);
		TG_OK(rref_to_here(large, RREF_DEFAULT, &v));
		rref_view_free(v);
		for (int round = 0; round < 3; round++) {
			tg_stop_worker(1);
			TG_CHECK(break_link(ctx, 1));
			TG_CHECK(tg_eventually(is_broken, ctx, &one));
			TG_OK(rref_to_here_async(small, 50 * NSEC_PER_MSEC, &f[0]));
			TG_OK(rref_to_here_async(large, 50 * NSEC_PER_MSEC, &f[1]));
			TG_OK(rref_to_here_async(small, RREF_FOREVER, &f[2]));
			TG_OK(rref_to_here_async(large, RREF_FOREVER, &f[3]));
			TG_IS(rref_future_wait(f[0], RREF_FOREVER), -ETIMEDOUT);
			TG_IS(rref_future_wait(f[1], RREF_FOREVER), -ETIMEDOUT);
			TG_IS(tg_stats(ctx).quarantined, 2);
			if (round == 1) {
				TG_OK(rref_future_cancel(f[2]));
				TG_OK(rref_future_cancel(f[3]));
				TG_IS(rref_future_wait(f[2], RREF_FOREVER), -ECANCELED);
				TG_IS(rref_future_wait(f[3], RREF_FOREVER), -ECANCELED);
				TG_IS(tg_stats(ctx).quarantined, 4);
			}
			tg_continue_worker(1);
			must_resume(ctx, (uint64_t)round + 1);
			if (round != 1) {
				TG_OK(rref_future_wait(f[2], RREF_FOREVER));
				TG_OK(rref_future_wait(f[3], RREF_FOREVER));
				TG_OK(rref_future_view(f[3], &v));
				TG_CHECK(rref_view_length(v) == m.length &&
					 tg_filled(rref_view_data(v), m.length, 0, m.seed));
				rref_view_free(v);
			}
			TG_CHECK(tg_eventually(none_quarantined, ctx, NULL));
			for (int i = 0; i < 4; i++)
				rref_future_free(f[i]);
			/* A read that stood in for a late one may still be under way. */
			while (tg_stats(ctx).landing_bytes) {
				TG_CHECK(now_ns() < tg_deadline());
				tg_pause();
			}
		}
		rref_release(small);
		rref_release(large);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- memory that is to go back ---- */

static _Atomic int back;

static void came_back(void *arg)
{
	(void)arg;
	atomic_fetch_add(&back, 1);
}

static bool is_back(struct rref_ctx *ctx, void *nr)
{
	(void)ctx;
	return atomic_load(&back) >= *(int *)nr;
}

/* The last user gives it up while the connection is broken, or has
 * gone before the connection is made again. */
DEATH_TEST(wrapped__given_up_while_the_connection_is_broken, 3, 1 << 2)
{
	struct rref_ctx *ctx = join(rank, (struct how){ .peer_timeout = 10 * NSEC_PER_SEC });

	if (rank == 0) {
		struct rref_mem *mem;
		struct rref *r;
		void *at;
		int one = 1, two = 2;

		TG_OK(rref_mem_alloc(ctx, 1 << 20, &mem, &at));
		tg_fill(at, 1 << 20, 5);
		for (int i = 1; i <= 2; i++) {
			TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 1 << 20), came_back,
					NULL, &r));
			TG_OK(rref_rpc_sync(ctx, i, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
			rref_release(r);
		}
		TG_CHECK(break_link(ctx, 1));
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		TG_CHECK(tg_eventually(is_back, ctx, &one));
		TG_IS(atomic_load(&back), 1);
		TG_IS(tg_stats(ctx).resumed_sessions, 1);
		TG_IS(rref_mem_deregister(mem), -EBUSY);
		tg_stop_worker(2);
		TG_CHECK(break_link(ctx, 2));
		TG_CHECK(tg_eventually(is_broken, ctx, &two));
		TG_IS(atomic_load(&back), 1); /* the peer may still read the memory */
		TG_IS(kill(tg_current->shared->pid[2], SIGKILL), 0);
		TG_CHECK(tg_eventually(is_back, ctx, &two));
		TG_IS(atomic_load(&back), 2);
		TG_OK(rref_mem_deregister(mem));
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
	}
	tg_leave(ctx);
	return 0;
}

/* ---- references in values ---- */

TG_TEST(nested__taken_while_the_connection_breaks, 2)
{
	struct rref_ctx *ctx = join(rank, (struct how){ .peer_timeout = NSEC_PER_SEC });
	enum { NR = 20 };

	if (rank == 1) {
		struct rref *inner[NR], *outer;

		for (int i = 0; i < NR; i++)
			TG_OK(rref_new(ctx, &(char){ (char)('a' + i) }, 1, &inner[i]));
		TG_OK(rref_new_value(
			ctx, TG_VALUE(.data = "outer", .length = 5, .refs = inner, .nr_refs = NR),
			&outer));
		TG_OK(rref_rpc_sync(ctx, 0, "keep", tg_with(&outer, 1), RREF_DEFAULT, NULL));
		for (int i = 0; i < NR; i++)
			rref_release(inner[i]);
		rref_release(outer);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		tg_until_clean(ctx, 1);
	} else {
		uint64_t breaks = 0;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < tg_scale(30); i++) {
			struct rref *got[NR];
			struct rref_view *v;
			size_t n = i % 2 ? NR : 2;

			TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
			TG_IS(rref_view_nr_refs(v), NR);
			breaks += break_link(ctx, 1);
			TG_OK(rref_view_refs(v, 0, n, RREF_DEFAULT, got));
			if (i % 3 == 0)
				breaks += break_link(ctx, 1);
			for (size_t k = 0; k < n; k++) {
				tg_expect_bytes(got[k], &(char){ (char)('a' + k) }, 1);
				rref_release(got[k]);
			}
			rref_view_free(v);
		}
		must_resume(ctx, 1);
		TG_CHECK(breaks > 0);
		tg_drop_kept();
		tg_set_flag(0, 2);
		tg_until_clean(ctx, 1);
		TG_IS(tg_stats(ctx).sessions, 1);
	}
	tg_meet_serving(ctx, 13);
	tg_finish(ctx);
	return 0;
}

/* ---- a listener that is busy ---- */

/* Opens connections that stay silent, as many as the other takes at most (verbs/shm/accept.c). */
static void crowd(struct rref_ctx *ctx, int rank, int *sock, int nr)
{
	const struct rv_addr *a = &ctx->members[rank].addr[RV_SHM];
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	size_t length = a->len - 26u;

	memcpy(sun.sun_path + 1, a->bytes + 26, length);
	for (int i = 0; i < nr; i++) {
		sock[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		TG_CHECK(sock[i] >= 0);
		TG_IS(connect(sock[i], (struct sockaddr *)&sun,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)),
		      0);
	}
}

/* A peer finds the other's place taken by strangers. It does
 * not conclude that the other is gone. */
TG_TEST(broken__while_strangers_crowd_the_listeners, 2)
{
	enum { NR = 64 };
	struct rref_ctx *ctx = join(rank, (struct how){ .peer_timeout = 10 * NSEC_PER_SEC });
	int sock[NR];

	if (tg_is_shm()) {
		struct rref *r = tg_remote(ctx, 1 - rank, "tg.echo", "x", 1);

		tg_expect_bytes(r, "x", 1);
		tg_meet_serving(ctx, 10);
		crowd(ctx, 1 - rank, sock, NR);
		tg_meet_serving(ctx, 11);
		if (rank == 0)
			TG_CHECK(break_link(ctx, 1));
		must_resume(ctx, 1);
		tg_expect_bytes(r, "x", 1);
		TG_IS(tg_stats(ctx).sessions, 1);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		for (int i = 0; i < NR; i++)
			close(sock[i]);
		rref_release(r);
	}
	tg_meet_serving(ctx, 13);
	tg_finish(ctx);
	return 0;
}

/* ---- no progress ---- */

/* The silence is longer than the time for a broken session. A side that
 * did not look has no reason to give up. */
TG_TEST(broken__without_progress_on_either_side, 2)
{
	struct rref_ctx *ctx = join(rank,
				    (struct how){ .peer_timeout = 300 * NSEC_PER_MSEC,
						  .mode = RREF_PROGRESS_MANUAL });
	int other = 1 - rank;

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "x", 1);

		tg_expect_bytes(r, "x", 1);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_CHECK(break_link(ctx, 1));
		while (!is_broken(ctx, &other))
			rref_progress(ctx);
		tg_set_flag(0, 3);
		/* without the library */
		usleep((useconds_t)(ctx->session.peer_timeout * 3 / 2 / 1000));
		tg_meet(0);
		tg_expect_bytes(r, "x", 1);
		TG_IS(tg_stats(ctx).sessions, 1);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		TG_IS(tg_stats(ctx).resumed_sessions, 1);
		rref_release(r);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		tg_set_flag(0, 2);
		tg_wait_flag(0, 3);
		while (!is_broken(ctx, &other))
			rref_progress(ctx);
		tg_meet(0);
	}
	tg_meet_serving(ctx, 13);
	tg_finish(ctx);
	return 0;
}

static bool sleeps_long(struct rref_ctx *ctx, void *arg)
{
	bool kicked = false;

	rc_lock(ctx);
	if (at_load_sc(&ctx->sleep.sleeping) && !at_load(&ctx->sleep.kicked) &&
	    ctx->sleep.wake_at > now_ns() + 50 * NSEC_PER_MSEC) {
		rc_resume_break(ctx, &ctx->peers[1], -ECONNRESET, "a test wants it");
		kicked = at_load(&ctx->sleep.kicked);
		*(bool *)arg = kicked;
	}
	rc_unlock(ctx);
	return kicked || rc_state_broken(ctx->peers[1].state);
}

/* A thread of the program finds the broken connection and leaves. The
 * poller sleeps, and must do the rest. */
TG_TEST(broken__while_the_poller_sleeps, 2)
{
	struct rref_ctx *ctx = join(rank, (struct how){ .peer_timeout = 10 * NSEC_PER_SEC });

	if (rank == 0 && tg_mode() == RREF_PROGRESS_AUTO) {
		bool kicked = false;

		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		TG_CHECK(tg_eventually(sleeps_long, ctx, &kicked));
		TG_CHECK(kicked);
		must_resume(ctx, 1);
	}
	tg_meet_serving(ctx, 13);
	tg_finish(ctx);
	return 0;
}

/* ---- a shutdown ---- */

struct breaker {
	struct rref_ctx *ctx;
	pthread_t thread;
	_Atomic int stop;
	int breaks;
};

static void *break_all_the_time(void *arg)
{
	struct breaker *b = arg;

	while (!atomic_load(&b->stop)) {
		b->breaks += break_link(b->ctx, b->ctx->rank ? 0 : 1);
		usleep(tg_is_shm() ? 500 : 100000);
	}
	return NULL;
}

TG_TEST(broken__during_the_shutdown, 2)
{
	for (int i = 0; i < tg_scale(30); i++) {
		struct breaker b = { 0 };
		struct rref *r;

		b.ctx = join(rank, (struct how){ .peer_timeout = NSEC_PER_SEC });
		r = tg_remote(b.ctx, 1 - rank, "tg.echo", "x", 1);
		tg_expect_bytes(r, "x", 1);
		rref_release(r);
		if (rank == 0)
			tg_free_place(tg_current->shared->bytes, 64);
		TG_IS(pthread_create(&b.thread, NULL, break_all_the_time, &b), 0);
		TG_OK(rref_shutdown(b.ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
		atomic_store(&b.stop, 1);
		TG_IS(pthread_join(b.thread, NULL), 0);
		rref_free_ctx(b.ctx);
		tg_meet(0);
		memcpy(tg_current->rendezvous, tg_current->shared->bytes,
		       sizeof(tg_current->rendezvous));
		tg_meet(1);
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fenced__and_the_word_is_never_sent),
		cmocka_unit_test(fenced__and_no_memory_for_the_word),
		cmocka_unit_test(fenced__while_its_connection_breaks),
		cmocka_unit_test(read__given_up_while_the_connection_is_broken),
		cmocka_unit_test(wrapped__given_up_while_the_connection_is_broken),
		cmocka_unit_test(nested__taken_while_the_connection_breaks),
		cmocka_unit_test(broken__while_strangers_crowd_the_listeners),
		cmocka_unit_test(broken__without_progress_on_either_side),
		cmocka_unit_test(broken__while_the_poller_sleeps),
		cmocka_unit_test(broken__during_the_shutdown),
	};

	return cmocka_run_group_tests_name("resume_meets", tests, NULL, NULL);
}
