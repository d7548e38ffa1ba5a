/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trace file: scopes in Chrome's trace event format, for ui.perfetto.dev and chrome://tracing.
 * A JSON array, an event a line. Whole events are written, when the buffer is full and once a
 * second. So the file of a worker that dies lacks only its last second and the closing bracket. The
 * format allows an array to end without the bracket.
 *
 * A scope of a thread is one complete event ("X"), written at its end. A scope of a future is a
 * pair ("b", "e"). Memory is one buffer. The file has a bound too: beyond it no scope begins, but
 * each begun scope still ends. The last event tells how many scopes are missing.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/limit.h"
#include "base/slow.h"
#include "core/base/scope.h"

#define BUFFER_BYTES ((size_t)64 << 10)
#define EVENT_BYTES 1024u                     /* more than any event takes */
#define FILE_BYTES_MAX ((uint64_t)1 << 30)    /* begun up to here */
#define FLUSH_NS (1 * NSEC_PER_SEC)
/* 2020-01-01: microseconds since then keep their fractions in a double */
#define EPOCH_S INT64_C(1577836800)

struct rc_trace {
	pthread_mutex_t lock;
	int fd;                      /* guarded by lock; -1 = could not be written any more */
	uint32_t rank;               /* const */
	uint64_t number;             /* const: no two files of the process have the same */
	int64_t offset_ns;           /* const: from CLOCK_MONOTONIC to the file's time */
	int64_t flushed_at;          /* guarded by lock */
	uint64_t written;            /* guarded by lock: bytes in the file */
	uint64_t left_out;           /* guarded by lock: scopes beyond the bound */
	size_t used;                 /* guarded by lock */
	char buf[BUFFER_BYTES];
};

/* guarded by nothing: the thread's own */
static _Thread_local uint64_t named_in; /* number of the last file that knows this thread's name */

static void trace_flush(struct rc_trace *t, int64_t now)
{
	size_t done = 0;

	rb_slow(RB_SLOW_TRACE);
	t->flushed_at = now;
	while (t->fd >= 0 && done < t->used) {
		/* Beyond its limit on files the kernel would end the process. */
		bool full = limit_file(t->written + t->used);
		ssize_t n = full ? -1 : write(t->fd, t->buf + done, t->used - done);

		if (n > 0) {
			done += (size_t)n;
		} else if (n < 0 && errno != EINTR) {
			/*
			 * No room, most likely. Cuts off the half event, so that the events in the
			 * file stay good.
			 */
			(void)!ftruncate(t->fd, (off_t)t->written);
			rb_close(t->fd);
			t->fd = -1;
		}
	}
	t->written += done;
	t->used = 0;
}

static void event(struct rc_trace *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void event(struct rc_trace *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->used, EVENT_BYTES, fmt, ap);
	va_end(ap);
	if (n > 0 && (size_t)n < EVENT_BYTES)
		t->used += (size_t)n;
}

/* Writes a point in time, as the microseconds that the format wants. */
static struct decimal us(const struct rc_trace *t, int64_t ns)
{
	return decimal_text(ns + t->offset_ns, 3);
}

/* Makes room for an event and the name of its thread. */
static void make_room(struct rc_trace *t, int64_t now)
{
	if (t->used + 2 * EVENT_BYTES > BUFFER_BYTES || now - t->flushed_at >= FLUSH_NS)
		trace_flush(t, now);
}

static void name_thread(struct rc_trace *t)
{
	char name[16] = "";

	if (named_in == t->number)
		return;
	named_in = t->number;
	if (pthread_getname_np(pthread_self(), name, sizeof(name)))
		return;
	rc_make_plain(name);
	event(t,
	      ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%u,\"tid\":%d,"
	      "\"args\":{\"name\":\"%s\"}}",
	      t->rank, gettid(), name);
}

/* Puts the rank into the file's name: in place of %r, else behind it. Returns whether it fits. */
static bool trace_name(char *full, size_t size, const char *path, uint32_t rank)
{
	const char *r = strstr(path, "%r");
	int n = r ? snprintf(full, size, "%.*s%u%s", (int)(r - path), path, rank, r + 2)
		  : snprintf(full, size, "%s.%u", path, rank);

	return n >= 0 && (size_t)n < size;
}

/*
 * Opens the file. Does not block: the reader of a pipe may never come. Refuses a pipe: a write to a
 * pipe without a reader is a SIGPIPE.
 */
