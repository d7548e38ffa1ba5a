/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread's own part of an arena of ra (ra_binding.c). It comes back when the thread
 * ends or memory is short. Arenas and threads may go in any order. Also without
 * room, without membarrier(2), and in another process.
 */
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>

#include "alloc/ra_internal.h"
#include "ra_test.h"
#include "tl_membarrier.h"

/* Declares the one of alloc/ra_hooks.c. */
size_t ra_je_sallocx(const void *p, int flags);

#define SIZES 4
static const size_t sizes[SIZES] = { 100, 5000, 40 * KIB, 96 * KIB };

/* More than a cache may keep of each size; all of it is given back. */
#define MANY 40
static void use_sizes(struct ra_arena *a, unsigned nr)
{
	void *p[MANY];

	for (unsigned k = 0; k < nr; k++) {
		for (unsigned i = 0; i < MANY; i++) {
			p[i] = must_alloc(a, sizes[k], RA_MIN_ALIGN);
			mark(p[i], min_of(sizes[k], 256), i);
		}
		for (unsigned i = 0; i < MANY; i++) {
			assert_true(marked(p[i], min_of(sizes[k], 256), i));
			ra_free(a, p[i], sizes[k]);
		}
	}
}

static void use(struct ra_arena *a)
{
	use_sizes(a, SIZES);
}

static void used(struct ra_arena *a, unsigned times)
{
	struct ra_stats st;

	ra_stats(a, &st);
	assert_int_equal(st.nr_allocs, times * SIZES * MANY);
	assert_int_equal(st.nr_frees, times * SIZES * MANY);
	assert_int_equal(st.live_bytes, 0);
}

static struct ra_cache *own_cache(struct ra_arena *a)
{
	return at_load(&ra_binding_of(a)->arena) == a ? ra_binding_of(a)->cache : NULL;
}

static unsigned nr_kept(const struct ra_cache *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < RA_CACHED; i++)
		n += s->cached[i] != NULL;
	return n;
}

/* A thread that does one thing after the other, on command. */
struct hand {
	struct ra_arena *a;
	void (*what)(struct hand *h);
	sem_t go, done;
	pthread_t thread;
	struct ra_cache *cache; /* the thread's own, after it used a */
	unsigned count;
};

static void hand_use(struct hand *h)
{
	use(h->a);
	h->cache = own_cache(h->a);
}

static void hand_use_little(struct hand *h)
{
	for (unsigned i = 0; i < SIZES; i++)
		use_sizes(h->a, 1);
	h->cache = own_cache(h->a);
}

static void *hand_run(void *arg)
{
	struct hand *h = arg;

	for (;;) {
		sem_wait(&h->go);
		if (!h->what)
			return NULL;
		h->what(h);
		sem_post(&h->done);
	}
}

static void hand_start(struct hand *h)
{
	memset(h, 0, sizeof(*h));
	sem_init(&h->go, 0, 0);
	sem_init(&h->done, 0, 0);
	assert_int_equal(pthread_create(&h->thread, NULL, hand_run, h), 0);
}

static void hand_begin(struct hand *h, struct ra_arena *a, void (*what)(struct hand *h))
{
	h->a = a;
	h->what = what;
	sem_post(&h->go);
}

static void hand_wait(struct hand *h)
{
	while (sem_wait(&h->done))
		;
}

static void hand_do(struct hand *h, struct ra_arena *a, void (*what)(struct hand *h))
{
	hand_begin(h, a, what);
	hand_wait(h);
}

static void hand_end(struct hand *h)
{
	h->what = NULL;
	sem_post(&h->go);
	pthread_join(h->thread, NULL);
	sem_destroy(&h->go);
	sem_destroy(&h->done);
}

/* Checks that in each class the piece given back last is the
 * next one's, without asking elsewhere. */
