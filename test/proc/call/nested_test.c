/* SPDX-License-Identifier: Apache-2.0 */
/* Values that hold references: refusals, values made in place, and their visible state. */
#define RREF_DEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

static struct rref *value(struct rref_ctx *ctx, const char *text)
{
	struct rref *r;

	TG_OK(rref_new(ctx, text, strlen(text), &r));
	return r;
}

static struct rref_view *view_of(struct rref *r)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	return v;
}

static char *dump(struct rref_ctx *ctx)
{
	static char text[65536];

	TG_CHECK(rref_dump(ctx, text, sizeof(text)) < (int)sizeof(text));
	return text;
}

TG_TEST(arguments__refused, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value(ctx, "in"), *there = tg_remote(ctx, 1, "tg.echo", "x", 1),
			    *out = NULL, *null = NULL;
		struct rref_options o;
		struct rref_ctx *alone;
		struct rref *foreign;
		struct rref_view *v;
		struct rref_future *f = NULL;
		void *data;

		rref_options_init(&o);
		o.name = "alone";
		o.world_size = 1;
		TG_OK(rref_init(&o, &alone));
		foreign = value(alone, "of another context");
		TG_IS(rref_new_value(
			      ctx, TG_VALUE(.data = "x", .length = 1, .refs = &null, .nr_refs = 1),
			      &out),
		      -EINVAL);
		TG_IS(rref_new_value(ctx, TG_VALUE(.data = "x", .length = 1, .nr_refs = 1), &out),
		      -EINVAL);
		TG_IS(rref_new_value(ctx, TG_VALUE(.length = 1, .refs = &r, .nr_refs = 1), &out),
		      -EINVAL);
		TG_IS(rref_new_value(ctx,
				     TG_VALUE(.data = "x", .length = 1, .refs = &r, .nr_refs = 1),
				     NULL),
		      -EINVAL);
		TG_IS(rref_new_value(NULL,
				     TG_VALUE(.data = "x", .length = 1, .refs = &r, .nr_refs = 1),
				     &out),
		      -EINVAL);
		TG_IS(rref_new_value(
			      ctx,
			      TG_VALUE(.data = "x", .length = 1, .refs = &foreign, .nr_refs = 1),
			      &out),
		      -EINVAL);
		TG_TEXT("another context");
		TG_IS(rref_new_value(ctx,
				     TG_VALUE(.data = "x", .length = 1, .refs = &r,
					      .nr_refs = RREF_REFS_MAX + 1),
				     &out),
		      -EMSGSIZE);
		TG_IS(rref_set_refs(NULL, &r, 1), -EINVAL);
		TG_IS(rref_set_refs(there, &r, 1), -EPERM);
		TG_IS(rref_set_refs(r, &r, 1), -EALREADY);
		TG_OK(rref_alloc(ctx, 1, &out, &data));
		TG_IS(rref_set_refs(out, &foreign, 1), -EINVAL);
		TG_OK(rref_set_refs(out, &r, 1));
		TG_OK(rref_set(out));
		TG_IS(rref_set_refs(out, &r, 1), -EALREADY);
		v = view_of(out);
		TG_IS(rref_view_refs(NULL, 0, 1, RREF_DEFAULT, &r), -EINVAL);
		TG_IS(rref_view_refs(v, 0, 1, RREF_DEFAULT, NULL), -EINVAL);
		TG_IS(rref_view_ref(v, 0, RREF_DEFAULT, NULL), -EINVAL);
		TG_IS(rref_view_refs_async(v, 0, 1, RREF_DEFAULT, NULL), -EINVAL);
		TG_IS(rref_view_refs_async(v, 1, 1, RREF_DEFAULT, &f), -EINVAL);
		TG_IS(rref_view_refs_async(v, SIZE_MAX, 2, RREF_DEFAULT, &f), -EINVAL);
		TG_IS(rref_view_refs_async(v, 0, SIZE_MAX, RREF_DEFAULT, &f), -EINVAL);
		TG_IS(rref_view_nr_refs(NULL), 0);
		TG_CHECK(!f);
		rref_view_free(v);
		/* A value without references gives none. */
		v = view_of(there);
		TG_IS(rref_view_nr_refs(v), 0);
		TG_IS(rref_view_ref(v, 0, RREF_DEFAULT, &out), -EINVAL);
		rref_view_free(v);
		rref_release(out);
		rref_release(r);
		rref_release(there);
		rref_release(foreign);
		TG_OK(rref_shutdown(alone, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
		rref_free_ctx(alone);
		tg_all_clean(ctx);
		TG_IS(tg_stats(ctx).nested, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* References are filled in place, in several segments. They are given
 * before they are set, and may be given again. */
TG_TEST(in_place__and_said_anew, 2)
{
	static const struct rref_type pair = { .size = sizeof(pair),
					       .name = "pair",
					       .element_size = 4 };
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *a = value(ctx, "a"), *b = value(ctx, "b"), *out, *never, *failed;
		struct iovec seg[2] = { { .iov_len = 4 }, { .iov_len = 8 } };
		void *data;

		TG_OK(rref_alloc_value(ctx,
				       TG_VALUE(.segments = seg, .nr_segments = 2, .type = &pair),
				       &out, seg));
		memset(seg[0].iov_base, 'p', 4);
		memset(seg[1].iov_base, 'q', 8);
		TG_OK(rref_set_refs(out, (struct rref *[]){ a, a, a }, 3));
		TG_IS(tg_stats(ctx).nested, 3);
		TG_OK(rref_set_refs(out, (struct rref *[]){ b, a }, 2));
		TG_IS(tg_stats(ctx).nested, 2);
		TG_OK(rref_set_refs(out, NULL, 0));
		TG_IS(tg_stats(ctx).nested, 0);
		TG_OK(rref_set_refs(out, (struct rref *[]){ b, a }, 2));
		/* A waiting reader gets the whole value. */
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&out, 1), RREF_DEFAULT, NULL));
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 1, 1);
		TG_OK(rref_set(out));
		/* The references of a value that is never set, and of
		 * a failed one, are released. */
		TG_OK(rref_alloc(ctx, 1, &never, &data));
		TG_OK(rref_set_refs(never, &a, 1));
		TG_OK(rref_alloc(ctx, 1, &failed, &data));
		TG_OK(rref_set_refs(failed, &a, 1));
		TG_IS(tg_stats(ctx).nested, 4);
		TG_OK(rref_set_error(failed, -EDOM, "no"));
		TG_IS(tg_stats(ctx).nested, 3);
		rref_release(never);
		rref_release(failed);
		TG_IS(tg_stats(ctx).nested, 2);
		rref_release(a);
		rref_release(b);
		rref_release(out);
		tg_wait_flag_serving(ctx, 2, 1);
		tg_all_clean(ctx);
		TG_IS(tg_stats(ctx).nested, 0);
	} else {
		struct rref_future *f;
		struct rref_view *v;
		struct iovec seg[2];
		struct rref *r[2];
		char bytes[4];
		size_t got;

		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_to_here_async(tg_kept(0), RREF_DEFAULT, &f));
		TG_IS(rref_future_test(f), 0);
		tg_set_flag(1, 1);
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		TG_OK(rref_future_view(f, &v));
		rref_future_free(f);
		TG_IS(rref_view_segments(v, seg, 2), 2);
		TG_CHECK(!memcmp(seg[0].iov_base, "pppp", 4) &&
			 !memcmp(seg[1].iov_base, "qqqqqqqq", 8));
		TG_IS(rref_view_nr_refs(v), 2);
		TG_OK(rref_view_refs(v, 0, 2, RREF_DEFAULT, r));
		tg_expect_bytes(r[0], "b", 1);
		tg_expect_bytes(r[1], "a", 1);
		/* Memory of the program receives the bytes alone. */
		TG_OK(rref_to_here_into(tg_kept(0), bytes, 66, 4, RREF_DEFAULT, &got));
		TG_CHECK(got == 4 && !memcmp(bytes, "qqqq", 4));
		rref_release(r[0]);
		rref_release(r[1]);
		rref_view_free(v);
		tg_drop_kept();
		tg_set_flag(2, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* Values of every size: the view's own hold lies wherever a landing block ends. */
TG_TEST(sizes__of_the_value, 2)
{
	static const size_t sizes[] = {
		0,	1,	7,	8,	47,	48,	49,	 63,	       64,
		65,	112,	113,	120,	127,	128,	4096,	 131007,       131072,
		262079, 262080, 262081, 262143, 262144, 262145, 1 << 20, (1 << 20) + 3
	};
	struct rref_ctx *ctx = tg_join_refs(rank);
	static char data[(1 << 20) + 8];

	for (size_t i = 0; i < array_size(sizes) && rank == 0; i++) {
		struct rref *in = value(ctx, "in"), *out;

		tg_fill(data, sizes[i], (unsigned)i);
		TG_OK(rref_new_value(
			ctx, TG_VALUE(.data = data, .length = sizes[i], .refs = &in, .nr_refs = 1),
			&out));
		rref_release(in);
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&out, 1), RREF_DEFAULT, NULL));
		rref_release(out);
	}
	tg_meet_serving(ctx, 0);
	for (size_t i = 0; i < array_size(sizes) && rank == 1; i++) {
		struct rref_view *v = view_of(tg_kept((int)i)), *again = view_of(tg_kept((int)i));
		struct rref *r;

		TG_CHECK(rref_view_length(v) == sizes[i] &&
			 tg_filled(rref_view_data(v), sizes[i], 0, (unsigned)i));
		TG_IS(rref_view_nr_refs(v), 1);
		rref_view_free(again);
		TG_OK(rref_view_ref(v, 0, RREF_DEFAULT, &r));
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
		TG_CHECK(tg_filled(rref_view_data(v), sizes[i], 0, (unsigned)i));
		rref_view_free(v);
	}
	if (rank == 1) {
		tg_drop_kept();
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* A value that stays with its owner holds references like any
 * other. They are taken in its place. */
TG_TEST(local_only__gives_references_to_its_owner, 2)
{
	static const struct rref_type type = { .size = sizeof(type),
					       .name = "secret",
					       .flags = RREF_LOCAL_ONLY };
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *in = tg_remote(ctx, 1, "tg.echo", "in", 2), *out, *r;
		struct rref_view *v;
		struct iovec seg = { .iov_len = 4 };
		struct rref_future *f;

		TG_OK(rref_alloc_value(ctx,
				       TG_VALUE(.segments = &seg, .nr_segments = 1, .type = &type),
				       &out, &seg));
		TG_OK(rref_set_refs(out, &in, 1));
		TG_OK(rref_set(out));
		rref_release(in);
		v = view_of(out);
		TG_OK(rref_view_refs_async(v, 0, 1, RREF_DEFAULT, &f));
		TG_IS(rref_future_test(f), 1);
		TG_IS(rref_future_nr_refs(f), 1);
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		TG_OK(rref_view_refs_async(v, 0, 1, RREF_DEFAULT, &f));
		rref_future_free(f); /* untaken references go with it */
		tg_expect_bytes(r, "in", 2);
		rref_view_free(v);
		rref_release(out);
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* The dump names the value that holds a reference, on both sides. */
TG_TEST(dump__names_nested_references, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *own = value(ctx, "own"),
			    *there = tg_remote(ctx, 1, "tg.echo", "there", 5), *out;
		struct rref *both[2] = { there, own };
		struct rref_id id, fork;
		char line[200], *text;

		TG_OK(rref_new_value(
			ctx, TG_VALUE(.data = "out", .length = 3, .refs = both, .nr_refs = 2),
			&out));
		tg_expect_bytes(there, "there", 5);
		id = rref_get_id(there);
		fork = rref_fork_id(there);
		text = dump(ctx);
		snprintf(line, sizeof(line),
			 "nested id=(0,%lu) fork=(0,%lu) in=(0,%lu) at=0 owner=worker1\n",
			 (unsigned long)id.local_id, (unsigned long)fork.local_id,
			 (unsigned long)rref_get_id(out).local_id);
		TG_CHECK(strstr(text, line));
		snprintf(line, sizeof(line), "nested id=(0,%lu) in=(0,%lu) at=1 owner=worker0\n",
			 (unsigned long)rref_get_id(own).local_id,
			 (unsigned long)rref_get_id(out).local_id);
		TG_CHECK(strstr(text, line));
		TG_CHECK(strstr(text, " bytes=3 refs=2 type=bytes "));
		TG_CHECK(strstr(text, " holds=2 nested=1\n")); /* the program's and the value's */
		rref_release(there);
		TG_CHECK(strstr(dump(ctx), " holds=1 nested=1\n"));
		rref_release(own);
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&out, 1), RREF_DEFAULT, NULL));
		rref_release(out);
		TG_CHECK(strstr(dump(ctx), "nested id="));
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 1, 1);
		tg_until_clean(ctx, 0);
		TG_CHECK(!strstr(dump(ctx), "nested"));
	} else {
		struct rref_view *v;
		struct rref *r[2];

		tg_wait_flag_serving(ctx, 0, 1);
		v = view_of(tg_kept(0));
		TG_OK(rref_view_ref(v, 0, RREF_DEFAULT, &r[0]));
		TG_OK(rref_view_ref(v, 1, RREF_DEFAULT, &r[1]));
		TG_CHECK(rref_is_owner(r[0]));
		/* the place of the call */
		TG_CHECK(strstr(dump(ctx), "site=test/proc/call/nested_test.c:"));
		rref_release(r[0]);
		rref_release(r[1]);
		rref_view_free(v);
		tg_drop_kept();
		tg_set_flag(1, 1);
	}
	tg_finish(ctx);
	return 0;
}

