/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batches of reads: into views, or into the program's own memory. All are started before any is
 * waited for. So the reads of one owner share doorbells, and READs where values lie side by side
 * (merge.c). When the operations do not suffice, the first reads are finished meanwhile.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/scope.h"
#include "core/op/kind.h"
#include "core/read/internal.h"
#include "core/read/read.h"

struct batch {
	struct rref_ctx *ctx;
	const char *what;            /* the public function */
	int64_t deadline;
	size_t nr, done;             /* reads before done have ended */
	struct rref_into *into;      /* the program's memory; NULL: views */
	struct rref *const *refs;    /* a batch of views has these three */
	struct rref_view **views;
	int *status;
	/* The rest is NULL as long as no read has needed an operation. f: each read's; NULL when it
	 * has none (any more). next[i]: chain of i's owner; head[rank]: its first, UINT32_MAX =
	 * none */
	struct rref_future **f;
	uint32_t *next, *head;
};

static struct rref *ref_of(const struct batch *b, size_t i)
{
	return b->into ? b->into[i].ref : b->refs[i];
}

/* Ends read i. v is its view if err is 0. */
static void end_read(struct batch *b, size_t i, int err, struct rref_view *v)
{
	struct rref_into *into = b->into ? &b->into[i] : NULL;

	if (!into) {
		b->status[i] = err;
		b->views[i] = err ? NULL : v;
		return;
	}
	into->status = err;
	into->got = err ? 0 : rc_read_copy(v, into->buf, into->offset, into->length);
}

static int batch_status_of(const struct batch *b, size_t i)
{
	return b->into ? b->into[i].status : b->status[i];
}

/* Waits for the operation of read i. */
static void finish_read(struct batch *b, size_t i)
{
	struct rref_view *v = NULL;
	int err = rc_read_finish(b->f[i], b->deadline, 0, &v);

	b->f[i] = NULL;
	end_read(b, i, err, v);
}

/* Starts the gathered reads: one doorbell per owner and RC_BATCH_MAX. */
static void post_gathered(struct batch *b)
{
	for (uint32_t rank = 0; rank < b->ctx->world; rank++) {
		struct rref_future *group[RC_BATCH_MAX];
		unsigned n = 0;

		for (uint32_t i = b->head[rank]; i != UINT32_MAX; i = b->next[i]) {
			group[n++] = b->f[i];
			if (n == RC_BATCH_MAX || b->next[i] == UINT32_MAX) {
				rc_read_start_many(&b->ctx->peers[rank], group, n);
				n = 0;
			}
		}
		b->head[rank] = UINT32_MAX;
	}
}

/* Tells whether read i wants all bytes of a value of that length. */
static bool wants_all(const struct batch *b, size_t i, uint64_t length)
{
	return !b->into || (b->into[i].offset == 0 && b->into[i].length >= length);
}

/* Gathers read i, which has an operation, or starts it if it shares no doorbell. */
static void gather_read(struct batch *b, uint32_t i)
{
	struct rref_future *f = b->f[i];
	struct rref *ref = ref_of(b, i);

	f->offset = b->into ? b->into[i].offset : 0;
	f->length = b->into ? min_of(b->into[i].length, SIZE_MAX - 1) : SIZE_MAX;
	f->whole = !b->into;
	f->look_least = b->into ? SIZE_MAX : rc_look_bytes(b->ctx);
	if (at_load_acq(&ref->state) != RC_H_READY || ref->owned ||
	    b->ctx->peers[ref->owner].reads_inline) {
		rc_read_begin(ref, f, INT64_MAX);
		return;
	}
	f->peer = ref->owner;
	f->handle = rref_dup(ref);
	f->loc = rc_remote(ref)->loc;
	/* All of one segment: it can share a READ. */
	f->whole |= wants_all(b, i, f->loc.length) && f->loc.nr_segments <= 1;
	rc_op_begin(f);
	b->next[i] = b->head[ref->owner];
	b->head[ref->owner] = i;
}

static int check_read(const struct batch *b, size_t i)
{
	struct rref *ref = ref_of(b, i);
	int err = ref && rc_usable(ref->ctx) ? 0 : rc_read_cannot(ref, b, b->what);

	if (!err && ref->ctx != b->ctx)
		return rc_fail(EINVAL, "%s: reference %zu is of another context", b->what, i);
	if (!err && b->into && b->into[i].length && !b->into[i].buf)
		return rc_fail(EINVAL, "%s: read %zu has no buffer", b->what, i);
	return err;
}

/* Reads into memory of the program over a device that copies. Returns false if it has to wait. */
static bool try_into(struct rref_into *r)
{
	int done = rc_into_try(r->ref, r->buf, r->offset, r->length, &r->got);

	if (done)
		r->status = min_of(done, 0);
	if (done < 0)
		r->got = 0;
	return done;
}

/* Reads over a device that copies. Returns false if read i has to wait. */
static bool try_read(struct batch *b, size_t i)
{
	struct rref_view *v = NULL;
	struct rref_future *f;
	int err;

	if (b->into)
		return try_into(&b->into[i]);
	if (rc_read_look(b->refs[i], rc_look_bytes(b->ctx), &v)) {
		end_read(b, i, 0, v);
		return true;
	}
	if (!rc_read_at_once(b->refs[i], 0, SIZE_MAX, &f))
		return false;
	err = rc_read_finish(f, b->deadline, 0, &v);
	end_read(b, i, err, v);
	return true;
}

