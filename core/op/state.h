/* SPDX-License-Identifier: Apache-2.0 */
/* The state of op/ in a context. */
#ifndef RC_OP_STATE_H
#define RC_OP_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/locked.h"
#include "core/base/work.h"
#include "rref.h"

struct rc_pool;
struct rp;
struct rp_effect;

/* The protocol machine, operations, the worker pool. */
struct rc_op_state {
	struct rp *machine under_lock;
	/* [const] function that carries out the machine's effects */
	void (*effect)(struct rref_ctx *ctx, const struct rp_effect *e);
	bool in_effects under_lock;
	bool duplicate under_lock; /* the last OWN was of an id known already */
	cache_aligned _Atomic uint64_t free;   /* {tag:32, index+1:32} */
	/* {tag:32, index+1:32}; 0 below: no slot is spare; see op_take_spare */
	_Atomic uint64_t spare;
	_Atomic uint32_t in_flight, nr;   /* the spare one counts; rc_ops_in_flight() */
	uint32_t max;
	pthread_mutex_t grow_lock;
	/* guarded by grow_lock: all queues of futures; the queues that may be used again */
	struct rref_queue *queues, *spare_queues;
	_Atomic(struct rref_future *) *chunk;  /* chunks of RC_OP_CHUNK */
	/* slots of each chunk that are not on the free list */
	_Atomic uint32_t *taken;
	/* op_free and op_spare when the slab was scanned last */
	uint64_t seen under_lock, spare_seen under_lock;
	/* time of the last scan, and the first deadline of the operations under way then */
	int64_t scanned_at under_lock, due under_lock;
	unsigned quiet under_lock; /* scans since those two moved that found nothing under way */
	struct rc_pool *pool;
	struct rc_work pool_grow; /* deferred; it starts threads of the pool */
	unsigned pool_grows under_lock; /* number of threads that it is to start; 0: not deferred */
	int64_t started_at;                       /* [const] ages in the machine count from here */
};

#endif
