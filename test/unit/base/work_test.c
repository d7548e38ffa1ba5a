/* SPDX-License-Identifier: Apache-2.0 */
/* The queue of the library's own work: the release of the lock runs all of it, once. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/base/work.h"
#include "core/ctx.h"

#define ROUNDS 100000u

struct piece {
	struct rc_work work;
	struct rc_item bare;
	unsigned runs;  /* under the lock */
	unsigned again; /* how often it still defers itself */
	struct piece *pushes;
	struct piece *urges; /* defers it as urgent work */
};

static struct piece *order[8];
static unsigned nr_order;

static struct rref_ctx *make_ctx(void (*run_bare)(struct rref_ctx *ctx, struct rc_item *item))
{
	struct rref_ctx *ctx = aligned_alloc(CACHE_LINE, sizeof(*ctx));

	assert_non_null(ctx);
	memset(ctx, 0, sizeof(*ctx));
	ctx->works.run_bare = run_bare;
	nr_order = 0;
	return ctx;
}

static void ran(struct rref_ctx *ctx, struct piece *p)
{
	assert_int_not_equal(at_load(&ctx->lock.word), RC_UNLOCKED);
	p->runs++;
	if (nr_order < array_size(order))
		order[nr_order++] = p;
}

static void run(struct rref_ctx *ctx, struct rc_work *w)
{
	struct piece *p = container_of(w, struct piece, work);

	ran(ctx, p);
	if (p->again) {
		p->again--;
		rc_defer(ctx, w);
	}
	if (p->pushes)
		rc_work_push(ctx, &p->pushes->work);
	if (p->urges)
		rc_defer_first(ctx, &p->urges->work);
}

static void run_bare(struct rref_ctx *ctx, struct rc_item *item)
{
	ran(ctx, container_of(item, struct piece, bare));
}

