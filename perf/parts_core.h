/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PARTS_CORE_H
#define PARTS_CORE_H

#include <stddef.h>

struct rref_ctx;

/* Each 0 or -errno. */
int parts_slot(struct rref_ctx *ctx);                  /* an operation slot, got and given back */
/* a future that is completed, waited for and freed */
int parts_future(struct rref_ctx *ctx);
/* a landing block out of the cache and back */
int parts_landing(struct rref_ctx *ctx, size_t bytes);
/* the lock, a turn of an idle engine, the lock given back */
int parts_turn(struct rref_ctx *ctx);

#endif
