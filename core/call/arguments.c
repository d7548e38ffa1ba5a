/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arguments of calls, and results: their checks, and the sharing of their references. Large
 * ones: payload.c.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/call/call.h"
#include "core/call/internal.h"
#include "core/op/kind.h"
#include "core/op/step.h"
#include "core/session/session.h"
#include "core/value/value.h"

int rc_check_args(struct rref_ctx *ctx, const struct rref_args *a)
{
	if (!a)
		return 0;
	if (a->length > RREF_ARGS_MAX)
		return rc_fail(
			EMSGSIZE,
			"%zu bytes in one call: the limit is %d; "
			"share a reference to a value for more",
			a->length, RREF_ARGS_MAX);
	if (a->meta_length > RREF_META_MAX)
		return rc_fail(EMSGSIZE, "%zu bytes of metadata: the limit is %d", a->meta_length,
			       RREF_META_MAX);
	if ((a->length && !a->data) || (a->meta_length && !a->meta))
		return rc_fail(EINVAL, "arguments without their bytes or metadata");
	return rc_check_refs(ctx, a->refs, a->nr_refs);
}

/* Shares each reference with rank `to`. Shares no reference at all if it fails. */
int rc_make_forks(struct rref_ctx *ctx, const struct rref_args *a, uint32_t to,
		  struct rp_fork *recs)
{
	rc_assert_locked(ctx);
	for (size_t i = 0; a && i < a->nr_refs; i++) {
		struct rref *r = a->refs[i];
		struct rp_event ev = { .type = RP_EV_FORK, .id = r->id, .src = rc_fork_of(r),
				       .fork = rc_next_id(ctx), .peer = to,
				       .word = r->owned ? rc_word() : 0 };
		struct rc_scope *s = rc_scope_begin(ctx, "fork", NULL, ctx->rank, to);
		int err = rc_step(ctx, &ev, &recs[i]);

		rc_scope_end(ctx, s, err);
		if (err) {
			rc_undo_forks(ctx, a, to, recs, i);
			if (at_load(&r->state) == RC_H_FAILED)
				return rc_handle_error(r);
			return rc_fail(-err, "sharing reference %zu: %s", i, rref_strerror(err));
		}
		if (recs[i].value)
			rc_value_locate(recs[i].value, &recs[i].loc);
		recs[i].owner_incarnation = ctx->members[recs[i].owner].incarnation;
	}
	return 0;
}

void rc_undo_forks(struct rref_ctx *ctx, const struct rref_args *a, uint32_t to,
		   const struct rp_fork *recs, size_t nr)
{
	rc_assert_locked(ctx);
	for (size_t i = 0; i < nr; i++) {
		struct rp_event ev = { .type = RP_EV_FORK_UNDO,
				       .id = a->refs[i]->id,
				       .src = rc_fork_of(a->refs[i]),
				       .fork = recs[i].fork,
				       .peer = to };

		rc_step(ctx, &ev, NULL);
	}
}

/* Ends a call that was accepted and never went. The callee has got nothing of it. */
void rc_call_unsent(struct rref_ctx *ctx, uint32_t to, const struct rw_call *c, int status,
		    const char *text)
{
	struct rref_future *f = rc_op_hold(ctx, c->call_id);

	rc_assert_locked(ctx);
	if (c->loc.version)
		rc_payload_done(ctx, &ctx->peers[to],
				&(struct rw_done){ .call_id = c->call_id,
						   .what = RW_PAYLOAD_CALL,
						   .status = status });
	for (uint32_t i = 0; !c->loc.version && i < c->nr_refs; i++) {
		struct rp_event ev = { .type = RP_EV_FORK_UNDO,
				       .id = c->refs[i].id,
				       .fork = c->refs[i].fork,
				       .peer = to };

		/* The machine knows the fork from which it was shared. Here src only tells a user's
		 * child from an owner's fork. */
		if (c->refs[i].owner != ctx->rank)
			ev.src = c->refs[i].fork;
		rc_step(ctx, &ev, NULL);
	}
	if (!f)
		return;
	const struct rc_op_kind *op = at_load(&f->kind);

	if (op && op->ends_with_peer)
		rc_op_end(ctx, f, status, text);
	rc_op_put(f);
}
