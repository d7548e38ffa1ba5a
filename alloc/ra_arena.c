/* SPDX-License-Identifier: Apache-2.0 */
/* The arena: create, allocate, grow, count, destroy. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "alloc/ra_internal.h"
#include "base/assert.h"
#include "base/fast.h"
#include "base/limit.h"
#include "base/util.h"

/* Spreads threads over the shared caches. A bad spread is slower, not wrong. */
static struct ra_cache *shared_cache(struct ra_arena *a)
{
	static _Atomic unsigned next;
	static _Thread_local unsigned mine; /* 0 = none yet */

	if (unlikely(!mine))
		mine = at_add(&next, 1) % RA_SHARED + 1;
	return &a->caches[RA_OWNED + mine - 1];
}

/* Enters a shared cache that is free, with an exchange. */
static bool enter_shared(struct ra_cache *s)
{
	return !at_load(&s->busy) && !at_xchg_acq(&s->busy, 1);
}

static __attribute__((noinline)) struct ra_cache *enter_other(struct ra_arena *a)
{
	struct ra_cache *s = ra_binding_take(a);

	if (s && ra_cache_mark(a, s))
		return s;
	/* A cache that is filled now might not be looked at before the arena grows. */
	if (at_load(&a->gathering) == RA_GATHERING)
		return NULL;
	s = shared_cache(a);
	if (!enter_shared(s))
		return NULL;
	if (unlikely(at_load(&s->tcache) == RA_NO_TCACHE)) {
		ra_binding_lock();
		ra_cache_has_cache(a, s);
		ra_binding_unlock();
	}
	return s;
}

/*
 * Enters a cache for one allocation or release, until ra_cache_leave. NULL: do without. Only
 * flush_caches() waits for a cache.
 *
 * The owner marks its cache busy by a plain store, and then looks at `gathering`. flush_caches()
 * sets `gathering`, and then looks at the marks; its barrier between the two counts for both sides
 * (ra_asym.h). So either the owner sees that it may not enter, or flush_caches() sees that it is
 * inside, and waits. flush_caches() acquires with busy = 0 all that the owner did to its cache. The
 * owner acquires with gathering = 0 all that flush_caches() did. A new owner gets the cache from
 * the last owner by the lock of bindings.
 */
static inline struct ra_cache *enter(struct ra_arena *a)
{
	const struct ra_binding *binding = ra_binding_of(a);
	struct ra_cache *s = binding->cache;

	if (RB_FAST(likely(at_load(&binding->arena) == a) && likely(ra_cache_mark(a, s)))) {
		rb_assert(s->arena == a && s >= a->caches && s < a->caches + RA_OWNED);
		return s;
	}
	return RB_FAST(true) ? enter_other(a) : NULL;
}

/* Adds without an atomic addition: the caller is inside. */
static void plus(_Atomic uint64_t *n, uint64_t by)
{
	at_store(n, at_load(n) + by);
}

static void plus_rel(_Atomic uint64_t *n, uint64_t by)
{
	at_store_rel(n, at_load(n) + by);
}

/*
 * Gives the caches' memory back to the place that serves any size. Serialised by grow. A cache's
 * user holds it for one allocation at most. Owners go without a cache meanwhile. So memory that was
 * found in one cache is in no other when the last one was looked at.
 */
static void flush_caches(struct ra_arena *a)
{
	bool again;

	ra_assert_held(&a->grow);
	rb_assert(at_load(&a->gathering) != RA_GATHERING);
	at_store_sc(&a->gathering, RA_GATHERING);
	again = ra_asym_barrier();
	for (unsigned i = 0; i < RA_CACHES; i++) {
		struct ra_cache *s = &a->caches[i];
		bool owned = i < RA_OWNED;

		while (owned ? at_load_sc(&s->busy) : !enter_shared(s))
			sched_yield();
		ra_cache_flush(s);
		if (!owned)
			ra_cache_leave(s);
	}
	/* All threads share caches from now on if the barrier is refused (seccomp). */
	at_store_rel(&a->gathering, again ? RA_OPEN : RA_CLOSED);
}

