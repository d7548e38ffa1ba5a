/* SPDX-License-Identifier: Apache-2.0 */
#include "fg.h"

#include <pthread.h>

static int fg_make_value(struct rref_call *call, void *arg)
{
	struct rref_args a = { .nr_refs = 1 };
	struct fg_make m;
	struct rref *r;
	void *at;
	int err;

	(void)arg;
	if (rref_call_length(call) != sizeof(m))
		return -EINVAL;
	memcpy(&m, rref_call_data(call), sizeof(m));
	err = rref_alloc(rref_call_context(call), m.length, &r, &at);
	if (err)
		return err;
	tg_fill(at, m.length, m.seed);
	err = rref_set(r);
	a.refs = &r;
	if (!err)
		err = rref_call_reply(call, &a);
	rref_release(r);
	return err;
}

static const struct rref_function makes = { .name = "fg.make", .handler = fg_make_value };

struct joining {
	struct fg *g;
	int rank;
	pthread_t thread;
};

static void *join_one(void *arg)
{
	struct joining *j = arg;
	char device[32];
	struct rref_options o;

	tg_options(&o, j->rank);
	snprintf(device, sizeof(device), "ibv:fake%d", j->rank);
	o.device = device;
	o.mode = j->g->mode;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	if (j->g->peer_timeout)
		o.peer_timeout = j->g->peer_timeout;
	TG_OK(rref_init(&o, &j->g->ctx[j->rank]));
	TG_OK(rref_register(j->g->ctx[j->rank], &makes));
	return NULL;
}

static void *leave_one(void *arg)
{
	struct joining *j = arg;

	TG_OK(rref_shutdown(j->g->ctx[j->rank], RREF_SHUTDOWN_GRACEFUL, 60 * NSEC_PER_SEC));
	rref_free_ctx(j->g->ctx[j->rank]);
	return NULL;
}

/* Does it for all workers at once, each on a thread of its own. */
static void for_all(struct fg *g, void *(*one)(void *))
{
	struct joining j[FV_DEVICES];
	int n = 0;

	for (int i = 0; i < g->world; i++)
		if (g->ctx[i] || one == join_one)
			j[n++] = (struct joining){ .g = g, .rank = i };
	for (int i = 0; i < n; i++)
		TG_IS(pthread_create(&j[i].thread, NULL, one, &j[i]), 0);
	for (int i = 0; i < n; i++)
		pthread_join(j[i].thread, NULL);
}

void fg_join(struct fg *g)
{
	static struct tg_group group;

	group = (struct tg_group){ .world = g->world, .deadline = now_ns() + 60 * NSEC_PER_SEC };
	tg_free_place(group.rendezvous, sizeof(group.rendezvous));
	tg_current = &group;
	for_all(g, join_one);
}

void fg_leave(struct fg *g)
{
	for_all(g, leave_one);
	memset(g->ctx, 0, sizeof(g->ctx));
}

struct rref *fg_value(struct fg *g, int owner, int holder, size_t length, unsigned seed)
{
	struct fg_make m = { .length = length, .seed = seed };
	struct rref_args a = { .data = &m, .length = sizeof(m) };
	struct rref_future *f;
	struct rref *r;

	TG_OK(rref_rpc_sync(g->ctx[holder], owner, "fg.make", &a, RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	return r;
}

void fg_check(struct rref_view *v, size_t length, unsigned seed)
{
	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, seed));
	rref_view_free(v);
}

void fg_read(struct rref *ref, size_t length, unsigned seed)
{
	struct rref_view *v;

	TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
	fg_check(v, length, seed);
}

int fg_give_small(struct rref_call *call, unsigned nr)
{
	struct rref *r[RREF_REFS_MAX];
	char bytes[64];
	int err;

	tg_fill(bytes, sizeof(bytes), 64);
	for (unsigned i = 0; i < nr; i++)
		TG_OK(rref_new(rref_call_context(call), bytes, sizeof(bytes), &r[i]));
	err = rref_call_reply(call, &(struct rref_args){ .refs = r, .nr_refs = nr });
	for (unsigned i = 0; i < nr; i++)
		rref_release(r[i]);
	return err;
}
