/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers: never the same in two processes, and an error if the kernel gives none. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/child.h"
#include "base/random.h"
#include "rref.h"

#define DRAWN 40 /* more than a thread keeps in stock */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void expect_all_different(uint64_t *words, size_t nr)
{
	qsort(words, nr, sizeof(*words), compare);
	for (size_t i = 0; i < nr; i++) {
		assert_true(words[i] != 0);
		assert_true(i == 0 || words[i] != words[i - 1]);
	}
}

static void draw(uint64_t *to)
{
	for (int i = 0; i < DRAWN; i++)
		to[i] = rb_random64();
}

static void wait_for(pid_t pid, int expected)
{
	int status;

	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), expected);
}

/* Draws words in children of fork(2) and of clone(2), which runs no fork handler. The parent's
 * stock is half used. */
static void parent_and_children_draw_different_words(void **state)
{
	uint64_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			       -1, 0);

	(void)state;
	assert_true(words != MAP_FAILED);
	assert_int_equal(rb_child_begin(), 0);
	assert_int_equal(rb_random_begin(), 0);
	rb_random64();
	for (int i = 0; i < 2; i++) {
		pid_t pid = i ? (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL) : fork();

		if (pid == 0) {
			draw(words + (size_t)i * DRAWN);
			_exit(7);
		}
		wait_for(pid, 7);
	}
	draw(words + 2 * DRAWN);
	expect_all_different(words, 3 * DRAWN);
}

/* Makes the system refuse getrandom(2) to this process. */
static void refuse_getrandom(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getrandom, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = array_size(code), .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		_exit(90);
}

static int init_alone(struct rref_ctx **out)
{
	struct rref_options o;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	o.mode = RREF_PROGRESS_MANUAL;
	return rref_init(&o, out);
}

static void refused_from_the_start__init_says_so(void **state)
{
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		struct rref_ctx *ctx;

		alarm(60);
		refuse_getrandom();
		if (init_alone(&ctx) != -EIO)
			_exit(1);
		_exit(strstr(rref_last_error(), "getrandom") ? 7 : 2);
	}
	wait_for(pid, 7);
}

/*
 * Refuses later: a program may shut itself in when everything is set up. Contexts go on, and no two
 * words are the same.
 */
static void refused_later__contexts_go_on(void **state)
{
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		struct rref_ctx *ctx, *other;
		uint64_t words[DRAWN];
		unsigned char many[1000] = { 0 };
		struct rref *r;

		alarm(60);
		if (init_alone(&ctx))
			_exit(1);
		refuse_getrandom();
		for (int i = 0; i < 2 * DRAWN; i++) {
			if (rref_new(ctx, "x", 1, &r))
				_exit(2);
			rref_release(r);
		}
		draw(words);
		expect_all_different(words, DRAWN);
		rb_random(many, sizeof(many));
		rb_random(many + 500, 8);
		if (!memcmp(many, many + 500, 8))
			_exit(3);
		/* A further context would have its own keys. */
		if (init_alone(&other) != -EIO)
			_exit(4);
		_exit(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT) ? 5 : 7);
	}
	wait_for(pid, 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parent_and_children_draw_different_words),
		cmocka_unit_test(refused_from_the_start__init_says_so),
		cmocka_unit_test(refused_later__contexts_go_on),
	};

	return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}
