/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Address -> region: one subtraction, one shift, one load.
 *
 * The span has an entry per granule. It is written before any address in the granule is handed out.
 * It is taken away when all are free again. So a look-up of an address in use needs no retry and no
 * lock; a region's record outlives the region. The table is calloc'd: of a large span's table only
 * the touched pages exist.
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
	 * Release, with the acquire in ra_table_find. A thread may learn of an address in a way
	 * that orders nothing, such as a number from a peer. It must still see the region's fields.
	 */
	rb_assert_with(n && first + n <= a->span_bytes >> RA_GRANULE_SHIFT,
		       "%zu entries from %zu on", n, first);
	rb_assert(at_load(&a->granules[first]) == (entry ? NULL : r));
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
