/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Profiling scopes. Each begin has exactly one end with the right key, in success, failure,
 * time-out and shutdown. The trace file holds the same, also after a worker was killed. The files
 * stay in RREF_TEST_TRACE_DIR, if that is set, for the JSON parser of test/tools/trace.sh.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

/* The events that the hook got. */
#define SCOPES_MAX 4096
static struct {
	pthread_mutex_t lock;
	unsigned nr;
	struct {
		char key[200];
		unsigned begins, ends, flags;
		int status, peer;
	} scope[SCOPES_MAX]; /* by id - 1 */
} heard = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void hook(void *ctx, const struct rref_scope *s)
{
	TG_CHECK(ctx == &heard && s->size == sizeof(*s) && s->id >= 1 && s->id <= SCOPES_MAX);
	pthread_mutex_lock(&heard.lock);
	if (s->flags & RREF_SCOPE_END) {
		heard.scope[s->id - 1].ends++;
		heard.scope[s->id - 1].status = s->status;
		TG_CHECK(strcmp(heard.scope[s->id - 1].key, s->key) == 0);
		TG_IS(heard.scope[s->id - 1].peer, s->peer);
	} else {
		heard.scope[s->id - 1].begins++;
		snprintf(heard.scope[s->id - 1].key, sizeof(heard.scope[0].key), "%s", s->key);
		heard.scope[s->id - 1].peer = s->peer;
		TG_IS(s->status, 0);
	}
	heard.scope[s->id - 1].flags = s->flags & RREF_SCOPE_ASYNC;
	heard.nr = heard.nr > s->id ? heard.nr : (unsigned)s->id;
	pthread_mutex_unlock(&heard.lock);
}

/* Returns the number of scopes with this key that began once and ended once with this status. Any
 * other scope with the key is a failure. */
static unsigned ended(const char *key, int status, int async, int peer)
{
	unsigned n = 0;

	pthread_mutex_lock(&heard.lock);
	for (unsigned i = 0; i < heard.nr; i++) {
		if (strcmp(heard.scope[i].key, key))
			continue;
		TG_IS(heard.scope[i].begins, 1);
		TG_CHECK(heard.scope[i].ends <= 1);
		TG_IS(heard.scope[i].flags != 0, async);
		TG_IS(heard.scope[i].peer, peer);
		n += heard.scope[i].ends && heard.scope[i].status == status;
	}
	pthread_mutex_unlock(&heard.lock);
	return n;
}

static unsigned all(void)
{
	unsigned n = 0;

	pthread_mutex_lock(&heard.lock);
	for (unsigned i = 0; i < heard.nr; i++)
		n += heard.scope[i].begins;
	pthread_mutex_unlock(&heard.lock);
	return n;
}

/* Returns the name of a scope that has not ended, or NULL. */
static const char *not_ended(void)
{
	const char *key = NULL;

	pthread_mutex_lock(&heard.lock);
	for (unsigned i = 0; i < heard.nr && !key; i++) {
		TG_IS(heard.scope[i].begins, 1);
		TG_CHECK(heard.scope[i].ends <= 1);
		if (!heard.scope[i].ends)
			key = heard.scope[i].key;
	}
	pthread_mutex_unlock(&heard.lock);
	return key;
}

/* Waits until all scopes have ended: a handler's scope may end a moment after its reply came. */
static void all_ended(void)
{
	const char *key;

	while ((key = not_ended())) {
		if (now_ns() > tg_deadline()) {
			fprintf(stderr, "%s: has not ended\n", key);
			_exit(1);
		}
		tg_pause();
	}
}

/* Waits for the ends that may come a moment after a test of the future. They come under the lock,
 * or from this thread. */
static void settle(struct rref_ctx *ctx)
{
	(void)tg_stats(ctx);
}

static struct rref_ctx *join_with(int rank, const char *trace)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.scope = hook;
	o.scope_ctx = &heard;
	o.trace = trace;
	TG_OK(rref_init(&o, &ctx));
	tg_meet_serving(ctx, 15);
	return ctx;
}

static void leave(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	all_ended();
	rref_free_ctx(ctx);
}

static void read_async(struct rref *r)
{
	struct rref_future *f;

	TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
}

