/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The private jemalloc: one arena for each ra_arena, whose extents come from our regions.
 *
 * This file relies on these facts, read in jemalloc 5.3.0:
 *
 * - arenas.create takes the arena's *metadata* through the extent hooks too (base_map: blocks of
 *   2 MiB and more). Then peers could read the bookkeeping, and a wild write by a peer could steer
 *   the allocator. experimental.arenas_create_ext with metadata_use_hooks = false takes it from
 *   anonymous memory instead.
 * - A NULL hook counts as "refused". purge and decommit are NULL: memory that a device has
 *   registered may not be unmapped or purged behind its back. dalloc notes the result of a purge;
 *   the pages stay as they are. Nothing else calls it, with decay off. destroy is NULL: the whole
 *   span goes at once, after deregistration. commit is NULL: every extent is committed from the
 *   start.
 * - opt.retain (default true here) would take extents in exponentially growing sizes. Each would be
 *   marked as a head that never merges with its neighbour, which fragments a bounded arena. The
 *   address space of a destroyed arena's metadata would stay for ever. Without it, extents are
 *   exactly as large as needed and merge with any neighbour that `merge` allows.
 * - Free extents wait in a "dirty" cache. By default it does not split an extent of 64 times the
 *   size asked for (lg_extent_max_active_fit). Then a large free value would not serve small ones.
 *   It merges small neighbours lazily. A purge gives everything to dalloc, whose holes merge at
 *   once (ra_grow purges before it grows). Extents that dalloc refuses go to the "retained" cache,
 *   which merges at once as well.
 * - A large extent is a page longer than its size class (cache_oblivious; not an option in 5.3.0).
 *   So values start at different offsets in their pages. So the class of 2 GiB does not fit into a
 *   region: RA_VALUE_MAX. The offset is a multiple of 64 below 4096
 *   (arena_cache_oblivious_randomize). ra_asked counts on the 64 bytes behind the class, which are
 *   never used.
 * - tcache off: our tcaches are explicit ones (ra_binding.c). Otherwise each thread would get an
 *   unused one of some 20 KiB. An explicit tcache serves one thread at a time, and only its user
 *   ever looks into it (no GC).
 * - lg_tcache_max bounds the sizes that a cache takes. It keeps at most tcache_nslots_large (20)
 *   pieces of each larger size. With 17 a cache keeps 12 MiB at the very most, and gives them back
 *   before the arena grows.
 *
 * These are start-up options of jemalloc. The environment's MALLOC_CONF, meant for a jemalloc of
 * the program's own, would reach this copy too. malloc_conf_2_conf_harder is read last and
 * overrides it.
 *
 * jemalloc's thread-local storage is of the static kind. A program that loads this library with
 * dlopen needs GLIBC_TUNABLES=glibc.rtld.optional_static_tls=8192 at its start, or links the
 * library.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "alloc/ra_internal.h"
#include "base/assert.h"
#include "base/util.h"

int ra_je_mallctl(const char *name, void *oldp, size_t *oldlenp, void *newp, size_t newlen);

extern const char *ra_je_malloc_conf_2_conf_harder;
const char *ra_je_malloc_conf_2_conf_harder =
	"retain:false,tcache:false,lg_tcache_max:17,lg_extent_max_active_fit:64,"
	"dirty_decay_ms:-1,muzzy_decay_ms:0,background_thread:false,percpu_arena:disabled,narenas:"
	"1,"
	"junk:false,zero:false,abort_conf:false,confirm_conf:false,stats_print:false";

/* jemalloc 5.3's include/jemalloc/internal/arena_types.h; not in its public header. */
struct je_arena_config {
	extent_hooks_t *extent_hooks;
	bool metadata_use_hooks;
};

__attribute__((tls_model("initial-exec"))) _Thread_local size_t ra_want;

static struct ra_arena *arena_of(extent_hooks_t *h)
{
	return (struct ra_arena *)((char *)h - offsetof(struct ra_arena, je_hooks));
}

static void *hook_alloc(extent_hooks_t *h, void *new_addr, size_t size, size_t align, bool *zero,
			bool *commit, unsigned index)
{
	struct ra_arena *a = arena_of(h);
	bool must_zero = *zero;
	void *p;

	(void)index;
	/* Growing an extent in place: we never ask for it (no
	 * rallocx), so nothing is known to lie behind it. */
	if (new_addr)
		return NULL;
	rb_assert(h == &a->je_hooks && index == a->je_index);
	p = ra_regions_carve(a, size, align);
	if (!p) {
		ra_want = size;
		return NULL;
	}
	/*
	 * A hole may have been handed out before, so zeroes are promised only where jemalloc
	 * insists, and then made.
	 */
	if (must_zero) {
		ra_unpoison(p, size);
		memset(p, 0, size);
		ra_poison(p, size);
	}
	*commit = true;
	return p;
}

