/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending control messages. Straight out when the session is up and the provider has a credit; else into the peer's
 * queue, which is flushed when the connection comes up or WRITABLE says so. Messages to oneself go through a queue
 * too, never by recursion. Sequence number and epoch are put in when a message really goes out.
 *
 * Callers wait when a queue is long (call.c). What answers the peer's own messages cannot wait: not to read on from a
 * peer that does not take its answers would stop two busy peers for good. So a queue has a bound beyond all that a
 * peer which is merely stopped gathers (some three million deletes), and at it the session ends.
 *
 * A send that fails while the connection stands (no buffer, a device that is short of something) is tried again, later
 * and later, by the timers of whoever makes progress. Those behind it wait, so that the order stays. When it has failed
 * TRIES_MAX times, a call is over with that error, and what it shared is taken back: the callee never heard of it. So is
 * a question for a type.
 * Of any other message nobody here can tell what its loss would mean; the session ends, which puts both sides right.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "rc.h"
#include "rc_inject.h"

#define QUEUE_BYTES ((size_t)256 << 20) /* to one peer */
#define TRIES_MAX 10u                     /* about 0.85 s in all */
#define RETRY_FIRST_NS (2 * NSEC_PER_MSEC)
#define RETRY_LAST_NS (200 * NSEC_PER_MSEC)

int rc_send_open(struct rref_ctx *ctx)
{
	return rc_inject_open(ctx);
}

void rc_send_close(struct rref_ctx *ctx)
{
	rc_inject_close(ctx);
}

struct rc_outgoing *rc_outgoing_make(const void *bytes, uint32_t length)
{
	struct rc_outgoing *o = malloc(sizeof(*o) + length);

	if (!o)
		return NULL;
	list_init(&o->node);
	o->length = length;
	o->tries = 0;
	memcpy(o->bytes, bytes, length);
	return o;
}

/* One encoded message to a session that is up. 0 or -errno (-EAGAIN: no credit). */
static int transmit(struct rref_ctx *ctx, struct rc_peer *p, void *bytes, uint32_t length)
{
	int err = rc_inject_fails(ctx, p->rank, bytes, length);

	rw_set_seq(bytes, p->send_seq + 1, p->epoch);
	if (!err)
		err = p->ops->send(p->link, bytes, length);
	if (!err) {
		p->send_seq++;
		rc_count_sent(ctx, p, bytes, length);
	}
	return err;
}

/* The connection stands, and still the device did not take it: that may pass. */
static bool may_pass(int err)
{
	return err && err != -EAGAIN && err != -ENOTCONN && err != -EMSGSIZE;
}

/* The head of the queue failed for the tries-th time: when it is tried again. */
static void back_off(struct rref_ctx *ctx, struct rc_peer *p, uint32_t tries)
{
	int64_t wait = min_of(RETRY_FIRST_NS << (tries - 1), RETRY_LAST_NS);

	/* Half of it to one and a half: peers that failed together do not come back together. */
	wait = wait / 2 + (int64_t)(rc_random64() % (uint64_t)wait);
	p->resend_at = now_ns() + wait;
	if (p->resend_at < ctx->wake_at)
		rc_kick(ctx);
}

static int enqueue(struct rref_ctx *ctx, struct rc_peer *p, const void *bytes, uint32_t length, bool first, uint32_t tries)
{
	struct rc_outgoing *o;

	if (p->queued_bytes + sizeof(*o) + length > QUEUE_BYTES) {
		at_add(&ctx->n.rejected, 1);
		rc_peer_fence(ctx, p, -EOWNERDEAD, "it does not take its messages, and too many wait for it");
		return rc_fail(EOWNERDEAD, "%s (rank %u) cannot be reached: %s", p->member->name, p->rank, p->why);
	}
	o = rc_outgoing_make(bytes, length);
	if (!o)
		return rc_fail(ENOMEM, "memory for a message");
	o->tries = tries;
	/* Before p->queue.next is at the head. */
	list_add_tail(first ? p->queue.next : &p->queue, &o->node);
	p->nr_queued++;
	p->queued_bytes += sizeof(*o) + length;
	if (tries)
		back_off(ctx, p, tries);
	return 0;
}