/* Makes each kind of scope at least once, all from worker 0. */
static unsigned do_all(struct rref_ctx *ctx)
{
	struct rref *mine, *theirs;
	struct rref_future *f;
	struct rref_view *v;
	int status;
	void *data;
	char byte;
	size_t got;

	/* new */
	TG_OK(rref_new(ctx, "m", 1, &mine));
	/* remote */
	TG_OK(rref_remote(ctx, 1, "tg.echo", &(struct rref_args){ .data = "t", .length = 1 },
			  RREF_DEFAULT, &theirs));
	/* to_here */
	TG_OK(rref_to_here(theirs, RREF_DEFAULT, &v));
	rref_view_free(v);
	/* own value: to_here */
	TG_OK(rref_to_here(mine, RREF_DEFAULT, &v));
	rref_view_free(v);
	/* to_here_into */
	TG_OK(rref_to_here_into(theirs, &byte, 0, 1, RREF_DEFAULT, &got));
	/* to_here_batch */
	TG_IS(rref_to_here_batch(&theirs, 1, RREF_DEFAULT, &v, &status), 1);
	rref_view_free(v);
	/* to_here_async */
	read_async(theirs);
	/* the same */
	read_async(mine);
	/* rpc_sync, fork */
	TG_OK(rref_rpc_sync(ctx, 1, "tg.read", &(struct rref_args){ .refs = &mine, .nr_refs = 1 },
			    RREF_DEFAULT, NULL));
	/* rpc_async */
	TG_OK(rref_rpc_async(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	rref_release(theirs);
	rref_release(mine);
	/* alloc */
	TG_OK(rref_alloc(ctx, 8, &mine, &data));
	TG_OK(rref_set(mine));
	rref_release(mine);
	return 12;
}

TG_TEST(scopes__each_kind_begins_and_ends_once, 2)
{
	struct rref_ctx *ctx = join_with(rank, NULL);

	if (rank == 0) {
		unsigned before = all();

		TG_IS(before, 0);
		TG_IS(do_all(ctx), 12);
		settle(ctx);
		TG_IS(all(), 12);
		TG_IS(ended("new#(worker0)->(worker0)", 0, 0, 0), 1);
		TG_IS(ended("alloc#(worker0)->(worker0)", 0, 0, 0), 1);
		TG_IS(ended("remote#tg.echo(worker0)->(worker1)", 0, 1, 1), 1);
		TG_IS(ended("to_here#(worker0)->(worker1)", 0, 0, 1), 1);
		TG_IS(ended("to_here#(worker0)->(worker0)", 0, 0, 0), 1);
		TG_IS(ended("to_here_into#(worker0)->(worker1)", 0, 0, 1), 1);
		TG_IS(ended("to_here_batch#(worker0)->(worker1)", 0, 0, 1), 1);
		TG_IS(ended("to_here_async#(worker0)->(worker1)", 0, 1, 1), 1);
		TG_IS(ended("to_here_async#(worker0)->(worker0)", 0, 1, 0), 1);
		TG_IS(ended("rpc_sync#tg.read(worker0)->(worker1)", 0, 0, 1), 1);
		TG_IS(ended("rpc_async#tg.nothing(worker0)->(worker1)", 0, 1, 1), 1);
		TG_IS(ended("fork#(worker0)->(worker1)", 0, 0, 1), 1);
		all_ended();
		tg_set_flag(0, 1);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		/* The scopes of its handlers. Each handler has returned, or its answer could not
		 * have come. The handler itself made the read. */
		TG_IS(ended("handler#tg.echo(worker0)->(worker1)", 0, 0, 0), 1);
		TG_IS(ended("handler#tg.read(worker0)->(worker1)", 0, 0, 0) <= 1, 1);
		TG_IS(ended("to_here#(worker1)->(worker0)", 0, 0, 0), 1);
	}
	leave(ctx);
	if (rank == 1) {
		TG_IS(ended("handler#tg.read(worker0)->(worker1)", 0, 0, 0), 1);
		TG_IS(ended("handler#tg.nothing(worker0)->(worker1)", 0, 0, 0), 1);
		TG_IS(all(), 4);
	}
	return 0;
}

TG_TEST(scopes__of_failures_end_with_the_error, 2)
{
	struct rref_ctx *ctx = join_with(rank, NULL);

	if (rank == 0) {
		struct rref *r, *unset;
		struct rref_future *f, *cancelled;
		struct rref_view *v;
		void *data;
		int32_t code[4] = { -EDOM };
		struct rref_args fails = { .data = code, .length = 4 };

		TG_IS(rref_rpc_sync(ctx, 1, "tg.fail", &fails, RREF_DEFAULT, NULL), -EDOM);
		TG_IS(ended("rpc_sync#tg.fail(worker0)->(worker1)", -EDOM, 0, 1), 1);
		TG_IS(rref_rpc_sync(ctx, 1, "none", NULL, RREF_DEFAULT, NULL), -ENOSYS);
		TG_IS(ended("rpc_sync#none(worker0)->(worker1)", -ENOSYS, 0, 1), 1);
		TG_IS(rref_rpc_sync(ctx, 7, "none", NULL, RREF_DEFAULT, NULL), -EINVAL);
		TG_TEXT("ranks 0 to 1"); /* the hook did not cost the error its words */
		TG_IS(ended("rpc_sync#none(worker0)->(?)", -EINVAL, 0, 7), 1);
		TG_IS(rref_rpc_sync(ctx, 1, "a\"b\\\n", NULL, RREF_DEFAULT, NULL), -EINVAL);
		TG_IS(ended("rpc_sync#a?b?" "?(worker0)->(worker1)", -EINVAL, 0, 1), 1);
		TG_OK(rref_remote(ctx, 1, "tg.fail", &fails, RREF_DEFAULT, &r));
		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EDOM);
		settle(ctx);
		TG_IS(ended("remote#tg.fail(worker0)->(worker1)", -EDOM, 1, 1), 1);
		TG_IS(ended("to_here#(worker0)->(worker1)", -EDOM, 0, 1), 1);
		rref_release(r);
		TG_OK(rref_remote(ctx, 0, "tg.fail", &fails, RREF_DEFAULT, &r));
		TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EDOM);
		settle(ctx);
		TG_IS(ended("remote#tg.fail(worker0)->(worker0)", -EDOM, 1, 0), 1);
		rref_release(r);
		/* Out of time, and given up. */
		TG_OK(rref_alloc(ctx, 1, &unset, &data));
		TG_IS(rref_to_here(unset, 1, &v), -ETIMEDOUT);
		TG_IS(ended("to_here#(worker0)->(worker0)", -ETIMEDOUT, 0, 0), 1);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, NSEC_PER_MSEC, &f));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &cancelled));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ETIMEDOUT);
		TG_OK(rref_future_cancel(cancelled));
		settle(ctx);
		TG_IS(ended("rpc_async#tg.hold(worker0)->(worker1)", -ETIMEDOUT, 1, 1), 1);
		TG_IS(ended("rpc_async#tg.hold(worker0)->(worker1)", -ECANCELED, 1, 1), 1);
		rref_future_free(f);
		rref_future_free(cancelled);
		/* A future that is freed on its way still ends its scope. */
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
		rref_future_free(f);
		TG_IS(ended("to_here_async#(worker0)->(worker0)", 0, 1, 0), 0);
		TG_OK(rref_set(unset));
		settle(ctx);
		TG_IS(ended("to_here_async#(worker0)->(worker0)", 0, 1, 0), 1);
		rref_release(unset);
		all_ended();
		tg_until_held(ctx, 1, 2);
		TG_IS(tg_release_held(ctx, 1), 2);
	}
	leave(ctx);
	return 0;
}

