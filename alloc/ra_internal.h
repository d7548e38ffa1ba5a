/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside alloc/. The arena owns one reserved span of addresses; regions are laid into it one after another and stay
 * until the arena is destroyed. jemalloc asks the extent hook for pieces of them and never gives one back: what values
 * free, jemalloc keeps and hands out again.
 *
 * The hook never makes a region. It notes in a thread-local what it lacked and fails; ra_alloc then grows the arena
 * and tries again. So the slow registration runs with no lock of jemalloc held (other threads go on allocating from
 * what is there), its errno comes back by an ordinary return, and one failed allocation registers at most once.
 *
 * Locks, in this order; none is ever taken the other way round:
 *   grow   ra_grow: purge, make a region, register. May be held for as long as a device registers.
 *   (jemalloc's own)
 *   carve  the free ranges of regions; a few loads and stores.
 * A shard's busy comes before jemalloc's own; only who holds grow waits for it.
 */
#ifndef RA_INTERNAL_H
#define RA_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <jemalloc/jemalloc.h>

#include "alloc/ra.h"
#include "base/atomic.h"

#define RA_GRANULE_SHIFT 21 /* 2 MiB: the least a region can be, and a huge page */
#define RA_GRANULE ((size_t)1 << RA_GRANULE_SHIFT)
#define RA_MIN_ALIGN ((size_t)64)
#define RA_MAX_BYTES ((size_t)1 << 46) /* half of what a process can address */
#define RA_MAX_HOLES 64
#define RA_SHARDS 8

/* [lo, hi) of a region, in bytes from its base, not yet handed to jemalloc. */
struct ra_hole {
	size_t lo, hi;
};

struct ra_region {
	/* const after publish */
	char *base;
	size_t length;
	void *cookie;
	int fd;
	struct ra_region *next; /* newest first; guarded by carve */
	/* guarded by carve; in order of address. Holes arise only from alignment, so there are few. */
	unsigned nr_holes;
	struct ra_hole holes[RA_MAX_HOLES];
};

/*
 * Counters of one group of threads, and a cache of free memory (jemalloc's tcache), on a line of their own: a shared counter
 * would cost more than the allocation. Whoever finds the shard busy does without the cache and counts in the arena's `rest`.
 */
struct ra_shard {
	cache_aligned _Atomic uint64_t nr_allocs;
	_Atomic uint64_t nr_frees, alloc_bytes, free_bytes;
	_Atomic uint32_t busy; /* a trylock: guards the cache, and the counters' writing (not those of `rest`) */
	unsigned cache;        /* guarded by busy; RA_NO_CACHE: none yet */
};
#define RA_NO_CACHE 0u
_Static_assert(sizeof(struct ra_shard) == CACHE_LINE, "one line each");

struct ra_arena {
	/* const after create: what ra_lookup and ra_alloc read */
	char *span;
	size_t max_bytes; /* multiple of RA_GRANULE; the span's length */
	_Atomic(struct ra_region *) *granules; /* atomic; written once each, by ra_table_publish */
	unsigned je_index;
	struct ra_hooks hooks;
	size_t first_region;
	const char *name;
	bool huge;
	extent_hooks_t je_hooks;

	cache_aligned pthread_mutex_t grow;
	size_t next_region;    /* guarded by grow */
	uint64_t purged_uses; /* guarded by grow: allocations and frees counted when memory was last gathered */
	/* written under grow, read by anyone */
	_Atomic size_t region_bytes;
	_Atomic uint64_t nr_regions;
	_Atomic uint64_t epoch; /* goes up when memory may have become available: a failure seen before is worth a retry */

	cache_aligned pthread_mutex_t carve;
	struct ra_region *regions; /* guarded by carve */

	struct ra_shard shards[RA_SHARDS];
	struct ra_shard rest; /* counters only, by atomic additions */
};

/* Length of the extent that the hook could not serve, for the ra_alloc on the same thread. 0 = the hook did not fail. */
extern _Thread_local size_t ra_want;

/* ra_hooks.c: jemalloc's side. 0 or -errno with text. */
int ra_je_arena_create(struct ra_arena *a);
void ra_je_arena_destroy(struct ra_arena *a);
/* Every free extent goes where neighbours merge at once and any size is served from. Serialised by grow. */
void ra_je_arena_purge(struct ra_arena *a);
/* cache: of ra_je_cache_create, used by one thread at a time, or RA_NO_CACHE. */
void *ra_je_arena_alloc(struct ra_arena *a, unsigned cache, size_t size, size_t align);
void ra_je_arena_free(struct ra_arena *a, unsigned cache, void *p);
/* RA_NO_CACHE if there can be no further one. */
unsigned ra_je_cache_create(void);
void ra_je_cache_destroy(unsigned cache);
/* All that it holds goes back to the arena. */
void ra_je_cache_flush(unsigned cache);

/* ra_region.c */
int ra_span_reserve(struct ra_arena *a);
/* Deregisters and unmaps all; regions whose dereg fails stay mapped, with their fd. */
void ra_span_release(struct ra_arena *a);
/*
 * Caller holds grow. length: of the extent that must fit (any alignment up to a granule does, since regions start on
 * one); asked: of the value, for the text.
 */
int ra_region_add(struct ra_arena *a, size_t length, size_t asked);
/* Address, or NULL if no hole fits. Takes carve. */
void *ra_regions_carve(struct ra_arena *a, size_t length, size_t align);
uint64_t ra_nr_quarantined(void);

/* ra_lookup.c */
int ra_table_create(struct ra_arena *a);
void ra_table_destroy(struct ra_arena *a);
void ra_table_publish(struct ra_arena *a, struct ra_region *r);
struct ra_region *ra_table_find(const struct ra_arena *a, const void *p);

/* ra_error.c. Sets the thread's text and returns err, so that a failure is one line. */
int ra_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct ra_size {
	char text[24];
};
/* "5 MiB"; exact if it can be said in few digits, else with one decimal. */
struct ra_size ra_size_text(size_t bytes);

/*
 * With the address sanitizer, free value memory is poisoned: jemalloc is opaque to it, and a use after free of a
 * value would go unseen. The thread sanitizer needs no such help: every piece of memory passes from one thread to another
 * through a shard's `busy`, which it sees, or a mutex of jemalloc's, which it sees although jemalloc is not instrumented.
 */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ra_poison(p, n) __asan_poison_memory_region((p), (n))
#define ra_unpoison(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define ra_poison(p, n) ((void)(p), (void)(n))
#define ra_unpoison(p, n) ((void)(p), (void)(n))
#endif

static inline size_t ra_round_up(size_t n, size_t to) /* to: a power of two */
{
	return (n + to - 1) & ~(to - 1);
}

#endif
