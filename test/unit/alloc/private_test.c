/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The private jemalloc of ra. The program's malloc stays as it was, no name of jemalloc is taken,
 * and the environment does not reach it. Its bookkeeping stays out of registered memory.
 */
#include <dlfcn.h>
#include <malloc.h>
#include <sys/wait.h>

#include "ra_test.h"

/* Defines the names of a program's own jemalloc: a second
 * definition of any of them fails to link. */
const char *malloc_conf, *malloc_conf_2_conf_harder;
void (*malloc_message)(void *, const char *);
#define OWN(name) \
	const char *name(void); \
	const char *name(void) { return #name; }
OWN(mallocx) OWN(rallocx) OWN(xallocx) OWN(sallocx) OWN(dallocx) OWN(sdallocx) OWN(nallocx)
OWN(mallctl) OWN(mallctlnametomib) OWN(mallctlbymib) OWN(malloc_stats_print)

/* alloc/ra_hooks.c */
int ra_je_mallctl(const char *name, void *oldp, size_t *oldlenp, void *newp, size_t newlen);

static bool opt_bool(const char *name)
{
	bool v = false;
	size_t len = sizeof(v);

	assert_int_equal(ra_je_mallctl(name, &v, &len, NULL, 0), 0);
	return v;
}

static ssize_t opt_ssize(const char *name)
{
	ssize_t v = 0;
	size_t len = sizeof(v);

	assert_int_equal(ra_je_mallctl(name, &v, &len, NULL, 0), 0);
	return v;
}

static void options__are_ours(void **state)
{
	(void)state;
	assert_false(opt_bool("opt.retain"));
	assert_false(opt_bool("opt.tcache"));
	assert_false(opt_bool("opt.zero"));
	assert_false(opt_bool("background_thread"));
	assert_int_equal(opt_ssize("opt.dirty_decay_ms"), -1);
	assert_int_equal(opt_ssize("opt.lg_extent_max_active_fit"), 64);
}

static const char *home_of(void *function)
{
	Dl_info info;

	assert_int_not_equal(dladdr(function, &info), 0);
	return info.dli_fname;
}

static void malloc__is_the_programs(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 0);
	void *base, *p = malloc(100);

	(void)state;
	must_alloc(a, 100, 0);
	assert_null(ra_lookup(a, p, &base));
#if !UNDER_SANITIZER
	if (!getenv("LD_PRELOAD")) {
		assert_non_null(strstr(home_of((void *)malloc), "libc.so"));
		assert_non_null(strstr(home_of((void *)free), "libc.so"));
		assert_int_equal(malloc_usable_size(p), 104); /* glibc's; jemalloc's class is 112 */
	}
#endif
	free(p);
	ra_arena_destroy(a);
}

/* The reason for arenas_create_ext: a plain arenas.create asks the hooks for its bookkeeping. */
struct je_hooks {
	void *(*alloc)(struct je_hooks *, void *, size_t, size_t, bool *, bool *, unsigned);
	void *rest[8];
};
static unsigned nr_hook_calls;

static void *count_alloc(struct je_hooks *h, void *new_addr, size_t size, size_t align, bool *zero,
			 bool *commit, unsigned index)
{
	(void)h, (void)new_addr, (void)size, (void)align, (void)zero, (void)commit, (void)index;
	nr_hook_calls++;
	return NULL;
}

static void metadata__plain_create_would_use_the_hooks(void **state)
{
	struct je_hooks hooks = { .alloc = count_alloc }, *h = &hooks;
	unsigned index;
	size_t len = sizeof(index);

	(void)state;
	assert_int_equal(ra_je_mallctl("arenas.create", &index, &len, &h, sizeof(h)), EAGAIN);
	assert_int_equal(nr_hook_calls, 1);
}

/*
 * Checks that no byte of a region is jemalloc's own. Values of one size fill the bound to the last
 * extent. Meanwhile the arena's bookkeeping grows by more than a block, in another place.
 */