static uint64_t count_frees(const struct ra_arena *a)
{
	uint64_t n = at_load_acq(&a->rest.nr_frees);

	for (unsigned i = 0; i < RA_CACHES; i++)
		n += at_load_acq(&a->caches[i].nr_frees);
	return n;
}

static uint64_t count_allocs(const struct ra_arena *a)
{
	uint64_t n = at_load(&a->rest.nr_allocs);

	for (unsigned i = 0; i < RA_CACHES; i++)
		n += at_load(&a->caches[i].nr_allocs);
	return n;
}

static int check_limit(size_t max_bytes)
{
	if (max_bytes < RA_GRANULE)
		return ra_fail(-EINVAL, "value memory: a limit of %s is below the least region, %s",
			       ra_size_text(max_bytes).text, ra_size_text(RA_GRANULE).text);
	if (max_bytes > RA_MAX_BYTES)
		return ra_fail(-EINVAL,
			       "value memory: a limit of %s is beyond the address space, "
			       "at most %s",
			       ra_size_text(max_bytes).text, ra_size_text(RA_MAX_BYTES).text);
	return 0;
}

static void set_options(struct ra_arena *a, const struct ra_options *opt, size_t max_bytes)
{
	size_t first = opt->first_region ? opt->first_region : (size_t)16 << 20;

	a->max_bytes = max_bytes & ~(RA_GRANULE - 1); /* no more than was asked for */
	a->first_region = ra_round_up(min_of(first, RA_REGION_MAX), RA_GRANULE);
	a->next_region = a->first_region;
	a->name = opt->name ? opt->name : "rref";
	a->option = opt->option ? opt->option : "max_bytes";
	a->huge = opt->huge != 0;
}

/* Makes the arena's parts, or returns an error and leaves none. */
static int arena_parts_create(struct ra_arena *a)
{
	int rc = ra_span_reserve(a);

	if (rc)
		return rc;
	rc = ra_table_create(a);
	if (rc)
		goto release_span;
	rc = ra_near_create(a);
	if (rc)
		goto destroy_table;
	rc = ra_je_arena_create(a);
	if (rc)
		goto destroy_near;
	for (unsigned i = 0; i < RA_CACHES; i++) {
		a->caches[i].how = ra_je_how(a, RA_NO_TCACHE);
		a->caches[i].arena = a;
	}
	ra_bindings_create(a);
	return 0;

destroy_near:
	ra_near_destroy(a);
destroy_table:
	ra_table_destroy(a);
release_span:
	ra_span_release(a);
	return rc;
}

int ra_arena_create(const struct ra_hooks *hooks, const struct ra_options *opt,
		    struct ra_arena **out)
{
	static const struct ra_options defaults;
	size_t max_bytes;
	struct ra_arena *a;
	int rc;

	if (!hooks || !hooks->reg || !hooks->dereg || !out)
		return ra_fail(-EINVAL, "value memory: needs reg, dereg and a place for the arena");
	if (!opt)
		opt = &defaults;
	max_bytes = opt->max_bytes ? opt->max_bytes : max_of(limit_memory() / 2, RA_GRANULE);
	rc = check_limit(max_bytes);
	if (rc)
		return rc;

	a = aligned_alloc(CACHE_LINE, sizeof(*a));
	if (!a)
		return ra_fail(-ENOMEM, "value memory: no memory for an arena");
	memset(a, 0, sizeof(*a));
	a->hooks = *hooks;
	set_options(a, opt, max_bytes);
	pthread_mutex_init(&a->grow, NULL);
	pthread_mutex_init(&a->carve, NULL);

	rc = arena_parts_create(a);
	if (rc) {
		pthread_mutex_destroy(&a->carve);
		pthread_mutex_destroy(&a->grow);
		free(a);
		return rc;
	}
	rb_assert_with(a->max_bytes % RA_GRANULE == 0 && a->max_bytes <= a->span_bytes,
		       "%zu of %zu", a->max_bytes, a->span_bytes);
	rb_assert_with(a->first_region >= RA_GRANULE && a->first_region <= RA_REGION_MAX, "%zu",
		       a->first_region);
	*out = a;
	return 0;
}

