/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log of a program without a function of its own, if its environment has RREF_LOG: lines on
 * standard error.
 *
 * Each line is one write(2), so that lines of several workers on one terminal or pipe do not mix.
 * It does not use stdio: a thread of the program may hold stdio's lock for ever. A reader that is
 * gone must not end the worker: the SIGPIPE of such a write is taken back.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "core/ctx.h"

#define LINE_MAX_BYTES (RREF_TEXT_SIZE + 96)

/* Writes all of it, or the part that a reader takes before it goes away. */
static void stderr_write_all(const char *p, size_t length)
{
	while (length) {
		ssize_t n = write(STDERR_FILENO, p, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		p += n;
		length -= (size_t)n;
	}
}

static void write_line(const char *line, size_t length)
{
	const struct timespec now = { 0 };
	sigset_t pipe_only, before, pending;

	sigemptyset(&pipe_only);
	sigaddset(&pipe_only, SIGPIPE);
	sigpending(&pending);
	if (sigismember(&pending, SIGPIPE) || pthread_sigmask(SIG_BLOCK, &pipe_only, &before)) {
		stderr_write_all(line, length);
		return;
	}
	stderr_write_all(line, length);
	/* The signal of a write is for the thread that wrote, and pending before write returns. */
	while (sigtimedwait(&pipe_only, NULL, &now) < 0 && errno == EINTR)
		;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void rc_log_stderr(void *arg, enum rref_log_level level, const char *text)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };
	const struct rref_ctx *ctx = arg;
	char line[LINE_MAX_BYTES];
	int saved = errno, length;
	struct timespec ts;
	struct tm tm;

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	length = snprintf(
		line, sizeof(line) - 1, "%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ rref rank %u %s: %s",
		tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
		ts.tv_nsec / 1000, ctx->rank, names[min_of((unsigned)level, 3u)], text);
	length = min_of(length, (int)sizeof(line) - 2);
	/* A text may quote what others sent: it stays one line, and steers no terminal. */
	for (int i = 0; i < length; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[length] = '\n';
	write_line(line, (size_t)length + 1);
	errno = saved;
}
