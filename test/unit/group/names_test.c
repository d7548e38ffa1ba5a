/* SPDX-License-Identifier: Apache-2.0 */
/* Names and device texts: every byte, every bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/group/group.h"

static bool is_plain(int c)
{
	return (c < 128 && isalnum(c)) || c == '_' || c == ':' || c == '-';
}

static void assert_printable_text(const char *part)
{
	assert_non_null(strstr(rc_error_text(), part));
	for (const char *p = rc_error_text(); *p; p++)
		assert_true(*p >= 0x20 && *p < 0x7f);
}

static void name__every_byte(void **state)
{
	(void)state;
	for (int c = 1; c < 256; c++) {
		char name[4] = { 'a', (char)c, 'b', 0 };

		assert_int_equal(rc_name_check(name), is_plain(c) ? 0 : -EINVAL);
		if (!is_plain(c))
			assert_printable_text("worker name");
		assert_int_equal(rc_function_check(name), is_plain(c) || c == '.' ? 0 : -EINVAL);
		if (!is_plain(c) && c != '.')
			assert_printable_text("function name");
	}
}

static void name__length_1_to_127(void **state)
{
	char name[1000];

	(void)state;
	for (size_t length = 0; length < sizeof(name); length++) {
		int expected = length >= 1 && length <= RREF_NAME_MAX ? 0 : -EINVAL;

		memset(name, 'n', length);
		name[length] = '\0';
		assert_int_equal(rc_name_check(name), expected);
		assert_int_equal(rc_function_check(name), expected);
	}
	assert_int_equal(rc_name_check(NULL), -EINVAL);
	assert_int_equal(rc_function_check(NULL), -EINVAL);
}

static void device__understood(void **state)
{
	static const struct {
		const char *text;
		struct rc_device_choice want;
	} cases[] = {
		{ NULL, { true, true, false, "", 0, -1 } },
		{ "auto", { true, true, false, "", 0, -1 } },
		{ "shm", { true, false, true, "", 0, -1 } },
		{ "ibv", { false, true, true, "", 0, -1 } },
		{ "ibv:rxe0", { false, true, true, "rxe0", 0, -1 } },
		{ "ibv:mlx5_0:1", { false, true, true, "mlx5_0", 1, -1 } },
		{ "ibv:mlx5_0:255:0", { false, true, true, "mlx5_0", 255, 0 } },
		{ "ibv:a.b-c:2:255", { false, true, true, "a.b-c", 2, 255 } },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rc_device_choice c;

		memset(&c, 0x55, sizeof(c));
		assert_int_equal(rc_device_parse(cases[i].text, &c), 0);
		assert_int_equal(c.use_shm, cases[i].want.use_shm);
		assert_int_equal(c.use_ibv, cases[i].want.use_ibv);
		assert_int_equal(c.must, cases[i].want.must);
		assert_string_equal(c.device, cases[i].want.device);
		assert_int_equal(c.port, cases[i].want.port);
		assert_int_equal(c.gid_index, cases[i].want.gid_index);
	}
}

static void device__refused(void **state)
{
	static const char *const cases[] = {
		"", "Auto", "auto ", " auto", "shm:", "shm:1", "tcp", "ib", "ibvx", "ibv:", "ibv::",
		"ibv::1", "ibv:a:", "ibv:a:0",
		"ibv:a:256", "ibv:a:-1", "ibv:a:+1", "ibv:a: 1", "ibv:a:1x", "ibv:a:1:",
		"ibv:a:1:256", "ibv:a:1:-1", "ibv:a:1:1:1",
		"ibv:a::1", "ibv:a/b", "ibv:a\n", "ibv:%s%n", "ibv:\xff",
		"ibv:a:99999999999999999999", "ibv:a:1:99999999999999999999",
		/* 64 bytes */
		"ibv:0123456789012345678901234567890123456789012345678901234567890123",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rc_device_choice c, before;

		memset(&c, 0x55, sizeof(c));
		before = c;
		assert_int_equal(rc_device_parse(cases[i], &c), -EINVAL);
		assert_memory_equal(&c, &before, sizeof(c));
		assert_printable_text("device \"");
	}
}

static void device__longest_name(void **state)
{
	char text[300] = "ibv:";
	struct rc_device_choice c;

	(void)state;
	memset(text + 4, 'd', 63);
	assert_int_equal(rc_device_parse(text, &c), 0);
	assert_int_equal(strlen(c.device), 63);
	memset(text + 4, 'd', 290);
	assert_int_equal(rc_device_parse(text, &c), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(device__longest_name),
		cmocka_unit_test(device__refused),
		cmocka_unit_test(device__understood),
		cmocka_unit_test(name__every_byte),
		cmocka_unit_test(name__length_1_to_127),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