void ra_arena_destroy(struct ra_arena *a)
{
	if (!a)
		return;
	/* jemalloc goes first, since its hooks look regions up; then the regions go. */
	ra_bindings_destroy(a);
	ra_je_arena_destroy(a);
	ra_near_destroy(a);
	ra_span_release(a);
	ra_table_destroy(a);
	pthread_mutex_destroy(&a->carve);
	pthread_mutex_destroy(&a->grow);
	free(a);
}

static size_t live_bytes(const struct ra_arena *a)
{
	uint64_t in, out = at_load_acq(&a->rest.free_bytes);

	/*
	 * Reads the frees first. Acquire, with ra_free's release. A thread that sees a value's free
	 * must also see its allocation: else the difference could be negative.
	 */
	for (unsigned i = 0; i < RA_CACHES; i++)
		out += at_load_acq(&a->caches[i].free_bytes);
	in = at_load(&a->rest.alloc_bytes);
	for (unsigned i = 0; i < RA_CACHES; i++)
		in += at_load(&a->caches[i].alloc_bytes);
	rb_assert_is(in, >=, out);
	return (size_t)(in - out);
}

/* Gives all free memory back to the holes of its region. Caller holds grow. */
static void gather_free(struct ra_arena *a, uint64_t uses)
{
	rb_slow(RB_SLOW_GATHER);
	a->purged_uses = uses;
	flush_caches(a);
	ra_near_gather(a);
	ra_je_arena_purge(a);
}

/*
 * Grows the arena after an allocation of `asked` bytes found no extent. Returns 0 if another try is
 * worthwhile.
 *
 * Gathers free memory before it adds any: the caches, and free extents that jemalloc has not merged
 * yet, may serve. A registration costs a thousand times a purge. A purge cannot help if too little
 * is free. It cannot help either if nothing was allocated (a cache takes several at once) or freed
 * since the last purge. One call purges once (*purged): else threads that free all the time would
 * keep the arena from growing.
 */
static int ra_grow(struct ra_arena *a, uint64_t epoch, size_t asked, bool *purged)
{
	const size_t want = ra_want;
	uint64_t uses;
	int rc = 0;

	rb_assert_with(want >= asked, "an extent of %zu bytes for a value of %zu", want, asked);
	pthread_mutex_lock(&a->grow);
	/* Another thread grew or purged since this one looked:
	 * the missing memory may be there now. */
	if (at_load(&a->epoch) != epoch)
		goto out;
	uses = count_frees(a) + count_allocs(a);
	if (!*purged && uses != a->purged_uses &&
	    at_load(&a->region_bytes) - live_bytes(a) >= want) {
		*purged = true;
		gather_free(a, uses);
	} else {
		/* Takes back the bytes of empty regions that are too small, before it refuses. */
		if (!ra_region_fits(a, want)) {
			if (uses != a->purged_uses)
				gather_free(a, uses);
			ra_regions_release(a, want);
		}
		rc = ra_region_add(a, want, asked);
		if (rc)
			goto out;
	}
	rb_assert_is(at_load(&a->region_bytes), <=, a->max_bytes);
	rb_assert_is(at_load(&a->epoch), ==, epoch);
	at_store_rel(&a->epoch, epoch + 1);
out:
	pthread_mutex_unlock(&a->grow);
	return rc;
}

/*
 * Allocates from jemalloc's own first arena for a thread whose end jemalloc has seen. jemalloc sees
 * it in a destructor, as this library does, and the thread may go on allocating.
 */
static inline void *from_jemalloc(const struct ra_arena *a, size_t rounded, int flags)
{
	void *p = ra_je_mallocx(rounded, flags);

	if (unlikely(p && !ra_in_span(a, p))) {
		ra_je_dallocx(p, MALLOCX_TCACHE_NONE);
		p = NULL;
	}
	rb_assert_if(p, (uintptr_t)p % RA_MIN_ALIGN == 0 && ra_in_one_region(a, p, rounded));
	return p;
}

