/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hash tables over pool items, chained through them: growing moves only the buckets. Growth is a step of its own
 * (reserve), before anything else of the step looks at the table; it doubles, so that it costs O(1) amortised.
 *
 * Ids are numbers given out one after another, so that those of one time are near each other, and used near each other.
 * Their buckets are, too: 16 in a row share a cache line, each with a bucket of its own. Where that line is depends on the
 * seed, as does which of the 16 is whose, so that nobody can choose numbers that meet, nor do every n-th of them.
 */
#include <stdlib.h>
#include <string.h>

#include "core/protocol/internal.h"

#define MIN_BUCKETS 64u
int rp_table_init(struct rp_table *t, bool *wanting)
{
	t->wanting = wanting;
	t->mask = MIN_BUCKETS - 1;
	t->used = 0;
	t->buckets = calloc(MIN_BUCKETS, sizeof(*t->buckets));
	return t->buckets ? 0 : -ENOMEM;
}

void rp_table_close(struct rp_table *t)
{
	free(t->buckets);
}

static struct rp_hashed *at(const struct rp_pool *p, uint32_t i)
{
	return rp_item(p, i);
}

int rp_table_grow(struct rp_table *t, const struct rp_pool *p)
{
	uint32_t *old = t->buckets, *buckets;
	uint32_t size = t->mask + 1;

	if (size > UINT32_MAX / 2)
		return 0;
	buckets = calloc(2 * (size_t)size, sizeof(*buckets));
	if (!buckets)
		return -ENOMEM;
	t->buckets = buckets;
	t->mask = 2 * size - 1;
	for (uint32_t b = 0; b < size; b++)
		for (uint32_t i = old[b], next; i; i = next) {
			uint32_t *to = &buckets[at(p, i)->hash & t->mask];

			next = at(p, i)->next;
			at(p, i)->next = *to;
			*to = i;
		}
	free(old);
	return 0;
}

void rp_table_shrink(struct rp_table *t)
{
	uint32_t *buckets = calloc(MIN_BUCKETS, sizeof(*buckets));

	if (!buckets)
		return;
	free(t->buckets);
	t->buckets = buckets;
	t->mask = MIN_BUCKETS - 1;
}

void rp_table_add(struct rp_table *t, const struct rp_pool *p, uint32_t i, uint32_t hash)
{
	struct rp_hashed *h = at(p, i);

	h->hash = hash;
	h->next = t->buckets[hash & t->mask];
	t->buckets[hash & t->mask] = i;
	if (unlikely(++t->used > t->mask))
		*t->wanting = true;
}

void rp_table_del(struct rp_table *t, const struct rp_pool *p, uint32_t i)
{
	uint32_t *from = &t->buckets[at(p, i)->hash & t->mask];

	while (*from != i) {
		assert(*from);
		from = &at(p, *from)->next;
	}
	*from = at(p, i)->next;
	t->used--;
}

uint32_t rp_find_owner(const struct rp *m, const struct rref_id *id)
{
	uint32_t hash = rp_hash(m, id, 0), i = m->owner_table.buckets[hash & m->owner_table.mask];

	while (i && !(rp_owner_at(m, i)->hashed.hash == hash && rp_same(&rp_owner_at(m, i)->id, id)))
		i = rp_owner_at(m, i)->hashed.next;
	return i;
}

uint32_t rp_find_held(const struct rp *m, uint32_t holder, const struct rref_id *fork)
{
	uint32_t hash = rp_hash(m, fork, holder), i = m->held_table.buckets[hash & m->held_table.mask];

	while (i && !(rp_held_at(m, i)->hashed.hash == hash && rp_held_at(m, i)->holder == holder &&
		      rp_same(&rp_held_at(m, i)->fork, fork)))
		i = rp_held_at(m, i)->hashed.next;
	return i;
}

uint32_t rp_find_user(const struct rp *m, const struct rref_id *fork)
{
	uint32_t hash = rp_hash(m, fork, 0), i = m->user_table.buckets[hash & m->user_table.mask];

	while (i && !(rp_user_at(m, i)->hashed.hash == hash && rp_same(&rp_user_at(m, i)->fork, fork)))
		i = rp_user_at(m, i)->hashed.next;
	return i;
}

uint32_t rp_find_child(const struct rp *m, const struct rref_id *fork)
{
	uint32_t hash = rp_hash(m, fork, 0), i = m->child_table.buckets[hash & m->child_table.mask];

	while (i && !(rp_child_at(m, i)->hashed.hash == hash && rp_same(&rp_child_at(m, i)->fork, fork)))
		i = rp_child_at(m, i)->hashed.next;
	return i;
}

uint32_t rp_find_tomb(const struct rp *m, uint32_t holder, const struct rref_id *fork)
{
	uint32_t hash = rp_hash(m, fork, holder), i = m->tomb_table.buckets[hash & m->tomb_table.mask];

	while (i && !(rp_tomb_at(m, i)->hashed.hash == hash && rp_tomb_at(m, i)->holder == holder &&
		      rp_same(&rp_tomb_at(m, i)->fork, fork)))
		i = rp_tomb_at(m, i)->hashed.next;
	return i;
}
