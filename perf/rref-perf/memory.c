/* SPDX-License-Identifier: Apache-2.0 */
/* alloc, burst, live: the cost of a value's memory and of a
 * reference's bookkeeping. One worker alone, its own owner. */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jemalloc/jemalloc.h>

#include "alloc/ra.h"
#include "base/util.h"
#include "pf.h"

/* Declares the calls of the same jemalloc, with its own thread cache but without an arena of ours.
 * See the Makefile for its names. */
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

#define BURST 16u

struct memory {
	struct ra_arena *arena;
	size_t bytes;
	unsigned cache, at_once;     /* pieces allocated, then freed, at a time */
};

static int in_arena(void *arg, unsigned n)
{
	struct memory *m = arg;
	void *p[BURST];

	while (n--) {
		for (unsigned i = 0; i < m->at_once; i++) {
			int err = ra_alloc(m->arena, m->bytes, 64, &p[i]);

			if (err)
				return pf_say(err, ra_error_text());
		}
		for (unsigned i = 0; i < m->at_once; i++)
			ra_free(m->arena, p[i], m->bytes);
	}
	return 0;
}

static int plain(void *arg, unsigned n)
{
	struct memory *m = arg;
	void *p[BURST];

	while (n--) {
		for (unsigned i = 0; i < m->at_once; i++) {
			p[i] = ra_je_mallocx(m->bytes, MALLOCX_TCACHE(m->cache));
			if (!p[i])
				return pf_say(-ENOMEM, "mallocx");
		}
		for (unsigned i = 0; i < m->at_once; i++)
			ra_je_dallocx(p[i], MALLOCX_TCACHE(m->cache));
	}
	return 0;
}

static int alloc(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op,
		 unsigned at_once)
{
	struct ra_hooks hooks = { .reg = reg, .dereg = dereg };
	struct ra_options o = { .max_bytes = (size_t)1 << 30 };
	struct memory m = { .at_once = at_once };
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
		struct pf_side lib = { in_arena, &m, at_once }, raw = { plain, &m, at_once };
		struct pf_row row;

		pf_row_init(&row, op->name, "memory", m.bytes);
		row.raw = "mallocx";
		err = in_arena(&m, 1000); /* all memory for this size is registered now */
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

int pf_alloc(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	return alloc(cfg, ctx, op, 1);
}

int pf_burst(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	return alloc(cfg, ctx, op, BURST);
}

/* ---- live references ---- */

#define MANY 1000000u
#define FEW 1000u

struct live {
	struct rref_ctx *ctx;
	unsigned nr, next;
	struct rref **refs;
	void **plain;            /* the same number of pieces of plain mallocx */
	uint64_t seed;
};

/* Makes and ends one more reference to a value, as its owner. */
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

static unsigned any(struct live *l)
{
	l->seed = l->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (unsigned)(((l->seed >> 32) * l->nr) >> 32);
}

/* Replaces any value. Its memory was last touched before all other values, so no cache has it. */
static int replace_any(void *arg, unsigned n)
{
	struct live *l = arg;

	while (n--) {
		struct rref **r = &l->refs[any(l)];
		uint64_t v = l->next++;

		rref_release(*r);
		*r = NULL;
		int err = rref_new(l->ctx, &v, sizeof(v), r);

		if (err)
			return pf_say(err, "rref_new");
	}
	return 0;
}

#define PLAIN_BYTES 128u /* header and payload, in whole lines */

/* Replaces plain memory, which is the minimum: it is written, freed, allocated and written. */
static int replace_plain(void *arg, unsigned n)
{
	struct live *l = arg;

	while (n--) {
		void **p = &l->plain[any(l)];

		if (*p)
			memset(*p, 0, PLAIN_BYTES);
		ra_je_dallocx(*p, 0);
		*p = ra_je_mallocx(PLAIN_BYTES, 0);
		if (!*p)
			return pf_say(-ENOMEM, "mallocx");
		memset(*p, 1, PLAIN_BYTES);
	}
	return 0;
}

static size_t heap(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

static int fill(struct live *l)
{
	int err = 0;

	l->refs = calloc(l->nr, sizeof(struct rref *));
	if (!l->refs)
		return pf_say(-ENOMEM, "references");
	for (; l->next < l->nr && !err; l->next++) {
		uint64_t v = l->next;

		err = pf_say(rref_new(l->ctx, &v, sizeof(v), &l->refs[v]), "rref_new");
	}
	return err;
}

static int fill_plain(struct live *l)
{
	l->plain = calloc(l->nr, sizeof(void *));
	if (!l->plain)
		return pf_say(-ENOMEM, "a table");
	for (unsigned i = 0; i < l->nr; i++) {
		l->plain[i] = ra_je_mallocx(PLAIN_BYTES, 0);
		if (!l->plain[i])
			return pf_say(-ENOMEM, "mallocx");
		memset(l->plain[i], 1, PLAIN_BYTES);
	}
	return 0;
}

/* Starts a second owner in the same process. */
static int other_owner(struct rref_ctx **out)
{
	struct rref_options o;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	o.mode = RREF_PROGRESS_MANUAL;
	return pf_say(rref_init(&o, out), "rref_init");
}

static void empty(struct live *l)
{
	for (unsigned i = 0; l->refs && i < l->nr; i++)
		rref_release(l->refs[i]);
	for (unsigned i = 0; l->plain && i < l->nr; i++)
		if (l->plain[i])
			ra_je_dallocx(l->plain[i], 0);
	free(l->refs);
	free(l->plain);
}

static int one_row(const struct pf_config *cfg, struct rref_ctx *ctx,
		   int (*run)(void *arg, unsigned n), struct live *many, struct live *few,
		   struct pf_row *row)
{
	struct pf_side lib = { run, many, 1 }, raw = { run, few, 1 };
	int err = pf_measure(cfg, ctx, &lib, &raw, row);

	if (!err)
		pf_out(cfg, row);
	return err;
}

/*
 * Compares an owner of MANY values with an owner of FEW. It measures the bytes of each beside
 * header and payload, handle included, and the cost of one more. Then it measures the cost of
 * replacing any of them, and of replacing plain pieces of memory.
 */
int pf_live(const struct pf_config *cfg, struct rref_ctx *ctx, const struct pf_op *op)
{
	struct live many = { .ctx = ctx, .nr = MANY, .seed = 1 }, few = { .nr = FEW, .seed = 1 };
	struct pf_row row, any_row, plain_row;
	int err = other_owner(&few.ctx);

	pf_row_init(&row, op->name, "memory", 8);
	row.raw = "1000 live";
	any_row = plain_row = row;
	any_row.op = "any";
	plain_row.op = "plain";
	plain_row.raw = "1000 pieces";
	plain_row.bytes = PLAIN_BYTES;
	if (!err)
		err = fill(&few);
	size_t before = heap();

	if (!err)
		err = fill(&many);
	row.bytes_each = (double)(heap() - before - MANY * sizeof(struct rref *)) / MANY;
	row.live = MANY;
	if (!err)
		err = one_row(cfg, ctx, come_and_go, &many, &few, &row);
	if (!err)
		err = one_row(cfg, ctx, replace_any, &many, &few, &any_row);
	if (!err)
		err = fill_plain(&few);
	if (!err)
		err = fill_plain(&many);
	if (!err)
		err = one_row(cfg, ctx, replace_plain, &many, &few, &plain_row);
	empty(&many);
	empty(&few);
	rref_free_ctx(few.ctx);
	return err;
}
