/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READs: the hot path. Posting is [any] and lock-free on our side. (The driver takes its own lock
 * or makes a system call: not ours to avoid.)
 *
 * The requests live on the poster's stack, not in the slots. A driver may show a request to the
 * device before it has read where the next one is (rxe does). So another thread may take a finished
 * slot while the first poster's call still walks its chain.
 *
 * A slot is taken by one compare-and-swap on its generation. Another one gives it back, and ends
 * the READ (ledger.h). No list of free slots exists, so threads share no word of it. A thread looks
 * from the place on that its cookie leads to. It mostly finds the first slot free, and the next
 * READ with such a cookie takes the same one.
 *
 * The step to free ends the READ. Any thread may make it that found the completion. So may the
 * fence's report, and a poster whose post failed. That makes "reported exactly once" true.
 */
#include <stdlib.h>

#include "base/fast.h"
#include "ibv.h"
#include "ledger.h"
#include "status.h"

int rvi_reads_init(struct rv_conn *conn)
{
	uint32_t n = conn->dev->max_reads;
	struct rvi_read *reads;

	if (at_load(&conn->reads))
		return 0;
	reads = calloc(n, sizeof(*reads));
	if (!reads)
		return rv_fail(ENOMEM, "no memory for %u reads", n);
	/* the upper half of a token */
	for (uint32_t i = 0; i < n; i++) {
		uint32_t index = rvi_index(conn->index, i);

		reads[i].name = (uint32_t)(rvi_token_pack(RVI_READ, index, 0) >> 32);
	}
	at_store_rel(&conn->reads, reads);
	return 0;
}

static inline struct rvi_read *slot_at(const struct rv_conn *conn, uint32_t i)
{
	return &at_load(&conn->reads)[i];
}

/* Returns the slot from which a READ of that cookie looks for a free one. */
static inline uint32_t slot_for(const struct rv_dev *dev, uint64_t cookie)
{
	/* Spreads cookies that are near each other, so that no two threads write one line. */
	uint32_t spread = (uint32_t)cookie * UINT32_C(0x9e3779b1);

	return (uint32_t)((uint64_t)spread * dev->max_reads >> 32);
}

/* Takes slot i. Returns false if it is not free. */
static inline bool take_this(struct rv_conn *conn, uint32_t i)
{
	/* sc. Pairs with rvi_end_slot. A read without a slot says that it waits, and looks
	 * again. */
	uint32_t gen = at_load_sc(&slot_at(conn, i)->gen);

	rb_assert_with(i < conn->dev->max_reads, "slot %u", i);
	return likely(!(gen & RVI_READ_BUSY)) &&
	       likely(at_cas_ar(&slot_at(conn, i)->gen, &gen, gen + RVI_READ_TAKEN));
}

/* Takes the first free slot behind slot i. Returns its number, or RVI_NIL. */
static __attribute__((noinline)) uint32_t take_next(struct rv_conn *conn, uint32_t i)
{
	uint32_t max = conn->dev->max_reads;

	for (uint32_t looks = 0; looks < max; looks++) {
		i = i + 1 < max ? i + 1 : 0;
		if (take_this(conn, i))
			return i;
	}
	return RVI_NIL;
}

/* Takes a slot for a READ of that cookie. Returns its number, or RVI_NIL. */
static inline uint32_t take_read_slot(struct rv_conn *conn, uint64_t cookie)
{
	uint32_t i = slot_for(conn->dev, cookie);

	return take_this(conn, i) ? i : take_next(conn, i);
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
	struct rvi_read *s = slot_at(conn, i);
	uint32_t gen = at_load(&s->gen) + 1; /* TAKEN to POSTED */

	rb_assert_with(i < conn->dev->max_reads && (gen & 1), "slot %u", i);
	rb_assert_is((uint32_t)n, <=, conn->dev->max_sge);
	/* Field by field: clearing all 128 bytes costs more than
	 * the rest, and a READ's post looks at no others. */
	wr->wr_id = (uint64_t)s->name << 32 | gen;
	wr->next = NULL;
	wr->sg_list = to;
	wr->num_sge = n;
	wr->opcode = IBV_WR_RDMA_READ;
	wr->send_flags = IBV_SEND_SIGNALED;
	wr->wr.rdma.remote_addr = r->addr;
	wr->wr.rdma.rkey = r->rkey;
	at_store(&s->cookie, r->cookie);
	at_store_rel(&s->gen, gen);
}

/*
 * Gives back the slots of the requests from `bad` on; the device took the others. If `bad` is NULL,
 * everything is in the queue and only the doorbell failed (rxe). These READs count as posted. The
 * next poll ends the queue pair for READs, and reports them. The others can go over the next one.
 */
static int post_failed(struct rv_conn *conn, unsigned got, const struct ibv_send_wr *bad, int err)
{
	int posted = (int)got;

	for (; bad; bad = bad->next) {
		struct rvi_token t = rvi_token_unpack(bad->wr_id);
		uint32_t slot = rvi_index_slot(t.index);

		rb_assert_is(t.kind, ==, RVI_READ);
		rvi_end_slot(slot_at(conn, slot), t.gen);
		posted--;
	}
	rb_assert_is(posted, >=, 0);
	err = abs(err); /* erdma and cxgb4 return -errno */
	if (posted == (int)got || (err != ENOMEM && err != EAGAIN)) {
		/* The requests are in order (check_chain): the queue pair takes nothing any
		 * more. */
		at_store(&conn->kicked, 1);
		at_store_rel(&conn->dev->attention, 1);
		rvi_news(conn->dev);
	}
	return posted ? posted : -EAGAIN;
}

