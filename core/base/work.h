/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue of the library's own work, which a thread leaves to the next release of the lock. The
 * lock runs it, and knows only the functions here. The program's code is no such work: see hook.h.
 *
 *   deferred   by a holder of the lock. It is run in order, and may let go of the lock meanwhile.
 *   pushed     by any thread, which need not wait for the lock. A release of the lock, or a turn of
 *              the engine, runs it with the lock held throughout.
 */
#ifndef RC_BASE_WORK_H
#define RC_BASE_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/locked.h"
#include "base/atomic.h"

struct rref_ctx;

/* The link of the queue. Alone it is a bare item, for things that exist by the million. */
struct rc_item {
	uintptr_t next; /* the next item's address; the lowest bit is set if that one is bare */
};

struct rc_work {
	struct rc_item item;
	void (*run)(struct rref_ctx *ctx, struct rc_work *w);
};

struct rc_works {
	struct rc_work *first under_lock, *last under_lock;     /* deferred; NULL: none */
	/* last of the urgent ones, which come first; NULL: no work is urgent */
	struct rc_work *last_urgent under_lock;
	uint32_t nr under_lock, running under_lock; /* deferred; deferred ones that run now */
	/* [const] function for every bare item */
	void (*run_bare)(struct rref_ctx *ctx, struct rc_item *item);
	cache_aligned _Atomic uintptr_t pushed; /* a stack; a holder of the lock takes all of it */
};

/* Pushes an item to a stack. sc. Pairs with a thread that takes the stack, or looks at it. */
static inline void rc_item_push(_Atomic uintptr_t *stack, struct rc_item *item, uintptr_t tagged)
{
	uintptr_t head = at_load(stack);

	do
		item->next = head;
	while (!atomic_compare_exchange_weak(stack, &head, tagged));
}

#define RC_ITEM_BARE ((uintptr_t)1) /* mark in the address of an item */

/* Turns a stack round. Returns the item that was pushed first; the links go to later ones. */
static inline uintptr_t rc_items_turned(uintptr_t stack)
{
	uintptr_t first = 0, next;

	for (; stack; stack = next) {
		struct rc_item *item = (struct rc_item *)(stack & ~RC_ITEM_BARE);

		next = item->next;
		item->next = first;
		first = stack;
	}
	return first;
}

/* Defers w. It is not in the queue. */
needs_lock void rc_defer(struct rref_ctx *ctx, struct rc_work *w);
/*
 * Does the same for urgent work, which goes before all other. The release at hand runs it, even if
 * its own work deferred it.
 */
needs_lock void rc_defer_first(struct rref_ctx *ctx, struct rc_work *w);

/*
 * Pushes an item that is not in the queue. Lock-free. The caller then tries the lock, and lets go
 * of it if it got it. Or it kicks the sleepers, and leaves the item to the next turn.
 */
void rc_work_push(struct rref_ctx *ctx, struct rc_work *w);
void rc_work_push_bare(struct rref_ctx *ctx, struct rc_item *item);

/*
 * Runs what is pushed now, not what is pushed meanwhile. So the lock is not held for as long as
 * others push. Returns how many items it ran.
 */
needs_lock unsigned rc_work_run_pushed(struct rref_ctx *ctx);

/*
 * Runs the work that is pushed or deferred now, and urgent work. Does not run other work that is
 * deferred meanwhile. Lets go of the lock meanwhile.
 */
needs_lock void rc_work_run(struct rref_ctx *ctx);

#endif
