/* SPDX-License-Identifier: Apache-2.0 */
/* The span of addresses, and the regions in it: memfd segments, each registered as a whole. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "alloc/ra_internal.h"
#include "base/assert.h"
#include "base/child.h"
#include "base/limit.h"
#include "base/util.h"

/* Process-wide: the arena that gave a region up is gone. */
static _Atomic uint64_t nr_quarantined;

uint64_t ra_nr_quarantined(void)
{
	return at_load(&nr_quarantined);
}

static int reserve(struct ra_arena *a, size_t bytes)
{
	/* A granule more than asked for, so that an aligned span lies in it; the rest goes back. */
	size_t length = bytes + RA_GRANULE, lead, trail;
	char *p = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return ra_fail(-ENOMEM, "value memory: %s",
			       limit_why("reserving addresses", errno, length));
	a->span = (char *)ra_round_up((uintptr_t)p, RA_GRANULE);
	a->span_bytes = bytes;
	lead = (size_t)(a->span - p);
	trail = RA_GRANULE - lead;
	rb_assert_with(lead <= RA_GRANULE && trail <= RA_GRANULE, "%zu and %zu", lead, trail);
	rb_assert(((uintptr_t)a->span & (RA_GRANULE - 1)) == 0);
	if (lead)
		munmap(p, lead);
	if (trail)
		munmap(a->span + bytes, trail);
	rb_range_add(&a->range, a->span, bytes);
	return 0;
}

int ra_span_reserve(struct ra_arena *a)
{
	/* Twice the bound, so that a region finds its place
	 * between those that stay; once if addresses are short. */
	return 2 * a->max_bytes <= RA_MAX_BYTES && !reserve(a, 2 * a->max_bytes)
		? 0
		: reserve(a, a->max_bytes);
}

static void region_free(struct ra_region *r)
{
	free(r->holes);
	free(r);
}

/* Unmaps the span, except the memory that a device would not let go of. */
static void unmap_all_but_kept(struct ra_arena *a)
{
	char *end = a->span + a->span_bytes;

	while (end > a->span) {
		struct ra_region *last = NULL;

		for (struct ra_region *r = a->regions; r; r = r->next)
			if (r->stuck && r->base < end && (!last || r->base > last->base))
				last = r;
		char *from = last ? last->base + last->length : a->span;

		if (from < end)
			munmap(from, (size_t)(end - from));
		end = last ? last->base : a->span;
	}
}

void ra_span_release(struct ra_arena *a)
{
	struct ra_region *r, *next;

	rb_range_remove(&a->range);
	for (r = a->regions; r; r = r->next) {
		/* The addresses may serve something else soon, and
		 * unmapping does not clear the sanitizer's marks. */
		ra_unpoison(r->base, r->length);
		r->stuck = a->hooks.dereg(a->hooks.ctx, r->cookie) != 0;
		/* A device may still read or write there: the pages,
		 * and the addresses, must not be reused. */
		if (r->stuck)
			at_add(&nr_quarantined, 1);
		else
			rb_close(r->fd);
	}
	unmap_all_but_kept(a);
	for (r = a->regions; r; r = next) {
		next = r->next;
		region_free(r);
	}
	for (r = a->gone; r; r = next) {
		next = r->next;
		region_free(r);
	}
	a->regions = a->gone = NULL;
}

/* Makes room for one hole more. */
static bool hole_room(struct ra_region *r)
{
	unsigned max = r->max_holes ? 2 * r->max_holes : RA_FIRST_HOLES;
	struct ra_hole *holes;

	if (r->nr_holes < r->max_holes)
		return true;
	holes = realloc(r->holes, max * sizeof(*holes));
	if (!holes)
		return false;
	r->holes = holes;
	r->max_holes = max;
	return true;
}

/*
 * Takes [lo, lo + length) out of hole i. The bytes that alignment skips stay a hole. If there is no
 * memory to note it, the smaller piece is given up until the arena is destroyed.
 */
