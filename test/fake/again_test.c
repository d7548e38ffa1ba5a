/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads whose ends are in the hand of a thread that stands still. A layer between provider and core
 * plays that thread. It has taken the ends out of the device's queue, and keeps them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "test/roce/read/hold.h"
#include "core/op/kind.h"
#include "core/read/read.h"
#include "core/session/internal.h"
#include "core/session/session.h"
#include "fg.h"

#define BYTES 3000u
#define LARGE ((size_t)5 << 20) /* a read of so much is never asked for again */
#define SOON_NS (20 * tg_slow() * NSEC_PER_SEC)

static struct fg g;
static struct rref_ctx *ctx;

static struct rref *value_known(size_t length)
{
	struct rref *r = fg_value(&g, 1, 0, length, (unsigned)length);

	fg_read(r, length, (unsigned)length);
	return r;
}

static atomic_int arena_stage; /* 1: the next thread that comes stops there; 2: it stands there */
static _Atomic(struct ra_arena *) arena; /* NULL, or the arena that this is about */

static int again_begin(void **state)
{
	(void)state;
	g = (struct fg){ .world = 2 };
	fg_join(&g);
	ctx = g.ctx[0];
	return 0;
}

static bool nothing_is_left(struct rref_ctx *c, void *arg)
{
	struct rref_stats s = tg_stats(c);

	(void)arg;
	rref_progress(c);
	return !s.quarantined && !s.ops_in_flight && !s.landing_bytes && !s.waiting_reads;
}

/* Lets the ends come after all. Nothing of the reads is left then. */
static int again_end(void **state)
{
	(void)state;
	release(ctx);
	TG_CHECK(tg_eventually(nothing_is_left, ctx, NULL));
	atomic_store(&arena, NULL);
	fg_leave(&g);
	return 0;
}

/* Begins a read whose end, of nr READs, is kept. again: another read may stand in for it. */
static struct rref_future *keep_the_end(struct rref *ref, unsigned nr, bool again)
{
	unsigned n = atomic_load(&nr_held) + nr;
	struct rref_future *f;

	hold(ctx, nr);
	at_store(&rc_never_again, !again);
	TG_OK(rref_to_here_async(ref, RREF_FOREVER, &f));
	TG_CHECK(tg_eventually(holds, ctx, &n));
	return f;
}

static void cut_session(void)
{
	rc_lock(ctx);
	rc_session_end(ctx, &ctx->peers[1], -EOWNERDEAD, "the test ends it");
	rc_unlock(ctx);
}

static bool may_come_again(struct rref_ctx *c, void *arg)
{
	bool may;

	(void)arg;
	rc_lock(c);
	may = c->peers[1].state == RC_PEER_DOWN && now_ns() >= c->peers[1].retry_at;
	rc_unlock(c);
	return may;
}

static void *read_to_the_end(void *arg)
{
	struct rref_view *v;

	TG_IS(rref_to_here(arg, RREF_FOREVER, &v), -EOWNERDEAD);
	return NULL;
}

/* Makes two reads. A thread waits for the second one alone. */
static void owner__dies_while_a_thread_has_the_end(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rref_future *f = keep_the_end(ref, 1, false);
	unsigned two = 2;
	pthread_t thread;

	(void)state;
	hold(ctx, 1);
	TG_IS(pthread_create(&thread, NULL, read_to_the_end, ref), 0);
	TG_CHECK(tg_eventually(holds, ctx, &two));
	cut_session();
	for (int64_t end = now_ns() + SOON_NS; !rref_future_test(f); tg_pause())
		TG_CHECK(now_ns() < end);
	TG_IS(rref_future_wait(f, 0), -EOWNERDEAD);
	at_store(&rc_never_again, false); /* the thread's read was no operation at that time */
	TG_IS(pthread_join(thread, NULL), 0);
	TG_IS(atomic_load(&nr_held), 2);
	rref_future_free(f);
	rref_release(ref);
	TG_CHECK(tg_eventually(may_come_again, ctx, NULL));
	rref_release(value_known(BYTES)); /* another session */
}

