/* SPDX-License-Identifier: Apache-2.0 */
/* The workers of one operation: forked here, or this process
 * is one that a launcher started (RREF_RANK is set). */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
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
	return cfg->nr_sizes ? (i < cfg->nr_sizes ? cfg->sizes[i] : 0)
		: op->sizes  ? op->sizes[i]
			     : 0;
}

/*
 * Serves until the measuring worker says that it is done. In manual mode this
 * thread is the poller of all, and spins. Else it sleeps: waking now and then would
 * take time of the processor that moves the bytes.
 */
static void serve(struct rref_ctx *const *ctx, unsigned nr, int mode)
{
	unsigned idle = 0;

	if (mode != RREF_PROGRESS_MANUAL)
		pf_sleep_until_stopped(nr);
	while (!pf_stopped(nr)) {
		int n = 0;

		for (unsigned i = 0; i < nr; i++)
			n += rref_progress(ctx[i]);
		if (n > 0)
			idle = 0;
		else if (++idle % 1024 == 0)
			sched_yield(); /* the caller may have no processor */
	}
}

int pf_join(const struct pf_op *op, const struct rref_options *from, int rank, int mode,
	    struct rref_ctx **ctx)
{
	struct rref_options o = *from;

	o.rank = rank;
	o.mode = (enum rref_progress_mode)mode;
	o.functions = pf_functions;
	o.nr_functions = pf_nr_functions;
	if (!op->looks)
		o.look_bytes = SIZE_MAX;
	if (!o.log)
		o.log = log_line;
	/* The log warns of each worker that goes. */
	if (op->visitors)
		o.log_level = RREF_LOG_ERROR;
	return pf_say(rref_init(&o, ctx), "rref_init");
}

/* Tells the others to stop. Where there are visitors each leaves at once, perhaps unanswered. */
static void tell_to_stop(struct rref_ctx *ctx, const struct pf_op *op)
{
	if (op->visitors) {
		pf_visits_over();
		rref_rpc_sync(ctx, 0, "perf.stop", NULL, RREF_DEFAULT, NULL);
		return;
	}
	for (int r = 0; r < op->world - 1; r++)
		pf_ask(ctx, r, "perf.stop", NULL, 0, NULL, 0);
}

static int worker(const struct pf_config *cfg, const struct pf_op *op,
		  const struct rref_options *from, int rank)
{
	struct rref_ctx *ctx;
	int mode = pf_mode(cfg, op), err = pf_join(op, from, rank, mode, &ctx);

	if (err)
		return err;
	if (rank == op->world - 1) {
		err = op->run(cfg, ctx, op);
		fflush(stdout);
		tell_to_stop(ctx, op);
	} else {
		serve(&ctx, 1, mode);
	}
	/* Visitors left without waiting for the others. */
	int bye = rref_shutdown(ctx,
				err || op->visitors ? RREF_SHUTDOWN_NOW : RREF_SHUTDOWN_GRACEFUL,
				RREF_DEFAULT);

	if (!err)
		err = pf_say(bye, "rref_shutdown");
	rref_free_ctx(ctx);
	return err;
}

/*
 * A crowd of serving workers. With fewer processors than spinning workers, they share a process and
 * a thread that makes progress for all of them. Else the scheduler is measured. Each has a thread
 * to begin and to end, since it waits for the others.
 */
struct crowd {
	const struct pf_config *cfg;
	const struct pf_op *op;
	const struct rref_options *o;
	int nr;
	struct rref_ctx *ctx[PROCS_MAX];
	pthread_barrier_t joined, served;
};

struct one_of {
	struct crowd *crowd;
	int rank, err;
};

static void *one_of_crowd(void *arg)
{
	struct one_of *me = arg;
	struct crowd *c = me->crowd;

	me->err = pf_join(c->op, c->o, me->rank, pf_mode(c->cfg, c->op), &c->ctx[me->rank]);
	/* The others would wait for it until their time-outs. */
	if (me->err)
		_exit(1);
	pthread_barrier_wait(&c->joined);
	pthread_barrier_wait(&c->served);
	me->err = pf_say(rref_shutdown(c->ctx[me->rank], RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT),
			 "rref_shutdown");
	rref_free_ctx(c->ctx[me->rank]);
	return NULL;
}

