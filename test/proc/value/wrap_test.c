/* SPDX-License-Identifier: Apache-2.0 */
/* Values that wrap memory which the program registered. They are read in place, in all sizes and
 * ways; there are refusals, too. */
#include <linux/capability.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "lent.h"

static const size_t sizes[] = {
	1, 7, 8, 63, 64, 65, 1000, 4096, 64 * KIB - 64, 64 * KIB, 128 * KIB - 64, 128 * KIB,
	128 * KIB + 1, 256 * KIB, 300001,
	MIB + 3, 5 * MIB - 1,
};

static void all_sizes(struct rref_ctx *ctx, bool own)
{
	struct lent l;

	lend(ctx, &l, 6 * MIB, own, 3);
	for (size_t i = 0; i < array_size(sizes); i++) {
		struct range w = { .offset = i * 37 + 1, .length = sizes[i], .seed = 3 };
		struct rref *r = wrap(&l, w.offset, w.length);
		struct rref_view *v;

		/* The local value is the memory itself. */
		TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
		TG_CHECK(rref_view_data(v) == l.at + w.offset && rref_view_length(v) == w.length);
		rref_view_free(v);
		for (w.by = 0; w.by < 3; w.by++) {
			read_there(ctx, 1, r, w);
			read_there(ctx, 0, r, w); /* reads in a call to itself */
		}
		TG_IS(tg_stats(ctx).wrapped_bytes, w.length);
		TG_IS(tg_stats(ctx).value_bytes, 64);
		rref_release(r);
		until_back(ctx, &l);
		atomic_store(&l.back, 0);
	}
	TG_IS(tg_stats(ctx).wrapped_bytes, 0);
	give_up(&l);
}