static atomic_uint nr_told[2]; /* [1]: by the waiter */
static _Thread_local bool is_waiter;

bool __real_rc_read_late(struct rref_future *f, int64_t waited);
bool __wrap_rc_read_late(struct rref_future *f, int64_t waited);

bool __wrap_rc_read_late(struct rref_future *f, int64_t waited)
{
	atomic_fetch_add(&nr_told[is_waiter], 1);
	return __real_rc_read_late(f, waited);
}

static void *wait_for_this(void *f)
{
	struct rref_future *fs[1] = { f };

	is_waiter = true;
	TG_IS(rref_wait_any(fs, 1, RREF_FOREVER), 0);
	return NULL;
}

/* Has a thread in the allocator whenever one would ask. At doubled times the tries take long. */
static void waiter__that_cannot_ask_tries_again(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rref_future *f;
	pthread_t thread;

	(void)state;
	at_add(&ctx->value.in_landing, 1);
	f = keep_the_end(ref, 1, true);
	for (int i = 0; i < 2; i++)
		atomic_store(&nr_told[i], 0);
	TG_IS(pthread_create(&thread, NULL, wait_for_this, f), 0);
	for (int64_t end = now_ns() + SOON_NS;
	     atomic_load(&nr_told[0]) < 12 || atomic_load(&nr_told[1]) < 25; tg_pause())
		TG_CHECK(now_ns() < end);
	TG_CHECK(!rref_future_test(f));
	at_sub(&ctx->value.in_landing, 1);
	TG_IS(pthread_join(thread, NULL), 0);
	TG_OK(rref_future_wait(f, 0));
	rref_future_free(f);
	rref_release(ref);
}

static void note_the_call(struct rref_future *f, void *arg)
{
	(void)f;
	atomic_store((atomic_int *)arg, 1);
}

static void futures__that_no_thread_waits_for(void **state)
{
	struct rref *ref = value_known(BYTES), *more = value_known(2 * BYTES);
	struct rref_future *f = keep_the_end(ref, 1, true), *h = keep_the_end(more, 1, true), *out;
	struct rref_queue *q;
	atomic_int called = 0;

	(void)state;
	TG_OK(rref_future_then(f, note_the_call, &called));
	TG_OK(rref_queue_new(ctx, &q));
	TG_OK(rref_queue_add(q, h, NULL));
	TG_OK(rref_queue_next(q, SOON_NS, &out, NULL));
	TG_CHECK(out == h);
	for (int64_t end = now_ns() + SOON_NS; !atomic_load(&called); tg_pause())
		TG_CHECK(now_ns() < end);
	TG_IS(atomic_load(&nr_held), 2);
	TG_OK(rref_future_wait(f, 0));
	rref_future_free(f);
	rref_future_free(h);
	rref_queue_free(q);
	rref_release(ref);
	rref_release(more);
}

static void value__is_gone_while_a_thread_has_the_end(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rref_future *f = keep_the_end(ref, 1, true);

	(void)state;
	f->loc.nonce ^= 1; /* the second read finds another value there */
	TG_IS(rref_future_wait(f, SOON_NS), -ESTALE);
	TG_IS(atomic_load(&nr_held), 1);
	rref_future_free(f);
	rref_release(ref);
}

static void connection__breaks_while_a_thread_has_the_end(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rref_future *f = keep_the_end(ref, 1, true);

	(void)state;
	fv_knobs(0)->hold_destroys = 1;
	rc_lock(ctx);
	rc_resume_break(ctx, &ctx->peers[1], -ECONNRESET, "the test breaks it");
	rc_unlock(ctx);
	TG_IS(rref_future_wait(f, 100 * NSEC_PER_MSEC), -ETIMEDOUT);
	TG_CHECK(!rref_future_test(f)); /* a second read that finds no connection says nothing */
	fv_knobs(0)->hold_destroys = 0;
	TG_OK(rref_future_wait(f, SOON_NS));
	TG_IS(atomic_load(&nr_held), 1);
	rref_future_free(f);
	rref_release(ref);
}

