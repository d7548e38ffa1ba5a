/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ra: memory for values (docs/design/memory.md). jemalloc arenas whose extents are cut from few,
 * large, registered regions.
 *
 * An arena belongs to its process. A child of fork(2) neither uses nor destroys its parent's
 * arenas, and makes its own.
 *
 * The layer knows neither devices nor references. The core hands it {reg, dereg}, and it calls them
 * for whole regions. Regions are memfd segments, so that peers on the same machine can map them.
 * Each has at most 2 GiB. All lie in one reserved span of addresses, so that address -> region is
 * one table look-up without a lock.
 *
 * Memory is never purged, decommitted or unmapped while it is registered: device and CPU would see
 * different bytes (rxe, measured). An empty region is deregistered and unmapped when the bound
 * needs its bytes for another one.
 *
 * jemalloc is a private copy: the program's malloc is untouched, and its symbols stay inside the
 * library.
 */
#ifndef RA_H
#define RA_H

#include <stddef.h>
#include <stdint.h>

struct ra_arena;

#define RA_REGION_MAX ((size_t)2 << 30)
/* The largest value: the last of jemalloc's size classes whose extent, a page longer, fits a
 * region. Classes are a quarter apart. */
#define RA_VALUE_MAX ((size_t)7 << 28)
#define RA_ALIGN_MAX ((size_t)2 << 20)

/*
 * reg: called once for each new region, on the thread that allocates, with the arena's growth lock
 * held. base is 2 MiB-aligned, length a multiple of 2 MiB. fd is the region's memfd: borrowed, it
 * stays open, sealed against shrinking and growing, open to further seals. It must not call into
 * the arena. Returns 0, and *cookie, not NULL; or -errno.
 *
 * dereg: called with the growth lock held, for each region in ra_arena_destroy. ra_alloc calls it
 * for an empty region before it would refuse. Non-zero: the memory stays mapped. ra_arena_destroy
 * then asks again, and counts the region (quarantine).
 */
struct ra_hooks {
	int (*reg)(void *ctx, void *base, size_t length, int fd, void **cookie);
	int (*dereg)(void *ctx, void *cookie);
	void *ctx;
};

struct ra_options {
	/* bound on all regions together, rounded down to 2 MiB;
	 * 0: half of limit_memory(); below 2 MiB: -EINVAL */
	size_t max_bytes;
	/* bytes of the first region; later ones double up to RA_REGION_MAX; 0 = 16 MiB */
	size_t first_region;
	int huge;             /* ask for transparent huge pages */
	const char *name;     /* the memfd's name, for /proc/PID/maps; static; NULL = "rref" */
	/* the program's name for max_bytes, for texts; static; NULL: "max_bytes" */
	const char *option;
};

struct ra_stats {
	size_t max_bytes;         /* the bound */
	size_t region_bytes;      /* registered now */
	size_t live_bytes;        /* handed out now, as asked for */
	uint64_t nr_regions;      /* registered now */
	uint64_t nr_live, nr_allocs, nr_frees;
	/* regions whose dereg failed, of all arenas that this process has had */
	uint64_t nr_quarantined;
};

/*
 * [any, may block] 0; -EINVAL; -ENOMEM (text: address space, memfd, arenas). Takes hooks and
 * options by copy.
 */
int ra_arena_create(const struct ra_hooks *hooks, const struct ra_options *opt,
		    struct ra_arena **out);

/*
 * [any, may block; excludes every other call on the arena] Deregisters and unmaps every region.
 * NULL accepted. Memory still handed out is gone with it.
 */
void ra_arena_destroy(struct ra_arena *a);

/*
 * [any; lock-free? no: jemalloc may lock, and a new region is registered under the growth lock]
 * Allocates. align is a power of two up to RA_ALIGN_MAX; at least 64 is used (0 means 64). The
 * memory is zeroed or not: callers must not rely on it.
 *
 * Returns 0 and *out; -EINVAL; or reg's own error. -ENOMEM has a text with the bound and the size
 * that was asked for. A thread that is ending also gets -ENOMEM, in a destructor that runs after
 * jemalloc's.
 */
int ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out);

/* [any] size as given to ra_alloc. NULL accepted. */
void ra_free(struct ra_arena *a, void *p, size_t size);

/*
 * [any, wait-free] The region that holds p: its cookie and base. NULL, and *base untouched, if p is
 * not of this arena or lies in no region of it yet.
 */
void *ra_lookup(const struct ra_arena *a, const void *p, void **base);

/* [any] Counters, each exact, not a snapshot of one moment. */
void ra_stats(const struct ra_arena *a, struct ra_stats *out);

/* The text of the calling thread's last failure in this layer.
 * Borrowed until the thread's next ra call. */
const char *ra_error_text(void);

#endif
