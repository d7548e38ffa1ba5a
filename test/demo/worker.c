/* SPDX-License-Identifier: Apache-2.0 */
/* A worker's life: join the group, obey the launcher, leave. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker.h"

void demo_tell(struct demo_worker *w, const struct demo_report *r)
{
	/* Reports that the launcher waits for must arrive; reports for the display may be lost. */
	int flags = MSG_NOSIGNAL |
		(r->kind == DEMO_PROGRESS || r->kind == DEMO_NOTE ? MSG_DONTWAIT : 0);

	while (send(w->fd, r, sizeof(*r), flags) < 0 && errno == EINTR)
		;
}

void demo_tell_progress(struct demo_worker *w, uint64_t bytes)
{
	struct demo_report r = { .kind = DEMO_PROGRESS, .bytes = bytes };

	demo_tell(w, &r);
}

_Noreturn void demo_give_up(struct demo_worker *w, const char *fmt, ...)
{
	struct demo_report r = { .kind = DEMO_FAILED };
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r.text, sizeof(r.text), fmt, ap);
	va_end(ap);
	demo_tell(w, &r);
	_exit(1);
}

int demo_ok(struct demo_worker *w, int result, const char *what, uint32_t which)
{
	const char *text = rref_last_error();

	if (result >= 0)
		return result;
	demo_give_up(w, "%s (reference %u): %s%s%s", what, which, rref_strerror(result),
		     *text ? ": " : "", text);
}

static void to_launcher(void *arg, enum rref_log_level level, const char *text)
{
	struct demo_report r = { .kind = DEMO_NOTE };

	(void)level;
	snprintf(r.text, sizeof(r.text), "%s", text);
	demo_tell(arg, &r);
}

static void join(struct demo_worker *w, struct demo_report *r)
{
	const struct rref_function owners[] = {
		{ .name = "get", .handler = demo_serve_get, .arg = w }
	};
	const struct rref_function users[] = {
		{ .name = "take", .handler = demo_serve_take, .arg = w }
	};
	struct rref_worker_info info = { .size = sizeof(info) };
	struct rref_options o;

	rref_options_init(&o);
	o.rank = w->rank;
	o.world_size = 1 + w->job->users;
	if (rref_options_from_env(&o))
		demo_give_up(w, "%s", rref_last_error());
	if (o.mode == RREF_PROGRESS_MANUAL)
		demo_give_up(w,
			     "RREF_PROGRESS=manual: workers here sleep between commands, so auto "
			     "or poll it must be");
	o.name = demo_name(w->rank);
	o.rank = w->rank;
	o.world_size = 1 + w->job->users;
	o.rendezvous = w->job->rendezvous;
	o.device = w->job->device;
	o.functions = w->rank == 0 ? owners : users;
	o.nr_functions = 1;
	o.timeout = w->job->patience;
	o.init_timeout = 30 * DEMO_SEC;
	o.log = to_launcher;
	o.log_ctx = w;
	if (rref_init(&o, &w->ctx))
		demo_give_up(w, "%s", rref_last_error());
	demo_ok(w, rref_worker(w->ctx, w->rank == 0 ? 1 : 0, &info), "rref_worker", 0);
	snprintf(r->device, sizeof(r->device), "%s", info.device);
}

static void stats(struct demo_worker *w, struct demo_report *r)
{
	struct rusage u;

	r->stats.size = sizeof(r->stats);
	demo_ok(w, rref_get_stats(w->ctx, &r->stats), "rref_get_stats", 0);
	if (getrusage(RUSAGE_SELF, &u) == 0)
		r->cpu_ns = (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * DEMO_SEC +
			(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;
}

static void leave(struct demo_worker *w)
{
	if (rref_shutdown(w->ctx, RREF_SHUTDOWN_GRACEFUL, 30 * DEMO_SEC))
		demo_give_up(w, "rref_shutdown: %s", rref_last_error());
	rref_free_ctx(w->ctx);
}

static void obey(struct demo_worker *w, const struct demo_command *c, struct demo_report *r)
{
	switch (c->op) {
	case DEMO_JOIN:
		join(w, r);
		break;
	case DEMO_PUBLISH:
		demo_publish(w, r);
		break;
	case DEMO_GET:
		demo_get(w, r);
		break;
	case DEMO_SHARE:
		demo_share(w, r);
		break;
	case DEMO_READ:
		demo_read(w, c->way, r);
		break;
	case DEMO_SMALL:
		demo_small(w, r);
		break;
	case DEMO_STATS:
		stats(w, r);
		break;
	case DEMO_RELEASE:
		demo_release(w, r);
		break;
	case DEMO_LEAVE:
		leave(w);
		break;
	}
}

int demo_work(const struct demo_job *job, int rank, int fd)
{
	struct demo_worker w = {
		.job = job, .rank = rank, .fd = fd, .lock = PTHREAD_MUTEX_INITIALIZER
	};
	struct demo_command c = { .op = DEMO_JOIN };

	for (;;) {
		struct demo_report r = { .kind = DEMO_DONE };
		ssize_t n;

		obey(&w, &c, &r);
		demo_tell(&w, &r);
		if (c.op == DEMO_LEAVE)
			break;
		/* No deadline: the launcher's end ends this wait in any case. */
		do
			n = recv(fd, &c, sizeof(c), 0);
		while (n < 0 && errno == EINTR);
		if (n != (ssize_t)sizeof(c))
			_exit(1);
	}
	free(w.refs);
	close(fd);
	return 0;
}
