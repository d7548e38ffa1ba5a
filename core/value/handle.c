/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handles: the program's holds on references. All dups of a handle are one protocol reference. Its
 * last release tells the machine, or pushes the handle as work for the holder of the lock.
 *
 * A user handle's way: REQUESTED -> CONFIRMED -> READY (location known), or FAILED from any. An
 * owner handle is READY when its value is. The state is stored with release after the fields that
 * it announces. Readers load it with acquire.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fast.h"
#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/op/step.h"
#include "core/value/internal.h"
#include "core/value/look.h"
#include "core/value/value.h"

struct rref_id rc_next_ids(struct rref_ctx *ctx, unsigned nr)
{
	return (struct rref_id){ .local_id = at_add(&ctx->value.next_local_id, nr) + 1,
				 .created_on = ctx->rank };
}

#define RELEASE_TURN 256u /* references that one turn of the lock ends: others want it too */

static struct rref *handle_make(struct rref_ctx *ctx, bool remote, bool owned, struct rref_id id,
				uint32_t owner)
{
	struct rref *h = rc_slab_get(remote ? &ctx->value.remotes : &ctx->value.handles);

	if (!h)
		return NULL;
	h->ctx = ctx;
	h->remote = remote;
	h->owned = owned;
	h->owner = owner;
	h->id = id;
	at_store(&h->refs, 1);
	return h;
}

struct rref *rc_handle_make(struct rref_ctx *ctx, bool owned, struct rref_id id,
			    struct rref_id fork, uint32_t owner)
{
	struct rref *h = handle_make(ctx, true, owned, id, owner);

	rc_assert_locked(ctx);
	if (h)
		rc_remote(h)->fork = fork;
	return h;
}

struct rref *rc_handle_next(struct rref_ctx *ctx, const struct rref *h)
{
	struct rref *next = h && h->remote ? NULL : rc_slab_next(&ctx->value.handles, h);

	return next ? next : rc_slab_next(&ctx->value.remotes, h && h->remote ? h : NULL);
}

void rc_handle_fail(struct rref *h, int err, const char *text)
{
	rc_assert_locked(h->ctx);
	rc_handle_fail_about(h, err, 0, text);
}

void rc_handle_fail_about(struct rref *h, int err, uint16_t about, const char *text)
{
	rc_assert_locked(h->ctx);
	if (at_load(&h->state) == RC_H_FAILED)
		return;
	h->err = (int16_t)err;
	h->about = about;
	if (!h->pins)
		h->text = strdup(text && *text ? text : rref_strerror(err));
	at_store(&h->fast_class, RC_FAST_NOT);
	at_store_rel(&h->state, RC_H_FAILED);
}

/*
 * Returns how reads of this location can be fast. Asked once, when a user's handle becomes READY.
 */
static uint8_t
find_fast_class(const struct rref_ctx *ctx, uint32_t owner, const struct rp_location *loc)
{
	const struct rc_peer *p = &ctx->peers[owner];

	if (RB_FAST(!ctx->scopes) && loc->length >= ctx->value.look_bytes && rc_can_look(p, loc))
		return RC_FAST_LOOK;
	if (!RB_FAST(!ctx->scopes && p->ops) || loc->type_hash != ctx->value.bytes_hash ||
	    loc->nr_segments != 1 || loc->nr_refs || rp_is_wrapped(loc) || !loc->nonce ||
	    !loc->length || loc->length > RC_VALUE_MAX ||
	    loc->length + RC_HEADER_BYTES > p->max_msg)
		return RC_FAST_NOT;
	int size_class = rc_landing_class(loc->length);

	return size_class < 0 ? RC_FAST_LARGE : (uint8_t)(RC_FAST_FIRST + size_class);
}

/*
 * Prepares a read of the location: most are read soon, mostly by a thread that waits for it. Where
 * a cache line's way from the owner counts, it begins now.
 */
static void will_read(const struct rref *h, const struct rp_location *loc)
{
	const struct rc_peer *p = &h->ctx->peers[h->owner];
	struct rv_conn *conn = at_load(&p->conn);

	if (conn)
		p->ops->will_read(conn, loc->rkey[p->kind], loc->addr,
				  RC_HEADER_BYTES + loc->length);
}

void rc_handle_ready(struct rref *h, const struct rp_location *loc)
{
	rc_assert_locked(h->ctx);
	if (at_load(&h->state) >= RC_H_READY)
		return;
	if (loc && loc->version) {
		rc_remote(h)->loc = *loc;
		at_store_rel(&h->state, RC_H_READY);
		uint8_t size_class = find_fast_class(h->ctx, h->owner, loc);

		/* Release. Pairs with rref_to_here, which acquires: a thread that sees it sees
		 * the location, and no failure before it. */
		at_store_rel(&h->fast_class, size_class);
		if (size_class)
			will_read(h, loc);
	} else {
		at_store_rel(&h->state, RC_H_CONFIRMED);
	}
}

const char *rc_handle_why(const struct rref *h)
{
	return h->pins ? "the context was shut down" : h->text ? h->text : rref_strerror(h->err);
}

