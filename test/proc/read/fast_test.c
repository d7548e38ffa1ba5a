/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quick reads (core/read/fast.c). The threads' own parts come back when they end or their context
 * does, in any order. The counters are whole, and the fence waits for readers.
 */
#include <linux/audit.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <cmocka.h>

#include "base/fast.h"
#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/session/session.h"
#include "tg.h"
#include "tl_membarrier.h"

#define THREADS 8

static int make(struct rref_call *call, void *arg)
{
	struct rref_args a = { .nr_refs = 1 };
	struct rref *ref;
	uint64_t length;
	void *data;

	(void)arg;
	memcpy(&length, rref_call_data(call), sizeof(length));
	TG_OK(rref_alloc(rref_call_context(call), length, &ref, &data));
	tg_fill(data, length, (unsigned)length);
	TG_OK(rref_set(ref));
	a.refs = &ref;
	int err = rref_call_reply(call, &a);

	rref_release(ref);
	return err;
}

static struct rref *ask(struct rref_ctx *ctx, int from, uint64_t length)
{
	struct rref_args a = { .data = &length, .length = sizeof(length) };
	struct rref_future *f;
	struct rref *ref;

	TG_OK(rref_rpc_sync(ctx, from, "fast.make", &a, RREF_DEFAULT, &f));
	TG_OK(rref_future_ref(f, 0, &ref));
	rref_future_free(f);
	return ref;
}

/* Joins with values of all sizes copied: looks have a test of their own. */
static struct rref_ctx *join(int rank)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.look_bytes = SIZE_MAX;
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_register(ctx, &(struct rref_function){ .name = "fast.make", .handler = make }));
	tg_meet_serving(ctx, 14);
	return ctx;
}

static void read_whole(struct rref *ref, size_t length)
{
	struct rref_view *v;

	TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
	TG_IS(rref_view_length(v), length);
	TG_CHECK(tg_filled(rref_view_data(v), length, 0, (unsigned)length));
	rref_view_free(v);
}

struct job {
	struct rref *ref;
	size_t length;
	int times;
	struct rref_view *kept;      /* freed by another thread */
};

static void *read_often(void *arg)
{
	struct job *j = arg;

	for (int i = 0; i < j->times; i++)
		read_whole(j->ref, j->length);
	TG_OK(rref_to_here(j->ref, RREF_DEFAULT, &j->kept));
	return NULL;
}

/* Each READ and each byte is counted once, also after the threads have
 * ended. Views freed elsewhere leave nothing. */
TG_TEST(threads__leave_nothing_behind, 2)
{
	static const size_t lengths[] = { 8, 100, 4096, 70000, 300000, 0, 8, 8 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		struct rref_stats before = tg_stats(ctx), after;
		struct job job[THREADS];
		pthread_t thread[THREADS];
		uint64_t reads = 0, bytes = 0;

		for (int i = 0; i < THREADS; i++) {
			job[i] = (struct job){ .ref = ask(ctx, 0, lengths[i]),
					       .length = lengths[i],
					       .times = tg_scale(500) };
			reads += (uint64_t)job[i].times + 1;
			bytes += ((uint64_t)job[i].times + 1) * lengths[i];
		}
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&thread[i], NULL, read_often, &job[i]), 0);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		after = tg_stats(ctx);
		if (tg_is_shm()) /* a large value takes several over ibv */
			TG_IS(after.reads - before.reads, reads);
		TG_IS(after.read_bytes - before.read_bytes, bytes);
		TG_CHECK(after.landing_bytes > before.landing_bytes);
		for (int i = 0; i < THREADS; i++) {
			TG_CHECK(tg_filled(rref_view_data(job[i].kept), job[i].length, 0,
					   (unsigned)job[i].length));
			rref_view_free(job[i].kept);
			rref_release(job[i].ref);
		}
		TG_IS(tg_stats(ctx).landing_bytes, before.landing_bytes);
	}
	tg_finish(ctx);
	return 0;
}

static atomic_int enough;

/* Starts threads one after the other; each reads a little and ends. */
static void *read_in_short_lives(void *ref)
{
	while (!atomic_load(&enough)) {
		struct job job = { .ref = ref, .length = 200, .times = 3 };
		pthread_t thread;

		TG_IS(pthread_create(&thread, NULL, read_often, &job), 0);
		TG_IS(pthread_join(thread, NULL), 0);
		rref_view_free(job.kept);
	}
	return NULL;
}

