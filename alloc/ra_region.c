/* SPDX-License-Identifier: Apache-2.0 */
/* The span of addresses, and the regions in it: memfd segments, laid end to end, each registered as a whole. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "alloc/ra_internal.h"
#include "base/child.h"
#include "base/limit.h"
#include "base/util.h"

/* Process-wide: the arena that gave a region up is gone. */
static _Atomic uint64_t nr_quarantined;

uint64_t ra_nr_quarantined(void)
{
	return at_load(&nr_quarantined);
}

int ra_span_reserve(struct ra_arena *a)
{
	/* A granule more than asked for, so that a granule-aligned span lies in it; the rest goes back. */
	size_t length = a->max_bytes + RA_GRANULE, lead, trail;
	char *p = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return ra_fail(-ENOMEM, "value memory: %s", limit_why("reserving addresses", errno, length));
	a->span = (char *)ra_round_up((uintptr_t)p, RA_GRANULE);
	lead = (size_t)(a->span - p);
	trail = RA_GRANULE - lead;
	if (lead)
		munmap(p, lead);
	if (trail)
		munmap(a->span + a->max_bytes, trail);
	rb_range_add(&a->range, a->span, a->max_bytes);
	return 0;
}

void ra_span_release(struct ra_arena *a)
{
	struct ra_region *r, *next;
	char *end = a->span + a->max_bytes;

	rb_range_remove(&a->range);
	/* Newest, and so highest, first: what lies above a kept region is unmapped before it is stepped over. */
	for (r = a->regions; r; r = next) {
		next = r->next;
		/* The addresses may serve something else soon, and unmapping does not clear the sanitizer's marks. */
		ra_unpoison(r->base, r->length);
		if (a->hooks.dereg(a->hooks.ctx, r->cookie)) {
			/* A device may still read or write there: the pages, and the addresses, must not be reused. */
			at_add(&nr_quarantined, 1);
			if (end > r->base + r->length)
				munmap(r->base + r->length, (size_t)(end - (r->base + r->length)));
			end = r->base;
		} else {
			rb_close(r->fd);
		}
		free(r);
	}
	a->regions = NULL;
	if (end > a->span)
		munmap(a->span, (size_t)(end - a->span));
}

/*
 * Takes [lo, lo + length) out of hole i. What alignment skips stays a hole; when there are too many, the smaller piece
 * is given up until the arena is destroyed.
 */
static void hole_take(struct ra_region *r, unsigned i, size_t lo, size_t length)
{
	struct ra_hole *h = &r->holes[i];
	struct ra_hole head = { h->lo, lo }, tail = { lo + length, h->hi };
	bool has_head = head.hi > head.lo, has_tail = tail.hi > tail.lo;

	if (has_head && has_tail && r->nr_holes == RA_MAX_HOLES) {
		if (head.hi - head.lo < tail.hi - tail.lo)
			has_head = false;
		else
			has_tail = false;
	}
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

void *ra_regions_carve(struct ra_arena *a, size_t length, size_t align)
{
	void *p = NULL;

	pthread_mutex_lock(&a->carve);
	for (struct ra_region *r = a->regions; r && !p; r = r->next) {
		for (unsigned i = 0; i < r->nr_holes; i++) {
			size_t lo = ra_round_up((uintptr_t)r->base + r->holes[i].lo, align) - (uintptr_t)r->base;

			if (lo >= r->holes[i].hi || r->holes[i].hi - lo < length)
				continue;
			hole_take(r, i, lo, length);
			p = r->base + lo;
			break;
		}
	}
	pthread_mutex_unlock(&a->carve);
	return p;
}

int ra_region_add(struct ra_arena *a, size_t length, size_t asked)
{
	size_t used = at_load(&a->region_bytes), left = a->max_bytes - used;
	size_t need = ra_round_up(length, RA_GRANULE), size = max_of(need, min_of(a->next_region, left));
	struct ra_region *r;
	int rc;

	assert(need <= RA_REGION_MAX); /* follows from RA_VALUE_MAX */
	if (need > left)
		return ra_fail(-ENOMEM, "value memory: asked %s, limit %s (%s), %s registered", ra_size_text(asked).text,
			       ra_size_text(a->max_bytes).text, a->option, ra_size_text(used).text);

	r = calloc(1, sizeof(*r));
	if (!r)
		return ra_fail(-ENOMEM, "value memory: no memory to describe a region");
	r->base = a->span + used;
	r->length = size;
	r->nr_holes = 1;
	r->holes[0] = (struct ra_hole){ 0, size };

	r->fd = RB_OPEN(memfd_create(a->name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (r->fd < 0) {
		rc = ra_fail(-ENOMEM, "value memory: %s", limit_why("memfd_create", errno, 0));
		goto free_region;
	}
	if (limit_file(size) || ftruncate(r->fd, (off_t)size)) {
		rc = ra_fail(-ENOMEM, "value memory: %s", limit_why("making a region", errno, size));
		goto close_fd;
	}
	/* A peer that is given the fd could otherwise shrink it, and our next store would be a SIGBUS. */
	if (fcntl(r->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
		rc = ra_fail(-ENOMEM, "value memory: %s", limit_why("sealing a memfd", errno, 0));
		goto close_fd;
	}
	if (mmap(r->base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, r->fd, 0) == MAP_FAILED) {
		rc = ra_fail(-ENOMEM, "value memory: %s", limit_why("mapping a region", errno, size));
		goto unmap_region; /* a failed MAP_FIXED may have taken the reservation away */
	}
	/* A child would keep the memory alive, and see it change. */
	rb_not_in_child(r->base, size);
	if (a->huge)
		madvise(r->base, size, MADV_HUGEPAGE); /* a wish: kernels without huge shmem pages say no */

	rc = a->hooks.reg(a->hooks.ctx, r->base, size, r->fd, &r->cookie);
	if (rc) {
		ra_fail(rc, "value memory: registering a region of %s: %s", ra_size_text(size).text, strerror(-rc));
		goto unmap_region;
	}
	ra_poison(r->base, size);
	ra_table_publish(a, r);
	at_store(&a->region_bytes, used + size);
	at_add(&a->nr_regions, 1);
	a->next_region = min_of(a->next_region * 2, RA_REGION_MAX);
	pthread_mutex_lock(&a->carve);
	r->next = a->regions;
	a->regions = r;
	pthread_mutex_unlock(&a->carve);
	return 0;

unmap_region:
	/* Back to reserved, not to free: nothing else may land inside the span. */
	mmap(r->base, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
close_fd:
	rb_close(r->fd);
free_region:
	free(r);
	return rc;
}