int rc_handle_error(const struct rref *h)
{
	return rc_fail_about(h->err, rc_handle_why(h), h->about ? h->about : h->owner + 1,
			     h->about);
}

void rc_handle_free(struct rref *h)
{
	if (h->pins)
		rc_value_unpin(h->value);
	else if (at_load(&h->state) == RC_H_FAILED)
		free(h->text);
	rc_slab_put(h->remote ? &h->ctx->value.remotes : &h->ctx->value.handles, h);
}

/* Tells the machine that the last hold is gone. Also called when the context closes. */
void rc_handle_end(struct rref_ctx *ctx, struct rref *h)
{
	rc_assert_locked(ctx);
	if (h->ended)
		return;
	h->ended = true;
	struct rp_event ev = { .type = h->owned ? RP_EV_RELEASE : RP_EV_DROP,
			       .id = h->id,
			       .fork = rc_fork_of(h),
			       .peer = h->owner };

	if (h->unset) {
		/* The waiters for the value must hear that nobody can set it any more. */
		struct rp_event set = { .type = RP_EV_SET, .id = h->id, .status = -ECANCELED,
					.text = "released by its owner before it was set" };

		h->unset = false;
		rc_step(ctx, &set, NULL);
		rc_value_unpin(h->value);
	}
	rc_step(ctx, &ev, NULL);
}

/* Ends a handle that nobody holds any more. */
static needs_lock void handle_finished(struct rref_ctx *ctx, struct rref *h)
{
	if (ctx->op.machine)
		rc_handle_end(ctx, h);
	rc_handle_free(h);
}

void rc_handle_dropped(struct rref_ctx *ctx, struct rc_item *item)
{
	rc_assert_locked(ctx);
	handle_finished(ctx, container_of(item, struct rref, dropped));
}

/*
 * Gives back one hold. Returns true if it was the last. A handler has no hold on the references of
 * its call unless it dups them. A release beyond that is refused. Otherwise the call, and any other
 * user of the handle, would go on with freed memory.
 */
static bool handle_give_back(struct rref *ref)
{
	uint32_t refs = at_load_acq(&ref->refs);

	do {
		/* Loaded after refs: when it is the call's own release that made it 1, that came
		 * after lent was cleared. */
		if (unlikely(refs == 1 && at_load(&ref->lent))) {
			char name[RREF_TEXT_SIZE / 2];

			rref_format(ref, name, sizeof(name));
			rc_fail(EINVAL,
				"rref_release: %s is lent by a call, which gives it back itself: "
				"dup it to keep it",
				name);
			rc_log(ref->ctx, RREF_LOG_ERROR, "%s", rc_error_text());
			return false;
		}
	} while (!at_cas_weak_ar(&ref->refs, &refs, refs - 1));
	return refs == 1;
}

/* Returns whether the end of a handle that nobody holds any more may end a large value. */
static bool ends_large(const struct rref *h)
{
	return h->owned && (h->unset || at_load_acq(&h->state) == RC_H_READY) &&
	       rc_value_bytes(h->value) > RC_LARGE_BYTES;
}

/* Lets go of the lock, which ends the handles that were pushed. Scrubs their values without it. */
static gives_lock void unlock_and_scrub(struct rref_ctx *ctx)
{
	struct rc_scrub_own before = rc_scrub_own_begin(ctx);

	rc_unlock(ctx);
	rc_scrub_own_end(before);
}

/* Ends a handle of a large value under the lock, and scrubs the value without it. */
static __attribute__((noinline)) gives_lock void finish_large(struct rref_ctx *ctx, struct rref *h)
{
	struct rc_scrub_own before = rc_scrub_own_begin(ctx);

	handle_finished(ctx, h);
	rc_unlock(ctx);
	rc_scrub_own_end(before);
}

void rref_release(struct rref *ref)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx;

	if (!ref || rc_is_child(ref->ctx) || !handle_give_back(ref))
		return;
	ctx = ref->ctx;
	if (RB_FAST(likely(rc_trylock(ctx)))) {
		if (unlikely(ends_large(ref))) {
			finish_large(ctx, ref);
			return;
		}
		handle_finished(ctx, ref);
		rc_unlock(ctx);
		return;
	}
	/* The holder of the lock looks again after letting go of it, so nobody needs to wait
	 * here. */
	rc_work_push_bare(ctx, &ref->dropped);
	if (rc_trylock(ctx))
		unlock_and_scrub(ctx);
}

/* Releases refs[0, nr) of one context. One turn of the lock ends all that nobody holds any more. */
static void release_turn(struct rref_ctx *ctx, struct rref *const *refs, size_t nr)
{
	bool pushed = false;

	for (size_t i = 0; i < nr; i++) {
		if (!refs[i] || !handle_give_back(refs[i]))
			continue;
		rc_work_push_bare(ctx, &refs[i]->dropped);
		pushed = true;
	}
	/* The holder of the lock looks again, see rref_release. */
	if (pushed && rc_trylock(ctx))
		unlock_and_scrub(ctx);
}