static void class__fits(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 0);
	size_t size, step;

	(void)state;
	for (size = 1; size <= 80 * KIB; size += step) {
		step = size < 5000 ? 1 : 61;
		if (ra_near_class(size) < RA_NEAR)
			continue; /* not jemalloc's */
		void *p = must_alloc(a, size, RA_MIN_ALIGN), *q;
		size_t room = ra_je_sallocx(p, 0), least = 1;

		/* One class of jemalloc's serves all of one class
		 * here, down to its smallest size. */
		while (least < size && ra_class(size - least) == ra_class(size))
			least++;
		least = size - least + 1;
		while (ra_near_class(least) < RA_NEAR)
			least++;
		assert_true(room + (size > 14400 ? RA_MIN_ALIGN : 0) >= size);
		ra_free(a, p, size);
		q = must_alloc(a, least, RA_MIN_ALIGN);
		if (size <= 64 * KIB)
			assert_ptr_equal(q, p);
		assert_int_equal(ra_je_sallocx(q, 0), room);
		ra_free(a, q, least);
	}
	assert_int_equal(ra_class(1), 0);
	assert_int_equal(ra_class(64 * KIB + 64), RA_CACHED - 1);
	assert_true(ra_class(64 * KIB + 65) >= RA_CACHED);
	assert_true(ra_class(RA_VALUE_MAX) >= RA_CACHED);
	/* Memory with a larger alignment serves any request of its size. */
	for (unsigned i = 6; i < 21; i++) {
		void *p = must_alloc(a, 3000, (size_t)1 << i);

		ra_free(a, p, 3000);
		p = must_alloc(a, 3072, RA_MIN_ALIGN);
		mark(p, 3072, i);
		assert_true(ra_je_sallocx(p, 0) >= 3072);
		ra_free(a, p, 3072);
	}
	ra_arena_destroy(a);
}

/* Ends a thread: its cache is free for another, and its memory is in the arena without a search. */
static void thread_ends__its_memory_is_the_arenas(void **state)
{
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 64 * MIB, 0);
	struct hand h;
	unsigned gathered;

	(void)state;
	for (unsigned i = 0; i < RA_OWNED + 10; i++) {
		hand_start(&h);
		hand_do(&h, a, hand_use);
		assert_non_null(h.cache);
		assert_true(nr_kept(h.cache) > 0);
		assert_int_equal(at_load(&a->nr_vacant), RA_OWNED - 1);
		if (i == 0)
			gathered = (unsigned)at_load(&a->epoch);
		hand_end(&h);
		assert_int_equal(at_load(&a->nr_vacant), RA_OWNED);
		assert_int_equal(nr_kept(h.cache), 0);
	}
	/* Else each would have found less: 4 KiB to 2 MiB each. */
	assert_int_equal(at_load(&a->epoch), gathered);
	assert_int_equal(d.nr_reg, 1);
	used(a, RA_OWNED + 10);
	ra_arena_destroy(a);
}

/* Keeps threads alive and idle: others get the memory that they keep, and they go on. */
static void idle__threads_memory_serves_others(void **state)
{
	enum { HANDS = 4 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 32 * MIB, 32 * MIB);
	struct hand h[HANDS];
	void *p;

	(void)state;
	/* The whole region is jemalloc's: memory that it gives back merges. */
	ra_free(a, must_alloc(a, 28 * MIB, 0), 28 * MIB);
	for (unsigned i = 0; i < HANDS; i++)
		hand_start(&h[i]);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < HANDS; i++) {
			hand_do(&h[i], a, hand_use);
			assert_true(nr_kept(h[i].cache) > 0);
		}
		p = must_alloc(a, 28 * MIB, 0);
		for (unsigned i = 0; i < HANDS; i++)
			assert_int_equal(nr_kept(h[i].cache), 0);
		ra_free(a, p, 28 * MIB);
		assert_int_equal(at_load(&a->gathering), RA_OPEN);
	}
	for (unsigned i = 0; i < HANDS; i++)
		hand_end(&h[i]);
	assert_int_equal(d.nr_reg, 1);
	ra_arena_destroy(a);
}

/* The caches are taken back again and again from threads that are using them. The mark shows a
 * piece that two threads have. */
struct busy {
	_Atomic unsigned stop;
	_Atomic uint64_t rounds;
};
static struct busy busy;

