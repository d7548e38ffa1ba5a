/* SPDX-License-Identifier: Apache-2.0 */
/* lat, bw, rate, async, view, batch: reads, beside the raw reads. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "pf.h"

/* windows in one run of a flow: filling and draining are to count little */
#define FILLS 4

int pf_reads(struct rref *ref, unsigned n)
{
	while (n--) {
		struct rref_view *v;
		int err = rref_to_here(ref, RREF_DEFAULT, &v);

		if (err)
			return pf_say(err, "rref_to_here");
		rref_view_free(v);
	}
	return 0;
}

static int each_in_turn(void *arg, unsigned n)
{
	return pf_reads(((struct pf_reader *)arg)->ref, n);
}

int pf_take(struct rref_future *f)
{
	struct rref_view *v;
	int err = rref_future_wait(f, RREF_DEFAULT);

	if (!err)
		err = rref_future_view(f, &v);
	rref_future_free(f);
	if (err)
		return pf_say(err, "rref_to_here_async");
	rref_view_free(v);
	return 0;
}

/* Keeps window reads in flight: it waits for the oldest before it starts the next. */
int pf_in_flight(struct pf_reader *r, unsigned n)
{
	unsigned started = 0, taken = 0;
	int err = 0;

	while (taken < n && !err) {
		if (started < n && started - taken < r->window) {
			err = rref_to_here_async(r->ref, RREF_DEFAULT, &r->f[started % r->window]);
			if (err)
				pf_say(err, "rref_to_here_async");
			else
				started++;
		} else {
			err = pf_take(r->f[taken % r->window]);
			taken++;
		}
	}
	while (taken < started)
		pf_take(r->f[taken++ % r->window]);
	return err;
}

static int raw_one_by_one(void *arg, unsigned n)
{
	return pf_raw_read(((struct pf_reader *)arg)->raw, n);
}

int pf_reader_open(const struct pf_config *cfg, struct rref_ctx *ctx, size_t bytes, unsigned slot,
		   struct pf_reader *r)
{
	*r = (struct pf_reader){ .ctx = ctx, .window = cfg->window };
	r->f = calloc(cfg->window, sizeof(*r->f));
	if (!r->f)
		return pf_say(-ENOMEM, "futures");
	int err = pf_value(ctx, bytes, &r->ref);

	return err ? err : pf_raw_open(cfg, ctx, bytes, slot, &r->raw);
}

void pf_reader_close(struct pf_reader *r)
{
	pf_raw_close(r->raw);
	rref_release(r->ref);
	free(r->f);
}

static int flow_runs(void *arg, unsigned n)
{
	struct pf_reader *r = arg;

	return pf_in_flight(r, n * r->window * FILLS);
}

static int raw_flow_runs(void *arg, unsigned n)
{
	struct pf_reader *r = arg;

	return pf_raw_stream(r->raw, n * r->window * FILLS, r->window);
}

static int sweep(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op,
		 bool flow)
{
	int err = 0;
	size_t bytes;

	for (unsigned i = 0; !err && (bytes = pf_size(cfg, op, i)); i++) {
		struct pf_reader r;
		struct pf_row row;

		err = pf_reader_open(cfg, ctx, bytes, 0, &r);
		if (!err) {
			struct pf_side lib = { flow ? flow_runs : each_in_turn, &r,
					       flow ? r.window * FILLS : 1 };
			struct pf_side raw = { flow ? raw_flow_runs : raw_one_by_one, &r,
					       flow ? r.window * FILLS : 1 };

			pf_row_init(&row, op->name, pf_reached_by(ctx, 0), bytes);
			row.raw = pf_raw_name(r.raw);
			row.window = flow ? r.window : 0;
			err = pf_measure(cfg, ctx, &lib, &raw, &row);
		}
		if (!err)
			pf_out(cfg, &row);
		pf_reader_close(&r);
	}
	return err;
}

int pf_lat(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	return sweep(cfg, ctx, op, false);
}

int pf_flow(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	return sweep(cfg, ctx, op, true);
}

