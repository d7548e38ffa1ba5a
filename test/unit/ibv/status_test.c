/* SPDX-License-Identifier: Apache-2.0 */
/* Status to errno: total, as is the connection states' table. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "verbs/ibv/cm_table.h"
#include "verbs/ibv/status.h"

static void wc__every_status_has_an_errno_and_words(void **state)
{
	(void)state;
	for (int s = IBV_WC_SUCCESS; s <= IBV_WC_TM_RNDV_INCOMPLETE; s++) {
		assert_true(s == IBV_WC_SUCCESS ? !rvi_wc_errno(s) : rvi_wc_errno(s) < 0);
		assert_non_null(rvi_wc_text(s));
		assert_string_not_equal(rvi_wc_text(s), "unknown completion status");
	}
}

/* Checks that only these answers reach the core: each of them has its place there. */
static void wc__there_are_five_answers(void **state)
{
	const int final[] = { IBV_WC_LOC_LEN_ERR,    IBV_WC_LOC_PROT_ERR,
			      IBV_WC_LOC_ACCESS_ERR, IBV_WC_REM_INV_REQ_ERR,
			      IBV_WC_REM_ACCESS_ERR, IBV_WC_RNR_RETRY_EXC_ERR };

	(void)state;
	for (int s = IBV_WC_SUCCESS + 1; s <= IBV_WC_TM_RNDV_INCOMPLETE + 3; s++) {
		bool is_final = false;
		int err = rvi_wc_errno(s);

		for (unsigned i = 0; i < sizeof(final) / sizeof(*final); i++)
			is_final |= final[i] == s;
		/* An uninformative status means to ask again. */
		assert_int_equal(err == -ETIMEDOUT || err == -ECONNRESET, !is_final);
		assert_true(!is_final || err == -EACCES || err == -EFAULT || err == -EPROTO);
	}
}

static void wc__unknown_numbers(void **state)
{
	const int unknown[] = { -1, INT_MIN, IBV_WC_TM_RNDV_INCOMPLETE + 1, 1000, INT_MAX };

	(void)state;
	for (unsigned i = 0; i < sizeof(unknown) / sizeof(*unknown); i++) {
		assert_int_equal(rvi_wc_errno(unknown[i]), -ECONNRESET);
		assert_string_equal(rvi_wc_text(unknown[i]), "unknown completion status");
	}
}

static void wc__errors_that_the_core_tells_apart(void **state)
{
	(void)state;
	assert_int_equal(rvi_wc_errno(IBV_WC_WR_FLUSH_ERR), -ECONNRESET);
	assert_int_equal(rvi_wc_errno(IBV_WC_RETRY_EXC_ERR), -ETIMEDOUT);
	assert_int_equal(rvi_wc_errno(IBV_WC_RNR_RETRY_EXC_ERR), -EPROTO);
	assert_int_equal(rvi_wc_errno(IBV_WC_REM_ACCESS_ERR), -EACCES);
	assert_int_equal(rvi_wc_errno(IBV_WC_REM_INV_REQ_ERR), -EACCES);
	assert_int_equal(rvi_wc_errno(IBV_WC_LOC_PROT_ERR), -EFAULT);
	assert_int_equal(rvi_wc_errno(IBV_WC_LOC_LEN_ERR), -EFAULT);
	/* a link that went down */
	assert_int_equal(rvi_wc_errno(IBV_WC_LOC_QP_OP_ERR), -ECONNRESET);
}