static int trace_file(const char *full, int *fd)
{
	struct stat st;
	int err;

	*fd = RB_OPEN(open(full, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW |
			   O_NONBLOCK, 0600));
	err = *fd < 0 || fstat(*fd, &st) ? errno : 0;
	if (!err && S_ISREG(st.st_mode))
		return 0;
	rb_close(*fd);
	return rc_fail(limit_errno(err) == ENOMEM ? ENOMEM : EIO,
		       "the trace file %.300s cannot be made: %s", full,
		       !err			 ? "it is there, and no regular file"
		       : limit_errno(err) == err ? rref_strerror(err)
						 : limit_why("open", err, 0));
}

int rc_trace_open(const char *path, uint32_t rank, const char *name, struct rc_trace **out)
{
	char full[4096];
	static _Atomic uint64_t files;
	struct timespec real;
	struct rc_trace *t;
	int err;

	if (!trace_name(full, sizeof(full), path, rank))
		return rc_fail(EINVAL, "the trace file's name is too long");
	t = calloc(1, sizeof(*t));
	if (!t)
		return rc_fail(ENOMEM, "memory for a trace");
	err = trace_file(full, &t->fd);
	if (err) {
		free(t);
		return err;
	}
	pthread_mutex_init(&t->lock, NULL);
	t->rank = rank;
	t->number = at_add(&files, 1) + 1;
	clock_gettime(CLOCK_REALTIME, &real);
	t->flushed_at = now_ns();
	t->offset_ns = (real.tv_sec - EPOCH_S) * NSEC_PER_SEC + real.tv_nsec - t->flushed_at;
	event(t,
	      "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%u,\"args\":{\"name\":\"%s\"}}",
	      rank, name);
	event(t,
	      ",\n{\"name\":\"process_labels\",\"ph\":\"M\",\"pid\":%u,"
	      "\"args\":{\"labels\":\"rank %u, os pid %d\"}}",
	      rank, rank, getpid());
	trace_flush(t, t->flushed_at);
	*out = t;
	return 0;
}

void rc_trace_close(struct rc_trace *t)
{
	if (!t)
		return;
	make_room(t, now_ns());
	if (t->left_out)
		event(t,
		      ",\n{\"name\":\"%" PRIu64
		      " scopes were left out: the file is full\",\"ph\":\"i\",\"s\":\"p\","
		      "\"ts\":%s,\"pid\":%u,\"tid\":%d}",
		      t->left_out, us(t, now_ns()).text, t->rank, gettid());
	event(t, "\n]\n");
	trace_flush(t, now_ns());
	rb_close(t->fd);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

void rc_trace_tick(struct rc_trace *t, int64_t now, bool at_once)
{
	pthread_mutex_lock(&t->lock);
	if (t->used && (at_once || now - t->flushed_at >= FLUSH_NS))
		trace_flush(t, now);
	pthread_mutex_unlock(&t->lock);
}

static bool is_full(struct rc_trace *t)
{
	if (t->fd >= 0 && t->written < FILE_BYTES_MAX)
		return false;
	t->left_out++;
	return true;
}

void rc_trace_begin(struct rc_trace *t, struct rc_scope *s)
{
	s->begun = now_ns();
	if (!s->async)
		return;
	pthread_mutex_lock(&t->lock);
	if (!is_full(t)) {
		s->traced = true;
		make_room(t, s->begun);
		name_thread(t);
		event(t,
		      ",\n{\"name\":\"%s\",\"cat\":\"rref\",\"ph\":\"b\",\"id\":\"%u.%" PRIu64
		      "\",\"ts\":%s,\"pid\":%u,\"tid\":%d}",
		      s->key, t->rank, s->id, us(t, s->begun).text, t->rank, gettid());
	}
	pthread_mutex_unlock(&t->lock);
}

void rc_trace_end(struct rc_trace *t, struct rc_scope *s, int status)
{
	int64_t now = now_ns();

	pthread_mutex_lock(&t->lock);
	if (s->async ? s->traced : !is_full(t)) {
		make_room(t, now);
		name_thread(t);
		if (s->async)
			event(t,
			      ",\n{\"name\":\"%s\",\"cat\":\"rref\","
			      "\"ph\":\"e\",\"id\":\"%u.%" PRIu64
			      "\",\"ts\":%s,\"pid\":%u,\"tid\":%d,"
			      "\"args\":{\"status\":%d}}",
			      s->key, t->rank, s->id, us(t, now).text, t->rank, gettid(), status);
		else
			event(t,
			      ",\n{\"name\":\"%s\",\"cat\":\"rref\",\"ph\":\"X\",\"ts\":%s,"
			      "\"dur\":%s,\"pid\":%u,\"tid\":%d,\"args\":{\"status\":%d}}",
			      s->key, us(t, s->begun).text, decimal_text(now - s->begun, 3).text,
			      t->rank, gettid(), status);
	}
	pthread_mutex_unlock(&t->lock);
}
