/* SPDX-License-Identifier: Apache-2.0 */
/* Batches of small adjacent values: fewer READs than values. The program sees no difference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "tg_refs.h"

#define MIB ((size_t)1 << 20)
#define EACH 8          /* references of one answer */
#define NR 200

static const size_t lengths[] = { 64,  64,  0,	 0,    1,    8,	    63, 64,	65, 100, 127,
				  128, 500, 576, 1000, 4000, 20000, 64, 200000, 8,  8,	 8 };

static struct rref_ctx *mine; /* the owner's */

static size_t length_of(unsigned i)
{
	return i < 64 ? 64 : lengths[i % array_size(lengths)];
}

static unsigned char byte_at(unsigned i, size_t k)
{
	return (unsigned char)(i * 31u + k * 7u + (k >> 8) + 1u);
}

/* Answers with EACH values, from the uint32_t number of the request on. */
static int make(struct rref_call *call, void *arg)
{
	struct rref *r[EACH];
	uint32_t from;

	(void)arg;
	memcpy(&from, rref_call_data(call), sizeof(from));
	for (uint32_t i = 0; i < EACH; i++) {
		void *data;

		TG_OK(rref_alloc(mine, length_of(from + i), &r[i], &data));
		for (size_t k = 0; k < length_of(from + i); k++)
			((unsigned char *)data)[k] = byte_at(from + i, k);
		TG_OK(rref_set(r[i]));
	}
	int err = rref_call_reply(call, &(struct rref_args){ .refs = r, .nr_refs = EACH });

	for (int i = 0; i < EACH; i++)
		rref_release(r[i]);
	return err;
}

static struct rref *refs[NR];
static struct rref_view *views[NR];
static int status[NR];

static void get(struct rref_ctx *ctx, const char *function, uint32_t from, struct rref **out,
		size_t nr)
{
	struct rref_future *f;

	TG_OK(rref_rpc_sync(ctx, 1, function, tg_bytes(&from, sizeof(from)), RREF_DEFAULT, &f));
	for (size_t i = 0; i < nr; i++)
		TG_OK(rref_future_ref(f, i, &out[i]));
	rref_future_free(f);
}

/* Reads refs[i * step] in one batch. */
static void read_in_order(struct rref_ctx *ctx, unsigned step, bool neighbours)
{
	struct rref *asked[NR];
	struct rref_stats before = tg_stats(ctx), after;

	for (unsigned i = 0; i < NR; i++)
		asked[i] = refs[i * step % NR];
	TG_IS(rref_to_here_batch(asked, NR, RREF_DEFAULT, views, status), NR);
	for (unsigned i = 0; i < NR; i++) {
		unsigned n = i * step % NR;

		TG_IS(status[i], 0);
		TG_IS(rref_view_length(views[i]), length_of(n));
		for (size_t k = 0; k < length_of(n); k++)
			TG_IS(((const unsigned char *)rref_view_data(views[i]))[k], byte_at(n, k));
	}
	for (unsigned i = 0; i < NR; i++)
		rref_view_free(views[i]);
	after = tg_stats(ctx);
	/* Long values take several READs, or a look. */
	TG_CHECK(after.reads + after.reads_joined + after.looks - before.reads -
			 before.reads_joined - before.looks >=
		 NR);
	/* The first 64 have one size and were made one after the other. */
	if (tg_is_shm())
		TG_IS(after.reads_joined, 0);
	else if (neighbours)
		TG_CHECK(after.reads_joined - before.reads_joined >= 32);
}

static int mixed(int rank, void *arg)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	(void)arg;
	mine = ctx;
	if (rank == 1)
		tg_add(ctx, "make", make, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		for (uint32_t i = 0; i < NR; i += EACH)
			get(ctx, "make", i, &refs[i], EACH);
		read_in_order(ctx, 1, true);
		read_in_order(ctx, NR - 1, true);
		read_in_order(ctx, 7, false);
		for (unsigned i = 0; i < NR; i++)
			rref_release(refs[i]);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

static void mixed_lengths__in_any_order(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, mixed, NULL), 0);
}

/* Fills all value memory. Answers with the value at its very
 * end, a value elsewhere, and one more. */
static int fill(struct rref_call *call, void *arg)
{
	static struct rref *all[2 * MIB / 128];
	struct rref *out[3] = { NULL };
	size_t nr = 0;

	(void)arg;
	while (nr < array_size(all)) {
		struct rref_view *v;
		int err =
			rref_new(mine,
				 "sixty-four bytes, with a header before them: 128 in all ........",
				 64, &all[nr]);

		if (err) {
			TG_IS(err, -ENOMEM);
			break;
		}
		TG_OK(rref_to_here(all[nr], RREF_DEFAULT, &v));
		if (!(((uintptr_t)rref_view_data(v) + 64) % (2 * MIB)))
			out[0] = all[nr];
		rref_view_free(v);
		nr++;
	}
	TG_CHECK(nr > 8 && out[0]);
	out[1] = all[1];
	out[2] = all[5];
	int err = rref_call_reply(call, &(struct rref_args){ .refs = out, .nr_refs = 3 });

	for (size_t i = 0; i < nr; i++)
		rref_release(all[i]);
	return err;
}

/*
 * Gives the second value a location right after the end of the first one's memory. The places are
 * adjacent, but nothing is there. The device refuses a READ of both.
 */
static int refused(int rank, void *arg)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	(void)arg;
	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.peer_timeout = (tg_is_shm() ? 1 : 5) * tg_slow() * NSEC_PER_SEC;
	if (rank == 1)
		o.region_bytes = o.max_value_bytes = 2 * MIB;
	TG_OK(rref_init(&o, &ctx));
	tg_add_refs(ctx);
	mine = ctx;
	if (rank == 1)
		tg_add(ctx, "fill", fill, 0);
	tg_meet_serving(ctx, 0);
	if (rank == 0) {
		get(ctx, "fill", 0, refs, 3);
		TG_IS(rref_to_here_batch(refs, 3, RREF_DEFAULT, views, status), 3);
		for (int i = 0; i < 3; i++)
			rref_view_free(views[i]);
		rc_remote(refs[1])->loc.addr = rc_remote(refs[0])->loc.addr + 128;
		TG_IS(rref_to_here_batch(refs, 3, RREF_DEFAULT, views, status), 2);
		TG_IS(status[0], 0);
		TG_IS(status[1], -ESTALE);
		TG_IS(status[2], 0);
		TG_CHECK(views[1] == NULL);
		TG_CHECK(memcmp(rref_view_data(views[0]), "sixty-four", 10) == 0);
		TG_CHECK(tg_stats(ctx).resumed_sessions + tg_stats(ctx).resumed_reads >= 1);
		TG_IS(tg_stats(ctx).dead_peers, 0);
		for (int i = 0; i < 3; i++) {
			rref_view_free(views[i]);
			rref_release(refs[i]);
		}
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

static void a_read_is_refused__the_others_succeed(void **state)
{
	(void)state;
	assert_int_equal(tg_run(2, refused, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mixed_lengths__in_any_order),
		cmocka_unit_test(a_read_is_refused__the_others_succeed),
	};

	return cmocka_run_group_tests_name("runs", tests, NULL, NULL);
}
