/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hands: the threads that can be the poller.
 *
 * The program's code may take as long as it likes, and the engine must not stand still meanwhile.
 * So the poller is a role, not a thread. A few threads, the hands, can have it. One hand has it.
 * The others stand by, asleep in a read of a timer. Before the poller goes out into the program's
 * code it starts that timer, if it does not run. The timer wakes a hand, which looks whether the
 * poller is still out in the same hook. If so, that hand is the poller from then on. A hook that
 * waits in the library gives the role away at once (rc_blocking). A hand that comes back without
 * the role stands by.
 *
 *   poller   turn, turn, ... hook ......................... (comes back: stands by)
 *   hand     asleep ..... WATCH_NS ...... takes over: turn, turn, hook, turn ...
 *
 * The poller goes out only while another hand stands by. With HANDS - 1 hooks away at once, the
 * last hand only makes progress. Time-outs come, and further hooks wait until a hook ends.
 */
#include <sys/timerfd.h>

#include "base/thread.h"
#include "core/base/clock.h"
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/base/wait.h"
#include "core/ctx.h"
#include "core/engine.h"
#include "core/hands.h"
#include "core/op/op.h"

/* time that a hook may be out before another hand takes over */
#define WATCH_NS (5 * NSEC_PER_MSEC)
/* looks in a row without a hook before the timer is stopped */
#define QUIET 20u

static _Thread_local struct rc_hand *my_hand;

void rc_hands_fork_child(void)
{
	my_hand = NULL;
}

void rc_hands_set_timer(const struct rc_hands *h, int64_t ns, bool every)
{
	struct itimerspec t = { .it_value = { ns / NSEC_PER_SEC, ns % NSEC_PER_SEC } };

	if (every)
		t.it_interval = t.it_value;
	timerfd_settime(h->timer, 0, &t, NULL);
}

unsigned rc_hands_standing_by(const struct rc_hands *h)
{
	return at_load(&h->nr) - at_load(&h->away) - 1;
}

void rc_hand_begin(struct rc_hand *me)
{
	my_hand = me;
}

bool rc_hooks_blocked(const struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	return ctx->turns.hands ? !rc_hands_standing_by(ctx->turns.hands) : rc_hooks_deep();
}

int rc_hand_start(struct rref_ctx *ctx)
{
	struct rc_hands *h = ctx->turns.hands;
	struct rc_hand *me = NULL;
	char why[200];
	int err;

	rc_lock_looking(ctx); /* the poller calls this, too */
	for (unsigned i = 0; i < RC_HANDS && !me && !at_load(&h->stop); i++)
		if (at_load(&h->hand[i].state) == HAND_NONE)
			me = &h->hand[i];
	if (me) {
		at_store(&me->state, HAND_STARTING);
		at_add_mine(&h->nr, 1);
	}
	rc_unlock(ctx);
	if (!me)
		return -EAGAIN;
	me->ctx = ctx;
	err = rb_thread_start(&me->thread, rc_hand_run, me);
	if (err) {
		rc_lock_looking(ctx);
		at_store(&me->state, HAND_NONE);
		at_add_mine(&h->nr, -1);
		rc_unlock(ctx);
		rb_thread_why(err, why, sizeof(why));
		return rc_fail(err == EAGAIN ? ENOMEM : err, "a thread for callbacks: %s", why);
	}
	if (ctx->turns.poller_core >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET((unsigned)ctx->turns.poller_core, &set);
		err = pthread_setaffinity_np(me->thread, sizeof(set), &set);
		if (err)
			rc_fail(err, "pinning the poller to core %d: %s", ctx->turns.poller_core,
				rref_strerror(err));
	}
	at_store_rel(&me->state, HAND_RUNS); /* Pairs with rc_poller_close */
	return -err;
}

/* ---- the program's code ---- */

struct rc_hook *rc_hand_go_out(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	struct rc_hook *hook;

	rc_assert_locked(ctx);
	/* No hand goes out once the hands have to end: rc_hooks_flush runs the rest. */
	if (at_load(&h->poller) != me || !rc_hands_standing_by(h) || at_load(&h->stop))
		return NULL;
	hook = rc_hook_pop(ctx);
	if (!hook)
		return NULL;
	at_add_mine(&h->outings, 1);
	at_store_sc(&me->where, HAND_OUT);
	if (unlikely(!at_load(&h->watched))) {
		at_store(&h->watched, true);
		h->seen = at_load(&h->outings);
		h->quiet = 0;
		rc_hands_set_timer(h, WATCH_NS, false);
	}
	return hook;
}