static void hole_take(struct ra_region *r, unsigned i, size_t lo, size_t length)
{
	struct ra_hole *h = &r->holes[i];
	struct ra_hole head = { h->lo, lo }, tail = { lo + length, h->hi };
	bool has_head = head.hi > head.lo, has_tail = tail.hi > tail.lo;

	rb_assert_is(i, <, r->nr_holes);
	rb_assert_with(lo >= h->lo && lo + length <= h->hi, "%zu and %zu bytes of %zu..%zu", lo,
		       length, h->lo, h->hi);
	if (has_head && has_tail && !hole_room(r)) {
		if (head.hi - head.lo < tail.hi - tail.lo)
			has_head = false;
		else
			has_tail = false;
	}
	h = &r->holes[i];
	if (has_head && has_tail) {
		memmove(h + 2, h + 1, (r->nr_holes - i - 1) * sizeof(*h));
		h[0] = head;
		h[1] = tail;
		r->nr_holes++;
	} else if (has_head) {
		*h = head;
	} else if (has_tail) {
		*h = tail;
	} else {
		memmove(h, h + 1, (r->nr_holes - i - 1) * sizeof(*h));
		r->nr_holes--;
	}
}

/* Puts [lo, hi) back, and merges it with the holes that it touches. */
static bool hole_give(struct ra_region *r, size_t lo, size_t hi)
{
	unsigned i = 0, end = r->nr_holes;
	struct ra_hole *h;
	bool before, after;

	/* The first hole behind it. */
	while (i < end) {
		unsigned mid = i + (end - i) / 2;

		if (r->holes[mid].lo < lo)
			i = mid + 1;
		else
			end = mid;
	}
	h = r->holes + i;
	rb_assert_with(lo < hi && hi <= r->length, "%zu..%zu of %zu", lo, hi, r->length);
	/* No byte of it is free already, and no two holes touch: they were merged. */
	rb_assert_if(i > 0, h[-1].hi <= lo && h[-1].lo < h[-1].hi);
	rb_assert_if(i < r->nr_holes, h->lo >= hi && h->lo < h->hi);
	rb_assert_if(i > 0 && i < r->nr_holes, h[-1].hi < h->lo);
	rb_assert_is(r->nr_holes, <=, r->max_holes);
	before = i > 0 && h[-1].hi == lo;
	after = i < r->nr_holes && h->lo == hi;
	if (before && after) {
		h[-1].hi = h->hi;
		memmove(h, h + 1, (r->nr_holes - i - 1) * sizeof(*h));
		r->nr_holes--;
	} else if (before) {
		h[-1].hi = hi;
	} else if (after) {
		h->lo = lo;
	} else {
		if (!hole_room(r))
			return false;
		h = r->holes + i;
		memmove(h + 1, h, (r->nr_holes - i) * sizeof(*h));
		*h = (struct ra_hole){ lo, hi };
		r->nr_holes++;
	}
	return true;
}

bool ra_regions_return(struct ra_arena *a, void *p, size_t length)
{
	struct ra_region *r = ra_table_find(a, p);
	size_t lo = (size_t)((char *)p - r->base);
	bool done;

	rb_assert(ra_in_one_region(a, p, length));
	rb_assert(!r->stuck);
	pthread_mutex_lock(&a->carve);
	done = hole_give(r, lo, lo + length);
	pthread_mutex_unlock(&a->carve);
	return done;
}

void *ra_regions_carve(struct ra_arena *a, size_t length, size_t align)
{
	void *p = NULL;

	rb_assert_with(length && align && !(align & (align - 1)), "%zu bytes at a multiple of %zu",
		       length, align);
	pthread_mutex_lock(&a->carve);
	for (struct ra_region *r = a->regions; r && !p; r = r->next) {
		for (unsigned i = 0; i < r->nr_holes; i++) {
			size_t lo = ra_round_up((uintptr_t)r->base + r->holes[i].lo, align) -
				(uintptr_t)r->base;

			if (lo >= r->holes[i].hi || r->holes[i].hi - lo < length)
				continue;
			hole_take(r, i, lo, length);
			p = r->base + lo;
			break;
		}
	}
	pthread_mutex_unlock(&a->carve);
	rb_assert_if(p, (uintptr_t)p % align == 0);
	return p;
}