TG_TEST(scopes__a_shutdown_ends_open_operations, 2)
{
	struct rref_ctx *ctx = join_with(rank, NULL);

	if (rank == 0) {
		struct rref *unset, *r;
		struct rref_future *f, *g;
		void *data;

		TG_OK(rref_alloc(ctx, 1, &unset, &data));
		TG_OK(rref_to_here_async(unset, RREF_FOREVER, &f));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &g));
		TG_OK(rref_remote(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &r));
		tg_until_held(ctx, 1, 2);
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
		all_ended();
		TG_IS(ended("to_here_async#(worker0)->(worker0)", -ESHUTDOWN, 1, 0), 1);
		TG_IS(ended("rpc_async#tg.hold(worker0)->(worker1)", -ESHUTDOWN, 1, 1), 1);
		TG_IS(ended("remote#tg.hold(worker0)->(worker1)", -ESHUTDOWN, 1, 1), 1);
		rref_future_free(f);
		rref_future_free(g);
		rref_release(r);
		rref_release(unset);
		rref_free_ctx(ctx);
		tg_set_flag(0, 1);
		return 0;
	}
	tg_wait_flag_serving(ctx, 0, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	tg_drop_held();
	all_ended();
	rref_free_ctx(ctx);
	return 0;
}

/* ---- the trace file ---- */

static void trace_path(char *to, size_t size, const char *name)
{
	const char *dir = getenv("RREF_TEST_TRACE_DIR");

	if (dir)
		snprintf(to, size, "%s/%s.%%r.json", dir, name);
	else
		snprintf(to, size, "/tmp/rref-%s-%d.%%r.json", name,
			 tg_current ? (int)getppid() : (int)getpid());
}

static char *load(const char *pattern, int rank)
{
	static char text[1 << 20];
	char path[300];
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "%.*s%d.json", (int)(strstr(pattern, "%r") - pattern), pattern,
		 rank);
	file = fopen(path, "r");
	TG_CHECK(file != NULL);
	n = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[n] = 0;
	if (!getenv("RREF_TEST_TRACE_DIR"))
		unlink(path);
	return text;
}