int rc_send_encoded(struct rref_ctx *ctx, uint32_t to, void *bytes, uint32_t length)
{
	struct rc_peer *p = &ctx->peers[to];
	/* The proof and its answer go before everything else: they bring the session up. */
	bool first = *(const uint8_t *)bytes == RW_AUTH;
	int err;

	if (to == ctx->rank) {
		struct rc_outgoing *o = rc_outgoing_make(bytes, length);

		if (!o)
			return rc_fail(ENOMEM, "memory for a message");
		list_add_tail(&ctx->self_queue, &o->node);
		rc_count_sent(ctx, p, bytes, length);
		rc_kick(ctx);
		return 0;
	}
	err = rc_peer_want(ctx, p);
	if (err)
		return err;
	err = -EAGAIN;
	if (p->link && (first || (p->state == RC_PEER_UP && list_empty(&p->queue))))
		err = transmit(ctx, p, bytes, length);
	if (!err)
		return 0;
	if (err == -EMSGSIZE)
		return rc_fail(-err, "sending to %s: %s", p->member->name, rv_error_text());
	return enqueue(ctx, p, bytes, length, first, may_pass(err));
}

int rc_send(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m)
{
	uint8_t buf[RV_MSG_MAX];
	int length = rw_encode(m, buf, sizeof(buf)), err;

	if (length < 0)
		return rc_fail(-length, "a message of type %s does not fit %u bytes", rw_type_name(m->frame.type), RV_MSG_MAX);
	err = rc_peer_want(ctx, &ctx->peers[to]);
	if (err)
		return err;
	if (unlikely(ctx->inject) && rc_inject_takes(ctx, to, buf, (uint32_t)length))
		return 0;
	return rc_send_encoded(ctx, to, buf, (uint32_t)length);
}

static void take_out(struct rc_peer *p, struct rc_outgoing *o)
{
	list_del(&o->node);
	p->nr_queued--;
	p->queued_bytes -= sizeof(*o) + o->length;
}

/* The head of the queue, which is o, cannot be sent. */
static void give_up(struct rref_ctx *ctx, struct rc_peer *p, struct rc_outgoing *o, int err)
{
	struct rw_message m;
	char why[RP_TEXT_MAX];

	if (rw_decode(o->bytes, o->length, ctx->world, &m))
		m.frame.type = 0;
	if (m.frame.type == RW_CALL) {
		snprintf(why, sizeof(why), "the call could not be sent to %.80s: %.50s, %u times", p->member->name,
			 rref_strerror(err), o->tries);
		take_out(p, o);
		rc_call_unsent(ctx, p->rank, &m.u.call, err, why);
		free(o);
		return;
	}
	if (m.frame.type == RW_TYPE_QUERY) {
		snprintf(why, sizeof(why), "the question for a type could not be sent to %.80s: %.50s, %u times", p->member->name,
			 rref_strerror(err), o->tries);
		take_out(p, o);
		rc_type_unsent(ctx, &m.u.type, err, why);
		free(o);
		return;
	}
	snprintf(why, sizeof(why), "a message to it could not be sent: %.60s, %u times", rref_strerror(err), o->tries);
	rc_peer_fence(ctx, p, -EOWNERDEAD, why);
}

void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p)
{
	if (p->resend_at && now_ns() < p->resend_at)
		return;
	p->resend_at = 0;
	while (p->state == RC_PEER_UP && p->link && !list_empty(&p->queue)) {
		struct rc_outgoing *o = container_of(p->queue.next, struct rc_outgoing, node);
		int err;

		if (o->tries)
			at_add(&ctx->n.retries, 1);
		err = transmit(ctx, p, o->bytes, o->length);
		if (may_pass(err)) {
			if (++o->tries < TRIES_MAX) {
				back_off(ctx, p, o->tries);
				return;
			}
			give_up(ctx, p, o, err);
			continue;
		}
		if (err)
			return; /* WRITABLE or DISCONNECTED follows */
		take_out(p, o);
		free(o);
	}
}

void rc_send_tick(struct rref_ctx *ctx, int64_t now)
{
	for (uint32_t i = 0; i < ctx->world; i++)
		if (ctx->peers[i].resend_at && now >= ctx->peers[i].resend_at)
			rc_send_flush(ctx, &ctx->peers[i]);
	rc_inject_tick(ctx, now);
}

int64_t rc_send_due(const struct rref_ctx *ctx)
{
	int64_t due = rc_inject_due(ctx);

	for (uint32_t i = 0; i < ctx->world; i++)
		if (ctx->peers[i].resend_at)
			due = min_of(due, ctx->peers[i].resend_at);
	return due;
}

void rc_send_drop_queue(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct list *n;

	while ((n = list_pop(&p->queue)))
		free(container_of(n, struct rc_outgoing, node));
	p->nr_queued = 0;
	p->queued_bytes = 0;
	p->resend_at = 0;
	rc_inject_forget(ctx, p->rank);
}