static void metadata__is_outside_of_regions(void **state)
{
	struct dev d = { 0 };
	size_t max = 512 * MIB, extent = 20 * KIB, base = 0, n = 0, len = sizeof(base);
	struct ra_arena *a = arena_new(&d, max, max);
	uint64_t epoch = 1;
	unsigned index = 0;
	size_t index_len = sizeof(index);
	char name[64];
	void *p = NULL, *first = NULL;

	(void)state;
	assert_int_equal(d.nr_reg, 0); /* the arena exists, without a registration */
	while (ra_alloc(a, 16 * KIB, 0, &p) == 0) {
		first = first ? first : p;
		n++;
	}
	assert_int_equal(n, max / extent); /* 16 KiB and a page of cache colouring */
	assert_int_equal(ra_je_mallctl("arenas.lookup", &index, &index_len, &first, sizeof(first)),
			 0);
	assert_int_equal(ra_je_mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch)), 0);
	snprintf(name, sizeof(name), "stats.arenas.%u.base", index);
	assert_int_equal(ra_je_mallctl(name, &base, &len, NULL, 0), 0);
	assert_true(base > 2 * MIB);
	ra_arena_destroy(a);
}

/* Checks that ra tells the sanitizer of free memory, because jemalloc is opaque to it. */
static void asan__free_memory_is_poisoned(void **state)
{
	(void)state;
#if defined(__SANITIZE_ADDRESS__)
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
	char *p = must_alloc(a, 1000, 0), *region = d.regions[0].base;
	extern int __asan_address_is_poisoned(void const volatile *addr);

	assert_false(__asan_address_is_poisoned(p));
	assert_false(__asan_address_is_poisoned(p + 999));
	assert_true(__asan_address_is_poisoned(p + 1000));
	ra_free(a, p, 1000);
	assert_true(__asan_address_is_poisoned(p));
	assert_true(__asan_address_is_poisoned(p + 999));
	assert_true(__asan_address_is_poisoned(region + MIB));
	ra_arena_destroy(a);
	assert_false(__asan_address_is_poisoned(region)); /* the next mapping at this place */
#else
	print_message("skipped: only with SAN=address\n");
	skip();
#endif
}

/* Runs this program again in another environment. Its own tests of
 * options and malloc must hold there too. */
static int run_again(const char *variable, const char *value)
{
	int status = -1;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		setenv(variable, value, 1);
		execl("/proc/self/exe", "private_test", "again", (char *)NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void environment__malloc_conf_is_ignored(void **state)
{
	(void)state;
	assert_int_equal(run_again("MALLOC_CONF",
				   "retain:true,tcache:true,zero:true,dirty_decay_ms:0,"
				   "background_thread:true,lg_extent_max_active_fit:2"),
			 0);
}

static void environment__jemalloc_as_malloc(void **state)
{
	int rc;

	(void)state;
	if (UNDER_SANITIZER) {
		print_message("skipped: the sanitizer's malloc comes first\n");
		skip();
	}
	rc = run_again("LD_PRELOAD", "libjemalloc.so.2");
	if (rc == 77) {
		print_message("skipped: no libjemalloc.so.2 to preload\n");
		skip();
	}
	assert_int_equal(rc, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options__are_ours),
		cmocka_unit_test(malloc__is_the_programs),
		cmocka_unit_test(metadata__plain_create_would_use_the_hooks),
		cmocka_unit_test(metadata__is_outside_of_regions),
		cmocka_unit_test(asan__free_memory_is_poisoned),
		cmocka_unit_test(environment__malloc_conf_is_ignored),
		cmocka_unit_test(environment__jemalloc_as_malloc),
	};
	const struct CMUnitTest again[] = {
		cmocka_unit_test(options__are_ours),
		cmocka_unit_test(malloc__is_the_programs),
		cmocka_unit_test(metadata__is_outside_of_regions),
	};

	(void)argv;
	if (argc < 2)
		return cmocka_run_group_tests(tests, NULL, NULL);
	if (getenv("LD_PRELOAD") && !strstr(home_of((void *)malloc), "jemalloc"))
		return 77;
	return cmocka_run_group_tests(again, NULL, NULL);
}
