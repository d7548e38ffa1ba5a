/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that read, of which one is stopped at a random instruction of the library. The others
 * make 1,000 reads each meanwhile, in all ways. Then another thread is stopped, thousands of times.
 * No thread that stands still may stop the others, wherever it stands.
 *
 * The values that they read are worker 1's. Beside them other sessions are fenced, break and go on,
 * and end with their workers. One more thread reads from such workers, and is stopped too. A fence
 * waits for a thread that posts to that very worker, but stops no other thread.
 *
 * A failure prints the stacks of all threads. RREF_TEST_FREEZES is the number of stops in each
 * group.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/session/session.h"
#include "core/session/table.h"
#include "fg.h"
#include "fz.h"
#include "fz_owner.h"

#define FREEZES 5000
#define PLACES 150u /* different instructions at which threads have to stop, of so many stops */
#define LIMIT_NS (30 * NSEC_PER_SEC) /* a group's time, unless RREF_TEST_FREEZES is set */
#define READS 1000u /* reads of each other thread while one stands still */
#define STEPS 300u /* up to so many steps from where the signal came */

#define WORLD 6
#define FENCED 2
#define RESUMED 3
#define FIRST_LEAVER 4

#define THREADS 5
#define ROVER (THREADS - 1) /* reads from RESUMED and FENCED; not waited for */

#define MIDDLE 5000u
#define LARGE (600u * KIB)

int __real_ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out);
void __real_ra_free(struct ra_arena *a, void *p, size_t size);
int __wrap_ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out);
void __wrap_ra_free(struct ra_arena *a, void *p, size_t size);

int __wrap_ra_alloc(struct ra_arena *a, size_t size, size_t align, void **out)
{
	int err;

	fz_arena(1);
	err = __real_ra_alloc(a, size, align, out);
	fz_arena(-1);
	return err;
}

void __wrap_ra_free(struct ra_arena *a, void *p, size_t size)
{
	fz_arena(1);
	__real_ra_free(a, p, size);
	fz_arena(-1);
}

/* ---- the readers ---- */

struct scene {
	struct rref_ctx *ctx;
	struct rref *one, *middle, *large, *wrapped, *many[BATCH];
	atomic_bool over;
	atomic_uint fences, breaks, leaves;
	int (*leave)(int rank);
	struct reader {
		struct fz_thread freeze;
		struct scene *s;
		pthread_t thread;
		unsigned random;
		_Atomic uint64_t reads;
		_Atomic(const char *) way;
	} reader[THREADS];
};

static void check_bytes(struct rref_view *v, size_t length, unsigned seed)
{
	const char *at = rref_view_data(v);

	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(at, min_of(length, (size_t)64), 0, seed));
	TG_CHECK(tg_filled(at + length - 1, 1, length - 1, seed));
	rref_view_free(v);
}

static unsigned read_one(struct reader *r)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r->s->one, RREF_FOREVER, &v));
	check_bytes(v, 8, 8);
	return 1;
}

static unsigned read_middle(struct reader *r)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r->s->middle, RREF_FOREVER, &v));
	check_bytes(v, MIDDLE, MIDDLE);
	return 1;
}

static unsigned read_by_future(struct reader *r)
{
	struct rref_future *f;
	struct rref_view *v;

	TG_OK(rref_to_here_async(r->s->one, RREF_FOREVER, &f));
	TG_OK(rref_future_wait(f, RREF_FOREVER));
	TG_OK(rref_future_view(f, &v));
	check_bytes(v, 8, 8);
	rref_future_free(f);
	return 1;
}

static unsigned read_several(struct reader *r)
{
	struct rref_future *f[BATCH];
	struct rref_view *v;

	for (unsigned i = 0; i < BATCH; i++)
		TG_OK(rref_to_here_async(r->s->many[i], RREF_FOREVER, &f[i]));
	TG_OK(rref_wait_all(f, BATCH, RREF_FOREVER));
	for (unsigned i = 0; i < BATCH; i++) {
		TG_OK(rref_future_view(f[i], &v));
		check_bytes(v, 64, 64);
		rref_future_free(f[i]);
	}
	return BATCH;
}

static unsigned read_any(struct reader *r)
{
	struct rref_future *f[BATCH];
	struct rref_view *v;

	for (unsigned i = 0; i < BATCH; i++)
		TG_OK(rref_to_here_async(r->s->many[i], RREF_FOREVER, &f[i]));
	for (unsigned n = BATCH; n; n--) {
		int i = rref_wait_any(f, n, RREF_FOREVER);

		TG_OK(i);
		TG_OK(rref_future_view(f[i], &v));
		check_bytes(v, 64, 64);
		rref_future_free(f[i]);
		f[i] = f[n - 1];
	}
	return BATCH;
}

