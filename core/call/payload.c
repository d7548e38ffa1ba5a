/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payloads: the data of a call or reply that does not fit its message. The records of its
 * references lie behind the data. The sender offers memory that is registered and laid out like a
 * value, with a nonce of its own. The message says where it is. The receiver READs it before the
 * handler runs or the future completes, and says DONE.
 *
 *   sender    reserve room -> fill -> message -> offered -> DONE, or the fence of the reader ->
 *             scrubbed, freed
 *   receiver  message -> READ -> records handed in, DONE -> handler or future
 *
 * The sender gets its memory back when the reader is done or fenced, never before. A time-out of
 * the call does not give it back. A CANCEL by the caller may end a READ. DONE is said only when
 * nothing of that READ is in flight any more.
 *
 * DONE with an error means that the records were not looked at. Their sender then takes back the
 * references that it shared. A reader that reads and then reports an error undoes only its own
 * references.
 *
 * Bounds. The payloads of a sender that one peer has not read are limited to the bytes of the
 * largest payload. A sender of more waits for room (call.c); inline handlers and callbacks get
 * -EAGAIN. The limit where the calls are served is in take.c. A READ occupies no thread. Over shm
 * a READ is a copy, done in turns by the threads that let go of the lock.
 *
 * From a worker to itself nothing is read: the payload is handed over as it is.
 *
 * Words. A payload lies in a region, and a holder of any value there can READ all of it. The
 * records' words open values of others too, so they are hidden: each by SipHash-2-4 of its record's
 * number. The key is made for this payload, and travels in the message alone.
 */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "core/base/lock.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/ctx.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/value.h"

#define COST_MIN 4096u                         /* least cost, which bounds their number too */

struct rc_payload {
	struct rc_work work;	/* under the lock; frees its memory */
	struct list node;	/* under the lock; ctx->call.offers */
	struct rref_ctx *ctx;
	struct rc_value *value;
	uint64_t cost;               /* share of offer_bytes */
	uint64_t call_id;
	uint32_t peer, what;
	size_t data_length, nr_refs;
	struct rp_fork *recs;        /* malloc'ed; the records shared with the peer */
	struct rref_id *src;         /* lies in recs: the reference from which each was shared */
};

/* ---- the sender's side ---- */

static void payload_release(struct rc_payload *p)
{
	if (p->value)
		rc_value_unpin(p->value);
	free(p->recs);
	free(p);
}

static void give_room_back(struct rc_payload *p)
{
	rb_assert_is(at_load(&p->ctx->peers[p->peer].offer_bytes), >=, p->cost);
	rb_assert_is(at_load(&p->ctx->n.payload_bytes), >=, p->cost);
	rb_assert_is(p->cost, >=, COST_MIN);
	at_sub(&p->ctx->peers[p->peer].offer_bytes, p->cost);
	at_sub(&p->ctx->n.payload_bytes, p->cost);
}

void rc_payload_drop(struct rc_payload *p)
{
	if (!p)
		return;
	give_room_back(p);
	payload_release(p);
}

/*
 * Makes the payload of `a` for rank `to`, with a copy of its data. Waits for room until deadline.
 * Sets *out to NULL if no payload is needed.
 */
int rc_payload_make(struct rref_ctx *ctx, uint32_t to, const struct rref_args *a, int64_t deadline,
		    struct rc_payload **out)
{
	struct rc_payload *p;
	int err;

