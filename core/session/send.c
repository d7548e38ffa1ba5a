/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending control messages. A message goes straight out when the session is up and the provider has
 * a credit. Else it waits in the peer's queue, flushed when the connection comes up or WRITABLE
 * says so. Messages to oneself go through a queue too, never by recursion. Sequence number and
 * epoch are put in when a message really goes out.
 *
 * A message that went out is kept until the peer says that it came. The ack of each message says
 * so, or RECEIVED when the peer has nothing to say. When the connection breaks and the session does
 * not, messages that the peer has not got are sent again. They keep their numbers and go before
 * anything new. At most WINDOW messages are out; the rest wait in the queue.
 *
 * Callers wait when a queue is long (call.c). Answers to the peer's own messages cannot wait. Else
 * two busy peers that do not take their answers would stop each other for good. So a queue has a
 * bound, at which the session ends. A peer that is merely stopped stays below it (some three
 * million deletes).
 *
 * A send may fail while the connection stands (no buffer, a device that is short of something). It
 * is tried again, later and later, by the timers of the thread that makes progress. Later messages
 * wait, so that the order stays. After TRIES_MAX failures a call ends with that error. The
 * references that it shared are taken back: the callee never heard of it. A question for a type
 * ends so too. The loss of any other message may mean anything, so the session ends, which puts
 * both sides right.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/fast.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/ctx.h"
#include "core/session/inject.h"
#include "core/session/internal.h"
#include "core/session/session.h"

#define QUEUE_BYTES ((size_t)256 << 20) /* bound of the queue to one peer */
#define TRIES_MAX 10u                     /* tries take about 0.85 s in all */
#define WINDOW 1024u                      /* messages sent and not acknowledged */
#define SPARES 64u                        /* small messages that are kept for the next */
#define RESERVE 32u /* spares kept for the time when there is no memory */
#define RETRY_FIRST_NS (2 * NSEC_PER_MSEC)
#define RETRY_LAST_NS (200 * NSEC_PER_MSEC)

static void free_all(struct list *head)
{
	struct list *n;

	while ((n = list_pop(head)))
		free(container_of(n, struct rc_outgoing, node));
}

is_alone void rc_send_close(struct rref_ctx *ctx)
{
	rc_inject_close(ctx);
	if (ctx->session.spare_messages.next)
		free_all(&ctx->session.spare_messages);
}

_Static_assert(RV_MSG_MAX <= UINT16_MAX, "room for any message can be told");

/* Makes a message whose length is not set yet. */
static struct rc_outgoing *send_make(uint32_t room)
{
	struct rc_outgoing *o = malloc(sizeof(*o) + room);

	if (!o)
		return NULL;
	list_init(&o->node);
	o->room = (uint16_t)room;
	o->tries = 0;
	return o;
}

static needs_lock void keep_spare(struct rref_ctx *ctx, struct rc_outgoing *o)
{
	rb_assert_is(o->room, ==, RC_SMALL_MESSAGE);
	ctx->session.nr_spare_messages++;
	list_add(&ctx->session.spare_messages, &o->node);
}

/* Fills the reserve: without memory a worker must still send refusals and other vital messages. */
is_alone int rc_send_open(struct rref_ctx *ctx)
{
	list_init(&ctx->session.spare_messages);
	for (unsigned i = 0; i < RESERVE; i++) {
		struct rc_outgoing *o = send_make(RC_SMALL_MESSAGE);

		if (!o)
			return rc_fail(ENOMEM, "memory for %u messages", RESERVE);
		keep_spare(ctx, o);
	}
	return rc_inject_open(ctx);
}

/* Makes a small message that is in no list. */
static inline needs_lock struct rc_outgoing *make_small(struct rref_ctx *ctx)
{
	struct rc_outgoing *o;

	if (unlikely(ctx->session.nr_spare_messages <= RESERVE) &&
	    ((o = send_make(RC_SMALL_MESSAGE)) || list_empty(&ctx->session.spare_messages)))
		return o;
	rb_assert(ctx->session.nr_spare_messages && !list_empty(&ctx->session.spare_messages));
	ctx->session.nr_spare_messages--;
	o = container_of(list_take(&ctx->session.spare_messages), struct rc_outgoing, node);
	o->tries = 0;
	return o;
}

struct rc_outgoing *rc_outgoing_make(const void *bytes, uint32_t length)
{
	struct rc_outgoing *o = send_make(length);