static unsigned read_batch(struct reader *r)
{
	struct rref_view *v[BATCH];
	int status[BATCH];

	TG_IS(rref_to_here_batch(r->s->many, BATCH, RREF_FOREVER, v, status), (int)BATCH);
	for (unsigned i = 0; i < BATCH; i++)
		check_bytes(v[i], 64, 64);
	return BATCH;
}

static unsigned read_a_range(struct reader *r)
{
	char buf[300];
	size_t got;

	TG_OK(rref_to_here_into(r->s->middle, buf, 1000, sizeof(buf), RREF_FOREVER, &got));
	TG_IS(got, sizeof(buf));
	TG_CHECK(tg_filled(buf, sizeof(buf), 1000, MIDDLE));
	return 1;
}

static unsigned read_wrapped_range(struct reader *r)
{
	char buf[300];
	size_t got;

	TG_OK(rref_to_here_into(r->s->wrapped, buf, 1000, sizeof(buf), RREF_FOREVER, &got));
	TG_IS(got, sizeof(buf));
	TG_CHECK(tg_filled(buf, sizeof(buf), 1000, 100 * KIB));
	return 1;
}

static unsigned read_wrapped(struct reader *r)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r->s->wrapped, RREF_FOREVER, &v));
	check_bytes(v, 100 * KIB, 100 * KIB);
	return 1;
}

static unsigned read_large(struct reader *r)
{
	struct rref_view *v;

	TG_OK(rref_to_here(r->s->large, RREF_FOREVER, &v));
	check_bytes(v, LARGE, LARGE);
	return 1;
}

/* The ways, and how often they are taken, of 256. */
static const struct way {
	const char *name;
	unsigned (*read)(struct reader *r);
	unsigned share;
} ways[] = {
	{ "to_here", read_one, 80 },
	{ "to_here of 5,000 bytes", read_middle, 20 },
	{ "to_here_async and its wait", read_by_future, 50 },
	{ "to_here_async 14 times, wait_all", read_several, 30 },
	{ "to_here_async 14 times, wait_any", read_any, 14 },
	{ "to_here_batch of 14", read_batch, 30 },
	{ "a range", read_a_range, 20 },
	{ "a range of wrapped memory", read_wrapped_range, 6 },
	{ "wrapped memory", read_wrapped, 4 },
	{ "to_here in pieces", read_large, 2 },
};

static unsigned next_random(unsigned *x)
{
	return (*x = *x * 1664525 + 1013904223) >> 16;
}

static const struct way *some_way(struct reader *r)
{
	unsigned k = next_random(&r->random) % 256, i = 0;

	while (k >= ways[i].share)
		k -= ways[i++].share;
	return &ways[i];
}

static void *read_until_over(void *arg)
{
	struct reader *r = arg;

	fz_join(&r->freeze);
	while (!at_load(&r->s->over)) {
		const struct way *w = some_way(r);

		at_store(&r->way, w->name);
		at_add_mine(&r->reads, w->read(r));
	}
	return NULL;
}

/* Reads from workers whose connection breaks, or whose session ends, now and then. */
static void *rove(void *arg)
{
	static const int owner[] = { RESUMED, FENCED };
	struct rref *theirs[array_size(owner)] = { NULL };
	struct reader *r = arg;
	struct rref_view *v;

	fz_join(&r->freeze);
	at_store(&r->way, "to_here from a worker whose connection breaks");
	while (!at_load(&r->s->over)) {
		unsigned i = next_random(&r->random) % array_size(owner);

		if (!theirs[i] && ask_any_owner(r->s->ctx, owner[i], MIDDLE, &theirs[i]))
			continue;
		/* A session that cannot go on is cut off, and another one begins. */
		if (rref_to_here(theirs[i], RREF_FOREVER, &v)) {
			rref_release(theirs[i]);
			theirs[i] = NULL;
			continue;
		}
		check_bytes(v, MIDDLE, MIDDLE);
		at_add_mine(&r->reads, 1);
	}
	for (unsigned i = 0; i < array_size(owner); i++)
		rref_release(theirs[i]);
	return NULL;
}

/* ---- the other peers ---- */

