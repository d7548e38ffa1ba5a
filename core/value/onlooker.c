/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's side of looks. A peer's process may look at values where they lie, and some of them
 * are kept for it.
 *
 * While a session stands the owner does nothing for a look. The view holds its reference, so the
 * value has a fork. A session may end and its peer live on: it was stopped for too long, or cut
 * off. Then its forks are erased, but its views are still there. So the fence reads the peer's
 * marks, behind the device's fence and before the machine's. Each names a value and a fork. If the
 * peer really holds that fork, the value gets a pin, as an alias has one. The scrub waits for all
 * pins, and so does the use of the memory for other values.
 *
 * A tick takes the pins back: when the mark is gone, or the peer's process has ended. So does an
 * allocation that finds no room, before it fails. A peer that leaves in order gives its references
 * back while its views live. It says so beforehand (leaves), and its marks are read at the first
 * reference that it gives back.
 *
 * The table is the peer's, and may hold anything. A mark pins only a value whose fork this peer
 * holds. So it pins nothing that the peer could not keep by its reference as well. A place has one
 * pin at most. Lies about a mark harm the liar alone.
 *
 * The fence needs no memory: a record of the pins is made when the session begins. Without it the
 * peer may not look.
 */
#include <stdlib.h>

#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/op/step.h"
#include "core/value/look.h"
#include "core/value/value.h"

#define ROUND_NS (50 * NSEC_PER_MSEC)
#define TURN_NS (5 * NSEC_PER_MSEC)
#define TURN_PLACES 128u /* the lock is held for a turn: of one fence, or of all onlookers */
#define LEAST_PLACES 8u /* an onlooker counts as so many at least: a system call looks at it */
/* ended sessions of a peer whose views are still waited for; with so many it may not look again */
#define OVER_MAX 4u

/* A value that is kept for a mark. */
struct kept {
	struct rc_value *value; /* NULL: none */
	struct rv_mark mark;
};

struct rc_onlooker {
	struct list node; /* link in ctx->value.onlookers when the session is over */
	const struct rv_look_ops *ops;
	struct rv_onlooker *seen; /* process and table */
	uint32_t rank, epoch;
	bool left; /* marks were read since the peer said that it leaves */
	bool has_ended; /* the process, as seen when its places were begun */
	uint32_t round; /* the round that is through with it */
	uint32_t read; /* place at which the fence goes on */
	uint32_t next; /* place at which the round goes on */
	uint32_t end; /* no value was ever kept for a place from here on */
	uint32_t nr_kept;
	uint64_t bytes_kept;
	struct kept kept[RV_LOOKS]; /* by place */
};

static struct rref_id id_of(uint64_t local_id, uint64_t created_on)
{
	return (struct rref_id){ .local_id = local_id, .created_on = (uint32_t)created_on };
}

struct rv_mark rc_look_mark(const struct rref *ref)
{
	struct rref_id fork = rc_fork_of(ref);

	return (struct rv_mark){ { fork.local_id, ref->id.local_id,
				   (uint64_t)fork.created_on << 32 | ref->id.created_on } };
}

static bool same_mark(const struct rv_mark *a, const struct rv_mark *b)
{
	return !memcmp(a->word, b->word, sizeof(a->word));
}

static uint64_t kept_bytes(const struct rc_value *v)
{
	return RC_HEADER_BYTES + v->view.length;
}

static needs_lock void drop_kept(struct rref_ctx *ctx, struct rc_onlooker *o, struct kept *k)
{
	struct rc_value *v = k->value;

	k->value = NULL;
	o->nr_kept--;
	o->bytes_kept -= kept_bytes(v);
	ctx->n.views_left--;
	at_sub(&ctx->n.views_left_bytes, kept_bytes(v));
	rc_value_unpin(v);
}

/* Returns the value that the mark names, if the peer holds it by that fork and can look at it. */
static needs_lock struct rc_value *
value_of(struct rref_ctx *ctx, const struct rc_onlooker *o, const struct rv_mark *m)
{
	struct rref_id fork = id_of(m->word[0], m->word[2] >> 32);
	struct rref_id id = id_of(m->word[1], m->word[2]);
	const struct rc_value *v;
	void *value = NULL;

	if (rc_held_value(ctx, o->rank, &id, &fork, &value))
		return NULL;
	v = value;
	/* the readers' rule, in rc_can_look */
	return v->wrapped || v->view.nr_refs || v->view.nr_segments != 1 ? NULL : value;
}

