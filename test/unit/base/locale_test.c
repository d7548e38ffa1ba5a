/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program whose locale has a decimal comma. The library writes numbers with a point all the same,
 * for programs and people. The test makes the locale in a separate folder, so the machine needs
 * only the "locales" package's sources.
 */
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "alloc/ra_internal.h"
#include "base/util.h"
#include "rref.h"

static char folder[] = "/tmp/rref-locale-XXXXXX";

static int make_locale(void **state)
{
	char command[200];

	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(command, sizeof(command),
		 "localedef -c -i de_DE -f UTF-8 %s/de_DE.UTF-8 >%s/log 2>&1; test -d "
		 "%s/de_DE.UTF-8",
		 folder, folder, folder);
	if (system(command) || setenv("LOCPATH", folder, 1) || !setlocale(LC_ALL, "de_DE.UTF-8")) {
		fprintf(stderr,
			"no locale with a decimal comma: is the package \"locales\" installed?\n");
		return -1;
	}
	snprintf(command, sizeof(command), "%.1f", 1.5);
	return strcmp(command, "1,5") ? -1 : 0; /* else the tests would see nothing */
}

static int remove_locale(void **state)
{
	char command[80];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command) ? -1 : 0;
}

/* Counts the numbers "DIGITS,DIGITS" and "DIGITS.DIGITS" after this key. */
static void count_numbers(const char *text, const char *key, unsigned *commas, unsigned *points)
{
	*commas = *points = 0;
	for (const char *p = text; (p = strstr(p, key));) {
		p += strlen(key);
		p += strspn(p, " ");
		p += strspn(p, "0123456789");
		*commas += p[0] == ',' && p[1] >= '0' && p[1] <= '9';
		*points += p[0] == '.' && p[1] >= '0' && p[1] <= '9';
	}
}

static struct rref_ctx *group_of_one(const char *trace)
{
	struct rref_options opt;
	struct rref_ctx *ctx;

	rref_options_init(&opt);
	opt.world_size = 1;
	opt.device = "shm";
	opt.trace = trace;
	assert_int_equal(rref_init(&opt, &ctx), 0);
	return ctx;
}

static int keep(void *arg, const char *text, size_t length)
{
	strncat(arg, text, length);
	return 0;
}

static void locale__dumps_have_points(void **state)
{
	static char json[65536];
	struct rref_ctx *ctx = group_of_one(NULL);
	unsigned commas, points;
	struct rref *r;

	(void)state;
	assert_int_equal(rref_new(ctx, "x", 1, &r), 0);
	assert_int_equal(rref_dump_to(ctx, RREF_DUMP_JSON | RREF_DUMP_STATS, keep, json), 0);
	count_numbers(json, "\"age\":", &commas, &points);
	assert_int_equal(commas, 0);
	assert_true(points >= 2); /* points of the worker and of the value */
	json[0] = '\0';
	assert_int_equal(rref_dump_to(ctx, 0, keep, json), 0);
	count_numbers(json, "age=", &commas, &points);
	assert_int_equal(commas, 0);
	assert_true(points >= 2);
	rref_release(r);
	assert_int_equal(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT), 0);
	rref_free_ctx(ctx);
}

static void locale__error_texts_have_points(void **state)
{
	struct rref_options opt;
	struct rref_ctx *ctx;
	const char *number;

	(void)state;
	rref_options_init(&opt);
	opt.rank = 1;
	opt.world_size = 2;
	opt.device = "shm";
	opt.rendezvous = "127.0.0.1:1"; /* no listener there */
	opt.init_timeout = 300 * NSEC_PER_MSEC;
	assert_true(rref_init(&opt, &ctx) < 0);
	number = strstr(rref_last_error(), " tries in ");
	assert_non_null(number);
	number += strlen(" tries in ");
	assert_int_equal(number[strspn(number, "0123456789")], '.');
	assert_string_equal(ra_size_text(17825793).text, "17.0 MiB");
	assert_string_equal(ra_size_text(((size_t)3 << 20) + ((size_t)900 << 10) + 1).text,
			    "3.9 MiB");
	assert_string_equal(ra_size_text(((size_t)4 << 20) - 1).text, "4.0 MiB");
}

static void locale__numbers_are_rounded(void **state)
{
	(void)state;
	assert_string_equal(seconds_text(0).text, "0.0");
	assert_string_equal(seconds_text(49 * NSEC_PER_MSEC).text, "0.0");
	assert_string_equal(seconds_text(50 * NSEC_PER_MSEC).text, "0.1");
	assert_string_equal(seconds_text(9950 * NSEC_PER_MSEC).text, "10.0");
	assert_string_equal(seconds_text(-1).text, "0.0");
	assert_string_equal(seconds_text(INT64_MAX).text, "9223372036.9");
	assert_string_equal(decimal_text(1005, 3).text, "1.005");
	assert_string_equal(decimal_text(7, 3).text, "0.007");
}

static void locale__traces_have_points(void **state)
{
	static char text[65536];
	char path[80], file[80];
	struct rref_view *view;
	struct rref_ctx *ctx;
	unsigned commas, points;
	struct rref *r;
	FILE *f;

	(void)state;
	snprintf(path, sizeof(path), "%s/%%r.json", folder);
	snprintf(file, sizeof(file), "%s/0.json", folder);
	ctx = group_of_one(path);
	assert_int_equal(rref_new(ctx, "x", 1, &r), 0);
	assert_int_equal(rref_to_here(r, RREF_DEFAULT, &view), 0);
	rref_view_free(view);
	rref_release(r);
	assert_int_equal(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT), 0);
	rref_free_ctx(ctx);
	f = fopen(file, "r");
	assert_non_null(f);
	text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
	fclose(f);
	count_numbers(text, "\"ts\":", &commas, &points);
	assert_int_equal(commas, 0);
	assert_true(points >= 2);
	count_numbers(text, "\"dur\":", &commas, &points);
	assert_int_equal(commas, 0);
	assert_true(points >= 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(locale__dumps_have_points),
		cmocka_unit_test(locale__error_texts_have_points),
		cmocka_unit_test(locale__numbers_are_rounded),
		cmocka_unit_test(locale__traces_have_points),
	};

	return cmocka_run_group_tests(tests, make_locale, remove_locale);
}