/* A handler on every thread takes, while the value's owner lets go and makes it anew. */
/* ---- values in the program's memory ---- */

static void came_back(void *arg)
{
	atomic_fetch_add((_Atomic int *)arg, 1);
}

static bool is_back(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load((_Atomic int *)arg) == 1;
}

/* The reader gets both. The value's references end with it,
 * before the memory is the program's again. */
TG_TEST(wrapped__holds_references, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *in = value(ctx, "in"), *out;
		struct rref_mem *mem;
		_Atomic int back = 0;
		void *at;

		TG_OK(rref_mem_alloc(ctx, 4096, &mem, &at));
		memcpy(at, "lent", 4);
		TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 4, .refs = &in, .nr_refs = 1),
				came_back, &back, &out));
		rref_release(in);
		TG_IS(tg_stats(ctx).nested, 1);
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&out, 1), RREF_DEFAULT, NULL));
		rref_release(out);
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(is_back, ctx, &back));
		TG_IS(tg_stats(ctx).nested, 0);
		TG_OK(rref_mem_deregister(mem));
		tg_all_clean(ctx);
	} else {
		struct rref_view *v;
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		v = view_of(tg_kept(0));
		TG_IS(rref_view_length(v), 4);
		TG_CHECK(memcmp(rref_view_data(v), "lent", 4) == 0);
		TG_IS(rref_view_nr_refs(v), 1);
		TG_OK(rref_view_ref(v, 0, RREF_DEFAULT, &r));
		rref_view_free(v);
		tg_drop_kept();
		tg_expect_bytes(r, "in", 2);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* Forgotten views keep such a value until the context is freed. It takes nothing twice. */
TG_TEST(wrapped__and_forgotten, 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *in = value(ctx, "in"), *out;
	struct rref_mem *mem;
	_Atomic int back = 0;
	void *at;

	TG_OK(rref_mem_alloc(ctx, 4096, &mem, &at));
	TG_OK(rref_wrap(mem, TG_VALUE(.data = at, .length = 4, .refs = &in, .nr_refs = 1),
			came_back, &back, &out));
	rref_release(in);
	(void)view_of(out);
	rref_release(out);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	TG_IS(atomic_load(&back), 0);
	rref_free_ctx(ctx);
	TG_IS(atomic_load(&back), 1);
	return 0;
}

#define ROUNDS 200

static int take_and_read(struct rref_call *call, void *arg)
{
	struct rref_view *v;
	struct rref *r;
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	(void)arg;
	if (!err) {
		err = rref_view_ref(v, 0, RREF_DEFAULT, &r);
		rref_view_free(v);
	}
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	tg_expect_bytes(r, "in", 2);
	rref_release(r);
	return 0;
}

TG_TEST(threads__take_while_values_come_and_go, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_future *f[ROUNDS];
	int n = tg_scale(ROUNDS);

	tg_add(ctx, "take_and_read", take_and_read, 0);
	tg_meet_serving(ctx, 0);
	for (int i = 0; i < n; i++) {
		struct rref *in = tg_remote(ctx, (rank + i) % 3, "tg.echo", "in", 2), *out;

		TG_OK(rref_new_value(
			ctx, TG_VALUE(.data = "out", .length = 3, .refs = &in, .nr_refs = 1),
			&out));
		rref_release(in);
		TG_OK(rref_rpc_async(ctx, (rank + 1 + i % 2) % 3, "take_and_read", tg_with(&out, 1),
				     RREF_DEFAULT, &f[i]));
		rref_release(out);
	}
	for (int i = 0; i < n; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		rref_future_free(f[i]);
	}
	tg_meet_serving(ctx, 1);
	tg_until_clean(ctx, rank);
	TG_IS(tg_stats(ctx).nested, 0);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments__refused),
		cmocka_unit_test(dump__names_nested_references),
		cmocka_unit_test(in_place__and_said_anew),
		cmocka_unit_test(local_only__gives_references_to_its_owner),
		cmocka_unit_test(sizes__of_the_value),
		cmocka_unit_test(threads__take_while_values_come_and_go),
		cmocka_unit_test(wrapped__and_forgotten),
		cmocka_unit_test(wrapped__holds_references),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