/* Ends read i at once if it needs no operation. Returns whether it did. */
static bool ends_at_once(struct batch *b, size_t i)
{
	struct rref *ref = ref_of(b, i);
	struct rref_view *v = NULL;
	int err = check_read(b, i);

	if (!err && rc_read_ready_here(ref))
		v = rc_read_alias(ref);
	else if (!err)
		/* A device that copies has no doorbell to share, and nothing to wait for. */
		return try_read(b, i);
	end_read(b, i, err, v);
	return true;
}

static void batch_free(struct batch *b)
{
	free(b->f);
	free(b->next);
	free(b->head);
	b->f = NULL;
}

/* Makes room for operations. Returns 0 or -ENOMEM. */
static int batch_room(struct batch *b)
{
	size_t head = b->ctx->world * sizeof(*b->head);

	if (b->f)
		return 0;
	b->f = calloc(b->nr, sizeof(*b->f));
	b->next = calloc(b->nr, sizeof(*b->next));
	b->head = malloc(head);
	if (b->f && b->next && b->head) {
		memset(b->head, 0xff, head);
		return 0;
	}
	batch_free(b);
	return rc_fail(ENOMEM, "memory for a batch of %zu", b->nr);
}

static void start_read(struct batch *b, size_t i)
{
	int err;

	if (ends_at_once(b, i))
		return;
	err = batch_room(b);
	if (err) {
		end_read(b, i, err, NULL);
		return;
	}
	while ((err = rc_op_get(b->ctx, &rc_read_kind, 0, &b->f[i])) == -EAGAIN && b->done < i) {
		post_gathered(b);
		if (b->f[b->done])
			finish_read(b, b->done);
		b->done++;
	}
	if (err == -EAGAIN)
		err = rc_op_get(b->ctx, &rc_read_kind, b->deadline, &b->f[i]);
	if (err) {
		b->f[i] = NULL;
		end_read(b, i, err, NULL);
	} else {
		gather_read(b, (uint32_t)i);
	}
}

/* Repeats the reads that found no landing buffer. The other reads of the batch had them. */
static void read_again(struct batch *b)
{
	for (size_t i = 0; i < b->nr; i++) {
		struct rref_into *r = &b->into[i];

		if (r->status == -ENOMEM)
			r->status = rc_read_into(r->ref, r->buf, r->offset, r->length,
						 max_of(b->deadline - now_ns(), 0), &r->got);
	}
}

/* Returns how many reads succeeded. */
static int run_batch(struct batch *b)
{
	int good = 0;

	for (size_t i = 0; i < b->nr; i++) {
		if (!b->into)
			i += rc_fast_many(b->ctx, b->refs + i, b->nr - i, b->views + i,
					  b->status + i);
		if (i < b->nr)
			start_read(b, i);
	}
	if (b->f)
		post_gathered(b);
	for (size_t i = b->done; b->f && i < b->nr; i++)
		if (b->f[i])
			finish_read(b, i);
	if (b->into)
		read_again(b);
	for (size_t i = 0; i < b->nr; i++)
		good += batch_status_of(b, i) == 0;
	return good;
}

/* Returns the reference by which the batch finds its context, NULL if it has none at all. */
static struct rref *first_ref(const struct batch *b)
{
	struct rref *ref = NULL;

	for (size_t i = 0; i < b->nr && !ref; i++)
		ref = ref_of(b, i);
	return ref;
}

static int run_scoped(struct batch *b, int64_t timeout)
{
	const struct rref *first = first_ref(b);
	int good, err = first ? rc_enter(first->ctx) : rc_fail(EINVAL, "%s: no reference", b->what);

	if (err)
		return err;
	b->ctx = first->ctx;
	b->deadline = rc_deadline(b->ctx, timeout);
	struct rc_scope *scope = rc_scope_begin(b->ctx, b->what + sizeof("rref_") - 1, NULL,
						b->ctx->rank, first->owner);

	good = run_batch(b);
	batch_free(b);
	rc_scope_end(b->ctx, scope, 0);
	return good;
}

int rref_to_here_batch(struct rref *const *refs, size_t nr, int64_t timeout,
		       struct rref_view **views, int *status)
{
	RB_NO_CANCEL;
	struct batch b = { .what = "rref_to_here_batch", .nr = nr, .refs = refs, .views = views,
			   .status = status };

	if (!nr)
		return 0;
	if (!refs || !views || !status || nr > INT32_MAX)
		return rc_fail(
			EINVAL,
			"rref_to_here_batch: refs, views or status is NULL, or %zu are too many",
			nr);
	return run_scoped(&b, timeout);
}

int rref_to_here_into_batch(struct rref_into *reads, size_t nr, int64_t timeout)
{
	RB_NO_CANCEL;
	struct batch b = { .what = "rref_to_here_into_batch", .nr = nr, .into = reads };

	if (!nr)
		return 0;
	if (!reads || nr > INT32_MAX)
		return rc_fail(EINVAL,
			       "rref_to_here_into_batch: reads is NULL, or %zu are too many", nr);
	return run_scoped(&b, timeout);
}
