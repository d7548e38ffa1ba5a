/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Peers that go down: the program hears each time that a live worker goes down. The program's
 * callback runs once for each such death, and its event loop wakes.
 *
 * The step that finds a death must not fail for want of memory, so each peer has its own hook.
 * Deaths may come faster than the program takes them. They are then counted in the hook, and share
 * the last reason.
 */
#include <errno.h>
#include <stdio.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/session/internal.h"

/* Takes one death that the program has not heard of. */
static needs_lock bool down_take(struct rc_down *d, int *err, char *text, size_t size)
{
	if (!d->nr) {
		d->queued = false;
		return false;
	}
	d->nr--;
	*err = d->err;
	snprintf(text, size, "%s", d->text);
	return true;
}

static void down_run(struct rref_ctx *ctx, struct rc_hook *h)
{
	struct rc_down *d = container_of(h, struct rc_down, hook);
	struct rref_peer_down down = { .size = sizeof(down),
				       .rank = (int)container_of(d, struct rc_peer, down)->rank };
	char text[RP_TEXT_MAX];
	bool more;

	for (;;) {
		rc_lock(ctx);
		more = down_take(d, &down.err, text, sizeof(text));
		rc_unlock(ctx);
		if (!more)
			return;
		down.text = text;
		ctx->session.peer_down(ctx->session.peer_down_arg, ctx, &down);
	}
}

void rc_peer_is_down(struct rref_ctx *ctx, struct rc_peer *p, int status)
{
	rc_assert_locked(ctx);
	/* An end that this worker makes is no news. Neither is the end of others that leave with
	 * it. */
	if (status == -ESHUTDOWN || (p->said_goodbye && at_load(&ctx->state) != RC_CTX_RUNNING))
		return;
	rc_loop_wake(ctx);
	if (!ctx->session.peer_down)
		return;
	p->down.nr++;
	p->down.err = p->said_goodbye ? 0 : status;
	snprintf(p->down.text, sizeof(p->down.text), "%s", p->why);
	if (p->down.queued)
		return;
	p->down.queued = true;
	p->down.hook.run = down_run;
	rc_hook_push(ctx, &p->down.hook);
}
