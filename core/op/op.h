/* SPDX-License-Identifier: Apache-2.0 */
/* The worker pool: the names for other rooms. Operations: future.h. docs/design/progress.md. */
#ifndef RC_OP_OP_H
#define RC_OP_OP_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* pool.c */
int rc_pool_open(struct rref_ctx *ctx, unsigned nr_threads, unsigned max_waiting);
void rc_pool_close(struct rref_ctx *ctx);
needs_lock void rc_pool_push(struct rref_ctx *ctx, struct rref_call *call);
/* part of blocking of struct rc_engine; does nothing on other threads */
void rc_pool_blocking(int delta);
bool rc_may_wait(const struct rref_ctx *ctx);            /* not in a callback or inline handler */
void rc_pool_fork_child(void);
/* wait.c */
void rc_wait_fork_child(void); /* called by the pool's */

#endif
