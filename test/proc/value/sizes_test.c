/* SPDX-License-Identifier: Apache-2.0 */
/* Values of every size, and the bounds on memory and operations. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/fast.h"
#include "tg.h"

#define MS NSEC_PER_MSEC
#define MIB ((size_t)1 << 20)

static struct rref_args *with(struct rref **refs, size_t nr)
{
	static _Thread_local struct rref_args a;

	a = (struct rref_args){ .refs = refs, .nr_refs = nr };
	return &a;
}

/* "make": a value of that size, filled by seed, kept; answers with a
 * reference to it. "drop": gives all up. */
struct make {
	size_t length;
	unsigned seed;
};
static struct rref *made[64];
static int nr_made;

static int make(struct rref_call *call, void *arg)
{
	struct make m;
	void *data;
	int err;

	(void)arg;
	memcpy(&m, rref_call_data(call), sizeof(m));
	err = rref_alloc(rref_call_context(call), m.length, &made[nr_made], &data);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	tg_fill(data, m.length, m.seed);
	TG_OK(rref_set(made[nr_made]));
	return rref_call_reply(call, with(&made[nr_made++], 1));
}

static int drop(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	while (nr_made)
		rref_release(made[--nr_made]);
	return 0;
}

static void add_functions(struct rref_ctx *ctx)
{
	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "make", .handler = make }));
	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "drop", .handler = drop }));
	tg_meet_serving(ctx, 15);
}

static struct rref_ctx *join_with(int rank, struct rref_options *o)
{
	struct rref_ctx *ctx;

	(void)rank;
	o->functions = tg_functions;
	o->nr_functions = tg_nr_functions;
	TG_OK(rref_init(o, &ctx));
	add_functions(ctx);
	return ctx;
}

static struct rref_ctx *join(int rank)
{
	struct rref_options o;

	tg_options(&o, rank);
	return join_with(rank, &o);
}

static struct rref *make_there(struct rref_ctx *ctx, int to, size_t length, unsigned seed)
{
	struct make m = { length, seed };
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_rpc_sync(ctx, to, "make", &(struct rref_args){ .data = &m, .length = sizeof(m) },
			    RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	return r;
}

static void expect_filled(struct rref *r, size_t length, unsigned seed)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_IS(rref_view_length(v), length);
	TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, seed));
	rref_view_free(v);
}

