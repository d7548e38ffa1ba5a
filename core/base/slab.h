/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slabs: equal items of which the program may hold millions. Unlike malloc they cost no bytes for
 * each item. A walk visits all items without a list through them. Items that are made one after the
 * other lie near each other.
 *
 * The address of an item leads to its slab. A new item takes the first free place of the slab used
 * last. An empty slab is freed, unless it is the last with room. Not thread-safe: the owner of the
 * slabs has a lock.
 */
#ifndef RC_SLAB_H
#define RC_SLAB_H

#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

struct rc_slabs {
	struct list room, full;   /* slabs */
	uint32_t item, per;       /* [const] bytes of an item; items of a slab */
};

void rc_slabs_open(struct rc_slabs *s, size_t item);
void rc_slabs_close(struct rc_slabs *s);        /* frees all items that are left, too */
/*
 * Returns a zeroed item, aligned as a cache line if its size is a multiple of it; NULL: no memory.
 */
void *rc_slab_get(struct rc_slabs *s);
void rc_slab_put(struct rc_slabs *s, void *item);
/*
 * Returns the item after `item`. NULL: the first, and after the last. Nothing is got or put
 * meanwhile.
 */
void *rc_slab_next(struct rc_slabs *s, const void *item);

#endif
