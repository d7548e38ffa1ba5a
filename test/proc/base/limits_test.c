/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of the system. Each is set in its own process, which then asks the library for something.
 * It must work, or fail with an errno that the function's block lists. The text names the limit,
 * its value and the remedy.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "limits.h"

/* ---- RLIMIT_NOFILE: no number is left for the first, second, ... descriptor ---- */

/* Lowers the hard limit too, because rref_init raises the soft one. */
static void limit_descriptors(rlim_t n)
{
	TG_IS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ .rlim_cur = n, .rlim_max = n }), 0);
}

struct few {
	rlim_t n;
	int rank;
	bool by_name; /* the rendezvous' host is looked up by name */
};

/* Returns 0 if rref_init was refused with the expected error. */
static int few_descriptors(const void *arg)
{
	struct rref_options o = options();
	const struct few *few = arg;
	struct rref_ctx *ctx;
	char value[16];

	snprintf(value, sizeof(value), " %d ", (int)few->n);
	limit_descriptors(few->n);
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_NOFILE", value, "ulimit -n"))
		return 0;
	leave(ctx);
	return WORKED;
}

/* Joins as the rank of `few`, alone: with enough descriptors it waits at the rendezvous. */
static int few_at_rendezvous(const void *arg)
{
	struct rref_options o = options();
	const struct few *few = arg;
	struct rref_ctx *ctx;
	char place[64], named[80];
	int err;

	tg_free_place(place, sizeof(place));
	snprintf(named, sizeof(named), "localhost%s", strrchr(place, ':'));
	o.rank = few->rank;
	o.world_size = 2;
	o.rendezvous = few->by_name ? named : place;
	o.init_timeout = 300 * NSEC_PER_MSEC;
	limit_descriptors(few->n);
	err = rref_init(&o, &ctx);
	if (err == -ECONNREFUSED ||
	    (err == -ETIMEDOUT && strstr(rref_last_error(), "missing rank")))
		return WORKED;
	TG_CHECK(!works_or(err, -ENOMEM, "RLIMIT_NOFILE", "raise it", "ulimit -n"));
	return 0;
}

static void with_more_and_more(int (*fn)(const void *arg), int rank, bool by_name)
{
	int status = 0, refused = 0;

	for (rlim_t n = 3; n < 64 && status == 0; n++) {
		status = in_child(fn, &(struct few){ .n = n, .rank = rank, .by_name = by_name });
		refused += status == 0;
	}
	assert_int_equal(status, WORKED);
	assert_true(refused > 4);
}

static void init__few_descriptors(void **state)
{
	(void)state;
	with_more_and_more(few_descriptors, 0, false);
}

static void init__few_descriptors_at_the_rendezvous(void **state)
{
	(void)state;
	with_more_and_more(few_at_rendezvous, 0, false);
	with_more_and_more(few_at_rendezvous, 1, false);
	with_more_and_more(few_at_rendezvous, 0, true);
	with_more_and_more(few_at_rendezvous, 1, true);
}

static int few_later(const void *arg)
{
	struct rref_options o = options();
	struct rref_mem *mem;
	struct rref_ctx *ctx;
	struct rref *ref;
	void *at;
	int fd;

	(void)arg;
	TG_OK(rref_init(&o, &ctx));
	fd = open("/dev/null", O_RDONLY);
	TG_CHECK(fd >= 0);
	limit(RLIMIT_NOFILE, (rlim_t)fd);
	TG_CHECK(!works_or(rref_mem_alloc(ctx, 4096, &mem, &at), -ENOMEM, "RLIMIT_NOFILE", "of",
			   "ulimit -n"));
	TG_CHECK(!works_or(rref_alloc(ctx, 64 * MIB, &ref, &at), -ENOMEM, "RLIMIT_NOFILE", "of",
			   "ulimit -n"));
	limit(RLIMIT_NOFILE, 256);
	TG_OK(rref_alloc(ctx, 64 * MIB, &ref, &at));
	rref_release(ref);
	leave(ctx);
	return 0;
}

static void values__few_descriptors(void **state)
{
	(void)state;
	run_or_skip(few_later, NULL);
}

/* ---- RLIMIT_FSIZE: shared memory is a file ---- */

