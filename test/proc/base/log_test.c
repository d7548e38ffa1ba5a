/* SPDX-License-Identifier: Apache-2.0 */
/* The log of a program that gives no log function: RREF_LOG sends
 * it to standard error, line by line. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>
#include <regex.h>
#include <sys/mman.h>

#include "tg_refs.h"

#define LINE \
	"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}Z rref rank %d " \
	"(error|warning|info|debug): [ -~]+$"

static int saved_stderr;

/* Replaces standard error with a file of the test. */
static int catch_stderr(void)
{
	int fd = memfd_create("stderr", MFD_CLOEXEC);

	saved_stderr = dup(STDERR_FILENO);
	TG_CHECK(fd >= 0 && saved_stderr >= 0);
	TG_CHECK(dup2(fd, STDERR_FILENO) == STDERR_FILENO);
	/* Writers of one file share its position; a terminal does the same. */
	TG_CHECK(fcntl(STDERR_FILENO, F_SETFL, O_APPEND) == 0);
	return fd;
}

static char *caught(int fd)
{
	static char text[65536];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	TG_CHECK(n >= 0);
	text[n] = '\0';
	return text;
}

static void release_stderr(int fd)
{
	dup2(saved_stderr, STDERR_FILENO);
	close(saved_stderr);
	close(fd);
}

/* Checks that each line is whole and comes from this worker. Returns the number of lines. */
static int check_lines(char *text, int rank)
{
	char pattern[200];
	regex_t re;
	int n = 0;

	snprintf(pattern, sizeof(pattern), LINE, rank);
	TG_CHECK(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB) == 0);
	TG_CHECK(!*text || text[strlen(text) - 1] == '\n');
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), n++)
		if (regexec(&re, line, 0, NULL, 0)) {
			dprintf(saved_stderr, "not a line of the log: %s\n", line);
			_exit(1);
		}
	regfree(&re);
	return n;
}

static void from_env(struct rref_options *o, int rank, const char *level)
{
	TG_IS(level ? setenv("RREF_LOG", level, 1) : unsetenv("RREF_LOG"), 0);
	tg_options(o, rank);
	o->log = NULL;
	TG_OK(rref_options_from_env(o));
}

TG_TEST(log__goes_to_standard_error_when_it_is_asked_for, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	int fd;

	from_env(&o, rank, "debug");
	fd = catch_stderr();
	TG_OK(rref_init(&o, &ctx));
	tg_finish(ctx);
	TG_CHECK(strstr(caught(fd), " info: ") && strstr(caught(fd), "joined a group of 2"));
	TG_CHECK(check_lines(caught(fd), rank) >= 2);
	release_stderr(fd);
	return 0;
}

TG_TEST(log__a_level_leaves_out_lower_levels, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	int fd;

	from_env(&o, rank, "warning");
	fd = catch_stderr();
	TG_OK(rref_init(&o, &ctx));
	tg_finish(ctx);
	TG_IS(check_lines(caught(fd), rank), 0);
	release_stderr(fd);
	return 0;
}

TG_TEST(log__without_the_variable_nothing_is_printed, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	int fd;

	from_env(&o, rank, NULL);
	TG_CHECK(!o.log);
	o.log_level = RREF_LOG_DEBUG;
	fd = catch_stderr();
	TG_OK(rref_init(&o, &ctx));
	tg_finish(ctx);
	TG_CHECK(!*caught(fd));
	release_stderr(fd);
	return 0;
}

static _Atomic int own_lines;

static void own_log(void *arg, enum rref_log_level level, const char *text)
{
	(void)level, (void)text;
	atomic_fetch_add((_Atomic int *)arg, 1);
}

/* The function is given before the variable is read, or after it. */
TG_TEST(log__a_function_of_the_program_wins, 2)
{
	for (int late = 0; late < 2; late++) {
		struct rref_options o;
		struct rref_ctx *ctx;
		int fd;

		TG_IS(setenv("RREF_LOG", "info", 1), 0);
		tg_options(&o, rank);
		o.log = late ? NULL : own_log;
		TG_OK(rref_options_from_env(&o));
		o.log = own_log;
		o.log_ctx = &own_lines;
		atomic_store(&own_lines, 0);
		fd = catch_stderr();
		TG_OK(rref_init(&o, &ctx));
		TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
		rref_free_ctx(ctx);
		TG_CHECK(!*caught(fd));
		TG_CHECK(atomic_load(&own_lines) > 0);
		release_stderr(fd);
		tg_meet(late);
	}
	return 0;
}

/* The first worker names the missing one while it waits. The second worker
 * starts only after that line was logged. */
TG_TEST(log__init_names_the_missing_worker, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	int fd;

	for (int first = 0; first < 2; first++) {
		from_env(&o, rank, "info");
		tg_meet(first);
		if (rank != first) {
			tg_wait_flag(first, 1);
			o.log = NULL;
			TG_OK(rref_init(&o, &ctx));
			tg_finish(ctx);
			continue;
		}
		fd = catch_stderr();
		pid_t watcher = fork();

		TG_CHECK(watcher >= 0);
		if (watcher == 0) {
			/* Rank 0 knows the missing ranks. The other one knows its own goal, and the
			 * reason why it did not get there. */
			const char *what = first == 0 ? "missing rank 1"
						      : "the last: connection refused";

			while (!strstr(caught(fd), what) && now_ns() < tg_deadline())
				tg_pause();
			tg_set_flag(first, 1);
			_exit(0);
		}
		TG_OK(rref_init(&o, &ctx));
		tg_finish(ctx);
		TG_CHECK(strstr(caught(fd), first == 0 ? "missing rank 1" : "rank 1 has waited"));
		TG_CHECK(strstr(caught(fd), tg_current->rendezvous));
		check_lines(caught(fd), rank);
		release_stderr(fd);
	}
	return 0;
}

/* The log's reader has gone. The worker does not die of it, and still gets its own signals. */
TG_TEST(log__a_missing_reader_ends_no_process, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	int ends[2];

	from_env(&o, rank, "debug");
	TG_CHECK(pipe(ends) == 0 && close(ends[0]) == 0);
	saved_stderr = dup(STDERR_FILENO);
	TG_CHECK(dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
	signal(SIGPIPE, SIG_DFL);
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	rref_free_ctx(ctx);
	dup2(saved_stderr, STDERR_FILENO);
	sigset_t set;

	TG_CHECK(sigpending(&set) == 0 && !sigismember(&set, SIGPIPE));
	TG_CHECK(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0 && !sigismember(&set, SIGPIPE));
	close(ends[1]);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(log__a_function_of_the_program_wins),
		cmocka_unit_test(log__a_level_leaves_out_lower_levels),
		cmocka_unit_test(log__a_missing_reader_ends_no_process),
		cmocka_unit_test(log__goes_to_standard_error_when_it_is_asked_for),
		cmocka_unit_test(log__init_names_the_missing_worker),
		cmocka_unit_test(log__without_the_variable_nothing_is_printed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