/* Puts the view into the read, as a thread does that stops before it ends the read. */
static void view__is_there_and_the_read_not_ended(void **state)
{
	struct rref *ref = value_known(LARGE);
	struct rref_future *f;
	struct rref_view *v, *none = NULL;

	(void)state;
	TG_OK(rref_to_here(ref, RREF_FOREVER, &v));
	f = keep_the_end(ref, 1, true);
	TG_CHECK(at_cas_ar(&f->view, &none, v));
	TG_OK(rref_future_wait(f, SOON_NS));
	TG_OK(rref_future_view(f, &v));
	fg_check(v, LARGE, LARGE);
	rref_future_free(f);
	rref_release(ref);
}

static void *hold_the_lock(void *arg)
{
	rc_lock(ctx);
	atomic_store((atomic_int *)arg, 1);
	while (atomic_load((atomic_int *)arg) != 2)
		tg_pause();
	rc_unlock(ctx);
	return NULL;
}

/* Leaves a read that fails to the lock, so that no thread stops between its two states. */
static void header__of_another_value_is_for_the_lock(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rref_future *f = keep_the_end(ref, 1, false);
	atomic_int stage = 0;
	pthread_t thread;

	(void)state;
	f->loc.nonce ^= 1;
	TG_IS(pthread_create(&thread, NULL, hold_the_lock, &stage), 0);
	while (!atomic_load(&stage))
		tg_pause();
	release(ctx);
	TG_IS(rref_future_wait(f, 200 * NSEC_PER_MSEC), -ETIMEDOUT);
	TG_IS(atomic_load(&nr_held), 0);
	TG_IS(at_load(&f->state) & RC_F_MASK, RC_F_PENDING);
	atomic_store(&stage, 2);
	TG_IS(rref_future_wait(f, SOON_NS), -ESTALE);
	TG_IS(pthread_join(thread, NULL), 0);
	rref_future_free(f);
	rref_release(ref);
}

static void *read_for_a_while(void *arg)
{
	struct rref_view *v;

	TG_IS(rref_to_here(arg, 300 * NSEC_PER_MSEC, &v), -ETIMEDOUT);
	return NULL;
}

static void wait__times_out_while_a_thread_has_the_lock(void **state)
{
	unsigned n = atomic_load(&nr_held) + 1;
	struct rref *ref = value_known(BYTES);
	pthread_t reader, holder;
	atomic_int stage = 0;

	(void)state;
	hold(ctx, 1);
	TG_IS(pthread_create(&reader, NULL, read_for_a_while, ref), 0);
	TG_CHECK(tg_eventually(holds, ctx, &n));
	TG_IS(pthread_create(&holder, NULL, hold_the_lock, &stage), 0);
	while (!atomic_load(&stage))
		tg_pause();
	TG_IS(pthread_join(reader, NULL), 0);
	atomic_store(&stage, 2);
	TG_IS(pthread_join(holder, NULL), 0);
	TG_IS(tg_stats(ctx).quarantined, 1);
	rref_release(ref);
}

/* ---- a second read that would wait for another thread ---- */

/* Waits for f, which no other read stands in for as long as another thread is in its way. */
static void is_in_the_way(struct rref_future *f)
{
	uint64_t again = tg_stats(ctx).reads_again;

	TG_IS(rref_future_wait(f, 300 * NSEC_PER_MSEC), -ETIMEDOUT);
	TG_IS(tg_stats(ctx).reads_again, again);
}

static void slots__grow_on_a_thread_that_stands_still(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rref_future *f = keep_the_end(ref, 1, true), *taken[2 * RC_OP_CHUNK];
	unsigned n = 0;

	(void)state;
	do
		TG_OK(rc_op_get(ctx, &rc_read_kind, 0, &taken[n++]));
	while ((uint32_t)at_load(&ctx->op.free));
	pthread_mutex_lock(&ctx->op.grow_lock);
	is_in_the_way(f);
	pthread_mutex_unlock(&ctx->op.grow_lock);
	TG_OK(rref_future_wait(f, SOON_NS));
	TG_IS(atomic_load(&nr_held), 1);
	while (n--) {
		rc_op_put(taken[n]);
		rc_op_put(taken[n]);
	}
	rref_future_free(f);
	rref_release(ref);
}

