/* SPDX-License-Identifier: Apache-2.0 */
/* The workers of one operation: forked here, or this process is one that a launcher started (RREF_RANK is set). */
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

#define PROCS_MAX 8

static void log_line(void *ctx, enum rref_log_level level, const char *text)
{
	(void)ctx;
	(void)level;
	fprintf(stderr, "rref-perf: %s\n", text);
}

int pf_mode(const struct pf_config *cfg, const struct pf_op *op)
{
	return cfg->mode >= 0 ? cfg->mode : op->mode;
}

size_t pf_size(const struct pf_config *cfg, const struct pf_op *op, unsigned i)
{
	return cfg->nr_sizes ? (i < cfg->nr_sizes ? cfg->sizes[i] : 0) : op->sizes ? op->sizes[i] : 0;
}

/* Serves until the measuring worker says that it is done. In manual mode this thread is the poller, and spins. */
static void serve(struct rref_ctx *ctx, int mode)
{
	unsigned idle = 0;

	while (!pf_stopped()) {
		if (mode != RREF_PROGRESS_MANUAL)
			usleep(1000);
		else if (rref_progress(ctx) > 0)
			idle = 0;
		else if (++idle % 1024 == 0)
			sched_yield(); /* its caller may have no processor */
	}
}

static int worker(const struct pf_config *cfg, const struct pf_op *op, const struct rref_options *from, int rank)
{
	struct rref_options o = *from;
	struct rref_ctx *ctx;
	int mode = pf_mode(cfg, op), err;

	o.mode = (enum rref_progress_mode)mode;
	o.functions = pf_functions;
	o.nr_functions = pf_nr_functions;
	if (!o.log)
		o.log = log_line;
	err = rref_init(&o, &ctx);
	if (err)
		return pf_say(err, "rref_init");
	if (rank == op->world - 1) {
		err = op->run(cfg, ctx, op);
		fflush(stdout);
		for (int r = 0; r < rank; r++)
			pf_ask(ctx, r, "perf.stop", NULL, 0, NULL, 0);
	} else {
		serve(ctx, mode);
	}
	int bye = rref_shutdown(ctx, err ? RREF_SHUTDOWN_NOW : RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT);

	if (!err)
		err = pf_say(bye, "rref_shutdown");
	rref_free_ctx(ctx);
	return err;
}

/* A port of loopback that is free now. */
static int free_port(void)
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

static int forked(const struct pf_config *cfg, const struct pf_op *op, struct rref_options *o)
{
	pid_t pid[PROCS_MAX];
	char place[64];
	int failed = 0, left = 0;

	snprintf(place, sizeof(place), "127.0.0.1:%d", free_port());
	o->world_size = op->world;
	o->rendezvous = place;
	fflush(NULL);
	for (int r = 0; r < op->world; r++) {
		pid[r] = fork();
		if (pid[r] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			o->rank = r;
			int err = worker(cfg, op, o, r);

			fflush(NULL);
			_exit(err != 0);
		}
		if (pid[r] < 0) {
			fprintf(stderr, "rref-perf: fork: %s\n", strerror(errno));
			failed = 1;
		} else {
			left++;
		}
	}
	while (left) {
		int status;
		pid_t got = waitpid(-1, &status, 0);

		if (got < 0)
			break;
		left--;
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			/* The others would wait for it until their time-outs. */
			for (int r = 0; r < op->world && !failed; r++)
				if (pid[r] > 0 && pid[r] != got)
					kill(pid[r], SIGKILL);
			failed = 1;
		}
	}
	return failed;
}

int pf_group(const struct pf_config *cfg, const struct pf_op *op)
{
	struct rref_options o;

	rref_options_init(&o);
	if (rref_options_from_env(&o))
		return pf_say(-EINVAL, "the environment") != 0;
	o.device = cfg->device;
	if (!cfg->launched)
		return forked(cfg, op, &o);
	if (o.world_size != op->world) {
		fprintf(stderr, "rref-perf: %s takes %d workers, RREF_WORLD_SIZE says %d\n", op->name, op->world, o.world_size);
		return 1;
	}
	return worker(cfg, op, &o, o.rank) != 0;
}
