/* SPDX-License-Identifier: Apache-2.0 */
/* ra, one arena and one thread: sizes, contents, look-up, the bound, reuse. */
#include <fcntl.h>
#include <sys/mman.h>

#include "ra_test.h"

static void create__bad_arguments(void **state)
{
	struct dev d = { 0 };
	struct ra_hooks hooks = dev_hooks(&d), no_reg = hooks, no_dereg = hooks;
	struct ra_options opt = { .max_bytes = (size_t)1 << 60 };
	struct ra_arena *a = NULL;

	(void)state;
	no_reg.reg = NULL;
	no_dereg.dereg = NULL;
	assert_int_equal(ra_arena_create(NULL, NULL, &a), -EINVAL);
	assert_int_equal(ra_arena_create(&no_reg, NULL, &a), -EINVAL);
	assert_int_equal(ra_arena_create(&no_dereg, NULL, &a), -EINVAL);
	assert_int_equal(ra_arena_create(&hooks, NULL, NULL), -EINVAL);
	assert_int_equal(ra_arena_create(&hooks, &opt, &a), -EINVAL);
	assert_non_null(strstr(ra_error_text(), "beyond the address space"));
	assert_null(a);
	ra_arena_destroy(NULL);
}

static void create__defaults(void **state)
{
	struct dev d = { 0 };
	struct ra_hooks hooks = dev_hooks(&d);
	struct ra_arena *a = NULL;
	struct ra_stats st;

	(void)state;
	assert_int_equal(ra_arena_create(&hooks, NULL, &a), 0);
	ra_stats(a, &st);
	assert_int_equal(st.region_bytes, 0); /* an arena that is never used registers nothing */
	assert_in_range(st.max_bytes, 64 * MIB, (size_t)1 << 46);
	must_alloc(a, 1, 0);
	assert_int_equal(d.regions[0].length, 16 * MIB);
	assert_int_equal(mappings("/memfd:rref"), 1);
	ra_arena_destroy(a);
	assert_int_equal(mappings("/memfd:rref"), 0);
}

static void alloc__bad_arguments(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 0);
	void *p = NULL;

	(void)state;
	assert_int_equal(ra_alloc(a, 0, 64, &p), -EINVAL);
	assert_int_equal(ra_alloc(a, 1, 3, &p), -EINVAL);
	assert_int_equal(ra_alloc(a, 1, 4 * MIB, &p), -EINVAL);
	assert_null(p);
	assert_int_equal(d.nr_reg, 0);
	ra_free(a, NULL, 0);
	ra_arena_destroy(a);
}

/* Allocates every size and alignment at once, so that an overlap shows in a neighbour's pattern. */
static void alloc__sizes_and_alignments(void **state)
{
	static const size_t aligns[] = { 0, 1, 64, 256, 4096, 64 * KIB, 2 * MIB };
	struct { void *p; size_t size; } v[1024];
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 2 * GIB, 0);
	struct ra_stats st;
	unsigned n = 0;
	size_t live = 0;

	(void)state;
	for (size_t base = 1; base <= 64 * MIB; base *= 2) {
		for (unsigned i = 0; i < 3; i++) {
			size_t size = i == 0 ? base : i == 1 ? base + 1 : base - (base > 1);

			for (unsigned k = 0; k < sizeof(aligns) / sizeof(*aligns); k++) {
				size_t align = aligns[k] < 64 ? 64 : aligns[k];

				if (size > MIB && k % 3)
					continue; /* enough; they are slow to write */
				if (size >= 32 * MIB && (i || k))
					continue;
				v[n].size = size;
				v[n].p = must_alloc(a, size, aligns[k]);
				assert_int_equal((uintptr_t)v[n].p % align, 0);
				mark(v[n].p, size, n);
				live += size;
				n++;
			}
		}
	}
	ra_stats(a, &st);
	assert_int_equal(st.nr_live, n);
	assert_int_equal(st.live_bytes, live);
	for (unsigned i = 0; i < n; i++)
		assert_true(marked(v[i].p, v[i].size, i));
	for (unsigned i = 0; i < n; i++) {
		struct dev_region *r;
		void *base = NULL, *last = (char *)v[i].p + v[i].size - 1;

		r = ra_lookup(a, v[i].p, &base);
		assert_non_null(r);
		assert_ptr_equal(base, r->base);
		assert_ptr_equal(ra_lookup(a, last, &base), r); /* no key spans two regions */
		assert_true((char *)v[i].p >= (char *)r->base &&
			    (char *)last < (char *)r->base + r->length);
	}
	for (unsigned i = 0; i < n; i += 2)
		ra_free(a, v[i].p, v[i].size);
	for (unsigned i = 1; i < n; i += 2)
		assert_true(marked(v[i].p, v[i].size, i));
	for (unsigned i = 1; i < n; i += 2)
		ra_free(a, v[i].p, v[i].size);
	ra_stats(a, &st);
	assert_int_equal(st.nr_live, 0);
	assert_int_equal(st.live_bytes, 0);
	assert_int_equal(st.nr_allocs, n);
	assert_int_equal(st.nr_frees, n);
	ra_arena_destroy(a);
	assert_int_equal(d.nr_dereg, d.nr_regions);
}