static void deferred_work__runs_in_order_at_the_release(void **state)
{
	struct rref_ctx *ctx = make_ctx(NULL);
	struct piece p[3] = { 0 };

	(void)state;
	rc_lock(ctx);
	for (unsigned i = 0; i < 3; i++) {
		p[i].work.run = run;
		rc_defer(ctx, &p[i].work);
	}
	assert_int_equal(ctx->works.nr, 3);
	rc_unlock_bare(ctx);
	assert_int_equal(nr_order, 0);
	rc_lock(ctx);
	rc_unlock(ctx);
	assert_int_equal(nr_order, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_ptr_equal(order[i], &p[i]);
	assert_int_equal(ctx->works.nr + ctx->works.running, 0);
	assert_int_equal(at_load(&ctx->lock.word), RC_UNLOCKED);
	free(ctx);
}

static void urgent_work__goes_before_all_other(void **state)
{
	struct rref_ctx *ctx = make_ctx(NULL);
	struct piece p[4] = { 0 };

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		p[i].work.run = run;
	rc_lock(ctx);
	rc_defer_first(ctx, &p[0].work);
	rc_defer(ctx, &p[2].work);
	rc_defer_first(ctx, &p[1].work);
	rc_defer(ctx, &p[3].work);
	assert_int_equal(ctx->works.nr, 4);
	rc_unlock(ctx);
	assert_int_equal(nr_order, 4);
	for (unsigned i = 0; i < 4; i++)
		assert_ptr_equal(order[i], &p[i]);
	assert_int_equal(ctx->works.nr + ctx->works.running, 0);
	free(ctx);
}

static void urgent_work_of_the_last_work__runs_in_the_same_release(void **state)
{
	struct rref_ctx *ctx = make_ctx(NULL);
	struct piece p[3] = { 0 };

	(void)state;
	for (unsigned i = 0; i < 3; i++)
		p[i].work.run = run;
	p[0].urges = &p[1];
	p[1].urges = &p[2];
	rc_lock(ctx);
	rc_defer(ctx, &p[0].work);
	rc_unlock(ctx);
	assert_int_equal(nr_order, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_ptr_equal(order[i], &p[i]);
	assert_null(ctx->works.last_urgent);
	free(ctx);
}

static void work_that_defers_itself__goes_on_at_the_next_release(void **state)
{
	struct rref_ctx *ctx = make_ctx(NULL);
	struct piece p = { .work.run = run, .again = 1 };

	(void)state;
	/* A sleeper wakes for it. */
	ctx->sleep.kickfd = eventfd(0, EFD_NONBLOCK);
	at_store(&ctx->sleep.sleeping, 1);
	rc_lock(ctx);
	rc_defer(ctx, &p.work);
	rc_unlock(ctx);
	assert_int_equal(p.runs, 1);
	assert_int_equal(at_load(&ctx->sleep.kicked), 1);
	rc_lock(ctx);
	rc_unlock(ctx);
	assert_int_equal(p.runs, 2);
	rc_lock(ctx);
	rc_unlock(ctx);
	assert_int_equal(p.runs, 2);
	close(ctx->sleep.kickfd);
	free(ctx);
}

static void pushed_work__runs_in_the_order_of_the_pushes(void **state)
{
	struct rref_ctx *ctx = make_ctx(run_bare);
	struct piece p[4] = { 0 };

	(void)state;
	rc_lock(ctx);
	for (unsigned i = 0; i < 4; i++) {
		p[i].work.run = run;
		if (i & 1)
			rc_work_push_bare(ctx, &p[i].bare);
		else
			rc_work_push(ctx, &p[i].work);
	}
	assert_int_equal(rc_work_run_pushed(ctx), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_ptr_equal(order[i], &p[i]);
	rc_unlock(ctx);
	free(ctx);
}

/* Leaves the lock to others between two rounds. */
static void pushed_work__that_pushes_is_for_the_next_round(void **state)
{
	struct rref_ctx *ctx = make_ctx(NULL);
	struct piece last = { .work.run = run };
	struct piece first = { .work.run = run, .pushes = &last };

	(void)state;
	rc_lock(ctx);
	rc_work_push(ctx, &first.work);
	assert_int_equal(rc_work_run_pushed(ctx), 1);
	assert_int_equal(last.runs, 0);
	assert_int_equal(rc_work_run_pushed(ctx), 1);
	assert_int_equal(rc_work_run_pushed(ctx), 0);
	assert_int_equal(last.runs, 1);
	rc_unlock(ctx);
	free(ctx);
}

/* Takes the lock when nothing is pushed any more. */
static void lock_settled__runs_after_all_pushed_work(void **state)
{
	struct rref_ctx *ctx = make_ctx(NULL);
	struct piece last = { .work.run = run };
	struct piece first = { .work.run = run, .pushes = &last };

	(void)state;
	rc_work_push(ctx, &first.work);
	rc_lock_settled(ctx);
	assert_int_equal(last.runs, 1);
	rc_unlock(ctx);
	free(ctx);
}

static void pushed_work__is_run_by_the_holder_of_the_lock(void **state)
{
	struct rref_ctx *ctx = make_ctx(run_bare);
	struct piece p = { .work.run = run }, bare = { 0 };

	(void)state;
	rc_lock(ctx);
	rc_work_push(ctx, &p.work);
	rc_work_push_bare(ctx, &bare.bare);
	assert_int_equal(nr_order, 0);
	rc_unlock(ctx);
	assert_int_equal(p.runs, 1);
	assert_int_equal(bare.runs, 1);
	free(ctx);
}

static void work_pushed_by_work__runs_in_the_same_release(void **state)
{
	struct rref_ctx *ctx = make_ctx(run_bare);
	struct piece last = { .work.run = run }, middle = { .work.run = run, .pushes = &last };
	struct piece first = { .work.run = run, .pushes = &middle };

	(void)state;
	rc_lock(ctx);
	rc_defer(ctx, &first.work);
	rc_unlock(ctx);
	assert_int_equal(nr_order, 3);
	assert_ptr_equal(order[2], &last);
	assert_int_equal(at_load(&ctx->works.pushed), 0);
	free(ctx);
}

static struct rref_ctx *shared;
static _Atomic uint32_t arrived;

/* Waits for the other thread: both go on at once. */
static void meet(unsigned round)
{
	at_add_sc(&arrived, 1);
	for (unsigned turn = 1; at_load_sc(&arrived) < 2 * round; turn++)
		if (turn % 1024 == 0)
			sched_yield();
}

/* Pushes without waiting for the lock. */
static void *push_one_a_round(void *arg)
{
	struct piece *p = arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		meet(2 * i + 1);
		for (unsigned n = 0; n < 1000 && at_load(&shared->lock.word) == RC_UNLOCKED; n++)
			;
		for (volatile unsigned n = i % 64; n > 0; n--)
			;
		if (i % 2)
			rc_work_push(shared, &p[i].work);
		else
			rc_work_push_bare(shared, &p[i].bare);
		if (rc_trylock(shared))
			rc_unlock(shared);
		meet(2 * i + 2);
	}
	return NULL;
}

/* Pushes work just when another thread releases the lock, with no further release to come. */
static void work_pushed_at_the_release__is_done(void **state)
{
	struct piece *p = calloc(ROUNDS, sizeof(*p));
	unsigned left = 0;
	pthread_t thread;

	(void)state;
	assert_non_null(p);
	shared = make_ctx(run_bare);
	for (unsigned i = 0; i < ROUNDS; i++)
		p[i].work.run = run;
	assert_int_equal(pthread_create(&thread, NULL, push_one_a_round, p), 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		meet(2 * i + 1);
		rc_lock(shared);
		for (volatile unsigned n = i / 64 % 64; n > 0; n--)
			;
		rc_unlock(shared);
		meet(2 * i + 2);
		left += at_load(&shared->works.pushed) != 0;
		left += p[i].runs != 1;
	}
	pthread_join(thread, NULL);
	assert_int_equal(left, 0);
	free(p);
	free(shared);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(deferred_work__runs_in_order_at_the_release),
		cmocka_unit_test(lock_settled__runs_after_all_pushed_work),
		cmocka_unit_test(pushed_work__is_run_by_the_holder_of_the_lock),
		cmocka_unit_test(pushed_work__runs_in_the_order_of_the_pushes),
		cmocka_unit_test(pushed_work__that_pushes_is_for_the_next_round),
		cmocka_unit_test(urgent_work__goes_before_all_other),
		cmocka_unit_test(urgent_work_of_the_last_work__runs_in_the_same_release),
		cmocka_unit_test(work_that_defers_itself__goes_on_at_the_next_release),
		cmocka_unit_test(work_pushed_at_the_release__is_done),
		cmocka_unit_test(work_pushed_by_work__runs_in_the_same_release),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
