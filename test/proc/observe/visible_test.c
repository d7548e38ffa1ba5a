/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's state is visible: exact counters in known places, and dumps that name holder and
 * parent. A shutdown reports the leaks, with the place in this file where each was made.
 */
#define RREF_DEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

static struct rref *kept;

static int keep(struct rref_call *call, void *arg)
{
	(void)arg;
	kept = rref_dup(rref_call_ref(call, 0));
	return 0;
}

static int drop(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	rref_release(kept);
	kept = NULL;
	return 0;
}

/* Answers with the first bytes of the callee's own dump, as many as a result holds. */
static int dump_here(struct rref_call *call, void *arg)
{
	char text[3000];
	int n = rref_dump(rref_call_context(call), text, sizeof(text));

	(void)arg;
	TG_CHECK(n > 0 && (size_t)n < sizeof(text));
	return rref_call_reply(call, &(struct rref_args){ .data = text, .length = (size_t)n + 1 });
}

static struct rref_ctx *join(int rank)
{
	static const struct rref_function own[] = {
		{ .name = "keep", .handler = keep }, { .name = "drop", .handler = drop },
		{ .name = "dump", .handler = dump_here },
	};
	struct rref_ctx *ctx = tg_join(rank);

	for (size_t i = 0; i < array_size(own); i++)
		TG_OK(rref_register(ctx, &own[i]));
	tg_meet_serving(ctx, 15);
	return ctx;
}

static void share(struct rref_ctx *ctx, int to, const char *function, struct rref *r)
{
	TG_OK(rref_rpc_sync(ctx, to, function,
			    &(struct rref_args){ .refs = &r, .nr_refs = r ? 1 : 0 }, RREF_DEFAULT,
			    NULL));
}

static struct rref_peer_stats peer_stats(struct rref_ctx *ctx, int rank)
{
	struct rref_peer_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_peer_stats(ctx, rank, &s));
	return s;
}

/* Returns the count of the message kind with this name. */
static unsigned kind(const char *name)
{
	for (unsigned k = 0; k < RREF_MESSAGE_KINDS; k++)
		if (strcmp(rref_message_kind(k), name) == 0)
			return k;
	fprintf(stderr, "no kind %s\n", name);
	_exit(1);
}

/* Returns the line of a text that begins with `first` and has all of the words, which end with
 * NULL. Returns NULL if there is no such line. */
static const char *find_line(const char *text, const char *first, ...)
{
	static _Thread_local char line[1024];

	for (const char *p = text; *p; p += strcspn(p, "\n") + 1) {
		const char *word;
		bool all;
		va_list ap;

		snprintf(line, sizeof(line), "%.*s", (int)strcspn(p, "\n"), p);
		all = strncmp(line, first, strlen(first)) == 0;
		va_start(ap, first);
		while ((word = va_arg(ap, const char *)))
			all = all && strstr(line, word);
		va_end(ap);
		if (all)
			return line;
	}
	return NULL;
}

#define HAS_LINE(text, ...) \
	do { \
		if (!find_line((text), __VA_ARGS__, NULL)) { \
			fprintf(stderr, "%s:%d: no such line in\n%s", __FILE__, __LINE__, (text)); \
			_exit(1); \
		} \
	} while (0)