static void fence_other(struct scene *s)
{
	struct rref_future *f;

	rc_lock(s->ctx);
	if (rc_state_stands(s->ctx->peers[FENCED].state))
		rc_session_end(s->ctx, &s->ctx->peers[FENCED], -ECONNRESET, "the test ends it");
	rc_unlock(s->ctx);
	atomic_fetch_add(&s->fences, 1);
	/* A new session: this may come too early for it. */
	if (!rref_rpc_sync(s->ctx, FENCED, "tg.nothing", NULL, NSEC_PER_SEC, &f))
		rref_future_free(f);
}

/* Ends a connection by a READ that its device refuses. */
static void break_other(struct scene *s)
{
	struct rref_ctx *ctx = s->ctx;
	struct rc_peer *p = &ctx->peers[RESUMED];

	rc_lock(ctx);
	if (at_load(&p->conn)) {
		void *base, *at = ctx->session.probe_landing;
		const struct rc_region *region = ra_lookup(ctx->value.landing, at, &base);
		struct rv_read r = { .cookie = UINT64_MAX,
				     .addr = 64,
				     .rkey = 0x5a5a5a,
				     .nr_sge = 1,
				     .sge[0] = { at, 8, region->mr[p->kind].lkey } };

		if (p->ops->post_reads(p->link, &r, 1) == 1) {
			atomic_fetch_add(&s->breaks, 1);
			if (p->kind == RV_IBV)
				at_add(&ctx->sleep.reads_in_flight, 1);
		}
	}
	rc_unlock(ctx);
}

/* Fences, breaks and leaves until the readers have been stopped often enough. */
static void *disturb(void *arg)
{
	struct scene *s = arg;

	for (int i = 0; !at_load(&s->over); i++) {
		usleep(20000);
		if (i % 2)
			fence_other(s);
		else
			break_other(s);
		if (i >= 4 && i - 4 < WORLD - FIRST_LEAVER) {
			TG_OK(s->leave(FIRST_LEAVER + i - 4));
			atomic_fetch_add(&s->leaves, 1);
		}
	}
	return NULL;
}

/* ---- the test ---- */

/* Prints the stacks of all threads. */
static void tell_all(struct scene *s, int stopped, const uint64_t *before)
{
	char where[80];

	fz_where(&s->reader[stopped].freeze, where, sizeof(where));
	fprintf(stderr, "thread %d stands at %s, in %s:\n", stopped, where,
		at_load(&s->reader[stopped].way));
	fz_tell(&s->reader[stopped].freeze);
	for (int i = 0; i < THREADS; i++) {
		struct reader *r = &s->reader[i];

		if (i == stopped)
			continue;
		fprintf(stderr, "thread %d has made %lu reads%s; it is in %s:\n", i,
			(unsigned long)(at_load(&r->reads) - before[i]),
			i == ROVER ? ", and need not go on" : "", at_load(&r->way));
		fz_tell(&r->freeze);
	}
	_exit(1);
}

static bool has_made(struct scene *s, int i, int stopped, const uint64_t *before)
{
	return i == stopped || i == ROVER || at_load(&s->reader[i].reads) - before[i] >= READS;
}

/* Stops a thread, lets the others read, and lets it go on. Returns whether it was stopped. */
static bool freeze_one(struct scene *s, unsigned *x)
{
	int stopped = (int)(next_random(x) % THREADS);
	int64_t end = now_ns() + 20 * tg_slow() * NSEC_PER_SEC;
	uint64_t before[THREADS];

	if (!fz_stop(&s->reader[stopped].freeze, next_random(x) % STEPS))
		return false;
	for (int i = 0; i < THREADS; i++)
		before[i] = at_load(&s->reader[i].reads);
	for (int i = 0; i < THREADS; i++)
		while (!has_made(s, i, stopped, before)) {
			if (now_ns() > end)
				tell_all(s, stopped, before);
			usleep(50);
		}
	fz_go_on(&s->reader[stopped].freeze);
	return true;
}

/* Stops threads as often as it is to be, or as there is time. */
static void freeze_all(struct scene *s)
{
	const char *env = getenv("RREF_TEST_FREEZES");
	unsigned long left = env ? strtoul(env, NULL, 10) : FREEZES;
	int64_t end = env ? INT64_MAX : now_ns() + LIMIT_NS * tg_slow();
	unsigned x = 1;

	while (left && now_ns() < end)
		left -= freeze_one(s, &x);
}

