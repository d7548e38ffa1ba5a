/* SPDX-License-Identifier: Apache-2.0 */
/* A case beyond the list: values in memory that the program
 * registered, read in place and given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_death.h"

#define LENGTH 300000u

static _Atomic int back;

static void came_back(void *arg)
{
	TG_IS(rref_mem_deregister(arg), 0);
	atomic_fetch_add(&back, 1);
}

/* Makes a value in the program's memory, shares it with worker `to`, and gives it up here. */
static unsigned char *lend_to(struct rref_ctx *ctx, int to)
{
	struct rref_mem *mem;
	struct rref *r;
	void *at;

	TG_OK(rref_mem_alloc(ctx, LENGTH + 100, &mem, &at));
	tg_fill((char *)at + 100, LENGTH, 4);
	TG_OK(rref_wrap(mem, TG_VALUE(.data = (char *)at + 100, .length = LENGTH), came_back, mem,
			&r));
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
	return (unsigned char *)at + 100;
}

static bool is_back(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	(void)arg;
	return atomic_load(&back) == 1;
}

/* Two users hand references on. They read the bytes in the program's own place. The last release
 * gives the memory back, once. */
TG_TEST(more_wrapped_memory_is_read_in_place, 3)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		unsigned char *at = lend_to(ctx, 1);
		struct rref_view *v;
		struct rref *r;

		r = tg_ask(ctx, 1, "pub.get", (struct tg_make){ 0 });
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_CHECK(rref_view_data(v) == at);
		rref_view_free(v);
		TG_IS(tg_sum_there(ctx, 2, &r, 1), tg_byte(0, 4));
		rref_release(r);
		TG_IS(atomic_load(&back), 0);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		TG_CHECK(tg_eventually(is_back, ctx, NULL));
		tg_all_clean(ctx);
		TG_IS(atomic_load(&back), 1);
	}
	tg_finish(ctx);
	return 0;
}

/* The only holder dies. The memory lent to it comes back when it is fenced. */
DEATH_TEST(more_wrapped_memory_outlives_its_user, 2, 1 << 1)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	lend_to(ctx, 1);
	TG_IS(tg_stats(ctx).wrapped_bytes, LENGTH);
	tg_set_flag(0, 1);
	TG_CHECK(tg_eventually(is_back, ctx, NULL));
	TG_IS(tg_stats(ctx).wrapped_bytes, 0);
	tg_until_clean(ctx, 0);
	tg_leave(ctx);
	TG_IS(atomic_load(&back), 1);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(more_wrapped_memory_is_read_in_place),
		cmocka_unit_test(more_wrapped_memory_outlives_its_user),
	};

	return cmocka_run_group_tests_name("wrapping", tests, NULL, NULL);
}