	if (!o)
		return NULL;
	o->length = length;
	memcpy(o->bytes, bytes, length);
	return o;
}

/* Frees or keeps a message. The spare that came last is used first: it is in the cache. */
static inline needs_lock void send_finished(struct rref_ctx *ctx, struct rc_outgoing *o)
{
	if (unlikely(o->room != RC_SMALL_MESSAGE ||
		     ctx->session.nr_spare_messages >= (RB_FAST(true) ? SPARES : RESERVE))) {
		free(o);
		return;
	}
	keep_spare(ctx, o);
}

void rc_outgoing_finished(struct rref_ctx *ctx, struct rc_outgoing *o)
{
	rc_assert_locked(ctx);
	send_finished(ctx, o);
}

/* Tells whether messages go over the peer's connection now. */
static needs_lock bool is_open(const struct rc_peer *p)
{
	return p->state == RC_PEER_UP;
}

/* Tells whether this message may go out now. The proof may go before there is a session. */
static needs_lock bool may_go(const struct rc_peer *p, const struct rc_outgoing *o)
{
	return is_open(p) || (p->state == RC_PEER_PROVING && *o->bytes == RW_AUTH);
}

/* Posts a message that has its number. Returns 0 or -errno (-EAGAIN: no credit). */
static inline needs_lock int send_post(struct rref_ctx *ctx, struct rc_peer *p,
				       struct rc_outgoing *o)
{
	int err = rc_inject_fails(ctx, p->rank, o->bytes, o->length);

	rw_set_ack(o->bytes, (uint32_t)p->recv_seq);
	if (!err)
		err = p->ops->send(p->link, o->bytes, o->length);
	if (!err) {
		p->unacked.owed = 0;
		list_add_tail(&p->unacked.sent, &o->node);
		rc_count_sent(ctx, p, o->bytes, o->length);
	}
	return err;
}

/*
 * Sends a message that is in no list. Returns 0 if it is now with the messages that are not
 * acknowledged. On -errno the caller keeps it.
 */
static inline needs_lock int transmit(struct rref_ctx *ctx, struct rc_peer *p,
				      struct rc_outgoing *o)
{
	int err;

	rb_assert_with(o->length >= RW_FRAME_BYTES && o->length <= o->room, "%u of %u", o->length,
		       o->room);
	/* Each number from the first on that is not acknowledged stands for a message kept. */
	rb_assert_is(p->unacked.acked + p->unacked.nr, ==, p->send_seq);
	if (unlikely(p->unacked.nr >= WINDOW))
		return -EAGAIN;
	rw_set_seq(o->bytes, p->send_seq + 1, p->epoch);
	err = send_post(ctx, p, o);
	if (!err) {
		p->send_seq++;
		p->unacked.nr++;
	}
	return err;
}

/* Tells whether an error may pass: the device failed while the connection stands. */
static bool may_pass(int err)
{
	return err && err != -EAGAIN && err != -ENOTCONN && err != -EMSGSIZE;
}

/* Sets the time of the next try after the head of the queue failed for the tries-th time. */
static needs_lock void back_off(struct rref_ctx *ctx, struct rc_peer *p, uint32_t tries)
{
	int64_t wait = min_of(RETRY_FIRST_NS << (tries - 1), RETRY_LAST_NS);

	/* Waits for 0.5 to 1.5 times the time: peers that failed together come back apart. */
	wait = wait / 2 + (int64_t)(rb_random64() % (uint64_t)wait);
	p->resend_at = now_ns() + wait;
	rc_peer_watch(ctx, p);
	if (p->resend_at < ctx->sleep.wake_at)
		rc_kick(ctx);
}

/*
 * Copies a message that may queue for long into a block of its exact size. Keeps the larger block
 * if there is no memory.
 */
static needs_lock struct rc_outgoing *fitted(struct rref_ctx *ctx, struct rc_outgoing *o)
{
	struct rc_outgoing *tight = o->room > o->length ? rc_outgoing_make(o->bytes, o->length)
							: NULL;

	if (!tight)
		return o;
	rc_outgoing_finished(ctx, o);
	return tight;
}