static void lookup__foreign_addresses(void **state)
{
	struct dev d = { 0 }, d2 = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 4 * MIB),
			*b = arena_new(&d2, 64 * MIB, 4 * MIB);
	void *p = must_alloc(a, 100, 0), *q = must_alloc(b, 100, 0), *heap = malloc(100),
	     *base = state;
	char *start = d.regions[0].base;

	assert_null(ra_lookup(a, &p, &base));
	assert_null(ra_lookup(a, heap, &base));
	assert_null(ra_lookup(a, NULL, &base));
	assert_null(ra_lookup(a, (void *)UINTPTR_MAX, &base));
	assert_null(ra_lookup(a, q, &base));
	assert_null(ra_lookup(b, p, &base));
	assert_null(ra_lookup(a, start - 1, &base));         /* just below the span */
	assert_null(ra_lookup(a, start + 4 * MIB, &base));   /* in the span, after its regions */
	assert_null(ra_lookup(a, start + 64 * MIB - 1, &base));
	assert_null(ra_lookup(a, start + 64 * MIB, &base));  /* just above it */
	assert_ptr_equal(base, state);                       /* untouched */
	assert_non_null(ra_lookup(a, start, &base));
	assert_non_null(ra_lookup(a, start + 4 * MIB - 1, &base));
	free(heap);
	ra_arena_destroy(a);
	ra_arena_destroy(b);
}

static void regions__double_within_limits(void **state)
{
	struct dev d = { 0 };
	/* rounded down to 100, and up to 4 MiB */
	struct ra_arena *a = arena_new(&d, 100 * MIB + 1, 3 * MIB);
	size_t total = 0, expect = 4 * MIB;
	struct ra_stats st;
	void *p;

	(void)state;
	while (ra_alloc(a, MIB, 0, &p) == 0)
		;
	ra_stats(a, &st);
	assert_int_equal(st.max_bytes, 100 * MIB);
	assert_int_equal(st.region_bytes, 100 * MIB);
	assert_int_equal(st.nr_regions, 5); /* 4 8 16 32 and the rest */
	for (unsigned i = 0; i < d.nr_regions; i++) {
		assert_int_equal((uintptr_t)d.regions[i].base % (2 * MIB), 0);
		assert_int_equal(d.regions[i].length % (2 * MIB), 0);
		assert_int_equal(d.regions[i].length, i < 4 ? expect : 40 * MIB);
		expect *= 2;
		total += d.regions[i].length;
	}
	assert_int_equal(total, st.region_bytes);
	ra_arena_destroy(a);
}