	*out = NULL;
	if (!rc_payload_needed(a))
		return 0;
	p = calloc(1, sizeof(*p));
	if (!p)
		return rc_fail(ENOMEM, "memory for a payload's record");
	p->ctx = ctx;
	p->peer = to;
	p->data_length = a->length;
	p->nr_refs = a->nr_refs;
	if (a->nr_refs) {
		p->recs = malloc(a->nr_refs * (sizeof(p->recs[0]) + sizeof(p->src[0])));
		if (!p->recs) {
			free(p);
			return rc_fail(ENOMEM, "memory for %zu references", a->nr_refs);
		}
		p->src = (struct rref_id *)(void *)(p->recs + a->nr_refs);
	}
	p->cost = max_of(a->length + a->nr_refs * RW_FORK_BYTES, (size_t)COST_MIN);
	rc_lock(ctx);
	err = rc_wait_for_room(ctx, &ctx->peers[to], p->cost, deadline);
	if (!err) {
		at_add(&ctx->peers[to].offer_bytes, p->cost);
		at_add(&ctx->n.payload_bytes, p->cost);
	}
	rc_unlock(ctx);
	if (err) {
		payload_release(p);
		return err;
	}
	err = rc_value_alloc(ctx, a->length + a->nr_refs * RW_FORK_BYTES, NULL, &p->value);
	if (err) {
		rc_payload_drop(p);
		return err;
	}
	if (a->length)
		memcpy(rc_value_data(p->value), a->data, a->length);
	*out = p;
	return 0;
}

_Static_assert(RW_KEY_BYTES == crypto_shorthash_KEYBYTES && crypto_shorthash_BYTES == 8,
	       "SipHash-2-4 makes a word's mask");

/* Hides the words of records, or shows them again. */
static void hide_words(struct rp_fork *recs, size_t nr, const uint8_t *key)
{
	for (size_t i = 0; i < nr; i++) {
		uint8_t number[8], mask[crypto_shorthash_BYTES];

		put_le64(number, i);
		crypto_shorthash(mask, number, sizeof(number), key);
		recs[i].word ^= get_le64(mask);
	}
}

int rc_payload_fill(struct rref_ctx *ctx, struct rc_payload *p, const struct rref_args *a,
		    struct rp_location *loc, uint8_t *key)
{
	int err = rc_make_forks(ctx, a, p->peer, p->recs);

	rc_assert_locked(ctx);
	if (err)
		return err;
	for (size_t i = 0; i < p->nr_refs; i++)
		p->src[i] = rc_fork_of(a->refs[i]);
	put_le64(key, rb_random64());
	put_le64(key + 8, rb_random64());
	hide_words(p->recs, p->nr_refs, key);
	rw_put_forks(p->recs, (unsigned)p->nr_refs,
		     (char *)rc_value_data(p->value) + p->data_length);
	rc_value_publish(p->value, (struct rref_id){ .local_id = 0, .created_on = ctx->rank });
	rc_value_locate(p->value, loc);
	return 0;
}

void rc_payload_undo(struct rref_ctx *ctx, struct rc_payload *p)
{
	rc_assert_locked(ctx);
	for (size_t i = 0; i < p->nr_refs; i++) {
		struct rp_event ev = { .type = RP_EV_FORK_UNDO,
				       .id = p->recs[i].id,
				       .src = p->src[i],
				       .fork = p->recs[i].fork,
				       .peer = p->peer };

		rc_step(ctx, &ev, NULL);
	}
}

static struct rc_payload *payload_find(struct rref_ctx *ctx, uint32_t peer, uint32_t what,
				       uint64_t call_id)
{
	struct list *head = &ctx->call.offers[rc_bucket(ctx, peer, call_id)], *l, *tmp;

	list_for_each_safe(l, tmp, head) {
		struct rc_payload *p = container_of(l, struct rc_payload, node);

		if (p->call_id == call_id && p->peer == peer && p->what == what)
			return p;
	}
	return NULL;
}

void rc_payload_offer(struct rref_ctx *ctx, struct rc_payload *p, uint32_t what, uint64_t call_id)
{
	rc_assert_locked(ctx);
	rb_assert(what == RW_PAYLOAD_CALL || what == RW_PAYLOAD_REPLY);
	rb_assert(!payload_find(ctx, p->peer, what, call_id));
	p->what = what;
	p->call_id = call_id;
	list_add_tail(&ctx->call.offers[rc_bucket(ctx, p->peer, call_id)], &p->node);
}

/*
 * Frees the payload. Scrubs it without the lock, since that takes time. Leaves a larger one than a
 * turn's to scrub.c.
 */
static needs_lock void free_work(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_payload *p = container_of(w, struct rc_payload, work);

	if (rc_value_bytes(p->value) > RC_SCRUB_TURN) {
		payload_release(p);
		return;
	}
	rc_unlock_bare(ctx);
	struct rc_scrub_own before = rc_scrub_own_begin(ctx);

	payload_release(p);
	rc_scrub_own_end(before);
	rc_lock(ctx);
}

