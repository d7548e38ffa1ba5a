/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Failures in ra: the N-th thing that can fail does, for each N until a run ends without reaching
 * it. This program replaces the calls that ra (and the jemalloc in it) makes.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "ra_test.h"

static bool armed;          /* only the main thread */
static unsigned fault_at;   /* counted from 1; 0 = none */
static unsigned nr_points;

static bool fault(void)
{
	return armed && ++nr_points == fault_at;
}

int memfd_create(const char *name, unsigned flags)
{
	if (fault()) {
		errno = EMFILE;
		return -1;
	}
	return (int)syscall(SYS_memfd_create, name, flags);
}

int ftruncate(int fd, off_t length)
{
	if (fault()) {
		errno = ENOSPC;
		return -1;
	}
	return (int)syscall(SYS_ftruncate, fd, length);
}

int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	if (fault()) {
		errno = EPERM;
		return -1;
	}
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

/* The sanitizers have their own definitions of these. */
#if !UNDER_SANITIZER
void *__libc_calloc(size_t n, size_t size);
void *__libc_memalign(size_t align, size_t size);

void *calloc(size_t n, size_t size)
{
	return fault() ? NULL : __libc_calloc(n, size);
}

void *aligned_alloc(size_t align, size_t size)
{
	return fault() ? NULL : __libc_memalign(align, size);
}

void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	/* No caller can act on a failure to give addresses back to the reservation. */
	bool unwinding = (flags & MAP_FIXED) && fd < 0;

	if (!unwinding && fault()) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}
#endif

static int reg(void *ctx, void *base, size_t length, int fd, void **cookie)
{
	return fault() ? -EDQUOT : dev_reg(ctx, base, length, fd, cookie);
}

/* The resources of a process, to compare before and after. */
struct held {
	unsigned fds, maps;
	size_t vm;
};

static struct held held(void)
{
	return (struct held){ open_fds(), mappings("/memfd:"), status_bytes("VmSize:") };
}

/*
 * Creates an arena, allocates until there are several regions, frees, and destroys. A failed
 * allocation is tried once more: a failure leaves the arena usable.
 */
static int scenario(struct dev *d, unsigned *nr_failed)
{
	struct ra_hooks hooks = { reg, dev_dereg, d };
	struct ra_options opt = { .max_bytes = 64 * MIB,
				  .first_region = 2 * MIB,
				  .name = "ra-test" };
	struct ra_arena *a = NULL;
	void *p[40] = { 0 }, *base;
	int rc, first_rc = 0;

	*nr_failed = 0;
	rc = ra_arena_create(&hooks, &opt, &a);
	if (rc) {
		assert_null(a);
		assert_int_equal(rc, -ENOMEM);
		assert_int_not_equal(strlen(ra_error_text()), 0);
		return rc;
	}
	for (unsigned i = 0; i < 40; i++) {
		size_t size = i % 4 ? MIB : 100;

		rc = ra_alloc(a, size, 0, &p[i]);
		if (rc) {
			assert_null(p[i]);
			assert_true(rc == -ENOMEM || rc == -EDQUOT);
			assert_non_null(strstr(ra_error_text(), "value memory: "));
			/* not the bound: the failed call */
			assert_null(strstr(ra_error_text(), "limit 64 MiB"));
			++*nr_failed;
			first_rc = rc;
			p[i] = must_alloc(a, size, 0);
		}
		mark(p[i], 100, i);
	}
	for (unsigned i = 0; i < 40; i++) {
		size_t size = i % 4 ? MIB : 100;

		assert_non_null(ra_lookup(a, p[i], &base));
		assert_true(marked(p[i], 100, i));
		ra_free(a, p[i], size);
	}
	ra_arena_destroy(a);
	return first_rc;
}

