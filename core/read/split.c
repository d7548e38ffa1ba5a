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
 *
 * Pieces are posted under the lock, and end without it: an end gives back room and counts down. A
 * read that waits for room is in the queue before it looks for the last time. So the end of a piece
 * finds it there, and pushes the work that goes on with it (take_in.c).
 */
#include <errno.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/read/internal.h"
#include "core/read/read.h"
#include "core/session/session.h"

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

/* Moves one of the numbers of a connection, if it is still the connection at hand. */
static void split_count(_Atomic uint64_t *number, uint32_t connection, int64_t by)
{
	uint64_t old = at_load(number);

	do {
		if (old >> 32 != connection)
			return;
		rb_assert_if(by < 0, (uint32_t)old >= (uint64_t)-by);
	} while (!at_cas_weak_sc(number, &old, old + (uint64_t)by));
}

static uint64_t split_room(const struct rc_split *q)
{
	/* sc. Pairs with take_bytes: a read that finds no room is in the queue already. */
	uint64_t bytes = (uint32_t)at_load_sc(&q->bytes);

	return bytes < ROOM ? ROOM - bytes : 0;
}

/* Returns whether pieces are out, whose ends go on with the reads that wait. */
static bool pieces_are_out(const struct rc_split *q)
{
	return (uint32_t)at_load_sc(&q->outstanding) != 0;
}

/* Returns the bytes of f that are not asked for. */
static uint64_t split_left(const struct rref_future *f)
{
	return f->length - f->next + (f->header_asked ? 0 : RC_HEADER_BYTES);
}

static bool split_has_room(const struct rref_future *f, const struct rc_peer *p)
{
	return is_short(f, p) || split_room(&p->pieces) >= min_of(split_left(f), LEAST);
}

static needs_lock void split_put(struct rc_split *q, struct rref_future *f, bool first)
{
	if (first)
		list_add(&q->reads, &f->node);
	else
		list_add_tail(&q->reads, &f->node);
	at_add_sc(&q->nr_reads, 1); /* Pairs with rc_take_go_on */
	rc_peer_watch(f->ctx, container_of(q, struct rc_peer, pieces));
}

static needs_lock void split_take(struct rc_split *q, struct rref_future *f)
{
	list_del(&f->node);
	at_sub(&q->nr_reads, 1);
}

/*
 * Takes up to max bytes out of those of f that are in flight. Pieces mostly have the length of a
 * message. So each end takes that much, and the last one what is left.
 */
static void take_bytes(struct rref_future *f, struct rc_split *q, uint64_t max)
{
	uint64_t bytes = at_load(&f->bytes_at), taken;

	do
		taken = min_of(bytes, max);
	while (taken && !at_cas_weak_ar(&f->bytes_at, &bytes, bytes - taken));
	if (taken)
		split_count(&q->bytes, f->pieces_at, -(int64_t)taken);
}

/* The bytes of a read's pieces in q->bytes. */
enum split_bytes {
	SPLIT_COUNTS, /* are counted with each piece */
	SPLIT_RESERVED, /* were counted before */
	SPLIT_FREE, /* are not counted */
};

static enum split_bytes bytes_of(const struct rref_future *f, const struct rc_peer *p)
{
	return is_short(f, p) ? SPLIT_FREE : SPLIT_COUNTS;
}

/* Counts r[0..n) as READs at the device, before they are posted. */
static void count_in(struct rref_future *f, struct rc_peer *p, const struct rv_read *r, unsigned n,
		     enum split_bytes how)
{
	struct rc_split *q = &p->pieces;

	rc_count_in_flight(f->ctx, (int)n);
	at_add(&f->outstanding, n);
	split_count(&q->outstanding, f->pieces_at, n);
	for (unsigned i = 0; i < n && how != SPLIT_FREE; i++) {
		if (how == SPLIT_COUNTS)
			split_count(&q->bytes, f->pieces_at, r[i].sge[0].length);
		/* Release. Pairs with take_bytes: q->bytes never has less than this. */
		at_add_rel(&f->bytes_at, r[i].sge[0].length);
	}
}

/* Takes back what count_in counted of r[from..n), which was not posted. */
static void count_out(struct rref_future *f, struct rc_peer *p, const struct rv_read *r,
		      unsigned from, unsigned n, enum split_bytes how)
{
	struct rc_split *q = &p->pieces;

	for (unsigned i = from; i < n && how != SPLIT_FREE; i++)
		take_bytes(f, q, r[i].sge[0].length);
	at_sub(&f->ctx->sleep.reads_in_flight, n - from);
	at_sub(&f->outstanding, n - from);
	split_count(&q->outstanding, f->pieces_at, -(int64_t)(n - from));
}

/*
 * Posts up to max pieces. Returns as post_reads, and in *rest the bytes that were beyond these
 * pieces. f has a turn: it is counted in f->outstanding, so that the ends of its pieces leave it
 * alone meanwhile.
 */