/* Returns the address of a gap between the regions, or behind
 * them; NULL: no gap is so long. Caller holds grow. */
static char *find_gap(const struct ra_arena *a, size_t length)
{
	char *at = a->span;

	ra_assert_held(&a->grow);
	for (const struct ra_region *r = a->regions; r;) {
		if (at < r->base + r->length && r->base < at + length) {
			at = r->base + r->length;
			r = a->regions; /* start over: the list is not in order of address */
		} else {
			r = r->next;
		}
	}
	return (size_t)(a->span + a->span_bytes - at) >= length ? at : NULL;
}

bool ra_region_fits(const struct ra_arena *a, size_t length)
{
	size_t need = ra_round_up(length, RA_GRANULE);

	rb_assert_is(at_load(&a->region_bytes), <=, a->max_bytes);
	return need <= a->max_bytes - at_load(&a->region_bytes) && find_gap(a, need);
}

/* Takes an empty region out of the list, so that nothing is carved from it. NULL: there is none. */
static struct ra_region *take_empty(struct ra_arena *a)
{
	struct ra_region **from, *r;

	pthread_mutex_lock(&a->carve);
	for (from = &a->regions; (r = *from); from = &r->next)
		if (r->nr_holes == 1 && r->holes[0].lo == 0 && r->holes[0].hi == r->length)
			break;
	if (r)
		*from = r->next;
	pthread_mutex_unlock(&a->carve);
	return r;
}

static void put_kept(struct ra_arena *a, struct ra_region *r)
{
	r->stuck = true;
	r->nr_holes = 0;
	pthread_mutex_lock(&a->carve);
	r->next = a->regions;
	a->regions = r;
	pthread_mutex_unlock(&a->carve);
}

