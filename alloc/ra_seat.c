/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seats: each gives a thread a shard of an arena. It has the counters and the cache to itself until
 * it ends or the arena is destroyed. So it enters by a plain store (ra_arena.c).
 *
 * A thread has RA_SEATS places for seats. Each new arena has the next of these numbers. So arenas
 * made one after the other (contexts have two) do not collide. An arena has RA_OWNED shards for
 * seats. A thread shares if all are taken, or if another living arena's seat is in its place.
 */
#include <string.h>

#include "alloc/ra_internal.h"

__attribute__((tls_model("initial-exec"))) _Thread_local struct ra_seat ra_seats[RA_SEATS];
/* set when its seats were given back: destructors that run later do without */
static _Thread_local bool ended;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool has_key;

void ra_seat_lock(void)
{
	pthread_mutex_lock(&lock);
}

void ra_seat_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

/* Lets go of the lock and of the parent's arenas, in a child.
 * The lock is held over a fork(2), for the spare caches' sake. */
static void seats_in_child(void)
{
	memset(ra_seats, 0, sizeof(ra_seats));
	ra_seat_unlock();
}

void ra_shard_flush(struct ra_shard *s)
{
	unsigned cache = at_load_acq(&s->cache); /* a cache that is being made just now is empty */

	for (unsigned i = 0; i < RA_KEPT; i++) {
		if (s->kept[i])
			ra_je_dallocx(s->kept[i], MALLOCX_TCACHE_NONE);
		s->kept[i] = NULL;
	}
	ra_near_flush(s);
	if (cache != RA_NO_CACHE)
		ra_je_cache_flush(cache);
}

static void give_up_seats(void *arg)
{
	(void)arg;
	ended = true;
	/* The lock keeps arenas from being destroyed meanwhile. A
	 * destroyed arena has taken its seat away. */
	ra_seat_lock();
	for (unsigned i = 0; i < RA_SEATS; i++) {
		struct ra_seat *seat = &ra_seats[i];
		struct ra_arena *a = at_load(&seat->arena);

		if (!a)
			continue;
		rb_assert(seat->shard->owner == seat && seat->shard->arena == a);
		/* An arena that gathers the caches comes by here as well. Or it did so already, and
		 * nothing was added since. */
		if (ra_shard_mark(a, seat->shard)) {
			ra_shard_flush(seat->shard);
			ra_shard_leave(seat->shard);
		}
		seat->shard->owner = NULL;
		at_store(&seat->arena, NULL);
		rb_assert_is(at_load(&a->nr_vacant), <, RA_OWNED);
		at_add(&a->nr_vacant, 1);
	}
	ra_seat_unlock();
}

static void begin_seats(void)
{
	has_key = !pthread_atfork(ra_seat_lock, ra_seat_unlock, seats_in_child) &&
		!pthread_key_create(&key, give_up_seats);
}

void ra_seats_create(struct ra_arena *a)
{
	static _Atomic unsigned next;

	ra_asym_begin();
	pthread_once(&once, begin_seats);
	a->seat = at_add(&next, 1) % RA_SEATS * sizeof(struct ra_seat);
	at_store(&a->nr_vacant, has_key && ra_asym_is_plain() ? RA_OWNED : 0);
}

bool ra_shard_has_cache(struct ra_arena *a, struct ra_shard *s)
{
	unsigned cache = at_load(&s->cache);

	ra_assert_held(&lock);
	rb_assert(s->arena == a);
	if (cache == RA_NO_CACHE) {
		cache = ra_je_cache_create();
		s->how = ra_je_how(a, cache);
		/* A gathering thread may come by before the cache's first user. */
		at_store_rel(&s->cache, cache);
	}
	return cache != RA_NO_CACHE;
}

struct ra_shard *ra_seat_take(struct ra_arena *a)
{
	struct ra_seat *seat = ra_seat_of(a);
	struct ra_shard *s = a->shards, *end = s + RA_OWNED;

	/* Looked at without the lock, since a thread without a seat asks each time. */
	if (ended || !at_load(&a->nr_vacant) || at_load(&seat->arena) ||
	    pthread_setspecific(key, ra_seats))
		return NULL;
	ra_seat_lock();
	while (s < end && s->owner)
		s++;
	if (s == end || !at_load(&a->nr_vacant)) {
		s = NULL;
	} else if (!ra_shard_has_cache(a, s)) {
		at_store(&a->nr_vacant, 0); /* there would be none for the others either */
		s = NULL;
	} else {
		rb_assert_with(s < end && !at_load(&s->busy), "shard %td", s - a->shards);
		s->owner = seat;
		seat->shard = s;
		at_sub(&a->nr_vacant, 1);
		at_store(&seat->arena, a);
	}
	ra_seat_unlock();
	return s;
}

void ra_seats_destroy(struct ra_arena *a)
{
	ra_seat_lock();
	for (unsigned i = 0; i < RA_SHARDS; i++) {
		struct ra_shard *s = &a->shards[i];

		rb_assert_if(s->owner, i < RA_OWNED && s->owner->shard == s);
		rb_assert_if(s->owner, at_load(&s->owner->arena) == a);
		rb_assert_with(!at_load(&s->busy), "shard %u", i);
		if (s->owner)
			at_store(&s->owner->arena, NULL);
		if (at_load(&s->cache) != RA_NO_CACHE)
			ra_je_cache_destroy(at_load(&s->cache));
	}
	ra_seat_unlock();
}
