/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internals of alloc/. The arena owns one reserved span of addresses, and lays regions into it
 * where there is room. jemalloc asks the extent hook for pieces of them. jemalloc keeps the memory
 * of freed values and hands it out again. A purge gives it back to the holes of its region, where
 * it merges with its neighbours. A region that is one hole is empty: it is deregistered and
 * unmapped before anything is refused for the bound.
 *
 * The hook never makes a region. It notes in a thread-local what it lacked and fails; ra_alloc then
 * grows the arena and tries again. So the slow registration runs with no lock of jemalloc held, and
 * other threads go on allocating. Its errno comes back by an ordinary return, and one failed
 * allocation registers at most once.
 *
 * Locks, always taken in this order:
 *   grow   ra_grow: purge, make a region, register. May be held for as long as a device registers.
 *   (a cache's busy: only the holder of grow waits for it)
 *   binding   ra_binding.c: threads and arenas that come and go, spare caches. One for the process.
 *   (jemalloc's own)
 *   near   slabs of near classes.
 *   carve  the free ranges of regions; a few loads and stores.
 */
#ifndef RA_INTERNAL_H
#define RA_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <jemalloc/jemalloc.h>

#include "base/child.h"

#include "alloc/ra.h"
#include "alloc/ra_asym.h"
#include "base/assert.h"
#include "base/atomic.h"
#include "base/slow.h"
#include "base/util.h"

#define RA_GRANULE_SHIFT 21 /* 2 MiB: the least a region can be, and a huge page */
#define RA_GRANULE ((size_t)1 << RA_GRANULE_SHIFT)
#define RA_MIN_ALIGN ((size_t)64)
#define RA_MAX_BYTES ((size_t)1 << 46) /* half of the addresses of a process */
#define RA_FIRST_HOLES 16u
#define RA_OWNED 64u  /* caches of an arena that are one thread's each */
#define RA_SHARED 8u  /* caches of all other threads */
#define RA_CACHES (RA_OWNED + RA_SHARED)
/* arenas of which a thread may own a cache: two for each of four contexts */
#define RA_BINDINGS 8u

/* [lo, hi) of a region, in bytes from its base, not in jemalloc's hands. */
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
	/* guarded by grow: its dereg failed, and nothing is carved from it any more */
	bool stuck;
	/* guarded by carve; in order of address; no two of them touch */
	unsigned nr_holes, max_holes;
	struct ra_hole *holes;
};

/*
 * Near classes (ra_near.c): sizes of up to a line more than 2^9, 2^10 ... 2^15. A cache keeps some
 * free slots of each.
 */
#define RA_NEAR 7u
#define RA_NEAR_FIRST 9u
#define RA_NEAR_CACHED 16u
#define RA_NEAR_SHIFT 17
#define RA_NEAR_UNIT ((size_t)1 << RA_NEAR_SHIFT) /* the least slab */
struct ra_near_slab;

/* Classes of which a cache keeps a piece. There are four
 * between a power of two and the next, up to 64 KiB. */
#define RA_CACHED 41u

/*
 * Counters of a thread, or of a group of threads, and free memory, on lines of their own. A shared
 * counter would cost more than the allocation. The memory is the piece of each class that came back
 * last, and behind it a jemalloc tcache. A thread that cannot enter a cache does without it, and
 * counts in the arena's `rest`. ra_arena.c has how to enter.
 */
struct ra_cache {
	cache_aligned _Atomic uint64_t nr_allocs;
	_Atomic uint64_t nr_frees, alloc_bytes, free_bytes;
	/* sc: guards the memory, and the counters' writing (not those of `rest`) */
	_Atomic uint32_t busy;
	_Atomic unsigned tcache; /* written once, by its first user; RA_NO_TCACHE: not made yet */
	int how;                /* jemalloc's flags for that cache; of its users */
	struct ra_binding *owner;  /* guarded by binding; NULL: no thread owns it */
	struct ra_arena *arena; /* const */
	void *cached[RA_CACHED];    /* guarded by busy */
	uint32_t nr_slots[RA_NEAR];             /* guarded by busy */
	void *slots[RA_NEAR][RA_NEAR_CACHED];     /* guarded by busy */
};
#define RA_NO_TCACHE 0u
_Static_assert(offsetof(struct ra_cache, cached) == CACHE_LINE, "one line, and what is kept");

/*
 * A place of one thread, which reads it without the lock. The arena that it asks for lives, so no
 * other thread writes here meanwhile.
 */
struct ra_binding {
	/* written under binding: by its thread, and NULL when the arena is destroyed */
	_Atomic(struct ra_arena *) arena;
	struct ra_cache *cache;           /* its thread's */
};
extern __attribute__((tls_model("initial-exec"))) _Thread_local
struct ra_binding ra_bindings[RA_BINDINGS];

/* gathering: caches are being taken back; closed: owned caches are not entered any more */
enum { RA_OPEN, RA_GATHERING, RA_CLOSED };

struct ra_arena {
	/* const after create: read by ra_lookup and ra_alloc */
	char *span;
	struct rb_range range; /* the same, for children of fork(2) */
	/* multiple of RA_GRANULE: more than max_bytes, since regions that go leave gaps */
	size_t span_bytes;
	size_t max_bytes;  /* multiple of RA_GRANULE */
	_Atomic(struct ra_region *) *granules; /* atomic; written by ra_table_publish */
	unsigned je_index;
	size_t binding; /* a thread's, in bytes from its first */
	_Atomic uint32_t gathering; /* sc; RA_GATHERING.. : no thread enters an owned cache */
	_Atomic unsigned nr_vacant; /* written under binding: owned caches to be had, or less */
	struct ra_hooks hooks;
	size_t first_region;
	const char *name, *option;
	bool huge;
	extent_hooks_t je_hooks;

	cache_aligned pthread_mutex_t grow;
	size_t next_region;    /* guarded by grow */
	/* guarded by grow: allocations and frees counted when memory was last gathered */
	uint64_t purged_uses;
	/* written under grow, read by any thread */
	_Atomic size_t region_bytes;
	_Atomic uint64_t nr_regions;
	/* goes up when memory may have become available: a failure seen before is worth a retry */
	_Atomic uint64_t epoch;

	cache_aligned pthread_mutex_t carve;
	struct ra_region *regions; /* guarded by carve */
	/* guarded by grow: deregistered and unmapped; the records stay, for late look-ups */
	struct ra_region *gone;

	cache_aligned pthread_mutex_t near;
	struct list near_slabs[RA_NEAR]; /* guarded by near: slabs with free slots */
	/* guarded by near: their bytes, and the number of all slabs */
	size_t near_open, nr_near;
	/* atomic; an entry per RA_NEAR_UNIT of the span */
	_Atomic(struct ra_near_slab *) *near_table;

	struct ra_cache caches[RA_CACHES]; /* the owned ones first */
	struct ra_cache rest; /* counters only, by atomic additions */
};

/* Asserts that somebody holds the mutex; by its callers' word it is the calling thread. */
#define ra_assert_held(mutex) rb_assert(pthread_mutex_trylock((void *)(uintptr_t)(mutex)) != 0)
/* Length of the extent that the hook could not serve, for the
 * ra_alloc on the same thread. 0: the hook did not fail. */
extern __attribute__((tls_model("initial-exec"))) _Thread_local size_t ra_want;

/* ra_hooks.c: jemalloc's side. Return 0, or -errno with text. */
int ra_je_arena_create(struct ra_arena *a);
void ra_je_arena_destroy(struct ra_arena *a);
/*
 * Returns every free extent to the holes, where neighbours merge at once and any size is served.
 * Serialised by grow.
 */
void ra_je_arena_purge(struct ra_arena *a);
/*
 * Returns flags for the calls of the private copy. cache comes from ra_je_cache_create and serves
 * one thread at a time, or is RA_NO_TCACHE.
 */
int ra_je_how(const struct ra_arena *a, unsigned tcache);
/*
 * Make and destroy a tcache, both under binding. The first returns RA_NO_TCACHE if no further
 * tcache can be had.
 */
unsigned ra_je_cache_create(void);
void ra_je_cache_destroy(unsigned tcache);
/* Gives all memory of a cache back to the arena. */
void ra_je_cache_flush(unsigned tcache);
/* The arena calls of jemalloc, as the Makefile renames them. */
void *ra_je_mallocx(size_t size, int flags);
void ra_je_dallocx(void *p, int flags);

/* ra_binding.c */
void ra_binding_lock(void);
void ra_binding_unlock(void);
void ra_bindings_create(struct ra_arena *a);
/* Takes the caches' memory and the bindings away. */
void ra_bindings_destroy(struct ra_arena *a);
/* Gives all memory of a cache back to the arena. The caller has entered the cache. */
void ra_cache_flush(struct ra_cache *s);
/*
 * Finds a binding for the calling thread, which has no binding in the arena. Returns NULL if the
 * thread has to do without.
 */
struct ra_cache *ra_binding_take(struct ra_arena *a);
/* Returns true if the cache has a tcache, and makes one if need be. Under binding. */
bool ra_cache_has_cache(struct ra_arena *a, struct ra_cache *s);

/* Returns the calling thread's binding for the arena, even if another arena has it. */
static inline struct ra_binding *ra_binding_of(const struct ra_arena *a)
{
	rb_assert_with(a->binding < sizeof(ra_bindings) &&
			       a->binding % sizeof(struct ra_binding) == 0,
		       "%zu", a->binding);
	return (struct ra_binding *)((char *)ra_bindings + a->binding);
}

/* Enters a cache of the calling thread's own. Returns false if it may not now, or not any more. */
static inline bool ra_cache_mark(struct ra_arena *a, struct ra_cache *s)
{
	ra_asym_mark_plain(&s->busy, 1);
	if (likely(at_load_sc(&a->gathering) == RA_OPEN))
		return true;
	at_store_rel(&s->busy, 0);
	return false;
}

static inline void ra_cache_leave(struct ra_cache *s)
{
	rb_assert(at_load(&s->busy));
	at_store_rel(&s->busy, 0);
}

/* ra_region.c */
int ra_span_reserve(struct ra_arena *a);
/* Deregisters and unmaps all; regions whose dereg fails stay mapped, with their fd. */
void ra_span_release(struct ra_arena *a);
/*
 * Adds a region. Caller holds grow. length is that of the extent that must fit. It fits with any
 * alignment up to a granule, since regions start on one. asked is the size of the value, for the
 * text.
 */
int ra_region_add(struct ra_arena *a, size_t length, size_t asked);
/* Carves a piece. Returns its address, or NULL if no hole fits. Takes carve. */
void *ra_regions_carve(struct ra_arena *a, size_t length, size_t align);
/*
 * Takes a piece back. Returns false if there is no memory to note it: jemalloc keeps it then. Takes
 * carve.
 */
bool ra_regions_return(struct ra_arena *a, void *p, size_t length);
/* Returns true if the bound and the free addresses allow so many more bytes. Caller holds grow. */
bool ra_region_fits(const struct ra_arena *a, size_t length);
/* Deregisters and unmaps empty regions until length fits or no
 * empty one is left. Caller holds grow. */
void ra_regions_release(struct ra_arena *a, size_t length);
uint64_t ra_nr_quarantined(void);

/* ra_near.c */
int ra_near_create(struct ra_arena *a);
void ra_near_destroy(struct ra_arena *a);
/* Takes up to n slots, in order of address if possible. Returns their number. Takes near. */
unsigned ra_near_take(struct ra_arena *a, unsigned size_class, void **out, unsigned n);
void ra_near_give(struct ra_arena *a, void *const *slots, unsigned n);
/* Gives empty slabs back to their regions. */
void ra_near_gather(struct ra_arena *a);
/* Gives all free slots of a cache back to their slabs. The caller has entered the cache. */
void ra_near_flush(struct ra_cache *s);

/* ra_lookup.c */
int ra_table_create(struct ra_arena *a);
void ra_table_destroy(struct ra_arena *a);
/* Publishes a region in the table; entry NULL: the region is gone. */
void ra_table_publish(struct ra_arena *a, const struct ra_region *r, struct ra_region *entry);

static inline bool ra_in_span(const struct ra_arena *a, const void *p)
{
	/* below it: wraps to something huge */
	return (uintptr_t)p - (uintptr_t)a->span < a->span_bytes;
}

static inline struct ra_region *ra_table_find(const struct ra_arena *a, const void *p)
{
	if (!ra_in_span(a, p))
		return NULL;
	return at_load_acq(&a->granules[((uintptr_t)p - (uintptr_t)a->span) >> RA_GRANULE_SHIFT]);
}

/* Tells whether [p, p + size) lies in one region that is registered: no key spans two. */
static inline bool ra_in_one_region(const struct ra_arena *a, const void *p, size_t size)
{
	const struct ra_region *r = ra_table_find(a, p);

	return r && (size_t)((const char *)p - r->base) + size <= r->length;
}

/* ra_error.c. Sets the thread's text and returns err, so that a failure is one line. */
int ra_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct ra_size {
	char text[40];
};
/* Returns a size as text, such as "5 MiB": exact if few digits suffice, else with one decimal. */
struct ra_size ra_size_text(size_t bytes);

/*
 * Free value memory is poisoned for the address sanitizer. jemalloc is opaque to it: a use after
 * free of a value would go unseen. The thread sanitizer needs no such help. Memory passes between
 * threads through a cache's `busy`, the arena's `gathering` or the lock of bindings. It sees all of
 * these. It also sees jemalloc's mutexes, although jemalloc is not instrumented.
 */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ra_poison(p, n) __asan_poison_memory_region((p), (n))
#define ra_unpoison(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define ra_poison(p, n) ((void)(p), (void)(n))
#define ra_unpoison(p, n) ((void)(p), (void)(n))
#endif

/* Returns the near class of a size; RA_NEAR or more: it has no near class. */
static inline unsigned ra_near_class(size_t size)
{
	size_t lines = (size - 1) / RA_MIN_ALIGN; /* a power of two: just above one */
	unsigned lg = (unsigned)__builtin_ctzll(lines | UINT64_C(1) << 62);

	/* a size below 2^9 gives more than any class */
	return lines & (lines - 1) ? RA_NEAR : lg - (RA_NEAR_FIRST - 6);
}

/* Returns the slab of a slot, or NULL if the slot is jemalloc's. p is of the arena. */
static inline struct ra_near_slab *ra_near_of(const struct ra_arena *a, const void *p)
{
	return at_load_acq(&a->near_table[((uintptr_t)p - (uintptr_t)a->span) >> RA_NEAR_SHIFT]);
}

/*
 * Returns the size to ask jemalloc for. jemalloc's large extents have a page more than their class.
 * A value begins at any line of the first page but the last. So a line behind the class is always
 * there.
 */
#define RA_SMALL_MAX ((size_t)14336) /* the last class that lies in slabs of jemalloc's */
static inline size_t ra_asked(size_t rounded)
{
	return rounded > RA_SMALL_MAX + RA_MIN_ALIGN ? rounded - RA_MIN_ALIGN : rounded;
}

/*
 * Returns the class of a size, counted from the class of 64; RA_CACHED or more: no cache keeps it.
 * The same class of jemalloc's serves all sizes of one class. So a piece made for one of them will
 * do for each.
 */
static inline unsigned ra_class(size_t size)
{
	size_t last = (ra_asked(size) - 1) | (RA_MIN_ALIGN - 1);
	unsigned lg = 63u - (unsigned)__builtin_clzl(last);

	return 4 * lg + ((last >> (lg - 2)) & 3) - 23;
}

static inline size_t ra_round_up(size_t n, size_t to) /* power of two: `to` */
{
	rb_assert_with(to && !(to & (to - 1)), "%zu", to);
	return (n + to - 1) & ~(to - 1);
}

#endif