static int short_files(const void *arg)
{
	const rlim_t bytes = *(const rlim_t *)arg;
	struct rref_options o = options();
	struct rref *refs[64];
	struct rref_mem *mem;
	struct rref_ctx *ctx;
	int n = 0;
	void *at;

	limit(RLIMIT_FSIZE, bytes);
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_FSIZE", "limited to", "ulimit -f"))
		return 0;
	TG_CHECK(bytes >= MIB);
	TG_CHECK(!works_or(rref_mem_alloc(ctx, 65 * MIB, &mem, &at), -ENOMEM, "RLIMIT_FSIZE",
			   "limited to", "ulimit -f"));
	/* Values up to the bound: the limit allows the smallest region for them. */
	while (n < 8 && works_or(rref_alloc(ctx, 30 * MIB, &refs[n], &at), -ENOMEM,
				 bytes < 30 * MIB ? "RLIMIT_FSIZE" : "RREF_MAX_VALUE_BYTES", "MiB",
				 bytes < 30 * MIB ? "ulimit -f" : "limit 256 MiB"))
		n++;
	TG_IS(n > 5, bytes > 30 * MIB);
	TG_CHECK(n < 8);
	while (n)
		rref_release(refs[--n]);
	leave(ctx);
	return 0;
}

static void values__short_files(void **state)
{
	const rlim_t bytes[] = { 0, 1, 4096, 100000, MIB, 4 * MIB, 20 * MIB, 40 * MIB };

	(void)state;
	for (size_t i = 0; i < array_size(bytes); i++)
		run_or_skip(short_files, &bytes[i]);
}

/* Checks that the regions within the limit are enough for small values, up to the bound. */
static int small_values(const void *arg)
{
	struct rref_options o = options();
	struct rref *refs[150], *large;
	struct rref_ctx *ctx;
	void *at;

	(void)arg;
	o.region_bytes = 0;
	limit(RLIMIT_FSIZE, 4 * MIB);
	TG_OK(rref_init(&o, &ctx));
	for (size_t i = 0; i < array_size(refs); i++)
		TG_OK(rref_alloc(ctx, MIB, &refs[i], &at));
	TG_CHECK(!works_or(rref_alloc(ctx, 5 * MIB, &large, &at), -ENOMEM, "RLIMIT_FSIZE", "4 MiB",
			   "ulimit -f"));
	for (size_t i = 0; i < array_size(refs); i++)
		rref_release(refs[i]);
	leave(ctx);
	return 0;
}

static void values__small_in_short_files(void **state)
{
	(void)state;
	run_or_skip(small_values, NULL);
}

static int short_trace(const void *arg)
{
	char path[] = "/tmp/rref-limits-XXXXXX", *dir = mkdtemp(path), name[64];
	struct rref_options o = options();
	struct rref_ctx *ctx;
	struct stat st;

	(void)arg;
	TG_CHECK(dir);
	snprintf(name, sizeof(name), "%s/trace", path);
	o.trace = name;
	TG_OK(rref_init(&o, &ctx));
	limit(RLIMIT_FSIZE, 4096);
	for (int i = 0; i < 2000; i++)
		TG_OK(rref_rpc_sync(ctx, 0, "none", NULL, RREF_DEFAULT, NULL) == -ENOSYS ? 0
											 : -EIO);
	leave(ctx);
	strcat(name, ".0");
	TG_IS(stat(name, &st), 0);
	TG_CHECK(st.st_size <= 4096);
	unlink(name);
	rmdir(path);
	return 0;
}

static void trace__short_files(void **state)
{
	(void)state;
	run_or_skip(short_trace, NULL);
}

/* Reads need memory here as well. There is room again when the limit is raised. */
TG_TEST(reads__short_files, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 1) {
		struct rref *r = tg_ask(ctx, 0, "pub.make",
					(struct tg_make){ .length = 60 * MIB, .seed = 1 });
		struct rref_view *v;

		limit(RLIMIT_FSIZE, 30 * MIB);
		TG_CHECK(!works_or(rref_to_here_with(r, RREF_READ_COPY, RREF_DEFAULT, &v), -ENOMEM,
				   "RLIMIT_FSIZE",
				   "30 MiB", "ulimit -f"));
		limit(RLIMIT_FSIZE, RLIM_INFINITY);
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		rref_view_free(v);
		rref_release(r);
	}
	tg_meet_serving(ctx, 0);
	if (rank == 0)
		tg_drop_kept();
	tg_finish(ctx);
	return 0;
}

/* ---- RLIMIT_AS ---- */

static size_t addresses_in_use(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	TG_CHECK(f && fscanf(f, "%lu", &pages) == 1);
	fclose(f);
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static int few_addresses(const void *arg)
{
	const size_t more = *(const size_t *)arg;
	struct rref_options o = options();
	struct rref_ctx *ctx;
	struct rref *ref;
	void *at;

	limit(RLIMIT_AS, addresses_in_use() + more);
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_AS", "iB", "ulimit -v"))
		return 2;
	limit(RLIMIT_AS, addresses_in_use());
	for (int i = 0; i < 100000; i++)
		if (!works_or(rref_alloc(ctx, 4096, &ref, &at), -ENOMEM, "limit", "iB",
			      "ulimit -v"))
			break;
	limit(RLIMIT_AS, RLIM_INFINITY);
	leave(ctx);
	return 0;
}

static void init__few_addresses(void **state)
{
	bool refused = false, worked = false;

	(void)state;
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs its addresses\n");
		skip();
	}
	for (size_t more = 0; more < 2048 * MIB; more = more * 5 / 4 + 16 * 1024) {
		int status = in_child(few_addresses, &more);

		assert_true(status == 0 || status == 2);
		refused |= status == 2;
		worked |= status == 0;
	}
	assert_true(refused && worked);
}

