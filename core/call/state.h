/* SPDX-License-Identifier: Apache-2.0 */
/* The state of call/ in a context. */
#ifndef RC_CALL_STATE_H
#define RC_CALL_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/locked.h"
#include "rref.h"

struct rc_function;
struct rc_incoming;

#define RC_CALL_BUCKETS 256u  /* a power of two */
#define RC_FUNCTION_BUCKETS 64u /* the same */
/*
 * Spare calls that are kept for the next ones. The address sanitizer gets a fresh block for each
 * call, so that it sees a use after the end.
 */
#if defined(__SANITIZE_ADDRESS__)
#define RC_SPARE_CALLS 0u
#else
#define RC_SPARE_CALLS 64u
#endif
#define RC_CONSUMED_KEPT 1024u

#define RC_SPARE_DROPS 32u
/* Calls, made and served. */
struct rc_call_state {
	struct rc_incoming *spare_drop[RC_SPARE_DROPS] under_lock; /* incoming.c */
	uint32_t nr_spare_drops under_lock;
	struct list open[RC_CALL_BUCKETS] under_lock; /* calls served here, by caller and call id */
	struct list spare_calls under_lock; /* plain ones that ended; serve.c */
	uint32_t nr_spare_calls under_lock;
	_Atomic(struct rref_call *) spare_call;   /* an extra call, left without the lock */
	/* payloads that others have not read yet, by reader and call id */
	struct list offers[RC_CALL_BUCKETS] under_lock;
	uint64_t bucket_seed;             /* [const] peers choose call ids, not buckets */
	_Atomic(struct rc_function *) functions[RC_FUNCTION_BUCKETS]; /* by name */
	pthread_mutex_t function_lock;
	/* deferred ones that were replied to; serve.c */
	_Atomic(struct rref_call *) consumed[RC_CONSUMED_KEPT];
	_Atomic uint32_t nr_consumed;
	/* Number of calls ever to be served; written under the lock. */
	_Atomic uint64_t begun;
	/* Number of them that ended under the lock; written under it. */
	_Atomic uint64_t ended;
	_Atomic uint64_t over;              /* number of them that ended without it */
};

#endif
