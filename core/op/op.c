/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations: a slab of futures that never shrinks. So a late completion always finds a slot to
 * look at. The generation in its token tells whether it is still the same operation. The free list
 * is a stack of indexes with a tag against ABA. Get and put are lock-free; growing takes a lock.
 *
 * The end of operations and the scans of the slab are in complete.c.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/fast.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/base/wait.h"
#include "core/op/kind.h"

int rc_ops_open(struct rref_ctx *ctx, unsigned max_ops)
{
	uint32_t chunks = (max_ops + RC_OP_CHUNK - 1) / RC_OP_CHUNK;

	ctx->op.max = chunks * RC_OP_CHUNK;
	ctx->op.chunk = calloc((size_t)chunks * RC_OP_RESULT, sizeof(ctx->op.chunk[0]));
	ctx->op.taken = calloc((size_t)chunks * RC_OP_RESULT, sizeof(ctx->op.taken[0]));
	return ctx->op.chunk && ctx->op.taken
		       ? 0
		       : rc_fail(ENOMEM, "memory for %u operations", ctx->op.max);
}

void rc_ops_close(struct rref_ctx *ctx)
{
	uint32_t nr = at_load(&ctx->op.nr) / RC_OP_CHUNK;

	for (uint32_t i = 0; ctx->op.chunk && i < nr; i++) {
		struct rref_future *chunk = at_load(&ctx->op.chunk[i]);

		for (uint32_t k = 0; k < RC_OP_CHUNK; k++)
			free(chunk[k].spare);
		free(chunk);
	}
	free(ctx->op.chunk);
	free(ctx->op.taken);
	ctx->op.chunk = NULL;
	ctx->op.taken = NULL;
}

static void push_free(struct rref_ctx *ctx, struct rref_future *f)
{
	uint64_t head = at_load(&ctx->op.free), next;

	rb_assert_with(!at_load(&f->refs) && at_load(&f->state) == RC_F_DONE, "slot %u", f->index);
	rb_assert_is((uint32_t)head, !=, f->index + 1);
	do {
		at_store(&f->next_free, (uint32_t)head);
		next = ((head >> 32) + 1) << 32 | (f->index + 1);
	} while (!at_cas_weak_ar(&ctx->op.free, &head, next));
}

static struct rref_future *pop_free(struct rref_ctx *ctx)
{
	uint64_t head = at_load_acq(&ctx->op.free), next;
	struct rref_future *f;

	do {
		if ((uint32_t)head == 0)
			return NULL;
		f = rc_op_at(ctx, (uint32_t)head - 1);
		/* May read a slot that another thread just took: then the tag has moved and the
		 * CAS fails. */
		next = ((head >> 32) + 1) << 32 | at_load(&f->next_free);
	} while (!at_cas_weak_ar(&ctx->op.free, &head, next));
	return f;
}

void rc_op_init(struct rref_future *f, struct rref_ctx *ctx, uint32_t index)
{
	f->index = index;
	f->ctx = ctx;
	list_init(&f->node);
	list_init(&f->then_hook.node);
	/* free slots look finished to a scan of the slab */
	at_store(&f->state, RC_F_DONE);
	at_store(&f->deadline, INT64_MAX);
}

/* waits: for another thread that has the lock. Otherwise returns -EAGAIN then, without a text. */
static int op_grow(struct rref_ctx *ctx, bool waits)
{
	uint32_t nr;
	int err = 0;

	if (waits)
		pthread_mutex_lock(&ctx->op.grow_lock);
	else if (pthread_mutex_trylock(&ctx->op.grow_lock))
		return -EAGAIN;
	nr = at_load(&ctx->op.nr);
	if ((uint32_t)at_load_acq(&ctx->op.free) != 0)
		goto out; /* somebody grew meanwhile */
	rb_require(nr < ctx->op.max * RC_OP_RESULT); /* try_get counts */
	struct rref_future *chunk = aligned_alloc(CACHE_LINE, RC_OP_CHUNK * sizeof(*chunk));

	if (!chunk) {
		err = rc_fail(ENOMEM, "memory for %u more operations", RC_OP_CHUNK);
		goto out;
	}
	memset(chunk, 0, RC_OP_CHUNK * sizeof(*chunk));
	for (uint32_t i = 0; i < RC_OP_CHUNK; i++)
		rc_op_init(&chunk[i], ctx, nr + i);
	at_store_rel(&ctx->op.chunk[nr / RC_OP_CHUNK], chunk);
	at_store_rel(&ctx->op.nr, nr + RC_OP_CHUNK);
	for (uint32_t i = RC_OP_CHUNK; i-- > 0;)
		push_free(ctx, &chunk[i]);
out:
	pthread_mutex_unlock(&ctx->op.grow_lock);
	return err;
}

uint64_t rc_op_token(const struct rref_future *f)
{
	return (uint64_t)at_load(&f->gen) << 32 | f->index;
}

