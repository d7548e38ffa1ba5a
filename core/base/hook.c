/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue of the program's code that is due. These threads run it:
 *
 *   with a poller   the hands, and nobody else. A thread that waits for 5 ms never runs a callback
 *                   that takes 3 s.
 *   manual mode     threads in rref_progress, and threads that wait. Another thread may have called
 *                   rref_progress a moment ago, or may sleep on rref_ctx_fd. Then a thread that
 *                   waits leaves hooks to that thread.
 *
 * In the manual mode a hook that waits may run further hooks on the same stack. NEST bounds how
 * many.
 */
#include "core/base/clock.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/ctx.h"

#define NEST 8u                         /* hooks of one thread that are on its stack at once */
/* time for which hooks are left to the last thread in rref_progress */
#define LEFT_NS (20 * NSEC_PER_MSEC)

static _Thread_local unsigned callback_depth;

bool rc_in_callback(void)
{
	return callback_depth > 0;
}

unsigned rc_callback_depth(void)
{
	return callback_depth;
}

void rc_callback_enter(void)
{
	callback_depth++;
}

void rc_callback_leave(void)
{
	callback_depth--;
}

/*
 * Resets the depth: the child is in no callback, even if its parent forked in one. So the child may
 * shut down a context of its own.
 */
void rc_callback_fork_child(void)
{
	callback_depth = 0;
}

void rc_hook_push(struct rref_ctx *ctx, struct rc_hook *h)
{
	rc_assert_locked(ctx);
	list_add_tail(&ctx->hooks.due, &h->node);
	at_add_mine(&ctx->hooks.nr, 1);
	/*
	 * Both words are written under the lock. So a thread that goes to sleep sees this hook, or
	 * is seen here.
	 */
	if (unlikely(at_load(&ctx->sleep.sleeping)))
		rc_kick(ctx);
	if (at_load(&ctx->turns.has_poller))
		return;
	/* A loop that sleeps is woken, and given a moment to come. */
	if (unlikely(rc_loop_sleeps(at_load(&ctx->sleep.loop)))) {
		at_store(&ctx->hooks.progress_by, ctx->sleep.loop_thread);
		at_store(&ctx->hooks.progress_at, rc_coarse_ns());
	}
	rc_loop_wake(ctx);
}

static void push_hook(struct rref_ctx *ctx, struct list *l)
{
	struct list *old = at_load(&ctx->hooks.pushed);

	/* sc. Pairs with is_quiet and with rc_kick: a sleeper sees the hook, or is woken. */
	do
		l->next = old;
	while (!at_cas_weak_sc(&ctx->hooks.pushed, &old, l));
}

/* Takes all pushed hooks, the first one first. They are linked by next. */
static struct list *take_pushed(struct rref_ctx *ctx)
{
	struct list *l = at_xchg_acq(&ctx->hooks.pushed, NULL), *first = NULL, *next;

	for (; l; l = next) {
		next = l->next;
		l->next = first;
		first = l;
	}
	return first;
}

void rc_hook_push_any(struct rref_ctx *ctx, struct rc_hook *h)
{
	push_hook(ctx, &h->node);
	rc_kick(ctx);
}

void rc_hooks_gather(struct rref_ctx *ctx)
{
	struct list *next;

	rc_assert_locked(ctx);
	for (struct list *l = take_pushed(ctx); l; l = next) {
		next = l->next;
		list_init(l);
		rc_hook_push(ctx, container_of(l, struct rc_hook, node));
	}
}

struct rc_hook *rc_hook_pop_any(struct rref_ctx *ctx)
{
	struct list *first = take_pushed(ctx), *next;

	/* The others go back at once: this thread may be away for long. */
	for (struct list *l = first ? first->next : NULL; l; l = next) {
		next = l->next;
		push_hook(ctx, l);
	}
	/* A sleeper may have looked while they were out. */
	if (first && first->next)
		rc_kick(ctx);
	if (!first)
		return NULL;
	list_init(first);
	return container_of(first, struct rc_hook, node);
}

unsigned rc_hook_run_any(struct rref_ctx *ctx)
{
	struct rc_hook *h = NULL;
	struct rc_error scratch;

	if (!at_load(&ctx->turns.has_poller) && !rc_hooks_deep() && !rc_hooks_left(ctx))
		h = rc_hook_pop_any(ctx);
	if (!h)
		return 0;
	rc_error_aside(&scratch);
	rc_hook_run(ctx, h);
	rc_error_back(&scratch);
	return 1;
}

struct rc_hook *rc_hook_pop(struct rref_ctx *ctx)
{
	struct list *l = list_pop(&ctx->hooks.due);

	rc_assert_locked(ctx);
	if (!l)
		return NULL;
	at_add_mine(&ctx->hooks.nr, -1);
	return container_of(l, struct rc_hook, node);
}

void rc_hook_take(struct rref_ctx *ctx, struct rc_hook *h)
{
	rc_assert_locked(ctx);
	list_del(&h->node);
	at_add_mine(&ctx->hooks.nr, -1);
}

void rc_hook_run(struct rref_ctx *ctx, struct rc_hook *h)
{
	rb_slow(RB_SLOW_HOOK);
	rc_callback_enter();
	h->run(ctx, h);
	rc_callback_leave();
}

int64_t rc_hooks_left(const struct rref_ctx *ctx)
{
	const void *by = at_load(&ctx->hooks.progress_by);

	if (!by || by == rc_this_thread())
		return 0;
	return max_of(at_load(&ctx->hooks.progress_at) + LEFT_NS - rc_coarse_ns(), 0);
}

bool rc_hooks_deep(void)
{
	return callback_depth >= NEST;
}

/* Takes what was pushed meanwhile, perhaps by this very turn. */
static needs_lock void take_pushes(struct rref_ctx *ctx)
{
	if (unlikely(at_load(&ctx->works.pushed)))
		rc_work_run_pushed(ctx);
	if (unlikely(at_load(&ctx->hooks.pushed)))
		rc_hooks_gather(ctx);
}

unsigned rc_unlock_hooks(struct rref_ctx *ctx)
{
	struct rc_hook *h;
	unsigned nr, n = 0;

	take_pushes(ctx);
	nr = at_load(&ctx->hooks.nr);
	if (likely(!nr) || at_load(&ctx->turns.has_poller) || rc_hooks_deep()) {
		rc_unlock(ctx);
		return 0;
	}
	int64_t begun = nr > 1 ? rc_coarse_ns() : 0;
	struct rc_error scratch;

	rc_error_aside(&scratch);
	/*
	 * Runs at most the hooks that are due now, since a hook may queue another. Stops soon,
	 * since this thread's own wait may be over.
	 */
	for (;;) {
		h = rc_hooks_left(ctx) ? NULL : rc_hook_pop(ctx);
		rc_unlock(ctx);
		if (!h)
			break;
		rc_hook_run(ctx, h);
		if (++n == nr || rc_coarse_ns() != begun)
			break;
		rc_lock(ctx);
	}
	rc_error_back(&scratch);
	return n;
}

void rc_hooks_flush(struct rref_ctx *ctx)
{
	struct rc_hook *h;

	rc_lock(ctx);
	rc_hooks_gather(ctx);
	while ((h = rc_hook_pop(ctx))) {
		rc_unlock(ctx);
		rc_hook_run(ctx, h);
		rc_lock(ctx);
		rc_hooks_gather(ctx);
	}
	rc_unlock(ctx);
}
