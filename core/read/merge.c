/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads over a device that reports by events (ibv): a READ is under way when it is posted. Reads of
 * one message each are here, larger ones in split.c. Reads of one owner share a doorbell.
 *
 * Runs: small values that lie side by side at one owner are brought by one READ. Each value and its
 * header go into the landing place that a READ of its own would use. A device's READs per second
 * are limited more than its bytes. So a batch costs it a fraction.
 *
 * Side by side means that only the padding to a cache line lies between two values. The padding
 * belongs to the value before it, so no byte is read that belongs to neither. It lands behind its
 * value, where the block has room for it.
 *
 * Each operation keeps its own header, check and result. The READ has one status, though. A refusal
 * does not say which value it is for, so each of them is read again alone.
 */
#include <errno.h>

#include "base/fast.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/value/reader.h"

/* the largest run: beyond it a READ takes long, and values would only wait for one another */
#define RUN_BYTES (UINT64_C(16) << 10)

/* Reads of one message each, as few READs: r[i] brings f[first[i]] to before f[first[i + 1]]. */
struct merge {
	unsigned nr, first[RC_BATCH_MAX + 1];
	struct rv_read r[RC_BATCH_MAX];
	/* an extra entry: `more` of the last may point behind its own */
	struct rv_sge sge[(RC_BATCH_MAX + 1) * RV_READ_SGE];
};

static uint64_t to_line(uint64_t n)
{
	return (n + CACHE_LINE - 1) & ~(uint64_t)(CACHE_LINE - 1);
}

static bool before(const struct rref_future *a, const struct rref_future *b, enum rv_kind kind)
{
	return a->loc.rkey[kind] != b->loc.rkey[kind] ? a->loc.rkey[kind] < b->loc.rkey[kind]
						      : a->loc.addr < b->loc.addr;
}

/*
 * Sorts by insertion, after a reversal if need be. There are few reads, mostly in order or in the
 * reverse of it.
 */
static void sort(struct rref_future **f, unsigned n, enum rv_kind kind)
{
	if (before(f[n - 1], f[0], kind))
		for (unsigned i = 0, k = n - 1; i < k; i++, k--) {
			struct rref_future *t = f[i];

			f[i] = f[k];
			f[k] = t;
		}
	for (unsigned i = 1; i < n; i++) {
		struct rref_future *t = f[i];
		unsigned k = i;

		for (; k && before(t, f[k - 1], kind); k--)
			f[k] = f[k - 1];
		f[k] = t;
	}
}

/* Returns whether b can follow a in one READ. Both are reads of one message each. */
static bool joins(const struct rref_future *a, const struct rref_future *b, enum rv_kind kind)
{
	return RB_FAST(!a->alone) && !b->alone && a->loc.rkey[kind] == b->loc.rkey[kind] &&
	       a->whole && b->whole &&
	       b->loc.addr - a->loc.addr == RC_HEADER_BYTES + to_line(a->length) &&
	       a->landing->block - sizeof(struct rc_landing) >= to_line(a->length);
}

/*
 * Orders f[0..n), and sets each up as an operation that is at a device. Each f is prepared and of
 * p; n is at most RC_BATCH_MAX.
 */
static void merge_build(const struct rc_peer *p, struct rref_future **f, unsigned n,
			struct merge *runs)
{
	enum rv_kind kind = p->kind;
	struct rv_sge *piece = runs->sge;
	struct rv_read *r = NULL;
	uint64_t bytes = 0;

