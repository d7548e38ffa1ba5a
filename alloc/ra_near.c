/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes just above a power of two: a value of that power and its header have such a size.
 * jemalloc's next class is a quarter larger. These sizes lie in slabs of their own, slot beside
 * slot. So values made one after the other are neighbours, too.
 *
 * A slab is carved from a region as an extent is, at a multiple of its own length. The table finds
 * it from its address. Its bookkeeping lies apart, as jemalloc's does. Slabs are a convenience:
 * without a slab, or room for one, the caller asks jemalloc. So slabs with free slots are held to
 * an eighth of the registered bytes. Empty ones go back when memory is gathered.
 */
#include <errno.h>
#include <stdlib.h>

#include "alloc/ra_internal.h"
#include "base/assert.h"
#include "base/util.h"

#define SLOT_WORDS 4 /* 227 slots of 576 bytes are the most */

struct ra_near_slab {
	/* guarded by near: in its class' list of slabs with free slots; else in no list */
	struct list node;
	char *base;               /* const */
	unsigned size_class, nr_slots;   /* const */
	unsigned nr_free;         /* guarded by near */
	uint64_t free[SLOT_WORDS];/* guarded by near */
};

static size_t slot_bytes(unsigned size_class)
{
	return ((size_t)1 << (size_class + RA_NEAR_FIRST)) + RA_MIN_ALIGN;
}

static size_t slab_bytes(unsigned size_class)
{
	return max_of((size_t)16 << (size_class + RA_NEAR_FIRST), RA_NEAR_UNIT);
}

int ra_near_create(struct ra_arena *a)
{
	pthread_mutex_init(&a->near, NULL);
	for (unsigned c = 0; c < RA_NEAR; c++)
		list_init(&a->near_slabs[c]);
	a->near_table = calloc(a->span_bytes >> RA_NEAR_SHIFT, sizeof(*a->near_table));
	if (a->near_table)
		return 0;
	pthread_mutex_destroy(&a->near);
	return ra_fail(-ENOMEM, "value memory: no memory for a table of slabs");
}

void ra_near_destroy(struct ra_arena *a)
{
	struct ra_near_slab *last = NULL;

	/* A slab with several entries of the table is found at each of them in turn. */
	for (size_t i = 0; a->nr_near && i < a->span_bytes >> RA_NEAR_SHIFT; i++) {
		struct ra_near_slab *s = at_load(&a->near_table[i]);

		if (s && s != last) {
			free(last);
			last = s;
			a->nr_near--;
		}
	}
	rb_assert_is(a->nr_near, ==, 0);
	free(last);
	free(a->near_table);
	pthread_mutex_destroy(&a->near);
}

/* Asserts of a slab that its book agrees with itself. */
static void slab_sound(const struct ra_arena *a, const struct ra_near_slab *s)
{
	unsigned bits = 0;

	for (unsigned w = 0; RB_CHECKED && w < SLOT_WORDS; w++)
		bits += (unsigned)__builtin_popcountll(s->free[w]);
	rb_assert_is(bits, ==, s->nr_free);
	rb_assert_is(s->nr_free, <=, s->nr_slots);
	rb_assert_is(s->size_class, <, RA_NEAR);
	rb_assert(list_empty(&s->node) == !s->nr_free);
	rb_assert_if(s->nr_free, a->near_open >= slab_bytes(s->size_class));
	(void)a;
}

static void publish(struct ra_arena *a, const struct ra_near_slab *s, struct ra_near_slab *entry)
{
	size_t first = (size_t)(s->base - a->span) >> RA_NEAR_SHIFT,
	       n = slab_bytes(s->size_class) >> RA_NEAR_SHIFT;

	/* Release, with the acquire in ra_near_of: it sees the class. */
	for (size_t i = first; i < first + n; i++)
		at_store_rel(&a->near_table[i], entry);
}

/* [near] Makes a slab. NULL: there is no room, or enough slabs have free slots. */
static struct ra_near_slab *add_slab(struct ra_arena *a, unsigned size_class)
{
	size_t bytes = slab_bytes(size_class);
	struct ra_near_slab *s;