static const char *dump_of(struct rref_ctx *ctx, int rank)
{
	static _Thread_local char text[65536];
	struct rref_future *f;
	const void *data;
	size_t length;

	if (rank == rref_rank(ctx)) {
		TG_CHECK(rref_dump(ctx, text, sizeof(text)) < (int)sizeof(text));
		return text;
	}
	TG_OK(rref_rpc_sync(ctx, rank, "dump", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	memcpy(text, data, length);
	rref_future_free(f);
	return text;
}

static char *id_text(const struct rref *r)
{
	static _Thread_local char text[2][40];
	static _Thread_local unsigned turn;
	struct rref_id id = rref_get_id(r);
	char *t = text[turn++ % 2];

	snprintf(t, sizeof(text[0]), "id=(%u,%llu)", id.created_on,
		 (unsigned long long)id.local_id);
	return t;
}

static void until(bool (*cond)(struct rref_ctx *ctx, void *arg), struct rref_ctx *ctx, void *arg)
{
	TG_CHECK(tg_eventually(cond, ctx, arg));
}

static bool no_forks(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).forks == 0;
}

/* ---- counters ---- */

TG_TEST(counters__a_value_alone_shared_and_given_back, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_stats before = tg_stats(ctx), s;
		struct rref *r;

		TG_IS(before.owners, 0);
		TG_OK(rref_new(ctx, "0123456789", 10, &r));
		s = tg_stats(ctx);
		TG_IS(s.owners, 1);
		TG_IS(s.pending_owners, 0);
		TG_IS(s.forks, 0);
		TG_IS(s.value_bytes, 64 + 10);
		TG_IS(s.messages_sent, before.messages_sent);
		share(ctx, 1, "keep", r);
		s = tg_stats(ctx);
		TG_IS(s.owners, 1);
		TG_IS(s.forks, 1);
		TG_IS(s.users, 0);
		TG_IS(s.sent[kind("call")] - before.sent[kind("call")], 1);
		TG_IS(s.received[kind("reply")] - before.received[kind("reply")], 1);
		TG_IS(s.received[kind("delete")], 0);
		TG_IS(peer_stats(ctx, 1).forks, 1);
		TG_IS(peer_stats(ctx, 1).users, 0);
		TG_IS(peer_stats(ctx, 1).sessions, 1);
		TG_IS(peer_stats(ctx, 1).epoch, 1);
		TG_CHECK(strcmp(peer_stats(ctx, 1).state, "up") == 0 &&
			 peer_stats(ctx, 1).heard >= 0);
		TG_CHECK(strcmp(peer_stats(ctx, 0).state, "self") == 0);
		TG_IS(s.sessions, 1);
		TG_IS(tg_stats_of(ctx, 1).users, 1);
		TG_IS(tg_stats_of(ctx, 1).pending_users, 0);
		share(ctx, 1, "drop", NULL);
		until(no_forks, ctx, NULL);
		s = tg_stats(ctx);
		TG_IS(s.owners, 1);
		TG_IS(s.received[kind("delete")], 1);
		TG_IS(peer_stats(ctx, 1).forks, 0);
		rref_release(r);
		s = tg_stats(ctx);
		TG_IS(s.owners, 0);
		TG_IS(s.value_bytes, 0);
		/* The kinds' counts add up to all messages sent, and so do the peers' parts. */
		uint64_t sum = 0;

		for (unsigned k = 0; k < RREF_MESSAGE_KINDS; k++)
			sum += s.sent[k];
		TG_IS(sum, s.messages_sent);
		TG_IS(peer_stats(ctx, 0).messages_sent + peer_stats(ctx, 1).messages_sent,
		      tg_stats(ctx).messages_sent);
		TG_IS(peer_stats(ctx, 0).sent_bytes + peer_stats(ctx, 1).sent_bytes,
		      tg_stats(ctx).sent_bytes);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	tg_finish(ctx);
	return 0;
}

static bool child_and_user_pending(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).pending_children == 1 && tg_stats_of(ctx, 2).pending_users == 1;
}

/* Checks that only keep, which waits, and tg.stats itself are open. The call before may have been
 * answered and still be there. */
static bool keep_is_open(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats_of(ctx, 2).calls_open == 2;
}

static bool nothing_pending(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).pending_children == 0 && tg_stats_of(ctx, 2).pending_users == 0;
}

/* Rank 0 owns, and 1 holds and shares with 2 while 0 is stopped. Neither 1's child nor 2's
 * reference can be confirmed. */
