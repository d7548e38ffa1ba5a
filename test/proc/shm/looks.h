/* SPDX-License-Identifier: Apache-2.0 */
/* Values of others that are looked at where they lie: for look_test, look_life_test and
 * look_races_test. */
#ifndef LOOKS_H
#define LOOKS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "../session/stood_still.h"
#include "core/ctx.h"

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

static inline struct rref *value_there(struct rref_ctx *ctx, size_t length, unsigned seed)
{
	return tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = length, .seed = seed });
}

static inline struct rref_view *look_at(struct rref *r)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_IS(rref_view_is_copy(v), 0);
	return v;
}

static inline void shows(const struct rref_view *v, size_t length, unsigned seed)
{
	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, seed));
}

/* Tells whether the address lies in memory that another worker has made for its values. */
static inline bool is_of_owner(const void *at)
{
	unsigned long from, to;
	char line[512];
	bool yes = false;
	FILE *f = fopen("/proc/self/maps", "re");

	TG_CHECK(f);
	while (!yes && fgets(line, sizeof(line), f))
		yes = sscanf(line, "%lx-%lx r--s", &from, &to) == 2 && strstr(line, " r--s ") &&
		      strstr(line, "rref-values") && (uintptr_t)at >= from && (uintptr_t)at < to;
	fclose(f);
	return yes;
}

#define BYTES (300 * KIB)

/* Makes a value that worker `to` keeps, and gives up the own reference. Returns its place. */
static inline const char *lend_value(struct rref_ctx *ctx, int to, unsigned seed)
{
	struct rref *r;
	void *data;

	TG_OK(rref_alloc(ctx, BYTES, &r, &data));
	tg_fill(data, BYTES, seed);
	TG_OK(rref_set(r));
	TG_OK(rref_rpc_sync(ctx, to, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
	return data;
}

/* Makes values of that size, and tells whether one lies at that place. */
static inline bool is_used_again(struct rref_ctx *ctx, const char *place)
{
	struct rref *r[20];
	bool yes = false;
	void *data;

	for (unsigned i = 0; i < array_size(r); i++) {
		TG_OK(rref_alloc(ctx, BYTES, &r[i], &data));
		tg_fill(data, BYTES, 100 + i);
		TG_OK(rref_set(r[i]));
		yes |= (const char *)data < place + BYTES && place < (const char *)data + BYTES;
	}
	rref_release_batch(r, array_size(r));
	return yes;
}

/* Writes other values over memory that is free. */
static inline void write_over_free_memory(struct rref_ctx *ctx)
{
	struct rref *r[100];
	void *data;

	for (unsigned i = 0; i < array_size(r); i++) {
		TG_OK(rref_alloc(ctx, 64 * KIB, &r[i], &data));
		memset(data, 0xa5, 64 * KIB);
		TG_OK(rref_set(r[i]));
	}
	rref_release_batch(r, array_size(r));
}

static inline bool comes_back(struct rref_ctx *ctx, void *place)
{
	return is_used_again(ctx, place);
}

static inline bool none_looked_at(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).views_left == 0;
}

#endif