TG_TEST(wrap__sizes_and_ways_of_reading, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		uint64_t regions = tg_stats(ctx).nr_regions, bytes = tg_stats(ctx).registered_bytes;

		for (int own = 0; own <= !tg_is_shm(); own++)
			all_sizes(ctx, own);
		/* Headers and landing memory used the library's own regions. */
		TG_CHECK(tg_stats(ctx).nr_regions - regions <= 3);
		TG_CHECK(tg_stats(ctx).registered_bytes >= bytes);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Shm allows reads of a gigabyte. A smaller limit makes it read wrapped memory in pieces too. */
TG_TEST(wrap__in_pieces_above_the_largest_message, 2)
{
	TG_IS(setenv("RREF_SHM_MAX_MSG", "5000", 1), 0);
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent l;

		lend(ctx, &l, MIB, !tg_is_shm(), 9);
		struct rref *r = wrap(&l, 5, MIB - 5);

		for (uint32_t by = 1; by < 3; by++)
			read_there(ctx, 1, r,
				   (struct range){
					   .offset = 5, .length = MIB - 5, .seed = 9, .by = by });
		rref_release(r);
		until_back(ctx, &l);
		give_up(&l);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Many values of one registration, beside values of the usual kind, are read in one batch. Some
 * parts are wrapped twice, or overlap. */
TG_TEST(wrap__many_in_one_registration, 2)
{
	enum { NR = 210 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		static struct rref *refs[NR];
		struct lent l;

		lend(ctx, &l, 400 * KIB, !tg_is_shm(), 5);
		for (size_t i = 0; i < NR; i++) {
			if (i % 3 == 2) {
				unsigned char bytes[100];

				tg_fill(bytes, sizeof(bytes), (unsigned)i);
				TG_OK(rref_new(ctx, bytes, sizeof(bytes), &refs[i]));
			} else {
				refs[i] = wrap(&l, i / 3 * 500, 1 + i * 701 % 40000);
			}
		}
		for (size_t i = 0; i < NR; i += RREF_REFS_MAX)
			TG_OK(rref_rpc_sync(ctx, 1, "keep",
					    tg_with(refs + i,
						    min_of((size_t)NR - i, (size_t)RREF_REFS_MAX)),
					    RREF_DEFAULT, NULL));
		for (int i = 0; i < NR; i++)
			rref_release(refs[i]);
		TG_IS(rref_mem_deregister(l.mem), -EBUSY);
		TG_TEXT("140 values");
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_IS(rref_mem_deregister(l.mem), -EBUSY);
		TG_IS(atomic_load(&l.back), 0);
		tg_set_flag(0, 3);
		for (int64_t end = now_ns() + TG_LONG_NS; atomic_load(&l.back) != 140;
		     usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		give_up(&l);
		TG_IS(atomic_load(&l.back), 140);
		tg_all_clean(ctx);
	} else {
		static struct rref *refs[NR];
		static struct rref_view *v[NR];
		static int status[NR];

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < NR; i++)
			refs[i] = tg_kept(i);
		for (int round = 0; round < 5; round++) {
			TG_IS(rref_to_here_batch(refs, NR, RREF_DEFAULT, v, status), NR);
			for (size_t i = 0; i < NR; i++) {
				if (i % 3 == 2)
					TG_CHECK(tg_filled(rref_view_data(v[i]), 100, 0,
							   (unsigned)i));
				else
					TG_CHECK(rref_view_length(v[i]) == 1 + i * 701 % 40000 &&
						 tg_filled(rref_view_data(v[i]),
							   1 + i * 701 % 40000, i / 3 * 500, 5));
				rref_view_free(v[i]);
			}
		}
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* The type travels with the value, and its shape is checked at its creation. */
TG_TEST(wrap__typed_value, 2)
{
	static const struct rref_type floats = { sizeof(floats), "float32[]", 0, 0 },
				      wrong = { sizeof(wrong), "int64[]", 0, 0 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r;
		struct lent l;

		lend(ctx, &l, 4096, false, 1);
		TG_IS(rref_wrap(l.mem, TG_VALUE(.data = l.at, .length = 1023, .type = &floats),
				came_back, &l, &r),
		      -EINVAL);
		TG_OK(rref_wrap(l.mem, TG_VALUE(.data = l.at + 64, .length = 1024, .type = &floats),
				came_back, &l, &r));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_set_flag(0, 1);
		until_back(ctx, &l);
		give_up(&l);
		tg_all_clean(ctx);
	} else {
		struct rref_type t = { .size = sizeof(t) };
		struct rref_view *v;
		struct iovec seg[2];

		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_expect_type(tg_kept(0), &floats, RREF_DEFAULT));
		TG_IS(rref_expect_type(tg_kept(0), &wrong, RREF_DEFAULT), -EPROTOTYPE);
		TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
		TG_IS(rref_view_segments(v, seg, 2), 1);
		TG_IS(seg[0].iov_len, 1024);
		TG_CHECK(tg_filled(seg[0].iov_base, 1024, 64, 1));
		TG_OK(rref_view_type(v, &t));
		TG_IS(strcmp(t.name, "float32[]"), 0);
		rref_view_free(v);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* ---- many threads ---- */

struct maker {
	struct rref_ctx *ctx;
	struct lent *l;
	int rounds;
	unsigned index;
	_Atomic int back;
};

static void one_back(void *arg)
{
	atomic_fetch_add((_Atomic int *)arg, 1);
}

static void *make_many(void *arg)
{
	struct maker *m = arg;

	for (int i = 0; i < m->rounds; i++) {
		size_t at = m->index * 4096 + (size_t)i % 100;
		struct rref_view *v;
		struct rref *r;

		TG_OK(rref_wrap(m->l->mem, TG_VALUE(.data = m->l->at + at, .length = 1000),
				one_back, &m->back, &r));
		if (i % 3 == 0)
			TG_IS(tg_sum_there(m->ctx, 1, &r, 1), tg_byte(at, 6));
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		rref_release(r);
		TG_CHECK(tg_filled(rref_view_data(v), 1000, at, 6));
		rref_view_free(v);
	}
	return NULL;
}

static void *make_memory(void *arg)
{
	struct maker *m = arg;

	for (int i = 0; i < m->rounds; i++) {
		struct rref *r;
		struct lent l;

		lend(m->ctx, &l, 10000, i % 2 && !tg_is_shm(), 1);
		r = wrap(&l, 1, 9999);
		TG_IS(tg_sum_there(m->ctx, 1, &r, 1), tg_byte(1, 1));
		rref_release(r);
		until_back(m->ctx, &l);
		give_up(&l);
		atomic_fetch_add(&m->back, 1);
	}
	return NULL;
}

TG_TEST(wrap__by_many_threads, 2)
{
	enum { NR = 4 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct maker m[NR];
		pthread_t t[NR];
		struct lent l;

		lend(ctx, &l, NR * 4096 + 4096, false, 6);
		for (unsigned i = 0; i < NR; i++) {
			m[i] = (struct maker){
				.ctx = ctx, .l = &l, .rounds = tg_scale(i ? 300 : 60), .index = i
			};
			TG_IS(pthread_create(&t[i], NULL, i ? make_many : make_memory, &m[i]), 0);
		}
		for (unsigned i = 0; i < NR; i++)
			pthread_join(t[i], NULL);
		tg_all_clean(ctx);
		for (unsigned i = 0; i < NR; i++)
			for (int64_t end = now_ns() + TG_LONG_NS;
			     atomic_load(&m[i].back) != m[i].rounds; usleep(1000)) {
				TG_CHECK(now_ns() < end);
				rref_progress(ctx);
			}
		give_up(&l);
		TG_IS(tg_stats(ctx).wrapped_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- fork(2) ---- */

TG_TEST(wrap__fork_of_the_process, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_view *v;
		struct lent l;
		int status;
		void *at;

		lend(ctx, &l, 9000, !tg_is_shm(), 1);
		struct rref *r = wrap(&l, 0, 9000), *other;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		read_there(ctx, 1, r, (struct range){ .length = 9000, .seed = 1 });
		pid_t pid = fork();

		if (pid == 0) {
			struct rref_mem *m;

			alarm(20);
			TG_IS(rref_mem_alloc(ctx, 1, &m, &at), -ECHILD);
			TG_IS(rref_mem_register(ctx, &l, 1, &m), -ECHILD);
			TG_IS(rref_wrap(l.mem, TG_VALUE(.data = l.at, .length = 1), came_back, &l,
					&other),
			      -ECHILD);
			TG_IS(rref_mem_deregister(l.mem), -ECHILD);
			rref_view_free(v);
			rref_release(r);
			rref_free_ctx(ctx);
			TG_IS(atomic_load(&l.back), 0);
			_exit(0);
		}
		TG_CHECK(pid > 0);
		TG_IS(waitpid(pid, &status, 0), pid);
		TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		read_there(ctx, 1, r, (struct range){ .length = 9000, .seed = 1 });
		rref_view_free(v);
		rref_release(r);
		until_back(ctx, &l);
		give_up(&l);
		/* Readers see the parent's writes after a fork. */
		lend(ctx, &l, 9000, !tg_is_shm(), 1);
		pid = fork();
		if (pid == 0) {
			usleep(100000);
			_exit(0);
		}
		tg_fill(l.at, 9000, 50);
		r = wrap(&l, 0, 9000);
		read_there(ctx, 1, r, (struct range){ .length = 9000, .seed = 50 });
		rref_release(r);
		until_back(ctx, &l);
		give_up(&l);
		TG_IS(waitpid(pid, &status, 0), pid);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- refusals ---- */

TG_TEST(refused__arguments, 2)
{
	static const struct rref_type local = { sizeof(local), "here", 0, RREF_LOCAL_ONLY },
				      bad = { sizeof(bad), "", 0, 0 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_stats before = tg_stats(ctx);
		struct rref *r = NULL;
		struct rref_mem *m = NULL;
		struct iovec part;
		void *at = NULL;
		char byte;

		TG_IS(rref_mem_register(NULL, &byte, 1, &m), -EINVAL);
		TG_IS(rref_mem_register(ctx, NULL, 1, &m), -EINVAL);
		TG_IS(rref_mem_register(ctx, &byte, 0, &m), -EINVAL);
		TG_IS(rref_mem_register(ctx, &byte, 1, NULL), -EINVAL);
		TG_IS(rref_mem_register(ctx, &byte, SIZE_MAX, &m), -EINVAL);
		TG_TEXT("address space");
		TG_IS(rref_mem_alloc(NULL, 1, &m, &at), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, 0, &m, &at), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, 1, NULL, &at), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, 1, &m, NULL), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, SIZE_MAX, &m, &at), -ENOMEM);
		TG_IS(rref_mem_alloc(ctx, SIZE_MAX / 4, &m, &at), -ENOMEM);
		TG_IS(rref_mem_deregister(NULL), 0);
		TG_CHECK(!m && !at);
		if (tg_is_shm()) {
			TG_IS(rref_mem_register(ctx, &byte, 1, &m), -EOPNOTSUPP);
			TG_TEXT("rref_mem_alloc");
		} else {
			char *map = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			TG_CHECK(map != MAP_FAILED);
			TG_IS(munmap(map + 4096, 4096), 0);
			TG_IS(rref_mem_register(ctx, map + 4000, 200, &m), -EFAULT);
			TG_TEXT("not all mapped");
			TG_IS(munmap(map, 4096) | munmap(map + 8192, 4096), 0);
			/* Read-only memory is enough: the library writes nothing to it. */
			map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				   -1, 0);
			TG_CHECK(map != MAP_FAILED);
			tg_fill(map, 4096, 7);
			TG_IS(mprotect(map, 4096, PROT_READ), 0);
			TG_OK(rref_mem_register(ctx, map, 4096, &m));
			TG_OK(rref_wrap(m, TG_VALUE(.data = map + 1, .length = 4000), NULL, NULL,
					&r));
			read_there(ctx, 1, r,
				   (struct range){ .offset = 1, .length = 4000, .seed = 7 });
			rref_release(r);
			for (int64_t end = now_ns() + TG_LONG_NS; rref_mem_deregister(m);
			     usleep(1000)) {
				TG_CHECK(now_ns() < end);
				rref_progress(ctx);
			}
			munmap(map, 4096);
		}
		TG_OK(rref_mem_alloc(ctx, 100, &m, &at));
		r = NULL;
		part = (struct iovec){ .iov_base = at, .iov_len = 1 };
		TG_IS(rref_wrap(NULL, TG_VALUE(.data = at, .length = 1), NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.data = at, .length = 1), NULL, NULL, NULL), -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.data = at), NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.data = at, .length = 101), NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.data = (char *)at + 100, .length = 1), NULL, NULL, &r),
		      -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.data = (char *)at + 101, .length = SIZE_MAX - 50),
				NULL, NULL, &r),
		      -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.data = (char *)at - 1, .length = 2), NULL, NULL, &r),
		      -EINVAL);
		TG_TEXT("2 bytes at");
		TG_IS(rref_wrap(m, TG_VALUE(.data = (char *)at + 50, .length = SIZE_MAX), NULL,
				NULL, &r),
		      -EINVAL);
		TG_IS(rref_wrap(m, TG_VALUE(.length = 1), NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, NULL, NULL, NULL, &r), -EINVAL);
		TG_TEXT("no description");
		TG_IS(rref_wrap(m, TG_VALUE(.segments = &part, .nr_segments = 1), NULL, NULL, &r),
		      -EINVAL);
		TG_TEXT("one segment");
		TG_IS(rref_wrap(m, TG_VALUE(.data = at, .length = 1, .refs = &r, .nr_refs = 1),
				NULL, NULL, &r),
		      -EINVAL);
		TG_TEXT("reference 0 is NULL");
		TG_IS(rref_wrap(m, TG_VALUE(.data = at, .length = 1, .type = &local), NULL, NULL,
				&r),
		      -EINVAL);
		TG_TEXT("local only");
		TG_IS(rref_wrap(m, TG_VALUE(.data = at, .length = 1, .type = &bad), NULL, NULL, &r),
		      -EINVAL);
		TG_CHECK(!r);
		TG_IS(rref_mem_deregister(m), 0);
		TG_IS(tg_stats(ctx).registered_bytes >= before.registered_bytes, 1);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Drops the right to lock memory. Call it before devices are opened: they
 * refuse a process whose credentials changed since. */