/* Brings a hand back from a hook. Another hand may have the role by now. */
static void come_back(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hands *h = ctx->turns.hands;

	/* Pairs with rc_hand_look: it takes the role from a hand that is out, by the same word. */
	if (likely(at_xchg_ar(&me->where, HAND_IN) == HAND_OUT))
		return;
	rc_lock(ctx);
	at_add_mine(&h->away, -1);
	if (at_load(&ctx->hooks.nr))
		rc_kick(ctx); /* perhaps no hand stood by, so the poller could not run the hook */
	rc_unlock(ctx);
}

struct rc_hook *rc_hand_go_out_alone(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	struct rc_hook *hook = NULL;

	if (at_load(&h->poller) != me || !rc_hands_standing_by(h) || at_load(&h->stop))
		return NULL;
	at_add_mine(&h->outings, 1);
	/* sc. Pairs with stop_if_idle and rc_hand_look: one of the two sees the other. */
	at_store_sc(&me->where, HAND_OUT);
	if (likely(!at_load_sc(&h->ending))) {
		/* Comes first: this thread may stop with the hooks in its hand. */
		if (unlikely(!at_xchg_sc(&h->watched, true)))
			rc_hands_set_timer(h, WATCH_NS, false);
		hook = rc_hook_pop_any(ctx);
	}
	if (!hook)
		come_back(ctx, me);
	return hook;
}

/* Takes the next hook, if the poller may go out. */
static struct rc_hook *next_hook(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hook *hook = NULL;

	if (!rc_lock_soon(ctx))
		return at_load(&ctx->hooks.pushed) ? rc_hand_go_out_alone(ctx, me) : NULL;
	hook = rc_hand_go_out(ctx, me);
	rc_unlock(ctx);
	return hook;
}

/* Runs a bounded number, or many short hooks would stop the engine like a long one. */
int rc_hand_run_hooks(struct rref_ctx *ctx, struct rc_hand *me, struct rc_hook *hook)
{
	unsigned nr = at_load(&ctx->hooks.nr);
	int64_t begun = nr ? rc_coarse_ns() : 0;
	int n = 0;

	while (hook) {
		rc_hook_run(ctx, hook);
		come_back(ctx, me);
		n++;
		if (!nr-- || at_load(&ctx->turns.hands->poller) != me || rc_coarse_ns() != begun)
			break;
		hook = next_hook(ctx, me);
	}
	return n;
}

/* Goes on with the watch, or ends it. */
static needs_lock void watch_on(struct rc_hands *h, const struct rc_hand *poller, bool watch)
{
	if (!at_load(&h->stop))
		rc_hands_set_timer(h, watch ? WATCH_NS : 0, false);
	/*
	 * Comes behind the timer, which a poller that sees no watch starts. And looks again. Pairs
	 * with rc_hand_go_out_alone: it may have seen the watch that ended.
	 */
	at_store_sc(&h->watched, watch);
	if (!watch && at_load_sc(&poller->where) == HAND_OUT) {
		at_store(&h->watched, true);
		rc_hands_set_timer(h, WATCH_NS, false);
	}
}

bool rc_hand_look(struct rref_ctx *ctx, struct rc_hand *me)
{
	struct rc_hands *h = ctx->turns.hands;
	uint32_t is_out = HAND_OUT;
	bool take, out, waits, watch = false;

	rc_lock_looking(ctx); /* no other thread may look for READs now */
	struct rc_hand *poller = at_load(&h->poller);

	out = at_load(&poller->where) == HAND_OUT;
	waits = at_xchg_ar(&h->give_away, false);
	take = out && (waits || at_load(&h->outings) == h->seen) && !at_load(&h->stop) &&
	       at_cas_ar(&poller->where, &is_out, HAND_REPLACED); /* Pairs with come_back */
	if (take) {
		at_store_rel(&h->poller, me);
		at_add_mine(&h->away, 1);
	} else {
		h->quiet = at_load(&h->outings) == h->seen && !out ? h->quiet + 1 : 0;
		watch = h->quiet < QUIET;
	}
	h->seen = at_load(&h->outings);
	watch_on(h, take ? me : poller, watch);
	rc_unlock(ctx);
	return take;
}

/*
 * Has the role taken at once. Does without the lock: the hook may wait for a READ, whose end waits
 * for no lock. The hands do not end while this one is out, so nobody else sets the timer for good.
 */
static void give_away(struct rc_hand *me)
{
	struct rc_hands *h = me->ctx->turns.hands;

	if (at_load(&h->poller) != me || at_load(&me->where) != HAND_OUT)
		return;
	at_store_rel(&h->give_away, true);
	at_store_sc(&h->watched, true);
	rc_hands_set_timer(h, 1, false);
}

void rc_blocking(int delta)
{
	rc_pool_blocking(delta);
	if (delta > 0 && my_hand && rc_in_callback())
		give_away(my_hand);
}