static void regions__at_most_2_gib(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 16 * GIB, GIB);
	void *p[8], *q = NULL;
	unsigned n = 0;

	(void)state;
	while (n < 8 && ra_alloc(a, RA_VALUE_MAX, n % 2 ? RA_ALIGN_MAX : 0, &p[n]) == 0)
		n++; /* memory that is not touched costs nothing */
	assert_in_range(n, 7, 8);
	for (unsigned i = 0; i < d.nr_regions; i++)
		assert_in_range(d.regions[i].length, 2 * MIB, RA_REGION_MAX);
	for (unsigned i = 0; i < n; i++) {
		memcpy(p[i], "a", 1);
		memcpy((char *)p[i] + RA_VALUE_MAX - 1, "z", 1);
	}
	assert_int_equal(ra_alloc(a, RA_VALUE_MAX + 1, 0, &q), -ENOMEM);
	assert_non_null(strstr(ra_error_text(), "a value is limited to 1792 MiB here"));
	assert_null(q);
	ra_arena_destroy(a);
}

/* Limits the size of one region. All memory can still be used, except for larger values. */
static void regions__of_a_limited_size(void **state)
{
	struct dev d = { .most_bytes = 4 * MIB };
	struct ra_arena *a = arena_new(&d, 32 * MIB, 16 * MIB);
	void *p[24], *q = NULL;

	(void)state;
	for (unsigned i = 0; i < 24; i++) {
		p[i] = must_alloc(a, MIB, 0);
		mark(p[i], 100, i);
	}
	assert_int_equal(ra_alloc(a, 5 * MIB, 0, &q), -ENOMEM);
	for (unsigned i = 0; i < 24; i++) {
		assert_true(marked(p[i], 100, i));
		ra_free(a, p[i], MIB);
	}
	d.most_bytes = 0;
	q = must_alloc(a, 20 * MIB, 0);
	ra_free(a, q, 20 * MIB);
	ra_arena_destroy(a);
}

/* Checks the memory that peers on the same machine map. Bytes stored through the mapping are in the
 * file, from offset 0. */
static void regions__are_memfds(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 4 * MIB);
	char *p = must_alloc(a, 3 * MIB, 0), path[64], target[64];
	unsigned char *copy = malloc(3 * MIB);
	ssize_t n;
	int fd;

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		must_alloc(a, 3 * MIB, 0);
	for (unsigned i = 0; i < d.nr_regions; i++) {
		fd = d.regions[i].fd;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		assert_true(n > 0);
		target[n] = 0;
		assert_non_null(strstr(target, "/memfd:ra-test"));
		assert_int_equal(lseek(fd, 0, SEEK_END), d.regions[i].length);
		assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	}
	mark(p, 3 * MIB, 7);
	fd = d.regions[0].fd;
	assert_int_equal(pread(fd, copy, 3 * MIB, p - (char *)d.regions[0].base), 3 * MIB);
	assert_true(marked(copy, 3 * MIB, 7));

	/* A holder of the fd cannot cut the owner's memory off, but may seal further. */
	assert_int_equal(ftruncate(fd, 2 * MIB), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	p[0] = 'x';
	free(copy);
	ra_arena_destroy(a);
}

static void regions__huge_pages(void **state)
{
	struct dev d = { 0 };
	struct ra_hooks hooks = dev_hooks(&d);
	struct ra_options opt = { .max_bytes = 64 * MIB, .huge = 1 };
	struct ra_arena *a = NULL;
	void *p;

	(void)state;
	assert_int_equal(ra_arena_create(&hooks, &opt, &a), 0);
	p = must_alloc(a, 8 * MIB, 0);
	mark(p, 8 * MIB, 1);
	assert_true(marked(p, 8 * MIB, 1));
	ra_arena_destroy(a);
}

