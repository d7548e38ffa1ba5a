/* SPDX-License-Identifier: Apache-2.0 */
/* Assertions: a failure says where, which and with what values, and ends the process. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/assert.h"
#include "core/base/lock.h"

static unsigned char memory[sizeof(struct rref_ctx)] __attribute__((aligned(64)));

static struct rref_ctx *context(void)
{
	memset(memory, 0, sizeof(memory));
	return (struct rref_ctx *)memory;
}

static void holds(void)
{
	int used = 2, max = 3;

	rb_assert(used < max);
	rb_assert_with(used < max, "%d", used);
	rb_assert_is(used, <, max);
	rb_assert_if(used > max, max == 0);
}

static void plain(void)
{
	int used = 5;

	rb_assert(used == 4 + (used & 2));
}

static void with_values(void)
{
	int rank = 7;

	rb_assert_with(rank < 4, "rank %d of %s", rank, "four");
}

static void compared(void)
{
	unsigned used = 9, max = 3;

	rb_assert_is(used, <=, max);
}

static void implied(void)
{
	int sent = 1, due = 1;

	rb_assert_if(sent, !due);
}

static void not_taken(void)
{
	rc_assert_locked(context());
}

static void given_twice(void)
{
	struct rref_ctx *ctx = context();

	rc_lock(ctx);
	rc_assert_locked(ctx);
	rc_unlock_bare(ctx);
	rc_unlock_bare(ctx);
}

static void after_giving(void)
{
	struct rref_ctx *ctx = context();

	rc_lock(ctx);
	rc_unlock_bare(ctx);
	rc_assert_locked(ctx);
}

/* Runs it in a child. Returns the child's status, with what it wrote to stderr. */
static int run(void (*f)(void), char *said, size_t size)
{
	int fd[2], status;
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(fd), 0);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		dup2(fd[1], STDERR_FILENO);
		f();
		_exit(0);
	}
	assert_true(pid > 0);
	close(fd[1]);
	n = read(fd[0], said, size - 1);
	said[n > 0 ? n : 0] = 0;
	close(fd[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void aborts(void (*f)(void), const char *function, const char *words)
{
	char said[1024], where[64];
	int status = run(f, said, sizeof(said));

	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGABRT);
	snprintf(where, sizeof(where), ": %s: assertion failed: ", function);
	assert_non_null(strstr(said, where));
	assert_non_null(strstr(said, words));
	assert_non_null(strstr(said, ".c:"));
	assert_int_equal(said[strlen(said) - 1], '\n');
}

static void assert__what_holds_says_nothing(void **state)
{
	char said[64];

	(void)state;
	assert_int_equal(run(holds, said, sizeof(said)), 0);
	assert_string_equal(said, "");
}

static void assert__a_failure_ends_the_process(void **state)
{
	(void)state;
	aborts(plain, "plain", "used == 4 + (used & 2)\n");
	aborts(with_values, "with_values", "rank < 4: rank 7 of four\n");
	aborts(compared, "compared", "used <= max: 9, 3\n");
	aborts(implied, "implied", "sent implies !due\n");
}

static void assert__the_lock_knows_its_thread(void **state)
{
	(void)state;
	aborts(not_taken, "not_taken", "rc_lock_is_mine");
	aborts(given_twice, "rc_lock_given", "rc_lock_is_mine");
	aborts(after_giving, "after_giving", "rc_lock_is_mine");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(assert__what_holds_says_nothing),
		cmocka_unit_test(assert__a_failure_ends_the_process),
		cmocka_unit_test(assert__the_lock_knows_its_thread),
	};

	return cmocka_run_group_tests_name("assert", tests, NULL, NULL);
}
