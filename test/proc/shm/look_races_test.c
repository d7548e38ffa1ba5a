/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that look at values where they lie (look_test), while their session ends or their worker
 * leaves. The bytes of a view never change.
 */
#include <pthread.h>
#include <signal.h>

#include "core/base/lock.h"
#include "core/session/session.h"
#include "looks.h"

#define LOOKERS 4
#define VALUES 8
#define KEPT 16

struct looker {
	struct rref **refs;
	int err; /* that it expects */
	struct rref_view *kept[KEPT];
	unsigned seed[KEPT];
	_Atomic unsigned turns;
};

/* Looks at one value after the other until that fails. Keeps the last views. */
static void *look_until(void *arg)
{
	struct looker *l = arg;
	int err = 0;

	for (unsigned i = 0; !err; i++) {
		struct rref_view *v;

		err = rref_to_here(l->refs[i % VALUES], RREF_DEFAULT, &v);
		if (err)
			break;
		TG_IS(rref_view_length(v), 64 * KIB);
		TG_CHECK(*(const unsigned char *)rref_view_data(v) == tg_byte(0, i % VALUES));
		rref_view_free(l->kept[i % KEPT]);
		l->kept[i % KEPT] = v;
		l->seed[i % KEPT] = i % VALUES;
		at_store(&l->turns, i);
	}
	/* Makes a READ instead of a look, which may find the value gone while the worker leaves. */
	TG_CHECK(err == l->err || (l->err == -ESHUTDOWN && err == -ESTALE));
	return NULL;
}

static void make_values(struct rref_ctx *ctx, struct rref **refs)
{
	for (unsigned i = 0; i < VALUES; i++)
		refs[i] = tg_ask(ctx, 1, "pub.make",
				 (struct tg_make){ .length = 64 * KIB, .seed = i });
}

static void start_lookers(struct looker *l, pthread_t *thread, struct rref **refs, int err)
{
	for (int i = 0; i < LOOKERS; i++) {
		memset(&l[i], 0, sizeof(l[i]));
		l[i].refs = refs;
		l[i].err = err;
		TG_IS(pthread_create(&thread[i], NULL, look_until, &l[i]), 0);
	}
}

static void wait_for_turns(struct looker *l)
{
	for (int i = 0; i < LOOKERS; i++)
		while (at_load(&l[i].turns) <= KEPT)
			usleep(100);
}

/* Checks what the last views show, and frees them. */
static void end_lookers(struct looker *l)
{
	for (int i = 0; i < LOOKERS; i++) {
		TG_CHECK(at_load(&l[i].turns) > KEPT);
		for (int k = 0; k < KEPT; k++) {
			shows(l[i].kept[k], 64 * KIB, l[i].seed[k]);
			rref_view_free(l[i].kept[k]);
		}
	}
}

#define FREEZES 300

static _Atomic int frozen, freezes;

static void freeze(int sig)
{
	int n = at_load_acq(&freezes);

	(void)sig;
	at_store_rel(&frozen, 1);
	while (at_load_acq(&freezes) == n)
		usleep(50);
}

/* Freezes one looker after the other, wherever it is, until each other one has made 1,000 looks. */
static void freeze_lookers(struct looker *l, const pthread_t *thread)
{
	struct sigaction s = { .sa_handler = freeze };

	wait_for_turns(l); /* each has its reader and mapping by now */
	TG_OK(sigaction(SIGUSR1, &s, NULL));
	for (int n = 0; n < tg_scale(FREEZES); n++) {
		unsigned before[LOOKERS];

		at_store(&frozen, 0);
		TG_OK(pthread_kill(thread[n % LOOKERS], SIGUSR1));
		while (!at_load_acq(&frozen))
			usleep(50);
		for (int i = 0; i < LOOKERS; i++)
			before[i] = at_load(&l[i].turns);
		for (int i = 0; i < LOOKERS; i++)
			while (i != n % LOOKERS && at_load(&l[i].turns) < before[i] + 1000) {
				TG_CHECK(now_ns() < tg_deadline());
				usleep(50);
			}
		TG_CHECK(at_load(&l[n % LOOKERS].turns) == before[n % LOOKERS]);
		at_store_rel(&freezes, n + 1);
	}
}

/* Lets threads look on while their worker leaves in order. The views that they got last are good
 * behind it, though the owner is gone and has freed all values. */
static int leave_under_lookers(int rank, void (*meanwhile)(struct looker *l, const pthread_t *t))
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	static struct looker l[LOOKERS];
	struct rref *refs[VALUES];
	pthread_t thread[LOOKERS];

	if (rank == 0) {
		make_values(ctx, refs);
		start_lookers(l, thread, refs, -ESHUTDOWN);
		meanwhile(l, thread);
	}
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS));
	if (rank == 1)
		rref_free_ctx(ctx);
	tg_meet(2);
	if (rank == 0) {
		for (int i = 0; i < LOOKERS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		end_lookers(l);
		rref_release_batch(refs, VALUES);
		rref_free_ctx(ctx);
	}
	return 0;
}

