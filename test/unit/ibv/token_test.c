/* SPDX-License-Identifier: Apache-2.0 */
/* wr_id tokens: the parts come out unchanged, and nothing else looks like a token. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "verbs/ibv/token.h"

static void token__round_trip(void **state)
{
	const uint32_t indexes[] = { 0, 1, 4095, 4096, 0x0abcdef1, RVI_INDEX_MAX - 1 };
	const uint32_t gens[] = { 0, 1, 0x7fffffff, 0x80000000, UINT32_MAX };

	(void)state;
	for (unsigned kind = RVI_READ; kind <= RVI_RECV; kind++)
		for (unsigned i = 0; i < sizeof(indexes) / sizeof(*indexes); i++)
			for (unsigned g = 0; g < sizeof(gens) / sizeof(*gens); g++) {
				struct rvi_token t = rvi_token_unpack(
					rvi_token_pack((enum rvi_kind)kind, indexes[i], gens[g]));

				assert_int_equal(t.kind, kind);
				assert_int_equal(t.index, indexes[i]);
				assert_int_equal(t.gen, gens[g]);
			}
}

static void token__zero_is_no_kind(void **state)
{
	(void)state;
	assert_int_equal(rvi_token_unpack(0).kind, 0);
	assert_int_equal(rvi_token_unpack(UINT64_MAX).kind, 15);
}

static void token__fields_do_not_touch(void **state)
{
	(void)state;
	/* Too large an index must not change the kind. */
	assert_int_equal(rvi_token_unpack(rvi_token_pack(RVI_READ, UINT32_MAX, 0)).kind, RVI_READ);
	assert_int_equal(rvi_token_unpack(rvi_token_pack(RVI_READ, 0, UINT32_MAX)).index, 0);
}

static void index__connection_and_slot(void **state)
{
	(void)state;
	for (uint32_t conn = 0; conn < RVI_CONNS_MAX; conn += 4369)
		for (uint32_t slot = 0; slot < RVI_SLOTS_MAX; slot += 273) {
			uint32_t index = rvi_index(conn, slot);

			assert_true(index < RVI_INDEX_MAX);
			assert_int_equal(rvi_index_conn(index), conn);
			assert_int_equal(rvi_index_slot(index), slot);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(index__connection_and_slot),
		cmocka_unit_test(token__fields_do_not_touch),
		cmocka_unit_test(token__round_trip),
		cmocka_unit_test(token__zero_is_no_kind),
	};

	return cmocka_run_group_tests_name("rv_ibv_token", tests, NULL, NULL);
}
