/* SPDX-License-Identifier: Apache-2.0 */
/* Groups in which workers die by SIGKILL or are stopped. */
#ifndef TG_DEATH_H
#define TG_DEATH_H

#include "tg_refs.h"

#define TG_LONG_NS (20 * NSEC_PER_SEC)

/* Declares a TG_TEST whose workers with these ranks (bits) end by SIGKILL. */
#define DEATH_TEST(name, world_, victims) \
	static int name##_worker(int rank, void *arg); \
	static void name(void **state) \
	{ \
		struct tg_group g = { .world = world_ }; \
		(void)state; \
		for (int i = 0; i < (world_); i++) \
			g.expect_killed[i] = (victims) >> i & 1; \
		assert_int_equal(tg_run_group(&g, name##_worker, NULL), 0); \
	} \
	static int name##_worker(__attribute__((unused)) int rank, \
				 __attribute__((unused)) void *arg)

_Noreturn void tg_die(void);
/* Serves until the flag is set, then dies. */
_Noreturn void tg_serve_and_die(struct rref_ctx *ctx, int flag);
/* Leaves as a survivor, in bounded time: the death of another worker is not its fault. */
void tg_leave(struct rref_ctx *ctx);
/* Tells tg_eventually whether worker *(int *)rank is known to be dead. */
bool tg_is_dead(struct rref_ctx *ctx, void *rank);
/* Stops a worker, and waits until each of its threads has stopped:
 * the signal alone is only a request. */
void tg_stop_worker(int rank);
void tg_continue_worker(int rank);
/* Ends the connection of a session at its device. Over shm a READ is refused, if READs may go over
 * it. Returns whether it did. [lock] */
bool tg_break_link(struct rref_ctx *ctx, int rank);
/* Ends its READs by a READ that is refused: over ibv messages go on. [lock] */
bool tg_refuse_a_read(struct rref_ctx *ctx, int rank);

#endif
