/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations: a slab of futures that never shrinks, so that a late completion always finds a slot to look at, and
 * the generation in its token tells whether it is still the same operation. The free list is a stack of indexes with
 * a tag against ABA: get and put are lock-free, growing takes a lock.
 *
 * Who scans the slab skips chunks of which no slot is taken: else the largest burst that ever was would be paid for at
 * each tick.
 */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rc_scope.h"

int rc_ops_open(struct rref_ctx *ctx, unsigned max_ops)
{
	uint32_t chunks = (max_ops + RC_OP_CHUNK - 1) / RC_OP_CHUNK;

	ctx->max_ops = chunks * RC_OP_CHUNK;
	ctx->op_chunk = calloc((size_t)chunks * RC_OP_RESULT, sizeof(ctx->op_chunk[0]));
	ctx->op_taken = calloc((size_t)chunks * RC_OP_RESULT, sizeof(ctx->op_taken[0]));
	return ctx->op_chunk && ctx->op_taken ? 0 : rc_fail(ENOMEM, "memory for %u operations", ctx->max_ops);
}

void rc_ops_close(struct rref_ctx *ctx)
{
	uint32_t nr = at_load(&ctx->nr_ops) / RC_OP_CHUNK;

	for (uint32_t i = 0; ctx->op_chunk && i < nr; i++) {
		struct rref_future *chunk = at_load(&ctx->op_chunk[i]);

		for (uint32_t k = 0; k < RC_OP_CHUNK; k++)
			free(chunk[k].spare);
		free(chunk);
	}
	free(ctx->op_chunk);
	free(ctx->op_taken);
	ctx->op_chunk = NULL;
	ctx->op_taken = NULL;
}

static struct rref_future *op_at(struct rref_ctx *ctx, uint32_t index)
{
	/* Acquire: partner of the release in grow(); the index came from a list or a token published after it. */
	struct rref_future *chunk = at_load_acq(&ctx->op_chunk[index / RC_OP_CHUNK]);

	return chunk + index % RC_OP_CHUNK;
}

/*
 * Of a scan that is at slot i: the first slot from there on that may be taken, nr if there is none. A slot that is taken
 * while the scan goes on may be missed: it was not under way when the scan began.
 */
static uint32_t next_taken(struct rref_ctx *ctx, uint32_t i, uint32_t nr)
{
	while (i < nr && i % RC_OP_CHUNK == 0 && !at_load(&ctx->op_taken[i / RC_OP_CHUNK]))
		i += RC_OP_CHUNK;
	return i;
}

static void push_free(struct rref_ctx *ctx, struct rref_future *f)
{
	uint64_t head = at_load(&ctx->op_free), next;

	do {
		at_store(&f->next_free, (uint32_t)head);
		next = ((head >> 32) + 1) << 32 | (f->index + 1);
	} while (!at_cas_weak_ar(&ctx->op_free, &head, next));
}

static struct rref_future *pop_free(struct rref_ctx *ctx)
{
	uint64_t head = at_load_acq(&ctx->op_free), next;
	struct rref_future *f;

	do {
		if ((uint32_t)head == 0)
			return NULL;
		f = op_at(ctx, (uint32_t)head - 1);
		/* May read a slot that another thread just took: then the tag has moved and the CAS fails. */
		next = ((head >> 32) + 1) << 32 | at_load(&f->next_free);
	} while (!at_cas_weak_ar(&ctx->op_free, &head, next));
	return f;
}