static int split_post_some(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn,
			   uint64_t max, enum split_bytes how, uint64_t *rest)
{
	struct rv_read r[POST_MAX];
	unsigned n = rc_split_build(f, p->max_msg, r, (unsigned)min_of(max, (uint64_t)POST_MAX));
	int posted;

	rb_assert(at_load(&f->outstanding));
	*rest = split_left(f);
	count_in(f, p, r, n, how);
	posted = p->ops->post_reads(conn, r, n);
	rc_split_unbuild(f, r, (unsigned)max_of(posted, 0), n);
	count_out(f, p, r, (unsigned)max_of(posted, 0), n, how);
	rc_read_count_posted(f->ctx, posted);
	return posted;
}

/* Posts all pieces for which there is room, at least one. */
static int split_post(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	uint64_t room = split_room(&p->pieces) / p->max_msg;
	uint64_t max = is_short(f, p) ? 2 : max_of(room, UINT64_C(1)), rest;

	return split_post_some(f, p, conn, max, bytes_of(f, p), &rest);
}

/* Reserves room for all of f, unless reads wait for theirs. */
static bool reserve_room(const struct rref_future *f, struct rc_split *q, uint64_t bytes)
{
	uint64_t old = at_load(&q->bytes);

	do {
		if (old >> 32 != f->pieces_at || (uint32_t)old + bytes > ROOM ||
		    at_load(&q->nr_reads))
			return false;
	} while (!at_cas_weak_sc(&q->bytes, &old, old + bytes));
	return true;
}

/*
 * Posts all of f at that connection, as far as there are slots. Returns the last result of
 * post_reads.
 */
static int post_all(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn, bool urgent)
{
	enum split_bytes how = urgent || is_short(f, p) ? SPLIT_FREE : SPLIT_RESERVED;
	uint64_t rest;
	int posted;

	/* Stable behind the pin: the fence begins another count. */
	f->pieces_at = (uint32_t)(at_load_sc(&p->pieces.bytes) >> 32);
	/* Also if there is no room: it waits for the lock then, whose holder may stand still. */
	at_store_rel(&f->posted, true);
	if (how == SPLIT_RESERVED && !reserve_room(f, &p->pieces, split_left(f)))
		return -EAGAIN;
	at_store(&f->outstanding, 1); /* its turn */
	do
		posted = split_post_some(f, p, conn, POST_MAX, how, &rest);
	while (posted > 0 && split_left(f) == rest && rest);
	/* count_out has given back the pieces that were built and not posted. */
	if (how == SPLIT_RESERVED)
		split_count(&p->pieces.bytes, f->pieces_at, -(int64_t)rest);
	return posted;
}

/* Ends f's turn for good: it has no further pieces to post. */
static needs_lock void end_turn(struct rref_future *f)
{
	if (at_sub_ar(&f->outstanding, 1) == 1)
		rc_read_over(f);
}

/* Has f, which has its turn, go on under the lock. */
static needs_lock void go_on_in_turn(struct rref_ctx *ctx, struct rc_work *w)
{
	struct rref_future *f = container_of(w, struct rref_future, read_work);
	struct rc_peer *p = &ctx->peers[f->peer];
	struct rc_split *q = &p->pieces;

	/* A read may have been posted to a connection that ends, and that has no successor yet. */
	if (at_load(&p->conn) && f->pieces_at == q->connection && !f->again && !f->read_status &&
	    rc_op_wanted(f)) {
		split_put(q, f, false);
		rc_split_go_on(p);
		return;
	}
	f->again |= !rc_read_all_asked(f);
	end_turn(f);
	rc_reads_go_on(ctx, p); /* room may have come back */
}

/* Takes the turn away from f, which was posted as far as it went. Returns how it goes on. */
static enum rc_read_begun turn_over(struct rref_future *f, bool urgent)
{
	if (!rc_read_all_asked(f) && !urgent) {
		rc_read_later(f, go_on_in_turn);
		return RC_READ_UNDER_WAY;
	}
	if (at_sub_ar(&f->outstanding, 1) != 1)
		return RC_READ_UNDER_WAY;
	/* All pieces have ended already. */
	if (likely(!f->again && !f->read_status))
		return RC_READ_OVER;
	rc_read_over_soon(f);
	return RC_READ_UNDER_WAY;
}

enum rc_read_begun rc_split_begin(struct rref_future *f, struct rc_peer *p, bool urgent)
{
	struct rv_conn *conn;
	int posted = -ENOTCONN;

