/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dumps: the holders of each reference, with its age and its sharer; the operations under way; the
 * peers.
 *
 * A dump is made in pieces. The lock is held for SLICE entries, and the program's writer runs
 * without the lock. So a worker with a million references goes on while it is dumped. A dump is
 * therefore no snapshot: a change that is made meanwhile may be in it or not.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/observe/dump.h"
#include "core/op/kind.h"
#include "core/value/look.h"

#define SLICE 128u

static int64_t age(const struct rref_ctx *ctx, uint32_t since)
{
	uint32_t tenths = rc_age_now(ctx) - since;

	/* A step may have been given a time one tick ahead of the coarse clock. The difference is
	 * then about a tenth of a second below zero, wrapped around. */
	return tenths > UINT32_MAX - 10 ? 0 : (int64_t)tenths * RC_AGE_NS;
}

static void value_fields(struct rc_record *r, const struct rc_value *v)
{
	rc_rec_number(r, "bytes", v->view.length);
	if (v->view.nr_refs)
		rc_rec_number(r, "refs", v->view.nr_refs);
	rc_rec_text(r, "type", v->type->name);
	rc_rec_flag(r, "wrapped", v->wrapped);
	rc_rec_text(r, "function", rc_value_function(v));
	rc_rec_text(r, "site", rc_value_site(v));
}

static void owner_fields(struct rref_ctx *ctx, struct rc_record *r, const struct rp_visit *v)
{
	const struct rc_value *value = v->value ? v->value : v->maker;

	rc_rec_text(r, "state", v->state);
	if (v->status)
		rc_rec_signed(r, "status", v->status);
	rc_rec_number(r, "local", v->local);
	rc_rec_number(r, "forks", v->forks);
	if (v->waits)
		rc_rec_number(r, "waits", v->waits);
	rc_rec_age(r, "age", age(ctx, v->since));
	if (value)
		value_fields(r, value);
}

static void user_fields(struct rref_ctx *ctx, struct rc_record *r, const struct rp_visit *v)
{
	const struct rref *h = v->handle;

	rc_rec_id(r, "fork", v->fork);
	rc_rec_text(r, "owner", ctx->members[v->peer].name);
	rc_rec_number(r, "rank", v->peer);
	rc_rec_number(r, "epoch", v->epoch);
	rc_rec_text(r, "by", ctx->members[v->parent].name);
	rc_rec_text(r, "state", v->state);
	if (v->status)
		rc_rec_signed(r, "status", v->status);
	rc_rec_flag(r, "creator", v->creator);
	rc_rec_flag(r, "released", v->released);
	rc_rec_number(r, "children", v->children);
	if (v->waits)
		rc_rec_number(r, "waits", v->waits);
	rc_rec_age(r, "age", age(ctx, v->since));
	if (v->loc) {
		const struct rc_type *type = rc_type_find(ctx, v->loc->type_hash);

		rc_rec_number(r, "bytes", v->loc->length);
		rc_rec_text(r, "type", type ? type->name : NULL);
	}
	if (h)
		rc_rec_number(r, "holds", at_load(&h->refs));
	if (h && at_load(&h->nested))
		rc_rec_number(r, "nested", at_load(&h->nested));
	rc_rec_text(r, "site", h ? rc_handle_site(h) : NULL);
}

void rc_rec_visit(struct rref_ctx *ctx, struct rc_record *r, const char *kind,
		  const struct rp_visit *v)
{
	static const char *const kinds[] = {
		[RP_VISIT_OWNER] = "owner",
		[RP_VISIT_FORK] = "fork",
		[RP_VISIT_USER] = "user",
		[RP_VISIT_CHILD] = "child",
	};

	rc_assert_locked(ctx);
	rc_rec_begin(r, kind ? kind : kinds[v->kind]);
	rc_rec_id(r, "id", v->id);
	switch (v->kind) {
	case RP_VISIT_OWNER:
		owner_fields(ctx, r, v);
		break;
	case RP_VISIT_USER:
		user_fields(ctx, r, v);
		break;
	case RP_VISIT_FORK:
	case RP_VISIT_CHILD:
		rc_rec_id(r, "fork", v->fork);
		rc_rec_text(r, v->kind == RP_VISIT_FORK ? "holder" : "with",
			    ctx->members[v->peer].name);
		rc_rec_number(r, "rank", v->peer);
		rc_rec_number(r, "epoch", v->epoch);
		rc_rec_text(r, "by", ctx->members[v->parent].name);
		rc_rec_text(r, "state",
			    v->kind == RP_VISIT_CHILD ? v->state
			    : v->grace		      ? "grace"
						      : "held");
		rc_rec_flag(r, "creator", v->creator);
		rc_rec_flag(r, "waits", v->parked);
		rc_rec_age(r, "age", age(ctx, v->since));
		if (kind && v->value)
			value_fields(r, v->value);
		break;
	}
	rc_rec_end(r);
}