/* Retires a payload that nobody reads any more. */
static needs_lock void payload_retire(struct rref_ctx *ctx, struct rc_payload *p)
{
	rb_assert(payload_find(ctx, p->peer, p->what, p->call_id) == p);
	list_del(&p->node);
	give_room_back(p);
	__atomic_store_n(&rc_value_header(p->value)->nonce, 0, __ATOMIC_RELEASE);
	p->work.run = free_work;
	rc_defer(ctx, &p->work);
}

void rc_payload_done(struct rref_ctx *ctx, struct rc_peer *from, const struct rw_done *d)
{
	struct rc_payload *p = payload_find(ctx, from->rank, d->what, d->call_id);

	rc_assert_locked(ctx);
	if (!p) {
		at_add(&ctx->n.dropped, 1); /* said twice, or not offered to that peer */
		return;
	}
	payload_retire(ctx, p);
	if (d->status)
		rc_payload_undo(ctx, p);
}

/*
 * Ends the peer's payloads after the device's fence, when nothing of the peer is in flight. The
 * machine has dropped the shared references already.
 */
void rc_payloads_fenced(struct rref_ctx *ctx, const struct rc_peer *peer)
{
	rc_assert_locked(ctx);
	for (unsigned i = 0; i < RC_CALL_BUCKETS && at_load(&peer->offer_bytes); i++) {
		struct list *l, *tmp;

		list_for_each_safe(l, tmp, &ctx->call.offers[i]) {
			struct rc_payload *p = container_of(l, struct rc_payload, node);

			if (p->peer == peer->rank)
				payload_retire(ctx, p);
		}
	}
}

/* ---- the receiver's side ---- */

static needs_lock void say_done(struct rref_ctx *ctx, struct rc_peer *to, uint32_t what,
				uint64_t call_id, int status)
{
	struct rw_message m = { .frame.type = RW_DONE };

	m.u.done.call_id = call_id;
	m.u.done.what = what;
	m.u.done.status = status;
	rc_send_or_end(ctx, to->rank, &m); /* the fence ends the offer too */
}

void rc_fetch_refuse(struct rref_ctx *ctx, struct rc_peer *from, uint32_t what, uint64_t call_id,
		     int status)
{
	rc_assert_locked(ctx);
	say_done(ctx, from, what, call_id, status);
}

/* Notes the end of a fetch: its READ's, or the session's. */
static needs_lock void fetch_settle(struct rref_ctx *ctx, struct rc_incoming *in)
{
	struct rref_future *f = in->read;

	rb_assert(in->fetching && in->fetched);
	rb_assert_if(in->own, !f && in->from == ctx->rank);
	in->fetching = false;
	in->read = NULL;
	if (f) {
		in->status = f->status;
		snprintf(in->text, sizeof(in->text), "%.*s", (int)sizeof(in->text) - 1, f->text);
		in->body = rc_op_take_view(f);
		rc_op_put(f);
	}
	if (!in->status && !rc_same_session(ctx, in->from, in->epoch)) {
		in->status = -EOWNERDEAD;
		snprintf(in->text, sizeof(in->text), "the session it came in is over");
	}
}

/* Takes the references behind the data. Returns NULL and sets in->status if it fails. */
static needs_lock struct rp_fork *fetch_forks(struct rref_ctx *ctx, struct rc_incoming *in,
					      const char *data)
{
	uint32_t nr = in->nr_refs;
	struct rp_fork *recs = malloc(nr * sizeof(recs[0]));

	if (!recs) {
		in->status = -ENOMEM;
		snprintf(in->text, sizeof(in->text), "memory for %u references", nr);
		return NULL;
	}
	if (rw_get_forks(data + in->data_length, nr, ctx->world, recs)) {
		in->status = -EPROTO;
		snprintf(in->text, sizeof(in->text), "its references are malformed");
		at_add(&ctx->n.rejected, 1);
		rc_session_end(ctx, &ctx->peers[in->from], -EPROTO, "it sent malformed references");
		free(recs);
		return NULL;
	}
	hide_words(recs, nr, in->key);
	return recs;
}

