/* SPDX-License-Identifier: Apache-2.0 */
/* Users: getting references from the owner, handing them on to
 * the next user, and giving them back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker.h"

#define SETTLE (20 * DEMO_SEC) /* time for messages under way to arrive */

/* Returns NULL, or the fault of a reference that came from worker `from`. */
static const char *what_is_wrong(const struct rref_ctx *ctx, const struct rref *ref, int from)
{
	if (rref_is_owner(ref) || rref_owner(ref) != 0)
		return "its owner is not rank 0";
	if (!rref_confirmed(ref))
		return "its owner does not know of it";
	if (rref_fork_id(ref).created_on != (uint32_t)from)
		return "it was not shared by the worker it came from";
	if (rref_context(ref) != ctx)
		return "it is of another context";
	return NULL;
}

/*
 * Keeps references that arrived from a worker: consumed, except on failure. Handlers run on several
 * threads, perhaps before rref_init has returned. So they may not use w->ctx.
 */
static int keep(struct demo_worker *w, const struct rref_ctx *ctx, const struct demo_listing *l,
		struct rref **refs, size_t nr, int from, const char **why)
{
	int err = 0;

	for (size_t i = 0; i < nr && !err; i++) {
		*why = what_is_wrong(ctx, refs[i], from);
		err = *why ? -EPROTO : 0;
	}
	if (err)
		return err;
	pthread_mutex_lock(&w->lock);
	if (!w->refs && l->file_bytes > 0 && l->file_bytes <= DEMO_FILE_MAX) {
		w->file_bytes = l->file_bytes;
		w->nr_refs = demo_nr_refs(l->file_bytes);
		w->refs = calloc(w->nr_refs, sizeof(struct rref *));
	}
	*why = "the listing that came with it makes no sense";
	if (!w->refs || l->file_bytes != w->file_bytes || l->from > w->nr_refs ||
	    nr > w->nr_refs - l->from)
		err = -EPROTO;
	for (size_t i = 0; i < nr && !err; i++) {
		*why = "it came twice";
		if (w->refs[l->from + i])
			err = -EEXIST;
	}
	for (size_t i = 0; i < nr && !err; i++) {
		w->refs[l->from + i] = refs[i];
		w->nr_held++;
	}
	pthread_mutex_unlock(&w->lock);
	return err;
}

void demo_get(struct demo_worker *w, struct demo_report *r)
{
	uint32_t from = 0;

	do {
		const struct rref_args args = { .data = &from, .length = sizeof(from) };
		struct rref *refs[RREF_REFS_MAX];
		struct demo_listing l;
		struct rref_future *f;
		const char *why = "";
		const void *data;
		size_t length;
		int nr;

		demo_ok(w, rref_rpc_sync(w->ctx, 0, "get", &args, RREF_DEFAULT, &f),
			"calling get on owner", from);
		demo_ok(w, rref_future_data(f, &data, &length), "rref_future_data", from);
		nr = demo_ok(w, rref_future_nr_refs(f), "rref_future_nr_refs", from);
		if (length != sizeof(l) || nr < 1 || nr > RREF_REFS_MAX)
			demo_give_up(w, "get: owner's answer has %zu bytes and %d references",
				     length, nr);
		memcpy(&l, data, sizeof(l));
		for (int i = 0; i < nr; i++)
			demo_ok(w, rref_future_ref(f, (size_t)i, &refs[i]), "rref_future_ref",
				from + (uint32_t)i);
		rref_future_free(f);
		if (keep(w, w->ctx, &l, refs, (size_t)nr, 0, &why))
			demo_give_up(w, "get: a reference from %u on is bad: %s", from, why);
		from += (uint32_t)nr;
		r->nr_calls++;
	} while (from < w->nr_refs);
	r->nr_refs = from;
}

/* Serves "take" {listing} + references from another user. The
 * owner confirms them before this runs. */
