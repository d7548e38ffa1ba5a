/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads in pieces: of values and ranges that no single READ brings, over hardware.
 *
 * The limit is on the bytes that all of them have in flight together over one connection. A slow
 * link has to deliver them within an ACK time-out. Otherwise they are asked for again and again,
 * until the link carries nothing but repetitions. That was seen between two emulated hosts with 8
 * MiB in flight. A small read posted behind them waits for all of it, too.
 *
 * So a connection has room for ROOM bytes. That is several times what a 100 Gb/s fabric holds in a
 * round trip. It is some 100 us of such a link. One read at a time has its turn, for TURN bytes or
 * a little more. Then it goes behind the others. So values of that size come one after the other,
 * not all at the end. And no larger value holds them up. A turn is posted with one doorbell for
 * LEAST bytes or more, once there is room for so much.
 *
 * Some payloads and ranges are one message, with a READ of its own for the header. They need no
 * turn and take no room, as single READs.
 *
 * Pieces of two connections are never mixed. A header vouches only for bytes that came before it on
 * its own connection. When a connection ends, its reads begin again, once their pieces in flight
 * have come back.
 */
#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"

#define TURN (UINT64_C(1) << 20)
#define ROOM (TURN + RC_PIECE_MAX) /* a turn and its header */
#define LEAST (3 * RC_PIECE_MAX)
#define POST_MAX 16u /* pieces; devices whose messages are short post more often */

unsigned rc_split_build(struct rref_future *f, uint64_t max_msg, struct rv_read *r, unsigned max)
{
	enum rv_kind kind = f->ctx->peers[f->peer].kind;
	uint64_t token = rc_op_token(f);
	bool wrapped = rp_is_wrapped(&f->loc);
	uint64_t data = wrapped ? f->loc.data_addr : f->loc.addr + RC_HEADER_BYTES;
	uint32_t data_rkey = wrapped ? f->loc.data_rkey[kind] : f->loc.rkey[kind];
	unsigned n = 0;

	if (rc_read_is_single(f, max_msg) && !f->header_asked) {
		r[0] = (struct rv_read){
			.cookie = token, .addr = f->loc.addr, .rkey = f->loc.rkey[kind], .nr_sge = 1
		};
		r[0].sge[0] = rc_landing_piece(f->landing, f->length, kind);
		f->header_asked = true;
		f->next = f->length;
		return 1;
	}
	while (n < max && f->next < f->length) {
		uint32_t piece = (uint32_t)min_of(f->length - f->next,
						  min_of(max_msg, UINT64_C(1) << 30));

		r[n] = (struct rv_read){ .cookie = token,
					 .addr = data + f->offset + f->next,
					 .rkey = data_rkey,
					 .nr_sge = 1 };
		r[n++].sge[0] = (struct rv_sge){ (char *)(f->landing + 1) + f->next, piece,
						 f->landing->lkey[kind] };
		f->next += piece;
	}
	if (n < max && !f->header_asked && f->next == f->length) {
		r[n] = (struct rv_read){
			.cookie = token, .addr = f->loc.addr, .rkey = f->loc.rkey[kind], .nr_sge = 1
		};
		r[n++].sge[0] = rc_landing_piece(f->landing, 0, kind);
		f->header_asked = true;
	}
	return n;
}

void rc_split_unbuild(struct rref_future *f, const struct rv_read *r, unsigned from, unsigned n)
{
	for (unsigned i = n; i-- > from;) {
		if (r[i].sge[0].addr == (void *)&f->landing->header) {
			f->header_asked = false;
			if (r[i].sge[0].length > RC_HEADER_BYTES)
				f->next = 0;
		} else {
			f->next -= r[i].sge[0].length;
		}
	}
}

static bool is_short(const struct rref_future *f, const struct rc_peer *p)
{
	return f->length <= p->max_msg;
}

static needs_lock uint64_t split_room(const struct rc_split *q)
{
	return q->bytes < ROOM ? ROOM - q->bytes : 0;
}

static needs_lock bool split_has_room(const struct rref_future *f, const struct rc_peer *p)
{
	uint64_t left = f->length - f->next + (f->header_asked ? 0 : RC_HEADER_BYTES);

	return is_short(f, p) || split_room(&p->pieces) >= min_of(left, LEAST);
}

static needs_lock void split_put(struct rc_split *q, struct rref_future *f, bool first)
{
	if (first)
		list_add(&q->reads, &f->node);
	else
		list_add_tail(&q->reads, &f->node);
	q->nr_reads++;
}