static int grow(struct rref_ctx *ctx)
{
	uint32_t nr;
	int err = 0;

	pthread_mutex_lock(&ctx->grow_lock);
	nr = at_load(&ctx->nr_ops);
	if ((uint32_t)at_load_acq(&ctx->op_free) != 0)
		goto out; /* somebody grew meanwhile */
	assert(nr < ctx->max_ops * RC_OP_RESULT); /* try_get counts */
	struct rref_future *chunk = aligned_alloc(CACHE_LINE, RC_OP_CHUNK * sizeof(*chunk));

	if (!chunk) {
		err = rc_fail(ENOMEM, "memory for %u more operations", RC_OP_CHUNK);
		goto out;
	}
	memset(chunk, 0, RC_OP_CHUNK * sizeof(*chunk));
	for (uint32_t i = 0; i < RC_OP_CHUNK; i++) {
		chunk[i].index = nr + i;
		chunk[i].ctx = ctx;
		list_init(&chunk[i].node);
		list_init(&chunk[i].then_node);
		at_store(&chunk[i].state, RC_F_DONE); /* free slots look finished to whoever scans the slab */
		at_store(&chunk[i].deadline, INT64_MAX);
	}
	at_store_rel(&ctx->op_chunk[nr / RC_OP_CHUNK], chunk);
	at_store_rel(&ctx->nr_ops, nr + RC_OP_CHUNK);
	for (uint32_t i = RC_OP_CHUNK; i-- > 0;)
		push_free(ctx, &chunk[i]);
out:
	pthread_mutex_unlock(&ctx->grow_lock);
	return err;
}

uint64_t rc_op_token(const struct rref_future *f)
{
	return (uint64_t)at_load(&f->gen) << 32 | f->index;
}

struct rref_future *rc_op_find(struct rref_ctx *ctx, uint64_t token)
{
	uint32_t index = (uint32_t)token;
	struct rref_future *f;

	if (index >= at_load_acq(&ctx->nr_ops))
		return NULL;
	f = op_at(ctx, index);
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
	/* Acquire above, partner of the release in rc_op_get: a hold on the slot's next operation shows by its generation. */
	if (at_load(&f->gen) == (uint32_t)(token >> 32))
		return f;
	rc_op_put(f);
	return NULL;
}

/*
 * One slot may be spare: free, but still counted as one that is not. So who comes and goes alone neither counts nor goes to the
 * list. Each that is taken moves the tag, also of the word that says that there is none: who looks for operations that began
 * since it looked last (rc_ops_pending) would miss one else.
 */
static struct rref_future *take_spare(struct rref_ctx *ctx, enum rc_op_share share)
{
	uint64_t spare = at_load(&ctx->op_spare), none;

	do {
		if (!(uint32_t)spare || at_load(&ctx->ops_in_flight) > ctx->max_ops * share)
			return NULL;
		none = ((spare >> 32) + 1) << 32;
	} while (!at_cas_weak_ar(&ctx->op_spare, &spare, none)); /* acquire: partner of leave_spare */
	return op_at(ctx, (uint32_t)spare - 1);
}

static bool leave_spare(struct rref_ctx *ctx, struct rref_future *f)
{
	uint64_t none = at_load(&ctx->op_spare);

	return !(uint32_t)none && at_cas_ar(&ctx->op_spare, &none, none | (f->index + 1));
}

uint32_t rc_ops_in_flight(const struct rref_ctx *ctx)
{
	/* First (acquire), or one that is left between the two loads would hide another. One that is taken then is not counted. */
	bool spare = (uint32_t)at_load_acq(&ctx->op_spare) != 0;
	uint32_t nr = at_load(&ctx->ops_in_flight);

	return nr - (nr && spare);
}

static int no_slot(struct rref_ctx *ctx, int err)
{
	at_sub(&ctx->ops_in_flight, 1);
	return err;
}

/* Counted before it is taken. share: how many times max_ops there may be with this one. */
static int try_get(struct rref_ctx *ctx, enum rc_op_share share, struct rref_future **out)
{
	*out = take_spare(ctx, share);
	if (*out)
		return 0;
	if (at_add(&ctx->ops_in_flight, 1) >= ctx->max_ops * share) {
		no_slot(ctx, 0);
		/* The last one that counts may have become spare meanwhile. */
		*out = take_spare(ctx, share);
		return *out ? 0 : rc_fail(EAGAIN, "%u operations in flight, the limit (max_ops)", ctx->max_ops);
	}
	for (;;) {
		*out = pop_free(ctx);
		if (*out) {
			at_add(&ctx->op_taken[(*out)->index / RC_OP_CHUNK], 1);
			return 0;
		}
		int err = grow(ctx);

		if (err)
			return no_slot(ctx, err);
	}
}