/* Reads the peer's marks at the next places, and keeps the values that they name. Returns whether
 * all are read. */
static needs_lock bool keep_marked(struct rref_ctx *ctx, struct rc_onlooker *o, uint32_t most)
{
	uint32_t nr = o->ops->nr_places(o->seen), end = min_of(nr, o->read + most);

	rb_assert_is(nr, <=, RV_LOOKS);
	for (uint32_t i = o->read; i < end; i++) {
		struct kept *k = &o->kept[i];
		struct rv_mark mark;

		if (!o->ops->mark_at(o->seen, i, &mark) ||
		    (k->value && same_mark(&k->mark, &mark)))
			continue; /* a mark that is gone is the tick's */
		struct rc_value *v = value_of(ctx, o, &mark);

		if (!v)
			continue;
		at_add(&v->pins, 1);
		if (k->value)
			drop_kept(ctx, o, k);
		*k = (struct kept){ .value = v, .mark = mark };
		o->end = max_of(o->end, i + 1);
		o->nr_kept++;
		o->bytes_kept += kept_bytes(v);
		ctx->n.views_left++;
		at_add(&ctx->n.views_left_bytes, kept_bytes(v));
	}
	o->read = end < nr ? end : 0;
	return end >= nr;
}

static void onlooker_free(struct rc_onlooker *o)
{
	o->ops->let_go(o->seen);
	free(o);
}

static needs_lock uint32_t count_over(struct rref_ctx *ctx, uint32_t rank)
{
	struct list *l, *tmp;
	uint32_t nr = 0;

	list_for_each_safe(l, tmp, &ctx->value.onlookers)
		nr += container_of(l, struct rc_onlooker, node)->rank == rank;
	return nr;
}

void rc_onlooker_begin(struct rref_ctx *ctx, struct rc_peer *p)
{
	const struct rv_look_ops *ops = p->ops->look;
	struct rc_onlooker *o = p->onlooker;
	struct rv_onlooker *seen;

	rc_assert_locked(ctx);
	if (!ops)
		return;
	if (o && o->epoch != p->epoch) { /* the attempt came to nothing */
		rb_assert(!o->nr_kept);
		onlooker_free(o);
		o = p->onlooker = NULL;
	}
	if (!o && (count_over(ctx, p->rank) >= OVER_MAX || !(o = calloc(1, sizeof(*o)))))
		return;
	if (ops->let_look(p->link, &seen)) {
		if (!p->onlooker)
			free(o);
		return;
	}
	if (p->onlooker) { /* another connection of its session, and the same process */
		ops->let_go(seen);
		return;
	}
	o->ops = ops;
	o->seen = seen;
	o->rank = p->rank;
	o->epoch = p->epoch;
	list_init(&o->node);
	p->onlooker = o;
}

void rc_onlooker_gives_back(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rc_onlooker *o = p->onlooker;

	rc_assert_locked(ctx);
	/* No look begins after it said so: its marks are read once. */
	if (!o || o->left || !o->ops->leaves(o->seen))
		return;
	o->left = true;
	/* All of them in one go, once in a session: the message at hand cannot wait. */
	keep_marked(ctx, o, RV_LOOKS);
}

static bool is_over(const struct rc_onlooker *o, uint32_t place)
{
	struct rv_mark mark;

	return o->has_ended || !o->ops->mark_at(o->seen, place, &mark) ||
	       !same_mark(&o->kept[place].mark, &mark);
}

/* Lets go of values that are not looked at any more, at the next places. Returns their number. */
static needs_lock uint32_t look_again(struct rref_ctx *ctx, struct rc_onlooker *o, uint32_t most)
{
	uint32_t begin = o->next, i = begin, end = min_of(o->end, i + most);

	if (!i)
		o->has_ended = o->ops->has_ended(o->seen);
	for (; i < end; i++)
		if (o->kept[i].value && is_over(o, i))
			drop_kept(ctx, o, &o->kept[i]);
	o->next = i < o->end && o->nr_kept ? i : 0;
	return i - begin;
}

/* Returns the onlooker that the round comes to next, or NULL: all were looked at. */
static needs_lock struct rc_onlooker *next_of_round(struct rref_ctx *ctx)
{
	struct rc_onlooker *o = container_of(ctx->value.onlookers.next, struct rc_onlooker, node);

	if (list_empty(&ctx->value.onlookers))
		return NULL;
	return o->round == ctx->value.onlookers_round ? NULL : o;
}