static void bound__text_and_reuse(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 60 * MIB);
	void *p[64], *q = NULL;
	unsigned n = 0, nr_reg;

	(void)state;
	while (n < 64 && ra_alloc(a, 3 * MIB, 0, &p[n]) == 0)
		n++;
	/* 62 MiB, a granule more than needed, hold 20 values; the
	 * last 2 MiB of the bound hold none. */
	assert_int_equal(n, 20);
	assert_int_equal(ra_alloc(a, 5 * MIB, 0, &q), -ENOMEM);
	assert_string_equal(ra_error_text(),
			    "value memory: asked 5 MiB, limit 64 MiB (max_bytes), 62 MiB "
			    "registered");
	assert_null(q);
	/* The size is below the bound, but too large for it: the text has the reason. */
	assert_int_equal(ra_alloc(a, 60 * MIB, 0, &q), -ENOMEM);
	assert_string_equal(ra_error_text(),
			    "value memory: asked 60 MiB, for which a region of 66 MiB is needed, "
			    "limit 64 MiB (max_bytes)");
	nr_reg = d.nr_reg;
	for (unsigned round = 0; round < 100; round++) {
		ra_free(a, p[round % n], 3 * MIB);
		p[round % n] = must_alloc(a, 3 * MIB, 0);
	}
	assert_int_equal(d.nr_reg, nr_reg);
	must_alloc(a, 1 * MIB, 0); /* the rest still serves smaller values */
	ra_arena_destroy(a);
}

/* Checks that free space is one space: memory of small values
 * serves large ones, and the reverse. */
static void bound__free_memory_merges(void **state)
{
	static void *p[400000];
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 32 * MIB, 32 * MIB);
	void *big;
	unsigned n;

	(void)state;
	for (unsigned round = 0; round < (UNDER_SANITIZER ? 1 : 3); round++) {
		for (size_t size = 64; size <= 3 * MIB; size *= 3) {
			for (n = 0; n < 400000 && ra_alloc(a, size, 0, &p[n]) == 0; n++)
				;
			assert_true(n * size >= 20 * MIB);
			for (unsigned i = 0; i < n; i++)
				/* n is no multiple of that prime */
				ra_free(a, p[(i * 7919ul) % n], size);
			assert_int_not_equal(n % 7919, 0);
			big = must_alloc(a, 24 * MIB, 0);
			ra_free(a, big, 24 * MIB);
		}
	}
	assert_int_equal(d.nr_reg, 1);
	ra_arena_destroy(a);
}

/* Fills regions that are neighbours in the span, which jemalloc would like to merge. */
static void bound__never_merges_across_regions(void **state)
{
	static void *p[64 * MIB / 4096];
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
	void *base, *q = NULL;
	size_t n = 0;

	(void)state;
	while (n < 64 * MIB / 4096 && ra_alloc(a, 4096, 0, &p[n]) == 0)
		n++;
	/* up to the last page, so that free extents touch across regions */
	assert_int_equal(n, 64 * MIB / 4096);
	assert_int_equal(d.nr_regions, 6);    /* 2 4 8 16 32 and 2 */
	while (n > 0)
		ra_free(a, p[--n], 4096);
	for (size_t size = 27 * MIB; size > 4 * KIB; size -= size / 3) {
		if (ra_alloc(a, size, 0, &q))
			continue;
		assert_ptr_equal(ra_lookup(a, q, &base), ra_lookup(a, (char *)q + size - 1, &base));
		ra_free(a, q, size);
	}
	assert_int_equal(d.nr_dereg, 0);
	ra_arena_destroy(a);
}

/* Fills the arena with pieces of 4 KiB, and frees all but the first, which it returns. */
static void *filled_and_freed(struct ra_arena *a)
{
	static void *p[64 * MIB / 4096];
	size_t n = 0;

	while (n < 64 * MIB / 4096 && ra_alloc(a, 4096, 0, &p[n]) == 0)
		n++;
	assert_int_equal(n, 64 * MIB / 4096);
	while (n > 1)
		ra_free(a, p[--n], 4096);
	return p[0];
}

/* Frees everything, so that no single region has enough room. The regions are deregistered and
 * unmapped, and one new region gets their bytes. */
static void bound__empty_regions_are_given_back(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
	struct ra_stats st;
	void *base, *q = NULL;

	(void)state;
	for (int round = 0; round < 20; round++) {
		ra_free(a, filled_and_freed(a), 4096);
		q = must_alloc(a, 55 * MIB, 0);
		mark(q, 55 * MIB, 1);
		ra_stats(a, &st);
		assert_true(st.region_bytes <= 64 * MIB);
		assert_int_equal(st.nr_regions, d.nr_regions - d.nr_dereg);
		assert_int_equal(mappings("/memfd:ra-test"), st.nr_regions);
		assert_non_null(ra_lookup(a, q, &base));
		assert_true(base <= q);
		ra_free(a, q, 55 * MIB);
	}
	ra_arena_destroy(a);
	assert_int_equal(d.nr_dereg, d.nr_regions);
	assert_int_equal(mappings("/memfd:ra-test"), 0);
}