static void begin(struct rref_future *f)
{
	/* No kind and no deadline yet: who scans the slab leaves it alone until it is really under way. */
	at_store(&f->kind, RC_OP_NONE);
	at_store(&f->deadline, INT64_MAX);
	at_store(&f->seen_at, 0);
	f->then = NULL;
	at_store(&f->then_state, 0);
	f->status = 0;
	f->wc_status = -1;
	f->view = NULL;
	f->type = NULL;
	f->data = NULL;
	f->data_length = 0;
	f->incoming = NULL;
	f->text[0] = 0;
	f->handle = NULL;
	f->landing = NULL;
	f->outstanding = 0;
	f->parked = false;
	f->again = false;
	f->replied = false;
	f->inner = false;
	f->fetch = NULL;
	f->number = 0;
	f->read_status = 0;
	f->read_wc = -1;
	at_store_rel(&f->refs, 2); /* partner: pin_pending, rc_op_hold */
	/* Release: who finds the operation by its token or scans the slab sees the fields above. */
	at_store_rel(&f->state, RC_F_PENDING);
}

int rc_op_get_share(struct rref_ctx *ctx, enum rc_op_share share, int64_t deadline, struct rref_future **out)
{
	struct rref_future *f;
	bool blocking = false;
	unsigned turn = 0;
	int err = try_get(ctx, share, &f);

	/* Out of slots is back-pressure: others' completions free some, so make progress until one does. */
	while (err == -EAGAIN && now_ns() < deadline) {
		uint32_t state = at_load(&ctx->state);

		/* A handler gives up sooner: the shutdown waits for it, and who holds the slots may wait for the shutdown. */
		if (state == RC_CTX_SHUT || (state == RC_CTX_CLOSING && rc_in_callback()))
			err = rc_fail(ESHUTDOWN, "the context was shut down");
		if (err == -ESHUTDOWN)
			break;
		if (!blocking) {
			blocking = true;
			rc_pool_blocking(ctx, 1);
		}
		if (rc_trylock(ctx)) {
			rc_progress_locked(ctx, true);
			rc_unlock(ctx);
		}
		rc_pause(&turn);
		err = try_get(ctx, share, &f);
	}
	if (blocking)
		rc_pool_blocking(ctx, -1);
	if (err)
		return err;
	begin(f);
	*out = f;
	return 0;
}

bool rc_op_try(struct rref_ctx *ctx, struct rref_future **out)
{
	*out = take_spare(ctx, RC_OP_PROGRAM);
	if (likely(*out))
		begin(*out);
	return *out;
}

int rc_op_get(struct rref_ctx *ctx, int64_t deadline, struct rref_future **out)
{
	return rc_op_get_share(ctx, RC_OP_PROGRAM, deadline, out);
}

bool rc_op_incoming(struct rref_future *f)
{
	f->incoming = f->spare;
	f->spare = NULL;
	if (likely(f->incoming))
		return true;
	f->incoming = malloc(sizeof(*f->incoming));
	if (f->incoming)
		rc_incoming_init(f->incoming);
	return f->incoming;
}

/* What it may have brought. The struct is kept for the slot's next operation, as rc_incoming_init leaves it. */
static void put_incoming(struct rref_future *f)
{
	struct rc_incoming *in = f->incoming;

	/* Nothing came: nobody has touched it. */
	if (likely(!in->ready && !in->nr)) {
		free(f->data);
	} else {
		if (!in->body && !in->own)
			free(f->data);
		rc_incoming_release(in);
		rc_incoming_init(in);
	}
	if (f->spare)
		free(in);
	else
		f->spare = in;
}

