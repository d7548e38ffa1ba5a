/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of the runtime's inside that parts.cc measures. Their header is not for C++. */
#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/engine.h"
#include "core/op/kind.h"
#include "parts_core.h"

static const struct rc_op_kind part_kind = { .name = "part" };

int parts_slot(struct rref_ctx *ctx)
{
	struct rref_future *f;
	int err = rc_op_get(ctx, &part_kind, 0, &f);

	if (err)
		return err;
	rc_op_claim(f);
	rc_op_put(f);
	rc_op_put(f);
	return 0;
}

int parts_future(struct rref_ctx *ctx)
{
	struct rref_future *f;
	int err = rc_op_get(ctx, &part_kind, 0, &f);

	if (err)
		return err;
	rc_op_claim(f);
	rc_op_finish(f);
	rc_op_put(f);
	err = rref_future_wait(f, RREF_DEFAULT);
	rref_future_free(f);
	return err;
}

int parts_landing(struct rref_ctx *ctx, size_t bytes)
{
	struct rc_landing *l;
	int err = rc_landing_get(ctx, bytes, &l);

	if (!err)
		rc_landing_put(l);
	return err;
}

int parts_turn(struct rref_ctx *ctx)
{
	if (!rc_trylock(ctx))
		return 1;
	rc_progress_locked(ctx, false);
	rc_unlock(ctx);
	return 0;
}