/* Keeps one value: its region and its bytes stay. The other regions go, and a value that does not
 * fit beside it is refused. */
static void bound__regions_in_use_stay(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
	void *kept = filled_and_freed(a), *base, *q = NULL;
	struct dev_region *r = ra_lookup(a, kept, &base);
	size_t left = 56 * MIB; /* the class below; the next is 64 MiB */

	(void)state;
	mark(kept, 4096, 7);
	assert_int_equal(ra_alloc(a, left + MIB, 0, &q), -ENOMEM);
	assert_non_null(strstr(ra_error_text(), "limit 64 MiB"));
	assert_true(r->live);
	q = must_alloc(a, left - MIB, 0);
	mark(q, left - MIB, 8);
	assert_true(marked(kept, 4096, 7));
	assert_true(r->live);
	ra_arena_destroy(a);
	assert_int_equal(d.nr_dereg, d.nr_regions);
}

/* Lets the device keep an empty region registered. The region and its bytes stay, and the device is
 * asked again at the end. */
static void bound__empty_region_stays_registered(void **state)
{
	struct dev d = { .fail_dereg_at = 2 }; /* the 32 MiB region, the last but one */
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
	struct ra_stats st;
	void *q = NULL;

	(void)state;
	ra_free(a, filled_and_freed(a), 4096);
	assert_int_equal(ra_alloc(a, 55 * MIB, 0, &q), -ENOMEM);
	for (unsigned i = 0; i < d.nr_regions; i++)
		d.regions[i].live = true; /* asked again later */
	ra_stats(a, &st);
	assert_int_equal(st.nr_regions, 1);
	ra_free(a, must_alloc(a, 4096, 0), 4096);
	ra_arena_destroy(a);
	assert_int_equal(mappings("/memfd:ra-test"), 0);
}

/* Measures the waste for a value of a power of two with its header, which is a line more. */
static void waste__powers_of_two_and_a_line(void **state)
{
	static void *p[256 * MIB / 4096];

	(void)state;
	for (size_t size = 4 * KIB; size <= 16 * MIB; size *= 2) {
		struct dev d = { 0 };
		struct ra_arena *a = arena_new(&d, 256 * MIB, 2 * MIB);
		size_t n = 0, of_old = 0;

		while (n < 256 * MIB / 4096 && ra_alloc(a, size + 64, 64, &p[n]) == 0) {
			mark(p[n], 64, n);
			memcpy((char *)p[n] + size, &n, sizeof(n));
			n++;
		}
		if (256 * MIB / n > size + size * 8 / 100)
			fail_msg("%zu bytes take %zu", size, 256 * MIB / n);
		/* All are apart, and whole. */
		for (size_t i = 0; i < n; i++)
			of_old += marked(p[i], 64, i) &&
				!memcmp((char *)p[i] + size, &i, sizeof(i));
		assert_int_equal(of_old, n);
		/* Every other one goes and comes again: nothing more is registered. */
		for (size_t i = 0; i < n; i += 2)
			ra_free(a, p[i], size + 64);
		for (size_t i = 0; i < n; i += 2)
			p[i] = must_alloc(a, size + 64, 64);
		for (size_t i = 0; i < n; i++)
			ra_free(a, p[i], size + 64);
		/* All memory serves one size, and then another: no slab stays in its way. */
		ra_free(a, must_alloc(a, 100 * MIB, 64), 100 * MIB);
		ra_arena_destroy(a);
	}
}

/* Allocates sizes around these, of all alignments, one after the other
 * in random order. No two pieces overlap. */
