/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools of equal items that never move, and lists of them by index. A chunk that becomes empty is
 * given back unless it is the last one with room. So memory returns after a peak, and a single
 * entry that comes and goes costs no malloc.
 */
#include <stdlib.h>
#include <string.h>

#include "core/protocol/internal.h"

static void *place(const struct rp_pool *p, struct rp_chunk *c, uint32_t k)
{
	return c->items + (size_t)k * p->bytes;
}

static void room_add(struct rp_pool *p, uint32_t ci)
{
	struct rp_chunk *c = &p->chunks[ci];

	rb_assert(!c->next && !c->prev && p->room != ci + 1);
	c->prev = 0;
	c->next = p->room;
	if (p->room)
		p->chunks[p->room - 1].prev = ci + 1;
	p->room = ci + 1;
}

static void room_del(struct rp_pool *p, uint32_t ci)
{
	struct rp_chunk *c = &p->chunks[ci];

	rb_assert(c->prev ? p->chunks[c->prev - 1].next == ci + 1 : p->room == ci + 1);
	rb_assert_if(c->next, p->chunks[c->next - 1].prev == ci + 1);
	if (c->next)
		p->chunks[c->next - 1].prev = c->prev;
	if (c->prev)
		p->chunks[c->prev - 1].next = c->next;
	else
		p->room = c->next;
	c->next = c->prev = 0;
}

void rp_pool_init(struct rp_pool *p, uint32_t item_bytes, bool *wanting)
{
	memset(p, 0, sizeof(*p));
	p->bytes = item_bytes;
	p->wanting = wanting;
}

void rp_pool_close(struct rp_pool *p)
{
	for (uint32_t i = 0; i < p->nr_chunks; i++)
		free(p->chunks[i].items);
	free(p->chunks);
}

static int add_chunk(struct rp_pool *p)
{
	uint32_t ci;
	char *items = calloc(RP_CHUNK_ITEMS, p->bytes);

	if (!items)
		return -ENOMEM;
	if (p->hole) {
		ci = p->hole - 1;
		rb_assert(!p->chunks[ci].items && !p->chunks[ci].live);
		p->hole = p->chunks[ci].next;
	} else {
		if (p->nr_chunks == p->max_chunks) {
			uint32_t max = p->max_chunks ? 2 * p->max_chunks : 4;
			struct rp_chunk *chunks = max <= UINT32_MAX / RP_CHUNK_ITEMS ?
				realloc(p->chunks, max * sizeof(*chunks)) : NULL;

			if (!chunks) {
				free(items);
				return -ENOMEM;
			}
			p->chunks = chunks;
			p->max_chunks = max;
		}
		ci = p->nr_chunks++;
	}
	p->chunks[ci] = (struct rp_chunk){ .items = items, .free = 1 };
	/* A free place's first word is the next free one + 1. */
	for (uint32_t k = 0; k < RP_CHUNK_ITEMS; k++) {
		uint32_t next = k + 1 < RP_CHUNK_ITEMS ? k + 2 : 0;

		memcpy(place(p, &p->chunks[ci], k), &next, sizeof(next));
	}
	room_add(p, ci);
	p->nr_free += RP_CHUNK_ITEMS;
	return 0;
}

int rp_pool_grow(struct rp_pool *p, uint32_t n)
{
	while (p->nr_free < n) {
		int rc = add_chunk(p);

		if (rc)
			return rc;
	}
	return 0;
}

uint32_t rp_pool_take(struct rp_pool *p)
{
	uint32_t ci = p->room - 1, k;
	struct rp_chunk *c;

	rb_assert(p->room);
	c = &p->chunks[ci];
	k = c->free - 1;
	rb_assert_is(k, <, RP_CHUNK_ITEMS);
	rb_assert_is(c->live, <, RP_CHUNK_ITEMS);
	/* A free place holds nothing but the link. */
	memcpy(&c->free, place(p, c, k), sizeof(c->free));
	memset(place(p, c, k), 0, sizeof(c->free));
	c->live++;
	p->live++;
	p->nr_free--;
	if (!c->free) {
		room_del(p, ci);
		*p->wanting |= !p->nr_free;
	}
	return ci * RP_CHUNK_ITEMS + k + 1;
}

void rp_pool_put(struct rp_pool *p, uint32_t i)
{
	uint32_t ci = (i - 1) / RP_CHUNK_ITEMS, k = (i - 1) % RP_CHUNK_ITEMS;
	struct rp_chunk *c = &p->chunks[ci];

	rb_assert_is(ci, <, p->nr_chunks);
	rb_assert(c->items && c->live);
	rb_assert_is(p->live, >=, c->live);
	rb_assert(!c->free == (c->live == RP_CHUNK_ITEMS));
	if (!c->free)
		room_add(p, ci);
	/* All zero but for the link: a free item's state reads as none. */
	memset(place(p, c, k), 0, p->bytes);
	memcpy(place(p, c, k), &c->free, sizeof(c->free));
	c->free = k + 1;
	c->live--;
	p->live--;
	p->nr_free++;
	if (!c->live && p->nr_free > 2 * RP_CHUNK_ITEMS) {
		room_del(p, ci);
		free(c->items);
		c->items = NULL;
		c->next = p->hole;
		p->hole = ci + 1;
		p->nr_free -= RP_CHUNK_ITEMS;
	}
}

uint32_t rp_pool_next(const struct rp_pool *p, uint32_t i)
{
	for (; i < p->nr_chunks * RP_CHUNK_ITEMS; i = (i / RP_CHUNK_ITEMS + 1) * RP_CHUNK_ITEMS)
		if (p->chunks[i / RP_CHUNK_ITEMS].items)
			return i + 1;
	return 0;
}

static struct rp_link *link_at(const struct rp_pool *p, size_t offset, uint32_t i)
{
	return (struct rp_link *)((char *)rp_item(p, i) + offset);
}

void rp_list_add(const struct rp_pool *p, size_t offset, rp_list *list, uint32_t i)
{
	struct rp_link *l = link_at(p, offset, i), *head;

	rb_assert_with(!l->next && !l->prev, "item %u is in a list", i);
	if (!*list) {
		l->next = l->prev = i;
		*list = i;
		return;
	}
	head = link_at(p, offset, *list);
	l->next = *list;
	l->prev = head->prev;
	link_at(p, offset, head->prev)->next = i;
	head->prev = i;
}

void rp_list_del(const struct rp_pool *p, size_t offset, rp_list *list, uint32_t i)
{
	struct rp_link *l = link_at(p, offset, i);

	rb_assert_with(l->next && l->prev, "item %u is in no list", i);
	rb_assert(link_at(p, offset, l->next)->prev == i && link_at(p, offset, l->prev)->next == i);
	if (l->next == i) {
		rb_assert_is(*list, ==, i);
		*list = 0;
	} else {
		link_at(p, offset, l->next)->prev = l->prev;
		link_at(p, offset, l->prev)->next = l->next;
		if (*list == i)
			*list = l->next;
	}
	l->next = l->prev = 0;
}

uint32_t rp_list_next(const struct rp_pool *p, size_t offset, rp_list list, uint32_t i)
{
	uint32_t next = link_at(p, offset, i)->next;

	return next == list ? 0 : next;
}
