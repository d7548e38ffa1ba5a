/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takes in READs that ended well. Any thread does it, at any time, with the progress lock or
 * without. No READ's end waits for a lock of this library. That is true from the device's queue to
 * the future, its waiter and its callback.
 *
 * Some ends need the protocol or the state of a peer. Reads may wait for a slot or a turn, or the
 * READ was of a heartbeat. That is pushed as work to the next holder of the lock. The thread that
 * pushed it takes the lock if it is free, or wakes the poller.
 */
#include "core/base/wait.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/read/take_in.h"
#include "core/session/session.h"

/*
 * Weights of the looks. A turn of the engine counts for more than a look that finds the lock taken.
 */
#define PATIENCE 256u
#define TURN 16u
#define LOOKS 4u /* looks before these, at READs only */

void rc_take_probe(struct rref_ctx *ctx, struct rc_peer *p)
{
	at_sub(&ctx->sleep.reads_in_flight, 1);
	rc_peer_later(ctx, p, RC_LATER_HEARTBEAT);
}

bool rc_take_ends(struct rref_ctx *ctx, const struct rv_read_end *end, int nr)
{
	bool due = false;

	rb_assert_is((unsigned)nr, <=, RC_ENDS);
	for (int i = 0; i < nr; i++)
		due |= rc_take_end(ctx, &end[i]);
	return due;
}

int rc_reads_look(struct rref_ctx *ctx, bool *due)
{
	bool refused = false;
	int n = 0;

	for (int k = 0; k < RV_NR_KINDS; k++) {
		const struct rc_device *d = &ctx->device[k];
		int got;

		if (!d->dev || d->caps.reads_inline)
			continue;
		got = rc_take_from(ctx, d, due);
		refused |= got < 0;
		n += max_of(got, 0);
	}
	return refused && !n ? -EAGAIN : n;
}

int rc_in_flight_wait_on(struct rref_ctx *ctx, const struct rc_peer *p, struct rc_in_flight *fl)
{
	int status = 1;

	/* Skips these looks if there is no poller: a program that only reads has to serve its peers
	 * itself. */
	for (unsigned i = rc_has_poller(ctx) ? 1 : LOOKS; status > 0 && i < LOOKS;
	     i++) {
		rc_take_in(ctx, p->device);
		status = rc_in_flight_result(fl);
	}
	for (unsigned spent = 0; status > 0 && spent < PATIENCE;
	     spent += rc_make_progress(ctx, false) < 0 ? 1 : TURN)
		status = rc_in_flight_result(fl);
	return status > 0 ? rc_in_flight_result(fl) : status;
}