static int crowd_process(const struct pf_config *cfg, const struct pf_op *op,
			 const struct rref_options *o, int rank)
{
	struct crowd c = { .cfg = cfg, .op = op, .o = o, .nr = op->world - 1 };
	struct one_of one[PROCS_MAX];
	pthread_t thread[PROCS_MAX];
	int err = 0;

	(void)rank;
	pthread_barrier_init(&c.joined, NULL, (unsigned)c.nr + 1);
	pthread_barrier_init(&c.served, NULL, (unsigned)c.nr + 1);
	for (int r = 0; r < c.nr; r++) {
		one[r] = (struct one_of){ .crowd = &c, .rank = r };
		err = pthread_create(&thread[r], NULL, one_of_crowd, &one[r]);
		if (err) {
			fprintf(stderr, "rref-perf: a thread: %s\n", strerror(err));
			_exit(1);
		}
	}
	pthread_barrier_wait(&c.joined);
	serve(c.ctx, (unsigned)c.nr, pf_mode(cfg, op));
	pthread_barrier_wait(&c.served);
	for (int r = 0; r < c.nr; r++) {
		pthread_join(thread[r], NULL);
		err |= one[r].err;
	}
	return err;
}

static int processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
}

/* Returns a port of loopback that is free now. */
static int free_port(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;

	if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
	    getsockname(fd, (struct sockaddr *)&a, &len) == 0)
		port = ntohs(a.sin_port);
	if (fd >= 0)
		close(fd);
	return port;
}

/* A process of the group: one worker, or several. */
struct process {
	int rank; /* its first one */
	int (*run)(const struct pf_config *cfg, const struct pf_op *op,
		   const struct rref_options *o, int rank);
	pid_t pid;
};

/* Lists the processes of an operation; the last is the measuring worker's. Returns their number. */
static int processes_of(const struct pf_config *cfg, const struct pf_op *op, struct process *p)
{
	bool spins = op->world > 2 && pf_mode(cfg, op) == RREF_PROGRESS_MANUAL;
	bool together = spins && processors() < op->world;
	int nr = 0;

	if (together) {
		p[nr++] = (struct process){ .run = crowd_process };
	} else if (op->visitors) {
		p[nr++] = (struct process){ .run = worker };
		p[nr++] = (struct process){ .rank = 1, .run = pf_visitors };
	} else {
		for (int r = 0; r < op->world - 1; r++)
			p[nr++] = (struct process){ .rank = r, .run = worker };
	}
	p[nr++] = (struct process){ .rank = op->world - 1, .run = worker };
	return nr;
}

/* Waits for all. When one fails it ends the rest, which would wait for it until their time-outs. */
static int wait_for_all(struct process *p, int nr)
{
	int failed = 0, status;
	pid_t got;

	while ((got = waitpid(-1, &status, 0)) > 0) {
		bool good = WIFEXITED(status) && !WEXITSTATUS(status);

		for (int i = 0; i < nr; i++) {
			if (p[i].pid == got)
				p[i].pid = -1;
			else if (!good && !failed && p[i].pid > 0)
				kill(p[i].pid, SIGKILL);
		}
		failed |= !good;
	}
	return failed;
}

static int forked(const struct pf_config *cfg, const struct pf_op *op, struct rref_options *o)
{
	struct process p[PROCS_MAX];
	int nr = processes_of(cfg, op, p), failed = 0;
	char place[64];

	if (op->visitors && pf_visits_prepare(op))
		return 1;
	snprintf(place, sizeof(place), "127.0.0.1:%d", free_port());
	o->world_size = op->world;
	o->rendezvous = place;
	fflush(NULL);
	for (int i = 0; i < nr; i++) {
		p[i].pid = fork();
		if (p[i].pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			int err = p[i].run(cfg, op, o, p[i].rank);

			fflush(NULL);
			_exit(err != 0);
		}
		if (p[i].pid < 0) {
			fprintf(stderr, "rref-perf: fork: %s\n", strerror(errno));
			failed = 1;
		}
	}
	return failed | wait_for_all(p, nr);
}

int pf_group(const struct pf_config *cfg, const struct pf_op *op)
{
	struct rref_options o;

	rref_options_init(&o);
	if (!cfg->launched) {
		o.rank = 0;
		o.world_size = op->world;
	}
	if (rref_options_from_env(&o))
		return pf_say(-EINVAL, "the environment") != 0;
	o.device = cfg->device;
	if (!cfg->launched)
		return forked(cfg, op, &o);
	if (op->visitors) {
		fprintf(stderr, "rref-perf: %s runs on one host alone\n", op->name);
		return 1;
	}
	if (o.world_size != op->world) {
		fprintf(stderr, "rref-perf: %s takes %d workers, RREF_WORLD_SIZE says %d\n",
			op->name, op->world, o.world_size);
		return 1;
	}
	return worker(cfg, op, &o, o.rank) != 0;
}