/* ---- RLIMIT_NPROC ---- */

/* Leaves root, for whom the limit does not hold. */
static void become_nobody(void)
{
	if (getuid() == 0)
		TG_CHECK(!setgid(65534) && !setuid(65534));
}

static int few_threads(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	become_nobody();
	limit(RLIMIT_NPROC, 1);
	TG_CHECK(!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_NPROC", "is 1", "ulimit -u"));
	o.mode = RREF_PROGRESS_MANUAL;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	TG_IS(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EAGAIN);
	leave(ctx);
	return 0;
}

static void init__few_threads(void **state)
{
	(void)state;
	run_or_skip(few_threads, NULL);
}

/* ---- RLIMIT_DATA: too little for another thread's stack ---- */

static size_t data_in_use(void)
{
	size_t kib = 0;
	char line[256];
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmData: %zu", &kib) == 1)
			break;
	TG_CHECK(kib);
	fclose(f);
	return kib * 1024;
}

static int little_data(const void *arg)
{
	struct rref_options o = options();
	struct rref_ctx *ctx;

	(void)arg;
	o.mode = RREF_PROGRESS_MANUAL;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	limit(RLIMIT_DATA, data_in_use() + MIB);
	TG_CHECK(!works_or(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL), -EAGAIN,
			   "no thread for the call: pthread_create: ", "RLIMIT_DATA", "ulimit -d"));
	limit(RLIMIT_DATA, RLIM_INFINITY);
	TG_OK(rref_rpc_sync(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	leave(ctx);
	return 0;
}

static void calls__little_data(void **state)
{
	(void)state;
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs its memory\n");
		skip();
	}
	run_or_skip(little_data, NULL);
}

/* ---- RLIMIT_MEMLOCK: new memory counts against it after mlockall ---- */

/* Returns 0 if it was refused with the expected error. */
static int little_locked(const void *arg)
{
	const rlim_t bytes = *(const rlim_t *)arg;
	struct rref_options o = options();
	struct rlimit r;
	struct rref_ctx *ctx;
	struct rref *ref;
	void *at;

	TG_IS(getrlimit(RLIMIT_MEMLOCK, &r), 0);
	if (r.rlim_max != RLIM_INFINITY && r.rlim_max < bytes)
		return SKIPPED;
	r.rlim_cur = r.rlim_max = bytes;
	TG_IS(setrlimit(RLIMIT_MEMLOCK, &r), 0);
	become_nobody();
	if (mlockall(MCL_FUTURE))
		return SKIPPED;
	o.mode = RREF_PROGRESS_MANUAL;
	o.max_value_bytes = o.max_landing_bytes = 2 * MIB;
	if (!works_or(rref_init(&o, &ctx), -ENOMEM, "RLIMIT_MEMLOCK", "iB", "ulimit -l"))
		return 0;
	for (int i = 0; i < 100; i++)
		if (!works_or(rref_alloc(ctx, 1000000, &ref, &at), -ENOMEM, "imit", "iB", ""))
			break;
	leave(ctx);
	return WORKED;
}

static void init__little_locked_memory(void **state)
{
	int refused = 0, status;

	(void)state;
	if (NO_AS_LIMIT) {
		print_message("skipped: a sanitizer needs its memory\n");
		skip();
	}
	for (rlim_t bytes = 64 * 1024; bytes <= 256 * MIB; bytes = bytes * 5 / 4) {
		status = in_child(little_locked, &bytes);
		if (status != 0)
			break;
		refused++;
	}
	assert_true(status == WORKED || status == SKIPPED);
	assert_true(refused > 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(calls__little_data),
		cmocka_unit_test(init__few_addresses),
		cmocka_unit_test(init__few_descriptors),
		cmocka_unit_test(init__few_descriptors_at_the_rendezvous),
		cmocka_unit_test(init__few_threads),
		cmocka_unit_test(init__little_locked_memory),
		cmocka_unit_test(reads__short_files),
		cmocka_unit_test(trace__short_files),
		cmocka_unit_test(values__few_descriptors),
		cmocka_unit_test(values__short_files),
		cmocka_unit_test(values__small_in_short_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