static void release(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;

	if (f->view)
		rref_view_free(f->view);
	if (f->incoming)
		put_incoming(f);
	else
		free(f->data);
	if (f->handle)
		rref_release(f->handle);
	rc_landing_put(f->landing);
	at_store(&f->kind, RC_OP_NONE);
	at_store(&f->state, RC_F_DONE); /* one that was given up before it began is not pending either */
	at_store(&f->deadline, INT64_MAX);
	/* From here on late completions of this operation do not find it. */
	at_store(&f->gen, (at_load(&f->gen) + 1) & INT32_MAX); /* flight.c has tokens with the highest bit */
	if (leave_spare(ctx, f))
		return;
	at_sub(&ctx->op_taken[f->index / RC_OP_CHUNK], 1);
	push_free(ctx, f);
	at_sub(&ctx->ops_in_flight, 1); /* last: who counts itself in finds a slot */
}

void rc_op_put(struct rref_future *f)
{
	if (at_sub_ar(&f->refs, 1) == 1)
		release(f);
}

void rc_op_put_inner(struct rref_future *f)
{
	uint32_t holds = at_load(&f->state) & RC_F_BOTH ? 2 : 1;

	if (at_sub_ar(&f->refs, holds) == holds)
		release(f);
}

bool rc_op_claim(struct rref_future *f)
{
	uint32_t s = at_load(&f->state);

	do {
		if ((s & RC_F_MASK) != RC_F_PENDING)
			return false;
	} while (!at_cas_weak_ar(&f->state, &s, (s & ~(uint32_t)RC_F_MASK) | RC_F_COMPLETING));
	return true;
}

void rc_op_run_then(struct rref_future *f)
{
	rc_callback_enter();
	f->then(f, f->then_arg);
	rc_callback_leave();
	rc_op_put(f);
}