/* A thread's counters and memory become its context's when it ends.
 * A look at that moment sees them once. */
TG_TEST(threads__end_while_another_counts, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		struct rref *ref = ask(ctx, 0, 200);
		uint64_t reads = 0;
		pthread_t thread[THREADS];

		atomic_store(&enough, 0);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&thread[i], NULL, read_in_short_lives, ref), 0);
		while (reads < (uint64_t)tg_scale(40000)) {
			struct rref_stats s = tg_stats(ctx);

			TG_CHECK(s.reads >= reads);
			TG_CHECK(s.landing_bytes < (UINT64_C(1) << 20));
			reads = s.reads;
		}
		atomic_store(&enough, 1);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}

static atomic_int stage;

static void until(int s)
{
	while (atomic_load(&stage) < s)
		usleep(100);
}

/* Reads in two contexts, one after the other, on a thread that outlives both. */
static void *outlive(void *arg)
{
	struct rref **refs = arg;

	until(1);
	read_whole(refs[0], 64);
	atomic_store(&stage, 2);
	until(3);
	for (int i = 0; i < 100; i++)
		read_whole(refs[1], 64);
	atomic_store(&stage, 4);
	until(5);
	return NULL;
}

TG_TEST(thread__outlives_its_contexts, 2)
{
	struct rref *refs[2];
	pthread_t thread;

	if (rank == 1)
		TG_IS(pthread_create(&thread, NULL, outlive, refs), 0);
	for (int i = 0; i < 2; i++) {
		struct rref_ctx *ctx = join(rank);

		if (rank == 1) {
			refs[i] = ask(ctx, 0, 64);
			atomic_store(&stage, 1 + 2 * i);
			until(2 + 2 * i);
			TG_IS(tg_stats(ctx).landing_bytes, 0);
			rref_release(refs[i]);
		}
		tg_finish(ctx);
		if (i == 0 && rank == 0)
			tg_free_place(tg_current->shared->bytes, 64);
		tg_meet(i);
		memcpy(tg_current->rendezvous, tg_current->shared->bytes,
		       sizeof(tg_current->rendezvous));
	}
	if (rank == 1) {
		atomic_store(&stage, 5);
		TG_IS(pthread_join(thread, NULL), 0);
	}
	return 0;
}

/* A thread uses two contexts in turn. Each read is counted in its own context. */
TG_TEST(contexts__in_turn, 2)
{
	struct rref_ctx *ctx[2];
	struct rref *refs[2];

	ctx[0] = join(rank);
	if (rank == 0)
		tg_free_place(tg_current->shared->bytes, 64);
	tg_meet_serving(ctx[0], 0);
	memcpy(tg_current->rendezvous, tg_current->shared->bytes, sizeof(tg_current->rendezvous));
	ctx[1] = tg_join(rank);
	TG_OK(rref_register(ctx[1],
			    &(struct rref_function){ .name = "fast.make", .handler = make }));
	tg_meet_serving(ctx[1], 1);
	if (rank == 1) {
		for (int i = 0; i < 2; i++)
			refs[i] = ask(ctx[i], 0, 64);
		for (int i = 0; i < tg_scale(400); i++)
			for (int k = 0; k < 2; k++)
				read_whole(refs[k], 64);
		for (int i = 0; i < 2; i++) {
			TG_IS(tg_stats(ctx[i]).read_bytes, (uint64_t)tg_scale(400) * 64);
			rref_release(refs[i]);
		}
	}
	if (rank == 1)
		tg_set_flag(3, 1);
	/* Both need progress in the manual mode. */
	while (!tg_flag(3))
		for (int i = 0; i < 2; i++)
			rref_progress(ctx[i]);
	for (int i = 0; i < 2; i++)
		tg_finish(ctx[i]);
	return 0;
}

static void *read_until_error(void *arg)
{
	struct rref *ref = arg;
	struct rref_view *v;
	int err;

	while ((err = rref_to_here(ref, RREF_DEFAULT, &v)) == 0) {
		TG_CHECK(tg_filled(rref_view_data(v), 4096, 0, 4096));
		rref_view_free(v);
	}
	TG_CHECK(err == -EOWNERDEAD || err == -ENETRESET || err == -ESTALE);
	atomic_fetch_add(&stage, 1);
	return NULL;
}

/* Kills the owner under its readers. Each read ends with an error,
 * or with the bytes of its own value. */