/* Looks at some more places of a round, or begins one. The list's last ones are through with it. */
static needs_lock void take_turn(struct rref_ctx *ctx)
{
	struct rc_onlooker *o = next_of_round(ctx);
	uint32_t looked = 0;

	if (!o)
		ctx->value.onlookers_round++;
	while (looked < TURN_PLACES && (o = next_of_round(ctx))) {
		looked += max_of(look_again(ctx, o, TURN_PLACES - looked), LEAST_PLACES);
		if (o->next)
			return;
		list_del(&o->node);
		o->round = ctx->value.onlookers_round;
		if (o->nr_kept)
			list_add_tail(&ctx->value.onlookers, &o->node);
		else
			onlooker_free(o);
	}
}

/* Looks at all of them, in turns: memory is wanted. */
static void look_at_all(struct rref_ctx *ctx)
{
	uint32_t last;

	rc_lock(ctx);
	/* A round that is under way has passed some places: it counts as none. */
	last = ctx->value.onlookers_round + 1;
	while (!list_empty(&ctx->value.onlookers) &&
	       (int32_t)(last - ctx->value.onlookers_round) >= !next_of_round(ctx)) {
		take_turn(ctx);
		rc_unlock(ctx);
		rc_lock(ctx);
	}
	rc_unlock(ctx);
}

bool rc_onlooker_over(struct rref_ctx *ctx, struct rc_peer *p)
{
	struct rc_onlooker *o = p->onlooker;

	rc_assert_locked(ctx);
	if (!o)
		return true;
	if (o->ops->has_ended(o->seen)) {
		ctx->value.onlookers_at = 0; /* lets go of all: the marks are void */
		rc_turn_by(ctx, 0);
	} else if (!keep_marked(ctx, o, TURN_PLACES)) {
		return false;
	}
	p->onlooker = NULL;
	if (!o->nr_kept) {
		onlooker_free(o);
		return true;
	}
	o->round = ctx->value.onlookers_round - 1;
	list_add(&ctx->value.onlookers, &o->node);
	ctx->value.find_room = look_at_all;
	rc_log(ctx, RREF_LOG_INFO, "%s (rank %u) still looks at %u values of its last session",
	       p->member->name, p->rank, o->nr_kept);
	return true;
}

int64_t rc_onlookers_due(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	return list_empty(&ctx->value.onlookers) ? INT64_MAX : ctx->value.onlookers_at;
}

void rc_onlookers_tick(struct rref_ctx *ctx, int64_t now)
{
	rc_assert_locked(ctx);
	if (likely(now < rc_onlookers_due(ctx)))
		return;
	take_turn(ctx);
	ctx->value.onlookers_at = now + (next_of_round(ctx) ? TURN_NS : ROUND_NS);
}

void rc_onlookers_visit(struct rref_ctx *ctx,
			void (*fn)(void *arg, uint32_t rank, uint32_t epoch, uint32_t values,
				   uint64_t bytes),
			void *arg)
{
	struct list *l, *tmp;

	rc_assert_locked(ctx);
	list_for_each_safe(l, tmp, &ctx->value.onlookers)
	{
		struct rc_onlooker *o = container_of(l, struct rc_onlooker, node);

		fn(arg, o->rank, o->epoch, o->nr_kept, o->bytes_kept);
	}
}

/* Drops what is kept, and leaves the bytes as they are. Their readers have them mapped. */
static is_alone void leave_kept(struct rc_onlooker *o)
{
	for (uint32_t i = 0; i < RV_LOOKS && o->nr_kept; i++)
		if (o->kept[i].value) {
			rc_value_leave(o->kept[i].value);
			o->nr_kept--;
		}
	onlooker_free(o);
}

is_alone void rc_onlookers_close(struct rref_ctx *ctx)
{
	struct list *l;

	while (ctx->value.onlookers.next && (l = list_pop(&ctx->value.onlookers)))
		leave_kept(container_of(l, struct rc_onlooker, node));
	for (uint32_t i = 0; ctx->peers && i < ctx->world; i++) {
		if (ctx->peers[i].onlooker)
			leave_kept(ctx->peers[i].onlooker);
		ctx->peers[i].onlooker = NULL;
	}
}