static void wake(struct rref_ctx *ctx, struct rref_future *f)
{
	syscall(SYS_futex, &f->state, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
	if (!at_load(&ctx->has_poller))
		rc_kick(ctx); /* its waiter sleeps on the context's descriptor */
}

void rc_op_finish(struct rref_future *f, bool locked)
{
	uint32_t set = 1;
	/* sc: partner of rref_future_then, which stores then_state and then looks at state. One of the two sees both. */
	uint32_t old = at_xchg_sc(&f->state, RC_F_DONE);

	if (unlikely(old & (RC_F_SCOPED | RC_F_WAITERS))) {
		if (old & RC_F_SCOPED)
			rc_scope_detach(f, f->status);
		if (old & RC_F_WAITERS)
			wake(f->ctx, f);
	}
	if (at_load_sc(&f->then_state) == 1 && at_cas_ar(&f->then_state, &set, 2)) {
		at_add(&f->refs, 1);
		if (locked)
			list_add_tail(&f->ctx->deferred_ops, &f->then_node);
		else
			rc_op_run_then(f);
	}
}

/*
 * Without the state between: what is pending and waits for an answer is completed by holders of the lock only. After the
 * exchange an inner one is the waiter's alone, who may have put it already: of the slot only the word to wake may be named.
 */
void rc_op_answered(struct rref_future *f)
{
	struct rref_ctx *ctx = f->ctx;

	if (!f->inner) {
		rc_op_finish(f, true);
		rc_op_put(f);
	} else if (unlikely(at_xchg_ar(&f->state, RC_F_DONE | RC_F_BOTH) & RC_F_WAITERS)) {
		wake(ctx, f);
	}
}

bool rc_op_fail(struct rref_future *f, int status, int wc, const char *text, bool locked)
{
	if (!rc_op_claim(f))
		return false;
	f->status = status;
	f->wc_status = wc;
	snprintf(f->text, sizeof(f->text), "%s", text && *text ? text : rref_strerror(status));
	rc_op_finish(f, locked);
	return true;
}

/*
 * The caller gave up: who serves the call may want to know. Only a hint, so no session is begun to give it. Where one is being
 * begun the call itself may still be in the queue: what says that nobody wants it goes behind it.
 */
static void tell_callee(struct rref_ctx *ctx, const struct rref_future *f)
{
	struct rw_message m = { .frame.type = RW_CANCEL, .u.number = rc_op_token(f) };
	const struct rc_peer *p = &ctx->peers[f->peer];

	if (f->peer == ctx->rank || p->state == RC_PEER_UP || !list_empty(&p->queue))
		rc_send(ctx, f->peer, &m);
}

/*
 * Ends an operation from outside (time-out, cancel, dead peer, shutdown). A call's engine reference goes here, since a
 * reply no longer finds it. A read's stays until its device or its peer is done with it: what is in flight cannot be
 * recalled, and the landing buffer stays quarantined till then.
 */
void rc_op_end(struct rref_ctx *ctx, struct rref_future *f, int status, const char *text)
{
	uint32_t kind = at_load(&f->kind);
	char words[RREF_TEXT_SIZE];

	if (status == -ETIMEDOUT)
		text = rc_stall_words(ctx, f->peer, text, words, sizeof(words));
	if (kind == RC_OP_CREATE) {
		struct rref *h = f->handle;
		struct rp_event ev = { .type = RP_EV_CREATE_FAILED, .id = h->id, .fork = rc_remote(h)->fork, .status = status,
				       .text = text, .peer = f->peer, .handle = h };

		tell_callee(ctx, f);
		/* The machine fails the handle and completes this very operation (RP_EFF_CREATED). */
		rc_step(ctx, &ev, NULL);
		return;
	}
	if (!rc_op_fail(f, status, -1, text, true))
		return;
	if ((kind == RC_OP_READ || kind == RC_OP_FETCH) && !f->parked)
		at_add(&ctx->n.quarantined, 1); /* until its device or its place in a queue gives the landing buffer back */
	if (f->parked) {
		struct rp_event ev = { .type = RP_EV_UNWAIT, .id = f->handle->id, .fork = rc_fork_of(f->handle),
				       .cookie = rc_op_token(f) };

		/* Nobody waits for it any more: the machine forgets it, and with it goes the engine's hold. */
		f->parked = false;
		if (rc_step(ctx, &ev, NULL) == 0)
			rc_op_put(f);
		return;
	}
	if (kind == RC_OP_LOCAL_CREATE) {
		struct rref *h = f->handle;

		tell_callee(ctx, f);
		struct rp_event ev = { .type = RP_EV_SET, .id = h->id, .status = status, .text = text };

		/* Whoever shares it hears the same, and the late result finds the entry set: it is dropped. */
		rc_step(ctx, &ev, NULL);
		rc_handle_fail(h, status, text);
		rc_remote(h)->creation = NULL;
		rc_op_put(f);
	}
	if (kind == RC_OP_REPLIED)
		rc_fetch_cancel(ctx, f->incoming);
	if (kind == RC_OP_CALL) {
		tell_callee(ctx, f);
		rc_op_put(f);
	}
	if (kind == RC_OP_BARRIER || kind == RC_OP_TYPE)
		rc_op_put(f);
}

/*
 * For who scans the slab: the operation in slot i with a hold on it (rc_op_put), if it is under way. Without the hold
 * the slot could be another operation's by the time it is ended: reads come and go without the lock.
 */
static struct rref_future *pin_pending(struct rref_ctx *ctx, uint32_t i)
{
	struct rref_future *f = op_at(ctx, i);
	uint32_t refs = at_load(&f->refs);

	if ((at_load(&f->state) & RC_F_MASK) != RC_F_PENDING || at_load(&f->kind) == RC_OP_NONE)
		return NULL;
	do {
		if (!refs)
			return NULL;
	} while (!at_cas_weak_ar(&f->refs, &refs, refs + 1));
	/* Acquire: partner of the release of kind by who starts a read without the lock. */
	if ((at_load_acq(&f->state) & RC_F_MASK) == RC_F_PENDING && at_load_acq(&f->kind) != RC_OP_NONE)
		return f;
	rc_op_put(f);
	return NULL;
}

/* Its time is over. A reader must see which reference's creation it was, and that no retry of the read will help. [lock] */
static void expire(struct rref_ctx *ctx, struct rref_future *f)
{
	uint32_t kind = at_load(&f->kind);
	char name[160], text[RREF_TEXT_SIZE];

	if (kind != RC_OP_CREATE && kind != RC_OP_LOCAL_CREATE) {
		rc_op_end(ctx, f, -ETIMEDOUT, "timed out");
		return;
	}
	rref_format(f->handle, name, sizeof(name));
	snprintf(text, sizeof(text), "the creation of the reference timed out: %s", name);
	rc_op_end(ctx, f, -ETIMEDOUT, text);
}

void rc_ops_expire(struct rref_ctx *ctx, int64_t now)
{
	/* Before it is asked whether there are any: what begins behind that moves one of the two. */
	uint64_t free_list = at_load_acq(&ctx->op_free), spare = at_load_acq(&ctx->op_spare);
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->nr_ops) : 0;
	bool pending = false;

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *op = op_at(ctx, i);
		struct rref_future *f = at_load(&op->deadline) <= now ? pin_pending(ctx, i) : NULL;

		/* A slot that is given to the next operation meanwhile begins with this very moment, which is true of it too. */
		if (!at_load(&op->seen_at) && at_load(&op->kind) != RC_OP_NONE)
			at_store(&op->seen_at, now);

		pending |= (at_load(&op->state) & RC_F_MASK) != RC_F_DONE;
		if (!f)
			continue;
		if (at_load(&f->deadline) <= now)
			expire(ctx, f);
		rc_op_put(f);
	}
	/* Only complete ones that the program keeps: no reason to come back before there are others. */
	ctx->ops_kept = pending ? UINT64_MAX : free_list;
	ctx->spare_kept = spare;
}

