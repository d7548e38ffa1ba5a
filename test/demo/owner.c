/* SPDX-License-Identifier: Apache-2.0 */
/* The owner: a file becomes values in registered memory, and a
 * function gives out references to them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker.h"

/* Reads the file straight into registered memory. Later only the
 * readers' devices copy these bytes. */
static void fill(struct demo_worker *w, void *to, uint64_t length, uint64_t offset)
{
	const uint64_t piece_max = 8 * DEMO_CHUNK_BYTES;

	while (length) {
		ssize_t n = pread(w->job->file, to,
				  (size_t)(length < piece_max ? length : piece_max), (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			demo_give_up(w, "%s: %s", w->job->path, strerror(errno));
		if (n == 0)
			demo_give_up(w, "%s became shorter meanwhile", w->job->path);
		to = (char *)to + n;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
}

void demo_publish(struct demo_worker *w, struct demo_report *r)
{
	uint64_t file_bytes = w->job->file_bytes;
	uint32_t nr_chunks = demo_nr_chunks(file_bytes), nr_refs = demo_nr_refs(file_bytes);
	struct rref **refs = calloc(nr_refs, sizeof(struct rref *));

	if (!refs)
		demo_give_up(w, "no memory for %u references", nr_refs);
	for (uint32_t i = 0; i < nr_refs; i++) {
		uint64_t length = demo_ref_bytes(file_bytes, i);
		void *data;

		demo_ok(w, rref_alloc(w->ctx, (size_t)length, &refs[i], &data), "rref_alloc", i);
		if (i < nr_chunks)
			fill(w, data, length, i * DEMO_CHUNK_BYTES);
		else if (i == nr_chunks)
			fill(w, data, length, 0);
		else
			memcpy(data, w->job->sha, DEMO_SMALL_BYTES);
		demo_ok(w, rref_set(refs[i]), "rref_set", i);
		r->bytes += length;
		if (i % 8 == 7)
			demo_tell_progress(w, r->bytes);
	}
	r->nr_refs = nr_refs;
	pthread_mutex_lock(&w->lock);
	w->file_bytes = file_bytes;
	w->refs = refs;
	w->nr_refs = w->nr_held = nr_refs;
	pthread_mutex_unlock(&w->lock);
}

/* Serves "get" {from}: up to RREF_REFS_MAX references, from that one on. */
int demo_serve_get(struct rref_call *call, void *worker)
{
	struct demo_worker *w = worker;
	struct demo_listing listing = { 0 };
	struct rref_args reply = { .data = &listing, .length = sizeof(listing) };
	struct rref *held[RREF_REFS_MAX];
	int err;

	if (rref_call_length(call) != sizeof(listing.from))
		return rref_call_error(call, -EINVAL, "get: %zu bytes of arguments, not 4",
				       rref_call_length(call));
	memcpy(&listing.from, rref_call_data(call), sizeof(listing.from));
	pthread_mutex_lock(&w->lock);
	listing.file_bytes = w->file_bytes;
	for (uint32_t i = listing.from; i < w->nr_held && reply.nr_refs < RREF_REFS_MAX; i++)
		held[reply.nr_refs++] = rref_dup(w->refs[i]);
	pthread_mutex_unlock(&w->lock);
	if (reply.nr_refs == 0)
		return rref_call_error(call, -ENOENT, "get: there is no reference %u",
				       listing.from);
	reply.refs = held;
	err = rref_call_reply(call, &reply);
	for (size_t i = 0; i < reply.nr_refs; i++)
		rref_release(held[i]);
	return err;
}