	runs->nr = 0;
	if (n > 1)
		sort(f, n, kind);
	for (unsigned i = 0; i < n; i++) {
		uint64_t more = RC_HEADER_BYTES + f[i]->length;

		if (i && joins(f[i - 1], f[i], kind) && r->nr_sge < p->max_sge &&
		    to_line(bytes) + more <= min_of(RUN_BYTES, p->max_msg)) {
			piece[-1].length = (uint32_t)to_line(piece[-1].length);
			bytes = to_line(bytes);
			f[i - 1]->merged_next = f[i];
		} else {
			runs->first[runs->nr] = i;
			r = &runs->r[runs->nr++];
			r->cookie = rc_op_token(f[i]);
			r->addr = f[i]->loc.addr;
			r->rkey = f[i]->loc.rkey[kind];
			r->nr_sge = 0;
			r->more = piece + RV_READ_SGE;
			bytes = 0;
		}
		*piece++ = rc_landing_piece(f[i]->landing, f[i]->length, kind);
		r->nr_sge++;
		bytes += more;
		f[i]->header_asked = true;
		f[i]->next = f[i]->length;
		at_store(&f[i]->outstanding, 1);
		at_store_rel(&f[i]->posted, true);
	}
	runs->first[runs->nr] = n;
	/* Set last, when the lengths are final. */
	for (unsigned i = 0; i < runs->nr; i++) {
		const struct rv_sge *s = runs->r[i].more - RV_READ_SGE;

		for (unsigned k = 0; k < min_of(runs->r[i].nr_sge, (uint32_t)RV_READ_SGE); k++)
			runs->r[i].sge[k] = s[k];
	}
}

bool rc_read_is_single(const struct rref_future *f, uint64_t max_msg)
{
	return f->offset == 0 && f->length + RC_HEADER_BYTES <= max_msg && !rp_is_wrapped(&f->loc);
}

/* Returns as rc_read_is_single, before rc_read_prepare has cut the range to the value. */
static bool is_single_for(const struct rref_future *f, uint64_t max_msg)
{
	return f->offset == 0 && f->loc.length <= RC_VALUE_MAX && !rp_is_wrapped(&f->loc) &&
	       rc_extent(f->loc.length, f->loc.nr_segments) + RC_HEADER_BYTES <= max_msg;
}

/*
 * Takes back a read that was not posted. Returns how it goes on. posted: the result of post_reads.
 */
static enum rc_read_begun take_back(struct rref_future *f, int posted)
{
	f->header_asked = false;
	f->next = 0;
	f->plain = false;
	at_store(&f->outstanding, 0);
	f->merged_next = NULL;
	if (!rc_read_hard_failure(posted))
		return RC_READ_WAITS;
	rc_read_note(f, posted, -1);
	return RC_READ_OVER;
}

void rc_read_not_posted(struct rref_future *f, struct rc_peer *p, int posted)
{
	enum rc_read_begun begun;

	at_store(&f->posted, false);
	begun = take_back(f, posted);
	if (begun == RC_READ_OVER)
		rc_read_done(f);
	else
		rc_read_go_soon(f, p, begun);
}

/*
 * Posts reads of one message each, all of one owner, with one doorbell. Returns how many were
 * posted, and in *result the result of post_reads. From the doorbell on, other threads handle the
 * completions. Only f[returned..n) still belong to this thread.
 */
static unsigned post_merged(struct rc_peer *p, struct rv_conn *conn, struct rref_future **f,
			    unsigned n, int *result)
{
	struct rref_ctx *ctx = f[0]->ctx;
	struct merge m;
	unsigned posted;

	merge_build(p, f, n, &m);
	rc_count_in_flight(ctx, (int)m.nr);
	*result = p->ops->post_reads(conn, m.r, m.nr);
	posted = (unsigned)max_of(*result, 0);
	rc_count_in_flight(ctx, (int)posted - (int)m.nr);
	rc_read_count_posted(ctx, *result);
	if (m.first[posted] > posted)
		at_add(&ctx->n.reads_joined, m.first[posted] - posted);
	return m.first[posted];
}

/* Returns whether reads of p may be posted over conn, which is pinned. */
static inline bool may_post(const struct rc_peer *p, const struct rv_conn *conn)
{
	return conn && at_load(&p->nr_waiting) == 0;
}

/* Pins p's connection for post_merged. Returns as that. The lock need not be held. */
static unsigned post_pinned(struct rc_peer *p, struct rref_future **f, unsigned n, int *result)
{
	struct rc_reader *r = rc_reader_get(f[0]->ctx);
	/* The fence goes on behind the pin, so nothing is waited for within. */
	struct rv_conn *conn = rc_read_pin(r, p);
	unsigned posted = 0;

	*result = -ENOTCONN;
	for (unsigned i = 0; conn && i < n; i++)
		if (unlikely(rc_read_outlived(f[i])))
			conn = NULL; /* each read finds out in rc_read_wait */
	if (may_post(p, conn))
		posted = post_merged(p, conn, f, n, result);
	rc_read_unpin(r, p);
	return posted;
}