void ra_regions_release(struct ra_arena *a, size_t length)
{
	struct ra_region *r;

	while (!ra_region_fits(a, length) && (r = take_empty(a))) {
		/* No value lies there, so no thread looks it up and no reference names it. Peers
		 * can map and read it until the registration ends. Only then may the pages go. */
		if (a->hooks.dereg(a->hooks.ctx, r->cookie)) {
			put_kept(a, r);
			continue;
		}
		rb_assert(at_load(&a->region_bytes) >= r->length && at_load(&a->nr_regions));
		rb_assert(!r->stuck);
		ra_table_publish(a, r, NULL);
		ra_unpoison(r->base, r->length);
		/* Back to reserved, not to free: nothing else may land inside the span. */
		mmap(r->base, r->length, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
		rb_close(r->fd);
		at_store(&a->region_bytes, at_load(&a->region_bytes) - r->length);
		at_sub(&a->nr_regions, 1);
		r->next = a->gone;
		a->gone = r;
	}
}

/* Adds a region of that size at base. */
static int add_at(struct ra_arena *a, char *base, size_t size)
{
	struct ra_region *r;
	int rc;

	rb_assert_with(size && size % RA_GRANULE == 0, "%zu", size);
	rb_assert_with((size_t)(base - a->span) % RA_GRANULE == 0, "%p", (void *)base);
	rb_assert(ra_in_span(a, base) && ra_in_span(a, base + size - 1));
	rb_assert(!ra_table_find(a, base) && !ra_table_find(a, base + size - 1));
	r = calloc(1, sizeof(*r));
	if (!r || !hole_room(r)) {
		free(r);
		return ra_fail(-ENOMEM, "value memory: no memory to describe a region");
	}
	r->base = base;
	r->length = size;
	r->nr_holes = 1;
	r->holes[0] = (struct ra_hole){ 0, size };

	r->fd = RB_OPEN(memfd_create(a->name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (r->fd < 0) {
		rc = ra_fail(-ENOMEM, "value memory: %s", limit_why("memfd_create", errno, 0));
		goto free_region;
	}
	if (limit_file(size) || ftruncate(r->fd, (off_t)size)) {
		rc = ra_fail(-ENOMEM, "value memory: %s",
			     limit_why("making a region", errno, size));
		goto close_fd;
	}
	/* A peer that is given the fd could otherwise shrink it,
	 * and our next store would be a SIGBUS. */
	if (fcntl(r->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
		rc = ra_fail(-ENOMEM, "value memory: %s", limit_why("sealing a memfd", errno, 0));
		goto close_fd;
	}
	if (mmap(r->base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
		 r->fd, 0) == MAP_FAILED) {
		rc = ra_fail(-ENOMEM, "value memory: %s",
			     limit_why("mapping a region", errno, size));
		goto unmap_region; /* a failed MAP_FIXED may have taken the reservation away */
	}
	/* A child would keep the memory alive, and see it change. */
	rb_not_in_child(r->base, size);
	if (a->huge)
		/* a wish: kernels without huge shmem pages say no */
		madvise(r->base, size, MADV_HUGEPAGE);

	rc = a->hooks.reg(a->hooks.ctx, r->base, size, r->fd, &r->cookie);
	if (rc) {
		ra_fail(rc, "value memory: registering a region of %s: %s", ra_size_text(size).text,
			strerror(-rc));
		goto unmap_region;
	}
	ra_poison(r->base, size);
	ra_table_publish(a, r, r);
	at_store(&a->region_bytes, at_load(&a->region_bytes) + size);
	at_add(&a->nr_regions, 1);
	rb_assert_is(at_load(&a->region_bytes), <=, a->max_bytes);
	a->next_region = min_of(a->next_region * 2, RA_REGION_MAX);
	pthread_mutex_lock(&a->carve);
	r->next = a->regions;
	a->regions = r;
	pthread_mutex_unlock(&a->carve);
	return 0;

unmap_region:
	/* Back to reserved, not to free: nothing else may land inside the span. */
	mmap(r->base, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
	     0);
close_fd:
	rb_close(r->fd);
free_region:
	region_free(r);
	return rc;
}

int ra_region_add(struct ra_arena *a, size_t length, size_t asked)
{
	size_t used = at_load(&a->region_bytes), left = a->max_bytes - used;
	/* A large extent has a page more than a power of two. With a granule more, as many fit. */
	size_t more = length > RA_GRANULE ? RA_GRANULE : 0,
	       next = min_of(a->next_region + more, RA_REGION_MAX);
	size_t need = ra_round_up(length, RA_GRANULE), size = max_of(need, min_of(next, left));
	char *base;
	int rc;

	rb_slow(RB_SLOW_GROW);
	rb_assert(need <= RA_REGION_MAX); /* follows from RA_VALUE_MAX */
	if (need > a->max_bytes)
		return ra_fail(-ENOMEM,
			       "value memory: asked %s, for which a region of %s is needed, limit "
			       "%s (%s)",
			       ra_size_text(asked).text, ra_size_text(need).text,
			       ra_size_text(a->max_bytes).text, a->option);
	if (need > left)
		return ra_fail(-ENOMEM, "value memory: asked %s, limit %s (%s), %s registered",
			       ra_size_text(asked).text, ra_size_text(a->max_bytes).text, a->option,
			       ra_size_text(used).text);

	base = find_gap(a, size);
	if (!base)
		base = find_gap(a, size = need);
	if (!base)
		return ra_fail(-ENOMEM,
			       "value memory: asked %s, of limit %s (%s) %s are registered, and no "
			       "addresses for as much lie side by side",
			       ra_size_text(asked).text, ra_size_text(a->max_bytes).text, a->option,
			       ra_size_text(used).text);
	/* A limit of the system may allow less, which may be enough. Later ones grow from there. */
	while ((rc = add_at(a, base, size)) == -ENOMEM && size > need)
		a->next_region = size = max_of(need, size / 2 & ~(RA_GRANULE - 1));
	return rc;
}