static bool hook_dalloc(extent_hooks_t *h, void *addr, size_t size, bool committed, unsigned index)
{
	(void)committed, (void)index;
	rb_assert_is(index, ==, arena_of(h)->je_index);
	return !ra_regions_return(arena_of(h), addr, size);
}

static bool hook_split(extent_hooks_t *h, void *addr, size_t size, size_t size_a, size_t size_b,
		       bool committed, unsigned index)
{
	(void)h, (void)addr, (void)size, (void)size_a, (void)size_b, (void)committed, (void)index;
	return false;
}

/* Merges extents. Regions are adjacent in the span. No key
 * spans two of them, so no READ could get a value across both. */
static bool hook_merge(extent_hooks_t *h, void *addr_a, size_t size_a, void *addr_b, size_t size_b,
		       bool committed, unsigned index)
{
	struct ra_arena *a = arena_of(h);

	(void)size_a, (void)size_b, (void)committed, (void)index;
	rb_assert((char *)addr_a + size_a == (char *)addr_b);
	return ra_table_find(a, addr_a) != ra_table_find(a, addr_b);
}

static int arena_ctl(const struct ra_arena *a, const char *what)
{
	char name[64];

	snprintf(name, sizeof(name), "arena.%u.%s", a->je_index, what);
	return ra_je_mallctl(name, NULL, NULL, NULL, 0);
}

int ra_je_arena_create(struct ra_arena *a)
{
	struct je_arena_config config = { .extent_hooks = &a->je_hooks,
					  .metadata_use_hooks = false };
	size_t len = sizeof(a->je_index);
	int rc;

	a->je_hooks = (extent_hooks_t){
		.alloc = hook_alloc, .dalloc = hook_dalloc, .split = hook_split, .merge = hook_merge
	};
	rc = ra_je_mallctl("experimental.arenas_create_ext", &a->je_index, &len, &config,
			   sizeof(config));
	if (rc)
		return ra_fail(-ENOMEM, "value memory: no further jemalloc arena: %s",
			       strerror(rc));
	return 0;
}

void ra_je_arena_destroy(struct ra_arena *a)
{
	/* Frees all that is handed out, then forgets its extents;
	 * the index is reused by the next create. */
	int rc = arena_ctl(a, "destroy");

	rb_assert(rc == 0);
	(void)rc;
}

void ra_je_arena_purge(struct ra_arena *a)
{
	arena_ctl(a, "purge");
}

int ra_je_how(const struct ra_arena *a, unsigned tcache)
{
	return MALLOCX_ARENA(a->je_index) |
		(tcache == RA_NO_TCACHE ? MALLOCX_TCACHE_NONE : MALLOCX_TCACHE(tcache - 1));
}

/*
 * Empty caches that no arena uses any more. A process may have many contexts one after the other.
 * New tcaches each time would scatter jemalloc's mappings. Guarded by binding.
 */
static unsigned spare[2 * RA_CACHES], nr_spare;

unsigned ra_je_cache_create(void)
{
	unsigned ind, tcache = RA_NO_TCACHE;
	size_t len = sizeof(ind);

	if (nr_spare)
		tcache = spare[--nr_spare];
	else if (!ra_je_mallctl("tcache.create", &ind, &len, NULL, 0))
		tcache = ind + 1;
	return tcache;
}

void ra_je_cache_destroy(unsigned tcache)
{
	unsigned ind = tcache - 1;

	rb_assert(tcache != RA_NO_TCACHE);
	rb_assert_is(nr_spare, <=, array_size(spare));
	ra_je_cache_flush(tcache);
	if (nr_spare < array_size(spare))
		spare[nr_spare++] = tcache;
	else
		ra_je_mallctl("tcache.destroy", NULL, NULL, &ind, sizeof(ind));
}

void ra_je_cache_flush(unsigned tcache)
{
	unsigned ind = tcache - 1;
	int rc = ra_je_mallctl("tcache.flush", NULL, NULL, &ind, sizeof(ind));

	rb_assert(rc == 0);
	(void)rc;
}