/* Consumes o. */
static needs_lock int enqueue(struct rref_ctx *ctx, struct rc_peer *p, struct rc_outgoing *o,
			      bool first, uint16_t tries)
{
	o = fitted(ctx, o);
	if (p->queued_bytes + sizeof(*o) + o->length > QUEUE_BYTES) {
		free(o);
		at_add(&ctx->n.rejected, !rc_state_ends(p->state));
		rc_session_end(ctx, p, -EOWNERDEAD,
			       "it does not take its messages, and too many wait for it");
		return rc_fail(EOWNERDEAD, "%s (rank %u) cannot be reached: %s", p->member->name,
			       p->rank, p->why);
	}
	rb_assert(list_empty(&p->queue) == !p->queued_bytes);
	rb_assert_if(p->queued_bytes, p->nr_queued); /* the injector counts messages here too */
	o->tries = tries;
	/* p->queue.next is the head: an entry before it goes first. */
	list_add_tail(first ? p->queue.next : &p->queue, &o->node);
	p->nr_queued++;
	p->queued_bytes += sizeof(*o) + o->length;
	if (tries)
		back_off(ctx, p, tries);
	return 0;
}

/* Tells whether a message goes out at once: no other has to go before it. */
static inline needs_lock bool is_clear(const struct rc_peer *p)
{
	return is_open(p) && list_empty(&p->queue) && list_empty(&p->unacked.again);
}

/* Queues o, which could not go out at once. Consumes o. */
static __attribute__((noinline)) needs_lock int send_later(struct rref_ctx *ctx, struct rc_peer *p,
							   struct rc_outgoing *o, int err)
{
	/* The proof and its answer go before everything else: they bring the session up. */
	bool first = *o->bytes == RW_AUTH;

	if (p->rank == ctx->rank) {
		list_add_tail(&ctx->session.self_queue, &o->node);
		rc_count_sent(ctx, p, o->bytes, o->length);
		rc_kick(ctx);
		return 0;
	}
	if (first && err == -EAGAIN && may_go(p, o))
		err = transmit(ctx, p, o);
	if (!err)
		return 0;
	if (err == -EMSGSIZE) {
		free(o);
		return rc_fail(-err, "sending to %s: %s", p->member->name, rv_error_text());
	}
	return enqueue(ctx, p, o, first, may_pass(err));
}

/* Sends a whole message to a peer that is there or on the way; clear: see is_clear. Consumes o. */
static inline needs_lock int send_one(struct rref_ctx *ctx, struct rc_peer *p,
				      struct rc_outgoing *o, bool clear)
{
	int err = likely(clear) ? transmit(ctx, p, o) : -EAGAIN;

	return likely(!err) ? 0 : send_later(ctx, p, o, err);
}

int rc_send_encoded(struct rref_ctx *ctx, uint32_t to, void *bytes, uint32_t length)
{
	struct rc_peer *p = &ctx->peers[to];
	struct rc_outgoing *o;
	int err = rc_peer_want(ctx, p);

	rc_assert_locked(ctx);
	if (err)
		return err;
	o = rc_outgoing_make(bytes, length);
	return o ? send_one(ctx, p, o, is_clear(p)) : rc_fail(ENOMEM, "memory for a message");
}

/* Encodes a message that does not fit a small message's room. */
static struct rc_outgoing *encode_large(const struct rw_message *m, int *err)
{
	uint8_t buf[RV_MSG_MAX];
	struct rc_outgoing *o;
	int length = rw_encode(m, buf, sizeof(buf));

	if (length < 0) {
		*err = rc_fail(-length, "a message of type %s does not fit %u bytes",
			       rw_type_name(m->frame.type), RV_MSG_MAX);
		return NULL;
	}
	o = rc_outgoing_make(buf, (uint32_t)length);
	if (!o)
		*err = rc_fail(ENOMEM, "memory for a message");
	return o;
}

/* Sends a message. A session that is up and has no queue needs no request for it. */
int rc_send(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m)
{
	struct rc_peer *p = &ctx->peers[to];
	bool clear = is_clear(p);
	int length, err = likely(clear) ? 0 : rc_peer_want(ctx, p);
	struct rc_outgoing *o;

	rc_assert_locked(ctx);
	if (unlikely(err))
		return err;
	o = make_small(ctx);
	if (unlikely(!o))
		return rc_fail(ENOMEM, "memory for a message");
	length = rw_encode(m, o->bytes, RC_SMALL_MESSAGE);
	if (likely(length > 0)) {
		o->length = (uint32_t)length;
	} else {
		send_finished(ctx, o);
		o = encode_large(m, &err);
		if (!o)
			return err;
	}
	if (unlikely(ctx->session.inject) &&
	    (err = rc_inject_takes(ctx, to, o->bytes, o->length))) {
		send_finished(ctx, o);
		return min_of(err, 0);
	}
	return send_one(ctx, p, o, clear);
}

