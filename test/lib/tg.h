/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of real worker processes for tests. tg_run forks `world` children; each runs worker(rank,
 * arg) and exits with its result. The parent waits for each by pid, until a deadline. Then it ends
 * the survivors (by pid), and the run fails. The device is RREF_TEST_DEVICE (default shm).
 */
#ifndef TG_GROUP_H
#define TG_GROUP_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "rref.h"

#define TG_MAX 80

struct tg_group {
	int world;
	int timeout_s;              /* seconds for the whole run; 0 = 60, times RREF_TEST_SLOW */
	int expect_killed[TG_MAX];  /* rank -> 1: it ends by SIGKILL */
	/* made by tg_run */
	char rendezvous[64];
	struct tg_shared *shared;   /* memory all workers of the run see */
	pid_t pid[TG_MAX];
	/* CLOCK_MONOTONIC ns; a little before the run's forced end */
	int64_t deadline;
};

/* Memory for tests to meet in, outside the library: flags,
 * counters, and the pids of all workers. */
struct tg_shared {
	_Atomic int flag[16];
	_Atomic int arrived[16];
	pid_t pid[TG_MAX];
	char bytes[4096];
};

extern struct tg_group *tg_current;   /* the run of this worker */

/* Runs the group; returns 0 when every worker ended as expected. */
int tg_run_group(struct tg_group *g, int (*worker)(int rank, void *arg), void *arg);
int tg_run(int world, int (*worker)(int rank, void *arg), void *arg);

/* The progress mode of the workers: RREF_TEST_PROGRESS. */
enum rref_progress_mode tg_mode(void);
/* Options of worker `rank` of the current run. */
void tg_options(struct rref_options *o, int rank);
/* The library's log to stderr if RREF_TEST_LOG is set. */
void tg_log(struct rref_options *o);
/* Runs rref_init with tg_options and these functions. Ends the
 * worker with a message if it fails. */
struct rref_ctx *tg_init(int rank, const struct rref_function *fns, size_t nr);
/*
 * The one deadline of a worker's waits that have no other time. A worker may
 * wait for another one's whole work, so no wait has a shorter deadline. The wait
 * names the missing event before the run's forced end.
 */
int64_t tg_deadline(void);
/* Shuts down gracefully, which must succeed, and frees the context. */
void tg_finish(struct rref_ctx *ctx);

/* Waits until all workers of the run are at point i (not through the library). */
void tg_meet(int i);
void tg_wait_flag(int i, int value);
const char *tg_device(void);
bool tg_is_shm(void);
int64_t tg_slow(void);     /* RREF_TEST_SLOW, or 1 */
/* Returns how often the calling thread has slept so far: its voluntary context switches. */
long tg_sleeps(void);
/* Returns whether a thread of this process sleeps. */
bool tg_is_asleep(pid_t thread);
/* Sleeps between two looks at an awaited thing, for longer on emulated
 * hardware, which has no time to spare. */
void tg_pause(void);
int tg_scale(int n);       /* loop counts: fewer on emulated hardware */
void tg_free_place(char *buf, size_t size);   /* a rendezvous address that no other program uses */
struct rref_stats tg_stats(struct rref_ctx *ctx);
/* Waits until cond(ctx, arg) holds; false at tg_deadline. */
bool tg_eventually(bool (*cond)(struct rref_ctx *ctx, void *arg), struct rref_ctx *ctx, void *arg);
/* Waits until no operation is in flight. A waiter may be ahead of the thread that completed its
 * operation, which still holds it. */
bool tg_idle(struct rref_ctx *ctx, void *arg);

/* Do as tg_meet and tg_wait_flag, for workers that have to serve
 * meanwhile in every progress mode. */
void tg_meet_serving(struct rref_ctx *ctx, int i);
void tg_wait_flag_serving(struct rref_ctx *ctx, int i, int value);
void tg_set_flag(int i, int value);
int tg_flag(int i);

