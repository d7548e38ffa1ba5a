/* SPDX-License-Identifier: Apache-2.0 */
/* idle: the cost of idle workers, and their delay when work comes again. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

#define CALLS 9 /* each after a rest that lets both workers fall asleep */
#define REST_US 50000

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The minimum of a call after a rest: a descriptor wakes another process, which wakes this one. */
struct bare {
	int to, from;
	pid_t pid;
};

static int bare_open(struct bare *b)
{
	uint64_t n;

	*b = (struct bare){ .to = eventfd(0, EFD_CLOEXEC),
			    .from = eventfd(0, EFD_CLOEXEC),
			    .pid = -1 };
	if (b->to >= 0 && b->from >= 0)
		b->pid = fork();
	if (b->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (read(b->to, &n, sizeof(n)) == sizeof(n) &&
		       write(b->from, &n, sizeof(n)) == sizeof(n))
			;
		_exit(0);
	}
	return b->pid > 0 ? 0 : pf_say(-errno, "a process to wake");
}

static int bare_call(const struct bare *b)
{
	uint64_t n = 1;

	return write(b->to, &n, sizeof(n)) == sizeof(n) && read(b->from, &n, sizeof(n)) == sizeof(n)
		? 0
		: pf_say(-errno, "waking");
}

static void bare_close(struct bare *b)
{
	if (b->pid > 0) {
		kill(b->pid, SIGKILL);
		waitpid(b->pid, NULL, 0);
	}
	if (b->to >= 0)
		close(b->to);
	if (b->from >= 0)
		close(b->from);
}

/* Rests for the given time, and reports the process's share of a core meanwhile. Then it calls. */
int pf_idle(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	double first[CALLS], bare[CALLS], ratio[CALLS], before;
	struct pf_row row;
	int err = pf_say(rref_rpc_sync(ctx, 0, "perf.nothing", NULL, RREF_DEFAULT, NULL),
			 "perf.nothing");
	int64_t start;
	struct bare b;

	pf_row_init(&row, op->name, pf_reached_by(ctx, 0), 0);
	usleep(200000);
	before = (double)pf_cpu_ns();
	start = now_ns();
	while (now_ns() - start < (int64_t)(cfg->seconds * 1e9))
		/* this thread sleeps: the library rests */
		usleep((useconds_t)min_of(cfg->seconds * 1e6, 1e6));
	row.cpu_share = ((double)pf_cpu_ns() - before) / (double)(now_ns() - start);
	if (!err)
		err = bare_open(&b);
	if (err)
		return err;
	for (unsigned i = 0; !err && i < CALLS; i++) {
		usleep(REST_US);
		start = now_ns();
		err = pf_say(rref_rpc_sync(ctx, 0, "perf.nothing", NULL, RREF_DEFAULT, NULL),
			     "perf.nothing");
		first[i] = (double)(now_ns() - start);
		usleep(REST_US);
		start = now_ns();
		if (!err)
			err = bare_call(&b);
		bare[i] = (double)(now_ns() - start);
		ratio[i] = first[i] / bare[i];
	}
	bare_close(&b);
	qsort(first, CALLS, sizeof(*first), compare);
	qsort(bare, CALLS, sizeof(*bare), compare);
	row.raw = "eventfd";
	row.raw_p50 = bare[CALLS / 2];
	row.raw_p99 = row.raw_p999 = bare[CALLS - 1];
	row.ratio = pf_ratio(ratio, CALLS);
	row.iters = CALLS;
	row.rounds = CALLS;
	row.group = 1;
	row.p50 = first[CALLS / 2];
	row.p99 = row.p999 = first[CALLS - 1];
	row.rate = 1e9 / row.p50;
	if (!err)
		pf_out(cfg, &row);
	return err;
}
