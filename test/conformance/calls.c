/* SPDX-License-Identifier: Apache-2.0 */
/* Calls: callers and callees, arguments and results, and time-outs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/wire/wire.h"
#include "tg_refs.h"

#define MS NSEC_PER_MSEC

TG_TEST(c023_by_name_rank_and_info, 3)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_worker_info w = { .size = sizeof(w) };
	struct rref_future *f;
	char name[32];
	int got;

	for (int i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "worker%d", i);
		int to = rref_worker_by_name(ctx, name);

		TG_IS(to, i);
		TG_OK(rref_worker(ctx, to, &w));
		TG_CHECK(w.rank == i && strcmp(w.name, name) == 0 && w.incarnation != 0 && w.alive);
		TG_OK(rref_rpc_sync(ctx, to, "tg.echo", tg_bytes(&i, sizeof(i)), RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c024_twenty_in_sequence, 4)
{
	struct rref_ctx *ctx = tg_join(rank);

	for (int i = 0; i < 20; i++) {
		struct rref_future *f;
		int got;

		TG_OK(rref_rpc_sync(ctx, (rank + 1) % 4, "tg.echo", tg_bytes(&i, sizeof(i)),
				    RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f);
	}
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	tg_finish(ctx);
	return 0;
}

TG_TEST(c025_a_failed_future_fails_at_every_wait, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *good = tg_start(ctx, 1 - rank, "tg.echo", "x", 1),
			   *bad = tg_start(ctx, 1 - rank, "no.such", NULL, 0);

	for (int i = 0; i < 3; i++) {
		TG_IS(rref_future_wait(good, RREF_DEFAULT), 0);
		TG_IS(rref_future_wait(bad, RREF_DEFAULT), -ENOSYS);
		TG_IS(rref_future_wait(good, 0), 0);
		TG_IS(rref_future_wait(bad, RREF_FOREVER), -ENOSYS);
	}
	rref_future_free(good);
	rref_future_free(bad);
	tg_finish(ctx);
	return 0;
}

static int who(struct rref_call *call, void *arg)
{
	int32_t caller = rref_call_caller(call);

	(void)arg;
	TG_CHECK(strcmp(rref_call_function(call), "who.is-it:now_1") == 0);
	TG_CHECK(rref_call_length(call) == 0 && rref_call_nr_refs(call) == 0);
	TG_CHECK(rref_call_ref(call, 0) == NULL);
	return rref_call_reply(call, tg_bytes(&caller, sizeof(caller)));
}

TG_TEST(c032_the_callee_sees_its_caller, 3)
{
	struct rref_function fn = { .name = "who.is-it:now_1", .handler = who };
	struct rref_ctx *ctx = tg_init(rank, &fn, 1);
	struct rref_future *f;
	int32_t got;

	for (int to = 0; to < 3; to++) {
		TG_OK(rref_rpc_sync(ctx, to, "who.is-it:now_1", NULL, RREF_DEFAULT, &f));
		tg_result(f, &got, sizeof(got));
		TG_IS(got, rank);
		rref_future_free(f);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c036_nothing_in_and_out, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f;
	const void *data;
	size_t length = 9;

	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.nothing", tg_bytes("ignored", 7), RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_IS(length, 0);
	rref_future_free(f);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_IS(length, 0);
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c036_payload_up_to_the_limit, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static unsigned char payload[RW_INLINE_MAX + 1];
	static const size_t sizes[] = { 0,
					1,
					2,
					63,
					64,
					65,
					1023,
					1024,
					2048,
					RW_INLINE_MAX - 1,
					RW_INLINE_MAX,
					RW_INLINE_MAX + 1 };
	struct rref_future *f = NULL;
	const void *data;
	size_t length;

	tg_fill(payload, sizeof(payload), 7);
	for (int to = 0; to < 2; to++) {
		for (size_t i = 0; i < array_size(sizes); i++) {
			TG_OK(rref_rpc_sync(ctx, to, "tg.echo", tg_bytes(payload, sizes[i]),
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_data(f, &data, &length));
			TG_IS(length, sizes[i]);
			TG_CHECK(!length || memcmp(data, payload, length) == 0);
			rref_future_free(f);
		}
		f = NULL;
		TG_IS(rref_rpc_sync(ctx, to, "tg.echo",
				    tg_bytes(payload, (size_t)RREF_ARGS_MAX + 1), RREF_DEFAULT, &f),
		      -EMSGSIZE);
		TG_TEXT("268435457");
		TG_CHECK(!f);
	}
	tg_finish(ctx);
	return 0;
}

/* The payload is too large for a message: the receiver reads it. */
TG_TEST(c036_large_payloads, 2)
{
	static const size_t sizes[] = { 4096, 70001, 1 << 20 };
	struct rref_ctx *ctx = tg_join(rank);
	unsigned char *payload = malloc(sizes[2]);
	struct rref_future *f;
	const void *data;
	size_t length;

	TG_CHECK(payload);
	tg_fill(payload, sizes[2], (unsigned)rank);
	for (int to = 0; to < 2; to++)
		for (size_t i = 0; i < array_size(sizes); i++) {
			TG_OK(rref_rpc_sync(ctx, to, "tg.echo", tg_bytes(payload, sizes[i]),
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_data(f, &data, &length));
			TG_CHECK(length == sizes[i] && tg_filled(data, length, 0, (unsigned)rank));
			rref_future_free(f);
		}
	free(payload);
	tg_finish(ctx);
	return 0;
}

/* The largest message: the longest name, all bytes, all references with their locations. */
TG_TEST(c036_a_full_message, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static unsigned char payload[RW_INLINE_MAX];
	char name[RREF_NAME_MAX + 1];
	struct rref *refs[RW_REFS_MAX];
	struct rref_future *f;
	const void *data;
	size_t length;

	memset(name, 'n', RREF_NAME_MAX);
	name[RREF_NAME_MAX] = 0;
	tg_add(ctx, name, tg_functions[2].handler, 0);
	tg_meet_serving(ctx, 0);
	tg_fill(payload, sizeof(payload), 3);
	for (size_t i = 0; i < RW_REFS_MAX; i++)
		TG_OK(rref_new(ctx, &i, sizeof(i), &refs[i]));
	TG_OK(rref_rpc_sync(ctx, 1 - rank, name,
			    &(struct rref_args){ .data = payload,
						 .length = sizeof(payload),
						 .refs = refs,
						 .nr_refs = RW_REFS_MAX },
			    RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_CHECK(length == sizeof(payload) && memcmp(data, payload, length) == 0);
	TG_IS(rref_future_nr_refs(f), RW_REFS_MAX);
	for (size_t i = 0; i < RW_REFS_MAX; i++) {
		struct rref *back;

		TG_OK(rref_future_ref(f, i, &back));
		TG_CHECK(rref_equal(back, refs[i]) && rref_is_owner(back));
		tg_expect_bytes(back, &i, sizeof(i));
		rref_release(back);
		rref_release(refs[i]);
	}
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c037_error_code_and_text_travel, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct {
		int32_t code;
		char text[64];
	} a = { -EDOM, "line one\nline two: 100%s of it\n" };
	struct rref_error e = { .size = sizeof(e) };
	struct rref_future *f = NULL;
	const void *data;
	size_t length;

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_rpc_async(ctx, to, "tg.fail",
				     tg_bytes(&a, sizeof(a.code) + strlen(a.text)), RREF_DEFAULT,
				     &f));
		for (int again = 0; again < 2; again++) {
			TG_IS(rref_future_wait(f, RREF_DEFAULT), -EDOM);
			TG_CHECK(strcmp(rref_last_error(), a.text) == 0);
		}
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.err == -EDOM && e.peer == to && e.wc_status == -1 &&
			 strcmp(e.text, a.text) == 0);
		TG_IS(rref_future_data(f, &data, &length), -EDOM);
		rref_future_free(f);
		f = NULL;
		TG_IS(rref_rpc_sync(ctx, to, "tg.fail",
				    tg_bytes(&a, sizeof(a.code) + strlen(a.text)), RREF_DEFAULT,
				    &f),
		      -EDOM);
		TG_CHECK(strcmp(rref_last_error(), a.text) == 0);
		TG_CHECK(!f);
	}
	tg_finish(ctx);
	return 0;
}