static needs_lock void split_take(struct rc_split *q, struct rref_future *f)
{
	list_del(&f->node);
	q->nr_reads--;
}

/* Posts all pieces for which there is room, at least one. The rest waits. Returns as post_reads. */
static needs_lock int split_post(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	struct rc_split *q = &p->pieces;
	struct rv_read r[POST_MAX];
	uint64_t turns = f->next / TURN,
		 max = is_short(f, p) ? 2 : max_of(split_room(q) / p->max_msg, UINT64_C(1));
	unsigned n = rc_split_build(f, p->max_msg, r, (unsigned)min_of(max, (uint64_t)POST_MAX));
	int posted = p->ops->post_reads(conn, r, n);

	rc_split_unbuild(f, r, (unsigned)max_of(posted, 0), n);
	if (posted <= 0)
		return posted;
	rc_read_count_posted(f->ctx, posted);
	at_add(&f->ctx->sleep.reads_in_flight, (unsigned)posted);
	if (!f->outstanding)
		f->bytes_at = 0;
	f->pieces_at = q->connection;
	f->outstanding += (unsigned)posted;
	q->outstanding += (unsigned)posted;
	for (unsigned i = 0; i < (unsigned)posted && !is_short(f, p); i++) {
		f->bytes_at += r[i].sge[0].length;
		q->bytes += r[i].sge[0].length;
	}
	if (!rc_read_all_asked(f))
		split_put(q, f, turns == f->next / TURN || f->next == f->length);
	return posted;
}

bool rc_split_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	struct rc_split *q = &p->pieces;
	int posted = 0;

	rc_assert_locked(f->ctx);
	if (f->pieces_at != q->connection)
		f->next = 0;
	if (is_short(f, p) || (list_empty(&q->reads) && split_has_room(f, p))) {
		posted = split_post(f, p, conn);
		if (rc_read_hard_failure(posted)) {
			rc_read_fail(f, posted);
			return true;
		}
		/* Waits for a slot, not for a turn. With no piece out, no piece's end would make it
		 * go on. And a short read could wait for reads whose turn comes after its own. */
		if (posted <= 0 && (!q->outstanding || is_short(f, p)))
			return false;
	}
	if (posted <= 0)
		split_put(q, f, false);
	return true;
}

bool rc_split_finished(struct rref_future *f, struct rc_peer *p)
{
	struct rc_split *q = &p->pieces;
	bool same = f->pieces_at == q->connection, queued = !list_empty(&f->node);

	rc_assert_locked(f->ctx);
	if (same) {
		/* Pieces mostly have that length; the last one settles the rest. */
		uint64_t bytes = f->outstanding ? min_of(f->bytes_at, p->max_msg) : f->bytes_at;

		f->bytes_at -= bytes;
		q->bytes -= bytes;
		q->outstanding--;
	}
	if (same && rc_op_wanted(f) && !f->read_status && !f->again)
		return queued;
	if (queued)
		split_take(q, f);
	f->again |= !rc_read_all_asked(f);
	return false;
}

void rc_split_go_on(struct rc_peer *p)
{
	struct rc_split *q = &p->pieces;

	while (!list_empty(&q->reads)) {
		struct rref_future *f = container_of(q->reads.next, struct rref_future, node);
		int posted;

		if (rc_op_wanted(f) && !split_has_room(f, p))
			return;
		split_take(q, f);
		posted = rc_op_wanted(f) ? split_post(f, p, at_load(&p->conn)) : -ECANCELED;
		if (rc_read_hard_failure(posted)) {
			rc_read_fail(f, posted);
		} else if (posted <= 0 && q->outstanding) {
			/* Waits until a piece has ended: there is no place in the send queue, or
			 * the connection breaks. */
			split_put(q, f, true);
			return;
		} else if (posted <= 0) {
			f->retried = true; /* the caller pumps */
			rc_read_wait(f, p);
		}
	}
}

void rc_split_stop(struct rc_peer *p)
{
	struct rc_split *q = &p->pieces;
	struct list *n;

	q->connection++;
	q->bytes = 0;
	q->outstanding = 0;
	while ((n = list_pop(&q->reads))) {
		struct rref_future *f = container_of(n, struct rref_future, node);

		q->nr_reads--;
		if (f->outstanding)
			continue; /* rc_split_finished goes on with it */
		list_add_tail(&p->waiting, &f->node);
		at_add(&p->nr_waiting, 1);
	}
}