static void hand_spin(struct hand *h)
{
	size_t size = sizes[h->count % SIZES];

	while (!at_load(&busy.stop)) {
		uint64_t *p, *q, me = (uint64_t)(uintptr_t)h;

		/* The first one comes from the kept pieces, the second one from the cache. */
		p = must_alloc(h->a, size, RA_MIN_ALIGN);
		q = must_alloc(h->a, size, RA_MIN_ALIGN);
		*p = *q = me;
		for (unsigned i = 0; i < 10; i++)
			cpu_relax();
		assert_true(p != q && *p == me && *q == me);
		*p = *q = 0;
		ra_free(h->a, p, size);
		ra_free(h->a, q, size);
		at_add(&busy.rounds, 1);
	}
}

static void busy__caches_are_taken_from_under_their_users(void **state)
{
	enum { HANDS = 4, ROUNDS = UNDER_SANITIZER ? 100 : 500 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 16 * MIB, 16 * MIB);
	struct hand h[HANDS];
	struct ra_stats st;
	uint64_t epoch, seen = 0;
	void *low = must_alloc(a, 7 * MIB, 0), *middle = must_alloc(a, MIB, 0);

	(void)state;
	/* Enough is free for the size below, on the two sides of a used piece. */
	ra_free(a, low, 7 * MIB);
	at_store(&busy.stop, 0);
	for (unsigned i = 0; i < HANDS; i++) {
		hand_start(&h[i]);
		h[i].count = i;
		hand_begin(&h[i], a, hand_spin);
	}
	epoch = at_load(&a->epoch);
	for (unsigned i = 0; i < ROUNDS; i++) {
		void *p = NULL;

		/* An allocation came since: the arena gathers, and then
		 * says that it has not enough. */
		while (at_load(&busy.rounds) == seen)
			sched_yield();
		assert_int_equal(ra_alloc(a, 14 * MIB, RA_MIN_ALIGN, &p), -ENOMEM);
		seen = at_load(&busy.rounds);
	}
	at_store(&busy.stop, 1);
	for (unsigned i = 0; i < HANDS; i++) {
		hand_wait(&h[i]);
		hand_end(&h[i]);
	}
	/* Nearly always: an earlier count may have been this round's. */
	assert_true(at_load(&a->epoch) >= epoch + ROUNDS / 2);
	ra_free(a, middle, MIB);
	ra_stats(a, &st);
	assert_int_equal(st.nr_live, 0);
	assert_int_equal(st.live_bytes, 0);
	assert_int_equal(st.nr_allocs, 2 * at_load(&busy.rounds) + 2);
	ra_arena_destroy(a);
}

/* Destroys arenas while threads with bindings in them go on in
 * others, mostly at the same addresses. */
static void arena_ends__its_threads_go_on(void **state)
{
	enum { HANDS = 3 };
	struct hand h[HANDS];

	(void)state;
	for (unsigned i = 0; i < HANDS; i++)
		hand_start(&h[i]);
	for (unsigned round = 0; round < 3 * RA_BINDINGS; round++) {
		struct dev d = { 0 };
		struct ra_arena *a = arena_new(&d, 64 * MIB, 0);

		for (unsigned i = 0; i < HANDS; i++) {
			hand_do(&h[i], a, hand_use);
			assert_non_null(h[i].cache);
			assert_ptr_equal(h[i].cache->arena, a);
		}
		used(a, HANDS);
		assert_int_equal(at_load(&a->nr_vacant), RA_OWNED - HANDS);
		ra_arena_destroy(a);
	}
	for (unsigned i = 0; i < HANDS; i++)
		hand_end(&h[i]);
}

/* Uses more arenas in one thread than it has bindings: it shares in the others. The place of an
 * arena that goes is free for another one. */
