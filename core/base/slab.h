/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slabs: equal items that the program may hold millions of. Beside malloc they cost no bytes for
 * each, can all be visited without a list through them, and what comes next is near what came last.
 *
 * An item is found back to its slab by its address. The first free place of the slab used last is
 * given out; a slab that becomes empty is given back, but for one. Not thread-safe: whoever has
 * them has a lock.
 */
#ifndef RC_SLAB_H
#define RC_SLAB_H

#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

struct rc_slabs {
	struct list room, full;   /* slabs */
	struct rc_slab *spare;    /* an empty one, in neither */
	uint32_t item, per;       /* [const] bytes of an item; items of a slab */
};

void rc_slabs_open(struct rc_slabs *s, size_t item);
void rc_slabs_close(struct rc_slabs *s);        /* and all that is left in them */
/* zeroed, aligned as a cache line if its size is a multiple of it; NULL: no memory */
void *rc_slab_get(struct rc_slabs *s);
void rc_slab_put(struct rc_slabs *s, void *item);
/* NULL: the first, and after the last. Nothing is got or put meanwhile */
void *rc_slab_next(struct rc_slabs *s, const void *item);

#endif