static void look_a_little(struct looker *l, const pthread_t *thread)
{
	(void)thread;
	wait_for_turns(l);
	usleep(20000);
}

TG_TEST(look__while_the_worker_leaves, 2)
{
	return leave_under_lookers(rank, look_a_little);
}

/* A thread that is frozen at any instruction of its looks stops no other one. */
TG_TEST(look__while_a_thread_is_frozen, 2)
{
	return leave_under_lookers(rank, freeze_lookers);
}

#define ROUNDS 6

/* Ends the session with worker 0, and waits until its values would be freed. */
static void end_session(struct rref_ctx *ctx)
{
	tg_drop_kept();
	usleep((unsigned)random() % 3000);
	rc_lock(ctx);
	rc_session_end(ctx, &ctx->peers[0], -ENETRESET, "the test broke it");
	rc_unlock(ctx);
	TG_CHECK(tg_eventually(no_forks, ctx, NULL));
	TG_IS(tg_stats(ctx).owners, 0);
	TG_CHECK(tg_stats(ctx).views_left >= LOOKERS * KEPT);
	TG_CHECK(tg_stats(ctx).views_left_bytes >= LOOKERS * KEPT * 64 * KIB);
	write_over_free_memory(ctx);
}

/* Ends sessions under threads that look on. The owner keeps what they looked at last, and frees it
 * when the views are gone. */
TG_TEST(look__while_the_session_ends, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	static struct looker l[LOOKERS];
	struct rref *refs[VALUES];
	pthread_t thread[LOOKERS];

	for (int round = 0; round < ROUNDS; round++) {
		if (rank == 1) {
			tg_wait_flag_serving(ctx, 0, 3 * round + 1);
			end_session(ctx);
			tg_set_flag(0, 3 * round + 2);
			tg_wait_flag_serving(ctx, 0, 3 * round + 3);
			TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
			continue;
		}
		make_values(ctx, refs);
		start_lookers(l, thread, refs, -ENETRESET);
		wait_for_turns(l);
		tg_set_flag(0, 3 * round + 1);
		for (int i = 0; i < LOOKERS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		tg_wait_flag_serving(ctx, 0, 3 * round + 2);
		end_lookers(l);
		rref_release_batch(refs, VALUES);
		tg_set_flag(0, 3 * round + 3);
	}
	tg_leave(ctx);
	return 0;
}

/* Stops a worker at any instruction of its looks, until it is fenced and its values would be freed.
 * It goes on when other values lie in all memory that is free. */
TG_TEST(look__while_the_worker_stands_still, 2)
{
	struct rref_ctx *ctx = join(rank);
	static struct looker l[LOOKERS];
	struct rref *refs[VALUES];
	pthread_t thread[LOOKERS];

	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		tg_drop_kept();
		usleep((unsigned)random() % 3000);
		tg_stop_worker(0);
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		TG_IS(tg_stats(ctx).fenced_peers, 1);
		TG_CHECK(tg_stats(ctx).views_left >= LOOKERS * KEPT);
		write_over_free_memory(ctx);
		tg_continue_worker(0);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
		TG_IS(tg_stats(ctx).owners, 0);
		tg_set_flag(0, 3);
	} else {
		make_values(ctx, refs);
		start_lookers(l, thread, refs, -ENETRESET);
		wait_for_turns(l);
		tg_set_flag(0, 1);
		for (int i = 0; i < LOOKERS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		end_lookers(l);
		rref_release_batch(refs, VALUES);
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
	}
	tg_leave(ctx);
	return 0;
}

/* Kills a worker at any instruction of its looks. Nothing is kept for it. */
DEATH_TEST(look__while_the_worker_is_killed, 2, 1 << 0)
{
	struct rref_ctx *ctx = join(rank);
	static struct looker l[LOOKERS];
	struct rref *refs[VALUES];
	pthread_t thread[LOOKERS];

	if (rank == 1) {
		tg_wait_flag_serving(ctx, 0, 1);
		tg_drop_kept();
		usleep((unsigned)random() % 3000);
		TG_IS(kill(tg_current->shared->pid[0], SIGKILL), 0);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &(int){ 0 }));
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
		TG_IS(tg_stats(ctx).owners, 0);
		TG_IS(tg_stats(ctx).views_left_bytes, 0);
	} else {
		make_values(ctx, refs);
		start_lookers(l, thread, refs, -ESHUTDOWN);
		wait_for_turns(l);
		tg_set_flag(0, 1);
		tg_serve_and_die(ctx, 9);
	}
	tg_leave(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(look__while_the_worker_leaves),
		cmocka_unit_test(look__while_the_worker_leaves),
		cmocka_unit_test(look__while_the_worker_leaves),
		cmocka_unit_test(look__while_a_thread_is_frozen),
		cmocka_unit_test(look__while_the_session_ends),
		cmocka_unit_test(look__while_the_worker_stands_still),
		cmocka_unit_test(look__while_the_worker_is_killed),
		cmocka_unit_test(look__while_the_worker_is_killed),
	};

	if (!tg_is_shm())
		return 0;
	return cmocka_run_group_tests_name("look_races", tests, NULL, NULL);
}
