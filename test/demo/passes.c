/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways of reading. Each brings the whole file here and hashes the arrived bytes, in order. The
 * launcher compares the digest with the file's. Only the reads are timed, not the hashing.
 */
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "worker.h"

#define WINDOW 32u                   /* chunks in flight in the async and batch ways */
#define SMALL_READS_MAX 10000u
#define SMALL_WARM_UP 16u
#define SMALL_TIME (1 * DEMO_SEC)    /* slow reads: fewer of them */
#define TWICE_BELOW (1 * DEMO_SEC)
#define TELL_EVERY (50 * DEMO_MSEC)

struct pass {
	struct demo_worker *w;
	crypto_hash_sha256_state sha;
	uint64_t bytes;
	int64_t read_ns;
	int64_t told;                 /* time of the last progress; INT64_MAX = never */
};

/* Consumes a view that arrived. */
static void arrived(struct pass *p, uint32_t i, struct rref_view *v)
{
	const unsigned char *data = rref_view_data(v);
	uint64_t length = rref_view_length(v), want = demo_ref_bytes(p->w->file_bytes, i);

	if (length != want)
		demo_give_up(p->w, "reference %u: %llu bytes arrived, not %llu", i,
			     (unsigned long long)length, (unsigned long long)want);
	for (uint64_t at = 0, n; at < length; at += n) {
		n = length - at < DEMO_CHUNK_BYTES ? length - at : DEMO_CHUNK_BYTES;
		crypto_hash_sha256_update(&p->sha, data + at, n);
		p->bytes += n;
		if (p->told != INT64_MAX && demo_now() - p->told > TELL_EVERY) {
			p->told = demo_now();
			demo_tell_progress(p->w, p->bytes);
		}
	}
	rref_view_free(v);
}

static void one_by_one(struct pass *p, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		struct rref_view *v;
		int64_t t = demo_now();

		demo_ok(p->w, rref_to_here(p->w->refs[i], RREF_DEFAULT, &v), "rref_to_here", i);
		p->read_ns += demo_now() - t;
		arrived(p, i, v);
	}
}

static void by_futures(struct pass *p, uint32_t from, uint32_t nr)
{
	struct rref_future *f[WINDOW];
	int64_t t = demo_now();

	for (uint32_t i = 0; i < nr; i++)
		demo_ok(p->w, rref_to_here_async(p->w->refs[from + i], RREF_DEFAULT, &f[i]),
			"rref_to_here_async", from + i);
	demo_ok(p->w, rref_wait_all(f, nr, RREF_DEFAULT), "rref_wait_all", from);
	p->read_ns += demo_now() - t;
	for (uint32_t i = 0; i < nr; i++) {
		struct rref_error e = { .size = sizeof(e) };
		struct rref_view *v;

		demo_ok(p->w, rref_future_error(f[i], &e), "rref_future_error", from + i);
		if (e.err)
			demo_give_up(p->w, "reference %u, by future: %s: %s", from + i,
				     rref_strerror(e.err), e.text);
		demo_ok(p->w, rref_future_view(f[i], &v), "rref_future_view", from + i);
		rref_future_free(f[i]);
		arrived(p, from + i, v);
	}
}

static void by_batch(struct pass *p, uint32_t from, uint32_t nr)
{
	struct rref_view *v[WINDOW];
	int status[WINDOW];
	int64_t t = demo_now();
	int good = demo_ok(p->w, rref_to_here_batch(p->w->refs + from, nr, RREF_DEFAULT, v, status),
			   "rref_to_here_batch", from);

	p->read_ns += demo_now() - t;
	for (uint32_t i = 0; i < nr; i++) {
		if (status[i])
			demo_give_up(p->w, "reference %u, in a batch: %s", from + i,
				     rref_strerror(status[i]));
		arrived(p, from + i, v[i]);
	}
	if ((uint32_t)good != nr)
		demo_give_up(p->w, "a batch of %u says that %d succeeded", nr, good);
}

static void one_pass(struct demo_worker *w, enum demo_way way, int64_t told, struct demo_report *r)
{
	struct pass p = { .w = w, .told = told };
	uint32_t nr_chunks = demo_nr_chunks(w->file_bytes);

	crypto_hash_sha256_init(&p.sha);
	if (way == DEMO_SYNC) {
		one_by_one(&p, 0, nr_chunks);
	} else if (way == DEMO_WHOLE) {
		one_by_one(&p, nr_chunks, nr_chunks + 1);
	} else {
		for (uint32_t i = 0; i < nr_chunks; i += WINDOW)
			(way == DEMO_ASYNC ? by_futures : by_batch)(&p, i,
								    nr_chunks - i < WINDOW
									    ? nr_chunks - i
									    : WINDOW);
	}
	crypto_hash_sha256_final(&p.sha, r->sha);
	r->bytes = p.bytes;
	r->read_ns = p.read_ns;
}

void demo_read(struct demo_worker *w, enum demo_way way, struct demo_report *r)
{
	struct demo_report again;

	demo_held(w);
	one_pass(w, way, demo_now(), r);
	if (r->read_ns > TWICE_BELOW)
		return;
	/* The first touch of landing memory costs more than such a read. So the second time tells
	 * the cost of reading. */
	one_pass(w, way, INT64_MAX, &again);
	if (memcmp(again.sha, r->sha, sizeof(r->sha)) != 0)
		demo_give_up(w, "the second reading brought other bytes than the first");
	r->read_ns = again.read_ns < r->read_ns ? again.read_ns : r->read_ns;
}

static int by_time(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

void demo_small(struct demo_worker *w, struct demo_report *r)
{
	struct rref **refs = demo_held(w);
	uint32_t which = demo_nr_chunks(w->file_bytes) + 1, n = 0;
	int64_t *ns = calloc(SMALL_READS_MAX, sizeof(*ns)), end = 0;

	if (!ns)
		demo_give_up(w, "no memory for %u samples", SMALL_READS_MAX);
	for (uint32_t i = 0; i < SMALL_WARM_UP + SMALL_READS_MAX; i++) {
		unsigned char bytes[DEMO_SMALL_BYTES];
		struct rref_view *v;
		int64_t t = demo_now();
		bool good;

		if (i == SMALL_WARM_UP)
			end = t + SMALL_TIME;
		if (end && t > end && n)
			break;
		demo_ok(w, rref_to_here(refs[which], RREF_DEFAULT, &v),
			"rref_to_here of the small value", which);
		good = rref_view_length(v) == sizeof(bytes);
		if (good)
			memcpy(bytes, rref_view_data(v), sizeof(bytes));
		rref_view_free(v);
		if (i >= SMALL_WARM_UP)
			ns[n++] = demo_now() - t;
		if (!good || (i && memcmp(bytes, r->small, sizeof(bytes)) != 0))
			demo_give_up(w, "small read %u brought other bytes than the one before", i);
		memcpy(r->small, bytes, sizeof(bytes));
	}
	qsort(ns, n, sizeof(*ns), by_time);
	r->nr_reads = n;
	r->p50_ns = ns[n / 2];
	r->p99_ns = ns[(uint64_t)n * 99 / 100];
	free(ns);
}
