/* SPDX-License-Identifier: Apache-2.0 */
/* A session that one side ends although both workers live. Earlier shares are fenced, and later
 * ones work in a new epoch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/op/kind.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "tg.h"

static int first_byte(struct rref_call *call, void *arg)
{
	struct rref_view *v;
	unsigned char byte;

	(void)arg;
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	byte = *(const unsigned char *)rref_view_data(v);
	rref_view_free(v);
	return rref_call_reply(call, &(struct rref_args){ .data = &byte, .length = 1 });
}

static int echo(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_reply(call,
			       &(struct rref_args){ .data = rref_call_data(call),
						    .length = rref_call_length(call) });
}

/* Answers with one value that its owner keeps. */
static int kept(struct rref_call *call, void *arg)
{
	static struct rref *r;

	(void)arg;
	if (!r)
		TG_OK(rref_new(rref_call_context(call), "kept", 4, &r));
	return rref_call_reply(call, &(struct rref_args){ .refs = &r, .nr_refs = 1 });
}

static const struct rref_function functions[] = {
	{ .name = "kept", .handler = kept },
	{ .name = "first_byte", .handler = first_byte },
	{ .name = "echo", .handler = echo },
};

static void share(struct rref_ctx *ctx, unsigned char byte)
{
	struct rref_future *f;
	struct rref *r;
	const void *data;
	size_t length;

	TG_OK(rref_new(ctx, &byte, 1, &r));
	TG_OK(rref_rpc_sync(ctx, 1, "first_byte", &(struct rref_args){ .refs = &r, .nr_refs = 1 },
			    RREF_DEFAULT, &f));
	TG_OK(rref_future_data(f, &data, &length));
	TG_CHECK(length == 1 && *(const unsigned char *)data == byte);
	rref_future_free(f);
	rref_release(r);
}

static struct rref *create(struct rref_ctx *ctx, unsigned char byte)
{
	struct rref *r;
	struct rref_view *v;

	TG_OK(rref_remote(ctx, 1, "echo", &(struct rref_args){ .data = &byte, .length = 1 },
			  RREF_DEFAULT, &r));
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_IS(*(const unsigned char *)rref_view_data(v), byte);
	rref_view_free(v);
	return r;
}

/* Tells of a later session, too: a loaded machine may look only when the next one is up. */
static bool peer_was_down(struct rref_ctx *ctx, void *arg)
{
	bool later;

	(void)arg;
	rc_lock(ctx);
	later = ctx->peers[0].epoch > 1;
	rc_unlock(ctx);
	return later || !at_load(&ctx->peers[0].alive);
}

static uint32_t epoch_with_1(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	uint32_t epoch = ctx->peers[1].epoch;

	rc_unlock(ctx);
	return epoch;
}

static int broken(int rank, void *arg)
{
	struct rref_ctx *ctx = tg_init(rank, functions, array_size(functions));
	bool by_creation = arg != NULL;

	if (rank == 1) {
		/* Serves until the connection is gone, and finds that by itself. */
		TG_CHECK(tg_eventually(peer_was_down, ctx, NULL));
	} else {
		struct rref *old = create(ctx, 1);
		struct rref_view *v;
		uint32_t epoch = epoch_with_1(ctx);

		share(ctx, 2);
		rc_lock(ctx);
		rc_session_end(ctx, &ctx->peers[1], -ENETRESET, "the test broke it");
		rc_unlock(ctx);
		/* References of the old session are gone, and their errors say so. */
		TG_IS(rref_to_here(old, RREF_DEFAULT, &v), -ENETRESET);
		rref_release(old);
		/* an unreachable peer is not tried again for some time: wait longer */
		usleep(300000);
		if (by_creation) {
			rref_release(create(ctx, 3));
			share(ctx, 4);
		} else {
			share(ctx, 3);
			rref_release(create(ctx, 4));
		}
		TG_CHECK(epoch_with_1(ctx) > epoch);
	}
	tg_finish(ctx);
	return 0;
}

static void broken__sharing_begins_a_new_session(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, broken, NULL), 0);
}

static void broken__creating_begins_a_new_session(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, broken, (void *)1), 0);
}

static struct rref *get_kept(struct rref_ctx *ctx)
{
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_rpc_sync(ctx, 1, "kept", NULL, RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	return r;
}

static bool session_is_up(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return at_load_sc(&ctx->peers[1].conn) != NULL;
}

/*
 * A thread finds its reference ready, is held up, and goes on in a new session.
 * There the owner keeps nothing for the reference, and may free the value
 * during the read. White box: the thread's next steps.
 */
TG_TEST(broken__a_read_about_to_begin, 2)
{
	struct rref_ctx *ctx = tg_init(rank, functions, array_size(functions));

	if (rank == 1) {
		TG_CHECK(tg_eventually(peer_was_down, ctx, NULL));
	} else {
		struct rref *old = get_kept(ctx), *new;
		struct rref_view *v = NULL;
		struct rref_future *f;

		rc_lock(ctx);
		rc_session_end(ctx, &ctx->peers[1], -ENETRESET, "the test broke it");
		rc_unlock(ctx);
		usleep(300000);
		new = get_kept(ctx);
		TG_CHECK(rref_equal(old, new) && tg_eventually(session_is_up, ctx, NULL));
		tg_expect_bytes(new, "kept", 4);
		uint64_t reads = tg_stats(ctx).reads;

		struct rc_peer *p = &ctx->peers[1];

		int err = p->reads_inline ? rc_fast_read_copied(old, RREF_DEFAULT, &v, p)
					  : rc_fast_read_posted(old, RREF_DEFAULT, &v, p);

		TG_IS(err, -ENETRESET);
		TG_OK(rc_op_get(ctx, &rc_read_kind, INT64_MAX, &f));
		f->handle = rref_dup(old);
		f->peer = 1;
		f->loc = rc_remote(old)->loc;
		f->offset = 0;
		f->length = SIZE_MAX;
		f->whole = true;
		rc_op_begin(f);
		rc_read_start(f);
		TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENETRESET);
		rref_future_free(f);
		TG_CHECK(!v);
		TG_IS(tg_stats(ctx).reads, reads);
		rref_release(old);
		rref_release(new);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(broken__a_read_about_to_begin),
		cmocka_unit_test(broken__creating_begins_a_new_session),
		cmocka_unit_test(broken__sharing_begins_a_new_session),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
