/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PARTS_CORE_H
#define PARTS_CORE_H

#include <stddef.h>

struct rref_ctx;

/* Each returns 0 or -errno. */
int parts_slot(struct rref_ctx *ctx);                  /* takes and frees an operation slot */
/* completes, waits for and frees a future */
int parts_future(struct rref_ctx *ctx);
/* takes a landing block from the cache, and puts it back */
int parts_landing(struct rref_ctx *ctx, size_t bytes);
/* takes the lock, makes a turn of an idle engine, releases the lock */
int parts_turn(struct rref_ctx *ctx);

#endif