bool rc_ops_pending(const struct rref_ctx *ctx)
{
	return rc_ops_in_flight(ctx) && (at_load(&ctx->op_free) != ctx->ops_kept || at_load(&ctx->op_spare) != ctx->spare_kept);
}

/* Reads are not looked at: each of them ends by its own completion, its wait, or its place in peer->waiting. */
void rc_ops_fail_peer(struct rref_ctx *ctx, uint32_t peer, int status, const char *text)
{
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->nr_ops) : 0;

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);
		uint32_t kind;

		if (!f)
			continue;
		kind = at_load(&f->kind);
		/* A type's query that still waits for the value is ended by the machine. */
		if ((kind == RC_OP_CALL || kind == RC_OP_CREATE || kind == RC_OP_BARRIER || (kind == RC_OP_TYPE && !f->parked)) &&
		    f->peer == peer)
			rc_op_end(ctx, f, status, text);
		rc_op_put(f);
	}
}

void rc_ops_fail_all(struct rref_ctx *ctx, int status, const char *text)
{
	uint32_t nr = at_load_acq(&ctx->nr_ops);

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);

		if (!f)
			continue;
		rc_op_end(ctx, f, status, text);
		rc_op_put(f);
	}
}

unsigned rc_ops_calling(struct rref_ctx *ctx)
{
	uint32_t nr = rc_ops_in_flight(ctx) ? at_load_acq(&ctx->nr_ops) : 0;
	unsigned n = 0;

	for (uint32_t i = next_taken(ctx, 0, nr); i < nr; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = op_at(ctx, i);
		uint32_t kind = at_load(&f->kind);

		n += (kind == RC_OP_CALL || kind == RC_OP_REPLIED || kind == RC_OP_CREATE || kind == RC_OP_LOCAL_CREATE) &&
		     (at_load_acq(&f->state) & RC_F_MASK) == RC_F_PENDING;
	}
	return n;
}

uint32_t rc_ops_visit(struct rref_ctx *ctx, uint32_t from, uint32_t max, void (*fn)(void *arg, struct rref_future *f), void *arg)
{
	uint32_t nr = at_load_acq(&ctx->nr_ops), i = from;

	for (i = next_taken(ctx, i, nr); i < nr && i - from < max; i = next_taken(ctx, i + 1, nr)) {
		struct rref_future *f = pin_pending(ctx, i);

		if (!f)
			continue;
		if (!at_load(&f->seen_at))
			at_store(&f->seen_at, now_ns());
		fn(arg, f);
		rc_op_put(f);
	}
	return i < nr ? i : 0;
}