static int call_back(struct rref_call *call, void *arg)
{
	struct rref_future *f;
	const void *data;
	size_t length;
	int err = rref_rpc_sync(rref_call_context(call), rref_call_caller(call), "tg.echo",
				tg_bytes(rref_call_data(call), rref_call_length(call)),
				RREF_DEFAULT, &f);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	TG_OK(rref_future_data(f, &data, &length));
	err = rref_call_reply(call, tg_bytes(data, length));
	rref_future_free(f);
	return err;
}

TG_TEST(c038_the_callee_calls_its_caller_back, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f[40];

	tg_add(ctx, "back", call_back, 0);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < 40; i++)
		TG_OK(rref_rpc_async(ctx, i % 2, "back", tg_bytes(&i, sizeof(i)), RREF_DEFAULT,
				     &f[i]));
	for (int i = 0; i < 40; i++) {
		int got;

		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c039_a_thousand_light_calls, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	int n = tg_scale(1000);
	struct rref_future **f = calloc((size_t)n, sizeof(struct rref_future *));

	for (int i = 0; i < n; i++)
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", tg_bytes(&i, sizeof(i)),
				     RREF_DEFAULT, &f[i]));
	TG_OK(rref_wait_all(f, (size_t)n, RREF_DEFAULT));
	for (int i = 0; i < n; i++) {
		int got;

		tg_result(f[i], &got, sizeof(got));
		TG_IS(got, i);
		rref_future_free(f[i]);
	}
	free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(c039_twenty_heavy_calls, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	size_t size = tg_is_shm() ? 1 << 20 : 1 << 16, length;
	unsigned char *payload = malloc(size);
	struct rref_future *f[20];
	const void *data;

	TG_CHECK(payload);
	for (unsigned i = 0; i < 20; i++) {
		tg_fill(payload, size, i);
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", tg_bytes(payload, size),
				     RREF_DEFAULT, &f[i]));
	}
	for (unsigned i = 0; i < 20; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		TG_OK(rref_future_data(f[i], &data, &length));
		TG_CHECK(length == size && tg_filled(data, length, 0, i));
		rref_future_free(f[i]);
	}
	free(payload);
	tg_finish(ctx);
	return 0;
}