int demo_serve_take(struct rref_call *call, void *worker)
{
	struct demo_worker *w = worker;
	struct rref *refs[RREF_REFS_MAX];
	size_t nr = rref_call_nr_refs(call);
	struct demo_listing l;
	const char *why = "";
	int err;

	if (rref_call_length(call) != sizeof(l))
		return rref_call_error(call, -EINVAL, "take: %zu bytes of arguments, not %zu",
				       rref_call_length(call), sizeof(l));
	memcpy(&l, rref_call_data(call), sizeof(l));
	for (size_t i = 0; i < nr; i++)
		refs[i] = rref_dup(rref_call_ref(call, i));
	err = keep(w, rref_call_context(call), &l, refs, nr, rref_call_caller(call), &why);
	if (err) {
		for (size_t i = 0; i < nr; i++)
			rref_release(refs[i]);
		return rref_call_error(call, err, "take: a reference from %u on is bad: %s", l.from,
				       why);
	}
	return rref_call_reply(call, NULL);
}

struct rref **demo_held(struct demo_worker *w)
{
	struct rref **refs;
	uint32_t held, of;

	pthread_mutex_lock(&w->lock);
	refs = w->refs;
	held = w->nr_held;
	of = w->nr_refs;
	pthread_mutex_unlock(&w->lock);
	if (!refs || held != of)
		demo_give_up(w, "only %u of %u references came here", held, of);
	return refs;
}

void demo_share(struct demo_worker *w, struct demo_report *r)
{
	struct rref **refs = demo_held(w);
	struct demo_listing l = { .file_bytes = w->file_bytes };
	int next = rref_worker_by_name(w->ctx, demo_name(w->rank + 1));

	demo_ok(w, next, "rref_worker_by_name", 0);
	for (; l.from < w->nr_refs; l.from += RREF_REFS_MAX) {
		uint32_t left = w->nr_refs - l.from;
		const struct rref_args args = { .data = &l,
						.length = sizeof(l),
						.refs = refs + l.from,
						.nr_refs = left < RREF_REFS_MAX ? left
										: RREF_REFS_MAX };

		demo_ok(w, rref_rpc_sync(w->ctx, next, "take", &args, RREF_DEFAULT, NULL),
			"calling take on the next user", l.from);
		r->nr_calls++;
	}
	r->nr_refs = w->nr_refs;
}

/* Drops all references, and waits until the protocol has no work left for them here. */
void demo_release(struct demo_worker *w, struct demo_report *r)
{
	int64_t end = demo_now() + SETTLE;
	const struct rref_stats *s = &r->stats;
	struct rref **refs = demo_held(w);

	if (w->rank == 0) {
		/* The users' releases are on their way here. An owner may drop its
		 * own earlier, but then shows nothing. */
		for (r->stats.size = sizeof(r->stats);; usleep(1000)) {
			demo_ok(w, rref_get_stats(w->ctx, &r->stats), "rref_get_stats", 0);
			if (s->forks == 0)
				break;
			if (demo_now() > end)
				demo_give_up(w,
					     "all users released, but %llu references of theirs "
					     "remain here",
					     (unsigned long long)s->forks);
		}
	}
	for (uint32_t i = 0; i < w->nr_refs; i++) {
		rref_release(refs[i]);
		refs[i] = NULL;
	}
	r->nr_refs = w->nr_held;
	w->nr_held = 0;
	for (r->stats.size = sizeof(r->stats);; usleep(1000)) {
		demo_ok(w, rref_get_stats(w->ctx, &r->stats), "rref_get_stats", 0);
		if (!(s->owners | s->forks | s->users | s->pending_users | s->pending_children |
		      s->value_bytes | s->landing_bytes))
			break;
		if (demo_now() > end) {
			char dump[DEMO_TEXT_SIZE / 2] = "";

			rref_dump(w->ctx, dump, sizeof(dump));
			demo_give_up(w,
				     "all released, but %llu owners, %llu forks, %llu users, %llu "
				     "value bytes, %llu landing bytes remain: %s",
				     (unsigned long long)s->owners, (unsigned long long)s->forks,
				     (unsigned long long)s->users,
				     (unsigned long long)s->value_bytes,
				     (unsigned long long)s->landing_bytes, dump);
		}
	}
}