/* Counts the references from refs on that one turn of the lock takes: of one context, or NULL. */
static size_t turn_length(struct rref *const *refs, size_t nr, struct rref_ctx **ctx)
{
	size_t n;

	*ctx = NULL;
	for (n = 0; n < nr && n < RELEASE_TURN; n++) {
		if (refs[n] && *ctx && refs[n]->ctx != *ctx)
			break;
		if (refs[n])
			*ctx = refs[n]->ctx;
	}
	return n;
}

void rref_release_batch(struct rref *const *refs, size_t nr)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx;

	for (size_t n; refs && nr; refs += n, nr -= n) {
		n = turn_length(refs, nr, &ctx);
		if (ctx && !rc_is_child(ctx))
			release_turn(ctx, refs, n);
	}
}

void rc_handle_put(struct rref *h)
{
	rc_assert_locked(h->ctx);
	if (handle_give_back(h))
		handle_finished(h->ctx, h);
}

struct rref *rref_dup(struct rref *ref)
{
	if (ref)
		at_add(&ref->refs, 1);
	return ref;
}

int rc_handle_of_value(struct rref_ctx *ctx, struct rc_value *v, bool set, struct rref **out)
{
	struct rref_id id = rc_next_id(ctx);
	struct rp_event ev = { .type = RP_EV_NEW, .id = id, .maker = v };
	struct rref *h;
	int err;

	if (set)
		rc_value_publish(v, id);
	rc_lock(ctx);
	/* Looked at under the lock: after the shutdown ended all handles nobody would end this
	 * one. */
	err = rc_enter(ctx);
	if (err) {
		rc_unlock(ctx);
		rc_value_unpin(v);
		return rc_enter(ctx);
	}
	h = handle_make(ctx, false, true, id, ctx->rank);
	err = h ? rc_step(ctx, &ev, NULL) : -ENOMEM;
	if (!err && set) {
		ev.type = RP_EV_SET;
		ev.value = v;
		err = rc_step(ctx, &ev, NULL);
		if (err) {
			ev.type = RP_EV_RELEASE;
			rc_step(ctx, &ev, NULL);
		}
	}
	if (err) {
		if (h)
			rc_handle_free(h);
		rc_unlock(ctx);
		rc_value_unpin(v);
		return rc_fail(-err, "memory for a reference");
	}
	h->value = v;
	h->unset = !set;
	if (set)
		at_store_rel(&h->state, RC_H_READY);
	rc_unlock(ctx);
	*out = h;
	return 0;
}

/* ---- accessors ---- */

int rref_owner(const struct rref *ref)
{
	return ref ? (int)ref->owner : rc_fail(EINVAL, "rref_owner: no reference");
}

const char *rref_owner_name(const struct rref *ref)
{
	return ref ? ref->ctx->members[ref->owner].name : "";
}

int rref_is_owner(const struct rref *ref)
{
	return ref ? ref->owned : rc_fail(EINVAL, "rref_is_owner: no reference");
}

int rref_confirmed(const struct rref *ref)
{
	if (!ref)
		return rc_fail(EINVAL, "rref_confirmed: no reference");
	uint32_t state = at_load_acq(&ref->state);

	return state == RC_H_CONFIRMED || state == RC_H_READY ||
	       (ref->owned && state != RC_H_FAILED);
}

struct rref_id rref_get_id(const struct rref *ref)
{
	return ref ? ref->id : (struct rref_id){ 0 };
}

struct rref_id rref_fork_id(const struct rref *ref)
{
	return ref ? rc_fork_of(ref) : (struct rref_id){ 0 };
}

struct rref_ctx *rref_context(const struct rref *ref)
{
	return ref ? ref->ctx : NULL;
}

int rref_equal(const struct rref *a, const struct rref *b)
{
	/* An id has one owner, but a hostile member may give a value of its own another's id. */
	return a && b && a->ctx == b->ctx && a->id.local_id == b->id.local_id &&
	       a->id.created_on == b->id.created_on && a->owner == b->owner;
}

uint64_t rref_hash(const struct rref *ref)
{
	uint64_t x = ref ? ref->id.local_id * UINT64_C(0x9e3779b97f4a7c15) ^ ref->id.created_on : 0;

	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 32;
}

int rref_format(const struct rref *ref, char *buf, size_t size)
{
	if (!ref || (!buf && size))
		return rc_fail(EINVAL, "rref_format: no reference or no buffer");
	if (ref->owned)
		return snprintf(
			buf, size,
			"OwnerRRef(rref_id=GloballyUniqueId(created_on=%u, local_id=%" PRIu64 "))",
			ref->id.created_on, ref->id.local_id);
	return snprintf(buf, size,
			"UserRRef(rref_id=GloballyUniqueId(created_on=%u, local_id=%" PRIu64
			"), fork_id=GloballyUniqueId(created_on=%u, local_id=%" PRIu64 "))",
			ref->id.created_on, ref->id.local_id, rc_remote(ref)->fork.created_on,
			rc_remote(ref)->fork.local_id);
}
