/* SPDX-License-Identifier: Apache-2.0 */
/* An owner of many values: its memory for each. All of them are
 * there, and all memory comes back. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MANY 100000u
#define BYTES_EACH 200u /* header and payload left out, handle included */

static size_t heap(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

static void make(struct rref_ctx *ctx, unsigned i, struct rref **out)
{
	uint64_t v[2] = { i, ~(uint64_t)i };
	struct iovec halves[2] = { { &v[0], 8 }, { &v[1], 8 } };
	void *at;

	switch (i % 3) {
	case 0:
		TG_OK(rref_new(ctx, v, sizeof(v), out));
		break;
	case 1:
		TG_OK(rref_alloc(ctx, sizeof(v), out, &at));
		memcpy(at, v, sizeof(v));
		TG_OK(rref_set(*out));
		break;
	default:
		TG_OK(rref_new_value(ctx, TG_VALUE(.segments = halves, .nr_segments = 2), out));
		break;
	}
}

static void look(struct rref *r, unsigned i)
{
	struct rref_view *v;
	struct iovec part[2];
	uint64_t last;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_IS(rref_view_segments(v, part, 2), i % 3 == 2 ? 2 : 1);
	TG_IS(*(const uint64_t *)rref_view_data(v), i);
	memcpy(&last, i % 3 == 2 ? part[1].iov_base : (char *)part[0].iov_base + 8, 8);
	TG_IS(last, ~(uint64_t)i);
	rref_view_free(v);
}

TG_TEST(live__bytes_for_each_reference, 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref **r = calloc(MANY, sizeof(struct rref *));
	size_t before, most;

	TG_CHECK(r);
	make(ctx, 0, &r[0]);
	rref_release(r[0]);
	before = heap();
	for (unsigned i = 0; i < MANY; i++)
		make(ctx, i, &r[i]);
	most = heap();
	for (unsigned i = 0; i < MANY; i++)
		look(r[i], i);
	/* Every second value goes, and others come in their places. */
	for (unsigned i = 0; i < MANY; i += 2)
		rref_release(r[i]);
	for (unsigned i = 0; i < MANY; i += 2)
		make(ctx, i, &r[i]);
	for (unsigned i = 0; i < MANY; i++)
		look(r[i], i);
	/* The allocators of sanitizers do not tell. */
	if (most != before)
		TG_CHECK(most - before <= (size_t)BYTES_EACH * MANY && heap() <= most + most / 100);
	for (unsigned i = 0; i < MANY; i++)
		rref_release(r[i]);
	tg_all_clean(ctx);
	if (most != before)
		TG_CHECK(heap() < before + 200000);
	free(r);
	tg_finish(ctx);
	return 0;
}

/* All ways in which a handle of an own value ends. Its value,
 * its words, or both are to be freed. */
TG_TEST(live__unreleased_handles, 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref *set, *unset, *failed, *made;
	struct rref_view *v;
	void *at;

	TG_OK(rref_new(ctx, "there", 5, &set));
	TG_OK(rref_alloc(ctx, 5, &unset, &at));
	TG_OK(rref_alloc(ctx, 5, &failed, &at));
	TG_IS(rref_confirmed(failed), 1);
	TG_OK(rref_set_error(failed, -EDOM, "in these words"));
	TG_IS(rref_confirmed(failed), 0);
	TG_IS(rref_to_here(failed, RREF_DEFAULT, &v), -EDOM);
	TG_CHECK(strstr(rref_last_error(), "in these words"));
	made = tg_remote(ctx, 0, "tg.nothing", NULL, 0);
	TG_OK(rref_to_here(made, RREF_DEFAULT, &v));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	TG_IS(rref_view_length(v), 0);
	rref_view_free(v);
	TG_IS(rref_to_here(set, RREF_DEFAULT, &v), -ESHUTDOWN);
	TG_IS(rref_confirmed(set) | rref_confirmed(unset) | rref_confirmed(failed) |
		      rref_confirmed(made),
	      0);
	rref_free_ctx(ctx); /* the address sanitizer watches this */
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(live__unreleased_handles),
		cmocka_unit_test(live__bytes_for_each_reference),
	};

	return cmocka_run_group_tests_name("live", tests, NULL, NULL);
}
