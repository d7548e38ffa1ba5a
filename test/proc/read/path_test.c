/* SPDX-License-Identifier: Apache-2.0 */
/* Many reads of 8 bytes, for path.sh to count their instructions. As a test of its own, it checks
 * the bytes of each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg.h"

#define READS 20000

TG_TEST(reads__of_8_bytes, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	if (rank == 1) {
		struct rref_future *f;
		struct rref *ref;
		uint64_t want;

		TG_OK(rref_remote(ctx, 0, "tg.echo",
				  &(struct rref_args){ .data = "8 bytes.", .length = 8 },
				  RREF_DEFAULT, &ref));
		TG_OK(rref_creation(ref, &f));
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
		rref_future_free(f);
		memcpy(&want, "8 bytes.", sizeof(want));
		for (int i = 0; i < tg_scale(READS); i++) {
			struct rref_view *v;
			uint64_t got;

			TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
			TG_IS(rref_view_length(v), 8);
			memcpy(&got, rref_view_data(v), sizeof(got));
			TG_CHECK(got == want);
			rref_view_free(v);
		}
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(reads__of_8_bytes) };

	return cmocka_run_group_tests_name("path", tests, NULL, NULL);
}
