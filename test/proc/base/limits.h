/* SPDX-License-Identifier: Apache-2.0 */
/* Processes with their own limit, for limits_test and container_test. */
#ifndef LIMITS_H
#define LIMITS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_refs.h"

#define MIB ((size_t)1 << 20)
#define SKIPPED 77

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NO_AS_LIMIT 1 /* the sanitizers reserve more than any such limit */
#else
#define NO_AS_LIMIT 0
#endif

/* Runs fn in a child. Returns its exit status; a signal ends the test. */
static inline int in_child(int (*fn)(const void *arg), const void *arg)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		alarm((unsigned)(60 * tg_slow()));
		_exit(fn(arg));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		fail_msg("ended by signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

#define WORKED 42 /* status of a child in which the limit did not matter */

static inline void run_or_skip(int (*fn)(const void *arg), const void *arg)
{
	int status = in_child(fn, arg);

	if (status == SKIPPED) {
		print_message("skipped: this machine does not let the limit be set\n");
		skip();
	}
	assert_int_equal(status, 0);
}

static inline void limit(__rlimit_resource_t what, rlim_t value)
{
	struct rlimit r;

	TG_IS(getrlimit(what, &r), 0);
	r.rlim_cur = value;
	TG_IS(setrlimit(what, &r), 0);
}

static inline struct rref_options options(void)
{
	struct rref_options o;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	o.max_value_bytes = o.max_landing_bytes = 256 * MIB;
	o.region_bytes = 2 * MIB;
	tg_log(&o);
	return o;
}

/* err must be 0, or this with each of these words in the text. Returns whether it is 0. */
static inline bool works_or(int err, int expected, const char *word, const char *value,
			    const char *remedy)
{
	if (!err)
		return true;
	if (err != expected || !strstr(rref_last_error(), word) ||
	    !strstr(rref_last_error(), value) || !strstr(rref_last_error(), remedy)) {
		fprintf(stderr, "%d, not %d with '%s', '%s', '%s': %s\n", err, expected, word,
			value, remedy, rref_last_error());
		_exit(1);
	}
	return false;
}

static inline void leave(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0));
	rref_free_ctx(ctx);
}

#endif