/* The largest payload that needs no READ. */
TG_TEST(c039_two_hundred_full_messages, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	static unsigned char payload[RW_INLINE_MAX];
	struct rref_future *f[200];
	const void *data;
	size_t length;

	tg_fill(payload, sizeof(payload), (unsigned)rank);
	for (int i = 0; i < 200; i++)
		TG_OK(rref_rpc_async(ctx, 1 - rank, "tg.echo", tg_bytes(payload, sizeof(payload)),
				     RREF_DEFAULT, &f[i]));
	for (int i = 0; i < 200; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		TG_OK(rref_future_data(f[i], &data, &length));
		TG_CHECK(length == sizeof(payload) && memcmp(data, payload, length) == 0);
		rref_future_free(f[i]);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c080_082_per_call_and_default_timeout, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref_future *shorter, *longer, *forever, *standard;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.timeout = rank == 0 ? 300 * MS : o.timeout;
	TG_OK(rref_init(&o, &ctx));
	if (rank == 0) {
		/* The shortest might end before it is sent if there is no session. */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, 60 * NSEC_PER_SEC, NULL));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 20 * MS, &shorter));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 60 * NSEC_PER_SEC, &longer));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &forever));
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_DEFAULT, &standard));
		/* Each call ends by its own time; the waits have no time-out. */
		TG_IS(rref_future_wait(shorter, RREF_FOREVER), -ETIMEDOUT);
		TG_IS(rref_future_test(shorter), 1);
		TG_IS(rref_future_wait(standard, RREF_FOREVER), -ETIMEDOUT);
		TG_IS(rref_future_test(standard), 1);
		TG_IS(rref_future_test(longer), 0);
		TG_IS(rref_future_test(forever), 0);
		/* A wait's own time is not the call's. */
		TG_IS(rref_future_wait(longer, 1 * MS), -ETIMEDOUT);
		TG_IS(rref_future_test(longer), 0);
		tg_until_held(ctx, 1, 4);
		TG_IS(tg_release_held(ctx, 1), 4);
		TG_OK(rref_future_wait(longer, 20 * NSEC_PER_SEC));
		TG_OK(rref_future_wait(forever, 20 * NSEC_PER_SEC));
		rref_future_free(shorter);
		rref_future_free(longer);
		rref_future_free(forever);
		rref_future_free(standard);
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	rref_free_ctx(ctx);
	return 0;
}

