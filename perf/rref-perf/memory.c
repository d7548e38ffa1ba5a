/* SPDX-License-Identifier: Apache-2.0 */
/* alloc, live: what a value's memory and a reference's bookkeeping cost. One worker alone, its own owner. */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jemalloc/jemalloc.h>

#include "alloc/ra.h"
#include "base/util.h"
#include "pf.h"

/* The same jemalloc, with a thread cache of its own but without an arena of ours; see the Makefile for its names. */
void *ra_je_mallocx(size_t size, int flags);
void ra_je_dallocx(void *p, int flags);
int ra_je_mallctl(const char *name, void *oldp, size_t *oldlenp, void *newp, size_t newlen);

static unsigned nr_registered;

static int reg(void *ctx, void *base, size_t length, int fd, void **cookie)
{
	(void)ctx;
	(void)length;
	(void)fd;
	nr_registered++;
	*cookie = base;
	return 0;
}

static int dereg(void *ctx, void *cookie)
{
	(void)ctx;
	(void)cookie;
	return 0;
}

struct memory {
	struct ra_arena *arena;
	size_t bytes;
	unsigned cache;
};

static int in_arena(void *arg, unsigned n)
{
	struct memory *m = arg;

	while (n--) {
		void *p;
		int err = ra_alloc(m->arena, m->bytes, 64, &p);

		if (err)
			return pf_say(err, ra_error_text());
		ra_free(m->arena, p, m->bytes);
	}
	return 0;
}

static int plain(void *arg, unsigned n)
{
	struct memory *m = arg;

	while (n--) {
		void *p = ra_je_mallocx(m->bytes, MALLOCX_TCACHE(m->cache));

		if (!p)
			return pf_say(-ENOMEM, "mallocx");
		ra_je_dallocx(p, MALLOCX_TCACHE(m->cache));
	}
	return 0;
}

int pf_alloc(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct ra_hooks hooks = { .reg = reg, .dereg = dereg };
	struct ra_options o = { .max_bytes = (size_t)1 << 30 };
	struct memory m = { 0 };
	size_t len = sizeof(m.cache);
	int err = ra_arena_create(&hooks, &o, &m.arena);

	if (err)
		return pf_say(err, ra_error_text());
	err = ra_je_mallctl("tcache.create", &m.cache, &len, NULL, 0);
	if (err) {
		ra_arena_destroy(m.arena);
		return pf_say(-err, "a thread cache");
	}
	for (unsigned i = 0; !err && (m.bytes = pf_size(cfg, op, i)); i++) {
		struct pf_side lib = { in_arena, &m, 1 }, raw = { plain, &m, 1 };
		struct pf_row row;

		pf_row_init(&row, op->name, "memory", m.bytes);
		row.raw = "mallocx";
		err = in_arena(&m, 1000); /* whatever is registered for this size is now */
		unsigned before = nr_registered;

		if (!err)
			err = pf_measure(cfg, ctx, &lib, &raw, &row);
		row.registrations = nr_registered - before;
		if (!err)
			pf_out(cfg, &row);
	}
	ra_je_mallctl("tcache.destroy", NULL, NULL, &m.cache, sizeof(m.cache));
	ra_arena_destroy(m.arena);
	return err;
}

/* ---- live references ---- */

#define MANY 1000000u
#define FEW 1000u

struct live {
	struct rref_ctx *ctx;
	struct rref **few;
	unsigned next;
};

/* What an owner does with one more reference to a value: it comes, and goes. */
static int come_and_go(void *arg, unsigned n)
{
	struct live *l = arg;

	while (n--) {
		uint64_t v = l->next++;
		struct rref *ref;
		int err = rref_new(l->ctx, &v, sizeof(v), &ref);

		if (err)
			return pf_say(err, "rref_new");
		rref_release(ref);
	}
	return 0;
}

static size_t heap(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

static int fill(struct rref_ctx *ctx, struct rref **refs, unsigned nr)
{
	int err = 0;

	for (unsigned i = 0; i < nr && !err; i++) {
		uint64_t v = i;

		err = pf_say(rref_new(ctx, &v, sizeof(v), &refs[i]), "rref_new");
	}
	return err;
}

/* A second owner, in the same process. */
static int other_owner(struct rref_ctx **out)
{
	struct rref_options o;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	o.mode = RREF_PROGRESS_MANUAL;
	return pf_say(rref_init(&o, out), "rref_init");
}

/*
 * An owner of MANY values beside one of FEW: the bytes that each takes beside header and payload, handle included, and what
 * one more costs.
 */
int pf_live(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct rref **refs = calloc(MANY + FEW, sizeof(*refs));
	struct live many = { .ctx = ctx }, few = { 0 };
	struct pf_side lib = { come_and_go, &many, 1 }, raw = { come_and_go, &few, 1 };
	struct pf_row row;
	int err = refs ? other_owner(&few.ctx) : pf_say(-ENOMEM, "references");

	pf_row_init(&row, op->name, "memory", 8);
	row.raw = "1000 live";
	if (!err)
		err = fill(few.ctx, refs + MANY, FEW);
	size_t before = heap();

	if (!err)
		err = fill(ctx, refs, MANY);
	row.bytes_each = (double)(heap() - before) / MANY;
	row.live = MANY;
	if (!err)
		err = pf_measure(cfg, ctx, &lib, &raw, &row);
	if (!err)
		pf_out(cfg, &row);
	for (unsigned i = 0; refs && i < MANY + FEW; i++)
		rref_release(refs[i]);
	rref_free_ctx(few.ctx);
	free(refs);
	return err;
}
