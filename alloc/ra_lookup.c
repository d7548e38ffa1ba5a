/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Address -> region: one subtraction, one shift, one load.
 *
 * An entry per granule of the span, written before any address in it is handed out, and taken away when all of them are
 * free again. So who asks for an address in use needs no retry and no lock; a region's record outlives the region.
 * calloc'd: of a large span's table only the touched pages exist.
 */
#include <errno.h>
#include <stdlib.h>

#include "alloc/ra_internal.h"

int ra_table_create(struct ra_arena *a)
{
	size_t nr = a->span_bytes >> RA_GRANULE_SHIFT;

	a->granules = calloc(nr, sizeof(*a->granules));
	if (!a->granules)
		return ra_fail(-ENOMEM, "value memory: no memory for a table of %zu entries", nr);
	return 0;
}

void ra_table_destroy(struct ra_arena *a)
{
	free(a->granules);
}

void ra_table_publish(struct ra_arena *a, const struct ra_region *r, struct ra_region *entry)
{
	size_t first = (size_t)(r->base - a->span) >> RA_GRANULE_SHIFT;
	size_t n = r->length >> RA_GRANULE_SHIFT;

	/*
	 * Release, with the acquire in ra_table_find: a thread may look up an address that it was told by means that
	 * order nothing (a number that arrived from a peer), and must still see the region's fields.
	 */
	for (size_t i = first; i < first + n; i++)
		at_store_rel(&a->granules[i], entry);
}

void *ra_lookup(const struct ra_arena *a, const void *p, void **base)
{
	struct ra_region *r = ra_table_find(a, p);

	if (!r)
		return NULL;
	*base = r->base;
	return r->cookie;
}