static void bindings__fewer_than_arenas(void **state)
{
	struct ra_arena *a[2 * RA_BINDINGS];
	static struct dev d[2 * RA_BINDINGS];
	unsigned nr_own = 0;

	(void)state;
	memset(d, 0, sizeof(d));
	for (unsigned i = 0; i < 2 * RA_BINDINGS; i++)
		a[i] = arena_new(&d[i], 64 * MIB, 0);
	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < 2 * RA_BINDINGS; i++)
			use(a[i]);
	for (unsigned i = 0; i < 2 * RA_BINDINGS; i++) {
		used(a[i], 3);
		nr_own += own_cache(a[i]) != NULL;
	}
	assert_int_equal(nr_own, RA_BINDINGS);
	for (unsigned i = 0; i < RA_BINDINGS; i++)
		ra_arena_destroy(a[i]);
	for (unsigned i = RA_BINDINGS; i < 2 * RA_BINDINGS; i++) {
		use(a[i]);
		assert_non_null(own_cache(a[i]));
		used(a[i], 4);
		ra_arena_destroy(a[i]);
	}
}

/* Runs many more threads at once than an arena has caches. The others
 * share, and no thread loses anything it had. */
static void caches__fewer_than_threads(void **state)
{
	enum { HANDS = 1000 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 512 * MIB, 0);
	struct hand *h = calloc(HANDS, sizeof(*h));
	unsigned nr_own = 0;

	(void)state;
	assert_non_null(h);
	for (unsigned i = 0; i < HANDS; i++)
		hand_start(&h[i]);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < HANDS; i++)
			hand_begin(&h[i], a, hand_use_little);
		for (unsigned i = 0; i < HANDS; i++)
			hand_wait(&h[i]);
	}
	for (unsigned i = 0; i < HANDS; i++)
		nr_own += h[i].cache != NULL;
	assert_int_equal(nr_own, RA_OWNED);
	assert_int_equal(at_load(&a->nr_vacant), 0);
	used(a, 2 * HANDS);
	/* Any half of them end: there is room for others again. */
	for (unsigned i = 0; i < HANDS; i += 2)
		hand_end(&h[i]);
	nr_own = 0;
	for (unsigned i = 1; i < HANDS; i += 2) {
		hand_do(&h[i], a, hand_use_little);
		nr_own += h[i].cache != NULL;
	}
	assert_int_equal(nr_own, RA_OWNED);
	used(a, 2 * HANDS + HANDS / 2);
	for (unsigned i = 1; i < HANDS; i += 2)
		hand_end(&h[i]);
	assert_int_equal(at_load(&a->nr_vacant), RA_OWNED);
	free(h);
	ra_arena_destroy(a);
}

/*
 * Destructors of the program's own keys run after ours and jemalloc's, again and again. They get
 * value memory or nothing (jemalloc would give other memory). They may free, and nothing is lost:
 * they have no binding.
 */
static pthread_key_t late_key;
static _Atomic unsigned nr_late, nr_refused;
static void *late_piece[3];

static void late(void *arg)
{
	struct ra_arena *a = arg;
	unsigned i = at_add(&nr_late, 1);
	void *p = NULL, *base;

	for (unsigned k = 0; k < SIZES; k++) {
		/* Some of these pieces were freed here the last time. */
		if (!ra_alloc(a, sizes[k], RA_MIN_ALIGN, &p)) {
			assert_non_null(ra_lookup(a, p, &base));
			ra_free(a, p, sizes[k]);
			continue;
		}
		assert_non_null(strstr(ra_error_text(), "a thread that is ending"));
		at_add(&nr_refused, 1);
	}
	assert_non_null(ra_lookup(a, late_piece[i], &base));
	ra_free(a, late_piece[i], sizes[i]);
	assert_null(own_cache(a));
	if (i < 2)
		pthread_setspecific(late_key, arg);
}

static void hand_late(struct hand *h)
{
	assert_int_equal(pthread_setspecific(late_key, h->a), 0);
	hand_use(h);
	for (unsigned i = 0; i < 3; i++)
		late_piece[i] = must_alloc(h->a, sizes[i], RA_MIN_ALIGN);
}

