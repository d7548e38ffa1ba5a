/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages that fail, come late or never (RREF_INJECT, core/session/inject.h). A worker injects
 * faults into the messages that it sends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC
#define LONG_NS (20 * NSEC_PER_SEC)
#define TRIES 10 /* a send is given up after so many: send.c */

static struct rref *remote_within(struct rref_ctx *ctx, int to, const char *function,
				  int64_t timeout)
{
	struct rref *r;

	TG_OK(rref_remote(ctx, to, function, &(struct rref_args){ .data = "abc", .length = 3 },
			  timeout, &r));
	return r;
}

static void expect_error(struct rref *r, int64_t timeout, int err, const char *text)
{
	struct rref_view *v = NULL;

	TG_IS(rref_to_here(r, timeout, &v), err);
	TG_CHECK(!v);
	TG_TEXT(text);
}

static int32_t runs_of(struct rref_ctx *ctx, int rank)
{
	struct rref_future *f;
	int32_t n;

	TG_OK(rref_rpc_sync(ctx, rank, "runs", NULL, RREF_DEFAULT, &f));
	tg_result(f, &n, sizeof(n));
	rref_future_free(f);
	return n;
}

/* ---- sends that fail ---- */

static const char *const first_three = "FORK_REQUEST:fail=3,CHILD_ACCEPT:fail=3,DELETE:fail=3";