static __attribute__((noinline)) int post_chain(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	struct ibv_send_wr *bad = NULL;
	unsigned ok = 0, got, pieces = 0;
	struct chain c;
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
	c.nr_sge = 0;
	for (got = 0; got < ok; got++) {
		uint32_t i = take_read_slot(conn, r[got].cookie);
		int filled;

		if (i == RVI_NIL)
			break;
		filled = fill_pieces(&r[got], &c.sge[c.nr_sge]);
		fill_request(conn, i, &r[got], &c.wr[got], &c.sge[c.nr_sge], filled);
		c.nr_sge += (unsigned)filled;
		rb_assert_is(c.nr_sge, <=, array_size(c.sge));
		if (got)
			c.wr[got - 1].next = &c.wr[got];
	}
	if (!got)
		return -EAGAIN;
	rc = ibv_post_send(conn->reads_qp, c.wr, &bad);
	return likely(!rc) ? (int)got : post_failed(conn, got, bad, rc);
}

/* Posts a READ whose landing pieces are n entries of sge. */
static inline __attribute__((always_inline)) int
post_pieces(struct rv_conn *conn, const struct rv_read *r, struct ibv_sge *sge, int n)
{
	uint32_t i = take_read_slot(conn, r->cookie);
	struct ibv_send_wr wr, *bad = NULL;
	int rc;

	if (unlikely(i == RVI_NIL))
		return -EAGAIN;
	fill_request(conn, i, r, &wr, sge, n);
	rc = ibv_post_send(conn->reads_qp, &wr, &bad);
	return likely(!rc) ? 1 : post_failed(conn, 1, bad, rc);
}

/* Posts one READ with any pieces. */
static __attribute__((noinline)) int post_one(struct rv_conn *conn, const struct rv_read *r)
{
	struct ibv_sge sge[RV_READ_SGE_MAX];
	int rc = check_chain(conn, r);

	return rc ? rc : post_pieces(conn, r, sge, fill_pieces(r, sge));
}

int rvi_post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	struct ibv_sge sge;

	/* Acquire. Pairs with open_pair. The queue pair stays, as the connection does (rv.h). */
	if (unlikely(!at_load_acq(&conn->reads_open))) {
		if (rvi_state(conn) == RVI_UP)
			return -EAGAIN; /* READS_UP follows */
		return rv_fail(ENOTCONN, "the connection is not up");
	}
	if (unlikely(!RB_FAST(n == 1)))
		return post_chain(conn, r, n);
	/* Nearly all posts are of one READ with one landing piece. */
	if (unlikely(r->nr_sge != 1 || r->sge[0].length - 1 >= conn->dev->max_msg))
		return post_one(conn, r);
	sge.addr = (uintptr_t)r->sge[0].addr;
	sge.length = r->sge[0].length;
	sge.lkey = r->sge[0].lkey;
	return post_pieces(conn, r, &sge, 1);
}

/* Reports a READ that failed, or that made way for others (rvi_sent_drain). */
void rvi_read_done(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
		   struct rvi_sink *sink)
{
	struct rv_read_end end;
	struct rv_conn *conn = rvi_end_read(dev, t, &end);
	struct rv_event *e;

	if (unlikely(!conn))
		return;
	/* The fence reports no other cause than itself. */
	bool closed = rvi_state(conn) == RVI_CLOSED;

	e = rvi_emit(sink, conn, RV_EV_READ, closed ? -ECONNRESET : rvi_wc_errno(wc->status));
	e->cookie = end.cookie;
	if (closed || wc->status == IBV_WC_SUCCESS)
		return;
	e->wc_status = wc->status;
	rvi_pair_failed(conn, wc->status, sink);
}

bool rvi_reads_outstanding(const struct rv_conn *conn, uint32_t *ended)
{
	bool some = false;

	*ended = 0;
	for (uint32_t i = 0; at_load(&conn->reads) && i < conn->dev->max_reads; i++) {
		uint32_t gen = at_load_acq(&slot_at(conn, i)->gen);

		some |= gen & RVI_READ_POSTED;
		*ended += gen / (RVI_READ_BUSY + 1);
	}
	return some;
}

/* Reports the READs that the fence cut off. Returns true when
 * all are reported, false when the sink is full. */
bool rvi_reads_report(struct rv_conn *conn, struct rvi_sink *sink)
{
	for (; conn->report_slot < conn->dev->max_reads; conn->report_slot++) {
		struct rvi_read *s = slot_at(conn, conn->report_slot);
		uint32_t gen = at_load_acq(&s->gen);
		uint64_t cookie = at_load(&s->cookie);

		if (!(gen & RVI_READ_POSTED))
			continue;
		if (sink->n >= sink->max)
			return false;
		/* Other threads may still find completions from before the fence. */
		if (!rvi_end_slot(s, gen))
			continue;
		rvi_emit(sink, conn, RV_EV_READ, -ECONNRESET)->cookie = cookie;
	}
	return true;
}
