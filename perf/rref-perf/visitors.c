/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Visitors: workers that call the measuring worker once and leave, so that it gets a session and
 * loses it. A group is closed, so all of them join at the beginning. They are contexts of one
 * process, and have their turns while the measuring worker wants noise.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"

/* Memory that the two processes share. */
static struct {
	atomic_bool wanted, over;
	atomic_uint left, came; /* visitors to come; visits since they were wanted last */
	atomic_uint all; /* visits */
} * visits;

struct visitor {
	const struct pf_op *op;
	const struct rref_options *o;
	int rank, err;
	pthread_t thread;
	struct rref_ctx *ctx;
};

int pf_visits_prepare(const struct pf_op *op)
{
	void *at = mmap(NULL, sizeof(*visits), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);

	if (at == MAP_FAILED)
		return pf_say(-errno, "memory for the visitors");
	visits = at;
	atomic_store(&visits->left, (unsigned)op->visitors);
	return 0;
}

void pf_visits(bool wanted)
{
	atomic_store(&visits->came, 0);
	atomic_store(&visits->wanted, wanted);
}

bool pf_visited(void)
{
	return atomic_load(&visits->came) || !atomic_load(&visits->left);
}

unsigned pf_visit_count(void)
{
	return atomic_load(&visits->all);
}

void pf_visits_over(void)
{
	atomic_store(&visits->over, true);
}

static void *joins(void *arg)
{
	struct visitor *v = arg;

	v->err = pf_join(v->op, v->o, v->rank, RREF_PROGRESS_MANUAL, &v->ctx);
	/* The others would wait for it until their time-outs. */
	if (v->err)
		_exit(1);
	return NULL;
}

/* Calls the measuring worker, and leaves without a word to it. */
static int visit_once(struct visitor *v)
{
	int err = pf_say(rref_rpc_sync(v->ctx, v->op->world - 1, "perf.nothing", NULL,
				       RREF_DEFAULT, NULL),
			 "a visit");

	atomic_fetch_sub(&visits->left, 1);
	if (!err)
		err = pf_say(rref_shutdown(v->ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT), "a leave");
	if (!err) {
		atomic_fetch_add(&visits->all, 1);
		atomic_fetch_add(&visits->came, 1);
	}
	return err;
}

int pf_visitors(const struct pf_config *cfg, const struct pf_op *op, const struct rref_options *o,
		int rank)
{
	struct visitor *v = calloc((size_t)op->visitors, sizeof(*v));
	/* Spreads them over the noisy half of the time. */
	useconds_t pause = (useconds_t)(cfg->seconds * 1e6 / 2 / op->visitors);
	int err = v ? 0 : pf_say(-ENOMEM, "visitors"), next = 0;

	for (int i = 0; !err && i < op->visitors; i++) {
		v[i] = (struct visitor){ .op = op, .o = o, .rank = rank + i };
		err = -pthread_create(&v[i].thread, NULL, joins, &v[i]);
		pf_say(err, "a visitor's thread");
	}
	if (err)
		return err;
	for (int i = 0; i < op->visitors; i++)
		pthread_join(v[i].thread, NULL);
	while (!err && !atomic_load(&visits->over)) {
		if (atomic_load(&visits->wanted) && next < op->visitors)
			err = visit_once(&v[next++]);
		usleep(min_of(pause, 50000));
	}
	for (int i = 0; i < op->visitors; i++)
		rref_free_ctx(v[i].ctx);
	free(v);
	return err;
}
