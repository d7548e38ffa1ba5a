/* SPDX-License-Identifier: Apache-2.0 */
/* call, share, create: control messages. A share and a creation
 * are measured beside an empty call. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "pf.h"

struct caller {
	struct rref_ctx *ctx;
	int to;
	struct rref *ref;
	struct pf_raw *raw;
};

static int empty_calls(void *arg, unsigned n)
{
	struct caller *c = arg;

	while (n--) {
		int err = rref_rpc_sync(c->ctx, c->to, "perf.nothing", NULL, RREF_DEFAULT, NULL);

		if (err)
			return pf_say(err, "rref_rpc_sync");
	}
	return 0;
}

static int pings(void *arg, unsigned n)
{
	struct caller *c = arg;

	/* Some hundreds at a time, so that the call that starts them counts little. */
	return pf_raw_pingpong(c->raw, c->ctx, n * 1000);
}

int pf_call(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct caller c = { .ctx = ctx, .to = 0 };
	struct pf_side lib = { empty_calls, &c, 1 }, raw = { pings, &c, 1000 };
	struct pf_row row;
	bool both_spin = pf_mode(cfg, op) != RREF_PROGRESS_AUTO &&
		strcmp(pf_reached_by(ctx, 0), "shm") == 0;
	int err = both_spin ? pf_raw_open(cfg, ctx, 64, 0, &c.raw) : 0;

	pf_row_init(&row, op->name, pf_reached_by(ctx, 0), 0);
	row.raw = "cache line";
	if (!err)
		err = pf_measure(cfg, ctx, &lib, c.raw ? &raw : NULL, &row);
	if (!err)
		pf_out(cfg, &row);
	pf_raw_close(c.raw);
	return err;
}

/* Shares a value of worker 0 with worker 1. Its handler runs when the
 * owner has confirmed, so the answer says so. */
static int shares(void *arg, unsigned n)
{
	struct caller *c = arg;

	while (n--) {
		struct rref_args a = { .refs = &c->ref, .nr_refs = 1 };
		int err = rref_rpc_sync(c->ctx, c->to, "perf.nothing", &a, RREF_DEFAULT, NULL);

		if (err)
			return pf_say(err, "rref_rpc_sync with a reference");
	}
	return 0;
}

int pf_share(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct caller c = { .ctx = ctx, .to = 1 };
	struct pf_side lib = { shares, &c, 1 }, raw = { empty_calls, &c, 1 };
	struct pf_row row;
	int err = pf_value(ctx, 8, &c.ref);

	pf_row_init(&row, op->name, pf_reached_by(ctx, 1), 0);
	row.raw = "empty call";
	if (!err)
		err = pf_measure(cfg, ctx, &lib, &raw, &row);
	if (!err)
		pf_out(cfg, &row);
	rref_release(c.ref);
	return err;
}

static int creations(void *arg, unsigned n)
{
	struct caller *c = arg;

	while (n--) {
		struct rref_args a = { .data = "8 bytes.", .length = 8 };
		struct rref_view *v;
		struct rref *ref;
		int err = rref_remote(c->ctx, c->to, "perf.same", &a, RREF_DEFAULT, &ref);

		if (err)
			return pf_say(err, "rref_remote");
		err = rref_to_here(ref, RREF_DEFAULT, &v);
		if (!err)
			rref_view_free(v);
		rref_release(ref);
		if (err)
			return pf_say(err, "rref_to_here");
	}
	return 0;
}

int pf_create(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct caller c = { .ctx = ctx, .to = 0 };
	struct pf_side lib = { creations, &c, 1 }, raw = { empty_calls, &c, 1 };
	struct pf_row row;

	pf_row_init(&row, op->name, pf_reached_by(ctx, 0), 8);
	row.raw = "empty call";
	int err = pf_measure(cfg, ctx, &lib, &raw, &row);

	if (!err)
		pf_out(cfg, &row);
	return err;
}