TG_TEST(counters__pending_while_the_owner_is_stopped, 3)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_future *f;
	char text[4000];

	if (rank == 0) {
		struct rref *r;

		TG_OK(rref_new(ctx, "abc", 3, &r));
		share(ctx, 1, "keep", r);
		/* make a session between 0 and 2, since 0 is stopped later */
		share(ctx, 2, "keep", r);
		share(ctx, 2, "drop", NULL);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 1, 1);
		TG_IS(tg_stats(ctx).owners, 1);
		TG_IS(tg_stats(ctx).forks, 2);
		HAS_LINE(dump_of(ctx, 0), "owner", id_text(r), "state=ready", "local=1", "forks=2",
			 "bytes=3", "type=bytes", "visible_test.c:");
		HAS_LINE(dump_of(ctx, 0), "fork", id_text(r), "holder=worker1", "rank=1", "epoch=1",
			 "by=worker0", "state=held");
		HAS_LINE(dump_of(ctx, 0), "fork", id_text(r), "holder=worker2", "rank=2", "epoch=1",
			 "by=worker1", "state=held");
		tg_set_flag(2, 1);
		rref_release(r);
	} else if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		TG_IS(tg_stats(ctx).users, 1);
		TG_IS(peer_stats(ctx, 0).users, 1);
		tg_stop_worker(0); /* then it is stopped: it does not see later messages */
		TG_OK(rref_rpc_async(ctx, 2, "keep",
				     &(struct rref_args){ .refs = &kept, .nr_refs = 1 },
				     RREF_DEFAULT, &f));
		until(child_and_user_pending, ctx, NULL);
		TG_IS(tg_stats(ctx).pending_users, 0);
		TG_IS(peer_stats(ctx, 2).pending_children, 1);
		TG_IS(peer_stats(ctx, 0).pending_children, 0);
		until(keep_is_open, ctx, NULL);
		TG_CHECK(!rref_future_test(f));
		HAS_LINE(dump_of(ctx, 1), "user", id_text(kept), "owner=worker0", "by=worker0",
			 "state=confirmed", "children=1");
		HAS_LINE(dump_of(ctx, 1), "child", id_text(kept), "with=worker2", "rank=2",
			 "by=worker1", "state=pending");
		HAS_LINE(dump_of(ctx, 1), "op", "what=call", "with=worker2", "age=", "left=");
		snprintf(text, sizeof(text), "%s", dump_of(ctx, 2));
		HAS_LINE(text, "user", id_text(kept), "owner=worker0", "rank=0", "by=worker1",
			 "state=requested");
		tg_continue_worker(0);
		until(nothing_pending, ctx, NULL);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		TG_IS(peer_stats(ctx, 2).pending_children, 0);
		snprintf(text, sizeof(text), "%s", dump_of(ctx, 2));
		HAS_LINE(text, "user", id_text(kept), "by=worker1", "state=confirmed");
		TG_CHECK(!find_line(dump_of(ctx, 1), "child", NULL) &&
			 !find_line(dump_of(ctx, 1), "op", NULL));
		tg_set_flag(1, 1);
		tg_wait_flag_serving(ctx, 2, 1);
		share(ctx, 2, "drop", NULL);
		rref_release(kept);
	} else {
		tg_wait_flag_serving(ctx, 2, 1);
	}
	tg_finish(ctx);
	return 0;
}

static bool one_parked(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).parked == 1;
}

