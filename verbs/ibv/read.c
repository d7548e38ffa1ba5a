/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READs: the hot path. Posting is [any] and lock-free on our side. A chain of n slots is taken from
 * the free list with one compare-and-swap. Its requests are posted with one doorbell. (The driver
 * takes its own lock or makes a system call: not ours to avoid.)
 *
 * The requests live on the poster's stack, not in the slots. A driver may show a request to the
 * device before it has read where the next one is (rxe does). So another thread may take a finished
 * slot while the first poster's call still walks its chain.
 *
 * The free list is a stack {tag, head} in one word. Every change of it moves the tag. So the
 * compare-and-swap notices a walk along `next` that raced with another thread. Until then the walk
 * only read numbers that are in bounds.
 *
 * A slot is given back by poll and next_read, by the fence's report, or by the poster whose post
 * failed. Its generation is odd exactly while a READ is under way. Each READ is one step to odd and
 * one to even, which makes "reported exactly once" true. Pairs: the poster's store-release of gen
 * with the poller's load-acquire (cookie).
 */
#include <stdlib.h>

#include "base/fast.h"
#include "ibv.h"
#include "status.h"

static uint32_t head_of(uint64_t list)
{
	return (uint32_t)list;
}

static uint64_t list_word(uint64_t old, uint32_t head)
{
	return (old & ~(uint64_t)UINT32_MAX) + ((uint64_t)1 << 32) + head;
}

int rvi_reads_init(struct rv_conn *conn)
{
	uint32_t n = conn->dev->max_reads;

	if (conn->reads)
		return 0;
	conn->reads = calloc(n, sizeof(*conn->reads));
	if (!conn->reads)
		return rv_fail(ENOMEM, "no memory for %u reads", n);
	for (uint32_t i = 0; i < n; i++)
		at_store(&conn->reads[i].next, i + 1 < n ? i + 1 : RVI_NIL);
	at_store_rel(&conn->free_reads, 0);
	return 0;
}

/* Takes up to n slots, chained by next from *first. Returns how many. */
static unsigned take_slots(struct rv_conn *conn, unsigned n, uint32_t *first)
{
	uint64_t old = at_load_acq(&conn->free_reads);

	for (;;) {
		uint32_t i = head_of(old), next = i;
		unsigned got = 0;

		while (got < n && next != RVI_NIL) {
			next = at_load(&conn->reads[next].next);
			got++;
		}
		if (!got)
			return 0;
		if (at_cas_weak_ar(&conn->free_reads, &old, list_word(old, next))) {
			*first = i;
			return got;
		}
	}
}

/* Gives back the slot of a READ that is over: its next generation is even, and the slot free. */
static void give_slot(struct rv_conn *conn, uint32_t i)
{
	struct rvi_read *s = &conn->reads[i];
	uint64_t old = at_load(&conn->free_reads);

	rb_assert_with(i < conn->dev->max_reads && (at_load(&s->gen) & 1), "slot %u", i);
	at_store(&s->gen, at_load(&s->gen) + 1);
	do {
		at_store(&s->next, head_of(old));
	} while (!at_cas_weak_ar(&conn->free_reads, &old, list_word(old, i)));
}

static int check_chain(const struct rv_conn *conn, const struct rv_read *r)
{
	uint64_t total = 0;

	if (r->nr_sge > conn->dev->max_sge)
		return rv_fail(EINVAL, "a READ into %u pieces: %u are possible", r->nr_sge,
			       conn->dev->max_sge);
	for (uint32_t i = 0; i < r->nr_sge; i++)
		total += rv_read_sge(r, i)->length;
	/* rxe does not enforce its own limit; hardware does by ending the connection. */
	if (total > conn->dev->max_msg)
		return rv_fail(EMSGSIZE, "a READ of %llu bytes: the device's limit is %llu",
			       (unsigned long long)total, (unsigned long long)conn->dev->max_msg);
	return 0;
}

struct chain {
	struct ibv_send_wr wr[RVI_CHAIN_MAX];
	/* pieces of all requests, one after the other */
	struct ibv_sge sge[RVI_CHAIN_MAX * RV_READ_SGE];
	unsigned nr_sge;
};