	rb_assert(!at_load(&f->outstanding) && !at_load(&f->bytes_at));
	f->next = 0;
	conn = rc_read_pin(NULL, p);
	if (conn && !rc_read_outlived(f) && (urgent || at_load(&p->nr_waiting) == 0))
		posted = post_all(f, p, conn, urgent);
	rc_read_unpin(NULL, p);
	if (f->next || f->header_asked)
		return turn_over(f, urgent);
	at_store(&f->outstanding, 0); /* nothing was posted */
	if (!urgent && !rc_read_hard_failure(posted))
		return RC_READ_PIECES;
	rc_read_note(f, urgent ? -ECANCELED : posted, -1);
	return RC_READ_OVER;
}

/* Goes on behind a post that posted some pieces, or failed for good. began: where f was before. */
static needs_lock void posted_some(struct rref_future *f, struct rc_peer *p, int posted,
				   uint64_t began)
{
	if (posted < 0)
		rc_read_note(f, posted, -1);
	if (posted < 0 || rc_read_all_asked(f))
		end_turn(f);
	else
		split_put(&p->pieces, f,
			  began / TURN == f->next / TURN || f->next == f->length);
}

bool rc_split_start(struct rref_future *f, struct rc_peer *p, struct rv_conn *conn)
{
	struct rc_split *q = &p->pieces;
	bool now = is_short(f, p) || (list_empty(&q->reads) && split_has_room(f, p));
	uint64_t began;
	int posted = 0;

	rc_assert_locked(f->ctx);
	rb_assert(!at_load(&f->outstanding) && !at_load(&f->bytes_at));
	if (f->pieces_at != q->connection)
		f->next = 0;
	f->pieces_at = q->connection;
	began = f->next;
	at_store(&f->outstanding, 1); /* its turn */
	at_store_rel(&f->posted, true);
	if (now)
		posted = split_post(f, p, conn);
	if (posted > 0 || rc_read_hard_failure(posted)) {
		posted_some(f, p, posted, began);
	} else {
		split_put(q, f, false);
		/* Waits for a slot, not for a turn. With no piece out, no piece's end would make it
		 * go on. And a short read could wait for reads whose turn comes after its own. */
		if (now && (is_short(f, p) || !pieces_are_out(q))) {
			split_take(q, f);
			at_store(&f->outstanding, 0);
			return false;
		}
	}
	rc_split_go_on(p); /* pieces may have ended before f was in the queue */
	return true;
}

void rc_split_bytes_ended(struct rref_future *f, struct rc_peer *p)
{
	take_bytes(f, &p->pieces, p->max_msg);
}

void rc_split_ended(struct rc_peer *p, uint32_t connection)
{
	split_count(&p->pieces.outstanding, connection, -1);
}

void rc_split_give_up(struct rref_future *f, struct rc_peer *p)
{
	rc_assert_locked(f->ctx);
	f->again |= !rc_read_all_asked(f);
	if (list_empty(&f->node))
		return;
	split_take(&p->pieces, f);
	at_sub(&f->outstanding, 1);
}

/* Posts for the reads in the queue, one after the other, as far as there is room. */
static needs_lock void split_turns(struct rc_peer *p)
{
	struct rc_split *q = &p->pieces;

	while (!list_empty(&q->reads)) {
		struct rref_future *f = container_of(q->reads.next, struct rref_future, node);
		bool wanted = rc_op_wanted(f);
		uint64_t began = f->next;
		int posted;

		if (wanted && !split_has_room(f, p))
			return;
		split_take(q, f);
		posted = wanted ? split_post(f, p, at_load(&p->conn)) : -ECANCELED;
		if (posted > 0 || rc_read_hard_failure(posted)) {
			posted_some(f, p, posted, began);
			continue;
		}
		/* Waits until a piece has ended: there is no place in the send queue, or the
		 * connection breaks. */
		split_put(q, f, true);
		if (pieces_are_out(q))
			return;
		split_take(q, f);
		at_store(&f->outstanding, 0);
		f->retried = true; /* the caller pumps */
		rc_read_wait(f, p);
	}
}

void rc_split_go_on(struct rc_peer *p)
{
	struct rc_split *q = &p->pieces;

	if (list_empty(&q->reads))
		return;
	/* sc, as in rc_read_pump: a read leaves the queue while it posts. */
	at_add_sc(&q->nr_reads, 1);
	split_turns(p);
	at_sub(&q->nr_reads, 1);
}

void rc_split_stop(struct rc_peer *p)
{
	struct rc_split *q = &p->pieces;
	struct list *n;

	rc_split_next(q);
	while ((n = list_pop(&q->reads))) {
		struct rref_future *f = container_of(n, struct rref_future, node);

		at_sub(&q->nr_reads, 1);
		f->again = true;
		if (at_sub_ar(&f->outstanding, 1) != 1)
			continue; /* the end of its last piece goes on with it */
		f->again = false;
		list_add_tail(&p->waiting, &f->node);
		at_add_sc(&p->nr_waiting, 1);
		rc_peer_watch(f->ctx, p);
	}
}
