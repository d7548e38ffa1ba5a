/* SPDX-License-Identifier: Apache-2.0 */
/* idle: what workers cost that have nothing to do, and how soon they do something again. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

#define CALLS 9 /* each after a rest that lets both workers fall asleep */

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double cpu_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* The worker rests as long as was asked for and says which share of a core its whole process took, then calls. */
int pf_idle(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	double first[CALLS], before;
	struct pf_row row;
	int err = pf_say(rref_rpc_sync(ctx, 0, "perf.nothing", NULL, RREF_DEFAULT, NULL), "perf.nothing");
	int64_t start;

	pf_row_init(&row, op->name, pf_reached_by(ctx, 0), 0);
	usleep(200000);
	before = cpu_s();
	start = now_ns();
	while (now_ns() - start < (int64_t)(cfg->seconds * 1e9))
		usleep((useconds_t)min_of(cfg->seconds * 1e6, 1e6)); /* this thread; the library's own rest */
	row.cpu_share = (cpu_s() - before) / ((double)(now_ns() - start) * 1e-9);
	for (unsigned i = 0; !err && i < CALLS; i++) {
		usleep(50000);
		start = now_ns();
		err = pf_say(rref_rpc_sync(ctx, 0, "perf.nothing", NULL, RREF_DEFAULT, NULL), "perf.nothing");
		first[i] = (double)(now_ns() - start);
	}
	qsort(first, CALLS, sizeof(*first), compare);
	row.iters = CALLS;
	row.rounds = 1;
	row.group = 1;
	row.p50 = first[CALLS / 2];
	row.p99 = row.p999 = first[CALLS - 1];
	row.rate = 1e9 / row.p50;
	if (!err)
		pf_out(cfg, &row);
	return err;
}
