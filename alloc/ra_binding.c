/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bindings: each gives a thread a cache of an arena. The thread has the counters and the tcache to
 * itself until it ends or the arena is destroyed. So it enters by a plain store (ra_arena.c).
 *
 * A thread has RA_BINDINGS places for bindings. Each new arena has the next of these numbers. So
 * arenas made one after the other (contexts have two) do not collide. An arena has RA_OWNED caches
 * for bindings. A thread shares if all are taken, or if another living arena's binding is in its
 * place.
 */
#include <string.h>

#include "alloc/ra_internal.h"

__attribute__((tls_model("initial-exec"))) _Thread_local
struct ra_binding ra_bindings[RA_BINDINGS];
/* set when its bindings were given back: destructors that run later do without */
static _Thread_local bool ended;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool has_key;

void ra_binding_lock(void)
{
	pthread_mutex_lock(&lock);
}

void ra_binding_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

/* Lets go of the lock and of the parent's arenas, in a child.
 * The lock is held over a fork(2), for the spare caches' sake. */
static void bindings_in_child(void)
{
	memset(ra_bindings, 0, sizeof(ra_bindings));
	ra_binding_unlock();
}

void ra_cache_flush(struct ra_cache *s)
{
	/* a tcache that is being made just now is empty */
	unsigned tcache = at_load_acq(&s->tcache);

	for (unsigned i = 0; i < RA_CACHED; i++) {
		if (s->cached[i])
			ra_je_dallocx(s->cached[i], MALLOCX_TCACHE_NONE);
		s->cached[i] = NULL;
	}
	ra_near_flush(s);
	if (tcache != RA_NO_TCACHE)
		ra_je_cache_flush(tcache);
}

static void give_up_seats(void *arg)
{
	(void)arg;
	ended = true;
	/* The lock keeps arenas from being destroyed meanwhile. A
	 * destroyed arena has taken its binding away. */
	ra_binding_lock();
	for (unsigned i = 0; i < RA_BINDINGS; i++) {
		struct ra_binding *binding = &ra_bindings[i];
		struct ra_arena *a = at_load(&binding->arena);

		if (!a)
			continue;
		rb_assert(binding->cache->owner == binding && binding->cache->arena == a);
		/* An arena that gathers the caches comes by here as well. Or it did so already, and
		 * nothing was added since. */
		if (ra_cache_mark(a, binding->cache)) {
			ra_cache_flush(binding->cache);
			ra_cache_leave(binding->cache);
		}
		binding->cache->owner = NULL;
		at_store(&binding->arena, NULL);
		rb_assert_is(at_load(&a->nr_vacant), <, RA_OWNED);
		at_add(&a->nr_vacant, 1);
	}
	ra_binding_unlock();
}

static void begin_seats(void)
{
	has_key = !pthread_atfork(ra_binding_lock, ra_binding_unlock, bindings_in_child) &&
		!pthread_key_create(&key, give_up_seats);
}

void ra_bindings_create(struct ra_arena *a)
{
	static _Atomic unsigned next;

	ra_asym_begin();
	pthread_once(&once, begin_seats);
	a->binding = at_add(&next, 1) % RA_BINDINGS * sizeof(struct ra_binding);
	at_store(&a->nr_vacant, has_key && ra_asym_is_plain() ? RA_OWNED : 0);
}

bool ra_cache_has_cache(struct ra_arena *a, struct ra_cache *s)
{
	unsigned tcache = at_load(&s->tcache);

	ra_assert_held(&lock);
	rb_assert(s->arena == a);
	if (tcache == RA_NO_TCACHE) {
		tcache = ra_je_cache_create();
		s->how = ra_je_how(a, tcache);
		/* A gathering thread may come by before the cache's first user. */
		at_store_rel(&s->tcache, tcache);
	}
	return tcache != RA_NO_TCACHE;
}

struct ra_cache *ra_binding_take(struct ra_arena *a)
{
	struct ra_binding *binding = ra_binding_of(a);
	struct ra_cache *s = a->caches, *end = s + RA_OWNED;

	/* Looked at without the lock, since a thread without a binding asks each time. */
	if (ended || !at_load(&a->nr_vacant) || at_load(&binding->arena) ||
	    pthread_setspecific(key, ra_bindings))
		return NULL;
	ra_binding_lock();
	while (s < end && s->owner)
		s++;
	if (s == end || !at_load(&a->nr_vacant)) {
		s = NULL;
	} else if (!ra_cache_has_cache(a, s)) {
		at_store(&a->nr_vacant, 0); /* there would be none for the others either */
		s = NULL;
	} else {
		rb_assert_with(s < end && !at_load(&s->busy), "cache %td", s - a->caches);
		s->owner = binding;
		binding->cache = s;
		at_sub(&a->nr_vacant, 1);
		at_store(&binding->arena, a);
	}
	ra_binding_unlock();
	return s;
}

void ra_bindings_destroy(struct ra_arena *a)
{
	ra_binding_lock();
	for (unsigned i = 0; i < RA_CACHES; i++) {
		struct ra_cache *s = &a->caches[i];

		rb_assert_if(s->owner, i < RA_OWNED && s->owner->cache == s);
		rb_assert_if(s->owner, at_load(&s->owner->arena) == a);
		rb_assert_with(!at_load(&s->busy), "cache %u", i);
		if (s->owner)
			at_store(&s->owner->arena, NULL);
		if (at_load(&s->tcache) != RA_NO_TCACHE)
			ra_je_cache_destroy(at_load(&s->tcache));
	}
	ra_binding_unlock();
}