/*
 * Sends a message that others wait for or rely on. A peer that cannot be told is dead, or its
 * session ends. The fence then cleans up all that hangs on it, on both sides.
 */
void rc_send_or_end(struct rref_ctx *ctx, uint32_t to, const struct rw_message *m)
{
	struct rc_error scratch;

	rc_assert_locked(ctx);
	rc_error_aside(&scratch);
	int err = rc_send(ctx, to, m);

	if (err)
		rc_log(ctx, RREF_LOG_DEBUG, "not told to rank %u: %s", to, rc_error_text());
	if (err && err != -EOWNERDEAD)
		rc_session_end(ctx, &ctx->peers[to], -EOWNERDEAD,
			       "a message to it was lost for want of memory");
	rc_error_back(&scratch);
}

static needs_lock void take_out(struct rc_peer *p, struct rc_outgoing *o)
{
	rb_assert_with(p->nr_queued > 0 && p->queued_bytes >= sizeof(*o) + o->length,
		       "%llu bytes of %llu", (unsigned long long)p->nr_queued,
		       (unsigned long long)p->queued_bytes);
	list_del(&o->node);
	p->nr_queued--;
	p->queued_bytes -= sizeof(*o) + o->length;
}

static needs_lock void put_back(struct rc_peer *p, struct rc_outgoing *o)
{
	list_add_tail(p->queue.next, &o->node);
	p->nr_queued++;
	p->queued_bytes += sizeof(*o) + o->length;
}

/* Ends the operation or the session of o, the head of the queue, which cannot be sent. */
static needs_lock void give_up(struct rref_ctx *ctx, struct rc_peer *p, struct rc_outgoing *o,
			       int err)
{
	struct rw_message m;
	char why[RP_TEXT_MAX];

	/* A message that is sent again has a number, which would be missing. */
	if (!list_empty(&p->unacked.again) || rw_decode(o->bytes, o->length, ctx->world, &m))
		m.frame.type = 0;
	if (m.frame.type == RW_CALL || m.frame.type == RW_TYPE_QUERY) {
		snprintf(why, sizeof(why), "%s could not be sent to %.80s: %.50s, %u times",
			 m.frame.type == RW_CALL ? "the call" : "the question for a type",
			 p->member->name, rref_strerror(err), o->tries);
		take_out(p, o);
		ctx->session.events->unsent(ctx, p, &m, err, why);
		free(o);
		return;
	}
	snprintf(why, sizeof(why), "a message to it could not be sent: %.60s, %u times",
		 rref_strerror(err), o->tries);
	rc_session_end(ctx, p, -EOWNERDEAD, why);
}

bool rc_send_withdraw(struct rref_ctx *ctx, struct rc_peer *p, uint64_t call_id)
{
	struct list *l, *next;
	struct rw_message m;

	rc_assert_locked(ctx);
	list_for_each_safe(l, next, &p->queue) {
		struct rc_outgoing *o = container_of(l, struct rc_outgoing, node);

		if (rw_decode(o->bytes, o->length, ctx->world, &m) || m.frame.type != RW_CALL ||
		    m.u.call.call_id != call_id)
			continue;
		take_out(p, o);
		ctx->session.events->unsent(ctx, p, &m, -ECANCELED, "it was never sent");
		free(o);
		return true;
	}
	return false;
}

void rc_send_flush(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (is_open(p) && p->unacked.owed >= RC_ACK_EVERY)
		rc_send_received(ctx, p, NULL);
	if (p->resend_at && now_ns() < p->resend_at)
		return;
	p->resend_at = 0;
	for (;;) {
		bool again = !list_empty(&p->unacked.again);
		struct list *from = again ? &p->unacked.again : &p->queue;
		struct rc_outgoing *o = container_of(from->next, struct rc_outgoing, node);
		int err;

		if (list_empty(from) || !may_go(p, o) || (!again && p->unacked.nr >= WINDOW))
			return; /* an acknowledgement lets the queue go on */
		if (o->tries)
			at_add(&ctx->n.retries, 1);
		if (again) {
			list_del(&o->node);
			err = send_post(ctx, p, o);
			ctx->n.sent_again += !err;
			/* back to the head of the list */
			if (err)
				list_add_tail(p->unacked.again.next, &o->node);
		} else {
			take_out(p, o);
			err = transmit(ctx, p, o);
			if (err)
				put_back(p, o);
		}
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
	}
}

