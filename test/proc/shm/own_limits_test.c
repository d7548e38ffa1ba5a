/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A reader at its own limit: no free descriptor, or no address space. Its owner makes new memory
 * meanwhile. Values in the new memory cannot be read, and the error names the limit. They can be
 * read once there is room. The session and all other references stand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <cmocka.h>

#include "tg.h"

#define SMALL ((size_t)1000)
#define LARGE ((size_t)64 << 20)

/* Creates on rank 0 a value of 1000 bytes, or a large one in memory of its own. */
static int make(struct rref_call *call, void *arg)
{
	size_t length = *(const char *)rref_call_data(call) == 'l' ? LARGE : SMALL;
	struct rref *ref;
	void *data;
	int err;

	err = rref_alloc(arg, length, &ref, &data);
	if (err)
		return err;
	tg_fill(data, length, 7);
	rref_set(ref);
	err = rref_call_reply(call, &(struct rref_args){ .refs = &ref, .nr_refs = 1 });
	rref_release(ref);
	return err;
}

static struct rref *get(struct rref_ctx *ctx, const char *what)
{
	struct rref_future *f;
	struct rref *ref;

	TG_OK(rref_rpc_sync(ctx, 0, "make", &(struct rref_args){ .data = what, .length = 1 },
			    RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &ref));
	rref_future_free(f);
	return ref;
}

static int read_start(struct rref *ref, char *to)
{
	size_t got = 0;
	int err = rref_to_here_into(ref, to, 0, SMALL, RREF_DEFAULT, &got);

	TG_CHECK(err || got == SMALL);
	return err;
}

static void expect_start(struct rref *ref)
{
	char bytes[SMALL];

	TG_OK(read_start(ref, bytes));
	TG_CHECK(tg_filled(bytes, SMALL, 0, 7));
}

/* Reads the old value while the limit prevents reads of the large ones.
 * Then reads all of them with room again. */
static void at_the_limit(struct rref_ctx *ctx, int resource, rlim_t low, const char *name)
{
	struct rref *old = get(ctx, "s"), *large[2];
	uint64_t sessions = tg_stats(ctx).sessions;
	struct rlimit before, limit;
	char bytes[SMALL];

	expect_start(old);
	TG_OK(getrlimit((__rlimit_resource_t)resource, &before));
	limit = (struct rlimit){ low, before.rlim_max };
	TG_OK(setrlimit((__rlimit_resource_t)resource, &limit));
	for (int i = 0; i < 2; i++)
		large[i] = get(ctx, "l");
	for (int i = 0; i < 6; i++) {
		expect_start(old);
		TG_IS(read_start(large[i % 2], bytes), -ENOMEM);
		TG_TEXT(name);
		TG_TEXT("worker0");
	}
	TG_OK(setrlimit((__rlimit_resource_t)resource, &before));
	for (int i = 0; i < 2; i++)
		expect_start(large[i]);
	expect_start(old);
	TG_IS(tg_stats(ctx).sessions, sessions);
	rref_release(large[0]);
	rref_release(large[1]);
	rref_release(old);
}

static rlim_t lowest_free_descriptor(void)
{
	int fd = dup(0);

	close(fd);
	return (rlim_t)fd;
}

static rlim_t address_space(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	TG_CHECK(f && fscanf(f, "%lu", &pages) == 1);
	fclose(f);
	return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

static int worker(int rank, int resource, const char *name)
{
	struct rref_ctx *ctx = tg_init(rank, NULL, 0);

	TG_OK(rref_register(
		ctx, &(struct rref_function){ .name = "make", .handler = make, .arg = ctx }));
	tg_meet(1);

	if (rank == 1)
		at_the_limit(ctx, resource, resource == RLIMIT_NOFILE ? lowest_free_descriptor() :
							 address_space() + LARGE / 4, name);
	tg_meet_serving(ctx, 0);
	tg_finish(ctx);
	return 0;
}

TG_TEST(descriptors__all_in_use, 2)
{
	return worker(rank, RLIMIT_NOFILE, "RLIMIT_NOFILE");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* these reserve terabytes */
#define HAS_ADDRESSES
TG_TEST(addresses__all_in_use, 2)
{
	return worker(rank, RLIMIT_AS, "RLIMIT_AS");
}
#endif

/* ---- connections for which no descriptor is free ---- */

static void set_soft(rlim_t soft, struct rlimit *before)
{
	struct rlimit limit;

	TG_OK(getrlimit(RLIMIT_NOFILE, before));
	limit = (struct rlimit){ soft, before->rlim_max };
	TG_OK(setrlimit(RLIMIT_NOFILE, &limit));
}

#define CROWD 12
#define ROOM 6

static int call_nothing(struct rref_ctx *ctx, int rank, int64_t timeout)
{
	return rref_rpc_sync(ctx, rank, "tg.nothing", NULL, timeout, NULL);
}

/*
 * Connects more workers to rank 0 than it has descriptors for. It lives, and no
 * worker takes it for dead. A worker with little time learns why the time was too
 * short. The others are served when there is room.
 */
TG_TEST(descriptors__of_a_crowd, CROWD)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rref_future *f = NULL;
	struct rlimit before;

	tg_meet(0);
	if (rank == 0)
		set_soft(lowest_free_descriptor() + ROOM, &before);
	tg_meet(1);
	if (rank) {
		int err = call_nothing(ctx, 0, NSEC_PER_SEC);

		if (err) {
			TG_IS(err, -ETIMEDOUT);
			TG_TEXT("has no room for a connection now");
			tg_set_flag(0, 1);
		}
		TG_OK(rref_rpc_async(ctx, 0, "tg.nothing", NULL, RREF_DEFAULT, &f));
	}
	tg_meet_serving(ctx, 2);
	TG_CHECK(tg_flag(0));
	if (rank == 0)
		TG_OK(setrlimit(RLIMIT_NOFILE, &before));
	else
		TG_OK(rref_future_wait(f, RREF_DEFAULT));
	rref_future_free(f);
	tg_meet_serving(ctx, 3);
	tg_finish(ctx);
	return 0;
}

/* This side has no descriptor left. */
TG_TEST(descriptors__too_few_to_connect, 2)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct rlimit before;

	tg_meet_serving(ctx, 0);
	if (rank == 1) {
		set_soft(lowest_free_descriptor(), &before);
		TG_IS(call_nothing(ctx, 0, NSEC_PER_SEC / 2), -ETIMEDOUT);
		TG_TEXT("RLIMIT_NOFILE");
		TG_OK(setrlimit(RLIMIT_NOFILE, &before));
		TG_OK(call_nothing(ctx, 0, RREF_DEFAULT));
	}
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

TG_TEST(descriptors__soft_limit_is_raised, 2)
{
	struct rlimit before, after;
	struct rref_ctx *ctx;

	set_soft(100, &before);
	ctx = tg_join(rank);
	TG_OK(getrlimit(RLIMIT_NOFILE, &after));
	TG_IS(after.rlim_cur, min_of(before.rlim_max, (rlim_t)1024 + 4 * 2));
	TG_IS(after.rlim_max, before.rlim_max);
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#ifdef HAS_ADDRESSES
		cmocka_unit_test(addresses__all_in_use),
#endif
		cmocka_unit_test(descriptors__all_in_use),
		cmocka_unit_test(descriptors__too_few_to_connect),
		cmocka_unit_test(descriptors__of_a_crowd),
		cmocka_unit_test(descriptors__soft_limit_is_raised),
	};

	return cmocka_run_group_tests_name("own_limits", tests, NULL, NULL);
}