/* Tries once, through the thread cache's tcache if that takes the size.
 * flags: as for jemalloc, alignment only. */
static void *attempt(struct ra_arena *a, size_t size, size_t rounded, int flags)
{
	struct ra_cache *s = enter(a);
	void *p;

	if (unlikely(!s)) {
		p = from_jemalloc(a, rounded, ra_je_how(a, RA_NO_TCACHE) | flags);
		if (p) {
			at_add(&a->rest.nr_allocs, 1);
			at_add(&a->rest.alloc_bytes, size);
		}
		return p;
	}
	p = from_jemalloc(a, rounded, s->how | flags);
	if (likely(p != NULL)) {
		plus(&s->nr_allocs, 1);
		plus(&s->alloc_bytes, size);
	}
	ra_cache_leave(s);
	return p;
}

/* Makes all attempts but the first attempt of a usual allocation. */
static __attribute__((noinline)) int alloc_slow(struct ra_arena *a, size_t size, size_t align,
						void **out)
{
	bool purged = false;
	uint64_t epoch;
	size_t rounded;
	void *p;
	int rc, flags;

	if (size == 0 || (align & (align - 1)) || align > RA_ALIGN_MAX)
		return ra_fail(-EINVAL, "value memory: a size of %zu, an alignment of %zu", size,
			       align);
	if (size > RA_VALUE_MAX)
		return ra_fail(-ENOMEM, "value memory: asked %s, a value is limited to %s here",
			       ra_size_text(size).text, ra_size_text(RA_VALUE_MAX).text);
	flags = align > RA_MIN_ALIGN ? MALLOCX_LG_ALIGN(__builtin_ctzl(align)) : 0;
	rounded = ra_asked(ra_round_up(size, RA_MIN_ALIGN));

	for (;;) {
		/* Acquire, with ra_grow's release, before the
		 * attempt: growth after this read must not be missed. */
		epoch = at_load_acq(&a->epoch);
		ra_want = 0;
		p = attempt(a, size, rounded, flags);
		if (p)
			break;
		/* jemalloc failed without asking the hook: mostly it
		 * lacks memory for its own bookkeeping. */
		if (ra_want == 0)
			return ra_fail(-ENOMEM,
				       "value memory: no memory for the allocator's bookkeeping, "
				       "or for a thread that is ending");
		rc = ra_grow(a, epoch, size, &purged);
		if (rc)
			return rc;
	}
	rb_assert_if(align, (uintptr_t)p % align == 0);
	ra_unpoison(p, size);
	*out = p;
	return 0;
}

/* Returns a free slot of a near class, or NULL. Slots that come together lie side by side, and are
 * given out in order of address. The caller is inside. */
static void *near_slot(struct ra_cache *s, unsigned near)
{
	void *few[RA_NEAR_CACHED];
	unsigned n;

	if (unlikely(!s->nr_slots[near])) {
		n = ra_near_take(s->arena, near, few, RA_NEAR_CACHED);
		rb_assert_is(n, <=, RA_NEAR_CACHED);
		for (unsigned i = 0; i < n; i++)
			s->slots[near][n - 1 - i] = few[i];
		s->nr_slots[near] = n;
		if (!n)
			return NULL;
	}
	rb_assert_is(s->nr_slots[near], <=, RA_NEAR_CACHED);
	return s->slots[near][--s->nr_slots[near]];
}

/* Takes a slot back. The caller is inside. */
static void near_back(struct ra_cache *s, unsigned near, void *p)
{
	if (unlikely(s->nr_slots[near] == RA_NEAR_CACHED)) {
		/* The oldest of them. */
		ra_near_give(s->arena, s->slots[near], RA_NEAR_CACHED / 2);
		memmove(s->slots[near], s->slots[near] + RA_NEAR_CACHED / 2,
			RA_NEAR_CACHED / 2 * sizeof(void *));
		s->nr_slots[near] = RA_NEAR_CACHED / 2;
	}
	rb_assert_is(s->nr_slots[near], <, RA_NEAR_CACHED);
	s->slots[near][s->nr_slots[near]++] = p;
}

int ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out)
{
	struct ra_cache *s;
	unsigned size_class, near;
	void *p;

	if (unlikely(align != RA_MIN_ALIGN || size - 1 >= RA_VALUE_MAX) ||
	    unlikely(!(s = enter(a))))
		return alloc_slow(a, size, align, out);
	size_class = ra_class(size);
	if (likely(size_class < RA_CACHED && (p = s->cached[size_class]) != NULL)) {
		s->cached[size_class] = NULL;
	} else if ((near = ra_near_class(size)) >= RA_NEAR || !(p = near_slot(s, near))) {
		/* Whole lines need no flag for their alignment: every
		 * class that is a multiple of 64 is aligned to 64. */
		p = from_jemalloc(s->arena, ra_asked(ra_round_up(size, RA_MIN_ALIGN)), s->how);
		if (unlikely(!p)) {
			ra_cache_leave(s);
			return alloc_slow(s->arena, size, RA_MIN_ALIGN, out);
		}
	}
	rb_assert_with((uintptr_t)p % RA_MIN_ALIGN == 0 && ra_in_one_region(s->arena, p, size),
		       "%p of %zu", p, size);
	rb_assert_if(ra_near_of(s->arena, p), ra_near_class(size) < RA_NEAR);
	plus(&s->nr_allocs, 1);
	plus(&s->alloc_bytes, size);
	ra_cache_leave(s);
	ra_unpoison(p, size);
	*out = p;
	return 0;
}

static __attribute__((noinline)) void free_alone(struct ra_arena *a, void *p, size_t size)
{
	if (ra_near_class(size) < RA_NEAR && ra_near_of(a, p))
		ra_near_give(a, &p, 1);
	else
		ra_je_dallocx(p, ra_je_how(a, RA_NO_TCACHE));
	atomic_fetch_add_explicit(&a->rest.nr_frees, 1, memory_order_release);
	atomic_fetch_add_explicit(&a->rest.free_bytes, size, memory_order_release);
}

void ra_free(struct ra_arena *a, void *p, size_t size)
{
	struct ra_cache *s;
	unsigned size_class, near;

	if (!p)
		return;
	rb_assert_with(size > 0 && ra_in_one_region(a, p, size), "%zu bytes at %p", size, p);
	rb_assert_with((uintptr_t)p % RA_MIN_ALIGN == 0, "%p", p);
	/* Poison first: once freed, the memory may belong to another thread. */
	ra_poison(p, size);
	s = enter(a);
	/*
	 * Counts after the free: ra_grow expects a purge to find each counted free. dallocx, not
	 * sdallocx: the latter wants the alignment again, which the caller does not give, and it is
	 * not quicker.
	 */
	if (unlikely(!s)) {
		free_alone(a, p, size);
		return;
	}
	size_class = ra_class(size);
	near = ra_near_class(size);
	rb_assert(s->arena == a);
	rb_assert_if(size_class < RA_CACHED, s->cached[size_class] != p); /* not twice */
	if (near < RA_NEAR && ra_near_of(s->arena, p))
		near_back(s, near, p);
	else if (likely(size_class < RA_CACHED && !s->cached[size_class]))
		s->cached[size_class] = p;
	else
		ra_je_dallocx(p, s->how);
	plus_rel(&s->nr_frees, 1);
	plus_rel(&s->free_bytes, size);
	ra_cache_leave(s);
}

void ra_stats(const struct ra_arena *a, struct ra_stats *out)
{
	*out = (struct ra_stats){
		.max_bytes = a->max_bytes,
		.region_bytes = at_load(&a->region_bytes),
		.live_bytes = live_bytes(a),
		.nr_regions = at_load(&a->nr_regions),
		.nr_frees = count_frees(a), /* count_frees first, as in live_bytes */
		.nr_quarantined = ra_nr_quarantined(),
	};
	out->nr_allocs = count_allocs(a);
	out->nr_live = out->nr_allocs - out->nr_frees;
}
