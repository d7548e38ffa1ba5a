/* SPDX-License-Identifier: Apache-2.0 */
/* The choice of a GID, on tables as real ports have them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>

#include "verbs/ibv/gid.h"
#include "verbs/rv.h"

#define ETH IBV_LINK_LAYER_ETHERNET
#define IB IBV_LINK_LAYER_INFINIBAND

static struct ibv_gid_entry row(uint32_t index, uint32_t type, const char *ip)
{
	struct ibv_gid_entry e = { .gid_index = index, .port_num = 1, .gid_type = type };

	assert_int_equal(inet_pton(AF_INET6, ip, e.gid.raw), 1);
	return e;
}

static int choose(const struct ibv_gid_entry *rows, int n, int link, int index, char why[240])
{
	int i;

	why[0] = 0;
	i = rvi_gid_choose(rows, n, link, index, why, 240);
	assert_true(i >= 0 || (i == -ENODEV && why[0]));
	return i;
}

static void choose__v4_before_v6_before_nothing(void **state)
{
	const struct ibv_gid_entry rows[] = {
		row(0, IBV_GID_TYPE_ROCE_V1, "fe80::1"),
		row(1, IBV_GID_TYPE_ROCE_V2, "fe80::1"),
		row(2, IBV_GID_TYPE_ROCE_V1, "::ffff:10.0.0.1"),
		row(3, IBV_GID_TYPE_ROCE_V2, "2001:db8::1"),
		row(4, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.1"),
		row(5, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.2"),
	};
	char why[240];

	(void)state;
	assert_int_equal(choose(rows, 6, ETH, -1, why), 4);
	assert_int_equal(choose(rows, 4, ETH, -1, why), 3);
	assert_int_equal(choose(rows, 3, ETH, -1, why), -ENODEV);
	assert_non_null(strstr(why, "ip addr add"));
}

static void choose__lowest_index_whatever_the_order(void **state)
{
	const struct ibv_gid_entry rows[] = {
		row(7, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.7"),
		row(2, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.2"),
	};
	char why[240];

	(void)state;
	assert_int_equal(choose(rows, 2, ETH, -1, why), 1);
}

static void choose__asked_for(void **state)
{
	const struct ibv_gid_entry rows[] = {
		row(0, IBV_GID_TYPE_ROCE_V2, "fe80::1"),
		row(1, IBV_GID_TYPE_ROCE_V1, "::ffff:10.0.0.1"),
		row(3, IBV_GID_TYPE_ROCE_V2, "2001:db8::1"),
		row(4, IBV_GID_TYPE_ROCE_V2, "::ffff:10.0.0.1"),
	};
	char why[240];

	(void)state;
	assert_int_equal(choose(rows, 4, ETH, 3, why), 2);
	assert_int_equal(choose(rows, 4, ETH, 0, why), -ENODEV);
	assert_non_null(strstr(why, "link-local"));
	assert_non_null(strstr(why, "3 (2001:db8::1)"));
	assert_non_null(strstr(why, "4 (10.0.0.1)"));
	assert_int_equal(choose(rows, 4, ETH, 1, why), -ENODEV);
	assert_non_null(strstr(why, "not RoCE v2"));
	assert_int_equal(choose(rows, 4, ETH, 2, why), -ENODEV);
	assert_non_null(strstr(why, "no such entry"));
	assert_int_equal(choose(rows, 1, ETH, 99, why), -ENODEV);
	assert_non_null(strstr(why, "usable: none"));
}

static void choose__empty_table(void **state)
{
	char why[240];

	(void)state;
	assert_int_equal(choose(NULL, 0, ETH, -1, why), -ENODEV);
	assert_int_equal(choose(NULL, 0, ETH, 0, why), -ENODEV);
	assert_int_equal(choose(NULL, 0, IB, -1, why), -ENODEV);
}

static void choose__infiniband_takes_gid_0(void **state)
{
	const struct ibv_gid_entry rows[] = {
		row(1, IBV_GID_TYPE_IB, "fec0::2"),
		row(0, IBV_GID_TYPE_IB, "fe80::2:c903:1:2"),
	};
	char why[240];

	(void)state;
	assert_int_equal(choose(rows, 2, IB, -1, why), 1);
	assert_int_equal(choose(rows, 2, IB, 1, why), 0);
}

static void use__invalid_addresses(void **state)
{
	const char *why;
	struct ibv_gid_entry e = row(0, IBV_GID_TYPE_ROCE_V2, "::");

	(void)state;
	assert_int_equal(rvi_gid_use(&e, ETH, &why), RVI_GID_NONE);
	assert_string_equal(why, "empty");
	e = row(0, IBV_GID_TYPE_ROCE_V2, "::ffff:0.0.0.0");
	assert_int_equal(rvi_gid_use(&e, ETH, &why), RVI_GID_NONE);
	e = row(0, IBV_GID_TYPE_ROCE_V2, "ff02::1");
	assert_int_equal(rvi_gid_use(&e, ETH, &why), RVI_GID_NONE);
	e = row(0, IBV_GID_TYPE_ROCE_V2, "fd00::1");
	assert_int_equal(rvi_gid_use(&e, ETH, &why), RVI_GID_V6);
	assert_null(why);
}

static void text__both_families(void **state)
{
	struct ibv_gid_entry e = row(0, IBV_GID_TYPE_ROCE_V2, "::ffff:10.77.0.1");
	char text[48];

	(void)state;
	rvi_gid_text(&e.gid, text, sizeof(text));
	assert_string_equal(text, "10.77.0.1");
	e = row(0, IBV_GID_TYPE_ROCE_V2, "2001:db8::7");
	rvi_gid_text(&e.gid, text, sizeof(text));
	assert_string_equal(text, "2001:db8::7");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(choose__asked_for),
		cmocka_unit_test(choose__empty_table),
		cmocka_unit_test(choose__infiniband_takes_gid_0),
		cmocka_unit_test(choose__lowest_index_whatever_the_order),
		cmocka_unit_test(choose__v4_before_v6_before_nothing),
		cmocka_unit_test(text__both_families),
		cmocka_unit_test(use__invalid_addresses),
	};

	return cmocka_run_group_tests_name("rv_ibv_gid", tests, NULL, NULL);
}
