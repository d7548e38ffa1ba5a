/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another user takes the name of the directory of a user's secret, before that user's first group.
 * The group comes together all the same. It works on when the name is given up in between.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "tg.h"

#define OTHER_UID 12346
#define TAKEN "/tmp/librref-12346"

static void remove_all(void)
{
	TG_IS(system("rm -rf " TAKEN " " TAKEN ".*"), 0);
}

static int worker(int rank, void *arg)
{
	struct rref_ctx *ctx;

	(void)arg;
	unsetenv("XDG_RUNTIME_DIR");
	if (rank == 0)
		TG_OK(mkdir(TAKEN, 0700));
	tg_meet(0);
	TG_OK(setresgid(OTHER_UID, OTHER_UID, OTHER_UID));
	TG_OK(setresuid(OTHER_UID, OTHER_UID, OTHER_UID));
	ctx = tg_join(rank);
	if (rank)
		TG_OK(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

static void key_directory__is_taken_first(void **state)
{
	(void)state;
	if (geteuid()) {
		print_message("skipped: needs root to become another user\n");
		skip();
	}
	remove_all();
	assert_int_equal(tg_run(3, worker, NULL), 0);
	assert_int_equal(rmdir(TAKEN), 0); /* still the other's, and empty */
	remove_all();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(key_directory__is_taken_first),
	};

	return cmocka_run_group_tests_name("user_key", tests, NULL, NULL);
}