static void thread_ends__and_goes_on(void **state)
{
	struct dev d = { 0 };
	struct ra_stats st;
	struct ra_arena *a = arena_new(&d, 64 * MIB, 0);
	struct hand h;

	(void)state;
	assert_int_equal(pthread_key_create(&late_key, late), 0);
	hand_start(&h);
	hand_do(&h, a, hand_late);
	assert_non_null(h.cache);
	hand_end(&h);
	assert_int_equal(at_load(&nr_late), 3);
	assert_int_equal(at_load(&a->nr_vacant), RA_OWNED);
	ra_stats(a, &st);
	assert_int_equal(st.nr_live, 0);
	assert_true(at_load(&nr_refused) >= SIZES);
	assert_int_equal(st.nr_allocs, SIZES * MANY + 3 + 3 * SIZES - at_load(&nr_refused));
	pthread_key_delete(late_key);
	ra_arena_destroy(a);
}

/* ---- other processes ---- */

#define CHILD_MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
			_exit(1); \
		} \
	} while (0)

/* Runs a function in a child, which must exit with 42. After a failed assert the child would go on
 * with the tests that follow, so all other ends count as failures. */
static void in_child(void (*what)(void *arg), void *arg)
{
	int status = -1;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		alarm(120);
		what(arg);
		_exit(1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 42);
}

static void child_use(void)
{
	struct dev d = { 0 };
	struct ra_arena *b = arena_new(&d, 64 * MIB, 0);
	struct hand h;

	use(b);
	CHILD_MUST(own_cache(b));
	hand_start(&h);
	hand_do(&h, b, hand_use);
	CHILD_MUST(h.cache && h.cache != own_cache(b));
	hand_end(&h);
	used(b, 2);
	ra_free(b, must_alloc(b, 28 * MIB, 0), 28 * MIB);
	ra_arena_destroy(b);
}

struct parents {
	struct ra_arena *a;
	struct ra_cache *cache;
	unsigned kept;
};

static void *thread_of_child(void *arg)
{
	(void)arg;
	child_use();
	return NULL;
}

static void child_of_fork(void *arg)
{
	struct parents *p = arg;
	pthread_t t;

	/* This thread keeps nothing of the parent's arena. */
	for (unsigned i = 0; i < RA_BINDINGS; i++)
		CHILD_MUST(!at_load(&ra_bindings[i].arena));
	CHILD_MUST(p->cache->owner); /* as it was */
	child_use();
	CHILD_MUST(!pthread_create(&t, NULL, thread_of_child, NULL) && !pthread_join(t, NULL));
	CHILD_MUST(nr_kept(p->cache) == p->kept);
	_exit(42);
}

static void fork__a_child_begins_anew(void **state)
{
	struct dev d = { 0 };
	struct parents p = { .a = arena_new(&d, 64 * MIB, 0) };

	(void)state;
	use(p.a);
	p.cache = own_cache(p.a);
	assert_non_null(p.cache);
	p.kept = nr_kept(p.cache);
	assert_true(p.kept > 0);
	in_child(child_of_fork, &p);
	use(p.a);
	assert_ptr_equal(own_cache(p.a), p.cache);
	used(p.a, 2);
	ra_arena_destroy(p.a);
}

/* Ends the threads that take bindings and caches and give them back, at any moment. */
static _Atomic unsigned stop_churn;

static void *churn(void *arg)
{
	(void)arg;
	while (!at_load(&stop_churn)) {
		struct dev d = { 0 };
		struct ra_arena *a = arena_new(&d, 8 * MIB, 2 * MIB);

		ra_free(a, must_alloc(a, 1000, 0), 1000);
		ra_arena_destroy(a);
	}
	return NULL;
}

static void child_of_churn(void *arg)
{
	(void)arg;
	child_use();
	_exit(42);
}

static void fork__while_others_come_and_go(void **state)
{
	pthread_t t[2];

	(void)state;
#if defined(__SANITIZE_THREAD__)
	print_message("skipped: jemalloc's own fork handlers are left out there (ra_tsan.c)\n");
	skip();
#elif defined(__SANITIZE_ADDRESS__)
	print_message("skipped: the sanitizer's malloc (GCC 12) does not hold its locks over a "
		      "fork; a child may wait for them\n");
	skip();
#endif
	at_store(&stop_churn, 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, churn, NULL), 0);
	for (unsigned i = 0; i < 40; i++)
		in_child(child_of_churn, NULL);
	at_store(&stop_churn, 1);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
}

