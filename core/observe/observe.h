/* SPDX-License-Identifier: Apache-2.0 */
/* Counters, dumps and leaks: the names for other rooms. Described in docs/OBSERVING.md. */
#ifndef RC_OBSERVE_OBSERVE_H
#define RC_OBSERVE_OBSERVE_H

#include "core/ctx.h"

/* leak.c */
/*
 * What a graceful shutdown leaves behind. rc_leaks_handles: before they are ended, those that the
 * program never released.
 */
void rc_leaks_handles(struct rref_ctx *ctx);
/* what is left now */
void rc_leaks_rest(struct rref_ctx *ctx, char *summary, size_t size, uint64_t *leaks,
		   uint64_t *stuck);
void rc_leaks_free(struct rref_ctx *ctx);

#endif
