/* SPDX-License-Identifier: Apache-2.0 */
#include "tg.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct tg_group *tg_current;

const char *tg_device(void)
{
	const char *d = getenv("RREF_TEST_DEVICE");

	return d && *d ? d : "shm";
}

bool tg_is_shm(void)
{
	return strcmp(tg_device(), "shm") == 0;
}

int tg_scale(int n)
{
	return tg_is_shm() ? n : n / 20 > 1 ? n / 20 : 1;
}

/* The kernel's choice of a port that is free now. */
int tg_free_port(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;

	if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && getsockname(fd, (struct sockaddr *)&a, &len) == 0)
		port = ntohs(a.sin_port);
	if (fd >= 0)
		close(fd);
	return port;
}

static void log_to_stderr(void *ctx, enum rref_log_level level, const char *text)
{
	(void)ctx;
	fprintf(stderr, "[%d] log %d: %s\n", (int)getpid(), (int)level, text);
}

void tg_options(struct rref_options *o, int rank)
{
	rref_options_init(o);
	o->rank = rank;
	o->world_size = tg_current->world;
	o->rendezvous = tg_current->rendezvous;
	o->device = tg_device();
	o->init_timeout = 30 * NSEC_PER_SEC;
	o->timeout = 30 * NSEC_PER_SEC;
	if (getenv("RREF_TEST_PROGRESS") && strcmp(getenv("RREF_TEST_PROGRESS"), "poll") == 0)
		o->mode = RREF_PROGRESS_POLL;
	if (getenv("RREF_TEST_PROGRESS") && strcmp(getenv("RREF_TEST_PROGRESS"), "manual") == 0)
		o->mode = RREF_PROGRESS_MANUAL;
	if (getenv("RREF_TEST_LOG")) {
		o->log = log_to_stderr;
		o->log_level = RREF_LOG_DEBUG;
	}
}

struct rref_ctx *tg_init(int rank, const struct rref_function *fns, size_t nr)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = fns;
	o.nr_functions = nr;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

void tg_finish(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 30 * NSEC_PER_SEC));
	rref_free_ctx(ctx);
}

void tg_meet(int i)
{
	struct tg_shared *s = tg_current->shared;
	int n = atomic_fetch_add(&s->arrived[i], 1) + 1, round = (n + tg_current->world - 1) / tg_current->world;
	int64_t end = now_ns() + 60 * NSEC_PER_SEC;

	while (atomic_load(&s->arrived[i]) < round * tg_current->world) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
}

void tg_wait_flag(int i, int value)
{
	int64_t end = now_ns() + 60 * NSEC_PER_SEC;

	while (atomic_load(&tg_current->shared->flag[i]) < value) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
}

struct rref_stats tg_stats(struct rref_ctx *ctx)
{
	struct rref_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_stats(ctx, &s));
	return s;
}

bool tg_eventually(bool (*cond)(struct rref_ctx *ctx, void *arg), struct rref_ctx *ctx, void *arg)
{
	int64_t end = now_ns() + 20 * NSEC_PER_SEC;

	while (!cond(ctx, arg)) {
		if (now_ns() > end)
			return false;
		rref_progress(ctx);
		usleep(500);
	}
	return true;
}

int tg_run_group(struct tg_group *g, int (*worker)(int rank, void *arg), void *arg)
{
	int bad = 0, slow = getenv("RREF_TEST_SLOW") ? atoi(getenv("RREF_TEST_SLOW")) : 1;
	int64_t end = now_ns() + (int64_t)(g->timeout_s ? g->timeout_s : 60) * max_of(slow, 1) * NSEC_PER_SEC;

	g->shared = mmap(NULL, sizeof(*g->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->shared == MAP_FAILED)
		return -1;
	snprintf(g->rendezvous, sizeof(g->rendezvous), "127.0.0.1:%d", tg_free_port());
	fflush(NULL);
	for (int r = 0; r < g->world; r++) {
		g->pid[r] = fork();
		if (g->pid[r] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			tg_current = g;
			g->shared->pid[r] = getpid();
			int status = worker(r, arg);

			fflush(NULL);
			_exit(status);
		}
	}
	for (int r = 0; r < g->world; r++) {
		int status = 0;
		pid_t got = 0;

		while (g->pid[r] > 0 && (got = waitpid(g->pid[r], &status, WNOHANG)) == 0 && now_ns() < end)
			usleep(500);
		if (got == 0) {
			fprintf(stderr, "rank %d (pid %d) did not end in time\n", r, (int)g->pid[r]);
			kill(g->pid[r], getenv("RREF_TEST_ABORT") ? SIGABRT : SIGKILL);
			waitpid(g->pid[r], &status, 0);
			bad++;
			end = 0; /* the others get no more time either */
		} else if (g->expect_killed[r]) {
			if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
				bad++;
		} else if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			fprintf(stderr, "rank %d ended with %s %d\n", r, WIFSIGNALED(status) ? "signal" : "status",
				WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
			bad++;
		}
	}
	munmap(g->shared, sizeof(*g->shared));
	return bad;
}

int tg_run(int world, int (*worker)(int rank, void *arg), void *arg)
{
	struct tg_group g = { .world = world };

	return tg_run_group(&g, worker, arg);
}