TG_TEST(counters__waits_for_a_value, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_future *f;
		struct rref *r;
		void *data;

		TG_OK(rref_alloc(ctx, 1000, &r, &data));
		TG_IS(tg_stats(ctx).pending_owners, 1);
		TG_IS(tg_stats(ctx).parked, 0);
		TG_OK(rref_rpc_async(ctx, 1, "tg.read",
				     &(struct rref_args){ .refs = &r, .nr_refs = 1 }, RREF_DEFAULT,
				     &f));
		until(one_parked, ctx, NULL);
		TG_IS(tg_stats(ctx).ops_in_flight, 1);
		HAS_LINE(dump_of(ctx, 0), "owner", id_text(r), "state=pending", "bytes=1000",
			 "visible_test.c:");
		HAS_LINE(dump_of(ctx, 0), "fork", id_text(r), "holder=worker1", " waits ");
		HAS_LINE(dump_of(ctx, 1), "op", "what=read", "with=worker0", id_text(r));
		memset(data, 5, 1000);
		TG_OK(rref_set(r));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		TG_IS(tg_stats(ctx).parked, 0);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		TG_IS(tg_stats(ctx).pending_owners, 0);
		TG_IS(tg_stats_of(ctx, 1).read_bytes, 1000);
		HAS_LINE(dump_of(ctx, 0), "owner", id_text(r), "state=ready", "bytes=1000");
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(counters__as_text, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_stats s;
	char text[4096], small[12];
	struct rref *r;
	int n;

	TG_OK(rref_new(ctx, NULL, 0, &r));
	share(ctx, 0, "keep", r);
	s = tg_stats(ctx);
	n = rref_stats_format(&s, text, sizeof(text));
	TG_CHECK(n > 0 && (size_t)n == strlen(text));
	TG_CHECK(strncmp(text, "owners 1\n", 9) == 0 && strstr(text, "\nforks 0\n") &&
		 strstr(text, "\nsent.call 1\n") && strstr(text, "\nreceived.reply 1\n") &&
		 !strstr(text, "fork-request"));
	TG_IS(rref_stats_format(&s, NULL, 0), n);
	TG_IS(rref_stats_format(&s, small, sizeof(small)), n);
	TG_CHECK(strlen(small) == 11);
	/* Nothing is read past the end of an older program's struct. */
	s.size = offsetof(struct rref_stats, users);
	TG_IS(rref_stats_format(&s, text, sizeof(text)), strlen("owners 1\nforks 0\n"));
	TG_IS(rref_stats_format(NULL, text, sizeof(text)), -EINVAL);
	TG_IS(rref_stats_format(&s, NULL, 4), -EINVAL);
	TG_IS(rref_get_peer_stats(ctx, 1,
				  &(struct rref_peer_stats){
					  .size = sizeof(struct rref_peer_stats) }),
	      -EINVAL);
	TG_IS(rref_get_peer_stats(ctx, 0, &(struct rref_peer_stats){ .size = 0 }), -EINVAL);
	TG_CHECK(*rref_message_kind(0) == 0 && *rref_message_kind(RREF_MESSAGE_KINDS) == 0);
	rref_release(kept);
	rref_release(r);
	tg_finish(ctx);
	return 0;
}

/* ---- dumps ---- */

struct pieces {
	size_t nr, lines, stop_at;
	bool whole;
};

static int count_lines(void *arg, const char *text, size_t length)
{
	struct pieces *p = arg;

	p->nr++;
	p->whole = p->whole && length && text[length - 1] == '\n';
	for (size_t i = 0; i < length; i++)
		p->lines += text[i] == '\n';
	return p->nr == p->stop_at ? -ECANCELED : 0;
}

TG_TEST(dump__of_many_comes_in_pieces, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct pieces p = { .whole = true }, stopped = { .stop_at = 2, .whole = true };
		enum { NR = 1000 };
		static struct rref *r[NR];

		for (int i = 0; i < NR; i++)
			TG_OK(rref_new(ctx, "x", 1, &r[i]));
		share(ctx, 1, "keep", r[500]);
		TG_OK(rref_dump_to(ctx, RREF_DUMP_STATS, count_lines, &p));
		TG_IS(p.lines, 1 + 1 + 1 + NR + 1); /* worker, stats, peer, owners, a fork */
		TG_CHECK(p.nr > 5 && p.whole);
		TG_IS(rref_dump_to(ctx, RREF_DUMP_JSON, count_lines, &stopped), -ECANCELED);
		TG_CHECK(stopped.nr == 2 && stopped.whole);
		TG_IS(rref_dump_to(ctx, 4, count_lines, &p), -EINVAL);
		TG_IS(rref_dump_to(ctx, 0, NULL, &p), -EINVAL);
		share(ctx, 1, "drop", NULL);
		for (int i = 0; i < NR; i++)
			rref_release(r[i]);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- after a shutdown ---- */

static char logged[8192];

static void log_here(void *arg, enum rref_log_level level, const char *text)
{
	size_t used = strlen(logged);

	(void)arg;
	if (level <= RREF_LOG_INFO)
		snprintf(logged + used, sizeof(logged) - used, "%d %s\n", (int)level, text);
}

static struct rref_ctx *join_logged(int rank)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = (struct rref_function[]){ { .name = "keep", .handler = keep },
						{ .name = "drop", .handler = drop } };
	o.nr_functions = 2;
	o.log = log_here;
	o.log_level = RREF_LOG_INFO;
	TG_OK(rref_init(&o, &ctx));
	tg_meet_serving(ctx, 15);
	return ctx;
}

/* Worker 1 keeps its reference and does not come to the shutdown. */
TG_TEST(leak__is_named_with_holder_and_site, 2)
{
	struct rref_ctx *ctx = join_logged(rank);
	char report[8192], site[64], id[40];

	if (rank == 0) {
		struct rref *r, *other;

		TG_OK(rref_new(ctx, "0123456789", 10, &r));
		snprintf(site, sizeof(site), "visible_test.c:%d", __LINE__ - 1);
		TG_OK(rref_new(ctx, "released", 8, &other));
		share(ctx, 1, "keep", r);
		rref_release(other);
		snprintf(id, sizeof(id), "%s", id_text(r));
		rref_release(r);
		TG_IS(rref_leak_report(ctx, report, sizeof(report)), 0);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, NSEC_PER_SEC / 2), -ETIMEDOUT);
		TG_TEXT("what remains: bytes (0,");
		TG_TEXT("held by worker1");
		TG_TEXT(site);
		TG_CHECK(strstr(logged, "1 leak: 1 references remain") && strstr(logged, site));
		int n = rref_leak_report(ctx, report, sizeof(report));

		TG_CHECK(n > 0 && (size_t)n == strlen(report));
		HAS_LINE(report, "leak", id, "holder=worker1", "rank=1", "by=worker0", "bytes=10",
			 "type=bytes", site, "age=");
		TG_CHECK(!find_line(report, "unreleased", NULL));
		TG_IS(rref_leak_report(ctx, NULL, 0), n);
		TG_IS(rref_leak_report(NULL, report, 1), -EINVAL);
		rref_free_ctx(ctx);
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		rref_release(kept);
		rref_free_ctx(ctx);
	}
	return 0;
}