static int owner_dies(int rank, void *arg)
{
	struct rref_ctx *ctx = join(rank);

	(void)arg;
	if (rank == 1) {
		struct rref *ref = ask(ctx, 0, 4096);
		pthread_t thread[THREADS];

		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_create(&thread[i], NULL, read_until_error, ref), 0);
		tg_set_flag(1, 1);
		/* A read that is complete at once makes no progress. Another
		 * thread has to without a poller. */
		while (atomic_load(&stage) < THREADS)
			if (rref_progress(ctx) <= 0)
				usleep(100);
		for (int i = 0; i < THREADS; i++)
			TG_IS(pthread_join(thread[i], NULL), 0);
		TG_IS(tg_stats(ctx).landing_bytes, 0);
		rref_release(ref);
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
		rref_free_ctx(ctx);
		return 0;
	}
	tg_wait_flag_serving(ctx, 1, 1);
	raise(SIGKILL);
	return 1;
}

static void owner__dies_under_its_readers(void **state)
{
	struct tg_group g = { .world = 2, .expect_killed = { [0] = 1 } };

	(void)state;
	assert_int_equal(tg_run_group(&g, owner_dies, NULL), 0);
}

/* ---- the fence, and readers at that moment ---- */

static struct rv_ops slow;
static atomic_int in_copy, let_copy_go;

static int slow_post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	atomic_store(&in_copy, 1);
	while (!atomic_load(&let_copy_go))
		usleep(100);
	return rv_shm_ops.post_reads(conn, r, n);
}

static void *read_once(void *ref)
{
	read_whole(ref, 64);
	return NULL;
}

/* Takes the fence's first step, and then puts the connection back. Returns whether the connection
 * was left to a thread that copies. */
static bool stops_reads(struct rref_ctx *ctx)
{
	struct rc_peer *p = &ctx->peers[0];
	bool left;

	rc_lock(ctx);
	rc_peer_stop_reads(ctx, p);
	left = p->left == p->link;
	TG_CHECK(left || !p->left);
	p->left = NULL;
	at_store_sc(&p->conn, p->link);
	rc_unlock(ctx);
	return left;
}

/* A fence sees a copy, and does not wait for it with the lock held. It does not look at other
 * contexts of the process. */