void rc_send_tick(struct rref_ctx *ctx, int64_t now)
{
	struct list *l, *tmp;

	rc_assert_locked(ctx);
	list_for_each_safe(l, tmp, &ctx->session.watched) {
		struct rc_peer *p = container_of(l, struct rc_peer, watched);

		if (p->resend_at && now >= p->resend_at)
			rc_send_flush(ctx, p);
	}
	rc_inject_tick(ctx, now);
}

int64_t rc_send_due(const struct rref_ctx *ctx)
{
	int64_t due = rc_inject_due(ctx);
	struct list *l, *tmp;

	rc_assert_locked(ctx);
	list_for_each_safe(l, tmp, &ctx->session.watched) {
		const struct rc_peer *p = container_of(l, struct rc_peer, watched);

		if (p->resend_at)
			due = min_of(due, p->resend_at);
	}
	return due;
}

static needs_lock void drop_unacked(struct rc_peer *p)
{
	free_all(&p->unacked.sent);
	free_all(&p->unacked.again);
	p->unacked.acked = 0;
	p->unacked.nr = p->unacked.owed = 0;
	p->resend_at = 0;
}

void rc_send_drop_queue(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	rc_inject_forget(ctx, p->rank);
	free_all(&p->queue);
	p->nr_queued = 0;
	p->queued_bytes = 0;
	drop_unacked(p);
}

void rc_send_unproved(struct rc_peer *p)
{
	struct rc_outgoing *o = container_of(p->queue.next, struct rc_outgoing, node);

	if (!list_empty(&p->queue) && *o->bytes == RW_AUTH) {
		take_out(p, o);
		free(o);
	}
	p->send_seq = p->recv_seq = 0;
	drop_unacked(p);
}

/* ---- acknowledgements ---- */

/* Ends the next n messages: the peer has them. */
static inline needs_lock void forget(struct rref_ctx *ctx, struct rc_peer *p, uint32_t n)
{
	rb_assert_is(n, <=, p->unacked.nr);
	rb_assert_is(p->unacked.acked + p->unacked.nr, ==, p->send_seq);
	p->unacked.acked += n;
	p->unacked.nr -= n;
	for (; n; n--) {
		struct list *from = likely(!list_empty(&p->unacked.sent)) ? &p->unacked.sent
									  : &p->unacked.again;

		rb_assert(!list_empty(from));
		send_finished(ctx, container_of(list_take(from), struct rc_outgoing, node));
	}
}

/* Forgets the messages up to ack. sent and again hold the nr messages acked + 1 .. send_seq. */
int rc_send_acked(struct rref_ctx *ctx, struct rc_peer *p, uint32_t ack)
{
	rc_assert_locked(ctx);
	/* modulo 2^32: far fewer messages are ever out */
	int32_t n = (int32_t)(ack - (uint32_t)p->unacked.acked);

	if (n > (int32_t)p->unacked.nr)
		return -EPROTO;
	if (n > 0) /* an older number says nothing new */
		forget(ctx, p, (uint32_t)n);
	return 0;
}

void rc_send_again(struct rc_peer *p)
{
	struct list *l;

	/* Goes from the back: messages in sent go before messages that already wait. */
	while (!list_empty(&p->unacked.sent)) {
		l = p->unacked.sent.prev;
		list_del(l);
		container_of(l, struct rc_outgoing, node)->tries = 0;
		list_add_tail(p->unacked.again.next, l);
	}
}

int rc_send_resume(struct rref_ctx *ctx, struct rc_peer *p, uint64_t received)
{
	rc_assert_locked(ctx);
	if (received < p->unacked.acked || received > p->send_seq)
		return -EPROTO; /* else fewer than WINDOW messages */
	ctx->n.not_again += received - p->unacked.acked;
	forget(ctx, p, (uint32_t)(received - p->unacked.acked));
	return 0;
}

void rc_send_more(struct rref_ctx *ctx, struct rc_peer *p)
{
	rc_assert_locked(ctx);
	if (is_open(p) && (p->unacked.owed >= RC_ACK_EVERY ||
			   (p->nr_queued && p->unacked.nr < WINDOW && !p->resend_at)))
		rc_send_flush(ctx, p);
}
