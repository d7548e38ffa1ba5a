/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tick looks at the peers with something to do, and at no other. So does the time of the next
 * tick. The memory of the other peers cannot be touched here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/session/internal.h"
#include "core/session/session.h"

#define WORLD 1000u
#define ONE 500u /* the only peer that can be touched */

static bool nobody_awaited(const struct rref_ctx *ctx, uint32_t rank)
{
	(void)ctx, (void)rank;
	return false;
}

static const struct rc_session_events events = { .is_awaited = nobody_awaited };

static void fence_later(struct rref_ctx *ctx, struct rc_work *w)
{
	(void)ctx, (void)w;
	fail();
}

static void protect(struct rref_ctx *ctx, size_t from, size_t to)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	from = (from + page - 1) & ~(page - 1);
	to &= ~(page - 1);
	assert_int_equal(mprotect((char *)ctx->peers + from, to - from, PROT_NONE), 0);
}

/* Makes a context under its lock, with one peer whose session is up. */
static struct rref_ctx *make_group(void)
{
	size_t bytes = WORLD * sizeof(struct rc_peer);
	struct rref_ctx *ctx = aligned_alloc(CACHE_LINE, sizeof(*ctx));
	struct rc_peer *p;

	assert_non_null(ctx);
	memset(ctx, 0, sizeof(*ctx));
	ctx->world = WORLD;
	ctx->session.events = &events;
	ctx->session.fence = fence_later;
	ctx->session.peer_timeout = ctx->session.stall_timeout = NSEC_PER_SEC;
	list_init(&ctx->session.watched);
	list_init(&ctx->session.self_queue);
	list_init(&ctx->hooks.due);
	list_init(&ctx->value.onlookers);
	for (int k = 0; k < RV_NR_KINDS; k++)
		list_init(&ctx->session.looks[k]);
	ctx->peers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(ctx->peers != MAP_FAILED);
	p = &ctx->peers[ONE];
	p->rank = ONE;
	p->kind = RV_IBV;
	p->state = RC_PEER_UP;
	list_init(&p->watched);
	list_init(&p->looked);
	protect(ctx, 0, ONE * sizeof(*p));
	protect(ctx, (ONE + 1) * sizeof(*p), bytes);
	rc_lock(ctx);
	return ctx;
}

static void free_group(struct rref_ctx *ctx)
{
	rc_unlock_bare(ctx);
	munmap(ctx->peers, WORLD * sizeof(struct rc_peer));
	free(ctx);
}

static void a_tick__touches_no_peer_without_work(void **state)
{
	struct rref_ctx *ctx = make_group();
	int64_t now = now_ns();

	(void)state;
	rc_peer_tick(ctx, now);
	rc_send_tick(ctx, now);
	assert_int_equal(rc_send_due(ctx), INT64_MAX);
	assert_true(rc_next_timer(ctx, now) >= 500 * NSEC_PER_MSEC);
	free_group(ctx);
}

static void a_watched_peer__has_its_time_and_its_tick(void **state)
{
	struct rref_ctx *ctx = make_group();
	struct rc_peer *p = &ctx->peers[ONE];
	int64_t now = now_ns();

	(void)state;
	p->stall.fence_at = now + 50 * NSEC_PER_MSEC;
	p->probe_at = INT64_MAX;
	rc_peer_watch(ctx, p);
	assert_int_equal(rc_next_timer(ctx, now), 50 * NSEC_PER_MSEC);
	rc_peer_tick(ctx, now);
	assert_int_equal(p->state, RC_PEER_UP);
	assert_false(list_empty(&p->watched));
	rc_peer_tick(ctx, p->stall.fence_at);
	assert_int_equal(p->state, RC_PEER_ENDING);
	/* The fence alone is left: it is no tick's work. */
	p->stall.fence_at = 0;
	rc_peer_tick(ctx, now);
	assert_true(list_empty(&ctx->session.watched));
	free_group(ctx);
}

static void a_change_of_state__is_looked_at(void **state)
{
	struct rref_ctx *ctx = make_group();
	struct rc_peer *p = &ctx->peers[ONE];

	(void)state;
	rc_session_on(ctx, p, RC_SEE_MESSAGE);
	assert_true(list_empty(&p->watched));
	rc_session_on(ctx, p, RC_STEP_BROKE);
	assert_false(list_empty(&p->watched));
	free_group(ctx);
}

static void a_heartbeat__is_looked_at_in_its_turn(void **state)
{
	struct rref_ctx *ctx = make_group();
	struct rc_peer *p = &ctx->peers[ONE];
	int64_t now = now_ns(), half = NSEC_PER_SEC / 2;

	(void)state;
	rc_stall_again(ctx, p, now);
	assert_int_equal(rc_peer_look_due(ctx, RV_IBV), now + half);
	assert_int_equal(rc_peer_look_due(ctx, RV_SHM), INT64_MAX);
	rc_peer_tick(ctx, now + half - 1);
	assert_int_equal(p->probe_at, now + half);
	rc_stall_end(p);
	assert_int_equal(rc_peer_look_due(ctx, RV_IBV), INT64_MAX);
	rc_peer_tick(ctx, now + half);
	free_group(ctx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_tick__touches_no_peer_without_work),
		cmocka_unit_test(a_watched_peer__has_its_time_and_its_tick),
		cmocka_unit_test(a_change_of_state__is_looked_at),
		cmocka_unit_test(a_heartbeat__is_looked_at_in_its_turn),
	};

	return cmocka_run_group_tests_name("tick", tests, NULL, NULL);
}