void rc_rec_handle(struct rref_ctx *ctx, struct rc_record *r, const char *kind,
		   const struct rref *h)
{
	const struct rc_value *value = rc_handle_value(h);

	rc_assert_locked(ctx);
	rc_rec_begin(r, kind);
	rc_rec_id(r, "id", h->id);
	if (!h->owned)
		rc_rec_id(r, "fork", rc_fork_of(h));
	rc_rec_text(r, "holder", ctx->members[ctx->rank].name);
	rc_rec_text(r, "owner", ctx->members[h->owner].name);
	rc_rec_number(r, "holds", at_load(&h->refs));
	if (value)
		value_fields(r, value);
	else
		rc_rec_text(r, "site", rc_handle_site(h));
	rc_rec_end(r);
}

/* ---- the whole ---- */

struct dump {
	struct rref_ctx *ctx;
	struct rc_record r;
	int64_t now;
};

/*
 * Writes a record for each reference inside value. Such a reference is held although no program
 * seems to hold it.
 */
static void nested(struct dump *d, const struct rc_value *value, struct rref_id in)
{
	for (uint32_t i = 0; value->extra && value->extra->refs && i < value->view.nr_refs; i++) {
		const struct rref *h = value->extra->refs[i];

		rc_rec_begin(&d->r, "nested");
		rc_rec_id(&d->r, "id", h->id);
		if (!h->owned)
			rc_rec_id(&d->r, "fork", rc_fork_of(h));
		rc_rec_id(&d->r, "in", in);
		rc_rec_number(&d->r, "at", i);
		rc_rec_text(&d->r, "owner", d->ctx->members[h->owner].name);
		rc_rec_end(&d->r);
	}
}

static needs_lock void visit(void *arg, const struct rp_visit *v)
{
	struct dump *d = arg;

	rc_rec_visit(d->ctx, &d->r, NULL, v);
	if (v->kind == RP_VISIT_OWNER && (v->value || v->maker))
		nested(d, v->value ? v->value : v->maker, v->id);
}

static void visit_op(void *arg, struct rref_future *f)
{
	struct dump *d = arg;
	const struct rc_op_kind *kind = at_load_acq(&f->kind);
	int64_t deadline = at_load(&f->deadline);

	rc_rec_begin(&d->r, "op");
	rc_rec_text(&d->r, "what", kind ? kind->name : "other");
	rc_rec_text(&d->r, "with", d->ctx->members[f->peer].name);
	rc_rec_number(&d->r, "rank", f->peer);
	if (f->handle)
		rc_rec_id(&d->r, "id", f->handle->id);
	rc_rec_age(&d->r, "age", d->now - at_load(&f->seen_at));
	if (deadline != INT64_MAX)
		rc_rec_age(&d->r, "left", deadline - d->now);
	rc_rec_end(&d->r);
}

static void worker_line(struct dump *d)
{
	const struct rref_ctx *ctx = d->ctx;
	static const char *const state[] = { "starting", "running", "closing", "shut" };

	rc_rec_begin(&d->r, "worker");
	rc_rec_text(&d->r, "name", ctx->members[ctx->rank].name);
	rc_rec_number(&d->r, "rank", ctx->rank);
	rc_rec_number(&d->r, "of", ctx->world);
	rc_rec_hex(&d->r, "incarnation", ctx->group.incarnation);
	rc_rec_text(&d->r, "state", state[at_load(&ctx->state)]);
	rc_rec_age(&d->r, "age", rc_coarse_ns() - ctx->op.started_at);
	rc_rec_end(&d->r);
}

static void peer_line(struct dump *d, uint32_t rank)
{
	struct rref_peer_stats s = { .size = sizeof(s) };
	const struct rc_peer *p = &d->ctx->peers[rank];

	if (rref_get_peer_stats(d->ctx, (int)rank, &s))
		return;
	rc_rec_begin(&d->r, "peer");
	rc_rec_text(&d->r, "name", p->member->name);
	rc_rec_number(&d->r, "rank", rank);
	rc_rec_text(&d->r, "over", p->ops->name);
	rc_rec_text(&d->r, "state", s.state);
	rc_rec_number(&d->r, "epoch", s.epoch);
	rc_rec_number(&d->r, "forks", s.forks);
	rc_rec_number(&d->r, "users", s.users);
	rc_rec_number(&d->r, "children", s.pending_children);
	rc_rec_number(&d->r, "queued", s.queued_messages);
	rc_rec_number(&d->r, "waiting_reads", s.waiting_reads);
	if (s.heard >= 0)
		rc_rec_age(&d->r, "heard", s.heard);
	if (s.stalled)
		rc_rec_age(&d->r, "stalled", s.stalled);
	rc_rec_end(&d->r);
}

