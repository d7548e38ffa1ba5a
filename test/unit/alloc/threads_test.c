/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads in ra: values that one thread allocates and another
 * frees, look-ups meanwhile, growth, the bound. */
#include <pthread.h>
#include <semaphore.h>

#include "base/atomic.h"
#include "ra_test.h"

enum { THREADS = 8, SLOTS = 256 };

/* A value starts with its size and seed; `owned` catches an address that is given out twice. */
struct value {
	uint64_t size, seed;
	_Atomic unsigned owned;
};

struct shared {
	struct ra_arena *a;
	struct dev d;
	_Atomic(struct value *) slots[SLOTS];
	_Atomic unsigned nr_failed;
	size_t max_size;
	unsigned rounds;
	bool may_fail;
};

struct worker {
	struct shared *s;
	pthread_t thread;
	uint64_t seed;
};

static void value_free(struct shared *s, struct value *v)
{
	assert_true(marked(v + 1, v->size - sizeof(*v), v->seed));
	assert_int_equal(at_sub(&v->owned, 1), 1);
	ra_free(s->a, v, v->size);
}

static struct value *value_new(struct shared *s, uint64_t *seed)
{
	size_t size = sizeof(struct value) + rnd(seed) % (rnd(seed) % s->max_size + 1);
	struct value *v;
	void *p = NULL;
	int rc = ra_alloc(s->a, size, (size_t)1 << rnd(seed) % 13, &p);

	if (rc) {
		assert_true(s->may_fail);
		assert_int_equal(rc, -ENOMEM);
		at_add(&s->nr_failed, 1);
		return NULL;
	}
	v = p;
	v->size = size;
	v->seed = rnd(seed);
	at_store(&v->owned, 1);
	mark(v + 1, size - sizeof(*v), v->seed);
	return v;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct shared *s = w->s;
	struct value *v;
	void *base, *q;

	for (unsigned i = 0; i < s->rounds; i++) {
		/* The thread that takes a value out of a slot owns it. */
		v = value_new(s, &w->seed);
		if (v) {
			q = ra_lookup(s->a, v, &base);
			assert_non_null(q);
			assert_ptr_equal(ra_lookup(s->a, (char *)v + v->size - 1, &base), q);
		}
		assert_null(ra_lookup(s->a, &v, &base));
		v = at_xchg_ar(&s->slots[rnd(&w->seed) % SLOTS], v);
		if (v)
			value_free(s, v);
	}
	return NULL;
}

static void run(struct shared *s)
{
	struct worker w[THREADS];
	struct ra_stats st;
	struct value *v;

	for (unsigned i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .s = s, .seed = i * 7919 + 1 };
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	for (unsigned i = 0; i < SLOTS; i++) {
		v = at_xchg_ar(&s->slots[i], NULL);
		if (v)
			value_free(s, v);
	}
	ra_stats(s->a, &st);
	assert_int_equal(st.nr_live, 0);
	assert_int_equal(st.live_bytes, 0);
	assert_int_equal(st.nr_allocs, THREADS * s->rounds - at_load(&s->nr_failed));
}

static void threads__share_values(void **state)
{
	static struct shared s;

	(void)state;
	s = (struct shared){ .max_size = 40000, .rounds = UNDER_SANITIZER ? 2000 : 20000 };
	s.a = arena_new(&s.d, 512 * MIB, 2 * MIB);
	run(&s);
	assert_true(s.d.nr_regions <= 5); /* 256 values of 10 KiB on average: 2 4 8 .. at most */
	ra_arena_destroy(s.a);
}

/* Asks for more than the bound allows: calls fail and succeed, and all of it is free afterwards. */
static void threads__at_the_bound(void **state)
{
	static struct shared s;
	struct ra_stats st;

	(void)state;
	s = (struct shared){ .max_size = 400000,
			     .rounds = UNDER_SANITIZER ? 500 : 2000,
			     .may_fail = true };
	s.a = arena_new(&s.d, 16 * MIB, 16 * MIB);
	run(&s);
	assert_true(at_load(&s.nr_failed) > 0);
	assert_int_equal(s.d.nr_reg, 1);
	ra_stats(s.a, &st);
	assert_int_equal(st.region_bytes, 16 * MIB);
	must_alloc(s.a, 14 * MIB, 0);
	ra_arena_destroy(s.a);
}

/* All threads need memory at once. One registers for all, and no
 * allocation fails below the bound. */
struct grower {
	struct ra_arena *a;
	pthread_barrier_t *start;
	pthread_t thread;
	void *p[16];
};

static void *grow(void *arg)
{
	struct grower *g = arg;

	pthread_barrier_wait(g->start);
	for (unsigned i = 0; i < 16; i++) {
		g->p[i] = must_alloc(g->a, 100 * KIB, 0);
		memset(g->p[i], (int)i, 100 * KIB);
	}
	return NULL;
}

static void threads__grow_together(void **state)
{
	(void)state;
	for (unsigned round = 0; round < (UNDER_SANITIZER ? 20 : 100); round++) {
		struct dev d = { 0 };
		struct ra_arena *a = arena_new(&d, 64 * MIB, 2 * MIB);
		struct grower g[THREADS];
		pthread_barrier_t start;

		pthread_barrier_init(&start, NULL, THREADS);
		for (unsigned i = 0; i < THREADS; i++) {
			g[i] = (struct grower){ .a = a, .start = &start };
			assert_int_equal(pthread_create(&g[i].thread, NULL, grow, &g[i]), 0);
		}
		for (unsigned i = 0; i < THREADS; i++)
			pthread_join(g[i].thread, NULL);
		/* 12.5 MiB and rounding: 2 4 8, and seldom one more */
		assert_in_range(d.nr_regions, 3, 4);
		pthread_barrier_destroy(&start);
		ra_arena_destroy(a);
	}
}

