/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending control messages. Straight out when the session is up and the provider has a credit; else into the peer's
 * queue, which is flushed when the connection comes up or WRITABLE says so. Messages to oneself go through a queue
 * too, never by recursion. Sequence number and epoch are put in when a message really goes out.
 *
 * Callers wait when a queue is long (call.c). What answers the peer's own messages cannot wait: not to read on from a
 * peer that does not take its answers would stop two busy peers for good. So a queue has a bound beyond all that a
 * peer which is merely stopped gathers (some three million deletes), and at it the session ends.
 */
#include <errno.h>
#include <stdlib.h>

#include "rc.h"

#define QUEUE_BYTES ((size_t)256 << 20) /* to one peer */

static struct rc_outgoing *wrap(const void *bytes, int length)
{
	struct rc_outgoing *o = malloc(sizeof(*o) + (size_t)length);

	if (!o)
		return NULL;
	list_init(&o->node);
	o->length = (uint32_t)length;
	memcpy(o->bytes, bytes, (size_t)length);
	return o;
}

/* One encoded message to a session that is up. 0 or -errno (-EAGAIN: no credit). */
static int transmit(struct rref_ctx *ctx, struct rc_peer *p, void *bytes, uint32_t length)
{
	int err;

	rw_set_seq(bytes, p->send_seq + 1, p->epoch);
	err = p->ops->send(p->link, bytes, length);
	if (!err) {
		p->send_seq++;
		at_add(&ctx->n.sent, 1);
	}
	return err;
}

int rc_send(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m)
{
	struct rc_peer *p = &ctx->peers[to];
	uint8_t buf[RV_MSG_MAX];
	struct rc_outgoing *o;
	int length = rw_encode(m, buf, sizeof(buf)), err;

	if (length < 0)
		return rc_fail(-length, "a message of type %s does not fit %u bytes", rw_type_name(m->frame.type), RV_MSG_MAX);
	if (to == ctx->rank) {
		o = wrap(buf, length);
		if (!o)
			return rc_fail(ENOMEM, "memory for a message");
		list_add_tail(&ctx->self_queue, &o->node);
		at_add(&ctx->n.sent, 1);
		rc_kick(ctx);
		return 0;
	}
	err = rc_peer_want(ctx, p);
	if (err)
		return err;
	/* The proof and its answer go before everything else: they bring the session up. */
	if (p->link && (m->frame.type == RW_AUTH || (p->state == RC_PEER_UP && list_empty(&p->queue)))) {
		err = transmit(ctx, p, buf, (uint32_t)length);
		if (!err)
			return 0;
		if (err != -EAGAIN && err != -ENOTCONN)
			return rc_fail(-err, "sending to %s: %s", p->member->name, rv_error_text());
	}
	if (p->queued_bytes + sizeof(*o) + (size_t)length > QUEUE_BYTES) {
		at_add(&ctx->n.rejected, 1);
		rc_peer_fence(ctx, p, -EOWNERDEAD, "it does not take its messages, and too many wait for it");
		return rc_fail(EOWNERDEAD, "%s (rank %u) cannot be reached: %s", p->member->name, p->rank, p->why);
	}
	o = wrap(buf, length);
	if (!o)
		return rc_fail(ENOMEM, "memory for a message");
	list_add_tail(&p->queue, &o->node);
	p->nr_queued++;
	p->queued_bytes += sizeof(*o) + (size_t)length;
	return 0;
}

void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p)
{
	while (p->state == RC_PEER_UP && p->link && !list_empty(&p->queue)) {
		struct rc_outgoing *o = container_of(p->queue.next, struct rc_outgoing, node);

		if (transmit(ctx, p, o->bytes, o->length))
			return; /* WRITABLE or DISCONNECTED follows */
		list_del(&o->node);
		p->nr_queued--;
		p->queued_bytes -= sizeof(*o) + o->length;
		free(o);
	}
}

void rc_send_drop_queue(struct rc_peer *p)
{
	struct list *n;

	while ((n = list_pop(&p->queue)))
		free(container_of(n, struct rc_outgoing, node));
	p->nr_queued = 0;
	p->queued_bytes = 0;
}
