/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that may be called, and calls that are served. */
#ifndef RC_CALL_SERVED_H
#define RC_CALL_SERVED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/hook.h"
#include "core/base/locked.h"
#include "core/op/future.h"
#include "rref.h"

struct rc_function {
	struct rc_function *next;
	rref_handler handler;
	void *arg;
	unsigned flags;
	size_t name_length;
	char name[RREF_NAME_MAX + 1];
};

struct rref_call {
	struct rref_ctx *ctx;
	void *block;                 /* [const] what to free */
	/* Hook under the lock. Its node serves the pool's queues and the spare calls too. */
	struct rc_hook hook;
	struct list open_node;	/* under the lock; ctx->open_calls, until it is replied to */
	uint32_t caller, caller_epoch;
	uint64_t call_id;
	uint64_t cost, fetch_cost;   /* shares of the caller's call_bytes and fetch_bytes */
	uint8_t kind;
	/* neither references nor a payload, little data, no creation: see serve.c */
	bool plain;
	/* [const] room for little data; the call is kept for the next */
	bool reusable;
	bool counted;                /* in inline_calls */
	struct rref_id id, fork;     /* REMOTE */
	const struct rc_function *fn;
	const void *bytes;           /* data, or a payload's */
	size_t length;
	const void *meta;            /* behind data */
	size_t meta_length;
	const char *name;            /* name of fn, or own_name */
	_Atomic uint32_t refs;       /* handler + pending reply */
	_Atomic uint32_t replied;
	_Atomic uint32_t cancelled;  /* flag: its caller gave it up, or is gone */
	bool deferred;               /* the handler said so; set while it holds the call */
	struct rc_incoming in;       /* not simply cleared, from here on; see make_call */
	char own_name[RREF_NAME_MAX + 1];
	_Alignas(64) uint8_t data[];
};

#endif
