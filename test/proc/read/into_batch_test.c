/* SPDX-License-Identifier: Apache-2.0 */
/* Batches of reads into the program's own memory: bounds and a status for each, and their cost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MS NSEC_PER_MSEC
#define MIB ((size_t)1 << 20)
#define NR 600
#define EACH 64

static struct rref_ctx *mine; /* the owner's */

/* A request for nr new values of this length: uint32_t nr, size_t
 * length. The i-th is filled with seed i. */
struct wish {
	uint32_t nr;
	size_t length;
};

static int make(struct rref_call *call, void *arg)
{
	static struct rref *r[NR];
	struct wish w;

	(void)arg;
	memcpy(&w, rref_call_data(call), sizeof(w));
	for (uint32_t i = 0; i < w.nr; i++) {
		void *data;

		TG_OK(rref_alloc(mine, w.length, &r[i], &data));
		tg_fill(data, w.length, i);
		TG_OK(rref_set(r[i]));
	}
	int err = rref_call_reply(call, &(struct rref_args){ .refs = r, .nr_refs = w.nr });

	rref_release_batch(r, w.nr);
	return err;
}

static int make_secret(struct rref_call *call, void *arg)
{
	static const struct rref_type secret = { sizeof(secret), "secret", 0, RREF_LOCAL_ONLY };

	(void)arg;
	return rref_call_reply_value(call,
				     TG_VALUE(.data = "secret", .length = 6, .type = &secret));
}

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	mine = ctx;
	tg_add(ctx, "make", make, 0);
	tg_add(ctx, "secret", make_secret, 0);
	tg_meet_serving(ctx, 14);
	return ctx;
}

static void get(struct rref_ctx *ctx, int from, struct wish w, struct rref **out)
{
	struct rref_future *f;

	TG_OK(rref_rpc_sync(ctx, from, "make", tg_bytes(&w, sizeof(w)), RREF_DEFAULT, &f));
	for (size_t i = 0; i < w.nr; i++)
		TG_OK(rref_future_ref(f, i, &out[i]));
	rref_future_free(f);
}

static struct rref *refs[NR];
static struct rref_into reads[NR];
static unsigned char bytes[NR][EACH];