/* Refuses the barrier in a program of its own, before any arena was made. */
static int again_refused(void)
{
	struct dev d = { 0 };
	struct ra_arena *a;
	struct hand h;

	CHILD_MUST(tl_refuse_membarrier(false));
	a = arena_new(&d, 64 * MIB, 0);
	use(a);
	hand_start(&h);
	hand_do(&h, a, hand_use);
	CHILD_MUST(!own_cache(a) && !h.cache && at_load(&a->nr_vacant) == 0);
	used(a, 2);
	hand_end(&h);
	ra_arena_destroy(a);
	return 42;
}

/* Refuses the barrier while threads have bindings: their memory is
 * found all the same, and then they share. */
static int again_refused_later(void)
{
	enum { HANDS = 3 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 32 * MIB, 32 * MIB), *b;
	struct hand h[HANDS], spin;

	ra_free(a, must_alloc(a, 28 * MIB, 0), 28 * MIB);
	for (unsigned i = 0; i < HANDS; i++) {
		hand_start(&h[i]);
		hand_do(&h[i], a, hand_use);
		CHILD_MUST(h[i].cache && nr_kept(h[i].cache));
	}
	CHILD_MUST(tl_refuse_membarrier(false));
	ra_free(a, must_alloc(a, 28 * MIB, 0), 28 * MIB);
	CHILD_MUST(at_load(&a->gathering) == RA_CLOSED);
	at_store(&busy.stop, 0);
	hand_start(&spin);
	hand_begin(&spin, a, hand_spin);
	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < HANDS; i++) {
			hand_do(&h[i], a, hand_use);
			CHILD_MUST(nr_kept(h[i].cache) == 0);
		}
		/*
		 * Only half. The spinning thread has a slab at any moment, anywhere
		 * in the region, for example after the memory of the others. 24 MiB
		 * found no room beside it in 1 of 60 runs.
		 */
		ra_free(a, must_alloc(a, 16 * MIB, 0), 16 * MIB);
	}
	at_store(&busy.stop, 1);
	hand_wait(&spin);
	hand_end(&spin);
	for (unsigned i = 0; i < HANDS; i++)
		hand_end(&h[i]);
	CHILD_MUST(d.nr_reg == 1 && at_load(&a->gathering) == RA_CLOSED);
	b = arena_new(&d, 32 * MIB, 32 * MIB);
	use(b);
	CHILD_MUST(!own_cache(b));
	ra_arena_destroy(b);
	ra_arena_destroy(a);
	return 42;
}

static void run_again(void *how)
{
	const bool *later = how;

	execl("/proc/self/exe", "binding_test", *later ? "refused-later" : "refused", (char *)NULL);
}

static void no_membarrier__from_the_beginning(void **state)
{
	bool later = false;

	(void)state;
	in_child(run_again, &later);
}

static void no_membarrier__any_more(void **state)
{
	bool later = true;

	(void)state;
	in_child(run_again, &later);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(class__fits),
		cmocka_unit_test(thread_ends__its_memory_is_the_arenas),
		cmocka_unit_test(thread_ends__and_goes_on),
		cmocka_unit_test(idle__threads_memory_serves_others),
		cmocka_unit_test(busy__caches_are_taken_from_under_their_users),
		cmocka_unit_test(arena_ends__its_threads_go_on),
		cmocka_unit_test(bindings__fewer_than_arenas),
		cmocka_unit_test(caches__fewer_than_threads),
		cmocka_unit_test(fork__a_child_begins_anew),
		cmocka_unit_test(fork__while_others_come_and_go),
		cmocka_unit_test(no_membarrier__from_the_beginning),
		cmocka_unit_test(no_membarrier__any_more),
	};

	if (argc > 1)
		return strcmp(argv[1], "refused") ? again_refused_later() : again_refused();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
