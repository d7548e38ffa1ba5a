/* SPDX-License-Identifier: Apache-2.0 */
/*
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
#include "base/fast.h"
#include "core/ctx.h"
#include "core/read/internal.h"

/* the largest run: beyond it a READ takes long, and values would only wait for one another */
#define RUN_BYTES (UINT64_C(16) << 10)

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

void rc_merge_build(const struct rc_peer *p, struct rref_future **f, unsigned n,
		    struct rc_merge *runs)
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
		f[i]->outstanding = 1;
	}
	runs->first[runs->nr] = n;
	/* Set last, when the lengths are final. */
	for (unsigned i = 0; i < runs->nr; i++) {
		const struct rv_sge *s = runs->r[i].more - RV_READ_SGE;

		for (unsigned k = 0; k < min_of(runs->r[i].nr_sge, (uint32_t)RV_READ_SGE); k++)
			runs->r[i].sge[k] = s[k];
	}
}

void rc_merge_undo(struct rref_future *f)
{
	f->header_asked = false;
	f->next = 0;
	f->outstanding = 0;
	f->merged_next = NULL;
}