TG_TEST(c129_first_three_sends_fail, 3)
{
	struct rref_ctx *ctx = tg_join_under(rank, first_three, 0);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "abc", 3);

		tg_expect_bytes(r, "abc", 3);
		TG_OK(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_all_clean(ctx);
		/* Retries of its own DELETE. On the third worker all kinds count. */
		TG_IS(tg_stats(ctx).retries, 3);
		TG_IS(tg_stats_of(ctx, 1).retries, 0);
		TG_IS(tg_stats_of(ctx, 2).retries, 9);
		for (int i = 0; i < 3; i++)
			TG_IS(tg_stats_of(ctx, i).dead_peers, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* Every kind of message of a session fails at first, also the message that brings it up. */
TG_TEST(c129_first_sends_of_every_kind_fail, 3)
{
	static const char *const rules = "AUTH:fail=2,CALL:fail=3,REPLY:fail=3,CREATED:fail=3,FORK_"
					 "REQUEST:fail=3,FORK_ACK:fail=3,"
					 "CHILD_ACCEPT:fail=3,DELETE:fail=3,PARENT_REQUEST:fail=3,"
					 "PARENT_ACK:fail=3,FETCH:fail=3,"
					 "FETCH_REPLY:fail=3,BARRIER:fail=3,BARRIER_DONE:fail=3,"
					 "PING:fail=3,PONG:fail=3,GOODBYE:fail=3";
	struct rref_ctx *ctx = tg_join_under(rank, rules, 0);

	if (rank == 0) {
		struct rref *r = remote_within(ctx, 1, "tg.hold", RREF_DEFAULT);
		struct rref_future *f;

		/* Early: the child asks its parent first, and reads before the value is ready. */
		TG_OK(rref_rpc_async(ctx, 2, "tg.read", tg_with(&r, 1), RREF_DEFAULT, &f));
		tg_until_held(ctx, 1, 1);
		TG_IS(tg_release_held(ctx, 1), 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		tg_expect_bytes(r, "abc", 3);
		rref_release(r);
		tg_all_clean(ctx);
		for (int i = 0; i < 3; i++) {
			TG_CHECK(tg_stats_of(ctx, i).retries > 3);
			TG_IS(tg_stats_of(ctx, i).dead_peers, 0);
		}
	}
	tg_finish(ctx);
	return 0;
}

/* A call that cannot be sent is over, with its error. The
 * references that it shared are taken back, for any owner. */
TG_TEST(c183_a_call_given_up_pins_nothing, 3)
{
	/* The failures exceed the tries of the first part's calls by one: the next call goes. */
	struct rref_ctx *ctx = tg_join_under(rank,
					     rank == 0 ? "CALL@1:fail=20,REMOTE@1:fail=10" : "", 0);

	if (rank == 0) {
		struct rref *r[3], *made = NULL;
		struct rref_future *f, *creation;
		struct rref_error e = { .size = sizeof(e) };

		TG_OK(rref_new(ctx, "mine", 4, &r[0]));
		r[1] = tg_remote(ctx, 2, "tg.echo", "abc", 3);
		tg_expect_bytes(r[1], "abc", 3);
		TG_OK(rref_rpc_async(ctx, 1, "tg.read", tg_with(r, 2), RREF_DEFAULT, &f));
		TG_IS(rref_future_wait(f, LONG_NS), -EIO);
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.peer == 1 && strstr(e.text, "could not be sent"));
		rref_future_free(f);
		TG_IS(tg_stats(ctx).forks, 0);
		TG_IS(tg_stats(ctx).pending_children, 0);
		TG_IS(tg_stats(ctx).retries, TRIES - 1);
		/* A creation tells the error each time. */
		TG_OK(rref_remote(ctx, 1, "count", NULL, RREF_DEFAULT, &made));
		TG_OK(rref_creation(made, &creation));
		TG_IS(rref_future_wait(creation, LONG_NS), -EIO);
		for (int i = 0; i < 3; i++)
			expect_error(made, RREF_DEFAULT, -EIO, "could not be sent");
		TG_IS(rref_confirmed(made), 0);
		rref_future_free(creation);
		rref_release(made);
		TG_IS(tg_stats(ctx).retries, 2 * (TRIES - 1));
		/* The session stands: no worker died, and the next call goes. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.read", tg_with(r, 2), RREF_DEFAULT, NULL));
		TG_IS(runs_of(ctx, 1), 0);
		for (int i = 0; i < 3; i++)
			TG_IS(tg_stats_of(ctx, i).dead_peers, 0);
		rref_release(r[0]);
		rref_release(r[1]);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Waits until the peer has a new session. A broken one is not tried again immediately. */
static void until_reached(struct rref_ctx *ctx, int rank)
{
	for (int64_t end = now_ns() + LONG_NS;
	     rref_rpc_sync(ctx, rank, "tg.nothing", NULL, RREF_DEFAULT, NULL); usleep(1000))
		TG_CHECK(now_ns() < end);
}

static bool no_references(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	return !s.owners && !s.forks && !s.users && !s.pending_children && !s.value_bytes;
}

/* A message of the protocol cannot be sent, which ends the session.
 * Both sides clean up, and a new one begins. */
TG_TEST(c183_a_delete_given_up_ends_the_session, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "DELETE:fail=10" : "", 0);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "abc", 3),
			    *other = tg_remote(ctx, 1, "tg.echo", "abc", 3);

		tg_expect_bytes(r, "abc", 3);
		tg_expect_bytes(other, "abc", 3);
		rref_release(r);
		for (int64_t end = now_ns() + LONG_NS; tg_stats(ctx).dead_peers == 0; usleep(500)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		expect_error(other, RREF_DEFAULT, -EOWNERDEAD, "could not be sent");
		rref_release(other);
		TG_CHECK(tg_eventually(no_references, ctx, NULL));
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		TG_CHECK(tg_eventually(no_references, ctx, NULL));
		TG_IS(tg_stats(ctx).dead_peers, 0); /* cut off, not dead */
		tg_set_flag(0, 2);
	}
	tg_wait_flag_serving(ctx, 0, 2);
	if (rank == 0) {
		struct rref *r;

		until_reached(ctx, 1);
		r = tg_remote(ctx, 1, "tg.echo", "abc", 3);
		tg_expect_bytes(r, "abc", 3);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A child cannot tell its parent. The parent is not pinned for ever, and the child lives. */
TG_TEST(c183_an_accept_given_up_unpins_the_parent, 3)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 2 ? "CHILD_ACCEPT:fail=10" : "", 0);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "abc", 3);

		tg_expect_bytes(r, "abc", 3);
		/* The answer follows a message that does not go; this worker is cut off. */
		TG_IS(rref_rpc_sync(ctx, 2, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL),
		      -ENETRESET);
		TG_IS(tg_stats(ctx).pending_children, 0);
		rref_release(r);
		TG_CHECK(tg_eventually(no_references, ctx, NULL));
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	if (rank == 2) {
		for (int64_t end = now_ns() + LONG_NS; !tg_nr_kept(); usleep(500)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		tg_expect_bytes(tg_kept(0), "abc", 3);
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	tg_wait_flag_serving(ctx, 0, 2);
	if (rank == 0) {
		until_reached(ctx, 2);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- creations that do not come, or come late ---- */

/* Returns the number of messages to a worker. Others may be told of creations that are over. */
static uint64_t sent_to(struct rref_ctx *ctx, int rank)
{
	struct rref_peer_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_peer_stats(ctx, rank, &s));
	return s.messages_sent;
}

/* Creations (133 to 136) at a peer and on oneself, with and without references among their
 * arguments. Two of them are 178 and 179. */
TG_TEST(c133_136_creation_lost, 3)
{
	struct rref_ctx *ctx = tg_join_under(rank,
					     rank == 0 ? "REMOTE@0:drop=2,REMOTE@1:drop=2" : "", 0);

	if (rank == 0) {
		struct rref *r[4];

		for (int i = 0; i < 4; i++)
			r[i] = remote_within(ctx, i / 2, "tg.echo", 50 * MS);
		for (int turn = 0; turn < 2; turn++)
			for (int i = 0; i < 4; i++)
				expect_error(r[i], RREF_DEFAULT, -ETIMEDOUT,
					     "creation of the reference timed out");
		TG_IS(rref_confirmed(r[2]), 0);
		TG_IS(rref_confirmed(r[3]), 0);
		/* 170, 171: such an argument is an error before anything is sent. */
		for (int i = 0; i < 4; i++) {
			uint64_t sent = sent_to(ctx, 2);
			struct rref *none = NULL;
			struct rref_future *f = NULL;

			TG_IS(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&r[i], 1), RREF_DEFAULT,
					    NULL),
			      -ETIMEDOUT);
			TG_TEXT("creation");
			TG_IS(rref_rpc_async(ctx, 2, "tg.read", tg_with(&r[i], 1), RREF_DEFAULT,
					     &f),
			      -ETIMEDOUT);
			TG_IS(rref_remote(ctx, 2, "tg.read", tg_with(&r[i], 1), RREF_DEFAULT,
					  &none),
			      -ETIMEDOUT);
			TG_CHECK(!none && !f);
			TG_IS(sent_to(ctx, 2), sent);
		}
		for (int i = 0; i < 4; i++)
			rref_release(r[i]);
		tg_all_clean(ctx);
		/* Later messages arrive. */
		for (int i = 0; i < 2; i++) {
			struct rref *ok = tg_remote(ctx, i, "tg.echo", "abc", 3);

			tg_expect_bytes(ok, "abc", 3);
			rref_release(ok);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* 182: a worker with a reference to a lost value learns of it promptly.
 * It does not wait for its own time-out. */
TG_TEST(c182_shared_and_never_made, 3)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "REMOTE:drop" : "", 0);

	if (rank == 0) {
		struct rref *r = remote_within(ctx, 1, "tg.echo", 100 * MS);

		TG_IS(rref_rpc_sync(ctx, 2, "tg.read", tg_with(&r, 1), RREF_FOREVER, NULL),
		      -ETIMEDOUT);
		TG_TEXT("creation");
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The creation comes after its creator gave up, whose DELETE overtook it (139 to 141, 180). The
 * function does not even run. */
TG_TEST(c139_142_creation_delayed_beyond_its_timeout, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "REMOTE@1:delay=300ms" : "", 0);

	if (rank == 0) {
		struct rref *r;

		/* Make the session first: without one the call may be
		 * given up before it is sent. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		r = remote_within(ctx, 1, "count", 20 * MS);
		expect_error(r, RREF_DEFAULT, -ETIMEDOUT, "creation");
		rref_release(r);
		for (int64_t end = now_ns() + LONG_NS; !tg_stats_of(ctx, 1).dropped_messages;
		     usleep(1000))
			TG_CHECK(now_ns() < end);
		TG_IS(runs_of(ctx, 1), 0);
		tg_all_clean(ctx);
		/* A delayed reply serves a caller that waits for it. */
		r = remote_within(ctx, 1, "count", RREF_DEFAULT);
		tg_expect_bytes(r, &(int32_t){ 1 }, sizeof(int32_t));
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A creation on oneself runs late, and its result is dropped. */
TG_TEST(c139_142_own_creation_delayed_beyond_its_timeout, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, "REMOTE@0:delay=200ms", 0);

	if (rank == 0) {
		struct rref *r = remote_within(ctx, 0, "count", 20 * MS);

		expect_error(r, RREF_DEFAULT, -ETIMEDOUT, "creation");
		rref_release(r);
		for (int64_t end = now_ns() + LONG_NS; !tg_runs(); usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The value is made after its creator gave up. */
TG_TEST(c180_answer_delayed_beyond_the_timeout, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 1 ? "CREATED:delay=300ms" : "", 0);

	if (rank == 0) {
		struct rref *r, *s;

		/* Make the session. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		r = remote_within(ctx, 1, "count", 50 * MS);
		s = remote_within(ctx, 1, "count", 50 * MS);
		rref_release(s); /* released at once, never read */
		expect_error(r, RREF_DEFAULT, -ETIMEDOUT, "creation");
		TG_IS(runs_of(ctx, 1), 2);
		tg_until_clean(ctx, 1);
		expect_error(r, RREF_DEFAULT, -ETIMEDOUT, "creation");
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- reads and calls that are late ---- */

/* 142, 143: a read over a slow way to the value times out, and the next one succeeds. */
TG_TEST(c142_143_read_delayed, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank,
					     rank == 0
						     ? "FETCH_REPLY:delay=500ms*1"
						     : "FETCH:delay=500ms*1,CREATED:delay=500ms*1",
					     0);

	if (rank == 0) {
		struct rref *r, *made;
		void *data;

		TG_OK(rref_alloc(ctx, 3, &r, &data));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		memcpy(data, "abc", 3);
		TG_OK(rref_set(r));
		tg_set_flag(0, 1);
		made = tg_remote(ctx, 1, "tg.echo", "abc", 3);
		expect_error(made, 10 * MS, -ETIMEDOUT, "in time");
		tg_expect_bytes(made, "abc", 3);
		rref_release(made);
		tg_wait_flag_serving(ctx, 0, 2);
		rref_release(r);
		tg_all_clean(ctx);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < 3; i++)
			expect_error(tg_kept(0), 10 * MS, -ETIMEDOUT, "in time");
		tg_expect_bytes(tg_kept(0), "abc", 3);
		tg_drop_kept();
		TG_IS(tg_stats(ctx).parked, 0);
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* Calls with a time-out, with the default, and without limit. A late
 * answer does no harm after the caller gave up. */
TG_TEST(c144_calls_delayed, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank, rank == 0 ? "CALL:delay=150ms*6" : "",
					     rank == 0 ? 40 * MS : 0);

	if (rank == 0) {
		/* Make the session without a CALL. */
		struct rref *mine = remote_within(ctx, 1, "tg.echo", LONG_NS);
		struct rref_view *v;

		TG_OK(rref_to_here(mine, LONG_NS, &v));
		rref_view_free(v);
		rref_release(mine);
		TG_OK(rref_new(ctx, "mine", 4, &mine));
		TG_IS(rref_rpc_sync(ctx, 1, "count", NULL, RREF_DEFAULT, NULL), -ETIMEDOUT);
		TG_OK(rref_rpc_sync(ctx, 1, "count", NULL, LONG_NS, NULL));
		TG_OK(rref_rpc_sync(ctx, 1, "count", NULL, RREF_FOREVER, NULL));
		TG_IS(rref_rpc_sync(ctx, 1, "count", NULL, 10 * MS, NULL), -ETIMEDOUT);
		/* References in the call and in its answer: both arrive, and are dropped. */
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo_refs", tg_with(&mine, 1), 10 * MS, NULL),
		      -ETIMEDOUT);
		TG_OK(rref_rpc_sync(ctx, 1, "count", NULL, LONG_NS, NULL));
		for (int64_t end = now_ns() + LONG_NS; tg_stats(ctx).dropped_messages < 3;
		     usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		rref_release(mine);
		TG_CHECK(tg_eventually(no_references, ctx, NULL));
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	if (rank == 1) {
		TG_IS(tg_runs(), 5);
		TG_CHECK(tg_eventually(no_references, ctx, NULL));
		tg_set_flag(0, 2);
	}
	tg_wait_flag_serving(ctx, 0, 2);
	/* The default of 40 ms is for calls; leaving has its own time. */
	tg_finish(ctx);
	return 0;
}

/* The answer is lost, or late: the call ran once, and times out. */
TG_TEST(c144_answers_lost_and_delayed, 2)
{
	struct rref_ctx *ctx = tg_join_under(rank,
					     rank == 1 ? "REPLY:drop=1,REPLY:delay=100ms*1" : "",
					     0);

	if (rank == 0) {
		/* make the session without a REPLY */
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "x", 1);

		tg_expect_bytes(r, "x", 1);
		TG_IS(rref_rpc_sync(ctx, 1, "count", NULL, 50 * MS, NULL), -ETIMEDOUT);
		TG_IS(rref_rpc_sync(ctx, 1, "count", NULL, 20 * MS, NULL), -ETIMEDOUT);
		rref_release(r);
		TG_IS(runs_of(ctx, 1), 2);
		for (int64_t end = now_ns() + LONG_NS; tg_stats(ctx).dropped_messages < 1;
		     usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c129_first_three_sends_fail),
		cmocka_unit_test(c129_first_sends_of_every_kind_fail),
		cmocka_unit_test(c183_a_call_given_up_pins_nothing),
		cmocka_unit_test(c183_a_delete_given_up_ends_the_session),
		cmocka_unit_test(c183_an_accept_given_up_unpins_the_parent),
		cmocka_unit_test(c133_136_creation_lost),
		cmocka_unit_test(c182_shared_and_never_made),
		cmocka_unit_test(c139_142_creation_delayed_beyond_its_timeout),
		cmocka_unit_test(c139_142_own_creation_delayed_beyond_its_timeout),
		cmocka_unit_test(c180_answer_delayed_beyond_the_timeout),
		cmocka_unit_test(c142_143_read_delayed),
		cmocka_unit_test(c144_calls_delayed),
		cmocka_unit_test(c144_answers_lost_and_delayed),
	};

	return cmocka_run_group_tests_name("messages", tests, NULL, NULL);
}