	ra_assert_held(&a->near);
	if (a->near_open + bytes > at_load(&a->region_bytes) / 8)
		return NULL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->base = ra_regions_carve(a, bytes, bytes);
	if (!s->base) {
		free(s);
		return NULL;
	}
	s->size_class = size_class;
	s->nr_slots = s->nr_free = (unsigned)(bytes / slot_bytes(size_class));
	rb_assert_with(((uintptr_t)s->base & (bytes - 1)) == 0, "%p", (void *)s->base);
	rb_assert_is(s->nr_slots, <=, SLOT_WORDS * 64);
	rb_assert(!ra_near_of(a, s->base));
	for (unsigned i = 0; i < s->nr_slots; i++)
		s->free[i / 64] |= UINT64_C(1) << i % 64;
	publish(a, s, s);
	a->nr_near++;
	a->near_open += bytes;
	list_add_tail(&a->near_slabs[size_class], &s->node);
	return s;
}

/* [near] Gives an empty slab back to the holes of its region,
 * unless there is no memory to note that. */
static void drop_slab(struct ra_arena *a, struct ra_near_slab *s)
{
	size_t bytes = slab_bytes(s->size_class);

	rb_assert_is(s->nr_free, ==, s->nr_slots);
	rb_assert(ra_near_of(a, s->base) == s && ra_near_of(a, s->base + bytes - 1) == s);
	rb_assert(a->near_open >= bytes && a->nr_near);
	publish(a, s, NULL);
	if (!ra_regions_return(a, s->base, bytes)) {
		publish(a, s, s);
		return;
	}
	list_del(&s->node);
	a->near_open -= bytes;
	a->nr_near--;
	free(s);
}

static void *take_slot(struct ra_arena *a, struct ra_near_slab *s)
{
	unsigned w = 0, bit;

	ra_assert_held(&a->near);
	slab_sound(a, s);
	rb_assert_is(s->nr_free, >, 0);
	while (!s->free[w])
		w++;
	bit = (unsigned)__builtin_ctzll(s->free[w]);
	s->free[w] &= s->free[w] - 1;
	if (!--s->nr_free) {
		list_del(&s->node);
		a->near_open -= slab_bytes(s->size_class);
	}
	return s->base + (w * 64 + bit) * slot_bytes(s->size_class);
}

unsigned ra_near_take(struct ra_arena *a, unsigned size_class, void **out, unsigned n)
{
	unsigned got = 0;

	pthread_mutex_lock(&a->near);
	while (got < n) {
		struct list *first = &a->near_slabs[size_class];
		struct ra_near_slab *s = list_empty(first) ? add_slab(a, size_class) :
					 container_of(first->next, struct ra_near_slab, node);

		if (!s)
			break;
		out[got++] = take_slot(a, s);
	}
	pthread_mutex_unlock(&a->near);
	return got;
}

void ra_near_give(struct ra_arena *a, void *const *slots, unsigned n)
{
	pthread_mutex_lock(&a->near);
	for (unsigned i = 0; i < n; i++) {
		struct ra_near_slab *s = ra_near_of(a, slots[i]);
		unsigned slot = (unsigned)((size_t)((char *)slots[i] - s->base) /
					   slot_bytes(s->size_class));

		rb_assert_is(slot, <, s->nr_slots);
		rb_assert_with((size_t)((char *)slots[i] - s->base) ==
				       slot * slot_bytes(s->size_class),
			       "%p", slots[i]);
		rb_require(!(s->free[slot / 64] >> slot % 64 & 1)); /* not given back twice */
		slab_sound(a, s);
		s->free[slot / 64] |= UINT64_C(1) << slot % 64;
		if (!s->nr_free++) {
			list_add_tail(&a->near_slabs[s->size_class], &s->node);
			a->near_open += slab_bytes(s->size_class);
		}
	}
	pthread_mutex_unlock(&a->near);
}

void ra_near_gather(struct ra_arena *a)
{
	pthread_mutex_lock(&a->near);
	for (unsigned c = 0; c < RA_NEAR; c++) {
		struct list *l, *tmp;

		list_for_each_safe(l, tmp, &a->near_slabs[c]) {
			struct ra_near_slab *s = container_of(l, struct ra_near_slab, node);

			if (s->nr_free == s->nr_slots)
				drop_slab(a, s);
		}
	}
	pthread_mutex_unlock(&a->near);
}

void ra_near_flush(struct ra_cache *s)
{
	for (unsigned c = 0; c < RA_NEAR; c++) {
		if (s->nr_slots[c])
			ra_near_give(s->arena, s->slots[c], s->nr_slots[c]);
		s->nr_slots[c] = 0;
	}
}