/* Whole values take as many READs and doorbells as a batch of views, and nothing is left. */
TG_TEST(whole_values__share_doorbells, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_stats before, after;

		get(ctx, 1, (struct wish){ NR, EACH }, refs);
		for (int i = 0; i < NR; i++)
			reads[i] = (struct rref_into){ .ref = refs[i],
						       .buf = bytes[i],
						       .length = EACH,
						       .got = 99,
						       .status = 99 };
		before = tg_stats(ctx);
		TG_IS(rref_to_here_into_batch(reads, NR, RREF_DEFAULT), NR);
		after = tg_stats(ctx);
		for (int i = 0; i < NR; i++) {
			TG_IS(reads[i].status, 0);
			TG_IS(reads[i].got, EACH);
			TG_CHECK(tg_filled(bytes[i], EACH, 0, (unsigned)i));
		}
		TG_IS(after.reads + after.reads_joined - before.reads - before.reads_joined, NR);
		TG_IS(after.read_bytes - before.read_bytes, NR * EACH);
		if (tg_is_shm()) {
			TG_IS(after.reads_joined, 0);
		} else {
			TG_CHECK(after.doorbells - before.doorbells <= NR / 8);
			TG_CHECK(after.reads_joined - before.reads_joined >= NR / 2);
		}
		rref_release_batch(refs, NR);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Ranges of own and of foreign values, within them, over their end and past it. */
TG_TEST(ranges__are_cut_at_the_end, 3)
{
	static const struct range {
		size_t offset, length, got;
	} ranges[] = { { 0, 1000, 1000 }, { 0, 5000, 1000 }, { 1, 10, 10 }, { 990, 100, 10 },
		       { 1000, 1, 0 }, { 4000, 7, 0 }, { 0, 0, 0 }, { 3, 0, 0 }, { 0, 64, 64 } };
	static unsigned char buf[3][array_size(ranges)][5000];
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		size_t nr = 0;

		for (int from = 0; from < 3; from++)
			get(ctx, from, (struct wish){ 1, 1000 }, &refs[from]);
		memset(buf, 0xee, sizeof(buf));
		for (size_t i = 0; i < array_size(ranges); i++)
			for (int from = 0; from < 3; from++)
				reads[nr++] = (struct rref_into){ .ref = refs[from],
								  .buf = buf[from][i],
								  .offset = ranges[i].offset,
								  .length = ranges[i].length };
		TG_IS(rref_to_here_into_batch(reads, nr, RREF_DEFAULT), (int)nr);
		for (size_t k = 0; k < nr; k++) {
			const struct range *r = &ranges[k / 3];
			const unsigned char *at = reads[k].buf;

			TG_IS(reads[k].status, 0);
			TG_IS(reads[k].got, r->got);
			TG_CHECK(tg_filled(at, r->got, r->offset, 0));
			for (size_t i = r->got; i < 5000; i++)
				TG_IS(at[i], 0xee);
		}
		rref_release_batch(refs, 3);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Each read has its own result, and failing reads leave their buffers alone. */
TG_TEST(statuses__of_each, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		enum { GOOD, NONE, NO_BUFFER, FOREIGN, FAILED, NEVER, SECRET, GOOD_TOO, ALL };
		static const int want[ALL] = { 0,     -EINVAL,	  -EINVAL, -EINVAL,
					       -EDOM, -ETIMEDOUT, -EPERM,  0 };
		struct rref_options o;
		struct rref_ctx *alone;
		struct rref *foreign;
		void *data;

		rref_options_init(&o);
		o.world_size = 1;
		TG_OK(rref_init(&o, &alone));
		TG_OK(rref_new(alone, "x", 1, &foreign));
		get(ctx, 1, (struct wish){ 1, 100 }, refs);
		refs[FAILED] = tg_ask(ctx, 1, "pub.alloc", (struct tg_make){ .length = 10 });
		TG_OK(rref_rpc_sync(ctx, 1, "pub.fail",
				    tg_bytes(&(struct tg_make){ .err = -EDOM },
					     sizeof(struct tg_make)),
				    RREF_DEFAULT, NULL));
		TG_OK(rref_alloc(ctx, 10, &refs[NEVER], &data));
		for (int i = 0; i < ALL; i++)
			reads[i] = (struct rref_into){
				.ref = refs[0], .buf = bytes[i], .length = 10, .got = 99
			};
		reads[NONE].ref = NULL;
		reads[NO_BUFFER].buf = NULL;
		reads[FOREIGN].ref = foreign;
		reads[FAILED].ref = refs[FAILED];
		reads[NEVER].ref = refs[NEVER];
		reads[SECRET].ref = tg_remote(ctx, 1, "secret", NULL, 0);
		memset(bytes, 0xee, sizeof(bytes));
		TG_IS(rref_to_here_into_batch(reads, ALL, 300 * MS), 2);
		for (int i = 0; i < ALL; i++) {
			TG_IS(reads[i].status, want[i]);
			TG_IS(reads[i].got, want[i] ? 0 : 10);
			TG_CHECK(want[i] ? bytes[i][0] == 0xee : tg_filled(bytes[i], 10, 0, 0));
		}
		/* No error can be reported per read here. */
		TG_IS(rref_to_here_into_batch(NULL, 0, 0), 0);
		TG_IS(rref_to_here_into_batch(NULL, 1, 0), -EINVAL);
		TG_IS(rref_to_here_into_batch(reads, (size_t)INT32_MAX + 1, 0), -EINVAL);
		TG_IS(rref_to_here_into_batch(&reads[NONE], 1, 0), -EINVAL);
		TG_TEXT("no reference");
		rref_release(reads[SECRET].ref);
		rref_release_batch(refs, ALL);
		rref_release(foreign);
		TG_OK(rref_shutdown(alone, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
		rref_free_ctx(alone);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* More than the landing memory holds at once: it comes in turns, since
 * the program's memory is there already. */
TG_TEST(more_than_may_land__comes_in_turns, 2)
{
	static unsigned char big[8][MIB];
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.look_bytes = SIZE_MAX;
	if (rank == 0)
		o.max_landing_bytes = 4 * MIB;
	TG_OK(rref_init(&o, &ctx));
	mine = ctx;
	tg_add(ctx, "make", make, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		struct rref_view *views[8];
		int status[8], failed = 0;

		get(ctx, 1, (struct wish){ 8, MIB }, refs);
		/* There is no room for views of all of them. */
		TG_CHECK(rref_to_here_batch(refs, 8, RREF_DEFAULT, views, status) < 8);
		for (int i = 0; i < 8; i++) {
			failed += status[i] == -ENOMEM;
			rref_view_free(views[i]);
			/* A range without the first byte is no fast read. */
			reads[i] = (struct rref_into){
				.ref = refs[i], .buf = big[i], .offset = 1, .length = MIB
			};
		}
		TG_CHECK(failed >= 4);
		TG_IS(rref_to_here_into_batch(reads, 8, RREF_DEFAULT), 8);
		for (int i = 0; i < 8; i++) {
			TG_IS(reads[i].got, MIB - 1);
			TG_CHECK(tg_filled(big[i], MIB - 1, 1, (unsigned)i));
		}
		rref_release_batch(refs, 8);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_than_may_land__comes_in_turns),
		cmocka_unit_test(ranges__are_cut_at_the_end),
		cmocka_unit_test(statuses__of_each),
		cmocka_unit_test(whole_values__share_doorbells),
	};

	return cmocka_run_group_tests_name("into_batch", tests, NULL, NULL);
}