/*
 * Functions that most tests need:
 *   tg.echo, tg.echo_inline   the bytes of the arguments
 *   tg.echo_refs              their references (and bytes)
 *   tg.nothing                an empty result
 *   tg.fail                   an error: int32_t code, then the text
 *   tg.read                   reads its references: unsigned sum of their first bytes
 *   tg.hold                   defers; tg.release answers all held calls with their own bytes
 *                             and references
 *   tg.release, tg.held       int32_t: how many were, are held
 *   tg.stats                  struct rref_stats of the callee
 */
extern const struct rref_function tg_functions[];
extern const size_t tg_nr_functions;
/* Joins with tg_options and tg_functions. */
struct rref_ctx *tg_join(int rank);
/* tg_refuse: rref_init must fail with err, and with this in its text. tg_accept: it must succeed,
 * and this worker leaves again. */
void tg_refuse(const struct rref_options *o, int err, const char *text);
void tg_accept(const struct rref_options *o);
/* Returns the counters of worker `rank`, by a call. */
struct rref_stats tg_stats_of(struct rref_ctx *ctx, int rank);
/* Waits until worker `rank` owns, shares and holds nothing. If that does not come, it ends this
 * worker with the counters. */
void tg_until_clean(struct rref_ctx *ctx, int rank);
/* tg_until_held waits until worker `rank` holds `nr` calls of
 * tg.hold. tg_release_held answers them. */
void tg_until_held(struct rref_ctx *ctx, int rank, int nr);
int tg_release_held(struct rref_ctx *ctx, int rank);
/* Forgets the calls held in this process, each answered with an error. For use after a shutdown. */
void tg_drop_held(void);
/* Takes the result of a call that must be `length` bytes. */
void tg_result(struct rref_future *f, void *to, size_t length);
/* Reads ref, which must hold these bytes. */
void tg_expect_bytes(struct rref *ref, const void *bytes, size_t length);
/* Makes bytes that differ with each offset and seed. */
unsigned char tg_byte(size_t offset, unsigned seed);
void tg_fill(void *to, size_t length, unsigned seed);
bool tg_filled(const void *at, size_t length, size_t offset, unsigned seed);

/* A test that is a group of `world` workers, each of which runs the body with its rank. */
#define TG_TEST(name, world) \
	static int name##_worker(int rank, void *arg); \
	static void name(void **state) \
	{ \
		(void)state; \
		assert_int_equal(tg_run(world, name##_worker, NULL), 0); \
	} \
	static int name##_worker(__attribute__((unused)) int rank, \
				 __attribute__((unused)) void *arg)

#define TG_CHECK(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "%s:%d: pid %d: %s is false (errno text: %s)\n", __FILE__, \
				__LINE__, (int)getpid(), #cond, rref_last_error()); \
			_exit(1); \
		} \
	} while (0)

#define TG_OK(call) \
	do { \
		int tg_err_ = (call); \
		if (tg_err_ < 0) { \
			fprintf(stderr, "%s:%d: pid %d: %s = %d %s (%s)\n", __FILE__, __LINE__, \
				(int)getpid(), #call, tg_err_, rref_strerror(tg_err_), \
				rref_last_error()); \
			_exit(1); \
		} \
	} while (0)

#define TG_IS(call, expected) \
	do { \
		long tg_got_ = (long)(call), tg_want_ = (long)(expected); \
		if (tg_got_ != tg_want_) { \
			fprintf(stderr, "%s:%d: pid %d: %s = %ld, not %ld (%s)\n", __FILE__, \
				__LINE__, (int)getpid(), #call, tg_got_, tg_want_, \
				rref_last_error()); \
			_exit(1); \
		} \
	} while (0)

/* A description of a value, for rref_new_value and the like. */
#define TG_VALUE(...) (&(struct rref_value_desc){ __VA_ARGS__ })

#define TG_TEXT(needle) TG_CHECK(strstr(rref_last_error(), (needle)) != NULL)

#endif
