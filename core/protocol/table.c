/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hash tables over pool items, chained through them: growing moves only the buckets. Growth is a
 * step of its own (reserve), before the rest of the step looks at the table. It doubles the table,
 * so that it costs O(1) amortised.
 *
 * Ids are numbers given out one after another. So ids of one time are near each other, and used
 * near each other. So are their buckets: 16 ids in a row share a cache line, each with a bucket of
 * its own. The place of the line depends on the seed, and so does the order of the 16 within it. So
 * nobody can choose numbers that meet, and every n-th id does not meet either.
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
	rb_assert_is(t->used, >=, size);
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

	rb_assert_is(t->used, ==, 0);
	if (!buckets)
		return;
	free(t->buckets);
	t->buckets = buckets;
	t->mask = MIN_BUCKETS - 1;
}

void rp_table_add(struct rp_table *t, const struct rp_pool *p, uint32_t i, uint32_t hash)
{
	struct rp_hashed *h = at(p, i);

	rb_assert_with(!h->next && !h->hash, "item %u is in a table", i);
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
		rb_assert(*from);
		from = &at(p, *from)->next;
	}
	*from = at(p, i)->next;
	rb_assert_is(t->used, >, 0);
	t->used--;
}

/* Returns the first item of a bucket. */
static uint32_t first(const struct rp_table *t, uint32_t hash)
{
	return t->buckets[hash & t->mask];
}

/* Returns the place of the item x with that hash for which `is` holds, or 0. */
#define FIND(what, hash_of, is) \
	uint32_t hash = (hash_of); \
	for (uint32_t i = first(&m->what##_table, hash); i;) { \
		const struct rp_##what *x = rp_##what##_at(m, i); \
		if (x->hashed.hash == hash && (is)) \
			return i; \
		i = x->hashed.next; \
	} \
	return 0

uint32_t rp_find_owner(const struct rp *m, const struct rref_id *id)
{
	FIND(owner, rp_hash(m, id, 0), rp_same(&x->id, id));
}

uint32_t rp_find_held(const struct rp *m, uint32_t holder, const struct rref_id *fork)
{
	FIND(held, rp_hash(m, fork, holder), x->holder == holder && rp_same(&x->fork, fork));
}

uint32_t rp_find_user(const struct rp *m, const struct rref_id *fork)
{
	FIND(user, rp_hash(m, fork, 0), rp_same(&x->fork, fork));
}

uint32_t rp_find_child(const struct rp *m, const struct rref_id *fork)
{
	FIND(child, rp_hash(m, fork, 0), rp_same(&x->fork, fork));
}

uint32_t rp_find_tomb(const struct rp *m, uint32_t holder, const struct rref_id *fork)
{
	FIND(tomb, rp_hash(m, fork, holder), x->holder == holder && rp_same(&x->fork, fork));
}