/* A device takes milliseconds to register. Meanwhile all memory of
 * the existing regions can be allocated. */
struct slow {
	struct dev d;
	struct ra_arena *a;
	sem_t entered, leave;
	bool slow;
};

static int slow_reg(void *ctx, void *base, size_t length, int fd, void **cookie)
{
	struct slow *s = ctx;

	if (s->slow) {
		sem_post(&s->entered);
		sem_wait(&s->leave);
	}
	return dev_reg(&s->d, base, length, fd, cookie);
}

static int slow_dereg(void *ctx, void *cookie)
{
	struct slow *s = ctx;

	return dev_dereg(&s->d, cookie);
}

static void *alloc_big(void *arg)
{
	struct slow *s = arg;

	return must_alloc(s->a, 8 * MIB, 0);
}

static void threads__allocate_while_another_registers(void **state)
{
	static struct slow s;
	struct ra_hooks hooks = { slow_reg, slow_dereg, &s };
	struct ra_options opt = { .max_bytes = 64 * MIB, .first_region = 4 * MIB };
	void *p, *big = NULL;
	pthread_t t;

	(void)state;
	sem_init(&s.entered, 0, 0);
	sem_init(&s.leave, 0, 0);
	assert_int_equal(ra_arena_create(&hooks, &opt, &s.a), 0);
	p = must_alloc(s.a, 64, 0);
	s.slow = true;
	assert_int_equal(pthread_create(&t, NULL, alloc_big, &s), 0);
	sem_wait(&s.entered);
	for (size_t size = 64; size <= 512 * KIB; size *= 2)
		ra_free(s.a, must_alloc(s.a, size, 0), size);
	ra_free(s.a, p, 64);
	sem_post(&s.leave);
	pthread_join(t, &big);
	assert_non_null(big);
	assert_int_equal(s.d.nr_reg, 2);
	ra_arena_destroy(s.a);
	sem_destroy(&s.entered);
	sem_destroy(&s.leave);
}

/* Freed memory may wait in a thread's own cache. All can have it when memory is short. */
struct filler {
	struct ra_arena *a;
	sem_t go, done;
	pthread_t thread;
	bool end;
};

static void fill_cache(struct ra_arena *a)
{
	void *p[16];

	for (size_t size = 64 * KIB; size <= 96 * KIB; size += 16 * KIB) {
		for (int i = 0; i < 16; i++)
			p[i] = must_alloc(a, size, 0);
		for (int i = 0; i < 16; i++)
			ra_free(a, p[i], size);
	}
}

static void *fill(void *arg)
{
	struct filler *f = arg;

	for (;;) {
		sem_wait(&f->go);
		if (f->end)
			return NULL;
		fill_cache(f->a);
		sem_post(&f->done);
	}
}

static void threads__cached_memory_is_free(void **state)
{
	enum { FILLERS = 12 };
	struct dev d = { 0 };
	struct ra_arena *a = arena_new(&d, 16 * MIB, 16 * MIB);
	struct filler f[FILLERS];
	struct ra_stats st;

	(void)state;
	for (int i = 0; i < FILLERS; i++) {
		f[i] = (struct filler){ .a = a };
		sem_init(&f[i].go, 0, 0);
		sem_init(&f[i].done, 0, 0);
		assert_int_equal(pthread_create(&f[i].thread, NULL, fill, &f[i]), 0);
	}
	for (int round = 0; round < 3; round++) {
		/* One thread after the other uses its own cache. Memory that
		 * stayed there would exceed the bound. */
		for (int i = 0; i < FILLERS; i++) {
			sem_post(&f[i].go);
			sem_wait(&f[i].done);
		}
		ra_stats(a, &st);
		assert_int_equal(st.live_bytes, 0);
		ra_free(a, must_alloc(a, 14 * MIB, 0), 14 * MIB);
	}
	for (int i = 0; i < FILLERS; i++) {
		f[i].end = true;
		sem_post(&f[i].go);
		pthread_join(f[i].thread, NULL);
		sem_destroy(&f[i].go);
		sem_destroy(&f[i].done);
	}
	assert_int_equal(d.nr_reg, 1);
	ra_arena_destroy(a);
}

/* Creates, uses and destroys an arena of this thread's own: arenas are independent. */
static void *own_arena(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < (UNDER_SANITIZER ? 30 : 300); i++) {
		struct dev d = { 0 };
		struct ra_arena *a = arena_new(&d, 32 * MIB, 2 * MIB);

		for (size_t size = 1; size < 3 * MIB; size *= 5)
			memset(must_alloc(a, size, 0), 1, size);
		ra_arena_destroy(a);
		assert_int_equal(d.nr_dereg, d.nr_regions);
	}
	return NULL;
}

static void threads__own_arenas(void **state)
{
	pthread_t t[4];

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, own_arena, NULL), 0);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads__share_values),
		cmocka_unit_test(threads__at_the_bound),
		cmocka_unit_test(threads__grow_together),
		cmocka_unit_test(threads__allocate_while_another_registers),
		cmocka_unit_test(threads__cached_memory_is_free),
		cmocka_unit_test(threads__own_arenas),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