static void onlooker_line(void *arg, uint32_t rank, uint32_t epoch, uint32_t values, uint64_t bytes)
{
	struct dump *d = arg;

	rc_rec_begin(&d->r, "onlooker");
	rc_rec_text(&d->r, "name", d->ctx->members[rank].name);
	rc_rec_number(&d->r, "rank", rank);
	rc_rec_number(&d->r, "epoch", epoch);
	rc_rec_number(&d->r, "values", values);
	rc_rec_number(&d->r, "bytes", bytes);
	rc_rec_end(&d->r);
}

static void stats_line(struct dump *d)
{
	struct rref_stats s = { .size = sizeof(s) };
	const char *name;
	size_t at;

	if (rref_get_stats(d->ctx, &s))
		return;
	rc_rec_begin(&d->r, "stats");
	for (unsigned i = 0; (name = rc_stats_field(i, &at)); i++)
		rc_rec_number(&d->r, name,
			      *(const uint64_t *)(const void *)((const char *)&s + at));
	for (unsigned k = 0; k < RREF_MESSAGE_KINDS; k++) {
		char key[64];

		if (s.sent[k] && snprintf(key, sizeof(key), "sent.%s", rw_kind_name(k)) > 0)
			rc_rec_number(&d->r, key, s.sent[k]);
		if (s.received[k] && snprintf(key, sizeof(key), "received.%s", rw_kind_name(k)) > 0)
			rc_rec_number(&d->r, key, s.received[k]);
	}
	rc_rec_end(&d->r);
}

/* Hands the gathered records to the program's writer. */
static int dump_flush(struct dump *d, rref_writer write, void *arg)
{
	int err = 0;

	if (d->r.failed)
		return rc_fail(ENOMEM, "memory for a piece of a dump");
	if (d->r.used)
		err = write(arg, d->r.buf, d->r.used);
	d->r.used = 0;
	return err;
}

static int dump_write_all(struct dump *d, unsigned flags, rref_writer write, void *arg)
{
	struct rref_ctx *ctx = d->ctx;
	struct rp_cursor cursor = { 0 };
	uint32_t slot = 0;
	bool more = true;
	int err;

	worker_line(d);
	if (flags & RREF_DUMP_STATS)
		stats_line(d);
	for (uint32_t i = 0; i < ctx->world; i++)
		if (i != ctx->rank)
			peer_line(d, i);
	rc_lock_settled(ctx);
	rc_onlookers_visit(ctx, onlooker_line, d);
	rc_unlock(ctx);
	err = dump_flush(d, write, arg);
	while (more && !err) {
		rc_lock_settled(ctx);
		more = ctx->op.machine && rp_visit_some(ctx->op.machine, &cursor, SLICE, visit, d);
		rc_unlock(ctx);
		err = dump_flush(d, write, arg);
	}
	do {
		if (err || !at_load(&ctx->op.nr))
			break;
		rc_lock(ctx);
		d->now = now_ns();
		slot = rc_ops_visit(ctx, slot, 8 * SLICE, visit_op, d);
		rc_unlock(ctx);
		err = dump_flush(d, write, arg);
	} while (slot);
	return err;
}

int rref_dump_to(struct rref_ctx *ctx, unsigned flags, rref_writer write, void *arg)
{
	RB_NO_CANCEL;
	struct dump d = { .ctx = ctx, .r.json = flags & RREF_DUMP_JSON };
	int err;

	if (!ctx || !write || (flags & ~(RREF_DUMP_JSON | RREF_DUMP_STATS)))
		return rc_fail(EINVAL, "rref_dump_to: no context, no writer, or unknown flags");
	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	err = dump_write_all(&d, flags, write, arg);
	free(d.r.buf);
	return err;
}

struct buffer {
	char *buf;
	size_t size, used;
};

static int to_buffer(void *arg, const char *text, size_t length)
{
	struct buffer *b = arg;

	if (b->used + 1 < b->size)
		memcpy(b->buf + b->used, text, min_of(length, b->size - b->used - 1));
	b->used += length;
	return 0;
}

int rref_dump(struct rref_ctx *ctx, char *buf, size_t size)
{
	RB_NO_CANCEL;
	struct buffer b = { buf, size, 0 };
	int err;

	if (!ctx || (!buf && size))
		return rc_fail(EINVAL, "rref_dump: no context or no buffer");
	err = rref_dump_to(ctx, 0, to_buffer, &b);
	if (size)
		buf[err ? 0 : min_of(b.used, size - 1)] = 0;
	return err ? err : (int)min_of(b.used, (size_t)INT32_MAX);
}