/* Posts a read of one message, under the pin. Returns as post_reads. */
static int post_single(struct rc_peer *p, struct rv_conn *conn, struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;
	struct rv_read r;
	int posted;

	r.cookie = rc_op_token(f);
	r.addr = f->loc.addr;
	r.rkey = f->loc.rkey[p->kind];
	r.nr_sge = 1;
	r.sge[0] = rc_landing_piece(f->landing, f->length, p->kind);
	f->header_asked = true;
	f->next = f->length;
	at_store(&f->outstanding, 1);
	at_store_rel(&f->posted, true);
	rb_assert(f->landing && rc_read_is_single(f, p->max_msg));
	rc_count_in_flight(ctx, 1);
	posted = p->ops->post_reads(conn, &r, 1);
	if (unlikely(posted != 1))
		rc_count_in_flight(ctx, -1);
	rc_read_count_posted(ctx, posted);
	return posted;
}

static enum rc_read_begun posted_begin(struct rref_future *f, struct rc_peer *p)
{
	struct rc_reader *r;
	struct rv_conn *conn;
	int posted = -ENOTCONN;

	if (!rc_read_is_single(f, p->max_msg))
		return rc_split_begin(f, p, false);
	r = rc_reader_get(f->ctx);
	conn = rc_read_pin(r, p);
	if (likely(may_post(p, conn) && !rc_read_outlived(f)))
		posted = post_single(p, conn, f);
	rc_read_unpin(r, p);
	return likely(posted == 1) ? RC_READ_UNDER_WAY : take_back(f, posted);
}

void rc_read_start_many(struct rc_peer *p, struct rref_future **f, unsigned n)
{
	struct rref_future *single[RC_BATCH_MAX];
	unsigned nr = 0, posted;
	int result;

	for (unsigned i = 0; i < n; i++) {
		if (!is_single_for(f[i], p->max_msg))
			rc_read_start(f[i]);
		else if (!rc_read_prepare(f[i]))
			rc_read_done(f[i]);
		else
			single[nr++] = f[i];
	}
	if (!nr)
		return;
	posted = post_pinned(p, single, nr, &result);
	for (; unlikely(posted < nr); posted++)
		rc_read_go_soon(single[posted], p, take_back(single[posted], result));
}

/*
 * Posts the reads of one message each at the head of the queue, with one doorbell. Returns false if
 * some of them found no slot.
 */
static needs_lock bool resume_singles(struct rc_peer *p, struct rv_conn *conn)
{
	struct rref_future *f[RC_BATCH_MAX];
	unsigned n = 0, posted;
	int result;

	while (n < RC_BATCH_MAX && !list_empty(&p->waiting)) {
		f[n] = container_of(p->waiting.next, struct rref_future, node);
		if (!rc_read_is_single(f[n], p->max_msg) || !rc_op_wanted(f[n]))
			break;
		rc_read_wait_over(f[n++], p);
	}
	posted = post_merged(p, conn, f, n, &result);
	for (unsigned i = n; i-- > posted;)
		if (take_back(f[i], result) == RC_READ_OVER)
			rc_read_done_locked(f[i]);
		else
			rc_read_wait_first(f[i], p);
	return posted == n || rc_read_hard_failure(result);
}

static needs_lock bool
posted_resume(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	if (rc_read_is_single(f, p->max_msg))
		return resume_singles(p, conn);
	rc_read_wait_over(f, p);
	if (rc_split_start(f, p, conn))
		return true;
	rc_read_wait_first(f, p);
	return false;
}

static needs_lock void posted_turn(struct rref_future *f, struct rc_peer *p)
{
	rc_read_go(f, p, posted_begin(f, p));
}

const struct rc_read_strategy rc_read_posted = { posted_begin, posted_resume, posted_turn };
