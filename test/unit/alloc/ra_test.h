/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the tests of ra: a device that only keeps books, and the process' resources. */
#ifndef RA_TEST_H
#define RA_TEST_H

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "alloc/ra.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER 1
#else
#define UNDER_SANITIZER 0
#endif

#define DEV_REGIONS 256

struct dev_region {
	void *base;
	size_t length;
	int fd;
	bool live;
};

/* reg and dereg are called under the arena's growth lock, or alone, so they need no lock. */
struct dev {
	struct dev_region regions[DEV_REGIONS];
	unsigned nr_reg, nr_dereg;  /* calls, failed ones too */
	unsigned nr_regions;        /* successful reg calls */
	unsigned fail_reg_at;       /* this call of reg fails, counted from 1; 0 = none */
	unsigned fail_dereg_at;
	int fail_errno;
	size_t most_bytes; /* longer regions are refused; 0: all are accepted */
};

static inline int dev_reg(void *ctx, void *base, size_t length, int fd, void **cookie)
{
	struct dev *d = ctx;
	struct dev_region *r = &d->regions[d->nr_regions];

	if (++d->nr_reg == d->fail_reg_at)
		return -d->fail_errno;
	if (d->most_bytes && length > d->most_bytes)
		return -ENOMEM;
	assert_true(d->nr_regions < DEV_REGIONS);
	*r = (struct dev_region){ base, length, fd, true };
	d->nr_regions++;
	*cookie = r;
	return 0;
}

static inline int dev_dereg(void *ctx, void *cookie)
{
	struct dev *d = ctx;
	struct dev_region *r = cookie;

	assert_true(r->live);
	r->live = false;
	return ++d->nr_dereg == d->fail_dereg_at ? -EBUSY : 0;
}

static inline struct ra_hooks dev_hooks(struct dev *d)
{
	return (struct ra_hooks){ dev_reg, dev_dereg, d };
}

static inline struct ra_arena *arena_new(struct dev *d, size_t max_bytes, size_t first_region)
{
	struct ra_options opt = { .max_bytes = max_bytes,
				  .first_region = first_region,
				  .name = "ra-test" };
	struct ra_hooks hooks = dev_hooks(d);
	struct ra_arena *a = NULL;

	assert_int_equal(ra_arena_create(&hooks, &opt, &a), 0);
	return a;
}

static inline void *must_alloc(struct ra_arena *a, size_t size, size_t align)
{
	void *p = NULL;
	int rc = ra_alloc(a, size, align, &p);

	if (rc)
		print_error("ra_alloc(%zu, %zu): %d, %s\n", size, align, rc, ra_error_text());
	assert_int_equal(rc, 0);
	assert_non_null(p);
	return p;
}

/* Fills memory with a pattern that differs with the value and with the
 * place in it, so that a stray byte shows. */
static inline void mark(void *p, size_t size, uint64_t seed)
{
	unsigned char *c = p;

	for (size_t i = 0; i < size; i++)
		c[i] = (unsigned char)((seed + i) * UINT64_C(0x9e3779b97f4a7c15) >> 56);
}

static inline bool marked(const void *p, size_t size, uint64_t seed)
{
	const unsigned char *c = p;

	for (size_t i = 0; i < size; i++)
		if (c[i] != (unsigned char)((seed + i) * UINT64_C(0x9e3779b97f4a7c15) >> 56))
			return false;
	return true;
}

static inline uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static inline unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* Counts the lines of /proc/self/maps with this text. */
static inline unsigned mappings(const char *what)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];
	unsigned n = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, what) != NULL;
	fclose(f);
	return n;
}

/* "VmSize:" or "VmRSS:", in bytes. */
static inline size_t status_bytes(const char *field)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	size_t kib = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, field, strlen(field)))
			kib = strtoul(line + strlen(field), NULL, 10);
	fclose(f);
	return kib * KIB;
}

#endif