/* Fills in the landing pieces. Returns the number of entries of `to` that this took. */
static int fill_pieces(const struct rv_read *r, struct ibv_sge *to)
{
	int n = 0;

	for (uint32_t p = 0; p < r->nr_sge; p++) {
		const struct rv_sge *from = rv_read_sge(r, p);

		/* Some devices take a piece of 0 bytes for 2 GiB. */
		if (!from->length)
			continue;
		to[n].addr = (uintptr_t)from->addr;
		to[n].length = from->length;
		to[n].lkey = from->lkey;
		n++;
	}
	return n;
}

/* Fills in the request in slot i. Every READ is signalled, so that each has a status of its own. */
static inline void fill_request(struct rv_conn *conn, uint32_t i, const struct rv_read *r,
			struct ibv_send_wr *wr, struct ibv_sge *to, int n)
{
	struct rvi_read *s = &conn->reads[i];
	uint32_t gen = at_load(&s->gen) + 1;

	rb_assert_with(i < conn->dev->max_reads && (gen & 1), "slot %u", i);
	rb_assert_is((uint32_t)n, <=, conn->dev->max_sge);
	/* Field by field: clearing all 128 bytes costs more than
	 * the rest, and a READ's post looks at no others. */
	wr->wr_id = rvi_token_pack(RVI_READ, rvi_index(conn->index, i), gen);
	wr->next = NULL;
	wr->sg_list = to;
	wr->num_sge = n;
	wr->opcode = IBV_WR_RDMA_READ;
	wr->send_flags = IBV_SEND_SIGNALED;
	wr->imm_data = 0;
	wr->wr.rdma.remote_addr = r->addr;
	wr->wr.rdma.rkey = r->rkey;
	at_store(&s->cookie, r->cookie);
	at_store_rel(&s->gen, gen);
}

/*
 * Gives back the slots of the requests from `bad` on; the device took the others. If `bad` is NULL,
 * everything is in the queue and only the doorbell failed (rxe). These READs count as posted, and
 * the next poll ends the connection, so that the fence reports them.
 */
static int post_failed(struct rv_conn *conn, unsigned got, const struct ibv_send_wr *bad, int err)
{
	int posted = (int)got;

	for (; bad; bad = bad->next) {
		rb_assert_is(rvi_token_unpack(bad->wr_id).kind, ==, RVI_READ);
		give_slot(conn, rvi_index_slot(rvi_token_unpack(bad->wr_id).index));
		posted--;
	}
	rb_assert_is(posted, >=, 0);
	if (posted == (int)got || (err != ENOMEM && err != EAGAIN)) {
		at_store(&conn->kicked, 1);
		at_store_rel(&conn->dev->attention, 1);
	}
	if (posted)
		return posted;
	if (err == ENOMEM || err == EAGAIN)
		return -EAGAIN;
	/* The request is in order (check_chain): it is the queue
	 * pair that takes nothing any more. */
	return rv_fail(ENOTCONN, "the device refused a READ: %s", strerror(err));
}

static __attribute__((noinline)) int post_chain(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	struct ibv_send_wr *bad = NULL;
	unsigned ok = 0, got, pieces = 0;
	struct chain c;
	uint32_t i;
	int rc = 0;

	n = min_of(n, RVI_CHAIN_MAX);
	/* A bad one ends the chain; the caller meets its error when it comes first. */
	while (ok < n && !(rc = check_chain(conn, &r[ok]))) {
		pieces += r[ok].nr_sge;
		if (pieces > array_size(c.sge))
			break; /* the rest is for another doorbell */
		ok++;
	}
	if (!ok)
		return rc;
	got = take_slots(conn, ok, &i);
	if (!got)
		return -EAGAIN;
	rb_assert_is(got, <=, ok);
	c.nr_sge = 0;
	for (unsigned k = 0; k < got; k++) {
		uint32_t next = at_load(&conn->reads[i].next);

		int filled = fill_pieces(&r[k], &c.sge[c.nr_sge]);

		fill_request(conn, i, &r[k], &c.wr[k], &c.sge[c.nr_sge], filled);
		c.nr_sge += (unsigned)filled;
		rb_assert_is(c.nr_sge, <=, array_size(c.sge));
		if (k)
			c.wr[k - 1].next = &c.wr[k];
		i = next;
	}
	rc = ibv_post_send(conn->qp, c.wr, &bad);
	return likely(!rc) ? (int)got : post_failed(conn, got, bad, rc);
}

