/* SPDX-License-Identifier: Apache-2.0 */
/* Message buffers: registered chunks that grow with use, never remotely accessible. */
#include <stdlib.h>
#include <sys/mman.h>

#include "ibv.h"

int rvi_pool_init(struct rvi_pool *p, uint32_t max, uint32_t chunk_bufs)
{
	*p = (struct rvi_pool){ .max = max, .chunk_bufs = chunk_bufs };
	p->by_index = calloc(max, sizeof(*p->by_index));
	return p->by_index ? 0 : rv_fail(ENOMEM, "no memory for %u message buffers", max);
}

static size_t chunk_bytes(const struct rvi_pool *p)
{
	return (size_t)p->chunk_bufs * RVI_MSG_STRIDE;
}

void rvi_pool_free(struct rvi_pool *p)
{
	struct rvi_chunk *c = p->chunks;

	while (c) {
		struct rvi_chunk *next = c->next;

		/* Memory that the device may still touch stays mapped. */
		if (!ibv_dereg_mr(c->mr))
			munmap(c->mem, chunk_bytes(p));
		free(c);
		c = next;
	}
	free(p->by_index);
	*p = (struct rvi_pool){ 0 };
}

static int grow_pool(struct rv_dev *dev, struct rvi_pool *p)
{
	size_t bytes = chunk_bytes(p);
	struct rvi_chunk *c;
	int rc;

	if (p->nr + p->chunk_bufs > p->max)
		return -EAGAIN;
	c = calloc(1, sizeof(*c) + p->chunk_bufs * sizeof(c->bufs[0]));
	if (!c)
		return rv_fail(ENOMEM, "no memory for message buffers");
	c->mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (c->mem == MAP_FAILED) {
		rc = rv_fail(ENOMEM, "cannot map %zu bytes of message buffers", bytes);
		goto free_chunk;
	}
	rb_not_in_child(c->mem, bytes);
	rb_slow(RB_SLOW_REGISTER);
	c->mr = ibv_reg_mr(dev->pd, c->mem, bytes, IBV_ACCESS_LOCAL_WRITE);
	if (!c->mr) {
		rc = rvi_reg_failed(errno, bytes);
		goto unmap;
	}
	for (uint32_t i = p->chunk_bufs; i-- > 0;) {
		struct rvi_buf *b = &c->bufs[i];

		b->mem = c->mem + (size_t)i * RVI_MSG_STRIDE;
		b->lkey = c->mr->lkey;
		b->index = p->nr + i;
		b->next = p->free;
		p->free = b;
		p->by_index[b->index] = b;
	}
	p->nr += p->chunk_bufs;
	rb_assert_is(p->nr, <=, p->max);
	c->next = p->chunks;
	p->chunks = c;
	return 0;
unmap:
	munmap(c->mem, bytes);
free_chunk:
	free(c);
	return rc;
}

/* Takes a buffer. Returns 0; -EAGAIN: the pool is at its bound; -ENOMEM with a text. */
int rvi_pool_take(struct rv_dev *dev, struct rvi_pool *p, enum rvi_buf_state state,
		  struct rvi_buf **out)
{
	struct rvi_buf *b;
	int rc;

	if (!p->free) {
		rc = grow_pool(dev, p);
		if (rc)
			return rc;
	}
	b = p->free;
	rb_assert_with(b->state == RVI_BUF_FREE && b->index < p->nr && p->by_index[b->index] == b,
		       "%u", b->index);
	rb_assert_is(state, !=, RVI_BUF_FREE);
	p->free = b->next;
	b->state = state;
	b->gen++;
	*out = b;
	return 0;
}

void rvi_pool_give(struct rvi_pool *p, struct rvi_buf *b)
{
	rb_assert_with(b->state != RVI_BUF_FREE && p->by_index[b->index] == b, "%u", b->index);
	b->state = RVI_BUF_FREE;
	b->next = p->free;
	p->free = b;
}
