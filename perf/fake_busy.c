/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads over fake devices beside a noise of the same worker. One of its threads frees large values,
 * and another worker calls it all the time. In each round a worker makes a session with it and
 * leaves. All workers are contexts of this process: 0 reads, 1 owns the value and calls, the others
 * come and go.
 */
#include <pthread.h>

#include "fake.h"

#define FIRST_VISITOR 2
#define LOST_NS (30 * NSEC_PER_SEC)

struct noise {
	struct fg g;
	struct rref *ref;
	size_t freed; /* bytes of each value that comes and goes */
	pthread_t frees, calls, visits;
	_Atomic bool over;
	_Atomic unsigned nr_freed, nr_calls, nr_visits;
	int visitor; /* worker that visits next */
};

static int read_each(void *arg, unsigned n)
{
	while (n--) {
		struct rref_view *v;
		int err = rref_to_here(arg, RREF_DEFAULT, &v);

		if (err)
			return pf_say(err, "rref_to_here");
		rref_view_free(v);
	}
	return 0;
}

static void *free_values(void *arg)
{
	struct noise *n = arg;

	do {
		struct rref *ref;
		void *data;

		TG_OK(rref_alloc(n->g.ctx[0], n->freed, &ref, &data));
		TG_OK(rref_set(ref));
		rref_release(ref);
		n->nr_freed++;
	} while (!n->over);
	return NULL;
}

static void *call_reader(void *arg)
{
	struct noise *n = arg;

	do {
		TG_OK(rref_rpc_sync(n->g.ctx[1], 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
		n->nr_calls++;
	} while (!n->over);
	return NULL;
}

/* Has one worker call the reader, and leave without a word to it. */
static void *visit_reader(void *arg)
{
	struct noise *n = arg;
	struct rref_ctx **ctx = &n->g.ctx[n->visitor++];

	TG_OK(rref_rpc_sync(*ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	TG_OK(rref_shutdown(*ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(*ctx);
	*ctx = NULL;
	n->nr_visits++;
	return NULL;
}

static int noise_begins(void *arg)
{
	struct noise *n = arg;
	unsigned freed = n->nr_freed, called = n->nr_calls;
	int64_t end = now_ns() + LOST_NS;

	n->over = false;
	TG_IS(pthread_create(&n->frees, NULL, free_values, n), 0);
	TG_IS(pthread_create(&n->calls, NULL, call_reader, n), 0);
	while (n->nr_freed == freed || n->nr_calls == called) {
		TG_CHECK(now_ns() < end);
		usleep(1000);
	}
	if (n->visitor < n->g.world)
		TG_IS(pthread_create(&n->visits, NULL, visit_reader, n), 0);
	else
		n->visits = 0;
	return 0;
}

static int noise_ends(void *arg)
{
	struct noise *n = arg;

	n->over = true;
	pthread_join(n->frees, NULL);
	pthread_join(n->calls, NULL);
	if (n->visits)
		pthread_join(n->visits, NULL);
	return 0;
}

int fake_busy(const struct pf_config *cfg)
{
	struct noise n = { .freed = cfg->freed, .visitor = FIRST_VISITOR };
	struct pf_noise noise = { noise_begins, noise_ends, &n };
	struct pf_side side = { read_each, NULL, 1 };
	struct pf_row row;
	int err;

	n.g.world = FV_DEVICES;
	fg_join(&n.g);
	side.arg = n.ref = fg_value(&n.g, 1, 0, 8, 1);
	pf_row_init(&row, "read+busy", "fake", 8);
	row.raw = "idle";
	err = pf_tails(cfg, &side, &noise, &row);
	row.frees = n.nr_freed;
	row.calls = n.nr_calls;
	row.sessions = n.nr_visits;
	if (!err)
		pf_out(cfg, &row);
	rref_release(n.ref);
	fg_leave(&n.g);
	return err != 0;
}