/* Ends a fetch: the payload is here, or never will be. */
static needs_lock void fetch_end(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_incoming *in = container_of(w, struct rc_incoming, work);
	struct rp_fork *recs = NULL;
	const char *data = NULL;

	fetch_settle(ctx, in);
	if (in->body)
		data = rref_view_data(in->body);
	else if (in->own)
		data = rc_value_data(in->own->value);
	if (!in->status && in->nr_refs)
		recs = fetch_forks(ctx, in, data);
	if (in->own && in->status)
		rc_payload_undo(ctx, in->own);
	if (in->from != ctx->rank && rc_same_session(ctx, in->from, in->epoch))
		say_done(ctx, &ctx->peers[in->from], in->what, in->call_id, in->status);
	in->fetched(ctx, in, data, recs, in->status ? 0 : in->nr_refs);
	free(recs);
}

static needs_lock void fetch_finished(struct rref_future *f)
{
	f->fetch->work.run = fetch_end;
	rc_defer(f->ctx, &f->fetch->work);
}

static needs_lock void fetch_turn(struct rref_ctx *ctx, struct rc_work *w)
{
	(void)ctx;
	rc_read_turn(container_of(w, struct rc_incoming, work)->read);
}

static needs_lock void fetch_resume(struct rref_future *f)
{
	rc_defer(f->ctx, &f->fetch->work);
}

static const struct rc_op_kind fetch_kind = {
	.name = "other", .reads = true,
	.end = rc_read_end, .release = rc_read_release, .why_late = rc_stall_words,
	.over = fetch_finished, .resume = fetch_resume,
};

static needs_lock void fetch_start(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rc_incoming *in = container_of(w, struct rc_incoming, work);
	struct rref_future *f;
	int err;

	rc_unlock_bare(ctx);
	err = rc_op_get_share(ctx, in->what == RW_PAYLOAD_REPLY ? RC_OP_RESULT : RC_OP_ARGUMENTS,
			      &fetch_kind, 0, &f);
	rc_lock(ctx);
	if (err || in->cancelled) {
		in->status = err ? err : -ECANCELED;
		snprintf(in->text, sizeof(in->text), "%.*s", (int)sizeof(in->text) - 1,
			 err ? rc_error_text() : "cancelled");
		if (!err) {
			rc_op_claim(f);
			rc_op_put(f);
			rc_op_put(f);
		}
		fetch_end(ctx, w);
		return;
	}
	rb_assert(in->fetching && !in->read && in->loc.version);
	f->peer = in->from;
	f->loc = in->loc;
	f->offset = 0;
	f->length = SIZE_MAX;
	f->whole = false;
	f->fetch = in;
	in->read = f;
	in->work.run = fetch_turn;
	rc_op_begin(f);
	rc_read_turn(f);
}

/*
 * Begins to bring the payload at in->loc. Calls in->fetched under the lock when the payload is
 * here, or with in->status when it failed. Never calls it from within this call.
 */
void rc_fetch_begin(struct rref_ctx *ctx, struct rc_incoming *in, struct rc_peer *from)
{
	rc_assert_locked(ctx);
	in->from = from->rank;
	in->epoch = from->epoch;
	in->fetching = true;
	in->work.run = fetch_start;
	if (from->rank == ctx->rank) {
		in->own = payload_find(ctx, ctx->rank, in->what, in->call_id);
		if (in->own) {
			list_del(&in->own->node);
			give_room_back(in->own);
		} else {
			in->status = -ESHUTDOWN;
		}
		in->work.run = fetch_end;
	}
	rc_defer(ctx, &in->work);
}

void rc_fetch_cancel(struct rref_ctx *ctx, struct rc_incoming *in)
{
	rc_assert_locked(ctx);
	if (!in->fetching)
		return;
	in->cancelled = true;
	if (in->read)
		rc_op_end(ctx, in->read, -ECANCELED, "cancelled: the caller gave the call up");
}

void rc_payload_free(struct rc_payload *p)
{
	if (p)
		payload_release(p);
}