static void freeze_many(struct scene *s, const char *group)
{
	pthread_t disturber;
	struct fz_counts n;

	fz_open();
	for (unsigned i = 0; i < THREADS; i++) {
		struct reader *r = &s->reader[i];

		r->s = s;
		r->random = i + 1;
		TG_IS(pthread_create(&r->thread, NULL, i == ROVER ? rove : read_until_over, r), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		while (at_load(&s->reader[i].reads) < 10)
			tg_pause();
	TG_IS(pthread_create(&disturber, NULL, disturb, s), 0);
	freeze_all(s);
	at_store(&s->over, true);
	for (int i = 0; i < THREADS; i++)
		TG_IS(pthread_join(s->reader[i].thread, NULL), 0);
	TG_IS(pthread_join(disturber, NULL), 0);
	n = fz_count();
	printf("%s: %lu stops at %u instructions of %u functions (%lu more nowhere); meanwhile %u "
	       "fences, %u breaks, %u leaves\n",
	       group, n.stops, n.instructions, n.functions, n.missed, s->fences, s->breaks,
	       s->leaves);
	fflush(stdout);
	TG_CHECK(n.instructions >= min_of(n.stops / 4, (unsigned long)PLACES));
	TG_CHECK(s->fences && s->breaks);
}

static void take_values(struct scene *s)
{
	struct rref_future *f;

	s->one = ask_owner(s->ctx, 8);
	s->middle = ask_owner(s->ctx, MIDDLE);
	s->large = ask_owner(s->ctx, LARGE);
	s->wrapped = ask_owner(s->ctx, 0);
	TG_OK(rref_rpc_sync(s->ctx, OWNER, "give", NULL, RREF_DEFAULT, &f));
	for (unsigned i = 0; i < BATCH; i++)
		TG_OK(rref_future_ref(f, i, &s->many[i]));
	rref_future_free(f);
}

static void release_values(struct scene *s)
{
	rref_release(s->one);
	rref_release(s->middle);
	rref_release(s->large);
	rref_release(s->wrapped);
	for (unsigned i = 0; i < BATCH; i++)
		rref_release(s->many[i]);
}

/* ---- over shm ---- */

static int leave_there(int rank)
{
	tg_set_flag(rank, 1);
	return 0;
}

static int shm_worker(int rank, void *arg)
{
	struct rref_ctx *ctx;
	struct rref_options o;

	(void)arg;
	tg_options(&o, rank);
	o.device = "shm";
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	add_owner(ctx);
	tg_meet_serving(ctx, 15);
	if (rank == 0) {
		struct scene s = { .ctx = ctx, .leave = leave_there };

		take_values(&s);
		freeze_many(&s, "shm");
		release_values(&s);
		for (int i = OWNER; i < WORLD; i++)
			tg_set_flag(i, 1);
	} else {
		tg_wait_flag_serving(ctx, rank, 1);
	}
	if (lent.mem) {
		until_back(ctx, &lent);
		give_up(&lent);
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 60 * NSEC_PER_SEC));
	rref_free_ctx(ctx);
	return 0;
}

static void threads__over_shm(void **state)
{
	struct tg_group g = { .world = WORLD, .timeout_s = 240 };

	(void)state;
	if (!fz_can())
		skip();
	setenv("RREF_SHM_MAX_MSG", "262144", 1);
	assert_int_equal(tg_run_group(&g, shm_worker, NULL), 0);
	unsetenv("RREF_SHM_MAX_MSG");
}

/* ---- fake devices ---- */

static struct fg fakes;

static int leave_here(int rank)
{
	int err = rref_shutdown(fakes.ctx[rank], RREF_SHUTDOWN_NOW, 60 * NSEC_PER_SEC);

	rref_free_ctx(fakes.ctx[rank]);
	fakes.ctx[rank] = NULL;
	return err;
}

static void threads__over_fake_devices(void **state)
{
	struct scene s = { .leave = leave_here };

	(void)state;
	if (!fz_can())
		skip();
	fakes.world = WORLD;
	fg_join(&fakes);
	for (int i = 0; i < WORLD; i++)
		add_owner(fakes.ctx[i]);
	s.ctx = fakes.ctx[0];
	take_values(&s);
	freeze_many(&s, "fake");
	release_values(&s);
	tg_current->deadline = now_ns() + 60 * tg_slow() * NSEC_PER_SEC;
	until_back(fakes.ctx[OWNER], &lent);
	give_up(&lent);
	for (int i = 0; i < WORLD; i++)
		if (fakes.ctx[i])
			TG_OK(leave_here(i));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads__over_shm),
		cmocka_unit_test(threads__over_fake_devices),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("freeze", tests, NULL, NULL);
}