static void waste__nothing_overlaps(void **state)
{
	enum { SLOTS = 400 };
	struct { unsigned char *p; size_t size; unsigned seed; } v[SLOTS] = { 0 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
	uint64_t seed = 7;

	(void)state;
	for (unsigned i = 0; i < 60000; i++) {
		unsigned k = (unsigned)(rnd(&seed) % SLOTS), lg = 6 + (unsigned)(rnd(&seed) % 11);
		size_t size = ((size_t)1 << lg) - 70 + rnd(&seed) % 210 % ((size_t)1 << lg);
		size_t align = rnd(&seed) % 8 ? 64 : (size_t)64 << rnd(&seed) % 8;

		if (lg == 6)
			size = 1 + rnd(&seed) % 200;
		if (v[k].p) {
			assert_true(v[k].p[0] == (unsigned char)v[k].seed &&
				    v[k].p[v[k].size - 1] == (unsigned char)v[k].seed);
			ra_free(a, v[k].p, v[k].size);
		}
		v[k].p = must_alloc(a, size, align);
		assert_int_equal((uintptr_t)v[k].p % align, 0);
		v[k].size = size;
		v[k].seed = i;
		memset(v[k].p, (int)i, size);
	}
	ra_arena_destroy(a);
}

static void steady_state__registers_nothing(void **state)
{
	enum { SLOTS = 256 };
	struct { void *p; size_t size; } v[SLOTS] = { 0 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, GIB, 0);
	unsigned pairs = UNDER_SANITIZER ? 200000 : 1000000, warm = pairs / 5, nr_reg = 0;
	uint64_t seed = 42;

	(void)state;
	for (unsigned i = 0; i < pairs; i++) {
		unsigned k = (unsigned)(rnd(&seed) % SLOTS);
		/* up to 256 KiB */
		size_t size = 1 + rnd(&seed) % ((size_t)1 << (4 + rnd(&seed) % 15));

		if (i == warm)
			nr_reg = d.nr_reg;
		ra_free(a, v[k].p, v[k].size);
		v[k].p = must_alloc(a, size, 0);
		v[k].size = size;
	}
	assert_int_equal(d.nr_reg, nr_reg);
	assert_int_equal(nr_reg, 1); /* 256 values of 17 KiB on average */
	ra_arena_destroy(a);
}

static void steady_state__one_value(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);

	(void)state;
	for (unsigned i = 0; i < 1000000; i++)
		ra_free(a, must_alloc(a, 4096, 0), 4096);
	assert_int_equal(d.nr_reg, 1);
	ra_arena_destroy(a);
}

static void destroy__with_values_alive(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 256 * MIB, 2 * MIB);

	(void)state;
	for (size_t size = 1; size <= 32 * MIB; size *= 2)
		mark(must_alloc(a, size, 0), size, size);
	ra_arena_destroy(a);
	assert_true(d.nr_regions >= 4);
	assert_int_equal(d.nr_dereg, d.nr_regions);
	assert_int_equal(mappings("/memfd:ra-test"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(create__bad_arguments),
		cmocka_unit_test(create__defaults),
		cmocka_unit_test(alloc__bad_arguments),
		cmocka_unit_test(alloc__sizes_and_alignments),
		cmocka_unit_test(lookup__foreign_addresses),
		cmocka_unit_test(regions__double_within_limits),
		cmocka_unit_test(regions__at_most_2_gib),
		cmocka_unit_test(regions__are_memfds),
		cmocka_unit_test(regions__of_a_limited_size),
		cmocka_unit_test(regions__huge_pages),
		cmocka_unit_test(bound__text_and_reuse),
		cmocka_unit_test(bound__free_memory_merges),
		cmocka_unit_test(bound__empty_region_stays_registered),
		cmocka_unit_test(bound__empty_regions_are_given_back),
		cmocka_unit_test(bound__never_merges_across_regions),
		cmocka_unit_test(bound__regions_in_use_stay),
		cmocka_unit_test(waste__nothing_overlaps),
		cmocka_unit_test(waste__powers_of_two_and_a_line),
		cmocka_unit_test(steady_state__registers_nothing),
		cmocka_unit_test(steady_state__one_value),
		cmocka_unit_test(destroy__with_values_alive),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