TG_TEST(fence__sees_a_copy, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1 && tg_is_shm()) {
		struct rref_options o;
		struct rref_ctx *other;
		struct rref *ref = ask(ctx, 0, 64);
		pthread_t reader;

		rref_options_init(&o);
		o.world_size = 1;
		o.device = "shm";
		TG_OK(rref_init(&o, &other));
		read_whole(ref, 64);
		slow = *ctx->peers[0].ops;
		slow.post_reads = slow_post_reads;
		ctx->peers[0].ops = &slow;
		TG_IS(pthread_create(&reader, NULL, read_once, ref), 0);
		while (!atomic_load(&in_copy))
			usleep(100);
		TG_CHECK(stops_reads(ctx));
		TG_IS(tg_stats(other).reads, 0);
		TG_CHECK(!atomic_load(&let_copy_go));
		atomic_store(&let_copy_go, 1);
		TG_IS(pthread_join(reader, NULL), 0);
		TG_CHECK(!stops_reads(ctx));
		ctx->peers[0].ops = &rv_shm_ops;
		rref_release(ref);
		TG_OK(rref_shutdown(other, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
		rref_free_ctx(other);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- no membarrier(2) ---- */

static atomic_int stop;

static void *read_till_told(void *ref)
{
	while (!atomic_load(&stop))
		read_whole(ref, 64);
	return NULL;
}

/* Breaks the connection again and again under threads that read. */
static void fences_under_readers(struct rref_ctx *ctx, struct rref *ref)
{
	pthread_t thread[THREADS];
	struct rc_peer *p = &ctx->peers[0];
	uint64_t resumed;

	ctx->session.score_limit = UINT32_MAX;
	for (int i = 0; i < THREADS; i++)
		TG_IS(pthread_create(&thread[i], NULL, read_till_told, ref), 0);
	for (int i = 0; i < tg_scale(100); i++) {
		resumed = tg_stats(ctx).resumed_sessions;
		rc_lock(ctx);
		if (p->state == RC_PEER_UP)
			rc_resume_break(ctx, p, -ECONNRESET, "a test wants it");
		rc_unlock(ctx);
		while (tg_stats(ctx).resumed_sessions == resumed)
			rref_progress(ctx);
	}
	atomic_store(&stop, 1);
	for (int i = 0; i < THREADS; i++)
		TG_IS(pthread_join(thread[i], NULL), 0);
	TG_IS(tg_stats(ctx).sessions, 1);
}

static void without_membarrier(int rank, bool from_the_beginning)
{
	struct rref_ctx *ctx;

	if (from_the_beginning)
		TG_CHECK(tl_refuse_membarrier(false));
	ctx = join(rank);
	ctx->session.score_limit = UINT32_MAX;
	if (rank == 1) {
		struct rref *ref = ask(ctx, 0, 64);
		cpu_set_t before, after;

		read_whole(ref, 64);
		if (!from_the_beginning)
			TG_CHECK(tl_refuse_membarrier(false));
		TG_IS(sched_getaffinity(0, sizeof(before), &before), 0);
		fences_under_readers(ctx, ref);
		TG_IS(sched_getaffinity(0, sizeof(after), &after), 0);
		TG_CHECK(CPU_EQUAL(&before, &after));
		rref_release(ref);
	}
	tg_finish(ctx);
}

TG_TEST(no_membarrier__from_the_beginning, 2)
{
	without_membarrier(rank, true);
	return 0;
}

TG_TEST(no_membarrier__any_more, 2)
{
	without_membarrier(rank, false);
	return 0;
}

#ifdef __x86_64__
static cpu_set_t wanted, last_wanted;

static void on_sys(int sig, siginfo_t *si, void *context)
{
	ucontext_t *u = context;

	(void)sig;
	if (si->si_syscall == SYS_sched_setaffinity) {
		memset(&last_wanted, 0, sizeof(last_wanted));
		memcpy(&last_wanted, (const void *)u->uc_mcontext.gregs[REG_RDX],
		       min_of((size_t)u->uc_mcontext.gregs[REG_RSI], sizeof(last_wanted)));
		if (CPU_COUNT(&last_wanted) == 1)
			CPU_OR(&wanted, &wanted, &last_wanted);
	}
	u->uc_mcontext.gregs[REG_RAX] = 0;
}

/* Readers are on all processors, even if the thread that fences stays
 * on one (as options.poller_core does). */
TG_TEST(no_membarrier__and_the_fence_is_bound_to_a_core, 2)
{
	struct rref_ctx *ctx = join(rank);

	/* No barrier is needed without fast reads. */
	if (RB_FAST(rank == 1 && tg_is_shm())) {
		struct sigaction sa = { .sa_sigaction = on_sys, .sa_flags = SA_SIGINFO };
		struct rref *ref = ask(ctx, 0, 64);
		cpu_set_t all, first;

		read_whole(ref, 64);
		TG_IS(sched_getaffinity(0, sizeof(all), &all), 0);
		CPU_ZERO(&first);
		for (int c = 0; !CPU_COUNT(&first); c++)
			if (CPU_ISSET(c, &all))
				CPU_SET(c, &first);
		TG_IS(sched_setaffinity(0, sizeof(first), &first), 0);
		TG_IS(sigaction(SIGSYS, &sa, NULL), 0);
		TG_CHECK(tl_refuse_membarrier(true));
		rc_lock(ctx);
		rc_peer_stop_reads(ctx, &ctx->peers[0]);
		at_store_sc(&ctx->peers[0].conn, ctx->peers[0].link);
		rc_unlock(ctx);
		CPU_AND(&wanted, &wanted, &all);
		TG_CHECK(CPU_EQUAL(&wanted, &all));       /* a turn on each */
		TG_CHECK(CPU_EQUAL(&last_wanted, &first)); /* and back */
		read_whole(ref, 64);
		rref_release(ref);
	}
	tg_finish(ctx);
	return 0;
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads__leave_nothing_behind),
		cmocka_unit_test(threads__end_while_another_counts),
		cmocka_unit_test(thread__outlives_its_contexts),
		cmocka_unit_test(contexts__in_turn),
		cmocka_unit_test(owner__dies_under_its_readers),
		cmocka_unit_test(fence__sees_a_copy),
		cmocka_unit_test(no_membarrier__from_the_beginning),
		cmocka_unit_test(no_membarrier__any_more),
#ifdef __x86_64__
		cmocka_unit_test(no_membarrier__and_the_fence_is_bound_to_a_core),
#endif
	};

	return cmocka_run_group_tests_name("fast", tests, NULL, NULL);
}
