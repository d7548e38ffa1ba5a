/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slab: SLAB bytes less malloc's own word, aligned to SLAB. So one slab follows the other without
 * a gap.
 */
#include <stdlib.h>
#include <string.h>

#include "base/atomic.h"
#include "core/base/slab.h"

#define SLAB ((size_t)16 << 10)
#define MALLOC_WORD 16u
#define WORDS 4u

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define poison(p, n) __asan_poison_memory_region((p), (n))
#define unpoison(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define poison(p, n) ((void)(p), (void)(n))
#define unpoison(p, n) ((void)(p), (void)(n))
#endif

struct rc_slab {
	struct list node;
	uint32_t used;
	uint64_t free[WORDS];     /* a bit for each place */
	_Alignas(CACHE_LINE) char items[];
};

static struct rc_slab *slab_of(const void *item)
{
	return (struct rc_slab *)((uintptr_t)item & ~(uintptr_t)(SLAB - 1));
}

void rc_slabs_open(struct rc_slabs *s, size_t item)
{
	list_init(&s->room);
	list_init(&s->full);
	s->item = (uint32_t)item;
	s->per = (uint32_t)min_of((SLAB - MALLOC_WORD - sizeof(struct rc_slab)) / item,
				  (size_t)WORDS * 64);
}

static void slab_free(struct rc_slabs *s, struct rc_slab *b)
{
	unpoison(b->items, s->per * s->item);
	free(b);
}

void rc_slabs_close(struct rc_slabs *s)
{
	struct list *l;

	while ((l = list_pop(&s->room)) || (l = list_pop(&s->full)))
		slab_free(s, container_of(l, struct rc_slab, node));
}

static struct rc_slab *slab_make(struct rc_slabs *s)
{
	struct rc_slab *b;

	if (posix_memalign((void **)&b, SLAB, SLAB - MALLOC_WORD))
		return NULL;
	b->used = 0;
	for (uint32_t w = 0; w < WORDS; w++) {
		uint32_t before = w * 64, left = s->per > before ? s->per - before : 0;

		b->free[w] = left >= 64 ? UINT64_MAX : (UINT64_C(1) << left) - 1;
	}
	poison(b->items, s->per * s->item);
	return b;
}

void *rc_slab_get(struct rc_slabs *s)
{
	struct rc_slab *b;
	uint32_t w = 0;
	char *item;

	if (list_empty(&s->room)) {
		b = slab_make(s);
		if (!b)
			return NULL;
		list_add_tail(&s->room, &b->node);
	}
	b = container_of(s->room.next, struct rc_slab, node);
	while (!b->free[w])
		w++;
	item = b->items + (size_t)(w * 64 + (uint32_t)__builtin_ctzll(b->free[w])) * s->item;
	b->free[w] &= b->free[w] - 1;
	if (++b->used == s->per) {
		list_del(&b->node);
		list_add_tail(&s->full, &b->node);
	}
	unpoison(item, s->item);
	return memset(item, 0, s->item);
}

void rc_slab_put(struct rc_slabs *s, void *item)
{
	struct rc_slab *b = slab_of(item);
	uint32_t i = (uint32_t)((char *)item - b->items) / s->item;

	poison(item, s->item);
	b->free[i / 64] |= UINT64_C(1) << i % 64;
	if (b->used-- == s->per) {
		list_del(&b->node);
		list_add(&s->room, &b->node);
	}
	if (b->used)
		return;
	/* Keeps one empty slab, used last: items that come and go cost no allocation. */
	list_del(&b->node);
	if (list_empty(&s->room) || container_of(s->room.prev, struct rc_slab, node)->used)
		list_add_tail(&s->room, &b->node);
	else
		slab_free(s, b);
}

/* Returns the first used item from place i on, or NULL. */
static void *used_from(const struct rc_slabs *s, struct rc_slab *b, uint32_t i)
{
	for (; i < s->per; i++)
		if (!(b->free[i / 64] >> i % 64 & 1))
			return b->items + (size_t)i * s->item;
	return NULL;
}

void *rc_slab_next(struct rc_slabs *s, const void *item)
{
	struct rc_slab *b = item ? slab_of(item) : NULL;
	struct list *l = b ? &b->node : &s->full;
	void *next = b ? used_from(s, b, (uint32_t)((const char *)item - b->items) / s->item + 1)
		       : NULL;

	/* Visits the full slabs, then the others: either list ends at its head. */
	while (!next) {
		l = l->next;
		if (l == &s->full)
			l = s->room.next;
		if (l == &s->room)
			return NULL;
		next = used_from(s, container_of(l, struct rc_slab, node), 0);
	}
	return next;
}