int __real_ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out);
int __wrap_ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out);

/* Lets nobody pass a thread that stands still here, as the allocator's locks would not. */
int __wrap_ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out)
{
	int one = 1;

	if (a == atomic_load(&arena)) {
		atomic_compare_exchange_strong(&arena_stage, &one, 2);
		while (atomic_load(&arena_stage) == 2)
			tg_pause();
	}
	return __real_ra_alloc(a, size, align, out);
}

static void *take_large(void *ref)
{
	fg_read(ref, LARGE, (unsigned)LARGE);
	return NULL;
}

static void arena__has_a_thread_that_stands_still(void **state)
{
	struct rref *ref = value_known(BYTES), *large = value_known(LARGE);
	struct rref_future *f = keep_the_end(ref, 1, true);
	pthread_t thread;

	(void)state;
	atomic_store(&arena, ctx->value.landing);
	atomic_store(&arena_stage, 1);
	TG_IS(pthread_create(&thread, NULL, take_large, large), 0);
	while (atomic_load(&arena_stage) != 2)
		tg_pause();
	is_in_the_way(f);
	atomic_store(&arena_stage, 0);
	TG_IS(pthread_join(thread, NULL), 0);
	TG_OK(rref_future_wait(f, SOON_NS));
	TG_IS(atomic_load(&nr_held), 1);
	rref_future_free(f);
	rref_release(ref);
	rref_release(large);
}

/* ---- a heartbeat whose end comes at once ---- */

static _Atomic bool at_once;
static _Atomic uint32_t in_flight_then;

/* Takes in the end of a heartbeat's READ before its post returns. */
static int post_and_take(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	int posted = __real_rv_ibv_ops.post_reads(conn, r, n);
	bool due;

	if (posted == 1 && r->cookie == RC_PROBE_COOKIE && at_load(&at_once)) {
		while (!(at_load(&ctx->peers[1].later_what) & RC_LATER_HEARTBEAT))
			rc_reads_look(ctx, &due);
		at_store(&in_flight_then, at_load(&ctx->sleep.reads_in_flight));
	}
	return posted;
}

__attribute__((constructor)) static void lay_more(void)
{
	__wrap_rv_ibv_ops.post_reads = post_and_take;
}

static void heartbeat__ends_at_once(void **state)
{
	struct rref *ref = value_known(BYTES);
	struct rc_peer *p = &ctx->peers[1];

	(void)state;
	TG_CHECK(tg_eventually(nothing_is_left, ctx, NULL));
	rc_lock(ctx);
	TG_CHECK(!p->probing);
	at_store(&in_flight_then, UINT32_MAX);
	at_store(&at_once, true);
	p->probe_at = 0;
	rc_stall_tick(ctx, p, now_ns());
	at_store(&at_once, false);
	rc_unlock(ctx);
	TG_IS(at_load(&in_flight_then), 0);
	rc_lock(ctx);
	TG_CHECK(!p->probing);
	rc_unlock(ctx);
	rref_release(ref);
}

#define AGAIN(name) cmocka_unit_test_setup_teardown(name, again_begin, again_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		AGAIN(arena__has_a_thread_that_stands_still),
		AGAIN(connection__breaks_while_a_thread_has_the_end),
		AGAIN(futures__that_no_thread_waits_for),
		AGAIN(header__of_another_value_is_for_the_lock),
		AGAIN(heartbeat__ends_at_once),
		AGAIN(owner__dies_while_a_thread_has_the_end),
		AGAIN(slots__grow_on_a_thread_that_stands_still),
		AGAIN(value__is_gone_while_a_thread_has_the_end),
		AGAIN(view__is_there_and_the_read_not_ended),
		AGAIN(waiter__that_cannot_ask_tries_again),
		AGAIN(wait__times_out_while_a_thread_has_the_lock),
	};

	return cmocka_run_group_tests_name("again", tests, NULL, NULL);
}