static unsigned lines_with(const char *text, const char *a, const char *b)
{
	unsigned n = 0;

	for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
		char line[1200];

		snprintf(line, sizeof(line), "%.*s", (int)strcspn(p, "\n"), p);
		n += strstr(line, a) && strstr(line, b);
	}
	return n;
}

TG_TEST(trace__holds_every_scope, 2)
{
	char path[256];

	trace_path(path, sizeof(path), "whole");
	struct rref_ctx *ctx = join_with(rank, path);
	char *text;

	if (rank == 0)
		do_all(ctx);
	leave(ctx);
	tg_meet(1);
	text = load(path, rank);
	TG_CHECK(text[0] == '[' && strcmp(text + strlen(text) - 3, "\n]\n") == 0);
	TG_IS(lines_with(text, "\"process_name\"", rank ? "\"worker1\"" : "\"worker0\""), 1);
	TG_CHECK(lines_with(text, "\"thread_name\"", "") >= 1);
	TG_IS(lines_with(text, "\"ph\":\"b\"", ""), lines_with(text, "\"ph\":\"e\"", ""));
	TG_IS(lines_with(text, "\"ph\":\"b\"", "") + lines_with(text, "\"ph\":\"X\"", ""), all());
	if (rank == 0) {
		TG_IS(lines_with(text, "\"ph\":\"b\"", ""), 4);
		TG_IS(lines_with(text, "\"ph\":\"X\"", "\"to_here#(worker0)->(worker1)\""), 1);
		TG_IS(lines_with(text, "\"ph\":\"e\"",
				 "\"rpc_async#tg.nothing(worker0)->(worker1)\""),
		      1);
	}
	return 0;
}

static bool in_file(struct rref_ctx *ctx, void *arg)
{
	char text[8192] = "";
	FILE *file = fopen(arg, "r");

	TG_CHECK(file != NULL);
	text[fread(text, 1, sizeof(text) - 1, file)] = 0;
	fclose(file);
	rref_progress(ctx);
	return strstr(text, "new#") != NULL;
}

static int killed(int rank, void *arg)
{
	struct rref_ctx *ctx = join_with(rank, arg);
	char path[300];
	struct rref *r;

	TG_OK(rref_new(ctx, "x", 1, &r));
	/* The timers write it, without a further scope or an orderly end. */
	snprintf(path, sizeof(path), "%.*s0.json", (int)(strstr((char *)arg, "%r") - (char *)arg),
		 (char *)arg);
	TG_CHECK(tg_eventually(in_file, ctx, path));
	kill(getpid(), SIGKILL);
	return 1;
}

/* Checks the file of a killed worker: whole events up to a
 * second before, and no closing bracket. */
static void trace__of_a_killed_worker(void **state)
{
	struct tg_group g = { .world = 1, .expect_killed = { 1 } };
	char path[256], *text;

	(void)state;
	trace_path(path, sizeof(path), "killed");
	assert_int_equal(tg_run_group(&g, killed, path), 0);
	text = load(path, 0);
	assert_int_equal(text[0], '[');
	assert_int_equal(text[strlen(text) - 1], '}');
	assert_int_equal(lines_with(text, "\"ph\":\"X\"", "\"new#(worker0)->(worker0)\""), 1);
	assert_int_equal(lines_with(text, "", ""), 1 + lines_with(text, "{\"name\":", "}"));
}

TG_TEST(trace__a_file_that_cannot_be_made, 1)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.trace = "/nonexistent/trace";
	TG_IS(rref_init(&o, &ctx), -EIO);
	TG_TEXT("/nonexistent/trace.0");
	TG_IS(setenv("RREF_TRACE", "", 1), 0);
	TG_IS(rref_options_from_env(&o), -EINVAL);
	TG_TEXT("RREF_TRACE");
	TG_IS(setenv("RREF_TRACE", "/some/where", 1), 0);
	TG_OK(rref_options_from_env(&o));
	TG_CHECK(strcmp(o.trace, "/some/where") == 0);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scopes__each_kind_begins_and_ends_once),
		cmocka_unit_test(scopes__of_failures_end_with_the_error),
		cmocka_unit_test(scopes__a_shutdown_ends_open_operations),
		cmocka_unit_test(trace__holds_every_scope),
		cmocka_unit_test(trace__of_a_killed_worker),
		cmocka_unit_test(trace__a_file_that_cannot_be_made),
	};

	return cmocka_run_group_tests_name("scopes", tests, NULL, NULL);
}