/* A new default is for calls that begin after it; calls under way keep their own. */
TG_TEST(c080_082_the_default_changes, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 0) {
		struct rref_future *before, *after, *own;

		TG_IS(rref_set_timeout(ctx, 0), -EINVAL);
		TG_IS(rref_set_timeout(ctx, RREF_DEFAULT), -EINVAL);
		TG_TEXT("above 0");
		/* make the session */
		TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		before = tg_start(ctx, 1, "tg.hold", NULL, 0);
		TG_OK(rref_set_timeout(ctx, 30 * MS));
		after = tg_start(ctx, 1, "tg.hold", NULL, 0);
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, 20 * NSEC_PER_SEC, &own));
		TG_IS(rref_future_wait(after, RREF_FOREVER), -ETIMEDOUT);
		TG_IS(rref_future_test(after), 1);
		TG_IS(rref_future_test(before) + rref_future_test(own), 0);
		TG_OK(rref_set_timeout(ctx, RREF_FOREVER));
		struct rref_future *none = tg_start(ctx, 1, "tg.hold", NULL, 0);

		tg_until_held(ctx, 1, 4);
		TG_IS(rref_future_test(none), 0);
		TG_IS(tg_release_held(ctx, 1), 4);
		TG_OK(rref_future_wait(before, RREF_DEFAULT));
		TG_OK(rref_future_wait(own, RREF_DEFAULT));
		TG_OK(rref_future_wait(none, RREF_DEFAULT));
		rref_future_free(before);
		rref_future_free(after);
		rref_future_free(own);
		rref_future_free(none);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(c084_unknown_function, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_error e = { .size = sizeof(e) };
	struct rref_future *f;

	for (int to = 0; to < 2; to++) {
		TG_OK(rref_rpc_async(ctx, to, "no.such", NULL, RREF_DEFAULT, &f));
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENOSYS);
		TG_TEXT("no.such");
		TG_OK(rref_future_error(f, &e));
		TG_CHECK(e.err == -ENOSYS && e.peer == to && strstr(e.text, "no.such"));
		rref_future_free(f);
		TG_OK(rref_rpc_sync(ctx, to, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(c023_by_name_rank_and_info),
		cmocka_unit_test(c024_twenty_in_sequence),
		cmocka_unit_test(c025_a_failed_future_fails_at_every_wait),
		cmocka_unit_test(c032_the_callee_sees_its_caller),
		cmocka_unit_test(c036_nothing_in_and_out),
		cmocka_unit_test(c036_payload_up_to_the_limit),
		cmocka_unit_test(c036_large_payloads),
		cmocka_unit_test(c036_a_full_message),
		cmocka_unit_test(c037_error_code_and_text_travel),
		cmocka_unit_test(c038_the_callee_calls_its_caller_back),
		cmocka_unit_test(c039_a_thousand_light_calls),
		cmocka_unit_test(c039_twenty_heavy_calls),
		cmocka_unit_test(c039_two_hundred_full_messages),
		cmocka_unit_test(c080_082_per_call_and_default_timeout),
		cmocka_unit_test(c080_082_the_default_changes),
		cmocka_unit_test(c084_unknown_function),
	};

	return cmocka_run_group_tests_name("calls", tests, NULL, NULL);
}