struct rref_future *rc_op_at(struct rref_ctx *ctx, uint32_t index)
{
	/* Acquire. Pairs with op_grow: the index came from a list or a token published after its
	 * release. */
	struct rref_future *chunk = at_load_acq(&ctx->op.chunk[index / RC_OP_CHUNK]);

	rb_assert_with(index < at_load(&ctx->op.nr) && chunk, "%u", index);
	rb_assert_is(chunk[index % RC_OP_CHUNK].index, ==, index);
	return chunk + index % RC_OP_CHUNK;
}

struct rref_future *rc_op_find(struct rref_ctx *ctx, uint64_t token)
{
	uint32_t index = (uint32_t)token;
	struct rref_future *f;

	if (index >= at_load_acq(&ctx->op.nr))
		return NULL;
	f = rc_op_at(ctx, index);
	return at_load(&f->gen) == (uint32_t)(token >> 32) && at_load(&f->refs) ? f : NULL;
}

struct rref_future *rc_op_hold(struct rref_ctx *ctx, uint64_t token)
{
	struct rref_future *f = rc_op_find(ctx, token);
	uint32_t refs = f ? at_load(&f->refs) : 0;

	do {
		if (!refs)
			return NULL;
	} while (!at_cas_weak_ar(&f->refs, &refs, refs + 1));
	/* Acquire above. Pairs with rc_op_get, which releases: a hold on the slot's next
	 * operation shows by its generation. */
	if (at_load(&f->gen) == (uint32_t)(token >> 32))
		return f;
	rc_op_put(f);
	return NULL;
}

/*
 * Takes the spare slot: free, but still counted as taken. So a thread that comes and goes alone
 * neither counts nor goes to the list. Each take moves the tag, which the word keeps when there is
 * no spare. Otherwise rc_ops_due would miss an operation that began since it looked last.
 */
static struct rref_future *op_take_spare(struct rref_ctx *ctx, enum rc_op_share share)
{
	uint64_t spare = at_load(&ctx->op.spare), none;

	do {
		if (!(uint32_t)spare || at_load(&ctx->op.in_flight) > ctx->op.max * share)
			return NULL;
		none = ((spare >> 32) + 1) << 32;
	} while (!at_cas_weak_ar(&ctx->op.spare, &spare,
				 none)); /* acquire. Pairs with op_leave_spare */
	return rc_op_at(ctx, (uint32_t)spare - 1);
}

static bool op_leave_spare(struct rref_ctx *ctx, struct rref_future *f)
{
	uint64_t none = at_load(&ctx->op.spare);

	return RB_FAST(!(uint32_t)none && at_cas_ar(&ctx->op.spare, &none, none | (f->index + 1)));
}

uint32_t rc_ops_in_flight(const struct rref_ctx *ctx)
{
	/* Loaded first (acquire): a slot that becomes spare between the two loads would hide an
	 * operation. A spare slot that is taken then is not counted. */
	bool spare = (uint32_t)at_load_acq(&ctx->op.spare) != 0;
	uint32_t nr = at_load(&ctx->op.in_flight);

	return nr - (nr && spare);
}

uint32_t rc_ops_max(const struct rref_ctx *ctx)
{
	return ctx->op.max;
}

static int no_slot(struct rref_ctx *ctx, int err)
{
	rb_assert_is(at_load(&ctx->op.in_flight), >, 0);
	at_sub(&ctx->op.in_flight, 1);
	return err;
}

/*
 * Counts a slot before it takes it from the list. share: how many times max_ops there may be with
 * this one. waits: as op_grow.
 */
static __attribute__((noinline)) int get_listed(struct rref_ctx *ctx, enum rc_op_share share,
						bool waits, struct rref_future **out)
{
	if (at_add(&ctx->op.in_flight, 1) >= ctx->op.max * share) {
		no_slot(ctx, 0);
		/* The last one that counts may have become spare meanwhile. */
		*out = op_take_spare(ctx, share);
		return *out ? 0
			    : rc_fail(EAGAIN, "%u operations in flight, the limit (max_ops)",
				      ctx->op.max);
	}
	for (;;) {
		*out = pop_free(ctx);
		if (*out) {
			at_add(&ctx->op.taken[(*out)->index / RC_OP_CHUNK], 1);
			return 0;
		}
		int err = op_grow(ctx, waits);

		if (err)
			return no_slot(ctx, err);
	}
}

void rc_op_clean(struct rref_future *f, const struct rc_op_kind *kind)
{
	rb_assert_is(at_load(&f->deadline), ==, INT64_MAX);
	rb_assert_is(at_load(&f->state), ==, RC_F_DONE);
	rb_assert_with(!at_load(&f->queue), "slot %u", f->index);
	/* No kind and no deadline yet: a scan of the slab leaves it alone until it is really
	 * under way. */
	at_store(&f->kind, NULL);
	f->is = kind;
	at_store(&f->deadline, INT64_MAX);
	at_store(&f->seen_at, 0);
	at_store(&f->then_state, 0);
	f->status = 0;
	f->wc_status = -1;
	f->about = 0;
	at_store(&f->view, NULL);
	f->type = NULL;
	f->data = NULL;
	f->data_length = 0;
	f->incoming = NULL;
	f->text[0] = 0;
	f->handle = NULL;
	f->landing = NULL;
	at_store(&f->outstanding, 0);
	at_store(&f->posted, false);
	f->pieces_at = 0;
	f->look_least = SIZE_MAX;
	f->parked = false;
	f->plain = false;
	f->replied = false;
	f->stands_for = NULL;
	f->fetch = NULL;
	f->number = 0;
	f->read_status = 0;
	f->read_wc = -1;
}

