/* SPDX-License-Identifier: Apache-2.0 */
/* The state of value/ in a context. */
#ifndef RC_VALUE_STATE_H
#define RC_VALUE_STATE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "alloc/ra.h"
#include "base/atomic.h"
#include "base/util.h"
#include "core/base/hook.h"
#include "core/base/locked.h"
#include "core/base/slab.h"
#include "core/base/work.h"
#include "core/value/ref.h"

struct rc_in_flight;
struct rc_look;
struct rc_own_chunk;
struct rc_reader;
struct rref_future;
struct rc_types;

#define RC_CACHE_SLOTS 16
#define RC_LARGE_SLOTS 4

/* Large values that ended, and whose memory is not scrubbed yet; scrub.c. */
struct rc_scrubs {
	pthread_mutex_t lock;
	struct list queue; /* guarded by lock */
	_Atomic uint32_t nr; /* values in the queue, and values that are being scrubbed */
	_Atomic bool announced; /* work or hook is queued, and has not run yet */
	struct rc_work work; /* pushed; it queues the hook */
	struct rc_hook hook;
};

/* Memory, values, handles. */
struct rc_value_state {
	/* [const] hash of the type "bytes". Constants stand apart from words that threads write. */
	cache_aligned uint64_t bytes_hash;
	struct ra_arena *arena, *landing;
	/* [const] bound on values, the arena's and the local only ones */
	size_t max_bytes;
	size_t kept_max; /* [const] bound on a reader's kept_bytes */
	size_t look_bytes; /* [const] values from here on are looked at */
	struct rc_look *looks; /* [const] RV_LOOKS of them, look.c; NULL: no device has looks */
	/* every handle: struct rref; struct rc_remote */
	struct rc_slabs handles under_lock, remotes under_lock;
	/* memory that the program registered, values that wrap it; wrap.c */
	struct list mems under_lock, wraps under_lock;
	struct list wraps_out under_lock; /* values whose release callbacks run now */
	_Atomic uint64_t next_local_id;
	_Atomic(struct rc_landing *) cache[RC_CACHE_CLASSES][RC_CACHE_SLOTS];
	_Atomic(struct rc_landing *) large[RC_LARGE_SLOTS];
	_Atomic uint32_t in_landing; /* threads that are in the arena of landing blocks */
	struct rc_types *types;           /* [const] types.c */
	struct rc_reader *readers;        /* reader.c, under a lock of its own */
	/* own futures: a stack of futures that no thread keeps; all memory; own.c */
	_Atomic(struct rref_future *) own;
	_Atomic(struct rc_own_chunk *) own_chunks;
	_Atomic uint32_t nr_own, own_free; /* number made; on the stack */
	_Atomic(struct rc_in_flight *) flights; /* reader.c; it only grows */
	struct rc_scrubs scrubs;
	/* 1 + index of the first free look; the upper half counts */
	cache_aligned _Atomic uint64_t looks_free;
	_Atomic uint32_t looks_used; /* no look from here on was ever used */
	struct list onlookers under_lock; /* onlookers whose session is over */
	int64_t onlookers_at under_lock; /* time of the next look at them */
	uint32_t onlookers_round under_lock; /* number of looks at all of them */
	/* looks for views that have ended; NULL: no value was ever kept for one */
	void (*find_room)(struct rref_ctx *ctx) under_lock;
};

#endif
