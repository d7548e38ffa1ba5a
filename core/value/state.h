/* SPDX-License-Identifier: Apache-2.0 */
/* The state of value/ in a context. */
#ifndef RC_VALUE_STATE_H
#define RC_VALUE_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "alloc/ra.h"
#include "base/atomic.h"
#include "base/util.h"
#include "core/base/locked.h"
#include "core/base/slab.h"
#include "core/value/ref.h"

struct rc_in_flight;
struct rc_reader;
struct rc_types;

#define RC_CACHE_SLOTS 16
#define RC_LARGE_SLOTS 4

/* Memory, values, handles. */
struct rc_value_state {
	uint64_t bytes_hash;              /* [const] hash of the type "bytes" */
	struct ra_arena *arena, *landing;
	/* [const] bound on values, the arena's and the local only ones */
	size_t max_bytes;
	/* every handle: struct rref; struct rc_remote */
	struct rc_slabs handles under_lock, remotes under_lock;
	/* memory that the program registered, values that wrap it; wrap.c */
	struct list mems under_lock, wraps under_lock;
	struct list wraps_out under_lock; /* values whose release callbacks run now */
	_Atomic uint64_t next_local_id;
	_Atomic(struct rc_landing *) cache[RC_CACHE_CLASSES][RC_CACHE_SLOTS];
	_Atomic(struct rc_landing *) large[RC_LARGE_SLOTS];
	struct rc_types *types;           /* [const] types.c */
	struct rc_reader *readers;        /* reader.c, under a lock of its own */
	struct rc_in_flight *flights under_lock; /* reader.c */
};

#endif