static void begin(struct rref_future *f, const struct rc_op_kind *kind)
{
	rb_assert_with(!at_load(&f->refs), "slot %u", f->index);
	rc_op_clean(f, kind);
	at_store_rel(&f->refs, 2); /* Pairs with pin_pending and rc_op_hold */
	/* Release: a thread that finds the operation by its token or scans the slab sees the
	 * fields above. */
	at_store_rel(&f->state, RC_F_PENDING);
}

static int try_get(struct rref_ctx *ctx, enum rc_op_share share, bool waits,
		   struct rref_future **out)
{
	*out = op_take_spare(ctx, share);
	return *out ? 0 : get_listed(ctx, share, waits, out);
}

struct slot {
	enum rc_op_share share;
	struct rref_future *f;
	int err;
};

/*
 * Returns true when the search for a slot is over; its outcome is in arg. Being out of slots is
 * back-pressure: others' completions free some.
 */
static needs_lock bool got_slot(struct rref_ctx *ctx, void *arg)
{
	struct slot *s = arg;

	/* A handler gives up sooner, because the shutdown waits for it. The holders of the slots
	 * may wait for the shutdown. */
	if (at_load(&ctx->state) == RC_CTX_CLOSING && rc_in_callback())
		s->err = -ESHUTDOWN;
	else
		s->err = try_get(ctx, s->share, true, &s->f);
	return s->err != -EAGAIN;
}

int rc_op_get_share(struct rref_ctx *ctx, enum rc_op_share share, const struct rc_op_kind *kind,
		    int64_t deadline, struct rref_future **out)
{
	struct slot s = { .share = share };
	int err = try_get(ctx, share, true, &s.f);

	if (unlikely(err == -EAGAIN && deadline > 0)) {
		rc_lock(ctx);
		err = rc_wait_until(ctx, got_slot, &s, deadline);
		rc_unlock(ctx);
		if (!err)
			err = s.err;
		if (err == -ESHUTDOWN)
			rc_fail(ESHUTDOWN, "the context was shut down");
		else if (err == -ETIMEDOUT)
			err = -EAGAIN; /* the text is that of the last try */
	}
	if (err)
		return err;
	begin(s.f, kind);
	*out = s.f;
	return 0;
}

bool rc_op_try(struct rref_ctx *ctx, const struct rc_op_kind *kind, struct rref_future **out)
{
	*out = op_take_spare(ctx, RC_OP_PROGRAM);
	if (likely(*out))
		begin(*out, kind);
	return *out;
}

int rc_op_get(struct rref_ctx *ctx, const struct rc_op_kind *kind, int64_t deadline,
	      struct rref_future **out)
{
	return rc_op_get_share(ctx, RC_OP_PROGRAM, kind, deadline, out);
}

int rc_op_get_now(struct rref_ctx *ctx, const struct rc_op_kind *kind, struct rref_future **out)
{
	int err;

	if (likely(rc_op_try(ctx, kind, out)))
		return 0;
	err = get_listed(ctx, RC_OP_PROGRAM, false, out);
	if (!err)
		begin(*out, kind);
	return err;
}

static void op_release(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;

	if (f->is->keep) {
		f->is->keep(f);
		return;
	}
	if (f->is->release)
		f->is->release(f);
	at_store(&f->kind, NULL);
	/* an operation that was given up before it began is not pending either */
	at_store(&f->state, RC_F_DONE);
	at_store(&f->deadline, INT64_MAX);
	/* Late completions of this operation do not find it from here on. */
	/* read/in_flight.c has tokens with the highest bit */
	at_store(&f->gen, (at_load(&f->gen) + 1) & INT32_MAX);
	if (op_leave_spare(ctx, f))
		return;
	rb_assert_is(at_load(&ctx->op.taken[f->index / RC_OP_CHUNK]), >, 0);
	rb_assert_is(at_load(&ctx->op.in_flight), >, 0);
	at_sub(&ctx->op.taken[f->index / RC_OP_CHUNK], 1);
	push_free(ctx, f);
	at_sub(&ctx->op.in_flight, 1); /* last: a thread that counts itself in finds a slot */
}

void rc_op_put(struct rref_future *f)
{
	rb_assert_with(at_load(&f->refs) > 0, "slot %u", f->index);
	if (at_sub_ar(&f->refs, 1) == 1)
		op_release(f);
}