static void no_privilege_to_lock(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { { 0 } };

	TG_IS(syscall(SYS_capget, &h, d), 0);
	d[CAP_IPC_LOCK / 32].effective &= ~(1u << CAP_IPC_LOCK % 32);
	TG_IS(syscall(SYS_capset, &h, d), 0);
}

/* The limit on locked memory. The words name it, and nothing is
 * left. Over shm nothing is locked. */
TG_TEST(refused__locked_memory, 2)
{
	if (rank == 0)
		no_privilege_to_lock();
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = tg_remote(ctx, 1, "tg.echo", "\0", 1);

		/* A session has its own locked memory, so it is made first. */
		read_there(ctx, 1, r, (struct range){ .length = 1, .by = 3 });
		tg_expect_bytes(r, "\0", 1);
		struct rref_stats before = tg_stats(ctx);
		struct rlimit lim = { 64 << 10, 64 << 10 };
		struct rref_mem *m = NULL;
		void *at;

		TG_IS(setrlimit(RLIMIT_MEMLOCK, &lim), 0);
		if (tg_is_shm()) {
			TG_OK(rref_mem_alloc(ctx, 4 * MIB, &m, &at));
			TG_IS(rref_mem_deregister(m), 0);
		} else {
			char *mine = malloc(4 * MIB);

			TG_IS(rref_mem_alloc(ctx, 4 * MIB, &m, &at), -ENOMEM);
			TG_TEXT("RLIMIT_MEMLOCK");
			TG_IS(rref_mem_register(ctx, mine, 4 * MIB, &m), -ENOMEM);
			TG_TEXT("4194304");
			free(mine);
		}
		TG_IS(tg_stats(ctx).registered_bytes, before.registered_bytes);
		TG_IS(tg_stats(ctx).nr_regions, before.nr_regions);
		tg_expect_bytes(r, "\0", 1);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(refused__after_the_shutdown, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_mem *m, *more;
	struct rref *r;
	void *at;
	char byte;

	TG_OK(rref_mem_alloc(ctx, 10, &m, &at));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	TG_IS(rref_mem_alloc(ctx, 10, &more, &at), -ESHUTDOWN);
	TG_IS(rref_mem_register(ctx, &byte, 1, &more), -ESHUTDOWN);
	TG_IS(rref_wrap(m, TG_VALUE(.data = at, .length = 10), NULL, NULL, &r), -ESHUTDOWN);
	TG_IS(rref_mem_deregister(m), 0);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrap__sizes_and_ways_of_reading),
		cmocka_unit_test(wrap__in_pieces_above_the_largest_message),
		cmocka_unit_test(wrap__many_in_one_registration),
		cmocka_unit_test(wrap__typed_value),
		cmocka_unit_test(wrap__by_many_threads),
		cmocka_unit_test(wrap__fork_of_the_process),
		cmocka_unit_test(refused__arguments),
		cmocka_unit_test(refused__locked_memory),
		cmocka_unit_test(refused__after_the_shutdown),
	};

	return cmocka_run_group_tests_name("wrap", tests, NULL, NULL);
}