TG_TEST(leak__unreleased_handles, 2)
{
	struct rref_ctx *ctx = join_logged(rank);
	char report[8192], site[64] = "";
	struct rref *r = NULL;

	if (rank == 0) {
		TG_OK(rref_new(ctx, "abc", 3, &r));
		snprintf(site, sizeof(site), "visible_test.c:%d", __LINE__ - 1);
		share(ctx, 1, "keep", r);
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC));
	TG_CHECK(rref_leak_report(ctx, report, sizeof(report)) > 0);
	HAS_LINE(report, "unreleased", "id=(0,", rank ? "holder=worker1" : "holder=worker0",
		 "owner=worker0", "holds=1", site);
	TG_CHECK(!find_line(report, "leak", NULL) && !find_line(report, "stuck", NULL));
	TG_CHECK(
		strstr(logged, "2 1 references were not released by the program before it left: "));
	TG_CHECK(rank != 0 || strstr(logged, site));
	rref_release(rank ? kept : r);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(counters__a_value_alone_shared_and_given_back),
		cmocka_unit_test(counters__pending_while_the_owner_is_stopped),
		cmocka_unit_test(counters__waits_for_a_value),
		cmocka_unit_test(counters__as_text),
		cmocka_unit_test(dump__of_many_comes_in_pieces),
		cmocka_unit_test(leak__is_named_with_holder_and_site),
		cmocka_unit_test(leak__unreleased_handles),
	};

	return cmocka_run_group_tests_name("visible", tests, NULL, NULL);
}