/* Reads by a future, and waits for it at once. */
static int async_one_by_one(void *arg, unsigned n)
{
	struct pf_reader *r = arg;

	while (n--) {
		int err = rref_to_here_async(r->ref, RREF_DEFAULT, r->f);

		if (err)
			return pf_say(err, "rref_to_here_async");
		err = pf_take(r->f[0]);
		if (err)
			return err;
	}
	return 0;
}

int pf_async(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	int err = 0;
	size_t bytes;

	for (unsigned i = 0; !err && (bytes = pf_size(cfg, op, i)); i++) {
		struct pf_reader r = { .ctx = ctx, .f = calloc(1, sizeof(*r.f)) };
		struct pf_side lib = { async_one_by_one, &r, 1 }, raw = { each_in_turn, &r, 1 };
		struct pf_row row;

		pf_row_init(&row, op->name, pf_reached_by(ctx, 0), bytes);
		row.raw = "to_here";
		err = r.f ? pf_value(ctx, bytes, &r.ref) : pf_say(-ENOMEM, "a future");
		if (!err)
			err = pf_measure(cfg, ctx, &lib, &raw, &row);
		if (!err)
			pf_out(cfg, &row);
		pf_reader_close(&r);
	}
	return err;
}

static int plainly(void *arg, unsigned n)
{
	return pf_reads(arg, n);
}

/* Views large values, beside reads of 8 bytes. */
int pf_view(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct rref *small = NULL;
	int err = pf_value(ctx, 8, &small);
	size_t bytes;

	for (unsigned i = 0; !err && (bytes = pf_size(cfg, op, i)); i++) {
		struct rref *large = NULL;
		struct pf_row row;

		err = pf_value(ctx, bytes, &large);
		pf_row_init(&row, op->name, pf_reached_by(ctx, 0), bytes);
		row.raw = "8 bytes";
		if (!err)
			err = pf_measure(cfg, ctx, &(struct pf_side){ plainly, large, 1 },
					 &(struct pf_side){ plainly, small, 1 }, &row);
		if (!err)
			pf_out(cfg, &row);
		rref_release(large);
	}
	rref_release(small);
	return err;
}

struct batch {
	struct rref **refs;
	struct rref_view **views;
	int *status;
	unsigned nr;
};

static void batch_close(struct batch *r)
{
	for (unsigned i = 0; i < r->nr; i++)
		rref_release(r->refs[i]);
	free(r->refs);
	free(r->views);
	free(r->status);
}

static int as_batch(void *arg, unsigned n)
{
	struct batch *r = arg;

	while (n--) {
		int good = rref_to_here_batch(r->refs, r->nr, RREF_DEFAULT, r->views, r->status);

		if (good != (int)r->nr)
			return pf_say(good < 0 ? good : -EIO, "rref_to_here_batch");
		for (unsigned i = 0; i < r->nr; i++)
			rref_view_free(r->views[i]);
	}
	return 0;
}

static int each_alone(void *arg, unsigned n)
{
	struct batch *r = arg;

	while (n--)
		for (unsigned i = 0; i < r->nr; i++) {
			int err = pf_reads(r->refs[i], 1);

			if (err)
				return err;
		}
	return 0;
}

/* Reads a batch of references of one owner, and the same one by one through the library. */
int pf_batch(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	int err = 0;
	size_t bytes;

	for (unsigned i = 0; !err && (bytes = pf_size(cfg, op, i)); i++) {
		struct batch r = { 0 };
		struct pf_row row;

		r.refs = calloc(cfg->batch, sizeof(*r.refs));
		r.views = calloc(cfg->batch, sizeof(*r.views));
		r.status = calloc(cfg->batch, sizeof(*r.status));
		if (!r.refs || !r.views || !r.status)
			err = pf_say(-ENOMEM, "a batch");
		while (!err && r.nr < cfg->batch) {
			err = pf_value(ctx, bytes, &r.refs[r.nr]);
			r.nr += !err;
		}
		if (!err) {
			struct pf_side lib = { as_batch, &r, r.nr }, raw = { each_alone, &r, r.nr };

			pf_row_init(&row, op->name, pf_reached_by(ctx, 0), bytes);
			row.raw = "one by one";
			err = pf_measure(cfg, ctx, &lib, &raw, &row);
		}
		if (!err)
			pf_out(cfg, &row);
		batch_close(&r);
	}
	return err;
}