static void cm__every_end_has_an_errno(void **state)
{
	(void)state;
	for (int e = -2; e < 40; e++)
		for (int status = -120; status < 40; status++)
			assert_true(rvi_cm_errno(e, status) < 0);
	assert_int_equal(rvi_cm_errno(RDMA_CM_EVENT_ADDR_ERROR, -110), -EHOSTUNREACH);
	assert_int_equal(rvi_cm_errno(RDMA_CM_EVENT_REJECTED, 8), -ECONNREFUSED);
	/* A peer is there and gave no reason: its device layer, which is busy; or its CM. */
	assert_int_equal(rvi_cm_errno(RDMA_CM_EVENT_REJECTED, 28), -ECONNRESET);
	assert_int_equal(rvi_cm_errno(RDMA_CM_EVENT_REJECTED, 1), -ECONNRESET);
	assert_int_equal(rvi_cm_errno(RDMA_CM_EVENT_UNREACHABLE, -110), -ETIMEDOUT);
	assert_int_equal(rvi_cm_errno(RDMA_CM_EVENT_DEVICE_REMOVAL, 0), -ENODEV);
}

static void cm_table__total_over_states_and_events(void **state)
{
	(void)state;
	for (int s = -1; s <= RVI_NR_STATES; s++)
		for (int e = -1; e <= RDMA_CM_EVENT_TIMEWAIT_EXIT + 1; e++) {
			enum rvi_cm_action a = rvi_cm_action((enum rvi_state)s, e);

			assert_in_range(a, RVI_CM_UNEXPECTED, RVI_CM_DEVICE_LOST);
			if (s < 0 || s >= RVI_NR_STATES || e < 0 || e > RDMA_CM_EVENT_TIMEWAIT_EXIT)
				assert_int_equal(a, RVI_CM_UNEXPECTED);
		}
	assert_int_equal(rvi_cm_action(RVI_UP, INT_MAX), RVI_CM_UNEXPECTED);
	assert_int_equal(rvi_cm_action(RVI_UP, INT_MIN), RVI_CM_UNEXPECTED);
}

static void cm_table__the_way_up(void **state)
{
	(void)state;
	assert_int_equal(rvi_cm_action(RVI_ADDR, RDMA_CM_EVENT_ADDR_RESOLVED),
			 RVI_CM_RESOLVE_ROUTE);
	assert_int_equal(rvi_cm_action(RVI_ROUTE, RDMA_CM_EVENT_ROUTE_RESOLVED),
			 RVI_CM_SEND_REQUEST);
	assert_int_equal(rvi_cm_action(RVI_CONNECTING, RDMA_CM_EVENT_CONNECT_RESPONSE),
			 RVI_CM_ESTABLISH);
	assert_int_equal(rvi_cm_action(RVI_ACCEPTING, RDMA_CM_EVENT_ESTABLISHED), RVI_CM_CONFIRMED);
	assert_int_equal(rvi_cm_action(RVI_UP, RDMA_CM_EVENT_DISCONNECTED), RVI_CM_PEER_LEFT);
}

/* Checks that no event moves a connection that is over, or brings one up twice. */
static void cm_table__never_up_twice(void **state)
{
	(void)state;
	for (int e = 0; e <= RDMA_CM_EVENT_TIMEWAIT_EXIT; e++) {
		enum rvi_cm_action up = rvi_cm_action(RVI_UP, e), down = rvi_cm_action(RVI_DOWN, e);

		assert_true(up != RVI_CM_CONFIRMED && up != RVI_CM_ESTABLISH &&
			    up != RVI_CM_SEND_REQUEST);
		assert_true(down == RVI_CM_IGNORE || down == RVI_CM_UNEXPECTED ||
			    e == RDMA_CM_EVENT_DEVICE_REMOVAL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cm__every_end_has_an_errno),
		cmocka_unit_test(cm_table__never_up_twice),
		cmocka_unit_test(cm_table__the_way_up),
		cmocka_unit_test(cm_table__total_over_states_and_events),
		cmocka_unit_test(wc__every_status_has_an_errno_and_words),
		cmocka_unit_test(wc__there_are_five_answers),
		cmocka_unit_test(wc__unknown_numbers),
		cmocka_unit_test(wc__errors_that_the_core_tells_apart),
	};

	return cmocka_run_group_tests_name("rv_ibv_status", tests, NULL, NULL);
}