/* Posts a chain of one, as nearly all posts are. Nearly all of these have one landing piece. */
static int post_one(struct rv_conn *conn, const struct rv_read *r)
{
	struct rv_dev *dev = conn->dev;
	struct ibv_sge sge[RV_READ_SGE_MAX];
	struct ibv_send_wr wr, *bad = NULL;
	uint64_t old = at_load_acq(&conn->free_reads);
	uint32_t i;
	int rc, n = 1;

	if (likely(r->nr_sge == 1 && r->sge[0].length - 1 < dev->max_msg)) {
		sge[0].addr = (uintptr_t)r->sge[0].addr;
		sge[0].length = r->sge[0].length;
		sge[0].lkey = r->sge[0].lkey;
	} else {
		rc = check_chain(conn, r);
		if (rc)
			return rc;
		n = fill_pieces(r, sge);
	}
	do {
		i = head_of(old);
		if (unlikely(i == RVI_NIL))
			return -EAGAIN;
	} while (unlikely(!at_cas_weak_ar(&conn->free_reads, &old,
					  list_word(old, at_load(&conn->reads[i].next)))));
	fill_request(conn, i, r, &wr, sge, n);
	rc = ibv_post_send(conn->qp, &wr, &bad);
	return likely(!rc) ? 1 : post_failed(conn, 1, bad, rc);
}

int rvi_post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	if (unlikely(at_load_acq(&conn->state) != RVI_UP))
		return rv_fail(ENOTCONN, "the connection is not up");
	return RB_FAST(n == 1) ? post_one(conn, r) : post_chain(conn, r, n);
}

/* Returns the connection of a token that is still under way, or NULL. */
static struct rv_conn *owner_of(struct rv_dev *dev, struct rvi_token t)
{
	uint32_t ci = rvi_index_conn(t.index), slot = rvi_index_slot(t.index);
	struct rv_conn *conn = ci < dev->nr_conns ? dev->conns[ci] : NULL;

	if (!conn || !conn->reads || slot >= dev->max_reads || !(t.gen & 1))
		return NULL;
	return at_load_acq(&conn->reads[slot].gen) == t.gen ? conn : NULL;
}

struct rv_conn *rvi_read_finished(struct rv_dev *dev, struct rvi_token t, uint64_t *cookie)
{
	struct rv_conn *conn = owner_of(dev, t);
	uint32_t slot = rvi_index_slot(t.index);

	if (unlikely(!conn))
		return NULL;
	*cookie = at_load(&conn->reads[slot].cookie);
	give_slot(conn, slot);
	return conn;
}

void rvi_read_done(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
		   struct rvi_sink *sink)
{
	uint64_t cookie;
	struct rv_conn *conn = rvi_read_finished(dev, t, &cookie);
	struct rv_event *e;

	if (unlikely(!conn))
		return;
	e = rvi_emit(sink, conn, RV_EV_READ, rvi_wc_errno(wc->status));
	e->cookie = cookie;
	if (likely(wc->status == IBV_WC_SUCCESS))
		return;
	e->wc_status = wc->status;
	rvi_conn_fail_wc(conn, wc->status);
}

bool rvi_reads_outstanding(const struct rv_conn *conn)
{
	for (uint32_t i = 0; conn->reads && i < conn->dev->max_reads; i++)
		if (at_load_acq(&conn->reads[i].gen) & 1)
			return true;
	return false;
}

/* Reports the READs that the fence cut off. Returns true when
 * all are reported, false when the sink is full. */
bool rvi_reads_report(struct rv_conn *conn, struct rvi_sink *sink)
{
	for (; conn->report_slot < conn->dev->max_reads; conn->report_slot++) {
		struct rvi_read *s = &conn->reads[conn->report_slot];

		if (!(at_load_acq(&s->gen) & 1))
			continue;
		if (sink->n >= sink->max)
			return false;
		rvi_emit(sink, conn, RV_EV_READ, -ECONNRESET)->cookie = at_load(&s->cookie);
		give_slot(conn, conn->report_slot);
	}
	return true;
}