static void faults__each_point_in_turn(void **state)
{
	struct held before, after;
	unsigned n, failed, seen_enomem = 0, seen_reg = 0, nr_create = 0;
	static struct dev d;

	(void)state;
	memset(&d, 0, sizeof(d));
	scenario(&d, &failed); /* the lasting set-up of a process' first arena */
	before = held();
	for (n = 1;; n++) {
		int rc;

		memset(&d, 0, sizeof(d));
		fault_at = n;
		nr_points = 0;
		armed = true;
		rc = scenario(&d, &failed);
		armed = false;
		assert_int_equal(d.nr_dereg, d.nr_regions);
		after = held();
		assert_int_equal(after.fds, before.fds);
		assert_int_equal(after.maps, before.maps);
		assert_true(after.vm <= before.vm + 2 * MIB);
		if (nr_points < n)
			break;
		if (rc == -EDQUOT)
			seen_reg++;
		else if (rc == -ENOMEM && failed)
			seen_enomem++;
		else if (rc == -ENOMEM)
			nr_create++;
		assert_true(failed <= 1);
	}
	print_message("%u fault points: %u fail a create, %u an allocation, %u a registration\n",
		      n - 1, nr_create, seen_enomem, seen_reg);
	assert_true(seen_reg >= 4); /* 2 4 8 16 .. MiB */
	/*
	 * If a larger region than needed fails, a smaller one replaces it. At least one has the
	 * smallest size, and has three calls that can fail.
	 */
	assert_true(seen_enomem >= 3);
	assert_true(UNDER_SANITIZER || nr_create >= 3);
}

static void reg__errno_passes(void **state)
{
	struct ra_stats st;

	(void)state;
	for (unsigned n = 1; n <= 5; n++) {
		struct dev d = { .fail_reg_at = n, .fail_errno = EPERM };
		struct ra_arena *a = arena_new(&d, 62 * MIB, 2 * MIB);
		void *p = NULL;
		unsigned live = 0;
		int rc;

		while ((rc = ra_alloc(a, MIB / 2, 0, &p)) == 0)
			live++;
		assert_int_equal(rc, -EPERM);
		assert_non_null(strstr(ra_error_text(), "registering a region of"));
		assert_int_equal(d.nr_reg, n); /* a failed allocation asks the device once */
		ra_stats(a, &st);
		assert_int_equal(st.nr_regions, n - 1);
		assert_int_equal(st.nr_live, live);
		assert_int_equal(st.region_bytes, (((size_t)1 << (n - 1)) - 1) * 2 * MIB);
		assert_int_equal(mappings("/memfd:ra-test"), n - 1);
		must_alloc(a, MIB / 2, 0); /* the device has recovered */
		ra_stats(a, &st);
		assert_int_equal(st.nr_regions, n);
		ra_arena_destroy(a);
		assert_int_equal(mappings("/memfd:ra-test"), 0);
	}
}

/* Keeps a region mapped, with its fd, if the device refuses to
 * deregister it; everything else goes. */
static void dereg__failure_quarantines(void **state)
{
	unsigned fds = open_fds();
	struct ra_stats st;
	uint64_t before;

	(void)state;
	for (unsigned n = 1; n <= 3; n++) {
		struct dev d = { .fail_dereg_at = n };
		struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
		char *base;
		unsigned kept;

		ra_stats(a, &st);
		before = st.nr_quarantined;
		while (d.nr_regions < 3)
			mark(must_alloc(a, MIB / 2, 0), 4096, 1);
		ra_arena_destroy(a);
		assert_int_equal(d.nr_dereg, 3);
		kept = 3 - n; /* newest first */
		base = d.regions[kept].base;
		assert_int_equal(open_fds(), fds + n);
		assert_int_equal(mappings("/memfd:ra-test"), n);
		memset(base, 1, d.regions[kept].length); /* a device may still do so */
		assert_int_equal(fcntl(d.regions[kept].fd, F_GETFD), FD_CLOEXEC);

		memset(&d, 0, sizeof(d));
		a = arena_new(&d, 64 * MIB, 2 * MIB);
		ra_stats(a, &st);
		assert_int_equal(st.nr_quarantined, before + 1);
		must_alloc(a, MIB, 0);
		assert_ptr_not_equal(d.regions[0].base, base);
		ra_arena_destroy(a);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(faults__each_point_in_turn),
		cmocka_unit_test(reg__errno_passes),
		cmocka_unit_test(dereg__failure_quarantines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