TG_TEST(size__small_and_odd, 2)
{
	static const size_t sizes[] = { 0,	1,	2,	7,	8,	63,	64,
					65,	127,	128,	192,	193,	255,	1000,
					1023,	1024,	1025,	4031,	4032,	4033,	4095,
					4096,	4097,	16383,	16384,	16385,	65472,	65535,
					65536,	65537,	131008, 131072, 131073, 262079, 262080,
					262081, 262144, 262145 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (size_t i = 0; i < array_size(sizes); i++) {
			struct rref *r = make_there(ctx, 1, sizes[i], (unsigned)i);

			expect_filled(r, sizes[i], (unsigned)i);
			rref_release(r);
			TG_OK(rref_rpc_sync(ctx, 1, "drop", NULL, RREF_DEFAULT, NULL));
		}
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(size__large, 2)
{
	size_t sizes[] = { MIB, 2 * MIB - 64, 2 * MIB + 1, 8 * MIB + 1,
			   tg_is_shm() ? 64 * MIB : 16 * MIB };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		for (size_t i = 0; i < array_size(sizes); i++) {
			struct rref *r = make_there(ctx, 1, sizes[i], (unsigned)i);
			static unsigned char buf[100000];
			size_t got;

			expect_filled(r, sizes[i], (unsigned)i);
			/* Pieces of it can be read, with any start and end. */
			for (size_t at = 777; at < sizes[i]; at += sizes[i] / 5) {
				TG_OK(rref_to_here_into(r, buf, at, sizeof(buf), RREF_DEFAULT,
							&got));
				TG_IS(got, min_of(sizeof(buf), sizes[i] - at));
				TG_CHECK(tg_filled(buf, got, at, (unsigned)i));
			}
			rref_release(r);
			TG_OK(rref_rpc_sync(ctx, 1, "drop", NULL, RREF_DEFAULT, NULL));
		}
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(size__large_from_two_owners_at_once, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		size_t length = tg_is_shm() ? 4 * MIB + 3 : MIB + 3;
		struct rref *r[6];
		struct rref_future *f[6];

		for (int i = 0; i < 6; i++)
			r[i] = make_there(ctx, 1 + i % 2, length, (unsigned)i);
		for (int i = 0; i < 6; i++)
			TG_OK(rref_to_here_async(r[i], RREF_DEFAULT, &f[i]));
		for (int i = 0; i < 6; i++) {
			struct rref_view *v;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_view(f[i], &v));
			TG_CHECK(rref_view_length(v) == length &&
				 tg_filled(rref_view_data(v), length, 0, (unsigned)i));
			rref_view_free(v);
			rref_future_free(f[i]);
			rref_release(r[i]);
		}
		for (int to = 1; to < 3; to++)
			TG_OK(rref_rpc_sync(ctx, to, "drop", NULL, RREF_DEFAULT, NULL));
		for (int i = 0; i < 3; i++)
			tg_until_clean(ctx, i);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(size__beyond_the_largest_region, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref *r = NULL;
	void *data = NULL;

	TG_IS(rref_alloc(ctx, (size_t)2 << 30, &r, &data), -EMSGSIZE);
	TG_TEXT("2147483648");
	TG_IS(rref_alloc(ctx, ((size_t)2 << 30) + 1, &r, &data), -EMSGSIZE);
	TG_IS(rref_alloc(ctx, (size_t)1 << 40, &r, &data), -EMSGSIZE);
	TG_IS(rref_alloc(ctx, SIZE_MAX, &r, &data), -EMSGSIZE);
	TG_IS(rref_alloc(ctx, SIZE_MAX - 63, &r, &data), -EMSGSIZE);
	TG_IS(rref_new(ctx, "x", SIZE_MAX, &r), -EMSGSIZE);
	TG_CHECK(!r && !data);
	TG_IS(tg_stats(ctx).value_bytes, 0);
	TG_IS(tg_stats(ctx).owners, 0);
	tg_finish(ctx);
	return 0;
}

/* ---- bounds ---- */

TG_TEST(bound__on_values, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *r[64], *none = NULL;
	struct rref_view *v;
	size_t n = 0;
	int err = 0;
	void *data;

	tg_options(&o, rank);
	o.region_bytes = 2 * MIB;
	o.max_value_bytes = 16 * MIB;
	ctx = join_with(rank, &o);
	if (rank == 0) {
		TG_IS(rref_alloc(ctx, 64 * MIB, &none, &data), -ENOMEM);
		TG_TEXT("67108864");
		TG_TEXT("16 MiB");
		while (n < 64 && !(err = rref_alloc(ctx, MIB, &r[n], &data)))
			n++;
		TG_IS(err, -ENOMEM);
		TG_CHECK(n >= 6 && n < 16);
		TG_CHECK(tg_stats(ctx).registered_bytes > 0);
		rref_release(r[0]);
		TG_OK(rref_alloc(ctx, MIB / 2, &r[0], &data));
		for (size_t i = 0; i < n; i++)
			rref_release(r[i]);
		/* Freed memory can be allocated again. */
		for (int round = 0; round < 20; round++) {
			TG_OK(rref_alloc(ctx, MIB, &r[0], &data));
			tg_fill(data, MIB, (unsigned)round);
			TG_OK(rref_set(r[0]));
			TG_OK(rref_to_here(r[0], RREF_DEFAULT, &v));
			TG_CHECK(tg_filled(rref_view_data(v), MIB, 0, (unsigned)round));
			rref_view_free(v);
			rref_release(r[0]);
		}
		tg_until_clean(ctx, 0);
		TG_CHECK(!none);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(bound__on_the_owners_values_is_told_to_the_creator, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.region_bytes = 2 * MIB;
	o.max_value_bytes = 8 * MIB;
	ctx = join_with(rank, &o);
	if (rank == 0) {
		struct make m = { 32 * MIB, 1 };

		TG_IS(rref_rpc_sync(ctx, 1, "make",
				    &(struct rref_args){ .data = &m, .length = sizeof(m) },
				    RREF_DEFAULT, NULL),
		      -ENOMEM);
		TG_TEXT("33554432");
	}
	tg_finish(ctx);
	return 0;
}

struct other {
	struct rref *ref;
	size_t length;
};

/* Reads on a thread of its own, which may keep the buffer for its next read. */
static void *read_and_free(void *arg)
{
	struct other *o = arg;
	struct rref_view *v;

	TG_OK(rref_to_here(o->ref, RREF_DEFAULT, &v));
	TG_CHECK(tg_filled(rref_view_data(v), o->length, 0, 3));
	rref_view_free(v);
	return NULL;
}

TG_TEST(bound__on_landing, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.region_bytes = 2 * MIB;
	o.max_landing_bytes = rank == 0 ? 16 * MIB : 0;
	o.look_bytes = SIZE_MAX; /* a look needs no landing memory */
	ctx = join_with(rank, &o);
	if (rank == 0) {
		struct rref *big = make_there(ctx, 1, 32 * MIB, 1),
			    *one = make_there(ctx, 1, MIB, 2);
		struct other o1 = { make_there(ctx, 1, 2 * MIB - 8192, 3), 2 * MIB - 8192 };
		struct rref_view *v[64], *none = NULL;
		static unsigned char buf[1000];
		size_t n = 0, got, fit;
		int err = 0;

		for (int again = 0; again < 3; again++) {
			TG_IS(rref_to_here(big, RREF_DEFAULT, &none), -ENOMEM);
			TG_TEXT("33554432");
		}
		/* Reading in pieces works. */
		TG_OK(rref_to_here_into(big, buf, 20 * MIB, sizeof(buf), RREF_DEFAULT, &got));
		TG_CHECK(got == sizeof(buf) && tg_filled(buf, got, 20 * MIB, 1));
		while (n < 64 && !(err = rref_to_here(one, RREF_DEFAULT, &v[n])))
			n++;
		TG_IS(err, -ENOMEM);
		TG_CHECK(n >= 5 && n < 16 && !none);
		for (size_t i = 0; i < n; i++)
			TG_CHECK(tg_filled(rref_view_data(v[i]), MIB, 0, 2));
		/* Freeing one view allows one read. */
		rref_view_free(v[--n]);
		TG_OK(rref_to_here(one, RREF_DEFAULT, &v[n++]));
		while (n)
			rref_view_free(v[--n]);
		/* Memory that threads keep from their reads serves others when they need it. */
		while (n < 64 && !(err = rref_to_here(o1.ref, RREF_DEFAULT, &v[n])))
			n++;
		TG_IS(err, -ENOMEM);
		fit = n;
		for (int again = 0; again < 3; again++) {
			pthread_t t;

			while (n)
				rref_view_free(v[--n]);
			TG_CHECK(pthread_create(&t, NULL, read_and_free, &o1) == 0);
			pthread_join(t, NULL);
			TG_IS(tg_stats(ctx).landing_bytes, 0);
			while (n < 64 && !(err = rref_to_here(o1.ref, RREF_DEFAULT, &v[n])))
				n++;
			TG_IS(err, -ENOMEM);
			TG_CHECK(n >= fit);
		}
		while (n)
			rref_view_free(v[--n]);
		rref_release(o1.ref);
		rref_release(big);
		rref_release(one);
		TG_OK(rref_rpc_sync(ctx, 1, "drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

static _Atomic int good, bad;

static void count_and_free(struct rref_future *f, void *arg)
{
	struct rref_view *v;

	(void)arg;
	if (rref_future_view(f, &v) == 0) {
		atomic_fetch_add(tg_filled(rref_view_data(v), 100, 0, 6) ? &good : &bad, 1);
		rref_view_free(v);
	} else {
		atomic_fetch_add(&bad, 1);
	}
	rref_future_free(f);
}

static bool all_counted(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&good) + atomic_load(&bad) == *(int *)arg;
}

/* More reads than operations: starting one waits until another is over, and no read is lost. */
TG_TEST(bound__on_operations_holds_back, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.max_ops = 256;
	ctx = join_with(rank, &o);
	if (rank == 0) {
		struct rref *r = make_there(ctx, 1, 100, 6);
		int n = tg_scale(10000);

		for (int i = 0; i < n; i++) {
			struct rref_future *f;

			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
			TG_OK(rref_future_then(f, count_and_free, NULL));
		}
		TG_CHECK(tg_eventually(all_counted, ctx, &n));
		TG_IS(atomic_load(&good), n);
		rref_release(r);
		TG_OK(rref_rpc_sync(ctx, 1, "drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(bound__on_operations_with_calls_too, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.max_ops = 256;
	ctx = join_with(rank, &o);
	struct rref_future *f[200];

	for (int round = 0; round < tg_scale(20); round++) {
		for (int i = 0; i < 200; i++)
			TG_OK(rref_rpc_async(ctx, i % 2, i % 3 ? "tg.echo" : "tg.echo_inline",
					     &(struct rref_args){ .data = &i, .length = sizeof(i) },
					     RREF_DEFAULT, &f[i]));
		for (int i = 0; i < 200; i++) {
			int got;

			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			tg_result(f[i], &got, sizeof(got));
			TG_IS(got, i);
			rref_future_free(f[i]);
		}
	}
	tg_finish(ctx);
	return 0;
}

/* All slots are taken by calls. Their results, and the arguments of one, have to be read. These
 * reads need no slot of that kind. */
TG_TEST(bound__on_operations_leaves_room_for_payloads, 2)
{
	static unsigned char payload[8000];
	struct rref_args a = { .data = payload, .length = sizeof(payload) };
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.max_ops = rank == 0 ? 256 : 0;
	ctx = join_with(rank, &o);
	tg_fill(payload, sizeof(payload), 9);
	if (rank == 0) {
		struct rref_future *f[256], *more = NULL;
		const void *data;
		size_t length;

		for (int i = 0; i < 256; i++)
			TG_OK(rref_rpc_async(ctx, 1, "tg.echo", &a, RREF_DEFAULT, &f[i]));
		TG_IS(rref_rpc_async(ctx, 1, "tg.echo", NULL, 20 * MS, &more), -EAGAIN);
		for (int i = 0; i < 256; i++) {
			TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
			TG_OK(rref_future_data(f[i], &data, &length));
			TG_CHECK(length == sizeof(payload) && tg_filled(data, length, 0, 9));
		}
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		for (int i = 0; i < 256; i++)
			rref_future_free(f[i]);
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_rpc_sync(ctx, 0, "tg.echo", &a, RREF_DEFAULT, NULL));
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* Complete futures that are not freed take all slots: the caller is told. Futures of reads that
 * were over at once take none, and there may be as many. */
TG_TEST(bound__on_operations_all_held, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.max_ops = 256;
	ctx = join_with(rank, &o);
	if (rank == 0) {
		struct rref *r = make_there(ctx, 1, 100, 6), *mine, *none = NULL;
		struct rref_future *f[1000], *more = NULL;
		size_t n = 0;
		int err = 0;

		TG_OK(rref_new(ctx, "mine", 4, &mine));
		while (n < 1000 && !(err = rref_to_here_async(r, 50 * MS, &f[n])))
			n++;
		TG_IS(err, -EAGAIN);
		TG_TEXT("256");
		TG_IS(n, RB_FAST(tg_is_shm()) ? 512 : 256);
		TG_IS(tg_stats(ctx).ops_in_flight, n);
		TG_IS(rref_rpc_async(ctx, 1, "tg.echo", NULL, 20 * MS, &more), -EAGAIN);
		TG_IS(rref_rpc_sync(ctx, 1, "tg.echo", NULL, 0, NULL), -EAGAIN);
		TG_IS(rref_remote(ctx, 1, "tg.echo", NULL, 20 * MS, &none), -EAGAIN);
		TG_CHECK(!more && !none);
		/* Calls that need no operation go on: a fast read too. */
		if (RB_FAST(true))
			expect_filled(r, 100, 6);
		tg_expect_bytes(mine, "mine", 4);
		rref_future_free(f[--n]);
		expect_filled(r, 100, 6);
		TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", NULL, RREF_DEFAULT, NULL));
		for (size_t i = 0; i < n; i++) {
			TG_OK(rref_future_wait(f[i], 0));
			rref_future_free(f[i]);
		}
		TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
		rref_release(r);
		rref_release(mine);
		TG_OK(rref_rpc_sync(ctx, 1, "drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 0);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

struct reader {
	struct rref *r;
	int n;
};

static void *read_many(void *arg)
{
	struct reader *rd = arg;

	for (int i = 0; i < rd->n; i++)
		expect_filled(rd->r, 100, 6);
	return NULL;
}

/* Many threads, few operations. */
TG_TEST(bound__on_operations_from_many_threads, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.max_ops = 1; /* rounded up, but small */
	ctx = join_with(rank, &o);
	if (rank == 0) {
		struct reader rd = { make_there(ctx, 1, 100, 6), tg_scale(300) };
		pthread_t t[16];

		for (int i = 0; i < 16; i++)
			TG_IS(pthread_create(&t[i], NULL, read_many, &rd), 0);
		for (int i = 0; i < 16; i++)
			pthread_join(t[i], NULL);
		rref_release(rd.r);
		TG_OK(rref_rpc_sync(ctx, 1, "drop", NULL, RREF_DEFAULT, NULL));
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(size__small_and_odd),
		cmocka_unit_test(size__large),
		cmocka_unit_test(size__large_from_two_owners_at_once),
		cmocka_unit_test(size__beyond_the_largest_region),
		cmocka_unit_test(bound__on_values),
		cmocka_unit_test(bound__on_the_owners_values_is_told_to_the_creator),
		cmocka_unit_test(bound__on_landing),
		cmocka_unit_test(bound__on_operations_holds_back),
		cmocka_unit_test(bound__on_operations_with_calls_too),
		cmocka_unit_test(bound__on_operations_all_held),
		cmocka_unit_test(bound__on_operations_leaves_room_for_payloads),
		cmocka_unit_test(bound__on_operations_from_many_threads),
	};

	return cmocka_run_group_tests_name("sizes", tests, NULL, NULL);
}
